"""Photographs of a street: light, shadow, haze and sensor noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from examples.scenes.rendering.camera import OFFSET, Camera, RayCaster
from examples.scenes.rendering.layout import Street
from examples.scenes.rendering.shapes import Array, Material
from examples.scenes.rendering.textures import albedo, value_noise

# Rays along each side of a pixel.
SAMPLES = 2
# Ambient occlusion: rays per point, and their reach in lengths of their direction.
AMBIENT_RAYS = 2
AMBIENT_REACH = 4.0
SENSOR_GAMMA = 2.2


@dataclass(frozen=True)
class Weather:
    """The light of a day.

    Args:
        sun: Direction towards the sun.
        sunlight: Colour of the sun's light; 0 under an overcast sky.
        zenith: Colour of the sky overhead.
        horizon: Colour of the haze and of the sky at the horizon.
        clouds: Cloud cover between 0 and 1.
        visibility: The distance at which haze leaves 1/e of the contrast, m.
    """

    sun: Array
    sunlight: Array
    zenith: Array
    horizon: Array
    clouds: float
    visibility: float

    @classmethod
    def random(cls, rng: np.random.Generator) -> Weather:
        """Draws the weather of a day."""
        bearing, elevation = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(0.15, 1.2)
        sun = np.array(
            [
                np.cos(elevation) * np.sin(bearing),
                np.cos(elevation) * np.cos(bearing),
                np.sin(elevation),
            ]
        )
        low = np.exp(-3.0 * elevation)
        overcast = rng.random() < 0.35
        clouds = rng.uniform(0.75, 1.0) if overcast else rng.uniform(0.0, 0.6)
        strength = 0.0 if overcast else rng.uniform(1.6, 3.2)
        grey = np.full(3, rng.uniform(0.55, 0.9))
        blue = np.array([0.22, 0.4, 0.75]) * rng.uniform(0.7, 1.1)
        zenith = clouds * grey + (1.0 - clouds) * blue
        horizon = 0.5 * zenith + 0.5 * np.array([0.85, 0.85, 0.85]) * rng.uniform(0.8, 1.1)
        horizon = horizon * (1.0 - low * np.array([0.0, 0.15, 0.35]) * (not overcast))
        haze = rng.random() < 0.3
        return cls(
            sun=sun,
            sunlight=strength * (1.0 - low * np.array([0.1, 0.45, 0.8])),
            zenith=zenith,
            horizon=horizon,
            clouds=clouds,
            visibility=rng.uniform(40.0, 150.0) if haze else rng.uniform(200.0, 900.0),
        )


def photograph(
    rng: np.random.Generator,
    street: Street,
    caster: RayCaster,
    height: int,
    width: int,
) -> npt.NDArray[np.uint8]:
    """Takes a picture of a street.

    Args:
        rng: Random number generator.
        street: Street in the picture.
        caster: Ray caster of the street's meshes.
        height: Image height in pixels.
        width: Image width in pixels.

    Returns:
        RGB image (height, width, 3).
    """
    camera = Camera.of(street)
    directions = camera.rays(height, width, SAMPLES).reshape(-1, 3)
    light = _radiance(rng, street, caster, camera, directions)
    shape = (height, SAMPLES, width, SAMPLES, 3)
    return _develop(rng, light.reshape(shape).mean(axis=(1, 3)))


def _radiance(
    rng: np.random.Generator,
    street: Street,
    caster: RayCaster,
    camera: Camera,
    directions: Array,
) -> Array:
    """The radiance along each ray."""
    weather = Weather.random(rng)
    hits = caster.first_hits(camera.position, directions)
    lengths = np.linalg.norm(directions, axis=1)
    light = _sky(weather, directions / lengths[:, None])

    at = np.flatnonzero(hits.surface >= 0)
    view = directions[at] / lengths[at, None]
    distance = hits.depth[at] * lengths[at]
    points = camera.position + distance[:, None] * view
    normal = hits.normal[at]

    surfaces = street.assembly.surfaces
    surface = hits.surface[at]
    material = np.array([surface.material for surface in surfaces])[surface]
    colour = np.array([surface.colour for surface in surfaces])[surface]
    pattern = np.array([surface.pattern for surface in surfaces])[surface]
    colour = albedo(material, colour, pattern, points, normal, street.markings)

    start = points + OFFSET * distance[:, None] ** 0.5 * normal
    facing = np.maximum(normal @ weather.sun, 0.0)
    if weather.sunlight.any():
        facing *= ~caster.blocked(start, np.broadcast_to(weather.sun, start.shape), np.inf)
    openness = np.zeros(len(start))
    for _ in range(AMBIENT_RAYS):
        outwards = normal + _unit(rng.normal(size=normal.shape))
        openness += ~caster.blocked(start, outwards, AMBIENT_REACH) / AMBIENT_RAYS
    upward = 0.5 + 0.5 * normal[:, 2:]
    ambient = upward * weather.zenith + (1.0 - upward) * 0.4 * weather.horizon
    ambient = ambient * (0.3 + 0.7 * openness)[:, None]
    shaded = colour * (ambient + facing[:, None] * weather.sunlight)

    glossy = np.flatnonzero(material == Material.GLOSSY)
    towards = np.sum(view[glossy] * normal[glossy], axis=1)
    mirrored = view[glossy] - 2.0 * towards[:, None] * normal[glossy]
    slant = 1.0 + towards
    sheen = (0.06 + 0.6 * np.clip(slant, 0.0, 1.0) ** 4)[:, None]
    glint = np.maximum(mirrored @ weather.sun, 0.0) ** 60 * (facing[glossy] > 0)
    # Below the horizon, a car mirrors the street.
    mirror = np.where(mirrored[:, 2:] > 0.05, _sky(weather, mirrored), 0.15 * weather.horizon)
    shaded[glossy] += sheen * mirror + 0.3 * glint[:, None] * weather.sunlight

    clear = np.exp(-distance / weather.visibility)[:, None]
    light[at] = clear * shaded + (1.0 - clear) * weather.horizon
    return light


def _sky(weather: Weather, directions: Array) -> Array:
    up = np.clip(directions[:, 2:], 0.0, 1.0)
    clear = weather.horizon + (weather.zenith - weather.horizon) * up**0.6
    plane = directions[:, :2] / (up + 0.12)
    billow = 0.6 * value_noise(plane, 0.8, seed=20) + 0.4 * value_noise(plane, 2.3, seed=21)
    cover = np.clip(4.0 * (billow - 0.9 + 0.7 * weather.clouds), 0.0, 1.0)[:, None]
    white = 0.5 * weather.horizon + 0.45 + 0.15 * weather.sunlight
    sky = clear * (1.0 - 0.7 * cover) + 0.7 * cover * white
    towards_sun = np.maximum(directions @ weather.sun, 0.0)[:, None]
    return np.asarray(sky + weather.sunlight * (0.08 * towards_sun**6 + 2.0 * towards_sun**400))


def _develop(rng: np.random.Generator, light: Array) -> npt.NDArray[np.uint8]:
    """Applies exposure, white balance, photon and read-out noise, and 8-bit quantization."""
    exposed = light * rng.uniform(0.14, 0.3) / np.mean(np.minimum(light, 1.5))
    exposed = exposed * rng.uniform(0.9, 1.1, 3)
    photons = rng.uniform(150.0, 1500.0)
    noise = rng.normal(size=light.shape) * np.sqrt(exposed / photons + (3.0 / photons) ** 2)
    levels = np.clip(exposed + noise, 0.0, 1.0) ** (1.0 / SENSOR_GAMMA)
    return np.rint(255.0 * levels).astype(np.uint8)


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
