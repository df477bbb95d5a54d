"""The puppet show: a smooth chart, its Stranger, and the exact posterior of the show."""

import pytest
import torch

from mathkit.linear.jacobian import jacobian
from mathkit.show import puppets
from mathkit.show.posterior import Posterior
from mathkit.show.puppets import CONTINUOUS, FACTORS, STRANGER

SIZE = 64


def test_factors_are_in_range_repeatable_and_the_stranger_follows_the_light():
    q = puppets.sample_factors(20_000, seed=1)
    assert q.shape == (20_000, 13) and len(FACTORS) == 13 and len(CONTINUOUS) == 10
    assert torch.equal(q, puppets.sample_factors(20_000, seed=1))
    assert not torch.equal(q, puppets.sample_factors(20_000, seed=2))
    assert q.min() >= 0 and q.max() <= 1
    present, light = q[:, STRANGER], q[:, FACTORS.index("light")]
    assert set(present.unique().tolist()) == {0.0, 1.0}
    for low, expected in ((0.0, 0.06), (0.9, 0.24)):
        here = present[(light >= low) & (light < low + 0.1)]
        assert abs(here.mean() - expected) < 5 * (expected * (1 - expected) / len(here)) ** 0.5


@pytest.mark.parametrize("stranger", [0, 1])
def test_the_stranger_can_be_chosen_without_changing_the_puppet(stranger):
    free, chosen = puppets.sample_factors(50, 3), puppets.sample_factors(50, 3, stranger)
    assert (chosen[:, STRANGER] == stranger).all()
    keep = [i for i in range(13) if i != STRANGER]
    assert torch.equal(free[:, keep], chosen[:, keep])


def test_images_are_batched_independent_and_in_range():
    q = puppets.sample_factors(6, 0)
    images = puppets.render(q)
    assert images.shape == (6, 3, SIZE, SIZE) and images.dtype == torch.float32
    assert images.min() >= -1 and images.max() <= 1
    assert torch.allclose(images[2:3], puppets.render(q[2:3]), atol=1e-6)
    assert puppets.render(q, size=32).shape == (6, 3, 32, 32)


def test_a_coarse_image_is_the_fine_one_averaged():
    q = puppets.sample_factors(4, 5)
    fine = torch.nn.functional.avg_pool2d(puppets.render(q, 128), 2)
    assert (fine - puppets.render(q, 64)).abs().mean() < 0.02


@pytest.mark.parametrize("name", FACTORS)
def test_every_factor_moves_at_least_one_percent_of_the_pixels(name):
    i = FACTORS.index(name)
    q = puppets.sample_factors(16, 11, stranger=1 if i >= STRANGER else 0)
    low, high = q.clone(), q.clone()
    low[:, i], high[:, i] = 0.0, 1.0
    moved = (puppets.render(low) - puppets.render(high)).abs().amax(1) > 0.1
    assert moved.float().mean((1, 2)).min() > 0.01


def test_the_tangent_vectors_agree_with_central_differences():
    q = puppets.sample_factors(1, 2, stranger=1).double()
    chart = jacobian(lambda q: puppets.render(q, 16), q)
    step = 1e-6 * torch.eye(13, dtype=torch.float64)
    difference = (puppets.render(q + step, 16) - puppets.render(q - step, 16)) / 2e-6
    tangents = chart.push(torch.eye(13, dtype=torch.float64))
    assert (tangents - difference).abs().max() < 1e-6 * (1 + tangents.abs().max())


@pytest.mark.parametrize("corner", [0.0, 0.5, 1.0, -0.3, 1.3])
def test_gradients_are_finite_everywhere(corner):
    q = torch.full((1, 13), corner, requires_grad=True)
    (gradient,) = torch.autograd.grad(puppets.render(q).square().sum(), q)
    assert gradient.isfinite().all()


def test_the_mask_is_where_the_counterfactual_changes_the_image():
    q = puppets.sample_factors(20, 4, stranger=1)
    change = puppets.counterfactual(q).abs().amax(1)
    mask = puppets.stranger_mask(q)
    assert mask.shape == (20, SIZE, SIZE) and mask.min() >= 0 and mask.max() <= 1
    assert (change[mask < 1e-3] < 0.02).all()
    assert (change[mask > 0.9] > 0.05).float().mean() > 0.95
    absent = q.clone()
    absent[:, STRANGER] = 0
    assert torch.equal(mask, puppets.stranger_mask(absent))


