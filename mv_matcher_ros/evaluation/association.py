# SPDX-License-Identifier: Apache-2.0
"""Which pose of the estimate belongs to which pose of the truth: by time, before all else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Array, Trajectory
from mv_matcher_ros.errors import EvaluationError
from mv_matcher_ros.evaluation.poses import interpolate_poses, with_exact_rotations
from mv_matcher_ros.files.stamps import pair_stamps

Association = Literal['nearest', 'interpolated']
MIN_POSES = 3  # an alignment of two points leaves the rotation about their line free


@dataclass(frozen=True)
class PosePairs:
    """Poses of truth and estimate at the same times.

    Attributes:
        stamps_ns: (N,) int64 stamps of the estimate, strictly increasing.
        truth: (N, 4, 4) world_from_body of the truth, metres.
        estimate: (N, 4, 4) odom_from_body of the estimate, in its own units.
        covariances: (N, 6, 6) of the estimate as in `Estimate.covariance`, or None.
        method: `nearest`: each estimate with the truth pose nearest in time; `interpolated`: with
            the truth interpolated at its stamp.
        max_difference_s: largest time difference between a pose and its partner, 0 when
            interpolated.
        ignored: poses that could not be used, by reason.
    """

    stamps_ns: NDArray[np.int64]
    truth: Array
    estimate: Array
    covariances: Array | None
    method: Association
    max_difference_s: float
    ignored: dict[str, int]

    def __len__(self) -> int:
        return int(self.stamps_ns.shape[0])

    @property
    def path_m(self) -> float:
        """Length of the truth's path through the compared poses, metres."""
        return float(path_distances(self.truth)[-1])

    def scaled(self, scale: float) -> PosePairs:
        """The same pairs with the estimate's lengths (and covariances) multiplied by `scale`."""
        estimate = self.estimate.copy()
        estimate[:, :3, 3] *= scale
        covariances = self.covariances
        if covariances is not None:
            units = np.array([scale] * 3 + [1.0] * 3)
            covariances = covariances * np.outer(units, units)
        return PosePairs(
            self.stamps_ns,
            self.truth,
            estimate,
            covariances,
            self.method,
            self.max_difference_s,
            self.ignored,
        )


def path_distances(poses: Array) -> Array:
    """(N,) distance travelled up to each of (N, 4, 4) poses; the first is 0."""
    steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    return np.concatenate([[0.0], np.cumsum(steps)])


def associate(
    estimate: Trajectory,
    truth: Trajectory,
    *,
    max_difference_s: float = 0.01,
    interpolate: bool = False,
    max_gap_s: float = 0.1,
) -> PosePairs:
    """Pair the poses of an estimate with those of the truth by time.

    Args:
        estimate, truth: trajectories of the same body; poses that are not finite are left out and
            counted.
        max_difference_s: largest time difference of a pair. Pairs are mutual nearest neighbours in
            time, so no pose is used twice, whichever trajectory is the denser one.
        interpolate: compare with the truth interpolated at the estimate's stamps (along the
            screw motion between its poses) instead; right when the truth has a higher rate.
        max_gap_s: the truth is not interpolated over gaps longer than this.

    Returns:
        The pairs in order of time.

    Raises:
        EvaluationError: no time in common, fewer than 3 pairs, or stamps that do not increase.
    """
    ignored: dict[str, int] = {}
    estimate = _usable(estimate, 'estimate', ignored)
    truth = _usable(truth, 'truth', ignored)
    if interpolate:
        chosen, partners = _interpolated(estimate, truth, round(max_gap_s * 1e9))
        limit = f'inside gaps of the truth of at most {max_gap_s:g} s'
        method: Association = 'interpolated'
        difference_s = 0.0
    else:
        found = pair_stamps(estimate.stamps_ns, truth.stamps_ns, round(max_difference_s * 1e9))
        chosen, indices = np.array(found, dtype=np.int64).reshape(-1, 2).T
        partners = truth.world_from_body[indices]
        limit = f'within {max_difference_s:g} s'
        method = 'nearest'
        apart_ns = np.abs(estimate.stamps_ns[chosen] - truth.stamps_ns[indices])
        difference_s = float(apart_ns.max()) * 1e-9 if len(chosen) else 0.0
    if len(chosen) < MIN_POSES:
        raise EvaluationError(_too_few(estimate, truth, len(chosen), limit))
    covariances = None if estimate.covariances is None else estimate.covariances[chosen]
    return PosePairs(
        estimate.stamps_ns[chosen],
        with_exact_rotations(partners),
        with_exact_rotations(estimate.world_from_body[chosen]),
        covariances,
        method,
        difference_s,
        ignored,
    )


