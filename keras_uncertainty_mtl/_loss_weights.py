"""The numbers that multiply the tasks' losses, which may change between steps."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import keras


class LossWeights(keras.layers.Layer):
    """A variable of all loss weights, so that a compiled step sees a change.

    It is not saved: the config of the weighting has the loss weights.
    """

    def __init__(self, tasks: Sequence[str], dtype: str) -> None:
        super().__init__(name="loss_weights", dtype=dtype, autocast=False)
        self._tasks = tasks
        self.vector = self.add_weight(
            (len(tasks),), initializer="ones", trainable=False, name="vector"
        )
        self.built = True  # Keras would build a model anew whose layers are not.

    def assign(self, loss_weights: Mapping[str, float]) -> None:
        """Sets the weight of each task."""
        self.vector.assign([loss_weights[task] for task in self._tasks])

    def save_own_variables(self, store: Any) -> None:
        """Saves nothing."""

    def load_own_variables(self, store: Any) -> None:
        """Loads nothing."""


def validate_loss_weights(loss_weights: Any, tasks: list[str]) -> dict[str, float]:
    """The loss weight of each task, 1 where none is given."""
    if not isinstance(loss_weights, Mapping | None):
        raise ValueError(f"`loss_weights` must be a dict from tasks. Received: {loss_weights!r}")
    weights = dict.fromkeys(tasks, 1.0) | dict(loss_weights or {})
    for task, weight in weights.items():
        if task not in tasks:
            raise ValueError(f"`loss_weights` names the unknown task {task!r}. Tasks: {tasks}.")
        if not isinstance(weight, Real) or not 0 <= float(weight) < math.inf:
            raise ValueError(
                f"Task '{task}': its entry in `loss_weights` must be a finite number that is not "
                f"negative. Received: {weight!r}"
            )
    return {task: float(weight) for task, weight in weights.items()}
