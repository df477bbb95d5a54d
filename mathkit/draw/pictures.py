"""Still pictures in one style: pass an `ax` or get one, an `ax` comes back, nothing is computed.

    from mathkit import draw
    draw.use()

`strip` and `cards` want the figure's whole width; the others share a figure well.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from mathkit.arguments import number
from mathkit.draw import style


@style.styled
def strip(
    images: Tensor,
    labels: Sequence[Any] | None = None,
    *,
    ax: Axes | None = None,
    columns: int = 8,
    signed: bool = False,
    scale: float | None = None,
    title: str = "",
    width: float = style.WIDTH,
) -> Axes:
    """Images side by side, a label under each.

    Args:
        images: (B, C, H, W), C = 1 or 3, in [-1, 1]; values outside are cut.
        labels: one for each image; numbers get two decimals, whole ones none.
        ax: where to draw; default a new figure.
        columns: images to a line.
        signed: directions instead, of any size: 0 is mid-grey (white where C = 1, red positive,
            blue negative), full colour is the largest |value| of each image.
        scale: the |value| of full colour, for all images.
        title: above the picture.
        width: of a new figure, in inches; small pictures need little paper.

    Returns: the ax.
    Raises ValueError on other shapes, labels that do not match, NaN, and a width beyond [1, 40].

    >>> from mathkit import draw
    >>> frames = mk.puppets.render(mk.puppets.sample_factors(3, seed=0))
    >>> ax = draw.strip(frames, labels=["one", "two", "three"], title="Three puppets")
    >>> len(ax.images), ax.get_title(loc="left")
    (3, 'Three puppets')
    """
    faces = style.pictures(images, signed, scale)
    width = number(width, "width", 1, 40)
    columns = max(2, min(columns, len(faces)))
    lines = _labels(labels, len(faces), width / columns)
    tops = _tops(lines, columns, faces.shape[1] / faces.shape[2], width)
    given, ax = ax, style.axes(ax, width * -tops[-1] / (1.05 * columns), title, width)
    for i, (pixels, text) in enumerate(zip(faces, lines, strict=True)):
        x = 1.05 * (i % columns)
        bottom = _place(ax, pixels, x, tops[i // columns])
        ax.text(x + 0.5, bottom - 0.02 * columns / 8, text, ha="center", va="top", fontsize=10)
    return _frame(ax, 1.05 * columns - 0.05, -bottom, fit=given is None)


@style.styled
def cards(
    images: Tensor,
    factors: Tensor,
    names: Sequence[str],
    *,
    reference: Tensor | None = None,
    accent: str = "",
    ax: Axes | None = None,
    columns: int = 4,
    title: str = "",
) -> Axes:
    """Images, each with a bar of every factor beneath it.

    Args:
        images: (B, C, H, W), C = 1 or 3, in [-1, 1].
        factors: (B, F), in [0, 1]; a bar is cut at the ends of its track.
        names: of the F factors.
        reference: (B, F), a tick on each bar, e.g. the value before an edit.
        accent: the name of the factor to point at.
        ax: where to draw; default a new figure.
        columns: images to a line.
        title: above the picture.

    Returns: the ax.
    Raises ValueError on shapes that do not match, and NaN.

    >>> from mathkit import draw
    >>> q = mk.puppets.sample_factors(2, seed=0)
    >>> ax = draw.cards(mk.puppets.render(q), q[:, :3], mk.puppets.FACTORS[:3], accent="eye_size")
    >>> [text.get_text() for text in ax.texts]
    ['curtain_hue', 'felt_hue', 'eye_size']
    """
    faces, bars = style.pictures(images), style.numbers(factors)
    if bars.shape != (len(faces), len(names)) or not len(names):
        raise ValueError(f"factors {bars.shape} must be ({len(faces)} images, {len(names)} names)")
    ticks = None if reference is None else style.numbers(reference)
    columns = max(1, min(columns, len(faces)))
    margin = 0.085 * max(map(len, names))  # inches
    given, card = ax, (style.WIDTH - margin) / columns / 1.08
    bar, aspect = 0.17 / card, faces.shape[1] / faces.shape[2]
    step, count = aspect + bar * (len(names) + 1.2), math.ceil(len(faces) / columns)
    ax = style.axes(ax, step * count * card, title)
    colours = [style.ACCENT if n == accent else style.BLUE for n in names]
    for i, pixels in enumerate(faces):
        x, top = 1.08 * (i % columns), -step * (i // columns)
        y = _place(ax, pixels, x, top) - bar * (0.9 + np.arange(len(names)))
        _bars(ax, x, y, bars[i], 0.6 * bar, colours)
        if ticks is not None:
            ax.vlines(x + ticks[i].clip(0, 1), y - 0.45 * bar, y + 0.45 * bar, style.INK, lw=1.6)
        for name, level in zip(names if x == 0 else (), y, strict=x == 0):
            ax.text(-0.05, level, name, ha="right", va="center", fontsize=9)
    wide, high = 1.08 * columns - 0.08, step * count - 0.5 * bar
    return _frame(ax, wide, high, left=margin / card, fit=given is None)


@style.styled
def ellipse(
    U: Tensor, S: Tensor, V: Tensor, *, ax: Axes | None = None, title: str = "", names: str = "vu"
) -> Axes:
    """The unit circle with v_1, v_2 and its image with s_1 u_1, s_2 u_2; one colour a pair.

    Args:
        U: (2, 2), rows are directions, as `mk.svd` returns them for a map A between planes: `U, S,
            V = mk.svd(A, 2)`.
        S: (2,).
        V: (2, 2), rows are directions.
        ax: where to draw; default a new figure.
        title: above the picture.
        names: the two letters, that of the first plane and that of the second.

    Returns: the ax.
    Raises ValueError on other shapes, and NaN.

    >>> from mathkit import draw
    >>> ax = draw.ellipse(*mk.svd(mk.matrix([[2.0, 1.0], [0.0, 1.0]]), 2))
    >>> len(ax.lines)  # the circle and the ellipse
    2
    """
    u, s, v = map(style.numbers, (U, S, V))
    if (u.shape, s.shape, v.shape) != ((2, 2), (2,), (2, 2)):
        raise ValueError(
            f"ellipse takes U (2, 2), S (2,), V (2, 2); got {u.shape, s.shape, v.shape}"
        )
    angle = np.linspace(0, 2 * np.pi, 181)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    image = u.T * s @ circle
    wide, high = 1.3 * np.abs(image).max(1).clip(1)
    ax = style.axes(ax, min(5.5, 0.85 * style.WIDTH * high / wide), title)
    ax.plot(*circle, color=style.GREY, lw=1.5, ls="--")
    ax.plot(*image, color=style.INK)
    for i, colour in enumerate((style.ACCENT, style.BLUE)):
        aside = 0.09 * max(wide, high) * (1 if np.linalg.det([v[i], u[i]]) > 0 else -1)
        _arrow(ax, v[i], colour, f"${names[0]}_{i + 1}$", -aside, "--")
        if s[i] > 1e-3 * s[0]:
            _arrow(ax, s[i] * u[i], colour, f"$s_{i + 1} {names[1]}_{i + 1}$", aside, "-")
    ax.set(aspect="equal", xlim=(-wide, wide), ylim=(-high, high))
    return ax


@style.styled
def stage(A: Tensor, V: Tensor, reach: float, title: str = "", *, ax: Axes | None = None) -> Axes:
    """What A makes of the unit circle, of a small puppet in it, and of v_1, v_2.

    Args:
        A: (2, 2).
        V: (2, 2), rows v_1 and v_2.
        reach: half the height of the picture.
        title: above it.
        ax: where to draw; default a new figure.

    Returns: the ax.
    Raises ValueError on other shapes, and NaN.

    >>> from mathkit import draw
    >>> eye = mk.matrix([[1.0, 0.0], [0.0, 1.0]]).dense()
    >>> ax = draw.stage(2 * eye, eye, reach=2.5)
    >>> [text.get_text() for text in ax.texts if text.get_text()]  # v_1 and v_2
    ['1', '2']
    """
    a, v = style.numbers(A), style.numbers(V)
    if a.shape != (2, 2) or v.shape != (2, 2):
        raise ValueError(f"stage takes A (2, 2) and V (2, 2), got {a.shape}, {v.shape}")
    ax = style.axes(ax, style.WIDTH / 1.8, title)
    ax.axhline(0, color=style.FAINT, lw=1)
    ax.axvline(0, color=style.FAINT, lw=1)
    angle = np.linspace(0, 2 * np.pi, 91)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    smile = np.stack([np.cos(angle[45:]), np.sin(angle[45:])])[:, 6:-6]
    hat = np.array([[-0.3, 0.0, 0.3, -0.3], [0.42, 0.95, 0.42, 0.42]])
    ax.plot(*circle, color=style.GREY, lw=1, ls="--")
    ax.plot(*(a @ circle), color=style.INK, lw=1.5)
    ax.fill(*(a @ hat), color=style.FAINT)
    for shape in (0.45 * circle, 0.25 * smile, hat):
        ax.plot(*(a @ shape), color=style.GREY, lw=1.5)
    ax.plot(*(a @ np.array([[-0.16, 0.16], [0.12, 0.12]])), "o", color=style.GREY, ms=4)
    for i, colour in enumerate((style.ACCENT, style.BLUE)):
        tip = a @ v[i]
        if np.hypot(*tip) > 0.02 * reach:
            _arrow(ax, tip, colour, f"{i + 1}", 0.1 * reach * (1 - 2 * i), "-")
    ax.set(aspect="equal", xlim=(-1.8 * reach, 1.8 * reach), ylim=(-reach, reach))
    ax.axis("off")
    return ax


@style.styled
def diagram(
    boxes: Mapping[str, Sequence[float]],
    arrows: Sequence[tuple[str, str, str]],
    *,
    accent: Sequence[str] = (),
    outside: bool = False,
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Boxes, each with its name, and arrows from box to box with a word beside each.

    Args:
        boxes: {name: (x, y, width, height)}, x and y of the middle, in any one unit; y goes up.
        arrows: (name of the start, name of the end, the word, or ""), straight, edge to edge.
        accent: names of the boxes to point at.
        outside: write each name beside its box, away from the middle, or under it there: the boxes
            stay free for pictures.
        ax: where to draw; default a new figure.
        title: above the picture.

    Returns: the ax, in the boxes' unit.
    Raises ValueError without boxes, on a box that is not four finite numbers of positive size, and
    on an arrow or an accent of another name.

    >>> from mathkit import draw
    >>> ax = draw.diagram({"a": (0, 0, 1, 1), "b": (3, 0, 1, 1)}, [("a", "b", "twice")])
    >>> [text.get_text() for text in ax.texts if text.get_text()]
    ['a', 'b', 'twice']
    """
    at = {name: style.numbers(box) for name, box in boxes.items()}
    if not at or any(b.shape != (4,) or b[2:].min() <= 0 for b in at.values()):
        raise ValueError(f"diagram takes boxes (x, y, width, height > 0), got {dict(boxes)}")
    if unknown := {n for a in arrows for n in a[:2]}.union(accent) - set(at):
        raise ValueError(f"diagram has no box {sorted(unknown)}; it has {', '.join(at)}")
    corners = np.array([[x - w / 2, x + w / 2, y - h / 2, y + h / 2] for x, y, w, h in at.values()])
    low, high = corners.min(0)[[0, 2]], corners.max(0)[[1, 3]]
    longest = max(len(line) for name in at for line in name.split("\n"))
    share = min(0.3, 0.09 * longest / style.WIDTH) if outside else 0.01  # of the width, for a name
    wide = (high[0] - low[0]) / (1 - 2 * share)
    foot = 0.45 * wide / style.WIDTH if outside else 0.0
    tall = high[1] - low[1] + foot + 0.02 * wide
    ax = style.axes(ax, min(5.5, max(1.5, style.WIDTH * tall / wide)), title)
    middle, places = (low[0] + high[0]) / 2, {}
    for name, (x, y, w, h) in at.items():
        colour = style.ACCENT if name in accent else style.GREY
        places[name] = Rectangle((x - w / 2, y - h / 2), w, h, fc="none", ec=colour, lw=1.3)
        ax.add_patch(places[name])
        ha, va = "center", "center"
        if outside:
            x, y, ha, va = _beside(x, y, w, h, middle, 0.01 * wide)
        ink = style.ACCENT if name in accent else style.INK
        ax.text(x, y, name, ha=ha, va=va, color=ink, fontsize=10)
    for start, end, word in arrows:
        _join(ax, at[start][:2], at[end][:2], places[start], places[end], word)
    ax.set(xlim=(middle - wide / 2, middle + wide / 2), aspect="equal")
    ax.set(ylim=(low[1] - foot - 0.01 * wide, high[1] + 0.01 * wide))
    ax.axis("off")
    return ax


