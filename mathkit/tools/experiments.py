"""The experiments of 2302.12469 and 2307.12868 on any one model, each beside its control.

An experiment takes a `Study` and yields pieces to show, one after the other: axes, tables, lines of
text. `for piece in directions(study): display(piece)` in a notebook; `python -m mathkit report`
makes a page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from mathkit.diffusion.edits import geodesic, guide, h_step, inject, move, normalise, response
from mathkit.diffusion.encoder import Encoder
from mathkit.diffusion.sampling import denoise, invert, posterior_mean
from mathkit.draw import curves, pictures
from mathkit.draw.table import Table
from mathkit.linear import spectrum
from mathkit.linear.arrays import mask
from mathkit.linear.jacobian import jacobian
from mathkit.linear.subspaces import carry, distance, matched_average, mean_subspace, project_out
from mathkit.linear.svd import svd
from mathkit.linear.triplets import any_of_equals
from mathkit.tools.subject import Study
from mathkit.tools.timing import Timed, measured

NAMES = {"h": "encoder h", "mean": "posterior mean"}

Piece = str | Axes | Table


def unedited(study: Study) -> Iterator[Piece]:
    """What all below begins with: the samples, or the picture and what inversion makes of it."""
    s, t = study.settings, study.times[0]
    if study.picture is not None:
        back = {t: study.finish(study.subject(t), t) for t in study.times}
        images = torch.cat([study.picture.float().cpu(), *back.values()])
        labels = ["the picture", *(f"up to t = {t}\nand back" for t in back)]
        yield pictures.strip(images, labels, columns=4, title="The picture, inverted")
        error = [
            [t, float((y - images[:1]).abs().mean()), float((y - images[:1]).abs().max())]
            for t, y in back.items()
        ]
        yield Table(["t", "mean |difference| in [-1, 1]", "largest"], error)
    x = torch.cat([study.state(i, t) for i in range(s.samples)])
    labels = [f"sample {i}" for i in range(s.samples)]
    yield pictures.strip(study.finish(x, t), labels, columns=4, title="Samples, unedited")


def directions(study: Study) -> Iterator[Piece]:
    """How much the first directions of x_t are stretched, and what they look like.

    Beside a share: the number of leading s_i^2 that make up half of all, sum_i s_i^2 = |J|_F^2
    (estimated with random signs)."""
    p, lines = study.p, []
    for name, label in NAMES.items():
        ax: Any = None
        for t in study.times:
            r = study.basis(name, t)
            title = f"Singular values of the {label}"
            ax = curves.spectrum(r.S, residuals=r.residuals, label=f"t = {t}", ax=ax, title=title)
            J = jacobian(study.map(name, t), study.subject(t))
            total = spectrum.total_stretch(J, known=r)
            found = spectrum.rank_at(r.S.cpu(), total[0])
            share = float(r.S.double().square().sum()) / total[0]
            lines.append([label, t, float(r.S[0]), share, found or f"> {len(r.S)}", r.passes.push])
        yield ax
    head = ["map", "t", "s_1", f"share of |J|_F^2 in the first {study.settings.k}"]
    yield Table([*head, "effective rank (half of it)", "pushes (and pulls)"], lines)
    f = study.map("h", study.middle)
    if isinstance(f, Encoder) and f.at != "mid_block":
        yield f"h is the output of the layer {f.at} of {type(p.unet).__name__}."
    for name, label in NAMES.items():
        V = torch.cat([study.basis(name, t).V[:3] for t in study.times]).cpu()
        V = V if V.shape[1] in (1, 3) else V.mean(1, keepdim=True)
        labels = [
            f"$v_{i + 1}$, t = {t}" for t in study.times for i in range(len(V) // len(study.times))
        ]
        title, columns = f"Directions of the {label}", min(3, study.settings.k)
        yield pictures.strip(V, labels, columns=columns, signed=True, title=title)
    if p.shape[0] not in (1, 3):
        yield f"x_t has {p.shape[0]} channels: the directions are shown as their mean."


def traversals(study: Study) -> Iterator[Piece]:
    """The subject moved along each direction, with |x_t| kept, at each time.

    The numbers are |x_t' - x_t| / |x_t|; the last line, a random direction as smooth as the first,
    is the control."""
    for t in study.times:
        for name, label in NAMES.items():
            V = study.basis(name, t).V
            V = torch.cat([V, study.smooth(V[0])[None]])
            y = torch.cat([study.finish(study.moved(t, v, study.ladder), t) for v in V])
            rows = [*(f"$v_{i + 1}$" for i in range(len(V) - 1)), "random"]
            labels = [f"{row} {a:+.2f}" for row in rows for a in study.ladder]
            title = f"Along directions of the {label}, t = {t}"
            yield pictures.strip(y, labels, columns=5, title=title)


def edits(study: Study) -> Iterator[Piece]:
    """One direction and one length, every way of the papers to use it, and a random direction as
    smooth.

    boosted: the plain move, then noise added at each step below a third of t. injected: h moved at
    every step instead of x_t once, by this share of |h|."""
    p, t, a = study.p, study.middle, study.settings.strength
    at = study.settings.at
    x, v, f = study.subject(t), study.basis("h", t).V[0], study.map("h", t)
    dh = h_step(p, x, t, v, at)

    def plain(s: float, v: Tensor = v) -> Tensor:
        return move(p, x, t, v, s, 1)[-1]

    ways: dict[str, Callable[[float], tuple[Tensor, dict[str, Any]]]] = {
        "random": lambda s: (plain(s, study.smooth(v)), {}),
        "plain": lambda s: (plain(s), {}),
        "guided": lambda s: (guide(p, x, t, v, s, 4)[-1], {}),
        "normalised": lambda s: (normalise(p, plain(s), t, x), {}),
        "shooting": lambda s: (geodesic(f, x, v, s, 4, study.settings.k)[-1], {}),
        "boosted": lambda s: (plain(s), {"boost_below": t // 3}),
        "injected": lambda s: (x, {"h_edit": inject(dh, t, 0, s, at)}),
    }
    before, images, labels, lines = study.finish(x, t), [], [], []
    for name, way in ways.items():
        size = 5 * a if name == "injected" else a
        for s in (-size, size):
            with torch.no_grad(), any_of_equals():
                moved, options = way(s)
            y = study.finish(moved, t, **options)
            images.append(y)
            reached = float((moved - x).norm() / x.norm())
            told = "" if name == "injected" else f"\nlength {reached:.2f}"
            labels.append(f"{name} {s:+.2f}{told}")
            lines.append([name, s, reached, float((y - before).abs().mean())])
    yield pictures.strip(
        torch.cat(images), labels, columns=4, title=f"Every edit, $v_1$ of h, t = {t}"
    )
    yield Table(
        ["edit", "strength asked", "|x_t' - x_t| / |x_t|", "mean |change| of the image"], lines
    )
    found, free = (float(response(p, x, t, w)) for w in (v, study.random()))
    yield (
        f"kappa = <v, J_eps v>, J_eps the Jacobian of the predicted noise: {found:+.2f} for this "
        f"direction, {free:+.2f} for a random one. "
        "Near 1 the model takes it for noise, below for picture; where it is negative, guidance as "
        "published walks the other way (here it is turned round)."
    )


def region(study: Study) -> Iterator[Piece]:
    """Directions that change one part of the picture, and the rest as little as can be.

    no mask: the posterior mean's first direction. masked: the first of its part in the region.
    projected: less what the rest feels most. random: as smooth as the masked one."""
    p, t, s = study.p, study.middle, study.settings
    x, w = study.subject(t), study.region
    J = jacobian(posterior_mean(p, t), x)
    with any_of_equals():
        whole, v = (svd(A, 1, s.tol, s.seed).V for A in (J, mask(w) @ J))
        N = svd(mask(1 - w) @ J, s.k, s.tol, s.seed).V
    ways = {
        "no mask": whole,
        "masked": v,
        f"masked, projected off {s.k}": project_out(v, N),
        "random": study.smooth(v[0])[None],
    }
    lines, images, labels = [], [], []
    for name, v in ways.items():
        v = v / v.norm()
        parts = [float((mask(part) @ J).push(v).norm()) for part in (w, 1 - w)]
        lines.append([name, *parts, parts[0] / parts[1]])
        images.append(study.finish(study.moved(t, v[0], study.ladder), t))
        short = name.rpartition(", ")[2].partition(" off")[0]
        labels += [f"{short}\n{a:+.2f}" for a in study.ladder]
    yield pictures.strip(torch.cat(images), labels, columns=5, title=f"In the region, t = {t}")
    yield Table(["direction", "|J v| in the region", "in the rest", "ratio"], lines)


def frequencies(study: Study) -> Iterator[Piece]:
    """Coarse or fine? The frequency below which half of a direction's power lies, over t.

    White noise, beside it, is what a direction without a pattern has."""
    high, wide = study.p.shape[1:]
    if high != wide:
        yield f"x_t is {wide} x {high}: frequencies are counted on squares only."
        return
    lines = {}
    for name, label in NAMES.items():
        found = [_middle(study.basis(name, t).V) for t in study.times]
        lines[label] = (study.times, found)
    white = _middle(study.random(200))
    yield curves.over_time(
        lines, levels={"white noise": white}, ylabel="middle frequency", title="Cycles a picture"
    )


def _middle(V: Tensor) -> float:
    total = spectrum.spectral_density(V.cpu())[1].mean(0).cumsum(0)
    return float((total >= 0.5).int().argmax())


def distances(study: Study) -> Iterator[Piece]:
    """Do samples, and times, share their directions? The Grassmann distance of their spans.

    chance: of two random spans; floor: of one span found twice, from different starts."""
    s = study.settings
    chance = chance_distance(study.p.shape.numel(), s.k)
    lines: dict[str, Sequence[Any]] = {}
    for name, label in NAMES.items():
        V = {item: r.V.cpu() for item, r in study.bases(name).items()}
        pairs = [(i, j) for j in range(s.samples) for i in range(j)]
        y = [[float(distance(V[i, t], V[j, t])) for i, j in pairs] for t in study.times]
        lines[label] = (study.times, [sum(a) / len(a) for a in y], [*map(min, y)], [*map(max, y)])
    t = study.middle
    with any_of_equals():
        again = svd(jacobian(study.map("h", t), study.state(0, t)), s.k, s.tol, s.seed + 1)
    floor = float(distance(study.bases("h")[0, t].V.cpu(), again.V.cpu()))
    levels = {"chance": chance, "floor": floor}
    title = f"Between samples: spans of {s.k} directions"
    yield curves.over_time(lines, levels=levels, ylabel="distance", title=title)
    spans = [study.bases("h")[0, t].V.cpu() for t in study.times]
    M = torch.tensor([[float(distance(a, b)) for a in spans] for b in spans])
    title = "Between times: sample 0, encoder h"
    if len(spans) > 2:
        yield pictures.heat(M, rows=study.times, columns=study.times, label="distance", title=title)
    elif len(spans) == 2:
        a, b = study.times
        yield f"{title}: from t = {a} to {b} a distance of {float(M[0, 1]):.2f}."


def chance_distance(n: int, k: int) -> float:
    """The distance between two random spans of k among n dimensions, mean of four draws."""
    g = torch.Generator().manual_seed(0)
    spans = [torch.randn(k, n, generator=g) for _ in range(8)]
    return sum(float(distance(*spans[i : i + 2])) for i in range(0, 8, 2)) / 4


def shared(study: Study) -> Iterator[Piece]:
    """A direction carried to other samples, and the directions that all samples agree on.

    kept: the share of u, the image in h of sample 0's direction, that lies in the other's span."""
    s, p, lines = study.settings, study.p, []
    m = study.bases("h")[0, study.middle].U[0].numel()
    for t in study.times:
        for i in range(1, s.samples):
            shadow = [carry(u, study.bases("h")[i, t])[1] for u in study.bases("h")[0, t].U]
            kept = [float(a.square().sum()) for a in shadow]
            lines.append([t, f"0 to {i}", max(kept), sum(kept) / len(kept), s.k / m])
    yield Table(["t", "samples", "kept, best direction", "mean", "chance"], lines)
    t = study.times[0]
    bases = [study.bases("h")[i, t].U.cpu() for i in range(s.samples)]
    common, agreement = matched_average(bases)
    shares = mean_subspace(bases)[1]
    one = int(agreement.argmax())
    images, labels = [], []
    for i in range(s.samples):
        x = study.state(i, t)
        v = carry(common[one].to(p.device), study.bases("h")[i, t])[0]
        for a in (-s.strength, 0.0, s.strength):
            images.append(study.finish(move(p, x, t, v, a, 1)[-1] if a else x, t))
            labels.append(f"sample {i} {a:+.2f}")
    title = f"The direction of h most agreed on, at t = {t}"
    yield pictures.strip(torch.cat(images), labels, columns=3, title=title)
    yield (
        f"Agreement, mean |cosine| with its matches: {float(agreement[one]):.2f} for this one, "
        f"{float(agreement.min()):.2f} for the least agreed. Mean projector: the first shared "
        f"direction lies in {float(shares[0]):.2f} of the spans (chance {s.k / m:.4f}; a direction "
        f"of one sample alone gives {1 / s.samples:.2f})."
    )


def prompts(study: Study) -> Iterator[Piece]:
    """Does the text turn the directions? Distance between the bases of h under two texts.

    From the same noise, each text on its own way down. Beside it, the distance between samples
    under one text. Text models only."""
    s, p = study.settings, study.p
    if p.prompt is None:
        yield "This model takes no text."
        return
    others = study.bases("h", s.other)
    lines = []
    for t in study.times:
        texts = [
            float(distance(study.bases("h")[i, t].V, others[i, t].V)) for i in range(s.samples)
        ]
        pairs = [
            float(distance(study.bases("h")[i, t].V, study.bases("h")[j, t].V))
            for j in range(s.samples)
            for i in range(j)
        ]
        lines.append(
            [
                t,
                sum(texts) / len(texts),
                sum(pairs) / len(pairs),
                chance_distance(p.shape.numel(), s.k),
            ]
        )
    yield f"prompt {s.prompt or ''!r}, other {s.other!r}"
    yield Table(["t", "same sample, other text", "same text, other sample", "chance"], lines)


def cost(study: Study) -> Iterator[Piece]:
    """Passes, seconds and memory of a basis, an inversion, an edit and the way down.

    On a CPU the peak of memory is that of the whole process so far."""
    p, t, s = study.p, study.middle, study.settings
    x, steps = study.subject(t), study.steps(t)
    with torch.no_grad():
        drawn = p.decode(denoise(p, x, t, steps)).clamp(-1, 1)
    picture = drawn if study.picture is None else study.picture
    A = Timed(jacobian(study.map("h", t), x), p)
    with any_of_equals():
        r, seconds, peak = measured(p, lambda: svd(A, s.k, s.tol, s.seed))
    spent = f"{r.passes.push} + {r.passes.pull} passes"
    lines = [[f"local basis of h, k = {s.k}", spent, seconds, A.seconds / seconds, peak]]
    works = {
        "inversion": lambda: invert(p, picture, t, steps),
        "edit and the way down": lambda: study.finish(study.moved(t, r.V[0], [s.strength]), t),
    }
    for name, work in works.items():
        with torch.no_grad():
            _, seconds, peak = measured(p, work)
        lines.append([name, f"{steps} calls", seconds, "", peak])
    worst = float(r.residuals.max() / r.S[0])
    yield Table(["what", "cost", "seconds", "share of it in passes", "peak memory, GiB"], lines)
    yield (
        f"Worst residual {worst:.1e} of s_1 ({s.tol:g} asked). The papers' routine at the same k, "
        f"50 rounds of subspace iteration: {50 * s.k} + {50 * s.k} passes."
    )


PARTS: dict[str, Callable[[Study], Iterator[Piece]]] = {
    "Unedited": unedited,
    "Directions": directions,
    "Traversals": traversals,
    "Edits": edits,
    "One region": region,
    "Frequencies": frequencies,
    "Distances": distances,
    "Shared directions": shared,
    "Prompts": prompts,
    "Cost": cost,
}
