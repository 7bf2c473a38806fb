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

from keras_uncertainty_mtl.likelihoods import Likelihood, closed_form_optimum
from keras_uncertainty_mtl.observations import Observations
from keras_uncertainty_mtl.structures import naming_task
from keras_uncertainty_mtl.weighting import UncertaintyWeighting

Tensor = Any

# Where there is no closed form, σ is looked for between 2e-9 and 5e8. Each pass over the data looks
# at a grid of log-variances and leaves a sixteenth of it for the next. The last is but ±0.16 wide,
# over which a likelihood is a polynomial to all the digits that its sum has.
GRID_SIZE = 33
GRID_ENDS = (-40.0, 40.0)
PASSES = 3
POLYNOMIAL_DEGREE = 6

# A difference of means that is smaller, absolutely or as a share of them, may be but rounding.
ROUNDING = 1e-6


def optimal_log_variances(
    model: keras.Model,
    weighting: UncertaintyWeighting,
    x: Any,
    y: Any = None,
    **evaluate_arguments: Any,
) -> dict[str, Any]:
    """The log-variances under which the data are most likely, the network being as it is.

    Args:
        model: A functional model whose outputs are the tasks' predictions.
        weighting: The layer that knows the tasks' likelihoods.
        x: As in `keras.Model.evaluate`.
        y: As in `keras.Model.evaluate`.
        **evaluate_arguments: As in `keras.Model.evaluate`.

    Returns:
        Dict from task to a NumPy scalar, or a vector where each channel has its own; NaN where no
        element is observed, and, with a warning, where no σ is the most likely one.

    Raises:
        ValueError: If the loss of a task is not finite, or data that have to be read several times
            can be read only once.
    """
    tasks = weighting.tasks
    searched = [task for task, likelihood in tasks.items() if not likelihood.has_closed_form]
    if searched and isinstance(x, types.GeneratorType):
        raise ValueError(
            f"calibrate() reads the data {PASSES} times, because the likelihoods of {searched} "
            "have no closed form, and a generator can be read only once. Received: a generator. "
            "Hand over arrays, a tf.data.Dataset or a keras.utils.PyDataset."
        )
    with _scope_of(model):
        evaluation = _Evaluation(model, weighting)
    evaluation.evaluate(x, y, **evaluate_arguments)
    for _ in range(PASSES - 1 if searched else 0):
        for task in searched:
            with naming_task(task):
                evaluation.sums[task].refine_grid()
        evaluation.evaluate(x, y, **evaluate_arguments)

    optima = {}
    for task, sums in evaluation.sums.items():
        with naming_task(task):
            optima[task] = sums.optimum()
        if np.any(np.isnan(optima[task]) & sums.is_observed):
            warnings.warn(
                f"Task '{task}': no σ is the most likely one, so it stays as it is. The network "
                "makes no error at all on these data, or knows nothing of them.",
                stacklevel=3,
            )
    return optima


def _scope_of(model: keras.Model) -> Any:
    """Where to make what is to run on the replicas that the model runs on."""
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    return model.distribute_strategy.scope()


class _Evaluation(keras.Model):
    """A model whose `evaluate` adds up what the optima of the tasks follow from."""

    def __init__(self, model: keras.Model, weighting: UncertaintyWeighting) -> None:
        super().__init__(model.input, model.output, name="calibration")
        self.output_names = model.output_names
        self.weighting = weighting
        # So that the progress bar shows what it shows in `evaluate`.
        self._loss_of_the_model = model.compute_loss
        sigmas = weighting.sigmas()
        self.sums = {
            task: _TaskSums(likelihood, sigmas[task].shape)
            for task, likelihood in weighting.tasks.items()
        }
        self.compile(run_eagerly=model.run_eagerly, jit_compile=model.jit_compile)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = False,
    ) -> Tensor:
        return self._loss_of_the_model(x, y, y_pred, sample_weight, training=training)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Tensor]:
        for task, batch in self.weighting.observations(y_pred, y, sample_weight).items():
            self.sums[task].update_state(batch)
        return self.get_metrics_result()


