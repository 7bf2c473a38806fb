"""Likelihoods, losses and targets of the paper's three tasks."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from examples.scenes.labels import UNLABELLED
from keras_uncertainty_mtl import Categorical, Laplace, Likelihood

Tensor = Any
NAN = float("nan")


def scene_tasks(
    initial_sigma: float | None = None, approximate: bool = False
) -> dict[str, Likelihood]:
    """The likelihoods of the three tasks.

    As in the paper, `classes` has cross-entropy on labelled pixels. `instances` has L1 on pixels of
    an instance, and `inverse_depth` has L1 on pixels with known depth.

    Args:
        initial_sigma: Initial σ of all tasks. `None`: each likelihood's default.
        approximate: If `True`, `classes` has the paper's Eq. 10 in place of Eq. 8, the softmax at a
            temperature.

    Returns:
        Dict from task to likelihood.
    """
    return {
        "classes": Categorical(
            approximate=approximate, missing=UNLABELLED, initial_sigma=initial_sigma
        ),
        "instances": Laplace(missing=NAN, initial_sigma=initial_sigma),
        "inverse_depth": Laplace(missing=NAN, initial_sigma=initial_sigma),
    }


def scene_losses() -> dict[str, Any]:
    """The raw losses of the three tasks, for stock Keras's `compile(loss=...)`.

    Returns:
        Dict from task to a loss: the mean over the pixels of a batch that have a target.
    """
    return {
        "classes": keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, ignore_class=UNLABELLED
        ),
        "instances": mean_absolute_error_where_known,
        "inverse_depth": mean_absolute_error_where_known,
    }


def mean_absolute_error_where_known(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Mean absolute error over the elements whose target is not NaN, 0 if there is none.

    Args:
        y_true: Tensor of targets.
        y_pred: Tensor of predictions, of the same shape.

    Returns:
        Scalar tensor.
    """
    known = ops.logical_not(ops.isnan(y_true))
    errors = ops.where(known, ops.abs(ops.where(known, y_true, 0.0) - y_pred), 0.0)
    return ops.divide_no_nan(ops.sum(errors), ops.sum(ops.cast(known, errors.dtype)))


def to_targets(example: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Maps an example of a data set to an image and its targets.

    Args:
        example: Features `image`, `classes`, `instances` and `inverse_depth` of one example.

    Returns:
        The image, and a dict of targets:

        - `classes`: (H, W), 255 where unlabelled.
        - `instances`: (H, W, 2), see `centre_vectors`.
        - `inverse_depth`: (H, W, 1), NaN where unknown.

    Example:

    ```python
    train = tfds.load("streets", split="train").map(to_targets).batch(8)
    ```
    """
    return example["image"], {
        "classes": tf.cast(example["classes"], tf.int32),
        "instances": centre_vectors(example["instances"]),
        "inverse_depth": example["inverse_depth"][..., tf.newaxis],
    }


def centre_vectors(instances: Tensor) -> Tensor:
    """Vectors from each pixel to the centre of its instance: the mean position of its pixels.

    Args:
        instances: Integer tensor (H, W) of instance ids, 0 where there is none.

    Returns:
        Tensor (H, W, 2) in pixels, to the right and downwards; NaN where there is no instance.
    """
    height, width = tf.unstack(tf.shape(instances))
    x, y = tf.meshgrid(tf.range(width), tf.range(height))
    pixels = tf.cast(tf.stack([tf.reshape(x, [-1]), tf.reshape(y, [-1])], axis=-1), tf.float32)
    ids, index = tf.unique(tf.reshape(instances, [-1]))
    centres = tf.math.unsorted_segment_mean(pixels, index, tf.size(ids))
    vectors = tf.gather(centres, index) - pixels
    is_instance = tf.reshape(instances, [-1, 1]) != 0
    vectors = tf.where(is_instance, vectors, tf.constant(NAN))
    return tf.reshape(vectors, [height, width, 2])
