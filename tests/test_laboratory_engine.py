"""The laboratory's ALICE against torch in float64: layer by layer, then whole, in a browser."""

import importlib.util
import json
import re
import struct

import pytest
import torch
from laboratory import FOLDER, laboratory, parts
from safetensors.torch import load, save
from torch import nn
from torch.nn.functional import conv2d, group_norm, interpolate, silu

import mathkit as mk
from book.laboratory import build_kernel

browser = pytest.mark.browser
LAYERS = (FOLDER / "layers.js").read_text("utf-8")
DENSE = """
const names = "seq, same, sum, skip, convolution, normalisation, shift, upsample, pool, attention";
const library = new Function(`${layers}; return {${names}}`)();
const shaped = (a, shape) => Object.assign(a, {shape});
const memory = await openMemory(kernel);
const build = new Function("L", "memory", "p", `return ${built};`);
const layer = build(library, memory, weights.map((a, i) => shaped(a, shapes[i])));
memory.again(true);
const value = taken(memory, layer.f, put(memory, x));
memory.hold();
const column = (step, n, i) => {
  const e = new Float32Array(n);
  e[i] = 1;
  return taken(memory, step, put(memory, e));
};
const columns = (step, n) => Array.from({length: n}, (_, i) => column(step, n, i));
const first = [column(layer.push, layer.n, 0), column(layer.pull, layer.m, 0)];
const used = memory.used();
const pushed = columns(layer.push, layer.n), pulled = columns(layer.pull, layer.m);
return {n: layer.n, m: layer.m, value, pushed, pulled, grown: memory.used() - used};
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with laboratory(tmp_path_factory.mktemp("engine")) as opened:
        opened("globalThis.stored = parts; return null", parts=parts())
        opened("globalThis.her = await wake(stored); return null")
        yield opened


@pytest.fixture(scope="module")
def exact():
    """ALICE in float64."""
    return mk.load_model("alice", device="cpu", dtype=torch.float64)


def agree(got, expected, most=1e-5):
    """The largest difference, in units of the largest number."""
    got, expected = torch.as_tensor(got).double().flatten(), expected.double().flatten()
    assert got.shape == expected.shape
    assert got.isfinite().all()
    assert (got - expected).abs().max() <= most * expected.abs().max()


# ---- layers


def attended(x, q, k, v, width):
    """diffusers' attention, written with einsum."""
    q, k, v = (conv2d(x[None], w[:, :, None, None])[0].reshape(-1, width, 64) for w in (q, k, v))
    P = (torch.einsum("hci,hcj->hij", q, k) / width**0.5).softmax(-1)
    return torch.einsum("hij,hcj->hci", P, v)


def normed(x, w, b, groups):
    return group_norm(x[None], groups, w, b)[0]


def convolved(x, w, b, **settings):
    return conv2d(x[None], w, b, **settings)[0]


