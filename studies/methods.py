"""How each row of the treatment table finds its direction of x_t, and how the sign is chosen."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mathkit.chapters.treatment import (
    REST,
    Cases,
    at,
    cared_for,
    encoder_svd,
    finish,
    gaussian,
    grid,
    inside,
    judge,
    mean_map,
    record,
    rest_svd,
    towards,
)
from mathkit.diffusion.edits import geodesic, guide, h_step, inject, move, normalise
from mathkit.diffusion.encoder import encoder
from mathkit.diffusion.model import Model
from mathkit.diffusion.sampling import invert, posterior_mean
from mathkit.linear.jacobian import jacobian
from mathkit.linear.subspaces import carry, project_out
from mathkit.linear.svd import svd
from mathkit.show.puppets import STRANGER
from mathkit.show.reader import reader

TRIED = 6
SPAN = 10  # directions of h in the span on which a carried one is projected
# What no rule has to turn round: its sign is part of what it is told.
GIVEN = ("carried", "another", "noise", "reader", "oracle", "counterfactual")
WORDS = {
    "kind": ("random", "h", "pooled", "mean", "span", "aimed", *GIVEN),
    "lift": ("isometry", "pinv", "pull"),
    "edit": ("move", "guide", "shoot", "inject"),
    "supervision": ("none", "click", "region", "labels", "truth"),
}
Kept = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the treatment table: how its direction of x_t is found, and what is done with it.

    Plain data, as the committed protocol lists it; every word is one of WORDS.

    kind: what the candidates are.
        "random": drawn. "noise": none, fresh noise instead.
        "h", "pooled", "mean": the top right singular vectors of the encoder, of the encoder with h
        summed over its places, of the posterior mean.
        "span": random orthonormal vectors of the span of the top TRIED of "mean".
        "aimed": J^T (average - E), the way to the average puppet pulled back through the Jacobian
        of the posterior mean E, one VJP; under the key "noise" a random way in its place.
        "carried": the directions of h kept under `key`, lifted to x_t. "another": another sample's
        direction of x_t as it is.
        "reader", "oracle", "counterfactual": references, see `reference`.
    masked: the map, or what is pulled, keeps only the region's pixels.
    rest: r', the directions of the map to the rest that are projected out.
    among: of how many candidates the rule of `direction` chooses; 1 takes the first.
    supervision: what the rule is told beyond x_t and the average puppet.
    key: of the kept directions, see kind.
    lift: how a carried u becomes v, "isometry" or "pinv" (`mk.transport`) or "pull", J^T u.
    sign: -1 goes the wrong way on purpose.
    t: the time of the edit, None the common one.
    edit: how far it goes along v, by the functions of these names.
    normalised: eq. 4 of 2302.12469 afterwards.
    after: times of the aftercare (`treatment.settle`).
    course: those of them at which the step is taken again, along the direction found there.
    boost: below this time the way down is stochastic, eta = 1.
    clip: the length of an aimed row's pull from which on a step is whole, a shorter one makes it as
        much shorter (gradient clipping); 0: every step is whole.
    """

    name: str
    kind: str
    masked: bool = False
    rest: int = 0
    among: int = 1
    supervision: str = "none"
    key: str = ""
    lift: str = "isometry"
    sign: int = 1
    t: int | None = None
    edit: str = "move"
    normalised: bool = False
    after: tuple[int, ...] = ()
    course: tuple[int, ...] = ()
    boost: int | None = None
    clip: float = 0.0

    def __post_init__(self) -> None:
        for name in ("after", "course"):  # JSON gives lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, words in WORDS.items():
            if getattr(self, name) not in words:
                raise ValueError(
                    f"row {self.name!r}: {name} is one of {', '.join(words)}; "
                    f"got {getattr(self, name)!r}"
                )
        if not set(self.course) <= set(self.after) or (self.course and self.edit != "move"):
            raise ValueError(f"row {self.name!r}: a course is of moves, at times given by after")
        if self.clip and (self.clip < 0 or (self.kind, self.edit) != ("aimed", "move")):
            raise ValueError(
                f"row {self.name!r}: clip is a length > 0, of the pull of an aimed row that moves; "
                f"got {self.clip} for kind {self.kind!r} and edit {self.edit!r}"
            )


