"""An atlas: local bases for many samples and times, by one job that resumes where it stopped.

A local basis is the top k singular triplets of a map's Jacobian at x_t. One process, or several:
    python -m mathkit atlas --out runs/atlas/NAME --samples 0:20 --times 900,700,500
    torchrun --standalone --nproc_per_node 2 -m mathkit atlas --out ...
(`accelerate launch` on CPUs starts a single process.) The folder holds atlas.json, the settings,
and one safetensors file for each item (sample, t), whole or absent. The same command goes on with
a job that was stopped. `load_atlas(folder)[sample, t]` reads a basis: U, S, V.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mathkit import data
from mathkit.arguments import integer
from mathkit.diffusion.encoder import MAPS, Encoder
from mathkit.diffusion.load import load_model
from mathkit.diffusion.model import Model
from mathkit.diffusion.networks import UNetModel
from mathkit.diffusion.sampling import start, timesteps, walk
from mathkit.linear.linear_map import Passes
from mathkit.linear.svd import svd
from mathkit.linear.triplets import SVD
from mathkit.tools import options
from mathkit.tools.lockstep import side_by_side

Item = tuple[int, int]
MANIFEST, SEAL = "atlas.json", 32
TOGETHER, NUMBERS = 8, 2**20  # items searched side by side: at most, and numbers of them in all
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Atlas:
    """The bases in a folder; atlas[sample, t] reads one, as an `SVD`.

    settings: what the job was started with. items: every (sample, t) of it, finished or not.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings
        self.items: list[Item] = [(i, t) for i in settings["samples"] for t in settings["times"]]

    @property
    def groups(self) -> list[list[Item]]:
        """The items that are searched side by side: of one time, always the same ones."""
        samples, size = self.settings["samples"], self.settings["together"]
        parts = [samples[at : at + size] for at in range(0, len(samples), size)]
        return [[(i, t) for i in part] for part in parts for t in self.settings["times"]]

    @property
    def missing(self) -> list[Item]:
        """The items that are not finished yet, now."""
        return [item for item in self.items if not self.path(item).exists()]

    def path(self, item: Item) -> Path:
        """Where the basis of (sample, t) lies, or will lie."""
        return self.folder / f"sample{item[0]:06d}_t{item[1]:04d}.safetensors"

    def __getitem__(self, item: Item) -> SVD:
        """Basis of (sample, t), on the CPU: U (k, *out), S (k,), V (k, *in), and its residuals.

        Raises KeyError for an item that the job does not have, FileNotFoundError for one that is
        not finished, ValueError for a damaged file or one of other settings. Cost: one file read.
        """
        if item not in self.items:
            raise KeyError(f"{self.folder} has (sample, t) of {self._extent()}, got {item}")
        path = self.path(item)
        if not path.exists():
            raise FileNotFoundError(
                f"{item} is not finished: {len(self.missing)} of the {len(self.items)} items of "
                f"{self.folder} are missing. The job's command, run again, goes on"
            )
        content = path.read_bytes()
        if content[-SEAL:] != self._seal(item, content[:-SEAL]):
            raise ValueError(
                f"{path} is damaged, or not the basis of {item} with the settings of {MANIFEST}: "
                "delete it and run the job's command again"
            )
        return _unpacked(content)

    def put(self, item: Item, r: SVD) -> None:
        """Store the basis of (sample, t), whole or not at all. Raises OSError on a full disk."""
        content = _packed(r, DTYPES[self.settings["dtype"]])[:-SEAL]
        data.store(self.path(item), content + self._seal(item, content))

    def _seal(self, item: Item, content: bytes) -> bytes:
        """SHA-256 of the settings, the item and all of its file that comes before the seal."""
        words = json.dumps([self.settings, *item], sort_keys=True)
        return hashlib.sha256(words.encode() + content).digest()

    def _extent(self) -> str:
        s = self.settings
        return f"samples {_shown(s['samples'])} at t in {_shown(s['times'])}"

    def __repr__(self) -> str:
        s, left = self.settings, f"{len(self.missing)} of {len(self.items)} items missing"
        where = f" at {s['at']}" if "at" in s else ""
        return f"Atlas({self.folder}: {s['model']}, map {s['map']}{where}, k = {s['k']}, {left})"


