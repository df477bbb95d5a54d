"""The exact posterior mean of the show, beside which a trained denoiser is judged."""

from __future__ import annotations

import torch
from torch import Tensor

from mathkit.linear.arrays import matrix
from mathkit.linear.svd import svd
from mathkit.show.puppets import STRANGER, render, sample_factors, sample_simple


class Posterior:
    """The exact posterior of the show by importance sampling over a bank of renders.

    For x_t = sqrt(abar) x_0 + sqrt(1 - abar) e and a bank x_0^i drawn from the show, the weights
    are w_i proportional to exp(-|x_t - sqrt(abar) x_0^i|^2 / (2 (1 - abar))). Every expectation
    below is a weighted mean over the bank; `ess` = 1 / sum w^2 says of how many draws, and under
    500 no figure made here should be used. simple: of the simple show; `draw` draws it. Memory:
    24 kB a render at size 64.
    """

    def __init__(
        self, count: int = 20_000, seed: int = 7, size: int = 64, simple: bool = False
    ) -> None:
        self.draw = sample_simple if simple else sample_factors
        self.q = self.draw(count, seed)
        parts = [render(part, size).flatten(1).half() for part in self.q.split(500)]
        self.bank = torch.cat(parts)
        self.shape = (3, size, size)
        self._square = torch.cat([p.float().square().sum(1) for p in self.bank.split(2000)])

    def weights(self, x: Tensor, abar: float) -> Tensor:
        """w (B, count) for x (B, 3, size, size); rows sum to 1; ValueError for abar = 1."""
        if not 0 < abar < 1:
            raise ValueError(f"expected 0 < abar < 1, got {abar}; the clean image has no posterior")
        flat = x.detach().flatten(1).float().cpu()
        dot = torch.cat([flat @ p.float().T for p in self.bank.split(2000)], 1).double()
        logs = (abar**0.5 * dot - 0.5 * abar * self._square.double()) / (1 - abar)
        return torch.softmax(logs, 1)

    def ess(self, x: Tensor, abar: float) -> Tensor:
        """Effective sample size 1 / sum_i w_i^2, (B,), between 1 and the size of the bank."""
        return 1 / self.weights(x, abar).square().sum(1)

    def mean(self, x: Tensor, abar: float) -> Tensor:
        """E[x_0 | x_t], of x's shape: what a perfect denoiser would answer."""
        w = self.weights(x, abar).float()
        parts = zip(w.split(2000, 1), self.bank.split(2000), strict=True)
        return sum((a @ b.float() for a, b in parts), torch.zeros(())).reshape(len(x), *self.shape)

    def stranger(self, x: Tensor, abar: float) -> Tensor:
        """P(Stranger | x_t), (B,)."""
        return (self.weights(x, abar) @ self.q[:, STRANGER].double()).float()

    def directions(
        self, x: Tensor, abar: float, k: int, tol: float = 1e-3
    ) -> tuple[Tensor, Tensor]:
        """The top k directions of the posterior at one x_t of shape (1, 3, size, size).

        They are the eigenvectors of Cov[x_0 | x_t], which are the singular vectors of the exact
        denoiser's Jacobian J = sqrt(abar) / (1 - abar) Cov (Tweedie, second order). Returns V
        (k, 3, size, size) and the k singular values of J.
        """
        w = self.weights(x, abar)[0]
        used = w > 1e-4 * w.max()
        rows = self.bank[used].float() - self.mean(x, abar).reshape(-1)
        root = w[used].sqrt().float()[:, None] * rows
        _, s, v = svd(matrix(root), k, tol=tol)
        return v.reshape(k, *self.shape), abar**0.5 / (1 - abar) * s**2
