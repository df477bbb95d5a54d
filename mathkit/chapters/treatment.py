"""Treating one patient: a sample with its x_t, the aftercare, and the truth about its cure.

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

from mathkit.diffusion.encoder import encoder
from mathkit.diffusion.model import Model
from mathkit.diffusion.sampling import (
    denoise,
    finished,
    posterior_mean,
    reached,
    start,
    timesteps,
    walk,
)
from mathkit.linear.arrays import mask
from mathkit.linear.jacobian import jacobian
from mathkit.linear.linear_map import LinearMap
from mathkit.linear.subspaces import unit
from mathkit.linear.svd import svd
from mathkit.linear.triplets import SVD, any_of_equals
from mathkit.scores import side_effect
from mathkit.show import puppets
from mathkit.show.puppets import STRANGER
from mathkit.show.reader import fit_factors, read_factors

OUTCOMES = ("ill", "cured", "destroyed")
SAMPLING = 25  # network calls of a sample


@dataclasses.dataclass(eq=False)
class Cases:
    """Samples on the couch, all at one time t; `admit` makes them.

    Args:
        seed: of the samples.
        index: which samples, (B,): case i is sample (seed, index[i]).
        t: the time, one of the sampling grid.
        steps: network calls from t to the image; None: at the sample's own times.
        xt: (B, 3, 64, 64), the sample's own x_t.
        x0: (B, 3, 64, 64), the untreated image, denoised from x_t in `steps` calls.
        q: (B, 13), its factors, fitted through the renderer.
        distance: (B,), its distance to the manifold.
        cure: (B, 3, 64, 64), the true counterfactual D*, zero for the healthy.
        region: (B, 64, 64), 0 or 1: where |D*| > .05 in some channel, grown by 2 pixels; for the
            healthy with the D* of a Stranger who might have stood there, drawn for this sample.
        known: the same cases at other times, once `at` was asked.

    `len(cases)` is B, `cases[i]` the i-th alone.

    >>> from mathkit.chapters import treatment
    >>> q = mk.puppets.sample_factors(2, seed=0, stranger=1)
    >>> x0, cure, region = mk.puppets.render(q), mk.puppets.counterfactual(q), torch.ones(2, 64, 64)
    >>> cases = treatment.Cases(0, [0, 1], 957, 24, x0, x0, q, torch.zeros(2), cure, region)
    >>> len(cases), cases[1].index
    (2, [1])
    """

    seed: int
    index: list[int]
    t: int
    steps: int | None
    xt: Tensor
    x0: Tensor
    q: Tensor
    distance: Tensor
    cure: Tensor
    region: Tensor
    known: dict[int, Cases] = dataclasses.field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Cases:
        """The i-th case alone, as a batch of one. IndexError past the last."""
        if not 0 <= i < len(self):
            raise IndexError(f"expected a case from 0 to {len(self) - 1}, got {i}")
        return self.rows(slice(i, i + 1))

    def rows(self, rows: slice | Sequence[int]) -> Cases:
        """Some of the cases, by their places in the batch."""
        parts = {f: getattr(self, f)[rows] for f in ("xt", "x0", "q", "distance", "cure", "region")}
        index = np.array(self.index)[rows].tolist()
        return dataclasses.replace(self, index=index, known={}, **parts)

    def repeat(self, n: int) -> Cases:
        """Every case n times in a row."""
        return self.rows([i for i in range(len(self)) for _ in range(n)])

    def believing(self, region: Tensor) -> Cases:
        """The cases, at every time known of them, as somebody sees them who believes in `region`,
        (B, H, W)."""
        known = {t: dataclasses.replace(c, region=region, known={}) for t, c in self.known.items()}
        for case in known.values():
            case.known = known
        return dataclasses.replace(self, region=region, known=known)


def grid(p: Model, t: int) -> list[int]:
    """The times at which a sample of SAMPLING steps is still to be denoised, from t down.

    Args:
        p: the model.
        t: a time of the sampling grid, that of `mk.sample` with 25 steps.

    Returns: integers, falling from t to 0.
    Raises ValueError where t is no time of the grid.
    Cost: no pass.

    >>> from mathkit.chapters import treatment
    >>> treatment.grid(mk.load_model("alice"), 125)
    [125, 83, 42, 0]
    """
    times = timesteps(p, p.top, SAMPLING)
    if t not in times:
        raise ValueError(f"t = {t} is no time of the sampling grid {times}")
    return times[times.index(t) :]


def trajectory(p: Model, seed: int, index: Sequence[int], t: int) -> Tensor:
    """x_t on the samples' own way down: the state of `mk.sample` at the grid time t.

    Args:
        p: the model.
        seed: of the samples.
        index: which samples.
        t: a time of the sampling grid.

    Returns: (B, *shape).
    Raises ValueError where t is no time of the grid, and for a bad seed or index.
    Cost: for each sample the network calls from T to t.

    >>> from mathkit.chapters import treatment
    >>> treatment.trajectory(mk.load_model("alice"), seed=1, index=[4, 7], t=957).shape
    torch.Size([2, 3, 64, 64])
    """
    grid(p, t)
    return reached(walk(p, start(p, seed, list(index)), grid(p, p.top)), t)


def descend(p: Model, x: Tensor, t: int, to: int) -> Tensor:
    """x at one grid time denoised as far as another.

    Args:
        p: the model.
        x: (B, *shape), at time t.
        t: a time of the sampling grid.
        to: a later stop on the way down, a grid time <= t.

    Returns: (B, *shape), at time `to`.
    Raises ValueError where t is no time of the grid, or the way does not come by `to`.
    Cost: B network calls for each grid time between.

    >>> from mathkit.chapters import treatment
    >>> p = mk.load_model("alice")
    >>> treatment.descend(p, torch.zeros(1, *p.shape), 42, to=0).shape
    torch.Size([1, 3, 64, 64])
    """
    return reached(walk(p, x, grid(p, t)), to)


def admit(p: Model, seed: int, index: Sequence[int], t: int, steps: int | None = None) -> Cases:
    """Sample, read and fit: the cases of (seed, index) at one time.

    Args:
        p: the model, of the show.
        seed: of the samples.
        index: which samples.
        t: a time of the sampling grid.
        steps: network calls from t on; None takes the sample's own times, so that the untreated
            image is `mk.sample`'s.

    Returns: `Cases`, with the truth about their cure.
    Raises ValueError where t is no time of the grid, and as `mk.denoise` does.
    Cost: 25 network calls, 60 renders and their gradients for each.

    >>> from mathkit.chapters import treatment
    >>> cases = treatment.admit(mk.load_model("alice"), seed=1, index=[4], t=999, steps=1)
    >>> cases.q.shape, cases.region.shape
    (torch.Size([1, 13]), torch.Size([1, 64, 64]))
    """
    xt = trajectory(p, seed, index, t)
    x0 = finish(p, xt, t, steps)
    q, distance = fit_factors(x0)
    cure = q[:, STRANGER, None, None, None] * puppets.counterfactual(q, x0.shape[-1])
    spot = region(puppets.counterfactual(imagined(q, seed, index), x0.shape[-1]))
    return Cases(seed, list(index), t, steps, xt, x0, q, distance, cure, spot)


def imagined(q: Tensor, seed: int, index: Sequence[int]) -> Tensor:
    """The factors, with the place of a Stranger who might have stood there drawn for the healthy.

    Args:
        q: (B, 13).
        seed: of the samples; the place depends on (seed, index) alone.
        index: which samples, one for each row of q.

    Returns: (B, 13); rows with stranger >= .5 are as they were.
    Raises ValueError where index and q differ in length.
    Cost: no pass.

    >>> from mathkit.chapters import treatment
    >>> q = mk.puppets.sample_factors(1, seed=0, stranger=0)
    >>> (treatment.imagined(q, seed=1, index=[4]) != q)[0].nonzero().flatten().tolist()  # the place
    [11, 12]
    """
    out = q.clone()
    for row, i in zip(out, index, strict=True):
        if row[STRANGER] < 0.5:
            draw = torch.Generator().manual_seed(_mixed(seed, i, 2))
            row[STRANGER + 1 :] = torch.rand(2, generator=draw).to(row)
    return out


def at(p: Model, cases: Cases, t: int) -> Cases:
    """The same cases at another grid time; they keep it, so the second time costs nothing.

    Args:
        p: the model.
        cases: at any time of the sampling grid.
        t: the time wanted, one of the grid.

    Returns: `Cases` with another t and x_t, and steps = None; the rest as it was.
    Raises ValueError where t is no time of the grid.
    Cost: for each case the network calls from T to t, the first time.

    >>> from mathkit.chapters import treatment
    >>> case = treatment.Cases(0, [0], 957, 24, *[torch.zeros(1, 3, 64, 64)] * 6)
    >>> treatment.at(mk.load_model("alice"), case, 999).t
    999
    """
    if cases.steps is None:
        cases.known.setdefault(cases.t, cases)
    if t not in cases.known:
        xt = trajectory(p, cases.seed, cases.index, t)
        cases.known[t] = dataclasses.replace(cases, t=t, steps=None, xt=xt)
    return cases.known[t]


def path(p: Model, cases: Cases) -> dict[int, Tensor]:
    """The untreated way down, x_t of the cases at every time of the sampling grid.

    Args:
        p: the model.
        cases: at any time of the grid; they keep what was found, as with `at`.

    Returns: time -> (B, *shape), and at -1 the picture.
    Cost: 25 network calls for each.

    >>> from mathkit.chapters import treatment
    >>> p = mk.diffusion.gaussian.GaussianModel(torch.zeros(3, 4, 4), torch.eye(48))
    >>> case = treatment.Cases(0, [0], 500, 24, *[torch.zeros(1, 3, 4, 4)] * 6)
    >>> len(treatment.path(p, case)), len(case.known)
    (26, 25)
    """
    found = dict(walk(p, start(p, cases.seed, cases.index), grid(p, p.top)))
    for t in grid(p, p.top):
        there = dataclasses.replace(cases, t=t, steps=None, xt=found[t])
        cases.known.setdefault(t, there)
    return found


def finish(p: Model, x: Tensor, t: int, steps: int | None = None, **how: Any) -> Tensor:
    """The image that x at t leads to.

    Args:
        p: the model.
        x: (B, *shape), at time t.
        t: its time.
        steps: network calls from t on; None takes the sample's own times, as in `admit`.
        how: what else `mk.denoise` takes.

    Returns: (B, *image_shape), clipped to [-1, 1].
    Raises ValueError as `mk.denoise` does, and with steps = None where t is no time of the sampling
    grid.
    Cost: B steps network calls.

    >>> from mathkit.chapters import treatment
    >>> p = mk.load_model("alice")
    >>> treatment.finish(p, torch.zeros(1, *p.shape), 500, steps=2).shape
    torch.Size([1, 3, 64, 64])
    """
    own = {"times": grid(p, t)} if steps is None else {}
    return finished(p, x, t, steps, **own, **how)


def read_stranger(images: Tensor) -> Tensor:
    """Whether each image (B, 3, 64, 64) is read as ill, P(Stranger) > .5: (B,) of bool."""
    return read_factors(images)[:, STRANGER] > 0.5


def completions(
    p: Model, seed: int, i: int, t: int, count: int = 16, steps: int = 12
) -> tuple[Tensor, Tensor]:
    """What may become of x_t, the state of sample (seed, i) at a grid time: several endings.

    Every ending goes down with eta = 1 and its own noise; the share that shows the Stranger is
    P(Stranger | x_t) by trial.

    Args:
        p: the model.
        seed: of the sample.
        i: which sample.
        t: a time of the sampling grid.
        count: how many endings.
        steps: network calls of each.

    Returns: the endings (count, *shape), clipped to [-1, 1], and x_t (1, *shape).
    Raises ValueError where t is no time of the grid, and as `mk.denoise` does.
    Cost: count * steps network calls, and those from T to t.

    >>> from mathkit.chapters import treatment
    >>> endings, xt = treatment.completions(mk.load_model("alice"), 1, 4, t=999, count=2, steps=1)
    >>> endings.shape, xt.shape
    (torch.Size([2, 3, 64, 64]), torch.Size([1, 3, 64, 64]))
    """
    xt = trajectory(p, seed, [i], t)
    many = xt.expand(count, *xt.shape[1:]).contiguous()
    return denoise(p, many, t, steps, eta=1.0, seed=i, index=range(count)).clamp(-1, 1), xt


def region(cure: Tensor, level: float = 0.05, grow: int = 2) -> Tensor:
    """Where |D*| > level in some channel, dilated by `grow` pixels: (B, H, W) of 0 and 1."""
    spot = (cure.abs().amax(1, keepdim=True) > level).float()
    return F.max_pool2d(spot, 2 * grow + 1, 1, grow)[:, 0]


def inside(case: Cases) -> LinearMap:
    """The map that keeps the pixels of the case's region."""
    return mask(case.region.expand(case.xt.shape)[0])


