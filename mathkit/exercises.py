"""Exercise checks that name the likely mistake.

    mk.check(answer, truth, mistakes={"that is the variance: take its square root": variance})

The notebook computes `truth` by an independent route, so no answer is typed anywhere.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

Parts = list[Tensor]
Same = Callable[[Parts, Parts], bool]


@dataclass(frozen=True)
class Verdict:
    """What a check found: true only if right; `ok` is None where nothing was attempted."""

    ok: bool | None
    message: str

    def __bool__(self) -> bool:
        return self.ok is True

    def _ipython_display_(self) -> None:
        """Nothing to show: `check` has printed the message."""


def check(
    answer: Any,
    truth: Any,
    mistakes: Mapping[str, Any] | None = None,
    *,
    inputs: Sequence[Any] | None = None,
    tol: float = 1e-3,
    up_to_sign: bool = False,
    count: int | None = None,
    name: str = "",
    note: str = "",
) -> Verdict:
    """Print whether `answer` is right, else the likeliest mistake; return a Verdict. Never raises
    for what a reader wrote; None, ... or a function that returns them is "not attempted".

    truth     a number, array, tensor, tuple of those, word or bool; or a function, then `answer` is
              one too and both are called on each of `inputs` (a tuple in `inputs` is unpacked)
    mistakes  {diagnosis: wrong answer}, tried first; where truth is a function, {diagnosis: wrong
              function}, else a function here is a predicate of the answer
    tol       right means |answer - truth| <= tol * max |truth|, entry by entry, shapes equal
    up_to_sign  each direction (row, or whole vector) may carry either sign
    count     items summed or averaged over: lets the check tell sum, mean and n - 1 apart
    note      a sentence printed after "Right."

    After `mistakes`, the answer is compared with transforms of the truth: sign, square and root,
    factor, offset, transpose, order, units, logarithm, complement, length, shape. Raises ValueError
    on a faulty exercise: a listed mistake that equals the truth, a function without `inputs`.
    """
    task = Task(truth, inputs, tol, up_to_sign, count)
    listed = {text: task.read(wrong) for text, wrong in (mistakes or {}).items()}
    for text, wrong in listed.items():
        if not callable(wrong) and task.same(wrong, task.truth):
            raise ValueError(f"the listed mistake {text!r} equals the truth")
    verdict = task.judge(answer, listed, note)
    print(f"{name}: {verdict.message}" if name else verdict.message)
    return verdict


class Unattempted(Exception):
    """Nothing to check yet."""


class Unreadable(Exception):
    """Not a value that could be compared; the message says what was expected."""


@dataclass
class Task:
    """One exercise: the truth as a list of parts, and how to read and compare an answer."""

    oracle: Any
    inputs: Sequence[Any] | None
    tol: float
    up_to_sign: bool
    count: int | None

    def __post_init__(self) -> None:
        if callable(self.oracle) and not self.inputs:
            raise ValueError("truth is a function: give `inputs`, a list of inputs to try it on")
        try:
            self.truth = self.read(self.oracle)
        except (Unattempted, Unreadable) as e:
            raise ValueError(f"truth must be something to compare with; got {self.oracle!r}") from e

    def read(self, x: Any) -> Any:
        """x as comparable parts; a predicate (a function where truth is none) as it is."""
        if callable(self.oracle):
            return [p for y in self.called(x) for p in _parts(y)]
        if callable(x):
            return x
        return _word(x) if isinstance(self.oracle, str | bool) else _parts(x)

    def called(self, f: Any) -> list[Any]:
        if not callable(f):
            raise Unreadable(f"a function was expected; yours is of type {type(f).__name__}")
        cases = [x if isinstance(x, tuple) else (x,) for x in self.inputs or ()]
        return [f(*map(_fresh, x)) for x in cases]

    def same(self, a: Any, t: Any) -> bool:
        if not isinstance(t, list):
            return isinstance(a, str | bool | int) and a == t
        return _same(_aligned(a, t) if self.up_to_sign else a, t, self.tol)

    def judge(self, answer: Any, listed: Mapping[str, Any], note: str) -> Verdict:
        try:
            _attempted(answer)
            a = self.read(answer)
            if callable(a):
                raise Unreadable("a value was expected, not a function: call it")
            a = _unboxed(a, self.truth)
        except (Unattempted, NotImplementedError):
            return Verdict(None, "Not attempted yet. Fill in the ... and run this cell again.")
        except Unreadable as e:
            return Verdict(False, f"Not yet: {e}.")
        except Exception as e:  # whatever the reader's own function raises
            return Verdict(False, f"Not yet: your code stopped with {type(e).__name__}: {e}")
        if self.same(a, self.truth):
            return Verdict(True, f"Right. {note}".strip())
        return Verdict(False, f"Not yet: {self.diagnosis(answer, a, listed)}.")

    def diagnosis(self, answer: Any, a: Any, listed: Mapping[str, Any]) -> str:
        for text, wrong in listed.items():
            if _holds(wrong, answer) if callable(wrong) else self.same(a, wrong):
                return text.rstrip(".")
        if not isinstance(self.truth, list):
            kind = type(self.oracle).__name__
            return (
                f"{answer!r} is not it" if isinstance(a, str | bool) else f"a {kind} was expected"
            )
        if self.up_to_sign:
            a = _aligned(a, self.truth)
        found = islice(likely(a, self.truth, self.same, self.count), 2)
        return "; or: ".join(found) or self.fallback(a)

    def fallback(self, a: Parts) -> str:
        right = _agreeing(a, self.truth, self.tol)
        if len(a) > 1 and any(right):
            what, first = "inputs" if callable(self.oracle) else "parts", right.index(False) + 1
            return f"{sum(right)} of {len(a)} {what} come out right; look at number {first}"
        return _how_far(_flat(a), _flat(self.truth), self.tol)


def likely(a: Parts, t: Parts, same: Same, count: int | None) -> Iterator[str]:
    """The diagnoses that turn the truth t into the answer a, most specific first."""
    if len(a) != len(t):
        yield f"{len(t)} values were expected; yours are {len(a)}"
    elif not all(x.isfinite().all() for x in a):
        yield "there is NaN or infinity in it: look for 0/0 or the root of a negative number"
    elif any(x.shape != y.shape for x, y in zip(a, t, strict=True)):
        yield _shape(a, t, same)
    else:
        found = [*_averaged(a, t, same, count), *_transformed(a, t, same)]
        yield from found or _estimated(a, t, same)


def _transformed(a: Parts, t: Parts, same: Same) -> Iterator[str]:
    for text, f in TRANSFORMS.items():
        wrong = [f(y) for y in t]
        finite = all(w.isfinite().all() for w in wrong)
        if finite and not same(wrong, t) and same(a, wrong):
            yield text


def _averaged(a: Parts, t: Parts, same: Same, n: int | None) -> Iterator[str]:
    """Sum, mean and n - 1 confused: t times a factor known from the number of items n."""
    if n is not None and n > 1:
        yield from (text for text, c in AVERAGES.items() if same(a, [c(n) * y for y in t]))


TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "the sign is flipped": torch.neg,
    "rows and columns are swapped: transpose": lambda t: t.mT if t.ndim > 1 else t,
    "that looks like the square of the right answer: a square root is missing": torch.square,
    "one square root too many": lambda t: t.sqrt() if (t >= 0).all() else t,
    "it is 2 times too large": lambda t: 2 * t,
    "a factor of 2 is missing": lambda t: t / 2,
    "that is 1 minus the right answer: the complement": lambda t: 1 - t,
    "that is 1 over the right answer": torch.reciprocal,
    "that is in percent; a share between 0 and 1 was asked": lambda t: 100 * t,
    "that is a share; percent was asked": lambda t: t / 100,
    "that is in degrees; radians were asked": torch.rad2deg,
    "that is in radians; degrees were asked": torch.deg2rad,
    "that is the cosine of the right answer: an arccos is missing": torch.cos,
    "one logarithm too many": lambda t: t.log() if (t > 0).all() else t,
    "that is the exponential of the right answer: a logarithm is missing": torch.exp,
    "that is a logarithm to base 10; the natural one was asked": lambda t: t / math.log(10),
    "that is a logarithm to base 2; the natural one was asked": lambda t: t / math.log(2),
    "the signs are lost: no absolute value here": torch.abs,
    "the order is reversed": lambda t: t.flip(0) if t.ndim else t,
}

AVERAGES: dict[str, Callable[[int], float]] = {
    "that looks like a sum where a mean was asked": lambda n: n,
    "that looks like a mean where a sum was asked": lambda n: 1 / n,
    "that is divided by n - 1; n was asked": lambda n: n / (n - 1),
    "that is divided by n; n - 1 was asked": lambda n: (n - 1) / n,
}


def _estimated(a: Parts, t: Parts, same: Same) -> Iterator[str]:
    """Diagnoses with a constant read off the answer: a factor, an offset, an order."""
    x, y = _flat(a), _flat(t)
    c = float(x @ y / (y @ y)) if len(y) > 1 and y.any() else 0.0
    if abs(c) > 1e-6 and same(a, [c * z for z in t]):
        yield _factor(c, a, t)
    off = x - y
    if len(off) > 2 and same([off], [off.mean().expand_as(off)]):
        yield f"every entry is off by the same {float(off.mean()):.3g}: was a mean to be subtracted"
    elif len(a) == 1 and a[0].ndim > 1 and len(a[0]) > 2:
        rows = a[0] - t[0]
        if same([rows], [rows.mean(0).expand_as(rows)]):
            yield "every row is off by the same row: was the mean row to be subtracted"
    if len(x) > 2 and same([x.sort().values], [y.sort().values]):
        yield "those are the right numbers, in another order"


def _factor(c: float, a: Parts, t: Parts) -> str:
    def unit(parts: Parts) -> bool:
        return all(abs(float(p.norm()) - 1) <= 1e-3 for p in parts)

    if c > 0 and unit(t):
        return f"the direction is right, its length is {c:.4g}: normalise it"
    if c > 0 and unit(a):
        return "the direction is right, but it should not be normalised to length 1"
    return f"it is right up to the constant factor {c:.4g}"


def _shape(a: Parts, t: Parts, same: Same) -> str:
    x, y = next((x, y) for x, y in zip(a, t, strict=True) if x.shape != y.shape)
    shapes = f"shape {tuple(y.shape)} was expected; yours is {tuple(x.shape)}"
    if x.ndim == 2 and same([x.mT], [y]):
        return f"rows and columns are swapped: transpose ({shapes})"
    if x.numel() == y.numel() and same([x.reshape(y.shape)], [y]):
        return f"the numbers are right, in the wrong shape: {shapes}"
    for axis in range(x.ndim):
        for verb, reduced in (("mean", x.mean(axis)), ("sum", x.sum(axis))):
            if same([reduced], [y]):
                return f"the last step is missing, the {verb} over axis {axis}: {shapes}"
    return shapes


def _how_far(x: Tensor, y: Tensor, tol: float) -> str:
    scale, off = float(y.abs().max()), x - y
    if scale and float(off.abs().max()) <= 0.05 * scale:
        return "close, but not within the tolerance: rounding, or too few steps"
    if len(x) == 1:
        return "too large" if float(off) > 0 else "too small"
    right = int((off.abs() <= tol * scale).sum())
    cosine = torch.nn.functional.cosine_similarity(x, y, 0)
    return f"{right} of {len(x)} entries are right; cosine with the right answer {cosine:.2f}"


def _same(a: Parts, t: Parts, tol: float) -> bool:
    """Equal shapes, and every part agrees."""
    return [x.shape for x in a] == [y.shape for y in t] and all(_agreeing(a, t, tol))


def _agreeing(a: Parts, t: Parts, tol: float) -> list[bool]:
    """|a - t| <= tol * max |t|, part by part; the largest part's where t is 0."""
    sizes = [float(y.abs().max()) if y.numel() else 0.0 for y in t]
    most = max(sizes, default=0.0)
    scales = [s if s > 1e-9 * most else most or 1.0 for s in sizes]
    return [bool(((x - y).abs() <= tol * s).all()) for x, y, s in zip(a, t, scales, strict=True)]


