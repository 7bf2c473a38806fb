"""A pinhole camera, and what its rays meet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from examples.scenes.rendering.layout import Street
from examples.scenes.rendering.shapes import Array, Assembly

# Those of the Cityscapes camera: the focal length in widths of the image, the baseline in metres.
FOCAL_LENGTH = 1.1
BASELINE = 0.21
# Secondary rays start this far off the surface that they leave, in metres.
OFFSET = 2e-3


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Args:
        position: Where it is, m.
        axes: Rows: to the right, downwards and ahead in the image, as unit vectors.
    """

    position: Array
    axes: Array

    @classmethod
    def of(cls, street: Street) -> Camera:
        """The camera of a street."""
        yaw, pitch, roll = street.yaw, street.pitch, street.roll
        ahead = np.array([np.sin(yaw) * np.cos(pitch), np.cos(yaw) * np.cos(pitch), -np.sin(pitch)])
        level = np.array([np.cos(yaw), -np.sin(yaw), 0.0])
        upright = np.cross(ahead, level)
        right = np.cos(roll) * level + np.sin(roll) * upright
        return cls(street.camera, np.stack([right, np.cross(ahead, right), ahead]))

    def rays(self, height: int, width: int, samples: int = 1) -> Array:
        """The directions of the rays through an image, each of length 1 along the optical axis.

        Args:
            height: Of the image in pixels.
            width: Of the image in pixels.
            samples: How many rays there are along each side of a pixel.

        Returns:
            Array (height · samples, width · samples, 3).
        """
        x = (np.arange(width * samples) + 0.5) / samples - 0.5 * width
        y = (np.arange(height * samples) + 0.5) / samples - 0.5 * height
        image_plane = np.stack(np.broadcast_arrays(x, y[:, None], FOCAL_LENGTH * width), axis=-1)
        return np.asarray(image_plane / (FOCAL_LENGTH * width) @ self.axes)


@dataclass(frozen=True)
class Hits:
    """What rays met first.

    Args:
        depth: How far along the ray, in lengths of its direction; infinite if it met nothing.
        surface: Index of the surface, -1 if it met nothing.
        normal: Unit normal that faces the ray.
    """

    depth: Array
    surface: npt.NDArray[np.int64]
    normal: Array


class RayCaster:
    """Embree's search tree over an assembly.

    Args:
        assembly: The meshes.
    """

    def __init__(self, assembly: Assembly) -> None:
        self._surface_of_face = np.concatenate(assembly.surface_of_face)
        self._scene = EmbreeScene()
        TriangleMesh(
            self._scene,
            np.concatenate(assembly.vertices).astype(np.float32),
            np.concatenate(assembly.faces).astype(np.int32),
        )

    def first_hits(self, origin: Array, directions: Array) -> Hits:
        """What rays from one point meet first.

        Args:
            origin: Where the rays start, (3,).
            directions: Their directions, (N, 3).

        Returns:
            A `Hits`.
        """
        origins = np.broadcast_to(origin, directions.shape)
        found = self._scene.run(
            origins.astype(np.float32), directions.astype(np.float32), output=True
        )
        met = found["primID"] >= 0
        normal = found["Ng"].astype(np.float64)
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
        normal *= -np.sign(np.sum(normal * directions, axis=1, keepdims=True))
        return Hits(
            depth=np.where(met, found["tfar"].astype(np.float64), np.inf),
            surface=np.where(met, self._surface_of_face[found["primID"]], -1),
            normal=normal,
        )

    def blocked(self, origins: Array, directions: Array, reach: float) -> npt.NDArray[np.bool_]:
        """Whether anything stands in the way of rays.

        Args:
            origins: Where the rays start, (N, 3).
            directions: Their directions, (N, 3).
            reach: How far they go, in lengths of their direction.

        Returns:
            Boolean array (N,).
        """
        found = self._scene.run(
            origins.astype(np.float32),
            directions.astype(np.float32),
            dists=np.full(len(origins), reach, np.float32),
            query="OCCLUDED",
        )
        return np.asarray(found == 0)
