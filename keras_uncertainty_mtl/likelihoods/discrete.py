"""Likelihoods of class labels."""

from typing import Any

from keras import backend, ops

from keras_uncertainty_mtl._reductions import nan_unless
from keras_uncertainty_mtl._shapes import Shape
from keras_uncertainty_mtl.likelihoods.base import Likelihood, Tensor, register


class _Discrete(Likelihood):
    """Class labels; in the exact forms σ² is the temperature of the logits."""

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
                f"The exact {type(self).__name__} expects logits. Received: from_logits=False. "
                "Take the softmax or sigmoid off the last layer, or pass approximate=True."
            )
        self.from_logits = from_logits
        self.approximate = approximate
        self.is_tempered = not approximate

    def get_config(self) -> dict[str, Any]:
        own = {"from_logits": self.from_logits, "approximate": self.approximate}
        return {**own, **super().get_config()}


@register
class Categorical(_Discrete):
    """One class out of several: the softmax cross-entropy, σ² its temperature.

    Eq. 8–9 of the paper: `-log softmax(exp(-s) · f)[y]` for each element (a sample, a token, a
    pixel), `f` its logits and `y` its class. With `approximate=True` its Eq. 10, the form most
    people know: `exp(-s) · cross_entropy(y, f) + ½ · s`.

    Args:
        sparse: If True, targets are class ids `(batch, …)`, else one-hot `(batch, …, classes)`.
        from_logits: If True, the predictions are logits, else probabilities.
        approximate: If True, Eq. 10 takes the place of the exact likelihood.
        initial_sigma: The σ to start from. `None`: 1, or the first batch's optimum for Eq. 10.
        missing: The target value that means "no label here", such as `-1` or `255`.

    Raises:
        ValueError: If an exact form gets probabilities, or `initial_sigma` is not positive.

    Example:

    >>> layer = UncertaintyWeighting({"semantics": Categorical(missing=255)})

    References:
        - [Kendall, Gal & Cipolla, 2018](https://arxiv.org/abs/1705.07115), Eq. 8–10
    """

    _shape_advice = "For class ids pass sparse=True, for one-hot targets sparse=False."

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
            return ops.categorical_crossentropy(targets, predictions, self.from_logits)
        if backend.standardize_dtype(targets.dtype) in ("bool", "int8", "uint8"):
            targets = ops.cast(targets, "int32")  # The number of classes may not fit these dtypes.
        # Backends differ in the loss of a class out of range: an error, NaN, or a silent 0.
        in_range = ops.logical_and(targets >= 0, targets < predictions.shape[-1])
        classes = ops.cast(ops.where(in_range, targets, 0), "int32")
        losses = ops.sparse_categorical_crossentropy(classes, predictions, self.from_logits)
        return nan_unless(in_range, losses)

    def predictive(self, predictions: Tensor, sigma: Any) -> dict[str, Tensor]:
        """The `"probabilities"` of the classes, from predictions at their temperature if any."""
        return {"probabilities": ops.softmax(predictions) if self.from_logits else predictions}

    def target_shape(self, prediction_shape: Shape) -> Shape:
        """The predictions' shape, for class ids without its last axis."""
        if len(prediction_shape) < 2 or prediction_shape[-1] in (None, 1):
            raise ValueError(
                "Categorical expects predictions of shape (batch, …, classes), 2 classes or more. "
                f"Received: predictions of shape {prediction_shape}. For yes or no use Bernoulli, "
                "for a number Gaussian or Laplace."
            )
        return prediction_shape[:-1] if self.sparse else prediction_shape

    def get_config(self) -> dict[str, Any]:
        return {"sparse": self.sparse, **super().get_config()}


@register
class Bernoulli(_Discrete):
    """Yes or no, for every entry of the output: the sigmoid cross-entropy.

    Eq. 8–9 of the paper for two classes: `-log sigmoid(±exp(-s) · f)` for each element, `f` its
    logit, with `+` where `y = 1` and `-` where `y = 0`. With `approximate=True` its Eq. 10:
    `exp(-s) · cross_entropy(y, f) + ½ · s`.

    Args:
        from_logits, approximate, initial_sigma: As in `Categorical`.
        missing: The target value that means "no label here", such as `-1` or `float("nan")`.

    Example:

    >>> layer = UncertaintyWeighting({"indoors": Bernoulli(), "tags": Bernoulli(missing=-1)})

    References:
        - [Kendall, Gal & Cipolla, 2018](https://arxiv.org/abs/1705.07115), Eq. 8–10
    """

    def loss(self, targets: Tensor, predictions: Tensor) -> Tensor:
        """The binary cross-entropy of each element."""
        return ops.binary_crossentropy(targets, predictions, self.from_logits)

    def predictive(self, predictions: Tensor, sigma: Any) -> dict[str, Tensor]:
        """The `"probabilities"` of yes, from predictions at their temperature if any."""
        return {"probabilities": ops.sigmoid(predictions) if self.from_logits else predictions}
