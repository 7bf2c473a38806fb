"""Construction, training and evaluation of scene networks with any task weighting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from examples.scenes.data import Scenes
from examples.scenes.metrics import scene_metrics
from examples.scenes.networks import build_network
from examples.scenes.targets import scene_losses, scene_tasks
from keras_uncertainty_mtl import MultiTaskModel, UncertaintyWeighting

LEARNING_RATE = 2e-3
# A divisor of the 500 test images, so that the last batch has the same shape.
EVALUATION_BATCH_SIZE = 20
STEPS_BETWEEN_SIGMAS = 20

Curves = dict[str, list[float]]


def seeded_network(kind: str, scenes: Scenes, seed: int) -> keras.Model:
    """The network for all three tasks, with the initial weights of a seed.

    Args:
        kind: See `build_network`.
        scenes: Data set of the network's images and classes.
        seed: Random seed of the initial weights.

    Returns:
        A functional model.
    """
    keras.utils.set_random_seed(seed)
    return build_network(kind, scenes.image_shape, len(scenes.class_names))


def uncertainty_model(
    network: keras.Model,
    tasks: Sequence[str],
    initial_sigma: float | None = None,
    approximate: bool = False,
    update: str = "trained",
) -> MultiTaskModel:
    """A model that learns its task weights from uncertainty.

    Args:
        network: Network for all tasks.
        tasks: Names of the tasks to train.
        initial_sigma: See `scene_tasks`.
        approximate: See `scene_tasks`.
        update: See `UncertaintyWeighting`.

    Returns:
        A model that is not compiled yet.
    """
    likelihoods = scene_tasks(initial_sigma, approximate)
    return MultiTaskModel(
        network.input,
        {task: network.output[task] for task in tasks},
        UncertaintyWeighting({task: likelihoods[task] for task in tasks}, update=update),
    )


def fit(
    model: keras.Model,
    examples: Any,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    loss_weights: Mapping[str, float] | None = None,
    **kwargs: Any,
) -> keras.callbacks.History:
    """Trains a model with Adam and a cosine learning rate schedule.

    Args:
        model: A functional model whose outputs are a dict keyed by task.
        examples: A `tf.data.Dataset` of pairs of an image and the targets of all tasks.
        epochs: Number of epochs.
        batch_size: Images per training step.
        seed: Random seed of the order of the examples.
        loss_weights: Fixed weights of the raw losses of a stock Keras model. `None`: the model is a
            `MultiTaskModel`.
        **kwargs: Further arguments of `keras.Model.fit`.

    Returns:
        The `History` of `keras.Model.fit`.
    """
    tasks = list(model.output)
    losses = scene_losses()
    steps = len(examples) // batch_size
    model.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(LEARNING_RATE, epochs * steps)
        ),
        loss=loss_weights and {task: losses[task] for task in tasks},
        loss_weights=loss_weights,
    )
    batches = training_batches(examples, tasks, batch_size, seed)
    # With its default, Keras warns that it cannot shuffle a `tf.data.Dataset`.
    return model.fit(batches, epochs=epochs, shuffle=False, **kwargs)


def training_batches(examples: Any, tasks: Sequence[str], batch_size: int, seed: int) -> Any:
    """Batches in a new order each epoch; the order does not depend on the tasks.

    Args:
        examples: A `tf.data.Dataset` of pairs of an image and the targets of all tasks.
        tasks: Names of the tasks whose targets are kept.
        batch_size: Images per batch; a smaller last batch is dropped.
        seed: Random seed of the order.

    Returns:
        A `tf.data.Dataset` of pairs of images and targets.
    """
    return (
        examples.shuffle(len(examples), seed=seed)
        .map(lambda image, targets: (image, {task: targets[task] for task in tasks}))
        .batch(batch_size, drop_remainder=True)
    )


def evaluate(model: keras.Model, examples: Any, num_classes: int) -> dict[str, float]:
    """The metric of each task.

    Args:
        model: A model whose outputs are a dict keyed by task.
        examples: A `tf.data.Dataset` of pairs of an image and the targets of all tasks.
        num_classes: Number of classes.

    Returns:
        Dict from the tasks of the model to their metrics: mean IoU between 0 and 1, and errors in
        pixels.
    """
    metrics = {task: metric for task, [metric] in scene_metrics(num_classes).items()}
    for images, targets in examples.batch(EVALUATION_BATCH_SIZE):
        for task, predictions in model.predict_on_batch(images).items():
            metrics[task].update_state(targets[task], predictions)
    return {task: float(metrics[task].result()) for task in model.output}


class SigmaTrace(keras.callbacks.Callback):
    """Records each task's σ while a `MultiTaskModel` trains.

    `sigmas` is a dict from task to a list of σ. The first training step is recorded, and one in
    every `STEPS_BETWEEN_SIGMAS` after it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sigmas: Curves = {}
        self._step = 0

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Records σ of the step that has ended, once in `STEPS_BETWEEN_SIGMAS` steps."""
        if self._step % STEPS_BETWEEN_SIGMAS == 0:
            for name, value in (logs or {}).items():
                if name.endswith("_sigma"):
                    self.sigmas.setdefault(name.removesuffix("_sigma"), []).append(float(value))
        self._step += 1
