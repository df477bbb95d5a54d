"""Linear maps against dense matrices, NumPy, SciPy and the theorems they must obey."""

import math
import operator
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mathkit as mk
from mathkit.linear import linear_map as maps
from mathkit.tools import timing

f64 = pytest.mark.usefixtures("float64")


def rows(k, shape, dtype=None):
    return torch.randn(k, *shape, dtype=dtype)


# --- LinearMap, matrix, mask ------------------------------------------------------------------


@f64
@pytest.mark.parametrize("m, n", [(3, 5), (5, 3), (1, 4), (4, 1), (2, 2)])
def test_matrix_pushes_and_pulls_as_the_matrix_does(m, n):
    M = torch.randn(m, n)
    A = mk.matrix(M)
    V, U = torch.randn(7, n), torch.randn(7, m)
    assert (A.in_shape, A.out_shape, A.T.in_shape, A.T.out_shape) == ((n,), (m,), (m,), (n,))
    torch.testing.assert_close(A.push(V), torch.stack([M @ v for v in V]))
    torch.testing.assert_close(A.pull(U), torch.stack([M.T @ u for u in U]))
    torch.testing.assert_close(A.T.push(U), A.pull(U))
    torch.testing.assert_close(A.T.T.push(V), A.push(V))
    torch.testing.assert_close(A.dense(), M)
    torch.testing.assert_close(A.T.dense(), M.T)


@f64
def test_product_and_its_transpose():
    M, N = torch.randn(3, 4), torch.randn(4, 6)
    P = mk.matrix(M) @ mk.matrix(N)
    torch.testing.assert_close(P.dense(), M @ N)
    torch.testing.assert_close(P.T.dense(), (M @ N).T)
    assert (P.in_shape, P.out_shape) == ((6,), (3,))


def test_passes_are_shared_by_transposes():
    A = mk.matrix(torch.randn(3, 4))
    A.push(rows(2, (4,)))
    A.T.push(rows(3, (3,)))
    assert A.passes == A.T.passes == A.T.T.passes == (2, 3)


def combined(A, B):
    """Maps made of A and B, both 3 x 3: how often a pass of each runs A and B."""
    return [(A @ B, 1, 1), (A + B, 1, 1), (A - B, 1, 1), (2 * A, 1, 0), (A / 2, 1, 0), (-A, 1, 0),
            (A @ A, 2, 0), (A + A, 2, 0), ((A @ B) + A, 2, 1)]  # fmt: skip


@pytest.mark.parametrize("which", range(9))
def test_what_is_made_of_maps_counts_its_own_passes_and_they_theirs(which):
    A, B = mk.matrix(torch.randn(3, 3)), mk.matrix(torch.randn(3, 3))
    A.push(rows(7, (3,))), B.pull(rows(9, (3,)))
    P, of_A, of_B = combined(A, B)[which]
    assert P.passes == (0, 0)
    P.push(rows(4, (3,))), P.pull(rows(2, (3,)))
    P.T.push(rows(3, (3,)))
    assert P.passes == P.T.passes == (4, 5)
    assert A.passes == (7 + 4 * of_A, 5 * of_A)
    assert B.passes == (4 * of_B, 9 + 5 * of_B)
    A.push(rows(1, (3,)))
    assert P.passes == (4, 5)


def test_a_square_runs_both_ways_of_its_factor():
    B = mk.matrix(torch.randn(4, 5))
    gram = B.T @ B
    gram.push(rows(1, (5,)))
    gram.pull(rows(2, (5,)))
    assert B.passes == (3, 3) and gram.passes == (1, 2)


def test_a_pass_that_fails_is_not_counted():
    A = mk.LinearMap(lambda V: V[:, :1], lambda U: None, 2, 2)
    for run in (A.push, A.pull):
        with pytest.raises(ValueError):
            run(torch.ones(3, 2))
        with pytest.raises(ValueError):
            run(torch.full((3, 2), math.inf))
    assert A.passes == (0, 0)


