"""Headline of the comparison: one uncertainty run beside its alternatives, at two network sizes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.scenes.methods import ALL, EQUAL, GRID, SINGLE, TASKS, Method, wide
from examples.scenes.metrics import METRIC_NAMES
from examples.scenes.rows import Results, spread

SMALL, LARGE = "small", "twice the filters"
ALONE, LEARNT = "a network for each task", "uncertainty, one run"

# The method that measures each task.
Weighting = dict[str, Method]


def weightings(results: Results) -> dict[str, dict[str, Weighting]]:
    """The compared weightings by network size and label.

    The grid is that of the small network. It is too expensive for the other one.
    """
    alone = dict(zip(TASKS, SINGLE, strict=True))
    equal, learnt = dict.fromkeys(TASKS, EQUAL), dict.fromkeys(TASKS, ALL)
    best = dict.fromkeys(TASKS, results.best_fixed())
    small = {
        ALONE: alone,
        "equal weights": equal,
        f"best of {len(GRID)} fixed weightings": best,
        LEARNT: learnt,
    }
    large = {
        label: {task: wide(method) for task, method in weighting.items()}
        for label, weighting in small.items()
        if weighting is not best
    }
    return {SMALL: small, LARGE: large}


def headline_table(results: Results) -> list[list[str]]:
    """A header, and the metrics of each network size and weighting.

    Args:
        results: The finished comparison.

    Returns:
        Rows of cells: network size, weighting, mean ± standard deviation of each metric on the test
        images, and number of seeds.
    """
    rows = [["network", "weighting", *METRIC_NAMES.values(), "seeds"]]
    for size, label, weighting in _flat(results):
        values = [results.values(method, task) for task, method in weighting.items()]
        rows.append([size, label, *map(spread, TASKS, values), str(len(values[0]))])
    return rows


def paired_table(results: Results) -> list[list[str]]:
    """A header, and the differences between uncertainty weighting and each alternative.

    Args:
        results: The finished comparison.

    Returns:
        Rows of cells, as of `headline_table`. The differences are those of the same seed.
    """
    rows = [["network", f"{LEARNT}, minus", *METRIC_NAMES.values(), "seeds"]]
    learnt = {size: by_label[LEARNT] for size, by_label in weightings(results).items()}
    for size, label, weighting in _flat(results):
        if label != LEARNT:
            differences = [
                results.differences(learnt[size][task], method, task)
                for task, method in weighting.items()
            ]
            rows.append(
                [size, label, *map(spread, TASKS, differences, "+++"), str(len(differences[0]))]
            )
    return rows


def _flat(results: Results) -> Iterator[tuple[str, str, Weighting]]:
    for size, by_label in weightings(results).items():
        for label, weighting in by_label.items():
            yield size, label, weighting


def plot_headline(results: Results) -> Figure:
    """Plots the improvement of each task over a network for that task alone."""
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    by_size = weightings(results)
    panels = figure.subplots(1, len(by_size), sharey=True)
    for axes, (size, by_label) in zip(panels, by_size.items(), strict=True):
        axes.axhline(0.0, color="black", linewidth=0.8)
        for index, (label, weighting) in enumerate(by_label.items()):
            _draw_weighting(axes, results, label, weighting, shift=0.15 * index - 0.225)
        axes.set(title=f"network: {size}")
        axes.set_xticks(range(len(TASKS)), [task.replace("_", " ") for task in TASKS])
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("better than alone (%)")
    lines = panels[0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=len(lines[0]), frameon=False)
    return figure


def _draw_weighting(
    axes: Axes, results: Results, label: str, weighting: Weighting, shift: float
) -> None:
    """Draws the mean and the standard deviation of each task."""
    improvements = [100.0 * results.improvement(method, task) for task, method in weighting.items()]
    axes.errorbar(
        np.arange(len(TASKS)) + shift,
        [values.mean() for values in improvements],
        [values.std(ddof=1) for values in improvements],
        linestyle="none",
        marker="D" if label == LEARNT else "o",
        capsize=3,
        color={ALONE: "0.5", LEARNT: "C2"}.get(label),
        label=label,
    )
