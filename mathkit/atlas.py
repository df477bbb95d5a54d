"""An atlas: local bases for many samples and times, by one job that resumes where it stopped.

A local basis is the top k singular triplets of a map's Jacobian at x_t. One process, or several:
    python -m mathkit atlas --out runs/atlas/NAME --samples 0:20 --times 900,700,500
    torchrun --standalone --nproc_per_node 2 -m mathkit atlas --out ...
(`accelerate launch` on CPUs starts a single process.) The folder holds atlas.json, the settings,
and one safetensors file for each item (sample, t), whole or absent.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import math
import operator
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import weights
from .diffusion import _Noise, posterior_mean, sample, timesteps
from .hspace import encoder
from .loading import load_model, model_files
from .maps import Passes, jacobian
from .models import Model
from .spectral import SVD, svd

Item = tuple[int, int]
MANIFEST = "atlas.json"
MAPS: dict[str, Callable[[Model, int], Callable[[Tensor], Tensor]]] = {
    "h": encoder,
    "pooled": lambda p, t: encoder(p, t, pool="sum"),
    "mean": posterior_mean,
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Atlas:
    """The bases in a folder; atlas[sample, t] reads one, as an `SVD`.

    settings: what the job was started with. items: every (sample, t) of it, finished or not.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings
        self.items: list[Item] = [(i, t) for i in settings["samples"] for t in settings["times"]]
        self._plan = set(self.items)
        self._origin = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

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
        if item not in self._plan:
            s = self.settings
            held = f"samples {_say(s['samples'])} at t in {_say(s['times'])}"
            raise KeyError(f"{item} is no item (sample, t) of {self.folder}, which has {held}")
        path = self.path(item)
        if not path.exists():
            raise FileNotFoundError(
                f"{item} is not finished, nor are {len(self.missing)} of the {len(self.items)} "
                f"items of {self.folder}: the job's command, run again, goes on (see .missing)"
            )
        return _unpacked(path, self._origin, item)

    def put(self, item: Item, r: SVD) -> None:
        """Store the basis of (sample, t), whole or not at all. Raises OSError on a full disk."""
        dtype = DTYPES[self.settings["dtype"]]
        tensors = {"U": r.U.to(dtype), "S": r.S, "V": r.V.to(dtype), "residuals": r.residuals}
        facts: dict[str, Any] = {"item": item, "origin": self._origin, "passes": r.passes}
        facts |= {"gap": r.gap, "angle_bound": r.angle_bound}
        _write(self.path(item), _packed(tensors, facts))

    def __repr__(self) -> str:
        s, left = self.settings, len(self.missing)
        what = f"{s['model']}, map {s['map']}, k = {s['k']}"
        return f"Atlas({self.folder}: {what}, {left} of {len(self.items)} items missing)"