ATTEND = "L.convolution(memory, p[{}], new Float32Array(8), 8)"
ATTENTION = f"L.attention(memory, {', '.join(ATTEND.format(i) for i in range(3))}, 4, 8)"
CONV = "L.convolution(memory, p[0], p[1], 8)"
NORM = "L.normalisation(memory, p[0], p[1], 2, 8, {})"
# what is built, channels of x, shapes of the weights, the same in torch
CASES = {
    "1 x 1": (CONV, 8, [(4, 8), (4,)], lambda x, w, b: convolved(x, w[:, :, None, None], b)),
    "3 x 3": (CONV, 8, [(4, 8, 3, 3), (4,)], lambda x, w, b: convolved(x, w, b, padding=1)),
    "3 x 3, odd": (CONV, 3, [(5, 3, 3, 3), (5,)], lambda x, w, b: convolved(x, w, b, padding=1)),
    "3 x 3, stride 2": (
        CONV.replace("8)", "8, 2)"),
        4,
        [(8, 4, 3, 3), (8,)],
        lambda x, w, b: convolved(x, w, b, padding=1, stride=2),
    ),
    "4 x 4, stride 2": (
        CONV.replace("8)", "8, 2)"),
        3,
        [(8, 3, 4, 4), (8,)],
        lambda x, w, b: convolved(x, w, b, padding=1, stride=2),
    ),
    "norm": (NORM.format("false"), 6, [(6,), (6,)], lambda x, w, b: normed(x, w, b, 2)),
    "norm and silu": (
        NORM.format("true"),
        6,
        [(6,), (6,)],
        lambda x, w, b: silu(normed(x, w, b, 2)),
    ),
    "shift": ("L.shift(memory, 4, 8, () => p[0])", 4, [(4,)], lambda x, e: x + e[:, None, None]),
    "upsample": (
        "L.upsample(memory, 3, 8)",
        3,
        [],
        lambda x: interpolate(x[None], scale_factor=2, mode="nearest")[0],
    ),
    "pool": ("L.pool(memory, 4, 8)", 4, [], lambda x: x.sum((1, 2))),
    "attention": (ATTENTION, 8, [(8, 8)] * 3, lambda x, *w: attended(x, *w, 4)),
    "same": ("L.same(256)", 4, [], lambda x: x),
    "sum": (
        f"L.sum(memory, L.convolution(memory, p[2], p[3], 8), {CONV})",
        4,
        [(4, 4, 3, 3), (4,), (4, 4), (4,)],
        lambda x, w, b, v, c: convolved(x, w, b, padding=1) + convolved(x, v[:, :, None, None], c),
    ),
    "skip": (
        f"L.skip(memory, {CONV})",
        3,
        [(4, 3, 3, 3), (4,)],
        lambda x, w, b: torch.cat([convolved(x, w, b, padding=1), x]),
    ),
    "skip nothing": ("L.skip(memory, L.same(256))", 4, [], lambda x: torch.cat([x, x])),
    "seq": (
        f"L.seq(memory, {NORM.format('true')}, L.same(256), L.convolution(memory, p[2], p[3], 8))",
        4,
        [(4,), (4,), (8, 4, 3, 3), (8,)],
        lambda x, w, b, v, c: convolved(silu(normed(x, w, b, 2)), v, c, padding=1),
    ),
}


def examine(page, name, layers=LAYERS):
    """A layer's value and its whole Jacobian, by pushes and by pulls, are torch's."""
    built, channels, shapes, peer = CASES[name]
    weights = [torch.randn(shape) for shape in shapes]
    x = torch.randn(channels, 8, 8)
    got = page(
        DENSE,
        layers=layers,
        built=built,
        weights=weights,
        shapes=shapes,
        x=x.flatten(),
        kernel=build_kernel.KERNEL.read_bytes(),
    )
    wide = [w.double() for w in weights]
    J = torch.autograd.functional.jacobian(lambda x: peer(x, *wide).flatten(), x.double())
    J = J.flatten(1)
    assert (got["m"], got["n"]) == J.shape
    agree(got["value"], peer(x.double(), *wide))
    agree(torch.stack(got["pushed"]), J.T)
    agree(torch.stack(got["pulled"]), J)
    assert got["grown"] == 0, "what a push or pull used is used again"


@browser
@pytest.mark.parametrize("name", CASES)
def test_a_layer_and_its_jacobian_are_those_of_torch(page, name):
    examine(page, name)


FAULTS = {
    "the chain rule is not reversed": (
        "seq",
        "layers.map(l => l.pull).reverse()",
        "layers.map(l => l.pull)",
    ),
    "one side of a sum is pulled twice": (
        "sum",
        "both(a.pull, b.pull, g)",
        "both(a.pull, a.pull, g)",
    ),
    "a long connection is not pulled": (
        "skip",
        "added(memory, p, g.subarray(inner.m))",
        "added(memory, p, p)",
    ),
    "a bias is pushed": (
        "3 x 3",
        "push: d => apply(d, null, false)",
        "push: d => apply(d, b, false)",
    ),
    "a norm is pulled as it is pushed": ("norm", "derivative(g, true)", "derivative(g, false)"),
    "a norm's groups are too small": ("norm", "places, groups, +bent", "places, 2 * groups, +bent"),
    "the values of attention do not change": (
        "attention",
        "k.push(d), v.push(d)",
        "k.push(d), k.push(d)",
    ),
    "room is not given back": ("sum", "if (z !== x) memory.drop(z)", ";"),
}


