"""The map x_t -> h under every transform, edits with the length they state, injection."""

import threading
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from conftest import UNTRAINED
from test_model import SHAPE, Network, gaussian
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import mathkit as mk
from mathkit.diffusion.edits import geodesic, great_circle, h_step, paths_between, response
from mathkit.diffusion.encoder import MAPS, bottleneck, replacing
from mathkit.diffusion.gaussian import GaussianModel
from mathkit.diffusion.model import linear_schedule
from mathkit.diffusion.networks import UNetModel
from mathkit.diffusion.sampling import ddim_step

pytestmark = UNTRAINED

T = 600


@pytest.fixture
def p(tiny_unet: Any) -> UNetModel:
    return UNetModel(tiny_unet, linear_schedule(), "v_prediction")


@pytest.fixture
def p64(tiny_unet_double: Any) -> UNetModel:
    return UNetModel(tiny_unet_double, linear_schedule(), "v_prediction")


def noise(p: Any, n: int = 1) -> Tensor:
    return torch.randn(n, *p.shape, dtype=p.dtype)


def test_encoder_is_the_middle_block_s_output(p: UNetModel, bottleneck: Any) -> None:
    x = noise(p, 3)
    h = mk.encoder(p, T)(x)
    torch.testing.assert_close(h, bottleneck(p.unet, T)(x), rtol=1e-5, atol=1e-6)
    assert h.shape == (3, 8, 2, 2) and h.is_contiguous() and not h.requires_grad
    torch.testing.assert_close(mk.encoder(p, T, pool="sum")(x), h.sum((2, 3)))


def test_the_decoder_never_runs_and_the_network_stays_whole(p: UNetModel) -> None:
    x = noise(p)
    before, ran = p.noise(x, T), []
    watch = p.unet.up_blocks[0].register_forward_pre_hook(lambda *_: ran.append(1))
    mk.encoder(p, T)(x)
    assert not ran
    assert torch.equal(p.noise(x, T), before) and len(ran) == 1
    watch.remove()
    assert not p.unet.mid_block._forward_hooks


@pytest.mark.long
@pytest.mark.parametrize("name", MAPS)
def test_every_derivative_is_the_finite_difference(p64: UNetModel, name: str) -> None:
    f, x, V, e = MAPS[name](p64, T), noise(p64), noise(p64, 4)[:, None], 1e-5
    exact = torch.stack([(f(x + e * v) - f(x - e * v)) / (2 * e) for v in V])
    U = torch.randn_like(exact)

    def same(Jv: Tensor) -> None:
        torch.testing.assert_close(Jv, exact, rtol=1e-6, atol=1e-8)

    with sdpa_kernel(SDPBackend.MATH):
        same(torch.stack([torch.func.jvp(f, (x,), (v,))[1] for v in V]))
        same(torch.vmap(lambda v: torch.func.jvp(f, (x,), (v,))[1])(V))
        with torch.no_grad():
            same(torch.stack([torch.func.jvp(f, (x,), (v,))[1] for v in V]))
        with forward_ad.dual_level():
            out = forward_ad.unpack_dual(f(forward_ad.make_dual(x, V[0])))
            torch.testing.assert_close(out.tangent, exact[0], rtol=1e-6, atol=1e-8)
        _, pull = torch.func.vjp(f, x)
        (JTU,) = torch.vmap(pull)(U)
    torch.testing.assert_close((JTU * V).flatten(1).sum(1), (U * exact).flatten(1).sum(1))
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(f(leaf), leaf, U[0])
    torch.testing.assert_close(grad, JTU[0])
    A = mk.jacobian(f, x)
    same(A.push(V[:, 0])[:, None])
    torch.testing.assert_close(A.pull(U[:, 0]), JTU[:, 0])
    mk.check_adjoint(A)


@pytest.mark.slow
def test_linearize() -> None:
    """A network of one block: torch traces it for half a minute."""
    from diffusers import UNet2DModel

    kinds = {"down_block_types": ("AttnDownBlock2D",), "up_block_types": ("AttnUpBlock2D",)}
    small = {"block_out_channels": (4,), "layers_per_block": 1, "norm_num_groups": 2}
    unet = UNet2DModel(sample_size=4, attention_head_dim=4, **small, **kinds)
    f = mk.encoder(UNetModel(unet, linear_schedule()), T)
    x, v = torch.randn(2, 1, 3, 4, 4)
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attempted to insert a get_attr", UserWarning)
        _, push = torch.func.linearize(f, x)
    torch.testing.assert_close(push(v)[None, 0], mk.jacobian(f, x).push(v), rtol=1e-3, atol=1e-5)


