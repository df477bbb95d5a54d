"""Single neurons of the bottleneck: what they answer to, and what switching one off does.

A neuron is a channel of h; its activation is the channel summed over its places ("pooled").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .cases import Cases, finish, judge, record, trajectory
from .factors import read_factors
from .grassmann import project_out
from .hspace import At, encoder, inject
from .models import Model
from .puppets import CONTINUOUS, STRANGER

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


def activations(
    p: Model, seed: int, index: Sequence[int], t: int, steps: int
) -> dict[str, list[list[float]]]:
    """h: the pooled bottleneck at x_t of the samples (seed, index), (B, channels); factors: what is
    read off the image that x_t leads to, ten dials and P(Stranger), (B, 11). As plain lists.

    Cost for one sample: the network calls from T to t and `steps` more.
    """
    xt = trajectory(p, seed, index, t)
    factors = read_factors(finish(p, xt, t, steps))[:, : STRANGER + 1]
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


def regressions(H: Tensor, Y: Tensor) -> Tensor:
    """Least squares of h on the factors, H - mean = (Y - mean) B: the rows of B, (j, m).

    H (B, m), Y (B, j): b_i is how h changes per unit of factor i, the others held.
    """
    return torch.linalg.lstsq(Y - Y.mean(0), H - H.mean(0)).solution


def apart(v: Tensor, others: Tensor) -> Tensor:
    """v (m,) less its parts in the span of the rows of others (r, m)."""
    return project_out(v[None], torch.linalg.qr(others.T).Q.T)[0]


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


def edited(p: Model, cases: Cases, dh: Tensor | At, strength: float) -> Tensor:
    """The images that x_t leads to with h + strength dh for h at every step, clipped to [-1, 1].

    A tensor dh is (channels, h, w), or (channels, 1, 1), the same at every place. Cost: 2 B steps
    network calls.
    """
    change = (lambda h: dh.to(h).expand_as(h)) if isinstance(dh, Tensor) else dh
    return finish(p, cases.xt, cases.t, cases.steps, h_edit=inject(change, cases.t, 0, strength))


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
    edits: Mapping[str, Tensor | At],
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
