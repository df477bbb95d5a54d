"""`mk.svd` beside its peers on Jacobians of one diffusion model, through the same push and pull.

python tests/bench_svd.py                     passes, CPU time, residual and error of each solver
python tests/bench_svd.py --against FOLDER    another checkout's mathkit and this one, in pairs
python tests/bench_svd.py --missed            how often wrong values come without a warning
python tests/bench_svd.py --calls             batched calls and passes for each width of a block

The bar is the same for all: max(|A^T u_i - s_i v_i|, |A v_i - s_i u_i|) <= 1e-3 s_1, recomputed by
passes of a fresh Jacobian. `mk.svd` gets tol = 1e-3. A peer gets the loosest tolerance of a ladder
that meets the bar from the first start vector, found before anything is timed: knowledge that a
user does not have. A later start that misses the bar with it is solved again with the next one.
SciPy squares the tolerance it is given, so its 3e-2 asks for 9e-4. CoLA has no test of its own: it
gets the smallest number of steps. scikit-learn's randomized_svd takes no operator, only a matrix.
PRIMME and CoLA run where they are installed (`pip install primme` compiles it and needs LAPACK;
`pip install cola-ml`).

Solvers take turns on each start vector, the same one for all, on one thread. CPU time counts from
the evaluation of the model on; ratios are medians over the starts, above 1 where mk.svd is better.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse.linalg import svds
from threadpoolctl import threadpool_limits
from torch import Tensor

import mathkit as mk

Triplets = tuple[Tensor, Tensor, Tensor]
Solve = Callable[[mk.LinearMap, int, int, float], Triplets]  # A, k, seed, tolerance or steps
BAR = 1e-3
LADDER = (3e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4)
MAPS = {
    "h": lambda p, t: mk.encoder(p, t),
    "pooled": lambda p, t: mk.encoder(p, t, pool="sum"),
    "mean": lambda p, t: mk.posterior_mean(p, t),
}


class Case(NamedTuple):
    """A map at a point: what is differentiated, and where."""

    name: str
    t: int
    f: Callable[[Tensor], Tensor]
    x: Tensor

    def jacobian(self) -> mk.LinearMap:
        return mk.jacobian(self.f, self.x)


def cases(model: str, names: Sequence[str], times: Sequence[int]) -> Iterator[Case]:
    """Each map at each time, at the DDIM inversion of the model's sample 0."""
    p = mk.load_model(model, device="cpu")
    x0 = mk.sample(p, 1, seed=0)
    points = {t: mk.invert(p, x0, t) for t in times}
    for name in names:
        yield from (Case(name, t, MAPS[name](p, t), points[t]) for t in times)


