#!/bin/sh
# SciPy's svds(solver="propack") at tol=0 gives values to all digits and vectors to little more than half.
#
# A diagonal map with s_i = 1/sqrt(i), i = 1 ... 1000, float64, top 5. tol=0 means "machine precision",
# and the values are right to 1e-15. The vectors are not: max |A v - s u| / s_1 stays near 1e-9 to 1e-10,
# a hundred thousand times what ARPACK leaves, and no smaller tol changes a digit of it or adds a pass.
# Nothing warns. The likely cause: SciPy hands PROPACK the square of tol, and PROPACK stops by bounds on
# the values that it refines by their gaps: those fall with the square of the residual, so that a value
# is finished when its vector is half-way. Who goes on with the vectors (projections, derivatives,
# angles between subspaces) sees nine digits less the gap where sixteen were asked for.
#
# Seen with scipy 1.17.1, numpy 2.4.6, Python 3.11 (passes: products with A and A^T):
#   propack tol=1e-06  values off by 2e-14  residual 1e-07   43 passes
#   propack tol=1e-12  values off by 1e-15  residual 9e-10   47 passes
#   propack tol=0      values off by 1e-15  residual 9e-10   47 passes
#   arpack  tol=1e-06  values off by 6e-16  residual 5e-15   71 passes
#   arpack  tol=1e-12  values off by 6e-16  residual 2e-15  101 passes
#   arpack  tol=0      values off by 6e-16  residual 7e-15   73 passes
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check scipy==1.17.1 numpy==2.4.6
"$folder/env/bin/python" -W error - <<'PY'
import sys

import numpy as np
import scipy
from scipy.sparse.linalg import LinearOperator, svds

print("scipy", scipy.__version__, "numpy", np.__version__)
n, k = 1000, 5
exact = 1 / np.sqrt(1 + np.arange(n))
worst = {}
for solver in ("propack", "arpack"):
    for tol in (1e-6, 1e-12, 0):
        off = left = most = 0
        for seed in range(4):
            passes = 0

            def product(x):
                global passes
                passes += 1
                return exact * x.ravel()

            A = LinearOperator((n, n), matvec=product, rmatvec=product, dtype=float)
            start = np.random.default_rng(seed).standard_normal(n)
            u, s, vt = svds(A, k, solver=solver, tol=tol, v0=start, maxiter=20000)
            off = max(off, abs(np.sort(s)[::-1] - exact[:k]).max())
            for i in range(k):
                left = max(left, np.linalg.norm(exact * vt[i] - s[i] * u[:, i]),
                           np.linalg.norm(exact * u[:, i] - s[i] * vt[i]))
            most = max(most, passes)
        worst[solver, tol] = off, left
        print(f"{solver:7} tol={tol:<6} values off by {off:.0e}  residual {left:.0e} {most:4} passes")
values, vectors = worst["propack", 0]
sys.exit(0 if values < 1e-13 and vectors > 1e-11 and worst["arpack", 0][1] < 1e-13 else 1)
PY