def test_passes_of_a_masked_map_are_the_passes_of_the_map():
    A = mk.matrix(torch.randn(4, 3))
    P = mk.mask(torch.tensor([True, False, True, True])) @ A
    P.push(rows(3, (3,)))
    P.pull(rows(2, (4,)))
    assert P.passes == A.passes == (3, 2)
    assert (A.passes.push, A.passes.pull) == (3, 2)


def test_dense_costs_the_smaller_side():
    tall, wide = mk.matrix(torch.randn(9, 4)), mk.matrix(torch.randn(4, 9))
    tall.dense(), wide.dense()
    assert tall.passes == (4, 0)
    assert wide.passes == (0, 4)


@f64
def test_mask_is_a_diagonal_map_and_its_own_transpose():
    w = torch.randn(2, 3)
    D = mk.mask(w)
    torch.testing.assert_close(D.dense(), torch.diag(w.flatten()))
    torch.testing.assert_close(D.T.dense(), D.dense())


def test_mask_keeps_the_precision_of_what_it_masks():
    A = mk.mask(torch.tensor([True, False])) @ mk.matrix(torch.randn(2, 3, dtype=torch.float64))
    assert A.push(rows(1, (3,), torch.float64)).dtype == A.dtype == torch.float64
    assert A.dense()[1].abs().max() == 0


def test_matrix_takes_lists_integers_and_arrays():
    for M in ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]]), torch.tensor([[1, 2], [3, 4]])):
        A = mk.matrix(M)
        assert A.dense().tolist() == [[1, 2], [3, 4]]
        assert A.dense().dtype == torch.get_default_dtype()


def test_results_carry_no_graph():
    A = mk.matrix(torch.randn(3, 2, requires_grad=True))
    assert not A.push(torch.randn(1, 2, requires_grad=True)).requires_grad
    B = mk.LinearMap(lambda V: V.exp(), lambda U: U, (2,), (2,))
    assert not B.push(torch.randn(1, 2, requires_grad=True)).requires_grad


def test_what_comes_back_as_it_went_in_carries_no_graph_either():
    same, V = mk.LinearMap(lambda V: V, lambda U: U, 2, 2), torch.randn(1, 2, requires_grad=True)
    for A in (same, same @ same):
        assert not A.push(V).requires_grad and not A.pull(V).requires_grad
    assert V.requires_grad


def test_a_shape_that_does_not_fit_says_what_does():
    A = mk.matrix(torch.randn(3, 4))
    with pytest.raises(ValueError, match=r"push takes rows \(k, 4\).*v\[None\]"):
        A.push(torch.randn(4))
    with pytest.raises(ValueError, match=r"pull takes rows \(k, 3\)"):
        A.pull(torch.randn(2, 4))
    with pytest.raises(ValueError, match="k >= 1"):
        A.push(torch.randn(0, 4))
    with pytest.raises(ValueError, match="takes a tensor"):
        A.push([[1.0, 2.0, 3.0, 4.0]])
    with pytest.raises(ValueError, match="A.in_shape == B.out_shape"):
        A @ A
    with pytest.raises(ValueError, match="must answer"):
        mk.LinearMap(lambda V: V[:, :1], lambda U: U, (2,), (2,)).push(torch.randn(1, 2))


@pytest.mark.parametrize(
    "M", [torch.randn(3), torch.zeros(0, 3), torch.eye(2) * 1j, torch.tensor([[math.nan, 1.0]])]
)
def test_matrix_refuses_what_is_no_real_finite_matrix(M):
    with pytest.raises(ValueError, match="real finite"):
        mk.matrix(M)


def test_mask_refuses_what_is_no_weight():
    wrong = [
        [math.nan],
        torch.ones(2) * 1j,
        torch.empty(0),
        torch.empty(3, 0),
        "w",
        None,
        [[1], [1, 2]],
    ]
    for w in wrong:
        with pytest.raises(ValueError, match="mask takes bool or finite real weights"):
            mk.mask(w)


# --- sums, multiples, A @ v -------------------------------------------------------------------


