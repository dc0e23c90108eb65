# SPDX-License-Identifier: Apache-2.0
"""CameraInfo messages to rigs: models, rectification, baseline, binning, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from sensor_msgs.msg import CameraInfo

from mv_matcher_ros.datatypes import Camera, Rig
from mv_matcher_ros.errors import CalibrationError
from mv_matcher_ros.ros.calibration import is_rectified, messages_from_rig, rig_from_messages
from mv_matcher_ros.ros.inputs import topics_of
from mv_matcher_ros.worlds.presets import make_rig

pytestmark = pytest.mark.ros


def info(**changed: object) -> CameraInfo:
    message = CameraInfo(width=640, height=480, distortion_model='plumb_bob')
    message.k = [500.0, 0.0, 320.0, 0.0, 501.0, 240.0, 0.0, 0.0, 1.0]
    message.p = [480.0, 0.0, 310.0, 0.0, 0.0, 480.0, 230.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    message.d = [-0.2, 0.1, 0.001, -0.002, 0.0]
    message.r = np.eye(3).ravel().tolist()
    for name, value in changed.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ('name', 'coefficients', 'model'),
    [
        ('plumb_bob', [-0.2, 0.1, 0.001, -0.002, 0.03], 'radtan'),
        ('rational_polynomial', [0.1, 0.2, 0.001, 0.002, 0.3, 0.4, 0.5, 0.6], 'rational'),
        ('equidistant', [0.1, 0.01, 0.001, 0.0001], 'equidistant'),
        ('fisheye', [0.1, 0.01, 0.001, 0.0001], 'equidistant'),
        ('plumb_bob', [0.0] * 5, 'pinhole'),
        ('', [], 'pinhole'),
    ],
)
def test_distortion_models(name: str, coefficients: list[float], model: str) -> None:
    camera = rig_from_messages([info(distortion_model=name, d=coefficients)], ['/info']).cameras[0]
    assert camera.model == model
    assert camera.intrinsics == (500.0, 501.0, 320.0, 240.0)
    if model != 'pinhole':
        assert camera.distortion == tuple(coefficients)


def test_rectified_images_have_p_and_no_distortion() -> None:
    camera = rig_from_messages([info()], ['/info'], rectified=True).cameras[0]
    assert camera.model == 'pinhole'
    assert camera.intrinsics == (480.0, 480.0, 310.0, 230.0)


@pytest.mark.parametrize(
    ('topic', 'rectified'),
    [
        ('/camera/image_raw', False),
        ('/camera/image_rect', True),
        ('/left/image_rect_color', True),
        ('/camera/image_rect/compressed', True),
        ('/zed/left_rect/image', True),
        ('/zed/left_rect/image/compressed', True),
        ('/zed/rect/depth/compressedDepth', True),
        ('/rect/left/image/compressed', False),
        ('/direct/image', False),
        ('/image', False),
    ],
)
def test_rectified_topics_are_told_by_their_names(topic: str, rectified: bool) -> None:
    assert is_rectified(topic) is rectified


def test_binning_and_region_of_interest() -> None:
    message = info(binning_x=2, binning_y=2)
    message.roi.x_offset, message.roi.y_offset = 100, 40
    message.roi.width, message.roi.height = 400, 300
    camera = rig_from_messages([message], ['/info']).cameras[0]
    assert (camera.width, camera.height) == (200, 150)
    assert camera.intrinsics[:2] == (250.0, 250.5)
    # Pixel 320 of the sensor is 220 in the region; merged in twos its centre moves by a quarter.
    assert camera.intrinsics[2] == pytest.approx((220 + 0.5) / 2 - 0.5)


@pytest.mark.parametrize(
    ('changed', 'says'),
    [
        ({'k': [0.0] * 9}, r'/cam/info.*K\[0\].*calibrate'),
        ({'distortion_model': 'mirror', 'd': [1.0]}, '/cam/info.*mirror'),
        ({'width': 0, 'height': 0}, '/cam/info.*0x0'),
    ],
)
def test_uncalibrated_is_refused(changed: dict[str, object], says: str) -> None:
    with pytest.raises(CalibrationError, match=says):
        rig_from_messages([info(**changed)], ['/cam/info'])
    with pytest.raises(CalibrationError, match=r'P\[0\]'):
        rig_from_messages([info(p=[0.0] * 12)], ['/cam/info'], rectified=True)


def right_info(baseline_m: float) -> CameraInfo:
    message = info()
    message.p[3] = -480.0 * baseline_m
    return message


@pytest.mark.parametrize('rectified', [True, False])
def test_stereo_baseline_of_p(rectified: bool) -> None:
    rig = rig_from_messages([info(), right_info(0.12)], ['/l', '/r'], rectified=rectified)
    assert rig.body_axes == 'optical'
    np.testing.assert_allclose(rig.cameras[1].body_from_camera[:3, 3], [0.12, 0, 0], atol=1e-12)


def test_swapped_and_missing_baseline() -> None:
    with pytest.raises(CalibrationError, match='swapped'):
        rig_from_messages([info(), right_info(-0.12)], ['/l', '/r'])
    with pytest.raises(CalibrationError, match=r'/r.*P\[3\] = 0'):
        rig_from_messages([info(), info()], ['/l', '/r'])


def mount(x: float, y: float, z: float) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    pose[:3, 3] = x, y, z
    return pose


def test_mounts_of_tf() -> None:
    mounts = [mount(0.2, 0.06, 1.0), mount(0.2, -0.07, 1.0)]
    rig = rig_from_messages([info(), info()], ['/l', '/r'], body_from_cameras=mounts)
    assert rig.body_axes == 'rep103'
    assert rig.baseline_m == pytest.approx(0.13)
    # A stereo calibration knows better how the cameras stand to each other.
    rig = rig_from_messages([info(), right_info(0.12)], ['/l', '/r'], body_from_cameras=mounts)
    np.testing.assert_allclose(rig.cameras[1].body_from_camera[:3, 3], [0.2, -0.06, 1.0])


def test_messages_of_a_rig_give_the_rig_back() -> None:
    """Also unrectified, turned against each other and with different lenses."""
    turned = np.eye(4)
    angle = 0.03
    turned[:3, :3] = [
        [np.cos(angle), 0, np.sin(angle)],
        [0, 1, 0],
        [-np.sin(angle), 0, np.cos(angle)],
    ]
    turned[:3, 3] = 0.11, 0.004, -0.006
    rig = Rig(
        (
            Camera(640, 480, (458.0, 457.0, 367.0, 248.0), 'radtan', (-0.28, 0.07, 1e-4, 2e-5)),
            Camera(
                640, 480, (460.0, 459.0, 365.0, 246.0), 'equidistant', (0.1, 0.0, 0.0, 0.0), turned
            ),
        )
    )
    again = rig_from_messages(messages_from_rig(rig), ['/l', '/r'])
    for before, after in zip(rig.cameras, again.cameras, strict=True):
        assert (before.model, before.distortion) == (after.model, after.distortion)
        assert before.intrinsics == after.intrinsics
        np.testing.assert_allclose(after.body_from_camera, before.body_from_camera, atol=1e-12)


def test_pairs_are_mounted_by_tf_and_their_right_cameras_by_the_calibration() -> None:
    rig = make_rig('stereo', (640, 480), pairs=2)
    messages = messages_from_rig(rig)
    mounts = [camera.body_from_camera.copy() for camera in rig.cameras]
    for mount_of_right in mounts[1::2]:
        mount_of_right[:3, 3] += 0.03  # the drawing is off: the calibration was measured
    again = rig_from_messages(messages, ['/l', '/r', '/l2', '/r2'], body_from_cameras=mounts)
    for before, after in zip(rig.cameras, again.cameras, strict=True):
        np.testing.assert_allclose(after.body_from_camera, before.body_from_camera, atol=1e-9)
    messages[3].p[3] *= -1.0
    with pytest.raises(CalibrationError, match=r'/r2.*swapped'):
        rig_from_messages(messages, ['/l', '/r', '/l2', '/r2'], body_from_cameras=mounts)


def test_topics_of_further_pairs_are_numbered() -> None:
    images, infos = topics_of('stereo', 2)
    assert images == ('left/image', 'right/image', 'left_2/image', 'right_2/image')
    assert infos == (
        'left/camera_info', 'right/camera_info', 'left_2/camera_info', 'right_2/camera_info'
    )  # fmt: skip
    assert topics_of('rgbd', 2) == topics_of('rgbd')
