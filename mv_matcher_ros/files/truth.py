# SPDX-License-Identifier: Apache-2.0
"""The ground truth of a file, a sequence's folder or a bag, whatever its form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Trajectory
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.files.open import open_source, recognise
from mv_matcher_ros.files.trajectory import (
    pose_rows,
    read_euroc_truth,
    read_kitti_poses,
    read_stamps,
    read_tartanair_poses,
    read_tum,
)

Stamps = Sequence[int] | NDArray[np.int64]
_NAMES = (
    'groundtruth.txt',
    'poses.txt',
    'mav0/state_groundtruth_estimate0/data.csv',
    'mav0/mocap0/data.csv',
    'state_groundtruth_estimate0/data.csv',
)
# Frames of a run carry the stamps of the recording; times.txt has seven digits of them.
_SAME_NS = 100_000


def read_truth(
    path: Path | str,
    stamps_ns: Stamps | None = None,
    **options: Any,
) -> Trajectory:
    """Trajectory of any known ground-truth file, or of the one inside a recording.

    TUM rows (8 columns), KITTI rows (12), ASL csv (8 and more, commas) and TartanAir rows (7) are
    told apart by their columns.

    Args:
        path: file; folder that holds a ground truth under one of the usual names; or anything
            `open_source` opens with a truth of its own, a bag among them.
        stamps_ns: stamps of the run's frames, for files without stamps; KITTI's are found in
            `times.txt` by themselves.
        options: of `open_source`, as the run was given them: in a bag they say which body's pose
            the truth is.

    Raises:
        SourceError: no ground truth there, an unknown form, or stamps that are needed and not
            known or are those of another recording.
    """
    path = Path(path)
    if path.is_dir():
        known = _truth_file(path)
        if known is None:
            return _truth_of_recording(path, options)
        path = known
    elif path.is_file() and _kind(path) == 'bag':
        return _truth_of_recording(path, options)
    if options.get('topics') or options.get('body_frame'):
        raise SourceError(f'{path}: topics and body_frame are for bags, and this is not one')
    return _truth_of_file(path, stamps_ns)


def _truth_of_file(path: Path, stamps_ns: Stamps | None) -> Trajectory:
    line, first = next(pose_rows(path), (0, []))
    if not first:
        raise SourceError(f'{path}: empty, no poses')
    if path.suffix.lower() == '.csv' and len(first) >= 8 and first[0].lstrip('-').isdigit():
        return read_euroc_truth(path)
    if len(first) == 8:
        return read_tum(path)
    if len(first) == 12:
        return read_kitti_poses(path, _kitti_stamps(path, stamps_ns))
    if len(first) == 7:
        if _kind(path.parent) == 'tartanair':
            return _truth_of_recording(path.parent, {})
        if stamps_ns is None:
            raise SourceError(f'{path}: poses without time stamps (TartanAir); open its folder')
        return read_tartanair_poses(path, _one_a_pose(path, stamps_ns))
    raise SourceError(
        f'{path}:{line}: {len(first)} columns; known are TUM (8), KITTI (12), '
        'TartanAir (7), ASL csv'
    )


def _truth_file(folder: Path) -> Path | None:
    """The ground-truth file of a sequence folder."""
    candidates = [folder / name for name in _NAMES]
    candidates.append(folder.parent.parent / 'poses' / f'{folder.name}.txt')  # KITTI as published
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _kind(path: Path) -> str:
    """What `recognise` calls a path; empty where it is no recording."""
    try:
        return recognise(path)
    except SourceError:
        return ''


def _truth_of_recording(path: Path, options: Mapping[str, Any]) -> Trajectory:
    """The truth that a run on this recording is compared with."""
    kind = _kind(path)
    looked = f'looked for {", ".join(_NAMES)}'
    if not kind:
        raise SourceError(f'{path}: no ground truth ({looked}, and it is no recording)')
    if kind == 'images':  # without one of the names above it has none, and may lack a calibration
        raise SourceError(f'{path}: no ground truth ({looked})')
    truth = open_source(path, **options).truth
    if truth is None and kind == 'bag':
        raise SourceError(
            f'{path}: no ground truth: no topic of poses is called so; '
            'name it with --topic truth=TOPIC'
        )
    if truth is None:
        raise SourceError(f'{path}: no ground truth in this {kind} recording ({looked})')
    return truth


def _kitti_stamps(path: Path, frames_ns: Stamps | None) -> Stamps:
    """Stamps of a KITTI pose file: the run's frames where there are as many, else `times.txt`.

    `times.txt` lies beside it, or in `sequences` of the published layout. Every KITTI sequence
    begins at 0 s with 10 Hz: poses of another one would find partners in time, so a run's frames
    must have the very stamps of this one.
    """
    rows = sum(1 for _ in pose_rows(path))
    if frames_ns is not None and len(frames_ns) == rows:
        return frames_ns
    beside = path.parent / 'times.txt'
    published = path.parent.parent / 'sequences' / path.stem / 'times.txt'
    times = next((file for file in (beside, published) if file.is_file()), None)
    if times is None:
        if frames_ns is None:
            raise SourceError(f'{path}: KITTI poses need their time stamps; looked for {beside}')
        return _one_a_pose(path, frames_ns)
    stamps = read_stamps(times)
    if frames_ns is not None:
        frames = np.asarray(frames_ns, dtype=np.int64)
        apart = np.abs(frames[:, None] - stamps[None, :]).min(1, initial=2 * _SAME_NS)
        strange = int((apart > _SAME_NS).sum())
        if strange:
            raise SourceError(
                f'{path}: {rows} poses, but the run has {len(frames)} frames, and {strange} of '
                f'them have a time that is not in {times}; is this the truth of that recording?'
            )
    return stamps


def _one_a_pose(path: Path, frames_ns: Stamps) -> Stamps:
    """The stamps of the run's frames for poses that have none."""
    rows = sum(1 for _ in pose_rows(path))
    if rows != len(frames_ns):
        raise SourceError(
            f'{path}: {rows} poses without times, but the run has {len(frames_ns)} frames; '
            'is this the truth of that recording?'
        )
    return frames_ns
