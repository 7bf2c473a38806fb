"""Problems of images: scikit-learn's digits, and rendered streets."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

from benchmarks.problems.base import Data, Problem, Split, split, usual_metrics
from keras_uncertainty_mtl import Categorical, Gaussian, Laplace


def digits() -> Problem:
    """The digit, the image and its ink, through a code of 8 numbers, from 1,797 images."""
    tasks = {"class": Categorical(), "image": Gaussian(), "ink": Laplace()}

    def load(seed: int) -> Data:
        pixels, labels = load_digits(return_X_y=True)
        images = pixels.reshape(-1, 8, 8, 1).astype("float32")
        ink = images.sum(axis=(1, 2, 3))
        targets = {"class": labels, "image": images, "ink": ink}
        return split(images, targets, (1197, 240, 360), seed)

    return Problem(
        tasks, load, digit_network, lambda: usual_metrics(tasks), epochs=50, batch_size=32
    )


def digit_network(train: Split, seed: int) -> keras.Model:
    """An encoder with a narrow code that all heads share."""
    keras.utils.set_random_seed(seed)
    dense, shape = layers.Dense, train.inputs.shape[1:]
    image = keras.Input(shape)
    pixels = layers.Flatten()(standardization(train.inputs)(image))
    code = dense(8, name="shared")(dense(256, activation="relu")(pixels))
    drawn = dense(int(np.prod(shape)))(dense(256, activation="relu")(code))
    outputs = {
        "class": dense(10)(code),
        "image": standardization(train.inputs, invert=True)(layers.Reshape(shape)(drawn)),
        "ink": standardization(train.targets["ink"], invert=True)(dense(1)(code)),
    }
    return keras.Model(image, outputs)


def standardization(values: Any, invert: bool = False) -> layers.Layer:
    """Scales to mean 0 and variance 1 by the statistics of `values`, or back."""
    return layers.Normalization(
        axis=None, mean=float(values.mean()), variance=float(values.var()), invert=invert
    )


def scenes() -> Problem:
    """The paper's three tasks on 1,500 small rendered streets of this project."""
    import tensorflow_datasets as tfds

    from examples.scenes import streets  # registers the dataset
    from examples.scenes.metrics import scene_metrics
    from examples.scenes.networks import build_network
    from examples.scenes.targets import scene_tasks, to_targets

    tasks = scene_tasks()
    num_classes = len(streets.CLASS_NAMES)

    def load(seed: int) -> Data:
        examples = tfds.load("streets/32x64", split="train")
        batches = tfds.as_numpy(examples.map(to_targets).batch(2000))
        (images, targets), *_ = batches
        return split(images, targets, (600, 300, 600), seed)

    def build(train: Split, seed: int) -> keras.Model:
        keras.utils.set_random_seed(seed)
        return build_network("tiny", train.inputs.shape[1:], num_classes)

    def metrics() -> dict[str, keras.metrics.Metric]:
        return {task: metric for task, (metric,) in scene_metrics(num_classes).items()}

    return Problem(
        tasks,
        load,
        build,
        metrics,
        epochs=10,
        batch_size=8,
        learning_rate=2e-3,
        seeds=3,
    )
