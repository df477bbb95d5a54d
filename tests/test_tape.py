"""The tape: every rule against torch.func in float64, its reader, its checker, what it leaves."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import mathkit as mk
from mathkit.linear import jacobian
from mathkit.linear._tape import convolution, moves, nodes, rules, tape, twice
from mathkit.linear._tape.tape import Tape

pytestmark = pytest.mark.usefixtures("float64")
IMAGE = (2, 4, 6)


def fixed(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def conv(kind=nn.Conv2d, **settings):
    layer = kind(2, 4, 3, **settings)
    return layer.double().requires_grad_(False)


def no_bias_of_its_own(x):
    return torch.addmm(x[0, 0, :, :3], x[0, 0], fixed(6, 3), beta=0.5, alpha=2)[None]


def both(op):
    """op of two moving factors."""
    return lambda x: op(x.sin(), 2 + x.cos())


ALONE = "abs acos asin asinh atan ceil cos cosh erf erfc exp exp2 expm1 floor log log10 log1p log2"
ALONE += " neg reciprocal rsqrt sigmoid sin sinh sqrt tan tanh"
SOFT = "elu gelu hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish relu silu softplus"
PLACES = {name: getattr(torch, name) for name in ALONE.split()}
PLACES |= {name: getattr(F, name) for name in SOFT.split()}
PLACES |= {
    "clamp": lambda x: x.clamp(0.3, 0.6),
    "clamp_max": lambda x: x.clamp_max(0.5),
    "clamp_min": lambda x: x.clamp_min(0.5),
    "masked_fill": lambda x: x.masked_fill(x < 0.5, 3.0),
    "threshold": lambda x: F.threshold(x, 0.5, 0.0),
    "add": lambda x: torch.add(x.sin(), x.cos(), alpha=3),
    "add, broadcast": lambda x: x + x[:, :, :1].sin() + x.sin()[0, 0],
    "add, broadcast to the first axis": lambda x: (x[0] + x[0, 1].sin())[None],
    "mul, broadcast along the first axis": lambda x: (x[0] * x[0, 1:].sin())[None],
    "addcdiv": lambda x: torch.addcdiv(x.sin(), x.cos(), 1 + x, value=2),
    "addcmul": lambda x: torch.addcmul(x.sin(), x.cos(), x, value=2),
    "atan2": both(torch.atan2),
    "div": both(torch.div),
    "lerp": lambda x: torch.lerp(x.sin(), x.cos(), 0.3),
    "lerp, weights move": lambda x: torch.lerp(x.sin(), x.cos(), x),
    "maximum": both(lambda a, b: torch.maximum(2 * a, b)),
    "minimum": both(lambda a, b: torch.minimum(2 * a, b)),
    "mul": both(torch.mul),
    "mul, the same twice": lambda x: x * x,
    "mul, broadcast": lambda x: x.sin() * x.mean((-2, -1), keepdim=True),
    "pow": lambda x: x**3,
    "pow, both": both(torch.pow),
    "rsub": lambda x: 2 - x.sin(),
    "sub": lambda x: torch.sub(x.sin(), x.cos(), alpha=3),
    "where": lambda x: torch.where(x < 0.5, x.sin(), x.cos()),
    "two diagonals": lambda x: 3 * (x.sin() / 2).tanh(),
    "batch norm": nn.BatchNorm2d(2).double().eval().requires_grad_(False),
}
MOVES = {
    "reshape": lambda x: x.sin().reshape(1, 6, 8),
    "view of a transpose": lambda x: x.transpose(1, 2).reshape(1, 8, 6),
    "unsqueeze": lambda x: x.unsqueeze(-1),
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "squeeze all": lambda x: x[:, :1, :1].squeeze()[None],
    "expand": lambda x: x[:, :, :1].expand(1, 2, 4, 6),
    "clone": lambda x: x.clone(memory_format=torch.channels_last).sin(),
    "transpose": lambda x: x.transpose(-1, -3).sin(),
    "t": lambda x: x[0, 0].t()[None],
    "permute": lambda x: x.permute(0, -1, 1, 2),
    "permute twice": lambda x: x.permute(0, 2, 3, 1).permute(0, 2, 1, 3).sin(),
    "select": lambda x: x[..., -2, :],
    "slice": lambda x: x[:, :, 1:-1, ::2],
    "split": lambda x: x.split(4, -1)[1] * x.split(4, -1)[0][..., :2],
    "split, sizes": lambda x: x.split([1, 3, 2], -1)[1],
    "unbind": lambda x: x.unbind(-1)[3] * x.unbind(-1)[1],
    "cat": lambda x: torch.cat([x.sin(), fixed(1, 3, 4, 6), x], 1),
    "stack": lambda x: torch.stack([x.sin(), fixed(1, 2, 4, 6), x], -2),
    "stack, counted from the front": lambda x: torch.stack([x.sin(), x], 1),
    "pad": lambda x: F.pad(x, (0, 1, 2, 0)),
    "crop": lambda x: F.pad(x, (-1, 1, 0, -1)),
    "reflect": lambda x: F.pad(x, (1, 2, 1, 0), mode="reflect"),
    "replicate": lambda x: F.pad(x, (1, 2, 1, 0), mode="replicate"),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, size=(5, 9), mode="bilinear"),
    "bilinear, aligned": lambda x: F.interpolate(x, (5, 9), mode="bilinear", align_corners=True),
    "average": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "sum": lambda x: x.sin().sum()[None],
    "sum, axes": lambda x: x.sum((-1, 1)),
    "mean": lambda x: x.sin().mean()[None],
    "mean, axes": lambda x: x.mean((1, -1), keepdim=True),
}
LAYERS = {
    "mm": lambda x: x.reshape(1, 48) @ fixed(48, 5),
    "mm, left": lambda x: (fixed(3, 4) @ x[0, 0])[None],
    "mm, both": lambda x: (x[0, 0].T @ x[0, 1].sin())[None],
    "bmm": lambda x: (x[0] @ fixed(2, 6, 3))[None],
    "bmm, left": lambda x: (fixed(2, 3, 4) @ x[0])[None],
    "bmm, both": lambda x: (x[0] @ x[0].mT.sin())[None],
    "linear": nn.Linear(6, 3).double().requires_grad_(False),
    "addmm, all": no_bias_of_its_own,
    "baddbmm": lambda x: torch.baddbmm(fixed(2, 4, 4), x[0], x[0].mT.exp(), alpha=0.5)[None],
    "softmax": lambda x: x.softmax(1),
    "log softmax": lambda x: x.log_softmax(-1),
    "attention": lambda x: F.scaled_dot_product_attention(x, x.sin(), x),
    "attention, masked": lambda x: F.scaled_dot_product_attention(x, x, x.sin(), is_causal=True),
    "group norm": lambda x: F.group_norm(x, 2, fixed(2), fixed(2)),
    "group norm, 3": lambda x: F.group_norm(x.reshape(1, 6, 8), 2),
    "layer norm": lambda x: F.layer_norm(x, (4, 6), fixed(4, 6)),
    "layer norm, plain": lambda x: F.layer_norm(x, (6,)),
    "conv": conv(padding=1),
    "conv, odd rest": conv(stride=2, dilation=1),
    "conv, wide margin": conv(padding=3),
    "conv, dilated": conv(padding=2, dilation=2, groups=2),
    "conv, own weights": lambda x: F.conv2d(x, fixed(3, 2, 3, 3), fixed(3)),
    "conv, one axis": lambda x: F.conv1d(x.reshape(1, 8, 6), fixed(3, 8, 2)),
    "conv, transposed": conv(nn.ConvTranspose2d, stride=2, output_padding=1),
}
CASES = PLACES | MOVES | LAYERS


def point(shape=IMAGE, low=0.1, high=0.9):
    """Away from the ends of every function above."""
    return low + (high - low) * torch.rand(1, *shape)


def taped(f, x):
    found = jacobian.record(f, x)
    assert isinstance(found, Tape)
    return found


def read_without_comparing(f, x):
    """A tape as its rules make it, right or wrong, with the graph it came from."""
    x = x.clone().requires_grad_()
    with twice.Twice():
        h = f(x.clone())
    with torch.no_grad():
        made = tape._Reader(h, x, {twice.ConstantConv: twice.ConstantConv.rules}).tape()
    return made, h, x


def assert_dense(f, x):
    made = taped(f, x)
    with sdpa_kernel(SDPBackend.MATH):
        J = torch.func.jacrev(f)(x).detach()
    m, n = J.numel() // x.numel(), x.numel()
    J = J.reshape(m, n)
    pushed = made.push(torch.eye(n).reshape(n, *x.shape)).reshape(n, m).T
    pulled = made.pull(torch.eye(m).reshape(m, *made.out_shape)).reshape(m, n)
    scale = J.abs().max().clamp_min(1)
    torch.testing.assert_close(pushed, J, rtol=0, atol=1e-12 * float(scale))
    torch.testing.assert_close(pulled, J, rtol=0, atol=1e-12 * float(scale))
    V = torch.randn(3, *x.shape)
    torch.testing.assert_close(made.push(V), torch.cat([made.push(v[None]) for v in V]))


@pytest.mark.parametrize("name", CASES)
def test_every_rule_is_the_dense_jacobian(name):
    assert_dense(CASES[name], point())


def batched(f):
    """Whether f's items are independent, as far as three points tell."""
    x = torch.cat([point() for _ in range(3)])
    try:
        apart = torch.cat([f(one[None]) for one in x])
        return apart.shape == f(x).shape and torch.allclose(apart, f(x), atol=1e-6)
    except (RuntimeError, ValueError, IndexError):
        return False


