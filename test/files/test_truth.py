# SPDX-License-Identifier: Apache-2.0
"""The truth is found in whatever a run was made of, and that of another recording is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.files.open import open_source
from mv_matcher_ros.files.trajectory import read_euroc_truth
from mv_matcher_ros.files.truth import read_truth

Make = Callable[..., Any]
Poses = Callable[[int], np.ndarray]
IDENTITY_ROW = '0 0 0 0 0 0 1'
KITTI_ROW = '1 0 0 0 0 1 0 0 0 0 1 0\n'


def test_read_truth_recognises(tmp_path: Path, poses: Poses) -> None:
    tum = tmp_path / 'groundtruth.txt'
    tum.write_text(f'1 {IDENTITY_ROW}\n')
    assert len(read_truth(tum)) == 1
    assert len(read_truth(tmp_path)) == 1
    rows = '1 0 0 0 0 1 0 0 0 0 1 0\n'
    published = tmp_path / 'poses' / '07.txt'
    published.parent.mkdir()
    published.write_text(rows * 2)
    with pytest.raises(SourceError, match='need their time stamps'):
        read_truth(published)
    times = tmp_path / 'sequences' / '07' / 'times.txt'
    times.parent.mkdir(parents=True)
    times.write_text('0.0\n1.0e-01\n')
    assert read_truth(published).stamps_ns.tolist() == [0, 100_000_000]
    assert len(read_truth(times.parent)) == 2
    odd = tmp_path / 'odd.txt'
    odd.write_text('1 2 3\n')
    with pytest.raises(SourceError, match='3 columns; known are'):
        read_truth(odd)
    odd.write_text('0 0 0 0 0 0 1\n')
    with pytest.raises(SourceError, match='without time stamps'):
        read_truth(odd)
    assert len(read_truth(odd, [5])) == 1
    (tmp_path / 'empty').mkdir()
    with pytest.raises(SourceError, match='no ground truth'):
        read_truth(tmp_path / 'empty')


def test_euroc_csv_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / 'data.csv'
    path.write_text('#timestamp, p, q\n1403715273262142976,1,2,3,0.0,1.0,0.0,0.0,9,9,9\n')
    np.testing.assert_array_equal(read_truth(path).stamps_ns, read_euroc_truth(path).stamps_ns)


def kitti_poses(folder: Path, times: list[float]) -> Path:
    folder.mkdir()
    (folder / 'poses.txt').write_text(KITTI_ROW * len(times))
    (folder / 'times.txt').write_text(''.join(f'{time:.6e}\n' for time in times))
    return folder


def test_part_of_a_kitti_run_finds_its_truth_and_another_one_does_not(tmp_path: Path) -> None:
    """All sequences begin at 0 s and have 10 Hz: nearest stamps alone would pair any two."""
    mine = kitti_poses(tmp_path / '06', [0.0, 0.1036, 0.2071, 0.3107])
    other = kitti_poses(tmp_path / '07', [0.0, 0.1039, 0.2078, 0.3117, 0.4157])
    stamps = [103_600_000, 310_700_000]  # every second frame, from the second on
    assert len(read_truth(mine, stamps)) == 4
    with pytest.raises(SourceError, match=r'5 poses, but the run has 2 frames, and 2 of them .*'
                       r'07/times\.txt; is this the truth of that recording'):  # fmt: skip
        read_truth(other, stamps)
    (other / 'times.txt').unlink()
    with pytest.raises(SourceError, match='5 poses without times, but the run has 2 frames'):
        read_truth(other, stamps)


def test_tartanair_by_its_folder_and_by_its_file(tmp_path: Path, write_images: Make) -> None:
    names = [f'{i:06d}_lcam_front.png' for i in range(3)]
    write_images(tmp_path / 'image_lcam_front', names, size=(640, 640))
    poses = tmp_path / 'pose_lcam_front.txt'
    poses.write_text(f'1 2 3 {IDENTITY_ROW[6:]}\n' * 3)
    for path in (tmp_path, poses):
        for stamps in (None, [0, 100_000_000]):  # of a run that stopped early
            truth = read_truth(path, stamps)
            assert truth.stamps_ns.tolist() == [0, 100_000_000, 200_000_000]
            np.testing.assert_allclose(truth.world_from_body[0, :3, 3], (1, -2, -3))


def test_a_bag_with_its_truth(tmp_path: Path, make_source: Make) -> None:
    from mv_matcher_ros.files.bag import write_bag

    for truth in (True, False):
        source = make_source('stereo', truth=truth)
        write_bag(tmp_path / str(truth), source)
    found = read_truth(tmp_path / 'True', sensor='mono')
    known = open_source(tmp_path / 'True').truth
    assert known is not None
    np.testing.assert_array_equal(found.world_from_body, known.world_from_body)
    file = next((tmp_path / 'True').glob('*.mcap'))
    np.testing.assert_array_equal(read_truth(file).stamps_ns, found.stamps_ns)
    named = read_truth(tmp_path / 'True', topics={'truth': '/ground_truth'})
    np.testing.assert_array_equal(named.stamps_ns, found.stamps_ns)
    based = read_truth(tmp_path / 'True', body_frame='base_link')
    assert not np.allclose(based.world_from_body, found.world_from_body)
    with pytest.raises(SourceError, match='--topic truth=TOPIC'):
        read_truth(tmp_path / 'False')


def test_recordings_without_truth_and_options_that_do_not_fit(
    tmp_path: Path, write_images: Make
) -> None:
    write_images(tmp_path / 'images', ['1.png', '2.png'])
    with pytest.raises(SourceError, match='images: no ground truth'):
        read_truth(tmp_path / 'images')
    tum = tmp_path / 'truth.tum'
    tum.write_text(f'1 {IDENTITY_ROW}\n')
    with pytest.raises(SourceError, match='are for bags'):
        read_truth(tum, topics={'truth': '/x'})
