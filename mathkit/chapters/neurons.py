"""Single neurons of the bottleneck: what they answer to, and what switching one off does.

A neuron is a channel of h; its activation is the channel summed over its places ("pooled").
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mathkit.chapters.treatment import Cases, finish, trajectory
from mathkit.diffusion.edits import inject
from mathkit.diffusion.encoder import Map, encoder
from mathkit.diffusion.model import Model
from mathkit.linear.subspaces import project_out
from mathkit.show.puppets import STRANGER
from mathkit.show.reader import read_factors


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


def silenced(channel: int) -> Map:
    """The change dh(h) that takes one channel out: -h there, 0 elsewhere; for `mk.inject`.

    Map strength s the channel is scaled by 1 - s: 1 switches it off, more turns it round. Raises
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


def edited(p: Model, cases: Cases, dh: Tensor | Map, strength: float) -> Tensor:
    """The images that x_t leads to with h + strength dh for h at every step, clipped to [-1, 1].

    A tensor dh is (channels, h, w), or (channels, 1, 1), the same at every place. Cost: 2 B steps
    network calls.
    """
    change = (lambda h: dh.to(h).expand_as(h)) if isinstance(dh, Tensor) else dh
    return finish(p, cases.xt, cases.t, cases.steps, h_edit=inject(change, cases.t, 0, strength))
