"""A network of diffusers' as a model, whatever it predicts and is given."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from mathkit.arguments import FAR, pictures, told
from mathkit.diffusion.levels import Levels, Time
from mathkit.diffusion.predicted import Predicted
from mathkit.linear.smooth import forward_mode

Bind = Callable[[Any], Any]  # a prompt to what a network is given with x_t and t


class UNetModel(Predicted):
    """A network of diffusers' as a Model: a UNet2DModel, or one that is given a class or a text.

    The network given is left as it is: `unet` shares its weights, has modules of its own, frozen
    and in eval mode, and can be differentiated in forward and reverse mode. prompt: the text or
    the class bound to it; None where it takes none. A network that also learned its variances
    gives twice as many channels; the first half is its prediction.

    Args:
        unet: the network.
        alphas_cumprod: abar_t (T,) of the schedule it was trained with, or any `Levels`.
        prediction: "epsilon", "v_prediction" (sqrt(abar) e - sqrt(1 - abar) x_0), "sample" (x_0),
            "score" or "velocity".
        revision: of the weights, as it is to be told.
        source: where they come from, as it is to be told.
        embed: a prompt to what the network is given by name, tensors (1, ...) or dictionaries of
            such; "" is the null prompt, if it was trained with one. None where it takes none.

    Raises ValueError for a network or a prediction of another kind.
    """

    prompt: Any = None
    guidance, negative = 1.0, ""
    far = FAR

    def __init__(
        self,
        unet: nn.Module,
        alphas_cumprod: Tensor | Levels,
        prediction: str = "epsilon",
        revision: str | None = None,
        source: str = "in memory",
        embed: Bind | None = None,
    ) -> None:
        unet = unwrapped(unet)
        parameter = next(unet.parameters())
        shape = network_shape(unet.config)
        super().__init__(shape, alphas_cumprod, parameter.device, parameter.dtype)
        self._predict(prediction)
        self.unet, self.revision = prepared(unet), revision
        self.source, self._embed = source, embed
        self._given: Any = {} if embed is None else None
        self._against: Any = None

    def prompted(self, prompt: Any, guidance: float = 1.0, negative: Any = "") -> Self:
        """The same networks with `prompt` bound: noise, clean, h and every map are given it.

        prompt: a text, or a class by number. guidance: eps = eps(negative) + guidance (eps(prompt)
        - eps(negative)), classifier-free guidance (2207.12598); 1, the papers' value for maps and
        inversion, is eps(prompt) alone, 7 or so is what pictures are drawn with. negative: "" is
        the null prompt of the training. h is always that of the prompt; `inject` edits the h of
        both calls. Cost: two text encodings; with guidance, two network calls for each one. Raises
        ValueError for a prompt of another kind or that is longer than the model reads.
        """
        if self._embed is None:
            return super().prompted(prompt, guidance, negative)
        if not math.isfinite(guidance):
            raise ValueError(f"guidance is a finite number, got {guidance}")
        p = copy.copy(self)
        p.prompt, p.guidance, p.negative = prompt, float(guidance), negative
        p._given = self._bound(prompt)
        p._against = self._bound(negative, True) if guidance != 1 or negative != "" else None
        return p

    def _bound(self, prompt: Any, against: bool = False) -> Any:
        """What the network is given with this prompt; against: as the negative one."""
        assert self._embed is not None
        with torch.no_grad():
            return _each(self._embed(prompt), lambda g: _moved(g, self.device, self.dtype))

    def encode(self, images: Tensor) -> Tensor:
        return pictures(self.check(images, "images", self.image_shape))

    def _output(self, x: Tensor, t: Time | Tensor) -> Tensor:
        # The prompt first: h is read off the first call.
        out = self._call(x, t, self._given)
        if self.guidance == 1:
            return out
        other = self._call(x, t, self._against)
        return other + self.guidance * (out - other)

    def _call(self, x: Tensor, t: Time | Tensor, given: Any) -> Tensor:
        self.check(x)
        times = self.times(t, len(x)).to(x.device)
        if given is None:
            raise ValueError("the network is given a class: bind one, p.prompted(0)")
        given = _each(given, lambda g: g.expand(len(x), *g.shape[1:]))
        if self.unet.training:  # with dropout eps would be no function of x_t
            self.unet.eval()
        out = self.unet(x.to(self.dtype), times, **given).sample
        return out[:, : self.shape[0]].to(x.dtype).contiguous()

    def __repr__(self) -> str:
        size = sum(w.numel() for w in self.unet.parameters()) / 1e6
        bound = "" if self.prompt is None else f", prompt {self.prompt!r}"
        bound += f", guidance {self.guidance:g}" if self.guidance != 1 else ""
        return (
            f"{type(self).__name__}({self.source}, {size:.1f} M parameters, "
            f"x_t {tuple(self.shape)}, {self.prediction}, {self.dtype} on {self.device}, "
            f"revision {self.revision}{bound})"
        )


def _each(given: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """change of every tensor in what a network is given."""
    if isinstance(given, dict):
        return {name: _each(part, change) for name, part in given.items()}
    return change(given)


def _moved(given: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return given.to(device, dtype if given.is_floating_point() else given.dtype)


def network_shape(config: Any) -> tuple[int, int, int]:
    """Shape of one x_t, of a network's config. Raises ValueError for a network of another kind."""
    given: Any = getattr(config, "in_channels", None)
    gives = getattr(config, "out_channels", None)
    if other := _other_kind(config, given, gives):
        raise ValueError(
            "expected a network with as many channels out as in (or twice as many, with learned "
            "variances), conditioned on a text, on a class or on nothing, got "
            f"{given} -> {gives} (in_channels -> out_channels): {other}"
        )
    side = getattr(config, "sample_size", None)
    if side is None:
        raise ValueError("the network's config has no sample_size: set it to the side of x_t")
    sides = [side] * 2 if isinstance(side, int) else list(side)
    if len(sides) != 2 or not all(isinstance(s, int) and 0 < s <= WIDEST for s in sides):
        raise ValueError(f"the network's sample_size is one or two sides of x_t, got {side}")
    high, wide = sides
    halved = len(getattr(config, "down_block_types", None) or ()) - 1
    pixel = getattr(config, "cross_attention_dim", None) is None  # the others pad where they must
    if pixel and halved > 0 and (high % 2**halved or wide % 2**halved):
        raise ValueError(
            f"the network's x_t has sides {high} x {wide}, and it halves them {halved} times: "
            f"a sample_size in multiples of {2**halved} comes back as it was"
        )
    return int(given), high, wide


