"""What is measured of a galaxy: against elliptic Gaussians of known axes, and dense sums."""

import math

import pytest
import torch
from torch import Tensor

from mathkit.chapters import galaxies
from mathkit.chapters.galaxies import ANGLE, FACTORS, MOTIONS, measure

SIDE = 48
R = torch.arange(SIDE, dtype=torch.float64) - (SIDE - 1) / 2
PLACES = torch.stack(torch.meshgrid(R, R, indexing="ij")[::-1], -1)  # across, down


def shape(a: Tensor, b: Tensor, angle: Tensor) -> Tensor:
    """The covariance of an ellipse with the axes' sigmas a and b, turned by `angle`."""
    turn = torch.stack(
        [torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])]
    )
    return turn @ torch.diag(torch.stack([a, b]) ** 2) @ turn.T


def gaussian(centre: Tensor, C: Tensor, flux: Tensor) -> Tensor:
    """Light (side, side) of a Gaussian with all its light `flux`."""
    away = PLACES - centre
    d = (away @ torch.linalg.inv(C) * away).sum(-1)
    return flux * torch.exp(-d / 2) / (2 * math.pi * torch.linalg.det(C).sqrt())


def x0(light: Tensor) -> Tensor:
    return torch.log1p(light)[None, None] / 0.1


def numbers(*values: float) -> list[Tensor]:
    return [torch.tensor(v, dtype=torch.float64) for v in values]


CASES = [(4.0, 2.0, 0.3), (3.0, 1.5, -1.2), (2.0, 1.9, 1.5), (5.0, 2.5, math.pi / 2)]


@pytest.mark.parametrize(("a", "b", "angle"), CASES)
def test_of_an_elliptic_gaussian_the_factors_have_closed_forms(
    a: float, b: float, angle: float
) -> None:
    """The blur adds 1 to both variances; the light under exp(-d^2 / 2 k) is k / (k + 1) of all."""
    C, centre = shape(*numbers(a, b, angle)), torch.tensor([1.3, -0.7], dtype=torch.float64)
    q = measure(x0(gaussian(centre, C, torch.tensor(20.0))))[0]
    long, short = a**2 + 1, b**2 + 1
    wanted = [
        math.log10(20), 1.3, -0.7, (long * short) ** 0.25, (long - short) / (long + short), angle,
        (1 / 2) / (9 / 10), 0.0,
    ]  # fmt: skip
    q[ANGLE] += math.pi * round((angle - float(q[ANGLE])) / math.pi)
    torch.testing.assert_close(q[:-1], torch.tensor(wanted[:-1]).double(), atol=2e-3, rtol=1e-3)
    assert float(q[-1]) < 0.01  # the turned picture is read between its pixels


def test_a_halo_lowers_the_concentration_and_a_lopsided_light_the_symmetry() -> None:
    centre, wide = torch.zeros(2).double(), 25 * torch.eye(2).double()
    core = gaussian(centre, 4 * torch.eye(2).double(), torch.tensor(20.0))
    halo = gaussian(centre, wide, torch.tensor(20.0))
    aside = gaussian(centre + 6, 4 * torch.eye(2).double(), torch.tensor(4.0))
    q = measure(torch.cat([x0(core), x0(core + halo), x0(core + aside)]))
    at = FACTORS.index("concentration")
    assert float(q[1, at]) < float(q[0, at]) - 0.02
    assert float(q[2, -1]) > 0.04 > 0.003 > float(q[:2, -1].max())


def test_asymmetry_is_the_dense_sum() -> None:
    """Of two Gaussians the turned picture is known between the pixels too."""
    one, two = torch.tensor([[-1.0, 0.5], [4.0, -2.0]], dtype=torch.float64)
    C, D = shape(*numbers(4.0, 2.5, 0.4)), shape(*numbers(2.5, 2.5, 0.0))

    def light(places: Tensor) -> Tensor:
        found = 0
        for centre, S, flux in ((one, C, 20.0), (two, D, 5.0)):
            S, away = S + torch.eye(2), places - centre  # blurred
            d = (away @ torch.linalg.inv(S) * away).sum(-1)
            found = found + flux * torch.exp(-d / 2) / (2 * math.pi * torch.linalg.det(S).sqrt())
        return found

    sharp = gaussian(one, C, torch.tensor(20.0)) + gaussian(two, D, torch.tensor(5.0))
    q = measure(x0(sharp))[0]
    here = galaxies.matched(light(PLACES).flatten()[None], PLACES.flatten(0, 1))
    centre, w = here[0][0], torch.exp(-galaxies.distance2(PLACES.flatten(0, 1), *here) / 8)[0]
    both = [light(places).flatten() for places in (PLACES, 2 * centre - PLACES)]
    wanted = (w * (both[0] - both[1]).abs()).sum() / (w * (both[0] + both[1])).sum()
    assert float(wanted) > 0.05 and float(q[-1]) == pytest.approx(float(wanted), abs=2e-3)


