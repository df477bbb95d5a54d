"""Sampling and inversion against diffusers' schedulers and the Gaussian's closed forms."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import UNTRAINED
from test_model import SHAPE, Network, as_predicted, gaussian
from torch import Tensor

import mathkit as mk
from mathkit.diffusion.gaussian import GaussianModel
from mathkit.diffusion.model import linear_schedule
from mathkit.diffusion.networks import UNetModel
from mathkit.diffusion.sampling import ddim_step, noised, start

STEPS = 20
pytestmark = UNTRAINED
PREDICTIONS = ["epsilon", "v_prediction", "sample"]


@pytest.fixture
def unet(tiny_unet: Any) -> UNetModel:
    return UNetModel(tiny_unet, linear_schedule(), "v_prediction")


def schedulers(prediction: str) -> tuple[Any, Any]:
    from diffusers import DDIMInverseScheduler, DDIMScheduler

    how = {"clip_sample": False, "prediction_type": prediction}
    pair = DDIMScheduler(**how), DDIMInverseScheduler(**how)
    for scheduler in pair:
        scheduler.set_timesteps(STEPS)
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    return pair


def eps_of(out: Tensor, x: Tensor, abar: Tensor, t: int, prediction: str) -> Tensor:
    """p.noise(x, t) of a network that answers `out`."""
    return UNetModel(Network(lambda *_: out).double(), abar, prediction).noise(x, t)


def step_error(prediction: str, t: int, eta: float, wrong: float = 0.0) -> float:
    """Our step against DDIMScheduler's, relative; `wrong` plants an error in the noise level."""
    down, _ = schedulers(prediction)
    x, out, z = torch.randn(3, 2, *SHAPE, dtype=torch.float64)
    theirs = down.step(out, t, x, eta=eta, variance_noise=z if eta else None).prev_sample
    abar = down.alphas_cumprod
    then = float(abar[t - 1000 // STEPS]) if t >= 1000 // STEPS else 1.0
    eps = eps_of(out, x, abar, t, prediction)
    ours = ddim_step(x, eps, float(abar[t]), then * (1 - wrong), eta, z if eta else None)
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_step_is_diffusers_step_on_its_grid(prediction: str, eta: float) -> None:
    down, _ = schedulers(prediction)
    assert max(step_error(prediction, int(t), eta) for t in down.timesteps) < 1e-6


def test_the_comparison_sees_a_noise_level_wrong_by_a_thousandth() -> None:
    assert step_error("epsilon", 500, 0.4, wrong=1e-3) > 1e-5


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_inverse_step_is_diffusers_inverse_step(prediction: str) -> None:
    """Their inverse scheduler reads the network at t with x at t - stride, as `invert` does."""
    _, up = schedulers(prediction)
    abar, stride = up.alphas_cumprod, 1000 // STEPS
    for t in map(int, up.timesteps[1:]):
        x, eps = torch.randn(2, 2, *SHAPE, dtype=torch.float64)
        now, then = float(abar[t - stride]), float(abar[t])
        out = {  # what each network would have to say, in terms of eps at the level of x
            "epsilon": eps,
            "sample": (x - (1 - now) ** 0.5 * eps) / now**0.5,
            "v_prediction": (eps - (1 - now) ** 0.5 * x) / now**0.5,
        }[prediction]
        theirs = up.step(out, t, x).prev_sample
        torch.testing.assert_close(ddim_step(x, eps, now, then), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("t", "steps"), [(999, 25), (999, 1000), (700, 12), (33, 7), (5, 1)])
def test_timesteps_are_the_rounded_line(t: int, steps: int) -> None:
    grid = mk.timesteps(gaussian(), t, steps)
    assert len(grid) == steps and grid[0] == t and (steps == 1 or grid[-1] == 0)
    assert np.abs(np.array(grid) - np.linspace(t, 0, steps)).max() <= 0.5
    assert all(a > b for a, b in zip(grid, grid[1:], strict=False))


def test_more_steps_than_times_take_each_time_once() -> None:
    assert mk.timesteps(gaussian(), 3, 25) == [3, 2, 1, 0]


def test_steps_are_network_calls() -> None:
    network = Network(lambda x, t: x * 0.1)
    p = UNetModel(network, linear_schedule())
    mk.sample(p, 3, steps=7)
    assert p.unet.calls == 21
    mk.invert(p, torch.zeros(2, *SHAPE), 600, steps=5)
    assert p.unet.calls == 31
    mk.denoise(p, torch.zeros(2, *SHAPE), 600, steps=5)
    assert p.unet.calls == 41


def test_a_sample_depends_on_its_seed_and_index_alone(unet: UNetModel) -> None:
    before = torch.get_rng_state()
    five = mk.sample(unet, 5, seed=7, steps=3)
    assert torch.equal(torch.get_rng_state(), before), "the global generator is not touched"
    assert five.shape == (5, 3, 16, 16) and five.dtype == torch.float32

    def same(a: Tensor, b: Tensor) -> None:
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)

    same(mk.sample(unet, 2, seed=7, steps=3), five[:2])
    same(mk.sample(unet, seed=7, steps=3, index=[3, 1]), five[[3, 1]])
    unet.batch = 2
    same(mk.sample(unet, 5, seed=7, steps=3), five)
    pairs = mk.sample(unet, seed=[8, 7], steps=3, index=[0, 4])
    same(pairs[1:], five[4:])
    same(pairs[:1], mk.sample(unet, 1, seed=8, steps=3))
    assert (pairs[0] - five[0]).abs().max() > 0.1


def test_starting_noise_is_standard_normal_and_never_twice_the_same() -> None:
    g = GaussianModel(torch.zeros(64), torch.eye(64))
    starts = torch.cat([mk.sample(g, 40, seed=s, steps=1) for s in range(5)])
    starts = starts / starts.std()  # one step of the unit Gaussian is a scaling
    cosine = torch.nn.functional.normalize(starts) @ torch.nn.functional.normalize(starts).T
    assert (cosine - torch.eye(200)).abs().max() < 0.75
    assert abs(float(starts.mean())) < 0.03 and abs(float((starts**4).mean()) - 3) < 0.3


def levels(g: GaussianModel, times: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """abar before and after each step, and var(x_t) = abar l + 1 - abar before it, per axis."""
    abar = torch.cat([g.alphas_cumprod[times], torch.ones(1)])[:, None]
    return abar[:-1], abar[1:], abar[:-1] * g.variances + 1 - abar[:-1]


def gains(g: GaussianModel, times: list[int], noise: Tensor | float = 0.0) -> Tensor:
    """DDIM of a Gaussian in its axes: x_s - sqrt(abar_s) m is multiplied by these, one a step."""
    a, b, spread = levels(g, times)
    return (a * b).sqrt() * g.variances / spread + ((1 - a) * (1 - b - noise)).sqrt() / spread


def in_axes(g: GaussianModel, x: Tensor, abar: float) -> Tensor:
    return (x - abar**0.5 * g.mean).flatten(1) @ g.axes


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_denoising_a_gaussian_is_a_product_of_gains(prediction: str) -> None:
    g = gaussian()
    p, xt = as_predicted(g, prediction), torch.randn(3, *SHAPE, dtype=torch.float64)
    x0 = mk.denoise(p, xt, 800, steps=9)
    exact = in_axes(g, xt, float(g.alphas_cumprod[800])) * gains(g, mk.timesteps(g, 800, 9)).prod(0)
    torch.testing.assert_close(in_axes(g, x0, 1.0), exact, rtol=1e-7, atol=1e-9)


def order(errors: list[float], steps: list[int]) -> float:
    """Least squares slope of -log(error) against log(steps)."""
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


def flow_error(g: GaussianModel, steps: int, t: int = 900) -> float:
    """DDIM against the exact flow, x_0 = m + sqrt(l / (a l + 1 - a)) (x_t - sqrt(a) m)."""
    xt = torch.randn(4, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    a, z = float(g.alphas_cumprod[t]), in_axes(g, xt, float(g.alphas_cumprod[t]))
    exact = (g.variances / (a * g.variances + 1 - a)).sqrt() * z
    return float((in_axes(g, mk.denoise(g, xt, t, steps=steps), 1.0) - exact).norm() / exact.norm())


def round_trip(p: Any, x0: Tensor, t: int, steps: int, refine: int = 0) -> float:
    xt = mk.invert(p, x0, t, steps, refine=refine)
    return float((mk.denoise(p, xt, t, steps) - x0).norm() / x0.norm())


def test_denoising_converges_to_the_probability_flow() -> None:
    steps = [10, 20, 40, 80]
    errors = [flow_error(gaussian(), s) for s in steps]
    assert order(errors, steps) > 0.9 and errors[-1] < errors[0] / 6 < 0.1, errors


def test_inverting_and_denoising_gives_the_image_back_with_order_one() -> None:
    steps = [40, 80, 160, 320]
    x0 = torch.randn(4, *SHAPE, dtype=torch.float64)
    errors = [round_trip(gaussian(), x0, 900, s) for s in steps]
    assert order(errors, steps) > 0.9 and errors[-1] < errors[0] / 6 < 0.1, errors


def test_inversion_of_a_network_converges_too(unet: UNetModel) -> None:
    x0 = torch.rand(2, 3, 16, 16) * 2 - 1
    errors = [round_trip(unet, x0, 900, s) for s in (3, 8, 24)]
    assert errors[1] < errors[0] / 2 and errors[2] < errors[1] / 2, errors


def ancestral_variances(g: GaussianModel, times: list[int]) -> Tensor:
    """var(x_0) per axis from x_t ~ N(0, I), each step adding the variance of q(x_s | x_t, x_0)."""
    a, b, _ = levels(g, times)
    noise = (1 - b) / (1 - a) * (1 - a / b)
    variance = torch.ones(len(g.variances), dtype=torch.float64)
    for gain, extra in zip(gains(g, times, noise), noise, strict=True):
        variance = gain**2 * variance + extra
    return variance


def test_refined_inversion_nears_the_exact_inverse_of_the_steps(unet: UNetModel) -> None:
    g, x0 = GaussianModel(torch.zeros(2), torch.eye(2)), torch.randn(3, 2)
    errors = [round_trip(g, x0, 700, 12, refine) for refine in (0, 1, 3, 40)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] and errors[3] < 1e-5, errors
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    assert round_trip(unet, images, 700, 6, 1) < round_trip(unet, images, 700, 6) / 2


def test_ancestral_sampling_of_a_gaussian_has_its_covariance() -> None:
    cov = torch.tensor([[2.0, 0.6], [0.6, 0.5]])
    g, n = GaussianModel(torch.tensor([1.0, -1.0]), cov), 800
    x = mk.denoise(g, torch.randn(n, 2), 999, steps=15, eta=1.0)
    found = in_axes(g, x, 1.0).var(0).double() / ancestral_variances(g, mk.timesteps(g, 999, 15))
    assert (found - 1).abs().max() < 5 * (2 / n) ** 0.5, found
    steps = [50, 100, 200, 400]
    each = [ancestral_variances(g, mk.timesteps(g, 999, s)) / g.variances - 1 for s in steps]
    assert order([float(e.abs().max()) for e in each], steps) > 0.8


def test_noise_added_depends_on_seed_and_index_alone() -> None:
    g, xt = gaussian(torch.float32), torch.randn(4, *SHAPE)
    whole = mk.denoise(g, xt, 500, 6, eta=1.0, seed=3)
    part = mk.denoise(g, xt[2:], 500, 6, eta=1.0, seed=3, index=[2, 3])
    torch.testing.assert_close(part, whole[2:])
    assert not torch.equal(whole, mk.denoise(g, xt, 500, 6, eta=1.0, seed=4))
    assert torch.equal(mk.denoise(g, xt, 500, 6, seed=3), mk.denoise(g, xt, 500, 6, seed=4))


def test_no_noise_added_is_the_start_s_own_nor_comes_twice() -> None:
    """A network that answers 0 leaves sqrt(then / abar) x_t + s z: z can be read off."""
    p, n = UNetModel(Network(lambda x, t: 0 * x), linear_schedule()), 800
    index, path = range(n), []
    xt = start(p, 3, index)
    mk.denoise(p, xt, 999, 4, eta=1.0, seed=3, index=index,
               callback=lambda i, t, x: path.append((t, x)))  # fmt: skip
    draws, now, x = [xt], 999, xt
    for then, y in path[:-1]:  # the last step, to the clean image, adds none
        a, b = (float(p.alphas_cumprod[t]) for t in (now, then))
        z = (y - (b / a) ** 0.5 * x) / ((1 - b) / (1 - a) * (1 - a / b)) ** 0.5
        assert abs(float(z.std()) - 1) < 0.1
        draws.append(z)
        now, x = then, y
    assert len(draws) == 4
    rows = torch.nn.functional.normalize(torch.stack(draws).flatten(1))
    assert (rows @ rows.T - torch.eye(4)).abs().max() < 6 / xt.numel() ** 0.5


def test_seed_and_index_are_two_keys() -> None:
    g = GaussianModel(torch.zeros(64), torch.eye(64))
    starts = torch.cat([start(g, s, range(6)) for s in range(6)])
    rows = torch.nn.functional.normalize(starts)
    assert (rows @ rows.T - torch.eye(36)).abs().max() < 6 / 8


def test_the_noise_of_the_steps_leaves_the_global_generator_alone() -> None:
    g, before = gaussian(torch.float32), torch.get_rng_state()
    mk.denoise(g, torch.zeros(2, *SHAPE), 500, 4, eta=1.0)
    noised(g, torch.zeros(2, *SHAPE), 500, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_noised_is_the_forward_process_with_the_noise_of_its_seed() -> None:
    g, x0 = gaussian(), torch.randn(2, *SHAPE, dtype=torch.float64)
    noises = [noised(g, 0 * x0, 500, seed) for seed in (0, 1)]
    assert not torch.allclose(*noises)
    for t in (0, 500, 999):
        a, b = (float(g.alphas_cumprod[s]) for s in (t, 500))
        e = noises[1] / (1 - b) ** 0.5
        torch.testing.assert_close(noised(g, x0, t, 1), a**0.5 * x0 + (1 - a) ** 0.5 * e)


def test_a_step_that_adds_all_the_noise_there_is_stays_real() -> None:
    """eta = 1 to a level a few roundings below the clean image: what is left for eps,
    1 - then - s^2, may come out below 0, and its root would be a complex number."""
    x, eps, z = torch.randn(3, 1, *SHAPE, dtype=torch.float64)
    less = 0
    for then in (1 - i * 2.0**-53 for i in range(1, 8)):
        for abar in np.linspace(0.001, 0.999, 499).tolist():
            less += 1 - then - (1 - then) / (1 - abar) * (1 - abar / then) < 0
            clean = (x - (1 - abar) ** 0.5 * eps) / abar**0.5
            y = ddim_step(x, eps, abar, then, 1.0, z)
            torch.testing.assert_close(y, clean, rtol=0, atol=1e-6)
    assert less, "the fault this test is for"


def test_boosting_adds_noise_below_its_time_alone() -> None:
    g, xt = gaussian(torch.float32), torch.randn(2, *SHAPE)
    paths: list[list[tuple[int, Tensor]]] = [[], []]
    for seed, path in enumerate(paths):
        mk.denoise(g, xt, 900, 10, boost_below=300, seed=seed,
                   callback=lambda i, t, x, path=path: path.append((t, x)))  # fmt: skip
    grid = [*mk.timesteps(g, 900, 10), -1]
    assert [t for t, _ in paths[0]] == grid[1:]
    differ = [not torch.equal(a, b) for (_, a), (_, b) in zip(*paths, strict=True)]
    assert differ == [start < 300 for start in grid[:-1]]


def test_callbacks_see_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    g, seen = gaussian(torch.float32), []
    x = mk.sample(g, 2, steps=4, callback=lambda *a: seen.append(a), progress=True)
    assert [(i, t) for i, t, _ in seen] == [(0, 666), (1, 333), (2, 0), (3, -1)]
    assert torch.equal(seen[-1][2], x) and "step" in capsys.readouterr().err
    mk.invert(g, x, 500, 3, callback=lambda *a: seen.append(a))
    assert [t for _, t, _ in seen[4:]] == [0, 250, 500]
    assert "step" not in capsys.readouterr().err


def test_denoising_is_differentiable_and_carries_no_graph_unasked(unet: UNetModel) -> None:
    g, xt = gaussian(), torch.randn(1, *SHAPE, dtype=torch.float64)
    J = mk.jacobian(lambda x: mk.denoise(g, x, 700, 8), xt).dense()
    exact = g.axes * gains(g, mk.timesteps(g, 700, 8)).prod(0) @ g.axes.T
    torch.testing.assert_close(J, exact, rtol=1e-7, atol=1e-9)
    assert not mk.sample(unet, 1, steps=2).requires_grad


def test_posterior_mean_of_a_gaussian_has_the_axes_as_singular_vectors() -> None:
    g, x = gaussian(), torch.randn(1, *SHAPE, dtype=torch.float64)
    for t in (50, 500, 950):
        r = mk.svd(mk.jacobian(mk.posterior_mean(g, t), x), 3)
        a, top = g.alphas_cumprod[t], g.variances.flip(0)[:3]
        torch.testing.assert_close(r.S, a.sqrt() * top / (a * top + 1 - a))
        overlap = (r.V.flatten(1) @ g.axes.flip(1)[:, :3]).abs()
        torch.testing.assert_close(overlap, torch.eye(3).double(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_posterior_mean_s_jacobian_is_its_finite_difference(
    prediction: str, tiny_unet_double: Any
) -> None:
    p = UNetModel(tiny_unet_double, linear_schedule(), prediction)
    f, x, v = mk.posterior_mean(p, 600), *torch.randn(2, 1, 3, 16, 16, dtype=torch.float64)
    A, e = mk.jacobian(f, x), 1e-5
    torch.testing.assert_close(A.push(v), (f(x + e * v) - f(x - e * v)) / (2 * e), rtol=1e-6,
                               atol=1e-8)  # fmt: skip
    mk.check_adjoint(A)


def test_another_grid_takes_the_place_of_steps(unet: UNetModel) -> None:
    xt, seen = torch.randn(2, *unet.shape), []
    grid = mk.timesteps(unet, 700, 4)
    same = mk.denoise(unet, xt, 700, times=grid)
    torch.testing.assert_close(same, mk.denoise(unet, xt, 700, steps=4))
    mk.denoise(unet, xt, 700, times=[700, 650, 3], callback=lambda i, t, x: seen.append(t))
    assert seen == [650, 3, -1]


@pytest.mark.parametrize(
    "times", [[], [600, 300], [800, 700, 0], [700, 700, 0], [700, 300, 300], [700, 300, 400]]
)
def test_a_grid_falls_from_t(unet: UNetModel, times: list[int]) -> None:
    with pytest.raises(ValueError, match="times fall from t = 700"):
        mk.denoise(unet, torch.randn(1, *unet.shape), 700, times=times)
    for beyond in ([700, -1], [700, 0.5], [1000, 0]):
        with pytest.raises(ValueError, match="t runs from|t is an integer"):
            mk.denoise(unet, torch.randn(1, *unet.shape), 700, times=beyond)


def test_inference_mode_samples_the_same(unet: UNetModel) -> None:
    with torch.inference_mode():
        inside = mk.sample(unet, 1, steps=2).clone()
    assert torch.equal(inside, mk.sample(unet, 1, steps=2))


def test_a_sample_is_its_start_denoised(unet: UNetModel) -> None:
    both = start(unet, 3, [5, 2])
    assert torch.equal(start(unet, 3, [2])[0], both[1]) and not torch.equal(both[0], both[1])
    assert torch.equal(start(unet, [4, 3], [2, 2])[1], both[1])
    drawn = mk.sample(unet, seed=3, index=[5, 2], steps=3)
    assert torch.equal(drawn, mk.denoise(unet, both, 999, steps=3))
    many = start(unet, 0, range(40)).flatten()
    assert abs(float(many.mean())) < 0.03 and abs(float(many.std()) - 1) < 0.03
    with pytest.raises(ValueError, match="seed and index are integers >= 0"):
        start(unet, 0, [-1])


X = torch.zeros(2, *SHAPE)
BAD = {
    "t": (lambda p: mk.denoise(p, X, 1000), r"t is an integer in 0 \.\.\. 999, got 1000"),
    "clean": (lambda p: mk.invert(p, X, -1), r"0 \.\.\. 999, got -1"),
    "real t": (lambda p: mk.timesteps(p, 0.5, 3), "t is an integer"),
    "mean's t": (lambda p: mk.posterior_mean(p, 1000), "t is an integer"),
    "no steps": (lambda p: mk.denoise(p, X, 10, steps=0), "steps is an integer >= 1, got 0"),
    "half steps": (lambda p: mk.denoise(p, X, 10, steps=2.5), "steps is an integer"),
    "eta": (
        lambda p: mk.denoise(p, X, 10, eta=1.5),
        r"eta is .* in \[0, 1\], got 1.5",
    ),
    "point": (lambda p: mk.denoise(p, X[0], 10), r"x_t\[None\]"),
    "nan": (lambda p: mk.denoise(p, X / 0, 10), "NaN"),
    "bytes": (lambda p: mk.invert(p, X.byte(), 10), "127.5"),
    "range": (lambda p: mk.invert(p, X + 200, 10), r"in \[-1, 1\]"),
    "refine": (lambda p: mk.invert(p, X, 10, refine=-1), "refine is an integer >= 0"),
    "none": (lambda p: mk.sample(p, 0), "n is an integer >= 1"),
    "n": (lambda p: mk.sample(p), "n is an integer"),
    "n and index": (lambda p: mk.sample(p, 3, index=[1]), "leave n out"),
    "seed": (lambda p: mk.sample(p, 1, seed=-1), "integers >= 0"),
    "seeds": (lambda p: mk.sample(p, 3, seed=[1, 2]), "one seed, or one for each"),
    "real seed": (lambda p: mk.sample(p, 1, seed=0.5), "integers >= 0"),
    "index": (lambda p: mk.denoise(p, X, 10, index=[1]), "index names 1 items, x_t has 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case: str) -> None:
    act, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        act(UNetModel(Network(lambda x, t: x * 0.1), linear_schedule()))


@pytest.mark.parametrize("t", [0, 600])
def test_an_overflow_in_the_last_step_is_said_too(t: int) -> None:
    """No network looks at what the last step gives."""

    def eps(x: Tensor, at: Tensor) -> Tensor:
        return torch.where(at == t, torch.inf, 0.0).view(-1, 1, 1, 1).expand_as(x)

    p = UNetModel(Network(eps), linear_schedule())
    run = (lambda x: mk.denoise(p, x, 600, 3)) if t == 0 else (lambda x: mk.invert(p, x, 600, 3))
    with pytest.raises(ValueError, match="(x_0|x_t) holds NaN or infinity"):
        run(torch.zeros(2, *SHAPE))


def test_a_trajectory_that_overflows_is_said() -> None:
    p = UNetModel(Network(lambda x, t: x * 1e30), linear_schedule())
    with pytest.raises(ValueError, match="NaN or infinity"):
        mk.sample(p, 1, steps=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_have_the_model_s_precision_whatever_the_default(float64: None, dtype: Any) -> None:
    p = GaussianModel(torch.zeros(4, dtype=dtype), torch.eye(4))
    assert mk.sample(p, 2, steps=2).dtype == dtype
    torch.set_default_dtype(torch.float32)
    assert mk.sample(p, 2, steps=2).dtype == dtype


def test_no_level_of_noise_is_counted_from_the_end() -> None:
    with pytest.raises(ValueError, match="t is an integer in 0"):
        noised(GaussianModel(torch.zeros(4), torch.eye(4)), torch.zeros(1, 4), -1, 0)