def _aligned(a: Parts, t: Parts) -> Parts:
    """a with the sign of each row (of the whole, if a vector) chosen to agree with t."""
    if [x.shape for x in a] != [y.shape for y in t]:
        return a
    dims = [tuple(range(x.ndim > 1, x.ndim)) for x in a]
    dots = [(x * y).sum(d, keepdim=True) for x, y, d in zip(a, t, dims, strict=True)]
    return [torch.where(d < 0, -x, x) for x, d in zip(a, dots, strict=True)]


def _unboxed(a: Any, t: Any) -> Any:
    """A one-entry array counts as the number in it where a number was asked."""
    if not isinstance(a, list) or not isinstance(t, list) or len(a) != len(t):
        return a
    boxed = [x.numel() == 1 and y.ndim == 0 for x, y in zip(a, t, strict=True)]
    return [x.reshape(()) if b else x for x, b in zip(a, boxed, strict=True)]


def _fresh(x: Any) -> Any:
    """A copy of what a function could change in place; anything else as it is."""
    if isinstance(x, Tensor):
        return x.clone()
    return copy.deepcopy(x) if isinstance(x, list | dict) or hasattr(x, "__array__") else x


def _flat(parts: Parts) -> Tensor:
    return torch.cat([p.flatten() for p in parts])