def coverage_of_frames(
    frame_stamps_ns: NDArray[np.int64],
    estimate: Trajectory,
    truth: Trajectory,
    max_gap_s: float = 0.1,
) -> tuple[float, int]:
    """Share of the frames for which truth exists that also have a pose.

    Args:
        frame_stamps_ns: (F,) stamps of every processed frame, with or without a pose.
        estimate, truth: trajectories; a frame counts as covered by the truth when a truth pose
            lies within `max_gap_s` of it, and as answered when the estimate holds a finite pose
            with its stamp.

    Returns:
        The share in [0, 1] (0 when no frame has truth) and the number of frames with truth.
    """
    known: dict[str, int] = {}
    truth_ns = _usable(truth, 'truth', known).stamps_ns
    posed_ns = _usable(estimate, 'estimate', known).stamps_ns
    frames = np.asarray(frame_stamps_ns, dtype=np.int64)
    with_truth = frames[_distance_to_nearest(frames, truth_ns) <= max_gap_s * 1e9]
    if len(with_truth) == 0:
        return 0.0, 0
    # Stamps pass through text files with 6 to 9 decimals: equal means equal to the microsecond.
    answered = _distance_to_nearest(with_truth, posed_ns) <= 1000
    return float(answered.mean()), len(with_truth)


def coverage_of_truth(estimate: Trajectory, truth: Trajectory) -> float:
    """Share of the truth's poses with an estimate near in time, where the frames are not known.

    Near means within 1.5 of the median interval of the sparser trajectory, which bridges the
    normal distance of two poses and no missing one.
    """
    ignored: dict[str, int] = {}
    estimate_ns = _usable(estimate, 'estimate', ignored).stamps_ns
    truth_ns = _usable(truth, 'truth', ignored).stamps_ns
    if len(estimate_ns) < 2 or len(truth_ns) < 2:
        return 0.0
    interval = max(float(np.median(np.diff(stamps))) for stamps in (estimate_ns, truth_ns))
    # Half an interval lies between a truth pose and its nearest estimate at most, if none is
    # missing.
    return float((_distance_to_nearest(truth_ns, estimate_ns) <= 0.75 * interval).mean())


def _usable(trajectory: Trajectory, name: str, ignored: dict[str, int]) -> Trajectory:
    stamps = np.asarray(trajectory.stamps_ns, dtype=np.int64)
    poses = np.asarray(trajectory.world_from_body, dtype=np.float64)
    if poses.shape != (len(stamps), 4, 4):
        raise EvaluationError(f'{name}: {len(stamps)} stamps but poses of shape {poses.shape}')
    if len(stamps) == 0:
        raise EvaluationError(f'the {name} holds no poses')
    if (np.diff(stamps) <= 0).any():
        row = int(np.argmax(np.diff(stamps) <= 0)) + 1
        raise EvaluationError(
            f'{name}: stamps must increase, but pose {row} ({stamps[row] * 1e-9:.6f} s) is not '
            f'after pose {row - 1} ({stamps[row - 1] * 1e-9:.6f} s); sort the file'
        )
    finite = np.isfinite(poses).all(axis=(1, 2))
    if finite.all():
        return trajectory
    ignored[f'{name} poses that are not finite'] = int((~finite).sum())
    covariances = trajectory.covariances
    return Trajectory(
        stamps[finite], poses[finite], None if covariances is None else covariances[finite]
    )


def _nearest(query_ns: NDArray[np.int64], stamps_ns: NDArray[np.int64]) -> NDArray[np.int64]:
    """(Q,) index of the nearest of the sorted (S,) stamps, the earlier one on a tie."""
    after = np.clip(np.searchsorted(stamps_ns, query_ns), 0, len(stamps_ns) - 1)
    before = np.maximum(after - 1, 0)
    earlier = np.abs(query_ns - stamps_ns[before]) <= np.abs(stamps_ns[after] - query_ns)
    return np.where(earlier, before, after).astype(np.int64)


def _distance_to_nearest(
    query_ns: NDArray[np.int64], stamps_ns: NDArray[np.int64]
) -> NDArray[np.int64]:
    if len(stamps_ns) == 0:
        return np.full(len(query_ns), np.iinfo(np.int64).max)
    return np.abs(query_ns - stamps_ns[_nearest(query_ns, stamps_ns)])


def _interpolated(
    estimate: Trajectory, truth: Trajectory, max_gap_ns: int
) -> tuple[NDArray[np.int64], Array]:
    if len(truth) < 2 or len(estimate) == 0:
        return np.zeros(0, np.int64), np.zeros((0, 4, 4))
    stamps, times = estimate.stamps_ns, truth.stamps_ns
    upper = np.clip(np.searchsorted(times, stamps), 1, len(times) - 1)
    gap = times[upper] - times[upper - 1]
    inside = (stamps >= times[0]) & (stamps <= times[-1])
    on_pose = (stamps == times[upper]) | (stamps == times[upper - 1])  # exact in any gap
    chosen = np.flatnonzero(inside & ((gap <= max_gap_ns) | on_pose))
    lower, upper = upper[chosen] - 1, upper[chosen]
    share = (stamps[chosen] - times[lower]) / (times[upper] - times[lower])
    poses = truth.world_from_body
    return chosen, interpolate_poses(poses[lower], poses[upper], share)


def _too_few(estimate: Trajectory, truth: Trajectory, found: int, limit: str) -> str:
    spans = []
    for name, trajectory in (('estimate', estimate), ('truth', truth)):
        stamps = trajectory.stamps_ns
        span = f'{stamps[0] * 1e-9:.3f} to {stamps[-1] * 1e-9:.3f} s' if len(stamps) else 'empty'
        spans.append(f'{name}: {len(stamps)} poses, {span}')
    what = 'no poses' if found == 0 else f'only {found} of at least {MIN_POSES} poses'
    return f'{what} in common {limit} ({"; ".join(spans)}); are both in the same clock?'