@style.styled
def heat(
    M: Tensor,
    *,
    signed: bool = False,
    limit: float | None = None,
    rows: Sequence[Any] | None = None,
    columns: Sequence[Any] | None = None,
    digits: int = 2,
    label: str = "",
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """A matrix as coloured cells with a colour bar.

    Unsigned: white is 0, dark is `limit`. Signed: white is 0, red positive, blue negative,
    symmetric.

    Args:
        M: (r, c); values are printed up to 10 columns and 12 rows.
        signed: whether entries may be negative.
        limit: the |value| of full colour, else the largest |entry|.
        rows: tick labels, one for each row.
        columns: tick labels, one for each column.
        digits: decimals of the values.
        label: of the colour bar.
        ax: where to draw; default a new figure.
        title: above the picture.

    Returns: the ax.
    Raises ValueError on other shapes, on NaN, and on negative entries unless signed.

    >>> from mathkit import draw
    >>> ax = draw.heat(mk.matrix([[0.25, 1.0]]).dense(), columns=["left", "right"])
    >>> [text.get_text() for text in ax.texts]
    ['0.25', '1.00']
    """
    m = style.numbers(M)
    if m.ndim != 2 or (not signed and m.min() < 0):
        raise ValueError(
            f"heat takes a matrix, signed=True if negative; got shape {m.shape}, "
            f"smallest entry {m.min():.3g}"
        )
    top = limit or float(np.abs(m).max()) or 1.0
    ax = style.axes(ax, min(6.5, 0.6 + 4.6 * max(0.2, m.shape[0] / m.shape[1])), title)
    low, colours = (-top, style.SIGNED) if signed else (0, style.UNSIGNED)
    image = ax.imshow(m, cmap=colours, vmin=low, vmax=top, aspect="equal", interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label=label, shrink=0.8).outline.set_visible(False)
    ax.grid(False)
    for axis, names in ((ax.xaxis, columns), (ax.yaxis, rows)):
        if names is None:
            axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        else:
            axis.set_ticks(range(len(names)), [str(n) for n in names])
    if columns is not None and max(len(str(n)) for n in columns) > 50 / m.shape[1]:
        ax.tick_params(axis="x", rotation=90)
    if m.shape[1] <= 10 and m.shape[0] <= 12:
        _values(ax, m, digits, 0.5 * top)
    return ax


@style.styled
def features(
    W: Tensor,
    labels: Sequence[Any] | None = None,
    *,
    ax: Axes | None = None,
    columns: int = 5,
    reach: float = 1.4,
    title: str = "",
) -> Axes:
    """The columns of each W as rays from a common point, one panel each, a label under it.

    Args:
        W: (B, 2, n), or a list of such matrices (2, n); feature 0 is the darkest.
        labels: one for each panel; numbers get two decimals, whole ones none.
        ax: where to draw; default a new figure.
        columns: panels to a line.
        reach: half the panel's width, in the units of W.
        title: above the picture.

    Returns: the ax.
    Raises ValueError on other shapes, labels that do not match, and NaN.

    >>> from mathkit import draw
    >>> W = mk.matrix([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]]).dense()
    >>> draw.features(W[None], ["three features"]).texts[0].get_text()
    'three features'
    """
    rays = style.numbers(W)
    if rays.ndim != 3 or rays.shape[1] != 2 or not len(rays):
        raise ValueError(f"features takes W (B, 2, n), got {rays.shape}")
    columns = max(2, min(columns, len(rays)))
    lines = _labels(labels, len(rays), style.WIDTH / columns)
    tops = _tops(lines, columns, 1.0, style.WIDTH)
    given, ax = ax, style.axes(ax, style.WIDTH * -tops[-1] / (1.05 * columns), title)
    colours = style.UNSIGNED(np.linspace(0.95, 0.4, rays.shape[2]))
    for i, (W_i, text) in enumerate(zip(rays, lines, strict=True)):
        x, y = 1.05 * (i % columns) + 0.5, tops[i // columns] - 0.5
        ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor="none", edgecolor=style.FAINT))
        for (a, b), colour in zip(W_i.T / (2 * reach), colours, strict=True):
            ax.plot([x, x + a], [y, y + b], color=colour, lw=2)
            ax.plot(x + a, y + b, "o", color=colour, ms=5)
        ax.text(x, y - 0.52, text, ha="center", va="top", fontsize=10)
    return _frame(ax, 1.05 * columns - 0.05, 0.5 - y, fit=given is None)


