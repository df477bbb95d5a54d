"""Searches side by side: the same answers in an eighth of the calls, and no thread left behind."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import UNTRAINED, make_tiny_unet
from torch import Tensor

import mathkit as mk
from mathkit.diffusion import model, networks
from mathkit.diffusion.encoder import MAPS
from mathkit.linear import chunks
from mathkit.linear._tape import convolution
from mathkit.linear._tape.tape import Tape
from mathkit.tools import lockstep
from mathkit.tools.lockstep import side_by_side

pytestmark = UNTRAINED


@pytest.fixture(scope="module")
def p() -> Any:
    return networks.UNetModel(make_tiny_unet(), model.linear_schedule(1000), "epsilon")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many directions each pass of a tape had."""
    seen: list[int] = []
    for name in ("push", "pull"):
        run = getattr(Tape, name)

        def counted(tape: Tape, rows: Tensor, run: Callable[..., Tensor] = run) -> Tensor:
            seen.append(len(rows) * tape.in_shape[0])
            return run(tape, rows)

        monkeypatch.setattr(Tape, name, counted)
    return seen


def five(A: mk.LinearMap) -> Any:
    return mk.svd(A, 5, tol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("name", MAPS)
def test_each_answer_is_the_svd_at_its_own_point(p: Any, name: str) -> None:
    f, x = MAPS[name](p, 500), torch.randn(3, 3, 16, 16)
    for point, r in zip(x, side_by_side(f, x, five), strict=True):
        A = mk.jacobian(f, point[None])
        exact = torch.linalg.svdvals(A.dense().double())
        torch.testing.assert_close(r.S.double(), exact[:5], rtol=0, atol=1e-4 * float(exact[0]))
        scale = r.S.reshape(5, *[1] * len(A.out_shape)), r.S.reshape(5, 1, 1, 1)
        for off in (A.push(r.V) - scale[0] * r.U, A.pull(r.U) - scale[1] * r.V):
            assert off.flatten(1).norm(dim=1).max() <= 1.1e-4 * r.S[0]


@pytest.mark.long
def test_eight_points_take_at_most_a_sixth_of_the_calls(p: Any, calls: list[int]) -> None:
    f, x = MAPS["h"](p, 500), torch.randn(8, 3, 16, 16)
    side_by_side(f, x, five)  # its tape compared with autograd
    mk.jacobian(f, x[:1])
    calls.clear()
    side_by_side(f, x, five)
    together = len(calls)
    calls.clear()
    for point in x:
        five(mk.jacobian(f, point[None]))
    assert together <= len(calls) / 6


def test_searches_of_unequal_length_and_out_of_step(p: Any) -> None:
    f, x = MAPS["h"](p, 500), torch.randn(4, 3, 16, 16)
    ranks = iter([1, 6, 3, 2])

    def search(A: mk.LinearMap) -> Any:
        k = next(ranks)
        A.push(torch.randn(k, 3, 16, 16))
        return mk.svd(A, k)

    for point, r in zip(x, side_by_side(f, x, search), strict=True):
        exact = mk.svd(mk.jacobian(f, point[None]), len(r.S)).S
        torch.testing.assert_close(r.S, exact, rtol=0, atol=2e-3 * float(exact[0]))


def test_the_answers_keep_the_type_of_the_points() -> None:
    M = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64)).Q * 0.7 ** torch.arange(40)
    x = torch.randn(3, 40, dtype=torch.float64)
    for point, r in zip(x, side_by_side(lambda x: (x @ M.T).sin(), x, tight), strict=True):
        exact = torch.linalg.svdvals((M @ point).cos()[:, None] * M)
        assert {part.dtype for part in (*r, r.residuals)} == {torch.float64}
        torch.testing.assert_close(r.S, exact[:3], rtol=1e-9, atol=0)


def tight(A: mk.LinearMap) -> Any:
    return mk.svd(A, 3, tol=1e-10)


