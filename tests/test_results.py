"""Measured results: jobs resume, tables carry their provenance, and the cards measure the truth."""

import json

import pytest
import torch

from mathkit import data
from mathkit.diffusion import model
from mathkit.linear import subspaces
from mathkit.show import posterior, puppets
from studies import jobs, learnt, runner, ship


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


def test_the_sample_card_of_the_show_itself_meets_the_bar():
    q = puppets.sample_factors(4000, 3)
    card = learnt.factor_card(q[:, :11].tolist())
    assert card["ks_worst"] < 0.03 and card["correlation"] < 0.06
    assert 0.05 < card["light_tie"] < 0.2
    assert card["strangers"].startswith(f"{int(q[:, 10].sum())} of 4000")


def test_the_sample_card_notices_a_skewed_factor_and_a_tie():
    """Planted: a squared factor, and two factors that move together."""
    q = puppets.sample_factors(2000, 3)[:, :11]
    q[:, 2] = q[:, 2] ** 2
    q[:, 5] = q[:, 4]
    card = learnt.factor_card(q.tolist())
    assert card["ks"]["eye_size"] > 0.2 and card["correlation"] > 0.99


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


@pytest.mark.parametrize(("skew", "fine"), [(0.0, True), (0.5, False)])
def test_the_derivative_card_of_an_exact_denoiser_is_perfect_and_of_a_skewed_one_is_not(
    skew, fine, monkeypatch
):
    truth = posterior.Posterior(count=60, seed=1)
    monkeypatch.setattr(learnt, "ENOUGH", 0)
    row = learnt.derivative_row(Exact(truth, skew), truth, frame=0, t=700, k=3)
    assert (row["asymmetry"] < 0.02) == fine
    assert (row["error"] < 0.02) == fine
    assert row["overlap"] > 0.99  # what is skewed afterwards keeps its right singular vectors
    if fine:
        assert row["gain"] == pytest.approx(row["exact"], rel=0.02)
    card = learnt.derivative_card([row, row | {"asymmetry": 0.0}])
    assert card["t = 700"]["asymmetry"] == pytest.approx(row["asymmetry"] / 2, abs=1e-6)
    assert card["t = 700"]["exact ones"] == 2


def test_where_the_exact_posterior_rests_on_few_draws_it_is_not_used():
    truth = posterior.Posterior(count=60, seed=1)
    row = learnt.derivative_row(Exact(truth), truth, frame=0, t=700, k=3)
    assert row["ess"] <= 60 and not {"exact", "overlap", "error"} & set(row)


def test_overlap_is_one_for_equal_spans_and_small_by_chance():
    v = torch.linalg.qr(torch.randn(200, 4)).Q.T
    turned = torch.linalg.qr(torch.randn(4, 4)).Q @ v
    assert subspaces.overlap(v, turned) == pytest.approx(1.0, abs=1e-5)
    other = torch.linalg.qr(torch.randn(200, 4)).Q.T
    assert subspaces.overlap(v, other) < 0.15


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
    assert "light_tie" not in learnt.factor_card(q.tolist())
