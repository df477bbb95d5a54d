"""Each diagnosis is named for the mistake it describes, and right answers are never diagnosed."""

import math
import sys
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from mathkit.exercises import ROUNDED, TRANSFORMS, Verdict, check

VECTOR = torch.tensor([0.3, 1.7, -0.6, 2.9], dtype=torch.float64)
MATRIX = torch.tensor([[1.0, 2.0, 0.5], [3.0, -1.0, 4.0]], dtype=torch.float64)


def said(answer, truth, *args, **kwargs):
    verdict = check(answer, truth, *args, **kwargs)
    assert verdict.ok is False and not verdict
    return verdict.message


@pytest.mark.parametrize("up_to_sign", [False, True])
@pytest.mark.parametrize(
    "answer, truth",
    [([2.0, 2.0, 2.0], 2.0), ([VECTOR, VECTOR], VECTOR), (2.0, [2.0, 2.0]), ([1, 2, 3], [1, 2])],
)
def test_the_right_numbers_too_often_or_too_seldom_are_not_right(answer, truth, up_to_sign):
    """As broadcasting would have them."""
    assert "was expected; yours is" in said(answer, truth, up_to_sign=up_to_sign)


def test_a_small_number_is_not_a_wrong_zero():
    assert said(5e-7, 1e-4, mistakes={"nothing there": 0.0}) != "Not yet: nothing there."


# --- right ---------------------------------------------------------------------------------------


RIGHT = [
    (2, 2.0),
    (2.0005, 2.0),
    (np.float32(2), torch.tensor(2.0)),
    (Fraction(5, 6), 5 / 6),
    (Decimal("0.5"), 0.5),
    (torch.tensor([2.0]), 2.0),
    ([[2.0]], 2),
    ([0.3, 1.7, -0.6, 2.9], VECTOR),
    ((0.3, 1.7, -0.6, 2.9), VECTOR),
    (VECTOR.tolist(), tuple(VECTOR.tolist())),
    (VECTOR, tuple(VECTOR.tolist())),
    (VECTOR[None].numpy(), tuple(VECTOR.tolist())),
    (MATRIX.float().requires_grad_(), MATRIX),
    (MATRIX.numpy()[::-1, ::-1], MATRIX.flip(0, 1)),
    (MATRIX.to_sparse(), MATRIX),
    (MATRIX + 0j, MATRIX),
    ([VECTOR, VECTOR], torch.stack([VECTOR, VECTOR])),
    ((VECTOR, 2.0), (VECTOR, 2)),
    (1 + 2j, torch.tensor(1 + 2j)),
    (" Sigma ", "sigma"),
    (True, True),
    (np.bool_(False), False),
    # an axis of one entry too many or too few
    (VECTOR[None], VECTOR),
    (VECTOR[:, None], VECTOR),
    (VECTOR, VECTOR[None]),
    (MATRIX[None], MATRIX),
    # tuples of lists, lists of tuples
    (([25, 11], [11, 5]), torch.tensor([[25.0, 11], [11, 5]])),
    ([(25, 11), np.array([11, 5])], torch.tensor([[25.0, 11], [11, 5]])),
    (((0.3, 1.7, -0.6, 2.9), 3), (VECTOR, 3.0)),
    ([VECTOR.tolist(), 3], (VECTOR, 3.0)),
    # a set: in any order
    ([7, 0, 11, 9], {0, 7, 9, 11}),
    ({0, 7, 9, 11}, {0, 7, 9, 11}),
    (torch.tensor([11, 9, 7, 0]), {0, 7, 9, 11}),
    # zeros, and what is zero but for rounding
    (math.sin(math.pi), 0),
    (1e-12, 0.0),
    ([0.2, 0.5, 0], torch.tensor([0.2, 0.5, -2e-9])),
    ((3.0, 2.4e-16), (3.0, 1.5e-8)),
    ((2.4e-16, 0.0, 0.3), (0.0, 1.5e-8, 0.3)),
    # three digits, for each entry of a tuple by its own size
    (0.667, 2 / 3),
    (-0.183, -11 / 60),
    (3.61, 13**0.5),
    (0.00391, 1 / 256),
    (2.0e-8, 4e-16**0.5),
    ([4, 3, 3.61], (4, 3, 13**0.5)),
    ((1230, 0.0123), (1234.0, 0.01234)),
]


