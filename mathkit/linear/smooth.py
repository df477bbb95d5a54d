"""Attention and layer norm that can be differentiated again, in every order and mode."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from mathkit.linear._tape.twice import Twice


def forward_mode() -> bool:
    """Whether a derivative is being taken in forward mode."""
    return getattr(forward_ad, "_current_level", -1) >= 0


def smoothly(x: Tensor) -> AbstractContextManager[Any]:
    """Within it attention has the derivatives of every order and mode, where x is to have any."""
    wanted = getattr(x, "requires_grad", False)  # what is no tensor is refused further on
    return Smooth() if wanted or forward_mode() else nullcontext()


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
