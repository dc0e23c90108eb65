# SPDX-License-Identifier: Apache-2.0
"""Poses of several views from matches alone: exact, robust, metric, differentiable, honest."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from match_scenes import NOISE, MatchScene, match_scene, only, pose_errors

from mv_matcher_ros.config import PoseEstimatorSettings
from mv_matcher_ros.datatypes import Matches
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.odometry import pair_poses as pair_poses_module
from mv_matcher_ros.odometry import pose_estimator
from mv_matcher_ros.odometry.pair_poses import PairMatches, PairMethod, pair_poses
from mv_matcher_ros.odometry.pose_estimator import Gradient, PoseEstimator, WindowPoses
from mv_matcher_ros.odometry.robust_pose import robust_pose
from mv_matcher_ros.odometry.view_tree import ViewSetup


def estimate(scene: MatchScene, setup: ViewSetup | None = None, **settings: float) -> WindowPoses:
    values = PoseEstimatorSettings(**settings)  # type: ignore[arg-type]
    return PoseEstimator(values).estimate(scene.plane_xy, scene.sigma, scene.matches, setup)


# ------------------------------------------------------------------- accuracy


@pytest.mark.parametrize('seed', range(3))
def test_exact_matches_give_exact_poses(seed: int) -> None:
    scene = match_scene(seed, noise=1e-9)
    result = estimate(replace(scene, sigma=torch.full_like(scene.sigma, NOISE)))
    assert bool(result.found.all())
    assert max(pose_errors(result.world_from_body, scene.world_from_camera)) < 1e-4
    assert bool(result.valid.all())
    assert result.methods['eight_point'] >= 9


@pytest.mark.parametrize('seed', range(3))
def test_noisy_matches(seed: int) -> None:
    scene = match_scene(seed)
    result = estimate(scene)
    turn, direction, scale = pose_errors(result.world_from_body, scene.world_from_camera)
    assert turn < 0.3
    assert direction < 1.5
    assert scale < 0.05
    assert not result.metric
    assert float(result.inlier.sum()) > 0.95 * result.inlier.numel()


def test_bundle_adjustment_improves_on_the_tree() -> None:
    errors = []
    for iterations in (0, 10):
        found = [
            pose_errors(
                estimate(scene, iterations=iterations).world_from_body, scene.world_from_camera
            )
            for scene in (match_scene(seed) for seed in range(4))
        ]
        errors.append(torch.tensor(found).mean(0))
    assert bool((errors[1] < 0.6 * errors[0]).all())


def test_one_way_alone() -> None:
    """Confidences that know nothing: the robust solver holds, the eight-point alone does not."""
    scenes = [match_scene(seed, outliers=0.7, views=2, wrong_confidence=1.0) for seed in range(4)]

    def turns(relative: str) -> list[float]:
        found = [estimate(scene, relative=relative) for scene in scenes]
        assert all(set(result.methods) <= {relative, 'none'} for result in found)
        return [
            pose_errors(result.world_from_body, scene.world_from_camera)[0]
            for result, scene in zip(found, scenes, strict=True)
        ]

    assert max(turns('robust')) < 2.0
    assert max(turns('eight_point')) > 5.0


def test_low_confidence_takes_outliers_out_without_a_robust_solver() -> None:
    scene = match_scene(outliers=0.4, wrong_confidence=0.001)
    result = estimate(scene)
    assert result.methods == {'eight_point': 10}
    turn, direction, scale = pose_errors(result.world_from_body, scene.world_from_camera)
    assert (turn < 0.3, direction < 1.5, scale < 0.05) == (True, True, True)


def test_the_most_believed_matches_lead_where_the_next_ones_are_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scenes = []
    for seed in range(6):
        scene = match_scene(seed, outliers=0.4, views=2, wrong_confidence=0.5)
        confidence = scene.matches.confidence.clone()
        right = (confidence > 0.9).nonzero()[:, 0]
        confidence[right[60:]] = 0.5  # what is less believed may be right or wrong
        scenes.append(replace(scene, matches=replace(scene.matches, confidence=confidence)))

    def turns() -> list[float]:
        found = [estimate(scene, relative='eight_point') for scene in scenes]
        return sorted(
            pose_errors(result.world_from_body, scene.world_from_camera)[0]
            for result, scene in zip(found, scenes, strict=True)
        )

    assert turns()[-1] < 1.0
    monkeypatch.setattr(pair_poses_module, 'MOST_BELIEVED', (128,))
    assert turns()[-1] > 5.0


@pytest.mark.parametrize('library', ['poselib', 'opencv'])
def test_confident_outliers_need_the_robust_solver_which_is_said(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if library == 'poselib':
        importlib.import_module('poselib')  # without it OpenCV would be tested twice
    else:
        monkeypatch.setitem(sys.modules, 'poselib', None)
    scene = match_scene(outliers=0.4, wrong_confidence=1.0)
    result = estimate(scene)
    assert result.methods.get('robust', 0) >= 8
    turn, direction, scale = pose_errors(result.world_from_body, scene.world_from_camera)
    assert (turn < 0.4, direction < 2.0, scale < 0.06) == (True, True, True)
    assert float(result.pair_share.mean()) == pytest.approx(0.6, abs=0.1)


@pytest.mark.parametrize('library', ['poselib', 'opencv'])
def test_robust_solvers_agree_with_the_truth(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if library == 'poselib':
        importlib.import_module('poselib')  # without it OpenCV would be tested twice
    else:
        monkeypatch.setitem(sys.modules, 'poselib', None)
    scene = match_scene(views=2, outliers=0.3, wrong_confidence=1.0, noise=NOISE / 10)
    index = scene.matches.keypoints
    a, b = scene.plane_xy[0, index[:, 0]], scene.plane_xy[1, index[:, 1]]
    pose = robust_pose(a, b, 3 * NOISE / 10)
    assert pose is not None
    found = torch.stack([torch.eye(4, dtype=torch.float64), se3.inverse(pose)])
    assert max(pose_errors(found, scene.world_from_camera)) < 0.3


def test_a_plane_is_no_trap() -> None:
    scene = match_scene(planar=True, noise=NOISE / 4, step=0.6)
    result = estimate(scene)
    turn, direction, _ = pose_errors(result.world_from_body, scene.world_from_camera)
    assert turn < 0.5
    assert direction < 2.0


# ------------------------------------------------------- scale and known poses


def rig_setup(bodies: int, baseline_m: float) -> ViewSetup:
    """Two cameras a body: even views left, odd ones right."""
    camera_from_body = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    camera_from_body[1, 0, 3] = -baseline_m
    return ViewSetup(
        torch.arange(bodies).repeat_interleave(2),
        torch.arange(2).repeat(bodies),
        camera_from_body,
        torch.eye(4, dtype=torch.float64).repeat(bodies, 1, 1),
        torch.zeros(bodies, dtype=torch.bool),
    )


def rig_scene(bodies: int = 3, baseline_m: float = 0.5) -> tuple[MatchScene, ViewSetup, Tensor]:
    setup = rig_setup(bodies, baseline_m)
    truth = match_scene(seed=4, views=bodies).world_from_camera
    cameras = truth[setup.body] @ se3.inverse(setup.camera_from_body[setup.camera])
    return match_scene(seed=5, poses=cameras), setup, truth


def test_the_baseline_of_a_rig_makes_the_poses_metric() -> None:
    scene, setup, truth = rig_scene()
    result = estimate(scene, setup)
    assert result.metric
    assert result.methods == {'known': 3, 'eight_point': 12}
    lengths = result.world_from_body[1:, :3, 3].norm(dim=1) / truth[1:, :3, 3].norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0.03, atol=0)
    assert pose_errors(result.world_from_body, truth)[1] < 1.5


def test_a_new_view_is_placed_in_the_world_of_solved_ones() -> None:
    scene = match_scene(views=5)
    poses = scene.world_from_camera.clone()
    poses[4] = torch.nan  # any value where it is not known
    setup = replace(
        ViewSetup.separate(5),
        world_from_body=poses,
        solved=torch.tensor([True, True, True, True, False]),
    )
    result = estimate(scene, setup)
    assert result.metric
    assert torch.equal(result.world_from_body[:4], scene.world_from_camera[:4])
    error = se3.log(se3.inverse(result.world_from_body[4]) @ scene.world_from_camera[4])
    assert float(error.norm()) < 0.02


def test_one_pair_with_wrong_matches_does_not_bend_the_scales() -> None:
    scene = match_scene()
    keypoints = scene.matches.keypoints.clone()
    pair = (scene.matches.views == torch.tensor([0, 1])).all(1)
    keypoints[pair, 1] = keypoints[pair, 1].roll(7)
    result = estimate(replace(scene, matches=replace(scene.matches, keypoints=keypoints)))
    assert result.pair_method[0] == PairMethod.NONE
    turn, direction, scale = pose_errors(result.world_from_body, scene.world_from_camera)
    assert (turn < 0.4, direction < 2.0, scale < 0.06) == (True, True, True)


# ---------------------------------------------------------------- degenerate


def test_a_turning_camera_has_rotations_and_no_baseline() -> None:
    scene = match_scene(step=0.0)
    result = estimate(scene)
    assert result.methods == {'rotation': 10}
    assert bool(result.found.all())
    assert not bool(result.valid.any())
    assert not result.adjusted
    assert pose_errors(result.world_from_body, scene.world_from_camera)[0] < 0.1
    assert float(result.world_from_body[:, :3, 3].abs().max()) == 0.0


@pytest.mark.parametrize('points', [40, 60, 100, 300])
def test_turns_are_recognised_with_few_matches_too(points: int) -> None:
    kinds = [estimate(match_scene(s, views=2, points=points, step=0.0)).methods for s in range(12)]
    assert kinds == [{'rotation': 1}] * 12


@pytest.mark.parametrize('count', range(9))
def test_few_matches_give_no_pose(count: int) -> None:
    scene = match_scene(views=2, points=30)
    chosen = torch.arange(len(scene.matches)) < count
    result = estimate(replace(scene, matches=only(scene.matches, chosen)))
    assert result.found.tolist() == [True, False]
    assert result.methods == {'none': 1}
    assert bool(result.world_from_body.isfinite().all())


def test_a_view_without_matches_is_not_found() -> None:
    scene = match_scene(views=4)
    chosen = (scene.matches.views != 2).all(1)
    result = estimate(replace(scene, matches=only(scene.matches, chosen)))
    assert result.found.tolist() == [True, True, False, True]
    found = torch.tensor([0, 1, 3])
    errors = pose_errors(result.world_from_body[found], scene.world_from_camera[found])
    assert errors[1] < 1.5


def test_a_first_view_without_matches_does_not_hide_the_others() -> None:
    scene = match_scene(views=4)
    chosen = (scene.matches.views != 0).all(1)
    result = estimate(replace(scene, matches=only(scene.matches, chosen)))
    assert result.found.tolist() == [False, True, True, True]
    errors = pose_errors(result.world_from_body[1:], scene.world_from_camera[1:])
    assert errors[0] < 0.3
    assert errors[1] < 5.0


def test_the_pose_of_a_pair_does_not_depend_on_other_pairs() -> None:
    settings = PoseEstimatorSettings()
    alone = match_scene(views=2, outliers=0.05, wrong_confidence=0.2)
    first = pair_poses(
        PairMatches.of(alone.matches, [(0, 1)], alone.plane_xy, alone.sigma), settings
    )
    bad = match_scene(seed=1, views=2, outliers=0.5, wrong_confidence=1.0)
    plane = torch.cat([alone.plane_xy, bad.plane_xy])
    both = Matches(
        torch.cat([alone.matches.views, bad.matches.views + 2]),
        torch.cat([alone.matches.keypoints, bad.matches.keypoints]),
        torch.cat([alone.matches.confidence, bad.matches.confidence]),
    )
    pairs = [(0, 1), (1, 2), (2, 3)]
    second = pair_poses(
        PairMatches.of(both, pairs, plane, torch.cat([alone.sigma, bad.sigma])), settings
    )
    torch.testing.assert_close(second.b_from_a[0], first.b_from_a[0])


def test_a_confidence_that_is_no_number_is_none() -> None:
    scene = match_scene(views=2)
    confidence = scene.matches.confidence.clone()
    confidence[::50] = torch.nan
    result = estimate(replace(scene, matches=replace(scene.matches, confidence=confidence)))
    assert result.methods == {'eight_point': 1}
    assert float(result.pair_share) > 0.9


def test_two_groups_without_common_points_stay_apart() -> None:
    scene = match_scene(views=4)
    first = (scene.matches.views == torch.tensor([0, 1])).all(1)
    second = (scene.matches.views == torch.tensor([2, 3])).all(1)
    second &= second.cumsum(0) <= 150  # the larger group is that of the first views
    result = estimate(replace(scene, matches=only(scene.matches, first | second)))
    assert result.found.tolist() == [True, True, False, False]


def test_views_without_keypoints() -> None:
    nothing = Matches(torch.zeros(0, 2).long(), torch.zeros(0, 2).long(), torch.zeros(0))
    for room in (0, 5):
        plane = torch.zeros(3, room, 2, dtype=torch.float64)
        result = PoseEstimator(PoseEstimatorSettings()).estimate(plane, plane[..., 0], nothing)
        assert result.found.tolist() == [True, False, False]
        assert len(result.tracks) == 0


# ------------------------------------------------------------------ gradients


def invariants(
    scene: MatchScene, gradient: Gradient, iterations: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """Rotations, directions and the ratio of lengths as a function of coordinates and confidences.

    They do not change with the scale, which nothing holds.
    """
    settings = PoseEstimatorSettings(iterations=iterations, min_mass=0, min_inlier_share=0.2)

    def poses(plane_xy: Tensor, confidence: Tensor) -> Tensor:
        matches = replace(scene.matches, confidence=confidence)
        result = PoseEstimator(settings).estimate(
            plane_xy, scene.sigma, matches, gradient=gradient
        )
        assert result.methods == {'eight_point': 3}
        pose = result.world_from_body[1:]
        length = pose[:, :3, 3].norm(dim=1, keepdim=True)
        parts = (pose[:, :3, :3], pose[:, :3, 3] / length, length[:1] / length[1:])
        return torch.cat([part.flatten() for part in parts])

    return poses


@pytest.fixture
def wide_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients take its width as given; of a wide one, iterations come to the optimum sooner."""
    monkeypatch.setattr(pose_estimator, '_noise', lambda pairs, poses: 2.0)