def _values(ax: Axes, m: np.ndarray, digits: int, dark: float) -> None:
    for (r, c), x in np.ndenumerate(m):
        text = f"{round(x, digits) + 0.0:.{digits}f}"  # + 0.0: no minus before a zero
        colour = style.ON_DARK if abs(x) > dark else style.ON_LIGHT
        ax.text(c, r, text, ha="center", va="center", color=colour, fontsize=9)


def _place(ax: Axes, pixels: np.ndarray, x: float, top: float) -> float:
    """Draw one picture, 1 wide, its left upper corner at (x, top); return its lower edge."""
    bottom = top - pixels.shape[0] / pixels.shape[1]
    ax.imshow(pixels, extent=(x, x + 1, bottom, top))
    return bottom


def _tops(lines: list[str], columns: int, aspect: float, width: float) -> np.ndarray:
    """The upper edge of each row of pictures 1 wide, and where one more would begin."""
    heights = []
    for i in range(0, len(lines), columns):
        most = max(t.count("\n") + 1 if t else 0 for t in lines[i : i + columns])
        heights.append(aspect + 0.05 + 0.2 * most * columns / width)
    return -np.cumsum([0.0, *heights])


def _frame(ax: Axes, width: float, height: float, left: float = 0.0, fit: bool = False) -> Axes:
    ax.set(xlim=(-left, width), ylim=(-height, 0), aspect="equal")
    ax.axis("off")
    return style.fitted(ax) if fit else ax


