"use strict";

// The course of chapter 13: small steps at three times, each aimed at the average puppet within a
// region and off what moves the rest most; and aftercare, which takes the rest back where it was.
// mathkit/chapters/treatment.py does the same.

const EARLY = 749, COURSE = [666, 583], AFTERCARE = [666, 583, 458, 333];
const REST = 12; // directions of the rest that the aftercare may move
const OFF = 5; // of them, those that a step leaves out
const ROUNDS = 2; // of small steps at each time of the aftercare

// The picture that a puppet on its way `path`, [{t, x}, ...] of all the sampling times, ends in when
// the region, 0 or 1 at each of 64 x 64 places, is treated. dose: the length of a step, a share of
// |x|. average: the average puppet. clip: the length of a pull from which on a step is whole, a
// shorter one makes it as much shorter; 0: every step is whole. tol: of the searches.
// each({t, what, image}) is awaited after each network call or look, `what` in words.
async function treat(alice, path, region, dose, options) {
  const {average, clip, tol = 1e-3, each = async () => {}} = options;
  if (!(dose >= 0 && dose <= 2 && clip >= 0)) {
    throw new Error(`dose is from 0 to 2 and clip >= 0, got ${dose} and ${clip}`);
  }
  checkRegion(region);
  for (const t of [EARLY, ...AFTERCARE]) stateAt(path, t);
  const about = {alice, region, average, clip, tol, each};
  const start = await studied(about, stateAt(path, EARLY), EARLY);
  let x = await stepped(about, start, start.x, dose), now = EARLY;
  const walked = async (then, clean) => each({t: then, what: "on the way down", image: clean});
  for (const t of AFTERCARE) {
    x = await walk(alice, x, between(now, t), walked, t);
    now = t;
    const there = await studied(about, stateAt(path, t), t);
    if (COURSE.includes(t)) x = await stepped(about, there, x, dose);
    x = await settled(about, there, x);
  }
  return clipped(await walk(alice, x, grid(now), walked));
}

function checkRegion(region) {
  const flags = region.every(one => one === 0 || one === 1);
  if (region.length !== 4096 || !flags || !region.includes(1)) {
    throw new Error(`region is 64 x 64 numbers, each 0 or 1 and some 1, got ${region.length}`);
  }
}

// The sample's own x_t.
function stateAt(path, t) {
  const state = path.find(one => one.t === t);
  if (!state) throw new Error(`path has no x at t = ${t}: give all the sampling times`);
  return state.x;
}

// The sampling times from one down to before another.
const between = (from, to) => grid(from).filter(t => t > to);

// What is known of the untreated x at t: the picture expected, the rest's directions, and where a
// step is taken the way it goes. One linearisation serves all; it ends where she is asked on.
async function studied({alice, region, average, tol, each}, x, t) {
  const A = alice.linearised("mean", x, t), rest = y => masked(y, region, 0);
  const outside = {n: A.n, m: A.m, push: v => rest(A.push(v)), pull: u => A.pull(rest(u))};
  const k = t === EARLY ? OFF : REST;
  const what = steps => `what moves the rest? ${steps} pushes and pulls`;
  const seen = ({steps}) => each({t, what: what(steps), image: null});
  const {U, S, V} = await svd(outside, k, {tol, seen});
  const steps = t === EARLY || COURSE.includes(t);
  return {t, x, value: A.value, U, S, V, way: steps ? aimed(A, region, average, V) : null};
}

// J^T (average - E) in the region, off the rest: the way to the average puppet, pulled back.
function aimed(A, region, average, V) {
  const target = masked(average.map((value, i) => value - A.value[i]), region, 1);
  return new Float32Array(split(A.pull(target), V.slice(0, OFF)).rest);
}

// y where the region is `kept`, 0 elsewhere.
const masked = (y, region, kept) =>
  y.map((value, i) => (region[i % region.length] === kept ? value : 0));

async function stepped({alice, clip, each}, {t, way}, x, dose) {
  const share = clip ? Math.min(1, norm(way) / clip) : 1;
  const moved = move(x, way, dose * share);
  await each({t, what: "a step", image: expected(alice, moved, t)});
  return moved;
}

// x <- x + A^+ r, a few times: r is how far the rest has drifted from what was expected there, A^+
// the pseudo-inverse on the rest's top directions, V^T S^-1 U.
async function settled({alice, region, each}, {t, value, U, S, V}, x) {
  const y = new Float64Array(x);
  for (let round = 0; round < ROUNDS; round++) {
    const image = expected(alice, new Float32Array(y), t);
    const drift = masked(image.map((now, i) => value[i] - now), region, 0);
    U.forEach((u, i) => add(y, S[i] ? dot(u, drift) / S[i] : 0, V[i]));
    await each({t, what: "aftercare", image});
  }
  return new Float32Array(y);
}
