# SPDX-License-Identifier: Apache-2.0
"""What a published pose errs by: what has come together since the origin, and its own noise.

Covariances are (6, 6), of a right perturbation of world_from_body, x y z rx ry rz, metres (or
units of the map) and radians.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mv_matcher_ros.config import CovarianceSettings
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.odometry.motion import coasting_covariance
from mv_matcher_ros.odometry.tracking import Tracked

# Standard deviation given to the first pose: it is the origin of odom by definition.
ORIGIN_VARIANCE = 1e-10
# Share of the landmarks of a keyframe below which those that are left err by more than their noise
# says (fitted to keyframes 0.6 and 1 s late in one rendered room).
WELL_LEFT = 0.5
# Poses that were searched for, and the keyframe made there, err this many times as far as their
# noise says: landmarks seen from elsewhere than before err alike (65 gaps of 0.3 to 11 m in
# three rendered worlds: 1.7).
SEARCHED = 1.75


class PoseUncertainty:
    """Covariance of the poses, from keyframe to keyframe and of the frames between them.

    Args:
        settings: `covariance`.
        origin: (4, 4) world_from_body of the first pose.

    Attributes:
        noise: of the last frame that was measured, as it is stated; zero before.
    """

    def __init__(self, settings: CovarianceSettings, origin: Tensor) -> None:
        self._settings = settings
        self._accumulated = torch.eye(6, dtype=torch.float64) * ORIGIN_VARIANCE
        self._anchor = origin  # the pose of the body that `_accumulated` is of
        self._tracking = torch.zeros(6, 6, dtype=torch.float64)
        self.noise = self._tracking  # the same, and what a keyframe that comes late adds
        self._in_work = self._tracking
        self._searched = False  # no keyframe has been adopted since a search

    # ---------------------------------------------------------------- frames

    def measured(self, tracked: Tracked, left: float = 1.0, searched: bool = False) -> None:
        """Take the noise of a frame over.

        Args:
            tracked: its pose.
            left: share of the keyframe's landmarks that could be followed. Those at the edge of
                the image err alike, and flow has drifted; a keyframe mends that, so it does not
                add up.
            searched: the pose was searched for, not followed.
        """
        self._tracking = pose_noise(tracked, self._settings) * (SEARCHED**2 if searched else 1.0)
        self.noise = self._tracking * max(1.0, WELL_LEFT / max(left, 1e-3)) ** 2
        self._searched = self._searched or searched

    def accumulated(self, world_from_body: Tensor) -> Tensor:
        """What has come together up to the newest keyframe, of a body that is here now: an error
        of the keyframe's attitude moves it by the way since."""
        adjoint = se3.adjoint(se3.inverse(world_from_body) @ self._anchor)
        return adjoint @ self._accumulated @ adjoint.T + self._in_work

    def coasting(self, world_from_body: Tensor, elapsed_s: float) -> Tensor:
        """Of a pose that only the motion model says, so long after the last one measured."""
        accumulated = self.accumulated(world_from_body)
        return accumulated + self._tracking + coasting_covariance(elapsed_s)

    # ------------------------------------------------------------- keyframes

    def begin(self, world_from_body: Tensor) -> None:
        """A map begins here."""
        self._anchor = world_from_body
        self._searched = False

    def give_up(self, world_from_body: Tensor, elapsed_s: float, behind: Tensor) -> None:
        """The map ends here, so long after the last pose measured in it.

        Args:
            world_from_body: (4, 4) last pose; elapsed_s: since then.
            behind: (6, 6) of what odom has not caught up with, and now never will.
        """
        self._accumulated = self.coasting(world_from_body, elapsed_s) + behind

    def keyframe_in_work(self) -> None:
        """What comes next is measured against a keyframe that is not refined yet."""
        self._in_work = self.noise

    def keyframe_done(self) -> None:
        """It is refined, or was refused."""
        self._in_work = torch.zeros_like(self._in_work)

    def adopt(self, refined: Tensor, step: Tensor, covariance: Tensor) -> None:
        """Go on from a new keyframe.

        What is published of a frame errs by its tracking, too. With that in every step the
        difference of two published covariances is what the motion between them errs by.

        Args:
            refined: (4, 4) world_from_body.
            step: (4, 4) keyframe before from this one.
            covariance: (6, 6) of it.
        """
        adjoint = se3.adjoint(se3.inverse(step))
        grown = covariance * (SEARCHED**2 if self._searched else 1.0) + self._tracking
        self._accumulated = adjoint @ self._accumulated @ adjoint.T + grown
        self._anchor = refined
        self._searched = False


def pose_noise(tracked: Tracked, settings: CovarianceSettings) -> Tensor:
    """(6, 6) covariance of a pose measured against known landmarks."""
    return settings.noise**2 * torch.linalg.pinv(tracked.information, hermitian=True)
