"""The parts of a problem: data, tasks, networks for tables, and metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from keras_uncertainty_mtl import Bernoulli, Categorical, Gaussian, Gibbs, Laplace, Likelihood

Tensor = Any
Tasks = dict[str, Likelihood]
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
        metrics: Returns a new metric for every task that is judged.
        epochs: Passes over the training data.
        batch_size: Examples a step.
        learning_rate: Adam's initial rate; it decays to 0 along a cosine.
        seeds: Seeds that a complete table has.
    """

    tasks: Tasks
    load: Callable[[int], Data]
    build: Callable[[Split, int], keras.Model]
    metrics: Callable[[], dict[str, keras.metrics.Metric]]
    epochs: int
    batch_size: int
    learning_rate: float = 1e-3
    seeds: int = 5

    def is_score(self, task: str) -> bool:
        """Returns True for classes, whose metric is a score, and False for errors."""
        return is_of_classes(self.tasks[task])


def is_of_classes(likelihood: Likelihood) -> bool:
    """Returns True for the likelihoods of class labels."""
    return isinstance(likelihood, (Categorical, Bernoulli))


def poisson_deviance(targets: Any, rates: Any) -> Any:
    """Half of the Poisson deviance of each count."""
    likelihood = Gibbs("poisson")
    return likelihood.loss(likelihood.align(targets, rates), rates)


def usual_metrics(tasks: Tasks) -> dict[str, keras.metrics.Metric]:
    """Returns the usual metric of every likelihood."""
    kinds: dict[type, Callable[..., keras.metrics.Metric]] = {
        Bernoulli: lambda name: keras.metrics.AUC(from_logits=True, name=name),
        Categorical: keras.metrics.SparseCategoricalAccuracy,
        Gaussian: keras.metrics.RootMeanSquaredError,
        Gibbs: lambda name: keras.metrics.MeanMetricWrapper(poisson_deviance, name=name),
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


def table_network(tasks: Tasks, train: Split, seed: int) -> keras.Model:
    """Returns a network with two shared layers and one layer a task."""
    keras.utils.set_random_seed(seed)
    features = keras.Input(train.inputs.shape[1:])
    shared = layers.Dense(128, activation="relu")(features)
    shared = layers.Dense(64, activation="relu", name="shared")(shared)
    outputs = {}
    for task, likelihood in tasks.items():
        hidden = layers.Dense(32, activation="relu")(shared)
        outputs[task] = head(likelihood, train.targets[task], hidden)
    return keras.Model(features, outputs)


def head(likelihood: Likelihood, target: Any, hidden: Tensor) -> Tensor:
    """Returns logits, rates of counts, or numbers in the units of their target."""
    if isinstance(likelihood, Categorical):
        return layers.Dense(int(target.max()) + 1)(hidden)
    if isinstance(likelihood, Bernoulli):
        return layers.Dense(1)(hidden)
    mean = float(np.nanmean(target))
    if isinstance(likelihood, Gibbs):
        start = keras.initializers.Constant(np.log(mean))
        return layers.Dense(1, "exponential", bias_initializer=start)(hidden)
    return layers.Rescaling(float(np.nanstd(target)), offset=mean)(layers.Dense(1)(hidden))


def table_problem(
    tasks: Tasks,
    load: Callable[[int], Data],
    epochs: int = 30,
    batch_size: int = 64,
    judged: Tasks | None = None,
) -> Problem:
    """Returns a problem of a table; only the `judged` tasks have a metric."""
    return Problem(
        tasks,
        load,
        lambda train, seed: table_network(tasks, train, seed),
        lambda: usual_metrics(judged or tasks),
        epochs=epochs,
        batch_size=batch_size,
    )
