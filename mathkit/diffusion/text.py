"""Latent models, as Stable Diffusion and DiT: x_t of a VAE, given a text or a class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mathkit.arguments import FAR, number
from mathkit.diffusion.levels import Levels
from mathkit.diffusion.networks import Bind, UNetModel, prepared
from mathkit.linear.chunks import NETWORK, fitting
from mathkit.linear.smooth import smoothly


class LatentModel(UNetModel):
    """A model of the latents of a VAE, as DiT: eps(x_t, t), given a class or nothing.

    vae: an AutoencoderKL; x_0 = scaling_factor times the mean of its encoder. embed: as of
    `UNetModel`.
    """

    far = 4 * FAR  # of a latent

    def __init__(
        self,
        unet: nn.Module,
        alphas_cumprod: Tensor | Levels,
        vae: Any,
        embed: Bind | None = None,
        prediction: str = "epsilon",
        revision: str | None = None,
        source: str = "in memory",
    ) -> None:
        super().__init__(unet, alphas_cumprod, prediction, revision, source, embed)
        if vae.config.latent_channels != self.shape[0]:
            raise ValueError(
                f"the network takes {self.shape[0]} channels, its VAE gives "
                f"{vae.config.latent_channels}: they are of two models"
            )
        number(vae.config.scaling_factor, "the scaling_factor of a VAE", 1e-6)
        self.vae: Any = prepared(vae)
        # An image, not its latent, says what an item costs.
        self.batch = fitting(self.image_shape.numel(), self.device.type, NETWORK)

    @property
    def image_shape(self) -> torch.Size:
        config = self.vae.config
        scale = 2 ** (len(config.block_out_channels) - 1)
        return torch.Size((config.in_channels, *(scale * side for side in self.shape[1:])))

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to x_0 (B, *shape), the mean of the VAE's encoder; x_0 stays x_0.

        Raises ValueError for another size, range or dtype. Cost: one VAE encoding an image.
        """
        if isinstance(images, Tensor) and images.shape[1:] == self.shape:
            return self.check(images, "x_0")
        images = super().encode(images)
        with smoothly(images):
            means = [
                self.vae.encode(x.to(self.vae.dtype)).latent_dist.mode() for x in images.split(1)
            ]
        return self.vae.config.scaling_factor * torch.cat(means).to(images.dtype).contiguous()

    def decode(self, x: Tensor) -> Tensor:
        """x_0 (B, *shape) to images (B, 3, H, W), about [-1, 1]; differentiable.

        Raises ValueError for another shape, dtype or device, NaN or infinity. Cost: one VAE
        decoding an item.
        """
        z = self.check(x, "x_0").to(self.vae.dtype) / self.vae.config.scaling_factor
        with smoothly(x):
            images = [self.vae.decode(one).sample for one in z.split(1)]
        return torch.cat(images).to(x.dtype).contiguous()


class TextModel(LatentModel):
    """A latent text model, as Stable Diffusion 1.x, 2.x and XL: eps(x_t, t, prompt).

    unet: a UNet2DConditionModel. embed: a text to what the network attends to, (1, tokens, width),
    or to all that it is given by name. `prompted` binds a text; until then it is the empty one, the
    null text of the training. zeros: whether an empty negative text is given as zeros.
    """

    zeros = False

    def __init__(self, *args: Any, **how: Any) -> None:
        super().__init__(*args, **how)
        self.prompt, self._given = "", self._bound("")

    def _bound(self, prompt: Any, against: bool = False) -> Any:
        if not isinstance(prompt, str):
            raise ValueError(f"a prompt is one text, got {type(prompt).__name__}")
        given = super()._bound(prompt)
        given = given if isinstance(given, dict) else {"encoder_hidden_states": given}
        text, width = given["encoder_hidden_states"], self.unet.config.cross_attention_dim
        if text.shape[2] != width:
            raise ValueError(f"the network reads texts of width {width}, got {tuple(text.shape)}")
        if against and self.zeros and not prompt:
            given = _silent(given)
        return given


def _silent(given: Any) -> Any:
    """Zeros for the texts; sizes, told as time_ids, remain."""
    return {
        name: _silent(part) if isinstance(part, dict)
        else part if name == "time_ids" else torch.zeros_like(part)
        for name, part in given.items()
    }  # fmt: skip
