"""Gaussian paths against closed forms, and samplers against diffusers' own on the same noise."""

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from test_model import SHAPE, Network
from torch import Tensor

import mathkit as mk
from mathkit.diffusion import levels
from mathkit.diffusion.gaussian import GaussianModel
from mathkit.diffusion.levels import Levels
from mathkit.diffusion.load import _bounded, thresholded
from mathkit.diffusion.model import Model, linear_schedule
from mathkit.diffusion.networks import UNetModel
from mathkit.diffusion.sampling import ddim_step, noised, start, walk

PATHS: dict[str, tuple[Any, tuple[float, ...]]] = {
    "preserving": (linear_schedule(), (0, 300, 999)),
    "exploding": (levels.exploding(0.01, 50.0), (0.01, 0.7, 50.0)),
    "flow": (levels.flow(), (0.001, 0.4, 1.0)),
    "trigonometric": (
        Levels(lambda t: torch.cos(t), lambda t: torch.sin(t), 1.5, 0.001),
        (0.001, 0.6, 1.5),
    ),
}
PREDICTIONS = ("epsilon", "sample", "score", "velocity", "v_prediction")


def gaussian(path: Any) -> GaussianModel:
    """Variances from .01 to 4 in n = 4, mean not 0, in float64."""
    g = torch.Generator().manual_seed(5)
    axes = torch.linalg.qr(torch.randn(4, 4, generator=g, dtype=torch.float64)).Q
    cov = axes * torch.tensor([0.01, 0.3, 1.0, 4.0]).double() @ axes.T
    mean = torch.randn(4, generator=g, dtype=torch.float64)
    return GaussianModel(mean, (cov + cov.T) / 2, path)


def predicted(g: GaussianModel, prediction: str) -> Model:
    """The exact denoiser of g as a callable that answers this prediction."""

    def f(x: Tensor, t: Tensor) -> Tensor:
        s, n = (side[:, None] for side in g.levels(t))
        eps, clean = g.noise(x, t), g.clean(x, t)
        return {
            "epsilon": eps, "sample": clean, "score": -eps / n, "velocity": eps - clean,
            "v_prediction": s * eps - n * clean,
        }[prediction]  # fmt: skip

    return mk.denoiser(f, g.levels, (4,), prediction, dtype=torch.float64)


