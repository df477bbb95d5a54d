"""Single neurons: correlations against NumPy, edits of h against the network run by hand."""

import numpy as np
import pytest
import torch
from conftest import UNTRAINED, make_tiny_unet

import mathkit as mk
from mathkit.chapters import neurons, treatment
from mathkit.diffusion import model, networks
from mathkit.show import puppets
from mathkit.show.puppets import STRANGER
from studies import neuron_edits

pytestmark = UNTRAINED


@pytest.fixture(scope="module")
def p():
    """A tiny random U-Net on 64 x 64 puppets."""
    return networks.UNetModel(make_tiny_unet(size=64), model.linear_schedule(40))


@pytest.fixture(scope="module")
def ill(p):
    q = puppets.sample_factors(2, seed=90, stranger=1)
    x0, cure = puppets.render(q), puppets.counterfactual(q)
    xt = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    zero = torch.zeros(2)
    return treatment.Cases(5, [0, 1], 20, 3, xt, x0, q, zero, cure, treatment.region(cure))


@pytest.fixture
def table():
    """Activations in which neuron 3 answers to the Stranger, and trials that neuron 6 wins."""
    generator = torch.Generator().manual_seed(0)
    H, z = torch.randn(60, 8, generator=generator), torch.rand(60, 11, generator=generator)
    z[:, STRANGER] = (torch.arange(60) % 3 == 0).float()
    H[:, 3] -= 4 * z[:, STRANGER]
    trials = {"p": [0.9, 0.0, 0.9, 1.0, 0.9, 0.9, 0.4, 0.5], "side": [0.1] * 8}
    trials["side"][1] = 0.4  # he is gone, and so is the puppet
    return {"h": H.tolist(), "factors": z.tolist(), "trials": trials}


def test_correlations_are_numpys():
    H, Y = torch.randn(30, 5), torch.randn(30, 2)
    expected = np.corrcoef(H.T.numpy(), Y.T.numpy())[:5, 5:]
    assert np.allclose(neurons.correlations(H, Y), expected, atol=1e-5)


def test_a_constant_neuron_answers_to_nothing():
    H = torch.cat([torch.ones(9, 1), torch.arange(9.0)[:, None]], 1)
    assert neurons.correlations(H, torch.arange(9.0)[:, None])[:, 0].tolist() == pytest.approx(
        [0, 1], abs=1e-6
    )


@pytest.mark.parametrize(("h", "y"), [((5, 2), (4, 1)), ((5,), (5, 1)), ((1, 2), (1, 1))])
def test_correlations_refuse_what_does_not_match(h, y):
    with pytest.raises(ValueError, match=r"\(B, m\) and \(B, j\)"):
        neurons.correlations(torch.ones(h), torch.ones(y))


def test_a_silenced_channel_is_taken_out_and_no_other_touched():
    h = torch.randn(2, 8, 2, 2)
    left = h + neurons.silenced(5)(h)
    assert left[:, 5].abs().max() == 0
    assert torch.equal(left[:, :5], h[:, :5]) and torch.equal(left[:, 6:], h[:, 6:])
    with pytest.raises(ValueError, match="0 to 7, got 8"):
        neurons.silenced(8)(h)


def test_the_mean_difference_leads_from_the_ill_to_the_healthy(table):
    H, ill = torch.tensor(table["h"]), torch.tensor(table["factors"])[:, STRANGER] > 0.5
    dh = neurons.mean_difference(H, ill, places=4)
    moved = H[ill] + 4 * dh.flatten()
    assert torch.allclose(moved.mean(0), H[~ill].mean(0), atol=1e-5)
    with pytest.raises(ValueError, match="both groups"):
        neurons.mean_difference(H, torch.ones(60, dtype=torch.bool), 4)


def test_activations_are_the_pooled_bottleneck_of_the_samples_own_state(p, bottleneck):
    t = mk.timesteps(p, 39, 25)[10]
    found = neurons.activations(p, 3, [4, 9], t, steps=2)
    xt = treatment.trajectory(p, 3, [4, 9], t)
    expected = bottleneck(p.unet, t)(xt)
    assert torch.allclose(torch.tensor(found["h"]), expected.sum((2, 3)), rtol=1e-3, atol=1e-4)
    assert torch.tensor(found["factors"]).shape == (2, 11)


def test_an_edit_of_strength_zero_changes_nothing_and_one_of_eight_does(p, ill):
    plain = treatment.finish(p, ill.xt, ill.t, ill.steps)
    dh = neurons.silenced(2)
    assert torch.allclose(neurons.edited(p, ill, dh, 0), plain, atol=1e-5)
    assert (neurons.edited(p, ill, dh, 8) - plain).abs().max() > 1e-3


def test_a_tensor_edit_is_the_same_at_every_place(p, ill):
    dh = torch.randn(8, 1, 1)
    whole = mk.inject(dh.expand(8, 8, 8), ill.t, 0, 0.5)
    expected = mk.denoise(p, ill.xt, ill.t, ill.steps, h_edit=whole).clamp(-1, 1)
    assert torch.allclose(neurons.edited(p, ill, dh, 0.5), expected, atol=1e-5)


def channel_of(dh):
    change = dh(torch.ones(1, 8, 1, 1)).flatten()
    return int(change.abs().argmax())


