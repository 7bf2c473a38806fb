"""Rows of the comparison: their file, and their metrics by method."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from examples.scenes.methods import GRID, SINGLE, TASKS, Method, wide

Row = dict[str, str]
Array = npt.NDArray[np.float64]

# A larger mean IoU is better; larger errors are worse.
SIGNS = {"classes": 1.0, "instances": -1.0, "inverse_depth": -1.0}


def read_rows(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Replaces the file atomically, so that an interruption leaves no partial file."""
    unfinished_file = path.with_suffix(".tmp")
    with unfinished_file.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())
    unfinished_file.replace(path)


class Results:
    """The runs of a comparison by method.

    Args:
        rows: Rows of the CSV file, one for each run.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def runs(self, method: Method) -> list[Row]:
        """The rows of a method in the order of their seeds."""
        found = [row for row in self.rows if row["method"] == method.name]
        return sorted(found, key=lambda row: int(row["seed"]))

    def values(self, method: Method, task: str, split: str = "test") -> Array:
        """The metric of a task in each run of a method, mean IoU in percent."""
        factor = 100.0 if task == "classes" else 1.0
        return factor * np.array([float(row[f"{split}_{task}"]) for row in self.runs(method)])

    def differences(self, method: Method, other: Method, task: str) -> Array:
        """The metric of a method minus that of another, for each seed that both have."""
        seeds = {row["seed"] for row in self.runs(method)} & {
            row["seed"] for row in self.runs(other)
        }

        def common(one: Method) -> Array:
            kept = [row["seed"] in seeds for row in self.runs(one)]
            return self.values(one, task)[kept]

        return common(method) - common(other)

    def improvement(self, method: Method, task: str, split: str = "test") -> Array:
        """Relative improvement of each run over the network for that task alone.

        The reference is the mean of the single-task networks of the same size.
        """
        alone = SINGLE[TASKS.index(task)]
        if "wide" in method.variations:
            alone = wide(alone)
        reference = self.values(alone, task, split).mean()
        return SIGNS[task] * (self.values(method, task, split) - reference) / reference

    def goodness(self, method: Method, split: str) -> Array:
        """Mean relative improvement of each task."""
        return np.array([self.improvement(method, task, split).mean() for task in TASKS])

    def best_fixed(self) -> Method:
        """The fixed weighting with the largest mean goodness on the validation images."""
        return max(GRID, key=lambda method: self.goodness(method, "validation").mean())

    def dominating(self, method: Method) -> list[Method]:
        """The fixed weightings that are at least as good at all tasks on the test images."""
        goodness = self.goodness(method, "test")
        return [one for one in GRID if (self.goodness(one, "test") >= goodness).all()]


def spread(task: str, values: Array, sign: str = "") -> str:
    """Mean ± standard deviation of a task's metric."""
    digits = 1 if task == "classes" else 3
    return f"{values.mean():{sign}.{digits}f} ± {values.std(ddof=1):.{digits}f}"
