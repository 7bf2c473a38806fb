"""Conformal quantiles: the distance from its prediction within which a share of all targets is."""

import warnings
from collections.abc import Mapping
from numbers import Real
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_uncertainty_mtl._groups import Group
from keras_uncertainty_mtl._observations import Observations
from keras_uncertainty_mtl._reductions import (
    add_exactly,
    exact_sums,
    num_replicas,
    replica_index,
)
from keras_uncertainty_mtl.likelihoods import Likelihood

# A pass over the data counts the scores by eleven of the 32 bits of a floating point number, the
# first pass by ten. Three passes thus leave a single number.
BINS = 2048
LOWEST_BITS = (22, 11, 0)

# The most elements that `segment_sum` adds up: one after the other, so that it loses digits.
PART = 512

ROUNDING = 2e-6  # Relative differences of scores may be rounding errors.
SAME_WEIGHT = 1e-9  # Relative differences of sums of weights in double precision may be.
SAME_DATA = 1e-4  # Relative differences of sums over data in another order and other batches.


def check_level(level: Any) -> None:
    """Refuses a level that is no probability."""
    if level is not None and not (isinstance(level, Real) and 0 < float(level) < 1):
        raise ValueError(
            "`intervals` must be the share of the targets that intervals hold, such as 0.95, or "
            f"None. Received: intervals={level!r}"
        )


def warn_of_tasks_without(tasks: Mapping[str, Likelihood]) -> None:
    """Names the tasks whose likelihoods have no score."""
    if without := [task for task, each in tasks.items() if not each.has_intervals]:
        warnings.warn(
            f"The tasks {without} get no intervals: their likelihoods do not say which targets are "
            "likely. Use another one than `Gibbs`, or give your own a `nonconformity`.",
            stacklevel=4,
        )


def with_rounding(quantile: Any) -> Any:
    """A quantile that scores at it do not exceed where they are computed in another way."""
    return quantile + ROUNDING * np.abs(quantile)


