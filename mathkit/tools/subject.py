"""A model, a subject and their local bases: what the experiments of the papers begin with."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mathkit.diffusion.edits import move
from mathkit.diffusion.encoder import MAPS, bottleneck
from mathkit.diffusion.load import load_model
from mathkit.diffusion.networks import UNetModel
from mathkit.diffusion.sampling import finished, invert, start
from mathkit.linear.jacobian import jacobian
from mathkit.linear.spectrum import as_smooth
from mathkit.linear.subspaces import unit
from mathkit.linear.svd import svd
from mathkit.linear.triplets import SVD, any_of_equals
from mathkit.tools import atlas


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a report is made with; with the model, all that is needed to repeat it.

    Args:
        model: as `mk.load_model` takes it; revision: of a Hub model.
        image: a picture file, cut to a square and scaled, the subject in place of sample 0.
        prompt: of a text model, or a class; other: the text it is compared with.
        guidance, negative: as `p.prompted` takes them, with the prompt.
        region: left, top, right, bottom of the masked edits, shares of the side in [0, 1].
        samples: how many are compared.
        times: in 0 ... T - 1, each moved to the nearest of the sampling grid; default .9, .7 and .5
            of the way up.
        k: directions of a basis.
        strength: |x_t' - x_t| / |x_t| of the largest move.
        steps: network calls of a sample and of an inversion from T - 1.
        tol: of each svd, in s_1.
        seed: of the first sample.
        device: "auto", "cpu", "cuda" or "mps"; dtype: "float32", "float16" or "bfloat16".
        at: the layer whose output is h, by its name in the network; default its bottleneck.

    Raises ValueError for a region that is none.
    """

    model: str = "alice"
    revision: str | None = None
    image: str | None = None
    prompt: str | None = None
    other: str = ""
    guidance: float = 1.0
    negative: str = ""
    region: tuple[float, float, float, float] = (0.25, 0.25, 0.75, 0.75)
    samples: int = 3
    times: tuple[int, ...] | None = None
    k: int = 5
    strength: float = 0.1
    steps: int = 25
    tol: float = 1e-3
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    at: str | None = None

    def __post_init__(self) -> None:
        left, top, right, bottom = self.region if len(self.region) == 4 else (0.0,) * 4
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ValueError(
                f"region is left, top, right, bottom in [0, 1], rising, got {self.region}"
            )
        if self.samples < 2 or self.times == () or self.k < 1 or self.steps < 2:
            raise ValueError(
                "expected samples >= 2, steps >= 2, k >= 1 and at least one time, got "
                f"{self.samples}, {self.steps}, {self.k}, {self.times}"
            )
        if self.prompt is None and (self.guidance != 1 or self.negative):
            raise ValueError("guidance and negative go with a prompt: give one, as --prompt")
        if not 0 < self.strength <= 2:
            raise ValueError(f"strength is in (0, 2], in units of |x_t|, got {self.strength}")
        if self.dtype not in atlas.DTYPES:
            raise ValueError(f"dtype is one of {', '.join(atlas.DTYPES)}, got {self.dtype!r}")


