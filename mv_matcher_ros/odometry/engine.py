# SPDX-License-Identifier: Apache-2.0
"""The odometry engine: one frame in, one estimate out. Replay, live node, data-set run and tests call it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import cv2
import numpy as np
import torch
from torch import Tensor

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Estimate, Frame, Rig, Status, TrackView
from mv_matcher_ros.errors import SettingsError
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.bundle_adjustment import to_fixed_axes
from mv_matcher_ros.models.classical import ClassicalDetector, NearestNeighbourMatcher
from mv_matcher_ros.odometry.initialisation import TwoViewInitialiser, TwoViewStart
from mv_matcher_ros.odometry.keyframes import KeyframePolicy
from mv_matcher_ros.odometry.landmarks import LandmarkMaker
from mv_matcher_ros.odometry.local_adjustment import LocalAdjustment
from mv_matcher_ros.odometry.motion import Continuity, Motion, coasting_covariance, plausible, seconds
from mv_matcher_ros.odometry.observation import Observation, Observer
from mv_matcher_ros.odometry.standstill import StandstillGate
from mv_matcher_ros.odometry.stereo import StereoMatcher
from mv_matcher_ros.odometry.tracking import Tracked, Tracker
from mv_matcher_ros.odometry.window import Keyframe, Window


class OdometryEngine:
    """Sliding-window visual odometry for mono, stereo and RGB-D."""

    def __init__(self, settings: Settings, rig: Rig) -> None:
        if settings.sensor == 'stereo' and len(rig.cameras) < 2:
            raise SettingsError('sensor = stereo, but the rig has one camera')
        if settings.runtime.threads:
            torch.set_num_threads(settings.runtime.threads)
            cv2.setNumThreads(settings.runtime.threads)
        self.settings = settings
        self.rig = rig
        camera = rig.cameras[0]
        matcher = NearestNeighbourMatcher(settings.matching, settings.detector.name)
        self._observer = Observer(settings, rig, ClassicalDetector(settings.detector))
        self._tracker = Tracker(settings, camera, matcher)
        self._initialiser = TwoViewInitialiser(settings, camera, matcher)
        self._maker = LandmarkMaker(settings, camera, matcher)
        self._adjustment = LocalAdjustment(settings, camera)
        self._policy = KeyframePolicy(settings, camera)
        self._stereo = StereoMatcher(settings, rig, matcher) if settings.sensor == 'stereo' else None
        self._body_from_camera = torch.from_numpy(camera.body_from_camera.copy())
        self._metric = settings.sensor != 'mono'
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next frame starts a new trajectory at the origin of odom."""
        self._window = Window()
        self._motion: Motion | None = None
        self._continuity = Continuity()
        self._standstill = StandstillGate(self.settings.zero_motion)
        self._initialiser.reset()
        self._covariance = torch.eye(6, dtype=torch.float64) * 1e-10
        self._lost_since_ns: int | None = None
        self._last_stamp_ns: int | None = None
        self._origin = torch.from_numpy(self.rig.odom_from_first_body.copy())

    def process(self, frame: Frame) -> Estimate:
        """Estimate the pose at one frame. Frames must come in order of time.

        Raises:
            SourceError: the frame does not belong to the rig (number or size of images).
        """
        clock = Stopwatch()
        with clock('observe'):
            fault = self._observer.image_fault(frame.views[0])
            observation = self._observer.observe(frame)
        if not fault and len(observation) < self.settings.image_quality.min_keypoints:
            fault = f'image without texture: {len(observation)} keypoints'
        if self._motion is None:
            estimate = self._start(frame, observation, fault, clock)
        else:
            estimate = self._follow(frame, observation, fault, clock)
        self._last_stamp_ns = frame.stamp_ns
        return replace(estimate, latency_ms=clock.milliseconds)

    # ------------------------------------------------------------------ start

    def _start(self, frame: Frame, observation: Observation, fault: str, clock: Stopwatch) -> Estimate:
        if fault:
            return self._unknown(frame, Status.INITIALISING, fault)
        with clock('initialise'):
            if self._metric:
                message = self._start_from_depth(frame, observation)
            else:
                start, message = self._initialiser.offer(observation)
                if start is not None:
                    self._start_from_two_views(start, observation)
        if not self._window.keyframes:
            return self._unknown(frame, Status.INITIALISING, message)
        newest = self._window.keyframes[-1]
        self._motion = Motion(frame.stamp_ns, newest.world_from_body)
        if len(self._window.keyframes) > 1:
            first = self._window.keyframes[0]
            before = Motion(first.observation.stamp_ns, first.world_from_body)
            self._motion = before.measured(frame.stamp_ns, newest.world_from_body)
        self._policy.restart(newest)
        self._standstill.restart(newest.observation, newest.landmark, newest.world_from_body)
        return self._known(frame, observation, Status.TRACKING, None, True, '')

    def _start_from_depth(self, frame: Frame, observation: Observation) -> str:
        observation = self._with_depth(frame, observation)
        keyframe = self._keyframe(observation, self._origin)
        made = self._maker.from_depth(self._window, keyframe)
        if made < self.settings.initialisation.min_landmarks:
            self._window = Window()
            return f'waiting: only {made} features have depth'
        self._window.keyframes.append(keyframe)
        self._window.count_seen()
        self._adjustment.anchor(self._window, hold_scale=False)
        return ''

    def _start_from_two_views(self, start: TwoViewStart, second: Observation) -> None:
        body_from_camera = self._body_from_camera
        first_pose = self._origin
        relative = body_from_camera @ se3.inverse(start.second_from_first) @ se3.inverse(body_from_camera)
        first = self._keyframe(start.first, first_pose)
        newest = self._keyframe(second, first_pose @ relative)
        world = se3.transform(first_pose @ body_from_camera, start.points)
        rows = self._window.landmarks.add(world, second.features.descriptors[start.pairs[:, 1]])
        first.landmark[start.pairs[:, 0]] = rows
        newest.landmark[start.pairs[:, 1]] = rows
        self._window.keyframes += [first, newest]
        self._window.count_seen()
        self._adjustment.anchor(self._window, hold_scale=True)
        self._adjustment.refine(self._window, iterations=20)

    # ----------------------------------------------------------------- follow

    def _follow(self, frame: Frame, observation: Observation, fault: str, clock: Stopwatch) -> Estimate:
        assert self._motion is not None
        with clock('track'):
            tracked = None if fault else self._track(observation)
        if tracked is None:
            return self._coast(frame, observation, fault or 'too few landmarks agree with a pose')
        status, message = self._judge(tracked)
        recovered = self._lost_since_ns is not None
        if recovered:
            self._continuity.rebase(tracked.world_from_body)
            status, message = Status.RELOCALISED, f'found again by {tracked.method}'
            self._lost_since_ns = None
        pose = self._standstill.hold(observation, tracked)
        still = pose is not None
        self._motion = self._motion.measured(frame.stamp_ns, tracked.world_from_body if pose is None else pose)
        is_keyframe = not still and self._policy.wants(self._window, observation, tracked)
        if is_keyframe:
            with clock('keyframe'):
                self._add_keyframe(frame, observation, tracked)
        elif not still:
            self._standstill.restart(observation, landmark_of(observation, tracked), tracked.world_from_body)
        return self._known(frame, observation, status, tracked, is_keyframe, message)

    def _track(self, observation: Observation) -> Tracked | None:
        assert self._motion is not None
        elapsed = seconds(observation.stamp_ns - self._motion.stamp_ns)
        bounds = self.settings.tracking
        if self._lost_since_ns is None:
            for guess in (self._motion.predict(observation.stamp_ns), self._motion.world_from_body):
                tracked = self._tracker.track(self._window, observation, guess)
                if tracked is not None and self._plausible(tracked, elapsed):
                    return tracked
        for keyframe in reversed(self._window.keyframes):
            tracked = self._tracker.relocalise(self._window, observation, keyframe)
            if tracked is not None and (self._lost_since_ns is not None or self._plausible(tracked, elapsed)):
                return tracked
            if elapsed < bounds.coasting_s and keyframe is self._window.keyframes[-1]:
                break  # a short gap is not worth a search through the whole window
        return None

    def _plausible(self, tracked: Tracked, elapsed_s: float) -> bool:
        assert self._motion is not None
        return plausible(
            self._motion.world_from_body, tracked.world_from_body, elapsed_s, self.settings.tracking, self._metric
        )

    def _judge(self, tracked: Tracked) -> tuple[Status, str]:
        if tracked.inliers < self.settings.tracking.degraded_inliers:
            return Status.DEGRADED, f'only {tracked.inliers} landmarks agree with the pose'
        return Status.TRACKING, ''

    def _add_keyframe(self, frame: Frame, observation: Observation, tracked: Tracked) -> None:
        observation = self._with_depth(frame, observation)
        keyframe = self._keyframe(observation, tracked.world_from_body)
        good = tracked.inlier
        keyframe.landmark[tracked.feature[good]] = tracked.landmark[good]
        self._window.landmarks.descriptor[tracked.landmark[good]] = observation.features.descriptors[tracked.feature[good]]
        self._window.keyframes.append(keyframe)
        self._adjustment.extend_prior(self._window)
        self._maker.complete_tracks(self._window)
        if self._metric:
            self._maker.from_depth(self._window, keyframe)
        self._maker.from_parallax(self._window, keyframe)
        self._window.count_seen()
        self._adjustment.refine(self._window)
        relative = self._adjustment.relative_covariance(self._window)
        self._accumulate(relative)
        if len(self._window.keyframes) > self.settings.keyframes.window:
            self._adjustment.drop_oldest(self._window)
        newest = self._window.keyframes[-1]
        assert self._motion is not None
        self._motion = self._motion.corrected(newest.world_from_body)
        self._policy.restart(newest)
        self._standstill.restart(newest.observation, newest.landmark, newest.world_from_body)

    def _accumulate(self, relative: Tensor) -> None:
        """Add the covariance of the newest keyframe given the one before to that of the chain."""
        before, newest = self._window.keyframes[-2:]
        step = se3.inverse(newest.world_from_body) @ before.world_from_body
        adjoint = se3.adjoint(step)
        self._covariance = adjoint @ self._covariance @ adjoint.T + relative

    def _with_depth(self, frame: Frame, observation: Observation) -> Observation:
        if self._stereo is None:
            return observation
        return self._stereo.add_depth(observation, *self._observer.second_view(frame))

    def _keyframe(self, observation: Observation, pose: Tensor) -> Keyframe:
        return Keyframe(observation, pose, torch.full((len(observation),), -1, dtype=torch.int64))

    # ----------------------------------------------------------------- output

    def _coast(self, frame: Frame, observation: Observation, reason: str) -> Estimate:
        """No measurement: go on by the motion model for a while, then say that the pose is not known."""
        assert self._motion is not None
        elapsed = seconds(frame.stamp_ns - self._motion.stamp_ns)
        tracking = self.settings.tracking
        if elapsed > tracking.coasting_s and self._lost_since_ns is None:
            self._lost_since_ns = frame.stamp_ns
        if self._lost_since_ns is None:
            pose = self._motion.predict(frame.stamp_ns)
            growth = coasting_covariance(elapsed)
            return self._known(frame, observation, Status.DEGRADED, None, False, f'coasting: {reason}', pose, growth)
        return self._unknown(frame, Status.LOST, reason)

    def _unknown(self, frame: Frame, status: Status, message: str) -> Estimate:
        return Estimate(frame.stamp_ns, status, metric=self._metric, message=message)

    def _known(
        self,
        frame: Frame,
        observation: Observation,
        status: Status,
        tracked: Tracked | None,
        is_keyframe: bool,
        message: str,
        pose: Tensor | None = None,
        growth: Tensor | None = None,
    ) -> Estimate:
        assert self._motion is not None
        estimated = self._motion.world_from_body if pose is None else pose
        elapsed = seconds(frame.stamp_ns - self._last_stamp_ns) if self._last_stamp_ns is not None else 0.0
        bounds = self.settings.tracking
        published = self._continuity.publish(
            estimated, bounds.max_speed_mps * elapsed * 0.1, math.radians(bounds.max_rotation_dps) * elapsed * 0.1
        )
        covariance = self._covariance if growth is None else self._covariance + growth
        if tracked is not None and not is_keyframe:
            covariance = covariance + torch.linalg.pinv(tracked.information, hermitian=True)
        velocity = self._motion.velocity
        return Estimate(
            frame.stamp_ns,
            status,
            odom_from_body=published.numpy().copy(),
            covariance=to_fixed_axes(covariance, published).numpy(),
            twist=None if velocity is None else velocity.numpy().copy(),
            twist_covariance=None if velocity is None else (covariance * 0 + coasting_covariance(0.2)).numpy(),
            metric=self._metric,
            is_keyframe=is_keyframe,
            message=message,
            counts=self._counts(observation, tracked),
            tracks=self._track_view(observation, tracked),
            landmarks=self._window.landmarks.position[self._window.landmarks.alive].float().numpy() if is_keyframe else None,
        )

    def _counts(self, observation: Observation, tracked: Tracked | None) -> dict[str, int]:
        return {
            'features': len(observation),
            'matches': 0 if tracked is None else len(tracked.feature),
            'inliers': 0 if tracked is None else tracked.inliers,
            'landmarks': int(self._window.landmarks.alive.sum()),
            'keyframes': len(self._window.keyframes),
        }

    def _track_view(self, observation: Observation, tracked: Tracked | None) -> TrackView | None:
        if tracked is None:
            return None
        xy = observation.features.keypoints_xy[tracked.feature].numpy()
        previous = np.full_like(xy, np.nan)
        return TrackView(xy, previous, tracked.inlier.numpy(), np.zeros(len(xy), np.int64))


def landmark_of(observation: Observation, tracked: Tracked) -> Tensor:
    """(N,) landmark row of each feature, −1 for none."""
    rows = torch.full((len(observation),), -1, dtype=torch.int64)
    rows[tracked.feature[tracked.inlier]] = tracked.landmark[tracked.inlier]
    return rows


class Stopwatch:
    """Milliseconds of each named stage of one frame."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Adds the time of the block to the stage."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            elapsed = (time.perf_counter() - begin) * 1e3
            self.milliseconds[stage] = self.milliseconds.get(stage, 0.0) + elapsed
