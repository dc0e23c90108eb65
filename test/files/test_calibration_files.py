# SPDX-License-Identifier: Apache-2.0
"""Calibration files of four kinds, and faults named with file and key."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from mv_matcher_ros.datatypes import Camera, Rig
from mv_matcher_ros.errors import CalibrationError
from mv_matcher_ros.files.calibration import _CAMERA_KEYS, _RIG_KEYS, read_calibration
from mv_matcher_ros.files.camera_info import (
    CameraInfo,
    camera_from_info,
    fields_from_cameras,
    left_from_right,
)
from mv_matcher_ros.files.rotations import matrix_from_quaternion, rigid_transform

CAMERA = {
    'width': 64,
    'height': 48,
    'intrinsics': [50.0, 51.0, 31.5, 23.5],
    'model': 'radtan',
    'distortion': [0.1, -0.2, 0.001, 0.002, 0.3],
}
ROS = {
    'image_width': 64,
    'image_height': 48,
    'camera_name': 'narrow',
    'camera_matrix': {'rows': 3, 'cols': 3, 'data': [50, 0, 31.5, 0, 51, 23.5, 0, 0, 1]},
    'distortion_model': 'plumb_bob',
    'distortion_coefficients': {'rows': 1, 'cols': 5, 'data': [0.1, -0.2, 0.001, 0.002, 0.3]},
    'rectification_matrix': {'rows': 3, 'cols': 3, 'data': [1, 0, 0, 0, 1, 0, 0, 0, 1]},
    'projection_matrix': {'rows': 3, 'cols': 4, 'data': [48, 0, 30, 0, 0, 48, 22, 0, 0, 0, 1, 0]},
}


def written(tmp_path: Path, content: object, name: str = 'cal.yaml') -> Path:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def info(k: list[float], **more: object) -> CameraInfo:
    return CameraInfo(64, 48, np.array(k, dtype=float).reshape(3, 3), **more)  # type: ignore[arg-type]


def test_one_camera_and_a_rig(tmp_path: Path) -> None:
    single = read_calibration(written(tmp_path, CAMERA | {'rate_hz': 20, 'depth_scale': 1000}))
    camera = single.rig.cameras[0]
    assert (camera.width, camera.height, camera.model) == (64, 48, 'radtan')
    assert camera.intrinsics == (50.0, 51.0, 31.5, 23.5)
    assert camera.distortion == (0.1, -0.2, 0.001, 0.002, 0.3)
    assert (single.rate_hz, single.depth_scale) == (20.0, 1000.0)
    pair = {
        'body_axes': 'rep103',
        'cameras': {
            'left': CAMERA | {'body_from_camera': np.eye(4).tolist()},
            'right': CAMERA | {'baseline_m': 0.12},
        },
    }
    rig = read_calibration(written(tmp_path, pair)).rig
    assert [camera.name for camera in rig.cameras] == ['left', 'right']
    assert rig.body_axes == 'rep103'
    assert rig.baseline_m == pytest.approx(0.12)
    assert rig.cameras[1].body_from_camera[0, 3] == pytest.approx(0.12)


def test_no_distortion_is_a_pinhole_but_a_fisheye_stays_one(tmp_path: Path) -> None:
    plain = CAMERA | {'distortion': [0, 0, 0, 0, 0]}
    assert read_calibration(written(tmp_path, plain)).rig.cameras[0].model == 'pinhole'
    fisheye = CAMERA | {'model': 'equidistant', 'distortion': [0, 0, 0, 0]}
    assert read_calibration(written(tmp_path, fisheye)).rig.cameras[0].model == 'equidistant'


@pytest.mark.parametrize('key', ['width', 'height', 'intrinsics'])
def test_missing_key_is_named_with_the_file(tmp_path: Path, key: str) -> None:
    path = written(tmp_path, {k: v for k, v in CAMERA.items() if k != key})
    with pytest.raises(CalibrationError) as raised:
        read_calibration(path)
    assert str(path) in str(raised.value)
    assert f'missing key "{key}"' in str(raised.value)
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'intrinsics': [1, 2, 3]}, 'intrinsics are fx fy cx cy, not 3 values'),
        ({'intrinsics': [0, 0, 1, 1]}, 'not calibrated'),
        ({'intrinsics': 'wide'}, 'not a list of numbers'),
        ({'intrinsics': [1, 2, 3, float('nan')]}, 'not finite'),
        ({'distorsion': []}, 'unknown key "distorsion"'),
        ({'model': 'omni'}, 'distortion model "omni" is unknown'),
        ({'body_from_camera': [1, 2]}, '2 values, not 16'),
        ({'body_from_camera': [2.0 if i % 5 == 0 else 0.0 for i in range(16)]}, 'last row'),
        ({'depth_scale': -1}, 'depth_scale = -1 is not positive'),
        ({'body_axes': 'up'}, 'not optical or rep103'),
        ({'width': 'wide'}, "image size: ('wide', 48) is not a list of numbers"),
        ({'width': 0}, 'image size 0x48 is not positive'),
        ({'width': 70000}, 'image size 70000x48 is larger than images get'),
        ({'width': 6.4}, 'is not the size of an image'),
        ({'height': float('inf')}, 'image size: a number is not finite'),
        ({'intrinsics': [50, 50, 1, 10**400]}, 'not YAML: a whole number of more than 64 bits'),
        ({'distortion': [0.0] * 65}, 'more than 64 numbers'),
        ({'distortion': [[[[0.1]]]]}, 'is not a list of numbers'),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = written(tmp_path, CAMERA | change)
    with pytest.raises(CalibrationError) as raised:
        read_calibration(path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize('content', ['[1, 2', '- 1\n- 2\n', 'a: !!python/object:os.system x'])
def test_what_is_no_calibration(tmp_path: Path, content: str) -> None:
    with pytest.raises(CalibrationError, match=r'cal\.yaml'):
        read_calibration(written(tmp_path, content))
    with pytest.raises(CalibrationError, match='no such calibration file'):
        read_calibration(tmp_path / 'none.yaml')


def test_one_row_of_numbers_is_a_calibration(tmp_path: Path) -> None:
    """The form of calibration.txt in TUM folders, which a user may well name by itself."""
    text = '# fx fy cx cy k1 k2 p1 p2 k3 width height\n50 51 31.5 23.5 0.1 -0.2 0 0 0.3 64 48\n'
    found = read_calibration(written(tmp_path, text + '# depth_scale 5000\n', 'calibration.txt'))
    camera = found.rig.cameras[0]
    assert (camera.width, camera.height, camera.model) == (64, 48, 'radtan')
    assert camera.intrinsics == (50.0, 51.0, 31.5, 23.5)
    assert camera.distortion == (0.1, -0.2, 0.0, 0.0, 0.3)
    assert found.depth_scale == 5000.0
    with pytest.raises(CalibrationError, match=r'cal\.yaml: the row has no image size; append'):
        read_calibration(written(tmp_path, '50 51 31.5 23.5\n'))
    with pytest.raises(CalibrationError, match='5 values; expected "fx fy cx cy'):
        read_calibration(written(tmp_path, '50, 51, 31.5, 23.5, 0.1\n'))
    with pytest.raises(CalibrationError, match=r'docs/calibration\.md\), or one row "fx fy'):
        read_calibration(written(tmp_path, 'hello\n'))


def test_the_example_of_the_documents_is_read(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[2] / 'docs' / 'calibration.md'
    blocks = page.read_text(encoding='utf-8').split('```yaml\n')[1:]
    examples = [read_calibration(written(tmp_path, b.split('```')[0])) for b in blocks]
    assert [len(example.rig.cameras) for example in examples] == [1, 2, 4]
    assert examples[0].rate_hz == 30.0
    assert examples[1].rig.baseline_m == pytest.approx(0.12)
    ahead, back = (examples[2].rig.pair(number) for number in range(2))
    assert ahead.baseline_m == back.baseline_m == pytest.approx(0.12)
    for rig, looks_at in ((ahead, (1, 0, 0)), (back, (-1, 0, 0))):
        for camera in rig.cameras:
            np.testing.assert_allclose(camera.body_from_camera[:3, 2], looks_at, atol=1e-12)


def test_every_key_is_documented() -> None:
    page = Path(__file__).resolve().parents[2] / 'docs' / 'calibration.md'
    text = page.read_text(encoding='utf-8')
    for key in _RIG_KEYS | _CAMERA_KEYS:
        assert f'| `{key}` |' in text, key


def test_cameras_at_one_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match='at the same place'):
        read_calibration(written(tmp_path, {'cameras': {'left': CAMERA, 'right': CAMERA}}))


def test_ros_camera_info_yaml(tmp_path: Path) -> None:
    camera = read_calibration(written(tmp_path, ROS)).rig.cameras[0]
    assert camera.intrinsics == (50.0, 51.0, 31.5, 23.5)
    assert camera.model == 'radtan'
    assert camera.distortion == (0.1, -0.2, 0.001, 0.002, 0.3)
    for key in ('image_width', 'image_height'):
        with pytest.raises(CalibrationError, match=f'missing key "{key}"'):
            read_calibration(written(tmp_path, {k: v for k, v in ROS.items() if k != key}))
    with pytest.raises(CalibrationError, match='camera_matrix has 2 values, not 9'):
        read_calibration(written(tmp_path, ROS | {'camera_matrix': {'data': [1, 2]}}))
    with pytest.raises(CalibrationError, match='camera_matrix: missing key "data"'):
        read_calibration(written(tmp_path, ROS | {'camera_matrix': {'rows': 3}}))


def test_two_ros_files_make_a_stereo_rig(tmp_path: Path) -> None:
    rotation = matrix_from_quaternion((0.01, 0.02, -0.01, 1.0))
    right = ROS | {
        'rectification_matrix': {'data': rotation.ravel().tolist()},
        'projection_matrix': {'data': [48, 0, 30, -4.8, 0, 48, 22, 0, 0, 0, 1, 0]},
    }
    paths = [written(tmp_path, ROS, 'left.yaml'), written(tmp_path, right, 'right.yaml')]
    rig = read_calibration(paths).rig
    assert [camera.name for camera in rig.cameras] == ['left', 'right']
    np.testing.assert_allclose(rig.cameras[1].body_from_camera[:3, :3], rotation, atol=1e-12)
    np.testing.assert_allclose(rig.cameras[1].body_from_camera[:3, 3], (0.1, 0, 0), atol=1e-12)


def test_opencv_file(tmp_path: Path) -> None:
    """What OpenCV's own calibration writes: a head that is no YAML, and tagged matrices."""
    path = tmp_path / 'opencv.yaml'
    storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    storage.write('image_width', 64)
    storage.write('image_height', 48)
    storage.write('camera_matrix', np.array([[50.0, 0, 31.5], [0, 51, 23.5], [0, 0, 1]]))
    storage.write('distortion_coefficients', np.array([[0.1, -0.2, 0.001, 0.002, 0.3]]))
    storage.release()
    camera = read_calibration(path).rig.cameras[0]
    assert camera.intrinsics == (50.0, 51.0, 31.5, 23.5)
    assert camera.distortion == (0.1, -0.2, 0.001, 0.002, 0.3)


