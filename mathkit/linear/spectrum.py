"""Whole spectra: the sum of all squares, how many directions hold half of it, frequencies."""

from __future__ import annotations

import torch
from torch import Tensor

from mathkit.linear.map import LinearMap
from mathkit.linear.triplets import SVD


def total_stretch(
    A: LinearMap, draws: int = 20, seed: int = 0, known: SVD | None = None
) -> tuple[float, float]:
    """sum_i s_i^2 = |A|_F^2 by Hutchinson's estimate, and its standard error.

    The mean of |A g|^2 over `draws` >= 2 vectors g of random signs. known: the first singular
    directions, whose squares are then summed and only the rest, A (1 - V^T V) g, estimated: a much
    smaller error where few directions hold most. Cost: draws pushes.
    """
    signs = torch.Generator().manual_seed(seed)
    dtype = torch.promote_types(A.dtype or torch.get_default_dtype(), torch.float32)
    g = torch.randint(0, 2, (draws, *A.in_shape), generator=signs).to(A.device, dtype) * 2 - 1
    sure = 0.0
    if known is not None:
        V = known.V.flatten(1)
        g, sure = g - (g.flatten(1) @ V.T @ V).reshape(g.shape), float(known.S.square().sum())
    squares = A.push(g).reshape(draws, -1).double().square().sum(1)
    return sure + float(squares.mean()), float(squares.std() / draws**0.5)


def rank_at(S: Tensor, total: float, share: float = 0.5) -> int | None:
    """The smallest k with s_1^2 + ... + s_k^2 >= share * total; None where S ends before that.

    Source: the choice of n in 2302.12469, with share .5.
    """
    reached = S.double().square().cumsum(0) >= share * total
    return int(reached.int().argmax()) + 1 if bool(reached.any()) else None


def spectral_density(V: Tensor) -> tuple[Tensor, Tensor]:
    """Power of pictures V (k, C, H, H) by spatial frequency: two tensors, (F,) and (k, F).

    F = H / 2 + 1. |FFT|^2 summed over channels and over the ring of radius r cycles a picture,
    r = 0 ... H / 2 (the corners beyond: the last), divided by the whole, so that each row sums to
    1; white noise is spread in proportion to the rings. Frequency in cycles a picture.
    """
    if V.ndim != 4 or V.shape[2] != V.shape[3]:
        raise ValueError(f"pictures are (k, C, H, H), got {tuple(V.shape)}")
    power = torch.fft.fft2(V.double()).abs().square().sum(1)
    f = torch.fft.fftfreq(V.shape[2], dtype=torch.float64) * V.shape[2]
    ring = (f[:, None] ** 2 + f**2).sqrt().round().long().clamp(max=V.shape[2] // 2)
    out = torch.zeros(len(V), V.shape[2] // 2 + 1, dtype=torch.float64)
    out.index_add_(1, ring.flatten(), power.flatten(1).cpu())
    return torch.arange(out.shape[1]), out / out.sum(1, keepdim=True)
