"""Solvers side by side on one U-Net Jacobian x_t -> h, through the same push and pull.

python tests/bench_svd.py [--model FOLDER | --small] [--ranks 5 50] [--times 900 700 500] [--slow]

Each row: forward + reverse passes, wall and CPU time on one thread with everything counted from the
primal evaluation on, and the worst residual recomputed outside the solver,
max(|A^T u - s v|, |A v - s u|) / s_1.
SciPy's solvers get the start vector of `svd` and the loosest tolerance of a ladder that reaches
1e-3. "published" is the routine of the released code as it behaves: 50 subspace iterations,
stopped only if every entry of V repeats to 1e-4, which a sign can prevent.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import mathkit as mk

Triplets = tuple[Tensor, Tensor, Tensor]
Solver = Callable[[mk.LinearMap, int], Triplets]
TOL = 1e-3
LADDER = (3e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4)


def unet(small: bool) -> Any:
    """Random weights: 64 x 64, bottleneck 160 x 8 x 8; small: 32 x 32, bottleneck 128 x 8 x 8."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    channels = (48, 96, 128) if small else (64, 96, 128, 160)
    plain = len(channels) - 2
    model = UNet2DModel(
        sample_size=32 if small else 64,
        layers_per_block=1,
        block_out_channels=channels,
        down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",) * 2,
        up_block_types=("AttnUpBlock2D",) * 2 + ("UpBlock2D",) * plain,
        attention_head_dim=32,
        norm_num_groups=16,
    )
    return model.eval().requires_grad_(False)


class _Reached(Exception):
    """The bottleneck has been computed."""


def bottleneck(model: Any, t: int) -> Callable[[Tensor], Tensor]:
    """x_t -> h without the decoder."""

    def f(x: Tensor) -> Tensor:
        kept: list[Tensor] = []

        def keep(module: Any, args: Any, h: Tensor) -> None:
            kept.append(h)
            raise _Reached

        hook = model.mid_block.register_forward_hook(keep)
        try:
            model(x, t)
        except _Reached:
            return kept[0]
        finally:
            hook.remove()
        raise RuntimeError("the model has no mid_block")

    return f


def points(args: argparse.Namespace) -> Iterator[tuple[int, Callable, Tensor]]:
    """(t, f, x_t): a sampled image with noise at t, or noise alone for random weights."""
    generator = torch.Generator().manual_seed(1)
    if args.model is None:
        model = unet(args.small)
        size = model.config.sample_size
        noise = torch.randn(1, 3, size, size, generator=generator)
        yield from ((t, bottleneck(model, t), noise) for t in args.times)
        return
    p = mk.load_model(args.model, device="cpu")
    x0, noise = mk.sample(p, 1, seed=0, steps=10), torch.randn(1, *p.shape, generator=generator)
    for t in args.times:
        abar = float(p.alphas_cumprod[t])
        yield t, mk.encoder(p, t), math.sqrt(abar) * x0 + math.sqrt(1 - abar) * noise


def ours(A: mk.LinearMap, k: int) -> Triplets:
    U, S, V = mk.svd(A, k, tol=TOL)
    return U, S, V


def stopped(A: mk.LinearMap, k: int) -> Triplets:
    """Subspace iteration with a stop that does not see signs."""
    U, S, V = mk.subspace_iteration(A, k, iters=1000, tol=TOL)
    return U, S, V


def published(rank: int | None = None) -> Solver:
    """The released routine: `rank` directions (default k), of which the first k are used."""

    def solve(A: mk.LinearMap, k: int) -> Triplets:
        r = rank or k
        V = torch.linalg.qr(torch.randn(math.prod(A.in_shape), r)).Q.T
        for step in range(50):
            U = A.push(V.reshape(r, *A.in_shape))
            _, squares, new = torch.linalg.svd(A.pull(U).flatten(1), full_matrices=False)
            same, V = torch.allclose(new, V, atol=1e-4), new
            if step >= 10 and same:
                break
        U = torch.nn.functional.normalize(U.flatten(1), dim=1).reshape(U.shape)
        return U[:k], squares.sqrt()[:k], V.reshape(r, *A.in_shape)[:k]

    return solve


def scipy_svds(name: str, tol: float) -> Solver:
    def solve(A: mk.LinearMap, k: int) -> Triplets:
        from scipy.sparse.linalg import svds

        start = torch.randn(
            min(math.prod(A.in_shape), math.prod(A.out_shape)),
            generator=torch.Generator().manual_seed(0),
            dtype=torch.float64,
        )
        wide = math.prod(A.out_shape) <= math.prod(A.in_shape)
        B = operator(A if wide else A.T)
        U, S, V = svds(B, k, tol=tol, solver=name, v0=start.float().numpy(), maxiter=30 * k)
        order = np.argsort(-S)
        u, s, v = (torch.from_numpy(X[order].copy()).float() for X in (U.T, S, V))
        u, v = (u, v) if wide else (v, u)
        return u.reshape(k, *A.out_shape), s, v.reshape(k, *A.in_shape)

    return solve


