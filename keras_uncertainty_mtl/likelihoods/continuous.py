"""Likelihoods of real-valued targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from keras import ops

from keras_uncertainty_mtl._shapes import Shape
from keras_uncertainty_mtl.likelihoods.base import Likelihood, Tensor, register


class _Continuous(Likelihood):
    """Real-valued targets, with one σ, one for each channel, or a factor for each element."""

    def __init__(
        self,
        per_channel: bool = False,
        initial_sigma: float | Sequence[float] | None = None,
        missing: float | None = None,
        heteroscedastic: bool = False,
    ) -> None:
        self.per_channel = per_channel
        self.heteroscedastic = heteroscedastic
        super().__init__(initial_sigma=initial_sigma, missing=missing)

    def location(self, predictions: Tensor) -> Tensor:
        """The estimate of the targets: the network's output, or the first half of its channels."""
        return self._halves(predictions)[0] if self.heteroscedastic else predictions

    def element_log_variance(self, predictions: Tensor) -> Any:
        """`h`, the log-variance of each element next to the task's `s`: the second half, or 0."""
        return self._halves(predictions)[1] if self.heteroscedastic else 0.0

    def element_sigma(self, predictions: Tensor, sigma: Any) -> Tensor:
        """The σ of each element, in the shape of the targets."""
        if not self.heteroscedastic:
            return ops.zeros_like(predictions) + sigma
        return ops.exp(0.5 * self.element_log_variance(predictions)) * sigma

    def target_shape(self, prediction_shape: Shape) -> Shape:
        """The predictions' shape, with half of the channels where the others hold `h`."""
        if not self.heteroscedastic:
            return prediction_shape
        size = prediction_shape[-1] if len(prediction_shape) > 1 else None
        if not isinstance(size, int) or size % 2:
            raise ValueError(
                f"{type(self).__name__}(heteroscedastic=True) expects predictions whose last axis "
                "holds the estimates and then as many log-variances, so of a known, even size: "
                f"`Dense(2)` for one number. Received: predictions of shape {prediction_shape}"
            )
        return (*prediction_shape[:-1], size // 2)

    def _shape_advice(self) -> str:
        if not self.heteroscedastic:
            return super()._shape_advice()
        return (
            "With heteroscedastic=True the second half of the channels are log-variances: give the "
            "network twice as many channels as the targets have."
        )

    def get_config(self) -> dict[str, Any]:
        return {
            "per_channel": self.per_channel,
            **super().get_config(),
            "heteroscedastic": self.heteroscedastic,
        }

    def _halves(self, predictions: Tensor) -> tuple[Tensor, Tensor]:
        channels = predictions.shape[-1] // 2
        return predictions[..., :channels], predictions[..., channels:]


@register
class Gaussian(_Continuous):
    """Normal noise around a continuous target: the squared error.

    Eq. 5–7 of the paper, for each element, `y` the target and `f` the network's output:

    ```
    ½ · exp(-s) · (y - f)² + ½ · s
    ```

    σ estimates the root mean squared error, in the units of the target.

    With `heteroscedastic=True` the network also predicts the noise of each element. Its output has
    twice as many channels as the targets: first all `f`, then a log-variance `h` for each:

    ```
    ½ · exp(-(s + h)) · (y - f)² + ½ · (s + h)
    ```

    σ is then the scale of the whole task, and `σ · exp(h/2)` that of an element. `{task}_loss`
    stays the raw loss of `f`. In single precision all is finite for `h` of -80 and more.

    Args:
        per_channel: Whether each entry of the last axis has a σ of its own.
        initial_sigma: The σ that training starts from, in the units of the target; one for each
            channel where `per_channel`. `None`: the root mean squared error of the first batch.
        missing: The target value that means "no label here", such as `float("nan")`.
        heteroscedastic: Whether the network's output has a log-variance for each element.

    Raises:
        ValueError: If `initial_sigma` is not positive and finite.

    Example:

    ```python
    UncertaintyWeighting({"temperature": Gaussian(), "position": Gaussian(per_channel=True)})
    ```

    References:
        - [Kendall, Gal & Cipolla, 2018](https://arxiv.org/abs/1705.07115), Eq. 5–7
        - [Kendall & Gal, 2017](https://arxiv.org/abs/1703.04977), Eq. 5
    """

    scale = 0.5

    def loss(self, targets: Tensor, predictions: Tensor) -> Tensor:
        """The squared error of each element, `(y - f)²`."""
        return ops.square(targets - self.location(predictions))

    def predictive(self, predictions: Tensor, sigma: Any) -> dict[str, Tensor]:
        """The `"mean"` and the `"standard_deviation"` of each element."""
        return {
            "mean": self.location(predictions),
            "standard_deviation": self.element_sigma(predictions, sigma),
        }


@register
class Laplace(_Continuous):
    """Heavy-tailed noise around a continuous target: the absolute error.

    The L1 losses of the paper's section 4 as a proper likelihood, for each element:

    ```
    √2 · exp(-s/2) · |y - f| + ½ · s
    ```

    The noise has scale `b` with `σ² = 2b²`, so σ estimates `√2` times the mean absolute error.
    With `heteroscedastic=True` the network also predicts the noise of each element, `s + h` in
    place of `s`, as in `Gaussian`.

    Args:
        per_channel: Whether each entry of the last axis has a σ of its own.
        initial_sigma: The σ that training starts from, in the units of the target; one for each
            channel where `per_channel`. `None`: `√2` times the mean absolute error of the first
            batch.
        missing: The target value that means "no label here", such as `float("nan")`.
        heteroscedastic: Whether the network's output has a log-variance for each element.

    Raises:
        ValueError: If `initial_sigma` is not positive and finite.

    Example:

    ```python
    UncertaintyWeighting({"inverse_depth": Laplace(missing=float("nan"))})
    ```

    References:
        - [Kendall, Gal & Cipolla, 2018](https://arxiv.org/abs/1705.07115), section 4
        - [Kendall & Gal, 2017](https://arxiv.org/abs/1703.04977), section 3.1
    """

    scale = math.sqrt(2.0)
    power = 0.5

    def loss(self, targets: Tensor, predictions: Tensor) -> Tensor:
        """The absolute error of each element, `|y - f|`."""
        return ops.abs(targets - self.location(predictions))

    def predictive(self, predictions: Tensor, sigma: Any) -> dict[str, Tensor]:
        """The `"location"` and the `"scale"` of each element: the median, and `b = σ / √2`."""
        return {
            "location": self.location(predictions),
            # The division is of the tensor: NumPy 1 would make double precision of σ / √2.
            "scale": self.element_sigma(predictions, sigma) / math.sqrt(2.0),
        }
