"""The experiments on one model as a page of pictures and numbers.

    python -m mathkit report --out runs/report/NAME --model google/ddpm-celebahq-256 --image me.jpg

leaves index.html there, with every setting, time and peak of memory. Local bases are kept as
atlases and finished parts as files: the same command goes on with a report that was stopped.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from jinja2 import Template
from markupsafe import Markup

from mathkit import data
from mathkit.draw import style
from mathkit.draw.table import Table
from mathkit.tools import atlas, options
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
    flags = [f"--{k} {shlex.quote(options.flag(v))}" for k, v in s.items() if v is not None]
    command = f"python -m mathkit report --out FOLDER {' '.join(flags)}"
    names = ("python", "system", "torch", "mathkit", "diffusers", "device", "threads")
    facts = {"network": repr(study.p)} | {k: v for k, v in data.info().items() if k in names}
    head = Table(["setting", "value"], [*facts.items(), *s.items()])
    page = Template(Path(__file__).with_name("report.html").read_text("utf-8"), autoescape=True)
    title = f"Local directions of {study.p.source}"
    return page.render(title=title, parts=parts, settings=head, command=command, style=style)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of `python -m mathkit report`."""
    parser = options.parser("report", __doc__, "folder of the report")
    options.add_fields(parser, Settings)
    given = options.given(parser, argv)
    out = given.pop("out")
    print(make(Settings(**given), out))
