"""The picture of the front page and the README: frames of the show, as the renderer draws them."""

import io
from pathlib import Path

import torch
from PIL import Image

import mathkit as mk
from mathkit import data

FRAMES, SIZE, GAP = 7, 224, 8
VISITED = (2, 5)
SEED = 5


def frames() -> torch.Tensor:
    """(FRAMES, 3, SIZE, SIZE) in [-1, 1]; the Stranger stands in the VISITED ones."""
    q = mk.show.puppets.sample_factors(FRAMES, seed=SEED, stranger=0)
    q[list(VISITED), mk.show.puppets.STRANGER] = 1.0
    return mk.show.puppets.render(q, size=SIZE)


def draw(path: Path) -> Path:
    """Write the frames side by side as a PNG."""
    tape = torch.full((3, SIZE + 2 * GAP, FRAMES * (SIZE + GAP) + GAP), -0.85)
    for i, frame in enumerate(frames()):
        left = GAP + i * (SIZE + GAP)
        tape[:, GAP : GAP + SIZE, left : left + SIZE] = frame
    raw = io.BytesIO()
    pixels = ((tape.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(raw, "PNG", optimize=True)
    data.store(path, raw.getvalue())
    return path
