"""Log-variances and temperatures of maximum likelihood, on data that a network has not seen."""

import contextlib
import types
import warnings
from dataclasses import replace
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from numpy.polynomial import Polynomial

from keras_uncertainty_mtl._groups import BOUND, Group
from keras_uncertainty_mtl._observations import Observations
from keras_uncertainty_mtl._reductions import add_exactly, exact_sums
from keras_uncertainty_mtl.conformal import SAME_DATA, ScoreCounts, warn_of_tasks_without
from keras_uncertainty_mtl.inference import without_weighting

# Without a closed form, σ is searched between 2e-9 and 5e8. Each pass over the data leaves a
# sixteenth of the grid. Over the last, ±0.16 wide, a likelihood is a polynomial to all its digits.
GRID_SIZE, GRID_END = 33, 40.0
PASSES, POLYNOMIAL_DEGREE = 3, 6

ROUNDING = 1e-6  # Smaller differences of means, absolute or relative, may be rounding errors.


class Calibration(NamedTuple):
    """What held-out data say, by task."""

    log_variances: dict[str, Any]  # NaN where nothing is known.
    exact_forms: dict[str, Any]  # The `s` of each approximate likelihood's exact form.
    quantiles: dict[str, Any]  # Of the conformal scores.


def calibration_on(
    model: Any, scored_at: dict[str, Any], level: float | None, x: Any, y: Any, **arguments: Any
) -> Calibration:
    """The log-variances under which data are most likely, and the quantiles of their scores.

    Args:
        model: A `MultiTaskModel`, whose network stays as it is.
        scored_at: Dict from each task to the `s` of its exact form that its scores are at.
        level: The share of scores below the quantile, `None` for no quantile.
        x, y, **arguments: As in `keras.Model.evaluate`.
    """
    if level is not None:
        warn_of_tasks_without(model.weighting.tasks)
    on_tensorflow = keras.backend.backend() == "tensorflow"
    with model.distribute_strategy.scope() if on_tensorflow else contextlib.nullcontext():
        own, exact, scores = _sums(model.weighting.groups, scored_at, level)
        evaluation = _Evaluation(model, [*own, *exact, *scores])
    passes = max(sums.passes for sums in evaluation.sums)
    if passes > 1 and isinstance(x, types.GeneratorType):
        searched = {task for sums in evaluation.sums if sums.passes > 1 for task in sums.tasks}
        raise ValueError(
            f"calibrate() reads the data {passes} times, because {sorted(searched)} have no closed "
            "form, or intervals. Received: a generator, to be read once. Hand over arrays or a "
            "tf.data.Dataset."
        )
    evaluation.read(x, y, **arguments)
    for _ in range(passes - 1):
        for sums in evaluation.sums:
            sums.narrow()
        evaluation.read(x, y, **arguments)
    found = Calibration({}, {}, {})
    for results, metrics in zip(found, (own, exact, scores), strict=True):
        for sums in metrics:
            results.update(sums.result_by_task())
    for task, s in found.exact_forms.items():
        found.exact_forms[task] = np.where(np.isnan(s), scored_at[task], s)
    return found


def _sums(groups: list[Group], scored_at: dict[str, Any], level: float | None) -> Any:
    """Lists of sums that log-variances, temperatures beside them, and quantiles follow from."""
    own = [_GroupSums(*each) for each in enumerate(groups)]
    exact = [
        _GroupSums(index, replace(group, likelihood=form))
        for index, group in enumerate(groups)
        if (form := group.likelihood.exact_form()) is not group.likelihood
    ]
    scores = [
        ScoreCounts(index, group, scored_at, level)
        for index, group in enumerate(groups)
        if level is not None and group.likelihood.has_intervals
    ]
    return own, exact, scores


