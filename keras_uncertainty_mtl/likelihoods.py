"""How a task's noise is distributed: an element's raw loss and negative log-likelihood."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_uncertainty_mtl.cross_entropy import (
    cross_entropy,
    sparse_cross_entropy,
    tempered_cross_entropy,
)
from keras_uncertainty_mtl.shapes import Shape, check_tensor, match_shape

Tensor = Any
register = keras.saving.register_keras_serializable(package="keras_uncertainty_mtl")


@register
class Likelihood:
    """Base class of all likelihoods: what one task's error means.

    With `s = log σ²`, the log-variance of the task's noise, a likelihood turns the raw loss `L` of
    an element (its squared error, its cross-entropy, …) into the negative log-likelihood

    ```
    scale · exp(-power · s) · L + ½ · s
    ```

    whose optimum in `s`, for a mean raw loss `L̄`, is `log(2 · scale · power · L̄) / power`.

    To add a likelihood of this form, subclass, override `loss`, and set `scale` and `power` where
    they are not 1. To add one of any other form, override `negative_log_likelihood` as well; its σ
    then starts at 1. Constructor arguments that a subclass adds belong into its `get_config`, and
    `keras.saving.register_keras_serializable` lets saved models find the class again.

    Args:
        initial_sigma: The standard deviation of the noise that training starts from, in the task's
            own units: a positive number, or, where there is one σ for each channel, a sequence of
            them. `None`: the closed-form optimum on the first training batch.
        missing: The target value that means "no label here": `float("nan")`, `-1`, `255`, … With
            `None`, nothing is missing.

    Raises:
        ValueError: If `initial_sigma` is not positive and finite, or `missing` is not a number.

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
    heteroscedastic: bool = False
    target_dtype: str = "float32"

    def __init__(
        self,
        initial_sigma: float | Sequence[float] | None = None,
        missing: float | None = None,
    ) -> None:
        self.initial_sigma = _validate_sigma(initial_sigma, self.per_channel)
        if missing is not None and not isinstance(missing, Real):
            raise ValueError(
                "`missing` must be the number that marks a missing target, such as "
                f'float("nan"), -1 or 255, or None. Received: missing={missing!r}'
            )
        self.missing = missing if missing is None else float(missing)

    def loss(self, targets: Tensor, predictions: Tensor) -> Tensor:
        """The raw loss of each element, as every Keras user knows it.

        Args:
            targets: Tensor of the shape that `target_shape` states.
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
            targets: Tensor of the shape that `target_shape` states.
            predictions: Floating point tensor, the network's output.
            log_variance: `s = log σ²`: a scalar, or a vector over the last axis of `predictions`.

        Returns:
            Tensor of one number an element.
        """
        log_variance = self.element_log_variance(predictions, log_variance)
        return self.loss(targets, predictions) * self.weight(log_variance) + 0.5 * log_variance

    def element_log_variance(self, predictions: Tensor, log_variance: Tensor) -> Tensor:
        """The log-variance of each element: the task's own, but for a heteroscedastic likelihood.

        Args:
            predictions: Floating point tensor, the network's output.
            log_variance: `s = log σ²`, the task's log-variance.

        Returns:
            Tensor that broadcasts over the elements.
        """
        return log_variance

    def predictive(self, predictions: Tensor, sigma: Any) -> dict[str, Tensor]:
        """The parameters of the distribution that is predicted for each element.

        Args:
            predictions: Symbolic floating point tensor, the network's output.
            sigma: The task's σ: a number, or a NumPy vector over the last axis of the targets.

        Returns:
            Dict from the name of each parameter to a tensor of it, made of Keras's own operations
            alone, so that a saved model needs nothing else. The base class, which knows no
            distribution, hands the network's output on as `"prediction"`.
        """
        return {"prediction": predictions}

    def weight(self, log_variance: Tensor) -> Tensor:
        """The factor that multiplies the raw loss: `scale · exp(-power · s)`.

        Args:
            log_variance: `s = log σ²`.

        Returns:
            Tensor of the shape of `log_variance`.
        """
        return self.scale * ops.exp(-self.power * log_variance)

    @property
    def has_closed_form(self) -> bool:
        """Whether the optimum in `s` follows from a mean over the elements."""
        return type(self).negative_log_likelihood is Likelihood.negative_log_likelihood

    @property
    def weights_loss(self) -> bool:
        """Whether the negative log-likelihood is `weight · loss + ½ · s`, element by element.

        If so the mean raw loss of a task is all that is needed of a batch.
        """
        return self.has_closed_form and not self.heteroscedastic

    def target_shape(self, prediction_shape: Shape) -> Shape:
        """The shape of the targets that go with predictions of shape `prediction_shape`.

        Args:
            prediction_shape: Tuple of integers, `None` where a size is not known.

        Returns:
            Tuple of integers and `None`.

        Raises:
            ValueError: If no targets go with such predictions.
        """
        return prediction_shape

    def align(self, targets: Tensor, predictions: Tensor) -> Tensor:
        """Targets in the shape that goes with the predictions.

        An axis of size 1 at the end is added or taken away, so that `(batch,)` fits
        `(batch, 1)`; nothing else is broadcast.

        Args:
            targets: Tensor of targets.
            predictions: Tensor of predictions.

        Returns:
            The targets, of shape `target_shape(predictions.shape)`.

        Raises:
            ValueError: If the shapes do not fit each other, or these are no numbers.
        """
        check_tensor(predictions, "predictions")
        check_tensor(targets, "targets")
        expected = self.target_shape(tuple(predictions.shape))
        aligned = match_shape(targets, expected)
        if aligned is None:
            raise ValueError(
                f"{type(self).__name__} expects targets of shape {expected} for predictions of "
                f"shape {tuple(predictions.shape)}. Received: targets of shape "
                f"{tuple(targets.shape)}. {self._shape_advice(targets, predictions)}"
            )
        if None in (*aligned.shape[1:], *expected[1:]):
            # A size that is not known yet fails when it is, instead of being broadcast.
            sizes = self.target_shape(ops.shape(predictions))
            if None not in sizes:
                aligned = ops.reshape(aligned, sizes)
        return aligned

    def _shape_advice(self, targets: Tensor, predictions: Tensor) -> str:
        return "Reshape the targets or the network's output so that they agree."

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, for saving."""
        return {"initial_sigma": self.initial_sigma, "missing": self.missing}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Likelihood:
        """The likelihood that `get_config` describes."""
        return cls(**config)


class _Continuous(Likelihood):
    """Real-valued targets, one σ or one for each channel, and maybe a factor for each element."""

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
        """The network's estimate of the targets: all of its output, or the first half of it."""
        return self._halves(predictions)[0] if self.heteroscedastic else predictions

    def element_log_variance(self, predictions: Tensor, log_variance: Tensor) -> Tensor:
        """`s`, or `s + h` where the network's output has an `h` for each element."""
        if not self.heteroscedastic:
            return log_variance
        return log_variance + self._halves(predictions)[1]

    def element_sigma(self, predictions: Tensor, sigma: Any) -> Tensor:
        """The σ of each element, in the shape of the targets."""
        if not self.heteroscedastic:
            return ops.zeros_like(predictions) + sigma
        return ops.exp(0.5 * self._halves(predictions)[1]) * sigma

    def target_shape(self, prediction_shape: Shape) -> Shape:
        """The predictions' shape, without the second half of its last axis where that holds `h`."""
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

    def _shape_advice(self, targets: Tensor, predictions: Tensor) -> str:
        if self.heteroscedastic:
            return (
                "With heteroscedastic=True half of the predictions' channels are log-variances, so "
                "there are twice as many channels of predictions as of targets."
            )
        return super()._shape_advice(targets, predictions)

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

    Its σ estimates the root of the mean squared error, in the units of the target.

    With `heteroscedastic=True` the network also tells how noisy each element is, the other kind of
    aleatoric uncertainty of Kendall & Gal (2017). Its output has twice as many channels as the
    targets: first all `f`, then for each a log-variance `h`, next to the task's own:

    ```
    ½ · exp(-(s + h)) · (y - f)² + ½ · (s + h)
    ```

    σ is then the scale of the whole task, and `σ · exp(h/2)` that of an element; `s` and the mean
    of `h` may trade places, and with a constant `h` it is the homoscedastic form. `{task}_loss`
    stays the raw loss of `f`. Numbers are finite while `exp(-(s + h))` and what it multiplies are:
    in single precision, for `s + h` down to -80 or so.

    Args:
        per_channel: Whether each entry of the last axis has a σ of its own.
        initial_sigma: The σ that training starts from, in the units of the target; a sequence of
            one for each channel where `per_channel`. `None`: the root mean squared error on the
            first training batch.
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

    σ is the standard deviation, `√2` times the scale `b` of the Laplace distribution, so it
    estimates `√2` times the mean absolute error.

    With `heteroscedastic=True` the network also tells how noisy each element is, the other kind of
    aleatoric uncertainty of Kendall & Gal (2017). Its output has twice as many channels as the
    targets: first all `f`, then for each a log-variance `h`, next to the task's own:

    ```
    √2 · exp(-(s + h)/2) · |y - f| + ½ · (s + h)
    ```

    σ is then the scale of the whole task, and `σ · exp(h/2)` that of an element; `s` and the mean
    of `h` may trade places, and with a constant `h` it is the homoscedastic form. `{task}_loss`
    stays the raw loss of `f`. Numbers are finite while `exp(-(s + h))` and what it multiplies are:
    in single precision, for `s + h` down to -80 or so.

    Args:
        per_channel: Whether each entry of the last axis has a σ of its own.
        initial_sigma: The σ that training starts from, in the units of the target; a sequence of
            one for each channel where `per_channel`. `None`: `√2` times the mean absolute error
            on the first training batch.
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
            # Of the tensor, since NumPy 1 makes double precision of such a σ.
            "scale": self.element_sigma(predictions, sigma) / math.sqrt(2.0),
        }


