"""Methods and runs of the comparison: Table 1, Figure 2, starts of σ, and variations."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

import numpy as np

from examples.scenes.metrics import METRIC_NAMES

TASKS = tuple(METRIC_NAMES)
SEEDS = (0, 1, 2)
# Of the headline alone.
MORE_SEEDS = (3, 4)


@dataclass(frozen=True)
class Method:
    """A task weighting.

    Args:
        tasks: Names of the trained tasks.
        weights: Fixed weight of each raw loss. `None`: learnt from uncertainty.
        initial_log_variance: Initial `s = log σ²` of all tasks. `None`: each likelihood's default.
        variations: Departures from the default. `"approximate"`: the classification likelihood of
            Eq. 10. `"closed_form"`: log-variances in closed form, see `UncertaintyWeighting`.
            `"wide"`: the network with twice the filters. `"units"`: see `to_units`.
    """

    tasks: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    initial_log_variance: float | None = None
    variations: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name in the CSV file."""
        if self.weights is not None:
            pairs = zip(self.weights, self.tasks, strict=True)
            name = "fixed: " + ", ".join(f"{weight:.4g} {task}" for weight, task in pairs)
        else:
            name = "uncertainty: " + ", ".join(self.tasks)
        if self.initial_log_variance is not None:
            name += f", from {self.initial_log_variance:g}"
        return "; ".join([name, *self.variations])


@dataclass(frozen=True)
class Run:
    """A method with one seed."""

    method: Method
    seed: int


SINGLE = [Method((task,), (1.0,)) for task in TASKS]
EQUAL = Method(TASKS, (1.0, 1.0, 1.0))
# Adam ignores the scale of the loss, so one of the three weights is 1 throughout.
INSTANCE_WEIGHTS = (0.01, 0.1, 1.0, 10.0)
DEPTH_WEIGHTS = (0.1, 1.0, 10.0, 100.0)
GRID = [
    Method(TASKS, (1.0, *weights)) for weights in itertools.product(INSTANCE_WEIGHTS, DEPTH_WEIGHTS)
]
PAIRS = [Method(pair) for pair in itertools.combinations(TASKS, 2)]
ALL = Method(TASKS)

# As in the paper's Figure 2, two tasks are weighted by w and 1 - w.
LINE_TASKS = ("classes", "inverse_depth")
LINE_RATIOS = np.logspace(-2.0, 2.0, 9)
LINE = [Method(LINE_TASKS, (float(1 / (1 + r)), float(r / (1 + r)))) for r in LINE_RATIOS]

STARTS = [Method(TASKS, initial_log_variance=float(start)) for start in range(-2, 6)]

# Each variation changes one possible cause of the lower mean IoU of classes.
APPROXIMATE = Method(TASKS, variations=("approximate",))
CLOSED_FORM = Method(TASKS, variations=("closed_form",))
# The start with the best mean IoU on the validation images.
BEST_START = Method(TASKS, initial_log_variance=2.0)
OTHER_UNITS = Method(TASKS, variations=("units",))
VARIATIONS = [APPROXIMATE, CLOSED_FORM, BEST_START, OTHER_UNITS]


def wide(method: Method) -> Method:
    """The method with the network of twice the filters."""
    return dataclasses.replace(method, variations=("wide",))


HEADLINE = [*SINGLE, EQUAL, ALL]
HEADLINE += [wide(method) for method in HEADLINE]

# Seed by seed, so that an interrupted comparison covers every method first.
METHODS = [*HEADLINE, *PAIRS, *VARIATIONS, *(one for one in GRID if one != EQUAL), *LINE]
RUNS = [Run(method, seed) for seed in SEEDS for method in METHODS]
RUNS += [Run(method, SEEDS[0]) for method in STARTS if method != BEST_START]
RUNS += [Run(method, seed) for seed in MORE_SEEDS for method in HEADLINE]