@f64
def test_the_algebra_of_maps_is_the_algebra_of_matrices():
    M, N, K = torch.randn(3, 4), torch.randn(3, 4), torch.randn(4, 2)
    A, B, C = map(mk.matrix, (M, N, K))
    pairs = [
        (A + B, M + N),
        (A - B, M - N),
        (2.5 * A, 2.5 * M),
        (A * -3, -3 * M),
        (-A, -M),
        (A / 3, M / 3),
        (0 * A, 0 * M),
        (2 * A - B / 4 + (A + B) * 0.5, 2 * M - N / 4 + (M + N) / 2),
        ((A - 2 * B) @ C, (M - 2 * N) @ K),
        (A @ C - B @ (3 * C), M @ K - 3 * N @ K),
    ]
    for P, dense in pairs:  # dense() is pushes or pulls: here both
        assert P.shape == dense.shape and P.T.shape == dense.T.shape
        torch.testing.assert_close(P.push(torch.eye(P.shape[1])), dense.T)
        torch.testing.assert_close(P.pull(torch.eye(P.shape[0])), dense)
        torch.testing.assert_close(P.T.push(torch.eye(P.shape[0])), dense)
        assert mk.check_adjoint(P) < 1e-12


@f64
def test_theorems_of_the_transpose():
    A, B, C = (mk.matrix(torch.randn(*s)) for s in ((3, 4), (3, 4), (4, 5)))
    for left, right in [
        ((A + B).T, A.T + B.T),
        ((A - B).T, A.T - B.T),
        ((7 * A).T, 7 * A.T),
        ((A @ C).T, C.T @ A.T),
        ((A + B) @ C, A @ C + B @ C),
    ]:
        torch.testing.assert_close(left.dense(), right.dense())
    assert (A - A).dense().abs().max() == 0


@f64
def test_a_map_is_linear_and_a_bent_one_is_seen():
    A = 2 * mk.matrix(torch.randn(3, 4)) - mk.matrix(torch.randn(3, 4))
    bent = A + mk.LinearMap(lambda V: V[:, :3].abs(), A.pull, 4, 3)
    v, w, a, b = torch.ones(4), torch.ones(4), 2.0, -3.0  # |a + b| is not a + b
    gap = [(L @ (a * v + b * w) - a * (L @ v) - b * (L @ w)).norm() for L in (A, bent)]
    assert gap[0] < 1e-12 and gap[1] > 3


def test_a_sum_whose_pull_forgets_a_part_is_seen():
    A, B = mk.matrix(torch.eye(5)), mk.matrix(torch.ones(5, 5))
    assert mk.check_adjoint(A + B) < 1e-6
    with pytest.raises(AssertionError, match="not the transpose"):
        mk.check_adjoint(mk.LinearMap((A + B).push, A.pull, 5, 5))


@f64
def test_one_direction_goes_through_at():
    M, N = torch.randn(3, 4), torch.randn(4, 6)
    A, B, v, u = mk.matrix(M), mk.matrix(N), torch.randn(6), torch.randn(3)
    torch.testing.assert_close(B @ v, N @ v)
    torch.testing.assert_close((A @ B) @ v, A @ (B @ v))
    torch.testing.assert_close(A.T @ u, M.T @ u)
    assert A.passes == (2, 1)
    w = torch.randn(2, 3)
    torch.testing.assert_close(mk.mask(w) @ torch.ones(2, 3), w)
    assert mk.mask(torch.tensor(2.0)) @ torch.tensor(3.0) == 6


@pytest.mark.parametrize(
    "v, got",
    [
        (torch.ones(4, 4), r"torch.float32 \(4, 4\)"),
        (torch.ones(1, 4), r"\(1, 4\)"),
        (torch.ones(3), r"\(3,\)"),
        (np.ones(4), "ndarray"),
        ([1.0] * 4, "list"),
        (2, "2"),
    ],
)
def test_at_takes_one_direction_and_says_where_several_go(v, got):
    A = mk.matrix(torch.randn(3, 4))
    with pytest.raises(ValueError, match=got + r": A\.push\(rows\)"):
        A @ v
    assert A.passes == (0, 0)


@pytest.mark.parametrize("s", [2, 2.0, np.float16(2), np.float32(2), np.float64(2), np.int64(2),
                               Fraction(2), torch.tensor(2.0), torch.tensor(2),
                               torch.tensor(2.0, dtype=torch.float16)])  # fmt: skip
