"""Measured results: how a resumable job is run and its table published; `jobs` lists them."""

from __future__ import annotations

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

from mathkit import data
from mathkit.data import NETWORKS

SCRATCH = pathlib.Path("runs/results")
TEST_FROM = 100_000
DOSES = (0.05, 0.15)


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
    folder = SCRATCH / name / "-".join(h[:12] for h in (data.fingerprint(networks), settings) if h)
    paths = [folder / f"{i}.json" for i in range(len(items))]
    mine = [i for i in range(rank, len(items), world) if not paths[i].exists()]
    if mine:
        data.claim(folder)
    for i in tqdm(mine, desc=name, mininterval=5, disable=rank > 0):
        began = time.monotonic()
        rows = work(items[i])
        answer = {"item": items[i], "rows": rows, "seconds": round(time.monotonic() - began, 1)}
        data.store(paths[i], json.dumps(answer).encode())
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
        data.claim(place.parent)
        found = {name: v.half().contiguous() for name, v in find().items()}
        data.store(place, save(found))
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
        "command": f"python -m studies results {name}",
        "networks": list(networks),
        "weights": data.fingerprint(networks) if networks else None,
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
        "seconds": round(sum(a["seconds"] for a in answers)),
    }
    path = data.clone() / "results" / f"{name}.json"
    data.store(path, (json.dumps(head | table, separators=(",", ":")) + "\n").encode())
    print(f"{name}: {path.stat().st_size / 1e3:.0f} kB in {head['seconds']} s of work")


def find_samples(
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
