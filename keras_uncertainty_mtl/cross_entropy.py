"""The softmax cross-entropy of class ids, and at a temperature that is learnt."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_uncertainty_mtl.direct_ops import where
from keras_uncertainty_mtl.gradients import custom_gradient

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
    if backend == "torch" and from_logits and classes is targets and _is_checked(predictions):
        from torch.nn import functional

        logits, classes = predictions.movedim(-1, 1), ops.convert_to_tensor(classes).long()
        # One class costs nothing, by default -100. This one is no number that a float could be, so
        # that no label becomes it by a cast.
        ignored = -(2**62) - 1
        return functional.cross_entropy(logits, classes, reduction="none", ignore_index=ignored)
    losses = ops.sparse_categorical_crossentropy(classes, predictions, from_logits=from_logits)
    if backend == "tensorflow" and classes is targets:
        # It looks by itself: NaN, or an error on a CPU without XLA.
        return losses
    return _nan_out_of_range(losses, targets, predictions.shape[-1])


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy `-log softmax(f)[y]` of each element.

    Args:
        logits: Tensor `f`, of shape `(…, classes)`.
        targets: Tensor of class ids `y`, of shape `(…)`.

    Returns:
        Tensor of shape `(…)`; NaN, or an error, for a class out of range.
    """
    shifted, of_class = _shifted(logits, _widened(targets))
    return ops.log(ops.sum(ops.exp(shifted), axis=-1)) - of_class


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
    """
    axes = tuple(range(len(logits.shape) - len(inverse_temperature.shape)))
    inverse_temperature = ops.expand_dims(inverse_temperature, axes)
    targets = _widened(ops.convert_to_tensor(targets))
    return custom_gradient(_tempered)(logits, inverse_temperature, targets)


def _tempered(logits: Tensor, inverse_temperature: Tensor, targets: Tensor) -> tuple[Tensor, Any]:
    shifted, of_class = _shifted(logits, targets)
    exponentials = ops.exp(inverse_temperature * shifted)
    total = ops.sum(exponentials, axis=-1)
    expected = ops.sum(exponentials * shifted, axis=-1) / total

    def gradient(upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        upstream = ops.expand_dims(upstream, -1)
        # Both times the total at first, and a mask of truth values, for a one-hot tensor of floats
        # takes four times the memory.
        of_total = ops.expand_dims(total, -1)
        is_class = ops.one_hot(_class_ids(targets), logits.shape[-1], dtype="bool")
        difference = exponentials - where(is_class, of_total, 0.0)
        of_logits = difference * (upstream * inverse_temperature / of_total)
        of_temperature = upstream * ops.expand_dims(expected - of_class, -1)
        broadcast = [axis for axis, size in enumerate(inverse_temperature.shape) if size == 1]
        return of_logits, ops.sum(of_temperature, axis=broadcast, keepdims=True), None

    return ops.log(total) - inverse_temperature[..., 0] * of_class, gradient


def _shifted(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits the largest of which is 0, so that their exponentials are finite, and the class's."""
    # Where there are no elements, Keras has no maximum without an initial one.
    largest = ops.max(logits, axis=-1, keepdims=True, initial=-math.inf)
    shifted = logits - ops.stop_gradient(largest)
    indices = ops.expand_dims(_class_ids(targets), -1)
    of_class = ops.squeeze(ops.take_along_axis(shifted, indices, axis=-1), -1)
    return shifted, _nan_out_of_range(of_class, targets, logits.shape[-1])


def _widened(targets: Tensor) -> Tensor:
    """The targets in a dtype that holds the number of classes as well."""
    dtype = keras.backend.standardize_dtype(targets.dtype)
    is_narrow = dtype in ("bool", "int8", "uint8", "int16", "uint16")
    return ops.cast(targets, "int32") if is_narrow else targets


def _class_ids(targets: Tensor) -> Tensor:
    """The targets themselves if they are integers, and else in integers."""
    if not keras.backend.is_float_dtype(targets.dtype):
        return targets
    # Devices differ in the integer that a NaN or an infinity becomes.
    return ops.cast(ops.nan_to_num(targets, posinf=0.0, neginf=0.0), "int32")


def _is_checked(predictions: Tensor) -> bool:
    """Whether PyTorch makes an error of a class out of range where they are."""
    return ops.is_tensor(predictions) and predictions.device.type in ("cpu", "cuda")


def _nan_out_of_range(values: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """The values, but NaN where a target is none of the classes."""
    return where((targets >= 0) & (targets < num_classes), values, math.nan)
