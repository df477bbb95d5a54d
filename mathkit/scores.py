"""Numbers that judge a result: intervals, distances between distributions, side effect.

Tensors, arrays or lists of numbers in, floats or tensors out; all arithmetic in float64 on the CPU.
"""

from __future__ import annotations

import operator
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

Numbers = Tensor | ArrayLike


class Interval(NamedTuple):
    """A closed interval [low, high]."""

    low: float
    high: float


class Difference(NamedTuple):
    """A mean difference with its bootstrap interval [low, high] and two-sided p-value."""

    estimate: float
    low: float
    high: float
    p: float


def wilson(k: int, n: int, level: float = 0.95) -> Interval:
    """Wilson score interval of a share: all p with |k/n - p| <= z sqrt(p (1 - p) / n).

    In closed form (k + z^2/2 -+ z sqrt(k (n - k) / n + z^2/4)) / (n + z^2), z the normal quantile
    of (1 + level)/2; unlike k/n -+ z * standard error it never leaves [0, 1] and has a width at k =
    0 and k = n.

    Args:
        k: how many of them, 0 ... n.
        n: of how many, >= 1.
        level: in (0, 1).

    Returns: an `Interval`, (low, high).
    Raises ValueError unless k and n are whole numbers, 0 <= k <= n, n >= 1 and 0 < level < 1.
    Source: Wilson 1927.

    >>> low, high = mk.scores.wilson(8, 10)
    >>> print(f"{low:.3f} to {high:.3f}")
    0.490 to 0.943
    """
    try:
        k, n = operator.index(k), operator.index(n)
    except TypeError:
        raise ValueError(
            f"wilson counts: k and n are whole numbers, got k = {k!r}, n = {n!r}; a share p of n "
            "is k = round(p * n)"
        ) from None
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"wilson needs 0 <= k <= n and n >= 1; got k = {k}, n = {n}")
    z = NormalDist().inv_cdf(_upper(level))
    half = z * (k * (n - k) / n + z * z / 4) ** 0.5
    low, high = ((k + z * z / 2 + s * half) / (n + z * z) for s in (-1, 1))
    return Interval(0.0 if k == 0 else low, 1.0 if k == n else high)


def in_words(k: int, n: int, level: float = 0.95) -> str:
    """k of n with its Wilson interval, as a sentence.

    Args:
        k: as in `wilson`.
        n: as in `wilson`.
        level: as in `wilson`.

    Returns: a text.
    Raises as `wilson` does.

    >>> mk.scores.in_words(8, 10)
    '8 of 10, 95 % interval [.490, .943]'
    """
    low, high = (_short(x) for x in wilson(k, n, level))
    return f"{k} of {n}, {100 * level:g} % interval [{low}, {high}]"