def test_every_real_number_multiplies_from_either_side(s):
    M = torch.randn(2, 3)
    A = mk.matrix(M)
    assert torch.equal((s * A).dense(), 2 * M) and torch.equal((A * s).dense(), 2 * M)
    assert torch.equal((A / s).dense(), M / 2)
    assert (s * A).dense().dtype == (s * A).dtype == torch.float32


@pytest.mark.parametrize("s", [True, 2j, math.nan, -math.inf, "2", None, [2], 10**400, np.True_,
                               np.ones(2), torch.tensor(True), torch.tensor(2j), torch.ones(1),
                               torch.tensor(math.nan), torch.ones(3)])  # fmt: skip
def test_nothing_else_multiplies(s):
    A = mk.matrix(torch.randn(2, 3))
    for run in (lambda: A * s, lambda: s * A, lambda: A / s):
        with pytest.raises(ValueError, match="divided by is a finite number"):
            run()


def test_operators_say_what_they_take():
    A, B = mk.matrix(torch.randn(3, 4)), mk.matrix(torch.randn(4, 3))
    for zero in (0, 0.0, torch.tensor(0.0)):
        with pytest.raises(ValueError, match="other than 0"):
            A / zero
    with pytest.raises(ValueError, match="A @ B composes"):
        A * B
    for run in (operator.add, operator.sub):
        with pytest.raises(ValueError, match=r"\(4,\) -> \(3,\) and \(3,\) -> \(4,\)"):
            run(A, B)
        for other in (1, torch.randn(3, 4), np.ones((3, 4))):
            with pytest.raises(ValueError, match="takes a LinearMap.*mk.matrix"):
                run(A, other)


# --- what goes in, and in which type ----------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("weights", [torch.float32, torch.float64])
def test_integer_directions_are_numbers_to_every_map(dtype, weights):
    w = torch.tensor([0.5, 2.0, 3.0], dtype=weights)
    one_hot = torch.eye(3).to(dtype)
    x = torch.zeros(1, 3, dtype=weights)
    for A in (mk.mask(w), mk.matrix(torch.diag(w)), mk.jacobian(lambda x: x * w, x),
              mk.mask(w) @ mk.mask(torch.ones(3)), mk.mask(w) + 0 * mk.mask(w)):  # fmt: skip
        for out in (A.push(one_hot), A.pull(one_hot)):
            torch.testing.assert_close(out, torch.diag(w), rtol=0, atol=0)  # dtype too
        assert torch.equal(A @ one_hot[0], A.push(one_hot)[0])


def test_integer_directions_of_a_map_without_a_type_take_the_default():
    kept = mk.mask(torch.tensor([True, False]))
    for default in (torch.float64, torch.float32):
        before = torch.get_default_dtype()
        torch.set_default_dtype(default)
        try:
            out = kept.push(torch.tensor([[3, 4]]))
        finally:
            torch.set_default_dtype(before)
        assert out.dtype == default and out.tolist() == [[3, 0]]


FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("of_rows", FLOATS)
@pytest.mark.parametrize("of_map", FLOATS)
def test_rows_and_map_meet_in_torchs_promotion(of_map, of_rows):
    meet = torch.promote_types(of_map, of_rows)
    M, V = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=of_map), torch.eye(2, dtype=of_rows)
    for A, dense in ((mk.matrix(M), M), (mk.mask(M[0]), torch.diag(M[0]))):
        assert A.push(V).dtype == A.pull(V).dtype == meet
        assert torch.equal(A.pull(V), dense.to(meet)) and torch.equal(A.push(V), dense.T.to(meet))
    for whole in (mk.mask([2, 1]), mk.mask([True, False])):  # no type of their own
        assert whole.push(V).dtype == of_rows


