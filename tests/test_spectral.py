"""Solvers against dense float64 SVDs, closed forms and theorems about singular values."""

import math
import warnings

import numpy as np
import pytest
import torch

import mathkit as mk
from mathkit import spectral
from mathkit.grassmann import principal_angles

f64 = pytest.mark.usefixtures("float64")
GEOMETRIC = [0.8**i for i in range(25)]


def planted(m, n, values, seed=0):
    """A float64 matrix (m, n) with these singular values, the rest 0."""
    g = torch.Generator().manual_seed(seed)
    P, Q = (
        torch.linalg.qr(torch.randn(d, len(values), generator=g, dtype=torch.float64)).Q
        for d in (m, n)
    )
    return (P * torch.tensor(values, dtype=torch.float64)) @ Q.T


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


# --- svd against dense ------------------------------------------------------------------------


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


# --- repeated, clustered and missing singular values ------------------------------------------


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


@f64
def test_without_the_guard_the_second_copy_is_missed(monkeypatch):
    """The test above tests the guard: the same search without it stops at (3, 1).

    The map is diagonal and the start has an exact 0 at the second copy: 0 stays 0 in every push,
    pull and sum, whatever order a processor adds in.
    """
    drawn = spectral.random_rows

    def without_the_copy(*settings):
        rows = drawn(*settings)
        rows[:, 1] = 0.0
        return rows

    monkeypatch.setattr(spectral, "_guard", lambda *settings: True)
    monkeypatch.setattr(spectral, "random_rows", without_the_copy)
    M = torch.diag(torch.tensor([3.0, 3.0] + [0.95**i for i in range(40)]))
    r = quietly(mk.svd, mk.matrix(M), 2)
    torch.testing.assert_close(r.S, torch.tensor([3.0, 1.0]), atol=1e-4, rtol=0)
    assert residuals(M, r).max() <= 1e-3 * 3
    assert r.V[:, 1].tolist() == [0.0, 0.0]


@f64
def test_guard_costs_three_steps():
    M, seen = planted(80, 70, GEOMETRIC), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spectral, "_guard", lambda space, limit: seen.append(space.size) or True)
        mk.svd(mk.matrix(M), 3)
    assert mk.svd(mk.matrix(M), 3).passes == (seen[0] + 3, seen[0] + 3)


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


# --- what the result says about itself --------------------------------------------------------


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
    with pytest.raises(ValueError, match="at least 2 k = 4"):
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
        spectral.SVD(r.U, 1.001 * r.S, r.V, r.residuals, r.passes),
        spectral.SVD(1.001 * r.U, r.S, r.V, r.residuals, r.passes),
        spectral.SVD(r.U, r.S, r.V + 1e-3 * torch.randn(3, 20), r.residuals, r.passes),
        spectral.SVD(-r.U, r.S, -r.V, r.residuals, r.passes),
    ):
        with pytest.raises(AssertionError):
            check(M, wrong, 1e-4)


# --- other people's answers -------------------------------------------------------------------


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
def test_no_more_than_the_guard_above_propack(k, values):
    from scipy.sparse.linalg import LinearOperator, svds

    M = planted(220, 200, values)
    A, B = mk.matrix(M), mk.matrix(M)
    r = mk.svd(A, k)
    forward = lambda v: B.push(torch.from_numpy(v.ravel().copy())[None])[0].numpy()  # noqa: E731
    backward = lambda u: B.pull(torch.from_numpy(u.ravel().copy())[None])[0].numpy()  # noqa: E731
    operator = LinearOperator(M.shape, matvec=forward, rmatvec=backward, dtype=np.float64)
    svds(operator, k, tol=1e-2, solver="propack", rng=np.random.default_rng(0))
    assert residuals(M, r).max() <= 1e-3
    assert sum(r.passes) <= sum(B.passes) + 6


# --- power method and subspace iteration ------------------------------------------------------


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


def crowded():
    """Values that fall slowly behind the first, as those of a bottleneck do."""
    i = torch.arange(128.0)
    return 0.4 / (1 + 0.12 * i) + 0.6 * (i == 0)


def test_a_value_that_the_start_hardly_holds_is_not_skipped():
    s = crowded()
    r = mk.svd(mk.matrix(torch.diag(s) @ torch.eye(128, 600)), 12, seed=23)
    assert (r.S - s[:12]).abs().max() <= 2e-3


def test_without_a_look_at_later_values_it_would_be(monkeypatch):
    """Planted: the residuals of the top k alone are content with the thirteenth value."""

    def alone(self, k):
        if self.size < k:
            return float("inf")
        _, S, _, rest = self.ritz(k)
        return float(rest.norm(dim=0).max() / S[0]) if len(rest) else 0.0

    monkeypatch.setattr(spectral._Krylov, "residual", alone)
    s = crowded()
    r = mk.svd(mk.matrix(torch.diag(s) @ torch.eye(128, 600)), 12, seed=23)
    assert (r.S - s[:12]).abs().max() > 5e-3


def test_a_pair_of_equals_is_warned_of_unless_any_will_do():
    A = mk.matrix(torch.diag(torch.tensor([3.0, 2.0, 2.0, 1.0])))
    with pytest.warns(RuntimeWarning, match="too close"):
        mk.svd(A, 2)
    with spectral.any_of_equals():
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
    counted = mk.svd(mk.matrix(A.dense().float()), 3, tol=1e-5).passes
    assert r.passes.push >= 3 + counted.push // 2 and r.passes.push == r.passes.pull


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
