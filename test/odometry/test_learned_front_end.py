# SPDX-License-Identifier: Apache-2.0
"""The engine on the shipped detector, with every sensor.

A short flight in small images: with SIFT its end is 3.3 % off (stereo), 0.7 % (RGB-D).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mv_matcher_ros.config import read_settings
from mv_matcher_ros.datatypes import Sensor, Status
from mv_matcher_ros.models.choice import Models
from mv_matcher_ros.models.learned_matcher import LearnedMatcher
from mv_matcher_ros.models.place import Place
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


@pytest.mark.parametrize('matcher', ['auto', 'multiview'])
def test_on_a_cpu_the_graph_network_begins_maps_only(
    matcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    views: list[int] = []
    match = LearnedMatcher.match

    def counted(self: LearnedMatcher, features, *rest, **named):  # type: ignore[no-untyped-def]
        views.append(len(features))
        return match(self, features, *rest, **named)

    monkeypatch.setattr(LearnedMatcher, 'match', counted)
    flight = room_loop('mono', 24, (320, 240))
    settings = {'sensor': 'mono', 'detector.name': 'learned', 'matching.matcher': matcher}
    engine = OdometryEngine(read_settings({**settings, 'runtime.device': 'cpu'}), flight.rig)
    begun, later = 0, 0
    for frame in flight:
        estimate = engine.process(frame)
        begun = begun or len(views) * (estimate.status is Status.TRACKING)
        later += estimate.is_keyframe
    assert begun > 0
    assert later > 2
    assert (len(views) > begun) == (matcher == 'multiview')


def test_on_a_gpu_it_matches_every_keyframe() -> None:
    settings = read_settings({'detector.name': 'learned', 'runtime.device': 'cpu'})
    models = Models.of(settings)
    assert models.graph is not None
    assert models.graph_of_keyframes(settings.matching) is None
    models.graph.place = Place(torch.device('cuda'), torch.float16)
    assert models.graph_of_keyframes(settings.matching) is models.graph
