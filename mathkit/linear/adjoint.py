"""Do push and pull belong to one map? The identity that tells."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mathkit.arguments import integer
from mathkit.linear.linear_map import LinearMap, check_map, random_rows


def check_adjoint(A: LinearMap, k: int = 4, seed: int = 0, tol: float | None = None) -> float:
    """Largest relative error of <A v, u> = <v, A^T u> over k random pairs; the identity makes
    push and pull one linear map and its transpose.

    v is random, u = A v / |A v| plus a random unit vector w with <A v, w> >= 0, so that a pull
    wrong by one part in a thousand shows.

    Args:
        A: the map.
        k: how many pairs, >= 1.
        seed: of the pairs.
        tol: largest error allowed; default the square root of the dtype's eps (float32 3e-4).

    Returns: the error, relative to the larger of |A v| |u| and |v| |A^T u|.
    Raises AssertionError beyond tol and for NaN or infinity, ValueError for what is no LinearMap.
    Costs k pushes and k pulls.

    >>> mk.check_adjoint(mk.matrix([[1, 2], [3, 4]])) < 1e-6
    True
    """
    check_map(A)
    k = integer(k, "k", 1)
    generator = torch.Generator().manual_seed(seed)
    V, W = (_unit(random_rows(A, k, shape, generator)) for shape in (A.in_shape, A.out_shape))
    AV = A.push(V)
    if not AV.isfinite().all():
        raise AssertionError("push gave NaN or infinity")
    ahead = _unit(AV)
    against = (ahead * W).reshape(k, -1).sum(1) < 0
    W[against] = -W[against]  # else u could be 0: of a map to one number w is 1 or -1
    U = ahead + W
    AtU = A.pull(U)
    v, u, Av, Atu = (X.reshape(k, -1).double() for X in (V, U, AV, AtU))
    gap = ((Av * u).sum(1) - (v * Atu).sum(1)).abs()
    size = torch.maximum(Av.norm(dim=1) * u.norm(dim=1), v.norm(dim=1) * Atu.norm(dim=1))
    error = float((gap / size.clamp_min(torch.finfo(size.dtype).tiny)).max())
    coarse = max(torch.finfo(X.dtype).eps for X in (V, AV, AtU))
    limit = tol if tol is not None else coarse**0.5
    if not error <= limit:
        raise AssertionError(
            f"<A v, u> and <v, A^T u> differ by {error:.1e} (at most {limit:.1e}): "
            "pull is not the transpose of push"
        )
    return error


def _unit(V: Tensor) -> Tensor:
    return F.normalize(V.reshape(len(V), -1), dim=1).reshape(V.shape)
