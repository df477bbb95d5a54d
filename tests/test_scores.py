"""Oracles: scipy, closed forms, and coverage counted by simulation."""

import math

import numpy as np
import pytest
import torch

from mathkit import scores

stats = pytest.importorskip("scipy.stats")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


# --- intervals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("k, n", [(0, 7), (7, 7), (1, 400), (390, 400), (37, 90)])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_wilson_is_scipys(k, n, level):
    ours = scores.wilson(k, n, level)
    theirs = stats.binomtest(k, n).proportion_ci(level, method="wilson")
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_ends_solve_the_score_equation():
    z = stats.norm.ppf(0.975)
    for p in scores.wilson(37, 90):
        assert abs(37 / 90 - p) == pytest.approx(z * math.sqrt(p * (1 - p) / 90), rel=1e-9)


def wald(k, n):
    half = 1.96 * math.sqrt(k * (n - k) / n**3)
    return k / n - half, k / n + half


def exact_coverage(interval, n, p):
    pmf = stats.binom.pmf(range(n + 1), n, p)
    ends = [interval(k, n) for k in range(n + 1)]
    return sum(w for w, (low, high) in zip(pmf, ends, strict=True) if low <= p <= high)


def test_wilson_covers_and_the_same_check_catches_the_textbook_interval():
    shares = [0.02, 0.05, 0.15, 0.5, 0.9]
    mean = sum(exact_coverage(scores.wilson, 60, p) for p in shares) / len(shares)
    planted = sum(exact_coverage(wald, 60, p) for p in shares) / len(shares)
    assert 0.94 <= mean <= 0.98
    assert not 0.94 <= planted <= 0.98


def test_ninety_nine_percent_needs_every_one_of_four_hundred():
    assert scores.wilson(400, 400).low >= 0.99 > scores.wilson(399, 400).low


def test_in_words_names_count_and_interval():
    assert scores.in_words(8, 10) == "8 of 10, 95 % interval [.490, .943]"
    assert scores.in_words(10, 10).endswith(", 1]")
    assert scores.in_words(0, 10).endswith("[0, .278]")


@pytest.mark.parametrize("k, n", [(-1, 5), (6, 5), (0, 0)])
def test_wilson_refuses_impossible_counts(k, n):
    with pytest.raises(ValueError, match="0 <= k <= n"):
        scores.wilson(k, n)


@pytest.mark.parametrize("k, n", [(0.3, 10), (3.0, 10), (3, 10.0), ("3", 10), (None, 10)])
def test_wilson_counts_whole_numbers(k, n):
    with pytest.raises(ValueError, match=r"k and n are whole numbers.*round\(p \* n\)"):
        scores.wilson(k, n)


@pytest.mark.parametrize("k", [np.int64(3), torch.tensor(3), np.array(3)])
def test_wilson_takes_whole_numbers_of_any_library(k):
    assert scores.wilson(k, 10) == scores.wilson(3, 10)
    assert scores.in_words(k, 10) == scores.in_words(3, 10)


@pytest.mark.parametrize("level", [95, 0, 1, -0.1, math.nan])
def test_level_is_a_probability(level):
    for interval in (
        lambda: scores.wilson(1, 2, level),
        lambda: scores.bootstrap([1, 2], level=level),
    ):
        with pytest.raises(ValueError, match="level is a probability strictly between 0 and 1"):
            interval()


# --- paired bootstrap --------------------------------------------------------------------------


def test_bootstrap_is_near_the_t_interval_of_normal_data():
    a = normal(80, seed=1) + 0.25
    got, exact = scores.bootstrap(a), stats.ttest_1samp(a.numpy(), 0.0)
    low, high = exact.confidence_interval(0.95)
    assert got.estimate == pytest.approx(float(a.mean()))
    assert (got.low, got.high) == pytest.approx((low, high), abs=0.05)
    assert got.p == pytest.approx(exact.pvalue, rel=0.5, abs=0.02)


@pytest.mark.parametrize("g, level", [(3, 0.8), (6, 0.95), (40, 0.5)])
def test_the_ends_are_the_expanded_percentiles(g, level):
    """Of the means that were drawn, at Phi(-+ sqrt(g / (g - 1)) t_(g-1)): t and Phi of SciPy."""
    a = normal(g, seed=1)
    means = scores._resampled(a, torch.ones_like(a), 5000, 2)
    tail = stats.norm.cdf(-math.sqrt(g / (g - 1)) * stats.t.ppf((1 + level) / 2, g - 1))
    got = scores.bootstrap(a, level=level, resamples=5000, seed=2)
    assert (got.low, got.high) == pytest.approx(np.quantile(means.numpy(), [tail, 1 - tail]))


