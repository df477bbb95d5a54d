"""Measured results: jobs resume, tables carry their provenance, and the cards measure the truth."""

import json

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.linalg import subspace_angles

from mathkit import data
from mathkit.diffusion import model, sampling
from mathkit.linear import subspaces
from mathkit.show import posterior, puppets
from studies import jobs, model_card, runner, ship


@pytest.fixture
def scratch(monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "SCRATCH", tmp_path / "scratch")
    monkeypatch.setattr(data, "clone", lambda: tmp_path / "data")
    ship.write_manifest(tmp_path / "data", [])
    monkeypatch.setenv("MATHKIT_DATA", str(tmp_path / "data"))
    return tmp_path


def test_a_job_that_is_stopped_does_only_what_is_missing(scratch):
    done = []

    def work(item):
        if item == 3 and len(done) == 2:
            raise KeyboardInterrupt
        done.append(item)
        return [item, item**2]

    with pytest.raises(KeyboardInterrupt):
        runner.job("squares", [1, 2, 3, 4], work)
    done.append(None)
    answers = runner.job("squares", [1, 2, 3, 4], work)
    assert [a["rows"] for a in answers] == [[1, 1], [2, 4], [3, 9], [4, 16]]
    assert done == [1, 2, None, 3, 4]


def test_answers_to_other_items_are_not_taken_for_these(scratch):
    runner.job("squares", [(1, 2), (3, 4)], sum)
    assert [a["rows"] for a in runner.job("squares", [(1, 2), (3, 4), (5, 6)], sum)] == [3, 7, 11]
    with pytest.raises(ValueError, match=r"the answer to \[1, 2\], not to \[1, 3\]: delete"):
        runner.job("squares", [(1, 3), (3, 4)], sum)


def test_the_first_that_are_wanted_are_found_from_a_start(scratch):
    def look(start):
        return [i % 90 == 0 for i in range(start, start + 100)]

    assert runner.find_samples("tens", look, 3) == ([0, 90, 180], 200)
    assert runner.find_samples("later", look, 3, 1000) == ([1080, 1170, 1260], 400)


def test_a_published_table_says_where_it_comes_from_and_is_found_again(scratch):
    answers = runner.job("squares", [1, 2], lambda i: i)
    runner.publish("squares", {"rows": [1, 2]}, answers)
    table = data.stored("squares")
    assert table["rows"] == [1, 2] and table["command"].endswith("results squares")
    assert set(table) >= {"weights", "torch", "python", "seconds"}


def test_a_table_of_other_weights_is_refused(scratch):
    runner.publish("squares", {"rows": []}, [])
    path = scratch / "data" / "results" / "squares.json"
    table = json.loads(path.read_text()) | {"weights": "0" * 64}
    path.write_text(json.dumps(table))
    with pytest.raises(ValueError, match="make results"):
        data.stored("squares")


def test_a_table_that_used_no_weights_outlives_them(scratch, monkeypatch):
    runner.publish("sums", {"rows": [3]}, [], networks=())
    monkeypatch.setattr(data, "fingerprint", lambda networks=(): "1" * 64)
    assert data.stored("sums")["rows"] == [3]


def test_what_is_not_there_says_how_to_make_it(scratch):
    with pytest.raises(FileNotFoundError, match="make results"):
        data.stored("nothing")
    with pytest.raises(ValueError, match="no job is called 'dreams'.*alice"):
        jobs.main(["dreams"])


def test_other_weights_begin_a_job_anew(scratch, monkeypatch):
    runner.job("squares", [1], lambda i: "old")
    monkeypatch.setattr(data, "fingerprint", lambda networks=(): "f" * 64)
    assert runner.job("squares", [1], lambda i: "new")[0]["rows"] == "new"


def test_other_settings_begin_a_job_anew_and_leave_what_was_stored(scratch):
    for settings, word in (("a" * 64, "old"), ("b" * 64, "new")):
        (now,) = runner.job("squares", [1], lambda i, word=word: word, settings=settings)
        assert now["rows"] == word
    (then,) = runner.job("squares", [1], lambda i: "newest", settings="a" * 64)
    assert then["rows"] == "old"


