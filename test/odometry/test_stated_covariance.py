# SPDX-License-Identifier: Apache-2.0
"""The covariance that is stated, against the errors made."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mv_matcher_ros.config import CovarianceSettings, Settings
from mv_matcher_ros.datatypes import Trajectory
from mv_matcher_ros.evaluation.association import associate
from mv_matcher_ros.evaluation.consistency import consistency
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.odometry.engine import OdometryEngine
from mv_matcher_ros.odometry.local_adjustment import unknown_covariance
from mv_matcher_ros.worlds.presets import room_loop


def test_what_is_unknown_grows_with_length_and_angle() -> None:
    settings = CovarianceSettings(share=0.01, turn_share=0.02, turn_deg=0.5)
    step = se3.exp(torch.tensor([0.0, 0.0, 2.0, 0.0, 0.3, 0.0], dtype=torch.float64))
    found = unknown_covariance(step, settings)
    length = float(step[:3, 3].norm())
    turn = (0.02 * 0.3) ** 2 + math.radians(0.5) ** 2
    expected = torch.diag(torch.tensor([(0.01 * length) ** 2] * 3 + [turn] * 3))
    torch.testing.assert_close(found, expected.double())
    nothing = CovarianceSettings(share=0.0, turn_share=0.0, turn_deg=0.0)
    assert not bool(unknown_covariance(step, nothing).any())
    still = unknown_covariance(torch.eye(4, dtype=torch.float64), settings)
    assert bool(still.isfinite().all())


@pytest.mark.slow
def test_errors_are_as_large_as_stated() -> None:
    source = room_loop('rgbd', 110, (320, 240), 3)
    settings = Settings.model_validate({
        'sensor': 'rgbd', 'detector': {'max_keypoints': 500}, 'keyframes': {'parallax_px': 25.0},
    })  # fmt: skip
    engine = OdometryEngine(settings, source.rig)
    known = [e for e in map(engine.process, source) if e.odom_from_body is not None]
    assert len(known) == 110
    estimate = Trajectory(
        np.array([e.stamp_ns for e in known]),
        np.array([e.odom_from_body for e in known]),
        np.array([e.covariance for e in known]),
    )
    found = consistency(associate(estimate, source.truth), 10)
    assert len(found.nees) >= 6
    assert 0.3 < found.nees_per_dof < 3.0
    assert found.coverage[1].mean() > 0.85