class Meter:
    """A map that counts the calls and the CPU seconds of its passes."""

    def __init__(self, A: mk.LinearMap) -> None:
        self.calls, self.seconds = 0, 0.0
        push, pull = self._timed(A.push), self._timed(A.pull)
        self.map = mk.LinearMap(push, pull, A.in_shape, A.out_shape, A.dtype, A.device)
        self.map.batch = getattr(A, "batch", 1)

    def _timed(self, one_pass: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def run(rows: Tensor) -> Tensor:
            begin = time.process_time()
            out = one_pass(rows)
            self.seconds += time.process_time() - begin
            self.calls += 1
            return out

        return run


# Solvers -----------------------------------------------------------------------------------------


def ours(A: mk.LinearMap, k: int, seed: int, tol: float) -> Triplets:
    U, S, V = mk.svd(A, k, tol=tol, seed=seed)
    return U, S, V


def subspace(A: mk.LinearMap, k: int, seed: int, tol: float) -> Triplets:
    U, S, V = mk.subspace_iteration(A, k, iters=1000, tol=tol, seed=seed)
    return U, S, V


def published(
    A: mk.LinearMap, k: int, seed: int, tol: float = 0.0, rounds: int = 50, least: int = 10
) -> Triplets:
    """The routine of the papers' released code as it behaves: it stops before `rounds` only if
    every entry of V repeats to 1e-4, which a sign can prevent. tol is not used."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(math.prod(A.in_shape), k, generator=generator)
    V = torch.linalg.qr(start).Q.T.to(A.device or "cpu")
    for step in range(rounds):
        U = A.push(V.reshape(k, *A.in_shape))
        _, squares, new = torch.linalg.svd(A.pull(U).flatten(1), full_matrices=False)
        same, V = torch.allclose(new, V, atol=1e-4), new
        if step > least and same:
            break
    U = torch.nn.functional.normalize(U.flatten(1), dim=1).reshape(U.shape)
    return U, squares.sqrt(), V.reshape(k, *A.in_shape)


def on_flat(solver: Callable[[mk.LinearMap, int, np.ndarray, float], Any]) -> Solve:
    """A solver of maps with at most as many rows as columns, from the start vector of `mk.svd`.

    It is given the map, k, the start (one number a row) and its tolerance, and answers
    U (m, k), S (k,), V^T (k, n) in any order.
    """

    def solve(A: mk.LinearMap, k: int, seed: int, tol: float) -> Triplets:
        m, n = A.shape
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(2, min(m, n), generator=generator, dtype=torch.float64)[0]
        found = solver(A if m <= n else A.T, k, start.float().numpy(), tol)
        U, S, Vt = (torch.from_numpy(np.array(X, order="C")).float() for X in found)
        order = S.argsort(descending=True)
        u, v = (U.T, Vt) if m <= n else (Vt, U.T)
        return u[order].reshape(k, *A.out_shape), S[order], v[order].reshape(k, *A.in_shape)

    return solve


def scipys(name: str) -> Solve:
    def solver(A: mk.LinearMap, k: int, start: np.ndarray, tol: float) -> Any:
        most = max(100, 30 * k)
        return svds(A.scipy(), k, tol=tol, v0=start, solver=name, maxiter=most)

    return on_flat(solver)


def primme(A: mk.LinearMap, k: int, start: np.ndarray, tol: float) -> Any:
    """PRIMME's default method, from a right vector: the map is turned. Its left one is not read."""
    solver, left = importlib.import_module("primme"), np.ones((A.shape[1], 1), np.float32)
    V, S, Ut = solver.svds(A.T.scipy(), k, tol=tol, v0=start[:, None], u0=left)
    return Ut.T, S, V.T


def cola(A: mk.LinearMap, k: int, start: np.ndarray, steps: float) -> Any:
    """CoLA's Lanczos on A A^T: `steps` of them."""
    package = importlib.import_module("cola")
    decompositions = importlib.import_module("cola.linalg.decompositions.lanczos")
    one, m = A.scipy(), A.shape[0]

    def gram(X: Tensor) -> Tensor:
        return torch.from_numpy(one.matmat(one.rmatmat(X.numpy())))

    G = package.ops.LinearOperator(torch.float32, (m, m), matmat=gram)
    most = min(int(steps), m)
    _, U, _ = decompositions.lanczos_eigs(G, torch.from_numpy(start), max_iters=most)
    U = U.to_dense()[:, -k:].numpy()
    AtU = one.rmatmat(U)
    S = np.linalg.norm(AtU, axis=0)
    return U, S, (AtU / S).T


class Peer(NamedTuple):
    """A solver, and what it may be asked for, loosest first, for k directions."""

    name: str
    solve: Solve
    ladder: Callable[[int], Sequence[float]]
    most: int = 10**9  # the largest k it is tried with
    starts: int = 10**9  # the most start vectors


def peers(slow: bool) -> list[Peer]:
    """`mk.svd` first."""

    def tolerances(k: int) -> Sequence[float]:
        return LADDER

    def steps(k: int) -> Sequence[float]:
        return [math.ceil(share * (k + 5)) for share in (1, 1.3, 1.6, 2, 2.3, 2.6, 3, 3.5, 4, 6)]

    found = [
        Peer("mk.svd", ours, lambda k: (BAR,)),
        Peer("SciPy PROPACK", scipys("propack"), tolerances),
        Peer("SciPy ARPACK", scipys("arpack"), tolerances),
    ]
    optional = (
        ("primme", Peer("PRIMME", on_flat(primme), tolerances)),
        ("cola", Peer("CoLA Lanczos", on_flat(cola), steps)),
    )
    for package, peer in optional:
        try:
            importlib.import_module(package)
            found.append(peer)
        except ImportError as error:
            print(f"{peer.name} is left out: {error}")
    at_most = 10**9 if slow else 5
    found.append(Peer("papers' routine", published, lambda k: (0.0,), most=at_most, starts=1))
    if slow:
        found.append(Peer("subspace iteration", subspace, tolerances, starts=1))
    return found


# Side by side ------------------------------------------------------------------------------------


class Run(NamedTuple):
    """What one solve cost and gave."""

    asked: float
    passes: mk.linear.linear_map.Passes
    calls: int
    cpu: float
    inside: float
    residual: float
    S: Tensor


def residual(A: mk.LinearMap, found: Triplets) -> float:
    """The worst residual over both sides in units of s_1, whatever the signs of the pairs."""
    U, S, V = found
    u, v, Av, Atu = (X.flatten(1) for X in (U, V, A.push(V), A.pull(U)))
    sign = torch.where((Av * u).sum(1, keepdim=True) < 0, -1.0, 1.0)
    u, Atu, s = sign * u, sign * Atu, S[:, None]
    sides = (Atu - s * v).norm(dim=1), (Av - s * u).norm(dim=1)
    return float(torch.maximum(*sides).max() / S[0])


def run(case: Case, audit: mk.LinearMap, k: int, seed: int, peer: Peer, asked: float) -> Run:
    begin = time.process_time()
    A = case.jacobian()
    meter = Meter(A)
    found = peer.solve(meter.map, k, seed, asked)
    cpu = time.process_time() - begin
    left = residual(audit, found)
    return Run(asked, A.passes, meter.calls, cpu, meter.seconds, left, found[1])


def reaching(
    case: Case, audit: mk.LinearMap, k: int, seed: int, peer: Peer, loosest: float
) -> Run | None:
    """The run at the first of the peer's ladder, from `loosest` on, that meets the bar.

    A routine that cannot be asked for more shows what it reaches.
    """
    ladder, trouble = list(peer.ladder(k)), ""
    for asked in ladder[ladder.index(loosest) :]:
        try:
            done = run(case, audit, k, seed, peer, asked)
        except (np.linalg.LinAlgError, RuntimeError) as error:  # not converged in its space
            trouble = f": {error}"
            continue
        if done.residual <= BAR or len(ladder) == 1:
            return done
    print(f"  {peer.name} does not meet the bar from start {seed} at {ladder[-1]:g}{trouble}")
    return None


def compare(case: Case, k: int, solvers: Sequence[Peer], starts: int) -> None:
    print(f"\n{case.name}, t = {case.t}, k = {k}, starts: {starts}\n{HEAD}", flush=True)
    audit, exact = case.jacobian(), None
    if case.name == "pooled":
        exact = torch.linalg.svdvals(audit.dense().double())[:k]
    asked: dict[str, float] = {}
    for peer in solvers:
        rungs = peer.ladder(k)
        if k <= peer.most and len(rungs) == 1:
            asked[peer.name] = rungs[0]
        elif k <= peer.most and (done := reaching(case, audit, k, 0, peer, rungs[0])):
            asked[peer.name] = done.asked
    runs: dict[str, list[Run]] = {name: [] for name in asked}
    for seed in range(starts):
        for peer in solvers:
            if peer.name in asked and seed < peer.starts:
                done = reaching(case, audit, k, seed, peer, asked[peer.name])
                runs[peer.name] += [done] if done else []
    for name, several in runs.items():
        if several:
            show(name, several, runs["mk.svd"], exact)


HEAD = (
    "  solver              asked    passes: push + pull   ratio  calls "
    "   CPU s: min, median  ratio  outside  residual  S off by"
)


def show(name: str, runs: Sequence[Run], mine: Sequence[Run], exact: Tensor | None) -> None:
    """One line: means over the starts, and the ratios to `mk.svd` on the same starts."""
    push, pull = (mean(side) for side in zip(*(r.passes for r in runs), strict=True))
    pairs = list(zip(runs, mine, strict=False))
    passes = sum(sum(r.passes) for r, _ in pairs) / sum(sum(m.passes) for _, m in pairs)
    cpu = median(r.cpu / m.cpu for r, m in pairs)
    outside = 1 - median(r.inside / r.cpu for r in runs)
    off = "" if exact is None else f"{max(error(r.S, exact) for r in runs):9.0e}"
    asked = f"{runs[0].asked:g}" if runs[0].asked else "-"
    print(
        f"  {name:18s} {asked:>6s} {push:7.1f} + {pull:5.1f} = {push + pull:6.1f} {passes:7.2f} "
        f"{mean(r.calls for r in runs):6.1f} {min(r.cpu for r in runs):12.3f} "
        f"{median(r.cpu for r in runs):8.3f} {cpu:7.2f} {outside:7.0%} "
        f"{max(r.residual for r in runs):10.1e} {off}",
        flush=True,
    )


def error(S: Tensor, exact: Tensor) -> float:
    return float((S.double() - exact).abs().max() / exact[0])


def side_by_side(args: argparse.Namespace) -> None:
    solvers = peers(args.slow)
    print(
        "asked: the loosest tolerance (CoLA: number of steps) that meets the bar; ratio: to mk.svd,"
        "\nabove 1 where mk.svd is better; outside: the share of CPU time outside the passes, the"
        "\nmodel's evaluation included; residual: the worst of all starts, in s_1"
    )
    for case in cases(args.model, args.maps, args.times or [900, 700, 500]):
        A = case.jacobian()
        A.pull(A.push(case.x))  # what only the first pass pays
        for k in args.ranks or [1, 5, 20, 50]:
            compare(case, k, solvers, args.seeds or max(2, min(10, 20 // k)))


# Against another checkout ------------------------------------------------------------------------


class Build:
    """A checkout's mathkit in a process of its own, asked for one job at a time."""

    def __init__(self, root: Path, args: argparse.Namespace, t: int, point: Path) -> None:
        words = [sys.executable, __file__, "--worker", str(point), "--model", args.model]
        words += ["--maps", args.maps[0], "--times", str(t)]
        env = {name: v for name, v in os.environ.items() if name != "MATHKIT_DATA"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        more = os.environ.get("PYTHONPATH")
        env["PYTHONPATH"] = os.pathsep.join([str(root), *([more] if more else [])])
        self.process = subprocess.Popen(words, env=env, text=True, **pipes)  # type: ignore[call-overload]
        home = Path(self.answer()["mathkit"])
        if not home.is_relative_to(root):
            raise SystemExit(f"{root} holds no mathkit: {home} was imported")

    def answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a build ended with an error, above")
        return json.loads(line)

    def ask(self, **job: Any) -> dict[str, Any]:
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def work(args: argparse.Namespace) -> None:
    """The other end of a `Build`: a line of JSON in, a line out."""
    print(json.dumps({"mathkit": str(Path(mk.__file__).resolve())}), flush=True)
    (t,), (name,) = args.times, args.maps
    f, x = MAPS[name](mk.load_model(args.model, device="cpu"), t), torch.load(args.worker)
    A = mk.jacobian(f, x)
    for line in sys.stdin:
        job = json.loads(line)
        begin = time.process_time()
        if "k" in job:
            B = mk.jacobian(f, x)
            S = mk.svd(B, job["k"], tol=BAR, seed=job["seed"]).S
            told = {"cpu": time.process_time() - begin, "passes": sum(B.passes), "S": S.tolist()}
        else:
            one_pass, shape = {"push": (A.push, A.in_shape), "pull": (A.pull, A.out_shape)}[
                job["side"]
            ]
            rows = torch.ones(job["rows"], *shape)
            times = math.ceil(8 / job["rows"])
            for _ in range(times):
                one_pass(rows)
            told = {"cpu": (time.process_time() - begin) / times / job["rows"]}
        print(json.dumps(told), flush=True)


def against(args: argparse.Namespace) -> None:
    roots = args.against.resolve(), Path(mk.__file__).resolve().parents[1]
    print(
        f"{args.against} and this checkout take turns, {args.repeats} times, each in a process of"
    )
    print(
        "its own; ratio: its CPU time by this one's in each pair, above 1 where this one is faster"
    )
    for case in cases(args.model, args.maps[:1], args.times or [700]):
        with tempfile.TemporaryDirectory() as folder:
            point = Path(folder) / "x.pt"
            torch.save(case.x, point)
            builds = [Build(root, args, case.t, point) for root in roots]
            print(f"\n{case.name}, t = {case.t}         CPU ms, median: that    this   ratio")
            for label, job in {
                "a push": {"side": "push", "rows": 1},
                "a pull": {"side": "pull", "rows": 1},
                "a push of four together": {"side": "push", "rows": 4},
                "a pull of four together": {"side": "pull", "rows": 4},
            }.items():
                paired(label, builds, job, args.repeats)
            for k in args.ranks or [5, 20, 50]:
                paired(f"svd, k = {k}", builds, {"k": k}, args.repeats)
            for build in builds:
                build.close()


def paired(label: str, builds: Sequence[Build], job: dict[str, Any], repeats: int) -> None:
    """One line; a whole svd has another start vector in each repeat."""
    for build in builds:
        build.ask(**job, seed=0)  # what only the first one pays
    told = [[build.ask(**job, seed=seed) for build in builds] for seed in range(repeats)]
    that, this = (median(one["cpu"] for one in side) for side in zip(*told, strict=True))
    ratio = median(a["cpu"] / b["cpu"] for a, b in told)
    line = f"  {label:32s} {1e3 * that:10.1f} {1e3 * this:7.1f} {ratio:7.2f}"
    if "k" in job:
        passes = [mean(one["passes"] for one in side) for side in zip(*told, strict=True)]
        values = [[torch.tensor(one["S"], dtype=torch.float64) for one in pair] for pair in told]
        off = max(error(a, b) for a, b in values)
        line += f"   passes {passes[0]:.1f} and {passes[1]:.1f}, S apart by {off:.0e} s_1"
    print(line, flush=True)


# What is missed ----------------------------------------------------------------------------------


@dataclasses.dataclass
class Tally:
    """How often values were wrong by more than 1.5 tol, and whether anything was said."""

    solves: int = 0
    missed: int = 0
    warned: int = 0
    passes: int = 0

    def __add__(self, other: Tally) -> Tally:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Tally(*(a + b for a, b in pairs))

    def __str__(self) -> str:
        each = self.passes / max(1, self.solves)
        return f"{self.missed:4d} of {self.solves:4d} missed, {self.warned:3d} warned, {each:6.1f}"


def diagonal(s: Tensor) -> mk.LinearMap:
    """A map with these singular values; nothing else of it matters to a Gaussian start."""
    d = s.float()
    return mk.LinearMap(lambda V: V * d, lambda U: U * d, len(s), len(s), torch.float32)


def tally(s: Tensor, k: int, seeds: int, solve: Solve, asked: float) -> Tally:
    s, total = s.sort(descending=True).values, Tally()
    for seed in range(seeds):
        A = diagonal(s)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                _, S, _ = solve(A, k, seed, asked)
                warned = any(issubclass(w.category, mk.linear.triplets.NotConverged) for w in said)
                wrong = error(S, s[:k]) > 1.5 * BAR
            except np.linalg.LinAlgError:
                warned, wrong = True, False
        total += Tally(1, wrong and not warned, warned, sum(A.passes))
    return total


def alice(model: str, t: int) -> Tensor:
    """600 singular values: the first 100 of x_t -> h, the others go on as the last of those."""
    (case,) = cases(model, ["h"], [t])
    S = mk.svd(case.jacobian(), 100, tol=1e-4).S.double()
    ratio = (S[99] / S[49]) ** (1 / 50)
    return torch.cat([S, S[99] * ratio ** torch.arange(1, 501)]) / S[0]


def again(s: Tensor, i: int, times: int) -> Tensor:
    """The i-th value, counted from 1, so many times."""
    return torch.cat([s, s[i - 1].expand(times - 1)])


def spectra(model: str) -> dict[str, Tensor]:
    """Seventeen, the largest value of each about 1."""
    found: dict[str, Tensor] = {}
    for t in (700, 900):
        s = alice(model, t)
        found |= {f"t = {t}, s_{i} twice": again(s, i, 2) for i in (1, 2, 4)}
        found[f"t = {t}, s_2 three times"] = again(s, 2, 3)
    i = torch.arange(500, dtype=torch.float64)
    steps = torch.cat([torch.linspace(0.816, 0.56, 46), torch.linspace(0.55, 0.03, 450)])
    noise = torch.randn(500, 700, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    waves = 1 - torch.cos(2 * math.pi * i / 500)
    side = torch.fft.fftfreq(24, dtype=torch.float64)
    return found | {
        "1 / i": 1 / (i + 1),
        "1 / sqrt(i)": (i + 1) ** -0.5,
        ".97^i": 0.97**i,
        ".9^i": 0.9**i,
        "equal pairs of .97^i": (0.97 ** i[:250]).repeat_interleave(2),
        "1, .932, .866, .844, .844, ...": torch.cat(
            [torch.tensor([1.0, 0.932, 0.866, 0.844, 0.844]), steps]
        ).double(),
        "a Gaussian matrix": torch.linalg.svdvals(noise) / 49,
        "the Laplacian of a cycle": waves / 2,
        "a periodic blur": torch.exp(-20 * (side[:, None] ** 2 + side**2)).flatten(),
    }


def families() -> dict[str, tuple[Tensor, int]]:
    """m equal values above the rest, and k = m."""
    tops = {2: (0.5, 0.7, 0.9), 3: (0.3, 0.7, 0.9, 0.95), 4: (0.3, 0.7, 0.9), 8: (0.3, 0.7)}
    tail = 0.97 ** torch.arange(100, dtype=torch.float64)
    return {
        f"{m} equal, the rest from {top:g}": (torch.cat([torch.ones(m), top * tail]), m)
        for m, several in tops.items()
        for top in several
    }


def missed(args: argparse.Namespace) -> None:
    solvers: dict[str, tuple[Solve, float]] = {"mk.svd": (ours, BAR)}
    print(f"values wrong by more than {1.5 * BAR:g} s_1 with no NotConverged; mean passes a solve")
    if args.propack:
        solvers["PROPACK"] = scipys("propack"), BAR**0.5
        print(f"PROPACK is asked for {BAR**0.5:.3f}, which it squares")
    parts = (
        ("spectra, k = 5", {n: (s, 5) for n, s in spectra(args.model).items()}, args.seeds or 40),
        ("families, k = m", families(), args.seeds or 150),
    )
    for title, several, seeds in parts:
        print(f"\n{title}, {seeds} starts each")
        totals = {name: Tally() for name in solvers}
        for label, (s, k) in several.items():
            line = f"  {label:32s}"
            for name, (solve, asked) in solvers.items():
                found = tally(s, k, seeds, solve, asked)
                totals[name] += found
                line += f" {name}: {found}"
            print(line, flush=True)
        for name, total in totals.items():
            print(f"  all, {name + ':':27s} {total} passes")


# Batched calls -----------------------------------------------------------------------------------


def calls(args: argparse.Namespace) -> None:
    """What a device pays that takes a block of directions in the time of one."""
    from mathkit.linear.lanczos import STARTS, Krylov, Search

    print("the search of mk.svd for each width of its block, tol = 1e-3; means over the starts")
    for case in cases(args.model, args.maps[:1], args.times or [700]):
        A = case.jacobian()
        A = A if A.shape[1] <= A.shape[0] else A.T
        for k in args.ranks or [5, 20]:
            starts = args.seeds or 3
            print(f"\n{case.name}, t = {case.t}, k = {k}, {starts} starts   calls  passes")
            for width in (1, 2, 4, 8):
                spent = []
                for seed in range(starts):
                    meter = Meter(A)
                    space = Krylov(meter.map, max(STARTS, width), seed)
                    problem = Search(k, BAR, width, 1000 + 20 * k).run(space)
                    spent.append((meter.calls, sum(space.passes), bool(problem)))
                count, passes, doubt = (mean(each) for each in zip(*spent, strict=True))
                told = f", {doubt:.0%} with a doubt" if doubt else ""
                print(f"  {f'width {width}':28s} {count:7.1f} {passes:7.1f}{told}", flush=True)
            print(f"  {'papers routine, 50 rounds':28s} {100:7.1f} {100 * k:7.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="alice", help="a name or folder that mk.load_model takes")
    add("--maps", nargs="+", choices=MAPS, default=["h", "pooled"], help="what is differentiated")
    add("--times", type=int, nargs="+", help="times t; default 900 700 500, or 700 for one map")
    add("--ranks", type=int, nargs="+", help="how many directions k; default 1 5 20 50")
    add("--seeds", type=int, help="start vectors; default 10 for k = 1 to 2 for k = 50")
    add("--slow", action="store_true", help="also subspace iteration, and large k of the papers'")
    add("--against", type=Path, metavar="FOLDER", help="another checkout to measure this one by")
    add("--repeats", type=int, default=5, help="pairs of runs with --against")
    add("--missed", action="store_true", help="count wrong values that come without a warning")
    add("--propack", action="store_true", help="with --missed: SciPy's PROPACK as well")
    add("--calls", action="store_true", help="count batched calls for each width of a block")
    add("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", ".*too close")  # k is whatever was asked for
    todo: Callable[[argparse.Namespace], None] = side_by_side
    if args.worker:
        todo = work
    elif args.against:
        todo = against
    elif args.missed:
        todo = missed
    elif args.calls:
        todo = calls
    with threadpool_limits(1):
        todo(args)


if __name__ == "__main__":
    main()
