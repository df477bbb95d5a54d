"""What a model learnt, beside the truth: its samples' factors and its derivative."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import puppets, scores
from .diffusion import posterior_mean, sample
from .factors import read_factors, read_features
from .maps import jacobian, matrix
from .models import Model
from .puppets import CONTINUOUS, STRANGER, Posterior
from .spectral import svd

TIMES = (900, 700, 500, 300)


def factor_rows(p: Model, seed: int, index: Sequence[int], steps: int = 25) -> list[list[float]]:
    """Eleven numbers a sample: its ten continuous factors and P(Stranger), read off the image."""
    images = sample(p, seed=seed, index=index, steps=steps).clamp(-1, 1)
    return [[round(v, 3) for v in z[: STRANGER + 1]] for z in read_factors(images).tolist()]


def factor_card(rows: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Strangers with their interval, each factor's KS distance from uniform, and correlations.

    `correlation` is the largest |correlation| between two of the ten factors, which are
    independent in the show; `light_tie` the difference of mean light between ill and healthy
    samples (.44 / .85 ... in the show it is about .13).
    """
    z = torch.tensor(rows)
    q, ill = z[:, :STRANGER], z[:, STRANGER] > 0.5
    off = torch.corrcoef(q.T) - torch.eye(STRANGER)
    distance = dict(zip(CONTINUOUS, scores.ks(q).tolist(), strict=True))
    light = q[:, CONTINUOUS.index("light")]
    return {
        "samples": len(z),
        "strangers": scores.in_words(int(ill.sum()), len(z)),
        "ks": distance,
        "ks_worst": max(distance.values()),
        "correlation": float(off.abs().max()),
        "light_tie": float(light[ill].mean() - light[~ill].mean()),
    }


def frechet_ratio(p: Model, n: int, seed: int, steps: int = 25) -> float:
    """Frechet distance of n samples to n real frames over that between two sets of n real frames.

    In the reader's 256 features; 1 is as near as real frames are to each other.
    """
    real, other = (read_features(_frames(n, s)) for s in (11, 12))
    fake = torch.cat(
        [
            read_features(
                sample(p, seed=seed, index=range(i, min(i + 100, n)), steps=steps).clamp(-1, 1)
            )
            for i in range(0, n, 100)
        ]
    )
    return scores.frechet(fake, real) / scores.frechet(other, real)


def _frames(n: int, seed: int) -> Tensor:
    return torch.cat([puppets.render(q) for q in puppets.sample_factors(n, seed).split(500)])


def derivative_row(p: Model, truth: Posterior, frame: int, t: int, k: int = 10) -> dict[str, float]:
    """The model's derivative at one noised frame of the show, beside the exact posterior's.

    J is the Jacobian of the posterior mean at x_t. asymmetry: |J v - J^T v| / |J v| over the top k
    vectors (0 for an exact one); gain: sqrt(abar) s_1, and `exact` the same of the exact posterior;
    overlap: the mean squared cosine between the two top-k subspaces (1 equal, k / n chance); ess:
    the effective sample size behind the exact one; error: |E_model - E_exact| / |E_exact - mean|.
    """
    x0 = puppets.render(puppets.sample_factors(frame + 1, seed=21)[frame:])
    abar = float(p.alphas_cumprod[t])
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(frame))
    xt = abar**0.5 * x0 + (1 - abar) ** 0.5 * noise
    A = jacobian(posterior_mean(p, t), xt)
    _, s, v = svd(A, k)
    jv, jtv = A.push(v).flatten(1), A.pull(v).flatten(1)
    exact_v, exact_s = truth.directions(xt, abar, k)
    expected = truth.mean(xt, abar)
    with torch.no_grad():
        miss = (p.clean(xt, t) - expected).norm() / expected.norm()
    row = {
        "asymmetry": float((jv - jtv).norm() / jv.norm()),
        "gain": float(abar**0.5 * s[0]),
        "exact": float(abar**0.5 * exact_s[0]),
        "overlap": overlap(v, exact_v),
        "eigen": overlap(v, eigenpuppets(truth, k)),
        "ess": float(truth.ess(xt, abar)),
        "error": float(miss),
    }
    return {"frame": frame, "t": t} | {name: round(value, 4) for name, value in row.items()}


def overlap(a: Tensor, b: Tensor) -> float:
    """|A B^T|_F^2 / k for orthonormal rows A, B (k, *in): 1 for equal spans, k / n by chance."""
    return float((a.flatten(1) @ b.flatten(1).T).square().sum() / len(a))


def eigenpuppets(truth: Posterior, k: int, count: int = 2000) -> Tensor:
    """The top k principal axes of the show's frames, (k, 3, size, size)."""
    frames = truth.bank[:count].float()
    return svd(matrix(frames - frames.mean(0)), k).V.reshape(k, *truth.shape)


def derivative_card(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Means over frames at each t, and how many frames had an effective sample size over 500."""
    card = {}
    for t in sorted({int(r["t"]) for r in rows}, reverse=True):
        here = [r for r in rows if r["t"] == t]
        names = [n for n in here[0] if n not in ("frame", "t")]
        card[f"t = {t}"] = {n: sum(r[n] for r in here) / len(here) for n in names} | {
            "ess over 500": sum(r["ess"] > 500 for r in here)
        }
    return card
