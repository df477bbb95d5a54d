"""The trial: its rows are fair, its plan is the protocol's, and its tables keep their order."""

import dataclasses
import json

import pytest
import torch
from conftest import UNTRAINED, make_puppeteer
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA

import mathkit as mk
from mathkit import data
from mathkit.chapters import treatment
from studies import rows, runner, trial
from studies.methods import Row

pytestmark = [pytest.mark.long, UNTRAINED]
EFFECTS = [2 * s for s in trial.GRID]  # a side effect of twice the strength
STRENGTHS = {row.name: trial.strengths_of(row, EFFECTS) for row in rows.ROWS}
CHOSEN = {"strengths": STRENGTHS}


def test_every_row_has_a_name_of_its_own_and_survives_json():
    names = [row.name for row in rows.ROWS]
    assert len(set(names)) == len(names)
    for row in rows.ROWS:
        assert Row(**json.loads(json.dumps(dataclasses.asdict(row)))) == row


def test_the_control_gets_every_choice_that_the_primary_row_gets():
    by_name = {row.name: row for row in rows.ROWS}
    primary, control = by_name[rows.PRIMARY], by_name[rows.CONTROL]
    for choice in ("supervision", "after", "course", "edit", "sign", "t"):
        assert getattr(primary, choice) == getattr(control, choice)
    assert control.kind == "random" and control.among >= primary.among


def test_strengths_are_read_off_the_measured_side_effects():
    first, other = rows.FIRST[0], rows.OTHERS[0]
    assert trial.strengths_of(first, EFFECTS) == pytest.approx([0.025, 0.075, 0.0175])
    assert trial.strengths_of(other, EFFECTS) == pytest.approx([0.025, 0.075])


def test_every_row_stands_in_one_table_for_the_ill_and_one_for_the_healthy():
    for ill in (True, False):
        parts = [part for part in rows.TABLES.values() if part.ill is ill]
        told = [row for part in parts for row in part.rows]
        assert told + [row for part in parts for row in part.late] == list(rows.ROWS)


def test_the_plan_gives_the_first_samples_all_strengths_and_the_rest_one():
    last = rows.AT_ALL_STRENGTHS - 1
    few, many = (rows.plan_for(CHOSEN, "trial", rank) for rank in (last, last + 1))
    assert few == {row.name: STRENGTHS[row.name] for row in rows.FIRST}
    assert many == {name: strengths[:1] for name, strengths in few.items()}
    assert rows.plan_for(CHOSEN, "trial_others", 0)["oracle"] == STRENGTHS["oracle"]


def test_the_plan_for_the_healthy_knows_no_true_cure_and_one_dose():
    plans = [rows.plan_for(CHOSEN, name, 399) for name in ("trial_healthy", "trial")]
    assert plans[0] == plans[1] and len(plans[0]) == len(rows.FIRST + rows.ADDED)
    others = rows.plan_for(CHOSEN, "trial_healthy_others", 0)
    assert not {"oracle", "oracle, course", "counterfactual"} & set(others)
    assert {len(strengths) for strengths in others.values()} == {1}


def test_an_amendment_adds_its_rows_to_its_own_protocol_alone(tmp_path, monkeypatch):
    chosen = {"rows": [{"name": "a"}], "strengths": {"a": [1.0]}, "t": 583}
    chosen["weights"] = data.fingerprint()
    more = {"rows": [{"name": "b"}], "strengths": {"b": [2.0]}, "protocol": trial.digest(chosen)}
    monkeypatch.setattr(data, "locate", lambda name: tmp_path / name)
    for name, table in ((trial.PROTOCOL, chosen), (trial.AMENDMENT, more)):
        (tmp_path / name).write_text(json.dumps(table))
    both = trial.amended()
    assert both["rows"] == [{"name": "a"}, {"name": "b"}] and both["t"] == 583
    assert both["strengths"] == {"a": [1.0], "b": [2.0]}
    (tmp_path / trial.PROTOCOL).write_text(json.dumps(chosen | {"t": 500}))
    with pytest.raises(ValueError, match="of another protocol"):
        trial.amended()


@pytest.mark.parametrize("name", ["trial", "trial_healthy"])
def test_what_was_added_later_treats_no_sample_whose_outcome_was_known(name):
    before, after = (rows.plan_for(CHOSEN, name, rows.OPENED + i) for i in (-1, 0))
    added = {row.name: STRENGTHS[row.name][:1] for row in rows.ADDED}
    assert after == before | added and not added.keys() & before.keys()


def test_columns_keep_rows_strengths_and_samples_in_order():
    def record(row, s, i, side):
        return {"row": row, "strength": s, "index": i, "outcome": i % 3, "side": side}

    answers = [
        {"rows": [record("a", 0.1, i, i / 10), record("a", 0.2, i, i / 5)]} for i in range(4)
    ]
    answers[0]["rows"].append(record("b", 0.3, 0, 0.0042))
    columns = trial.columns_of(answers, ("side",))
    assert columns["a"][1] == {
        "strength": 0.2,
        "outcome": [0, 1, 2, 0],
        "side": [0, 200, 400, 600],
    }
    assert columns["b"] == [{"strength": 0.3, "outcome": [0], "side": [4]}]
    assert trial.side_effects(columns)["a"] == pytest.approx([0.15, 0.3])


