"""A model of real galaxies, read from the file of another package: an MLP-Mixer that gives scores.

M. L. Sampson, P. Melchior, C. Ward and S. Birmingham trained it on galaxies of the Hyper
Suprime-Cam survey (2401.07313). Their wheel galaxygrad 0.1.9 holds the weights; it is never
imported, and what it asks for (JAX) is not needed. It names no licence: we keep no copy.
"""

from __future__ import annotations

import importlib.metadata
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from mathkit import data
from mathkit.diffusion.networks import UNetModel

PACKAGE, VERSION = "galaxygrad", "0.1.9"
INSTALL = f"pip install --no-deps {PACKAGE}=={VERSION}"
# Name -> the wheel's file and its SHA-256: galaxies of 64 x 64 pixels, and of 32 x 32.
FILES = {
    "galaxies": (
        "eqx_hsc_ScoreNet64.eqx",
        "4758114b1b77e4640ca7b834a976202aeb126fd7332ec07842af46d72c6b2e01",
    ),
    "galaxies-32": (
        "eqx_hsc_ScoreNet32.eqx",
        "cb926562fcdfcbd33952fea8b2394074e75cb652fb7824c4c809a5f89a0a6532",
    ),
}
STEPS, CLEANEST = 1000, 0.002  # the noise levels: how many, and the least time
WIDTH = 0.1  # x_0 = log(flux + 1) / WIDTH
BRIGHTEST, FAINT = 10.0, 0.5  # the x_0 shown as white, and where the scale turns logarithmic
BLOCK = 12  # arrays of a block in the file


class MixerBlock(nn.Module):
    """Tokens y (B, patches, channels) + an MLP over patches, then + an MLP over channels."""

    def __init__(self, channels: int, patches: int, wide: int, deep: int) -> None:
        super().__init__()
        self.over_patches = mlp(patches, wide)
        self.over_channels = mlp(channels, deep)
        self.norm1 = nn.LayerNorm((channels, patches))
        self.norm2 = nn.LayerNorm((patches, channels))

    def forward(self, y: Tensor) -> Tensor:
        y = y.transpose(1, 2)
        y = (y + self.over_patches(self.norm1(y))).transpose(1, 2)
        return y + self.over_channels(self.norm2(y))


def mlp(size: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, size))


class Mixer(nn.Module):
    """The network, with the manners of a diffusers U-Net: `mixer(x, times).sample` is eps.

    Its output is the score of x_t, so eps = -sqrt(1 - abar) score. `levels` (STEPS,) are its times
    tau in (0, last]; time enters as a second channel, tau / last.
    """

    def __init__(
        self, channels: int, patch: int, side: int, blocks: int, wide: int, deep: int, last: float
    ) -> None:
        super().__init__()
        self.config = SimpleNamespace(in_channels=1, out_channels=1, sample_size=side)
        self.last, patches = last, (side // patch) ** 2
        self.conv_in = nn.Conv2d(2, channels, patch, stride=patch)
        self.blocks = nn.Sequential(
            *(MixerBlock(channels, patches, wide, deep) for _ in range(blocks))
        )
        self.norm = nn.LayerNorm((channels, patches))
        self.conv_out = nn.ConvTranspose2d(channels, 1, patch, stride=patch)
        self.levels = times(last)  # no buffer: these stay float64 whatever the weights become

    def forward(self, x: Tensor, t: Tensor) -> SimpleNamespace:
        tau = self.levels[t.cpu()].view(-1, 1, 1, 1)
        tau, noise = (a.to(x.dtype).to(x.device) for a in (tau, (-torch.expm1(-tau)).sqrt()))
        return SimpleNamespace(sample=-noise * self.score(x, tau))

    def score(self, x: Tensor, tau: Tensor) -> Tensor:
        """The gradient of log p(x_tau): x (B, 1, side, side), tau (B, 1, 1, 1) -> as x."""
        y = self.conv_in(torch.cat([x, (tau / self.last).expand_as(x)], 1))
        grid = y.shape[2:]
        tokens = self.blocks(y.flatten(2).transpose(1, 2))
        return self.conv_out(self.norm(tokens.transpose(1, 2)).unflatten(2, grid))


def times(last: float) -> Tensor:
    """STEPS times from CLEANEST to `last`, even in log abar / (1 - abar), abar = exp(-time).

    Float64. So a grid of equal steps in t has equal steps in the logarithm of signal over noise:
    in time itself, abar would change too fast at its end.
    """
    first, end = (math.log(math.expm1(tau)) for tau in (CLEANEST, last))
    return nn.functional.softplus(torch.linspace(first, end, STEPS, dtype=torch.float64))


class GalaxyModel(UNetModel):
    """The network of a file as a Model: x_0 = log(flux + 1) / .1, one channel.

    Images, what `decode` gives, are 2 asinh(x_0 / .5) / asinh(10 / .5) - 1: -1 is no light, 1 is
    x_0 = 10, and faint light is lifted, as astronomers show it (Lupton and others 1999). `flux`
    tells the light itself.
    """

    far = 2 * BRIGHTEST

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 1, side, side), as `decode` gives them, to x_0. ValueError for x_0 itself."""
        images = self.check(images, "images", self.image_shape)
        if float(images.detach().max()) > 2:
            raise ValueError(
                f"images lie about [-1, 1], got {float(images.max()):.3g}: of x_0 p.decode makes "
                "images"
            )
        return FAINT * torch.sinh((images + 1) / 2 * math.asinh(BRIGHTEST / FAINT))

    def decode(self, x: Tensor) -> Tensor:
        return 2 * torch.asinh(x / FAINT) / math.asinh(BRIGHTEST / FAINT) - 1


def flux(x: Tensor) -> Tensor:
    """The light of x_0: exp(.1 x_0) - 1, in the survey's units."""
    return torch.expm1(WIDTH * x)