def load_atlas(folder: str | Path) -> Atlas:
    """The atlas in a folder, finished or not; its bases are read when asked for.

    Raises FileNotFoundError where there is none, ValueError where its settings cannot be read.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no atlas: `python -m mathkit atlas` makes {path}")
    try:
        return Atlas(Path(folder), json.loads(path.read_text("utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no settings of an atlas ({error}): restore it") from None


def build(
    model: str | Path,
    out: str | Path,
    map: str = "h",
    samples: Sequence[int] = range(20),
    times: Sequence[int] = (900, 700, 500),
    k: int = 10,
    *,
    tol: float = 1e-3,
    seed: int = 0,
    steps: int = 25,
    threads: int = 1,
    dtype: str = "float32",
    revision: str | None = None,
    prompt: str | None = None,
    device: str = "auto",
    repair: bool = False,
) -> None:
    """Make the atlas in folder `out`, or finish it: mk.svd of the map's Jacobian at each x_t.

    x_t: the state of `mk.sample(p, index=[i], seed=seed, steps=steps)` at the time of its grid
    nearest to each of `times`. map: "h" (the encoder), "pooled" (summed over the places) or "mean"
    (posterior mean). dtype: of the stored U and V. Called by several processes (torchrun), each
    takes a share and returns when that is done; `threads`, of each, is a setting, so that on one
    kind of machine the files do not depend on the number of processes. repair: redo damaged files.

    Raises ValueError for a bad argument, settings other than those the folder was begun with, and
    damaged files (all are read at the start); OSError on a full disk, with what is finished kept.
    Cost: `steps` network calls a sample, one `svd` an item; k (n + m) numbers an item on the disk.
    """
    state, place = _processes(device)
    with _limited(threads):
        network = load_model(model, place, revision=revision)
        p: Model = network if prompt is None else network.prompted(prompt)
        settings = {
            "model": str(model), "revision": p.revision, "sha256": _digest(p, model),
            "prediction": network.prediction, "prompt": prompt, "map": map, "k": k, "tol": tol,
            "seed": seed, "svd_seed": seed, "samples": [operator.index(i) for i in samples],
            "times": _nearest(p, times, steps), "steps": steps, "threads": threads, "chunk": 1,
            "dtype": dtype, "device": p.device.type, "torch": torch.__version__,
        }  # fmt: skip
        _check(p, settings)
        atlas = _begun(Path(out), settings, state)
        todo = _unfinished(atlas, state, repair)
        if state.is_main_process:
            print(_estimate(p, atlas, todo, state.num_processes), flush=True)
        with state.split_between_processes(todo) as mine:
            _work(p, atlas, mine, state.is_main_process)


def _processes(device: str) -> tuple[Any, Any]:
    """accelerate's state of all processes, and this one's device."""
    from accelerate import PartialState

    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    wanted = automatic if device == "auto" else device
    state = PartialState(cpu=wanted == "cpu")
    # cpu:0, as accelerate calls it among several, gives other last bits than cpu.
    return state, state.device if state.device.type == wanted != "cpu" else wanted


@contextmanager
def _limited(count: int) -> Iterator[None]:
    if count < 1:
        raise ValueError(f"threads is an integer >= 1, got {count}")
    before = torch.get_num_threads()
    torch.set_num_threads(count)  # another number gives other last bits
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _digest(p: Model, model: str | Path) -> str:
    """SHA-256 of the network's weights."""
    revision = p.revision or ""
    if revision.startswith("sha256:"):
        return revision.removeprefix("sha256:")
    return weights.sha256(model_files(model, revision).weights)


def _nearest(p: Model, times: Sequence[int], steps: int) -> list[int]:
    """The times of the sampling grid nearest to these, each once."""
    grid = timesteps(p, len(p.alphas_cumprod) - 1, steps)
    return list(dict.fromkeys(min(grid, key=lambda g: abs(g - p.time(t))) for t in times))


def _check(p: Model, s: dict[str, Any]) -> None:
    """ValueError for settings that no item could be made with, before any is written down."""
    for name, choices in (("map", MAPS), ("dtype", DTYPES)):
        if s[name] not in choices:
            raise ValueError(f"{name} is one of {', '.join(choices)}, got {s[name]!r}")
    if not s["times"] or not s["samples"] or len(set(s["samples"])) < len(s["samples"]):
        raise ValueError("give at least one time and one sample, and no sample twice")
    if not 0 <= s["tol"] < 1:
        raise ValueError(f"tol is a share of s_1 in [0, 1), got {s['tol']}")
    top, x = len(p.alphas_cumprod) - 1, _start(p, s, s["samples"][:1])
    with torch.no_grad():
        most = min(x[0].numel(), MAPS[s["map"]](p, top)(x).numel())
    if not 1 <= s["k"] <= most:
        raise ValueError(f"k counts directions: 1 ... min(m, n) = {most} here, got {s['k']}")


