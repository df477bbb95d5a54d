"""The experiments on one model as a page of pictures and numbers.

    python -m mathkit report --out runs/report/NAME --model google/ddpm-celebahq-256 --image me.jpg

leaves index.html there, with every setting, time and peak of memory. Local bases are kept as
atlases and finished parts as files: the same command goes on with a report that was stopped.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from jinja2 import Template
from markupsafe import Markup

from mathkit import data
from mathkit.draw import style
from mathkit.draw.table import Table
from mathkit.tools import atlas
from mathkit.tools.experiments import PARTS, Piece
from mathkit.tools.subject import Settings, Study

SETTINGS, PAGE, LIMIT = "report.json", "index.html", 1_500_000


def make(settings: Settings, out: str | Path) -> Path:
    """Write the report into the folder `out`, or finish it, and give the page's path.

    Raises ValueError for settings other than those the folder was begun with, and, once all that
    can be made is on the page, for parts that failed (the same command tries them again). Cost: at
    each time about 10 (k + 1) images and, for each map and sample, one `svd`.
    """
    from tqdm.auto import tqdm

    folder = Path(out)
    study = Study(settings, folder)
    image = None if settings.image is None else data.sha256(settings.image)
    noted = {"weights": study.p.revision, "image SHA-256": image}
    noted |= {"ran on": study.p.device.type, "torch": torch.__version__}
    begin(folder / SETTINGS, dataclasses.asdict(settings) | noted)
    bar, parts = tqdm(PARTS.items(), unit="part"), []
    for number, (name, part) in enumerate(bar):
        bar.set_description(name)
        place = folder / f"part{number:02d}.json"
        if not place.exists():
            made = _made(name, part, study)
            if "failed" not in made:
                data.store(place, json.dumps(made).encode())
            parts.append(made)
        else:
            parts.append(json.loads(place.read_text("utf-8")))
    page = folder / PAGE
    data.store(page, _page(study, parts).encode())
    failed = [f"{part['name']}: {part['failed']}" for part in parts if "failed" in part]
    if failed:
        raise ValueError(f"{page} lacks {len(failed)} of {len(parts)} parts. {'; '.join(failed)}")
    return page


def _made(name: str, part: Callable[[Study], Iterator[Piece]], study: Study) -> dict[str, Any]:
    """One part with its pieces as HTML; if it fails, those before, and why."""
    began, pieces, failed = time.perf_counter(), [], {}
    try:
        for piece in part(study):
            pieces.append(_shown(piece))
    except (ValueError, RuntimeError) as error:
        failed["failed"] = data.first_line(error)
        pieces.append(_shown(f"Failed: {failed['failed']}"))
    plt.close("all")
    about = " ".join((part.__doc__ or "").split())
    seconds = round(time.perf_counter() - began, 1)
    return {"name": name, "about": about, "pieces": pieces, "seconds": seconds} | failed


def begin(path: Path, settings: dict[str, Any]) -> None:
    """Note the settings in a file, or compare them with those noted; ValueError if they differ."""
    data.claim(path.parent)
    now = json.loads(json.dumps(settings))
    if not path.exists():
        return data.store(path, (json.dumps(now, indent=1) + "\n").encode())
    old = json.loads(path.read_text("utf-8"))
    atlas.check_same(path.parent, {key: old.get(key) for key in now}, now)


def _shown(piece: Piece) -> str:
    """One piece as HTML."""
    if isinstance(piece, str):
        return Markup("<p>{}</p>").format(piece)
    if isinstance(piece, Table):
        return piece._repr_html_()
    image = base64.b64encode(style.png(piece, LIMIT)).decode()
    alt = piece.get_title(loc="left") or piece.get_title()
    plt.close(piece.figure.figure)
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(alt, image)


def _page(study: Study, parts: Sequence[dict[str, Any]]) -> str:
    s = dataclasses.asdict(study.settings)
    flags = [f"--{k} {shlex.quote(_flag(v))}" for k, v in s.items() if v is not None]
    command = f"python -m mathkit report --out FOLDER {' '.join(flags)}"
    names = ("python", "system", "torch", "mathkit", "diffusers", "device", "threads")
    facts = {"network": repr(study.p)} | {k: v for k, v in data.info().items() if k in names}
    head = Table(["setting", "value"], [*facts.items(), *s.items()])
    page = Template(Path(__file__).with_name("report.html").read_text("utf-8"), autoescape=True)
    title = f"Local directions of {study.p.source}"
    return page.render(title=title, parts=parts, settings=head, command=command, style=style)


def _flag(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of `python -m mathkit report`."""
    parser = argparse.ArgumentParser(
        prog="python -m mathkit report", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", required=True, help="folder of the report")

    add_settings(parser)
    given = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not None}
    print(make(Settings(**{k: v for k, v in given.items() if k != "out"}), given["out"]))


ABOUT = {
    "model": "a built-in name, a diffusers folder or a Hub id",
    "revision": "of a Hub model",
    "image": "a picture file, the subject in place of sample 0",
    "prompt": "of a text model, or a class",
    "other": "a text to compare the prompt with",
    "guidance": "with the prompt",
    "negative": "the text or class that guidance leads away from",
    "region": "of the masked edits: left,top,right,bottom as shares, from 0 to 1, of what the model"
    " sees, which of a photograph is its central square",
    "samples": "how many are compared",
    "times": "from 0 to T - 1, each moved to the nearest of the sampling grid",
    "k": "directions of a basis",
    "strength": "of the largest move, in shares of |x_t|",
    "steps": "network calls of a sample and of an inversion",
    "tol": "of each svd, in shares of s_1",
    "seed": "of the first sample",
    "device": "auto, cpu, cuda or mps",
    "dtype": "float32, float16 or bfloat16",
    "at": "the layer whose output is h, by its name in the network",
}


def add_settings(
    parser: argparse.ArgumentParser,
    leave_out: Sequence[str] = (),
    about: Mapping[str, str] | None = None,
) -> None:
    """An option for each field of `Settings`; what is not given is None. about: other words."""

    def numbers(text: str) -> tuple[float, ...]:
        return tuple(map(float, text.split(",")))

    def integers(text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split(",")))

    kinds: dict[str, Callable[[str], Any]] = {"region": numbers, "times": integers}
    for field in dataclasses.fields(Settings):
        if field.name in leave_out:
            continue
        default: Any = field.default
        kind = kinds.get(field.name, str if default is None else type(default))
        shown = "none" if default is None else _flag(default)
        shown = {"times": "900,700,500 of 1,000", "at": "its bottleneck"}.get(field.name, shown)
        default = "" if shown in ("none", "") else f" (default {shown})"
        words = (about or {}).get(field.name, ABOUT[field.name] + default)
        parser.add_argument(f"--{field.name}", type=kind, help=words)
