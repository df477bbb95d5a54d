"""The derivative of an operation at a point, as a linear map: one small rule an operation.

A change v of a value of shape (*s) is kept as (k, *s): k directions at once. `push` takes the
changes of the inputs to the change of the output, v -> D v; `pull` is its transpose, u -> D^T u.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, ...]
LARGE = 1024  # places of an image


class Rule:
    """D and D^T of one operation, in those of its inputs that move."""

    def push(self, *v: Tensor) -> Tensor:
        raise NotImplementedError

    def pull(self, u: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError

    @property
    def identity(self) -> bool:
        return False

    def after(self, first: Rule) -> Rule | None:
        """`first` and then this one as one rule, where that is cheaper."""
        return None

    def lay(self, layout: torch.memory_format) -> None:
        """Keep the constants in the layout in which the changes will come."""


class Pointwise(Rule):
    """y = f(a, b, ...) place by place: v -> sum_i c_i v_i with c_i = df/da_i, each broadcast.

    One input of y's own shape: a diagonal. c_i is a number where it is the same everywhere.
    """

    def __init__(self, gains: Sequence[Any], ins: Sequence[Shape], out: Shape) -> None:
        """gains: c_i, a tensor or a number; ins: the shapes of the inputs."""
        self.gains, self.ins, self.out = list(gains), list(ins), out

    @property
    def diagonal(self) -> bool:
        return self.ins == [self.out]

    @property
    def identity(self) -> bool:
        return self.diagonal and isinstance(self.gains[0], float) and self.gains[0] == 1

    def after(self, first: Rule) -> Rule | None:
        if not (self.diagonal and isinstance(first, Pointwise) and first.diagonal):
            return None
        return Pointwise([self.gains[0] * first.gains[0]], self.ins, self.out)

    def push(self, *v: Tensor) -> Tensor:
        pairs = zip(v, self.gains, strict=True)
        total = _added([scaled(_aligned(x, len(self.out)), c) for x, c in pairs])
        shape = (len(total), *self.out)
        return total if total.shape == shape else total.expand(shape)

    def pull(self, u: Tensor) -> tuple[Tensor, ...]:
        pairs = zip(self.gains, self.ins, strict=True)
        return tuple(_summed(scaled(u, c), s) for c, s in pairs)

    def lay(self, layout: torch.memory_format) -> None:
        for i, c in enumerate(self.gains):
            if isinstance(c, Tensor) and c.ndim == 4:
                self.gains[i] = c.contiguous(memory_format=layout)


def _added(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def scaled(v: Tensor, c: Tensor | float) -> Tensor:
    return v if isinstance(c, float) and c == 1 else v * c


def _aligned(v: Tensor, ndim: int) -> Tensor:
    """(k, *s) with ones put behind k, to broadcast against (k, *out)."""
    missing = ndim + 1 - v.ndim
    return v.reshape(len(v), *[1] * missing, *v.shape[1:]) if missing else v


def _summed(u: Tensor, shape: Shape) -> Tensor:
    """The transpose of broadcasting (k, *shape) to u's shape."""
    if u.shape[1:] == shape:
        return u
    extra = u.ndim - 1 - len(shape)
    axes = [i for i in range(1, u.ndim) if i <= extra or shape[i - 1 - extra] < u.shape[i]]
    return u.sum(axes, keepdim=True).reshape(len(u), *shape)