@pytest.mark.parametrize("answer, truth", RIGHT)
def test_right_answers_are_right_in_any_form(answer, truth, capsys):
    verdict = check(answer, truth)
    assert verdict and verdict.ok is True
    assert capsys.readouterr().out == "Right.\n"


WRONG = [
    # a count is exact, however large
    (1224, 1225),
    (1226, 1225),
    (1224.51, 1225),
    (999_999, 1_000_000),
    ([12172, 4100, -12, 3], [12160, 4096, 0, 0]),
    ([12160, 4096, 10, 12], [12160, 4096, 0, 0]),
    (torch.tensor([12160.0, 4096, 0, 1]), [12160, 4096, 0, 0]),
    ((2, 2, 0), (2, 2, 1)),
    ([4, 2, 3.61], (4, 3, 13**0.5)),
    ([4, 3.01, 3.61], (4, 3, 13**0.5)),
    ([0, 7, 9], {0, 7, 9, 11}),
    ([0, 7, 9, 10], {0, 7, 9, 11}),
    ([0, 7, 9, 11, 11], {0, 7, 9, 11}),
    # a small entry of a tuple has a size of its own
    ((1234.0, 0.02), (1234.0, 0.01234)),
    ((12.0, -0.25), (12.0, -0.2)),
    # zeros
    (0.02, 0.0),
    (0.0, 2e-8),
    (1e-8, 2e-8),
    ((3.0, 0.1), (3.0, 0.0)),
    # not rounded, wrong
    (0.67, 2 / 3 * 1.02),
    (0.0726, 0.0717),
    (1j, 1.0),
    # axes that do mean something
    (MATRIX.mT, MATRIX),
    (VECTOR[:, None], VECTOR[None]),
    (MATRIX.flatten(), MATRIX),
    ([], 2),
    (np.zeros(0), 2),
    ((), VECTOR),
    (np.zeros((0, 4)), VECTOR),
    ([VECTOR.tolist(), 3], VECTOR),
    ("", "sigma"),
    (0, True),
    ("yes", True),
    (["sigma"], "sigma"),
    (3.5, "sigma"),
]


@pytest.mark.parametrize("answer, truth", WRONG)
def test_wrong_answers_are_wrong(answer, truth):
    assert said(answer, truth)


def test_a_row_pulled_by_the_library_is_right():
    import mathkit as mk

    u = torch.tensor([[1.0, 2.0]])
    assert check(mk.matrix([[1.0, 2.0], [4.0, 1.0]]).pull(u), [9.0, 4.0])


def test_three_digits_are_right_for_any_number():
    draws = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for truth in (10 ** (6 * draws - 3)).tolist():
        assert check(float(f"{truth:.3g}"), truth)
        assert not check(truth * (1 + 1.1 * ROUNDED), truth)
        assert not check(truth * (1 - 1.1 * ROUNDED), truth)


def test_decimals_that_were_asked_for_are_right():
    for answer in (0.35, 0.34, 0.36, 0.3512):
        assert check(answer, 0.3512, decimals=2).ok is (answer != 0.34)
    assert not check(0.37, 0.3512, decimals=2)
    assert check((0.1, 3), (0.0, 3), decimals=1)
    assert not check((0.1, 4), (0.0, 3), decimals=1)


def test_a_note_is_printed(capsys):
    check(1, 1, note="The sign was free.")
    assert capsys.readouterr().out == "Right. The sign was free.\n"


# --- never an error ------------------------------------------------------------------------------


class Stop(BaseException):
    """No Exception, as what a debugger raises."""


class Hostile:
    """Raises wherever it is touched."""

    def _raise(self, *args, **kwargs):
        raise Stop("do not touch")

    __eq__ = __bool__ = __len__ = __iter__ = __array__ = __float__ = __repr__ = __str__ = _raise
    __getattr__ = __call__ = __hash__ = __abs__ = __getitem__ = _raise


class HostileList(list):
    __iter__ = __len__ = Hostile._raise


class Unequal:
    def __eq__(self, other):
        raise RuntimeError("incomparable")

    __hash__ = None


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def endless():
    nest = []
    nest.append(nest)
    return nest


