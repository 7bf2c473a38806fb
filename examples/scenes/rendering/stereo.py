"""Depth as a stereo matcher measures it: disparity with noise and holes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from examples.scenes.rendering.camera import BASELINE, FOCAL_LENGTH, Camera, RayCaster
from examples.scenes.rendering.shapes import Array

# Largest disparity that a matcher searches, in image widths.
SEARCH_RANGE = 1.0 / 16.0
# Matches are ambiguous below this contrast, of 255 levels.
LOW_CONTRAST = 5.0
# Standard deviation of the disparity, in pixels.
NOISE = 0.05
# Rays end just before their surface, or it would block them.
ALMOST_THERE = 0.99


def measured_disparity(
    rng: np.random.Generator,
    caster: RayCaster,
    camera: Camera,
    depth: Array,
    image: npt.NDArray[np.uint8],
) -> npt.NDArray[np.float32]:
    """The disparity between the images of a camera and of a second one to its right.

    Disparity is inverse depth times focal length and baseline. It has holes where the second image
    is occluded, depth is infinite or very small, or contrast is low. Random speckles are holes too.

    Args:
        rng: Random number generator.
        caster: Ray caster of the scene's meshes.
        camera: First camera.
        depth: True depth of each pixel, m; infinite for the sky.
        image: Image of the first camera, (H, W, 3).

    Returns:
        Disparity in pixels, (H, W); NaN where unknown.
    """
    width = depth.shape[1]
    disparity = FOCAL_LENGTH * width * BASELINE / depth
    found = _seen_by_both(caster, camera, depth, disparity)
    found &= disparity < SEARCH_RANGE * width

    grey = image.astype(np.float64).mean(axis=-1)
    mean = ndimage.uniform_filter(grey, 5)
    contrast = np.sqrt(np.maximum(ndimage.uniform_filter(grey**2, 5) - mean**2, 0.0))
    found &= _smooth_noise(rng, depth.shape) > 1.0 - 2.0 * contrast / LOW_CONTRAST
    found &= _smooth_noise(rng, depth.shape) > -2.2

    error = NOISE * _smooth_noise(rng, depth.shape)
    return np.where(found, np.maximum(disparity + error, 0.0), np.nan).astype(np.float32)


def _seen_by_both(
    caster: RayCaster, camera: Camera, depth: Array, disparity: Array
) -> npt.NDArray[np.bool_]:
    height, width = depth.shape
    near = np.isfinite(depth)
    points = camera.position + camera.rays(height, width)[near] * depth[near][:, None]
    second = np.broadcast_to(camera.position + BASELINE * camera.axes[0], points.shape)
    seen = near.copy()
    seen[near] = ~caster.blocked(second, points - second, ALMOST_THERE)
    return np.asarray(seen & (np.arange(width) + 0.5 > disparity))


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Noise of unit variance that is correlated between neighbouring pixels."""
    noise = ndimage.gaussian_filter(rng.normal(size=shape), 1.2)
    return np.asarray(noise / noise.std())