def outside(case: Cases) -> LinearMap:
    """The map that keeps the pixels outside the case's region."""
    return mask(1 - case.region.expand(case.xt.shape)[0])


def gaussian(case: Cases, k: int = 1, stream: int = 0) -> Tensor:
    """Random unit vectors of x_t's shape, the same for the same (seed, index, stream).

    Args:
        case: one case.
        k: how many.
        stream: another number draws others.

    Returns: (k, *shape), each of length 1.
    Cost: no pass.

    >>> from mathkit.chapters import treatment
    >>> case = treatment.Cases(0, [0], 957, 24, *[torch.zeros(1, 3, 64, 64)] * 6)
    >>> treatment.gaussian(case, 2).flatten(1).norm(dim=1)
    tensor([1.0000, 1.0000])
    """
    draw = torch.Generator().manual_seed(_mixed(case.seed, case.index[0], stream))
    return unit(torch.randn(k, *case.xt.shape[1:], generator=draw).to(case.xt))


def _mixed(*words: int) -> int:
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def judge(cases: Cases, treated: Tensor, limit: float, unrelated: float) -> dict[str, Tensor]:
    """What the treatment did to each case: its outcome, and how far it missed the true cure.

    Destroyed: the distance to the manifold exceeds `limit`. Cured: P(Stranger) < .5 and, inside the
    region, the mean |x' - x0 - D*| is under half of the mean |D*|; for the healthy, D* = 0, the
    first alone, so that their 0 is a new Stranger.

    Args:
        cases: the untreated, with x0, D*, q and region.
        treated: x' (B, 3, 64, 64), in [-1, 1].
        limit: distance to the manifold beyond which a picture counts as destroyed.
        unrelated: the unit of side effects, as `mk.puppets.unrelated_distance()`.

    Returns: (B,) tensors by name. outcome: 0 ill, 1 cured, 2 destroyed (OUTCOMES). p: P(Stranger).
    distance: to the manifold. side: the side effect, mean distance of x' to the segment from x0 to
    x0 + D* in each pixel and channel, over `unrelated`: neither leaving the Stranger nor taking him
    out is damage, anything else is, inside the region as outside. error: mean |x' - x0 - D*| over
    the same. outside: mean |x' - x0| outside the region, over the same. left: the share of D* that
    is left, 0 for the healthy. factor and worst: the mean and the largest change of the ten
    factors.
    Raises ValueError as `mk.read_factors` does.
    Cost: for each 60 renders and their gradients.

    >>> from mathkit.chapters import treatment
    >>> q = mk.puppets.sample_factors(1, seed=0, stranger=1)
    >>> x0, cure, off = mk.puppets.render(q), mk.puppets.counterfactual(q), torch.zeros(1)
    >>> case = treatment.Cases(0, [0], 957, 24, x0, x0, q, off, cure, treatment.region(cure))
    >>> marks = treatment.judge(case, x0 + cure, limit=0.08, unrelated=0.25)  # the true cure
    >>> treatment.OUTCOMES[int(marks["outcome"])], round(float(marks["side"]), 3)
    ('cured', 0.0)
    """
    q, distance = fit_factors(treated)
    p = read_factors(treated)[:, STRANGER]
    gap = (treated - cases.x0 - cases.cure).abs()
    inside = cases.region[:, None]
    whole = (cases.cure.abs() * inside).sum((1, 2, 3))
    left = torch.where(whole > 0, (gap * inside).sum((1, 2, 3)) / whole.clamp(min=1e-9), 0.0)
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
        "error": side_effect(treated, (cases.x0 + cases.cure).expand_as(gap), unrelated).to(gap),
        "outside": far.mean((1, 2, 3)) / unrelated,
        "factor": change.mean(1),
        "worst": change.amax(1),
    }


