"""The jobs behind the stored tables: `python -m mathkit results NAME`."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from . import analysis, neurons, treatment, weights
from .factors import read_factors
from .loading import load_model
from .models import Model
from .puppets import CONTINUOUS, FEW, STRANGER, Posterior
from .results import (
    CONTROL,
    DOSES,
    EDIT_TIME,
    PRIMARY,
    SETTINGS,
    STEPS,
    TEST_FROM,
    average_puppet,
    find_ill,
    fingerprint,
    is_stored,
    job,
    processes,
    publish,
    settings,
    stored,
    unrelated_distance,
    write_card,
)  # fmt: skip
from .scores import rounded
from .surveys import SURVEYS
from .sweeps import SEEDS, SWEEPS, row
from .trials import TABLES, run_always, run_trial, write_protocol

BAR = "Strangers 12 to 18 %, each KS at most .10, correlation at most .1, Frechet ratio at most 10"
GRID = (0.005, 0.015, 0.035, 0.08, 0.2, 0.5, 1.0)
DECIDED_TIMES = (957, 874, 791, 749, 708, 666, 624, 583, 541, 500, 458, 375)


def run(names: Sequence[str] = ()) -> None:
    """Run the named jobs (all whose tables are stored if none is named), resuming what was begun.

    What has no table yet is run by name: the protocol, which is committed before the trial, and
    whatever has not been measured so far. Raises ValueError for a name that is no job.
    """
    unknown = [n for n in names if n not in JOBS]
    if unknown:
        raise ValueError(f"no job is called {unknown[0]!r}; there are: {', '.join(JOBS)}")
    for name in names or [name for name in JOBS if is_stored(name)]:
        work, minutes = JOBS[name]
        print(f"{name}: about {minutes} minutes on two cores; what is finished is kept")
        work()


def alice() -> None:
    """Her card: factors of 2,000 samples, the Frechet ratio, her derivative on 20 frames."""
    measure("alice", Posterior(), samples=2000, frames=20, moving=CONTINUOUS)


def understudy() -> None:
    """The understudy's card, on the simple show: 600 samples and 10 frames."""
    measure("understudy", Posterior(simple=True), samples=600, frames=10, moving=FEW)


def measure(name: str, truth: Posterior, samples: int, frames: int, moving: Sequence[str]) -> None:
    """The card of a patient, stored with the weights, and the rows behind it."""
    p, networks = load_model(name), (name, "reader")
    parts = job(
        f"{name}_samples",
        list(range(0, samples, 100)),
        lambda i: analysis.sample_rows(p, 0, range(i, i + 100)),
        networks,
    )
    points = [(frame, t) for frame in range(frames) for t in analysis.TIMES]
    slopes = job(
        f"{name}_slopes", points, lambda at: analysis.derivative_row(p, truth, *at), networks
    )
    factors = [row for part in parts for row in part["rows"]["factors"]]
    features = torch.tensor([row for part in parts for row in part["rows"]["features"]])
    derivative = [s["rows"] for s in slopes]
    card: dict[str, Any] = {"bar": BAR} if name == "alice" else {}
    card |= analysis.factor_card(factors, moving)
    card |= {"frechet_ratio": analysis.frechet_ratio(features, truth.draw)}
    card |= analysis.derivative_card(derivative)
    table = {"card": card, "factors": factors, "derivative": derivative}
    publish(name, table, parts + slopes, networks)
    write_card(f"{name}/unet/diffusion_pytorch_model.safetensors", card)


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
    if processes()[0] == 0:
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
    names = [row.name for row in treatment.ROWS]
    publish("treatment", head | {"rows": _columns(cases, names)}, cases)


def decide() -> None:
    """When the Stranger is decided: P(Stranger | x_t) of ten ill and ten healthy samples over t."""
    p, seed = load_model("alice"), 1
    truth = Posterior()
    known = settings()["development"]  # the first ill ones of this seed, in order
    ill, healthy = known[:10], [i for i in range(known[-1]) if i not in known][:10]
    points = [(i, t) for i in ill + healthy for t in DECIDED_TIMES]
    answers = job("decided", points, lambda at: _decided_row(p, truth, seed, *at))
    head = {"seed": seed, "ill": ill, "healthy": healthy, "times": list(DECIDED_TIMES)}
    publish("decided", head | {"rows": [a["rows"] for a in answers]}, answers)


def _decided_row(p: Model, truth: Posterior, seed: int, i: int, t: int) -> dict[str, Any]:
    """One sample at one t: how many completions show him, and the exact posterior's opinion."""
    ends, xt = treatment.completions(p, seed, i, t)
    seen = read_factors(ends)[:, STRANGER]
    abar = float(p.alphas_cumprod[t])
    exact = {"exact": float(truth.stranger(xt, abar)), "ess": float(truth.ess(xt, abar))}
    row = {"index": i, "t": t, "shown": int((seen > 0.5).sum()), "of": len(seen)}
    return row | {k: round(v, 3) for k, v in exact.items()}