@pytest.mark.usefixtures('wide_kernel')
@pytest.mark.parametrize(
    ('gradient', 'iterations'), [('none', 0), ('implicit', 100), ('unrolled', 6)]
)
def test_gradients_of_the_whole_block(gradient: Gradient, iterations: int) -> None:
    scene = match_scene(seed=1, views=3, points=24, noise=1 / 4000, step=0.6)
    plane_xy = scene.plane_xy.clone().requires_grad_()
    confidence = scene.matches.confidence.double().requires_grad_()
    poses = invariants(scene, gradient, iterations)
    assert torch.autograd.gradcheck(
        poses, (plane_xy, confidence), eps=1e-7, atol=2e-4, rtol=1e-3, fast_mode=True
    )


@pytest.mark.usefixtures('wide_kernel')
def test_implicit_and_unrolled_gradients_agree_at_the_optimum() -> None:
    scene = match_scene(seed=1, views=3, points=40, noise=1 / 2000, step=0.6)
    gradients = []
    for gradient in ('implicit', 'unrolled'):
        confidence = scene.matches.confidence.double().requires_grad_()
        poses = invariants(scene, gradient, 100)(scene.plane_xy, confidence)
        direction = torch.linspace(-1, 1, len(poses), dtype=torch.float64)
        gradients.append(torch.autograd.grad((poses * direction).sum(), confidence)[0])
    difference = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert float(difference) < 1e-3
