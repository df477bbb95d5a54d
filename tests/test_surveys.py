"""The surveys' rows on a small network, beside SciPy's ARPACK and the posterior in numpy."""

import math

import numpy as np
import pytest
import torch
from conftest import UNTRAINED, make_puppeteer
from scipy.linalg import subspace_angles
from scipy.sparse.linalg import svds

import mathkit as mk
from mathkit.chapters import treatment
from mathkit.diffusion.encoder import MAPS
from mathkit.show import posterior, puppets
from mathkit.show.reader import fit_factors
from studies import surveys

pytestmark = [pytest.mark.long, UNTRAINED]


@pytest.fixture(scope="module")
def p():
    return make_puppeteer()


@pytest.fixture(autouse=True)
def fewer(monkeypatch):
    monkeypatch.setattr(surveys, "K", 3)
    monkeypatch.setattr(surveys, "PAIRED", 3)
    monkeypatch.setattr(surveys, "SEGMENTS", 2)
    monkeypatch.setattr(surveys, "TIMES", (900, 400))
    monkeypatch.setattr(surveys, "SOURCES", 3)
    monkeypatch.setattr(surveys, "GLOBAL", 2)


MOST = 3**0.5 * math.pi / 2


def top(p, name, x, t, k=3):
    """The top k triplets of a map by ARPACK: columns of U and V, falling S."""
    U, S, Vh = svds(surveys.the_map(p, name, x, t).scipy(), k=k, tol=1e-7, random_state=0)
    order = np.argsort(-S)
    return U[:, order], S[order], Vh[order].T


def apart(A, B):
    return float(np.linalg.norm(subspace_angles(A, B)))


def exact(truth, x, abar, k=3):
    """Top k directions of the posterior, columns, from every weight in float64; values of J."""
    bank, x = truth.bank.double().numpy(), x.double().numpy().ravel()
    logs = -((x - abar**0.5 * bank) ** 2).sum(1) / (2 * (1 - abar))
    w = np.exp(logs - logs.max())
    w /= w.sum()
    _, s, Vh = np.linalg.svd(w[:, None] ** 0.5 * (bank - w @ bank), full_matrices=False)
    return Vh[:k].T, abar**0.5 / (1 - abar) * s[:k] ** 2, 1 / (w**2).sum()


def shares(V, J):
    """Plain and energy: the part of the tangents J that lies in the span of orthonormal columns."""
    J = J.flatten(1).double().numpy().T
    plain = (np.cos(subspace_angles(V, J)) ** 2).sum() / J.shape[1]
    return plain, ((V.T @ J) ** 2).sum() / (J**2).sum()


@pytest.fixture(scope="module")
def truth():
    return posterior.Posterior(count=400)


def test_a_tangent_row_holds_the_shares_that_arpack_and_the_posterior_give(p, truth, monkeypatch):
    monkeypatch.setattr(surveys, "ENOUGH", 50)
    row = surveys.tangent_row(p, truth, frame=2, t=900, k=4)
    q, x = surveys.noised_frame(p, 2, 900)
    J, other = puppets.tangents(q), puppets.tangents(surveys.noised_frame(p, 3, 900)[0])
    V, S, ess = exact(truth, x, float(p.alphas_cumprod[900]))
    assert row["ess"] == pytest.approx(ess, rel=1e-3)
    found = {"exact": (S, V)}
    for name in ("h", "pooled"):
        _, S, V = top(p, name, x, 900, 4)
        found[name] = S, V[:, :3]
        total, error = row[name]["total"]
        stretch = float(surveys.the_map(p, name, x, 900).dense().double().square().sum())
        assert abs(total - stretch) < 4 * error + 1e-3
    for name, (S, V) in found.items():
        plain, energy = shares(V, J)
        assert row[name]["S"] == pytest.approx(S, rel=2e-3, abs=1e-3)
        assert row[name]["plain"] == pytest.approx(plain, abs=1e-3)
        assert row[name]["energy"] == pytest.approx(energy, abs=1e-3)
        assert row[name]["another"] == pytest.approx(shares(V, other)[0], abs=1e-3)
    for name in (*MAPS, "exact"):
        assert sum(row[name]["power"]) == pytest.approx(1.0, abs=5e-3)


def test_a_span_of_tangents_holds_its_own_and_not_anothers():
    mine, other = (puppets.tangents(q) for q in puppets.sample_factors(2, seed=21).split(1))
    V = torch.linalg.qr(mine.flatten(1).T).Q.T.reshape(mine.shape)
    found = surveys._described(V, mine, other)
    assert found["plain"] == pytest.approx(1, abs=1e-3) and found["another"] < 0.9


