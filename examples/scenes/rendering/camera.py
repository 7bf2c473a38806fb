"""A pinhole camera, and ray casting with Embree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from examples.scenes.rendering.layout import Street
from examples.scenes.rendering.shapes import Array, Assembly

# The Cityscapes camera: focal length in image widths, baseline in metres.
FOCAL_LENGTH = 1.1
BASELINE = 0.21
# Secondary rays start this far off their surface, in metres, or it would block them.
OFFSET = 2e-3


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Args:
        position: Position, m.
        axes: Unit vectors as rows: right, down and ahead in the image.
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
        """Ray directions through an image, each of length 1 along the optical axis.

        Args:
            height: Image height in pixels.
            width: Image width in pixels.
            samples: Number of rays along each side of a pixel.

        Returns:
            Array (height · samples, width · samples, 3).
        """
        x = (np.arange(width * samples) + 0.5) / samples - 0.5 * width
        y = (np.arange(height * samples) + 0.5) / samples - 0.5 * height
        image_plane = np.stack(np.broadcast_arrays(x, y[:, None], FOCAL_LENGTH * width), axis=-1)
        return np.asarray(image_plane / (FOCAL_LENGTH * width) @ self.axes)


@dataclass(frozen=True)
class Hits:
    """First intersections of rays with surfaces.

    Args:
        depth: Distance in lengths of the ray's direction; infinite if nothing is hit.
        surface: Index of the surface; -1 if nothing is hit.
        normal: Unit normal that faces the ray.
    """

    depth: Array
    surface: npt.NDArray[np.int64]
    normal: Array


class RayCaster:
    """Ray casting against an assembly, with Embree's search tree.

    Args:
        assembly: Meshes of the scene.
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
        """First intersections of rays from one point.

        Args:
            origin: Start of the rays, (3,).
            directions: Directions of the rays, (N, 3).

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
        """Occlusion of rays.

        Args:
            origins: Start of each ray, (N, 3).
            directions: Directions of the rays, (N, 3).
            reach: Length of the rays, in lengths of their direction.

        Returns:
            Boolean array (N,), `True` where a surface blocks the ray.
        """
        found = self._scene.run(
            origins.astype(np.float32),
            directions.astype(np.float32),
            dists=np.full(len(origins), reach, np.float32),
            query="OCCLUDED",
        )
        return np.asarray(found == 0)
