# SPDX-License-Identifier: Apache-2.0
"""Ready recordings: a world, a path, a rig and the effects of a decent camera in each."""

from __future__ import annotations

from pathlib import Path as FilePath

import numpy as np

from mv_matcher_ros.datatypes import REP103_FROM_OPTICAL, Camera, Rig, Sensor
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.worlds import scenes
from mv_matcher_ros.worlds.effects import Effects
from mv_matcher_ros.worlds.planes import World
from mv_matcher_ros.worlds.recording import SyntheticSource
from mv_matcher_ros.worlds.trajectories import (
    Loop,
    Path,
    Shaken,
    Straight,
    pose_matrices,
    rectangle,
)

# Overlap at the end of a loop, as a share of a round: enough frames to recognise the start.
_OVERLAP = 0.06
# Where stereo pairs look (degrees to the left) and where their left cameras sit in the body,
# metres: ahead, behind, to the left and to the right, as on a mobile base.
_PAIRS = (
    (0.0, (0.0, 0.0, 0.0)),
    (180.0, (-0.4, 0.0, 0.0)),
    (90.0, (-0.2, 0.2, 0.0)),
    (-90.0, (-0.2, -0.2, 0.0)),
)


def make_rig(
    sensor: Sensor = 'mono',
    size: tuple[int, int] = (640, 480),
    baseline_m: float = 0.12,
    field_of_view_deg: float = 78.0,
    body_axes: str = 'rep103',
    pairs: int = 1,
) -> Rig:
    """A rig of pinhole cameras that look ahead; stereo is left, then right.

    Args:
        sensor: how many cameras.
        size: width and height in pixels.
        baseline_m: distance of the stereo cameras.
        field_of_view_deg: horizontal.
        body_axes: `rep103` mounts them on a body with axes of its own, `optical` makes the first
            one the body.
        pairs: of stereo cameras: more of them look back, to the left, to the right.

    Raises:
        SourceError: a baseline or a field of view that no camera has, or more than four pairs.
    """
    if not 1 <= pairs <= len(_PAIRS) or (pairs > 1 and sensor != 'stereo'):
        raise SourceError(f'rig: {pairs} pairs of {sensor} cameras (want 1..4 of stereo ones)')
    if not baseline_m > 0 or not 1.0 < field_of_view_deg < 170.0:
        raise SourceError(
            f'rig: baseline {baseline_m:g} m (want > 0), '
            f'field of view {field_of_view_deg:g} deg (want 1..170)'
        )
    width, height = size
    focal = float(0.5 * width / np.tan(np.deg2rad(field_of_view_deg) / 2))
    intrinsics = (focal, focal, 0.5 * (width - 1), 0.5 * (height - 1))
    first = REP103_FROM_OPTICAL if body_axes == 'rep103' else np.eye(4)
    shift = np.eye(4)
    shift[0, 3] = baseline_m
    cameras: list[Camera] = []
    for number, (yaw_deg, place) in enumerate(_PAIRS[:pairs]):
        mount, after = first, ''
        if number > 0:
            turn = pose_matrices(np.array([place]), np.deg2rad([[0.0, 0.0, yaw_deg]]))[0]
            mount = first @ REP103_FROM_OPTICAL.T @ turn @ REP103_FROM_OPTICAL
            after = f'_{number + 1}'
        for name, pose in (('left', mount), ('right', mount @ shift)):
            camera = Camera(width, height, intrinsics, body_from_camera=pose, name=name + after)
            cameras.append(camera)
    chosen = cameras if sensor == 'stereo' else cameras[:1]
    return Rig(tuple(chosen), 'rep103' if body_axes == 'rep103' else 'optical')


def _source(
    world: World,
    path: Path,
    sensor: Sensor,
    frames: int,
    size: tuple[int, int],
    seed: int,
    rate_hz: float,
    baseline_m: float,
    effects: Effects | None,
    name: str,
    pairs: int = 1,
) -> SyntheticSource:
    rig = make_rig(sensor, size, baseline_m, pairs=pairs)
    chosen = Effects() if effects is None else effects
    return SyntheticSource(world, path, rig, sensor, rate_hz, frames, chosen, seed, name=name)


def _loop_frames(loop: Loop, rate_hz: float, frames: int | None) -> int:
    """`frames`, or as many as one round and a little more take."""
    return frames or int(np.ceil((1.0 + _OVERLAP) * loop.round_s * rate_hz))


def room_loop(
    sensor: Sensor = 'stereo',
    frames: int | None = None,
    size: tuple[int, int] = (640, 480),
    seed: int = 0,
    *,
    speed_m_s: float = 1.0,
    rate_hz: float = 20.0,
    effects: Effects | None = None,
    photos: FilePath | str | None = None,
    pairs: int = 1,
) -> SyntheticSource:
    """Carried once around a furnished room, looking ahead, with the unrest of a hand.

    Args:
        sensor: mono, stereo or rgbd.
        frames: how many; None for one round and a little overlap.
        size: width and height in pixels.
        seed: of world, unrest and noise.
        speed_m_s: walking speed.
        rate_hz: frames per second.
        effects: camera; None for the default one.
        photos: folder of images to hang up.
        pairs: of stereo cameras, see `make_rig`.
    """
    loop = Loop.through(rectangle(2.05, 1.4, 1.1), 1.35, speed_m_s)
    path = Shaken(loop, 0.012, 0.02, seed)
    count = _loop_frames(loop, rate_hz, frames)
    world = scenes.room(seed, photos)
    return _source(
        world, path, sensor, count, size, seed, rate_hz, 0.12, effects, 'room_loop', pairs
    )


