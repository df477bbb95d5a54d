"""What needs no derivative: the region's noise redrawn, the rest held to the untreated path.

When the trial's outcome was known these rows were added to it, for whoever has the region can do
so: `python -m studies results second_amendment` fixes them on development samples,
`... baselines` and `... baselines_healthy` treat the test samples of the trial by them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from itertools import count, pairwise
from typing import Any

import torch
from torch import Tensor

from mathkit import data
from mathkit.chapters import treatment
from mathkit.chapters.treatment import Cases
from mathkit.diffusion.model import Model
from mathkit.diffusion.sampling import ddim_step, start
from mathkit.linear.jacobian import jacobian
from mathkit.scores import rounded
from studies import trial
from studies.rows import EARLY, EDIT_TIME
from studies.runner import TEST_FROM, job, publish

AMENDMENT = "second_amendment.json"
START = 999  # the top of the sampling grid
LOT = 20  # cases treated at a time
COUNT = 100  # of the ill, and of the healthy, of the trial
STREAM = 100  # a draw's random numbers of (seed, index) begin at a multiple of it


@dataclasses.dataclass(frozen=True)
class Baseline:
    """One row: what is put into the region, and how the sampler goes on from there.

    kind: "untreated"; "redrawn": fresh noise in the region at t = T - 1; "pasted": the average
    puppet in the region, noised to `since` (SDEdit, blended diffusion); both then denoised with
    eta = 1, the rest of the picture held to the untreated path at every time. "guided": at every
    time from `since` on a step of length `strength` against the gradient of
    |region (average - E[x_0 | x_t])| (reconstruction guidance, DPS), nothing held.
    looks: how often the picture is looked at and redrawn while he is seen, the first included.
    supervision: what the row is told beyond the region.
    """

    name: str
    kind: str
    since: int = START
    looks: int = 1
    strength: float = 0.0
    supervision: str = "region"


ROWS = (
    Baseline("untreated", "untreated", supervision="none"),
    Baseline("redrawn", "redrawn"),
    Baseline("redrawn, three looks", "redrawn", looks=3, supervision="labels"),
    Baseline("average pasted in", "pasted", since=EDIT_TIME),
    Baseline("guided to the average", "guided", since=EARLY),
)
GRID = (0.01, 0.03, 0.1, 0.2, 0.4, 0.8)  # strengths of guidance tried on development samples


def treated(
    p: Model,
    cases: Cases,
    row: Baseline,
    average: Tensor,
    path: Mapping[int, Tensor],
    drawn: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The pictures (B, 3, H, W) in [-1, 1] that `row` makes, and how many draws each took, (B,).

    A picture is drawn again where he is seen in it, as often as the row allows. path:
    `treatment.path` of the cases. drawn: the first draw of the row, where another has made it.
    """
    draws = torch.ones(len(cases), dtype=torch.int64)
    if row.kind == "untreated":
        return cases.x0, 0 * draws
    if row.kind == "guided":
        return guided(p, cases, average, row.since, row.strength), draws
    paste = average if row.kind == "pasted" else None
    first = held(p, cases, path, row.since, 0, paste) if drawn is None else drawn
    images = first.clone()
    for look in range(1, row.looks):
        ill = treatment.read_stranger(images)
        if not ill.any():
            break
        again, theirs = cases.rows(ill.nonzero().flatten().tolist()), _some(path, ill)
        images[ill] = held(p, again, theirs, row.since, look, paste)
        draws[ill] += 1
    return images, draws


def _some(path: Mapping[int, Tensor], rows: Tensor) -> dict[int, Tensor]:
    return {t: x[rows] for t, x in path.items()}


def held(
    p: Model,
    cases: Cases,
    path: Mapping[int, Tensor],
    since: int,
    draw: int,
    paste: Tensor | None = None,
) -> Tensor:
    """The region drawn again from `since` on, the rest as on the untreated path: (B, 3, H, W).

    paste: a picture (1, 3, H, W) put there, noised to `since`; None is the noise alone. draw:
    another number draws others; item i depends on (seed, index[i], draw) alone.
    Cost: an item the network calls from `since` down.
    """
    inside = cases.region[:, None].bool()
    streams = count(STREAM * (1 + draw))
    noise = (start(p, cases.seed, cases.index, stream) for stream in streams)
    s, n = p.levels.pair(since)
    fresh = next(noise)
    new = fresh if paste is None else s * paste.to(fresh) + n * fresh
    x = torch.where(inside, new, path[since])
    with torch.no_grad():
        for now, then in pairwise([*treatment.grid(p, since), -1]):
            eps = p.chunked(x, lambda part, _, t=now: p.noise(part, t))  # type: ignore[misc]
            x = ddim_step(x, eps, p.levels.pair(now), p.levels.pair(then), 1.0, next(noise))
            x = torch.where(inside, x, path[then])
    return x.clamp(-1, 1)


