# SPDX-License-Identifier: Apache-2.0
"""P3P, RANSAC and refinement of absolute poses: known answers, OpenCV and GTSAM as oracles."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import pytest
import torch

from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.absolute_pose import refine_absolute_pose
from mv_matcher_ros.geometry.p3p import p3p
from mv_matcher_ros.geometry.pose_ransac import estimate_absolute_pose


@dataclass(frozen=True)
class Scene:
    points: torch.Tensor
    xy: torch.Tensor
    depth: torch.Tensor
    camera_from_world: torch.Tensor
    start: torch.Tensor


def scene(count: int = 100, noise: float = 0.0, outliers: float = 0.0, seed: int = 0) -> Scene:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    points = normal(count, 3) * 2.0
    points[:, 2] = (points[:, 2] + 8.0).clamp_min(3.0)
    pose = se3.exp(0.3 * normal(6))
    camera = se3.transform(pose, points)
    xy = camera[:, :2] / camera[:, 2:] + noise * normal(count, 2)
    wrong = int(outliers * count)
    xy[:wrong] = 2.0 * torch.rand(wrong, 2, generator=generator, dtype=torch.float64) - 1.0
    return Scene(points, xy, camera[:, 2], pose, se3.exp(0.05 * normal(6)) @ pose)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(se3.log(a @ se3.inverse(b)).norm())


def test_p3p_finds_the_pose_of_every_random_triangle() -> None:
    generator = torch.Generator().manual_seed(0)
    pose = se3.exp(torch.randn(5000, 6, generator=generator, dtype=torch.float64))
    camera = torch.randn(5000, 3, 3, generator=generator, dtype=torch.float64)
    camera[..., 2] = 3.0 * camera[..., 2].abs() + 1.0
    world = se3.transform(se3.inverse(pose), camera)
    candidates, valid = p3p(world, camera)
    error = (candidates - pose[:, None]).abs().amax((-2, -1))
    best = torch.where(valid, error, torch.inf).amin(1)
    assert best.max() < 1e-6
    assert best.quantile(0.99) < 1e-11
    # Every other candidate is a pose too: it puts the points on the rays, in front.
    moved = se3.transform(candidates, world[:, None].expand(5000, 4, 3, 3))
    ray = torch.nn.functional.normalize(camera, dim=-1)[:, None].expand(5000, 4, 3, 3)
    off = (torch.nn.functional.normalize(moved, dim=-1) - ray).abs().amax((-2, -1))
    assert off[valid].max() < 1e-8
    assert 1.2 < valid.sum(1).double().mean() < 2.5


def test_p3p_of_degenerate_triangles_has_no_solution() -> None:
    rays = torch.tensor([[0.1, 0, 1], [0, 0.1, 1], [-0.1, -0.1, 1]], dtype=torch.float64)
    line = torch.tensor([[0, 0, 5.0], [1, 0, 5], [2, 0, 5]], dtype=torch.float64)
    same = torch.zeros(3, 3, dtype=torch.float64)
    repeated = torch.stack((line[0], line[0], line[1] + 1.0))
    lost = torch.full((3, 3), torch.nan, dtype=torch.float64)
    world = torch.stack((line, same, repeated, lost))
    poses, valid = p3p(world, rays.expand(4, 3, 3))
    assert not valid.any()
    assert poses.isfinite().all()
    assert p3p(world[:0], rays.expand(0, 3, 3))[0].shape == (0, 4, 4, 4)
    with pytest.raises(GeometryError, match='disagree'):
        p3p(world, rays)


@pytest.mark.parametrize('outliers', [0.0, 0.4, 0.7])
def test_ransac_finds_pose_and_inliers(outliers: float) -> None:
    for seed in range(3):
        s = scene(200, noise=1e-3, outliers=outliers, seed=seed)
        result = estimate_absolute_pose(s.points, s.xy, 4e-3, seed=seed)
        assert result.valid
        assert distance(result.camera_from_world, s.camera_from_world) < 0.02
        wrong = int(200 * outliers)
        assert result.inliers[wrong:].float().mean() > 0.95
        assert result.inliers[:wrong].float().sum() <= 0.05 * 200
        again = estimate_absolute_pose(s.points, s.xy, 4e-3, seed=seed)
        assert torch.equal(again.camera_from_world, result.camera_from_world)


def test_ransac_weights_and_guesses() -> None:
    s = scene(200, noise=1e-3, outliers=0.9)
    weights = torch.full((200,), 0.02, dtype=torch.float64)
    weights[180:] = 1.0
    guided = estimate_absolute_pose(s.points, s.xy, 4e-3, weights, max_rounds=1)
    assert guided.valid
    assert distance(guided.camera_from_world, s.camera_from_world) < 0.05
    near = se3.exp(torch.full((6,), 0.002, dtype=torch.float64)) @ s.camera_from_world
    guess = estimate_absolute_pose(
        s.points, s.xy, 8e-3, guesses=near[None], max_rounds=1, hypotheses=1
    )
    assert guess.valid
    assert distance(guess.camera_from_world, s.camera_from_world) < 0.05


@pytest.mark.parametrize('count', range(5))
def test_too_few_matches_have_no_pose(count: int) -> None:
    s = scene(count)
    result = estimate_absolute_pose(s.points, s.xy, 4e-3)
    assert not result.valid
    assert result.camera_from_world.isnan().all()
    assert not result.inliers.any()


def test_ransac_on_noise_missing_values_and_float32() -> None:
    noise = torch.rand(60, 5, generator=torch.Generator().manual_seed(0)).double()
    result = estimate_absolute_pose(noise[:, :3] + 2.0, noise[:, 3:], 1e-5, max_rounds=2)
    assert not result.valid
    s = scene(50)
    xy = s.xy.clone()
    xy[:5] = torch.nan
    result = estimate_absolute_pose(s.points.float(), xy.float(), 4e-3)
    assert result.valid
    assert result.inliers.tolist() == [False] * 5 + [True] * 45
    assert distance(result.camera_from_world.double(), s.camera_from_world) < 1e-4
    with pytest.raises(GeometryError, match='threshold must be positive'):
        estimate_absolute_pose(s.points, s.xy, 0.0)


@pytest.mark.parametrize('kernel', ['none', 'huber', 'cauchy'])
@pytest.mark.parametrize(('dtype', 'limit'), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_refinement_of_exact_matches_is_exact(
    kernel: str, dtype: torch.dtype, limit: float
) -> None:
    s = scene()
    result = refine_absolute_pose(
        s.points.to(dtype), s.xy.to(dtype), s.start.to(dtype), kernel=kernel, iterations=20
    )
    assert result.valid
    assert result.camera_from_world.dtype == dtype
    assert distance(result.camera_from_world.double(), s.camera_from_world) < limit


def test_refinement_equals_opencv() -> None:
    s = scene(noise=2e-3)
    ours = refine_absolute_pose(s.points, s.xy, s.start, kernel='none', iterations=30)
    start = s.start.numpy()
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 100, 1e-12)
    rotation, translation = cv2.solvePnPRefineLM(
        s.points.numpy(), s.xy.numpy(), np.eye(3), None,
        cv2.Rodrigues(start[:3, :3])[0], start[:3, 3:].copy(), stop,
    )  # fmt: skip
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.from_numpy(cv2.Rodrigues(rotation)[0])
    pose[:3, 3] = torch.from_numpy(translation[:, 0])
    assert distance(ours.camera_from_world, pose) < 1e-5


@pytest.mark.parametrize('kernel', ['none', 'huber', 'cauchy', 'geman_mcclure'])
def test_optimum_and_covariance_equal_gtsam(kernel: str) -> None:
    gtsam = pytest.importorskip('gtsam', reason='gtsam has no wheel for Python 3.10')
    sigma, width = 2e-3, 1.5
    s = scene(60, noise=sigma, outliers=0.0 if kernel == 'none' else 0.1)
    information = torch.full((60,), sigma**-2, dtype=torch.float64)
    prior = 100.0 * torch.eye(6, dtype=torch.float64)
    ours = refine_absolute_pose(
        s.points, s.xy, s.start, information, kernel=kernel, kernel_width=width,
        prior_camera_from_world=s.start, prior_information=prior, iterations=100, tolerance=1e-14,
    )  # fmt: skip
    robust = {
        'huber': gtsam.noiseModel.mEstimator.Huber,
        'cauchy': gtsam.noiseModel.mEstimator.Cauchy,
        'geman_mcclure': gtsam.noiseModel.mEstimator.GemanMcClure,
    }
    model = gtsam.noiseModel.Isotropic.Sigma(2, sigma)
    if kernel != 'none':
        model = gtsam.noiseModel.Robust.Create(robust[kernel].Create(width), model)
    graph, values = gtsam.NonlinearFactorGraph(), gtsam.Values()
    camera = gtsam.Cal3_S2(1.0, 1.0, 0.0, 0.0, 0.0)
    tight = gtsam.noiseModel.Constrained.All(3)
    start = gtsam.Pose3(se3.inverse(s.start).numpy())
    graph.add(gtsam.PriorFactorPose3(0, start, gtsam.noiseModel.Isotropic.Sigma(6, 0.1)))
    values.insert(0, start)
    for i in range(60):
        point = s.points[i].numpy()
        graph.add(gtsam.GenericProjectionFactorCal3_S2(s.xy[i].numpy(), model, 0, i + 1, camera))
        graph.add(gtsam.PriorFactorPoint3(i + 1, point, tight))
        values.insert(i + 1, point)
    settings = gtsam.LevenbergMarquardtParams()
    settings.setRelativeErrorTol(1e-14)
    settings.setAbsoluteErrorTol(1e-14)
    settings.setMaxIterations(200)
    optimum = gtsam.LevenbergMarquardtOptimizer(graph, values, settings).optimize()
    world_from_camera = torch.from_numpy(optimum.atPose3(0).matrix())
    assert distance(se3.inverse(ours.camera_from_world), world_from_camera) < 1e-6
    assert ours.converged
    if kernel == 'none':
        theirs = gtsam.Marginals(graph, optimum).marginalCovariance(0)
        order = [3, 4, 5, 0, 1, 2]  # GTSAM's tangent is [rotation, translation]
        covariance = torch.linalg.inv(ours.information).numpy()
        assert np.abs(covariance / theirs[np.ix_(order, order)] - 1).max() < 1e-4


def test_robust_kernels_bear_outliers() -> None:
    s = scene(200, noise=1e-3, outliers=0.1)
    information = torch.full((200,), 1e6, dtype=torch.float64)
    errors = {
        kernel: distance(
            refine_absolute_pose(
                s.points, s.xy, s.start, information, kernel=kernel, iterations=50
            ).camera_from_world,
            s.camera_from_world,
        )
        for kernel in ('none', 'huber', 'cauchy')
    }
    assert errors['cauchy'] < 5e-3
    assert errors['huber'] < 3e-2
    assert errors['none'] > 0.1


@pytest.mark.parametrize('count', range(7))
def test_few_observations(count: int) -> None:
    s = scene(count)
    result = refine_absolute_pose(s.points, s.xy, s.start, iterations=30)
    assert result.camera_from_world.isfinite().all()
    # Three points leave no direction free (they leave four solutions).
    assert bool(result.valid) == (count >= 3)
    assert bool(result.converged) <= bool(result.valid)
    single = refine_absolute_pose(s.points.float(), s.xy.float(), s.start.float())
    assert bool(single.valid) == (count >= 3)
    if count == 0:
        assert (result.camera_from_world - s.start).abs().max() < 1e-12
    prior = refine_absolute_pose(
        s.points, s.xy, s.start,
        prior_camera_from_world=s.camera_from_world,
        prior_information=torch.eye(6, dtype=torch.float64),
        iterations=30,
    )  # fmt: skip
    assert prior.valid
    assert distance(prior.camera_from_world, s.camera_from_world) < 1e-5


def test_points_behind_and_missing_values() -> None:
    s = scene(60)
    points, xy = s.points.clone(), s.xy.clone()
    behind = se3.inverse(s.camera_from_world)
    points[:5] = se3.transform(behind, torch.tensor([[0.1, 0.2, -4.0]]).double()).expand(5, 3)
    xy[5:10] = torch.nan
    points[10:12] = torch.inf
    result = refine_absolute_pose(points, xy, s.start, iterations=30)
    assert result.valid
    assert distance(result.camera_from_world, s.camera_from_world) < 1e-8
    assert result.residuals.isfinite().all()
    assert (result.residuals[5:12] == 0).all()
    turned = s.camera_from_world.clone()
    turned[:3] = torch.diag(torch.tensor([-1.0, 1.0, -1.0]).double()) @ turned[:3]
    nothing = refine_absolute_pose(points, xy, turned)
    assert not nothing.valid
    assert nothing.camera_from_world.isfinite().all()


def test_information_matrices_and_residuals_in_sigmas() -> None:
    s = scene(400)
    root = torch.tensor([[800.0, 0.0], [300.0, 500.0]], dtype=torch.float64)
    information = (root @ root.T).expand(400, 2, 2)
    noise = torch.randn(400, 2, generator=torch.Generator().manual_seed(0)).double()
    xy = s.xy + noise @ torch.linalg.inv(root)
    result = refine_absolute_pose(s.points, xy, s.start, information, kernel='none')
    assert abs(float(result.residuals.square().mean()) - 1.0) < 0.15
    mixed = result.residuals[:, 0] * result.residuals[:, 1]
    assert abs(float(mixed.mean())) < 0.15
    assert float(result.cost) == pytest.approx(0.5 * float(result.residuals.square().sum()))
    scalar = torch.full((400,), 2.5e5, dtype=torch.float64)
    same = scalar[:, None, None] * torch.eye(2, dtype=torch.float64)
    a = refine_absolute_pose(s.points, xy, s.start, scalar).camera_from_world
    b = refine_absolute_pose(s.points, xy, s.start, same).camera_from_world
    assert (a - b).abs().max() < 1e-9


def rig(count: int) -> torch.Tensor:
    xi = torch.zeros(count, 6, dtype=torch.float64)
    xi[::2, 0], xi[::2, 4] = 0.5, 0.2
    return se3.exp(xi)


def test_rig_and_inverse_depth() -> None:
    s = scene(80)
    body_from_camera = rig(80)
    camera = se3.transform(
        se3.inverse(body_from_camera) @ s.camera_from_world, s.points[:, None]
    ).squeeze(1)
    result = refine_absolute_pose(
        s.points, camera[:, :2] / camera[:, 2:], s.start, body_from_camera=body_from_camera
    )
    assert distance(result.camera_from_world, s.camera_from_world) < 1e-9
    # Points on one ray leave the distance along it free; depth gives it.
    ray = s.points[:1] * torch.linspace(0.9, 1.1, 6, dtype=torch.float64)[:, None]
    xy = ray[:, :2] / ray[:, 2:]
    eye = torch.eye(4, dtype=torch.float64)
    free = refine_absolute_pose(ray, xy, eye)
    assert not free.valid
    depth = 1.0 / s.depth
    depth[::3] = torch.nan
    known = torch.full((80,), 1e4, dtype=torch.float64)
    with_depth = refine_absolute_pose(
        s.points, s.xy, s.start, inverse_depth=depth, inverse_depth_information=known
    )
    assert distance(with_depth.camera_from_world, s.camera_from_world) < 1e-9
    assert with_depth.residuals.shape == (80, 3)
    without = refine_absolute_pose(s.points, s.xy, s.start)
    gain = with_depth.information - without.information
    assert torch.linalg.eigvalsh(gain).min() > -1e-6 * gain.abs().max()
    assert gain.abs().max() > 1.0


@pytest.mark.parametrize('kernel', ['none', 'huber', 'cauchy'])
def test_gradient_is_that_of_the_optimum_at_large_residuals(kernel: str) -> None:
    count = 14
    s = scene(count, noise=0.05)
    generator = torch.Generator().manual_seed(5)
    weights = torch.rand(count, generator=generator, dtype=torch.float64) + 0.5
    body_from_camera = rig(count)
    inverse_depth = 1.0 / s.depth + 0.01
    prior = torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64))

    def optimum(
        points: torch.Tensor, xy: torch.Tensor, w: torch.Tensor, d: torch.Tensor, p: torch.Tensor
    ) -> torch.Tensor:
        result = refine_absolute_pose(
            points, xy, s.start, 400.0 * w, inverse_depth=d, inverse_depth_information=100.0 * w,
            body_from_camera=body_from_camera, prior_camera_from_world=p, prior_information=prior,
            kernel=kernel, kernel_width=1.0, iterations=100, tolerance=1e-15,
        )  # fmt: skip
        assert result.converged
        return result.camera_from_world

    inputs = (s.points, s.xy, weights, inverse_depth, s.start.clone())
    inputs = tuple(t.clone().requires_grad_() for t in inputs)
    pull = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad((optimum(*inputs) * pull).sum(), inputs)
    step = 1e-5
    for i, gradient in enumerate(gradients):
        for _ in range(3):
            way = torch.randn(inputs[i].shape, generator=generator, dtype=torch.float64)
            ends = []
            for sign in (1.0, -1.0):
                moved = [t.detach() for t in inputs]
                moved[i] = moved[i] + sign * step * way
                # Inputs that ask for a gradient get the Newton step that makes the optimum exact.
                ends.append((optimum(*(t.requires_grad_() for t in moved)).detach() * pull).sum())
            slope = (ends[0] - ends[1]) / (2.0 * step)
            assert float((gradient * way).sum()) == pytest.approx(float(slope), rel=1e-5, abs=1e-7)


def test_gradients_are_finite_where_nothing_is_determined() -> None:
    for count in (0, 1, 2, 3):
        s = scene(count)
        points, xy = s.points.clone().requires_grad_(), s.xy.clone().requires_grad_()
        result = refine_absolute_pose(points, xy, s.start)
        (result.camera_from_world.sum() + result.residuals.sum()).backward()
        assert xy.grad is None or xy.grad.isfinite().all()
        assert points.grad is None or points.grad.isfinite().all()


def test_batches_equal_single_runs() -> None:
    scenes = [scene(40, noise=1e-3, seed=seed) for seed in range(3)]
    batch = refine_absolute_pose(
        torch.stack([s.points for s in scenes]),
        torch.stack([s.xy for s in scenes]),
        torch.stack([s.start for s in scenes]),
        iterations=30,
        tolerance=1e-12,
    )
    assert batch.information.shape == (3, 6, 6)
    assert batch.residuals.shape == (3, 40, 2)
    for i, s in enumerate(scenes):
        alone = refine_absolute_pose(s.points, s.xy, s.start, iterations=30, tolerance=1e-12)
        assert (alone.camera_from_world - batch.camera_from_world[i]).abs().max() < 1e-8
    shared = refine_absolute_pose(
        scenes[0].points, scenes[0].xy, torch.stack([s.start for s in scenes])[:1]
    )
    assert shared.camera_from_world.shape == (1, 4, 4)


def test_never_worse_than_the_start() -> None:
    for seed in range(5):
        s = scene(30, noise=0.01, outliers=0.3, seed=seed)
        far = se3.exp(torch.randn(6, generator=torch.Generator().manual_seed(seed)).double())
        start = refine_absolute_pose(s.points, s.xy, far @ s.start, iterations=0)
        result = refine_absolute_pose(s.points, s.xy, far @ s.start, iterations=20)
        assert result.cost <= start.cost


def test_wrong_input_is_named() -> None:
    s = scene(10)
    with pytest.raises(GeometryError, match='10 world_points, but 9 observations'):
        refine_absolute_pose(s.points, s.xy[:9], s.start)
    with pytest.raises(GeometryError, match='information must have shape'):
        refine_absolute_pose(s.points, s.xy, s.start, torch.ones(9, dtype=torch.float64))
    with pytest.raises(GeometryError, match='prior: value and information go together'):
        refine_absolute_pose(s.points, s.xy, s.start, prior_camera_from_world=s.start)
    with pytest.raises(GeometryError, match='"tukey" is unknown'):
        refine_absolute_pose(s.points, s.xy, s.start, kernel='tukey')  # type: ignore[arg-type]


def test_ransac_does_not_search_longer_for_what_is_of_no_use() -> None:
    noise = torch.rand(60, 5, generator=torch.Generator().manual_seed(0)).double()
    points, xy = noise[:, :3] + 2.0, noise[:, 3:]
    assert estimate_absolute_pose(points, xy, 1e-3).hypotheses == 8 * 256
    # A sample of three is right with a probability of 1 / 64: 439 samples are enough at 0.999.
    assert estimate_absolute_pose(points, xy, 1e-3, least_share=0.25).hypotheses == 2 * 256
    for seed in range(5):
        s = scene(200, noise=1e-3, outliers=0.7, seed=seed)
        found = estimate_absolute_pose(s.points, s.xy, 4e-3, least_share=0.25, seed=seed)
        assert found.inliers[140:].float().mean() > 0.95
