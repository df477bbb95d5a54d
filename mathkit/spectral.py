"""The directions a linear map stretches most: power method, subspace iteration, Lanczos SVD.

Every function here returns rows: A ~ sum_i S[i] U[i] (x) V[i], S descending, U and V orthonormal,
the entry of V[i] largest by magnitude positive.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mathkit.maps import LinearMap, Passes, Shape, random_rows

UNDETERMINED = 1.0  # a bound on a sine that says nothing
SLACK = 0.98  # of tol, so that a residual recomputed with fresh rounding still passes


@dataclasses.dataclass(frozen=True, eq=False)
class SVD:
    """Top singular triplets of a map; unpacks as U, S, V.

    U (k, *out_shape), S (k,), V (k, *in_shape). residuals (k,): max(|A^T u_i - s_i v_i|,
    |A v_i - s_i u_i|), in units of S. passes: directions pushed and pulled to get here.
    gap = (s_k - s_(k+1)) / s_1. angle_bound = residual of the whole block / (s_1 gap), a bound on
    the sine of the largest angle between the found and the true subspace (Wedin 1972). Both are
    None where s_(k+1) is not known.
    """

    U: Tensor
    S: Tensor
    V: Tensor
    residuals: Tensor
    passes: Passes
    gap: float | None = None
    angle_bound: float | None = None

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.U, self.S, self.V))


def svd(
    A: LinearMap, k: int, tol: float = 1e-3, seed: int = 0, max_passes: int | None = None
) -> SVD:
    """Top k singular triplets of A, never formed, by Golub-Kahan-Lanczos bidiagonalisation.

    Stops when max_i max(|A^T u_i - s_i v_i|, |A v_i - s_i u_i|) <= tol * s_1, a test that does not
    see signs; none of the next three values, by its own residual, can still pass s_k (s_j + r_j
    <= s_k + tol * s_1); and a guard finds nothing new: one Krylov sequence holds a single copy of
    a repeated singular value, so a fresh random vector orthogonal to V and two more steps follow,
    and the search goes on if the top k change. Three steps see a copy that stands clear of s_k
    (3 above 2, not always 3 above 2.8). A search and no proof: in a crowd of values near s_k one
    may be missed; a smaller tol makes it rarer. Both bases are kept fully orthogonal; the projected
    problem is solved in float64. Past the numerical rank S is 0.

    Cost: one push and one pull a step, at most max_passes in all (default 1000 + 20 k) or
    2 min(m, n), and in half precision k more of each, which measure the residual, for rounding
    leaves such a map linear to two or three digits; memory one row of V and one of U a step. Raises
    ValueError for k outside 1 ... min(m, n). Warns when max_passes did not suffice, when push and
    pull are not so far each other's transpose or a pass is rounded too much (the residual says by
    how much), and when s_k and s_(k+1) are too close for the subspace to be determined
    (angle_bound > 1).
    Source: Golub & Kahan 1965; Larsen 1998 (PROPACK).
    """
    n, m = _check(A, k, tol)
    most = 1000 + 20 * k if max_passes is None else max_passes
    if most < 2 * k:
        raise ValueError(f"max_passes counts pushes and pulls: at least 2 k = {2 * k}, got {most}")
    space = _Krylov(A if n <= m else A.T, seed)
    problem = _search(space, k, tol, min(n, m, most // 2))
    result = _assemble(A, space, k)
    if A.dtype in (torch.float16, torch.bfloat16):
        result = _measured(A, result)
    left = float(result.residuals.max() / result.S[0]) if result.S[0] > 0 else 0.0
    if not problem and left > max(tol, 4 * max(n, m) ** 0.5 * torch.finfo(result.V.dtype).eps):
        _warn(
            f"svd: residual {left:.1e} s_1 where {tol:.1e} was asked, since pull is no closer to "
            "push's transpose, or rounding: take a finer dtype, or a larger tol"
        )
    elif problem:
        _warn(f"svd: {problem} within {most} passes: give more max_passes")
    elif result.angle_bound is not None and result.angle_bound > UNDETERMINED:
        _warn(
            f"svd: s_{k} and s_{k + 1} are too close (gap {result.gap:.1e} s_1) for the top {k} "
            "directions to be determined as a subspace: take another k or a smaller tol"
        )
    return result


def power_iteration(A: LinearMap, iters: int, seed: int = 0) -> SVD:
    """Top singular triplet by the power method: v <- A^T A v / |A^T A v|, `iters` times.

    The angle shrinks by (s_2 / s_1)^2 a step, s is read as |A v|. U (1, *out_shape), S (1,),
    V (1, *in_shape). Costs iters + 1 pushes and pulls: the last pair measures the residual.
    """
    return _iterate(A, 1, iters, 0.0, seed)[0]


def subspace_iteration(
    A: LinearMap, k: int, iters: int = 50, tol: float = 1e-3, seed: int = 0
) -> SVD:
    """Top k triplets by V <- orth(A^T A V), rotated to singular vectors at each step.

    Stops at max_i |A^T u_i - s_i v_i| <= tol * s_1, blind to signs, U orthonormal; warns when
    `iters` steps do not reach it. Direction i shrinks its angle by (s_(k+1) / s_i)^2 a step. Costs
    k pushes and k pulls a step, and one step more to measure. Source: Algorithm 1 of 2303.11073,
    used by 2307.12868.
    """
    result, found = _iterate(A, k, iters, tol, seed)
    if not found:
        left = float(result.residuals.max() / result.S[0])
        _warn(f"subspace_iteration: residual {left:.1e} s_1 where {tol:.1e} was asked: more iters")
    return result


def _iterate(A: LinearMap, k: int, iters: int, tol: float, seed: int) -> tuple[SVD, bool]:
    n, _ = _check(A, k, tol)
    if iters < 0:
        raise ValueError(f"iters counts steps: at least 0, got {iters}")
    generator = torch.Generator().manual_seed(seed)
    V = _orthonormal(random_rows(A, k, (n,), generator))
    for step in range(iters + 1):
        P, S, Q = torch.linalg.svd(_through(A.push, V, A.in_shape).T, full_matrices=False)
        U, V = P.T, Q @ V
        AtU = _through(A.pull, U, A.out_shape)
        residuals = (AtU - S[:, None] * V).norm(dim=1)
        found = bool(residuals.max() <= SLACK * tol * S[0])
        if found or step == iters:
            break
        V = _orthonormal(AtU)
    spent = k * (step + 1)
    return SVD(*_finish(A, U, S, V), residuals, Passes(spent, spent)), found


class _Krylov:
    """Orthonormal rows V, U that hold A, and what A^T U still has outside V.

    In columns: A V = U H and A^T U = V (H^T + D) + W C, with W orthonormal and outside V. W holds
    one pending row for each random vector so far; with one, H is bidiagonal and C = (0, ..., 0,
    beta). D is how far pull is from push's transpose: rounding, which in half precision counts.
    """

    def __init__(self, A: LinearMap, seed: int) -> None:
        """A must not have more inputs than outputs: then U always has room."""
        self.A, self.generator = A, torch.Generator().manual_seed(seed)
        self.n, self.m = math.prod(A.in_shape), math.prod(A.out_shape)
        self._V, self._U = (
            _Rows(random_rows(A, 0, (d,), self.generator)) for d in (self.n, self.m)
        )
        self.W, self.scale = self.V, 0.0
        self.H = self.C = self.D = torch.zeros(0, 0, dtype=torch.float64)

    @property
    def V(self) -> Tensor:
        return self._V.rows

    @property
    def U(self) -> Tensor:
        return self._U.rows

    @property
    def size(self) -> int:
        """Steps so far."""
        return len(self.H)

    def fresh(self) -> None:
        """One more random pending row."""
        self._pend(self._random_outside(self.n, self.V, self.W), 0.0)

    def step(self, c: Tensor) -> None:
        """One push and one pull along the unit combination c of the pending rows."""
        Q = torch.linalg.qr(c[:, None], mode="complete").Q.T
        W, C = Q.to(self.W) @ self.W, Q @ self.C
        v, self.W, self.C = W[:1], W[1:], C[1:]
        u = self._forward(v)
        self._V.add(v)
        self._U.add(u)
        self.D = _padded(self.D, 1, 0)
        self.D[-1] = C[0] - self.H[:-1, -1]
        self._backward(u)

    def _forward(self, v: Tensor) -> Tensor:
        """A v = U h + alpha u: a new column of H, and u."""
        y = _through(self.A.push, v, self.A.in_shape)[0]
        self.scale = max(self.scale, float(y.norm()))
        y, h = _outside(y, self.U)
        alpha = float(y.norm())
        if alpha <= self._rounding:
            y, alpha = self._random_outside(self.m, self.U), 0.0
        self.H = _padded(self.H, 1, 1)
        self.H[:, -1] = torch.cat([h[0], torch.tensor([alpha], dtype=h[0].dtype)])
        return (y / y.norm())[None]

    def _backward(self, u: Tensor) -> None:
        """A^T u = V g + W d + beta w: new columns of D and C, and w pending."""
        z = _through(self.A.pull, u, self.A.out_shape)[0]
        z, (g, d) = _outside(z, self.V, self.W)
        self.D = torch.cat([self.D, (g - self.H[-1])[:, None]], 1)
        self.C = torch.cat([self.C, d[:, None]], 1)
        beta = float(z.norm())
        if beta > self._rounding and self.size + len(self.W) < self.n:
            self._pend(z / beta, beta)

    @property
    def _rounding(self) -> float:
        """Below this length a remainder is rounding and its direction means nothing."""
        return 8 * torch.finfo(self.V.dtype).eps * self.scale

    def _pend(self, w: Tensor, beta: float) -> None:
        self.W, self.C = torch.cat([self.W, w[None]]), _padded(self.C, 1, 0)
        self.C[-1, -1:] = beta

    def _random_outside(self, size: int, *spans: Tensor) -> Tensor:
        g = random_rows(self.A, 1, (size,), self.generator)[0]
        for _ in range(2):
            g = _outside(g, *spans)[0]
            g = g / g.norm()
        return g

    def ritz(self, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """P (size, k), all of S and Q (k, size) of H = P S Q; C P, what A^T u_i has outside V."""
        P, S, Q = torch.linalg.svd(self.H)
        return P[:, :k], S, Q[:k], self.C @ P[:, :k]

    def residual(self, k: int) -> float:
        """The worst residual of the top k, in units of s_1, or what one of the next three values
        may rise above s_k: some singular value lies within its own residual of it."""
        if self.size < k:
            return math.inf
        _, S, _, rest = self.ritz(self.size)
        r = rest.norm(dim=0) if len(rest) else torch.zeros_like(S)
        rise = (S + r - S[k - 1])[k : k + 3]
        worst = max([float(r[:k].max()), *rise.tolist()])
        return worst / float(S[0]) if worst else 0.0

    def towards(self, k: int) -> Tensor:
        """The combination of the pending rows along the worst residual of the top k."""
        newest = torch.eye(len(self.W), dtype=torch.float64)[-1]
        if len(self.W) == 1 or self.size < k:
            return newest
        rest = self.ritz(k)[3]
        c = rest[:, rest.norm(dim=0).argmax()]
        return c / c.norm() if c.norm() > 0 else newest


class _Rows:
    """Rows added one at a time, in storage that doubles."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = self.store = rows

    def add(self, row: Tensor) -> None:
        count = len(self.rows)
        if count == len(self.store):
            self.store = torch.cat([self.rows, row.new_empty(max(16, count), row.shape[1])])
        self.store[count] = row[0]
        self.rows = self.store[: count + 1]


