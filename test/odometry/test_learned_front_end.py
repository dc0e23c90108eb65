# SPDX-License-Identifier: Apache-2.0
"""The engine on the shipped detector, with every sensor.

A short flight in small images: with SIFT its end is 3.3 % off (stereo), 0.7 % (RGB-D).
"""

from __future__ import annotations

import numpy as np
import pytest

from mv_matcher_ros.config import read_settings
from mv_matcher_ros.datatypes import Sensor, Status
from mv_matcher_ros.odometry.engine import OdometryEngine
from mv_matcher_ros.worlds.presets import room_loop


@pytest.mark.parametrize('sensor', ['mono', 'stereo', 'rgbd'])
def test_the_engine_runs_on_the_shipped_detector(sensor: Sensor) -> None:
    flight = room_loop(sensor, 16, (320, 240))
    engine = OdometryEngine(
        read_settings({'sensor': sensor, 'detector.name': 'learned'}), flight.rig
    )
    estimates = [engine.process(frame) for frame in flight]
    assert [e.status for e in estimates[-6:]] == [Status.TRACKING] * 6
    assert flight.truth is not None
    if sensor != 'mono':
        truth = flight.truth.world_from_body
        moved, said = np.linalg.inv(truth[0]) @ truth[-1], estimates[-1].odom_from_body
        assert said is not None
        assert np.linalg.norm(said[:3, 3] - moved[:3, 3]) < 0.03 * np.linalg.norm(moved[:3, 3])