class _TaskSums(keras.metrics.Metric):
    """A task's sums over all batches: of its losses, or of its likelihoods under a grid of `s`.

    Args:
        likelihood: The task's likelihood.
        shape: The shape of its σ.
    """

    def __init__(self, likelihood: Likelihood, shape: tuple[int, ...]) -> None:
        super().__init__(name="sums")
        self._likelihood = likelihood
        self._grid: Any = None
        if not likelihood.has_closed_form:
            self._grid = self.add_variable(
                (GRID_SIZE, *shape), "zeros", "float32", "only_first_replica", name="grid"
            )
            self._place_grid(*(np.full(shape, end) for end in GRID_ENDS))
        # Over many batches single precision loses digits, and JAX has no other unless told to.
        sums_shape = shape if self._grid is None else self._grid.shape
        self._sums, self._sums_excess = self._add_sum(sums_shape, "sums")
        self._total, self._total_excess = self._add_sum(shape, "total")

    def update_state(self, batch: Observations) -> None:
        """Adds a batch."""
        if self._grid is None:
            sums = batch.scaled_loss_sum()
        else:
            grid = ops.cast(ops.convert_to_tensor(self._grid), batch.predictions.dtype)
            # One point after the other, so that there is only one of them in memory.
            sums = ops.map(batch.negative_log_likelihood_sum, grid)
        _, total = batch.loss_sums()
        _add_compensated(self._sums, self._sums_excess, sums)
        _add_compensated(self._total, self._total_excess, total)

    def reset_state(self) -> None:
        """Forgets all batches, and keeps the grid."""
        for variable in (self._sums, self._sums_excess, self._total, self._total_excess):
            variable.assign(ops.zeros(variable.shape, variable.dtype))

    def result(self) -> dict[str, Tensor]:
        """Nothing: sums are not for the progress bar."""
        return {}

    def refine_grid(self) -> None:
        """Places the grid between the neighbours of its best point."""
        self._place_grid(*_neighbours_of_the_best(self.grid, self.means()))

    def optimum(self) -> Any:
        """The log-variance of maximum likelihood, NaN where there is none."""
        means = self.means()
        if self._grid is not None:
            return _polynomial_minimum(self.grid, means)
        likelihood = self._likelihood
        losses = np.where(means > 0, means, np.nan)
        return closed_form_optimum(losses, likelihood.scale, likelihood.power)

    @property
    def grid(self) -> Any:
        return self._grid.numpy()

    @property
    def is_observed(self) -> Any:
        return self._total.numpy() > 0

    def means(self) -> Any:
        """The means over all observed elements, NaN where there are none."""
        sums, total = (
            variable.numpy().astype("float64") - excess.numpy()
            for variable, excess in (
                (self._sums, self._sums_excess),
                (self._total, self._total_excess),
            )
        )
        means = np.divide(sums, total, out=np.full_like(sums, np.nan), where=self.is_observed)
        # Far from the optimum a likelihood may be out of the range of its dtype.
        means = np.where(self.is_observed & ~np.isfinite(means), np.inf, means)
        smallest = means
        if self._grid is not None:
            means = np.where(np.isnan(self.grid), np.nan, means)
            smallest = means.min(axis=0)
        if np.any(np.isinf(smallest)):
            raise ValueError(
                "the loss must be finite, and is not for the data received. A label that is "
                "missing has to be the value that the likelihood knows as `missing`: "
                f"{self._likelihood.missing}."
            )
        return means

    def _add_sum(self, shape: tuple[int, ...], name: str) -> tuple[Any, Any]:
        return tuple(
            self.add_variable(shape, "zeros", "float32", name=each)
            for each in (name, f"{name}_excess")
        )

    def _place_grid(self, lower: Any, upper: Any) -> None:
        self._grid.assign(np.linspace(lower, upper, GRID_SIZE))


def _add_compensated(variable: Any, excess: Any, value: Tensor) -> None:
    """Adds a value, and keeps by how much the rounded sum is too large (Kahan's summation)."""
    value = ops.cast(value, variable.dtype) - ops.convert_to_tensor(excess)
    before = ops.convert_to_tensor(variable)
    after = before + value
    # Before any of the two is assigned, for TensorFlow reads a variable where it is used.
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
    """Where the polynomial through the values is smallest, along the first axis."""
    minima = np.full(grid.shape[1:], np.nan)
    for entry in np.ndindex(minima.shape):
        points, heights = grid[:, *entry], values[:, *entry]
        if np.all(np.isfinite(heights)):
            polynomial = Polynomial.fit(points, heights, POLYNOMIAL_DEGREE)
            roots = polynomial.deriv().roots()
            extrema = [root.real for root in roots if points[0] < root.real < points[-1]]
            minima[entry] = min(extrema, key=polynomial, default=np.nan)
    return minima
