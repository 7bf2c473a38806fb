"""The contract of all likelihoods."""

from collections.abc import Sequence
from numbers import Real
from typing import Any, Self

import numpy as np
from keras import ops, saving

from keras_uncertainty_mtl._shapes import Shape, check_tensor, match_shape

Tensor = Any
register = saving.register_keras_serializable(package="keras_uncertainty_mtl")


@register
class Likelihood:
    """Base class of all likelihoods.

    Let `s = log σ²` be the log-variance of a task's noise. Let `L` be the raw loss of an element:
    its squared error, its cross-entropy, … The negative log-likelihood of the element is
    `scale · exp(-power · s) · L + ½ · s`. Where `is_tempered`, it is instead the raw loss of
    `exp(-s) · f`, the logits at temperature σ².

    To add a likelihood of this form, override `loss`, and set `scale` and `power` where they are
    not 1. For any other form, override `negative_log_likelihood` too; its σ then starts at 1. If it
    sets `follows_losses`, σ instead follows a running mean of the losses, or of `running_loss`.
    Constructor arguments of a subclass belong into its `get_config`, for saved models.

    Args:
        initial_sigma: The σ to start from, in the task's units: a positive number, or one for each
            channel. It counts as one batch of such errors. `None`: the first batch's optimum.
        missing: The target value that means "no label here", such as `float("nan")` or `-1`.
        min_sigma: The σ that the task's σ never falls below, in the task's units, so that a task
            which is learnt by heart leaves the others their share.
        trainable: If False, σ stays at `initial_sigma`, or 1, until it is set or calibrated.
        target: The target of every element, for a task without labels: 0 for a residual. Data then
            have no entry for the task.

    Raises:
        ValueError: If a σ is not positive and finite, or `missing` or `target` is not a number.

    Example:

    ```python
    @keras.saving.register_keras_serializable(package="my_project")
    class Quartic(Likelihood):
        scale, power = 0.25, 2.0  # ¼ · (y - f)⁴ / σ⁴ + ½ · log σ²

        def loss(self, targets, predictions):
            return (targets - predictions) ** 4
    ```

    References:
        - [Kendall, Gal & Cipolla, 2018](https://arxiv.org/abs/1705.07115)
    """

    scale: float = 1.0
    power: float = 1.0
    per_channel: bool = False
    channels: list[str] | None = None
    heteroscedastic: bool = False
    beta: float = 0.0
    is_tempered: bool = False
    from_logits: bool = False
    target_dtype: str = "float32"
    has_whole_targets: bool = False
    harmless_target: int = 0  # A target for missing ones, of which all is finite.
    _shape_advice: str = "Reshape the targets or the network's output so that they agree."

    def __init__(
        self,
        initial_sigma: float | Sequence[float] | None = None,
        missing: float | None = None,
        min_sigma: float | None = None,
        trainable: bool = True,
        target: float | None = None,
        **unknown: Any,
    ) -> None:
        if unknown:
            name = type(self).__name__
            raise TypeError(f"{name}() got an unexpected keyword argument {min(unknown)!r}")
        self.initial_sigma = _validate_sigma("initial_sigma", initial_sigma, self.per_channel)
        self.min_sigma = _validate_sigma("min_sigma", min_sigma, per_channel=False)
        self.trainable = bool(trainable)
        self.missing = _validate_number("missing", "marks a missing target", missing)
        self.target = _validate_number("target", "is the target of every element", target)

    @property
    def has_closed_form(self) -> bool:
        """True if a mean over the elements gives the optimum in `s`."""
        is_standard = type(self).negative_log_likelihood is Likelihood.negative_log_likelihood
        return is_standard and not self.is_tempered

    @property
    def follows_losses(self) -> bool:
        """True if `s` starts from the `optimum` of a mean of `running_loss`, and follows it."""
        return self.has_closed_form

    def loss(self, targets: Tensor, predictions: Tensor) -> Tensor:
        """The raw loss of each element, as in any Keras run.

        Args:
            targets: Tensor of shape `target_shape(predictions.shape)`.
            predictions: Floating point tensor, the network's output.

        Returns:
            Tensor of one number an element; its shape leads the shape of `predictions`.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement `loss()`.")

    def negative_log_likelihood(
        self, targets: Tensor, predictions: Tensor, log_variance: Tensor
    ) -> Tensor:
        """The negative log-likelihood of each element, additive constants dropped.

        Args:
            targets, predictions: As in `loss`.
            log_variance: `s = log σ²`, a tensor that broadcasts over the elements.

        Returns:
            Tensor of one number an element.
        """
        if self.is_tempered:
            return self.loss(targets, self.temper(predictions, log_variance))
        log_variance = log_variance + self.element_log_variance(predictions)
        return self.loss(targets, predictions) * self.weight(log_variance) + 0.5 * log_variance

    def running_loss(self, targets: Tensor, predictions: Tensor, log_variance: Tensor) -> Tensor:
        """The loss of each element that `s` follows where there is no closed form, at this `s`."""
        return self.loss(targets, predictions)

    def location(self, predictions: Tensor) -> Tensor:
        """The estimate of the targets, which metrics see: the predictions, or a part of them."""
        return predictions

    def element_log_variance(self, predictions: Tensor) -> Any:
        """`h`, the log-variance of each element next to the task's `s`; 0 if there is none."""
        return 0.0

    def weight(self, log_variance: Tensor) -> Tensor:
        """The factor of the raw loss, `scale · exp(-power · s)`."""
        return self.scale * ops.exp(-self.power * log_variance)

    def optimum(self, mean_loss: Any) -> Any:
        """The `s` of smallest negative log-likelihood, `log(2 · scale · power · L̄) / power`."""
        return np.log(2.0 * self.scale * self.power * mean_loss) / self.power

    def temper(self, predictions: Tensor, log_variance: Tensor) -> Tensor:
        """The predictions that the model hands on: `exp(-s) · f` where `is_tempered`, else `f`."""
        return predictions * ops.exp(-log_variance) if self.is_tempered else predictions

    def predictive(self, predictions: Tensor, sigma: Any) -> dict[str, Tensor]:
        """The parameters of the predicted distribution of each element.

        Args:
            predictions: Symbolic floating point tensor, as the trained model answers.
            sigma: The task's σ: a number, or a NumPy vector over the last axis of the targets.

        Returns:
            Dict of a tensor for each parameter, made by Keras's operations alone so that it saves.
        """
        return {"prediction": predictions}

    def exact_form(self) -> "Likelihood":
        """The likelihood that is calibrated: itself, or an approximate one's exact form."""
        return self

    def logits(self, predictions: Tensor) -> Tensor:
        """The predictions as `exact_form` takes them."""
        return predictions

    @property
    def has_intervals(self) -> bool:
        """True if there is a `nonconformity`, on which intervals or sets rest."""
        return type(self).nonconformity is not Likelihood.nonconformity

    def nonconformity(self, targets: Tensor, predictions: Tensor, sigma: Any) -> Tensor:
        """The conformal score of each element: the larger, the less a target is expected.

        Args:
            targets: As in `loss`.
            predictions: As the trained model answers: at their temperature, if any.
            sigma: The task's σ, which broadcasts over the elements.

        Returns:
            Tensor of one number an element.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `nonconformity()`.")

    def prediction_region(
        self, predictions: Tensor, sigma: Any, quantile: Any
    ) -> dict[str, Tensor]:
        """The targets whose `nonconformity` is at most a quantile.

        Args:
            predictions, sigma: As in `predictive`.
            quantile: The quantile of the scores, a number or a NumPy vector as `sigma`; it may be
                infinite.

        Returns:
            Dict of `"lower"` and `"upper"`, or of a `"set"`: truth values, by class on a last axis.
        """
        return {}

    def loss_shape(self, prediction_shape: Shape) -> Shape:
        """The shape of the losses, whose last axis is that of the channels."""
        return self.target_shape(prediction_shape)

    def label_weights(self, targets: Tensor, predictions: Tensor) -> Tensor | None:
        """The factor of each loss's weight in training, `None` for 1; calibration leaves it out."""
        return None

    def target_shape(self, prediction_shape: Shape) -> Shape:
        """The shape of the targets that go with predictions of a shape; sizes may be `None`."""
        return prediction_shape

    def target_range(self, prediction_shape: Shape) -> tuple[float, float]:
        """The lowest and the highest target that there is."""
        return -np.inf, np.inf

    def reduced_axes(self, loss_rank: int, target_rank: int) -> tuple[int, ...]:
        """The axes of the targets that a loss is over: those at the end that it has not."""
        return tuple(range(loss_rank, target_rank))

    def align(self, targets: Tensor, predictions: Tensor) -> Tensor:
        """The targets in the shape that goes with the predictions: `(batch,)` fits `(batch, 1)`.

        An axis of size 1 at the end is added or removed. Nothing else is broadcast.
        """
        check_tensor(predictions, "predictions")
        check_tensor(targets, "targets")
        prediction_shape = tuple(predictions.shape)
        expected = self.target_shape(prediction_shape)
        aligned = match_shape(targets, expected)
        if aligned is None:
            raise ValueError(
                f"{type(self).__name__} expects targets of shape {expected} for predictions of "
                f"shape {prediction_shape}. Received: targets of shape {tuple(targets.shape)}. "
                f"{self._shape_advice}"
            )
        if None in (*aligned.shape[1:], *expected[1:]):
            # An unknown size that does not fit fails here at run time, instead of broadcasting.
            sizes = self.target_shape(ops.shape(predictions))
            aligned = aligned if None in sizes else ops.reshape(aligned, sizes)
        return aligned

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, for saving."""
        names = ("initial_sigma", "missing", "min_sigma", "trainable", "target")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The likelihood of a config."""
        return cls(**config)


