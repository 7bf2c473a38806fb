"""Quickstart: uncertainty weighting beside equal weights and single-task networks.

One encoder reads the image of a handwritten digit. Three heads predict the digit, the image in
grey levels from 0 to 16, and the ink. The ink is the sum of all grey levels, some hundreds. No task
weight is set by hand. Development images then calibrate σ, and held-out images measure the
calibration.
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
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from examples.batches import shuffled
from examples.command_line import format_table, positive
from examples.serving import check_serving
from keras_uncertainty_mtl import Categorical, Gaussian, Laplace, MultiTaskModel
from keras_uncertainty_mtl.plotting import plot_coverage, plot_history, plot_reliability
from keras_uncertainty_mtl.reliability import central_mass, reliability

Outputs = dict[str, Any]

CODE_SIZE = 8
LARGEST_SIDE = 32
HELD_OUT = 0.2
DEVELOPMENT = 0.2
SERVED_IMAGES = 256


class Task(NamedTuple):
    """A task's likelihood, the Keras loss of the same form, and its held-out metric."""

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
    """Images of shape `(N, height, width, channels)` and the targets of every task."""

    images: Any
    targets: dict[str, Any]
    num_classes: int


def main() -> None:
    options = parse_arguments()
    if options.dataset == "digits":
        images, labels = digits()
    else:
        images, labels = tensorflow_dataset(options.dataset)
    train, development, test = split(images, labels, options.seed)
    options.output_dir.mkdir(parents=True, exist_ok=True)

    print("Uncertainty weighting")
    model, history = train_uncertainty_weighting(train, development, options)
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

    calibrate(model, development, test, options.output_dir)

    model.export(options.output_dir / "saved_model", verbose=False)
    check_serving(model, options.output_dir / "saved_model", test.images[:SERVED_IMAGES])
    pictures = ", ".join(sorted(file.name for file in options.output_dir.glob("*.png")))
    print(f"\nIn {options.output_dir}: {pictures}, saved_model")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        "--dataset",
        default="digits",
        help="scikit-learn's %(default)s (the default), or an image classification set of "
        "TensorFlow Datasets, such as fashion_mnist",
    )
    add(
        "--epochs",
        type=positive,
        default=50,
        help="training epochs of each network (%(default)s)",
    )
    add("--batch-size", type=positive, default=32, help="images per training step (%(default)s)")
    add(
        "--seed",
        type=int,
        default=0,
        help="seed of the data split and of the initial weights (%(default)s)",
    )
    add(
        "--output-dir",
        type=Path,
        default=Path("quickstart_output"),
        help="directory of the figures and the SavedModel (%(default)s)",
    )
    return parser.parse_args()


def digits() -> tuple[Any, Any]:
    """The 1,797 handwritten digits of scikit-learn, with 8×8 pixels and 17 grey levels."""
    pixels, labels = load_digits(return_X_y=True)
    return pixels.reshape(-1, 8, 8, 1).astype("float32"), labels


def tensorflow_dataset(name: str) -> tuple[Any, Any]:
    """Images, with 256 grey levels per channel, and labels from TensorFlow Datasets.

    The split is `train`, or the first one if there is no `train`.
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
    """A dataset's builder, with its data downloaded unless they are on disk.

    Without a network, TensorFlow Datasets retries for minutes, so a short request comes first.
    """
    import requests
    import tensorflow_datasets as tfds
    from absl import logging

    logging.set_verbosity(logging.ERROR)
    try:
        builder = tfds.builder(name)
        if builder.info.supervised_keys != ("image", "label"):
            sys.exit(
                f"{name} is no image classification set: its supervised keys must be "
                f"('image', 'label'). Received: {builder.info.supervised_keys}. "
                "Choose another --dataset."
            )
        if not builder.is_prepared():
            for url in list(builder.url_infos)[:1]:
                requests.head(url, timeout=10)
            builder.download_and_prepare()
    except tfds.core.DatasetNotFoundError:
        sys.exit(f"TensorFlow Datasets knows no dataset {name!r}. Choose another --dataset.")
    except (requests.RequestException, tfds.download.DownloadError) as error:
        sys.exit(
            f"{name} cannot be downloaded, because no network answers ({type(error).__name__}). "
            "The default dataset, digits, needs no network."
        )
    return builder


def split(images: Any, labels: Any, seed: int) -> tuple[Examples, Examples, Examples]:
    """Training, development and held-out examples; σ is calibrated on the development examples."""
    images, test_images, labels, test_labels = train_test_split(
        images, labels, test_size=HELD_OUT, random_state=seed
    )
    train_images, development_images, train_labels, development_labels = train_test_split(
        images, labels, test_size=DEVELOPMENT / (1 - HELD_OUT), random_state=seed
    )
    num_classes = int(labels.max()) + 1
    return (
        with_targets(train_images, train_labels, num_classes),
        with_targets(development_images, development_labels, num_classes),
        with_targets(test_images, test_labels, num_classes),
    )


def with_targets(images: Any, labels: Any, num_classes: int) -> Examples:
    ink = images.sum(axis=(1, 2, 3))
    return Examples(images, {"class": labels, "image": images, "ink": ink}, num_classes)


def build_network(train: Examples, seed: int) -> tuple[Any, Outputs]:
    """The input and the outputs of an encoder with a narrow code that all heads share.

    Inputs and outputs are in the units of the data; inside, values are of the order of 1.
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
    """Scales to mean 0 and variance 1 by the statistics of `values`, or back."""
    return keras.layers.Normalization(
        axis=None, mean=float(values.mean()), variance=float(values.var()), invert=invert
    )


