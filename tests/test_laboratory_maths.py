"""The laboratory's mathematics against mathkit's, numpy's dense SVD and theorems, in a browser."""

import functools
import json
import re

import numpy as np
import pytest
import torch
from conftest import planted
from laboratory import laboratory

import mathkit as mk
from mathkit import data
from mathkit.chapters import treatment
from mathkit.diffusion.directions import read_direction
from mathkit.diffusion.sampling import start
from studies import methods

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with laboratory(tmp_path_factory.mktemp("laboratory")) as opened:
        yield opened


@pytest.fixture
def unshifted(monkeypatch):
    """torch's own generator, whatever seeds the other tests draw from."""
    monkeypatch.setattr(torch, "Generator", torch._C.Generator)


@pytest.fixture(scope="module")
def alice():
    return mk.load_model("alice", device="cpu")


@pytest.mark.parametrize("seed", [0, 1, 1234567, 2**31, 2**32 - 1, 2**32, 2**40 + 1, 2**53 - 1])
@pytest.mark.parametrize("index", [0, 1, 299, 2**32 + 5])
def test_the_snow_is_that_of_mk_sample(page, alice, unshifted, seed, index):
    ours = page("snow(seed, index)", seed=seed, index=index)
    torch.testing.assert_close(ours, start(alice, seed, [index]).flatten(), atol=5e-6, rtol=0)


@pytest.mark.parametrize("size", [16, 17, 31, 100])
def test_normal_numbers_of_any_size_are_torchs(page, unshifted, size):
    ours = page("normal(mersenneTwister(7), size)", size=size)
    expected = torch.randn(size, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(ours, expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize("seed", [-1, 0.5, 2**53, "one"])
def test_a_seed_is_an_integer_that_javascript_holds(page, seed):
    with pytest.raises(Exception, match="integers from 0 to 2\\^53 - 1"):
        page("snow(seed, 0)", seed=seed)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 11, 12, 23, 25, 50, 60])
def test_times_are_those_of_mk_timesteps(page, alice, steps):
    times = [0, 1, 2, 25, 42, 83, 125, 333, 500, 750, 997, 998, 999]
    ours = page("times.map((t) => timesteps(t, steps))", times=times, steps=steps)
    assert ours == [mk.timesteps(alice, t, steps) for t in times]


def test_the_times_of_a_preview_fall_and_those_of_the_sample_are_its_own(page, alice):
    assert page("hurried(500)") == [500, 333, 166, 42]
    previews = page("Array.from({length: 1000}, (_, t) => hurried(t))")
    assert all(times == sorted(set(times), reverse=True) for times in previews)
    assert [times[0] for times in previews] == list(range(1000))
    assert page("grid(500)") == treatment.grid(alice, 500)
    with pytest.raises(Exception, match="one of the sampling times"):
        page("grid(501)")


def test_the_noise_levels_are_those_of_her_schedule(page, alice):
    levels = torch.tensor(page("Array.from({length: 1000}, (_, t) => abar(t))")).double()
    torch.testing.assert_close(levels, alice.alphas_cumprod, rtol=0, atol=0)
    assert page("abar(-1)") == 1


@pytest.mark.parametrize("strength", [-0.5, -1e-3, 0.0, 0.2, 2.0])
def test_a_move_is_that_of_mk_move(page, alice, strength):
    x, v = torch.randn(1, 3, 64, 64), torch.randn(3, 64, 64)
    ours = page("move(x, v, s)", x=x, v=v, s=strength)
    theirs = mk.move(alice, x, 500, v, strength, 1)[-1].flatten()
    torch.testing.assert_close(ours, theirs, atol=3e-6, rtol=0)


# --- the search ----------------------------------------------------------------------------------

OF_MATRIX = """
const push = v => times(M, v, m, n, n, 1), pull = u => times(N ?? M, u, n, m, 1, n);
function times(M, x, rows, columns, down, across) {
  return Float32Array.from({ length: rows }, (_, i) => {
    let sum = 0;
    for (let j = 0; j < columns; j++) sum += M[i * down + j * across] * x[j];
    return sum;
  });
}
return await svd({n, m, push, pull}, k, {tol, seed});
"""


