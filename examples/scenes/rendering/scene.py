"""Rendering of an example: an image of a street, and its pixelwise targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from examples.scenes.rendering.camera import Camera, RayCaster
from examples.scenes.rendering.layout import random_street
from examples.scenes.rendering.objects import Label
from examples.scenes.rendering.photograph import photograph
from examples.scenes.rendering.stereo import measured_disparity


def render(seed: Sequence[int], height: int, width: int) -> dict[str, Any]:
    """Renders a random street.

    Args:
        seed: Non-negative integers; the same ones give the same street.
        height: Image height in pixels.
        width: Image width in pixels.

    Returns:
        Dict of features, see `scene_features`.
    """
    rng = np.random.default_rng(seed)
    street = random_street(rng)
    caster = RayCaster(street.assembly)
    image = photograph(rng, street, caster, height, width)

    camera = Camera.of(street)
    hits = caster.first_hits(camera.position, camera.rays(height, width).reshape(-1, 3))
    surfaces = street.assembly.surfaces
    # The index of a ray that hits nothing, -1, selects the last entry.
    labels = np.array([*(surface.label for surface in surfaces), Label.SKY], np.uint8)
    instances = np.array([*(surface.instance for surface in surfaces), 0], np.int32)
    depth = hits.depth.reshape(height, width)
    return {
        "image": image,
        "classes": labels[hits.surface].reshape(height, width),
        "instances": instances[hits.surface].reshape(height, width),
        "inverse_depth": measured_disparity(rng, caster, camera, depth, image),
    }
