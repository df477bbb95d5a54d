"""The treatment: find a direction at x_t, step along it, and judge the picture against the truth.

Every figure here has the true counterfactual behind it: the renderer, with the factors of the
untreated image and the Stranger taken out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from . import puppets
from .diffusion import denoise, posterior_mean, sample
from .factors import fit_factors, read_factors
from .grassmann import project_out
from .hspace import encoder, move
from .maps import LinearMap, jacobian, mask
from .models import Model
from .puppets import STRANGER
from .spectral import svd

OUTCOMES = ("ill", "cured", "destroyed")


@dataclasses.dataclass(eq=False)
class Cases:
    """Samples on the couch, all at one time t.

    index (B,): sample (seed, index). xt (B, 3, 64, 64): the sample's own x_t. x0: the untreated
    image, denoise(xt, t, steps). q (B, 13): its factors, fitted through the renderer. distance
    (B,): its distance to the manifold. cure: the true counterfactual D* (zero for the healthy).
    region (B, 64, 64): where |D*| > .05 in some channel, grown by 2 pixels; 0 or 1.
    """

    seed: int
    index: list[int]
    t: int
    steps: int
    xt: Tensor
    x0: Tensor
    q: Tensor
    distance: Tensor
    cure: Tensor
    region: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Cases:
        """The i-th case alone, as a batch of one. IndexError past the last."""
        if not 0 <= i < len(self):
            raise IndexError(f"expected a case from 0 to {len(self) - 1}, got {i}")
        one = slice(i, i + 1)
        parts = {f: getattr(self, f)[one] for f in ("index", "xt", "x0", "q", "distance")}
        return dataclasses.replace(self, **parts, cure=self.cure[one], region=self.region[one])


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the treatment table: how its direction of x_t is found.

    kind: "random", "noise", "h" or "mean" (the posterior mean). masked: the map keeps only the
    region's pixels. rest: r', the directions of the map to the rest that are projected out.
    among: of how many candidates the index rule of `direction` chooses; 1 takes the first.
    supervision: what the rule is told beyond x_t and the average puppet.
    """

    name: str
    kind: str
    masked: bool = False
    rest: int = 0
    among: int = 1
    supervision: str = "none"


TRIED = 6
ROWS = (
    Row("random", "random"),
    Row("random, best of 6", "random", among=TRIED, supervision="region"),
    Row("fresh noise", "noise"),
    Row("h, first", "h"),
    Row("h, best of 6", "h", among=TRIED, supervision="region"),
    Row("masked mean", "mean", masked=True, among=TRIED, supervision="region"),
    Row("masked mean, projected", "mean", True, rest=5, among=TRIED, supervision="region"),
)


def trajectory(p: Model, seed: int, index: Sequence[int], t: int, steps: int = 25) -> Tensor:
    """x_t on the samples' own way down: `sample`'s state at the grid time t, (B, *shape).

    Raises ValueError where t is no time of the sampling grid.
    """
    kept: list[Tensor] = []

    def keep(_: int, then: int, x: Tensor) -> None:
        if then == t:
            kept.append(x.clone())
            raise _Reached

    try:
        sample(p, seed=seed, index=list(index), steps=steps, callback=keep)
    except _Reached:
        return kept[0]
    raise ValueError(f"t = {t} is no time of the grid of {steps} steps: see mk.timesteps")


class _Reached(Exception):
    pass


def admit(p: Model, seed: int, index: Sequence[int], t: int, steps: int = 12) -> Cases:
    """Sample, read and fit: the Cases of (seed, index) at time t.

    Cost: 25 - 12 or so network calls to t, `steps` more to x_0, 60 renders and their gradients.
    """
    xt = trajectory(p, seed, index, t)
    x0 = untreated(p, xt, t, steps)
    q, distance = fit_factors(x0)
    ill = q[:, STRANGER, None, None, None]
    cure = ill * puppets.counterfactual(q, x0.shape[-1])
    return Cases(seed, list(index), t, steps, xt, x0, q, distance, cure, region(cure))


def untreated(p: Model, xt: Tensor, t: int, steps: int = 12) -> Tensor:
    """The image that x_t leads to when nothing is done, clipped to [-1, 1]."""
    return denoise(p, xt, t, steps).clamp(-1, 1)


