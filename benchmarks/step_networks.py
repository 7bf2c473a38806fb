"""Networks, tasks and random batches of the step time benchmark."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers, ops

from keras_uncertainty_mtl import Bernoulli, Categorical, Gaussian, Laplace


def masked_crossentropy(targets: Any, logits: Any) -> Any:
    """The mean binary cross-entropy of labels that are not -1."""
    known = ops.cast(targets >= 0, logits.dtype)
    losses = ops.binary_crossentropy(known * targets, logits, from_logits=True)
    return ops.sum(known * losses) / ops.sum(known)


LOSSES: dict[type, Any] = {
    Gaussian: keras.losses.MeanSquaredError(),
    Laplace: keras.losses.MeanAbsoluteError(),
    Categorical: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    Bernoulli: keras.losses.BinaryCrossentropy(from_logits=True),
}


class Problem(NamedTuple):
    """A network, its outputs as stock Keras trains them, the likelihoods of tasks, and a batch."""

    inputs: Any
    outputs: dict[str, Any]
    stock_outputs: dict[str, Any]
    tasks: dict[str, Any]
    x: np.ndarray
    y: dict[str, np.ndarray]

    def losses(self) -> dict[str, Any]:
        """Stock Keras's loss of each task."""
        return {
            task: LOSSES[type(likelihood)] if likelihood.missing is None else masked_crossentropy
            for task, likelihood in self.tasks.items()
        }


def with_heads(inputs: Any, hidden: Any, heads: int, batch_size: int) -> Problem:
    """One dense layer a task, the likelihoods in turn, random data."""
    draw = np.random.default_rng(0)
    outputs, tasks, y = {}, {}, {}
    for index, kind in zip(range(heads), itertools.cycle(LOSSES), strict=False):
        task = f"task_{index}"
        tasks[task] = kind()
        outputs[task] = layers.Dense(5 if kind is Categorical else 1)(hidden)
        y[task] = draw.normal(size=(batch_size, 1)).astype("float32")
        if kind is Categorical:
            y[task] = draw.integers(5, size=batch_size).astype("int32")
        elif kind is Bernoulli:
            y[task] = (y[task] > 0).astype("float32")
    x = draw.normal(size=(batch_size, *inputs.shape[1:])).astype("float32")
    return Problem(inputs, outputs, outputs, tasks, x, y)


def perceptron(heads: int, features: int, hidden_units: list[int], batch_size: int) -> Problem:
    inputs = hidden = keras.Input((features,))
    for units in hidden_units:
        hidden = layers.Dense(units, activation="relu")(hidden)
    return with_heads(inputs, hidden, heads, batch_size)


def convolutional() -> Problem:
    inputs = hidden = keras.Input((64, 64, 3))
    for filters, strides in ((32, 1), (64, 2), (128, 2)):
        hidden = layers.Conv2D(filters, 3, strides, activation="relu")(hidden)
    return with_heads(inputs, layers.GlobalAveragePooling2D()(hidden), heads=3, batch_size=32)


def pixels(likelihood: Categorical) -> Problem:
    draw = np.random.default_rng(0)
    inputs = keras.Input((256, 512, 3))
    logits = layers.Conv2D(19, 1)(inputs)
    scaled = logits if likelihood.approximate else layers.Rescaling(0.5)(logits)
    x = draw.normal(size=(8, 256, 512, 3)).astype("float32")
    y = draw.integers(19, size=(8, 256, 512)).astype("int32")
    name = "classes"
    return Problem(inputs, {name: logits}, {name: scaled}, {name: likelihood}, x, {name: y})


def columns() -> Problem:
    draw = np.random.default_rng(0)
    inputs = keras.Input((1024,))
    outputs = {"assays": layers.Dense(600)(inputs)}
    tasks = {"assays": Bernoulli(per_channel=True, missing=-1)}
    x = draw.normal(size=(256, 1024)).astype("float32")
    y = draw.choice([-1.0, 0.0, 1.0], size=(256, 600), p=[0.7, 0.2, 0.1]).astype("float32")
    return Problem(inputs, outputs, outputs, tasks, x, {"assays": y})


mlp = partial(perceptron, features=1024, hidden_units=[1024, 1024], batch_size=256)
toy = partial(perceptron, features=32, hidden_units=[64], batch_size=32)
PROBLEMS: dict[str, Callable[[], Problem]] = {
    "mlp_12": partial(mlp, 12),
    "mlp_128": partial(mlp, 128),
    "convolutional": convolutional,
    "pixels": partial(pixels, Categorical(approximate=True)),
    "exact_pixels": partial(pixels, Categorical()),
    "columns_600": columns,
    "toy_30": partial(toy, 30),
    "toy_256": partial(toy, 256),
}
