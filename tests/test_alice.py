"""The shipped patient: her Jacobian's SVD against LAPACK, and the stored tables against her."""

import random

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import mathkit as mk
from mathkit import data, scores
from mathkit.chapters import eigenfaces, neurons, treatment
from mathkit.show import posterior, puppets
from studies import (
    baselines,
    conditions,
    crowds,
    dials,
    jobs,
    methods,
    model_card,
    neuron_edits,
    rows,
    surveys,
    trial,
)

pytestmark = pytest.mark.patient
COURSES = [name for name, part in rows.TABLES.items() if all(row.course for row in part.rows)]


@pytest.fixture(scope="module")
def p():
    return mk.load_model("alice", device="cpu")


@pytest.fixture(scope="module")
def truth():
    return posterior.Posterior()


@pytest.fixture(scope="module")
def frame():
    return puppets.render(puppets.sample_factors(1, seed=61))


def noised(p, x0, t, seed=0):
    abar = float(p.alphas_cumprod[t])
    e = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed))
    return abar**0.5 * x0 + (1 - abar) ** 0.5 * e


@pytest.mark.parametrize("t", [900, 500, 100])
def test_the_svd_of_her_pooled_encoder_is_lapacks(p, frame, t):
    A = mk.jacobian(mk.encoder(p, t, pool="sum"), noised(p, frame, t))
    J = A.dense().double()
    assert J.shape == (128, 12288)
    _, exact, vh = torch.linalg.svd(J, full_matrices=False)
    r = mk.svd(A, 5, tol=1e-6)
    assert torch.allclose(r.S.double(), exact[:5], rtol=1e-4)
    cosines = (r.V.flatten(1).double() * vh[:5]).sum(1).abs()
    sines = (r.V.flatten(1).double() - cosines[:, None] * vh[:5] * torch.sign(
        (r.V.flatten(1).double() * vh[:5]).sum(1))[:, None]).norm(dim=1)  # fmt: skip
    assert sines.max() <= max(1e-3, 2 * r.angle_bound)


@pytest.mark.parametrize("t", [900, 500, 100])
def test_residuals_on_her_whole_bottleneck_are_as_promised(p, frame, t):
    """Recomputed with torch.func on the bare encoder, not with the map that svd used."""
    x, f = noised(p, frame, t), mk.encoder(p, t)
    U, S, V = mk.svd(mk.jacobian(f, x), 3, tol=1e-3)
    with sdpa_kernel(SDPBackend.MATH):
        for u, s, v in zip(U, S, V, strict=True):
            _, jv = torch.func.jvp(f, (x,), (v[None],))
            _, pull = torch.func.vjp(f, x)
            assert (jv[0] - s * u).norm() <= 1.05e-3 * S[0]
            assert (pull(u[None])[0][0] - s * v).norm() <= 1.05e-3 * S[0]


def test_her_maps_obey_the_adjoint_identity(p, frame):
    x = noised(p, frame, 541)
    for f in (mk.encoder(p, 541), mk.posterior_mean(p, 541)):
        assert mk.check_adjoint(mk.jacobian(f, x)) < 1e-4


def test_inverting_and_denoising_comes_back_closer_with_more_steps(p, frame):
    gaps = []
    for steps in (5, 20):
        back = mk.denoise(p, mk.invert(p, frame, 400, steps), 400, steps)
        gaps.append(float(scores.pixel_distance(back, frame)))
    assert gaps[1] < gaps[0] and gaps[1] < 0.1


def test_a_row_of_the_alice_table_is_what_she_gives_now(p):
    table = data.stored("alice")
    i = random.randrange(len(table["factors"]))
    now = model_card.factor_rows(p, 0, [i])[0]
    assert now == pytest.approx(table["factors"][i], abs=0.02), f"sample {i}"


@pytest.mark.slow
def test_a_row_of_her_derivative_is_what_it_was(p, truth):
    row = random.choice(data.stored("alice")["derivative"])
    now = model_card.derivative_row(p, truth, row["frame"], row["t"])
    for name in row.keys() & {"gain", "exact", "asymmetry", "error"}:
        assert now[name] == pytest.approx(row[name], rel=0.02, abs=0.01), (name, row)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in COURSES))
        for name in rows.TABLES
        if data.is_stored(name)
    ],
)
def test_a_row_of_the_trial_is_what_it_was(p, name):
    table, chosen = data.stored(name), trial.amended()
    ward = trial.Ward(chosen["limit"], trial.kept())
    plan = rows.plan_for(chosen, name, len(table["index"]) - 1)
    row = random.choice(
        [name for name in plan if not name.endswith(("course", "aftercare"))] or list(plan)
    )
    then = table["rows"][row][0]
    j = random.randrange(len(then["outcome"]))
    i = table["index"][j - len(then["outcome"])]  # a row added later got the last samples
    (now, *_) = ward.sweep(table["seed"], i, {row: plan[row][:1]})
    for mark in ("side", "outside"):
        assert now[mark] == pytest.approx(then[mark][j] / 1000, rel=0.1, abs=0.02), (row, j)


