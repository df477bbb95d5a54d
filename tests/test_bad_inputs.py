"""What people plausibly hand over by mistake, one row each: right, or refused in our own words.

A row: (name, call, wanted). wanted: "refuse": a ValueError (or OSError, ImportError) raised by
our own code, or a warning; "work": a right result, which the call itself asserts; "either": one
of the two.
"""

import contextlib
import io
import math
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import UNTRAINED
from torch import nn

import mathkit as mk
from mathkit import draw, puppets, scores
from mathkit.chapters import eigenfaces
from mathkit.chapters import superposition as sp
from mathkit.diffusion.gaussian import GaussianModel
from mathkit.diffusion.model import linear_schedule
from mathkit.diffusion.networks import UNetModel
from mathkit.diffusion.sampling import noised
from mathkit.linear import metric, subspaces

pytestmark = UNTRAINED

p = mk.load_model("alice")
SH = tuple(p.shape)
x0 = puppets.render(puppets.sample_factors(2, seed=1))
xt = noised(p, x0, 600, 0)
v = torch.randn(SH, generator=torch.Generator().manual_seed(0))
M = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
A = mk.matrix(M)
r = mk.svd(A, 2)


def tiny(dropout=0.0, dtype=torch.float32):
    from diffusers import UNet2DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=16,
            layers_per_block=1,
            block_out_channels=(4, 4, 8, 8),
            dropout=dropout,
            down_block_types=("DownBlock2D",) * 3 + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * 3,
            norm_num_groups=2,
            attention_head_dim=4,
        ).to(dtype)


def pil():
    from PIL import Image

    return Image.fromarray(np.zeros((64, 64, 3), np.uint8))


def same(a, b, tol=1e-4):
    assert torch.allclose(
        torch.as_tensor(a).double(), torch.as_tensor(b).double(), atol=tol, rtol=tol
    ), (a, b)
    return "right"


def finite(x):
    assert bool(torch.as_tensor(x).isfinite().all()), f"not finite: {x}"
    return x


def one_hot_mask():
    return same(
        mk.mask(torch.tensor([0.5, 2.0, 3.0])).push(F.one_hot(torch.arange(3))),
        torch.diag(torch.tensor([0.5, 2, 3])),
    )


def alias():
    W = torch.eye(3)
    B = mk.matrix(W)
    W *= 10
    return same(B.dense(), torch.eye(3))


def alias_mask():
    w = torch.ones(3)
    B = mk.mask(w)
    w *= 0
    return same(B.dense(), torch.eye(3))


def tf32_new_api():
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    conv.fp32_precision = "ieee"
    try:
        return same(mk.jacobian(torch.sin, torch.zeros(1, 2)).dense(), torch.eye(2))
    finally:
        conv.fp32_precision = before


def frozen_by_wrapping():
    net = tiny()
    net.train()
    UNetModel(net, linear_schedule())
    assert net.training and all(w.requires_grad for w in net.parameters()), (
        "the caller's network is now frozen, in eval mode"
    )
    return "untouched"


def train_mode():
    q = UNetModel(tiny(dropout=0.5), linear_schedule())
    q.unet.train()
    x = torch.randn(1, *q.shape)
    return same(q.noise(x, 500), q.noise(x, 500))


def half(dtype):
    q = mk.load_model("alice", dtype=dtype)
    return finite(mk.sample(q, 1, steps=2)).shape


def half_svd(dtype):
    q = UNetModel(tiny(dtype=dtype), linear_schedule())
    return mk.svd(mk.jacobian(mk.encoder(q, 500), torch.randn(1, *q.shape)), 2).S


def double_model():
    q = UNetModel(tiny(dtype=torch.float64), linear_schedule())
    y = mk.sample(q, 1, steps=2)
    assert y.dtype == torch.float64, f"a float64 model samples in {y.dtype}"
    return y.dtype


def compiled():
    q = UNetModel(tiny(), linear_schedule())
    x = torch.randn(1, *q.shape)
    h = mk.encoder(q, 500)(x)
    q.unet = torch.compile(q.unet, backend="eager")
    return same(mk.encoder(q, 500)(x), h)


def parallel():
    q = UNetModel(tiny(), linear_schedule())
    q.unet = nn.DataParallel(q.unet)
    return mk.encoder(q, 500)(torch.randn(1, *q.shape)).shape


