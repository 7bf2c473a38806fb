"""Plots of training histories, reliability and interval coverage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_uncertainty_mtl.reliability import central_mass, reliability

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

Curves = Mapping[str, Sequence[float]]

COLUMNS = 4
PANEL_SIZE = (3.2, 4.0)
DIAGRAM_SIZE = (4.2, 4.2)
SMALLEST_DOT, LARGEST_DOT = 8, 200


def plot_history(
    history: keras.callbacks.History | Curves, tasks: Sequence[str] | None = None
) -> Figure:
    """Draws the loss and the σ of each task over the epochs.

    Every task has a panel of its own, because its loss and its σ are in its own units. Both are
    drawn on a logarithmic scale, unless a loss is not positive.

    Args:
        history: The `History` that `fit` returns, or its `history` dict.
        tasks: Names of the tasks to draw, in this order. `None`: all of them.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: If there is no task to draw, or an unknown one.

    Example:

    ```python
    history = model.fit(x, {"depth": y1, "classes": y2}, validation_split=0.1, epochs=20)
    plot_history(history).savefig("history.png")
    ```
    """
    from matplotlib.figure import Figure  # Matplotlib is optional.

    curves: Curves = history.history if isinstance(history, keras.callbacks.History) else history
    tasks = _reported_tasks(curves) if tasks is None else list(tasks)
    _check_tasks(tasks, curves)

    columns = min(len(tasks), COLUMNS)
    rows = -(-len(tasks) // columns)
    width, height = PANEL_SIZE
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    panels = figure.subfigures(rows, columns, squeeze=False).flat
    for panel, task in zip(panels, tasks, strict=False):
        _draw_task(panel, task, curves)
    return figure


def plot_reliability(labels: Any, probabilities: Any, bins: int = 10) -> Figure:
    """Draws a reliability diagram: the frequency of events against their predicted probability.

    Below the diagonal a network is over-confident. The area of a dot is the share of predictions in
    its bin. The legend has the expected calibration error (ECE), the mean distance from the
    diagonal.

    Args:
        labels: As in `reliability.reliability`.
        probabilities: As in `reliability.reliability`; or a dict from a name to such an array, to
            compare them.
        bins: Number of bins of equal width.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: If the shapes do not fit.

    Example:

    ```python
    probabilities = model.predictive_model().predict(x)["classes_probabilities"]
    plot_reliability(labels, probabilities).savefig("reliability.png")
    ```

    References:
        - [Guo et al., 2017](https://arxiv.org/abs/1706.04599), section 2
    """
    figure, axes = _diagram("predicted probability", "observed frequency")
    for label, values in _labelled(probabilities).items():
        found = reliability(labels, values, bins)
        label += f"ECE {100 * found.expected_calibration_error:.1f}%"
        (line,) = axes.plot(found.confidence, found.frequency, label=label)
        dots = {"s": SMALLEST_DOT + LARGEST_DOT * found.share, "color": line.get_color()}
        axes.scatter(found.confidence, found.frequency, **dots, clip_on=False, zorder=3)
    axes.legend(fontsize="small")
    return figure


def plot_coverage(
    targets: Any, locations: Any, scales: Any, distribution: str = "gaussian"
) -> Figure:
    """Draws the share of targets in central intervals against the probability of the intervals.

    Below the diagonal the intervals are too narrow, above it too wide.

    Args:
        targets: As in `reliability.central_mass`.
        locations: As in `reliability.central_mass`.
        scales: As in `reliability.central_mass`; or a dict from a name to such an array, to compare
            them.
        distribution: `"gaussian"` or `"laplace"`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: If the shapes do not fit, or the distribution is unknown.

    Example:

    ```python
    predicted = model.predictive_model().predict(x)
    plot_coverage(y1, predicted["depth_location"], predicted["depth_scale"], "laplace")
    ```
    """
    figure, axes = _diagram("probability of a central interval", "share of targets in it")
    levels = np.linspace(0, 1, 101)
    for label, values in _labelled(scales).items():
        mass = np.sort(central_mass(targets, locations, values, distribution), axis=None)
        shares = np.searchsorted(mass, levels, side="right") / mass.size
        label += f"{100 * np.mean(mass <= 0.95):.1f}% in 95% intervals"
        axes.plot(levels, shares, label=label)
    axes.legend(fontsize="small")
    return figure


def _diagram(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=DIAGRAM_SIZE, layout="constrained")
    axes = figure.subplots()
    axes.axline((0, 0), slope=1, color="0.6", linestyle="--", linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    return figure, axes


def _labelled(values: Any) -> dict[str, Any]:
    """The arrays to compare, by the prefix of their entry in the legend."""
    if not isinstance(values, Mapping):
        return {"": values}
    return {f"{name}: ": value for name, value in values.items()}


def _reported_tasks(curves: Curves) -> list[str]:
    names = [key.removesuffix("_sigma") for key in curves if key.endswith("_sigma")]
    return [name for name in names if f"{name}_loss" in curves and not name.startswith("val_")]


def _check_tasks(tasks: list[str], curves: Curves) -> None:
    if not tasks:
        raise ValueError(
            "There is no task to draw: `history` must hold '{task}_loss' and '{task}_sigma'. "
            f"Received: {sorted(curves)}"
        )
    for task in tasks:
        for key in (f"{task}_loss", f"{task}_sigma"):
            if key not in curves:
                raise ValueError(
                    f"Task '{task}': expected '{key}' in `history`. Received: {sorted(curves)}"
                )


def _draw_task(panel: SubFigure, task: str, curves: Curves) -> None:
    loss_axes, sigma_axes = panel.subplots(2, 1, sharex=True)
    loss_axes.set_title(task)

    epochs = len(curves[f"{task}_loss"])
    _draw_curve(loss_axes, curves[f"{task}_loss"], epochs, label="training")
    if f"val_{task}_loss" in curves:
        _draw_curve(loss_axes, curves[f"val_{task}_loss"], epochs, label="validation")
        loss_axes.legend(fontsize="small")
    loss_axes.set_ylabel("loss")

    _draw_curve(sigma_axes, curves[f"{task}_sigma"], epochs, color="C2")
    sigma_axes.set_ylabel("σ")
    sigma_axes.set_xlabel("epoch")

    for axes in (loss_axes, sigma_axes):
        _scale_axes(axes)


def _scale_axes(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    smallest, largest = axes.dataLim.intervaly
    if smallest > 0:
        axes.set_yscale("log")
        several_decades = largest > 10 * smallest
        axes.yaxis.set_major_locator(
            LogLocator(subs=(1, 2, 5)) if several_decades else MaxNLocator(5)
        )
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)


def _draw_curve(axes: Axes, values: Sequence[float], epochs: int, **style: Any) -> None:
    # With `validation_freq` there are fewer values than epochs, the first after that many of them.
    every = epochs // len(values)
    axes.plot(
        [every * (index + 1) for index in range(len(values))],
        values,
        marker=".",
        markersize=4,
        **style,
    )
