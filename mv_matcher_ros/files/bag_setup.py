# SPDX-License-Identifier: Apache-2.0
"""What of a bag is read once, before the images: calibration, static transforms, ground truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mv_matcher_ros.datatypes import Array, Camera, Rig, Trajectory
from mv_matcher_ros.errors import CalibrationError, SourceError
from mv_matcher_ros.files.bag import BagReader
from mv_matcher_ros.files.bag_messages import TRUTH_FRAME
from mv_matcher_ros.files.bag_topics import (
    CAMERA_INFO,
    IMAGE_TYPES,
    TF_TYPES,
    Choice,
    info_topic,
    is_rectified,
    truth_topic,
)
from mv_matcher_ros.files.calibration import Calibration
from mv_matcher_ros.files.camera_info import (
    CameraInfo,
    camera_from_info,
    info_from_message,
    left_from_right,
)
from mv_matcher_ros.files.frame_tree import FrameTree
from mv_matcher_ros.files.image_messages import view_image
from mv_matcher_ros.files.rotations import (
    inverse_transform,
    matrix_from_quaternion,
    rigid_transform,
)

# Two sources of one number that differ by more than this are worth a word.
_TOLERANCE = 0.02


class BagSetup:
    """Reads the calibration and the ground truth of the chosen topics of a bag.

    Args:
        reader: the open bag.
        choice: its image topics.
        named: topics the user named, by key.
        notes: takes what the user should know of.
    """

    def __init__(
        self, reader: BagReader, choice: Choice, named: Mapping[str, str], notes: list[str]
    ) -> None:
        self._reader = reader
        self._choice = choice
        self._named = named
        self._notes = notes
        self._where = str(reader.path)
        self._tree = self._static_tree()
        self._camera_frame = ''

    def rig(self, calibration: Calibration | None, body_frame: str | None) -> Rig:
        """Cameras of the choice, mounted on `body_frame`, or on the first camera without one.

        Raises:
            CalibrationError: not calibrated, no baseline, or `body_frame` is not connected to the
                camera.
        """
        count = len(self._choice.cameras)
        if calibration is not None:
            rig = Rig(calibration.rig.cameras[:count], calibration.rig.body_axes)
            if len(rig.cameras) < count:
                there = 'one camera' if len(rig.cameras) == 1 else f'{len(rig.cameras)} cameras'
                wanted = 'two' if count == 2 else count
                raise CalibrationError(f'{self._where}: the calibration has {there}, not {wanted}')
            self._camera_frame = self._frame_of(self._choice.image)
        else:
            rig = self._rig_from_infos()
        if body_frame is None:
            return rig
        base = self._tree.lookup(body_frame, self._camera_frame)
        if base is None:
            raise CalibrationError(
                f'{self._where}: /tf_static does not connect "{body_frame}" and '
                f'"{self._camera_frame}" (frames there: {", ".join(self._tree.frames) or "none"})'
            )
        first_from_body = inverse_transform(rig.cameras[0].body_from_camera)
        cameras = (
            replace(camera, body_from_camera=base @ first_from_body @ camera.body_from_camera)
            for camera in rig.cameras
        )
        return Rig(tuple(cameras), 'rep103')

    def _rig_from_infos(self) -> Rig:
        choice = self._choice
        left = self._info(choice.image, 'camera_info')
        self._camera_frame = left.frame
        cameras = [camera_from_info(left, choice.image, is_rectified(choice.image))]
        if choice.right is not None:
            cameras += self._right_camera(left, choice.image, choice.right, '', np.eye(4))
        for number, (image, right) in enumerate(choice.further, start=2):
            info = self._info(image, f'camera_info_{number}')
            pose = self._tree.lookup(left.frame, info.frame)
            if pose is None:
                raise CalibrationError(
                    f'{self._where}: /tf_static does not connect "{left.frame}" and '
                    f'"{info.frame}": how the stereo pairs stand to each other is not known; '
                    'give a calibration file'
                )
            cameras.append(camera_from_info(info, image, is_rectified(image), pose))
            cameras += self._right_camera(info, image, right, f'_{number}', pose)
        if choice.depth is not None:
            self._check_registered(cameras[0], choice.depth)
        return Rig(tuple(cameras))

    def _right_camera(
        self, left: CameraInfo, left_topic: str, topic: str, number: str, body_from_left: Array
    ) -> list[Camera]:
        info = self._info(topic, f'right_camera_info{number}')
        pose = body_from_left @ self._right_pose(left, info, topic, is_rectified(left_topic))
        return [camera_from_info(info, topic, is_rectified(topic), pose)]

    def _right_pose(
        self, left: CameraInfo, right: CameraInfo, topic: str, rectified: bool
    ) -> Array:
        """Pose of the right camera in the left one, from camera_info, else from /tf_static."""
        known = self._tree.lookup(left.frame, right.frame)
        if known is not None and not np.any(np.abs(known[:3, 3]) > 1e-6):
            known = None  # both images carry the same frame
        try:
            pose = left_from_right(left, right, f'{self._where}: {topic}', rectified)
        except CalibrationError:
            swapped = right.p is not None and np.any(right.p[:2, 3] > 0)
            if known is None or swapped:
                raise
            return known
        if known is not None:
            baselines = [float(np.linalg.norm(p[:3, 3])) for p in (pose, known)]
            if abs(baselines[0] - baselines[1]) > _TOLERANCE * baselines[0]:
                self._notes.append(
                    f'baseline is {baselines[0]:.4f} m in camera_info (used), '
                    f'{baselines[1]:.4f} m in /tf_static'
                )
        return pose

    def _check_registered(self, camera: Camera, depth_topic: str) -> None:
        try:
            info = self._info(depth_topic, 'depth_camera_info')
        except CalibrationError:
            return  # depth images often come without
        focal = info.p[0, 0] if is_rectified(depth_topic) and info.p is not None else info.k[0, 0]
        if focal > 0 and abs(focal / camera.intrinsics[0] - 1.0) > _TOLERANCE:
            self._notes.append(
                f'depth seems not registered: its fx is {focal:g}, '
                f'that of the image {camera.intrinsics[0]:g}'
            )

    def _info(self, image: str, key: str) -> CameraInfo:
        topic = info_topic(image, self._reader.topics, self._named.get(key), self._where)
        info = info_from_message(self._reader.first_message(topic, (CAMERA_INFO,)))
        if info.frame and info.width and info.height:
            return info
        message = self._reader.first_message(image, IMAGE_TYPES)
        height, width = view_image(message, image).shape[:2]
        frame = info.frame or str(message.header.frame_id)
        return replace(info, frame=frame, width=info.width or width, height=info.height or height)

    def _frame_of(self, image: str) -> str:
        return str(self._reader.first_message(image, IMAGE_TYPES).header.frame_id)

    def truth(self, body_frame: str | None) -> Trajectory | None:
        """Ground truth of the body, if the bag has one; call after `rig`."""
        topic = truth_topic(self._reader.topics, self._named.get('truth'), self._where)
        if topic is None:
            return None
        stamps: list[int] = []
        poses: list[Array] = []
        child = self._named.get('truth_frame', '')
        for _, _, message in self._reader.messages((topic.name,), (topic.type,)):
            stamp_ns = stamp_ns_of(message)
            child = child or str(getattr(message, 'child_frame_id', ''))
            try:
                pose = _pose(message)
            except ValueError:
                self._note_once('ground truth with a pose that is not one')
                continue
            if not stamps or stamp_ns > stamps[-1]:
                stamps.append(stamp_ns)
                poses.append(pose)
        if not stamps:
            raise SourceError(f'{self._where}: no usable pose on {topic.name}')
        child_from_body = self._child_from_body(child, body_frame or self._camera_frame)
        return Trajectory(np.array(stamps, dtype=np.int64), np.array(poses) @ child_from_body)

    def _child_from_body(self, child: str, body: str) -> Array:
        """From the body to the frame whose pose the truth is."""
        if not child and TRUTH_FRAME in self._tree:
            child = TRUTH_FRAME
        if not child:
            return np.eye(4)
        pose = self._tree.lookup(child, body)
        if pose is None:
            self._note_once(
                f'ground truth is of "{child}", not connected to "{body}"; taken as it'
            )
            return np.eye(4)
        return pose

    def _static_tree(self) -> FrameTree:
        tree = FrameTree()
        for _, _, message in self._reader.messages(('/tf_static',), TF_TYPES):
            for transform in message.transforms:
                try:
                    pose = _pose(transform)
                except ValueError:
                    self._note_once('/tf_static with a transform that is not one, left out')
                    continue
                tree.add(transform.header.frame_id, transform.child_frame_id, pose)
        return tree

    def _note_once(self, message: str) -> None:
        if message not in self._notes:
            self._notes.append(message)


def stamp_ns_of(message: Any) -> int:
    """Nanoseconds of the header of a message."""
    stamp = message.header.stamp
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def _pose(message: Any) -> Array:
    """(4, 4) of PoseStamped, PoseWithCovarianceStamped, Odometry or TransformStamped."""
    if hasattr(message, 'transform'):
        return _rigid(message.transform.translation, message.transform.rotation)
    pose = message.pose
    pose = getattr(pose, 'pose', pose)
    return _rigid(pose.position, pose.orientation)


def _rigid(position: Any, q: Any) -> Array:
    """(4, 4); raises ValueError where it is no transform."""
    pose = rigid_transform(
        matrix_from_quaternion((q.x, q.y, q.z, q.w)), (position.x, position.y, position.z)
    )
    if not np.isfinite(pose).all():
        raise ValueError('a position is not finite')
    return pose
