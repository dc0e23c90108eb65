# SPDX-License-Identifier: Apache-2.0
"""`bench points`: maps whose landmarks are as many and as wrong as it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / 'mapping'))
from made_maps import CAMERA, features_of, keyframe_of, pose_at, scene
from test_view_pose import Alike

from mv_matcher_ros import cli
from mv_matcher_ros.cli import bench_points, point_scenes
from mv_matcher_ros.cli.point_maps import mapped, spoiled
from mv_matcher_ros.cli.point_scenes import SceneView, rendered
from mv_matcher_ros.mapping.map import Map
from mv_matcher_ros.worlds.places import room_place

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def world() -> Map:
    place, look = scene()
    poses = [pose_at(0.3 * key, 0.03 * key) for key in range(5)]
    none = np.full(len(place), -1)
    features = [features_of(keyframe_of(0, pose, place, look, none)) for pose in poses]
    empty = np.zeros((480, 640))
    views = [SceneView(empty.astype(np.uint8), empty.astype(np.float32), pose) for pose in poses]
    return mapped(views, features, CAMERA, Alike())


def test_landmarks_are_where_the_points_are(world: Map) -> None:
    place, _ = scene()
    assert len(world) == 5
    assert len(world.landmarks) > 200
    points = world.points_in_map(np.arange(len(world.landmarks), dtype=np.int32))
    nearest = np.linalg.norm(points[:, None] - place, axis=2).min(1)
    assert nearest.max() < 0.02
    assert (world.landmarks.seen[: len(world.landmarks)] >= 2).all()


@pytest.mark.parametrize(('share', 'error_m'), [(0.1, 0.0), (0.5, 0.05), (1.0, 0.1)])
def test_maps_are_as_thin_and_wrong_as_is_said(world: Map, share: float, error_m: float) -> None:
    other = spoiled(world, share, error_m, np.random.default_rng(0))
    number = np.arange(len(world.landmarks), dtype=np.int32)
    points, there = world.points_in_map(number), other.points_in_map(number)
    kept = np.isfinite(there[:, 0])
    assert kept.mean() == pytest.approx(share, abs=0.06)
    off = (there - points)[kept]
    assert np.sqrt((off**2).mean()) == pytest.approx(error_m, abs=0.006)
    told = other.landmarks.spread(number[kept]) - world.landmarks.spread(number[kept])
    np.testing.assert_allclose(
        told, np.tile(error_m**2 * np.eye(3), (kept.sum(), 1, 1)), atol=1e-5
    )
    for key in world.keyframes:
        seen = other.keyframes[key].landmark
        assert kept[seen[seen >= 0]].all()


def test_the_command_compares_all_ways(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        point_scenes, 'scenes_of', lambda source, *counts: rendered(room_place(3), 1, 4, 1, 0)
    )
    monkeypatch.setattr(bench_points, 'SHARES', (0.1, 1.0))
    monkeypatch.setattr(bench_points, 'ERRORS_M', (0.0, 0.05))
    words = ['bench', 'points', 'room.glb', '--json', '--set', 'detector.max_keypoints=300']
    assert cli.exit_code(words) == 0
    content = json.loads(capsys.readouterr().out)['points']
    assert content['queries']['room'] == 1
    rows = content['rows']['room']
    assert len(rows) == 2 * 2 * 4
    assert {row['way'] for row in rows} == {'plain', '+CPA', '+PIN', '+PIN +CPA'}
    by = {(row['landmarks'], row['error_m'], row['way']): row for row in rows}
    assert by[0.1, 0.0, '+PIN +CPA']['inliers'] > by[0.1, 0.0, 'plain']['inliers']
    assert by[1.0, 0.0, 'plain']['within_5cm_5deg'] > 0


def test_what_is_no_source_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.exit_code(['bench', 'points', str(tmp_path / 'nothing')]) == 2
    assert 'nothing' in capsys.readouterr().err
