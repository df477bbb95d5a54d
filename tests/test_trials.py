"""The trial: its rows are fair, its plan is the protocol's, and its tables keep their order."""

import dataclasses
import json

import pytest
import torch
from conftest import make_tiny_unet

from mathkit import cases, models, trials
from mathkit.directions import Row

STRENGTHS = {row.name: trials.strengths_of(row, 0.01, 0.09) for row in trials.ROWS}
CHOSEN = {"strengths": STRENGTHS}


def test_every_row_has_a_name_of_its_own_and_survives_json():
    names = [row.name for row in trials.ROWS]
    assert len(set(names)) == len(names)
    for row in trials.ROWS:
        assert Row(**json.loads(json.dumps(dataclasses.asdict(row)))) == row


def test_the_control_gets_every_choice_that_the_primary_row_gets():
    by_name = {row.name: row for row in trials.ROWS}
    primary, control = by_name[trials.PRIMARY], by_name[trials.CONTROL]
    for choice in ("among", "supervision", "after", "edit", "sign", "t"):
        assert getattr(primary, choice) == getattr(control, choice)
    assert control.kind == "random"


def test_the_doses_and_the_two_strengths_around_them():
    first, other = trials.FIRST[0], trials.OTHERS[0]
    assert trials.strengths_of(first, 0.01, 0.09) == [0.005, 0.01, 0.03, 0.09]
    assert trials.strengths_of(other, 0.01, 0.09) == [0.01, 0.09]


def test_the_plan_gives_all_samples_the_first_rows_and_some_the_others():
    few = trials.plan_for(CHOSEN, False, trials.SMALL)
    assert set(few) == {row.name for row in trials.FIRST}
    assert set(trials.plan_for(CHOSEN, False, trials.SMALL - 1)) == {r.name for r in trials.ROWS}
    healthy = trials.plan_for(CHOSEN, True, 0)
    assert healthy[trials.PRIMARY] == [0.01, 0.09] and healthy["random"] == [0.01]
    assert not {"oracle", "counterfactual"} & set(healthy)


def test_columns_keep_rows_strengths_and_samples_in_order():
    def record(row, s, i, side):
        return {"row": row, "strength": s, "index": i, "outcome": i % 3, "side": side}

    answers = [
        {"rows": [record("a", 0.1, i, i / 10), record("a", 0.2, i, i / 5)]} for i in range(4)
    ]
    answers[0]["rows"].append(record("b", 0.3, 0, 0.0042))
    columns = trials.columns_of(answers, ("side",))
    assert columns["a"][1] == {
        "strength": 0.2,
        "outcome": [0, 1, 2, 0],
        "side": [0, 200, 400, 600],
    }
    assert columns["b"] == [{"strength": 0.3, "outcome": [0], "side": [4]}]
    assert trials.side_effects(columns)["a"] == pytest.approx([0.15, 0.3])


def test_the_nearest_direction_has_the_sign_of_most():
    V = torch.eye(3)[:, :, None, None]
    U = torch.tensor([[0.1, -0.9, 0.1], [0.2, -0.8, 0.3], [-0.1, 0.2, 0.1]])[:, :, None, None]
    assert torch.equal(trials._nearest(V, U).flatten(), -torch.eye(3)[1])


@pytest.fixture(scope="module")
def learnt():
    p = models.UNetModel(make_tiny_unet(size=64), models.linear_schedule(1000), "v_prediction")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "STUDIED", 50)
        patch.setattr(trials, "SOURCES", 3)
        # Every other of its pictures counts as ill: it draws no Stranger.
        patch.setattr(
            cases, "read_stranger", lambda images: torch.arange(len(images)).remainder(2) == 0
        )
        yield p, trials.studied(p), patch


def test_what_is_learnt_on_development_samples(learnt):
    p, kept, _ = learnt
    assert {k: tuple(v.shape) for k, v in kept.items()} == {
        "clicked": (3, 8, 8, 8),
        "clicked x": (3, 3, 64, 64),
        "global": (1, 8, 8, 8),
        "matched": (1, 8, 8, 8),
        "pca": (6, 8, 8, 8),
        "difference": (1, 8, 8, 8),
    }
    axes = kept["pca"].flatten(1)
    assert torch.allclose(axes @ axes.T, torch.eye(6), atol=1e-3)
    assert torch.allclose(kept["clicked"].flatten(1).norm(dim=1), torch.ones(3), atol=1e-4)


def test_the_ward_treats_a_sample_by_the_plan(learnt):
    p, kept, patch = learnt
    patch.setattr(trials, "load_model", lambda name: p)
    ward = trials.Ward(1.0, kept)
    plan = {"global": [0.02], "random, best of 6": [0.1, 0.2]}
    records = ward.sweep(1, 3, plan)
    assert [(r["row"], r["strength"]) for r in records] == [
        ("random, best of 6", 0.1), ("random, best of 6", 0.2), ("global", 0.02)
    ]  # fmt: skip


def test_the_treatment_always_on_reads_before_and_after(learnt):
    p, kept, patch = learnt
    patch.setattr(trials, "load_model", lambda name: p)
    ward = trials.Ward(1.0, kept)
    mild, strong = (trials.always_row(ward, 2, s) for s in (1e-6, 0.3))
    assert len(mild["after"]) == 11 and len(mild["features"]) == 256
    assert mild["after"][10] == pytest.approx(mild["before"], abs=2e-3)
    assert mild["after"] != strong["after"]


def test_there_is_no_trial_without_a_protocol(monkeypatch):
    monkeypatch.setattr(trials, "PROTOCOL", "none.json")
    monkeypatch.setattr(trials, "KEPT", "none.safetensors")
    for read in (trials.protocol, trials.kept):
        with pytest.raises(FileNotFoundError, match="results protocol"):
            read()
