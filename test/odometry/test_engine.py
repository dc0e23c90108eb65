# SPDX-License-Identifier: Apache-2.0
"""The engine on rendered worlds: accuracy per sensor, statuses, faults, determinism."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mv_matcher_ros.config import Settings, read_settings
from mv_matcher_ros.datatypes import Estimate, Frame, Status, View
from mv_matcher_ros.errors import SettingsError, SourceError
from mv_matcher_ros.geometry.bundle_adjustment import to_fixed_axes
from mv_matcher_ros.odometry import pose_uncertainty
from mv_matcher_ros.odometry.engine import OdometryEngine
from mv_matcher_ros.odometry.local_adjustment import LocalAdjustment
from mv_matcher_ros.odometry.pose_uncertainty import SEARCHED
from mv_matcher_ros.odometry.tracking import Tracked
from mv_matcher_ros.worlds import presets
from mv_matcher_ros.worlds.effects import Effects
from mv_matcher_ros.worlds.recording import SyntheticSource

SIZE = (480, 360)
SHARP = Effects(exposure_s=0.0)


def settings(sensor: str, **overrides: object) -> Settings:
    return read_settings({'sensor': sensor, **overrides})


def estimates(source: SyntheticSource, **overrides: object) -> list[Estimate]:
    engine = OdometryEngine(settings(source.sensor, **overrides), source.rig)
    return [engine.process(frame) for frame in source]


def positions(
    results: Sequence[Estimate], source: SyntheticSource
) -> tuple[np.ndarray, np.ndarray]:
    """Estimated positions and true ones relative to the first estimated pose, in odom."""
    known = [(r.odom_from_body, i) for i, r in enumerate(results) if r.odom_from_body is not None]
    truth = source.truth.world_from_body[[i for _, i in known]]
    estimated = np.stack([pose for pose, _ in known])
    aligned = estimated[0] @ np.linalg.inv(truth[0]) @ truth
    return estimated[:, :3, 3], aligned[:, :3, 3]


def path_length(points: np.ndarray) -> float:
    return float(np.linalg.norm(np.diff(points, axis=0), axis=1).sum())


@pytest.mark.slow
@pytest.mark.parametrize('sensor', ['stereo', 'rgbd'])
def test_metric_sensors_follow_a_walk(sensor: str) -> None:
    source = presets.room_loop(sensor, 30, SIZE, effects=SHARP)
    results = estimates(source)
    assert all(r.status is Status.TRACKING for r in results)
    assert all(r.metric for r in results)
    estimated, truth = positions(results, source)
    assert np.linalg.norm(estimated - truth, axis=1).max() < 0.02 * path_length(truth)
    np.testing.assert_allclose(results[0].odom_from_body, source.rig.odom_from_first_body)


def test_mono_follows_a_walk_up_to_scale() -> None:
    source = presets.room_loop('mono', 30, SIZE, effects=SHARP)
    results = estimates(source)
    started = next(i for i, r in enumerate(results) if r.status is Status.TRACKING)
    assert started < 10
    assert all(r.status is Status.INITIALISING and r.message for r in results[:started])
    assert all(r.odom_from_body is None for r in results[:started])
    assert all(r.status is Status.TRACKING and not r.metric for r in results[started:])
    assert results[started].started_by.endswith('views')
    assert not any(r.started_by for i, r in enumerate(results) if i != started)
    estimated, truth = positions(results, source)
    scale = path_length(truth) / path_length(estimated)
    error = np.linalg.norm(scale * (estimated - estimated[0]) - (truth - truth[0]), axis=1)
    assert error.max() < 0.05 * path_length(truth)


@pytest.mark.parametrize('sensor', ['stereo', 'mono'])
def test_same_input_gives_the_same_bits(sensor: str) -> None:
    source = presets.room_loop(sensor, 8, SIZE, effects=SHARP)
    first, second = (
        [r for r in estimates(source) if r.odom_from_body is not None] for _ in range(2)
    )
    assert first[0].started_by
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.odom_from_body, b.odom_from_body)
        assert np.array_equal(a.covariance, b.covariance)


def test_reset_starts_the_same_trajectory_again() -> None:
    source = presets.room_loop('stereo', 6, SIZE, effects=SHARP)
    engine = OdometryEngine(settings('stereo'), source.rig)
    first = [engine.process(frame).odom_from_body for frame in source]
    engine.reset()
    second = [engine.process(frame).odom_from_body for frame in source]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize('gate', [True, False])
def test_standing_still_does_not_drift(gate: bool) -> None:
    source = presets.standing_still('stereo', 12, SIZE)
    results = estimates(source, **{'zero_motion.enabled': gate})
    assert all(r.status is Status.TRACKING for r in results)
    estimated, _ = positions(results, source)
    distance = np.linalg.norm(estimated - estimated[0], axis=1).max()
    assert distance < 0.005
    if gate:
        assert distance == 0.0


@pytest.mark.slow
def test_a_creep_is_followed() -> None:
    source = presets.creep('stereo', 25, SIZE, effects=SHARP)
    estimated, truth = positions(estimates(source), source)
    moved, true = (np.linalg.norm(x[-1] - x[0]) for x in (estimated, truth))
    assert abs(moved - true) < 0.1 * true


def test_twist_is_the_motion_of_the_body() -> None:
    source = presets.room_loop('stereo', 15, SIZE, effects=SHARP)
    results = estimates(source)
    truth = source.truth
    elapsed = (truth.stamps_ns[-1] - truth.stamps_ns[-3]) * 1e-9
    step = np.linalg.inv(truth.world_from_body[-3]) @ truth.world_from_body[-1]
    np.testing.assert_allclose(results[-1].twist[:3], step[:3, 3] / elapsed, atol=0.15)


def test_covariance_is_proper_and_grows() -> None:
    source = presets.room_loop('stereo', 20, SIZE, effects=SHARP)
    results = estimates(source)
    traces = []
    for result in results:
        covariance = result.covariance
        assert covariance.shape == (6, 6)
        np.testing.assert_allclose(covariance, covariance.T, atol=1e-12)
        assert np.linalg.eigvalsh(covariance).min() > 0
        traces.append(np.trace(covariance))
    assert traces[-1] > traces[1]


def blinded(source: SyntheticSource, first: int, last: int) -> list[Frame]:
    """The frames of a source with black images from `first` to `last`."""
    frames = []
    for number, frame in enumerate(source):
        if first <= number <= last:
            views = tuple(View(np.zeros_like(view.image), view.depth) for view in frame.views)
            frame = replace(frame, views=views)
        frames.append(frame)
    return frames


@pytest.mark.slow
def test_covered_lens_coasts_then_loses_then_recovers_without_a_jump() -> None:
    source = presets.room_loop('stereo', 36, SIZE, effects=SHARP)
    engine = OdometryEngine(settings('stereo'), source.rig)
    engine.change(settings('stereo', **{'tracking.coasting_s': 0.16}))
    results = [engine.process(frame) for frame in blinded(source, 10, 20)]
    status = [r.status for r in results]
    assert status[10:13] == [Status.DEGRADED] * 3
    assert all('coasting' in r.message and 'contrast' in r.message for r in results[10:13])
    assert set(status[13:21]) == {Status.LOST}
    assert all(r.odom_from_body is None and r.covariance is None for r in results[13:21])
    assert status[21] is Status.RELOCALISED
    assert set(status[22:]) == {Status.TRACKING}
    growth = [np.trace(r.covariance[:3, :3]) for r in results[9:13]]
    assert growth == sorted(growth)
    published = [r.odom_from_body[:3, 3] for r in results if r.odom_from_body is not None]
    steps = np.linalg.norm(np.diff(published, axis=0), axis=1)
    truth = source.truth.world_from_body[:, :3, 3]
    fastest = np.linalg.norm(np.diff(truth, axis=0), axis=1).max()
    assert steps.max() < 2.0 * fastest  # the body's motion and at most half of it to catch up


def mirrored(frame: Frame) -> Frame:
    """Another place: the world in a mirror, in which left is right."""
    views = tuple(View(np.ascontiguousarray(v.image[:, ::-1])) for v in frame.views[::-1])
    return replace(frame, views=views)


def test_the_map_is_found_again_however_long_it_was_dark() -> None:
    source = presets.room_loop('stereo', 30, SIZE, effects=SHARP)
    short = {'tracking.coasting_s': 0.1, 'tracking.reinitialise_s': 0.3}
    engine = OdometryEngine(settings('stereo', **short), source.rig)
    results = [engine.process(frame) for frame in blinded(source, 12, 24)]
    assert results[24].status is Status.LOST
    assert results[25].status is Status.RELOCALISED
    assert not results[25].started_by
    # What is not handed out yet of the way made in the dark is admitted.
    known = results[26]
    assert known.odom_from_body is not None
    assert known.covariance is not None
    assert source.truth is not None
    ours = np.linalg.inv(results[11].odom_from_body) @ known.odom_from_body
    poses = source.truth.world_from_body
    error = np.linalg.inv(np.linalg.inv(poses[11]) @ poses[26]) @ ours
    assert np.linalg.norm(error[:3, 3]) > 0.05
    assert np.linalg.norm(error[:3, 3]) < 3.0 * np.sqrt(known.covariance[:3, :3].trace())


def test_a_pose_that_was_searched_for_admits_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """And so does everything after it: a keyframe was made there."""
    source = presets.room_loop('stereo', 44, SIZE, effects=SHARP)
    frames = [frame for number, frame in enumerate(source) if not 12 <= number < 26]
    known = []
    for factor in (1.0, SEARCHED):
        monkeypatch.setattr(pose_uncertainty, 'SEARCHED', factor)
        engine = OdometryEngine(settings('stereo'), source.rig)
        known.append([engine.process(frame) for frame in frames])
    bold, careful = known
    for a, b in zip(bold, careful, strict=True):
        assert a.status is b.status is Status.TRACKING
        np.testing.assert_array_equal(a.odom_from_body, b.odom_from_body)
    np.testing.assert_array_equal(bold[11].covariance, careful[11].covariance)
    for number in (12, len(frames) - 1):
        a, b = bold[number].covariance, careful[number].covariance
        assert a is not None
        assert b is not None
        assert np.linalg.eigvalsh(b - a).min() > 0.0
    a, b = bold[12].covariance, careful[12].covariance
    assert a is not None
    assert b is not None
    assert bold[11].covariance is not None
    grown = [np.trace(each[:3, :3] - bold[11].covariance[:3, :3]) for each in (a, b)]
    assert grown[1] > 1.5 * grown[0]


def test_the_map_is_not_given_up_for_glimpses_in_the_dark() -> None:
    """One frame of another place, a second of darkness, one more: not 0.3 s of looking."""
    source = presets.room_loop('stereo', 30, SIZE, effects=SHARP)
    short = {'tracking.coasting_s': 0.1, 'tracking.reinitialise_s': 0.3}
    engine = OdometryEngine(settings('stereo', **short), source.rig)
    frames = blinded(source, 12, 26)
    for glimpse in (17, 26):
        frames[glimpse] = mirrored(source.frame(glimpse))
    results = [engine.process(frame) for frame in frames]
    assert results[26].status is Status.LOST
    assert results[27].status is Status.RELOCALISED
    assert not results[27].started_by


@pytest.mark.slow
@pytest.mark.parametrize('sensor', ['stereo', 'mono'])
def test_a_long_loss_starts_a_new_map_and_says_so(sensor: str) -> None:
    source = presets.room_loop(sensor, 44, SIZE, effects=SHARP)
    short = {'tracking.coasting_s': 0.1, 'tracking.reinitialise_s': 0.3}
    engine = OdometryEngine(settings(sensor, **short), source.rig)
    frames = blinded(source, 14, 20)
    results = [engine.process(f) for f in [*frames[:21], *map(mirrored, frames[21:])]]
    assert results[20].status is Status.LOST
    again = next(r for r in results[20:] if r.status is Status.RELOCALISED)
    # The old one has been sought for a while, in images that show something.
    assert again.stamp_ns - frames[21].stamp_ns >= 0.3e9
    assert 'new map' in again.message
    assert again.started_by
    before = next(r for r in reversed(results[:20]) if r.odom_from_body is not None)
    moved = np.linalg.norm(again.odom_from_body[:3, 3] - before.odom_from_body[:3, 3])
    if sensor == 'mono':  # its first view is the first one that the old map was sought in
        first = engine._mapper.window.keyframes[0].observation
        assert first.stamp_ns == frames[21].stamp_ns
    unit = path_length(np.stack([r.odom_from_body[:3, 3] for r in results[8:14]])) / 5
    assert moved < 2.0 * unit
    assert results[-1].status is Status.TRACKING


def test_pure_rotation_invents_no_translation() -> None:
    source = presets.pure_rotation('mono', 12, SIZE, effects=SHARP)
    results = estimates(source)
    assert all(r.status is Status.INITIALISING for r in results)
    assert all(r.odom_from_body is None for r in results)
    assert any('turned' in r.message or 'parallax' in r.message for r in results)


def test_nothing_to_see_is_said() -> None:
    source = presets.room_loop('mono', 2, SIZE, effects=SHARP)
    frames = blinded(source, 0, 1)
    engine = OdometryEngine(settings('mono'), source.rig)
    result = engine.process(frames[0])
    assert result.status is Status.INITIALISING
    assert 'without contrast' in result.message
    ramp = np.tile(np.linspace(0, 255, SIZE[0]).astype(np.uint8), (SIZE[1], 1))
    result = engine.process(replace(frames[1], views=(View(ramp),)))
    assert result.message.startswith('image without texture: ')
    assert result.message.endswith(' keypoints, 40 are needed (image_quality.min_keypoints)')


def test_frames_that_do_not_belong_are_refused() -> None:
    source = presets.room_loop('stereo', 3, SIZE, effects=SHARP)
    frames = list(source)
    engine = OdometryEngine(settings('stereo'), source.rig)
    engine.process(frames[1])
    with pytest.raises(SourceError, match='not later'):
        engine.process(frames[1])
    with pytest.raises(SourceError, match='not later'):
        engine.process(frames[0])
    with pytest.raises(SourceError, match='1 images, stereo needs 2'):
        engine.process(replace(frames[2], views=frames[2].views[:1]))
    small = View(frames[2].views[0].image[:100, :100].copy())
    with pytest.raises(SourceError, match='100x100'):
        engine.process(replace(frames[2], views=(small, frames[2].views[1])))
    with pytest.raises(SettingsError, match='only one camera'):
        OdometryEngine(settings('stereo'), presets.make_rig('mono', SIZE))


def test_a_mask_keeps_features_out() -> None:
    source = presets.room_loop('stereo', 3, SIZE, effects=SHARP)
    engine = OdometryEngine(settings('stereo'), source.rig)
    mask = np.ones(SIZE[::-1], bool)
    mask[:, : SIZE[0] // 2] = False
    for frame in source:
        views = tuple(replace(view, mask=mask) for view in frame.views)
        result = engine.process(replace(frame, views=views))
    assert result.tracks is not None
    assert result.tracks.keypoints_xy[:, 0].min() > SIZE[0] // 2 - 2
    assert result.tracks.length.max() >= 1


def test_orb_works_behind_the_same_engine() -> None:
    source = presets.room_loop('stereo', 12, SIZE, effects=SHARP)
    results = estimates(source, **{'detector.name': 'orb'})
    assert results[-1].status in (Status.TRACKING, Status.DEGRADED)
    estimated, truth = positions(results, source)
    assert np.linalg.norm(estimated - truth, axis=1).max() < 0.1 * path_length(truth) + 0.01


def test_a_wrong_baseline_is_named_even_if_nothing_can_begin() -> None:
    source = presets.room_loop('stereo', 16, (320, 240), effects=SHARP)
    left, right = source.rig.cameras
    wrong = right.body_from_camera.copy()
    # The images say that it is beside the left camera, this rig that it is below.
    below = source.rig.baseline_m * left.body_from_camera[:3, 1]
    wrong[:3, 3] = left.body_from_camera[:3, 3] + below
    rig = replace(source.rig, cameras=(left, replace(right, body_from_camera=wrong)))
    engine = OdometryEngine(settings('stereo'), rig)
    results = [engine.process(frame) for frame in source]
    assert all(r.status is not Status.TRACKING for r in results[-4:])
    assert all("baseline's direction" in r.message for r in results[-4:])


def driven(
    sensor: str, chosen: list[int], guessed: Callable[[np.ndarray], np.ndarray] | None
) -> list[Estimate]:
    """Some frames of a walk; with a guess, which is made of the true pose."""
    source = presets.room_loop(sensor, max(chosen) + 1, SIZE, effects=SHARP)
    assert source.truth is not None
    engine = OdometryEngine(settings(sensor), source.rig)
    results = []
    for number in chosen:
        frame = source.frame(number)
        if guessed is not None:
            frame = replace(frame, guess=guessed(source.truth.world_from_body[number]))
        results.append(engine.process(frame))
    return results


def off_m(results: list[Estimate], chosen: list[int], a: int, b: int, sensor: str) -> float:
    """How far the motion between two results is from the truth, m."""
    truth = presets.room_loop(sensor, max(chosen) + 1, SIZE, effects=SHARP).truth
    assert truth is not None
    true = np.linalg.inv(truth.world_from_body[chosen[a]]) @ truth.world_from_body[chosen[b]]
    ours = np.linalg.inv(results[a].odom_from_body) @ results[b].odom_from_body
    return float(np.linalg.norm((np.linalg.inv(true) @ ours)[:3, 3]))


class TestGuess:
    """The motion that something else measures is where a pose is sought."""

    def test_what_is_coasted_is_what_was_measured(self) -> None:
        source = presets.room_loop('stereo', 20, SIZE, effects=SHARP)
        assert source.truth is not None
        # In a frame of its own, far away and turned.
        world = np.eye(4)
        world[:3, :3] = [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
        world[:3, 3] = 100.0, -50.0, 3.0
        frames = [
            replace(frame, guess=world @ source.truth.world_from_body[number])
            for number, frame in enumerate(blinded(source, 10, 19))
        ]
        engine = OdometryEngine(settings('stereo', **{'tracking.coasting_s': 2.0}), source.rig)
        results = [engine.process(frame) for frame in frames]
        assert results[-1].status is Status.DEGRADED
        guided = off_m(results, list(range(20)), 9, 19, 'stereo')
        assert guided < 0.01
        engine.reset()
        alone = [engine.process(replace(frame, guess=None)) for frame in frames]
        assert off_m(alone, list(range(20)), 9, 19, 'stereo') > 2.0 * guided

    def test_a_wrong_guess_does_not_mislead(self) -> None:
        chosen = [*range(8), *range(10, 22, 3)]

        def slipping(pose: np.ndarray) -> np.ndarray:
            wrong = pose.copy()
            wrong[:3, 3] *= 3.0  # wheels that spin
            return wrong

        results = driven('stereo', chosen, slipping)
        assert {r.status for r in results} == {Status.TRACKING}
        assert off_m(results, chosen, 0, len(chosen) - 1, 'stereo') < 0.02

    def test_mono_takes_only_the_turn(self) -> None:
        """Its unit is not the metre: a guess in metres would be a jump."""
        chosen = list(range(24))
        guided = driven('mono', chosen, lambda pose: pose)
        alone = driven('mono', chosen, None)
        assert guided[-1].status is Status.TRACKING
        step = [
            float(np.linalg.norm(r[-1].odom_from_body[:3, 3] - r[-4].odom_from_body[:3, 3]))
            for r in (guided, alone)
        ]
        assert step[0] == pytest.approx(step[1], rel=0.2)


class TestLate:
    """Live, on a machine that is too slow: track first, make keyframes when there is time."""

    @staticmethod
    def searched(took_s: float, **changed: object) -> tuple[Estimate, Estimate]:
        """A frame whose pose has to be searched for, after one that took so long, and the next.

        Args:
            changed: attributes of the engine, before.
        """
        source = presets.room_loop('stereo', 40, SIZE, effects=SHARP)
        engine = OdometryEngine(settings('stereo'), source.rig, live=True)
        for number in range(8):
            engine.process(source.frame(number))
        engine._took_s = took_s
        for name, value in changed.items():
            setattr(engine, name, value)
        track = engine._flow.track
        engine._flow.track = lambda *_, **__: None  # nothing can be followed
        first = engine.process(source.frame(12))
        engine._flow.track = track
        return first, engine.process(source.frame(13))

    def test_the_keyframe_waits_for_a_frame_that_can_be_followed(self) -> None:
        late, following = self.searched(took_s=0.25)
        assert (late.status, late.is_keyframe) == (Status.TRACKING, False)
        assert (following.status, following.is_keyframe) == (Status.TRACKING, True)

    def test_a_camera_that_is_slow_itself_is_not_waited_for(self) -> None:
        prompt, _ = self.searched(took_s=0.01)
        assert (prompt.status, prompt.is_keyframe) == (Status.TRACKING, True)

    def test_what_is_found_again_does_not_wait(self) -> None:
        """The next frames may see too little of what is known."""
        late, _ = self.searched(took_s=0.25, _lost=True)
        assert (late.status, late.is_keyframe) == (Status.RELOCALISED, True)

    def test_few_landmarks_make_no_keyframe_at_first(self) -> None:
        """Were their pose wrong, all that is seen next would confirm it; but it would not last."""
        source = presets.room_loop('stereo', 60, SIZE, effects=SHARP)
        engine = OdometryEngine(settings('stereo', **{'detector.name': 'sift'}), source.rig)
        for number in range(4):
            engine.process(source.frame(number))
        held = source.frame(48)  # overlaps little with the first ones
        results = [
            engine.process(replace(held, stamp_ns=held.stamp_ns + number * 50_000_000))
            for number in range(10)
        ]
        first = results[0]
        assert (first.status, first.is_keyframe) == (Status.DEGRADED, False)
        assert 15 <= first.counts['inliers'] < 30
        assert [result.is_keyframe for result in results].index(True) == 6
        assert results[-1].status is Status.TRACKING
        assert results[-1].counts['inliers'] > 100

    def test_depth_is_left_out_where_there_is_no_time(self) -> None:
        source = presets.room_loop('stereo', 8, SIZE, effects=SHARP)
        engine = OdometryEngine(settings('stereo'), source.rig, live=True)
        for number in range(3):
            engine.process(source.frame(number))
        measured: list[int] = []
        added = engine._depth.added
        engine._depth.added = lambda frame, *a: (measured.append(frame.index), added(frame, *a))[1]
        for number, took_s in ((3, 60.0), (4, 0.0), (5, 60.0)):
            engine._took_s = took_s
            assert engine.process(source.frame(number)).status is Status.TRACKING
        assert measured == [4]

    def test_a_pose_that_will_do_is_not_searched_for(self) -> None:
        source = presets.room_loop('stereo', 24, SIZE, effects=SHARP)
        for live, method in ((True, 'flow'), (False, 'track')):
            engine = OdometryEngine(settings('stereo'), source.rig, live=live)
            for number in range(20):
                engine.process(source.frame(number))
            engine._adopt()
            engine._inliers = 10_000  # so many agreed with the pose before
            judge = engine._hypotheses
            judge.enough = lambda tracked, before: tracked.inliers > before
            result = engine.process(source.frame(20))
            assert result.status is Status.TRACKING
            assert method in result.latency_ms
            assert ('track' in result.latency_ms) == (not live)

    def test_a_window_that_takes_too_long_becomes_smaller_and_grows_again(self) -> None:
        source = presets.room_loop('stereo', 60, SIZE, effects=SHARP)
        few = {'keyframes.window': 8, 'keyframes.min_overlap': 0.99}  # many keyframes
        engine = OdometryEngine(settings('stereo', **few), source.rig)

        def keyframes(frames: range, work_ms: float) -> int:
            for number in frames:
                engine.process(source.frame(number))
                engine._mapper.keep_up(work_ms)
            return len(engine._mapper.window.keyframes)

        assert keyframes(range(45), 250.0) == 8  # neither long nor short
        assert keyframes(range(45, 53), 900.0) == 5
        assert keyframes(range(53, 60), 50.0) > 5

    def test_a_keyframe_is_followed_before_it_is_refined(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Bundle adjustment that takes for ever does not keep the fresh landmarks back."""
        source = presets.room_loop('stereo', 30, SIZE, effects=SHARP)
        engine = OdometryEngine(
            settings('stereo', **{'keyframes.min_overlap': 0.9}), source.rig, live=True
        )
        released, refine, starts = threading.Event(), LocalAdjustment.refine, []
        start = engine._flow.start
        engine._flow.start = lambda target, frame: (
            starts.append((frame.index, target.landmarks.covariance[target.landmarks.alive])),
            start(target, frame),
        )[1]
        engine.process(source.frame(0))

        def late(self: LocalAdjustment, *args: Any) -> None:
            assert released.wait(30.0)
            refine(self, *args)

        monkeypatch.setattr(LocalAdjustment, 'refine', late)
        results = [engine.process(source.frame(n)) for n in range(1, 12)]
        keyframe = next(n for n, r in enumerate(results, 1) if r.is_keyframe)
        deadline_s = time.monotonic() + 30.0
        while engine._beside._begun is None and len(starts) < 2:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        results += [engine.process(source.frame(n)) for n in range(12, 16)]
        assert {r.status for r in results} == {Status.TRACKING}
        (again,) = starts[1:]  # it follows the keyframe although it is not refined
        assert again[0] == keyframe
        assert bool(again[1].any(dim=2).all())  # and knows how well its landmarks are known
        stated = engine._uncertainty._in_work.trace()
        assert stated > 0
        released.set()
        while not engine._beside.due(0):
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        last = engine.process(source.frame(16))
        assert last.status is Status.TRACKING
        assert engine._uncertainty._in_work.trace() == 0
        # The same features are followed on, with landmarks and poses that are better known.
        assert len(starts) == 2
        assert off_m([results[0], last], [1, 16], 0, 1, 'stereo') < 0.02

    def test_a_small_window_loses_no_keyframe_of_the_map(self) -> None:
        source = presets.room_loop('stereo', 50, SIZE, effects=SHARP)
        many = {'keyframes.min_overlap': 0.99, 'keyframes.map_lag': 7, 'keyframes.window': 8}
        engine = OdometryEngine(settings('stereo', **many), source.rig)
        reported: list[int] = []
        engine.report_keyframes(lambda record: reported.append(record.stamp_ns))
        made = []
        for frame in source:
            if engine.process(frame).is_keyframe:
                made.append(frame.stamp_ns)
            engine._mapper.keep_up(900.0)
        engine.finish()
        assert len(made) > 10
        assert reported == made

    def test_what_is_left_of_a_keyframe_says_how_good_a_pose_is(self) -> None:
        """The landmarks that are left of a keyframe that comes late err alike."""
        source = presets.room_loop('stereo', 10, SIZE, effects=SHARP)
        engine = OdometryEngine(settings('stereo', **{'keyframes.delay_s': 2.0}), source.rig)
        shares = []
        known = engine._known
        engine._known = lambda *a, **b: (shares.append(b.get('left')), known(*a, **b))[1]
        results = [engine.process(frame) for frame in source]
        assert 0.0 < shares[-1] < shares[2] <= 1.0

        pose = engine._motion.world_from_body
        base = to_fixed_axes(engine._uncertainty.accumulated(pose), pose).numpy()
        tracked = found(results[-1].counts['inliers'], pose)

        def noise(left: float) -> float:
            estimate = known(source.frame(9), Status.TRACKING, '', tracked, left=left)
            return float(np.trace((estimate.covariance - base)[:3, :3]))

        assert noise(0.6) == pytest.approx(noise(1.0))
        assert noise(0.25) == pytest.approx(4.0 * noise(1.0))
        assert engine._judge(tracked, 0.2) == (Status.TRACKING, '')
        status, message = engine._judge(tracked, 0.05)
        assert status is Status.DEGRADED
        assert '5 % of the landmarks' in message


def found(inliers: int, pose: torch.Tensor) -> Tracked:
    """A pose that so many landmarks agree with."""
    rows = torch.arange(inliers)
    every = torch.ones(inliers, dtype=torch.bool)
    return Tracked(pose, rows, rows, every, 1e4 * torch.eye(6, dtype=torch.float64), 'told')
