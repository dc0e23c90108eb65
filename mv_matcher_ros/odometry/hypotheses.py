# SPDX-License-Identifier: Apache-2.0
"""Which of several ways to find the pose of a frame is believed: what most landmarks agree with.

The first plausible pose is not good enough: after an abrupt end of a turn the prediction is wrong,
and a few dozen of several hundred landmarks agree with a pose near it.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from mv_matcher_ros.config import Settings
from mv_matcher_ros.odometry.motion import Motion, plausible, seconds
from mv_matcher_ros.odometry.observation import Observation
from mv_matcher_ros.odometry.tracking import Tracked, Tracker
from mv_matcher_ros.odometry.window import Window

# A pose that fewer landmarks agree with than this share of those before, and fewer than this
# number, is compared with other ways to find one.
KEPT_SHARE = 0.5
PLENTY = 160


class Hypotheses:
    """Searches a window for the landmarks of a frame and judges what is found."""

    def __init__(self, settings: Settings, tracker: Tracker) -> None:
        self._bounds = settings.tracking
        self._metric = settings.sensor != 'mono'
        self._tracker = tracker

    def best(
        self,
        window: Window,
        observation: Observation,
        motion: Motion,
        predicted: Tensor,
        before: int,
    ) -> Tracked | None:
        """Near the prediction, by the newest keyframe, near the last pose, or by the graph; None
        if none is plausible.

        The first two are always compared: what is sought near a wrong prediction is found, and
        agrees with it (190 of 203 matches on a pose 13 cm off, where 226 of 238 that nothing
        guided are right to 2 cm).

        Args:
            window: with the landmarks; observation: of the frame.
            motion: at the last pose, which bounds the new one.
            predicted: (4, 4) where the body should be.
            before: landmarks that agreed with the last pose; the first way after those two that
                about as many agree with ends the search.
        """
        best: Tracked | None = None
        for number, tracked in enumerate(self._near(window, observation, motion, predicted)):
            if tracked is not None and self.plausible(tracked, motion, observation.stamp_ns):
                best = self._better(window, best, tracked)
            if number > 0 and best is not None and self.enough(best, before):
                break
        return best

    def anywhere(self, window: Window, observation: Observation, before: int) -> Tracked | None:
        """The pose in the whole window, whatever the motion; None if there is none."""
        best: Tracked | None = None
        for keyframe in reversed(window.keyframes):
            tracked = self._tracker.relocalise(window, observation, keyframe)
            best = self._better(window, best, tracked)
            if best is not None and self.enough(best, before):
                return best
        return self._better(window, best, self._tracker.relocalise_jointly(window, observation))

    def _better(
        self, window: Window, best: Tracked | None, other: Tracked | None
    ) -> Tracked | None:
        """What more landmarks agree with, if they are enough of those that should be seen."""
        if other is None or (best is not None and other.inliers <= best.inliers):
            return best
        return other if self._tracker.recognised(window, other) else best

    def enough(self, tracked: Tracked, before: int) -> bool:
        """Whether about as many landmarks agree with a pose as with the one before."""
        inliers = tracked.inliers
        return inliers >= PLENTY or (
            inliers >= self._bounds.degraded_inliers and inliers >= KEPT_SHARE * before
        )

    def plausible(self, tracked: Tracked, motion: Motion, stamp_ns: int) -> bool:
        """Whether the body can have moved so since `motion`."""
        elapsed = seconds(stamp_ns - motion.stamp_ns)
        pose = tracked.world_from_body
        return plausible(motion.world_from_body, pose, elapsed, self._bounds, self._metric)

    def _near(
        self, window: Window, observation: Observation, motion: Motion, predicted: Tensor
    ) -> Iterator[Tracked | None]:
        yield self._tracker.track(window, observation, predicted)
        # A short gap is not worth a search through the whole window.
        yield self._tracker.relocalise(window, observation, window.keyframes[-1])
        yield self._tracker.track(window, observation, motion.world_from_body)
        yield self._tracker.relocalise_jointly(window, observation)
