"use strict";

// The singular values of a matrix small enough to write down, by one-sided Jacobi: its columns are
// turned in pairs until all stand at right angles; then their lengths are the singular values.

// H = P S Q^T of a matrix given as n columns of at least n numbers. P and Q come as lists of
// columns, S falling. Where S is 0, P goes on with any orthonormal columns.
// Source: Hestenes 1958; Demmel & Veselic 1992 for its accuracy.
function smallSVD(columns) {
  const SWEEPS = 60, n = columns.length;
  const right = 2 ** -52 * Math.sqrt(n);
  const nothing = 2 ** -104 * columns.reduce((sum, column) => sum + dot(column, column), 0);
  const P = columns.map(column => Float64Array.from(column));
  const Q = P.map((_, i) => Float64Array.from(P, (_, j) => Number(i === j)));
  for (let sweep = 0, skew = true; skew && sweep < SWEEPS; sweep++) {
    skew = false;
    for (let i = 0; i < n; i++) {
      for (let j = i + 1; j < n; j++) skew = turned(P, Q, [i, j], right, nothing) || skew;
    }
  }
  const lengths = P.map(norm);
  const order = P.map((_, i) => i).sort((i, j) => lengths[j] - lengths[i]);
  const S = order.map(i => lengths[i]);
  return {P: unitColumns(order.map(i => P[i]), S), S, Q: order.map(i => Q[i])};
}

// Columns i and j turned to a right angle, in P and in Q. False where its cosine is below `right`, or
// their product is nothing beside the matrix.
function turned(P, Q, [i, j], right, nothing) {
  const a = dot(P[i], P[i]), b = dot(P[j], P[j]), c = dot(P[i], P[j]);
  if (!(Math.abs(c) > Math.max(right * Math.sqrt(a * b), nothing))) return false;
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
  return true;
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
