# SPDX-License-Identifier: Apache-2.0
"""A walk twice round the free floor of a mesh world: the second time in another light, a little
beside the first, looking to the side. What loop closing is measured on.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import (
    REP103_FROM_OPTICAL,
    Array,
    Camera,
    Frame,
    Rig,
    Sensor,
    Trajectory,
    View,
)
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.worlds.lighting import Lamp
from mv_matcher_ros.worlds.mesh import MeshWorld
from mv_matcher_ros.worlds.mesh_rendering import Shading, render_mesh
from mv_matcher_ros.worlds.trajectories import Loop, Path, Shaken, pose_matrices

EYE_M = 1.4
SPEED_M_S = 0.8
# Width of the cells in which free floor is searched, and the room a walker needs around.
_CELL_M = 0.3
_CLEARANCE_M = 0.45
_AROUND = 16
# Every so many cells of a way become corners of the smooth curve, which rounds them off.
_CORNER_CELLS = 3
# Of the second round: where the body is beside the first, and where it looks.
_BESIDE_M = (0.0, 0.12, 0.1)
_TURNED_RAD = (0.0, 0.04, 0.25)
# Lamps of the second round hang this high, above some of the stops.
_LAMP_M = 2.2
_LAMPS = 4


@dataclass(frozen=True)
class Rounds:
    """Another path; from its second round on the body is displaced and turned."""

    path: Path
    round_s: float

    def __call__(self, time_s: Array) -> Array:
        poses = self.path(time_s)
        beside = pose_matrices(np.array([_BESIDE_M]), np.array([_TURNED_RAD]))[0]
        later = np.asarray(time_s, np.float64) >= self.round_s
        return np.where(later[:, None, None], poses @ beside, poses)


class MeshWalk:
    """Frames with depth along two rounds through a mesh world; satisfies `runner.Source`.

    Args:
        world: metres, z up, a floor at z = 0.
        camera: looks ahead; `body_from_camera` is not used.
        rate_hz: frames a second.
        stops: places between which the way leads, at least three.
        seed: of the stops and the unrest of the hand.

    Raises:
        SourceError: too little free floor for a walk.
    """

    sensor: Sensor = 'rgbd'

    def __init__(
        self, world: MeshWorld, camera: Camera, rate_hz: float = 4.0, stops: int = 6, seed: int = 0
    ) -> None:
        rng = np.random.default_rng(seed)
        corners, stopped = closed_way(world, stops, rng)
        loop = Loop.through(corners, EYE_M, SPEED_M_S)
        self.name, self.world = f'{world.name}_walk', world
        self.rig = Rig((camera,))
        self._camera, self.round_s = camera, loop.round_s
        self._path = Rounds(Shaken(loop, 0.015, 0.03, seed), loop.round_s)
        self._time_s = np.arange(0.0, 2.0 * loop.round_s, 1.0 / rate_hz)
        lamps = tuple(Lamp((float(x), float(y), _LAMP_M), 0.4, 2.5) for x, y in stopped[:_LAMPS])
        self._light = (Shading(), Shading(ambient=0.35, lamps=lamps, gain=0.8))
        self._stamps = np.round(1e9 * (1.0 + self._time_s)).astype(np.int64)
        self._poses = self._path(self._time_s) @ REP103_FROM_OPTICAL
        self.truth: Trajectory | None = Trajectory(self._stamps, self._poses)

    def __len__(self) -> int:
        return len(self._time_s)

    def frame(self, index: int) -> Frame:
        """Frame `index`, rendered."""
        light = self._light[int(self._time_s[index] >= self.round_s)]
        image, depth = render_mesh(self.world, self._camera, self._poses[index], light)
        return Frame(int(self._stamps[index]), (View(image, depth),), index)


def closed_way(world: MeshWorld, stops: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Corners (N, 2) of a closed way over free floor, and the (S, 2) stops on it, metres.

    Raises:
        SourceError: too little free floor.
    """
    free, origin = free_floor(world)
    room = _largest_part(free)
    cells = np.argwhere(room)
    if stops < 3 or len(cells) < 10 * stops:
        raise SourceError(
            f'{world.name}: {len(cells)} free cells of {_CELL_M} m are too few for a walk with '
            f'{stops} stops (at least 3); is it a building in metres, z up, its floor at 0?'
        )
    chosen = _far_apart(cells, stops, rng)
    way: list[tuple[int, int]] = []
    for begin, end in zip(chosen, np.roll(chosen, -1, 0), strict=True):
        way += _shortest(room, (int(begin[0]), int(begin[1])), (int(end[0]), int(end[1])))
    corners = origin + _CELL_M * np.array(way[::_CORNER_CELLS], np.float64)[:, ::-1]
    return corners, origin + _CELL_M * chosen[:, ::-1].astype(np.float64)


