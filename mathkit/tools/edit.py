"""Edit a photograph along a direction that a model's derivative gives, in two commands.

    python -m mathkit edit --out runs/edit/me --image me.jpg --model google/ddpm-celebahq-256
    python -m mathkit edit --out runs/edit/me --direction 2 --strength 0.15

The first turns the picture into x_t, finds k directions and draws them on one sheet,
directions.png, beside the photograph and what becomes of it unmoved: choose. The second saves the
picture moved along the one chosen, at its own size, and a strip of nine strengths; what the first
was told it need not be told again. Give --region to change one part and leave the rest as it is.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor

from mathkit import data
from mathkit.arguments import integer, number
from mathkit.diffusion.sampling import posterior_mean
from mathkit.draw import pictures, style
from mathkit.linear.arrays import mask
from mathkit.linear.jacobian import jacobian
from mathkit.linear.subspaces import project_out, unit
from mathkit.linear.svd import svd
from mathkit.linear.triplets import any_of_equals
from mathkit.tools import options, report
from mathkit.tools.subject import Settings, Study, as_tensor, opened

SETTINGS, FOUND, SHEET = "edit.json", "directions.safetensors", "directions.png"
SHEET_LIMIT = 4_000_000  # bytes
NEAR = 0.05  # of the range from black to white: what a picture may lose on its way up and down
ABOUT = {
    "image": "the photograph, a picture file; the first command needs it",
    "region": f"the part to change, {options.REGION} (default all of it)",
    "times": "the one time of the edit, from 0 to T - 1; a smaller one changes less (default 900 "
    "of 1,000)",
    "strength": "how far the picture is moved, in shares of |x_t| (default 0.1)",
}


class Photo:
    """A picture, its x_t, and k directions along which it can be edited.

    v_i: the right singular vectors of x_t -> h at the picture's own x_t; with a region, of the
    posterior mean inside it, less the k directions that the rest feels most. What has been found
    is kept in the folder.

    Args:
        settings: with an image; its one time is that of the edit, its region the part to change.
        folder: where the directions are kept.
        inside: change the region alone.

    Raises ValueError without an image, and for settings other than those the folder was begun
    with; else what `Study` raises.
    Cost: the first time an inversion and one `svd`, with a region two.
    Source: 2302.12469, 2307.12868; with a region 2409.02374.

    >>> from mathkit.tools import edit
    >>> from mathkit.tools.subject import Settings
    >>> edit.Photo(Settings(), "runs/edit/none")
    Traceback (most recent call last):
    ValueError: an edit is of a picture: give image, a file
    """

    def __init__(self, settings: Settings, folder: str | Path, inside: bool = False) -> None:
        if settings.image is None:
            raise ValueError("an edit is of a picture: give image, a file")
        if settings.times is not None and len(settings.times) > 1:
            raise ValueError(f"an edit is at one time, got {settings.times}")
        self.folder, self.inside = Path(folder), inside
        self.study = Study(settings)
        self.t = self.study.times[0]
        noted = {"inside": inside, "image SHA-256": data.sha256(settings.image)}
        noted |= {"weights": self.study.p.revision}
        report.begin(self.folder / SETTINGS, dataclasses.asdict(settings) | noted)
        place = self.folder / FOUND
        if not place.exists():
            data.store(place, save(self._found()))
        found = {name: x.to(self.study.p.device) for name, x in load_file(place).items()}
        self.x, self.V, self.S = found["x"], found["V"], found["S"]
        self.study.found["subject", self.t] = self.x
        self.back = self.study.finish(self.x, self.t)

    def _found(self) -> dict[str, Tensor]:
        study, s, t = self.study, self.study.settings, self.t
        x = study.subject(t)
        if self.inside:
            J, w = jacobian(posterior_mean(study.p, t), x), study.region
            with any_of_equals():
                r = svd(mask(w) @ J, s.k, s.tol, s.seed)
                V = unit(project_out(r.V, svd(mask(1 - w) @ J, s.k, s.tol, s.seed).V))
        else:
            r = study.basis("h", t)
            V = r.V
        found = {"x": x, "V": V, "S": r.S}
        return {name: a.float().cpu().contiguous() for name, a in found.items()}

    def images(self, direction: int, strengths: Sequence[float]) -> Tensor:
        """The model's pictures (B, C, H, W) in [-1, 1], moved along a direction by each strength.

        direction: 1 ... k, or 0 for a random one as smooth as the first, the control. strengths:
        |x_t' - x_t| / |x_t|.
        """
        i = integer(direction, "direction", 0, len(self.V))
        v = self.V[i - 1] if i else self.study.smooth(self.V[0])
        moved = [self.study.moved(self.t, v, [number(s, "strength", -2, 2)]) for s in strengths]
        return torch.cat([self.study.finish(x, self.t) for x in moved])

    def edited(self, direction: int, strength: float) -> Image.Image:
        """The photograph moved along a direction, at its own size.

        What the model changes, its picture moved less its picture unmoved, is enlarged and added to
        the photograph: no detail is lost where nothing changes, and what inversion missed stays.
        Where much changes the model's own picture takes its place, for detail of what has gone
        would stay as a ghost.

        direction: 1 ... k, or 0 for a random one. strength: in [-2, 2], |x_t' - x_t| / |x_t|.
        """
        moved = self.images(direction, [strength])
        change, channels = moved - self.back, moved.shape[1]
        photo = opened(str(self.study.settings.image), channels)
        photo = photo.convert("L" if channels == 1 else "RGB")
        box = _central(photo.size, (moved.shape[3], moved.shape[2]))
        pixels = as_tensor(photo.crop(box))
        moved, change, size = (_enlarged(x, pixels) for x in (moved, change, _much(change)))
        pixels = pixels + change
        pixels = pixels + size.clamp(0, 1) * (moved - pixels)
        photo.paste(_picture(pixels), box[:2])
        return photo

    def sheet(self) -> Axes:
        """The photograph, it unmoved and along a random direction, the control; then every
        direction, both ways."""
        a: float = self.study.settings.strength
        picture: Any = self.study.picture
        lines = [picture.float().cpu(), self.back, self.images(0, [-a, a])]
        labels = ["the photograph", "unmoved", *(f"random: {s:+.3g}" for s in (-a, a))]
        for i in range(1, len(self.V) + 1):
            lines.append(self.images(i, [-a, -a / 2, a / 2, a]))
            labels += [f"{i}: {s:+.3g}" for s in (-a, -a / 2, a / 2, a)]
        title = f"Directions at t = {self.t}"
        return pictures.strip(torch.cat(lines), labels, columns=4, title=title)

    @property
    def told(self) -> str:
        """How near the picture comes back unmoved, in words."""
        near = (
            f"Unmoved, the picture comes back from t = {self.t} with a mean error of "
            f"{self.error:.1%} of the way from black to white: 0 is perfect, below {NEAR:.0%} good"
        )
        if self.error < NEAR:
            return near
        return f"{near}. A smaller --times or more --steps come nearer"

    @property
    def error(self) -> float:
        """Mean |picture - inverted and denoised again|, in shares of the range [-1, 1]."""
        picture: Any = self.study.picture
        return float((picture.float().cpu() - self.back).abs().mean()) / 2

    def ladder(self, direction: int, strength: float) -> Axes:
        """Nine strengths, from -strength to +strength."""
        strengths = [strength * i / 4 for i in range(-4, 5)]
        labels = [f"{s:+.3g}" for s in strengths]
        title = f"Direction {direction}, t = {self.t}" if direction else f"Random, t = {self.t}"
        images = self.images(direction, strengths)
        return pictures.strip(images, labels, columns=9, title=title)


def _central(size: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """The largest central box of the proportions of `shape`, (width, height)."""
    wide, high = size
    share = min(wide / shape[0], high / shape[1])
    w, h = round(share * shape[0]), round(share * shape[1])
    left, top = (wide - w) // 2, (high - h) // 2
    return left, top, left + w, top + h


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(x, like.shape[2:], mode="bicubic", antialias=True)


def _much(change: Tensor) -> Tensor:
    """Where a picture (B, C, H, W) changes much: (B, 1, H, W), 0 below .1, 1 from .3 on, spread by
    a pixel."""
    size = ((change.abs().amax(1, keepdim=True) - 0.1) / 0.2).clamp(0, 1)
    return torch.nn.functional.max_pool2d(size, 3, 1, 1)


def _picture(x: Tensor) -> Image.Image:
    pixels = style.pixels(x[0])
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of `python -m mathkit edit`."""
    parser = options.parser("edit", __doc__, "folder of the directions and the pictures")
    parser.add_argument("--direction", type=int, help="1 ... k, or 0, a random one: save this edit")
    options.add_fields(parser, Settings, ("samples", "other"), ABOUT)
    given = options.given(parser, argv)
    folder, direction = Path(given.pop("out")), given.pop("direction", None)
    print(*run(folder, direction, given), sep="\n")


