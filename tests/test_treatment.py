"""The treatment: regions, doses, signs and outcomes against cases whose truth is known."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import UNTRAINED, make_puppeteer

import mathkit as mk
from mathkit.chapters import treatment
from mathkit.chapters.treatment import Cases
from mathkit.diffusion import model
from mathkit.show import puppets
from mathkit.show.puppets import STRANGER
from studies import methods
from studies.methods import Row

pytestmark = UNTRAINED

LIMIT, UNRELATED = 0.08, 0.25


@pytest.fixture(scope="module")
def ill():
    """Three ill frames of the show, with their true counterfactual and a made-up x_t."""
    q = puppets.sample_factors(3, seed=90, stranger=1)
    x0, cure = puppets.render(q), puppets.counterfactual(q)
    xt = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    distance = torch.zeros(3)
    return Cases(5, [0, 1, 2], 10, 2, xt, x0, q, distance, cure, treatment.region(cure))


class Known(model.Model):
    """A model with E[x_0 | x_t] = M x_t for a rank-2 M = 3 a a^T + 2 b b^T, at every t."""

    def __init__(self, a, b):
        super().__init__(a.shape[1:], model.linear_schedule(20), a.device, a.dtype)
        self.a, self.b = a, b

    def clean(self, x, t):
        def part(s, v):
            return s * (x * v).sum((1, 2, 3))[:, None, None, None] * v

        return part(3.0, self.a) + part(2.0, self.b)

    def noise(self, x, t):
        s, n = self.scales(x, t)
        return (x - s * self.clean(x, t)) / n


def unit(x):
    return x / x.flatten(1).norm(dim=1)[:, None, None, None]


@pytest.fixture(scope="module")
def known(ill):
    inside = ill.region[:1, None].expand(1, 3, 64, 64)
    return Known(unit(inside * ill.cure[:1]), unit((1 - inside) * ill.x0[:1]))


def test_the_region_is_the_dilated_change():
    from scipy.ndimage import binary_dilation

    q = puppets.sample_factors(2, 7, stranger=1)
    cure = puppets.counterfactual(q)
    found = treatment.region(cure)
    for i in range(2):
        spot = cure[i].abs().amax(0).numpy() > 0.05
        assert np.array_equal(found[i].numpy() > 0, binary_dilation(spot, np.ones((5, 5))))
    assert not treatment.region(torch.zeros(1, 3, 64, 64)).any()


def test_the_true_cure_is_cured_without_side_effect(ill):
    marks = treatment.judge(ill, ill.x0 + ill.cure, LIMIT, UNRELATED)
    assert marks["outcome"].tolist() == [1, 1, 1]
    assert marks["side"].max() < 1e-6 and marks["error"].max() < 1e-6 and marks["left"].max() < 1e-6
    assert marks["factor"].max() < 0.02


def test_doing_nothing_is_ill_and_does_no_damage(ill):
    marks = treatment.judge(ill, ill.x0, LIMIT, UNRELATED)
    assert marks["outcome"].tolist() == [0, 0, 0]
    assert marks["side"].max() == 0 and marks["outside"].max() == 0
    assert torch.allclose(marks["left"], torch.ones(3), atol=1e-6)
    expected = ill.cure.abs().mean((1, 2, 3)) / UNRELATED
    assert torch.allclose(marks["error"], expected, atol=1e-6)


def test_half_a_cure_is_no_damage_and_no_cure(ill):
    marks = treatment.judge(ill, ill.x0 + 0.4 * ill.cure, LIMIT, UNRELATED)
    assert (marks["outcome"] != 1).all() and marks["side"].max() < 1e-6


def test_painting_over_everything_is_destroyed(ill):
    noise = torch.rand(ill.x0.shape, generator=torch.Generator().manual_seed(2)) * 2 - 1
    marks = treatment.judge(ill, noise, LIMIT, UNRELATED)
    assert marks["outcome"].tolist() == [2, 2, 2]
    assert marks["side"].min() > 0.5


def test_another_puppet_is_no_cure_of_this_one_and_costs_about_one(ill):
    """Planted failure: a healthy frame alone must not count as cured."""
    other = puppets.render(puppets.sample_factors(3, 123, stranger=0))
    marks = treatment.judge(ill, other, LIMIT, UNRELATED)
    assert (marks["p"] < 0.5).all() and marks["side"].mean() > 0.5
    assert marks["worst"].min() > 0.1


def test_damage_inside_the_region_counts(ill):
    white = torch.where(ill.region[:, None] > 0, torch.ones(1), ill.x0)
    marks = treatment.judge(ill, white, LIMIT, UNRELATED)
    assert marks["outside"].max() == 0 and marks["side"].min() > 0.1


# By hand, on straight lines through (0, 0), (.1, .03), (.2, .10), (.4, .40).
@pytest.mark.parametrize(
    "target, strength", [(0, 0), (0.015, 0.05), (0.03, 0.1), (0.065, 0.15), (0.25, 0.3), (0.4, 0.4)]
)
def test_the_dose_is_linear_between_measurements(target, strength):
    found = treatment.dose([0.1, 0.2, 0.4], [0.03, 0.10, 0.40], target)
    assert found == pytest.approx(strength, abs=1e-12)


def test_a_dose_that_is_never_reached_is_the_largest():
    assert treatment.dose([0.1, 0.2], [0.01, 0.02], 0.15) == 0.2
    assert treatment.dose([], [], 0.15) == 0


@pytest.mark.parametrize("seed", range(20))
def test_where_effects_rise_and_fall_the_dose_is_the_first_crossing(seed):
    """Oracle: walking along the straight lines in small steps; `np.interp` on the whole differs."""
    random = np.random.default_rng(seed)
    strengths, effects = np.arange(1, 7) / 6, random.uniform(0, 1, 6)
    walk = np.linspace(0, 1, 60_001)
    height = np.interp(walk, [0, *strengths], [0, *effects])
    target = 0.9 * effects.max()
    expected = walk[(height >= target).argmax()]
    assert treatment.dose(strengths, effects, target) == pytest.approx(expected, abs=2e-5)


def test_a_curve_that_falls_would_mislead_np_interp():
    strengths, effects = [1.0, 2.0, 3.0, 4.0], [0.4, 0.1, 0.5, 0.2]
    assert treatment.dose(strengths, effects, 0.3) == pytest.approx(0.75)
    assert np.interp(0.3, [0, *effects], [0, *strengths]) != pytest.approx(0.75)


@pytest.mark.parametrize(
    "strengths, effects, target",
    [
        ([0.1, 0.2], [0.1], 0.05),
        ([0.2, 0.1], [0.1, 0.2], 0.05),
        ([0.0, 0.1], [0.0, 0.2], 0.05),
        ([0.1, math.inf], [0.1, 0.2], 0.15),
        ([0.1, 0.2], [math.nan, 0.2], 0.15),
        ([0.1, 0.2], [0.1, 0.2], math.nan),
        ([0.1, 0.2], [0.1, 0.2], -0.05),
    ],
)
def test_a_dose_without_a_meaning_is_refused(strengths, effects, target):
    with pytest.raises(ValueError, match="dose needs strengths that rise from above 0"):
        treatment.dose(strengths, effects, target)


def test_random_directions_are_of_length_one_and_differ_between_cases_and_streams(ill):
    a, b = treatment.gaussian(ill[0], 4), treatment.gaussian(ill[1], 4)
    assert torch.allclose(a.flatten(1).norm(dim=1), torch.ones(4), atol=1e-5)
    gram = torch.cat([a, b, treatment.gaussian(ill[0], 4, stream=1)]).flatten(1)
    assert ((gram @ gram.T) - torch.eye(12)).abs().max() < 0.05
    assert torch.equal(a, treatment.gaussian(ill[0], 4))


def test_fresh_noise_takes_the_step_it_is_told_and_keeps_the_picture(ill):
    p = Known(unit(ill.x0[:1]), unit(ill.x0[1:2]))
    case = ill[0]
    for strength in (0.05, 0.3):
        moved = methods.renoised(p, case, strength)
        assert (moved - case.xt).norm() / case.xt.norm() == pytest.approx(strength, rel=0.03)
    assert torch.allclose(methods.renoised(p, case, 0.0), case.xt, atol=1e-5)


def test_the_masked_direction_is_the_models_own_and_points_towards_the_average(ill, known):
    average = known.clean(ill.xt[:1], 10) + known.a
    row = Row("masked", "mean", masked=True, supervision="region")
    v = methods.direction(known, ill[0], row, average)
    assert (v * known.a).sum() == pytest.approx(1.0, abs=1e-4)
    back = methods.direction(known, ill[0], row, known.clean(ill.xt[:1], 10) - known.a)
    assert torch.allclose(back, -v, atol=1e-4)


def test_the_index_rule_takes_the_direction_that_leads_to_the_average(ill, known):
    """The first direction acts outside the region; among two, the row that knows it finds a."""
    weak = Known(known.b, known.a)  # 3 b b^T + 2 a a^T
    average = weak.clean(ill.xt[:1], 10) + known.a
    first = methods.direction(weak, ill[0], Row("mean", "mean"), average)
    assert abs((first * known.b).sum()) > 0.999
    best = methods.direction(
        weak, ill[0], Row("mean", "mean", among=2, supervision="region"), average
    )
    assert (best * known.a).sum() > 0.999


def test_the_projection_removes_what_the_rest_sees(ill, monkeypatch):
    """Two overlapping directions: the masked one loses its part along the rest's."""
    monkeypatch.setattr(treatment, "REST", 1)
    inside = ill.region[:1, None].expand(1, 3, 64, 64)
    a, b = unit(inside * ill.cure[:1]), unit((1 - inside) * ill.x0[:1])

    class Mixed(Known):
        def clean(self, x, t):
            along = 0.8 * self.a + 0.6 * self.b
            seen = (x * along).sum((1, 2, 3))[:, None, None, None]
            rest = (x * self.b).sum((1, 2, 3))[:, None, None, None]
            return seen * self.a + 4 * rest * self.b

    p = Mixed(a, b)
    average = p.clean(ill.xt[:1], 10) + a
    masked = Row("m", "mean", masked=True, supervision="region")
    plain = methods.direction(p, ill[0], masked, average)
    assert (plain * (0.8 * a + 0.6 * b)).sum() == pytest.approx(1.0, abs=1e-3)
    projected = methods.direction(p, ill[0], dataclasses.replace(masked, rest=1), average)
    assert (projected * a).sum() == pytest.approx(1.0, abs=1e-3)
    assert (projected * b).sum() == pytest.approx(0.0, abs=1e-3)