def by_scipy(q):
    """KS distances from uniform, and the largest |correlation| of two factors."""
    z = q[:, :10].numpy()
    off = np.abs(np.corrcoef(z.T) - np.eye(10)).max()
    return {
        name: stats.kstest(z[:, i], "uniform").statistic
        for i, name in enumerate(puppets.CONTINUOUS)
    }, off


def test_the_sample_card_of_the_show_itself_meets_the_bar():
    q = puppets.sample_factors(4000, 3)
    card = model_card.factor_card(q[:, :11].tolist())
    distances, off = by_scipy(q)
    ill, light = q[:, 10] > 0.5, q[:, puppets.CONTINUOUS.index("light")].double()
    assert card["ks"] == pytest.approx(distances, abs=1e-6)
    assert card["ks_worst"] == max(card["ks"].values()) < 0.03
    assert card["correlation"] == pytest.approx(off, abs=1e-5) and off < 0.06
    assert card["light_tie"] == pytest.approx(float(light[ill].mean() - light[~ill].mean()))
    assert 0.05 < card["light_tie"] < 0.2
    assert (
        card["strangers"].startswith(f"{int(q[:, 10].sum())} of 4000") and card["samples"] == 4000
    )


def test_the_sample_card_notices_a_skewed_factor_and_a_tie():
    """Planted: a squared factor, sup |sqrt(x) - x| = 1/4, and two factors that move together."""
    q = puppets.sample_factors(2000, 3)[:, :11]
    q[:, 2] = q[:, 2] ** 2
    q[:, 5] = q[:, 4]
    card = model_card.factor_card(q.tolist())
    assert card["ks"] == pytest.approx(by_scipy(q)[0], abs=1e-6)
    assert card["ks"]["eye_size"] == pytest.approx(0.25, abs=0.04)
    assert card["correlation"] == pytest.approx(1, abs=1e-5)


class Exact(model.Model):
    """The show's own denoiser, differentiable: the mean over a small bank."""

    def __init__(self, truth, skew=0.0):
        super().__init__(
            truth.shape, model.linear_schedule(1000), torch.device("cpu"), torch.float32
        )
        self.bank, self.skew = truth.bank.float(), skew

    def clean(self, x, t):
        s, n = self.scales(x, t)
        gap = (x.flatten(1)[:, None] - s.flatten(1)[:, None] * self.bank).square().sum(-1)
        w = torch.softmax(-gap / (2 * n.flatten(1) ** 2), 1)
        answer = (w @ self.bank).reshape(x.shape)
        return answer + self.skew * answer.flip(2)


def by_numpy(truth, skew, frame, t, k):
    """The row of `Exact` in float64: J = (1 + skew F) c R^T R of rank 60, F the flip of rows."""
    x = sampling.noised(Exact(truth), puppets.render(truth.draw(frame + 1, 21)[frame:]), t, frame)
    abar, bank = float(model.linear_schedule(1000)[t]), truth.bank.double().numpy()
    logs = -((x.double().numpy().ravel() - abar**0.5 * bank) ** 2).sum(1) / (2 * (1 - abar))
    w = np.exp(logs - logs.max())
    w /= w.sum()
    R, c = w[:, None] ** 0.5 * (bank - w @ bank), abar**0.5 / (1 - abar)

    def flip(rows):
        return rows.reshape(len(rows), *truth.shape)[:, :, ::-1].reshape(len(rows), -1)

    Q, T = np.linalg.qr((R + skew * flip(R)).T)
    P, L = np.linalg.qr(R.T)
    _, S, Vh = np.linalg.svd(c * T @ L.T)
    V = Vh[:k] @ P.T
    push = c * (V @ R.T @ (R + skew * flip(R)))
    pull = c * ((V + skew * flip(V)) @ R.T @ R)
    exact = np.linalg.svd(R.T, full_matrices=False)
    cosines = np.cos(subspace_angles(V.T, exact[0][:, :k]))
    return {
        "asymmetry": np.linalg.norm(push - pull) / np.linalg.norm(push),
        "gain": abar**0.5 * S[0],
        "exact": abar**0.5 * c * exact[1][0] ** 2,
        "overlap": (cosines**2).mean(),
        "ess": 1 / (w**2).sum(),
        "error": skew,  # |F E| = |E|
    }


