# SPDX-License-Identifier: Apache-2.0
"""The odometry engine: one frame in, one estimate out.

Replay, live node, data sets and tests call it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace

import numpy as np
import torch
from torch import Tensor

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Array, Estimate, Frame, Rig, Status
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.bundle_adjustment import to_fixed_axes
from mv_matcher_ros.models.choice import Models
from mv_matcher_ros.odometry.background import Background, Work, limit_threads
from mv_matcher_ros.odometry.blur import BLURRED_PX
from mv_matcher_ros.odometry.flow import FlowTracker, Followed, Target
from mv_matcher_ros.odometry.hypotheses import Hypotheses
from mv_matcher_ros.odometry.initialisation import MapInitialiser
from mv_matcher_ros.odometry.joint_matching import JointMatcher
from mv_matcher_ros.odometry.keyframes import KeyframePolicy
from mv_matcher_ros.odometry.local_mapping import Begun, LocalMapper
from mv_matcher_ros.odometry.motion import Continuity, Motion, coasting_covariance, seconds
from mv_matcher_ros.odometry.observation import Observation, Observer
from mv_matcher_ros.odometry.pair_alignment import FollowedDepth
from mv_matcher_ros.odometry.pose_uncertainty import PoseUncertainty
from mv_matcher_ros.odometry.reporting import KeyframeReports, OnKeyframe, track_view
from mv_matcher_ros.odometry.seeing import SeeingCameras
from mv_matcher_ros.odometry.standstill import StandstillGate
from mv_matcher_ros.odometry.tracking import Tracked, Tracker

# Share of the landmarks of a keyframe below which a pose is DEGRADED.
LEAST_LEFT = 0.1
# After a loss, a map is not given up before it has been sought in images without a break for so
# long, and few landmarks that agree with a pose found by search make no keyframe for so long.
SOUGHT_S = 0.3
# Live: a pose will do that so large a share of what was followed agrees with, if it is so large a
# share of `keyframes.min_tracked`.
AGREEING_SHARE, FEW_SHARE = 0.7, 0.6
# A frame later than this share of what the last one took is late because the camera is slow.
LATE_SHARE = 1.5
# Acceleration noise of the twist between two frames, added to what the poses say.
TWIST_FLOOR = 1e-4


class OdometryEngine:
    """Sliding-window visual odometry for mono, stereo and RGB-D.

    A frame's pose comes from following the landmarks of the newest keyframe. What a new keyframe
    sets off runs in a thread beside it and is used from the first frame that is
    `keyframes.delay_s` later (by its stamp): the same input gives the same poses on any machine.

    Args:
        settings: all settings; `settings.sensor` chooses the residuals.
        rig: calibrated cameras, two for stereo, or two for each of `settings.stereo.pairs`.
        live: use a keyframe as soon as it has been worked on instead. No frame waits for it that
            can be followed without it, and the poses depend a little on the speed of the machine.
        models: detector and matchers; None: those that the settings name, from their files.

    Attributes:
        networks: what runs of 'detector' and 'matcher' that is a network: `place` (device and
            precision), `weights` (file) and `sha256`, as `models.choice.NetworkUse`.
        rig_correction: what of the stereo calibration is wrong and corrected; None for nothing.

    Raises:
        SettingsError: the sensor does not fit the rig.
        ModelError: a file of weights is missing or does not fit.
    """

    def __init__(
        self, settings: Settings, rig: Rig, live: bool = False, models: Models | None = None
    ) -> None:
        self._cameras = cameras = SeeingCameras.of(settings, rig)
        limit_threads(settings)
        self.settings = settings
        self.rig = rig
        models = Models.of(settings) if models is None else models
        models.prepare(rig)
        nearest, graph = models.nearest, models.graph_of_keyframes(settings.matching)
        self.networks = {name: asdict(use) for name, use in models.networks.items()}
        self._observer = Observer(settings, rig, models.detector)
        self._tracker = Tracker(settings, cameras, nearest, graph)
        self._hypotheses = Hypotheses(settings, self._tracker)
        self._depth = FollowedDepth(settings, rig, cameras, self._observer)
        self._flow = FlowTracker(cameras, self._observer, self._tracker, self._depth)
        self._initialiser = MapInitialiser(settings, rig.cameras[0], models.matcher)
        joint = None if graph is None else JointMatcher(settings, rig, graph)
        self._mapper = LocalMapper(settings, rig, self._observer, self._tracker, nearest, joint)
        self._policy = KeyframePolicy(settings, rig.cameras[0])
        self._metric = settings.sensor != 'mono'
        self._enough_inliers = settings.tracking.degraded_inliers
        self._beside = Background(settings, live)
        self._live = live
        self._hand_over = self._beside.hand_over if live else None
        self._reports = KeyframeReports()
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next frame starts a new trajectory at the origin of odom."""
        mapped = self._beside.forget()
        self._reports.report([*(mapped.records if mapped else ()), *self._mapper.records_left()])
        self._mapper.reset()
        self._motion: Motion | None = None
        self._expected: Tensor | None = None  # velocity, before the frame was looked at
        self._guess: Array | None = None  # of the frame that `_motion` is of
        self._continuity = Continuity(self._metric)
        self._standstill = StandstillGate(self.settings.zero_motion)
        self._initialiser.reset()
        self._flow.reset()
        self._owed = False  # a keyframe, since a pose was searched for
        self._few_since_ns: int | None = None  # agreed with such a pose, and do until now
        self._took_s, self._began_s = 0.0, 0.0  # the last frame
        self._pressed = False
        self._origin = torch.from_numpy(self.rig.odom_from_first_body.copy())
        self._uncertainty = PoseUncertainty(self.settings.covariance, self._origin)
        self._lost = False
        # Views without a break that the map is sought in, from the newest that is old enough on.
        self._sought: list[Observation] = []
        self._before_loss: Motion | None = None
        self._last_stamp_ns: int | None = None
        self._inliers = 0
        self._before_keyframe = self._origin
        self._rig_news = ''
        self._note_map()

    def change(self, settings: Settings) -> None:
        """Take the times of `tracking` that say when a pose and a map are given up, and from how
        many landmarks on a pose is called DEGRADED, from the next frame on; from any thread. Of
        everything else nothing changes."""
        self.settings = settings

    def report_keyframes(self, to: OnKeyframe) -> None:
        """Hand the record of each keyframe over, in order of time, from within `process`,
        `finish` and `reset`; before the first frame."""
        self._reports.to = to

    def finish(self) -> None:
        """Wait for what is being worked on and report the keyframes that are left; there will be
        no more frames."""
        if self._motion is not None:
            self._adopt()
        self._reports.report(self._mapper.records_left())

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
        self._observer.check(frame)
        clock = Stopwatch()
        began_s, self._began_s = self._began_s, time.perf_counter()
        # Live: frames come, or are taken out of the queue, about as fast as they are worked on.
        self._pressed = self._live and self._began_s - began_s < LATE_SHARE * self._took_s
        self._points_are_new = False
        self._expected = None if self._motion is None else self._motion.velocity
        with clock('total'):
            fault, covered = self._image_faults(frame)
            start_or_follow = self._start if self._motion is None else self._follow
            edges_px = min(self._observer.edges_px(frame))
            blurred = (
                f'blurred: edges are {edges_px:.0f} pixels wide' if edges_px > BLURRED_PX else ''
            )
            estimate = self._checked(start_or_follow(frame, fault, clock), covered, blurred)
            self._reports.note(estimate, self._mapper.window.keyframes)
        if self._motion is not None and self._motion.stamp_ns == frame.stamp_ns:
            self._guess = frame.guess
        self._last_stamp_ns = frame.stamp_ns
        self._took_s = clock.milliseconds['total'] * 1e-3
        return replace(estimate, latency_ms=clock.milliseconds)

    def _image_faults(self, frame: Frame) -> tuple[str, str]:
        """Why no camera sees anything, or which of several do not; both empty when all is well."""
        faults = self._observer.faults(frame)
        if len(faults) == 1:
            return faults[0], ''
        said = '; '.join(
            f'{camera.name} sees nothing: {fault}'
            for camera, fault in zip(self._cameras.cameras, faults, strict=True)
            if fault
        )
        return (said, '') if all(faults) else ('', said)

    def _observe(self, frame: Frame, clock: Stopwatch) -> tuple[Observation, str]:
        """What is detected in the seeing views, and what is wrong with them; empty if nothing."""
        with clock('observe'):
            observation = self._observer.observe(frame)
        if len(observation) >= self.settings.image_quality.min_keypoints:
            return observation, ''
        return observation, (
            f'image without texture: {len(observation)} keypoints, '
            f'{self.settings.image_quality.min_keypoints} are needed '
            '(image_quality.min_keypoints)'
        )

    # ------------------------------------------------------------------ start

    def _start(self, frame: Frame, fault: str, clock: Stopwatch) -> Estimate:
        waiting = Status.LOST if self._before_loss is not None else Status.INITIALISING
        if fault:
            return self._unknown(frame, waiting, fault)
        observation, fault = self._observe(frame, clock)
        if fault:
            return self._unknown(frame, waiting, fault)
        return self._start_with(frame, observation, clock)

    def _start_with(self, frame: Frame, observation: Observation, clock: Stopwatch) -> Estimate:
        with clock('initialise'):
            if self._metric:
                started_by, message = self._start_from_depth(frame, observation)
            else:
                started_by, message = self._start_from_views(observation)
        keyframes = self._mapper.window.keyframes
        self._rig_fault = self._mapper.rig_fault
        if not keyframes:
            waiting = Status.LOST if self._before_loss is not None else Status.INITIALISING
            return self._unknown(frame, waiting, message)
        newest = keyframes[-1].world_from_body
        first = keyframes[-2:][0]  # the newest one, where it is the only one
        before = Motion(first.observation.stamp_ns, first.world_from_body, metric=self._metric)
        self._motion = before.measured(frame.stamp_ns, newest)
        self._uncertainty.begin(newest)
        self._continuity.rebase(newest)
        self._compare_with(self._mapper.newest_target(), frame)
        self._note_map()
        status = Status.TRACKING if self._before_loss is None else Status.RELOCALISED
        self._before_loss, self._lost = None, False
        estimate = self._known(frame, status, message, features=len(observation))
        return replace(estimate, is_keyframe=True, started_by=started_by)

    def _start_from_depth(self, frame: Frame, observation: Observation) -> tuple[str, str]:
        made = self._mapper.begin_with_depth(frame, observation, self._origin)
        if not self._mapper.window.keyframes:
            return '', f'waiting: only {made} features have depth'
        if self._before_loss is None:
            return 'depth', ''
        return 'depth', 'new map at the last known pose: the way travelled while lost is missing'

    def _start_from_views(self, observation: Observation) -> tuple[str, str]:
        start, message = self._initialiser.offer(observation)
        if start is None:
            return '', message
        if self._before_loss is not None:
            start, message = start.at_speed(self._before_loss.speed)
        self._mapper.begin_with_views(start, self._origin)
        return start.method, message

    def _compare_with(self, target: Target, frame: Frame) -> None:
        """Follow, hold still and judge parallax against this target from now on."""
        if not (self._live and self._flow.renew(target)):
            self._flow.start(target, frame)
            self._policy.restart()
        self._hold_still_at(target)

    def _hold_still_at(self, target: Target) -> None:
        rows = torch.where(target.landmarks.alive, torch.arange(len(target.observation)), -1)
        self._standstill.restart(target.observation, rows, target.world_from_body)

    # ----------------------------------------------------------------- follow

    def _follow(self, frame: Frame, fault: str, clock: Stopwatch) -> Estimate:
        if self._beside.due(frame.stamp_ns):
            self._adopt(clock)
        elif self._live:
            self._follow_begun(self._beside.begun())
        self._policy.note(self._observer.sharpness(frame))
        followed = None if fault or self._lost else self._followed(frame, clock)
        if followed is not None:
            return self._known_by_flow(frame, followed)
        if fault:
            self._flow.reset()
            return self._coast(frame, fault, None)
        self._adopt(clock)
        observation, fault = self._observe(frame, clock)
        with clock('track'):
            tracked = None if fault else self._track(frame, observation)
            observation, tracked = self._with_depth(frame, observation, tracked)
        if tracked is None:
            self._flow.reset()
            reason = fault or 'too few landmarks agree with a pose'
            coasted = self._coast(frame, reason, None if fault else observation)
            # Where the old map was given up with this frame, it begins the new one.
            given_up = self._motion is None
            return self._start_with(frame, observation, clock) if given_up else coasted
        return self._known_by_search(frame, observation, tracked)

    def _followed(self, frame: Frame, clock: Stopwatch) -> Followed | None:
        """The frame by flow; if that is poor, by flow from the keyframe in work."""
        followed = self._by_flow(frame, clock)
        if self._poor(followed) and self._live and self._beside.busy:
            with clock('wait'):
                begun = self._beside.begun(wait=True)
            if begun is not None:
                self._follow_begun(begun)
                followed = self._by_flow(frame, clock)
        if self._poor(followed) and self._beside.busy:
            self._adopt(clock)
            followed = self._by_flow(frame, clock)
        return followed if self._believed(frame, followed) else None

    def _poor(self, followed: Followed | None) -> bool:
        return followed is None or (self._few(followed) and not self._will_do(followed))

    def _few(self, followed: Followed) -> bool:
        return followed.tracked.inliers < self.settings.keyframes.min_tracked

    def _believed(self, frame: Frame, followed: Followed | None) -> bool:
        assert self._motion is not None
        judge = self._hypotheses
        return (
            followed is not None
            and judge.plausible(followed.tracked, self._motion, frame.stamp_ns)
            and (judge.enough(followed.tracked, self._inliers) or self._will_do(followed))
        )

    def _will_do(self, followed: Followed) -> bool:
        """Live: whether a pose is right, if less exact than what a search would find, or the
        keyframe in work would say.

        Meanwhile frames are missed, and the next ones have to be searched for, too.
        """
        tracked = followed.tracked
        share = tracked.inliers / max(len(tracked.inlier), 1)
        few = FEW_SHARE * self.settings.keyframes.min_tracked
        return self._live and tracked.inliers >= few and share >= AGREEING_SHARE

    def _by_flow(self, frame: Frame, clock: Stopwatch) -> Followed | None:
        assert self._motion is not None
        with clock('flow'):
            # Depth takes a third of the time: with none to spare, landmarks know theirs.
            return self._flow.track(frame, self._predicted(frame), deep=not self._pressed)

    def _predicted(self, frame: Frame) -> Tensor:
        """(4, 4) where the body should be: moved as something else has measured it, or at constant
        velocity. Without metric scale only the turn is taken over."""
        assert self._motion is not None
        here, predicted = self._motion.world_from_body, self._motion.predict(frame.stamp_ns)
        if frame.guess is None or self._guess is None:
            return predicted
        step = torch.from_numpy(np.linalg.inv(self._guess) @ frame.guess)
        if not self._metric:
            step[:3, 3] = (se3.inverse(here) @ predicted)[:3, 3]
        return se3.normalise(here @ step)

    def _known_by_flow(self, frame: Frame, followed: Followed) -> Estimate:
        tracked = followed.tracked
        wanted = not self._beside.busy and (self._owed or self._policy.wants(followed))
        if self._few_since_ns is not None and self._too_few(frame, tracked):
            wanted = False
        pose = self._moved_to(frame, followed.observation, tracked)
        is_keyframe = wanted and pose is tracked.world_from_body
        if is_keyframe:
            self._begin_keyframe(
                frame, lambda: self._mapper.insert_followed(frame, followed, self._hand_over)
            )
        status, message = self._judge(tracked, followed.left)
        if status is Status.TRACKING and self._live and self._beside.busy and self._few(followed):
            status = Status.DEGRADED
            message = f'{tracked.inliers} landmarks are left until the keyframe in work is there'
        features = len(followed.observation)
        estimate = self._known(frame, status, message, tracked, features, left=followed.left)
        size = len(followed.target.observation)
        picture = track_view(
            followed.observation,
            tracked,
            followed.target.landmarks,
            followed.target.observation,
            torch.arange(size),
        )
        return replace(estimate, tracks=picture, is_keyframe=is_keyframe)

    def _known_by_search(
        self, frame: Frame, observation: Observation, tracked: Tracked
    ) -> Estimate:
        """A frame whose pose was searched for becomes a keyframe: what was followed is gone.

        Or the next one, if it can be followed, where this one is late: searches take long, and
        frames that wait for a keyframe besides are so far apart that all have to be searched for.
        Not after a loss: there the next ones may see too little of what is known. And none that
        few landmarks agree with, at first: were the pose wrong, all that is seen next would
        confirm it.
        """
        assert self._motion is not None
        status, message = self._judge(tracked)
        late = self._late(frame) and not self._owed and not self._lost
        if self._lost:
            self._few_since_ns = None
            self._continuity.rebase(tracked.world_from_body)
            status, message = Status.RELOCALISED, f'found again by {tracked.method}'
            self._lost, self._sought = False, []
        window = self._mapper.window
        newest = window.keyframes[-1]
        picture = track_view(
            observation,
            tracked,
            window.landmarks,
            newest.observation,
            newest.feature_of_landmark(len(window.landmarks)),
        )
        rows = torch.full((len(observation),), -1, dtype=torch.int64)
        rows[tracked.feature[tracked.inlier]] = tracked.landmark[tracked.inlier]
        pose = tracked.world_from_body
        target = Target.of(observation, rows, window.landmarks, pose)
        self._motion = self._motion.measured(frame.stamp_ns, pose)
        self._inliers = tracked.inliers
        self._compare_with(target, frame)
        self._owed = self._too_few(frame, tracked) or late
        if not self._owed:
            self._begin_keyframe(
                frame,
                lambda: self._mapper.insert(
                    frame, observation, tracked, hand_over=self._hand_over
                ),
            )
        estimate = self._known(frame, status, message, tracked, len(observation), searched=True)
        return replace(estimate, tracks=picture, is_keyframe=not self._owed)

    def _too_few(self, frame: Frame, tracked: Tracked) -> bool:
        """Whether too few landmarks agree with a pose that was searched for, or that follows from
        one, to make a keyframe of it.

        A wrong one does not find its few for long in a moving image, so time will tell.
        """
        if tracked.inliers >= self._enough_inliers:
            self._few_since_ns = None
            return False
        if self._few_since_ns is None:
            self._few_since_ns = frame.stamp_ns
        return seconds(frame.stamp_ns - self._few_since_ns) < SOUGHT_S

    def _late(self, frame: Frame) -> bool:
        """Live: whether the frame before took so long that some were missed since."""
        if not self._live or self._last_stamp_ns is None:
            return False
        return seconds(frame.stamp_ns - self._last_stamp_ns) < LATE_SHARE * self._took_s

    def _moved_to(self, frame: Frame, observation: Observation, tracked: Tracked) -> Tensor:
        """The pose of the frame: the measured one, or the one that is held at a standstill."""
        assert self._motion is not None
        held = self._standstill.hold(observation, tracked)
        pose = tracked.world_from_body if held is None else held
        self._motion = self._motion.measured(frame.stamp_ns, pose)
        self._inliers = tracked.inliers
        if held is None:
            rows = torch.full((len(observation),), -1, dtype=torch.int64)
            rows[tracked.feature[tracked.inlier]] = tracked.landmark[tracked.inlier]
            self._standstill.restart(observation, rows, pose)
        return pose

    def _begin_keyframe(self, frame: Frame, work: Work) -> None:
        assert self._motion is not None
        self._owed = False
        self._before_keyframe = self._motion.world_from_body
        self._beside.begin(frame.stamp_ns, work)

    def _follow_begun(self, begun: Begun | None) -> None:
        """Live: follow the features of a keyframe while bundle adjustment is still at work."""
        if begun is None:
            return
        assert self._motion is not None
        since = se3.inverse(self._before_keyframe) @ self._motion.world_from_body
        self._motion = self._motion.corrected(se3.normalise(begun.world_from_body @ since))
        self._before_keyframe = begun.world_from_body
        self._uncertainty.keyframe_in_work()
        pose = self._motion.world_from_body
        if begun.carried is None:
            self._compare_with(begun.target, begun.frame)
        else:
            self._flow.hand_on(begun.target, begun.frame, begun.carried, pose)
            self._hold_still_at(begun.target)
        self._policy.restart()

    def _adopt(self, clock: Stopwatch | None = None) -> None:
        """Wait for the keyframe that is being worked on, if any, and use it from now on."""
        if not self._beside.busy:
            return
        begin = time.perf_counter()
        mapped, work_ms = self._beside.result()
        self._uncertainty.keyframe_done()
        if self._live:
            self._mapper.keep_up(work_ms)
        if clock is not None:
            clock.add('wait', (time.perf_counter() - begin) * 1e3)
            clock.add('keyframe', work_ms)
        self._note_map()
        if mapped is None:
            return
        self._reports.report(mapped.records)
        if mapped.recalibrated and self.rig_correction is not None:
            self._rig_news = self.rig_correction.in_words
        assert self._motion is not None
        since = se3.inverse(self._before_keyframe) @ self._motion.world_from_body
        self._motion = self._motion.corrected(se3.normalise(mapped.refined @ since))
        self._uncertainty.adopt(mapped.refined, mapped.step, mapped.covariance)
        self._compare_with(mapped.target, mapped.frame)

    def _note_map(self) -> None:
        """What the estimates say of the map until the next keyframe has been worked on."""
        window = self._mapper.window
        points = window.landmarks.position[window.landmarks.alive].float()
        self._rig_fault = self._mapper.rig_fault
        self._depth.fields = self._mapper.disparity_fields
        self.rig_correction = self._mapper.rig_correction
        self._points = points.numpy()
        poses = [keyframe.world_from_body.numpy().copy() for keyframe in window.keyframes]
        self._keyframes = np.stack(poses) if poses else np.zeros((0, 4, 4))
        self._points_are_new = True
        self._map_counts = {'landmarks': len(points), 'keyframes': len(window.keyframes)}

    def _track(self, frame: Frame, observation: Observation) -> Tracked | None:
        assert self._motion is not None
        window = self._mapper.window
        if self._lost:
            return self._hypotheses.anywhere(window, observation, self._inliers)
        predicted = self._predicted(frame)
        return self._hypotheses.best(window, observation, self._motion, predicted, self._inliers)

    def _with_depth(
        self, frame: Frame, observation: Observation, tracked: Tracked | None
    ) -> tuple[Observation, Tracked | None]:
        """A pose that was searched for, told again with the depth of what it was found by."""
        if tracked is None:
            return observation, None
        landmarks, pose = self._mapper.window.landmarks, tracked.world_from_body
        good = tracked.inlier
        feature, landmark = tracked.feature[good], tracked.landmark[good]
        deep = self._depth.added(frame, observation, landmarks, feature, landmark, pose)
        if deep is observation:
            return observation, tracked
        again = self._tracker.solve_pose(
            landmarks, deep, tracked.feature, tracked.landmark, pose, tracked.method
        )
        if again is None or not self._tracker.believable(again):
            return observation, tracked
        return deep, again

    def _judge(self, tracked: Tracked, left: float = 1.0) -> tuple[Status, str]:
        if left < LEAST_LEFT:
            share = f'{100.0 * left:.0f} %'
            return Status.DEGRADED, f'{share} of the landmarks are left: the keyframe comes late'
        if tracked.inliers < self.settings.tracking.degraded_inliers:
            return Status.DEGRADED, f'only {tracked.inliers} landmarks agree with the pose'
        return Status.TRACKING, ''

    # ----------------------------------------------------------------- output

    def _checked(self, estimate: Estimate, covered: str, blurred: str) -> Estimate:
        """The estimate, not trusted of blurred images, and while they contradict the calibration.

        A covered camera of several is said; those that see are enough.
        """
        status, said = estimate.status, [covered, estimate.message]
        if blurred and estimate.odom_from_body is not None:  # without a pose: perhaps no texture
            status = Status.DEGRADED if status is Status.TRACKING else status
            said.append(blurred)
        if self._rig_fault:
            status = Status.DEGRADED if status is Status.TRACKING else status
            said.insert(0, f'check the stereo calibration: {self._rig_fault}')
        if self._rig_news:
            said.append(f'the stereo calibration is off, depths are corrected: {self._rig_news}')
            self._rig_news = ''
        return replace(estimate, status=status, message='; '.join(line for line in said if line))

    def _coast(self, frame: Frame, reason: str, seen: Observation | None) -> Estimate:
        """No measurement: the motion model for a while, then LOST, at last a new map.

        Not before the old one has been looked for in images that show something (`seen`).
        """
        assert self._motion is not None
        elapsed = seconds(frame.stamp_ns - self._motion.stamp_ns)
        bounds = self.settings.tracking
        self._lost = self._lost or elapsed > bounds.coasting_s
        if not self._lost:
            coasted = self._predicted(frame)
            estimate = self._known(frame, Status.DEGRADED, f'coasting: {reason}', pose=coasted)
            covariance = self._uncertainty.coasting(coasted, elapsed)
            covariance = covariance + self._continuity.covariance
            assert estimate.odom_from_body is not None
            published = torch.from_numpy(estimate.odom_from_body)
            return replace(estimate, covariance=to_fixed_axes(covariance, published).numpy())
        if seen is None:
            self._sought = []
            return self._unknown(frame, Status.LOST, reason)
        self._sought.append(seen)
        stamps_ns = [view.stamp_ns for view in self._sought]
        enough = [s for s in stamps_ns if seconds(frame.stamp_ns - s) >= SOUGHT_S]
        self._sought = self._sought[max(0, len(enough) - 1) :]
        if enough and elapsed > bounds.reinitialise_s:
            self._start_over(elapsed, self._sought[0])
        return self._unknown(frame, Status.LOST, reason)

    def _start_over(self, elapsed_s: float, sought: Observation) -> None:
        """Give the old map up; the next start continues at the last published pose.

        A view it was sought in is the first one of a map that needs several.
        """
        assert self._motion is not None
        assert self._continuity.last is not None
        self._before_loss = self._motion
        self._origin = self._continuity.last
        here, behind = self._motion.world_from_body, self._continuity.covariance
        self._uncertainty.give_up(here, elapsed_s, behind)
        self._motion, self._few_since_ns = None, None
        self._sought, self._owed = [], False
        self._reports.report(self._mapper.records_left())
        self._mapper.forget_window()
        self._initialiser.reset()
        if not self._metric:
            self._initialiser.offer(sought)

    def _unknown(self, frame: Frame, status: Status, message: str) -> Estimate:
        return Estimate(frame.stamp_ns, status, metric=self._metric, message=message)

    def _known(
        self,
        frame: Frame,
        status: Status,
        message: str,
        tracked: Tracked | None = None,
        features: int = 0,
        pose: Tensor | None = None,
        left: float = 1.0,
        searched: bool = False,
    ) -> Estimate:
        assert self._motion is not None
        last_ns = frame.stamp_ns if self._last_stamp_ns is None else self._last_stamp_ns
        elapsed = seconds(frame.stamp_ns - last_ns)
        estimated = self._motion.world_from_body if pose is None else pose
        published = self._continuity.publish(estimated, self._motion, elapsed, self._expected)
        covariance = self._uncertainty.accumulated(estimated) + self._continuity.covariance
        twist, twist_covariance = self._motion.velocity, None
        counts = {'features': features, 'matches': 0, 'inliers': 0, **self._map_counts}
        if tracked is not None:
            self._uncertainty.measured(tracked, left, searched)
            noise = self._uncertainty.noise
            covariance = covariance + noise
            twist_covariance = 2.0 * noise / max(elapsed, 1e-3) ** 2
            twist_covariance = twist_covariance + TWIST_FLOOR * torch.eye(6, dtype=torch.float64)
            counts.update(matches=len(tracked.feature), inliers=tracked.inliers)
        elif twist is not None:
            twist_covariance = coasting_covariance(1.0)
        return Estimate(
            frame.stamp_ns,
            status,
            odom_from_body=published.numpy().copy(),
            covariance=to_fixed_axes(covariance, published).numpy(),
            twist=None if twist is None else twist.numpy().copy(),
            twist_covariance=None if twist_covariance is None else twist_covariance.numpy(),
            metric=self._metric,
            message=message,
            counts=counts,
            landmarks=self._points if self._points_are_new else None,
            keyframes=self._keyframes if self._points_are_new else None,
        )


class Stopwatch:
    """Milliseconds of each named stage of one frame."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}

    def add(self, stage: str, milliseconds: float) -> None:
        """Add to a stage."""
        self.milliseconds[stage] = self.milliseconds.get(stage, 0.0) + milliseconds

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Adds the time of the block to the stage."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, (time.perf_counter() - begin) * 1e3)
