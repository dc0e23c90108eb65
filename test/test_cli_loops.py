# SPDX-License-Identifier: Apache-2.0
"""`bench loops` on a small rendered round."""

from __future__ import annotations

import pytest

pytest.importorskip('gtsam', reason='gtsam has no wheel for Python 3.10')

from mv_matcher_ros.cli.bench_loops import measure
from mv_matcher_ros.cli.loop_runs import open_loop
from mv_matcher_ros.config import Settings
from mv_matcher_ros.errors import SourceError


@pytest.mark.slow
def test_a_round_is_closed_and_false_loops_are_not_believed() -> None:
    settings = Settings.model_validate({
        'detector': {'max_keypoints': 300}, 'keyframes': {'parallax_px': 25.0},
        'mapping': {'loops': {'min_inliers': 15}},
    })  # fmt: skip
    row = measure('room_loop', settings, 'stereo', (320, 240), 0)
    assert row['revisits'] == row['closed'] == 1
    assert row['loops'] >= 1
    assert row['false'] == 0
    assert row['map_m'] < 1.1 * row['odometry_m']
    for harm in row['injected'].values():
        assert harm['injected'] == row['verified']
        assert harm['believed'] == 0
        assert harm['ate_m'] <= 1.2 * row['graph_m']


def test_what_is_no_loop_is_named() -> None:
    with pytest.raises(SourceError, match='no_such_loop'):
        open_loop('no_such_loop', 'mono', (320, 240), 0)