@browser
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_derivative_is_seen(page, fault):
    name, right, wrong = FAULTS[fault]
    assert right in LAYERS
    with pytest.raises(AssertionError):
        examine(page, name, LAYERS.replace(right, wrong))


@browser
@pytest.mark.parametrize("size", [8, 16, 32, 64])
@pytest.mark.parametrize(("inputs", "outputs"), [(3, 32), (256, 128), (20, 12), (32, 3)])
def test_winograds_way_is_a_convolution_at_every_size(page, size, inputs, outputs):
    """Products of small whole numbers are exact, so every tile and border must be met exactly."""
    x = torch.randint(-4, 5, (inputs, size, size)).float()
    g = torch.randint(-4, 5, (outputs, size, size)).float()
    w = 4.0 * torch.randint(-2, 3, (outputs, inputs, 3, 3))
    value, pulled = page(
        """
        const memory = await openMemory(kernel);
        const shaped = Object.assign(w, {shape: [outputs, inputs, 3, 3]});
        const layer = convolution(memory, shaped, new Float32Array(outputs), size);
        memory.again();
        return [taken(memory, layer.f, put(memory, x)), taken(memory, layer.pull, put(memory, g))];
        """,
        w=w.flatten(),
        x=x.flatten(),
        g=g.flatten(),
        kernel=build_kernel.KERNEL.read_bytes(),
        **{"inputs": inputs, "outputs": outputs, "size": size},
    )
    assert torch.equal(value.reshape(outputs, size, size), conv2d(x[None], w, padding=1)[0])
    back = nn.grad.conv2d_input((1, inputs, size, size), w, g[None], padding=1)
    assert torch.equal(pulled.reshape(inputs, size, size), back[0])


@browser
def test_silu_holds_far_from_zero(page):
    """Numbers from -200 to 200, whose exponentials overflow."""
    z = torch.linspace(-200, 200, 256).reshape(4, 8, 8)
    scale, offset = z.std(unbiased=False).repeat(4), torch.zeros(4)
    value = page(
        """
        const memory = await openMemory(kernel);
        const layer = normalisation(memory, scale, offset, 1, 8, true);
        memory.again();
        return taken(memory, layer.f, put(memory, z));
        """,
        scale=scale,
        offset=offset,
        z=z.flatten(),
        kernel=build_kernel.KERNEL.read_bytes(),
    )
    agree(value, silu(normed(z.double(), scale.double(), offset.double(), 1)), 1e-6)
    assert (value[:64] <= 0).all()


# ---- ALICE

TIMES = [0, 40, 500, 999]
MAPS = {
    "h": lambda p, t: mk.encoder(p, t),
    "pooled": lambda p, t: mk.encoder(p, t, pool="sum"),
    "mean": lambda p, t: mk.posterior_mean(p, t),
}


def noisy(t, seed=0):
    """A puppet with the noise of time t."""
    clean = mk.puppets.render(mk.puppets.sample_factors(1, seed=seed))
    level = mk.load_model("alice", device="cpu").alphas_cumprod[t]
    return (level.sqrt() * clean + (1 - level).sqrt() * torch.randn_like(clean)).float()


@browser
@pytest.mark.parametrize("t", TIMES)
def test_what_alice_predicts_is_torchs(page, exact, t):
    x = noisy(t)
    with torch.no_grad():
        expected = exact.unet(x.double(), t).sample
    agree(page("her.predict(x, t)", x=x.flatten(), t=t), expected)


LINEARISED = """
const A = her.linearised(map, x, t);
return {n: A.n, m: A.m, value: A.value, pushed: A.push(v), pulled: A.pull(u), once: A.push(v)};
"""