class Projection(Rule):
    """Normalisation but for its scale: v -> v - mean(v) - z mean(z v) over each group; symmetric.

    z = (x - mean) / sqrt(var + eps) of its group. Group norm is this, then the diagonal
    weight / sqrt(var + eps).
    """

    def __init__(self, z: Tensor, groups: int) -> None:
        """z: of x's shape; groups: of equal size, each whole in memory when z is contiguous."""
        self.shape, self.groups, self.last = z.shape, groups, False
        self.z = z.reshape(1, groups, -1)  # one image, each group a channel

    def lay(self, layout: torch.memory_format) -> None:
        self.last = layout == torch.channels_last and len(self.shape) == 4
        if self.last:
            self.z = self.z.reshape(self.shape).contiguous(memory_format=layout)
            groups, per = self.groups // len(self.z), self.z[0].numel() * len(self.z) // self.groups
            same = torch.eye(groups, dtype=self.z.dtype, device=self.z.device) / per**0.5
            self.sides = same.repeat_interleave(self.shape[1] // groups, 0)

    def push(self, *v: Tensor) -> Tensor:
        if not self.last:
            return self._native(v[0].reshape(len(v[0]), *self.z.shape[1:])).reshape(v[0].shape)
        images = v[0].flatten(0, 1).contiguous(memory_format=torch.channels_last)
        # In this layout torch's own kernel is slow on large images.
        large = self.shape[2:].numel() >= LARGE
        return (self._sums if large else self._native)(images).unflatten(0, v[0].shape[:2])

    def pull(self, u: Tensor) -> tuple[Tensor, ...]:
        return (self.push(u),)

    def _native(self, v: Tensor) -> Tensor:
        """The pull of a group norm whose input z has mean 0 and deviation 1 already."""
        z = self.z if len(v) == len(self.z) else torch.cat([self.z] * (len(v) // len(self.z)))
        groups = self.groups // len(self.z)
        mean, rate = v.new_zeros(len(v), groups), v.new_ones(len(v), groups)
        sizes = (len(v), v.shape[1], v.shape[2:].numel(), groups)
        back = torch.ops.aten.native_group_norm_backward
        return back(v, z, mean, rate, None, *sizes, [True, False, False])[0]

    def _sums(self, v: Tensor) -> Tensor:
        """The same by sums over places, then over the channels of a group."""
        moved, z = v.movedim(1, -1), self.z.movedim(1, -1).flatten(1, 2)
        rows = moved.flatten(1, 2).unflatten(0, (-1, len(z)))
        sums = torch.stack([rows.sum(2), (rows * z).sum(2)])
        mean, along = (sums @ self.sides @ self.sides.T)[:, :, :, None]
        out = (rows - mean).addcmul_(z, along, value=-1)
        return out.reshape(moved.shape).movedim(-1, 1)


class Softmax(Rule):
    """p = softmax(x): v -> p (v - sum(p v)), symmetric. y = log p: v -> v - sum(p v)."""

    def __init__(self, p: Tensor, axis: int, log: bool = False) -> None:
        self.p, self.axis, self.log = p, axis, log

    def push(self, *v: Tensor) -> Tensor:
        pv = self.p * v[0]
        total = pv.sum(self.axis, keepdim=True)
        return v[0] - total if self.log else torch.addcmul(pv, self.p, total, value=-1)

    def pull(self, u: Tensor) -> tuple[Tensor, ...]:
        if self.log:
            return (u - self.p * u.sum(self.axis, keepdim=True),)
        return (self.push(u),)


class Product(Rule):
    """y = alpha a b, of matrices or batches of them: v -> alpha (v_a b + a v_b).

    y = c0 c + alpha a b has three inputs, c first: v -> c0 v_c + alpha (v_a b + a v_b).
    """

    def __init__(self, a: Any, b: Any, alpha: float = 1.0, c: Pointwise | None = None) -> None:
        """a: None unless b moves; b: None unless a moves; c: the rule of c -> c0 c if c moves."""
        self.a, self.b, self.alpha, self.c = a, b, alpha, c

    def push(self, *v: Tensor) -> Tensor:
        moves = list(v)
        parts = [] if self.c is None else [self.c.push(moves.pop(0))]
        if self.b is not None:
            parts.append(scaled(_right(moves.pop(0), self.b), self.alpha))
        if self.a is not None:
            parts.append(scaled(_left(self.a, moves.pop(0)), self.alpha))
        return _added(parts)

    def pull(self, u: Tensor) -> tuple[Tensor, ...]:
        w = scaled(u, self.alpha)
        parts = [] if self.c is None else [*self.c.pull(u)]
        if self.b is not None:
            parts.append(_right(w, self.b.mT))
        if self.a is not None:
            parts.append(_left(self.a.mT, w))
        return tuple(parts)


def _right(v: Tensor, b: Tensor) -> Tensor:
    """v b for each direction: k directions are k times the rows, b is not copied for each."""
    if len(v) == 1:
        return (v[0] @ b)[None]
    return v @ b if b.ndim == 2 else torch.einsum("kbij,bjl->kbil", v, b)


def _left(a: Tensor, v: Tensor) -> Tensor:
    if len(v) == 1:
        return (a @ v[0])[None]
    return torch.einsum("ij,kjl->kil" if a.ndim == 2 else "bij,kbjl->kbil", a, v)
