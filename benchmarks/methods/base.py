"""The base class of the loss-weighting rules, and the weights of standardised targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from benchmarks.problems.base import is_of_classes
from keras_uncertainty_mtl import Gibbs, Likelihood

Tensor = Any
Tasks = dict[str, Likelihood]


class Rule(keras.Model):
    """A network whose tasks' mean raw losses `L` a rule combines into one number.

    A rule overrides `weigh`.

    Args:
        network: Functional model with a dict of outputs.
        tasks: Dict from task to likelihood, whose raw losses the rule weighs.
        units: Dict from task to a constant factor of its loss. `None`: 1.
    """

    def __init__(
        self, network: keras.Model, tasks: Tasks, units: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(network.input, {task: network.output[task] for task in tasks})
        self.tasks = tasks
        self.units = [1.0 if units is None else units[task] for task in tasks]

    def weigh(self, losses: Tensor) -> Tensor:
        """The combined loss.

        Args:
            losses: Vector of the tasks' mean raw losses, times `units`.

        Returns:
            Scalar tensor.
        """
        raise NotImplementedError

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """The combined loss of a batch; the network's own losses, if any, are added."""
        return self.weigh(self.mean_losses(y, y_pred)) + sum(self.losses)

    def mean_losses(self, targets: Any, predictions: Any) -> Tensor:
        """A vector of the tasks' mean raw losses, times `units`."""
        means = [
            mean_loss(self.tasks[task], targets[task], predictions[task]) for task in self.tasks
        ]
        return ops.stack(means) * self.units

    def vector(self, start: float, trainable: bool = False) -> Any:
        """A new weight of a number a task."""
        start_at = keras.initializers.Constant(start)
        return self.add_weight((len(self.tasks),), start_at, trainable=trainable)


def mean_loss(likelihood: Likelihood, target: Tensor, prediction: Tensor) -> Tensor:
    """The mean raw loss over the elements that have a label, 0 if there is none."""
    target = likelihood.align(ops.convert_to_tensor(target), prediction)
    if likelihood.missing is None:
        return ops.mean(likelihood.loss(target, prediction))
    is_nan = np.isnan(likelihood.missing)
    absent = ops.isnan(target) if is_nan else ops.equal(target, int(likelihood.missing))
    losses = likelihood.loss(ops.where(absent, ops.zeros_like(target), target), prediction)
    present = 1.0 - ops.cast(absent, losses.dtype)
    return ops.divide_no_nan(ops.sum(present * losses), ops.sum(present))


def standard_units(tasks: Tasks, targets: Mapping[str, Any]) -> dict[str, float]:
    """Returns the factors that give losses those of standardised targets; 1 for classes."""
    units = {}
    for task, likelihood in tasks.items():
        target = np.asarray(targets[task])
        if is_of_classes(likelihood):
            units[task] = 1.0
        elif isinstance(likelihood, Gibbs):
            # Counts have no unit to divide by: 1 is the loss of a constant prediction.
            constant = np.full_like(target, target.mean())
            units[task] = 1.0 / float(ops.mean(likelihood.loss(target, constant)))
        else:
            # A squared error has the squared unit of its target, an absolute error the unit itself.
            units[task] = float(np.nanstd(target) ** (-2.0 * likelihood.power))
    return units