def _begun(folder: Path, settings: dict[str, Any], state: Any) -> Atlas:
    """The atlas of these settings; the first process writes them down where there are none."""
    folder.mkdir(parents=True, exist_ok=True)
    if state.is_main_process:
        for ours in (MANIFEST, "sample*_t*.safetensors"):
            for part in folder.glob(f"{ours}.*.part"):
                part.unlink(missing_ok=True)
        if not (folder / MANIFEST).exists():
            _write(folder / MANIFEST, (json.dumps(settings, indent=1) + "\n").encode())
    state.wait_for_everyone()
    atlas = load_atlas(folder)
    keys = sorted(settings.keys() | atlas.settings.keys())
    pairs = [(key, atlas.settings.get(key), settings.get(key)) for key in keys]
    differ = [f"{key} {_say(old)}, now {_say(new)}" for key, old, new in pairs if old != new]
    if differ:
        raise ValueError(
            f"{folder} was begun with other settings: {'; '.join(differ)}. Give the same again "
            "to finish it, or another folder"
        )
    return atlas


def _say(value: Any) -> str:
    if isinstance(value, list) and len(value) > 6:
        return f"[{value[0]}, {value[1]}, ... {value[-1]}] ({len(value)} values)"
    return repr(value)


def _unfinished(atlas: Atlas, state: Any, repair: bool) -> list[Item]:
    """The items to do. Each process checks a share; none goes on until every share is known."""
    from accelerate.utils import gather_object

    missing: set[Item] = set(atlas.missing)
    broken: dict[Item, str] = {}
    with state.split_between_processes([i for i in atlas.items if i not in missing]) as mine:
        for item in mine:
            try:
                atlas[item]
            except ValueError as error:
                broken[item] = str(error)
    broken = dict(gather_object(list(broken.items())))
    if broken and not repair:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise ValueError(f"{next(iter(broken.values()))}{more}")
    return [item for item in atlas.items if item in missing or item in broken]


def _estimate(p: Model, atlas: Atlas, todo: list[Item], world: int) -> str:
    """What is to do, and about how long it takes and how large it gets. Costs two passes each way.

    Raises OSError where the disk has less room than that.
    """
    done = f"{atlas.folder}: {len(atlas.items) - len(todo)} of {len(atlas.items)} bases finished"
    if not todo:
        return done
    s, x, clock = atlas.settings, _start(p, atlas.settings, [todo[0][0]]), [time.perf_counter()]
    A = jacobian(MAPS[s["map"]](p, todo[0][1]), x, s["chunk"])
    for _ in range(2):
        A.pull(A.push(x)).sum().item()
        clock.append(time.perf_counter())
    n, m, step = x.numel(), math.prod(A.out_shape), clock[2] - clock[1]
    # About what svd needs at tol = 1e-3; a network call costs about half a step.
    each = clock[1] - clock[0] + min(3 * s["k"] + 10, n, m) * step
    calls = len({i for i, _ in todo}) * s["steps"]
    minutes = math.ceil((len(todo) * each + calls * step / 2) / world / 60)
    size = len(todo) * s["k"] * (n + m) * DTYPES[s["dtype"]].itemsize
    free = shutil.disk_usage(atlas.folder).free
    task = f"{done}, {len(todo)} to do, at t in {_say(s['times'])}: {size / 1e9:.2g} GB"
    if size > free:
        raise OSError(errno.ENOSPC, f"{task}, where {free / 1e9:.2g} GB are free")
    return f"{task}, about {minutes} min with {world} at work"


def _work(p: Model, atlas: Atlas, todo: Sequence[Item], show: bool) -> None:
    from tqdm.auto import tqdm

    s = atlas.settings
    with tqdm(total=len(todo), unit="basis", disable=not show) as bar:
        for i, group in groupby(todo, lambda item: item[0]):
            for t, x in _states(p, s, i, {t for _, t in group}).items():
                try:
                    A = jacobian(MAPS[s["map"]](p, t), x, s["chunk"])
                    basis = svd(A, s["k"], s["tol"], s["svd_seed"])
                except ValueError as error:
                    raise ValueError(f"sample {i} at t = {t}: {error}") from error
                atlas.put((i, t), basis)
                bar.update()


class _Enough(Exception):
    pass


