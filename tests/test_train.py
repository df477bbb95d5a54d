"""Training: the target is the right one, and a run that stops continues to the same weights."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from mathkit import data
from mathkit.diffusion.model import linear_schedule
from mathkit.show import puppets
from studies import ship, train


class Answer(nn.Module):
    """Keeps what it was asked and answers with a scaled copy of x_t."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.asked = []

    def forward(self, x, t):
        self.asked.append((x.detach().clone(), t.clone()))
        return type("Output", (), {"sample": self.gain * x})


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def alone(**kw):
    """The loss whose newest frames are those of the batch itself, one frame: plain denoising."""
    return train.DenoiserLoss(batch=1, recent=1, **kw)


def test_with_one_frame_the_loss_is_the_distance_to_v_of_that_noised_frame():
    for step in range(6):
        net = Answer()
        loss = alone()(net, step, draw(step))
        (xt, t), abar = net.asked[0], linear_schedule()
        x0 = puppets.render(train.show(step, 1, stream=1))
        a = abar[t].float()[:, None, None, None]
        e = (xt - a.sqrt() * x0) / (1 - a).sqrt()
        if t > 20:  # below, e is a difference of nearly equal numbers
            assert abs(e.mean()) < 0.03 and abs(e.std() - 1) < 0.03
        v = a.sqrt() * e - (1 - a).sqrt() * x0
        assert torch.allclose(loss, (0.5 * xt - v).square().mean(), rtol=2e-2)


def test_the_target_is_the_posterior_mean_over_the_newest_frames():
    """Oracle: every weight written out in float64, frame by frame."""
    loss, net, batch = train.DenoiserLoss(batch=4, recent=24), Answer(), 4
    for step in (10, 11):
        value = loss(net, step, draw(step)).item()
    xt, t = net.asked[-1]
    newest = torch.cat([puppets.render(train.show(s, 4, stream=1)) for s in range(6, 12)])
    frames, flat = newest.flatten(1).double(), xt.flatten(1).double()
    total = 0.0
    for x, time in zip(flat, t, strict=True):
        a = linear_schedule()[time].double()
        logs = -(x - a.sqrt() * frames).square().sum(1) / (2 * (1 - a))
        mean = torch.softmax(logs, 0) @ frames
        target = (a.sqrt() * x - mean) / (1 - a).sqrt()
        total += float((0.5 * x - target).square().mean()) / batch
    assert value == pytest.approx(total, rel=1e-2)
    assert (t[-1] > 700) and torch.softmax(logs, 0).max() < 0.9  # the mean was one of several


def test_the_newest_frames_are_the_same_after_a_stop():
    on, again = train.DenoiserLoss(batch=2, recent=8), train.DenoiserLoss(batch=2, recent=8)
    for step in range(5):
        last = on(Answer(), step, draw(step))
    assert torch.equal(last, again(Answer(), 4, draw(4)))


def test_the_understudy_is_shown_the_simple_show_only():
    q = train.show(3, 50, stream=1, simple=True)
    moving = [i for i in range(q.shape[1]) if q[:, i].std() > 0.1]
    names = [puppets.FACTORS[i] for i in moving]
    assert names == [*puppets.FEW_FACTORS, "stranger_side", "stranger_height"]
    assert (q[:, puppets.STRANGER] == 0).all()


def test_times_cover_the_schedule_evenly():
    net, loss = Answer(), train.DenoiserLoss(recent=8)
    for step in range(30):
        loss(net, step, draw(step))
    t = torch.cat([t for _, t in net.asked]).sort().values
    assert t.min() >= 0 and t.max() <= 999
    assert (t - torch.arange(240) * 1000 / 240).abs().max() < 100


def test_the_schedule_is_the_linear_one_of_diffusers():
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(num_train_timesteps=1000).alphas_cumprod
    assert torch.allclose(linear_schedule().float(), theirs, rtol=1e-4)


def test_training_frames_never_repeat_and_leave_the_other_seeds_alone():
    a, b = train.show(0, 4, stream=1), train.show(1, 4, stream=1)
    assert not torch.equal(a, b) and torch.equal(a, train.show(0, 4, stream=1))
    assert not torch.equal(a, train.show(0, 4, stream=0))


def test_spoilt_images_stay_images():
    images = puppets.render(puppets.sample_factors(32, 0))
    spoilt = train.spoil(images, draw())
    assert spoilt.shape == images.shape and spoilt.abs().max() <= 1
    assert 0.01 < (spoilt - images).abs().mean() < 0.15


