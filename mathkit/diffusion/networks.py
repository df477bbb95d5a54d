"""A U-Net as a model, whatever it predicts."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.parameter import Parameter

from mathkit.arguments import FAR, pictures
from mathkit.diffusion.levels import Levels, Time
from mathkit.diffusion.predicted import Predicted


class UNetModel(Predicted):
    """A diffusers UNet2DModel as a Model.

    The network given is left as it is: `unet` shares its weights, has modules of its own, frozen
    and in eval mode, and can be differentiated in forward and reverse mode. prompt: the text bound
    to it; None where it takes none.

    Args:
        unet: the network.
        alphas_cumprod: abar_t (T,) of the schedule it was trained with, or any `Levels`.
        prediction: "epsilon", "v_prediction" (sqrt(abar) e - sqrt(1 - abar) x_0), "sample" (x_0),
            "score" or "velocity".
        revision: of the weights, as it is to be told.
        source: where they come from, as it is to be told.

    Raises ValueError for a network or a prediction of another kind.
    """

    prompt: str | None = None
    far = FAR

    def __init__(
        self,
        unet: nn.Module,
        alphas_cumprod: Tensor | Levels,
        prediction: str = "epsilon",
        revision: str | None = None,
        source: str = "in memory",
    ) -> None:
        unet = unwrapped(unet)
        parameter = next(unet.parameters())
        super().__init__(
            network_shape(unet.config), alphas_cumprod, parameter.device, parameter.dtype
        )
        self._predict(prediction)
        self.unet, self.revision = prepared(unet), revision
        self.source = source

    def encode(self, images: Tensor) -> Tensor:
        return pictures(self.check(images, "images", self.image_shape))

    def _output(self, x: Tensor, t: Time | Tensor) -> Tensor:
        return self._call(x, t)

    def _call(self, x: Tensor, t: Time | Tensor, *given: Tensor) -> Tensor:
        self.check(x)
        times = self.times(t, len(x)).to(x.device)
        given = tuple(g.expand(len(x), *g.shape[1:]) for g in given)
        if self.unet.training:  # with dropout eps would be no function of x_t
            self.unet.eval()
        return self.unet(x.to(self.dtype), times, *given).sample.to(x.dtype).contiguous()

    def __repr__(self) -> str:
        size = sum(w.numel() for w in self.unet.parameters()) / 1e6
        return (
            f"{type(self).__name__}({self.source}, {size:.1f} M parameters, "
            f"x_t {tuple(self.shape)}, {self.prediction}, {self.dtype} on {self.device}, "
            f"revision {self.revision})"
        )


def network_shape(config: Any) -> tuple[int, int, int]:
    """Shape of one x_t, of a U-Net's config. Raises ValueError for a network of another kind."""
    channels = getattr(config, "in_channels", None), getattr(config, "out_channels", None)
    more = {"class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type"}
    more = {key for key in more if getattr(config, key, None) is not None}
    if channels[0] != channels[1] or more:
        given = (
            ", ".join(f"{key} {getattr(config, key)}" for key in sorted(more)) or "no more input"
        )
        raise ValueError(
            "expected a U-Net with as many channels out as in, conditioned on a text or on nothing "
            f"(no classes, no second text, no image), got {channels[0]} -> {channels[1]}, {given}"
        )
    side = getattr(config, "sample_size", None)
    if side is None:
        raise ValueError("the U-Net's config has no sample_size: set it to the side of x_t")
    return (channels[0], *((side, side) if isinstance(side, int) else tuple(side)))


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside torch.compile's or DataParallel's wrapper."""
    for name in ("_orig_mod", "module"):
        network = getattr(network, name, network)
    return network


def prepared(network: nn.Module) -> nn.Module:
    """The same weights in modules of their own, frozen, in eval mode, fit for every derivative.

    Nothing is copied but the modules, and nothing of what is given changes.
    """
    shared: dict[int, Any] = {id(b): b for b in network.buffers()}
    shared |= {id(w): Parameter(w.detach(), requires_grad=False) for w in network.parameters()}
    twin = copy.deepcopy(network, shared).eval()
    for module in twin.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(_contiguous)
    return twin


def _contiguous(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # Forward mode needs it, for the tangent's layout; elsewhere channels-last is 15 % faster.
    forward_mode = getattr(forward_ad, "_current_level", 0) >= 0
    return (args[0].contiguous(),) if forward_mode else args
