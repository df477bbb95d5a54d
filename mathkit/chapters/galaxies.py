"""What can be measured of a galaxy without labels, and how its picture must change.

Light is `mathkit.diffusion.galaxies.flux` of x_0. Lengths are pixels, from the middle of the
picture, across to the right and down.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mathkit.arguments import tensor
from mathkit.diffusion.galaxies import WIDTH, flux

FACTORS = (
    "flux", "across", "down", "size", "ellipticity", "angle", "concentration", "asymmetry",
)  # fmt: skip
ANGLE = FACTORS.index("angle")
MOTIONS = ("across", "down", "turn", "growth", "brightness")
ROUNDS = 60  # of the moments: they near their end by a factor of 2 to 3 each time


def measure(x: Tensor) -> Tensor:
    """The factors of galaxies, FACTORS, from the moments of their light under a matched weight.

    First the light is blurred by a Gaussian of sigma 1 pixel, so that a point has a shape too. The
    weight is a Gaussian of the galaxy's own centre and shape, w = exp(-d^2 / 2) with d the
    distance in units of that shape, so the empty sky does not count: C = 2 E_w[r r^T]. Then

    flux: log10 of all light. across, down: the centre. size: det(C)^(1/4), the sigma of a round
    Gaussian. ellipticity: (a^2 - b^2) / (a^2 + b^2), a and b the axes of C. angle: of the long one,
    in radians, from across towards down, in (-pi/2, pi/2]. concentration: the light under w by that
    under exp(-d^2 / 18), 5/9 for a Gaussian, less in a wide halo. asymmetry: the light's difference
    from itself turned by half a turn, by twice the light, both under exp(-d^2 / 8); 0 to 1.

    Args:
        x: x_0 (B, 1, side, side); differentiable.

    Returns: (B, 8).
    Raises ValueError for another shape, and for a picture in which no such galaxy is found.
    Cost: no network call; ROUNDS passes over the picture.
    Source: adaptive moments, Bernstein and Jarvis 2002; asymmetry, Conselice 2003.

    >>> r = torch.arange(32.0) - 15.5
    >>> light = torch.exp(-(r**2 / 30 + r[:, None] ** 2 / 6))  # variances 15, 3; blurred 16, 4
    >>> from mathkit.chapters import galaxies
    >>> q = galaxies.measure(torch.log1p(light)[None, None] / 0.1)
    >>> [round(float(value), 2) for value in q[0, 3:7]]
    [2.83, 0.6, 0.0, 0.56]
    """
    if tensor(x, "x", "(B, 1, side, side)").ndim != 4 or x.shape[1] != 1:
        raise ValueError(f"x is x_0 (B, 1, side, side), got {tuple(x.shape)}")
    picture = blurred(flux(x))
    light, r = picture[:, 0].flatten(1), grid(x)
    centre, C = matched(light, r)
    d = distance2(r, centre, C)
    spread, tilt = C[:, 0, 0] - C[:, 1, 1], 2 * C[:, 0, 1]
    trace = C[:, 0, 0] + C[:, 1, 1]
    inner, outer = ((light * torch.exp(-d / k)).sum(1) for k in (2, 18))
    return torch.stack(
        [
            light.sum(1).clamp_min(1e-9).log10(), centre[:, 0], centre[:, 1],
            torch.linalg.det(C).clamp_min(0) ** 0.25,
            (spread**2 + tilt**2).clamp_min(1e-24).sqrt() / trace,
            torch.atan2(tilt, spread) / 2, inner / outer, asymmetry(picture, centre, d),
        ], 1,
    )  # fmt: skip


def blurred(light: Tensor) -> Tensor:
    """light (B, 1, side, side) under a Gaussian of sigma 1 pixel, dark outside."""
    r = torch.arange(-5, 6).to(light)
    w = torch.exp(-(r**2) / 2)
    w = w / w.sum()
    across = torch.nn.functional.conv2d(light, w[None, None, None], padding=(0, 5))
    return torch.nn.functional.conv2d(across, w[None, None, :, None], padding=(5, 0))


def grid(x: Tensor) -> Tensor:
    """The places (side * side, 2) of the pixels, across and down from the middle."""
    axes = [torch.arange(n, dtype=x.dtype, device=x.device) - (n - 1) / 2 for n in x.shape[-2:]]
    down, across = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([across.flatten(), down.flatten()], 1)


def matched(light: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Centre (B, 2) and shape C (B, 2, 2) of light (B, n) at the places r (n, 2)."""
    centre = light.new_zeros(len(light), 2)
    C = (float(r.max()) / 4) ** 2 * torch.eye(2).to(light).expand(len(light), 2, 2)
    for _ in range(ROUNDS):
        w = light * torch.exp(-distance2(r, centre, C) / 2)
        w = w / w.sum(1, keepdim=True)
        centre = w @ r
        away = r - centre[:, None]
        C = 2 * (w[..., None] * away).transpose(1, 2) @ away
        least = float(torch.linalg.det(C.detach()).nan_to_num(-1).min())
        if not (least > 1e-4 and float(C.detach().abs().max()) < (0.6 * float(r.max())) ** 2):
            raise ValueError(
                "expected pictures of a galaxy, brighter than the sky about it and smaller than "
                "the picture: of one here the moments of the light do not settle"
            )
    return centre, C


