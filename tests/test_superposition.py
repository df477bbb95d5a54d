"""Toy models of superposition against closed forms, Monte Carlo, PCA and plain loops."""

import dataclasses
import json
import math
import random

import pytest
import torch
from sklearn.decomposition import PCA

from mathkit import data
from mathkit.chapters import superposition
from studies import toy_models


def law(*densities, n=5, **more):
    return superposition.Features(torch.tensor(densities)[:, None].repeat(1, n), **more)


def drawn(features, count=200_000, seed=0):
    return features.draw(count, torch.Generator().manual_seed(seed))


def polygon(n, length=1.0):
    """n vectors of one length, evenly around the circle: (1, 2, n)."""
    angle = torch.arange(n) * 2 * math.pi / n
    return length * torch.stack([angle.cos(), angle.sin()])[None]


# The features ------------------------------------------------------------------------------------


def test_a_feature_is_on_with_its_density_and_then_uniform():
    x = drawn(law(0.05, 0.4, 1.0, n=2))
    for p, at in zip((0.05, 0.4, 1.0), x, strict=True):
        on = at[at > 0]
        assert abs((at > 0).double().mean() - p) < 0.004 and at.min() >= 0 and at.max() <= 1
        levels = torch.quantile(on[:50_000], torch.tensor([0.1, 0.5, 0.9]))
        assert torch.allclose(levels, torch.tensor([0.1, 0.5, 0.9]), atol=0.02)
        assert abs(torch.corrcoef(at)[0, 1]) < 0.01


def test_signed_features_are_symmetric():
    x = drawn(law(0.3, n=2, signed=True))
    on = x[x != 0]
    assert abs(on.mean()) < 0.01 and abs(on.abs().mean() - 0.5) < 0.01 and on.min() < -0.99


@pytest.mark.parametrize("sets, both", [("correlated", 0.2), ("anticorrelated", 0.0)])
def test_sets_are_on_together_or_never(sets, both):
    (x,) = drawn(law(0.2, n=6, sets=sets, size=3))
    on = x > 0
    assert torch.allclose(on.double().mean(1), torch.full((6,), 0.2).double(), atol=0.005)
    assert abs((on[0] & on[1]).double().mean() - both) < 0.005
    assert abs((on[0] & on[3]).double().mean() - 0.04) < 0.005
    assert abs(torch.corrcoef(x[:2][:, on[0] & on[1]])[0, 1]) < 0.02 if both else True
    assert abs(x[1][on[1]].mean() - 0.5) < 0.01