def test_a_tape_of_several_points_is_the_dense_jacobian_at_all_of_them():
    found = [name for name, f in CASES.items() if batched(f)]
    assert len(found) > 0.6 * len(CASES)
    for name in found:
        assert_dense(CASES[name], torch.cat([point() for _ in range(3)]))


def test_every_name_of_the_table_is_tested():
    seen = set()
    for f in CASES.values():
        x = point().requires_grad_()
        with twice.Twice():
            h = f(x.clone())
        seen |= {node.name() for node in tape._from_x(h.grad_fn, x)}
    stems = {name.split("Backward")[0] for name in seen}
    table = {*nodes.ONE, *nodes.SEVERAL} - {
        "ReshapeAlias",
        "Alias",
        "Copy",
        "ToCopy",
        "SafeSoftmax",
    }
    assert table <= stems and set(nodes.NUMBERED) <= seen, table - stems


def channels_last_net():
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 4, 3)]
    return nn.Sequential(*layers).requires_grad_(False).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("large", [1, 10**6])
def test_a_network_whose_channels_lie_together(large, monkeypatch):
    monkeypatch.setattr(rules, "LARGE", large)
    net = channels_last_net()
    made = taped(net, torch.randn(1, 3, 6, 6))
    assert made.layout == torch.channels_last
    assert_dense(net, torch.randn(1, 3, 6, 6))


