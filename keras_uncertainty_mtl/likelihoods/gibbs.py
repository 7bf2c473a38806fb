"""The likelihood of any other Keras loss."""

import inspect
from typing import Any

import keras

from keras_uncertainty_mtl._keras_internals import loss_arguments
from keras_uncertainty_mtl._shapes import Shape
from keras_uncertainty_mtl.likelihoods.base import Likelihood, Tensor, register


@register
class Gibbs(Likelihood):
    """Any Keras loss as the energy of a Gibbs distribution.

    The form of the paper's Eq. 10: `exp(-s) · L + ½ · s` for each value `L` that the loss gives
    before its reduction. A loss that averages over the last axis, as Keras's `Huber` does, gives
    one value for all channels. It is missing if any of its targets is.

    Args:
        loss: A `keras.losses.Loss`, its name or config, or a function of `(y_true, y_pred)`.
        initial_sigma: The σ to start from. `None`: the first batch's `σ² = 2 · mean loss`.
        missing: The target value that means "no label here".

    Raises:
        ValueError: If `loss` is no Keras loss, or `initial_sigma` is not positive and finite.

    Example:

    >>> layer = UncertaintyWeighting({"price": Gibbs(keras.losses.Huber(delta=10.0))})

    References:
        - [Kendall, Gal & Cipolla, 2018](https://arxiv.org/abs/1705.07115), Eq. 10
    """

    def __init__(
        self, loss: Any, initial_sigma: float | None = None, missing: float | None = None
    ) -> None:
        super().__init__(initial_sigma=initial_sigma, missing=missing)
        self.keras_loss = get_keras_loss(loss)
        if self.keras_loss is None:
            raise ValueError(
                "Gibbs expects a Keras loss, its name or config, or a function of "
                f"(y_true, y_pred). Received: loss={loss!r}"
            )
        self.from_logits = bool(loss_arguments(self.keras_loss).get("from_logits"))
        if isinstance(self.keras_loss, (keras.losses.Circle, keras.losses.CTC)):
            self.target_dtype = "int32"

    def loss(self, targets: Tensor, predictions: Tensor) -> Tensor:
        """The values of the Keras loss before its reduction."""
        call = getattr(self.keras_loss, "call", self.keras_loss)
        return call(targets, predictions)

    def target_shape(self, prediction_shape: Shape) -> Shape:
        """The predictions' shape, but for the two losses of Keras that take class ids."""
        if isinstance(self.keras_loss, keras.losses.CTC):
            return (prediction_shape[0], None)
        is_circle = isinstance(self.keras_loss, keras.losses.Circle)
        return prediction_shape[:1] if is_circle else prediction_shape

    def get_config(self) -> dict[str, Any]:
        loss = keras.losses.serialize(self.keras_loss)
        if isinstance(self.keras_loss, keras.losses.Loss):
            accepted = inspect.signature(type(self.keras_loss)).parameters
            arguments = loss_arguments(self.keras_loss)
            loss["config"] |= {name: arguments[name] for name in arguments if name in accepted}
        return {"loss": loss, **super().get_config()}


def get_keras_loss(identifier: Any) -> Any:
    """The Keras loss or function of a name, a config or a loss; `None` for anything else."""
    try:
        loss = None if isinstance(identifier, type) else keras.losses.get(identifier)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return loss if isinstance(loss, keras.losses.Loss) or inspect.isroutine(loss) else None