@pytest.mark.parametrize("a", FLOATS)
@pytest.mark.parametrize("b", [*FLOATS, None])
def test_maps_made_of_two_draw_directions_in_the_finer_type(a, b):
    A = mk.mask(torch.ones(2, dtype=a))
    B = mk.mask(torch.ones(2, dtype=b or torch.bool))
    finer = torch.promote_types(a, b) if b else a
    for P in (A @ B, B @ A, A + B, B - A):
        assert P.dtype == P.T.dtype == P.dense().dtype == finer
    assert (-A).dtype == (A / 2).dtype == a


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["push", "pull"])
def test_no_map_takes_a_direction_that_is_not_finite(bad, name):
    M, V = torch.eye(3), torch.tensor([[0.0, 1.0, 2.0], [0.0, bad, 0.0]])
    asked = []
    plain = mk.LinearMap(lambda V: asked.append(V) or V, lambda U: asked.append(U) or U, 3, 3)
    for A in (mk.matrix(M), mk.mask(M[0]), mk.jacobian(torch.sin, M[:1]), plain, plain + plain):
        with pytest.raises(ValueError, match=f"{name}: the direction is not finite.*NaN or inf"):
            getattr(A, name)(V)
    with pytest.raises(ValueError, match="not finite"):
        plain @ V[1]
    assert asked == []


def test_what_is_no_row_is_refused_in_words():
    A = mk.matrix(torch.eye(2))
    with pytest.raises(ValueError, match=r"push takes real rows, got torch.complex64"):
        A.push(torch.eye(2) * 1j)
    with pytest.raises(ValueError, match=r"got ndarray: torch.from_numpy"):
        A.push(np.eye(2))
    with pytest.raises(ValueError, match=r"pull takes a tensor, got NoneType$"):
        A.pull(None)


@pytest.mark.parametrize(
    "answer, got",
    [
        (None, "None"),
        (np.ones((1, 2)), "ndarray"),
        (torch.ones(1, 2) * 1j, "complex64"),
        (torch.ones(1), r"\(1,\)"),
    ],
)
def test_an_answer_that_is_no_row_is_refused_in_words(answer, got):
    A = mk.LinearMap(lambda V: answer, lambda U: answer, 2, 2)
    for name in ("push", "pull"):
        with pytest.raises(ValueError, match=rf"{name} must answer a real \(1, 2\), gave .*{got}"):
            getattr(A, name)(torch.ones(1, 2))


@pytest.mark.parametrize(
    "given, shape",
    [(4, (4,)), (np.int64(4), (4,)), ([2, 3], (2, 3)), (torch.Size([2]), (2,)), ((), ())],
)
def test_shapes_are_sizes(given, shape):
    A = mk.LinearMap(lambda V: V, lambda U: U, given, given)
    assert A.in_shape == A.out_shape == shape and A.shape == (math.prod(shape),) * 2
    assert all(type(size) is int for size in A.in_shape)
    torch.testing.assert_close(A.dense(), torch.eye(math.prod(shape)))


def test_a_map_is_made_of_functions_sizes_and_a_type():
    def same(V):
        return V

    for wrong in (0, -1, 2.0, True, None, "ab", (2, 0), (2, 3.0), torch.ones(2)):
        for shapes in ((wrong, 2), (2, wrong)):
            with pytest.raises(ValueError, match="each size of the shape .* is an integer >= 1"):
                mk.LinearMap(same, same, *shapes)
    with pytest.raises(ValueError, match="functions of rows: mk.matrix"):
        mk.LinearMap(torch.eye(2), torch.eye(2), 2, 2)
    for wrong in (torch.int64, torch.complex64, np.float32, "float32"):
        with pytest.raises(ValueError, match="floating-point type of torch"):
            mk.LinearMap(same, same, 2, 2, wrong)


@pytest.mark.parametrize(
    "wrong, cure",
    [
        (torch.eye(2), r"got Tensor: mk\.matrix"),
        (np.eye(2), r"got ndarray: mk\.matrix"),
        (None, r"got NoneType: mk\.matrix"),
        (torch.sin, r"mk\.jacobian"),
        (mk.matrix(torch.eye(2)).scipy(), r"mk\.LinearMap\(push, pull"),
    ],
)
def test_what_is_no_map_is_told_how_to_become_one(wrong, cure):
    for run in (maps.check_map, mk.check_adjoint):
        with pytest.raises(ValueError, match="takes a LinearMap, " + ".*" + cure):
            run(wrong)
    assert maps.check_map(mk.mask([1])) is None


