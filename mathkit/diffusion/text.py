"""Latent models that are given a text, as Stable Diffusion, with the interface of `models`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from mathkit.arguments import FAR
from mathkit.diffusion.levels import Levels, Time
from mathkit.diffusion.networks import UNetModel, prepared
from mathkit.linear.chunks import NETWORK, fitting


class TextModel(UNetModel):
    """A latent text model, as Stable Diffusion 1.x and 2.x: eps(x_t, t, prompt) on x_t of a VAE.

    unet: a UNet2DConditionModel. vae: an AutoencoderKL; x_0 = scaling_factor times the mean of its
    encoder. embed: a text to what the network attends to, (1, tokens, width). `prompted` binds a
    text; until then it is the empty one, the null text of the training.
    """

    far = 4 * FAR  # of a latent

    def __init__(
        self,
        unet: nn.Module,
        alphas_cumprod: Tensor | Levels,
        vae: Any,
        embed: Callable[[str], Tensor],
        prediction: str = "epsilon",
        revision: str | None = None,
        source: str = "in memory",
    ) -> None:
        super().__init__(unet, alphas_cumprod, prediction, revision, source)
        if vae.config.latent_channels != self.shape[0]:
            raise ValueError(
                f"the U-Net takes {self.shape[0]} channels, its VAE gives "
                f"{vae.config.latent_channels}: they are of two models"
            )
        self.vae: Any = prepared(vae)
        self._embed = embed
        self.prompt, self.guidance, self.negative = "", 1.0, ""
        self._text = self._against = self._embedded("")
        # An image, not its latent, says what an item costs.
        self.batch = fitting(self.image_shape.numel(), self.device.type, NETWORK)

    @property
    def image_shape(self) -> torch.Size:
        config = self.vae.config
        scale = 2 ** (len(config.block_out_channels) - 1)
        return torch.Size((config.in_channels, *(scale * side for side in self.shape[1:])))

    def prompted(self, prompt: str, guidance: float = 1.0, negative: str = "") -> Self:
        """The same networks with `prompt` bound: noise, clean, h and every map are given the text.

        guidance: eps = eps(negative) + guidance (eps(prompt) - eps(negative)), classifier-free
        guidance (2207.12598); 1, the papers' value for maps and inversion, is eps(prompt) alone, 7
        or so is what pictures are drawn with. h is always that of the prompt; `inject` edits the h
        of both calls. Cost: two text encodings; with guidance, two network calls for each one.
        Raises ValueError for a prompt that is no text or is longer than the model reads.
        """
        if not math.isfinite(guidance):
            raise ValueError(f"guidance is a finite number, got {guidance}")
        p = copy.copy(self)
        p.prompt, p.guidance, p.negative = prompt, float(guidance), negative
        p._text, p._against = self._embedded(prompt), self._embedded(negative)
        return p

    def _embedded(self, prompt: str) -> Tensor:
        if not isinstance(prompt, str):
            raise ValueError(f"a prompt is one text, got {type(prompt).__name__}")
        with torch.no_grad():
            text = self._embed(prompt).to(self.device, self.dtype)
        width = self.unet.config.cross_attention_dim
        if text.shape[2] != width:
            raise ValueError(f"the U-Net reads texts of width {width}, got {tuple(text.shape)}")
        return text

    def _output(self, x: Tensor, t: Time | Tensor) -> Tensor:
        # The prompt first: h is read off the first call.
        out = self._call(x, t, self._text)
        if self.guidance == 1:
            return out
        other = self._call(x, t, self._against)
        return other + self.guidance * (out - other)

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to x_0 (B, *shape), the mean of the VAE's encoder; x_0 stays x_0.

        Raises ValueError for another size, range or dtype. Cost: one VAE encoding an image.
        """
        if isinstance(images, Tensor) and images.shape[1:] == self.shape:
            return self.check(images, "x_0")
        images = super().encode(images)
        means = [self.vae.encode(x.to(self.vae.dtype)).latent_dist.mode() for x in images.split(1)]
        return self.vae.config.scaling_factor * torch.cat(means).to(images.dtype).contiguous()

    def decode(self, x: Tensor) -> Tensor:
        """x_0 (B, *shape) to images (B, 3, H, W), about [-1, 1]; differentiable.

        Raises ValueError for another shape, dtype or device, NaN or infinity. Cost: one VAE
        decoding an item.
        """
        z = self.check(x, "x_0").to(self.vae.dtype) / self.vae.config.scaling_factor
        images = [self.vae.decode(one).sample for one in z.split(1)]
        return torch.cat(images).to(x.dtype).contiguous()

    def __repr__(self) -> str:
        guided = f", guidance {self.guidance:g}" if self.guidance != 1 else ""
        return f"{super().__repr__()[:-1]}, prompt {self.prompt!r}{guided})"
