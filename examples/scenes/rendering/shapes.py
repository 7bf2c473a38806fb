"""Triangle meshes and their surfaces."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache

import numpy as np
import numpy.typing as npt
import trimesh

Array = npt.NDArray[np.float64]
Mesh = tuple[Array, npt.NDArray[np.int64]]
Colour = tuple[float, float, float]


class Material(IntEnum):
    """The material of a surface, which `textures.albedo` paints."""

    PLAIN = 0
    ASPHALT = 1
    PAVING = 2
    SOIL = 3
    FACADE = 4
    FOLIAGE = 5
    CLOTH = 6
    GLOSSY = 7


@dataclass(frozen=True)
class Surface:
    """Labels and appearance of a part of a mesh.

    Args:
        label: Class of its pixels.
        material: Material that chooses the texture.
        colour: Base colour, linear RGB between 0 and 1.
        instance: Instance id; 0 for none.
        pattern: Two numbers between 0 and 1 that vary the texture.
    """

    label: int
    material: Material
    colour: Colour
    instance: int = 0
    pattern: tuple[float, float] = (0.5, 0.5)


@dataclass
class Assembly:
    """Several meshes as one, with the surface of each face."""

    vertices: list[Array] = field(default_factory=list)
    faces: list[npt.NDArray[np.int64]] = field(default_factory=list)
    surfaces: list[Surface] = field(default_factory=list)
    surface_of_face: list[npt.NDArray[np.int64]] = field(default_factory=list)
    _vertex_count: int = 0

    def add(self, mesh: Mesh, surface: Surface, pose: Array | None = None) -> None:
        """Adds a mesh.

        Args:
            mesh: Vertices (V, 3) and triangles (F, 3).
            surface: Surface of all its faces.
            pose: Homogeneous 4×4 matrix that moves the mesh to its place.
        """
        vertices, faces = mesh
        if pose is not None:
            vertices = vertices @ pose[:3, :3].T + pose[:3, 3]
        self.vertices.append(vertices)
        self.faces.append(faces + self._vertex_count)
        self.surface_of_face.append(np.full(len(faces), len(self.surfaces)))
        self.surfaces.append(surface)
        self._vertex_count += len(vertices)


@cache
def box() -> Mesh:
    """A cube of edge 1 that stands on the origin."""
    return _unit(trimesh.creation.box(), lift=0.5)


@cache
def cylinder() -> Mesh:
    """An upright cylinder of diameter and height 1 that stands on the origin."""
    return _unit(trimesh.creation.cylinder(radius=0.5, height=1.0, sections=10), lift=0.5)


@cache
def sphere(subdivisions: int = 1) -> Mesh:
    """A sphere of diameter 1 about the origin, with 20 · 4^`subdivisions` triangles."""
    return _unit(trimesh.creation.icosphere(subdivisions=subdivisions, radius=0.5), lift=0.0)


def frustum(top: tuple[float, float], shift: float = 0.0) -> Mesh:
    """The unit box with its upper face scaled by `top` and shifted along y."""
    vertices, faces = box()
    vertices = vertices.copy()
    upper = vertices[:, 2] > 0.5
    vertices[upper, :2] = vertices[upper, :2] * top + (0.0, shift)
    return vertices, faces


def ribbon(left: Array, right: Array) -> Mesh:
    """The surface between two lines of points (N, 3)."""
    count = len(left)
    first = np.arange(count - 1)
    faces = np.concatenate(
        [
            np.stack([first, first + count, first + 1], axis=1),
            np.stack([first + 1, first + count, first + count + 1], axis=1),
        ]
    )
    return np.concatenate([left, right]), faces


def pose(
    position: tuple[float, float, float],
    size: tuple[float, float, float] = (1.0, 1.0, 1.0),
    turn: float = 0.0,
    tilt: float = 0.0,
) -> Array:
    """The matrix that scales a shape, tilts it about x, turns it about z, and moves it.

    Args:
        position: Position of the shape's origin.
        size: Scale along x, y and z.
        turn: Angle about z in radians.
        tilt: Angle about x in radians.

    Returns:
        Homogeneous 4×4 matrix.
    """
    cos_turn, sin_turn = math.cos(turn), math.sin(turn)
    cos_tilt, sin_tilt = math.cos(tilt), math.sin(tilt)
    width, depth, height = size
    x, y, z = position
    return np.array(
        [
            [cos_turn * width, -sin_turn * cos_tilt * depth, sin_turn * sin_tilt * height, x],
            [sin_turn * width, cos_turn * cos_tilt * depth, -cos_turn * sin_tilt * height, y],
            [0.0, sin_tilt * depth, cos_tilt * height, z],
            [0.0, 0.0, 0.0, 1.0],
        ]
    )


def _unit(mesh: trimesh.Trimesh, lift: float) -> Mesh:
    vertices = np.asarray(mesh.vertices) + np.array([0.0, 0.0, lift])
    return vertices, np.asarray(mesh.faces)
