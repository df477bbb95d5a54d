"""Signal and noise levels: x_t = signal(t) x_0 + noise(t) e, for every Gaussian path."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mathkit.arguments import number

Time = Any  # an integer where the model's times are a table's, else a number
CLEAN = -1  # the time after the last: the clean image, signal 1 and noise 0


@dataclass(frozen=True)
class Levels:
    """A Gaussian path, x_t = signal(t) x_0 + noise(t) e with e ~ N(0, I).

    Args:
        signal: of times (B,), float64 on the CPU, to levels (B,) >= 0.
        noise: the same, > 0; noise / signal rises with t.
        top: the noisiest time.
        bottom: the last at which the network is called; from there one step leads to the clean
            image.
        whole: whether t is an integer.

    Raises ValueError where noise / signal falls, or noise(bottom) is not > 0.
    Source: 2011.13456; for flows 2209.03003.

    >>> mk.diffusion.levels.flow().pair(0.25)
    (0.75, 0.25)
    """

    signal: Callable[[Tensor], Tensor]
    noise: Callable[[Tensor], Tensor]
    top: Time
    bottom: Time
    whole: bool = False

    def __post_init__(self) -> None:
        s, n = self(self.span())
        rising = bool((n[1:] * s[:-1] >= n[:-1] * s[1:]).all())
        if not (rising and bool((s >= 0).all()) and float(n[0]) > 0):
            raise ValueError(
                "levels rise in noise / signal from bottom to top, with signal >= 0 and noise > 0, "
                f"got {self.pair(self.bottom)} at {self.bottom} and {self.pair(self.top)} at "
                f"{self.top}"
            )

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """signal(t) and noise(t), float64 on the CPU."""
        t = t.cpu() if self.whole else t.double().cpu()
        return self.signal(t), self.noise(t)

    def pair(self, t: Time) -> tuple[float, float]:
        """signal and noise at one time; at -1, the clean image, 1 and 0."""
        if t == CLEAN:
            return 1.0, 0.0
        s, n = self(self.tensor([t]))
        return float(s), float(n)

    def tensor(self, times: list[Time]) -> Tensor:
        """Times as a tensor: integers, or float64."""
        return torch.tensor(times, dtype=torch.int64 if self.whole else torch.float64)

    def span(self, count: int = 1000) -> Tensor:
        """Times from bottom to top: all of them where they are integers, else `count`."""
        if self.whole:
            return torch.arange(int(self.bottom), int(self.top) + 1)
        return torch.linspace(self.bottom, self.top, count, dtype=torch.float64)

    def highest(self, share: float) -> Time:
        """The last time at which signal >= share * noise, or `bottom`."""
        times = self.span()
        s, n = self(times)
        clear = times[s >= share * n]
        return clear[-1].item() if len(clear) else self.bottom

    def even(self, t: Time, steps: int) -> Tensor:
        """`steps` times from t to `bottom`, even in log(signal / noise), as far as it is finite."""
        first, last = self._log(self.tensor([t, self.bottom])).tolist()
        wanted = torch.linspace(first, last, steps, dtype=torch.float64)
        if self.whole:
            times = torch.arange(int(self.bottom), int(t) + 1)
            return times[(self._log(times)[:, None] - wanted).abs().argmin(0)]
        low, high = torch.full_like(wanted, self.bottom), torch.full_like(wanted, t)
        for _ in range(60):  # halved to the last bit
            middle = (low + high) / 2
            quiet = self._log(middle) > wanted
            low, high = torch.where(quiet, middle, low), torch.where(quiet, high, middle)
        high[-1], high[0] = self.bottom, t
        return high

    def _log(self, t: Tensor) -> Tensor:
        s, n = self(t)
        return (s / n).clamp_min(1e-6).log()


def preserving(alphas_cumprod: Tensor) -> Levels:
    """Variance preserving, by a table: sqrt(abar_t) and sqrt(1 - abar_t), t = 0 ... T - 1.

    Args:
        alphas_cumprod: abar_t, (T,), in [0, 1), falling.

    Returns: the levels.
    Raises ValueError for a table that is none.
    Source: DDPM, 2006.11239.

    >>> abar = torch.tensor([0.75, 0.25], dtype=torch.float64)
    >>> mk.diffusion.levels.preserving(abar).pair(1)[0]
    0.5
    """
    abar = alphas_cumprod.detach().double().cpu()
    if abar.ndim != 1 or not len(abar):
        raise ValueError(f"alphas_cumprod is (T,), in [0, 1), falling, got {tuple(abar.shape)}")
    kept, lost = partial(_root, abar), partial(_root, 1 - abar)
    return Levels(kept, lost, len(abar) - 1, 0, True)


def _root(table: Tensor, t: Tensor) -> Tensor:
    return table[t].sqrt()


def _same(t: Tensor) -> Tensor:
    return t


def _rest(t: Tensor) -> Tensor:
    return 1 - t


def exploding(least: float = 0.01, most: float = 100.0) -> Levels:
    """Variance exploding: x_t = x_0 + t e, so t is sigma itself.

    Args:
        least: the last sigma at which the network is called, > 0.
        most: the first, where sampling begins.

    Returns: the levels; t is real.
    Raises ValueError for a sigma outside its range.
    Source: 2011.13456; t = sigma as in 2206.00364.

    >>> mk.diffusion.levels.exploding().pair(3.0)
    (1.0, 3.0)
    """
    least = number(least, "least", 1e-12)
    return Levels(torch.ones_like, _same, number(most, "most", least), least)


def flow(least: float = 0.001) -> Levels:
    """Rectified flow: x_t = (1 - t) x_0 + t e, t in [0, 1].

    Args:
        least: the last time at which the network is called, in (0, 1).

    Returns: the levels; t is real, and x_1 pure noise.
    Raises ValueError for a least outside its range.
    Source: 2209.03003, 2210.02747.

    >>> mk.diffusion.levels.flow().pair(1.0)
    (0.0, 1.0)
    """
    return Levels(_rest, _same, 1.0, number(least, "least", 1e-12, 1 - 1e-12))


def ratio(level: tuple[float, float]) -> float:
    """signal / noise; infinite for the clean image."""
    return level[0] / level[1] if level[1] else math.inf
