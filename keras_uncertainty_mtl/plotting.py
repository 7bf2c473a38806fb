"""What the tasks' losses and their σ did over the epochs, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

Curves = Mapping[str, Sequence[float]]

COLUMNS = 4
PANEL_SIZE = (3.2, 4.0)


def plot_history(
    history: keras.callbacks.History | Curves, tasks: Sequence[str] | None = None
) -> Figure:
    """Draws the loss and the σ of each task over the epochs.

    Every task has a panel of its own, because its loss and its σ are in its own units. Both are
    drawn on a logarithmic scale, unless a loss is not positive.

    Args:
        history: What `fit` returned, or its `history` dict: a list of values, one an epoch, for
            `{task}_loss` and `{task}_sigma`, and for `val_{task}_loss` where there was validation.
        tasks: Names of the tasks to draw, in this order. `None`: all that `history` knows of.

    Returns:
        A `matplotlib.figure.Figure`, to be shown in a notebook or saved with `savefig`.

    Raises:
        ValueError: If there is no task to draw, or a task that `history` does not know.

    Example:

    ```python
    history = model.fit(x, {"depth": y1, "classes": y2}, validation_split=0.1, epochs=20)
    plot_history(history).savefig("history.png")
    ```
    """
    from matplotlib.figure import Figure  # drawing is optional, and so is matplotlib

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
