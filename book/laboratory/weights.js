"use strict";
// A file of weights in the safetensors format: the length of a header (8 bytes), the header (JSON:
// for each name its dtype, shape and place), the numbers.

// Reads such a file. Gives
//   has(name)   whether it holds the name
//   take(name)  a Float32Array with .shape
//   finish()    throws where names are left that nobody took: the network is another one
function readWeights(bytes, file) {
  const complain = problem => { throw new Error(`${file}: ${problem}; fetch the file again`); };
  const {header, numbers} = splitWeights(bytes, complain), left = new Set(Object.keys(header));
  function take(name) {
    if (!(name in header)) complain(`expected weights named ${name}, which it does not hold`);
    const {dtype, shape = [], data_offsets: [start, end] = []} = header[name];
    const width = {F16: 2, F32: 4}[dtype], count = shape.reduce((a, b) => a * b, 1);
    if (!width) complain(`expected float16 or float32 for ${name}, got ${dtype}`);
    if (end - start !== count * width || !(start >= 0 && end <= numbers.length))
      complain(`expected ${count * width} bytes for ${name}, got ${start} to ${end} of ${numbers.length}`);
    const raw = aligned(numbers.subarray(start, end), width);
    const a = dtype === "F32" ? Float32Array.from(raw) : widened(raw);
    left.delete(name);
    return Object.assign(a, {shape});
  }
  const finish = () => {
    const [first] = left;
    if (first) complain(`expected no more weights, got ${left.size} such as ${first}`);
  };
  return {has: name => name in header, take, finish};
}

function splitWeights(bytes, complain) {
  if (bytes.length < 8) complain(`expected at least 8 bytes, got ${bytes.length}`);
  const size = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
  if (8 + size > bytes.length)
    complain(`expected a header of ${size} bytes, got ${bytes.length - 8} in all`);
  let header;
  try {
    header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + size)));
  } catch {
    complain("expected a header in JSON");
  }
  delete header.__metadata__;
  return {header, numbers: bytes.subarray(8 + size)};
}

// The bytes as numbers of `width` bytes each; where they begin at no multiple of it, of a copy.
function aligned(bytes, width) {
  const {buffer, byteOffset} = bytes.byteOffset % width ? bytes.slice() : bytes;
  return new {2: Uint16Array, 4: Float32Array}[width](buffer, byteOffset, bytes.length / width);
}

// float16 -> float32, exactly: every one of the 65,536 values is looked up.
const HALVES = Float32Array.from({length: 65536}, (_, h) => {
  const exponent = (h >> 10) & 31, fraction = (h & 1023) / 1024, sign = h & 32768 ? -1 : 1;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
});

function widened(halves) {
  const a = new Float32Array(halves.length);
  for (let i = 0; i < a.length; i++) a[i] = HALVES[halves[i]];
  return a;
}
