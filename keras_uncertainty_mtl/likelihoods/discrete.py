"""Likelihoods of class labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_uncertainty_mtl._shapes import Shape
from keras_uncertainty_mtl.likelihoods.base import Likelihood, Tensor, register


class _Discrete(Likelihood):
    """Class labels; in the exact forms σ² is the temperature of the logits."""

    _activation: Callable[[Tensor], Tensor]

    def __init__(
        self,
        from_logits: bool = True,
        approximate: bool = False,
        initial_sigma: float | None = None,
        missing: float | None = None,
    ) -> None:
        super().__init__(initial_sigma=initial_sigma, missing=missing)
        if not from_logits and not approximate:
            raise ValueError(
                f"The exact {type(self).__name__} scales the logits, so it expects logits. "
                "Received: from_logits=False with approximate=False. Take the softmax or sigmoid "
                "off the network's last layer, or pass approximate=True."
            )
        self.from_logits = from_logits
        self.approximate = approximate

    @property
    def has_closed_form(self) -> bool:
        return self.approximate

    @property
    def is_tempered(self) -> bool:
        return not self.approximate

    def negative_log_likelihood(
        self, targets: Tensor, predictions: Tensor, log_variance: Tensor
    ) -> Tensor:
        """The cross-entropy at temperature σ², or its approximation."""
        if self.approximate:
            return super().negative_log_likelihood(targets, predictions, log_variance)
        return self.loss(targets, self.temper(predictions, log_variance))

    def temper(self, predictions: Tensor, log_variance: Tensor) -> Tensor:
        """The logits at temperature σ², `exp(-s) · f`; the approximate form's as they are."""
        return predictions if self.approximate else predictions * ops.exp(-log_variance)

    def predictive(self, predictions: Tensor, sigma: Any) -> dict[str, Tensor]:
        """The `"probabilities"` of each element.

        The σ² of the approximate form weighs the cross-entropy and is no temperature, so its
        probabilities are the network's own.
        """
        return {"probabilities": self._activation(predictions) if self.from_logits else predictions}

    def get_config(self) -> dict[str, Any]:
        return {
            "from_logits": self.from_logits,
            "approximate": self.approximate,
            **super().get_config(),
        }


@register
class Categorical(_Discrete):
    """One class out of several: the softmax cross-entropy, σ² its temperature.

    Eq. 8–9 of the paper, for each element (a sample, a token, a pixel), `f` its logits:

    ```
    -log softmax(exp(-s) · f)[y]
    ```

    and with `approximate=True` its Eq. 10, the form most people know:

    ```
    exp(-s) · cross_entropy(y, f) + ½ · s
    ```

    Args:
        sparse: Whether targets are class ids, of the predictions' shape without its last axis; else
            they are one-hot (or probabilities), of the predictions' shape.
        from_logits: Whether the predictions are logits rather than probabilities.
        approximate: Whether to use Eq. 10 instead of the exact likelihood.
        initial_sigma: The σ that training starts from. `None`: 1 for the exact form, the
            closed-form optimum of the first training batch for the approximate one.
        missing: The target value that means "no label here", such as `-1` or `255`.

    Raises:
        ValueError: If the exact form is asked for with probabilities, or `initial_sigma` is not
            positive and finite.

    Example:

    ```python
    UncertaintyWeighting({"semantics": Categorical(missing=255)})
    ```

    References:
        - [Kendall, Gal & Cipolla, 2018](https://arxiv.org/abs/1705.07115), Eq. 8–10
    """

    _activation = staticmethod(ops.softmax)

    def __init__(
        self,
        sparse: bool = True,
        from_logits: bool = True,
        approximate: bool = False,
        initial_sigma: float | None = None,
        missing: float | None = None,
    ) -> None:
        super().__init__(from_logits, approximate, initial_sigma, missing)
        self.sparse = sparse
        if sparse and (self.missing is None or self.missing.is_integer()):
            self.target_dtype = "int32"

    def loss(self, targets: Tensor, predictions: Tensor) -> Tensor:
        """The cross-entropy of each element, over the last axis; NaN for a class out of range."""
        if not self.sparse:
            return ops.categorical_crossentropy(targets, predictions, from_logits=self.from_logits)
        if keras.backend.standardize_dtype(targets.dtype) in ("bool", "int8", "uint8"):
            # These may not hold the number of classes.
            targets = ops.cast(targets, "int32")
        # Backends differ in the loss of a class out of range: an error, NaN, or a silent 0.
        in_range = ops.logical_and(targets >= 0, targets < predictions.shape[-1])
        classes = ops.cast(ops.where(in_range, targets, 0), "int32")
        losses = ops.sparse_categorical_crossentropy(
            classes, predictions, from_logits=self.from_logits
        )
        return ops.where(in_range, losses, math.nan)

    def target_shape(self, prediction_shape: Shape) -> Shape:
        """The predictions' shape, for class ids without its last axis."""
        if len(prediction_shape) < 2 or prediction_shape[-1] in (None, 1):
            raise ValueError(
                "Categorical expects predictions of shape (batch, …, classes) with 2 classes or "
                f"more. Received: predictions of shape {prediction_shape}. For a single yes-or-no "
                "output use Bernoulli, for a number Gaussian or Laplace."
            )
        return prediction_shape[:-1] if self.sparse else prediction_shape

    def _shape_advice(self) -> str:
        if self.sparse:
            return "For one-hot targets pass sparse=False."
        return "For class ids pass sparse=True."

    def get_config(self) -> dict[str, Any]:
        return {"sparse": self.sparse, **super().get_config()}


@register
class Bernoulli(_Discrete):
    """Yes or no, for every entry of the output: the sigmoid cross-entropy.

    Eq. 8–9 of the paper for two classes, for each element, `f` its logit:

    ```
    -log sigmoid(±exp(-s) · f)      # + where y = 1, - where y = 0
    ```

    and with `approximate=True` its Eq. 10:

    ```
    exp(-s) · cross_entropy(y, f) + ½ · s
    ```

    Args:
        from_logits: Whether the predictions are logits rather than probabilities.
        approximate: Whether to use Eq. 10 instead of the exact likelihood.
        initial_sigma: The σ that training starts from. `None`: 1 for the exact form, the
            closed-form optimum of the first training batch for the approximate one.
        missing: The target value that means "no label here", such as `-1` or `float("nan")`.

    Raises:
        ValueError: If the exact form is asked for with probabilities, or `initial_sigma` is not
            positive and finite.

    Example:

    ```python
    UncertaintyWeighting({"is_indoors": Bernoulli(), "attributes": Bernoulli(missing=-1)})
    ```

    References:
        - [Kendall, Gal & Cipolla, 2018](https://arxiv.org/abs/1705.07115), Eq. 8–10
    """

    _activation = staticmethod(ops.sigmoid)

    def loss(self, targets: Tensor, predictions: Tensor) -> Tensor:
        """The binary cross-entropy of each element."""
        return ops.binary_crossentropy(targets, predictions, from_logits=self.from_logits)