def found(page, M, k, tol=1e-5, seed=0, back=None):
    """The page's svd of a matrix; `back`: another whose transpose pulls."""
    m, n = M.shape
    return page(OF_MATRIX, M=M.double(), N=back, m=m, n=n, k=k, tol=tol, seed=seed)


def check(M, r, tol=1e-5):
    """r holds the top singular triplets of M to tol * s_1, signs included."""
    M, U, S, V = (
        M.double(),
        *(torch.tensor(r["S"]) if k == "S" else torch.stack(r[k]) for k in "USV"),
    )
    exact = torch.tensor(np.linalg.svd(M.numpy())[1])
    U, S, V, k = U.double(), S.double(), V.double(), len(S)
    assert not r["problem"], r["problem"]
    torch.testing.assert_close(S, exact[:k], atol=float(tol * exact[0]), rtol=0)
    assert (U @ M - S[:, None] * V).norm(dim=1).max() <= 1.01 * tol * exact[0] + 1e-12
    assert (V @ M.T - S[:, None] * U).norm(dim=1).max() <= 1.01 * tol * exact[0] + 1e-12
    for X in (U, V):
        torch.testing.assert_close(X @ X.T, torch.eye(k).double(), atol=1e-5, rtol=0)
    assert all(v[v.abs().argmax()] > 0 for v in V)


GEOMETRIC = [0.8**i for i in range(25)]
CYCLE = torch.eye(40).roll(1, 0)
LISTED = {
    "random": (torch.randn(60, 50, generator=torch.Generator().manual_seed(1)), 5),
    "wide": (torch.randn(50, 60, generator=torch.Generator().manual_seed(2)), 5),
    "geometric": (planted(80, 70, GEOMETRIC), 4),
    "twice": (planted(60, 50, [3.0, 3.0, *GEOMETRIC]), 3),
    "three times": (planted(60, 50, [3.0, 3.0, 3.0, *GEOMETRIC]), 4),
    "four times": (planted(50, 60, [3.0, 3.0, 3.0, 3.0, *GEOMETRIC]), 5),
    "lower, three times": (planted(60, 60, [4.0, 3.0, 3.0, 3.0, 2.5, *GEOMETRIC]), 5),
    "the cycle's Laplacian": (2 * torch.eye(40) - CYCLE - CYCLE.T, 5),
    "equal": (torch.diag(torch.tensor([2.0] * 12 + [1.0] * 12)), 4),
    "the identity": (torch.eye(20), 3),
    "rank two": (planted(40, 30, [2.0, 1.0]), 4),
    "nothing": (torch.zeros(20, 18), 3),
    "one row": (torch.randn(1, 20, generator=torch.Generator().manual_seed(3)), 1),
    "small": (torch.tensor([[3.0, 0.0], [4.0, 5.0]]), 2),
}


@pytest.mark.parametrize("name", LISTED)
def test_the_search_finds_what_the_dense_svd_has(page, name):
    M, k = LISTED[name]
    for seed in range(10):
        check(M, found(page, M, k, seed=seed))


def test_a_pull_that_is_not_the_transpose_is_told(page):
    M = planted(60, 50, GEOMETRIC)
    assert not found(page, M, 3, tol=1e-4)["problem"]
    wrong = M + 1e-3 * torch.randn(60, 50, dtype=torch.float64)
    assert "push's transpose" in found(page, M, 3, tol=1e-4, back=wrong)["problem"]


def test_the_checker_of_this_file_sees_a_thousandth(page):
    M = planted(30, 20, GEOMETRIC[:20])
    r = found(page, M, 3)
    check(M, r)
    worse = [
        {"S": [1.001 * s for s in r["S"]]},
        {"U": [1.001 * u for u in r["U"]]},
        {"V": [v + 1e-3 * torch.randn(20) for v in r["V"]]},
        {"U": [-u for u in r["U"]], "V": [-v for v in r["V"]]},
    ]
    for planted_fault in worse:
        with pytest.raises(AssertionError):
            check(M, r | planted_fault)


@pytest.mark.parametrize("above", [1e-3, 0.1, 1.0, 30.0])
def test_a_copy_has_grown_enough_after_the_rounds_needed(page, above):
    """T_(j-1)(1 + 2 above), the growth after j rounds, reaches 30 sqrt(n) there and no earlier."""
    j = page("needed(12288, above)", above=above)
    chebyshev = np.polynomial.chebyshev.Chebyshev.basis
    grown = [chebyshev(i - 1)(1 + 2 * above) for i in (j - 1, j)]
    enough = 30 * 12288**0.5  # T(x) = cosh(j acosh x) is half of e^(j acosh x)
    assert grown[0] < enough and grown[1] >= enough / 2


