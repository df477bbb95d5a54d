"""Singular triplets: what every solver returns, and how it says what it could not do."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mathkit.arguments import integer, number
from mathkit.linear.linear_map import LinearMap, Passes, check_map


class NotConverged(RuntimeWarning):
    """The singular triplets are not as good as was asked: `SVD.problem` says why."""


class CloseValues(RuntimeWarning):
    """s_k and s_(k+1) are too close for the top k directions to be one subspace."""


@dataclasses.dataclass(frozen=True, eq=False)
class SVD:
    """Top singular triplets of a map; unpacks as U, S, V.

    A v_i = s_i u_i, A^T u_i = s_i v_i, s_1 >= s_2 >= ...

    Args:
        U: (k, *out_shape), orthonormal rows.
        S: (k,), falling, >= 0.
        V: (k, *in_shape), orthonormal rows.
        residuals: (k,), max(|A^T u_i - s_i v_i|, |A v_i - s_i u_i|), in units of S.
        passes: directions pushed and pulled to get here.
        gap: (s_k - s_(k+1)) / s_1, or None where s_(k+1) is not known.
        angle_bound: residual of the whole block / (s_1 gap), or None: a bound on the sine of the
            largest angle between the found and the true subspace (Wedin 1972), unless a value was
            missed. A search does not prove that none was.
        converged: whether all residuals are at most tol * s_1 and nothing was left undone.
        problem: "", or the sentence that says what was.
    """

    U: Tensor
    S: Tensor
    V: Tensor
    residuals: Tensor
    passes: Passes
    gap: float | None = None
    angle_bound: float | None = None
    converged: bool = True
    problem: str = ""

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.U, self.S, self.V))

    def __repr__(self) -> str:
        values = ", ".join(f"{s:.4g}" for s in self.S[:6].tolist())
        worst = float(self.residuals.max() / self.S[0]) if self.S[0] > 0 else 0.0
        said = [
            f"SVD of k = {len(self.S)}: S = [{values}{', ...' if len(self.S) > 6 else ''}]",
            f"U {tuple(self.U.shape)}, V {tuple(self.V.shape)}, {self.S.dtype} on {self.S.device}",
            f"residuals at most {worst:.1e} s_1 after {self.passes.push} pushes and "
            f"{self.passes.pull} pulls",
        ]
        if self.gap is not None and self.angle_bound is not None:
            said.append(
                f"gap {self.gap:.1e} s_1; sine of the angle to the true subspace at most "
                f"{self.angle_bound:.1e}, unless a value was missed"
            )
        return "\n  ".join([*said, "converged" if self.converged else self.problem])


@contextmanager
def any_of_equals() -> Iterator[None]:
    """Within it, or in a function decorated with it, `svd` does not warn that s_k and s_(k+1) are
    close: of directions that are stretched alike any will do, or a noise floor is measured."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CloseValues)
        yield


def warn(message: str, kind: type[Warning], level: int = 4) -> None:
    warnings.warn(message, kind, stacklevel=level)


def checked_sizes(A: LinearMap, k: int, tol: float, seed: int) -> tuple[int, int]:
    check_map(A)
    n, m = math.prod(A.in_shape), math.prod(A.out_shape)
    if not hasattr(k, "__index__") or isinstance(k, bool) or not 1 <= k <= min(m, n):
        raise ValueError(f"k counts directions: 1 ... min(m, n) = {min(m, n)} here, got {k!r}")
    if number(tol, "tol, a share of s_1,", 0, 1) == 1:
        raise ValueError("tol is a share of s_1 in [0, 1), got 1")
    integer(seed, "seed")
    return n, m


def orthonormal(rows: Tensor) -> Tensor:
    return torch.linalg.qr(rows.T).Q.T


def finished(A: LinearMap, U: Tensor, S: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Signs by the largest entry of V, zeros past the numerical rank, shapes of A."""
    k, size = len(S), max(U.shape[1], V.shape[1])
    low, high = V.aminmax(dim=1, keepdim=True)
    sign = torch.where(-low > high, -1.0, 1.0).to(V)
    S = torch.where(S > 4 * size**0.5 * torch.finfo(S.dtype).eps * S[0], S, 0.0)
    return (sign * U).reshape(k, *A.out_shape), S, (sign * V).reshape(k, *A.in_shape)