@pytest.mark.long
def test_a_sweep_gives_one_record_a_row_and_strength(ill, known):
    rows = [Row("random", "random"), Row("noise", "noise")]
    average = ill.x0[:1]
    records = methods.treat_all(
        known, ill[1], rows, lambda row: (0.05, 0.1), LIMIT, UNRELATED, average
    )
    assert [(r["row"], r["strength"]) for r in records] == [
        ("random", 0.05), ("random", 0.1), ("noise", 0.05), ("noise", 0.1)
    ]  # fmt: skip
    assert all(r["index"] == 1 and r["outcome"] in (0, 1, 2) for r in records)


def test_a_way_down_knows_the_times_of_its_grid(small):
    p, case = small
    assert treatment.grid(p, 250)[:2] == [250, 208] and treatment.grid(p, 999)[0] == 999
    for t in (251, 1000):
        with pytest.raises(ValueError, match="no time of the sampling grid"):
            treatment.trajectory(p, 3, [0], t)
    with pytest.raises(ValueError, match="does not come by t = 999"):
        treatment.descend(p, case.xt, 250, 999)
    alone = treatment.trajectory(p, 3, [1], 250)
    assert torch.allclose(treatment.trajectory(p, 3, [0, 1], 250)[1:], alone, atol=1e-4)