def test_a_map_that_gives_nan_is_refused(page):
    with pytest.raises(Exception, match="NaN or infinity"):
        page("await svd({n: 9, m: 9, push: v => v.map(() => NaN), pull: u => u}, 1)")


@pytest.mark.parametrize("k, tol", [(0, 0.1), (10, 0.1), (1.5, 0.1), (1, 1), (1, -1)])
def test_k_and_tol_outside_their_ranges(page, k, tol):
    with pytest.raises(Exception, match="k counts directions: 1 to 9|tol is a share"):
        page("await svd({n: 9, m: 12, push: v => v, pull: u => u}, k, {tol})", k=k, tol=tol)


@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_small_matrices_are_taken_apart_as_numpy_does(page, n):
    for seed in range(3):
        M = np.triu(np.random.default_rng(seed).standard_normal((n, n)))
        M[:, seed % n] = 0
        r = page("smallSVD(columns)", columns=[torch.from_numpy(c) for c in M.T])
        P, S, Q = torch.stack(r["P"]).numpy().T, np.array(r["S"]), torch.stack(r["Q"]).numpy().T
        np.testing.assert_allclose(S, np.linalg.svd(M)[1], atol=1e-13)
        np.testing.assert_allclose(P * S @ Q.T, M, atol=1e-13)
        np.testing.assert_allclose([P.T @ P, Q.T @ Q], [np.eye(n)] * 2, atol=1e-12)


# --- with ALICE ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def awake(page):
    page.wake()
    return page


def drawn(page, seed, index=0):
    """What the worker draws: x_0 and x_t by t, with the batch axis."""
    done = page.ask("draw", seed=seed, index=index)[-1]
    assert done["state"] == "done", done
    shaped = {one["t"]: one["x"].reshape(1, 3, 64, 64) for one in done["path"]}
    return done["image"].reshape(1, 3, 64, 64), shaped


def near(a, b, atol=1e-5):
    torch.testing.assert_close(a.reshape(b.shape), b, atol=atol, rtol=0)


def drags_agree(page, alice, x, t, v):
    moved = mk.move(alice, x, t, v, 0.3, 1)[-1]
    for calls, times in ((4, page("hurried(t)", t=t)), ("all", treatment.grid(alice, t))):
        ours = page.ask("drag", x=x, t=t, v=v, strength=0.3, calls=calls)[-1]["image"]
        near(ours, mk.denoise(alice, moved, t, times=times))


def directions_agree(page, A, x, t, name, tol):
    """Values as mk.svd's, and vectors that A itself stretches so: A^T A v = s^2 v."""
    done = page.ask("directions", x=x, t=t, map=name, k=3, tol=tol)[-1]
    S, V = torch.tensor(done["S"]), torch.stack(done["V"]).reshape(3, 3, 64, 64)
    assert done["problem"] == ""
    torch.testing.assert_close(S, mk.svd(A, 3, tol=tol).S, rtol=1e-5, atol=0)
    s = S[:, None, None, None]
    missed = A.pull(A.push(V)) / s - s * V
    assert missed.flatten(1).norm(dim=1).max() <= 1.1 * tol * S[0]
    assert all(v.flatten()[v.abs().argmax()] > 0 for v in V)
    return V


def maps(alice, t):
    return {
        "h": mk.encoder(alice, t),
        "pooled": mk.encoder(alice, t, pool="sum"),
        "mean": mk.posterior_mean(alice, t),
    }


def agrees(page, alice, seed, times, tol=3e-4):
    image, path = drawn(page, seed)
    near(image, mk.sample(alice, index=[0], seed=seed))
    for t in times:
        x = path[t]
        near(x, treatment.trajectory(alice, seed, [0], t))
        for name, f in maps(alice, t).items():
            V = directions_agree(page, mk.jacobian(f, x), x, t, name, tol)
        drags_agree(page, alice, x, t, V[0])