def test_euroc_and_kalibr(tmp_path: Path) -> None:
    pose = rigid_transform(matrix_from_quaternion((0.1, 0.2, 0.3, 0.9)), (0.1, 0.2, 0.3))
    euroc = {
        'T_BS': {'rows': 4, 'cols': 4, 'data': pose.ravel().tolist()},
        'rate_hz': 20,
        'resolution': [64, 48],
        'camera_model': 'pinhole',
        'intrinsics': [50, 51, 31, 23],
        'distortion_model': 'radial-tangential',
        'distortion_coefficients': [0.1, 0.2, 0.003, 0.004],
    }
    calibration = read_calibration(written(tmp_path, euroc))
    assert calibration.rig.body_axes == 'rep103'
    np.testing.assert_allclose(calibration.rig.cameras[0].body_from_camera, pose)
    assert calibration.rig.cameras[0].distortion == (0.1, 0.2, 0.003, 0.004, 0.0)
    with pytest.raises(CalibrationError, match='missing key "resolution"'):
        read_calibration(written(tmp_path, {k: v for k, v in euroc.items() if k != 'resolution'}))
    camera = {
        'camera_model': 'pinhole',
        'intrinsics': [50, 51, 31, 23],
        'distortion_model': 'equidistant',
        'distortion_coeffs': [0.1, 0.2, 0.3, 0.4],
        'resolution': [64, 48],
    }
    second_from_first = np.linalg.inv(pose)
    chain = {'cam0': camera, 'cam1': camera | {'T_cn_cnm1': second_from_first.tolist()}}
    rig = read_calibration(written(tmp_path, chain)).rig
    np.testing.assert_allclose(rig.cameras[1].body_from_camera, pose, atol=1e-12)
    assert rig.cameras[0].model == 'equidistant'
    with pytest.raises(CalibrationError, match='cam1: missing key "T_cn_cnm1"'):
        read_calibration(written(tmp_path, {'cam0': camera, 'cam1': camera}))


