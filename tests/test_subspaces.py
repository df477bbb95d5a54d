"""Angles between subspaces against SciPy, planted angles and the laws of a distance."""

import math

import numpy as np
import pytest
import torch

import mathkit as mk
from mathkit.linear.subspaces import (
    distance,
    matched_average,
    mean_subspace,
    principal_angles,
    unit,
)

pytestmark = pytest.mark.usefixtures("float64")


def span(k, n=20):
    return torch.linalg.qr(torch.randn(n, k)).Q.T


@pytest.mark.parametrize("j, k", [(1, 1), (3, 3), (2, 5), (5, 2), (20, 3)])
def test_angles_agree_with_scipy(j, k):
    from scipy.linalg import subspace_angles

    V1, V2 = torch.randn(j, 20), torch.randn(k, 20)
    expected = torch.from_numpy(subspace_angles(V1.T.numpy(), V2.T.numpy()).copy()).flip(0)
    torch.testing.assert_close(principal_angles(V1, V2), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("angle", [1e-12, 1e-9, 1e-4, 0.3, math.pi / 4, 1.2, math.pi / 2])
def test_a_planted_angle_is_found_to_the_last_digits(angle):
    a, b, c = span(3)
    turned = math.cos(angle) * b + math.sin(angle) * c
    angles = principal_angles(torch.stack([a, b]), torch.stack([a, turned]))
    torch.testing.assert_close(angles, torch.tensor([0.0, angle]), atol=1e-15, rtol=1e-6)


def test_angles_depend_on_the_spans_alone():
    V1, V2, R = span(3), span(3), torch.linalg.qr(torch.randn(20, 20)).Q
    expected = principal_angles(V1, V2)
    torch.testing.assert_close(principal_angles(V2, V1), expected)
    torch.testing.assert_close(principal_angles(torch.randn(3, 3) @ V1, 1e-6 * V2), expected)
    torch.testing.assert_close(principal_angles(V1 @ R, V2 @ R), expected)
    shaped = principal_angles(V1.reshape(3, 4, 5), V2.reshape(3, 4, 5))
    torch.testing.assert_close(shaped, expected)


def test_angles_are_float64_whatever_comes():
    V = span(2).float()
    angles = principal_angles(V, V)
    assert angles.dtype == torch.float64 and angles.max() < 1e-14


def test_distance_is_a_metric():
    A, B, C = span(4), span(4), span(4)
    torch.testing.assert_close(distance(A, B), distance(B, A))
    assert distance(A, A) < 1e-12
    assert 0 < distance(A, B) <= distance(A, C) + distance(C, B)
    E = torch.eye(20)
    assert float(distance(E[:4], E[4:8])) == pytest.approx(math.sqrt(4) * math.pi / 2)


def test_a_thousandth_shows_in_the_distance():
    V = span(3)
    assert distance(V, V + 1e-3 * torch.randn(3, 20)) > 1e-3


def test_unit_rows_are_numpys_and_what_has_no_direction_is_refused():
    V = torch.randn(3, 2, 4, dtype=torch.float64)
    theirs = V.numpy() / np.linalg.norm(V.numpy().reshape(3, 8), axis=1)[:, None, None]
    assert np.allclose(unit(V), theirs, rtol=1e-14)
    for bad in (0.0, math.nan, math.inf):
        V[1] = bad
        with pytest.raises(ValueError, match="points nowhere"):
            unit(V)


def test_project_out_is_the_orthogonal_projection_onto_the_complement():
    V, N = torch.randn(6, 20), span(4)
    P = torch.eye(20) - N.T @ N
    kept = mk.project_out(V, N)
    torch.testing.assert_close(kept, V @ P)
    torch.testing.assert_close(mk.project_out(kept, N), kept)
    torch.testing.assert_close(kept @ N.T, torch.zeros(6, 4))
    shaped = mk.project_out(V.reshape(6, 4, 5), N.reshape(4, 4, 5))
    torch.testing.assert_close(shaped.flatten(1), kept)


def test_what_is_left_lies_in_the_null_space_of_the_map():
    M = torch.randn(4, 20)
    N = mk.svd(mk.matrix(M), 4, tol=1e-12).V
    kept = mk.project_out(torch.randn(3, 20), N)
    torch.testing.assert_close(mk.matrix(M).push(kept), torch.zeros(3, 4), atol=1e-10, rtol=0)


def test_project_out_keeps_dtype():
    assert mk.project_out(torch.randn(2, 20).float(), span(3)).dtype == torch.float32


def test_project_out_refuses_rows_that_are_not_orthonormal():
    V = torch.randn(2, 20)
    for N in (
        torch.randn(3, 20),
        1.001 * span(3),
        span(3)[[0, 0, 1]],
        torch.full((1, 20), math.nan),
    ):
        with pytest.raises(ValueError, match="orthonormal"):
            mk.project_out(V, N)
    with pytest.raises(ValueError, match=r"one shape.*v\[None\]"):
        mk.project_out(V[0], span(3))
    with pytest.raises(ValueError, match="one shape"):
        mk.project_out(V, span(3).reshape(3, 4, 5))


def test_subspaces_that_are_none():
    V = span(3)
    with pytest.raises(ValueError, match="one shape"):
        principal_angles(V, torch.randn(3, 19))
    with pytest.raises(ValueError, match="NaN"):
        principal_angles(V, torch.full((1, 20), math.nan))
    with pytest.raises(ValueError, match="dependent"):
        principal_angles(V, torch.randn(1, 20).expand(2, 20))
    with pytest.raises(ValueError, match="dependent"):
        principal_angles(V, torch.zeros(1, 20))
    with pytest.raises(ValueError, match="1 ... 20 rows"):
        principal_angles(V, torch.randn(21, 20))
    with pytest.raises(ValueError, match="one dimension"):
        distance(V, span(2))


# --- means and transport -------------------------------------------------------------------------


def test_the_mean_subspace_is_that_of_the_mean_projector():
    bases = [span(3) for _ in range(5)]
    found, shares = mean_subspace([torch.randn(3, 3) @ V for V in bases])
    values, vectors = torch.linalg.eigh(sum(V.T @ V for V in bases) / 5)
    torch.testing.assert_close(shares, values.flip(0)[:3])
    assert principal_angles(found, vectors.T.flip(0)[:3]).max() < 1e-7
    torch.testing.assert_close(found @ found.T, torch.eye(3))


def test_a_direction_that_all_spans_hold_has_share_one():
    common = span(1)
    rest = [mk.project_out(torch.randn(2, 20), common) for _ in range(30)]
    found, shares = mean_subspace([torch.cat([V, common]) for V in rest])
    assert abs(float(shares[0]) - 1) < 1e-12 and float(shares[1]) < 0.5
    torch.testing.assert_close((found[0] @ common[0]).abs(), torch.tensor(1.0))
    assert abs(float(mean_subspace([span(20)])[1].min()) - 1) < 1e-12


def test_of_a_direction_in_a_full_space_nothing_can_be_lost():
    """A basis of all m dimensions, as a small map's U is: what rounding takes is no warning."""
    for m in range(1, 9):
        r = span(m, m), torch.ones(m), span(m, m + 2)
        for i in range(m):
            assert abs(mk.transport(r, r, i)[1] - 1) < 1e-12  # a warning would be an error


def test_chance_is_k_over_m():
    _, shares = mean_subspace([span(2) for _ in range(4000)])
    assert float((shares - 2 / 20).abs().max()) < 0.02


def test_matching_undoes_order_and_sign_and_averages_the_noise_away():
    truth = span(4)
    bases = []
    for _ in range(40):
        V = truth[torch.randperm(4)] * (2.0 * torch.randint(2, (4, 1)) - 1)
        bases.append(torch.linalg.qr((V + 0.1 * torch.randn(4, 20)).T).Q.T)
    found, agreement = matched_average(bases)
    cosines = (found @ truth.T).abs()
    assert float(cosines.amax(1).min()) > 0.99 and len(set(cosines.argmax(1).tolist())) == 4
    assert 0.8 < float(agreement.min()) < 1
    same, full = matched_average([truth, -truth.flip(0)])
    torch.testing.assert_close(same, truth)
    torch.testing.assert_close(full, torch.ones(4))


def test_transport_to_the_same_point_changes_nothing():
    r = mk.svd(mk.matrix(torch.randn(6, 20)), 4, tol=1e-12)
    for lift in ("isometry", "pinv"):
        v, kept = mk.transport(r, r, 2, lift)
        assert kept == pytest.approx(1)
        torch.testing.assert_close(v, r.V[2])


def test_the_pinv_lift_is_pushed_to_the_projection_and_the_isometry_is_not():
    M = torch.diag(torch.tensor([6.0, 5, 4, 3, 2, 1])) @ span(6)
    A0, A1 = mk.matrix(M), mk.matrix(M + 0.3 * torch.randn(6, 20))
    r0, r1 = mk.svd(A0, 3, tol=1e-12), mk.svd(A1, 3, tol=1e-12)
    c = r1.U @ r0.U[1]
    for lift, same in (("pinv", True), ("isometry", False)):
        v, kept = mk.transport(r0, r1, 1, lift)
        assert kept == pytest.approx(float(c @ c)) and float(v.norm()) == pytest.approx(1)
        cosine = torch.nn.functional.cosine_similarity(A1.push(v[None])[0], c @ r1.U, dim=0)
        assert (abs(float(cosine) - 1) < 1e-9) == same
    torch.testing.assert_close(v, torch.nn.functional.normalize(c @ r1.V, dim=0))


def test_transport_warns_where_little_more_than_chance_is_kept():
    basis = torch.eye(100)
    r0 = basis[:1] + 0.05 * basis[1:2], torch.ones(1), basis[:1, :20]
    r1 = basis[1:4], torch.ones(3), basis[:3, :20]
    with pytest.warns(UserWarning, match=r"0.0025 .* chance is 0.03"):
        mk.transport(r0, r1, 0)
    with pytest.raises(ValueError, match="nothing"):
        mk.transport((basis[:1], r0[1], r0[2]), r1, 0)


def triple(U):
    return U, torch.ones(len(U)), span(len(U))


def holding(share, k, m):
    """A direction of R^m of which a span of k axes holds `share`, and that span as U, S, V."""
    axes = torch.eye(m)
    u = share**0.5 * axes[:1] + (1 - share) ** 0.5 * axes[-1:]
    return (u, torch.ones(1), u), (axes[:k], torch.ones(k), axes[:k])


@pytest.mark.parametrize(
    "k, m, least",
    [(3, 100, 5 * 3 / 100), (1, 50, 5 / 50), (3, 4, (1 + 3 / 4) / 2), (30, 100, (1 + 0.3) / 2)],
)
def test_transport_warns_up_to_five_times_chance_or_halfway_from_chance_to_one(k, m, least):
    with pytest.warns(UserWarning, match="is kept, chance is"):
        mk.transport(*holding(0.99 * least, k, m), 0)
    v, kept = mk.transport(*holding(1.01 * least, k, m), 0)  # a warning would be an error
    assert kept == pytest.approx(1.01 * least) and torch.equal(v, torch.eye(m)[0])


@pytest.mark.parametrize("lift", ["isometry", "pinv"])
def test_however_little_is_kept_it_is_carried_and_nothing_is_not(lift):
    for length in (1e-3, 1e-5):
        with pytest.warns(UserWarning, match="is kept"):
            v, kept = mk.transport(*holding(length**2, 3, 20), 0, lift)
        assert kept == pytest.approx(length**2) and torch.equal(v, torch.eye(20)[0])
    with pytest.raises(ValueError, match="nothing"):
        mk.transport(*holding(1e-7**2, 3, 20), 0, lift)


@pytest.mark.parametrize("apart", [1e-4, 1e-7])
def test_rows_that_nearly_coincide_still_span_a_plane(apart):
    a, b, c = span(3)
    found = principal_angles(torch.stack([a, a + apart * b]), torch.stack([b, c]))
    torch.testing.assert_close(found, torch.tensor([0.0, math.pi / 2]), atol=1e-7, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_means_come_in_the_type_of_the_bases(dtype):
    bases = [span(3).to(dtype).reshape(3, 4, 5) for _ in range(4)]
    for average in (mean_subspace, matched_average):
        directions, shares = average(bases)
        assert directions.dtype == dtype and directions.shape == (3, 4, 5)
        assert shares.dtype == torch.float64


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: mean_subspace([]), "bases of one shape"),
        (lambda: mean_subspace([span(2), span(3)]), "bases of one shape"),
        (lambda: matched_average([span(2), span(2, 10)]), "bases of one shape"),
        (lambda: mk.transport(triple(span(2)), triple(span(2)), 2), r"0 \.\.\. 1"),
        (lambda: mk.transport(triple(span(2)), triple(span(2, 9)), 0), "one shape"),
        (lambda: mk.transport(triple(span(2)), triple(span(2)), 0, "flat"), "'flat'"),
    ],
)
def test_bad_bases_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_what_the_numerical_rank_leaves_out_is_not_lifted():
    r = torch.eye(5)[:3], torch.tensor([3.0, 2.0, 0.0]), torch.eye(5)[:3]
    v, kept = mk.transport(r, r, 0, "pinv")
    assert torch.allclose(v.abs(), torch.eye(5)[0], atol=1e-5) and kept == pytest.approx(1.0)
    with pytest.raises(ValueError, match="S is 0 where it lies"):
        mk.transport(r, r, 2, "pinv")