def free_floor(world: MeshWorld) -> tuple[NDArray[np.bool_], Array]:
    """(R, C) whether one can stand in a cell, rows along y, and (2,) where cell (0, 0) lies."""
    origin, far = world.bounds[0, :2], world.bounds[1, :2]
    columns, rows = (int(np.ceil(side / _CELL_M)) for side in far - origin)
    row, column = np.mgrid[:rows, :columns]
    at = np.stack([column, row], -1).reshape(-1, 2) * _CELL_M + origin
    eyes = np.column_stack([at, np.full(len(at), EYE_M)])
    down = world.cast(eyes, np.tile((0.0, 0.0, -1.0), (len(eyes), 1))).distance
    yaw = 2 * np.pi * np.arange(_AROUND) / _AROUND
    level = np.stack([np.cos(yaw), np.sin(yaw), np.zeros(_AROUND)], 1)
    around = world.cast(np.repeat(eyes, _AROUND, 0), np.tile(level, (len(eyes), 1))).distance
    around = around.reshape(-1, _AROUND)
    # Out of doors most rays leave the world.
    free = (np.isfinite(around).mean(1) > 0.8) & (around.min(1) > _CLEARANCE_M)
    free &= np.abs(down - EYE_M) < 0.1
    return free.reshape(rows, columns), origin


def _neighbours(free: NDArray[np.bool_], cell: tuple[int, int]) -> list[tuple[int, int]]:
    row, column = cell
    near = ((row + 1, column), (row, column + 1), (row - 1, column), (row, column - 1))
    rows, columns = free.shape
    return [(r, c) for r, c in near if 0 <= r < rows and 0 <= c < columns and free[r, c]]


def _reached(
    free: NDArray[np.bool_], begin: tuple[int, int]
) -> dict[tuple[int, int], tuple[int, int]]:
    """Every cell that can be reached, with the one before it on the shortest way."""
    before, queue = {begin: begin}, deque([begin])
    while queue:
        cell = queue.popleft()
        for near in _neighbours(free, cell):
            if near not in before:
                before[near] = cell
                queue.append(near)
    return before


def _largest_part(free: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The cells of the largest part that hangs together."""
    left, largest = free.copy(), np.zeros_like(free)
    while left.any():
        row, column = np.argwhere(left)[0]
        part = np.zeros_like(free)
        part[tuple(np.array(list(_reached(left, (int(row), int(column))))).T)] = True
        left &= ~part
        if part.sum() > largest.sum():
            largest = part
    return largest


def _far_apart(cells: NDArray[np.int64], count: int, rng: np.random.Generator) -> Array:
    """(count, 2) cells, each as far as can be from those before it, in order of their angle."""
    chosen = [cells[int(rng.integers(len(cells)))]]
    while len(chosen) < count:
        apart = np.linalg.norm(cells[:, None] - np.array(chosen)[None], axis=2).min(1)
        chosen.append(cells[int(apart.argmax())])
    found = np.array(chosen)
    dy, dx = (found - cells.mean(0)).T
    return found[np.argsort(np.arctan2(dy, dx))]


def _shortest(
    free: NDArray[np.bool_], begin: tuple[int, int], end: tuple[int, int]
) -> list[tuple[int, int]]:
    """Cells from `begin` to before `end`."""
    before = _reached(free, end)
    way, cell = [begin], begin
    while before[cell] != end and cell != end:
        cell = before[cell]
        way.append(cell)
    return way
