# SPDX-License-Identifier: Apache-2.0
"""What a keyframe sets off: its features, landmarks, bundle adjustment, the window's limits.

Nothing here is needed to publish the pose of a frame, so that it may run beside the tracking.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Frame, Rig
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.models.classical import NearestNeighbourMatcher
from mv_matcher_ros.odometry.disparity_error import DisparityField
from mv_matcher_ros.odometry.flow import Carried, Followed, Target
from mv_matcher_ros.odometry.joint_matching import JointMatcher, JointMatches, SecondView
from mv_matcher_ros.odometry.keyframe_record import KeyframeRecord, KeyframeRecorder
from mv_matcher_ros.odometry.landmarks import LandmarkMaker
from mv_matcher_ros.odometry.local_adjustment import LocalAdjustment
from mv_matcher_ros.odometry.map_start import MapStart
from mv_matcher_ros.odometry.observation import Observation, Observer
from mv_matcher_ros.odometry.seeing import SeeingCameras
from mv_matcher_ros.odometry.stereo_depth import RigCorrection, StereoDepth
from mv_matcher_ros.odometry.tracking import Tracked, Tracker
from mv_matcher_ros.odometry.window import Keyframe, Window

# A feature detected this near (at 640 px width) to a followed one may be the same.
ASSOCIATION_PX = 3.0
START_ITERATIONS = 20
# Live: a keyframe that takes this many times as long as it may, and the smallest window.
LATE, FEWEST_KEYFRAMES = 1.5, 5


@dataclass(frozen=True)
class Begun:
    """A keyframe that can be followed already, before bundle adjustment.

    Attributes:
        frame: it is made of.
        world_from_body: (4, 4) its pose as tracked.
        target: its features and landmarks.
        carried: which of them were followed already; None if none were.
    """

    frame: Frame
    world_from_body: Tensor
    target: Target
    carried: Carried | None = None


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
        recalibrated: it made sure that a stereo pair is not as calibrated.
    """

    frame: Frame
    refined: Tensor
    covariance: Tensor
    step: Tensor
    target: Target
    records: tuple[KeyframeRecord, ...] = ()
    recalibrated: bool = False


