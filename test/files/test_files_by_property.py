# SPDX-License-Identifier: Apache-2.0
"""Laws of files and messages, for all values that there are: what is written is read."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as some

from mv_matcher_ros.datatypes import DISTORTION_SIZE, Camera, Trajectory
from mv_matcher_ros.errors import MvMatcherError
from mv_matcher_ros.files.bag_setup import stamp_ns_of
from mv_matcher_ros.files.calibration import read_calibration
from mv_matcher_ros.files.camera_info import (
    camera_from_info,
    fields_from_cameras,
    info_from_message,
    left_from_right,
)
from mv_matcher_ros.files.image_messages import (
    _ENCODINGS,
    depth_image,
    fields_of_compressed,
    fields_of_image,
    view_image,
)
from mv_matcher_ros.files.plain_calibration import read_row
from mv_matcher_ros.files.rotations import (
    inverse_transform,
    matrix_from_quaternion,
    nearest_rotation,
    quaternion_from_matrix,
    rigid_transform,
)
from mv_matcher_ros.files.stamps import stamp_from_text, text_from_stamp
from mv_matcher_ros.files.trajectory import read_tum, write_tum

STAMPS = some.integers(-(2**63) + 1, 2**63 - 1)
LENGTHS = some.floats(-1e6, 1e6)
# Turns of every kind: none, half ones, those next to both.
TURNS = some.tuples(*[some.sampled_from((0.0, 1.0, -1.0, 1e-9, 1e-160)) | some.floats(-1, 1)] * 4)
ENCODINGS = {
    'mono8': (1, 'u1'), '8UC1': (1, 'u1'), 'mono16': (1, 'u2'), '16UC1': (1, 'u2'),
    'bgr8': (3, 'u1'), '8UC3': (3, 'u1'), 'bgr16': (3, 'u2'), 'rgb8': (3, 'u1'),
    'rgb16': (3, 'u2'), 'bgra8': (4, 'u1'), '8UC4': (4, 'u1'), 'bgra16': (4, 'u2'),
    'rgba8': (4, 'u1'), 'rgba16': (4, 'u2'),
}  # fmt: skip
SEEDS = some.integers(0, 2**32 - 1)
SIDES = some.integers(1, 9)


@some.composite
def rotations(draw: some.DrawFn) -> np.ndarray:
    quaternion = np.array(draw(TURNS))
    assume(np.linalg.norm(quaternion) > 1e-6)
    return matrix_from_quaternion(quaternion)


@some.composite
def poses(draw: some.DrawFn) -> np.ndarray:
    return rigid_transform(draw(rotations()), [draw(LENGTHS) for _ in range(3)])


@some.composite
def cameras(draw: some.DrawFn) -> Camera:
    model: Any = draw(some.sampled_from(sorted(DISTORTION_SIZE)))
    focal = some.floats(1e-3, 1e5)
    centre = some.floats(-1e4, 1e4)
    bent = some.floats(-10, 10).filter(lambda c: c != 0)
    return Camera(
        draw(some.integers(1, 65535)), draw(some.integers(1, 65535)),
        (draw(focal), draw(focal), draw(centre), draw(centre)), model,
        tuple(draw(bent) for _ in range(DISTORTION_SIZE[model])), draw(poses()),
    )  # fmt: skip


def same_camera(one: Camera, other: Camera) -> None:
    assert (one.width, one.height, one.model) == (other.width, other.height, other.model)
    assert one.intrinsics == pytest.approx(other.intrinsics, rel=1e-12, abs=1e-12)
    assert one.distortion == other.distortion


# ------------------------------------------------------------------- messages


def message_of(pixels: np.ndarray, encoding: str, padding: int, big_endian: bool) -> Any:
    """An Image whose rows are followed by noise."""
    if big_endian:
        pixels = pixels.astype(pixels.dtype.newbyteorder('>'))
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(len(pixels), -1)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
    return SimpleNamespace(
        height=pixels.shape[0], width=pixels.shape[1], encoding=encoding, step=padded.shape[1],
        is_bigendian=int(big_endian), data=padded.tobytes(),
    )  # fmt: skip


@given(
    some.sampled_from(sorted(ENCODINGS)), SIDES, SIDES, some.integers(0, 5), some.booleans(), SEEDS
)
def test_pixels_of_every_encoding_are_those_sent(
    encoding: str, height: int, width: int, padding: int, big_endian: bool, seed: int
) -> None:
    channels, kind = ENCODINGS[encoding]
    shape = (height, width) if channels == 1 else (height, width, channels)
    eight = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    sent = eight if kind == 'u1' else eight.astype(np.uint16) * 257
    found = view_image(message_of(sent, encoding, padding, big_endian), 'x')
    wanted = eight if channels == 1 else eight[:, :, :3]
    if encoding.startswith('rgb'):
        wanted = wanted[:, :, ::-1]
    np.testing.assert_array_equal(found, wanted)


@given(SIDES, SIDES, some.integers(0, 5), some.booleans(), SEEDS)
def test_depth_is_what_was_sent(
    height: int, width: int, padding: int, big_endian: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    metres = rng.uniform(0.001, 60.0, (height, width)).astype(np.float32)
    metres[rng.random(metres.shape) < 0.3] = rng.choice((np.nan, np.inf, -1.0, 0.0))
    known = np.where(np.isfinite(metres) & (metres > 0), metres, 0).astype(np.float32)
    found = depth_image(message_of(metres, '32FC1', padding, big_endian), 'x')
    np.testing.assert_array_equal(found, known)
    whole = (known * 1000).astype(np.uint16)
    found = depth_image(message_of(whole, '16UC1', padding, big_endian), 'x')
    np.testing.assert_allclose(found, whole / 1000, rtol=1e-6)


@given(SIDES, SIDES, some.booleans(), SEEDS)
def test_images_come_back_from_fields(height: int, width: int, colour: bool, seed: int) -> None:
    shape = (height, width, 3) if colour else (height, width)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    for fields in (fields_of_image(pixels), fields_of_compressed(pixels, 'png')):
        np.testing.assert_array_equal(view_image(SimpleNamespace(**fields), 'x'), pixels)


@given(SIDES, SIDES, SEEDS)
def test_no_bytes_of_a_message_are_worse_than_refused(height: int, width: int, seed: int) -> None:
    """Any encoding with any data: pixels of the size that is said, or an error of ours."""
    rng = np.random.default_rng(seed)
    for encoding in (*_ENCODINGS, 'unknown'):
        message = SimpleNamespace(
            height=height, width=width, encoding=encoding, step=int(rng.integers(0, 80)),
            is_bigendian=int(rng.integers(2)), data=rng.bytes(int(rng.integers(0, 700))),
        )  # fmt: skip
        for read in (view_image, depth_image):
            with suppress(MvMatcherError):
                assert read(message, 'x').shape[:2] == (height, width)


# ----------------------------------------------------------- stamps, rotations


@given(STAMPS)
def test_stamps_are_exact_as_text(stamp_ns: int) -> None:
    assert stamp_from_text(text_from_stamp(stamp_ns)) == stamp_ns


@given(some.text(max_size=30) | some.from_regex(r'[+-]?[0-9]{0,25}\.?[0-9]*(e[+-]?[0-9]{1,7})?'))
def test_any_text_is_a_stamp_of_64_bits_or_none(text: str) -> None:
    try:
        found = stamp_from_text(text)
    except ValueError:
        return
    assert abs(found) < 2**63


@given(some.integers(-(2**31), 2**31 - 1), some.integers(0, 10**9 - 1))
def test_stamps_of_messages_are_nanoseconds(sec: int, nanosec: int) -> None:
    stamp = SimpleNamespace(sec=sec, nanosec=nanosec)
    found = stamp_ns_of(SimpleNamespace(header=SimpleNamespace(stamp=stamp)))
    assert divmod(found, 10**9) == (sec, nanosec)


@given(rotations())
def test_rotations_come_back_from_quaternions(rotation: np.ndarray) -> None:
    quaternion = quaternion_from_matrix(rotation)
    assert quaternion[3] >= 0
    np.testing.assert_allclose(np.linalg.norm(quaternion), 1, atol=1e-12)
    np.testing.assert_allclose(matrix_from_quaternion(quaternion), rotation, atol=1e-12)
    np.testing.assert_allclose(nearest_rotation(rotation), rotation, atol=1e-12)


@given(poses())
def test_a_transform_and_its_inverse_are_nothing(pose: np.ndarray) -> None:
    np.testing.assert_allclose(inverse_transform(pose) @ pose, np.eye(4), atol=1e-8)


# ---------------------------------------------------------------------- files


@given(
    some.lists(poses(), min_size=1, max_size=5),
    some.lists(STAMPS, min_size=5, max_size=5, unique=True),
)
def test_trajectories_come_back(path: list[np.ndarray], stamps: list[int]) -> None:
    trajectory = Trajectory(np.array(sorted(stamps)[: len(path)]), np.array(path))
    with tempfile.TemporaryDirectory() as folder:
        write_tum(Path(folder) / 't.tum', trajectory)
        back = read_tum(Path(folder) / 't.tum')
    np.testing.assert_array_equal(back.stamps_ns, trajectory.stamps_ns)
    np.testing.assert_allclose(back.world_from_body, trajectory.world_from_body, atol=1e-12)
    np.testing.assert_array_equal(back.world_from_body[:, :3, 3], np.array(path)[:, :3, 3])


@given(some.lists(cameras(), min_size=1, max_size=2), some.sampled_from(('optical', 'rep103')))
def test_calibrations_come_back(rig: list[Camera], axes: str) -> None:
    content = {
        'body_axes': axes,
        'cameras': {
            f'camera {number}': {
                'width': camera.width, 'height': camera.height, 'model': camera.model,
                'intrinsics': list(camera.intrinsics), 'distortion': list(camera.distortion),
                'body_from_camera': camera.body_from_camera.tolist(),
            }
            for number, camera in enumerate(rig)
        },
    }  # fmt: skip
    apart = np.linalg.norm(rig[0].body_from_camera[:3, 3] - rig[-1].body_from_camera[:3, 3])
    assume(len(rig) == 1 or apart > 1e-5)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / 'cal.yaml').write_text(yaml.safe_dump(content))
        back = read_calibration(Path(folder) / 'cal.yaml').rig
    assert back.body_axes == axes
    for one, other in zip(rig, back.cameras, strict=True):
        same_camera(one, other)
        np.testing.assert_array_equal(one.body_from_camera, other.body_from_camera)


@given(cameras())
def test_a_row_of_numbers_is_its_camera(camera: Camera) -> None:
    assume(camera.model in ('pinhole', 'radtan'))
    distortion = camera.distortion or (0.0,) * 5
    row = (*camera.intrinsics, *distortion, camera.width, camera.height)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / 'cal.txt').write_text(' '.join(map(repr, row)))
        same_camera(camera, read_row(Path(folder) / 'cal.txt')[0])


def info_of(fields: dict[str, Any], binning: tuple[int, int], roi: tuple[int, ...]) -> Any:
    """A message of fields, in the form of ROS 1 if they are capitals."""
    region = dict(zip(('x_offset', 'y_offset', 'width', 'height'), roi, strict=True))
    changed = {'binning_x': binning[0], 'binning_y': binning[1]}
    return SimpleNamespace(
        **(fields | changed), roi=SimpleNamespace(**region), header=SimpleNamespace(frame_id='f')
    )


@given(cameras(), some.booleans())
def test_a_camera_comes_back_from_its_info(camera: Camera, ros1: bool) -> None:
    [fields] = fields_from_cameras([camera])
    if ros1:
        fields = {name.upper() if len(name) == 1 else name: v for name, v in fields.items()}
    info = info_from_message(info_of(fields, (0, 0), (0, 0, 0, 0)))
    same_camera(camera, camera_from_info(info, 'x'))


@given(
    cameras(), some.tuples(some.integers(1, 4), some.integers(1, 4)),
    some.tuples(*[some.integers(0, 400)] * 2, *[some.integers(4, 400)] * 2),
    some.tuples(some.floats(-1, 1), some.floats(-1, 1)),
)  # fmt: skip
def test_binning_and_regions_keep_rays(
    camera: Camera, binning: tuple[int, int], roi: tuple[int, ...], ray: tuple[float, float]
) -> None:
    """A ray meets the sensor where pixels of the part say that they lie on it."""
    [fields] = fields_from_cameras([camera])
    part = camera_from_info(info_from_message(info_of(fields, binning, roi)), 'x')
    assert (part.width, part.height) == (roi[2] // binning[0], roi[3] // binning[1])
    for axis in range(2):
        whole = camera.intrinsics[axis] * ray[axis] + camera.intrinsics[2 + axis]
        here = part.intrinsics[axis] * ray[axis] + part.intrinsics[2 + axis]
        there = (here + 0.5) * binning[axis] - 0.5 + roi[axis]
        assert there == pytest.approx(whole, rel=1e-9, abs=1e-6)


@given(rotations(), some.floats(0.01, 10.0), cameras())
def test_a_pair_comes_back_from_its_infos(
    turn: np.ndarray, baseline: float, camera: Camera
) -> None:
    """However the cameras are turned to each other, unless one looks along the baseline."""
    pose = rigid_transform(turn, (baseline, 0.1 * baseline, 0.0))
    forward = np.array((0.0, 0.0, 1.0)) + turn[:, 2]
    assume(np.linalg.norm(np.cross(forward, pose[:3, 3])) > 0.1 * baseline)
    others = {'model': camera.model, 'distortion': camera.distortion}
    pair = [
        Camera(camera.width, camera.height, camera.intrinsics, body_from_camera=where, **others)  # type: ignore[arg-type]
        for where in (np.eye(4), pose)
    ]
    infos = [info_from_message(info_of(f, (1, 1), (0,) * 4)) for f in fields_from_cameras(pair)]
    found = left_from_right(*infos, 'x', rectified=False)
    np.testing.assert_allclose(found, pose, atol=1e-9)