@pytest.mark.parametrize("settings", [{}, {"padding": 1}, {"padding": 2, "dilation": 2}])
def test_a_transpose_by_weights_turned_by_half(settings, monkeypatch):
    x, layer = point(), conv(**settings)
    (step,) = taped(layer, x).steps
    assert step.rule.turned is not None
    assert_dense(layer, x)
    monkeypatch.setattr(convolution, "SMALL", 0)
    (step,) = taped(layer, x).steps
    assert step.rule.turned is None
    assert_dense(layer, x)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_seed_the_point_is_drawn_with_there_is_a_tape(seed):
    """Along x itself what a norm gives stands still: a tape would be compared with rounding."""
    torch.manual_seed(seed)
    x = torch.randn(1, 4, 3, 3)
    assert isinstance(jacobian.record(nn.GroupNorm(2, 4), x), Tape)


def test_norms_of_several_images_at_once_in_either_layout(monkeypatch):
    for layout in (torch.contiguous_format, torch.channels_last):
        for large in (1, 10**6):
            monkeypatch.setattr(rules, "LARGE", large)
            z = torch.randn(2, 4, 3, 3)
            each = z.reshape(4, -1)
            z = ((each - each.mean(1, keepdim=True)) / each.std(1, keepdim=True)).reshape(z.shape)
            rule = rules.Projection(z, 4)
            rule.lay(layout)
            v = torch.randn(3, 2, 4, 3, 3)
            r, y = v.reshape(3, 4, 18), z.reshape(4, 18)
            expected = r - r.mean(-1, keepdim=True) - y * (r * y).mean(-1, keepdim=True)
            torch.testing.assert_close(rule.push(v), expected.reshape(v.shape))


# --- networks ---------------------------------------------------------------------------------


