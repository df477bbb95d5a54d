"""What directions do to the dials: beside a reading that is linear, and scikit-learn."""

import numpy as np
import pytest
import torch
from conftest import UNTRAINED, make_puppeteer
from sklearn.decomposition import PCA

from mathkit.chapters import treatment
from mathkit.diffusion.encoder import encoder
from mathkit.show import puppets
from mathkit.show.puppets import CONTINUOUS
from studies import dials, methods, surveys

pytestmark = [pytest.mark.long, UNTRAINED]
T = 500


@pytest.fixture(scope="module")
def p():
    return make_puppeteer()


@pytest.fixture(autouse=True)
def fewer(monkeypatch):
    monkeypatch.setattr(dials, "K", 3)
    monkeypatch.setattr(dials, "CROWD", 12)
    monkeypatch.setattr(dials, "GLOBAL", 2)


@pytest.fixture
def flat(monkeypatch):
    """A reading that is linear: eleven fixed measurements of the step itself. Gives them."""
    M = torch.randn(11, 3 * 64 * 64, generator=torch.Generator().manual_seed(0))

    def treat(p, case, row, v, strengths):
        return torch.cat([s * case.xt.norm() * v / v.flatten(1).norm() for s in strengths])

    monkeypatch.setattr(surveys.methods, "treat", treat)
    monkeypatch.setattr(surveys, "read_factors", lambda y: y.flatten(1) @ M.T)
    return M


def test_where_reading_is_linear_edits_add_up_and_double(p, flat):
    row = dials.joined_row(p, 1, T)
    for kind in ("doubled", "joined", "doubled, smooth", "joined, smooth"):
        assert row[kind] == pytest.approx([0, 0, 0], abs=2e-3), kind
    case = treatment.admit(p, 3, [1], T)
    v = dials.pulled(p, case, "smile")
    one = 2 * surveys.EFFECT_STRENGTH * case.xt.norm() * (flat @ v.flatten())
    assert row["single"][dials.TURNED.index("smile")] == pytest.approx(one.tolist(), abs=2e-3)


def test_a_reading_that_bends_is_seen_to_miss(p, flat, monkeypatch):
    monkeypatch.setattr(surveys, "read_factors", lambda y: (y.flatten(1) @ flat.T) ** 3)
    row = dials.joined_row(p, 1, T)
    assert row["doubled"] == pytest.approx([3, 3, 3], abs=1e-2)  # |8 - 2| / 2 of a cube
    assert min(row["joined"]) > 0.05


def test_what_is_carried_is_what_the_other_span_knows_of_it(p, flat):
    i, there = 0, 1
    row = dials.joined_row(p, i, T)
    case, other = (treatment.admit(p, 3, [j], T) for j in (i, there))
    r = treatment.encoder_svd(p, case, 3)
    v = dials.pulled(p, other, "light")
    h = torch.func.jvp(encoder(p, T), (other.xt,), (v[None],))[1].flatten()
    amounts = r.U.flatten(1) @ (h / h.norm())
    w = (amounts @ r.V.flatten(1)) / amounts.norm()
    promised = 2 * surveys.EFFECT_STRENGTH * case.xt.norm() * (flat @ w)[CONTINUOUS.index("light")]
    assert row["carried"][dials.TURNED.index("light")] == pytest.approx(float(promised), rel=5e-3)


def test_a_pulled_direction_is_the_gradient_of_the_dial(p):
    """<v, w> is proportional to <tangent, J w> for every w, and no other unit w has more."""
    case = treatment.admit(p, 3, [0], T)
    v = dials.pulled(p, case, "hat_height").flatten()
    tangent = puppets.tangents(case.q)[CONTINUOUS.index("hat_height")].flatten()
    W = torch.randn(5, *case.xt.shape[1:], generator=torch.Generator().manual_seed(2))
    JW = treatment.mean_map(p, case).push(W).flatten(1)
    ratio = (JW @ tangent) / (W.flatten(1) @ v)
    assert ratio.std() < 1e-3 * ratio.abs().mean() and (ratio > 0).all()
    assert float(v.norm()) == pytest.approx(1, abs=1e-5)


def test_the_components_are_those_of_scikit_learn(p):
    found = dials.principal_components(p, T).flatten(1)
    with torch.no_grad():
        h = encoder(p, T)(treatment.trajectory(p, 1, range(12), T)).flatten(1)
    right = PCA(2, svd_solver="full").fit(h.double().numpy()).components_
    cosines = np.abs(np.sum(found.double().numpy() * right, 1))
    assert cosines == pytest.approx([1, 1], abs=1e-3)


def test_a_row_holds_each_kind_and_what_turns_round_turns_its_change(p):
    row = dials.dial_row(p, dials.principal_components(p, T), 0, T)
    assert [len(row[k]) for k in ("h", "mean", "smooth", "components")] == [2, 2, 2, 2]
    case = treatment.admit(p, 3, [0], T)
    V = treatment.encoder_svd(p, case, 3).V[:2]
    one, other = (surveys.change_of_factors(p, case, W) for W in (V, -V))
    assert torch.allclose(one, -other, atol=1e-4)
    ends = [methods.treat(p, case, surveys.EDITS["plain"], V[:1], [s]) for s in (-0.05, 0.05)]
    low, high = (surveys.read_factors(y)[0, :11] for y in ends)
    assert torch.allclose(one[0], high - low, atol=1e-4)
    assert torch.tensor(row["h"][0]).abs().tolist() == pytest.approx(
        one[0].abs().tolist(), abs=2e-3
    )