def run(folder: Path, direction: int | None, given: dict[str, Any]) -> list[str]:
    """Find and draw the directions, or save one edit; what was made, as lines.

    given: fields of `Settings`; those of a folder once begun need not be given again, and strength
    may differ.
    """
    strength = given.get("strength")
    photo = Photo(*_begun(folder, given))
    if direction is None:
        place = folder / SHEET
        data.store(place, style.png(photo.sheet(), SHEET_LIMIT))
        again = f"python -m mathkit edit --out {folder} --direction N --strength S"
        return [str(place), photo.told, f"choose one, then: {again}"]
    a = photo.study.settings.strength if strength is None else strength
    image = photo.edited(direction, a)
    name = f"direction-{direction}{a:+.3g}"
    raw = io.BytesIO()
    image.save(raw, "PNG")
    data.store(folder / f"{name}.png", raw.getvalue())
    data.store(folder / f"{name}-strip.png", style.png(photo.ladder(direction, a), SHEET_LIMIT))
    return [str(folder / f"{name}.png"), str(folder / f"{name}-strip.png")]


def _begun(folder: Path, given: dict[str, Any]) -> tuple[Settings, Path, bool]:
    """The settings of a folder, or of a new one, and whether the region alone is to change."""
    names = {field.name for field in dataclasses.fields(Settings)}
    place, old = folder / SETTINGS, {}
    if place.exists():
        old = json.loads(place.read_text("utf-8"))
        given = {k: v for k, v in given.items() if k != "strength"}
    inside = bool(old.get("inside")) or "region" in given
    kept = {k: tuple(v) if isinstance(v, list) else v for k, v in old.items() if k in names}
    return Settings(**(kept | given)), folder, inside
