"""The likelihood of any other Keras loss."""

import functools
import inspect
from typing import Any

import keras
from keras import losses, ops, saving

from keras_uncertainty_mtl._keras_internals import loss_arguments
from keras_uncertainty_mtl._shapes import Shape, check_tensor, match_shape, same_size
from keras_uncertainty_mtl.likelihoods.base import Likelihood, Tensor, register

# Losses of Keras that are the mean of a loss of each element over one axis.
ELEMENTWISE = (
    *(losses.MeanSquaredError, losses.mean_squared_error),
    *(losses.MeanAbsoluteError, losses.mean_absolute_error),
    *(losses.MeanAbsolutePercentageError, losses.mean_absolute_percentage_error),
    *(losses.MeanSquaredLogarithmicError, losses.mean_squared_logarithmic_error),
    *(losses.Huber, losses.huber, losses.LogCosh, losses.log_cosh),
    *(losses.Hinge, losses.hinge, losses.SquaredHinge, losses.squared_hinge),
    *(losses.BinaryCrossentropy, losses.binary_crossentropy),
    *(losses.BinaryFocalCrossentropy, losses.binary_focal_crossentropy),
    *(losses.Poisson, losses.poisson),
)
CLASS_IDS = (
    *(losses.SparseCategoricalCrossentropy, losses.sparse_categorical_crossentropy),
    *(losses.CategoricalGeneralizedCrossEntropy, losses.categorical_generalized_cross_entropy),
)
CIRCLE, CTC = (losses.Circle, losses.circle), (losses.CTC, losses.ctc)
COSINE = (losses.CosineSimilarity, losses.cosine_similarity)
DIVERGENCE = (losses.KLDivergence, losses.kl_divergence)
POISSON = (losses.Poisson, losses.poisson)
STOCK = tuple(value for value in vars(losses).values() if callable(value))


def _prediction(_: Tensor, predictions: Tensor) -> Tensor:
    return predictions


register(_prediction)


