"""The experiments of "Toy Models of Superposition" (Elhage et al. 2022) as settings to run.

A sweep is a grid of instances trained at once by `superposition.train`, for each of five seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mathkit.chapters.superposition import (
    Features,
    Toys,
    attack,
    dimensionality,
    dimensions_per_feature,
    dropped,
    lines,
    train,
)
from mathkit.scores import rounded

SEEDS = range(5)


@dataclass(frozen=True)
class Recipe:
    """One figure's settings: the grid densities x importances x rarities, `tries` at each point.

    Feature i has importance fade^i, the last one times each of `importances`; density p, the last
    one times each of `rarities`. The best of `tries` starts by loss is kept. Recorded steps give
    the path. keep: what a row stores of the weights. differs: from the paper's settings.
    """

    n: int
    m: int
    densities: Sequence[float]
    importances: Sequence[float] = (1.0,)
    rarities: Sequence[float] = (1.0,)
    fade: float = 1.0
    kinds: Sequence[str] = ("relu", "linear")
    sets: str | None = None
    size: int = 1
    tries: int = 1
    steps: int = 10_000
    batch: int = 1024
    lr: float = 1e-3
    anneal: bool = False
    record: Sequence[int] = ()
    keep: str = "weights"
    differs: str = ""

    def points(self) -> tuple[Tensor, Tensor]:
        """(density, importance) of each grid point, (N, n) each; densities change slowest."""
        grid = torch.cartesian_prod(
            *(torch.tensor(list(a)) for a in (self.densities, self.importances, self.rarities))
        ).view(-1, 3)
        density = grid[:, :1].repeat(1, self.n)
        importance = (self.fade ** torch.arange(float(self.n))).repeat(len(grid), 1)
        density[:, -1] *= grid[:, 2]
        importance[:, -1] *= grid[:, 1]
        return density, importance

    def law(self, at: Tensor | slice = slice(None)) -> tuple[Features, Tensor]:
        """The features and importances of the grid points `at`."""
        density, importance = self.points()
        signed = self.kinds[0] == "abs"
        return Features(density[at], self.sets, self.size, signed), importance[at]


@dataclass(frozen=True, eq=False)
class Fit:
    """The best of the tries at each grid point, and the loss of every try (N, tries)."""

    toys: Toys
    losses: Tensor


def fit_toys(sweep: Recipe, kind: str, seed: int, at: Sequence[int] | None = None) -> Fit:
    """Train the grid points `at` (default all) of a sweep; a point alone goes as in the grid."""
    which = torch.arange(len(sweep.points()[0])) if at is None else torch.tensor(list(at))
    law, importance = sweep.law(which.repeat_interleave(sweep.tries))
    toys = train(
        law,
        sweep.m,
        importance,
        kind,
        steps=sweep.steps,
        batch=sweep.batch,
        lr=sweep.lr,
        anneal=sweep.anneal,
        seed=seed,
        starts=list(range(sweep.tries)) * len(which),
        record=set(sweep.record),
    )
    losses = toys.loss(law, importance, count=16_384)
    return Fit(toys.best(losses, len(which)), losses.view(len(which), -1))


def recipe_row(sweep: Recipe, kind: str, seed: int) -> dict[str, Any]:
    """What is stored of one seed: the best and every try's loss, and `keep` of the weights."""
    found = fit_toys(sweep, kind, seed)
    law, importance = sweep.law()
    toys = found.toys
    out: dict[str, Any] = {
        "kind": kind,
        "seed": seed,
        "loss": rounded(toys.loss(law, importance), 5),
    }
    if kind == "linear":
        return out | {"norm": rounded(torch.linalg.vector_norm(toys.W, dim=1), 2)}
    if 1 < sweep.tries <= 10 and sweep.keep != "regions":
        out["tries"] = rounded(found.losses, 5)
    if toys.path:
        out["path"] = [rounded(p.loss(law, importance), 5) for p in toys.path]
        out["path D"] = [rounded(dimensionality(p.W), 2) for p in toys.path]
    return out | _kept(sweep.keep, toys, law, seed)


def _kept(keep: str, toys: Toys, law: Features, seed: int) -> dict[str, Any]:
    match keep:
        case "weights":
            return _weights(toys)
        case "shape":
            return _shape(toys)
        case "regions":
            return _regions(toys)
        case "plateau":
            return _plateau(toys, law) | (_levels(toys) if seed == 0 else {})
        case "between":
            return _between(toys, law.size)
        case "neurons":
            return _poly(toys)
    raise ValueError(
        f"a recipe keeps weights, shape, regions, plateau, between or neurons; got {keep!r}"
    )


def _weights(toys: Toys) -> dict[str, Any]:
    back = {} if toys.back is None else {"back": rounded(toys.back)}
    return {"W": rounded(toys.W), "b": rounded(toys.b)} | back


def _shape(toys: Toys) -> dict[str, Any]:
    """|w_i|, and how crowded feature i is: sum over j != i of (w_i/|w_i| . w_j)^2."""
    norm = torch.linalg.vector_norm(toys.W, dim=1)
    crowd = norm.square() * (1 / dimensionality(toys.W).clamp_min(1e-6) - 1)
    return {"norm": rounded(norm, 2), "crowd": rounded(crowd, 2)}


def _regions(toys: Toys) -> dict[str, Any]:
    """Two digits a point in one string: which are antipodal, or the dropped feature twice."""
    pairs = torch.stack(dropped(toys.W), 1).flatten()
    return {"regions": "".join(str(i) for i in pairs.tolist())}


def _plateau(toys: Toys, law: Features) -> dict[str, Any]:
    return {
        "D*": rounded(dimensions_per_feature(toys.W), 4),
        "lines": [lines(d) for d in dimensionality(toys.W)],
        "attack": rounded(attack(toys, law, count=64), 4),
    }


def _levels(toys: Toys) -> dict[str, Any]:
    """D of every other density: of one seed alone, for it is large."""
    return {"D": rounded(dimensionality(toys.W)[::2])}


def _between(toys: Toys, size: int) -> dict[str, Any]:
    """Mean squared cosine of two features' directions, within a set and across sets."""
    unit = torch.nn.functional.normalize(toys.W, dim=1)
    squared = (unit.mT @ unit).square()
    group = torch.arange(toys.W.shape[2]) // size
    same = (group[:, None] == group) & ~torch.eye(len(group), dtype=torch.bool)
    apart = group[:, None] != group
    return {
        "within": rounded(squared[:, same].mean(1)),
        "across": rounded(squared[:, apart].mean(1)),
    }


def _poly(toys: Toys) -> dict[str, Any]:
    """Of each neuron, |row of W| and the largest weight's share of its square (1: one feature)."""
    squared = toys.W.square()
    total = squared.sum(2)
    share = squared.amax(2) / total.clamp_min(1e-12)
    return {"share": rounded(share, 2), "size": rounded(total.sqrt(), 2)}


def fall(base: float, count: int, first: float = 0.0) -> tuple[float, ...]:
    """base^-x for x from first to 1, rounded to five digits."""
    x = torch.linspace(first, 1, count, dtype=torch.float64)
    return tuple(round(float(v), 5) for v in base**-x)


SPARSE = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
LEVELS = tuple(range(0, 4001, 100))
TOGETHER = Recipe(4, 2, fall(400, 6, 0.25), sets="correlated", size=2)
RECIPES = {
    "intro": Recipe(5, 2, fall(50, 8), fade=0.9, tries=4, differs="best of 4"),
    "twenty": Recipe(20, 5, SPARSE, fade=0.7),
    "eighty": Recipe(80, 20, SPARSE, fade=0.9, keep="shape"),
    "phases of two": Recipe(
        2, 1, fall(100, 21), fall(10, 21, -1.0), tries=4, batch=512, keep="regions",
        kinds=("relu",), differs="best of 4 a seed, batch 512",
    ),
    "phases of three": Recipe(
        3, 2, fall(100, 17), fall(10, 17, -1.0), tries=4, batch=512, keep="regions",
        kinds=("relu",), differs="best of 4 a seed, batch 512",
    ),
    "plateau": Recipe(
        400, 30, fall(100, 20), steps=8000, batch=256, lr=3e-3, anneal=True, keep="plateau",
        kinds=("relu",), differs="8,000 steps, batch 256, lr .003 to 0 by a cosine",
    ),
    "one rarer": Recipe(5, 2, (0.05,), rarities=fall(10, 13), tries=10, differs="best of 10"),
    "pairs together": TOGETHER,
    "pairs apart": replace(TOGETHER, sets="anticorrelated", densities=fall(10, 6, 0.5)),
    "three pairs": replace(TOGETHER, n=6, tries=4, differs="best of 4"),
    "two sets of ten": Recipe(
        20, 10, fall(100, 6, 0.3), sets="correlated", size=10, keep="between",
    ),
    "collapse": Recipe(6, 2, fall(50, 16), sets="correlated", size=2, tries=4, differs="best of 4"),
    "levels": Recipe(12, 6, (0.1,), steps=4000, record=LEVELS, differs="n and m"),
    "octahedron": Recipe(6, 3, (0.1,), sets="correlated", size=3, steps=4000, record=LEVELS),
    "privileged": Recipe(
        10, 5, (0.75, 0.35, 0.15, 0.1, 0.06, 0.02, 0.01), fade=0.75, tries=60, batch=512,
        kinds=("hidden", "relu", "linear"), differs="best of 60 a seed, batch 512",
    ),
    "absolute": Recipe(3, 6, SPARSE, kinds=("abs",), tries=4, differs="best of 4"),
    "absolute, hundred": Recipe(
        100, 40, SPARSE, fade=0.8, kinds=("abs",), batch=512, keep="neurons", differs="batch 512",
    ),
}  # fmt: skip
