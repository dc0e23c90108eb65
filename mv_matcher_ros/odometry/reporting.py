# SPDX-License-Identifier: Apache-2.0
"""What the engine says of a frame besides the pose: tracks to draw, records of keyframes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mv_matcher_ros.datatypes import Estimate, TrackView
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.odometry.keyframe_record import KeyframeRecord
from mv_matcher_ros.odometry.observation import Observation
from mv_matcher_ros.odometry.tracking import Tracked
from mv_matcher_ros.odometry.window import Keyframe, Landmarks

OnKeyframe = Callable[[KeyframeRecord], None]


def track_view(
    observation: Observation,
    tracked: Tracked,
    landmarks: Landmarks,
    newest: Observation,
    place: Tensor,
) -> TrackView:
    """Tracks of the first camera of a frame with their place in the newest keyframe.

    Args:
        observation, tracked: of the frame.
        landmarks: what `tracked.landmark` counts in.
        newest: the newest keyframe.
        place: (P,) its feature that sees each landmark, −1 where none does.
    """
    of_first = observation.camera[tracked.feature] == 0
    feature, landmark = tracked.feature[of_first], tracked.landmark[of_first]
    seen = place[landmark]
    previous = newest.features.keypoints_xy[seen.clamp_min(0)].numpy().copy()
    previous[(seen < 0).numpy()] = np.nan
    return TrackView(
        observation.features.keypoints_xy[feature].numpy(),
        previous,
        tracked.inlier[of_first].numpy(),
        landmarks.seen[landmark].numpy(),
    )


class KeyframeReports:
    """Hands the records of keyframes over, each with the pose that was published for its frame."""

    def __init__(self) -> None:
        self.to: OnKeyframe | None = None
        self._published: dict[int, Tensor] = {}

    def note(self, estimate: Estimate, keyframes: Sequence[Keyframe]) -> None:
        """What `odom` says of a keyframe, and of those before it that a map began with.

        Args:
            estimate: of any frame.
            keyframes: of the window, where the estimate began a map.
        """
        if self.to is None or not estimate.is_keyframe:
            return
        assert estimate.odom_from_body is not None
        published = torch.from_numpy(estimate.odom_from_body)
        self._published[estimate.stamp_ns] = published
        if estimate.started_by:
            newest_from_segment = se3.inverse(keyframes[-1].world_from_body)
            for keyframe in keyframes[:-1]:
                step = newest_from_segment @ keyframe.world_from_body
                self._published[keyframe.observation.stamp_ns] = published @ step

    def report(self, records: Iterable[KeyframeRecord]) -> None:
        """Hand over, in order of time."""
        if self.to is None:
            return
        for record in records:
            published = self._published[record.stamp_ns]
            self.to(replace(record, odom_from_body=published))
            # Also of frames that were to become keyframes and had too little to show.
            self._published = {
                stamp: pose for stamp, pose in self._published.items() if stamp > record.stamp_ns
            }
