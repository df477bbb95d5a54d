"""The k directions a linear map stretches most: the one function of this book."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from mathkit.arguments import integer
from mathkit.linear._tape.convolution import coarse
from mathkit.linear.lanczos import STARTS, Krylov, Search, through
from mathkit.linear.linear_map import LinearMap, Passes, plainly, random_rows
from mathkit.linear.triplets import (
    SVD,
    CloseValues,
    NotConverged,
    checked_sizes,
    finished,
    orthonormal,
    warn,
)

FORM = 3  # at most so many times k rows are formed at once: any search costs about as much


def svd(
    A: LinearMap,
    k: int,
    tol: float = 1e-3,
    seed: int = 0,
    max_passes: int | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> SVD:
    """Top k singular triplets of A, never formed, by Golub-Kahan-Lanczos bidiagonalisation.

    Stops when max_i max(|A^T u_i - s_i v_i|, |A v_i - s_i u_i|) <= tol * s_1, a test that does not
    see signs; the next value cannot, by its own residual, still pass s_k; and nothing more turns up
    where the search has looked least. One random start holds a single copy of a repeated singular
    value, two hold two: the search has two, and where p starts find p copies of a value above s_k
    it asks one start more. A search and no proof. Both bases are kept fully orthogonal; the
    projected problem is solved in float64. Past the numerical rank S is 0. Where min(m, n) is at
    most 3 k the matrix is formed instead, which costs no more, and the answer is exact.

    Args:
        A: the map, (n) -> (m) numbers; `mk.matrix(M)` makes one of a matrix.
        k: how many, 1 ... min(m, n).
        tol: what the residuals may be, a share of s_1 in [0, 1).
        seed: of the random starts.
        max_passes: pushes and pulls at most, default 1000 + 20 k, never more than 2 min(m, n).
        progress: called as progress(passes, residual) after each look, residual in units of s_1.

    Returns: an `SVD`; `converged` and `problem` say how it ended.

    Raises ValueError for what is no map, k or tol outside their ranges, NaN or infinity from A.
    Warns `NotConverged` when max_passes did not suffice, when push and pull are not so far each
    other's transpose or a pass is rounded too much (the residual says by how much), and
    `CloseValues` when s_k and s_(k+1) are too close for the subspace to be determined
    (angle_bound > 1).

    Cost: one push and one pull a step, and in half precision k more of each, which measure the
    residual, for rounding leaves such a map linear to two or three digits; memory one row of V and
    one of U a step.
    Source: Golub & Kahan 1965; Larsen 1998 (PROPACK); Golub, Luk & Overton 1981 for several starts.

    >>> U, S, V = mk.svd(mk.matrix([[3.0, 0.0], [4.0, 5.0]]), 2)
    >>> print([round(s, 4) for s in S.tolist()])  # the roots of 45 and 5
    [6.7082, 2.2361]
    """
    n, m = checked_sizes(A, k, tol, seed)
    most = (
        1000 + 20 * k
        if max_passes is None
        else integer(max_passes, "max_passes, at least 2 k,", 2 * k)
    )
    with plainly(A.device):
        if min(n, m) <= FORM * k and min(n, m) < most:
            problem, result = "", _formed(A, k, seed)
        else:
            search = Search(k, tol, _width(A, k), most, progress)
            problem, found = _coarsely(A, search, seed) if _rounds(A) else ("", None)
            if found is None:
                problem, found = _searched(A, search, seed)
            result = found
        if A.dtype in (torch.float16, torch.bfloat16):
            result = _measured(A, result)
    return _told(result, problem, k, tol, max(n, m))


def _told(r: SVD, problem: str, k: int, tol: float, size: int) -> SVD:
    """r with what is wrong with it, of which it warns."""
    left = float(r.residuals.max() / r.S[0]) if r.S[0] > 0 else 0.0
    if not problem and left > max(tol, 4 * size**0.5 * torch.finfo(r.V.dtype).eps):
        problem = (
            f"residual {left:.1e} s_1 where {tol:.1e} was asked, since pull is no closer to "
            "push's transpose, or rounding: take a finer dtype, or a larger tol"
        )
    if not problem and r.angle_bound is not None and r.angle_bound > 1:
        warn(
            f"svd: s_{k} and s_{k + 1} are too close (gap {r.gap:.1e} s_1) for the top {k} "
            "directions to be determined as a subspace: take another k or a smaller tol",
            CloseValues,
        )
    if problem:
        warn(f"svd: {problem}", NotConverged)
    return dataclasses.replace(r, converged=not problem, problem=problem)


def _width(A: LinearMap, k: int) -> int:
    """Rows a step, one for each start at least: more mean more passes in fewer calls.

    On a GPU a call costs nearly the same whatever it carries. On a CPU two rows together save a
    quarter, four a third, which pays where k is large.
    """
    on_cpu = torch.device(A.device or "cpu").type == "cpu"
    return max(STARTS, min(A.batch, (4 if k >= 16 else STARTS) if on_cpu else k + 3))


def _rounds(A: LinearMap) -> bool:
    """Whether a pass is faster when its convolutions may be rounded."""
    return torch.device(A.device or "cpu").type == "cuda" and A.dtype == torch.float32


def _coarsely(A: LinearMap, search: Search, seed: int) -> tuple[str, SVD | None]:
    """The search in rounded passes, refined by exact ones; no result if those see more than tol."""
    with coarse():
        problem, found = _searched(A, search, seed)
    result = _refined(A, found)
    content = bool(result.residuals.max() <= search.tol * result.S[0])
    return problem, result if content else None


def _refined(A: LinearMap, r: SVD) -> SVD:
    """Half a round of subspace iteration from V, in k exact pushes and k exact pulls.

    With orthonormal rows W of A V and A^T W = P S Q: u = P^T W, v = Q, so A^T u = s v to rounding.
    |A v - s u| is at most s_(k+1) / s times what A^T u had outside the old V, which is reported.
    """
    k, old = len(r.S), r.V.flatten(1)
    W = orthonormal(through(A.push, old, A.in_shape))
    P, S, Q = torch.linalg.svd(through(A.pull, W, A.out_shape), full_matrices=False)
    U, S, V = finished(A, P.T @ W, S, Q)
    flat = S[:, None] * V.flatten(1)
    rest = flat - flat @ old.T @ old
    gap, bound = r.gap, r.angle_bound
    if gap:
        bound = float(torch.linalg.matrix_norm(rest, 2) / S[0]) / gap
    passes = Passes(r.passes.push + k, r.passes.pull + k)
    return SVD(U, S, V, rest.norm(dim=1), passes, gap, bound)


def _searched(A: LinearMap, search: Search, seed: int) -> tuple[str, SVD]:
    n, m, k = math.prod(A.in_shape), math.prod(A.out_shape), search.k
    space = Krylov(A if n <= m else A.T, max(STARTS, search.width), seed)
    problem = search.run(space)
    P, S, Q, rest = space.ritz()
    rest = torch.cat([rest, space.slip @ P])[:, :k]
    U, V = space.U.become(P[:, :k].T), space.V.become(Q[:k])
    passes = space.passes
    if n > m:
        U, V, passes = V, U, Passes(passes.pull, passes.push)
    known = len(S) > k or space.whole or not len(space.pending)
    gap, bound = _gap(S, k, rest, n == m, U.dtype) if known else (None, None)
    S, unit = S[:k].to(U), space.unit or 1.0
    U, S, V = finished(A, U, S, V)
    return problem, SVD(U, unit * S, V, unit * rest.norm(dim=0).to(S), passes, gap, bound)


def _formed(A: LinearMap, k: int, seed: int) -> SVD:
    """By the dense SVD of A's matrix, in float64 where the device has it.

    The matrix comes from one side alone: one pass of the other tells how far it is its transpose.
    """
    n, m = math.prod(A.in_shape), math.prod(A.out_shape)
    J = A.dense()
    if not J.isfinite().all():
        raise ValueError("the map gave NaN or infinity")
    fine = J.double() if J.device.type != "mps" else J.float()
    P, S, Q = torch.linalg.svd(fine, full_matrices=False)
    other, space = (A.pull, P.T[:k]) if n <= m else (A.push, Q[:k])
    weights = random_rows(A, 1, (k,), torch.Generator().manual_seed(seed)).to(space)
    probe = weights @ space / weights.norm()
    shape, back = (A.out_shape, fine) if n <= m else (A.in_shape, fine.T)
    seen = through(other, probe.to(J.dtype), shape).to(fine)
    off = (seen - probe.to(J.dtype).to(fine) @ back).norm()
    dtype = torch.promote_types(J.dtype, torch.float32)
    rest = off.expand(1, k) if off > 8 * torch.finfo(dtype).eps * S[0] else torch.zeros(1, k)
    gap, bound = _gap(S.cpu(), k, rest.double().cpu(), n == m, dtype)
    U, values, V = finished(A, P.T[:k].to(dtype), S[:k].to(dtype), Q[:k].to(dtype))
    passes = Passes(n, 1) if n <= m else Passes(1, m)
    return SVD(U, values, V, rest[0].to(values), passes, gap, bound)


def _measured(A: LinearMap, r: SVD) -> SVD:
    """r with the residuals that one more push and pull of each triplet see, if they are larger."""
    U, S, V = r.U.flatten(1), r.S[:, None], r.V.flatten(1)
    off = [through(A.push, V, A.in_shape) - S * U, through(A.pull, U, A.out_shape) - S * V]
    seen = torch.stack([r.residuals, *(one.norm(dim=1) for one in off)]).amax(0)
    bound = r.angle_bound
    if bound is not None and r.gap:
        worst = max(float(torch.linalg.matrix_norm(one, 2)) for one in off)
        bound = max(bound, worst / (float(r.S[0]) * r.gap))
    passes = Passes(r.passes.push + len(S), r.passes.pull + len(S))
    return dataclasses.replace(r, residuals=seen, passes=passes, angle_bound=bound)


def _gap(S: Tensor, k: int, rest: Tensor, square: bool, dtype: torch.dtype) -> tuple[float, float]:
    """(s_k - s_(k+1)) / s_1 and the bound on the sine of the angle to the true subspace."""
    if len(S) == k and square:
        return (float(S[-1] / S[0]) if S[0] > 0 else 0.0), 0.0
    if not S[0] > 0:
        return 0.0, math.inf
    following = S[k] if len(S) > k else 0.0 * S[0]
    gap = float((S[k - 1] - following) / S[0])
    whole = torch.linalg.matrix_norm(rest, 2) if len(rest) else 0.0 * S[0]
    # Equal values come out apart by rounding, which must not pass for a gap.
    error = max(float(whole / S[0]), 4 * len(S) ** 0.5 * torch.finfo(dtype).eps)
    return gap, error / gap if gap > 0 else math.inf