def test_bootstrap_is_paired():
    common, shift = 100 * normal(50), 0.1 * normal(50, seed=3)
    paired = scores.bootstrap(common + shift + 0.2, common)
    assert paired.high - paired.low < 0.1
    assert paired.low <= 0.2 + float(shift.mean()) <= paired.high


def test_bootstrap_depends_on_data_and_seed_alone():
    a, b = normal(30), normal(30, seed=1)
    assert scores.bootstrap(a, b, seed=4) == scores.bootstrap(a, b, seed=4)
    assert scores.bootstrap(a, b) == scores.bootstrap(a, b, seed=0)
    assert scores.bootstrap(a, b, seed=4) != scores.bootstrap(a, b, seed=5)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    scores.bootstrap(a, b)
    assert torch.equal(before, torch.random.get_rng_state())


def test_groups_of_one_change_nothing():
    a = normal(20)
    assert scores.bootstrap(a, groups=torch.arange(20), seed=2) == scores.bootstrap(a, seed=2)


def misses(interval, trials=2000, n=10):
    ends = [interval(normal(n, seed=100 + s)) for s in range(trials)]
    return sum(not low <= 0 <= high for low, high in ends) / trials


def plain_percentile(a):
    draws = a[torch.randint(len(a), (500, len(a)), generator=rng())].mean(1)
    return torch.quantile(draws, torch.tensor([0.025, 0.975], dtype=a.dtype)).tolist()


@pytest.mark.long
def test_bootstrap_covers_ten_units_and_the_check_catches_plain_percentiles():
    ours = misses(lambda a: scores.bootstrap(a, resamples=1000)[1:3])
    assert 0.03 <= ours <= 0.066  # 0.05 meant; a standard error is 0.005
    assert misses(plain_percentile) > 0.066


def test_groups_widen_what_moves_together():
    effect, labels = normal(12, seed=5), torch.arange(12).repeat_interleave(20)
    a = effect[labels] + 0.1 * normal(240, seed=6)
    alone, together = scores.bootstrap(a), scores.bootstrap(a, groups=labels * 7 - 3)
    assert together.high - together.low > 3 * (alone.high - alone.low)
    assert together.estimate == alone.estimate


def test_no_difference_is_p_one_and_a_sure_one_is_the_smallest_p():
    zero = scores.bootstrap(torch.zeros(9))
    assert zero[:3] == (0, 0, 0) and zero.p == pytest.approx(1)
    sure = scores.bootstrap(torch.ones(9), resamples=999)
    assert sure[:3] == (1, 1, 1) and sure.p < 0.05


def test_p_and_interval_tell_one_story():
    for s in range(40):
        got = scores.bootstrap(normal(15, seed=s) + 0.5, resamples=2000)
        if abs(got.p - 0.05) > 0.005:
            assert (got.p < 0.05) == (not got.low <= 0 <= got.high)


def test_bootstrap_refuses_what_it_cannot_pair():
    with pytest.raises(ValueError, match="equal shapes"):
        scores.bootstrap(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match="label each"):
        scores.bootstrap(torch.zeros(3), groups=torch.zeros(2))
    with pytest.raises(ValueError, match="at least 2"):
        scores.bootstrap(torch.zeros(5), groups=torch.ones(5))
    with pytest.raises(ValueError, match="NaN"):
        scores.bootstrap(torch.tensor([0.0, math.nan]))
    with pytest.raises(ValueError, match="1 resample; got 3 and 0"):
        scores.bootstrap(torch.zeros(3), resamples=0)


# --- Holm --------------------------------------------------------------------------------------


def test_holm_by_hand():
    got = scores.holm([0.01, 0.04, 0.03, 0.005])
    assert got.tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])


def step_down(p, alpha):
    """Holm 1979 as a procedure: reject while the smallest left is <= alpha / (number left)."""
    rejected, order = set(), sorted(range(len(p)), key=lambda i: p[i])
    for left, i in zip(range(len(p), 0, -1), order, strict=True):
        if p[i] > alpha / left:
            break
        rejected.add(i)
    return rejected


