"""`mk.svd` on a CUDA device beside the papers' routine: one script of a few minutes, one table.

python tests/bench_gpu.py [--against FOLDER] [--out FILE]
python tests/bench_gpu.py --cpu     at 64 x 64, once, k = 2, tol = .1: only to see that it runs

The map is x_t -> h at t = 500 of a U-Net like google/ddpm-celebahq-256: 113.7 M parameters, 256 x
256 pixels, random weights; k = 5, tol = 1e-3. Seconds count from the model's evaluation on, the
first run and the best of the others; calls are batched ones. The residual, max over both sides in
units of s_1, is recomputed by exact float32 passes.

The papers' routine: 50 rounds of subspace iteration, run through this package's passes and as
released: forward mode over a batch of k, one backward pass a direction (k of them are one call in
the table), TF32 convolutions and cuDNN's benchmark.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from bench_svd import BAR, Meter, Triplets, ours, published, residual
from standins import CELEBAHQ
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import mathkit as mk
from mathkit.linear import svd as solver

T = 500
Make = Callable[[], mk.LinearMap]
Solve = Callable[[mk.LinearMap], Triplets]


class Bench:
    """The network, the point and the clock."""

    def __init__(self, cpu: bool) -> None:
        from diffusers import UNet2DModel

        self.device, size = ("cpu", 64) if cpu else ("cuda", 256)
        self.k, self.tol, self.repeats, self.rounds = (2, 0.1, 0, 2) if cpu else (5, BAR, 3, 50)
        torch.manual_seed(0)
        unet = UNet2DModel.from_config(CELEBAHQ | {"sample_size": size}).to(self.device)
        self.model = mk.diffusion.networks.UNetModel(unet, mk.diffusion.model.linear_schedule())
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(1, *self.model.shape, generator=generator).to(self.device)
        self.f = mk.encoder(self.model, T)

    def jacobian(self) -> mk.LinearMap:
        return mk.jacobian(self.f, self.x)

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def best(self, make: Make, solve: Solve) -> tuple[dict[str, Any], Triplets]:
        """The first run of a solver, the best of the others, and what it took."""
        seconds = []
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            base = torch.cuda.memory_allocated()
        for _ in range(1 + self.repeats):
            begin = self.now()
            A = make()
            meter = Meter(A)
            found = solve(meter.map)
            seconds.append(self.now() - begin)
        told: dict[str, Any] = {"first": seconds[0], "seconds": min(seconds[1:] or seconds)}
        told |= {"calls": meter.calls, "passes": sum(A.passes), "S": found[1].tolist()}
        if self.device == "cuda":
            told["GiB"] = (torch.cuda.max_memory_allocated() - base) / 2**30
        return told, found


def released(bench: Bench) -> mk.LinearMap:
    """The Jacobian's passes as the papers' code takes them."""
    f, x = bench.f, bench.x

    def push(V: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return torch.func.jvp(f, (x.expand_as(V).contiguous(),), (V,))[1]

    def pull(U: Tensor) -> Tensor:
        with torch.enable_grad():
            point = x.clone().requires_grad_()
            h = f(point)
            rows = [torch.autograd.grad(h, point, u[None], retain_graph=True)[0] for u in U]
        return torch.cat(rows)

    with torch.no_grad():
        shape = f(x).shape[1:]
    return mk.LinearMap(push, pull, x.shape[1:], shape, x.dtype, x.device)


@contextmanager
def benchmarked() -> Iterator[None]:
    """cuDNN tries its algorithms once for each shape; torch's own default rounds to TF32."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def altered(**names: Any) -> Iterator[None]:
    """mathkit.linear.svd with other functions under these names."""
    with ExitStack() as stack:
        for name, value in names.items():
            stack.enter_context(patch.object(solver, name, value))
        yield


def rows(bench: Bench) -> dict[str, Callable[[], tuple[dict[str, Any], Triplets]]]:
    """What is measured, by name."""

    def svd(**names: Any) -> tuple[dict[str, Any], Triplets]:
        with altered(**names):
            return bench.best(bench.jacobian, lambda A: ours(A, bench.k, 0, bench.tol))

    routine = partial(published, k=bench.k, seed=0, rounds=bench.rounds)

    def as_released() -> tuple[dict[str, Any], Triplets]:
        with benchmarked():
            return bench.best(lambda: released(bench), lambda A: routine(A))

    def exact(A: mk.LinearMap) -> bool:
        return False

    found: dict[str, Callable[[], tuple[dict[str, Any], Triplets]]] = {"mk.svd": svd}
    found["mk.svd, exact passes only"] = partial(svd, _rounds=exact)
    for width in (1, 4, 8):
        found[f"mk.svd, blocks of {width}"] = partial(svd, _width=lambda A, k, w=width: w)
    return found | {
        "papers' routine, our passes": lambda: bench.best(bench.jacobian, lambda A: routine(A)),
        "papers' routine, as released": as_released,
    }


