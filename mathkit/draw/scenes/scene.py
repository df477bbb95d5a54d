"""A scene: named arrays, a caption for each frame, and how they are drawn.

Positions and sizes are in a picture 7.2 high, so that 1 is 100 pixels at 720p; the least lettering
is 24 pixels there.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from mathkit import data
from mathkit.arguments import integer
from mathkit.draw import style
from mathkit.draw.film import pair

HEIGHT = 7.2
TITLE, TEXT = 25, 18  # points; at 100 dpi 35 and 25 pixels


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """What one clip shows, computed; drawing it changes nothing.

    Args:
        name: of the scene, short.
        title: what stands above it.
        arrays: by name; those that move have a row a frame.
        captions: what stands beneath, one for each frame.
        draw: called as draw(scene, stage) once; gives what puts frame i on the stage.
        tape: whether it is meant to be seen on `tape.VHS`.
        poster: where in it, from 0 to 1, the still is taken that stands for it.

    `scene["M"]` is an array of it, `len(scene)` the number of frames.

    >>> from mathkit.draw import scenes
    >>> scene = scenes.rotate_stretch_rotate(n=12)
    >>> len(scene), scene["stages"].shape
    (12, (12, 2, 2))
    """

    name: str
    title: str
    arrays: Mapping[str, np.ndarray]
    captions: tuple[str, ...]
    draw: Callable[[Scene, Stage], Callable[[int], None]] = dataclasses.field(repr=False)
    tape: bool = False
    poster: float = 0.85

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self.arrays[name]
        except KeyError:
            raise KeyError(f"{name!r} is no array of this scene: it has {', '.join(self.arrays)}; "
                           "scene.frames() draws it") from None  # fmt: skip

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {a.shape}" for name, a in self.arrays.items())
        return f"Scene({self.name!r}, {len(self)} frames: {shapes})"

    def frames(
        self, size: tuple[int, int] = (1280, 720), *, dark: bool = False, transparent: bool = False
    ) -> Iterator[np.ndarray]:
        """The frames, drawn one by one, as `film.clip` takes them.

        Args:
            size: (width, height) in pixels; lettering grows with the height.
            dark: light ink on a dark ground.
            transparent: no ground; the frames have alpha.

        Returns: arrays (H, W, 4) of uint8, where transparent, else (H, W, 3).
        Raises ValueError for a size that is none.
        Cost: about 20 frames of 720p a second.
        """
        width, height = pair(size, 16)
        colours = style.DARK if dark else style.LIGHT
        look = style.settings(colours, transparent) | {"figure.constrained_layout.use": False}
        with rc_context(look):
            stage = Stage(width / height * HEIGHT, height / HEIGHT, colours)
            show = self.draw(self, stage)
            stage.headline(self.title)
        for i, caption in enumerate(self.captions):
            with rc_context(look):
                stage.caption.set_text(caption)
                show(i)
                page = stage.pixels()
            yield page if transparent else np.ascontiguousarray(page[..., :3])

    def save(self, path: str | Path) -> Path:
        """Write the arrays, the title and the captions to x.npz (NumPy) or x.json (the web).

        Args:
            path: ends in .npz or .json; the file appears when it is whole.

        Returns: the path.
        Raises ValueError on another end, OSError where it cannot write.
        """
        path = Path(path)
        words = {"title": np.array(self.title), "captions": np.array(self.captions)}
        if path.suffix == ".npz":
            raw = io.BytesIO()
            np.savez_compressed(raw, allow_pickle=False, **self.arrays, **words)
            data.store(path, raw.getvalue())
        elif path.suffix == ".json":
            plain = {name: _rounded(a) for name, a in self.arrays.items()}
            text = json.dumps(plain | {"title": self.title, "captions": list(self.captions)})
            data.store(path, text.encode())
        else:
            raise ValueError(f"a scene is saved to .npz or .json; got {path}")
        return path


def _rounded(a: np.ndarray) -> Any:
    """Lists of numbers with seven digits, as float32 has them."""
    if not np.issubdtype(a.dtype, np.floating):
        return a.tolist()
    flat = [float(f"{x:.7g}") for x in a.ravel().tolist()]
    return np.array(flat, object).reshape(a.shape).tolist()


class Stage:
    """A figure `width` wide and HEIGHT high, with places for pictures, planes and words."""

    def __init__(self, width: float, dpi: float, colours: dict[str, str]) -> None:
        self.width, self.colours = width, colours
        self.figure = Figure(figsize=(width, HEIGHT), dpi=dpi)
        self.canvas = FigureCanvasAgg(self.figure)
        self.caption = self.words(width / 2, 0.42, "", ha="center")

    def __getattr__(self, name: str) -> str:
        """A colour by its name, as stage.ink."""
        try:
            return self.__dict__["colours"][name.upper()]
        except KeyError:
            raise AttributeError(name) from None

    def headline(self, text: str) -> None:
        self.words(0.55, HEIGHT - 0.55, text, size=TITLE, weight="bold")

    def words(self, x: float, y: float, text: str, size: float = TEXT, **how: Any) -> Any:
        how = {"ha": "left", "va": "center", "fontsize": size, **how}
        return self.figure.text(x / self.width, y / HEIGHT, text, **how)

    def axes(self, x: float, y: float, w: float, h: float) -> Axes:
        return self.figure.add_axes((x / self.width, y / HEIGHT, w / self.width, h / HEIGHT))

    def plane(self, x: float, y: float, side: float, reach: float, cross: bool = True) -> Axes:
        """A square piece of the plane, |coordinates| <= reach, with its two axes."""
        ax = self.axes(x, y, side, side)
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        ax.axis("off")
        if cross:
            ax.axhline(0, color=self.faint, lw=1.5, zorder=0)
            ax.axvline(0, color=self.faint, lw=1.5, zorder=0)
        return ax

    def chart(self, x: float, y: float, w: float, h: float, **limits: Any) -> Axes:
        """Axes with numbers, for curves."""
        ax = self.axes(x, y, w, h)
        ax.tick_params(labelsize=TEXT, length=0)
        ax.xaxis.label.set_fontsize(TEXT)
        ax.yaxis.label.set_fontsize(TEXT)
        ax.set(**limits)
        return ax

    def picture(self, x: float, y: float, side: float, label: str = "", smooth: bool = True) -> Any:
        """A square for images (H, W, 3) in [0, 1] or of uint8: an artist with `set_data`."""
        ax = self.axes(x, y, side, side)
        ax.axis("off")
        how = "bilinear" if smooth else "nearest"
        image = ax.imshow(np.zeros((2, 2, 3)), interpolation=how, aspect="auto", vmin=0, vmax=1)
        image.set_extent((0, 1, 0, 1))
        if label:
            self.words(x + side / 2, y - 0.25, label, ha="center")
        return image

    def arrow(self, ax: Axes, colour: str, lw: float = 5) -> Callable[[Any, Any], None]:
        """An arrow that is put from one point to another."""
        patch = FancyArrowPatch(
            (0, 0), (1, 1), arrowstyle="-|>", mutation_scale=6 * lw, lw=lw, color=colour,
            shrinkA=0, shrinkB=0, zorder=5,
        )  # fmt: skip
        ax.add_patch(patch)

        def put(tail: Any, tip: Any) -> None:
            a, b = np.asarray(tail, float), np.asarray(tip, float)
            patch.set_positions(tuple(a), tuple(b))
            patch.set_visible(bool(np.hypot(*(b - a)) > 1e-3))

        return put

    def pixels(self) -> np.ndarray:
        self.canvas.draw()
        return np.array(self.canvas.buffer_rgba())


def colours(images: Any, signed: bool = False, scale: float | None = None) -> np.ndarray:
    """Images (B, C, H, W) in [-1, 1] as (B, H, W, 3) of uint8; signed: as in `draw.strip`."""
    return np.rint(255 * style.pictures(images, signed, scale)).astype(np.uint8)


def eased(n: int) -> np.ndarray:
    """n numbers from 0 to 1, slow at both ends: the clock of a move, not its mathematics."""
    s = np.linspace(0, 1, n)
    return s * s * (3 - 2 * s)


def held(*parts: tuple[Any, int]) -> tuple[str, ...]:
    """Captions: each of its own number of frames."""
    return tuple(str(text) for text, n in parts for _ in range(n))


def split(n: int, *shares: float) -> list[int]:
    """n frames in parts of these shares, whole numbers of 1 at least where n allows."""
    integer(n, "n", len(shares))
    ends = np.rint(np.cumsum(shares) / sum(shares) * (n - len(shares))).astype(int)
    return (np.diff([0, *ends]) + 1).tolist()