def direction(p: Model, case: Cases, row: Row, average: Tensor, kept: Kept | None = None) -> Tensor:
    """The unit direction of x_t that `row` prescribes for one case, (1, *shape); of a row with a
    clip, of the length min(1, |pull| / clip).

    Index and sign: of the row's candidates v_i the one with the largest |<J v_i, average - E>|, in
    the sign that makes the product positive, so that the posterior mean E moves towards the
    average puppet; where the row knows the region, the product is taken inside it. J: the Jacobian
    of the posterior mean. Rows of a kind in GIVEN bring their sign along. kept: the directions that
    rows of kind "carried" and "another" use. Cost for one case: a few dozen passes of the encoder
    or of the network.
    """
    found = candidates(p, case, row, average, kept)
    if row.kind in GIVEN and len(found) == 1:
        return row.sign * found
    pushed = mean_map(p, case).push(found)
    seen = inside(case).push(pushed) if row.supervision == "region" else pushed
    product = (seen * towards(p, case, average)).sum((1, 2, 3))
    i = int(product.abs().argmax())
    return found[i : i + 1] * (row.sign if product[i] >= 0 else -row.sign)


def candidates(
    p: Model, case: Cases, row: Row, average: Tensor, kept: Kept | None = None
) -> Tensor:
    """The row's directions before index and sign are chosen, (row.among, *shape)."""
    if row.kind in ("random", "noise"):
        return gaussian(case, row.among)
    if row.kind == "aimed":
        target = gaussian(case, stream=4) if row.key == "noise" else towards(p, case, average)
        V = mean_map(p, case).pull(inside(case).push(target) if row.masked else target)
    elif row.kind in ("carried", "another"):
        V = _kept(p, case, row, kept)
    elif row.kind in ("reader", "oracle", "counterfactual"):
        V = reference(p, case, row.kind)
    elif row.kind == "span":
        V = local_directions(p, case, "mean", row.masked, TRIED)
        Q = torch.linalg.qr(gaussian(case, TRIED, stream=3).flatten(1)[:, :TRIED]).Q
        V = (Q[: row.among] @ V.flatten(1)).reshape(row.among, *V.shape[1:])
    else:
        V = local_directions(p, case, row.kind, row.masked, row.among)
    if row.rest:
        V = project_out(V, rest_svd(p, case, max(row.rest, REST)).V[: row.rest])
    return _unit(V, row.clip)


def _kept(p: Model, case: Cases, row: Row, kept: Kept | None) -> Tensor:
    if kept is None or row.key not in kept:
        raise ValueError(f"row {row.name!r} needs the kept directions {row.key!r}: give `kept`")
    rows = kept[row.key].to(case.xt)
    if row.among == 1:
        rows = rows[case.index[0] % len(rows)][None]
    if row.kind == "another":
        return rows[: row.among]
    if row.lift == "pull":
        return jacobian(encoder(p, case.t), case.xt).pull(rows[: row.among])
    r = encoder_svd(p, case, SPAN)
    return torch.stack([carry(u, r, row.lift)[0] for u in rows[: row.among]])


@functools.lru_cache(maxsize=16)
def local_directions(p: Model, case: Cases, kind: str, masked: bool, k: int) -> Tensor:
    """The top k right singular vectors at x_t of the encoder ("h", "pooled") or of the posterior
    mean ("mean"), which alone can be masked."""
    if kind == "mean":
        A = mean_map(p, case)
        return svd(inside(case) @ A if masked else A, k).V
    if kind == "h" and k <= SPAN:
        return encoder_svd(p, case, SPAN).V[:k]
    return svd(jacobian(encoder(p, case.t, "sum" if kind == "pooled" else None), case.xt), k).V


def reference(p: Model, case: Cases, kind: str) -> Tensor:
    """Directions that know too much, (1, *shape), to see how far one can get.

    "reader": against the gradient of the factor reader's logit of P(Stranger) at the posterior
    mean (labels). "oracle": J^T D*, by which a first-order step gains most along the true cure.
    "counterfactual": from x_0 inverted to x_0 + D* inverted, the step that by itself ends there.
    """
    if kind == "oracle":
        return _unit(mean_map(p, case).pull(case.cure))
    if kind == "counterfactual":
        both = torch.cat([case.x0, (case.x0 + case.cure).clamp(-1, 1)])
        ends = invert(p, both, case.t, len(grid(p, case.t)))
        return _unit(ends[1:] - ends[:1])
    return _unit(-mean_map(p, case).pull(read_slope(p, case, STRANGER)))


def read_slope(p: Model, case: Cases, j: int) -> Tensor:
    """The gradient of the reader's j-th output at the case's posterior mean, (1, *shape)."""
    with torch.enable_grad():
        guess = p.clean(case.xt, case.t).detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(reader(str(guess.device))(guess)[:, j].sum(), guess)
    return slope


