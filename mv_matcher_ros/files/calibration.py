# SPDX-License-Identifier: Apache-2.0
"""Calibration files: our own YAML, ROS camera_info, EuRoC sensor.yaml and Kalibr camchain.

docs/calibration.md has the keys with their meaning. Our own form describes a whole rig::

    body_axes: optical          # or rep103, when body_from_camera leads to a body of its own
    rate_hz: 20                 # stamps of image folders that have none
    depth_scale: 1000           # stored value of one metre in 16-bit depth images
    cameras:
      left:
        width: 640
        height: 480
        intrinsics: [fx, fy, cx, cy]       # pixels, pixel centres at integers
        model: radtan                      # pinhole, radtan, rational, equidistant
        distortion: [k1, k2, p1, p2, k3]
      right:
        …
        body_from_camera: [16 numbers]     # or baseline_m: 0.12 for a rectified pair

A rig of one camera may give the keys of the camera at the top instead of `cameras`, or be one row
of numbers (`plain_calibration`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mv_matcher_ros.datatypes import Array, Camera, Rig
from mv_matcher_ros.errors import CalibrationError
from mv_matcher_ros.files.camera_info import (
    camera_from_info,
    distortion_model,
    image_size,
    info_from_yaml,
    left_from_right,
    numbers,
)
from mv_matcher_ros.files.plain_calibration import FORM, is_row, read_row
from mv_matcher_ros.files.rotations import inverse_transform, rigid_transform

KEYS_ARE_IN = 'keys: docs/calibration.md'
_RIG_KEYS = {'cameras', 'body_axes', 'rate_hz', 'depth_scale'}
_CAMERA_KEYS = {
    'width',
    'height',
    'intrinsics',
    'model',
    'distortion',
    'body_from_camera',
    'baseline_m',
}


@dataclass(frozen=True)
class Calibration:
    """A rig, and what else a calibration file can say about a recording.

    Attributes:
        rig: the cameras.
        rate_hz: frames a second, for recordings without stamps.
        depth_scale: stored value of one metre in 16-bit depth images.
    """

    rig: Rig
    rate_hz: float | None = None
    depth_scale: float | None = None


def read_calibration(paths: Path | str | Sequence[Path | str]) -> Calibration:
    """Calibration of one file, or of one file per camera (left, right).

    Raises:
        CalibrationError: a file or a key in it is missing or wrong; names both.
    """
    if isinstance(paths, str | Path):
        path = Path(paths)
        text = _read_text(path)
        if is_row(text):
            camera, scale = read_row(path)
            return Calibration(Rig((camera,)), depth_scale=scale)
        return _calibration(path, _as_yaml(path, text))
    files = [Path(path) for path in paths]
    if len(files) == 1:
        return read_calibration(files[0])
    contents = [_as_yaml(path, _read_text(path)) for path in files]
    if len(files) == 2 and all('camera_matrix' in content for content in contents):
        left, right = (
            info_from_yaml(content, str(path))
            for path, content in zip(files, contents, strict=True)
        )
        # Two camera_info files describe raw images; their R and P say how the cameras stand to
        # each other.
        pose = left_from_right(left, right, str(files[1]), rectified=False)
        first = camera_from_info(left, files[0].stem)
        second = camera_from_info(right, files[1].stem, body_from_camera=pose)
        return Calibration(Rig((first, second)))
    parts = [_calibration(path, content) for path, content in zip(files, contents, strict=True)]
    cameras = tuple(camera for part in parts for camera in part.rig.cameras)
    if len(parts) == 2:
        _check_apart(cameras, str(files[1]))
    return replace(parts[0], rig=Rig(cameras, parts[0].rig.body_axes))


def _calibration(path: Path, content: Mapping[str, Any]) -> Calibration:
    where = str(path)
    if 'camera_matrix' in content:
        camera = camera_from_info(info_from_yaml(content, where), where)
        return Calibration(Rig((replace(camera, name=path.stem),)))
    if 'T_BS' in content or 'resolution' in content:
        return _from_euroc(path, content)
    if 'cam0' in content:
        return _from_kalibr(where, content)
    return _from_rig(path, content)


def _from_rig(path: Path, content: Mapping[str, Any]) -> Calibration:
    where = str(path)
    cameras = content.get('cameras')
    if cameras is None:
        described = {path.stem: {k: v for k, v in content.items() if k in _CAMERA_KEYS}}
        _refuse_unknown(content, _RIG_KEYS | _CAMERA_KEYS, where)
    elif isinstance(cameras, Mapping) and cameras:
        described = {str(name): camera for name, camera in cameras.items()}
        _refuse_unknown(content, _RIG_KEYS, where)
    else:
        raise CalibrationError(f'{where}: "cameras" must hold "name: …" entries')
    axes = content.get('body_axes', 'optical')
    if axes not in ('optical', 'rep103'):
        raise CalibrationError(f'{where}: body_axes is "{axes}", not optical or rep103')
    built: list[Camera] = []
    for name, camera in described.items():
        require(camera, (), f'{where}: camera "{name}"')
        _refuse_unknown(camera, _CAMERA_KEYS, f'{where}: camera "{name}"')
        # A right camera lies beside the left one of its own pair.
        left = built[(len(built) - 1) // 2 * 2].body_from_camera if built else None
        built.append(_camera(camera, name, f'{where}: camera "{name}"', left))
    _check_apart(built, where)
    return Calibration(
        Rig(tuple(built), axes),
        _positive(content, 'rate_hz', where),
        _positive(content, 'depth_scale', where),
    )


def _camera(content: Mapping[str, Any], name: str, where: str, left: Array | None) -> Camera:
    """One camera of our own form; `left` is the pose of the left camera, for `baseline_m`."""
    require(content, ('width', 'height', 'intrinsics'), where)
    intrinsics = numbers(content['intrinsics'], f'{where}: intrinsics')
    distortion = numbers(content.get('distortion', ()), f'{where}: distortion')
    model = distortion_model(str(content.get('model', '')), distortion, where)
    pose = np.eye(4)
    if 'body_from_camera' in content:
        pose = _pose(content['body_from_camera'], f'{where}: body_from_camera')
    elif 'baseline_m' in content:
        baseline = numbers([content['baseline_m']], f'{where}: baseline_m')[0]
        pose = (np.eye(4) if left is None else left) @ rigid_transform(np.eye(3), (baseline, 0, 0))
    size = content['width'], content['height']
    return _build(size, intrinsics, model, distortion, pose, name, where)


def _from_euroc(path: Path, content: Mapping[str, Any]) -> Calibration:
    where = str(path)
    require(content, ('resolution', 'intrinsics'), where)
    if str(content.get('camera_model', 'pinhole')) != 'pinhole':
        raise CalibrationError(f'{where}: camera_model "{content["camera_model"]}" is not pinhole')
    distortion = numbers(content.get('distortion_coefficients', ()), f'{where}: distortion')
    model = distortion_model(str(content.get('distortion_model', '')), distortion, where)
    pose = _pose(content['T_BS'], f'{where}: T_BS') if 'T_BS' in content else np.eye(4)
    intrinsics = numbers(content['intrinsics'], f'{where}: intrinsics')
    name = path.parent.name or path.stem
    camera = _build(content['resolution'], intrinsics, model, distortion, pose, name, where)
    rate = _positive(content, 'rate_hz', where)
    return Calibration(Rig((camera,), 'rep103' if 'T_BS' in content else 'optical'), rate)


def _from_kalibr(where: str, content: Mapping[str, Any]) -> Calibration:
    """Kalibr's camchain: `T_cn_cnm1` leads from one camera to the next; the first is the body."""
    cameras: list[Camera] = []
    body_from_previous = np.eye(4)
    names = (key for key in content if re.fullmatch(r'cam\d+', str(key)))
    for name in sorted(names):
        camera, place = content[name], f'{where}: {name}'
        require(camera, ('resolution', 'intrinsics'), place)
        if camera.get('camera_model', 'pinhole') != 'pinhole':
            raise CalibrationError(
                f'{place}: camera_model "{camera["camera_model"]}" is not pinhole'
            )
        if cameras:
            require(camera, ('T_cn_cnm1',), place)
            relative = _pose(camera['T_cn_cnm1'], f'{place}: T_cn_cnm1')
            body_from_previous = body_from_previous @ inverse_transform(relative)
        distortion = numbers(camera.get('distortion_coeffs', ()), f'{place}: distortion_coeffs')
        model = distortion_model(str(camera.get('distortion_model', '')), distortion, place)
        size, intrinsics = camera['resolution'], numbers(camera['intrinsics'], place)
        cameras.append(
            _build(size, intrinsics, model, distortion, body_from_previous, name, place)
        )
    _check_apart(cameras, where)
    return Calibration(Rig(tuple(cameras)))


