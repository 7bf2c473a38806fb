"""Metrics of `compile` that see the elements that the loss sees, and no others."""

from typing import Any

import keras
from keras import metrics as keras_metrics
from keras import ops

from keras_uncertainty_mtl._element_weights import where_observed
from keras_uncertainty_mtl._keras_internals import copy_direction
from keras_uncertainty_mtl._observations import align
from keras_uncertainty_mtl._shapes import Tensor
from keras_uncertainty_mtl.likelihoods import Likelihood


def _named(module: Any, names: str) -> tuple[Any, ...]:
    return tuple(getattr(module, name) for name in names.split())


# Means over the last axis, each entry of which may be missing without its neighbours.
_MEANS_OF_ELEMENTS = (
    *_named(
        keras_metrics,
        "Accuracy BinaryAccuracy BinaryCrossentropy Hinge LogCoshError MeanAbsoluteError "
        "MeanAbsolutePercentageError MeanSquaredError MeanSquaredLogarithmicError Poisson "
        "RootMeanSquaredError SquaredHinge binary_accuracy",
    ),
    *_named(
        keras.losses,
        "binary_crossentropy binary_focal_crossentropy hinge huber log_cosh mean_absolute_error "
        "mean_absolute_percentage_error mean_squared_error mean_squared_logarithmic_error poisson "
        "squared_hinge",
    ),
)
# Counts and sums over elements, which take a weight for each.
_COUNTS_OF_ELEMENTS = _named(
    keras_metrics,
    "AUC FalseNegatives FalsePositives IoU Precision PrecisionAtRecall R2Score Recall "
    "RecallAtPrecision SensitivityAtSpecificity SpecificityAtSensitivity TrueNegatives "
    "TruePositives",
)


def observed_elements(
    likelihood: Likelihood, prediction: Tensor, target: Tensor, weight: Any, mask: Any
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A task's target, its estimate, and the weight of each target: 0 where it is not observed.

    The weights are `None`, and the target as it is given, where all elements count alike.
    """
    estimate = likelihood.location(prediction)
    if likelihood.missing is None and weight is None and mask is None:
        return target, estimate, None
    dtype = keras.backend.result_type(prediction.dtype, "float32")
    target, weight = align(likelihood, target, prediction, weight, mask, dtype)
    observed = where_observed(target, weight, likelihood.missing)
    weight = ops.ones((), dtype) if weight is None else weight
    weight = ops.where(ops.broadcast_to(observed, ops.shape(target)), weight, 0)
    # Logarithms and divisions can take a 1, and any classification has a class 1.
    return ops.where(observed, target, ops.ones_like(target)), estimate, weight


class ObservedMetric(keras_metrics.Metric):
    """A metric of one task over its observed elements; NaN as long as there is none.

    Args:
        metric: A `keras.metrics.Metric`, or a function of `(y_true, y_pred)`.
        name: The name to report.
        is_weighted: If False, all observed elements count alike.
        has_class_axis: True if the last axis of the predictions is of classes.
    """

    def __init__(self, metric: Any, name: str, is_weighted: bool, has_class_axis: bool) -> None:
        super().__init__(name=name)
        is_function = not isinstance(metric, keras_metrics.Metric)
        self.metric = keras_metrics.MeanMetricWrapper(metric) if is_function else metric
        self._function: Any = metric if is_function else None
        self._is_weighted = is_weighted
        self._has_class_axis = has_class_axis
        kind = metric if is_function else type(metric)
        self._is_mean_of_elements = kind in _MEANS_OF_ELEMENTS and not has_class_axis
        is_f_score = isinstance(metric, keras_metrics.FBetaScore)
        self._is_f_score_of_elements = is_f_score and metric.threshold is not None
        self._observed = self.add_variable((), initializer="zeros", name="observed")
        copy_direction(self.metric, self)

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Any = None) -> None:
        """Adds a batch of `observed_elements`."""
        if sample_weight is None:
            self._observed.assign_add(ops.ones((), self.dtype))
            self.metric.update_state(y_true, y_pred, sample_weight=None)
            return
        observed = ops.cast(ops.not_equal(sample_weight, 0), sample_weight.dtype)
        self._observed.assign_add(ops.cast(ops.sum(observed), self.dtype))
        weights = sample_weight if self._is_weighted else observed
        if self._is_mean_of_elements:
            y_true, y_pred = ops.reshape(y_true, (-1, 1)), ops.reshape(y_pred, (-1, 1))
            weights = ops.reshape(weights, (-1,))
        elif self._is_f_score_of_elements:
            # It has one weight a row. A true negative counts nothing, and so may stand for a gap.
            y_true, y_pred = (ops.where(observed == 0, 0, each) for each in (y_true, y_pred))
            weights = ops.divide_no_nan(ops.sum(weights, axis=-1), ops.sum(observed, axis=-1))
        elif self._function is None:
            weights = self._weights_of_vectors(weights, y_pred)
        else:
            self._update_mean(y_true, y_pred, weights)
            return
        if not self._is_weighted:  # A metric that counts in integers warns of any other weights.
            weights = ops.cast(weights, self.metric.dtype)
        self.metric.update_state(y_true, y_pred, sample_weight=weights)

    def _weights_of_vectors(self, weights: Tensor, predictions: Tensor) -> Tensor:
        """The weights in the shape that the metric takes."""
        rank = len(predictions.shape)
        if self._has_class_axis:
            return _of_leading_axes(weights, rank - 1)
        if not isinstance(self.metric, _COUNTS_OF_ELEMENTS):
            return _of_leading_axes(weights, max(rank - 1, 1))
        class_id = getattr(self.metric, "class_id", None)
        return weights if class_id is None else weights[..., class_id]

    def _update_mean(self, targets: Tensor, predictions: Tensor, weights: Tensor) -> None:
        """Updates the mean of a function by its values, whatever axes it leaves."""
        values = getattr(self._function, "call", self._function)(targets, predictions)
        rank = len(values.shape)
        if not rank:
            # A number for the whole batch holds all elements: NaN unless all are observed.
            is_complete = ops.cast(ops.all(ops.not_equal(weights, 0)), values.dtype)
            values, weights = ops.reshape(values * is_complete / is_complete, (1,)), ops.ones(1)
        elif tuple(values.shape[1:]) == tuple(weights.shape[1:rank]):
            weights = _of_leading_axes(weights, rank)
        else:
            weights = _of_leading_axes(weights, 1)
        keras_metrics.Mean.update_state(self.metric, values, sample_weight=weights)

    def reset_state(self) -> None:
        """Forgets all batches."""
        self.metric.reset_state()
        self._observed.assign(ops.zeros((), self.dtype))

    def result(self) -> Any:
        """The metric's own result, or NaN."""
        nan_or_zero = 0.0 / ops.convert_to_tensor(self._observed)
        return keras.tree.map_structure(lambda value: value + nan_or_zero, self.metric.result())


def _of_leading_axes(weights: Tensor, rank: int) -> Tensor:
    """The weights of vectors, which count if all of their elements do."""
    axes = tuple(range(rank, len(weights.shape)))
    if not axes:
        return weights
    is_complete = ops.all(ops.not_equal(weights, 0), axis=axes)
    return ops.where(is_complete, ops.mean(weights, axis=axes), 0)
