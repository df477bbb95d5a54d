"""Scenes with ALICE on the couch: the cure and its overdose, the switch that fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mathkit import data
from mathkit.arguments import integer, number
from mathkit.chapters import neurons, treatment
from mathkit.diffusion.edits import inject, move
from mathkit.diffusion.load import load_model
from mathkit.diffusion.model import Model
from mathkit.diffusion.sampling import denoise, posterior_mean, sample
from mathkit.draw.scenes.scene import Scene, Stage, colours, eased, held, split
from mathkit.linear.jacobian import jacobian
from mathkit.linear.subspaces import project_out
from mathkit.linear.svd import svd
from mathkit.show import puppets
from mathkit.show.reader import read_factors

PATIENT = 3  # whose place on the development list, as in chapter 13
EARLY, COURSE, AFTER = 749, (666, 583), (666, 583, 458, 333)  # its course, and the times of care
OFF = 5  # directions of the rest that are projected out


def _prescribed() -> tuple[int, float]:
    """Whom chapter 13 treats and at which dose, as data/protocol.json has it."""
    path = data.locate("protocol.json")
    chosen = json.loads(path.read_text()) if path else {}
    if chosen.get("weights") != data.fingerprint():
        raise ValueError(
            "data/protocol.json is missing or of other weights: give `patient` and `dose`, or run "
            "`python -m studies results protocol`"
        )
    return chosen["development"][PATIENT], chosen["strengths"][chosen["primary"]][0]


def aimed(p: Model, case: treatment.Cases, average: Tensor) -> Tensor:
    """The unit direction of chapter 13: J^T (average - E) in the region, off the rest.

    Args:
        p: the model.
        case: one case.
        average: the average puppet, as `mk.puppets.average_puppet()`.

    Returns: (1, *shape).
    Cost: one pull, and an `svd` of rank 12 for a case.
    """
    target = treatment.inside(case).push(treatment.towards(p, case, average))
    pull = treatment.mean_map(p, case).pull(target)
    v = project_out(pull, treatment.rest_svd(p, case, treatment.REST).V[:OFF])
    return v / v.norm()


def course(p: Model, case: treatment.Cases, strengths: list[float]) -> Tensor:
    """The course of chapter 13 at each strength: small aimed steps, begun early, with aftercare.

    Args:
        p: the model.
        case: one case, at any grid time.
        strengths: of each step, |x_t' - x_t| / |x_t|.

    Returns: (len(strengths), 3, 64, 64), in [-1, 1].
    Cost: per strength 20 network calls, and four `svd`s of rank 12.
    """
    average = puppets.average_puppet()

    def step(there: treatment.Cases, x: Tensor) -> Tensor:
        if there.t not in (EARLY, *COURSE):
            return x
        v = aimed(p, there, average)
        both = zip(x, strengths, strict=True)
        return torch.cat([move(p, one[None], there.t, v, s, 1)[-1] for one, s in both])

    start = treatment.at(p, case, EARLY)
    moved = step(start, start.xt.expand(len(strengths), *start.xt.shape[1:]))
    moved = treatment.cared_for(p, start, moved, AFTER, step)
    return treatment.finish(p, moved, AFTER[-1])


def cure(
    stops: int = 7,
    fine: int = 8,
    over: int = 4,
    patient: int | None = None,
    dose: float | None = None,
    n: int = 300,
) -> Scene:
    """He dissolves along the direction that was found, at the dose; at twice the dose, the harm.

    He goes at one strength almost at once, so most of them lie there: first `stops` even ones,
    then `fine` more between the two where P(Stranger) falls under .5. Each is a treatment from the
    start; the film goes through them one by one, slowest where he goes, and cross-fades neighbours.

    Args:
        stops: strengths from 0 to the dose, >= 2.
        fine: further ones where he goes.
        over: further ones from the dose to twice the dose, >= 1.
        patient: the sample of seed 1; None: the one on whom chapter 13 tries things.
        dose: strength of one step of the course; None: as data/protocol.json prescribes it.
        n: frames, >= 5.

    Returns: a scene with strengths (k,), treated (k, 64, 64, 3) and stranger (k,), P(Stranger) of
    each, k <= stops + fine + over; for each frame at (n,), its place among them, and strength (n,).
    Raises ValueError for numbers of another kind.
    Cost: for each strength about 25 network calls; in all a minute or two.
    """
    integer(fine, "fine")
    even = np.linspace(0, 1, integer(stops, "stops", 2))
    far = np.linspace(1, 2, integer(over, "over", 1) + 1)[1:]
    if patient is None or dose is None:
        whom, much = _prescribed()
        patient, dose = whom if patient is None else patient, much if dose is None else dose
    number(dose, "dose", 0, 1)
    strengths = dose * np.concatenate([even, far])
    p = load_model("alice", device="cpu")
    case = treatment.admit(p, 1, [patient], COURSE[-1])
    images = course(p, case, strengths.tolist())
    gone = int((read_factors(images)[:, puppets.STRANGER] < 0.5).byte().argmax())
    if fine and gone:
        between_two = np.linspace(strengths[gone - 1], strengths[gone], fine + 2)[1:-1]
        order = np.argsort(np.concatenate([strengths, between_two]))
        strengths = np.concatenate([strengths, between_two])[order]
        images = torch.cat([images, course(p, case, between_two.tolist())])[order]
    return _of_course(strengths, images, dose, n)


def _of_course(strengths: np.ndarray, images: Tensor, dose: float, n: int) -> Scene:
    seen = read_factors(images)[:, puppets.STRANGER].numpy()
    wait, go, rest, more, end = split(n, 4, 10, 4, 7, 5)
    top, last = float(abs(strengths - dose).argmin()), len(strengths) - 1.0
    slow = np.ones(int(top))  # the step at which he goes gets the time of six
    slow[min(max(0, int((seen < 0.5).argmax()) - 1), len(slow) - 1)] = 6
    clock = np.concatenate([[0], np.cumsum(slow)]) / slow.sum()
    going = np.interp(eased(go), clock, np.arange(len(clock)))
    moves = [np.zeros(wait), going, np.full(rest, top)]
    at = np.concatenate([*moves, top + (last - top) * eased(more), np.full(end, last)])
    words = held(
        ("drawn by ALICE, untreated", wait),
        ("a few small steps along one direction", go),
        ("the dose of the cure", rest),
        ("more of the same", more),
        ("twice the dose", end),
    )
    arrays = {
        "strengths": strengths, "treated": colours(images), "stranger": seen, "at": at,
        "strength": np.interp(at, np.arange(len(strengths)), strengths), "dose": np.array(dose),
    }  # fmt: skip
    half = float((at < (seen < 0.5).argmax() - 0.6).mean())  # the still: he is half gone
    return Scene("cure", "", arrays, words, _draw_cure, tape=True, poster=half)


def _draw_cure(scene: Scene, stage: Stage) -> Callable[[int], None]:
    from PIL import Image

    side = 7.2
    stage.figure.set_facecolor("black")
    faces = [np.asarray(Image.fromarray(a).resize((720, 720), Image.Resampling.BICUBIC))
             for a in scene["treated"]]  # fmt: skip
    image = stage.picture((stage.width - side) / 2, 0, side)
    ink = "#F2F2EA"
    box = {"facecolor": "black", "alpha": 0.55, "edgecolor": "none", "pad": 9}
    stage.caption.set(color=ink, bbox=box, y=0.55 / 7.2, fontsize=20, zorder=9)
    stage.words(1.4, 3.75, "P(Stranger)", color=ink, ha="center")
    seen = stage.words(1.4, 3.2, "", color=ink, ha="center", size=26, weight="bold")
    end = scene["strengths"][-1]
    # a dial of the strength at the right, with a tick at the dose
    x, low, high = stage.width - 1.1, 1.4, 5.4
    dial = stage.axes(x, low, 0.2, high - low)
    dial.set(xlim=(0, 1), ylim=(0, end), facecolor="#2a2a2a", xticks=[], yticks=[])
    (bar,) = dial.bar([0.5], [0], 1.0, color="#F2F2EA")
    dial.axhline(float(scene["dose"]), color=stage.accent, lw=4)
    stage.words(x - 0.2, (low + high) / 2, "dose", color=ink, ha="right")
    stage.words(x + 0.1, low - 0.35, "strength", color=ink, ha="center")

    def show(i: int) -> None:
        at = float(scene["at"][i])
        image.set_data(between(faces, at))
        bar.set_height(float(scene["strength"][i]))
        seen.set_text(f"{scene['stranger'][round(at)]:.2f}")

    return show


def switched_off(strengths: tuple[float, ...] = (0, 1, 4, 8, 16, 32), n: int = 240) -> Scene:
    """The neuron that knows him best is switched off and turned round; he stays, the face goes.

    Args:
        strengths: s, the channel of h is multiplied by 1 - s at every step; 0 first.
        n: frames, >= len(strengths).

    Returns: a scene with strengths (k,), treated (k, 64, 64, 3), stranger (k,) by the reader, which
    (n,) of them a frame shows, and the neuron's number and correlation.
    Cost: 20 network calls per strength.
    """
    table = data.stored("neurons")
    H, z = torch.tensor(table["h"]), torch.tensor(table["factors"])
    r = neurons.correlations(H, (z[:, puppets.STRANGER :] > 0.5).float())[:, 0]
    best, p = int(r.abs().argmax()), load_model("alice", device="cpu")
    t, steps = 957, 24
    xt = treatment.trajectory(p, table["seed"], [table["tried_on"][1]], t)
    off = neurons.silenced(best)
    edits = (inject(off, t, 0, s) for s in strengths)
    images = torch.cat([denoise(p, xt, t, steps, h_edit=h) for h in edits]).clamp(-1, 1)
    parts = split(n, *[1] * len(strengths))
    arrays = {
        "strengths": np.array(strengths, float), "treated": colours(images),
        "stranger": read_factors(images)[:, puppets.STRANGER].numpy(),
        "which": np.repeat(np.arange(len(parts)), parts),
        "neuron": np.array(best), "correlation": r[best].numpy(),
    }  # fmt: skip
    words = {0: "untreated", 1: f"s = 1: neuron {best}, which knows him best, is switched off"}
    lines = [words.get(i, f"s = {s:g}: turned round") for i, s in enumerate(strengths)]
    captions = held(*zip(lines, parts, strict=True))
    return Scene("switch", "The switch beside him", arrays, captions, _draw_switched)


def _draw_switched(scene: Scene, stage: Stage) -> Callable[[int], None]:
    left = stage.picture(0.55, 0.95, 5.1, smooth=False)
    k = len(scene["strengths"])
    chart = stage.chart(7.0, 1.6, stage.width - 7.7, 4.0, xlim=(-0.5, k - 0.5), ylim=(0, 1.08))
    chart.set(yticks=[0, 1])
    chart.set_xticks(range(k), [f"{s:g}" for s in scene["strengths"]])
    chart.set_xlabel("s", fontsize=18)
    chart.set_title("P(Stranger), read off the drawing", fontsize=18, loc="left")
    bars = chart.bar(range(k), 0, color=stage.accent)

    def show(i: int) -> None:
        now = int(scene["which"][i])
        left.set_data(scene["treated"][now])
        for j, bar in enumerate(bars):
            bar.set_height(float(scene["stranger"][j]) if j <= now else 0)

    return show


def snow(index: int = 4, seed: int = 0, steps: int = 25, n: int = 240) -> Scene:
    """From snow to a puppet: the sheet on its way down, and what ALICE expects to find under it.

    Args:
        index: which drawing of the seed.
        seed: of the snow.
        steps: network calls.
        n: frames, >= 2.

    Returns: a scene with times (steps - 1,), sheets and guesses (steps, 64, 64, 3), the last the
    finished drawing, and at (n,), the place of each frame between them.
    Cost: 2 steps network calls.
    """
    p = load_model("alice", device="cpu")
    sheets: list[tuple[int, Tensor]] = []
    done = sample(p, index=[index], seed=seed, steps=steps,
                  callback=lambda i, t, x: sheets.append((t, x)))  # fmt: skip
    sheets = [(t, x) for t, x in sheets if t >= 0]
    with torch.no_grad():
        guesses = [posterior_mean(p, t)(x) for t, x in sheets]
    times = [t for t, _ in sheets]
    wait, go, end = split(n, 1, 6, 2)
    at = np.concatenate([np.zeros(wait), eased(go) * len(times), np.full(end, len(times))])
    arrays = {
        "times": np.array(times), "at": at,
        "sheets": colours(torch.cat([*(x for _, x in sheets), done]).clamp(-1, 1)),
        "guesses": colours(torch.cat([*guesses, done]).clamp(-1, 1)),
    }  # fmt: skip
    named = [*(f"t = {t}" for t in times), "finished"]
    captions = tuple(named[min(int(a), len(times))] for a in at)
    return Scene("snow", "From snow to a puppet", arrays, captions, _draw_snow)


def _draw_snow(scene: Scene, stage: Stage) -> Callable[[int], None]:
    gap = stage.width / 4
    left = stage.picture(gap - 2.4, 1.25, 4.8, "the sheet", smooth=False)
    right = stage.picture(3 * gap - 2.4, 1.25, 4.8, "what she expects under it", smooth=False)

    def show(i: int) -> None:
        for picture, name in ((left, "sheets"), (right, "guesses")):
            picture.set_data(between(scene[name], float(scene["at"][i])))

    return show


def between(images: Sequence[np.ndarray] | np.ndarray, at: float) -> np.ndarray:
    """Number `at` of the images, cross-faded where it is between two."""
    k = min(int(at), len(images) - 2)
    mixed = (k + 1 - at) * images[k].astype(float) + (at - k) * images[k + 1]
    return np.rint(mixed).astype(np.uint8)


def coarse_to_fine(
    index: int = 4,
    seed: int = 0,
    times: tuple[int, ...] = (916, 749, 583, 416, 250, 125),
    n: int = 240,
) -> Scene:
    """The three directions in which her guess is most open, while the snow falls away.

    Args:
        index: which drawing of the seed.
        seed: of the snow.
        times: of the sampling grid, falling.
        n: frames, >= len(times).

    Returns: a scene with times (k,), sheets (k, 64, 64, 3), directions (k, 3, 64, 64, 3), signed
    pictures, S (k, 3), and which (n,) of them a frame shows.
    Raises ValueError where a time is none of the grid.
    Cost: an `mk.svd` of rank 3 through the network for each time.
    """
    p = load_model("alice", device="cpu")
    sheets, pages, values = [], [], []
    for t in times:
        x = treatment.trajectory(p, seed, [index], t)
        r = svd(jacobian(posterior_mean(p, t), x), 3, tol=1e-2)
        sheets.append(x)
        pages.append(colours(r.V, signed=True))
        values.append(r.S.numpy())
    parts = split(n, *[1] * len(times))
    arrays = {
        "times": np.array(times), "sheets": colours(torch.cat(sheets).clamp(-1, 1)),
        "directions": np.stack(pages), "S": np.stack(values),
        "which": np.repeat(np.arange(len(times)), parts),
    }  # fmt: skip
    captions = held(*((f"t = {t}", k) for t, k in zip(times, parts, strict=True)))
    title = "Which direction is still open? First the stage, then the face"
    return Scene("fine", title, arrays, captions, _draw_fine)


def _draw_fine(scene: Scene, stage: Stage) -> Callable[[int], None]:
    side = (stage.width - 1.1 - 0.9) / 4
    x = [0.55 + k * (side + 0.3) for k in range(4)]
    names = ["the sheet", *(f"direction {k}" for k in (1, 2, 3))]
    pictures = [stage.picture(a, 2.2, side, name, smooth=False)
                for a, name in zip(x, names, strict=True)]  # fmt: skip

    def show(i: int) -> None:
        k = int(scene["which"][i])
        for picture, face in zip(
            pictures, [scene["sheets"][k], *scene["directions"][k]], strict=True
        ):
            picture.set_data(face)

    return show
