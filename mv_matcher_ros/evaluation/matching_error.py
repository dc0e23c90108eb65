# SPDX-License-Identifier: Apache-2.0
"""How good matches and the pose from them are on image pairs with known relative pose.

Source of the measures: Sarlin et al., "SuperGlue: Learning Feature Matching with Graph Neural
Networks", CVPR 2020, section 5.2 and its supplement (precision, matching score, pose error AUC).
Percentages are in percent, as in the published tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.errors import EvaluationError
from mv_matcher_ros.evaluation.poses import rotation_angle_rad

EPIPOLAR_THRESHOLD = 1e-4  # squared, in units of the normalised image plane
AUC_THRESHOLDS_DEG = (5.0, 10.0, 20.0)


@dataclass(frozen=True)
class PoseError:
    """Angular error of an estimated relative pose; infinite in both when there is no estimate.

    Attributes:
        rotation_deg: angle of the rotation between estimate and truth.
        translation_deg: angle between the directions of translation, the sign of the estimate
            ignored unless asked for; 0 when the truth has no translation, whose direction is then
            undefined.
    """

    rotation_deg: float
    translation_deg: float

    @property
    def pose_deg(self) -> float:
        """The larger of both: what the AUC is taken of."""
        return max(self.rotation_deg, self.translation_deg)


NO_POSE = PoseError(float('inf'), float('inf'))


@dataclass(frozen=True)
class PairResult:
    """What was found on one pair.

    Attributes:
        names: of the two images.
        pose: error of the pose estimated from the matches, `NO_POSE` without one.
        matches: number of matches.
        correct: matches whose symmetric epipolar distance is below the threshold.
        keypoints: keypoints detected in the first image.
    """

    names: tuple[str, str]
    pose: PoseError
    matches: int
    correct: int
    keypoints: int

    @property
    def precision_percent(self) -> float:
        """Share of the matches that are correct, 0 without matches."""
        return 100.0 * self.correct / self.matches if self.matches else 0.0

    @property
    def matching_score_percent(self) -> float:
        """Share of the first image's keypoints that are matched correctly, 0 without keypoints."""
        return 100.0 * self.correct / self.keypoints if self.keypoints else 0.0


@dataclass(frozen=True)
class Percentiles:
    """Mean, median and 90th percentile in degrees, over the pairs that have a pose."""

    mean: float
    median: float
    p90: float


@dataclass(frozen=True)
class MatchingSummary:
    """Measures over many pairs.

    Attributes:
        auc_percent: threshold in degrees → area under the curve of recall over pose error up to
            it, percent.
        precision_percent, matching_score_percent: means over the pairs.
        matches: mean number of matches a pair.
        pairs, failed: number of pairs, and of those without a pose.
        wrong: number of poses whose error is above the largest threshold.
        rotation_deg, translation_deg: over the pairs with a pose.
        solver: which pose solver made the poses.
    """

    auc_percent: dict[float, float]
    precision_percent: float
    matching_score_percent: float
    matches: float
    pairs: int
    failed: int
    wrong: int
    rotation_deg: Percentiles
    translation_deg: Percentiles
    solver: str

    def to_json(self) -> dict[str, Any]:
        """Plain data with the keys that scripts rely on; numbers that do not exist are None."""
        return {
            'auc': {f'{threshold:g}': value for threshold, value in self.auc_percent.items()},
            'precision': self.precision_percent,
            'matching_score': self.matching_score_percent,
            'matches': self.matches,
            'pairs': self.pairs,
            'failed': self.failed,
            'wrong': self.wrong,
            'rotation_deg': _without_nan(asdict(self.rotation_deg)),
            'translation_deg': _without_nan(asdict(self.translation_deg)),
            'solver': self.solver,
        }


def essential_from_pose(b_from_a: Array) -> Array:
    """(3, 3) essential matrix E with x_b^T E x_a = 0, of a (4, 4) pose, its baseline made 1.

    Raises:
        EvaluationError: no translation, so there are no epipolar lines.
    """
    translation = b_from_a[:3, 3]
    length = float(np.linalg.norm(translation))
    if not length > 0:
        raise EvaluationError('two views without a baseline have no epipolar lines')
    x, y, z = translation / length
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return cross @ b_from_a[:3, :3]


