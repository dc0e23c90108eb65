# SPDX-License-Identifier: Apache-2.0
"""Two-view start: exact on exact matches, and refused where two views cannot tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from mv_matcher_ros.config import read_settings
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.models.classical import NearestNeighbourMatcher
from mv_matcher_ros.odometry.initialisation import TwoViewInitialiser, TwoViewStart

Make = Callable[..., Any]
SETTINGS = read_settings()


def initialiser(scene: Any) -> TwoViewInitialiser:
    matcher = NearestNeighbourMatcher(SETTINGS.matching, 'sift')
    return TwoViewInitialiser(SETTINGS, scene.camera, matcher)


@pytest.mark.parametrize(
    'motion',
    [(0.4, 0.0, 0.0), (0.1, 0.05, 0.8), (0.3, -0.1, 0.2, 0.05, -0.1, 0.2)],
    ids=['sideways', 'forward', 'general'],
)
def test_exact_matches_give_the_exact_start(
    motion: tuple[float, ...], make_scene: Make, pose: Make
) -> None:
    scene, there = make_scene(300, seed=2), pose(*motion)
    waiting = initialiser(scene)
    first = scene.observe(pose(0))
    assert waiting.offer(first) == (None, 'waiting for a second view with parallax')
    start, message = waiting.offer(scene.observe(there))
    assert message == ''
    assert start is not None
    assert start.first is first
    assert torch.equal(start.pairs[:, 0], start.pairs[:, 1])  # feature k is point k in both
    assert len(start.pairs) > 200
    chosen = scene.points[start.pairs[:, 0]]
    scale = 1.0 / float(chosen[:, 2].median())
    assert float(start.points[:, 2].median()) == pytest.approx(1.0)
    expected = se3.inverse(there)
    torch.testing.assert_close(
        start.second_from_first[:3, :3], expected[:3, :3], rtol=0, atol=1e-6
    )
    found, true = start.second_from_first[:3, 3], scale * expected[:3, 3]
    torch.testing.assert_close(found, true, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(start.points, scale * chosen, rtol=1e-3, atol=1e-5)


def test_wrong_matches_are_left_out(make_scene: Make, pose: Make) -> None:
    scene, there = make_scene(300, seed=2), pose(0.4, 0, 0.1, 0, 0.05, 0)
    waiting = initialiser(scene)
    waiting.offer(scene.observe(pose(0)))
    second = scene.observe(there, noise_px=0.3)
    plane = second.plane_xy.clone()
    plane[:60] += 0.1 * scene.noise(60, 2)  # a fifth of the matches, 40 px off
    start, _ = waiting.offer(replace(second, plane_xy=plane))
    assert start is not None
    moved = int((start.pairs[:, 0] < 60).sum())
    assert moved < 12  # some lie near their epipolar line by chance
    turn = se3.log(start.second_from_first @ there)[3:]
    assert float(turn.norm()) < 6e-3


def test_a_pure_rotation_is_refused(make_scene: Make, pose: Make) -> None:
    scene = make_scene(300, seed=4)
    waiting = initialiser(scene)
    waiting.offer(scene.observe(pose(0), noise_px=0.4))
    for angle in (0.0, 0.05, 0.2):
        second = scene.observe(pose(0, 0, 0, 0, angle, 0.5 * angle), noise_px=0.4)
        start, message = waiting.offer(second)
        assert start is None
        assert message == 'waiting for translation: the camera only turned, or stands still'


def test_little_parallax_waits_and_a_later_view_starts(make_scene: Make, pose: Make) -> None:
    scene = make_scene(300, seed=5, nearest=4.0)
    waiting = initialiser(scene)
    waiting.offer(scene.observe(pose(0)))
    start, message = waiting.offer(scene.observe(pose(0.04)))
    assert start is None
    assert message.startswith('waiting for parallax')
    assert '40 are needed' in message
    start, message = waiting.offer(scene.observe(pose(0.4)))
    assert start is not None


def test_without_texture_there_is_no_first_view(make_scene: Make, pose: Make) -> None:
    scene = make_scene(20)
    start, message = initialiser(scene).offer(scene.observe(pose(0)))
    assert start is None
    assert message == 'waiting for texture: 20 keypoints, 60 are needed'


def test_another_scene_starts_over_from_there(make_scene: Make, pose: Make) -> None:
    scene, other = make_scene(300, seed=6), make_scene(300, seed=7)
    waiting = initialiser(scene)
    waiting.offer(scene.observe(pose(0)))
    start, message = waiting.offer(other.observe(pose(0)))
    assert start is None
    assert 'starting over from this one' in message
    start, _ = waiting.offer(other.observe(pose(0.4)))
    assert start is not None


def test_reset_forgets_the_first_view(make_scene: Make, pose: Make) -> None:
    scene = make_scene(300)
    waiting = initialiser(scene)
    waiting.offer(scene.observe(pose(0)))
    waiting.reset()
    start, message = waiting.offer(scene.observe(pose(0.4)))
    assert (start, message) == (None, 'waiting for a second view with parallax')


def test_scaling_multiplies_lengths_and_keeps_every_projection(
    make_scene: Make, pose: Make
) -> None:
    scene, relative = make_scene(50), pose(0.3, 0.1, -0.2, 0.1, 0.2, 0.3)
    pairs = torch.arange(50)[:, None].expand(50, 2)
    start = TwoViewStart(scene.observe(pose(0)), relative, pairs, scene.points)
    scaled = start.scaled(2.5)
    torch.testing.assert_close(scaled.points, 2.5 * scene.points)
    torch.testing.assert_close(scaled.second_from_first[:3, 3], 2.5 * relative[:3, 3])
    assert torch.equal(scaled.second_from_first[:3, :3], relative[:3, :3])
    before = se3.transform(relative, start.points)
    after = se3.transform(scaled.second_from_first, scaled.points)
    torch.testing.assert_close(after[:, :2] / after[:, 2:], before[:, :2] / before[:, 2:])
    assert torch.equal(start.second_from_first, relative)  # the given one is left as it is
