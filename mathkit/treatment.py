"""The treatment: the rows of the table, what each does to one x_t, and the sweep over doses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .cases import Cases, at, descend, finish, gaussian, judge, outside, record
from .diffusion import posterior_mean
from .directions import REST, TRIED, Kept, Row, direction, rest_svd
from .hspace import encoder, guide, h_step, inject, move, normalise, shoot
from .models import Model

STEPS = 4  # of guidance and of shooting
ROUNDS = 2  # of small steps at each time of the aftercare


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
        return guide(p, case.xt, case.t, v, strength, STEPS)[-1]
    if row.edit == "shoot":
        return shoot(_shot_map(p, case, row), case.xt, v, strength, STEPS, k=TRIED)[-1]
    if row.edit == "move":
        return _step(p, row, case.xt, case.t, v, strength)
    raise ValueError(f'edit is "move", "guide", "shoot" or "inject", got {row.edit!r}')


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
        [_step(p, row, one[None], case.t, v, s) for one, s in zip(x, strengths, strict=True)]
    )


def _step(p: Model, row: Row, x: Tensor, t: int, v: Tensor, strength: float) -> Tensor:
    share = float(v.norm()) if row.clip else 1.0
    return move(p, x, t, v, strength * share, steps=1)[-1]


def cared_for(
    p: Model,
    case: Cases,
    moved: Tensor,
    times: Sequence[int],
    again: Callable[[Cases, Tensor], Tensor] | None = None,
) -> Tensor:
    """`moved` (B, *shape), denoised from the case's t to the last of `times`, settled at each.

    times: grid times below the case's own, falling. again: what is done to x at each before it is
    settled, given the case at that time.
    """
    now = case.t
    for t in times:
        there, moved, now = at(p, case, t), descend(p, moved, now, t), t
        moved = settle(p, there, again(there, moved) if again else moved)
    return moved


def settle(p: Model, case: Cases, x: Tensor, rounds: int = ROUNDS) -> Tensor:
    """x <- x + A^+ r, `rounds` times: small steps that take the rest of the picture back.

    A: the Jacobian of the posterior mean E outside the case's region, at the case's own x_t; A^+
    its pseudo-inverse on the top REST singular directions, V^T S^-1 U; r = E(x_t) - E(x) there,
    the drift since the untreated x_t. x: (B, *shape) at the case's time. Cost: one `svd` of rank
    REST for a case, and `rounds` network calls an item.
    """
    U, S, V = rest_svd(p, case, REST)
    with torch.no_grad():
        wanted = p.clean(case.xt, case.t)
        for _ in range(rounds):
            r = outside(case).push(wanted - p.clean(x, case.t)).flatten(1)
            x = x + (r @ U.flatten(1).T / S @ V.flatten(1)).reshape(x.shape)
    return x


def sweep(
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