def corridor_loop(
    sensor: Sensor = 'stereo',
    frames: int | None = None,
    size: tuple[int, int] = (640, 480),
    seed: int = 0,
    *,
    speed_m_s: float = 1.3,
    rate_hz: float = 15.0,
    effects: Effects | None = None,
    photos: FilePath | str | None = None,
    pairs: int = 1,
) -> SyntheticSource:
    """Along a corridor with four turns back to the start; arguments as in `room_loop`."""
    mid_x, mid_y = (0.5 * (side - scenes.CORRIDOR_WIDTH_M) for side in scenes.CORRIDOR_M)
    loop = Loop.through(rectangle(mid_x, mid_y, 1.1), 1.2, speed_m_s)
    path = Shaken(loop, 0.01, 0.012, seed)
    count = _loop_frames(loop, rate_hz, frames)
    world = scenes.corridor(seed, photos)
    return _source(
        world, path, sensor, count, size, seed, rate_hz, 0.12, effects, 'corridor_loop', pairs
    )


def street_drive(
    sensor: Sensor = 'stereo',
    frames: int | None = None,
    size: tuple[int, int] = (640, 480),
    seed: int = 0,
    *,
    speed_m_s: float = 7.0,
    rate_hz: float = 10.0,
    effects: Effects | None = None,
    photos: FilePath | str | None = None,
    pairs: int = 1,
) -> SyntheticSource:
    """Once around a block of houses by car; arguments as in `room_loop`, stereo baseline 0.5 m."""
    half_x, half_y = (0.5 * (side + scenes.STREET_WIDTH_M) for side in scenes.BLOCK_M)
    loop = Loop.through(rectangle(half_x, half_y, 6.0), 1.6, speed_m_s)
    path = Shaken(loop, 0.01, 0.004, seed, (0.5, 2.5))
    count = _loop_frames(loop, rate_hz, frames)
    world = scenes.street(seed, photos)
    return _source(
        world, path, sensor, count, size, seed, rate_hz, 0.5, effects, 'street_drive', pairs
    )


def creep(
    sensor: Sensor = 'stereo',
    frames: int = 100,
    size: tuple[int, int] = (640, 480),
    seed: int = 0,
    *,
    step_m: float = 0.002,
    rate_hz: float = 20.0,
    effects: Effects | None = None,
) -> SyntheticSource:
    """Straight through the room by `step_m` a frame: too slow for a careless motion gate."""
    heading = 0.25
    velocity = step_m * rate_hz * np.array((np.cos(heading), np.sin(heading), 0.0))
    path = Straight(
        (-2.2, -1.5, 1.35), (0.0, 0.0, heading), (float(velocity[0]), float(velocity[1]), 0.0)
    )
    world = scenes.room(seed)
    return _source(world, path, sensor, frames, size, seed, rate_hz, 0.12, effects, 'creep')


def standing_still(
    sensor: Sensor = 'stereo',
    frames: int = 100,
    size: tuple[int, int] = (640, 480),
    seed: int = 0,
    *,
    rate_hz: float = 20.0,
    effects: Effects | None = None,
) -> SyntheticSource:
    """A camera on a tripod in the room: nothing moves but noise and brightness."""
    path = Straight((-2.2, -1.5, 1.35), (0.0, 0.0, 0.25))
    world = scenes.room(seed)
    return _source(
        world, path, sensor, frames, size, seed, rate_hz, 0.12, effects, 'standing_still'
    )


def pure_rotation(
    sensor: Sensor = 'mono',
    frames: int = 100,
    size: tuple[int, int] = (640, 480),
    seed: int = 0,
    *,
    rate_rad_s: float = 0.4,
    rate_hz: float = 20.0,
    effects: Effects | None = None,
) -> SyntheticSource:
    """A turn on the spot about the first camera: no parallax, so no depth for one camera."""
    path = Straight((0.0, -1.2, 1.35), rates=(0.0, 0.0, rate_rad_s))
    world = scenes.room(seed)
    return _source(
        world, path, sensor, frames, size, seed, rate_hz, 0.12, effects, 'pure_rotation'
    )


def handheld(
    sensor: Sensor = 'mono',
    frames: int = 100,
    size: tuple[int, int] = (640, 480),
    seed: int = 0,
    *,
    translation_m: float = 0.06,
    rotation_rad: float = 0.06,
    rate_hz: float = 20.0,
    effects: Effects | None = None,
) -> SyntheticSource:
    """Held in a restless hand before a wall of the room."""
    path = Shaken(Straight((0.6, -0.9, 1.4), (0.0, 0.0, 1.9)), translation_m, rotation_rad, seed)
    world = scenes.room(seed)
    return _source(world, path, sensor, frames, size, seed, rate_hz, 0.12, effects, 'handheld')
