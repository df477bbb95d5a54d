"use strict";
// A network's layers, as maps that can be differentiated. Each has
//   n, m      how many numbers go in and come out
//   f(x)      its value; it remembers what its derivative J at x needs
//   push(d)   J d: how the value changes with x
//   pull(g)   J^T g: what a change of the value asks of x
// at the x that f saw last. No layer writes into what it is given.

// One map after another: J = J_k ... J_2 J_1, the chain rule, and so J^T = J_1^T J_2^T ... J_k^T.
function seq(memory, ...layers) {
  for (let i = 1; i < layers.length; i++)
    expectLength(layers[i].n, layers[i - 1].m, "numbers to go into the next layer");
  const through = (x, steps) => steps.reduce((now, step) => {
    const next = step(now);
    if (now !== x && now !== next) memory.drop(now);
    return next;
  }, x);
  return {
    n: layers[0].n,
    m: layers.at(-1).m,
    f: x => through(x, layers.map(l => l.f)),
    push: d => through(d, layers.map(l => l.push)),
    pull: g => through(g, layers.map(l => l.pull).reverse()),
  };
}

// x -> x.
const same = n => ({n, m: n, f: x => x, push: d => d, pull: g => g});

// x -> a(x) + b(x): J = J_a + J_b.
function sum(memory, a, b) {
  expectLength(b.n, a.n, "numbers into both sides of a sum");
  expectLength(b.m, a.m, "numbers out of both sides of a sum");
  const both = (one, two, x) => {
    const [p, q] = [one(x), two(x)], y = added(memory, p, q);
    for (const z of [p, q]) if (z !== x) memory.drop(z);
    return y;
  };
  return {
    n: a.n,
    m: a.m,
    f: x => both(a.f, b.f, x),
    push: d => both(a.push, b.push, d),
    pull: g => both(a.pull, b.pull, g),
  };
}

// x -> (inner(x), x), the long connection of a U-Net: J stacks J_inner on the identity.
function skip(memory, inner) {
  const beside = (step, x) => {
    const y = step(x), both = memory.room(inner.m + inner.n);
    both.set(y);
    both.set(x, inner.m);
    if (y !== x) memory.drop(y);
    return both;
  };
  return {
    n: inner.n,
    m: inner.m + inner.n,
    f: x => beside(inner.f, x),
    push: d => beside(inner.push, d),
    pull: g => {
      const p = inner.pull(g.subarray(0, inner.m)), y = added(memory, p, g.subarray(inner.m));
      memory.drop(p);
      return y;
    },
  };
}

// Convolution of images of size x size pixels with zeros around them: weights of shape (outputs,
// inputs, k, k), 1 x 1 or 3 x 3, or 3 x 3 or 4 x 4 with stride 2. But for the bias it is linear, and
// so its own J.
function convolution(memory, weight, bias, size, stride = 1) {
  const [outputs, inputs, k = 1] = weight.shape;
  expectConvolution(outputs, inputs, k, size, stride);
  expectLength(bias.length, outputs, "numbers of bias");
  const name = stride === 2 ? "conv2" : k === 3 ? "conv3" : "conv1";
  const n = inputs * size ** 2, m = outputs * (size / stride) ** 2;
  const w = packed(memory, weight, name === "conv3"), b = kept(memory, bias);
  const apply = (x, bias, turned) => {
    const y = memory.room(turned ? n : m);
    const channels = turned ? [outputs, inputs] : [inputs, outputs];
    memory.call(name, y, x, w, bias, ...channels, size, +turned, k);
    return y;
  };
  return {
    n,
    m,
    f: x => apply(x, b, false),
    push: d => apply(d, null, false),
    pull: g => apply(g, null, true),
  };
}

// Group normalisation: xhat = (x - mean) / sqrt(variance + 1e-5) over each group of channels, then
// z = scale * xhat + offset in each channel. With `bent`, silu(z) = z / (1 + e^-z) follows at once.
function normalisation(memory, scale, offset, groups, size, bent) {
  const channels = scale.length, places = size ** 2, n = channels * places;
  expectLength(places % 8, 0, "places left over, counted in eights");
  expectLength(offset.length, channels, "offsets");
  expectLength(channels % groups, 0, `channels left over by ${groups} groups`);
  const w = kept(memory, scale), b = kept(memory, offset);
  let x, stats;
  const derivative = (d, pull) => {
    const y = memory.room(n);
    memory.call("norm_d", y, d, stats, x, w, b, channels, places, groups, +bent, +pull);
    return y;
  };
  return {
    n,
    m: n,
    f: now => {
      const y = memory.room(n);
      [x, stats] = [now, memory.room(2 * groups)];
      memory.call("norm", y, stats, x, w, b, channels, places, groups, +bent);
      return y;
    },
    push: d => derivative(d, false),
    pull: g => derivative(g, true),
  };
}