def test_the_rate_warms_up_and_falls_to_a_twentieth():
    """By hand: the cosine stands at 1, 1/2 and 0 at the beginning, half-way and at the end."""
    rates = [train.learning_rate(s, 1000, 2.0) for s in range(1001)]
    assert rates[0] == pytest.approx(2.0 / 200)
    assert rates[500] == pytest.approx(2.0 * 0.525) and rates[1000] == pytest.approx(0.1)
    assert rates[49] == pytest.approx(0.25 * (2.1 - rates[951]))  # a quarter of the warm-up
    assert all(b < a for a, b in zip(rates[200:], rates[201:], strict=False))


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    monkeypatch.setattr(train, "RUNS", tmp_path)

    def run(name, steps, stop=None, every=5, **how):
        torch.manual_seed(0)
        net = nn.Linear(6, 6)

        def loss(net, batch, draw):
            if batch == stop:
                raise KeyboardInterrupt
            x = torch.randn(16, 6, generator=draw)
            return (net(x) - x.flip(1)).square().mean()

        return train.fit(net, loss, name, steps, 1e-2, every=every, **how)

    return run


def test_a_run_that_is_stopped_goes_on_as_if_undisturbed(tiny):
    for stop in (13, 17):
        with pytest.raises(KeyboardInterrupt):
            tiny("stopped", 20, stop)
    state = torch.load(train.RUNS / "stopped" / train.STATE)
    assert state["step"] == 15 and state["of"] == 20
    stopped, whole = tiny("stopped", 20), tiny("whole", 20)
    assert torch.equal(stopped.weight, whole.weight) and torch.equal(stopped.bias, whole.bias)
    ends = [torch.load(train.RUNS / name / train.STATE) for name in ("stopped", "whole")]
    for name in ("net", "mean"):
        assert torch.equal(ends[0][name]["weight"], ends[1][name]["weight"])


def test_the_average_remembers_more_the_longer_it_lasts_up_to_its_limit(tiny, monkeypatch):
    """Oracle: the sum written out in float64, from the weights after every step."""
    met = []

    def keep(path, net, mean, *rest):
        met.append((net.weight.detach().double(), mean.module.weight.double()))

    monkeypatch.setattr(train, "_store", keep)
    found = tiny("run", 30, average=0.7, every=1).weight
    torch.manual_seed(0)
    slow = nn.Linear(6, 6).weight.detach().double()
    for n, (fast, mean) in enumerate(met, 1):
        memory = min(0.7, n / (n + 9))
        slow = memory * slow + (1 - memory) * fast
        assert torch.allclose(mean, slow, atol=1e-6)
    assert len(met) == 30 and torch.equal(found.double(), mean) and not found.requires_grad


@pytest.mark.parametrize("fault", ["empty", "text", "another net", "a part"])
def test_a_file_that_holds_no_run_of_this_network_is_refused(tiny, fault):
    tiny("run", 5)
    state = train.RUNS / "run" / train.STATE
    if fault in ("empty", "text"):
        state.write_bytes(b"" if fault == "empty" else b"weights")
    else:
        kept = torch.load(state)
        other = {"net": nn.Linear(3, 3).state_dict()}
        torch.save(kept | other if fault == "another net" else {"net": kept["net"]}, state)
    with pytest.raises(ValueError, match="holds no run of this network: remove it"):
        tiny("run", 10)


TWO = """
import pathlib, sys
import torch
from torch import nn
from studies import train

train.RUNS = pathlib.Path(sys.argv[1])
torch.manual_seed(0)


def one(net, batch):
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(batch))
    return (net(x) - x.flip(1)).square().mean()


def both(net, batch, draw):
    return (one(net, 2 * batch) + one(net, 2 * batch + 1)) / 2


shared = sys.argv[2] == "shared"
train.fit(nn.Linear(6, 6), (lambda n, b, d: one(n, b)) if shared else both, sys.argv[2], 30, 1e-2)
"""


