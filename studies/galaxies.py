"""What directions do to a model of real galaxies, which nobody here trained: their effect on what
can be measured of a galaxy, beside directions that know nothing and are as smooth."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mathkit.chapters import galaxies
from mathkit.diffusion import sampling
from mathkit.diffusion.edits import move
from mathkit.diffusion.encoder import MAPS
from mathkit.diffusion.load import load_model
from mathkit.diffusion.model import Model
from mathkit.linear.jacobian import jacobian
from mathkit.linear.spectrum import as_smooth, spectral_density
from mathkit.linear.svd import svd
from mathkit.scores import rounded
from mathkit.tools.atlas import nearest, states
from studies.runner import job, publish
from studies.trial import digest

NAME, AT, SEED = "galaxies", "blocks.1", 5
ABOUT = (560, 420)  # about these times: noise of 4 and of 1.3 times the signal
STEPS, BACK, K, STRENGTH = 50, 20, 4, 0.1
SAMPLES, CROWD = 12, 96  # galaxies that are moved; those that say how far galaxies differ
ASKED = ("flux", "size", "ellipticity", "angle", "concentration", "asymmetry")
KNOWN = ("h", "mean")  # the maps whose first directions are tried


def bases(p: Model, x: Tensor, t: int) -> dict[str, Tensor]:
    """The first K directions at x_t of h, the output of block 2 of 4, and of the posterior mean."""
    ats = {"h": AT, "mean": None}
    return {name: svd(jacobian(MAPS[name](p, t, at), x), K).V for name, at in ats.items()}


def controls(V: Tensor, seed: int) -> dict[str, Tensor]:
    """Directions that know nothing: as smooth as V; as smooth, and where V is; white noise."""
    place = V.square().mean((0, 1)).sqrt()
    white = torch.randn(V.shape, generator=torch.Generator().manual_seed(seed + 1)).to(V)
    smooth = as_smooth(V, seed)
    return {"smooth": smooth, "placed": as_smooth(V, seed, place), "white": white}


def asked(p: Model, x: Tensor, t: int) -> Tensor:
    """For each factor of ASKED its gradient through the posterior mean, J^T grad q, (6, *in)."""
    leaf = x.clone().requires_grad_()
    q = galaxies.measure(p.clean(leaf, t))[0]
    rows = [galaxies.FACTORS.index(name) for name in ASKED]
    pulled = [torch.autograd.grad(q[i], leaf, retain_graph=True)[0] for i in rows]
    return torch.cat(pulled)


def effects(p: Model, x: Tensor, t: int, V: Tensor) -> Tensor:
    """What is changed by each of V, from -STRENGTH to STRENGTH: (k, 8), by `galaxies.change`."""
    ends = [torch.cat([move(p, x, t, v, s, 1)[-1] for v in V]) for s in (-STRENGTH, STRENGTH)]
    with torch.no_grad():
        low, high = sampling.denoise(p, torch.cat(ends), t, BACK).chunk(2)
    return galaxies.change(*map(galaxies.measure, (low, high)))


def state(p: Model, i: int, t: int) -> Tensor:
    """x_t of galaxy (SEED, i) on its way down."""
    with torch.no_grad():
        return states(p, SEED, i, STEPS, t)[t]


def cosines(V: Tensor, tangents: Tensor) -> Tensor:
    """How much of each tangent (j, *in) lies in the span of orthonormal V (k, *in): (j,)."""
    T = tangents.flatten(1).double()
    T = T / T.norm(dim=1, keepdim=True)
    return (T @ V.flatten(1).double().T).square().sum(1)


def effect_row(p: Model, i: int, t: int) -> dict[str, Any]:
    """One galaxy at one t.

    before: its factors; effects: of each group of directions on each factor; held: the share of
    each of `galaxies.motions` of the posterior mean in the span of h's and of the mean's
    directions, and of the next galaxy's motions, a control; frequency: of each group the power in
    rings, its mean.
    """
    x = state(p, i, t)
    known = bases(p, x, t)
    groups = known | controls(known["mean"], 1000 * i + t) | {"asked": asked(p, x, t)}
    with torch.no_grad():
        clean, other = (p.clean(y, t) for y in (x, state(p, i + 1, t)))
        before = sampling.denoise(p, x, t, BACK)
    own, another = (galaxies.motions(galaxies.blurred(y)) for y in (clean, other))
    held = {name: rounded(cosines(known[name], own), 4) for name in KNOWN}
    held |= {f"{name}, another": rounded(cosines(known[name], another), 4) for name in KNOWN}
    return {
        "index": i,
        "t": t,
        "before": rounded(galaxies.measure(before)[0]),
        "effects": {name: rounded(effects(p, x, t, V), 4) for name, V in groups.items()},
        "held": held,
        "frequency": {n: rounded(spectral_density(V)[1].mean(0), 4) for n, V in groups.items()},
    }


def inversion_row(p: Model, i: int) -> dict[str, float]:
    """How far galaxy i comes back from up and down again, in shares of its range, by grid."""
    with torch.no_grad():
        x = sampling.sample(p, index=[i], seed=SEED, steps=STEPS)
        top: int = len(p.alphas_cumprod) - 1
        found: dict[str, Tensor] = {}
        for refine in (0, 1):
            up = sampling.invert(p, p.decode(x), top, STEPS, refine=refine)
            off = (sampling.denoise(p, up, top, STEPS) - x).abs() / (x.max() - x.min())
            found |= {f"largest, {refine}": off.max(), f"mean, {refine}": off.mean()}
    return {name: round(float(value), 4) for name, value in found.items()}


def crowd(p: Model, start: int, count: int) -> list[list[float]]:
    """The factors of galaxies start ... start + count - 1 of SEED + 1."""
    with torch.no_grad():
        x = sampling.sample(p, index=range(start, start + count), seed=SEED + 1, steps=STEPS)
    return rounded(galaxies.measure(x))


def survey_galaxies() -> None:
    """The effect matrix of a real model, its controls, the motions it holds, and its inversion."""
    p = load_model(NAME)
    times = nearest(p, ABOUT, STEPS)
    about = {
        "model": p.source, "revision": p.revision, "at": AT, "seed": SEED, "times": times,
        "steps": STEPS, "back": BACK, "k": K, "strength": STRENGTH,
    }  # fmt: skip
    key: dict[str, Any] = {"networks": (), "settings": digest(about)}
    others = job("galaxies_crowd", list(range(0, CROWD, 16)), lambda i: crowd(p, i, 16), **key)
    back = job("galaxies_inversion", list(range(4)), lambda i: inversion_row(p, i), **key)
    points = [(i, t) for t in times for i in range(SAMPLES)]
    answers = job("galaxies", points, lambda at: effect_row(p, *at), **key)
    table = about | {
        "factors": list(galaxies.FACTORS), "motions": list(galaxies.MOTIONS), "asked": list(ASKED),
        "crowd": [q for lot in others for q in lot["rows"]], "inversion": [b["rows"] for b in back],
        "rows": [a["rows"] for a in answers],
    }  # fmt: skip
    publish("galaxies", table, others + back + answers, networks=())
