"""Likelihoods of real-valued targets."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from keras import ops

from keras_uncertainty_mtl._shapes import Shape
from keras_uncertainty_mtl.likelihoods.base import (
    Likelihood,
    Tensor,
    register,
    validate_channels,
)


class _Continuous(Likelihood):
    """Real-valued targets, with one σ, one for each channel, or a factor for each element."""

    def __init__(
        self,
        per_channel: bool = False,
        heteroscedastic: bool = False,
        channels: Sequence[str] | None = None,
        beta: float = 0.5,
        **kwargs: Any,
    ) -> None:
        self.channels = validate_channels(channels)
        self.per_channel = per_channel or self.channels is not None
        self.heteroscedastic = heteroscedastic
        if not isinstance(beta, Real) or not 0 <= beta <= 1:
            raise ValueError(f"`beta` must be a number from 0 to 1. Received: beta={beta!r}")
        self.beta: float = float(beta)
        if heteroscedastic:
            self._shape_advice = "heteroscedastic=True takes twice as many channels as the targets."
        super().__init__(**kwargs)

    def location(self, predictions: Tensor) -> Tensor:
        """The estimate of the targets: the network's output, or the first half of its channels."""
        return ops.split(predictions, 2, axis=-1)[0] if self.heteroscedastic else predictions

    def element_log_variance(self, predictions: Tensor) -> Any:
        """`h`, the log-variance of each element next to the task's `s`: the second half, or 0."""
        return ops.split(predictions, 2, axis=-1)[1] if self.heteroscedastic else 0.0

    def element_sigma(self, predictions: Tensor, sigma: Any) -> Tensor:
        """The σ of each element, in the shape of the targets."""
        zeros = ops.zeros_like(self.location(predictions))
        return ops.exp(0.5 * (zeros + self.element_log_variance(predictions))) * sigma

    def nonconformity(self, targets: Tensor, predictions: Tensor, sigma: Any) -> Tensor:
        """The distance of each target from its estimate, in units of its σ."""
        distance = ops.abs(targets - self.location(predictions))
        # The σ of a count may be 0 in single precision, where its rate is.
        scores = distance / self.element_sigma(predictions, sigma)
        return ops.where(distance == 0, ops.zeros_like(scores), scores)

    def prediction_region(
        self, predictions: Tensor, sigma: Any, quantile: Any
    ) -> dict[str, Tensor]:
        """The `"lower"` and the `"upper"` end of each interval, `quantile · σ` from its middle."""
        middle = self.location(predictions)
        half = self.element_sigma(predictions, sigma) * quantile
        return {"lower": middle - half, "upper": middle + half}

    def target_shape(self, prediction_shape: Shape) -> Shape:
        """The predictions' shape, with half of the channels where the others hold `h`."""
        if not self.heteroscedastic:
            return prediction_shape
        size = prediction_shape[-1] if len(prediction_shape) > 1 else None
        if size is None or size % 2:
            raise ValueError(
                f"{type(self).__name__}(heteroscedastic=True) expects predictions whose last axis "
                "holds the estimates and then as many log-variances, so of a known, even size: "
                f"`Dense(2)` for one number. Received: predictions of shape {prediction_shape}"
            )
        return (*prediction_shape[:-1], size // 2)

    def get_config(self) -> dict[str, Any]:
        own = {"per_channel": self.per_channel, "heteroscedastic": self.heteroscedastic}
        return {**super().get_config(), **own, "channels": self.channels, "beta": self.beta}


@register
class Gaussian(_Continuous):
    """Normal noise around a continuous target: the squared error.

    Eq. 5–7 of the paper: `½ · exp(-s) · (y - f)² + ½ · s` for each element, `y` the target and `f`
    the network's output. σ estimates the root mean squared error, in the units of the target.

    With `heteroscedastic=True` the output has twice as many channels as the targets: first all `f`,
    then a log-variance `h` for each. `s + h` takes the place of `s`, and σ of an element is
    `σ · exp(h/2)`. `{task}_loss` stays the raw loss of `f`. In float32 all is finite for `h ≥ -80`.

    The plain gradient of `f` neglects elements that were hard at first, because their `h` is large.
    So it is multiplied by `exp(beta · h)`, over the mean of all such factors. The loss itself stays
    the negative log-likelihood, and so does the gradient of `h`.

    Args:
        per_channel: If True, each entry of the last axis has a σ of its own.
        heteroscedastic: If True, the network's output has a log-variance for each element.
        channels: A name for each entry of the last axis, which implies `per_channel=True`.
            `sigmas()` then has a dict for this task.
        beta: A number from 0, for the plain gradient of a heteroscedastic `f`, to 1, for that of
            one σ for all elements.
        **kwargs: Arguments of `Likelihood`: `missing` such as `float("nan")`, `target`, and those
            on σ.

    Raises:
        ValueError: If `initial_sigma` is not positive and finite, or `beta` is out of range.

    Example:

    >>> layer = UncertaintyWeighting({"depth": Gaussian(), "position": Gaussian(per_channel=True)})

    References:
        - [Kendall, Gal & Cipolla, 2018](https://arxiv.org/abs/1705.07115), Eq. 5–7
        - [Kendall & Gal, 2017](https://arxiv.org/abs/1703.04977), Eq. 5
        - [Seitzer et al., 2022](https://arxiv.org/abs/2203.09168), for `beta`
    """

    scale = 0.5

    def loss(self, targets: Tensor, predictions: Tensor) -> Tensor:
        """The squared error of each element, `(y - f)²`."""
        return ops.square(targets - self.location(predictions))

    def predictive(self, predictions: Tensor, sigma: Any) -> dict[str, Tensor]:
        """The `"mean"` and the `"standard_deviation"` of each element."""
        deviation = self.element_sigma(predictions, sigma)
        return {"mean": self.location(predictions), "standard_deviation": deviation}


@register
class Laplace(_Continuous):
    """Heavy-tailed noise around a continuous target: the absolute error.

    The L1 losses of the paper's section 4 as a proper likelihood, for each element:
    `√2 · exp(-s/2) · |y - f| + ½ · s`. The noise has scale `b` with `σ² = 2b²`, so σ estimates `√2`
    times the mean absolute error.

    Args:
        per_channel, heteroscedastic, channels, beta, **kwargs: As in `Gaussian`.

    Example:

    >>> layer = UncertaintyWeighting({"inverse_depth": Laplace(missing=float("nan"))})

    References:
        - [Kendall, Gal & Cipolla, 2018](https://arxiv.org/abs/1705.07115), section 4
        - [Kendall & Gal, 2017](https://arxiv.org/abs/1703.04977), section 3.1
    """

    scale, power = math.sqrt(2.0), 0.5

    def loss(self, targets: Tensor, predictions: Tensor) -> Tensor:
        """The absolute error of each element, `|y - f|`."""
        return ops.abs(targets - self.location(predictions))

    def predictive(self, predictions: Tensor, sigma: Any) -> dict[str, Tensor]:
        """The `"location"` and the `"scale"` of each element: the median, and `b = σ / √2`."""
        scale = self.element_sigma(predictions, sigma) / math.sqrt(2.0)
        return {"location": self.location(predictions), "scale": scale}


@register
class Quantile(_Continuous):
    """A quantile of a continuous target: the pinball loss.

    The pinball loss `L` is `level · (y - f)` where `y > f`, and `(1 - level) · (f - y)` elsewhere.
    It belongs to asymmetric Laplace noise: `k · exp(-s/2) · L + ½ · s` for each element, with
    `k = √(1 - 2·level·(1 - level)) / (level · (1 - level))`. σ is the standard deviation of this
    noise, `k` times the mean pinball loss. `Quantile(0.5)` is `Laplace()`. An interval takes two
    tasks, of a low and of a high level.

    Args:
        level: The share of targets that lie below the quantile, between 0 and 1.
        per_channel, heteroscedastic, channels, beta, **kwargs: As in `Gaussian`.

    Raises:
        ValueError: If `level` is not between 0 and 1.

    Example:

    >>> layer = UncertaintyWeighting({"low": Quantile(0.05), "high": Quantile(0.95)})

    References:
        - [Yu & Moyeed, 2001](https://doi.org/10.1016/S0167-7152(01)00124-9)
    """

    power = 0.5

    def __init__(self, level: float = 0.5, **kwargs: Any) -> None:
        if not isinstance(level, Real) or not 0 < level < 1:
            raise ValueError(
                "`level` must be the share of targets below the quantile, between 0 and 1. "
                f"Received: level={level!r}"
            )
        super().__init__(**kwargs)
        self.level: float = float(level)
        spread = level * (1.0 - level)
        self.scale = math.sqrt(1.0 - 2.0 * spread) / spread

    def loss(self, targets: Tensor, predictions: Tensor) -> Tensor:
        """The pinball loss of each element."""
        error = targets - self.location(predictions)
        return ops.maximum(self.level * error, (self.level - 1.0) * error)

    def predictive(self, predictions: Tensor, sigma: Any) -> dict[str, Tensor]:
        """The `"quantile"` and the `"scale"` of each element, the mean pinball loss."""
        scale = self.element_sigma(predictions, sigma) / self.scale
        return {"quantile": self.location(predictions), "scale": scale}

    def get_config(self) -> dict[str, Any]:
        return {"level": self.level, **super().get_config()}


@register
class StudentT(_Continuous):
    """Noise with corrupt labels: Student's t, under which no single error counts for much.

    For each element `½·(n + 1) · log(1 + exp(-s) · (y - f)² / (n - 2)) + ½ · s`, with `n` degrees
    of freedom. σ is the standard deviation of this noise, `√(n / (n - 2))` times its scale. An
    error beyond some σ has a gradient that shrinks, and adds at most a bounded part to σ.

    There is no closed form. In training σ follows the EM algorithm of Lange et al., on a running
    mean: that of `(n + 1) · r² / (n - 2 + exp(-s) · r²)` for errors `r`, plus the trained θ.
    `{task}_loss` is the squared error.

    Args:
        df: The degrees of freedom, above 2. Fewer have heavier tails.
        per_channel, heteroscedastic, channels, beta, **kwargs: As in `Gaussian`.

    Raises:
        ValueError: If `df` is not above 2.

    Example:

    >>> layer = UncertaintyWeighting({"income": StudentT(), "age": StudentT(df=8)})

    References:
        - [Lange, Little & Taylor, 1989](https://doi.org/10.1080/01621459.1989.10478852)
    """

    scale = 0.5
    follows_losses = True

    def __init__(self, df: float = 4.0, **kwargs: Any) -> None:
        if not isinstance(df, Real) or not 2 < df < math.inf:
            raise ValueError(
                "`df` must be a number of degrees of freedom above 2, below which there is no "
                f"standard deviation. Received: df={df!r}. For the normal limit use Gaussian."
            )
        super().__init__(**kwargs)
        self.df: float = float(df)

    def loss(self, targets: Tensor, predictions: Tensor) -> Tensor:
        """The squared error of each element, `(y - f)²`."""
        return ops.square(targets - self.location(predictions))

    def negative_log_likelihood(
        self, targets: Tensor, predictions: Tensor, log_variance: Tensor
    ) -> Tensor:
        """See the class."""
        s = log_variance + self.element_log_variance(predictions)
        scaled = (targets - self.location(predictions)) * ops.exp(-0.5 * s)
        tail = ops.log1p(ops.square(scaled) / (self.df - 2.0))
        return 0.5 * (self.df + 1.0) * tail + 0.5 * s

    def running_loss(self, targets: Tensor, predictions: Tensor, log_variance: Tensor) -> Tensor:
        """The squared error of each element, by its weight in the EM algorithm."""
        s = log_variance + self.element_log_variance(predictions)
        squared = ops.square((targets - self.location(predictions)) * ops.exp(-0.5 * s))
        return ops.exp(log_variance) * (self.df + 1.0) * squared / (self.df - 2.0 + squared)

    def predictive(self, predictions: Tensor, sigma: Any) -> dict[str, Tensor]:
        """The `"location"` and the `"scale"` of each element, `σ · √((n - 2) / n)`."""
        scale = self.element_sigma(predictions, sigma) * math.sqrt(1.0 - 2.0 / self.df)
        return {"location": self.location(predictions), "scale": scale}

    def get_config(self) -> dict[str, Any]:
        return {"df": self.df, **super().get_config()}
