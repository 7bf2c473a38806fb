"""The softmax cross-entropy of class ids, and at a temperature that is learnt."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_uncertainty_mtl.direct_ops import where
from keras_uncertainty_mtl.gradients import custom_gradient
from keras_uncertainty_mtl.ordering import after
from keras_uncertainty_mtl.shapes import fits

Tensor = Any


def sparse_cross_entropy(predictions: Tensor, targets: Tensor, from_logits: bool = True) -> Tensor:
    """The backend's own cross-entropy of each element.

    Args:
        predictions: Tensor of logits or probabilities, of shape `(…, classes)`.
        targets: Tensor of class ids, of shape `(…)`.
        from_logits: Whether the predictions are logits.

    Returns:
        Tensor of shape `(…)`. Devices differ in what a class out of range costs: an error, NaN, or
        0. Here it is never 0.
    """
    targets = _widened(targets)
    classes = _class_ids(targets)
    backend = keras.backend.backend()
    # Of these two it is known what they do with a class out of range.
    if from_logits and classes is targets and ops.is_tensor(predictions):
        # Of what a softmax returned, Keras takes the logits, and warns.
        if backend == "tensorflow" and not hasattr(predictions, "_keras_logits"):
            return _of_tensorflow(predictions, classes)
        if backend == "torch" and predictions.device.type in ("cpu", "cuda"):
            return _of_pytorch(predictions, classes)
    losses = ops.sparse_categorical_crossentropy(classes, predictions, from_logits=from_logits)
    return _nan_out_of_range(losses, targets, predictions.shape[-1])


def _of_tensorflow(logits: Tensor, classes: Tensor) -> Tensor:
    """For a class out of range NaN, or an error on a CPU without XLA."""
    import tensorflow as tf

    # Directly, as Keras would copy all ids to 64 bits; here and below.
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=classes, logits=logits)


def _of_pytorch(logits: Tensor, classes: Tensor) -> Tensor:
    """For a class out of range an error."""
    from torch.nn import functional

    logits, classes = logits.movedim(-1, 1), ops.convert_to_tensor(classes).long()
    # One class costs nothing, by default -100. This one is no number that a float could be, so
    # that no label becomes it by a cast.
    ignored = -(2**62) - 1
    return functional.cross_entropy(logits, classes, reduction="none", ignore_index=ignored)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy `-log softmax(f)[y]` of each element.

    Args:
        logits: Tensor `f`, of shape `(…, classes)`.
        targets: Tensor of class ids `y`, of shape `(…)`.

    Returns:
        Tensor of shape `(…)`; NaN, or an error, for a class out of range.

    Raises:
        ValueError: If the class ids are of another shape.
    """
    shifted, of_class = _shifted(*_elements(logits, targets))
    # A product, because XLA adds up one as it goes on a CPU, and anything else only when all of it
    # is in memory (IsReduceOpOffloadedToYnn, xla/backends/cpu/ynn_support.cc).
    half = ops.sum(0.5 * ops.exp(shifted), axis=-1)
    return ops.reshape(ops.log(2.0 * half) - of_class, ops.shape(targets))