def completions(
    p: Model, seed: int, i: int, t: int, count: int = 16, steps: int = 12
) -> tuple[Tensor, Tensor]:
    """What may become of x_t, the state of sample (seed, i) at the grid time t: `count` endings.

    Every ending goes down with eta = 1 and its own noise; the share that shows the Stranger is
    P(Stranger | x_t) by trial. Returns the endings (count, *shape), clipped to [-1, 1], and x_t
    (1, *shape). Cost: count * steps network calls.
    """
    xt = trajectory(p, seed, [i], t)
    many = xt.expand(count, *xt.shape[1:]).contiguous()
    return denoise(p, many, t, steps, eta=1.0, seed=i, index=range(count)).clamp(-1, 1), xt


def region(cure: Tensor, level: float = 0.05, grow: int = 2) -> Tensor:
    """Where |D*| > level in some channel, dilated by `grow` pixels: (B, H, W) of 0 and 1."""
    spot = (cure.abs().amax(1, keepdim=True) > level).float()
    return F.max_pool2d(spot, 2 * grow + 1, 1, grow)[:, 0]


def direction(p: Model, case: Cases, row: Row, average: Tensor) -> Tensor:
    """The unit direction of x_t that `row` prescribes for one case, (1, *shape).

    Index and sign: of the row's candidates v_i the one with the largest |<J v_i, average - E>|, in
    the sign that makes the product positive, so that the posterior mean E moves towards the
    average puppet; where the row knows the region, the product is taken inside it. J: the Jacobian
    of the posterior mean. Cost for one case: a few dozen passes of the encoder or of the network.
    """
    found, g = candidates(p, case, row), mean_map(p, case)
    pushed = g.push(found)
    seen = inside(case).push(pushed) if row.supervision == "region" else pushed
    with torch.no_grad():
        towards = average - p.clean(case.xt, case.t)
    product = (seen * towards).sum((1, 2, 3))
    i = int(product.abs().argmax())
    return found[i : i + 1] * (1.0 if product[i] >= 0 else -1.0)


def candidates(p: Model, case: Cases, row: Row) -> Tensor:
    """The row's unit directions before index and sign are chosen, (row.among, *shape)."""
    if row.kind in ("random", "noise"):
        return gaussian(case, row.among)
    V = local_directions(p, case, row.kind, row.masked, row.among)
    if row.rest:
        outside = mask(1 - case.region.expand(case.xt.shape)[0])
        V = project_out(V, svd(outside @ mean_map(p, case), row.rest).V)
        V = V / V.flatten(1).norm(dim=1)[:, None, None, None]
    return V


@functools.lru_cache(maxsize=4)
def local_directions(p: Model, case: Cases, kind: str, masked: bool, k: int) -> Tensor:
    """The top k right singular vectors at x_t of the encoder ("h") or the posterior mean."""
    A = jacobian(encoder(p, case.t), case.xt) if kind == "h" else mean_map(p, case)
    return svd(inside(case) @ A if masked else A, k).V


@functools.lru_cache(maxsize=1)
def mean_map(p: Model, case: Cases) -> LinearMap:
    """The Jacobian of the posterior mean at the case's x_t."""
    return jacobian(posterior_mean(p, case.t), case.xt)


def inside(case: Cases) -> LinearMap:
    """The map that keeps the pixels of the case's region."""
    return mask(case.region.expand(case.xt.shape)[0])


def gaussian(case: Cases, k: int = 1, stream: int = 0) -> Tensor:
    """k random unit vectors of x_t's shape, the same for the same (seed, index, stream)."""
    mixed = np.random.SeedSequence([case.seed, case.index[0], stream]).generate_state(1)[0]
    draw = torch.Generator().manual_seed(int(mixed))
    v = torch.randn(k, *case.xt.shape[1:], generator=draw).to(case.xt)
    return v / v.flatten(1).norm(dim=1)[:, None, None, None]


def treat(p: Model, case: Cases, row: Row, v: Tensor, strength: float) -> Tensor:
    """The treated image: x_t moved by `strength` (|x_t' - x_t| / |x_t|), then denoised as x0 was.

    Row kind "noise" has no direction: the noise in x_t is turned towards fresh noise by the angle
    that gives the same length of step.
    """
    if row.kind == "noise":
        moved = renoised(p, case, strength)
    else:
        moved = move(p, case.xt, case.t, v, strength, steps=1)[-1]
    return untreated(p, moved, case.t, case.steps)


