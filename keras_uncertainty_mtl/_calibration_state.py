"""The numbers beside σ that calibration finds, saved with their model."""

import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np


class CalibrationState(keras.layers.Layer):
    """Numbers of a task, or vectors of its channels, in three dicts; a task may be in none.

    - `log_temperatures`: the `s` of the exact form of an approximate classification.
    - `scored_at`: the `s` of the exact form of any task at which its conformal scores are.
    - `quantiles`: the quantile of these scores.

    There are no variables, so that calibration leaves the weights of a model as they are.
    """

    def __init__(self) -> None:
        super().__init__(name="calibration")
        self.built = True
        self.assign({}, {}, {})

    def assign(self, *rows: Mapping[str, Any]) -> None:
        """Replaces all three."""
        self.log_temperatures, self.scored_at, self.quantiles = (
            {task: np.asarray(value, "float64") for task, value in row.items()} for row in rows
        )

    def warn_of_lost_intervals(self, cause: str) -> None:
        """Names the tasks, if any, whose intervals or sets this cause is about to drop."""
        if self.quantiles:
            warnings.warn(
                f"{cause} drops the intervals and sets of the tasks {sorted(self.quantiles)}, "
                "which were of the calibration before. To have them again, call `calibrate(x, y, "
                "intervals=…)` with held-out data last, and make another `predictive_model()`.",
                stacklevel=3,
            )

    def exact_log_variances(self, weighting: Any) -> dict[str, Any]:
        """The `s` of each task's exact form."""
        log_variances = weighting.log_variances()
        for task, each in weighting.tasks.items():
            if each.exact_form() is not each:
                uncalibrated = np.zeros_like(log_variances[task])
                log_variances[task] = self.log_temperatures.get(task, uncalibrated)
        return log_variances

    def save_own_variables(self, store: Any) -> None:
        """Saves three rows for each task, NaN where it has none."""
        rows = self.log_temperatures, self.scored_at, self.quantiles
        for task in set().union(*rows):
            store[task] = np.stack(np.broadcast_arrays(*(row.get(task, np.nan) for row in rows)))

    def load_own_variables(self, store: Any) -> None:
        """Loads what is there: nothing of a model that was never calibrated."""
        rows: list[dict[str, Any]] = [{}, {}, {}]
        for task in store.keys():  # noqa: SIM118 - a store of Keras is no dict.
            for row, values in zip(rows, np.asarray(store[task]), strict=True):
                if not np.any(np.isnan(values)):
                    row[task] = values
        self.assign(*rows)