def test_uncalibrated_camera_info_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r'/cam: camera_info has K\[0\] = 0'):
        camera_from_info(info([0] * 9), '/cam')


def test_binning_and_region_of_interest_see_the_same_points() -> None:
    """A pixel of the image, taken back to the sensor, lies on the ray of the full camera."""
    k = [50.0, 0, 31.0, 0, 52.0, 24.0, 0, 0, 1]
    full = camera_from_info(info(k), 'full')
    part = camera_from_info(info(k, binning=(2, 4), roi=(8, 12, 40, 24)), 'part')
    assert (part.width, part.height) == (20, 6)
    pixel = np.array([3.0, 2.0])
    # Pixel i of a binned row covers sensor pixels 2i and 2i + 1, whose centre is 2i + 0.5.
    on_sensor = np.array([8 + 2 * pixel[0] + 0.5, 12 + 4 * pixel[1] + 1.5])
    for axis in range(2):
        ray_part = (pixel[axis] - part.intrinsics[2 + axis]) / part.intrinsics[axis]
        ray_full = (on_sensor[axis] - full.intrinsics[2 + axis]) / full.intrinsics[axis]
        assert ray_part == pytest.approx(ray_full)


def test_rectified_images_use_p_and_no_distortion() -> None:
    p = np.array([[45.0, 0, 30, 0], [0, 45, 22, 0], [0, 0, 1, 0]])
    described = info([50, 0, 31, 0, 50, 23, 0, 0, 1], d=(0.1,) * 5, model='plumb_bob', p=p)
    camera = camera_from_info(described, '/rect', rectified=True)
    assert camera.intrinsics == (45.0, 45.0, 30.0, 22.0)
    assert camera.model == 'pinhole'
    assert camera_from_info(described, '/raw').model == 'radtan'