def operator(A: mk.LinearMap) -> Any:
    from scipy.sparse.linalg import LinearOperator

    def through(go: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Callable:
        return lambda v: go(torch.from_numpy(v.ravel().copy()).reshape(1, *shape)).numpy().ravel()

    shape = math.prod(A.out_shape), math.prod(A.in_shape)
    forward, back = through(A.push, A.in_shape), through(A.pull, A.out_shape)
    return LinearOperator(shape, matvec=forward, rmatvec=back, dtype=np.float32)


def worst_residual(A: mk.LinearMap, found: Triplets) -> float:
    U, S, V = found
    u, v, Av, Atu = (X.flatten(1) for X in (U, V, A.push(V), A.pull(U)))
    sign = torch.where((Av * u).sum(1, keepdim=True) < 0, -1.0, 1.0)  # the published pairs' differ
    u, Atu = sign * u, sign * Atu
    sides = (Atu - S[:, None] * v).norm(dim=1), (Av - S[:, None] * u).norm(dim=1)
    return float(torch.maximum(*sides).max() / S[0])


class Row(NamedTuple):
    """What one solve cost and gave."""

    passes: tuple[int, int]
    wall: float
    cpu: float
    residual: float


def row(f: Callable, x: Tensor, k: int, solve: Solver) -> Row:
    """One solve, from the primal evaluation on."""
    torch.manual_seed(0)
    begin = time.perf_counter(), time.process_time()
    A = mk.jacobian(f, x)
    found = solve(A, k)
    wall, cpu = time.perf_counter() - begin[0], time.process_time() - begin[1]
    return Row(A.passes, wall, cpu, worst_residual(A, found))


def loosest(f: Callable, x: Tensor, k: int, name: str, reach: float) -> Row:
    """The row of a SciPy solver at the first tolerance of the ladder with a residual <= reach."""
    for tol in LADDER:
        try:
            found = row(f, x, k, scipy_svds(name, tol))
        except Exception as error:  # not converged in its Krylov space
            print(f"    {name} at {tol:g}: {error}")
            continue
        if found.residual <= reach:
            break
    return found


def overhead(f: Callable, x: Tensor, k: int) -> float:
    """CPU time of svd outside the passes, as a share of the time in them."""
    A, inside = mk.jacobian(f, x), [0.0]
    A.push(x), A.pull(torch.zeros(1, *A.out_shape))

    def timed(go: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def run(V: Tensor) -> Tensor:
            begin = time.thread_time()
            out = go(V)
            inside[0] += time.thread_time() - begin
            return out

        return run

    B = mk.LinearMap(timed(A.push), timed(A.pull), A.in_shape, A.out_shape)
    begin = time.thread_time()
    mk.svd(B, k, tol=TOL)
    return (time.thread_time() - begin) / inside[0] - 1


def show(name: str, r: Row) -> None:
    push, pull = r.passes
    costs = f"{push:6d} + {pull:<6d} {r.wall:8.2f} s {r.cpu:8.2f} s"
    print(f"  {name:28s} {costs}   {r.residual:8.1e}", flush=True)


def compare(f: Callable, x: Tensor, k: int, slow: bool) -> None:
    mine = row(f, x, k, ours)
    propack = loosest(f, x, k, "propack", mine.residual)
    show("svd", mine)
    show("SciPy PROPACK", propack)
    show("SciPy ARPACK", loosest(f, x, k, "arpack", mine.residual))
    if k <= 5 or slow:
        show(f"published, rank {k}", row(f, x, k, published()))
    if slow:
        show("published, rank 50", row(f, x, k, published(50)))
        show("subspace iteration to 1e-3", row(f, x, k, stopped))
    more = sum(mine.passes) - sum(propack.passes)
    print(f"  passes above PROPACK {more:+d}, overhead {overhead(f, x, k):.1%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a folder or name that mathkit.load_model takes")
    parser.add_argument("--small", action="store_true", help="the 32 x 32 U-Net")
    parser.add_argument("--ranks", type=int, nargs="+", default=[5, 50])
    parser.add_argument("--times", type=int, nargs="+", default=[900, 700, 500])
    parser.add_argument("--slow", action="store_true", help="also what takes minutes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for t, f, x in points(args):
        for k in args.ranks:
            print(f"t = {t}, top {k}: passes forward + reverse, wall, CPU, residual / s_1")
            compare(f, x, k, args.slow)


if __name__ == "__main__":
    main()
