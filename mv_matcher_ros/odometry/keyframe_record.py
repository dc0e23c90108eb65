# SPDX-License-Identifier: Apache-2.0
"""What the odometry tells a map of a keyframe, once its neighbours have refined it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mv_matcher_ros.config import KeyframeSettings
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.odometry.local_adjustment import LocalAdjustment
from mv_matcher_ros.odometry.observation import Observation
from mv_matcher_ros.odometry.window import Keyframe, Window


@dataclass(frozen=True)
class KeyframeRecord:
    """A keyframe as the odometry knows it.

    Attributes:
        observation: its features, and their depth where it is measured.
        segment: number of the odometry's map that it belongs to; after a loss a new one begins,
            of which nobody knows where it lies in the one before, nor without metric scale how
            large it is.
        before_ns: stamp of the keyframe before it in the segment, None for the first.
        segment_from_body: (4, 4) float64 refined pose.
        odom_from_body: (4, 4) float64 pose that was published for the frame, or would have been.
        step_covariance: (6, 6) of the right perturbation of before_from_body, x y z rx ry rz; zero
            for the first.
        landmark: (N,) int64 number of the landmark each feature sees, unique in the segment, −1
            for none.
        points: (N, 3) float64 those landmarks in the body frame, NaN for none.
        point_covariance: (N, 3, 3) of them, the poses taken as known.
        metric: lengths are metres.
    """

    observation: Observation
    segment: int
    before_ns: int | None
    segment_from_body: Tensor
    odom_from_body: Tensor
    step_covariance: Tensor
    landmark: Tensor
    points: Tensor
    point_covariance: Tensor
    metric: bool

    @property
    def stamp_ns(self) -> int:
        """Of the frame."""
        return self.observation.stamp_ns


class KeyframeRecorder:
    """Makes the record of each keyframe of a window once.

    Args:
        settings: so many newer keyframes have to have refined it, or it is about to leave.
        metric: of the sensor.
    """

    def __init__(self, settings: KeyframeSettings, metric: bool) -> None:
        self._lag, self._metric = min(settings.map_lag, settings.window), metric
        self._segment = -1
        self._before_ns: int | None = None
        self._segment_from_window = torch.eye(4, dtype=torch.float64)

    def begin(self) -> None:
        """A new window: nothing ties it to the one before."""
        self._segment += 1
        self._before_ns = None
        self._segment_from_window = torch.eye(4, dtype=torch.float64)

    def rescaled(self, before: Tensor, after: Tensor) -> None:
        """The window has changed: its oldest keyframe that is not reported went from one pose
        (4, 4) to another. For those who know the keyframes before it, it stays where it was."""
        self._segment_from_window = self._segment_from_window @ before @ se3.inverse(after)

    def due(self, window: Window, adjustment: LocalAdjustment) -> list[KeyframeRecord]:
        """Of the keyframes that are old enough, in order of time."""
        return self._of(window, adjustment, len(window.keyframes) - self._lag)

    def rest(self, window: Window, adjustment: LocalAdjustment) -> list[KeyframeRecord]:
        """Of all the others: there will be no newer ones."""
        return self._of(window, adjustment, len(window.keyframes))

    def _of(
        self, window: Window, adjustment: LocalAdjustment, before: int
    ) -> list[KeyframeRecord]:
        records = []
        for number, keyframe in enumerate(window.keyframes[: max(before, 0)]):
            if not keyframe.reported:
                covariance = adjustment.step_covariance(window, number)
                records.append(self._record(window, keyframe, covariance))
                keyframe.reported = True
        return records

    def _record(self, window: Window, keyframe: Keyframe, covariance: Tensor) -> KeyframeRecord:
        marks, pose = window.landmarks, keyframe.world_from_body
        observation = keyframe.observation.of_first_camera()
        landmark = keyframe.landmark[: len(observation)]  # those of the first camera come first
        row = landmark.clamp_min(0)
        sees = landmark >= 0
        if len(marks):
            sees = sees & marks.alive[row]
            local = se3.transform(se3.inverse(pose), marks.position[row])
            turn = pose[:3, :3]
            spread = turn.T @ marks.covariance[row] @ turn
            number = torch.where(sees, marks.identity[row], -1)
        else:
            local = torch.zeros(len(row), 3, dtype=torch.float64)
            spread = torch.zeros(len(row), 3, 3, dtype=torch.float64)
            number = torch.full_like(row, -1)
        record = KeyframeRecord(
            observation,
            self._segment,
            self._before_ns,
            self._segment_from_window @ pose,
            pose,  # until the engine says what it published
            covariance,
            number,
            torch.where(sees[:, None], local, torch.nan),
            torch.where(sees[:, None, None], spread, torch.nan),
            self._metric,
        )
        self._before_ns = record.stamp_ns
        return record