def test_the_rows_pick_their_neurons(table):
    made = neuron_edits.planned_edits(table, 0)
    assert list(made) == list(neuron_edits.STRENGTHS)
    assert channel_of(made["answers most"]) == 3
    assert channel_of(made["best by trial"]) == 6, "the one that destroys must not win"
    others = [channel_of(neuron_edits.planned_edits(table, i)["another"]) for i in range(30)]
    assert 3 not in others and len(set(others)) > 3
    again = [channel_of(neuron_edits.planned_edits(table, i)["another"]) for i in range(30)]
    assert others == again


@pytest.mark.long
def test_a_sweep_gives_a_record_for_each_row_and_strength(p, ill, table):
    few = {row: strengths[:2] for row, strengths in neuron_edits.STRENGTHS.items()}
    made = neuron_edits.planned_edits(table, 0), few
    records = neuron_edits.try_edits(p, ill[0], *made, limit=0.08, unrelated=0.25)
    assert [(r["row"], r["strength"]) for r in records] == [
        (row, s) for row, strengths in few.items() for s in strengths
    ]
    assert all(r["outcome"] in (0, 1, 2) and r["index"] == 0 for r in records)


def test_completions_are_drawn_again_from_their_seeds_and_differ(p):
    t = mk.timesteps(p, 39, 25)[1]
    ends, xt = treatment.completions(p, 2, 5, t, count=3, steps=4)
    assert ends.shape == (3, 3, 64, 64) and torch.equal(xt, treatment.trajectory(p, 2, [5], t))
    assert (ends[0] - ends[1]).abs().mean() > 0.01
    more, _ = treatment.completions(p, 2, 5, t, count=4, steps=4)
    assert torch.allclose(more[:3], ends, atol=1e-5)


def test_regressions_are_numpys_and_hold_the_other_factors():
    g = torch.Generator().manual_seed(2)
    Y = torch.randn(80, 3, generator=g)
    Y[:, 1] += Y[:, 0]  # correlated factors
    B = torch.randn(3, 6, generator=g)
    H = Y @ B + 2 + 0.01 * torch.randn(80, 6, generator=g)
    found = neurons.regressions(H, Y)
    assert torch.allclose(found, B, atol=0.02)
    design = np.column_stack([np.ones(80), Y.numpy()])
    expected = np.linalg.lstsq(design, H.numpy(), rcond=None)[0][1:]
    assert np.allclose(found, expected, atol=1e-4)


def test_apart_is_orthogonal_to_the_others_and_nothing_more_is_lost():
    g = torch.Generator().manual_seed(3)
    v, others = torch.randn(9, generator=g), torch.randn(3, 9, generator=g)
    w = neurons.apart(v, others)
    assert (others @ w).abs().max() < 1e-5
    assert torch.linalg.matrix_rank(torch.cat([others, (v - w)[None]]), tol=1e-4) == 3


def test_sums_by_place_pool_to_the_activations(p):
    t, ill = mk.timesteps(p, 39, 25)[1], torch.tensor([True, False, False])
    sums = neuron_edits.place_sums(p, 3, [4, 9, 2], t, ill)
    h = torch.tensor(neurons.activations(p, 3, [4, 9, 2], t, steps=2)["h"])
    assert torch.allclose(sums[0].sum((1, 2)), h[0], rtol=0.01, atol=0.01)
    assert torch.allclose(sums[1].sum((1, 2)), h[1] + h[2], rtol=0.01, atol=0.01)


def test_turned_directions_share_their_length_and_leave_the_readable_dials_alone(table):
    many = {k: table[k] for k in table} | {
        "h": torch.randn(60, 8, generator=torch.Generator().manual_seed(4)).tolist()
    }
    places = torch.randn(8, 2, 2, generator=torch.Generator().manual_seed(5))
    made = neuron_edits.turned(many, places, 3)
    assert list(made) == list(neuron_edits.TURNED)
    lengths = [float(made[name].norm()) for name in ("apart", "random", "head tilt")]
    assert lengths == pytest.approx([lengths[0]] * 3)
    assert float(made["random by place"].norm()) == pytest.approx(float(places.norm()))
    B = neurons.regressions(torch.tensor(many["h"]), torch.tensor(many["factors"]))
    assert (B[list(neuron_edits.READABLE)] @ made["apart"].flatten()).abs().max() < 1e-4
    assert float(B[10] @ made["apart"].flatten()) < 0, "away from him"
    other, same = neuron_edits.turned(many, places, 4), neuron_edits.turned(many, places, 3)
    assert not torch.equal(other["random"], made["random"])
    assert torch.equal(same["random"], made["random"])


def row(cured, side):
    """Two strengths of a row, ten patients: how many are cured, and the side effect."""
    return [
        {"side": [d] * 10, "outcome": [1] * k + [0] * (10 - k)}
        for k, d in zip(cured, side, strict=True)
    ]


def test_more_cured_at_one_side_effect_is_read_off_between_the_strengths():
    low, high = row((0, 10), (0.1, 0.3)), row((10, 10), (0.1, 0.3))
    assert neuron_edits.more_cured(high, high, 0.2) == (0, 0, 0)
    more, least, most = neuron_edits.more_cured(high, low, 0.15)
    assert more == pytest.approx(0.75) and least == most == pytest.approx(0.75)
    some = neuron_edits.more_cured(row((3, 5), (0.1, 0.3)), row((0, 0), (0.1, 0.3)), 0.2)
    assert some[0] == pytest.approx(0.4, abs=0.02) and some[1] < 0.2 < 0.6 < some[2]
