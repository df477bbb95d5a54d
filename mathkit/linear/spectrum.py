"""Whole spectra: the sum of all squares, how many directions hold half of it, frequencies."""

from __future__ import annotations

import torch
from torch import Tensor

from mathkit.arguments import integer
from mathkit.linear.linear_map import LinearMap
from mathkit.linear.triplets import SVD


def total_stretch(
    A: LinearMap, draws: int = 20, seed: int = 0, known: SVD | None = None
) -> tuple[float, float]:
    """sum_i s_i^2 = |A|_F^2 by Hutchinson's estimate, and its standard error.

    The mean of |A g|^2 over vectors g of random signs.

    Args:
        A: the map.
        draws: how many, >= 2.
        seed: of the signs.
        known: the first singular directions, whose squares are then summed and only the rest,
            A (1 - V^T V) g, estimated: a much smaller error where few directions hold most.

    Returns: the estimate and its standard error.
    Raises ValueError for draws < 2.
    Cost: draws pushes.
    Source: Hutchinson 1989; with known directions Meyer and others 2021 (Hutch++).

    >>> A = mk.matrix(torch.diag(torch.tensor([3.0, 2.0, 1.0])))
    >>> mk.linear.spectrum.total_stretch(A)  # exact for a diagonal: every sign has the square 1
    (14.0, 0.0)
    """
    draws = integer(draws, "draws", 2)
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

    Args:
        S: singular values (k,), falling.
        total: the sum of all squares, as `total_stretch` estimates it.
        share: in (0, 1].

    Returns: k, or None.
    Cost: no pass.
    Source: the choice of n in 2302.12469, with share .5.

    >>> mk.linear.spectrum.rank_at(torch.tensor([3.0, 2.0, 1.0]), 14.0)
    1
    """
    reached = S.double().square().cumsum(0) >= share * total
    return int(reached.int().argmax()) + 1 if bool(reached.any()) else None


def spectral_density(V: Tensor) -> tuple[Tensor, Tensor]:
    """Power of pictures by spatial frequency.

    |FFT|^2 summed over channels and over the ring of radius r cycles a picture, r = 0 ... H / 2
    (the corners beyond: the last), divided by the whole; white noise is spread in proportion to the
    rings.

    Args:
        V: pictures (k, C, H, H).

    Returns: the frequencies (H / 2 + 1,) in cycles a picture, and the shares (k, H / 2 + 1), each
    row of sum 1.
    Raises ValueError for pictures that are not square, or zero.
    Cost: no pass.

    >>> flat = torch.ones(1, 1, 4, 4)
    >>> mk.linear.spectrum.spectral_density(flat)[1]
    tensor([[1., 0., 0.]], dtype=torch.float64)
    """
    if V.ndim != 4 or V.shape[2] != V.shape[3]:
        raise ValueError(f"pictures are (k, C, H, H), got {tuple(V.shape)}")
    power = torch.fft.fft2(V.double()).abs().square().sum(1)
    if not (power.flatten(1).amax(1) > 0).all():
        raise ValueError("a picture is zero, or holds NaN: its power lies at no frequency")
    f = torch.fft.fftfreq(V.shape[2], dtype=torch.float64) * V.shape[2]
    ring = (f[:, None] ** 2 + f**2).sqrt().round().long().clamp(max=V.shape[2] // 2)
    out = torch.zeros(len(V), V.shape[2] // 2 + 1, dtype=torch.float64)
    out.index_add_(1, ring.flatten(), power.flatten(1).cpu())
    return torch.arange(out.shape[1]), out / out.sum(1, keepdim=True)


def as_smooth(V: Tensor, seed: int, place: Tensor | None = None) -> Tensor:
    """Random pictures as smooth as V, the control of a direction that is smooth.

    Every frequency keeps its power and what its channels have in common; its phase is drawn.

    Args:
        V: pictures (k, C, H, W).
        seed: of the phases.
        place: brightness of the place (H, W), by which the random ones are then multiplied, so that
            they are also where V is; that blurs the spectrum a little.

    Returns: (k, C, H, W), each as long as its own of V.
    Raises ValueError for another shape.
    Cost: no pass.

    >>> V = torch.ones(1, 3, 4, 4)  # frequency 0 alone
    >>> torch.allclose(mk.linear.spectrum.as_smooth(V, seed=0).abs(), V)
    True
    """
    if V.ndim != 4:
        raise ValueError(f"pictures are (k, C, H, W), got {tuple(V.shape)}")
    F = torch.fft.fft2(V.double().cpu())
    draw = torch.Generator().manual_seed(seed)
    g = torch.fft.fft2(torch.randn(F[:, :1].shape, generator=draw, dtype=torch.float64))
    turn = torch.where(F[:, :1] == 0, 1, torch.polar(torch.ones_like(g.real), -F[:, :1].angle()))
    found = torch.fft.ifft2(F * turn * g / g.abs()).real
    found = found if place is None else found * place.double().cpu()
    size = [a.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for a in (V.double().cpu(), found)]
    return (found * size[0] / size[1].clamp_min(1e-300)).to(V)  # of a picture of zeros, zeros
