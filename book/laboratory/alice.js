"use strict";
// ALICE's U-Net, built of layers, and what may be asked of her.

const SIDE = 64, COLOURS = 3, PIXELS = COLOURS * SIDE * SIDE, STEPS = 1000;
const LEVELS = 4;   // resolutions: 64, 32, 16, 8
const GROUPS = 16;  // of a normalisation
const HEAD = 32;    // channels of a head of attention

// Wakes ALICE from the bytes of the kernel, of her weights and of the reader's. An image is a
// Float32Array of 3 x 64 x 64 numbers, row by row, colour by colour. Gives
//   predict(x, t)          v, what the network says of x_t
//   linearised(map, x, t)  the derivative at x of "h" (the bottleneck), "pooled" (its sum over
//                          places) or "mean" (E[x0 | x_t]): {n, m, value, push(v), pull(u)}, which
//                          holds until ALICE is asked anything else
//   factors(image)         the 13 factors that the reader finds
//   used()                 bytes of memory
async function wake({kernel, weights, reader}) {
  const memory = await openMemory(kernel), file = readWeights(weights, "ALICE's weights");
  const clock = clockOf(file), {network, encoder} = buildAlice(memory, file, clock);
  const pooled = seq(memory, encoder, pool(memory, encoder.m / 8 ** 2, 8));
  const factors = buildReader(memory, readWeights(reader, "the reader's weights"));
  let passes = 0;

  function begin(x, t, keeping) {
    expectNumbers(x, PIXELS, "an image");
    expectTime(t);
    passes += 1;
    memory.again(keeping);
    clock.set(t);
    return put(memory, x);
  }
  function linearised(map, x, t) {
    const layer = new Map([["h", encoder], ["pooled", pooled], ["mean", network]]).get(map);
    if (!layer) throw new Error(`expected "h", "pooled" or "mean" as the map, got ${map}`);
    const value = layer.f(begin(x, t, true)).slice(), pass = passes;
    memory.hold();
    const passing = (step, n) => d => {
      if (passes !== pass)
        throw new Error("ALICE was asked something else since; call linearised again");
      expectNumbers(d, n, "a direction");
      return taken(memory, step, put(memory, d));
    };
    const [push, pull] = [passing(layer.push, layer.n), passing(layer.pull, layer.m)];
    const raw = {n: layer.n, m: layer.m, value, push, pull};
    return map === "mean" ? posteriorMean(raw, x, t) : raw;
  }
  function read(image) {
    expectPicture(image);
    passes += 1;
    memory.again();
    return factors(image);
  }
  const predict = (x, t) => taken(memory, network.f, begin(x, t, false));
  return {predict, linearised, factors: read, used: memory.used};
}

// E[x0 | x_t] = sqrt(abar) x - sqrt(1 - abar) v(x, t), from v.
function posteriorMean({n, m, value, push, pull}, x, t) {
  const a = Math.sqrt(abar(t)), b = Math.sqrt(1 - abar(t));
  const mixed = (x, v) => v.map((vi, i) => a * x[i] - b * vi);
  return {n, m, value: mixed(x, value), push: d => mixed(d, push(d)), pull: g => mixed(g, pull(g))};
}

// A U-Net is a map with a long connection over it, between what comes before and what comes after,
// eight times over: seq(before, skip(inner), after). The encoder is all that comes before, and the
// middle.
function buildAlice(memory, weights, clock) {
  const part = parts(memory, weights, clock), before = [];
  for (let i = 0; i < LEVELS; i++) {
    const size = SIDE >> i;
    const halve = `down_blocks.${i - 1}.downsamplers.0.conv`;
    before.push(i ? part.conv(halve, 2 * size, 2) : part.conv("conv_in", size));
    before.push(part.block(`down_blocks.${i}`, 0, size));
  }
  const middle = part.middle("mid_block", SIDE >> (LEVELS - 1));
  let network = middle;
  for (let i = LEVELS - 1; i >= 0; i--) {
    const after = `up_blocks.${LEVELS - 1 - i}`, size = SIDE >> i;
    const [first, second] = [0, 1].map(j => part.block(after, j, size));
    network = seq(memory, before[2 * i + 1], skip(memory, network), first);
    const rest = [second, ...part.larger(after, size)];
    network = seq(memory, before[2 * i], skip(memory, network), ...rest);
  }
  const last = [part.norm("conv_norm_out", SIDE, true), part.conv("conv_out", SIDE)];
  weights.finish();
  return {network: seq(memory, network, ...last), encoder: seq(memory, ...before, middle)};
}