def load_galaxies(name: str, device: torch.device, dtype: torch.dtype) -> GalaxyModel:
    """The model of this name from the installed wheel.

    Raises ImportError with the one command where it is not installed, ValueError where it is
    another version or its file another.
    """
    file, known = FILES[name]
    path = wheel_file(file)
    digest = data.sha256(path)
    if digest != known:
        raise ValueError(
            f"{path} is not the file of {PACKAGE} {VERSION}: expected SHA-256 {known}, got "
            f"{digest}. Install it again: {INSTALL} --force-reinstall"
        )
    return as_model(read_mixer(path).to(device, dtype), f"{PACKAGE} {VERSION}, {file}", digest)


def as_model(mixer: Mixer, source: str, digest: str) -> GalaxyModel:
    abar = torch.exp(-times(mixer.last))
    return GalaxyModel(mixer, abar, revision=f"sha256:{digest}", source=source)


def wheel_file(file: str) -> Path:
    """Where the installed wheel keeps a file. Raises as `load_galaxies` does."""
    try:
        wheel = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(
            f"the galaxies are in another package, which is not installed: {INSTALL} (37 MB). "
            'The built-in model, mk.load_model("alice"), needs nothing'
        ) from None
    if wheel.version != VERSION:
        raise ValueError(
            f"the weights are those of {PACKAGE} {VERSION}, got {wheel.version}, which may hold "
            f"none: {INSTALL}"
        )
    path = Path(str(wheel.locate_file(f"{PACKAGE}/{file}")))
    if not path.is_file():
        raise ValueError(f"{path} is missing: install it again, {INSTALL} --force-reinstall")
    return path


def installed() -> bool:
    """Whether the wheel is installed."""
    try:
        return importlib.metadata.version(PACKAGE) == VERSION
    except importlib.metadata.PackageNotFoundError:
        return False


def read_mixer(path: str | Path) -> Mixer:
    """The network of a file of arrays, one after the other, as equinox writes its leaves.

    Raises ValueError for a file of another layout, or numbers that are not finite.
    """
    arrays = read_arrays(Path(path))
    blocks, rest = divmod(len(arrays) - 7, BLOCK)
    if rest or blocks < 1 or (arrays[0].ndim, arrays[-3].ndim, arrays[-1].ndim) != (4, 2, 0):
        shapes = ", ".join(str(a.shape) for a in arrays[:4])
        raise ValueError(
            f"{path} is no such network: expected conv_in, conv_out, blocks of {BLOCK} arrays, a "
            f"norm and the last time, got {len(arrays)} arrays, {shapes}, ..."
        )
    channels, _, patch, _ = arrays[0].shape
    side = patch * math.isqrt(arrays[-3].shape[1])
    wide, deep = len(arrays[4]), len(arrays[8])
    mixer = Mixer(channels, patch, side, blocks, wide, deep, float(arrays[-1]))
    state = dict(zip(_names(blocks), map(torch.from_numpy, arrays), strict=False))
    # The transposed convolution of the other library: axes exchanged, kernel turned by half a turn.
    state["conv_out.weight"] = state["conv_out.weight"].transpose(0, 1).flip(2, 3).contiguous()
    wanted = mixer.state_dict()
    try:
        state = {name: state[name].reshape(wanted[name].shape) for name in wanted}
    except RuntimeError as error:
        raise ValueError(f"{path} is no such network: {error}") from None
    mixer.load_state_dict(state)
    return mixer


def read_arrays(path: Path) -> list[np.ndarray]:
    """The arrays of a file of .npy records; no pickle is read."""
    arrays = []
    with open(path, "rb") as file:
        size = path.stat().st_size
        while file.tell() < size:
            try:
                arrays.append(np.load(file, allow_pickle=False))
            except (ValueError, EOFError) as error:
                raise ValueError(f"{path} is no whole file of arrays: {error}") from None
            if not np.isfinite(arrays[-1]).all():
                raise ValueError(f"{path} holds NaN or infinity in array {len(arrays)}")
    return arrays


def _names(blocks: int) -> list[str]:
    """The parameters in the order of the file; the last time is no parameter."""
    parts = ["over_patches.0", "over_patches.2", "over_channels.0", "over_channels.2"]
    inner = [f"blocks.{i}.{part}" for i in range(blocks) for part in (*parts, "norm1", "norm2")]
    modules = ["conv_in", "conv_out", *inner, "norm"]
    return [f"{module}.{kind}" for module in modules for kind in ("weight", "bias")]
