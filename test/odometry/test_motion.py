# SPDX-License-Identifier: Apache-2.0
"""Constant velocity, its bounds, and the law of continuity of the published pose (REP-105)."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from mv_matcher_ros.config import TrackingSettings
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.odometry.motion import (
    CATCH_UP,
    DECAY_PER_S,
    Continuity,
    Motion,
    coasting_covariance,
    plausible,
)

STEP_NS = 50_000_000
STEP_S = 0.05
VELOCITY = torch.tensor([1.0, -0.3, 0.2, 0.4, -0.2, 0.7], dtype=torch.float64)


# Far from the origin and turned: the order of products matters.
START = se3.exp(torch.tensor([9.0, -5.0, 4.0, 0.9, 0.6, -1.5], dtype=torch.float64))


def lengths(transform: Tensor) -> tuple[float, float]:
    """Translation and rotation of a step."""
    step = se3.log(transform)
    return float(step[:3].norm()), float(step[3:].norm())


def screw(start: Tensor, number: int, velocity: Tensor = VELOCITY) -> Tensor:
    return start @ se3.exp(velocity * (STEP_S * number))


def test_prediction_of_a_screw_motion_is_exact(pose: Callable[..., Tensor]) -> None:
    start = pose(3, -2, 1, 0.5, 1.0, -0.4)
    motion = Motion(0, start)
    for number in (1, 2, 3):
        motion = motion.measured(number * STEP_NS, screw(start, number))
    assert motion.velocity is not None
    torch.testing.assert_close(motion.velocity, VELOCITY, rtol=0, atol=1e-9)
    assert motion.speed == pytest.approx(float(VELOCITY[:3].norm()))
    assert motion.turn_rate == pytest.approx(float(VELOCITY[3:].norm()))
    ahead = motion.predict(7 * STEP_NS)
    torch.testing.assert_close(ahead, screw(start, 7), rtol=0, atol=1e-9)


def test_without_velocity_the_pose_is_held(pose: Callable[..., Tensor]) -> None:
    motion = Motion(0, pose(1, 2, 3))
    assert torch.equal(motion.predict(STEP_NS), motion.world_from_body)
    again = motion.measured(0, pose(2, 2, 3))  # no time passed: no velocity can be told
    assert again.velocity is None
    assert (motion.speed, motion.turn_rate) == (0.0, 0.0)


def test_correction_moves_the_pose_and_keeps_time_and_velocity(
    pose: Callable[..., Tensor],
) -> None:
    corrected = Motion(5, pose(0), VELOCITY).corrected(pose(1))
    assert (corrected.stamp_ns, corrected.velocity) == (5, VELOCITY)
    assert torch.equal(corrected.world_from_body, pose(1))


class TestVelocity:
    """A step that no body can have made corrects the pose; a second one like it is a motion."""

    SPEED = torch.tensor([1.0, 0, 0, 0, 0, 0], dtype=torch.float64)

    def moved(self, *steps_m: float, metric: bool = True) -> Motion:
        """After these steps along x, each in 50 ms, of a body at 1 m/s."""
        motion = Motion(0, START, self.SPEED, metric)
        here = START
        for number, step_m in enumerate(steps_m, 1):
            here = here @ se3.exp(self.SPEED * step_m)
            motion = motion.measured(number * STEP_NS, here)
            assert torch.equal(motion.world_from_body, here)
        return motion

    @pytest.mark.parametrize(
        ('step_m', 'metric', 'speed'),
        [(0.15, True, 2.4), (0.16, True, 1.0), (0.12, False, 1.98), (0.13, False, 1.0)],
    )
    def test_a_step_that_no_body_can_have_made_says_nothing_of_it(
        self, step_m: float, metric: bool, speed: float
    ) -> None:
        assert self.moved(step_m, metric=metric).speed == pytest.approx(speed)

    def test_a_turn_that_no_body_can_have_made_says_nothing_of_it(
        self, pose: Callable[..., Tensor]
    ) -> None:
        motion = Motion(0, START, self.SPEED).measured(
            STEP_NS, START @ pose(0.05, 0, 0, 0, 0, 0.1)
        )
        assert motion.turn_rate == 0.0

    def test_a_second_one_like_it_is_believed(self) -> None:
        assert self.moved(0.3, 0.3).speed == pytest.approx(6.0)
        assert self.moved(0.3, 0.2).speed == pytest.approx(0.7 * 4.0 + 0.3 * 6.0)

    def test_there_and_back_is_not(self) -> None:
        assert self.moved(0.3, -0.25).speed == pytest.approx(1.0)
        assert self.moved(0.3, -0.25, 0.05).speed == pytest.approx(1.0)

    def test_what_was_doubted_is_forgotten_after_a_good_step(self) -> None:
        assert self.moved(0.3, 0.05, 0.3).speed == pytest.approx(1.0)


class TestContinuity:
    """After a rebase the offset is handed out in small steps and is gone in the end."""

    def run(self, offset: Tensor, velocity: Tensor, frames: int) -> list[tuple[Tensor, Tensor]]:
        """(published, estimated) from the frame before the jump of the estimate on."""
        continuity = Continuity()
        start = START
        motion = Motion(0, start, velocity)
        rows = [(continuity.publish(start, motion, STEP_S), start)]
        jumped = start @ se3.inverse(offset)
        continuity.rebase(screw(jumped, 1, velocity))
        for number in range(1, frames + 1):
            estimated = screw(jumped, number, velocity)
            published = continuity.publish(estimated, motion, STEP_S)
            rows.append((published, estimated))
        return rows

    def test_steps_are_the_motion_and_at_most_the_catch_up(
        self, pose: Callable[..., Tensor]
    ) -> None:
        offset = pose(0.6, -0.3, 0.2)  # without rotation the share is that of the lengths
        speed = torch.tensor([1.0, 0, 0, 0, 0, 0], dtype=torch.float64)
        rows = self.run(offset, speed, 40)
        for (before, _), (after, _) in pairwise(rows[1:]):
            moved = float((after - before)[:3, 3].norm())
            remaining = float(offset[:3, 3].norm())
            assert moved <= STEP_S * (1.0 + CATCH_UP + DECAY_PER_S * remaining) + 1e-9

    def test_the_first_pose_after_the_jump_stays_near(self, pose: Callable[..., Tensor]) -> None:
        rows = self.run(pose(2.0, 0, 0, 0, 0, 1.0), VELOCITY, 1)
        moved, turned = lengths(se3.inverse(rows[0][0]) @ rows[1][0])
        assert moved < 2.0 * STEP_S * float(VELOCITY[:3].norm()) + STEP_S
        assert turned < 2.0 * STEP_S * float(VELOCITY[3:].norm())

    def test_the_offset_dies_out_and_the_estimate_is_published(
        self, pose: Callable[..., Tensor]
    ) -> None:
        rows = self.run(pose(0.5, 0.2, 0, 0.1, 0, 0.2), VELOCITY, 60)
        left = [lengths(se3.inverse(e) @ p) for p, e in rows[1:]]
        for kind in (0, 1):
            sizes = [row[kind] for row in left]
            assert all(a >= b - 1e-6 for a, b in pairwise(sizes))
            assert sizes[0] > 0.1
        published, estimated = rows[-1]
        assert torch.equal(published, estimated)

    def test_a_standing_body_catches_up_slowly(self, pose: Callable[..., Tensor]) -> None:
        rows = self.run(pose(1.0), torch.zeros(6, dtype=torch.float64), 20)
        left = lengths(se3.inverse(rows[-1][1]) @ rows[-1][0])[0]
        assert left == pytest.approx((1.0 - DECAY_PER_S * STEP_S) ** 20, rel=1e-6)

    def test_a_body_that_turns_does_not_swing_what_it_is_behind_by(
        self, pose: Callable[..., Tensor]
    ) -> None:
        turning = torch.tensor([0, 0, 0, 0, 0, 1.0], dtype=torch.float64)
        rows = self.run(pose(2.0), turning, 20)
        for (before, _), (after, _) in pairwise(rows[1:]):
            moved, turned = lengths(se3.inverse(before) @ after)
            assert moved < 2.0 * 1.02 * DECAY_PER_S * STEP_S
            assert turned < (1.0 + CATCH_UP + DECAY_PER_S) * STEP_S

    def test_a_body_that_is_turned_moves_along_the_estimate(
        self, pose: Callable[..., Tensor]
    ) -> None:
        speed = torch.tensor([1.0, 0, 0, 0, 0, 0], dtype=torch.float64)
        rows = self.run(pose(0, 0, 0, 0, 0, 0.6), speed, 20)
        for published, estimated in rows[5:]:  # with what the first step was behind by
            torch.testing.assert_close(published[:3, 3], estimated[:3, 3])
            turned = lengths(se3.inverse(estimated) @ published)[1]
            assert 0.9 * 0.6 < turned <= 0.6  # no turn, so only slowly

    def test_without_a_jump_the_estimate_is_published(self, pose: Callable[..., Tensor]) -> None:
        continuity = Continuity()
        assert continuity.last is None
        continuity.rebase(pose(5))  # nothing was published: nothing to continue from
        published = continuity.publish(pose(5), Motion(0, pose(5)), STEP_S)
        assert torch.equal(published, pose(5))
        assert continuity.last is published

    @pytest.mark.parametrize('metric', [True, False])
    @pytest.mark.parametrize(
        'correction', [(0.5, 0.2, 0, 0, 0, 0), (0, 0, 0, 0, 0.3, 0)], ids=['metres', 'radians']
    )
    def test_a_correction_is_handed_out_and_admitted(
        self, correction: tuple[float, ...], metric: bool, pose: Callable[..., Tensor]
    ) -> None:
        continuity = Continuity(metric)
        motion = Motion(0, START, VELOCITY)
        continuity.publish(START, motion, STEP_S, VELOCITY)
        last = continuity.publish(screw(START, 1, VELOCITY), motion, STEP_S, VELOCITY)
        assert not bool(continuity.covariance.any())
        mended = screw(START, 2, VELOCITY) @ pose(*correction)
        published = continuity.publish(mended, motion, STEP_S, VELOCITY)
        torch.testing.assert_close(se3.log(se3.inverse(last) @ published), VELOCITY * STEP_S)
        off = torch.stack(
            [part.norm() for part in se3.log(se3.inverse(mended) @ published).split(3)]
        )
        stated = continuity.covariance.diagonal().sqrt().reshape(2, 3)[:, 0]
        torch.testing.assert_close(stated, off)
        for number in range(3, 90):
            mended = screw(START, number, VELOCITY) @ pose(*correction)
            before, published = published, continuity.publish(mended, motion, STEP_S, VELOCITY)
            moved, turned = lengths(se3.inverse(before) @ published)
            assert moved < 2.0 * STEP_S * float(VELOCITY[:3].norm())
            assert turned < 2.0 * STEP_S * float(VELOCITY[3:].norm())
        assert torch.equal(published, mended)
        assert not bool(continuity.covariance.any())

    @pytest.mark.parametrize(
        ('elapsed_s', 'moved_m', 'metric'),
        [(STEP_S, 0.14, True), (0.3, 0.7, True), (STEP_S, 0.12, False), (0.3, 0.65, False)],
    )
    def test_what_a_body_can_do_is_published_at_once(
        self, elapsed_s: float, moved_m: float, metric: bool, pose: Callable[..., Tensor]
    ) -> None:
        continuity = Continuity(metric)
        speed = torch.tensor([1.0, 0, 0, 0, 0, 0], dtype=torch.float64)
        continuity.publish(START, Motion(0, START, speed), STEP_S, speed)
        there = START @ pose(moved_m)
        published = continuity.publish(there, Motion(0, START, speed), elapsed_s, speed)
        assert torch.equal(published, there)


@pytest.mark.parametrize(
    ('step', 'metric', 'expected'),
    [
        ((3.9,), True, True),
        ((4.2,), True, False),
        ((4.2,), False, True),  # lengths mean nothing without scale
        ((0, 0, 0, math.radians(40), 0, 0), True, True),
        ((0, 0, 0, math.radians(42), 0, 0), True, False),
        ((0, 0, 0, 0, math.radians(42), 0), False, False),
    ],
)
def test_bounds_of_a_step_of_a_tenth_of_a_second(
    step: tuple[float, ...], metric: bool, expected: bool, pose: Callable[..., Tensor]
) -> None:
    start = pose(1, 2, 3, 0.3, 0.2, 0.1)
    bounds = TrackingSettings(max_speed_mps=40.0, max_rotation_dps=360.0)
    assert plausible(start, start @ pose(*step), 0.1, bounds, metric) is expected


def test_coasting_grows_with_the_fourth_power_of_time() -> None:
    torch.testing.assert_close(coasting_covariance(2.0), 16.0 * coasting_covariance(1.0))
    assert float(coasting_covariance(1.0)[0, 0]) == pytest.approx(1.0)  # half of 2 m/s² · 1 s²
