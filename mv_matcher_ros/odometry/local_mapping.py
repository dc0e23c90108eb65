# SPDX-License-Identifier: Apache-2.0
"""What a keyframe sets off: its features, landmarks, bundle adjustment, the window's limits.

Nothing here is needed to publish the pose of a frame, so that it may run beside the tracking.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Frame, Rig
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.models.classical import NearestNeighbourMatcher
from mv_matcher_ros.odometry.disparity_offset import DisparityOffset
from mv_matcher_ros.odometry.flow import Followed, Target
from mv_matcher_ros.odometry.joint_matching import JointMatcher, JointMatches, SecondView
from mv_matcher_ros.odometry.keyframe_record import KeyframeRecord, KeyframeRecorder
from mv_matcher_ros.odometry.landmarks import LandmarkMaker
from mv_matcher_ros.odometry.local_adjustment import LocalAdjustment
from mv_matcher_ros.odometry.map_start import MapStart
from mv_matcher_ros.odometry.observation import Observation, Observer
from mv_matcher_ros.odometry.rig_check import RigCheck
from mv_matcher_ros.odometry.stereo import StereoMatcher
from mv_matcher_ros.odometry.tracking import REFERENCE_WIDTH, Tracked, Tracker
from mv_matcher_ros.odometry.window import Keyframe, Window

# A feature detected this near (at 640 px width) to a followed one may be the same.
ASSOCIATION_PX = 3.0
START_ITERATIONS = 20


@dataclass(frozen=True)
class Mapped:
    """A keyframe that has joined the window.

    Attributes:
        frame: it was made of.
        refined: (4, 4) its pose after bundle adjustment.
        covariance: (6, 6) of its pose given the keyframe before.
        step: (4, 4) keyframe before from this one.
        target: its features and landmarks, to be followed.
        records: of keyframes that it has refined for the last time that counts.
    """

    frame: Frame
    refined: Tensor
    covariance: Tensor
    step: Tensor
    target: Target
    records: tuple[KeyframeRecord, ...] = ()


class LocalMapper:
    """Owns the window of keyframes; once it is begun, only `insert` changes it."""

    def __init__(
        self,
        settings: Settings,
        rig: Rig,
        observer: Observer,
        tracker: Tracker,
        matcher: NearestNeighbourMatcher,
        joint: JointMatcher | None = None,
    ) -> None:
        camera = rig.cameras[0]
        self._joint = joint
        self._settings = settings
        self._observer = observer
        self._tracker = tracker
        self._matcher = matcher
        self._metric = settings.sensor != 'mono'
        self._association = ASSOCIATION_PX * camera.width / REFERENCE_WIDTH / camera.focal_px
        self._body_from_camera = torch.from_numpy(camera.body_from_camera.copy())
        self._maker = LandmarkMaker(settings, camera, matcher)
        self._adjustment = LocalAdjustment(settings, camera)
        self._stereo: StereoMatcher | None = None
        self._rig_check: RigCheck | None = None
        self._offset: DisparityOffset | None = None
        if settings.sensor == 'stereo':
            self._stereo = StereoMatcher(settings, rig, matcher)
            self._rig_check = RigCheck(settings, rig, matcher)
            if settings.stereo.self_calibration:
                self._offset = DisparityOffset(rig, self._maker)
        self._recorder = KeyframeRecorder(settings.keyframes, self._metric)
        self.window = Window()

    def reset(self) -> None:
        """Forget everything that was learned."""
        self.forget_window()
        if self._offset is not None:
            self._offset.reset()
        if self._rig_check is not None:
            self._rig_check.rearm()

    def forget_window(self) -> None:
        """Give the map up; what was learned of the rig stays."""
        self.window = Window()

    def records_left(self) -> list[KeyframeRecord]:
        """Of the keyframes that no newer ones will refine; before the map is given up."""
        return self._recorder.rest(self.window, self._adjustment)

    @property
    def rig_fault(self) -> str:
        """How the images contradict the stereo calibration in one line; empty if they do not."""
        return '' if self._rig_check is None else self._rig_check.fault

    # ------------------------------------------------------------------ start

    def begin_with_depth(self, frame: Frame, observation: Observation, pose: Tensor) -> int:
        """A window of one keyframe at `pose`, if enough features have depth; returns how many."""
        observation = self._with_depth(observation, self._second_view(frame))
        window, keyframe = Window(), Keyframe.of(observation, pose)
        made = self._maker.from_depth(window, keyframe)
        if made >= self._settings.initialisation.min_landmarks:
            self._begin(window, [keyframe])
            keyframe.world_from_body = pose  # by definition, to the last bit
        return made

    def begin_with_views(self, start: MapStart, pose: Tensor) -> None:
        """A window of one keyframe a view, the first at `pose`."""
        window = Window()
        descriptors = start.views[0].features.descriptors
        newest = descriptors.new_zeros(len(start.points), descriptors.shape[1])
        keyframes = []
        camera_from_body = se3.inverse(self._body_from_camera)
        steps = self._body_from_camera @ se3.inverse(start.camera_from_first) @ camera_from_body
        for number, view in enumerate(start.views):
            keyframe = Keyframe.of(view, pose @ steps[number])
            points = (start.feature[:, number] >= 0).nonzero()[:, 0]
            feature = start.feature[points, number]
            newest[points] = view.features.descriptors[feature]
            keyframe.landmark[feature] = points
            if self._joint is not None:
                keyframe.weight[feature] = start.confidence[points, number]
            keyframes.append(keyframe)
        world = se3.transform(pose @ self._body_from_camera, start.points)
        window.landmarks.add(world, newest)
        self._begin(window, keyframes)

    def _begin(self, window: Window, keyframes: list[Keyframe]) -> None:
        window.keyframes = keyframes
        window.count_seen()
        self._adjustment.anchor(window, hold_scale=not self._metric)
        self._adjustment.refine(window, START_ITERATIONS)  # also says how well points are known
        self._recorder.begin()
        self.window = window

    # --------------------------------------------------------------- continue

    def insert_followed(self, frame: Frame, followed: Followed) -> Mapped | None:
        """A keyframe of a frame known by flow; None if too little of it is detected again."""
        observation = self._observer.observe(frame)
        links = self._associate(followed, observation)
        newest = self.window.keyframes[-1]
        if followed.target.observation.index != newest.observation.index:
            links = links[:0]  # what was followed is no keyframe of the window
        row = newest.landmark[links[:, 0]]
        known = row >= 0
        pose = followed.tracked.world_from_body
        tracked = self._tracker.track_known(
            self.window, observation, pose, links[known, 1], row[known]
        )
        if tracked is None:
            return None
        return self.insert(frame, observation, tracked, links[~known])

    def insert(
        self,
        frame: Frame,
        observation: Observation,
        tracked: Tracked,
        links: Tensor | None = None,
    ) -> Mapped:
        """A keyframe of a tracked frame: landmarks, bundle adjustment, the oldest one leaves.

        Args:
            frame: for the other camera of a rig.
            observation, tracked: its features and pose in the window.
            links: (K, 2) features of the newest keyframe and of this frame known to be the same.
        """
        window = self.window
        second = self._second_view(frame)
        matches = seen = None
        if self._joint is not None:
            matches, seen = self._joint.match(
                window.keyframes, observation, tracked.world_from_body, second
            )
        observation = self._with_depth(observation, second, matches)
        keyframe = Keyframe.of(observation, tracked.world_from_body)
        keyframe.seen = seen
        feature, landmark = tracked.feature[tracked.inlier], tracked.landmark[tracked.inlier]
        keyframe.landmark[feature] = landmark
        window.landmarks.descriptor[landmark] = observation.features.descriptors[feature]
        window.keyframes.append(keyframe)
        self._adjustment.extend_prior(window)
        self._maker.complete_tracks(window)
        if self._metric:
            self._maker.from_depth(window, keyframe)
        if links is not None:
            self._maker.from_links(window, keyframe, links)
        if matches is not None:
            self._maker.from_joint_matches(window, keyframe, matches)
        self._maker.from_parallax(window, keyframe)
        window.count_seen()
        self._adjustment.refine(window)
        covariance = self._adjustment.step_covariance(window)
        records = self._recorder.due(window, self._adjustment)
        if self._offset is not None:
            self._offset.update(window)
        before = window.keyframes[-2]
        step = se3.inverse(before.world_from_body) @ keyframe.world_from_body
        if len(window.keyframes) > self._settings.keyframes.window:
            self._adjustment.drop_oldest(window)
        target = self.newest_target()
        return Mapped(frame, keyframe.world_from_body, covariance, step, target, tuple(records))

    def newest_target(self) -> Target:
        """The newest keyframe as something to be followed."""
        newest = self.window.keyframes[-1]
        return Target.of(
            newest.observation, newest.landmark, self.window.landmarks, newest.world_from_body
        )

    def _associate(self, followed: Followed, observation: Observation) -> Tensor:
        """(K, 2) features of the followed target and of a detection in the same image."""
        kept = followed.kept
        pairs, _ = self._matcher.match_near(
            (followed.observation.plane_xy[kept], followed.observation.features.descriptors[kept]),
            (observation.plane_xy, observation.features.descriptors),
            self._association,
        )
        return torch.stack([followed.origin[kept][pairs[:, 0]], pairs[:, 1]], dim=1)

    def _second_view(self, frame: Frame) -> SecondView | None:
        return None if self._stereo is None else SecondView(*self._observer.second_view(frame))

    def _with_depth(
        self,
        observation: Observation,
        second: SecondView | None,
        matches: JointMatches | None = None,
    ) -> Observation:
        if self._stereo is None or second is None:
            return observation
        if self._rig_check is not None:
            self._rig_check.offer(observation, second.features, second.plane_xy)
        offset = 0.0 if self._offset is None else self._offset.offset
        given = None if matches is None or matches.stereo is None else matches.stereo[0]
        return self._stereo.add_depth(
            observation, second.features, second.plane_xy, second.sigma, offset, given
        )
