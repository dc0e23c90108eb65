# SPDX-License-Identifier: Apache-2.0
"""What the engine says of a frame besides the pose: counts, tracks to draw, uncertainty."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mv_matcher_ros.config import CovarianceSettings
from mv_matcher_ros.datatypes import TrackView
from mv_matcher_ros.odometry.observation import Observation
from mv_matcher_ros.odometry.tracking import Tracked
from mv_matcher_ros.odometry.window import Landmarks


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


def pose_noise(tracked: Tracked, settings: CovarianceSettings) -> Tensor:
    """(6, 6) covariance of a pose measured against known landmarks."""
    return settings.noise**2 * torch.linalg.pinv(tracked.information, hermitian=True)
