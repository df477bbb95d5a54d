"""Solvers against dense float64 SVDs, closed forms and theorems about singular values."""

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import planted

import mathkit as mk
from mathkit.linear import lanczos, svd, triplets
from mathkit.linear import linear_map as maps
from mathkit.linear._tape import convolution
from mathkit.linear.subspaces import principal_angles

f64 = pytest.mark.usefixtures("float64")
GEOMETRIC = [0.8**i for i in range(25)]


def flat(r):
    return r.U.flatten(1).double(), r.S.double(), r.V.flatten(1).double()


def residuals(M, r):
    """Both residuals of each triplet, recomputed densely."""
    U, S, V = flat(r)
    M = M.double()
    left, right = U @ M - S[:, None] * V, V @ M.T - S[:, None] * U
    return torch.maximum(left.norm(dim=1), right.norm(dim=1))


def check(M, r, tol=1e-3, orthonormal=1e-6):
    """r holds top singular triplets of M to tol * s_1; the errors of values are quadratic."""
    U, S, V = flat(r)
    exact = torch.linalg.svdvals(M.double())
    k = len(S)
    assert residuals(M, r).max() <= tol * exact[0]
    torch.testing.assert_close(S, exact[:k], atol=float(tol * exact[0]), rtol=0)
    for X in (U, V):
        torch.testing.assert_close(X @ X.T, torch.eye(k).double(), atol=orthonormal, rtol=0)
    assert (S.diff() <= 0).all() and (S >= 0).all()
    assert all(v[v.abs().argmax()] > 0 for v in V)


def quietly(solve, *args, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return solve(*args, **settings)


# --- svd against dense ---------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("m, n", [(80, 60), (60, 80), (70, 70)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_svd_agrees_with_the_dense_one(m, n, k, dtype):
    M = planted(m, n, GEOMETRIC, seed=m).to(dtype)
    A = mk.matrix(M)
    r = mk.svd(A, k, tol=1e-4)
    check(M, r, 1e-4)
    assert r.passes == A.passes
    assert {x.dtype for x in (r.U, r.S, r.V, r.residuals)} == {dtype}
    U, S, V = torch.linalg.svd(M.double(), full_matrices=False)
    torch.testing.assert_close(r.S.double(), S[:k], atol=1e-6, rtol=0)
    for got, exact in ((r.U, U.mT[:k]), (r.V, V[:k])):
        assert float(principal_angles(got, exact).max().sin()) <= max(1.1 * r.angle_bound, 1e-5)


@f64
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("m, n", [(1, 9), (9, 1), (1, 1), (2, 2), (3, 2), (5, 8), (8, 5), (12, 12)])
def test_svd_of_small_matrices_for_every_k(m, n, seed):
    M = torch.randn(m, n)
    for k in range(1, min(m, n) + 1):
        r = quietly(mk.svd, mk.matrix(M), k, tol=1e-9, seed=seed)
        check(M, r, 1e-9, 1e-12)


@f64
def test_all_triplets_rebuild_the_matrix():
    M = torch.randn(12, 7)
    U, S, V = mk.svd(mk.matrix(M), 7, tol=1e-12)
    torch.testing.assert_close(torch.einsum("i,ia,ib->ab", S, U, V), M)


@f64
def test_unpacked_result_has_the_shapes_of_the_map():
    A = mk.mask(torch.linspace(1, 2, 12).reshape(3, 4)) @ mk.jacobian(
        lambda x: x.reshape(-1, 3, 4), torch.zeros(1, 2, 6)
    )
    U, S, V = mk.svd(A, 2)
    assert (U.shape, S.shape, V.shape) == ((2, 3, 4), (2,), (2, 2, 6))
    torch.testing.assert_close(S, torch.linspace(1, 2, 12).flip(0)[:2], atol=2e-3, rtol=0)


@f64
def test_transposed_map_swaps_the_sides():
    M = planted(30, 20, GEOMETRIC[:20])
    r, rt = mk.svd(mk.matrix(M), 3, tol=1e-10), mk.svd(mk.matrix(M).T, 3, tol=1e-10)
    torch.testing.assert_close(r.S, rt.S)
    torch.testing.assert_close((r.U * rt.V).sum(1).abs(), torch.ones(3))
    torch.testing.assert_close((r.V * rt.U).sum(1).abs(), torch.ones(3))


@f64
def test_svd_is_deterministic_and_the_seed_does_not_matter():
    A = mk.matrix(planted(40, 30, GEOMETRIC))
    first, again, other = (mk.svd(A, 4, tol=1e-10, seed=s) for s in (0, 0, 1))
    assert torch.equal(first.V, again.V) and torch.equal(first.U, again.U)
    torch.testing.assert_close(first.V, other.V, atol=1e-8, rtol=0)


@f64
def test_tight_tolerance_reaches_machine_precision():
    M = planted(60, 50, GEOMETRIC)
    check(M, mk.svd(mk.matrix(M), 5, tol=1e-13), 2e-13, 1e-13)


@f64
def test_lauchli_keeps_the_digits_that_the_gram_matrix_loses():
    M = torch.tensor([[1.0, 1.0], [1e-8, 0.0], [0.0, 1e-8]])
    S = mk.svd(mk.matrix(M), 2, tol=1e-12).S
    torch.testing.assert_close(S, torch.tensor([math.sqrt(2), 1e-8]), atol=1e-15, rtol=1e-6)
    assert torch.linalg.eigvalsh(M.T @ M)[0] < 1e-17  # what squaring leaves of (1e-8)^2 = 1e-16


# --- repeated, clustered and missing singular values ---------------------------------------------


@f64
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    "values, k",
    [
        ([3, 3] + [0.95**i for i in range(40)], 2),
        ([3, 3, 3] + [0.95**i for i in range(40)], 3),
        ([5, 3, 3] + [0.9**i for i in range(40)], 3),
        ([2, 2, 2, 2, 1], 4),
    ],
)
def test_every_copy_of_a_repeated_singular_value_is_found(values, k, seed):
    M = planted(80, 70, values, seed)
    r = mk.svd(mk.matrix(M), k, seed=seed)
    check(M, r)
    torch.testing.assert_close(r.S, torch.tensor(values[:k]).to(r.S), atol=1e-4, rtol=0)


