# SPDX-License-Identifier: Apache-2.0
"""The parts of `bench graph` on small graphs."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip('gtsam', reason='gtsam has no wheel for Python 3.10')

from mv_matcher_ros.cli.bench_graph import (
    draw,
    measure_batch,
    measure_false_loops,
    measure_file,
    measure_growth,
)
from mv_matcher_ros.config import PoseGraphSettings
from mv_matcher_ros.mapping import graph_worlds
from mv_matcher_ros.mapping.g2o import read_g2o


def test_cost_beside_one_batch_and_the_graph_as_a_file(tmp_path: Path) -> None:
    world = graph_worlds.sphere(6, 20)
    found = measure_batch(world, PoseGraphSettings(), tmp_path)
    assert (found['poses'], found['loops']) == (120, 100)
    assert -1e-6 < found['excess'] < 1e-3
    content = read_g2o(tmp_path / 'sphere.g2o')
    assert len(content.poses) == 120
    assert len(content.edges) == 119 + 100


@pytest.mark.slow
def test_false_loops_beside_none() -> None:
    rows = measure_false_loops(PoseGraphSettings(), seeds=1, poses=400)
    assert {(r['world'], r['sensor']) for r in rows} == {
        (world, sensor) for world in ('garage', 'manhattan') for sensor in ('metric', 'mono')
    }
    for row in rows:
        assert row['clean_m'] < row['odometry_m']
        assert row['ratio'] <= 1.2
        assert row['true_believed'] <= row['loops']


def test_growth_is_timed_and_drawn(tmp_path: Path) -> None:
    found = measure_growth(graph_worlds.manhattan(200, blocks=3), PoseGraphSettings())
    assert len(found['times_ms']) == 200
    assert [s['keyframes'] for s in found['samples']] == list(range(20, 201, 20))
    assert found['believed'] > 0
    assert found['p50_ms'] <= found['p99_ms'] <= found['worst_ms']
    draw({'metric': found}, tmp_path / 'growth.png')
    assert (tmp_path / 'growth.png').stat().st_size > 5000


def test_a_file_of_others_is_solved(tmp_path: Path) -> None:
    world = graph_worlds.garage(1)
    rows = measure_batch(world, PoseGraphSettings(), tmp_path)
    found = measure_file(tmp_path / 'garage.g2o', PoseGraphSettings())
    assert (found['poses'], found['loops']) == (rows['poses'], rows['loops'])
    assert found['cost'] == pytest.approx(rows['cost'], rel=1e-3)
    assert found['excess'] < 1e-3
