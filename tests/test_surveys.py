"""The surveys' rows on a small network: their ranges, their floors, and what must be zero."""

import math

import pytest
import torch
from conftest import make_tiny_unet

from mathkit.chapters import treatment
from mathkit.diffusion import model, networks
from mathkit.diffusion.encoder import MAPS
from mathkit.show import posterior, puppets
from studies import surveys

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def p():
    return networks.UNetModel(make_tiny_unet(size=64), model.linear_schedule(1000), "v_prediction")


@pytest.fixture(autouse=True)
def fewer(monkeypatch):
    monkeypatch.setattr(surveys, "K", 3)
    monkeypatch.setattr(surveys, "PAIRED", 3)
    monkeypatch.setattr(surveys, "SEGMENTS", 2)
    monkeypatch.setattr(surveys, "TIMES", (900, 400))
    monkeypatch.setattr(surveys, "SOURCES", 3)
    monkeypatch.setattr(surveys, "GLOBAL", 2)


MOST = 3**0.5 * math.pi / 2


@pytest.fixture(scope="module")
def truth():
    return posterior.Posterior(count=400)


def test_a_tangent_row_holds_shares_and_the_truths_own(p, truth, monkeypatch):
    monkeypatch.setattr(surveys, "ENOUGH", 50)
    row = surveys.tangent_row(p, truth, frame=2, t=900, k=4)
    assert row["ess"] > 50
    for name in (*MAPS, "exact"):
        assert all(0 <= row[name][share] <= 1 for share in ("plain", "energy", "another"))
        assert sum(row[name]["power"]) == pytest.approx(1.0, abs=5e-3)
    assert row["exact"]["energy"] > 100 * 3 / p.shape.numel()  # against chance
    for name in MAPS:
        total, error = row[name]["total"]
        assert sum(s**2 for s in row[name]["S"]) < total + 4 * error


def test_a_span_of_tangents_holds_its_own_and_not_anothers():
    mine, other = (puppets.tangents(q) for q in puppets.sample_factors(2, seed=21).split(1))
    V = torch.linalg.qr(mine.flatten(1).T).Q.T.reshape(mine.shape)
    found = surveys._described(V, mine, other)
    assert found["plain"] == pytest.approx(1, abs=1e-3) and found["another"] < 0.9


def test_no_exact_posterior_where_the_bank_does_not_suffice(p, truth):
    row = surveys.tangent_row(p, truth, frame=0, t=100, k=4)
    assert row["ess"] < 500 and "exact" not in row


def test_distances_between_samples_stay_in_range_and_above_their_floor(p, truth, monkeypatch):
    monkeypatch.setattr(surveys, "ENOUGH", 50)
    found = surveys.between_samples(p, truth, t=900, simple=False)
    assert set(found["pairs"]) == {"h in H", "h", "mean", "exact"}
    for name, values in found["pairs"].items():
        assert len(values) == 3 and all(0 < d <= MOST for d in values)
        if name in ("h", "h in H"):
            assert found["floor"][name] < min(values)


def test_a_model_has_no_distance_from_itself(p):
    same = surveys.between_models(p, p, frame=1, t=400)
    assert same["h"] == 0 and same["mean"] == 0
    other = networks.UNetModel(
        make_tiny_unet(size=64, seed=1), model.linear_schedule(1000), "v_prediction"
    )
    assert surveys.between_models(p, other, frame=1, t=400)["h"] > 0.1


def test_distances_between_times_have_one_entry_a_pair(p):
    found = surveys.between_times(p, frame=0, simple=True)
    assert {len(v) for v in found["pairs"].values()} == {1}


def test_a_path_row_has_a_number_a_segment(p):
    row = surveys.path_row(p, pair=0, t=500)
    for way in ("lerp", "slerp", "shooting"):
        assert len(row[way]) == 2 and all(0 <= d <= MOST for d in row[way])
    assert 0 <= row["floor"] < 0.2 and row["miss"] > 0


def test_an_effect_row_holds_a_change_for_every_direction_and_factor(p):
    u, agreement = surveys.common_directions(p, 500)
    assert u.shape == (2, 8, 8, 8) and agreement[0] >= agreement[1]
    row = surveys.effect_row(p, u, i=1, t=500)
    sizes = {k: torch.tensor(row[k]).shape for k in ("common", "random", "own", "tangents")}
    assert sizes.pop("tangents") == (10, 11) and set(sizes.values()) == {(2, 11)}


def test_a_manifold_row_measures_every_edit(p, monkeypatch):
    monkeypatch.setattr(surveys, "MANIFOLD_STRENGTHS", (0.05,))
    row = surveys.manifold_row(p, 1, 500, torch.zeros(1, 3, 64, 64))
    assert set(surveys.EDITS) <= set(row)
    for name in surveys.EDITS:
        assert row[name]["change"][0] > 0 and row[name]["distance"][0] > 0
    assert row["untreated"] == pytest.approx(
        float(treatment.admit(p, 3, [1], 500).distance), abs=1e-3
    )


def test_the_noised_frame_is_one_of_the_show_and_its_noise_its_own(p):
    q, x = surveys.noised_frame(p, 4, 500, simple=True)
    abar = float(p.alphas_cumprod[500])
    noise = (x - abar**0.5 * puppets.render(q)) / (1 - abar) ** 0.5
    assert abs(float(noise.std()) - 1) < 0.02
    assert puppets.tangents(q).shape == (10, 3, 64, 64)
    assert not torch.equal(noise, surveys.noised_frame(p, 5, 500)[1])
    with pytest.raises(ValueError, match="expected a map of"):
        surveys.the_map(p, "eps", x, 500)
