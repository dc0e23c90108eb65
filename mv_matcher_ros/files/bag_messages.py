# SPDX-License-Identifier: Apache-2.0
"""Frames, calibration and truth of a source as ROS 2 messages, in the order of time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from mv_matcher_ros.datatypes import REP103_FROM_OPTICAL, Array, Frame, Trajectory
from mv_matcher_ros.files.camera_info import fields_from_cameras
from mv_matcher_ros.files.image_messages import fields_of_compressed, fields_of_image
from mv_matcher_ros.files.rotations import quaternion_from_matrix

if TYPE_CHECKING:
    from mv_matcher_ros.runner import Source

TRUTH_TOPIC, TRUTH_FRAME = '/ground_truth', 'ground_truth'
DEPTH_TOPIC = '/camera/depth_registered/image_raw'
ImageForm = Literal['raw', 'png', 'jpeg']
_SPACES = {'mono': ('/camera',), 'stereo': ('/left', '/right'), 'rgbd': ('/camera/color',)}


class MessageWriter(Protocol):
    """Makes messages of a named type and takes them."""

    def message(self, kind: str, **fields: Any) -> Any: ...
    def write(self, topic: str, stamp_ns: int, message: Any) -> None: ...


def record(
    source: Source, writer: MessageWriter, images: ImageForm, body_frame: str
) -> dict[str, str]:
    """Write everything of `source`; see `bag.write_bag` for what and where.

    Returns:
        Topics by key.
    """
    recorder = _Recorder(source, writer, images, body_frame)
    frames: Iterator[tuple[int, Frame | Array]] = ((frame.stamp_ns, frame) for frame in source)
    items = heapq.merge(frames, _poses(source.truth), key=lambda pair: pair[0])
    for count, (stamp_ns, item) in enumerate(items):
        if not count:
            recorder.write_static(stamp_ns)
        if isinstance(item, Frame):
            recorder.write_frame(item)
        else:
            recorder.write_truth(stamp_ns, item)
    return recorder.topics()


def _poses(truth: Trajectory | None) -> Iterator[tuple[int, Frame | Array]]:
    if truth is not None:
        for stamp, pose in zip(truth.stamps_ns, truth.world_from_body, strict=True):
            yield int(stamp), pose


class _Recorder:
    def __init__(
        self, source: Source, writer: MessageWriter, images: ImageForm, body_frame: str
    ) -> None:
        self._source = source
        self._writer = writer
        self._images = images
        self._body_frame = body_frame
        self._infos = fields_from_cameras(source.rig.cameras)
        self._spaces = [
            space if first == 0 else f'{space}_{first // 2 + 1}'
            for first in range(0, len(source.rig.cameras), 2)
            for space in _SPACES[source.sensor]
        ]
        self._frames = [f'{space.strip("/").replace("/", "_")}_optical' for space in self._spaces]
        suffix = '' if images == 'raw' else '/compressed'
        self._image_topics = [f'{space}/image_raw{suffix}' for space in self._spaces]

    def topics(self) -> dict[str, str]:
        topics = {}
        for number, (space, topic) in enumerate(
            zip(self._spaces, self._image_topics, strict=True)
        ):
            pair = '' if number < 2 else f'_{number // 2 + 1}'
            topics[('image', 'right')[number % 2] + pair] = topic
            topics[('camera_info', 'right_camera_info')[number % 2] + pair] = (
                f'{space}/camera_info'
            )
        if self._source.sensor == 'rgbd':
            topics['depth'] = DEPTH_TOPIC
        if self._source.truth is not None:
            topics['truth'] = TRUTH_TOPIC
        return topics

    def write_frame(self, frame: Frame) -> None:
        stamp_ns = frame.stamp_ns
        for view, info, topic, space, name in zip(
            frame.views, self._infos, self._image_topics, self._spaces, self._frames, strict=True
        ):
            self._send_info(f'{space}/camera_info', stamp_ns, name, info)
            if self._images == 'raw':
                fields = fields_of_image(view.image)
                self._send(topic, 'sensor_msgs/msg/Image', stamp_ns, name, **fields)
            else:
                fields = fields_of_compressed(view.image, self._images)
                self._send(topic, 'sensor_msgs/msg/CompressedImage', stamp_ns, name, **fields)
            if view.depth is not None:
                space = DEPTH_TOPIC.rsplit('/', 1)[0]
                self._send_info(f'{space}/camera_info', stamp_ns, name, info)
                fields = fields_of_image(view.depth)
                self._send(DEPTH_TOPIC, 'sensor_msgs/msg/Image', stamp_ns, name, **fields)

    def write_truth(self, stamp_ns: int, world_from_body: Array) -> None:
        pose = self._message(
            'geometry_msgs/msg/Pose',
            position=self._message('geometry_msgs/msg/Point', **_xyz(world_from_body[:3, 3])),
            orientation=self._quaternion(world_from_body),
        )
        self._send(TRUTH_TOPIC, 'geometry_msgs/msg/PoseStamped', stamp_ns, 'world', pose=pose)

    def write_static(self, stamp_ns: int) -> None:
        """Body → cameras, and the frame whose pose the truth is."""
        rig = self._source.rig
        base_from_body = REP103_FROM_OPTICAL if rig.body_axes == 'optical' else np.eye(4)
        poses = {
            name: base_from_body @ camera.body_from_camera
            for name, camera in zip(self._frames, rig.cameras, strict=True)
        }
        poses[TRUTH_FRAME] = base_from_body
        transforms = [
            self._message(
                'geometry_msgs/msg/TransformStamped',
                header=self._header(stamp_ns, self._body_frame),
                child_frame_id=name,
                transform=self._message(
                    'geometry_msgs/msg/Transform',
                    translation=self._message('geometry_msgs/msg/Vector3', **_xyz(pose[:3, 3])),
                    rotation=self._quaternion(pose),
                ),
            )
            for name, pose in poses.items()
        ]
        message = self._message('tf2_msgs/msg/TFMessage', transforms=transforms)
        self._writer.write('/tf_static', stamp_ns, message)

    def _send_info(self, topic: str, stamp_ns: int, frame: str, info: Mapping[str, Any]) -> None:
        zeros = dict.fromkeys(('x_offset', 'y_offset', 'height', 'width'), 0)
        roi = self._message('sensor_msgs/msg/RegionOfInterest', **zeros, do_rectify=False)
        self._send(topic, 'sensor_msgs/msg/CameraInfo', stamp_ns, frame, roi=roi, **info)

    def _send(self, topic: str, kind: str, stamp_ns: int, frame: str, **fields: Any) -> None:
        message = self._message(kind, header=self._header(stamp_ns, frame), **fields)
        self._writer.write(topic, stamp_ns, message)

    def _header(self, stamp_ns: int, frame: str) -> Any:
        seconds, rest = divmod(stamp_ns, 1_000_000_000)
        stamp = self._message('builtin_interfaces/msg/Time', sec=seconds, nanosec=rest)
        return self._message('std_msgs/msg/Header', stamp=stamp, frame_id=frame)

    def _quaternion(self, pose: Array) -> Any:
        x, y, z, w = map(float, quaternion_from_matrix(pose[:3, :3]))
        return self._message('geometry_msgs/msg/Quaternion', x=x, y=y, z=z, w=w)

    def _message(self, kind: str, **fields: Any) -> Any:
        return self._writer.message(kind, **fields)


def _xyz(vector: Array) -> dict[str, float]:
    return dict(zip('xyz', map(float, vector), strict=True))