HOSTILE = [
    Hostile(),
    [Hostile()],
    (Hostile(), 2),
    HostileList([1, 2]),
    Unequal(),
    endless(),
    object(),
    {},
    {1, 2},
    {"a": 1},
    range(3),
    (x for x in [1, 2]),
    b"2",
    "2",
    10**400,
    float("nan"),
    float("inf"),
    -1e308,
    [float("inf"), 2],
    np.array([None, 1]),
    np.array("2020-01-01", dtype="datetime64[D]"),
    np.zeros((0, 3)),
    torch.zeros(0),
    torch.zeros(2, 0),
    torch.eye(2).to_sparse(),
    torch.eye(3).to_sparse(),
    torch.zeros(2, device="meta"),
    torch.ones(2, dtype=torch.bfloat16),
    torch.tensor([1 + 1j]).conj(),
    [torch.ones(2), torch.ones(3)],
    [[1, 2], [3]],
    type,
    print,
    exit,
]
TRUTHS = [2, 2.5, VECTOR, MATRIX, (VECTOR, 3.0), (1, 2), {0, 7}, "sigma", True, 0.0, [0, 1]]


@pytest.mark.parametrize("at", range(len(HOSTILE)))
def test_nothing_a_reader_writes_raises(at):
    for truth in TRUTHS:
        verdict = check(HOSTILE[at], truth, {"another": "tau"} if truth == "sigma" else None)
        assert not verdict and verdict.message.startswith("Not ")


def raising(error):
    def f(x):
        raise error

    return f


FUNCTIONS = [
    lambda x: sys.exit(),
    lambda x: exit(1),
    raising(Stop()),
    raising(Mute()),
    raising(RecursionError("deep")),
    lambda: 2,
    lambda x: Hostile(),
    lambda x: (y for y in x),
    lambda x: x.to_sparse()[None, None],
    lambda x, y: x,
    Hostile(),
    int,
    3,
]


@pytest.mark.parametrize("at", range(len(FUNCTIONS)))
def test_no_function_a_reader_writes_raises(at):
    assert check(FUNCTIONS[at], torch.exp, inputs=[torch.ones(2)]).ok is False


def test_the_readers_own_ctrl_c_gets_through():
    with pytest.raises(KeyboardInterrupt):
        check(raising(KeyboardInterrupt()), torch.exp, inputs=[torch.ones(2)])


def test_functions_are_tried_on_every_input():
    assert check(lambda x: x * x, torch.square, inputs=[torch.tensor(3.0), torch.tensor(-1.5)])
    assert check(lambda a, b: a + b, lambda a, b: b + a, inputs=[(1, 2), (3, 4)])
    assert check(torch.sin, lambda x: x.sin(), inputs=[torch.tensor(math.pi), torch.tensor(1.0)])


def test_a_function_that_spoils_its_input_spoils_only_its_own_copy():
    x = torch.ones(3)
    assert check(lambda v: v.mul_(2), lambda v: 2 * v, inputs=[x, x])
    assert torch.equal(x, torch.ones(3))


def test_directions_may_carry_either_sign():
    v = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0))).Q
    flipped = v * torch.tensor([1.0, -1, -1, 1])[:, None]
    assert check(flipped, v, up_to_sign=True)
    assert check(-v[0], v[0], up_to_sign=True)
    assert check((-v[0], 3.0), (v[0], 3.0), up_to_sign=True)
    assert not check((v[0], -3.0), (v[0], 3.0), up_to_sign=True)
    assert not check(-3.0, 3.0, up_to_sign=True)
    assert not check(flipped, v)
    assert "normalise" in said(-3 * v[0], v[0], up_to_sign=True)
    assert "transpose" in said(v.mT, v, up_to_sign=True)


# --- not attempted -------------------------------------------------------------------------------


def empty(x): ...


def unfinished(x):
    raise NotImplementedError


@pytest.mark.parametrize("answer", [None, ..., [..., 2], (None, None)])
@pytest.mark.parametrize("truth", [2, VECTOR, "sigma", True, (VECTOR, 2)])
def test_not_attempted_is_neither_right_nor_an_error(answer, truth, capsys):
    verdict = check(answer, truth)
    assert verdict.ok is None and not verdict
    assert "Not attempted" in capsys.readouterr().out


@pytest.mark.parametrize("answer", [None, ..., empty, unfinished])
def test_an_empty_function_is_not_attempted(answer):
    assert check(answer, torch.square, inputs=[torch.tensor(2.0)]).ok is None