def load_atlas(folder: str | Path) -> Atlas:
    """The atlas in a folder, finished or not; its bases are read when asked for.

    Args:
        folder: where `python -m mathkit atlas --out FOLDER` made it.

    Returns: an `Atlas`; atlas[sample, t] reads one basis.
    Raises FileNotFoundError where there is none, ValueError where its settings cannot be read.

    >>> from mathkit.tools.atlas import load_atlas
    >>> load_atlas("nowhere")
    Traceback (most recent call last):
    FileNotFoundError: nowhere holds no atlas: `python -m mathkit atlas` makes nowhere/atlas.json
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no atlas: `python -m mathkit atlas` makes {path}")
    try:
        return Atlas(Path(folder), json.loads(path.read_text("utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no settings of an atlas ({error}): restore it") from None


def build(
    model: str | Path | UNetModel,
    out: str | Path,
    map: str = "h",
    samples: Sequence[int] = range(20),
    times: Sequence[int] | None = None,
    k: int = 10,
    *,
    tol: float = 1e-3,
    seed: int = 0,
    steps: int = 25,
    threads: int = 1,
    dtype: str = "float32",
    revision: str | None = None,
    prompt: str | None = None,
    guidance: float = 1.0,
    negative: str = "",
    device: str = "auto",
    at: str | None = None,
) -> None:
    """Make the atlas in folder `out`, or finish it: mk.svd of the map's Jacobian at each x_t.

    Called by several processes (torchrun), each takes a share and returns when that is done. Items
    of one time are searched side by side, eight at most and always the same ones; that and
    `threads`, of each process, are settings, so that on one kind of machine the files depend
    neither on the number of processes nor on where a job stopped.

    Args:
        model: what `mk.load_model` takes by name, with `revision` and `device`, or a model.
        out: the folder.
        map: "h" (the encoder), "pooled" (summed over the places) or "mean" (posterior mean).
        samples: which; x_t is the state of `mk.sample(p, index=[i], seed=seed, steps=steps)` at the
            time of its grid nearest to each of `times`.
        times: each in 0 ... T - 1, default .9, .7 and .5 of the way up: 900, 700, 500 of 1,000.
        k: directions of each basis.
        tol: of `mk.svd`.
        seed: of the samples and of `mk.svd`.
        steps: of the samples' way down.
        threads: of each process.
        dtype: of the stored U and V.
        revision: of a Hub repository.
        prompt: of a text model, or a class; guidance and negative: as `p.prompted` takes them.
        device: "auto", "cpu", "cuda" or "mps".
        at: the layer whose output is h, by its name in the network; default its bottleneck.

    Returns: nothing; `load_atlas` reads it.
    Raises ValueError for a bad argument, settings other than those the folder was begun with, and
    damaged files (all are read at the start); OSError on a full disk, with what is finished kept.
    Cost: at most `steps` network calls a sample, one `svd` an item, in an eighth of the calls where
    eight go side by side; k (n + m) stored numbers each.

    >>> from mathkit.tools import atlas
    >>> atlas.build("alice", "runs/atlas/alice", samples=[])
    Traceback (most recent call last):
    ValueError: give at least one time and one sample, and no sample twice
    """
    if device == "auto" and not isinstance(model, UNetModel) and str(model) in data.built_in():
        device = "cpu"
    state, place = _processes(device)
    p = model if isinstance(model, UNetModel) else load_model(model, place, revision=revision)
    p = p if prompt is None else p.prompted(prompt, guidance, negative)
    settings = _described(p) | {
        "map": map, "k": k, "tol": tol, "seed": seed, "samples": list(samples),
        "times": nearest(p, times, steps), "steps": steps, "threads": threads, "dtype": dtype,
        "at": at,
    }  # fmt: skip
    numbers = _item_numbers(p, settings)
    size = k * numbers * DTYPES[dtype].itemsize
    settings["together"] = max(1, min(TOGETHER, NUMBERS // numbers))
    atlas = _begun(Path(out), settings, state)
    todo = atlas.missing
    if state.is_main_process:
        _announce(atlas, todo, size)
    state.wait_for_everyone()  # nobody writes before everybody has seen what is missing
    groups = [group for group in atlas.groups if set(group) & set(todo)]
    with _limited(threads), state.split_between_processes(groups) as mine:
        _work(p, atlas, mine, set(todo), state.is_main_process)


def _described(p: UNetModel) -> dict[str, Any]:
    """What the bases of a model depend on, as settings."""
    found = {
        "model": p.source, "revision": p.revision, "prediction": p.prediction, "prompt": p.prompt,
        "precision": str(p.dtype).removeprefix("torch."), "device": p.device.type,
        "torch": torch.__version__,
    }  # fmt: skip
    guided = {"guidance": p.guidance, "negative": p.negative} if p.prompt is not None else {}
    return found | guided


def _processes(device: str) -> tuple[Any, Any]:
    """accelerate's state of all processes, and this one's device."""
    from accelerate import PartialState

    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    wanted = automatic if device == "auto" else device
    here, cards = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if wanted == "cuda" and here > cards:
        raise ValueError(
            f"{here} processes on a machine with {cards} GPU{'s' * (cards != 1)}: start one for "
            "each, or give --device cpu"
        )
    state = PartialState(cpu=wanted == "cpu")
    # cpu:0, as accelerate calls it among several, gives other last bits than cpu.
    return state, state.device if state.device.type == wanted != "cpu" else wanted


@contextmanager
def _limited(threads: int) -> Iterator[None]:
    """So many threads inside: another number gives other last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def nearest(p: Model, times: Sequence[int] | None, steps: int) -> list[int]:
    """The times of the sampling grid nearest to these, each once; None: to .9, .7 and .5 of T."""
    if times is None:
        times = [round(share * (p.top + 1)) for share in (0.9, 0.7, 0.5)]
    grid = timesteps(p, p.top, steps)
    return list(dict.fromkeys(min(grid, key=lambda g: abs(g - p.time(t))) for t in times))


