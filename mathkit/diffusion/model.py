"""One interface to any denoiser."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from mathkit.arguments import finite, integer, number, tensor
from mathkit.diffusion.levels import CLEAN, Levels, Time, preserving
from mathkit.linear.chunks import NETWORK, Chunk, fitting

SPACINGS = ("t", "log-snr")
TALL = 8.0  # no draw of e ~ N(0, I) goes beyond


class Model:
    """A denoiser with its levels: what every function here takes as `p`.

    x_t = s_t x_0 + n_t e, e ~ N(0, I), with the signal and noise levels s and n of `levels`; those
    of a table of abar are sqrt(abar_t) and sqrt(1 - abar_t), for t = 0 ... T - 1. Subclasses give
    `noise`, or `noise` and `clean`; `unet` is the network, or None, and `revision` that of its
    weights. `spacing` says what `mk.timesteps` steps evenly in: "t", or "log-snr", log(s / n);
    `far` is what no number of x_0 goes beyond, `bound` what keeps an x_0 told from next to no
    signal within its range, or None.

    Args:
        shape: of one x_t, as (3, 64, 64).
        alphas_cumprod: abar_t, (T,), in [0, 1), falling, kept in float64 on the CPU; or any
            `mk.diffusion.levels.Levels`.
        device: where x_t and the network live.
        dtype: of x_t.
    """

    unet: Any = None
    revision: str | None = None
    spacing: str = "t"
    far: float = math.inf
    bound: Callable[[Tensor], Tensor] | None = None
    alphas_cumprod: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        alphas_cumprod: Tensor | Levels,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.shape, self.device, self.dtype = torch.Size(shape), device, dtype
        if isinstance(alphas_cumprod, Tensor):
            self.alphas_cumprod = alphas_cumprod.detach().double().cpu()
            alphas_cumprod = preserving(self.alphas_cumprod)
        self.levels = alphas_cumprod
        self._chunk = Chunk(fitting(self.shape.numel(), self.device.type, NETWORK))

    @property
    def batch(self) -> int:
        """Items sent through the network at a time; halves when a GPU runs out of memory."""
        return self._chunk.size

    @batch.setter
    def batch(self, items: int) -> None:
        self._chunk = Chunk(integer(items, "batch", 1))

    def noise(self, x: Tensor, t: Time | Tensor) -> Tensor:
        """eps(x_t, t) = E[e | x_t], whatever the network predicts: (B, *shape) -> the same.

        t: an integer, or integers (B,), in 0 ... T-1; a number, or numbers, where the model's
        times are real. Differentiable in x. Cost: B network calls.
        """
        raise NotImplementedError

    def clean(self, x: Tensor, t: Time | Tensor) -> Tensor:
        """E[x_0 | x_t] = (x_t - n_t eps) / s_t. Shapes and cost of noise."""
        s, n = self.scales(x, t)
        return (x - n * self.noise(x, t)) / s

    def both(self, x: Tensor, t: Time | Tensor) -> tuple[Tensor, Tensor]:
        """`noise` and `clean`."""
        return self.noise(x, t), self.clean(x, t)

    @property
    def top(self) -> Time:
        """The time at which sampling begins: the noisiest at which x_0 can be told."""
        return self.levels.top

    def made(self, x: Tensor, t: Time) -> bool:
        """Whether x, which was made, may be an x_t; warns where it reaches beyond."""
        s, n = self.levels.pair(t)
        most = s * self.far + n * TALL
        if not math.isfinite(most) or (found := largest(x)) <= most:
            return True
        what = "x_0" if t == CLEAN else f"x_t at t = {t}"
        warnings.warn(
            f"the {what} that was made reaches {found:.3g}, and {most:.3g} is far: it is no "
            "picture, nor is what is made of it. So answers a network without training, or one "
            "whose eps is divided by next to no signal: begin at a smaller t",
            stacklevel=4,
        )
        return False

    @property
    def image_shape(self) -> torch.Size:
        """Of one image: what `encode` takes and `decode` gives."""
        return self.shape

    def encode(self, images: Tensor) -> Tensor:
        """Images to x_0: the identity for pixel models. Raises ValueError for no image."""
        return self.check(images, "images")

    def decode(self, x: Tensor) -> Tensor:
        """x_0 to images: the identity for pixel models."""
        return x

    def prompted(self, prompt: str, guidance: float = 1.0, negative: str = "") -> Self:
        """The same model with a text bound to it: ValueError, these models take no text."""
        raise ValueError(f"an unconditional model takes no prompt, got {prompt!r}: use it as it is")

    def chunked(self, x: Tensor, f: Callable[[Tensor, slice], Tensor]) -> Tensor:
        """f(x[rows], rows) on at most `batch` items at a time, as one."""
        full = torch.OutOfMemoryError
        return torch.cat([*self._chunk.parts(len(x), lambda rows: f(x[rows], rows), full)])

    def scales(self, x: Tensor, t: Time | Tensor) -> tuple[Tensor, Tensor]:
        """The levels s_t and n_t, shaped to multiply x. ValueError for a bad t."""
        sides = [1] * len(self.shape)
        # First the dtype: some devices hold no float64.
        s, n = (a.to(x.dtype).to(x.device) for a in self.levels(self.times(t, len(x))))
        return s.view(-1, *sides), n.view(-1, *sides)

    def times(self, t: Time | Tensor, batch: int) -> Tensor:
        """t as (1,) or (batch,), each a time of the model, else ValueError."""
        if not isinstance(t, Tensor) or not t.ndim:
            return self.levels.tensor([self.time(t)])
        whole, ends = self.levels.whole, (self.levels.bottom, self.levels.top)
        right = t.dtype in (torch.int32, torch.int64) if whole else t.is_floating_point()
        if not right or t.shape not in ((1,), (batch,)):
            kind = "an integer or integers" if whole else "a number or real numbers"
            raise ValueError(f"t is {kind} ({batch},), got {t.dtype} {t.shape}")
        kept = t.long().clamp(*ends) if whole else t.double().clamp(*ends)
        if not torch.allclose(kept.to(t), t, rtol=1e-6, atol=0):  # float32 rounds a time
            raise ValueError(f"t runs from {ends[0]} to {ends[1]}, got {t.tolist()}")
        return kept

    def time(self, t: Any) -> Time:
        """t as a time of the model, else ValueError: an integer in 0 ... T-1, or a number."""
        ends = self.levels.bottom, self.levels.top
        if self.levels.whole:
            return integer(t, "t", int(ends[0]), int(ends[1]))
        return number(t, "t", *ends)

    def check(self, x: Tensor, name: str = "x_t", shape: Sequence[int] | None = None) -> Tensor:
        """x, if it is a finite batch (B, *shape) of the right dtype and device; else ValueError.

        shape: of one item, default that of x_t.
        """
        shape = tuple(self.shape if shape is None else shape)
        words = f"(B, {', '.join(map(str, shape))})"
        if tensor(x, name, words).shape[1:] != shape or not len(x):
            hint = f": one item is {name}[None]" if tuple(x.shape) == shape else ""
            if name == "images" and x.ndim == 4 and x.shape[1] == shape[0]:
                hint = f": scale them, or mk.load_model(..., size={tuple(x.shape[2:])})"
            raise ValueError(f"{name} is a tensor {words}, got {tuple(x.shape)}{hint}")
        if x.dtype not in (torch.float32, self.dtype) or x.device.type != self.device.type:
            raise ValueError(
                f"{name} is {torch.float32} on {self.device}, got {x.dtype} on {x.device}: use "
                f"{name}.float() (bytes: {name} / 127.5 - 1) and {name}.to(p.device)"
            )
        if not finite(x):
            raise ValueError(f"{name} holds NaN or infinity")
        return x


def check_model(p: Any) -> None:
    """Raises ValueError, with what to do, for anything but a Model."""
    if isinstance(p, Model):
        return
    cure = 'mk.load_model("alice") loads one'
    if isinstance(p, torch.nn.Module) or hasattr(p, "unet"):
        cure = "mk.load_model(network, scheduler=...) or mk.load_model(pipeline) makes one of it"
    raise ValueError(f"p is a model, got {type(p).__name__}: {cure}")


def largest(x: Tensor) -> float:
    """max |x|; 0 where no value may be read."""
    try:
        return float(x.detach().abs().max())
    except RuntimeError:  # inside torch.func.vmap, as in `finite`
        return 0.0


def linear_schedule(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """abar_t of a linear beta schedule: the products of 1 - beta_s for s up to t.

    Args:
        steps: T.
        first: beta_0.
        last: beta_(T - 1).

    Returns: (T,), float64, falling.
    Cost: no pass.
    Source: DDPM, 2006.11239.

    >>> mk.diffusion.model.linear_schedule(3, 0.1, 0.3)
    tensor([0.9000, 0.7200, 0.5040], dtype=torch.float64)
    """
    return torch.cumprod(1 - torch.linspace(first, last, steps, dtype=torch.float64), 0)