def _build(
    size: Any,
    intrinsics: Sequence[float],
    model: Any,
    distortion: Sequence[float],
    pose: Array,
    name: str,
    where: str,
) -> Camera:
    """A Camera whose faults are said with the file."""
    if len(intrinsics) != 4:
        raise CalibrationError(
            f'{where}: intrinsics are fx fy cx cy, not {len(intrinsics)} values'
        )
    fx, fy, cx, cy = intrinsics
    width, height = image_size(size, where)
    coefficients = () if model == 'pinhole' else tuple(distortion)
    camera = Camera(width, height, (fx, fy, cx, cy), model, coefficients, pose, where)
    return replace(camera, name=name)


def _pose(value: Any, where: str) -> Array:
    flat = numbers(value, where)
    if len(flat) != 16:
        raise CalibrationError(f'{where}: {len(flat)} values, not 16')
    pose = np.array(flat).reshape(4, 4)
    if not np.allclose(pose[3], (0, 0, 0, 1)):
        raise CalibrationError(f'{where}: the last row is not 0 0 0 1')
    return pose


def _check_apart(cameras: Sequence[Camera], where: str) -> None:
    if len(cameras) > 1 and Rig(tuple(cameras)).baseline_m < 1e-6:
        raise CalibrationError(
            f'{where}: the two cameras are at the same place; '
            'missing key "body_from_camera" or "baseline_m"'
        )