def test_a_sample_its_directions_and_drags_are_mathkits(awake, alice, unshifted):
    agrees(awake, alice, 1, [500])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_samples_directions_and_drags_are_mathkits(awake, alice, unshifted, seed):
    agrees(awake, alice, seed, [749, 500, 250])


# --- the treatment -------------------------------------------------------------------------------

# A model whose posterior mean is d x: open in twelve places of one colour, the rest nearly shut.
DIAGONAL = """
const d = new Float32Array(12288).map((_, i) => i < 12 ? 3 * 0.8 ** i : 0.005);
const scaled = x => x.map((xi, i) => d[i] * xi);
const alice = {
  predict: (x, t) => x.map((xi, i) =>
    (Math.sqrt(abar(t)) * xi - d[i] * xi) / Math.sqrt(1 - abar(t))),
  linearised: (map, x) => ({n: 12288, m: 12288, value: scaled(x), push: scaled, pull: scaled}),
};
const region = new Float32Array(4096).fill(1, 6, 2048), average = new Float32Array(12288).fill(0.5);
const path = timesteps(999, 25).map(t => ({t, x: snow(0, t)}));
"""


def test_a_dose_of_nothing_leaves_the_sample_as_it_is(page):
    treated, untreated = page(
        DIAGONAL
        + """
        const all = [{t: 999, x: snow(0, 0)}];
        const image = await walk(alice, all[0].x, timesteps(999, 25), async (t, clean, x) => {
          all.push({t, x});
        });
        return [await treat(alice, all, region, 0, {average, clip: 20, tol: 0.02}), clipped(image)];
        """
    )
    torch.testing.assert_close(treated, untreated, atol=1e-5, rtol=0)


def test_a_step_is_aimed_into_the_region_and_off_the_rest(page):
    """d (average - E) where the region is; what moves the rest most lies elsewhere."""
    way, V, moved, half = page(
        DIAGONAL
        + """
        const about = {alice, region, average, clip: 1, tol: 1e-5, each: async () => {}};
        const there = await studied(about, path[6].x, 749);
        const length = norm(there.way), step = async clip => {
          const moved = await stepped({...about, clip}, there, there.x, 0.1);
          return norm(moved.map((one, i) => one - there.x[i])) / norm(there.x);
        };
        return [there.way, there.V, await step(length / 2), await step(2 * length)];
        """
    )
    inside = torch.zeros(4096)
    inside[6:2048] = 1
    x = page("snow(0, timesteps(999, 25)[6])")
    d = page(DIAGONAL + "return d;")
    torch.testing.assert_close(way, inside.repeat(3) * d * (0.5 - d * x), atol=1e-4, rtol=1e-4)
    assert len(V) == 5 and all(abs(v @ way) < 1e-4 * way.norm() for v in V)
    assert (moved, half) == pytest.approx((0.1, 0.05), rel=1e-5)


def test_care_takes_back_what_moved_outside_the_region(page):
    drift, left, inside = page(
        DIAGONAL
        + """
        const about = {alice, region, average, clip: 1, tol: 1e-5, each: async () => {}};
        const there = await studied(about, path[10].x, 583), moved = there.x.slice();
        for (const place of [0, 3, 5, 8]) moved[place] += 1;
        const cared = await settled(about, there, moved), off = cared.map((y, i) => y - there.x[i]);
        return [norm(moved.map((y, i) => y - there.x[i])), [off[0], off[3], off[5]], off[8]];
        """
    )
    assert drift == pytest.approx(2) and max(map(abs, left)) < 1e-3 and inside == pytest.approx(1)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ("region.fill(0.5, 0, 1)", "each 0 or 1"),
        ("region.fill(0)", "some 1"),
        ("path.splice(10)", "no x at t = 583"),
        ("options.clip = undefined", "clip >= 0"),
        ("options.dose = -1", "dose is from 0 to 2"),
    ],
)
def test_a_treatment_that_cannot_be_given_says_why(page, change, sentence):
    call = "await treat(alice, path, region, options.dose, {average, clip: options.clip})"
    script = f"const options = {{dose: 0, clip: 20}}; {change}; return {call};"
    with pytest.raises(Exception, match=sentence):
        page(DIAGONAL + script)


def register():
    """The row of the treatment that the laboratory gives, and the samples it was tried on."""
    row, chosen = (
        json.loads(data.locate(f"{n}.json").read_text()) for n in ("amendment", "protocol")
    )
    return methods.Row(**row["rows"][0]), chosen["development"]