def test_instances_are_cut_from_the_same_numbers():
    few, many = drawn(law(0.1, 0.5), 1000)
    assert bool((many[few > 0] > 0).all())


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: superposition.Features(torch.full((5,), 0.5)), r"\(N, n\)"),
        (lambda: law(0.0), r"\(0, 1\]"),
        (lambda: law(1.5), r"1.5"),
        (lambda: law(0.5, sets="alike", size=5), "correlated"),
        (lambda: law(0.5, sets="correlated", size=2), "divides n = 5"),
        (lambda: law(0.5, n=6, sets="anticorrelated", size=3), "3 p <= 1"),
        (
            lambda: superposition.Features(torch.tensor([[0.1, 0.2]]), "correlated", 2),
            "one density",
        ),
        (lambda: superposition.train(law(0.5), 2, kind="tanh", steps=1), "'tanh'"),
        (lambda: superposition.train(law(0.5), 0), "m, steps"),
        (lambda: superposition.train(law(0.5), 2, starts=[0, 1]), "1 instances"),
        (lambda: superposition.dropped(torch.zeros(2, 5)), "n - 1, n"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# Training ----------------------------------------------------------------------------------------


def plain(features, m, importance, kind, steps, batch, seed, start):
    """One instance by an autograd loop with matrices (batch, n) and `torch.nn.functional`."""
    random = torch.Generator().manual_seed((seed + 1) * 1_000_003 + start)
    n = features.density.shape[1]
    std = math.sqrt(2 / (n + m))
    W = torch.nn.Parameter(std * torch.randn(m, n, generator=random))
    back = torch.nn.Parameter(std * torch.randn(n, m, generator=random))
    b = torch.nn.Parameter(torch.zeros(n))
    step = torch.optim.AdamW([W, b] + ([back] if kind == "abs" else []), lr=1e-3)
    data = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = features.draw(batch, data)[0].T
        h = x @ W.T
        h = torch.relu(h) if kind in ("hidden", "abs") else h
        y = h @ (back.T if kind == "abs" else W) + b
        y = y if kind == "linear" else torch.relu(y)
        target = x.abs() if kind == "abs" else x
        loss = ((y - target) ** 2 * importance).sum(1).mean()
        step.zero_grad()
        loss.backward()
        step.step()
    return W.detach(), b.detach()


@pytest.mark.parametrize("kind", superposition.KINDS)
def test_a_batch_of_instances_goes_as_each_alone_in_a_plain_loop(kind):
    features = law(0.3, 0.1, signed=kind == "abs")
    importance = 0.9 ** torch.arange(5.0)
    toys = superposition.train(
        features, 3, importance, kind, steps=60, batch=64, seed=4, starts=[7, 2]
    )
    for j, start in enumerate((7, 2)):
        W, b = plain(features[j : j + 1], 3, importance, kind, 60, 64, 4, start)
        assert torch.allclose(toys.W[j], W, atol=1e-5) and torch.allclose(toys.b[j], b, atol=1e-5)


def test_lots_and_paths_do_not_change_the_course(monkeypatch):
    features = law(*torch.linspace(0.1, 1, 7).tolist())
    whole = superposition.train(features, 2, steps=30, batch=64, record=(0, 10, 30))
    monkeypatch.setattr(superposition, "CACHE", 3 * 5 * 64)
    lots = superposition.train(features, 2, steps=30, batch=64, record=(0, 10, 30))
    assert len(whole.path) == len(lots.path) == 3
    for a, b in zip([whole, *whole.path], [lots, *lots.path], strict=True):
        assert torch.allclose(a.W, b.W, atol=1e-6)
    assert torch.equal(whole.W, whole.path[-1].W) and not torch.equal(whole.W, whole.path[1].W)
    assert torch.allclose(
        whole.loss(features, count=4096), lots.loss(features, count=4096), atol=1e-6
    )


def test_training_can_go_on_from_given_weights():
    features = law(0.05)
    start = superposition.Toys("relu", polygon(5), torch.zeros(1, 5))
    toys = superposition.train(features, 2, begin=start, steps=3, lr=1e-4)
    assert torch.allclose(toys.W, start.W, atol=1e-3) and torch.equal(start.W, polygon(5))
    with pytest.raises(ValueError, match="'linear'"):
        superposition.train(features, 2, kind="linear", begin=start, steps=1)


def test_the_loss_is_the_closed_form_where_there_is_one():
    """Ignoring a feature: I (p/3 - p^2/4); the antipodal pair: p^2 (1 + I) / 6."""
    p, importance = 0.3, 0.4
    weight = torch.tensor([1.0, importance])
    ignoring = superposition.Toys(
        "relu", torch.tensor([[[1.0, 0.0]]]), torch.tensor([[0.0, p / 2]])
    )
    pair = superposition.Toys("relu", torch.tensor([[[1.0, -1.0]]]), torch.zeros(1, 2))
    features = law(p, n=2)
    exact = importance * (p / 3 - p**2 / 4), p**2 * (1 + importance) / 6
    for toy, value in zip((ignoring, pair), exact, strict=True):
        assert float(toy.loss(features, weight, count=400_000)) == pytest.approx(value, rel=0.02)
        by_rule = superposition.pair_loss(
            toy.W[0, 0].double(), toy.b[0].double(), torch.tensor(importance), torch.tensor(p)
        )
        assert float(by_rule) == pytest.approx(value, rel=1e-3)


@pytest.mark.long
def test_five_sparse_features_make_a_pentagon_and_dense_ones_keep_two():
    features = law(0.05, 0.05, 0.05, 1.0, 1.0, 1.0)  # a start may end in a worse arrangement
    tries = superposition.train(
        features, 2, 1.0, steps=6000, batch=512, starts=[0, 1, 2] * 2, seed=1
    )
    toys = tries.best(tries.loss(features), groups=2)
    W, b = toys.W[0], toys.b[0]
    norm, angle = torch.linalg.vector_norm(W, dim=0), torch.atan2(W[1], W[0]).sort().values
    assert torch.allclose(norm, torch.full((5,), 1.135), atol=0.03)
    assert torch.allclose(angle.diff(), torch.full((4,), 2 * math.pi / 5), atol=0.1)
    assert torch.allclose(b, torch.full((5,), -0.246), atol=0.03)
    assert abs(float(superposition.dimensions_per_feature(toys.W)[1]) - 1) < 0.2


@pytest.mark.long
def test_a_linear_model_is_pca():
    """Without the ReLU, and with a bias, the rows of W span the top principal axes of the data."""
    features = law(0.5, n=6, sets="correlated", size=2)
    toys = superposition.train(
        features, 3, kind="linear", steps=4000, batch=512, lr=3e-3, anneal=True
    )
    axes = torch.tensor(PCA(3).fit(drawn(features)[0].T.numpy()).components_, dtype=torch.float32)
    cosines = torch.linalg.svdvals(torch.linalg.qr(toys.W[0].T).Q.T @ axes.T)
    assert cosines.min() > 0.999
    singular = torch.linalg.svdvals(toys.W[0])
    assert torch.allclose(singular, torch.ones(3), atol=0.02)


# What is read off W ------------------------------------------------------------------------------


@pytest.mark.parametrize("n, share", [(2, 1.0), (3, 2 / 3), (4, 1 / 2), (5, 2 / 5), (7, 2 / 7)])
def test_dimensionality_of_a_tight_frame_is_m_over_n(n, share):
    W = polygon(n, 1.3) if n > 2 else 1.3 * torch.eye(2)[None]
    assert torch.allclose(superposition.dimensionality(W), torch.full((1, n), share), atol=1e-5)
    assert float(superposition.dimensions_per_feature(W)) == pytest.approx(2 / (1.69 * n), rel=1e-5)


def test_ideal_fractions_are_those_of_their_polytopes():
    tetrahedron = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]).T
    high = 1 / math.sqrt(3)
    ring = torch.arange(4) * math.pi / 2
    turned = ring + math.pi / 4
    radius = math.sqrt(1 - high**2)
    top, low = (
        torch.stack([radius * a.cos(), radius * a.sin(), torch.full((4,), z)])
        for a, z in ((ring, high), (turned, -high))
    )
    found = {
        "3/4": tetrahedron,
        "2/3": polygon(3)[0],
        "1/2": torch.cat([torch.eye(2), -torch.eye(2)], 1),
        "2/5": polygon(5)[0],
        "3/8": torch.cat([top, low], 1),
    }
    for name, W in found.items():
        assert torch.allclose(
            superposition.dimensionality(W),
            torch.full((W.shape[1],), superposition.IDEAL[name]),
            atol=1e-5,
        )


