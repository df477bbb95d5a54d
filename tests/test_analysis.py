"""The papers' figures against closed forms: power spectra, Hutchinson, tangent shares, paths."""

import math

import pytest
import torch

import mathkit as mk
from mathkit.diffusion import edits
from mathkit.linear import metric, spectrum, subspaces
from mathkit.show import puppets


def wave(r, size=32, angle=0.0):
    """A plane wave of r cycles a picture."""
    at = torch.arange(size) / size
    x, y = torch.meshgrid(at, at, indexing="ij")
    return torch.cos(2 * math.pi * r * (x * math.cos(angle) + y * math.sin(angle)))


def test_a_wave_has_all_its_power_at_its_frequency():
    V = torch.stack([wave(3), wave(3, angle=math.pi / 2), wave(0), wave(16)])[:, None]
    frequency, power = spectrum.spectral_density(V.expand(-1, 3, -1, -1))
    assert frequency.tolist() == list(range(17)) and power.argmax(1).tolist() == [3, 3, 0, 16]
    assert torch.allclose(power.amax(1), torch.ones(4).double(), atol=1e-6)


def test_two_draws_are_the_least_that_have_an_error():
    A = mk.matrix(torch.randn(3, 4))
    assert spectrum.total_stretch(A, draws=2)[1] > 0
    with pytest.raises(ValueError, match="draws is an integer >= 2"):
        spectrum.total_stretch(A, draws=1)


