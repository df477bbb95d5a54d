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


def results(names: Sequence[str] = ()) -> None:
    """Run the named jobs (all of JOBS in order if none is named), resuming what was begun.

    Raises ValueError for a name that is no job.
    """
    unknown = [n for n in names if n not in JOBS]
    if unknown:
        raise ValueError(f"no job is called {unknown[0]!r}; there are: {', '.join(JOBS)}")
    for name in names or JOBS:
        JOBS[name]()


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
    """work(item) for each item, each answer stored when done; finished ones are read back."""
    from tqdm.auto import tqdm

    folder = SCRATCH / name / fingerprint()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    answers = []
    for i, item in enumerate(tqdm(items, desc=name, mininterval=5)):
        path = folder / f"{i}.json"
        if path.exists():
            answers.append(json.loads(path.read_text()))
            continue
        began = time.monotonic()
        answer = {"item": item, "rows": work(item), "seconds": round(time.monotonic() - began, 1)}
        part = path.with_suffix(".part")
        part.write_text(json.dumps(answer))
        os.replace(part, path)
        answers.append(answer)
    return answers


def publish(name: str, table: dict[str, Any], answers: Sequence[Any]) -> None:
    """Write data/results/NAME.json with its provenance."""
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
        lambda i: analysis.factor_rows(p, 0, range(i, i + 100)),
    )
    points = [(frame, t) for frame in range(20) for t in analysis.TIMES]
    slopes = job("alice_slopes", points, lambda at: analysis.derivative_row(p, truth, *at))
    ratio = job("alice_frechet", [2000], lambda n: analysis.frechet_ratio(p, n, 0))
    factors = [row for part in parts for row in part["rows"]]
    derivative = [s["rows"] for s in slopes]
    card = analysis.factor_card(factors) | {"frechet_ratio": ratio[0]["rows"]}
    table = {"card": card | analysis.derivative_card(derivative)}
    publish("alice", table | {"factors": factors, "derivative": derivative}, parts + slopes + ratio)
    _card("alice/unet/diffusion_pytorch_model.safetensors", table["card"])


def _card(path: str, metrics: dict[str, Any]) -> None:
    folder = weights.clone()
    files = weights.manifest(folder)
    for entry in files:
        if entry["path"] == path:
            entry["metrics"] = metrics
    weights.write_manifest(folder, files)


def find_ill(p: Model, seed: int, wanted: int, t: int) -> tuple[list[int], int]:
    """The first `wanted` indices of `seed` whose untreated image is read as ill, and how many
    samples were looked at to find them."""
    found: list[int] = []
    looked = 0
    while len(found) < wanted:
        index = list(range(looked, looked + 50))
        x0 = treatment.untreated(p, treatment.trajectory(p, seed, index, t), t)
        ill = read_factors(x0)[:, STRANGER] > 0.5
        found += [i for i, bad in zip(index, ill.tolist(), strict=True) if bad]
        looked += 50
    return found[:wanted], looked


def average_puppet(n: int = 2000) -> torch.Tensor:
    """The mean frame of the show, (1, 3, 64, 64)."""
    return puppets.render(puppets.sample_factors(n, seed=31)).mean(0, keepdim=True)


def unrelated_distance(n: int = 400) -> float:
    """Mean |a - b| between unrelated frames of the show: the unit of every side effect."""
    frames = puppets.render(puppets.sample_factors(n, seed=41))
    return float(scores.pixel_distance(frames, frames.roll(1, 0)).mean())


EDIT_TIME, STEPS = 500, 12
GRID = (0.004, 0.008, 0.015, 0.025, 0.04, 0.07, 0.12, 0.25, 0.5, 1.0)
DOSES = (0.05, 0.15)
PRIMARY, CONTROL = "masked mean, projected", "random"


def choose_settings() -> None:
    """Set limits and strengths on development samples and write data/treatment.json.

    limit: the 99th percentile of the distance to the manifold over 300 untreated samples.
    strengths: for each row the ones whose mean side effect on 24 ill samples is .05 and .15.
    """
    p, seed = load_model("alice"), 1
    distances = job(
        "settings_limit",
        list(range(0, 300, 50)),
        lambda i: treatment.admit(p, seed, range(i, i + 50), EDIT_TIME, STEPS).distance.tolist(),
    )
    limit = float(torch.quantile(torch.tensor(sum((d["rows"] for d in distances), [])), 0.99))
    ill = job("settings_ill", [24], lambda n: find_ill(p, seed, n, EDIT_TIME)[0])[0]["rows"]
    setup = _Setup(p, limit)
    cases = job("settings_sweep", ill, lambda i: setup.sweep(seed, i, lambda row: GRID))
    records = [r for case in cases for r in case["rows"]]
    strengths = {row.name: _strengths(records, row.name) for row in treatment.ROWS}
    head = {"t": EDIT_TIME, "steps": STEPS, "limit": limit, "unrelated": setup.unrelated}
    named = {"primary": PRIMARY, "control": CONTROL, "doses": list(DOSES), "weights": fingerprint()}
    rows = [dataclasses.asdict(row) for row in treatment.ROWS]
    table = head | named | {"strengths": strengths, "rows": rows, "development": ill}
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
    found = job("treatment_ill", [100], lambda n: find_ill(p, TEST_FROM, n, chosen["t"]))
    ill, looked = found[0]["rows"]
    setup = _Setup(p, chosen["limit"])
    cases = job(
        "treatment_sweep",
        ill,
        lambda i: setup.sweep(TEST_FROM, i, lambda row: chosen["strengths"][row.name]),
    )
    digest = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()
    head = {"settings": digest, "seed": TEST_FROM, "looked": looked, "ill": ill}
    publish("treatment", head | {"rows": _columns(cases)}, found + cases)


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


JOBS: dict[str, Callable[[], None]] = {
    "alice": alice,
    "settings": choose_settings,
    "treatment": treat_test,
}
