"""The bottleneck h of a U-Net: the map x_t -> h."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

from mathkit.diffusion.sampling import posterior_mean

At = Callable[[Tensor], Tensor]
_act: ContextVar[At | None] = ContextVar("at_bottleneck", default=None)


class _Reached(Exception):
    """Carries h out of the network before the decoder runs."""

    def __init__(self, h: Tensor) -> None:
        self.h = h


def encoder(p: Any, t: int, pool: str | None = None) -> Callable[[Tensor], Tensor]:
    """The map f: x_t -> h, the output of the U-Net's middle block: (B, *in) -> (B, *h).

    pool: None, or "sum" over the places, h -> (B, channels) (2302.12469, which so keeps J small;
    2307.12868 takes h whole). The decoder never runs. Differentiable in forward and reverse mode;
    forward mode needs `sdpa_kernel(SDPBackend.MATH)` around it, as in `mk.jacobian`.
    Cost: B half network calls. Raises ValueError for a model with no bottleneck, t outside
    0 ... T-1 or another pool.
    """
    watch(p)
    t = p.time(t)
    if pool not in (None, "sum"):
        raise ValueError(f'pool is None or "sum", got {pool!r}')

    def f(x: Tensor) -> Tensor:
        h = _bottleneck(p, x, t)
        return h if pool is None else h.sum((-2, -1))

    return f


def _bottleneck(p: Any, x: Tensor, t: int) -> Tensor:
    try:
        with at_bottleneck(_leave):
            p.noise(x, t)
    except _Reached as reached:
        return reached.h.to(x.dtype).contiguous()
    raise RuntimeError("the network ran without passing its middle block")


def _leave(h: Tensor) -> Tensor:
    raise _Reached(h)


@contextmanager
def at_bottleneck(act: At) -> Iterator[None]:
    """Within it, every network that has been watched puts `act(h)` in the place of its h."""
    token = _act.set(act)
    try:
        yield
    finally:
        _act.reset(token)


def watch(p: Any) -> None:
    """Hook the middle block once; the hook does nothing outside `at_bottleneck`."""
    middle = getattr(p.unet, "mid_block", None)
    if middle is None:
        raise ValueError(f"{type(p).__name__} has no bottleneck: h needs a U-Net with a mid_block")
    if _hook not in middle._forward_hooks.values():
        middle.register_forward_hook(_hook)


def _hook(module: nn.Module, args: Any, h: Tensor) -> Tensor | None:
    act = _act.get()
    return None if act is None else act(h)


# Name -> the map of x_t at (p, t) whose Jacobian's singular vectors are the directions.
MAPS: dict[str, Callable[[Any, int], Callable[[Tensor], Tensor]]] = {
    "h": encoder,
    "pooled": lambda p, t: encoder(p, t, pool="sum"),
    "mean": posterior_mean,
}
