"""The paper's metrics: mean IoU, and mean errors of instance vectors and inverse depth."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from examples.scenes.labels import UNLABELLED

Tensor = Any

# As in the paper, tables and figures give mean IoU in percent.
METRIC_NAMES = {
    "classes": "mean IoU (%)",
    "instances": "instance error (px)",
    "inverse_depth": "inverse depth error (px)",
}


@keras.saving.register_keras_serializable(package="scenes")
class MeanErrorWhereKnown(keras.metrics.Mean):
    """Mean absolute error over the elements whose target is known: not NaN.

    For instance vectors, it is the mean error along an image axis in pixels. For inverse depth, it
    is the mean error of the disparity. Both are the paper's L1 losses.

    Args:
        name: Metric name.
        dtype: Metric dtype.
    """

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Any = None) -> None:
        """Adds a batch.

        Args:
            y_true: Tensor of targets, NaN where unknown.
            y_pred: Tensor of predictions, of the same shape.
            sample_weight: Tensor of the same shape, or of its leading axes.
        """
        y_true = ops.convert_to_tensor(y_true, self.dtype)
        y_pred = ops.convert_to_tensor(y_pred, self.dtype)
        known = ops.logical_not(ops.isnan(y_true))
        errors = ops.where(known, ops.abs(y_true - y_pred), ops.zeros_like(y_pred))
        weights = ops.cast(known, self.dtype)
        if sample_weight is not None:
            sample_weight = ops.convert_to_tensor(sample_weight, self.dtype)
            missing_axes = len(errors.shape) - len(sample_weight.shape)
            shape = tuple(ops.shape(sample_weight)) + (1,) * missing_axes
            weights = weights * ops.reshape(sample_weight, shape)
        super().update_state(errors, sample_weight=weights)


def scene_metrics(num_classes: int) -> dict[str, list[keras.metrics.Metric]]:
    """The metrics of the three tasks, for `compile(metrics=...)`.

    Args:
        num_classes: Number of classes.

    Returns:
        Dict from task to a list of one metric. `classes` has `mean_iou`, where higher is better;
        the others have `error` in pixels.
    """
    mean_iou = keras.metrics.MeanIoU(
        num_classes, ignore_class=UNLABELLED, sparse_y_pred=False, name="mean_iou"
    )
    return {
        "classes": [mean_iou],
        "instances": [MeanErrorWhereKnown(name="error")],
        "inverse_depth": [MeanErrorWhereKnown(name="error")],
    }
