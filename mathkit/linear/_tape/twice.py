"""The mode in which f runs: operations that can be differentiated twice."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import Parameter
from torch.overrides import TorchFunctionMode

from mathkit.linear._tape.convolution import Conv, Geometry, convolve
from mathkit.linear._tape.nodes import Op
from mathkit.linear._tape.rules import Rule


class Twice(TorchFunctionMode):
    """Runs f in operations whose second derivative is cheap and can be batched."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (F.batch_norm, torch.batch_norm):
            _check_batch_norm(*args, **kwargs)
        if args and func in (F.group_norm, torch.group_norm):
            # strided input breaks its batched pull
            args = (args[0].contiguous(), *args[1:])
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_attention_math(*args, **kwargs)[0]
        if func is F.multi_head_attention_forward:
            with sdpa_kernel(SDPBackend.MATH):
                return func(*args, **kwargs)
        if func is F.conv2d and not kwargs and len(args) == 7 and _constant(*args):
            x, weight, bias, *geometry = args
            return ConstantConv.apply(x, weight, bias, tuple(geometry), x.shape[2:], False)
        return func(*args, **kwargs)


def _check_batch_norm(*args: Any, training: bool = False, **rest: Any) -> None:
    if args[5] if len(args) > 5 else training:
        raise ValueError(
            "a batch norm in f is in training mode: its items are not independent and its running "
            "statistics would move; call .eval() on the network"
        )


def _constant(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> bool:
    fixed = isinstance(weight, Parameter) and (bias is None or isinstance(bias, Parameter))
    # Under autocast x and weight change their dtype inside, and the way back would not.
    fixed = fixed and x.dtype == weight.dtype and not torch.is_autocast_enabled(x.device.type)
    return fixed and x.ndim == 4 and all(isinstance(g, tuple) for g in geometry[:3])


class ConstantConv(torch.autograd.Function):
    """conv2d, or its transpose, whose second derivative skips the unused one of the weights.

    torch computes that gradient always, and it is more than half of a push. Each of the two is the
    other's derivative. On a GPU neither is rounded to TF32.
    """

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        size: Any,
        transposed: bool,
    ) -> Tensor:
        return convolve(x, weight, geometry, size, transposed, bias=bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, weight, _, *ctx.how = inputs
        ctx.save_for_backward(weight)
        ctx.save_for_forward(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (weight,), (geometry, size, transposed) = ctx.saved_tensors, ctx.how
        back = ConstantConv.apply(grads[0], weight, None, geometry, size, not transposed)
        return back, *(None,) * 5

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *rest: None) -> Tensor:
        return ConstantConv.apply(dx, ctx.saved_tensors[0], None, *ctx.how)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, *rest: Any) -> tuple[Tensor, int]:
        images = x.movedim(in_dims[0], 0)
        out = ConstantConv.apply(images.flatten(0, 1), *rest)
        return out.unflatten(0, images.shape[:2]), 0

    @staticmethod
    def rules(op: Op) -> list[Rule]:
        (weight,), (geometry, size, transposed) = op.node.saved_tensors, op.node.how
        return [Conv(weight.detach(), geometry, size, transposed)]