HandOver = Callable[[Begun], None]


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
        self._cameras = cameras = SeeingCameras.of(settings, rig)
        self._joint = joint
        self._settings = settings
        self._observer = observer
        self._tracker = tracker
        self._matcher = matcher
        self._metric = settings.sensor != 'mono'
        self._association = cameras.on_plane(ASSOCIATION_PX)
        self._maker = LandmarkMaker(settings, cameras, matcher)
        self._adjustment = LocalAdjustment(settings, cameras)
        self._stereo: StereoDepth | None = None
        if settings.sensor == 'stereo':
            self._stereo = StereoDepth(settings, rig, cameras, matcher, self._maker)
        self._recorder = KeyframeRecorder(settings.keyframes, self._metric)
        self._most = settings.keyframes.window
        self.window = Window()

    def reset(self) -> None:
        """Forget everything that was learned."""
        self.forget_window()
        if self._stereo is not None:
            self._stereo.reset()

    def forget_window(self) -> None:
        """Give the map up; what was learned of the rig stays."""
        self.window = Window()

    def records_left(self) -> list[KeyframeRecord]:
        """Of the keyframes that no newer ones will refine; before the map is given up."""
        return self._recorder.rest(self.window, self._adjustment)

    @property
    def rig_fault(self) -> str:
        """How the images contradict the stereo calibration in one line; empty if they do not."""
        return '' if self._stereo is None else self._stereo.fault

    @property
    def rig_correction(self) -> RigCorrection | None:
        """What of the stereo calibration is corrected; None for nothing."""
        return None if self._stereo is None else self._stereo.correction

    @property
    def disparity_fields(self) -> tuple[DisparityField, ...]:
        """Of each stereo pair the error of its inverse depths, as learned so far."""
        return () if self._stereo is None else self._stereo.fields

    # ------------------------------------------------------------------ start

    def begin_with_depth(self, frame: Frame, observation: Observation, pose: Tensor) -> int:
        """A window of one keyframe at `pose`, if enough features have depth; returns how many."""
        observation = self._with_depth(observation, self._second_views(frame))
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
        body_from_camera = self._cameras.body_from_camera[0]
        camera_from_body = self._cameras.camera_from_body[0]
        steps = body_from_camera @ se3.inverse(start.camera_from_first) @ camera_from_body
        for number, view in enumerate(start.views):
            keyframe = Keyframe.of(view, pose @ steps[number])
            points = (start.feature[:, number] >= 0).nonzero()[:, 0]
            feature = start.feature[points, number]
            newest[points] = view.features.descriptors[feature]
            keyframe.landmark[feature] = points
            if self._joint is not None:
                keyframe.weight[feature] = start.confidence[points, number]
            keyframes.append(keyframe)
        world = se3.transform(pose @ body_from_camera, start.points)
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

    def insert_followed(
        self, frame: Frame, followed: Followed, hand_over: HandOver | None = None
    ) -> Mapped | None:
        """A keyframe of a frame known by flow; None if too little of it is detected again."""
        observation = self._observer.observe(frame)
        carried = self._associate(followed, observation)
        links = torch.stack([carried.origin, carried.feature], dim=1)
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
        return self.insert(
            frame,
            observation,
            tracked,
            links[~known],
            hand_over and (lambda begun: hand_over(replace(begun, carried=carried))),
        )

    def insert(
        self,
        frame: Frame,
        observation: Observation,
        tracked: Tracked,
        links: Tensor | None = None,
        hand_over: HandOver | None = None,
    ) -> Mapped:
        """A keyframe of a tracked frame: landmarks, bundle adjustment, the oldest one leaves.

        Args:
            frame: for the other cameras of a rig.
            observation, tracked: its features and pose in the window.
            links: (K, 2) features of the newest keyframe and of this frame known to be the same.
            hand_over: gets the keyframe as soon as it can be followed.
        """
        window = self.window
        seconds = self._second_views(frame)
        matches = seen = None
        if self._joint is not None:
            matches, seen = self._joint.match(
                window.keyframes, observation, tracked.world_from_body, seconds
            )
        observation = self._with_depth(observation, seconds, matches)
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
        if hand_over is not None:
            self._adjustment.assess(window)
            hand_over(Begun(frame, keyframe.world_from_body, self.newest_target()))
        self._adjustment.refine(window)
        recalibrated = self._stereo is not None and self._stereo.learn(window)
        if recalibrated:
            self._rescale(window)
        covariance = self._adjustment.step_covariance(window)
        records = self._recorder.due(window, self._adjustment)
        before = window.keyframes[-2]
        step = se3.inverse(before.world_from_body) @ keyframe.world_from_body
        while len(window.keyframes) > self._most:
            self._adjustment.drop_oldest(window)
        target = self.newest_target()
        return Mapped(
            frame,
            keyframe.world_from_body,
            covariance,
            step,
            target,
            tuple(records),
            recalibrated,
        )

    def _rescale(self, window: Window) -> None:
        """The map gets another scale, all at once, and about the body: it has not moved."""
        oldest = next(keyframe for keyframe in window.keyframes if not keyframe.reported)
        before = oldest.world_from_body
        self._adjustment.anchor(window, number=-1)
        self._adjustment.refine(window, START_ITERATIONS)
        self._recorder.rescaled(before, oldest.world_from_body)

    def keep_up(self, work_ms: float) -> None:
        """Fewer keyframes where the last one took too long to be worked on, more where it did not.

        Never so few that one leaves before it has gone to the map.
        """
        settings = self._settings.keyframes
        most, due_ms = settings.window, settings.delay_s * 1e3
        if work_ms > LATE * due_ms:
            fewest = min(max(FEWEST_KEYFRAMES, settings.map_lag), most)
            self._most = max(self._most - 1, fewest)
        elif work_ms < due_ms:
            self._most = min(self._most + 1, most)

    def newest_target(self) -> Target:
        """The newest keyframe as something to be followed."""
        newest = self.window.keyframes[-1]
        return Target.of(
            newest.observation, newest.landmark, self.window.landmarks, newest.world_from_body
        )

    def _associate(self, followed: Followed, observation: Observation) -> Carried:
        """Features of the followed target that were detected again in the same images."""
        rows, features = [], []
        seen = followed.observation
        for number, radius in enumerate(self._association):
            here = (followed.kept & (seen.camera == number)).nonzero()[:, 0]
            detected = self._cameras.part(observation, number)
            pairs, _ = self._matcher.match_near(
                (seen.plane_xy[here], seen.features.descriptors[here]),
                (detected.plane_xy, detected.features.descriptors),
                radius,
            )
            rows.append(here[pairs[:, 0]])
            features.append(observation.rows_of(number)[pairs[:, 1]])
        row, feature = torch.cat(rows), torch.cat(features)
        offset = observation.features.keypoints_xy[feature] - seen.features.keypoints_xy[row]
        index = followed.target.observation.index
        return Carried(index, followed.origin[row], feature, offset)

    def _second_views(self, frame: Frame) -> list[SecondView]:
        """What the other camera of each stereo pair sees."""
        pairs = 0 if self._stereo is None else len(self._cameras)
        return [
            SecondView(
                *self._observer.second_view(frame, number),
                self._observer.images_of_pair(frame, number),
            )
            for number in range(pairs)
        ]

    def _with_depth(
        self,
        observation: Observation,
        seconds: Sequence[SecondView],
        matches: JointMatches | None = None,
    ) -> Observation:
        if self._stereo is None:
            return observation
        return self._stereo.add_depth(
            observation, seconds, () if matches is None else matches.stereo
        )