def test_baseline_faults() -> None:
    k = [50, 0, 31, 0, 50, 23, 0, 0, 1]
    left = info(k, p=np.array([[50.0, 0, 31, 0], [0, 50, 23, 0], [0, 0, 1, 0]]))
    for offset, message in ((0.0, r'P\[3\] = 0'), (5.0, 'swapped')):
        right = info(k, p=np.array([[50.0, 0, 31, offset], [0, 50, 23, 0], [0, 0, 1, 0]]))
        with pytest.raises(CalibrationError, match=message):
            left_from_right(left, right, '/right', rectified=True)
    with pytest.raises(CalibrationError, match='no P'):
        left_from_right(left, info(k), '/right', rectified=True)


@pytest.mark.parametrize('model', ['pinhole', 'radtan', 'rational', 'equidistant'])
def test_rig_survives_camera_info(rng: np.random.Generator, model: str) -> None:
    """Unrectified rigs too: R and P together hold the relative pose."""
    count = {'pinhole': 0, 'radtan': 5, 'rational': 8, 'equidistant': 4}[model]
    cameras = []
    for i in range(2):
        turn = matrix_from_quaternion((*rng.normal(0, 0.03, 3), 1.0))
        pose = rigid_transform(turn, (0.2 * i, 0.01 * i, -0.02 * i))
        intrinsics = (50.0 + i, 51.0 + i, 31.5, 23.5)
        distortion = tuple(rng.normal(0, 0.1, count))
        cameras.append(Camera(64, 48, intrinsics, model, distortion, pose))  # type: ignore[arg-type]
    infos = []
    for fields in fields_from_cameras(cameras):
        infos.append(
            CameraInfo(
                fields['width'],
                fields['height'],
                fields['k'].reshape(3, 3),
                tuple(fields['d']),
                fields['distortion_model'],
                fields['r'].reshape(3, 3),
                fields['p'].reshape(3, 4),
            )
        )
    relative = np.linalg.inv(cameras[0].body_from_camera) @ cameras[1].body_from_camera
    np.testing.assert_allclose(left_from_right(*infos, 'x', rectified=False), relative, atol=1e-12)
    for camera, described in zip(cameras, infos, strict=True):
        back = camera_from_info(described, 'x')
        assert (back.model, back.intrinsics) == (camera.model, camera.intrinsics)
        np.testing.assert_allclose(back.distortion, camera.distortion)


