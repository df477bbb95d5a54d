"""The trial: its protocol, fixed on development samples and committed, then the test, once.

`python -m studies results protocol` writes data/protocol.json and data/kept.safetensors;
`... trial`, `trial_others`, `trial_healthy` and `trial_healthy_others` treat the test samples by
it. When the outcome of the first OPENED of them was known a row was added, set on development
samples too: `... amendment` writes data/amendment.json; that row treats the samples after those.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from mathkit import data
from mathkit.chapters import treatment
from mathkit.chapters.eigenfaces import eigenfaces
from mathkit.chapters.treatment import encoder_svd
from mathkit.data import fingerprint
from mathkit.diffusion.encoder import encoder
from mathkit.diffusion.load import load_model
from mathkit.diffusion.model import Model
from mathkit.diffusion.sampling import sample
from mathkit.linear.jacobian import jacobian
from mathkit.linear.subspaces import matched_average, mean_subspace
from mathkit.scores import rounded
from mathkit.show.puppets import STRANGER, average_puppet, unrelated_distance
from mathkit.show.reader import read_factors, read_features
from studies import methods
from studies.methods import SPAN, TRIED, Kept, Row, direction
from studies.model_card import factor_card, frechet_ratio
from studies.rows import ADDED, CONTROL, EDIT_TIME, FIRST, OTHERS, PRIMARY, ROWS, TABLES, plan_for
from studies.runner import DOSES, SCRATCH, TEST_FROM, find_samples, job, once, processes, publish

PROTOCOL, AMENDMENT, KEPT = "protocol.json", "amendment.json", "kept.safetensors"
DEVELOPMENT = 1  # the seed of the development samples
SPENT = 1000  # test samples that an earlier protocol has opened
# Development samples: to carry directions from, to learn from, to set doses on.
SOURCES, STUDIED, PATIENTS = 10, 250, 8
GRID = (0.005, 0.015, 0.04, 0.1, 0.3, 0.8)
LOW = 0.035  # a dose below the two of the table, for the rows compared first
MARKS = ("p", "left", "side", "outside", "factor", "worst")  # stored in thousandths
FRESH = 100  # samples of the treatment always on


def strengths_of(row: Row, effects: Sequence[float]) -> list[float]:
    """The strengths at DOSES, from the mean side effects at GRID; for the rows compared first also,
    at the end, the one at LOW."""
    doses = [*DOSES, LOW] if row in FIRST else DOSES
    return [float(f"{treatment.dose(GRID, effects, d):.4g}") for d in doses]


class Ward:
    """What every case of the trial shares."""

    def __init__(self, limit: float, kept: Kept) -> None:
        self.p, self.limit, self.kept = load_model("alice"), limit, kept
        self.unrelated, self.average = unrelated_distance(), average_puppet()

    def sweep(self, seed: int, i: int, plan: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
        """The rows named in `plan`, each at its strengths, on sample (seed, i)."""
        case = treatment.admit(self.p, seed, [i], EDIT_TIME)
        rows = [row for row in ROWS if row.name in plan]
        shared = (self.limit, self.unrelated, self.average, self.kept)
        return methods.treat_all(self.p, case, rows, lambda row: plan[row.name], *shared)


def look(p: Model, seed: int, start: int) -> list[bool]:
    """Whether each of the samples start ... start + 99 of `seed` is read as ill."""
    images = sample(p, seed=seed, index=range(start, start + 100)).clamp(-1, 1)
    return treatment.read_stranger(images).tolist()


def studied(p: Model) -> dict[str, Tensor]:
    """Directions of h learnt on development samples: what rows of kind "carried" need.

    "clicked": of the first SOURCES ill samples the image u = J v / |J v| of the direction that the
    region chooses there, and its v ("clicked x"). "global", "matched": of the mean subspace and of
    the matched average of the samples' top SPAN left singular vectors, the direction that holds
    most of the clicked ones, with their sign. "pca": the top TRIED principal axes of h over STUDIED
    samples. "difference": its mean over the healthy minus its mean over the ill of them.
    """
    average, xs = average_puppet(), []
    f = encoder(p, EDIT_TIME)
    ill: list[int] = []
    for start in range(0, STUDIED, 50):
        batch = treatment.trajectory(p, DEVELOPMENT, range(start, start + 50), EDIT_TIME)
        with torch.no_grad():
            xs.append(p.chunked(batch, lambda part, _: f(part)))
        seen = treatment.read_stranger(treatment.finish(p, batch, EDIT_TIME))
        ill += seen.tolist()
    h, sick = torch.cat(xs), torch.tensor(ill)
    us, vs, bases = [], [], []
    clicking = Row("clicked", "h", among=TRIED, supervision="region")
    for i in sick.nonzero().flatten().tolist()[:SOURCES]:
        case = treatment.admit(p, DEVELOPMENT, [i], EDIT_TIME)
        v = direction(p, case, clicking, average)
        u = jacobian(f, case.xt).push(v)
        us.append(u / u.norm())
        vs.append(v)
        bases.append(encoder_svd(p, case, SPAN).U)
    clicked = torch.cat(us)
    axes = eigenfaces(h.flatten(1), TRIED, tol=1e-3).axes.reshape(TRIED, *h.shape[1:])
    return {
        "clicked": clicked,
        "clicked x": torch.cat(vs[:3]),
        "global": _nearest(mean_subspace(bases)[0], clicked),
        "matched": _nearest(matched_average(bases)[0], clicked),
        "pca": axes,
        "difference": h[~sick].mean(0, keepdim=True) - h[sick].mean(0, keepdim=True),
    }


def _nearest(V: Tensor, U: Tensor) -> Tensor:
    """The row of V with the largest sum of squared products with the rows of U, in their sign."""
    products = V.flatten(1) @ U.flatten(1).T.to(V)
    i = int(products.square().sum(1).argmax())
    return V[i : i + 1] * products[i].sum().sign()


def protocol() -> dict[str, Any]:
    """The committed protocol, data/protocol.json.

    Raises FileNotFoundError where there is none, ValueError where it was fixed on other weights.
    """
    chosen: dict[str, Any] = json.loads(find(PROTOCOL).read_text())
    if chosen["weights"] != fingerprint():
        raise ValueError(f"{PROTOCOL} was fixed on other weights: run `... results protocol` first")
    return chosen


def amended() -> dict[str, Any]:
    """The protocol with the rows of the amendment, data/amendment.json, and their strengths.

    Raises FileNotFoundError where one of the two is missing, ValueError where the amendment is of
    another protocol.
    """
    chosen, more = protocol(), json.loads(find(AMENDMENT).read_text())
    if more["protocol"] != digest(chosen):
        raise ValueError(f"{AMENDMENT} is of another protocol: run `... results amendment` again")
    both = {"strengths": chosen["strengths"] | more["strengths"]}
    return chosen | both | {"rows": chosen["rows"] + more["rows"]}


def digest(chosen: Mapping[str, Any]) -> str:
    """SHA-256 of a protocol, which each of its tables names, or of other settings."""
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def kept() -> dict[str, Tensor]:
    """The directions that the protocol keeps; ValueError where the file is not the protocol's."""
    path = find(KEPT)
    if data.sha256(path) != protocol()["kept"]:
        raise ValueError(f"{path} is not the file that {PROTOCOL} names")
    return {name: v.float() for name, v in load_file(path).items()}


