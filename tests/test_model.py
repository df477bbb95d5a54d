"""Models: eps whatever the network predicts, the exact Gaussian denoiser, and bad input."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import UNTRAINED
from torch import Tensor, nn

import mathkit as mk
from mathkit import jacobian
from mathkit.diffusion.gaussian import GaussianModel
from mathkit.diffusion.model import Model, linear_schedule
from mathkit.diffusion.networks import UNetModel, check_sizes
from mathkit.linear.chunks import NETWORK, fitting

SHAPE = (1, 2, 3)
TIMES = [0, 300, 999]
pytestmark = UNTRAINED


def gaussian(dtype: torch.dtype = torch.float64) -> GaussianModel:
    """Variances from .01 to 100 in n = 6, mean not 0."""
    g = torch.Generator().manual_seed(5)
    axes = torch.linalg.qr(torch.randn(6, 6, generator=g, dtype=torch.float64)).Q
    cov = axes * torch.logspace(-2, 2, 6, dtype=torch.float64) @ axes.T
    mean = torch.randn(SHAPE, generator=g, dtype=torch.float64)
    return GaussianModel(mean.to(dtype), ((cov + cov.T) / 2).to(dtype))


class Network(nn.Module):
    """A stand-in for a U-Net that answers `predict(x, t)`."""

    def __init__(self, predict: Callable[[Tensor, Tensor], Tensor], **config: Any) -> None:
        super().__init__()
        self.weight, self.predict, self.calls = nn.Parameter(torch.zeros(1)), predict, 0
        shape = {"in_channels": 1, "out_channels": 1, "sample_size": (2, 3)}
        self.config, self.class_embedding = SimpleNamespace(**(shape | config)), None

    def forward(self, x: Tensor, t: Tensor) -> Any:
        self.calls += len(x)
        return SimpleNamespace(sample=self.predict(x, t))


def as_predicted(g: GaussianModel, prediction: str) -> UNetModel:
    """The exact denoiser as a network that predicts eps, v or x_0."""

    def predict(x: Tensor, t: Tensor) -> Tensor:
        abar = g.alphas_cumprod[t].view(-1, 1, 1, 1)
        eps, clean = g.noise(x, t), g.clean(x, t)
        v = abar.sqrt() * eps - (1 - abar).sqrt() * clean
        return {"epsilon": eps, "v_prediction": v, "sample": clean}[prediction]

    return UNetModel(Network(predict).double(), g.alphas_cumprod, prediction)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("t", TIMES)
def test_noise_and_clean_whatever_the_network_predicts(prediction: str, t: int) -> None:
    g = gaussian()
    p, x = as_predicted(g, prediction), torch.randn(4, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(p.noise(x, t), g.noise(x, t), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(p.clean(x, t), g.clean(x, t), rtol=1e-7, atol=1e-9)


def test_the_comparison_sees_a_wrong_prediction_type() -> None:
    g, x = gaussian(), torch.randn(4, *SHAPE, dtype=torch.float64)
    p = as_predicted(g, "v_prediction")
    p.prediction = "epsilon"
    assert (p.noise(x, 300) - g.noise(x, 300)).abs().max() > 0.01


@pytest.mark.parametrize("t", TIMES)
def test_gaussian_posterior_mean_solves_the_normal_equations(t: int) -> None:
    """E[x_0 | x_t] = m + sqrt(a) S (a S + (1 - a) I)^-1 (x - sqrt(a) m), by a linear solve."""
    g, x = gaussian(), torch.randn(4, *SHAPE, dtype=torch.float64)
    a, m = g.alphas_cumprod[t], g.mean.flatten()
    S = g.axes * g.variances @ g.axes.T
    away = (x.flatten(1) - a.sqrt() * m).T
    exact = m + (a.sqrt() * S @ torch.linalg.solve(a * S + (1 - a) * torch.eye(6), away)).T
    torch.testing.assert_close(g.clean(x, t).flatten(1), exact)
    eps = (x.flatten(1) - a.sqrt() * exact) / (1 - a).sqrt()
    torch.testing.assert_close(g.noise(x, t).flatten(1), eps)
    torch.testing.assert_close(Model.clean(g, x, t).flatten(1), exact, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("t", TIMES)
def test_gaussian_jacobian_is_the_posterior_covariance(t: int) -> None:
    """J = sqrt(a) / (1 - a) Cov[x_0 | x_t], Cov^-1 = S^-1 + a / (1 - a) I: same axes at every t."""
    g, x = gaussian(), torch.randn(1, *SHAPE, dtype=torch.float64)
    a = g.alphas_cumprod[t]
    S = g.axes * g.variances @ g.axes.T
    cov = torch.linalg.inv(torch.linalg.inv(S) + a / (1 - a) * torch.eye(6))
    J = jacobian(lambda x: g.clean(x, t), x).dense()
    torch.testing.assert_close(J, a.sqrt() / (1 - a) * cov)
    torch.testing.assert_close(J @ g.axes, g.axes * (a.sqrt() / (1 - a) * (g.axes.T @ cov @ g.axes)
                                                     .diagonal()))  # fmt: skip


@pytest.mark.parametrize("model", ["gaussian", "unet"])
def test_one_time_each_or_one_for_all(model: str, tiny_unet: Any) -> None:
    unet = UNetModel(tiny_unet, linear_schedule(), "v_prediction")
    p: Model = unet if model == "unet" else gaussian(torch.float32)
    x, t = torch.randn(3, *p.shape), torch.tensor([0, 500, 999])
    each = torch.cat([p.noise(x[i : i + 1], int(t[i])) for i in range(3)])
    torch.testing.assert_close(p.noise(x, t), each, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(p.noise(x, torch.tensor([500])), p.noise(x, 500))
    torch.testing.assert_close(p.noise(x, torch.tensor(500)), p.noise(x, 500))


def test_linear_schedule_is_the_scheduler_s() -> None:
    from diffusers import DDPMScheduler

    abar = DDPMScheduler().alphas_cumprod.double()
    torch.testing.assert_close(linear_schedule(), abar, rtol=2e-5, atol=0)


@pytest.mark.parametrize("given", [torch.float32, torch.float64])
def test_the_levels_keep_float32_s_digits_at_every_time(given: torch.dtype) -> None:
    """abar is near 1 at t = 0: 1 - abar is taken in float64, before anything is rounded."""
    abar = linear_schedule().to(given)
    p = UNetModel(Network(lambda x, t: x), abar)
    assert p.alphas_cumprod.dtype == torch.float64 and p.alphas_cumprod.device.type == "cpu"
    times = torch.arange(1000)
    s, n = (side.flatten() for side in p.scales(torch.zeros(1000, *SHAPE), times))
    assert s.dtype == n.dtype == torch.float32
    torch.testing.assert_close(s.double(), abar.double().sqrt(), rtol=2e-7, atol=0)
    torch.testing.assert_close(n.double(), (1 - abar.double()).sqrt(), rtol=2e-7, atol=0)
    torch.testing.assert_close(s**2 + n**2, torch.ones(1000))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_network_in_half_precision_answers_in_the_type_of_x(
    prediction: str, tiny_unet: Any
) -> None:
    p = UNetModel(tiny_unet.bfloat16(), linear_schedule(), prediction)
    assert p.dtype == torch.bfloat16
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2, *p.shape, dtype=dtype)
        for answer in (p.noise(x, 5), p.clean(x, torch.tensor([5, 900]))):
            assert answer.dtype == dtype and answer.is_contiguous()


def state(net: nn.Module) -> list[Any]:
    """All that a caller could see change."""
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    weights = [(w.data_ptr(), w.stride(), w.requires_grad, w._version) for w in net.parameters()]
    return [hooks, weights, [m.training for m in net.modules()], [*net.state_dict()]]


def test_the_caller_s_network_is_left_as_it_was(tiny_unet: Any) -> None:
    tiny_unet.train().requires_grad_(True)
    before = state(tiny_unet)
    p = UNetModel(tiny_unet, linear_schedule())
    x = torch.randn(2, *p.shape)
    eps = p.noise(x, 5)
    mk.svd(mk.jacobian(mk.encoder(p, 5), x[:1]), 1)
    mk.denoise(p, x, 5, 1, h_edit=mk.inject(lambda h: h, 5, 0, 1.0))
    assert state(tiny_unet) == before
    assert eps.is_contiguous() and not eps.requires_grad
    tiny_unet(x, 5).sample.sum().backward()
    assert all(w.grad is not None for w in tiny_unet.parameters())


def test_what_touches_the_network_is_seen(tiny_unet: Any) -> None:
    before = state(tiny_unet.train().requires_grad_(True))
    for touch in (
        lambda: tiny_unet.conv_in.eval(),
        lambda: tiny_unet.conv_in.weight.requires_grad_(False),
        lambda: tiny_unet.conv_in.register_forward_hook(lambda *_: None),
        lambda: tiny_unet.conv_in.weight.detach().mul_(1),
    ):
        touch()
        assert state(tiny_unet) != before
        before = state(tiny_unet)


def test_the_weights_are_shared_and_train_mode_does_not_come_along(tiny_unet: Any) -> None:
    for module in tiny_unet.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    p, x = UNetModel(tiny_unet.train(), linear_schedule()), torch.randn(1, 3, 16, 16)
    eps = p.noise(x, 5)
    p.unet.train()
    assert torch.equal(p.noise(x, 5), eps)
    with torch.no_grad():
        tiny_unet.conv_out.bias += 1
    torch.testing.assert_close(p.noise(x, 5), eps + 1)


COMPILED = functools.partial(torch.compile, backend="eager")


@pytest.mark.parametrize("wrap", [nn.DataParallel, COMPILED])
def test_a_wrapped_network_is_the_one_inside(tiny_unet: Any, wrap: Any) -> None:
    plain, x = UNetModel(tiny_unet, linear_schedule()), torch.randn(1, 3, 16, 16)
    p = UNetModel(wrap(tiny_unet), linear_schedule())
    assert torch.equal(mk.encoder(p, 5)(x), mk.encoder(plain, 5)(x))


@pytest.mark.long
def test_an_edit_of_h_reaches_a_network_compiled_before(tiny_unet: Any) -> None:
    p, x = UNetModel(tiny_unet, linear_schedule()), torch.randn(1, 3, 16, 16)
    edit = mk.inject(lambda h: h, 900, 0, 2.0)
    wanted, h = mk.denoise(p, x, 900, 2, h_edit=edit), mk.encoder(p, 900)(x)
    p.unet = COMPILED(p.unet)
    p.noise(x, 900)  # compiled without a hook
    torch.testing.assert_close(mk.denoise(p, x, 900, 2, h_edit=edit), wanted)
    torch.testing.assert_close(mk.encoder(p, 900)(x), h)


def test_preparing_changes_no_value(tiny_unet: Any) -> None:
    plain, x = copy.deepcopy(tiny_unet), torch.randn(2, 3, 16, 16)
    p = UNetModel(tiny_unet, linear_schedule())
    torch.testing.assert_close(p.noise(x, 77), plain(x, 77).sample, rtol=1e-4, atol=1e-5)


def test_inference_mode_and_no_grad(tiny_unet: Any) -> None:
    p, x = UNetModel(tiny_unet, linear_schedule()), torch.randn(1, 3, 16, 16)
    expected = p.noise(x, 7)
    with torch.inference_mode():
        assert torch.equal(p.noise(x, 7), expected)
    with torch.no_grad():
        assert torch.equal(p.noise(x, 7), expected)


def wrong_x() -> dict[str, tuple[Any, str]]:
    x = torch.zeros(2, 3, 16, 16)
    return {
        "no batch": (x[0], r"got \(3, 16, 16\): one item is x_t\[None\]"),
        "size": (x[..., :8], r"tensor \(B, 3, 16, 16\), got \(2, 3, 16, 8\)"),
        "empty": (x[:0], r"got \(0, 3, 16, 16\)"),
        "list": ([1.0], "got list"),
        "bytes": (x.byte(), r"torch.uint8.*/ 127.5 - 1"),
        "double": (x.double(), r"torch.float64.*x_t.float\(\)"),
        "device": (x.to("meta"), r"on meta.*p.device"),
        "nan": (x / 0, "NaN or infinity"),
    }


@pytest.mark.parametrize("case", wrong_x())
def test_bad_x_is_refused(case: str, tiny_unet: Any) -> None:
    x, message = wrong_x()[case]
    with pytest.raises(ValueError, match=message):
        UNetModel(tiny_unet, linear_schedule()).noise(x, 5)


@pytest.mark.parametrize("t", [-1, 1000, 5.0, "5", None, torch.tensor([1, 2, 3]),
                               torch.tensor([5.0, 5.0]), torch.tensor([3, 1000])])  # fmt: skip
def test_bad_t_is_refused(t: Any, tiny_unet: Any) -> None:
    p = UNetModel(tiny_unet, linear_schedule())
    with pytest.raises(ValueError, match=r"^t "):
        p.noise(torch.zeros(2, *p.shape), t)


def test_images_and_prompts(tiny_unet: Any) -> None:
    p, x = UNetModel(tiny_unet, linear_schedule()), torch.rand(2, 3, 16, 16) * 2 - 1
    assert p.encode(x) is x and p.decode(x) is x
    with pytest.raises(ValueError, match=r"in \[-1, 1\], got values from .*127.5 - 1"):
        p.encode((x + 1) * 127.5)
    with pytest.raises(ValueError, match="takes no prompt"):
        p.prompted("a smiling man")


def test_an_image_may_overshoot_and_other_units_are_refused(tiny_unet: Any) -> None:
    p, x = UNetModel(tiny_unet, linear_schedule()), torch.rand(2, 3, 16, 16) * 2 - 1
    x[0, 0, 0, 0], x[0, 0, 0, 1] = 1.0, -1.0
    assert torch.equal(p.encode(2 * x), 2 * x)
    for far in (10 * x, 10 * x.clamp(max=0), 10 * x.clamp(min=0)):
        with pytest.raises(ValueError, match=r"images are float32 in \[-1, 1\]"):
            p.encode(far)


def test_a_covariance_may_lack_a_rank_or_round_below_zero_and_no_more() -> None:
    axes = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    for least in (0.0, -1e-9):
        cov = axes * torch.tensor([least, 0.0, 1.0, 2.0], dtype=torch.float64) @ axes.T
        g = GaussianModel(torch.zeros(4).double(), (cov + cov.T) / 2)
        assert g.variances.min() >= 0
        flat = axes[:, :2].T  # noise along these, whatever x_t holds of them
        torch.testing.assert_close(
            g.clean(flat, 500), torch.zeros(2, 4).double(), rtol=0, atol=1e-7
        )
    for least in (-0.01, -1e-4):
        cov = axes * torch.tensor([least, 0.0, 1.0, 2.0], dtype=torch.float64) @ axes.T
        with pytest.raises(ValueError, match="negative eigenvalue"):
            GaussianModel(torch.zeros(4).double(), (cov + cov.T) / 2)


def test_networks_and_covariances_of_another_kind_are_refused() -> None:
    for config, message in (
        ({"out_channels": 3}, "as many channels out as in"),
        ({"sample_size": None}, "no sample_size"),
    ):
        with pytest.raises(ValueError, match=message):
            UNetModel(Network(torch.add, **config), linear_schedule())
    with pytest.raises(ValueError, match="prediction is one of"):
        UNetModel(Network(torch.add), linear_schedule(), "noise")
    eye = torch.eye(2)
    for cov, message in (
        (torch.eye(3), r"symmetric \(2, 2\)"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (eye * torch.nan, "finite"),
        (torch.diag(torch.tensor([1.0, -1.0])), "negative eigenvalue"),
    ):
        with pytest.raises(ValueError, match=message):
            GaussianModel(torch.zeros(2), cov)
    with pytest.raises(ValueError, match="finite"):
        GaussianModel(torch.tensor([0.0, torch.nan]), eye)


def test_chunks_halve_when_memory_is_short_and_keep_their_order() -> None:
    p, seen = gaussian(), []
    p.batch = 8
    x = torch.arange(11.0)

    def f(part: Tensor, rows: slice) -> Tensor:
        if len(part) > 2:
            raise torch.OutOfMemoryError
        seen.append(rows)
        return part + torch.arange(11.0)[rows]

    assert torch.equal(p.chunked(x, f), 2 * x) and p.batch == 2
    assert sum(rows.stop - rows.start for rows in seen) == 11
    with pytest.raises(torch.OutOfMemoryError):
        p.chunked(x, lambda part, rows: f(torch.zeros(3), rows))


def test_a_device_takes_as_many_items_as_keep_it_busy() -> None:
    """A whole number, at least one; of a device it does not know as of a CPU."""
    for numbers, items in ((7, 142), (1000, 1), (10**9, 1)):
        assert fitting(numbers, "cpu", {"cpu": 1000}) == items
        assert isinstance(fitting(numbers, "cpu", {"cpu": 1000}), int)
    assert fitting(2**10, "another", {"cpu": 1000}) == fitting(2**10, "cpu", NETWORK) == 2**8


def test_an_edge_beyond_what_is_far_is_read_where_it_can_be() -> None:
    """Inside torch.func.vmap no number may be read: nothing is refused there."""
    p = mk.denoiser(lambda x, t: x, linear_schedule(), (3,), far=1.0)
    x = torch.tensor([[0.5, -0.5, 0.0], [3.0, 0.0, 0.0]])
    with pytest.raises(ValueError, match="x_0 reaches 3"):
        p.encode(x)
    nowhere = torch.func.vmap(lambda item: p.encode(item[None])[0])(x)
    assert torch.equal(nowhere, x)


def test_a_size_is_seen_also_in_a_list_of_lists() -> None:
    weights = {name: torch.zeros(8, 8) for name in "abcd"}
    check_sizes({"heads": [[8, [8]], 8]}, weights, Path("config.json"))
    for heads in ([[8, [5000]], 8], [[[8] * 5]]):
        with pytest.raises(ValueError, match="heads is at most 4096"):
            check_sizes({"heads": heads}, weights, Path("config.json"))