class _Discrete(Likelihood):
    """Class labels, and σ² as the temperature of the logits."""

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

    def negative_log_likelihood(
        self, targets: Tensor, predictions: Tensor, log_variance: Tensor
    ) -> Tensor:
        """The cross-entropy at temperature σ², or its approximation."""
        if self.approximate:
            return super().negative_log_likelihood(targets, predictions, log_variance)
        return self.loss(targets, predictions * ops.exp(-log_variance))

    def predictive(self, predictions: Tensor, sigma: Any) -> dict[str, Tensor]:
        """The `"probabilities"` of each element: the exact form's at its temperature, σ².

        The approximate form trains the network's probabilities as they are, and its σ² is what
        their cross-entropy weighs, not a temperature: a network that is nearly always right has a
        σ² near 0, at which it would claim to be certain. So its probabilities stay as they are.
        """
        if not self.from_logits:
            return {"probabilities": predictions}
        temperature = 1.0 if self.approximate else float(sigma) ** 2
        return {"probabilities": self._activation(predictions / temperature)}

    def get_config(self) -> dict[str, Any]:
        return {
            "from_logits": self.from_logits,
            "approximate": self.approximate,
            **super().get_config(),
        }


def _is_taken_by_hand(logits: Tensor) -> bool:
    """Whether the exact form does not take the backend's own cross-entropy."""
    # PyTorch runs a step operation by operation, of which its own takes fewer. Symbolic tensors
    # have neither a gradient nor, all of them, a shape.
    return keras.backend.backend() != "torch" and not isinstance(logits, keras.KerasTensor)


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
            closed-form optimum on the first training batch for the approximate one.
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
        super().__init__(
            from_logits=from_logits,
            approximate=approximate,
            initial_sigma=initial_sigma,
            missing=missing,
        )
        self.sparse = sparse
        if sparse and (self.missing is None or self.missing.is_integer()):
            self.target_dtype = "int32"

    def loss(self, targets: Tensor, predictions: Tensor) -> Tensor:
        """The cross-entropy of each element, over the last axis.

        For a class out of range it is NaN, or on some devices an error.
        """
        if not self.sparse:
            return ops.categorical_crossentropy(targets, predictions, from_logits=self.from_logits)
        if self.approximate or not _is_taken_by_hand(predictions):
            return sparse_cross_entropy(predictions, targets, self.from_logits)
        return cross_entropy(predictions, targets)

    def negative_log_likelihood(
        self, targets: Tensor, predictions: Tensor, log_variance: Tensor
    ) -> Tensor:
        """The cross-entropy at temperature σ², or its approximation."""
        has_own_loss = type(self).loss is not Categorical.loss
        if self.approximate or not self.sparse or has_own_loss:
            return super().negative_log_likelihood(targets, predictions, log_variance)
        inverse_temperature = ops.exp(-log_variance)
        # A gradient by hand is not for a temperature of each class.
        is_of_classes = inverse_temperature.shape[-1:] not in ((), (1,))
        if is_of_classes or not _is_taken_by_hand(predictions):
            return sparse_cross_entropy(predictions * inverse_temperature, targets)
        return tempered_cross_entropy(predictions, inverse_temperature, targets)

    def target_shape(self, prediction_shape: Shape) -> Shape:
        """The predictions' shape, for class ids without its last axis."""
        if len(prediction_shape) < 2 or prediction_shape[-1] in (None, 1):
            raise ValueError(
                "Categorical expects predictions of shape (batch, …, classes) with 2 classes or "
                f"more. Received: predictions of shape {prediction_shape}. For a single yes-or-no "
                "output use Bernoulli, for a number Gaussian or Laplace."
            )
        return prediction_shape[:-1] if self.sparse else prediction_shape

    def _shape_advice(self, targets: Tensor, predictions: Tensor) -> str:
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
            closed-form optimum on the first training batch for the approximate one.
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