def record(marks: dict[str, Tensor], j: int) -> dict[str, Any]:
    """The marks of case j as plain numbers of four digits, the outcome as an integer."""
    plain: dict[str, Any] = {name: round(float(value[j]), 4) for name, value in marks.items()}
    return plain | {"outcome": int(marks["outcome"][j])}


def dose(strengths: Sequence[float], effects: Sequence[float], target: float) -> float:
    """The strength at which the mean side effect reaches a target, linear between measurements.

    (0, 0) is the first point. Where the effects rise and fall it is the first crossing: `np.interp`
    sees the two points around it, for a whole curve that falls in places would mislead it.

    Args:
        strengths: rising, > 0.
        effects: the side effect at each, finite.
        target: the side effect wanted, >= 0.

    Returns: where the target is first reached; where it never is, the largest strength.
    Raises ValueError for strengths, effects or a target that are not of this kind.
    Cost: no pass.

    >>> from mathkit.chapters import treatment
    >>> treatment.dose([1.0, 2.0], [0.1, 0.3], target=0.2)
    1.5
    """
    s, e = (np.array([0.0, *points]) for points in (strengths, effects))
    rising = len(s) == len(e) and bool((np.diff(s) > 0).all())
    if not (rising and np.isfinite([*s, *e]).all() and 0 <= target < np.inf):
        raise ValueError(
            "dose needs strengths that rise from above 0, one finite effect for each, and a target "
            f">= 0; got {list(strengths)}, {list(effects)} and {target}"
        )
    if not (e >= target).any():
        return float(s[-1])
    first = int((e >= target).argmax())
    around = slice(max(first - 1, 0), first + 1)
    return float(np.interp(target, e[around], s[around]))