def test_items_of_a_batch_are_independent_also_under_vmap(p64: UNetModel) -> None:
    f, x = mk.encoder(p64, T), noise(p64, 3)
    one = torch.cat([f(item[None]) for item in x])
    torch.testing.assert_close(f(x), one)
    with sdpa_kernel(SDPBackend.MATH):
        torch.testing.assert_close(torch.vmap(lambda item: f(item[None])[0])(x), one)


def test_float32_agrees_with_float64(p: UNetModel, p64: UNetModel) -> None:
    x, v = noise(p64), noise(p64)
    J = mk.jacobian(mk.encoder(p, T), x.float()).push(v.float())
    torch.testing.assert_close(
        J.double(), mk.jacobian(mk.encoder(p64, T), x).push(v), rtol=1e-3, atol=1e-4
    )


def test_threads_do_not_meet_in_the_hook(p: UNetModel) -> None:
    """While one thread is inside an edit of h, another runs the same network untouched."""
    x, out = noise(p), []
    plain = p.noise(x, T)
    mk.encoder(p, T)(x)

    def edited(h: Tensor) -> Tensor:
        worker = threading.Thread(target=lambda: out.append(p.noise(x, T)))
        worker.start(), worker.join()
        return h + 1

    with replacing(bottleneck(p), edited):
        assert not torch.equal(p.noise(x, T), plain)
    assert torch.equal(out[0], plain)


