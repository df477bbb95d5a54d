"""The power method, for one direction and for several."""

from __future__ import annotations

import dataclasses

import torch

from mathkit.arguments import integer
from mathkit.linear.lanczos import SLACK, through
from mathkit.linear.linear_map import LinearMap, Passes, plainly, random_rows
from mathkit.linear.triplets import SVD, NotConverged, checked_sizes, finished, orthonormal, warn


def power_iteration(A: LinearMap, iters: int, seed: int = 0) -> SVD:
    """Top singular triplet by the power method: v <- A^T A v / |A^T A v|, `iters` times.

    The angle to the true direction shrinks by (s_2 / s_1)^2 a step; s is read as |A v|.

    Args:
        A: the map.
        iters: steps, >= 0.
        seed: of the random start.

    Returns: an `SVD` of k = 1: U (1, *out_shape), S (1,), V (1, *in_shape); `converged` says
    whether the residual is at most 1e-3 s_1.
    Raises ValueError for what is no map, iters or seed.
    Cost: iters + 1 pushes and pulls; the last pair measures the residual.
    Source: von Mises & Pollaczek-Geiringer 1929.

    >>> r = mk.power_iteration(mk.matrix([[3.0, 0.0], [0.0, 1.0]]), 20)
    >>> print(round(float(r.S), 4), r.passes)
    3.0 Passes(push=21, pull=21)
    """
    r = _iterate(A, 1, iters, 0.0, seed)
    left = float(r.residuals / r.S) if r.S[0] > 0 else 0.0
    if left <= 1e-3:
        return r
    said = f"residual {left:.1e} s_1 after {iters} rounds"
    return dataclasses.replace(r, converged=False, problem=said)


def subspace_iteration(
    A: LinearMap, k: int, iters: int = 50, tol: float = 1e-3, seed: int = 0
) -> SVD:
    """Top k triplets by V <- orth(A^T A V), rotated to singular vectors at each step.

    Stops at max_i |A^T u_i - s_i v_i| <= tol * s_1, blind to signs, U orthonormal. Direction i
    shrinks its angle by (s_(k+1) / s_i)^2 a step.

    Args:
        A: the map.
        k: how many, 1 ... min(m, n).
        iters: steps at most, >= 0.
        tol: what the residuals may be, a share of s_1 in [0, 1).
        seed: of the random start.

    Returns: an `SVD`; `converged` and `problem` say how it ended.
    Raises ValueError for what is no map, k, iters or tol; warns `NotConverged` where `iters` steps
    do not reach tol.
    Cost: k pushes and k pulls a step, and one step more to measure.
    Source: Algorithm 1 of 2303.11073, used by 2307.12868.

    >>> r = mk.subspace_iteration(mk.matrix(torch.diag(torch.tensor([4.0, 2.0, 1.0]))), 2)
    >>> [round(s, 3) for s in r.S.tolist()]
    [4.0, 2.0]
    """
    result = _iterate(A, k, iters, tol, seed)
    left = float(result.residuals.max() / result.S[0]) if result.S[0] > 0 else 0.0
    if left <= SLACK * tol:
        return result
    problem = f"residual {left:.1e} s_1 where {tol:.1e} was asked: more iters"
    warn(f"subspace_iteration: {problem}", NotConverged, 3)
    return dataclasses.replace(result, converged=False, problem=problem)


def _iterate(A: LinearMap, k: int, iters: int, tol: float, seed: int) -> SVD:
    n, _ = checked_sizes(A, k, tol, seed)
    iters = integer(iters, "iters")
    generator = torch.Generator().manual_seed(seed)
    with plainly(A.device):
        V = orthonormal(random_rows(A, k, (n,), generator))
        for step in range(iters + 1):
            P, S, Q = torch.linalg.svd(through(A.push, V, A.in_shape).T, full_matrices=False)
            U, V = P.T, Q @ V
            AtU = through(A.pull, U, A.out_shape)
            residuals = (AtU - S[:, None] * V).norm(dim=1)
            if step == iters or residuals.max() <= SLACK * tol * S[0]:
                break
            V = orthonormal(AtU)
    spent = k * (step + 1)
    return SVD(*finished(A, U, S, V), residuals, Passes(spent, spent))
