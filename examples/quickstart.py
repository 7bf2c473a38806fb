"""Three tasks in three units from one encoder: uncertainty weighting beside its alternatives.

From the image of a handwritten digit a network tells which digit it is, draws the image anew
through a narrow bottleneck, in its grey levels of 0 to 16, and tells how much ink there is: the sum
of all grey levels, some hundreds. Nobody has to say how much each of the three counts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from examples.command_line import format_table, positive
from examples.serving import check_serving
from keras_uncertainty_mtl import Categorical, Gaussian, Laplace, MultiTaskModel
from keras_uncertainty_mtl.plotting import plot_history

Outputs = dict[str, Any]

CODE_SIZE = 8
LARGEST_SIDE = 32
HELD_OUT = 0.2
SERVED_IMAGES = 256


class Task(NamedTuple):
    """A task: the noise that it is taken to have, the same as a Keras loss, and what it is for."""

    likelihood: Any
    loss: Any
    metric: str
    measure: Callable[[Any, Any], float]


def accuracy(labels: Any, logits: Any) -> float:
    return 100 * float(np.mean(logits.argmax(axis=-1) == labels))


def root_mean_squared_error(targets: Any, predictions: Any) -> float:
    return float(np.sqrt(np.mean((predictions - targets) ** 2)))


def mean_absolute_error(targets: Any, predictions: Any) -> float:
    return float(np.mean(np.abs(predictions.squeeze(-1) - targets)))


TASKS = {
    "class": Task(
        Categorical(),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "accuracy (%)",
        accuracy,
    ),
    "image": Task(Gaussian(), "mse", "RMS error (grey levels)", root_mean_squared_error),
    "ink": Task(Laplace(), "mae", "mean abs. error (grey levels)", mean_absolute_error),
}


class Examples(NamedTuple):
    """Images of shape `(N, height, width, channels)`, and what each task should say of them."""

    images: Any
    targets: dict[str, Any]
    num_classes: int


def main() -> None:
    options = parse_arguments()
    if options.dataset == "digits":
        images, labels = digits()
    else:
        images, labels = tensorflow_dataset(options.dataset)
    train, test = split(images, labels, options.seed)
    options.output_dir.mkdir(parents=True, exist_ok=True)

    print("Uncertainty weighting")
    model, history = train_uncertainty_weighting(train, test, options)
    plot_history(history).savefig(options.output_dir / "history.png", dpi=150)
    weighting = model.weighting
    columns = {
        "uncertainty": measure(model.predict(test.images, verbose=0), test),
        "equal weights": measure(train_equal_weights(train, test, options), test),
        "single-task": measure(train_single_tasks(train, test, options), test),
        "σ": {task: f"{sigma:.3g}" for task, sigma in weighting.sigmas().items()},
        "weight": {task: f"{weight:.3g}" for task, weight in weighting.task_weights().items()},
    }
    print(f"\nHeld out: {len(test.images)} of {len(images)} images, seed {options.seed}\n")
    print(format_columns(columns))

    model.export(options.output_dir / "saved_model", verbose=False)
    check_serving(model, options.output_dir / "saved_model", test.images[:SERVED_IMAGES])
    print(f"\nIn {options.output_dir}: history.png, saved_model")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        "--dataset",
        default="digits",
        help="scikit-learn's %(default)s (the default), or the name of an image classification set "
        "of TensorFlow Datasets, such as fashion_mnist",
    )
    add(
        "--epochs",
        type=positive,
        default=50,
        help="how often each network sees the images (%(default)s)",
    )
    add("--batch-size", type=positive, default=32, help="images in a training step (%(default)s)")
    add(
        "--seed",
        type=int,
        default=0,
        help="of the choice of held-out images and of the initial weights (%(default)s)",
    )
    add(
        "--output-dir",
        type=Path,
        default=Path("quickstart_output"),
        help="where the picture and the SavedModel go (%(default)s)",
    )
    return parser.parse_args()


def digits() -> tuple[Any, Any]:
    """The 1,797 handwritten digits, of 8 by 8 pixels and 17 grey levels, of scikit-learn."""
    pixels, labels = load_digits(return_X_y=True)
    return pixels.reshape(-1, 8, 8, 1).astype("float32"), labels


def tensorflow_dataset(name: str) -> tuple[Any, Any]:
    """The images, of 256 grey levels a channel, and labels of a set from TensorFlow Datasets.

    It reads the split `train`, or the first where there is none: what is held out comes from it.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    builder = prepared_builder(name)
    side_lengths = builder.info.features["image"].shape[:2]
    if None in side_lengths or max(side_lengths) > LARGEST_SIDE:
        side_lengths = (LARGEST_SIDE, LARGEST_SIDE)

    first = "train" if "train" in builder.info.splits else next(iter(builder.info.splits))
    dataset = builder.as_dataset(split=first, as_supervised=True)
    resized = dataset.map(
        lambda image, label: (tf.image.resize(image, side_lengths, antialias=True), label)
    )
    images, labels = zip(*tfds.as_numpy(resized), strict=True)
    return np.stack(images), np.array(labels)