def test_a_case_of_a_batch_is_the_case_alone(ill):
    one = ill[2]
    assert len(one) == 1 and one.index == [2] and torch.equal(one.x0, ill.x0[2:])
    assert len(one.repeat(4)) == 4
    assert (ill.q[:, STRANGER] == 1).all()
    assert [case.index for case in ill] == [[0], [1], [2]]
    with pytest.raises(IndexError, match="0 to 2"):
        ill[3]


# Directions -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    """A model with a bottleneck and random weights, and one of its samples."""
    p = make_puppeteer()
    return p, treatment.admit(p, 3, [1], 250)


def encoder_map(p, case, pool=None):
    return mk.jacobian(mk.encoder(p, case.t, pool), case.xt)


def test_the_untreated_image_is_the_samples_own_at_every_time(small):
    p, case = small
    whole = mk.sample(p, seed=3, index=[1]).clamp(-1, 1)
    later = treatment.at(p, case, 83)
    assert torch.allclose(case.x0, whole, atol=1e-4) and case.steps is None
    assert torch.allclose(treatment.finish(p, later.xt, 83), whole, atol=1e-4)
    assert torch.allclose(treatment.descend(p, case.xt, 250, 83), later.xt, atol=1e-4)


KEPT = {"u": torch.randn(3, 8, 8, 8, generator=torch.Generator().manual_seed(4))}
KEPT |= {"x": torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(5))}
SOME = [
    Row("pooled", "pooled", among=3, supervision="region"),
    Row("span", "span", masked=True, among=4, supervision="region"),
    Row("carried", "carried", key="u"),
    Row("pulled", "carried", key="u", lift="pull"),
    Row("pca", "carried", key="u", lift="pull", among=3, supervision="region"),
    Row("another", "another", key="x"),
    Row("reader", "reader"),
    Row("aimed", "aimed", masked=True, rest=2, supervision="region"),
    Row("at noise", "aimed", masked=True, key="noise", supervision="region"),
]


