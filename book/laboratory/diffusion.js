"use strict";

// From x_t to a picture, for the noise levels ALICE was trained with; see mathkit/diffusion.

// Products of 1 - beta, beta even steps from 1e-4 to .02; single precision where torch has it.
const ALPHAS = (() => {
  const T = 1000, single = Math.fround;
  const first = single(1e-4), last = single(0.02), step = single((last - first) / (T - 1));
  let product = 1;
  return Float32Array.from({length: T}, (_, t) => {
    const beta = single(t < T / 2 ? first + step * t : last - step * (T - 1 - t));
    return (product *= single(1 - beta));
  });
})();

// The share of the picture in x_t: x_t = sqrt(abar) x_0 + sqrt(1 - abar) e. Of t < 0 it is 1.
function abar(t) {
  if (t >= 0 && !(t in ALPHAS)) throw new Error(`t is an integer up to ${ALPHAS.length - 1}, got ${t}`);
  return t < 0 ? 1 : ALPHAS[t];
}

// The nearest integer, and of two the even one, as Python rounds.
function rounded(y) {
  const near = Math.round(y);
  return near - y === 0.5 && near % 2 ? near - 1 : near;
}

// The times of `steps` network calls from t down to 0, each once.
function timesteps(t, steps) {
  if (!Number.isInteger(steps) || steps < 1) throw new Error(`steps is an integer >= 1, got ${steps}`);
  const step = t / (steps - 1), half = Math.floor(steps / 2);
  const even = Array.from({length: steps}, (_, i) => {
    if (!i) return t;
    return i < half ? t - i * step : (steps - 1 - i) * step;
  });
  return [...new Set(even.map(rounded))];
}

// What a step makes of x and the network's v: the picture expected, and x at the next time.
function ddimStep(x, v, t, then) {
  const s = Math.sqrt(abar(t)), n = Math.sqrt(1 - abar(t));
  const s2 = Math.sqrt(abar(then)), n2 = Math.sqrt(1 - abar(then));
  const clean = x.map((xi, i) => s * xi - n * v[i]);
  return {clean, next: x.map((xi, i) => s2 * (s * xi - n * v[i]) + n2 * (n * xi + s * v[i]))};
}

// DDIM from x at times[0] over the times to `end`, by default to x_0. `each(t, clean, x)` is awaited
// after each network call: x has reached t, and `clean` is what she saw under it.
async function walk(alice, x, times, each = async () => {}, end = -1) {
  for (let i = 0; i < times.length; i++) {
    const then = times[i + 1] ?? end;
    const {clean, next} = ddimStep(x, alice.predict(x, times[i]), times[i], then);
    x = next;
    await each(then, clean, x);
  }
  return x;
}

// The posterior mean E[x_0 | x_t], what she expects under the snow.
function expected(alice, x, t) {
  return ddimStep(x, alice.predict(x, t), t, -1).clean;
}

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

const norm = a => Math.sqrt(dot(a, a));

// y + c a, written over y, which may be longer than a.
function add(y, c, a) {
  for (let i = 0; i < a.length; i++) y[i] += c * a[i];
  return y;
}

// x moved along v with its length kept, |moved - x| = |strength| |x|: `mk.move`.
function move(x, v, strength) {
  if (!(Math.abs(strength) <= 2)) throw new Error(`strength is from -2 to 2, got ${strength}`);
  const size = norm(x), across = new Float64Array(v);
  add(across, -dot(v, x) / size ** 2, x);
  const length = norm(across);
  if (!(length > 1e-3 * norm(v))) {
    throw new Error("v is zero or parallel to x: with the length kept there is nowhere to move");
  }
  const angle = 2 * Math.asin(strength / 2);
  const along = Math.cos(angle), aside = (Math.sin(angle) * size) / length;
  return x.map((xi, i) => along * xi + aside * across[i]);
}

// The times of a sample of 25 steps from t down: those of `mk.sample`.
function grid(t) {
  const times = timesteps(ALPHAS.length - 1, 25);
  if (!times.includes(t)) throw new Error(`t is one of the sampling times ${times}, got ${t}`);
  return times.slice(times.indexOf(t));
}

// Four times from t down that lead nearer to the sample's own end than four even ones.
function hurried(t) {
  const SHARES = [1, 0.666, 0.332, 0.084];
  return [...new Set(SHARES.map(share => rounded(share * t)))];
}

// A picture within the range of colours.
const clipped = image => image.map(value => Math.min(1, Math.max(-1, value)));
