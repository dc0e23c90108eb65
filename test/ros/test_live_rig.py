# SPDX-License-Identifier: Apache-2.0
"""Cameras of the live node from a file: without camera_info, with mounts, with TF for the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from geometry_msgs.msg import TransformStamped
from nav_msgs.msg import Odometry
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage

from mv_matcher_ros.errors import CalibrationError
from mv_matcher_ros.ros.conversions import message_from_image
from mv_matcher_ros.ros.messages import header_message, transform_message

pytestmark = pytest.mark.ros
MS = 10**6
LOSSLESS = {'ros.lossless': True}


@pytest.fixture
def stereo_file(tmp_path: Path) -> str:
    """Two cameras on a body with axes of its own, 0.2 m above it."""
    left = np.eye(4)
    left[:3, :3] = [[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]
    left[2, 3] = 0.2
    right = left.copy()
    right[1, 3] = -0.1
    camera = {'width': 64, 'height': 48, 'intrinsics': [60.0, 60.0, 31.5, 23.5]}
    content = {
        'body_axes': 'rep103',
        'cameras': {
            'left': {**camera, 'body_from_camera': left.ravel().tolist()},
            'right': {**camera, 'body_from_camera': right.ravel().tolist()},
        },
    }
    path = tmp_path / 'rig.yaml'
    path.write_text(yaml.safe_dump(content))
    return str(path)


def shoot(bench: Any, topics: tuple[str, ...], stamp: int) -> None:
    """Images without any camera_info."""
    for topic in topics:
        publisher = bench.publisher(Image, topic)
        header = header_message(stamp, f'{topic.split("/")[0]}_optical')
        publisher.publish(message_from_image(np.full((48, 64), 90, np.uint8), 'mono8', header))


def test_no_camera_info_is_needed(bench: Any, stereo_file: str) -> None:
    bench.start({'sensor': 'stereo', 'ros.calibration_file': stereo_file, **LOSSLESS})
    odometry = bench.collect(Odometry, 'odometry')
    shoot(bench, ('left/image', 'right/image'), 100 * MS)
    bench.wait(lambda: odometry, 'odometry')
    rig = bench.engines[0].rig
    assert rig.baseline_m == pytest.approx(0.1)
    assert rig.cameras[0].body_from_camera[2, 3] == pytest.approx(0.2)
    assert odometry[0].child_frame_id == 'base_link'


def test_where_the_first_camera_sits_may_come_from_tf(bench: Any, stereo_file: str) -> None:
    bench.start(
        {
            'sensor': 'stereo',
            'ros.calibration_file': stereo_file,
            'ros.extrinsics_from_tf': True,
            **LOSSLESS,
        }
    )
    odometry = bench.collect(Odometry, 'odometry')
    mount = np.eye(4)
    mount[0, 3] = 0.5
    transform: TransformStamped = transform_message(0, 'base_link', 'left_optical', mount)
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    bench.publisher(TFMessage, '/tf_static', latched).publish(TFMessage(transforms=[transform]))
    shoot(bench, ('left/image', 'right/image'), 100 * MS)
    bench.wait(lambda: odometry, 'odometry')
    left, right = bench.engines[0].rig.cameras
    np.testing.assert_allclose(left.body_from_camera, mount, atol=1e-12)
    # The right one where the file says that it is, seen from the left one.
    np.testing.assert_allclose(right.body_from_camera[:3, 3], [0.6, 0.0, 0.0], atol=1e-12)


def test_a_file_with_too_few_cameras_is_refused(
    bench: Any, tmp_path: Path, camcorder: Callable[..., Any]
) -> None:
    path = tmp_path / 'one.yaml'
    path.write_text('width: 64\nheight: 48\nintrinsics: [60, 60, 31.5, 23.5]\n')
    with pytest.raises(CalibrationError, match='1 cameras, stereo needs 2'):
        bench.start({'sensor': 'stereo', 'ros.calibration_file': str(path)})
    with pytest.raises(CalibrationError, match='nowhere'):
        bench.start({'ros.calibration_file': '/nowhere.yaml'})


@pytest.mark.parametrize(('said', 'focal'), [('auto', 60.0), ('always', 50.0), ('never', 60.0)])
def test_images_may_be_rectified_without_being_called_so(
    bench: Any, said: str, focal: float
) -> None:
    """Drivers that publish rectified images as image_raw: K is not theirs, P is."""
    bench.start(
        {'ros.rectified': said, **LOSSLESS}, cli_args=['--ros-args', '-r', 'image:=/eye/image_raw']
    )
    states = bench.states()
    info = CameraInfo(width=64, height=48, header=header_message(1, 'eye'))
    info.k = [60.0, 0.0, 31.5, 0.0, 60.0, 23.5, 0.0, 0.0, 1.0]
    info.p = [50.0, 0.0, 31.5, 0.0, 0.0, 50.0, 23.5, 0.0, 0.0, 0.0, 1.0, 0.0]
    info.d, info.distortion_model = [0.1, 0.0, 0.0, 0.0, 0.0], 'plumb_bob'
    bench.publisher(CameraInfo, 'camera_info').publish(info)
    shoot(bench, ('eye/image_raw',), 100 * MS)
    bench.wait(lambda: states, 'an answer')
    camera = bench.engines[0].rig.cameras[0]
    assert camera.intrinsics[0] == focal
    assert (camera.model == 'pinhole') == (said == 'always')


def test_depth_of_a_camera_of_its_own_is_moved_to_the_image(bench: Any) -> None:
    bench.start({'sensor': 'rgbd', 'ros.depth_registered': False, **LOSSLESS})
    states = bench.states()
    apart = np.eye(4)
    apart[0, 3] = 0.5  # the depth camera is half a metre to the right
    transform = transform_message(0, 'eye', 'depth_eye', apart)
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    bench.publisher(TFMessage, '/tf_static', latched).publish(TFMessage(transforms=[transform]))
    for topic, frame, size in (
        ('camera_info', 'eye', (64, 48)),
        ('depth/camera_info', 'depth_eye', (32, 24)),
    ):
        width, height = size
        info = CameraInfo(width=width, height=height, header=header_message(1, frame))
        k = [
            float(width),
            0.0,
            (width - 1) / 2,
            0.0,
            float(width),
            (height - 1) / 2,
            0.0,
            0.0,
            1.0,
        ]
        info.k = k
        bench.publisher(CameraInfo, topic).publish(info)
    depth = np.full((24, 32), 2.0, np.float32)
    publisher = bench.publisher(Image, 'depth')
    image = bench.publisher(Image, 'image')
    publisher.publish(message_from_image(depth, '32FC1', header_message(MS, 'depth_eye')))
    grey = np.full((48, 64), 90, np.uint8)
    image.publish(message_from_image(grey, 'mono8', header_message(MS, 'eye')))
    bench.wait(lambda: states, 'an answer')
    seen = bench.engines[0].frames[0].views[0].depth
    assert seen.shape == (48, 64)
    # 0.5 m at 2 m is a quarter of a focal length: 16 px of 64 on the left see nothing.
    assert not seen[:, :14].any()
    np.testing.assert_allclose(seen[2:-2, 18:62], 2.0, atol=1e-3)


def test_where_the_depth_camera_is_has_to_be_known(bench: Any) -> None:
    from diagnostic_msgs.msg import DiagnosticArray

    bench.start({'sensor': 'rgbd', 'ros.depth_registered': False, 'ros.tf_timeout_s': 0.1})
    diagnostics = bench.collect(DiagnosticArray, '/diagnostics')
    for topic, frame in (('camera_info', 'eye'), ('depth/camera_info', 'depth_eye')):
        info = CameraInfo(width=64, height=48, header=header_message(1, frame))
        info.k = [60.0, 0.0, 31.5, 0.0, 60.0, 23.5, 0.0, 0.0, 1.0]
        bench.publisher(CameraInfo, topic).publish(info)
    bench.wait(
        lambda: any('eye <- depth_eye' in m.status[0].message for m in diagnostics), 'a complaint'
    )