def _unit(V: Tensor, clip: float = 0.0) -> Tensor:
    return V / V.flatten(1).norm(dim=1).clamp(min=clip or 1e-12)[:, None, None, None]


GUIDED_STEPS = 4  # of guidance and of shooting


def treat(
    p: Model,
    case: Cases,
    row: Row,
    v: Tensor,
    strength: float | Sequence[float],
    find: Callable[[Cases], Tensor] | None = None,
) -> Tensor:
    """The treated images, one for each strength given, (B, *shape) in [-1, 1].

    strength: |x_t' - x_t| / |x_t| of the step itself, before normalisation and aftercare, times |v|
    where the row has a clip; of row kind "noise" the noise in x_t is turned towards fresh noise by
    the angle that gives the same length; of edit "inject" the length of dh = s |h| u at every step,
    u = J v / |J v|. find: the direction at the same case's x_t of a later time, for a course, whose
    every step has this strength.
    """
    strengths = strength if isinstance(strength, Sequence) else [strength]
    if row.edit == "inject":
        dh = h_step(p, case.xt, case.t, v)
        ways = (inject(dh, case.t, 0, s) for s in strengths)
        return torch.cat([finish(p, case.xt, case.t, case.steps, h_edit=way) for way in ways])
    moved = torch.cat([_moved(p, case, row, v, s) for s in strengths])
    if row.normalised:
        moved = normalise(p, moved, case.t, like=case.xt)
    if row.after:
        again = functools.partial(_again, p, row, strengths, find) if row.course else None
        moved = cared_for(p, case, moved, row.after, again)
        return finish(p, moved, row.after[-1])
    return finish(p, moved, case.t, case.steps, boost_below=row.boost)


def prescribed(
    p: Model,
    case: Cases,
    row: Row,
    strengths: Sequence[float],
    average: Tensor,
    kept: Kept | None = None,
) -> Tensor:
    """`treat` with the direction that `row` prescribes, at its own time: (B, *shape)."""
    find = functools.partial(direction, p, row=row, average=average, kept=kept)
    there = case if row.t in (None, case.t) else at(p, case, row.t)
    return treat(p, there, row, find(there), strengths, find)


def _moved(p: Model, case: Cases, row: Row, v: Tensor, strength: float) -> Tensor:
    if row.kind == "noise":
        return renoised(p, case, strength)
    if row.edit == "guide":
        return guide(p, case.xt, case.t, v, strength, GUIDED_STEPS)[-1]
    if row.edit == "shoot":
        return geodesic(_shot_map(p, case, row), case.xt, v, strength, GUIDED_STEPS, k=TRIED)[-1]
    return _plain_step(p, row, case.xt, case.t, v, strength)


def _shot_map(p: Model, case: Cases, row: Row) -> Callable[[Tensor], Tensor]:
    """The map whose directions the row takes, for shooting."""
    if row.kind != "mean":
        return encoder(p, case.t)
    mean, spot = posterior_mean(p, case.t), case.region[:, None] if row.masked else 1.0
    return lambda x: spot * mean(x)


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


def _again(
    p: Model,
    row: Row,
    strengths: Sequence[float],
    find: Callable[[Cases], Tensor] | None,
    case: Cases,
    x: Tensor,
) -> Tensor:
    """x (len(strengths), *shape) after one more step, where `row` takes one at the case's time."""
    if case.t not in row.course:
        return x
    if find is None:
        raise ValueError(f"row {row.name!r} is a course: give `find`, the direction at later times")
    v = find(case)
    return torch.cat(
        [_plain_step(p, row, one[None], case.t, v, s) for one, s in zip(x, strengths, strict=True)]
    )


def _plain_step(p: Model, row: Row, x: Tensor, t: int, v: Tensor, strength: float) -> Tensor:
    share = float(v.norm()) if row.clip else 1.0
    return move(p, x, t, v, strength * share, steps=1)[-1]


def treat_all(
    p: Model,
    cases: Cases,
    rows: Sequence[Row],
    strengths: Callable[[Row], Sequence[float]],
    limit: float,
    unrelated: float,
    average: Tensor,
    kept: Kept | None = None,
) -> list[dict[str, Any]]:
    """Every row at every strength on every case: one flat record each, in that order."""
    records = []
    for i in range(len(cases)):
        one = cases[i]
        for row in rows:
            images = prescribed(p, one, row, strengths(row), average, kept)
            marks = judge(one.repeat(len(images)), images, limit, unrelated)
            for j, s in enumerate(strengths(row)):
                head = {"row": row.name, "index": one.index[0], "strength": s}
                records.append(head | record(marks, j))
    return records
