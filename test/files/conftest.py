# SPDX-License-Identifier: Apache-2.0
"""Small random recordings for the tests of files/."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest

from mv_matcher_ros.datatypes import Camera, Frame, Rig, Sensor, Trajectory, View
from mv_matcher_ros.files.rotations import matrix_from_quaternion, rigid_transform

WIDTH, HEIGHT = 48, 32
START_NS = 1_700_000_000_123_456_789  # not a whole number of anything a double could round to


@dataclass
class ListSource:
    """A source in memory."""

    sensor: Sensor
    rig: Rig
    frames: list[Frame]
    truth: Trajectory | None = None
    name: str = 'memory'
    faults: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[Frame]:
        return iter(self.frames)


def random_poses(rng: np.random.Generator, count: int) -> np.ndarray:
    """(N, 4, 4)."""
    rotations = matrix_from_quaternion(rng.normal(size=(count, 4)))
    return rigid_transform(rotations, rng.normal(size=(count, 3)))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def poses(rng: np.random.Generator) -> Callable[[int], np.ndarray]:
    return lambda count: random_poses(rng, count)


@pytest.fixture
def make_source(rng: np.random.Generator) -> Callable[..., ListSource]:
    """make_source(sensor, count, colour, rig, truth) → a source of random images 50 ms apart."""

    def make(
        sensor: Sensor = 'mono',
        count: int = 4,
        colour: bool = False,
        rig: Rig | None = None,
        truth: bool = False,
    ) -> ListSource:
        if rig is None:
            cameras = [Camera(WIDTH, HEIGHT, (40.0, 41.0, 23.5, 15.5), name='left')]
            if sensor == 'stereo':
                right = rigid_transform(np.eye(3), (0.25, 0.0, 0.0))
                intrinsics = cameras[0].intrinsics
                cameras.append(
                    Camera(WIDTH, HEIGHT, intrinsics, body_from_camera=right, name='right')
                )
            rig = Rig(tuple(cameras))
        shape = (HEIGHT, WIDTH, 3) if colour else (HEIGHT, WIDTH)
        frames = []
        for index in range(count):
            images = [rng.integers(0, 256, shape, dtype=np.uint8) for _ in rig.cameras]
            depth = None
            if sensor == 'rgbd':
                depth = rng.uniform(0.5, 5.0, (HEIGHT, WIDTH)).astype(np.float32)
                depth[rng.random((HEIGHT, WIDTH)) < 0.2] = 0.0
            views = tuple(View(image, depth) for image in images)
            frames.append(Frame(START_NS + index * 50_000_000, views, index))
        trajectory = None
        if truth:
            stamps = np.array([frame.stamp_ns for frame in frames], dtype=np.int64)
            trajectory = Trajectory(stamps, random_poses(rng, count))
        return ListSource(sensor, rig, frames, trajectory)

    return make


@pytest.fixture
def write_images(rng: np.random.Generator) -> Callable[..., list[np.ndarray]]:
    """write_images(folder, names, size=…, colour=…) → the images it wrote."""

    def write(
        folder: Path,
        names: list[str],
        size: tuple[int, int] = (WIDTH, HEIGHT),
        colour: bool = False,
    ) -> list[np.ndarray]:
        folder.mkdir(parents=True, exist_ok=True)
        shape = (size[1], size[0], 3) if colour else (size[1], size[0])
        images = [rng.integers(0, 256, shape, dtype=np.uint8) for _ in names]
        for name, image in zip(names, images, strict=True):
            assert cv2.imwrite(str(folder / name), image)
        return images

    return write


@pytest.fixture
def sequences() -> Path:
    """Root of the development sequences."""
    root = os.environ.get('MV_MATCHER_DATA')
    if not root or not (Path(root) / 'sequences').is_dir():
        pytest.skip('MV_MATCHER_DATA does not name the development data')
    return Path(root) / 'sequences'
