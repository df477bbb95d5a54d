"""The ruler that a linear map pulls back: lengths and angles of directions as the map sees them.

<v, w>_A = <A v, A w> = v^T A^T A w: a dot product where A is injective; otherwise a pseudo-metric,
for which a direction in the kernel of A has length 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mathkit.linear.jacobian import jacobian
from mathkit.linear.map import LinearMap
from mathkit.linear.subspaces import distance
from mathkit.linear.svd import svd

BLIND = 1e-6  # cosines mean nothing where A shortens one of two directions this much more


def gram(A: LinearMap, V: Tensor) -> Tensor:
    """G_ij = <A v_i, A v_j> for rows V (k, *in_shape): (k, k), symmetric, no negative eigenvalue.

    The matrix of the pulled-back dot product on the span of the rows: for w = sum_i c_i v_i,
    |A w|^2 = c^T G c. float64. Raises ValueError for rows of another shape. Cost: k pushes.
    Source: eq. 1 of 2302.12469, v^T J^T J v.
    """
    pushed = A.push(V).reshape(len(V), -1).double()
    G = pushed @ pushed.T
    return (G + G.T) / 2


def length(A: LinearMap, V: Tensor) -> Tensor:
    """|A v_i| for rows V (k, *in_shape): (k,), float64. Cost: k pushes."""
    return A.push(V).reshape(len(V), -1).double().norm(dim=1)


def angle(A: LinearMap, v: Tensor, w: Tensor) -> float:
    """The angle between two directions (*in_shape) as A sees them, in radians, in [0, pi].

    Between A v and A w, by atan2(|a - b|, |a + b|) of their unit vectors a, b, which keeps small
    angles exact. Raises ValueError where A shortens one of them to less than a millionth of the
    other: what A cannot see has no angle. Cost: 2 pushes.
    """
    a, b = A.push(torch.stack([v, w])).reshape(2, -1).double()
    short, long = sorted((float(a.norm()), float(b.norm())))
    if not short > BLIND * long:
        raise ValueError(
            f"the map sends one of the two to length {short:.1e}, the other to {long:.1e}: "
            "a direction in its kernel has no angle"
        )
    a, b = a / a.norm(), b / b.norm()
    return float(2 * torch.atan2((a - b).norm(), (a + b).norm()))


def curvedness(
    f: Callable[[Tensor], Tensor], path: Tensor, k: int, tol: float = 1e-3, seed: int = 0
) -> Tensor:
    """How much the image of f turns between the points of a path (L + 1, *in): (L,), float64.

    The Grassmann distance of the spans of the top k left singular vectors of J_f at successive
    points, between 0 and sqrt(k) pi / 2; the sum is the path's semantic length. It has a noise
    floor: two seeds of the solver at one point. Raises as `svd` does. Cost: L + 1 `svd`s of rank k.
    Source: eq. 8 and table 1 of 2302.12469 (there L = 30, k = 50).
    """
    spans = [svd(jacobian(f, x[None]), k, tol=tol, seed=seed).U for x in path]
    return torch.stack([distance(a, b) for a, b in zip(spans, spans[1:], strict=False)])