REST = 12  # directions of the rest that the aftercare may move


@functools.lru_cache(maxsize=1)
def mean_map(p: Model, case: Cases) -> LinearMap:
    """The Jacobian of the posterior mean at a case's x_t, kept for the last one asked.

    Args:
        p: the model.
        case: one case.

    Returns: a `LinearMap` of x_t's shape on both sides.
    Cost: as `mk.jacobian` at one point.

    >>> from mathkit.chapters import treatment
    >>> p = mk.diffusion.gaussian.GaussianModel(torch.zeros(3, 4, 4), torch.eye(48))
    >>> case = treatment.Cases(0, [0], 500, 24, *[torch.zeros(1, 3, 4, 4)] * 6)
    >>> treatment.mean_map(p, case).shape
    (48, 48)
    """
    return jacobian(posterior_mean(p, case.t), case.xt)


@functools.lru_cache(maxsize=16)
@any_of_equals()  # where the k-th and the next are stretched alike, either may be projected out
def rest_svd(p: Model, case: Cases, k: int) -> SVD:
    """`svd` of the Jacobian of the posterior mean outside the region at x_t, kept for the last 16.

    Args:
        p: the model.
        case: one case.
        k: its rank.

    Returns: `SVD`, rows of U (k, *shape) zero inside the region.
    Raises ValueError as `mk.svd` does for k. That the k-th and the next are stretched alike is no
    matter here: either may be projected out.
    Cost: one `mk.svd` of rank k through the network, the first time.

    >>> from mathkit.chapters import treatment
    >>> p = mk.diffusion.gaussian.GaussianModel(torch.zeros(3, 4, 4), torch.arange(48.0).diag())
    >>> case = treatment.Cases(0, [0], 500, 24, *[torch.zeros(1, 3, 4, 4)] * 6)  # an empty region
    >>> treatment.rest_svd(p, case, 1).V.abs().argmax()  # the axis of the largest variance
    tensor(47)
    """
    return svd(outside(case) @ mean_map(p, case), k)