def test_a_row_of_the_tangents_is_what_it_was(p):
    row, k = a_row("tangent")
    name = random.choice(surveys.SURVEYED)
    q, x = surveys.noised_frame(p, row["frame"], row["t"])
    V = mk.svd(surveys.the_map(p, name, x, row["t"]), k).V.flatten(1)
    Q = torch.linalg.qr(puppets.tangents(q).flatten(1).T).Q.T
    share = float((V @ Q.T).square().sum() / len(Q))
    assert share == pytest.approx(row[name]["plain"], abs=0.02), (row["frame"], row["t"], name)


def test_a_row_of_the_turning_spans_is_what_it_was(p):
    table = data.stored("turning")
    row, times = random.choice(table["walks"]), table["times"]
    name, (a, b) = row["model"], sorted(random.sample(range(len(times)), 2))
    patient, spans = mk.load_model(name), []
    for t in (times[a], times[b]):
        x = surveys.noised_frame(patient, row["frame"], t, simple=name == "understudy")[1]
        spans.append(mk.svd(mk.jacobian(mk.encoder(patient, t), x), table["k"]).V)
    pair = sum(range(b)) + a  # of (0, 1), (0, 2), (1, 2), ...
    now = float(mk.linear.subspaces.distance(*spans))
    assert now == pytest.approx(row["pairs"]["h"][pair], abs=0.05), (name, row["frame"], a, b)


@pytest.mark.skipif(not data.is_stored("edges"), reason="no table edges: run `make results`")
def test_both_edges_pasted_are_what_they_were(p):
    table, chosen = data.stored("edges"), trial.amended()
    row = next(row for row in baselines.ROWS if row.kind == "pasted")
    j = random.randrange(len(table["index"]))
    case = treatment.admit(p, table["seed"], [table["index"][j]], rows.EDIT_TIME)
    believed, path = case.believing(conditions.both_edges()), treatment.path(p, case)
    images = baselines.treated(p, believed, row, puppets.average_puppet(), path)[0]
    now = treatment.judge(case, images, chosen["limit"], puppets.unrelated_distance())
    where = "both edges" if j < conditions.PATIENTS else conditions.IN_THE_HEALTHY
    then = table["rows"][f"{where}: {row.name}"][0]["side"][j % conditions.PATIENTS]
    assert float(now["side"]) == pytest.approx(then / 1000, abs=0.01), j


@pytest.mark.slow
def test_fresh_samples_before_and_after_are_what_they_were(p):
    if not data.is_stored("always"):
        pytest.skip("no table always: run `make results NAME=always`")
    table, chosen = data.stored("always"), trial.amended()
    ward = trial.Ward(chosen["limit"], trial.kept())
    i = random.randrange(len(table["after"]["factors"]))
    now = trial.always_row(ward, i, table["strength"])
    for name, tolerance in (("before", 0.02), ("after", 0.1)):
        then = torch.tensor(table[name]["factors"][i])
        off = (torch.tensor(now[name]["factors"]) - then).abs()
        assert off[:10].max() < tolerance, (i, name)


def test_a_row_of_the_paths_is_what_it_was(p):
    row, k = a_row("paths")
    x, y = treatment.trajectory(p, 2, [2 * row["pair"], 2 * row["pair"] + 1], row["t"]).split(1)
    ends = x, x + (y - x) / data.stored("paths")["segments"]
    spans = [mk.svd(mk.jacobian(mk.encoder(p, row["t"]), z), k).U.flatten(1).double() for z in ends]
    angles = torch.linalg.svdvals(spans[0] @ spans[1].T).clamp(max=1).arccos()
    assert float(angles.norm()) == pytest.approx(row["lerp"][0], abs=0.05), (row["pair"], row["t"])


def test_a_row_of_the_effects_is_what_it_was(p):
    row, _ = a_row("effects")
    case = treatment.admit(p, 3, [row["index"]], row["t"])
    v = mk.svd(mk.jacobian(mk.encoder(p, row["t"]), case.xt), surveys.K).V[:1]
    s = data.stored("effects")["strength"]
    ends = methods.treat(p, case, surveys.EDITS["plain"], v, [-s, s])
    low, high = mk.read_factors(ends)[:, : puppets.STRANGER + 1]
    then = torch.tensor(row["own"][0])
    assert min((high - low - then).abs().max(), (low - high - then).abs().max()) < 0.1, row["index"]


@pytest.mark.slow
def test_a_row_of_the_manifold_is_what_it_was(p):
    row, _ = a_row("manifold")
    table, name = data.stored("manifold"), random.choice(["random", "plain"])
    case = treatment.admit(p, 3, [row["index"]], row["t"])
    v = methods.direction(p, case, surveys.EDITS[name], puppets.average_puppet())
    images = methods.treat(p, case, surveys.EDITS[name], v, table["strengths"])
    change = (images - case.x0).abs().mean((1, 2, 3))
    assert change.tolist() == pytest.approx(row[name]["change"], abs=0.02), (row["index"], name)