def test_holm_rejects_what_the_procedure_rejects():
    for s in range(30):
        p = (torch.rand(8, generator=rng(s), dtype=torch.float64) ** 4).tolist()
        assert {i for i, q in enumerate(scores.holm(p)) if q <= 0.05} == step_down(p, 0.05)


def test_holm_refuses_what_is_no_probability():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        scores.holm(torch.tensor([0.1, 1.2]))


# --- distances ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n, m", [(1, 1), (5, 8), (200, 300)])
def test_two_sample_ks_is_scipys(n, m):
    a, b = normal(n, 3), normal(m, 3, seed=1) + torch.tensor([0.0, 0.3, 1.0])
    want = [stats.ks_2samp(x, y).statistic for x, y in zip(a.T.numpy(), b.T.numpy(), strict=True)]
    assert scores.ks(a, b).tolist() == pytest.approx(want, abs=1e-12)
    assert float(scores.ks(a[:, 1], b[:, 1])) == pytest.approx(want[1], abs=1e-12)


def test_ks_handles_ties():
    a, b = torch.tensor([0.0, 0, 1, 1]), torch.tensor([0.0, 1, 1, 1, 1])
    assert float(scores.ks(a, b)) == pytest.approx(0.3)
    assert float(scores.ks(a, a)) == 0


def test_uniform_ks_is_scipys():
    a = torch.rand(150, 4, generator=rng(), dtype=torch.float64) ** torch.tensor([1, 1.3, 2, 0.5])
    want = [stats.kstest(x, "uniform").statistic for x in a.T.numpy()]
    assert scores.ks(a).tolist() == pytest.approx(want, abs=1e-12)
    wide = 2 * a - 0.5
    want = [stats.kstest(x, "uniform").statistic for x in wide.T.numpy()]
    assert scores.ks(wide).tolist() == pytest.approx(want, abs=1e-12)


def test_ks_bar_of_a_tenth_sees_a_planted_shift():
    a = torch.rand(2000, generator=rng(2), dtype=torch.float64)
    assert float(scores.ks(a)) <= 0.1 < float(scores.ks(a**1.4))


def test_ks_refuses_columns_that_do_not_match():
    with pytest.raises(ValueError, match="column"):
        scores.ks(torch.zeros(4, 2), torch.zeros(4, 3))


def with_moments(mean, root, n=50):
    """n rows whose sample mean and covariance are exactly mean and root @ root.T."""
    z = normal(n, len(mean))
    z = z - z.mean(0)
    white = z @ torch.linalg.inv(torch.linalg.cholesky(z.T @ z / (n - 1))).T
    return white @ root.T + mean


def test_frechet_of_commuting_gaussians_is_closed_form():
    q = torch.linalg.qr(normal(4, 4)).Q
    s, t = torch.tensor([3.0, 1, 0.5, 0.1]).double(), torch.tensor([1.0, 2, 0.5, 0]).double()
    mean = torch.tensor([1.0, -2, 0, 0.5]).double()
    a, b = with_moments(mean, q * s), with_moments(0 * mean, q * t, n=80)
    want = float(mean.square().sum() + (s - t).square().sum())
    assert scores.frechet(a, b) == pytest.approx(want, rel=1e-9)


def test_frechet_of_any_gaussians_is_scipys_matrix_root():
    from scipy.linalg import sqrtm

    a, b = normal(60, 5) @ normal(5, 5, seed=1), normal(90, 5, seed=2) @ normal(5, 5, seed=3) + 1
    ca, cb = a.T.cov(), b.T.cov()
    root = torch.as_tensor(sqrtm((ca @ cb).numpy())).real
    want = (a.mean(0) - b.mean(0)).square().sum() + torch.trace(ca + cb - 2 * root)
    assert scores.frechet(a, b) == pytest.approx(float(want), rel=1e-9)
    assert scores.frechet(b, a) == pytest.approx(scores.frechet(a, b), rel=1e-9)


def test_frechet_is_a_distance_also_where_covariances_are_singular():
    a = normal(4, 30)
    assert scores.frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert scores.frechet(a, a + 2) == pytest.approx(4 * 30, rel=1e-6)
    assert scores.frechet(normal(9, 1), normal(9, 1)) == pytest.approx(0, abs=1e-9)


