"""Checks of the arguments of the layer."""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from keras_uncertainty_mtl import likelihoods
from keras_uncertainty_mtl._structures import naming_task
from keras_uncertainty_mtl.likelihoods import Likelihood


def validate_tasks(tasks: Any) -> dict[str, Likelihood]:
    """The likelihood of each task."""
    if not isinstance(tasks, Mapping) or not tasks:
        raise ValueError(
            "`tasks` must be a dict from the name of each task to its likelihood, with one task or "
            f"more. Received: tasks={tasks!r}"
        )
    validated = {}
    for task, likelihood in tasks.items():
        if not isinstance(task, str) or not task or "/" in task:
            raise ValueError(
                "The name of a task must be a string that is not empty and has no '/' in it. "
                f"Received: {task!r}"
            )
        with naming_task(task):
            validated[task] = likelihoods.get(likelihood)
    return validated


def validate_loss_weights(loss_weights: Any, tasks: list[str]) -> dict[str, float]:
    """The loss weight of each task, 1 where none is given."""
    weights = dict.fromkeys(tasks, 1.0)
    if loss_weights is None:
        return weights
    if not isinstance(loss_weights, Mapping):
        raise ValueError(
            f"`loss_weights` must be a dict from task to a number. Received: {loss_weights!r}"
        )
    for task, weight in loss_weights.items():
        if task not in weights:
            raise ValueError(
                f"`loss_weights` names the unknown task {task!r}. The tasks are {tasks}."
            )
        if not isinstance(weight, Real) or not 0 <= float(weight) < math.inf:
            raise ValueError(
                f"Task '{task}': its entry in `loss_weights` must be a finite number that is not "
                f"negative. Received: {weight!r}"
            )
        weights[task] = float(weight)
    return weights