def test_the_course_has_the_registers_times(page):
    row, _ = register()
    times = page("[EARLY, AFTERCARE, COURSE, OFF, REST, ROUNDS]")
    assert times[:3] == [row.t, list(row.after), list(row.course)]
    assert times[3:] == [row.rest, treatment.REST, treatment.ROUNDS]


@pytest.mark.slow
def test_the_course_is_that_of_chapter_13(awake, alice, unshifted, monkeypatch):
    """What limits the agreement is the searches' tol: at 1e-3 the pictures differ by 2e-4."""
    tol = 2e-5
    finer = functools.partial(mk.svd, tol=tol)
    monkeypatch.setattr(treatment, "svd", finer)
    row, patients = register()
    patient = patients[3]
    case = treatment.admit(alice, 1, [patient], 583)
    average = mk.puppets.average_puppet()
    _, path = drawn(awake, 1, patient)
    states = [{"t": t, "x": x} for t, x in path.items()]
    spot = case.region.flatten()
    job = {"path": states, "region": spot, "dose": 0.045, "average": average, "tol": tol}
    done = awake.ask("treat", **job)[-1]
    theirs = methods.prescribed(alice, case, row, [0.045], average)
    near(done["image"], theirs, 3e-5)
    near(done["factors"], mk.read_factors(theirs), 1e-4)


# --- the worker ----------------------------------------------------------------------------------


def test_a_newer_job_drops_the_older_of_its_kind(awake):
    first, second = awake(
        "return await Promise.all([ask('draw', {seed: 1}), ask('draw', {seed: 2})])"
    )
    assert first[-1]["state"] == "dropped"
    assert second[-1]["state"] == "done" and second[0]["steps"] == 25
    torch.testing.assert_close(second[-1]["path"][0]["x"], awake("snow(2, 0)"), rtol=0, atol=0)


def test_quick_jobs_pass_a_long_one_which_then_goes_on_rightly(awake):
    """The drag asks ALICE something else in the middle of a search."""
    alone, between = awake(
        """
        const x = snow(0, 0), job = {x, t: 999, map: "h", k: 2, tol: 1e-3}, order = [];
        const [alone] = (await ask("directions", job)).slice(-1);
        const told = name => messages => (order.push(name), messages.at(-1));
        const search = ask("directions", job).then(told("search"));
        const drags = [0.1, 0.2].map(strength =>
          ask("drag", {x, t: 999, v: snow(1, 1), strength, calls: 1}).then(told("drag")));
        const [again, ...images] = await Promise.all([search, ...drags]);
        return [alone, {again, order, states: images.map(one => one.state)}];
        """
    )
    assert between["order"] == ["drag", "drag", "search"]
    assert between["states"] == ["dropped", "done"]
    assert between["again"]["S"] == pytest.approx(alone["S"], rel=1e-6)


def test_a_long_job_is_stopped(awake):
    search, stop = awake(
        "const x = snow(0, 0), job = {x, t: 999, map: 'mean', k: 20, tol: 1e-6};"
        "return await Promise.all([ask('directions', job), ask('stop', {what: 'directions'})])"
    )
    assert search[-1]["state"] == "dropped" and stop[-1]["state"] == "done"


def test_a_strip_shows_each_picture_when_it_is_there(awake):
    said = awake(
        "const job = {x: snow(0, 0), t: 500, v: snow(1, 1), strengths: [-0.1, 0, 0.1]};"
        "return await ask('strip', job)"
    )
    assert [one.get("i") for one in said] == [0, 1, 2, None]
    for one, image in zip(said, said[-1]["images"], strict=False):
        assert torch.equal(one["image"], image)
    drag = awake.ask("drag", x=awake("snow(0, 0)"), t=500, v=awake("snow(1, 1)"), strength=0.1)
    assert torch.equal(drag[-1]["image"], said[-1]["images"][2])


def test_what_she_reads_is_what_the_reader_reads(awake):
    image = mk.puppets.render(mk.puppets.sample_factors(1, seed=4))
    near(awake.ask("read", image=image)[-1]["factors"], mk.read_factors(image), 1e-5)