@functools.lru_cache(maxsize=8)
def encoder_svd(p: Model, case: Cases, k: int) -> SVD:
    """`svd` of rank k of the Jacobian of x_t -> h at the case's x_t."""
    return svd(jacobian(encoder(p, case.t), case.xt), k)


def towards(p: Model, case: Cases, average: Tensor) -> Tensor:
    """average - E(x_t): the way from the case's posterior mean to the average puppet."""
    with torch.no_grad():
        return average.to(case.xt) - p.clean(case.xt, case.t)


ROUNDS = 2  # of small steps at each time of the aftercare
RANK = 1e-5  # singular values below this share of the largest count as zero


def settle(p: Model, case: Cases, x: Tensor, rounds: int = ROUNDS) -> Tensor:
    """x <- x + A^+ r, a few times: small steps that take the rest of the picture back.

    A: the Jacobian of the posterior mean E outside the case's region, at the case's own x_t; A^+
    its pseudo-inverse on the top REST singular directions, V^T S^-1 U; r = E(x_t) - E(x) there, the
    drift since the untreated x_t.

    Args:
        p: the model.
        case: one case.
        x: (B, *shape), at the case's time.
        rounds: how many steps.

    Returns: (B, *shape).
    Cost: one `svd` of rank REST for a case, and `rounds` network calls an item.

    >>> from mathkit.chapters import treatment
    >>> p = mk.diffusion.gaussian.GaussianModel(torch.zeros(3, 4, 4), torch.arange(48.0).diag())
    >>> case = treatment.Cases(0, [0], 500, 24, *[torch.zeros(1, 3, 4, 4)] * 6)  # x_t = 0
    >>> drift = torch.eye(48)[47:].reshape(1, 3, 4, 4)  # along the top singular direction
    >>> bool(treatment.settle(p, case, drift).abs().max() < 1e-2)
    True
    """
    U, S, V = rest_svd(p, case, REST)
    inverse = torch.where(S > RANK * S[0], 1 / S, 0.0)  # a region that is everything leaves no rest
    with torch.no_grad():
        wanted = p.clean(case.xt, case.t)
        for _ in range(rounds):
            r = outside(case).push(wanted - p.clean(x, case.t)).flatten(1)
            x = x + (r @ U.flatten(1).T * inverse @ V.flatten(1)).reshape(x.shape)
    return x


def cared_for(
    p: Model,
    case: Cases,
    moved: Tensor,
    times: Sequence[int],
    again: Callable[[Cases, Tensor], Tensor] | None = None,
) -> Tensor:
    """A moved x_t, denoised from the case's t to the last of some times, settled at each.

    Args:
        p: the model.
        case: one case.
        moved: (B, *shape), at the case's time.
        times: grid times below the case's own, falling.
        again: what is done to x at each before it is settled, given the case at that time.

    Returns: (B, *shape), at the last of the times.
    Cost: B network calls for each grid time between, and at each of the times as `at` and `settle`.

    >>> from mathkit.chapters import treatment
    >>> case = treatment.Cases(0, [0], 500, 24, *[torch.zeros(1, 3, 64, 64)] * 6)
    >>> x = torch.ones(1, 3, 64, 64)
    >>> torch.equal(treatment.cared_for(mk.load_model("alice"), case, x, times=[]), x)  # no care
    True
    """
    now = case.t
    for t in times:
        there, moved, now = at(p, case, t), descend(p, moved, now, t), t
        moved = settle(p, there, again(there, moved) if again else moved)
    return moved
