"""Convolutions, whose rule is the costliest: how they are run, and their transposes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property

import torch
from torch import Tensor

from mathkit.linear._tape.rules import Rule

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


Geometry = tuple[Sequence[int], Sequence[int], Sequence[int], int]  # stride, pad, dilation, groups


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
