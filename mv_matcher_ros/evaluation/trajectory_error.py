# SPDX-License-Identifier: Apache-2.0
"""Errors of a trajectory against the truth: absolute (ATE) and relative (RPE).

Sources: Sturm et al., "A Benchmark for the Evaluation of RGB-D SLAM Systems", IROS
2012; alignment: Umeyama, PAMI 13(4), 1991.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.errors import EvaluationError
from mv_matcher_ros.evaluation.association import PosePairs, path_distances
from mv_matcher_ros.evaluation.poses import (
    align_attitudes,
    align_positions,
    invert,
    rotation_angle_rad,
)

Alignment = Literal['se3', 'sim3', 'origin']
# Standard deviation across the main direction below this share of that along it: the positions lie
# on a line.
LINE_RATIO = 1e-3


@dataclass(frozen=True)
class ErrorStatistics:
    """Statistics of N >= 1 errors, in the errors' unit; `std` is that of the population."""

    rmse: float
    mean: float
    median: float
    std: float
    min: float
    max: float
    p95: float
    count: int

    @staticmethod
    def of(errors: Array) -> ErrorStatistics:
        """Statistics of (N,) errors.

        Raises:
            EvaluationError: no errors, or one that is not finite.
        """
        values = np.asarray(errors, dtype=np.float64)
        if values.size == 0 or not np.isfinite(values).all():
            raise EvaluationError(f'no statistics of {values.size} errors, or one is not finite')
        return ErrorStatistics(
            rmse=float(np.sqrt(np.mean(values**2))),
            mean=float(values.mean()),
            median=float(np.median(values)),
            std=float(values.std()),
            min=float(values.min()),
            max=float(values.max()),
            p95=float(np.percentile(values, 95.0)),
            count=int(values.size),
        )


@dataclass(frozen=True)
class AbsoluteError:
    """Absolute trajectory error after one alignment of the whole estimate.

    Attributes:
        alignment: `se3`: least squares over rotation and translation; `sim3`: and scale; `origin`:
            the first common poses made equal.
        scale: factor the estimate's lengths were multiplied by (1 but for sim3).
        truth_from_odom: (4, 4) rigid transform applied after scaling.
        translation_m, rotation_deg: statistics over the poses.
        attitude_deg: the rotation after the attitudes were aligned by themselves. The positions of
            a short or straight path fix the turn of the alignment badly, and the error of that is
            in every `rotation_deg`, but not in this. (`origin`: equal to `rotation_deg`.)
        loose_deg: how well the positions fix that turn: the position error as an angle seen across
            the path, 90 where they lie on a line or err as much as they move; 0 for `origin`.
        stamps_ns: (N,) of the compared poses.
        translation_errors_m, attitude_errors_deg: (N,) error of each pose.
    """

    alignment: Alignment
    scale: float
    truth_from_odom: Array
    translation_m: ErrorStatistics
    rotation_deg: ErrorStatistics
    attitude_deg: ErrorStatistics
    loose_deg: float
    stamps_ns: NDArray[np.int64]
    translation_errors_m: Array
    attitude_errors_deg: Array


@dataclass(frozen=True)
class RelativeError:
    """Relative pose error over pairs of a fixed distance.

    Attributes:
        delta, unit: the distance, in `frames` of the compared poses or in `m` of the truth's path.
        translation_m, rotation_deg: statistics over the pairs.
        skipped: pairs left out because they span a gap in time.
    """

    delta: float
    unit: Literal['frames', 'm']
    translation_m: ErrorStatistics
    rotation_deg: ErrorStatistics
    skipped: int


def align(pairs: PosePairs, alignment: Alignment) -> tuple[float, Array]:
    """Scale and rigid (4, 4) truth_from_odom that bring the estimate onto the truth.

    Raises:
        EvaluationError: `sim3` of an estimate or a truth that does not move: there is no scale.
    """
    if alignment == 'origin':
        return 1.0, pairs.truth[0] @ invert(pairs.estimate[0])
    source, target = pairs.estimate[:, :3, 3], pairs.truth[:, :3, 3]
    if alignment == 'sim3':
        for name, points in (('estimate', source), ('truth', target)):
            if spread_m(points)[0] < 1e-9:
                raise EvaluationError(f'the {name} does not move, so no scale can be aligned')
    return align_positions(source, target, alignment == 'sim3')


