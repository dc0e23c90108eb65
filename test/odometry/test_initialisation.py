# SPDX-License-Identifier: Apache-2.0
"""Start of a map: exact on exact matches, from several views, refused where they cannot tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from mv_matcher_ros.config import Settings, read_settings
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.models.classical import NearestNeighbourMatcher
from mv_matcher_ros.odometry.initialisation import MapInitialiser, spread
from mv_matcher_ros.odometry.map_start import MapStart

Make = Callable[..., Any]
SETTINGS = read_settings({'detector.name': 'sift'})


def initialiser(scene: Any, settings: Settings = SETTINGS) -> MapInitialiser:
    matcher = NearestNeighbourMatcher(settings.matching, 'sift')
    return MapInitialiser(settings, scene.camera, matcher)


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
    assert start.views[0] is first
    assert torch.equal(start.feature[:, 0], start.feature[:, 1])  # feature k is point k in both
    assert len(start.feature) > 200
    chosen = scene.points[start.feature[:, 0]]
    scale = 1.0 / float(chosen[:, 2].median())
    assert float(start.points[:, 2].median()) == pytest.approx(1.0)
    expected = se3.inverse(there)
    torch.testing.assert_close(
        start.camera_from_first[1][:3, :3], expected[:3, :3], rtol=0, atol=1e-6
    )
    found, true = start.camera_from_first[1][:3, 3], scale * expected[:3, 3]
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
    moved = int((start.feature[:, 0] < 60).sum())
    assert moved < 12  # some lie near their epipolar line by chance
    turn = se3.log(start.camera_from_first[1] @ there)[3:]
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


def mixed_up(scene: Any, pose: Make, seed: int) -> Any:
    """A view that shows the features of the first one, all of them somewhere else."""
    view = scene.observe(pose(0))
    order = torch.randperm(len(view), generator=torch.Generator().manual_seed(seed))
    return replace(view, plane_xy=view.plane_xy[order])


def test_two_views_that_do_not_fit_start_over_from_the_second(
    make_scene: Make, pose: Make
) -> None:
    scene = make_scene(300, seed=6)
    waiting = initialiser(scene)
    waiting.offer(scene.observe(pose(0)))
    strange = [mixed_up(scene, pose, seed) for seed in (1, 2)]
    assert waiting.offer(strange[0]) == (None, 'waiting: the two views do not fit one rigid scene')
    start, message = waiting.offer(strange[1])
    assert start is None
    assert message.endswith('nor did the one before: starting over from this one')
    moved = replace(strange[1], plane_xy=strange[1].plane_xy)
    assert (
        waiting.offer(moved)[1]
        == 'waiting for translation: the camera only turned, or stands still'
    )


def test_one_view_that_does_not_fit_is_passed_over(make_scene: Make, pose: Make) -> None:
    scene = make_scene(300, seed=6)
    waiting = initialiser(scene)
    first, strange = scene.observe(pose(0)), mixed_up(scene, pose, 1)
    for view in (first, strange, first, strange):
        assert waiting.offer(view)[0] is None
    start, _ = waiting.offer(scene.observe(pose(0.4)))
    assert start is not None
    assert start.views[0] is first
    assert not any(view is strange for view in start.views)


def test_reset_forgets_the_first_view(make_scene: Make, pose: Make) -> None:
    scene = make_scene(300)
    waiting = initialiser(scene)
    waiting.offer(scene.observe(pose(0)))
    waiting.reset()
    start, message = waiting.offer(scene.observe(pose(0.4)))
    assert (start, message) == (None, 'waiting for a second view with parallax')


def started(scene: Any, pose: Make) -> MapStart:
    waiting = initialiser(scene)
    waiting.offer(scene.observe(pose(0)))
    start, _ = waiting.offer(scene.observe(pose(0.3, 0.1, -0.2, 0.1, 0.2, 0.3), int(1e9)))
    assert start is not None
    return start


def test_scaling_multiplies_lengths_and_keeps_every_projection(
    make_scene: Make, pose: Make
) -> None:
    start = started(make_scene(200), pose)
    scaled = start.scaled(2.5)
    torch.testing.assert_close(scaled.points, 2.5 * start.points)
    before, after = (
        se3.transform(s.camera_from_first, s.points.expand(2, -1, 3)) for s in (start, scaled)
    )
    torch.testing.assert_close(after, 2.5 * before)
    torch.testing.assert_close(
        scaled.camera_from_first[:, :3, :3], start.camera_from_first[:, :3, :3]
    )


def test_a_start_takes_over_a_speed(make_scene: Make, pose: Make) -> None:
    start = started(make_scene(200), pose)
    moved, message = start.at_speed(0.7)
    assert float(moved.camera_from_first[1, :3, 3].norm()) == pytest.approx(0.7)  # in one second
    assert 'speed before the loss' in message
    same, message = start.at_speed(0.0)
    assert same is start
    assert message == 'new map with a new scale: lengths before and after do not compare'


# ----------------------------------------------------------------- several views


def offered(scene: Any, poses: list[Any], noise_px: float = 0.0) -> tuple[MapStart | None, str]:
    waiting = initialiser(scene)
    found: tuple[MapStart | None, str] = None, ''
    for number, there in enumerate(poses):
        assert found[0] is None
        found = waiting.offer(scene.observe(there, int(1e8) * number, noise_px))
    return found


def test_frames_between_take_part(make_scene: Make, pose: Make) -> None:
    scene = make_scene(300, seed=5, nearest=4.0)
    poses = [pose(x, 0.3 * x, 0.0, 0.0, 0.1 * x) for x in (0.0, 0.02, 0.04, 0.3)]
    start, message = offered(scene, poses)
    assert message == ''
    assert start is not None
    assert [view.stamp_ns for view in start.views] == [0, 1e8, 2e8, 3e8]
    assert start.method.endswith('of 4 views')
    assert 'eight-point' in start.method
    expected = se3.inverse(torch.stack(poses))
    scale = float(start.camera_from_first[-1, :3, 3].norm() / expected[-1, :3, 3].norm())
    found = start.camera_from_first.clone()
    found[:, :3, 3] /= scale
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    chosen = start.feature.amax(1)
    torch.testing.assert_close(start.points, scale * scene.points[chosen], rtol=2e-2, atol=1e-4)
    assert int((start.feature >= 0).sum(1).max()) == 4


def test_no_more_views_than_the_graph_has_room_for(make_scene: Make, pose: Make) -> None:
    scene = make_scene(300, seed=5, nearest=4.0)
    start, _ = offered(scene, [*(pose(0.003 * k) for k in range(20)), pose(0.4)], 0.1)
    assert start is not None
    assert len(start.views) == SETTINGS.matching.views
    assert start.views[0].stamp_ns == 0
    assert start.views[-1].stamp_ns == 20e8


def test_a_frame_of_something_else_between_is_no_harm(make_scene: Make, pose: Make) -> None:
    scene = make_scene(300, seed=5, nearest=4.0)
    other = make_scene(300, seed=9)
    waiting = initialiser(scene)
    waiting.offer(scene.observe(pose(0)))
    half = scene.observe(pose(0.02))
    features = replace(
        half.features,
        descriptors=torch.cat([half.features.descriptors[:110], other.descriptors[110:]]),
    )
    mixed = replace(half, plane_xy=half.plane_xy.roll(7, 0), features=features)
    waiting.offer(mixed)
    start, _ = waiting.offer(scene.observe(pose(0.4)))
    assert start is not None
    assert [view is mixed for view in start.views].count(True) == 0
    assert 'of 2 views' in start.method


def test_a_frame_between_that_sees_few_of_the_points_is_left_out(
    make_scene: Make, pose: Make
) -> None:
    scene = make_scene(300, seed=5, nearest=4.0)
    few = read_settings({'detector.name': 'sift', 'initialisation.min_matches': 20})
    waiting = initialiser(scene, few)
    waiting.offer(scene.observe(pose(0)))
    half = scene.observe(pose(0.02))
    descriptors, plane = half.features.descriptors.clone(), half.plane_xy.clone()
    plane[10:20] = plane[10:20].roll(3, 0)  # ten are right, ten wrong, the others unknown
    descriptors[20:] = normalize(scene.noise(*descriptors[20:].shape).float(), dim=1)
    features = replace(half.features, descriptors=descriptors)
    waiting.offer(replace(half, plane_xy=plane, features=features))
    start, _ = waiting.offer(scene.observe(pose(0.4)))
    assert start is not None
    assert len(start.views) == 2


def test_a_plane_starts_with_the_right_pose(make_scene: Make, pose: Make) -> None:
    """Sideways motion; MAGSAC++ of OpenCV takes the other pose of the plane in half the cases."""
    started = 0
    for seed in range(6):
        scene = make_scene(300, seed=seed)
        flat = scene.points.clone()
        flat = flat / flat[:, 2:] * (5.0 / (1.0 + 0.2 * (flat[:, 0] / flat[:, 2])))[:, None]
        scene = replace(scene, points=flat)
        there = pose(0.5, 0.1, 0.2, 0.02, -0.05, 0.03)
        start, message = offered(scene, [pose(0), there], noise_px=0.3)
        if start is None:
            assert message.startswith('waiting')
            continue
        assert 'eight-point' not in start.method
        step = start.camera_from_first[1]
        assert float(se3.log(step @ there)[3:].norm()) < 0.02
        found, true = step[:3, 3], se3.inverse(there)[:3, 3]
        assert float(torch.cosine_similarity(found, true, dim=0)) > 0.99
        started += 1
    assert started >= 3


@pytest.mark.parametrize(('count', 'most'), [(0, 3), (2, 3), (3, 3), (9, 3), (16, 3), (5, 0)])
def test_spread_frames_are_even(count: int, most: int) -> None:
    frames: list[Any] = list(range(count))
    chosen: list[Any] = spread(frames, most)
    assert len(chosen) == min(count, most)
    assert chosen == sorted(set(chosen))
    if 0 < most < count:
        steps = torch.tensor([-1, *chosen, count]).diff()
        assert int(steps.max() - steps.min()) <= 1