# --- copies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [torch.tensor, np.array])
def test_a_map_keeps_what_it_was_made_of(make):
    W, w, listed = make([[1.0, 2.0], [3.0, 4.0]]), make([1.0, 2.0]), [make([1.0, 2.0])]
    A, D, L = mk.matrix(W), mk.mask(w), mk.matrix(listed)
    W *= 10
    w *= 10
    listed[0] *= 10
    assert A.dense().tolist() == [[1, 2], [3, 4]] and A.T.dense().tolist() == [[1, 3], [2, 4]]
    assert D.dense().tolist() == [[1, 0], [0, 2]] and L.dense().tolist() == [[1, 2]]


def test_matrices_of_every_make():
    M = np.arange(6.0).reshape(2, 3)
    locked = M.copy()
    locked.flags.writeable = False
    T = torch.from_numpy(M)
    makes = [M, M[::-1][::-1], np.asfortranarray(M), locked, T, T.T.T, [*T], [*M], (T[0], M[1]),
             M.tolist(), T.to_sparse(), T.clone().requires_grad_(), M.astype("f4")]  # fmt: skip
    for made in makes:
        assert mk.matrix(made).dense().tolist() == M.tolist()
    assert mk.matrix(M[::-1, ::-1]).dense().tolist() == M[::-1, ::-1].tolist()
    assert mk.mask(M[:, ::-1]).push(torch.ones(1, 2, 3))[0].tolist() == M[:, ::-1].tolist()


@pytest.mark.parametrize("M", [[[1, 2], [3]], [torch.ones(2), torch.ones(3)], [np.ones(2), [1]],
                               "M", None, [["a"]], np.array([["a"]]), object()])  # fmt: skip
def test_what_makes_no_matrix_is_refused_in_words(M):
    with pytest.raises(ValueError, match=r"matrix takes a real finite \(m, n\) array: ."):
        mk.matrix(M)


# --- transposes of subclasses, autocast, inference, SciPy --------------------------------------


