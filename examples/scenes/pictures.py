"""Plots of predicted scenes and of the task weighting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from cityscapesscripts.helpers.labels import name2label
from keras import ops
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator
from scipy.optimize import linear_sum_assignment

from examples.scenes.labels import UNLABELLED
from examples.scenes.training import STEPS_BETWEEN_SIGMAS
from keras_uncertainty_mtl import Likelihood

Array = npt.NDArray[Any]

CELL_WIDTH = 2.3
HEADING_HEIGHT = 1.0
INSTANCE_COLOURS = ListedColormap(colormaps["tab20"](range(20)))
TASK_COLOURS = {"classes": "C0", "instances": "C1", "inverse_depth": "C2"}


def plot_scenes(
    truth: Mapping[str, Array], predicted: Mapping[str, Array], class_names: Sequence[str]
) -> Figure:
    """Plots a row for each scene: the image, and each task's prediction beside the truth.

    Pixels without truth or instance are white. A predicted instance has the colour of the true
    instance that it overlaps most.

    Args:
        truth: Features of the scenes, each (N, H, W) or (N, H, W, 3); see `scene_features`.
        predicted: `classes`, `instances` (ids) and `inverse_depth`, (N, H, W) each.
        class_names: Class names, by class id.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    count, height, width = truth["classes"].shape
    palette = _class_colours(class_names)
    styles: dict[str, dict[str, Any]] = {
        "classes": {"cmap": palette, "vmin": 0, "vmax": palette.N - 1},
        "instances": {"cmap": INSTANCE_COLOURS, "vmin": 0, "vmax": INSTANCE_COLOURS.N - 1},
        "inverse_depth": {
            "vmin": 0.0,
            "vmax": float(np.nanpercentile(truth["inverse_depth"], 99)),
        },
    }
    cell_height = CELL_WIDTH * height / width
    figure = Figure(
        figsize=(CELL_WIDTH * (1 + 2 * len(styles)), cell_height * count + HEADING_HEIGHT),
        layout="constrained",
    )
    axes = figure.subplots(count, 1 + 2 * len(styles), squeeze=False)
    axes[0, 0].set_title("image")
    for row in range(count):
        axes[row, 0].imshow(truth["image"][row])
        true = {task: truth[task][row] for task in styles}
        found = {task: predicted[task][row] for task in styles}
        true["instances"], found["instances"] = _numbered(true["instances"], found["instances"])
        true["classes"] = np.ma.masked_equal(true["classes"], UNLABELLED)
        for column, (task, style) in enumerate(styles.items()):
            pair = axes[row, 1 + 2 * column : 3 + 2 * column]
            for cell, source, values in zip(
                pair, ("predicted", "true"), (found, true), strict=True
            ):
                drawn = cell.imshow(values[task], interpolation="nearest", **style)
                if row == 0:
                    cell.set_title(f"{task.replace('_', ' ')}: {source}")
    for cell in axes.flat:
        cell.set(xticks=[], yticks=[])
    figure.colorbar(drawn, ax=axes, label="inverse depth (px)", extend="max", aspect=40, pad=0.01)
    figure.legend(
        handles=[
            Patch(facecolor=palette(index), label=name) for index, name in enumerate(class_names)
        ],
        loc="outside lower center",
        ncols=10,
        frameon=False,
    )
    return figure


def plot_weighting(
    sigmas: Mapping[str, Sequence[float]], likelihoods: Mapping[str, Likelihood]
) -> Figure:
    """Plots each task's σ and the weight of its raw loss over training.

    Args:
        sigmas: σ of each task, as in `SigmaTrace`.
        likelihoods: Likelihood of each task.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    sigma_axes, weight_axes = figure.subplots(1, 2)
    for task, values in sigmas.items():
        style = {"color": TASK_COLOURS[task], "label": task.replace("_", " ")}
        steps = STEPS_BETWEEN_SIGMAS * np.arange(len(values))
        sigma_axes.plot(steps, values, **style)
        weights = likelihoods[task].weight(2.0 * np.log(values))
        weight_axes.plot(steps, ops.convert_to_numpy(weights), **style)
    for axes, title in ((sigma_axes, "σ"), (weight_axes, "weight of the raw loss")):
        axes.set(title=title, xlabel="training step", yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
    sigma_axes.legend()
    return figure


def _class_colours(class_names: Sequence[str]) -> ListedColormap:
    """The colours of Cityscapes, which calls a pavement a sidewalk."""
    labels = (name2label["sidewalk" if name == "pavement" else name] for name in class_names)
    return ListedColormap([tuple(part / 255 for part in label.color) for label in labels])


def _numbered(true: Array, found: Array) -> tuple[Array, Array]:
    """Colour numbers of true and found instances, masked where there is none.

    Found instances take distinct numbers: if possible, that of the true instance that they overlap
    most.
    """
    true_ids, found_ids = np.unique(true[true != 0]), np.unique(found[found != 0])
    overlap = np.zeros((len(true_ids), len(found_ids)))
    for row, true_id in enumerate(true_ids):
        overlap[row] = [np.count_nonzero(found[true == true_id] == one) for one in found_ids]
    rows, columns = linear_sum_assignment(overlap, maximize=True)
    numbers = len(true_ids) + np.arange(len(found_ids))
    numbers[columns] = rows
    return _recoloured(true, true_ids, np.arange(len(true_ids))), _recoloured(
        found, found_ids, numbers
    )


def _recoloured(instances: Array, ids: Array, numbers: Array) -> Array:
    number_of_id = np.full(instances.max() + 1, -1)
    number_of_id[ids] = numbers % INSTANCE_COLOURS.N
    return np.ma.masked_less(number_of_id[instances], 0)