def test_white_noise_fills_the_rings_by_their_size():
    V = torch.randn(200, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    _, power = spectrum.spectral_density(V)
    f = torch.fft.fftfreq(16) * 16
    ring = (f[:, None] ** 2 + f**2).sqrt().round().clamp(max=8)
    sizes = torch.stack([(ring == r).sum() for r in range(9)]).double() / 256
    assert torch.allclose(power.mean(0), sizes, atol=0.01)
    with pytest.raises(ValueError, match=r"\(k, C, H, H\)"):
        spectrum.spectral_density(torch.zeros(2, 3, 8, 16))
    with pytest.raises(ValueError, match="is zero"):
        spectrum.spectral_density(torch.eye(8)[None] * torch.tensor([1.0, 0]).view(2, 1, 1, 1))


def rough_and_smooth(shape):
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    V = noise.cumsum(-1).cumsum(-2)
    V = V - V.mean((-2, -1), keepdim=True)
    return noise, V / V.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


@pytest.mark.parametrize("shape", [(3, 1, 32, 32), (2, 3, 32, 32), (2, 4, 16, 24)])
def test_random_pictures_are_as_smooth_and_know_nothing_of_the_place(shape):
    noise, V = rough_and_smooth(shape)
    W = spectrum.as_smooth(V, 0)
    power = [torch.fft.fft2(x.double()).abs() for x in (W, V, noise)]
    torch.testing.assert_close(power[0], power[1], atol=1e-5, rtol=1e-4)
    assert float((power[0] - power[2]).abs().max()) > 1  # what white noise would have
    assert float((W * V).flatten(1).sum(1).abs().max()) < 0.9
    assert not torch.allclose(W, spectrum.as_smooth(V, 1), atol=1e-6)


def test_random_pictures_keep_what_the_channels_share():
    _, V = rough_and_smooth((2, 1, 32, 32))
    grey = torch.cat([V, 2 * V, -V], 1)
    W = spectrum.as_smooth(grey, 0)
    torch.testing.assert_close(W[:, 1], 2 * W[:, 0], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(W[:, 2], -W[:, 0], atol=1e-6, rtol=1e-4)


def test_random_pictures_are_where_their_place_is_and_as_long():
    _, V = rough_and_smooth((3, 1, 32, 32))
    place = torch.zeros(32, 32)
    place[:16] = 1
    placed = spectrum.as_smooth(V, 0, place)
    assert float(placed[..., 16:, :].abs().max()) == 0
    torch.testing.assert_close(placed.flatten(1).norm(dim=1), torch.ones(3))


def test_nothing_is_as_smooth_as_nothing():
    assert not spectrum.as_smooth(torch.zeros(2, 1, 8, 8), 0).any()


def test_only_pictures_have_a_smoothness():
    with pytest.raises(ValueError, match="pictures are"):
        spectrum.as_smooth(torch.zeros(3, 8, 8), 0)


def test_hutchinson_finds_the_sum_of_squares_within_its_error():
    M = torch.randn(30, 50, generator=torch.Generator().manual_seed(1))
    exact, off = float(M.square().sum()), []
    for seed in range(40):
        total, error = spectrum.total_stretch(mk.matrix(M), 30, seed)
        off.append((total - exact) / error)
    assert abs(torch.tensor(off).mean()) < 0.5 and 0.7 < torch.tensor(off).std() < 1.4


@pytest.mark.parametrize("k", [1, 4, 30])
def test_known_directions_leave_only_the_rest_to_chance(k):
    M = torch.randn(30, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    M += 20 * torch.outer(torch.ones(30), torch.linspace(0, 1, 50)).double()
    exact, r = float(M.square().sum()), mk.svd(mk.matrix(M), k, tol=1e-10)
    _, wide = spectrum.total_stretch(mk.matrix(M), 30)
    total, error = spectrum.total_stretch(mk.matrix(M), 30, known=r)
    assert error < wide / 20
    assert total == pytest.approx(exact, abs=4 * error + 1e-6)  # k = 30: nothing is left to chance


def test_the_rank_is_where_the_share_is_reached():
    S = torch.tensor([3.0, 2.0, 1.0, 1.0])
    assert [spectrum.rank_at(S, 15, share) for share in (0.5, 0.6, 0.61, 0.87, 1.0)] == [
        1, 1, 2, 3, 4,
    ]  # fmt: skip
    assert spectrum.rank_at(S[:2], 40) is None


def test_tangents_are_finite_differences_of_the_renderer():
    q = puppets.sample_factors(1, seed=3, stranger=0).double()
    J = puppets.tangents(q)
    for j in (0, 4, 9):
        step = torch.zeros_like(q)
        step[0, j] = 1e-5
        by_hand = (puppets.render(q + step) - puppets.render(q - step))[0] / 2e-5
        assert torch.allclose(J[j], by_hand, atol=1e-5)


@pytest.mark.parametrize("last", [0.0, 2.0])
def test_dependent_tangents_have_no_share(last):
    """A share would count directions that are no tangents: their span has fewer than there are."""
    J = torch.eye(5)[0] * torch.tensor([[1.0], [last]])
    with pytest.raises(ValueError, match="dependent"):
        subspaces.tangent_share(torch.eye(5)[1:3], J)


def test_tangent_shares_of_planted_spans():
    g = torch.Generator().manual_seed(2)
    Q = torch.linalg.qr(torch.randn(40, 40, generator=g)).Q.T
    J = torch.randn(4, 4, generator=g) @ Q[:4]
    assert subspaces.tangent_share(Q[:6], J) == pytest.approx((1, 1), abs=1e-5)
    assert subspaces.tangent_share(Q[4:9], J) == pytest.approx((0, 0), abs=1e-5)
    long = torch.stack([10 * Q[0], Q[1]])
    assert subspaces.tangent_share(Q[:1], long) == pytest.approx((0.5, 100 / 101), abs=1e-4)
    chance = [
        subspaces.tangent_share(torch.linalg.qr(torch.randn(40, 8, generator=g)).Q.T, J)[0]
        for _ in range(200)
    ]
    assert torch.tensor(chance).mean() == pytest.approx(8 / 40, abs=0.02)


def circle(x):
    """R^3 to R^4: a linear part of full rank whose image turns as the first coordinate grows."""
    a, b, c = x[:, 0], x[:, 1], x[:, 2]
    return torch.stack([b * a.cos(), b * a.sin(), c, 3 * a], 1)


def test_paths_begin_and_end_where_they_should_and_shooting_says_by_how_much_it_does_not():
    x, y = torch.tensor([[0.2, 1.5, 0.3]]).double(), torch.tensor([[0.9, 1.0, -0.4]]).double()
    found, miss = edits.paths_between(circle, x, y, 12, k=3)
    assert list(found) == ["lerp", "slerp", "shooting"]
    for name, path in found.items():
        assert path.shape == (13, 3) and torch.allclose(path[0], x[0], atol=1e-6)
        gap = float((path[-1] - y[0]).norm() / (y - x).norm())
        assert gap == pytest.approx(miss if name == "shooting" else 0, abs=1e-6)
    assert 0 < miss < 0.6
    far = (found["shooting"] - x[0]).norm(dim=1)
    assert torch.allclose(far, torch.linspace(0, float((y - x).norm()), 13).double(), atol=1e-6)
    norms = found["slerp"].norm(dim=1)
    assert torch.allclose(
        norms, torch.linspace(float(x.norm()), float(y.norm()), 13).double(), atol=1e-6
    )
    turn = torch.nn.functional.cosine_similarity(found["slerp"][1:], found["slerp"][:-1])
    assert float(turn.max() - turn.min()) < 1e-12, "equal angles"
    with pytest.raises(ValueError, match="no great circle"):
        edits.paths_between(circle, x, 2 * x, 3, k=3)


def test_a_flat_map_has_paths_of_length_zero_and_a_turning_one_the_angle():
    M = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    line = torch.linspace(0, 1, 6).double()[:, None] * torch.ones(3).double()
    assert float(metric.curvedness(lambda x: x @ M.T, line, 2).max()) < 1e-6

    def turning(x):  # the stretched direction of h turns by the angle x_1
        a, b = x[:, 0], x[:, 1]
        return torch.stack([5 * b * a.cos(), 5 * b * a.sin()], 1)

    path = torch.stack([torch.tensor([0.1 * i, 0.01]).double() for i in range(5)])
    steps = metric.curvedness(turning, path, 1)
    assert torch.allclose(steps, torch.full((4,), 0.1).double(), atol=1e-3)
