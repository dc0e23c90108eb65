# SPDX-License-Identifier: Apache-2.0
"""Graphs that the tests of this room share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mv_matcher_ros.config import PoseGraphSettings
from mv_matcher_ros.mapping.graph_worlds import GraphWorld
from mv_matcher_ros.mapping.loops import Loop
from mv_matcher_ros.mapping.pose_graph import PoseGraph


@pytest.fixture
def driven() -> Callable[..., PoseGraph]:
    """The graph of a world after all of it; loops, or words of settings, may be added."""
    pytest.importorskip('gtsam', reason='gtsam has no wheel for Python 3.10')

    def drive(world: GraphWorld, more: tuple[Loop, ...] = (), **settings: Any) -> PoseGraph:
        graph = PoseGraph(PoseGraphSettings(**settings), world.similarity)
        for _ in world.drive(graph, more):
            pass
        return graph

    return drive


@pytest.fixture
def off() -> Callable[[PoseGraph, GraphWorld], float]:
    """Root mean square distance from the truth; the first pose is the true one."""

    def rmse(graph: PoseGraph, world: GraphWorld) -> float:
        apart = graph.poses()[1][:, :3, 3] - world.truth[:, :3, 3]
        return float(np.sqrt((apart**2).sum(1).mean()))

    return rmse