def _item_numbers(p: Model, s: dict[str, Any]) -> int:
    """n + m of one item. Raises ValueError for settings that no item could be made with."""
    for name, choices in (("map", MAPS), ("dtype", DTYPES)):
        if s[name] not in choices:
            raise ValueError(f"{name} is one of {', '.join(choices)}, got {s[name]!r}")
    s["samples"] = [integer(i, "a sample") for i in s["samples"]]
    if not s["times"] or not s["samples"] or len(set(s["samples"])) < len(s["samples"]):
        raise ValueError("give at least one time and one sample, and no sample twice")
    if not 0 <= s["tol"] < 1:
        raise ValueError(f"tol is a share of s_1 in [0, 1), got {s['tol']}")
    if s["threads"] < 1:
        raise ValueError(f"threads is an integer >= 1, got {s['threads']}")
    x = start(p, s["seed"], [min(s["samples"])])
    with torch.no_grad():
        f = MAPS[s["map"]](p, s["times"][0], s.pop("at"))
        n, m = x.numel(), f(x).numel()
    if isinstance(f, Encoder) and f.at != "mid_block":  # which goes without saying
        s["at"] = f.at
    if not 1 <= s["k"] <= min(m, n):
        raise ValueError(f"k counts directions: 1 ... min(m, n) = {min(m, n)}, got {s['k']}")
    return int(n + m)


def _begun(folder: Path, settings: dict[str, Any], state: Any) -> Atlas:
    """The atlas of these settings; the first process writes them down where there are none."""
    if state.is_main_process:
        if Atlas(folder, settings).missing:
            data.claim(folder)
        if not (folder / MANIFEST).exists():
            data.store(folder / MANIFEST, (json.dumps(settings, indent=1) + "\n").encode())
    state.wait_for_everyone()
    atlas = load_atlas(folder)
    check_same(folder, atlas.settings, settings)
    return atlas


def check_same(folder: Path, old: dict[str, Any], now: dict[str, Any]) -> None:
    """ValueError where the settings are others; files and folders are by each of their paths."""

    def plain(key: str, value: Any) -> Any:
        return os.path.abspath(value) if key in ("model", "image") and value else value

    pairs = [(key, old.get(key), now.get(key)) for key in sorted(now.keys() | old.keys())]
    differ = [(k, a, b) for k, a, b in pairs if plain(k, a) != plain(k, b)]
    if differ:
        said = "; ".join(f"{key} {_shown(a)}, now {_shown(b)}" for key, a, b in differ)
        raise ValueError(
            f"{folder} was begun with other settings: {said}. Give the same again to finish it, or "
            "another folder"
        )


def _shown(value: Any) -> str:
    if isinstance(value, list) and len(value) > 6:
        return f"[{value[0]}, {value[1]}, ... {value[-1]}] ({len(value)} values)"
    return repr(value)


def _announce(atlas: Atlas, todo: list[Item], size: int) -> None:
    """Read what is finished, ValueError if any of it is damaged, and say what is to do."""
    finished, damaged = sorted(set(atlas.items) - set(todo)), []
    for item in finished:
        try:
            atlas[item]
        except ValueError as error:
            damaged.append(str(error))
    if damaged:
        raise ValueError("\n".join(damaged))
    rest = f"; {len(todo)} to do, {len(todo) * size / 1e6:,.2f} MB" if todo else ""
    state = f"{len(finished)} of {len(atlas.items)} bases finished{rest}"
    print(f"{atlas.folder}, {atlas._extent()}: {state}", flush=True)


