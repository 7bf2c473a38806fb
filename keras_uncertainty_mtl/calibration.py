"""Log-variances of maximum likelihood, on data that a trained network has not seen."""

from __future__ import annotations

import contextlib
import types
import warnings
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.polynomial import Polynomial

from keras_uncertainty_mtl._groups import Group
from keras_uncertainty_mtl._observations import Observations
from keras_uncertainty_mtl._structures import naming_task
from keras_uncertainty_mtl.inference import without_weighting

Tensor = Any

# Without a closed form, σ is searched between 2e-9 and 5e8. Each pass over the data looks at a grid
# of log-variances and leaves a sixteenth of it for the next. The last grid is ±0.16 wide, over
# which a likelihood is a polynomial to all digits of its sum.
GRID_SIZE, GRID_END = 33, 40.0
PASSES = 3
POLYNOMIAL_DEGREE = 6

# Smaller differences of means, absolute or relative, may be rounding errors.
ROUNDING = 1e-6


def optimal_log_variances(
    model: Any, x: Any, y: Any = None, **evaluate_arguments: Any
) -> dict[str, Any]:
    """The log-variances under which the data are most likely, with the network as it is.

    Each task has a NumPy vector of them; NaN where no element is observed, and, with a warning,
    where no σ is the most likely one. The data are those of `keras.Model.evaluate`.
    """
    tasks = model.weighting.tasks
    searched = [task for task, likelihood in tasks.items() if not likelihood.has_closed_form]
    if searched and isinstance(x, types.GeneratorType):
        raise ValueError(
            f"calibrate() reads the data {PASSES} times, because the likelihoods of {searched} "
            "have no closed form, and a generator can be read only once. Received: a generator. "
            "Hand over arrays, a tf.data.Dataset or a keras.utils.PyDataset."
        )
    with _scope_of(model):
        evaluation = _Evaluation(model)
    evaluation.evaluate(x, y, **evaluate_arguments)
    for _ in range(PASSES - 1 if searched else 0):
        for sums in evaluation.sums.values():
            sums.refine_grid()
        evaluation.evaluate(x, y, **evaluate_arguments)

    optima = {}
    for sums in evaluation.sums.values():
        for task, optimum, is_observed in sums.optima():
            optima[task] = optimum
            if np.any(np.isnan(optimum) & is_observed):
                warnings.warn(
                    f"Task '{task}': no σ is the most likely one, so it stays as it is. The "
                    "network makes no error at all on these data, or knows nothing of them.",
                    stacklevel=3,
                )
    return optima


def _scope_of(model: keras.Model) -> Any:
    """The scope in which to make a model that runs on the same replicas."""
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    return model.distribute_strategy.scope()


class _Evaluation(keras.Model):
    """A model whose `evaluate` adds up the sums that the tasks' optima follow from."""

    def __init__(self, model: Any) -> None:
        network = without_weighting(model, tempered=False)
        super().__init__(network.input, network.output, name="calibration")
        self._weighting = model.weighting
        self._loss_of_the_model = model.compute_loss
        self.sums: dict[str, _GroupSums] = {}
        self.compile(run_eagerly=model.run_eagerly, jit_compile=model.jit_compile)
        for group in model.weighting.groups:
            self.sums[group.tasks[0]] = _GroupSums(group)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = False,
    ) -> Tensor:
        # The progress bar shows the loss that it shows in `evaluate`.
        answers = self._weighting(y_pred)
        return self._loss_of_the_model(x, y, answers, sample_weight, training=False)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Tensor]:
        batches = self._weighting.observe(y_pred, y, sample_weight)
        for sums, batch in zip(self.sums.values(), batches, strict=True):
            sums.update_state(batch)
        return self.get_metrics_result()