def blind_to(index, share=0.0):
    """random_rows, but with `share` of what the start has along one axis of a diagonal map.

    With 0 the axis stays 0 in every push, pull and sum, whatever order a processor adds in.
    """
    drawn = maps.random_rows

    def rows(*settings):
        rows = drawn(*settings)
        if rows.shape[1] > index:
            rows[:, index] *= share
        return rows

    return rows


def one_start(monkeypatch, guard=False, crowd=False):
    """The search of chapter 12: nothing that looks for what one start cannot see."""
    monkeypatch.setattr(svd, "STARTS", 1)
    if not guard:
        monkeypatch.setattr(lanczos.Search, "_guard", lambda self, space: True)
    if not crowd:
        monkeypatch.setattr(lanczos, "crowd", lambda *settings: None)


TWICE = [3.0, 3.0] + [0.95**i for i in range(40)]


@f64
def test_one_start_misses_the_second_copy(monkeypatch):
    """What the two starts, the crowd and the guard are for: without them it stops at (3, 1)."""
    one_start(monkeypatch)
    monkeypatch.setattr(lanczos, "random_rows", blind_to(1))
    M = torch.diag(torch.tensor(TWICE))
    r = quietly(mk.svd, mk.matrix(M), 2)
    torch.testing.assert_close(r.S, torch.tensor([3.0, 1.0]), atol=1e-4, rtol=0)
    assert residuals(M, r).max() <= 1e-3 * 3
    assert r.V[:, 1].tolist() == [0.0, 0.0]


@f64
@pytest.mark.parametrize("seed", range(5))
def test_the_guard_alone_finds_the_second_copy(monkeypatch, seed):
    """The second start is there from the beginning, but nothing has led the search along it."""
    monkeypatch.setattr(lanczos, "crowd", lambda *settings: None)
    monkeypatch.setattr(lanczos, "towards", lambda space, *settings: space.newest())
    values = [3.0, 3.0] + [0.5**i for i in range(40)]
    r = quietly(mk.svd, mk.matrix(planted(80, 70, values, seed)), 2, seed=seed)
    torch.testing.assert_close(r.S, torch.tensor([3.0, 3.0]), atol=1e-4, rtol=0)


@f64
@pytest.mark.parametrize("copies", [3, 4, 6])
def test_two_starts_see_two_copies_and_the_crowd_asks_for_more(copies):
    """The theorem behind `crowd`: the Krylov rows of two random starts hold two copies, no more."""
    A = mk.mask(torch.tensor([3.0] * copies + [0.5**i for i in range(60)]))
    space = lanczos.Krylov(A, 2, seed=0)
    for _ in range(4):  # a few: rounding, which brings in more, has no time to grow
        space.step(torch.eye(2))
    assert int((space.unit * space.ritz()[1] > 1.5).sum()) == 2
    assert int((quietly(mk.svd, A, copies).S > 2.9).sum()) == copies


# What a lecturer tries first: values in pairs and fours, by symmetry.


def cycle(n):
    """The Laplacian of a cycle of n nodes."""
    eye = torch.eye(n)
    return 2 * eye - eye.roll(1, 0) - eye.roll(-1, 0)


def lattice(n):
    """The Laplacian of an n x n grid with periodic ends."""
    return torch.kron(cycle(n), torch.eye(n)) + torch.kron(torch.eye(n), cycle(n))


def circular(n, kernel):
    """A circular convolution on n x n pictures as a map."""
    pad = kernel.shape[-1] // 2

    def blur(x):
        x = torch.nn.functional.pad(x.reshape(-1, 1, n, n), (pad,) * 4, mode="circular")
        return torch.nn.functional.conv2d(x, kernel.to(x)[None, None])

    return mk.jacobian(blur, torch.zeros(1, 1, n, n))


def gaussian_kernel():
    g = torch.exp(-torch.arange(-3.0, 4).square() / 2)
    return torch.outer(g, g) / g.sum() ** 2


@f64
@pytest.mark.parametrize("tol", [1e-3, 1e-6])
@pytest.mark.parametrize("k", [3, 5, 10])
@pytest.mark.parametrize("name", ["cycle", "lattice", "blur", "edges"])
def test_symmetric_maps_keep_all_their_copies(name, k, tol):
    edges = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    A = {
        "cycle": lambda: mk.matrix(cycle(200)),
        "lattice": lambda: mk.matrix(lattice(12)),
        "blur": lambda: circular(24, gaussian_kernel()),
        "edges": lambda: circular(16, edges),
    }[name]()
    exact = torch.linalg.svdvals(A.dense())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", triplets.CloseValues)
        r = mk.svd(A, k, tol=tol)
    assert r.converged
    torch.testing.assert_close(r.S, exact[:k], atol=float(1.5 * tol * exact[0]), rtol=0)


@f64
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("copies, rest", [(2, 0.5), (3, 0.7), (3, 0.3), (4, 0.3), (8, 0.5)])
def test_nothing_is_missed_in_families_of_equal_values(copies, rest, seed):
    values = torch.tensor([1.0] * copies + [rest * 0.97**i for i in range(100)])
    r = mk.svd(mk.mask(values), copies, seed=seed)
    torch.testing.assert_close(r.S, torch.ones(copies), atol=1.5e-3, rtol=0)


@f64
def test_the_guard_costs_a_push_of_what_is_pending(monkeypatch):
    A = mk.matrix(planted(80, 70, GEOMETRIC))
    full = mk.svd(A, 3).passes
    monkeypatch.setattr(lanczos.Search, "_guard", lambda self, space: True)
    bare = mk.svd(A, 3).passes
    assert full == (bare.push + lanczos.STARTS, bare.pull)


@f64
@pytest.mark.parametrize("k", [3, 5, 7])
def test_clusters(k):
    values = [1.0, 1 - 1e-5, 1 - 2e-5, 0.7, 0.7 - 1e-5, 0.4, 0.39, 0.2, 0.1, 0.05]
    check(M := planted(60, 50, values), mk.svd(mk.matrix(M), k, tol=1e-8), 1e-8)