def require(content: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    """Raise a CalibrationError that names the first of `keys` missing in `content`."""
    if not isinstance(content, Mapping):
        raise CalibrationError(f'{where}: holds no keys')
    for key in keys:
        if content.get(key) is None:
            raise CalibrationError(f'{where}: missing key "{key}"')


def _refuse_unknown(content: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in content:
        if key not in known:
            raise CalibrationError(
                f'{where}: unknown key "{key}"; known: {", ".join(sorted(known))}'
            )


def _positive(content: Mapping[str, Any], key: str, where: str) -> float | None:
    if content.get(key) is None:
        return None
    value = numbers([content[key]], f'{where}: {key}')[0]
    if value <= 0:
        raise CalibrationError(f'{where}: {key} = {value:g} is not positive')
    return value


class _Loader(yaml.SafeLoader):
    """YAML that also takes OpenCV's matrices for what they are: mappings with `data`."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """No `<<`: mappings merged into each other can make ten lines need all memory there is."""


def _opencv_matrix(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    return loader.construct_mapping(node, deep=True)


def _whole_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    """Python refuses to write out what has thousands of digits, and so to say what is wrong."""
    number = int(loader.construct_yaml_int(node))
    if number.bit_length() > 64:
        raise yaml.constructor.ConstructorError(
            problem='a whole number of more than 64 bits', problem_mark=node.start_mark
        )
    return number


_Loader.add_constructor('tag:yaml.org,2002:opencv-matrix', _opencv_matrix)
_Loader.add_constructor('tag:yaml.org,2002:int', _whole_number)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding='utf-8')
    except FileNotFoundError:
        raise CalibrationError(f'{path}: no such calibration file') from None
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f'{path}: not a readable file ({error})') from None


def _as_yaml(path: Path, text: str) -> dict[str, Any]:
    try:
        # OpenCV writes `%YAML:1.0`, which is no YAML directive.
        text = '\n'.join(line for line in text.splitlines() if not line.startswith('%YAML:'))
        content = yaml.load(text, _Loader)
    except Exception as error:  # not only YAMLError: what int, datetime and recursion raise, too
        raise CalibrationError(f'{path}: not YAML: {error}') from None
    if not isinstance(content, dict):
        raise CalibrationError(
            f'{path}: a calibration file holds "key: value" lines ({KEYS_ARE_IN}), or one row '
            f'"{FORM}"'
        )
    return content
