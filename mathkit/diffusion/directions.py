"""A direction saved by the laboratory, read back."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mathkit import data
from mathkit.arguments import integer, number, told

FORMAT, VERSION = "mathkit direction", 1
MAPS = ("h", "pooled", "mean", "random")
SHAPE = [1, 3, 64, 64]


@dataclasses.dataclass(frozen=True, eq=False)
class Direction:
    """A direction of x_t found at one sample of ALICE, and how far it was followed.

    Args:
        seed: of the sample, as in `mk.sample`.
        index: which sample of the seed.
        t: the time.
        map: whose singular vector it is: "h" (x_t -> h), "pooled" (h summed over its places) or
            "mean" (the posterior mean); "random": of none.
        strength: signed, as in `mk.move`.
        v: the direction (1, 3, 64, 64), float32.

    >>> from mathkit.diffusion.directions import Direction
    >>> Direction(0, 0, 500, "random", 0.2, torch.ones(1, 3, 64, 64)).v.shape
    torch.Size([1, 3, 64, 64])
    """

    seed: int
    index: int
    t: int
    map: str
    strength: float
    v: Tensor


def read_direction(path: str | Path) -> Direction:
    """The direction in a file that the laboratory saved.

    The last two lines of the example redo the edit.

    Args:
        path: of the JSON file: {"format": "mathkit direction", "version": 1, "model": the
            fingerprint of the weights, "seed", "index", "t", "map", "strength", "shape": [1, 3, 64,
            64], "v": the numbers as little-endian float32 in base64}.

    Returns: a `Direction`.
    Raises ValueError where the file is of another kind, lacks an entry, is of other weights, or v
    is not 12288 finite numbers that are not all 0; FileNotFoundError where there is none.
    Cost: no pass.

    >>> import base64, json, tempfile
    >>> from mathkit.chapters import treatment
    >>> from mathkit.diffusion.directions import read_direction
    >>> entries = dict(format="mathkit direction", version=1, model=mk.data.fingerprint(), seed=1,
    ...                index=0, t=957, map="h", strength=0.4, shape=[1, 3, 64, 64])
    >>> numbers = base64.b64encode(torch.arange(12288.0).numpy().tobytes()).decode()
    >>> with tempfile.NamedTemporaryFile("w+", suffix=".json") as file:
    ...     json.dump(entries | {"v": numbers}, file), file.seek(0)
    ...     d = read_direction(file.name)
    (None, 0)
    >>> p = mk.load_model("alice")
    >>> xt = treatment.trajectory(p, d.seed, [d.index], d.t)
    >>> moved = mk.move(p, xt, d.t, d.v, d.strength, steps=1)[-1]
    >>> mk.denoise(p, moved, d.t, times=treatment.grid(p, d.t)).shape
    torch.Size([1, 3, 64, 64])
    """
    entries = _entries(Path(path))
    if entries["map"] not in MAPS:
        raise ValueError(f"{path}: map is one of {', '.join(MAPS)}, got {told(entries['map'])}")
    return Direction(
        integer(entries["seed"], f"{path}: seed"),
        integer(entries["index"], f"{path}: index"),
        integer(entries["t"], f"{path}: t", 0, 999),
        entries["map"],
        number(entries["strength"], f"{path}: strength", -2, 2),
        _numbers(path, entries["shape"], entries["v"]),
    )


def _entries(path: Path) -> dict[str, Any]:
    """What the file holds, if it is a direction of the shipped weights."""
    try:
        entries = json.loads(path.read_text("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError):
        entries = None
    if not isinstance(entries, dict) or entries.get("format") != FORMAT:
        raise ValueError(f"{path} is no direction saved by the laboratory: save it there again")
    if entries.get("version") != VERSION:
        raise ValueError(
            f"{path} is of version {told(entries.get('version'))}, this reads {VERSION}: take the "
            "mathkit that came with the laboratory"
        )
    named = {"model", *(field.name for field in dataclasses.fields(Direction)), "shape"}
    if missing := sorted(named - entries.keys()):
        raise ValueError(f"{path} lacks {', '.join(missing)}: save it again in the laboratory")
    if entries["model"] != data.fingerprint():
        raise ValueError(
            f"{path} is a direction of other weights ({str(entries['model'])[:12]}) than the "
            f"shipped ones ({data.fingerprint()[:12]}): search again with these"
        )
    return entries


def _numbers(path: str | Path, shape: Any, text: Any) -> Tensor:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise ValueError(f"{path}: v is no base64: the file is broken, save it again") from None
    if shape != SHAPE or len(content) != 4 * int(np.prod(SHAPE)):
        raise ValueError(
            f"{path}: v is {SHAPE} numbers of 4 bytes, got {len(content)} bytes for {told(shape)}: "
            "the file is broken, save it again"
        )
    v = torch.from_numpy(np.frombuffer(content, "<f4").astype(np.float32)).reshape(SHAPE)
    if not (v.isfinite().all() and v.any()):
        raise ValueError(f"{path}: v is zero, or holds NaN or infinity: save it again")
    return v