def _search(space: _Krylov, k: int, tol: float, limit: int) -> str:
    """Steps until the top k have settled and the guard finds no more; else says what is wrong."""
    while True:
        left = _converge(space, k, SLACK * tol, limit)
        if left > SLACK * tol:
            return f"residual {left:.1e} s_1 where {tol:.1e} was asked"
        if space.size == space.n:
            return ""
        before = space.ritz(k)[1][:k]
        if not _guard(space, limit):
            return "no room to look for a second copy of a repeated singular value"
        after = space.ritz(k)[1][:k]
        same = bool((after - before).abs().max() <= tol * after[0])
        if same and space.residual(k) <= SLACK * tol:
            return ""


def _converge(space: _Krylov, k: int, tol: float, limit: int) -> float:
    """Steps until the residual is tol * s_1 or the limit is reached; gives that residual."""
    look = k
    while space.size < limit:
        if space.size >= look or not len(space.W):
            left = space.residual(k)
            if left <= tol:
                return left
            look = max(k, space.size + _patience(space.size, left / max(tol, 1e-30)))
        if not len(space.W):
            space.fresh()
        space.step(space.towards(k))
    return space.residual(k)


def _patience(size: int, ratio: float) -> int:
    """Steps before another look, where H is large enough for a look to cost: a residual seldom
    shrinks by more than four a step."""
    return max(1, int(math.log(min(ratio, 1e9), 4))) if size > 32 else 1


