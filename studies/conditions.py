"""When does a derivative earn its keep? The region known badly or not at all, and edits of degree.

`python -m studies results conditions` treats the first test patients of the trial by the rows of
the second amendment and by the clipped course, each told the region in several wrong ways;
`... degree` turns one dial by a given amount, by redrawing its region and by one pull; `... pulls`
measures the first pull of the ill and of the healthy, before he can be seen.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mathkit import data
from mathkit.chapters import treatment
from mathkit.chapters.treatment import Cases
from mathkit.diffusion.model import Model
from mathkit.linear.subspaces import project_out
from mathkit.scores import side_effect
from mathkit.show import puppets
from mathkit.show.reader import fit_factors, read_factors
from studies import baselines, methods, trial
from studies.baselines import Baseline
from studies.methods import Row
from studies.rows import ADDED, EARLY, EDIT_TIME, OTHERS
from studies.runner import TEST_FROM, job, publish

PATIENTS = 20  # the trial's first
COUNT = 60  # of its ill, and of its healthy, whose pulls are measured
TRIED = ("redrawn, three looks", "average pasted in")  # of the rows without a derivative
OFF, MARGIN = 6, 6  # pixels by which a region misses him, and that a box is too wide
CARRIED = ("carried", "matched")  # rows of the trial that are told no region
DIALS = ("hat_height", "smile", "nose_size")
WAYS = ("untouched", "redrawn, one look", "redrawn", "pulled", "pulled at noise")
TURN, LOOKS = 0.25, 3  # of a dial's range; pictures redrawn of which one is chosen
LATE = 166  # on development samples a step taken here missed least of 416, 333, 250 and 166


def told(region: Tensor) -> dict[str, Tensor]:
    """What somebody may believe of the true region (1, H, W): each of that shape.

    "outline": the truth. "box": its bounding box, MARGIN wider on each side. "half": its lower
    half. "missed": moved OFF pixels down and to the middle. "everywhere": nothing is known.
    """
    at = region[0].nonzero()
    (top, left), (bottom, right) = at.amin(0).tolist(), at.amax(0).tolist()
    size = region.shape[-1]
    box, half = torch.zeros_like(region), region.clone()
    above, before = max(top - MARGIN, 0), max(left - MARGIN, 0)
    box[:, above : bottom + MARGIN + 1, before : right + MARGIN + 1] = 1
    half[:, : (top + bottom + 1) // 2] = 0
    start = 0 if left + right < size - 1 else 2 * OFF
    missed = F.pad(region, (OFF, OFF, OFF, OFF))[:, :size, start : start + size]
    regions = {"outline": region, "box": box, "half": half, "missed": missed}
    return regions | {"everywhere": torch.ones_like(region)}


def course_row(whole: bool) -> Row:
    """The clipped course; where the region is everything there is no rest to be spared."""
    return dataclasses.replace(ADDED[0], rest=0) if whole else ADDED[0]


def run_conditions() -> None:
    """The table `conditions`: every belief, every row, on the first PATIENTS ill test samples."""
    chosen, more = trial.amended(), baselines.amendment()
    ward = trial.Ward(chosen["limit"], trial.kept())
    index = data.stored("trial")["index"][:PATIENTS]
    rows = [Baseline(**row) for row in more["rows"] if row["name"] in TRIED]
    work = functools.partial(_patient, ward, chosen, rows)
    settings = trial.digest({"protocol": chosen, "more": more, "off": [OFF, MARGIN]})
    answers = job("conditions", index, work, settings=settings)
    columns = trial.columns_of(answers, ("p", "left", "side", "outside"))
    seen = [a["rows"][0]["seen"] for a in answers]
    head = {"seed": TEST_FROM, "index": index, "seen": seen}
    publish("conditions", head | {"rows": columns}, answers)


def _patient(
    ward: trial.Ward, chosen: dict[str, Any], rows: Sequence[Baseline], i: int
) -> list[dict[str, Any]]:
    p, records = ward.p, []
    case = treatment.admit(p, TEST_FROM, [i], EDIT_TIME)
    path = treatment.path(p, case)
    seen = round(float(puppets.stranger_mask(case.q).sum()))

    def judged(belief: str, name: str, images: Tensor) -> None:
        marks = treatment.judge(case, images, ward.limit, ward.unrelated)
        head = {"row": f"{belief}: {name}", "strength": 0, "index": i, "seen": seen}
        records.append(head | treatment.record(marks, 0))

    for belief, region in told(case.region).items():
        believed = case.believing(region)
        for row in rows:
            judged(belief, row.name, baselines.treated(p, believed, row, ward.average, path)[0])
        course = course_row(belief == "everywhere")
        strength = chosen["strengths"][course.name][:1]
        judged(belief, course.name, methods.prescribed(p, believed, course, strength, ward.average))
    for plain in (row for row in OTHERS if row.name in CARRIED):
        for dose, strength in zip(chosen["doses"], chosen["strengths"][plain.name], strict=True):
            kept = ward.kept
            images = methods.prescribed(p, case, plain, [strength], ward.average, kept)
            judged(f"unasked, {dose}", plain.name, images)
    return records


def by_belief(table: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Belief -> row -> "cured / ill / destroyed; side effect", of the table `conditions`."""
    found: dict[str, dict[str, str]] = {}
    for name, (entry,) in table["rows"].items():
        belief, row = name.split(": ")
        found.setdefault(belief, {})[row] = "; ".join(trial.brief(entry)[:2])
    return found