@pytest.mark.slow
def test_what_directions_do_to_the_dials_is_what_it_was(p):
    row, _ = a_row("dials")
    found = dials.dial_row(p, None, row["index"], row["t"])
    now, then = (torch.tensor(r["h"])[0] for r in (found, row))  # a sign means nothing
    assert min((now - then).abs().max(), (now + then).abs().max()) < 0.1, row


def a_row(name):
    """A random row of a stored survey, and its number of directions."""
    if not data.is_stored(name):
        pytest.skip(f"no table {name}: run `make results NAME={name}`")
    table = data.stored(name)
    return random.choice(table["rows"]), table.get("k")


@pytest.mark.slow
def test_a_row_of_when_he_is_decided_is_what_it_was(p, truth):
    table = data.stored("decided")
    row = random.choice(table["rows"])
    ends, xt = treatment.completions(p, table["seed"], row["index"], row["t"], row["of"])
    seen = mk.read_factors(ends)[:, puppets.STRANGER] > 0.5
    assert abs(int(seen.sum()) - row["shown"]) <= 1, row
    abar = float(p.alphas_cumprod[row["t"]])
    assert float(truth.stranger(xt, abar)) == pytest.approx(row["exact"], abs=0.02)


@pytest.mark.slow
def test_a_row_of_her_three_sides_is_what_it_was(p, truth):
    at = [row for row in data.stored("sides")["rows"] if row["t"] == 700]  # by the large bank
    row = random.choice(at)
    fresh = eigenfaces.eigenfaces(puppets.render(puppets.sample_factors(2000, seed=8)), 10)
    now = model_card.sides_row(p, truth, fresh.axes, row["frame"], row["t"])
    assert now.keys() == row.keys()
    names = [name for name in row if name not in ("frame", "t", "ess")]
    assert [now[n] for n in names] == pytest.approx([row[n] for n in names], abs=0.02)


def test_the_symmetric_part_of_a_map_is_half_of_it_and_its_transpose():
    A = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(((mk.matrix(A) + mk.matrix(A).T) / 2).dense(), (A + A.T) / 2, atol=1e-6)


@pytest.mark.slow
def test_a_row_of_the_planted_crowds_is_what_it_was():
    row = random.choice([r for r in data.stored("crowds")["rows"] if r["share"] == crowds.SHARE])
    now = crowds.crowd_row(row["n"], row["share"], row["seed"])
    assert abs(now["agreed"] - row["agreed"]) < 0.2 * row["n"], (now, row)


def test_a_row_of_the_neurons_is_what_it_was(p):
    table = data.stored("neurons")
    i = random.randrange(len(table["h"]))
    now = neurons.activations(p, table["seed"], [i], table["t"], jobs.CALLS)
    assert now["h"][0] == pytest.approx(table["h"][i], rel=0.01, abs=0.5), i
    assert now["factors"][0] == pytest.approx(table["factors"][i], abs=0.02), i


@pytest.mark.slow
def test_a_trial_of_a_neuron_is_what_it_was(p):
    table = data.stored("neurons")
    j = random.randrange(len(table["trials"]["p"]))
    ill = treatment.admit(
        p, table["seed"], table["tried_on"], neuron_edits.TIME, neuron_edits.STEPS
    )
    chosen = trial.protocol()
    now = jobs.try_neuron(p, ill, j, chosen["limit"], chosen["unrelated"])
    assert now["side"] == pytest.approx(table["trials"]["side"][j], rel=0.05, abs=0.01), j


def test_a_row_of_the_switched_off_neuron_is_what_it_was(p):
    table, chosen = data.stored("neuron_off"), trial.protocol()
    j, name = random.randrange(len(table["ill"])), random.choice(list(neuron_edits.STRENGTHS))
    k, i = random.randrange(3), table["ill"][j]
    case = treatment.admit(p, table["seed"], [i], neuron_edits.TIME, neuron_edits.STEPS)
    dh = neuron_edits.planned_edits(data.stored("neurons"), i)[name]
    image = neurons.edited(p, case, dh, neuron_edits.STRENGTHS[name][k])
    marks = treatment.judge(case, image, chosen["limit"], chosen["unrelated"])
    stored = table["rows"][name][k]
    for mark in ("side", "outside", "factor"):
        assert float(marks[mark][0]) == pytest.approx(stored[mark][j], rel=0.1, abs=0.02), (name, i)


def test_a_row_of_the_turned_directions_is_what_it_was(p):
    table, chosen = data.stored("turned"), trial.protocol()
    j, name = random.randrange(len(table["ill"])), random.choice(list(neuron_edits.TURNED))
    i, s = table["ill"][j], neuron_edits.TURNED[name][0]
    case = treatment.admit(p, table["seed"], [i], neuron_edits.TIME, neuron_edits.STEPS)
    dh = neuron_edits.turned(data.stored("neurons"), torch.tensor(table["places"]), i)[name]
    image = neurons.edited(p, case, dh, s)
    marks = treatment.judge(case, image, chosen["limit"], chosen["unrelated"])
    stored = table["rows"][name][0]
    for mark in ("side", "outside", "factor"):
        assert float(marks[mark][0]) == pytest.approx(stored[mark][j], rel=0.1, abs=0.02), (name, i)
