"use strict";
// The reader: a small network that reads the 13 factors of a puppet off its image.

const STRANGER = 10;  // the factor that is a probability

// image -> Float32Array(13): four convolutions, each halving the image, and two linear layers.
function buildReader(memory, weights) {
  const both = name => [weights.take(`${name}.weight`), weights.take(`${name}.bias`)];
  const convolutions = seq(memory, ...[0, 1, 2, 3].flatMap(i => [
    convolution(memory, ...both(`convolutions.${i}.0`), SIDE >> i, 2),
    normalisation(memory, ...both(`convolutions.${i}.1`), 8, SIDE >> (i + 1), true),
  ]));
  const hidden = linear(...both("hidden")), out = linear(...both("out"));
  weights.finish();
  return image => {
    const z = out(hidden(taken(memory, convolutions.f, put(memory, image))).map(silu));
    z[STRANGER] = 1 / (1 + Math.exp(-z[STRANGER]));
    return z;
  };
}
