"""Sampling, inversion and the posterior mean, for any model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from mathkit.arguments import integer, number, told
from mathkit.diffusion.levels import CLEAN, Time, ratio
from mathkit.diffusion.model import SPACINGS, Model, check_model
from mathkit.diffusion.predicted import FAINT

Callback = Callable[[int, Time, Tensor], object]
Level = float | tuple[float, float]
DIM = 0.1  # signal / noise below which an x_0 is kept within `p.bound`, where there is one
Step = TypeVar("Step")


@runtime_checkable
class Edit(Protocol):
    """An edit made while denoising (`mk.inject` gives one): where it acts, and the edited eps."""

    def active(self, t: Time) -> bool: ...

    def __call__(self, p: Model, x: Tensor, t: Time) -> Tensor: ...


def timesteps(p: Model, t: Time, steps: int) -> list[Any]:
    """The times at which the network is called from t down: round(linspace(t, 0, steps)).

    From the last, 0, one step leads to the clean image, so `steps` = network calls. Where steps
    exceeds t + 1 the grid holds every time once. A model whose times are real has them unrounded,
    down to its own last; one of spacing "log-snr" has them even in log(signal / noise).

    Args:
        p: the model.
        t: the first time, 0 ... T - 1.
        steps: how many, >= 1.

    Returns: integers, falling; numbers where the model's times are.
    Raises ValueError for t or steps outside their ranges.
    Cost: no pass.

    >>> mk.timesteps(mk.load_model("alice"), 999, 5)
    [999, 749, 500, 250, 0]
    """
    check_model(p)
    t, steps = p.time(t), integer(steps, "steps", 1)
    if p.spacing not in SPACINGS:
        raise ValueError(f"spacing is one of {', '.join(SPACINGS)}, got {p.spacing!r}")
    if p.spacing == "t":
        grid = torch.linspace(t, p.levels.bottom, steps, dtype=torch.float64)
    else:
        grid = p.levels.even(t, steps)
    return (grid.round().long() if p.levels.whole else grid).unique_consecutive().tolist()


def ddim_step(
    x: Tensor,
    eps: Tensor,
    now: Level,
    then: Level,
    eta: float = 0.0,
    z: Tensor | None = None,
    edited: Tensor | None = None,
    clean: Tensor | None = None,
    bound: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """One step from level `now` to level `then`, up or down.

    With the signals and noises (s, n) now and (s', n') then: x' = s' x_0 + sqrt(n'^2 - w^2) eps +
    w z, with x_0 = (x - n eps) / s and w = eta n' sqrt(1 - (s n' / (s' n))^2). No clipping unless
    asked: it makes the step impossible to invert.

    Args:
        x: (B, *shape), at level now.
        eps: the noise in it, as the model sees it.
        now: abar, in (0, 1], which is the signal sqrt(abar) and the noise sqrt(1 - abar); or both.
        then: the same.
        eta: in [0, 1]: 0 deterministic, 1 as DDPM.
        z: standard normal numbers, where eta > 0.
        edited: replaces eps in x_0 alone (the asymmetric reverse process of Asyrp, 2210.10960).
        clean: x_0 itself, where the signal is too small to divide by.
        bound: applied to x_0.

    Returns: (B, *shape), at level then.
    Cost: no pass.
    Source: eq. 12 and 16 of DDIM, 2010.02502.

    >>> x, eps = torch.tensor([[1.0]]), torch.tensor([[1.0]])
    >>> mk.diffusion.sampling.ddim_step(x, eps, 0.64, 1.0)  # (1 - .6) / .8
    tensor([[0.5000]])
    """
    (s, n), (s_then, n_then) = _level(now), _level(then)
    if clean is None:
        clean = (x - n * (eps if edited is None else edited)) / s
    clean = clean if bound is None else bound(clean)
    variance = eta**2 * n_then**2 * (1 - (s * n_then / (s_then * n)) ** 2) if eta else 0.0
    y = s_then * clean + max(n_then**2 - variance, 0.0) ** 0.5 * eps
    return y if z is None else y + variance**0.5 * z


def _level(level: Level) -> tuple[float, float]:
    return level if isinstance(level, tuple) else (level**0.5, (1 - level) ** 0.5)


def sample(
    p: Model,
    n: int | None = None,
    seed: int | Sequence[int] = 0,
    steps: int = 25,
    callback: Callback | None = None,
    *,
    index: Iterable[int] | None = None,
    progress: bool = False,
) -> Tensor:
    """Draw pictures x_0: DDIM from x_T ~ N(0, I) at t = T - 1.

    It begins at `p.top`, which is later where a network that predicts eps is to divide by next to
    no signal, as with the cosine betas; there an x_0 is kept within the range that the saved
    scheduler clips or thresholds to. Warns where what is made is no picture.

    Sample i depends on (seed, i) alone, whatever n, batch or device (up to rounding).

    Args:
        p: the model.
        n: how many; may be left out where `index` is given.
        seed: an integer >= 0, or one for each of the index.
        steps: network calls of each.
        callback: called as callback(step, t, x) after each step; t is the time reached, -1 the
            clean image.
        index: which samples, default 0 ... n - 1, so that any list of (seed, index) pairs is drawn
            again.
        progress: show a bar.

    Returns: x_0 (n, *shape) on p.device, at least float32; `p.decode` makes images of it.
    Raises ValueError for what is no model, n, seed, steps or index.
    Cost: n * steps network calls.
    Source: DDIM, 2010.02502.

    >>> mk.sample(mk.load_model("alice"), 2, steps=2).shape
    torch.Size([2, 3, 64, 64])
    """
    check_model(p)
    which = list(range(integer(n, "n", 1))) if index is None else _indices(index)
    if n is not None and n != len(which):
        raise ValueError(f"n = {n}, but index names {len(which)} samples: leave n out")
    return denoise(p, start(p, seed, which), p.top, steps, callback=callback, progress=progress)


def start(p: Model, seed: int | Sequence[int], index: Sequence[int]) -> Tensor:
    """The x_T ~ N(0, I) that `sample` denoises, (len(index), *shape) on p.device; where the levels
    explode, as large as x_T is.

    Item i depends on (seed, index[i]) alone, whatever the others and the device. Raises ValueError
    unless seed is one integer >= 0, or one for each of the index, integers >= 0.
    """
    size = float(np.float32(math.hypot(*p.levels.pair(p.top))))
    return size * _Noise(p, seed, index, stream=0)()


def denoise(
    p: Model,
    xt: Tensor,
    t: Time,
    steps: int | None = None,
    eta: float = 0.0,
    boost_below: Time | None = None,
    h_edit: Edit | None = None,
    callback: Callback | None = None,
    *,
    seed: int | Sequence[int] = 0,
    index: Iterable[int] | None = None,
    times: Sequence[Time] | None = None,
    progress: bool = False,
) -> Tensor:
    """DDIM from x_t down to x_0, on the grid `timesteps(p, t, steps)`.

    Args:
        p: the model.
        xt: (B, *shape), at time t.
        t: 0 ... T - 1.
        steps: network calls of each, default 25.
        eta: in [0, 1], the noise added at each step: 0 deterministic, 1 as DDPM.
        boost_below: steps that start below this time take eta = 1 (quality boosting of 2210.10960,
            2307.12868).
        h_edit: an edit of h, see `mk.inject`.
        callback: as in `mk.sample`.
        seed: of the noise, as in `mk.sample`; the noise of item i depends on (seed, index[i])
            alone.
        index: default 0 ... B - 1.
        times: another grid, from t down, in the place of `steps`.
        progress: show a bar.

    Returns: x_0 (B, *shape); differentiable in xt.
    Raises ValueError for a bad x_t, t, steps, times or eta, and where no step meets h_edit.
    Cost: B * steps network calls, twice that where h_edit acts.
    Source: DDIM, 2010.02502.

    >>> p = mk.load_model("alice")
    >>> mk.denoise(p, torch.zeros(1, *p.shape), 999, steps=2).shape
    torch.Size([1, 3, 64, 64])
    """
    check_model(p)
    if times is not None and steps is not None:
        raise ValueError(f"give steps or times, got steps = {steps} and times = {list(times)}")
    steps = 25 if steps is None else steps
    grid = timesteps(p, t, steps) if times is None else _falling(p, t, times)
    way = walk(p, xt, grid, eta, boost_below, h_edit, seed=seed, index=index)
    for i, (then, x) in enumerate(_bar(way, len(grid) + 1, progress)):
        if i and callback:
            callback(i - 1, then, x)
    return p.check(x, "the denoised x_0")


def walk(
    p: Model,
    xt: Tensor,
    times: Sequence[Time],
    eta: float = 0.0,
    boost_below: Time | None = None,
    h_edit: Edit | None = None,
    *,
    seed: int | Sequence[int] = 0,
    index: Iterable[int] | None = None,
) -> Iterator[tuple[Time, Tensor]]:
    """(t, x_t) on the way down from x_t at times[0]: at each of the times, and (-1, x_0).

    One network call an item takes it from one pair to the next; what is not asked for is not
    computed. `denoise` says what the other arguments are.
    """
    x, etas = p.check(xt), [_eta(eta, t, boost_below) for t in times]
    if h_edit is not None:
        _check_edit(p, h_edit, times)
    noise = _Noise(p, seed, range(len(x)) if index is None else _indices(index), stream=1)
    if len(noise.index) != len(x):
        raise ValueError(f"index names {len(noise.index)} items, x_t has {len(x)}")
    yield times[0], x
    plausible = True
    for (now, then), e in zip(pairwise([*times, CLEAN]), etas, strict=True):
        level = p.levels.pair(now)
        eps, clean = _read(p, x, now, level)
        edited = h_edit(p, x, now) if h_edit is not None and h_edit.active(now) else None
        z, bound = noise() if e else None, p.bound if ratio(level) < DIM else None
        x = ddim_step(x, eps, level, p.levels.pair(then), e, z, edited, clean, bound)
        plausible = plausible and p.made(x, then)
        yield then, x


def _read(p: Model, x: Tensor, t: Time, level: tuple[float, float]) -> tuple[Tensor, Tensor | None]:
    """eps(x_t, t), and x_0 where the signal is too little to tell it from eps."""
    if ratio(level) >= FAINT:
        return p.chunked(x, lambda part, _: p.noise(part, t)), None
    eps, clean = p.chunked(x, lambda part, _: torch.stack(p.both(part, t), 1)).unbind(1)
    return eps, clean


def _check_edit(p: Model, h_edit: Any, times: Sequence[Time]) -> None:
    if not isinstance(h_edit, Edit):
        raise ValueError(
            f"h_edit is an edit of h, got {told(h_edit)}: mk.inject(dh, t_from, t_to, strength) "
            "makes one"
        )
    acts = [t for t in times if h_edit.active(t)]
    if not acts:
        raise ValueError(f"no step lies where h_edit acts: the grid is {times}; take more steps")
    if (share := ratio(p.levels.pair(acts[0]))) < FAINT:
        raise ValueError(
            f"at t = {acts[0]} signal / noise is {share:.1e}, and an edited eps says nothing of "
            f"x_0: let h_edit begin at t = {p.levels.highest(FAINT)}"
        )


def invert(
    p: Model,
    x0: Tensor,
    t: Time,
    steps: int = 25,
    callback: Callback | None = None,
    *,
    refine: int = 0,
    progress: bool = False,
) -> Tensor:
    """The x_t that `denoise` takes back to x_0, nearly: its grid walked backwards.

    Each step uses eps(x, t_next), the noise at the time it leads to, so the error of
    denoise(invert(x_0)) falls as 1 / steps.

    Args:
        p: the model.
        x0: images (B, *p.image_shape) in [-1, 1].
        t: how far up, 0 ... T - 1.
        steps: of the way.
        callback: as in `mk.sample`.
        refine: rounds that repeat each step with eps read where it arrived, which nears the exact
            inverse of `denoise`'s step: 25 steps with one round are nearer than 50 without.
        progress: show a bar.

    Returns: x_t (B, *shape).
    Raises ValueError where x_0 is no batch of images of the model's shape, or is far outside [-1,
    1]; warns where it seems to be in [0, 1].
    Cost: B * steps * (1 + refine) network calls.
    Source: DDIM inversion, 2105.05233.

    >>> p = mk.load_model("alice")
    >>> mk.invert(p, mk.puppets.render(mk.puppets.sample_factors(1, 0)), 500, steps=2).shape
    torch.Size([1, 3, 64, 64])
    """
    times = [-1, *reversed(timesteps(p, t, steps))]
    x, rounds = p.encode(x0), 1 + integer(refine, "refine")
    for i, (now, then) in enumerate(_bar(pairwise(times), len(times) - 1, progress)):
        at = x
        for _ in range(rounds):
            eps = p.chunked(at, lambda part, rows, t=then: p.noise(part, t))  # type: ignore[misc]
            at = ddim_step(x, eps, p.levels.pair(now), p.levels.pair(then))
        x = at
        if callback:
            callback(i, then, x)
    p.made(x, times[-1])
    return p.check(x, "the inverted x_t")


def posterior_mean(p: Model, t: Time) -> Callable[[Tensor], Tensor]:
    """The map g: x_t -> E[x_0 | x_t], (B, *shape) -> (B, *shape), differentiable.

    Its Jacobian is s / n^2 Cov[x_0 | x_t], with the levels s and n of t, where the model is exact
    (second-order Tweedie formula), so its singular vectors are the posterior's principal axes.

    Args:
        p: the model.
        t: 0 ... T - 1.

    Returns: a function.
    Raises ValueError for what is no model, and t outside its range.
    Cost: B network calls each time it is called.
    Source: Efron 2011; Manor & Michaeli, 2309.13598.

    >>> cov = torch.diag(torch.tensor([4.0, 1.0]))
    >>> p = mk.diffusion.gaussian.GaussianModel(torch.zeros(2), cov)
    >>> A = mk.jacobian(mk.posterior_mean(p, 500), torch.zeros(1, 2))
    >>> mk.svd(A, 2).V.abs()  # the axes of the covariance
    tensor([[1., 0.],
            [0., 1.]])
    """
    check_model(p)
    t = p.time(t)
    return lambda x: p.clean(x, t)


def _falling(p: Model, t: int, times: Sequence[int]) -> list[int]:
    grid = [p.time(s) for s in times]
    if grid[:1] != [p.time(t)] or any(b >= a for a, b in pairwise(grid)):
        raise ValueError(f"times fall from t = {t}, got {grid}")
    return grid


def _eta(eta: float, t: Time, boost_below: Time | None) -> float:
    eta = number(eta, "eta", 0, 1)
    return 1.0 if boost_below is not None and t < number(boost_below, "boost_below", 0) else eta


def _indices(index: Iterable[int]) -> list[int]:
    if not isinstance(index, Iterable) or not (found := list(index)):
        raise ValueError(f"index is a list of integers >= 0, at least one, got {told(index)}")
    return found


def _bar(steps: Iterable[Step], count: int, progress: bool) -> Iterable[Step]:
    """The steps, with a progress bar if asked."""
    if not progress:
        return steps
    from tqdm.auto import tqdm

    return tqdm(steps, total=count, unit="step", leave=False)


class _Noise:
    """Standard normal draws (B, *shape), item i from its own CPU generator of (seed, index[i])."""

    def __init__(
        self, p: Model, seed: int | Sequence[int], index: Sequence[int], stream: int
    ) -> None:
        self.p, self.index, seeds = p, index, np.asarray(seed)
        if seeds.shape not in ((), (len(index),)):
            raise ValueError(f"give one seed, or one for each of {len(index)}, got {seeds.shape}")
        pairs = np.broadcast_arrays(seeds, np.asarray(index))
        if any(part.dtype.kind not in "iu" or (part < 0).any() for part in pairs):
            raise ValueError(f"seed and index are integers >= 0, got {seed} and {list(index)}")
        self.generators = [_generator(int(s), int(i), stream) for s, i in zip(*pairs, strict=True)]

    def __call__(self) -> Tensor:
        single = torch.float32
        draws = [torch.randn(self.p.shape, generator=g, dtype=single) for g in self.generators]
        # At least float32: x_t is held finer than a half-precision network computes.
        return torch.stack(draws).to(self.p.device, torch.promote_types(single, self.p.dtype))


def _generator(*key: int) -> torch.Generator:
    words = np.random.SeedSequence(key).generate_state(2)
    return torch.Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))


def noised(p: Model, x0: Tensor, t: Time, seed: int) -> Tensor:
    """x_t = s x0 + n e at the levels of t, on p's device, e the standard normal of `seed`."""
    x0, (s, n) = x0.to(p.device), p.levels.pair(p.time(t))
    e = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed)).to(x0)
    return s * x0 + n * e


def reached(way: Iterable[tuple[Time, Tensor]], t: Time) -> Tensor:
    """x_t of a `walk`; nothing is computed beyond it. ValueError where it does not come by t."""
    for now, x in way:
        if now == t:
            return x
    raise ValueError(f"the way does not come by t = {t}")


def finished(p: Model, xt: Tensor, t: Time, steps: int | None = None, **how: Any) -> Tensor:
    """The pictures that x_t leads to: denoised, decoded and clipped to [-1, 1], (B, *image_shape).

    steps and how: as for `denoise`. Cost: that, and of a latent model its decoder.
    """
    return p.decode(denoise(p, xt, t, steps, **how)).clamp(-1, 1)
