"""Each diagnosis is named for the mistake it describes, and right answers are never diagnosed."""

import math

import numpy as np
import pytest
import torch

from mathkit.exercises import TRANSFORMS, Verdict, check

VECTOR = torch.tensor([0.3, 1.7, -0.6, 2.9], dtype=torch.float64)
MATRIX = torch.tensor([[1.0, 2.0, 0.5], [3.0, -1.0, 4.0]], dtype=torch.float64)


def said(answer, truth, *args, **kwargs):
    verdict = check(answer, truth, *args, **kwargs)
    assert verdict.ok is False and not verdict
    return verdict.message


# --- right ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer, truth",
    [
        (2, 2.0),
        (2.0005, 2),
        (np.float32(2), torch.tensor(2.0)),
        (torch.tensor([2.0]), 2),
        ([0.3, 1.7, -0.6, 2.9], VECTOR),
        (MATRIX.float().requires_grad_(), MATRIX),
        (MATRIX.numpy()[::-1, ::-1], MATRIX.flip(0, 1)),
        ([VECTOR, VECTOR], torch.stack([VECTOR, VECTOR])),
        ((VECTOR, 2.0), (VECTOR, 2)),
        (1 + 2j, torch.tensor(1 + 2j)),
        (" Sigma ", "sigma"),
        (True, True),
        (np.bool_(False), False),
        (math.sin(math.pi), 0),
    ],
)
def test_right_answers_are_right_in_any_form(answer, truth, capsys):
    verdict = check(answer, truth)
    assert verdict and verdict.ok is True
    assert capsys.readouterr().out == "Right.\n"


def test_name_and_note_are_printed(capsys):
    check(1, 1, name="Exercise 2", note="The sign was free.")
    assert capsys.readouterr().out == "Exercise 2: Right. The sign was free.\n"


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
    (9.61, 3.1, "square root is missing"),
    (3.1**0.5, 3.1, "one square root too many"),
    (6.2, 3.1, "2 times too large"),
    (1.55, 3.1, "factor of 2 is missing"),
    (0.7, 0.3, "complement"),
    (0.32258, 3.1, "1 over"),
    (31.0, 0.31, "percent"),
    (0.31, 31.0, "percent was asked"),
    (math.degrees(0.8), 0.8, "radians were asked"),
    (math.radians(30), 30, "degrees were asked"),
    (math.cos(0.8), 0.8, "arccos is missing"),
    (math.log(5), 5, "one logarithm too many"),
    (math.exp(1.3), 1.3, "a logarithm is missing"),
    (math.log10(7), math.log(7), "base 10"),
    (math.log2(7), math.log(7), "base 2"),
    (VECTOR.abs(), VECTOR, "absolute"),
    (VECTOR.flip(0), VECTOR, "reversed"),
    (VECTOR[[2, 0, 1, 3]], VECTOR, "another order"),
    (3.3 * VECTOR, VECTOR, "constant factor 3.3"),
    (4.2 * VECTOR / VECTOR.norm(), VECTOR / VECTOR.norm(), "length is 4.2"),
    (-3.0 * VECTOR / VECTOR.norm(), VECTOR / VECTOR.norm(), "constant factor -3"),
    (VECTOR / VECTOR.norm(), VECTOR, "should not be normalised"),
    (VECTOR + 0.37, VECTOR, "same 0.37"),
    (torch.cat([MATRIX, MATRIX]) + torch.tensor([1.0, 5, -2]), torch.cat([MATRIX, MATRIX]), "row"),
    (MATRIX[None], MATRIX, "wrong shape"),
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
    ("three", 3, "number or an array"),
    ({"a": 1}, 3, "number or an array"),
    (print, 3, "call it"),
    ("omega", "sigma", "'omega' is not it"),
    (3.5, "sigma", "a str was expected"),
    (torch.zeros(3), True, "a bool was expected"),
]


@pytest.mark.parametrize("answer, truth, words", GENERIC)
def test_the_mistake_is_named(answer, truth, words):
    truth = answer.mT if truth is None else truth
    assert words in said(answer, truth)


@pytest.mark.parametrize("factor, words", [(8, "a sum"), (1 / 8, "a mean"), (8 / 7, "n - 1; n")])
def test_count_tells_sum_mean_and_unbiased_apart(factor, words):
    assert words in said(factor * 0.83, 0.83, count=8)
    assert words in said(factor * VECTOR, VECTOR, count=8)


def test_no_message_gives_the_answer_away():
    for answer in (5.7, 1.1, 31.0, "three", torch.zeros(2)):
        assert "3.1234" not in said(answer, 3.1234)


def test_an_infinite_transform_of_the_truth_matches_nothing():
    assert "1 over" not in said(torch.tensor([5.0, 5.0]), torch.tensor([0.0, 1.0]))
    assert "exponential" not in said(3.0, 1e4)


def test_two_readings_of_one_number_are_both_named():
    words = said(4, 2)
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
    mistakes = {"that is the variance: take its square root.": 9.61, "off by one": lambda a: a == 4}
    assert said(9.61, 3.1, mistakes) == "Not yet: that is the variance: take its square root."
    assert said(4, 3.1, mistakes) == "Not yet: off by one."
    assert "sign" in said(-3.1, 3.1, mistakes)


def test_listed_words_and_functions():
    assert "that is the other one" in said("b", "a", {"that is the other one": "b"})
    wrong = {"the square comes last": lambda x: (x * x).sum()}
    inputs = [torch.tensor([1.0, 2.0]), torch.tensor([0.5, -3.0])]
    assert "comes last" in said(lambda x: x @ x, lambda x: x.sum() ** 2, wrong, inputs=inputs)


def test_a_predicate_that_trips_over_the_answer_is_skipped():
    assert "number or an array" in said("x", 3, {"negative": lambda a: a < 0})
    assert "too large" in said(5.7, 3.1, {"longer": lambda a: len(a) > 2})


def test_faulty_exercises_are_told_to_their_author():
    with pytest.raises(ValueError, match="equals the truth"):
        check(..., 2, {"not a mistake": 2.0})
    with pytest.raises(ValueError, match="inputs"):
        check(..., torch.exp)
    with pytest.raises(ValueError, match="something to compare"):
        check(1, None)


# --- the checker itself --------------------------------------------------------------------------


@pytest.mark.parametrize("slip", [1.003, 0.997, -1.0])
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