def renoised(p: Model, case: Cases, strength: float) -> Tensor:
    """sqrt(abar) x0 + sqrt(1 - abar) (cos a e + sin a e'), e' fresh: a step of `strength` |x_t|.

    e is the noise that x_t holds beside the untreated x0; a is at most 90 degrees.
    """
    abar = float(p.alphas_cumprod[case.t])
    old = case.xt - abar**0.5 * case.x0
    size = old.flatten(1).norm(dim=1)[:, None, None, None]
    fresh = gaussian(case, stream=1) * size
    chord = strength * case.xt.flatten(1).norm(dim=1)[:, None, None, None] / size
    angle = 2 * torch.asin((chord / 2).clamp(max=0.5**0.5))
    return abar**0.5 * case.x0 + angle.cos() * old + angle.sin() * fresh


def judge(cases: Cases, treated: Tensor, limit: float, unrelated: float) -> dict[str, Tensor]:
    """What the treatment did to each case, as (B,) tensors.

    outcome: 0 ill, 1 cured, 2 destroyed (OUTCOMES). Destroyed: the distance to the manifold exceeds
    `limit`. Cured: P(Stranger) < .5 and, inside the region, the mean |x' - x0 - D*| is under half
    of the mean |D*|. side: the side effect, mean distance of x' to the segment from x0 to x0 + D*
    in each pixel and channel, over `unrelated`: neither leaving the Stranger nor taking him out is
    damage, anything else is, inside the region as outside. error: mean |x' - x0 - D*| over the
    same. outside: mean |x' - x0| outside the region, over the same. factor: the mean and `worst`
    the largest change of the ten factors.
    """
    q, distance = fit_factors(treated)
    p = read_factors(treated)[:, STRANGER]
    gap = (treated - cases.x0 - cases.cure).abs()
    inside = cases.region[:, None]
    left = (gap * inside).sum((1, 2, 3)) / (cases.cure.abs() * inside).sum((1, 2, 3)).clamp(
        min=1e-9
    )
    low = torch.minimum(cases.x0, cases.x0 + cases.cure)
    high = torch.maximum(cases.x0, cases.x0 + cases.cure)
    stray = (treated - treated.clamp(min=low, max=high)).abs()
    change = (q - cases.q)[:, :STRANGER].abs()
    outcome = torch.where((p < 0.5) & (left < 0.5), 1, 0)
    outcome = torch.where(distance > limit, 2, outcome)
    far = (treated - cases.x0).abs() * (1 - inside)
    return {
        "outcome": outcome,
        "p": p,
        "left": left,
        "distance": distance,
        "side": stray.mean((1, 2, 3)) / unrelated,
        "error": gap.mean((1, 2, 3)) / unrelated,
        "outside": far.mean((1, 2, 3)) / unrelated,
        "factor": change.mean(1),
        "worst": change.amax(1),
    }


def dose(strengths: Sequence[float], effects: Sequence[float], target: float) -> float:
    """The strength at which the mean side effect reaches `target`, linear between measurements.

    (0, 0) is the first point; where the target is never reached, the largest strength is returned.
    """
    s0, e0 = 0.0, 0.0
    for s, e in zip(strengths, effects, strict=True):
        if e >= target:
            return s0 + (s - s0) * (target - e0) / (e - e0)
        s0, e0 = s, e
    return s0


def sweep(
    p: Model,
    cases: Cases,
    rows: Sequence[Row],
    strengths: Callable[[Row], Sequence[float]],
    limit: float,
    unrelated: float,
    average: Tensor,
) -> list[dict[str, Any]]:
    """Every row at every strength on every case: one flat record each, in that order."""
    records = []
    for i in range(len(cases)):
        case = cases[i]
        for row in rows:
            v = direction(p, case, row, average)
            images = torch.cat([treat(p, case, row, v, s) for s in strengths(row)])
            repeated = _repeat(case, len(images))
            marks = judge(repeated, images, limit, unrelated)
            for j, s in enumerate(strengths(row)):
                head = {"row": row.name, "index": case.index[0], "strength": s}
                records.append(head | record(marks, j))
    return records


def record(marks: dict[str, Tensor], j: int) -> dict[str, Any]:
    """The marks of case j as plain numbers of four digits, the outcome as an integer."""
    plain: dict[str, Any] = {name: round(float(value[j]), 4) for name, value in marks.items()}
    return plain | {"outcome": int(marks["outcome"][j])}


def _repeat(case: Cases, n: int) -> Cases:
    parts = {f: getattr(case, f).repeat_interleave(n, 0) for f in ("xt", "x0", "q", "distance")}
    cure, spot = case.cure.repeat_interleave(n, 0), case.region.repeat_interleave(n, 0)
    return dataclasses.replace(case, index=case.index * n, cure=cure, region=spot, **parts)
