"""What lies in data/: where it is found, whether it is what the manifest lists, how it is read."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import time
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mathkit.arguments import told

MANIFEST, README = "manifest.json", "README.md"
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
    return [e for e in manifest(folder) if below(e["path"], name)]


def below(path: str, name: str) -> bool:
    return path == name or path.startswith(name + "/")


def built_in() -> list[str]:
    """Names of the shipped models: the listed folders that hold a model_index.json."""
    paths = [Path(e["path"]) for folder in folders() for e in manifest(folder)]
    return sorted({p.parent.as_posix() for p in paths if p.name == "model_index.json"})


def find_network(name: str) -> Path:
    """The shipped file or folder of this name, from the first folder that lists it, hashes checked.

    Raises FileNotFoundError if none lists it or a listed file is missing, ValueError if a file
    differs from its entry.
    """
    for folder in folders():
        listed = entries(folder, name)
        for entry in listed:
            verify(folder, entry)
        if listed:
            return folder / name
    held = sorted({e["path"].split("/")[0] for f in folders() for e in manifest(f)})
    raise FileNotFoundError(
        f"no shipped weights are called {name!r}; there are: {', '.join(held) or 'none yet'}. "
        "`make patient` trains them and `make ship` lists them in data/manifest.json"
    )


def verify(folder: str | Path, entry: Entry) -> None:
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


def sha256(path: str | Path, *more: Path) -> str:
    """SHA-256 of a file, in hexadecimal; of several, that of theirs."""
    if more:
        each = [sha256(file) for file in (path, *more)]
        return hashlib.sha256("".join(each).encode()).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_tensors(name: str) -> dict[str, Tensor]:
    """The tensors of a shipped file, e.g. "reader.safetensors", its hash checked."""
    return read_tensors(find_network(name))


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weights file, on the CPU: safetensors, or a pickle of tensors alone.

    A pickle (.bin, .pt, ...) goes through torch's weights-only loader, which runs no code of the
    file; of an index of shards (.index.json) all are read. Raises ValueError for a pickle of
    anything else, a broken file, a pointer of git-lfs, and NaN or infinity.
    """
    path, state = Path(path), dict[str, Tensor]()
    for file in shards(path):
        check_pointer(file)
        state |= _safetensors(file) if file.suffix == ".safetensors" else _pickle(file)
    for key, value in state.items():
        if value.is_complex() or (value.is_floating_point() and value.itemsize == 1):
            raise ValueError(f"{path} holds {value.dtype} in {key}, which mathkit does not read")
        if not value.isfinite().all():
            raise ValueError(f"{path} holds NaN or infinity in {key}")
    return state


def shards(path: Path) -> list[Path]:
    """The weights files that an index of shards names, in order; of any other file, itself.

    Raises ValueError for an index that is none, or names a file of another folder.
    """
    if ".index" not in path.suffixes:
        return [path]
    try:
        names = sorted({name + "" for name in read_json(path)["weight_map"].values()})
    except (KeyError, AttributeError, TypeError):
        raise ValueError(f"{path} is no index of shards: fetch the folder again") from None
    if not names or not all(re.fullmatch(r"[\w.-]{1,200}\.(safetensors|bin)", n) for n in names):
        raise ValueError(f"{path} is no index of shards: it names {str(names)[:80]}")
    return [path.with_name(name) for name in names]


LFS = b"version https://git-lfs"
LEFT_FOR = 3600  # seconds after which what a killed process left may go