def _guard(space: _Krylov, limit: int) -> bool:
    """A step along a fresh random vector and two more; False if the limit cuts them short."""
    last = min(space.size + 3, space.n)
    if last > limit:
        return False
    if space.size + len(space.W) < space.n:
        space.fresh()
    while space.size < last:
        if not len(space.W):
            space.fresh()
        space.step(torch.eye(len(space.W), dtype=torch.float64)[-1])
    return True


def _assemble(A: LinearMap, space: _Krylov, k: int) -> SVD:
    P, S, Q, rest = space.ritz(k)
    rest = torch.cat([rest, space.D @ P])
    U, V = P.T.to(space.U) @ space.U, Q.to(space.V) @ space.V
    if space.A is not A:
        U, V = V, U
    gap, bound = _gap(S, k, rest, space)
    pushed = Passes(space.size, space.size)
    return SVD(*_finish(A, U, S[:k].to(U), V), rest.norm(dim=0).to(U), pushed, gap, bound)


def _measured(A: LinearMap, r: SVD) -> SVD:
    """r with the residuals that one more push and pull of each triplet see, if they are larger."""
    U, S, V = r.U.flatten(1), r.S[:, None], r.V.flatten(1)
    off = [_through(A.push, V, A.in_shape) - S * U, _through(A.pull, U, A.out_shape) - S * V]
    seen = torch.stack([r.residuals, *(one.norm(dim=1) for one in off)]).amax(0)
    bound = r.angle_bound
    if bound is not None and r.gap:
        worst = max(float(torch.linalg.matrix_norm(one, 2)) for one in off)
        bound = max(bound, worst / (float(r.S[0]) * r.gap))
    passes = Passes(r.passes.push + len(S), r.passes.pull + len(S))
    return dataclasses.replace(r, residuals=seen, passes=passes, angle_bound=bound)


