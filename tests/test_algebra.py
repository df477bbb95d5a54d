"""The laws of maps, spans, singular values and noise levels on drawn cases, against float64
matrices, planted angles and values, and x_t = s x_0 + n e."""

import itertools
import math

import pytest
import torch
from conftest import planted
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import mathkit as mk
from mathkit.diffusion import levels as paths
from mathkit.diffusion.levels import CLEAN
from mathkit.diffusion.predicted import PREDICTIONS
from mathkit.diffusion.sampling import ddim_step, walk
from mathkit.linear.subspaces import carry, distance, principal_angles
from mathkit.linear.triplets import any_of_equals

sizes, seeds = st.integers(1, 4), st.integers(0, 2**30)


def drawn(count):
    """Cases drawn alike in every run: nothing rests on luck, or on how long one takes."""
    return settings(max_examples=count, deadline=None, derandomize=True)


def normal(seed, *shape):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def span(seed, k, n):
    return torch.linalg.qr(normal(seed, n, k)).Q.T


# Maps --------------------------------------------------------------------------------------------
# Small whole numbers and halves: float64 adds and multiplies them without rounding.


@st.composite
def whole(draw, m, n):
    numbers = draw(st.lists(st.integers(-4, 4), min_size=m * n, max_size=m * n))
    return torch.tensor(numbers, dtype=torch.float64).reshape(m, n)


@st.composite
def maps(draw, m, n, depth=3):
    """(A, M): a map made of others by +, -, c, / and @, and the matrix made the same way."""
    made = draw(st.sampled_from(["leaf", "+", "-", "c", "/", "@", "T"])) if depth else "leaf"
    if made == "leaf":
        M = draw(whole(m, n))
        if m == n and draw(st.booleans()):
            return mk.mask(M.diagonal()), M.diagonal().diag()
        smooth = draw(st.booleans())
        return mk.jacobian(lambda x: x @ M.T, M[:1]) if smooth else mk.matrix(M), M
    if made == "@":
        inner = draw(sizes)
        (A, M), (B, N) = draw(maps(m, inner, depth - 1)), draw(maps(inner, n, depth - 1))
        return A @ B, M @ N
    if made == "T":
        A, M = draw(maps(n, m, depth - 1))
        return A.T, M.T
    A, M = draw(maps(m, n, depth - 1))
    c = draw(st.sampled_from([-2.0, 0.5, 3.0]))
    if made in "c/":
        return (c * A, c * M) if made == "c" else (A / 0.5, M / 0.5)
    B, N = draw(maps(m, n, depth - 1))
    return (A + B, M + N) if made == "+" else (A - B, M - N)


def check_map(A, M, V, U, c):
    """A is the matrix M, and linear, to the last bit; its pull is its transpose."""
    AV, AtU = A.push(V), A.pull(U)
    assert A.shape == M.shape and torch.equal(A.dense(), M)
    assert torch.equal(AV, V @ M.T) and torch.equal(AtU, U @ M)
    assert torch.equal(A.T.dense(), M.T) and torch.equal(A.T.push(U), AtU)
    assert torch.equal(AV @ U.T, V @ AtU.T)
    assert torch.equal(A.push(c * V + V.flip(0)), c * AV + AV.flip(0))
    assert torch.equal(A.pull(c * U + U.flip(0)), c * AtU + AtU.flip(0))


@drawn(60)
@given(st.data(), sizes, sizes, st.integers(-4, 4))
def test_what_is_made_of_maps_is_what_is_made_of_their_matrices(data, m, n, c):
    A, M = data.draw(maps(m, n))
    check_map(A, M, data.draw(whole(3, n)), data.draw(whole(2, m)), c)


