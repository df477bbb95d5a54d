"""Lanczos for the SVD: push, pull, and forget no direction. The search behind `mk.svd`.

`Krylov.step` is the loop body of chapter 12's `lanczos`; `Search` repeats it until the top k have
settled. What one start cannot see, a second copy of a repeated singular value, is the business of
the second start, of `crowd` and of the guard.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mathkit.linear.linear_map import LinearMap, Passes, Shape, random_rows

# Two starts hold two copies of a repeated value; a third is asked for where two turn up.
STARTS = 2
SLACK = 0.98  # of tol, so that a residual recomputed with fresh rounding still passes
FORCED = 100  # steps at most along a fresh start before a doubt is said instead of settled
SHARE = 30.0  # of the root of n: how much a copy must grow from a random start to stand out


class Krylov:
    """Orthonormal rows V and U between which A is a small matrix H, and what lies next.

    A v_j = sum_i H_ij u_i and A^T u_j = sum_i (H_ji + slip_ij) v_i + sum_l coupling_lj pending_l.
    V (s rows of n numbers) and U (of m) after s directions; H, slip (s, s) and coupling (p, s) in
    float64 on the CPU. pending (p, n): orthonormal rows outside V, one for each start. slip: how
    far pull is from push's transpose, by rounding or by a fault. With one start H is bidiagonal, as
    in chapter 12.
    """

    def __init__(self, A: LinearMap, starts: int, seed: int) -> None:
        """A must not have more inputs than outputs: then U always has room."""
        self.A, self.generator = A, torch.Generator().manual_seed(seed)
        self.n, self.m = math.prod(A.in_shape), math.prod(A.out_shape)
        none = [random_rows(A, 0, (size,), self.generator) for size in (self.n, self.m)]
        self.V, self.U = map(Rows, none)
        self.pending = none[0]
        self.H = self.slip = self.coupling = torch.zeros(0, 0, dtype=torch.float64)
        self.unit, self.longest = 0.0, 0.0
        self.passes = Passes(0, 0)
        self.starts = 0
        self.start(starts)

    @property
    def size(self) -> int:
        """Directions so far."""
        return len(self.H)

    @property
    def whole(self) -> bool:
        """Whether V is all of the space: then nothing is left to miss."""
        return self.size == self.n

    @property
    def room(self) -> int:
        return self.n - self.size - len(self.pending)

    def start(self, count: int) -> int:
        """Up to `count` more random rows pending; how many there was room for."""
        count = min(count, self.room)
        if count > 0:
            rows = random_rows(self.A, count, (self.n,), self.generator)
            self._pend(outside(rows, *self.V, self.pending)[1], torch.zeros(count, self.size))
            self.starts += count
        return count

    def step(self, c: Tensor) -> None:
        """One push and one pull along the orthonormal combinations c (b, p) of what is pending."""
        v, known = self._take(c)
        # chapter 12's u: A v less what U has of it, to length 1; R is the length, h what U has
        parts, u, R = self._orthonormal(self._push(v), self.m, *self.U)
        self.V.add(v)
        self.U.add(u)
        s, b, h = self.size, len(c), torch.cat(parts, 1)
        self.H = _padded(self.H, b, b)
        self.H[:s, s:], self.H[s:, s:] = h.T, R.T
        self.slip = _padded(self.slip, b, 0)
        self.slip[s:] = known - h
        # chapter 12's v: A^T u less what V has of it; it waits in `pending` for its turn
        (*parts, d), w, R = self._orthonormal(self._pull(u), self.n, *self.V, self.pending)
        self.slip = torch.cat([self.slip, torch.cat(parts, 1).T - self.H[s:].T], 1)
        self.coupling = torch.cat([self.coupling, d.T], 1)
        added = torch.cat([torch.zeros(len(w), s), R.T], 1) if len(w) else R.new_zeros(0, s + b)
        self._pend(w, added)

    def peek(self, c: Tensor) -> Tensor:
        """The singular values that A has on V and on c of what is pending: pushes, no pull."""
        rows = c.to(self.pending) @ self.pending
        parts, _, R = self._orthonormal(self._push(rows), self.m, *self.U)
        corner = torch.cat([*parts, R], 1).T
        return torch.linalg.svdvals(torch.cat([_padded(self.H, len(c), 0), corner], 1))

    def ritz(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """P, S, Q of H = P S Q, and what A^T u_i has outside V for each column of P."""
        P, S, Q = torch.linalg.svd(self.H)
        return P, S, Q, self.coupling @ P

    def newest(self, b: int = 1) -> Tensor:
        """The b rows that came last, as combinations of what is pending."""
        return torch.eye(len(self.pending), dtype=torch.float64)[-b:]

    def everything(self) -> Tensor:
        """A random unit combination of all that is pending."""
        c = torch.randn(1, len(self.pending), generator=self.generator, dtype=torch.float64)
        return c / c.norm()

    def _take(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Combinations c of what is pending leave it: their rows, and their coupling."""
        b = len(c)
        turn = torch.linalg.qr(c.T, mode="complete").Q.T
        turn[:b] = c
        rows, coupling = turn.to(self.pending) @ self.pending, turn @ self.coupling
        self.pending, self.coupling = rows[b:], coupling[b:]
        return rows[:b], coupling[:b]

    def _pend(self, rows: Tensor, coupling: Tensor) -> None:
        self.pending = torch.cat([self.pending, rows])
        self.coupling = torch.cat([self.coupling, coupling.double()])

    def _push(self, v: Tensor) -> Tensor:
        y = through(self.A.push, v, self.A.in_shape)
        if not self.unit:  # a power of two, so that no square overflows and no digit moves
            self.unit = 2.0 ** math.frexp(float(y.abs().max()) or 1.0)[1]
        y = y / self.unit
        self.longest = max(self.longest, float(y.norm(dim=1).max()))
        self.passes = Passes(self.passes.push + len(v), self.passes.pull)
        return y

    def _pull(self, u: Tensor) -> Tensor:
        self.passes = Passes(self.passes.push, self.passes.pull + len(u))
        return through(self.A.pull, u, self.A.out_shape) / (self.unit or 1.0)

    def _orthonormal(
        self, Y: Tensor, size: int, *spans: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Y = parts @ spans + R Q with orthonormal rows Q outside the spans: parts, Q, R.

        A row that has nothing left but rounding gives way to a random one, as far as there is room.
        """
        parts, Q, R = outside(Y, *spans)
        left = R.diagonal().abs()
        room = size - sum(map(len, spans))
        rank = left.argsort(descending=True).argsort()
        lost = (left <= 8 * torch.finfo(Y.dtype).eps * self.longest) | (rank >= room)
        if not lost.any():
            return parts, Q, R
        kept = ~lost | (lost.cumsum(0) <= room - int((~lost).sum()))
        drawn = random_rows(self.A, len(Y), (size,), self.generator)
        rows = torch.where(lost[:, None].to(Y.device), drawn, Y)[kept.to(Y.device)]
        _, Q, mixed = outside(rows, *spans)
        R = torch.zeros(len(lost), len(Q), dtype=torch.float64)
        R[~lost] = mixed[~lost[kept]]
        for part, rows in zip(parts, spans, strict=True):
            Y = Y - part.to(Y) @ rows
        R[lost] = (Y @ Q.T).double().cpu()[lost]
        return parts, Q, R


@dataclasses.dataclass(frozen=True)
class Search:
    """Steps until the top k of a `Krylov` have residuals of at most tol * s_1 and no more turns up.

    width: rows a step. most: pushes and pulls in all. progress: told passes and residual at each
    look.
    """

    k: int
    tol: float
    width: int
    most: int
    progress: Callable[[int, float], None] | None = None

    @property
    def aim(self) -> float:
        return SLACK * self.tol

    def run(self, space: Krylov) -> str:
        """Searches; returns what is wrong with the outcome, or nothing."""
        doubt, spent = "", f"within {self.most} passes: give more max_passes"
        while True:
            left = self._converge(space)
            if left > self.aim:
                return f"residual {left:.1e} s_1 where {self.tol:.1e} was asked {spent}"
            if space.whole:
                return ""
            above = crowd(space, self.k, self.tol)
            if above is not None:
                steps = _needed(space.n, above)
                if steps > FORCED:
                    doubt = "a repeated singular value may come once more than found: another seed"
                if not self._start_again(space, min(steps, FORCED)):
                    return f"no room to see how often a repeated singular value comes {spent}"
            elif self._left(space) < 2 + len(space.pending):
                return f"no room to look for a second copy of a repeated singular value {spent}"
            elif self._guard(space):
                return doubt

    def _left(self, space: Krylov) -> int:
        """Rows that may still be pushed and pulled."""
        return (self.most - sum(space.passes)) // 2

    def _converge(self, space: Krylov) -> float:
        """Steps until the residual is tol * s_1 or the passes are spent; gives that residual."""
        look = self.k
        while True:
            count = min(self.width, self._left(space), len(space.pending))
            if space.size >= look or count < 1:
                left = residual(space, self.k)
                if self.progress:
                    self.progress(sum(space.passes), left)
                if left <= self.aim or count < 1:
                    return left
                look = space.size + _patience(space.size, left / max(self.aim, 1e-30))
            space.step(towards(space, self.k, self.aim, count))

    def _start_again(self, space: Krylov, steps: int) -> bool:
        """One start more, followed for so many steps; False if the passes do not suffice.

        It sets out along everything pending at once: what was missed may lie in rows that the
        search has left behind, and a fresh row is orthogonal to those.
        """
        if self._left(space) < steps:
            return False
        space.start(1)
        for step in range(steps):
            if not space.whole:
                space.step(space.newest() if step else space.everything())
        return True

    def _guard(self, space: Krylov) -> bool:
        """Whether a push of all that is pending leaves the top k as they are.

        Directions that have converged bring in nothing new, so a copy that they miss must be looked
        for on purpose. What the looking brings in is kept.
        """
        if space.whole:
            return True
        before = space.ritz()[1][: self.k]
        ahead = space.newest(len(space.pending))
        if _rise(before, space.peek(ahead)) <= self.tol:
            return True
        space.step(ahead)
        return False


def residual(space: Krylov, k: int) -> float:
    """The worst residual of the top k, in units of s_1, or what the next value may rise above s_k:
    some singular value lies within its own residual of it."""
    if space.size < k:
        return math.inf
    _, S, _, rest = space.ritz()
    r = rest.norm(dim=0)
    worst = max([float(r[:k].max()), *(S + r - S[k - 1])[k : k + 1].tolist()])
    return worst / float(S[0]) if worst > 0 else 0.0


def towards(space: Krylov, k: int, tol: float, count: int) -> Tensor:
    """The `count` combinations of what is pending that the unsettled of the top k feel most."""
    if count == len(space.pending):
        return torch.eye(count, dtype=torch.float64)
    if space.size < k:
        return space.newest(count)
    _, S, _, rest = space.ritz()
    unsettled = rest[:, :k].norm(dim=0) > tol * S[0]
    felt = rest[:, :k] * unsettled if unsettled.any() else rest
    return torch.linalg.svd(felt)[0].T[:count].contiguous()


def crowd(space: Krylov, k: int, tol: float) -> float | None:
    """Whether a value may come more often than it was found: (s / s_(k+1))^2 - 1 for the least
    such value s, else None.

    The Krylov rows of p random starts hold up to p copies of a repeated value, so where fewer than
    p turn up there are no more. p values count as copies if their intervals S_i -+ residual share a
    point; one more matters if some step below it, down to s_k, is larger than tol * s_1.
    """
    p = space.starts
    _, S, _, rest = space.ritz()
    r = rest.norm(dim=0) + 4 * len(S) ** 0.5 * torch.finfo(space.pending.dtype).eps * S[0]
    steps = -S[:k].diff()
    for i in reversed(range(k - p)):
        alike = (S - r)[i : i + p].max() <= (S + r)[i : i + p].min()
        if alike and steps[i + p - 1 :].max() > tol * S[0]:
            following = S[k] if len(S) > k else S[k - 1]
            return float((S[i + p - 1] / following.clamp_min(1e-30 * S[0])) ** 2 - 1)
    return None


def _needed(n: int, above: float) -> int:
    """Steps until a value whose square lies `above` times the rest's over them stands out of a
    random start: after j steps its part, 1 / sqrt(n) at first, has grown T_(j-1)(1 + 2 above)-fold,
    T the Chebyshev polynomial."""
    return 1 + math.ceil(math.log(SHARE * n**0.5) / math.acosh(1 + 2 * above))


def _rise(before: Tensor, after: Tensor) -> float:
    """How far the values have moved, in units of s_1."""
    moved = float((after[: len(before)] - before).abs().max())
    return moved / float(after[0]) if moved else 0.0


def _patience(size: int, ratio: float) -> int:
    """Steps before another look, where H is large enough for a look to cost: a residual seldom
    shrinks by more than four a step."""
    return max(1, int(math.log(min(ratio, 1e9), 4))) if size > 32 else 1


class Rows:
    """Rows added a few at a time, in blocks: growing copies nothing."""

    BLOCK, COLUMNS = 32, 4096

    def __init__(self, none: Tensor) -> None:
        """none: (0, size)."""
        self.blocks, self.room = [none], 0  # room: rows of the last block not filled yet

    def __len__(self) -> int:
        return sum(map(len, self.blocks)) - self.room

    def __iter__(self) -> Iterator[Tensor]:
        """The blocks, as far as they are filled."""
        yield from self.blocks[:-1]
        last = self.blocks[-1]
        yield last[: len(last) - self.room]

    def add(self, rows: Tensor) -> None:
        while len(rows):
            if not self.room:
                self.room = max(self.BLOCK, len(rows))
                self.blocks.append(rows.new_empty(self.room, rows.shape[1]))
            now, rows = rows[: self.room], rows[self.room :]
            at = len(self.blocks[-1]) - self.room
            self.blocks[-1][at : at + len(now)] = now
            self.room -= len(now)

    def become(self, c: Tensor) -> Tensor:
        """c @ rows, at most as many, written over the first of them; none are left."""
        kept: list[Tensor] = []  # no view of a block that is to go, not even an empty one
        for block in self:
            if left := len(c) - sum(map(len, kept)):
                kept.append(block[:left])
        del block
        for start in range(0, kept[0].shape[1], self.COLUMNS):
            part = slice(start, start + self.COLUMNS)
            new = c.to(kept[0]) @ torch.cat([block[:, part] for block in self])
            for rows, old in zip(new.split([len(rows) for rows in kept]), kept, strict=True):
                old[:, part] = rows
        del old
        self.blocks, self.room = [kept[0].new_empty(0, kept[0].shape[1])], 0
        return torch.cat(kept)


def outside(Y: Tensor, *spans: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """Y = parts @ spans + R Q: the parts of rows Y in spans of orthonormal rows, and orthonormal
    rows Q of the rest. Subtracted twice, against rounding: parts (b, len(span)), Q, R (b, b)."""
    parts = [torch.zeros(len(Y), len(rows), dtype=torch.float64) for rows in spans]
    R = torch.eye(len(Y), dtype=torch.float64)
    for _ in range(2):
        for part, rows in zip(parts, spans, strict=True):
            share = Y @ rows.T
            Y = Y - share @ rows
            part += R @ share.double().cpu()
        Q, r = torch.linalg.qr(Y.T)
        Y, R = Q.T, R @ r.T.double().cpu()
    return parts, Y, R


def through(one_pass: Callable[[Tensor], Tensor], rows: Tensor, shape: Shape) -> Tensor:
    """A push or pull on flat rows."""
    out = one_pass(rows.reshape(len(rows), *shape)).reshape(len(rows), -1).to(rows)
    if not out.isfinite().all():
        raise ValueError("the map gave NaN or infinity")
    return out


def _padded(M: Tensor, rows: int, columns: int) -> Tensor:
    return torch.nn.functional.pad(M, (0, columns, 0, rows))