@register
class Gibbs(Likelihood):
    """Any Keras loss as the energy of a Gibbs distribution.

    The form of the paper's Eq. 10, for each value `L` that the loss gives before its reduction:

    ```
    exp(-s) · L + ½ · s
    ```

    A loss that averages over the last axis, as Keras's `Huber` does, gives one value for each
    entry of the axes before it; such an element is missing if any of its targets is.

    Args:
        loss: A `keras.losses.Loss`, its name or config, or a function of `(y_true, y_pred)`.
        initial_sigma: The σ that training starts from. `None`: the closed-form optimum on the
            first training batch, `σ² = 2 · mean loss`.
        missing: The target value that means "no label here".

    Raises:
        ValueError: If `loss` is no Keras loss, or `initial_sigma` is not positive and finite.

    Example:

    ```python
    UncertaintyWeighting({"price": Gibbs(keras.losses.Huber(delta=10.0))})
    ```

    References:
        - [Kendall, Gal & Cipolla, 2018](https://arxiv.org/abs/1705.07115), Eq. 10
    """

    def __init__(
        self,
        loss: Any,
        initial_sigma: float | None = None,
        missing: float | None = None,
    ) -> None:
        super().__init__(initial_sigma=initial_sigma, missing=missing)
        self.keras_loss = _get_keras_object(loss)
        if not _is_keras_loss(self.keras_loss):
            raise ValueError(
                "Gibbs expects a Keras loss, its name or config, or a function of "
                f"(y_true, y_pred). Received: loss={loss!r}"
            )
        if isinstance(self.keras_loss, (keras.losses.Circle, keras.losses.CTC)):
            self.target_dtype = "int32"

    def loss(self, targets: Tensor, predictions: Tensor) -> Tensor:
        """The values of the Keras loss before its reduction."""
        if isinstance(self.keras_loss, keras.losses.Loss):
            return self.keras_loss.call(targets, predictions)
        return self.keras_loss(targets, predictions)

    def target_shape(self, prediction_shape: Shape) -> Shape:
        """The predictions' shape, but for the two losses of Keras that take class ids."""
        if isinstance(self.keras_loss, keras.losses.Circle):
            return prediction_shape[:1]
        if isinstance(self.keras_loss, keras.losses.CTC):
            return (prediction_shape[0], None)
        return prediction_shape

    def get_config(self) -> dict[str, Any]:
        loss = keras.losses.serialize(self.keras_loss)
        if isinstance(self.keras_loss, keras.losses.Loss):
            accepted = inspect.signature(type(self.keras_loss)).parameters
            arguments = _loss_arguments(self.keras_loss)
            loss["config"] |= {name: arguments[name] for name in arguments if name in accepted}
        return {"loss": loss, **super().get_config()}


