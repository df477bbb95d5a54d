"""Subspaces as points: angles, distance and mean, leaving one out, carrying a direction across.

A subspace is given by rows V (k, *shape) that span it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

LIFTS = ("isometry", "pinv")


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


def mean_subspace(bases: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The eigenvectors of the mean projector (1/N) sum_s Q_s^T Q_s, and its eigenvalues.

    bases: N sets of rows (k, *shape), Q_s orthonormal rows of their spans. Returns directions
    (k, *shape), orthonormal, and shares (k,) in [0, 1], largest first: the mean squared length of
    the direction's projection on a span, 1 if every span holds it, k / m by chance. Unlike the
    intrinsic mean this is unique where shares differ. Raises ValueError on other shapes.
    """
    if not bases or any(V.shape != bases[0].shape for V in bases):
        raise ValueError(f"bases of one shape, got {sorted({tuple(V.shape) for V in bases})}")
    Q = torch.cat([_orthonormal(V) for V in bases]) / len(bases) ** 0.5
    _, s, V = torch.linalg.svd(Q, full_matrices=False)
    k = len(bases[0])
    return V[:k].reshape(bases[0].shape).to(bases[0]), s[:k] ** 2


def matched_average(bases: Sequence[Tensor], rounds: int = 10) -> tuple[Tensor, Tensor]:
    """Directions of several bases averaged one with one: (k, *shape), and their agreement (k,).

    bases: N sets of orthonormal rows (k, *shape). Starting from the first, the rows of each are
    matched with the current directions so that sum |cos| is largest (Hungarian algorithm), signs
    are turned alike, and the mean is brought to length 1, until nothing changes or `rounds` are
    done. agreement: mean |cos| of a direction with its matches. The directions need not be
    orthogonal. Source: the global directions of 2302.12469, claimed near t = T only.
    """
    from scipy.optimize import linear_sum_assignment

    if not bases or any(V.shape != bases[0].shape for V in bases):
        raise ValueError(f"bases of one shape, got {sorted({tuple(V.shape) for V in bases})}")
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
    """Direction i of one sample carried to another: (v of shape (*in), kept).

    r0, r1: U, S, V as `mk.svd` gives them at the two samples. u_0 = U_0[i] is projected on the
    span of U_1, c = U_1 u_0, and lifted back: "isometry" V_1^T c (2302.12469; a partial isometry
    between the spans, not parallel transport), or "pinv" V_1^T S_1^-1 c, whose push points along
    the projected u_0. v has length 1. kept = |c|^2, the share of u_0 that the other span holds
    (k / m by chance); below 5 times chance, or halfway from chance to 1 where that is less, a
    warning. Raises ValueError for another lift, i or
    shapes that differ, or kept = 0.
    """
    U0, r1 = next(iter(r0)), tuple(r1)
    if U0.shape[1:] != r1[0].shape[1:] or not 0 <= i < len(U0):
        raise ValueError(
            f"U of one shape and i in 0 ... {len(U0) - 1}, "
            f"got {tuple(U0.shape)}, {tuple(r1[0].shape)}, {i}"
        )
    v, u = carry(U0[i], r1, lift)
    kept, chance = float(u.square().sum()), len(r1[0]) / r1[0][0].numel()
    if kept < min(5 * chance, (1 + chance) / 2):
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
    """|A B^T|_F^2 / k for orthonormal rows A, B (k, *in): 1 for equal spans, k / n by chance."""
    return float((a.flatten(1) @ b.flatten(1).T).square().sum() / len(a))


def tangent_share(V: Tensor, J: Tensor) -> tuple[float, float]:
    """How much of the true tangent space the span of orthonormal rows V (k, *in) holds.

    J (j, *in): tangent vectors. Plain: the mean squared cosine |Q V^T|_F^2 / j, Q orthonormal rows
    of J's span (chance k / n); weighted by energy: sum_j |V J_j|^2 / sum_j |J_j|^2.
    """
    v, j = V.flatten(1).double(), J.flatten(1).to(V.device).double()
    Q = torch.linalg.qr(j.T).Q.T
    plain = (Q @ v.T).square().sum() / len(Q)
    return float(plain), float((j @ v.T).square().sum() / j.square().sum())
