"""Procedural textures of surfaces in world coordinates."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from examples.scenes.rendering.shapes import Array, Material

LANE_MARKING = 0.75
DASH, DASH_PERIOD = 3.0, 9.0
LINE_WIDTH = 0.2
CROSSING_DEPTH, STRIPE = 4.0, 0.9
STOREY = 3.1


def value_noise(points: Array, frequency: float, seed: int = 0) -> Array:
    """Smooth noise between 0 and 1.

    Args:
        points: Coordinates, (N, D).
        frequency: Lattice points per unit of length.
        seed: Random seed.

    Returns:
        Array (N,).
    """
    scaled = points * frequency
    corner = np.floor(scaled)
    fraction = scaled - corner
    fraction = fraction * fraction * (3.0 - 2.0 * fraction)
    lattice = corner.astype(np.int64)
    value = np.zeros(len(points))
    dimensions = points.shape[1]
    for index in range(2**dimensions):
        offset = [(index >> axis) & 1 for axis in range(dimensions)]
        weight = np.ones(len(points))
        for axis in range(dimensions):
            weight *= fraction[:, axis] if offset[axis] else 1.0 - fraction[:, axis]
        value += weight * _hash(lattice + offset, seed)
    return value


def albedo(
    material: npt.NDArray[np.int64],
    colour: Array,
    pattern: Array,
    points: Array,
    normals: Array,
    street: StreetMarkings,
) -> Array:
    """The colour of surfaces at points on them.

    Args:
        material: `Material` at each point, (N,).
        colour: Base colour at each point, (N, 3).
        pattern: `Surface.pattern` at each point, (N, 2).
        points: World coordinates, (N, 3).
        normals: Unit normals, (N, 3).
        street: Course and markings of the road.

    Returns:
        Linear RGB, (N, 3).
    """
    result = colour.copy()
    painters = {
        Material.ASPHALT: _asphalt,
        Material.PAVING: _paving,
        Material.SOIL: _soil,
        Material.FACADE: _facade,
        Material.FOLIAGE: _foliage,
        Material.CLOTH: _cloth,
    }
    for painted, painter in painters.items():
        at = np.flatnonzero(material == painted)
        if len(at):
            result[at] = painter(colour[at], pattern[at], points[at], normals[at], street)
    return result


class StreetMarkings:
    """The course of a street, and the markings of its road.

    Args:
        curve: Curvature of the street, 1/m.
        half_width: Half the width of the road, m.
        crossing: Distance to a zebra crossing, m; infinite for none.
        lines: If `True`, the road has lines in its middle and along its edges.
    """

    def __init__(self, curve: float, half_width: float, crossing: float, lines: bool) -> None:
        self.curve = curve
        self.half_width = half_width
        self.crossing = crossing
        self.lines = lines

    def along_and_across(self, points: Array) -> tuple[Array, Array]:
        """Distances of points along the street, and to the right of its middle."""
        return points[:, 1], points[:, 0] - 0.5 * self.curve * points[:, 1] ** 2


def _asphalt(
    colour: Array, pattern: Array, points: Array, normals: Array, street: StreetMarkings
) -> Array:
    along, across = street.along_and_across(points)
    grain = value_noise(points[:, :2], 9.0)
    patches = value_noise(points[:, :2], 0.25, seed=1)
    # Tyres darken two tracks in each lane.
    tracks = np.cos(2.0 * np.pi * across / (0.5 * street.half_width))
    shade = 0.65 + 0.3 * grain + 0.35 * patches + 0.06 * tracks
    shade *= np.where(value_noise(points[:, :2], 0.12, seed=2) > 0.72, 0.7, 1.0)
    result = colour * shade[:, None]

    marked = np.abs(along - street.crossing) < CROSSING_DEPTH / 2
    marked &= (across / STRIPE) % 1.0 < 0.5
    if street.lines:
        middle = (np.abs(across) < LINE_WIDTH / 2) & (along % DASH_PERIOD < DASH)
        edge = np.abs(np.abs(across) - street.half_width + 0.35) < LINE_WIDTH / 2
        marked |= middle | edge
    worn = value_noise(points[:, :2], 2.5, seed=3)
    opacity = (marked * np.clip(1.6 - 1.4 * worn, 0.0, 1.0))[:, None]
    return result * (1.0 - opacity) + LANE_MARKING * opacity


def _paving(
    colour: Array, pattern: Array, points: Array, normals: Array, street: StreetMarkings
) -> Array:
    along, across = street.along_and_across(points)
    size = 0.4 + 0.8 * pattern[:, 0]
    joints = ((along / size) % 1.0 < 0.08) | ((across / size) % 1.0 < 0.08)
    tile = np.stack([np.floor(along / size), np.floor(across / size)], axis=1)
    shade = 0.75 + 0.25 * _hash(tile.astype(np.int64), 4) + 0.2 * value_noise(points[:, :2], 0.6)
    return colour * (shade * np.where(joints, 0.75, 1.0))[:, None]


def _soil(
    colour: Array, pattern: Array, points: Array, normals: Array, street: StreetMarkings
) -> Array:
    grass = value_noise(points[:, :2], 0.4, seed=5)[:, None]
    blades = 0.6 + 0.7 * value_noise(points[:, :2], 7.0, seed=6)
    earth = np.array([0.24, 0.18, 0.11])
    mixed = colour * grass + earth * (1.0 - grass)
    return mixed * blades[:, None]


def _facade(
    colour: Array, pattern: Array, points: Array, normals: Array, street: StreetMarkings
) -> Array:
    stains = value_noise(points, 0.35, seed=7)
    grain = value_noise(points, 5.0, seed=8)
    result = colour * (0.7 + 0.35 * stains + 0.2 * grain)[:, None]

    horizontal = points[:, 0] * normals[:, 1] - points[:, 1] * normals[:, 0]
    width = 1.6 + 2.4 * pattern[:, 0]
    column, storey = horizontal / width, points[:, 2] / STOREY
    cell = np.stack([np.floor(column), np.floor(storey)], axis=1).astype(np.int64)
    inside_width = np.abs(column % 1.0 - 0.5) < 0.2 + 0.22 * pattern[:, 1]
    inside_height = np.abs(storey % 1.0 - 0.55) < 0.28
    wall = np.abs(normals[:, 2]) < 0.5
    window = wall & inside_width & inside_height
    frame = wall & ~window & (np.abs(storey % 1.0 - 0.55) < 0.34)
    frame &= np.abs(column % 1.0 - 0.5) < 0.26 + 0.22 * pattern[:, 1]
    result = np.where(frame[:, None], 0.5 * result + 0.25, result)
    # Panes show dark rooms, the sky or curtains.
    pane = _hash(cell, 9)[:, None]
    curtain = (_hash(cell, 10) > 0.75)[:, None]
    glass = np.array([0.05, 0.06, 0.08]) + pane**3 * np.array([0.3, 0.38, 0.45])
    glass = np.where(curtain, 0.35 + 0.2 * pane, glass)
    return np.where(window[:, None], glass, result)


def _foliage(
    colour: Array, pattern: Array, points: Array, normals: Array, street: StreetMarkings
) -> Array:
    leaves = value_noise(points, 6.0, seed=11)
    boughs = value_noise(points, 1.3, seed=12)
    shade = 0.25 + 0.8 * leaves * (0.4 + boughs)
    hue = 1.0 + 0.3 * (boughs - 0.5)[:, None] * np.array([1.0, 0.2, -0.6])
    return colour * hue * shade[:, None]


def _cloth(
    colour: Array, pattern: Array, points: Array, normals: Array, street: StreetMarkings
) -> Array:
    folds = value_noise(points, 8.0, seed=13)
    return colour * (0.6 + 0.6 * folds)[:, None]


def _hash(lattice: npt.NDArray[np.int64], seed: int) -> Array:
    """A number between 0 and 1 for each lattice point of integer coordinates (N, D)."""
    primes = (73_856_093, 19_349_663, 83_492_791)
    mixed = np.full(len(lattice), seed * 2_654_435_761 % 2**32, np.uint32)
    for axis in range(lattice.shape[1]):
        mixed ^= (lattice[:, axis] * primes[axis]).astype(np.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed ^= mixed >> np.uint32(shift)
        mixed *= np.uint32(factor)
    mixed ^= mixed >> np.uint32(16)
    return mixed / 2.0**32