def test_the_nearest_direction_has_the_sign_of_most():
    V = torch.eye(3)[:, :, None, None]
    U = torch.tensor([[0.1, -0.9, 0.1], [0.2, -0.8, 0.3], [-0.1, 0.2, 0.1]])[:, :, None, None]
    assert torch.equal(trial._nearest(V, U).flatten(), -torch.eye(3)[1])


@pytest.fixture(scope="module")
def learnt():
    p = make_puppeteer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "STUDIED", 50)
        patch.setattr(trial, "SOURCES", 3)
        # Every other of its pictures counts as ill: it draws no Stranger.
        patch.setattr(
            treatment, "read_stranger", lambda images: torch.arange(len(images)).remainder(2) == 0
        )
        yield p, trial.studied(p), patch


@pytest.mark.slow
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
    f, xt = mk.encoder(p, rows.EDIT_TIME), treatment.trajectory(p, 1, range(50), rows.EDIT_TIME)
    with torch.no_grad():
        h = f(xt)
    difference = h[1::2].mean(0) - h[::2].mean(0)
    assert torch.allclose(kept["difference"][0], difference, atol=1e-4)
    axes = kept["pca"].flatten(1)
    found = PCA(6, svd_solver="full").fit(h.flatten(1).numpy()).components_
    assert subspace_angles(axes.T.numpy(), found.T).max() < 0.02
    assert torch.allclose(axes @ axes.T, torch.eye(6), atol=1e-3)
    for u, v, i in zip(kept["clicked"], kept["clicked x"], (0, 2, 4), strict=True):
        image = mk.jacobian(f, xt[i : i + 1]).push(v[None])[0]
        assert torch.allclose(u, image / image.norm(), atol=1e-3)


def test_what_one_process_finds_is_kept_for_the_others(tmp_path):
    calls = []

    def find():
        calls.append(1)
        return {"u": torch.tensor([1.0, 1e-4])}

    for _ in range(2):
        found = runner.once(tmp_path / "scratch" / "kept.safetensors", find)
    assert calls == [1] and torch.equal(found["u"], torch.tensor([1.0, 1e-4]).half())


@pytest.mark.slow
def test_the_ward_treats_a_sample_by_the_plan(learnt):
    p, kept, patch = learnt
    patch.setattr(trial, "load_model", lambda name: p)
    ward = trial.Ward(1.0, kept)
    plan = {"global": [0.02], "random, best of 6": [0.1, 0.2]}
    records = ward.sweep(1, 3, plan)
    assert [(r["row"], r["strength"]) for r in records] == [
        ("random, best of 6", 0.1), ("random, best of 6", 0.2), ("global", 0.02)
    ]  # fmt: skip


def test_the_treatment_always_on_reads_before_and_after(learnt):
    p, kept, patch = learnt
    patch.setattr(trial, "load_model", lambda name: p)
    patch.setattr(trial, "ADDED", (Row("r", "random"),))
    ward = trial.Ward(1.0, kept)
    mild, strong = (trial.always_row(ward, 2, s) for s in (1e-6, 0.3))
    for name, figures in (("factors", 11), ("features", 256)):
        assert len(mild["before"][name]) == len(mild["after"][name]) == figures
        assert mild["before"][name] == strong["before"][name] != strong["after"][name]
    assert mild["after"]["factors"] == pytest.approx(mild["before"]["factors"], abs=5e-3)
    image = mk.sample(p, seed=runner.TEST_FROM + 1, index=[2]).clamp(-1, 1)
    assert mild["before"]["factors"] == pytest.approx(mk.read_factors(image)[0, :11], abs=2e-3)


def test_there_is_no_trial_without_a_protocol(monkeypatch):
    monkeypatch.setattr(trial.data, "locate", lambda name: None)
    for read in (trial.protocol, trial.kept, trial.amended):
        with pytest.raises(FileNotFoundError, match="results protocol"):
            read()


def test_a_missing_amendment_names_its_own_job(monkeypatch):
    monkeypatch.setattr(
        data,
        "locate",
        lambda name, real=data.locate: None if name == trial.AMENDMENT else real(name),
    )
    with pytest.raises(FileNotFoundError, match="results amendment"):
        trial.amended()


def test_an_entry_in_brief_counts_the_first_ones_alone():
    entry = {"outcome": [1, 0, 2, 1, 1], "side": [10, 20, 30, 999, 1], "outside": [0, 3, 0, 999, 8]}
    assert trial.brief(entry, 3) == ["1 / 1 / 1", "0.020", "0.001"]
    assert trial.brief(entry)[0] == "3 / 1 / 1"