def _once(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of Study that is called once for each set of arguments."""

    @functools.wraps(method)
    def kept(self: Study, *args: Any) -> Any:
        key = (method.__name__, *args)
        if key not in self.found:
            self.found[key] = method(self, *args)
        return self.found[key]

    return kept


class Study:
    """One model, one subject and what has been found out about them.

    Loads the model at once. Beside `settings` and `folder` it has p: the model; times: of the
    sampling grid, falling; middle: the one of the edits; picture: (1, C, H, W) or None; region: 1
    inside, 0 outside, of the shape of x_t.

    Args:
        settings: what is asked.
        folder: where bases are kept, as atlases; without one they are found again each time.

    Raises what `mk.load_model` raises, and ValueError for settings the model does not fit.
    """

    def __init__(self, settings: Settings, folder: str | Path | None = None) -> None:
        s = self.settings = settings
        self.folder = None if folder is None else Path(folder)
        self.found: dict[Any, Any] = {}
        dtype = atlas.DTYPES[s.dtype]
        if s.image is not None:
            opened(s.image, 3)  # a file that is none is said before a model is fetched
        self.p = load_model(s.model, s.device, dtype, s.revision)
        if s.prompt is not None:
            self.p = self.p.prompted(s.prompt, s.guidance, s.negative)
        _check_channels(self.p, "what is drawn here")
        bottleneck(self.p, s.at)
        self.times = sorted(atlas.nearest(self.p, s.times, s.steps), reverse=True)
        self.middle = self.times[len(self.times) // 2]
        self.picture = None if s.image is None else read_image(s.image, self.p)
        self.region = _region(s.region, self.p)

    @_once
    def bases(self, name: str, prompt: str | None = None) -> dict[tuple[int, int], SVD]:
        """(sample, t) -> the basis of the map `name`, "h" or "mean", at the sample's own x_t.

        prompt: another text than the study's, for the way down from the same noise and for the map.
        """
        s, p = self.settings, self.p
        if prompt is not None:
            p = p.prompted(prompt, p.guidance, p.negative)
        if self.folder is None:
            return {
                (i, t): self._found(p, name, t, _state(p, s, i, t))
                for i in range(s.samples)
                for t in self.times
            }
        text = "" if prompt is None else hashlib.sha256(prompt.encode()).hexdigest()[:8]
        place = self.folder / f"atlas-{name}{text}"
        begun = (place / atlas.MANIFEST).is_file()
        threads = atlas.load_atlas(place).settings["threads"] if begun else torch.get_num_threads()
        with any_of_equals():
            atlas.build(
                p, place, name, range(s.samples), self.times, s.k, tol=s.tol, seed=s.seed,
                steps=s.steps, threads=threads, device=p.device.type, at=self._at(name),
            )  # fmt: skip
        found = atlas.load_atlas(place)
        return {item: _moved(found[item], p.device) for item in found.items}

    def _found(self, p: UNetModel, name: str, t: int, x: Tensor) -> SVD:
        s = self.settings
        with any_of_equals():
            return svd(jacobian(MAPS[name](p, t, self._at(name)), x), s.k, s.tol, s.seed)

    @_once
    def basis(self, name: str, t: int) -> SVD:
        """The subject's, at its own x_t."""
        if self.picture is None:
            return self.bases(name)[0, t]
        return self._found(self.p, name, t, self.subject(t))

    def map(self, name: str, t: int) -> Callable[[Tensor], Tensor]:
        return MAPS[name](self.p, t, self._at(name))

    def _at(self, name: str) -> str | None:
        return None if name == "mean" else self.settings.at

    @_once
    def subject(self, t: int) -> Tensor:
        """x_t (1, *shape) of the picture, by inversion, or of sample 0."""
        if self.picture is None:
            return self.state(0, t)
        with torch.no_grad():
            return invert(self.p, self.picture, t, self.steps(t), refine=1)

    @_once
    def state(self, i: int, t: int) -> Tensor:
        """x_t (1, *shape) of sample i, as in the atlas."""
        return _state(self.p, self.settings, i, t)

    def finish(self, x: Tensor, t: int, **edit: Any) -> Tensor:
        """The images (B, C, H, W) that x_t (B, *shape) becomes; on the CPU, in [-1, 1]."""
        with torch.no_grad():
            return finished(self.p, x, t, self.steps(t), **edit).float().cpu()

    def steps(self, t: int) -> int:
        """Network calls from t to the picture: settings.steps from T - 1, fewer from nearer."""
        return max(2, round(self.settings.steps * (t + 1) / (self.p.top + 1)))

    def random(self, count: int = 1) -> Tensor:
        """Unit directions (count, *shape) that know nothing: white noise."""
        return unit(start(self.p, self.settings.seed + 1, range(count)))

    def smooth(self, v: Tensor, seed: int = 0) -> Tensor:
        """A random direction as long and as smooth as v (*shape), which white noise is not."""
        return as_smooth(v[None], self.settings.seed + 1 + seed)[0]

    def moved(self, t: int, v: Tensor, strengths: Sequence[float]) -> Tensor:
        """The subject's x_t, moved along v (*shape) by each strength."""
        x = self.subject(t)
        return torch.cat([move(self.p, x, t, v, a, 1)[-1] if a else x for a in strengths])

    @property
    def ladder(self) -> list[float]:
        a = self.settings.strength
        return [-a, -a / 2, 0.0, a / 2, a]


def _region(box: Sequence[float], p: UNetModel) -> Tensor:
    w = torch.zeros(p.shape, device=p.device)
    (left, right), (top, bottom) = (
        [round(share * side) for share in ends]
        for ends, side in ((box[::2], p.shape[2]), (box[1::2], p.shape[1]))
    )
    w[:, top:bottom, left:right] = 1
    if not 0 < float(w.mean()) < 1:
        raise ValueError(
            f"region {tuple(box)} is to hold some of the {p.shape[2]} x {p.shape[1]} places of "
            "x_t, and not all"
        )
    return w


def _state(p: UNetModel, s: Settings, i: int, t: int) -> Tensor:
    with torch.no_grad():
        return atlas.states(p, s.seed, i, s.steps, t)[t]


def _moved(r: SVD, device: torch.device) -> SVD:
    U, S, V = (a.float().to(device) for a in r)
    return dataclasses.replace(r, U=U, S=S, V=V)


def read_image(path: str | Path, p: UNetModel) -> Tensor:
    """A picture file as (1, C, H, W) in [-1, 1] of the model's size: its central square, scaled.

    Turned as its EXIF says, laid on white where it is transparent; integers of 16 bits are read of
    65,535, floating-point numbers of 1, or of 255 where they go beyond 1. Raises FileNotFoundError,
    and ValueError for a file that is no picture, numbers beyond those or a model of other than 1 or
    3 channels.
    """
    from PIL import Image, ImageOps

    _check_channels(p, "a picture file")
    channels, high, wide = p.image_shape
    fitted = ImageOps.fit(opened(path, channels), (wide, high), Image.Resampling.LANCZOS)
    return as_tensor(fitted).clamp(-1, 1).expand(1, channels, high, wide).contiguous().to(p.device)


def _check_channels(p: UNetModel, what: str) -> None:
    if len(p.image_shape) != 3 or p.image_shape[0] not in (1, 3):
        raise ValueError(
            f"{what} has 1 or 3 channels, and the model's pictures are {tuple(p.image_shape)}: "
            "mk.sample, mk.svd, mk.move and `python -m mathkit atlas` take any"
        )


def as_tensor(image: Any) -> Tensor:
    """A Pillow image of numbers in [0, 255] as (1, C, H, W) in [-1, 1]."""
    import numpy as np

    pixels = torch.from_numpy(np.array(image, dtype=np.float32)) / 127.5 - 1
    return pixels.reshape(image.height, image.width, -1).permute(2, 0, 1)[None]


def opened(path: str | Path, channels: int) -> Any:
    """A picture file as a Pillow image, upright, in L or RGB, or in F where its numbers are finer.

    Raises as `read_image`.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            return _plain(ImageOps.exif_transpose(file), str(path), channels)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no picture {path}: give image, a file") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder: give image, one picture file") from None
    except (OSError, EOFError, SyntaxError) as error:  # Pillow's, of a file cut off too
        raise ValueError(f"{path} is no picture that Pillow can read ({error})") from None


def _plain(image: Any, path: str, channels: int) -> Any:
    """A Pillow image as L or RGB; where its numbers are finer than 8 bits as F, in [0, 255]."""
    import numpy as np
    from PIL import Image

    if image.mode[0] not in "IF":
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("L" if channels == 1 else "RGB")
    values = np.array(image, dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    most = 65535.0 if image.mode[0] == "I" else 1.0 if high <= 1 else 255.0
    if not 0 <= low <= high <= most:
        raise ValueError(
            f"{path} holds numbers from {low:.4g} to {high:.4g}: bring them to [0, 1], or to 8 or "
            "16 bits"
        )
    return Image.fromarray(values * np.float32(255 / most))