def assert_agrees_with_torch_func(f, x):
    made, v = taped(f, x), torch.randn(2, *x.shape[1:])
    h, back = torch.func.vjp(f, x)
    u = torch.randn(2, *h.shape[1:])
    pulled = torch.cat([back(row[None])[0] for row in u])
    torch.testing.assert_close(made.pull(u[:, None])[:, 0], pulled, rtol=1e-11, atol=1e-12)
    inner = (made.push(v[:, None]).flatten(1) @ u.flatten(1).T, v.flatten(1) @ pulled.flatten(1).T)
    torch.testing.assert_close(*inner, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("last", [False, True])
def test_the_bottleneck_and_the_whole_of_a_unet(tiny_unet_double, bottleneck, last):
    if last:
        tiny_unet_double.to(memory_format=torch.channels_last)
    x = torch.randn(1, 3, 16, 16)
    assert_agrees_with_torch_func(bottleneck(tiny_unet_double, 500), x)
    assert_agrees_with_torch_func(lambda y: bottleneck(tiny_unet_double, 500)(y).sum((-2, -1)), x)
    assert_agrees_with_torch_func(lambda y: tiny_unet_double(y, 200).sample, x)


def test_the_maps_of_a_model(tiny_unet_double):
    p = mk.diffusion.networks.UNetModel(tiny_unet_double, mk.diffusion.model.linear_schedule())
    x = torch.randn(1, 3, 16, 16)
    for f in (mk.encoder(p, 500), mk.encoder(p, 500, "sum"), mk.posterior_mean(p, 500)):
        assert_agrees_with_torch_func(f, x)


def test_the_puppet_show():
    assert_agrees_with_torch_func(lambda q: mk.show.puppets.render(q, 16), torch.rand(1, 13))


# --- the checker ------------------------------------------------------------------------------

RULES = [
    rules.Pointwise, rules.Projection, rules.Softmax, rules.Product, moves.Reshape, moves.Permute,
    moves.Sum, moves.Take, moves.Cat, moves.Pad, moves.OnImages, convolution.Conv,
]  # fmt: skip


FIRST = conv(padding=1)


def everything(x):
    """Every rule, each on the only way from x to h."""
    x = F.pad(F.interpolate(FIRST(x), scale_factor=2), (0, 1))[..., 1:]
    x = torch.cat([x.sin(), x.softmax(1)], 1)
    x = F.group_norm(x, 2).permute(0, 2, 3, 1).reshape(1, 96, 8)
    return (x @ fixed(8, 8)).sum(-1)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("way", ["push", "pull"])
@pytest.mark.parametrize("scale", [-1.1, 1.01])
def test_a_fault_in_a_rule_is_caught_and_the_answer_stays_right(rule, way, scale, monkeypatch):
    x, run = point(), getattr(rule, way)
    expected = mk.jacobian(everything, x)
    v, u = torch.randn(2, *x.shape[1:]), torch.randn(2, *expected.out_shape)
    pushed, pulled = expected.push(v), expected.pull(u)
    assert any(isinstance(step.rule, rule) for step in taped(everything, x).steps)

    def wrong(self, *args):
        out = run(self, *args)
        return scale * out if isinstance(out, torch.Tensor) else tuple(scale * part for part in out)

    monkeypatch.setattr(rule, way, wrong)
    made, h, leaf = read_without_comparing(everything, x)
    assert not tape.agrees(made, h, leaf)
    tape._trusted.clear()
    A = mk.jacobian(everything, x)
    torch.testing.assert_close((A.push(v), A.pull(u)), (pushed, pulled))


@pytest.mark.parametrize("dtype, fault", [(torch.float32, 1e-2), (torch.float64, 1e-5)])
@pytest.mark.parametrize("way", ["push", "pull"])
def test_a_fault_is_seen_down_to_the_root_of_the_dtype_s_eps(dtype, fault, way, monkeypatch):
    """30 times the limit, for of a push one pair of directions shows a part."""
    run, M = getattr(rules.Product, way), fixed(6, 5).to(dtype)

    def f(x):
        return (x @ M).sin()

    def wrong(self, *args):
        out = run(self, *args)
        return (1 + fault) * out if way == "push" else tuple((1 + fault) * part for part in out)

    made, h, leaf = read_without_comparing(f, point((6,)).to(dtype))
    assert tape.agrees(made, h, leaf)
    monkeypatch.setattr(rules.Product, way, wrong)
    assert not tape.agrees(made, h, leaf)


def test_another_wiring_or_dtype_is_another_kind():
    """The same operations of the same shapes, which read other values."""

    def with_the_first(x):
        a = x.sin()
        return a.sin().sin() * a

    def with_the_second(x):
        b = x.sin().sin()
        return b.sin() * b

    one, two = taped(with_the_first, point()), taped(with_the_second, point())
    names = [[type(step.rule) for step in made.steps] for made in (one, two)]
    assert names[0] == names[1] and one.kind != two.kind
    assert taped(with_the_first, point()).kind == one.kind
    assert taped(with_the_first, point().float()).kind != one.kind


def test_what_the_checker_accepts_and_that_it_looks_once_at_a_kind(monkeypatch):
    made, h, leaf = read_without_comparing(everything, point())
    assert tape.agrees(made, h, leaf, tol=1e-12) and leaf.grad is None
    tape._trusted.clear()
    looks, agrees = [], tape.agrees
    monkeypatch.setattr(tape, "agrees", lambda *call: looks.append(1) or agrees(*call))
    for f in (everything, everything, torch.sin, torch.sin, torch.cos):
        taped(f, point())
    assert len(looks) == 3


# --- where there is no tape -------------------------------------------------------------------


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return Doubled.apply(g)


NO_RULE = {
    "a function of one's own": Doubled.apply,
    "another dtype on the way": lambda x: x.float().sin().double(),
    "moving weights": lambda x: F.conv2d(x, x[:, :, :2, :2]),
    "an operation without a rule": lambda x: x.cumsum(-1),
    "a part written in place": lambda x: x.clone().index_fill_(1, torch.tensor([0]), 2.0).sin(),
    "several constant pieces": lambda x: torch.cat([x, fixed(1, 2, 4, 6), fixed(1, 1, 4, 6)], 1),
}


@pytest.mark.parametrize("name", NO_RULE)
def test_without_a_rule_the_graph_serves(name):
    f, x = NO_RULE[name], point()
    assert isinstance(jacobian.record(f, x), jacobian.Graph)
    A = mk.jacobian(f, x)
    v = torch.randn(2, *x.shape[1:])
    differences = torch.cat([(f(x + 1e-3 * w[None]) - f(x - 1e-3 * w[None])) / 2e-3 for w in v])
    torch.testing.assert_close(A.push(v), differences, rtol=1e-2, atol=1e-2)
    mk.check_adjoint(A, tol=1e-5)


def test_half_precision_has_no_tape():
    x = point().bfloat16()
    assert isinstance(jacobian.record(torch.sin, x), jacobian.Graph)
    assert mk.jacobian(torch.sin, x).push(x).dtype == torch.bfloat16


def test_what_autograd_leaves_out_the_tape_leaves_out():
    def f(x):
        with torch.no_grad():
            c = x.cos()
        return x.sin() * c + x.detach().exp()

    x = point()
    torch.testing.assert_close(taped(f, x).push(torch.ones(1, *x.shape))[0], x.cos() ** 2)


def test_in_place_on_x_and_on_a_view():
    def f(x):
        return x.mul_(3).sin()

    x = point()
    torch.testing.assert_close(taped(f, x).push(torch.ones(1, *x.shape))[0], 3 * (3 * x).cos())

    def g(x):
        y = x.sin()
        y[:, 0] *= 2
        return y

    A = mk.jacobian(g, x)
    factor = torch.tensor([2.0, 1.0])[:, None, None]
    torch.testing.assert_close(A.push(torch.ones_like(x)), factor * x.cos())


@pytest.mark.parametrize("way", ["tape", "graph"])
def test_nothing_stays_behind(tiny_unet_double, way, monkeypatch):
    """No mode, no hook, and with a tape none of f's own values; only a graph keeps those."""
    kept = []

    def f(x):
        y = tiny_unet_double.conv_in(x)
        kept.append(weakref.ref(y))
        return F.conv2d(y.sin(), fixed(2, 4, 3, 3))

    if way == "graph":
        monkeypatch.setattr(jacobian, "read", lambda *call: None)
    x, random = torch.randn(1, 3, 8, 8), torch.get_rng_state()
    hooks = [len(m._forward_hooks) for m in tiny_unet_double.modules()]
    A = mk.jacobian(f, x)
    A.push(x), A.pull(torch.ones(1, *A.out_shape))
    gc.collect()
    assert (kept[0]() is None) is (way == "tape")
    assert hooks == [len(m._forward_hooks) for m in tiny_unet_double.modules()]
    assert torch.overrides._get_current_function_mode_stack() == []
    assert torch.is_grad_enabled() and x.grad is None
    assert torch.equal(random, torch.get_rng_state())
