"""When does a derivative earn its keep? The region known badly or not at all, and edits of degree.

`python -m studies results conditions` treats the first test patients of the trial by the rows of
the second amendment and by the clipped course, each told the region in several wrong ways;
`... edges` treats ill and healthy ones by them when all that is known is where Strangers stand;
`... costs` measures how long each takes;
`... degree` turns one dial by a given amount, by redrawing its region and by one pull; `... pulls`
measures the first pull of the ill and of the healthy, before he can be seen.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mathkit import data
from mathkit.chapters import treatment
from mathkit.chapters.treatment import Cases
from mathkit.diffusion.model import Model
from mathkit.diffusion.sampling import sample
from mathkit.linear.subspaces import project_out
from mathkit.scores import side_effect
from mathkit.show import puppets
from mathkit.show.reader import fit_factors, read_factors
from studies import baselines, methods, trial
from studies.baselines import Baseline
from studies.methods import Row
from studies.rows import ADDED, CONTROL, EARLY, EDIT_TIME, OTHERS, PRIMARY, ROWS
from studies.runner import TEST_FROM, job, publish

PATIENTS = 20  # the trial's first
TIMED = 5  # whose treatments are timed
COUNT = 60  # of its ill, and of its healthy, whose pulls are measured
TRIED = ("redrawn, three looks", "average pasted in")  # of the rows without a derivative
OFF, MARGIN = 6, 6  # pixels by which a region misses him, and that a box is too wide
IN_THE_HEALTHY = "both edges, in the healthy"  # there, ill is a new Stranger
STRANGERS = 200  # of the show, drawn with seed 0, whose places make both edges
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


def both_edges() -> Tensor:
    """The pixels that at least one of STRANGERS covers, grown like any region: (1, H, W)."""
    q = puppets.sample_factors(STRANGERS, seed=0, stranger=1)
    covered = (puppets.stranger_mask(q) > 0.5).float().amax(0, keepdim=True)
    return treatment.region(covered[None])


def course_row(whole: bool) -> Row:
    """The clipped course; where the region is everything there is no rest to be spared."""
    return dataclasses.replace(ADDED[0], rest=0) if whole else ADDED[0]


def run_conditions() -> None:
    """The table `conditions`: every belief, every row, on the first PATIENTS ill test samples."""
    ward, chosen, more = _protocol()
    index = data.stored("trial")["index"][:PATIENTS]
    settings = trial.digest({"protocol": chosen, "more": more, "off": [OFF, MARGIN]})

    def treated(i: int) -> list[dict[str, Any]]:
        case = treatment.admit(ward.p, TEST_FROM, [i], EDIT_TIME)
        beliefs = believing(ward, chosen, more, case, told(case.region))
        return beliefs + asking_nobody(ward, chosen, case)

    answers = job("conditions", index, treated, settings=settings)
    columns = trial.columns_of(answers, ("p", "left", "side", "outside"))
    seen = [a["rows"][0]["seen"] for a in answers]
    head = {"seed": TEST_FROM, "index": index, "seen": seen}
    publish("conditions", head | {"rows": columns}, answers)


def run_edges() -> None:
    """The table `edges`: `both_edges` treated, in the first PATIENTS ill and as many healthy."""
    ward, chosen, more = _protocol()
    index = [
        i for name in ("trial", "trial_healthy") for i in data.stored(name)["index"][:PATIENTS]
    ]
    settings = trial.digest({"protocol": chosen, "more": more, "strangers": STRANGERS})

    def treated(i: int) -> list[dict[str, Any]]:
        case = treatment.admit(ward.p, TEST_FROM, [i], EDIT_TIME)
        return believing(ward, chosen, more, case, {"both edges": both_edges()})

    answers = job("edges", index, treated, settings=settings)
    head = {"seed": TEST_FROM, "index": index}
    columns: dict[str, Any] = {}
    for belief, part in (("both edges", answers[:PATIENTS]), (IN_THE_HEALTHY, answers[PATIENTS:])):
        of_these = trial.columns_of(part, ("p", "left", "side", "outside"))
        columns |= {f"{belief}: {name.split(': ')[1]}": row for name, row in of_these.items()}
    publish("edges", head | {"rows": columns}, answers)


def _protocol() -> tuple[trial.Ward, dict[str, Any], dict[str, Any]]:
    chosen = trial.amended()
    return trial.Ward(chosen["limit"], trial.kept()), chosen, baselines.amendment()


def _record(
    ward: trial.Ward, case: Cases, belief: str, name: str, images: Tensor
) -> dict[str, Any]:
    marks = treatment.judge(case, images, ward.limit, ward.unrelated)
    seen = round(float(puppets.stranger_mask(case.q).sum()))
    head = {"row": f"{belief}: {name}", "strength": 0, "index": case.index[0], "seen": seen}
    return head | treatment.record(marks, 0)


def believing(
    ward: trial.Ward,
    chosen: dict[str, Any],
    more: dict[str, Any],
    case: Cases,
    beliefs: Mapping[str, Tensor],
) -> list[dict[str, Any]]:
    """One case treated by TRIED and by the clipped course, told each region of `beliefs`."""
    p, average, records = ward.p, ward.average, []
    path = treatment.path(p, case)
    rows = [Baseline(**row) for row in more["rows"] if row["name"] in TRIED]
    for belief, region in beliefs.items():
        believed = case.believing(region)
        for row in rows:
            images = baselines.treated(p, believed, row, average, path)[0]
            records.append(_record(ward, case, belief, row.name, images))
        course = course_row(belief == "everywhere")
        strength = chosen["strengths"][course.name][:1]
        images = methods.prescribed(p, believed, course, strength, average)
        records.append(_record(ward, case, belief, course.name, images))
    return records


def asking_nobody(ward: trial.Ward, chosen: dict[str, Any], case: Cases) -> list[dict[str, Any]]:
    """One case treated by the rows CARRIED, which are told no region of it, at each dose."""
    records = []
    for plain in (row for row in OTHERS if row.name in CARRIED):
        for dose, strength in zip(chosen["doses"], chosen["strengths"][plain.name], strict=True):
            how = plain, [strength], ward.average, ward.kept
            images = methods.prescribed(ward.p, case, *how)
            records.append(_record(ward, case, f"unasked, {dose}", plain.name, images))
    return records


def by_belief(*tables: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Belief -> row -> "cured / ill / destroyed; side effect", of `conditions` and of `edges`."""
    found: dict[str, dict[str, str]] = {}
    for name, (entry,) in (pair for table in tables for pair in table["rows"].items()):
        belief, row = name.split(": ")
        found.setdefault(belief, {})[row] = "; ".join(trial.brief(entry)[:2])
    return found


