"""What `compare` compares: the paper's Table 1, its Figure 2, and the starts of σ, as runs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from examples.scenes.metrics import METRIC_NAMES

TASKS = tuple(METRIC_NAMES)
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Method:
    """A way to weigh tasks.

    Args:
        tasks: Names of the tasks that a network is trained for.
        weights: The fixed weight of the raw loss of each of them. `None`: learnt from uncertainty.
        initial_log_variance: What all their `s = log σ²` start from. `None`: where each does so by
            itself.
    """

    tasks: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    initial_log_variance: float | None = None

    @property
    def name(self) -> str:
        """What it is called in the CSV file."""
        if self.weights is not None:
            pairs = zip(self.weights, self.tasks, strict=True)
            return "fixed: " + ", ".join(f"{weight:.4g} {task}" for weight, task in pairs)
        name = "uncertainty: " + ", ".join(self.tasks)
        if self.initial_log_variance is None:
            return name
        return f"{name}, from {self.initial_log_variance:g}"


@dataclass(frozen=True)
class Run:
    """A method with one seed."""

    method: Method
    seed: int


SINGLE = [Method((task,), (1.0,)) for task in TASKS]
EQUAL = Method(TASKS, (1.0, 1.0, 1.0))
# Only their ratios matter to Adam, so that of the three weights one is 1.
INSTANCE_WEIGHTS = (0.01, 0.1, 1.0, 10.0)
DEPTH_WEIGHTS = (0.1, 1.0, 10.0, 100.0)
GRID = [
    Method(TASKS, (1.0, *weights)) for weights in itertools.product(INSTANCE_WEIGHTS, DEPTH_WEIGHTS)
]
PAIRS = [Method(pair) for pair in itertools.combinations(TASKS, 2)]
ALL = Method(TASKS)

# The two tasks of Figure 2, weighted by w and 1 - w, as the paper has it.
LINE_TASKS = ("classes", "inverse_depth")
LINE_RATIOS = np.logspace(-2.0, 2.0, 9)
LINE = [Method(LINE_TASKS, (float(1 / (1 + r)), float(r / (1 + r)))) for r in LINE_RATIOS]

STARTS = [Method(TASKS, initial_log_variance=float(start)) for start in range(-2, 6)]

# Seed by seed, so that what is there of an interrupted comparison is one of everything.
METHODS = [ALL, EQUAL, *SINGLE, *PAIRS, *(one for one in GRID if one != EQUAL), *LINE]
RUNS = [Run(method, seed) for seed in SEEDS for method in METHODS]
RUNS += [Run(method, SEEDS[0]) for method in STARTS]