@pytest.mark.long
@pytest.mark.parametrize("row", SOME, ids=lambda row: row.name)
def test_every_row_gives_one_unit_direction_and_its_opposite_with_the_other_sign(small, row):
    p, case = small
    average = torch.zeros_like(case.x0)
    v = methods.direction(p, case, row, average, KEPT)
    other = methods.direction(p, case, dataclasses.replace(row, sign=-1), average, KEPT)
    assert v.shape == case.xt.shape and float(v.norm()) == pytest.approx(1.0, abs=1e-4)
    assert torch.equal(other, -v)


def test_what_is_kept_is_taken_by_index_and_lifted_as_told(small):
    p, case = small
    u, A = KEPT["u"][1], encoder_map(p, case)  # index 1 of 3
    average = torch.zeros_like(case.x0)
    pulled, another = (methods.direction(p, case, SOME[i], average, KEPT) for i in (3, 5))
    assert torch.allclose(pulled, unit(A.pull(u[None])), atol=1e-4)
    assert torch.allclose(another, unit(KEPT["x"][1:2]), atol=1e-6)
    row = Row("carried", "carried", key="u", lift="pinv")
    image = A.push(methods.direction(p, case, row, average, KEPT)).flatten()
    U = mk.svd(A, methods.SPAN).U.flatten(1)
    wanted = (u.flatten() @ U.T) @ U
    assert torch.nn.functional.cosine_similarity(image, wanted, dim=0) > 0.999
    with pytest.raises(ValueError, match="needs the kept directions 'u'"):
        methods.direction(p, case, row, average)


def test_local_rows_are_the_singular_vectors_of_their_map(small):
    p, case = small
    average = torch.zeros_like(case.x0)
    pooled = methods.candidates(p, case, Row("pooled", "pooled", among=3), average)
    exact = mk.svd(encoder_map(p, case, "sum"), 3).V
    assert (pooled.flatten(1) @ exact.flatten(1).T).abs().diagonal().min() > 0.999
    V = methods.local_directions(p, case, "mean", True, methods.TRIED).flatten(1)
    span = methods.candidates(p, case, SOME[1], average).flatten(1)
    assert torch.allclose(span @ span.T, torch.eye(4), atol=1e-4)
    assert torch.allclose(span @ V.T @ V, span, atol=1e-4)


@pytest.mark.long
def test_no_first_step_gains_more_than_the_aimed_one(small):
    p, case = small
    average = torch.full_like(case.x0, 0.3)
    row = Row("aimed", "aimed", masked=True, supervision="region")

    def gain(v):
        s, spot = 1e-2, case.region[:, None]
        with torch.no_grad():
            ends = [p.clean(case.xt + a * v, case.t) for a in (-s, s)]
            way = average - p.clean(case.xt, case.t)
        return float(((ends[1] - ends[0]) / (2 * s) * way * spot).sum())

    v = methods.direction(p, case, row, average)
    noise = methods.direction(p, case, dataclasses.replace(row, key="noise"), average)
    best = methods.direction(p, case, Row("m", "mean", True, 0, 6, "region"), average)
    lot = treatment.gaussian(case, 20)
    others = [gain(u) for u in (noise, best, *lot.split(1))]
    assert gain(v) > max(others) and min(others[:2]) > 0
    whole = methods.direction(p, case, dataclasses.replace(row, masked=False), average)
    assert not torch.allclose(v, whole, atol=1e-3)


