"""One interface to any denoiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from mathkit.arguments import integer, tensor
from mathkit.linear.chunks import NETWORK, Chunk, fitting

PREDICTIONS = ("epsilon", "v_prediction", "sample")


class Model:
    """A denoiser with its noise levels: what every function here takes as `p`.

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) e, for t = 0 ... T - 1. Subclasses give `noise`, or
    `noise` and `clean`; `unet` is the network, or None, and `revision` that of its weights.

    Args:
        shape: of one x_t, as (3, 64, 64).
        alphas_cumprod: abar_t, (T,), in (0, 1), falling; kept in float64 on the CPU.
        device: where x_t and the network live.
        dtype: of x_t.
    """

    unet: Any = None
    revision: str | None = None

    def __init__(
        self, shape: Sequence[int], alphas_cumprod: Tensor, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.shape, self.device, self.dtype = torch.Size(shape), device, dtype
        self.alphas_cumprod = alphas_cumprod.detach().double().cpu()
        self._chunk = Chunk(fitting(self.shape.numel(), device.type, NETWORK))

    @property
    def batch(self) -> int:
        """Items sent through the network at a time; halves when a GPU runs out of memory."""
        return self._chunk.size

    @batch.setter
    def batch(self, items: int) -> None:
        self._chunk = Chunk(integer(items, "batch", 1))

    def noise(self, x: Tensor, t: int | Tensor) -> Tensor:
        """eps(x_t, t) = E[e | x_t], whatever the network predicts: (B, *shape) -> the same.

        t: an integer, or integers (B,), in 0 ... T-1. Differentiable in x. Cost: B network calls.
        """
        raise NotImplementedError

    def clean(self, x: Tensor, t: int | Tensor) -> Tensor:
        """E[x_0 | x_t] = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t). Shapes and cost of noise."""
        s, n = self.scales(x, t)
        return (x - n * self.noise(x, t)) / s

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

    def scales(self, x: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t), shaped to multiply x. ValueError for a bad t."""
        abar = self.alphas_cumprod[self.times(t, len(x)).cpu()]
        sides = [1] * len(self.shape)
        # First the dtype: some devices hold no float64.
        s, n = (a.to(x.dtype).to(x.device) for a in (abar.sqrt(), (1 - abar).sqrt()))
        return s.view(-1, *sides), n.view(-1, *sides)

    def times(self, t: int | Tensor, batch: int) -> Tensor:
        """t as integers (1,) or (batch,), each in 0 ... T-1, else ValueError."""
        T = len(self.alphas_cumprod)
        if isinstance(t, Tensor) and t.ndim:
            if t.dtype not in (torch.int32, torch.int64) or t.shape not in ((1,), (batch,)):
                raise ValueError(f"t is an integer or integers ({batch},), got {t.dtype} {t.shape}")
            if t.min() < 0 or t.max() >= T:
                raise ValueError(f"t runs from 0 to {T - 1}, got {t.tolist()}")
            return t.long()
        return torch.tensor([self.time(t)])

    def time(self, t: Any) -> int:
        """t as an integer in 0 ... T-1, else ValueError."""
        return integer(t, "t", 0, len(self.alphas_cumprod) - 1)

    def check(self, x: Tensor, name: str = "x_t", shape: Sequence[int] | None = None) -> Tensor:
        """x, if it is a finite batch (B, *shape) of the right dtype and device; else ValueError.

        shape: of one item, default that of x_t.
        """
        shape = tuple(self.shape if shape is None else shape)
        words = f"(B, {', '.join(map(str, shape))})"
        if tensor(x, name, words).shape[1:] != shape or not len(x):
            hint = f": one item is {name}[None]" if tuple(x.shape) == shape else ""
            raise ValueError(f"{name} is a tensor {words}, got {tuple(x.shape)}{hint}")
        if x.dtype not in (torch.float32, self.dtype) or x.device.type != self.device.type:
            raise ValueError(
                f"{name} is {torch.float32} on {self.device}, got {x.dtype} on {x.device}: use "
                f"{name}.float() (bytes: {name} / 127.5 - 1) and {name}.to(p.device)"
            )
        if not check_finite(x):
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


def check_finite(x: Tensor) -> bool:
    """Is every number of x finite?"""
    try:
        return bool(x.isfinite().all())
    except RuntimeError:  # inside torch.func.vmap no value may be read
        return True


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