def _states(p: Model, s: dict[str, Any], i: int, times: set[int]) -> dict[int, Tensor]:
    """x_t (1, *shape) of sample i at each of these times; alone, as a batch changes last bits."""
    top = len(p.alphas_cumprod) - 1
    kept = {top: _start(p, s, [i])} if top in times else {}

    def keep(_: int, then: int, x: Tensor) -> None:
        if then in times:
            kept[then] = x
        if len(kept) == len(times):
            raise _Enough

    with suppress(_Enough):
        if len(kept) < len(times):
            sample(p, seed=s["seed"], index=[i], steps=s["steps"], callback=keep)
    return kept


def _start(p: Model, s: dict[str, Any], index: Sequence[int]) -> Tensor:
    """x_T of these samples."""
    return _Noise(p, s["seed"], index, stream=0)()


def _packed(tensors: dict[str, Tensor], facts: dict[str, Any]) -> bytes:
    from safetensors.torch import save

    tensors = {name: value.contiguous().cpu() for name, value in tensors.items()}
    text = json.dumps(facts, sort_keys=True)
    # One key: the order of several is not fixed.
    return save(tensors, {"basis": f"{_checksum(tensors, text)} {text}"})


def _unpacked(path: Path, origin: str, item: Item) -> SVD:
    from safetensors import SafetensorError, safe_open

    redo = "run the job's command again with --repair to redo it"
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            checksum, text = file.metadata()["basis"].split(" ", 1)
        if checksum != _checksum(tensors, text):
            raise ValueError("its checksum differs")
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = weights.first_line(error)
        raise ValueError(f"{path} is damaged ({reason}): {redo}") from None
    facts = json.loads(text)
    if (facts["origin"], tuple(facts["item"])) != (origin, item):
        raise ValueError(f"{path} is of another atlas or item: {redo}")
    U, S, V, residuals = (tensors[name] for name in ("U", "S", "V", "residuals"))
    passes = Passes(*facts["passes"])
    return SVD(U, S, V, residuals, passes, facts["gap"], facts["angle_bound"])


def _checksum(tensors: dict[str, Tensor], text: str) -> str:
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        total.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        total.update(tensors[name].view(torch.uint8).numpy())
    return total.hexdigest()


def _write(path: Path, content: bytes) -> None:
    """The file, whole or not at all, whenever the process or the machine stops."""
    # Of this process alone: one that outlives its torchrun may still write the same item.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            error.errno,
            f"no room left for {path}. What is finished is kept: free some space and run the same "
            "command again",
        ) from error


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of `python -m mathkit atlas`."""
    parser = argparse.ArgumentParser(
        prog="python -m mathkit atlas", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--out", required=True, help="folder of the atlas, e.g. runs/atlas/NAME")
    add("--model", default="alice", help="built-in name, local diffusers folder or Hub id")
    add("--map", default="h", choices=MAPS)
    add("--samples", type=_span, default=range(20), help="0:20, or 3,5,8 (default 0:20)")
    add("--times", type=_span, default=[900, 700, 500], help="default 900,700,500")
    add("--k", type=int, default=10, help="directions (default %(default)s)")
    add("--tol", type=float, default=1e-3, help="residual, as a share of s_1")
    add("--seed", type=int, default=0, help="of the samples and of svd")
    add("--steps", type=int, default=25, help="network calls of a sample")
    add("--threads", type=int, default=1, help="of each process")
    add("--dtype", default="float32", choices=DTYPES, help="of the stored U and V")
    add("--revision", help="of a Hub repository")
    add("--prompt", help="for a text model")
    add("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    add("--repair", action="store_true", help="redo damaged files")
    build(**vars(parser.parse_args(argv)))


def _span(text: str) -> list[int]:
    """0:20 is 0 ... 19; 3,5,8 those three; both may be mixed."""
    ends = [[int(word) for word in part.split(":")] for part in text.split(",")]
    return [i for span in ends for i in (range(*span) if len(span) > 1 else span)]


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as problem:
        sys.exit(f"atlas: {problem}")