def test_frechet_refuses_widths_that_differ():
    with pytest.raises(ValueError, match="equal widths"):
        scores.frechet(torch.zeros(3, 2), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="equal widths"):
        scores.frechet(torch.zeros(3, 4), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="n >= 2"):
        scores.frechet(torch.zeros(1, 2), torch.zeros(3, 2))


# --- side effect -------------------------------------------------------------------------------


def images(n, seed=0):
    return 2 * torch.rand(n, 3, 8, 8, generator=rng(seed)) - 1


def test_side_effect_is_zero_for_the_truth_and_one_for_a_stranger():
    x, other = images(300), images(300, seed=1)
    assert scores.side_effect(x, x, other).abs().max() == 0
    assert float(scores.side_effect(other, x, other).mean()) == pytest.approx(1, abs=0.05)


def test_side_effect_counts_every_pixel():
    x = torch.zeros(2, 3, 4, 4)
    y = x.clone()
    y[1, :, 0, 0] = 1.6
    assert scores.side_effect(y, x, 0.5).tolist() == pytest.approx([0, 1.6 / 16 / 0.5])


def test_side_effect_takes_the_figure_or_the_images():
    x, y, other = images(3), images(3, 1), images(5, 2)
    pairs = [scores.pixel_distance(other[i : i + 1], other[(i + 1) % 5][None]) for i in range(5)]
    figure = float(torch.cat(pairs).mean())
    assert torch.allclose(
        scores.side_effect(x, y, other), scores.side_effect(x, y, figure), atol=1e-6
    )


def test_side_effect_refuses_a_zero_to_divide_by():
    x = images(1)
    with pytest.raises(ValueError, match="at least two different"):
        scores.side_effect(x, x, x)
    with pytest.raises(ValueError, match="one shape"):
        scores.side_effect(x, images(2), 1.0)
    with pytest.raises(ValueError, match="NaN"):
        scores.side_effect(x * math.nan, x, 1.0)


# --- what is given -----------------------------------------------------------------------------

CALLS = {
    "bootstrap": (lambda a, b: scores.bootstrap(a[:, 0], b[:, 0], resamples=50), (9, 2)),
    "holm": (lambda a, b: scores.holm(a[0]), (1, 5)),
    "ks": (scores.ks, (9, 2)),
    "ks of one column": (lambda a, b: scores.ks(a[:, 0]), (9, 1)),
    "frechet": (scores.frechet, (9, 2)),
    "pixel_distance": (scores.pixel_distance, (2, 3, 4, 4)),
    "side_effect": (lambda a, b: scores.side_effect(a, b, a), (2, 3, 4, 4)),
}


@pytest.mark.parametrize("call, shape", CALLS.values(), ids=CALLS)
def test_arrays_give_what_tensors_give(call, shape):
    a, b = (torch.rand(shape, generator=rng(s), dtype=torch.float64) for s in (0, 1))
    wanted, arrays = torch.as_tensor(call(a, b)), [x.numpy().copy() for x in (a, b)]
    for x in arrays:
        x.setflags(write=False)
    backwards = [x[::-1].copy()[::-1] for x in arrays]  # strides below zero
    for given in (arrays, backwards):
        assert torch.equal(torch.as_tensor(call(*given)), wanted)


def test_groups_may_have_any_labels():
    a, labels = normal(6), np.array(["x", "y", "x", "z", "y", "z"])
    named = scores.bootstrap(a, groups=labels)
    assert named == scores.bootstrap(a, groups=torch.tensor([0, 1, 0, 2, 1, 2]))
    assert named == scores.bootstrap(a.tolist(), groups=labels.tolist())


@pytest.mark.parametrize("bad", ["abc", None, [[1, 2], [3]], [1j], torch.ones(3) * 1j])
def test_what_is_no_real_number_is_refused(bad):
    calls = (scores.bootstrap, scores.holm, scores.ks, lambda x: scores.frechet(x, x))
    for call in (*calls, lambda x: scores.pixel_distance(x, x)):
        with pytest.raises(
            ValueError, match="must be real numbers in a tensor, an array or a list"
        ):
            call(bad)


def test_rounded_numbers_are_plain():
    found = scores.rounded([torch.tensor([1 / 3]), np.array([2 / 3]), np.float32(0.12345), 1, "a"])
    assert found == [[0.333], [0.667], 0.123, 1, "a"]
    assert type(found[2]) is float