@f64
@pytest.mark.parametrize("m, n", [(30, 40), (40, 30), (6, 6)])
def test_past_the_rank_singular_values_are_zero_and_vectors_orthonormal(m, n):
    M = planted(m, n, [5, 4, 3])
    with pytest.warns(RuntimeWarning, match="too close"):
        r = mk.svd(mk.matrix(M), 5)
    check(M, r, orthonormal=1e-12)
    assert r.S[3:].tolist() == [0, 0]
    check(M, mk.svd(mk.matrix(M), 3))


def test_past_the_rank_in_float32():
    M = planted(300, 400, [5, 4, 3]).float()
    r = quietly(mk.svd, mk.matrix(M), 6)
    check(M, r)
    assert r.S[3:].tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("m", [60, 8])  # searched and formed
def test_a_value_is_zero_below_the_numerical_rank_alone(m, dtype):
    limit = 4 * 60**0.5 * torch.finfo(dtype).eps
    for s, kept in ((30 * limit, True), (limit / 30, False)):
        r = quietly(mk.svd, mk.matrix(planted(m, 50, [1.0, 0.5, s]).to(dtype)), 3, tol=0.1 * s)
        assert float(r.S[2]) == (pytest.approx(s, rel=0.5) if kept else 0)


@f64
@pytest.mark.parametrize("m, n, k", [(5, 7, 3), (7, 5, 5), (1, 1, 1), (4, 4, 4)])
def test_the_zero_map(m, n, k):
    r = quietly(mk.svd, mk.matrix(torch.zeros(m, n)), k)
    check(torch.zeros(m, n), r, orthonormal=1e-12)
    assert r.S.tolist() == [0] * k and r.gap == 0
    assert r.residuals.tolist() == [0] * k


@f64
def test_the_identity():
    r = mk.svd(mk.matrix(torch.eye(10)), 10)
    check(torch.eye(10), r, orthonormal=1e-12)
    with pytest.warns(RuntimeWarning, match="too close"):
        check(torch.eye(10), mk.svd(mk.matrix(torch.eye(10)), 3), orthonormal=1e-12)


# --- what the result says about itself -----------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(5))
def test_residuals_and_angle_bound_hold(dtype, seed):
    M = torch.randn(120, 90, dtype=dtype)
    r = quietly(mk.svd, mk.matrix(M), 4, tol=3e-3, seed=seed)
    recomputed = residuals(M, r)
    torch.testing.assert_close(r.residuals.double(), recomputed, atol=2e-5, rtol=1e-3)
    assert recomputed.max() <= 3e-3 * r.S[0]
    P, S, Q = torch.linalg.svd(M.double(), full_matrices=False)
    assert r.gap == pytest.approx(float((S[3] - S[4]) / S[0]), abs=2e-2)
    gap = float(r.S[3].double() - S[4])
    whole = torch.linalg.matrix_norm(r.U.double() @ M.double() - r.S[:, None] * r.V, 2)
    angle = max(principal_angles(r.V, Q[:4]).max(), principal_angles(r.U, P.mT[:4]).max())
    assert angle.sin() <= whole / gap  # Wedin with the true s_5
    assert float(angle.sin()) <= 1.5 * r.angle_bound


@f64
@pytest.mark.parametrize("m, n", [(5, 5), (7, 5), (5, 7)])
def test_the_gap_after_the_last_value_is_down_to_nothing(m, n):
    r = mk.svd(mk.matrix(planted(m, n, [4.0, 3.0, 2.0, 1.5, 1.0])), 5)
    assert r.gap == pytest.approx(0.25) and r.angle_bound < 1e-12


def test_what_was_found_is_not_written_over():
    with pytest.raises(AttributeError):
        mk.svd(mk.matrix(torch.eye(3)), 3).problem = "another"


@f64
def test_equal_values_are_a_crowd_also_where_rounding_parts_them():
    values = torch.tensor([1.0, 1 - 4e-16, 0.5, 0.4])
    space = SimpleNamespace(
        starts=2, pending=values, ritz=lambda: (None, values, None, torch.zeros(1, 4))
    )
    assert lanczos.crowd(space, 3, 1e-9) == pytest.approx((1 / 0.4) ** 2 - 1)
    space.starts = 3  # three would have shown, if there were three
    assert lanczos.crowd(space, 3, 1e-9) is None


@pytest.mark.parametrize("n", [10, 1000, 10**6])
@pytest.mark.parametrize("above", [1e-3, 0.1, 3.0])
def test_a_copy_is_looked_for_until_the_polynomial_has_grown(n, above):
    """T_(j-1)(1 + 2 above) passes SHARE sqrt(n) / 2 at the step named, and SHARE sqrt(n) at it or
    soon after: cosh is between half its exponential and all of it."""
    j, x = lanczos._needed(n, above), 1 + 2 * above
    T = [1.0, x]
    while len(T) <= j:
        T.append(2 * x * T[-1] - T[-2])
    enough = lanczos.SHARE * math.sqrt(n)
    assert T[j - 1] >= enough / 2 and T[j - 2] < enough / 2 * (1 + 1e-3)


@f64
def test_a_small_gap_is_warned_of():
    M = planted(40, 30, [2.0, 1.0, 1.0, 0.5, 0.1])
    with pytest.warns(RuntimeWarning, match="s_2 and s_3 are too close"):
        r = mk.svd(mk.matrix(M), 2)
    assert r.gap < 1e-3 and r.angle_bound > 1
    assert mk.svd(mk.matrix(M), 3).angle_bound < 0.01


@f64
def test_max_passes_ends_it_with_a_warning_and_a_result():
    M = torch.randn(80, 70)
    A = mk.matrix(M)
    with pytest.warns(RuntimeWarning, match=r"residual .* s_1 where 1.0e-03 was asked .*20 passes"):
        r = mk.svd(A, 3, max_passes=20)
    assert A.passes == r.passes == (10, 10)
    torch.testing.assert_close(r.residuals, residuals(M, r))
    assert r.residuals.max() > 1e-3 * r.S[0]
    full = mk.svd(mk.matrix(planted(80, 70, GEOMETRIC)), 3).passes
    with pytest.warns(RuntimeWarning, match="no room to look for a second copy"):
        mk.svd(mk.matrix(planted(80, 70, GEOMETRIC)), 3, max_passes=sum(full) - 2)


