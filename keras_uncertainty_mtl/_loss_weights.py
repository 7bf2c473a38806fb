"""The numbers that multiply the tasks' losses, which may change between steps."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import keras
from keras import ops


class LossWeights(keras.layers.Layer):
    """The weight of each task, and a variable of all, so that a compiled step sees a change.

    The variable is not saved: the config of the weighting has the loss weights.
    """

    def __init__(self, tasks: Sequence[str], loss_weights: Any, dtype: str) -> None:
        super().__init__(name="loss_weights", dtype=dtype, autocast=False)
        self._tasks = list(tasks)
        self.assign(loss_weights)

    def create_vector(self, order: Sequence[str]) -> None:
        """Creates the variable, with the tasks in this order."""
        self._order = list(order)
        given = [self._given[task] for task in order]
        # Keras builds a model of a user's own where assignments are lost, and initial values stay.
        self.vector = self.add_weight(
            (len(order),),
            initializer=lambda shape, dtype: ops.convert_to_tensor(given, dtype),
            trainable=False,
            name="vector",
        )
        self.built = True  # Keras would build a model anew whose layers are not.

    def assign(self, loss_weights: Any) -> None:
        """Sets the weight of each task, 1 where none is given."""
        self._given = _validated(loss_weights, self._tasks)
        if self.built:
            self.vector.assign([self._given[task] for task in self._order])

    def by_task(self) -> dict[str, float]:
        """The weight of each task: as it was given, unless `set_weights` has set another."""
        if not self.built:
            return dict(self._given)
        values = dict(zip(self._order, ops.convert_to_numpy(self.vector), strict=True))
        return {
            task: given if values[task] == values[task].dtype.type(given) else float(values[task])
            for task, given in self._given.items()
        }

    def save_own_variables(self, store: Any) -> None:
        """Saves nothing."""

    def load_own_variables(self, store: Any) -> None:
        """Loads nothing."""


def _validated(loss_weights: Any, tasks: list[str]) -> dict[str, float]:
    if not isinstance(loss_weights, Mapping | None):
        raise ValueError(
            f"`loss_weights` must be a dict from tasks to numbers: {{{tasks[0]!r}: 0.5}}. "
            f"Received: {loss_weights!r}"
        )
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