def svd_scaled(c):
    W = torch.diag(torch.tensor([3.0, 2.0, 1.0])) * c
    return same(mk.svd(mk.matrix(W), 2, tol=1e-6).S / c, [3.0, 2.0])


def svd_double_pair():
    W = M.double()
    B = mk.LinearMap(lambda V: V @ W.T, lambda U: U @ W, (4,), (6,))
    return mk.svd(B, 2).S


def full_rank(n):
    W = torch.randn(n, n, generator=torch.Generator().manual_seed(2))
    return same(mk.svd(mk.matrix(W), n, tol=1e-4).S, torch.linalg.svdvals(W), 1e-3)


def float32_tol():
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter("always")
        mk.svd(mk.matrix(torch.randn(300, 200)), 3, tol=1e-9)
    return str(w[0].message) if w else "no warning"


def inference_svd():
    with torch.inference_mode():
        q = mk.svd(mk.matrix(M), 2)
    x = torch.randn(1, 4, requires_grad=True)
    (x @ q.V.T).sum().backward()
    return "ok"


def batchnorm_train():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    x = torch.randn(1, 3, 8, 8)
    before = net[1].running_mean.clone()
    mk.jacobian(net, x)
    assert torch.equal(before, net[1].running_mean), (
        "taking a Jacobian moved running_mean: f is in train mode, its items are not independent"
    )
    return "untouched"


def state_left():
    q = UNetModel(tiny(), linear_schedule())
    n0 = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in q.unet.modules())
    mk.encoder(q, 500)
    n1 = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in q.unet.modules())
    return f"hooks left on the caller's network: {n0} by UNetModel, {n1 - n0} more by encoder"


def rows_mean():
    images = puppets.render(puppets.sample_factors(40, seed=3))
    return mk.read_factors((images + 1) / 2)[0, :3].tolist()


def deepcopy_model():
    import copy

    q = copy.deepcopy(UNetModel(tiny(), linear_schedule()))
    x = torch.randn(1, *q.shape)
    return mk.encoder(q, 500)(x).shape


def pickled():
    import pickle

    q = pickle.loads(pickle.dumps(UNetModel(tiny(), linear_schedule())))
    return mk.encoder(q, 500)(torch.randn(1, *q.shape)).shape


