"""The puppet show: a known chart q -> image of a known manifold, differentiable everywhere.

Ten continuous factors and three of the Stranger, each in [0, 1]; values outside extrapolate.
The screen is [-1, 1]^2 with y upwards. Shapes are signed distance fields; an edge is a logistic
ramp about one pixel wide, so every image depends smoothly on every factor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mathkit import scores
from mathkit.arguments import finite, integer, tensor
from mathkit.linear.jacobian import jacobian

FACTORS = (
    "curtain_hue",
    "felt_hue",
    "eye_size",
    "gaze",
    "smile",
    "mouth_open",
    "hat_height",
    "head_tilt",
    "nose_size",
    "light",
    "stranger",
    "stranger_side",
    "stranger_height",
)
CONTINUOUS = FACTORS[:10]
STRANGER = FACTORS.index("stranger")
STRANGER_RATE = (0.05, 0.25)  # at light = 0 and at light = 1
FEW_FACTORS = ("curtain_hue", "smile", "hat_height", "head_tilt")  # what moves in the simple show

_RANGES = {
    "curtain_hue": (-0.12, 0.13),
    "felt_hue": (0.10, 0.64),
    "eye_size": (0.11, 0.20),
    "gaze": (-0.55, 0.55),
    "smile": (-1.0, 1.0),
    "mouth_open": (0.0, 1.0),
    "hat_height": (0.22, 0.64),
    "head_tilt": (0.36, -0.36),
    "nose_size": (0.055, 0.125),
    "light": (-1.0, 1.0),
    "stranger": (0.0, 1.0),
    "stranger_side": (-1.0, 1.0),
    "stranger_height": (0.25, 0.80),
}


def sample_factors(
    n: int, seed: int, stranger: int | None = None, moving: Sequence[str] = CONTINUOUS
) -> Tensor:
    """Draw n puppets of the lost show: q, one row of factors a puppet, columns in the order of
    FACTORS.

    Each continuous factor is uniform on [0, 1]; one that is not in `moving` stays at .5. The
    Stranger appears with probability .05 + .20 light (15 % of all frames). The same (n, seed) give
    the same q.

    Args:
        n: how many, >= 1.
        seed: an integer >= 0.
        stranger: 1 has him in every frame, 0 in none; None draws him.
        moving: names of the continuous factors that vary.

    Returns: (n, 13), float32, on the CPU.
    Raises ValueError for n < 1, another stranger or a factor that is not continuous.
    Cost: no render.

    >>> q = mk.puppets.sample_factors(3, seed=0, stranger=1)
    >>> q[:, mk.puppets.STRANGER]
    tensor([1., 1., 1.])
    """
    n, seed = integer(n, "n", 1), integer(seed, "seed")
    if stranger not in (None, 0, 1):
        raise ValueError(f"expected stranger None, 0 or 1, got {stranger!r}")
    if not set(moving) <= set(CONTINUOUS):
        raise ValueError(f"expected moving factors among {CONTINUOUS}, got {tuple(moving)}")
    q = torch.rand(n, len(FACTORS), generator=torch.Generator().manual_seed(seed))
    low, high = STRANGER_RATE
    present = q[:, STRANGER] < low + (high - low) * q[:, FACTORS.index("light")]
    q[:, STRANGER] = present.float() if stranger is None else float(stranger)
    q[:, [i for i, name in enumerate(CONTINUOUS) if name not in moving]] = 0.5
    return q


def sample_simple(n: int, seed: int) -> Tensor:
    """Draw n puppets of the simple show: the four FEW_FACTORS move, no Stranger.

    Args:
        n: how many, >= 1.
        seed: an integer >= 0.

    Returns: q (n, 13), as `sample_factors` gives them.
    Raises ValueError for n < 1.
    Cost: no render.

    >>> q = mk.puppets.sample_simple(5, seed=0)
    >>> int((q[:, :10].std(0) > 0).sum())  # columns that vary, of the ten
    4
    """
    return sample_factors(n, seed, stranger=0, moving=FEW_FACTORS)


def render(q: Tensor, size: int = 64, puppet: bool = True) -> Tensor:
    """Draw puppets as images in [-1, 1], differentiable in q.

    Layers, back to front: curtain, Stranger, shoulders, head, hat, eyes, nose, mouth; each is laid
    over the last by image <- image + coverage (colour - image). Gradients are finite for every q.

    Args:
        q: factors (n, 13), floating point, in [0, 1]; values outside extrapolate.
        size: height and width, in pixels.
        puppet: without it there is the curtain, and the Stranger where he is.

    Returns: (n, 3, size, size), on q's device and of its dtype.
    Raises ValueError for a shape other than (n, 13), integers or NaN.
    Cost: n renders.

    >>> mk.puppets.render(torch.full((2, 13), 0.5)).shape
    torch.Size([2, 3, 64, 64])
    """
    f, size = _factors(q), integer(size, "size", 1)
    x, y = _grid(size, q)
    image = _curtain(f, x, y)
    actor = _puppet(f, x, y, size) if puppet else []
    for coverage, colour in (*_stranger(f, x, y, size), *actor):
        image = image + coverage[:, None] * (colour - image)
    vignette = 1 - 0.16 * (x**2 + y**2)
    return 2 * (image * vignette) - 1


def stranger_mask(q: Tensor, size: int = 64) -> Tensor:
    """Share of each pixel that the Stranger covers where he stands.

    Drawn as though stranger = 1, whatever q says, behind the puppet: what the puppet hides is not
    counted.

    Args:
        q: factors (n, 13).
        size: height and width, in pixels.

    Returns: (n, size, size), in [0, 1].
    Raises ValueError as `render` does.
    Cost: about n renders.

    >>> covered = mk.puppets.stranger_mask(torch.full((1, 13), 0.5))[0]
    >>> bool(covered.max() > 0.99), bool(covered.mean() < 0.2)
    (True, True)
    """
    f, size = _factors(q), integer(size, "size", 1)
    f["stranger"] = torch.ones_like(f["stranger"])
    x, y = _grid(size, q)
    seen = _stranger(f, x, y, size)[0][0]
    for coverage, _ in _puppet(f, x, y, size):
        seen = seen * (1 - coverage)
    return seen


def counterfactual(q: Tensor, size: int = 64) -> Tensor:
    """D* = render(q, stranger = 0) - render(q, stranger = 1): the true cure, whatever q says of
    him.

    Args:
        q: factors (n, 13).
        size: height and width, in pixels.

    Returns: (n, 3, size, size), 0 where he would not be seen.
    Raises ValueError as `render` does.
    Cost: 2 n renders.

    >>> q = mk.puppets.sample_factors(1, seed=0, stranger=1)
    >>> cured = mk.puppets.render(q) + mk.puppets.counterfactual(q)
    >>> q[:, mk.puppets.STRANGER] = 0
    >>> torch.allclose(cured, mk.puppets.render(q), atol=1e-5)
    True
    """
    _check(q)
    absent, present = q.clone(), q.clone()
    absent[:, STRANGER], present[:, STRANGER] = 0.0, 1.0
    return render(absent, size) - render(present, size)


def _check(q: Tensor) -> None:
    if tensor(q, "q", f"(n, {len(FACTORS)})").ndim != 2 or q.shape[1] != len(FACTORS):
        raise ValueError(
            f"expected factors of shape (n, {len(FACTORS)}), got {tuple(q.shape)}; "
            "one puppet is q[None]"
        )
    if not torch.is_floating_point(q):
        raise ValueError(
            f"expected factors as floating point numbers, got {q.dtype}; use q.float()"
        )
    if not finite(q):
        raise ValueError("q holds NaN or infinity: its columns are mk.puppets.FACTORS")


def _factors(q: Tensor) -> dict[str, Tensor]:
    _check(q)
    return {
        name: (low + (high - low) * q[:, i])[:, None, None]
        for i, (name, (low, high)) in enumerate(_RANGES.items())
    }


def _grid(size: int, q: Tensor) -> tuple[Tensor, Tensor]:
    axis = (torch.arange(size, device=q.device, dtype=q.dtype) + 0.5) * (2 / size) - 1
    return axis[None, None, :], -axis[None, :, None]


def _length(*parts: Tensor) -> Tensor:
    return torch.sqrt(sum((p**2 for p in parts), torch.full_like(parts[0], 1e-6)))


def _cover(distance: Tensor, size: int) -> Tensor:
    return torch.sigmoid(distance * (-2.2 * size / 2))


def _ellipse(x: Tensor, y: Tensor, rx: Tensor | float, ry: Tensor | float) -> Tensor:
    level = _length(x / rx, y / ry)
    return level * (level - 1) / _length(x / rx**2, y / ry**2)


def _hue(hue: Tensor, light: float = 0.5, chroma: float = 0.5) -> Tensor:
    shift = torch.tensor([0.0, 1 / 3, 2 / 3], dtype=hue.dtype, device=hue.device)[:, None, None]
    return light + chroma * torch.cos(2 * math.pi * (hue[:, None] - shift))


def _rgb(r: float, g: float, b: float, like: Tensor) -> Tensor:
    return torch.tensor([r, g, b], dtype=like.dtype, device=like.device)[None, :, None, None]


def _curtain(f: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    sway = 0.05 * torch.sin(2.2 * y + 0.6)
    fold = torch.cos(5.5 * math.pi * (x + sway)) + 0.35 * torch.cos(11 * math.pi * (x + sway) + 0.9)
    shade = 0.72 + 0.20 * fold + 0.16 * f["light"] * x
    return _hue(f["curtain_hue"], 0.40, 0.40) * shade[:, None]


def _stranger(f: dict[str, Tensor], x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    side, top = f["stranger_side"], f["stranger_height"]
    centre = torch.where(side < 0, -0.66, 0.66).to(side.dtype) + 0.11 * side
    dx, half = x - centre, (top + 1.4) / 2
    body = _ellipse(dx, y - (top - half), 0.17, half)
    eyes = torch.minimum(_length(dx - 0.066, y - top + 0.20), _length(dx + 0.066, y - top + 0.20))
    return [
        (f["stranger"] * _cover(body, size), _rgb(0.02, 0.02, 0.03, x)),
        (f["stranger"] * _cover(eyes - 0.042, size), _rgb(0.95, 0.95, 0.90, x)),
    ]


def _puppet(f: dict[str, Tensor], x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    felt = _hue(f["felt_hue"], 0.47, 0.30)
    shoulders = _ellipse(x, y + 1.06, 0.52, 0.44)
    body = felt * (0.72 + 0.30 * f["light"] * x + 0.1 * y)[:, None]
    cos, sin = torch.cos(f["head_tilt"]), torch.sin(f["head_tilt"])
    px, py = x / 1.14, (y + 0.55) / 1.14  # the neck, about which the head turns
    hx, hy = cos * px - sin * py, sin * px + cos * py - 0.34
    return [(_cover(shoulders, size), body), *_head(f, felt, hx, hy, size)]


def _head(
    f: dict[str, Tensor], felt: Tensor, x: Tensor, y: Tensor, size: int
) -> list[tuple[Tensor, Tensor]]:
    light = f["light"]
    bulge = torch.exp(-4 * ((x - 0.25 * light) ** 2 + (y - 0.12) ** 2))
    glow = (0.50 + 0.62 * bulge + 0.75 * light * x)[:, None]
    hat = _hat(f, x, y)
    cone = _hue(f["felt_hue"] + 0.42, 0.50, 0.36)
    stripe = 0.5 + 0.5 * torch.sin(30 * (y - 0.30) - 4 * x)
    hat_colour = cone * (0.70 + 0.22 * stripe + 0.9 * light * x)[:, None]
    return [
        (_cover(_ellipse(x, y, 0.43, 0.46), size), felt * glow),
        (_cover(hat, size), hat_colour),
        *_eyes(f, x, y, size),
        *_mouth(f, x, y, size),
        (
            _cover(_length(x, y + 0.035) - f["nose_size"], size),
            _rgb(0.90, 0.16, 0.14, x) * (0.88 + 1.6 * light * x)[:, None],
        ),
    ]


def _hat(f: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    base, height, half = 0.29, f["hat_height"], 0.33
    slope = torch.sqrt(height**2 + half**2)
    sides = (height * x.abs() + half * (y - base - height)) / slope
    brim = base - y - 0.10 * (1 - (x / half) ** 2)
    return torch.maximum(sides, brim)


def _eyes(f: dict[str, Tensor], x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    r, up = f["eye_size"], 0.155
    white = torch.minimum(_length(x - 0.17, y - up), _length(x + 0.17, y - up)) - r
    pupil_r, look = 0.42 * r + 0.012, f["gaze"] * r
    left, right = _length(x + 0.17 - look, y - up), _length(x - 0.17 - look, y - up)
    pupil = torch.minimum(left, right) - pupil_r
    return [
        (_cover(white, size), _rgb(0.97, 0.96, 0.92, x)),
        (_cover(pupil, size), _rgb(0.04, 0.03, 0.06, x)),
    ]


def _mouth(f: dict[str, Tensor], x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    u = x / 0.26
    arch = 1 - u**2
    middle = -0.235 + 0.095 * f["smile"] * (0.5 - arch)
    half = (0.018 + 0.075 * f["mouth_open"]) * arch
    lips = (y - middle).abs() - half
    tongue = torch.maximum(lips + 0.022, y - middle + 0.35 * half)
    return [
        (_cover(lips, size), _rgb(0.20, 0.02, 0.05, x)),
        (_cover(tongue, size) * f["mouth_open"], _rgb(0.80, 0.30, 0.34, x)),
    ]


def tangents(q: Tensor) -> Tensor:
    """The ten true tangent vectors J_R b_j of the show at one q, R the renderer, b_j the j-th
    factor.

    Args:
        q: factors (1, 13).

    Returns: (10, 3, 64, 64), in the order of CONTINUOUS: the change of the image per unit of a
    factor.
    Raises ValueError as `render` does.
    Cost: 10 pushes through the renderer.

    >>> mk.puppets.tangents(torch.full((1, 13), 0.5)).shape
    torch.Size([10, 3, 64, 64])
    """
    return jacobian(render, q).push(torch.eye(q.shape[1]).to(q)[: len(CONTINUOUS)])


def average_puppet(n: int = 2000) -> Tensor:
    """The mean frame of the show.

    Args:
        n: frames in the mean, always the same ones.

    Returns: (1, 3, 64, 64).
    Cost: n renders.

    >>> mk.puppets.average_puppet(20).shape
    torch.Size([1, 3, 64, 64])
    """
    return render(sample_factors(n, seed=31)).mean(0, keepdim=True)


def unrelated_distance(n: int = 400) -> float:
    """Mean |a - b| between unrelated frames of the show: the unit of every side effect.

    Args:
        n: frames, always the same ones; each is compared with the one before it.

    Returns: a mean over pixels and channels, in image units of [-1, 1].
    Cost: n renders.

    >>> 0.2 < mk.puppets.unrelated_distance(20) < 0.3
    True
    """
    frames = render(sample_factors(n, seed=41))
    return float(scores.pixel_distance(frames, frames.roll(1, 0)).mean())
