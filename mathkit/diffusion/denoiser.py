"""Any callable as a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mathkit.arguments import number, told
from mathkit.diffusion.levels import Levels, Time
from mathkit.diffusion.model import SPACINGS, largest
from mathkit.diffusion.networks import prepared, unwrapped
from mathkit.diffusion.predicted import Predicted


def denoiser(
    f: Callable[[Tensor, Tensor], Any],
    levels: Tensor | Levels,
    shape: Sequence[int],
    prediction: str = "epsilon",
    *,
    spacing: str = "t",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    far: float = math.inf,
) -> Denoiser:
    """Any callable as a model: f(x_t, t) -> what it predicts, on x_t = s_t x_0 + n_t e.

    So a network of your own, or of another library, is sampled, inverted, differentiated and
    edited as those of `mk.load_model` are. A network's weights are shared, and it is not changed;
    what a function closes over is to be frozen and in eval mode.

    Args:
        f: x (B, *shape) and t (B,) to (B, *shape), or to a tuple or an object whose first item or
            `sample` that is. t is as the levels have it: integers for a table, else of dtype.
        levels: abar_t (T,), or those of `mk.diffusion.levels`: `flow()`, `exploding()`, any.
        shape: of one x_t.
        prediction: "epsilon" (e), "sample" (x_0), "v_prediction" (s e - n x_0), "velocity"
            (e - x_0, of rectified flows) or "score" (-e / n).
        spacing: what `mk.timesteps` steps evenly in, "t" or "log-snr".
        device: of x_t, default that of f's weights, or the CPU.
        dtype: of what f is given, default that of f's weights, or float32.
        far: what no number of x_0 goes beyond, as 5 for pictures in [-1, 1]: an x_0 given is
            refused beyond it, and one made is warned of. What your x_0 are nobody else knows, so
            without it neither is checked.

    Returns: the model.
    Raises ValueError for a prediction or spacing that is none, levels that do not go with it, and
    (when it is called) an answer of another shape.
    Cost: no pass.

    >>> velocity = lambda x, t: x / t.view(-1, 1)  # all pictures are 0
    >>> p = mk.denoiser(velocity, mk.diffusion.levels.flow(), (2,), "velocity")
    >>> mk.sample(p, 1, steps=3).abs() < 1e-6
    tensor([[True, True]])
    """
    if not callable(f):
        raise ValueError(f"f is a function of x_t and t, or a network, got {told(f)}")
    weight = next(f.parameters(), None) if isinstance(f, nn.Module) else None
    kept = torch.empty(0) if weight is None else weight
    place = kept.device if device is None else torch.device(device)
    p = Denoiser(f, levels, shape, place, kept.dtype if dtype is None else dtype)
    p._predict(prediction)
    if spacing not in SPACINGS:
        raise ValueError(f"spacing is one of {', '.join(SPACINGS)}, got {spacing!r}")
    p.spacing, p.far = spacing, far if far == math.inf else number(far, "far", 0)
    return p


class Denoiser(Predicted):
    """A callable as a model, made by `denoiser`; `unet` is the network, where it is one."""

    def __init__(
        self, f: Callable[[Tensor, Tensor], Any], levels: Tensor | Levels, shape: Sequence[int],
        device: torch.device, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        super().__init__(shape, levels, device, dtype)
        self.unet = prepared(unwrapped(f)) if isinstance(f, nn.Module) else None
        self.f = f if self.unet is None else self.unet

    def encode(self, images: Tensor) -> Tensor:
        found = largest(self.check(images, "x_0"))
        if found > self.far:
            raise ValueError(
                f"x_0 reaches {found:.3g}, and the model was made with far = {self.far:g}"
            )
        return images

    def _output(self, x: Tensor, t: Time | Tensor) -> Tensor:
        times = self.times(t, len(self.check(x))).expand(len(x))
        times = times if self.levels.whole else times.to(self.dtype)
        out = self.f(x.to(self.dtype), times.to(x.device))
        out = getattr(out, "sample", out[0] if isinstance(out, tuple) else out)
        if not isinstance(out, Tensor) or out.shape != x.shape:
            raise ValueError(f"f gives what it predicts, {tuple(x.shape)}, got {told(out)}")
        return out.to(x.dtype).contiguous()

    def __repr__(self) -> str:
        name = getattr(self.f, "__name__", type(self.f).__name__)
        where = f"{self.dtype} on {self.device}"
        return f"Denoiser({name}, x_t {tuple(self.shape)}, {self.prediction}, {where})"