@browser
@pytest.mark.parametrize("t", [40, 500, 900])
@pytest.mark.parametrize("name", MAPS)
def test_pushes_and_pulls_are_those_of_mk_jacobian(page, exact, name, t):
    x, f = noisy(t), MAPS[name](exact, t)
    A = mk.jacobian(f, x.double())
    v, u = torch.randn(1, 3, 64, 64), torch.randn(1, *A.out_shape)
    got = page(LINEARISED, map=name, t=t, x=x.flatten(), v=v.flatten(), u=u.flatten())
    assert (got["n"], got["m"]) == (v.numel(), u.numel())
    agree(got["value"], f(x.double()))
    agree(got["pushed"], A.push(v.double()))
    agree(got["pulled"], A.pull(u.double()))
    assert torch.equal(got["pushed"], got["once"])
    adjoint(got, v, u)


def adjoint(got, v, u):
    """<A v, u> = <v, A^T u>, in units of |A v| |u|."""
    pushed, v, u = got["pushed"].double(), v.double().flatten(), u.double().flatten()
    assert abs(pushed @ u - v @ got["pulled"].double()) <= 1e-6 * pushed.norm() * u.norm()


@browser
def test_a_wrong_adjoint_is_seen(page):
    x, v, u = noisy(500), torch.randn(12288), torch.randn(8192)
    got = page(LINEARISED, map="h", t=500, x=x.flatten(), v=v, u=u)
    adjoint(got, v, u)
    other = page(LINEARISED, map="h", t=510, x=x.flatten(), v=v, u=u)
    with pytest.raises(AssertionError):
        adjoint({"pushed": got["pushed"], "pulled": other["pulled"]}, v, u)


@browser
@pytest.mark.parametrize("name", MAPS)
def test_a_push_is_the_change_of_the_value(page, name):
    """Central differences, whose error falls with the square of the step until rounding shows."""
    x, v = noisy(500).flatten(), torch.randn(12288)
    v = v / v.norm()
    code = """
      const value = s => her.linearised(map, x.map((xi, i) => xi + s * v[i]), 500).value;
      const [ahead, behind] = [value(step), value(-step)], {push} = her.linearised(map, x, 500);
      return [ahead, behind, push(v)];
    """
    ahead, behind, pushed = page(code, map=name, x=x, v=v, step=0.5)
    agree((ahead.double() - behind.double()) / 1.0, pushed, 1e-2)
    with pytest.raises(AssertionError):
        agree((ahead.double() - behind.double()) * 1.05, pushed, 1e-2)


@browser
def test_a_change_in_one_weight_is_seen(page, exact):
    x, tensors = noisy(500), load(parts()["weights"])
    tensors["mid_block.resnets.0.conv1.weight"][3, 5] *= 1.5
    with torch.no_grad():
        expected = exact.unet(x.double(), 500).sample
    other = "(await wake({...stored, weights})).predict(x, 500)"
    got = page(other, weights=save(tensors), x=x.flatten())
    agree(got, expected, 1e-2)
    with pytest.raises(AssertionError):
        agree(got, expected)


@browser
def test_weights_in_float32_are_the_same_network(page):
    x, tensors = noisy(500).flatten(), load(parts()["weights"])
    weights = save({name: w.float() for name, w in tensors.items()})
    wide = page("(await wake({...stored, weights})).predict(x, 500)", weights=weights, x=x)
    assert torch.equal(wide, page("her.predict(x, 500)", x=x))


@browser
def test_factors_are_those_of_mk_read_factors(page):
    """Puppets with the Stranger and without him."""
    images = mk.puppets.render(mk.puppets.sample_factors(12, seed=3))
    got = page("images.map(image => her.factors(image))", images=list(images.flatten(1)))
    torch.testing.assert_close(torch.stack(got), mk.read_factors(images), rtol=0, atol=1e-5)


ENDS = {
    "predict": "her.predict(x, 400)",
    "linearised": "her.linearised('pooled', x, 500)",
    "factors": "her.factors(new Float32Array(12288))",
}