def test_rectified_rig_keeps_its_own_projection() -> None:
    right = rigid_transform(np.eye(3), (0.3, 0, 0))
    intrinsics = (50.0, 51.0, 31.5, 23.5)
    rig = Rig((Camera(64, 48, intrinsics), Camera(64, 48, intrinsics, body_from_camera=right)))
    left_fields, right_fields = fields_from_cameras(rig.cameras)
    np.testing.assert_array_equal(left_fields['r'], np.eye(3).ravel())
    assert left_fields['p'].tolist() == [50, 0, 31.5, 0, 0, 51, 23.5, 0, 0, 0, 1, 0]
    assert right_fields['p'][3] == pytest.approx(-50 * 0.3)


LAUGHS = 'a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n' + ''.join(
    f'a{k}: &a{k} [{", ".join([f"*a{k - 1}"] * 10)}]\n' for k in range(1, 12)
)
MERGES = 'm0: &m0 {a: 1, b: 2}\n' + ''.join(
    f'm{k}: &m{k} {{<<: [{", ".join([f"*m{k - 1}"] * 10)}]}}\n' for k in range(1, 12)
)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (f'{LAUGHS}image_width: *a11\nimage_height: 4\ncamera_matrix: *a11\n', 'list of numbers'),
        (f'{LAUGHS}T_BS: *a11\nresolution: [4, 4]\nintrinsics: *a11\n', 'list of numbers'),
        ('T_BS: &a [*a]\nresolution: [4, 4]\nintrinsics: [1, 1, 1, 1]\n', 'list of numbers'),
        (f'{MERGES}cam0: *m11\n', 'not YAML'),
        ('width: 2001-99-99\n', 'not YAML: month must be in'),
        (f'width: {5000 * "9"}\n', 'not YAML: Exceeds the limit'),
        (f'intrinsics: [1, 1, 1, 0x{5000 * "9"}]\n', 'a whole number of more than 64 bits'),
        (f'width: {3000 * "["}\n', 'not YAML'),
        ('cam0: 5\n', 'cam0: holds no keys'),
        ('0: 1\ncam0: {resolution: [], intrinsics: []}\n', 'intrinsics are fx fy cx cy, not 0'),
        ('cam0: {resolution: 7, intrinsics: [1, 1, 1, 1]}\n', '7 is not the size of an image'),
        ('resolution: [1]\nintrinsics: [1, 1, 1, 1]\n', 'is not the size of an image'),
        ('50 51 31 23 0 0 0 0 0 inf 48\n', 'image size: a number is not finite'),
    ],
)
def test_a_file_made_to_do_harm_is_refused(tmp_path: Path, content: str, message: str) -> None:
    """Lists within lists of aliases: 10^12 numbers in 12 lines; what PyYAML's parts raise."""
    with pytest.raises(CalibrationError, match=message) as raised:
        read_calibration(written(tmp_path, content))
    assert len(str(raised.value)) < 1500
