"""Sparse dictionaries: how many directions of a crowd two of them find alike.

Whiten, make two dictionaries from different starts, count what both hold; and planted crowds, to
see first what such a count can find.
"""

from __future__ import annotations

import torch
from torch import Tensor


def whitened(X: Tensor, floor: float = 1e-4) -> Tensor:
    """Rows with mean 0 and covariance I: (X - mean) C^(-1/2), C the covariance of X.

    Args:
        X: (B, m), B > m.
        floor: eigenvalues of C below this share of the largest count as this share.

    Returns: (B, m), of X's dtype; every direction varies alike.
    Raises ValueError unless X is a finite matrix with more rows than columns that differ.
    Cost: one eigendecomposition (m, m).

    >>> from mathkit.chapters import dictionaries
    >>> X = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> torch.cov(dictionaries.whitened(X).T).round(decimals=4) + 0.0
    tensor([[1., 0.],
            [0., 1.]])
    """
    if X.ndim != 2 or len(X) <= X.shape[1] or not bool(X.isfinite().all()):
        raise ValueError(f"X is (B, m), B > m and finite, got {tuple(X.shape)}: take more rows")
    rows = (X - X.mean(0)).double()
    squares, axes = torch.linalg.eigh(torch.cov(rows.T))
    if not float(squares[-1]) > 0:
        raise ValueError("the rows of X are all alike: they have no covariance to even out")
    root = squares.clamp_min(floor * squares[-1]).sqrt()
    return (rows @ (axes / root) @ axes.T).to(X)


def crowd(
    n: int, share: float, rows: int, m: int, active: float = 6, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Vectors in which n sparse features are planted, at random directions, in a Gaussian rest.

    x = sqrt(share) sum_i z_i f_i + sqrt(1 - share) e, both parts of mean square 1; z_i is 0, or
    with probability active / n uniform on [1/2, 3/2].

    Args:
        n: features, more than `active`; 0 for Gaussian vectors alone.
        share: of the mean square that the features have, 0 to 1.
        rows: how many vectors.
        m: numbers of each.
        active: features that are on, on average.
        seed: of all that is drawn.

    Returns: x (rows, m) and the directions f (n, m), of length 1.
    Raises ValueError for a share outside [0, 1], or n between 1 and active.
    Cost: one product (rows, n) by (n, m).

    >>> from mathkit.chapters import dictionaries
    >>> x, f = dictionaries.crowd(10, 0.5, rows=20, m=4)
    >>> x.shape, f.shape
    (torch.Size([20, 4]), torch.Size([10, 4]))
    """
    if not 0 <= share <= 1 or 0 < n <= active or n < 0:
        raise ValueError(f"share is in [0, 1] and n over {active} (or 0), got {share} and {n}")
    g = torch.Generator().manual_seed(seed)
    f = torch.nn.functional.normalize(torch.randn(n, m, generator=g), dim=1)
    on = torch.rand(rows, n, generator=g) < active / max(n, 1)
    signal = on * (0.5 + torch.rand(rows, n, generator=g)) @ f
    rest = torch.randn(rows, m, generator=g)
    signal, rest = (y / y.square().sum(1).mean().sqrt().clamp_min(1e-9) for y in (signal, rest))
    return share**0.5 * signal + (1 - share) ** 0.5 * rest, f


def dictionary(
    X: Tensor,
    atoms: int = 256,
    active: int = 8,
    *,
    steps: int = 600,
    batch: int = 512,
    lr: float = 0.03,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Directions of which every row of X is nearly a sum of few: a sparse autoencoder.

    x' = D^T z, z the `active` largest entries of ReLU(E x + c), the others 0; E, D and c by Adam on
    |x - x'|^2, lr falling to 0 on a line.

    Args:
        X: (B, m), e.g. `whitened`.
        atoms: entries of the dictionary.
        active: at most so many for one row.
        steps: of the descent.
        batch: rows a step.
        lr: learning rate, for rows of mean square 2, to which X is scaled.
        seed: of the start and of the batches.

    Returns: D (atoms, m), rows of length 1, and the codes z of X (B, atoms).
    Raises ValueError where active is not in 1 ... atoms, or X is zero or no finite matrix.
    Cost: 6 products (batch, m) by (m, atoms) a step.
    Source: Gao and others, 2406.04093.

    >>> from mathkit.chapters import dictionaries
    >>> D, z = dictionaries.dictionary(torch.eye(6).repeat(50, 1), atoms=12, active=1, steps=5)
    >>> D.shape, z.shape, int((z > 0).sum(1).max())
    (torch.Size([12, 6]), torch.Size([300, 12]), 1)
    """
    if X.ndim != 2 or not bool(X.isfinite().all() & X.any()) or not 1 <= active <= atoms:
        raise ValueError(
            f"X is a finite (B, m), not zero, and active in 1 ... {atoms}, got {tuple(X.shape)}, "
            f"{active}"
        )
    X, g = X * (2 / X.square().sum(1).mean()).sqrt(), torch.Generator().manual_seed(seed)
    D = torch.nn.functional.normalize(torch.randn(atoms, X.shape[1], generator=g), dim=1)
    E, D, c = (w.clone().requires_grad_() for w in (D, D, torch.zeros(atoms)))
    descent = torch.optim.Adam([E, D, c], lr=lr)
    for step in range(steps):
        descent.param_groups[0]["lr"] = lr * (1 - step / steps)
        x = X[torch.randint(len(X), (batch,), generator=g)]
        y = _few(x @ E.T + c, active) @ torch.nn.functional.normalize(D, dim=1)
        descent.zero_grad()
        (y - x).square().sum(1).mean().backward()
        descent.step()
    with torch.no_grad():
        return torch.nn.functional.normalize(D, dim=1), _few(X @ E.T + c, active)


def _few(a: Tensor, active: int) -> Tensor:
    """ReLU(a), all but the largest so many of a row set to 0."""
    top, at = a.topk(active, dim=1)
    return torch.zeros_like(a).scatter(1, at, top.relu())


def agreed(D: Tensor, codes: Tensor, other: Tensor, level: float = 0.9) -> int:
    """How many entries of a dictionary another one has too: those in use with a cosine > level.

    Two dictionaries made from different starts agree where there is something to find.

    Args:
        D: (atoms, m), rows of length 1.
        codes: of the data in D, (B, atoms); in use is what is on in more than 1 row of 1,000.
        other: (atoms, m), rows of length 1.
        level: the least cosine.

    Returns: the count.
    Cost: one product.

    >>> from mathkit.chapters import dictionaries
    >>> dictionaries.agreed(torch.eye(3), torch.eye(3), torch.eye(3)[:2])
    2
    """
    used = (codes > 0).float().mean(0) > 1e-3
    return int(((D[used] @ other.T).amax(1) > level).sum())