@register
class Gibbs(Likelihood):
    """Any Keras loss as the energy of a Gibbs distribution.

    The form of the paper's Eq. 10: `exp(-s) · L + ½ · s` for each value `L` of the loss. Losses
    of Keras that average over elements, such as `Huber`, have a value for each element. Any other
    loss has those that it gives before its reduction. A value over several targets does not count
    if all of them are missing. If only some are, it is NaN, and so is the combined loss. A function
    of your own leaves out single elements if it returns a value for each.

    σ needs a loss that is not below 0, so a constant is added to three losses of Keras: `L` is the
    cosine distance for `CosineSimilarity`, the deviance for `Poisson`, and `KLDivergence` counts
    sums other than 1. Where the mean of any other loss falls below 0, the combined loss is NaN.

    A loss alone does not say which targets are likely. So calibration sets σ, and no more:
    `predictive_model` has the network's own output, without a temperature, an interval or a set.

    Args:
        loss: A `keras.losses.Loss`, its name or config, or a function of `(y_true, y_pred)`.
            Left out, the prediction is the loss itself, and the task has no labels.
        **kwargs: Arguments of `Likelihood`: `missing`, and those on σ.

    Raises:
        ValueError: If `loss` is no Keras loss, or `initial_sigma` is not positive and finite.

    Example:

    >>> layer = UncertaintyWeighting({"price": Gibbs(keras.losses.Huber(delta=10.0))})

    References:
        - [Kendall, Gal & Cipolla, 2018](https://arxiv.org/abs/1705.07115), Eq. 10
    """

    def __init__(self, loss: Any = _prediction, **kwargs: Any) -> None:
        super().__init__(**({"target": 0.0} if loss is _prediction else {}) | kwargs)
        self.keras_loss = get_keras_loss(loss)
        if self.keras_loss is None:
            raise ValueError(
                "Gibbs expects a Keras loss, its name or config, or a function of "
                f"(y_true, y_pred). Received: loss={loss!r}"
            )
        self.from_logits = bool(loss_arguments(self.keras_loss).get("from_logits"))
        if self._is(CIRCLE) and self.missing is not None:
            raise ValueError(
                "The Circle loss compares each sample with all others of its batch, so no label "
                f"may be missing. Received: missing={self.missing}. Leave such samples out."
            )
        if self._is(CLASS_IDS + CIRCLE + CTC):
            self.target_dtype = "int32"
        self._arguments = loss_arguments(self.keras_loss) if self._is(STOCK) else {}

    def loss(self, targets: Tensor, predictions: Tensor) -> Tensor:
        """The values of the Keras loss before its reduction, and the constant of the three."""
        loss: Any = self.keras_loss
        call = loss.call if isinstance(loss, losses.Loss) else loss
        if self._is(ELEMENTWISE):
            # The mean over an axis of size 1 is the loss of the element.
            axis = self._arguments.get("axis", -1)
            values = call(ops.expand_dims(targets, axis), ops.expand_dims(predictions, axis))
        else:
            values = call(targets, predictions)
        if not self._is(COSINE + DIVERGENCE + POISSON):
            return values
        values = values + self._constant(targets, predictions)
        return values + ops.stop_gradient(ops.relu(values) - values)  # No rounding error below 0.

    def _constant(self, targets: Tensor, predictions: Tensor) -> Any:
        """The number that makes 0 the least value of a loss."""
        if self._is(COSINE):
            return 1.0
        tiny = keras.config.epsilon()
        if self._is(POISSON):
            log = ops.log(ops.maximum(targets, 0.0) + tiny)
            return ops.multiply(targets, ops.subtract(log, 1.0))
        return ops.sum(ops.clip(predictions, tiny, 1.0) - ops.clip(targets, tiny, 1.0), axis=-1)

    def target_shape(self, prediction_shape: Shape) -> Shape:
        """The predictions' shape, but for the losses of Keras that take class ids."""
        if self._is(CTC):
            return (prediction_shape[0], None)
        if self._is(CLASS_IDS):
            return prediction_shape[:-1]
        return prediction_shape[:1] if self._is(CIRCLE) else prediction_shape

    def align(self, targets: Tensor, predictions: Tensor) -> Tensor:
        """The targets in the predictions' shape; for a loss of your own also in another shape."""
        if not self._is(STOCK):
            check_tensor(predictions, "predictions")
            check_tensor(targets, "targets")
            shape, batch = tuple(predictions.shape), tuple(targets.shape)[:1]
            if match_shape(targets, shape) is None and batch and same_size(batch[0], shape[0]):
                return targets
        return super().align(targets, predictions)

    def reduced_axes(self, loss_rank: int, target_rank: int) -> tuple[int, ...]:
        """The axes of the targets that a loss is over, as the Keras loss has it."""
        axes = self._arguments.get("axis")
        if axes is None or self._is(ELEMENTWISE + CLASS_IDS):
            return super().reduced_axes(loss_rank, target_rank)
        axes = [axes] if isinstance(axes, int) else axes
        return tuple(axis if axis < 0 else axis + 1 for axis in axes)

    def get_config(self) -> dict[str, Any]:
        try:
            loss = losses.serialize(self.keras_loss)
        except TypeError as error:
            raise ValueError(
                "Saving expects a loss that Keras can save. Received: "
                f"{self.keras_loss!r}. Write it as a registered subclass of `keras.losses.Loss`, "
                "or a registered function."
            ) from error
        if isinstance(self.keras_loss, losses.Loss):
            accepted = inspect.signature(type(self.keras_loss)).parameters
            arguments = loss_arguments(self.keras_loss)
            loss["config"] |= {name: arguments[name] for name in arguments if name in accepted}
        return {"loss": loss, **super().get_config()}

    def _is(self, kinds: tuple[Any, ...]) -> bool:
        """True if the loss is one of these of Keras, with no code of its own."""
        loss: Any = self.keras_loss
        if isinstance(loss, losses.Loss):
            classes = tuple(kind for kind in kinds if isinstance(kind, type))
            own: Any = type(loss)
            return isinstance(loss, classes) and own.call is losses.Huber.call
        return any(stock_function(loss) is kind for kind in kinds)


def stock_function(loss: Any) -> Any:
    """The function of a loss, behind a `functools.partial` that names its arguments."""
    return loss.func if isinstance(loss, functools.partial) and not loss.args else loss


def get_keras_loss(identifier: Any) -> Any:
    """The Keras loss or function of a name, a config or a loss; `None` for anything else."""
    is_dict = isinstance(identifier, dict)
    if is_dict and ("module" in identifier or identifier.get("class_name") == "__lambda__"):
        # Keras's own error says that a function is not registered, or that a lambda is unsafe.
        identifier = saving.deserialize_keras_object(identifier)
    try:
        loss = None if isinstance(identifier, type) else losses.get(identifier)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    is_other = isinstance(loss, (keras.Layer, keras.metrics.Metric))
    return loss if callable(loss) and not is_other else None