@f64
def test_the_budget_is_what_was_given_or_a_thousand_and_twenty_for_each(monkeypatch):
    A, most, run = mk.matrix(planted(80, 70, GEOMETRIC)), [], svd._searched
    monkeypatch.setattr(svd, "_searched", lambda A, s, seed: most.append(s.most) or run(A, s, seed))
    mk.svd(A, 1), mk.svd(A, 7), mk.svd(A, 2, max_passes=333)
    assert most == [1020, 1140, 333]


@f64
@pytest.mark.parametrize("m, n, k", [(9, 9, 3), (20, 9, 4), (9, 20, 5), (8, 8, 8)])
def test_no_budget_is_passed_by_forming_the_matrix(m, n, k):
    """Formed, it costs one pass more than the smaller side."""
    whole, M = min(m, n) + 1, torch.randn(m, n)
    for most in range(2 * k, whole + 6):
        A = mk.matrix(M)
        r = quietly(mk.svd, A, k, max_passes=most)
        assert sum(A.passes) == sum(r.passes) <= most
        if most >= whole:
            assert r.converged and sum(r.passes) == whole


@f64
def test_that_the_values_are_too_close_is_said_where_the_angle_is_not_bounded():
    bounds = []
    for gap in np.geomspace(1e-1, 1e-7, 13):
        M = planted(60, 50, [2.0, 1.5, 1.5 - gap] + [0.5 * 0.9**i for i in range(30)])
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            r = mk.svd(mk.matrix(M), 2)
        close = [w for w in said if w.category is triplets.CloseValues]
        assert bool(close) == (r.angle_bound > 1)
        bounds.append(r.angle_bound)
    assert min(bounds) < 1 and any(1 < bound < 100 for bound in bounds)


@f64
def test_a_search_cut_short_for_another_copy_says_so(monkeypatch):
    """Two starts found two copies; whether there is a third, a few steps cannot tell."""
    A = mk.mask(torch.tensor([3.0, 3.0, 2.9] + [0.99**i for i in range(60)]))
    assert mk.svd(A, 3, tol=1e-5).converged
    monkeypatch.setattr(lanczos, "FORCED", 1)
    with pytest.warns(triplets.NotConverged, match="once more than found: another seed"):
        r = mk.svd(A, 3, tol=1e-5)
    assert not r.converged
    torch.testing.assert_close(r.S, torch.tensor([3.0, 3.0, 2.9]), atol=1e-4, rtol=0)


@f64
def test_two_seeds_are_two_starts():
    A = mk.matrix(torch.randn(60, 50))
    one, again, two = (lanczos.Krylov(A, 2, seed).pending for seed in (0, 0, 1))
    assert torch.equal(one, again) and (one @ two.T).abs().max() < 0.8


@pytest.mark.parametrize("k", [0, -1, 4, 1.0, None, "3"])
@pytest.mark.parametrize("solver", [mk.svd, mk.subspace_iteration])
def test_k_outside_the_matrix(solver, k):
    with pytest.raises(ValueError, match=r"min\(m, n\) = 3"):
        solver(mk.matrix(torch.randn(3, 5)), k)


def test_other_arguments_that_make_no_sense():
    A = mk.matrix(torch.randn(3, 5))
    for tol in (-1.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="tol"):
            mk.svd(A, 1, tol=tol)
    with pytest.raises(ValueError, match="at least 2 k, is an integer >= 4"):
        mk.svd(A, 2, max_passes=3)
    with pytest.raises(ValueError, match="iters"):
        mk.power_iteration(A, -1)
    for solver in (mk.svd, mk.subspace_iteration):
        with pytest.raises(ValueError, match="NaN"):
            solver(mk.LinearMap(lambda V: V * math.nan, lambda U: U, (3,), (3,)), 1)
        with pytest.raises(ValueError, match="NaN"):
            solver(mk.LinearMap(lambda V: V, lambda U: U * math.nan, (3,), (3,)), 1)


def test_the_checker_of_this_file_sees_a_thousandth():
    M = planted(30, 20, GEOMETRIC[:20])
    r = mk.svd(mk.matrix(M), 3, tol=1e-8)
    check(M, r, 1e-4)
    for wrong in (
        triplets.SVD(r.U, 1.001 * r.S, r.V, r.residuals, r.passes),
        triplets.SVD(1.001 * r.U, r.S, r.V, r.residuals, r.passes),
        triplets.SVD(r.U, r.S, r.V + 1e-3 * torch.randn(3, 20), r.residuals, r.passes),
        triplets.SVD(-r.U, r.S, -r.V, r.residuals, r.passes),
    ):
        with pytest.raises(AssertionError):
            check(M, wrong, 1e-4)


# --- other people's answers ----------------------------------------------------------------------


@f64
def test_right_singular_vectors_of_centred_data_are_its_principal_components():
    from sklearn.datasets import load_digits
    from sklearn.decomposition import PCA

    X = load_digits().data[:300]
    pca = PCA(6, svd_solver="full").fit(X)
    r = mk.svd(mk.matrix(X - X.mean(0)), 6, tol=1e-9)
    np.testing.assert_allclose(r.S, pca.singular_values_, rtol=1e-10)
    np.testing.assert_allclose(np.abs((r.V.numpy() * pca.components_).sum(1)), 1, rtol=1e-10)


@f64
@pytest.mark.parametrize("abar", [0.1, 0.5, 0.9])
def test_gaussian_denoiser_has_the_eigenfaces_as_singular_vectors(abar):
    C = planted(20, 20, [4 * 0.7**i for i in range(20)])
    C = C @ C.T
    values, faces = torch.linalg.eigh(C)
    inverse = torch.linalg.inv(abar * C + (1 - abar) * torch.eye(20))
    A = mk.jacobian(lambda x: math.sqrt(abar) * x @ inverse @ C, torch.randn(1, 20))
    r = mk.svd(A, 3, tol=1e-10)
    expected = math.sqrt(abar) * values / (abar * values + 1 - abar)
    torch.testing.assert_close(r.S, expected.flip(0)[:3])
    torch.testing.assert_close((r.V * faces.T.flip(0)[:3]).sum(1).abs(), torch.ones(3))


