"""Weights: where they lie, whether they are the ones listed, and how they are read and shipped."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import pickle
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MANIFEST, README = "manifest.json", "README.md"
FILE_LIMIT, FOLDER_LIMIT = 16_000_000, 24_000_000
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}
Entry = dict[str, Any]


def folders() -> list[Path]:
    """The folders with a manifest, in the order in which weights are looked for.

    MATHKIT_DATA if set, then the installed package's own `data`, then the clone's `data`. Raises
    FileNotFoundError when MATHKIT_DATA names a folder without a manifest.json.
    """
    package, named = Path(__file__).resolve().parent, os.environ.get("MATHKIT_DATA")
    if named and not (Path(named) / MANIFEST).is_file():
        raise FileNotFoundError(
            f"MATHKIT_DATA={named} holds no {MANIFEST}: point it at a copy of data/, or unset it"
        )
    places = [Path(named)] if named else []
    return [p for p in (*places, package / "data", clone()) if (p / MANIFEST).is_file()]


def locate(name: str) -> Path | None:
    """The file data/`name` in the first of `folders` that has one; None where none has."""
    places = (folder / name for folder in folders())
    return next((place for place in places if place.is_file()), None)


def clone() -> Path:
    """The `data` folder beside the package in a clone: where `ship` writes."""
    return Path(__file__).resolve().parents[1] / "data"


def manifest(folder: str | Path) -> list[Entry]:
    """What manifest.json lists: path, size, sha256, command, seed, metrics, licence of each file.

    An empty list is a valid manifest. Raises ValueError where it is not of this form.
    """
    path = Path(folder) / MANIFEST
    try:
        files = json.loads(path.read_text("utf-8"))["files"]
        named = {"path", "size", "sha256", "command", "seed", "metrics", "licence"}
        if all(named <= set(entry) for entry in files):
            return list(files)
    except (json.JSONDecodeError, KeyError, TypeError):
        pass
    raise ValueError(f'{path} is no manifest: expected {{"files": [{{"path": ..., ...}}, ...]}}')


def entries(folder: str | Path, name: str) -> list[Entry]:
    """The manifest's entries for a file, or for every file below a folder, of that name."""
    return [e for e in manifest(folder) if _below(e["path"], name)]


def built_in() -> list[str]:
    """Names of the shipped models: the listed folders that hold a model_index.json."""
    paths = [Path(e["path"]) for folder in folders() for e in manifest(folder)]
    return sorted({p.parent.as_posix() for p in paths if p.name == "model_index.json"})


def find(name: str) -> Path:
    """The shipped file or folder of this name, from the first folder that lists it, hashes checked.

    Raises FileNotFoundError if none lists it or a listed file is missing, ValueError if a file
    differs from its entry.
    """
    for folder in folders():
        listed = entries(folder, name)
        for entry in listed:
            check(folder, entry)
        if listed:
            return folder / name
    held = sorted({e["path"].split("/")[0] for f in folders() for e in manifest(f)})
    raise FileNotFoundError(
        f"no shipped weights are called {name!r}; there are: {', '.join(held) or 'none yet'}. "
        "`make patient` trains them and `make ship` lists them in data/manifest.json"
    )


def check(folder: str | Path, entry: Entry) -> None:
    """Raise unless the file has the size and SHA-256 of its manifest entry."""
    path = Path(folder) / entry["path"]
    if not path.is_file():
        raise FileNotFoundError(f"{path} is listed in {MANIFEST} but missing: restore it")
    found = sha256(path) if path.stat().st_size == entry["size"] else None
    if found != entry["sha256"]:
        what = f"SHA-256 {found}" if found else f"{path.stat().st_size} bytes"
        raise ValueError(
            f"{path} is not the file listed in {MANIFEST}: expected {entry['size']} bytes, SHA-256 "
            f"{entry['sha256']}, got {what}. Restore it (git checkout), or `make ship` to list it"
        )


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(name: str) -> dict[str, Tensor]:
    """The tensors of a shipped file, e.g. "reader.safetensors", its hash checked."""
    return read(find(name))


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weights file, on the CPU: safetensors, or a pickle of tensors alone.

    A pickle (.bin, .pt, ...) goes through torch's weights-only loader, which runs no code of the
    file. Raises ValueError for a pickle of anything else, a broken file, and NaN or infinity.
    """
    path = Path(path)
    state = _safetensors(path) if path.suffix == ".safetensors" else _pickle(path)
    broken = [key for key, value in state.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(f"{path} holds NaN or infinity in {broken[0]}")
    return state


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file ({error}): fetch it again") from None


def _pickle(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} is refused: torch's weights-only loader reads pickles of tensors alone and "
            f"runs no code ({first_line(error)}). Ask for the weights as safetensors"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} is refused: expected a dictionary of tensors")
    return state


def first_line(error: Exception) -> str:
    """What an error says, on one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def ship(
    sources: Mapping[str, str | Path],
    command: str,
    seed: int,
    metrics: Mapping[str, Any],
    licence: str = "CC-BY-4.0",
    data: str | Path | None = None,
) -> None:
    """Copy trained weights into data/ and renew manifest.json and README.md.

    sources: name in data/ -> file or folder to copy, e.g. {"alice": "runs/alice/final"}; a folder
    replaces all that was listed under its name. command and seed say how the files were made,
    metrics what was measured (kept with the safetensors files). Convert to float16 before.
    Raises ValueError for pickles, NaN, a file of 16 MB or more, or data/ of 24 MB or more; then
    nothing has been changed.
    """
    folder = Path(data) if data is not None else clone()
    copies = {dst: src for name, place in sources.items() for dst, src in _files(name, Path(place))}
    old = manifest(folder) if (folder / MANIFEST).is_file() else []
    replaced = [e for e in old if any(_below(e["path"], name) for name in sources)]
    made = {"command": command, "seed": seed}
    new = [made | _entry(dst, src, metrics) | {"licence": licence} for dst, src in copies.items()]
    files = sorted([*(e for e in old if e not in replaced), *new], key=lambda e: e["path"])
    _check_sizes(files)
    for dst, src in copies.items():
        store(folder / dst, src.read_bytes())
    for gone in {e["path"] for e in replaced} - set(copies):
        (folder / gone).unlink(missing_ok=True)
    write_manifest(folder, files)


