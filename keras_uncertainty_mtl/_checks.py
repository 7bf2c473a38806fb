"""Checks of a call before anything is computed."""

from collections.abc import Mapping
from typing import Any

import keras

from keras_uncertainty_mtl._keras_internals import gives_probabilities
from keras_uncertainty_mtl._structures import by_task
from keras_uncertainty_mtl.likelihoods import Likelihood


def check_logits(tasks: Mapping[str, Likelihood], predictions: Any) -> None:
    """Refuses probabilities where a likelihood takes logits."""
    for task, prediction in by_task(tasks, predictions, "predictions").items():
        if tasks[task].from_logits and gives_probabilities(prediction):
            raise ValueError(
                f"Task '{task}': the likelihood takes logits. Received: the output of a softmax or "
                "a sigmoid. Take the activation off the last layer, or use a likelihood with "
                "from_logits=False and approximate=True."
            )


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