def test_svd_of_a_unet_agrees_with_its_dense_jacobian(tiny_unet, tiny_unet_double, bottleneck):
    x = torch.randn(1, 3, 16, 16)
    M = mk.jacobian(bottleneck(tiny_unet_double, 500), x.double()).dense()
    check(M, mk.svd(mk.jacobian(bottleneck(tiny_unet, 500), x), 5))
    check(M, mk.svd(mk.jacobian(bottleneck(tiny_unet_double, 500), x.double()), 5, tol=1e-9), 1e-9)


@f64
@pytest.mark.parametrize("k, values", [(5, GEOMETRIC), (5, [0.97**i for i in range(200)])])
def test_passes_stay_near_propacks(k, values):
    from scipy.sparse.linalg import svds

    M = planted(220, 200, values)
    A, B = mk.matrix(M), mk.matrix(M)
    A.batch = 1  # a row a step, the way with the fewest passes
    for start in range(8):  # a single start decides about a fifth of the passes
        assert residuals(M, mk.svd(A, k, seed=start)).max() <= 1e-3
        svds(B.scipy(), k, tol=1e-2, solver="propack", rng=np.random.default_rng(start))
    assert sum(A.passes) <= 1.4 * sum(B.passes)


# --- power method and subspace iteration ---------------------------------------------------------


@f64
def test_power_iteration_shrinks_the_angle_by_the_squared_ratio():
    M = planted(20, 15, [2.0, 1.6, 0.5, 0.2])
    top = torch.linalg.svd(M)[2][:1]
    angles = [principal_angles(mk.power_iteration(mk.matrix(M), i).V, top) for i in (20, 21, 22)]
    for before, after in zip(angles, angles[1:], strict=False):
        assert float(after / before) == pytest.approx((1.6 / 2.0) ** 2, rel=1e-3)


@f64
def test_power_iteration_converges_and_counts():
    M = planted(20, 15, [2.0, 1.0, 0.5])
    A = mk.matrix(M)
    r = mk.power_iteration(A, 60, seed=3)
    check(M, r, 1e-12)
    assert A.passes == r.passes == (61, 61)
    torch.testing.assert_close(r.residuals, residuals(M, r), atol=1e-14, rtol=0)
    zero = mk.power_iteration(mk.matrix(torch.zeros(3, 4)), 5)
    assert zero.S.tolist() == [0] and float(zero.V.norm()) == pytest.approx(1)


@f64
@pytest.mark.parametrize("m, n", [(40, 30), (30, 40)])
def test_subspace_iteration_agrees_with_the_dense_svd(m, n):
    M = planted(m, n, [3, 3, 2, 1, 0.5, 0.2])
    A = mk.matrix(M)
    r = mk.subspace_iteration(A, 3, iters=100, tol=1e-8)
    check(M, r, 1e-8, 1e-12)
    assert r.passes == A.passes and r.passes.push == r.passes.pull < 100 * 3
    assert r.gap is None and r.angle_bound is None


@f64
def test_subspace_iteration_takes_fifty_steps_unless_told():
    M = planted(30, 20, GEOMETRIC[:20]).float()
    for steps, how in ((50, {}), (7, {"iters": 7})):
        r = quietly(mk.subspace_iteration, mk.matrix(M), 2, tol=0.0, **how)
        assert r.passes == (2 * (steps + 1),) * 2 and not r.converged


def test_subspace_iteration_stops_whatever_the_signs():
    """Both signs of A: the vectors U flip at each step for -A, the test of V does not see it."""
    M = planted(40, 30, [3, 2, 1, 0.1])
    plus, minus = (mk.subspace_iteration(mk.matrix(s * M), 2) for s in (1, -1))
    assert plus.passes == minus.passes
    torch.testing.assert_close(plus.V, minus.V, atol=1e-2, rtol=0)
    torch.testing.assert_close(plus.U, -minus.U, atol=1e-2, rtol=0)


@f64
def test_subspace_iteration_past_the_rank_and_of_zero():
    M = planted(12, 9, [2, 1])
    check(M, mk.subspace_iteration(mk.matrix(M), 4), orthonormal=1e-12)
    check(
        torch.zeros(5, 4), mk.subspace_iteration(mk.matrix(torch.zeros(5, 4)), 4), orthonormal=1e-12
    )


@f64
def test_subspace_iteration_warns_when_it_did_not_converge():
    M = torch.randn(60, 50)
    with pytest.warns(RuntimeWarning, match="more iters"):
        r = mk.subspace_iteration(mk.matrix(M), 4, iters=2)
    torch.testing.assert_close(r.residuals, residuals(M, r), atol=1e-10, rtol=1e-8)


class Settled:
    """A search whose values and residuals are given."""

    def __init__(self, values, left, starts=2):
        self.S, self.starts, self.size = torch.tensor(values), starts, len(values)
        self.pending, self.rest = torch.zeros(0), torch.diag(torch.tensor(left))

    def ritz(self):
        return torch.eye(self.size), self.S, torch.eye(self.size), self.rest


@f64
@pytest.mark.parametrize(
    "left, worst",
    [
        ([0.0, 0.0, 0.0, 0.0], 0.0),
        ([0.1, 0.2, 0.0, 0.0], 0.2 / 4),  # of the top two
        ([0.1, 0.0, 0.8, 0.0], 0.1 / 4),  # the third reaches 1.8, below s_2 = 2
        ([0.1, 0.0, 1.5, 0.0], 0.5 / 4),  # the third may be 2.5
    ],
)
def test_residual_is_the_worst_of_the_top_k_or_what_the_next_may_rise_above_them(left, worst):
    assert lanczos.residual(Settled([4.0, 2.0, 1.0, 0.5], left), 2) == pytest.approx(worst)
    assert lanczos.residual(Settled([4.0], left[:1]), 2) == math.inf


@f64
@pytest.mark.parametrize(
    "values, left, k, starts, above",
    [
        ([3.0, 3.0, 1.0, 0.5], 0.0, 3, 2, 35.0),  # (3 / .5)^2 - 1: a third 3 would push 1 out
        ([3.0, 3.0, 1.0, 0.5], 0.0, 3, 3, None),  # three starts, two copies
        ([3.0, 3.0, 1.0, 0.5], 0.0, 2, 2, None),  # another 3 changes nothing in the top two
        ([3.0, 2.9, 1.0, 0.5], 0.0, 3, 2, None),  # not alike
        ([3.0, 2.9, 1.0, 0.5], 0.06, 3, 2, 2.9**2 / 0.25 - 1),  # alike within their residuals
        ([3.0, 3.0, 2.0, 2.0, 1.0, 0.5], 0.0, 5, 2, 15.0),  # the smaller of two pairs
        ([3.0, 3.0, 2.99, 0.5], 0.0, 3, 2, 35.0),  # a step of three times tol * s_1
        ([3.0, 3.0, 2.9999, 2.9998, 0.5], 0.0, 4, 2, None),  # no step down to s_k that matters
    ],
)
def test_crowd_asks_where_as_many_copies_turn_up_as_there_were_starts(
    values, left, k, starts, above
):
    found = lanczos.crowd(Settled(values, [left] * len(values), starts), k, 1e-3)
    assert found == (None if above is None else pytest.approx(above))


@f64
@pytest.mark.parametrize("rise", [0.0, 0.5, 2.0, 50.0])
@pytest.mark.parametrize("i", [0, 1, 2])
def test_the_guard_minds_what_rises_by_more_than_tol_among_the_top_k(rise, i):
    """What it saw is then taken in: one step along all that is pending."""
    stepped, tol = [], 1e-3

    class Ahead(Settled):
        whole = False

        def newest(self, b):
            return torch.eye(b)

        def peek(self, c):
            moved = self.S.clone()
            moved[i] += rise * tol * self.S[0]
            return moved

        def step(self, c):
            stepped.append(c)

    space = Ahead([4.0, 2.0, 1.0, 0.5], [0.0] * 4)
    quiet = rise <= 1 or i >= 2
    assert lanczos.Search(2, tol, 2, 100)._guard(space) is quiet
    assert len(stepped) == (not quiet)


def test_a_pair_of_equals_is_warned_of_unless_any_will_do():
    A = mk.matrix(torch.diag(torch.tensor([3.0, 2.0, 2.0, 1.0])))
    with pytest.warns(RuntimeWarning, match="too close"):
        mk.svd(A, 2)
    with triplets.any_of_equals():
        mk.svd(A, 2)
    with pytest.warns(RuntimeWarning, match="too close"):
        mk.svd(A, 2)


