"""Curves with their bands: spectra, rate against side effect, what is measured over t.

Notebooks call these as `draw.spectrum` and so on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle, product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation
from torch import Tensor

from mathkit.draw import style

MARKERS = "osD^vP"


@style.styled
def spectrum(
    S: Tensor,
    *,
    residuals: Tensor | None = None,
    k: int | None = None,
    log: bool = False,
    label: str = "",
    ax: Axes | None = None,
    title: str = "",
    ylabel: str = "singular value",
) -> Axes:
    """Singular values against i = 1 ... K; call again on its `ax` to compare.

    Args:
        S: (K,).
        residuals: (K,), bars s_i -+ residual, within which a true singular value lies.
        k: a mark in the gap after the k-th.
        log: logarithmic axis, values <= 0 are left out.
        label: of this curve, in a legend.
        ax: where to draw; default a new figure.
        title: above the picture.
        ylabel: of the vertical axis.

    Returns: the ax.
    Raises ValueError on NaN.

    >>> from mathkit import draw
    >>> ax = draw.spectrum(mk.svd(mk.matrix([[3.0, 0.0], [0.0, 1.0]]), 2).S, k=1)
    >>> ax.get_ylabel(), ax.texts[0].get_text()
    ('singular value', 'k = 1')
    """
    s = style.numbers(S)
    ax = style.axes(ax, 3.2, title)
    ax.set(xlabel="i", ylabel=ylabel, yscale="log" if log else ax.get_yscale())
    i = np.arange(1, len(s) + 1)
    shown = s > 0 if log else np.full(len(s), True)
    error = None if residuals is None else style.numbers(residuals)[shown]
    marker = MARKERS[len(ax.containers) % len(MARKERS)]
    ax.errorbar(i[shown], s[shown], error, marker=marker, lw=1.2, capsize=3, label=label or None)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if not log:
        ax.autoscale(axis="y")  # another curve on the same axes may be higher
        ax.set_ylim(bottom=0)
    if k is not None:
        _mark(ax, k + 0.5, f"k = {k}", style.ACCENT)
    if label:
        ax.legend()
    return ax


@style.styled
def tradeoff(
    curves: Mapping[str, Sequence[Any]],
    *,
    doses: Sequence[float] = (0.05, 0.15),
    accent: str = "",
    ax: Axes | None = None,
    title: str = "",
    xlabel: str = "side effect (1 = another puppet)",
    ylabel: str = "share cured",
) -> Axes:
    """Rate against side effect, one curve with its band for each name.

    Args:
        curves: {name: (x, y) or (x, y, low, high)}; one point alone is drawn with an error bar.
        doses: marks on the x axis.
        accent: the name of the curve to point at.
        ax: where to draw; default a new figure.
        title: above the picture.
        xlabel: of the horizontal axis.
        ylabel: of the vertical axis.

    Returns: the ax.
    Raises ValueError on NaN.

    >>> from mathkit import draw
    >>> aimed, random = ([0.05, 0.15], [0.4, 0.8]), ([0.15], [0.1], [0.0], [0.3])
    >>> ax = draw.tradeoff({"aimed": aimed, "random": random}, accent="aimed")
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['aimed', 'random']
    """
    ax = style.axes(ax, 3.6 + 0.22 * math.ceil(len(curves) / 2), title)
    _curves(ax, curves, accent)
    for dose in doses:
        _mark(ax, dose, f"{dose:g}", style.GREY)
    ax.set(xlabel=xlabel, ylabel=ylabel, ylim=(-0.03, 1.1))
    ax.set_xlim(left=0)
    return _legend_below(ax)


@style.styled
def over_time(
    curves: Mapping[str, Sequence[Any]],
    *,
    levels: Mapping[str, float] | None = None,
    accent: str = "",
    log: bool = False,
    ax: Axes | None = None,
    title: str = "",
    ylabel: str = "",
) -> Axes:
    """What is measured at times t, noise on the left, picture on the right.

    Args:
        curves: {name: (t, y) or (t, y, low, high)}, one line with its band each, each at times of
            its own.
        levels: named horizontal lines, such as chance.
        accent: the name of the curve to point at.
        log: logarithmic vertical axis.
        ax: where to draw; default a new figure.
        title: above the picture.
        ylabel: of the vertical axis.

    Returns: the ax.
    Raises ValueError on NaN.

    >>> from mathkit import draw
    >>> ax = draw.over_time({"kept": ([900, 100], [0.2, 0.9])}, levels={"chance": 0.1})
    >>> bool(ax.xaxis.get_inverted()), ax.texts[0].get_text()
    (True, 'chance')
    """
    ax = style.axes(ax, 3.2 + 0.22 * math.ceil(len(curves) / 2), title)
    _curves(ax, curves, accent)
    for name, y in (levels or {}).items():
        ax.axhline(y, color=style.GREY, ls="--", lw=1.3, zorder=1)
        ax.annotate(
            name,
            (1, y),
            (-3, 3),
            xycoords=ax.get_yaxis_transform(),
            textcoords="offset points",
            ha="right",
            fontsize=10,
            color=style.GREY,
        )
    ax.set(xlabel="t", ylabel=ylabel, yscale="log" if log else "linear")
    if not log:
        ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
    ax.xaxis.set_inverted(True)
    return _legend_below(ax)


def _curves(ax: Axes, curves: Mapping[str, Sequence[Any]], accent: str) -> None:
    pens = product(("-", "--", ":"), style.CYCLE)
    for (name, curve), marker in zip(curves.items(), cycle(MARKERS), strict=False):
        x, y, *ends = map(style.numbers, curve)
        line, colour = ("-", style.ACCENT) if name == accent else next(pens)
        ax.plot(x, y, line, marker=marker, color=colour, label=name, zorder=3 + (name == accent))
        if ends:
            _band(ax, x, ends[0], ends[1], colour)


def _legend_below(ax: Axes) -> Axes:
    under = ax.transAxes + ScaledTranslation(0, -0.55, ax.figure.figure.dpi_scale_trans)
    pair = 2 if ax.get_window_extent().width > 4 * ax.figure.figure.dpi else 1
    ax.legend(
        loc="upper left", bbox_to_anchor=(0, 0), bbox_transform=under, ncols=pair, borderaxespad=0
    )
    return ax


def _band(ax: Axes, x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str) -> None:
    """The interval of a curve; of a single point, a bar."""
    if len(x) > 1:
        ax.fill_between(x, low, high, color=colour, alpha=0.16, lw=0)
    else:
        ax.vlines(x, low, high, color=colour, lw=1.5)


def _mark(ax: Axes, x: float, text: str, colour: str) -> None:
    """A vertical line at x with its text beside the upper end."""
    ax.axvline(x, color=colour, ls="--", lw=1.3, zorder=1)
    ax.annotate(
        text,
        (x, 1),
        (3, 0),
        xycoords=ax.get_xaxis_transform(),
        color=colour,
        textcoords="offset points",
        va="top",
        fontsize=10,
    )
