# SPDX-License-Identifier: Apache-2.0
"""sensor_msgs/CameraInfo of the live cameras to a rig, and a recording's rig to CameraInfo."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from mv_matcher_ros.datatypes import Array, Rig
from mv_matcher_ros.files.camera_info import (
    CameraInfo,
    camera_from_info,
    fields_from_cameras,
    info_from_message,
    left_from_right,
)

_RECTIFIED = re.compile(r'(^|_)rect(ified)?(_|$)')
_TRANSPORTS = ('compressed', 'compressedDepth')
# A baseline shorter than this was never measured.
_SHORTEST_BASELINE_M = 1e-4


def is_rectified(topic: str) -> bool:
    """Whether a topic carries rectified images: its last two names say so (`image_rect_color`).

    The name of a transport behind them (`/compressed`) does not count.
    """
    names = topic.strip('/').split('/')
    if names[-1] in _TRANSPORTS:
        names.pop()
    return any(_RECTIFIED.search(name) for name in names[-2:])


def rig_from_messages(
    messages: Sequence[Any],
    names: Sequence[str],
    *,
    rectified: bool = False,
    body_from_cameras: Sequence[Array] | None = None,
) -> Rig:
    """Rig of the cameras' CameraInfo messages.

    Args:
        messages: one sensor_msgs/CameraInfo (mono, RGB-D) or two (stereo: left, right), or two for
            each stereo pair.
        names: how errors call them, e.g. their topics.
        rectified: the images are rectified: P holds, and there is no distortion.
        body_from_cameras: mountings known from TF, (4, 4) each; None: the body is the first
            camera. Of several stereo pairs they must be.

    Returns:
        The rig. For the right camera of a pair the stereo calibration in the messages goes before
        TF: it was measured, a robot's description was drawn.

    Raises:
        CalibrationError: a camera is not calibrated (K[0] = 0), its distortion model is unknown,
            its size is zero, or the baseline is unknown or negative.
    """
    infos = [info_from_message(message) for message in messages]
    mounts: list[Array] = [np.eye(4) for _ in infos]
    if body_from_cameras is not None:
        mounts = [np.asarray(mount, np.float64) for mount in body_from_cameras]
    for info, name in zip(infos, names, strict=True):  # before anything is made of P
        camera_from_info(info, name, rectified)
    for right in range(1, len(infos), 2):
        left = right - 1
        apart_m = float(np.linalg.norm(mounts[right][:3, 3] - mounts[left][:3, 3]))
        if _has_baseline(infos[right]) or apart_m < _SHORTEST_BASELINE_M:
            pose = left_from_right(infos[left], infos[right], names[right], rectified)
            mounts[right] = mounts[left] @ pose
    cameras = tuple(
        camera_from_info(info, name, rectified, mount)
        for info, name, mount in zip(infos, names, mounts, strict=True)
    )
    return Rig(cameras, 'optical' if body_from_cameras is None else 'rep103')


def _has_baseline(info: CameraInfo) -> bool:
    return info.p is not None and bool(np.any(info.p[:2, 3]))


def messages_from_rig(rig: Rig) -> list[Any]:
    """CameraInfo messages (without header) from which `rig_from_messages` makes the same cameras.

    Where the first camera of a pair sits on the body is not part of them: that is TF's.
    """
    from sensor_msgs.msg import CameraInfo as CameraInfoMessage

    messages = []
    for fields in fields_from_cameras(rig.cameras):
        fields['d'] = [float(c) for c in fields['d']]
        messages.append(CameraInfoMessage(**fields))
    return messages
