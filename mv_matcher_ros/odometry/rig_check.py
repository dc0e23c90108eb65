# SPDX-License-Identifier: Apache-2.0
"""Whether the calibration of a stereo rig agrees with its images, and if not, what is wrong.

Matches made without the epipolar constraint are held against the calibrated epipolar geometry.
Where they contradict it, the fault is the simplest change of the rig that explains them: the views
exchanged, another direction of the baseline, another rotation, another pose. Where nothing
explains them (no texture, or one that repeats) nothing is said. Images cannot show a wrong length
of the baseline, nor, at small angles, that the second camera is turned about its vertical axis.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass

import torch
from torch import Tensor

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Features, Rig
from mv_matcher_ros.errors import SettingsError
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.camera import camera_normalise
from mv_matcher_ros.geometry.so3 import rotation_angle
from mv_matcher_ros.models.classical import NearestNeighbourMatcher
from mv_matcher_ros.odometry.observation import Observation
from mv_matcher_ros.odometry.rig_fit import (
    EXPLAINED_SHARE,
    Agreement,
    agreement,
    centre_of,
    fit_baseline,
    fit_pose,
    fit_rotation,
)

# A third of the usual 1500 features decide as well as all, in a third of the time.
MAX_FEATURES = 400
MIN_MATCHES = 40
# Features are not found better than this, whatever the setting of the matching asks.
MIN_TOLERANCE_PX = 1.5
# A simpler change of the rig is preferred up to this loss of explained matches.
SIMPLER_SHARE = 0.93
# Below this the baseline is not another one but a rig that is a little off.
MIN_BASELINE_ERROR_DEG = 20.0
# Even a scene at infinity is not found again at the same place by another sensor.
SAME_IMAGE_PX = 0.01
# The verdict is that of most of the latest frames that could be judged.
VOTES, MAJORITY = 5, 3
# Fits cost three times what the rest does: a scene that never says anything does not pay for ever.
MAX_FITS = 30
# A fit that explains this share cannot be beaten by more than the preference for simplicity.
GOOD_FIT_SHARE = SIMPLER_SHARE * SIMPLER_SHARE

CONSISTENT, SAME, SWAPPED = 'consistent', 'same', 'swapped'
DIRECTION, ROTATION, POSE = 'direction', 'rotation', 'pose'
TOGETHER = ', or the two images were not taken together'


@dataclass(frozen=True)
class Finding:
    """What one frame says about the rig: a kind of fault and a sentence, empty when it agrees."""

    kind: str
    sentence: str = ''


class RigCheck:
    """Judges the first stereo frames; quiet from when most agree with the calibration.

    Args:
        settings: `stereo.epipolar_px` is the tolerance.
        rig: two cameras, a pair.
        matcher: of the features of the two.

    Raises:
        SettingsError: the rig has one camera, or two at one place.
    """

    def __init__(self, settings: Settings, rig: Rig, matcher: NearestNeighbourMatcher) -> None:
        if len(rig.cameras) < 2:
            raise SettingsError('sensor = stereo, but the rig has one camera')
        if rig.baseline_m == 0.0:
            raise SettingsError('sensor = stereo, but the cameras of the rig have no baseline')
        self._matcher = matcher
        self._first, self._second = rig.cameras[:2]
        poses = [torch.from_numpy(c.body_from_camera.copy()) for c in rig.cameras[:2]]
        self._second_from_first = se3.inverse(poses[1]) @ poses[0]
        self._focal = 0.5 * (self._first.focal_px + self._second.focal_px)
        self._tolerance = max(settings.stereo.epipolar_px, MIN_TOLERANCE_PX) / self._focal
        self.rearm()

    @property
    def fault(self) -> str:
        """The fault that is established, in one line; empty while there is none."""
        return self._established.sentence if self._established else ''

    def rearm(self) -> None:
        """Forget what was found and judge the next frames."""
        self._votes: deque[Finding] = deque(maxlen=VOTES)
        self._established: Finding | None = None
        self._settled = False
        self._fits = 0

    def offer(self, first: Observation, second_features: Features, second_plane: Tensor) -> str:
        """Judge one frame, until most agree with the calibration; a fault goes when they later do.

        Args:
            first: of the first view.
            second_features: M features of the second view.
            second_plane: (M, 2) their undistorted plane coordinates.

        Returns:
            `fault`, with this frame counted.
        """
        if self._settled:
            return self.fault
        finding = self._judge(first, second_features, second_plane)
        if finding is not None:
            self._votes.append(finding)
            self._count()
        return self.fault

    def _count(self) -> None:
        kind, count = Counter(finding.kind for finding in self._votes).most_common(1)[0]
        if count < MAJORITY:
            return
        self._settled = kind == CONSISTENT
        if self._established is None or self._established.kind != kind:
            self._established = next(f for f in reversed(self._votes) if f.kind == kind)

    def _judge(self, first: Observation, features: Features, plane: Tensor) -> Finding | None:
        """What this frame says, None where it says nothing."""
        if min(len(first), len(features)) < MIN_MATCHES:
            return None
        some = torch.linspace(0, len(first) - 1, min(MAX_FEATURES, len(first))).round().long()
        pairs = self._matcher.match([first.features.chosen(some), features]).keypoints
        if len(pairs) < MIN_MATCHES:
            return None
        left, right = some[pairs[:, 0]], pairs[:, 1]
        a, b = first.plane_xy[left], plane[right]
        given = agreement(self._second_from_first, a, b, self._tolerance)
        if given.explains:
            return Finding(CONSISTENT)
        if self._established is not None:  # known already: no need to find it again
            return self._established
        moved = first.features.keypoints_xy[left] - features.keypoints_xy[right]
        if float(moved.abs().median()) < SAME_IMAGE_PX:
            return Finding(SAME, 'both images come from the same camera')
        in_second, fine = camera_normalise(
            self._second, first.features.keypoints_xy[left].double()
        )
        in_first, good = camera_normalise(self._first, features.keypoints_xy[right].double())
        exchanged = agreement(
            self._second_from_first, in_first[fine & good], in_second[fine & good], self._tolerance
        )
        if exchanged.explains:
            unsure = (
                ', or the baseline has the wrong sign' if given.share >= EXPLAINED_SHARE else ''
            )
            return Finding(SWAPPED, f'left and right images are swapped{unsure}')
        return self._explain(a, b, given)

    def _explain(self, a: Tensor, b: Tensor, given: Agreement) -> Finding | None:
        """The simplest other pose of the second camera that explains the matches."""
        self._fits += 1
        self._settled = self._fits >= MAX_FITS
        fits: dict[str, tuple[Tensor, Agreement]] = {}
        best = 0.0
        for kind, fit in ((DIRECTION, fit_baseline), (ROTATION, fit_rotation), (POSE, fit_pose)):
            if kind == POSE and best >= GOOD_FIT_SHARE:
                break
            pose = fit(self._second_from_first, a, b, self._tolerance)
            seen = agreement(pose, a, b, self._tolerance)
            if not seen.behind_cameras:
                fits[kind] = pose, seen
                best = max(best, seen.share)
        if best < EXPLAINED_SHARE:
            return None
        fits = {k: found for k, found in fits.items() if found[1].share >= SIMPLER_SHARE * best}
        kind = next(iter(fits))
        if DIRECTION in fits and ROTATION in fits:
            # The scene does not tell a turned camera from a moved one.
            kind = ROTATION if self._rectified else POSE
        pose, seen = fits.get(kind, fits.get(ROTATION)) or fits[DIRECTION]
        return self._named(kind, pose, seen.near, (a, b), given)

    def _named(
        self,
        kind: str,
        pose: Tensor,
        inlier: Tensor,
        pair: tuple[Tensor, Tensor],
        given: Agreement,
    ) -> Finding | None:
        """The fault in words; None where it is too small to matter."""
        vertical = float((pair[0][inlier, 1] - pair[1][inlier, 1]).abs().median())
        offset = float(given.distance[inlier].median())
        if offset <= self._tolerance and not given.reversed_depth:
            return None
        centre, calibrated = centre_of(pose), centre_of(self._second_from_first)
        angle = math.degrees(math.acos(max(-1.0, min(1.0, float(centre @ calibrated)))))
        if kind == DIRECTION and angle >= MIN_BASELINE_ERROR_DEG:
            # One camera ahead of the other is a robot that moved between the two images.
            unsure = TOGETHER if int(centre.abs().argmax()) == 2 else ''
            return Finding(
                DIRECTION,
                "the baseline's direction contradicts the images: by them the second camera is "
                f'{side(centre)} the first one, by the calibration {side(calibrated)} it '
                f'({angle:.0f} deg apart){unsure}',
            )
        if self._rectified and vertical > self._tolerance:
            return Finding(
                ROTATION,
                'images are not rectified although the calibration says so '
                f'(median vertical offset {vertical * self._focal:.1f} px)',
            )
        symptom = f'median epipolar offset {offset * self._focal:.1f} px'
        if offset <= self._tolerance:
            symptom = f'{100 * given.behind / len(inlier):.0f} % of the points behind the cameras'
        return Finding(
            POSE,
            'the calibrated pose of the second camera contradicts the images '
            f'({symptom}){TOGETHER}',
        )

    @property
    def _rectified(self) -> bool:
        """Whether the calibration says that rows of the two images correspond."""
        pose = self._second_from_first
        # Vertical and forward parts of the baseline, which move rows against each other.
        level = float(pose[1:3, 3].norm()) < 0.01 * float(pose[:3, 3].norm())
        parallel = float(rotation_angle(pose[:3, :3])) < 1e-3
        return level and parallel and not any(self._first.distortion + self._second.distortion)


def side(direction: Tensor) -> str:
    """The side on which a direction in optical axes lies, in words."""
    axis = int(direction.abs().argmax())
    words = (('left of', 'right of'), ('above', 'below'), ('behind', 'ahead of'))[axis]
    return words[int(direction[axis] > 0)]
