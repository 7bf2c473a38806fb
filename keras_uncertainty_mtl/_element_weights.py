"""The weight of each element: 0 where it is missing, masked or of no weight."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_uncertainty_mtl._reductions import nan_unless
from keras_uncertainty_mtl._shapes import Shape, Tensor, check_tensor, match_leading_axes


def where_observed(targets: Tensor, weights: Any, missing: float | None) -> Tensor | None:
    """True where there is a label, and its weight is not 0; `None` if that is everywhere."""
    observed = None if weights is None else ops.not_equal(weights, 0)
    if missing is None:
        return observed
    is_label = _is_label(targets, missing)
    return is_label if observed is None else ops.logical_and(is_label, observed)


def target_weight(weight: Any, mask: Any, targets: Tensor, dtype: str) -> Tensor | None:
    """The weight of each target, which broadcasts over them; a mask is a weight of 0 or 1."""
    shape = tuple(targets.shape)
    if weight is not None:
        check_tensor(weight, "`sample_weight`")
        weight = _matched(ops.cast(weight, dtype), shape, "`sample_weight`")
    if mask is None:
        return weight
    mask = ops.cast(_matched(mask, shape, "the Keras mask"), "bool")
    weight = ops.ones((), dtype) if weight is None else weight
    return ops.where(mask, weight, ops.zeros_like(weight))


def _is_label(targets: Tensor, missing: float) -> Tensor:
    if math.isnan(missing):
        return ops.logical_not(ops.isnan(targets))
    dtype = keras.backend.standardize_dtype(targets.dtype)
    value: Any = missing
    if keras.backend.is_int_dtype(dtype) and missing.is_integer():
        limits = np.iinfo(dtype)
        # As floats, large ids would not stay what they are. TensorFlow takes no larger constant.
        if limits.min <= missing <= limits.max and missing < 2**63:
            value = np.asarray(int(missing), dtype)
    return ops.not_equal(targets, value)


def element_weights(
    losses: Tensor, observed: Any, weights: Any, mask: Any, axes: tuple[int, ...]
) -> Tensor | None:
    """The weight of each loss, `None` if all count alike.

    A loss is over some `axes` of its targets. It counts if all of them are `observed`, and not if
    none is; else its weight is NaN. `weights` broadcast over the targets, and may not be finer than
    the losses. `mask` is that of the losses.
    """
    if observed is None and mask is None:
        return None
    if len(losses.shape) == 1:
        raise ValueError(
            "The loss gives one number for the whole batch, so no label can be left out of it or "
            "weigh less. Received: missing labels, a mask or a `sample_weight`. Have it give a "
            "number for each sample, as `keras.losses.Dice(axis=(1, 2, 3))` does for images."
        )
    shape = tuple(losses.shape)
    factors = [] if mask is None else [ops.cast(mask, losses.dtype)]
    if observed is not None:
        some = ops.any(observed, axis=axes) if axes else observed
        factor = ops.cast(some, losses.dtype)
        if axes:
            factor = nan_unless(ops.equal(ops.all(observed, axis=axes), some), factor)
        factors.append(_matched(factor, shape, "The missing targets", tasks=1))
    if weights is not None:
        factors.append(_matched(weights, shape, "`sample_weight`", tasks=1))
    product = math.prod(factors)
    return ops.broadcast_to(product, ops.shape(losses))


def _matched(weight: Tensor, shape: Shape, name: str, tasks: int = 0) -> Tensor:
    """A weight that broadcasts over a shape, the first axes of which may be of tasks."""
    matched = match_leading_axes(weight, shape)
    if matched is None:
        raise ValueError(
            f"{name} must have one entry for each sample or for each element: shape "
            f"{shape[tasks:]}, or its leading axes alone. Received: shape "
            f"{tuple(weight.shape)[tasks:]}. Reshape it, or leave it out."
        )
    return matched
