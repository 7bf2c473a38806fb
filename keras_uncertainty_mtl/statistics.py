"""What Keras reports: the combined loss, and of each task its raw loss and its σ."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_uncertainty_mtl.direct_ops import (
    cast,
    divide_no_nan,
    full,
    stack,
    stop_gradient,
    unstack,
)

Tensor = Any


class MeanLoss(keras.metrics.Metric):
    """The mean loss of a sample, for losses that are one number a batch.

    `keras.metrics.Mean` would look at the shape of each.

    Args:
        name: Name of the metric.
    """

    def __init__(self, name: str = "loss") -> None:
        super().__init__(name=name)
        self._sums = self.add_variable((2,), initializer="zeros", name="sums")

    def update_state(self, loss: Tensor, sample_weight: Any = 1) -> None:
        """Adds a batch.

        Args:
            loss: Scalar tensor, the mean loss of the batch.
            sample_weight: The number of samples of the batch.
        """
        loss = cast(stop_gradient(loss), self.dtype)
        count = full((), sample_weight, loss)
        self._sums.assign_add(stack([count * loss, count]))

    def result(self) -> Tensor:
        """The mean of all batches, 0 if there are none."""
        return divide_no_nan(*unstack(ops.convert_to_tensor(self._sums)))


class TaskStatistics(keras.metrics.Metric):
    """The mean raw loss and the σ of each task, as `{task}_loss` and `{task}_sigma`.

    Keras adds every entry of a metric's dict to the progress bar, to `History`, and to what the
    callbacks see. All tasks share one vector of running sums, because a metric object for each
    costs more than the weighting itself.

    Args:
        tasks: Names of the tasks.
    """

    def __init__(self, tasks: list[str]) -> None:
        super().__init__(name="tasks", dtype="float32")
        self._tasks = tasks
        self._has_batches = False
        self._sums = self.add_variable((2, len(tasks)), initializer="zeros", name="sums")
        # While JAX trains, a metric can read its own variables alone: σ has to be handed over.
        self._sigmas = self.add_variable(
            (len(tasks),), initializer="zeros", aggregation="only_first_replica", name="sigmas"
        )

    def update_state(self, losses: Tensor, weights: Tensor, sigmas: Tensor) -> None:
        """Adds a batch.

        Args:
            losses: Vector of the tasks' sums of raw losses, `Σ w·L`.
            weights: Vector of the tasks' sums of weights, `Σ w`.
            sigmas: Vector of the tasks' σ.
        """
        if not self._has_batches:
            self._has_batches = True
        sums = stop_gradient(stack([losses, weights]))
        self._sums.assign_add(cast(sums, self.dtype))
        self._sigmas.assign(cast(stop_gradient(sigmas), self.dtype))

    def result(self) -> dict[str, Tensor]:
        """The tasks' mean raw losses, 0 for a task that was not observed, and their last σ.

        Nothing where no batch is ever added, as in a model that does not train.
        """
        if not self._has_batches:
            return {}
        losses, weights = unstack(ops.convert_to_tensor(self._sums))
        results = {"loss": divide_no_nan(losses, weights), "sigma": self._sigmas}
        return {
            f"{task}_{name}": value
            for name, values in results.items()
            for task, value in zip(self._tasks, unstack(ops.convert_to_tensor(values)), strict=True)
        }
