# SPDX-License-Identifier: Apache-2.0
"""What is stated of poses, against poses that were drawn."""

from __future__ import annotations

import torch

from mv_matcher_ros.config import CovarianceSettings
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.odometry.pose_uncertainty import SEARCHED, PoseUncertainty
from mv_matcher_ros.odometry.tracking import Tracked

NOISE = torch.diag(torch.tensor([1e-2, 2e-2, 1e-2, 5e-3, 1e-2, 5e-3], dtype=torch.float64) ** 2)


def pose(*values: float) -> torch.Tensor:
    return se3.exp(torch.tensor(values, dtype=torch.float64))


def tracked(covariance: torch.Tensor) -> Tracked:
    nothing = torch.zeros(0, dtype=torch.int64)
    information = torch.linalg.inv(covariance)
    return Tracked(pose(0, 0, 0, 0, 0, 0), nothing, nothing, nothing > 0, information, 'landmarks')


def settings() -> CovarianceSettings:
    return CovarianceSettings(noise=1.0)


def test_steps_add_up_as_drawn_ones_do() -> None:
    steps = [pose(1.0, 0.2, 0.0, 0.0, 0.1, 0.6), pose(0.5, 0.0, 0.3, 0.2, 0.0, -0.3)]
    ahead = pose(2.0, 0.0, 0.0, 0.0, 0.0, 0.1)
    at = torch.eye(4, dtype=torch.float64)
    uncertainty = PoseUncertainty(settings(), at)
    generator = torch.Generator().manual_seed(0)
    drawn = at.expand(20_000, 4, 4)
    for step in steps:
        at = at @ step
        uncertainty.adopt(at, step, NOISE)
        noise = torch.randn(len(drawn), 6, generator=generator, dtype=torch.float64)
        drawn = drawn @ step @ se3.exp(noise @ NOISE.sqrt())
    there = at @ ahead
    errors = se3.log(se3.inverse(there) @ drawn @ ahead)
    torch.testing.assert_close(
        uncertainty.accumulated(there).diagonal(), errors.T.cov().diagonal(), rtol=0.05, atol=0
    )


def test_a_search_is_admitted_until_the_next_keyframe() -> None:
    at, step = torch.eye(4, dtype=torch.float64), pose(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    uncertainty = PoseUncertainty(settings(), at)
    uncertainty.measured(tracked(NOISE), searched=True)
    torch.testing.assert_close(uncertainty.noise, SEARCHED**2 * NOISE)
    uncertainty.measured(tracked(NOISE))
    torch.testing.assert_close(uncertainty.noise, NOISE)
    before = uncertainty.accumulated(at)
    uncertainty.adopt(at, step, NOISE)
    after = uncertainty.accumulated(at)
    torch.testing.assert_close(after - before, (SEARCHED**2 + 1.0) * NOISE)
    uncertainty.adopt(at, step, NOISE)
    torch.testing.assert_close(uncertainty.accumulated(at) - after, 2.0 * NOISE)


def test_what_is_left_and_what_is_in_work_is_said_and_does_not_add_up() -> None:
    at = torch.eye(4, dtype=torch.float64)
    uncertainty = PoseUncertainty(settings(), at)
    begin = uncertainty.accumulated(at)
    uncertainty.measured(tracked(NOISE), left=0.25)
    torch.testing.assert_close(uncertainty.noise, 4.0 * NOISE)
    uncertainty.keyframe_in_work()
    torch.testing.assert_close(uncertainty.accumulated(at) - begin, 4.0 * NOISE)
    uncertainty.keyframe_done()
    uncertainty.adopt(at, at, NOISE)
    torch.testing.assert_close(uncertainty.accumulated(at) - begin, 2.0 * NOISE)


def test_a_map_that_is_given_up_leaves_what_it_erred_by() -> None:
    at, elsewhere = torch.eye(4, dtype=torch.float64), pose(3.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    uncertainty = PoseUncertainty(settings(), at)
    uncertainty.measured(tracked(NOISE))
    short, long = (uncertainty.coasting(elsewhere, elapsed) for elapsed in (0.5, 2.0))
    assert bool((torch.linalg.eigvalsh(long - short) > 0).all())
    uncertainty.give_up(elsewhere, 2.0, NOISE)
    uncertainty.begin(elsewhere)
    torch.testing.assert_close(uncertainty.accumulated(elsewhere), long + NOISE)
