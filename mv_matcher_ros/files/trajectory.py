# SPDX-License-Identifier: Apache-2.0
"""Trajectories in files: TUM in and out, KITTI, EuRoC and TartanAir ground truth in.

Which of these a file is, and where a recording keeps its truth, is the subject of `truth`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Array, Trajectory
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.files.rotations import (
    matrix_from_quaternion,
    nearest_rotation,
    quaternion_from_matrix,
    rigid_transform,
)
from mv_matcher_ros.files.stamps import stamp_from_text, text_from_stamp
from mv_matcher_ros.files.text import read_rows

# Beyond it lies no pose, and the squares of numbers are none.
_LARGEST = 1e100
# TartanAir's camera frame is x forward, y right, z down; the optical frame is x right, y down, z
# forward.
NED_FROM_OPTICAL = np.array(
    [[0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
)
# A world with z up is drawn the right way round by every viewer: north, west, up from north, east,
# down.
NWU_FROM_NED = np.diag([1.0, -1.0, -1.0, 1.0])


def read_tum(path: Path | str) -> Trajectory:
    """Trajectory of rows `t x y z qx qy qz qw`; `#` begins a comment, commas count as blanks.

    A row that repeats the stamp before it is left out.

    Raises:
        SourceError: missing file, no rows, a row that is not eight numbers, stamps that run
            backwards; names the line.
    """
    path = Path(path)
    return _from_rows(path, pose_rows(path, 8), 'TUM')


def write_tum(path: Path | str, trajectory: Trajectory) -> None:
    """Write `trajectory` as TUM rows: stamps exact to the nanosecond, poses in full precision."""
    rows = (
        tum_row(int(stamp), pose)
        for stamp, pose in zip(trajectory.stamps_ns, trajectory.world_from_body, strict=True)
    )
    Path(path).write_text(''.join(rows), encoding='utf-8')


def tum_row(stamp_ns: int, world_from_body: Array) -> str:
    """One line `t x y z qx qy qz qw` with its line end."""
    numbers = (*world_from_body[:3, 3], *quaternion_from_matrix(world_from_body[:3, :3]))
    return ' '.join((text_from_stamp(stamp_ns), *(repr(float(n)) for n in numbers))) + '\n'


def read_stamps(path: Path | str) -> NDArray[np.int64]:
    """(N,) stamps in nanoseconds, the first column of a text file (KITTI `times.txt`).

    Raises:
        SourceError: missing file or a line that does not begin with a time stamp.
    """
    path = Path(path)
    return np.array([_stamp(path, line, row[0]) for line, row in pose_rows(path)], dtype=np.int64)


def read_kitti_poses(path: Path | str, stamps_ns: Sequence[int] | NDArray[np.int64]) -> Trajectory:
    """Trajectory of 3x4 camera-to-world rows, row i at `stamps_ns[i]`.

    Rotations are rounded to seven digits in these files and are replaced by the nearest exact
    ones.

    Raises:
        SourceError: missing file, a row that is not twelve numbers, more or fewer rows than
            stamps.
    """
    path = Path(path)
    poses = []
    for line, row in pose_rows(path, 12):
        pose = np.array(_numbers(path, line, row)).reshape(3, 4)
        if not np.allclose(pose[:, :3] @ pose[:, :3].T, np.eye(3), atol=1e-2):
            raise SourceError(f'{path}:{line}: the first 3x3 numbers are not a rotation')
        poses.append(rigid_transform(nearest_rotation(pose[:, :3]), pose[:, 3]))
    if len(poses) != len(stamps_ns):
        raise SourceError(
            f'{path}: {len(poses)} poses, but times.txt has {len(stamps_ns)} rows; '
            'are both of one recording?'
        )
    return Trajectory(np.array(stamps_ns, dtype=np.int64), np.array(poses).reshape(-1, 4, 4))


def read_euroc_truth(path: Path | str) -> Trajectory:
    """Body trajectory of an ASL `data.csv`: rows `stamp_ns, x, y, z, qw, qx, qy, qz, …`.

    Raises:
        SourceError: missing file, a row with fewer than eight columns, stamps that run backwards.
    """
    path = Path(path)
    order = (0, 1, 2, 3, 5, 6, 7, 4)  # w first in the file
    rows = ((line, [row[i] for i in order]) for line, row in pose_rows(path, 8, exact=False))
    return _from_rows(path, rows, 'EuRoC')


def read_tartanair_poses(
    path: Path | str, stamps_ns: Sequence[int] | NDArray[np.int64]
) -> Trajectory:
    """Optical-frame trajectory of rows `x y z qx qy qz qw` in NED axes; the world gets z up.

    Raises:
        SourceError: missing file, a row that is not seven numbers, more or fewer rows than stamps.
    """
    path = Path(path)
    rows = list(pose_rows(path, 7))
    if len(rows) != len(stamps_ns):
        raise SourceError(f'{path}: {len(rows)} poses, but there are {len(stamps_ns)} images')
    numbers = np.array([_numbers(path, line, row) for line, row in rows]).reshape(-1, 7)
    ned_from_ned_camera = rigid_transform(_rotations(path, numbers[:, 3:]), numbers[:, :3])
    poses = NWU_FROM_NED @ ned_from_ned_camera @ NED_FROM_OPTICAL
    return Trajectory(np.array(stamps_ns, dtype=np.int64), poses)


def pose_rows(
    path: Path, columns: int | None = None, exact: bool = True
) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of rows of `columns` fields, or of at least so many.

    Raises:
        SourceError: missing file, or a row of another length.
    """
    for number, fields in read_rows(path):
        count = len(fields)
        if columns is not None and (count < columns or (exact and count != columns)):
            raise SourceError(f'{path}:{number}: {count} columns instead of {columns}')
        yield number, fields