def validate_channels(channels: Any) -> list[str] | None:
    """A list of different names, or `None`."""
    if channels is None:
        return None
    names = [] if isinstance(channels, str) else list(channels)
    if not names or len(set(names)) < len(names) or not all(isinstance(n, str) for n in names):
        raise ValueError(
            f"`channels` must be a list of different names, or None. Received: {channels!r}"
        )
    return names


def _validate_number(name: str, meaning: str, value: Any) -> float | None:
    if value is not None and not isinstance(value, Real):
        raise ValueError(
            f"`{name}` must be the number that {meaning}, such as -1 or 0.0, or None. "
            f"Received: {name}={value!r}"
        )
    return None if value is None else float(value)


def _validate_sigma(name: str, sigma: Any, per_channel: bool) -> Any:
    """A positive number, or a list of them, as plain floats that serialize."""
    if sigma is None:
        return None
    try:
        values = np.asarray(sigma, "float64")
    except (TypeError, ValueError):
        values = np.array(np.nan)
    if values.ndim > int(per_channel) or not np.all((values > 0) & np.isfinite(values)):
        raise ValueError(
            f"`{name}` must be positive and finite, in the task's units: one number, or for "
            "`initial_sigma` with `per_channel=True` one for each channel; or None. "
            f"Received: {name}={sigma!r}"
        )
    return values.tolist()
