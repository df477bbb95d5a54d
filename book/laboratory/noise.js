"use strict";

// The snow a sample starts from, as `mk.sample` draws it: numpy's SeedSequence turns (seed, index)
// into the state of torch's Mersenne Twister, whose numbers Box and Muller make normal.

const POOL = 4;
const xorshift = word => (word ^ (word >>> 16)) >>> 0;

// The 32-bit words of integers >= 0 up to 2^53, the lowest first: 0 is one word.
function wordsOf(numbers) {
  return numbers.flatMap(number => {
    if (!Number.isSafeInteger(number) || number < 0) {
      throw new Error(`seed and index are integers from 0 to 2^53 - 1, got ${number}`);
    }
    const high = Math.floor(number / 2 ** 32);
    return high ? [number >>> 0, high] : [number >>> 0];
  });
}

// `count` words of numpy.random.SeedSequence(key): Uint32, after O'Neill's seed_seq.
function seedSequence(key, count) {
  const words = wordsOf(key);
  let constant = 0x43b0d7e5;
  const hashed = (word, factor) => {
    const mixed = word ^ constant;
    constant = Math.imul(constant, factor);
    return xorshift(Math.imul(mixed, constant));
  };
  const taken = word => hashed(word, 0x931e8875);
  const mixed = (a, b) => xorshift(Math.imul(0xca01f9dd, a) - Math.imul(0x4973f715, b));
  const pool = Array.from({length: POOL}, (_, i) => taken(words[i] ?? 0));
  for (let from = 0; from < POOL; from++) {
    for (let to = 0; to < POOL; to++) {
      if (from !== to) pool[to] = mixed(pool[to], taken(pool[from]));
    }
  }
  for (const word of words.slice(POOL)) {
    for (let to = 0; to < POOL; to++) pool[to] = mixed(pool[to], taken(word));
  }
  constant = 0x8b51f9dd;
  return Uint32Array.from({length: count}, (_, i) => hashed(pool[i % POOL], 0x58f38ded));
}

// Matsumoto and Nishimura's Mersenne Twister of a 32-bit seed: a function that gives words.
function mersenneTwister(seed) {
  const SIZE = 624, SHIFT = 397;
  const state = new Uint32Array(SIZE);
  state[0] = seed;
  for (let i = 1; i < SIZE; i++) {
    state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
  }
  const twist = () => {
    for (let i = 0; i < SIZE; i++) {
      const y = (state[i] & 0x80000000) | (state[(i + 1) % SIZE] & 0x7fffffff);
      state[i] = state[(i + SHIFT) % SIZE] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
  };
  let at = SIZE;
  return () => {
    if (at === SIZE) {
      twist();
      at = 0;
    }
    let y = state[at++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  };
}

// `size` >= 16 standard normal numbers, drawn and paired as torch.randn does on a CPU.
function normal(next, size) {
  const BLOCK = 16, HALF = BLOCK / 2;
  const uniform = () => (next() & 0xffffff) / 2 ** 24;
  const x = new Float32Array(size).map(uniform);
  const paired = start => {
    for (let i = start; i < start + HALF; i++) {
      const radius = Math.sqrt(-2 * Math.log(1 - x[i])), angle = 2 * Math.PI * x[i + HALF];
      x[i] = radius * Math.cos(angle);
      x[i + HALF] = radius * Math.sin(angle);
    }
  };
  for (let start = 0; start + BLOCK <= size; start += BLOCK) paired(start);
  if (size % BLOCK) {
    for (let i = size - BLOCK; i < size; i++) x[i] = uniform();
    paired(size - BLOCK);
  }
  return x;
}

// The x_T of `mk.sample(seed=seed, index=[index])`; another stream is other noise.
function snow(seed, index, stream = 0, size = 3 * 64 * 64) {
  const [high, low] = seedSequence([seed, index, stream], 2);
  return normal(mersenneTwister((high << 31) ^ low), size);
}