# --- generic diagnoses ---------------------------------------------------------------------------

GENERIC = [
    (-VECTOR, VECTOR, "sign"),
    (MATRIX.mT, MATRIX, "transpose"),
    (MATRIX @ MATRIX.mT @ torch.tensor([[0.0, 1], [1, 1]]).double(), None, "transpose"),
    ((1.0, 2.0), (2.0, 1.0), "another order"),
    ([2.0, 1.0], torch.tensor([1.0, 2.0]), "reversed"),
    (9.61, 3.1, "square root is missing"),
    (3.1**0.5, 3.1, "one square root too many"),
    (6.2, 3.1, "2 times too large"),
    (1.55, 3.1, "factor of 2 is missing"),
    (0.7, 0.3, "complement"),
    (0.32258, 3.1, "1 over"),
    (31.0, 0.31, "percent"),
    (math.degrees(0.8), 0.8, "radians were asked"),
    (math.radians(30), 30.0, "degrees were asked"),
    (math.cos(0.8), 0.8, "arccos is missing"),
    (VECTOR.abs(), VECTOR, "absolute"),
    (VECTOR.flip(0), VECTOR, "reversed"),
    (VECTOR[[2, 0, 1, 3]], VECTOR, "another order"),
    (3.3 * VECTOR, VECTOR, "constant factor 3.3"),
    (4.2 * VECTOR / VECTOR.norm(), VECTOR / VECTOR.norm(), "length is 4.2"),
    (-3.0 * VECTOR / VECTOR.norm(), VECTOR / VECTOR.norm(), "constant factor -3"),
    (VECTOR + 0.37, VECTOR, "same 0.37"),
    (MATRIX.flatten(), MATRIX, "wrong shape"),
    ((0.0, 1.7), 1.7, "one number was asked, and one of yours is it"),
    (MATRIX, MATRIX.mean(0), "mean over axis 0"),
    (MATRIX, MATRIX.sum(1), "sum over axis 1"),
    (torch.zeros(5), VECTOR, "shape (4,) was expected; yours is (5,)"),
    (torch.full((4,), math.nan), VECTOR, "NaN"),
    (3.15, 3.1, "rounding"),
    (5.7, 3.1, "too large"),
    (1.1, 3.1, "too small"),
    (VECTOR + torch.tensor([0, 0, 1.0, 0]), VECTOR, "3 of 4 entries"),
    ((VECTOR, 5.7), (VECTOR, 2), "1 of 2 parts"),
    ((VECTOR, VECTOR, VECTOR), (VECTOR, VECTOR), "2 values were expected; yours are 3"),
    ("three", 3.0, "number or an array"),
    ({"a": 1}, 3, "number or an array"),
    (print, 3, "call it"),
    ("omega", "sigma", "that is not it"),
    (3.5, "sigma", "a word was expected"),
    (False, True, "that is not it"),
    (1224, 1225, "one too few"),
    (1226, 1225, "one too many"),
    (1224.51, 1225, "a whole number was asked"),
    (900, 1225, "too few"),
    ([12172, 4100, -12, 3], [12160, 4096, 0, 0], "0 of 4 entries"),
    ((10, 12288), (0, 10), "0 of 2 entries"),
    ([4, 3, 3.7], (4, 3, 13**0.5), "2 of 3 parts come out right; look at number 3"),
]


@pytest.mark.parametrize("answer, truth, words", GENERIC)
def test_the_mistake_is_named(answer, truth, words):
    truth = answer.mT if truth is None else truth
    assert words in said(answer, truth)


def test_no_message_gives_the_answer_away():
    for answer in (5.7, 1.1, 31.0, "three", torch.zeros(2)):
        assert "3.1234" not in said(answer, 3.1234)


def test_an_infinite_transform_of_the_truth_matches_nothing():
    assert "1 over" not in said(torch.tensor([5.0, 5.0]), torch.tensor([0.0, 1.0]))
    assert "exponential" not in said(3.0, 1e4)


def test_two_readings_of_one_number_are_both_named():
    words = said(4.0, 2.0)
    assert "square root is missing" in words and "2 times too large" in words


