"""The one look of every picture: colours, sizes, and how a figure becomes a small PNG.

Light paper, dark ink, one accent (vermillion) for what the reader should look at. The few other
colours follow Okabe and Ito: told apart by every kind of colour vision, 3 : 1 against the paper.
Sizes are chosen so that a figure 6 inches wide reads on a phone (390 px) and on a projector.
"""

from __future__ import annotations

import io
import math
import os
import sys
import textwrap
from collections.abc import Callable
from functools import cache, partial, wraps
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from mathkit.arguments import number, tensor

PAPER, INK, GREY, FAINT, ACCENT = "#FBF9F4", "#26262B", "#6F6D66", "#DEDACF", "#D55E00"
BLUE, GREEN, PURPLE = "#0072B2", "#009E73", "#8C3B6F"
CYCLE = (BLUE, GREEN, PURPLE, INK)
WIDTH = 6.0  # inches
LEVELS = (51, 32, 24)  # even steps of a colour from dark to full; of the first each is 5 of 255
ON_LIGHT, ON_DARK = INK, PAPER  # on a coloured cell, whatever the ground is

IN_TURN = ("BLUE", "GREEN", "PURPLE", "INK")  # of several curves
LIGHT: dict[str, str] = {
    "PAPER": PAPER, "INK": INK, "GREY": GREY, "FAINT": FAINT, "ACCENT": ACCENT,
    "BLUE": BLUE, "GREEN": GREEN, "PURPLE": PURPLE,
}  # fmt: skip
DARK: dict[str, str] = {
    "PAPER": "#14161A", "INK": "#ECE8DF", "GREY": "#A5A198", "FAINT": "#3C4047",
    "ACCENT": "#F0803C", "BLUE": "#56B4E9", "GREEN": "#2CC295", "PURPLE": "#D98BB8",
}  # fmt: skip

_COLD = ("#f6f6f6", "#c6d6ea", "#97b6de", "#6896d1", "#4176bb", "#38568f", "#2a3a65")
_WARM = ("#f6f6f6", "#eecebc", "#e3a686", "#d47d55", "#bb5731", "#913d25", "#682618")
UNSIGNED: Colormap = LinearSegmentedColormap.from_list("mathkit.unsigned", _COLD)
SIGNED: Colormap = LinearSegmentedColormap.from_list("mathkit.signed", _COLD[::-1] + _WARM[1:])
for _map in (UNSIGNED, SIGNED):
    mpl.colormaps.register(_map, force=True)


