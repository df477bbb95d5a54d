"""The map x_t -> h, the output of one layer: of the bottleneck, or of any other."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mathkit.arguments import told
from mathkit.diffusion.model import Model, check_model
from mathkit.diffusion.sampling import posterior_mean

Map = Callable[[Tensor], Tensor]


At = str | nn.Module | Callable[[nn.Module], nn.Module] | None


class Encoder:
    """The map x_t -> h at one layer: what `encoder` gives. at: the layer's name in `p.unet`."""

    def __init__(self, p: Model, t: Any, pool: str | None, layer: nn.Module) -> None:
        self.p, self.t, self.pool, self.layer = p, t, pool, layer
        self.at = layer_name(p, layer)

    def __call__(self, x: Tensor) -> Tensor:
        with ending_at(self.layer) as reached:
            self.p.noise(x, self.t)
        h = reached[0].to(x.dtype).contiguous()
        return h if self.pool is None else h.sum(places(h))

    def __repr__(self) -> str:
        pooled = ", summed over its places" if self.pool else ""
        return f"h of {type(self.p).__name__} at {self.at!r}, t = {self.t}{pooled}"


def encoder(p: Model, t: int, pool: str | None = None, at: At = None) -> Encoder:
    """The map f: x_t -> h, the output of one layer of the network, (B, *in) -> (B, *h).

    The rest of the network never runs. Differentiable in forward and reverse mode, more than once.

    Args:
        p: the model.
        t: 0 ... T - 1.
        pool: None, or "sum" over the places, (B, channels, height, width) or tokens (B, places,
            channels) -> (B, channels) (2302.12469, which so keeps J small; 2307.12868 takes h
            whole).
        at: the layer: its name in `p.unet`, as "up_blocks.1"; a module of `p.unet`; or a function
            that finds one, as `lambda unet: unet.up_blocks[1]`. Default the bottleneck `mid_block`;
            without one the last of `down_blocks`, or the middle one of its row of blocks.

    Returns: a function; its `at` is the layer's name.
    Raises ValueError for a model without such a layer, t outside its range or another pool.
    Cost: B network calls up to there each time it is called.
    Source: h-space, Asyrp 2210.10960.

    >>> p = mk.load_model("alice")
    >>> mk.encoder(p, 500)(torch.zeros(1, *p.shape)).shape
    torch.Size([1, 128, 8, 8])
    >>> mk.encoder(p, 500, at="up_blocks.0")
    h of UNetModel at 'up_blocks.0', t = 500
    """
    layer, t = bottleneck(p, at), p.time(t)
    if pool not in (None, "sum"):
        raise ValueError(f'pool is None or "sum", got {pool!r}')
    return Encoder(p, t, pool, layer)


def places(h: Tensor) -> tuple[int, ...]:
    """The axes of h that are places: the last two of four, the tokens of three, else none."""
    axes: dict[int, tuple[int, ...]] = {4: (2, 3), 3: (1,)}
    if h.ndim not in axes:
        raise ValueError(f"h {tuple(h.shape[1:])} has no places to sum over: leave pool out")
    return axes[h.ndim]


def bottleneck(p: Model, at: At = None) -> nn.Module:
    """The layer whose output is h, as `encoder` is told. Raises ValueError where there is none."""
    check_model(p)
    if not isinstance(p.unet, nn.Module):
        raise ValueError(f"{type(p).__name__} has no bottleneck: h needs a network with layers")
    if at is None:
        return _middle(p)
    if isinstance(at, str):
        layer: Any = dict(p.unet.named_modules()).get(at)
    elif isinstance(at, nn.Module):
        layer = at
    elif callable(at):
        layer = at(p.unet)
    else:
        raise ValueError(f"at is a layer's name, a module or a function, got {told(at)}")
    if not isinstance(layer, nn.Module) or layer not in set(p.unet.modules()) - {p.unet}:
        first = [name for name, part in p.unet.named_children() if next(part.children(), None)]
        raise ValueError(
            f"at is a layer of p.unet, got {told(at)}: name one, as "
            f"{', '.join(first or [n for n, _ in p.unet.named_children()])} or one inside them; "
            "dict(p.unet.named_modules()) lists all"
        )
    return layer


def _middle(p: Model) -> nn.Module:
    """The bottleneck, or what comes nearest to one."""
    if isinstance(block := getattr(p.unet, "mid_block", None), nn.Module):
        return block
    down = getattr(p.unet, "down_blocks", None)
    if isinstance(down, nn.ModuleList) and len(down):
        return down[-1]
    rows = [r for r in p.unet.children() if isinstance(r, nn.ModuleList | nn.Sequential)]
    row: Any = max(rows, key=len, default=[])
    if len(row) < 2:
        raise ValueError(
            f"{type(p).__name__} has no bottleneck, nor a row of blocks with a middle: say where h "
            "is, at=, the name of a layer of p.unet"
        )
    return row[(len(row) - 1) // 2]


def layer_name(p: Model, layer: nn.Module) -> str:
    """The name of a layer in `p.unet`."""
    return next(name for name, module in p.unet.named_modules() if module is layer)


@contextmanager
def replacing(block: nn.Module, change: Map) -> Iterator[None]:
    """Within it, in this thread, `block` gives change(h) in the place of its output h.

    Of several outputs h is the first.
    """
    here = threading.get_ident()

    def hook(module: nn.Module, args: Any, out: Any) -> Any:
        if threading.get_ident() != here:
            return None
        several = isinstance(out, tuple | list)
        h = out[0] if several else out
        if not isinstance(h, Tensor):
            name = type(module).__name__
            raise ValueError(f"h is a tensor, and {name} gives {told(h)}: take a layer inside it")
        return (change(h), *out[1:]) if several else change(h)

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
    raise RuntimeError("the network ran without calling that layer: take another")


class _Reached(Exception):
    """The rest of the network need not run."""


def _pooled(p: Model, t: int, at: At = None) -> Map:
    return encoder(p, t, "sum", at)


def _mean(p: Model, t: int, at: At = None) -> Map:
    if at is not None:
        raise ValueError(f'at belongs to the maps "h" and "pooled", got {told(at)}')
    return posterior_mean(p, t)


def _whole(p: Model, t: int, at: At = None) -> Map:
    return encoder(p, t, at=at)


# Name -> the map of x_t at (p, t, at) whose Jacobian's singular vectors are the directions: h
# whole, h summed over its places, the posterior mean (of x_0). Atlases are kept by these names.
MAPS: dict[str, Callable[..., Map]] = {"h": _whole, "pooled": _pooled, "mean": _mean}
