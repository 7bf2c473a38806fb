"""Plots of training histories, reliability, interval coverage and predicted noise."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_uncertainty_mtl.likelihoods import Likelihood
from keras_uncertainty_mtl.reliability import central_mass, errors_by_scale, reliability

if TYPE_CHECKING:  # Matplotlib is optional.
    from matplotlib.figure import Figure


# Lines that a greyscale print tells apart.
LINES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))


def plot_history(
    history: Any,
    tasks: Sequence[str] | None = None,
    axes: Any = None,
    likelihoods: Mapping[str, Likelihood] | None = None,
    validation_freq: int | Sequence[int] = 1,
) -> "Figure":
    """Draws the loss and the σ of each task over the epochs, and the weight if asked for.

    Every task has a row of its own, because its loss and its σ are in its own units. All are drawn
    on a logarithmic scale, unless a loss is not positive.

    Args:
        history: The `History` that `fit` returns, or its `history` dict.
        tasks: Names of the tasks to draw, in this order. `None`: all of them.
        axes: The Matplotlib axes to draw on, those of one task after those of the other. `None`:
            those of a new figure.
        likelihoods: Dict from task to likelihood, as `model.weighting.tasks`, for a third panel of
            the effective weight: the factor `scale · σ^(-2 · power)` of the raw loss.
        validation_freq: As in `fit`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: If there is no task to draw, an unknown one, another number of axes, or of
            epochs with validation.

    Example:

    >>> history = model.fit(x, y, validation_split=0.1, epochs=20, verbose=0)
    >>> plot_history(history, likelihoods=model.weighting.tasks).savefig("history.png")
    """
    curves = getattr(history, "history", history)
    tasks = _tasks_to_draw(tasks, curves)
    rows = _rows(axes, len(tasks), 2 if likelihoods is None else 3)
    for task, (loss_axes, sigma_axes, *weight_axes) in zip(tasks, rows, strict=True):
        keys = {"training": f"{task}_loss", "validation": f"val_{task}_loss"}
        losses = {label: curves[key] for label, key in keys.items() if key in curves}
        epochs = _epochs(history, len(losses["training"]), validation_freq)
        _draw_curves(loss_axes, f"{task}: loss", losses, epochs)
        sigma = np.asarray(curves[f"{task}_sigma"])
        _draw_curves(sigma_axes, f"{task}: σ", {"training": sigma}, epochs)
        if likelihoods is not None:
            each = likelihoods[task]
            weight = each.scale * sigma ** (-2.0 * each.power)
            _draw_curves(weight_axes[0], f"{task}: weight", {"training": weight}, epochs)
    figure = rows[0, 0].figure
    if axes is None:
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
    for (prefix, values), (line, marker) in zip(_by_prefix(probabilities), cycle(LINES)):
        found = reliability(labels, values, bins)
        label = f"{prefix}ECE {found.expected_calibration_error:.1%}"
        axes.plot(found.confidence, found.frequency, line, label=label)
        dots = {"s": 8 + 200 * found.share, "marker": marker, "edgecolor": "black"}
        axes.scatter(found.confidence, found.frequency, clip_on=False, zorder=3, **dots)
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
    for (prefix, values), (line, _) in zip(_by_prefix(scales), cycle(LINES)):
        mass = np.sort(central_mass(targets, locations, values, distribution), axis=None)
        shares = np.searchsorted(mass, levels, side="right") / mass.size
        label = f"{prefix}{np.mean(mass <= 0.95):.1%} in 95% intervals"
        axes.plot(levels, shares, line, label=label)
    axes.legend(fontsize="small")
    return figure


def plot_noise(
    targets: Any, locations: Any, scales: Any, distribution: str = "gaussian", bins: int = 10
) -> "Figure":
    """Draws the errors of a heteroscedastic task against the noise that was predicted for them.

    Above the diagonal the predicted noise is too small. The axes are logarithmic, in the units of
    the task.

    Args:
        targets, locations, distribution, bins: As in `reliability.errors_by_scale`.
        scales: As there, or a dict from names to such arrays, to compare them.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: If the shapes do not fit, or the distribution is unknown.

    Example:

    >>> p = model.predictive_model().predict(x, verbose=0)
    >>> figure = plot_noise(y1, p["depth_location"], p["depth_scale"], "laplace")

    References:
        - [Levi et al., 2020](https://arxiv.org/abs/1905.11659)
    """
    figure, axes = _diagram("predicted noise", "error")
    axes.set(xscale="log", yscale="log")
    _few_ticks(axes.xaxis, axes.yaxis)
    ends = []
    for (prefix, values), (line, marker) in zip(_by_prefix(scales), cycle(LINES)):
        noise, error = errors_by_scale(targets, locations, values, distribution, bins)
        axes.plot(noise, error, line, marker=marker, label=prefix.removesuffix(": "))
        ends += [noise, error]
    limits = np.array([0.8, 1.25]) * [np.min(ends), np.max(ends)]
    axes.set(xlim=limits, ylim=limits)
    if isinstance(scales, Mapping):
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


def _rows(axes: Any, tasks: int, panels: int) -> Any:
    """Axes in a row for each task."""
    from matplotlib.figure import Figure

    if axes is None:
        figure = Figure(figsize=(3.5 * panels, 1.8 * tasks), layout="constrained")
        axes = figure.subplots(tasks, panels, sharex=True)
    if np.size(axes) != tasks * panels:
        raise ValueError(
            f"`axes` must be {tasks * panels}: {panels} for each of {tasks} tasks. Received: "
            f"{np.size(axes)}"
        )
    return np.reshape(axes, (tasks, panels))


def _epochs(history: Any, count: int, validation_freq: Any) -> dict[str, Any]:
    """The epochs of the values of training and of validation."""
    first = next(iter(getattr(history, "epoch", ())), 0)  # As of `fit(initial_epoch=…)`.
    epochs = first + np.arange(1, count + 1)
    is_list = isinstance(validation_freq, Sequence)
    has = np.isin(epochs, validation_freq) if is_list else epochs % validation_freq == 0
    return {"training": epochs, "validation": epochs[has]}


def _draw_curves(
    axes: Any, title: str, curves: Mapping[str, Any], epochs: Mapping[str, Any]
) -> None:
    for (label, values), (line, marker) in zip(curves.items(), LINES, strict=False):
        if len(values) != len(epochs[label]):
            raise ValueError(
                f"`validation_freq` must be that of `fit`, which left {len(values)} values of "
                f"{label} for {len(epochs['training'])} epochs. Received: one that expects "
                f"{len(epochs[label])} values."
            )
        axes.plot(epochs[label], values, line, marker=marker, markersize=3, label=label)
    if len(curves) > 1:
        axes.legend(fontsize="small")
    axes.set(title=title, yscale="log" if axes.dataLim.ymin > 0 else "linear")
    if axes.get_yscale() == "log":
        _few_ticks(axes.yaxis)
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    axes.grid(alpha=0.3)


def _few_ticks(*logarithmic: Any) -> None:
    """Labels an axis at 1, 2 and 5, because Matplotlib's own labels overlap."""
    from matplotlib.ticker import LogLocator, NullFormatter

    for axis in logarithmic:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())


def _diagram(x_label: str, y_label: str) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axline((0, 0), slope=1, color="0.6", linestyle="--", linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    return figure, axes


def _by_prefix(values: Any) -> list[tuple[str, Any]]:
    """The arrays to compare, after the prefix of their entry in the legend."""
    named = isinstance(values, Mapping)
    return [(f"{name}: ", value) for name, value in values.items()] if named else [("", values)]