M = torch.tensor([[1.0, -2.0, 0.0], [3.0, 1.0, 4.0]], dtype=torch.float64)
FAULTS = {
    "pull off by a thousandth": (lambda V: V @ M.T, lambda U: 1.001 * U @ M),
    "push off by a thousandth": (lambda V: 1.001 * V @ M.T, lambda U: U @ M),
    "pull of the squares": (lambda V: V @ M.T, lambda U: U**2 @ M),
    "push to one side": (lambda V: V @ M.T + 1, lambda U: U @ M),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_map_that_breaks_a_law_is_seen(fault):
    V, U = torch.eye(3).double() + 1, torch.eye(2).double() + 1
    check_map(mk.matrix(M), M, V, U, 2)
    with pytest.raises(AssertionError):
        check_map(mk.LinearMap(*FAULTS[fault], 3, 2, torch.float64), M, V, U, 2)


@drawn(100)
@given(seeds, sizes, sizes, st.integers(-12, 12))
def test_check_adjoint_accepts_every_transpose_and_no_other(seed, m, n, power):
    M = 10.0**power * normal(seed, m, n)
    assert mk.check_adjoint(mk.matrix(M)) < 1e-14
    wrong = mk.LinearMap(lambda V: V @ M.T, lambda U: 1.001 * U @ M, n, m, torch.float64)
    with pytest.raises(AssertionError, match="not the transpose"):
        mk.check_adjoint(wrong)


# Spans -------------------------------------------------------------------------------------------


def check_same_point(move, r, seed):
    """At one point nothing changes: u_i goes to v_i, a sum of u_i to the sum of v_i."""
    U, S, V = r
    for lift, stretch in (("isometry", torch.ones_like(S)), ("pinv", 1 / S)):
        for i in range(len(S)):
            v, kept = mk.transport(r, r, i, lift)
            assert abs(kept - 1) < 1e-12 and (v - V[i]).norm() < 1e-12
        a = normal(seed, len(S))
        v, projection = move(a @ U, r, lift)
        expected = (a * stretch) @ V
        assert (v - expected / expected.norm()).norm() < 1e-12
        assert (projection - a @ U).norm() < 1e-12 * a.norm()


@drawn(60)
@given(st.data(), seeds, st.integers(1, 5), st.integers(1, 5))
def test_carried_to_the_same_point_nothing_changes(data, seed, m, n):
    k = data.draw(st.integers(1, min(m, n)))
    S = (1 + normal(seed, k).abs()).sort(descending=True).values
    check_same_point(carry, (span(seed, k, m), S, span(seed + 1, k, n)), seed + 2)


def test_a_carry_that_bends_by_a_thousandth_is_seen():
    r = span(0, 2, 5), torch.tensor([2.0, 1.0], dtype=torch.float64), span(1, 2, 4)
    check_same_point(carry, r, 2)
    with pytest.raises(AssertionError):
        check_same_point(lambda u, r, lift: carry(u + 1e-3 * r[0][0], r, lift), r, 2)


def basis(seed, k):
    """A change of basis, invertible, that stretches up to a hundred times."""
    stretch = 10 ** torch.linspace(-1, 1, k, dtype=torch.float64)
    return span(seed, k, k) * stretch @ span(seed + 1, k, k)


def check_metric(d, angles, seed):
    """d is what the planted angles say in any basis; 0 for one span; a metric with a third."""
    k, n = len(angles), 2 * len(angles) + 1
    Q, G = span(seed, 2 * k, n), basis(seed + 1, k)
    A, C = Q[:k], normal(seed + 3, k, n)
    B = angles.cos()[:, None] * A + angles.sin()[:, None] * Q[k:]
    exact, close = float(angles.norm()), 1e-12
    assert abs(d(A, B) - exact) < close and abs(d(B, A) - exact) < close
    assert abs(d(G @ A, B) - exact) < 100 * close and d(G @ A, A) < 100 * close
    assert (d(A, B) < close) == (exact < close)
    for X, Y, Z in itertools.permutations((A, B, C)):
        assert d(X, Z) <= d(X, Y) + d(Y, Z) + close


angle = st.sampled_from([0.0, 1e-8, 1e-3, math.pi / 4, math.pi / 2]) | st.floats(0, math.pi / 2)


@drawn(60)
@given(st.lists(angle, min_size=1, max_size=3), seeds)
def test_the_distance_is_a_metric_on_spans(angles, seed):
    check_metric(distance, torch.tensor(angles, dtype=torch.float64), seed)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda A, B: 1.001 * distance(A, B),
        lambda A, B: distance(A, B) + 1e-3,
        lambda A, B: distance(A, B) ** 2,
        lambda A, B: principal_angles(A, B).sum(),
        lambda A, B: (A - B).norm(),
        lambda A, B: distance(A, B[:, torch.arange(B.shape[1]).roll(1)]),
    ],
)
def test_what_is_no_metric_is_seen(wrong):
    angles = torch.tensor([0.5, 1.0], dtype=torch.float64)
    check_metric(distance, angles, 0)
    with pytest.raises(AssertionError):
        check_metric(wrong, angles, 0)


# Singular values ---------------------------------------------------------------------------------

TOL = 1e-9