def _stamp(path: Path, line: int, text: str) -> int:
    try:
        return stamp_from_text(text)
    except ValueError as error:
        raise SourceError(f'{path}:{line}: {error}') from None


def _numbers(path: Path, line: int, fields: Sequence[str]) -> list[float]:
    try:
        numbers = [float(field) for field in fields]
    except ValueError as error:
        raise SourceError(f'{path}:{line}: {error}') from None
    if not np.isfinite(numbers).all():
        raise SourceError(f'{path}:{line}: a number is not finite')
    if np.abs(numbers).max() > _LARGEST:
        raise SourceError(f'{path}:{line}: a number is larger than {_LARGEST:g}')
    return numbers


def _rotations(path: Path, quaternions: Array) -> Array:
    try:
        return matrix_from_quaternion(quaternions)
    except ValueError as error:
        raise SourceError(f'{path}: {error}') from None


def _from_rows(path: Path, rows: Iterable[tuple[int, list[str]]], form: str) -> Trajectory:
    """Trajectory of rows t x y z qx qy qz qw."""
    stamps: list[int] = []
    values: list[list[float]] = []
    for line, row in rows:
        stamp = _stamp(path, line, row[0])
        if stamps and stamp < stamps[-1]:
            raise SourceError(f'{path}:{line}: the time stamps run backwards')
        numbers = _numbers(path, line, row[1:])
        # Rounded quaternions are of unit length to a few digits; one of another length is another
        # column.
        if abs(float(np.linalg.norm(numbers[3:7])) - 1.0) > 0.05:
            raise SourceError(f'{path}:{line}: columns 5 to 8 are not a unit quaternion ({form})')
        if not stamps or stamp > stamps[-1]:
            stamps.append(stamp)
            values.append(numbers[:7])
    if not stamps:
        raise SourceError(f'{path}: empty, no poses')
    table = np.array(values)
    poses = rigid_transform(_rotations(path, table[:, 3:]), table[:, :3])
    return Trajectory(np.array(stamps, dtype=np.int64), poses)
