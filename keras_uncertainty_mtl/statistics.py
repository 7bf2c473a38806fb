"""What Keras reports of each task: its raw loss and its σ, as one metric."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

Tensor = Any


class TaskStatistics(keras.metrics.Metric):
    """The mean raw loss and the σ of each task, as `{task}_loss` and `{task}_sigma`.

    Keras adds every entry of a metric's dict to the progress bar, to `History`, and to what the
    callbacks see. All tasks share one vector of running sums, because a metric object for each
    costs more than the weighting itself.

    Args:
        tasks: Names of the tasks.
        sigmas: Function that returns the σ of the tasks, a vector.
    """

    def __init__(self, tasks: list[str], sigmas: Callable[[], Tensor]) -> None:
        super().__init__(name="tasks", dtype="float32")
        self._tasks = tasks
        self._sigmas = sigmas
        self._sums = self.add_variable((2, len(tasks)), initializer="zeros", name="sums")

    def update_state(self, losses: Tensor, weights: Tensor) -> None:
        """Adds a batch.

        Args:
            losses: Vector of the tasks' sums of raw losses, `Σ w·L`.
            weights: Vector of the tasks' sums of weights, `Σ w`.
        """
        self._sums.assign_add(ops.cast(ops.stack([losses, weights]), self.dtype))

    def result(self) -> dict[str, Tensor]:
        """The tasks' mean raw losses, 0 for a task that was not observed, and their σ."""
        losses, weights = ops.unstack(ops.convert_to_tensor(self._sums), axis=0)
        means = ops.unstack(ops.divide_no_nan(losses, weights), num=len(self._tasks))
        sigmas = ops.unstack(self._sigmas(), num=len(self._tasks))
        return {f"{task}_loss": mean for task, mean in zip(self._tasks, means, strict=True)} | {
            f"{task}_sigma": sigma for task, sigma in zip(self._tasks, sigmas, strict=True)
        }
