"""A real 2 x 2 matrix in three acts: it turns, stretches along the axes, and turns again."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mathkit.linear.arrays import matrix
from mathkit.linear.svd import svd

Factors = tuple[Tensor, Tensor, Tensor]


def factors(M: Tensor) -> Factors:
    """U, s, V with M = U^T diag(s) V, U and V rotations; where M mirrors, s_2 is negative.

    Args:
        M: (2, 2).

    Returns: (2, 2), (2,), (2, 2), of M's dtype.
    Raises ValueError for another shape.
    """
    if M.shape != (2, 2):
        raise ValueError(f"rotate_stretch_rotate takes a matrix (2, 2), got {tuple(M.shape)}")
    U, _, V = svd(matrix(M), 2)
    for rows in (U, V):
        rows[1] *= torch.linalg.det(rows).sign()
    return U, torch.diag(U @ M @ V.T), V


def acted(found: Factors, at: float) -> Tensor:
    """The matrix that has acted by time `at` in [0, 3]: I at 0, V at 1, diag(s) V at 2, M at 3."""
    U, s, V = found
    first, second, third = (min(1.0, max(0.0, at - begun)) for begun in range(3))
    return _turned(U.T, third) @ torch.diag(1 + second * (s - 1)) @ _turned(V, first)


def _turned(R: Tensor, share: float) -> Tensor:
    """A share of the rotation R."""
    angle = share * math.atan2(float(R[1, 0]), float(R[0, 0]))
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s], [s, c]], dtype=R.dtype)
