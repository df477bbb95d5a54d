"use strict";

// The directions that a linear map stretches most, from pushes and pulls alone. `Krylov.step` is the
// loop body of chapter 12's `lanczos`, from two starts; the rest decides when to stop, as
// mathkit/linear/lanczos.py does. Rows are Float32Array, what is between them is in double.

const STARTS = 2; // one start holds one copy of a repeated value, two hold two
const SLACK = 0.98; // of tol, so that a residual measured again still passes
const FORCED = 100; // rounds at most in search of one copy more
const SHARE = 30; // of the root of n: how much a copy must grow from a random start to stand out
const EPSILON = 2 ** -23;

// Orthonormal rows V and U between which the map A is a small matrix.
//
// A v_j = sum_i H[j][i] u_i and A^T u_j = sum_i T[j][i] v_i. A row of V is pushed when its turn
// comes, and the row of U it leads to is pulled; what that brings in waits at the end of V.
class Krylov {
  // The map must not have more inputs than outputs: then U always has room.
  constructor(map, seed) {
    this.map = map;
    this.random = mersenneTwister(seed);
    this.V = [];
    this.U = [];
    this.H = [];
    this.T = [];
    this.longest = 0;
    this.starts = 0;
    while (this.starts < STARTS && this.V.length < map.n) this.start();
  }

  // Directions that were pushed and pulled.
  get size() {
    return this.T.length;
  }

  // Whether V is all of the space: then nothing is left to miss.
  get whole() {
    return this.size === this.map.n;
  }

  get waiting() {
    return this.V.length - this.size;
  }

  get passes() {
    return this.U.length + this.size;
  }

  start() {
    if (this.V.length === this.map.n) return;
    this.V.push(this.randomRow(this.map.n, this.V));
    this.starts += 1;
  }

  step() {
    if (this.U.length === this.size) this.push();
    this.pull();
  }

  push() {
    const y = finite(this.map.push(this.V[this.U.length]));
    this.longest = Math.max(this.longest, norm(y));
    this.H.push(this.grown(this.U, y));
  }

  pull() {
    const y = finite(this.map.pull(this.U[this.size]));
    this.T.push(this.grown(this.V, y));
  }

  // What y has of the rows; what it has beside them joins them, to length 1. Where that is nothing
  // but rounding a random row joins, and where they fill the space none.
  grown(rows, y) {
    const {parts, rest} = split(y, rows), length = norm(rest);
    if (rows.length === y.length) return parts;
    const lost = length <= 8 * EPSILON * this.longest;
    rows.push(lost ? this.randomRow(y.length, rows) : unit(rest));
    return [...parts, lost ? 0 : length];
  }

  randomRow(size, rows) {
    const row = normal(this.random, Math.max(size, 16)).subarray(0, size);
    return unit(split(row, rows).rest);
  }

  // P, S, Q of H = P S Q^T, as far as the first `count` rows go.
  ritz(count = this.size) {
    if (this.last?.S.length !== count) {
      const H = this.H.slice(0, count);
      this.last = smallSVD(H.map(h => Float64Array.from({length: count}, (_, i) => h[i] ?? 0)));
    }
    return this.last;
  }

  // The top triplets: s; u = sum_j p_j u_j; v = sum_j q_j v_j; and how far A^T u is from s v:
  // outside the rows of V that were pushed, and in all.
  triplets(count) {
    const {P, S, Q} = this.ritz();
    return S.slice(0, count).map((s, k) => {
      const missed = new Float64Array(this.V.length);
      P[k].forEach((p, j) => add(missed, p, this.T[j]));
      add(missed, -s, Q[k]);
      return {s, p: P[k], q: Q[k], outside: norm(missed.subarray(this.size)), all: norm(missed)};
    });
  }
}

// y = sum_i parts_i rows_i + rest, the rest at right angles to them: subtracted twice, against
// rounding.
function split(y, rows) {
  const rest = new Float64Array(y), parts = rows.map(() => 0);
  for (let round = 0; round < 2; round++) {
    rows.forEach((row, i) => {
      const part = dot(row, rest);
      parts[i] += part;
      add(rest, -part, row);
    });
  }
  return {parts, rest};
}

function unit(y) {
  const length = norm(y);
  return new Float32Array(y.map(value => value / length));
}

function finite(y) {
  if (!Number.isFinite(norm(y))) throw new Error("the map gave NaN or infinity");
  return y;
}

// The top k singular triplets of a map {n, m, push, pull}: A v_i = s_i u_i, A^T u_i = s_i v_i.
//
// tol: what |A^T u_i - s_i v_i| may be, a share of s_1; of it the values miss the square. seed: of
// the random starts. seen({steps, S, residuals, V}): awaited after each look, and what it throws
// ends the search. Gives U and V (lists of k rows), S, residuals, steps, and as `problem` the
// sentence that says what was left undone, or "".
// Source: Golub & Kahan 1965; Golub, Luk & Overton 1981 for several starts.
async function svd(map, k, {tol = 1e-3, seed = 0, seen = null} = {}) {
  const {n, m} = map, smaller = Math.min(n, m);
  if (!(Number.isInteger(k) && k >= 1 && k <= smaller)) {
    throw new Error(`k counts directions: 1 to ${smaller} here, got ${k}`);
  }
  if (!(tol >= 0 && tol < 1)) throw new Error(`tol is a share of s_1 in [0, 1), got ${tol}`);
  const transposed = {n: m, m: n, push: map.pull, pull: map.push};
  const space = new Krylov(n > m ? transposed : map, seed);
  const now = () => found(space, k, n > m);
  const problem = await search(space, k, tol, async () => seen?.(now()));
  const result = now(), worst = Math.max(...result.residuals) / (result.S[0] || 1);
  return {...result, problem: problem || faulty(worst, tol, Math.max(n, m))};
}

