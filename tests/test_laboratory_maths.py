"""The laboratory's mathematics against mathkit's, numpy's dense SVD and theorems, in a browser."""

import numpy as np
import pytest
import torch
from laboratory import laboratory

import mathkit as mk
from mathkit.chapters import treatment
from mathkit.diffusion.sampling import start

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


def planted(m, n, values, seed=0):
    """A float64 matrix (m, n) with these singular values, the rest 0."""
    g = torch.Generator().manual_seed(seed)
    P, Q = (
        torch.linalg.qr(torch.randn(d, len(values), generator=g, dtype=torch.float64)).Q
        for d in (m, n)
    )
    return (P * torch.tensor(values, dtype=torch.float64)) @ Q.T


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


# --- with ALICE ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def awake(page):
    page.wake()
    return page


def drawn(page, seed):
    """What the worker draws: x_0 and x_t by t, with the batch axis."""
    done = page.ask("draw", seed=seed)[-1]
    assert done["state"] == "done", done
    shaped = {one["t"]: one["x"].reshape(1, 3, 64, 64) for one in done["path"]}
    return done["image"].reshape(1, 3, 64, 64), shaped


def near(a, b, atol=1e-5):
    torch.testing.assert_close(a.reshape(b.shape), b, atol=atol, rtol=0)


def drags_agree(page, alice, path, t, v):
    for calls, times in (
        (4, None),
        (12, mk.timesteps(alice, t, 12)),
        ("all", treatment.grid(alice, t)),
    ):
        if times is None:
            times = page("hurried(t)", t=t)
        ours = page.ask("drag", x=path[t], t=t, v=v, strength=0.3, calls=calls)[-1]["image"]
        moved = mk.move(alice, path[t], t, v, 0.3, 1)[-1]
        near(ours, mk.denoise(alice, moved, t, times=times))


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
        near(path[t], treatment.trajectory(alice, seed, [0], t))
        for name, f in maps(alice, t).items():
            ours = page.ask("directions", x=path[t], t=t, map=name, k=3, tol=tol)[-1]
            theirs = mk.svd(mk.jacobian(f, path[t]), 3, tol=tol)
            assert ours["problem"] == ""
            S = torch.tensor(ours["S"])
            torch.testing.assert_close(S, theirs.S, rtol=1e-5, atol=0)
        drags_agree(page, alice, path, t, torch.stack(ours["V"])[0].reshape(3, 64, 64))


def test_a_sample_its_directions_and_drags_are_mathkits(awake, alice):
    agrees(awake, alice, 1, [500])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_samples_directions_and_drags_are_mathkits(awake, alice, seed):
    agrees(awake, alice, seed, [750, 500, 250])