def test_a_forgotten_feature_has_no_dimension_and_nothing_is_divided_by_zero():
    W = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert torch.equal(superposition.dimensionality(W), torch.tensor([1.0, 1.0, 0.0]))


def test_lines_counts_near_and_beside():
    on = torch.cat([torch.full((12,), 0.5), torch.full((3,), 0.5125), torch.full((5,), 0.41)])
    assert superposition.lines(on)["1/2"] == (12, 3) and superposition.lines(on)["2/5"] == (0, 5)


def test_dropped_tells_the_configurations_apart():
    pair, first, second = torch.tensor([[[1.0, -0.9]], [[1.0, 0.1]], [[0.0, -1.0]]])
    assert [tuple(map(int, superposition.dropped(W))) for W in (pair, first, second)] == [
        (0, 1),
        (1, 1),
        (0, 0),
    ]
    W = torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]])  # 0 and 2 antipodal, 1 by itself
    turn = torch.linalg.qr(torch.randn(2, 2, generator=torch.Generator().manual_seed(0))).Q
    assert tuple(map(int, superposition.dropped(turn @ W))) == (0, 2)


def test_an_attack_hurts_superposed_features_more():
    """At p = 1 no feature leaks: moving along a kept one costs (eps E|x|)^2 on average at most."""
    features = law(0.2)
    crowded = superposition.Toys("relu", polygon(5, 1.1), torch.full((1, 5), -0.2))
    alone = superposition.Toys(
        "relu", torch.eye(5)[None, :2], torch.tensor([[0, 0, 0.1, 0.1, 0.1]])
    )
    rise, calm = (float(superposition.attack(t, features)) for t in (crowded, alone))
    assert rise > 2 * calm > 0
    assert float(superposition.attack(crowded, features, eps=0)) == 0


# The border --------------------------------------------------------------------------------------


def test_the_closed_border_is_where_the_two_losses_meet():
    importance = torch.tensor([0.1, 0.25, 0.5, 1.0, 2.0, 10.0])
    p = superposition.border(importance)
    ignored = importance.clamp_max(1) * (p / 3 - p**2 / 4)
    assert torch.allclose(ignored, p**2 * (1 + importance) / 6, rtol=1e-5)
    assert float(superposition.border(torch.tensor(1.0))) == pytest.approx(4 / 7)


@pytest.mark.long
def test_the_free_border_lies_outside_the_closed_one_and_is_symmetric():
    importance = torch.tensor([0.1, 0.25, 0.5, 2.0, 10.0])
    free = superposition.best_border(importance)
    assert bool((free > superposition.border(importance)).all())
    assert torch.allclose(free[[0, 2]], free[[4, 3]], atol=2e-3)


def test_the_best_pair_cannot_be_improved_and_beats_its_start():
    importance, p = torch.tensor([0.25, 0.5]), torch.tensor([0.3, 0.2])
    w, b, loss = superposition.best_pair(importance, p)
    start = superposition.pair_loss(torch.tensor([[1.0, -1.0]]), torch.zeros(1, 2), importance, p)
    assert bool((loss < start).all())
    noise = torch.Generator().manual_seed(0)
    for _ in range(20):
        dw, db = (0.02 * torch.randn(2, 2, generator=noise, dtype=torch.float64) for _ in range(2))
        assert bool(
            (superposition.pair_loss(w + dw, b + db, importance.double(), p.double()) > loss).all()
        )