def one_pass(bench: Bench) -> dict[str, float]:
    """Milliseconds a direction of each pass, exact and rounded, alone and eight together."""
    from mathkit.linear._tape.convolution import coarse

    A, found = bench.jacobian(), {}
    for batch in (1, 8):
        for name, go, shape in (("push", A.push, A.in_shape), ("pull", A.pull, A.out_shape)):
            given = torch.ones(batch, *shape, device=bench.device)
            found[f"{name}, {batch} together"] = _clocked(bench, go, given)
            with coarse():
                found[f"{name}, {batch} together, rounded"] = _clocked(bench, go, given)
    return found


def _clocked(bench: Bench, go: Callable[[Tensor], Tensor], given: Tensor) -> float:
    times = []
    for _ in range(2 if bench.device == "cpu" else 12):
        begin = bench.now()
        go(given)
        times.append(1e3 * (bench.now() - begin) / len(given))
    return median(times[1:])


def elsewhere(root: Path, cpu: bool) -> tuple[dict[str, Any], Triplets]:
    """`mk.svd` of another checkout, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.pt"
        words = [sys.executable, __file__, "--worker", str(out), *(["--cpu"] if cpu else [])]
        env = {name: value for name, value in os.environ.items() if name != "MATHKIT_DATA"}
        path = [str(root.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])]
        subprocess.run(words, env=env | {"PYTHONPATH": os.pathsep.join(path)}, check=True)
        told, found, home = torch.load(out)
    if not Path(home).is_relative_to(root.resolve()):
        raise SystemExit(f"{root} holds no mathkit: {home} was imported")
    return told, found


def work(bench: Bench, out: str) -> None:
    told, found = bench.best(bench.jacobian, lambda A: ours(A, bench.k, 0, bench.tol))
    kept = tuple(X.cpu() for X in found)
    torch.save((told, kept, str(Path(mk.__file__).resolve())), out)


def show(name: str, told: dict[str, Any], ratio: float) -> None:
    memory = f"{told['GiB']:8.2f}" if "GiB" in told else "       -"
    print(
        f"  {name:30s} {told['first']:9.3f} {told['seconds']:9.3f} {ratio:8.2f} "
        f"{told['calls']:6d} {told['passes']:7d} {told['residual']:9.1e} {memory}",
        flush=True,
    )


def report(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    audit = bench.jacobian()
    device = torch.cuda.get_device_name() if bench.device == "cuda" else "CPU"
    print(f"{device}, torch {torch.__version__}: h at t = {T}, images {tuple(bench.model.shape)}")
    print(f"k = {bench.k}, tol = {bench.tol:g}; ratio: best seconds, to mk.svd's")
    print(
        f"  {'':30s} {'first, s':>9s} {'best, s':>9s} {'ratio':>8s} {'calls':>6s} "
        f"{'passes':>7s} {'residual':>9s} {'GiB more':>8s}"
    )
    todo = rows(bench)
    if args.against:
        todo[f"mk.svd of {args.against.name}"] = lambda: elsewhere(args.against, args.cpu)
    found: dict[str, dict[str, Any]] = {}
    for name, measure in todo.items():
        told, (U, S, V) = measure()
        there = tuple(X.to(bench.device) for X in (U, S, V))
        told["residual"] = residual(audit, (there[0], there[1], there[2]))
        found[name] = told
        show(name, told, told["seconds"] / found["mk.svd"]["seconds"])
    passes = one_pass(bench)
    print("\n  ms a direction")
    for name, ms in passes.items():
        print(f"  {name:30s} {ms:9.2f}")
    if bench.rounds < 50:
        print(f"\nThe papers' routine ran {bench.rounds} of its 50 rounds.")
    return {"device": device, "torch": torch.__version__, "rows": found, "ms": passes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--cpu", action="store_true", help="64 x 64 on the CPU, k = 2: does the script run?")
    add("--against", type=Path, metavar="FOLDER", help="another checkout, measured as well")
    add("--out", type=Path, default=Path("runs/bench_gpu.json"), help="the JSON with all numbers")
    add("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not (args.cpu or torch.cuda.is_available()):
        raise SystemExit("no CUDA device here: --cpu tries the script at 64 x 64")
    warnings.filterwarnings("ignore", ".*too close")  # k is whatever was asked for
    bench = Bench(args.cpu)
    if args.worker:
        return work(bench, args.worker)
    numbers = report(bench, args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(numbers, indent=1))
    print(f"\nwritten to {args.out}")


if __name__ == "__main__":
    main()
