"""What somebody may believe of a region, and the step that turns a dial by a given amount."""

import dataclasses
import math

import torch

from mathkit.chapters import treatment
from mathkit.diffusion import gaussian
from mathkit.show import puppets
from studies import conditions, methods


def region_of(rows, columns, size=64):
    region = torch.zeros(1, size, size)
    region[:, slice(*rows), slice(*columns)] = 1
    return region


def test_beliefs_are_what_their_names_say():
    region = region_of((20, 40), (3, 15))
    region[:, 20:25, 3:8] = 0  # a corner is missing: no rectangle
    told = conditions.told(region)
    assert torch.equal(told["outline"], region) and told["everywhere"].all()
    box = region_of((14, 46), (0, 21))
    assert torch.equal(told["box"], box)
    assert torch.equal(told["half"], region * region_of((30, 64), (0, 64)))
    assert torch.equal(told["missed"][:, 6:, 6:], region[:, :-6, :-6])
    assert told["missed"].sum() == region.sum()


def test_a_region_missed_moves_to_the_middle_from_either_side():
    for columns, moved in (((3, 15), (9, 21)), ((50, 60), (44, 54))):
        told = conditions.told(region_of((10, 20), columns))
        assert torch.equal(told["missed"], region_of((16, 26), moved))


def case_of(region, size):
    zero = torch.zeros(1, 3, size, size)
    return treatment.Cases(0, [3], 250, None, zero, *[zero] * 4, region)


def test_both_edges_cover_strangers_nobody_has_drawn_yet_and_spare_the_middle():
    edges = conditions.both_edges()
    fresh = puppets.stranger_mask(puppets.sample_factors(100, seed=77, stranger=1)) > 0.5
    seen = (fresh * edges).sum((1, 2)) / fresh.sum((1, 2))
    assert edges.shape == (1, 64, 64) and float(seen.min()) > 0.9
    assert not edges[..., 26:38].any() and torch.equal(edges.unique(), torch.tensor([0.0, 1.0]))
    one = treatment.region(fresh[:1, None].float())
    assert float((fresh[1:] * one).sum() / fresh[1:].sum()) < 0.6  # one region is not enough


def test_a_belief_holds_at_every_time_and_leaves_the_case_alone():
    region = region_of((0, 2), (0, 2), 4)
    case = case_of(region, 4)
    case.known = {250: case, 83: dataclasses.replace(case, t=83, known=case.known)}
    for one in case.known.values():
        one.known = case.known
    other = 1 - region
    believed = case.believing(other)
    for t in (250, 83):
        assert torch.equal(treatment.at(None, believed, t).region, other)
        assert torch.equal(treatment.at(None, case, t).region, region)


def test_a_dials_step_turns_it_by_what_was_asked_where_all_is_linear(monkeypatch):
    draw = torch.Generator().manual_seed(4)
    root = torch.randn(48, 48, generator=draw)
    p = gaussian.GaussianModel(torch.randn(3, 4, 4, generator=draw), root @ root.T / 48)
    dials = torch.randn(48, 13, generator=draw)
    monkeypatch.setattr(methods, "reader", lambda device: lambda x: x.flatten(1) @ dials)
    case = case_of(torch.ones(1, 4, 4), 4)
    step = conditions.dial_step(p, case, 2, 0.25)
    turned = (p.clean(step, 250) - p.clean(0 * step, 250)).flatten() @ dials
    assert abs(float(turned[2]) - 0.25) < 1e-4

    whole = p.clean(torch.eye(48).reshape(48, 3, 4, 4), 250) - p.clean(0 * step, 250)
    slope = whole.flatten(1) @ dials[:, 2]  # of every pixel of x_t
    shortest = 0.25 * slope / slope.square().sum()
    assert (step.flatten() - shortest).norm() < 1e-3 * shortest.norm()
    longer = shortest + (dials[:, 1] - slope * (dials[:, 1] @ slope) / slope.square().sum())
    assert abs(float(longer @ slope) - 0.25) < 1e-4 and longer.norm() > step.norm()


def test_pulls_have_the_lengths_of_the_closed_form(monkeypatch):
    draw = torch.Generator().manual_seed(5)
    root = torch.randn(48, 48, generator=draw)
    p = gaussian.GaussianModel(torch.randn(3, 4, 4, generator=draw), root @ root.T / 48)
    monkeypatch.setattr(conditions, "read_factors", lambda images: torch.full((1, 13), 0.25))
    case, average = case_of(region_of((0, 2), (0, 3), 4), 4), torch.full((1, 3, 4, 4), 0.3)
    found = conditions.pull_lengths(p, case, average)

    J = treatment.mean_map(p, case).dense().double()
    spot = case.region.expand(3, 4, 4).flatten().double()
    w = (average - p.clean(case.xt, 250)).flatten().double()
    pull = J.T @ (spot * w)
    V = torch.linalg.svd((1 - spot)[:, None] * J).Vh[: conditions.ADDED[0].rest]
    right = {"way": spot * w, "pulled": pull, "everywhere": J.T @ w}
    right["aimed"] = pull - V.T @ (V @ pull)
    assert found.pop("seen") == round(-math.log(3), 3) and found.keys() == right.keys()
    for name, v in right.items():
        assert abs(found[name] - float(v.norm())) < 2e-3 * float(v.norm()) + 1e-3, name
    assert found["aimed"] < found["pulled"]


def test_tables_are_told_in_brief():
    entry = {"outcome": [1, 0], "side": [30, 50], "outside": [0, 0]}
    table = {"rows": {"box: redrawn": [entry], "box: pasted": [entry], "half: redrawn": [entry]}}
    told = conditions.by_belief(table)
    assert told["box"] == {"redrawn": "1 / 1 / 0; 0.040", "pasted": "1 / 1 / 0; 0.040"}
    assert list(told["half"]) == ["redrawn"]

    rows = [
        {"dial": dial, "way": way, "miss": i + j + k, "side": 0}
        for i, dial in enumerate(conditions.DIALS)
        for j, way in enumerate(conditions.WAYS)
        for k in (0, 1)
    ]
    means = conditions.by_dial({"rows": rows}, "miss")
    assert means[conditions.WAYS[1]] == [1.5, 2.5, 3.5]
