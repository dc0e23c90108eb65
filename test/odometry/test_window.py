# SPDX-License-Identifier: Apache-2.0
"""Bookkeeping of the window: rows of landmarks stay what they are through every change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from mv_matcher_ros.odometry.window import Keyframe, Landmarks, Window, measurements


@pytest.fixture
def window(make_scene: Callable[..., Any], pose: Callable[..., Any]) -> Window:
    """Three keyframes of 6 features, landmark k at (k, k, k): seen by 1, 2, 3, 1, 1 and 0."""
    scene, filled = make_scene(6), Window()
    place = torch.arange(6, dtype=torch.float64)[:, None].expand(6, 3)
    filled.landmarks.add(place, scene.descriptors)
    sees = ([0, 1, 2, -1, -1, -1], [-1, 2, 1, 3, -1, -1], [-1, -1, -1, -1, 2, 4])
    for number, rows in enumerate(sees):
        keyframe = Keyframe.of(scene.observe(pose(number), depth_sigma=0.0), pose(number))
        keyframe.landmark = torch.tensor(rows)
        filled.keyframes.append(keyframe)
    return filled


def places(window: Window) -> list[list[float]]:
    """What each feature of each keyframe sees, by the position and not by the row; −1 none."""
    found = []
    for keyframe in window.keyframes:
        x = [float(window.landmarks.position[k, 0]) if k >= 0 else -1.0 for k in keyframe.landmark]
        found.append(x)
    return found


def test_count_seen_counts_and_lets_go_of_the_unseen(window: Window) -> None:
    window.count_seen()
    assert window.landmarks.seen.tolist() == [1, 2, 3, 1, 1, 0]
    assert window.landmarks.alive.tolist() == [True] * 5 + [False]


def test_forget_removes_every_observation_and_nothing_else(window: Window) -> None:
    dead = torch.zeros(6, dtype=torch.bool)
    dead[[0, 2]] = True
    window.forget(dead)
    assert [k.landmark.tolist() for k in window.keyframes] == [
        [-1, 1, -1, -1, -1, -1],
        [-1, -1, 1, 3, -1, -1],
        [-1, -1, -1, -1, -1, 4],
    ]
    assert window.landmarks.alive.tolist() == [False, True, False, True, True, True]
    window.count_seen()
    assert window.landmarks.seen.tolist() == [0, 2, 0, 1, 1, 0]


def test_compaction_renumbers_and_every_feature_still_sees_its_point(window: Window) -> None:
    dead = torch.zeros(6, dtype=torch.bool)
    dead[[0, 2]] = True
    window.forget(dead)
    window.count_seen()
    before, descriptors = places(window), window.landmarks.descriptor.clone()
    new_row = window.compact()
    assert new_row.tolist() == [-1, 0, -1, 1, 2, -1]
    assert places(window) == before
    assert len(window.landmarks) == 3
    assert bool(window.landmarks.alive.all())
    assert window.landmarks.seen.tolist() == [2, 1, 1]
    assert torch.equal(window.landmarks.descriptor, descriptors[[1, 3, 4]])
    assert window.landmarks.covariance.shape == (3, 3, 3)


def test_flat_observations_are_all_pairs_in_order(window: Window) -> None:
    flat = window.flat_observations()
    rows = torch.stack([flat.keyframe, flat.feature, flat.landmark], 1).tolist()
    assert rows == [
        [0, 0, 0], [0, 1, 1], [0, 2, 2], [1, 1, 2], [1, 2, 1], [1, 3, 3], [2, 4, 2], [2, 5, 4]
    ]  # fmt: skip
    for k, (keyframe, feature, _) in enumerate(rows):
        seen = window.keyframes[keyframe].observation
        expected = [*seen.plane_xy[feature].tolist(), float(seen.inverse_depth[feature])]
        assert flat.measured[k].tolist() == pytest.approx(expected)


def test_feature_of_landmark_is_the_inverse_of_the_rows(window: Window) -> None:
    assert window.keyframes[1].feature_of_landmark(6).tolist() == [-1, 2, 1, 3, -1, -1]


def test_added_rows_follow_the_old_ones_and_start_certain_and_alive() -> None:
    landmarks = Landmarks()
    assert len(landmarks) == 0
    points = torch.ones(2, 3, dtype=torch.float64)
    assert landmarks.add(points, torch.zeros(2, 8)).tolist() == [0, 1]
    assert landmarks.add(3.0 * points, torch.ones(2, 8)).tolist() == [2, 3]
    assert landmarks.position[:, 0].tolist() == [1, 1, 3, 3]
    assert landmarks.descriptor[:, 0].tolist() == [0, 0, 1, 1]
    assert bool(landmarks.alive.all())
    assert float(landmarks.covariance.abs().max()) == 0.0


def test_an_unknown_depth_is_no_measurement(window: Window) -> None:
    seen = window.keyframes[0].observation
    inverse = seen.inverse_depth.clone()
    inverse[3] = torch.nan
    measured, information = measurements(replace(seen, inverse_depth=inverse))
    assert bool(measured.isfinite().all())
    assert (float(measured[3, 2]), float(information[3, 2])) == (0.0, 0.0)
    known = torch.arange(6) != 3
    torch.testing.assert_close(information[known, 2], 1.0 / seen.inverse_depth_sigma[known])
    torch.testing.assert_close(information[:, 0], 1.0 / seen.sigma)
