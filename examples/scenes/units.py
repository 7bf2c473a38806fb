"""Conversion of instance vectors and inverse depth to units other than pixels, and back."""

from __future__ import annotations

from typing import Any

import keras

Tensor = Any

# Factors from pixels to the other units.
UNITS = {"instances": 0.1, "inverse_depth": 10.0}


def to_units(image: Tensor, targets: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Maps an example in pixels to one in the other units.

    Args:
        image: Tensor of an image.
        targets: Dict from task to targets, see `to_targets`.

    Returns:
        The image, and the dict of targets in the other units.
    """
    return image, targets | {task: unit * targets[task] for task, unit in UNITS.items()}


def from_units(model: keras.Model) -> keras.Model:
    """A model that predicts in pixels again.

    Args:
        model: A functional model for the three tasks, whose outputs are in the other units.

    Returns:
        A functional model with the same weights.
    """
    in_pixels = {task: model.output[task] / unit for task, unit in UNITS.items()}
    return keras.Model(model.input, model.output | in_pixels)
