"""Objects of a street, made of shapes: buildings, trees, cars, people, poles."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from examples.scenes.labels import UNLABELLED
from examples.scenes.rendering.shapes import (
    Assembly,
    Colour,
    Material,
    Surface,
    box,
    cylinder,
    frustum,
    pose,
    sphere,
)

CAR_PAINTS: list[Colour] = [
    (0.75, 0.75, 0.75),
    (0.35, 0.36, 0.38),
    (0.03, 0.03, 0.035),
    (0.5, 0.03, 0.03),
    (0.04, 0.09, 0.3),
    (0.12, 0.25, 0.15),
    (0.6, 0.5, 0.12),
]
PLASTERS: list[Colour] = [
    (0.55, 0.5, 0.42),
    (0.45, 0.2, 0.14),
    (0.62, 0.6, 0.57),
    (0.35, 0.33, 0.32),
    (0.55, 0.42, 0.25),
    (0.3, 0.36, 0.42),
]
GLASS: Colour = (0.04, 0.05, 0.06)
RUBBER: Colour = (0.02, 0.02, 0.02)
STEEL: Colour = (0.25, 0.26, 0.27)
WOOD: Colour = (0.16, 0.11, 0.07)
SKINS: list[Colour] = [(0.55, 0.36, 0.26), (0.35, 0.2, 0.13), (0.16, 0.09, 0.06)]


class Label(IntEnum):
    """The classes of a rendered street, and the id of unlabelled surfaces."""

    ROAD = 0
    PAVEMENT = 1
    BUILDING = 2
    POLE = 3
    VEGETATION = 4
    TERRAIN = 5
    SKY = 6
    PERSON = 7
    CAR = 8
    UNLABELLED = UNLABELLED


class Place:
    """A position on the ground, and a heading.

    Args:
        x: Position to the right, m.
        y: Position ahead, m.
        z: Position upwards, m.
        turn: Angle of the heading about z, from the y axis, radians.
    """

    def __init__(self, x: float, y: float, z: float, turn: float) -> None:
        self.x, self.y, self.z, self.turn = x, y, z, turn

    def pose(
        self,
        offset: tuple[float, float, float],
        size: tuple[float, float, float],
        turn: float = 0.0,
        tilt: float = 0.0,
    ) -> np.ndarray:
        """The matrix of a shape whose offset, turn and tilt are relative to this place."""
        local = pose(offset, size, turn, tilt)
        return np.asarray(pose((self.x, self.y, self.z), turn=self.turn) @ local)


def add_building(
    assembly: Assembly, rng: np.random.Generator, place: Place, width: float, height: float
) -> None:
    """Adds a house with its front at the place, its width along y and its depth along x."""
    depth = rng.uniform(8.0, 14.0)
    centre = 0.5 * depth
    shade = rng.uniform(0.6, 1.25)
    wall = Surface(
        Label.BUILDING, Material.FACADE, _tinted(rng, PLASTERS, shade), pattern=_pattern(rng)
    )
    assembly.add(box(), wall, place.pose((centre, 0.0, 0.0), (depth, width, height)))
    roof = Surface(
        Label.BUILDING, Material.CLOTH, _tinted(rng, [(0.25, 0.1, 0.07), (0.1, 0.1, 0.11)])
    )
    if rng.random() < 0.6:
        gable = frustum((0.05, 1.0))
        rise = rng.uniform(1.5, 4.0)
        assembly.add(
            gable, roof, place.pose((centre, 0.0, height), (depth + 0.8, width + 0.3, rise))
        )
    else:
        assembly.add(
            box(), roof, place.pose((centre, 0.0, height), (depth + 0.4, width + 0.2, 0.5))
        )
    if rng.random() < 0.35:
        balcony = Surface(Label.BUILDING, Material.PLAIN, (0.3, 0.3, 0.3))
        for storey in range(1, int(height / 3.1)):
            assembly.add(
                box(),
                balcony,
                place.pose((0.0, 0.0, 3.1 * storey), (1.8, 0.4 * width, 0.9)),
            )


def add_tree(assembly: Assembly, rng: np.random.Generator, place: Place) -> None:
    """Adds a trunk under a crown of overlapping ellipsoids."""
    height = rng.uniform(3.5, 10.0)
    trunk_height = height * rng.uniform(0.25, 0.5)
    bark = Surface(Label.VEGETATION, Material.CLOTH, _tinted(rng, [WOOD]))
    thickness = 0.03 * height + 0.08
    assembly.add(
        cylinder(), bark, place.pose((0.0, 0.0, 0.0), (thickness, thickness, 0.8 * height))
    )
    leaves = _leaves(rng)
    spread = height * rng.uniform(0.2, 0.38)
    for _ in range(rng.integers(5, 11)):
        x, y = rng.normal(0.0, 0.45 * spread, 2)
        z = rng.uniform(trunk_height, height)
        size = spread * rng.uniform(0.5, 1.3, 3)
        assembly.add(sphere(), leaves, place.pose((x, y, z), tuple(size), rng.uniform(0, 3)))


def add_bush(assembly: Assembly, rng: np.random.Generator, place: Place) -> None:
    """Adds a few low ellipsoids of leaves."""
    leaves = _leaves(rng)
    for _ in range(rng.integers(2, 5)):
        x, y = rng.normal(0.0, 0.6, 2)
        size = rng.uniform(0.8, 2.4, 3)
        assembly.add(sphere(), leaves, place.pose((x, y, 0.2 * size[2]), tuple(size)))


def add_car(assembly: Assembly, rng: np.random.Generator, place: Place, instance: int) -> None:
    """Adds a hatchback, a saloon or a van that faces along y."""

    def surface(material: Material, colour: Colour) -> Surface:
        return Surface(Label.CAR, material, colour, instance)

    paint = surface(Material.GLOSSY, _tinted(rng, CAR_PAINTS))
    glass = surface(Material.GLOSSY, GLASS)
    rubber = surface(Material.PLAIN, RUBBER)
    kind = rng.choice(3)
    length = (rng.uniform(3.6, 4.2), rng.uniform(4.3, 4.9), rng.uniform(4.8, 6.0))[kind]
    width = rng.uniform(1.7, 1.85) + 0.2 * (kind == 2)
    waist = (0.85, 0.85, 1.1)[kind]
    cabin = (rng.uniform(0.55, 0.65), rng.uniform(0.5, 0.58), rng.uniform(0.8, 1.3))[kind]
    cabin_length = (0.68, 0.56, 0.82)[kind] * length
    cabin_shift = (-0.12, -0.06, -0.08)[kind] * length
    taper = (0.72, 0.66, 0.86)[kind]

    body = frustum((0.94, 0.96))
    assembly.add(body, paint, place.pose((0.0, 0.0, 0.25), (width, length, waist - 0.25)))
    shape = frustum((0.8, taper), shift=-0.03)
    assembly.add(
        shape, glass, place.pose((0.0, cabin_shift, waist), (0.93 * width, cabin_length, cabin))
    )
    roof = (0.76 * width, taper * cabin_length, 0.07)
    assembly.add(
        box(), paint, place.pose((0.0, cabin_shift - 0.03 * cabin_length, waist + cabin), roof)
    )
    if kind == 2:
        back = (0.94 * width, 0.6 * cabin_length, cabin + 0.02)
        assembly.add(
            frustum((0.84, 0.96)), paint, place.pose((0.0, cabin_shift - 0.7, waist), back)
        )
    for side in (-1, 1):
        for axle in (-0.31, 0.31):
            offset = (side * (0.5 * width - 0.02) + 0.1, axle * length, 0.32)
            wheel = place.pose(offset, (0.64, 0.64, 0.2), turn=np.pi / 2, tilt=np.pi / 2)
            assembly.add(cylinder(), rubber, wheel)
        head = surface(Material.PLAIN, (0.85, 0.83, 0.75))
        tail = surface(Material.PLAIN, (0.6, 0.03, 0.03))
        for lamp, end in ((head, 0.485), (tail, -0.485)):
            offset = (side * 0.38 * width, end * length, 0.62)
            assembly.add(box(), lamp, place.pose(offset, (0.3, 0.14, 0.16)))
    plate = surface(Material.PLAIN, (0.8, 0.8, 0.75))
    assembly.add(box(), plate, place.pose((0.0, -0.49 * length, 0.45), (0.5, 0.1, 0.12)))


def add_person(assembly: Assembly, rng: np.random.Generator, place: Place, instance: int) -> None:
    """Adds a person who walks along y."""

    def surface(colour: Colour) -> Surface:
        return Surface(Label.PERSON, Material.CLOTH, colour, instance)

    height = rng.choice([rng.uniform(1.55, 1.9), rng.uniform(1.0, 1.4)], p=[0.85, 0.15])
    trousers = surface(tuple(rng.uniform(0.02, 0.3, 3)))
    coat = surface(tuple(rng.uniform(0.03, 0.6, 3)))
    skin = surface(_tinted(rng, SKINS))
    stride = rng.uniform(-0.45, 0.45)
    breadth = height * rng.uniform(0.24, 0.3)
    hip, shoulder = 0.48 * height, 0.82 * height
    for side, swing in ((-1, stride), (1, -stride)):
        leg = (0.42 * breadth, 0.42 * breadth, hip / np.cos(swing))
        foot = (side * 0.24 * breadth, np.sin(swing) * hip, 0.0)
        assembly.add(cylinder(), trousers, place.pose(foot, leg, tilt=swing))
        arm = (0.26 * breadth, 0.28 * breadth, 0.4 * height)
        hand = (side * 0.6 * breadth, -np.sin(swing) * 0.4 * height, shoulder - 0.38 * height)
        assembly.add(cylinder(), coat, place.pose(hand, arm, tilt=-swing))
    torso = (breadth, 0.6 * breadth, 0.42 * height)
    assembly.add(sphere(), coat, place.pose((0.0, 0.0, 0.64 * height), torso))
    chest = (0.9 * breadth, 0.55 * breadth, 0.3 * height)
    assembly.add(cylinder(), coat, place.pose((0.0, 0.0, 0.5 * height), chest))
    head = 0.14 * height
    skull = (0.85 * head, 0.95 * head, 1.2 * head)
    assembly.add(sphere(), skin, place.pose((0.0, 0.0, 0.92 * height), skull))


def add_lamp_post(assembly: Assembly, rng: np.random.Generator, place: Place) -> None:
    """Adds a tall mast with an arm along x."""
    height = rng.uniform(4.5, 8.0)
    steel = Surface(Label.POLE, Material.PLAIN, _tinted(rng, [STEEL, (0.08, 0.1, 0.09)]))
    assembly.add(cylinder(), steel, place.pose((0.0, 0.0, 0.0), (0.2, 0.2, height)))
    arm = (rng.uniform(0.6, 2.0), 0.12, 0.12)
    assembly.add(box(), steel, place.pose((0.5 * arm[0], 0.0, height), arm))
    assembly.add(box(), steel, place.pose((arm[0], 0.0, height - 0.08), (0.6, 0.3, 0.2)))


def add_sign(assembly: Assembly, rng: np.random.Generator, place: Place) -> None:
    """Adds a traffic sign that faces traffic along y; its face is unlabelled."""
    height = rng.uniform(2.0, 3.0)
    steel = Surface(Label.POLE, Material.PLAIN, STEEL)
    assembly.add(cylinder(), steel, place.pose((0.0, 0.0, 0.0), (0.1, 0.1, height)))
    colours: list[Colour] = [(0.6, 0.05, 0.05), (0.05, 0.1, 0.5), (0.7, 0.6, 0.1)]
    face = Surface(Label.UNLABELLED, Material.PLAIN, _tinted(rng, colours))
    disc = place.pose((0.0, -0.1, height - 0.35), (0.7, 0.7, 0.04), tilt=np.pi / 2)
    assembly.add(cylinder(), face, disc)


def add_clutter(assembly: Assembly, rng: np.random.Generator, place: Place) -> None:
    """Adds an unlabelled box: a bin, a crate or a bench."""
    colour: Colour = tuple(rng.uniform(0.03, 0.4, 3))
    thing = Surface(Label.UNLABELLED, Material.CLOTH, colour)
    size = tuple(rng.uniform((0.4, 0.4, 0.5), (1.0, 1.6, 1.3)))
    assembly.add(box(), thing, place.pose((0.0, 0.0, 0.0), size))


def add_bonnet(assembly: Assembly, rng: np.random.Generator, place: Place) -> None:
    """Adds the unlabelled bonnet of the camera's own car."""
    paint = Surface(Label.UNLABELLED, Material.GLOSSY, _tinted(rng, CAR_PAINTS))
    assembly.add(sphere(3), paint, place.pose((0.0, 0.0, 0.0), (2.2, 3.2, 0.7)))


def _leaves(rng: np.random.Generator) -> Surface:
    green = rng.uniform((0.06, 0.14, 0.02), (0.22, 0.3, 0.08))
    if rng.random() < 0.15:
        green = rng.uniform((0.3, 0.14, 0.03), (0.45, 0.25, 0.06))
    return Surface(Label.VEGETATION, Material.FOLIAGE, tuple(green))


def _tinted(rng: np.random.Generator, colours: list[Colour], shade: float = 1.0) -> Colour:
    colour = np.array(colours[rng.integers(len(colours))])
    tinted = colour * shade * rng.uniform(0.8, 1.2, 3)
    return tuple(np.clip(tinted, 0.01, 0.9))


def _pattern(rng: np.random.Generator) -> tuple[float, float]:
    return tuple(rng.random(2))