def test_no_exact_posterior_where_the_bank_does_not_suffice(p, truth):
    row = surveys.tangent_row(p, truth, frame=0, t=100, k=4)
    assert row["ess"] < 500 and "exact" not in row


@pytest.mark.slow
def test_distances_between_samples_are_those_of_the_exact_spans(p, truth, monkeypatch):
    monkeypatch.setattr(surveys, "ENOUGH", 50)
    found = surveys.between_samples(p, truth, t=900, simple=False)
    xs = [surveys.noised_frame(p, i, 900)[1] for i in range(3)]
    U, _, V = zip(*(top(p, "h", x, 900) for x in xs), strict=True)
    E = [exact(truth, x, float(p.alphas_cumprod[900]))[0] for x in xs]
    assert set(found["pairs"]) == {"h in H", "h", "mean", "exact"}
    for name, spans in (("h in H", U), ("h", V), ("exact", E)):
        wanted = [apart(spans[i], spans[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
        assert found["pairs"][name] == pytest.approx(wanted, abs=0.02)
    assert all(0 < d <= MOST for d in found["pairs"]["mean"])
    assert max(found["floor"][name] for name in ("h", "h in H")) < 0.05


def test_a_model_has_no_distance_from_itself_and_its_own_from_another(p):
    same = surveys.between_models(p, p, frame=1, t=400)
    assert same["h"] == 0 and same["mean"] == 0
    other = make_puppeteer(seed=1)
    x = surveys.noised_frame(p, 1, 400, simple=True)[1]
    wanted = apart(*(top(net, "h", x, 400)[2] for net in (p, other)))
    found = surveys.between_models(p, other, frame=1, t=400)
    assert found["h"] == pytest.approx(wanted, abs=0.02)


def test_distances_between_times_have_one_entry_a_pair(p):
    found = surveys.between_times(p, frame=0, simple=True)
    assert {len(v) for v in found["pairs"].values()} == {1}
    at = [top(p, "h", surveys.noised_frame(p, 0, t, simple=True)[1], t) for t in (900, 400)]
    for name, i in (("h in H", 0), ("h", 2)):
        assert found["pairs"][name] == pytest.approx([apart(at[0][i], at[1][i])], abs=0.02)


def test_a_path_row_has_the_distance_of_the_spans_at_every_segment(p):
    row = surveys.path_row(p, pair=0, t=500)
    x, y = treatment.trajectory(p, 2, [0, 1], 500).split(1)
    way = x / x.norm() + y / y.norm()  # half-way on the great circle
    middles = {"lerp": (x + y) / 2, "slerp": way / way.norm() * (x.norm() + y.norm()) / 2}
    ends = [top(p, "h", z, 500)[0] for z in (x, y)]
    for name, middle in middles.items():
        U = top(p, "h", middle, 500)[0]
        wanted = [apart(ends[0], U), apart(U, ends[1])]
        assert row[name] == pytest.approx(wanted, abs=0.02)
    assert len(row["shooting"]) == 2 and all(0 <= d <= MOST for d in row["shooting"])
    assert 0 <= row["floor"] < 0.05 and row["miss"] > 0


def image_of(p, case, v, strength):
    moved = mk.move(p, case.xt, case.t, v, strength, steps=1)[-1]
    return mk.denoise(p, moved, case.t, times=treatment.grid(p, case.t)).clamp(-1, 1)


def change_along(p, case, v):
    """What is read after a step along v, less what is read after one against it."""
    ends = (image_of(p, case, v, s) for s in (0.05, -0.05))
    high, low = (mk.read_factors(image)[0, :11] for image in ends)
    return (high - low).tolist()


@pytest.mark.slow
def test_an_effect_row_holds_the_change_of_every_factor_along_every_direction(p):
    u, agreement = surveys.common_directions(p, 500)
    assert u.shape == (2, 8, 8, 8) and agreement[0] >= agreement[1]
    row, case = surveys.effect_row(p, u, i=1, t=500), treatment.admit(p, 3, [1], 500)
    sizes = {k: torch.tensor(row[k]).shape for k in ("common", "random", "own", "tangents")}
    assert sizes.pop("tangents") == (10, 11) and set(sizes.values()) == {(2, 11)}
    x = case.xt.clone().requires_grad_()
    (p.clean(x, 500) * puppets.tangents(case.q)[3]).sum().backward()
    pulled = x.grad / x.grad.norm()
    assert row["tangents"][3] == pytest.approx(change_along(p, case, pulled), abs=2e-3)
    U, _, V = top(p, "h", case.xt, 500)
    v = torch.tensor(V[:, 0], dtype=torch.float32).reshape(case.xt.shape)
    wanted = torch.tensor(change_along(p, case, v))
    own = torch.tensor(row["own"][0])
    assert min((own - wanted).abs().max(), (own + wanted).abs().max()) < 4e-3
    carried = V @ (U.T @ u[0].flatten().numpy())
    v = torch.tensor(carried / np.linalg.norm(carried), dtype=torch.float32).reshape(v.shape)
    assert row["common"][0] == pytest.approx(change_along(p, case, v), abs=4e-3)


def test_a_manifold_row_measures_every_edit(p, monkeypatch):
    monkeypatch.setattr(surveys, "MANIFOLD_STRENGTHS", (0.05,))
    average = torch.zeros(1, 3, 64, 64)
    row, case = surveys.manifold_row(p, 1, 500, average), treatment.admit(p, 3, [1], 500)
    assert row["untreated"] == pytest.approx(float(case.distance), abs=1e-3)
    for name in surveys.EDITS:
        assert row[name]["change"][0] > 0 and row[name]["distance"][0] > 0
    v = surveys.direction(p, case, surveys.EDITS["random"], average)
    image = image_of(p, case, v, 0.05)
    assert row["random"]["change"] == pytest.approx(
        [float((image - case.x0).abs().mean())], abs=1e-3
    )
    assert row["random"]["distance"] == pytest.approx([float(fit_factors(image)[1])], abs=1e-3)


def test_the_noised_frame_is_one_of_the_show_and_its_noise_its_own(p):
    q, x = surveys.noised_frame(p, 4, 500, simple=True)
    abar = float(p.alphas_cumprod[500])
    noise = (x - abar**0.5 * puppets.render(q)) / (1 - abar) ** 0.5
    assert abs(float(noise.std()) - 1) < 0.02
    assert puppets.tangents(q).shape == (10, 3, 64, 64)
    assert not torch.equal(noise, surveys.noised_frame(p, 5, 500)[1])
    with pytest.raises(ValueError, match="expected a map of"):
        surveys.the_map(p, "eps", x, 500)


def test_a_linear_posterior_mean_does_not_bend_and_a_bent_one_by_its_second_order(monkeypatch):
    p = mk.diffusion.gaussian.GaussianModel(torch.zeros(3, 4, 4), torch.arange(1.0, 49).diag())
    x = torch.arange(1.0, 49).reshape(1, 3, 4, 4) / 48
    monkeypatch.setattr(surveys, "noised_frame", lambda p, frame, t: (None, x))
    straight = surveys.bend_row(p, 0, 500)
    assert max(max(straight[way]) for way in ("first", "smooth", "snow")) < 1e-4

    monkeypatch.setattr(surveys.sampling, "posterior_mean", lambda p, t: lambda y: y.square())
    monkeypatch.setattr(surveys, "the_map", lambda p, name, y, t: mk.jacobian(lambda z: z**2, y))
    bent = surveys.bend_row(p, 0, 500)  # d^2 where 2 x d was promised
    step = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    step = surveys.STEPS[1] * x.norm() * step / step.norm()
    expected = float(step.square().norm() / (2 * x * step).norm())
    assert bent["snow"][1] == pytest.approx(expected, abs=2e-4)
    assert bent["snow"][0] == pytest.approx(expected / 4, abs=2e-4)


def test_every_frame_of_a_flat_show_is_its_tangent_space(monkeypatch):
    """A Gaussian of three dimensions: all five ways find its plane, and another plane's share is
    what its angle says."""
    draw = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(48, 6, generator=draw)).Q.T
    plane, p = Q[:3], mk.diffusion.gaussian.GaussianModel(torch.zeros(3, 4, 4), Q[:3].T @ Q[:3])
    turned = (plane + Q[3:]) / 2**0.5  # by 45 degrees in every direction
    spaces = {0: plane, 1: turned}
    x = torch.randn(1, 3, 4, 4, generator=draw)
    monkeypatch.setattr(surveys, "noised_frame", lambda p, frame, t: (frame, x))
    monkeypatch.setattr(surveys, "K", 3)
    monkeypatch.setattr(surveys.puppets, "tangents", lambda q: spaces[q].reshape(3, 3, 4, 4))
    row = surveys.frame_row(p, 0, 500)
    for name in ("sampled", "guessed", "right", "left", "symmetric"):
        assert row[name] == pytest.approx([1, 0.5], abs=2e-3), name
    signal, noise = p.levels.pair(500)
    right, (trace, error) = 3 * signal**2 / (signal**2 + noise**2), row["trace"]
    assert abs(trace - right) < 5 * error and 0 < error < right and row["skew"] < 1e-4