def _bars(
    ax: Axes, x: float, y: np.ndarray, values: np.ndarray, thick: float, colours: Any
) -> None:
    ax.barh(y, 1, thick, left=x, color=style.FAINT)
    ax.barh(y, values.clip(0, 1), thick, left=x, color=colours)


def _arrow(ax: Axes, tip: np.ndarray, colour: str, text: str, aside: float, dash: str) -> None:
    """An arrow from the origin; its text beside the tip, `aside` to its left."""
    arrow = {"arrowstyle": "-|>", "color": colour, "lw": 2, "ls": dash, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", tuple(tip), (0, 0), arrowprops=arrow)
    x, y = tip + (aside * np.array([-tip[1], tip[0]]) + 0.5 * abs(aside) * tip) / np.hypot(*tip)
    box = {
        "facecolor": mpl.rcParams["axes.facecolor"],
        "edgecolor": "none",
        "pad": 0.5,
        "alpha": 0.8,
    }
    ax.text(x, y, text, color=colour, ha="center", va="center", fontsize=13, bbox=box)


def _beside(
    x: float, y: float, w: float, h: float, middle: float, gap: float
) -> tuple[float, float, str, str]:
    """Where a name stands outside its box, and how it is aligned."""
    if abs(x - middle) <= w / 2:
        return x, y - h / 2 - gap, "center", "top"
    side = 1 if x > middle else -1
    return x + side * (w / 2 + gap), y, "left" if side > 0 else "right", "center"


def _join(
    ax: Axes, start: np.ndarray, end: np.ndarray, one: Rectangle, other: Rectangle, word: str
) -> None:
    """An arrow from the edge of one box to that of another, its word where it is free."""
    pen = {"arrowstyle": "-|>", "color": style.GREY, "lw": 1.5, "shrinkA": 1, "shrinkB": 1}
    ax.annotate("", tuple(end), tuple(start), arrowprops=pen | {"patchA": one, "patchB": other})
    x, y = 0.42 * start + 0.58 * end
    paper = {"facecolor": mpl.rcParams["axes.facecolor"], "edgecolor": "none", "pad": 1.0}
    ax.text(x, y, word, color=style.ACCENT, ha="center", va="center", fontsize=11, bbox=paper)


def _labels(labels: Sequence[Any] | None, count: int, inches: float) -> list[str]:
    if labels is None:
        return [""] * count
    if len(labels) != count:
        raise ValueError(f"{count} images need {count} labels; got {len(labels)}")
    texts = (x if isinstance(x, str | int) else f"{float(x):.2f}" for x in labels)
    return [textwrap.fill(str(t), max(5, int(inches / 0.085))) for t in texts]
