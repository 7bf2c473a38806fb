"""Observations: the elements of a batch that count, and the weight of each."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_uncertainty_mtl._element_weights import element_weights, target_weight, where_observed
from keras_uncertainty_mtl._reductions import (
    nan_unless,
    stack,
    sum_over_replicas,
    weighted_sum,
)
from keras_uncertainty_mtl._shapes import Shape, Tensor
from keras_uncertainty_mtl._structures import by_task, naming_task
from keras_uncertainty_mtl.likelihoods import ELEMENTWISE, Likelihood

# A mean loss as little below 0 may be a rounding error.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Observations:
    """Targets and predictions of the tasks of one likelihood, and the weight of each element.

    All tensors have the shape `(tasks, batch, …)`, all sums `(tasks, channels)`. Targets have a
    harmless value where there is no label. `losses` are the raw losses of the elements, `weights`
    their weights, 0 where an element does not count, or `None` where all count alike. They are the
    `given_weights` times those of the labels, such as `class_weight`.
    """

    likelihood: Likelihood
    channels: int
    targets: Tensor
    predictions: Tensor
    losses: Tensor
    weights: Tensor | None
    given_weights: Tensor | None

    def without_label_weights(self) -> "Observations":
        """These, with no class or label that counts more than another."""
        return replace(self, weights=self.given_weights)

    def in_exact_form(self) -> "Observations":
        """These, in the form whose temperature calibrates an approximate likelihood."""
        logits = self.likelihood.logits(self.predictions)
        return replace(self, likelihood=self.likelihood.exact_form(), predictions=logits)

    @functools.cached_property
    def weight_sum(self) -> Tensor:
        """The sums `Σ w`."""
        weights = ops.ones_like(self.losses) if self.weights is None else self.weights
        return weighted_sum(weights, None, self.channels)

    @functools.cached_property
    def loss_sum(self) -> Tensor:
        """The sums `Σ w·L` of the raw loss."""
        return self._sum(self.losses)

    @functools.cached_property
    def scaled_loss_sum(self) -> Tensor:
        """The sums `Σ w·L·exp(-power · h)`, whose mean gives the closed-form optimum.

        NaN below 0, where there is no optimum: σ would stay where it is without a word.
        """
        likelihood = self.likelihood
        if not likelihood.has_closed_form:
            return self.loss_sum
        if not likelihood.heteroscedastic:
            return nan_unless(self.loss_sum >= -ROUNDING * self.weight_sum, self.loss_sum)
        noise = likelihood.element_log_variance(self.predictions)
        return self._sum(ops.exp(-likelihood.power * noise) * self.losses)

    def running_loss_sum(self, log_variance: Tensor) -> Tensor:
        """The sums `Σ w·L` of the losses whose running mean `s` follows, at its last value."""
        if not self.likelihood.follows_losses or self.likelihood.has_closed_form:
            return self.scaled_loss_sum
        return self._sum(self._at(self.likelihood.running_loss, log_variance))

    def tempered_negative_log_likelihood_sum(self, log_variance: Tensor) -> Tensor:
        """The sums `Σ w·nll` at an `s` a channel, of predictions at their temperature already."""
        likelihood = self.likelihood
        if likelihood.is_tempered:
            return self.loss_sum
        if not likelihood.has_closed_form:
            return self.negative_log_likelihood_sum(log_variance)
        losses, weights = self.scaled_loss_sum, self.weight_sum
        # An overflow that no weight counts would make the gradient of s NaN.
        losses = ops.where(weights == 0, ops.zeros_like(losses), losses)
        sums = likelihood.weight(log_variance) * losses + 0.5 * log_variance * weights
        if likelihood.heteroscedastic:
            sums = sums + 0.5 * self._sum(likelihood.element_log_variance(self.predictions))
        return sums

    def negative_log_likelihood_sum(self, log_variance: Tensor) -> Tensor:
        """The sums `Σ w·nll` at an `s` a channel, element by element, in the likelihood's form."""
        return self._sum(self._at(self.likelihood.negative_log_likelihood, log_variance))

    def nonconformity(self, log_variance: Tensor) -> Tensor:
        """The conformal score of each element, at an `s` a channel."""
        likelihood = self.likelihood

        def score(targets: Tensor, predictions: Tensor, s: Tensor) -> Tensor:
            tempered = likelihood.temper(predictions, s)
            return likelihood.nonconformity(targets, tempered, ops.exp(0.5 * s))

        return self._at(score, log_variance)

    def _at(self, function: Any, log_variance: Tensor) -> Tensor:
        """The values of a function of targets, predictions and an `s` a channel."""
        shape: Shape = (self.channels,) if self.channels > 1 else ()
        if is_elementwise(self.likelihood):
            of = self.losses if self.likelihood.per_channel else self.predictions
            shape = (*[1] * (len(of.shape) - 2), self.channels)
        log_variance = ops.reshape(log_variance, (log_variance.shape[0], *shape))
        tensors = (self.targets, self.predictions, log_variance)
        return _of_elements(self.likelihood, function, *tensors)[0]

    def _sum(self, values: Tensor) -> Tensor:
        return weighted_sum(values, self.weights, self.channels)


