# SPDX-License-Identifier: Apache-2.0
"""Records of keyframes over a topic, in a standard message.

A record is one `std_msgs/UInt8MultiArray` whose bytes are an .npz archive (numpy's zip of .npy
arrays, no pickles). One message is one keyframe, so that none arrives by half; the arrays name
themselves and their types, so that any language can read them and a field can be added; and the
message exists wherever ROS does. A point cloud has no room for poses and covariances, and several
topics would have to be put together again. What is to be looked at is published as clouds and
markers beside it.
"""

from __future__ import annotations

import array
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import DISTORTION_SIZE, Camera, Features, Rig, Sensor
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.odometry.keyframe_record import KeyframeRecord
from mv_matcher_ros.odometry.observation import Observation

FORMAT = 1
# Coefficients of distortion at most.
MOST = max(DISTORTION_SIZE.values())
# One message at most is so large: what is larger is no keyframe.
LARGEST_BYTES = 64 << 20


@dataclass(frozen=True)
class SentKeyframe:
    """A record and where it comes from.

    Attributes:
        record: of the keyframe.
        run: of the odometry; another one after its restart, whose segments are numbered anew.
        sensor, rig: that saw it.
        detector: hash of what found the features.
        body_frame, odom_frame: what the poses are of, and in.
    """

    record: KeyframeRecord
    run: str
    sensor: Sensor
    rig: Rig
    detector: str
    body_frame: str
    odom_frame: str


def keyframe_message(sent: SentKeyframe) -> Any:
    """std_msgs/UInt8MultiArray of a record."""
    from std_msgs.msg import MultiArrayDimension, UInt8MultiArray

    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **_arrays(sent))
    data = stream.getvalue()
    message = UInt8MultiArray()
    message.layout.dim = [
        MultiArrayDimension(label='mv_matcher keyframe npz', size=len(data), stride=1)
    ]
    message.data = array.array('B', data)
    return message


def keyframe_from_message(message: Any) -> SentKeyframe:
    """The record of a message.

    Raises:
        SourceError: it is none, of a later format, or damaged.
    """
    data = bytes(message.data)
    if len(data) > LARGEST_BYTES:
        raise SourceError(f'keyframe message: {len(data)} bytes are no keyframe')
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        found = int(arrays['format'])
        if found != FORMAT:
            raise SourceError(
                f'keyframe message: format {found}, this version reads {FORMAT}: run the same '
                'version on both sides'
            )
        return _sent(arrays)
    except (KeyError, ValueError, OSError, EOFError) as error:
        raise SourceError(f'keyframe message: cannot be read: {error}') from None
    except Exception as error:  # zipfile raises its own
        if isinstance(error, SourceError):
            raise
        raise SourceError(f'keyframe message: is no keyframe: {error}') from None


def _arrays(sent: SentKeyframe) -> dict[str, NDArray[Any]]:
    record = sent.record
    observation, features = record.observation, record.observation.features
    cameras = sent.rig.cameras
    before = -1 if record.before_ns is None else record.before_ns
    return {
        'format': np.array(FORMAT),
        'run': np.array(sent.run),
        'frames': np.array([sent.odom_frame, sent.body_frame]),
        'sensor': np.array(sent.sensor),
        'detector': np.array(sent.detector),
        'body_axes': np.array(sent.rig.body_axes),
        'camera_names': np.array([[c.name, c.model] for c in cameras]),
        'camera_sizes': np.array([[c.width, c.height] for c in cameras], np.int64),
        'intrinsics': np.array([c.intrinsics for c in cameras]),
        'distortion': np.array([[*c.distortion, *[0.0] * MOST][:MOST] for c in cameras]),
        'body_from_cameras': np.stack([c.body_from_camera for c in cameras]),
        'stamps_ns': np.array([observation.stamp_ns, before], np.int64),
        'numbers': np.array([record.segment, observation.index, record.metric], np.int64),
        'image_size': np.array(features.image_size, np.int64),
        'keypoints_xy': features.keypoints_xy.numpy(),
        'descriptors': features.descriptors.numpy().astype(np.float16),
        'scores': features.scores.numpy(),
        'sigma_px': features.sigma_px.numpy(),
        'plane_xy': observation.plane_xy.numpy(),
        'sigma': observation.sigma.numpy(),
        'inverse_depth': observation.inverse_depth.numpy(),
        'inverse_depth_sigma': observation.inverse_depth_sigma.numpy(),
        'segment_from_body': record.segment_from_body.numpy(),
        'odom_from_body': record.odom_from_body.numpy(),
        'step_covariance': record.step_covariance.numpy(),
        'landmark': record.landmark.numpy(),
        'points': record.points.numpy(),
        'point_covariance': record.point_covariance.numpy().astype(np.float32),
    }


def _sent(arrays: dict[str, NDArray[Any]]) -> SentKeyframe:
    def tensor(name: str, kind: type = np.float64) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(arrays[name].astype(kind)))

    stamp, before = arrays['stamps_ns'].tolist()
    segment, index, metric = arrays['numbers'].tolist()
    width, height = arrays['image_size'].tolist()
    features = Features(
        tensor('keypoints_xy', np.float32),
        tensor('descriptors', np.float32),
        tensor('scores', np.float32),
        tensor('sigma_px', np.float32),
        (width, height),
    )
    observation = Observation(
        stamp,
        index,
        features,
        tensor('plane_xy'),
        tensor('sigma'),
        tensor('inverse_depth'),
        tensor('inverse_depth_sigma'),
        torch.zeros(len(features), dtype=torch.int64),
    )
    count = len(features)
    rows = ('plane_xy', 'sigma', 'inverse_depth', 'landmark', 'points', 'point_covariance')
    if any(len(arrays[name]) != count for name in rows):
        raise ValueError('arrays of different lengths')
    record = KeyframeRecord(
        observation,
        segment,
        None if before < 0 else before,
        tensor('segment_from_body').reshape(4, 4),
        tensor('odom_from_body').reshape(4, 4),
        tensor('step_covariance').reshape(6, 6),
        tensor('landmark', np.int64),
        tensor('points'),
        tensor('point_covariance'),
        bool(metric),
    )
    odom, body = arrays['frames'].tolist()
    return SentKeyframe(
        record,
        str(arrays['run']),
        str(arrays['sensor']),  # type: ignore[arg-type]
        _rig(arrays),
        str(arrays['detector']),
        body,
        odom,
    )


def _rig(arrays: dict[str, NDArray[Any]]) -> Rig:
    cameras = []
    for number, (name, model) in enumerate(arrays['camera_names'].tolist()):
        width, height = arrays['camera_sizes'][number].tolist()
        count = DISTORTION_SIZE[model]
        cameras.append(
            Camera(
                width,
                height,
                tuple(arrays['intrinsics'][number].tolist()),
                model,
                tuple(arrays['distortion'][number, :count].tolist()),
                arrays['body_from_cameras'][number],
                name,
            )
        )
    return Rig(tuple(cameras), str(arrays['body_axes']))  # type: ignore[arg-type]