def test_an_aimed_direction_is_the_pull_by_hand(ill, known):
    case, average = ill[0], ill.x0[1:2]
    way = (average - known.clean(case.xt, case.t)) * case.region
    row = Row("aimed", "aimed", masked=True, supervision="region")
    v = methods.direction(known, case, row, average)
    assert torch.allclose(v, unit(known.clean(way, case.t)), atol=1e-4)  # M is symmetric


@pytest.mark.parametrize("part", [0.5, 2.0])
def test_a_clipped_direction_is_the_pull_over_the_clip_where_that_is_shorter(ill, known, part):
    case, average = ill[0], ill.x0[1:2]
    pull = known.clean((average - known.clean(case.xt, case.t)) * case.region, case.t)
    row = Row("aimed", "aimed", masked=True, supervision="region", clip=part * float(pull.norm()))
    v = methods.direction(known, case, row, average)
    assert torch.allclose(v, unit(pull) / max(1.0, part), atol=1e-4)
    other = methods.direction(known, case, dataclasses.replace(row, sign=-1), average)
    assert torch.equal(other, -v)


def test_where_there_is_no_way_to_go_a_clipped_step_is_none_and_a_unit_step_is_whole(ill, known):
    case = ill[0]
    average = known.clean(case.xt, case.t) + 1e-5 * known.a  # all but there
    row = Row("aimed", "aimed", masked=True, supervision="region")
    whole = methods.direction(known, case, row, average)
    none = methods.direction(known, case, dataclasses.replace(row, clip=1.0), average)
    assert float(whole.norm()) == pytest.approx(1.0, abs=1e-4) and float(none.norm()) < 1e-3


@pytest.mark.long
def test_a_shorter_direction_makes_a_shorter_step_where_the_row_has_a_clip(small):
    p, case = small
    plain = Row("r", "aimed", after=(208,), course=(208,))
    clipped, v = dataclasses.replace(plain, clip=1.0), treatment.gaussian(case)

    def course(row, u, strength):
        return methods.treat(p, case, row, u, [strength], lambda _: u)

    half, whole = course(clipped, v / 2, 0.2), course(clipped, v, 0.1)
    assert torch.allclose(half, whole, atol=1e-4)
    assert torch.allclose(course(plain, v / 2, 0.1), whole, atol=1e-4)
    assert not torch.allclose(course(clipped, v, 0.2), whole, atol=1e-3)


@pytest.mark.parametrize(
    "row", [{"kind": "h", "clip": 1.0}, {"clip": -1.0}, {"clip": 1.0, "edit": "guide"}]
)
def test_only_the_pull_of_a_move_is_clipped(row):
    with pytest.raises(ValueError, match="clip is a length > 0"):
        Row(**{"name": "x", "kind": "aimed"} | row)


def test_references_do_what_they_say(small, ill, known):
    p, case = small
    v = methods.reference(p, case, "reader")

    def logit(x):
        return float(mk.show.reader.reader()(p.clean(x, case.t))[:, STRANGER])

    with torch.no_grad():
        assert logit(case.xt + v) < logit(case.xt) < logit(case.xt - v)
    oracle = methods.reference(known, ill[0], "oracle")
    assert (oracle * known.a).sum() == pytest.approx(1.0, abs=1e-3)  # J^T D* = 3 a <a, D*>


def test_the_counterfactual_direction_leads_to_the_cure(ill):
    """With E[x_0 | x_t] = x_t / sqrt(abar) noise-free, inversion is a scaling."""

    class Plain(model.Model):
        def __init__(self):
            schedule = model.linear_schedule(1000)
            super().__init__((3, 64, 64), schedule, torch.device("cpu"), torch.float32)

        def noise(self, x, t):
            return torch.zeros_like(x)

    case = dataclasses.replace(ill[0], t=250)
    v = methods.reference(Plain(), case, "counterfactual")
    assert (v * unit(case.cure)).sum() > 0.999


@pytest.mark.long
@pytest.mark.parametrize("edit", ["move", "guide", "shoot", "inject"])
def test_every_edit_gives_an_image_a_strength_and_leaves_it_at_none(small, edit):
    p, case = small
    row = Row("h", "h", edit=edit)
    v = methods.direction(p, case, row, torch.zeros_like(case.x0))
    images = methods.treat(p, case, row, v, [1e-6, 0.05])
    assert images.shape == (2, 3, 64, 64) and images.abs().max() <= 1
    assert torch.allclose(images[:1], case.x0, atol=1e-3)
    assert not torch.allclose(images[1:], case.x0, atol=1e-3)


