"""A network of scenes with any weighting of its tasks: how it is made, trained and measured."""

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
# How many images are predicted at a time: 500, as there are to test with, are a multiple of it.
EVALUATION_BATCH_SIZE = 20

# How many training steps there are from one value of a `SigmaTrace` to the next.
STEPS_BETWEEN_SIGMAS = 20

Curves = dict[str, list[float]]


def seeded_network(kind: str, scenes: Scenes, seed: int) -> keras.Model:
    """The network for all three tasks, with the initial weights that belong to the seed.

    Args:
        kind: See `build_network`.
        scenes: The data.
        seed: The same seed gives the same initial weights, whatever the weighting.

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
    """A model that learns how much each of its tasks counts.

    Args:
        network: The network for all tasks.
        tasks: Names of those to train.
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
    """Trains a model with Adam, whose learning rate falls to 0 along a cosine.

    Args:
        model: A functional model whose outputs are a dict keyed by task.
        examples: A `tf.data.Dataset` of pairs of an image and the targets of all tasks.
        epochs: How often the model sees the examples.
        batch_size: Images in a training step.
        seed: The same seed gives the same order of the examples.
        loss_weights: Fixed weights of the raw losses, for a stock Keras model: its total loss is
            their weighted sum and nothing else. `None`: for a `MultiTaskModel`.
        **kwargs: Further arguments of `keras.Model.fit`.

    Returns:
        What `keras.Model.fit` returns.
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
    # Keras is told that it need not shuffle, or it warns that it cannot.
    return model.fit(batches, epochs=epochs, shuffle=False, **kwargs)


def training_batches(examples: Any, tasks: Sequence[str], batch_size: int, seed: int) -> Any:
    """Batches in an order that is another in each epoch, the same for whichever tasks.

    Args:
        examples: A `tf.data.Dataset` of pairs of an image and the targets of all tasks.
        tasks: Names of those to keep the targets of.
        batch_size: Images in a batch; a rest of fewer is left out.
        seed: Of the order.

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
        num_classes: How many classes there are.

    Returns:
        Dict from the tasks of the model to the mean IoU between 0 and 1, the error in pixels and
        the error in pixels of disparity.
    """
    metrics = {task: metric for task, [metric] in scene_metrics(num_classes).items()}
    for images, targets in examples.batch(EVALUATION_BATCH_SIZE):
        for task, predictions in model.predict_on_batch(images).items():
            metrics[task].update_state(targets[task], predictions)
    return {task: float(metrics[task].result()) for task in model.output}


class SigmaTrace(keras.callbacks.Callback):
    """Keeps each task's σ while a `MultiTaskModel` trains.

    `sigmas` is a dict from task to its values, from the first training step on, one in every
    `STEPS_BETWEEN_SIGMAS`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sigmas: Curves = {}
        self._step = 0

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Takes the values of the step that has just been."""
        if self._step % STEPS_BETWEEN_SIGMAS == 0:
            for name, value in (logs or {}).items():
                if name.endswith("_sigma"):
                    self.sigmas.setdefault(name.removesuffix("_sigma"), []).append(float(value))
        self._step += 1
