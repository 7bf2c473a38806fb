"""What a batch holds of one task: the elements that count, and how much each weighs."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.src.backend import get_keras_mask  # There is no public way from a tensor to its mask.

from keras_uncertainty_mtl.direct_ops import cast, stack
from keras_uncertainty_mtl.likelihoods import Bernoulli, Categorical, Gaussian, Laplace, Likelihood
from keras_uncertainty_mtl.reductions import total_weight, weighted_sum
from keras_uncertainty_mtl.shapes import (
    check_tensor,
    has_static_elements,
    match_leading_axes,
)

Tensor = Any

# How many predictions a sample may have at most for its task to be computed with others.
STACKED_SIZE = 1024


@dataclass(frozen=True)
class Observations:
    """Targets and predictions of one task in one batch, and the weight of each element.

    Args:
        likelihood: The task's likelihood.
        targets: Tensor of targets, with a harmless value where there is no label.
        predictions: Tensor of predictions, in the dtype that losses are computed in.
        losses: Tensor of the raw loss of each element.
        weights: Tensor of the weight of each element, 0 where it does not count, or `None`.
        stacked: Whether the first axis of all of these is of tasks, which have one likelihood.
    """

    likelihood: Likelihood
    targets: Tensor
    predictions: Tensor
    losses: Tensor
    weights: Tensor | None
    stacked: bool = False

    @classmethod
    def of(
        cls,
        likelihood: Likelihood,
        predictions: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None,
        dtype: str,
    ) -> Observations:
        """Takes a batch of a task apart.

        Args:
            likelihood: The task's likelihood.
            predictions: Tensor of predictions, which may carry a Keras mask.
            targets: Tensor of targets.
            sample_weight: Tensor of weights for each sample or each element, or `None`.
            dtype: Name of the dtype that losses are computed in.

        Returns:
            An `Observations`.

        Raises:
            ValueError: If the shapes do not fit each other, or these are no numbers.
        """
        targets = likelihood.align(targets, predictions)
        return cls._of_aligned(likelihood, predictions, targets, sample_weight, dtype)

    @classmethod
    def of_tasks(
        cls,
        likelihood: Likelihood,
        predictions: Sequence[Tensor],
        targets: Sequence[Tensor],
        sample_weights: Sequence[Tensor | None],
        dtype: str,
    ) -> Observations:
        """Takes a batch of several tasks apart, as if they were one.

        Args:
            likelihood: The likelihood of all of them.
            predictions: A tensor of predictions for each task.
            targets: A tensor of targets for each.
            sample_weights: A tensor of weights for each, or `None` for each.
            dtype: Name of the dtype that losses are computed in.

        Returns:
            An `Observations`, of tensors with an axis of tasks where there are several.

        Raises:
            ValueError: If the shapes do not fit each other, or these are no numbers.
        """
        if len(predictions) == 1:
            return cls.of(likelihood, predictions[0], targets[0], sample_weights[0], dtype)
        # The tensors of all tasks are alike, so that one tells whether all fit.
        aligned = likelihood.align(targets[0], predictions[0])
        if aligned is not targets[0]:
            targets = [likelihood.align(*pair) for pair in zip(targets, predictions, strict=True)]
        weight = None
        if sample_weights[0] is not None:
            # In a stack its first axis is one that might be broadcast.
            _matched_weight(sample_weights[0], aligned, "`sample_weight`")
            weight = stack(sample_weights)
        return cls._of_aligned(likelihood, stack(predictions), stack(targets), weight, dtype, True)

    @classmethod
    def _of_aligned(
        cls,
        likelihood: Likelihood,
        predictions: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None,
        dtype: str,
        stacked: bool = False,
    ) -> Observations:
        mask = get_keras_mask(predictions)
        predictions = cast(predictions, dtype)
        targets = ops.convert_to_tensor(targets)
        kind = keras.backend.standardize_dtype(targets.dtype)
        if kind == "bool":
            targets = cast(targets, "int32")
        elif keras.backend.is_float_dtype(kind):
            targets = cast(targets, dtype)
        if sample_weight is not None:
            check_tensor(sample_weight, "`sample_weight`")
            sample_weight = ops.cast(sample_weight, dtype)

        observed = _observed(targets, likelihood.missing, mask, sample_weight)
        if observed is not None:
            targets = ops.where(observed, targets, 0)
        if likelihood.target_dtype == "float32":
            targets = cast(targets, dtype)
        losses = likelihood.loss(targets, predictions)
        # A Keras loss may mask what it has no value for, as `Circle` does.
        mask = get_keras_mask(losses)
        weights = _element_weights(losses, observed, sample_weight, mask)
        return cls(likelihood, targets, predictions, losses, weights, stacked)

    def loss_sums(self) -> tuple[Tensor, Tensor]:
        """The sums `Σ w·L` and `Σ w` of the raw loss."""
        kept = self.likelihood.per_channel, self.stacked
        return self._sum(self.losses), total_weight(self.losses, self.weights, *kept)

    def scaled_loss_sum(self) -> Tensor:
        """The sum `Σ w·L` whose mean gives the closed-form optimum of a log-variance.

        Where the network tells how noisy each element is, every loss is in units of that.
        """
        losses, likelihood = self.losses, self.likelihood
        if likelihood.heteroscedastic:
            log_variance = likelihood.element_log_variance(self.predictions, 0.0)
            losses = ops.exp(-likelihood.power * log_variance) * losses
        return self._sum(losses)

    def negative_log_likelihood_sum(self, log_variance: Tensor) -> Tensor:
        """The sum `Σ w·nll` at a log-variance, or at one for each of the stacked tasks."""
        if self.stacked:
            channels = log_variance.shape[1:]
            between = len(self.predictions.shape) - 1 - len(channels)
            log_variance = ops.reshape(log_variance, (-1, *between * (1,), *channels))
        values = self.likelihood.negative_log_likelihood(
            self.targets, self.predictions, log_variance
        )
        return self._sum(values)

    def _sum(self, values: Tensor) -> Tensor:
        return weighted_sum(values, self.weights, self.likelihood.per_channel, self.stacked)


def stackable_kind(likelihood: Likelihood) -> Hashable:
    """What likelihoods of tasks that are computed as one have in common; `None`: it is left alone.

    Many small operations cost more than a few larger ones. But a Keras loss, and whatever a user
    writes, might look beyond a single element.
    """
    if type(likelihood) not in (Gaussian, Laplace, Categorical, Bernoulli):
        return None
    return type(likelihood), repr(likelihood.get_config() | {"initial_sigma": None})


def stack_key(
    kind: Hashable, predictions: Tensor, targets: Tensor, sample_weight: Tensor | None
) -> Hashable:
    """What tasks have in common that are computed as one; `None`: this one is left alone.

    A stack would copy large tensors, and lose a mask.
    """
    tensors = [tensor for tensor in (predictions, targets, sample_weight) if tensor is not None]
    if (
        kind is None
        or get_keras_mask(predictions) is not None
        or not all(map(has_static_elements, tensors))
        or math.prod(predictions.shape[1:]) > STACKED_SIZE
    ):
        return None
    return kind, *((tuple(tensor.shape), tensor.dtype) for tensor in tensors)


def _observed(
    targets: Tensor, missing: float | None, mask: Tensor | None, sample_weight: Tensor | None
) -> Tensor | None:
    """Which targets have a label, no mask over them and a weight; `None` if all have."""
    conditions = []
    if missing is not None:
        conditions.append(_is_label(targets, missing))
    if mask is not None:
        conditions.append(ops.cast(_matched_weight(mask, targets, "the Keras mask"), "bool"))
    if sample_weight is not None:
        weight = _matched_weight(sample_weight, targets, "`sample_weight`")
        conditions.append(ops.not_equal(weight, 0))
    observed = None
    for condition in conditions:
        observed = condition if observed is None else ops.logical_and(observed, condition)
    return observed


def _is_label(targets: Tensor, missing: float) -> Tensor:
    if math.isnan(missing):
        return ops.logical_not(ops.isnan(targets))
    dtype = keras.backend.standardize_dtype(targets.dtype)
    value: Any = missing
    if keras.backend.is_int_dtype(dtype) and missing.is_integer():
        limits = np.iinfo(dtype)
        # Otherwise all targets would become floats, which takes time, and not all would stay what
        # they are. TensorFlow takes no unsigned integer that is larger.
        if limits.min <= missing <= limits.max and missing < 2**63:
            value = np.asarray(int(missing), dtype)
    return ops.not_equal(targets, value)


def _element_weights(
    losses: Tensor,
    observed: Tensor | None,
    sample_weight: Tensor | None,
    mask: Tensor | None,
) -> Tensor | None:
    """The weight of each loss; one over several targets counts if all of them are observed."""
    if observed is None and sample_weight is None and mask is None:
        return None
    if len(losses.shape) == 0:
        raise ValueError(
            "The loss gives one number for the whole batch, so no label can be left out of it or "
            "weigh less. Received: missing labels, a mask or a `sample_weight`. Have it give a "
            "number for each sample, as `keras.losses.Dice(axis=(1, 2, 3))` does for images."
        )
    factors = []
    if observed is not None:
        reduced = tuple(range(len(losses.shape), len(observed.shape)))
        factors.append(ops.all(observed, axis=reduced) if reduced else observed)
    if sample_weight is not None:
        factors.append(_matched_weight(sample_weight, losses, "`sample_weight`"))
    if mask is not None:
        factors.append(mask)
    weights = math.prod(ops.cast(factor, losses.dtype) for factor in factors)
    return ops.broadcast_to(weights, ops.shape(losses))


def _matched_weight(weight: Tensor, elements: Tensor, name: str) -> Tensor:
    matched = match_leading_axes(weight, tuple(elements.shape))
    if matched is None:
        raise ValueError(
            f"{name} must have one entry for each sample or for each element: shape "
            f"{tuple(elements.shape)}, or its leading axes alone. Received: shape "
            f"{tuple(weight.shape)}. Reshape it, or leave it out."
        )
    return matched
