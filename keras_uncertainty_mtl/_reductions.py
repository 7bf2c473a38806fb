"""Reductions: from elements to sums, and from sums to means over all replicas of a strategy."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_uncertainty_mtl._shapes import Tensor


def weighted_sum(values: Tensor, weights: Tensor | None, channels: int) -> Tensor:
    """The sums `Σ w·v` of values `(tasks, …, channels)`, of shape `(tasks, channels)`.

    With `channels=1` the last axis is summed over like any other.
    """
    if weights is not None:
        # NaN times 0 is NaN, and must be: a hidden NaN would still have NaN gradients.
        values = weights * values
    # One reduced axis, because XLA sums several more slowly on a CPU.
    return ops.sum(ops.reshape(values, (values.shape[0], -1, channels)), axis=1)


def nan_unless(condition: Tensor, values: Tensor) -> Tensor:
    """The values where a condition holds; elsewhere NaN, with gradients of NaN.

    A constant of NaN would make `tf.debugging.enable_check_numerics()` stop any model.
    """
    return values * (1.0 + ops.sqrt(ops.cast(condition, values.dtype) - 1.0))


def stack(tensors: list[Tensor]) -> Tensor:
    """One tensor with an axis of tasks before all others."""
    # PyTorch copies even a single tensor to stack it.
    return ops.expand_dims(tensors[0], 0) if len(tensors) == 1 else ops.stack(tensors)


def concatenate(tensors: list[Tensor]) -> Tensor:
    """One vector of all entries."""
    return ops.concatenate([ops.reshape(tensor, (-1,)) for tensor in tensors])


def concatenate_by_task(sums: list[Tensor]) -> Tensor:
    """Sums of shape `(tasks, channels)` of each group, as one vector of all tasks."""
    return concatenate([ops.sum(each, axis=-1) for each in sums])


def global_mean(sums: Tensor, totals: Tensor) -> Tensor:
    """The mean over the whole global batch, of this replica's `Σ w·v` and the global `Σ w`; or 0.

    Keras averages the gradients of the replicas. So the value is that of the global mean, and the
    gradient that of this replica's share of it times the number of replicas.
    """
    replicas = num_replicas()
    if replicas == 1:
        return ops.divide_no_nan(sums, totals)
    share = ops.divide_no_nan(replicas * sums, totals)
    value = ops.divide_no_nan(sum_over_replicas(ops.stop_gradient(sums)), totals)
    return share + ops.stop_gradient(value - share)


def sum_over_replicas(values: Tensor) -> Tensor:
    """The sum of the values that the replicas hold, on each of them."""
    if num_replicas() == 1:
        return values
    import tensorflow as tf

    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


def add_exactly(variable: Any, values: Tensor) -> None:
    """Adds to a variable of rounded sums, and of the excess of each over its exact value.

    This is Kahan's summation: over many batches single precision loses digits, and JAX has no other
    unless told to.
    """
    before, excess = ops.unstack(ops.convert_to_tensor(variable), 2)
    values = ops.cast(values, "float32") - excess
    after = before + values
    variable.assign(ops.stack([after, after - before - values]))


def exact_sums(variable: Any) -> Any:
    """The sums of `add_exactly`, in double precision."""
    return np.subtract(*variable.numpy().astype("float64"))


def replica_index() -> Any:
    """The number of this replica, from 0 on."""
    if num_replicas() == 1:
        return 0
    import tensorflow as tf

    return tf.distribute.get_replica_context().replica_id_in_sync_group


def num_replicas() -> int:
    """The number of replicas of a `tf.distribute` strategy that share a batch; elsewhere 1."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync
