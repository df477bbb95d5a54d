"""Searches at several points, side by side: what they ask of their Jacobians is one pass for all.

A pass over eight points costs about as many calls as one over a single point, which is what a GPU
waits for, and on a CPU less than eight. Each search runs in a thread of its own, one at a time: it
rests at each push or pull until all have asked, and goes on with its part of the answer.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from mathkit.linear.chunks import TAPE, Chunk, fitting
from mathkit.linear.jacobian import Tape, coarse, is_coarse, jacobian, record
from mathkit.linear.linear_map import LinearMap, Pass, plainly

T = TypeVar("T")
Side = tuple[str, bool]  # push or pull, and whether it may be rounded


def side_by_side(f: Pass, x: Tensor, search: Callable[[LinearMap], T]) -> list[T | Exception]:
    """search(J_i) for the Jacobian J_i of f at each of the points x_i, or what it raised.

    x: (B, *in), f as `jacobian` takes it. The answers are those of one search at a time, to
    rounding. Where f has no tape at these points, or cannot be taken at all of them, it is one at a
    time, and a point that is at fault says so for itself.
    Memory: a tape of B points. Cost: as many calls as the longest search makes, or a few more.
    """
    tape = _tried(lambda: record(f, x)) if len(x) > 1 else None
    if isinstance(tape, Tape):
        return Lockstep(tape, x).run(search)
    del tape  # else a graph of all points lies beside that of each
    return [_tried(lambda one=one: search(jacobian(f, one[None]))) for one in x]  # type: ignore[misc]


def _tried(work: Callable[[], T]) -> T | Exception:
    try:
        return work()
    except Exception as error:
        return error


class Lockstep:
    """The Jacobians at the points of one tape, each for a search of its own."""

    def __init__(self, tape: Tape, x: Tensor) -> None:
        self.tape, self.like = tape, torch.empty(0, dtype=x.dtype, device=x.device)
        numbers = x.numel() + torch.Size(tape.out_shape).numel()
        self.chunk = Chunk(max(2, fitting(numbers, x.device.type, TAPE)))

    def run(self, search: Callable[[LinearMap], T]) -> list[T | Exception]:
        places = range(self.tape.in_shape[0])
        strands = [Strand(lambda ask: search(self._map(ask))) for _ in places]
        try:
            for strand in strands:
                strand.resume()
            while asked := {i: s.asked for i, s in enumerate(strands) if s.asked is not None}:
                # Searches may be a pass apart: the rarer side waits, and they fall into step.
                side = Counter(side for side, _ in asked.values()).most_common(1)[0][0]
                rows = {i: rows for i, (of, rows) in asked.items() if of == side}
                answers = _tried(lambda side=side, rows=rows: self._pass(side, rows))  # type: ignore[misc]
                for i in rows:
                    strands[i].resume(answers if isinstance(answers, Exception) else answers[i])
        finally:
            for strand in strands:
                strand.stop()
        return [strand.outcome for strand in strands]

    def _map(self, ask: Callable[[Side, Tensor], Tensor]) -> LinearMap:
        def side(name: str) -> Pass:
            return lambda rows: ask((name, is_coarse()), rows)

        shapes = self.tape.in_shape[1:], self.tape.out_shape[1:]
        J = LinearMap(side("push"), side("pull"), *shapes, self.like.dtype, self.like.device)
        J.batch = self.chunk.size
        return J

    def _pass(self, side: Side, rows: dict[int, Tensor]) -> dict[int, Tensor]:
        """One pass for all that ask; the points that do not are given zeros."""
        name, rounded = side
        shape = self.tape.in_shape if name == "push" else self.tape.out_shape
        changes = self.like.new_zeros(max(map(len, rows.values())), *shape)
        for i, some in rows.items():
            changes[: len(some), i] = some
        with plainly(self.like.device), coarse(rounded):
            run = getattr(self.tape, name)
            parts = [*self.chunk.parts(len(changes), lambda some: run(changes[some]))]
        answer = torch.cat(parts)
        return {i: answer[: len(some), i] for i, some in rows.items()}


class Strand(Generic[T]):
    """Work in a thread that rests whenever it asks, until it is resumed with the answer."""

    def __init__(self, work: Callable[[Callable[[Side, Tensor], Tensor]], T]) -> None:
        self.work = work
        self.asked: tuple[Side, Tensor] | None = None
        self.answer: Any = None
        self.outcome: Any = None
        self.go, self.rests = threading.Semaphore(0), threading.Semaphore(0)
        self.thread = threading.Thread(target=self._run, daemon=True)

    def resume(self, answer: Tensor | BaseException | None = None) -> None:
        """Let it run until it asks or ends."""
        self.asked, self.answer = None, answer
        if self.thread.ident is None:
            self.thread.start()
        self.go.release()
        self.rests.acquire()
        if isinstance(self.outcome, BaseException) and not isinstance(self.outcome, Exception):
            raise self.outcome

    def stop(self) -> None:
        """End it where it rests."""
        if self.asked is not None:
            self.asked, self.answer = None, SystemExit()
            self.go.release()
        if self.thread.ident is not None:
            self.thread.join()

    def _run(self) -> None:
        self.go.acquire()
        try:
            self.outcome = self.work(self._ask)
        except BaseException as error:
            self.outcome = error
        self.rests.release()

    def _ask(self, side: Side, rows: Tensor) -> Tensor:
        self.asked = side, rows
        self.rests.release()
        self.go.acquire()
        if isinstance(self.answer, BaseException):
            raise self.answer
        answer: Tensor = self.answer
        return answer
