"use strict";

// The worker: messages {id, op, ...} in, {id, op, state, ...} out. A newer job of the same op drops
// the older one between two network calls; quick jobs go first, in the pauses of the long ones.

const LONG = ["directions", "strip", "treat"];
const DROPPED = Symbol("dropped");
const waiting = [], newest = {};
let alice = null, register = null, busy = false, turns = 0;

function receive(job) {
  newest[job.op] = job.id;
  if (job.op === "stop") newest[job.what] = job.id;
  waiting.push(job);
  if (!busy) work();
}

// Works off what waits: all of it, or what is quick.
async function work(quick = false) {
  busy = true;
  for (;;) {
    const at = waiting.findIndex(({op}) => !quick || !LONG.includes(op));
    if (at < 0) break;
    turns += 1;
    await answered(waiting.splice(at, 1)[0]);
  }
  busy = quick;
}

async function answered(job) {
  const begun = performance.now();
  const tell = (state, more) => postMessage({id: job.id, op: job.op, state, ...more});
  const running = async more => {
    tell("running", more);
    await paused(job);
  };
  try {
    if (!OPS[job.op]) throw new Error(`op is one of ${Object.keys(OPS).join(", ")}, got ${job.op}`);
    if (!alice && !["wake", "stop"].includes(job.op)) throw new Error("ALICE sleeps: wake her first");
    await paused(job);
    const outcome = await OPS[job.op](job, running);
    tell("done", {...outcome, ms: performance.now() - begun});
  } catch (error) {
    if (error === DROPPED) tell("dropped");
    else tell("failed", {problem: error.message});
  }
}

// Lets messages in; ends a job that a newer one replaced, and lets quick ones pass a long one.
async function paused(job) {
  await new Promise(resume => {
    const {port1, port2} = new MessageChannel();
    port1.onmessage = resume;
    port2.postMessage(null);
  });
  if (newest[job.op] !== job.id) throw DROPPED;
  if (LONG.includes(job.op)) await work(true);
}

// alice.linearised, taken again where another job asked her something in a pause.
function lasting(map, x, t) {
  let A = alice.linearised(map, x, t), turn = turns;
  const now = () => {
    if (turn !== turns) [A, turn] = [alice.linearised(map, x, t), turns];
    return A;
  };
  return {n: A.n, m: A.m, value: A.value, push: v => now().push(v), pull: u => now().pull(u)};
}

const OPS = {
  async wake({parts}) {
    alice = await wake(parts);
    register = {average: parts.average, clip: parts.clip};
    return {};
  },

  async stop() {
    return {};
  },

  async draw({seed, index = 0}, running) {
    const x = snow(seed, index), times = timesteps(ALPHAS.length - 1, 25), path = [{t: times[0], x}];
    let step = 0;
    const image = await walk(alice, x, times, async (t, clean, next) => {
      if (t >= 0) path.push({t, x: next});
      await running({t, clean, step: (step += 1), steps: times.length});
    });
    return {image, path};
  },

  async directions({x, t, map, k, tol}, running) {
    const seen = ({steps, S, residuals, V}) => running({steps, S, residuals, V});
    const {S, residuals, V, steps, problem} = await svd(lasting(map, x, t), k, {tol, seen});
    return {S, residuals, V, steps, problem};
  },

  async drag(job) {
    return {image: await dragged(job, job.strength)};
  },

  async strip(job, running) {
    const images = [];
    for (const strength of job.strengths) {
      images.push(await dragged(job, strength));
      await running({i: images.length - 1, image: images.at(-1)});
    }
    return {images};
  },

  async random({seed}) {
    return {v: unit(snow(seed, 0, 1))};
  },

  async read({image}) {
    return {factors: alice.factors(clipped(image))};
  },

  async treat({path, region, dose, tol, ...given}, running) {
    const {average, clip} = {...register, ...given}, patient = {...alice, linearised: lasting};
    const image = await treat(patient, path, region, dose, {average, clip, tol, each: running});
    return {image, factors: alice.factors(image)};
  },

  async save(job) {
    return {text: directionFile(job)};
  },
};

// x moved along v and walked down: in "all" the sample's own calls, in 4 chosen ones, or in so many.
async function dragged(job, strength) {
  const {x, t, v, calls = 4} = job;
  const times = calls === "all" ? grid(t) : calls === 4 ? hurried(t) : timesteps(t, calls);
  return walk(alice, move(x, v, strength), times, () => paused(job));
}

function directionFile({model, seed, index = 0, t, map, strength, v}) {
  const bytes = new Uint8Array(new Float32Array(v).buffer);
  const letters = Array.from(bytes, byte => String.fromCharCode(byte)).join("");
  return JSON.stringify({
    format: "mathkit direction", version: 1, model, seed, index, t, map, strength,
    shape: [1, 3, 64, 64], v: btoa(letters),
  });
}

if (typeof DedicatedWorkerGlobalScope !== "undefined") onmessage = ({data}) => receive(data);
