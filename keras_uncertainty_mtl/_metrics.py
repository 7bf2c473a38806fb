"""Metrics of the tasks: the raw loss and the σ of each."""

from collections.abc import Sequence

import keras
from keras import ops

from keras_uncertainty_mtl._observations import Observations
from keras_uncertainty_mtl._reductions import concatenate, concatenate_by_task
from keras_uncertainty_mtl._shapes import Tensor


class TaskStatistics(keras.metrics.Metric):
    """The mean raw loss and the last σ of each task, as `{task}_loss` and `{task}_sigma`.

    The loss of a task is NaN as long as no element of it is observed.

    All share one tensor, because a metric object for each costs more than the weighting itself.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__(name="tasks", dtype="float32")
        self._tasks = tasks
        self._has_batches = False
        self._sums = self.add_variable((2, len(tasks)), initializer="zeros", name="sums")
        # In training on JAX a metric can read its own variables alone, so σ is handed over.
        self._sigmas = self.add_variable(
            (len(tasks),), initializer="zeros", aggregation="only_first_replica", name="sigmas"
        )

    def update_state(self, batches: list[Observations], variances: list[Tensor]) -> None:
        """Adds a batch: the observations and the variances of each group of tasks.

        The σ of a task is the root mean square of its channels'.
        """
        self._has_batches = True
        losses = concatenate_by_task([batch.loss_sum for batch in batches])
        weights = concatenate_by_task([batch.weight_sum for batch in batches])
        sigmas = concatenate([ops.sqrt(ops.mean(each, axis=-1)) for each in variances])
        sums = ops.stop_gradient(ops.stack([losses, weights]))
        self._sums.assign_add(ops.cast(sums, self.dtype))
        self._sigmas.assign(ops.cast(ops.stop_gradient(sigmas), self.dtype))

    def result(self) -> dict[str, Tensor]:
        """The numbers by name; none where no batch is ever added."""
        if not self._has_batches:
            return {}
        losses, weights = ops.unstack(ops.convert_to_tensor(self._sums))
        means = ops.unstack(losses / weights)
        # On PyTorch a tensor shares the memory of its variable, and would follow it.
        sigmas = ops.unstack(ops.copy(self._sigmas))
        names = [f"{task}_{name}" for name in ("loss", "sigma") for task in self._tasks]
        return dict(zip(names, [*means, *sigmas], strict=True))
