"""The exact denoiser of Gaussian data."""

from __future__ import annotations

import torch
from torch import Tensor

from mathkit.arguments import finite
from mathkit.diffusion.levels import Levels, Time
from mathkit.diffusion.model import Model, linear_schedule


class GaussianModel(Model):
    """The exact denoiser of x_0 ~ N(mean, cov): every derived quantity has a closed form.

    With cov = Q diag(l) Q^T and the levels s and n: E[x_0 | x_t] = mean + Q g Q^T (x_t - s mean),
    g = s l / (s^2 l + n^2), so its Jacobian has the eigenvectors of cov.

    Args:
        mean: (*shape), its dtype is the model's.
        cov: (n, n), n = numel of mean, symmetric, no negative eigenvalue.
        levels: abar_t (T,), default 1,000 steps, beta linear from 1e-4 to .02; or any `Levels`.

    Raises ValueError for a cov that is none.
    Cost: an eigendecomposition; then two products with Q a call.
    Source: Wang & Vastola, 2303.02490.

    >>> p = mk.diffusion.gaussian.GaussianModel(torch.zeros(2), torch.eye(2))
    >>> p.clean(torch.tensor([[2.0, 0.0]]), 999) / 2 < 0.01  # at pure noise it knows nothing
    tensor([[True, True]])
    """

    def __init__(self, mean: Tensor, cov: Tensor, levels: Tensor | Levels | None = None) -> None:
        n = mean.numel()
        numbers = finite(cov) and finite(mean)
        if cov.shape != (n, n) or not torch.allclose(cov, cov.T) or not numbers:
            raise ValueError(f"cov is a finite symmetric ({n}, {n}) matrix, got {tuple(cov.shape)}")
        variances, axes = torch.linalg.eigh(cov.double().cpu())
        if variances[0] < -1e-6 * variances[-1].abs():
            raise ValueError(f"cov has a negative eigenvalue, {float(variances[0]):.3g}")
        abar = linear_schedule() if levels is None else levels
        super().__init__(mean.shape, abar, mean.device, mean.dtype)
        self.mean, self.variances, self.axes = mean, variances.clamp_min(0), axes.to(mean)

    def noise(self, x: Tensor, t: Time | Tensor) -> Tensor:
        s, n = self._levels(x, t)
        return self._filter(x, t, n / (s**2 * self.variances + n**2))

    def clean(self, x: Tensor, t: Time | Tensor) -> Tensor:
        s, n = self._levels(x, t)
        return self.mean + self._filter(x, t, s * self.variances / (s**2 * self.variances + n**2))

    def _levels(self, x: Tensor, t: Time | Tensor) -> tuple[Tensor, Tensor]:
        s, n = self.levels(self.times(t, len(self.check(x))))
        return s[:, None], n[:, None]

    def _filter(self, x: Tensor, t: Time | Tensor, gain: Tensor) -> Tensor:
        away = (x - self.scales(x, t)[0] * self.mean).flatten(1).to(self.axes)
        gain = gain.to(self.axes.dtype).to(self.axes.device)
        return (away @ self.axes * gain @ self.axes.T).to(x).view_as(x)