def check_svd(M, r):
    """Values as the dense ones; each multiple's rows span what the dense ones do; residuals true.

    A vector is free in sign, and within the span of a value that several share.
    """
    P, exact, Q = torch.linalg.svd(M, full_matrices=False)
    U, S, V = r
    k, top = len(S), float(exact[0])
    assert (S.diff() <= 0).all() and (S >= 0).all()
    assert (S - exact[:k]).abs().max() <= TOL * top
    for X in (U, V):
        assert (X @ X.T - torch.eye(k)).abs().max() < 1e-12
    left, right = (U @ M - S[:, None] * V).norm(dim=1), (V @ M.T - S[:, None] * U).norm(dim=1)
    assert torch.maximum(left, right).max() <= TOL * top
    for value in exact[:k]:
        if value <= TOL * top:
            break
        near, ours = (exact - value).abs() < 1e-6 * top, (exact[:k] - value).abs() < 1e-6 * top
        for X, Y in ((U, P.T), (V, Q)):
            outside = X[ours] - X[ours] @ Y[near].T @ Y[near]
            assert outside.norm() < 1e-6


@st.composite
def multiples(draw):
    """(M, k): drawn shape, rank, multiplicities and scale; values apart by a quarter or equal."""
    m, n = draw(st.integers(1, 12) | st.integers(13, 40)), draw(st.integers(1, 40))
    times = draw(st.lists(st.integers(1, 3), max_size=6))
    values = [0.75**i for i, many in enumerate(times) for _ in range(many)][: min(m, n)]
    scale = 10.0 ** draw(st.integers(-30, 30))
    least = min(m, n)
    k = draw(st.integers(1, max(1, least // 4)) | st.integers(1, least))  # searched, or formed
    return planted(m, n, [scale * s for s in values] or [0.0], draw(seeds)), k


@drawn(80)
@given(multiples(), st.integers(0, 3))
def test_svd_is_the_dense_one_whatever_rank_multiples_and_scale(case, seed):
    M, k = case
    with any_of_equals():
        check_svd(M, mk.svd(mk.matrix(M), k, TOL, seed))


def test_triplets_that_are_off_are_seen():
    M = planted(20, 15, [1.0, 1.0, 0.75, 0.5])
    r = mk.svd(mk.matrix(M), 3, TOL)
    U, S, V = r
    c, s = math.cos(1.0), math.sin(1.0)
    turn = torch.tensor([[c, s, 0], [-s, c, 0], [0, 0, -1]], dtype=torch.float64)
    check_svd(M, (turn @ U, S, turn @ V))
    bend = torch.linalg.matrix_exp(1e-3 * torch.tensor([[0, 0, 1], [0, 0, 0], [-1, 0, 0]])).double()
    missed = mk.svd(mk.matrix(M), 4, TOL)
    for wrong in (
        (U, 1.001 * S, V),
        (bend @ U, S, bend @ V),
        (U, S, V.flip(0)),
        tuple(part[[0, 2, 3]] for part in missed),
        (U, S, 1.001 * V),
    ):
        with pytest.raises(AssertionError):
            check_svd(M, wrong)


# Signal and noise --------------------------------------------------------------------------------


@st.composite
def ways(draw):
    """(levels, times falling): a drawn path and a drawn way down it."""
    kind = draw(st.sampled_from(["preserving", "exploding", "flow"]))
    if kind == "preserving":
        kept = draw(st.lists(st.floats(0.5, 0.999), min_size=2, max_size=10))
        made = paths.preserving(torch.tensor(kept, dtype=torch.float64).cumprod(0))
        time = st.integers(0, len(kept) - 1)
    else:
        most = draw(st.floats(1, 50))
        made = paths.flow() if kind == "flow" else paths.exploding(0.01, most)
        time = st.floats(made.bottom, 0.99 * made.top)
    return made, sorted(draw(st.sets(time, min_size=1, max_size=4)), reverse=True)


def on_path(levels, x0, e, t):
    s, n = levels.pair(t)
    return s * x0 + n * e


def check_steps(step, levels, times, x0, e):
    """The exact noise keeps x on its path: down to the clean image, and up again."""
    there = [*times, CLEAN]
    for now, then in itertools.pairwise([*there, *reversed(there)]):
        x = step(on_path(levels, x0, e, now), e, levels.pair(now), levels.pair(then))
        expected = on_path(levels, x0, e, then)
        assert (x - expected).abs().max() < 1e-11 * (1 + expected.abs().max())


@drawn(60)
@given(ways(), seeds)
def test_a_step_with_the_exact_noise_stays_on_the_path(way, seed):
    check_steps(ddim_step, *way, normal(seed, 2, 3), normal(seed + 1, 2, 3))


def test_a_step_that_leaves_the_path_is_seen():
    levels, x0, e = paths.flow(), normal(0, 2, 3), normal(1, 2, 3)
    check_steps(ddim_step, levels, [0.8, 0.4], x0, e)
    for wrong in (
        lambda x, e, *ends: ddim_step(x, 1.001 * e, *ends),
        lambda x, e, now, then: ddim_step(x, e, now, (1.001 * then[0], then[1])),
        lambda x, e, now, then: ddim_step(x, e, now, (then[0], then[1] + 1e-3)),
    ):
        with pytest.raises(AssertionError):
            check_steps(wrong, levels, [0.8, 0.4], x0, e)


@drawn(60)
@given(ways(), st.floats(0, 1))
def test_fresh_noise_takes_the_place_of_old_and_the_level_stays(way, eta):
    """x' = s' x_0 + a e + w z has a^2 + w^2 = n'^2, and w = eta n' sqrt(1 - (s n' / (s' n))^2)."""
    levels, times = way
    assume(len(times) > 1)
    (s, n), (s_then, n_then) = ends = [levels.pair(t) for t in times[:2]]
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    fresh = float(ddim_step(zero, zero, *ends, eta, one)) if eta else 0.0
    old = float(ddim_step(n * one, one, *ends, eta, zero if eta else None))
    kept = s * n_then / (s_then * n)
    assert math.isclose(fresh, eta * n_then * math.sqrt(1 - kept**2), abs_tol=1e-9 * n_then)
    assert math.isclose(math.hypot(old, fresh), n_then, rel_tol=1e-12)


def exact(levels, prediction, x0, e, off=0.0):
    """A network that answers rightly for these x_0 and e, but for `off`."""

    def f(x, t):
        s, n = (side[:, None] for side in levels(t))
        return off + {
            "epsilon": e, "sample": x0, "score": -e / n, "velocity": e - x0,
            "v_prediction": s * e - n * x0,
        }[prediction]  # fmt: skip

    return mk.denoiser(f, levels, x0.shape[1:], prediction, dtype=torch.float64)


def check_prediction(p, times, x0, e):
    """noise is e and clean is x_0 all along; x_t comes down to x_0, and, where what is answered
    hangs on the noise alone, x_0 goes up to x_t."""
    near = dict(atol=1e-9, rtol=1e-9)
    for t in times:
        xt = on_path(p.levels, x0, e, t)
        for found in ((p.noise(xt, t), p.clean(xt, t)), p.both(xt, t)):
            torch.testing.assert_close(found, (e, x0), **near)
    top = on_path(p.levels, x0, e, times[0])
    for t, x in walk(p, top, times):
        torch.testing.assert_close(x, on_path(p.levels, x0, e, t), **near)
    torch.testing.assert_close(mk.denoise(p, top, times[0], times=times), x0, **near)
    if p.prediction in ("epsilon", "score"):
        torch.testing.assert_close(mk.invert(p, x0, times[0], 3), top, **near)


@drawn(80)
@given(ways(), st.sampled_from(PREDICTIONS), seeds)
def test_noise_and_clean_are_e_and_x0_of_every_prediction(way, prediction, seed):
    levels, times = way
    s, n = levels(levels.span())
    assume(
        prediction != "v_prediction" or torch.allclose(s**2 + n**2, torch.ones_like(s), atol=1e-9)
    )
    assume(prediction not in ("epsilon", "score") or s.min() > 0)
    x0, e = normal(seed, 2, 3), normal(seed + 1, 2, 3)
    check_prediction(exact(levels, prediction, x0, e), times, x0, e)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_prediction_that_is_off_or_of_another_kind_is_seen(prediction):
    levels = paths.preserving(torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64))
    x0, e = normal(0, 2, 3), normal(1, 2, 3)
    check_prediction(exact(levels, prediction, x0, e), [2, 0], x0, e)
    off, other = exact(levels, prediction, x0, e, 1e-3), exact(levels, prediction, x0, e)
    other.prediction = "sample" if prediction != "sample" else "epsilon"
    for wrong in (off, other):
        with pytest.raises(AssertionError):
            check_prediction(wrong, [2, 0], x0, e)
