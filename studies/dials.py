"""What a direction does to the show's dials: taken early or late, carried, doubled, joined.

`python -m studies results dials` measures it on samples of seed 3, as `effects` does.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mathkit.chapters import treatment
from mathkit.chapters.eigenfaces import eigenfaces
from mathkit.chapters.treatment import Cases, encoder_svd
from mathkit.diffusion.encoder import encoder
from mathkit.diffusion.load import load_model
from mathkit.diffusion.model import Model
from mathkit.linear.jacobian import jacobian
from mathkit.linear.spectrum import as_smooth
from mathkit.linear.subspaces import carry, unit
from mathkit.linear.svd import svd
from mathkit.linear.triplets import any_of_equals
from mathkit.scores import rounded
from mathkit.show import puppets
from mathkit.show.puppets import CONTINUOUS
from studies.runner import job, publish
from studies.surveys import EFFECT_STRENGTH, EFFECT_TIMES, GLOBAL, K, change_of_factors

TIMES = (874, 749, 624, 500, 375, 250)  # of the sampling grid
SAMPLES, FIRST = 8, 2  # samples; directions of each kind
CROWD = 100  # drawings behind the components
TURNED = ("hat_height", "smile", "light")  # dials carried, doubled and joined, two by two
JOINED_AT = 500


def principal_components(p: Model, t: int) -> Tensor:
    """The first GLOBAL principal components of h over CROWD samples of seed 1: (GLOBAL, *h)."""
    with torch.no_grad():
        h = encoder(p, t)(treatment.trajectory(p, 1, range(CROWD), t))
    return eigenfaces(h, GLOBAL).axes


def dial_row(p: Model, components: Tensor | None, i: int, t: int) -> dict[str, Any]:
    """What directions found at t change in sample (3, i): directions x (ten factors, P(Stranger)).

    "h", "mean": the first FIRST right singular vectors of the encoder and of the posterior mean;
    "smooth": random ones as smooth as those of h. With `components` also "components", the
    principal components of h carried to the sample.
    """
    case = treatment.admit(p, 3, [i], t)
    r = encoder_svd(p, case, K)
    with any_of_equals():
        mean = svd(treatment.mean_map(p, case), FIRST)
    groups = {"h": r.V[:FIRST], "mean": mean.V, "smooth": as_smooth(r.V[:FIRST], i)}
    if components is not None:
        groups["components"] = torch.stack([carry(u / u.norm(), r)[0] for u in components.to(r.U)])
    found = {name: change_of_factors(p, case, V) for name, V in groups.items()}
    return {"index": i, "t": t} | {name: rounded(E, 3) for name, E in found.items()}


def pulled(p: Model, case: Cases, name: str) -> Tensor:
    """The unit direction of x_t that turns a dial up: J^T of its true tangent, J the Jacobian of
    the posterior mean. (*shape)."""
    tangent = puppets.tangents(case.q)[CONTINUOUS.index(name)]
    v = treatment.mean_map(p, case).pull(tangent[None].to(case.xt))[0]
    return v / v.norm()


def joined_row(p: Model, i: int, t: int) -> dict[str, Any]:
    """Edits of the dials TURNED, one and two at a time, once and twice as far, in sample (3, i).

    single: what the pulled direction of each dial changes. doubled, joined: how far twice the
    strength, and two at once, are from the sum, |E(2v) - 2 E(v)| / |2 E(v)| and
    |E(v + w) - E(v) - E(w)| / |E(v) + E(w)|; "..., smooth": the same of random directions as
    smooth. carried: the change of a dial along the next sample's direction for it, carried through
    h; "carried, random": along as many random u of h.
    """
    case, there = (treatment.admit(p, 3, [j], t) for j in (i, (i + 1) % SAMPLES))
    theirs = {name: pulled(p, there, name) for name in TURNED}
    r, A = encoder_svd(p, case, K), jacobian(encoder(p, t), there.xt)
    pushed = {name: A.push(v[None])[0] for name, v in theirs.items()}
    u = {name: h / h.norm() for name, h in pushed.items()}
    chance = torch.Generator().manual_seed(i)
    lot = unit(torch.randn(len(u), *r.U.shape[1:], generator=chance).to(r.U))
    found = {name: pulled(p, case, name) for name in TURNED}
    smooth = dict(zip(TURNED, as_smooth(torch.stack([*found.values()]), i), strict=True))
    pairs = [(a, b) for j, b in enumerate(TURNED) for a in TURNED[:j]]
    row: dict[str, Any] = {"index": i, "t": t}
    for kind, ways in (("", found), (", smooth", smooth)):
        one, twice = (
            {name: _changed(p, case, by * v) for name, v in ways.items()} for by in (1, 2)
        )
        pairwise = {(a, b): _changed(p, case, ways[a] + ways[b]) for a, b in pairs}
        row[f"single{kind}"] = rounded(torch.stack([*one.values()]), 3)
        row[f"doubled{kind}"] = [rounded(_missed(twice[n], 2 * one[n]), 3) for n in TURNED]
        missed = [_missed(both, one[a] + one[b]) for (a, b), both in pairwise.items()]
        row[f"joined{kind}"] = rounded(missed, 3)
    for kind, rows in (("carried", u.values()), ("carried, random", lot)):
        V = torch.stack([carry(h, r)[0] for h in rows])
        E = change_of_factors(p, case, V)
        row[kind] = rounded([E[k, CONTINUOUS.index(n)] for k, n in enumerate(TURNED)], 3)
    return row


def _changed(p: Model, case: Cases, way: Tensor) -> Tensor:
    """What an edit along `way` changes, as far as EFFECT_STRENGTH times its length: (11,)."""
    return change_of_factors(p, case, way[None], EFFECT_STRENGTH * float(way.norm()))[0]


def _missed(found: Tensor, promised: Tensor) -> float:
    return float((found - promised).norm() / promised.norm())


def survey_dials() -> None:
    """The tables of `dial_row` and of `joined_row`."""
    p = load_model("alice")
    components = {t: principal_components(p, t) for t in EFFECT_TIMES}

    def of_one(at: Sequence[int]) -> dict[str, Any]:
        return dial_row(p, components.get(at[1]), *at)

    points = [(i, t) for t in TIMES for i in range(SAMPLES)]
    answers = job("dials", points, of_one, ("alice",))
    joined = job("dials_joined", list(range(SAMPLES)), functools.partial(_joined, p), ("alice",))
    head = {"strength": EFFECT_STRENGTH, "factors": [*CONTINUOUS, "stranger"], "times": TIMES}
    table = {"rows": [a["rows"] for a in answers], "joined": [a["rows"] for a in joined]}
    publish("dials", head | {"turned": TURNED} | table, answers + joined, ("alice",))


def _joined(p: Model, i: int) -> dict[str, Any]:
    return joined_row(p, i, JOINED_AT)
