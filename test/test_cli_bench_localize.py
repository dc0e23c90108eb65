# SPDX-License-Identifier: Apache-2.0
"""`bench localize` on a small rendered loop."""

from __future__ import annotations

import pytest

pytest.importorskip('gtsam', reason='gtsam has no wheel for Python 3.10')

from mv_matcher_ros.cli.bench_localize import measure
from mv_matcher_ros.config import Settings


@pytest.mark.slow
def test_a_second_round_is_found_and_a_body_that_was_carried_off() -> None:
    settings = Settings.model_validate({
        'sensor': 'stereo', 'detector': {'max_keypoints': 300},
        'keyframes': {'parallax_px': 25.0}, 'mapping': {'loops': {'min_inliers': 15}},
    })  # fmt: skip
    row = measure('room_loop', settings, (320, 240), 0, 3.0)
    assert row['found'] >= 0.9 * row['frames']
    assert row['median_m'] < 0.05
    assert row['carried_off']['lost_s'] <= 1.0
    assert row['carried_off']['found_s'] <= 2.0
    assert row['carried_off']['error_m'] < 0.25
