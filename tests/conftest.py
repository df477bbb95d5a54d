"""Fixtures of every test: fixed seeds, one thread, no network, and a U-Net of a few thousand
parameters."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

if SHIFT := int(os.environ.get("MATHKIT_SEEDS", "0")):
    # Another draw of every random number: no test may hold for the luck of its seed.

    class _Shifted(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            return super().manual_seed(seed + 1_000_003 * SHIFT)

    _plain = torch.manual_seed
    torch.Generator = _Shifted  # type: ignore[misc]
    torch.manual_seed = lambda seed: _plain(seed + 1_000_003 * SHIFT)  # type: ignore[assignment]

with warnings.catch_warnings():  # torch.func.jvp scripts its decompositions once, and warns
    warnings.filterwarnings("ignore", ".*torch.jit.script")  # from torch 2.15 a FutureWarning
    torch.func.jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))


# Of tests with random weights: a network without training leads anywhere.
UNTRAINED = pytest.mark.filterwarnings("ignore:the x_.*that was made")


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test draws the same numbers, alone or in company."""
    import numpy as np

    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def float64() -> Iterator[None]:
    """Float64 by default inside the test."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def planted(m: int, n: int, values: Sequence[float], seed: int = 0) -> Tensor:
    """A float64 matrix (m, n) with these singular values, the rest 0."""
    g = torch.Generator().manual_seed(seed)
    P, Q = (
        torch.linalg.qr(torch.randn(d, len(values), generator=g, dtype=torch.float64)).Q
        for d in (m, n)
    )
    return (P * torch.tensor(values, dtype=torch.float64)) @ Q.T


def make_tiny_unet(dtype: torch.dtype = torch.float32, size: int = 16, seed: int = 0) -> Any:
    """A UNet2DModel of four resolutions with attention, random weights, in eval mode."""
    from diffusers import UNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DModel(
            sample_size=size,
            layers_per_block=1,
            block_out_channels=(4, 4, 8, 8),
            down_block_types=("DownBlock2D",) * 3 + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * 3,
            norm_num_groups=2,
            attention_head_dim=4,
        )
    return unet.to(dtype).eval().requires_grad_(False)


def make_puppeteer(seed: int = 0) -> Any:
    """A model of 64 x 64 puppets like ALICE, with a bottleneck and random weights."""
    from mathkit.diffusion import model, networks

    unet = make_tiny_unet(size=64, seed=seed)
    return networks.UNetModel(unet, model.linear_schedule(1000), "v_prediction")


@pytest.fixture
def tiny_unet() -> Any:
    """float32; images (B, 3, 16, 16), bottleneck (B, 8, 2, 2)."""
    return make_tiny_unet()


@pytest.fixture
def tiny_unet_double() -> Any:
    """The same weights in float64."""
    return make_tiny_unet(torch.float64)


@pytest.fixture
def bottleneck() -> Callable[[Any, int], Callable[[Tensor], Tensor]]:
    """(unet, t) -> the plain map x_t -> h: a hook keeps what mid_block gives."""

    def encoder(unet: Any, t: int) -> Callable[[Tensor], Tensor]:
        def f(x: Tensor) -> Tensor:
            kept: list[Tensor] = []
            hook = unet.mid_block.register_forward_hook(lambda *call: kept.append(call[2]))
            unet(x, t)
            hook.remove()
            return kept[0]

        return f

    return encoder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder: images (3, 16, 16), h (8, 2, 2)."""
    from diffusers import DDPMPipeline, DDPMScheduler

    place = tmp_path_factory.mktemp("model") / "tiny"
    DDPMPipeline(make_tiny_unet(), DDPMScheduler()).save_pretrained(place)
    return place


@pytest.fixture
def figures_closed() -> Iterator[None]:
    """Closes what a test has left open."""
    import matplotlib.pyplot as plt

    yield
    plt.close("all")