def symmetric_epipolar_distance(points_a: Array, points_b: Array, b_from_a: Array) -> Array:
    """Squared distances of matches from their epipolar lines, summed over both images.

    Args:
        points_a, points_b: (N, 2) matched points, undistorted and normalised (K^-1 applied).
        b_from_a: (4, 4) true pose, X_b = b_from_a X_a.

    Returns:
        (N,) in squared units of the normalised image plane; inf where a point is an epipole.
    """
    if points_a.shape != points_b.shape or points_a.ndim != 2 or points_a.shape[1] != 2:
        raise EvaluationError(
            f'matched points need two (N, 2) arrays, not {points_a.shape} and {points_b.shape}'
        )
    essential = essential_from_pose(b_from_a)
    a, b = (np.column_stack([points, np.ones(len(points))]) for points in (points_a, points_b))
    lines_b, lines_a = a @ essential.T, b @ essential
    product = np.einsum('ni,ni->n', b, lines_b) ** 2
    norms = [np.sum(lines[:, :2] ** 2, axis=1) for lines in (lines_a, lines_b)]
    with np.errstate(divide='ignore', invalid='ignore'):
        distance = product / norms[0] + product / norms[1]
    return np.where(np.isnan(distance), np.inf, distance)


def epipolar_correct(
    points_a: Array, points_b: Array, b_from_a: Array, threshold: float = EPIPOLAR_THRESHOLD
) -> NDArray[np.bool_]:
    """(N,) bool, where the symmetric epipolar distance is below `threshold`; see there."""
    return symmetric_epipolar_distance(points_a, points_b, b_from_a) < threshold


def pose_error(estimated: Array | None, truth: Array, *, signed: bool = False) -> PoseError:
    """Angular errors of a relative pose.

    Args:
        estimated: (4, 4) b_from_a, translation of any length, or None when the solver found none.
        truth: (4, 4) b_from_a.
        signed: count a reversed translation as 180°; published figures do not, since the essential
            matrix alone does not know the sign.
    """
    if estimated is None or not np.isfinite(estimated).all():
        return NO_POSE
    rotation = float(np.rad2deg(rotation_angle_rad(truth[:3, :3].T @ estimated[:3, :3])))
    true, found = truth[:3, 3], estimated[:3, 3]
    if not np.linalg.norm(true) > 0:
        return PoseError(rotation, 0.0)
    if not np.linalg.norm(found) > 0:  # a direction was asked for and none was given
        return PoseError(rotation, 180.0 if signed else 90.0)
    # atan2 keeps small angles exact, where arccos loses half of the digits.
    angle = float(np.rad2deg(np.arctan2(np.linalg.norm(np.cross(true, found)), true @ found)))
    return PoseError(rotation, angle if signed else min(angle, 180.0 - angle))


def pose_auc(errors_deg: Sequence[float], threshold_deg: float) -> float:
    """Area under the curve of recall over error up to `threshold_deg`, percent of the largest.

    The curve joins (0, 0) and the points (i-th smallest error, i / N) by straight lines and stays
    level from the last point to the threshold. Pairs without a pose count with infinite error.

    Raises:
        EvaluationError: no errors, NaN among them, or a threshold that is not positive.
    """
    errors = np.sort(np.asarray(errors_deg, dtype=np.float64))
    if errors.size == 0 or np.isnan(errors).any() or not threshold_deg > 0:
        raise EvaluationError(
            f'no AUC of {errors.size} errors up to {threshold_deg:g}°, '
            f'{int(np.isnan(errors).sum())} of them not a number'
        )
    inside = errors[errors < threshold_deg]
    recall = np.arange(len(inside) + 1) / errors.size
    x = np.concatenate([[0.0], inside, [threshold_deg]])
    y = np.concatenate([recall, recall[-1:]])
    area = float(np.sum(0.5 * (y[1:] + y[:-1]) * np.diff(x)))
    return 100.0 * area / threshold_deg


def summarise_pairs(
    results: Sequence[PairResult],
    solver: str,
    thresholds_deg: Sequence[float] = AUC_THRESHOLDS_DEG,
) -> MatchingSummary:
    """Measures over all pairs.

    Raises:
        EvaluationError: no pairs.
    """
    if not results:
        raise EvaluationError('no pairs to summarise')
    errors = [result.pose.pose_deg for result in results]
    found = [result.pose for result in results if np.isfinite(result.pose.pose_deg)]
    return MatchingSummary(
        auc_percent={float(t): pose_auc(errors, t) for t in thresholds_deg},
        precision_percent=float(np.mean([r.precision_percent for r in results])),
        matching_score_percent=float(np.mean([r.matching_score_percent for r in results])),
        matches=float(np.mean([r.matches for r in results])),
        pairs=len(results),
        failed=len(results) - len(found),
        wrong=sum(pose.pose_deg > max(thresholds_deg) for pose in found),
        rotation_deg=_percentiles([pose.rotation_deg for pose in found]),
        translation_deg=_percentiles([pose.translation_deg for pose in found]),
        solver=solver,
    )


def _percentiles(values: Sequence[float]) -> Percentiles:
    if not values:
        return Percentiles(float('nan'), float('nan'), float('nan'))
    median, p90 = np.percentile(values, [50.0, 90.0])
    return Percentiles(float(np.mean(values)), float(median), float(p90))


def _without_nan(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if np.isfinite(value) else None for name, value in values.items()}