class _GroupSums(keras.metrics.Metric):
    """Sums over all batches: of a group's losses, or of its likelihoods under a grid of `s`."""

    def __init__(self, group: Group) -> None:
        super().__init__(name="sums")
        self._group = group
        shape = (len(group.tasks), group.channels)
        self._grid: Any = None
        if not group.likelihood.has_closed_form:
            self._grid = self.add_variable(
                (GRID_SIZE, *shape), "zeros", "float32", "only_first_replica", name="grid"
            )
            ends = np.full(shape, GRID_END)
            self._grid.assign(np.linspace(-ends, ends, GRID_SIZE))
        # Over many batches single precision loses digits, and JAX has no other unless told to.
        sums_shape = shape if self._grid is None else self._grid.shape
        self._sums, self._sums_excess, self._total, self._total_excess = (
            self.add_variable(each, "zeros", "float32", name=name)
            for each, name in (
                (sums_shape, "sums"),
                (sums_shape, "sums_excess"),
                (shape, "total"),
                (shape, "total_excess"),
            )
        )

    def update_state(self, batch: Observations) -> None:
        """Adds a batch."""
        if self._grid is None:
            sums = batch.scaled_loss_sum
        else:
            grid = ops.cast(ops.convert_to_tensor(self._grid), batch.predictions.dtype)
            # One point after the other, so that only one of them is in memory.
            sums = ops.map(batch.negative_log_likelihood_sum, grid)
        _add_compensated(self._sums, self._sums_excess, sums)
        _add_compensated(self._total, self._total_excess, batch.weight_sum)

    def reset_state(self) -> None:
        """Forgets all batches, and keeps the grid."""
        for variable in (self._sums, self._sums_excess, self._total, self._total_excess):
            variable.assign(ops.zeros(variable.shape, variable.dtype))

    def result(self) -> dict[str, Tensor]:
        """Nothing: the sums are not for the progress bar."""
        return {}

    def refine_grid(self) -> None:
        """Places the grid between the neighbours of its best point."""
        if self._grid is not None:
            means = self._means()[0]
            ends = _neighbours_of_the_best(self._grid.numpy(), means)
            self._grid.assign(np.linspace(*ends, GRID_SIZE))

    def optima(self) -> list[tuple[str, Any, Any]]:
        """Each task, its log-variances of maximum likelihood, and whether they are observed."""
        means, is_observed = self._means()
        if self._grid is not None:
            optima = _polynomial_minimum(self._grid.numpy(), means)
        else:
            optima = self._group.likelihood.optimum(np.where(means > 0, means, np.nan))
        return list(zip(self._group.tasks, optima, is_observed, strict=True))

    def _means(self) -> tuple[Any, Any]:
        """The means over all observed elements, NaN where there are none, and where there are."""
        sums, total = (
            variable.numpy().astype("float64") - excess.numpy()
            for variable, excess in (
                (self._sums, self._sums_excess),
                (self._total, self._total_excess),
            )
        )
        is_observed = total > 0
        means = np.divide(sums, total, out=np.full_like(sums, np.nan), where=is_observed)
        # Far from the optimum a likelihood may be out of the range of its dtype.
        means = np.where(is_observed & ~np.isfinite(means), np.inf, means)
        smallest = means
        if self._grid is not None:
            means = np.where(np.isnan(self._grid.numpy()), np.nan, means)
            smallest = means.min(axis=0)
        for task, values in zip(self._group.tasks, smallest, strict=True):
            with naming_task(task):
                self._check_finite(values)
        return means, is_observed

    def _check_finite(self, means: Any) -> None:
        if np.any(np.isinf(means)):
            raise ValueError(
                "the loss must be finite, and is not for the data received. A label that is "
                "missing has to be the value that the likelihood knows as `missing`: "
                f"{self._group.likelihood.missing}."
            )


def _add_compensated(variable: Any, excess: Any, value: Tensor) -> None:
    """Adds a value, and keeps by how much the rounded sum is too large (Kahan's summation)."""
    value = ops.cast(value, variable.dtype) - ops.convert_to_tensor(excess)
    before = ops.convert_to_tensor(variable)
    after = before + value
    # Before either is assigned, because TensorFlow reads a variable where it is used.
    too_large = after - before - value
    variable.assign(after)
    excess.assign(too_large)


def _neighbours_of_the_best(grid: Any, values: Any) -> tuple[Any, Any]:
    """The points before and after that of the smallest value, along the first axis.

    NaN where a smallest value is at an end, or no smaller: where values fall for ever.
    """
    best = values.argmin(axis=0)
    ends = np.minimum(values[0], values[-1])
    inside = values.min(axis=0) < ends - ROUNDING * np.maximum(np.abs(ends), 1.0)
    best = np.clip(best, 1, len(grid) - 2)[np.newaxis]
    (before,), (after,) = (np.take_along_axis(grid, best + step, axis=0) for step in (-1, 1))
    return np.where(inside, before, np.nan), np.where(inside, after, np.nan)


def _polynomial_minimum(grid: Any, values: Any) -> Any:
    """The minimum of the polynomial through the values, along the first axis."""
    minima = np.full(grid.shape[1:], np.nan)
    for entry in np.ndindex(minima.shape):
        points, heights = grid[:, *entry], values[:, *entry]
        if np.all(np.isfinite(heights)):
            polynomial = Polynomial.fit(points, heights, POLYNOMIAL_DEGREE)
            roots = polynomial.deriv().roots()
            extrema = [root.real for root in roots if points[0] < root.real < points[-1]]
            minima[entry] = min(extrema, key=polynomial, default=np.nan)
    return minima
