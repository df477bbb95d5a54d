"""Single neurons of the bottleneck: what they answer to, and what switching one off does.

A neuron is a channel of h; its activation is the channel summed over its places ("pooled").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .diffusion import denoise
from .factors import read_factors
from .hspace import At, encoder, inject
from .models import Model
from .puppets import STRANGER
from .treatment import Cases, judge, record, trajectory, untreated

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


def activations(
    p: Model, seed: int, index: Sequence[int], t: int, steps: int = 12
) -> dict[str, list[list[float]]]:
    """h: the pooled bottleneck at x_t of the samples (seed, index), (B, channels); factors: what is
    read off the image that x_t leads to, ten dials and P(Stranger), (B, 11). As plain lists.

    Cost for one sample: the network calls from T to t and `steps` more.
    """
    xt = trajectory(p, seed, index, t)
    factors = read_factors(untreated(p, xt, t, steps))[:, : STRANGER + 1]
    with torch.no_grad():
        h = p.chunked(xt, lambda part, _: encoder(p, t, pool="sum")(part))
    return {
        "h": [[float(f"{v:.4g}") for v in row] for row in h.tolist()],
        "factors": [[round(v, 3) for v in row] for row in factors.tolist()],
    }


def correlations(H: Tensor, Y: Tensor) -> Tensor:
    """Pearson correlation of each column of H (B, m) with each column of Y (B, j): (m, j).

    r = mean((h - mean h)(y - mean y)) / (std h std y); 0 where a column is constant. Raises
    ValueError unless both are matrices with the same number of rows, at least 2.
    """
    if H.ndim != 2 or Y.ndim != 2 or len(H) != len(Y) or len(H) < 2:
        raise ValueError(f"H and Y are (B, m) and (B, j), got {tuple(H.shape)}, {tuple(Y.shape)}")
    h, y = (torch.nn.functional.normalize(X - X.mean(0), dim=0) for X in (H.double(), Y.double()))
    return (h.T @ y).to(H)


def silenced(channel: int) -> At:
    """The change dh(h) that takes one channel out: -h there, 0 elsewhere; for `mk.inject`.

    At strength s the channel is scaled by 1 - s: 1 switches it off, more turns it round. Raises
    ValueError (when used) for a channel that h does not have.
    """

    def dh(h: Tensor) -> Tensor:
        if not 0 <= channel < h.shape[1]:
            raise ValueError(f"h has the channels 0 to {h.shape[1] - 1}, got {channel}")
        change = torch.zeros_like(h)
        change[:, channel] = -h[:, channel]
        return change

    return dh


def mean_difference(H: Tensor, ill: Tensor, places: int) -> Tensor:
    """dh (channels, 1, 1): mean pooled activation of the healthy minus that of the ill, a place.

    H (B, channels), ill (B,) of bool, places: over how many the pooling summed. The supervised
    reference for a direction of h. Raises ValueError where one of the groups is empty.
    """
    if not 0 < int(ill.sum()) < len(ill):
        raise ValueError(f"both groups are needed, got {int(ill.sum())} ill of {len(ill)}")
    return ((H[~ill].mean(0) - H[ill].mean(0)) / places)[:, None, None]


def edited(p: Model, cases: Cases, dh: Tensor | At, strength: float) -> Tensor:
    """The images that x_t leads to with h + strength dh for h at every step, clipped to [-1, 1].

    A tensor dh (channels, 1, 1) is the same at every place. Cost: 2 B steps network calls.
    """
    change = (lambda h: dh.to(h).expand_as(h)) if isinstance(dh, Tensor) else dh
    return denoise(
        p, cases.xt, cases.t, cases.steps, h_edit=inject(change, cases.t, 0, strength)
    ).clamp(-1, 1)


def edits(table: Mapping[str, Any], i: int) -> dict[str, Tensor | At]:
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


def sweep(
    p: Model,
    case: Cases,
    table: Mapping[str, Any],
    limit: float,
    unrelated: float,
) -> list[dict[str, Any]]:
    """Every row of STRENGTHS at every strength on one case: a flat record each, by `judge`."""
    records = []
    for name, dh in edits(table, case.index[0]).items():
        for s in STRENGTHS[name]:
            marks = judge(case, edited(p, case, dh, s), limit, unrelated)
            head = {"row": name, "index": case.index[0], "strength": s}
            records.append(head | record(marks, 0))
    return records
