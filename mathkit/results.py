"""Measured results: how a resumable job is run, stored and found again; `jobs` lists them.

A job is a list of items; each finished item is stored in runs/results/JOB/, below a name made from
the weights and the settings, so a stopped job continues; when all are there they are put together
in data/results/JOB.json, with the command, versions, weights' SHA-256 and the time it took.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from . import puppets, scores, weights

SCRATCH = pathlib.Path("runs/results")
TEST_FROM = 100_000
NETWORKS = ("alice", "reader")
DOSES = (0.05, 0.15)


def stored(name: str) -> dict[str, Any]:
    """The stored table data/results/NAME.json; ValueError where its weights are not the shipped.

    A table measured without weights (None) is always good.
    """
    path = weights.locate(f"results/{name}.json")
    if path is None:
        raise FileNotFoundError(f"no stored results called {name!r}: run `make results`")
    table = json.loads(path.read_text())
    now = fingerprint(table.get("networks", NETWORKS))
    if table["weights"] not in (None, now):
        raise ValueError(
            f"{path} was measured on other weights ({table['weights'][:12]}) than the "
            f"shipped ones ({now[:12]}): run `make results`"
        )
    return table


def is_stored(name: str) -> bool:
    """Whether there is a table data/results/NAME.json, on whatever weights."""
    return weights.locate(f"results/{name}.json") is not None


def fingerprint(networks: Sequence[str] = NETWORKS) -> str:
    """One SHA-256 over the hashes of the shipped files of these networks."""
    listed = [sha for name in set(networks) for sha in _hashes(name)]
    return hashlib.sha256("".join(sorted(listed)).encode()).hexdigest()


def _hashes(network: str) -> list[str]:
    """Of the network's files in the first folder that lists any, as `weights.find` takes them."""
    for folder in weights.folders():
        names = (network, f"{network}.safetensors")
        found = [e["sha256"] for name in names for e in weights.entries(folder, name)]
        if found:
            return found
    return []


def job(
    name: str,
    items: Sequence[Any],
    work: Callable[[Any], Any],
    networks: Sequence[str] = NETWORKS,
    settings: str = "",
) -> list[Any]:
    """work(item) for each item, each answer stored when done; finished ones are read back.

    settings: a hash of what the answers depend on beyond item and weights, if there is such.
    Under torchrun the processes share the items, and each waits until all are done.
    """
    from tqdm.auto import tqdm

    rank, world = processes()
    folder = SCRATCH / name / "-".join(h[:12] for h in (fingerprint(networks), settings) if h)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i}.json" for i in range(len(items))]
    mine = [i for i in range(rank, len(items), world) if not paths[i].exists()]
    for i in tqdm(mine, desc=name, mininterval=5, disable=rank > 0):
        began = time.monotonic()
        rows = work(items[i])
        answer = {"item": items[i], "rows": rows, "seconds": round(time.monotonic() - began, 1)}
        weights.store(paths[i], json.dumps(answer).encode())
    while not all(path.exists() for path in paths):
        time.sleep(1)
    return [_answer(path, item) for path, item in zip(paths, items, strict=True)]


def _answer(path: pathlib.Path, item: Any) -> dict[str, Any]:
    """A stored answer; ValueError where it answers another item, of an earlier form of the job."""
    answer, wanted = json.loads(path.read_text()), json.loads(json.dumps(item))
    if answer["item"] != wanted:
        raise ValueError(
            f"{path} holds the answer to {answer['item']}, not to {wanted}: delete {path.parent}, "
            "which another form of this job left, and run the job again"
        )
    return answer


def once(place: pathlib.Path, find: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What the first process finds, in half precision, by way of a file that all others await."""
    if processes()[0] == 0 and not place.exists():
        found = {name: v.half().contiguous() for name, v in find().items()}
        weights.store(place, save(found))
    while not place.exists():
        time.sleep(1)
    return load_file(place)


def processes() -> tuple[int, int]:
    """(rank, world) under torchrun, else (0, 1)."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def publish(
    name: str,
    table: dict[str, Any],
    answers: Sequence[Any],
    networks: Sequence[str] = NETWORKS,
) -> None:
    """Write data/results/NAME.json with its provenance (the first process does).

    networks: those it was measured on; none where it needs no weights.
    """
    if processes()[0] > 0:
        return
    head = {
        "command": f"python -m mathkit results {name}",
        "networks": list(networks),
        "weights": fingerprint(networks) if networks else None,
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
        "seconds": round(sum(a["seconds"] for a in answers)),
    }
    path = weights.clone() / "results" / f"{name}.json"
    weights.store(path, (json.dumps(head | table, separators=(",", ":")) + "\n").encode())
    print(f"{name}: {path.stat().st_size / 1e3:.0f} kB in {head['seconds']} s of work")


def write_card(path: str, metrics: dict[str, Any]) -> None:
    """Put the measured metrics of a weights file into the manifest (the first process does)."""
    if processes()[0] > 0:
        return
    folder = weights.clone()
    files = weights.manifest(folder)
    for entry in files:
        if entry["path"] == path:
            entry["metrics"] = metrics
    weights.write_manifest(folder, files)


def find(
    name: str, look: Callable[[int], Sequence[bool]], wanted: int, start: int = 0
) -> tuple[list[int], int]:
    """The first `wanted` indices from `start` on for which look(i)[index - i] holds, and how many
    were looked at to find them. A job of its own, in lots of 100."""
    lots = 2
    while True:
        answers = job(name, list(range(start, start + 100 * lots, 100)), look)
        found = [a["item"] + i for a in answers for i, yes in enumerate(a["rows"]) if yes]
        if len(found) >= wanted:
            return found[:wanted], 100 * lots
        lots += 2


def average_puppet(n: int = 2000) -> Tensor:
    """The mean frame of the show, (1, 3, 64, 64)."""
    return puppets.render(puppets.sample_factors(n, seed=31)).mean(0, keepdim=True)


def unrelated_distance(n: int = 400) -> float:
    """Mean |a - b| between unrelated frames of the show: the unit of every side effect."""
    frames = puppets.render(puppets.sample_factors(n, seed=41))
    return float(scores.pixel_distance(frames, frames.roll(1, 0)).mean())