class ScoreCounts(keras.metrics.Metric):
    """The weights of a group's scores, counted in bins that close in on the quantile of each task.

    It is the smallest `q` with `Σ w·[score ≤ q] ≥ level · (Σ w + max w)`: of `n` elements of one
    weight the `⌈level · (n + 1)⌉`-th smallest score. It is infinite where there are too few.

    Args:
        index: The place of the group among all.
        group: The group.
        log_variances: Dict from each task to the `s` at which its exact form has its scores.
        level: The share of all targets whose scores do not exceed the quantile.
    """

    def __init__(
        self, index: int, group: Group, log_variances: Mapping[str, Any], level: float
    ) -> None:
        super().__init__(name="scores")
        self._index, self._group, self._level = index, group, level
        shape = (len(group.tasks), group.channels)
        values = [np.broadcast_to(log_variances[task], shape[1:]) for task in group.tasks]
        self._log_variances = np.stack(values)
        self._counts = self.add_variable((2, BINS, *shape), "zeros", "float32")
        # Keras adds up what replicas hold, so each has a row of its own.
        self._heaviest = self.add_variable((num_replicas(), *shape), "zeros", "float32")
        self._lowest_bit = self.add_variable((), "zeros", "int32", "only_first_replica")
        self._start = self.add_variable(shape, "zeros", "int32", "only_first_replica")
        self.tasks, self.passes = group.tasks, len(LOWEST_BITS)
        self._bits = iter(LOWEST_BITS)
        self._bit, self._found = 31, np.full(shape, -1)  # The numbers from -2³¹ on.
        self._place_bins()
        self._total: Any = None

    def _place_bins(self) -> None:
        lowest_bit = next(self._bits)
        self._found = self._found << (self._bit - lowest_bit)
        self._bit = lowest_bit
        self._lowest_bit.assign(lowest_bit)
        self._start.assign(self._found.astype("int32"))

    def update_state(self, batches: list[Observations]) -> None:
        batch = batches[self._index].without_label_weights().in_exact_form()
        scores = batch.nonconformity(ops.cast(self._log_variances, batch.predictions.dtype))
        weights = ops.ones_like(scores) if batch.weights is None else batch.weights
        tasks, channels = self._start.shape
        scores, weights = (
            ops.reshape(ops.cast(each, "float32"), (tasks, -1, channels))
            for each in (scores, weights)
        )
        self._keep_heaviest(ops.max(weights, axis=1, initial=0.0))
        bins = ops.right_shift(_ordered(scores), ops.convert_to_tensor(self._lowest_bit))
        bins = bins - ops.expand_dims(ops.convert_to_tensor(self._start), 1)
        is_inside = ops.logical_and(bins >= 0, bins < BINS)
        elements = ops.shape(scores)[1]
        part = ops.reshape(ops.arange(elements, dtype="int32") // PART, (1, -1, 1))
        row = BINS * part + ops.where(is_inside, bins, 0)
        column = np.arange(tasks * channels, dtype="int32").reshape(tasks, 1, channels)
        counts = ops.segment_sum(
            ops.reshape(ops.where(is_inside, weights, 0.0), (-1,)),
            ops.reshape(ops.add(tasks * channels * row, column), (-1,)),
            num_segments=(elements // PART + 1) * BINS * tasks * channels,
        )
        counts = ops.sum(ops.reshape(counts, (-1, BINS, tasks, channels)), axis=0)
        add_exactly(self._counts, counts)

    def _keep_heaviest(self, heaviest: Any) -> None:
        own_row = ops.one_hot(replica_index(), num_replicas(), dtype="float32")
        rows = ops.reshape(own_row, (-1, 1, 1)) * heaviest
        self._heaviest.assign(ops.maximum(ops.convert_to_tensor(self._heaviest), rows))

    def reset_state(self) -> None:
        """Forgets the counts, and keeps the bins and the largest weights."""
        self._counts.assign(ops.zeros(self._counts.shape, "float32"))

    def result(self) -> dict[str, Any]:
        return {}  # The counts are not for the progress bar.

    def narrow(self) -> None:
        """Divides the bin that holds the quantile into finer ones, for the next pass."""
        self._find_bin()
        self._place_bins()

    def _find_bin(self) -> None:
        counts = exact_sums(self._counts)
        total = counts.sum(axis=0)
        if self._total is None:
            # A new element may be as heavy as the heaviest, and stranger than all.
            self._wanted = self._level * (total + self._heaviest.numpy().max(axis=0))
            self._total = self._in_bin = total
            self._is_infinite = (self._wanted > total * (1.0 + SAME_WEIGHT)) | (total == 0)
        self._check_same_data(total)
        wanted = np.minimum(self._wanted - SAME_WEIGHT * self._total, total)
        upto = counts.cumsum(axis=0)
        bins = np.argmax(upto >= wanted, axis=0)[np.newaxis]
        self._in_bin = np.take_along_axis(counts, bins, axis=0)[0]
        self._wanted = self._wanted - np.take_along_axis(upto - counts, bins, axis=0)[0]
        self._found = self._found + bins[0]

    def _check_same_data(self, total: Any) -> None:
        differs = np.abs(total - self._in_bin) > SAME_DATA * self._total
        for task in np.compress(differs.any(axis=1), self._group.tasks):
            raise ValueError(
                f"Task '{task}': calibrate(intervals=…) reads the data several times, and expects "
                "the same data each time. Received: scores of another sum of weights, by "
                f"{np.abs(total - self._in_bin).max():.3g}. Leave out random augmentation, or read "
                "once and keep: `dataset.cache()`."
            )

    def result_by_task(self) -> dict[str, Any]:
        """The quantile of each task, infinite with a warning where there are too few labels."""
        self._find_bin()
        bits = np.where(self._found < 0, self._found ^ 0x7FFFFFFF, self._found)
        values = bits.astype("int32").view("float32").astype("float64")
        values = np.where(self._is_infinite, np.inf, values)
        fewest = np.ceil(self._level / (1.0 - self._level) - SAME_WEIGHT)
        for task in np.compress(self._is_infinite.any(axis=1), self._group.tasks):
            warnings.warn(
                f"Task '{task}': too few labels for intervals of {self._level:.4g}, which take "
                f"{fewest:.0f} of equal weight for each σ. An interval is infinite there, and a "
                "set holds every class.",
                stacklevel=4,
            )
        values = values if self._group.likelihood.per_channel else values[:, 0]
        return dict(zip(self._group.tasks, values, strict=True))


def _ordered(numbers: Any) -> Any:
    """Integers in the order of floating point numbers, one for each: their bits."""
    bits = ops.view(numbers, "int32")
    return ops.where(bits < 0, ops.bitwise_xor(bits, 0x7FFFFFFF), bits)