class _Evaluation(keras.Model):
    """A model whose `evaluate` hands the observations of each batch to metrics that sum them up."""

    def __init__(self, model: Any, sums: list[Any]) -> None:
        network = without_weighting(model, untempered=model.weighting, all_inputs=True)
        super().__init__(network.input, network.output, name="calibration")
        self._weighting = model.weighting
        self._model_loss = model.compute_loss
        self.sums = sums
        self._has_batches = False
        self.compile(run_eagerly=model.run_eagerly, jit_compile=model.jit_compile)

    def read(self, *data: Any, **arguments: Any) -> None:
        """Adds up the sums over all batches of the data."""
        self._has_batches = False
        count = keras.callbacks.LambdaCallback(on_test_batch_end=self._count)
        is_jax = keras.backend.backend() == "jax"
        values = [(variable, variable.value) for variable in self.variables if is_jax]
        try:
            self.evaluate(*data, callbacks=[count], **arguments)
        finally:
            # Keras on JAX takes the values away, and gives back none after a failed first batch.
            for variable, value in [] if self._has_batches else values:
                variable.assign(value)
        if not self._has_batches:
            raise ValueError(
                "calibrate() expects data that can be read several times where a task has no "
                "closed form, or `intervals` are given, and once elsewhere. Received: data without "
                "any batch, or with none left. Hand over arrays, or a tf.data.Dataset that starts "
                "anew each time."
            )

    def _count(self, *_: Any, **__: Any) -> None:
        self._has_batches = True

    @property
    def metrics(self) -> list[Any]:
        return [*super().metrics, self._weighting.statistics]

    def compute_loss(self, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool) -> Any:
        # The progress bar shows the loss that it shows in `evaluate`.
        return self._model_loss(x, y, self._weighting(y_pred), sample_weight, training=False)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        batches = self._weighting.observe(y_pred, y, sample_weight)
        for sums in self.sums:
            sums.update_state(batches)
        return super().get_metrics_result()

    def get_metrics_result(self) -> Any:
        # Without a batch, Keras on JAX has no values to read.
        return super().get_metrics_result() if self._has_batches else {}


