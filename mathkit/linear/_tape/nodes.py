"""From a node of autograd's graph, with what it saved, to the rules of its operation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mathkit.linear._tape.convolution import Conv
from mathkit.linear._tape.moves import Cat, OnImages, Pad, Permute, Reshape, Sum, Take
from mathkit.linear._tape.rules import Pointwise, Product, Projection, Rule, Shape, Softmax

aten = torch.ops.aten


class Unsupported(Exception):
    """No rule for this operation, or not for its use here."""


@dataclass
class Op:
    """A node of the graph: `op["name"]` is what it saved; shapes of its inputs and its output."""

    node: Any
    nr: int
    ins: list[Shape | None]
    moving: list[bool]
    out: Shape

    def __getitem__(self, name: str) -> Any:
        value = getattr(self.node, f"_saved_{name}")
        if isinstance(value, Tensor):
            return value.detach()
        if isinstance(value, tuple):
            return tuple(map(_signed, value))
        return _signed(value)

    @property
    def shape(self) -> Shape:
        """Of the first input that moves."""
        return next(s for s, m in zip(self.ins, self.moving, strict=True) if m and s is not None)

    def axis(self, i: int | None = None) -> int:
        """An axis counted from the end, so that it stays true behind that of the directions."""
        i = self["dim"] if i is None else i
        return i if i < 0 else i - len(self.shape)


def _signed(value: Any) -> Any:
    # autograd shows -1 as 2^64 - 1
    return value - 2**64 if isinstance(value, int) and value >= 2**63 else value


def pointwise(op: Op) -> list[Rule]:
    """The node pulls ones back place by place: that gives the derivatives themselves."""
    like = op.node._input_metadata[0]
    back = op.node(torch.ones(op.out, dtype=like.dtype, device=like.device))
    back = back if isinstance(back, tuple) else (back,)
    if len(back) != len(op.ins):
        raise Unsupported("not place by place")
    triples = list(zip(back, op.ins, op.moving, strict=True))
    gains = [_number(c.detach()) for c, _, moves in triples if moves]
    if any(isinstance(c, Tensor) and c.shape != op.out for c in gains):
        raise Unsupported("not place by place")
    return [Pointwise(gains, [s for _, s, moves in triples if moves and s is not None], op.out)]


def _number(c: Tensor) -> Tensor | float:
    first = c.flatten()[:1]
    return float(first) if bool((c == first).all()) else c


def repeat(op: Op) -> list[Rule]:
    return [Pointwise([1.0], [op.shape], op.out)]


def reshape(op: Op) -> list[Rule]:
    return [Reshape(op.shape, op.out)]


def swap(op: Op, names: tuple[str, str] | None = ("dim0", "dim1")) -> list[Rule]:
    order = list(range(len(op.shape)))
    i, j = (op[n] for n in names) if names else (0, -1)
    if order:
        order[i], order[j] = order[j], order[i]
    return [Permute(order)]


def permute(op: Op) -> list[Rule]:
    return [Permute([d % len(op.shape) for d in op["dims"]])]


def total(op: Op, mean: bool = False, axes: bool = True) -> list[Rule]:
    dims = op["dim"] if axes and op["dim"] is not None else ()
    every = [op.axis(d) for d in dims] or [-1 - i for i in range(len(op.shape))]
    weight = 1 / math.prod(op.shape[i] for i in every) if mean else 1.0
    return [Sum(op.shape, every, op.out, weight)]


def select(op: Op) -> list[Rule]:
    return [Take(op.shape, op.axis(), op["index"] % op.shape[op.axis()])]


def unbind(op: Op) -> list[Rule]:
    return [Take(op.shape, op.axis(), op.nr)]


def cut(op: Op) -> list[Rule]:
    return [Take(op.shape, op.axis(), slice(op["start"], op["end"], op["step"]))]


def split(op: Op) -> list[Rule]:
    start = op.nr * op["split_size"]
    return [Take(op.shape, op.axis(), slice(start, start + op.out[op.axis()]))]


def split_sizes(op: Op) -> list[Rule]:
    start = sum(op["split_sizes"][: op.nr])
    return [Take(op.shape, op.axis(), slice(start, start + op.out[op.axis()]))]


def cat(op: Op) -> list[Rule]:
    axis, known = op.axis(), [s for s in op.ins if s is not None]
    if len(op.ins) - len(known) > 1:
        raise Unsupported("the graph does not tell the sizes of several constant pieces")
    rest = list(op.out)
    rest[axis] -= sum(s[axis] for s in known)
    return [Cat([tuple(rest) if s is None else s for s in op.ins], op.moving, axis)]


def stack(op: Op) -> list[Rule]:
    axis = op["dim"] if op["dim"] < 0 else op["dim"] - len(op.out)
    return [Cat([op.shape] * len(op.ins), op.moving, axis, new=True)]


def product(op: Op, a: str, b: str, added: bool = False) -> list[Rule]:
    *moves_c, moves_a, moves_b = op.moving
    c = None
    if any(moves_c):
        c = Pointwise([float(op["beta"])], [op.shape], op.out)
    alpha = float(op["alpha"]) if added else 1.0
    return [Product(op[a] if moves_b else None, op[b] if moves_a else None, alpha, c)]


def softmax(op: Op, log: bool = False) -> list[Rule]:
    p = op["result"].exp() if log else op["result"]
    return [Softmax(p, op.axis(), log)]


def group_norm(op: Op) -> list[Rule]:
    x, n, groups = op["input"], op["N"], op["group"]
    each = (n * groups, -1)
    mean, rate = (op[name].reshape(-1, 1) for name in ("result1", "result2"))
    z = ((x.reshape(each) - mean) * rate).reshape(x.shape)
    ones = [1] * (x.ndim - 2)
    gain = rate.reshape(n, groups, 1).expand(n, groups, op["C"] // groups).reshape(n, -1, *ones)
    if op["weight"] is not None:
        gain = gain * op["weight"].reshape(-1, *ones)
    return [Projection(z, n * groups), Pointwise([gain], [op.shape], op.out)]


def layer_norm(op: Op) -> list[Rule]:
    x, rate = op["input"], op["result2"]
    z = (x - op["result1"]) * rate
    gain = rate if op["weight"] is None else rate * op["weight"]
    return [Projection(z.contiguous(), rate.numel()), Pointwise([gain], [op.shape], op.out)]


def batch_norm(op: Op) -> list[Rule]:
    if op["training"]:
        raise Unsupported("items are not independent")
    return pointwise(op)


def convolution(op: Op) -> list[Rule]:
    transposed = op["transposed"]
    geometry = (op["stride"], op["padding"], op["dilation"], op["groups"])
    size = (op.out if transposed else op.shape)[2:]
    if len(op.shape) != op["weight"].ndim:
        raise Unsupported("images without their batch axis")
    return [Conv(op["weight"], geometry, size, transposed)]


def pad(op: Op) -> list[Rule]:
    return [Pad(op["pad"])]


def mirror(op: Op, kind: str) -> list[Rule]:
    sides, name = op["padding"], f"{kind}_pad2d"
    forth, back = getattr(aten, name), getattr(aten, f"{name}_backward")
    return [
        OnImages(
            lambda v: forth(v, sides), lambda u, size: back(u, u.new_zeros(size), sides), op.shape
        )
    ]


def resize(op: Op, name: str, aligned: bool = False) -> list[Rule]:
    out = op["output_size"]
    how = (*([op["align_corners"]] if aligned else []), op["scales_h"], op["scales_w"])
    forth, back = getattr(aten, f"upsample_{name}"), getattr(aten, f"upsample_{name}_backward")
    return [
        OnImages(lambda v: forth(v, out, *how), lambda u, size: back(u, out, size, *how), op.shape)
    ]


def average(op: Op) -> list[Rule]:
    names = "kernel_size stride padding ceil_mode count_include_pad divisor_override".split()
    how = [op[name] for name in names]
    return [
        OnImages(
            lambda v: aten.avg_pool2d(v, *how),
            lambda u, size: aten.avg_pool2d_backward(u, u.new_zeros(size), *how),
            op.shape,
        )
    ]


ALONE = "Abs Acos Asin Asinh Atan Ceil Cos Cosh Clamp ClampMax ClampMin Elu Erf Erfc Exp Exp2 Expm1"
ALONE += " Floor Gelu Hardsigmoid Hardswish Hardtanh LeakyRelu Log Log10 Log1P Log2 LogSigmoid"
ALONE += " MaskedFill Mish Neg Reciprocal Relu Rsqrt Sigmoid Silu Sin Sinh Softplus Sqrt Tan Tanh"
ALONE += " Threshold"
TOGETHER = "Add Addcdiv Addcmul Atan2 Div Lerp Maximum Minimum Mul Pow Rsub Sub Where"
VIEWS = "ReshapeAlias Squeeze UnsafeView Unsqueeze View"
COPIES = "Alias Clone Copy ToCopy"
Make = Callable[[Op], list[Rule]]

# Of operations in which several inputs may move, and of those in which only the first may.
SEVERAL: dict[str, Make] = {
    **dict.fromkeys(TOGETHER.split(), pointwise),
    "Cat": cat,
    "Stack": stack,
    "Mm": partial(product, a="self", b="mat2"),
    "Bmm": partial(product, a="self", b="mat2"),
    "Addmm": partial(product, a="mat1", b="mat2", added=True),
    "Baddbmm": partial(product, a="batch1", b="batch2", added=True),
}
ONE: dict[str, Make] = {
    **dict.fromkeys(ALONE.split(), pointwise),
    **dict.fromkeys(VIEWS.split(), reshape),
    **dict.fromkeys([*COPIES.split(), "Expand"], repeat),
    "Transpose": swap,
    "T": partial(swap, names=None),
    "Permute": permute,
    "Select": select,
    "Slice": cut,
    "Split": split,
    "SplitWithSizes": split_sizes,
    "Unbind": unbind,
    "Softmax": softmax,
    "SafeSoftmax": softmax,
    "LogSoftmax": partial(softmax, log=True),
    "NativeGroupNorm": group_norm,
    "NativeLayerNorm": layer_norm,
    "NativeBatchNorm": batch_norm,
    "Convolution": convolution,
    "ConstantPadNd": pad,
    "ReflectionPad2D": partial(mirror, kind="reflection"),
    "ReplicationPad2D": partial(mirror, kind="replication"),
    "UpsampleNearest2D": partial(resize, name="nearest2d"),
    "UpsampleBilinear2D": partial(resize, name="bilinear2d", aligned=True),
    "AvgPool2D": average,
}
# "Sum" alone is over every axis, 1 over some: the number is part of the name.
NUMBERED: dict[str, Make] = {
    "SumBackward0": partial(total, axes=False),
    "SumBackward1": total,
    "MeanBackward0": partial(total, axes=False, mean=True),
    "MeanBackward1": partial(total, mean=True),
}
