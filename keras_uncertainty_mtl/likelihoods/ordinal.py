"""The likelihood of ratings."""

import math
from typing import Any

import numpy as np
from keras import ops

from keras_uncertainty_mtl._reductions import nan_unless
from keras_uncertainty_mtl._shapes import Shape
from keras_uncertainty_mtl.likelihoods.base import Tensor, register
from keras_uncertainty_mtl.likelihoods.continuous import _Continuous


@register
class Ordinal(_Continuous):
    """Ratings, such as one to five stars: a proportional-odds model with fixed thresholds.

    The network's output `f` is one number, in units of a rating. The rating `y` is `f` plus
    logistic noise, rounded to the nearest one there is: `P(y ≤ k) = sigmoid((k + ½ - f) / τ)`, with
    `τ = σ·√3/π`. So σ is the standard deviation of the noise, in ratings. This is McCullagh's model
    with thresholds at equal distances, where the distance takes the place of his unit of noise.

    There is no closed form. In training σ follows the root mean squared error of the estimate, plus
    the trained θ. Metrics see the estimate, `f` between the lowest and the highest rating, and
    `{task}_loss` is its squared error.

    Args:
        lowest, highest: The lowest and the highest rating, whole numbers. Targets are the whole
            numbers between them. Where their distances differ, use `Categorical`.
        per_channel, heteroscedastic, channels, beta, **kwargs: As in `Gaussian`.

    Raises:
        ValueError: If `lowest` and `highest` are not whole numbers in this order.

    Example:

    >>> layer = UncertaintyWeighting({"stars": Ordinal(1, 5), "pain": Ordinal(0, 10, missing=-1)})

    References:
        - [McCullagh, 1980](https://doi.org/10.1111/j.2517-6161.1980.tb01109.x)
    """

    follows_losses = True
    scale = 0.5
    has_whole_targets = True

    def __init__(self, lowest: int, highest: int, **kwargs: Any) -> None:
        ends = (lowest, highest)
        if not all(isinstance(end, int | np.integer) for end in ends) or lowest >= highest:
            raise ValueError(
                "Ordinal(lowest, highest) expects two whole numbers, the lower one first. "
                f"Received: lowest={lowest!r}, highest={highest!r}"
            )
        super().__init__(**kwargs)
        self.lowest, self.highest = int(lowest), int(highest)
        self.harmless_target = self.lowest

    def location(self, predictions: Tensor) -> Tensor:
        """The estimate, between the lowest and the highest rating."""
        return ops.clip(super().location(predictions), self.lowest, self.highest)

    def loss(self, targets: Tensor, predictions: Tensor) -> Tensor:
        """The squared error of each estimate."""
        return ops.square(targets - self.location(predictions))

    def negative_log_likelihood(
        self, targets: Tensor, predictions: Tensor, log_variance: Tensor
    ) -> Tensor:
        """See the class; NaN for a rating that there is not."""
        s = log_variance + self.element_log_variance(predictions)
        nll = self._surprise(targets, super().location(predictions), ops.exp(0.5 * s))
        is_rating = ops.logical_and(targets >= self.lowest, targets <= self.highest)
        return nan_unless(ops.logical_and(is_rating, ops.equal(targets, ops.round(targets))), nll)

    def _surprise(self, ratings: Any, centers: Tensor, sigma: Tensor) -> Tensor:
        """`-log P(y)`: of `σ(b) - σ(a) = σ(b)·σ(-a)·(1 - exp(a - b))` for the sigmoids of ends."""
        scale = sigma * math.sqrt(3.0) / math.pi
        error = ratings - centers
        zeros = ops.zeros_like(error / scale)
        is_above, is_below = ratings > self.lowest, ratings < self.highest
        lower = ops.where(is_above, ops.softplus((error - 0.5) / scale), zeros)
        upper = ops.where(is_below, ops.softplus(-(error + 0.5) / scale), zeros)
        # 1 - exp(-x) is 2t / (1 + t), of which a small x leaves all digits; ONNX has no `expm1`.
        t = ops.tanh(0.5 / scale)
        inside = zeros - ops.log(2.0 * t / (1.0 + t))
        return lower + upper + ops.where(ops.logical_and(is_above, is_below), inside, zeros)

    def predictive(self, predictions: Tensor, sigma: Any) -> dict[str, Tensor]:
        """The `"probabilities"` of the ratings, on a new last axis, and the logistic noise.

        The latter has a `"location"` and a `"scale"`.
        """
        center, sigmas = super().location(predictions), self.element_sigma(predictions, sigma)
        ratings = range(self.lowest, self.highest + 1)
        surprise = [self._surprise(ops.full_like(center, k), center, sigmas) for k in ratings]
        probabilities = ops.exp(-ops.stack(surprise, axis=-1))
        scale = sigmas * (math.sqrt(3.0) / math.pi)
        return {"location": center, "scale": scale, "probabilities": probabilities}

    def target_range(self, prediction_shape: Shape) -> tuple[float, float]:
        """From the lowest to the highest rating."""
        return self.lowest, self.highest

    def get_config(self) -> dict[str, Any]:
        return {"lowest": self.lowest, "highest": self.highest, **super().get_config()}