def test_passes_are_not_rounded_by_autocast() -> None:
    M = torch.linalg.qr(torch.randn(40, 40)).Q * 0.7 ** torch.arange(40)

    def f(x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return (x @ M.T).sin()

    x = torch.randn(3, 40)
    with torch.autocast("cpu", torch.bfloat16):
        found = side_by_side(f, x, five)
    for point, r in zip(x, found, strict=True):
        exact = torch.linalg.svdvals(((M @ point).cos()[:, None] * M).double())
        torch.testing.assert_close(r.S.double(), exact[:5], rtol=0, atol=1e-4 * float(exact[0]))


def test_no_pass_takes_more_directions_than_keep_the_device_busy(
    calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(3, 12)
    monkeypatch.setitem(chunks.TAPE, "cpu", 4 * 2 * x.numel())  # four of each point
    V = torch.randn(9, 12)
    for point, pushed in zip(x, side_by_side(torch.sin, x, lambda A: A.push(V)), strict=True):
        torch.testing.assert_close(pushed, V * point.cos())
    assert max(calls) <= 4 * 3 and sum(calls) >= 9 * 3
    assert side_by_side(torch.sin, x, lambda A: A.batch) == [4, 4, 4]


def test_where_f_has_no_tape_it_is_one_at_a_time() -> None:
    weights = torch.linspace(1, 2, 12)

    def f(x: Tensor) -> Tensor:
        return torch.fft.fft(x).real * weights

    x = torch.randn(3, 12)
    exact = torch.linalg.svdvals(f(torch.eye(12)))
    for r in side_by_side(f, x, lambda A: mk.svd(A, 2)):
        torch.testing.assert_close(r.S, exact[:2], rtol=1e-3, atol=0)


@pytest.mark.parametrize("at_fault", ["point", "value"])
def test_a_point_at_fault_says_so_and_harms_no_other(at_fault: str) -> None:
    def f(x: Tensor) -> Tensor:
        return (x - 1).log() if at_fault == "value" else x.sin()

    x = torch.full((3, 12), 2.0) + torch.linspace(0, 1, 12)
    x[1, 5] = torch.nan if at_fault == "point" else 0.5
    one, two, three = side_by_side(f, x, lambda A: mk.svd(A, 2))
    told = "the point x holds NaN" if at_fault == "point" else r"f\(x\) holds NaN"
    assert isinstance(two, ValueError)
    with pytest.raises(ValueError, match=told):
        raise two
    slopes = 1 / (x[0] - 1) if at_fault == "value" else x[0].cos()
    exact = slopes.abs().sort(descending=True).values[:2]
    for r in (one, three):
        torch.testing.assert_close(r.S, exact, rtol=1e-3, atol=0)


def test_one_that_fails_does_not_harm_the_others(p: Any) -> None:
    f, x = MAPS["h"](p, 500), torch.randn(3, 3, 16, 16)
    turns = iter(range(3))

    def search(A: mk.LinearMap) -> Any:
        if next(turns) == 1:
            A.push(torch.full((1, 3, 16, 16), torch.inf))
        return mk.svd(A, 1)

    one, two, three = side_by_side(f, x, search)
    assert isinstance(two, ValueError) and one.S[0] > 0 and three.S[0] > 0


@pytest.mark.parametrize("after", [0, 3])
def test_an_interrupt_ends_all_and_leaves_no_thread(p: Any, after: int) -> None:
    f, x = MAPS["h"](p, 500), torch.randn(3, 3, 16, 16)
    before, turns = threading.active_count(), iter(range(3))

    def search(A: mk.LinearMap) -> Any:
        mine = next(turns)
        for _ in range(after):
            A.push(torch.ones(1, 3, 16, 16))
        if mine == 2:
            raise KeyboardInterrupt
        return mk.svd(A, 1)

    with pytest.raises(KeyboardInterrupt):
        side_by_side(f, x, search)
    assert threading.active_count() == before


def test_a_pass_that_fails_fails_for_those_who_asked(
    p: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Tape, "push", lambda tape, rows: fails())
    monkeypatch.setattr(lockstep, "record", lambda f, x: Tape([], 0, (2, 3), (2, 3)))
    found = side_by_side(torch.sin, torch.zeros(2, 3), lambda A: mk.svd(A, 1, max_passes=2))
    assert [type(one) for one in found] == [torch.OutOfMemoryError] * 2


def test_what_may_be_rounded_is_not_mixed_with_what_may_not(
    p: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, int]] = []
    run = lockstep.Lockstep._pass

    def watched(self: Any, side: Any, rows: Any) -> Any:
        inside = []
        push = Tape.push
        monkeypatch.setattr(
            Tape, "push", lambda t, v: inside.append(convolution.is_coarse()) or push(t, v)
        )
        answer = run(self, side, rows)
        monkeypatch.setattr(Tape, "push", push)
        seen.append((inside[0], len(rows)))
        return answer

    monkeypatch.setattr(lockstep.Lockstep, "_pass", watched)
    f, x, turns = MAPS["h"](p, 500), torch.randn(3, 3, 16, 16), iter(range(3))

    def search(A: mk.LinearMap) -> Any:
        with convolution.coarse(next(turns) > 0):
            return A.push(torch.ones(1, 3, 16, 16))

    side_by_side(f, x, search)
    assert sorted(seen) == [(False, 1), (True, 2)]