def tensors_by_task(
    tasks: Mapping[str, Likelihood],
    predictions: Any,
    targets: Any,
    sample_weight: Any = None,
    mask: Any = None,
) -> dict[str, tuple[Any, ...]]:
    """The prediction, target, weight and Keras mask of each task; the last two may be `None`.

    The mask is a structure, or `None` for the masks that the predictions carry.
    """
    if not isinstance(sample_weight, (dict, list, tuple)):
        sample_weight = dict.fromkeys(tasks, sample_weight)
    named = by_task(tasks, predictions, "predictions")
    if mask is None:
        mask = masks_by_task(named)
    tensors = (
        named,
        _targets_by_task(tasks, targets, named, predictions),
        by_task(tasks, sample_weight, "sample_weight", optional=True, outputs=predictions),
        by_task(tasks, mask, "mask", optional=True, outputs=predictions),
    )
    return {task: tuple(each[task] for each in tensors) for task in tasks}


def labelled_tasks(tasks: Mapping[str, Likelihood], targets: Any) -> list[str]:
    """The tasks that have an entry in the targets: those without a target of their own may not."""
    given = targets if isinstance(targets, dict) else {}
    return [task for task, each in tasks.items() if each.target is None or task in given]


def _targets_by_task(
    tasks: Mapping[str, Likelihood], targets: Any, predictions: dict[str, Tensor], outputs: Any
) -> dict[str, Tensor]:
    labelled = labelled_tasks(tasks, targets)
    named = by_task(labelled, targets, "targets", outputs=outputs)
    for task in tasks.keys() - named.keys():
        estimate = tasks[task].location(predictions[task])
        named[task] = ops.full_like(estimate, tasks[task].target)
    return named


def observe(
    likelihood: Likelihood, channels: int, tensors: Mapping[str, tuple[Any, ...]], dtype: str
) -> Observations:
    """The observations of a batch of tasks of one likelihood.

    `tensors` are those of `tensors_by_task`. Losses are computed in `dtype`.
    """
    all_targets, all_weights = [], []
    for task, (prediction, target, weight, mask) in tensors.items():
        with naming_task(task):
            target, weight = align(likelihood, target, prediction, weight, mask, dtype)
            all_targets.append(target)
            all_weights.append(weight)
    predictions = stack([ops.cast(each[0], dtype) for each in tensors.values()])
    targets = stack(all_targets)
    weights = None
    if given := [weight for weight in all_weights if weight is not None]:
        # Common axes of size 1 stay, because a loss may have fewer axes than its targets.
        zeros = sum(map(ops.zeros_like, given))
        weights = stack([zeros + (1.0 if each is None else each) for each in all_weights])

    observed = where_observed(targets, weights, likelihood.missing)
    if likelihood.target_dtype == "float32":
        targets = ops.cast(targets, dtype)
    if observed is not None:
        targets = ops.where(observed, targets, _harmless_value(likelihood, targets, observed))
    losses, mask = _of_elements(likelihood, likelihood.loss, targets, predictions)
    with naming_task(next(iter(tensors))):
        if likelihood.per_channel and losses.shape[-1] != channels:
            raise ValueError(
                f"Expected predictions of {channels} channels, as the weighting was built for. "
                f"Received: {losses.shape[-1]} channels. Make another UncertaintyWeighting."
            )
        axes = likelihood.reduced_axes(len(losses.shape), len(targets.shape))
        given_weights = element_weights(losses, observed, weights, mask, axes)
        label_weights = likelihood.label_weights(targets, predictions)
    factors = [each for each in (given_weights, label_weights) if each is not None]
    weights = math.prod(factors) if factors else None
    if likelihood.heteroscedastic and likelihood.beta:
        predictions = _balanced(likelihood, channels, predictions, weights)
        losses, _ = _of_elements(likelihood, likelihood.loss, targets, predictions)
    return Observations(likelihood, channels, targets, predictions, losses, weights, given_weights)