def absolute_error(pairs: PosePairs, alignment: Alignment) -> AbsoluteError:
    """Absolute trajectory error of position and attitude after alignment.

    Args:
        pairs: associated poses.
        alignment: see `AbsoluteError`.

    Raises:
        EvaluationError: the alignment does not exist (sim3 without motion).
    """
    scale, truth_from_odom = align(pairs, alignment)
    aligned = truth_from_odom @ pairs.scaled(scale).estimate
    translation = np.linalg.norm(aligned[:, :3, 3] - pairs.truth[:, :3, 3], axis=1)
    rotation = _angles_deg(aligned, pairs.truth)
    position = ErrorStatistics.of(translation)
    attitude, loose_deg = rotation, 0.0
    if alignment != 'origin':
        attitude = _angles_deg(align_attitudes(pairs.estimate, pairs.truth), pairs.truth)
        loose_deg = _loose_deg(position.rmse, spread_m(pairs.truth[:, :3, 3]))
    return AbsoluteError(
        alignment=alignment,
        scale=scale,
        truth_from_odom=truth_from_odom,
        translation_m=position,
        rotation_deg=ErrorStatistics.of(rotation),
        attitude_deg=ErrorStatistics.of(attitude),
        loose_deg=loose_deg,
        stamps_ns=pairs.stamps_ns,
        translation_errors_m=translation,
        attitude_errors_deg=attitude,
    )


def _angles_deg(estimate: Array, truth: Array) -> Array:
    """(N,) angle between two attitudes."""
    return np.rad2deg(rotation_angle_rad(invert(truth) @ estimate))


def _loose_deg(error_m: float, spread: Array) -> float:
    across_m = float(np.hypot(spread[1], spread[2]))
    if across_m <= max(LINE_RATIO * spread[0], 1e-12):
        return 90.0
    return min(90.0, float(np.rad2deg(error_m / across_m)))


def relative_error(
    pairs: PosePairs,
    delta: float,
    unit: Literal['frames', 'm'] = 'frames',
    *,
    tolerance: float = 0.1,
    max_duration_ratio: float = 1.5,
) -> RelativeError:
    """Relative pose error, over every pair of poses `delta` apart.

    Args:
        pairs: associated poses, already scaled where the scale is arbitrary.
        delta: distance of a pair, in compared frames or metres of the truth's path.
        unit: of `delta`.
        tolerance: metres only: a pair is used if its path length is within this share of `delta`.
        max_duration_ratio: frames only: pairs lasting longer than this times their median span a
            gap (poses missing between them), so they are no `delta`-frame pairs; they are left out
            and counted.

    Raises:
        EvaluationError: `delta` is not positive, or no pair is that far apart.
    """
    if not delta > 0 or (unit == 'frames' and delta != int(delta)):
        raise EvaluationError(f'relative error over {delta:g} {unit}: not a positive distance')
    first, last = (
        _pairs_by_frames(len(pairs), int(delta))
        if unit == 'frames'
        else _pairs_by_path(path_distances(pairs.truth), delta, tolerance * delta)
    )
    skipped = 0
    if unit == 'frames' and len(first):
        duration = pairs.stamps_ns[last] - pairs.stamps_ns[first]
        kept = duration <= max_duration_ratio * np.median(duration)
        skipped = int((~kept).sum())
        first, last = first[kept], last[kept]
    if len(first) == 0:
        raise EvaluationError(
            f'no two of {len(pairs)} poses ({pairs.path_m:.1f} m) are {delta:g} {unit} apart'
        )
    errors = relative_pose_errors(pairs, first, last)
    return RelativeError(
        delta=float(delta),
        unit=unit,
        translation_m=ErrorStatistics.of(np.linalg.norm(errors[:, :3, 3], axis=1)),
        rotation_deg=ErrorStatistics.of(np.rad2deg(rotation_angle_rad(errors))),
        skipped=skipped,
    )


def relative_pose_errors(
    pairs: PosePairs, first: NDArray[np.int64], last: NDArray[np.int64]
) -> Array:
    """(K, 4, 4) (truth motion)^-1 (estimated motion), Sturm et al. equation 1."""
    truth = invert(pairs.truth[first]) @ pairs.truth[last]
    estimate = invert(pairs.estimate[first]) @ pairs.estimate[last]
    return invert(truth) @ estimate


def _pairs_by_frames(count: int, delta: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    first = np.arange(max(count - delta, 0))
    return first, first + delta


def _pairs_by_path(
    distance: Array, delta_m: float, tolerance_m: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each pose the later one nearest to `delta_m` along the path, within the tolerance."""
    first = np.arange(len(distance) - 1)
    goal = distance[first] + delta_m
    after = np.clip(np.searchsorted(distance, goal), first + 1, len(distance) - 1)
    before = np.maximum(after - 1, first + 1)
    nearer_before = np.abs(distance[before] - goal) <= np.abs(distance[after] - goal)
    last = np.where(nearer_before, before, after)
    kept = np.abs(distance[last] - goal) <= tolerance_m
    return first[kept], last[kept]


def spread_m(points: Array) -> Array:
    """(3,) standard deviations along the principal axes, largest first."""
    centred = points - points.mean(axis=0)
    return np.linalg.svd(centred, compute_uv=False) / np.sqrt(len(points))
