"""Linear maps of numbers that are there: a matrix, a mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mathkit.arguments import told
from mathkit.linear.linear_map import BATCH, LinearMap


def matrix(M: Any) -> LinearMap:
    """The map v -> M v of a real matrix, its pull u -> M^T u.

    Args:
        M: (m, n), a tensor, an array, or a list of rows; copied. Integers become the default
            float type.

    Returns: a LinearMap, rows (k, n) -> (k, m), of M's dtype and device.
    Raises ValueError unless M is two-dimensional, not empty, real and finite.

    >>> A = mk.matrix([[1, 2], [3, 4]])
    >>> A @ torch.tensor([1.0, -1.0])
    tensor([-1., -1.])
    >>> A.passes
    Passes(push=1, pull=0)
    """
    takes = "a real finite (m, n) array"
    M = _copied(M, "matrix", takes)
    if M.ndim != 2:
        raise ValueError(f"matrix takes {takes}, got {told(M)}")
    M = M if M.is_floating_point() else M.to(torch.get_default_dtype())
    m, n = M.shape
    A = LinearMap(
        lambda V: V @ M.T.to(V.dtype), lambda U: U @ M.to(U.dtype), n, m, M.dtype, M.device
    )
    A.batch = BATCH
    return A


def mask(w: Any) -> LinearMap:
    """The diagonal map v -> w * v on tensors of w's shape, its own transpose.

    With w in {0, 1}, `mask(w) @ A` keeps the part of the output where w = 1.

    Args:
        w: bool or real weights, of the shape of one direction; copied.

    Returns: a LinearMap, rows (k, *w.shape) -> (k, *w.shape), of w's dtype, or of none where w is
    bool or integer: then directions keep their own. They also keep their device.
    Raises ValueError unless w is real, finite and not empty.

    >>> mk.mask(torch.tensor([0.5, 2.0])).push(torch.tensor([[1, 1], [0, 3]]))
    tensor([[0.5000, 2.0000],
            [0.0000, 6.0000]])
    """
    w = _copied(w, "mask", "bool or finite real weights, of the shape of one direction")

    def scale(V: Tensor) -> Tensor:
        return V * w.to(V.device)

    D = LinearMap(scale, scale, w.shape, w.shape, w.dtype if w.is_floating_point() else None)
    D.batch = BATCH
    return D


def _copied(M: Any, name: str, takes: str) -> Tensor:
    """A copy of M as a real and finite tensor that is not empty."""
    try:
        copied = _tensor(M)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} takes {takes}: {error}") from error
    if copied.is_complex() or 0 in copied.shape or not copied.isfinite().all():
        raise ValueError(f"{name} takes {takes}, got {told(copied)}")
    return copied


def _tensor(M: Any) -> Tensor:
    if isinstance(M, list | tuple) and any(hasattr(row, "__array__") for row in M):
        return torch.stack([_tensor(row) for row in M])
    if hasattr(M, "__array__") and not isinstance(M, Tensor):
        M = np.array(M, order="C")  # torch takes no negative strides
    return torch.as_tensor(M).detach().to_dense().clone()
