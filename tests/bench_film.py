"""Frames of 720p a second, on one core: the tape's look, the film file, and a scene that is drawn.

python tests/bench_film.py
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch

from mathkit import puppets
from mathkit.draw import film, scenes, tape

AIM, FRAMES = 15, 60


def rate(work) -> float:
    began = time.process_time()
    work()
    return FRAMES / (time.process_time() - began)


def main() -> None:
    torch.set_num_threads(1)
    faces = puppets.render(puppets.sample_factors(8, seed=3), size=720)
    pages = [np.pad(film.rgb(face), ((0, 0), (280, 280), (0, 0))) for face in faces]
    look, scene = tape.VHS(seed=0), scenes.rotate_stretch_rotate(n=FRAMES)
    few = list(islice(cycle(pages), FRAMES))
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "x.mp4"
        works = {
            f"tape (the aim is {AIM})": lambda: [look(page, i) for i, page in enumerate(few)],
            "film, plain": lambda: film.clip(few, target),
            "film, on tape": lambda: film.clip(few, target, look=look, quality=31),
            "a scene drawn": lambda: list(scene.frames()),
        }
        print(f"{'720p':<24} frames a second of CPU time")
        for name, work in works.items():
            print(f"{name:<24} {rate(work):7.1f}")


if __name__ == "__main__":
    main()
