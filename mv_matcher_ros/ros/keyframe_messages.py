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
import zipfile
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import (
    DISTORTION_SIZE,
    LONGEST_SIDE,
    Camera,
    Features,
    Rig,
    Sensor,
    rig_as_read,
)
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.npy import array_from_npy
from mv_matcher_ros.odometry.keyframe_record import KeyframeRecord
from mv_matcher_ros.odometry.observation import Observation

FORMAT = 1
# Coefficients of distortion at most.
MOST = max(DISTORTION_SIZE.values())
# What there is of each feature, and the shape of it; 0 stands for any number.
_ROWS: dict[str, tuple[int, ...]] = {
    'keypoints_xy': (2,),
    'descriptors': (0,),
    'scores': (),
    'sigma_px': (),
    'plane_xy': (2,),
    'sigma': (),
    'inverse_depth': (),
    'inverse_depth_sigma': (),
    'landmark': (),
    'points': (3,),
    'point_covariance': (3, 3),
}
_FINITE = ('segment_from_body', 'odom_from_body', 'step_covariance')
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
    # The stride of the first dimension is the size of everything.
    whole = MultiArrayDimension(label='mv_matcher keyframe npz', size=len(data), stride=len(data))
    message.layout.dim = [whole]
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
        arrays = _unpacked(data)
        found = int(arrays['format'])
        if found != FORMAT:
            raise SourceError(
                f'keyframe message: format {found}, this version reads {FORMAT}: run the same '
                'version on both sides'
            )
        return _sent(arrays)
    except SourceError:
        raise
    except Exception as error:  # of zipfile, zlib, struct; of arrays of another shape or type
        reason = str(error) or type(error).__name__
        raise SourceError(f'keyframe message: cannot be read: {reason}') from None


def _unpacked(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz; one that is small, and large when it is unpacked, is refused."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > LARGEST_BYTES:
            raise ValueError('unpacked it is larger than any keyframe')
        return {m.filename.removesuffix('.npy'): array_from_npy(archive.read(m)) for m in members}


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


def _check(arrays: dict[str, NDArray[Any]]) -> None:
    """Raise ValueError where arrays do not belong together."""
    count = len(arrays['keypoints_xy'])
    for name, row in _ROWS.items():
        array = arrays[name]
        shape = (count, *(side or array.shape[-1] for side in row))
        if len(array) != count:
            raise ValueError(f'arrays of different lengths: {name} has {len(array)} of {count}')
        if array.shape != shape or array.dtype.kind not in 'fiu':
            raise ValueError(f'{name} is {array.dtype} of shape {array.shape}')
    if arrays['landmark'].dtype.kind != 'i' or (arrays['landmark'] < -1).any():
        raise ValueError('landmark holds what is no number of a landmark')
    for name in _FINITE:
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f'{name} is not finite')
    if (arrays['image_size'] <= 0).any() or (arrays['image_size'] > LONGEST_SIDE).any():
        raise ValueError('image_size is that of no image')
    if str(arrays['sensor']) not in get_args(Sensor):
        raise ValueError('the sensor is none')


def _sent(arrays: dict[str, NDArray[Any]]) -> SentKeyframe:
    _check(arrays)

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
    return rig_as_read(cameras, str(arrays['body_axes']))
