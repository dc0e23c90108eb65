# SPDX-License-Identifier: Apache-2.0
"""Drift per distance travelled, by the rules of the KITTI odometry benchmark.

Source: Geiger et al., "Are we ready for Autonomous Driving?", CVPR 2012, and the published rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mv_matcher_ros.errors import EvaluationError
from mv_matcher_ros.evaluation.association import PosePairs, path_distances
from mv_matcher_ros.evaluation.poses import rotation_angle_rad
from mv_matcher_ros.evaluation.trajectory_error import relative_pose_errors

KITTI_LENGTHS_M = (100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 700.0, 800.0)
KITTI_STEP = 10  # the benchmark starts a segment at every tenth frame
# Errors of a few millimetres and tenths of a degree, which every frame has, become absurd figures
# per distance on shorter paths.
MIN_PATH_M = 2.0


@dataclass(frozen=True)
class SegmentError:
    """Drift over the segments of one length: means over `count` segments."""

    length_m: float
    t_rel_percent: float
    r_rel_deg_per_100m: float
    count: int


@dataclass(frozen=True)
class Drift:
    """Drift per distance travelled, by the rules of the KITTI odometry benchmark.

    Attributes:
        t_rel_percent, r_rel_deg_per_100m: means over all segments of all lengths; None when the
            path is shorter than the shortest segment.
        segments: one entry per length that fits into the path.
        note: why there is no number, e.g. `too short: …`; else empty.
    """

    t_rel_percent: float | None
    r_rel_deg_per_100m: float | None
    segments: tuple[SegmentError, ...]
    note: str


def drift_over_segments(
    pairs: PosePairs, lengths_m: Sequence[float] = KITTI_LENGTHS_M, step: int = KITTI_STEP
) -> Drift:
    """Drift of translation and rotation over segments of given lengths.

    A segment starts at every `step`-th pose and ends at the first pose farther along the truth's
    path than the length. Both errors are divided by the nominal length, as in the benchmark.

    Args:
        pairs: associated poses, already scaled where the scale is arbitrary.
        lengths_m: lengths of the segments; 100 … 800 m are the benchmark's, shorter ones are for
            short drives and not comparable with published figures.
        step: distance of two starts, in poses.

    Returns:
        The drift; without numbers and with a note where the path is shorter than the shortest
        segment.

    Raises:
        EvaluationError: a length or the step is not positive.
    """
    if step < 1 or not lengths_m or min(lengths_m) <= 0:
        raise EvaluationError('segments need positive lengths and a positive step')
    distance = path_distances(pairs.truth)
    starts = np.arange(0, len(pairs), step)
    segments: list[SegmentError] = []
    for length in lengths_m:
        ends = np.searchsorted(distance, distance[starts] + length, side='right')
        fits = ends < len(pairs)
        if not fits.any():
            continue
        errors = relative_pose_errors(pairs, starts[fits], ends[fits])
        translation = np.linalg.norm(errors[:, :3, 3], axis=1) / length
        rotation = np.rad2deg(rotation_angle_rad(errors)) / length
        segments.append(
            SegmentError(
                float(length),
                100.0 * float(translation.mean()),
                100.0 * float(rotation.mean()),
                int(fits.sum()),
            )
        )
    if not segments:
        shortest = f'{min(lengths_m):g} m'
        note = f'too short: the path is {distance[-1]:.1f} m, the shortest segment {shortest}'
        return Drift(None, None, (), note)
    counts = [segment.count for segment in segments]
    return Drift(
        float(np.average([s.t_rel_percent for s in segments], weights=counts)),
        float(np.average([s.r_rel_deg_per_100m for s in segments], weights=counts)),
        tuple(segments),
        '',
    )


def short_segment_lengths(path_m: float) -> tuple[float, ...]:
    """Lengths for short paths: 1 to 8 tenths of the largest 1, 2 or 5 × 10^n m below the path.

    None for a path below `MIN_PATH_M`.
    """
    if not path_m >= MIN_PATH_M:
        return ()
    power = 10.0 ** np.floor(np.log10(path_m))
    largest = max(factor * power for factor in (1.0, 2.0, 5.0) if factor * power <= path_m)
    return tuple(float(largest * share) for share in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8))


def rotation_drift(drift: Drift, deg_per_100m: float) -> str:
    """Rotation drift as text: per 100 m as the benchmark, per metre where segments are small."""
    if drift.segments[-1].length_m >= 10.0:
        return f'{deg_per_100m:.3g}° per 100 m'
    return f'{deg_per_100m / 100.0:.3g}° per m'
