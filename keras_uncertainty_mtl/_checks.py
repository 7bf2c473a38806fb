"""Checks of a call before anything is computed."""

import warnings
from collections.abc import Container, Iterable, Mapping
from typing import Any

import keras
import numpy as np

from keras_uncertainty_mtl._keras_internals import activation_name, layer_name
from keras_uncertainty_mtl._observations import is_elementwise, labelled_tasks
from keras_uncertainty_mtl._shapes import Shape
from keras_uncertainty_mtl._structures import by_task, naming_task
from keras_uncertainty_mtl.likelihoods import Bernoulli, Categorical, Likelihood

# Rows of labels that are looked at together, so that images take little memory.
BLOCK = 1024


def check_order(tasks: Iterable[str], outputs: Any, argument: str = "outputs") -> None:
    """Refuses outputs that are not those of the tasks, or in the order of other tasks' layers."""
    named = by_task(tasks, outputs, argument)
    layers = [layer_name(output) for output in named.values()]
    is_other = [layer in named and layer != task for task, layer in zip(named, layers, strict=True)]
    # A dict says itself which is which, and one layer may have several outputs.
    if any(is_other) and not isinstance(outputs, dict) and len(set(layers)) == len(layers):
        raise ValueError(
            f"`{argument}` must be in the order of the tasks, {list(named)}. Received: outputs of "
            f"the layers {layers}. Use a dict keyed by task, or give the tasks in this order."
        )


def check_predictions(tasks: Mapping[str, Likelihood], predictions: Any) -> None:
    """Refuses probabilities where a likelihood takes logits, and warns of the other way round."""
    check_order(tasks, predictions, "predictions")
    for task, prediction in by_task(tasks, predictions, "predictions").items():
        likelihood, activation = tasks[task], activation_name(prediction)
        if likelihood.from_logits and activation in ("softmax", "sigmoid"):
            raise ValueError(
                f"Task '{task}': the likelihood takes logits. Received: the output of a softmax or "
                "a sigmoid. Take the activation off the last layer, or use a likelihood with "
                "from_logits=False and approximate=True."
            )
        takes_probabilities = isinstance(likelihood, (Bernoulli, Categorical))
        if takes_probabilities and not likelihood.from_logits and activation == "linear":
            warnings.warn(
                f"Task '{task}': the likelihood takes probabilities. Received: the output of a "
                "layer without activation. Use a likelihood of logits, Categorical() or "
                "Bernoulli(), or give the layer a softmax or a sigmoid.",
                stacklevel=2,
            )


def check_labels(
    tasks: Mapping[str, Likelihood], labels: Any, outputs: Any, masked: Container[str]
) -> None:
    """Refuses arrays with labels that make a loss NaN: not finite, or out of range.

    Tensors, labels of a loss or likelihood of the user's own, and of a masked task pass unseen.
    """
    predictions = by_task(tasks, outputs, "predictions")
    labelled = labelled_tasks(tasks, labels)
    for task, given in by_task(labelled, labels, "targets", outputs=outputs).items():
        values = given.to_numpy() if hasattr(given, "to_numpy") else given  # pandas, and others.
        is_known = is_elementwise(tasks[task]) and task not in masked
        if isinstance(values, np.ndarray) and is_known:
            with naming_task(task):
                _check_array(tasks[task], values, tuple(predictions[task].shape))


def _check_array(likelihood: Likelihood, values: Any, prediction_shape: Shape) -> None:
    low, high = likelihood.target_range(prediction_shape)
    for start in range(0, len(values), BLOCK):
        block = _numbers(values[start : start + BLOCK])
        is_label = (block >= low) & (block <= high) & np.isfinite(block)
        if likelihood.has_whole_targets:
            is_label &= block == np.floor(block)
        if likelihood.missing is not None:
            missing = _numbers(np.asarray(likelihood.missing))
            is_label |= np.isnan(block) if np.isnan(missing) else block == missing
        if not is_label.all():
            first, *rest = map(int, np.unravel_index(np.argmin(is_label), is_label.shape))
            kind = "whole" if likelihood.has_whole_targets else "finite"
            bounds = "" if low == -np.inf else f" from {low:g} to {high:g}"
            raise ValueError(
                f"Targets must be {kind} numbers{bounds}. Received: {block[first, *rest]} at "
                f"{(start + first, *rest)}, and maybe others. If it stands for a missing label, "
                "pass it to the likelihood as `missing`."
            )


def _numbers(values: Any) -> Any:
    """The numbers of an array as Keras feeds them."""
    if values.dtype.kind in "biu":
        return values
    try:
        return values.astype("float64" if keras.config.floatx() == "float64" else "float32")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Targets must be numbers. Received: an array of dtype {values.dtype}. For class ids "
            "of strings take `pandas.factorize(labels)[0]`."
        ) from error


def known_training(training: bool | None, last: bool | None) -> bool:
    """`training`, or that of the last call; an error if neither is known."""
    training = last if training is None else training
    if training is None:
        raise ValueError(
            "`training` must be known where there are targets: only a training step may move σ. "
            "Received: training=None. Give the model's `call` a `training` argument, which Keras "
            "sets, and hand it on; or say training=True or training=False."
        )
    return training


def is_traced(tensors: Any) -> bool:
    """True inside of a compiled step, and where PyTorch records gradients."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return not tf.executing_eagerly()
    if keras.backend.backend() == "jax":
        import jax

        return any(isinstance(each, jax.core.Tracer) for each in keras.tree.flatten(tensors))
    return any(getattr(each, "requires_grad", False) for each in keras.tree.flatten(tensors))


def check_strategy(strategy: Any) -> None:
    """Refuses a `tf.distribute` strategy that Keras 3 trains no model with (keras issue 20585)."""
    import tensorflow as tf

    # A single worker is no cluster, and trains.
    is_cluster = (
        isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        and strategy.num_replicas_in_sync > 1
    )
    if is_cluster or isinstance(strategy, tf.distribute.ParameterServerStrategy):
        raise ValueError(
            f"Keras 3 must be able to train with the strategy. Received: {type(strategy).__name__}."
            " For several GPUs of one machine use tf.distribute.MirroredStrategy, for several "
            "machines keras.distribution.DataParallel on the JAX backend."
        )
