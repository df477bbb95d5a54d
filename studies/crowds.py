"""How many sparse features two dictionaries agree on: in planted crowds, and in ALICE's h."""

from __future__ import annotations

import torch
from torch import Tensor

from mathkit.chapters import dictionaries
from mathkit.chapters.superposition import Features
from mathkit.diffusion.encoder import encoder
from mathkit.diffusion.model import Model
from mathkit.diffusion.sampling import noised
from mathkit.show.puppets import render, sample_factors

FRAMES, TIME, SEED = 200, 500, 30  # fresh frames of the show under noise, and their seed
SHARE, MANY = 0.8, 192  # what the features have of the mean square; how many, while that varies
# Each: features, share. 0 features: Gaussian vectors.
WORLDS = [(n, SHARE) for n in (32, 64, 128, MANY, 256)]
WORLDS += [(MANY, share) for share in (0.2, 0.4, 0.6)] + [(0, 0.0)]


def places(p: Model) -> tuple[Tensor, Tensor]:
    """Factors (FRAMES, 13), and h at every place of every frame, (64 FRAMES, channels), less the
    mean of the place. Cost: FRAMES renders and encoder calls."""
    q = sample_factors(FRAMES, SEED)
    with torch.no_grad():
        h = p.chunked(noised(p, render(q), TIME, seed=0), lambda part, _: encoder(p, TIME)(part))
    return q, (h - h.mean(0)).permute(0, 2, 3, 1).flatten(0, 2)


def count(X: Tensor, steps: int = 600) -> tuple[int, Tensor, Tensor]:
    """The entries that two dictionaries of whitened X agree on, the first of them, its codes."""
    white = dictionaries.whitened(X)
    D, codes = dictionaries.dictionary(white, steps=steps, seed=1)
    other = dictionaries.dictionary(white, steps=steps, seed=2)[0]
    return dictionaries.agreed(D, codes, other), D, codes


def crowd_row(n: int, share: float, seed: int) -> dict[str, float]:
    """One planted world, as many vectors as ALICE gives; found: planted directions in the
    dictionary."""
    X, f = dictionaries.crowd(n, share, 64 * FRAMES, 128, seed=seed)
    agreed, D, _ = count(X)
    return {"n": n, "share": share, "seed": seed, "agreed": agreed, "found": held(D, f)}


def found(n: int, share: float, seed: int) -> int:
    """`found` of the row above, at half its cost: by one dictionary alone."""
    X, f = dictionaries.crowd(n, share, 64 * FRAMES, 128, seed=seed)
    return held(dictionaries.dictionary(dictionaries.whitened(X), seed=1)[0], f)


def held(D: Tensor, f: Tensor) -> int:
    """How many of the directions f a dictionary holds, with a cosine > .9."""
    return int(((D @ f.T).amax(0) > 0.9).sum()) if len(f) else 0


def named(n: int, Y: Tensor, random: torch.Generator) -> Tensor:
    """A pooled h in which n features are planted at random directions: the first have the values Y
    (B, j), the others are rare; each of variance 1. (B, 128)."""
    x = Features(torch.full((1, n), 0.1)).draw(len(Y), random)[0].T
    x[:, : Y.shape[1]] = Y
    f = torch.nn.functional.normalize(torch.randn(n, 128, generator=random), dim=1)
    return (x - x.mean(0)) / x.std(0) @ f