// x -> x + amounts(), a number for each channel: how a network is told the time. J is the identity.
function shift(memory, channels, size, amounts) {
  return {
    ...same(channels * size ** 2),
    f: x => {
      const y = memory.room(x.length), e = memory.room(channels);
      e.set(amounts());
      memory.call("shift", y, x, e, channels, size ** 2);
      memory.drop(e);
      return y;
    },
  };
}

// Each pixel becomes 2 x 2 equal ones; the transpose adds the four up.
function upsample(memory, channels, size) {
  const n = channels * size ** 2;
  const apply = (name, x, length) => {
    const y = memory.room(length);
    memory.call(name, y, x, channels, size);
    return y;
  };
  const double = x => apply("upsample", x, 4 * n);
  return {n, m: 4 * n, f: double, push: double, pull: g => apply("upsample_turned", g, n)};
}

// The sum over all places of each channel.
function pool(memory, channels, size) {
  const places = size ** 2;
  const total = x => {
    const y = memory.room(channels).fill(0);
    x.forEach((value, i) => (y[Math.floor(i / places)] += value));
    return y;
  };
  const spread = g => {
    const y = memory.room(channels * places);
    g.forEach((value, c) => y.fill(value, c * places, (c + 1) * places));
    return y;
  };
  return {n: channels * places, m: channels, f: total, push: total, pull: spread};
}

// Attention: queries q, keys k and values v are maps of x. In each head, of `width` channels,
// P = softmax(q^T k / sqrt(width)) over the places, and o = v P^T. The product rule gives
// do = dv P^T + v dP^T, where dP comes from dq^T k + q^T dk through softmax's derivative.
function attention(memory, q, k, v, width, size) {
  expectSize(size, 8);
  const n = q.m, places = size ** 2, shape = [n / width / places, width, places];
  expectLength(n % (width * places), 0, `numbers left over by heads of ${width} channels`);
  for (const other of [k, v]) expectLength(other.m, n, "numbers out of queries, keys and values");
  const rooms = (...lengths) => lengths.map(memory.room), drop = list => list.forEach(memory.drop);
  let seen;
  return {
    n: q.n,
    m: n,
    f: x => {
      const [o, P] = rooms(n, shape[0] * places ** 2);
      seen = [P, q.f(x), k.f(x), v.f(x)];
      memory.call("attend", o, ...seen, ...shape);
      drop(seen);
      return o;
    },
    push: d => {
      const changes = [q.push(d), k.push(d), v.push(d)], [o] = rooms(n);
      memory.call("attend_push", o, ...seen, ...changes, ...shape);
      drop(changes);
      return o;
    },
    pull: g => {
      const asked = rooms(n, n, n);
      memory.call("attend_pull", ...asked, ...seen, g, ...shape);
      const parts = [q, k, v].map((layer, i) => layer.pull(asked[i]));
      const two = added(memory, parts[0], parts[1]), y = added(memory, two, parts[2]);
      drop([...asked, ...parts, two]);
      return y;
    },
  };
}

// ---- what the layers share

function added(memory, a, b) {
  const y = memory.room(a.length);
  memory.call("add", y, a, b, y.length);
  return y;
}

function kept(memory, numbers) {
  const a = memory.keep(numbers.length);
  a.set(numbers);
  return a;
}

// Weights as the kernel wants them: in blocks of 4 x 4, transformed where Winograd's way is taken.
function packed(memory, weight, winograd) {
  const outputs = weight.shape[0], inputs = weight.length / outputs / (winograd ? 9 : 1);
  const full = 16 * Math.ceil(outputs / 4) * Math.ceil(inputs / 4);
  const to = memory.keep(winograd ? 16 * full : full), from = memory.room(weight.length);
  from.set(weight);
  memory.call(winograd ? "winograd" : "blocks", to, from, outputs, inputs);
  return to;
}

// The kernel takes these for granted.
function expectConvolution(outputs, inputs, k, size, stride) {
  const known = (stride === 1 && (k === 1 || k === 3)) || (stride === 2 && (k === 3 || k === 4));
  const fours = k === 3 && stride === 1 ? 1 : 4;
  if (!known)
    throw new Error(
      "expected weights of 1 x 1 or 3 x 3, or of 3 x 3 or 4 x 4 with stride 2, " +
      `got ${k} x ${k} with stride ${stride}`,
    );
  expectSize(size, 64);
  if (outputs % fours || (inputs * k * k) % fours || Math.max(outputs, inputs) > 256)
    throw new Error(`expected at most 256 channels, in fours, got ${inputs} to ${outputs}`);
}

function expectSize(size, most) {
  const sizes = [8, 16, 32, 64].filter(known => known <= most);
  if (!sizes.includes(size))
    throw new Error(`expected images of ${sizes.join(", ")} pixels a side, got ${size}`);
}

function expectLength(got, expected, what) {
  if (got !== expected) throw new Error(`expected ${expected} ${what}, got ${got}`);
}