def distance2(r: Tensor, centre: Tensor, C: Tensor) -> Tensor:
    """(r - centre)^T C^-1 (r - centre), (B, n)."""
    away = r - centre[:, None]
    return (away @ torch.linalg.inv(C) * away).sum(-1)


def asymmetry(light: Tensor, centre: Tensor, d: Tensor) -> Tensor:
    """As `measure` says, of light (B, 1, side, side)."""
    places = (2 * centre[:, None] - grid(light)) / ((light.shape[-1] - 1) / 2)
    turned = torch.nn.functional.grid_sample(
        light, places.unflatten(1, light.shape[-2:]), mode="bicubic", align_corners=True
    )
    w, both = torch.exp(-d / 8), (light.flatten(1), turned.flatten(1))
    return (w * (both[0] - both[1]).abs()).sum(1) / (w * (both[0] + both[1])).sum(1)


def change(low: Tensor, high: Tensor) -> Tensor:
    """high - low of factors (B, 8); of the angle e sin(2 (high - low)), e the mean ellipticity.

    So half a turn is none, and a round galaxy has no angle.
    """
    found, e = high - low, FACTORS.index("ellipticity")
    turn = (low[:, e] + high[:, e]) / 2 * torch.sin(2 * found[:, ANGLE])
    return torch.cat([found[:, :ANGLE], turn[:, None], found[:, ANGLE + 1 :]], 1)


def spread(q: Tensor) -> Tensor:
    """How far galaxies q (B, 8) differ in each factor, (8,): the standard deviation, by `change`
    between each and the next."""
    return change(q, q.roll(1, 0)).square().mean(0).sqrt() / 2**0.5


def motions(x: Tensor) -> Tensor:
    """How the picture of a galaxy must change when it moves as any galaxy may: five tangents.

    By a pixel across or down, by a turn (a radian), by growth and by brightness (both by the factor
    e), to first order, about its own centre: of x(r - c), x(R r), x(r / s) and log(1 + b flux) /
    .1. No model is asked, and no label: every such picture is a galaxy too.

    Args:
        x: x_0 (1, 1, side, side), smooth over a pixel or two.

    Returns: (5, 1, side, side), in the order of MOTIONS.
    Raises as `measure` does.
    Cost: no network call.

    >>> r = torch.arange(32.0) - 15.5
    >>> round_one = torch.log1p(torch.exp(-(r**2 + r[:, None] ** 2) / 18))[None, None] / 0.1
    >>> from mathkit.chapters import galaxies
    >>> turn = galaxies.motions(round_one)[2]  # a turn does not change what is round
    >>> bool(turn.norm() < 0.05 * round_one.norm())
    True
    """
    q = measure(x)[0]
    down, across = torch.gradient(x[0, 0], edge_order=2)
    r = (grid(x) - q[1:3]).T.unflatten(1, x.shape[-2:])
    turn, growth = across * r[1] - down * r[0], -(across * r[0] + down * r[1])
    brightness = -torch.expm1(-WIDTH * x[0, 0]) / WIDTH
    return torch.stack([-across, -down, turn, growth, brightness])[:, None]
