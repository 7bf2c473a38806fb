"""Likelihoods of class labels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from keras import backend, config, ops

from keras_uncertainty_mtl._reductions import nan_unless
from keras_uncertainty_mtl._shapes import Shape
from keras_uncertainty_mtl.likelihoods.base import (
    Likelihood,
    Tensor,
    register,
    validate_channels,
)

# A class belongs to a set if its log-probability is but a rounding error too small.
ROUNDING = 1e-5


class _Discrete(Likelihood):
    """Class labels; in the exact forms σ² is the temperature of the logits."""

    def __init__(
        self,
        from_logits: bool = True,
        approximate: bool = False,
        per_channel: bool = False,
        channels: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.channels = validate_channels(channels)
        self.per_channel = per_channel or self.channels is not None
        super().__init__(**kwargs)
        if not from_logits and not approximate:
            raise ValueError(
                f"The exact {type(self).__name__} expects logits. Received: from_logits=False. "
                "Take the softmax or sigmoid off the last layer, or pass approximate=True."
            )
        self.from_logits = from_logits
        self.approximate = approximate
        self.is_tempered = not approximate

    def exact_form(self) -> Likelihood:
        """The exact form of the same labels, which takes logits."""
        exact = {"approximate": False, "from_logits": True}
        return self if self.is_tempered else self.from_config(self.get_config() | exact)

    def nonconformity(self, targets: Tensor, predictions: Tensor, sigma: Any) -> Tensor:
        """The negative logarithm of the probability of each label."""
        return self.loss(targets, predictions)

    def get_config(self) -> dict[str, Any]:
        own = {"from_logits": self.from_logits, "approximate": self.approximate}
        columns = {"per_channel": self.per_channel, "channels": self.channels}
        return {**own, **super().get_config(), **columns}


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
        per_channel: If True, predictions are `(batch, …, columns, classes)`, and each column has
            a σ of its own.
        channels: A name for each column, which implies `per_channel=True`. `sigmas()` then has a
            dict for this task.
        class_weight: Dict from class id to a factor of its sample weight, 1 for any other class.
            Calibration and predictions are without.
        **kwargs: Arguments of `Likelihood`: `missing` such as `-1` or `255`, and those on σ. An
            exact form starts from σ = 1.

    Raises:
        ValueError: If an exact form gets probabilities, or an argument is not as expected.

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
        class_weight: Mapping[int, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(from_logits, approximate, **kwargs)
        self.sparse = self.has_whole_targets = sparse
        self.class_weight = _validate_class_weight(class_weight)
        if sparse and (self.missing is None or self.missing.is_integer()):
            self.target_dtype = "int32"

    def loss(self, targets: Tensor, predictions: Tensor) -> Tensor:
        """The cross-entropy of each element, over the last axis; NaN for any other number."""
        if not self.sparse:
            return ops.categorical_crossentropy(targets, predictions, self.from_logits)
        # Backends differ in the loss of a class out of range: an error, NaN, or a silent 0.
        classes, is_class = _class_ids(targets, predictions.shape[-1])
        losses = ops.sparse_categorical_crossentropy(classes, predictions, self.from_logits)
        return nan_unless(is_class, losses)

    def label_weights(self, targets: Tensor, predictions: Tensor) -> Tensor | None:
        """The weight of each element's class."""
        if self.class_weight is None:
            return None
        size = predictions.shape[-1]
        if max(self.class_weight) >= size:
            raise ValueError(
                f"`class_weight` must have class ids below {size}, the number of classes. "
                f"Received: class_weight={self.class_weight}"
            )
        table = np.array([self.class_weight.get(each, 1.0) for each in range(size)])
        classes, _ = _class_ids(targets if self.sparse else ops.argmax(targets, -1), size)
        return ops.take(ops.cast(table, predictions.dtype), classes)

    def temper(self, predictions: Tensor, log_variance: Tensor) -> Tensor:
        """`exp(-s) · f` where `is_tempered`, with an `s` for each column if `per_channel`."""
        if self.per_channel:
            log_variance = ops.expand_dims(log_variance, -1)
        return super().temper(predictions, log_variance)

    def predictive(self, predictions: Tensor, sigma: Any) -> dict[str, Tensor]:
        """The `"probabilities"` of the classes, from predictions at their temperature if any."""
        return {"probabilities": ops.softmax(predictions) if self.from_logits else predictions}

    def logits(self, predictions: Tensor) -> Tensor:
        """The logits, or the logarithms of the probabilities, which have the same softmax."""
        return predictions if self.from_logits else _log(predictions)

    def prediction_region(
        self, predictions: Tensor, sigma: Any, quantile: Any
    ) -> dict[str, Tensor]:
        """The `"set"` of the classes that are likely enough, over the last axis."""
        if self.per_channel:
            quantile = np.expand_dims(quantile, -1)
        return {"set": ops.log_softmax(predictions) >= -(quantile + ROUNDING)}

    def loss_shape(self, prediction_shape: Shape) -> Shape:
        """The predictions' shape without its last axis."""
        self.target_shape(prediction_shape)
        return prediction_shape[:-1]

    def target_shape(self, prediction_shape: Shape) -> Shape:
        """The predictions' shape, for class ids without its last axis."""
        if len(prediction_shape) < 2 or prediction_shape[-1] in (None, 1):
            raise ValueError(
                "Categorical expects predictions of shape (batch, …, classes), 2 classes or more. "
                f"Received: predictions of shape {prediction_shape}. For yes or no use Bernoulli, "
                "for a number Gaussian or Laplace."
            )
        return prediction_shape[:-1] if self.sparse else prediction_shape

    def target_range(self, prediction_shape: Shape) -> tuple[float, float]:
        """The first and the last class id; any number where targets are a distribution."""
        if not self.sparse:
            return super().target_range(prediction_shape)
        return 0, prediction_shape[-1] - 1  # type: ignore[operator]

    def get_config(self) -> dict[str, Any]:
        own = {"sparse": self.sparse, "class_weight": self.class_weight}
        return {**own, **super().get_config()}