def prepared_builder(name: str) -> Any:
    """The builder of a dataset that is on this disk, downloaded if need be.

    TensorFlow Datasets calls a network that is not there for minutes, so this asks for one first.
    """
    import requests
    import tensorflow_datasets as tfds
    from absl import logging

    logging.set_verbosity(logging.ERROR)
    try:
        builder = tfds.builder(name)
        if builder.info.supervised_keys != ("image", "label"):
            sys.exit(f"{name} is no image classification set: it does not map images to labels.")
        if not builder.is_prepared():
            for url in list(builder.url_infos)[:1]:
                requests.head(url, timeout=10)
            builder.download_and_prepare()
    except tfds.core.DatasetNotFoundError:
        sys.exit(f"TensorFlow Datasets knows no dataset {name!r}.")
    except (requests.RequestException, tfds.download.DownloadError) as error:
        sys.exit(
            f"{name} cannot be downloaded, because no network answers ({type(error).__name__}); "
            "the default dataset, digits, needs none."
        )
    return builder


def split(images: Any, labels: Any, seed: int) -> tuple[Examples, Examples]:
    """Images to train with, and images that are held out, with every task's targets."""
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=HELD_OUT, random_state=seed
    )
    num_classes = int(labels.max()) + 1
    return (
        with_targets(train_images, train_labels, num_classes),
        with_targets(test_images, test_labels, num_classes),
    )


def with_targets(images: Any, labels: Any, num_classes: int) -> Examples:
    ink = images.sum(axis=(1, 2, 3))
    return Examples(images, {"class": labels, "image": images, "ink": ink}, num_classes)


def build_network(train: Examples, seed: int) -> tuple[Any, Outputs]:
    """One encoder, down to a narrow code that all heads share: the input and the outputs.

    Inputs and outputs are in the units of the data; inside, all is of the order of 1.
    """
    keras.utils.set_random_seed(seed)
    dense, shape = keras.layers.Dense, train.images.shape[1:]

    image = keras.Input(shape, name="image")
    pixels = keras.layers.Flatten()(standardization(train.images)(image))
    code = dense(CODE_SIZE)(dense(256, activation="relu")(pixels))

    logits = dense(train.num_classes)(code)
    drawn = dense(int(np.prod(shape)))(dense(256, activation="relu")(code))
    ink = dense(1)(code)
    return image, {
        "class": logits,
        "image": standardization(train.images, invert=True)(keras.layers.Reshape(shape)(drawn)),
        "ink": standardization(train.targets["ink"], invert=True)(ink),
    }


def standardization(values: Any, invert: bool = False) -> keras.layers.Layer:
    """To mean 0 and variance 1, or back, by the statistics of what is trained with."""
    return keras.layers.Normalization(
        axis=None, mean=float(values.mean()), variance=float(values.var()), invert=invert
    )


def train_uncertainty_weighting(
    train: Examples, test: Examples, options: argparse.Namespace
) -> tuple[MultiTaskModel, keras.callbacks.History]:
    """The held-out images are looked at after every epoch for the picture, and decide nothing."""
    image, outputs = build_network(train, options.seed)
    model = MultiTaskModel(image, outputs, {task: TASKS[task].likelihood for task in TASKS})
    model.compile("adam")
    history = model.fit(
        train.images,
        train.targets,
        validation_data=(test.images, test.targets),
        epochs=options.epochs,
        batch_size=options.batch_size,
    )
    return model, history


def train_equal_weights(train: Examples, test: Examples, options: argparse.Namespace) -> Outputs:
    """What stock Keras makes of the same network: its predictions for the held-out images."""
    print("Equal weights")
    return train_stock_model(list(TASKS), train, test, options)


def train_single_tasks(train: Examples, test: Examples, options: argparse.Namespace) -> Outputs:
    """What a network for each task predicts for the held-out images."""
    predictions: Outputs = {}
    for task in TASKS:
        print(f"One network for {task}")
        predictions |= train_stock_model([task], train, test, options)
    return predictions


def train_stock_model(
    tasks: list[str], train: Examples, test: Examples, options: argparse.Namespace
) -> Outputs:
    image, outputs = build_network(train, options.seed)
    model = keras.Model(image, {task: outputs[task] for task in tasks})
    model.compile("adam", loss={task: TASKS[task].loss for task in tasks})
    model.fit(
        train.images,
        {task: train.targets[task] for task in tasks},
        epochs=options.epochs,
        batch_size=options.batch_size,
        verbose=0,
    )
    predictions: Outputs = model.predict(test.images, verbose=0)
    return predictions


def measure(predictions: Outputs, test: Examples) -> dict[str, str]:
    return {
        name: f"{task.measure(test.targets[name], predictions[name]):.2f}"
        for name, task in TASKS.items()
    }


def format_columns(columns: dict[str, dict[str, str]]) -> str:
    rows = [["task", "held-out metric", *columns]]
    for name, task in TASKS.items():
        rows.append([name, task.metric, *(column[name] for column in columns.values())])
    return format_table(rows, text_columns=2)


if __name__ == "__main__":
    main()
