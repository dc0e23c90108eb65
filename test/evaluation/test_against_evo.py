# SPDX-License-Identifier: Apache-2.0
"""The same numbers as evo's on the same trajectories, to 1e-9."""

from __future__ import annotations

import numpy as np
import pytest
from evo.core import lie_algebra, metrics, sync
from evo.core.trajectory import PoseTrajectory3D
from evo.core.units import Unit

from mv_matcher_ros.datatypes import Trajectory
from mv_matcher_ros.evaluation.association import associate
from mv_matcher_ros.evaluation.drift import KITTI_LENGTHS_M, drift_over_segments
from mv_matcher_ros.evaluation.trajectory_error import (
    ErrorStatistics,
    absolute_error,
    relative_error,
)

TOLERANCE = 1e-9
POSITION, ANGLE = metrics.PoseRelation.translation_part, metrics.PoseRelation.rotation_angle_deg


@pytest.fixture
def noisy(path, se3_exp):
    """Truth, and an estimate of it with drift, noise, another world and another scale."""

    def make(count: int, scale: float = 1.0) -> tuple[Trajectory, Trajectory]:
        truth = path(count)
        rng = np.random.default_rng(11)
        poses = [se3_exp(np.array([3.0, -1.0, 2.0, 1.0, 0.4, -0.8])) @ truth.world_from_body[0]]
        for a, b in zip(truth.world_from_body[:-1], truth.world_from_body[1:], strict=True):
            noise = se3_exp(rng.normal(0, [0.02, 0.02, 0.03, 1e-3, 1e-3, 1e-3]))
            poses.append(poses[-1] @ np.linalg.inv(a) @ b @ noise)
        estimate = np.array(poses)
        estimate[:, :3, 3] *= scale
        # evo keeps stamps as floating seconds, which hold those of today only to 200 ns.
        stamps = truth.stamps_ns - truth.stamps_ns[0]
        return Trajectory(stamps, truth.world_from_body), Trajectory(stamps, estimate)

    return make


def to_evo(trajectory: Trajectory) -> PoseTrajectory3D:
    return PoseTrajectory3D(
        poses_se3=list(trajectory.world_from_body), timestamps=trajectory.stamps_ns * 1e-9
    )


def assert_same(ours: ErrorStatistics, theirs: dict[str, float]) -> None:
    for name in ('rmse', 'mean', 'median', 'std', 'min', 'max'):
        assert getattr(ours, name) == pytest.approx(theirs[name], abs=TOLERANCE), name


@pytest.mark.parametrize('alignment', ['se3', 'sim3', 'origin'])
def test_ate(noisy, alignment):
    truth, estimate = noisy(300, scale=0.4)
    reference, aligned = to_evo(truth), to_evo(estimate)
    if alignment == 'origin':
        aligned.align_origin(reference)
    else:
        _, _, scale = aligned.align(reference, correct_scale=alignment == 'sim3')
    ours = absolute_error(associate(estimate, truth), alignment)
    for relation, statistics in ((POSITION, ours.translation_m), (ANGLE, ours.rotation_deg)):
        ape = metrics.APE(relation)
        ape.process_data((reference, aligned))
        assert_same(statistics, ape.get_all_statistics())
    if alignment == 'sim3':
        assert ours.scale == pytest.approx(scale, abs=TOLERANCE)


@pytest.mark.parametrize(('delta', 'unit'), [(1, 'frames'), (10, 'frames'), (7.3, 'm'), (50, 'm')])
def test_rpe(noisy, delta, unit):
    truth, estimate = noisy(300)
    ours = relative_error(associate(estimate, truth), delta, unit)
    for relation, statistics in ((POSITION, ours.translation_m), (ANGLE, ours.rotation_deg)):
        rpe = metrics.RPE(
            relation,
            delta,
            Unit.frames if unit == 'frames' else Unit.meters,
            rel_delta_tol=0.1,
            all_pairs=True,
            pairs_from_reference=True,
        )
        rpe.process_data((to_evo(truth), to_evo(estimate)))
        assert statistics.count == len(rpe.error)
        assert_same(statistics, rpe.get_all_statistics())


def test_kitti_drift(noisy):
    """The benchmark's rules, step by step, on evo's relative poses."""
    truth, estimate = noisy(950)
    pairs = associate(estimate, truth)
    reference, compared = to_evo(truth).poses_se3, to_evo(estimate).poses_se3
    positions = np.array([pose[:3, 3] for pose in reference])
    travelled = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(positions, axis=0), axis=1)))
    translation, rotation = [], []
    for first in range(0, len(reference), 10):
        for length in KITTI_LENGTHS_M:
            farther = [
                k for k in range(first, len(reference)) if travelled[k] > travelled[first] + length
            ]
            if not farther:
                continue
            error = metrics.RPE.rpe_base(
                reference[first], reference[farther[0]], compared[first], compared[farther[0]]
            )
            translation.append(np.linalg.norm(error[:3, 3]) / length)
            rotation.append(lie_algebra.so3_log_angle(error[:3, :3], True) / length)
    drift = drift_over_segments(pairs)
    assert sum(segment.count for segment in drift.segments) == len(translation)
    assert drift.t_rel_percent == pytest.approx(100 * np.mean(translation), abs=TOLERANCE)
    assert drift.r_rel_deg_per_100m == pytest.approx(100 * np.mean(rotation), abs=TOLERANCE)


def test_association(noisy):
    truth, estimate = noisy(300)
    rng = np.random.default_rng(5)
    kept = np.sort(rng.choice(300, 80, replace=False))
    shifted = estimate.stamps_ns[kept] + rng.integers(-15_000_000, 15_000_000, 80)
    estimate = Trajectory(shifted, estimate.world_from_body[kept])
    pairs = associate(estimate, truth)
    reference, compared = sync.associate_trajectories(
        to_evo(truth), to_evo(estimate), max_diff=0.01
    )
    assert 10 < len(pairs) < 80
    np.testing.assert_allclose(pairs.stamps_ns * 1e-9, compared.timestamps, atol=1e-9)
    np.testing.assert_allclose(pairs.truth[:, :3, 3], reference.positions_xyz, atol=1e-9)
