# SPDX-License-Identifier: Apache-2.0
"""A short flight through a room, in memory and as a bag."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from mv_matcher_ros.datatypes import Rig
from mv_matcher_ros.files.bag import write_bag
from mv_matcher_ros.training.adaptation.clips import Clip, ClipImages, planned, survey
from mv_matcher_ros.training.adaptation.settings import ClipSettings
from mv_matcher_ros.worlds.presets import room_loop
from mv_matcher_ros.worlds.recording import SyntheticSource

SIZE = (320, 240)
FRAMES = 50


@dataclass(frozen=True)
class Flight:
    """A rig and clips."""

    rig: Rig
    teach: list[Clip]
    judge: list[Clip]


def source(sensor: str) -> SyntheticSource:
    return room_loop(sensor, FRAMES, SIZE)  # type: ignore[arg-type]


def flown(sensor: str) -> Flight:
    rendered = source(sensor)
    frames = list(rendered)
    settings = ClipSettings(fewest=4)
    cameras = len(rendered.rig.cameras)
    plan = planned('flight', survey(frames, rendered.rig, settings, 0, 4.0), settings, cameras)
    images = ClipImages.of(frames, plan.frames, rendered.rig, cameras, 0)
    teach, judge = ([images.clip(c) for c in side] for side in (plan.teach, plan.judge))
    return Flight(rendered.rig, teach, judge)


@pytest.fixture(scope='session')
def flight() -> Flight:
    return flown('mono')


@pytest.fixture(scope='session')
def stereo_flight() -> Flight:
    return flown('stereo')


@pytest.fixture(scope='session')
def flight_bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bag = tmp_path_factory.mktemp('bag') / 'flight'
    write_bag(bag, source('mono'))
    return bag
