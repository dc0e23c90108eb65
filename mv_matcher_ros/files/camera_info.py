# SPDX-License-Identifier: Apache-2.0
"""ROS camera information, from sensor_msgs/CameraInfo or camera_info YAML, to cameras and back."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from mv_matcher_ros.datatypes import Array, Camera, DistortionModel
from mv_matcher_ros.errors import CalibrationError
from mv_matcher_ros.files.rotations import rigid_transform

_MODELS: dict[str, DistortionModel] = {
    'plumb_bob': 'radtan',
    'radial-tangential': 'radtan',
    'radtan': 'radtan',
    'rational_polynomial': 'rational',
    'rational': 'rational',
    'equidistant': 'equidistant',
    'fisheye': 'equidistant',
    'kannala_brandt': 'equidistant',
    'kannala_brandt4': 'equidistant',
    'none': 'pinhole',
    'pinhole': 'pinhole',
}
# Of one key of a calibration file; the longest that is known has 16.
_MOST_NUMBERS = 64
_ROS_NAMES = {
    'pinhole': 'plumb_bob',
    'radtan': 'plumb_bob',
    'rational': 'rational_polynomial',
    'equidistant': 'equidistant',
}


@dataclass(frozen=True)
class CameraInfo:
    """What a camera_info says, whatever it came from.

    Attributes:
        width, height: full size of the sensor in pixels; 0 where it was not filled in.
        k: (3, 3) intrinsics of the raw image. d: distortion. model: ROS name of it.
        r: (3, 3) rotation rectified_from_camera. p: (3, 4) projection of the rectified image.
        binning: (x, y) pixels of the sensor in one of the image. roi: (x, y, width, height), zeros
            for all.
        frame: name of the optical frame.
    """

    width: int
    height: int
    k: Array
    d: tuple[float, ...] = ()
    model: str = ''
    r: Array | None = None
    p: Array | None = None
    binning: tuple[int, int] = (1, 1)
    roi: tuple[int, int, int, int] = (0, 0, 0, 0)
    frame: str = ''


def info_from_message(message: Any) -> CameraInfo:
    """CameraInfo of a ROS 1 (K, D, R, P) or ROS 2 (k, d, r, p) message, out of a bag or live."""

    def field(name: str) -> list[float]:
        values = getattr(message, name, None)
        return [float(v) for v in (getattr(message, name.upper()) if values is None else values)]

    roi = message.roi
    return CameraInfo(
        width=int(message.width),
        height=int(message.height),
        k=np.array(field('k')).reshape(3, 3),
        d=tuple(field('d')),
        model=str(message.distortion_model),
        r=np.array(field('r')).reshape(3, 3),
        p=np.array(field('p')).reshape(3, 4),
        binning=(max(int(message.binning_x), 1), max(int(message.binning_y), 1)),
        roi=(int(roi.x_offset), int(roi.y_offset), int(roi.width), int(roi.height)),
        frame=str(message.header.frame_id),
    )


def distortion_model(name: str, coefficients: Sequence[float], where: str) -> DistortionModel:
    """Our name of a distortion model; one without distortion is `pinhole`, which is faster.

    Raises:
        CalibrationError: a model that is not known.
    """
    key = name.strip().lower()
    if not key:  # some drivers leave the name out
        key = 'plumb_bob' if len(coefficients) <= 5 else 'rational_polynomial'
    if key not in _MODELS:
        known = 'plumb_bob, rational_polynomial, equidistant'
        raise CalibrationError(f'{where}: distortion model "{name}" is unknown; known: {known}')
    model = _MODELS[key]
    # Equidistant with zero coefficients is still a fisheye.
    return 'pinhole' if model != 'equidistant' and not any(coefficients) else model


def camera_from_info(
    info: CameraInfo, name: str, rectified: bool = False, body_from_camera: Array | None = None
) -> Camera:
    """The camera that took the images described by `info`.

    Args:
        info: calibration; binning and region of interest are applied.
        name: topic or file, for messages.
        rectified: the images are rectified: P holds the intrinsics and there is no distortion.
        body_from_camera: (4, 4) pose in the body, default identity.

    Raises:
        CalibrationError: K[0] (P[0]) is zero: the camera was never calibrated; or an unknown
            distortion model.
    """
    matrix = info.p if rectified and info.p is not None else info.k
    letter = 'P' if rectified else 'K'
    if matrix[0, 0] <= 0:
        raise CalibrationError(
            f'{name}: camera_info has {letter}[0] = {matrix[0, 0]:g}, the camera is not '
            'calibrated; calibrate it or give a calibration file'
        )
    distortion = () if rectified else info.d
    model = distortion_model('none' if rectified else info.model, distortion, name)
    (x, y, width, height), (bin_x, bin_y) = info.roi, info.binning
    # Binning merges pixels, so borders scale and pixel centres, half a pixel inside, do not.
    return Camera(
        (width or info.width) // bin_x,
        (height or info.height) // bin_y,
        (
            float(matrix[0, 0]) / bin_x,
            float(matrix[1, 1]) / bin_y,
            (float(matrix[0, 2]) - x + 0.5) / bin_x - 0.5,
            (float(matrix[1, 2]) - y + 0.5) / bin_y - 0.5,
        ),
        model,
        () if model == 'pinhole' else distortion,
        np.eye(4) if body_from_camera is None else body_from_camera,
        name,
    )


def left_from_right(left: CameraInfo, right: CameraInfo, name: str, rectified: bool) -> Array:
    """(4, 4) pose of the right camera in the left one, from P = [K' | -fx' B] and, if raw, R.

    Args:
        left, right: calibration of a stereo pair.
        name: for messages.
        rectified: the images are rectified, so R has been applied to them.

    Raises:
        CalibrationError: no baseline in P, or one of the wrong sign: left and right are swapped.
    """
    offsets = []
    for info in (left, right):
        if info.p is None or info.p[0, 0] <= 0:
            raise CalibrationError(f'{name}: camera_info has no P, so the baseline is not known')
        offsets.append(-info.p[:2, 3] / np.diagonal(info.p)[:2])
    baseline = offsets[1] - offsets[0]
    if not np.any(np.abs(baseline) > 1e-6):
        raise CalibrationError(
            f'{name}: right camera_info has P[3] = 0, so the baseline is not known; '
            'calibrate as stereo, or give a calibration file'
        )
    # A vertical rig has its baseline in P[7]; the second camera lies right of, or below, the
    # first.
    if baseline[np.argmax(np.abs(baseline))] < 0:
        raise CalibrationError(
            f'{name}: right camera_info has P[3] > 0, a negative baseline; '
            'are left and right swapped?'
        )
    rotations = []
    for info in (left, right):
        given = not rectified and info.r is not None and bool(np.any(info.r))
        rotations.append(info.r if given and info.r is not None else np.eye(3))
    rectified_left_from_right = rigid_transform(np.eye(3), (*baseline, 0.0))
    left_rotation = rigid_transform(rotations[0].T, np.zeros(3))
    return left_rotation @ rectified_left_from_right @ rigid_transform(rotations[1], np.zeros(3))


def fields_from_cameras(cameras: Sequence[Camera]) -> list[dict[str, Any]]:
    """Fields of a CameraInfo message (all but header and roi) of the cameras of a rig.

    For two cameras R and P are those of the rectified pair, so that the reader of the messages
    finds the exact relative pose again. More of them are pairs, one after the other.
    """
    if len(cameras) > 2:
        return fields_from_cameras(cameras[:2]) + fields_from_cameras(cameras[2:])
    projections = [np.hstack((camera.matrix, np.zeros((3, 1)))) for camera in cameras]
    rotations = [np.eye(3) for _ in cameras]
    if len(cameras) == 2:
        body_from_left, body_from_right = (camera.body_from_camera for camera in cameras)
        relative = np.linalg.inv(body_from_left) @ body_from_right
        rotations = list(_rectifying_rotations(relative))
        aligned = all(np.allclose(rotation, np.eye(3), atol=1e-12) for rotation in rotations)
        same = cameras[0].intrinsics == cameras[1].intrinsics
        if not (aligned and same):  # one pinhole for both, as rectification would choose it
            shared = np.mean([camera.matrix for camera in cameras], axis=0)
            shared[0, 0] = shared[1, 1] = 0.5 * (shared[0, 0] + shared[1, 1])
            projections = [np.hstack((shared, np.zeros((3, 1)))) for _ in cameras]
        projections[1][0, 3] = -projections[1][0, 0] * float(np.linalg.norm(relative[:3, 3]))
    return [
        {
            'height': camera.height,
            'width': camera.width,
            'distortion_model': _ROS_NAMES[camera.model],
            'd': np.array(camera.distortion if camera.distortion else np.zeros(5)),
            'k': camera.matrix.ravel(),
            'r': rotation.ravel(),
            'p': projection.ravel(),
            'binning_x': 0,
            'binning_y': 0,
        }
        for camera, rotation, projection in zip(cameras, rotations, projections, strict=True)
    ]


def _rectifying_rotations(left_from_right_pose: Array) -> tuple[Array, Array]:
    """Rotations that make the rows of a pair parallel to its baseline (Fusiello et al., 2000)."""
    rotation, x = left_from_right_pose[:3, :3], left_from_right_pose[:3, 3].copy()
    x /= np.linalg.norm(x)
    forward = np.array([0.0, 0.0, 1.0]) + rotation[:, 2]  # between the two optical axes
    y = np.cross(forward, x)
    y /= np.linalg.norm(y)
    left = np.stack((x, y, np.cross(x, y)))
    return left, left @ rotation


def info_from_yaml(content: Mapping[str, Any], where: str) -> CameraInfo:
    """CameraInfo of a camera_info YAML file (camera_calibration, OpenCV's calibration sample).

    Raises:
        CalibrationError: a key is missing or a matrix has the wrong number of values.
    """

    def matrix(key: str, rows: int, columns: int) -> Array:
        values = numbers(content[key], f'{where}: {key}')
        if len(values) != rows * columns:
            raise CalibrationError(
                f'{where}: {key} has {len(values)} values, not {rows * columns}'
            )
        return np.array(values).reshape(rows, columns)

    for key in ('image_width', 'image_height', 'camera_matrix'):
        if key not in content:
            raise CalibrationError(f'{where}: missing key "{key}"')
    width, height = image_size((content['image_width'], content['image_height']), where)
    coefficients: tuple[float, ...] = ()
    if 'distortion_coefficients' in content:
        coefficients = tuple(
            numbers(content['distortion_coefficients'], f'{where}: distortion_coefficients')
        )
    return CameraInfo(
        width=width,
        height=height,
        k=matrix('camera_matrix', 3, 3),
        d=coefficients,
        model=str(content.get('distortion_model', '')),
        r=matrix('rectification_matrix', 3, 3) if 'rectification_matrix' in content else None,
        p=matrix('projection_matrix', 3, 4) if 'projection_matrix' in content else None,
    )


def numbers(value: Any, where: str) -> list[float]:
    """Flat list of numbers of a YAML value: a list, nested lists, or a matrix with `data`.

    Raises:
        CalibrationError: no numbers there.
    """
    if isinstance(value, Mapping):
        if 'data' not in value:
            raise CalibrationError(f'{where}: missing key "data"')
        value = value['data']
    try:
        flat = list(islice(_flat(value), _MOST_NUMBERS + 1))
    except (TypeError, ValueError, OverflowError):
        shown = reprlib.repr(value)
        raise CalibrationError(f'{where}: {shown} is not a list of numbers') from None
    if len(flat) > _MOST_NUMBERS:
        raise CalibrationError(f'{where}: more than {_MOST_NUMBERS} numbers')
    if not np.isfinite(flat).all():
        raise CalibrationError(f'{where}: a number is not finite')
    return flat


def _flat(value: Any, depth: int = 0) -> Iterator[float]:
    """One by one: aliases make a few lines of YAML a list of any length, or one within itself."""
    if not isinstance(value, list | tuple):
        yield float(value)
    elif depth == 2:
        raise ValueError('a list of lists of lists')
    else:
        for one in value:
            yield from _flat(one, depth + 1)


def image_size(value: Any, where: str) -> tuple[int, int]:
    """(width, height) of a YAML value.

    Raises:
        CalibrationError: not two whole numbers.
    """
    size = numbers(value, f'{where}: image size')
    if len(size) != 2 or any(side != int(side) for side in size):
        shown = reprlib.repr(value)
        raise CalibrationError(f'{where}: {shown} is not the size of an image, width and height')
    return int(size[0]), int(size[1])
