"""Exercise checks that name the likely mistake.

    mk.check(answer, truth, mistakes={"that is the variance: take its square root": variance})

The notebook computes `truth` by an independent route, so no answer is typed anywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

Parts = list[Tensor]
Same = Callable[[Parts, Parts], bool]

ROUNDED = 5e-3  # what rounding to three significant digits can cost, as a share of the number
NOISE = 1e-6  # a share of the largest number below which another is 0 but for rounding errors


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
    tol: float = ROUNDED,
    decimals: int | None = None,
    up_to_sign: bool = False,
    note: str = "",
) -> Verdict:
    """Whether an answer is right, printed, else the likeliest mistake.

    List, tuple, array and tensor are all one, and so are shapes (n,) and (1, n). After `mistakes`,
    the answer is compared with transforms of the truth: sign, square and root, factor, offset,
    transpose, order, units, complement, length, shape.

    Args:
        answer: what the reader made; None, ... or a function that returns them is "not attempted".
        truth: a number, list, array or tensor; a tuple of those; a set of numbers (any order will
            do); a word or bool; or a function, then `answer` is one too.
        mistakes: {diagnosis: wrong answer}, tried first; wrong functions where truth is a function.
        inputs: where truth is a function, what both are called on (a tuple is unpacked).
        tol: right means |answer - truth| <= tol * max |truth|, for each entry of a tuple by its own
            size. By default a number rounded to three significant digits is right. What is whole by
            type (int) is a count, and exact.
        decimals: where the question asks for so many, the last of them may also be off by one.
        up_to_sign: each direction (row, or whole vector) may carry either sign; a number may not.
        note: a sentence printed after "Right."

    Returns: a `Verdict`, whose `ok` is True, False, or None where nothing was attempted.
    Raises nothing for what a reader wrote; ValueError on a faulty exercise: a listed mistake that
    equals the truth, a function without `inputs`.

    >>> mk.check(0.333, 1 / 3, mistakes={"that is the square": 1 / 9}).ok
    Right.
    True
    """
    task = Task(truth, inputs, tol, decimals, up_to_sign)
    listed = {text: task.given(wrong) for text, wrong in (mistakes or {}).items()}
    for text, wrong in listed.items():
        if all(task.right(wrong)):
            raise ValueError(f"the listed mistake {text!r} equals the truth")
    verdict = task.judge(answer, listed, note)
    print(verdict.message)
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
    decimals: int | None
    up_to_sign: bool

    def __post_init__(self) -> None:
        if callable(self.oracle) and not self.inputs:
            raise ValueError("truth is a function: give `inputs`, a list of inputs to try it on")
        self.sizes: list[int] = []  # how many parts each output has; 0 is one array
        self.truth = self.given(self.oracle)
        most = max(float(y.abs().max()) for y in self.truth)
        self.zero = min(most, 1.0) or 1.0  # what a zero is compared with: it has no size
        least = 0.0 if self.decimals is None else 1.001 * 10.0**-self.decimals
        self.margins = _margins(self.truth, self.tol, max(self.tol * self.zero, least), least)

    def given(self, x: Any) -> Parts:
        """What the exercise itself lists, read; it must be something to compare with."""
        try:
            parts = self.read(x)
        except (Unattempted, Unreadable) as e:
            raise ValueError(f"truth and mistakes must be something to compare with: {e}") from e
        if not all(p.numel() and p.isfinite().all() for p in parts):
            raise ValueError(f"truth and mistakes must be finite and not empty; got {x!r}")
        return parts

    def read(self, x: Any) -> Parts:
        """x as comparable parts; a word as the numbers of its letters."""
        if callable(self.oracle):
            outputs = self.called(x)
        elif callable(x):
            raise Unreadable("a value was expected, not a function: call it")
        elif isinstance(self.oracle, str):
            outputs = [_letters(x)]
        elif isinstance(self.oracle, set):
            outputs = [_tensor(list(x) if isinstance(x, set) else x).flatten().sort().values]
        else:
            outputs = [x]
        self.sizes = self.sizes or [len(y) if isinstance(y, tuple) else 0 for y in outputs]
        return [p for y, n in zip(outputs, self.sizes, strict=True) for p in _parts(y, n)]

    def called(self, f: Any) -> list[Any]:
        if not callable(f):
            raise Unreadable(f"a function was expected; yours is of type {type(f).__name__}")
        try:
            return [f(*map(_fresh, x if isinstance(x, tuple) else (x,))) for x in self.inputs or ()]
        except NotImplementedError as e:
            raise Unattempted("a function that is not written yet") from e
        except (Exception, SystemExit) as e:  # whatever the reader's own function raises
            raise Unreadable(f"your code stopped with {type(e).__name__}: {e}") from e

    def right(self, a: Parts) -> list[bool]:
        """Which parts are right."""
        a = _aligned(a, self.truth) if self.up_to_sign else a
        return _agreeing(a, self.truth, self.margins)

    def like(self, a: Parts, wrong: Parts) -> bool:
        """Whether the answer is this wrong one; a wrong zero is no other small number."""
        a = _aligned(a, wrong) if self.up_to_sign else a
        return all(_agreeing(a, wrong, _margins(wrong, min(self.tol, ROUNDED), NOISE * self.zero)))

    def judge(self, answer: Any, listed: Mapping[str, Parts], note: str) -> Verdict:
        try:
            _attempted(answer)
            a = _fitted([p.double() for p in self.read(answer)], self.truth)
        except Unattempted:
            return Verdict(None, "Not attempted yet. Fill in the ... and run this cell again.")
        except Unreadable as e:
            return Verdict(False, f"Not yet: {e}.")
        except KeyboardInterrupt:
            raise
        except BaseException as e:  # an object of the reader's may raise wherever it is touched
            return Verdict(False, f"Not yet: your answer cannot be read ({type(e).__name__}).")
        if all(self.right(a)):
            return Verdict(True, f"Right. {note}".strip())
        return Verdict(False, f"Not yet: {self.diagnosis(a, listed)}.")

    def diagnosis(self, a: Parts, listed: Mapping[str, Parts]) -> str:
        named = next((text for text, wrong in listed.items() if self.like(a, wrong)), None)
        if named is not None:
            return named.rstrip(".")
        if isinstance(self.oracle, str | bool):
            return "that is not it"
        if self.up_to_sign:
            a = _aligned(a, self.truth)
        found = islice(likely(a, self.truth, self.like), 2)
        return "; or: ".join(found) or self.how_far(a)

    def how_far(self, a: Parts) -> str:
        right, x, y = self.right(a), _flat(a), _flat(self.truth)
        if any(right):
            what, first = "inputs" if callable(self.oracle) else "parts", right.index(False) + 1
            return f"{sum(right)} of {len(a)} {what} come out right; look at number {first}"
        off, floats = (x - y).abs(), self.truth[0].is_floating_point()
        if floats and float(off.max()) <= 0.05 * float(y.abs().max()):
            return "close, but not close enough: rounding, or too few steps"
        if len(x) == 1:
            return "too large" if float(x - y) > 0 else "too small"
        fit = sum(
            ((p - q).abs() <= m).sum() for p, q, m in zip(a, self.truth, self.margins, strict=True)
        )
        cosine = float(torch.cosine_similarity(x, y, 0))
        return f"{fit} of {len(x)} entries are right; cosine with the right answer {cosine:.2f}"


def likely(a: Parts, t: Parts, same: Same) -> Iterator[str]:
    """The diagnoses that turn the truth t into the answer a, most specific first."""
    if len(a) != len(t):
        yield f"{len(t)} values were expected; yours are {len(a)}"
    elif not all(x.isfinite().all() for x in a):
        yield "there is NaN or infinity in it: look for 0/0 or the root of a negative number"
    elif any(x.shape != y.shape for x, y in zip(a, t, strict=True)):
        yield _shape(a, t, same)
    elif len(t) == 1 and not t[0].ndim and not t[0].is_floating_point():
        off = float(a[0] - t[0])
        many = f"{'one too' if abs(off) == 1 else 'too'} {'many' if off > 0 else 'few'}"
        yield "a whole number was asked" if off % 1 else many
    else:
        t = [y.double() for y in t]
        yield from [*_transformed(a, t, same)] or _estimated(a, t, same)


def _transformed(a: Parts, t: Parts, same: Same) -> Iterator[str]:
    for text, f in TRANSFORMS.items():
        wrong = [f(y) for y in t]
        finite = all(w.isfinite().all() for w in wrong)
        if finite and not same(wrong, t) and same(a, wrong):
            yield text


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
    "that is in degrees; radians were asked": torch.rad2deg,
    "that is in radians; degrees were asked": torch.deg2rad,
    "that is the cosine of the right answer: an arccos is missing": torch.cos,
    "the signs are lost: no absolute value here": torch.abs,
    "the order is reversed": lambda t: t.flip(0) if t.ndim else t,
}


def _estimated(a: Parts, t: Parts, same: Same) -> Iterator[str]:
    """Diagnoses with a constant read off the answer: a factor, an offset, an order."""
    x, y = _flat(a), _flat(t)
    c = float(x @ y / (y @ y)) if len(y) > 1 and y.any() else 0.0
    if 1e-6 < abs(c) < 1e6 and abs(c - 1) > 0.05 and same(a, [c * z for z in t]):
        unit = c > 0 and all(abs(float(z.norm()) - 1) <= 1e-3 for z in t)
        long = f"the direction is right, its length is {c:.4g}: normalise it"
        yield long if unit else f"it is right up to the constant factor {c:.4g}"
    off = x - y
    if len(off) > 2 and same([off], [off.mean().expand_as(off)]):
        yield f"every entry is off by the same {float(off.mean()):.3g}: was a mean to be subtracted"
    ordered = same([x.sort().values], [y.sort().values])
    if len(x) > 1 and ordered and not same([x], [y]):
        yield "those are the right numbers, in another order"


def _shape(a: Parts, t: Parts, same: Same) -> str:
    x, y = next((x, y) for x, y in zip(a, t, strict=True) if x.shape != y.shape)
    tries = {"rows and columns are swapped: transpose": x.mT} if x.ndim > 1 else {}
    if x.numel() == y.numel():
        tries["the numbers are right, in the wrong shape"] = x.reshape(y.shape)
    if not y.ndim:
        nearest = min(x.flatten(), key=lambda v: float((v - y).abs()), default=x)
        tries["one number was asked, and one of yours is it"] = nearest
    for axis in range(x.ndim):
        tries[f"the last step is missing, the mean over axis {axis}"] = x.mean(axis)
        tries[f"the last step is missing, the sum over axis {axis}"] = x.sum(axis)
    named = [text for text, z in tries.items() if same([z], [y])]
    shapes = f"shape {tuple(y.shape)} was expected; yours is {tuple(x.shape)}"
    return ": ".join([*named[:1], shapes])


def _agreeing(a: Parts, t: Parts, margins: list[float]) -> list[bool]:
    """Part by part, whether |a - t| is within the margin; nowhere if a shape differs."""
    if [x.shape for x in a] != [y.shape for y in t]:
        return [False]
    return [bool(((x - y).abs() <= m).all()) for x, y, m in zip(a, t, margins, strict=True)]


def _margins(t: Parts, tol: float, zero: float, least: float = 0.0) -> list[float]:
    """tol * max |t|, part by part, and at least `least`; `zero` where t is 0 but for noise; next
    to nothing where t is whole."""
    sizes = [float(y.abs().max()) for y in t]
    noise = NOISE * max(sizes)
    margins = [max(tol * size, least) if size > noise else zero for size in sizes]
    whole = [NOISE * min(max(size, 1.0), 1e5) for size in sizes]
    return [m if y.is_floating_point() else w for y, m, w in zip(t, margins, whole, strict=True)]


def _aligned(a: Parts, t: Parts) -> Parts:
    """a with the sign of each row (of the whole, if a vector) chosen to agree with t."""
    if [x.shape for x in a] != [y.shape for y in t]:
        return a
    dims = [tuple(range(x.ndim > 1, x.ndim)) for x in a]
    dots = [(x * y).sum(d, keepdim=True) for x, y, d in zip(a, t, dims, strict=True)]
    return [torch.where((d < 0) & (x.ndim > 0), -x, x) for x, d in zip(a, dots, strict=True)]


def _fitted(a: Parts, t: Parts) -> Parts:
    """Axes of length one too many or too few are no mistake: (1, n) for (n,), [2.0] for 2."""

    def fits(x: Tensor, y: Tensor) -> bool:
        return x.ndim != y.ndim and x.squeeze().shape == y.squeeze().shape

    pairs = zip(a, t, strict=True) if len(a) == len(t) else ()
    return [x.reshape(y.shape) if fits(x, y) else x for x, y in pairs] or a


def _fresh(x: Any) -> Any:
    """A copy: a function could change it in place."""
    return x.clone() if isinstance(x, Tensor) else copy.deepcopy(x)


def _flat(parts: Parts) -> Tensor:
    return torch.cat([p.flatten().double() for p in parts])


def _attempted(x: Any) -> None:
    if any(y is None or y is ... for y in (x, *(x if isinstance(x, list | tuple) else ()))):
        raise Unattempted("nothing there yet")


def _letters(x: Any) -> Tensor:
    if not isinstance(x, str):
        raise Unreadable("a word was expected, in quotes")
    return torch.tensor([ord(c) for c in str.lower(str.strip(x))])


def _parts(x: Any, n: int) -> Parts:
    """x as n parts, one for each entry; n = 0: as one array."""
    _attempted(x)
    if n and (isinstance(x, list | tuple) or getattr(x, "ndim", 0)):
        return [_tensor(y) for y in (x[0] if len(x) == 1 < n else x)]
    return [_tensor(x)]


def _tensor(x: Any) -> Tensor:
    """x in float64; in int64 where all of it is whole by type."""
    _attempted(x)
    try:
        if isinstance(x, list | tuple):
            return torch.stack([_tensor(y) for y in x])
        if not isinstance(x, Tensor):
            z = np.array(x)
            x = torch.from_numpy(np.array(float(x)) if z.dtype == object else z)
        y = x.detach().to_dense().cpu().resolve_conj()
        if y.is_complex():
            real = (y.imag.abs() <= NOISE * y.abs().amax()).all()
            y = y.real if real else torch.view_as_real(y)
        return y.double() if y.is_floating_point() else y.long()
    except (Unattempted, Unreadable):
        raise
    except Exception as e:
        raise Unreadable(f"a number or an array was expected; got {type(x).__name__}") from e