g4 = GaussianModel(torch.zeros(4), torch.eye(4))
ROWS = [
    # --- maps
    ("matrix: ragged list", lambda: mk.matrix([[1, 2], [3]]), "refuse"),
    ("matrix: a string", lambda: mk.matrix("W"), "refuse"),
    ("matrix: None", lambda: mk.matrix(None), "refuse"),
    (
        "matrix: numpy with negative strides",
        lambda: same(mk.matrix(np.eye(3)[::-1]).dense(), np.eye(3)[::-1].copy()),
        "work",
    ),
    ("matrix: nn.Linear", lambda: mk.matrix(nn.Linear(3, 2)), "refuse"),
    (
        "matrix: list of tensors",
        lambda: same(
            mk.matrix([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]).dense(),
            [[1, 2], [3, 4]],
        ),
        "work",
    ),
    ("matrix: caller changes M afterwards", alias, "work"),
    ("mask: caller changes w afterwards", alias_mask, "work"),
    ("mask: pushes one-hot integers", one_hot_mask, "work"),
    (
        "mask: pushes booleans",
        lambda: same(
            mk.mask(torch.tensor([0.5, 2.0])).push(torch.eye(2).bool()),
            torch.diag(torch.tensor([0.5, 2.0])),
        ),
        "work",
    ),
    ("mask: empty", lambda: mk.mask(torch.zeros(0)), "refuse"),
    ("matrix.push: NaN", lambda: finite(A.push(torch.full((1, 4), math.nan))), "refuse"),
    ("matrix.push: complex rows", lambda: A.push(torch.randn(1, 4) * 1j), "refuse"),
    ("matrix.push: one vector", lambda: A.push(torch.randn(4)), "refuse"),
    ("matrix.push: numpy", lambda: A.push(np.zeros((1, 4))), "refuse"),
    ("A @ tensor", lambda: same(A @ torch.ones(4), M.sum(1)), "work"),
    ("A + A", lambda: A + A, "either"),
    ("2 * A", lambda: 2 * A, "either"),
    ("A.shape", lambda: A.shape, "either"),
    (
        "LinearMap: shapes as integers",
        lambda: same(mk.LinearMap(lambda V: V, lambda U: U, 4, 4).dense(), torch.eye(4)),
        "work",
    ),
    ("LinearMap: float64 closures, dtype left out, svd", svd_double_pair, "either"),
    (
        "LinearMap: push returns None",
        lambda: mk.LinearMap(lambda V: None, lambda U: U, (4,), (4,)).push(torch.randn(1, 4)),
        "refuse",
    ),
    (
        "jacobian: integer point",
        lambda: mk.jacobian(torch.sin, torch.zeros(1, 3, dtype=torch.long)),
        "refuse",
    ),
    ("jacobian: numpy point", lambda: mk.jacobian(torch.sin, np.zeros((1, 3))), "refuse"),
    (
        "jacobian: U-Net itself (returns an output object)",
        lambda: mk.jacobian(lambda x: tiny()(x, 5), torch.randn(1, 3, 16, 16)),
        "refuse",
    ),
    (
        "jacobian: chunk as numpy integer",
        lambda: same(
            mk.jacobian(torch.sin, torch.zeros(1, 2), chunk=np.int64(2)).dense(), torch.eye(2)
        ),
        "work",
    ),
    (
        "jacobian: f answers bfloat16",
        lambda: mk.jacobian(lambda x: (2 * x).bfloat16(), torch.randn(1, 3)).pull(torch.ones(1, 3)),
        "work",
    ),
    ("jacobian: batch norm in train mode", batchnorm_train, "refuse"),
    ("jacobian: swapped arguments", lambda: mk.jacobian(torch.zeros(1, 3), torch.sin), "refuse"),
    ("jacobian: f = a Model", lambda: mk.jacobian(p, xt[:1]), "refuse"),
    ("jacobian: new TF32 setting of torch 2.9 in use", tf32_new_api, "work"),
    (
        "jacobian: inference tensors",
        lambda: mk.jacobian(torch.sin, torch.inference_mode()(torch.randn)(1, 3)).dense().shape,
        "work",
    ),
    ("check_adjoint: k = 0", lambda: mk.check_adjoint(A, k=0), "refuse"),
    ("check_adjoint: a matrix", lambda: mk.check_adjoint(M), "refuse"),
    # --- spectral
    ("svd: a tensor instead of a map", lambda: mk.svd(M, 2), "refuse"),
    ("svd: a function instead of a map", lambda: mk.svd(torch.sin, 2), "refuse"),
    ("svd: k = 2.0", lambda: mk.svd(A, 2.0), "refuse"),
    ("svd: k = True", lambda: mk.svd(A, True), "refuse"),
    ("svd: k = torch.tensor(2)", lambda: mk.svd(A, torch.tensor(2)).S.shape, "work"),
    ("svd: max_passes = '20'", lambda: mk.svd(A, 2, max_passes="20"), "refuse"),
    (
        "svd: max_passes = 20.5",
        lambda: mk.svd(mk.matrix(torch.randn(40, 30)), 2, max_passes=20.5),
        "refuse",
    ),
    ("svd: seed = None", lambda: mk.svd(A, 2, seed=None), "refuse"),
    ("svd: tol = '1e-3'", lambda: mk.svd(A, 2, tol="1e-3"), "refuse"),
    ("svd: values of 1e25 (float32)", lambda: svd_scaled(1e25), "work"),
    ("svd: values of 1e-25 (float32)", lambda: svd_scaled(1e-25), "work"),
    ("svd: tol below float32", float32_tol, "either"),
    ("svd: all of 300 x 300", lambda: full_rank(300), "work"),
    ("svd: result of inference mode used for a gradient", inference_svd, "work"),
    ("power_iteration: iters = 10.0", lambda: mk.power_iteration(A, 10.0), "refuse"),
    ("subspace_iteration: k too large", lambda: mk.subspace_iteration(A, 5), "refuse"),
    # --- grassmann, metric
    ("project_out: N is an SVD", lambda: mk.project_out(r.V, r), "refuse"),
    ("project_out: N is one direction", lambda: mk.project_out(r.V, r.V[0]), "refuse"),
    (
        "project_out: bfloat16 N",
        lambda: (
            mk.project_out(
                torch.randn(2, 400), torch.linalg.qr(torch.randn(400, 3)).Q.T.bfloat16()
            ).shape
        ),
        "work",
    ),
    (
        "project_out: V holds NaN",
        lambda: finite(mk.project_out(torch.full((1, 4), math.nan), r.V)),
        "refuse",
    ),
    ("transport: i = -1", lambda: mk.transport(r, r, -1), "refuse"),
    ("transport: i = 1.0", lambda: mk.transport(r, r, 1.0), "refuse"),
    ("transport: U alone", lambda: mk.transport(r.U, r.U, 0), "refuse"),
    ("transport: the maps themselves", lambda: mk.transport(A, A, 0), "refuse"),
    ("transport: U holds NaN", lambda: mk.transport((r.U * math.nan, r.S, r.V), r, 0), "refuse"),
    (
        "metric.angle: v with its batch axis",
        lambda: metric.angle(A, torch.randn(1, 4), torch.randn(1, 4)),
        "refuse",
    ),
    (
        "metric.angle: NaN",
        lambda: metric.angle(A, torch.full((4,), math.nan), torch.randn(4)),
        "refuse",
    ),
    (
        "principal_angles: single vectors",
        lambda: subspaces.principal_angles(torch.randn(4), torch.randn(4)),
        "refuse",
    ),
    # --- loading
    ("load_model: 'Alice'", lambda: mk.load_model("Alice"), "refuse"),
    ("load_model: None", lambda: mk.load_model(None), "refuse"),
    ("load_model: dtype = 'float16'", lambda: mk.load_model("alice", dtype="float16"), "refuse"),
    ("load_model: dtype = int8", lambda: mk.load_model("alice", dtype=torch.int8), "refuse"),
    ("load_model: device = 'gpu'", lambda: mk.load_model("alice", device="gpu"), "refuse"),
    ("load_model: a diffusers network", lambda: mk.load_model(tiny()), "refuse"),
    ("load_model: hub id, no network", lambda: mk.load_model("google/ddpm-celebahq-256"), "refuse"),
    ("load_model: float16 on the CPU, sample", lambda: half(torch.float16), "either"),
    ("load_model: bfloat16 on the CPU, sample", lambda: half(torch.bfloat16), "work"),
    ("UNetModel: bfloat16, svd of the encoder", lambda: half_svd(torch.bfloat16), "work"),
    ("UNetModel: float64, sample", double_model, "work"),
    ("UNetModel: the caller's own network is left as it was", frozen_by_wrapping, "work"),
    ("UNetModel: put in train mode by the user (dropout)", train_mode, "work"),
    ("UNetModel: torch.compile'd network", compiled, "work"),
    ("UNetModel: DataParallel network", parallel, "either"),
    ("UNetModel: hooks", state_left, "either"),
    ("UNetModel: deepcopy", deepcopy_model, "work"),
    ("UNetModel: pickle", pickled, "work"),
    # --- sampling
    ("sample: n = 2.0", lambda: mk.sample(p, 2.0), "refuse"),
    ("sample: n = True", lambda: mk.sample(g4, True).shape, "refuse"),
    ("sample: index = 3", lambda: mk.sample(p, index=3), "refuse"),
    ("sample: index = []", lambda: mk.sample(p, index=[]), "refuse"),
    ("sample: seed = 2**70", lambda: mk.sample(g4, 1, seed=2**70), "refuse"),
    ("sample: a name instead of a model", lambda: mk.sample("alice", 1), "refuse"),
    ("sample: the U-Net instead of a model", lambda: mk.sample(p.unet, 1), "refuse"),
    (
        "sample: n = 30,000 of a 3x64x64 model, memory",
        lambda: (
            f"{30000 * 12288 * 4 / 2**30:.1f} GiB of start noise drawn at once, whatever p.batch is"
        ),
        "either",
    ),
    ("invert: PIL image", lambda: mk.invert(p, pil(), 500), "refuse"),
    ("invert: numpy HWC", lambda: mk.invert(p, np.zeros((64, 64, 3)), 500), "refuse"),
    (
        "invert: uint8",
        lambda: mk.invert(p, torch.zeros(1, 3, 64, 64, dtype=torch.uint8), 500),
        "refuse",
    ),
    ("invert: image in [0, 1]", lambda: mk.invert(p, (x0[:1] + 1) / 2, 500, 1).shape, "refuse"),
    ("invert: batch of 0", lambda: mk.invert(p, x0[:0], 500), "refuse"),
    ("invert: float64", lambda: mk.invert(p, x0.double(), 500), "refuse"),
    ("invert: HWC order", lambda: mk.invert(p, x0.permute(0, 2, 3, 1), 500), "refuse"),
    (
        "invert: non-contiguous",
        lambda: same(
            mk.invert(p, x0.transpose(2, 3).contiguous().transpose(2, 3), 500, 2),
            mk.invert(p, x0, 500, 2),
            1e-3,
        ),
        "work",
    ),
    ("invert: t = 500.0", lambda: mk.invert(p, x0, 500.0), "refuse"),
    ("invert: t = True", lambda: mk.invert(p, x0, True, 2).shape, "refuse"),
    ("invert: t = '500'", lambda: mk.invert(p, x0, "500"), "refuse"),
    ("invert: t = torch.tensor(500)", lambda: mk.invert(p, x0, torch.tensor(500), 2).shape, "work"),
    (
        "invert: t = torch.tensor([500, 300])",
        lambda: mk.invert(p, x0, torch.tensor([500, 300])),
        "refuse",
    ),
    ("noise: t = torch.tensor([5., 6.])", lambda: p.noise(xt, torch.tensor([5.0, 6.0])), "refuse"),
    ("noise: t = [5, 6]", lambda: p.noise(xt, [5, 6]), "refuse"),
    ("noise: t for another batch", lambda: p.noise(xt, torch.tensor([5, 6, 7])), "refuse"),
    ("denoise: swapped p and x", lambda: mk.denoise(xt, p, 500), "refuse"),
    ("denoise: eta = '1'", lambda: mk.denoise(p, xt, 500, eta="1"), "refuse"),
    (
        "denoise: h_edit = dh without mk.inject",
        lambda: mk.denoise(p, xt, 500, 2, h_edit=torch.zeros(128, 8, 8)),
        "refuse",
    ),
    (
        "denoise: the whole path of move",
        lambda: mk.denoise(p, mk.move(p, xt, 600, v, 0.1, 2), 600, 2),
        "refuse",
    ),
    (
        "denoise: boost_below = '300'",
        lambda: mk.denoise(p, xt, 500, 2, boost_below="300"),
        "refuse",
    ),
    ("timesteps: steps = '25'", lambda: mk.timesteps(p, 500, "25"), "refuse"),
    ("posterior_mean: no batch axis", lambda: mk.posterior_mean(p, 500)(xt[0]), "refuse"),
    ("encoder: pool = True", lambda: mk.encoder(p, 500, pool=True), "refuse"),
    ("encoder: the raw U-Net", lambda: mk.encoder(p.unet, 500), "refuse"),
    # --- edits
    ("move: steps = 2.0", lambda: mk.move(p, xt, 600, v, 0.1, 2.0), "refuse"),
    ("move: strength = '0.1'", lambda: mk.move(p, xt, 600, v, "0.1", 2), "refuse"),
    ("move: strength = [0.1, 0.2]", lambda: mk.move(p, xt, 600, v, [0.1, 0.2], 2), "refuse"),
    (
        "move: strength = torch.tensor(0.1)",
        lambda: mk.move(p, xt, 600, v, torch.tensor(0.1), 1).shape,
        "work",
    ),
    (
        "move: v is k directions, not one",
        lambda: mk.move(p, xt, 600, torch.randn(5, *SH), 0.1, 1),
        "refuse",
    ),
    ("move: v is numpy", lambda: mk.move(p, xt, 600, v.numpy(), 0.1, 1), "refuse"),
    ("move: x_t = 0", lambda: finite(mk.move(p, 0 * xt, 600, v, 0.1, 1)), "refuse"),
    (
        "shoot: called as move is, with p and t",
        lambda: mk.shoot(p, xt[:1], 600, v, 0.1, 1, 3).shape,
        "work",
    ),
    (
        "shoot: k = 0",
        lambda: mk.shoot(p, xt, 600, v, 0.1, 2, 0),
        "refuse",
    ),
    (
        "shoot: steps = 1 and k = 0 (never used)",
        lambda: mk.shoot(p, xt, 600, v, 0.1, 1, 0).shape,
        "refuse",
    ),
    (
        "normalise: y holds NaN",
        lambda: finite(mk.normalise(p, xt * math.nan, 600, like=xt)),
        "refuse",
    ),
    (
        "normalise: a model of two numbers, no picture",
        lambda: mk.normalise(
            mk.diffusion.gaussian.GaussianModel(torch.zeros(2), torch.eye(2)),
            torch.ones(1, 2),
            600,
            like=torch.ones(1, 2),
        ),
        "refuse",
    ),
    ("normalise: y is numpy", lambda: mk.normalise(p, xt.numpy(), 600, like=xt), "refuse"),
    (
        "normalise: kappa = 1, t = 0",
        lambda: finite(mk.normalise(p, xt, 0, like=xt, kappa=1.0)).shape,
        "either",
    ),
    ("inject: dh is numpy", lambda: mk.inject(np.zeros((128, 8, 8)), 600, 0, 1.0), "refuse"),
    ("inject: t_from = '600'", lambda: mk.inject(torch.zeros(128, 8, 8), "600", 0, 1.0), "refuse"),
    (
        "inject: dh of the pooled h",
        lambda: mk.denoise(p, xt, 600, 2, h_edit=mk.inject(torch.zeros(128), 600, 0, 1.0)),
        "refuse",
    ),
    (
        "inject: strength as tensor per item",
        lambda: mk.inject(torch.zeros(128, 8, 8), 600, 0, torch.tensor([1.0, 2.0])),
        "refuse",
    ),
    (
        "inject: a function that answers NaN",
        lambda: finite(
            mk.denoise(p, xt, 600, 2, h_edit=mk.inject(lambda h: h * math.nan, 999, 0, 1.0))
        ),
        "refuse",
    ),
    # --- puppets, reader
    ("sample_factors: n = 2.5", lambda: puppets.sample_factors(2.5, 0), "refuse"),
    ("sample_factors: seed = None", lambda: puppets.sample_factors(2, None), "refuse"),
    ("render: q is numpy", lambda: puppets.render(np.zeros((1, 13))), "refuse"),
    (
        "render: q holds infinity",
        lambda: finite(puppets.render(torch.full((1, 13), math.inf))),
        "refuse",
    ),
    ("render: size = 0", lambda: puppets.render(torch.rand(1, 13), size=0), "refuse"),
    ("render: size = 32.5", lambda: puppets.render(torch.rand(1, 13), size=32.5).shape, "refuse"),
    ("render: size = (64, 64)", lambda: puppets.render(torch.rand(1, 13), size=(64, 64)), "refuse"),
    ("render: batch of 0", lambda: puppets.render(torch.zeros(0, 13)).shape, "either"),
    ("render: float16", lambda: finite(puppets.render(torch.rand(1, 13).half())).shape, "work"),
    ("read_factors: numpy", lambda: mk.read_factors(np.zeros((1, 3, 64, 64))), "refuse"),
    ("read_factors: PIL", lambda: mk.read_factors(pil()), "refuse"),
    ("read_factors: batch of 0", lambda: mk.read_factors(x0[:0]), "refuse"),
    ("read_factors: images in [0, 1]", rows_mean, "refuse"),
    ("read_factors: one image", lambda: mk.read_factors(x0[0]), "refuse"),
    # --- scores
    ("wilson: a share instead of a count", lambda: scores.wilson(0.3, 10), "refuse"),
    ("wilson: 3.7 of 10", lambda: scores.wilson(3.7, 10), "refuse"),
    ("wilson: level = 95", lambda: scores.wilson(3, 10, 95), "refuse"),
    ("bootstrap: level = 95", lambda: scores.bootstrap(torch.randn(20), level=95), "refuse"),
    ("bootstrap: a list", lambda: same(scores.bootstrap([1.0, 2.0, 3.0])[0], 2.0), "work"),
    ("bootstrap: resamples = 0", lambda: scores.bootstrap(torch.randn(20), resamples=0), "refuse"),
    (
        "bootstrap: groups as words",
        lambda: scores.bootstrap(torch.randn(4), groups=["a", "a", "b", "b"]),
        "either",
    ),
    ("ks: a list", lambda: same(scores.ks([0.1, 0.2]), 0.8), "work"),
    (
        "frechet: numpy",
        lambda: same(scores.frechet(np.eye(3), np.eye(3) + 1), 3.0),
        "work",
    ),
    ("holm: empty", lambda: scores.holm([]), "refuse"),
    # --- faces, pictures
    ("load_faces: count = 2.5", lambda: eigenfaces.load_faces("puppets", 2.5), "refuse"),
    ("eigenfaces: k = 0", lambda: eigenfaces.eigenfaces(torch.randn(5, 1, 4, 4), 0), "refuse"),
    (
        "eigenfaces: integer images",
        lambda: eigenfaces.eigenfaces(torch.randint(0, 9, (5, 1, 4, 4)), 2),
        "refuse",
    ),
    ("draw.strip: numpy", lambda: draw.strip(np.zeros((2, 3, 8, 8))), "refuse"),
    ("draw.strip: uint8", lambda: draw.strip(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)), "refuse"),
    ("draw.strip: batch of 0", lambda: draw.strip(torch.zeros(0, 3, 8, 8)), "refuse"),
    ("draw.spectrum: empty", lambda: draw.spectrum(torch.zeros(0)), "either"),
    ("toys: density as a list", lambda: sp.Features([[0.1, 0.2]]), "refuse"),
    ("toys: NaN density", lambda: sp.Features(torch.tensor([[math.nan, 0.5]])), "refuse"),
    # --- check never raises
    ("check: answer is a module", lambda: mk.check(torch, 1.0).ok, "work"),
    (
        "check: answer is a sparse tensor",
        lambda: mk.check(torch.eye(3).to_sparse(), torch.eye(3)).ok,
        "work",
    ),
    (
        "check: answer on meta",
        lambda: mk.check(torch.zeros(3, device="meta"), torch.zeros(3)).ok,
        "work",
    ),
    (
        "check: answer is a generator",
        lambda: mk.check((i for i in range(3)), torch.arange(3.0)).ok,
        "work",
    ),
    ("check: answer is 10**400", lambda: mk.check(10**400, 1.0).ok, "work"),
    (
        "check: answer is a list with itself inside",
        lambda: mk.check((lambda a: (a.append(a), a)[1])([]), 1.0).ok,
        "work",
    ),
    ("check: truth NaN", lambda: mk.check(math.nan, math.nan).ok, "refuse"),
    (
        "check: the reader's function calls exit()",
        lambda: mk.check(lambda x: sys.exit(), lambda x: x, inputs=[1.0]).ok,
        "work",
    ),
    ("check: right in float16", lambda: mk.check(torch.tensor(1 / 3).half(), 1 / 3).ok, "either"),
]