# Closed forms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_the_gaussian_s_posterior_on_every_path(path: str) -> None:
    """E[x_0 | x_t] = m + s S (s^2 S + n^2)^-1 (x - s m) and Cov = S - s^2 S (s^2 S + n^2)^-1 S."""
    which, times = PATHS[path]
    g, x = gaussian(which), torch.randn(3, 4, dtype=torch.float64)
    S = g.axes * g.variances @ g.axes.T
    for t in times:
        s, n = g.levels.pair(t)
        gain = S @ torch.linalg.inv(s**2 * S + n**2 * torch.eye(4))
        exact = g.mean + s * (x - s * g.mean) @ gain.T
        torch.testing.assert_close(g.clean(x, t), exact)
        torch.testing.assert_close(s * g.clean(x, t) + n * g.noise(x, t), x)
        J = mk.jacobian(mk.posterior_mean(g, t), x[:1]).dense()
        torch.testing.assert_close(J, s / n**2 * (S - s**2 * gain @ S), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_is_the_same_model_on_every_path(path: str, prediction: str) -> None:
    which, times = PATHS[path]
    g, x = gaussian(which), torch.randn(3, 4, dtype=torch.float64)
    if prediction == "v_prediction" and path in ("exploding", "flow"):
        with pytest.raises(ValueError, match="v_prediction goes with"):
            predicted(g, prediction)
        return
    if prediction in ("epsilon", "score") and path == "flow":
        with pytest.raises(ValueError, match="says nothing of x_0"):
            predicted(g, prediction)
        return
    p = predicted(g, prediction)
    for t in times:
        both = p.both(x, t)
        for ours, exact in zip(both, (g.noise(x, t), g.clean(x, t)), strict=True):
            torch.testing.assert_close(ours, exact, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(both, (p.noise(x, t), p.clean(x, t)))


def exact_flow(g: GaussianModel, x: Tensor, t: float) -> Tensor:
    """The probability flow's x_0 = m + sqrt(l / (s^2 l + n^2)) (x - s m), in the axes of cov."""
    s, n = g.levels.pair(t)
    gain = (g.variances / (s**2 * g.variances + n**2)).sqrt()
    return g.mean + (x - s * g.mean) @ g.axes * gain @ g.axes.T


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("spacing", ["t", "log-snr"])
def test_denoising_converges_to_the_flow_with_order_one(path: str, spacing: str) -> None:
    g = gaussian(PATHS[path][0])
    g.spacing = spacing
    xt = 3 * torch.randn(8, 4, dtype=torch.float64)
    t = g.levels.highest(0.02)
    errors = [
        float((mk.denoise(g, xt, t, steps) - exact_flow(g, xt, t)).norm()) for steps in (50, 200)
    ]
    assert errors[1] < errors[0] / 3, errors


@pytest.mark.parametrize("path", PATHS)
def test_inversion_comes_back_on_every_path(path: str) -> None:
    g = gaussian(PATHS[path][0])
    x0 = g.mean + torch.randn(5, 4, dtype=torch.float64)
    t = g.levels.highest(0.5)
    xt = mk.invert(g, x0, t, 12, refine=60)
    torch.testing.assert_close(mk.denoise(g, xt, t, 12), x0, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", PATHS)
def test_samples_of_a_gaussian_have_its_mean_and_covariance(path: str) -> None:
    g, n = gaussian(PATHS[path][0]), 2000
    g.spacing = "log-snr"
    x = mk.sample(predicted(g, "sample"), n, steps=60) if path == "flow" else mk.sample(g, n, 0, 60)
    away = (x - g.mean) @ g.axes / g.variances.sqrt()
    assert float(away.mean(0).abs().max()) < 0.15, away.mean(0)
    assert float((away.var(0) - 1).abs().max()) < 0.25, away.var(0)


@pytest.mark.parametrize("path", PATHS)
def test_noised_is_at_its_level_and_the_start_is_as_large_as_x_t(path: str) -> None:
    which, times = PATHS[path]
    g = gaussian(which)
    s, n = g.levels.pair(times[1])
    x0 = torch.ones(5000, 4, dtype=torch.float64)
    xt = noised(g, x0, times[1], 3)
    assert abs(float(xt.mean()) - s) < 6 * n / 140 and abs(float(xt.std()) / n - 1) < 0.05
    size = math.hypot(*g.levels.pair(g.top))
    assert abs(float(start(g, 0, range(800)).std()) / size - 1) < 0.06


def test_a_step_in_levels_is_the_step_in_abar_and_keeps_the_marginal() -> None:
    """x' = s' x_0 + n' e' for x = s x_0 + n e: with eta the new noise is independent in part."""
    x0, e, z = torch.randn(3, 20_000, 1, dtype=torch.float64)
    for now, then in (((0.6, 0.8), (0.8, 0.6)), ((1.0, 5.0), (1.0, 0.7)), ((0.1, 0.9), (0.4, 0.6))):
        x = now[0] * x0 + now[1] * e
        for eta in (0.0, 0.5, 1.0):
            y = ddim_step(x, e, now, then, eta, z if eta else None)
            left = y - then[0] * x0
            assert abs(float(left.std()) / then[1] - 1) < 0.03
            share = float((left * e).mean()) / then[1]
            assert share == pytest.approx(1.0, abs=0.03) if not eta else share < 0.99
    same = ddim_step(x, e, 0.36, 0.64, 0.7, z), ddim_step(x, e, (0.6, 0.8), (0.8, 0.6), 0.7, z)
    torch.testing.assert_close(*same)


# Times -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_times_fall_evenly_in_what_the_model_steps_in(path: str) -> None:
    g = gaussian(PATHS[path][0])
    t = g.levels.highest(0.05)
    line = torch.tensor(mk.timesteps(g, t, 9), dtype=torch.float64)
    assert line[0] == t and line[-1] == g.levels.bottom
    assert float((line[1:] - line[:-1]).diff().abs().max()) <= (2 if g.levels.whole else 1e-9)
    g.spacing = "log-snr"
    grid = mk.timesteps(g, t, 9)
    assert grid[0] == t and grid[-1] == pytest.approx(g.levels.bottom) and len(grid) == 9
    gaps = torch.tensor([math.log(levels.ratio(g.levels.pair(s))) for s in grid]).diff()
    ends = gaps[:-2] if g.levels.whole else gaps  # near t = 0 a table has few times
    assert float((ends / ends.mean() - 1).abs().max()) < 0.15, gaps
    g.spacing = "sigma"
    with pytest.raises(ValueError, match="spacing is one of t, log-snr, got 'sigma'"):
        mk.timesteps(g, t, 9)


def test_a_real_time_is_never_rounded_to_float32() -> None:
    g, t = gaussian(levels.flow()), 0.1 + 1e-12
    assert g.levels.pair(t) == (1 - t, t) and float(g.times(t, 1)) == t


@pytest.mark.parametrize("path", ["exploding", "flow", "trigonometric"])
def test_log_snr_is_even_to_the_last_bits_where_times_are_real(path: str) -> None:
    p = gaussian(PATHS[path][0])
    p.spacing = "log-snr"
    grid = mk.timesteps(p, p.levels.highest(0.05), 60)
    gaps = torch.tensor([math.log(levels.ratio(p.levels.pair(s))) for s in grid]).diff()
    assert len(grid) == 60 and float((gaps / gaps.mean() - 1).abs().max()) < 1e-4


def test_levels_are_kept_in_a_file_and_copied() -> None:
    for path in (linear_schedule(), levels.flow(), levels.exploding()):
        g = gaussian(path)
        again = copy.deepcopy(pickle.loads(pickle.dumps(g)))
        assert again.levels.pair(again.top) == g.levels.pair(g.top)


def test_log_snr_from_pure_noise_has_as_many_times() -> None:
    g = gaussian(levels.flow())
    g.spacing = "log-snr"
    grid = mk.timesteps(g, 1.0, 12)
    assert len(grid) == 12 and grid[0] == 1.0 and all(a > b for a, b in pairwise(grid))


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "falling": (lambda: Levels(lambda t: t, lambda t: 1 - t, 0.9, 0.1), "rise in noise / signal"),
    "no noise": (lambda: Levels(lambda t: 1 - t, lambda t: t, 1.0, 0.0), "noise > 0"),
    "table": (lambda: levels.preserving(torch.zeros(2, 2)), "alphas_cumprod is"),
    "rising table": (lambda: levels.preserving(torch.tensor([0.1, 0.5])), "rise in noise"),
    "sigma": (lambda: levels.exploding(0.0), "least is a finite number"),
    "no time": (lambda: gaussian(levels.flow()).clean(torch.zeros(1, 4).double(), 1.5), "^t is"),
    "times": (
        lambda: gaussian(levels.flow()).clean(torch.zeros(2, 4).double(), torch.tensor([0.5, 2.0])),
        "t runs from 0.001 to 1.0",
    ),
    "whole times": (
        lambda: gaussian(levels.flow()).clean(torch.zeros(2, 4).double(), torch.tensor([0, 1])),
        "t is a number or real numbers",
    ),
    "f": (lambda: mk.denoiser(3, levels.flow(), (2,)), "f is a function"),  # type: ignore[arg-type]
    "spacing": (
        lambda: mk.denoiser(torch.add, linear_schedule(), (2,), spacing="sigma"), "spacing is one"
    ),
    "answer": (
        lambda: mk.sample(mk.denoiser(lambda x, t: x[:, :1], linear_schedule(), (2,)), 1, steps=2),
        r"f gives what it predicts, \(1, 2\), got torch.float32 \(1, 1\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_levels_and_callables_that_are_none_are_refused(case: str) -> None:
    act, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        act()


# Where there is next to no signal ----------------------------------------------------------------


def cosine(**more: Any) -> Any:
    from diffusers import DDIMScheduler

    how: dict[str, Any] = {"beta_schedule": "squaredcos_cap_v2"}
    return DDIMScheduler(**(how | more))


def long() -> Any:
    return cosine(beta_schedule="linear", num_train_timesteps=4000)


class UNet2DModel(Network):
    """Loaded by its name."""


def weak(abar: Tensor, error: float = 0.09, since: int = 0) -> Network:
    """The exact eps of N(0, .2^2), wrong by 9 % at the top, as after minutes of training."""

    def eps(x: Tensor, t: Tensor) -> Tensor:
        a = abar[t].view(-1, 1, 1, 1).to(x)
        exact = (1 - a).sqrt() * x / (0.04 * a + 1 - a)
        wrong = error * (1 - a) ** 4 * (t >= since).view(-1, 1, 1, 1)
        return exact + wrong * torch.sin(7 * x + torch.arange(6).view(SHAPE))

    return UNet2DModel(eps)


@pytest.mark.parametrize("name", ["cosine", "long", "unclipped"])
def test_an_eps_is_not_divided_by_next_to_no_signal(name: str) -> None:
    """Pictures of std .2 are drawn from a network that is 9 % wrong where it is told nothing."""
    clip = name != "unclipped"
    scheduler = long() if name == "long" else cosine(clip_sample=clip)
    abar = scheduler.alphas_cumprod.double()
    p = mk.load_model(weak(abar), scheduler=scheduler)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if clip else "ignore")
        x = mk.sample(p, 40, steps=25)
        states = [*walk(p, start(p, 0, range(40)), mk.timesteps(p, p.top, 25))]
    assert float(x.abs().max()) < (1.5 if clip else 40.0), x.abs().max()
    assert all(0.7 < float(x.std()) < 1.3 for t, x in states if clip and t > 0.6 * p.top)
    assert (p.bound is not None) == clip and levels.ratio(p.levels.pair(p.top)) >= 0.005
    top = len(abar) - 1
    xt = start(p, 0, [0])
    blind = ddim_step(xt, p.noise(xt, top), float(abar[top]), 1.0)
    assert float(blind.abs().max()) > 100, "the fault this test is for"


def test_what_was_made_and_is_no_picture_is_said_once() -> None:
    p = UNetModel(Network(lambda x, t: 0 * x), linear_schedule())
    with pytest.warns(
        UserWarning, match=r"x_t at t = \d+ that was made reaches \d.*is far"
    ) as said:
        mk.sample(p, 1, steps=6)
    assert len(said) == 1
    exact = UNetModel(weak(linear_schedule(), 0.0), linear_schedule())
    assert float(mk.sample(exact, 4, steps=6).abs().max()) < 1.5


def test_clipping_as_diffusers_where_it_is_dim_and_nowhere_else() -> None:
    """On its own grid, from the same noise; later no x_0 of this network needs clipping."""
    scheduler = cosine()
    scheduler.set_timesteps(25)
    abar = scheduler.alphas_cumprod.double()
    network = weak(abar, 0.3, since=940)
    p = mk.load_model(network, scheduler=scheduler)
    grid = scheduler.timesteps.tolist()
    x = first = start(p, 0, range(8))
    scheduler.final_alpha_cumprod = torch.tensor(1.0)
    for t in grid:
        x = scheduler.step(network(x, torch.tensor([t])).sample, t, x).prev_sample
    torch.testing.assert_close(mk.denoise(p, first, grid[0], times=grid), x, rtol=1e-4, atol=1e-5)
    p.bound = None
    assert (mk.denoise(p, first, grid[0], times=grid) - x).abs().max() > 1e-3, "it is felt"


def test_thresholding_is_diffusers_own() -> None:
    from diffusers import DDPMScheduler

    x0 = 3 * torch.randn(4, 3, 8, 8)
    for share, most in ((0.9, 2.0), (0.5, 1.0), (0.995, 100.0)):
        theirs = DDPMScheduler(
            thresholding=True, dynamic_thresholding_ratio=share, sample_max_value=most
        )._threshold_sample(x0)
        torch.testing.assert_close(thresholded(x0, share, most), theirs)
    p = mk.load_model(
        weak(linear_schedule()), scheduler=cosine(thresholding=True, sample_max_value=1.5)
    )
    assert p.bound is not None and p.bound(x0).abs().max() == 1
    # What a config leaves out is as diffusers has it.
    bound, theirs = _bounded(p, {"thresholding": True}).bound, DDPMScheduler(thresholding=True)
    torch.testing.assert_close(bound(x0 / 2), theirs._threshold_sample(x0 / 2))
    for settings, most in (({}, 1), ({"clip_sample_range": 0.5}, 0.5)):
        clipped = _bounded(p, {"clip_sample": True} | settings).bound(x0)
        assert torch.equal(clipped, x0.clamp(-most, most))


def test_an_edit_of_h_where_nothing_is_seen_is_refused(tiny_unet: Any) -> None:
    p = mk.load_model(tiny_unet, scheduler=cosine())
    edit = mk.inject(lambda h: h, 999, 0, 1.0)
    with pytest.raises(ValueError, match="at t = 999 signal / noise is 4.9e-05.*begin at t = 995"):
        mk.denoise(p, start(p, 0, [0]), 999, 3, h_edit=edit)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_zero_terminal_snr_samples_as_diffusers_does(prediction: str, tiny_unet: Any) -> None:
    """Rescaled betas, trailing steps, x_T at abar = 0: DDIMScheduler on the same noise."""
    scheduler = cosine(
        beta_schedule="scaled_linear", rescale_betas_zero_snr=True, clip_sample=False,
        timestep_spacing="trailing", prediction_type=prediction,
    )  # fmt: skip
    assert scheduler.alphas_cumprod[-1] == 0
    scheduler.set_timesteps(10)
    p = mk.load_model(tiny_unet, scheduler=scheduler)
    x = first = start(p, 0, [0, 1])
    scheduler.final_alpha_cumprod, grid = torch.tensor(1.0), scheduler.timesteps.tolist()
    with torch.no_grad():
        for t in grid:
            x = scheduler.step(tiny_unet(x, t).sample, t, x).prev_sample
    assert p.top == 999 == grid[0]
    torch.testing.assert_close(mk.denoise(p, first, 999, times=grid), x, rtol=1e-4, atol=1e-4)
    assert mk.svd(mk.jacobian(mk.encoder(p, 999), first[:1]), 2).S[1] > 0


def test_an_eps_at_no_signal_at_all_is_refused(tiny_unet: Any) -> None:
    with pytest.raises(ValueError, match="epsilon says nothing of x_0: such a model predicts v"):
        mk.load_model(tiny_unet, scheduler=cosine(rescale_betas_zero_snr=True))


# Rectified flow ----------------------------------------------------------------------------------


def test_a_rectified_flow_transformer_samples_as_diffusers_does() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    torch.manual_seed(0)
    network = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=4,
        num_attention_heads=4, joint_attention_dim=8, caption_projection_dim=16,
        pooled_projection_dim=8, out_channels=4, pos_embed_max_size=8,
    ).eval()  # fmt: skip
    text, pooled = torch.randn(1, 5, 8), torch.randn(1, 8)

    @torch.no_grad()
    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return network(
            hidden_states=x, encoder_hidden_states=text.expand(len(x), -1, -1),
            pooled_projections=pooled.expand(len(x), -1), timestep=1000 * t,
        ).sample  # fmt: skip

    p = mk.denoiser(velocity, levels.flow(), (4, 8, 8), "velocity")
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(12)
    x = start(p, 0, [0, 1])
    for t in scheduler.timesteps:
        x = scheduler.step(velocity(x, t.expand(2) / 1000), t, x).prev_sample
    torch.testing.assert_close(mk.sample(p, 2, steps=12), x, rtol=1e-4, atol=1e-4)
    back = mk.denoise(p, mk.invert(p, x, 0.5, 10, refine=3), 0.5, 10)
    assert float((back - x).norm() / x.norm()) < 1e-2
    assert "Denoiser(velocity, x_t (4, 8, 8), velocity" in repr(p)


def test_a_network_is_a_model_with_maps_and_is_not_changed(tiny_unet: Any) -> None:
    p = mk.denoiser(tiny_unet.train(), linear_schedule(), (3, 16, 16))
    q, x = UNetModel(tiny_unet, linear_schedule()), torch.randn(1, 3, 16, 16)
    assert torch.equal(p.noise(x, 600), q.noise(x, 600)) and tiny_unet.training
    assert torch.equal(mk.encoder(p, 600)(x), mk.encoder(q, 600)(x))
    f, v, e = mk.posterior_mean(p, 600), torch.randn_like(x), 1e-2
    push = mk.jacobian(f, x).push(v)
    torch.testing.assert_close(push, (f(x + e * v) - f(x - e * v)) / (2 * e), rtol=0.02, atol=0.02)


# What is given and what is made ------------------------------------------------------------------


def shouting(far: float | None) -> Any:
    """A denoiser all of whose pictures are 40."""
    how = {} if far is None else {"far": far}
    return mk.denoiser(lambda x, t: 0 * x + 40, levels.flow(), (2, 4, 4), "sample", **how)


def test_a_denoiser_is_told_how_far_its_pictures_go() -> None:
    """Both given and made: beyond it, within it, and neither looked at where it is not told."""
    given = torch.full((1, 2, 4, 4), 40.0)
    p = shouting(5)
    with pytest.warns(UserWarning, match="that was made reaches 21.3, and 6.5 is far"):
        mk.sample(p, 1, steps=3)
    with pytest.raises(ValueError, match=r"x_0 reaches 40, and the model was made with far = 5"):
        mk.invert(p, given, 0.5, 3)
    for q in (shouting(400), shouting(None), shouting(math.inf)):
        assert (mk.sample(q, 1, steps=3) - given).abs().max() < 1e-3
        assert mk.invert(q, given, 0.5, 3).isfinite().all()


@pytest.mark.parametrize("far", [-1, math.nan, "5", True, None])
def test_what_is_no_range_is_told(far: Any) -> None:
    with pytest.raises(ValueError, match="far is a finite number >= 0"):
        mk.denoiser(torch.add, levels.flow(), (2,), "velocity", far=far)
