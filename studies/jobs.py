"""The jobs behind the stored tables: `python -m studies results NAME`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from mathkit import data
from mathkit.chapters import neurons
from mathkit.chapters.eigenfaces import eigenfaces
from mathkit.chapters.treatment import (
    Cases,
    admit,
    completions,
    finish,
    judge,
    read_stranger,
    trajectory,
)
from mathkit.data import is_stored, stored
from mathkit.diffusion.load import load_model
from mathkit.diffusion.model import Model
from mathkit.scores import rounded
from mathkit.show.posterior import Posterior
from mathkit.show.puppets import CONTINUOUS, FEW_FACTORS, STRANGER, render, sample_factors
from mathkit.show.reader import read_factors
from studies import baselines, conditions, model_card, neuron_edits
from studies import crowds as crowd_table
from studies.dials import survey_dials
from studies.galaxies import survey_galaxies
from studies.model_card import TIMES
from studies.rows import TABLES
from studies.runner import TEST_FROM, find_samples, job, processes, publish
from studies.ship import write_card
from studies.surveys import SURVEYS
from studies.toy_models import RECIPES, SEEDS, recipe_row
from studies.trial import (
    columns_of,
    digest,
    protocol,
    run_always,
    run_trial,
    write_amendment,
    write_protocol,
)

BAR = "Strangers 12 to 18 %, each KS at most .10, correlation at most .1, Frechet ratio at most 10"
MARKS = ("p", "left", "distance", "side", "error", "outside", "factor", "worst")
HALFWAY, CALLS = 500, 12  # where the neurons are met, and the network calls from there
DECIDED_TIMES = (957, 874, 791, 749, 708, 666, 624, 583, 541, 500, 458, 375)


def main(names: Sequence[str] = ()) -> None:
    """Run the named jobs (all whose tables are stored if none is named), resuming what was begun.

    What has no table yet is run by name: the protocol, which is committed before the trial, and
    whatever has not been measured so far. Raises ValueError for a name that is no job, and where
    the weights are another folder's than those beside which the tables are written.
    """
    unknown = [n for n in names if n not in JOBS]
    if unknown:
        raise ValueError(f"no job is called {unknown[0]!r}; there are: {', '.join(JOBS)}")
    if data.folders()[0].resolve() != data.clone().resolve():
        raise ValueError("tables are written to the clone's data/: unset MATHKIT_DATA")
    data.claim(data.clone() / "results")
    for name in names or [name for name in JOBS if is_stored(name)]:
        work, minutes = JOBS[name]
        print(f"{name}: about {minutes} minutes on two cores; what is finished is kept")
        work()
        if processes()[1] > 1:
            from accelerate import PartialState

            # The next job may read the table that the first process has just written.
            PartialState(cpu=True).wait_for_everyone()


def alice() -> None:
    """Her card: factors of 2,000 samples, the Frechet ratio, her derivative on 20 frames."""
    measure("alice", Posterior(), samples=2000, frames=20, moving=CONTINUOUS)


def understudy() -> None:
    """The understudy's card, on the simple show: 600 samples and 10 frames."""
    measure("understudy", Posterior(simple=True), samples=600, frames=10, moving=FEW_FACTORS)


def measure(name: str, truth: Posterior, samples: int, frames: int, moving: Sequence[str]) -> None:
    """The card of a patient, stored with the weights, and the rows behind it."""
    p, networks = load_model(name), (name, "reader")
    parts = job(
        f"{name}_samples",
        list(range(0, samples, 100)),
        lambda i: model_card.sample_rows(p, 0, range(i, i + 100)),
        networks,
    )
    points = [(frame, t) for frame in range(frames) for t in model_card.TIMES]
    slopes = job(
        f"{name}_slopes", points, lambda at: model_card.derivative_row(p, truth, *at), networks
    )
    factors = [row for part in parts for row in part["rows"]["factors"]]
    features = torch.tensor([row for part in parts for row in part["rows"]["features"]])
    derivative = [s["rows"] for s in slopes]
    card: dict[str, Any] = {"bar": BAR} if name == "alice" else {}
    card |= model_card.factor_card(factors, moving)
    card |= {"frechet_ratio": model_card.frechet_ratio(features, truth.draw)}
    card |= model_card.derivative_card(derivative)
    table = {"card": card, "factors": factors, "derivative": derivative}
    publish(name, table, parts + slopes, networks)
    write_card(f"{name}/unet/diffusion_pytorch_model.safetensors", card)


