"""Plots of training histories, reliability and interval coverage."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_uncertainty_mtl.reliability import central_mass, reliability

if TYPE_CHECKING:  # Matplotlib is optional.
    from matplotlib.figure import Figure


def plot_history(history: Any, tasks: Sequence[str] | None = None) -> "Figure":
    """Draws the loss and the σ of each task over the epochs.

    Every task has a row of its own, because its loss and its σ are in its own units. Both are drawn
    on a logarithmic scale, unless a loss is not positive.

    Args:
        history: The `History` that `fit` returns, or its `history` dict.
        tasks: Names of the tasks to draw, in this order. `None`: all of them.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: If there is no task to draw, or an unknown one.

    Example:

    >>> history = model.fit(x, y, validation_split=0.1, epochs=20, verbose=0)
    >>> plot_history(history).savefig("history.png")
    """
    from matplotlib.figure import Figure

    curves = getattr(history, "history", history)
    tasks = _tasks_to_draw(tasks, curves)
    figure = Figure(figsize=(7.0, 1.8 * len(tasks)), layout="constrained")
    rows = figure.subplots(len(tasks), 2, sharex=True, squeeze=False)
    for task, (loss_axes, sigma_axes) in zip(tasks, rows, strict=True):
        keys = {"training": f"{task}_loss", "validation": f"val_{task}_loss"}
        losses = {label: curves[key] for label, key in keys.items() if key in curves}
        _draw_curves(loss_axes, f"{task}: loss", losses)
        _draw_curves(sigma_axes, f"{task}: σ", {"training": curves[f"{task}_sigma"]})
    figure.supxlabel("epoch")
    return figure


def plot_reliability(labels: Any, probabilities: Any, bins: int = 10) -> "Figure":
    """Draws a reliability diagram: the frequency of events against their predicted probability.

    Below the diagonal a network is over-confident. A dot's area is its bin's share of predictions.
    The legend has the expected calibration error (ECE), the mean distance from the diagonal.

    Args:
        labels, bins: As in `reliability.reliability`.
        probabilities: As there, or a dict from names to such arrays, to compare them.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: If the shapes do not fit, or a probability or a label is out of range.

    Example:

    >>> predicted = model.predictive_model().predict(x, verbose=0)
    >>> figure = plot_reliability(labels, predicted["classes_probabilities"])

    References:
        - [Guo et al., 2017](https://arxiv.org/abs/1706.04599), section 2
    """
    figure, axes = _diagram("predicted probability", "observed frequency")
    for prefix, values in _by_prefix(probabilities).items():
        found = reliability(labels, values, bins)
        label = f"{prefix}ECE {found.expected_calibration_error:.1%}"
        axes.plot(found.confidence, found.frequency, label=label)
        areas = 8 + 200 * found.share
        axes.scatter(found.confidence, found.frequency, areas, clip_on=False, zorder=3)
    axes.legend(fontsize="small")
    return figure


def plot_coverage(
    targets: Any, locations: Any, scales: Any, distribution: str = "gaussian"
) -> "Figure":
    """Draws the share of targets in central intervals against the probability of the intervals.

    Below the diagonal the intervals are too narrow, above it too wide.

    Args:
        targets, locations, distribution: As in `reliability.central_mass`.
        scales: As there, or a dict from names to such arrays, to compare them.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: If the shapes do not fit, or the distribution is unknown.

    Example:

    >>> p = model.predictive_model().predict(x, verbose=0)
    >>> figure = plot_coverage(y1, p["depth_location"], p["depth_scale"], "laplace")
    """
    figure, axes = _diagram("probability of a central interval", "share of targets in it")
    levels = np.linspace(0, 1, 101)
    for prefix, values in _by_prefix(scales).items():
        mass = np.sort(central_mass(targets, locations, values, distribution), axis=None)
        shares = np.searchsorted(mass, levels, side="right") / mass.size
        axes.plot(levels, shares, label=f"{prefix}{np.mean(mass <= 0.95):.1%} in 95% intervals")
    axes.legend(fontsize="small")
    return figure


def _tasks_to_draw(tasks: Sequence[str] | None, curves: Mapping[str, Any]) -> Sequence[str]:
    if tasks is None:
        names = [key.removesuffix("_sigma") for key in curves if key.endswith("_sigma")]
        tasks = [name for name in names if f"{name}_loss" in curves and name[:4] != "val_"]
    expected = [f"{task}_{curve}" for task in tasks or ["{task}"] for curve in ("loss", "sigma")]
    missing = [key for key in expected if key not in curves]
    if missing:
        raise ValueError(f"`history` must hold the curves {missing}. Received: {sorted(curves)}")
    return tasks


def _draw_curves(axes: Any, title: str, curves: Mapping[str, Sequence[float]]) -> None:
    for label, values in curves.items():
        # With `validation_freq` there are fewer values, the first after that many epochs.
        every = len(curves["training"]) // len(values)
        axes.plot(every * np.arange(1, len(values) + 1), values, ".-", markersize=4, label=label)
    if len(curves) > 1:
        axes.legend(fontsize="small")
    axes.set(title=title, yscale="log" if axes.dataLim.ymin > 0 else "linear")
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    axes.grid(alpha=0.3)


def _diagram(x_label: str, y_label: str) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axline((0, 0), slope=1, color="0.6", linestyle="--", linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    return figure, axes


def _by_prefix(values: Any) -> dict[str, Any]:
    """The arrays to compare, by the prefix of their entry in the legend."""
    named = isinstance(values, Mapping)
    return {f"{name}: ": value for name, value in values.items()} if named else {"": values}
