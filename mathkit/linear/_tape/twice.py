"""The modes in which f runs: operations that can be differentiated twice."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import Parameter
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

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


def forward_mode() -> bool:
    """Whether a derivative is being taken in forward mode."""
    return getattr(forward_ad, "_current_level", -1) >= 0


def smoothly(x: Tensor) -> AbstractContextManager[Any]:
    """Within it attention has the derivatives of every order and mode, where x is to have any."""
    return Smooth() if x.requires_grad or forward_mode() else nullcontext()


class Smooth(TorchFunctionMode):
    """Runs attention so that its derivative has one; torch's own has none, nor a forward mode."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and not _taped():
            return _attention(*args, **kwargs)
        if func is F.layer_norm and forward_mode():
            return _layer_norm(*args, **kwargs)
        if func is F.multi_head_attention_forward and not _taped():
            with sdpa_kernel(SDPBackend.MATH):
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def _taped() -> bool:
    return any(isinstance(mode, Twice) for mode in _get_current_function_mode_stack())


def _layer_norm(
    x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """In plain operations: torch 2.13's forward derivative has a wrong one."""
    axes = tuple(range(-len(shape), 0))
    centred = x - x.mean(axes, keepdim=True)
    y = centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, **how: Any,
) -> Tensor:  # fmt: skip
    how |= {"is_causal": is_causal}
    if attn_mask is not None or dropout_p or forward_mode():
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, **how)
    return Attention.apply(q, k, v, how)


class Attention(torch.autograd.Function):
    """Attention whose weights are not kept; its derivative is computed anew from q, k and v."""

    generate_vmap_rule = True

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, how: dict[str, Any]) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, **how)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        *qkv, ctx.how = inputs
        ctx.save_for_backward(*qkv)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        again = torch.is_grad_enabled()  # is this derivative to be differentiated?

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(SDPBackend.MATH) if again else nullcontext():
                return F.scaled_dot_product_attention(q, k, v, **ctx.how)

        back: Any = torch.func.vjp(attend, *ctx.saved_tensors)[1]
        return *back(grads[0]), None