def run_costs() -> None:
    """The table `costs`: the time that each row of both amendments takes for a patient, in drawings
    of 25 network calls, on average over the first TIMED of the trial."""
    ward, chosen, more = _protocol()
    index = data.stored("trial")["index"][:TIMED]
    names = (PRIMARY, CONTROL, ADDED[0].name)
    courses = [row for row in dict.fromkeys([*ROWS, *ADDED]) if row.name in names]
    plain = [Baseline(**row) for row in more["rows"]]

    def fresh(i: int) -> Cases:
        return treatment.admit(ward.p, TEST_FROM, [i], EDIT_TIME)  # nothing is known of it yet

    def timed(i: int) -> dict[str, float]:
        found, case = {}, fresh(i)
        path = treatment.path(ward.p, case)
        for row in plain:
            how = case, row, ward.average, path
            found[row.name] = seconds(functools.partial(baselines.treated, ward.p, *how))
        for course in courses:
            what = fresh(i), course, chosen["strengths"][course.name][:1], ward.average
            found[course.name] = seconds(functools.partial(methods.prescribed, ward.p, *what))
        drawing = seconds(lambda: sample(ward.p, seed=TEST_FROM, index=[i]))
        return {name: took / drawing for name, took in found.items()}

    settings = trial.digest({"protocol": chosen, "more": more})
    answers = job("costs", index, timed, settings=settings)
    means = {
        name: round(statistics.mean(a["rows"][name] for a in answers), 1)
        for name in answers[0]["rows"]
    }
    publish("costs", {"seed": TEST_FROM, "index": index, "drawings": means}, answers)


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


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