@browser
@pytest.mark.parametrize("other", ENDS)
@pytest.mark.parametrize("map", MAPS)
def test_a_derivative_ends_in_words_and_never_in_wrong_numbers(page, other, map):
    code = f"""
      const A = her.linearised(map, x, 500), before = A.pull(A.value);
      {ENDS[other]};
      const said = [() => A.push(x), () => A.pull(A.value)].map(ask => {{
        try {{ return ask() }} catch (error) {{ return error.message }}
      }});
      return [before, said, her.linearised(map, x, 500).pull(A.value)];
    """
    before, said, again = page(code, map=map, x=noisy(500).flatten())
    assert said == ["ALICE was asked something else since; call linearised again"] * 2
    assert torch.equal(before, again)


@browser
def test_a_refused_question_ends_nothing(page):
    code = """
      const A = her.linearised("h", x, 500), before = A.push(x);
      try { her.predict(x.subarray(1), 500) } catch { return [before, A.push(x)] }
    """
    before, after = page(code, x=noisy(500).flatten())
    assert torch.equal(before, after)


@browser
def test_what_she_gives_is_a_copy(page):
    code = """
      const A = her.linearised("h", x, 500), one = A.push(x), kept = one.slice();
      A.push(x.map(xi => -xi));
      A.pull(A.value);
      return [one, kept, x];
    """
    x = noisy(500).flatten()
    one, kept, after = page(code, x=x)
    assert torch.equal(one, kept)
    assert torch.equal(x, after)


@browser
def test_memory_stays_below_a_hundred_megabytes(page):
    code = """
      const A = her.linearised("mean", x, 500), once = () => (A.push(x), A.pull(x), her.used());
      return [once(), once(), once()];
    """
    used = page(code, x=noisy(500).flatten())
    assert used[0] == used[1] == used[2] < 100e6


# ---- what is refused


@browser
@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "her.predict(x.subarray(1), 500)",
            "an image as a Float32Array of 12288 numbers, got 12287",
        ),
        ("her.predict([...x], 500)", "an image as a Float32Array of 12288 numbers, got object"),
        ("her.predict(x.map(() => NaN), 500)", "an image of finite numbers"),
        ("her.predict(x, 1000)", "a time t among 0, 1, ..., 999, got 1000"),
        ("her.predict(x, 3.5)", "a time t among 0, 1, ..., 999, got 3.5"),
        ("her.predict(x)", "a time t among 0, 1, ..., 999, got undefined"),
        ("her.linearised('H', x, 500)", '"h", "pooled" or "mean" as the map, got H'),
        ("her.linearised('constructor', x, 500)", '"h", "pooled" or "mean" as the map'),
        (
            "her.linearised('h', x, 500).push(x.subarray(2))",
            "a direction as a Float32Array of 12288",
        ),
        (
            "her.linearised('pooled', x, 500).pull(x)",
            "a direction as a Float32Array of 128 numbers",
        ),
        (
            "her.linearised('h', x, 500).push(x.map(() => Infinity))",
            "a direction of finite numbers",
        ),
        ("her.factors(x.subarray(2))", "an image as a Float32Array of 12288"),
        ("her.factors(x.fill(255))", "an image in [-1, 1], got 255; use x / 127.5 - 1"),
        ("openMemory(new Uint8Array(8))", "use a browser of 2023 or later"),
        ("(await openMemory(kernel, 4)).room(1e6)", "4 megabytes of memory are full"),
        ("seq(null, same(4), same(5))", "expected 4 numbers to go into the next layer, got 5"),
        ("sum(null, same(4), same(5))", "expected 4 numbers into both sides of a sum, got 5"),
        (
            "conv([4, 4, 5, 5], 8, 1)",
            "weights of 1 x 1 or 3 x 3, or of 3 x 3 or 4 x 4 with stride 2",
        ),
        ("conv([4, 4, 3, 3], 12, 1)", "images of 8, 16, 32, 64 pixels a side, got 12"),
        ("conv([6, 4], 8, 1)", "at most 256 channels, in fours, got 4 to 6"),
        ("conv([260, 4, 3, 3], 8, 1)", "at most 256 channels, in fours, got 4 to 260"),
        (
            "normalisation(null, new Float32Array(6), new Float32Array(6), 4, 8)",
            "channels left over",
        ),
        (
            "normalisation(null, x, x, 4, 6)",
            "expected 0 places left over, counted in eights, got 4",
        ),
        ("heads(64, 64, 4, 16)", "expected images of 8 pixels a side, got 16"),
        ("heads(128, 192, 2, 8)", "expected 128 numbers out of queries, keys and values, got 192"),
        ("heads(192, 192, 2, 8)", "expected 0 numbers left over by heads of 2 channels, got 64"),
        ("linear(shaped(4, 4), new Float32Array(3))", "expected 4 numbers of bias, got 3"),
    ],
)
def test_bad_input_is_refused_in_words(page, code, said):
    told = page(
        f"""
        const shaped = (...shape) => Object.assign(new Float32Array(9), {{shape}});
        const conv = (shape, size, stride) =>
          convolution(null, shaped(...shape), new Float32Array(shape[0]), size, stride);
        const heads = (n, m, width, size) =>
          attention(null, same(n), same(m), same(m), width, size);
        try {{ await ({code}) }} catch (error) {{ return error.message }}
        """,
        x=torch.zeros(12288),
        kernel=build_kernel.KERNEL.read_bytes(),
    )
    assert said in told


