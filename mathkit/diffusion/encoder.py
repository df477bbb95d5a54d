"""The bottleneck h of a U-Net: the map x_t -> h."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mathkit.diffusion.model import Model, check_model
from mathkit.diffusion.sampling import posterior_mean

Map = Callable[[Tensor], Tensor]


def encoder(p: Model, t: int, pool: str | None = None) -> Map:
    """The map f: x_t -> h, the output of the U-Net's middle block, (B, *in) -> (B, *h).

    The decoder never runs. Differentiable in forward and reverse mode; forward mode needs
    `sdpa_kernel(SDPBackend.MATH)` around it.

    Args:
        p: the model.
        t: 0 ... T - 1.
        pool: None, or "sum" over the places, h -> (B, channels) (2302.12469, which so keeps J
            small; 2307.12868 takes h whole).

    Returns: a function.
    Raises ValueError for a model with no bottleneck, t outside its range or another pool.
    Cost: B half network calls each time it is called.
    Source: h-space, Asyrp 2210.10960.

    >>> p = mk.load_model("alice")
    >>> mk.encoder(p, 500)(torch.zeros(1, *p.shape)).shape
    torch.Size([1, 128, 8, 8])
    """
    block, t = bottleneck(p), p.time(t)
    if pool not in (None, "sum"):
        raise ValueError(f'pool is None or "sum", got {pool!r}')

    def f(x: Tensor) -> Tensor:
        with ending_at(block) as reached:
            p.noise(x, t)
        h = reached[0].to(x.dtype).contiguous()
        return h if pool is None else h.sum((-2, -1))

    return f


def bottleneck(p: Model) -> nn.Module:
    """The middle block, whose output is h. Raises ValueError for a model that has none."""
    check_model(p)
    block = getattr(p.unet, "mid_block", None)
    if not isinstance(block, nn.Module):
        raise ValueError(f"{type(p).__name__} has no bottleneck: h needs a U-Net with a mid_block")
    return block


@contextmanager
def replacing(block: nn.Module, change: Map) -> Iterator[None]:
    """Within it, in this thread, `block` gives change(h) in the place of its output h."""
    here = threading.get_ident()

    def hook(module: nn.Module, args: Any, h: Tensor) -> Tensor | None:
        return change(h) if threading.get_ident() == here else None

    handle = block.register_forward_hook(hook)
    try:
        with _uncompiled():
            yield
    finally:
        handle.remove()


def _uncompiled() -> AbstractContextManager[Any]:
    """A network that was compiled before the hook was there would not see it."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


@contextmanager
def ending_at(block: nn.Module) -> Iterator[list[Tensor]]:
    """Within it a network's call ends when `block` has run, whose output is the list's one item."""
    reached: list[Tensor] = []

    def leave(h: Tensor) -> Tensor:
        reached.append(h)
        raise _Reached

    try:
        with replacing(block, leave):
            yield reached
    except _Reached:
        return
    raise RuntimeError("the network ran without passing its middle block")


class _Reached(Exception):
    """The rest of the network need not run."""


# Name -> the map of x_t at (p, t) whose Jacobian's singular vectors are the directions: h whole, h
# summed over its places, the posterior mean (of x_0: no pooling). Atlases are kept by these names.
MAPS: dict[str, Callable[[Model, int], Map]] = {
    "h": encoder,
    "pooled": lambda p, t: encoder(p, t, pool="sum"),
    "mean": posterior_mean,
}
