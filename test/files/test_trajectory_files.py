# SPDX-License-Identifier: Apache-2.0
"""Trajectories survive a file unchanged, and damaged files are refused by line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mv_matcher_ros.datatypes import Trajectory
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.files.rotations import (
    inverse_transform,
    matrix_from_quaternion,
    nearest_rotation,
    quaternion_from_matrix,
)
from mv_matcher_ros.files.stamps import stamp_from_text, text_from_stamp
from mv_matcher_ros.files.trajectory import (
    read_euroc_truth,
    read_kitti_poses,
    read_tartanair_poses,
    read_tum,
    write_tum,
)

Poses = Callable[[int], np.ndarray]
IDENTITY_ROW = '0 0 0 0 0 0 1'


def test_rotations_agree_with_scipy(rng: np.random.Generator) -> None:
    quaternions = rng.normal(size=(200, 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    matrices = matrix_from_quaternion(quaternions)
    np.testing.assert_allclose(matrices, Rotation.from_quat(quaternions).as_matrix(), atol=1e-14)
    signs = np.where(quaternions[:, 3:] < 0, -1.0, 1.0)
    np.testing.assert_allclose(quaternion_from_matrix(matrices), signs * quaternions, atol=1e-14)


@pytest.mark.parametrize('axis', [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.6, -0.8, 0)])
@pytest.mark.parametrize('angle_rad', [0.0, 1e-9, np.pi - 1e-9, np.pi])
def test_quaternions_at_the_limits(axis: tuple[float, ...], angle_rad: float) -> None:
    matrix = Rotation.from_rotvec(np.array(axis) * angle_rad).as_matrix()
    back = matrix_from_quaternion(quaternion_from_matrix(matrix))
    np.testing.assert_allclose(back, matrix, atol=1e-14)


def test_quaternion_of_no_length_is_refused() -> None:
    with pytest.raises(ValueError, match='zero'):
        matrix_from_quaternion((0, 0, 0, 0))


def test_nearest_rotation_repairs_rounding_and_reflection(poses: Poses) -> None:
    exact = poses(20)[:, :3, :3]
    repaired = nearest_rotation(np.round(exact, 6))
    np.testing.assert_allclose(repaired, exact, atol=2e-6)
    np.testing.assert_allclose(np.linalg.det(repaired), 1.0, atol=1e-14)
    assert np.linalg.det(nearest_rotation(np.diag([1.0, 1.0, -0.1]))) == pytest.approx(1.0)


def test_inverse_transform(poses: Poses) -> None:
    some = poses(5)
    np.testing.assert_allclose(
        inverse_transform(some) @ some, np.broadcast_to(np.eye(4), (5, 4, 4)), atol=1e-14
    )


@pytest.mark.parametrize(
    ('text', 'stamp_ns'),
    [
        ('1403715273.262142976', 1403715273262142976),
        ('1403715273262142976', 1403715273262142976),
        ('1.038752e-01', 103875200),
        ('0', 0),
        ('12', 12_000_000_000),
        ('-0.000000001', -1),
        ('0.0000000006', 1),
    ],
)
def test_stamps_are_exact(text: str, stamp_ns: int) -> None:
    assert stamp_from_text(text) == stamp_ns
    assert stamp_from_text(text_from_stamp(stamp_ns)) == stamp_ns


@pytest.mark.parametrize('text', ['nan', 'inf', 'rgb/1.png', ''])
def test_what_is_no_stamp(text: str) -> None:
    with pytest.raises(ValueError, match='not a time stamp'):
        stamp_from_text(text)


def test_tum_round_trip_is_exact(tmp_path: Path, poses: Poses) -> None:
    stamps = 1_700_000_000_123_456_789 + np.arange(50, dtype=np.int64) * 33_333_333
    trajectory = Trajectory(stamps, poses(50))
    write_tum(tmp_path / 'a.tum', trajectory)
    back = read_tum(tmp_path / 'a.tum')
    np.testing.assert_array_equal(back.stamps_ns, stamps)
    np.testing.assert_array_equal(
        back.world_from_body[:, :3, 3], trajectory.world_from_body[:, :3, 3]
    )
    np.testing.assert_allclose(
        back.world_from_body, trajectory.world_from_body, atol=2e-15, rtol=0
    )


def test_tum_with_comments_commas_and_repeated_stamps(tmp_path: Path) -> None:
    path = tmp_path / 'a.txt'
    path.write_text(
        f'# head\n\n1.0 {IDENTITY_ROW} # tail\n1.0 {IDENTITY_ROW}\n2.0,1,2,3,0,0,0,1\n'
    )
    trajectory = read_tum(path)
    assert trajectory.stamps_ns.tolist() == [1_000_000_000, 2_000_000_000]
    assert trajectory.world_from_body[1, :3, 3].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('', 'empty, no poses'),
        ('# only a comment\n', 'empty, no poses'),
        (f'1 {IDENTITY_ROW}\n2 0 0 0 0 0 1\n', ':2: 7 columns instead of 8'),
        (f'1 {IDENTITY_ROW}\n\nx {IDENTITY_ROW}\n', ':3: "x" is not a time stamp'),
        ('1 0 0 zero 0 0 0 1\n', ':1: could not convert'),
        ('1 0 0 nan 0 0 0 1\n', ':1: a number is not finite'),
        ('1 0 0 0 0 0 0 0\n', ':1: columns 5 to 8 are not a unit quaternion'),
        (f'2 {IDENTITY_ROW}\n1 {IDENTITY_ROW}\n', ':2: the time stamps run backwards'),
    ],
)
def test_bad_tum_is_refused_by_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / 'bad.tum'
    path.write_text(content)
    with pytest.raises(SourceError) as raised:
        read_tum(path)
    assert str(raised.value).startswith(str(path))
    assert message in str(raised.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r'nowhere\.tum: no such file'):
        read_tum(tmp_path / 'nowhere.tum')


def test_kitti_poses(tmp_path: Path, poses: Poses) -> None:
    some = poses(3)
    path = tmp_path / 'poses.txt'
    path.write_text('\n'.join(' '.join(f'{v:.6e}' for v in p[:3].ravel()) for p in some))
    read = read_kitti_poses(path, [0, 1, 2])
    np.testing.assert_allclose(read.world_from_body, some, atol=2e-6)
    rotations = read.world_from_body[:, :3, :3]
    np.testing.assert_allclose(
        rotations @ rotations.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (3, 3, 3)), atol=1e-14
    )
    with pytest.raises(SourceError, match=r'3 poses, but times\.txt has 2 rows'):
        read_kitti_poses(path, [0, 1])
    path.write_text('2 0 0 0 0 1 0 0 0 0 1 0\n')
    with pytest.raises(SourceError, match=r':1: the first 3x3 numbers are not a rotation'):
        read_kitti_poses(path, [0])


def test_euroc_truth_has_w_first(tmp_path: Path) -> None:
    path = tmp_path / 'data.csv'
    path.write_text('#timestamp, p, q\n1403715273262142976,1,2,3,0.0,1.0,0.0,0.0,9,9,9\n')
    truth = read_euroc_truth(path)
    assert truth.stamps_ns.tolist() == [1403715273262142976]
    np.testing.assert_allclose(truth.world_from_body[0, :3, :3], np.diag([1, -1, -1]), atol=1e-15)


def test_tartanair_axes(tmp_path: Path) -> None:
    """A camera at (north 1, east 2, down 3) looks north: forward is the world's x, down is -z."""
    path = tmp_path / 'pose_left.txt'
    path.write_text('1 2 3 0 0 0 1\n')
    pose = read_tartanair_poses(path, [0]).world_from_body[0]
    np.testing.assert_allclose(pose[:3, 3], (1, -2, -3))
    right, down, forward = pose[:3, :3].T
    np.testing.assert_allclose(forward, (1, 0, 0))
    np.testing.assert_allclose(down, (0, 0, -1))
    np.testing.assert_allclose(right, (0, -1, 0))
    with pytest.raises(SourceError, match='1 poses, but there are 2 images'):
        read_tartanair_poses(path, [0, 1])


@pytest.mark.parametrize(
    'stamp',
    ['1e400000', '-1e999999', '1e10', '9223372036.854775808', '99999999999999999999', 'inf'],
)
def test_stamps_that_64_bits_do_not_hold(tmp_path: Path, stamp: str) -> None:
    """The first has as many digits as a small book when it is written out."""
    path = tmp_path / 't.txt'
    path.write_text(f'{stamp} 0 0 0 0 0 0 1\n')
    with pytest.raises(SourceError, match=r't\.txt:1: ".*" is not a time stamp'):
        read_tum(path)


def test_places_whose_squares_are_no_numbers(tmp_path: Path) -> None:
    path = tmp_path / 'poses.txt'
    path.write_text('1e200 0 0 0 0 1 0 0 0 0 1 0\n')
    with pytest.raises(SourceError, match=r'poses\.txt:1: a number is larger than'):
        read_kitti_poses(path, [0])
