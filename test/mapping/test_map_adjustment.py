# SPDX-License-Identifier: Apache-2.0
"""Bundle adjustment of a whole map with a known answer."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from made_maps import made_map, scene, seen_from

from mv_matcher_ros.config import MapAdjustmentSettings
from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.mapping.map import Map
from mv_matcher_ros.mapping.map_adjustment import adjust_map


def disturbed(world: Map, sigma: float = 0.03, seed: int = 0) -> dict[int, Array]:
    """Poses (but the first) and landmarks off by noise; returns where the poses were."""
    import torch

    rng, were = np.random.default_rng(seed), dict(world.pose)
    for key in list(world.keyframes)[1:]:
        noise = se3.exp(torch.from_numpy(sigma * rng.normal(size=6))).numpy()
        world.move({key: world.pose[key] @ noise})
    shape = world.landmarks.position.shape
    world.landmarks.position += (sigma * rng.normal(size=shape)).astype(np.float32)
    return were


def errors(world: Map, were: dict[int, Array]) -> float:
    return max(float(np.abs(world.pose[k] - were[k]).max()) for k in were)


def test_everything_goes_back_to_where_it_was() -> None:
    world = made_map(8)
    were = disturbed(world)
    assert errors(world, were) > 0.03
    adjusted = adjust_map(world, MapAdjustmentSettings())
    assert errors(world, were) < 3e-3
    assert adjusted.after < 1e-2 < adjusted.before
    place, _ = scene()
    for key in world.keyframes:
        _, which = seen_from(were[key], place)
        apart = np.linalg.norm(world.points_seen_by(key)[0] - (
            (place[which] - world.pose[key][:3, 3]) @ world.pose[key][:3, :3]
        ), axis=1)  # fmt: skip
        assert np.median(apart) < 0.02
    np.testing.assert_array_equal(world.pose[0], were[0])


def test_a_map_of_several_pairs_is_left_as_all_of_them_saw_it() -> None:
    world = made_map(8)
    disturbed(world)
    world.rig = replace(world.rig, cameras=world.rig.cameras[:1] * 4)
    before = dict(world.pose)
    adjust_map(world, MapAdjustmentSettings())
    assert errors(world, before) == 0.0


def test_groups_in_turn_come_nearer_and_nearer() -> None:
    # Each is held by the errors of the others: no group alone can end what all have begun.
    far = []
    for rounds in (1, 3, 10):
        world = made_map(8)
        were = disturbed(world)
        adjust_map(world, MapAdjustmentSettings(group=4, rounds=rounds))
        far.append(errors(world, were))
    assert far == sorted(far, reverse=True)
    assert far[-1] < 0.5 * far[0]


def test_steps_of_the_graph_agree_with_the_map() -> None:
    world = made_map(6)
    disturbed(world)
    adjust_map(world, MapAdjustmentSettings())
    for edge in world.edges:
        np.testing.assert_allclose(
            world.pose[edge.a] @ edge.a_from_b, world.pose[edge.b], atol=1e-9
        )


def test_without_metric_scale_scales_stay() -> None:
    world = made_map(6, 'mono')
    for key, pose in list(world.pose.items()):
        scaled = pose.copy()
        scaled[:3, :3] *= 1.0 + 0.1 * key
        world.landmarks.position[world.landmarks.anchor == key] /= 1.0 + 0.1 * key
        world.move({key: scaled})
    disturbed(world, 0.01)
    scales = {k: np.cbrt(np.linalg.det(p[:3, :3])) for k, p in world.pose.items()}
    adjusted = adjust_map(world, MapAdjustmentSettings())
    assert adjusted.after < 0.1 * adjusted.before
    for key, pose in world.pose.items():
        assert np.cbrt(np.linalg.det(pose[:3, :3])) == pytest.approx(scales[key])


def test_a_wrong_observation_is_taken_away() -> None:
    world = made_map(6)
    disturbed(world, 0.005)
    keyframe = world.keyframes[3]
    landmark = keyframe.landmark.copy()
    landmark[:12] = np.roll(landmark[:12], 1)
    world.keyframes[3] = keyframe.seeing(landmark)
    adjusted = adjust_map(world, MapAdjustmentSettings())
    assert adjusted.wrong >= 10
    assert (world.keyframes[3].landmark[:12] == -1).sum() >= 10


def test_a_map_with_nothing_to_adjust() -> None:
    world = made_map(1)
    world.keyframes[0] = world.keyframes[0].seeing(np.full(len(world.keyframes[0]), -1, np.int32))
    before = world.pose[0].copy()
    adjusted = adjust_map(world, MapAdjustmentSettings())
    assert adjusted.wrong == 0
    np.testing.assert_array_equal(world.pose[0], before)
