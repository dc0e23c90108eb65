# SPDX-License-Identifier: Apache-2.0
"""Worlds as places to take pictures in: where a camera may be, and what it sees there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import REP103_FROM_OPTICAL, Array, Camera
from mv_matcher_ros.worlds import presets
from mv_matcher_ros.worlds.lighting import Lamp
from mv_matcher_ros.worlds.mesh import MeshWorld
from mv_matcher_ros.worlds.mesh_rendering import Shading, render_mesh
from mv_matcher_ros.worlds.mipmaps import Floats, Pixels
from mv_matcher_ros.worlds.photo_planes import BACKDROP_M, photo_planes
from mv_matcher_ros.worlds.planes import World
from mv_matcher_ros.worlds.rendering import render
from mv_matcher_ros.worlds.trajectories import Path, pose_matrices

# Nothing may be nearer to a camera than this.
CLEARANCE_M = 0.3
# A camera in a room sees something within this distance all around.
_NARROW_M = 0.9
_AROUND = 16


class Place(Protocol):
    """A world in which tuples of views are taken."""

    @property
    def name(self) -> str: ...

    def look(
        self, camera: Camera, world_from_camera: Array, moment: float = 0.0, smooth: bool = True
    ) -> tuple[Pixels, Floats]:
        """Grey image and depth (metres, 0: nothing) at a moment between 0 and 1."""
        ...

    def starts(self, camera: Camera, count: int, rng: np.random.Generator) -> Array:
        """(N, 4, 4) poses world_from_camera that may be good ones, at most `count`."""
        ...

    def blocked(self, start: Array, end: Array) -> NDArray[np.bool_]:
        """(N,) whether something lies between points, (N, 3) metres."""
        ...

    def lit(self, camera: Camera, world_from_camera: Array, rng: np.random.Generator) -> Place:
        """The same place in a light of its own around a pose."""
        ...


def is_clear(place: Place, position: Array) -> bool:
    """Whether nothing is within `CLEARANCE_M` of a camera at (3,) metres."""
    steps = np.stack(np.meshgrid(*[(-1.0, 0.0, 1.0)] * 3), -1).reshape(-1, 3)
    steps = steps[np.abs(steps).sum(1) > 0]
    steps *= CLEARANCE_M / np.linalg.norm(steps, axis=1, keepdims=True)
    start = np.broadcast_to(position, steps.shape)
    return not place.blocked(start, start + steps).any()


@dataclass(frozen=True)
class MeshPlace:
    """A mesh world: rooms with floors to stand on, lamps that may move."""

    world: MeshWorld
    shading: Shading = field(default_factory=Shading)

    @property
    def name(self) -> str:
        """The world's."""
        return self.world.name

    def look(
        self, camera: Camera, world_from_camera: Array, moment: float = 0.0, smooth: bool = True
    ) -> tuple[Pixels, Floats]:
        """See `Place`."""
        return render_mesh(self.world, camera, world_from_camera, self.shading.at(moment), smooth)

    def starts(self, camera: Camera, count: int, rng: np.random.Generator) -> Array:
        """Poses above a floor with room around, looking about level."""
        origin = rng.uniform(self.world.bounds[0], self.world.bounds[1], (8 * count, 3))
        down = np.tile((0.0, 0.0, -1.0), (len(origin), 1))
        hits = self.world.cast(origin, down)
        floor = np.flatnonzero(hits.triangle >= 0)
        origin = origin[floor]
        origin[:, 2] += rng.uniform(0.5, 1.9, len(floor)) - hits.distance[floor]
        yaw = 2 * np.pi * np.arange(_AROUND) / _AROUND
        level = np.stack([np.cos(yaw), np.sin(yaw), np.zeros(_AROUND)], 1)
        around = self.world.cast(
            np.repeat(origin, _AROUND, 0), np.tile(level, (len(origin), 1))
        ).distance.reshape(-1, _AROUND)
        # Out of doors most rays leave the world; inside a cupboard all are short.
        good = (np.isfinite(around).mean(1) > 0.8) & (around.min(1) > CLEARANCE_M)
        good &= np.median(around, axis=1) > _NARROW_M
        origin = origin[good][:count]
        return _poses(origin, rng.uniform(0, 2 * np.pi, len(origin)), rng)

    def blocked(self, start: Array, end: Array) -> NDArray[np.bool_]:
        """See `Place`."""
        return self.world.blocked(start, end)

    def lit(self, camera: Camera, world_from_camera: Array, rng: np.random.Generator) -> MeshPlace:
        """One or two lamps above the camera, in half of the cases moving; exposed to fit."""
        position = world_from_camera[:3, 3]
        lamps = []
        for _ in range(int(rng.integers(1, 3))):
            direction = rng.normal(0, 1, 3) * (1.0, 1.0, 0.5) + (0.0, 0.0, 0.6)
            direction /= np.linalg.norm(direction)
            reach = float(min(self.world.cast(position, direction[None]).distance[0], 4.0))
            x, y, z = position + rng.uniform(0.4, 0.9) * reach * direction
            strength, falls = rng.uniform((0.2, 1.5), (0.7, 4.0))
            lamps.append(Lamp((float(x), float(y), float(z)), float(strength), float(falls)))
        drift = rng.normal(0, 0.4, 3) * (rng.random() < 0.5)
        shading = Shading(
            float(rng.uniform(0.3, 0.7)), tuple(lamps), (drift[0], drift[1], drift[2])
        )
        image, _ = replace(self, shading=shading).look(camera, world_from_camera, 0.5, False)
        bright = max(float(np.percentile(image, 97)), 1.0)
        wanted = min(rng.uniform(80, 135) / max(float(image.mean()), 1.0), 250.0 / bright)
        return replace(self, shading=replace(shading, gain=float(np.clip(wanted, 0.3, 4.0))))


