"""Work done in parts, of a size that halves when a device is full."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

# Numbers that keep a device busy at a time: beyond them a larger part only costs memory.
GRAPH = {"cpu": 2**15, "cuda": 2**22}  # through autograd's graph
TAPE = {"cpu": 2**17, "cuda": 2**22}  # through a recorded tape
NETWORK = {"cpu": 2**18, "cuda": 2**23}  # through a network


def fitting(numbers: int, device: str, busy: Mapping[str, int]) -> int:
    """How many items of so many numbers each go at once on a kind of device."""
    return max(1, busy.get(device, 2**18) // numbers)


class Chunk:
    """How many items go at once, `size`; half as many from the first failure on."""

    def __init__(self, size: int) -> None:
        self.size = size

    def parts(
        self, count: int, work: Callable[[slice], Tensor], failing: type[Exception] = RuntimeError
    ) -> Iterator[Tensor]:
        """work(rows) for slices of 0 ... count - 1, in order; again in halves where one fails."""
        done = 0
        while done < count:
            rows = slice(done, min(done + self.size, count))
            try:
                part = work(rows)
            except failing:
                if self.size == 1:
                    raise
                self.size = max(1, min(self.size, count) // 2)
                continue
            done = rows.stop
            yield part
