"""eps and x_0 of whatever a network predicts."""

from __future__ import annotations

import torch
from torch import Tensor

from mathkit.diffusion.levels import Time
from mathkit.diffusion.model import Model
from mathkit.linear.smooth import smoothly

PREDICTIONS = ("epsilon", "v_prediction", "sample", "score", "velocity")
FAINT = (
    0.005  # signal / noise below which an eps says nothing of x_0: the linear schedule ends above
)


class Predicted(Model):
    """A model of what a network answers: subclasses give `_output`.

    With x_t = s x_0 + n e, `prediction` is "epsilon" (e), "sample" (x_0), "v_prediction"
    (s e - n x_0, where s^2 + n^2 = 1), "velocity" (e - x_0) or "score" (-e / n).
    """

    prediction: str

    def _output(self, x: Tensor, t: Time | Tensor) -> Tensor:
        raise NotImplementedError

    def _answer(self, x: Tensor, t: Time | Tensor) -> Tensor:
        with smoothly(x):
            return self._output(x, t)

    def noise(self, x: Tensor, t: Time | Tensor) -> Tensor:
        return self._noise(x, self._answer(x, t), *self.scales(x, t))

    def clean(self, x: Tensor, t: Time | Tensor) -> Tensor:
        return self._clean(x, self._answer(x, t), *self.scales(x, t))

    def both(self, x: Tensor, t: Time | Tensor) -> tuple[Tensor, Tensor]:
        """`noise` and `clean`, of one network call."""
        out, (s, n) = self._answer(x, t), self.scales(x, t)
        return self._noise(x, out, s, n), self._clean(x, out, s, n)

    def _noise(self, x: Tensor, out: Tensor, s: Tensor, n: Tensor) -> Tensor:
        match self.prediction:
            case "v_prediction":
                return n * x + s * out
            case "velocity":
                return (x + s * out) / (s + n)
            case "sample":
                return (x - s * out) / n
            case "score":
                return -n * out
        return out

    def _clean(self, x: Tensor, out: Tensor, s: Tensor, n: Tensor) -> Tensor:
        match self.prediction:
            case "v_prediction":
                return s * x - n * out
            case "velocity":
                return (x - n * out) / (s + n)
            case "sample":
                return out
        return (x - n * self._noise(x, out, s, n)) / s

    @property
    def top(self) -> Time:
        """The time at which sampling begins: of a network that predicts eps, where an error of it
        is not yet divided by next to nothing."""
        divided = self.prediction in ("epsilon", "score")
        return self.levels.highest(FAINT) if divided else self.levels.top

    def _predict(self, prediction: str) -> None:
        """Take this prediction. ValueError for one that is none, or does not go with the levels."""
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction is one of {', '.join(PREDICTIONS)}, got {prediction!r}")
        s, n = self.levels(self.levels.span())
        if prediction == "v_prediction" and not torch.allclose(s**2 + n**2, torch.ones_like(s)):
            raise ValueError(
                "v_prediction goes with signal^2 + noise^2 = 1, which these levels are not: "
                "of a rectified flow the prediction is velocity"
            )
        if prediction in ("epsilon", "score") and not float(s.min()) > 0:
            raise ValueError(
                f"abar reaches 0 (rescale_betas_zero_snr), where {prediction} says nothing of "
                "x_0: such a model predicts v, or x_0"
            )
        self.prediction = prediction