KNOWN = {int, float, bool, str, list, tuple, type(None), ..., np.ndarray}
WIDEST, PADDING = 4096, 16  # the largest setting that is no side of a weight; the largest padding


def check_settings(config: dict[str, Any], name: str, place: Path | str) -> None:
    """Raises ValueError for a setting of another type than this class of diffusers' takes; whole
    numbers count something, and are not negative."""
    import diffusers

    for key, taken in inspect.signature(getattr(diffusers, name).__init__).parameters.items():
        hint = taken.annotation
        kinds = _kinds(hint) | {type(taken.default)}
        if key in config and kinds <= KNOWN and not _fits(config[key], kinds, get_origin(hint)):
            words = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
            words += " >= 0" if int in kinds else ""
            raise ValueError(f"{place}: {key} is {words}, got {told(config[key])}")


def _kinds(hint: Any) -> set[Any]:
    """The types that an annotation names, and those of the items of a tuple."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {str}
    found = set().union(*map(_kinds, parts)) if parts else {origin or hint}
    return found | ({origin} & {tuple, list})


def _fits(value: Any, kinds: set[Any], origin: Any) -> bool:
    """Whether a setting is of these types; null too, except for a number."""
    if value is None:
        return not kinds <= {int, float}
    if not (kinds & {tuple, list} if isinstance(value, list | tuple) else origin is not tuple):
        return False
    items = _items(value)
    if float in kinds:
        items = [x for x in items if not (type(x) in (int, float) and abs(x) < math.inf)]
    kinds = kinds - {list, tuple, float}
    return all(type(x) in kinds and not (type(x) is int and x < 0) for x in items)


def _items(value: Any, depth: int = 4) -> list[Any]:
    """What a list and the lists in it hold."""
    if isinstance(value, list | tuple) and depth:
        return [x for item in value for x in _items(item, depth - 1)]
    return [value.item() if isinstance(value, np.generic) else value]


def check_sizes(config: dict[str, Any], weights: dict[str, Tensor], place: Path) -> None:
    """Raises ValueError for a setting that these weights cannot have: a network is built before
    it is compared with them, and would be larger than they are."""
    widest = max([WIDEST, *(side for w in weights.values() for side in w.shape)])
    for key, value in config.items():
        most, items = widest, _items(value)
        if "layers" in key:
            most = len(weights)
        elif "padding" in key:
            most = PADDING
        if len(items) > len(weights) or any(type(x) is int and x > most for x in items):
            raise ValueError(
                f"{place}: {key} is at most {most} by the weights beside it, got {told(value)}"
            )


def _other_kind(config: Any, given: int | None, gives: int | None) -> str:
    """What a network is, where it is of another kind than we read; else nothing."""
    if getattr(config, "time_cond_proj_dim", None) is not None:
        return "a latent consistency model (LCM, time_cond_proj_dim), distilled, is no denoiser"
    kin = {9: "inpainting, given a mask and a picture", 7: "an upscaler, given a picture"}
    kin |= {5: "depth2img, given a map of depths", 8: "InstructPix2Pix, given a picture"}
    if given in kin and gives == 4:
        return f"{kin[given]} (or one of its kin)"
    more = {
        "class_embed_type": (None,), "addition_embed_type": (None, "text_time"),
        "encoder_hid_dim_type": (None,), "encoder_hid_dim": (None,),
    }  # fmt: skip
    found = {key: getattr(config, key, None) for key in more}
    words = [f"{key} {value}" for key, value in found.items() if value not in more[key]]
    if getattr(config, "cross_attention_dim", None) and getattr(config, "num_class_embeds", None):
        words.append(f"num_class_embeds {config.num_class_embeds} beside a text")
    if words:
        return f"{', '.join(words)}, an input that mathkit does not give"
    return "" if given is not None and gives in (given, 2 * given) else "no such kind"


def unwrapped(network: Any) -> Any:
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
    return (args[0].contiguous(),) if forward_mode() else args