def train_uncertainty_weighting(
    train: Examples, development: Examples, options: argparse.Namespace
) -> tuple[MultiTaskModel, keras.callbacks.History]:
    """Trains with uncertainty weighting; the development images only serve the history plot."""
    image, outputs = build_network(train, options.seed)
    model = MultiTaskModel(image, outputs, {task: TASKS[task].likelihood for task in TASKS})
    model.compile("adam")
    history = model.fit(
        shuffled(train.images, train.targets, options.batch_size, options.seed),
        validation_data=(development.images, development.targets),
        epochs=options.epochs,
        shuffle=False,
    )
    return model, history


def train_equal_weights(train: Examples, test: Examples, options: argparse.Namespace) -> Outputs:
    """Held-out predictions of the same network, trained by stock Keras."""
    print("Equal weights")
    return train_stock_model(list(TASKS), train, test, options)


def train_single_tasks(train: Examples, test: Examples, options: argparse.Namespace) -> Outputs:
    """Held-out predictions of one stock Keras network per task."""
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
    targets = {task: train.targets[task] for task in tasks}
    batches = shuffled(train.images, targets, options.batch_size, options.seed)
    model.fit(batches, epochs=options.epochs, shuffle=False, verbose=0)
    predictions: Outputs = model.predict(test.images, verbose=0)
    return predictions


def measure(predictions: Outputs, test: Examples) -> dict[str, str]:
    return {
        name: f"{task.measure(test.targets[name], predictions[name]):.2f}"
        for name, task in TASKS.items()
    }


def calibrate(
    model: MultiTaskModel, development: Examples, test: Examples, output_dir: Path
) -> None:
    """Calibrates every σ on the development images and reports held-out reliability."""
    sigmas = {"trained": model.weighting.sigmas()}
    predicted = {"trained": model.predictive_model().predict(test.images, verbose=0)}
    sigmas["calibrated"] = model.calibrate(development.images, development.targets, verbose=0)
    predicted["calibrated"] = model.predictive_model().predict(test.images, verbose=0)
    print(f"\nσ calibrated with {len(development.images)} images that nothing was trained with\n")
    rows = [["held out", *predicted]]
    rows += [
        [f"σ of {task}", *(f"{sigma[task]:.3g}" for sigma in sigmas.values())] for task in TASKS
    ]
    for name, measured in RELIABILITY.items():
        rows.append([name, *(f"{measured(test.targets, p):.3g}" for p in predicted.values())])
    print(format_table(rows, text_columns=1))

    labels, image, ink = (test.targets[task] for task in TASKS)
    probabilities, spreads, scales = (
        {name: outputs[output] for name, outputs in predicted.items()}
        for output in ("class_probabilities", "image_standard_deviation", "ink_scale")
    )
    outputs = predicted["calibrated"]
    for name, figure in {
        "reliability_of_class": plot_reliability(labels, probabilities),
        "coverage_of_image": plot_coverage(image, outputs["image_mean"], spreads),
        "coverage_of_ink": plot_coverage(ink, outputs["ink_location"], scales, "laplace"),
    }.items():
        figure.savefig(output_dir / f"{name}.png", dpi=150)


def percent_in_intervals(*predicted: Any) -> float:
    return 100 * float(np.mean(central_mass(*predicted) <= 0.95))


RELIABILITY: dict[str, Callable[[Outputs, Outputs], float]] = {
    "calibration error of class (%)": lambda targets, outputs: (
        100
        * reliability(targets["class"], outputs["class_probabilities"]).expected_calibration_error
    ),
    "negative log-likelihood of class": lambda targets, outputs: log_loss(
        targets["class"], outputs["class_probabilities"]
    ),
    "95% intervals of image hold (%)": lambda targets, outputs: percent_in_intervals(
        targets["image"], outputs["image_mean"], outputs["image_standard_deviation"]
    ),
    "95% intervals of ink hold (%)": lambda targets, outputs: percent_in_intervals(
        targets["ink"], outputs["ink_location"], outputs["ink_scale"], "laplace"
    ),
}


def format_columns(columns: dict[str, dict[str, str]]) -> str:
    rows = [["task", "held-out metric", *columns]]
    for name, task in TASKS.items():
        rows.append([name, task.metric, *(column[name] for column in columns.values())])
    return format_table(rows, text_columns=2)


if __name__ == "__main__":
    main()