def run_degree() -> None:
    """The table `degree`: DIALS turned by TURN on the first PATIENTS ill test patients."""
    ward = trial.Ward(trial.protocol()["limit"], {})
    index = data.stored("trial")["index"][:PATIENTS]
    settings = trial.digest({"dials": DIALS, "turn": TURN, "t": LATE, "looks": LOOKS})
    answers = job("degree", index, lambda i: turned(ward, TEST_FROM, i), settings=settings)
    head = {"seed": TEST_FROM, "index": index, "turn": TURN, "t": LATE, "looks": LOOKS}
    publish("degree", head | {"rows": sum((a["rows"] for a in answers), [])}, answers)


def turned(ward: trial.Ward, seed: int, i: int) -> list[dict[str, Any]]:
    """Each dial of one patient turned towards its middle by TURN, in five ways: flat records.

    "untouched". "redrawn, one look": the noise of the region drawn again. "redrawn": of LOOKS such
    pictures the one that the reader finds nearest to what was asked. "pulled": one step of
    `dial_step` at LATE, never looked at. "pulled at noise": a step of that length along the pull of
    a random way in the region. miss: how far the dial, fitted through the renderer, is from what
    was asked. side: the picture's distance to the true one.
    """
    p, records = ward.p, []
    case = treatment.admit(p, seed, [i], EDIT_TIME)
    path = treatment.path(p, case)
    for name in DIALS:
        j, q = puppets.FACTORS.index(name), case.q.clone()
        by = TURN if q[0, j] < 0.5 else -TURN
        q[:, j] += by
        change = puppets.render(q) - puppets.render(case.q)
        one = treatment.at(p, case, LATE).believing(treatment.region(change))
        draws = [baselines.held(p, one, path, baselines.START, n) for n in range(LOOKS)]
        nearest = min(draws, key=lambda y: float((read_factors(y)[0, j] - q[0, j]).abs()))
        step = dial_step(p, one, j, by)
        lost = treatment.mean_map(p, one).pull(treatment.inside(one).push(treatment.gaussian(one)))
        lost = lost * (step.norm() / lost.norm())
        stepped = [treatment.finish(p, one.xt + d, LATE) for d in (step, lost)]
        images = dict(zip(WAYS, (case.x0, draws[0], nearest, *stepped), strict=True))
        found, _ = fit_factors(torch.cat([*images.values()]))
        for k, (way, y) in enumerate(images.items()):
            record = {"dial": name, "way": way, "index": i}
            record["miss"] = round(float((found[k, j] - q[0, j]).abs()), 4)
            record["side"] = round(float(side_effect(y, case.x0 + change, ward.unrelated)), 4)
            records.append(record)
    return records


def by_dial(table: dict[str, Any], mark: str) -> dict[str, list[float]]:
    """Way -> the mean of "miss" or "side" for each of DIALS, of the table `degree`."""
    return {
        way: [
            statistics.mean(r[mark] for r in table["rows"] if (r["dial"], r["way"]) == (dial, way))
            for dial in DIALS
        ]
        for way in WAYS
    }


def dial_step(p: Model, case: Cases, j: int, by: float) -> Tensor:
    """The shortest step of x_t that turns the reader's dial j of the posterior mean by `by`, to
    first order: (1, *shape).

    With w the dial's gradient in the region: by v / <w, J v> along v = J^T w. One pull, one push.
    """
    J = treatment.mean_map(p, case)
    w = treatment.inside(case).push(methods.read_slope(p, case, j))
    v = J.pull(w)
    return v * (by / (w * J.push(v)).sum())


def run_pulls() -> None:
    """The table `pulls`: the first pull of the first COUNT ill and healthy samples of the trial."""
    ward = trial.Ward(trial.protocol()["limit"], {})
    ill, well = (data.stored(name)["index"][:COUNT] for name in ("trial", "trial_healthy"))

    def measured(i: int) -> dict[str, float]:
        case = treatment.admit(ward.p, TEST_FROM, [i], EDIT_TIME)
        return pull_lengths(ward.p, treatment.at(ward.p, case, EARLY), ward.average)

    settings = trial.digest({"t": EARLY, "rest": ADDED[0].rest, "seen": "log-odds"})
    answers = job("pulls", ill + well, measured, settings=settings)
    rows = {name: [a["rows"][name] for a in answers] for name in answers[0]["rows"]}
    publish("pulls", {"seed": TEST_FROM, "t": EARLY, "ill": ill, "well": well} | rows, answers)


def pull_lengths(p: Model, case: Cases, average: Tensor) -> dict[str, float]:
    """What might tell whether one case is ill, before he can be seen.

    "aimed": the length of the pull J^T M w that the course takes, w = average - E, with what the
    rest feels most projected out. "pulled": before that. "way": |M w|, with no derivative.
    "everywhere": |J^T w|, with no region. "seen": the log-odds of P(Stranger) in E.
    """
    J, w = treatment.mean_map(p, case), treatment.towards(p, case, average)
    way = treatment.inside(case).push(w)
    pull, rest = J.pull(way), treatment.rest_svd(p, case, treatment.REST).V[: ADDED[0].rest]
    found = {"aimed": project_out(pull, rest), "pulled": pull, "way": way, "everywhere": J.pull(w)}
    seen = read_factors((average.to(w) - w).clamp(-1, 1))[0, puppets.STRANGER].double()
    odds = float(torch.logit(seen, eps=1e-12))  # most are next to 0, and differ there
    return {k: round(float(v.norm()), 3) for k, v in found.items()} | {"seen": round(odds, 3)}
