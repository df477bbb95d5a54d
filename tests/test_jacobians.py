"""Jacobians against finite differences, forward mode, closed forms and the adjoint identity."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mathkit as mk
from mathkit import jacobians

f64 = pytest.mark.usefixtures("float64")


def rows(k, shape, dtype=None):
    return torch.randn(k, *shape, dtype=dtype)


def central(f, x, v, h=1e-5):
    return (f(x + h * v) - f(x - h * v)) / (2 * h)


# --- the Jacobian -----------------------------------------------------------------------------


def conv(**settings):
    return nn.Conv2d(4, 4, 3, **settings)


def same_padding(x):
    return F.conv2d(x, torch.ones(4, 4, 3, 3), padding="same").sin()


def weights_from_x(x):
    return F.conv2d(x.sin(), x.reshape(1, 4, 8, 8)[:, :, :3, :3])


def attention(x):
    return F.scaled_dot_product_attention(x, x.sin(), x)


def inner_forward_mode(layer):
    return lambda x: torch.func.jvp(lambda y: layer(y).sin(), (x,), (torch.ones_like(x),))[1]


def inner_reverse_mode(layer):
    return lambda x: torch.func.grad(lambda y: layer(y).sin().sum())(x)


def inner_vmap(layer):
    return lambda x: torch.func.vmap(lambda y: layer(y[None])[0].sin())(x)


def in_place(x):
    return x.mul_(2).sin()


CASES = {
    "conv": lambda: nn.Sequential(conv(padding=1), nn.SiLU()),
    "strided": lambda: nn.Sequential(conv(stride=2, padding=1), nn.SiLU()),
    "strided, odd rest": lambda: nn.Sequential(conv(stride=3), nn.Tanh()),
    "dilated and grouped": lambda: nn.Sequential(conv(dilation=2, groups=2), nn.Tanh()),
    "reflected": lambda: nn.Sequential(conv(padding=1, padding_mode="reflect"), nn.Tanh()),
    "no bias": lambda: nn.Sequential(conv(bias=False), nn.Tanh()),
    "same padding": lambda: same_padding,
    "weights from x": lambda: weights_from_x,
    "transposed conv": lambda: nn.Sequential(nn.ConvTranspose2d(4, 2, 4, 2, 1), nn.Tanh()),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "group norm, strided": lambda: lambda x: nn.GroupNorm(2, 4)(x.transpose(2, 3)),
    "layer norm": lambda: nn.LayerNorm(8),
    "batch norm": lambda: nn.Sequential(nn.BatchNorm2d(4).eval(), nn.Tanh()),
    "softmax": lambda: nn.Softmax(-1),
    "attention": lambda: attention,
    "max pool": lambda: nn.MaxPool2d(2),
    "interpolation": lambda: lambda x: F.interpolate(x, scale_factor=2, mode="bilinear").sin(),
    "fft": lambda: lambda x: torch.fft.rfft2(x).abs(),
    "linear": lambda: nn.Linear(8, 5),
    "pooled": lambda: lambda x: x.exp().sum((2, 3)),
    "one number": lambda: lambda x: x.square().sum((1, 2, 3)),
    "partly constant": lambda: lambda x: torch.cat([x.sin(), torch.ones_like(x)], 1),
    "in place": lambda: in_place,
    "inner forward mode": lambda: inner_forward_mode(conv()),
    "inner reverse mode": lambda: inner_reverse_mode(conv()),
    "inner vmap": lambda: inner_vmap(conv()),
}


@f64
@pytest.mark.parametrize("name", CASES)
def test_jacobian_agrees_with_finite_differences_and_reverse_mode(name):
    f, x = CASES[name](), torch.randn(1, 4, 8, 8)
    A = mk.jacobian(f, x)
    V = rows(3, A.in_shape)
    with torch.no_grad():
        expected = torch.cat([central(lambda y: f(y.clone()), x, v[None]) for v in V])
    torch.testing.assert_close(A.push(V), expected, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(A.push(V), torch.cat([A.push(v[None]) for v in V]))
    U = rows(3, A.out_shape)
    back = torch.func.vjp(lambda y: f(y.clone()), x)[1]
    torch.testing.assert_close(A.pull(U), torch.cat([back(u[None])[0] for u in U]))
    torch.testing.assert_close(A.pull(U), torch.cat([A.pull(u[None]) for u in U]))


@f64
def test_jacobian_is_the_dense_one():
    net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3))
    x = torch.randn(1, 5)
    torch.testing.assert_close(mk.jacobian(net, x).dense(), torch.func.jacrev(net)(x)[0, :, 0])


@f64
def test_jacobian_of_a_linear_map_is_that_map():
    M = torch.randn(4, 6)
    torch.testing.assert_close(mk.jacobian(lambda x: x @ M.T, torch.randn(1, 6)).dense(), M)


@f64
def test_chain_rule():
    f, g = nn.Sequential(nn.Linear(5, 7), nn.Tanh()), nn.Sequential(nn.Linear(7, 4), nn.Sigmoid())
    x = torch.randn(1, 5)
    J = mk.jacobian(g, f(x)) @ mk.jacobian(f, x)
    torch.testing.assert_close(J.dense(), mk.jacobian(nn.Sequential(f, g), x).dense())


@f64
def test_jacobian_of_the_gaussian_denoiser_is_its_closed_form():
    B = torch.randn(6, 6)
    C, a = B @ B.T, 0.3  # E[x0 | x_t] = sqrt(a) C (a C + (1 - a) I)^-1 x_t for x0 ~ N(0, C)
    closed = math.sqrt(a) * C @ torch.linalg.inv(a * C + (1 - a) * torch.eye(6))

    def posterior_mean(x):
        return math.sqrt(a) * torch.linalg.solve(a * C + (1 - a) * torch.eye(6), x.T).T @ C

    torch.testing.assert_close(mk.jacobian(posterior_mean, torch.randn(1, 6)).dense(), closed)


@pytest.mark.parametrize("chunk", [1, 5, "auto"])
def test_jacobian_of_a_unet_agrees_with_forward_mode_and_differences(
    tiny_unet_double, bottleneck, chunk
):
    f = bottleneck(tiny_unet_double, 500)
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    A = mk.jacobian(f, x, chunk=chunk)
    V = rows(7, A.in_shape, torch.float64)
    with torch.no_grad():
        differences = torch.cat([central(f, x, v[None]) for v in V])
    torch.testing.assert_close(A.push(V), differences, atol=1e-8, rtol=1e-5)
    assert mk.check_adjoint(A) < 1e-14


def test_jacobian_of_a_whole_unet(tiny_unet_double):
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    A = mk.jacobian(lambda y: tiny_unet_double(y, 200).sample, x)
    v = rows(1, A.in_shape, torch.float64)
    with torch.no_grad():
        expected = central(lambda y: tiny_unet_double(y, 200).sample, x, v)
    torch.testing.assert_close(A.push(v), expected, atol=1e-8, rtol=1e-5)


def test_f_runs_once_a_point():
    calls = []

    def f(x):
        calls.append(len(x))
        return x.sin()

    A = mk.jacobian(f, torch.randn(1, 3))
    A.push(torch.randn(5, 3)), A.pull(torch.randn(4, 3)), A.dense(), mk.svd(A, 1)
    assert calls == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_keep_the_dtype_of_the_point(dtype):
    A = mk.jacobian(torch.sin, torch.randn(1, 3, dtype=dtype, requires_grad=True))
    for other in (torch.float32, torch.float64):
        for out in (A.push(rows(2, (3,), other)), A.pull(rows(2, (3,), other))):
            assert out.dtype == dtype and not out.requires_grad and out.device.type == "cpu"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_jacobian_inside_no_grad_and_inference_mode(mode):
    x = torch.randn(1, 3)
    with mode():
        A = mk.jacobian(torch.sin, x.clone())
        torch.testing.assert_close(A.push(torch.ones(1, 3)), x.cos())
        torch.testing.assert_close(A.pull(torch.ones(2, 3)), x.cos().expand(2, 3))


@pytest.mark.parametrize("chunk", [1, 2, 3, 64])
def test_no_more_than_chunk_directions_at_once(chunk, monkeypatch):
    seen, back = [], jacobians._back
    monkeypatch.setattr(jacobians, "_back", lambda y, x, r: seen.append(len(r)) or back(y, x, r))
    A = mk.jacobian(torch.sin, torch.zeros(1, 4), chunk=chunk)
    torch.testing.assert_close(A.push(torch.eye(4).repeat(2, 1)), torch.eye(4).repeat(2, 1))
    assert max(seen) == min(chunk, 8) and sum(seen) == 8


def test_chunks_halve_when_memory_runs_out_and_the_result_is_whole(monkeypatch):
    seen, back = [], jacobians._back

    def small_gpu(y, x, r):
        seen.append(len(r))
        if len(r) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return back(y, x, r)

    monkeypatch.setattr(jacobians, "_back", small_gpu)
    A = mk.jacobian(torch.sin, torch.zeros(1, 4), chunk=16)
    V = torch.randn(9, 4)
    torch.testing.assert_close(A.push(V), V)
    assert seen == [9, 4, 2, 2, 2, 2, 1]
    seen.clear()
    torch.testing.assert_close(A.pull(V[:4]), V[:4])
    assert seen == [2, 2]


def test_out_of_memory_for_one_direction_is_said(monkeypatch):
    def no_memory(*call):
        raise torch.OutOfMemoryError("CUDA out of memory")

    A = mk.jacobian(torch.sin, torch.zeros(1, 4))
    monkeypatch.setattr(jacobians, "_back", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        A.push(torch.randn(3, 4))


@pytest.mark.parametrize("chunk", [0, -1, 1.5, "all", True, None])
def test_chunk_is_auto_or_a_count(chunk):
    with pytest.raises(ValueError, match="chunk"):
        mk.jacobian(torch.sin, torch.zeros(1, 4), chunk=chunk)


@pytest.mark.parametrize("shape", [(3,), (3, 8, 8), (2, 3), ()])
def test_a_point_without_its_batch_axis(shape):
    with pytest.raises(ValueError, match=r"x\[None\]"):
        mk.jacobian(torch.sin, torch.zeros(shape))


def test_points_that_are_no_points():
    with pytest.raises(ValueError, match="NaN"):
        mk.jacobian(torch.sin, torch.tensor([[math.nan]]))
    with pytest.raises(ValueError, match="floating-point"):
        mk.jacobian(torch.sin, torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="floating-point"):
        mk.jacobian(torch.sin, [[1.0]])


def test_functions_that_have_no_jacobian():
    x = torch.ones(1, 3)
    with pytest.raises(ValueError, match="batched"):
        mk.jacobian(lambda x: x.sum(), x)
    with pytest.raises(ValueError, match="batched"):
        mk.jacobian(lambda x: torch.ones(4, 3) @ x[0], x)
    with pytest.raises(ValueError, match="batched.*tuple"):
        mk.jacobian(lambda x: (x, x), x)
    with pytest.raises(ValueError, match="no gradient"):
        mk.jacobian(lambda x: torch.ones(1, 2), x)
    with pytest.raises(ValueError, match="no gradient"):
        mk.jacobian(torch.no_grad()(torch.sin), x)
    with pytest.raises(ValueError, match="NaN or infinity"):
        mk.jacobian(lambda x: (x - 2).log(), x)


def test_a_derivative_that_is_not_finite_is_never_silent():
    A = mk.jacobian(lambda x: (x - 1).sqrt(), torch.ones(1, 3))
    for run in (A.push, A.pull):
        with pytest.raises(ValueError, match="not finite"):
            run(torch.ones(1, 3))
    with pytest.raises(ValueError, match="not finite"):
        mk.jacobian(torch.sin, torch.ones(1, 3)).push(torch.full((1, 3), math.nan))


def test_convolutions_are_whole_in_every_pass_and_the_setting_comes_back():
    seen = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            seen.append(torch.backends.cudnn.allow_tf32)
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return Watched.apply(g)

    before = torch.backends.cudnn.allow_tf32
    try:
        for setting in (True, False):
            torch.backends.cudnn.allow_tf32 = setting
            A = mk.jacobian(Watched.apply, torch.ones(1, 3))
            for run in (A.pull, A.push):
                assert torch.equal(run(torch.ones(1, 3)), torch.full((1, 3), 2.0))
            with pytest.raises(ValueError, match="not finite"):
                A.push(torch.full((1, 3), math.nan))
            assert torch.backends.cudnn.allow_tf32 is setting
        assert len(seen) > 6 and not any(seen)
    finally:
        torch.backends.cudnn.allow_tf32 = before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_jacobian_on_a_gpu(tiny_unet, bottleneck):
    x = torch.randn(1, 3, 16, 16)
    here = mk.jacobian(bottleneck(tiny_unet, 500), x).dense()
    there = mk.jacobian(bottleneck(tiny_unet.cuda(), 500), x.cuda())
    assert there.push(torch.randn(2, 3, 16, 16)).is_cuda
    torch.testing.assert_close(there.dense().cpu(), here, atol=1e-4, rtol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_residual_found_on_a_gpu_is_true_there(tiny_unet, bottleneck):
    """Convolutions rounded to TF32 miss it by far."""
    A = mk.jacobian(bottleneck(tiny_unet.cuda(), 500), torch.randn(1, 3, 16, 16).cuda())
    r = mk.svd(A, 3, tol=2e-5)
    for off in (A.push(r.V) - r.S[:, None, None, None] * r.U,
                A.pull(r.U) - r.S[:, None, None, None] * r.V):  # fmt: skip
        assert float(off.flatten(1).norm(dim=1).max()) <= 3e-5 * float(r.S[0])


@pytest.mark.parametrize("k", [1, 3])
def test_a_map_that_runs_under_autocast_has_a_push_and_a_pull(k):
    conv = torch.nn.Conv2d(2, 3, 3, padding=1)

    def f(x):
        with torch.autocast("cpu", torch.bfloat16):
            return conv(x).float()

    A, V = mk.jacobian(f, torch.randn(1, 2, 5, 5)), torch.randn(k, 2, 5, 5)
    with torch.no_grad():
        plain = torch.nn.functional.conv2d(V, conv.weight, padding=1)
    assert torch.allclose(A.push(V), plain, atol=0.05)
    assert A.pull(plain).shape == V.shape
