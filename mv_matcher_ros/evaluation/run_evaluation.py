# SPDX-License-Identifier: Apache-2.0
"""All errors of one run against the truth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Trajectory
from mv_matcher_ros.errors import EvaluationError
from mv_matcher_ros.evaluation.association import (
    PosePairs,
    associate,
    coverage_of_frames,
    coverage_of_truth,
)
from mv_matcher_ros.evaluation.consistency import consistency
from mv_matcher_ros.evaluation.drift import drift_over_segments, short_segment_lengths
from mv_matcher_ros.evaluation.evaluation_result import EvaluationResult, FittedAlignment
from mv_matcher_ros.evaluation.run_data import RunData, load_run
from mv_matcher_ros.evaluation.table import TableRow
from mv_matcher_ros.evaluation.trajectory_error import (
    AbsoluteError,
    RelativeError,
    absolute_error,
    relative_error,
    spread_m,
)
from mv_matcher_ros.files.truth import read_truth

# A constant attitude difference beyond this, with a scatter far below it, is another body frame
# and no error; unless the positions fix the turn of the alignment no better.
OTHER_BODY_DEG = 20.0
# Positions that err by this share of their spread say nothing on the scale.
SCALELESS = 0.5
T = TypeVar('T')


def evaluate_run(
    run_dir: Path | str,
    truth: Trajectory | Path | str,
    align: FittedAlignment | None = None,
    *,
    max_difference_s: float = 0.01,
    interpolate: bool = False,
) -> EvaluationResult:
    """Evaluate a run folder against the truth.

    Args:
        run_dir: written by a run; a single TUM file does too (then the frames without a pose are
            unknown).
        truth: trajectory, or a file or folder with one (TUM, KITTI, EuRoC, TartanAir form).
        align: `se3`, `sim3`, or None for `sim3` exactly when the run has no metric scale.
        max_difference_s, interpolate: how poses find their truth, see `associate`.

    Raises:
        EvaluationError: nothing to compare.
        SourceError: a file is missing or damaged.
    """
    run = load_run(run_dir)
    if not isinstance(truth, Trajectory):
        truth = read_truth(truth, run.stamps_ns if run.has_frames else None)
    return evaluate_loaded_run(
        run, truth, align, max_difference_s=max_difference_s, interpolate=interpolate
    )


def evaluate_loaded_run(
    run: RunData,
    truth: Trajectory,
    align: FittedAlignment | None = None,
    *,
    max_difference_s: float = 0.01,
    interpolate: bool = False,
) -> EvaluationResult:
    """The same for a run already read; see `evaluate_run`."""
    if len(run.trajectory) == 0:
        raise EvaluationError(f'{run.folder}: {run.why_no_pose()}')
    return evaluate_trajectory(
        run.trajectory,
        truth,
        align or ('se3' if run.metric else 'sim3'),
        frame_stamps_ns=run.stamps_ns if run.has_frames else None,
        max_difference_s=max_difference_s,
        interpolate=interpolate,
    )


def evaluate_trajectory(
    estimate: Trajectory,
    truth: Trajectory,
    align: FittedAlignment = 'se3',
    *,
    frame_stamps_ns: NDArray[np.int64] | None = None,
    max_difference_s: float = 0.01,
    interpolate: bool = False,
) -> EvaluationResult:
    """All errors of `estimate` against `truth`.

    Args:
        estimate, truth: of the same body, in any two world frames.
        align: alignment of the headline error.
        frame_stamps_ns: (F,) stamps of all processed frames, for the coverage.
        max_difference_s, interpolate: see `associate`.

    Raises:
        EvaluationError: nothing to compare, or `sim3` asked for without motion.
    """
    pairs = associate(estimate, truth, max_difference_s=max_difference_s, interpolate=interpolate)
    notes = [f'{count} {reason}' for reason, count in pairs.ignored.items()]
    sim3 = _or_note(lambda: absolute_error(pairs, 'sim3'), notes)
    if align == 'sim3' and sim3 is None:
        raise EvaluationError(notes[-1])
    unscaled = _no_scale(pairs, sim3)
    if unscaled:
        notes.append(unscaled)
        sim3 = sim3 if align == 'sim3' else None
    scaled = pairs.scaled(sim3.scale) if align == 'sim3' and sim3 is not None else pairs
    if frame_stamps_ns is None:
        coverage, with_truth = coverage_of_truth(estimate, truth), len(truth)
    else:
        coverage, with_truth = coverage_of_frames(frame_stamps_ns, estimate, truth)
    drift = drift_over_segments(scaled)
    lengths = short_segment_lengths(pairs.path_m)
    short = drift_over_segments(scaled, lengths, 1) if drift.note and lengths else None
    nees = None
    if pairs.covariances is not None:
        nees = _or_note(lambda: consistency(scaled), notes)
    result = EvaluationResult(
        align=align,
        pairs=pairs,
        se3=absolute_error(pairs, 'se3'),
        sim3=sim3,
        origin=absolute_error(scaled, 'origin'),
        rpe=_relative_errors(scaled),
        drift=drift,
        drift_short=short,
        nees=nees,
        coverage=coverage,
        frames_with_truth=with_truth,
        path_m=pairs.path_m,
        notes=(),
    )
    notes.extend(_reading_notes(result))
    return EvaluationResult(**{**vars(result), 'notes': tuple(notes)})


def table_row(
    sequence: str, result: EvaluationResult, run: RunData | None = None, sensor: str = ''
) -> TableRow:
    """The row of one run for the table over several."""
    metric = result.align == 'se3' if run is None else run.metric
    return TableRow(
        sequence=sequence,
        sensor=sensor or (run.sensor if run else ''),
        frames=len(run.stamps_ns) if run and run.has_frames else len(result.pairs),
        path_m=result.path_m,
        coverage=result.coverage,
        ate_se3_m=result.se3.translation_m.rmse if metric else None,
        ate_sim3_m=None if result.sim3 is None else result.sim3.translation_m.rmse,
        scale=result.scale,
        t_rel_percent=result.drift.t_rel_percent,
        t_rel_note=result.drift.note,
        fps=run.fps if run else None,
        notes=result.notes,
    )


def _relative_errors(pairs: PosePairs) -> tuple[RelativeError, ...]:
    """Over 1 and 10 frames, and the largest of 0.1, 1, 10, 100 m that fits in three times."""
    errors = [relative_error(pairs, 1)]
    if len(pairs) > 20:
        errors.append(relative_error(pairs, 10))
    distance = next((d for d in (100.0, 10.0, 1.0, 0.1) if pairs.path_m >= 3 * d), None)
    if distance is not None:
        by_path = _or_note(lambda: relative_error(pairs, distance, 'm'), [])
        errors.extend([] if by_path is None else [by_path])
    return tuple(errors)


def _no_scale(pairs: PosePairs, sim3: AbsoluteError | None) -> str:
    """Why the scale of the Sim(3) alignment means nothing; empty where it does."""
    if sim3 is None:
        return ''
    error_m = sim3.translation_m.rmse
    motion_m = float(np.linalg.norm(spread_m(pairs.truth[:, :3, 3])))
    if error_m <= SCALELESS * motion_m:
        return ''
    return (
        f'no scale: after a Sim(3) alignment the positions err by {error_m:.2g} m and move by '
        f'{motion_m:.2g} m'
    )


def _reading_notes(result: EvaluationResult) -> list[str]:
    notes = []
    ate = result.ate
    rotation = ate.rotation_deg
    loose_deg = 2.0 * ate.loose_deg
    if rotation.mean > max(OTHER_BODY_DEG, loose_deg) and rotation.std < 0.1 * rotation.mean:
        notes.append(
            f'the attitudes differ by a constant {rotation.mean:.0f}°: truth and estimate are of '
            'different body frames, so attitude errors, relative errors and drift are not those '
            'of the estimate'
        )
    elif result.turned_deg is not None and rotation.mean > loose_deg:
        notes.append(
            f'aligned by the positions, all attitudes are {rotation.mean:.1f}° off, more than the '
            'path leaves open: truth and estimate may be of different body frames'
        )
    if result.align == 'se3' and result.scale is not None and abs(result.scale - 1.0) > 0.2:
        notes.append(
            f'the scale is off by {abs(result.scale - 1.0):.0%}: if the sensor is monocular, '
            'align with sim3'
        )
    return notes


def _or_note(compute: Callable[[], T], notes: list[str]) -> T | None:
    """What `compute` returns; or None, and the reason among the notes."""
    try:
        return compute()
    except EvaluationError as error:
        notes.append(str(error))
        return None
