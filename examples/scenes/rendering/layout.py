"""Random layout of a street."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from examples.scenes.labels import INSTANCES_PER_CLASS
from examples.scenes.rendering.objects import (
    Label,
    Place,
    add_bonnet,
    add_building,
    add_bush,
    add_car,
    add_clutter,
    add_lamp_post,
    add_person,
    add_sign,
    add_tree,
)
from examples.scenes.rendering.shapes import Array, Assembly, Material, Surface, ribbon
from examples.scenes.rendering.textures import StreetMarkings

FAR = 120.0
KERB = 0.13


@dataclass(frozen=True)
class Street:
    """A street, and the pose of the camera on it.

    Args:
        assembly: Meshes of the street.
        markings: Course and markings of the road.
        camera: Position of the camera, m.
        yaw: Angle of the camera about z, radians.
        pitch: Downward angle of the camera, radians.
        roll: Angle of the camera about its optical axis, radians.
    """

    assembly: Assembly
    markings: StreetMarkings
    camera: Array
    yaw: float
    pitch: float
    roll: float


def random_street(rng: np.random.Generator) -> Street:
    """Lays out a street.

    Args:
        rng: Random number generator.

    Returns:
        A `Street`.
    """
    road = rng.uniform(3.2, 7.0)
    pavement = rng.uniform(1.5, 4.5)
    markings = StreetMarkings(
        curve=rng.choice([0.0, rng.normal(0.0, 0.003)], p=[0.4, 0.6]),
        half_width=road,
        crossing=rng.uniform(8.0, 40.0) if rng.random() < 0.25 else np.inf,
        lines=bool(rng.random() < 0.7),
    )
    site = _Site(rng, markings, pavement)
    _add_ground(site)
    for side in (-1, 1):
        _add_row(site, side)
        _add_furniture(site, side)
        _add_traffic(site, side)
        _add_walkers(site, side)
    for _ in range(rng.poisson(0.6)):
        turn = rng.choice([0.5 * np.pi, -0.5 * np.pi])
        crosser = site.place(rng.uniform(7.0, 35.0), rng.uniform(-road, road), turn)
        add_person(site.assembly, rng, crosser, next(site.people))

    position = np.array([rng.uniform(0.15, 0.4) * road, 0.0, rng.uniform(1.15, 2.3)])
    if rng.random() < 0.35:
        x = position[0] + rng.normal(0.0, 0.15)
        lift = position[2] - rng.uniform(0.75, 0.9)
        add_bonnet(site.assembly, rng, Place(x, rng.uniform(1.6, 2.0), lift, 0.0))
    return Street(
        site.assembly,
        markings,
        position,
        yaw=rng.normal(0.0, 0.08),
        pitch=rng.normal(0.03, 0.035),
        roll=rng.normal(0.0, 0.015),
    )


class _Site:
    """A street during its layout. Side 1 is the right, where the camera drives; side -1 is left."""

    def __init__(self, rng: np.random.Generator, markings: StreetMarkings, pavement: float) -> None:
        self.rng = rng
        self.markings = markings
        self.road = markings.half_width
        self.edge = markings.half_width + pavement
        self.assembly = Assembly()
        self.people = count(Label.PERSON * INSTANCES_PER_CLASS)
        self.cars = count(Label.CAR * INSTANCES_PER_CLASS)

    def place(self, along: float, across: float, turn: float = 0.0) -> Place:
        """The place at a distance along the street, and to the right of its middle."""
        curve = self.markings.curve
        height = KERB if abs(across) > self.road else 0.0
        x = 0.5 * curve * along**2 + across
        return Place(x, along, height, turn - np.arctan(curve * along))

    def spaced(
        self, start: float, step: float, until: float = FAR, jitter: float = 0.4
    ) -> Iterator[float]:
        """Random distances from `start` on, about `step` apart."""
        along = start + self.rng.uniform(0.0, step)
        while along < until:
            yield along
            along += step * self.rng.uniform(1.0 - jitter, 1.0 + jitter)


def _add_ground(site: _Site) -> None:
    rng, road = site.rng, site.road
    along = np.linspace(-10.0, 3.0 * FAR, 120)
    middle = 0.5 * site.markings.curve * along**2

    def line(across: float, height: float) -> Array:
        return np.stack([middle + across, along, np.full_like(along, height)], axis=1)

    asphalt = rng.uniform(0.1, 0.24) * rng.uniform(0.93, 1.07, 3)
    site.assembly.add(
        ribbon(line(-road, 0.0), line(road, 0.0)),
        Surface(Label.ROAD, Material.ASPHALT, tuple(asphalt)),
    )
    stone = rng.uniform(0.15, 0.4) * rng.uniform(0.9, 1.1, 3)
    paving = Surface(
        Label.PAVEMENT, Material.PAVING, tuple(stone), pattern=(rng.random(), rng.random())
    )
    green = rng.uniform((0.08, 0.14, 0.03), (0.2, 0.28, 0.08))
    grass = Surface(Label.TERRAIN, Material.SOIL, tuple(green))
    for side in (-1, 1):
        kerb, edge, far = side * road, side * site.edge, side * 2.0 * FAR
        site.assembly.add(ribbon(line(kerb, 0.0), line(kerb, KERB)), paving)
        site.assembly.add(ribbon(line(kerb, KERB), line(edge, KERB)), paving)
        site.assembly.add(ribbon(line(edge, KERB), line(far, KERB)), grass)


def _add_row(site: _Site, side: int) -> None:
    """Adds houses and gardens along one side of the street."""
    rng = site.rng
    built_up = rng.choice([0.0, 0.5, 0.9], p=[0.15, 0.35, 0.5])
    setback = rng.choice([0.0, rng.uniform(1.0, 8.0)])
    storeys = rng.uniform(2.0, 6.0)
    outwards = 0.0 if side > 0 else np.pi
    along = rng.uniform(-8.0, 4.0)
    while along < FAR:
        width = rng.uniform(6.0, 20.0)
        if rng.random() < built_up:
            height = 3.1 * max(1.0, np.round(storeys + rng.normal(0.0, 1.0))) + 0.4
            front = site.place(along + width / 2, side * (site.edge + setback), outwards)
            add_building(site.assembly, rng, front, width, height)
        else:
            for _ in range(rng.integers(0, 4)):
                across = side * (site.edge + rng.uniform(0.5, 15.0))
                spot = site.place(along + rng.uniform(0.0, width), across)
                (add_tree if rng.random() < 0.6 else add_bush)(site.assembly, rng, spot)
        along += width + rng.choice([0.0, rng.uniform(1.0, 6.0)])


def _add_furniture(site: _Site, side: int) -> None:
    """Adds posts and trees along the kerb, and clutter on the pavement."""
    rng = site.rng
    inwards = np.pi if side > 0 else 0.0
    for along in site.spaced(6.0, rng.uniform(12.0, 30.0)):
        post = site.place(along, side * (site.road + 0.4), inwards)
        (add_lamp_post if rng.random() < 0.6 else add_sign)(site.assembly, rng, post)
    if rng.random() < 0.5:
        for along in site.spaced(5.0, rng.uniform(7.0, 16.0)):
            spot = site.place(along, side * (site.road + rng.uniform(0.7, 1.2)))
            add_tree(site.assembly, rng, spot)
    for along in site.spaced(6.0, rng.uniform(10.0, 40.0), until=60.0):
        across = side * (site.edge - rng.uniform(0.2, 0.6))
        spot = site.place(along, across, rng.uniform(0.0, np.pi))
        add_clutter(site.assembly, rng, spot)


def _add_traffic(site: _Site, side: int) -> None:
    """Adds moving cars, and parked cars if the road is wide enough."""
    rng = site.rng
    heading = 0.0 if side > 0 else np.pi
    if site.road > 4.5 and rng.random() < 0.75:
        density = rng.uniform(0.25, 0.95)
        for along in site.spaced(5.0, 6.2, until=70.0, jitter=0.1):
            if rng.random() < density:
                turn = heading + rng.normal(0.0, 0.04) + np.pi * (rng.random() < 0.15)
                parked = site.place(along, side * (site.road - rng.uniform(1.05, 1.3)), turn)
                add_car(site.assembly, rng, parked, next(site.cars))
    if rng.random() < 0.8:
        for along in site.spaced(9.0, rng.uniform(12.0, 45.0), until=100.0):
            moving = site.place(along, side * rng.uniform(0.25, 0.33) * site.road, heading)
            add_car(site.assembly, rng, moving, next(site.cars))


def _add_walkers(site: _Site, side: int) -> None:
    """Adds people on the pavement, alone and in groups."""
    rng = site.rng
    for along in site.spaced(5.0, rng.uniform(3.0, 14.0), until=60.0):
        for _ in range(rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1])):
            across = side * rng.uniform(site.road + 0.3, site.edge)
            turn = rng.choice([0.0, np.pi]) + rng.normal(0.0, 0.5)
            walker = site.place(along + rng.normal(0.0, 0.6), across, turn)
            add_person(site.assembly, rng, walker, next(site.people))
