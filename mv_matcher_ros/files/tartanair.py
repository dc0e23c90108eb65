# SPDX-License-Identifier: Apache-2.0
"""TartanAir folders, V1 (image_left, …) and V2 (image_lcam_front, pose_lcam_front.txt, …)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mv_matcher_ros.datatypes import Camera, Rig, Sensor
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.files.calibration import Calibration
from mv_matcher_ros.files.image_list import ImageList, StampedFiles
from mv_matcher_ros.files.images import image_files
from mv_matcher_ros.files.recording import Masks, choose_sensor
from mv_matcher_ros.files.rotations import rigid_transform
from mv_matcher_ros.files.trajectory import read_tartanair_poses

LOOKED_FOR = 'image_lcam_front or image_left with its pose file'
_BASELINE_M = 0.25
# The data set has no stamps; ten frames a second is what its authors' tools take.
_PERIOD_NS = 100_000_000


@dataclass(frozen=True)
class _Layout:
    left: str
    right: str
    depth: str
    poses: str
    size: tuple[int, int]
    intrinsics: tuple[float, float, float, float]


_LAYOUTS = (
    _Layout(
        'image_lcam_front',
        'image_rcam_front',
        'depth_lcam_front',
        'pose_lcam_front.txt',
        (640, 640),
        (320.0, 320.0, 320.0, 320.0),
    ),
    _Layout(
        'image_left',
        'image_right',
        'depth_left',
        'pose_left.txt',
        (640, 480),
        (320.0, 320.0, 320.0, 240.0),
    ),
)


def is_tartanair(folder: Path) -> bool:
    """Whether this looks like a TartanAir trajectory."""
    return _layout(folder) is not None


def open_tartanair(
    folder: Path,
    sensor: Sensor | None = None,
    calibration: Calibration | None = None,
    masks: Masks = None,
) -> ImageList:
    """A TartanAir trajectory; the body is the left camera's optical frame, the world has z up.

    Args:
        folder: trajectory folder.
        sensor: mono, stereo or rgbd; default the richest there.
        calibration: used instead of the data set's.
        masks: as for `Recording`.

    Raises:
        SourceError: images are missing, or not as many as poses.
    """
    name, layout = str(folder), _layout(folder)
    if layout is None:
        raise SourceError(f'{name}: not a TartanAir folder; looked for {LOOKED_FOR}')
    left, right = _stamped(folder / layout.left), _stamped(folder / layout.right)
    depths = _stamped(folder / layout.depth)
    available: dict[Sensor, str] = {
        'mono': '' if len(left) else f'no images in {layout.left}',
        'stereo': '' if len(left) and len(right) else f'no images in {layout.right}',
        'rgbd': '' if len(left) and len(depths) else f'no depth images in {layout.depth}',
    }
    chosen = choose_sensor(sensor, available, name)
    images = [left, right] if chosen == 'stereo' else [left]
    rig = calibration.rig if calibration else _rig(layout)
    rig = Rig(rig.cameras[: len(images)], rig.body_axes)
    poses = folder / layout.poses
    truth = read_tartanair_poses(poses, left.stamps_ns) if poses.is_file() else None
    depth_files = depths if chosen == 'rgbd' else None
    return ImageList(name, chosen, rig, images, truth, depth_files, masks=masks)


def _layout(folder: Path) -> _Layout | None:
    for layout in _LAYOUTS:
        if (folder / layout.left).is_dir() and (folder / layout.poses).is_file():
            return layout
    return None


def _rig(layout: _Layout) -> Rig:
    width, height = layout.size
    right_pose = rigid_transform(np.eye(3), (_BASELINE_M, 0.0, 0.0))
    return Rig(
        (
            Camera(width, height, layout.intrinsics, name=layout.left),
            Camera(
                width, height, layout.intrinsics, body_from_camera=right_pose, name=layout.right
            ),
        )
    )


def _stamped(folder: Path) -> StampedFiles:
    """Images (or V1's depth arrays), stamped by their number."""
    files = image_files(folder)
    if not files and folder.is_dir():
        files = sorted(folder.glob('*.npy'))
    stamps = []
    for position, file in enumerate(files):
        number = file.stem.split('_')[0]
        stamps.append((int(number) if number.isdecimal() else position) * _PERIOD_NS)
    return StampedFiles(stamps, files)
