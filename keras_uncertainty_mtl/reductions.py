"""From elements to means, over all replicas of a strategy."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_uncertainty_mtl.direct_ops import divide_no_nan, full, reduce_sum

Tensor = Any


def weighted_sum(
    values: Tensor, weights: Tensor | None, per_channel: bool = False, stacked: bool = False
) -> Tensor:
    """The sum `Σ w·v`.

    Args:
        values: Tensor of values.
        weights: Tensor of the same shape, or `None` for weights of 1.
        per_channel: Whether to keep the last axis.
        stacked: Whether to keep the first axis, of tasks.

    Returns:
        Tensor of the axes that are kept.
    """
    if weights is not None:
        # NaN times 0 is NaN, and must be: what is hidden that way would still give NaN gradients.
        values = weights * values
    axes = _summed_axes(values, per_channel, stacked)
    if len(axes) < 3:
        return reduce_sum(values, axis=axes)
    # On a CPU, XLA would add up all elements of a batch of images one by one, in a single thread,
    # which takes longer and is less exact. It does not see through a quotient between two sums.
    shape = ops.shape(values)
    size = ops.cast(ops.maximum(math.prod(shape[axis] for axis in axes[1:]), 1), values.dtype)
    of_samples = reduce_sum(values, axis=axes[1:], keepdims=True) / size
    return size * reduce_sum(of_samples, axis=axes)


def total_weight(
    values: Tensor, weights: Tensor | None, per_channel: bool = False, stacked: bool = False
) -> Tensor:
    """The sum `Σ w` of the weights of as many values, by which to divide `Σ w·v`.

    Args:
        values: As in `weighted_sum`.
        weights: As in `weighted_sum`.
        per_channel: As in `weighted_sum`.
        stacked: As in `weighted_sum`.

    Returns:
        Tensor of the axes that are kept.
    """
    axes = _summed_axes(values, per_channel, stacked)
    if weights is not None:
        return reduce_sum(weights, axis=axes)
    shape = ops.shape(values)
    count = math.prod(shape[axis] for axis in axes)
    return full([size for axis, size in enumerate(shape) if axis not in axes], count, values)


def _summed_axes(values: Tensor, per_channel: bool, stacked: bool) -> tuple[int, ...]:
    return tuple(range(int(stacked), len(values.shape) - int(per_channel)))


def num_replicas() -> int:
    """How many replicas of a `tf.distribute` strategy share the global batch; elsewhere 1."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def check_strategy(strategy: Any) -> None:
    """Refuses what Keras 3 cannot train any model with (keras-team/keras issue 20585).

    Args:
        strategy: A `tf.distribute` strategy.

    Raises:
        ValueError: If `fit` would fail under the strategy, and with what it would not.
    """
    import tensorflow as tf

    # A single worker is no cluster, and trains.
    unsupported = isinstance(strategy, tf.distribute.ParameterServerStrategy) or (
        isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        and strategy.num_replicas_in_sync > 1
    )
    if unsupported:
        raise ValueError(
            "Expected a strategy that Keras 3 can train with. "
            f"Received: {type(strategy).__name__}. For several GPUs of one machine use "
            "tf.distribute.MirroredStrategy, for several machines "
            "keras.distribution.initialize() and keras.distribution.DataParallel on the JAX "
            "backend."
        )


def sum_over_replicas(values: Tensor) -> Tensor:
    """The sum of the values that the replicas hold, on each of them."""
    if num_replicas() == 1:
        return values
    import tensorflow as tf

    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


def global_mean(sums: Tensor, totals: Tensor) -> Tensor:
    """The mean over the elements of the whole global batch; 0 where there are none.

    Keras averages the gradients of the replicas. So each replica's mean has the value of the global
    one, and the gradient of its own share of it times the number of replicas.

    Args:
        sums: This replica's sums `Σ w·v`.
        totals: The sums `Σ w` over all replicas.

    Returns:
        Tensor of means.
    """
    replicas = num_replicas()
    if replicas == 1:
        return divide_no_nan(sums, totals)
    share = divide_no_nan(replicas * sums, totals)
    value = divide_no_nan(sum_over_replicas(ops.stop_gradient(sums)), totals)
    return share + ops.stop_gradient(value - share)