def sides() -> None:
    """Her Jacobian's right, left and symmetric directions on 20 frames, beside the exact ones."""
    p, few, many = load_model("alice"), Posterior(8000), Posterior()
    fresh = render(sample_factors(2000, seed=8))  # frames that no bank holds
    reference = eigenfaces(fresh, 10, tol=1e-3).axes
    points = [(i, t) for i in range(20) for t in TIMES[:2]]

    def measured(at: tuple[int, int]) -> dict[str, float]:
        truth = many if at[1] == TIMES[1] else few  # the lower the noise, the fewer have a say
        return model_card.sides_row(p, truth, reference, *at)

    rows = job("sides", points, measured, ("alice",))
    publish("sides", {"rows": [r["rows"] for r in rows]}, rows, ("alice",))


def find_ill(name: str, p: Model, seed: int, wanted: int) -> tuple[list[int], int]:
    """The first `wanted` samples of `seed` that x_t at HALFWAY leads to him in CALLS steps, and how
    many were looked at to find them."""

    def look(start: int) -> list[bool]:
        xt = trajectory(p, seed, range(start, start + 100), HALFWAY)
        return read_stranger(finish(p, xt, HALFWAY, CALLS)).tolist()

    return find_samples(name, look, wanted)


def decide() -> None:
    """When the Stranger is decided: P(Stranger | x_t) of ten ill and ten healthy samples over t."""
    p, seed = load_model("alice"), 1
    truth = Posterior()
    ill, _ = find_ill("decided_ill", p, seed, 10)
    healthy = [i for i in range(ill[-1]) if i not in ill][:10]
    points = [(i, t) for i in ill + healthy for t in DECIDED_TIMES]
    answers = job("decided", points, lambda at: _decided_row(p, truth, seed, *at))
    head = {"seed": seed, "ill": ill, "healthy": healthy, "times": list(DECIDED_TIMES)}
    publish("decided", head | {"rows": [a["rows"] for a in answers]}, answers)


def _decided_row(p: Model, truth: Posterior, seed: int, i: int, t: int) -> dict[str, Any]:
    """One sample at one t: how many completions show him, and the exact posterior's opinion."""
    ends, xt = completions(p, seed, i, t)
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
        lambda i: neurons.activations(p, seed, range(i, i + 50), HALFWAY, CALLS),
    )
    h = [row for lot in lots for row in lot["rows"]["h"]]
    factors = [row for lot in lots for row in lot["rows"]["factors"]]
    ill = [i for i, row in enumerate(factors) if row[STRANGER] > 0.5][:6]
    cases = admit(p, seed, ill, neuron_edits.TIME, neuron_edits.STEPS)
    chosen = protocol()
    tried = job(
        "neurons_tried",
        list(range(len(h[0]))),
        lambda j: try_neuron(p, cases, j, chosen["limit"], chosen["unrelated"]),
        settings=digest(chosen),
    )
    head = {"seed": seed, "t": HALFWAY, "tried_on": ill}
    trials = {"strength": neuron_edits.TRIAL} | {
        k: [a["rows"][k] for a in tried] for k in ("p", "side")
    }
    publish("neurons", head | {"h": h, "factors": factors, "trials": trials}, lots + tried)


def try_neuron(
    p: Model, cases: Cases, channel: int, limit: float, unrelated: float
) -> dict[str, float]:
    """Mean P(Stranger) and mean side effect of one neuron scaled by 1 - neuron_edits.TRIAL."""
    y = neurons.edited(p, cases, neurons.silenced(channel), neuron_edits.TRIAL)
    marks = judge(cases, y, limit, unrelated)
    return {k: round(float(marks[k].mean()), 4) for k in ("p", "side")}


