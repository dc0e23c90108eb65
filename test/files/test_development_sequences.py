# SPDX-License-Identifier: Apache-2.0
"""The real sequences are read as their authors describe them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mv_matcher_ros.files.bag import write_bag
from mv_matcher_ros.files.open import find_sequences, open_source, recognise
from mv_matcher_ros.files.truth import read_truth

pytestmark = pytest.mark.data

# name, kind, sensor, frames, first and last stamp in ns, poses, size, fx, distortion, baseline
TABLE = [
    (
        'kitti_07',
        'kitti',
        'mono',
        160,
        0,
        16_533_760_000,
        160,
        (1226, 370),
        707.0912,
        'pinhole',
        0.0,
    ),
    (
        'kitti_06_stereo',
        'kitti',
        'stereo',
        51,
        0,
        5_195_994_000,
        51,
        (1226, 370),
        707.0912,
        'pinhole',
        0.53715,
    ),
    (
        'tum_fr2_desk',
        'tum',
        'mono',
        20,
        1311868169163498000,
        1311868171063438000,
        20,
        (640, 480),
        520.9,
        'radtan',
        0.0,
    ),
    (
        'sevenscenes_redkitchen',
        'tum',
        'rgbd',
        217,
        0,
        21_600_000_000,
        217,
        (640, 480),
        521.0,
        'pinhole',
        0.0,
    ),
    (
        'euroc_v101_static',
        'euroc',
        'stereo',
        10,
        1403715273262142976,
        1403715273712143104,
        11,
        (752, 480),
        458.654,
        'radtan',
        0.110078,
    ),
    (
        'tartanair_p000',
        'tartanair',
        'rgbd',
        5,
        0,
        400_000_000,
        5,
        (640, 640),
        320.0,
        'pinhole',
        0.0,
    ),
]


@pytest.mark.parametrize('row', TABLE, ids=[row[0] for row in TABLE])
def test_sequence(sequences: Path, row: tuple) -> None:  # type: ignore[type-arg]
    name, kind, sensor, frames, first_ns, last_ns, poses, size, fx, model, baseline = row
    path = sequences / name
    assert recognise(path) == kind
    source = open_source(path)
    assert (source.sensor, len(source)) == (sensor, frames)
    camera = source.rig.cameras[0]
    assert (camera.width, camera.height) == size
    assert (camera.intrinsics[0], camera.model) == (fx, model)
    assert source.rig.baseline_m == pytest.approx(baseline, abs=1e-5)
    assert source.truth is not None
    assert len(source.truth) == poses
    # All but the first and the last few are skipped without being decoded.
    ends = [frame.stamp_ns for frame in open_source(path, stride=frames - 1)]
    assert ends == [first_ns, last_ns]
    # The truth of EuRoC went through a double: 256 ns off.
    for end in ends:
        assert np.abs(source.truth.stamps_ns - end).min() <= 256
    frame = next(iter(source))
    assert len(frame.views) == len(source.rig.cameras)
    assert (frame.views[0].depth is not None) == (sensor == 'rgbd')
    assert source.faults == {}


def test_find_all(sequences: Path) -> None:
    assert [path.name for path in find_sequences(sequences)] == sorted(row[0] for row in TABLE)


def test_truth_is_found_in_folders(sequences: Path) -> None:
    for name in ('kitti_07', 'tum_fr2_desk', 'euroc_v101_static'):
        truth = open_source(sequences / name).truth
        assert truth is not None
        np.testing.assert_array_equal(read_truth(sequences / name).stamps_ns, truth.stamps_ns)


def test_path_lengths_are_those_known(sequences: Path) -> None:
    """91 m and 60 m driven; the EuRoC camera stands still. Axes: KITTI drives along z."""
    for name, length_m in (('kitti_07', 91), ('kitti_06_stereo', 60)):
        truth = open_source(sequences / name).truth
        assert truth is not None
        positions = truth.world_from_body[:, :3, 3]
        assert np.linalg.norm(np.diff(positions, axis=0), axis=1).sum() == pytest.approx(
            length_m, abs=1
        )
        step = np.linalg.inv(truth.world_from_body[0]) @ truth.world_from_body[1]
        assert np.argmax(np.abs(step[:3, 3])) == 2
    still = open_source(sequences / 'euroc_v101_static').truth
    assert still is not None
    assert np.ptp(still.world_from_body[:, :3, 3], axis=0).max() < 1e-3


def test_tartanair_truth_and_depth_agree(sequences: Path) -> None:
    """Points of the first depth image, moved by the truth, have the depth of the next image.

    This fails for any other reading of the axes (NED), of the depth bytes or of the intrinsics.
    """
    source = open_source(sequences / 'tartanair_p000')
    first, second = list(source)[:2]
    assert source.truth is not None
    poses = source.truth.world_from_body
    second_from_first = np.linalg.inv(poses[1]) @ poses[0]
    depth, other = first.views[0].depth, second.views[0].depth
    assert depth is not None
    assert other is not None
    v, u = np.mgrid[40:600:8, 40:600:8]
    z = depth[v, u].astype(np.float64)
    rays = np.stack(((u - 320.0) / 320.0, (v - 320.0) / 320.0, np.ones_like(z)), -1)
    points = (rays * z[..., None]) @ second_from_first[:3, :3].T + second_from_first[:3, 3]
    x = np.rint(320 * points[..., 0] / points[..., 2] + 320).astype(int)
    y = np.rint(320 * points[..., 1] / points[..., 2] + 320).astype(int)
    inside = (z < 30) & (x >= 0) & (x < 640) & (y >= 0) & (y < 640)
    predicted, seen = points[..., 2][inside], other[y[inside], x[inside]]
    assert inside.sum() > 1000
    assert np.median(np.abs(predicted - seen) / predicted) < 0.002


def test_unrectified_stereo_survives_a_bag(sequences: Path, tmp_path: Path) -> None:
    source = open_source(sequences / 'euroc_v101_static', end=3)
    write_bag(tmp_path / 'bag', source)
    back = open_source(tmp_path / 'bag', body_frame='base_link')
    for camera, other in zip(source.rig.cameras, back.rig.cameras, strict=True):
        np.testing.assert_allclose(camera.body_from_camera, other.body_from_camera, atol=1e-9)
        assert (camera.intrinsics, camera.distortion) == (other.intrinsics, other.distortion)
    for frame, again in zip(source, back, strict=True):
        assert frame.stamp_ns == again.stamp_ns
        np.testing.assert_array_equal(frame.views[1].image, again.views[1].image)