def settings(c: dict[str, str], transparent: bool = False, scale: float = 1.0) -> Any:
    """matplotlib's settings for the colours of LIGHT or DARK."""
    ground = "none" if transparent else c["PAPER"]
    return {
        "figure.figsize": (WIDTH, 3.4),
        "figure.dpi": 100 * scale,
        "figure.constrained_layout.use": True,
        "figure.constrained_layout.h_pad": 0.08,
        "figure.constrained_layout.w_pad": 0.06,
        "figure.facecolor": ground,
        "savefig.facecolor": ground,
        "axes.facecolor": ground,
        "axes.edgecolor": c["GREY"],
        "axes.labelcolor": c["INK"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.titlesize": 12,
        "axes.prop_cycle": cycler(color=[c[name] for name in IN_TURN]),
        "grid.color": c["FAINT"],
        "grid.linewidth": 0.7,
        "image.cmap": UNSIGNED.name,
        "image.interpolation": "nearest",
        "font.family": "DejaVu Sans",
        "font.size": 11,
        "text.color": c["INK"],
        "xtick.color": c["INK"],
        "ytick.color": c["INK"],
        "xtick.labelsize": 10,
        "ytick.labelsize": 10,
        "legend.fontsize": 10,
        "legend.frameon": False,
        "lines.linewidth": 2,
        "lines.markersize": 5,
    }


STYLE: Any = settings(LIGHT)

P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """draw, always in this style, whatever the reader's own settings are."""

    @wraps(draw)
    def in_style(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return in_style


def use(dark: bool = False, transparent: bool = False, scale: float = 1.0) -> None:
    """Switch the session to this style; in a notebook, figures are stored as `png` makes them.

    Args:
        dark: light ink on a dark ground; `draw.INK` and the other colours are then those of it.
        transparent: no ground at all, so that a figure lies on any other picture.
        scale: of the pixels of a figure that is shown or saved, 2 for a large screen.

    Returns: nothing; matplotlib's rcParams are changed until they are set again.
    Raises ValueError where scale is no number in [0.1, 20].

    >>> import matplotlib as mpl
    >>> from mathkit import draw
    >>> with mpl.rc_context():  # the reader's own settings come back after it
    ...     draw.use()
    ...     mpl.rcParams["figure.facecolor"] == draw.PAPER
    True
    """
    colours = DARK if dark else LIGHT
    STYLE.update(settings(colours, transparent, number(scale, "scale", 0.1, 20)))
    globals().update(colours, CYCLE=tuple(colours[name] for name in IN_TURN))
    mpl.rcParams.update(STYLE)
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None and "inline" in mpl.get_backend().lower():
        plt.switch_backend(mpl.get_backend())  # loads the inline backend, which sets its own format
        # A deck for a projector is run with MATHKIT_SCALE=2: twice the pixels each way.
        more = scale * float(os.environ.get("MATHKIT_SCALE") or 1)
        stored = partial(png, larger=more)
        shell.display_formatter.formatters["image/png"].for_type(Figure, stored)


def png(fig: Figure | Axes, limit: int | None = None, dpi: int = 160, larger: float = 1.0) -> bytes:
    """The figure as PNG bytes, small: lines by a palette of 256 colours or fewer, colour pictures
    in 52 levels of red, green and blue, which no eye tells from all 256.

    What is too large gets fewer levels (down to 25), colours (to 64) and pixels (to dpi / 2). A
    figure drawn afresh gives the same bytes on the same machine.

    Args:
        fig: a figure, or an ax of it.
        limit: bytes, at most; default 60,000, and 90,000 with colour pictures in it.
        dpi: pixels an inch, where they fit.
        larger: times as many pixels each way, and the default limit for as many.

    Returns: bytes.
    Raises ValueError where even the smallest is over `limit`.
    Cost: one drawing or a few.

    >>> from mathkit import draw
    >>> len(draw.png(draw.heat(torch.eye(3)))) < 60_000
    True
    """
    from PIL import Image

    figure: Any = fig.figure  # of a Figure, itself; of an Axes, perhaps a SubFigure
    shown = (np.ndim(image.get_array()) for image in figure.figure.findobj(AxesImage))
    pictured = 3 in shown  # red, green and blue, not one number that a colour map paints
    limit = limit or round((90_000 if pictured else 60_000) * larger**2)

    @cache
    def drawn(share: float) -> Any:
        raw = io.BytesIO()
        with mpl.rc_context({"savefig.bbox": None}):
            figure.figure.savefig(raw, format="png", dpi=share * round(dpi * larger))
        return Image.open(raw).convert("RGB")

    levels = [*((1, _levels, n) for n in LEVELS), (0.8, _levels, LEVELS[-1])]
    palettes = [(share, palette, n) for share in (0.8, 0.65, 0.5) for n in (128, 64)]
    first = [(1, palette, 256), (1, palette, 128)]
    for share, packs, many in [*levels * pictured, *first, *palettes]:
        if len(data := packs(drawn(share), many)) <= limit:
            return data
    raise ValueError(f"the figure needs {len(data)} bytes, over {limit}: draw fewer pictures")


def picture(
    image: Tensor, size: int = 256, signed: bool = False, scale: float | None = None
) -> bytes:
    """One image as PNG bytes, enlarged without smoothing, in 52 levels of a colour.

    Args:
        image: (C, H, W), C = 1 or 3, in [-1, 1].
        size: the least width, in pixels; the enlargement is by a whole number.
        signed: a direction instead, as in `draw.strip`.
        scale: the |value| of full colour, where signed.

    Returns: bytes.
    Raises ValueError on another shape, more than one image, and NaN.
    Cost: no figure is drawn.

    >>> from mathkit.draw import style
    >>> style.picture(torch.zeros(3, 8, 8))[1:4]
    b'PNG'
    """
    from PIL import Image

    pixels = pictures(image[None] if image.ndim == 3 else image, signed, scale)
    if len(pixels) != 1:
        raise ValueError(f"picture takes one image (C, H, W); got {tuple(image.shape)}")
    times = math.ceil(size / pixels.shape[2])
    big = np.rint(255 * pixels[0].repeat(times, 0).repeat(times, 1)).astype(np.uint8)
    return packed(Image.fromarray(rounded(big, LEVELS[0])))


def numbers(x: Any) -> np.ndarray:
    """x as a float64 array. Raises ValueError on NaN and infinity."""
    if isinstance(x, list | tuple) and any(isinstance(part, Tensor) and part.ndim for part in x):
        x = torch.stack([torch.as_tensor(part) for part in x])
    a = torch.as_tensor(x).detach().cpu().double().numpy()
    if not np.isfinite(a).all():
        raise ValueError(f"{int((~np.isfinite(a)).sum())} of {a.size} values are NaN or infinite")
    return a


def pixels(x: Tensor) -> np.ndarray:
    """One image (C, H, W) in [-1, 1] as (H, W, C) of uint8; what lies beyond is cut."""
    levels = ((x.detach().cpu().double().clamp(-1, 1) + 1) * 127.5).round().byte()
    return levels.permute(1, 2, 0).contiguous().numpy()


def pictures(images: Tensor, signed: bool = False, scale: float | None = None) -> np.ndarray:
    """Images (B, C, H, W) as colours (B, H, W, 3) in [0, 1]."""
    tensor(images, "pictures", "(B, 1 or 3, H, W)")
    if (
        images.ndim != 4
        or not len(images)
        or images.shape[1] not in (1, 3)
        or not images.is_floating_point()
    ):
        raise ValueError(
            f"pictures are floats (B, 1 or 3, H, W) in [-1, 1]; got {images.dtype}, shape "
            f"{tuple(images.shape)}: x[None] adds the batch axis, p.decode(x) leaves a latent space"
        )
    x = numbers(images)
    if signed:
        most = np.abs(x).max((1, 2, 3), keepdims=True) if scale is None else scale
        x = x / np.where(most == 0, 1, most)
    x = (x.clip(-1, 1).transpose(0, 2, 3, 1) + 1) / 2
    if x.shape[-1] == 3:
        return x
    return SIGNED(x[..., 0])[..., :3] if signed else x.repeat(3, -1)


def packed(picture: Any) -> bytes:
    """A picture of Pillow as PNG bytes; of one with 256 colours or fewer each pixel is one byte."""
    from PIL import ImageChops

    if picture.mode == "RGB" and (colours := picture.getcolors(256)):
        few = picture.quantize(len(colours), dither=0)
        same = ImageChops.difference(few.convert("RGB"), picture).getbbox() is None
        picture = few if same else picture
    out = io.BytesIO()
    picture.save(out, format="png", optimize=True)
    return out.getvalue()


def rounded(x: np.ndarray, steps: int) -> np.ndarray:
    """Colours (H, W, 3) of uint8 in steps + 1 even levels: a third to a half of the bytes."""
    return np.rint(np.rint(x * (steps / 255.0)) * (255 / steps)).astype(np.uint8)


def _levels(picture: Any, steps: int) -> bytes:
    from PIL import Image

    x = np.asarray(picture)
    paper = (x == x[0, 0]).all(-1, keepdims=True)  # lies on the page's own, which is not rounded
    return packed(Image.fromarray(np.where(paper, x, rounded(x, steps))))


def palette(picture: Any, colours: int) -> bytes:
    from PIL import Image

    # The octree keeps small patches of a rare colour (a red nose), which median cut averages away.
    return packed(picture.quantize(colours, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE))


def axes(ax: Axes | None, height: float, title: str, width: float = WIDTH) -> Axes:
    """ax, or a new one in a figure `width` wide whose axes are about `height` inches high."""
    wrapped = textwrap.fill(title, round(58 * width / WIDTH))
    if ax is None:
        extra = 0.16 + (0.2 * (wrapped.count("\n") + 1) + 0.1 if title else 0)
        ax = plt.subplots(figsize=(width, height + extra))[1]
    if title:
        ax.set_title(wrapped)
    return ax


def fitted(ax: Axes) -> Axes:
    """ax, alone in its figure, which is made as high as what is drawn in it and two margins."""
    figure: Any = ax.figure
    figure.draw_without_rendering()  # places the texts
    box: Any = ax.get_tightbbox()
    figure.set_figheight(
        box.height / figure.dpi + 2 * mpl.rcParams["figure.constrained_layout.h_pad"]
    )
    return ax