OURS = (ValueError, OSError, ImportError)
HOUSE = Path(mk.__file__).parent


def judged(call: Callable[[], Any], wanted: str) -> tuple[str, str]:
    """ok; SILENT: a wrong value, or a value where a word was due; RAW: refused in the words of
    torch, numpy or Python; CRASH: raised where it should work."""
    try:
        with (
            warnings.catch_warnings(record=True) as told,
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("always")
            out = call()
    except AssertionError as error:
        return "SILENT", str(error)
    except (Exception, SystemExit) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        own = isinstance(error, OURS) and Path(last.filename).is_relative_to(HOUSE)
        verdict = "CRASH" if wanted == "work" else "ok" if own else "RAW"
        return verdict, f"{type(error).__name__}: {error}"
    return "SILENT" if wanted == "refuse" and not told else "ok", str(out)


@pytest.mark.parametrize(("call", "wanted"), [row[1:] for row in ROWS], ids=[r[0] for r in ROWS])
def test_right_or_refused_in_our_own_words(call: Callable[[], Any], wanted: str) -> None:
    verdict, said = judged(call, wanted)
    assert verdict == "ok", said


@pytest.mark.parametrize(
    ("call", "wanted", "verdict"),
    [
        (lambda: 1 / 0, "refuse", "RAW"),
        (lambda: torch.zeros(2) @ torch.zeros(3), "either", "RAW"),
        (lambda: 1, "refuse", "SILENT"),
        (lambda: same(1.0, 2.0), "work", "SILENT"),
        (lambda: mk.matrix("W"), "work", "CRASH"),
        (lambda: mk.matrix("W"), "refuse", "ok"),
        (lambda: sys.exit(), "work", "CRASH"),
    ],
)
def test_the_judge_sees_the_difference(call: Any, wanted: str, verdict: str) -> None:
    assert judged(call, wanted)[0] == verdict