def tempered_cross_entropy(logits: Tensor, inverse_temperature: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy `-log softmax(w·f)[y]` of each element, to be differentiated by `w` too.

    It begins as `cross_entropy` does, so that a compiler computes that once for both. On a CPU it
    takes less time than TensorFlow's own kernel. The gradients are

    ```
    ∂/∂f = w · (softmax(w·f) - one_hot(y))
    ∂/∂w = Σ softmax(w·f) · f - f[y]
    ```

    Args:
        logits: Tensor `f`, of shape `(…, classes)`.
        inverse_temperature: Tensor `w`: a scalar, or of a shape that ends in 1 and broadcasts over
            the logits.
        targets: Tensor of class ids `y`, of shape `(…)`.

    Returns:
        Tensor of shape `(…)`; NaN, or an error, for a class out of range.

    Raises:
        ValueError: If the class ids are of another shape.
    """
    shape = ops.shape(targets)
    if any(size != 1 for size in inverse_temperature.shape):
        # A product, as the gradient of TensorFlow's `broadcast_to` does not know its shape.
        ones = ops.ones((*shape, 1), dtype=inverse_temperature.dtype)
        inverse_temperature = inverse_temperature * ones
    inverse_temperature = ops.reshape(inverse_temperature, (-1, 1))
    elements = _elements(logits, targets)
    return ops.reshape(custom_gradient(_tempered)(inverse_temperature, *elements), shape)


def _tempered(inverse_temperature: Tensor, logits: Tensor, targets: Tensor) -> tuple[Tensor, Any]:
    shifted, of_class = _shifted(logits, targets)
    exponentials = ops.exp(inverse_temperature * shifted)
    total = ops.sum(exponentials, axis=-1)
    expected = ops.sum(exponentials * shifted, axis=-1) / total

    def gradient(upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        of_temperature = ops.expand_dims(upstream * (expected - of_class), -1)
        if inverse_temperature.shape[0] == 1:
            of_temperature = ops.sum(of_temperature, axis=0, keepdims=True)
        # Both times the total, by which the weight divides. One-hot classes are floats, which
        # TensorFlow multiplies and subtracts in place, and wait until what is expected is known,
        # whose products need no memory any more.
        of_total = ops.expand_dims(total, -1)
        classes = after(_class_ids(targets), expected)
        difference = exponentials - of_total * _one_hot(classes, exponentials)
        weight = ops.expand_dims(upstream, -1) * inverse_temperature / of_total
        return of_temperature, difference * weight, None

    return ops.log(total) - inverse_temperature[:, 0] * of_class, gradient


def _elements(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both with one axis of elements, of which XLA's fusions are faster than of several."""
    targets = _widened(ops.convert_to_tensor(targets))
    shape, expected = tuple(targets.shape), tuple(logits.shape[:-1])
    if not fits(shape, expected):
        raise ValueError(
            f"Class ids have the shape of the logits without their last axis, {expected}. "
            f"Received: class ids of shape {shape}."
        )
    return ops.reshape(logits, (-1, logits.shape[-1])), ops.reshape(targets, (-1,))


def _shifted(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits the largest of which is 0, so that their exponentials are finite, and the class's."""
    # Where there are no elements, Keras has no maximum without an initial one.
    largest = ops.max(logits, axis=-1, keepdims=True, initial=-math.inf)
    shifted = logits - ops.stop_gradient(largest)
    of_class = _logit_of_class(_class_ids(targets), shifted)
    return shifted, _nan_out_of_range(of_class, targets, logits.shape[-1])


def _logit_of_class(classes: Tensor, logits: Tensor) -> Tensor:
    """The logit of each element's class."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # On a GPU the place of a logit is counted in the dtype of the ids.
        size = logits.shape.num_elements()
        if size is None or size > np.iinfo("int32").max:
            classes = ops.cast(classes, "int64")
        return tf.gather(logits, classes, batch_dims=1)
    indices = ops.expand_dims(classes, -1)
    return ops.squeeze(ops.take_along_axis(logits, indices, axis=-1), -1)


def _one_hot(classes: Tensor, like: Tensor) -> Tensor:
    """1 for the class of each element and 0 for the others, of the shape and dtype of a tensor."""
    num_classes, dtype = like.shape[-1], like.dtype
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.one_hot(classes, num_classes, dtype=dtype)
    return ops.one_hot(classes, num_classes, dtype=dtype)


def _widened(targets: Tensor) -> Tensor:
    """The targets in a dtype that holds the number of classes, and that there are kernels for."""
    dtype = keras.backend.standardize_dtype(targets.dtype)
    if dtype in ("bool", "int8", "uint8", "int16", "uint16"):
        return ops.cast(targets, "int32")
    if keras.backend.backend() == "tensorflow" and dtype.startswith("uint"):
        return ops.cast(targets, "int64")
    return targets


def _class_ids(targets: Tensor) -> Tensor:
    """The targets themselves if they are integers, and else in integers."""
    if not keras.backend.is_float_dtype(targets.dtype):
        return targets
    # Devices differ in the integer that a NaN or an infinity becomes.
    return ops.cast(ops.nan_to_num(targets, posinf=0.0, neginf=0.0), "int32")


def _nan_out_of_range(values: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """The values, but NaN where a target is none of the classes."""
    return where((targets >= 0) & (targets < num_classes), values, math.nan)