def rewritten(change):
    """The beginning of ALICE's file with a changed header, and where its numbers begin."""
    raw = parts()["weights"]
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text, 8 + size


def renamed(header):
    header["conv_in.weights"] = header.pop("conv_in.weight")


# what comes first, from where on ALICE's own file follows and up to where, what is said
BROKEN = {
    "empty": (lambda: (b"", 0), 0, "expected at least 8 bytes, got 0"),
    "cut": (lambda: (b"", 0), -100, "expected .* bytes for"),
    "cut early": (lambda: (b"", 0), 100, "expected a header of .* bytes, got 92 in all"),
    "something else": (
        lambda: (struct.pack("<Q", 4) + b"GIF8", 0),
        0,
        "expected a header in JSON",
    ),
    "another name": (
        lambda: rewritten(renamed),
        None,
        "expected weights named conv_in.weight, which it does not hold",
    ),
    "one too many": (
        lambda: rewritten(lambda h: h.update(extra=h["conv_in.bias"])),
        None,
        "expected no more weights, got 1 such as extra",
    ),
    "another kind": (
        lambda: rewritten(lambda h: h["conv_in.bias"].update(dtype="BF16")),
        None,
        "expected float16 or float32 for conv_in.bias, got BF16",
    ),
    "another length": (
        lambda: rewritten(lambda h: h["conv_in.bias"].update(shape=[64])),
        None,
        "expected 128 bytes for conv_in.bias",
    ),
    "nothing said": (
        lambda: rewritten(lambda h: h.update({"conv_in.bias": {}})),
        None,
        "expected float16 or float32 for conv_in.bias",
    ),
    "another shape": (
        lambda: rewritten(lambda h: h["conv_in.weight"].update(shape=[3, 32, 3, 3])),
        None,
        "expected 3 numbers of bias, got 32",
    ),
}


@browser
@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_is_not_alices_is_refused_in_words(page, case):
    made, end, said = BROKEN[case]
    first, start = made()
    told = page(
        """
        const rest = stored.weights.subarray(start, end ?? stored.weights.length);
        const weights = new Uint8Array(first.length + rest.length);
        weights.set(first);
        weights.set(rest, first.length);
        try { await wake({...stored, weights}) } catch (error) { return error.message }
        """,
        first=first,
        start=start,
        end=end,
    )
    assert re.search(said, told)


# ---- the kernel


@pytest.mark.slow
def test_the_kernel_is_what_its_source_gives():
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("no ziglang here, so the kernel was not compiled: pip install -e .[kernel]")
    assert build_kernel.compiled() == build_kernel.KERNEL.read_bytes()
