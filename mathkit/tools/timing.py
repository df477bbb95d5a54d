"""What a piece of work costs on a model's device: seconds, its passes alone, the peak of memory."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mathkit.diffusion.model import Model
from mathkit.linear.linear_map import LinearMap


class Timed(LinearMap):
    """A with a clock: seconds spent in its passes, the device's work included."""

    def __init__(self, A: LinearMap, p: Model) -> None:
        # Not on self: what holds itself frees its graph only when the collector comes by.
        self._spent = spent = [0.0]

        def timed(one_pass: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            def run(rows: Tensor) -> Tensor:
                began = _now(p)
                out = one_pass(rows)
                spent[0] += _now(p) - began
                return out

            return run

        super().__init__(timed(A.push), timed(A.pull), A.in_shape, A.out_shape, A.dtype, A.device)
        self.batch = A.batch

    @property
    def seconds(self) -> float:
        return self._spent[0]


def measured(p: Model, work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What work() gives, its seconds, and the peak of memory in GiB."""
    cuda = p.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(p.device)
    began = _now(p)
    answer = work()
    seconds = _now(p) - began
    used = torch.cuda.max_memory_allocated(p.device) if cuda else _resident()
    return answer, seconds, used / 2**30


def _now(p: Model) -> float:
    if p.device.type == "cuda":
        torch.cuda.synchronize(p.device)
    return time.perf_counter()


def _resident() -> float:
    """Peak bytes of this process; NaN where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
