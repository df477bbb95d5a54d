"""What a model learnt, beside the truth: its samples' factors, its derivative, its geometry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mathkit import scores
from mathkit.chapters.eigenfaces import eigenpuppets
from mathkit.diffusion.model import Model
from mathkit.diffusion.sampling import noised, posterior_mean, sample
from mathkit.linear.jacobian import jacobian
from mathkit.linear.subspaces import overlap
from mathkit.linear.svd import svd
from mathkit.show import puppets
from mathkit.show.posterior import Posterior
from mathkit.show.puppets import CONTINUOUS, STRANGER
from mathkit.show.reader import read_factors, read_features

TIMES = (900, 700, 500, 300)
ENOUGH = 500  # effective draws behind a figure of the exact posterior


def sample_rows(p: Model, seed: int, index: Sequence[int]) -> dict[str, Any]:
    """factors: eleven numbers a sample, its ten continuous factors and P(Stranger), read off the
    image; features: the reader's 256."""
    images = sample(p, seed=seed, index=index).clamp(-1, 1)
    factors = read_factors(images)[:, : STRANGER + 1]
    return {
        "factors": scores.rounded(factors),
        "features": scores.rounded(read_features(images)),
    }


def factor_rows(p: Model, seed: int, index: Sequence[int]) -> list[list[float]]:
    """The factors of `sample_rows` alone."""
    return sample_rows(p, seed, index)["factors"]


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


def noised_frame(
    p: Model, frame: int, t: int, draw: Callable[[int, int], Tensor] = puppets.sample_factors
) -> tuple[Tensor, Tensor]:
    """Frame number `frame` of the cards and surveys: its factors (1, 13), and x_t with its own
    noise. draw: of which show."""
    q = draw(frame + 1, 21)[frame:]
    return q, noised(p, puppets.render(q), t, seed=frame)


def derivative_row(p: Model, truth: Posterior, frame: int, t: int, k: int = 10) -> dict[str, float]:
    """The model's derivative at one noised frame of the show, beside the exact posterior's.

    J is the Jacobian of the posterior mean at x_t. asymmetry: |J v - J^T v| / |J v| over the top k
    vectors (0 for an exact one); gain: sqrt(abar) s_1; eigen: overlap with the top k eigenpuppets;
    ess: the effective sample size of the exact posterior. Where that is over 500 also `exact`, its
    gain; overlap: the mean squared cosine between the two top-k subspaces (1 equal, k / n chance);
    error: |E_model - E_exact| / |E_exact|.
    """
    _, xt = noised_frame(p, frame, t, truth.draw)
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


def sides_row(
    p: Model, truth: Posterior, reference: Tensor, frame: int, t: int, k: int = 10
) -> dict[str, float]:
    """The k directions of her posterior mean's Jacobian J at one noised frame, from three sides.

    right, left: the overlap of the top k singular vectors with the span of `reference`; ess: the
    effective sample size of the exact posterior. Where that is over 500 also symmetric, for the top
    vectors of (J + J^T) / 2; exact, for the exact posterior's own; and "right exact" and so on, the
    overlap of each with the exact posterior's. The frames are those of `derivative_row`.
    """
    _, xt = noised_frame(p, frame, t, truth.draw)
    abar = float(p.alphas_cumprod[t])
    A = jacobian(posterior_mean(p, t), xt)
    U, _, V = svd(A, k)
    sides = {"right": V, "left": U}
    row = {"ess": float(truth.ess(xt.cpu(), abar))}
    if row["ess"] > ENOUGH:
        exact = truth.directions(xt.cpu(), abar, k)[0]
        sides |= {"symmetric": svd((A + A.T) / 2, k).V, "exact": exact}
        row |= {
            f"{name} exact": overlap(v.cpu(), exact) for name, v in sides.items() if name != "exact"
        }
    row |= {name: overlap(v.cpu(), reference) for name, v in sides.items()}
    return {"frame": frame, "t": t} | {name: round(value, 4) for name, value in row.items()}


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
