"""The ruler that a linear map pulls back: lengths and angles of directions as the map sees them.

<v, w>_A = <A v, A w> = v^T A^T A w: a dot product where A is injective; otherwise a pseudo-metric,
for which a direction in the kernel of A has length 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mathkit.linear.jacobian import jacobian
from mathkit.linear.linear_map import LinearMap
from mathkit.linear.subspaces import distance
from mathkit.linear.svd import svd

BLIND = 1e-6  # cosines mean nothing where A shortens one of two directions this much more


def gram(A: LinearMap, V: Tensor) -> Tensor:
    """G_ij = <A v_i, A v_j>: the pulled-back dot product on the span of some directions.

    For w = sum_i c_i v_i, |A w|^2 = c^T G c.

    Args:
        A: the map.
        V: rows (k, *in_shape).

    Returns: (k, k), float64, symmetric, no negative eigenvalue.
    Raises ValueError for rows of another shape.
    Cost: k pushes.
    Source: eq. 1 of 2302.12469, v^T J^T J v.

    >>> mk.linear.metric.gram(mk.matrix([[1.0, 1.0], [0.0, 2.0]]), torch.eye(2))
    tensor([[1., 1.],
            [1., 5.]], dtype=torch.float64)
    """
    pushed = A.push(V).reshape(len(V), -1).double()
    G = pushed @ pushed.T
    return (G + G.T) / 2


def length(A: LinearMap, V: Tensor) -> Tensor:
    """|A v_i|: how long directions are as the map sees them.

    Args:
        A: the map.
        V: rows (k, *in_shape).

    Returns: (k,), float64.
    Raises ValueError for rows of another shape.
    Cost: k pushes.

    >>> mk.linear.metric.length(mk.matrix([[3.0, 0.0], [4.0, 1.0]]), torch.eye(2))
    tensor([5., 1.], dtype=torch.float64)
    """
    return A.push(V).reshape(len(V), -1).double().norm(dim=1)


def angle(A: LinearMap, v: Tensor, w: Tensor) -> float:
    """The angle between two directions as A sees them: that between A v and A w.

    2 atan2(|a - b|, |a + b|) of the unit vectors a, b, which keeps small angles exact.

    Args:
        A: the map.
        v: a direction (*in_shape).
        w: another.

    Returns: radians, in [0, pi].
    Raises ValueError for another shape, and where A shortens one of them to less than a millionth
    of the other: what A cannot see has no angle.
    Cost: 2 pushes.
    Source: Kahan 2006, for the formula.

    >>> A = mk.matrix([[1.0, 1.0], [0.0, 1.0]])
    >>> round(mk.linear.metric.angle(A, *torch.eye(2)), 4)  # pi / 4: a shear
    0.7854
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
    """How much the image of f turns between the points of a path.

    The Grassmann distance of the spans of the top k left singular vectors of J_f at successive
    points; the sum is the path's semantic length. It has a noise floor: two seeds of the solver at
    one point.

    Args:
        f: the map, (B, *in) -> (B, *out).
        path: points (L + 1, *in).
        k: directions of each span.
        tol: of `mk.svd`.
        seed: of `mk.svd`.

    Returns: (L,), float64, each between 0 and sqrt(k) pi / 2.
    Raises as `mk.svd` does.
    Cost: L + 1 `mk.svd`s of rank k.
    Source: eq. 8 and table 1 of 2302.12469 (there L = 30, k = 50).

    >>> straight = mk.linear.metric.curvedness(lambda x: x @ torch.eye(3), torch.rand(3, 3), 3)
    >>> bool(straight.max() < 1e-3)
    True
    """
    spans = [svd(jacobian(f, x[None]), k, tol=tol, seed=seed).U for x in path]
    return torch.stack([distance(a, b) for a, b in zip(spans, spans[1:], strict=False)])