def test_a_random_direction_has_length_one(awake):
    one, two = (awake.ask("random", seed=seed)[-1]["v"] for seed in (0, 1))
    assert float(one.norm()) == pytest.approx(1) and abs(float(one @ two)) < 0.1


@pytest.mark.parametrize(
    "op, job, sentence",
    [
        ("dream", {}, "op is one of wake, stop, draw"),
        ("draw", {"seed": 0.5}, "integers from 0"),
        ("drag", {"x": torch.ones(12288), "t": 500, "v": torch.ones(12288), "strength": 0.1},
         "parallel to x"),
        ("drag", {"x": torch.ones(12288), "t": 501, "v": torch.ones(12288), "strength": 0.1,
                  "calls": "all"}, "parallel|sampling times"),
        ("directions", {"x": torch.ones(12288), "t": 500, "map": "h", "k": 0}, "k counts"),
        ("directions", {"x": torch.ones(12288), "t": 500, "map": "eps", "k": 1}, '"h", "pooled"'),
        ("read", {"image": torch.full((12288,), torch.nan)}, "."),
    ],
)  # fmt: skip
def test_a_job_that_cannot_be_done_fails_with_a_sentence(awake, op, job, sentence):
    said = awake.ask(op, **job)
    assert [one["state"] for one in said] == ["failed"]
    assert re.search(sentence, said[0]["problem"])


ANSWERED = """
const plain = [globalThis.postMessage, WebAssembly.validate];
const said = await new Promise(done => {
  globalThis.postMessage = done;
  WebAssembly.validate = () => false;
  receive({id: 1, op, seed: 0, parts: {}});
});
[globalThis.postMessage, WebAssembly.validate] = plain;
return said;
"""


@pytest.mark.parametrize(
    "op, sentence", [("draw", "wake her first"), ("wake", "use a browser of 2023 or later")]
)
def test_she_sleeps_until_she_is_woken_and_in_an_old_browser_for_good(page, op, sentence):
    said = page(ANSWERED, op=op)
    assert said["state"] == "failed" and re.search(sentence, said["problem"])


# --- a direction saved ---------------------------------------------------------------------------


def saved(page, tmp_path, **other):
    job = {"seed": 3, "index": 1, "t": 500, "map": "h", "strength": -0.25, "v": torch.randn(12288)}
    job |= {"model": mk.data.fingerprint()} | other
    path = tmp_path / "direction.json"
    path.write_text(page("directionFile(job)", job=job), "utf-8")
    return path, job


def test_a_saved_direction_is_read_back_to_the_bit(page, tmp_path):
    path, job = saved(page, tmp_path)
    d = read_direction(path)
    assert (d.seed, d.index, d.t, d.map, d.strength) == (3, 1, 500, "h", -0.25)
    assert d.v.shape == (1, 3, 64, 64) and torch.equal(d.v.flatten(), job["v"])
    assert d == d and d != read_direction(path), "one and the same, or another"


@pytest.mark.parametrize(
    "other, sentence",
    [
        ({"model": "0" * 64}, "other weights"),
        ({"map": "eps"}, "map is one of"),
        ({"t": 1000}, "t is an integer in 0"),
        ({"seed": -1}, "seed is an integer >= 0"),
        ({"strength": 3.0}, "strength is a finite number"),
        ({"v": torch.randn(100)}, "got 400 bytes"),
        ({"v": torch.zeros(12288)}, "v is zero"),
        ({"v": torch.full((12288,), torch.nan)}, "NaN"),
    ],
)
def test_a_direction_that_cannot_be_meant_is_refused(page, tmp_path, other, sentence):
    path, _ = saved(page, tmp_path, **other)
    with pytest.raises(ValueError, match=sentence):
        read_direction(path)


def test_a_direction_with_other_signs_among_its_numbers_is_refused(page, tmp_path):
    path, _ = saved(page, tmp_path)
    entries = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(entries | {"v": "****" + entries["v"]}), "utf-8")
    with pytest.raises(ValueError, match="v is no base64"):
        read_direction(path)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("snow", "no direction saved"),
        ("[1]", "no direction saved"),
        ('{"format": "another"}', "no direction saved"),
        ('{"format": "mathkit direction", "version": 2}', "version 2"),
        ('{"format": "mathkit direction", "version": 1}', "lacks index, map, model, seed"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, text, sentence):
    path = tmp_path / "direction.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_direction(path)
