"""Copy trained weights from runs/ to data/, and renew the manifest."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from mathkit import data
from mathkit.data import Entry
from studies import train
from studies.runner import processes

LICENCE = "CC-BY-4.0"
FILE_LIMIT, FOLDER_LIMIT = 16_000_000, 24_000_000
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}


def copy_in(
    sources: Mapping[str, str | Path],
    command: str,
    seed: int,
    metrics: Mapping[str, Any],
    into: str | Path | None = None,
) -> None:
    """Copy trained weights into data/ and renew manifest.json and README.md.

    sources: name in data/ -> file or folder to copy, e.g. {"alice": "runs/alice/final"}; a folder
    replaces all that was listed under its name. command and seed say how the files were made,
    metrics what was measured (kept with the safetensors files). Convert to float16 before.
    Raises ValueError for pickles, NaN, a file of 16 MB or more, or data/ of 24 MB or more; then
    nothing has been changed.
    """
    folder = Path(into) if into is not None else data.clone()
    copies = {dst: src for name, place in sources.items() for dst, src in _files(name, Path(place))}
    old = data.manifest(folder) if (folder / data.MANIFEST).is_file() else []
    replaced = [e for e in old if any(data.below(e["path"], name) for name in sources)]
    made = {"command": command, "seed": seed}
    new = [made | _entry(dst, src, metrics) | {"licence": LICENCE} for dst, src in copies.items()]
    files = sorted([*(e for e in old if e not in replaced), *new], key=lambda e: e["path"])
    _check_sizes(files)
    for dst, src in copies.items():
        data.store(folder / dst, src.read_bytes())
    for gone in {e["path"] for e in replaced} - set(copies):
        (folder / gone).unlink(missing_ok=True)
    write_manifest(folder, files)


def write_manifest(folder: str | Path, files: list[Entry]) -> None:
    """Write manifest.json and the README.md made from it."""
    text = json.dumps({"files": files}, indent=1, allow_nan=False) + "\n"
    data.store(Path(folder) / data.MANIFEST, text.encode())
    data.store(Path(folder) / data.README, readme(files).encode())


def _files(name: str, place: Path) -> list[tuple[str, Path]]:
    if (
        Path(name).is_absolute()
        or ".." in Path(name).parts
        or name in ("", data.MANIFEST, data.README)
    ):
        raise ValueError(f"{name!r} is no name inside data/")
    if place.is_file():
        return [(name, place)]
    inside = sorted(p for p in place.rglob("*") if p.is_file())
    if not inside:
        raise FileNotFoundError(f"nothing to ship at {place}: train first (`make patient`)")
    return [(f"{name}/{p.relative_to(place).as_posix()}", p) for p in inside]


def _entry(name: str, source: Path, metrics: Mapping[str, Any]) -> Entry:
    if source.suffix in PICKLES:
        raise ValueError(f"{source} is a pickle: only safetensors are shipped")
    if source.suffix == ".safetensors":
        data.read_tensors(source)
    kept = dict(metrics) if source.suffix == ".safetensors" else {}
    size = source.stat().st_size
    return {"path": name, "size": size, "sha256": data.sha256(source), "metrics": kept}


def _check_sizes(files: list[Entry]) -> None:
    large = [f"{e['path']} ({e['size'] / 1e6:.1f} MB)" for e in files if e["size"] >= FILE_LIMIT]
    total = sum(e["size"] for e in files)
    if large or total >= FOLDER_LIMIT:
        raise ValueError(
            f"a file stays under 16 MB and data/ under 24 MB; got {', '.join(large) or 'files'} "
            f"and {total / 1e6:.1f} MB in all: store float16, or a smaller network"
        )


def readme(files: list[Entry]) -> str:
    """data/README.md: a table of the listed files, and the card of each that has metrics."""
    lines = ["# Data", "", f"Made from `{data.MANIFEST}` by `make ship`; edit neither by hand.", ""]
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


def write_card(path: str, metrics: dict[str, Any]) -> None:
    """Put the measured metrics of a weights file into the manifest (the first process does)."""
    if processes()[0] > 0:
        return
    folder = data.clone()
    files = data.manifest(folder)
    for entry in files:
        if entry["path"] == path:
            entry["metrics"] = metrics
    write_manifest(folder, files)


def ship() -> None:
    """Store the averaged networks of runs/ as float16 in data/ and renew the manifest.

    Raises FileNotFoundError where none has been trained, ValueError where one is not trained to its
    end. The cards that take minutes are measured by `python -m studies results alice understudy`.
    """
    states = {name: train.RUNS / name / train.STATE for name in ("reader", *train.PATIENTS)}
    trained = {n: torch.load(s, weights_only=True) for n, s in states.items() if s.exists()}
    if not trained:
        raise FileNotFoundError("nothing is trained in runs/: `make patient` first")
    for name, state in trained.items():
        if state["step"] < state.get("of", 0):
            raise ValueError(
                f"{name} has trained {state['step']} of {state['of']} steps: `make patient` goes on"
            )
    for name, state in trained.items():
        half = {k: v.half().contiguous() for k, v in state["mean"].items()}
        command = f"python -m studies patient {name} --steps {state['step']}"
        begun = train.RUNS / name / train.BEGUN
        if begun.exists():
            command += f" --from {begun.read_text().strip()}"
        if name == "reader":
            path = train.RUNS / name / "reader.safetensors"
            data.store(path, save(half))
            net = train.make_reader().eval()
            net.load_state_dict({k: v.float() for k, v in half.items()})
            copy_in({path.name: path}, command, 0, train.reader_metrics(net))
        else:
            copy_in({name: _folder(name, half)}, command, 0, {})


def main(words: Sequence[str] = ()) -> None:
    """Command line of `python -m studies ship`."""
    if words:
        raise ValueError(f"takes no arguments, got {' '.join(words)}")
    ship()


def _folder(name: str, half: dict[str, Tensor]) -> Path:
    """runs/NAME/final in diffusers' layout: a DDPM pipeline that predicts v."""
    from diffusers import DDPMPipeline, DDPMScheduler

    net = train.make_unet(name).half()
    net.load_state_dict(half)
    scheduler = DDPMScheduler(
        num_train_timesteps=train.TIMESTEPS, prediction_type="v_prediction", clip_sample=False
    )
    folder = train.RUNS / name / "final"
    pipeline: Any = DDPMPipeline(net, scheduler)
    with tempfile.TemporaryDirectory() as made:
        pipeline.save_pretrained(made)
        for file, source in _files("final", Path(made)):
            data.store(folder.parent / file, source.read_bytes())
    return folder