@pytest.mark.parametrize("name", methods.WORDS)
def test_a_word_that_no_row_knows_is_refused_where_the_row_is_made(name):
    with pytest.raises(ValueError, match=f"row 'x': {name} is one of .*; got 'nonsense'"):
        Row(**{"name": "x", "kind": "random", name: "nonsense"})


def test_a_normalised_edit_is_another(small):
    p, case = small
    v = treatment.gaussian(case)
    plain, restored = (Row("r", "random", normalised=n) for n in (False, True))
    a, b = (methods.treat(p, case, row, v, [0.05]) for row in (plain, restored))
    assert a.shape == b.shape and not torch.allclose(a, b, atol=1e-3)


def test_the_aftercare_takes_the_rest_back_where_the_model_is_linear(ill, known, monkeypatch):
    monkeypatch.setattr(treatment, "REST", 1)
    case = ill[0]
    moved = case.xt + 3 * known.a + 2 * known.b
    settled = treatment.settle(known, case, moved)
    before, after = (known.clean(x, 10) for x in (case.xt, settled))
    outside = 1 - case.region
    assert ((after - before) * outside).abs().max() < 1e-3
    assert ((after - before) * known.a).sum() == pytest.approx(9.0, rel=0.02)  # he stays gone


@pytest.mark.long
def test_the_aftercare_follows_its_times(small):
    p, case = small
    row = Row("h", "h", after=(208, 83))
    v = methods.direction(p, case, row, torch.zeros_like(case.x0))
    plain = methods.treat(p, case, Row("h", "h"), v, [0.05])
    cared = methods.treat(p, case, row, v, [0.05])
    drift = [((y - case.x0) * (1 - case.region)).norm() for y in (plain, cared)]
    assert drift[1] < drift[0]


@pytest.mark.long
def test_a_course_takes_its_step_again_at_each_later_time(small):
    p, case = small
    row = Row("r", "random", after=(208, 125, 83), course=(208, 83))
    asked = []

    def find(later):
        asked.append(later.t)
        return treatment.gaussian(later)

    course = methods.treat(p, case, row, find(case), [1e-6, 0.05], find)
    once = methods.treat(p, case, dataclasses.replace(row, course=()), find(case), [1e-6, 0.05])
    assert asked == [case.t, 208, 83, case.t]
    assert torch.allclose(course[0], once[0], atol=1e-3)
    assert not torch.allclose(course[1], once[1], atol=1e-3)


def test_a_course_needs_times_and_somebody_to_ask(small):
    p, case = small
    with pytest.raises(ValueError, match="at times given by after"):
        Row("r", "random", after=(208,), course=(208, 83))
    with pytest.raises(ValueError, match="give `find`"):
        row = Row("r", "random", after=(208,), course=(208,))
        methods.treat(p, case, row, treatment.gaussian(case), [0.05])


def test_the_healthy_get_an_imagined_region_and_no_cure():
    q = puppets.sample_factors(4, 8, stranger=0)
    imagined = treatment.imagined(q, 1, [0, 1, 2, 3])
    assert torch.equal(imagined[:, :STRANGER], q[:, :STRANGER])
    assert not torch.equal(imagined[:, STRANGER + 1 :], q[:, STRANGER + 1 :])
    assert torch.equal(imagined, treatment.imagined(q, 1, [0, 1, 2, 3]))
    ill = puppets.sample_factors(4, 8, stranger=1)
    assert torch.equal(treatment.imagined(ill, 1, [0, 1, 2, 3]), ill)


@pytest.mark.parametrize("spectrum", ["nothing", "one direction"])
def test_the_way_back_divides_by_no_zero(spectrum):
    variances = torch.zeros(48)
    variances[47] = float(spectrum == "one direction")
    p = mk.diffusion.gaussian.GaussianModel(torch.zeros(3, 4, 4), variances.diag())
    zero = torch.zeros(1, 3, 4, 4)
    case = treatment.Cases(0, [0], 500, 24, *[zero] * 5, torch.zeros(1, 4, 4))
    drift = torch.eye(48)[46:].sum(0).reshape(1, 3, 4, 4)
    settled = treatment.settle(p, case, drift).flatten()
    assert torch.allclose(settled[:47], drift.flatten()[:47], atol=1e-4)
    assert abs(float(settled[47]) - (0 if variances[47] else 1)) < 1e-2
