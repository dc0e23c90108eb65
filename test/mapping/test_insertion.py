# SPDX-License-Identifier: Apache-2.0
"""Records of the odometry in a map: points where they are, one landmark for one point."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from made_maps import CAMERA, keyframe_of, pose_at, scene, seen_from

from mv_matcher_ros.datatypes import Array, Camera, Rig
from mv_matcher_ros.mapping.insertion import Insertion
from mv_matcher_ros.mapping.map import Map
from mv_matcher_ros.odometry.keyframe_record import KeyframeRecord
from mv_matcher_ros.odometry.observation import Observation

MOUNT = pose_at(0.2, 0.7)
PLACE = np.ones(4, np.float32)


def record_at(
    pose: Array, stamp_ns: int = 1, known: float = 1.0, depth: bool = False, segment: int = 0
) -> KeyframeRecord:
    """What the odometry says of a keyframe whose camera is at `pose`.

    Args:
        known: share of the points that it follows as landmarks; their numbers are those of the
            scene.
        depth: all depths are measured.
    """
    place, look = scene()
    keyframe = keyframe_of(0, pose, place, look, np.full(len(place), -1))
    _, which = seen_from(pose, place)
    local = (place[which] - pose[:3, 3]) @ pose[:3, :3]
    features = replace(keyframe.features((640, 480)), scores=torch.rand(len(which)))
    inverse = torch.from_numpy(1.0 / local[:, 2]) if depth else torch.full((len(which),), np.nan)
    observation = Observation(
        stamp_ns, 0, features, torch.from_numpy(local[:, :2] / local[:, 2:]),
        torch.full((len(which),), 1e-3).double(), inverse.double(),
        torch.full((len(which),), 1e-3).double(), torch.zeros(len(which), dtype=torch.int64),
    )  # fmt: skip
    follows = torch.from_numpy(which < known * len(place))
    body = torch.from_numpy(local @ MOUNT[:3, :3].T + MOUNT[:3, 3])
    spread = (0.01 * torch.eye(3).double()).expand(len(which), 3, 3)
    eye = torch.eye(4, dtype=torch.float64)
    return KeyframeRecord(
        observation, segment, None, eye, eye, torch.zeros(6, 6).double(),
        torch.where(follows, torch.from_numpy(which), -1),
        torch.where(follows[:, None], body, torch.nan),
        torch.where(follows[:, None, None], spread, torch.nan), True,
    )  # fmt: skip


def empty() -> tuple[Map, Insertion]:
    camera = Camera(640, 480, CAMERA.intrinsics, body_from_camera=MOUNT)
    return Map(Rig((camera,)), 'stereo', 'abc'), Insertion(camera, 600)


def body_pose(pose: Array) -> Array:
    """map_from_body where the camera is at a pose of the scene."""
    return pose @ np.linalg.inv(MOUNT)


@pytest.mark.parametrize('depth', [False, True])
def test_points_are_where_the_scene_has_them(depth: bool) -> None:
    world, insertion = empty()
    place, _ = scene()
    for key in range(3):
        pose = pose_at(0.3 * key)
        record = record_at(pose, key + 1, known=0.5, depth=depth)
        keyframe = insertion.add(world, record, 0, body_pose(pose), PLACE)
        _, which = seen_from(pose, place)
        there = keyframe.landmark >= 0
        assert there.all() if depth else (there == (which < 0.5 * len(place))).all()
        found = world.points_in_map(keyframe.landmark[there])
        np.testing.assert_allclose(found, place[which[there]], atol=1e-4)
    spread = world.landmarks.spread(keyframe.landmark[there])
    assert (np.linalg.eigvalsh(spread) > 0).all()


def test_a_point_that_is_followed_is_one_landmark() -> None:
    world, insertion = empty()
    for key in range(3):
        pose = pose_at(0.2 * key)
        insertion.add(world, record_at(pose, key + 1), 0, body_pose(pose), PLACE)
    place, _ = scene()
    seen = {w for key in range(3) for w in seen_from(pose_at(0.2 * key), place)[1]}
    assert len(world.landmarks) == len(seen)
    # It hangs at the newest keyframe that saw it.
    assert set(world.landmarks.anchor[world.keyframes[2].landmark].tolist()) == {2}
    assert world.landmarks.seen.max() == 3


def test_another_segment_has_landmarks_of_its_own() -> None:
    world, insertion = empty()
    for key in range(2):
        record = record_at(pose_at(0), key + 1, segment=key)
        insertion.add(world, record, key, body_pose(pose_at(0)), PLACE)
    one, other = (world.keyframes[key].landmark for key in range(2))
    assert not np.intersect1d(one, other).size


def test_what_has_become_an_older_landmark_stays_where_that_hangs() -> None:
    world, insertion = empty()
    insertion.add(world, record_at(pose_at(0), 1), 0, body_pose(pose_at(0)), PLACE)
    insertion.add(world, record_at(pose_at(0), 2, segment=1), 1, body_pose(pose_at(0)), PLACE)
    pairs = list(zip(world.keyframes[1].landmark, world.keyframes[0].landmark, strict=True))
    insertion.fused(world.fuse([(int(a), int(b)) for a, b in pairs[:50]]))
    third = insertion.add(
        world, record_at(pose_at(0), 3, segment=1), 1, body_pose(pose_at(0)), PLACE
    )
    np.testing.assert_array_equal(third.landmark[:50], world.keyframes[0].landmark[:50])
    assert (world.landmarks.anchor[third.landmark[:50]] == 0).all()
    assert (world.landmarks.anchor[third.landmark[50:]] == 2).all()


def test_two_that_became_one_are_shown_by_one_feature() -> None:
    world, insertion = empty()
    first = insertion.add(world, record_at(pose_at(0), 1), 0, body_pose(pose_at(0)), PLACE)
    a, b = first.landmark[:2].tolist()
    insertion.fused(world.fuse([(a, b)]))
    again = insertion.add(world, record_at(pose_at(0), 2), 0, body_pose(pose_at(0)), PLACE)
    assert again.landmark[:2].tolist() == [min(a, b), -1]
    seen = again.landmark[again.landmark >= 0]
    assert len(np.unique(seen)) == len(seen)


def test_what_shows_a_point_is_kept_first() -> None:
    camera = Camera(640, 480, CAMERA.intrinsics, body_from_camera=MOUNT)
    world, insertion = Map(Rig((camera,)), 'stereo', 'abc'), Insertion(camera, 80)
    record = record_at(pose_at(0), known=0.2)
    shows = int((record.landmark >= 0).sum())
    assert 20 < shows < 80
    keyframe = insertion.add(world, record, 0, body_pose(pose_at(0)), PLACE)
    assert len(keyframe) == 80
    assert int((keyframe.landmark >= 0).sum()) == shows


def test_a_depth_that_says_little_makes_no_landmark() -> None:
    world, insertion = empty()
    record = record_at(pose_at(0), known=0.0, depth=True)
    poor = torch.full_like(record.observation.inverse_depth_sigma, 1.0)
    record = replace(record, observation=replace(record.observation, inverse_depth_sigma=poor))
    assert (insertion.add(world, record, 0, np.eye(4), PLACE).landmark == -1).all()


def test_a_keyframe_without_features_is_one() -> None:
    world, insertion = empty()
    whole = record_at(pose_at(0))
    nothing = torch.zeros(0, dtype=torch.int64)
    features = whole.observation.features.chosen(nothing)
    observation = Observation(
        1, 0, features, *(getattr(whole.observation, name)[nothing] for name in (
            'plane_xy', 'sigma', 'inverse_depth', 'inverse_depth_sigma', 'camera'
        )),
    )  # fmt: skip
    record = replace(
        whole, observation=observation, landmark=nothing, points=whole.points[nothing],
        point_covariance=whole.point_covariance[nothing],
    )  # fmt: skip
    assert len(insertion.add(world, record, 0, np.eye(4), PLACE)) == 0
    assert len(world) == 1
