"""One clip a chapter: an MP4 that any browser plays, a poster and the arrays behind it.

python -m book.build clips 06 13
"""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from book.paths import BOOK, BUILD, chapters
from mathkit import data
from mathkit.draw import film, tape
from mathkit.draw.scenes import BY_CHAPTER, Scene

CLIPS = BUILD / "clips"
KEPT = BOOK / "_static" / "clips"  # of the two that the repository holds
NAMES = {"06": "ellipse", "13": "cure"}
MOST, POSTER = 2_000_000, 60_000  # bytes of a clip, of a poster
FPS, SIZE = 30, (1280, 720)


def clips(names: list[str], keep: bool = False) -> None:
    """Make the clips of some chapters, all by default, and print what each weighs and took."""
    for folder in (CLIPS, *([KEPT] if keep else [])):
        data.claim(folder)
    for path in chapters(names):
        began, scene = time.monotonic(), BY_CHAPTER[path.stem[:2]]()
        made = clip(scene, CLIPS / f"{path.stem}.mp4")
        size = made.stat().st_size
        took = f"{len(scene) / FPS:.0f} s of film made in {time.monotonic() - began:.0f} s"
        print(f"{made}  {size / 1000:.0f} kB, {took}{', over' if size > MOST else ''}")
        if keep and path.stem[:2] in NAMES:
            for end in (".mp4", ".png"):
                name = f"{NAMES[path.stem[:2]]}{end}"
                data.store(KEPT / name, made.with_suffix(end).read_bytes())


def clip(scene: Scene, path: Path, size: tuple[int, int] = SIZE) -> Path:
    """The film of a scene, beside it its poster x.png and its arrays x.npz; the film's path."""
    scene.save(path.with_suffix(".npz"))
    look = tape.VHS(seed=0) if scene.tape else None
    most = int(0.9 * 8 * MOST / (len(scene) / FPS + 1))  # the ceiling's buffer holds a second
    at, shown = round(scene.poster * (len(scene) - 1)), []

    def frames() -> Iterator[np.ndarray]:
        for i, page in enumerate(scene.frames(size)):
            shown.extend([page] if i == at else [])
            yield page

    film.clip(frames(), path, FPS, look=look, quality=31 if scene.tape else 23, most=most)
    quiet = dataclasses.replace(look, noise=0.0, scan=0, dropouts=0, roll=0) if look else None
    data.store(path.with_suffix(".png"), poster(quiet(shown[0], at, FPS) if quiet else shown[0]))
    return path


def poster(page: np.ndarray) -> bytes:
    """A frame as PNG of at most POSTER bytes: fewer pixels, then fewer colours."""
    picture = Image.fromarray(page)
    for share, colours in ((1, 256), (0.75, 256), (0.5, 256), (0.5, 64), (0.375, 64), (0.25, 64)):
        size = (round(share * picture.width), round(share * picture.height))
        raw = io.BytesIO()
        small = picture.resize(size, Image.Resampling.LANCZOS)
        small.quantize(colours, Image.Quantize.MEDIANCUT).save(raw, "PNG", optimize=True)
        if len(raw.getvalue()) <= POSTER:
            break
    return raw.getvalue()
