"""The Jacobian of a function at a point, as a linear map that pushes and pulls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import Parameter
from torch.overrides import TorchFunctionMode

from mathkit.maps import LinearMap, Pass


def jacobian(f: Pass, x: Tensor, chunk: int | str = "auto") -> LinearMap:
    """The Jacobian J of f at the point x, as a map that pushes and pulls and is never formed.

    f: (B, *in) -> (B, *out), batched with independent items; x: (1, *in), real and finite.
    push: v -> J v, how f(x) moves when x moves along v. pull: u -> J^T u, the gradient of <f, u>.
    f runs once, here. A pull goes back through its graph; J^T u is linear in u, so a push goes
    back through the pull (the transpose of the transpose), which spares the primal of forward mode.
    Memory: that graph, plus `chunk` directions at a time whatever k is ("auto" picks by size; too
    large for a GPU, it halves and goes on). One pass costs about one evaluation of f. On a GPU
    float32 convolutions run in full here, not in TF32.

    Results have x's device and dtype. Raises ValueError for a point without its batch axis, an f
    that is not batched or whose value carries no gradient, and for values or derivatives that are
    not finite.
    """
    _check_point(x)
    x, h = _evaluate(f, x)
    in_shape, out_shape = x.shape[1:], h.shape[1:]
    size = Chunk(chunk, in_shape.numel() + out_shape.numel(), x.device.type)
    graph: list[tuple[Tensor, Tensor]] = []

    def pull(U: Tensor) -> Tensor:
        return size.over(lambda rows: _back(h, x, rows), U.to(x))

    def push(V: Tensor) -> Tensor:
        if not graph:
            graph.append(_transpose(h, x))
        return size.over(lambda rows: _back(*graph[0], rows), V.to(x)).to(x)

    return LinearMap(push, pull, in_shape, out_shape, x.dtype, x.device)


def _check_point(x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ValueError(f"a point is a real floating-point tensor, got {type(x).__name__}")
    if x.ndim < 1 or len(x) != 1:
        raise ValueError(
            f"a point has shape (1, *in), got {tuple(x.shape)}: one item x of a batch is x[None]"
        )
    if not x.isfinite().all():
        raise ValueError("the point x holds NaN or infinity")


def _evaluate(f: Pass, x: Tensor) -> tuple[Tensor, Tensor]:
    """The leaf x and h = f(x) with its graph, in operations that can be differentiated twice."""
    with (
        torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _Twice(),
        _full_precision(),
    ):  # fmt: skip
        x = x.detach().clone().requires_grad_()
        h = f(x.clone())
    if not isinstance(h, Tensor) or h.ndim < 1 or len(h) != 1:
        shape = tuple(h.shape) if isinstance(h, Tensor) else type(h).__name__
        raise ValueError(f"f must be batched, (B, *in) -> (B, *out): f(x) for B = 1 gave {shape}")
    if not h.isfinite().all():
        raise ValueError("f(x) holds NaN or infinity")
    if not h.requires_grad:
        raise ValueError("f(x) carries no gradient: f is constant, or detaches or runs in no_grad")
    return x, h


def _transpose(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The pull as a graph: J^T u and the leaf u it is linear in."""
    with torch.inference_mode(False), torch.enable_grad(), _full_precision():
        u = torch.zeros_like(h).requires_grad_()
        (Jtu,) = torch.autograd.grad(h, x, u, create_graph=True, materialize_grads=True)
    return Jtu, u


def _back(y: Tensor, leaf: Tensor, rows: Tensor) -> Tensor:
    """Rows of cotangents of y (1, *) -> rows of cotangents of leaf, through the kept graph."""
    several = len(rows) > 1
    weights = rows[:, None] if several else rows
    with _full_precision():
        (out,) = torch.autograd.grad(
            y, leaf, weights, retain_graph=True, is_grads_batched=several, materialize_grads=True
        )
    return out[:, 0] if several else out


@contextmanager
def _full_precision() -> Iterator[None]:
    """float32 convolutions in full: by default a GPU rounds them to TF32, too coarse for an SVD."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


class Chunk:
    """How many directions go through a map at once; halves when a pass of that size fails."""

    # Numbers of one direction that keep a device busy: beyond them a batch only costs memory.
    BUSY = {"cpu": 2**15, "cuda": 2**22}

    def __init__(self, size: int | str, numbers: int, device: str) -> None:
        if size == "auto":
            size = max(1, self.BUSY.get(device, 2**18) // numbers)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f'chunk is "auto" or an integer >= 1, got {size!r}')
        self.size = size

    def over(self, one_pass: Pass, rows: Tensor) -> Tensor:
        """one_pass on at most `size` rows at a time; raises ValueError on a result not finite."""
        out = torch.cat(list(self._parts(one_pass, rows)))
        if not out.isfinite().all():
            raise ValueError(
                "the derivative is not finite: NaN in the direction, or a square root, norm or "
                "division at 0 inside f at this point"
            )
        return out

    def _parts(self, one_pass: Pass, rows: Tensor) -> Iterator[Tensor]:
        done = 0
        while done < len(rows):
            try:
                part = one_pass(rows[done : done + self.size])
            except RuntimeError:  # out of memory, or an operation that cannot be batched
                if self.size == 1:
                    raise
                self.size = max(1, min(self.size, len(rows)) // 2)
                continue
            done += len(part)
            yield part


class _Twice(TorchFunctionMode):
    """Runs f in operations whose second derivative is cheap and can be batched."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if args and func in (
            F.group_norm,
            torch.group_norm,
        ):  # strided input breaks its batched pull
            args = (args[0].contiguous(), *args[1:])
        if func is F.conv2d and not kwargs and len(args) == 7 and _constant(*args):
            return _ConstantConv.apply(*args)
        return func(*args, **(kwargs or {}))


def _constant(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> bool:
    fixed = isinstance(weight, Parameter) and (bias is None or isinstance(bias, Parameter))
    # Under autocast x and weight change their dtype inside, and the way back would not.
    fixed = fixed and x.dtype == weight.dtype and not torch.is_autocast_enabled(x.device.type)
    return fixed and x.ndim == 4 and all(isinstance(g, tuple) for g in geometry[:3])


class _ConstantConv(torch.autograd.Function):
    """conv2d whose second derivative skips the unused gradient of the weights.

    torch computes that gradient always, and it is more than half of a push.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
        return F.conv2d(x, weight, bias, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, weight, _, *geometry = inputs
        ctx.save_for_backward(weight)
        ctx.save_for_forward(weight)
        ctx.geometry, ctx.size = geometry, x.shape[2:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        stride, pad, dilation, groups = ctx.geometry
        sizes = zip(
            ctx.size, grads[0].shape[2:], weight.shape[2:], stride, pad, dilation, strict=True
        )
        rest = [n - ((o - 1) * s - 2 * p + d * (w - 1) + 1) for n, o, w, s, p, d in sizes]
        dx = F.conv_transpose2d(grads[0], weight, None, stride, pad, rest, groups, dilation)
        return dx, *(None,) * 6

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *rest: None) -> Tensor:
        return F.conv2d(dx, ctx.saved_tensors[0], None, *ctx.geometry)
