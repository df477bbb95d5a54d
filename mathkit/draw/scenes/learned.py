"""Scenes of what is learnt: eigenfaces that add up to a face, five features on two neurons."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from mathkit.arguments import integer
from mathkit.chapters import eigenfaces as faces
from mathkit.chapters import superposition as sp
from mathkit.draw.scenes.scene import Scene, Stage, colours, eased, split


def eigenfaces(person: int = 2, k: int = 60, n: int = 240) -> Scene:
    """A face comes back as the mean face and more and more eigenfaces.

    Args:
        person: which of the hundred photographs, from 0.
        k: eigenfaces, 1 ... 99.
        n: frames, >= 3.

    Returns: a scene with sums (k + 1, 25, 25, 3), axes (k, 25, 25, 3), face, left (k + 1,), the
    share of the squared distance to the mean that is still missing, and used (n,).
    Raises ValueError for a person or k outside its range.
    Cost: one SVD of 100 by 625 numbers.

    >>> from mathkit.draw import scenes
    >>> scene = scenes.eigenfaces(k=5, n=7)
    >>> bool((np.diff(scene["left"]) <= 1e-6).all())
    True
    """
    people = faces.load_faces("lfw", 100, size=25)
    person = integer(person, "person", 0, len(people) - 1)
    found = faces.eigenfaces(people, k)
    c = found.coordinates(people[[person]])
    sums = torch.cat([found.rebuild(c * (torch.arange(k) < j)) for j in range(k + 1)])
    apart = (sums - people[person]).flatten(1).square().sum(1)
    wait, go, end = split(n, 1, 8, 2)
    used = np.rint(np.concatenate([np.zeros(wait), eased(go) * k, np.full(end, k)])).astype(int)
    arrays = {
        "sums": colours(sums.clamp(-1, 1)), "axes": colours(found.axes, signed=True),
        "face": colours(people[[person]])[0], "left": (apart / apart[0]).numpy(), "used": used,
    }  # fmt: skip
    captions = tuple(f"the mean face and {j} eigenfaces" if j else "the mean face" for j in used)
    return Scene("eigenfaces", "Nobody, and nobody, and somebody", arrays, captions, _draw_faces)


def _draw_faces(scene: Scene, stage: Stage) -> Callable[[int], None]:
    side = (stage.width - 1.1 - 0.8) / 3
    names = ("the next eigenface", "their sum so far", "the photograph")
    pictures = [stage.picture(0.55 + j * (side + 0.4), 1.85, side, name)
                for j, name in enumerate(names)]  # fmt: skip
    left = stage.words(stage.width - 0.55, 0.95, "", ha="right", color=stage.accent)

    def show(i: int) -> None:
        j = int(scene["used"][i])
        pictures[0].set_data(scene["axes"][min(j, len(scene["axes"]) - 1)])
        pictures[1].set_data(scene["sums"][j])
        pictures[2].set_data(scene["face"])
        left.set_text(f"missing: {100 * scene['left'][j]:.0f} %")

    return show


def pentagon(n: int = 240, steps: int = 1500) -> Scene:
    """Five rare features on two neurons, while they learn: a pentagon forms.

    Args:
        n: frames, >= 3.
        steps: of the training, >= 200.

    Returns: a scene with step (n,), W (n, 2, 5), one column a feature, and loss (n,), by some
    20,000 fresh draws each; between two steps of the training, what lies between them.
    Cost: a few seconds of training.
    """
    wait, go, end = split(n, 1, 6, 2)
    at = (1 + steps) ** np.linspace(0, 1, go) - 1
    at = np.concatenate([np.zeros(wait), at, np.full(end, steps)]).round(6)
    low, high = np.floor(at).astype(int), np.ceil(at).astype(int)
    seen = sorted({*low.tolist(), *high.tolist()})
    law = sp.Features(torch.full((1, 5), 0.05))
    toys = sp.train(law, 2, steps=steps, batch=512, lr=3e-3, anneal=True, seed=1,
                    record=seen)  # fmt: skip
    W = {s: toy.W[0].numpy() for s, toy in zip(seen, toys.path, strict=True)}
    loss = {s: float(t.loss(law, count=20_000)[0]) for s, t in zip(seen, toys.path, strict=True)}
    share = at - low
    arrays = {
        "step": at, "loss": np.interp(at, seen, [loss[s] for s in seen]),
        "W": np.stack([(1 - f) * W[a] + f * W[b]
                       for f, a, b in zip(share, low, high, strict=True)]),
    }  # fmt: skip
    captions = tuple(f"step {round(s):,}" for s in at)
    return Scene(
        "pentagon", "Five features move into two neurons", arrays, captions, _draw_pentagon
    )


def _draw_pentagon(scene: Scene, stage: Stage) -> Callable[[int], None]:
    reach = 1.2 * float(np.hypot(*scene["W"].transpose(1, 0, 2)).max())
    ax = stage.plane(0.55, 0.85, 5.6, reach)
    inks = (stage.accent, stage.blue, stage.green, stage.purple, stage.ink)
    arrows = [stage.arrow(ax, ink) for ink in inks]
    tails = [ax.plot([], [], color=ink, lw=2, alpha=0.4)[0] for ink in inks]
    ax.text(reach, 0.03 * reach, "neuron 1", fontsize=18, ha="right")
    ax.text(0.03 * reach, 0.94 * reach, "neuron 2", fontsize=18, va="top")
    chart = stage.chart(7.6, 1.5, stage.width - 8.3, 4.3, xlim=(1, scene["step"].max()))
    chart.set(ylim=(0, 1.1 * float(scene["loss"].max())), xscale="log", yticks=[])
    chart.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
    chart.set_xticks([], minor=True)
    chart.set_title("what is lost on the way", fontsize=18, loc="left")
    chart.set_xlabel("step", fontsize=18)
    (line,) = chart.plot([], [], color=stage.accent, lw=4)

    def show(i: int) -> None:
        for k, (put, tail) in enumerate(zip(arrows, tails, strict=True)):
            put((0, 0), scene["W"][i, :, k])
            tail.set_data(*scene["W"][: i + 1, :, k].T)
        line.set_data(scene["step"][: i + 1], scene["loss"][: i + 1])

    return show