def test_function_mistakes_are_named_across_inputs():
    inputs = [torch.tensor(0.7), torch.tensor(1.9), torch.tensor(2.4)]
    assert "sign" in said(lambda x: -x.exp(), torch.exp, inputs=inputs)
    assert "constant factor 5" in said(lambda x: 5 * x.exp(), torch.exp, inputs=inputs)
    assert "stopped with ZeroDivisionError" in said(lambda x: 1 / 0, torch.exp, inputs=inputs)
    assert "a function was expected" in said(torch.tensor(2.0), torch.exp, inputs=inputs)
    relu = said(lambda x: x, lambda x: x.clamp(max=2), inputs=inputs)
    assert "2 of 3 inputs come out right; look at number 3" in relu


# --- the exercise's own mistakes -----------------------------------------------------------------


def test_listed_mistakes_come_first():
    mistakes = {"that is the variance: take its square root.": 9.61, "off by one": 4}
    assert said(9.61, 3.1, mistakes) == "Not yet: that is the variance: take its square root."
    assert said(4, 3.1, mistakes) == "Not yet: off by one."
    assert "sign" in said(-3.1, 3.1, mistakes)


def test_a_mistake_that_is_zero_is_no_other_small_number():
    mistakes = {"nothing is left": 0.0, "a tenth of a percent is left": 0.001}
    for tol in (0.02, ROUNDED):
        assert "nothing" in said(0, 0.0717, mistakes, tol=tol)
        assert "tenth" in said(0.001, 0.0717, mistakes, tol=tol)
        assert "too small" in said(0.0012, 0.0717, mistakes, tol=tol)


def test_a_listed_count_is_exact_as_well():
    mistakes = {"rounded down": 1224, "whole width": 4898}
    assert "rounded down" in said(1224, 1225, mistakes)
    assert said(4897, 1225, mistakes) == "Not yet: too many."


def test_listed_words_and_functions():
    assert "that is the other one" in said("b", "a", {"that is the other one": "b"})
    wrong = {"the square comes last": lambda x: (x * x).sum()}
    inputs = [torch.tensor([1.0, 2.0]), torch.tensor([0.5, -3.0])]
    assert "comes last" in said(lambda x: x @ x, lambda x: x.sum() ** 2, wrong, inputs=inputs)


def test_faulty_exercises_are_told_to_their_author():
    with pytest.raises(ValueError, match="equals the truth"):
        check(..., 2, {"not a mistake": 2.0})
    with pytest.raises(ValueError, match="inputs"):
        check(..., torch.exp)
    with pytest.raises(ValueError, match="something to compare"):
        check(1, None)
    with pytest.raises(ValueError, match="something to compare"):
        check(1, 2.0, {"not there": ...})
    with pytest.raises(ValueError, match="something to compare"):
        check(math.sin, math.cos, {"it fails": lambda x: 1 / 0}, inputs=[1.0])
    for value in (math.nan, math.inf, [1.0, math.inf], torch.zeros(0)):
        with pytest.raises(ValueError, match="finite and not empty"):
            check(1, value)
        with pytest.raises(ValueError, match="finite and not empty"):
            check(1, 2.0, {"out of bounds": value})


# --- the checker itself --------------------------------------------------------------------------


@pytest.mark.parametrize("slip", [1.006, 0.994, -1.0])
@pytest.mark.parametrize("entry", range(4))
def test_a_planted_error_in_one_entry_is_found(slip, entry):
    wrong = VECTOR.clone()
    wrong[entry] += (slip - 1) * VECTOR.abs().max()
    assert not check(wrong, VECTOR)


def test_right_answers_at_random_are_never_diagnosed_and_wrong_ones_never_pass():
    rng = torch.Generator().manual_seed(0)
    for _ in range(50):
        t = torch.randn(3, 3, generator=rng, dtype=torch.float64)
        assert check(t * (1 + 1e-5), t)
        assert not any(check(f(t), t) for f in TRANSFORMS.values() if not torch.equal(f(t), t))


def test_a_verdict_shows_nothing_of_its_own():
    assert Verdict(True, "Right.")._ipython_display_() is None


def test_a_zero_part_that_is_off_is_diagnosed_and_not_a_fault():
    def nearly(x):
        return 1e-3 * x if x else 5e-4

    verdict = check(nearly, lambda x: 1e-3 * x, inputs=[1.0, 2.0, 0.0])
    assert verdict.ok is False and "look at number 3" in verdict.message
    assert "expected" in check([1, 2], "ab").message
