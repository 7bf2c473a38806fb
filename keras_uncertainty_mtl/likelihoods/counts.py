"""Likelihoods of counts, whose predictions are the logarithms of rates."""

from typing import Any

import numpy as np
from keras import ops

from keras_uncertainty_mtl._reductions import nan_unless
from keras_uncertainty_mtl._shapes import Shape
from keras_uncertainty_mtl.likelihoods.base import Tensor, register
from keras_uncertainty_mtl.likelihoods.continuous import _Continuous


class _Count(_Continuous):
    """Counts around a rate `μ = exp(f)`, which metrics see."""

    def log_rate(self, predictions: Tensor) -> Tensor:
        """The logarithms `f` of the rates."""
        return super().location(predictions)

    def location(self, predictions: Tensor) -> Tensor:
        """The rates `exp(f)`."""
        return ops.exp(self.log_rate(predictions))

    def loss(self, targets: Tensor, predictions: Tensor) -> Tensor:
        """The deviance of each element, `2·(y·log(y/μ) - y + μ)`; NaN for a count below 0."""
        f = self.log_rate(predictions)
        is_positive = targets > 0
        counts = ops.where(is_positive, targets, ops.ones_like(targets))
        excess = f - ops.log(counts)  # Of large numbers, y and μ themselves would leave no digits.
        deviances = counts * (ops.expm1(excess) - excess)
        deviances = deviances + ops.stop_gradient(ops.relu(deviances) - deviances)
        deviances = 2.0 * ops.where(is_positive, deviances, ops.exp(f))
        return nan_unless(targets >= 0, deviances)

    def target_range(self, prediction_shape: Shape) -> tuple[float, float]:
        """From 0 on."""
        return 0.0, np.inf

    def predictive(self, predictions: Tensor, sigma: Any) -> dict[str, Tensor]:
        """The `"mean"` of each count, its rate, and its `"standard_deviation"`."""
        deviation = self.element_sigma(predictions, sigma)
        return {"mean": self.location(predictions), "standard_deviation": deviation}


@register
class Poisson(_Count):
    """Counts whose variance is proportional to their mean: the Poisson deviance.

    The network's output `f` is the logarithm of the rate μ, so that any number will do. The
    extended quasi-likelihood of each element is `½ · exp(-s) · D + ½ · s`, with
    `D = 2·(y·log(y/μ) - y + μ)`. Its dispersion σ² is the variance of a count over its mean, and
    estimates the mean deviance: 1 for Poisson's own distribution, and more for counts that come in
    clusters. Rates below about 1 have a smaller deviance. Metrics see μ.

    Args:
        per_channel, heteroscedastic, channels, beta, **kwargs: As in `Gaussian`.

    Example:

    >>> layer = UncertaintyWeighting({"visits": Poisson(), "calls": Poisson(missing=-1)})

    References:
        - [Nelder & Pregibon, 1987](https://doi.org/10.1093/biomet/74.2.221)
    """

    scale = 0.5

    def element_sigma(self, predictions: Tensor, sigma: Any) -> Tensor:
        """The standard deviation of each count, `σ · √μ`."""
        return super().element_sigma(predictions, sigma) * ops.sqrt(self.location(predictions))


@register
class NegativeBinomial(_Count):
    """Counts whose rate differs from one to the next: a Poisson distribution of gamma rates.

    The network's output `f` is the logarithm of the mean rate μ. With `r = exp(-s)`, the negative
    log-likelihood of each element is `(y + r)·log(1 + μ/r) - y·f`, less
    `log Γ(y + r) - log Γ(r) - y·log r`. The variance of a count is `μ + σ²·μ²`. So σ² is the
    dispersion, and σ the standard deviation of the rates, as a share of their mean. It has no
    closed form, starts at 1 and is trained. `{task}_loss` is the Poisson deviance, as for
    `Poisson`. Metrics see μ.

    Args:
        per_channel, heteroscedastic, channels, beta, **kwargs: As in `Gaussian`.

    Example:

    >>> layer = UncertaintyWeighting({"reads": NegativeBinomial(per_channel=True)})

    References:
        - [Lawless, 1987](https://doi.org/10.2307/3314912)
    """

    def negative_log_likelihood(
        self, targets: Tensor, predictions: Tensor, log_variance: Tensor
    ) -> Tensor:
        """See the class; `log(y!)` and `y - y·log y`, large numbers without `s`, are dropped."""
        s = log_variance + self.element_log_variance(predictions)
        f, shape = self.log_rate(predictions), ops.exp(-s)
        is_positive = targets > 0
        counts = ops.where(is_positive, targets, ops.ones_like(targets))
        excess = f - ops.log(counts)
        is_near = ops.logical_and(is_positive, ops.abs(excess) < 1.0)
        near, total = ops.clip(excess, -1.0, 1.0), counts + shape
        # log((μ + r) / (y + r)), and the same less log(μ / y). Where μ is near y, the difference of
        # two logarithms would leave no digits.
        above = ops.softplus(f + s) - ops.log1p(targets / shape)
        above = ops.where(is_near, ops.log1p(ops.expm1(near) * counts / total), above)
        below = ops.softplus(-f - s) - ops.log1p(shape / counts)
        below = ops.where(is_near, ops.log1p(ops.expm1(-near) * shape / total), below)
        losses = shape * above + targets * below
        return nan_unless(targets >= 0, losses + _log_falling(targets, shape))

    def element_sigma(self, predictions: Tensor, sigma: Any) -> Tensor:
        """The standard deviation of each count, `√(μ + σ²·μ²)`."""
        rates = self.location(predictions)
        return ops.sqrt(rates + ops.square(rates * super().element_sigma(predictions, sigma)))


def _log_falling(y: Tensor, r: Tensor) -> Tensor:
    """`log Γ(r) - log Γ(y + r) + (y + r)·log(y + r) - r·log r - y`, by Stirling's series from 8 on.

    Keras has no `log Γ`, of which the difference would leave no digits.
    """
    low, high = r + 8.0, y + r + 8.0

    def series(z: Tensor) -> Tensor:
        w = 1.0 / (z * z)
        return (1.0 - w * (1.0 / 30.0 - w * (1.0 / 105.0 - w / 140.0))) / (12.0 * z)

    steps = sum(ops.log1p(y / (r + step)) for step in range(8))
    shifted = r * ops.log1p(8.0 / r) - (y + r) * ops.log1p(8.0 / (y + r))
    return steps + shifted - 7.5 * ops.log1p(y / low) + series(low) - series(high)
