"""How each row of the treatment table finds its direction of x_t, and how the sign is chosen."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from .cases import Cases, gaussian, grid, inside, outside
from .diffusion import invert, posterior_mean
from .factors import reader
from .grassmann import carry, project_out
from .hspace import encoder
from .jacobians import jacobian
from .maps import LinearMap
from .models import Model
from .puppets import STRANGER
from .spectral import SVD, any_of_equals, svd

TRIED = 6
SPAN = 10  # directions of h in the span on which a carried one is projected
REST = 12  # directions of the rest that the aftercare may move
# What no rule has to turn round: its sign is part of what it is told.
GIVEN = ("carried", "another", "noise", "reader", "oracle", "counterfactual")
Kept = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the treatment table: how its direction of x_t is found, and what is done with it.

    kind: what the candidates are.
      "random": drawn; "noise": none, fresh noise instead;
      "h", "pooled", "mean": the top right singular vectors of the encoder, of the encoder with h
      summed over its places, of the posterior mean; "span": `among` random orthonormal vectors of
      the span of the top TRIED of "mean";
      "aimed": J^T (average - E), the way to the average puppet pulled back through the Jacobian of
      the posterior mean E, one VJP; under the key "noise" a random way in its place; clip: the
      length of this pull from which on a step is whole, a shorter one makes it as much shorter
      (gradient clipping; 0: every step is whole);
      "carried": the directions of h kept under `key`, lifted to x_t; "another": another sample's
      direction of x_t as it is;
      "reader", "oracle", "counterfactual": references, see `reference`.
    masked: the map, or what is pulled, keeps only the region's pixels. rest: r', the directions of
    the map to the rest that are projected out. among: of how many candidates the rule of
    `direction` chooses; 1 takes the first. lift: how a carried u becomes v, "isometry" or "pinv"
    (`mk.transport`) or "pull", J^T u. sign: -1 goes the wrong way on purpose. t: the time of the
    edit, None the common one. edit: "move", "guide", "shoot", "inject"; normalised: eq. 4 of
    2302.12469 afterwards; after: times of the aftercare (`treatment.settle`); course: those of them
    at which the step is taken again, along the direction found there; boost: below this time the
    way down is stochastic, eta = 1.
    supervision: what the rule is told beyond x_t and the average puppet.
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


def towards(p: Model, case: Cases, average: Tensor) -> Tensor:
    """average - E(x_t): the way from the case's posterior mean to the average puppet."""
    with torch.no_grad():
        return average.to(case.xt) - p.clean(case.xt, case.t)


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


@functools.lru_cache(maxsize=8)
def encoder_svd(p: Model, case: Cases, k: int, pool: str | None = None) -> SVD:
    """`svd` of rank k of the Jacobian of x_t -> h at the case's x_t."""
    return svd(jacobian(encoder(p, case.t, pool), case.xt), k)


@functools.lru_cache(maxsize=16)
def local_directions(p: Model, case: Cases, kind: str, masked: bool, k: int) -> Tensor:
    """The top k right singular vectors at x_t of the encoder ("h", "pooled") or of the posterior
    mean ("mean")."""
    if kind == "mean":
        A = mean_map(p, case)
    elif kind in ("h", "pooled"):
        if not masked and k <= SPAN and kind == "h":
            return encoder_svd(p, case, SPAN).V[:k]
        A = jacobian(encoder(p, case.t, "sum" if kind == "pooled" else None), case.xt)
    else:
        raise ValueError(f"no row is of kind {kind!r}")
    return svd(inside(case) @ A if masked and kind == "mean" else A, k).V


@functools.lru_cache(maxsize=16)
@any_of_equals()  # where the k-th and the next are stretched alike, either may be projected out
def rest_svd(p: Model, case: Cases, k: int) -> SVD:
    """`svd` of rank k of the Jacobian of the posterior mean outside the region at x_t."""
    return svd(outside(case) @ mean_map(p, case), k)


@functools.lru_cache(maxsize=4)
def mean_map(p: Model, case: Cases) -> LinearMap:
    """The Jacobian of the posterior mean at the case's x_t."""
    return jacobian(posterior_mean(p, case.t), case.xt)


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
    with torch.enable_grad():
        x = case.xt.detach().clone().requires_grad_(True)
        logit = reader(str(x.device))(p.clean(x, case.t))[:, STRANGER].sum()
        (slope,) = torch.autograd.grad(logit, x)
    return _unit(-slope)


def _unit(V: Tensor, clip: float = 0.0) -> Tensor:
    return V / V.flatten(1).norm(dim=1).clamp(min=clip or 1e-12)[:, None, None, None]
