"use strict";
// Numbers that JavaScript and the kernel share: one block of memory, the weights first, then what a
// pass through the network computes.

const MEGABYTES = 96;

// Opens the compiled kernel.c. Gives
//   keep(n)         room for n numbers that stays: for weights
//   again(keeping)  begins a pass: all other room is free. With `keeping`, drop does nothing, since
//                   the derivatives will ask for what the pass computes
//   hold()          ends such a pass: what it computed stays until the next one begins
//   room(n)         room for n numbers within the pass
//   drop(a)         a is done with: the next room of its length may lie there
//   used()          the bytes in use
//   call(name, ...) a function of the kernel; an array goes as its address, null as 0
async function openMemory(kernel, megabytes = MEGABYTES) {
  if (!WebAssembly.validate(kernel))
    throw new Error(
      "expected a kernel of WebAssembly with SIMD that this browser can run; " +
      "use a browser of 2023 or later",
    );
  const memory = new WebAssembly.Memory({initial: megabytes * 16});
  const {instance} = await WebAssembly.instantiate(kernel, {env: {memory}});
  const aligned = address => Math.ceil(address / 64) * 64;
  let base = aligned(instance.exports.__heap_base.value), top = base;
  let keeping = false, live = new Set(), spare = new Map();

  function forget(keep) {
    [keeping, live, spare] = [keep, new Set(), new Map()];
  }
  function again(keep = false) {
    forget(keep);
    top = base;
  }
  function room(n) {
    let a = spare.get(n)?.pop();
    if (!a) {
      if (top + 4 * n > memory.buffer.byteLength)
        throw new Error(`${megabytes} megabytes of memory are full; open more of them`);
      a = new Float32Array(memory.buffer, top, n);
      top = aligned(top + 4 * n);
    }
    live.add(a);
    return a;
  }
  function drop(a) {
    if (keeping || !live.delete(a)) return;
    if (!spare.has(a.length)) spare.set(a.length, []);
    spare.get(a.length).push(a);
  }
  function keep(n) {
    again();
    const a = room(n);
    base = top;
    return a;
  }
  const address = a => (a === null ? 0 : typeof a === "number" ? a : a.byteOffset);
  const call = (name, ...args) => instance.exports[name](...args.map(address));
  return {keep, again, hold: () => forget(false), room, drop, used: () => top, call};
}