@pytest.mark.slow
def test_trained_models_fall_on_the_two_sides_of_the_numerical_border():
    importance = torch.tensor([0.1, 0.25, 0.5]).repeat(2)
    p = superposition.best_border(importance) * torch.tensor([0.75] * 3 + [1.4] * 3)
    tries = 6
    features = superposition.Features(p.repeat_interleave(tries)[:, None].repeat(1, 2))
    weight = torch.stack([torch.ones(6), importance], 1).repeat_interleave(tries, 0)
    toys = superposition.train(features, 1, weight, starts=list(range(tries)) * 6, batch=512)
    best = toys.best(toys.loss(features, weight), 6)
    i, j = superposition.dropped(best.W)
    assert (i != j).tolist() == [True] * 3 + [False] * 3


# The sweeps --------------------------------------------------------------------------------------


def test_a_grid_point_alone_goes_as_in_the_grid():
    sweep = dataclasses.replace(toy_models.RECIPES["one rarer"], steps=40, batch=64, tries=3)
    whole, alone = (
        toy_models.fit_toys(sweep, "relu", 2),
        toy_models.fit_toys(sweep, "relu", 2, at=[4]),
    )
    assert torch.allclose(whole.toys.W[4], alone.toys.W[0], atol=1e-5)
    assert torch.allclose(whole.losses[4], alone.losses[0], rtol=1e-4)


def test_the_best_of_the_tries_is_kept():
    sweep = dataclasses.replace(toy_models.RECIPES["intro"], steps=40, batch=64)
    found = toy_models.fit_toys(sweep, "relu", 0)
    law_, importance = sweep.law()
    again = found.toys.loss(law_, importance, count=16_384)
    assert torch.allclose(again, found.losses.min(1).values, atol=1e-6)
    assert found.losses.shape == (8, 4)


def test_a_recipe_that_keeps_what_nobody_knows_is_refused():
    sweep = dataclasses.replace(toy_models.RECIPES["intro"], steps=1, batch=8, tries=1, keep="all")
    with pytest.raises(ValueError, match="keeps weights, shape.*'all'"):
        toy_models.recipe_row(sweep, "relu", 0)


def test_points_vary_density_then_importance_then_rarity():
    sweep = toy_models.Recipe(
        3, 2, (0.5, 0.1), importances=(1.0, 2.0), rarities=(1.0, 0.5), fade=0.9
    )
    density, importance = sweep.points()
    assert density.shape == (8, 3) and importance[2].tolist() == pytest.approx([1, 0.9, 1.62])
    assert density[5].tolist() == pytest.approx([0.1, 0.1, 0.05])


@pytest.mark.parametrize("name", toy_models.RECIPES)
def test_every_sweep_runs_and_its_row_is_plain(name):
    sweep = toy_models.RECIPES[name]
    small = dataclasses.replace(
        sweep, densities=sweep.densities[:2], importances=sweep.importances[:2],
        rarities=sweep.rarities[:2], steps=2, batch=8, tries=min(2, sweep.tries),
        record=(0, 2) if sweep.record else (),
    )  # fmt: skip
    for kind in sweep.kinds:
        row = toy_models.recipe_row(small, kind, 0)
        assert row["kind"] == kind and len(row["loss"]) == len(small.points()[0])
        assert all(isinstance(v, (str, int, list, dict)) for v in row.values())


def test_the_stored_table_was_made_by_these_sweeps():
    table = data.stored("superposition")
    now = {name: dataclasses.asdict(sweep) for name, sweep in toy_models.RECIPES.items()}
    assert table["sweeps"] == json.loads(json.dumps(now))
    for name, sweep in toy_models.RECIPES.items():
        found = {(row["kind"], row["seed"]) for row in table["rows"][name]}
        assert found == {(kind, seed) for kind in sweep.kinds for seed in toy_models.SEEDS}


@pytest.mark.slow
def test_a_row_of_the_stored_table_is_what_it_was():
    name = random.choice([n for n, s in toy_models.RECIPES.items() if s.n <= 20])
    sweep = toy_models.RECIPES[name]
    row = random.choice(data.stored("superposition")["rows"][name])
    at = random.randrange(len(row["loss"]))
    found = toy_models.fit_toys(sweep, row["kind"], row["seed"], at=[at]).toys
    law_, importance = sweep.law(slice(at, at + 1))
    now = float(found.loss(law_, importance))
    assert now == pytest.approx(row["loss"][at], rel=0.02, abs=2e-5), (name, row["seed"], at)
