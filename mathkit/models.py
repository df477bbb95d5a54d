"""One interface to any denoiser: a U-Net whatever it predicts, and the exact Gaussian one.

x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) e, t in 0 ... T-1.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

PREDICTIONS = ("epsilon", "v_prediction", "sample")
# Unclipped samples overshoot [-1, 1]; beyond this no image is meant.
FAR = 5.0
# Numbers of x that keep a device busy: a larger batch only costs memory.
BUSY = {"cpu": 2**18, "cuda": 2**23}


class Model:
    """A denoiser with its schedule: what every function here takes as `p`.

    shape: of one x_t. alphas_cumprod: abar_t, float64 on the CPU, (T,). unet: the network, or None.
    revision: of the weights. batch: items sent through the network at a time (halves when a GPU
    runs out of memory). Subclasses give `noise`, or `noise` and `clean`.
    """

    unet: Any = None
    revision: str | None = None

    def __init__(
        self, shape: Sequence[int], alphas_cumprod: Tensor, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.shape, self.device, self.dtype = torch.Size(shape), device, dtype
        self.alphas_cumprod = alphas_cumprod.detach().double().cpu()
        self.batch = max(1, BUSY.get(device.type, 2**18) // self.shape.numel())

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

    def prompted(self, prompt: str, guidance: float = 1.0, negative: str = "") -> UNetModel:
        """The same model with a text bound to it: ValueError, these models take no text."""
        raise ValueError(f"an unconditional model takes no prompt, got {prompt!r}: use it as it is")

    def chunked(self, x: Tensor, f: Callable[[Tensor, slice], Tensor]) -> Tensor:
        """f(x[rows], rows) on at most `batch` items at a time, which halves on a full GPU."""
        parts: list[Tensor] = []
        done = 0
        while done < len(x):
            rows = slice(done, min(done + self.batch, len(x)))
            try:
                parts.append(f(x[rows], rows))
            except torch.OutOfMemoryError:
                if self.batch == 1:
                    raise
                self.batch = max(1, (rows.stop - done) // 2)
                continue
            done = rows.stop
        return torch.cat(parts)

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
        T = len(self.alphas_cumprod)
        try:
            t = operator.index(t)
        except TypeError:
            raise ValueError(f"t is an integer in 0 ... {T - 1}, got {t!r}") from None
        if not 0 <= t < T:
            raise ValueError(f"t runs from 0 to {T - 1}, got {t}; the clean image is not a step")
        return t

    def check(self, x: Tensor, name: str = "x_t", shape: Sequence[int] | None = None) -> Tensor:
        """x, if it is a finite batch (B, *shape) of the right dtype and device; else ValueError.

        shape: of one item, default that of x_t.
        """
        shape = tuple(self.shape if shape is None else shape)
        if not isinstance(x, Tensor) or x.shape[1:] != shape or not len(x):
            found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            hint = f": one item is {name}[None]" if found == shape else ""
            raise ValueError(
                f"{name} is a tensor (B, {', '.join(map(str, shape))}), got {found}{hint}"
            )
        if x.dtype not in (torch.float32, self.dtype) or x.device.type != self.device.type:
            raise ValueError(
                f"{name} is {torch.float32} on {self.device}, got {x.dtype} on {x.device}: use "
                f"{name}.float() (bytes: {name} / 127.5 - 1) and {name}.to(p.device)"
            )
        if not _finite(x):
            raise ValueError(f"{name} holds NaN or infinity")
        return x


def _finite(x: Tensor) -> bool:
    try:
        return bool(x.isfinite().all())
    except RuntimeError:  # inside torch.func.vmap no value may be read
        return True


class UNetModel(Model):
    """A diffusers UNet2DModel, frozen and in eval mode, as a Model.

    prediction: "epsilon", "v_prediction" (sqrt(abar) e - sqrt(1 - abar) x_0) or "sample" (x_0).
    The network is kept, not copied; it can be differentiated in forward and reverse mode.
    prompt: the text bound to it; None where it takes none.
    """

    prompt: str | None = None

    def __init__(
        self,
        unet: nn.Module,
        alphas_cumprod: Tensor,
        prediction: str = "epsilon",
        revision: str | None = None,
        source: str = "in memory",
    ) -> None:
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction is one of {', '.join(PREDICTIONS)}, got {prediction!r}")
        parameter = next(unet.parameters())
        super().__init__(
            network_shape(unet.config), alphas_cumprod, parameter.device, parameter.dtype
        )
        self.unet, self.prediction, self.revision = prepared(unet), prediction, revision
        self.source = source

    def encode(self, images: Tensor) -> Tensor:
        values = self.check(images, "images", self.image_shape).detach()
        low, high = float(values.min()), float(values.max())
        if low < -FAR or high > FAR:
            raise ValueError(
                f"images are float32 in [-1, 1], got values from {low:.3g} to {high:.3g}: "
                "of 0 ... 255 take images / 127.5 - 1"
            )
        return images

    def _output(self, x: Tensor, t: int | Tensor) -> Tensor:
        return self._call(x, t)

    def _call(self, x: Tensor, t: int | Tensor, *given: Tensor) -> Tensor:
        self.check(x)
        times = self.times(t, len(x)).to(x.device)
        given = tuple(g.expand(len(x), *g.shape[1:]) for g in given)
        return self.unet(x.to(self.dtype), times, *given).sample.to(x.dtype).contiguous()

    def noise(self, x: Tensor, t: int | Tensor) -> Tensor:
        out, (s, n) = self._output(x, t), self.scales(x, t)
        if self.prediction == "v_prediction":
            return n * x + s * out
        return out if self.prediction == "epsilon" else (x - s * out) / n

    def clean(self, x: Tensor, t: int | Tensor) -> Tensor:
        out, (s, n) = self._output(x, t), self.scales(x, t)
        if self.prediction == "v_prediction":
            return s * x - n * out
        return out if self.prediction == "sample" else (x - n * out) / s

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


def prepared(network: nn.Module) -> nn.Module:
    """The network itself, frozen, in eval mode, and fit for derivatives in forward mode.

    Forward mode needs the input of every GroupNorm contiguous.
    """
    network = network.eval().requires_grad_(False)
    if next(network.parameters()).device.type == "cpu":
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in network.modules():
        if isinstance(module, nn.GroupNorm) and _contiguous not in _hooks(module):
            module.register_forward_pre_hook(_contiguous)
    return network


def _hooks(module: nn.Module) -> list[Any]:
    return list(module._forward_pre_hooks.values())


def _contiguous(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # Forward mode needs it, for the tangent's layout; elsewhere channels-last is 15 % faster.
    forward_mode = getattr(forward_ad, "_current_level", 0) >= 0
    return (args[0].contiguous(),) if forward_mode else args


class GaussianModel(Model):
    """The exact denoiser of x_0 ~ N(mean, cov): every derived quantity has a closed form.

    mean: (*shape), its dtype is the model's; cov: (n, n), symmetric, no negative eigenvalue, n =
    numel of mean. alphas_cumprod: default 1,000 steps, beta linear from 1e-4 to .02.
    With cov = Q diag(l) Q^T: E[x_0 | x_t] = mean + Q g Q^T (x_t - sqrt(abar) mean),
    g = sqrt(abar) l / (abar l + 1 - abar), so its Jacobian has the eigenvectors of cov.
    """

    def __init__(self, mean: Tensor, cov: Tensor, alphas_cumprod: Tensor | None = None) -> None:
        n = mean.numel()
        finite = _finite(cov) and _finite(mean)
        if cov.shape != (n, n) or not torch.allclose(cov, cov.T) or not finite:
            raise ValueError(f"cov is a finite symmetric ({n}, {n}) matrix, got {tuple(cov.shape)}")
        variances, axes = torch.linalg.eigh(cov.double().cpu())
        if variances[0] < -1e-6 * variances[-1].abs():
            raise ValueError(f"cov has a negative eigenvalue, {float(variances[0]):.3g}")
        abar = linear_schedule() if alphas_cumprod is None else alphas_cumprod
        super().__init__(mean.shape, abar, mean.device, mean.dtype)
        self.mean, self.variances, self.axes = mean, variances.clamp_min(0), axes.to(mean)

    def noise(self, x: Tensor, t: int | Tensor) -> Tensor:
        abar = self._abar(x, t)
        return self._filter(x, t, (1 - abar).sqrt() / (abar * self.variances + 1 - abar))

    def clean(self, x: Tensor, t: int | Tensor) -> Tensor:
        abar = self._abar(x, t)
        gain = abar.sqrt() * self.variances / (abar * self.variances + 1 - abar)
        return self.mean + self._filter(x, t, gain)

    def _abar(self, x: Tensor, t: int | Tensor) -> Tensor:
        return self.alphas_cumprod[self.times(t, len(self.check(x))).cpu(), None]

    def _filter(self, x: Tensor, t: int | Tensor, gain: Tensor) -> Tensor:
        away = (x - self.scales(x, t)[0] * self.mean).flatten(1).to(self.axes)
        gain = gain.to(self.axes.dtype).to(self.axes.device)
        return (away @ self.axes * gain @ self.axes.T).to(x).view_as(x)


def linear_schedule(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """abar_t of a linear beta schedule (DDPM, 2006.11239), float64 (steps,)."""
    return torch.cumprod(1 - torch.linspace(first, last, steps, dtype=torch.float64), 0)
