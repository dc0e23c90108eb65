# SPDX-License-Identifier: Apache-2.0
"""Light baked onto the rectangles of a world: lamps or a sun with soft shadows, and dim corners.

Baked light belongs to the surface, so it is the same from every view: shadows are as good to
match as paint.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.worlds.mipmaps import Floats
from mv_matcher_ros.worlds.planes import World

# Shadow rays start this far in front of a surface, so that posters on walls do not shade
# themselves.
_LIFT_M = 0.03
_SHADOW_M = 40.0


@dataclass(frozen=True)
class Lamp:
    """A light.

    Attributes:
        position: (3,) world metres; for a sun a far point in its direction.
        strength: brightness it gives a surface that faces it at `reach_m`.
        reach_m: distance of that surface; light falls off softly beyond it. inf: a sun, no
            falling off.
        radius_m: size of the lamp, which sets how soft shadows are.
    """

    position: tuple[float, float, float]
    strength: float
    reach_m: float = 3.0
    radius_m: float = 0.3


@dataclass(frozen=True)
class Illumination:
    """All light of a world.

    Attributes:
        lamps: direct light.
        ambient: light that comes from everywhere, less where surfaces are near.
        bounce: light thrown back by the ground, for surfaces that look down.
        near_m: how near a surface must be to take ambient light away.
        texel_m: resolution of the baked light.
        shadow_samples: places of each lamp that are tried.
    """

    lamps: tuple[Lamp, ...]
    ambient: float = 0.5
    bounce: float = 0.2
    near_m: float = 1.2
    texel_m: float = 0.12
    shadow_samples: int = 4


def bake(world: World, illumination: Illumination, seed: int = 0) -> World:
    """`world` with `light` filled in on every rectangle.

    Args:
        world: geometry; light it already has is replaced.
        illumination: lamps and ambient light.
        seed: of the directions in which shadows and corners are probed.
    """
    rng = np.random.default_rng(seed)
    quads = []
    for quad in world.quads:
        rows, columns = _grid(quad.size_m, illumination.texel_m)
        u, v = np.meshgrid((np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows)
        points = quad.point(u.ravel(), v.ravel()) + _LIFT_M * quad.normal
        reflected = illumination.bounce * 0.5 * (1.0 - float(quad.normal[2]))
        light = _openness(world, points, quad.normal, illumination.near_m, rng)
        light *= illumination.ambient + reflected
        for lamp in illumination.lamps:
            light += _direct(world, points, quad.normal, lamp, illumination.shadow_samples, rng)
        smooth = cv2.GaussianBlur(
            light.reshape(rows, columns), (0, 0), 0.8, borderType=cv2.BORDER_REPLICATE
        )
        quads.append(replace(quad, light=np.ascontiguousarray(smooth, np.float32)))
    return World(tuple(quads), world.sky, world.name)


def _grid(size_m: tuple[float, float], texel_m: float) -> tuple[int, int]:
    """Rows and columns of the light on a rectangle."""
    columns, rows = (int(np.clip(round(side / texel_m), 2, 400)) for side in size_m)
    return rows, columns


def _openness(
    world: World, points: Array, normal: Array, near_m: float, rng: np.random.Generator
) -> Floats:
    """(N,) 1 in the open, less in corners and under furniture (ambient occlusion)."""
    directions = rng.standard_normal((24, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    slant = directions @ normal
    directions *= np.sign(slant)[:, None]
    slant = np.abs(slant)
    start = np.repeat(points[None], len(directions), 0)
    end = start + near_m * directions[:, None]
    free = ~world.blocked(start.reshape(-1, 3), end.reshape(-1, 3)).reshape(start.shape[:2])
    share = (slant[:, None] * free).sum(0) / slant.sum()
    return (0.35 + 0.65 * share).astype(np.float32)


def _direct(
    world: World,
    points: Array,
    normal: Array,
    lamp: Lamp,
    samples: int,
    rng: np.random.Generator,
) -> Floats:
    """(N,) light of one lamp, with soft shadows cast by solid bodies."""
    total = np.zeros(len(points), np.float32)
    for _ in range(samples):
        source = np.array(lamp.position) + rng.uniform(-1, 1, 3) * lamp.radius_m
        toward = source - points
        distance = np.linalg.norm(toward, axis=1)
        slant = toward @ normal / np.maximum(distance, 1e-6)
        lit = np.flatnonzero(slant > 0.0)
        # Shadows of things farther away than this are not looked for.
        reach = np.minimum(1.0, _SHADOW_M / np.maximum(distance[lit], 1e-6))
        end = points[lit] + reach[:, None] * toward[lit]
        # A ray that meets a closed body enters it somewhere: its faces turned from the lamp
        # suffice.
        away = (world.normals @ (source - points.mean(0)) < 0.0) & (world.solids >= 0)
        free = ~world.blocked(points[lit], end, away if _is_far(lamp) else world.solids >= 0)
        falloff = 1.0 if _is_far(lamp) else 2.0 / (1.0 + (distance[lit] / lamp.reach_m) ** 2)
        total[lit] += (lamp.strength / samples * slant[lit] * free * falloff).astype(np.float32)
    return total


def _is_far(lamp: Lamp) -> bool:
    return not np.isfinite(lamp.reach_m)
