"""What switching neurons off, or turning h, does to patients: the edits and their strengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mathkit.chapters.neurons import (
    apart,
    correlations,
    edited,
    mean_difference,
    regressions,
    silenced,
)
from mathkit.chapters.treatment import Cases, judge, record, trajectory
from mathkit.diffusion.encoder import Map, encoder
from mathkit.diffusion.model import Model
from mathkit.show.puppets import CONTINUOUS, STRANGER

TIME, STEPS = 957, 24  # the first grid time below pure noise, and the network calls from there
TRIAL, KIND = 8.0, 0.15  # strength at which every neuron is tried, and the side effect allowed
_ONE: tuple[float, ...] = (1, 2, 4, 8, 16)
# Of the mean difference a quarter as much, as all neurons take part.
STRENGTHS = {
    "answers most": _ONE,
    "best by trial": _ONE,
    "another": _ONE,
    "mean difference": tuple(s / 4 for s in _ONE),
}
READABLE = (0, 1, 2, 7, 9)  # the dials that h tells most of, beside the Stranger
TURNED = {
    "apart": (1.0, 2.0, 4.0),
    "random": (2.0, 4.0),
    "head tilt": (4.0,),
    "by place": (0.5, 1.0, 2.0),
    "random by place": (2.0,),
}


def place_sums(p: Model, seed: int, index: Sequence[int], t: int, ill: Tensor) -> Tensor:
    """Sums over the ill and over the healthy of the whole bottleneck at x_t: (2, channels, h, w).

    ill (B,) of bool. Cost: `trajectory` and one encoder call for each sample.
    """
    xt = trajectory(p, seed, index, t)
    with torch.no_grad():
        h = p.chunked(xt, lambda part, _: encoder(p, t)(part))
    return torch.stack([h[ill].sum(0), h[~ill].sum(0)])


def turned(table: Mapping[str, Any], places: Tensor, i: int) -> dict[str, Tensor]:
    """The directions of h that patient i gets in TURNED; table: the stored "neurons".

    All pooled ones have the length of the pooled mean difference, all by place that of `places`,
    the mean difference by place (channels, h, w). "apart": minus the Stranger's regression
    direction, less its parts along those of READABLE; "head tilt": minus that dial's own; "random":
    drawn at random for this patient.
    """
    H, Y = torch.tensor(table["h"]), torch.tensor(table["factors"])
    B = regressions(H, Y)
    pooled = mean_difference(H, Y[:, STRANGER] > 0.5, places=places[0].numel()).norm()
    draw = torch.Generator().manual_seed(i)

    def sized(v: Tensor, length: Tensor) -> Tensor:
        v = v if v.ndim == 3 else v[:, None, None]
        return v * (length / v.norm())

    return {
        "apart": sized(-apart(B[STRANGER], B[list(READABLE)]), pooled),
        "random": sized(torch.randn(len(places), generator=draw), pooled),
        "head tilt": sized(-B[CONTINUOUS.index("head_tilt")], pooled),
        "by place": places,
        "random by place": sized(torch.randn(places.shape, generator=draw), places.norm()),
    }


def planned_edits(table: Mapping[str, Any], i: int) -> dict[str, Tensor | Map]:
    """The edits of h that patient i gets, by row name; table: the stored "neurons".

    "answers most": the neuron whose activation correlates most with the Stranger; "best by trial":
    the one with the lowest P(Stranger) of those whose mean side effect at the trial was at most
    KIND; "another": one drawn at random for this patient; "mean difference": all neurons at once,
    the supervised reference.
    """
    H, ill = torch.tensor(table["h"]), torch.tensor(table["factors"])[:, STRANGER] > 0.5
    answers = int(correlations(H, ill[:, None].float())[:, 0].abs().argmax())
    p, side = (torch.tensor(table["trials"][k]) for k in ("p", "side"))
    best = int(torch.where(side <= KIND, p, torch.inf).argmin())
    draw = torch.Generator().manual_seed(i)
    another = int((answers + torch.randint(1, H.shape[1], (), generator=draw)) % H.shape[1])
    return {
        "answers most": silenced(answers),
        "best by trial": silenced(best),
        "another": silenced(another),
        "mean difference": mean_difference(H, ill, places=64),
    }


def try_edits(
    p: Model,
    case: Cases,
    edits: Mapping[str, Tensor | Map],
    strengths: Mapping[str, Sequence[float]],
    limit: float,
    unrelated: float,
) -> list[dict[str, Any]]:
    """Every edit at each of its strengths on one case: a flat record each, by `judge`."""
    records = []
    for name, dh in edits.items():
        for s in strengths[name]:
            marks = judge(case, edited(p, case, dh, s), limit, unrelated)
            head = {"row": name, "index": case.index[0], "strength": s}
            records.append(head | record(marks, 0))
    return records


def more_cured(
    one: Sequence[Mapping[str, Any]],
    other: Sequence[Mapping[str, Any]],
    dose: float,
    resamples: int = 2000,
) -> tuple[float, float, float]:
    """How many more of 1 the one row cures than the other at a mean side effect of `dose`, between
    the strengths by straight lines: the mean and the 2.5 and 97.5 % points over patients drawn
    again, each with its outcomes in both rows."""
    count = len(one[0]["side"])
    draws = np.random.default_rng(0).integers(count, size=(resamples, count))

    def cured(row: Sequence[Mapping[str, Any]]) -> np.ndarray:
        side = np.array([e["side"] for e in row])[:, draws].mean(2)
        share = (np.array([e["outcome"] for e in row]) == 1)[:, draws].mean(2)
        return np.array([np.interp(dose, x, y) for x, y in zip(side.T, share.T, strict=True)])

    more = cured(one) - cured(other)
    low, high = np.quantile(more, (0.025, 0.975))
    return float(more.mean()), float(low), float(high)
