# SPDX-License-Identifier: Apache-2.0
"""A recording that is rendered while it is read: a source for the runner, with exact truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from mv_matcher_ros.datatypes import Array, Camera, Frame, Rig, Sensor, Trajectory, View
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.geometry.camera import camera_project
from mv_matcher_ros.worlds.effects import (
    PERFECT,
    Effects,
    cover,
    develop,
    measure_depth,
    to_linear,
)
from mv_matcher_ros.worlds.mipmaps import Floats, Pixels
from mv_matcher_ros.worlds.planes import World
from mv_matcher_ros.worlds.rendering import render, render_radiance
from mv_matcher_ros.worlds.trajectories import Path

# An exposure is rendered again for each such distance that the image moves in it: a pixel itself
# already averages one pixel.
_BLUR_STEP_PX = 1.5


class SyntheticSource:
    """Frames of a camera rig on a path through a world; satisfies `runner.Source`.

    Args:
        world: what is seen.
        path: where the body is at a time.
        rig: cameras with their `body_from_camera`; two for each stereo pair, else one.
        sensor: mono, stereo or rgbd (adds depth).
        rate_hz: frames per second.
        count: number of frames, with those that faults will drop.
        effects: blur, noise, exposure, faults.
        seed: of noise; the same seed gives the same bits.
        colour: BGR images instead of grey ones.
        start_ns: stamp of the first frame.
        name: of the recording.

    Raises:
        SourceError: the number of cameras does not fit the sensor, the rate is not positive, or
            no frames.
    """

    def __init__(
        self,
        world: World,
        path: Path,
        rig: Rig,
        sensor: Sensor = 'mono',
        rate_hz: float = 20.0,
        count: int = 100,
        effects: Effects = PERFECT,
        seed: int = 0,
        colour: bool = False,
        start_ns: int = 1_000_000_000,
        name: str = '',
    ) -> None:
        self.name = name or world.name
        wrong = len(rig.cameras) % 2 if sensor == 'stereo' else len(rig.cameras) != 1
        if wrong or not rig.cameras:
            wanted = 'pairs of cameras' if sensor == 'stereo' else '1 camera'
            raise SourceError(f'{self.name}: {sensor} wants {wanted}, not {len(rig.cameras)}')
        if not rate_hz > 0 or count < 1:
            raise SourceError(f'{self.name}: {count} frames at {rate_hz:g} Hz make no recording')
        self.world, self.path, self.rig, self.sensor = world, path, rig, sensor
        self.rate_hz, self.effects, self.seed, self.colour = rate_hz, effects, seed, colour
        self._time_s = np.arange(count) / rate_hz
        stamps = start_ns + np.round(self._time_s * 1e9).astype(np.int64)
        self.truth: Trajectory | None = Trajectory(stamps, path(self._time_s))
        self._stamps = stamps
        self._kept = [i for i in range(count) if effects.fault_at(i) != 'dropped']
        self._faults: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def faults(self) -> Mapping[str, int]:
        """Faults met so far in the current iteration, by name."""
        return dict(self._faults)

    def __iter__(self) -> Iterator[Frame]:
        self._faults = {}
        dropped = len(self._time_s) - len(self._kept)
        if dropped:
            self._faults['frame dropped'] = dropped
        for position, index in enumerate(self._kept):
            yield Frame(int(self._stamps[index]), self._views(index), position)

    def frame(self, index: int) -> Frame:
        """Frame `index` of the recording without reading those before it.

        Raises:
            SourceError: no such frame, or a fault drops it.
        """
        if index not in self._kept:
            raise SourceError(f'{self.name}: no frame {index} (of {len(self._time_s)})')
        return Frame(int(self._stamps[index]), self._views(index), self._kept.index(index))

    def _views(self, index: int) -> tuple[View, ...]:
        """What all cameras deliver at one frame."""
        kind = self.effects.fault_at(index)
        if kind is not None:
            label = {'black': 'black frame', 'covered': 'lens covered', 'frozen': 'frame frozen'}
            self._faults[label[kind]] = self._faults.get(label[kind], 0) + 1
        shown = index
        while shown > 0 and self.effects.fault_at(shown) == 'frozen':
            shown -= 1
        kind = self.effects.fault_at(shown)
        return tuple(self._view(shown, number, kind) for number in range(len(self.rig.cameras)))

    def _view(self, index: int, number: int, kind: str | None) -> View:
        camera = self.rig.cameras[number]
        # Every image has a generator of its own, so that frames do not depend on the order of
        # reading.
        rng = np.random.default_rng((self.seed, index, number))
        if kind == 'black':
            shape = (camera.height, camera.width) + ((3,) if self.colour else ())
            image, depth = np.zeros(shape, np.uint8), np.zeros(shape[:2], np.float32)
        else:
            image, depth = self._take(index, camera, rng)
        if kind == 'covered':
            image, depth = cover(image, rng), np.zeros_like(depth)
        image.setflags(write=False)
        depth.setflags(write=False)
        return View(image, depth if self.sensor == 'rgbd' else None)

    def _take(self, index: int, camera: Camera, rng: np.random.Generator) -> tuple[Pixels, Floats]:
        """Image and depth of one camera with all effects."""
        time_s, effects = float(self._time_s[index]), self.effects
        pose = self.path(np.array([time_s]))[0] @ camera.body_from_camera
        if effects == PERFECT:
            return render(self.world, camera, pose, self.colour)
        radiance, depth = render_radiance(self.world, camera, pose, self.colour)
        light = to_linear(radiance, effects.gamma)
        others = self._exposure_poses(time_s, camera, depth, pose)
        for other in others:
            more, _ = render_radiance(self.world, camera, other, self.colour)
            light += to_linear(more, effects.gamma)
        light /= np.float32(1 + len(others))
        image = develop(light, effects, time_s, rng)
        if effects.depth is not None and self.sensor == 'rgbd':
            depth = measure_depth(depth, effects.depth, rng)
        return image, depth

    def _exposure_poses(
        self, time_s: float, camera: Camera, depth: Floats, pose: Array
    ) -> Sequence[Array]:
        """Poses besides the middle one to average for motion blur; none if little moves."""
        effects = self.effects
        if effects.exposure_s <= 0 or effects.blur_samples < 3:
            return ()
        ends = self.path(time_s + effects.exposure_s * np.array([-0.5, 0.5]))
        begin, end = ends @ camera.body_from_camera
        moved = _motion_px(camera, depth, begin, end, pose)
        # An odd number of evenly spaced places has the stamp itself in the middle.
        half = min(round(0.5 * moved / _BLUR_STEP_PX), (effects.blur_samples - 1) // 2)
        if half < 1:
            return ()
        count = 2 * half + 1
        places = (np.arange(count) - half) / count
        places = places[places != 0.0]
        return list(self.path(time_s + effects.exposure_s * places) @ camera.body_from_camera)


def _motion_px(camera: Camera, depth: Floats, begin: Array, end: Array, middle: Array) -> float:
    """How far most of the image moves between two poses: 80th percentile on a grid, px."""
    rows = np.linspace(0, camera.height - 1, 8).astype(int)
    columns = np.linspace(0, camera.width - 1, 10).astype(int)
    z = depth[np.ix_(rows, columns)].astype(np.float64).ravel()
    z[z <= 0] = 1e4  # the sky only turns
    fx, fy, cx, cy = camera.intrinsics
    # For the length of a blur the ray of the undistorted camera is near enough.
    x, y = (a.ravel() for a in np.meshgrid((columns - cx) / fx, (rows - cy) / fy))
    points = np.stack([x * z, y * z, z], 1) @ middle[:3, :3].T + middle[:3, 3]
    seen, valid = [], np.ones(len(points), np.bool_)
    for pose in (begin, end):
        local = (points - pose[:3, 3]) @ pose[:3, :3]
        pixels, known = camera_project(camera, torch.from_numpy(local))
        seen.append(pixels.numpy())
        valid &= known.numpy()
    if not valid.any():
        return 0.0
    return float(np.percentile(np.linalg.norm(seen[1] - seen[0], axis=1)[valid], 80))
