"""Subspaces as points: the angles between two spans, their distance, and leaving one out.

A subspace is given by rows V (k, *shape) that span it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def principal_angles(V1: Tensor, V2: Tensor) -> Tensor:
    """Principal angles between the spans of two sets of rows, ascending, in radians [0, pi/2].

    cos theta_i = i-th singular value of Q1 Q2^T, with Q orthonormal rows of each span; below pi/4
    the sine form, singular values of Q2 - Q2 Q1^T Q1, keeps small angles exact. V1 (k1, *shape),
    V2 (k2, *shape) -> (min(k1, k2),), float64. Raises ValueError on other shapes, NaN or rows
    that are linearly dependent. Source: Bjorck & Golub 1973.
    """
    if V1.shape[1:] != V2.shape[1:]:
        raise ValueError(f"rows of one shape, got {tuple(V1.shape)} and {tuple(V2.shape)}")
    Q1, Q2 = sorted((_orthonormal(V1), _orthonormal(V2)), key=len, reverse=True)
    cosines = torch.linalg.svdvals(Q1 @ Q2.T).clamp(0, 1)
    sines = torch.linalg.svdvals(Q2 - (Q2 @ Q1.T) @ Q1).clamp(0, 1).flip(0)
    return torch.where(cosines**2 < 0.5, cosines.acos(), sines.asin())


def distance(V1: Tensor, V2: Tensor) -> Tensor:
    """Geodesic distance on the Grassmannian, sqrt(sum_i theta_i^2), a float64 scalar.

    V1, V2 (k, *shape): the same k, else ValueError. At most sqrt(k) pi / 2.
    Source: D_geo of 2302.12469.
    """
    if len(V1) != len(V2):
        raise ValueError(f"subspaces of one dimension, got {len(V1)} and {len(V2)}")
    return principal_angles(V1, V2).norm()


def project_out(V: Tensor, N: Tensor) -> Tensor:
    """v - N^T N v for each row: onto the null space of the map whose top right singular vectors
    are N.

    V (k, *shape), N (r, *shape) orthonormal -> (k, *shape), V's dtype. Raises ValueError if shapes
    differ or N is not orthonormal. Source: LOCO Edit, 2409.02374.
    """
    if V.ndim != N.ndim or V.shape[1:] != N.shape[1:]:
        hint = ": give one direction as v[None]" if V.shape == N.shape[1:] else ""
        raise ValueError(
            f"V and N are rows of one shape, got {tuple(V.shape)}, {tuple(N.shape)}{hint}"
        )
    v, n = V.flatten(1), N.flatten(1).to(V)
    error = float((n @ n.T - torch.eye(len(n)).to(n)).abs().max()) if len(n) else 0.0
    if not error <= 1e-3:
        raise ValueError(f"N needs orthonormal rows, N N^T misses the identity by {error:.1e}")
    return (v - (v @ n.T) @ n).reshape(V.shape)


def _orthonormal(V: Tensor) -> Tensor:
    """Orthonormal float64 rows with the span of V."""
    rows = V.detach().flatten(1).double()
    if not rows.isfinite().all():
        raise ValueError("a subspace holds NaN or infinity")
    if not 1 <= len(rows) <= rows.shape[1]:
        raise ValueError(f"a subspace is 1 ... {rows.shape[1]} rows here, got {len(rows)}")
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    Q, R = torch.linalg.qr(rows.T)
    if R.diagonal().abs().min() < 1e-10:
        raise ValueError("the rows of a subspace are linearly dependent")
    return Q.T