@pytest.mark.parametrize("skew", [0.0, 0.5])
def test_the_derivative_row_is_that_of_the_denoiser_in_closed_form(skew, monkeypatch):
    truth = posterior.Posterior(count=60, seed=1)
    monkeypatch.setattr(model_card, "ENOUGH", 0)
    row = model_card.derivative_row(Exact(truth, skew), truth, frame=0, t=700, k=3)
    for name, value in by_numpy(truth, skew, 0, 700, 3).items():
        assert row[name] == pytest.approx(value, rel=0.01, abs=5e-3), name
    assert (row["asymmetry"] < 0.02) == (row["error"] < 0.02) == (skew == 0)
    card = model_card.derivative_card([row, row | {"asymmetry": 0.0}])
    assert card["t = 700"]["asymmetry"] == pytest.approx(row["asymmetry"] / 2, abs=1e-6)
    assert card["t = 700"]["gain"] == pytest.approx(row["gain"])
    assert card["t = 700"]["exact ones"] == card["t = 700"]["frames"] == 2


def test_where_the_exact_posterior_rests_on_few_draws_it_is_not_used():
    truth = posterior.Posterior(count=60, seed=1)
    row = model_card.derivative_row(Exact(truth), truth, frame=0, t=700, k=3)
    assert row["ess"] == pytest.approx(by_numpy(truth, 0, 0, 700, 3)["ess"], rel=1e-3)
    assert row["ess"] <= 60 and not {"exact", "overlap", "error"} & set(row)


def test_overlap_is_one_for_equal_spans_and_small_by_chance():
    v = torch.linalg.qr(torch.randn(200, 4)).Q.T
    turned = torch.linalg.qr(torch.randn(4, 4)).Q @ v
    assert subspaces.overlap(v, turned) == pytest.approx(1.0, abs=1e-5)
    other = torch.linalg.qr(torch.randn(200, 4)).Q.T
    cosines = np.cos(subspace_angles(v.T.numpy(), other.T.numpy()))
    assert subspaces.overlap(v, other) == pytest.approx((cosines**2).mean(), abs=1e-5)


def test_a_table_is_tied_to_the_networks_it_was_measured_on_alone():
    both, hers = data.fingerprint(("alice", "reader")), data.fingerprint(("alice",))
    assert data.fingerprint() == both != hers
    assert data.fingerprint(("alice", "reader", "nobody")) == both


def test_without_names_the_jobs_run_whose_tables_are_stored(scratch, monkeypatch):
    ran = []
    made = {name: (lambda name=name: ran.append(name), 1) for name in ("one", "two", "protocol")}
    monkeypatch.setattr(jobs, "JOBS", made)
    runner.publish("two", {"rows": []}, [])
    jobs.main()
    assert ran == ["two"]
    jobs.main(["protocol"])
    assert ran == ["two", "protocol"]


def test_a_network_is_hashed_where_it_is_found(tmp_path, monkeypatch):
    now, other = data.fingerprint(), tmp_path
    (other / "manifest.json").write_text('{"files": []}')
    monkeypatch.setenv("MATHKIT_DATA", str(other))
    assert data.fingerprint() == now != data.fingerprint(("nobody",))
    with pytest.raises(ValueError, match="MATHKIT_DATA"):
        jobs.main(["alice"])


def test_the_card_of_samples_without_a_stranger_has_no_tie_to_him():
    q = puppets.sample_factors(400, 3)[:, :11]
    q[:, 10] = 0.0
    assert "light_tie" not in model_card.factor_card(q.tolist())