def test_an_error_inside_leaves_no_edit_behind(p: UNetModel) -> None:
    f, x = mk.encoder(p, T), noise(p)
    plain = p.noise(x, T)
    with pytest.raises(ValueError, match="x_t"):
        f(x[0])
    with pytest.raises(ZeroDivisionError), replacing(bottleneck(p), lambda h: h / (1 // 0)):
        p.noise(x, T)
    assert torch.equal(p.noise(x, T), plain)


def test_encoder_refuses_what_it_cannot_take(p: UNetModel) -> None:
    with pytest.raises(ValueError, match="GaussianModel has no bottleneck"):
        mk.encoder(gaussian(), T)
    for call, message in (
        (lambda: mk.encoder(p, 1000), "t is an integer in 0"),
        (lambda: mk.encoder(p, T, pool="mean"), 'pool is None or "sum"'),
        (lambda: mk.encoder(p, T)(noise(p) * torch.nan), "NaN"),
        (lambda: mk.encoder(p, T)(noise(p).double()), "torch.float64"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


LAYERS = ["mid_block", "up_blocks.1", "conv_in", "down_blocks.3.resnets.0", "time_embedding"]


@pytest.mark.parametrize("name", LAYERS)
def test_h_is_the_output_of_any_layer_named_in_three_ways(p: UNetModel, name: str) -> None:
    x, layer, seen = noise(p, 2), p.unet.get_submodule(name), []
    handle = layer.register_forward_hook(lambda *call: seen.append(call[2]))
    p.noise(x, T)
    handle.remove()
    for at in (name, layer, lambda unet: unet.get_submodule(name)):
        f = mk.encoder(p, T, at=at)
        assert torch.equal(f(x), seen[0]) and f.at == name
    assert repr(f) == f"h of UNetModel at {name!r}, t = {T}"


def test_of_several_outputs_h_is_the_first_and_the_others_stay(p64: UNetModel) -> None:
    """A down block gives h and what the decoder is handed on; only h is edited."""
    x, at, seen = noise(p64), "down_blocks.2", []
    with replacing(bottleneck(p64, at), lambda h: seen.append(h) or 2 * h):
        edited = p64.noise(x, T)
    torch.testing.assert_close(mk.encoder(p64, T, at=at)(x), seen[0])
    assert not torch.allclose(edited, p64.noise(x, T), atol=1e-6)
    mk.check_adjoint(mk.jacobian(mk.encoder(p64, T, at=at), x))


def test_a_layer_that_is_not_there_or_never_runs_is_refused(p: UNetModel) -> None:
    for at in ("mid", "", torch.nn.Linear(1, 1), lambda unet: unet, lambda unet: None):
        with pytest.raises(ValueError, match=r"at is a layer of p\.unet, got .*up_blocks"):
            mk.encoder(p, T, at=at)
    with pytest.raises(ValueError, match="at is a layer's name, a module or a function, got 3"):
        mk.encoder(p, T, at=3)
    p.unet.spare = torch.nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match="ran without calling that layer"):
        mk.encoder(p, T, at="spare")(noise(p))


def test_a_layer_without_places_is_not_pooled(p: UNetModel) -> None:
    with pytest.raises(ValueError, match="no places to sum over"):
        mk.encoder(p, T, "sum", at="time_embedding")(noise(p))


class Blocks(torch.nn.Module):
    """A transformer's manner: a row of blocks over tokens (B, places, channels)."""

    def __init__(self, row: str, count: int) -> None:
        super().__init__()
        self.config = Network(lambda x, t: x).config
        blocks = [torch.nn.Linear(3, 3) for _ in range(count)]
        setattr(self, row, torch.nn.ModuleList(blocks))
        self.out = torch.nn.Sequential(torch.nn.Linear(3, 3))

    def forward(self, x: Tensor, t: Tensor) -> Any:
        y = x[:, 0]
        for block in next(iter(self.children())):
            y = y + block(y)
        return SimpleNamespace(sample=self.out(y)[:, None])


@pytest.mark.parametrize(("count", "middle"), [(2, 0), (4, 1), (5, 2)])
def test_without_a_bottleneck_h_is_the_middle_of_the_blocks(count: int, middle: int) -> None:
    p = UNetModel(Blocks("transformer_blocks", count).double(), linear_schedule())
    f, x = mk.encoder(p, T), noise(p)
    assert f.at == f"transformer_blocks.{middle}" and f(x).shape == (1, 2, 3)
    torch.testing.assert_close(mk.encoder(p, T, "sum")(x), f(x).sum(1))
    mk.check_adjoint(mk.jacobian(f, x))


def test_without_a_middle_the_layer_is_to_be_named(p: UNetModel) -> None:
    one = UNetModel(Blocks("blocks", 1), linear_schedule())
    with pytest.raises(ValueError, match="nor a row of blocks with a middle: say where h is"):
        mk.encoder(one, T)
    p.unet.mid_block = None
    assert mk.encoder(p, T).at == "down_blocks.3"


@pytest.mark.parametrize("at", [None, "up_blocks.0", "conv_in"])
def test_an_edit_acts_on_the_layer_it_is_told(p64: UNetModel, at: str | None) -> None:
    """h + dh there is the network from there on, read off h + dh."""
    x, layer = noise(p64), bottleneck(p64, at)
    dh = torch.randn_like(mk.encoder(p64, T, at=at)(x))
    with replacing(layer, lambda h: h + 0.5 * dh):
        eps = p64.noise(x, T)
    torch.testing.assert_close(mk.inject(dh, T, T, 0.5, at)(p64, x, T), eps)
    v = noise(p64)[0]
    step, f = h_step(p64, x, T, v, at), mk.encoder(p64, T, at=at)
    torch.testing.assert_close(step.norm(), f(x).norm())
    e = 1e-6 * v
    J = (f(x + e) - f(x - e)).flatten()
    cosine = torch.nn.functional.cosine_similarity(step.flatten(), J, dim=0)
    assert float(cosine) == pytest.approx(1, abs=1e-6)


def test_the_posterior_mean_has_no_layer(p: UNetModel) -> None:
    assert torch.equal(
        MAPS["pooled"](p, T, "conv_in")(x := noise(p)), mk.encoder(p, T, "sum", "conv_in")(x)
    )
    with pytest.raises(ValueError, match="at belongs to the maps"):
        MAPS["mean"](p, T, "conv_in")


def length(a: Tensor) -> Tensor:
    """Norm of each item, the first two axes kept."""
    return a.flatten(2).norm(dim=2)


def reached(y: Tensor) -> Tensor:
    """|y_i - x_t| / |x_t|, (steps + 1, B)."""
    return length(y - y[:1]) / length(y[:1])


@pytest.mark.parametrize("edit", [mk.move, mk.guide])
@pytest.mark.parametrize("strength", [0.3, -0.3])
@pytest.mark.parametrize("each", [False, True])
def test_strength_is_the_signed_length_reached(
    p64: UNetModel, edit: Any, strength: float, each: bool
) -> None:
    xt, v = noise(p64, 3), noise(p64, 3) * 7
    v = v if each else v[0]
    y = edit(p64, xt, T, v, strength, 5)
    assert y.shape == (6, 3, *p64.shape) and torch.equal(y[0], xt) and not y.requires_grad
    line = torch.linspace(0, 0.3, 6).double()[:, None].expand(6, 3)
    torch.testing.assert_close(reached(y), line)
    first = ((y[1] - xt) * v).flatten(1).sum(1)
    assert (first * strength > 0).all()
    assert torch.equal(edit(p64, xt, T, v, 0.0, 2)[2], xt)


def test_the_check_of_lengths_sees_a_move_with_a_free_norm(p64: UNetModel) -> None:
    xt, v = noise(p64, 2), noise(p64)
    y = mk.move(p64, xt, T, v[0], 0.3, 5)
    naive = xt + 0.3 * length(xt[None])[0].view(-1, 1, 1, 1) * v / v.norm()
    torch.testing.assert_close(length(y), length(y[:1]).expand(6, 2))
    assert (length(naive[None]) / length(xt[None]) - 1).abs().min() > 0.01


def test_a_move_is_the_normalised_sum_of_some_size(p64: UNetModel) -> None:
    """x <- |x| normalise(x + d v), iterated in tiny steps, passes through every point of `move`."""
    xt, v = noise(p64), noise(p64)
    y, r = mk.move(p64, xt, T, v[0], 0.5, 4), xt.norm()
    x, path = xt, [xt]
    for _ in range(700):
        x = x + 1e-3 * r * v / v.norm()
        path.append(r * x / x.norm())
        x = path[-1]
    for point in y[:, 0]:
        assert min(float((point - q[0]).norm() / r) for q in path) < 1e-3


def test_guidance_of_a_gaussian_goes_along_the_jacobian_of_eps() -> None:
    g = gaussian()
    xt, v = noise(g, 2), noise(g)[0]
    J = mk.jacobian(lambda x: g.noise(x, T), xt[:1])
    unit = v / v.norm()
    Jv = J.push(unit[None])
    y = mk.guide(g, xt, T, v, 0.2, 3)
    moved = torch.nn.functional.normalize((y[-1] - xt).flatten(1), dim=1)
    torch.testing.assert_close(moved, (Jv / Jv.norm()).flatten(1).expand(2, -1))
    torch.testing.assert_close(response(g, xt, T, v), (Jv * unit).sum().expand(2))
    gamma = 0.2 * xt[:1].norm() / Jv.norm()
    published = xt[:1] + gamma * (g.noise(xt[:1] + unit, T) - g.noise(xt[:1], T))
    torch.testing.assert_close(y[-1, :1], published)


def test_guidance_goes_to_plus_v_also_where_kappa_is_negative() -> None:
    p = UNetModel(Network(lambda x, t: -2 * x).double(), linear_schedule())
    xt, v = noise(p, 2), noise(p)[0]
    torch.testing.assert_close(response(p, xt, T, v), torch.full((2,), -2.0).double())
    y = mk.guide(p, xt, T, v, 0.1, 2)
    torch.testing.assert_close(reached(y)[-1], torch.full((2,), 0.1).double())
    assert (((y[-1] - xt) * v).flatten(1).sum(1) > 0).all()


def test_the_sign_of_guidance_is_chosen_once() -> None:
    """eps = -cos(pi <x, v>) v / 2, so kappa = cos(pi <x, v>): positive at x_t, where v leads on,
    and negative after a step, where the published rule turns back, as its gamma keeps its sign."""
    v = torch.nn.functional.normalize(torch.randn(6, dtype=torch.float64), dim=0).view(SHAPE)

    def along(x: Tensor) -> Tensor:
        return (x * v).flatten(1).sum(1).view(-1, 1, 1, 1)

    p = UNetModel(
        Network(lambda x, t: -(torch.pi * along(x)).cos() / 2 * v).double(), linear_schedule()
    )
    far = torch.randn(6, dtype=torch.float64).view(1, *SHAPE)
    xt = far - along(far) * v
    xt = xt / xt.norm()
    for strength in (1.6, -1.6):
        y = mk.guide(p, xt, T, v, strength, 2)
        reach = 0.8 if strength > 0 else -0.8
        torch.testing.assert_close(response(p, xt, T, v), torch.ones(1).double())
        assert response(p, y[1], T, v) < 0
        expected = torch.tensor([0.0, reach, -2 * reach], dtype=torch.float64)
        torch.testing.assert_close(along(y[:, 0] - xt).flatten(), expected, rtol=0, atol=1e-9)


def test_guidance_calls_the_network_twice_a_step() -> None:
    network = Network(lambda x, t: 0.5 * x)
    p = UNetModel(network, linear_schedule())
    mk.guide(p, noise(p, 3), T, noise(p)[0], 0.1, 4)
    assert p.unet.calls == 2 * 3 * 4


V = torch.ones(SHAPE)
BAD_EDITS: dict[str, tuple[dict[str, Any], str]] = {
    "no batch": ({"xt": V}, r"x_t\[None\]"),
    "t": ({"t": 1000}, "t is an integer"),
    "zero": ({"v": 0 * V}, "v is zero"),
    "nan": ({"v": V * torch.nan}, "NaN"),
    "shape": ({"v": V[..., :2]}, r"v is \(1, 2, 3\) or \(2, 1, 2, 3\), got \(1, 2, 2\)"),
    "too many": ({"v": V.expand(3, *SHAPE)}, "v is"),
    "no tensor": ({"v": [1.0]}, "got list"),
    "strength": ({"strength": float("nan")}, "is a finite number"),
    "steps": ({"steps": 0}, "steps is an integer >= 1"),
}


@pytest.mark.parametrize("edit", [mk.move, mk.guide])
@pytest.mark.parametrize("case", BAD_EDITS)
def test_bad_edits_are_refused(edit: Any, case: str) -> None:
    p = UNetModel(Network(lambda x, t: 0.5 * x), linear_schedule())
    good = {"xt": torch.randn(2, *SHAPE), "t": T, "v": V, "strength": 0.1, "steps": 2}
    edit(p, **good)
    changes, message = BAD_EDITS[case]
    with pytest.raises(ValueError, match=message):
        edit(p, **(good | changes))


def test_edits_that_cannot_reach_their_length_are_refused() -> None:
    p = UNetModel(Network(lambda x, t: 0 * x), linear_schedule())
    xt = torch.randn(2, *SHAPE)
    with pytest.raises(ValueError, match=r"in \[-2, 2\], got 2.1"):
        mk.move(p, xt, T, V, 2.1, 3)
    with pytest.raises(ValueError, match="parallel to x_t"):
        mk.move(p, xt, T, xt, 0.1, 3)
    with pytest.raises(ValueError, match="eps does not change along v"):
        mk.guide(p, xt, T, V, 0.1, 3)


@pytest.mark.parametrize("angle", [0.2, 0.01])
def test_a_direction_nearly_along_x_t_moves_on_the_same_circle(angle: float) -> None:
    """cos(a) x + sin(a) w leads where w does, down to a thousandth; below there is no such w."""
    p = isotropic()
    x, w = torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64)).Q.T.view(2, 1, *SHAPE)
    near = torch.tensor(angle).cos() * x + torch.tensor(angle).sin() * w
    torch.testing.assert_close(
        mk.move(p, x, T, near[0], 0.5, 3), mk.move(p, x, T, w[0], 0.5, 3), rtol=0, atol=1e-8
    )
    with pytest.raises(ValueError, match="parallel to x_t"):
        mk.move(p, x, T, (x + 1e-5 * w)[0], 0.5, 3)


def test_a_move_reaches_the_other_side_and_no_farther() -> None:
    p = isotropic()
    x, v = noise(p, 2), noise(p)[0]
    torch.testing.assert_close(mk.move(p, x, T, v, 2.0, 1)[1], -x)
    with pytest.raises(ValueError, match=r"in \[-2, 2\], got 2.0001"):
        mk.move(p, x, T, v, 2.0001, 1)


def test_one_item_that_cannot_be_edited_is_not_passed_over() -> None:
    """The other can: a direction across x_t, an eps that changes."""
    p = UNetModel(Network(lambda x, t: x * (x[:, :1, :1, :1] > 0)).double(), linear_schedule())
    x = torch.ones(2, *SHAPE).double()
    v = torch.randn(2, *SHAPE).double()
    v[:, 0, 0, 0] = 0
    x[1, 0, 0, 0] = -1
    with pytest.raises(ValueError, match="eps does not change along v"):
        mk.guide(p, x, T, v, 0.1, 2)
    mk.guide(p, x[:1], T, v[:1], 0.1, 2)
    v[1] = 2 * x[1]
    with pytest.raises(ValueError, match="parallel to x_t"):
        mk.move(p, x, T, v, 0.1, 2)
    v[1] = 0
    with pytest.raises(ValueError, match="v is zero"):
        mk.move(p, x, T, v, 0.1, 2)


def test_the_step_of_h_is_where_h_goes_along_v_and_as_long(p64: UNetModel) -> None:
    f, x, v, e = mk.encoder(p64, T), noise(p64), noise(p64)[0], 1e-5
    dh, gone = h_step(p64, x, T, v), f(x + e * v) - f(x - e * v)
    torch.testing.assert_close(dh / f(x).norm(), gone / gone.norm(), rtol=1e-5, atol=1e-7)
    assert torch.equal(dh, h_step(p64, x, T, v[None])) and not dh.requires_grad


def test_an_injection_of_nothing_changes_nothing(p: UNetModel) -> None:
    xt = noise(p, 2)
    plain, nothing = mk.denoise(p, xt, 800, 5), mk.inject(torch.ones(8, 2, 2), 999, 0, 0.0)
    assert torch.equal(mk.denoise(p, xt, 800, 5, h_edit=nothing), plain)
    assert torch.equal(mk.denoise(p, xt, 800, 5), plain), "and none is left behind"


def by_hand(
    p: UNetModel, xt: Tensor, dh: Any, window: tuple[int, int], both: bool = False
) -> Tensor:
    """Asyrp written out: P_t from the edited network, D_t from the unedited one."""
    x, grid = xt, mk.timesteps(p, 800, 5)
    for now, then in zip(grid, [*grid[1:], -1], strict=True):
        a = float(p.alphas_cumprod[now])
        b = float(p.alphas_cumprod[then]) if then >= 0 else 1.0
        eps = edited = p.noise(x, now)
        if window[0] >= now >= window[1]:
            middle = p.unet.mid_block.register_forward_hook(lambda m, i, h: h + dh(h))
            edited = p.noise(x, now)
            middle.remove()
        clean = (x - (1 - a) ** 0.5 * edited) / a**0.5
        x = b**0.5 * clean + (1 - b) ** 0.5 * (edited if both else eps)
    return x


@pytest.mark.parametrize("window", [(999, 0), (800, 400), (450, 100)])
def test_injection_is_the_asymmetric_process(p64: UNetModel, window: tuple[int, int]) -> None:
    xt, dh = noise(p64, 2), torch.randn(8, 2, 2, dtype=torch.float64)
    y = mk.denoise(p64, xt, 800, 5, h_edit=mk.inject(dh, *window, 0.7))
    torch.testing.assert_close(y, by_hand(p64, xt, lambda h: 0.7 * dh, window))
    symmetric = by_hand(p64, xt, lambda h: 0.7 * dh, window, both=True)
    assert (y - symmetric).abs().max() > 1e-4, "the comparison tells the two processes apart"


def test_one_dh_for_each_item_in_chunks(p64: UNetModel) -> None:
    xt, dh = noise(p64, 5), torch.randn(5, 8, 2, 2, dtype=torch.float64)
    whole = mk.denoise(p64, xt, 800, 3, h_edit=mk.inject(dh, 999, 0, 0.5))
    p64.batch = 2
    torch.testing.assert_close(
        mk.denoise(p64, xt, 800, 3, h_edit=mk.inject(dh, 999, 0, 0.5)), whole
    )
    alone = mk.denoise(p64, xt[3:4], 800, 3, h_edit=mk.inject(dh[3], 999, 0, 0.5))
    torch.testing.assert_close(whole[3:4], alone)


def test_scaling_a_channel_is_an_injection(p64: UNetModel) -> None:
    xt, channel = noise(p64, 2), torch.zeros(8, 1, 1, dtype=torch.float64)
    channel[3] = 1.0
    y = mk.denoise(p64, xt, 800, 5, h_edit=mk.inject(lambda h: -h * channel, 999, 0, 1.0))
    torch.testing.assert_close(y, by_hand(p64, xt, lambda h: -h * channel, (999, 0)))


def test_injection_and_boosting_together(p64: UNetModel) -> None:
    xt, h = noise(p64, 2), mk.inject(torch.ones(8, 2, 2), 999, 0, 0.1)
    y = mk.denoise(p64, xt, 800, 5, boost_below=300, h_edit=h, seed=1)
    assert y.isfinite().all() and not torch.equal(y, mk.denoise(p64, xt, 800, 5, h_edit=h))


def test_bad_injections_are_refused(p: UNetModel) -> None:
    dh, xt = torch.ones(8, 2, 2), noise(p, 2)
    for call, message in (
        (lambda: mk.inject(dh, 100, 200, 1.0), "time runs down"),
        (lambda: mk.inject(dh * torch.nan, 200, 100, 1.0), "NaN"),
        (lambda: mk.inject(dh, 200, 100, float("inf")), "finite"),
        (lambda: mk.inject([1.0], 200, 100, 1.0), "or a function of h, got list"),
        (lambda: mk.denoise(p, xt, 800, 5, h_edit=mk.inject(dh, 100, 90, 1)), "no step lies where"),
        (lambda: mk.denoise(p, xt, 800, 5, h_edit=mk.inject(dh[:4], 999, 0, 1)),
         r"dh is \(8, 2, 2\)"),
        (lambda: mk.denoise(p, xt, 800, 5, h_edit=mk.inject(dh.expand(3, 8, 2, 2), 999, 0, 1)),
         "one such for each item"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match="no bottleneck"):
        g = gaussian()
        mk.denoise(g, noise(g), 800, 5, h_edit=mk.inject(dh, 999, 0, 1.0))


def test_the_step_with_an_edited_eps_keeps_the_direction() -> None:
    x, eps, edited = torch.randn(3, 1, *SHAPE)
    y = ddim_step(x, eps, 0.3, 0.8, edited=edited)
    torch.testing.assert_close(
        y - ddim_step(x, eps, 0.3, 0.8), (0.8 * 0.7 / 0.3) ** 0.5 * (eps - edited)
    )


# --- shooting and normalisation ------------------------------------------------------------------


def bend(x: Tensor) -> Tensor:
    """A curved map of R^5, invertible near the origin."""
    M = torch.linspace(-1, 1, 25, dtype=x.dtype).view(5, 5).sin() + 1.5 * torch.eye(5).to(x)
    return (x + 0.4 * torch.sin(x @ M)) @ M.T


@pytest.fixture
def point() -> Tensor:
    return torch.tensor([[0.7, -0.4, 0.2, 1.1, -0.6]], dtype=torch.float64)


def test_shooting_through_a_linear_map_is_a_straight_line(point: Tensor) -> None:
    M = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    v = mk.svd(mk.matrix(M), 3).V[1]
    y = geodesic(lambda x: x @ M.T, point, v, -0.6, 4, k=3)
    steps = torch.linspace(0, -0.6, 5, dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(y, point + steps * point.norm() * v, rtol=1e-4, atol=1e-4)


def test_the_pinv_lift_draws_a_straight_line_in_h(point: Tensor) -> None:
    """The geodesic of a flat pulled-back metric: Euler's error falls with the step, the published
    isometry's does not."""
    v = mk.svd(mk.jacobian(bend, point), 5).V[0]

    def off(lift: str, steps: int) -> float:
        y = geodesic(bend, point, v, 0.5, steps, k=5, lift=lift)
        h = bend(y.flatten(1)) - bend(point)
        u = torch.nn.functional.normalize(mk.jacobian(bend, point).push(v[None]), dim=1)
        return float((h[-1] - (h[-1] @ u[0]) * u[0]).norm() / h[-1].norm())

    coarse, fine = off("pinv", 10), off("pinv", 40)
    assert fine < 0.35 * coarse and fine < 0.02
    assert off("isometry", 40) > 5 * fine


def test_shots_have_the_length_they_state_item_by_item(p: UNetModel) -> None:
    x = noise(p, 2)
    v = torch.randn_like(x)
    y = mk.shoot(p, x, T, v, 0.2, 2, k=3)
    reached = (y - x).flatten(2).norm(dim=2) / x.flatten(1).norm(dim=1)
    torch.testing.assert_close(reached, torch.tensor([[0.0], [0.1], [0.2]]).expand(3, 2))
    alone = mk.shoot(p, x[1:], T, v[1], 0.2, 2, k=3)
    torch.testing.assert_close(alone[:, 0], y[:, 1], rtol=1e-3, atol=1e-3)
    whole = (x.flatten(1).norm(dim=1) / v.flatten(1).norm(dim=1))[:, None, None, None]
    torch.testing.assert_close(y[1], x + 0.1 * whole * v)


def isotropic() -> GaussianModel:
    return GaussianModel(torch.zeros(SHAPE).double(), torch.eye(6).double())


@pytest.mark.parametrize("t", [100, 600])
def test_normalising_restores_the_statistics_where_kappa_is_true(t: int) -> None:
    """Variance 1 in all directions: eps = sqrt(1 - abar) x, so kappa = sqrt(1 - abar), exactly."""
    p = isotropic()
    x, sigma = noise(p, 2), (1 - float(p.alphas_cumprod[t])) ** 0.5
    y = mk.move(p, x, t, torch.randn(2, *p.shape).double(), 0.4, 3) * 1.3 + 0.1
    z = mk.normalise(p, y, t, like=x, kappa=sigma)
    assert z.shape == y.shape
    for now, edited in zip(z, y, strict=True):
        E, like, before = p.clean(now, t), p.clean(x, t), p.clean(edited, t)
        for stat in (torch.mean, torch.std):
            torch.testing.assert_close(stat(E, (1, 2, 3)), stat(like, (1, 2, 3)))
        shape = torch.nn.functional.cosine_similarity(
            (E - E.mean((1, 2, 3), True)).flatten(1),
            (before - before.mean((1, 2, 3), True)).flatten(1),
        )
        torch.testing.assert_close(shape, torch.ones(2).double())


def test_the_published_kappa_inflates_the_step() -> None:
    p = isotropic()
    x, t = noise(p), 700
    y = mk.move(p, x, t, torch.randn(p.shape).double(), 0.2, 1)[1]
    true = (1 - float(p.alphas_cumprod[t])) ** 0.5
    small, large = (mk.normalise(p, y, t, x, kappa=k) - x for k in (true * 0.5, true))
    factor = (1 - true**2 / 2) / (1 - true**2)
    torch.testing.assert_close(large, factor * small)


def test_what_is_not_edited_stays(p: UNetModel) -> None:
    x = noise(p, 2)
    for channels in (False, True):
        same = mk.normalise(p, x[None], T, like=x, channels=channels)
        torch.testing.assert_close(same[0], x, rtol=1e-4, atol=1e-4)


def test_statistics_of_channels_are_each_restored(p64: UNetModel) -> None:
    x = noise(p64)
    y = x + torch.tensor([0.1, -0.2, 0.3]).double()[:, None, None]
    with torch.no_grad():
        whole, each = (mk.normalise(p64, y, T, x, kappa=0.0, channels=c) for c in (False, True))
    assert not torch.allclose(whole, each, atol=1e-6)


def test_a_flat_posterior_mean_has_no_statistics_to_restore() -> None:
    p = isotropic()
    x, flat = noise(p, 2), torch.ones(2, *SHAPE).double()
    flat[1] = x[1]
    with pytest.raises(ValueError, match="posterior mean of y is flat"):
        mk.normalise(p, flat, T, x)


def test_a_network_in_half_precision_answers_in_the_type_of_x_t(tiny_unet: Any) -> None:
    p = UNetModel(tiny_unet.bfloat16(), linear_schedule())
    x = torch.randn(1, *p.shape)
    for f in (mk.encoder(p, T), mk.encoder(p, T, pool="sum"), mk.posterior_mean(p, T)):
        h = f(x)
        assert h.dtype == torch.float32 and h.is_contiguous() and f(x.bfloat16()).dtype == p.dtype


def test_three_ways_join_points_at_any_angle_but_none_and_a_half_turn() -> None:
    a, b = torch.linalg.qr(torch.randn(5, 2, dtype=torch.float64)).Q.T.view(2, 1, 5)
    M = torch.randn(7, 5, dtype=torch.float64)
    for angle in (0.01, 1.0, 3.13):
        to = torch.tensor(angle, dtype=torch.float64)
        y = 2 * (to.cos() * a + to.sin() * b)
        paths, _ = paths_between(lambda x: x @ M.T, a, y, 4, 5)
        ends = {name: way[-1] for name, way in paths.items()}
        torch.testing.assert_close(ends["lerp"], y[0])
        torch.testing.assert_close(ends["slerp"], y[0])
        sizes = paths["slerp"].norm(dim=1)
        torch.testing.assert_close(sizes, torch.linspace(1, 2, 5, dtype=torch.float64))
    for none in (a, -a, a + 1e-6 * b):
        with pytest.raises(ValueError, match="no great circle"):
            paths_between(lambda x: x @ M.T, a, none, 4, 5)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda p, x: mk.shoot(p, x, T, x[0], 0.1, 2, 3, lift="up"), "'up'"),
        (lambda p, x: mk.shoot(p, x, T, x[0, :1], 0.1, 2, 3), "v is"),
        (lambda p, x: mk.shoot(p, x, T, 0 * x[0], 0.1, 2, 3), "has a length"),
        (lambda p, x: mk.normalise(p, x[:, :1], T, x), r"y is \(\.\.\., 2, 3, 16, 16\)"),
        (lambda p, x: mk.normalise(p, x, T, x, kappa=1.5), r"\[0, 1\]"),
    ],
)
def test_bad_shots_and_statistics_are_named(p: UNetModel, call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(p, noise(p, 2))


@pytest.mark.parametrize("count", [1, 2])
def test_injections_for_another_number_of_items_are_refused_whatever_the_batch(
    p: UNetModel, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dh = mk.inject(torch.ones(count, 8, 2, 2), 999, 0, 1.0)
    for batch in (1, 2, 64):
        monkeypatch.setattr(p, "batch", batch)
        with pytest.raises(ValueError, match=f"it has {count}, x_t 4"):
            mk.denoise(p, noise(p, 4), 800, 5, h_edit=dh)


def test_a_long_state_in_half_precision_moves_as_in_full() -> None:
    """|x_t|^2 is more than float16 can hold."""
    g = torch.Generator().manual_seed(0)
    x, v = (torch.randn(1, 3, 192, 192, generator=g) for _ in range(2))
    full = great_circle(x, v, 0.3, 2)
    half = great_circle(x.half(), v.half(), 0.3, 2)
    assert half.dtype == torch.float16 and torch.allclose(half.float(), full, atol=2e-2)


def test_an_unknown_lift_is_refused_before_any_step(p: UNetModel) -> None:
    with pytest.raises(ValueError, match="lift is isometry or pinv"):
        mk.shoot(p, noise(p), 500, torch.randn(3, 16, 16), 0.1, 1, 2, lift="sideways")