def closed_form_optimum(mean_loss: Any, scale: Any, power: Any) -> Any:
    """The log-variance at which `scale · exp(-power · s) · mean_loss + ½ · s` is smallest.

    Args:
        mean_loss: A positive mean loss, or an array of them.
        scale: The `scale` of a likelihood, or an array of them.
        power: The `power` of a likelihood, or an array of them.

    Returns:
        A number, or an array of them.
    """
    return np.log(2.0 * scale * power * mean_loss) / power


def get(identifier: Any) -> Likelihood:
    """The likelihood that a `Likelihood`, a Keras loss, a name or a config stands for.

    Args:
        identifier: A `Likelihood`; or whatever `keras.losses.get` takes: the name of a loss, an
            instance of one, a function. The squared and absolute error and the cross-entropies
            become the matching likelihood, any other loss becomes `Gibbs(loss)`. Cross-entropy of
            probabilities becomes the approximate form, as the exact one needs logits.

    Returns:
        A `Likelihood`.

    Raises:
        ValueError: If `identifier` is none of these.
    """
    likelihood = identifier if isinstance(identifier, Likelihood) else _get_keras_object(identifier)
    if isinstance(likelihood, Likelihood):
        return likelihood
    if not _is_keras_loss(likelihood):
        raise ValueError(
            "Expected a likelihood, such as Gaussian() or Categorical(), or a Keras loss, its "
            f"name or config. Received: {identifier!r}"
        )
    return _from_keras_loss(likelihood)