def test_a_transpose_is_of_the_same_class_and_shares_its_clock(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(timing, "_now", lambda p: next(clock))
    M = torch.randn(2, 3)
    A = timing.Timed(mk.matrix(M), SimpleNamespace())
    B = A.T
    torch.testing.assert_close(B.push(torch.eye(2)), M)
    assert isinstance(B, timing.Timed) and A.seconds == B.seconds == 1
    A.push(torch.eye(3)), B.pull(torch.eye(3))
    assert A.seconds == B.seconds == B.T.seconds == 3
    assert A.passes == B.passes == (6, 2) and repr(B).startswith("Timed((2,) -> (3,)")


def test_autocast_does_not_round_a_map():
    M = 1 + 2.0**-12 * torch.ones(2, 2)  # 1 in bfloat16
    V = torch.tensor([[1.0, -1.0], [1.0, 0.0]])
    A = mk.matrix(M)
    P = A - mk.mask([1, 0]) @ A / 2
    plain = [L.push(V) for L in (A, P)] + [L.pull(V) for L in (A, P)]
    with torch.autocast("cpu", torch.bfloat16):
        assert (V @ M.T).dtype == torch.bfloat16, "the fault this test is for"
        inside = [L.push(V) for L in (A, P)] + [L.pull(V) for L in (A, P)]
        assert torch.is_autocast_enabled("cpu")
    for a, b in zip(plain, inside, strict=True):
        assert torch.equal(a, b) and a.dtype == b.dtype
    assert torch.equal(plain[0][1], M[:, 0])


def test_what_inference_mode_gives_can_be_learned_from():
    M = torch.randn(2, 2)
    same = mk.LinearMap(lambda V: V, lambda U: U, 2, 2)
    with torch.inference_mode():
        V = torch.eye(2)
        assert V.is_inference(), "the fault this test is for"
        maps_here = [mk.matrix(M), mk.matrix(M.clone()), mk.mask(M[0].clone()), same, 2 * same,
                     mk.jacobian(torch.sin, M[:1])]  # fmt: skip
        made = [run(V) for A in maps_here for run in (A.push, A.pull)]
    made += [A.push(torch.eye(2)) for A in maps_here]
    weight = torch.ones(2, 2, requires_grad=True)
    for W in made:
        assert not W.is_inference() and not W.requires_grad
        (gradient,) = torch.autograd.grad((weight * W).sum(), weight)
        assert torch.equal(gradient, W)


@pytest.mark.parametrize("m, n", [(7, 5), (5, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scipy_finds_the_singular_values_numpy_finds(m, n, dtype):
    from scipy.sparse.linalg import svds

    close = {"rtol": 1e-4 if dtype == torch.float32 else 1e-10, "atol": 1e-5}
    U, V = (torch.linalg.qr(torch.randn(s, 5, dtype=dtype)).Q for s in (m, n))
    M = U @ torch.diag(torch.tensor([5.0, 4, 3, 2, 1], dtype=dtype)) @ V.T
    exact = np.linalg.svd(M.numpy(), compute_uv=False)[:3]
    A = mk.matrix(M)
    u, s, vt = svds(A.scipy(), k=3, rng=0)
    np.testing.assert_allclose(np.sort(s)[::-1], exact, **close)
    np.testing.assert_allclose(M.numpy() @ vt.T, u * s, **close)
    np.testing.assert_allclose(np.sort(svds(A.T.scipy(), k=3, rng=0)[1])[::-1], exact, **close)
    assert sum(A.passes) > 0


@f64
def test_a_scipy_operator_is_the_matrix():
    M = torch.randn(6, 4)
    A = mk.LinearMap(lambda V: V.flatten(1) @ M.T, lambda U: (U @ M).reshape(-1, 2, 2), (2, 2), 6)
    L, dense = A.scipy(), M.numpy()
    v, u, V, U = (np.random.randn(*s) for s in ((4,), (6,), (4, 3), (6, 3)))
    assert L.shape == A.shape == (6, 4) and L.dtype == np.float64
    pairs = [
        (L.matvec(v), dense @ v),
        (L.matmat(v[:, None]), (dense @ v)[:, None]),
        (L.rmatvec(u), dense.T @ u),
        (L.matmat(V), dense @ V),
        (L.rmatmat(U), dense.T @ U),
        (L @ V[::-1], dense @ V[::-1]),
        (L.T @ u, dense.T @ u),
        ((L.H @ L) @ v, dense.T @ dense @ v),
        (L.matvec([1, 0, 0, 0]), dense[:, 0]),
    ]
    for ours, theirs in pairs:
        assert ours.shape == theirs.shape and ours.dtype == np.float64
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert A.passes == (1 + 1 + 3 + 3 + 1 + 1, 1 + 3 + 1 + 1)
    for wrong, words in ((v * 1j, "real rows"), (v * math.nan, "not finite")):
        with pytest.raises(ValueError, match=words):
            L.matvec(wrong)


@pytest.mark.parametrize("dtype, numpys", [(torch.bfloat16, "float32"), (torch.float16, "float32"),
                                           (torch.float32, "float32"), (None, "float32"),
                                           (torch.float64, "float64")])  # fmt: skip
def test_a_scipy_operator_has_the_type_of_its_map(dtype, numpys):
    A = mk.LinearMap(lambda V: V.to(dtype) if dtype else V, lambda U: U, 2, 2, dtype)
    L = A.scipy()
    assert L.dtype == L.matvec(np.ones(2)).dtype == L.rmatmat(np.eye(2, dtype="f4")).dtype == numpys


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_map_on_a_gpu_takes_and_gives():
    M = torch.randn(3, 4)
    A = mk.matrix(M.cuda())
    assert A.push(torch.eye(4)).is_cuda and (mk.mask([1, 0, 1]) @ A).dense().is_cuda
    np.testing.assert_allclose(A.scipy() @ np.eye(4), M.numpy(), rtol=1e-5)
    with torch.autocast("cuda", torch.bfloat16):
        torch.testing.assert_close(A.push(torch.eye(4)).cpu(), M.T)


def test_random_rows_are_the_same_in_every_type_and_never_coarser_than_float32():
    before, drawn = torch.get_default_dtype(), {}
    for default in (torch.float32, torch.float64):
        torch.set_default_dtype(default)
        try:
            for dtype in (*FLOATS, None):
                A = mk.LinearMap(lambda V: V, lambda U: U, 5, 5, dtype)
                generator = torch.Generator().manual_seed(2)
                drawn[default, dtype] = maps.random_rows(A, 3, A.in_shape, generator)
        finally:
            torch.set_default_dtype(before)
    finest = drawn[torch.float32, torch.float64]
    for (default, dtype), rows in drawn.items():
        assert rows.dtype == torch.promote_types(dtype or default, torch.float32)
        assert torch.equal(rows, finest.to(rows.dtype))


# --- the adjoint identity ---------------------------------------------------------------------


def test_check_adjoint_passes_a_true_transpose(tiny_unet, bottleneck):
    assert mk.check_adjoint(mk.matrix(torch.randn(5, 8))) < 1e-6
    A = mk.jacobian(bottleneck(tiny_unet, 500), torch.randn(1, 3, 16, 16))
    assert mk.check_adjoint(A) < 1e-5
    assert mk.check_adjoint(mk.matrix(torch.zeros(2, 3))) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("m, n", [(40, 60), (60, 40), (3, 3)])
def test_check_adjoint_fails_on_a_pull_wrong_by_a_thousandth(dtype, m, n):
    M = torch.randn(m, n, dtype=dtype)
    noise = torch.randn(m, n, dtype=dtype)
    wrong = [1.001 * M, M + 1e-3 * M.norm() / noise.norm() * noise * math.sqrt(n)]
    for W in wrong:
        A = mk.LinearMap(lambda V: V @ M.T, lambda U, W=W: U @ W, (n,), (m,), dtype)
        with pytest.raises(AssertionError, match="not the transpose"):
            mk.check_adjoint(A, k=64)  # one pair misses it by chance, not all of these


@pytest.mark.parametrize("m", [1, 2, 40])
def test_one_pair_sees_a_pull_of_the_wrong_size_whatever_its_seed(m):
    M = torch.randn(m, 5).double()
    A = mk.LinearMap(lambda V: V @ M.T, lambda U: 1.001 * U @ M, 5, m, torch.float64)
    for seed in range(64):
        with pytest.raises(AssertionError, match="not the transpose"):
            mk.check_adjoint(A, 1, seed)


@pytest.mark.parametrize("factor", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_error_is_a_share_of_the_larger_of_the_two_sides(factor, scale):
    """Of a pull that is `factor` times the transpose of the identity: |1 - factor| <v, u> over
    max(1, factor) |v| |u|, and u, which is v plus a unit vector on its side, is at 45 degrees of v
    or less."""
    A = mk.LinearMap(lambda V: scale * V, lambda U: factor * scale * U, 30, 30, torch.float64)
    share = abs(1 - factor) / max(1, factor)
    assert 0.5**0.5 * share <= mk.check_adjoint(A, tol=math.inf) <= share


@pytest.mark.parametrize("forth, back", [(torch.bfloat16, None), (None, torch.bfloat16)])
def test_check_adjoint_allows_what_the_coarser_of_the_two_answers_can_tell(forth, back):
    """A push off by a fiftieth: within the rounding of bfloat16 on either side, not of float32."""

    def off(forth, back):
        return mk.LinearMap(lambda V: (1.02 * V).to(forth), lambda U: U.to(back), 30, 30)

    plain = torch.float32
    assert mk.check_adjoint(off(forth or plain, back or plain)) < 0.05
    with pytest.raises(AssertionError, match="not the transpose"):
        mk.check_adjoint(off(plain, plain))


def test_check_adjoint_fails_on_nan():
    A = mk.LinearMap(lambda V: V, lambda U: U * math.nan, (2,), (2,))
    for L in (A, A.T, 2 * A):
        with pytest.raises(AssertionError):
            mk.check_adjoint(L)


def test_a_map_in_half_precision_is_its_own_transpose_to_that_precision():
    M = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    assert mk.check_adjoint(mk.matrix(M.bfloat16())) < 0.02


def test_a_mask_leaves_the_device_to_what_it_masks():
    A = mk.matrix(torch.eye(4))
    assert (mk.mask(torch.ones(4)) @ A).device == A.device and mk.mask(torch.ones(4)).device is None