def find(name: str) -> pathlib.Path:
    """A file of data/ that a job writes. FileNotFoundError, with that job, where there is none."""
    path = data.locate(name)
    if path is None:
        by = "protocol" if name == KEPT else name.removesuffix(".json")
        raise FileNotFoundError(f"no {name} in data/: run `python -m studies results {by}`")
    return path


def write_protocol() -> None:
    """Set limit and strengths on development samples, keep their directions, write both.

    limit: the 99th percentile of the distance to the manifold over 200 untreated samples.
    strengths: for each row the ones whose mean side effect on PATIENTS ill samples is DOSES.
    """
    p = load_model("alice")
    half = once(SCRATCH / f"kept-{fingerprint()[:12]}.safetensors", lambda: studied(p))
    ward = Ward(0.0, {name: v.float() for name, v in half.items()})
    distances = job(
        "protocol_limit",
        list(range(0, 200, 50)),
        lambda i: treatment.admit(p, DEVELOPMENT, range(i, i + 50), EDIT_TIME).distance.tolist(),
    )
    ward.limit = float(torch.quantile(torch.tensor(sum((d["rows"] for d in distances), [])), 0.99))
    ill, _ = find_samples("protocol_ill", lambda i: look(p, DEVELOPMENT, i), PATIENTS)
    found = _dosed(ward, "protocol_sweep", FIRST + OTHERS, ill)
    if processes()[0] > 0:
        return
    place = data.clone() / KEPT
    data.store(place, save(half))
    table = {
        "t": EDIT_TIME, "limit": ward.limit, "unrelated": ward.unrelated,
        "primary": PRIMARY, "control": CONTROL, "doses": list(DOSES), "low": LOW,
        "weights": fingerprint(), "kept": data.sha256(place), "development": ill,
    }  # fmt: skip
    write(PROTOCOL, table | found)


def write_amendment() -> None:
    """Set the strengths of the ADDED rows on the protocol's patients, and write them."""
    chosen = protocol()
    ward = Ward(chosen["limit"], kept())
    found = _dosed(ward, "amendment_sweep", ADDED, chosen["development"])
    if processes()[0] == 0:
        write(AMENDMENT, {"protocol": digest(chosen)} | found)


def write(name: str, table: Mapping[str, Any]) -> None:
    """Write a table by name into the clone's data/."""
    data.store(data.clone() / name, (json.dumps(table, indent=1) + "\n").encode())


