"""The rows of the treatment table, and which samples of the trial each of them treats."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from studies.methods import TRIED, Row

EDIT_TIME, AFTER = 583, (458, 333)
EARLY, STEPS = 749, (666, 583)  # where a course begins, and its further steps
SAMPLES = 400  # for the rows compared first: a share to 5 points, and 400 of 400 says over 99 %
AT_ALL_STRENGTHS = 20  # those of them at every strength: a share to 20 points, to see the trend
FEW_SAMPLES = 16  # for each of the other rows: a share to 22 points, enough for wide differences
OPENED = 100  # test samples treated when a row was added
PRIMARY, CONTROL = "aimed, course", "random, course"
CLIP = 20.0  # on development samples the pulls of the ill lie above it as a rule, others below
_AIMED = Row("", "aimed", masked=True, rest=5, supervision="region")
_MEAN = Row("", "mean", masked=True, rest=5, among=TRIED, supervision="region")
_H = Row("", "h", among=TRIED, supervision="region")
_RANDOM = Row("", "random", among=TRIED, supervision="region")
_CARRIED = Row("", "carried", key="clicked", supervision="click")
_ORACLE = Row("", "oracle", supervision="truth")


def _row(base: Row, name: str, **changes: Any) -> Row:
    return dataclasses.replace(base, name=name, **changes)


def _course(base: Row, name: str, **changes: Any) -> Row:
    return _row(base, name, t=EARLY, after=(*STEPS, *AFTER), course=STEPS, **changes)


FIRST = (  # compared on all test samples
    _course(_AIMED, PRIMARY),
    _course(_RANDOM, CONTROL),
)
OTHERS = (
    Row("random", "random"),
    _row(_RANDOM, "random, best of 6"),
    _row(_RANDOM, "random, aftercare", after=AFTER),
    Row("fresh noise", "noise"),
    Row("fresh noise, aftercare", "noise", after=AFTER),
    Row("random in the span", "span", masked=True, among=TRIED, supervision="region"),
    Row("another's direction", "another", key="clicked x", supervision="click"),
    _course(_AIMED, "aimed at noise, course", key="noise"),
    _course(_AIMED, "wrong sign, course", sign=-1),
    _row(_AIMED, "aimed"),
    _row(_AIMED, "aimed, aftercare", after=AFTER),
    _row(_AIMED, "aimed, late course", after=AFTER, course=AFTER),
    Row("PCA of h", "carried", key="pca", lift="pull", among=TRIED, supervision="region"),
    Row("h, first", "h"),
    _row(_H, "h, best of 6"),
    Row("pooled h, best of 6", "pooled", among=TRIED, supervision="region"),
    _row(_H, "h, aftercare", after=AFTER),
    _course(_H, "h, course"),
    _row(_H, "h, projected off 5", rest=5),
    _row(_H, "h, projected off 20", rest=20),
    _row(_MEAN, "masked mean", rest=0),
    _row(_MEAN, "masked mean, projected"),
    _row(_MEAN, "masked mean, projected off 20", rest=20),
    _row(_MEAN, "masked mean, aftercare", after=AFTER),
    _course(_MEAN, "masked mean, course"),
    _row(_MEAN, "masked mean, late course", after=AFTER, course=AFTER),
    _row(_CARRIED, "carried"),
    _row(_CARRIED, "carried, pinv", lift="pinv"),
    _course(_CARRIED, "carried, course"),
    Row("global", "carried", key="global", supervision="click"),
    Row("matched", "carried", key="matched", supervision="click"),
    _row(_MEAN, "masked mean, guided", edit="guide"),
    _row(_MEAN, "masked mean, normalised", normalised=True),
    _row(_MEAN, "masked mean, shooting", edit="shoot"),
    _row(_MEAN, "masked mean, boosted", boost=200),
    _row(_H, "h, guided", edit="guide"),
    _row(_H, "h, normalised", normalised=True),
    _row(_H, "h, shooting", edit="shoot"),
    _row(_H, "h, injected", edit="inject"),
    *(_row(_H, f"h at {t}", t=t) for t in (749, 666, 500, 416)),
    Row("mean difference of h", "carried", key="difference", lift="pull", supervision="labels"),
    Row("reader's gradient", "reader", supervision="labels"),
    _row(_ORACLE, "oracle"),
    _course(_ORACLE, "oracle, course"),
    Row("counterfactual", "counterfactual", supervision="truth"),
)
ADDED = (_course(_AIMED, "aimed, clipped course", clip=CLIP),)
ROWS = FIRST + OTHERS + ADDED


@dataclasses.dataclass(frozen=True)
class Part:
    """A table of the trial: its rows, and which samples they treat: the first `count` of the ill
    ones or of the healthy. late: rows that treat those after the first OPENED. minutes: what it
    takes on two cores."""

    rows: tuple[Row, ...]
    ill: bool
    count: int
    minutes: int
    late: tuple[Row, ...] = ()


TABLES = {
    "trial": Part(FIRST, ill=True, count=SAMPLES, minutes=120, late=ADDED),
    "trial_others": Part(OTHERS, ill=True, count=FEW_SAMPLES, minutes=35),
    "trial_healthy": Part(FIRST, ill=False, count=SAMPLES, minutes=110, late=ADDED),
    "trial_healthy_others": Part(OTHERS, ill=False, count=FEW_SAMPLES, minutes=25),
}


def plan_for(chosen: Mapping[str, Any], name: str, rank: int) -> dict[str, Sequence[float]]:
    """Which rows sample number `rank` of the table `name` gets, and at which strengths.

    The first AT_ALL_STRENGTHS of the ill get every strength, the others the one at the first dose
    alone, which is all that the healthy get; those get no row that needs the true cure.
    """
    part = TABLES[name]
    every = part.ill and rank < AT_ALL_STRENGTHS
    return {
        row.name: chosen["strengths"][row.name][: None if every else 1]
        for row in part.rows + (part.late if rank >= OPENED else ())
        if part.ill or row.supervision != "truth"
    }
