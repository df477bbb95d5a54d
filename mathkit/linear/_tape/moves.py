"""Rules of operations that only move numbers and add them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mathkit.linear._tape.rules import Rule, Shape, scaled


class Reshape(Rule):
    """The same numbers in another shape."""

    def __init__(self, old: Shape, new: Shape) -> None:
        self.old, self.new = old, new

    @property
    def identity(self) -> bool:
        return self.old == self.new

    def after(self, first: Rule) -> Rule | None:
        return Reshape(first.old, self.new) if isinstance(first, Reshape) else None

    def push(self, *v: Tensor) -> Tensor:
        return v[0].reshape(len(v[0]), *self.new)

    def pull(self, u: Tensor) -> tuple[Tensor, ...]:
        return (u.reshape(len(u), *self.old),)


class Permute(Rule):
    """Axes in another order: axis i of y is axis order[i] of x."""

    def __init__(self, order: Sequence[int]) -> None:
        self.order = (0, *(1 + i for i in order))
        self.back = sorted(range(len(self.order)), key=self.order.__getitem__)

    @property
    def identity(self) -> bool:
        return self.back == list(range(len(self.back)))

    def after(self, first: Rule) -> Rule | None:
        if not isinstance(first, Permute):
            return None
        return Permute([first.order[i] - 1 for i in self.order[1:]])

    def push(self, *v: Tensor) -> Tensor:
        return v[0].permute(self.order)

    def pull(self, u: Tensor) -> tuple[Tensor, ...]:
        return (u.permute(self.back),)


class Sum(Rule):
    """A sum over axes, times a weight (1 / n: a mean); its transpose repeats."""

    def __init__(self, shape: Shape, axes: Sequence[int], out: Shape, weight: float = 1.0) -> None:
        """axes: counted from the end, as everywhere here: the directions have the first."""
        self.shape, self.axes, self.out, self.weight = shape, list(axes), out, weight
        self.kept = [1 if i - len(shape) in self.axes else n for i, n in enumerate(shape)]

    def push(self, *v: Tensor) -> Tensor:
        total = v[0].sum(self.axes) if self.axes else v[0]
        return scaled(total.reshape(len(total), *self.out), self.weight)

    def pull(self, u: Tensor) -> tuple[Tensor, ...]:
        once = scaled(u, self.weight).reshape(len(u), *self.kept)
        return (once.expand(len(u), *self.shape),)


class Take(Rule):
    """Some places along one axis; the transpose puts zeros at the others."""

    def __init__(self, shape: Shape, axis: int, places: slice | int) -> None:
        self.shape = shape
        self.places = (..., places, *[slice(None)] * (-axis - 1))

    def push(self, *v: Tensor) -> Tensor:
        return v[0][self.places]

    def pull(self, u: Tensor) -> tuple[Tensor, ...]:
        whole = u.new_zeros(len(u), *self.shape)
        whole[self.places] = u
        return (whole,)


class Cat(Rule):
    """Pieces side by side along one axis, or along a new one: zeros where a piece does not move."""

    def __init__(
        self, pieces: Sequence[Shape], moving: Sequence[bool], axis: int, new: bool = False
    ) -> None:
        """axis: of y, counted from the end; new: stack, pieces do not have that axis."""
        self.pieces, self.moving, self.axis, self.new = pieces, moving, axis, new

    def push(self, *v: Tensor) -> Tensor:
        moves = iter(v)
        pairs = zip(self.pieces, self.moving, strict=True)
        whole = [next(moves) if m else v[0].new_zeros(len(v[0]), *s) for s, m in pairs]
        return torch.stack(whole, self.axis) if self.new else torch.cat(whole, self.axis)

    def pull(self, u: Tensor) -> tuple[Tensor, ...]:
        if self.new:
            parts = u.unbind(self.axis)
        else:
            parts = u.split([s[self.axis] for s in self.pieces], self.axis)
        return tuple(part for part, m in zip(parts, self.moving, strict=True) if m)


class Pad(Rule):
    """Zeros around the last axes; the transpose cuts them off."""

    def __init__(self, sides: Sequence[int]) -> None:
        """sides: as F.pad takes them; negative ones cut."""
        self.sides, self.less = list(sides), [-n for n in sides]

    def push(self, *v: Tensor) -> Tensor:
        return F.pad(v[0], self.sides)

    def pull(self, u: Tensor) -> tuple[Tensor, ...]:
        return (F.pad(u, self.less),)


class OnImages(Rule):
    """A linear operation that torch has for batches of images; directions are more images."""

    def __init__(
        self,
        forth: Callable[[Tensor], Tensor],
        back: Callable[[Tensor, list[int]], Tensor],
        shape: Shape,
    ) -> None:
        """forth: images -> images; back: its transpose, told the shape to answer; shape: x's."""
        self.forth, self.back, self.shape = forth, back, shape

    def push(self, *v: Tensor) -> Tensor:
        return self.forth(v[0].flatten(0, 1)).unflatten(0, v[0].shape[:2])

    def pull(self, u: Tensor) -> tuple[Tensor, ...]:
        images = u.flatten(0, 1)
        return (self.back(images, [len(images), *self.shape[1:]]).unflatten(0, u.shape[:2]),)
