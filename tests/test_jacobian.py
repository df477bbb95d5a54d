"""Jacobians against finite differences, forward mode, closed forms and the adjoint identity."""

import inspect
import math
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mathkit as mk
from mathkit.linear import jacobian, smooth
from mathkit.linear._tape import convolution, tape
from mathkit.linear._tape.tape import Tape

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
@pytest.mark.parametrize("weight, bias", [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("shape", [(5,), (4, 5)])
def test_a_layer_norm_in_plain_operations_is_torch_s(weight, bias, shape):
    x = torch.randn(2, 3, 4, 5)
    extra = (torch.randn(shape) if weight else None, torch.randn(shape) if bias else None)
    ours = smooth._layer_norm(x, shape, *extra, eps=0.1)
    torch.testing.assert_close(ours, F.layer_norm(x, shape, *extra, eps=0.1))


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


@pytest.fixture(params=["tape", "graph"])
def sizes(request, monkeypatch):
    """How many directions each pass takes, by either way; `sizes.limit` is the memory there is."""

    class Sizes(list):
        limit = math.inf

    seen = Sizes()

    def watch(owner, name):
        run = getattr(owner, name)

        def watched(*args):
            seen.append(len(args[-1]))
            if len(args[-1]) > seen.limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return run(*args)

        monkeypatch.setattr(owner, name, watched)

    if request.param == "graph":
        monkeypatch.setattr(jacobian, "read", lambda *call: None)
        watch(jacobian, "_back")
    else:
        mk.jacobian(torch.sin, torch.zeros(1, 4))  # compared with autograd before we count
        watch(Tape, "push"), watch(Tape, "pull")
    return seen


@pytest.mark.parametrize("chunk", [1, 2, 3, 64, np.int64(2)])
def test_no_more_than_chunk_directions_at_once(chunk, sizes):
    A = mk.jacobian(torch.sin, torch.zeros(1, 4), chunk=chunk)
    torch.testing.assert_close(A.push(torch.eye(4).repeat(2, 1)), torch.eye(4).repeat(2, 1))
    assert max(sizes) == min(chunk, 8) and sum(sizes) == 8


def test_chunks_halve_when_memory_runs_out_and_the_result_is_whole(sizes):
    A = mk.jacobian(torch.sin, torch.zeros(1, 4), chunk=16)
    V, sizes.limit = torch.randn(9, 4), 3
    torch.testing.assert_close(A.push(V), V)
    assert sizes == [9, 4, 2, 2, 2, 2, 1]
    sizes.clear()
    torch.testing.assert_close(A.pull(V[:4]), V[:4])
    assert sizes == [2, 2]


def test_out_of_memory_for_one_direction_is_said(sizes):
    A, sizes.limit = mk.jacobian(torch.sin, torch.zeros(1, 4)), 0
    with pytest.raises(torch.OutOfMemoryError):
        A.push(torch.randn(3, 4))


def test_a_norm_of_channels_that_lie_together_goes_in_one_batch(sizes):
    """Torch cannot batch its pull in that layout, and a chunk that fails is halved down to one."""
    norm, V, x = nn.GroupNorm(2, 4), rows(5, (4, 3, 3)), torch.randn(1, 4, 3, 3)
    A = mk.jacobian(lambda x: norm(x.contiguous(memory_format=torch.channels_last)), x)
    sizes.clear()
    pushed, pulled = A.push(V), A.pull(V)
    assert sizes == [5, 5]
    one_by_one = torch.func.jacrev(norm)(x)[0, :, :, :, 0].flatten(3).flatten(0, 2)
    torch.testing.assert_close(pushed.flatten(1), V.flatten(1) @ one_by_one.T)
    torch.testing.assert_close(pulled.flatten(1), V.flatten(1) @ one_by_one)


def test_a_solver_is_told_the_same_whatever_the_chunk():
    """So that an answer does not depend on how much memory there was."""
    f, x = torch.sin, torch.zeros(1, 4)
    whole = mk.jacobian(f, x).batch
    assert whole > 3 and all(mk.jacobian(f, x, chunk).batch == whole for chunk in (1, 3, 10**9))


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
    with pytest.raises(ValueError, match="floating-point.*got torch.int64"):
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


def test_derivatives_whose_sum_overflows_are_finite_all_the_same():
    A = mk.jacobian(lambda x: 3e38 * x, torch.zeros(1, 4))
    for run in (A.push, A.pull):
        assert torch.equal(run(torch.eye(4)), 3e38 * torch.eye(4))


def test_an_output_object_and_a_batch_norm_that_learns(tiny_unet_double):
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"UNet2DOutput: add \.sample"):
        mk.jacobian(lambda y: tiny_unet_double(y, 200), x)
    norm = nn.BatchNorm2d(3).double().train()
    plain = (None,) * 4
    for f in (
        norm,
        lambda y: F.batch_norm(y, None, None, training=True),
        lambda y: torch.batch_norm(y, *plain, True, 0.1, 1e-5, False),
    ):
        with pytest.raises(ValueError, match="batch norm.*training"):
            mk.jacobian(f, x)
    assert norm.num_batches_tracked <= 1 and torch.equal(
        norm.running_mean, torch.zeros_like(x[0, :, 0, 0])
    )


# --- ways of running f ------------------------------------------------------------------------


@pytest.fixture(params=["tape", "graph"])
def way(request, monkeypatch):
    if request.param == "graph":
        monkeypatch.setattr(jacobian, "read", lambda *call: None)
    return request.param


GRAPH = {"weights from x", "max pool", "fft"}


@f64
@pytest.mark.parametrize("name", CASES)
def test_which_cases_have_a_tape(name):
    passes = jacobian.record(CASES[name](), torch.randn(1, 4, 8, 8))
    assert isinstance(passes, jacobian.Graph if name in GRAPH else Tape)


@f64
@pytest.mark.parametrize("name", CASES)
def test_every_case_without_its_tape(name, monkeypatch):
    f, x = CASES[name](), torch.randn(1, 4, 8, 8)
    A = mk.jacobian(f, x)
    monkeypatch.setattr(jacobian, "read", lambda *call: None)
    B = mk.jacobian(f, x)
    V, U = rows(3, A.in_shape), rows(3, A.out_shape)
    torch.testing.assert_close(A.push(V), B.push(V), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(A.pull(U), B.pull(U), rtol=1e-11, atol=1e-12)
    assert mk.check_adjoint(B) < 1e-13


def test_a_checkpointed_unet(tiny_unet_double, way):
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    f, V = (lambda y: tiny_unet_double(y, 200).sample), rows(2, (3, 16, 16), torch.float64)
    plain = mk.jacobian(f, x)
    expected = plain.push(V), plain.pull(V)
    tape._trusted.clear()
    tiny_unet_double.enable_gradient_checkpointing()
    assert isinstance(jacobian.record(f, x), Tape) is (way == "tape")
    A = mk.jacobian(f, x)
    torch.testing.assert_close(A.push(V), expected[0], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(A.pull(V), expected[1], rtol=1e-11, atol=1e-12)


def test_passes_are_not_rounded_by_autocast(tiny_unet, way):
    x, V = torch.randn(1, 3, 16, 16), torch.randn(2, 3, 16, 16)
    f = lambda y: tiny_unet(y, 200).sample  # noqa: E731
    A = mk.jacobian(f, x)
    expected = A.push(V), A.pull(V)
    B = mk.jacobian(f, x)
    with torch.autocast("cpu", torch.bfloat16):
        for run, answer in zip((B.push, B.pull), expected, strict=True):
            torch.testing.assert_close(run(V), answer, rtol=1e-4, atol=1e-5)
        C = mk.jacobian(f, x)
        for run, answer in zip((C.push, C.pull), expected, strict=True):
            found = run(V)
            assert found.dtype == torch.float32 and (found - answer).norm() < 0.1 * answer.norm()


def test_what_runs_in_full_inside_autocast_keeps_its_tape_there():
    M = torch.randn(7, 5)

    def f(x):
        with torch.autocast("cpu", enabled=False):
            return (x @ M).sin()

    x = torch.randn(1, 7)
    tape._trusted.clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert isinstance(jacobian.record(f, x), Tape)
        J = mk.jacobian(f, x).dense()
    torch.testing.assert_close(J, (x @ M).cos().T * M.T)


def test_jacobian_of_a_unet_inside_inference_mode(tiny_unet_double, bottleneck, way):
    f = bottleneck(tiny_unet_double, 500)
    x, V = (torch.randn(n, 3, 16, 16, dtype=torch.float64) for n in (1, 2))
    expected = mk.jacobian(f, x).push(V)
    with torch.inference_mode():
        A = mk.jacobian(f, x.clone())
        torch.testing.assert_close(A.push(V.clone()), expected)
        assert mk.check_adjoint(A) < 1e-13


@pytest.mark.filterwarnings("ignore")
def test_jacobian_of_a_compiled_function(way):
    def f(x):
        return (F.silu(x) @ torch.ones(3, 2)).tanh()

    x = torch.randn(1, 3)
    A = mk.jacobian(torch.compile(f, backend="eager"), x)
    torch.testing.assert_close(A.dense(), torch.func.jacrev(f)(x)[0, :, 0])


SETTINGS = """
import torch, mathkit as mk
x, conv = torch.randn(1, 2, 5, 5), torch.nn.Conv2d(2, 3, 3)
moving = lambda x: torch.nn.functional.max_pool2d(conv(x), 2)
for owner in (torch.backends.cudnn.conv, torch.backends):
    owner.fp32_precision = "ieee"
    for f in (conv, moving):
        mk.check_adjoint(mk.jacobian(f, x))
    assert owner.fp32_precision == "ieee"
"""


@pytest.mark.long
def test_jacobian_beside_the_new_settings_of_precision():
    done = subprocess.run([sys.executable, "-c", SETTINGS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture
def cudnn(monkeypatch):
    """cuDNN's convolutions played on the CPU: what each was told about TF32."""
    told = []

    def conv(x, w, pad, stride, dilation, groups, benchmark, deterministic, allow_tf32):
        told.append(allow_tf32)
        return F.conv2d(x, w, None, stride, pad, dilation, groups)

    def transpose(x, w, pad, rest, stride, dilation, groups, benchmark, deterministic, allow_tf32):
        told.append(allow_tf32)
        return F.conv_transpose2d(x, w, None, stride, pad, rest, groups, dilation)

    for fake, name in ((conv, "cudnn_convolution"), (transpose, "cudnn_convolution_transpose")):
        real = getattr(torch.ops.aten, name)
        assert len(real.default._schema.arguments) == len(inspect.signature(fake).parameters)
        monkeypatch.setattr(torch.ops.aten, name, fake)
    monkeypatch.setattr(convolution, "by_cudnn", lambda x: True)
    return told


def test_float32_convolutions_on_a_gpu_are_whole_unless_coarse(cudnn, way):
    f, x = nn.Sequential(conv(padding=1), nn.SiLU(), conv(stride=2)), torch.randn(1, 4, 8, 8)
    A = mk.jacobian(f, x)
    assert cudnn and not any(cudnn), "f itself, and the tape's comparison with autograd"
    V, U = rows(2, A.in_shape), rows(2, A.out_shape)
    cudnn.clear()
    exact = A.push(V), A.pull(U)
    assert len(cudnn) >= 4 and not any(cudnn)
    cudnn.clear()
    with convolution.coarse():
        found = A.push(V), A.pull(U)
    assert all(cudnn) if way == "tape" else not any(cudnn)
    torch.testing.assert_close(found, exact)
    torch.testing.assert_close(
        exact[0], torch.func.vmap(lambda v: torch.func.jvp(f, (x,), (v[None],))[1][0])(V)
    )


def test_coarse_is_for_one_thread_and_float32(cudnn):
    seen = []
    with convolution.coarse():
        other = threading.Thread(target=lambda: seen.append(convolution._coarse.get()))
        other.start(), other.join()
        assert convolution._coarse.get() and seen == [False]
        f, x = conv().double(), torch.randn(1, 4, 8, 8, dtype=torch.float64)
        mk.jacobian(f, x).push(x)
    assert not cudnn and not convolution._coarse.get()


def test_an_error_inside_coarse_leaves_nothing_rounded():
    for allowed in (True, False):
        with pytest.raises(ZeroDivisionError), convolution.coarse(allowed):
            assert convolution.is_coarse() is allowed
            raise ZeroDivisionError
        assert not convolution.is_coarse()
    with convolution.coarse():
        with convolution.coarse(False):
            assert not convolution.is_coarse()
        assert convolution.is_coarse()


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