def _dosed(ward: Ward, name: str, rows: Sequence[Row], ill: Sequence[int]) -> dict[str, Any]:
    """The rows, their side effects at GRID on these development samples, and so their strengths."""
    plan, listed = {row.name: GRID for row in rows}, [dataclasses.asdict(row) for row in rows]
    work = functools.partial(ward.sweep, DEVELOPMENT, plan=plan)
    answers = job(name, ill, work, settings=digest({"rows": listed, "limit": ward.limit}))
    effects = side_effects(columns_of(answers, ("side",)))
    return {
        "strengths": {row.name: strengths_of(row, effects[row.name]) for row in rows},
        "rows": listed,
        "side effects on development samples": {k: rounded(v, 4) for k, v in effects.items()},
    }


def run_trial(name: str) -> None:
    """One table of the test, of TABLES: samples of the seed TEST_FROM treated by the protocol."""
    part = TABLES[name]
    chosen = amended() if part.late else protocol()
    ward = Ward(chosen["limit"], kept())
    found, looked = find_samples(
        "trial_look", lambda i: look(ward.p, TEST_FROM, i), part.count, SPENT
    )
    healthy = [i for i in range(SPENT, found[-1]) if i not in set(found)]
    index = (found if part.ill else healthy)[: part.count]
    answers = job(
        name,
        list(enumerate(index)),
        lambda at: ward.sweep(TEST_FROM, at[1], plan_for(chosen, name, at[0])),
        settings=digest(chosen),
    )
    head = {
        "protocol": digest(chosen),
        "seed": TEST_FROM,
        "looked": looked,
        "index": index,
    }
    marks = MARKS if part.ill else ("p", "side", "outside")
    publish(name, head | {"rows": columns_of(answers, marks)}, answers)


def always_row(ward: Ward, i: int, strength: float) -> dict[str, Any]:
    """Fresh sample (TEST_FROM + 1, i) before and after the added row, whoever is in it: the ten
    factors and P(Stranger), and the reader's features."""
    case = treatment.admit(ward.p, TEST_FROM + 1, [i], EDIT_TIME)
    image = methods.prescribed(ward.p, case, ADDED[0], [strength], ward.average, ward.kept)
    both = torch.cat([case.x0, image])
    factors, features = rounded(read_factors(both)[:, : STRANGER + 1]), rounded(read_features(both))
    return {
        name: {"factors": factors[j], "features": features[j]}
        for j, name in enumerate(("before", "after"))
    }


def run_always() -> None:
    """The patient with the added row always on: FRESH samples, whoever is in them."""
    chosen, row = amended(), ADDED[0].name
    ward, strength = Ward(chosen["limit"], kept()), chosen["strengths"][row][0]
    answers = job(
        "always",
        list(range(FRESH)),
        lambda i: always_row(ward, i, strength),
        settings=digest(chosen),
    )
    table: dict[str, Any] = {"row": row, "strength": strength, "seed": TEST_FROM + 1}
    for name in ("before", "after"):
        found = [a["rows"][name] for a in answers]
        factors = [one["factors"] for one in found]
        ratio = frechet_ratio(torch.tensor([one["features"] for one in found]))
        card = factor_card(factors) | {"frechet_ratio": ratio}
        table[name] = {"card": card, "factors": factors}
    publish("always", table, answers)


def side_effects(columns: Mapping[str, Any]) -> dict[str, list[float]]:
    """Row -> the mean side effect at each strength, in units of unrelated puppets."""
    return {
        name: [sum(c["side"]) / len(c["side"]) / 1000 for c in column]
        for name, column in columns.items()
    }


def brief(entry: Mapping[str, Any], n: int | None = None) -> list[str]:
    """Of the first n samples of an entry of a table: cured / ill / destroyed, the mean side effect,
    and the mean change outside the region."""
    ends = entry["outcome"][:n]
    means = (sum(entry[mark][:n]) / len(ends) / 1000 for mark in ("side", "outside"))
    return [" / ".join(str(ends.count(o)) for o in (1, 0, 2)), *(f"{mean:.3f}" for mean in means)]


def columns_of(
    answers: Sequence[dict[str, Any]], marks: Sequence[str], thousandths: bool = True
) -> dict[str, Any]:
    """Row -> one entry a strength: the strength, and each mark as a list over the samples that got
    the row, in their order; "outcome" as it is, the others in thousandths, or as they are."""
    table: dict[str, dict[float, list[dict[str, Any]]]] = {}
    for answer in answers:
        for r in answer["rows"]:
            table.setdefault(r["row"], {}).setdefault(r["strength"], []).append(r)
    return {
        name: [
            {"strength": s, "outcome": [r["outcome"] for r in rs]}
            | {m: [round(1000 * r[m]) if thousandths else r[m] for r in rs] for m in marks}
            for s, rs in columns.items()
        ]
        for name, columns in table.items()
    }
