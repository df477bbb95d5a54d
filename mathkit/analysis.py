"""What a model learnt, beside the truth: its samples' factors, its derivative, its geometry."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import puppets, scores
from .diffusion import posterior_mean, sample
from .faces import eigenfaces
from .factors import read_factors, read_features
from .grassmann import carry
from .hspace import shoot
from .jacobians import jacobian
from .maps import LinearMap
from .models import Model
from .puppets import CONTINUOUS, STRANGER, Posterior
from .spectral import SVD, svd

TIMES = (900, 700, 500, 300)
ENOUGH = 500  # effective draws behind a figure of the exact posterior


def sample_rows(p: Model, seed: int, index: Sequence[int], steps: int = 25) -> dict[str, Any]:
    """factors: eleven numbers a sample, its ten continuous factors and P(Stranger), read off the
    image; features: the reader's 256."""
    images = sample(p, seed=seed, index=index, steps=steps).clamp(-1, 1)

    factors = read_factors(images)[:, : STRANGER + 1]
    return {
        "factors": scores.rounded(factors),
        "features": scores.rounded(read_features(images)),
    }


def factor_rows(p: Model, seed: int, index: Sequence[int], steps: int = 25) -> list[list[float]]:
    """The factors of `sample_rows` alone."""
    return sample_rows(p, seed, index, steps)["factors"]


def factor_card(
    rows: Sequence[Sequence[float]], moving: Sequence[str] = CONTINUOUS
) -> dict[str, Any]:
    """Strangers with their interval, each factor's KS distance from uniform, and correlations.

    moving: the factors that move in the show. `correlation` is the largest |correlation| between
    two of them, which are independent in the show; `light_tie` the difference of mean light between
    ill and healthy samples, where there are both (in the show about .13); `still` the largest
    standard deviation of a factor that should stand still.
    """
    z = torch.tensor(rows)
    ill, at = z[:, STRANGER] > 0.5, [CONTINUOUS.index(name) for name in moving]
    q, light = z[:, at], z[:, CONTINUOUS.index("light")]
    off = torch.corrcoef(q.T) - torch.eye(len(at))
    distance = dict(zip(moving, scores.ks(q).tolist(), strict=True))
    card = {
        "samples": len(z),
        "strangers": scores.in_words(int(ill.sum()), len(z)),
        "ks": distance,
        "ks_worst": max(distance.values()),
        "correlation": float(off.abs().max()),
    }
    if len(at) == STRANGER:
        both = 0 < int(ill.sum()) < len(z)
        tie = {"light_tie": float(light[ill].mean() - light[~ill].mean())} if both else {}
        return card | tie
    still = [i for i in range(STRANGER) if i not in at]
    return card | {"still": float(z[:, still].std(0).max())}


def frechet_ratio(
    features: Tensor, draw: Callable[[int, int], Tensor] = puppets.sample_factors
) -> float:
    """Frechet distance of n samples to n real frames over that between two sets of n real frames.

    features (n, 256) of the samples, as `read_features` gives them; 1 is as near as real ones are.
    draw: of which show, (n, seed) -> factors.
    """
    sets = ([puppets.render(q) for q in draw(len(features), s).split(500)] for s in (11, 12))
    real, other = (read_features(torch.cat(frames)) for frames in sets)
    return scores.frechet(features, real) / scores.frechet(other, real)


def derivative_row(p: Model, truth: Posterior, frame: int, t: int, k: int = 10) -> dict[str, float]:
    """The model's derivative at one noised frame of the show, beside the exact posterior's.

    J is the Jacobian of the posterior mean at x_t. asymmetry: |J v - J^T v| / |J v| over the top k
    vectors (0 for an exact one); gain: sqrt(abar) s_1; eigen: overlap with the top k eigenpuppets;
    ess: the effective sample size of the exact posterior. Where that is over 500 also `exact`, its
    gain; overlap: the mean squared cosine between the two top-k subspaces (1 equal, k / n chance);
    error: |E_model - E_exact| / |E_exact|.
    """
    xt = noised(p, puppets.render(truth.draw(frame + 1, 21)[frame:]), t, seed=frame)
    abar = float(p.alphas_cumprod[t])
    A = jacobian(posterior_mean(p, t), xt)
    _, s, v = svd(A, k)
    jv, jtv = A.push(v).flatten(1), A.pull(v).flatten(1)
    with torch.no_grad():
        clean = p.clean(xt, t).cpu()
    xt, v = xt.cpu(), v.cpu()
    row = {
        "asymmetry": float((jv - jtv).norm() / jv.norm()),
        "gain": float(abar**0.5 * s[0]),
        "eigen": overlap(v, eigenpuppets(truth, k)),
        "ess": float(truth.ess(xt, abar)),
    }
    if row["ess"] > ENOUGH:
        exact_v, exact_s = truth.directions(xt, abar, k)
        expected = truth.mean(xt, abar)
        miss = (clean - expected).norm() / expected.norm()
        row |= {"exact": float(abar**0.5 * exact_s[0]), "overlap": overlap(v, exact_v)}
        row |= {"error": float(miss)}
    return {"frame": frame, "t": t} | {name: round(value, 4) for name, value in row.items()}


