# SPDX-License-Identifier: Apache-2.0
"""What an evaluation found, in one result with stable JSON keys."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from mv_matcher_ros.evaluation.association import PosePairs
from mv_matcher_ros.evaluation.consistency import AXES, Consistency
from mv_matcher_ros.evaluation.drift import MIN_PATH_M, Drift
from mv_matcher_ros.evaluation.trajectory_error import AbsoluteError, RelativeError

FittedAlignment = Literal['se3', 'sim3']
# Worth a word: rotation errors this much larger than after aligning the attitudes themselves.
TURN_RATIO, TURN_DEG = 3.0, 1.0


@dataclass(frozen=True)
class EvaluationResult:
    """What a run is worth against the truth.

    Attributes:
        align: alignment of the headline error; with `sim3` the relative errors and drifts are also
            taken after multiplying the estimate by `scale`.
        pairs: the compared poses.
        se3, sim3, origin: absolute errors after each alignment; `sim3` is None without motion, or
            (unless it is asked for) with one no larger than the error.
        rpe: relative errors over frames and metres, for the distances that the path has.
        drift: t_rel and r_rel over 100 … 800 m.
        drift_short: the same over segments as short as the path asks for; only where `drift` has
            no numbers and the path is not below `MIN_PATH_M`.
        nees: consistency of the covariance, None without covariances.
        coverage, frames_with_truth: share of the frames with truth that have a pose, and their
            number; without a list of frames, of the truth's poses.
        path_m: length of the truth's path through the compared poses.
        notes: what a reader must know to read the numbers right.
    """

    align: FittedAlignment
    pairs: PosePairs
    se3: AbsoluteError
    sim3: AbsoluteError | None
    origin: AbsoluteError
    rpe: tuple[RelativeError, ...]
    drift: Drift
    drift_short: Drift | None
    nees: Consistency | None
    coverage: float
    frames_with_truth: int
    path_m: float
    notes: tuple[str, ...]

    @property
    def ate(self) -> AbsoluteError:
        """The absolute error after the chosen alignment."""
        if self.align == 'sim3':
            assert self.sim3 is not None, 'sim3 is only chosen where it exists'
            return self.sim3
        return self.se3

    @property
    def scale(self) -> float | None:
        """Estimate × scale = truth, from the Sim(3) alignment; None without motion."""
        return None if self.sim3 is None else self.sim3.scale

    @property
    def turned_deg(self) -> float | None:
        """The rotation error after aligning the positions, where that turn makes up most of it."""
        rotation_deg = self.ate.rotation_deg.rmse
        most = rotation_deg > max(TURN_DEG, TURN_RATIO * self.ate.attitude_deg.rmse)
        return rotation_deg if most else None

    @property
    def percent_of_path(self) -> float | None:
        """The absolute error in percent of the path; None where the path is too short for it."""
        if self.path_m < MIN_PATH_M:
            return None
        return 100.0 * self.ate.translation_m.rmse / self.path_m

    def to_json(self) -> dict[str, Any]:
        """Plain data; scripts may rely on the first seven keys. Metres and degrees."""
        ate = {
            name: error and _absolute_json(error)
            for name, error in (('se3', self.se3), ('sim3', self.sim3), ('origin', self.origin))
        }
        return {
            'ate_rmse_m': self.ate.translation_m.rmse,
            'scale': self.scale,
            'coverage': self.coverage,
            'rpe': {_relative_name(error): _relative_json(error) for error in self.rpe},
            't_rel_percent': self.drift.t_rel_percent,
            'r_rel_deg_per_100m': self.drift.r_rel_deg_per_100m,
            'nees': self.nees and consistency_json(self.nees),
            'align': self.align,
            'ate': ate,
            'drift': _drift_json(self.drift),
            'drift_short': self.drift_short and _drift_json(self.drift_short),
            'path_m': self.path_m,
            'poses': len(self.pairs),
            'frames_with_truth': self.frames_with_truth,
            'association': {
                'method': self.pairs.method,
                'max_difference_s': self.pairs.max_difference_s,
                'ignored': self.pairs.ignored,
            },
            'notes': list(self.notes),
        }


def _relative_name(error: RelativeError) -> str:
    return f'{error.delta:g}_{error.unit}'


def _relative_json(error: RelativeError) -> dict[str, Any]:
    return {
        'translation_rmse_m': error.translation_m.rmse,
        'rotation_rmse_deg': error.rotation_deg.rmse,
        'translation_m': asdict(error.translation_m),
        'rotation_deg': asdict(error.rotation_deg),
        'skipped': error.skipped,
    }


def _absolute_json(error: AbsoluteError) -> dict[str, Any]:
    return {
        'translation_m': asdict(error.translation_m),
        'rotation_deg': asdict(error.rotation_deg),
        'attitude_deg': asdict(error.attitude_deg),
        'scale': error.scale,
        'truth_from_odom': error.truth_from_odom.tolist(),
    }


def _drift_json(drift: Drift) -> dict[str, Any]:
    # A list, so that what is read back from a file equals what was written.
    return {**asdict(drift), 'segments': [asdict(segment) for segment in drift.segments]}


def consistency_json(found: Consistency) -> dict[str, Any]:
    """Plain data of a consistency."""
    return {
        'nees_per_dof': found.nees_per_dof,
        'bounds_per_dof': list(found.bounds_per_dof),
        'verdict': found.verdict,
        'share_inside_95': found.share_inside,
        'translation_per_dof': found.translation_per_dof,
        'rotation_per_dof': found.rotation_per_dof,
        'motions': len(found.nees),
        'delta_frames': found.delta,
        'unusable': found.unusable,
        'coverage_sigma': {
            str(width + 1): dict(zip(AXES, row.tolist(), strict=True))
            for width, row in enumerate(found.coverage)
        },
        'nll': found.nll,
        'nll_constant': found.nll_constant,
    }
