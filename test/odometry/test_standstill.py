# SPDX-License-Identifier: Apache-2.0
"""The zero-motion gate holds a standing camera still and swallows no slow motion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mv_matcher_ros.config import ZeroMotionSettings
from mv_matcher_ros.odometry.observation import Observation
from mv_matcher_ros.odometry.standstill import MIN_COMMON, StandstillGate
from mv_matcher_ros.odometry.tracking import Tracked

Make = Callable[..., Any]
SETTINGS = ZeroMotionSettings(max_flow_px=0.25)
ROWS = torch.arange(200)


def tracked_at(world_from_body: Tensor, sigma: float = 0.01, count: int = 200) -> Tracked:
    """Feature k sees landmark k; the pose has standard deviation `sigma` in every direction."""
    information = torch.eye(6, dtype=torch.float64) / sigma**2
    seen = torch.ones(count, dtype=torch.bool)
    return Tracked(world_from_body, ROWS[:count], ROWS[:count], seen, information, '')


def shifted(observation: Observation, pixels: float) -> Observation:
    moved = observation.features.keypoints_xy + torch.tensor([pixels, 0.0])
    return replace(observation, features=replace(observation.features, keypoints_xy=moved))


def gate_at(observation: Observation, world_from_body: Tensor) -> StandstillGate:
    gate = StandstillGate(SETTINGS)
    gate.restart(observation, ROWS, world_from_body)
    return gate


def test_noise_is_held_at_the_first_pose(make_scene: Make, pose: Make) -> None:
    scene, at = make_scene(), pose(1, 2, 3)
    gate = gate_at(scene.observe(at, noise_px=0.1), at)
    for k in range(5):
        held = gate.hold(scene.observe(at, noise_px=0.1), tracked_at(at @ pose(0.003 * k)))
        assert held is at


def test_flow_is_motion(make_scene: Make, pose: Make) -> None:
    seen, at = make_scene().observe(pose(0)), pose(0)
    assert gate_at(seen, at).hold(shifted(seen, 0.2), tracked_at(at)) is at
    assert gate_at(seen, at).hold(shifted(seen, 0.3), tracked_at(at)) is None


def test_a_significant_pose_change_is_motion_even_without_flow(
    make_scene: Make, pose: Make
) -> None:
    seen, at = make_scene().observe(pose(0)), pose(0)
    gate = gate_at(seen, at)
    assert gate.hold(seen, tracked_at(pose(0.034))) is at  # 3.4 σ: 11.6 of 12.59
    assert gate.hold(seen, tracked_at(pose(0.037))) is None


def test_a_creep_adds_up_until_it_counts(make_scene: Make, pose: Make) -> None:
    seen, at = make_scene().observe(pose(0)), pose(0)
    gate = gate_at(seen, at)
    steps = [gate.hold(shifted(seen, 0.04 * k), tracked_at(at)) is None for k in range(12)]
    assert steps == [False] * 7 + [True] * 5  # 0.04 px a frame is noise, 0.28 px is not


def test_too_few_common_tracks_hold_nothing(make_scene: Make, pose: Make) -> None:
    seen, at = make_scene().observe(pose(0)), pose(0)
    gate = gate_at(seen, at)
    assert gate.hold(seen, tracked_at(at, count=MIN_COMMON)) is at
    assert gate.hold(seen, tracked_at(at, count=MIN_COMMON - 1)) is None
    other = replace(tracked_at(at), landmark=ROWS + 200)  # all landmarks are new ones
    assert gate.hold(seen, other) is None


def test_nothing_is_held_before_a_start_without_landmarks_or_when_switched_off(
    make_scene: Make, pose: Make
) -> None:
    seen, at = make_scene().observe(pose(0)), pose(0)
    assert StandstillGate(SETTINGS).hold(seen, tracked_at(at)) is None
    blind = StandstillGate(SETTINGS)
    blind.restart(seen, torch.full((200,), -1), at)
    assert blind.hold(seen, tracked_at(at)) is None
    off = StandstillGate(ZeroMotionSettings(enabled=False))
    off.restart(seen, ROWS, at)
    assert off.hold(seen, tracked_at(at)) is None
