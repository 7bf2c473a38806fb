"""Groups of tasks that are computed as one, decided once, when the layer is built."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from keras_uncertainty_mtl._observations import is_elementwise
from keras_uncertainty_mtl._reductions import stack
from keras_uncertainty_mtl._shapes import Shape, Tensor
from keras_uncertainty_mtl._structures import naming_task
from keras_uncertainty_mtl.likelihoods import Likelihood

# The most predictions of a sample for its task to join others: stacking copies them.
LARGEST = 1024

# The largest |s|. Single precision holds exp(±60) with room for errors far from σ.
BOUND = 60.0


@dataclass(frozen=True)
class Group:
    """Tasks of one likelihood and shape, and the place of their log-variances in the vector of all.

    Many small operations cost more than a few larger ones, so these tasks share tensors, with an
    axis of tasks. Their likelihoods differ in `initial_sigma` alone. Each has `channels`
    log-variances, from `start` on.
    """

    tasks: list[str]
    likelihood: Likelihood
    initial_sigmas: list[Any]
    channels: int
    start: int

    @property
    def size(self) -> int:
        """The number of log-variances."""
        return len(self.tasks) * self.channels

    def of(self, vector: Tensor) -> Tensor:
        """This group's part of a vector of all log-variances, of shape `(tasks, channels)`."""
        part = vector[self.start : self.start + self.size]
        return ops.reshape(part, (len(self.tasks), self.channels))

    def over_elements(self, vector: Tensor, predictions: Tensor) -> Tensor:
        """This group's part, of a shape that broadcasts over the elements of its predictions."""
        rank = len(predictions.shape)
        if self.likelihood.per_channel:
            rank = len(self.likelihood.loss_shape(tuple(predictions.shape[1:]))) + 1
        return ops.reshape(self.of(vector), (len(self.tasks), *[1] * (rank - 2), self.channels))

    def tempered(
        self, predictions: Mapping[str, Tensor], log_variances: Tensor, dtype: str
    ) -> dict[str, Tensor]:
        """The logits of the tasks at their temperature; nothing where there is none."""
        if not self.likelihood.is_tempered:
            return {}
        logits = stack([ops.cast(predictions[task], dtype) for task in self.tasks])
        s = self.over_elements(log_variances, logits)
        scaled = ops.unstack(self.likelihood.temper(logits, s))
        return dict(zip(self.tasks, scaled, strict=True))

    def places(self) -> dict[str, int | slice]:
        """For each task, the index of its log-variance in the vector of all, or a slice of them."""
        starts = range(self.start, self.start + self.size, self.channels)
        places = zip(self.tasks, starts, strict=True)
        if self.likelihood.per_channel:
            return {task: slice(start, start + self.channels) for task, start in places}
        return dict(places)

    def initial_log_variances(self) -> np.ndarray:
        """The log-variances to start from, NaN for the optimum of the first batch."""
        unknown = math.nan if self.likelihood.follows_losses else 1.0
        logarithms = [np.log(sigma or unknown) for sigma in self.initial_sigmas]
        return 2.0 * np.concatenate([np.broadcast_to(each, self.channels) for each in logarithms])


def group_tasks(
    tasks: Mapping[str, Likelihood], prediction_shapes: Mapping[str, Shape]
) -> list[Group]:
    """The groups of the tasks.

    Tasks are taken by their sorted names. The order in which a user writes them then does not
    change the place of a log-variance, on which the state of a saved optimizer rests.
    """
    members: dict[Hashable, list[str]] = {}
    for task in sorted(tasks):
        key = _kind(tasks[task], prediction_shapes[task]) or task
        members.setdefault(key, []).append(task)
    groups: list[Group] = []
    start = 0
    for names in members.values():
        for task in names:
            with naming_task(task):
                channels = _channels(tasks[task], prediction_shapes[task])
        sigmas = [tasks[task].initial_sigma for task in names]
        groups.append(Group(names, tasks[names[0]], sigmas, channels, start))
        start += groups[-1].size
    return groups


def _kind(likelihood: Likelihood, prediction_shape: Shape) -> Hashable:
    """A key that tasks of one group share, `None` for a task that is computed alone."""
    size = math.prod(size or math.inf for size in prediction_shape[1:])
    if not is_elementwise(likelihood) or size > LARGEST:
        return None
    config = likelihood.get_config() | {"initial_sigma": None}
    return type(likelihood), repr(config), prediction_shape


def _channels(likelihood: Likelihood, prediction_shape: Shape) -> int:
    """The number of log-variances of a task, once its likelihood is seen to fit the predictions."""
    channels = 1
    loss_shape = likelihood.loss_shape(prediction_shape)
    if likelihood.per_channel:
        if len(loss_shape) < 2 or loss_shape[-1] is None:
            raise ValueError(
                "`per_channel=True` expects predictions whose last axis is of channels, as many "
                "as are known beforehand, or the axis before that of classes. Received: "
                f"predictions of shape {prediction_shape}"
            )
        channels = loss_shape[-1]
    if likelihood.channels is not None and len(likelihood.channels) != channels:
        raise ValueError(
            f"`channels` must have a name for each of {channels} channels. Received: "
            f"{len(likelihood.channels)} names, {likelihood.channels}"
        )
    sigmas = np.ravel(1.0 if likelihood.initial_sigma is None else likelihood.initial_sigma)
    if len(sigmas) not in (1, channels) or np.max(np.abs(2.0 * np.log(sigmas))) > BOUND:
        raise ValueError(
            f"`initial_sigma` must be one number or {channels} of them, one for each channel, "
            f"between 1e-13 and 1e13. Received: initial_sigma={likelihood.initial_sigma!r}. Have "
            "the task in a unit nearer to its noise."
        )
    return channels
