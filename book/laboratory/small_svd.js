"use strict";

// The singular values of a matrix small enough to write down, by one-sided Jacobi: its columns are
// turned in pairs until all stand at right angles; then their lengths are the singular values.

// H = P S Q^T of a matrix given as n columns of at least n numbers. P and Q come as lists of
// columns, S falling. Where S is 0, P goes on with any orthonormal columns.
// Source: Hestenes 1958; Demmel & Veselic 1992 for its accuracy.
function smallSVD(columns) {
  const SWEEPS = 60, RIGHT = 1e-15;
  const n = columns.length;
  const P = columns.map(column => Float64Array.from(column));
  const Q = P.map((_, i) => Float64Array.from(P, (_, j) => Number(i === j)));
  for (let sweep = 0, worst = 1; worst > RIGHT && sweep < SWEEPS; sweep++) {
    worst = 0;
    for (let i = 0; i < n; i++) {
      for (let j = i + 1; j < n; j++) worst = Math.max(worst, turned(P, Q, i, j));
    }
  }
  const lengths = P.map(norm);
  const order = P.map((_, i) => i).sort((i, j) => lengths[j] - lengths[i]);
  const S = order.map(i => lengths[i]);
  return {P: unitColumns(order.map(i => P[i]), S), S, Q: order.map(i => Q[i])};
}

// Columns i and j turned to a right angle, in P and in Q; gives the cosine of the angle before.
function turned(P, Q, i, j) {
  const a = dot(P[i], P[i]), b = dot(P[j], P[j]), c = dot(P[i], P[j]);
  const cosine = c ? Math.abs(c) / Math.sqrt(a * b) : 0;
  if (!(cosine > 1e-16)) return 0;
  const zeta = (b - a) / (2 * c);
  const tangent = Math.sign(zeta || 1) / (Math.abs(zeta) + Math.hypot(1, zeta));
  const cos = 1 / Math.hypot(1, tangent), sin = cos * tangent;
  for (const columns of [P, Q]) {
    const x = columns[i], y = columns[j];
    for (let k = 0; k < x.length; k++) {
      const xk = x[k];
      x[k] = cos * xk - sin * y[k];
      y[k] = sin * xk + cos * y[k];
    }
  }
  return cosine;
}

// The columns at length 1; those of no length beside the first give way to axes left over.
function unitColumns(columns, S) {
  const found = [];
  columns.forEach((column, i) => {
    if (S[i] > 1e-14 * S[0]) return found.push(column.map(x => x / S[i]));
    const free = column.map((_, k) => 1 - found.reduce((sum, other) => sum + other[k] ** 2, 0));
    const axis = column.map((_, k) => Number(k === free.indexOf(Math.max(...free))));
    for (const other of [...found, ...found]) add(axis, -dot(axis, other), other);
    const length = norm(axis);
    return found.push(axis.map(x => x / length));
  });
  return found;
}
