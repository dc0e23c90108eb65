# SPDX-License-Identifier: Apache-2.0
"""Frames on a map with a known answer, from nothing and from a guess."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from made_maps import CAMERA, made_map, pose_at
from test_view_pose import Alike, query

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Array, Features, Rig
from mv_matcher_ros.mapping.keyframe import packed
from mv_matcher_ros.mapping.localizer import Localizer, Located, NotFound
from mv_matcher_ros.mapping.map import Map
from mv_matcher_ros.odometry.observation import Observation


class Describer:
    """Says that a view looks like keyframe `like`."""

    size = 8

    def __init__(self, like: int = 2) -> None:
        self.like, self.asked = like, 0

    def describe(self, features: Features) -> torch.Tensor:
        self.asked += 1
        return torch.eye(8)[self.like]


def seen_at(pose: Array) -> Observation:
    features, plane = query(pose)
    sigma = torch.full((len(plane),), 0.5 / CAMERA.focal_px, dtype=torch.float64)
    unknown = torch.full((len(plane),), torch.nan, dtype=torch.float64)
    whose = torch.zeros(len(features), dtype=torch.int64)
    return Observation(1, 0, features, plane, sigma, unknown, unknown, whose)


def localizer(world: Map, describer: Any, wrong: float = 0.0) -> tuple[Localizer, Alike]:
    matcher = Alike(wrong)
    models = SimpleNamespace(matcher=matcher, point_inference=lambda settings: None)
    found = Localizer(Settings(), Rig((CAMERA,)), models, describer, world)  # type: ignore[arg-type]
    return found, matcher


@pytest.mark.parametrize('sensor', ['stereo', 'mono'])
def test_a_frame_is_found(sensor: str) -> None:
    world = made_map(5, sensor)
    if sensor == 'mono':  # units of a keyframe are its own
        for key, pose in world.pose.items():
            scaled = pose.copy()
            scaled[:3, :3] *= 1.5**key
            hangs = world.landmarks.anchor == key
            world.landmarks.position[hangs] /= 1.5**key
            world.move({key: scaled})
    true = pose_at(0.5, 0.1)
    found = localizer(world, Describer())[0].locate(seen_at(true))
    assert isinstance(found, Located)
    np.testing.assert_allclose(found.map_from_body, true, atol=3e-3)
    assert found.keyframe == 2
    sigma = np.sqrt(np.diag(found.covariance))
    assert (sigma[:3] < 0.1).all()
    assert (sigma > 0).all()


def test_the_wrong_place_is_not_believed_but_the_next_is_asked() -> None:
    world = made_map(5)
    rng = np.random.default_rng(0)
    look = rng.normal(size=world.keyframes[0].descriptors.shape)
    world.keyframes[0].descriptors[:] = packed(look)
    world.keyframes[0] = replace(world.keyframes[0], segment=9)  # nobody's neighbour
    describer = Describer(0)
    found = localizer(world, describer)[0].locate(seen_at(pose_at(0.9, 0.08)))
    assert isinstance(found, Located)
    assert found.keyframe != 0


def test_a_guess_spares_the_search() -> None:
    describer = Describer()
    found = localizer(made_map(5), describer)[0].locate(seen_at(pose_at(0.5)), pose_at(0.55, 0.05))
    assert isinstance(found, Located)
    np.testing.assert_allclose(found.map_from_body, pose_at(0.5), atol=3e-3)
    assert describer.asked == 0


def test_a_wrong_guess_does_no_harm() -> None:
    describer = Describer()
    away = pose_at(40.0, 2.8)
    found = localizer(made_map(5), describer)[0].locate(seen_at(pose_at(0.5)), away)
    assert isinstance(found, Located)
    np.testing.assert_allclose(found.map_from_body, pose_at(0.5), atol=3e-3)
    assert describer.asked == 1


def test_wrong_matches_are_nowhere() -> None:
    found = localizer(made_map(5), Describer(), wrong=1.0)[0].locate(seen_at(pose_at(0.5)))
    assert isinstance(found, NotFound)
    assert 'agree' in found.reason or 'no pose' in found.reason


def test_an_empty_map_has_nobody() -> None:
    found = localizer(Map(Rig((CAMERA,)), 'mono', ''), Describer())[0].locate(seen_at(pose_at(0)))
    assert isinstance(found, NotFound)
    assert 'no keyframes' in found.reason