@pytest.mark.parametrize(
    ("q", "words"),
    [
        (torch.rand(13), "q\\[None\\]"),
        (torch.rand(2, 12), "\\(n, 13\\)"),
        (torch.full((1, 13), float("nan")), "NaN"),
        (torch.ones(1, 13, dtype=torch.long), "float"),
    ],
)
def test_bad_factors_are_refused(q, words):
    for draw in (puppets.render, puppets.counterfactual, puppets.stranger_mask):
        with pytest.raises(ValueError, match=words):
            draw(q)


@pytest.mark.parametrize("arguments", [(0, 1), (-2, 1), (3, 1, 2)])
def test_bad_requests_are_refused(arguments):
    with pytest.raises(ValueError, match="expected|is an integer"):
        puppets.sample_factors(*arguments)


SMALL, ABAR = 8, 0.3


@pytest.fixture(scope="module")
def posterior():
    return Posterior(count=300, seed=3, size=SMALL)


@pytest.fixture(scope="module")
def xt():
    x0 = puppets.render(puppets.sample_factors(3, 50), SMALL)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    return ABAR**0.5 * x0 + (1 - ABAR) ** 0.5 * noise


def test_weights_follow_bayes_rule(posterior, xt):
    bank = posterior.bank.double()
    gap = xt.flatten(1).double()[:, None] - ABAR**0.5 * bank[None]
    expected = torch.softmax(-gap.square().sum(-1) / (2 * (1 - ABAR)), 1)
    assert torch.allclose(posterior.weights(xt, ABAR), expected, atol=1e-4)


def test_its_mean_obeys_tweedie(posterior, xt):
    """E[x0 | x] = (x + (1 - abar) grad log p(x)) / sqrt(abar), by automatic differentiation."""
    bank = posterior.bank.double()
    x = xt.double().flatten(1).requires_grad_(True)
    gap = x[:, None] - ABAR**0.5 * bank[None]
    log_p = torch.logsumexp(-gap.square().sum(-1) / (2 * (1 - ABAR)), 1).sum()
    (score,) = torch.autograd.grad(log_p, x)
    expected = (x + (1 - ABAR) * score) / ABAR**0.5
    found = posterior.mean(xt, ABAR).flatten(1).double()
    assert torch.allclose(found, expected, atol=2e-3)


def test_its_directions_are_those_of_the_denoisers_jacobian(posterior, xt):
    """A 192 x 192 Jacobian by central differences of the mean, decomposed by LAPACK."""
    x, h = xt[:1].double(), 1e-3
    bank = posterior.bank.double()

    def mean(flat):
        gap = flat[:, None] - ABAR**0.5 * bank[None]
        return torch.softmax(-gap.square().sum(-1) / (2 * (1 - ABAR)), 1) @ bank

    eye = h * torch.eye(x.numel(), dtype=torch.float64)
    jacobian = ((mean(x.flatten(1) + eye) - mean(x.flatten(1) - eye)) / (2 * h)).T
    _, s, vh = torch.linalg.svd(jacobian)
    v, found = posterior.directions(xt[:1], ABAR, k=2, tol=1e-5)
    assert torch.allclose(found.double(), s[:2], rtol=2e-3)
    assert (v.flatten(1).double() @ vh[:2].T).abs().diag().min() > 0.999


def test_a_bank_that_is_the_whole_truth_finds_the_frame(posterior):
    x = 0.999**0.5 * posterior.bank[7].float().reshape(1, 3, SMALL, SMALL)
    assert posterior.weights(x, 0.999)[0].argmax() == 7
    assert posterior.ess(x, 0.999) < posterior.ess(x, 0.05)
    assert abs(posterior.stranger(x, 0.999) - posterior.q[7, STRANGER]) < 0.05


@pytest.mark.parametrize("abar", [0.0, 1.0])
def test_a_noise_level_without_posterior_is_refused(posterior, xt, abar):
    with pytest.raises(ValueError, match="abar"):
        posterior.weights(xt, abar)
