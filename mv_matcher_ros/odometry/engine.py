# SPDX-License-Identifier: Apache-2.0
"""The odometry engine: one frame in, one estimate out.

Replay, live node, data sets and tests call it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import cv2
import torch
from torch import Tensor

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Estimate, Frame, Rig, Status
from mv_matcher_ros.errors import SettingsError, SourceError
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.bundle_adjustment import to_fixed_axes
from mv_matcher_ros.models.classical import ClassicalDetector, NearestNeighbourMatcher
from mv_matcher_ros.odometry.disparity_offset import DisparityOffset
from mv_matcher_ros.odometry.flow import FlowTracker
from mv_matcher_ros.odometry.initialisation import TwoViewInitialiser, TwoViewStart
from mv_matcher_ros.odometry.keyframes import KeyframePolicy
from mv_matcher_ros.odometry.landmarks import LandmarkMaker
from mv_matcher_ros.odometry.local_adjustment import LocalAdjustment
from mv_matcher_ros.odometry.motion import (
    Continuity,
    Motion,
    coasting_covariance,
    plausible,
    seconds,
)
from mv_matcher_ros.odometry.observation import Observation, Observer
from mv_matcher_ros.odometry.reporting import counts, landmark_of, pose_noise, track_view
from mv_matcher_ros.odometry.rig_check import RigCheck
from mv_matcher_ros.odometry.standstill import StandstillGate
from mv_matcher_ros.odometry.stereo import StereoMatcher
from mv_matcher_ros.odometry.tracking import Tracked, Tracker
from mv_matcher_ros.odometry.window import Keyframe, Window

# Standard deviation given to the first pose: it is the origin of odom by definition.
ORIGIN_VARIANCE = 1e-10
KEPT_SHARE = 0.5
# Acceleration noise of the twist between two frames, added to what the poses say.
TWIST_FLOOR = 1e-4


class OdometryEngine:
    """Sliding-window visual odometry for mono, stereo and RGB-D.

    Args:
        settings: all settings; `settings.sensor` chooses the residuals.
        rig: calibrated cameras, two for stereo.

    Raises:
        SettingsError: the sensor does not fit the rig.
    """

    def __init__(self, settings: Settings, rig: Rig) -> None:
        if settings.sensor == 'stereo' and len(rig.cameras) < 2:
            raise SettingsError('sensor is stereo, but the rig has only one camera')
        if settings.runtime.threads:
            torch.set_num_threads(settings.runtime.threads)
        if settings.runtime.opencv_threads:
            cv2.setNumThreads(settings.runtime.opencv_threads)
        self.settings = settings
        self.rig = rig
        camera = rig.cameras[0]
        self._matcher = matcher = NearestNeighbourMatcher(settings.matching, settings.detector.name)
        self._observer = Observer(settings, rig, ClassicalDetector(settings.detector))
        self._tracker = Tracker(settings, camera, matcher)
        self._flow = FlowTracker(settings, camera, self._observer, self._tracker)
        self._initialiser = TwoViewInitialiser(settings, camera, matcher)
        self._maker = LandmarkMaker(settings, camera, matcher)
        self._adjustment = LocalAdjustment(settings, camera)
        self._policy = KeyframePolicy(settings, camera)
        self._stereo: StereoMatcher | None = None
        self._rig_check: RigCheck | None = None
        self._offset: DisparityOffset | None = None
        if settings.sensor == 'stereo':
            self._stereo = StereoMatcher(settings, rig, matcher)
            self._rig_check = RigCheck(settings, rig)
            if settings.stereo.self_calibration:
                self._offset = DisparityOffset(rig, self._maker)
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
        self._flow.reset()
        if self._offset is not None:
            self._offset.reset()
        if self._rig_check is not None:
            self._rig_check.rearm()
        self._inliers = 0
        self._links = None
        self._covariance = torch.eye(6, dtype=torch.float64) * ORIGIN_VARIANCE
        self._origin = torch.from_numpy(self.rig.odom_from_first_body.copy())
        self._lost = False
        self._before_loss: Motion | None = None
        self._last_stamp_ns: int | None = None

    def process(self, frame: Frame) -> Estimate:
        """Estimate the pose at one frame. Frames come in order of time.

        Raises:
            SourceError: the frame is not later than the one before, or does not belong to the rig
                (number or size of images).
        """
        if self._last_stamp_ns is not None and frame.stamp_ns <= self._last_stamp_ns:
            raise SourceError(
                f'frame {frame.index}: its stamp {frame.stamp_ns} ns is not later than that of '
                f'the frame before ({self._last_stamp_ns} ns); '
                'reset the engine when the clock jumps'
            )
        clock = Stopwatch()
        self._observer.check(frame)
        fault = self._observer.image_fault(frame.views[0])
        if self._motion is None:
            observation, fault = self._observe(frame, fault, clock)
            estimate = self._start(frame, observation, fault, clock)
        else:
            estimate = self._follow(frame, fault, clock)
        estimate = self._checked(estimate)
        self._last_stamp_ns = frame.stamp_ns
        return replace(estimate, latency_ms=clock.milliseconds)

    def _observe(self, frame: Frame, fault: str, clock: Stopwatch) -> tuple[Observation, str]:
        with clock('observe'):
            observation = self._observer.observe(frame)
        if not fault and len(observation) < self.settings.image_quality.min_keypoints:
            fault = f'image without texture: {len(observation)} keypoints'
        self._policy.note(observation)
        return observation, fault

    # ------------------------------------------------------------------ start

    def _start(
        self, frame: Frame, observation: Observation, fault: str, clock: Stopwatch
    ) -> Estimate:
        waiting = Status.LOST if self._before_loss is not None else Status.INITIALISING
        if fault:
            return self._unknown(frame, waiting, fault)
        with clock('initialise'):
            if self._metric:
                message = self._start_from_depth(frame, observation)
            else:
                message = self._start_from_two_views(observation)
        if not self._window.keyframes:
            return self._unknown(frame, waiting, message)
        newest = self._window.keyframes[-1]
        self._motion = Motion(frame.stamp_ns, newest.world_from_body)
        if len(self._window.keyframes) > 1:
            first = self._window.keyframes[0]
            before = Motion(first.observation.stamp_ns, first.world_from_body)
            self._motion = before.measured(frame.stamp_ns, newest.world_from_body)
        self._continuity.rebase(newest.world_from_body)
        self._settle(newest)
        self._flow.start(newest, frame.views[0].image)
        status = Status.TRACKING if self._before_loss is None else Status.RELOCALISED
        self._before_loss, self._lost = None, False
        return self._known(frame, observation, status, message, is_keyframe=True)

    def _start_from_depth(self, frame: Frame, observation: Observation) -> str:
        observation = self._with_depth(frame, observation)
        keyframe = Keyframe.of(observation, self._origin)
        made = self._maker.from_depth(self._window, keyframe)
        if made < self.settings.initialisation.min_landmarks:
            self._window = Window()
            return f'waiting: only {made} features have depth'
        self._begin([keyframe])
        if self._before_loss is None:
            return ''
        return 'new map at the last known pose: the way travelled while lost is missing'

    def _start_from_two_views(self, observation: Observation) -> str:
        start, waiting_for = self._initialiser.offer(observation)
        if start is None:
            return waiting_for
        start, message = self._with_old_scale(start, observation)
        body_from_camera = self._body_from_camera
        camera_step = se3.inverse(start.second_from_first)
        body_step = body_from_camera @ camera_step @ se3.inverse(body_from_camera)
        first = Keyframe.of(start.first, self._origin)
        second = Keyframe.of(observation, self._origin @ body_step)
        world = se3.transform(self._origin @ body_from_camera, start.points)
        descriptors = observation.features.descriptors[start.pairs[:, 1]]
        rows = self._window.landmarks.add(world, descriptors)
        first.landmark[start.pairs[:, 0]] = rows
        second.landmark[start.pairs[:, 1]] = rows
        self._begin([first, second])
        self._adjustment.refine(self._window, iterations=20)
        return message

    def _with_old_scale(
        self, start: TwoViewStart, observation: Observation
    ) -> tuple[TwoViewStart, str]:
        """A start after LOST takes over the scale by supposing the speed of before."""
        if self._before_loss is None:
            return start, ''
        speed = self._before_loss.speed
        elapsed = seconds(observation.stamp_ns - start.first.stamp_ns)
        length = float(start.second_from_first[:3, 3].norm())
        if speed * elapsed <= 0.0 or length <= 0.0:
            return start, 'new map with a new scale: lengths before and after do not compare'
        return start.scaled(speed * elapsed / length), (
            'new map: its scale is that of the speed before the loss, lengths before and after '
            'compare only roughly'
        )

    def _begin(self, keyframes: list[Keyframe]) -> None:
        self._window.keyframes = keyframes
        self._window.count_seen()
        self._adjustment.anchor(self._window, hold_scale=not self._metric)

    # ----------------------------------------------------------------- follow

    def _follow(self, frame: Frame, fault: str, clock: Stopwatch) -> Estimate:
        assert self._motion is not None
        observation, tracked = None, None
        if not fault and not self._lost:
            with clock('flow'):
                followed = self._flow.track(
                    self._window,
                    frame,
                    self._motion.world_from_body,
                    self._motion.predict(frame.stamp_ns),
                )
            if followed is not None and followed[1].inliers >= self.settings.keyframes.min_tracked:
                elapsed = seconds(frame.stamp_ns - self._motion.stamp_ns)
                if self._plausible(followed[1], elapsed):
                    observation, tracked = followed
        if tracked is not None and self._policy.wants(self._window, observation, tracked):
            detected, fault = self._observe(frame, fault, clock)
            with clock('track'):
                links = self._flow.associate(detected, self._matcher)
                row = self._window.keyframes[-1].landmark[links[:, 0]]
                known = row >= 0
                self._links = links[~known]
                again = self._tracker.track_known(
                    self._window,
                    detected,
                    tracked.world_from_body,
                    links[known, 1],
                    row[known],
                )
            if again is not None:
                observation, tracked = detected, again
                wanted = True
            else:
                wanted = False
        elif tracked is None:
            observation, fault = self._observe(frame, fault, clock)
            with clock('track'):
                tracked = None if fault else self._track(observation)
            if tracked is None:
                self._flow.reset()
                return self._coast(
                    frame, observation, fault or 'too few landmarks agree with a pose'
                )
            wanted = True
        else:
            wanted = False
        status, message = self._judge(tracked)
        self._inliers = tracked.inliers
        if self._lost:
            self._continuity.rebase(tracked.world_from_body)
            status, message = Status.RELOCALISED, f'found again by {tracked.method}'
            self._lost = False
        picture = track_view(self._window, observation, tracked)
        held = self._standstill.hold(observation, tracked)
        pose = tracked.world_from_body if held is None else held
        self._motion = self._motion.measured(frame.stamp_ns, pose)
        is_keyframe = held is None and wanted
        if is_keyframe:
            with clock('keyframe'):
                self._add_keyframe(frame, observation, tracked)
        elif held is None:
            self._standstill.restart(observation, landmark_of(observation, tracked), pose)
        estimate = self._known(frame, observation, status, message, tracked, is_keyframe)
        return replace(estimate, tracks=picture)

    def _track(self, observation: Observation) -> Tracked | None:
        """The pose most landmarks agree with: near the prediction, the last pose, a keyframe.

        Stops at the first that as many agree with as did before.
        """
        assert self._motion is not None
        elapsed = seconds(observation.stamp_ns - self._motion.stamp_ns)
        best: Tracked | None = None
        for tracked in self._hypotheses(observation):
            if tracked is None or not (self._lost or self._plausible(tracked, elapsed)):
                continue
            if best is None or tracked.inliers > best.inliers:
                best = tracked
            if best.inliers >= KEPT_SHARE * self._inliers:
                break
        return best

    def _hypotheses(self, observation: Observation) -> Iterator[Tracked | None]:
        assert self._motion is not None
        if not self._lost:
            for guess in (
                self._motion.predict(observation.stamp_ns),
                self._motion.world_from_body,
            ):
                yield self._tracker.track(self._window, observation, guess)
        # A short gap is not worth a search through the whole window.
        keyframes = self._window.keyframes if self._lost else self._window.keyframes[-1:]
        for keyframe in reversed(keyframes):
            yield self._tracker.relocalise(self._window, observation, keyframe)

    def _plausible(self, tracked: Tracked, elapsed_s: float) -> bool:
        assert self._motion is not None
        last, bounds = self._motion.world_from_body, self.settings.tracking
        return plausible(last, tracked.world_from_body, elapsed_s, bounds, self._metric)

    def _judge(self, tracked: Tracked) -> tuple[Status, str]:
        if tracked.inliers < self.settings.tracking.degraded_inliers:
            return Status.DEGRADED, f'only {tracked.inliers} landmarks agree with the pose'
        return Status.TRACKING, ''

    def _add_keyframe(self, frame: Frame, observation: Observation, tracked: Tracked) -> None:
        observation = self._with_depth(frame, observation)
        keyframe = Keyframe.of(observation, tracked.world_from_body)
        feature, landmark = tracked.feature[tracked.inlier], tracked.landmark[tracked.inlier]
        keyframe.landmark[feature] = landmark
        self._window.landmarks.descriptor[landmark] = observation.features.descriptors[feature]
        self._window.keyframes.append(keyframe)
        self._adjustment.extend_prior(self._window)
        self._maker.complete_tracks(self._window)
        if self._metric:
            self._maker.from_depth(self._window, keyframe)
        self._maker.from_links(self._window, keyframe, self._links)
        self._links = None
        self._maker.from_parallax(self._window, keyframe)
        self._window.count_seen()
        self._adjustment.refine(self._window)
        self._accumulate(self._adjustment.newest_covariance)
        if self._offset is not None:
            self._offset.update(self._window)
        if len(self._window.keyframes) > self.settings.keyframes.window:
            self._adjustment.drop_oldest(self._window)
        assert self._motion is not None
        self._motion = self._motion.corrected(keyframe.world_from_body)
        self._settle(keyframe)
        self._flow.start(keyframe, frame.views[0].image)

    def _settle(self, newest: Keyframe) -> None:
        """Policies compare with the newest keyframe from now on."""
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
        features, plane, sigma = self._observer.second_view(frame)
        if self._rig_check is not None:
            self._rig_check.offer(observation, features, plane)
        offset = 0.0 if self._offset is None else self._offset.offset
        return self._stereo.add_depth(observation, features, plane, sigma, offset)

    # ----------------------------------------------------------------- output

    def _checked(self, estimate: Estimate) -> Estimate:
        """The estimate, not trusted while the images contradict the stereo calibration."""
        fault = '' if self._rig_check is None else self._rig_check.fault
        if not fault:
            return estimate
        status = Status.DEGRADED if estimate.status is Status.TRACKING else estimate.status
        said = f'check the stereo calibration: {fault}'
        message = f'{said}; {estimate.message}' if estimate.message else said
        return replace(estimate, status=status, message=message)

    def _coast(self, frame: Frame, observation: Observation, reason: str) -> Estimate:
        """No measurement: the motion model for a while, then LOST, at last a new map."""
        assert self._motion is not None
        elapsed = seconds(frame.stamp_ns - self._motion.stamp_ns)
        bounds = self.settings.tracking
        self._lost = self._lost or elapsed > bounds.coasting_s
        if not self._lost:
            coasted = self._motion.predict(frame.stamp_ns)
            estimate = self._known(
                frame, observation, Status.DEGRADED, f'coasting: {reason}', pose=coasted
            )
            growth = coasting_covariance(elapsed)
            covariance = to_fixed_axes(self._covariance + growth, coasted).numpy()
            return replace(estimate, covariance=covariance)
        if elapsed > bounds.reinitialise_s:
            self._start_over(elapsed)
        return self._unknown(frame, Status.LOST, reason)

    def _start_over(self, elapsed_s: float) -> None:
        """Give the old map up; the next start continues at the last published pose."""
        assert self._motion is not None
        assert self._continuity.last is not None
        self._before_loss = self._motion
        self._origin = self._continuity.last
        self._covariance = self._covariance + coasting_covariance(elapsed_s)
        self._motion = None
        self._window = Window()
        self._initialiser.reset()

    def _unknown(self, frame: Frame, status: Status, message: str) -> Estimate:
        return Estimate(frame.stamp_ns, status, metric=self._metric, message=message)

    def _known(
        self,
        frame: Frame,
        observation: Observation,
        status: Status,
        message: str,
        tracked: Tracked | None = None,
        is_keyframe: bool = False,
        pose: Tensor | None = None,
    ) -> Estimate:
        assert self._motion is not None
        last_ns = frame.stamp_ns if self._last_stamp_ns is None else self._last_stamp_ns
        elapsed = seconds(frame.stamp_ns - last_ns)
        estimated = self._motion.world_from_body if pose is None else pose
        published = self._continuity.publish(estimated, self._motion, elapsed)
        covariance = self._covariance
        twist, twist_covariance = self._motion.velocity, None
        if tracked is not None:
            noise = pose_noise(tracked)
            covariance = covariance if is_keyframe else covariance + noise
            twist_covariance = 2.0 * noise / max(elapsed, 1e-3) ** 2
            twist_covariance = twist_covariance + TWIST_FLOOR * torch.eye(6, dtype=torch.float64)
        elif twist is not None:
            twist_covariance = coasting_covariance(1.0)
        landmarks = self._window.landmarks
        return Estimate(
            frame.stamp_ns,
            status,
            odom_from_body=published.numpy().copy(),
            covariance=to_fixed_axes(covariance, published).numpy(),
            twist=None if twist is None else twist.numpy().copy(),
            twist_covariance=None if twist_covariance is None else twist_covariance.numpy(),
            metric=self._metric,
            is_keyframe=is_keyframe,
            message=message,
            counts=counts(self._window, observation, tracked),
            landmarks=landmarks.position[landmarks.alive].float().numpy() if is_keyframe else None,
        )


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
