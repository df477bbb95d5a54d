"""What the maps of a trained patient look like over samples and times, beside the known truth.

Each survey is a job of `results`: a row is one sample at one time, made by a function of its own
that a notebook or a test can call again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mathkit.chapters import treatment
from mathkit.chapters.eigenfaces import eigenfaces
from mathkit.chapters.treatment import Cases, encoder_svd
from mathkit.data import NETWORKS
from mathkit.diffusion import edits, sampling
from mathkit.diffusion.encoder import MAPS, encoder
from mathkit.diffusion.load import load_model
from mathkit.diffusion.model import Model
from mathkit.linear import metric, spectrum, subspaces
from mathkit.linear.jacobian import jacobian
from mathkit.linear.linear_map import LinearMap
from mathkit.linear.subspaces import carry, distance, matched_average, unit
from mathkit.linear.svd import svd
from mathkit.linear.triplets import any_of_equals
from mathkit.scores import rounded
from mathkit.show import puppets
from mathkit.show.posterior import Posterior
from mathkit.show.puppets import CONTINUOUS, STRANGER, average_puppet
from mathkit.show.reader import fit_factors, read_factors
from studies import methods, model_card
from studies.methods import Row, direction
from studies.model_card import ENOUGH
from studies.runner import job, publish
from studies.trial import digest, protocol

TIMES = (900, 800, 700, 600, 500, 400, 300, 200, 100)
K = 10  # directions of every subspace figure
STEPS = (0.01, 0.04)  # shares of |x_t| at which the posterior mean is compared with its derivative
PERTURBED, DOWN = 40, 6  # pictures of which a tangent frame is made; network calls of each
FRAMED = 6  # frames of the show at which tangent frames are made
FRAMES, PAIRED = 10, 8  # frames of the show a time; frames whose subspaces are compared
PATHS, SEGMENTS, PATH_TIMES = 6, 12, (957, 500)
EFFECT_TIMES, EFFECT_SAMPLES, SOURCES, GLOBAL = (874, 500), 8, 10, 6
EFFECT_STRENGTH = 0.05
BOTH = (*NETWORKS, "understudy")
SURVEYED = ("h", "pooled", "mean")  # of MAPS: the columns of a stored table
MANIFOLD_SAMPLES, MANIFOLD_STRENGTHS = 16, (0.02, 0.05, 0.1, 0.2)
EDITS = {
    "random": Row("random", "random"),
    "plain": Row("plain", "h"),
    "guided": Row("guided", "h", edit="guide"),
    "normalised": Row("normalised", "h", normalised=True),
    "shooting": Row("shooting", "h", edit="shoot"),
}


def noised_frame(p: Model, frame: int, t: int, simple: bool = False) -> tuple[Tensor, Tensor]:
    """`model_card.noised_frame` of the show, or of the simple one."""
    draw = puppets.sample_simple if simple else puppets.sample_factors
    return model_card.noised_frame(p, frame, t, draw)


def the_map(p: Model, name: str, x: Tensor, t: int) -> LinearMap:
    """The Jacobian at x of one of MAPS: the encoder, the same summed over places, the posterior
    mean."""
    if name not in MAPS:
        raise ValueError(f"expected a map of {tuple(MAPS)}, got {name!r}")
    return jacobian(MAPS[name](p, t), x)


def tangent_row(p: Model, truth: Posterior, frame: int, t: int, k: int = 2 * K) -> dict[str, Any]:
    """One noised frame under each map, and under the exact posterior where it can be trusted.

    plain, energy: `tangent_share` of the top K right singular vectors; another: the plain share of
    the next frame's tangents, a control; S: k singular values; total: |J|_F^2 by Hutchinson and its
    standard error; power: mean `spectral_density` of the K vectors.
    """
    q, x = noised_frame(p, frame, t)
    J, abar = puppets.tangents(q), float(p.alphas_cumprod[t])
    other = puppets.tangents(noised_frame(p, frame + 1, t)[0])
    row: dict[str, Any] = {"frame": frame, "t": t, "ess": rounded(float(truth.ess(x, abar)))}
    for name in SURVEYED:
        A = the_map(p, name, x, t)
        r = svd(A, k)
        total = rounded(spectrum.total_stretch(A, known=r))
        row[name] = _described(r.V[:K], J, other) | {"S": rounded(r.S), "total": total}
    if row["ess"] > ENOUGH:
        V, S = truth.directions(x, abar, K)
        row["exact"] = _described(V, J, other) | {"S": rounded(S)}
    return row


def _described(V: Tensor, J: Tensor, other: Tensor) -> dict[str, Any]:
    plain, energy = subspaces.tangent_share(V, J)
    found: dict[str, Any] = {
        "plain": plain,
        "energy": energy,
        "another": subspaces.tangent_share(V, other)[0],
    }
    found["power"] = spectrum.spectral_density(V)[1].mean(0)
    return {name: rounded(value, 4) for name, value in found.items()}


def survey_tangents() -> None:
    """The share of the true tangent space, the spectra and their frequencies, over t."""
    p, truth = load_model("alice"), Posterior()
    points = [(frame, t) for t in TIMES for frame in range(FRAMES)]
    answers = job("tangent", points, lambda at: tangent_row(p, truth, *at))
    head = {"k": K, "n": p.shape.numel(), "frames": FRAMES, "times": list(TIMES)}
    publish("tangent", head | {"rows": [a["rows"] for a in answers]}, answers)


def spans(p: Model, x: Tensor, t: int, seed: int = 0) -> dict[str, Tensor]:
    """The top K directions at one x_t. "h in H": the left singular vectors of the encoder; "h" and
    "mean": the right ones of the encoder and of the posterior mean."""
    h = svd(the_map(p, "h", x, t), K, seed=seed)
    mean = svd(the_map(p, "mean", x, t), K, seed=seed)
    return {"h in H": h.U, "h": h.V, "mean": mean.V}


def pairs(found: Sequence[dict[str, Tensor]]) -> dict[str, list[float]]:
    """For each kind of span the Grassmann distances of all pairs (0, 1), (0, 2), (1, 2), ..."""
    both = [(a, b) for i, b in enumerate(found) for a in found[:i]]
    return {k: [rounded(float(distance(a[k], b[k]))) for a, b in both] for k in found[0]}


def between_samples(p: Model, truth: Posterior, t: int, simple: bool) -> dict[str, Any]:
    """`pairs` of PAIRED frames at one t; "exact": the posterior's, where every frame allows it.

    floor: of the first frame's spans and those found from another seed of the solver.
    """
    points = [noised_frame(p, i, t, simple)[1] for i in range(PAIRED)]
    found = [spans(p, x, t) for x in points]
    floor = {k: v[0] for k, v in pairs([found[0], spans(p, points[0], t, seed=1)]).items()}
    abar = float(p.alphas_cumprod[t])
    if all(float(truth.ess(x, abar)) > ENOUGH for x in points):
        for x, bases in zip(points, found, strict=True):
            bases["exact"] = truth.directions(x, abar, K)[0]
    return {"t": t, "floor": floor, "pairs": pairs(found)}


def between_times(p: Model, frame: int, simple: bool) -> dict[str, Any]:
    """`pairs` of TIMES for one frame, with one noise."""
    found = [spans(p, noised_frame(p, frame, t, simple)[1], t) for t in TIMES]
    return {"frame": frame, "pairs": pairs(found)}


def between_models(one: Model, other: Model, frame: int, t: int) -> dict[str, Any]:
    """The distance between the spans of two models at one x_t of the simple show."""
    x = noised_frame(one, frame, t, simple=True)[1]
    found = []
    for p in (one, other):
        found.append({k: V for k, V in spans(p, x, t).items() if k != "h in H"})
    return {"frame": frame, "t": t} | {name: d[0] for name, d in pairs(found).items()}


def survey_turning() -> None:
    """How the spans turn between samples, times and the two trained models."""
    models = {name: load_model(name) for name in ("alice", "understudy")}
    alice, understudy = models.values()
    truths = {name: Posterior(simple=name == "understudy") for name in models}

    def at_one_time(at: Sequence[Any]) -> dict[str, Any]:
        name, t = at
        return between_samples(models[name], truths[name], t, name == "understudy")

    def of_one_frame(at: Sequence[Any]) -> dict[str, Any]:
        return between_times(models[at[0]], at[1], at[0] == "understudy")

    spots = [(name, t) for name in models for t in TIMES]
    walks = [(name, frame) for name in models for frame in range(PAIRED)]
    both = [(frame, t) for frame in range(4) for t in TIMES]
    samples = job("turning_samples", spots, at_one_time, BOTH)
    times = job("turning_times", walks, of_one_frame, BOTH)
    across = job("turning_models", both, lambda at: between_models(alice, understudy, *at), BOTH)
    head = {"k": K, "times": list(TIMES), "frames": PAIRED}
    table = {
        "samples": [{"model": a["item"][0]} | a["rows"] for a in samples],
        "walks": [{"model": a["item"][0]} | a["rows"] for a in times],
        "models": [a["rows"] for a in across],
    }
    publish("turning", head | table, samples + times + across, BOTH)


def path_row(p: Model, pair: int, t: int) -> dict[str, Any]:
    """Curvedness of three ways between two samples of ALICE at the grid time t, a number a segment.

    floor: the distance between the start's span and the one found from another seed of the solver.
    """
    x, y = treatment.trajectory(p, 2, [2 * pair, 2 * pair + 1], t).split(1)
    f = encoder(p, t)
    ways, miss = edits.paths_between(f, x, y, SEGMENTS, K)
    found = {name: rounded(metric.curvedness(f, way, K)) for name, way in ways.items()}
    one, other = (svd(jacobian(f, x), K, seed=s).U for s in (0, 1))
    floor = rounded(float(distance(one, other)))
    return {"pair": pair, "t": t, "miss": rounded(miss), "floor": floor} | found


def survey_paths() -> None:
    """Semantic length of lerp, slerp and shooting between samples."""
    p = load_model("alice")
    points = [(pair, t) for t in PATH_TIMES for pair in range(PATHS)]
    answers = job("paths", points, lambda at: path_row(p, *at))
    head = {"k": K, "segments": SEGMENTS, "times": list(PATH_TIMES)}
    publish("paths", head | {"rows": [a["rows"] for a in answers]}, answers)


def common_directions(p: Model, t: int) -> tuple[Tensor, Tensor]:
    """The matched average of the top K left singular vectors of h over SOURCES samples of seed 1,
    GLOBAL of them, (GLOBAL, *h), and their agreement."""
    xs = treatment.trajectory(p, 1, range(SOURCES), t).split(1)
    u, agreement = matched_average([svd(jacobian(encoder(p, t), x), K).U for x in xs])
    order = agreement.argsort(descending=True)[:GLOBAL]
    return u[order], agreement[order]


def effect_row(p: Model, u: Tensor, i: int, t: int) -> dict[str, Any]:
    """What each direction does to the eleven factors of sample (3, i) at the grid time t.

    The change of what is read, from -EFFECT_STRENGTH to +EFFECT_STRENGTH: directions x (ten factors
    and P(Stranger)). "common": the directions u carried to the sample; "random": as many random
    ones of h, the same for every sample, carried in the same way; "own": the sample's first ones,
    whose sign means nothing; "tangents": J^T of the ten true tangent vectors of the untreated
    picture, J the Jacobian of the posterior mean (labels: the ceiling).
    """
    case = treatment.admit(p, 3, [i], t)
    r = encoder_svd(p, case, K)
    J = the_map(p, "mean", case.xt, t)
    lot = torch.randn(u.shape, generator=torch.Generator().manual_seed(t))
    groups = {
        "common": torch.stack([carry(a, r)[0] for a in u]),
        "random": torch.stack([carry(a / a.norm(), r)[0] for a in lot.to(u)]),
        "own": r.V[: len(u)],
        "tangents": J.pull(puppets.tangents(case.q)),
    }
    row: dict[str, Any] = {"index": i, "t": t}
    for name, V in groups.items():
        row[name] = rounded(change_of_factors(p, case, V), 3)
    return row


def change_of_factors(
    p: Model, case: Cases, V: Tensor, strength: float = EFFECT_STRENGTH
) -> Tensor:
    """What is read differently at +strength than at -strength along each of V, (k, *shape): the ten
    factors and P(Stranger), (k, 11)."""
    ends = [
        torch.cat([methods.treat(p, case, EDITS["plain"], v[None], [s]) for v in V])
        for s in (-strength, strength)
    ]
    low, high = (read_factors(images)[:, : STRANGER + 1] for images in ends)
    return high - low


def survey_effects() -> None:
    """The effect matrix, direction x factor."""
    p = load_model("alice")
    common = {t: common_directions(p, t) for t in EFFECT_TIMES}
    points = [(i, t) for t in EFFECT_TIMES for i in range(EFFECT_SAMPLES)]
    answers = job("effects", points, lambda at: effect_row(p, common[at[1]][0], *at))
    head = {"strength": EFFECT_STRENGTH, "factors": [*CONTINUOUS, "stranger"]}
    agreement = {str(t): rounded(c[1]) for t, c in common.items()}
    publish(
        "effects", head | {"agreement": agreement, "rows": [a["rows"] for a in answers]}, answers
    )


def manifold_row(p: Model, i: int, t: int, average: Tensor) -> dict[str, Any]:
    """How far the edits of EDITS leave the true manifold: distance and change at each strength.

    Of sample (3, i) at t. distance: after refitting the renderer's factors; change: mean
    |x' - x_0|.
    """
    case = treatment.admit(p, 3, [i], t)
    row: dict[str, Any] = {"index": i, "t": t, "untreated": rounded(float(case.distance))}
    for name, edit in EDITS.items():
        v = direction(p, case, edit, average)
        images = methods.treat(p, case, edit, v, MANIFOLD_STRENGTHS)
        change = (images - case.x0).abs().mean((1, 2, 3))
        row[name] = {"distance": rounded(fit_factors(images)[1]), "change": rounded(change)}
    return row


def survey_manifold() -> None:
    """Distance of edited images from the true manifold."""
    p, average, chosen = load_model("alice"), average_puppet(), protocol()
    t = chosen["t"]
    answers = job(
        "manifold",
        list(range(MANIFOLD_SAMPLES)),
        lambda i: manifold_row(p, i, t, average),
        settings=digest({"t": t}),
    )
    head = {"t": t, "strengths": list(MANIFOLD_STRENGTHS), "limit": chosen["limit"]}
    publish("manifold", head | {"rows": [a["rows"] for a in answers]}, answers)


def bend_row(p: Model, frame: int, t: int) -> dict[str, Any]:
    """How far the posterior mean E leaves its derivative: |E(x + d) - E(x) - J d| / |J d|.

    d is of the lengths STEPS |x_t|, along the first direction of J ("first"), along a random one as
    smooth ("smooth"), and along white noise ("snow").
    """
    _, x = noised_frame(p, frame, t)
    J, E = the_map(p, "mean", x, t), sampling.posterior_mean(p, t)
    with any_of_equals():
        v = svd(J, 1).V
    draw = torch.Generator().manual_seed(frame)
    ways = {"first": v, "smooth": spectrum.as_smooth(v, frame)}
    ways["snow"] = torch.randn(v.shape, generator=draw).to(v)
    row: dict[str, Any] = {"frame": frame, "t": t}
    with torch.no_grad():
        here = E(x)
        for name, w in ways.items():
            steps = [s * x.norm() * w / w.norm() for s in STEPS]
            promised = [J.push(d) for d in steps]
            missed = [E(x + d) - here - y for d, y in zip(steps, promised, strict=True)]
            shares = [float(m.norm() / y.norm()) for m, y in zip(missed, promised, strict=True)]
            row[name] = rounded(shares, 4)
    return row


def survey_bends() -> None:
    """How nearly linear the posterior mean is around x_t, over t."""
    p = load_model("alice")
    points = [(frame, t) for t in TIMES for frame in range(FRAMES)]
    answers = job("bends", points, lambda at: bend_row(p, *at), ("alice",))
    head = {"steps": list(STEPS), "frames": FRAMES, "times": list(TIMES)}
    publish("bends", head | {"rows": [a["rows"] for a in answers]}, answers, ("alice",))


def frame_row(p: Model, frame: int, t: int) -> dict[str, Any]:
    """The share of the true tangent space in K directions that were found in several ways.

    "sampled": the principal components of PERTURBED pictures, each denoised in DOWN steps from x_t
    moved by STEPS[0] |x_t| of white noise (GeoEdit, 2604.24238: no derivative); "guessed": of the
    posterior means there instead. "right", "left", "symmetric": the top singular vectors of the
    posterior mean's J, and of (J + J^T) / 2. Each with the share of the next frame's tangents, a
    control. And the `trace_row` of J, with PERTURBED vectors of random signs.
    """
    q, x = noised_frame(p, frame, t)
    own, other = puppets.tangents(q), puppets.tangents(noised_frame(p, frame + 1, t)[0])
    z = torch.randn(PERTURBED, *x.shape[1:], generator=torch.Generator().manual_seed(frame)).to(x)
    near = x + STEPS[0] * x.norm() * unit(z)
    J = the_map(p, "mean", x, t)
    r = svd(J, K)
    with torch.no_grad():
        ends, guesses = sampling.denoise(p, near, t, DOWN), sampling.posterior_mean(p, t)(near)
    ways = {"sampled": eigenfaces(ends, K).axes, "guessed": eigenfaces(guesses, K).axes}
    ways |= {"right": r.V, "left": r.U, "symmetric": svd((J + J.T) / 2, K).V}
    shares = {
        name: [rounded(subspaces.tangent_share(V, tangents)[0], 4) for tangents in (own, other)]
        for name, V in ways.items()
    }
    return {"frame": frame, "t": t} | trace_row(J, z.sign(), p.levels.pair(t)[0]) | shares


def trace_row(J: LinearMap, signs: Tensor, signal: float) -> dict[str, Any]:
    """What random signs g, (k, *shape), tell of a J from a space to itself.

    "trace": signal <g, J g>, its mean and standard error, the trace of signal J by Hutchinson;
    "skew": |J g - J^T g| / |J g + J^T g| over all of them, 0 for a covariance.
    """
    g, pushed, pulled = (V.flatten(1) for V in (signs, J.push(signs), J.pull(signs)))
    seen = signal * (g * pushed).sum(1)
    trace = [float(seen.mean()), float(seen.std() / len(seen) ** 0.5)]
    skew = float((pushed - pulled).norm() / (pushed + pulled).norm())
    return {"trace": rounded(trace), "skew": rounded(skew)}


def survey_frames() -> None:
    """Tangent frames with and without a derivative, over t."""
    p = load_model("alice")
    times = list(TIMES[::2])
    points = [(frame, t) for t in times for frame in range(FRAMED)]
    answers = job("frames", points, lambda at: frame_row(p, *at), ("alice",))
    head = {"k": K, "n": p.shape.numel(), "count": PERTURBED, "steps": DOWN, "times": times}
    publish("frames", head | {"rows": [a["rows"] for a in answers]}, answers, ("alice",))


SURVEYS = {
    "tangent": (survey_tangents, 20),
    "turning": (survey_turning, 20),
    "paths": (survey_paths, 15),
    "effects": (survey_effects, 10),
    "manifold": (survey_manifold, 5),
    "bends": (survey_bends, 8),
    "frames": (survey_frames, 20),
}