def check_pointer(path: Path) -> None:
    """Raises ValueError for what git leaves in the place of a large file without git-lfs, OSError
    for what is no file to read: a folder, a pipe, a link that leads nowhere."""
    try:
        if not path.is_file():
            raise FileNotFoundError(None, "there is no such file")
        with path.open("rb") as file:
            found = file.read(len(LFS))
    except OSError as error:
        raise type(error)(
            f"{path} cannot be read ({error.strerror}): fetch the folder again"
        ) from None
    if found == LFS:
        raise ValueError(
            f"{path} is a pointer of git-lfs, not the file itself: in its clone run "
            "`git lfs install && git lfs pull`, or load the model by its Hub name"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError for one that holds anything else."""
    check_pointer(path)
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, too many digits, too deep
        raise ValueError(
            f"{path} is no JSON ({first_line(error)}): fetch the folder again"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {told(content)}: expected an object, {{...}}")
    return content


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # of a broken header also KeyError, OverflowError, ...
        raise ValueError(
            f"{path} is no whole safetensors file ({first_line(error)}): fetch it again"
        ) from None


def _pickle(path: Path) -> dict[str, Tensor]:
    try:
        _check_zip(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of broken bytes the loader raises whatever its parts do
        raise ValueError(
            f"{path} is refused: torch's weights-only loader reads pickles of tensors alone and "
            f"runs no code ({first_line(error)}). Fetch it again if it was cut off, or ask for the "
            "weights as safetensors"
        ) from None
    if not isinstance(state, dict) or not all(map(_stored, state, state.values())):
        raise ValueError(f"{path} is refused: expected a dictionary of tensors")
    return state


def _check_zip(path: Path) -> None:
    """Raises for a zip, torch's format, that would unpack to more than it is."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            if sum(part.file_size for part in packed.infolist()) > path.stat().st_size:
                raise ValueError("its parts are compressed, which torch.save does not")


def _stored(key: Any, value: Any) -> bool:
    """Whether an entry of a pickle is a named tensor whose every number lies in the file."""
    if not (isinstance(key, str) and isinstance(value, Tensor)) or value.is_quantized:
        return False
    strided = value.layout == torch.strided and value.device.type == "cpu"
    return strided and value.nbytes <= value.untyped_storage().nbytes()


def first_line(error: Exception) -> str:
    """What an error says, on one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def claim(folder: Path) -> None:
    """Make a folder, and try a file in it: before the work, not when its result is to be stored.

    Raises OSError that says what to do where the folder takes no files.
    """
    probe = folder / f".{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder, r"\.(\d+)\.part")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(
            error.errno,
            f"{folder} takes no files: {error.strerror}. What is finished is kept: mend that, or "
            "name another folder if the command takes one, and run it again",
        ) from error


def store(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, whenever the process or the machine stops.

    Raises OSError that says what to do. A kill leaves PATH.PID.part at most, until the file is
    written again.
    """
    # Of this process alone: one that outlived its parent may still write the same file.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, rf"{re.escape(path.name)}\.(\d+)\.part")
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


def sweep(folder: Path, pattern: str) -> None:
    """Remove what killed processes left in a folder under names of a pattern, an hour ago or more.

    pattern: its one group is the process's number. Where machines share the folder it may be that
    of another machine's process, which is not asked: hence the hour.
    """
    ago = time.time() - LEFT_FOR
    with suppress(OSError):  # another process may sweep too, and who writes need not be let read
        for left in folder.iterdir():
            found = re.fullmatch(pattern, left.name)
            if found and left.stat().st_mtime < ago and not _runs(int(found[1])):
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def _runs(pid: int) -> bool:
    if os.name == "nt":  # where to ask is to kill
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # of another user
        pass
    return True


class Info(dict[str, str]):
    """Facts for a bug report; prints one a line."""

    def __repr__(self) -> str:
        width = max(map(len, self))
        return "\n".join(f"{key:<{width}}  {value}" for key, value in self.items())

    __str__ = __repr__


def main(words: Sequence[str] = ()) -> None:
    """Command line of `python -m mathkit info`."""
    if words:
        raise ValueError(f"takes no arguments, got {' '.join(words)}")
    print(info())


def info() -> Info:
    """Versions, device, threads and the weights' hashes, for a bug report: a dict that prints well.

    Returns: `Info`, {fact: text}; a shipped file is "MISSING" or "DIFFERS from its manifest entry"
    where it is.
    Raises FileNotFoundError when MATHKIT_DATA names a folder without a manifest.json.
    Cost: one hash of data/ (at most 24 MB), no pass.

    >>> list(mk.info())[:3]
    ['python', 'system', 'torch']
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
        verify(folder, entry)
    except FileNotFoundError:
        return "MISSING"
    except ValueError:
        return "DIFFERS from its manifest entry"
    return f"sha256 {entry['sha256'][:16]}"


NETWORKS = ("alice", "reader")


def stored(name: str) -> dict[str, Any]:
    """The stored table data/results/NAME.json, and that its weights are the shipped ones.

    A table measured without weights (None) is always good.

    Args:
        name: of the table; `python -m studies results` lists them.

    Returns: what the file holds: "command", "weights", "seconds" and the table's own entries.
    Raises FileNotFoundError where there is none of this name, ValueError where its weights are not
    the shipped.
    Cost: no pass; the file is read, and the manifest.

    >>> mk.data.stored("alice")["weights"] == mk.data.fingerprint()
    True
    """
    path = locate(f"results/{name}.json")
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
    return locate(f"results/{name}.json") is not None


def fingerprint(networks: Sequence[str] = NETWORKS) -> str:
    """One SHA-256 over the hashes of the shipped files of these networks."""
    listed = [sha for name in set(networks) for sha in _hashes(name)]
    return hashlib.sha256("".join(sorted(listed)).encode()).hexdigest()


def _hashes(network: str) -> list[str]:
    """Of the network's files in the first folder that lists any, as `find_network` takes them."""
    for folder in folders():
        names = (network, f"{network}.safetensors")
        found = [e["sha256"] for name in names for e in entries(folder, name)]
        if found:
            return found
    return []
