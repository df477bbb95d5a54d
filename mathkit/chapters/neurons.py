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
    """What neurons do at x_t, and what is read off the image that x_t leads to, as plain lists.

    Args:
        p: the model.
        seed: of the samples.
        index: which samples.
        t: a time of the sampling grid.
        steps: network calls from x_t to the image.

    Returns: "h": the pooled bottleneck at x_t of the samples (seed, index), (B, channels);
    "factors": what is read, ten dials and P(Stranger), (B, 11).
    Raises ValueError where t is no time of the sampling grid.
    Cost: for one sample the network calls from T to t, one to read h, and `steps` more.

    >>> from mathkit.chapters import neurons
    >>> kept = neurons.activations(mk.load_model("alice"), 0, [0], t=999, steps=1)
    >>> len(kept["h"][0]), len(kept["factors"][0])
    (128, 11)
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
    """Pearson correlation of each column of H with each column of Y.

    r = mean((h - mean h)(y - mean y)) / (std h std y); 0 where a column is constant.

    Args:
        H: (B, m), e.g. pooled activations, B >= 2.
        Y: (B, j), e.g. factors.

    Returns: (m, j), in [-1, 1], of H's dtype.
    Raises ValueError unless both are matrices with the same number of rows, at least 2.
    Cost: no pass.

    >>> from mathkit.chapters import neurons
    >>> H = torch.tensor([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])
    >>> neurons.correlations(H, H[:, :1])
    tensor([[ 1.],
            [-1.]])
    """
    if H.ndim != 2 or Y.ndim != 2 or len(H) != len(Y) or len(H) < 2:
        raise ValueError(f"H and Y are (B, m) and (B, j), got {tuple(H.shape)}, {tuple(Y.shape)}")
    h, y = (torch.nn.functional.normalize(X - X.mean(0), dim=0) for X in (H.double(), Y.double()))
    return (h.T @ y).to(H)


def silenced(channel: int) -> Map:
    """The change dh(h) that takes one channel out: -h there, 0 elsewhere; for `mk.inject`.

    At strength s the channel is scaled by 1 - s: 1 switches it off, more turns it round.

    Args:
        channel: 0 ... channels of h - 1.

    Returns: a function h (B, channels, h, w) -> dh of the same shape.
    Raises ValueError (when used) for a channel that h does not have.
    Cost: no pass.

    >>> from mathkit.chapters import neurons
    >>> h = torch.tensor([3.0, 5.0]).view(1, 2, 1, 1)
    >>> neurons.silenced(1)(h).flatten()
    tensor([ 0., -5.])
    """

    def dh(h: Tensor) -> Tensor:
        if not 0 <= channel < h.shape[1]:
            raise ValueError(f"h has the channels 0 to {h.shape[1] - 1}, got {channel}")
        change = torch.zeros_like(h)
        change[:, channel] = -h[:, channel]
        return change

    return dh


def mean_difference(H: Tensor, ill: Tensor, places: int) -> Tensor:
    """Mean pooled activation of the healthy minus that of the ill, a place: the supervised
    reference for a direction of h.

    Args:
        H: pooled activations (B, channels).
        ill: (B,), of bool.
        places: over how many the pooling summed.

    Returns: dh (channels, 1, 1).
    Raises ValueError where one of the groups is empty.
    Cost: no pass.

    >>> from mathkit.chapters import neurons
    >>> H, ill = torch.tensor([[8.0], [4.0]]), torch.tensor([False, True])
    >>> neurons.mean_difference(H, ill, places=4).flatten()
    tensor([1.])
    """
    if not 0 < int(ill.sum()) < len(ill):
        raise ValueError(f"both groups are needed, got {int(ill.sum())} ill of {len(ill)}")
    return ((H[~ill].mean(0) - H[ill].mean(0)) / places)[:, None, None]


def regressions(H: Tensor, Y: Tensor) -> Tensor:
    """Least squares of h on the factors, H - mean = (Y - mean) B: how h changes per unit of a
    factor.

    Args:
        H: pooled activations (B, m).
        Y: factors (B, j).

    Returns: the rows of B, (j, m): b_i is how h changes per unit of factor i, the others held.
    Cost: no pass.

    >>> from mathkit.chapters import neurons
    >>> Y = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> B = neurons.regressions(Y @ torch.tensor([[2.0], [3.0]]) + 7, Y)
    >>> B.flatten().round(decimals=3)
    tensor([2., 3.])
    """
    return torch.linalg.lstsq(Y - Y.mean(0), H - H.mean(0)).solution


def apart(v: Tensor, others: Tensor) -> Tensor:
    """v less its parts in the span of some rows: what in v is not theirs.

    Args:
        v: (m,).
        others: (r, m), rows that are linearly independent.

    Returns: (m,), orthogonal to each of the others.
    Raises ValueError where shapes differ or v is not finite.
    Cost: no pass.

    >>> from mathkit.chapters import neurons
    >>> neurons.apart(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[0.0, 0.0, 2.0]]))
    tensor([1., 2., 0.])
    """
    return project_out(v[None], torch.linalg.qr(others.T).Q.T)[0]


def edited(p: Model, cases: Cases, dh: Tensor | Map, strength: float) -> Tensor:
    """The images that x_t leads to with h + strength dh for h at every step.

    Args:
        p: the model.
        cases: at x_t; of them x_t, t and steps are used.
        dh: (channels, h, w), or (channels, 1, 1), the same at every place, or a function h -> dh.
        strength: a number; 0 changes nothing.

    Returns: (B, 3, 64, 64), clipped to [-1, 1].
    Raises ValueError as `mk.inject` and `mk.denoise` do.
    Cost: 2 B steps network calls.

    >>> from mathkit.chapters import neurons, treatment
    >>> p, zero = mk.load_model("alice"), torch.zeros(1, 3, 64, 64)
    >>> case = treatment.Cases(0, [0], 999, 1, *[zero] * 6)  # x_t = 0, one step from the image
    >>> neurons.edited(p, case, neurons.silenced(3), 1.0).shape
    torch.Size([1, 3, 64, 64])
    """
    change = (lambda h: dh.to(h).expand_as(h)) if isinstance(dh, Tensor) else dh
    return finish(p, cases.xt, cases.t, cases.steps, h_edit=inject(change, cases.t, 0, strength))
