"""One frame of the lost show for each chapter, as the worn tape gives it back.

from mathkit import draw
draw.still(6, "20:01")
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from mathkit.arguments import integer
from mathkit.draw import style, tape
from mathkit.show import puppets

PUPPET = {"curtain_hue": 0.42, "felt_hue": 0.78, "smile": 0.66, "mouth_open": 0.1,
          "hat_height": 0.2, "stranger_height": 0.82, "head_tilt": 0.56}  # fmt: skip
SIZE, ROWS = 180, slice(8, 143)  # of the square frame what a screen of 4 : 3 shows
CHAIR, EMPTY = 13, 14  # chapters without him


@dataclass(frozen=True, repr=False)
class Still:
    """A picture of the tape, shown as PNG."""

    chapter: int
    png: bytes

    def __repr__(self) -> str:
        return f"[a frame of the tape, chapter {self.chapter}]"

    def _repr_png_(self) -> bytes:
        return self.png


def still(chapter: int, code: str) -> Still:
    """The frame of the show that belongs to a chapter: one puppet, and who stands behind it.

    He comes in at the right edge in chapter 1 and is one pixel of the show, 1/64 of the frame,
    nearer in each until 12; in 13 there is a lit chair in his place, in 14 the stage is empty.

    Args:
        chapter: its number, 1 to 14.
        code: where the tape stands, as "54:30" in minutes and seconds.

    Returns: what a notebook shows as a picture of 360 x 270.
    Raises ValueError for another chapter and a code that is none.
    Cost: one render.

    >>> from mathkit import draw
    >>> draw.still(6, "20:01")
    [a frame of the tape, chapter 6]
    """
    if integer(chapter, "chapter", 1) > EMPTY:
        raise ValueError(f"expected a chapter from 1 to {EMPTY}, got {chapter}")
    if not (isinstance(code, str) and re.fullmatch(r"\d{1,3}:[0-5]\d", code)):
        raise ValueError(f'expected code as "54:30", minutes and seconds, got {code!r}')
    minutes, seconds = map(int, code.split(":"))
    worn = tape.VHS(seed=chapter, luma=140, chroma=26, noise=0.022, dropouts=0.7)
    played = worn(scene(chapter), 30 * (60 * minutes + seconds)).repeat(2, 0).repeat(2, 1)
    return Still(chapter, style.palette(Image.fromarray(played), 64))


def scene(chapter: int) -> np.ndarray:
    """The frame before the tape wore it, (135, 180, 3) of uint8."""
    q = torch.full((1, len(puppets.FACTORS)), 0.5)
    for name, value in PUPPET.items():
        q[:, puppets.FACTORS.index(name)] = value
    q[:, puppets.STRANGER] = float(chapter < CHAIR)
    q[:, puppets.FACTORS.index("stranger_side")] = 0.5 + (0.05 + (12 - chapter) / 32) / 0.22
    frame = Image.fromarray(style.pixels(puppets.render(q, SIZE, puppet=chapter < EMPTY)[0]))
    if chapter == CHAIR:
        _chair(frame)
    return np.rint(np.asarray(frame) * lit(chapter)).clip(0, 255).astype(np.uint8)[ROWS]


def lit(chapter: int) -> np.ndarray:
    """Share of the light at each place: on the puppet; then on the chair; then on nobody."""
    x, y = np.meshgrid(np.linspace(-1, 1, SIZE), np.linspace(1, -1, SIZE))
    puppet = 0.84 * np.exp(-1.9 * x**2 - 1.1 * (y + 0.05) ** 2)
    if chapter < CHAIR:
        return (0.16 + puppet)[..., None]
    at = 0.64 if chapter == CHAIR else 0.0
    spot = 0.72 * np.exp(-9 * (x - at) ** 2 - 2.5 * (y + 0.3) ** 2)
    return (0.14 + 0.5 * puppet * (chapter == CHAIR) + spot)[..., None]


def _chair(frame: Image.Image) -> None:
    """A wooden chair where he stood, its back to the curtain."""
    pen, dark, wood = ImageDraw.Draw(frame), (58, 36, 20), (150, 104, 62)
    for left in (136, 157):
        pen.rectangle((left, 84, left + 2, 142), wood)
    for top in (84, 93, 102):
        pen.rectangle((136, top, 159, top + 4), wood)
    pen.polygon([(136, 116), (159, 116), (163, 124), (132, 124)], wood)
    pen.rectangle((132, 124, 163, 126), dark)
    for left in (132, 161):
        pen.rectangle((left, 126, left + 2, 150), dark)