def _work(
    p: Model, atlas: Atlas, groups: Sequence[list[Item]], todo: set[Item], show: bool
) -> None:
    from tqdm.auto import tqdm

    s, found = atlas.settings, dict[int, dict[int, Tensor]]()
    count = sum(len(todo.intersection(group)) for group in groups)
    with tqdm(total=count, unit="basis", disable=not (show and count)) as bar:
        for group in groups:
            if found.keys() != {i for i, _ in group}:
                found = {i: _states(p, s, i, groups) for i, _ in group}
            x = torch.cat([found[i][t] for i, t in group])
            f = MAPS[s["map"]](p, group[0][1], s.get("at"))
            bases = side_by_side(f, x, lambda A: svd(A, s["k"], s["tol"], s["seed"]))
            for item, basis in zip(group, bases, strict=True):
                if isinstance(basis, SVD) and item in todo:
                    atlas.put(item, basis)
                    bar.update()
            _raise_the_first(group, bases)


def _states(p: Model, s: dict[str, Any], i: int, groups: Sequence[list[Item]]) -> dict[int, Tensor]:
    last = min(t for group in groups for sample, t in group if sample == i)
    return states(p, s["seed"], i, s["steps"], last)


def _raise_the_first(group: Sequence[Item], bases: Sequence[SVD | Exception]) -> None:
    for (i, t), basis in zip(group, bases, strict=True):
        if isinstance(basis, ValueError):
            raise ValueError(f"sample {i} at t = {t}: {basis}") from basis
        if isinstance(basis, Exception):
            raise basis


def states(p: Model, seed: int, i: int, steps: int, last: int) -> dict[int, Tensor]:
    """t -> x_t (1, *shape) of sample i, at the times of its grid from T - 1 to `last`.

    Each sample alone, as a batch gives other last bits. Cost: a network call each time.
    """
    grid = [t for t in timesteps(p, p.top, steps) if t >= last]
    return dict(itertools.islice(walk(p, start(p, seed, [i]), grid), len(grid)))


def _packed(r: SVD, dtype: torch.dtype) -> bytes:
    """A safetensors file whose last bytes are the tensor "seal", here zero."""
    from safetensors.torch import save

    bounds = [float("nan") if bound is None else bound for bound in (r.gap, r.angle_bound)]
    tensors = {
        "U": r.U.to(dtype), "S": r.S, "V": r.V.to(dtype), "residuals": r.residuals,
        "bounds": torch.tensor(bounds, dtype=torch.float64), "passes": torch.tensor(r.passes),
        "seal": torch.zeros(SEAL, dtype=torch.uint8),  # the narrowest dtype lies last
    }  # fmt: skip
    return save({name: value.contiguous().cpu() for name, value in tensors.items()})


def _unpacked(content: bytes) -> SVD:
    from safetensors.torch import load

    file = load(content)
    gap, bound = (None if math.isnan(value) else value for value in file["bounds"].tolist())
    passes = Passes(*file["passes"].tolist())
    return SVD(file["U"], file["S"], file["V"], file["residuals"], passes, gap, bound)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of `python -m mathkit atlas`."""
    parser = options.parser("atlas", __doc__, "folder of the atlas, e.g. runs/atlas/NAME")
    add = parser.add_argument
    add("--model", default="alice", help="built-in name, local diffusers folder or Hub id")
    add("--map", default="h", choices=MAPS, help="the encoder, h summed, or the posterior mean")
    add("--samples", type=_numbers, default=range(20), help="0:20, or 3,5,8 (default 0:20)")
    moved = "each moved to the nearest of the sampling grid (default 900,700,500 of 1,000)"
    add("--times", type=_numbers, help=moved)
    add("--k", type=int, default=10, help="directions (default %(default)s)")
    add("--tol", type=float, default=1e-3, help="residual, as a share of s_1")
    add("--seed", type=int, default=0, help="of the samples and of svd")
    add("--steps", type=int, default=25, help="network calls of a sample")
    add("--threads", type=int, default=1, help="of each process")
    add("--dtype", default="float32", choices=DTYPES, help="of the stored U and V")
    add("--revision", help="of a Hub repository")
    add("--prompt", help="for a text model, or a class")
    add("--guidance", type=float, default=1.0, help="with the prompt (default %(default)s)")
    add("--negative", default="", help="the text or class that guidance leads away from")
    add("--at", help="the layer whose output is h, by its name (default the bottleneck)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    build(**vars(parser.parse_args(argv)))


def _numbers(text: str) -> list[int]:
    """0:20 is 0 ... 19; 3,5,8 those three; both may be mixed."""
    try:
        ends = [[int(word) for word in part.split(":")] for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected 0:20 or 3,5,8, got {text!r}") from None
    return [i for span in ends for i in (range(*span) if len(span) > 1 else span)]