// The top k as they are now, with the sign that makes the largest number of each v positive.
function found(space, k, transposed) {
  const top = space.triplets(k);
  const U = top.map(({p}) => combined(p, space.U)), V = top.map(({q}) => combined(q, space.V));
  const [left, right] = transposed ? [V, U] : [U, V];
  const signs = right.map(v => Math.sign(v.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a))));
  const signed = rows => rows.map((row, i) => row.map(value => signs[i] * value));
  const floor = 4 * Math.sqrt(Math.max(space.map.n, space.map.m)) * EPSILON * top[0].s;
  return {
    U: signed(left), S: top.map(({s}) => (s > floor ? s : 0)), V: signed(right),
    residuals: top.map(({all}) => all), steps: space.size,
  };
}

function combined(weights, rows) {
  const sum = new Float64Array(rows[0].length);
  weights.forEach((weight, i) => add(sum, weight, rows[i]));
  return new Float32Array(sum);
}

function faulty(worst, tol, size) {
  if (worst <= Math.max(tol, 4 * Math.sqrt(size) * EPSILON)) return "";
  return `residual ${inShort(worst)} s_1 where ${inShort(tol)} was asked, since pull is no closer to ` +
    "push's transpose, or rounding: take a larger tol";
}

const inShort = share => share.toExponential(1);

// Steps until the top k have residuals of at most tol s_1 and nothing more turns up where the
// search has looked least; gives what is wrong with the outcome, or "".
async function search(space, k, tol, look) {
  const most = 1000 + 20 * k;
  let doubt = "";
  for (;;) {
    const left = await converge(space, k, SLACK * tol, most, look);
    if (left > SLACK * tol) {
      return `residual ${inShort(left)} s_1 where ${inShort(tol)} was asked within ${most} passes`;
    }
    if (space.whole) return "";
    const above = crowd(space, k, tol);
    if (space.passes >= most) return `no room to see how often a value comes within ${most} passes`;
    if (above === null) {
      if (guarded(space, k, tol)) return doubt;
      continue;
    }
    const rounds = needed(space.map.n, above);
    if (rounds > FORCED) doubt = "a repeated value may come once more than found: another seed";
    space.start();
    for (let i = Math.min(rounds, FORCED); i > 0 && space.passes < most; i--) {
      for (let row = space.waiting; row > 0 && !space.whole; row--) space.step();
      await look();
    }
  }
}

// Steps until the residual is the aim, or the passes are spent; gives that residual.
async function converge(space, k, aim, most, look) {
  for (;;) {
    const left = residual(space, k);
    if (space.size >= k) await look();
    if (left <= aim || space.whole || space.passes >= most) return left;
    for (let i = patience(space.size, left / aim); i > 0 && !space.whole; i--) space.step();
  }
}

// The worst residual of the top k, in units of s_1, or what the next value may rise above s_k:
// some singular value lies within its own residual of it.
function residual(space, k) {
  if (space.size < k) return Infinity;
  const top = space.triplets(k + 1), worst = Math.max(...top.slice(0, k).map(one => one.outside));
  const rise = top.length > k ? top[k].s + top[k].outside - top[k - 1].s : 0;
  return Math.max(worst, rise) / (top[0].s || 1);
}

// Steps before another look, where looking costs: a residual seldom shrinks fourfold a step.
function patience(size, ratio) {
  return size > 32 ? Math.max(1, Math.floor(Math.log(Math.min(ratio, 1e9)) / Math.log(4))) : 1;
}

// Whether pushing all that waits leaves the top k as they are. Directions that have converged bring
// in nothing new, so a copy that they miss must be looked for on purpose.
function guarded(space, k, tol) {
  const before = space.ritz().S;
  while (space.U.length < space.V.length) space.push();
  const after = space.ritz(space.U.length).S;
  const rise = Math.max(...before.slice(0, k).map((s, i) => after[i] - s));
  if (rise <= tol * after[0]) return true;
  while (space.size < space.U.length) space.pull();
  return false;
}

// Whether a value may come more often than it was found: (s / s_(k+1))^2 - 1 for the least such
// value s, else null.
//
// p starts hold up to p copies of a repeated value, so where fewer turn up there are no more. p
// values count as copies if their intervals s_i -+ residual share a point; one copy more matters if
// some step below them, down to s_k, is larger than tol s_1.
function crowd(space, k, tol) {
  const p = space.starts, top = space.triplets(k + 1), largest = top[0].s;
  const S = top.map(({s}) => s);
  const r = top.map(({outside}) => outside + 4 * Math.sqrt(space.size) * EPSILON * largest);
  for (let i = k - p - 1; i >= 0; i--) {
    const copies = Array.from({length: p}, (_, j) => i + j), last = i + p - 1;
    const low = Math.max(...copies.map(j => S[j] - r[j]));
    const high = Math.min(...copies.map(j => S[j] + r[j]));
    const step = Math.max(...S.slice(last, k - 1).map((s, j) => s - S[last + j + 1]));
    if (low <= high && step > tol * largest) {
      return (S[last] / Math.max(S[k] ?? S[k - 1], 1e-30 * largest)) ** 2 - 1;
    }
  }
  return null;
}

// Rounds until a value whose square lies `above` times the rest's over them stands out of a random
// start: after j rounds its part, 1 / sqrt(n) at first, has grown T_(j-1)(1 + 2 above)-fold, T the
// Chebyshev polynomial.
function needed(n, above) {
  return 1 + Math.ceil(Math.log(SHARE * Math.sqrt(n)) / Math.acosh(1 + 2 * above));
}