@register
class Bernoulli(_Discrete):
    """Yes or no, for every entry of the output: the sigmoid cross-entropy.

    Eq. 8–9 of the paper for two classes: `-log sigmoid(±exp(-s) · f)` for each element, `f` its
    logit, with `+` where `y = 1` and `-` where `y = 0`. With `approximate=True` its Eq. 10:
    `exp(-s) · cross_entropy(y, f) + ½ · s`.

    Args:
        from_logits, approximate: As in `Categorical`.
        per_channel: If True, each entry of the last axis, a column, has a σ of its own.
        channels: A name for each column, as in `Categorical`.
        pos_weight: A factor of the sample weight where `y = 1`, or a list of one a column.
            Calibration and predictions are without.
        **kwargs: Arguments of `Likelihood`, as in `Categorical`.

    Example:

    >>> layer = UncertaintyWeighting({"indoors": Bernoulli(), "tags": Bernoulli(missing=-1)})

    References:
        - [Kendall, Gal & Cipolla, 2018](https://arxiv.org/abs/1705.07115), Eq. 8–10
    """

    def __init__(
        self,
        from_logits: bool = True,
        approximate: bool = False,
        pos_weight: float | Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(from_logits, approximate, **kwargs)
        weights = np.asarray(1.0 if pos_weight is None else pos_weight)
        if weights.dtype.kind not in "iuf" or weights.ndim > 1 or not _are_weights(weights):
            raise ValueError(
                "`pos_weight` must be a finite number that is not negative, or a list of one for "
                f"each column. Received: pos_weight={pos_weight!r}"
            )
        self.pos_weight = None if pos_weight is None else weights.astype("float64").tolist()

    def label_weights(self, targets: Tensor, predictions: Tensor) -> Tensor | None:
        """The weight of each element, `pos_weight` where `y = 1`."""
        if self.pos_weight is None:
            return None
        weight = np.asarray(self.pos_weight)
        if weight.ndim and len(weight) != targets.shape[-1]:
            raise ValueError(
                f"`pos_weight` must be a number, or one for each of {targets.shape[-1]} columns. "
                f"Received: pos_weight={self.pos_weight}"
            )
        return 1.0 + ops.cast(weight - 1.0, targets.dtype) * targets

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "pos_weight": self.pos_weight}

    def loss(self, targets: Tensor, predictions: Tensor) -> Tensor:
        """The binary cross-entropy of each element; NaN for a target that is not from 0 to 1."""
        losses = ops.binary_crossentropy(targets, predictions, self.from_logits)
        return nan_unless(ops.logical_and(targets >= 0, targets <= 1), losses)

    def target_range(self, prediction_shape: Shape) -> tuple[float, float]:
        """From no to yes."""
        return 0.0, 1.0

    def predictive(self, predictions: Tensor, sigma: Any) -> dict[str, Tensor]:
        """The `"probabilities"` of yes, from predictions at their temperature if any."""
        return {"probabilities": ops.sigmoid(predictions) if self.from_logits else predictions}

    def logits(self, predictions: Tensor) -> Tensor:
        """The logits of yes, also of probabilities."""
        return predictions if self.from_logits else _log(predictions) - _log(1.0 - predictions)

    def prediction_region(
        self, predictions: Tensor, sigma: Any, quantile: Any
    ) -> dict[str, Tensor]:
        """The `"set"` of the answers that are likely enough: no and yes, on a new last axis."""
        signed = ops.stack([-predictions, predictions], axis=-1)
        return {"set": ops.log_sigmoid(signed) >= -(np.expand_dims(quantile, -1) + ROUNDING)}


def _log(probabilities: Tensor) -> Tensor:
    """The logarithms of probabilities, which Keras's cross-entropy cuts off likewise."""
    return ops.log(ops.maximum(probabilities, config.epsilon()))


def _class_ids(targets: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Class ids, 0 for those that there are not, and whether there is such a class."""
    dtype = backend.standardize_dtype(targets.dtype)
    if dtype in ("bool", "int8", "uint8"):
        targets = ops.cast(targets, "int32")  # The number of classes may not fit these dtypes.
    is_class = ops.logical_and(targets >= 0, targets < size)
    if backend.is_float_dtype(dtype):
        is_class = ops.logical_and(is_class, ops.equal(targets, ops.floor(targets)))
    return ops.cast(ops.where(is_class, targets, 0), "int32"), is_class


def _are_weights(weights: Any) -> bool:
    return bool(np.all(np.isfinite(weights) & (np.asarray(weights) >= 0)))


def _validate_class_weight(class_weight: Any) -> dict[int, float] | None:
    """The weight of each class id, which JSON may have turned into strings."""
    if class_weight is None:
        return None
    try:
        weights = {int(each): float(weight) for each, weight in class_weight.items()}
    except (AttributeError, TypeError, ValueError):
        weights = {}
    if not weights or min(weights) < 0 or not _are_weights([*weights.values()]):
        raise ValueError(
            "`class_weight` must be a dict from class ids to finite numbers that are not negative, "
            f"or None. Received: class_weight={class_weight!r}"
        )
    return weights