def switch_off() -> None:
    """Chapter 08's treatment: one neuron of h scaled by 1 - s at every step, on 100 ill samples,
    from the first grid time on."""
    p, met, chosen = load_model("alice"), stored("neurons"), protocol()
    ill, looked = find_ill("neuron_ill", p, TEST_FROM, 100)
    shared = (chosen["limit"], chosen["unrelated"])

    def treat(i: int) -> list[dict[str, Any]]:
        case = admit(p, TEST_FROM, [i], neuron_edits.TIME, neuron_edits.STEPS)
        return neuron_edits.try_edits(
            p, case, neuron_edits.planned_edits(met, i), neuron_edits.STRENGTHS, *shared
        )

    cases = job("neuron_off", ill, treat, settings=digest(chosen))
    head = {"seed": TEST_FROM, "looked": looked, "ill": ill, "t": neuron_edits.TIME}
    publish("neuron_off", head | {"rows": columns_of(cases, MARKS, thousandths=False)}, cases)


def turn() -> None:
    """Chapter 10's treatments: directions of h, pooled and by place, on the same 100 patients."""
    p, met, known, chosen = load_model("alice"), stored("neurons"), stored("neuron_off"), protocol()
    ill = torch.tensor(met["factors"])[:, STRANGER] > 0.5

    def sums(i: int) -> Any:
        at = range(i, i + 50)
        return neuron_edits.place_sums(p, met["seed"], at, met["t"], ill[i : i + 50]).tolist()

    lots = job("turned_places", list(range(0, len(ill), 50)), sums)
    total = torch.tensor([lot["rows"] for lot in lots]).sum(0)
    places = torch.tensor(rounded(total[1] / (~ill).sum() - total[0] / ill.sum(), 4))

    def treat(i: int) -> list[dict[str, Any]]:
        case = admit(p, known["seed"], [i], neuron_edits.TIME, neuron_edits.STEPS)
        rows = neuron_edits.turned(met, places, i), neuron_edits.TURNED
        return neuron_edits.try_edits(p, case, *rows, chosen["limit"], chosen["unrelated"])

    settings = digest(chosen | {"places": places.tolist()})
    cases = job("turned", known["ill"], treat, settings=settings)
    head = {k: known[k] for k in ("seed", "looked", "ill")} | {"t": neuron_edits.TIME}
    head["places"] = rounded(places, 4)
    publish("turned", head | {"rows": columns_of(cases, MARKS, thousandths=False)}, lots + cases)


def toys() -> None:
    """The sweeps of toy models: every figure of the paper, five seeds each."""
    items = [(name, seed) for name in RECIPES for seed in SEEDS]

    def work(item: Sequence[Any]) -> list[dict[str, Any]]:
        sweep = RECIPES[item[0]]
        return [recipe_row(sweep, kind, item[1]) for kind in sweep.kinds]

    described = {name: dataclasses.asdict(sweep) for name, sweep in RECIPES.items()}
    answers = job("superposition", items, work, networks=(), settings=digest(described))
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in RECIPES}
    for answer in answers:
        rows[answer["item"][0]] += answer["rows"]
    publish("superposition", {"sweeps": described, "rows": rows}, answers, networks=())


def crowds() -> None:
    """The power of chapter 10's dictionaries: planted worlds, two of each kind."""
    items = [(*world, seed) for seed in range(2) for world in crowd_table.WORLDS]
    rows = job("crowds", items, lambda at: crowd_table.crowd_row(*at), networks=())
    publish("crowds", {"rows": [r["rows"] for r in rows]}, rows, networks=())


JOBS: dict[str, tuple[Callable[[], None], int]] = {
    "alice": (alice, 15),
    "understudy": (understudy, 5),
    "sides": (sides, 30),
    "decided": (decide, 20),
    "neurons": (meet_neurons, 15),
    "neuron_off": (switch_off, 40),
    "turned": (turn, 15),
    "superposition": (toys, 45),
    "crowds": (crowds, 10),
    "protocol": (write_protocol, 35),
    "amendment": (write_amendment, 5),
    **{name: (functools.partial(run_trial, name), part.minutes) for name, part in TABLES.items()},
    "always": (run_always, 20),
    "second_amendment": (baselines.write_amendment, 5),
    **{n: (functools.partial(baselines.run, n), 30) for n in ("baselines", "baselines_healthy")},
    "conditions": (conditions.run_conditions, 40),
    "edges": (conditions.run_edges, 15),
    "costs": (conditions.run_costs, 5),
    "degree": (conditions.run_degree, 10),
    "pulls": (conditions.run_pulls, 15),
    **SURVEYS,
    "dials": (survey_dials, 15),
    "galaxies": (survey_galaxies, 10),
}