_LOSS_OF_FUNCTION = {
    keras.losses.mean_squared_error: keras.losses.MeanSquaredError,
    keras.losses.mean_absolute_error: keras.losses.MeanAbsoluteError,
    keras.losses.binary_crossentropy: keras.losses.BinaryCrossentropy,
    keras.losses.categorical_crossentropy: keras.losses.CategoricalCrossentropy,
    keras.losses.sparse_categorical_crossentropy: keras.losses.SparseCategoricalCrossentropy,
}


def _get_keras_object(identifier: Any) -> Any:
    """What a name, a config or an object stands for in Keras, or `None`."""
    if isinstance(identifier, type):
        return None
    if isinstance(identifier, dict) and "module" in identifier:
        return keras.saving.deserialize_keras_object(identifier)
    try:
        return keras.losses.get(identifier)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _is_keras_loss(loss: Any) -> bool:
    return isinstance(loss, keras.losses.Loss) or inspect.isroutine(loss)


def _from_keras_loss(loss: Any) -> Likelihood:
    if loss in _LOSS_OF_FUNCTION:
        loss = _LOSS_OF_FUNCTION[loss]()
    kind = type(loss)
    if kind is keras.losses.MeanSquaredError:
        return Gaussian()
    if kind is keras.losses.MeanAbsoluteError:
        return Laplace()
    config = _loss_arguments(loss)
    axis = config.get("axis", -1)
    if kind is keras.losses.SparseCategoricalCrossentropy and axis != -1:
        raise ValueError(
            "Expected a sparse cross-entropy over the last axis. "
            f"Received: {kind.__name__}(axis={axis}). Move the classes to the last axis."
        )
    if config.get("label_smoothing") or axis != -1:
        return Gibbs(loss)
    logits = {
        "from_logits": config.get("from_logits", False),
        "approximate": not config.get("from_logits", False),
    }
    if kind is keras.losses.BinaryCrossentropy:
        return Bernoulli(**logits)
    if kind is keras.losses.CategoricalCrossentropy:
        return Categorical(sparse=False, **logits)
    if kind is keras.losses.SparseCategoricalCrossentropy:
        return Categorical(missing=config.get("ignore_class"), **logits)
    return Gibbs(loss)


def _loss_arguments(loss: Any) -> dict[str, Any]:
    """The arguments that a Keras loss was made with.

    Keras leaves some out of `get_config`, so that `Huber(delta=3)` comes back as `Huber()`; they
    are in the private arguments of its function all the same.
    """
    return getattr(loss, "_fn_kwargs", {})


def _validate_sigma(sigma: Any, per_channel: bool) -> float | list[float] | None:
    """A positive number, or a list of them, as plain floats that serialize."""
    if sigma is None:
        return None
    try:
        values = np.asarray(sigma, "float64")
    except (TypeError, ValueError):
        values = np.array(math.nan)
    if not np.all((values > 0) & np.isfinite(values)):
        raise ValueError(
            "`initial_sigma` must be positive and finite, in the task's units, or None to start "
            f"from the first training batch. Received: initial_sigma={sigma!r}"
        )
    if values.ndim > int(per_channel):
        raise ValueError(
            "`initial_sigma` must be one number, or a sequence of one for each channel where a "
            f"likelihood has `per_channel=True`. Received: initial_sigma={sigma!r}"
        )
    return values.tolist()
