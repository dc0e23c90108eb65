# SPDX-License-Identifier: Apache-2.0
"""What the engine says of a frame besides the pose: counts, tracks to draw, uncertainty."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mv_matcher_ros.datatypes import TrackView
from mv_matcher_ros.odometry.observation import Observation
from mv_matcher_ros.odometry.tracking import Tracked
from mv_matcher_ros.odometry.window import Window


def counts(window: Window, observation: Observation, tracked: Tracked | None) -> dict[str, int]:
    """Numbers worth watching over time."""
    return {
        'features': len(observation),
        'matches': 0 if tracked is None else len(tracked.feature),
        'inliers': 0 if tracked is None else tracked.inliers,
        'landmarks': int(window.landmarks.alive.sum()),
        'keyframes': len(window.keyframes),
    }


def track_view(
    window: Window, observation: Observation, tracked: Tracked | None
) -> TrackView | None:
    """Tracks of a frame with their place in the newest keyframe; None without a measured pose.

    Must be called before the frame becomes a keyframe: rows of landmarks change there.
    """
    if tracked is None or not window.keyframes:
        return None
    newest = window.keyframes[-1]
    place = newest.feature_of_landmark(len(window.landmarks))[tracked.landmark]
    previous = newest.observation.features.keypoints_xy[place.clamp_min(0)].numpy().copy()
    previous[(place < 0).numpy()] = np.nan
    return TrackView(
        observation.features.keypoints_xy[tracked.feature].numpy(),
        previous,
        tracked.inlier.numpy(),
        window.landmarks.seen[tracked.landmark].numpy(),
    )


def landmark_of(observation: Observation, tracked: Tracked) -> Tensor:
    """(N,) landmark row of each feature, −1 for none."""
    rows = torch.full((len(observation),), -1, dtype=torch.int64)
    rows[tracked.feature[tracked.inlier]] = tracked.landmark[tracked.inlier]
    return rows


def pose_noise(tracked: Tracked) -> Tensor:
    """(6, 6) covariance of a pose measured against known landmarks."""
    return torch.linalg.pinv(tracked.information, hermitian=True)
