"""Subspaces as points: angles, distance and mean, leaving one out, carrying a direction across.

A subspace is given by rows V (k, *shape) that span it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from mathkit.arguments import integer, tensor, told

LIFTS = ("isometry", "pinv")


def principal_angles(V1: Tensor, V2: Tensor) -> Tensor:
    """Principal angles between the spans of two sets of rows, ascending, in radians [0, pi/2].

    cos theta_i = i-th singular value of Q1 Q2^T, Q orthonormal rows of each span; below pi/4 the
    sine form, singular values of Q2 - Q2 Q1^T Q1, keeps small angles exact.

    Args:
        V1: rows (k1, *shape), linearly independent.
        V2: rows (k2, *shape).

    Returns: (min(k1, k2),), float64.
    Raises ValueError on other shapes, NaN, or rows that are linearly dependent.
    Cost: no pass.
    Source: Bjorck & Golub 1973.

    >>> mk.linear.subspaces.principal_angles(torch.eye(3)[:1], torch.tensor([[1.0, 1.0, 0.0]]))
    tensor([0.7854], dtype=torch.float64)
    """
    for V, name in ((V1, "V1"), (V2, "V2")):
        _check_rows(V, name)
    if V1.shape[1:] != V2.shape[1:]:
        raise ValueError(f"rows of one shape, got {tuple(V1.shape)} and {tuple(V2.shape)}")
    Q1, Q2 = sorted((_orthonormal(V1), _orthonormal(V2)), key=len, reverse=True)
    cosines = torch.linalg.svdvals(Q1 @ Q2.T).clamp(0, 1)
    sines = torch.linalg.svdvals(Q2 - (Q2 @ Q1.T) @ Q1).clamp(0, 1).flip(0)
    return torch.where(cosines**2 < 0.5, cosines.acos(), sines.asin())


def distance(V1: Tensor, V2: Tensor) -> Tensor:
    """Geodesic distance on the Grassmannian, sqrt(sum_i theta_i^2), a float64 scalar.

    Args:
        V1: rows (k, *shape) that span a subspace.
        V2: rows (k, *shape), the same k.

    Returns: between 0 and sqrt(k) pi / 2.
    Raises ValueError for unequal k, and as `principal_angles` does.
    Cost: no pass.
    Source: D_geo of 2302.12469.

    >>> float(mk.linear.subspaces.distance(torch.eye(4)[:2], torch.eye(4)[1:3]))  # one right angle
    1.5707963267948966
    """
    if len(V1) != len(V2):
        raise ValueError(f"subspaces of one dimension, got {len(V1)} and {len(V2)}")
    return principal_angles(V1, V2).norm()


def project_out(V: Tensor, N: Tensor) -> Tensor:
    """v - N^T N v for each row: onto the null space of the map whose top right singular vectors are
    N.

    Args:
        V: rows (k, *shape), finite.
        N: orthonormal rows (r, *shape), as `mk.svd(A, r).V`.

    Returns: (k, *shape), of V's dtype.
    Raises ValueError if shapes differ, V is not finite or N is not orthonormal.
    Cost: no pass.
    Source: LOCO Edit, 2409.02374.

    >>> mk.project_out(torch.tensor([[1.0, 2.0, 3.0]]), torch.eye(3)[:1])
    tensor([[0., 2., 3.]])
    """
    tensor(V, "V", "(k, *shape)"), tensor(N, "N", "(r, *shape), as svd(...).V")
    if V.ndim != N.ndim or V.shape[1:] != N.shape[1:]:
        hint = ": give one direction as v[None]" if V.shape == N.shape[1:] else ""
        raise ValueError(
            f"V and N are rows of one shape, got {tuple(V.shape)}, {tuple(N.shape)}{hint}"
        )
    if not V.isfinite().all():
        raise ValueError("V holds NaN or infinity")
    v, n = V.flatten(1), N.flatten(1).to(V)
    error = float((n @ n.T - torch.eye(len(n)).to(n)).abs().max()) if len(n) else 0.0
    if not error <= 1e-3:
        raise ValueError(f"N needs orthonormal rows, N N^T misses the identity by {error:.1e}")
    return (v - (v @ n.T) @ n).reshape(V.shape)


def unit(V: Tensor) -> Tensor:
    """v / |v| for each row: the direction alone.

    Args:
        V: rows (k, *shape), each of which has a length.

    Returns: (k, *shape).
    Raises ValueError where a row is zero or not finite.
    Cost: no pass.

    >>> mk.linear.subspaces.unit(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 1.0000]])
    """
    size = tensor(V, "V", "(k, *shape)").flatten(1).norm(dim=1)
    if not (size.isfinite() & (size > 0)).all():
        raise ValueError("a row of V is zero or not finite: it points nowhere")
    return V / size.view(-1, *[1] * (V.ndim - 1))


def mean_subspace(bases: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The eigenvectors of the mean projector (1/N) sum_s Q_s^T Q_s, and its eigenvalues.

    Q_s: orthonormal rows of the span of the s-th basis. Unlike the intrinsic mean this is unique
    where eigenvalues differ.

    Args:
        bases: N sets of rows (k, *shape).

    Returns: directions (k, *shape), orthonormal, and shares (k,) in [0, 1], largest first: the mean
    squared length of the direction's projection on a span, 1 if every span holds it, k / m by
    chance.
    Raises ValueError on other shapes.
    Cost: no pass.

    >>> one, other = torch.eye(3)[:2], torch.eye(3)[1:]
    >>> mk.linear.subspaces.mean_subspace([one, other])[1]  # e_2 is in both
    tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    _check_alike(bases)
    Q = torch.cat([_orthonormal(V) for V in bases]) / len(bases) ** 0.5
    _, s, V = torch.linalg.svd(Q, full_matrices=False)
    k = len(bases[0])
    return V[:k].reshape(bases[0].shape).to(bases[0]), s[:k] ** 2


def matched_average(bases: Sequence[Tensor], rounds: int = 10) -> tuple[Tensor, Tensor]:
    """Directions of several bases averaged one with one, and how well they agree.

    Starting from the first, the rows of each basis are matched with the current directions so that
    sum |cos| is largest (Hungarian algorithm), signs are turned alike, and the mean is brought to
    length 1, until nothing changes.

    Args:
        bases: N sets of orthonormal rows (k, *shape).
        rounds: at most.

    Returns: directions (k, *shape), not orthogonal as a rule, and their agreement (k,), the mean
    |cos| of a direction with its matches.
    Raises ValueError on other shapes.
    Cost: no pass.
    Source: the global directions of 2302.12469, claimed near t = T only.

    >>> mean, agreement = mk.linear.subspaces.matched_average([torch.eye(3), -torch.eye(3).flip(0)])
    >>> agreement
    tensor([1., 1., 1.], dtype=torch.float64)
    """
    from scipy.optimize import linear_sum_assignment

    _check_alike(bases)
    rows = torch.stack([V.flatten(1).double() for V in bases])
    mean, agreement = rows[0], torch.ones(len(rows[0]), dtype=torch.float64)
    for _ in range(rounds):
        turned = []
        for V in rows:
            cosine = mean @ V.T
            at = torch.tensor(linear_sum_assignment(-cosine.abs().cpu().numpy())[1])
            turned.append(V[at] * torch.where(cosine[range(len(at)), at] < 0, -1.0, 1.0)[:, None])
        stacked = torch.stack(turned)
        after = torch.nn.functional.normalize(stacked.mean(0), dim=1)
        agreement = (stacked * after).sum(2).abs().mean(0)
        if torch.allclose(after, mean, atol=1e-12):
            break
        mean = after
    return mean.reshape(bases[0].shape).to(bases[0]), agreement


def transport(
    r0: Iterable[Tensor], r1: Iterable[Tensor], i: int, lift: str = "isometry"
) -> tuple[Tensor, float]:
    """Direction i of one sample carried to another: v, and the share of it that is kept.

    u_0 = U_0[i] is projected on the span of U_1, c = U_1 u_0, and lifted back: "isometry" V_1^T c
    (a partial isometry between the spans, not parallel transport), or "pinv" V_1^T S_1^-1 c, whose
    push points along the projected u_0.

    Args:
        r0: U, S, V as `mk.svd` gives them at the one sample.
        r1: the same at the other.
        i: which direction, 0 ... k - 1.
        lift: "isometry" or "pinv".

    Returns: v (*in), of length 1, and kept = |c|^2 in [0, 1], k / m by chance.
    Raises ValueError for another lift or i, shapes that differ, or kept = 0; warns where kept is
    below 5 times chance, or halfway from chance to 1 where that is less.
    Cost: no pass.
    Source: 2302.12469, with "isometry".

    >>> r = mk.svd(mk.matrix([[2.0, 0.0], [0.0, 1.0]]), 2)
    >>> v, kept = mk.transport(r, r, 1)  # to itself: nothing changes
    >>> print(v.abs().tolist(), round(kept, 4))
    [0.0, 1.0] 1.0
    """
    U0, r1 = _triplets(r0)[0], _triplets(r1)
    i = integer(i, "i", 0, len(U0) - 1)
    if U0.shape[1:] != r1[0].shape[1:]:
        raise ValueError(f"U of one shape, got {tuple(U0.shape)} and {tuple(r1[0].shape)}")
    v, u = carry(U0[i], r1, lift)
    kept, chance = float(u.square().sum()), len(r1[0]) / r1[0][0].numel()
    if chance < 1 and kept < min(5 * chance, (1 + chance) / 2):
        warnings.warn(f"{kept:.2g} of the direction is kept, chance is {chance:.2g}", stacklevel=2)
    return v, kept


def carry(u: Tensor, r: Iterable[Tensor], lift: str = "isometry") -> tuple[Tensor, Tensor]:
    """u (*out) projected on the span of U, lifted to v (*in) of length 1: (v, the projection).

    r: U, S, V at the point where v is wanted; lift and errors as in `transport`.
    """
    U, S, V = r
    if lift not in LIFTS:
        raise ValueError(f"lift is {' or '.join(LIFTS)}, got {lift!r}")
    c = U.flatten(1) @ u.flatten().to(U)
    if not float(c.norm()) > 1e-6 * float(u.norm()):
        raise ValueError("the other span holds nothing of the direction")
    if lift == "pinv":  # past the numerical rank S is 0: nothing there can be lifted
        v = torch.where(S > 0, c / S, 0.0) @ V.flatten(1)
    else:
        v = c @ V.flatten(1)
    if not float(v.norm()) > 0:
        raise ValueError("no v is stretched to the direction's projection: S is 0 where it lies")
    v = v.reshape(V.shape[1:])
    return v / v.norm(), (c @ U.flatten(1)).reshape(u.shape)


def _triplets(r: Any) -> tuple[Tensor, Tensor, Tensor]:
    parts = tuple(r) if isinstance(r, Iterable) and not isinstance(r, Tensor) else ()
    if len(parts) != 3 or not all(isinstance(part, Tensor) for part in parts):
        raise ValueError(f"expected U, S, V as mk.svd(A, k) gives them, got {told(r)}")
    return parts


def _check_alike(bases: Sequence[Tensor]) -> None:
    if not bases or any(V.shape != bases[0].shape for V in bases):
        raise ValueError(f"bases of one shape, got {sorted({tuple(V.shape) for V in bases})}")


def _check_rows(V: Tensor, name: str) -> None:
    if tensor(V, name, "of rows (k, *shape)").ndim < 2:
        raise ValueError(f"{name} is (k, *shape), got {tuple(V.shape)}: one is {name}[None]")


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


def overlap(a: Tensor, b: Tensor) -> float:
    """How much two subspaces share, |A B^T|_F^2 / k for orthonormal rows.

    Args:
        a: orthonormal rows A (k, *in).
        b: orthonormal rows B (k, *in).

    Returns: 1 for equal spans, 0 for orthogonal ones, k / n by chance.
    Cost: no pass.

    >>> mk.linear.subspaces.overlap(torch.eye(4)[:2], torch.eye(4)[1:3])
    0.5
    """
    return float((a.flatten(1) @ b.flatten(1).T).square().sum() / len(a))


def tangent_share(V: Tensor, J: Tensor) -> tuple[float, float]:
    """How much of a tangent space the span of some directions holds, plainly and by energy.

    Plain: the mean squared cosine |Q V^T|_F^2 / j, Q orthonormal rows of J's span. By energy:
    sum_j |V J_j|^2 / sum_j |J_j|^2.

    Args:
        V: orthonormal rows (k, *in).
        J: tangent vectors (j, *in).

    Returns: both shares, in [0, 1]; k / n by chance.
    Raises ValueError for tangent vectors that are linearly dependent, or hold NaN.
    Cost: no pass.

    >>> J = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> mk.linear.subspaces.tangent_share(torch.eye(3)[:1], J)
    (0.5, 0.9)
    """
    v, j = V.flatten(1).double(), J.flatten(1).to(V.device).double()
    Q = _orthonormal(j)
    plain = (Q @ v.T).square().sum() / len(Q)
    return float(plain), float((j @ v.T).square().sum() / j.square().sum())
