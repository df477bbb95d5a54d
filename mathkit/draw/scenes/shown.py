"""Scenes before the cure: counting, a pushed curve, push and pull, a basis that fails, rulers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from torch import Tensor

from mathkit import data, scores
from mathkit.draw.scenes.plane import CIRCLE, felt, healthy, turns
from mathkit.draw.scenes.scene import Scene, Stage, colours, eased, held, split
from mathkit.linear import metric
from mathkit.linear.jacobian import jacobian
from mathkit.show import puppets


def count(n: int = 240) -> Scene:
    """Two thousand drawings are counted, and the interval closes.

    Args:
        n: frames, >= 3.

    Returns: a scene with ill (2000,), counted (n,), share, low and high (n,), Wilson's 95 %.
    Cost: none; the drawings were counted by `python -m studies results alice`.

    >>> from mathkit.draw import scenes
    >>> scene = scenes.count(n=10)
    >>> bool((scene["low"] <= scene["share"]).all() and (scene["share"] <= scene["high"]).all())
    True
    """
    ill = np.array(data.stored("alice")["factors"])[:, puppets.STRANGER] > 0.5
    go, end = split(n, 5, 1)
    counted = np.rint(10 * (len(ill) / 10) ** np.linspace(0, 1, go)).astype(int)
    counted = np.concatenate([counted, np.full(end, len(ill))])
    k = np.cumsum(ill)[counted - 1]
    ends = [scores.wilson(int(a), int(b)) for a, b in zip(k, counted, strict=True)]
    arrays = {
        "ill": ill, "counted": counted, "share": k / counted,
        "low": np.array([e.low for e in ends]), "high": np.array([e.high for e in ends]),
    }  # fmt: skip
    captions = tuple(f"{a} of {b:,} drawings" for a, b in zip(k, counted, strict=True))
    return Scene("count", "How often does he come?", arrays, captions, _draw_count)


def _draw_count(scene: Scene, stage: Stage) -> Callable[[int], None]:
    ax = stage.axes(0.55, 0.95, 6.2, 5.2)
    ax.axis("off")
    place = np.arange(len(scene["ill"]))
    across = 50
    dots = ax.scatter(place % across, -(place // across), s=38, marker="s", lw=0)
    ink = np.array([to_rgb(stage.grey), to_rgb(stage.accent)])[scene["ill"].astype(int)]
    chart = stage.chart(7.9, 1.5, stage.width - 8.6, 4.2, xlim=(10, len(place)), ylim=(0, 0.55),
                        xscale="log", yticks=[0, 0.15, 0.3, 0.45])  # fmt: skip
    chart.set_xticks([10, 100, 1000], ["10", "100", "1,000"])
    chart.set_xticks([], minor=True)
    chart.axhline(0.15, color=stage.ink, lw=2, ls="--")
    chart.text(1900, 0.165, "the show: .15", fontsize=18, va="bottom", ha="right")
    chart.set_title("share, 95 % interval", fontsize=18, loc="left")
    band = chart.fill_between([], [], [], color=stage.blue, alpha=0.3, lw=0)
    (line,) = chart.plot([], [], color=stage.accent, lw=4)

    def show(i: int) -> None:
        m, done = int(scene["counted"][i]), scene["counted"][: i + 1]
        dots.set_offsets(np.stack([place % across, -(place // across)], 1)[:m])
        dots.set_color(ink[:m])
        line.set_data(done, scene["share"][: i + 1])
        edge = np.concatenate([scene["low"][: i + 1], scene["high"][: i + 1][::-1]])
        band.set_verts([np.stack([np.concatenate([done, done[::-1]]), edge], 1)])

    return show


BIG, SMALL = 1.6, 0.75  # radii of the ring
TILT = math.radians(38)


def ring(ab: Tensor) -> Tensor:
    """The chart of a torus: angles (B, 2) to points (B, 3)."""
    a, b = ab.unbind(-1)
    wide = BIG + SMALL * b.cos()
    return torch.stack([wide * a.cos(), wide * a.sin(), SMALL * b.sin()], -1)


def pushed_curve(n: int = 240) -> Scene:
    """A curve in a chart and its velocity; on the ring the pushed curve and the pushed velocity.

    Args:
        n: frames, >= 2.

    Returns: a scene with curve and velocity (n, 2) in the chart, pushed (n, 3) and pushforward
    (n, 3) on the ring, J v by `mk.jacobian`.
    Cost: n pushes of two numbers.

    >>> from mathkit.draw import scenes
    >>> scenes.pushed_curve(n=5)["pushforward"].shape
    (5, 3)
    """
    s = torch.linspace(0, 1, n, dtype=torch.float64)

    def gamma(s: Tensor) -> Tensor:
        a = -1.35 + 0.95 * torch.sin(2 * math.pi * s)
        return torch.stack([a, 0.95 + 0.75 * torch.cos(2 * math.pi * s + 0.6)], -1)

    curve = gamma(s)
    speeds, images = [], []
    for one in s:
        velocity = jacobian(lambda x: gamma(x[:, 0]), one[None, None])  # shape (1) -> (2)
        v = velocity.push(torch.ones(1, 1, dtype=torch.float64)) / (2 * math.pi)
        speeds.append(v)
        images.append(jacobian(ring, gamma(one[None])).push(v))
    arrays = {
        "curve": curve.numpy(), "velocity": torch.cat(speeds).numpy(),
        "pushed": ring(curve).numpy(), "pushforward": torch.cat(images).numpy(),
    }  # fmt: skip
    first, second = split(n, 1, 1)
    words = held(("a curve in the chart, and its velocity", first),
                 ("on the ring: the same curve, pushed, and J v", second))  # fmt: skip
    return Scene("pushed", "The pushforward", arrays, words, _draw_pushed)


def seen(points: np.ndarray) -> np.ndarray:
    """Points (..., 3) as an eye at the height TILT sees them from far: right and up."""
    x, y, z = np.moveaxis(points, -1, 0)
    return np.stack([x, math.sin(TILT) * y + math.cos(TILT) * z], -1)


def _draw_ring(ax: Axes, stage: Stage) -> None:
    a, b = np.meshgrid(np.linspace(0, 2 * np.pi, 49), np.linspace(0, 2 * np.pi, 25), indexing="ij")
    points = ring(torch.tensor(np.stack([a, b], -1))).numpy()
    quads = np.stack([points[:-1, :-1], points[1:, :-1], points[1:, 1:], points[:-1, 1:]], 2)
    quads = quads.reshape(-1, 4, 3)
    depth = quads.mean(1) @ np.array([0, -math.cos(TILT), math.sin(TILT)])
    faces = seen(quads[np.argsort(depth)])
    ax.add_collection(PolyCollection(list(faces), facecolor=stage.paper, edgecolor=stage.grey,
                                     lw=0.6))  # fmt: skip


def _draw_pushed(scene: Scene, stage: Stage) -> Callable[[int], None]:
    left = stage.plane(0.55, 0.95, 5.3, 2.6, cross=False)
    for k in np.linspace(-2.5, 2.5, 11):
        left.plot([k, k], [-2.5, 2.5], color=stage.faint, lw=1)
        left.plot([-2.5, 2.5], [k, k], color=stage.faint, lw=1)
    right = stage.plane(stage.width - 6.35, 0.75, 5.8, 2.45, cross=False)
    _draw_ring(right, stage)
    lines = [ax.plot([], [], color=stage.blue, lw=4)[0] for ax in (left, right)]
    arrows = [stage.arrow(ax, stage.accent) for ax in (left, right)]
    tracks = scene["curve"], seen(scene["pushed"])
    speeds = 0.8 * scene["velocity"], 0.8 * seen(scene["pushforward"])
    left.text(-2.5, -2.55, "the chart", fontsize=18, va="top")

    def show(i: int) -> None:
        for line, put, track, v in zip(lines, arrows, tracks, speeds, strict=True):
            line.set_data(*track[: i + 1].T)
            put(track[i], track[i] + v[i])

    return show


def push_and_pull(n: int = 240) -> Scene:
    """One number, two ways: the measurement of a pushed direction, the pulled one of a direction.

    v turns in the plane of two dials; u is the mean brightness of the mouth's window. <u, J v> is
    read in the picture, <J^T u, v> on the dials.

    Args:
        n: frames, >= 2.

    Returns: a scene with angle, forward and back (n,), pulled (2,), and pictures J v (n, ...).
    Cost: n / 4 pushes and one pull through the renderer.

    >>> from mathkit.draw import scenes
    >>> scene = scenes.push_and_pull(n=8)
    >>> bool(np.allclose(scene["forward"], scene["back"], atol=1e-4))
    True
    """
    q, E = healthy(), turns(("mouth_open", "light"))
    A = jacobian(puppets.render, q)
    u = torch.zeros(1, 3, 64, 64)
    u[..., 40:52, 20:44] = 40 / (3 * 12 * 24)
    angle = torch.linspace(0, 2 * math.pi, n)
    V = torch.stack([angle.cos(), angle.sin()], 1) @ E
    both = A.push(E)  # linear: every J v is a mix of these two
    pushed = torch.stack([angle.cos(), angle.sin()], 1) @ both.flatten(1)
    most = float(both.abs().max())
    pulled = A.pull(u)[0]
    arrays = {
        "angle": angle.numpy(), "pulled": (E @ pulled).numpy(),
        "forward": (pushed @ u.flatten()).numpy(), "back": (V @ pulled).numpy(),
        "pictures": colours(pushed.reshape(n, 3, 64, 64), signed=True, scale=0.5 * most),
    }  # fmt: skip
    words = held(("push v forward and measure, or pull the measurement back: one number", n))
    return Scene("pull", "\u27e8u, J v\u27e9 = \u27e8J\u1d40u, v\u27e9", arrays, words, _draw_pull)


def _draw_pull(scene: Scene, stage: Stage) -> Callable[[int], None]:
    from matplotlib.patches import Rectangle

    ax = stage.plane(0.2, 1.0, 5.1, 1.45)
    ax.plot(*CIRCLE, color=stage.grey, lw=2)
    ax.text(1.4, 0.07, "mouth", fontsize=18, ha="right")
    ax.text(0.05, 1.1, "light", fontsize=18)
    w = scene["pulled"]
    stage.arrow(ax, stage.blue)((0, 0), w / np.hypot(*w))
    x, y = 1.2 * w / np.hypot(*w)
    ax.text(x, y, "J\u1d40u", fontsize=20, color=stage.blue, ha="center", va="center")
    put = stage.arrow(ax, stage.accent)
    picture = stage.picture(5.45, 1.55, 4.2, "J v, and where u measures", smooth=False)
    picture.axes.add_patch(Rectangle((20 / 64, 12 / 64), 24 / 64, 12 / 64, fill=False, lw=3,
                                     ec=stage.blue, transform=picture.axes.transAxes))  # fmt: skip
    most = float(abs(scene["forward"]).max())
    chart = stage.chart(10.3, 1.55, 2.3, 4.2, xlim=(-0.7, 1.7), ylim=(-most, most), yticks=[0])
    chart.set_xticks([0, 1], ["\u27e8u, Jv\u27e9", "\u27e8J\u1d40u, v\u27e9"])
    bars = chart.bar([0, 1], [0, 0], 0.7, color=[stage.accent, stage.blue])

    def show(i: int) -> None:
        a = float(scene["angle"][i])
        put((0, 0), (math.cos(a), math.sin(a)))
        picture.set_data(scene["pictures"][i])
        for bar, name in zip(bars, ("forward", "back"), strict=True):
            bar.set_height(float(scene[name][i]))

    return show


def failing_basis(first: float = 25.0, n: int = 240) -> Scene:
    """A point stays while the second arrow turns towards the first: its coordinates explode.

    Args:
        first: degrees of the arrow that rests.
        n: frames, >= 4.

    Returns: a scene with point (2,), P (n, 2, 2), the arrows its columns, and coordinates (n, 2).
    Cost: n solutions of two equations.

    >>> from mathkit.draw import scenes
    >>> scene = scenes.failing_basis(n=9)
    >>> bool(np.allclose(scene["P"] @ scene["coordinates"][..., None], scene["point"][:, None]))
    True
    """
    point = np.array([0.6, 1.1])
    wait, go, end = split(n, 2, 6, 1)
    turn = np.concatenate([np.zeros(wait), eased(go), np.ones(end)])
    second = np.deg2rad(first + 90 + turn * (5.0 - 90))
    one = np.full_like(second, math.radians(first))
    P = np.stack([np.stack([np.cos(one), np.cos(second)], 1),
                  np.stack([np.sin(one), np.sin(second)], 1)], 1)  # fmt: skip
    c = np.linalg.solve(P, np.broadcast_to(point[:, None], (n, 2, 1)))[..., 0]
    arrays = {"point": point, "P": P, "coordinates": c, "degrees": np.rad2deg(second - one)}
    words = held(("a square corner: coordinates are what one measures", wait),
                 ("the second arrow turns; the point does not move", go),
                 ("five degrees apart: much of the one, minus much of the other", end))  # fmt: skip
    return Scene("basis", "When a basis fails", arrays, words, _draw_basis)


def _draw_basis(scene: Scene, stage: Stage) -> Callable[[int], None]:
    ax = stage.plane(0.55, 0.85, 5.6, 2.2)
    (path,) = ax.plot([], [], color=stage.ink, lw=3, ls=":")
    ax.plot(*scene["point"], "o", color=stage.accent, ms=16, zorder=6)
    inks = stage.blue, stage.green
    arrows = [stage.arrow(ax, ink) for ink in inks]
    most = 1.1 * float(abs(scene["coordinates"]).max())
    chart = stage.chart(7.4, 1.3, stage.width - 8.1, 4.5, xlim=(-0.6, 1.6), ylim=(-most, most))
    chart.set_xticks([0, 1], ["first", "second"])
    chart.axhline(0, color=stage.grey, lw=1.5)
    chart.set_title("its coordinates", fontsize=18, loc="left")
    bars = chart.bar([0, 1], [0, 0], 0.6, color=inks)

    def show(i: int) -> None:
        P, c = scene["P"][i], scene["coordinates"][i]
        path.set_data(*np.stack([0 * c, c[0] * P[:, 0], scene["point"]]).T)
        for k, (put, bar) in enumerate(zip(arrows, bars, strict=True)):
            put((0, 0), P[:, k])
            bar.set_height(float(c[k]))

    return show


def two_rulers(dials: tuple[str, str] = ("head_tilt", "curtain_hue"), n: int = 240) -> Scene:
    """Which change is larger? The pixels' ruler and ALICE's disagree.

    Args:
        dials: two names of `mk.puppets.CONTINUOUS`.
        n: frames, >= 3.

    Returns: a scene with pixels and felt (2,), the lengths of the two changes by either ruler, each
    over the larger, bars (n, 2), and the pictures of both changes, moved (60, 2, 160, 160, 3).
    Raises ValueError for names that are no dials.
    Cost: two pushes through the encoder, 120 renders.
    """
    q, E = puppets.sample_factors(1, seed=8, stranger=0), turns(dials)
    pixels = metric.length(jacobian(puppets.render, q), E).numpy()
    hers = metric.length(felt(q, 500), E).numpy()
    swing = 0.3 * torch.sin(torch.arange(60) * 2 * math.pi / 60)
    moved = [colours(puppets.render(q + swing[:, None] * e, size=160)) for e in E]
    a, move, b = split(n, 4, 1, 4)
    s = np.concatenate([np.zeros(a), eased(move), np.ones(b)])[:, None]
    arrays = {
        "dials": np.array(dials), "pixels": pixels / pixels.max(), "felt": hers / hers.max(),
        "bars": (1 - s) * pixels / pixels.max() + s * hers / hers.max(),
        "moved": np.stack(moved, 1),
    }  # fmt: skip
    words = held(("how many pixels change, and by how much", a), ("another ruler", move),
                 ("how far it moves what ALICE makes of it: J\u1d40J", b))  # fmt: skip
    return Scene("rulers", "Which change is the larger one?", arrays, words, _draw_rulers)


def _draw_rulers(scene: Scene, stage: Stage) -> Callable[[int], None]:
    gap = stage.width / 4
    names = [name.replace("_", " ") for name in scene["dials"].tolist()]
    faces = [stage.picture(k * gap - 2.0, 2.1, 4.0) for k in (1, 3)]
    bars = []
    for k, name, ink in zip((1, 3), names, (stage.blue, stage.accent), strict=True):
        stage.words(k * gap - 2.0, 1.75, name)
        ax = stage.axes(k * gap - 2.0, 1.05, 4.0, 0.4)
        ax.set(xlim=(0, 1), ylim=(-0.5, 0.5), xticks=[], yticks=[])
        ax.axis("off")
        ax.barh([0], [1], 1, color=stage.faint)
        bars.append(ax.barh([0], [0], 1, color=ink)[0])

    def show(i: int) -> None:
        for face, bar, image, long in zip(faces, bars, scene["moved"][i % 60], scene["bars"][i],
                                          strict=True):  # fmt: skip
            face.set_data(image)
            bar.set_width(float(long))

    return show