def _balanced(likelihood: Likelihood, channels: int, predictions: Tensor, weights: Any) -> Tensor:
    """The predictions, whose estimates have β-NLL's gradients (Seitzer et al., 2022).

    That of an element is multiplied by its σ to the power of 2β, over the mean of all such factors.
    """
    estimates, log_variances = ops.split(predictions, 2, axis=-1)
    factors = ops.exp(likelihood.beta * likelihood.power * log_variances)
    sums = [weighted_sum(each, weights, channels) for each in (factors, ops.ones_like(factors))]
    total, count = ops.unstack(sum_over_replicas(ops.stop_gradient(ops.stack(sums))))
    shape = (factors.shape[0], *[1] * (len(factors.shape) - 2), channels)
    factors = factors * ops.reshape(ops.divide_no_nan(count, total), shape)
    fixed = ops.stop_gradient(estimates)
    moving = ops.stop_gradient(factors) * (estimates - fixed)
    return ops.concatenate([fixed + moving, log_variances], axis=-1)


def align(
    likelihood: Likelihood, target: Any, prediction: Any, weight: Any, mask: Any, dtype: str
) -> tuple[Tensor, Tensor | None]:
    """The target of a task in its prediction's shape, and the weights, which broadcast over it."""
    target = _in_dtype(likelihood.align(target, prediction), dtype)
    return target, target_weight(weight, mask, target, dtype)


def is_elementwise(likelihood: Likelihood) -> bool:
    """True for a likelihood that takes tensors with an axis of tasks before that of the batch."""
    # A Keras loss, or a likelihood of a user's own, might look beyond a single element.
    return type(likelihood) in ELEMENTWISE


def _of_elements(likelihood: Likelihood, function: Any, *tensors: Tensor) -> tuple[Tensor, Any]:
    """A function of a likelihood on tensors with an axis of tasks: its values, and their mask."""
    if is_elementwise(likelihood):
        return function(*tensors), None
    values = function(*(tensor[0] for tensor in tensors))
    # A Keras loss may mask elements that it has no value for, as `Circle` does.
    (mask,) = keras_masks([values])
    return ops.expand_dims(values, 0), None if mask is None else ops.expand_dims(mask, 0)


# Keras hands masks to a layer's call and to nothing else. Building needs shapes, and is not needed.
_mask_reader = keras.layers.Lambda(lambda x, mask=None: mask, mask=lambda *_: None, autocast=False)
_mask_reader.built = True


def keras_masks(tensors: list[Tensor]) -> list[Tensor | None]:
    """The Keras mask of each tensor, or `None`."""
    return list(_mask_reader(tensors))


def masks_by_task(predictions: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    """The Keras mask that the prediction of each task carries, or `None`."""
    return dict(zip(predictions, keras_masks(list(predictions.values())), strict=True))


def _in_dtype(targets: Tensor, dtype: str) -> Tensor:
    """Targets as tensors: truth values as integers, floating point numbers in the losses' dtype."""
    targets = ops.convert_to_tensor(targets)
    kind = keras.backend.standardize_dtype(targets.dtype)
    is_float = keras.backend.is_float_dtype(kind)
    return ops.cast(targets, dtype if is_float else "int32" if kind == "bool" else kind)


def _harmless_value(likelihood: Likelihood, targets: Tensor, observed: Tensor) -> Any:
    """A value for missing targets, of which the loss and its gradient are finite.

    The largest observed one of the batch, or 1: a loss may take its logarithm or its inverse.
    """
    if is_elementwise(likelihood):
        return likelihood.harmless_target
    dtype = keras.backend.standardize_dtype(targets.dtype)
    limits = np.finfo(dtype) if keras.backend.is_float_dtype(dtype) else np.iinfo(dtype)
    lowest = np.asarray(limits.min, dtype)
    axes = tuple(range(max(2, len(targets.shape) - 1)))  # Channels may have different ranges.
    shown = ops.where(observed, targets, lowest)
    largest = ops.max(shown, axis=axes, keepdims=True, initial=lowest)
    return ops.where(ops.greater(largest, lowest), largest, ops.ones_like(largest))
