# SPDX-License-Identifier: Apache-2.0
"""A map in a place that is walked through again and again: it does not grow for ever."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from made_maps import CAMERA, keyframe_of, pose_at, scene, seen_from
from test_view_pose import Alike

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Array, Features, Rig, Trajectory
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.mapping import mapper as mapper_module
from mv_matcher_ros.mapping.corrected import on_map
from mv_matcher_ros.mapping.loop_closure import similarity
from mv_matcher_ros.mapping.map_folder import load_map, save_map
from mv_matcher_ros.mapping.mapper import Mapper
from mv_matcher_ros.odometry.keyframe_record import KeyframeRecord
from mv_matcher_ros.odometry.observation import Observation

pytest.importorskip('gtsam', reason='gtsam has no wheel for Python 3.10')

PLACES = 12
STEP = torch.diag(torch.tensor([1e-5] * 3 + [1e-7] * 3, dtype=torch.float64))


class ByPoints:
    """Describes a place by the points that are seen."""

    size = 32

    def describe(self, features: Features) -> torch.Tensor:
        bins = (features.descriptors @ torch.randn(16, 32, generator=torch.manual_seed(0))).relu()
        place = bins.mean(0) - bins.mean()
        return place / place.norm()


def walk(passes: int, seed: int = 0) -> Iterator[tuple[KeyframeRecord, Array]]:
    """Records of keyframes forth and back, of odometry that drifts, and where they really were."""
    place, look = scene()
    rng = np.random.default_rng(seed)
    root = torch.linalg.cholesky(STEP)
    believed, before, before_ns = torch.eye(4, dtype=torch.float64), None, None
    there = list(range(PLACES))
    order = [n for k in range(passes) for n in (there if k % 2 == 0 else there[::-1])]
    for number, spot in enumerate(order):
        true = pose_at(0.3 * spot, 0.03 * spot)
        if before is not None:
            noise = torch.from_numpy(rng.normal(size=6))
            step = torch.from_numpy(np.linalg.inv(before) @ true)
            believed = believed @ step @ se3.exp(root @ noise)
        _, which = seen_from(true, place)
        local = (place[which] - true[:3, 3]) @ true[:3, :3]
        count = len(which)
        keyframe = keyframe_of(0, true, place, look, np.full(len(place), -1))
        observation = Observation(
            10**8 * (2 * number + 1), 0, keyframe.features((640, 480)),
            torch.from_numpy(local[:, :2] / local[:, 2:]),
            torch.full((count,), 1e-3).double(), torch.full((count,), torch.nan).double(),
            torch.full((count,), 1e-3).double(), torch.zeros(count, dtype=torch.int64),
        )  # fmt: skip
        spread = (1e-4 * torch.eye(3).double()).expand(count, 3, 3)
        # The odometry knows a point for as long as it sees it.
        names = torch.from_numpy(which) + 1000 * (number // PLACES)
        yield KeyframeRecord(
            observation, 0, before_ns, believed, believed, STEP, names,
            torch.from_numpy(local), spread, True,
        ), true  # fmt: skip
        before, before_ns = true, observation.stamp_ns


def mapper(**culling: Any) -> Mapper:
    settings = Settings.model_validate(
        {
            'sensor': 'stereo',
            'mapping': {
                'culling': {'newest': 5, 'every': 5, **culling},
                'places': {'gap_s': 3.0, 'min_score': 0.5},
                'adjustment': {'enabled': False},
            },
        }
    )
    models = SimpleNamespace(matcher=Alike(), networks={})
    return Mapper(settings, Rig((CAMERA,)), models, ByPoints())  # type: ignore[arg-type]


def errors_m(made: Mapper, truth: dict[int, Array]) -> Array:
    """(K,) how far the keyframes are from where they were."""
    off = [
        np.linalg.norm((made.world.pose[key] - truth[keyframe.stamp_ns])[:3, 3])
        for key, keyframe in made.world.keyframes.items()
    ]
    return np.array(off)


def test_a_map_of_a_known_place_does_not_grow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mapper_module, 'GONE_LEAST', 20)
    made, truth = mapper(), {}
    keyframes, landmarks, graph, moved = [], [], [], []
    begin = made._begin_again

    def watched() -> None:
        made.settle()
        graph_poses = {int(k): p for k, p in zip(*made.pose_graph.poses()[:2], strict=True)}
        points = [made.world.points_seen_by(key)[0] for key in made.world.keyframes]
        begin()
        for key, then in zip(made.world.keyframes, points, strict=True):
            np.testing.assert_allclose(made.world.points_seen_by(key)[0], then, atol=1e-5)
            pose, _ = made.pose_graph.pose(key)
            np.testing.assert_allclose(pose, made.world.pose[key], atol=1e-6)
            moved.append(np.abs(pose - graph_poses[key]).max())

    monkeypatch.setattr(made, '_begin_again', watched)
    for record, true in walk(40):
        truth[record.stamp_ns] = true
        made.add(record)
        keyframes.append(len(made.world))
        landmarks.append(len(made.world.landmarks))
        graph.append(len(made.pose_graph))
    assert len(moved) > 10 * len(made.world)
    assert max(moved) < 1e-6
    for pose in made.world.pose.values():
        np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-9)
    half = len(keyframes) // 2
    assert max(keyframes[half:]) <= max(keyframes[:half]) + 5
    assert max(graph[half:]) <= 2 * max(keyframes) + 20 + 5
    assert max(landmarks[half:]) < 1.5 * max(landmarks[:half])
    assert sum(edge.loop for edge in made.world.edges) < len(made.world) ** 2 / 2
    assert errors_m(made, truth).max() < 0.05
    # What is saved leads on from where it was.
    save_map(made.world, tmp_path / 'map')
    world = load_map(tmp_path / 'map')
    again = Mapper(
        Settings.model_validate({'sensor': 'stereo'}), Rig((CAMERA,)),
        SimpleNamespace(matcher=Alike(), networks={}), ByPoints(), world,
    )  # type: ignore[arg-type]  # fmt: skip
    for key in world.keyframes:
        np.testing.assert_allclose(again.pose_graph.pose(key)[0], made.world.pose[key], atol=1e-6)


def test_without_culling_everything_stays() -> None:
    made, truth = mapper(share=2.0), {}
    for record, true in walk(6):
        truth[record.stamp_ns] = true
        made.add(record)
    assert len(made.world) == 6 * PLACES == len(made.pose_graph)
    assert errors_m(made, truth).max() < 0.05


def test_in_a_hurry_a_place_is_not_looked_for_at_every_keyframe() -> None:
    found = {}
    for hurry in (False, True):
        made = mapper()
        updates = [made.add(record, hurry=hurry) for record, _ in walk(4)]
        found[hurry] = [bool(update and update.revisits) for update in updates]
    assert sum(found[False]) > 20
    first = found[False].index(True)
    assert found[True].index(True) == first
    assert sum(found[True]) <= 1 + (4 * PLACES - first) // 3
    assert sum(found[True]) >= 4


def test_a_map_does_not_grow_in_a_hurry_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapper_module, 'GONE_LEAST', 20)
    made, truth, keyframes = mapper(), {}, []
    for record, true in walk(20):
        made.add(record, hurry=True)
        truth[record.stamp_ns] = true
        keyframes.append(len(made.world))
    half = len(keyframes) // 2
    assert max(keyframes[half:]) <= max(keyframes[:half]) + 8
    assert errors_m(made, truth).max() < 0.05


def test_what_the_map_has_had_is_not_taken_again() -> None:
    records = [record for record, _ in walk(6)]
    made = mapper()
    for record in records:
        assert made.add(record, 'run') is not None
    count, segments = len(made.world), made.world.next_segment
    settings = Settings.model_validate({'sensor': 'stereo'})
    models = SimpleNamespace(matcher=Alike(), networks={})
    again = Mapper(settings, Rig((CAMERA,)), models, ByPoints(), made.world)  # type: ignore[arg-type]
    for one in (made, again):
        assert all(one.add(record, 'run') is None for record in records[-40:])
        assert len(one.world) == count
        assert one.world.next_segment == segments


def test_frames_are_on_the_map_although_keyframes_have_gone() -> None:
    made, truth, odometry = mapper(), {}, {}
    made.world.gone = {}
    for record, true in walk(12):
        made.add(record, 'run')
        truth[record.stamp_ns] = true
        odometry[record.stamp_ns] = record.odom_from_body.numpy()
    made.finish()
    assert len(made.world) < 3 * PLACES
    stamps = np.array(sorted(truth), np.int64)
    found = on_map(
        Trajectory(stamps, np.stack([odometry[int(s)] for s in stamps])), made.world, 'run'
    )
    np.testing.assert_array_equal(found.stamps_ns, stamps)
    off = [np.linalg.norm((p - truth[int(s)])[:3, 3]) for s, p in zip(
        stamps, found.world_from_body, strict=True
    )]  # fmt: skip
    drifted = [np.linalg.norm((odometry[int(s)] - truth[int(s)])[:3, 3]) for s in stamps]
    assert np.sqrt(np.mean(np.square(off))) < 0.03
    assert max(drifted) > 3 * max(off)


@pytest.mark.parametrize('metric', [True, False])
def test_measurements_of_a_graph_that_began_again(metric: bool) -> None:
    made = mapper()
    for record, _ in walk(6):
        made.add(record)
    if not metric:
        made.world.sensor = 'mono'
        made.world.pose = {
            key: similarity(pose, 1.0 + 0.01 * n)
            for n, (key, pose) in enumerate(made.world.pose.items())
        }
        drift = np.diag([0.0] * 6 + [1e-6])
        made.world.edges = [
            replace(edge, covariance=edge.covariance + drift) for edge in made.world.edges
        ]
    made._begin()
    keys, poses, scales = made.pose_graph.poses()
    assert keys.tolist() == list(made.world.keyframes)
    number = {int(key): n for n, key in enumerate(keys)}
    for step in made.pose_graph.measurements():
        a, b = number[step.a], number[step.b]
        assert scales[b] == pytest.approx(scales[a] * step.scale)
        there = similarity(poses[a], scales[a]) @ step.a_from_b
        np.testing.assert_allclose(there[:3, 3], poses[b][:3, 3], atol=1e-5)