def noised(p: Model, x0: Tensor, t: int, seed: int) -> Tensor:
    """x_t = sqrt(abar) x0 + sqrt(1 - abar) e on p's device, e the standard normal of `seed`."""
    x0, abar = x0.to(p.device), float(p.alphas_cumprod[t])
    e = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed)).to(x0)
    return abar**0.5 * x0 + (1 - abar) ** 0.5 * e


def overlap(a: Tensor, b: Tensor) -> float:
    """|A B^T|_F^2 / k for orthonormal rows A, B (k, *in): 1 for equal spans, k / n by chance."""
    return float((a.flatten(1) @ b.flatten(1).T).square().sum() / len(a))


@functools.lru_cache(maxsize=4)
def eigenpuppets(truth: Posterior, k: int, count: int = 2000) -> Tensor:
    """The top k principal axes of the show's frames, (k, 3, size, size)."""
    return eigenfaces(truth.bank[:count].float(), k, tol=1e-3).axes.reshape(k, *truth.shape)


def derivative_card(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """At each t the mean of each figure over the frames that have it, and how many have `exact`."""
    card = {}
    for t in sorted({int(r["t"]) for r in rows}, reverse=True):
        here = [r for r in rows if r["t"] == t]
        names = dict.fromkeys(n for r in here for n in r if n not in ("frame", "t"))
        means = {n: torch.tensor([r[n] for r in here if n in r]).mean().item() for n in names}
        card[f"t = {t}"] = means | {
            "frames": len(here),
            "exact ones": sum("exact" in r for r in here),
        }
    return card


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


def tangents(q: Tensor) -> Tensor:
    """The ten true tangent vectors J_R b_j of the show at one q (1, 13): (10, 3, 64, 64)."""
    return jacobian(puppets.render, q).push(torch.eye(q.shape[1]).to(q)[: len(CONTINUOUS)])


def tangent_share(V: Tensor, J: Tensor) -> tuple[float, float]:
    """How much of the true tangent space the span of orthonormal rows V (k, *in) holds.

    J (j, *in): tangent vectors. Plain: the mean squared cosine |Q V^T|_F^2 / j, Q orthonormal rows
    of J's span (chance k / n); weighted by energy: sum_j |V J_j|^2 / sum_j |J_j|^2.
    """
    v, j = V.flatten(1).double(), J.flatten(1).to(V.device).double()
    Q = torch.linalg.qr(j.T).Q.T
    plain = (Q @ v.T).square().sum() / len(Q)
    return float(plain), float((j @ v.T).square().sum() / j.square().sum())


def paths(
    f: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, segments: int, k: int
) -> tuple[dict[str, Tensor], float]:
    """Three ways from x to y, each (1, *in): name -> (segments + 1, *in), and shooting's miss.

    "lerp": x + a (y - x). "slerp": the great circle, norms interpolated. "shooting": `shoot` with
    the direction of x whose image points to f(y), as far as the top k allow, over the length
    |y - x|; it does not arrive, miss = |end - y| / |y - x|. Cost: `segments` `svd`s of rank k.
    """
    a = torch.linspace(0, 1, segments + 1, dtype=x.dtype).to(x).view(-1, *[1] * (x.ndim - 1))
    size = [float(z.norm()) for z in (x, y)]
    angle = math.acos(max(-1.0, min(1.0, float((x * y).sum()) / (size[0] * size[1]))))
    if not 1e-4 < angle < math.pi - 1e-4:
        raise ValueError(f"x and y at an angle of {angle:.1e}: no great circle between them")
    along = ((1 - a) * angle).sin() * x / size[0] + (a * angle).sin() * y / size[1]
    slerp = along / math.sin(angle) * ((1 - a) * size[0] + a * size[1])
    with torch.no_grad():
        wanted = f(y) - f(x)
    v = carry(wanted[0], svd(jacobian(f, x), k), "pinv")[0][None]
    far = float((y - x).norm()) / size[0]
    shot = shoot(f, x, v, far, segments, k)[:, 0]
    miss = float((shot[-1] - y[0]).norm() / (y - x).norm())
    return {"lerp": x + a * (y - x), "slerp": slerp, "shooting": shot}, miss