// The parts of a U-Net by their names in the file of weights.
function parts(memory, weights, clock) {
  const both = name => [weights.take(`${name}.weight`), weights.take(`${name}.bias`)];
  const conv = (name, size, stride = 1) => convolution(memory, ...both(name), size, stride);
  const norm = (name, size, bent) => normalisation(memory, ...both(name), GROUPS, size, bent);
  function residual(name, size) {
    const amounts = linear(...both(`${name}.time_emb_proj`)), first = conv(`${name}.conv1`, size);
    const inner = seq(
      memory,
      norm(`${name}.norm1`, size, true),
      first,
      shift(memory, first.m / size ** 2, size, () => amounts(clock.time)),
      norm(`${name}.norm2`, size, true),
      conv(`${name}.conv2`, size),
    );
    const short = `${name}.conv_shortcut`;
    return sum(memory, inner, weights.has(`${short}.weight`) ? conv(short, size) : same(inner.n));
  }
  function attend(name, size) {
    const [q, k, v] = ["q", "k", "v"].map(letter => conv(`${name}.to_${letter}`, size));
    const heads = attention(memory, q, k, v, HEAD, size), out = conv(`${name}.to_out.0`, size);
    const inner = seq(memory, norm(`${name}.group_norm`, size, false), heads, out);
    return sum(memory, inner, same(inner.n));
  }
  const block = (name, i, size) => {
    const first = residual(`${name}.resnets.${i}`, size), second = `${name}.attentions.${i}`;
    return weights.has(`${second}.to_q.weight`) ? seq(memory, first, attend(second, size)) : first;
  };
  const middle = (name, size) =>
    seq(memory, block(name, 0, size), residual(`${name}.resnets.1`, size));
  const larger = (name, size) => {
    const last = `${name}.upsamplers.0.conv`;
    if (!weights.has(`${last}.weight`)) return [];
    const after = conv(last, 2 * size);
    return [upsample(memory, after.n / (2 * size) ** 2, size), after];
  };
  return {conv, norm, block, middle, larger};
}

// The time as the network hears it: cosines and sines of t, through two layers.
function clockOf(weights) {
  const take = (i, kind) => weights.take(`time_embedding.linear_${i}.${kind}`);
  const [first, second] = [1, 2].map(i => linear(take(i, "weight"), take(i, "bias")));
  const rates = Array.from({length: 16}, (_, i) => 10000 ** (-i / 16));
  const clock = {time: null};
  clock.set = t => {
    const waves = [Math.cos, Math.sin].flatMap(wave => rates.map(rate => wave(t * rate)));
    clock.time = second(first(waves).map(silu)).map(silu);
  };
  return clock;
}

// x -> W x + b, for the few numbers that the kernel is not needed for.
function linear(weight, bias) {
  const [outputs, inputs] = weight.shape;
  expectLength(bias.length, outputs, "numbers of bias");
  return x => {
    expectLength(x.length, inputs, "numbers into a linear layer");
    const y = bias.slice();
    for (let i = 0; i < outputs; i++)
      for (let j = 0; j < inputs; j++) y[i] += weight[i * inputs + j] * x[j];
    return y;
  };
}

const silu = x => x / (1 + Math.exp(-x));

// ---- in and out of the shared memory

function put(memory, numbers) {
  const a = memory.room(numbers.length);
  a.set(numbers);
  return a;
}

function taken(memory, step, x) {
  const y = step(x), copy = y.slice();
  memory.drop(x);
  memory.drop(y);
  return copy;
}

function expectNumbers(x, n, what) {
  const got = x instanceof Float32Array ? `${x.length} of them` : typeof x;
  if (!(x instanceof Float32Array) || x.length !== n)
    throw new Error(`expected ${what} as a Float32Array of ${n} numbers, got ${got}`);
  if (!x.every(Number.isFinite))
    throw new Error(`expected ${what} of finite numbers, got NaN or infinity`);
}

function expectPicture(image) {
  expectNumbers(image, PIXELS, "an image");
  const far = image.reduce((most, pixel) => Math.max(most, Math.abs(pixel)), 0);
  if (far > 1.5) throw new Error(`expected an image in [-1, 1], got ${far}; use x / 127.5 - 1`);
}

function expectTime(t) {
  if (!Number.isInteger(t) || t < 0 || t >= STEPS)
    throw new Error(`expected a time t among 0, 1, ..., ${STEPS - 1}, got ${t}`);
}