class _GroupSums(keras.metrics.Metric):
    """Sums over all batches: of a group's losses, or of its likelihoods under a grid of `s`."""

    def __init__(self, index: int, group: Group) -> None:
        super().__init__(name="sums")
        self._index, self._group = index, group
        self._grid: Any = None
        self._earlier: Any = None  # The sums of the data in the pass before.
        self.tasks = group.tasks
        self.passes, points = (1, 1) if group.likelihood.has_closed_form else (PASSES, GRID_SIZE)
        shape = (points, len(group.tasks), group.channels)
        if points > 1:
            self._grid = self.add_variable(shape, "zeros", "float32", "only_first_replica")
            ends = np.full(shape[1:], GRID_END)
            self._grid.assign(np.linspace(-ends, ends, points))
        # The last two rows are of the raw losses and of the weights.
        self._sums = self.add_variable((2, points + 2, *shape[1:]), "zeros", "float32")

    def update_state(self, batches: list[Observations]) -> None:
        batch = batches[self._index].without_label_weights()
        if batch.likelihood is not self._group.likelihood:
            batch = batch.in_exact_form()
        if self._grid is None:
            sums = ops.expand_dims(batch.scaled_loss_sum, 0)
        else:
            grid = ops.cast(ops.convert_to_tensor(self._grid), batch.predictions.dtype)
            # One point after the other, so that only one of them is in memory.
            sums = ops.map(batch.negative_log_likelihood_sum, grid)
        rows = ops.concatenate([sums, ops.stack([batch.loss_sum, batch.weight_sum])])
        add_exactly(self._sums, rows)

    def reset_state(self) -> None:
        """Forgets all batches, and keeps the grid."""
        self._sums.assign(ops.zeros(self._sums.shape, "float32"))

    def result(self) -> dict[str, Any]:
        return {}  # The sums are not for the progress bar.

    def _check_same_data(self) -> None:
        """Refuses data whose losses and weights have other sums than in the pass before."""
        now, earlier = exact_sums(self._sums)[-2:], self._earlier
        self._earlier = now
        if earlier is None:
            return
        # The cross-entropy of a perfect network is all rounding.
        rounding = ROUNDING * now[1] * self._group.likelihood.is_tempered
        differs = ~np.isclose(now, earlier, rtol=SAME_DATA, atol=rounding, equal_nan=True)
        if self._grid is None:
            differs[0] = False  # The last pass alone tells.
        for task in np.compress(differs.any(axis=(0, 2)), self._group.tasks):
            at = self._group.tasks.index(task)
            raise ValueError(
                f"Task '{task}': calibrate() reads the data {PASSES} times, and expects the same "
                f"data each time. Received: a sum of the losses of {earlier[0, at]}, then of "
                f"{now[0, at]}, and one of the weights of {earlier[1, at]}, then of {now[1, at]}. "
                "Leave out random augmentation, or read once and keep: `dataset.cache()`."
            )

    def narrow(self) -> None:
        """Places the grid between the neighbours of its best point, for the next pass."""
        self._check_same_data()
        if self._grid is not None:
            finer_grid = np.vectorize(_finer_grid, signature="(n),(n)->(n)")
            self._grid.assign(finer_grid(self._grid.numpy().T, self._means()[0].T).T)

    def result_by_task(self) -> dict[str, Any]:
        """The log-variances of maximum likelihood of each task, NaN where there are none."""
        self._check_same_data()
        means, is_observed = self._means()
        if self._grid is None:
            optima = self._group.likelihood.optimum(np.where(means[0] > 0, means[0], np.nan))
        else:
            minimum = np.vectorize(_polynomial_minimum, signature="(n),(n)->()")
            optima = minimum(self._grid.numpy().T, means.T).T
        optima = np.where(np.abs(optima) > BOUND, np.nan, optima)
        is_unknown = np.any(np.isnan(optima) & is_observed, axis=1)
        name = "temperature" if self._group.likelihood.is_tempered else "σ"
        for task in np.compress(is_unknown, self._group.tasks):
            warnings.warn(
                f"Task '{task}': no {name} is the most likely one, so it stays as it is. The "
                "network makes no error at all on these data, knows nothing of them, or has errors "
                "far from 1: have the task in a unit nearer to its noise.",
                stacklevel=4,
            )
        optima = optima if self._group.likelihood.per_channel else optima[:, 0]
        return dict(zip(self._group.tasks, optima, strict=True))

    def _means(self) -> tuple[Any, Any]:
        """The means over all observed elements, NaN where there are none, and where there are."""
        *sums, _, total = exact_sums(self._sums)
        total = np.nan_to_num(total, nan=1.0)  # Its sums are NaN too, and refused below.
        # Far from the optimum a likelihood may be out of the range of its dtype.
        means = np.where(np.isfinite(sums), sums, np.inf) / np.where(total > 0, total, np.nan)
        if self._grid is not None:
            means = np.where(np.isnan(self._grid.numpy()), np.nan, means)
        infinite = np.compress(np.isinf(means.min(axis=0)).any(axis=1), self._group.tasks)
        if infinite.size:
            raise ValueError(
                f"Task '{infinite[0]}': the loss must be finite, and is not for the data received. "
                "Missing labels must have the value that the likelihood knows as `missing`: "
                f"{self._group.likelihood.missing}. Class ids must be in range, and the mean of "
                "the loss not below 0."
            )
        return means, total > 0


def _finer_grid(points: Any, heights: Any) -> Any:
    """Points between the neighbours of the lowest one, NaN where heights fall towards an end."""
    lowest, end = heights.argmin(), min(heights[0], heights[-1])
    if heights[lowest] < end - ROUNDING * max(abs(end), 1.0):
        return np.linspace(points[lowest - 1], points[lowest + 1], len(points))
    return np.full_like(points, np.nan)


def _polynomial_minimum(points: Any, heights: Any) -> Any:
    """The lowest point of a polynomial through the heights, NaN if it is not inside."""
    if not np.all(np.isfinite(heights)):
        return np.nan
    polynomial = Polynomial.fit(points, heights, POLYNOMIAL_DEGREE)
    roots = polynomial.deriv().roots().real
    extrema = roots[(points[0] < roots) & (roots < points[-1])]
    return min(extrema, key=polynomial, default=np.nan)