def guided(p: Model, cases: Cases, average: Tensor, since: int, strength: float) -> Tensor:
    """Reconstruction guidance towards the average puppet in the region: (B, 3, H, W).

    At every time from `since` down, after the step of DDIM: x <- x - strength grad |r|,
    r = region (average - E[x_0 | x_t]), by one pull J^T r / |r|.
    Cost: an item 25 network calls and a pull for each time from `since` on.
    Source: DPS, 2209.14687.
    """
    return torch.cat([_guided(p, cases[i], average, since, strength) for i in range(len(cases))])


def _guided(p: Model, case: Cases, average: Tensor, since: int, strength: float) -> Tensor:
    x = treatment.at(p, case, since).xt
    for now, then in pairwise([*treatment.grid(p, since), -1]):
        J = jacobian(lambda z, t=now: p.clean(z, t), x)  # type: ignore[misc]
        with torch.no_grad():
            eps = p.noise(x, now)
            mean = p.clean(x, now)
            r = case.region[:, None] * (average.to(x) - mean)
            step = J.pull(r / r.norm())
            x = ddim_step(x, eps, p.levels.pair(now), p.levels.pair(then)) + strength * step
    return x.clamp(-1, 1)


def write_amendment() -> None:
    """Set the strength of guidance on the protocol's development patients; write all rows down."""
    chosen = trial.protocol()
    ward = trial.Ward(chosen["limit"], {})
    row = next(row for row in ROWS if row.kind == "guided")

    def sweep(i: int) -> list[float]:
        case = treatment.admit(ward.p, trial.DEVELOPMENT, [i], EDIT_TIME)
        images = [guided(ward.p, case, ward.average, row.since, s) for s in GRID]
        shared = chosen["limit"], chosen["unrelated"]
        return rounded(treatment.judge(case.repeat(len(GRID)), torch.cat(images), *shared)["side"])

    settings = trial.digest({"row": dataclasses.asdict(row), "grid": GRID})
    found = job("second_amendment_sweep", chosen["development"], sweep, settings=settings)
    effects = torch.tensor([answer["rows"] for answer in found]).mean(0).tolist()
    dose = chosen["doses"][0]
    strength = float(f"{treatment.dose(GRID, effects, dose):.4g}")
    rows = [dataclasses.replace(r, strength=strength if r is row else 0.0) for r in ROWS]
    table = {
        "protocol": trial.digest(chosen),
        "rows": [dataclasses.asdict(r) for r in rows],
        "guidance": {"strengths": list(GRID), "side effects": rounded(effects), "dose": dose},
    }
    trial.write(AMENDMENT, table)


def amendment() -> dict[str, Any]:
    """The second amendment, data/second_amendment.json; ValueError where it is of another
    protocol, FileNotFoundError where there is none."""
    found: dict[str, Any] = json.loads(trial.find(AMENDMENT).read_text())
    if found["protocol"] != trial.digest(trial.protocol()):
        raise ValueError(
            f"{AMENDMENT} is of another protocol: run `... results second_amendment` again"
        )
    return found


def run(name: str) -> None:
    """One table: the test samples of the trial, the ill or the healthy, treated by every row."""
    chosen, more = trial.protocol(), amendment()
    ward = trial.Ward(chosen["limit"], {})
    index = data.stored("trial" if name == "baselines" else "trial_healthy")["index"][:COUNT]
    rows = [Baseline(**row) for row in more["rows"]]
    lots = [index[i : i + LOT] for i in range(0, len(index), LOT)]
    work = functools.partial(_lot, ward, chosen, rows)
    answers = job(name, lots, work, settings=trial.digest(more))
    marks = trial.MARKS if name == "baselines" else ("p", "side", "outside")
    columns = trial.columns_of(answers, marks)
    for row, (column,) in columns.items():
        records = [r for answer in answers for r in answer["rows"] if r["row"] == row]
        column["draws"] = [r["draws"] for r in records]
    head = {"amendment": trial.digest(more), "seed": TEST_FROM, "index": index}
    publish(name, head | {"rows": columns}, answers)


def _lot(
    ward: trial.Ward, chosen: Mapping[str, Any], rows: Sequence[Baseline], index: Sequence[int]
) -> list[dict[str, Any]]:
    cases = treatment.admit(ward.p, TEST_FROM, index, EDIT_TIME)
    records, path = [], treatment.path(ward.p, cases)
    once: Tensor | None = None
    for row in rows:
        drawn = once if row.kind == "redrawn" else None
        images, draws = treated(ward.p, cases, row, ward.average, path, drawn)
        once = images if (row.kind, row.looks) == ("redrawn", 1) else once
        marks = treatment.judge(cases, images, chosen["limit"], chosen["unrelated"])
        head = {"row": row.name, "strength": row.strength}
        records += [
            head | {"index": i, "draws": int(draws[j])} | treatment.record(marks, j)
            for j, i in enumerate(index)
        ]
    return records
