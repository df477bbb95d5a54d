"""Rules of operations that are linear themselves: moves of numbers, sums, convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from mathkit.rules import Rule, Shape, scaled

SMALL = 2**18  # numbers of a convolution's weights, of which a second copy does not matter
_coarse: ContextVar[bool] = ContextVar("coarse", default=False)


@contextmanager
def coarse(allowed: bool = True) -> Iterator[None]:
    """Within it, in this thread, a tape's convolutions on a GPU round their factors to TF32.

    TF32 has float32's range and 10 bits of its digits, and is several times as fast. Nothing
    changes on a CPU, in float64, or for a map that has no tape, whose passes stay exact.
    """
    token = _coarse.set(allowed)
    try:
        yield
    finally:
        _coarse.reset(token)


def is_coarse() -> bool:
    return _coarse.get()


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


class Conv(Rule):
    """A convolution with constant weights, or the transpose of one."""

    def __init__(self, weight: Tensor, geometry: Geometry, size: Sequence[int], transposed: bool):
        """size: of the images on the side that has more places, (height, width)."""
        self.given, self.transposed = (weight, geometry, tuple(size)), transposed

    def push(self, *v: Tensor) -> Tensor:
        return self._run(v[0], self.transposed)

    def pull(self, u: Tensor) -> tuple[Tensor, ...]:
        return (self._run(u, not self.transposed),)

    @property
    def channels_last(self) -> bool:
        weight = self.given[0]
        last = weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
        return last and not weight.is_contiguous()

    @cached_property
    def turned(self) -> tuple[Tensor, Geometry] | None:
        """The transpose as a convolution with the weights turned by half, which a CPU does faster.

        None where it is none, or where a second copy of the weights would cost too much.
        """
        weight, (stride, pad, dilation, groups), _ = self.given
        pads = [d * (n - 1) - p for n, d, p in zip(weight.shape[2:], dilation, pad, strict=True)]
        whole = groups == 1 and all(s == 1 for s in stride) and min(pads) >= 0
        if weight.device.type != "cpu" or weight.numel() > SMALL or not whole:
            return None
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        weight = weight.flip(*range(2, weight.ndim)).transpose(0, 1)
        return weight.contiguous(memory_format=layout), (stride, pads, dilation, groups)

    def _run(self, v: Tensor, transposed: bool) -> Tensor:
        (weight, geometry, size), images = self.given, v.flatten(0, 1)
        if transposed and self.turned is not None:
            (weight, geometry), transposed = self.turned, False
        answer = convolve(images, weight, geometry, size, transposed, is_coarse())
        return answer.unflatten(0, v.shape[:2])


Geometry = tuple[Sequence[int], Sequence[int], Sequence[int], int]  # stride, pad, dilation, groups


def convolve(
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
    size: Sequence[int],
    transposed: bool = False,
    tf32: bool = False,
    bias: Tensor | None = None,
) -> Tensor:
    """The convolution of images with weights, or its transpose, which answers images of `size`.

    On a GPU cuDNN is told whether it may round float32 to TF32, whatever the process's own flags
    say; no flag is read or written. Other operations (products of matrices, convolutions whose
    weights move, those in one or three dimensions) follow the user's settings.
    """
    stride, pad, dilation, groups = geometry
    rest = [0] * len(stride)
    if transposed:
        sizes = zip(size, x.shape[2:], weight.shape[2:], stride, pad, dilation, strict=True)
        rest = [n - ((o - 1) * s - 2 * p + d * (w - 1) + 1) for n, o, w, s, p, d in sizes]
    if x.dtype != torch.float32 or weight.ndim != 4 or not by_cudnn(x):
        plain = (stride, pad, dilation, transposed, rest, groups)
        return torch.ops.aten.convolution(x, weight, bias, *plain)
    cudnn = torch.backends.cudnn
    how = (groups, cudnn.benchmark, cudnn.deterministic, tf32)
    if transposed:
        op = torch.ops.aten.cudnn_convolution_transpose
        y = op(x, weight, pad, rest, stride, dilation, *how)
    else:
        y = torch.ops.aten.cudnn_convolution(x, weight, pad, stride, dilation, *how)
    return y if bias is None else y + bias[:, None, None]


def by_cudnn(x: Tensor) -> bool:
    """Does cuDNN run x's convolutions?"""
    cudnn = torch.backends.cudnn
    return x.is_cuda and torch.version.hip is None and cudnn.is_available() and cudnn.enabled