def write_manifest(folder: str | Path, files: list[Entry]) -> None:
    """Write manifest.json and the README.md made from it."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    text = json.dumps({"files": files}, indent=1, allow_nan=False) + "\n"
    store(Path(folder) / MANIFEST, text.encode())
    store(Path(folder) / README, readme(files).encode())


def _files(name: str, place: Path) -> list[tuple[str, Path]]:
    if Path(name).is_absolute() or ".." in Path(name).parts or name in ("", MANIFEST, README):
        raise ValueError(f"{name!r} is no name inside data/")
    if place.is_file():
        return [(name, place)]
    inside = sorted(p for p in place.rglob("*") if p.is_file())
    if not inside:
        raise FileNotFoundError(f"nothing to ship at {place}: train first (`make patient`)")
    return [(f"{name}/{p.relative_to(place).as_posix()}", p) for p in inside]


def _below(path: str, name: str) -> bool:
    return path == name or path.startswith(name + "/")


def _entry(name: str, source: Path, metrics: Mapping[str, Any]) -> Entry:
    if source.suffix in PICKLES:
        raise ValueError(f"{source} is a pickle: only safetensors are shipped")
    if source.suffix == ".safetensors":
        read(source)
    kept = dict(metrics) if source.suffix == ".safetensors" else {}
    size = source.stat().st_size
    return {"path": name, "size": size, "sha256": sha256(source), "metrics": kept}


def _check_sizes(files: list[Entry]) -> None:
    large = [f"{e['path']} ({e['size'] / 1e6:.1f} MB)" for e in files if e["size"] >= FILE_LIMIT]
    total = sum(e["size"] for e in files)
    if large or total >= FOLDER_LIMIT:
        raise ValueError(
            f"a file stays under 16 MB and data/ under 24 MB; got {', '.join(large) or 'files'} "
            f"and {total / 1e6:.1f} MB in all: store float16, or a smaller network"
        )


def store(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, whenever the process or the machine stops.

    Raises OSError that says what to do. A kill leaves PATH.PID.part at most.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of this process alone: one that outlived its parent may still write the same file.
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
        raise OSError(
            error.errno,
            f"{path} could not be written: {error.strerror}. What is finished is kept: mend that "
            "(a full disk: free some space) and run the same command again",
        ) from error


def readme(files: list[Entry]) -> str:
    """data/README.md: a table of the listed files, and the card of each that has metrics."""
    lines = ["# Data", "", f"Made from `{MANIFEST}` by `make ship`; edit neither by hand.", ""]
    if not files:
        return "\n".join([*lines, "Nothing is shipped yet.", ""])
    lines += ["| file | MB | SHA-256 | made by | seed | licence |", "|---|---|---|---|---|---|"]
    for e in files:
        cells = [f"`{e['path']}`", f"{e['size'] / 1e6:.3f}", f"`{e['sha256'][:16]}`"]
        cells += [f"`{e['command']}`", str(e["seed"]), e["licence"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, *(line for e in files if e["metrics"] for line in _card(e)), ""])


def _card(entry: Entry) -> list[str]:
    rows = [f"| {key} | {_say(value)} |" for key, value in entry["metrics"].items()]
    return ["", f"## {entry['path']}", "", "| measured | value |", "|---|---|", *rows]


def _say(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_say(v)}" for key, v in value.items())
    return ", ".join(map(_say, value)) if isinstance(value, list | tuple) else str(value)


class Info(dict[str, str]):
    """Facts for a bug report; prints one a line."""

    def __repr__(self) -> str:
        width = max(map(len, self))
        return "\n".join(f"{key:<{width}}  {value}" for key, value in self.items())

    __str__ = __repr__


def info() -> Info:
    """Versions, device, threads and the weights' hashes, for a bug report: a dict that prints well.

    Cost: one hash of data/ (at most 24 MB), no pass.
    """
    names = ["mathkit", "diffusers", "safetensors", "huggingface_hub", "numpy"]
    facts = Info({"python": platform.python_version(), "system": platform.platform()})
    facts["torch"] = torch.__version__  # with its build, as in 2.13.0+cu130
    facts |= {name: _version(name) for name in names}
    cuda = torch.cuda.is_available()
    facts["device"] = f"cuda: {torch.cuda.get_device_name()}" if cuda else "cpu"
    facts["threads"] = f"{torch.get_num_threads()} of {os.cpu_count()}"
    for folder in folders():
        facts["data"] = facts.get("data", str(folder))
        facts |= {e["path"]: _state(folder, e) for e in manifest(folder) if e["path"] not in facts}
    return facts


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _state(folder: Path, entry: Entry) -> str:
    try:
        check(folder, entry)
    except FileNotFoundError:
        return "MISSING"
    except ValueError:
        return "DIFFERS from its manifest entry"
    return f"sha256 {entry['sha256'][:16]}"
