"""The table and the figures of a finished comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from examples.command_line import markdown
from examples.scenes.headline import headline_table, paired_table, plot_headline
from examples.scenes.methods import (
    ALL,
    APPROXIMATE,
    BEST_START,
    CLOSED_FORM,
    DEPTH_WEIGHTS,
    EQUAL,
    GRID,
    INSTANCE_WEIGHTS,
    LINE,
    LINE_TASKS,
    OTHER_UNITS,
    PAIRS,
    SINGLE,
    STARTS,
    TASKS,
    Method,
    wide,
)
from examples.scenes.metrics import METRIC_NAMES
from examples.scenes.rows import Results, Row, spread
from examples.scenes.training import STEPS_BETWEEN_SIGMAS


def write_report(rows: Sequence[Row], directory: Path) -> None:
    """Writes headline.md and table.md, headline.png, figure2.png and starts.png.

    Args:
        rows: Rows of the CSV file, one for each run.
        directory: Output directory.
    """
    results = Results(rows)
    (directory / "headline.md").write_text(format_headline(results), encoding="utf-8")
    (directory / "table.md").write_text(format_report(results), encoding="utf-8")
    plot_headline(results).savefig(directory / "headline.png", dpi=150)
    plot_line(results).savefig(directory / "figure2.png", dpi=150)
    plot_starts(results).savefig(directory / "starts.png", dpi=150)


def format_headline(results: Results) -> str:
    """The headline and its paired differences, as Markdown."""
    headline, paired = headline_table(results), paired_table(results)
    tables = markdown(headline[0], headline[1:]), markdown(paired[0], paired[1:])
    return "\n".join([*tables, _format_settings(results)]) + "\n"


def format_report(results: Results) -> str:
    """The tables and their summary, as Markdown."""
    best = results.best_fixed()
    alone = [(f"{_name(task)} alone", method) for task, method in zip(TASKS, SINGLE, strict=True)]
    main = [*alone, ("equal weights", EQUAL), (f"best of {len(GRID)} fixed weightings", best)]
    main += [("uncertainty", method) for method in (*PAIRS, ALL)]
    _, instances, inverse_depth = best.weights or ()
    inside = instances in INSTANCE_WEIGHTS[1:-1] and inverse_depth in DEPTH_WEIGHTS[1:-1]
    dominating = ", ".join(method.name for method in results.dominating(ALL)) or "none"
    last = {
        task: [float(results.runs(start)[0][f"sigma_{task}"].split()[-1]) for start in STARTS]
        for task in TASKS
    }
    ends = "; ".join(f"{_name(task)} {min(s):.3g} to {max(s):.3g}" for task, s in last.items())
    starts = [start.initial_log_variance for start in STARTS]
    varied = [
        *alone,
        ("uncertainty", ALL),
        ("approximate likelihood of classes", APPROXIMATE),
        ("closed form of σ for regression", CLOSED_FORM),
        (f"from log σ² = {BEST_START.initial_log_variance:g}", BEST_START),
        ("other units", OTHER_UNITS),
    ]
    varied += [
        (f"{label}, twice the filters", wide(method))
        for label, method in [*alone, ("equal weights", EQUAL), ("uncertainty", ALL)]
    ]
    return "\n".join(
        [
            _format_table(main, results),
            "The best fixed weighting has the largest mean relative improvement over the networks "
            f"for one task on the validation images. It is {'' if inside else 'not '}inside of the "
            "grid.",
            "",
            f"Fixed weightings that are nowhere worse than uncertainty: {dominating}.",
            "",
            f"σ at the end, from initial log σ² of {starts[0]:g} to {starts[-1]:g}: {ends}.",
            "",
            "All fixed weightings:",
            "",
            _format_table([("fixed", method) for method in GRID], results),
            "Variations, on the test images:",
            "",
            _format_table(varied, results),
            "The same on the validation images:",
            "",
            _format_table(varied, results, "validation"),
            _format_settings(results),
            "",
        ]
    )


def _format_table(
    methods: Sequence[tuple[str, Method]], results: Results, split: str = "test"
) -> str:
    """A row for each method: its weights, mean ± standard deviation of its metrics, and seeds."""
    header = ["", *map(_name, TASKS), *METRIC_NAMES.values(), "seeds"]
    rows = []
    for label, method in methods:
        weight_of = dict.fromkeys(method.tasks, "learnt")
        if method.weights is not None:
            fixed = (f"{weight:g}" for weight in method.weights)
            weight_of = dict(zip(method.tasks, fixed, strict=True))
        metrics = [
            spread(task, results.values(method, task, split)) if task in method.tasks else ""
            for task in TASKS
        ]
        weights = [weight_of.get(task, "") for task in TASKS]
        rows.append([label, *weights, *metrics, str(len(results.runs(method)))])
    return markdown(header, rows)


def _format_settings(results: Results) -> str:
    row = results.rows[0]
    hours = sum(float(row["seconds"]) for row in results.rows) / 3600
    return (
        "Metrics of `python -m examples.scenes.compare`, mean ± standard deviation over seeds. "
        f"{row['dataset']}: {row['train_images']} training, {row['validation_images']} validation, "
        f"{row['test_images']} test images; {row['epochs']} epochs; {len(results.rows)} runs, "
        f"{hours:.1f} hours of one core in all; TensorFlow {row['tensorflow']}, Keras "
        f"{row['keras']}."
    )


def plot_line(results: Results) -> Figure:
    """Plots the metric of each of two tasks along the line of their fixed weights."""
    learnt = next(method for method in PAIRS if method.tasks == LINE_TASKS)
    shares = np.array([method.weights[0] for method in LINE if method.weights])
    figure = Figure(figsize=(10.0, 3.8), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(LINE_TASKS)), LINE_TASKS, strict=True):
        fixed = [results.values(method, task) for method in LINE]
        axes.errorbar(
            shares,
            [values.mean() for values in fixed],
            [values.std(ddof=1) for values in fixed],
            marker="o",
            markersize=4,
            capsize=3,
            label="fixed weights",
        )
        for method, name, colour in (
            (SINGLE[TASKS.index(task)], "this task alone", "C3"),
            (learnt, "uncertainty", "C2"),
        ):
            values = results.values(method, task)
            axes.axhline(values.mean(), color=colour, linestyle="--", label=name)
            deviation = values.std(ddof=1)
            axes.axhspan(
                values.mean() - deviation, values.mean() + deviation, color=colour, alpha=0.12
            )
        axes.set(
            title=_name(task),
            xscale="logit",
            xlabel="weight w of classes, 1 - w of inverse depth",
            ylabel=METRIC_NAMES[task],
        )
        axes.set_xticks(shares, [f"{share:.2g}" for share in shares])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
    lines = figure.axes[0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=len(lines[0]), frameon=False)
    return figure


def plot_starts(results: Results) -> Figure:
    """Plots each task's σ over training from each initial log-variance."""
    colours = colormaps["viridis"](np.linspace(0.0, 0.95, len(STARTS)))
    figure = Figure(figsize=(12.0, 3.8), layout="constrained")
    panels = figure.subplots(1, len(TASKS), sharey=True)
    for axes, task in zip(panels, TASKS, strict=True):
        for method, colour in zip(STARTS, colours, strict=True):
            _draw_sigma(
                axes,
                results.runs(method)[0],
                task,
                color=colour,
                label=f"{method.initial_log_variance:g}",
            )
        _draw_sigma(
            axes, results.runs(ALL)[0], task, color="black", linestyle="--", label="default"
        )
        axes.set(title=_name(task), xscale="log", yscale="log", xlabel="training step")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("σ")
    panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0].yaxis.set_major_formatter("{x:g}")
    panels[0].yaxis.set_minor_locator(NullLocator())
    lines = panels[0].get_legend_handles_labels()
    figure.legend(*lines, title="initial log σ²", loc="outside right center", frameon=False)
    return figure


def _draw_sigma(axes: Axes, row: Row, task: str, **style: Any) -> None:
    sigmas = np.array(row[f"sigma_{task}"].split(), float)
    axes.plot(1 + STEPS_BETWEEN_SIGMAS * np.arange(len(sigmas)), sigmas, **style)


def _name(task: str) -> str:
    return task.replace("_", " ")
