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
    500 no figure made here should be used.

    Args:
        count: renders in the bank.
        seed: of their factors.
        size: height and width of a render.
        simple: of the simple show; `draw` draws it.

    It keeps `q` (count, 13), `bank` (count, 3 size^2), float16, and `shape`, (3, size, size).
    Cost: count renders. Memory: 24 kB a render at size 64.

    >>> from mathkit.show.posterior import Posterior
    >>> truth = Posterior(50, size=16)
    >>> truth.mean(torch.zeros(1, *truth.shape), abar=0.1).shape
    torch.Size([1, 3, 16, 16])
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
        """w_i, the posterior probability of each frame of the bank, given x_t.

        Args:
            x: x_t (B, 3, size, size).
            abar: its noise level, strictly between 0 and 1.

        Returns: (B, count), float64; rows sum to 1.
        Raises ValueError for another abar: at abar = 1 the clean image has no posterior.
        Cost: one pass over the bank.

        >>> from mathkit.show.posterior import Posterior
        >>> truth = Posterior(50, size=16)
        >>> float(truth.weights(torch.zeros(1, *truth.shape), 0.1).sum().round(decimals=6))
        1.0
        """
        if not 0 < abar < 1:
            raise ValueError(f"expected 0 < abar < 1, got {abar}; the clean image has no posterior")
        flat = x.detach().flatten(1).float().cpu()
        dot = torch.cat([flat @ p.float().T for p in self.bank.split(2000)], 1).double()
        logs = (abar**0.5 * dot - 0.5 * abar * self._square.double()) / (1 - abar)
        return torch.softmax(logs, 1)

    def ess(self, x: Tensor, abar: float) -> Tensor:
        """Effective sample size 1 / sum_i w_i^2.

        Args:
            x: x_t (B, 3, size, size).
            abar: its noise level, strictly between 0 and 1.

        Returns: (B,), between 1 and the size of the bank.
        Raises ValueError as `weights` does.
        Cost: one pass over the bank.

        >>> from mathkit.show.posterior import Posterior
        >>> truth = Posterior(50, size=16)
        >>> x = truth.bank[:1].float().reshape(1, *truth.shape)  # a frame that the bank holds
        >>> round(float(truth.ess(x, 0.999)[0]), 3)  # hardly noised: it can be no other
        1.0
        """
        return 1 / self.weights(x, abar).square().sum(1)

    def mean(self, x: Tensor, abar: float) -> Tensor:
        """E[x_0 | x_t] = sum_i w_i x_0^i: what a perfect denoiser would answer.

        Args:
            x: x_t (B, 3, size, size).
            abar: its noise level, strictly between 0 and 1.

        Returns: of x's shape.
        Raises ValueError as `weights` does.
        Cost: two passes over the bank.

        >>> from mathkit.show.posterior import Posterior
        >>> truth = Posterior(50, size=16)
        >>> x = truth.bank[:1].float().reshape(1, *truth.shape)  # a frame that the bank holds
        >>> torch.allclose(truth.mean(x, 0.999), x)
        True
        """
        w = self.weights(x, abar).float()
        parts = zip(w.split(2000, 1), self.bank.split(2000), strict=True)
        return sum((a @ b.float() for a, b in parts), torch.zeros(())).reshape(len(x), *self.shape)

    def stranger(self, x: Tensor, abar: float) -> Tensor:
        """P(Stranger | x_t): the weight of the frames that show him.

        Args:
            x: x_t (B, 3, size, size).
            abar: its noise level, strictly between 0 and 1.

        Returns: (B,).
        Raises ValueError as `weights` does.
        Cost: one pass over the bank.

        >>> from mathkit.show.posterior import Posterior
        >>> truth = Posterior(50, size=16)
        >>> x = truth.bank[:1].float().reshape(1, *truth.shape)  # a frame that the bank holds
        >>> bool((truth.stranger(x, 0.999) - truth.q[0, mk.puppets.STRANGER]).abs() < 1e-6)
        True
        """
        return (self.weights(x, abar) @ self.q[:, STRANGER].double()).float()

    def directions(
        self, x: Tensor, abar: float, k: int, tol: float = 1e-3
    ) -> tuple[Tensor, Tensor]:
        """The top k directions of the posterior at one x_t: the eigenvectors of Cov[x_0 | x_t].

        They are the singular vectors of the exact denoiser's Jacobian J = sqrt(abar) / (1 - abar)
        Cov (Tweedie, second order). Frames whose weight is under 1e-4 of the largest are left out.

        Args:
            x: one x_t (1, 3, size, size).
            abar: its noise level, strictly between 0 and 1.
            k: how many.
            tol: of the `svd` behind it.

        Returns: V (k, 3, size, size), orthonormal rows, and the k singular values of J.
        Raises ValueError as `weights` does, and as `mk.svd` does for k.
        Cost: three passes over the bank, and one `mk.svd` of a matrix (frames, 3 size^2).
        Source: Efron 2011; Manor & Michaeli, 2309.13598.

        >>> from mathkit.show.posterior import Posterior
        >>> truth = Posterior(50, size=16)
        >>> V, s = truth.directions(torch.zeros(1, *truth.shape), 0.01, k=2)
        >>> V.shape
        torch.Size([2, 3, 16, 16])
        """
        w = self.weights(x, abar)[0]
        used = w > 1e-4 * w.max()
        rows = self.bank[used].float() - self.mean(x, abar).reshape(-1)
        root = w[used].sqrt().float()[:, None] * rows
        _, s, v = svd(matrix(root), k, tol=tol)
        return v.reshape(k, *self.shape), abar**0.5 / (1 - abar) * s**2
