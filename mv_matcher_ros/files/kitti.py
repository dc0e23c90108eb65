# SPDX-License-Identifier: Apache-2.0
"""KITTI odometry folders: calib.txt, image_0 [image_1] or image_2 [image_3], times.txt, poses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mv_matcher_ros.datatypes import Array, Camera, Rig, Sensor, Trajectory
from mv_matcher_ros.errors import CalibrationError, SourceError
from mv_matcher_ros.files.calibration import Calibration
from mv_matcher_ros.files.image_list import ImageList, StampedFiles, first_image_size
from mv_matcher_ros.files.images import image_files
from mv_matcher_ros.files.recording import Masks, choose_sensor
from mv_matcher_ros.files.rotations import rigid_transform
from mv_matcher_ros.files.text import read_lines
from mv_matcher_ros.files.trajectory import read_kitti_poses, read_stamps

# Grey cameras first: they are the sharper ones of this car, and what the benchmark's poses belong
# to.
PAIRS = (('image_0', 'image_1'), ('image_2', 'image_3'))
LOOKED_FOR = 'calib.txt with image_0 or image_2'


def is_kitti(folder: Path) -> bool:
    """Whether this looks like a sequence of KITTI odometry."""
    return (folder / 'calib.txt').is_file() and any((folder / left).is_dir() for left, _ in PAIRS)


def open_kitti(
    folder: Path,
    sensor: Sensor | None = None,
    calibration: Calibration | None = None,
    masks: Masks = None,
) -> ImageList:
    """A KITTI odometry sequence; the body is camera 0, as in its poses.

    Args:
        folder: sequence folder.
        sensor: mono or stereo; default stereo where the right images are.
        calibration: used instead of calib.txt.
        masks: as for `Recording`.

    Raises:
        SourceError: images or stamps are missing or do not fit together.
        CalibrationError: calib.txt lacks a camera.
    """
    name = str(folder)
    left_name, right_name = next((p for p in PAIRS if image_files(folder / p[0])), ('', ''))
    if not left_name:
        raise SourceError(f'{name}: no images in {" or ".join(left for left, _ in PAIRS)}')
    right_files = image_files(folder / right_name)
    missing_right = '' if right_files else f'no images in {right_name}'
    available: dict[Sensor, str] = {'mono': '', 'stereo': missing_right, 'rgbd': 'KITTI has none'}
    chosen = choose_sensor(sensor, available, name)
    left_files = image_files(folder / left_name)
    stamps = [int(stamp) for stamp in read_stamps(folder / 'times.txt')]
    images = [_stamped(folder / left_name, left_files, stamps)]
    names = [left_name]
    if chosen == 'stereo':
        images.append(_stamped(folder / right_name, right_files, stamps))
        names.append(right_name)
    if calibration is None:
        size = first_image_size(left_files, name)
        projections = _projections(folder / 'calib.txt', [n.removeprefix('image_') for n in names])
        cameras = (_camera(p, size, n) for p, n in zip(projections, names, strict=True))
        rig = Rig(tuple(cameras))
    else:
        rig = Rig(calibration.rig.cameras[: len(names)], calibration.rig.body_axes)
    return ImageList(name, chosen, rig, images, _truth(folder, stamps), masks=masks)


def _stamped(folder: Path, files: Sequence[Path], stamps: Sequence[int]) -> StampedFiles:
    """Files with the stamps of their numbers; row i of times.txt belongs to image i."""
    if len(files) == len(stamps):
        return StampedFiles(stamps, files)
    numbers = [int(file.stem) if file.stem.isdecimal() else -1 for file in files]
    if min(numbers) < 0 or max(numbers) >= len(stamps):
        raise SourceError(f'{folder}: {len(files)} images, but times.txt has {len(stamps)} rows')
    return StampedFiles([stamps[number] for number in numbers], files)


def _projections(path: Path, numbers: Sequence[str]) -> list[Array]:
    """(3, 4) projection matrices P<number> of calib.txt."""
    rows: dict[str, Array] = {}
    for line_number, line in enumerate(read_lines(path), start=1):
        key, _, values = line.partition(':')
        try:
            rows[key.strip()] = np.array([float(v) for v in values.split()])
        except ValueError as error:
            raise CalibrationError(f'{path}:{line_number}: {error}') from None
    found = []
    for number in numbers:
        row = rows.get(f'P{number}')
        if row is None:
            raise CalibrationError(f'{path}: missing key "P{number}"')
        if len(row) != 12:
            raise CalibrationError(f'{path}: P{number} has {len(row)} values, not 12')
        found.append(row.reshape(3, 4))
    return found


def _camera(projection: Array, size: tuple[int, int], name: str) -> Camera:
    """Camera of P = K [I | t]: t is the position of camera 0 in this camera."""
    k = projection[:, :3]
    if k[0, 0] <= 0 or k[1, 1] <= 0:
        raise CalibrationError(f'{name}: calib.txt has fx = {k[0, 0]:g}, not calibrated')
    position = -np.linalg.solve(k, projection[:, 3])
    intrinsics = (float(k[0, 0]), float(k[1, 1]), float(k[0, 2]), float(k[1, 2]))
    pose = rigid_transform(np.eye(3), position)
    return Camera(size[0], size[1], intrinsics, body_from_camera=pose, name=name)


def _truth(folder: Path, stamps: Sequence[int]) -> Trajectory | None:
    """Poses beside the images, or in `poses` as published; test sequences have none."""
    published = folder.parent.parent / 'poses' / f'{folder.name}.txt'
    for path in (folder / 'poses.txt', published):
        if path.is_file():
            return read_kitti_poses(path, stamps)
    return None