def _holds(predicate: Callable[[Any], Any], answer: Any) -> bool:
    try:
        return bool(predicate(answer))
    except Exception:  # a predicate may trip over an answer of another kind
        return False


def _attempted(x: Any) -> None:
    if (
        x is None
        or x is ...
        or isinstance(x, list | tuple)
        and any(y is None or y is ... for y in x)
    ):
        raise Unattempted


def _word(x: Any) -> Any:
    if isinstance(x, str):
        return x.strip().lower()
    return x.item() if getattr(x, "ndim", None) == 0 else x


def _parts(x: Any) -> Parts:
    """A tuple with an array in it: one part an entry; anything else: one part."""
    _attempted(x)
    many = isinstance(x, tuple) and any(getattr(y, "ndim", 0) or isinstance(y, list) for y in x)
    return [_tensor(y) for y in x] if many else [_tensor(x)]


def _tensor(x: Any) -> Tensor:
    _attempted(x)
    try:
        if isinstance(x, list | tuple):
            return torch.stack([_tensor(y) for y in x])
        if hasattr(x, "__array__") and not isinstance(x, Tensor):
            x = x.copy()  # torch refuses negative strides
        precise = torch.float64 if isinstance(x, float) else None
        y = x.detach().cpu() if isinstance(x, Tensor) else torch.tensor(x, dtype=precise)
        return torch.view_as_real(y).double() if y.is_complex() else y.double()
    except (TypeError, ValueError, RuntimeError) as e:
        raise Unreadable(f"a number or an array was expected; got {type(x).__name__}") from e