def meet_neurons() -> None:
    """The bottleneck's neurons on 250 development samples, and each of them tried on 6 ill ones."""
    p, seed = load_model("alice"), 1
    lots = job(
        "neurons",
        list(range(0, 250, 50)),
        lambda i: neurons.activations(p, seed, range(i, i + 50), EDIT_TIME),
    )
    h = [row for lot in lots for row in lot["rows"]["h"]]
    factors = [row for lot in lots for row in lot["rows"]["factors"]]
    ill = [i for i, row in enumerate(factors) if row[STRANGER] > 0.5][:6]
    cases = treatment.admit(p, seed, ill, neurons.TIME, neurons.STEPS)
    tried = job("neurons_tried", list(range(len(h[0]))), lambda j: try_neuron(p, cases, j))
    head = {"seed": seed, "t": EDIT_TIME, "tried_on": ill}
    trials = {"strength": neurons.TRIAL} | {k: [a["rows"][k] for a in tried] for k in ("p", "side")}
    publish("neurons", head | {"h": h, "factors": factors, "trials": trials}, lots + tried)


def try_neuron(p: Model, cases: treatment.Cases, channel: int) -> dict[str, float]:
    """Mean P(Stranger) and mean side effect of one neuron scaled by 1 - neurons.TRIAL."""
    y = neurons.edited(p, cases, neurons.silenced(channel), neurons.TRIAL)
    chosen = settings()
    marks = treatment.judge(cases, y, chosen["limit"], chosen["unrelated"])
    return {k: round(float(marks[k].mean()), 4) for k in ("p", "side")}


def switch_off() -> None:
    """Chapter 08's treatment: one neuron of h scaled by 1 - s at every step, on 100 ill samples.

    The same patients as in "treatment", from the first grid time on.
    """
    p, met, chosen = load_model("alice"), stored("neurons"), settings()
    known = stored("treatment")
    shared = (chosen["limit"], chosen["unrelated"])

    def treat(i: int) -> list[dict[str, Any]]:
        case = treatment.admit(p, known["seed"], [i], neurons.TIME, neurons.STEPS)
        return neurons.sweep(p, case, neurons.edits(met, i), neurons.STRENGTHS, *shared)

    cases = job("neuron_off", known["ill"], treat)
    head = {k: known[k] for k in ("seed", "looked", "ill")} | {"t": neurons.TIME}
    publish("neuron_off", head | {"rows": _columns(cases, neurons.STRENGTHS)}, cases)


def turn() -> None:
    """Chapter 10's treatments: directions of h, pooled and by place, on the same 100 patients."""
    p, met, known, chosen = load_model("alice"), stored("neurons"), stored("treatment"), settings()
    ill = torch.tensor(met["factors"])[:, STRANGER] > 0.5

    def sums(i: int) -> Any:
        at = range(i, i + 50)
        return neurons.place_sums(p, met["seed"], at, met["t"], ill[i : i + 50]).tolist()

    lots = job("turned_places", list(range(0, len(ill), 50)), sums)
    total = torch.tensor([lot["rows"] for lot in lots]).sum(0)
    places = torch.tensor(rounded(total[1] / (~ill).sum() - total[0] / ill.sum(), 4))

    def treat(i: int) -> list[dict[str, Any]]:
        case = treatment.admit(p, known["seed"], [i], neurons.TIME, neurons.STEPS)
        rows = neurons.turned(met, places, i), neurons.TURNED
        return neurons.sweep(p, case, *rows, chosen["limit"], chosen["unrelated"])

    cases = job("turned", known["ill"], treat)
    head = {k: known[k] for k in ("seed", "looked", "ill")} | {"t": neurons.TIME}
    head["places"] = rounded(places, 4)
    publish("turned", head | {"rows": _columns(cases, neurons.TURNED)}, lots + cases)


def toys() -> None:
    """The sweeps of toy models: every figure of the paper, five seeds each."""
    items = [(name, seed) for name in SWEEPS for seed in SEEDS]

    def work(item: Sequence[Any]) -> list[dict[str, Any]]:
        sweep = SWEEPS[item[0]]
        return [row(sweep, kind, item[1]) for kind in sweep.kinds]

    answers = job("superposition", items, work)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SWEEPS}
    for answer in answers:
        rows[answer["item"][0]] += answer["rows"]
    described = {name: dataclasses.asdict(sweep) for name, sweep in SWEEPS.items()}
    publish("superposition", {"sweeps": described, "rows": rows}, answers, networks=())


def _columns(cases: Sequence[Any], names: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """Row -> one entry a strength: the strength, and each mark as a list over the samples."""
    table: dict[str, list[dict[str, Any]]] = {}
    marks = ("outcome", "p", "left", "distance", "side", "error", "outside", "factor", "worst")
    for name in names:
        mine = [[r for r in case["rows"] if r["row"] == name] for case in cases]
        table[name] = [
            {"strength": at[0]["strength"]} | {m: [r[m] for r in at] for m in marks}
            for at in zip(*mine, strict=True)
        ]
    return table


JOBS: dict[str, tuple[Callable[[], None], int]] = {
    "alice": (alice, 15),
    "understudy": (understudy, 5),
    "settings": (choose_settings, 6),
    "treatment": (treat_test, 25),
    "decided": (decide, 15),
    "neurons": (meet_neurons, 15),
    "neuron_off": (switch_off, 40),
    "turned": (turn, 25),
    "superposition": (toys, 60),
    "protocol": (write_protocol, 35),
    **{
        name: (functools.partial(run_trial, name), minutes)
        for name, minutes in zip(TABLES, (30, 35, 20, 20), strict=True)
    },
    "always": (run_always, 25),
    **SURVEYS,
}
