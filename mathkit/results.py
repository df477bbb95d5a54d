"""Measured results: what takes longer than a notebook's minute, as resumable jobs.

A job is a list of items; each finished item is stored in runs/results/JOB/ITEM.json, so a stopped
job continues; when all are there they are put together in data/results/JOB.json, with the command,
versions, weights' SHA-256, settings' SHA-256 and the time it took.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import analysis, puppets, scores, treatment, weights
from .factors import read_factors
from .loading import load_model
from .models import Model
from .puppets import STRANGER, Posterior

SCRATCH = pathlib.Path("runs/results")
SETTINGS = "treatment.json"
TEST_FROM = 100_000
BAR = "Strangers 12 to 18 %, each KS at most .10, correlation at most .1, Frechet ratio at most 10"


def results(names: Sequence[str] = ()) -> None:
    """Run the named jobs (alice and treatment if none is named), resuming what was begun.

    "settings" is run by name alone: what it writes is committed before the treatment is tested.
    Raises ValueError for a name that is no job.
    """
    unknown = [n for n in names if n not in JOBS]
    if unknown:
        raise ValueError(f"no job is called {unknown[0]!r}; there are: {', '.join(JOBS)}")
    for name in names or ("alice", "treatment"):
        work, minutes = JOBS[name]
        print(f"{name}: about {minutes} minutes on two cores; what is finished is kept")
        work()


def stored(name: str) -> dict[str, Any]:
    """The stored table data/results/NAME.json; ValueError where its weights are not the shipped."""
    for folder in weights.folders():
        path = folder / "results" / f"{name}.json"
        if path.is_file():
            table = json.loads(path.read_text())
            if table["weights"] != fingerprint():
                raise ValueError(
                    f"{path} was measured on other weights ({table['weights'][:12]}) than the "
                    f"shipped ones ({fingerprint()[:12]}): run `make results`"
                )
            return table
    raise FileNotFoundError(f"no stored results called {name!r}: run `make results`")


def settings() -> dict[str, Any]:
    """The committed settings of the treatment, data/treatment.json."""
    for folder in weights.folders():
        if (folder / SETTINGS).is_file():
            return json.loads((folder / SETTINGS).read_text())
    raise FileNotFoundError(f"no {SETTINGS} in data/: run `python -m mathkit results settings`")


def fingerprint() -> str:
    """One SHA-256 over the hashes of all shipped weights."""
    listed = [e["sha256"] for f in weights.folders()[:1] for e in weights.manifest(f)]
    return hashlib.sha256("".join(sorted(listed)).encode()).hexdigest()


def job(name: str, items: Sequence[Any], work: Callable[[Any], Any]) -> list[Any]:
    """work(item) for each item, each answer stored when done; finished ones are read back.

    Under torchrun the processes share the items, and each waits until all are done.
    """
    from tqdm.auto import tqdm

    rank, world = _processes()
    folder = SCRATCH / name / fingerprint()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i}.json" for i in range(len(items))]
    mine = [i for i in range(rank, len(items), world) if not paths[i].exists()]
    for i in tqdm(mine, desc=name, mininterval=5, disable=rank > 0):
        began = time.monotonic()
        rows = work(items[i])
        answer = {"item": items[i], "rows": rows, "seconds": round(time.monotonic() - began, 1)}
        part = paths[i].with_suffix(".part")
        part.write_text(json.dumps(answer))
        os.replace(part, paths[i])
    while not all(path.exists() for path in paths):
        time.sleep(1)
    return [json.loads(path.read_text()) for path in paths]


def _processes() -> tuple[int, int]:
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def publish(name: str, table: dict[str, Any], answers: Sequence[Any]) -> None:
    """Write data/results/NAME.json with its provenance (the first process does)."""
    if _processes()[0] > 0:
        return
    head = {
        "command": f"python -m mathkit results {name}",
        "weights": fingerprint(),
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
        "seconds": round(sum(a["seconds"] for a in answers)),
    }
    path = weights.clone() / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(head | table, separators=(",", ":")) + "\n")
    print(f"{name}: {path.stat().st_size / 1e3:.0f} kB in {head['seconds']} s of work")


def alice() -> None:
    """Her card: factors of 2,000 samples, the Frechet ratio, her derivative on 20 frames."""
    p, truth = load_model("alice"), Posterior()
    parts = job(
        "alice_samples",
        list(range(0, 2000, 100)),
        lambda i: analysis.sample_rows(p, 0, range(i, i + 100)),
    )
    points = [(frame, t) for frame in range(20) for t in analysis.TIMES]
    slopes = job("alice_slopes", points, lambda at: analysis.derivative_row(p, truth, *at))
    factors = [row for part in parts for row in part["rows"]["factors"]]
    features = torch.tensor([row for part in parts for row in part["rows"]["features"]])
    derivative = [s["rows"] for s in slopes]
    card = (
        {"bar": BAR}
        | analysis.factor_card(factors)
        | {"frechet_ratio": analysis.frechet_ratio(features)}
    )
    table = {"card": card | analysis.derivative_card(derivative)}
    publish("alice", table | {"factors": factors, "derivative": derivative}, parts + slopes)
    _card("alice/unet/diffusion_pytorch_model.safetensors", table["card"])


def _card(path: str, metrics: dict[str, Any]) -> None:
    if _processes()[0] > 0:
        return
    folder = weights.clone()
    files = weights.manifest(folder)
    for entry in files:
        if entry["path"] == path:
            entry["metrics"] = metrics
    weights.write_manifest(folder, files)


def find_ill(name: str, p: Model, seed: int, wanted: int, t: int) -> tuple[list[int], int]:
    """The first `wanted` indices of `seed` whose untreated image is read as ill, and how many
    samples were looked at to find them. A job of its own, in lots of 100."""

    def look(start: int) -> list[int]:
        index = list(range(start, start + 100))
        x0 = treatment.untreated(p, treatment.trajectory(p, seed, index, t), t)
        ill = read_factors(x0)[:, STRANGER] > 0.5
        return [i for i, bad in zip(index, ill.tolist(), strict=True) if bad]

    lots = 2
    while True:
        answers = job(name, list(range(0, 100 * lots, 100)), look)
        found = [i for a in answers for i in a["rows"]]
        if len(found) >= wanted:
            return found[:wanted], 100 * lots
        lots += 2


def average_puppet(n: int = 2000) -> torch.Tensor:
    """The mean frame of the show, (1, 3, 64, 64)."""
    return puppets.render(puppets.sample_factors(n, seed=31)).mean(0, keepdim=True)


def unrelated_distance(n: int = 400) -> float:
    """Mean |a - b| between unrelated frames of the show: the unit of every side effect."""
    frames = puppets.render(puppets.sample_factors(n, seed=41))
    return float(scores.pixel_distance(frames, frames.roll(1, 0)).mean())


EDIT_TIME, STEPS = 500, 12
GRID = (0.005, 0.015, 0.035, 0.08, 0.2, 0.5, 1.0)
DOSES = (0.05, 0.15)
PRIMARY, CONTROL = "masked mean, projected", "random, best of 6"


def choose_settings() -> None:
    """Set limits and strengths on development samples and write data/treatment.json.

    limit: the 99th percentile of the distance to the manifold over 200 untreated samples.
    strengths: for each row the ones whose mean side effect on 12 ill samples is .05 and .15.
    """
    p, seed = load_model("alice"), 1
    distances = job(
        "settings_limit",
        list(range(0, 200, 50)),
        lambda i: treatment.admit(p, seed, range(i, i + 50), EDIT_TIME, STEPS).distance.tolist(),
    )
    limit = float(torch.quantile(torch.tensor(sum((d["rows"] for d in distances), [])), 0.99))
    ill, _ = find_ill("settings_ill", p, seed, 12, EDIT_TIME)
    setup = _Setup(p, limit)
    cases = job("settings_sweep", ill, lambda i: setup.sweep(seed, i, lambda row: GRID))
    records = [r for case in cases for r in case["rows"]]
    strengths = {row.name: _strengths(records, row.name) for row in treatment.ROWS}
    head = {"t": EDIT_TIME, "steps": STEPS, "limit": limit, "unrelated": setup.unrelated}
    named = {"primary": PRIMARY, "control": CONTROL, "doses": list(DOSES), "weights": fingerprint()}
    rows = [dataclasses.asdict(row) for row in treatment.ROWS]
    table = head | named | {"strengths": strengths, "rows": rows, "development": ill}
    if _processes()[0] == 0:
        (weights.clone() / SETTINGS).write_text(json.dumps(table, indent=1) + "\n")
        print(json.dumps(strengths, indent=1))


def _strengths(records: Sequence[dict[str, Any]], row: str) -> list[float]:
    """Half the first dose, the doses and the middle between them, and twice the last."""
    effects = [
        sum(r["side"] for r in records if r["row"] == row and r["strength"] == s) for s in GRID
    ]
    count = len({r["index"] for r in records})
    low, high = (treatment.dose(GRID, [e / count for e in effects], d) for d in DOSES)
    return [round(s, 4) for s in (low / 2, low, (low * high) ** 0.5, high, min(2 * high, 1.4))]


class _Setup:
    """What every case of a sweep shares: the model, the limit, the unit of the side effect."""

    def __init__(self, p: Model, limit: float) -> None:
        self.p, self.limit = p, limit
        self.unrelated, self.average = unrelated_distance(), average_puppet()

    def sweep(self, seed: int, i: int, strengths: Callable[[treatment.Row], Sequence[float]]):
        cases = treatment.admit(self.p, seed, [i], EDIT_TIME, STEPS)
        shared = (self.limit, self.unrelated, self.average)
        return treatment.sweep(self.p, cases, treatment.ROWS, strengths, *shared)


def treat_test() -> None:
    """The treatment table: every row at its strengths on 100 ill test samples."""
    chosen = settings()
    if chosen["weights"] != fingerprint():
        raise ValueError(f"{SETTINGS} was set on other weights: run `... results settings` first")
    p = load_model("alice")
    ill, looked = find_ill("treatment_ill", p, TEST_FROM, 100, chosen["t"])
    setup = _Setup(p, chosen["limit"])
    cases = job(
        "treatment_sweep",
        ill,
        lambda i: setup.sweep(TEST_FROM, i, lambda row: chosen["strengths"][row.name]),
    )
    digest = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()
    head = {"settings": digest, "seed": TEST_FROM, "looked": looked, "ill": ill}
    publish("treatment", head | {"rows": _columns(cases)}, cases)


def _columns(cases: Sequence[Any]) -> dict[str, list[dict[str, Any]]]:
    """Row -> one entry a strength: the strength, and each mark as a list over the samples."""
    table: dict[str, list[dict[str, Any]]] = {}
    marks = ("outcome", "p", "left", "distance", "side", "error", "outside", "factor", "worst")
    for row in treatment.ROWS:
        mine = [[r for r in case["rows"] if r["row"] == row.name] for case in cases]
        table[row.name] = [
            {"strength": at[0]["strength"]} | {m: [r[m] for r in at] for m in marks}
            for at in zip(*mine, strict=True)
        ]
    return table


JOBS: dict[str, tuple[Callable[[], None], int]] = {
    "alice": (alice, 15),
    "settings": (choose_settings, 6),
    "treatment": (treat_test, 25),
}