def _gap(S: Tensor, k: int, rest: Tensor, space: _Krylov) -> tuple[float | None, float | None]:
    """(s_k - s_(k+1)) / s_1 and the bound on the sine of the angle to the true subspace."""
    if len(S) == k < space.n and len(space.W):
        return None, None
    if k == space.n == space.m:
        return (float(S[-1] / S[0]) if S[0] > 0 else 0.0), 0.0
    if not S[0] > 0:
        return 0.0, math.inf
    following = S[k] if len(S) > k else 0.0 * S[0]
    gap = float((S[k - 1] - following) / S[0])
    whole = torch.linalg.matrix_norm(rest, 2) if len(rest) else 0.0 * S[0]
    error = max(float(whole / S[0]), torch.finfo(space.V.dtype).eps)
    return gap, error / gap if gap > 0 else math.inf


def _finish(A: LinearMap, U: Tensor, S: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Signs by the largest entry of V, zeros past the numerical rank, shapes of A."""
    k, size = len(S), max(U.shape[1], V.shape[1])
    largest = V.gather(1, V.abs().argmax(dim=1, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(V)
    S = torch.where(S > 4 * size**0.5 * torch.finfo(S.dtype).eps * S[0], S, 0.0)
    return (sign * U).reshape(k, *A.out_shape), S, (sign * V).reshape(k, *A.in_shape)


def _check(A: LinearMap, k: int, tol: float) -> tuple[int, int]:
    n, m = math.prod(A.in_shape), math.prod(A.out_shape)
    if not hasattr(k, "__index__") or not 1 <= k <= min(m, n):
        raise ValueError(f"k counts directions: 1 ... min(m, n) = {min(m, n)} here, got {k!r}")
    if not 0 <= tol < 1:
        raise ValueError(f"tol is a share of s_1 in [0, 1), got {tol}")
    return n, m


def _through(one_pass: Callable[[Tensor], Tensor], rows: Tensor, shape: Shape) -> Tensor:
    """A push or pull on flat rows."""
    out = one_pass(rows.reshape(len(rows), *shape)).reshape(len(rows), -1).to(rows)
    if not math.isfinite(float(out.norm())):
        raise ValueError("the map gave NaN or infinity")
    return out


def _outside(y: Tensor, *spans: Tensor) -> tuple[Tensor, list[Tensor]]:
    """y less its parts in spans of orthonormal rows, and those parts; twice is enough."""
    parts = [torch.zeros(len(rows), dtype=torch.float64) for rows in spans]
    for _ in range(2):
        for part, rows in zip(parts, spans, strict=True):
            share = rows @ y
            y = y - share @ rows
            part += share.cpu()
    return y, parts


def _orthonormal(rows: Tensor) -> Tensor:
    return torch.linalg.qr(rows.T).Q.T


def _padded(M: Tensor, rows: int, columns: int) -> Tensor:
    return torch.nn.functional.pad(M, (0, columns, 0, rows))


@contextmanager
def any_of_equals() -> Iterator[None]:
    """Within it, or in a function decorated with it, `svd` does not warn that s_k and s_(k+1) are
    close: of directions that are stretched alike any will do, or a noise floor is measured."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*are too close", RuntimeWarning)
        yield


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=3)