Baked = TypeVar('Baked', bound='BakedPlace')


@dataclass(frozen=True)
class BakedPlace:
    """A flat world whose light is part of its surfaces.

    Attributes:
        world: what is seen.
    """

    world: World

    @property
    def name(self) -> str:
        """The world's."""
        return self.world.name

    def look(
        self, camera: Camera, world_from_camera: Array, moment: float = 0.0, smooth: bool = True
    ) -> tuple[Pixels, Floats]:
        """See `Place`."""
        return render(self.world, camera, world_from_camera)

    def blocked(self, start: Array, end: Array) -> NDArray[np.bool_]:
        """See `Place`."""
        return self.world.blocked(start, end)

    def lit(
        self: Baked, camera: Camera, world_from_camera: Array, rng: np.random.Generator
    ) -> Baked:
        """The same place."""
        return self


@dataclass(frozen=True)
class RectanglePlace(BakedPlace):
    """A world of rectangles with baked light, and a path through it.

    Attributes:
        path: where a body may be at `times_s`.
        times_s: from and to.
        turn_rad: how far to the side a camera looks at most.
    """

    path: Path
    times_s: tuple[float, float]
    turn_rad: float

    def starts(self, camera: Camera, count: int, rng: np.random.Generator) -> Array:
        """Poses near the path."""
        body = self.path(rng.uniform(*self.times_s, count))
        heading = np.arctan2(body[:, 1, 0], body[:, 0, 0])
        position = body[:, :3, 3] + rng.normal(0, 0.15, (count, 3))
        return _poses(position, heading + rng.uniform(-1, 1, count) * self.turn_rad, rng)


@dataclass(frozen=True)
class PhotoPlace(BakedPlace):
    """Photos as flat worlds; cameras stand before the largest one."""

    def starts(self, camera: Camera, count: int, rng: np.random.Generator) -> Array:
        """Poses that see a part of the photo, at a small slant."""
        half = 0.5 * max(camera.height, camera.width * 0.75) / camera.focal_px
        distance = rng.uniform(0.45, 0.95, count) * 0.5 * BACKDROP_M / half
        side = (
            rng.uniform(-0.5, 0.5, (count, 2))
            * np.maximum(BACKDROP_M - 2 * half * distance, 0)[:, None]
        )
        position = np.column_stack([-distance, side])
        return _poses(position, rng.normal(0, 0.12, count), rng)

    def blocked(self, start: Array, end: Array) -> NDArray[np.bool_]:
        """Also by the endless wall that the photo hangs on."""
        return super().blocked(start, end) | (end[:, 0] > -CLEARANCE_M)


def room_place(seed: int, photos: str | None = None) -> RectanglePlace:
    """The room of the presets."""
    return _preset(presets.room_loop(seed=seed, photos=photos), np.pi)


def corridor_place(seed: int, photos: str | None = None) -> RectanglePlace:
    """The corridor of the presets."""
    return _preset(presets.corridor_loop(seed=seed, photos=photos), 0.9)


def street_place(seed: int, photos: str | None = None) -> RectanglePlace:
    """The street of the presets."""
    return _preset(presets.street_drive(seed=seed, photos=photos), 0.9)


def photo_place(photos: Sequence[Pixels], planes: int, rng: np.random.Generator) -> PhotoPlace:
    """`planes` photos, one behind the others."""
    return PhotoPlace(photo_planes(photos, planes, rng))


def _preset(source: presets.SyntheticSource, turn_rad: float) -> RectanglePlace:
    return RectanglePlace(source.world, source.path, (0.0, len(source) / source.rate_hz), turn_rad)


def _poses(position: Array, yaw: Array, rng: np.random.Generator) -> Array:
    """(N, 4, 4) world_from_camera of cameras that look along `yaw`, nearly level."""
    tilt = rng.normal(0, (0.06, 0.15), (len(yaw), 2))
    return pose_matrices(position, np.column_stack([tilt, yaw])) @ REP103_FROM_OPTICAL