@pytest.mark.long
def test_two_processes_train_on_the_mean_of_their_gradients(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    several = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    for name, head in (("shared", several), ("alone", ())):
        words = [sys.executable, *head, str(script), str(tmp_path), name]
        path = os.environ | {"PYTHONPATH": os.getcwd()}
        done = subprocess.run(words, env=path, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (torch.load(tmp_path / name / train.STATE) for name in ("alone", "shared"))
    for name in ("net", "mean"):
        assert torch.allclose(one[name]["weight"], two[name]["weight"], atol=1e-5)


def test_a_run_that_stops_continues_to_the_same_weights(tiny):
    whole = tiny("whole", 20)
    tiny("parts", 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "learning_rate", lambda s, n, r: r)
        tiny("constant", 10)
        constant = tiny("constant", 20)
        at_once = tiny("at once", 20)
    assert torch.equal(constant.weight, at_once.weight)
    assert not torch.equal(constant.weight, whole.weight)


def test_training_lowers_the_loss_and_a_finished_run_does_nothing_more(tiny):
    early, late = tiny("run", 5), tiny("run", 300)
    x = torch.randn(100, 6, generator=draw(9))

    def error(net):
        return (net(x) - x.flip(1)).square().mean()

    assert error(late) < 0.5 * error(early)
    assert torch.equal(late.weight, tiny("run", 300).weight)


def test_shipping_before_training_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(train, "RUNS", tmp_path)
    with pytest.raises(FileNotFoundError, match="make patient"):
        ship.ship()


def test_a_shipped_network_loads_as_the_one_that_was_trained(monkeypatch, tmp_path):
    monkeypatch.setattr(train, "RUNS", tmp_path / "runs")
    small = train.UNET | {"block_out_channels": (16, 16, 16, 32)}
    monkeypatch.setitem(train.PATIENTS, "alice", small)
    monkeypatch.setattr(data, "clone", lambda: tmp_path / "data")
    net = train.make_unet()
    state = {"mean": net.state_dict(), "step": 3}
    (tmp_path / "runs" / "alice").mkdir(parents=True)
    torch.save(state, tmp_path / "runs" / "alice" / "state.pt")
    ship.ship()
    monkeypatch.setenv("MATHKIT_DATA", str(tmp_path / "data"))
    from mathkit import load_model

    p = load_model("alice", device="cpu")
    assert p.shape == (3, 64, 64)
    x = torch.randn(1, 3, 64, 64, generator=draw())
    with torch.no_grad():
        v = net(x, torch.tensor([500])).sample
    abar = linear_schedule()[500].float()
    expected = abar.sqrt() * v + (1 - abar).sqrt() * x
    assert torch.allclose(p.noise(x, 500), expected, atol=2e-2)


def test_a_run_begun_from_weights_has_them_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(train, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(data, "clone", lambda: tmp_path / "data")
    net, other = train.make_unet("understudy"), train.make_unet("understudy")
    with torch.no_grad():
        net.conv_in.bias += 1
    (tmp_path / "runs" / "understudy").mkdir(parents=True)
    half = {k: v.half() for k, v in net.state_dict().items()}
    folder = ship._folder("understudy", half)
    train.begin(other, "understudy", str(folder))
    assert torch.allclose(other.conv_in.bias, net.conv_in.bias, atol=1e-2)
    state = {"mean": other.state_dict(), "step": 7}
    torch.save(state, tmp_path / "runs" / "understudy" / "state.pt")
    ship.ship()
    (entry,) = (e for e in data.manifest(tmp_path / "data") if e["path"].endswith("tensors"))
    assert "understudy --steps 7 --from" in entry["command"] and "SHA-256" in entry["command"]
    assert entry["size"] < 4e6 and sum(v.numel() for v in half.values()) <= 1.5e6


@pytest.mark.parametrize("words", [["alice", "understudy"], ["reader"]])
def test_weights_to_begin_with_are_one_patients(words):
    with pytest.raises(SystemExit, match="begins one patient"):
        train.main([*words, "--from", "data/alice"])


def test_weights_without_a_name_begin_alice(monkeypatch):
    begun = []
    monkeypatch.setattr(train, "begin", lambda net, name, folder: begun.append((name, folder)))
    monkeypatch.setattr(train, "fit", lambda *given: begun.append(given[2]))
    train.main(["--from", "data/alice"])
    assert begun == [("alice", "data/alice"), "alice"]
    begun.clear()
    train.main([])
    assert begun == ["reader", "alice", "understudy"]
    with pytest.raises(SystemExit):
        train.main(["nobody"])


def test_what_is_not_trained_to_its_end_is_not_shipped(tiny):
    tiny("reader", 5)
    state = train.RUNS / "reader" / "state.pt"
    torch.save(torch.load(state) | {"of": 9}, state)
    with pytest.raises(ValueError, match="reader has trained 5 of 9 steps"):
        ship.ship()


def test_weights_do_not_begin_a_run_that_was_begun_otherwise(monkeypatch, tmp_path):
    monkeypatch.setattr(train, "RUNS", tmp_path)
    net, run = train.make_unet("understudy"), tmp_path / "understudy"
    run.mkdir()
    (run / "state.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="holds another run"):
        train.begin(net, "understudy", "understudy")
    (run / "state.pt").unlink()
    train.begin(net, "understudy", "understudy")
    (run / "state.pt").write_bytes(b"")
    train.begin(net, "understudy", "understudy")  # the same again goes on


def test_a_run_that_was_begun_from_weights_goes_on_at_its_own_rate(monkeypatch, tmp_path):
    rates = []
    monkeypatch.setattr(train, "RUNS", tmp_path)
    monkeypatch.setattr(train, "fit", lambda *given: rates.append(given[-1]))
    train.main(["understudy", "--from", "understudy"])
    (tmp_path / "understudy" / train.STATE).write_bytes(b"")
    train.main(["understudy"])
    assert rates == [4e-4, 4e-4]
    with pytest.raises(ValueError, match="no network like alice's"):
        train.begin(train.make_unet("alice"), "alice", "understudy")


def test_a_run_from_scratch_forgets_what_an_earlier_one_was_begun_from(monkeypatch, tmp_path):
    monkeypatch.setattr(train, "RUNS", tmp_path)
    monkeypatch.setattr(train, "fit", lambda *given: None)
    note = tmp_path / "understudy" / train.BEGUN
    note.parent.mkdir()
    note.write_text("elsewhere")
    train.main(["understudy"])
    assert not note.exists()
