"""Problems of tables that scikit-learn and plotnine come with."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer

from benchmarks.problems.base import Problem, Targets, Tasks, split, table_problem
from keras_uncertainty_mtl import Bernoulli, Categorical, Gaussian, Laplace


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
    tasks: Tasks = {
        "price": Laplace(),
        "carat": Gaussian(),
        "cut": Categorical(),
        "color": Categorical(),
        "clarity": Categorical(),
    }
    return table_problem(tasks, lambda seed: split(*diamonds_table(), (4000, 2000, 4000), seed))


def grades() -> Problem:
    """14 yes-or-no labels of diamonds: is a grade at least so good?, from shape and price."""
    grades = {"cut": range(1, 5), "color": range(1, 6), "clarity": range(2, 7)}

    def table() -> tuple[Any, Targets]:
        shapes, targets = diamonds_table()
        inputs = np.column_stack([shapes, targets["price"], np.log(targets["price"])])
        labels = {
            f"{name}_{grade}": (targets[name] >= grade).astype("float32")
            for name, steps in grades.items()
            for grade in steps
        }
        return inputs, labels

    tasks: Tasks = {
        f"{name}_{grade}": Bernoulli() for name, steps in grades.items() for grade in steps
    }
    return table_problem(tasks, lambda seed: split(*table(), (4000, 2000, 4000), seed), epochs=20)


def tumours() -> Problem:
    """A diagnosis that 300 rows let a network learn by heart, and three measures (scikit-learn)."""
    measures = {"radius": Gaussian(), "area": Gaussian(), "smoothness": Laplace()}

    def table() -> tuple[Any, Targets]:
        data = load_breast_cancer()
        columns = dict(zip(data.feature_names, data.data.T.astype("float32"), strict=True))
        inputs = [values for name, values in columns.items() if not name.startswith("worst")]
        targets = {task: columns[f"worst {task}"] for task in measures}
        return np.column_stack(inputs), {"malignant": data.target, **targets}

    return table_problem(
        {"malignant": Categorical(), **measures},
        lambda seed: split(*table(), (300, 100, 169), seed),
        epochs=150,
        batch_size=32,
    )