@pytest.mark.parametrize(("off", "dtype"), [(0.01, None), (0.2, None), (0.0, torch.bfloat16)])
def test_the_residual_sees_a_pull_that_is_not_the_transpose_of_push(off, dtype):
    M = planted(40, 40, GEOMETRIC).float()
    R = M if dtype is None else M.to(dtype)
    A = mk.LinearMap(
        lambda V: (V.to(R) @ R.T).float(), lambda U: (1 + off) * (U.to(R) @ R).float(), (40,), (40,)
    )
    with pytest.warns(RuntimeWarning, match="no closer to push's transpose"):
        r = mk.svd(A, 3, tol=1e-4)
    true = (A.pull(r.U) - r.S[:, None] * r.V).norm(dim=1)
    worst = float(r.residuals.max())
    assert worst == pytest.approx(float(true.max()), rel=0.05 if dtype is None else 0.7)
    assert off == 0 or worst / float(r.S[0]) == pytest.approx(off, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_the_residual_is_what_a_pass_sees(dtype):
    """A nonlinear map's passes, rounded: sums of many of them look better than one is."""
    torch.manual_seed(0)
    f = torch.nn.Sequential(*(torch.nn.Linear(60, 60), torch.nn.Tanh()) * 3).to(dtype)
    x = torch.randn(1, 60, dtype=dtype)
    A = mk.jacobian(f, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        r = mk.svd(A, 3, tol=1e-5)
    off = (
        (A.push(r.V) - r.S[:, None] * r.U).norm(dim=1),
        (A.pull(r.U) - r.S[:, None] * r.V).norm(dim=1),
    )
    assert bool((r.residuals >= 0.99 * torch.maximum(*off)).all())
    assert bool((r.residuals <= 4 * torch.maximum(*off)).all())
    assert r.angle_bound >= 0.99 * float(max(one.max() for one in off) / (r.S[0] * r.gap))
    assert r.passes == (A.passes.push - 3, A.passes.pull - 3)


def test_a_map_to_one_number_has_one_direction():
    x = torch.randn(1, 5, generator=torch.Generator().manual_seed(0))
    A = mk.jacobian(lambda x: (x**3).sum(1), x)
    r = mk.svd(A, 1)
    assert A.out_shape == () and r.U.shape == (1,)
    assert float(r.S[0]) == pytest.approx(float((3 * x**2).norm()), rel=1e-5)
    assert mk.check_adjoint(A) < 1e-5


def test_where_the_next_value_was_never_seen_the_gap_is_not_known():
    A = mk.matrix(torch.diag(torch.linspace(1, 0.98, 50)))
    with pytest.warns(RuntimeWarning, match="more max_passes"):
        r = mk.svd(A, 2, tol=0.9, max_passes=4)
    assert r.gap is None and r.angle_bound is None


# --- the machine inside --------------------------------------------------------------------------


@f64
@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("m, n", [(30, 20), (12, 12), (9, 5)])
def test_between_its_rows_the_map_is_the_small_matrix(m, n, width):
    """A V = U H and A^T U = V (H + slip) + W C after every step, until V is the whole space."""
    M = torch.randn(m, n)
    space = lanczos.Krylov(mk.matrix(M), width, seed=0)
    while not space.whole:
        space.step(space.newest(min(width, len(space.pending))))
        V, U = torch.cat(list(space.V)), torch.cat(list(space.U))
        W, c = space.pending, space.unit
        torch.testing.assert_close(V @ M.T, c * space.H.T @ U)
        torch.testing.assert_close(
            U @ M, c * ((space.H.T + space.slip).T @ V + space.coupling.T @ W)
        )
        both = torch.cat([V, W])
        torch.testing.assert_close(both @ both.T, torch.eye(len(both)))
        torch.testing.assert_close(U @ U.T, torch.eye(len(U)))
        assert space.slip.abs().max() < 1e-12
    torch.testing.assert_close(c * space.ritz()[1], torch.linalg.svdvals(M))


@f64
def test_rows_are_kept_in_blocks_and_become_their_combinations(monkeypatch):
    monkeypatch.setattr(lanczos.Rows, "BLOCK", 4)
    monkeypatch.setattr(lanczos.Rows, "COLUMNS", 7)
    for counts in ([1, 1, 1], [3, 3, 3, 3], [9, 2], [4, 4], [6, 1]):
        rows, C = torch.randn(sum(counts), 23), torch.randn(min(5, sum(counts)), sum(counts))
        kept = lanczos.Rows(torch.zeros(0, 23))
        for part in rows.split(counts):
            kept.add(part)
        assert len(kept) == len(rows) and torch.equal(torch.cat(list(kept)), rows)
        torch.testing.assert_close(kept.become(C), C @ rows)
        assert len(kept) == 0


@f64
@pytest.mark.parametrize("m, n", [(60, 50), (40, 70)])
def test_a_search_of_several_blocks_of_rows(m, n, monkeypatch):
    monkeypatch.setattr(lanczos.Rows, "BLOCK", 3)
    check(M := planted(m, n, GEOMETRIC), mk.svd(mk.matrix(M), 4, tol=1e-8), 1e-8)


@f64
def test_with_one_start_the_small_matrix_has_two_diagonals():
    space = lanczos.Krylov(mk.matrix(torch.randn(30, 20)), 1, seed=0)
    for _ in range(8):
        space.step(space.newest())
    bands = space.H.triu() - space.H.triu(2)
    torch.testing.assert_close(space.H, bands, atol=1e-12, rtol=0)


@f64
def test_a_peek_sees_what_a_step_would_and_changes_nothing():
    space = lanczos.Krylov(mk.matrix(torch.randn(30, 20)), 2, seed=0)
    for _ in range(4):
        space.step(space.newest())
    before, seen = space.H.clone(), space.peek(torch.eye(2))
    assert torch.equal(before, space.H) and space.passes == (6, 4)
    space.step(torch.eye(2))
    torch.testing.assert_close(seen, space.ritz()[1])


@f64
@pytest.mark.parametrize("width", [4, 7])
@pytest.mark.parametrize("k", [1, 5])
def test_blocks_give_the_same_triplets_in_fewer_calls(width, k):
    M, calls = planted(90, 80, GEOMETRIC), []

    def counted(one_pass):
        return lambda rows: calls.append(len(rows)) or one_pass(rows)

    A = mk.LinearMap(counted(lambda V: V @ M.T), counted(lambda U: U @ M), 80, 90)
    mk.svd(A, k, tol=1e-6)
    narrow = len(calls)
    assert max(calls) == lanczos.STARTS
    problem, r = svd._searched(A, lanczos.Search(k, 1e-6, width, 10_000), seed=0)
    assert not problem and max(calls[narrow:]) == width and len(calls) - narrow <= narrow
    check(M, r, 1e-6)


@f64
def test_a_wider_map_goes_in_blocks_where_that_pays():
    A = mk.matrix(torch.eye(3))
    for batch, k, width in ((1, 50, 2), (6, 5, 2), (6, 20, 4), (3, 20, 3)):
        A.batch = batch
        assert svd._width(A, k) == width
    A.batch, A.device = 8, "cuda"
    assert [svd._width(A, k) for k in (1, 5)] == [4, 8]


# --- the matrix formed ---------------------------------------------------------------------------


@f64
@pytest.mark.parametrize("m, n, k", [(12, 40, 5), (40, 12, 4), (7, 7, 7), (1, 9, 1)])
def test_a_small_side_is_formed_and_agrees_with_the_search(monkeypatch, m, n, k):
    M = torch.randn(m, n)
    formed = quietly(mk.svd, mk.matrix(M), k, tol=1e-10)
    assert sum(formed.passes) == min(m, n) + 1
    check(M, formed, 1e-13, 1e-13)
    monkeypatch.setattr(svd, "FORM", 0)
    searched = quietly(mk.svd, mk.matrix(M), k, tol=1e-10)
    torch.testing.assert_close(formed.S, searched.S)
    torch.testing.assert_close(formed.V, searched.V, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(6, 30), (30, 6)])
def test_a_formed_matrix_whose_other_side_is_no_transpose_is_told_of(shape):
    M = torch.randn(shape)
    A = mk.LinearMap(lambda V: V @ M.T, lambda U: 1.01 * U @ M, shape[1], shape[0])
    with pytest.warns(triplets.NotConverged, match="no closer to push's transpose"):
        r = mk.svd(A, 3)
    assert not r.converged and 1e-3 < float(r.residuals.max() / r.S[0]) < 0.02


@f64
@pytest.mark.parametrize("m, n", [(1, 9), (9, 1), (1, 1), (2, 2), (5, 8), (8, 5), (12, 12)])
def test_the_search_of_small_matrices_for_every_k(monkeypatch, m, n):
    monkeypatch.setattr(svd, "FORM", 0)
    M = torch.randn(m, n)
    for k in range(1, min(m, n) + 1):
        check(M, quietly(mk.svd, mk.matrix(M), k, tol=1e-9), 1e-9, 1e-12)
        check(0 * M, quietly(mk.svd, mk.matrix(0 * M), k), orthonormal=1e-12)


# --- any scale, any mode -------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 20])
@pytest.mark.parametrize("scale", [1e-30, 1e-19, 1e19, 1e30])
def test_the_scale_of_the_map_does_not_matter(scale, k):
    M = planted(80, 60, [0.8**i for i in range(40)]).float()
    one, r = mk.svd(mk.matrix(M), k), mk.svd(mk.matrix(scale * M), k)
    assert r.converged and r.passes == one.passes
    torch.testing.assert_close(r.S / scale, one.S, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(r.V, one.V, rtol=0, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("solve", [mk.svd, mk.subspace_iteration])
def test_the_answer_inside_autocast_is_that_outside(solve, dtype):
    M = planted(300, 200, GEOMETRIC).float()
    outside = solve(mk.matrix(M), 3)
    with torch.autocast("cpu", dtype):
        inside, J = solve(mk.matrix(M), 3), mk.jacobian(lambda x: x @ M.T, torch.zeros(1, 200))
    torch.testing.assert_close(inside.S, outside.S, rtol=1e-5, atol=0)
    assert inside.U.dtype == inside.V.dtype == torch.float32
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(
            quietly(solve, J, 3).S, outside.S, rtol=2e-2, atol=0
        )  # f itself was run in half


def test_a_result_made_in_inference_mode_takes_part_in_gradients():
    with torch.inference_mode():
        r = mk.svd(mk.matrix(planted(40, 30, GEOMETRIC).float()), 2)
    x = torch.ones(30, requires_grad=True)
    (r.V @ x).sum().backward()
    torch.testing.assert_close(x.grad, r.V.sum(0))


# --- how it tells what happened ------------------------------------------------------------------


@f64
def test_a_result_says_how_the_search_ended():
    M = planted(80, 70, GEOMETRIC)
    good = mk.svd(mk.matrix(M), 3)
    assert good.converged and good.problem == ""
    with pytest.warns(triplets.NotConverged) as said:
        short = mk.svd(mk.matrix(M), 3, max_passes=10)
    assert not short.converged and short.problem in str(said[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", triplets.NotConverged)
        mk.svd(mk.matrix(M), 3, max_passes=10)
    with pytest.warns(triplets.NotConverged):
        slow = mk.subspace_iteration(mk.matrix(torch.randn(60, 50)), 4, iters=1)
    assert not slow.converged and "more iters" in slow.problem
    few, many = (mk.power_iteration(mk.matrix(M), rounds) for rounds in (1, 60))
    assert many.converged and not few.converged and "1 rounds" in few.problem


@f64
def test_progress_is_told_passes_and_residuals():
    seen = []
    r = mk.svd(mk.matrix(planted(80, 70, GEOMETRIC)), 3, progress=lambda *what: seen.append(what))
    passes, left = zip(*seen, strict=True)
    assert list(passes) == sorted(passes) and passes[-1] <= sum(r.passes)
    assert left[0] > 1e-3 >= left[-1]


@f64
def test_the_power_method_has_converged_at_a_thousandth_and_not_before():
    M, left = planted(20, 15, [2.0, 1.6, 0.5, 0.2]), []
    for iters in range(40):
        r = mk.power_iteration(mk.matrix(M), iters)
        left.append(float(residuals(M, r)[0] / r.S[0]))
        assert r.converged == (left[-1] <= 1e-3) and r.converged == (not r.problem)
    assert left[-1] <= 1e-3 and any(1e-3 < one < 1e-1 for one in left)


def test_a_result_fits_on_a_screen():
    r = mk.svd(mk.matrix(planted(300, 400, GEOMETRIC).float()), 20)
    lines = repr(r).splitlines()
    assert len(lines) <= 6 and max(map(len, lines)) <= 120
    for word in ("k = 20", "(20, 300)", "(20, 400)", "unless a value was missed", "converged"):
        assert word in repr(r)
    with pytest.warns(triplets.NotConverged):
        bad = mk.svd(mk.matrix(torch.randn(60, 50)), 3, max_passes=8)
    assert "more max_passes" in repr(bad) and "unless" not in repr(mk.power_iteration(bad_map(), 3))


def bad_map():
    return mk.matrix(torch.eye(3))


@pytest.mark.parametrize("solve", [mk.svd, mk.subspace_iteration])
def test_what_is_no_map_is_told_what_makes_one(solve):
    for thing in (torch.eye(3), np.eye(3), lambda v: v):
        with pytest.raises(ValueError, match=r"takes a LinearMap"):
            solve(thing, 1)


# --- rounded passes, refined by exact ones -------------------------------------------------------


class Rounding:
    """A map whose passes are rounded to `bits` bits inside `coarse()`, as a GPU's TF32 does."""

    def __init__(self, M, bits):
        self.exact = 0

        def rounded(rows, matrix):
            if not convolution._coarse.get():
                self.exact += len(rows)
                return rows @ matrix
            return cut(rows, bits) @ cut(matrix, bits)

        self.A = mk.LinearMap(
            lambda V: rounded(V, M.T), lambda U: rounded(U, M), M.shape[1], M.shape[0]
        )


def cut(x, bits):
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)


@pytest.mark.parametrize("k", [1, 5])
def test_coarse_passes_are_measured_and_refined_by_exact_ones(monkeypatch, k):
    M = planted(200, 150, [0.9**i for i in range(60)]).float()
    map_ = Rounding(M, 11)
    monkeypatch.setattr(svd, "_rounds", lambda A: True)
    r = mk.svd(map_.A, k)
    assert r.converged and map_.exact == 2 * k
    check(M, r)
    true = residuals(M.double(), r)
    assert (true <= 1.05 * r.residuals.double() + 1e-6).all()
    torch.testing.assert_close(
        r.S.double(), torch.linalg.svdvals(M.double())[:k], rtol=1e-5, atol=0
    )


def test_only_float32_on_a_gpu_is_faster_rounded():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        A = mk.matrix(torch.eye(3, dtype=dtype))
        assert not svd._rounds(A)
        A.device = torch.device("cuda")
        assert svd._rounds(A) is (dtype == torch.float32)


@pytest.mark.parametrize("bits", range(4, 20, 2))
def test_where_rounding_spoils_too_much_the_search_is_exact(monkeypatch, bits):
    """As spoilt as it may be: what comes back is as good as was asked."""
    M = planted(200, 150, [0.9**i for i in range(60)]).float()
    map_ = Rounding(M, bits)
    monkeypatch.setattr(svd, "_rounds", lambda A: True)
    r = mk.svd(map_.A, 3, tol=1e-4)
    assert r.converged and (map_.exact > 20 or (bits > 4 and map_.exact == 2 * 3))
    check(M, r, 1.05e-4)