def test_factors_can_be_differentiated() -> None:
    x = x0(gaussian(torch.ones(2), shape(*numbers(4.0, 2.0, 0.3)), torch.tensor(20.0)))
    leaf, v = x.clone().requires_grad_(), torch.randn_like(x) * (x > 0.5)
    for i in range(len(FACTORS) - 1):  # the last has a corner at 0
        (grad,) = torch.autograd.grad(measure(leaf)[0, i], leaf)
        by_hand = (measure(x + 1e-5 * v)[0, i] - measure(x - 1e-5 * v)[0, i]) / 2e-5
        torch.testing.assert_close((grad * v).sum(), by_hand, rtol=1e-3, atol=1e-5)


def test_a_picture_without_a_galaxy_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x is x_0 \(B, 1, side, side\), got \(2, 3, 8, 8\)"):
        measure(torch.ones(2, 3, 8, 8))
    for picture in (torch.zeros(1, 1, SIDE, SIDE), torch.ones(1, 1, SIDE, SIDE)):
        with pytest.raises(ValueError, match="expected pictures of a galaxy"):
            measure(picture)


def test_a_point_has_the_blur_s_shape() -> None:
    x = torch.zeros(1, 1, SIDE - 1, SIDE - 1, dtype=torch.float64)
    x[..., SIDE // 2 - 1, SIDE // 2 - 1] = 8
    q = dict(zip(FACTORS, measure(x)[0].tolist(), strict=True))
    assert q["size"] == pytest.approx(1, abs=0.01) and q["ellipticity"] < 1e-3


def test_half_a_turn_is_no_change_and_what_is_round_has_no_angle() -> None:
    low = torch.tensor([[1.0, 0, 0, 3, 0.5, -1.5, 0.5, 0.1], [1, 0, 0, 3, 0, 0.3, 0.5, 0.1]])
    high = low.clone()
    high[:, ANGLE] += torch.tensor([math.pi, 1.0])
    torch.testing.assert_close(galaxies.change(low, high), torch.zeros(2, 8), atol=1e-6, rtol=0)
    high[0, ANGLE] = low[0, ANGLE] + 0.1
    assert float(galaxies.change(low, high)[0, ANGLE]) == pytest.approx(0.5 * math.sin(0.2))


def test_the_spread_is_the_standard_deviation() -> None:
    q = torch.randn(4000, 8, dtype=torch.float64) * torch.arange(1, 9)
    q[:, ANGLE] = 0
    torch.testing.assert_close(galaxies.spread(q), q.std(0), rtol=0.05, atol=1e-9)


def moved(amount: Tensor, motion: str) -> Tensor:
    """x_0 of one galaxy, moved: by a change of its Gaussian's own numbers."""
    zero = torch.zeros((), dtype=torch.float64)
    across, down, turn, growth, light = (amount if m == motion else zero for m in MOTIONS)
    a, b, angle = numbers(5.0, 3.0, 0.4)
    C = shape(a * growth.exp(), b * growth.exp(), angle + turn)
    flux = 200 * light.exp() * (2 * growth).exp()  # as bright everywhere as before it grew
    return x0(gaussian(torch.stack([1 + across, -2 + down]), C, flux))


@pytest.mark.parametrize("motion", MOTIONS)
def test_motions_are_the_derivatives_of_a_moved_gaussian(motion: str) -> None:
    zero = torch.zeros((), dtype=torch.float64)
    (wanted,) = torch.func.jacfwd(lambda a: moved(a, motion))(zero)[None]
    found = galaxies.motions(moved(zero, motion))[MOTIONS.index(motion)]
    assert float((found - wanted[0]).norm() / wanted.norm()) < 0.05


def test_the_check_of_motions_sees_a_turn_the_other_way() -> None:
    zero = torch.zeros((), dtype=torch.float64)
    wanted = torch.func.jacfwd(lambda a: moved(a, "turn"))(zero)
    found = -galaxies.motions(moved(zero, "turn"))[2]
    assert float((found - wanted[0]).norm() / wanted.norm()) > 1
