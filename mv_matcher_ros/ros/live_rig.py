# SPDX-License-Identifier: Apache-2.0
"""The cameras of the live node: from camera_info and TF, or from a calibration file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Array, Camera, Rig
from mv_matcher_ros.errors import CalibrationError, SettingsError
from mv_matcher_ros.files.calibration import read_calibration
from mv_matcher_ros.geometry.depth_registration import DepthRegistration
from mv_matcher_ros.ros.calibration import is_rectified, rig_from_messages
from mv_matcher_ros.ros.inputs import Inputs, topics_of
from mv_matcher_ros.ros.mounting import CameraMounts


@dataclass(frozen=True)
class KnownRig:
    """The cameras, the name of the frame that they are mounted on, and how depth is registered."""

    rig: Rig
    body: str
    register: DepthRegistration | None = None


class LiveRig:
    """Waits until the calibration, and where the cameras sit, are known.

    Args:
        node: rclpy node that is spun by another thread than the one that asks.
        settings: of it.

    Raises:
        SettingsError: several stereo pairs, and nothing says where they are.
        CalibrationError: the calibration file cannot be read, or has too few cameras.
        MvMatcherError: TF is needed, and tf2_msgs is not installed.
    """

    def __init__(self, node: Any, settings: Settings) -> None:
        self._node, self._settings = node, settings
        ros = settings.ros
        self._from_file = _cameras_of_file(settings) if ros.calibration_file else None
        self._mounts: CameraMounts | None = None
        self._between: CameraMounts | None = None  # the two cameras of RGB-D
        if ros.extrinsics_from_tf and ros.frames.body:
            self._mounts = CameraMounts(node, ros.frames.body, ros.tf_timeout_s)
        elif settings.sensor == 'stereo' and settings.stereo.pairs > 1 and not self._from_file:
            raise SettingsError(
                f'stereo.pairs is {settings.stereo.pairs}: how the pairs stand to each other '
                'comes from TF or a file: set ros.extrinsics_from_tf (and ros.frames.body), or '
                'ros.calibration_file'
            )

    def look(self, inputs: Inputs) -> KnownRig | str:
        """The cameras, or what to complain about; empty while it is early.

        Raises:
            CalibrationError: what the topics say is no calibration.
        """
        if any(info is None for info in inputs.camera_infos):
            return ''
        by_file = self._from_file is not None
        known = self._by_file(inputs) if by_file else self._by_topics(inputs)
        if isinstance(known, str) or self._settings.sensor != 'rgbd':
            return known
        return known if self._settings.ros.depth_registered else self._with_depth(known, inputs)

    def _with_depth(self, known: KnownRig, inputs: Inputs) -> KnownRig | str:
        """Where the depth camera is, seen from the other one, says TF."""
        info, topic = inputs.camera_infos[-1], inputs.infos[-1].topic
        optical = inputs.images[0].frame or inputs.camera_infos[0].header.frame_id
        if self._between is None:
            self._between = CameraMounts(self._node, optical, self._settings.ros.tf_timeout_s)
        found = self._between.look_up([info.header.frame_id])
        if isinstance(found, str):
            return found
        (depth_camera,) = rig_from_messages(
            [info], [topic], rectified=self._rectified(inputs.images[1].topic)
        ).cameras
        register = DepthRegistration(depth_camera, known.rig.cameras[0], found[0])
        return replace(known, register=register)

    def _by_topics(self, inputs: Inputs) -> KnownRig | str:
        infos = list(inputs.camera_infos)
        if self._settings.sensor == 'rgbd':
            infos = infos[:1]  # behind it may be that of the depth camera
        frames = [info.header.frame_id or 'camera' for info in infos]
        mounts: list[Array] | None = None
        if self._mounts is not None:
            found = self._mounts.look_up(frames)
            if isinstance(found, str):
                return found
            mounts = found
        rig = rig_from_messages(
            infos,
            [stream.topic for stream in inputs.infos[: len(infos)]],
            rectified=self._rectified(inputs.images[0].topic),
            body_from_cameras=mounts,
        )
        return KnownRig(rig, frames[0] if mounts is None else self._settings.ros.frames.body)

    def _rectified(self, topic: str) -> bool:
        said = self._settings.ros.rectified
        return is_rectified(topic) if said == 'auto' else said == 'always'

    def _by_file(self, inputs: Inputs) -> KnownRig | str:
        """The cameras of a file; where the first one sits may come from TF."""
        assert self._from_file is not None
        rig = self._from_file
        if not inputs.images[0].count:
            return ''
        optical = inputs.images[0].frame or 'camera'
        if self._mounts is None:
            named = rig.body_axes == 'rep103' and self._settings.ros.frames.body
            return KnownRig(rig, named or optical)
        found = self._mounts.look_up([optical])
        if isinstance(found, str):
            return found
        moved = found[0] @ np.linalg.inv(rig.cameras[0].body_from_camera)
        cameras = tuple(_mounted(c, moved @ c.body_from_camera) for c in rig.cameras)
        return KnownRig(Rig(cameras, 'rep103'), self._settings.ros.frames.body)

    def close(self) -> None:
        """Listen to TF no more."""
        for mounts in (self._mounts, self._between):
            if mounts is not None:
                mounts.close()


def _cameras_of_file(settings: Settings) -> Rig:
    path = settings.ros.calibration_file
    rig = read_calibration([part.strip() for part in path.split(',')]).rig
    wanted = len(topics_of(settings.sensor, settings.stereo.pairs)[1])
    if len(rig.cameras) < wanted:
        raise CalibrationError(
            f'{path}: {len(rig.cameras)} cameras, {settings.sensor} needs {wanted}'
        )
    return replace(rig, cameras=rig.cameras[:wanted])


def _mounted(camera: Camera, body_from_camera: Array) -> Camera:
    return replace(camera, body_from_camera=body_from_camera)