def bootstrap(
    a: Numbers,
    b: Numbers | None = None,
    groups: Numbers | None = None,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Paired bootstrap of mean(a - b): pairs are drawn together, with replacement.

    The interval is the expanded percentile interval: percentiles at Phi(-+ sqrt(g / (g - 1))
    t_(g-1)) for g units drawn, which keeps the coverage near `level` for few units; p inverts the
    same interval at 0 and is at least 1/(resamples + 1). The answer depends on (data, seed) alone.

    Args:
        a: (n,); booleans count as shares.
        b: (n,); None tests mean(a) against 0.
        groups: (n,), any labels: whole groups are drawn (samples edited with one source's direction
            stand or fall together).
        level: in (0, 1).
        resamples: >= 1.
        seed: of the draws.

    Returns: a `Difference`: mean, low, high, p.
    Raises ValueError on shapes that differ, NaN, fewer than two units, no resamples or a level
    outside its range.
    Source: Hesterberg 2015.

    >>> d = mk.scores.bootstrap([1.0, 1.2, 0.9, 1.1, 1.3, 0.8], [0.0, 0.1, 0.2, 0.0, 0.1, 0.2])
    >>> d.low < d.estimate < d.high, d.p < 0.05
    (True, True)
    """
    from scipy.stats import t as student

    upper, d = _upper(level), _vector("a", a)
    if b is not None:
        d = d - _paired(d, b)
    total, count = _by_group(d, groups)
    g = len(total)
    if g < 2 or resamples < 1:
        raise ValueError(
            "the bootstrap needs at least 2 samples or groups to draw from, and 1 resample; got "
            f"{g} and {resamples}"
        )
    means = _resampled(total, count, resamples, seed)
    stretch = (g / (g - 1)) ** 0.5
    tail = NormalDist().cdf(-stretch * student.ppf(upper, g - 1))
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=means.dtype)).tolist()
    sides = torch.stack([(means <= 0).sum(), (means >= 0).sum()]).min()
    rarest = min((int(sides) + 1) / (resamples + 1), 0.5)
    p = 2 * student.sf(-NormalDist().inv_cdf(rarest) / stretch, g - 1)
    return Difference(float(d.mean()), low, high, float(max(p, 1 / (resamples + 1))))


def holm(p: Numbers) -> Tensor:
    """Holm's adjusted p-values: the i-th smallest is max over j <= i of (m - j + 1) p_(j).

    Rejecting where the result is <= alpha keeps the chance of any false rejection at most alpha,
    whatever the dependence. Order is kept; values are cut at 1.

    Args:
        p: (m,), each in [0, 1].

    Returns: (m,), float64.
    Raises ValueError outside [0, 1].
    Source: Holm 1979.

    >>> mk.scores.holm([0.01, 0.04, 0.03])
    tensor([0.0300, 0.0600, 0.0600], dtype=torch.float64)
    """
    p = _vector("p", p)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"holm needs p-values in [0, 1]; got {p.tolist()}")
    order = p.argsort()
    steps = torch.arange(len(p), 0, -1, dtype=p.dtype)
    stepped = (steps * p[order]).clamp(max=1)
    return torch.empty_like(p).scatter_(0, order, stepped.cummax(0).values)


def ks(a: Numbers, b: Numbers | None = None) -> Tensor:
    """Kolmogorov-Smirnov distance sup_x |F_a(x) - F_b(x)|; b = None: F_b uniform on [0, 1].

    a is (n,) or (n, c), b is (m,) or (m, c): one distance in [0, 1] a column, shape () or (c,).
    Raises ValueError on NaN, empty samples or columns that do not match.
    """
    a = _tensor("a", a)
    x = _columns("a", a)
    if b is None:
        x, n = x.sort(-1).values, x.shape[-1]
        step = torch.arange(n + 1, dtype=x.dtype) / n
        f = x.clamp(0, 1)
        gap = torch.maximum(step[1:] - f, f - step[:-1]).amax(-1)
    else:
        y = _columns("b", b)
        if len(x) != len(y):
            raise ValueError(f"ks compares column by column; got {len(x)} and {len(y)} columns")
        gap = _two_sample(x, y)
    return gap if a.ndim == 2 else gap[0]


def frechet(a: Numbers, b: Numbers) -> float:
    """Frechet distance of the Gaussians fitted to two feature sets, a (n, d) and b (m, d).

    |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a^(1/2) C_b C_a^(1/2))^(1/2)), in squared units of
    the features; covariances with n - 1. The trace of the last root is the nuclear norm of
    C_a^(1/2) C_b^(1/2), with symmetric roots by eigh, so singular covariances are harmless.
    Finite samples bias it upwards: compare sets of equal size. Cost O((n + m) d^2 + d^3).
    Source: Dowson and Landau 1982; Heusel et al. 2017.
    Raises ValueError on NaN, fewer than two rows, or widths that differ.
    """
    a, b = _features("a", a), _features("b", b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"frechet needs equal widths d; got {a.shape[1]} and {b.shape[1]}")
    shift = (a.mean(0) - b.mean(0)).square().sum()
    root_a, root_b = _root(a), _root(b)
    cross = torch.linalg.svdvals(root_a @ root_b).sum()
    return float((shift + root_a.square().sum() + root_b.square().sum() - 2 * cross).clamp(min=0))


def pixel_distance(a: Numbers, b: Numbers) -> Tensor:
    """Mean |a - b| over every pixel and channel of each image, (B, C, H, W) twice -> (B,).

    Units: the images', so 2 is black against white. Raises ValueError on NaN or unequal shapes.
    """
    a, b = _tensor("the images", a), _tensor("the images", b)
    if a.shape != b.shape or a.ndim != 4:
        raise ValueError(
            f"pixel_distance needs two batches (B, C, H, W) of one shape; got "
            f"{tuple(a.shape)} and {tuple(b.shape)}"
        )
    return _finite("the images", a - b).abs().mean((1, 2, 3))


def side_effect(x_edited: Numbers, x_true: Numbers, unrelated: Numbers) -> Tensor:
    """How far an edit is from the true one: 0 is exact, 1 as far as an unrelated image.

    mean |x' - x_true| over ALL pixels, divided by the same figure between unrelated images. x_true
    is the true counterfactual x_0 + D*, not the untreated x_0.

    Args:
        x_edited: x' (B, C, H, W).
        x_true: (B, C, H, W).
        unrelated: images (N, C, H, W), N >= 2, each compared with the next one in the batch (the
            last with the first); or that figure itself, computed once.

    Returns: (B,).
    Raises ValueError on NaN, unequal shapes, or a figure that is not > 0.

    >>> x = torch.zeros(1, 1, 2, 2)
    >>> float(mk.scores.side_effect(x + 0.1, x, 0.5))
    0.20000000298023224
    """
    other = _tensor("unrelated", unrelated)
    figure = float(pixel_distance(other, other.roll(1, 0)).mean() if other.ndim else other)
    if not figure > 0:
        raise ValueError(
            f"side_effect divides by the distance of unrelated images, which must be positive; got "
            f"{figure}: pass at least two different images, or their distance"
        )
    return pixel_distance(x_edited, x_true) / figure


def _upper(level: float) -> float:
    """(1 + level) / 2, where the upper end of a two-sided interval stands."""
    if not 0 < level < 1:
        raise ValueError(f"level is a probability strictly between 0 and 1, e.g. 0.95; got {level}")
    return 0.5 + level / 2


def _short(x: float) -> str:
    return f"{x:.3f}".removeprefix("0") if 0 < x < 1 else f"{x:g}"


def _tensor(name: str, x: Numbers) -> Tensor:
    """Real numbers of any kind as float64 on the CPU."""
    try:
        tensor = x if isinstance(x, Tensor) else torch.from_numpy(np.array(x))
    except (TypeError, ValueError):
        tensor = None
    if tensor is None or tensor.is_complex():
        raise ValueError(
            f"{name} must be real numbers in a tensor, an array or a list; got {repr(x)[:60]}"
        )
    return tensor.cpu().double()


def _finite(name: str, x: Tensor) -> Tensor:
    if x.numel() == 0 or not x.isfinite().all():
        raise ValueError(
            f"{name} must be non-empty and finite; got shape {tuple(x.shape)}, "
            f"{int((~x.isfinite()).sum())} values NaN or infinite"
        )
    return x


def _vector(name: str, x: Numbers) -> Tensor:
    x = _tensor(name, x)
    if x.ndim != 1:
        raise ValueError(f"{name} must have shape (n,); got {tuple(x.shape)}")
    return _finite(name, x)


def _paired(a: Tensor, b: Numbers) -> Tensor:
    b = _tensor("b", b)
    if a.shape != b.shape:
        raise ValueError(f"pairs need equal shapes; got {tuple(a.shape)} and {tuple(b.shape)}")
    return _vector("b", b)


def _columns(name: str, x: Numbers) -> Tensor:
    x = _tensor(name, x)
    if x.ndim not in (1, 2):
        raise ValueError(f"{name} must have shape (n,) or (n, columns); got {tuple(x.shape)}")
    return _finite(name, x).reshape(len(x), -1).T.contiguous()


def _features(name: str, x: Numbers) -> Tensor:
    x = _tensor(name, x)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"{name} must have shape (n, d) with n >= 2; got {tuple(x.shape)}")
    return _finite(name, x)


def _by_group(d: Tensor, groups: Numbers | None) -> tuple[Tensor, Tensor]:
    """Sum and size of each group, both (g,); without groups each sample is its own."""
    if groups is None:
        return d, torch.ones_like(d)
    labels = groups.cpu().numpy() if isinstance(groups, Tensor) else np.asarray(groups)
    if labels.shape != d.shape:
        raise ValueError(f"groups must label each of {len(d)} samples; got {labels.shape}")
    index = torch.from_numpy(np.unique(labels, return_inverse=True)[1])
    sums = d.new_zeros(2, int(index.max()) + 1)
    total, count = sums.index_add_(1, index, torch.stack([d, torch.ones_like(d)]))
    return total, count


def _resampled(total: Tensor, count: Tensor, resamples: int, seed: int) -> Tensor:
    """Means of `resamples` bootstrap draws, on the CPU; at most about 2 M indices at a time."""
    g = len(total)
    rng = torch.Generator().manual_seed(seed)
    sizes = torch.arange(resamples).split(max(1, 2_000_000 // g))
    draws = (torch.randint(g, (len(s), g), generator=rng) for s in sizes)
    return torch.cat([total[i].sum(1) / count[i].sum(1) for i in draws])


def _two_sample(x: Tensor, y: Tensor) -> Tensor:
    both = torch.cat([x, y], -1)
    below = (torch.searchsorted(z.sort(-1).values, both, right=True) for z in (x, y))
    f, g = (n.double() / z.shape[-1] for n, z in zip(below, (x, y), strict=True))
    return (f - g).abs().amax(-1)


def _root(x: Tensor) -> Tensor:
    """Symmetric square root (d, d) of the covariance of the rows of x (n, d)."""
    centred = x - x.mean(0)
    values, q = torch.linalg.eigh(centred.T @ centred / (len(x) - 1))
    return q * values.clamp(min=0).sqrt() @ q.T


def rounded(x: Any, places: int = 3) -> Any:
    """A tensor, array, number or list of these as plain numbers of that many decimal places."""
    if isinstance(x, Tensor | np.ndarray | np.generic):
        return rounded(x.tolist(), places)
    if isinstance(x, list | tuple):
        return [rounded(v, places) for v in x]
    return round(x, places) if isinstance(x, float) else x
