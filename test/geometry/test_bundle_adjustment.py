# SPDX-License-Identifier: Apache-2.0
"""Bundle adjustment: known answers, GTSAM as oracle, gradients, priors, degenerate problems."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from ba_scenes import window_problem

from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.bundle_adjustment import (
    attach_gradient,
    full_hessian,
    marginal_prior,
    pose_covariance,
    retract,
    solve,
    to_fixed_axes,
)
from mv_matcher_ros.geometry.reprojection import PosePrior, Problem, cost, linearise

SCENES = {
    'mono': {},
    'depth': {'depth': True},
    'stereo': {'stereo_baseline': 0.4},
}


def pose_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(se3.log(se3.inverse(a) @ b).norm(dim=-1).max())


@pytest.mark.parametrize('scene', SCENES)
def test_recovers_the_truth_without_noise(scene: str) -> None:
    problem, poses, points = window_problem(5, 60, 4, noise=0.0, **SCENES[scene])
    solution = solve(problem, 50, 1e-12)
    assert float(solution.cost) < 1e-18
    assert pose_error(solution.world_from_body, poses) < 1e-8
    assert float((solution.points - points).norm(dim=-1).max()) < 1e-6


@pytest.mark.parametrize('scene', SCENES)
@pytest.mark.parametrize('kernel', ['none', 'huber', 'cauchy'])
def test_gradient_of_the_normal_equations_is_that_of_the_cost(scene: str, kernel: str) -> None:
    problem, _, _ = window_problem(4, 20, 3, kernel=kernel, **SCENES[scene])
    pose_step = torch.zeros(1, 4, 6, dtype=torch.float64, requires_grad=True)
    point_step = torch.zeros(1, 20, 3, dtype=torch.float64, requires_grad=True)
    moved = retract(problem.world_from_body, problem.points, pose_step, point_step)
    by_pose, by_point = torch.autograd.grad(
        cost(problem.moved(*moved)).sum(), (pose_step, point_step)
    )
    equations = linearise(problem)
    torch.testing.assert_close(
        equations.pose_gradient.reshape(1, 4, 6), by_pose, rtol=1e-9, atol=1e-6
    )
    torch.testing.assert_close(equations.point_gradient, by_point, rtol=1e-9, atol=1e-6)


def test_batch_equals_single_runs() -> None:
    problem, _, _ = window_problem(4, 30, 3, batch=3, seed=5)
    together = solve(problem, 30, 1e-10)
    for number in range(3):
        alone = Problem(
            **{
                name: value[number : number + 1] if isinstance(value, torch.Tensor) else value
                for name, value in vars(problem).items()
            }
        )
        single = solve(alone, 30, 1e-10)
        assert pose_error(together.world_from_body[number], single.world_from_body[0]) < 1e-9


def test_float32_stays_near_float64() -> None:
    exact, _, _ = window_problem(5, 100, 4)
    single, _, _ = window_problem(5, 100, 4, dtype=torch.float32)
    a, b = solve(exact, 20), solve(single, 20)
    assert b.world_from_body.dtype == torch.float32
    assert pose_error(a.world_from_body, b.world_from_body.double()) < 1e-3


def gtsam_solution(problem: Problem, relative: float = 1e-14):  # type: ignore[no-untyped-def]
    """The same problem in GTSAM: graph, optimum, keys."""
    gtsam = pytest.importorskip('gtsam', reason='gtsam has no wheel for Python 3.10')
    graph, values = gtsam.NonlinearFactorGraph(), gtsam.Values()
    calibration = gtsam.Cal3_S2(1, 1, 0, 0, 0)
    cameras = problem.camera_from_body
    for number in range(problem.measured.shape[1]):
        sigma = 1.0 / float(problem.sqrt_information[0, number, 0])
        noise = gtsam.noiseModel.Isotropic.Sigma(2, sigma)
        if problem.kernel != 'none':
            kinds = {
                'huber': gtsam.noiseModel.mEstimator.Huber,
                'cauchy': gtsam.noiseModel.mEstimator.Cauchy,
            }
            noise = gtsam.noiseModel.Robust.Create(
                kinds[problem.kernel].Create(problem.kernel_width), noise
            )
        pose = gtsam.symbol('x', int(problem.pose_index[0, number]))
        point = gtsam.symbol('l', int(problem.point_index[0, number]))
        measured = problem.measured[0, number].numpy()
        if cameras is None:
            factor = gtsam.GenericProjectionFactorCal3_S2(
                measured, noise, pose, point, calibration
            )
        else:
            index = int(problem.camera_index[0, number])
            sensor = gtsam.Pose3(se3.inverse(cameras[0, index]).numpy())
            factor = gtsam.GenericProjectionFactorCal3_S2(
                measured, noise, pose, point, calibration, sensor
            )
        graph.add(factor)
    for number, pose in enumerate(problem.world_from_body[0]):
        key = gtsam.symbol('x', number)
        values.insert(key, gtsam.Pose3(pose.numpy()))
        if bool(problem.fixed[0, number]):
            tight = gtsam.noiseModel.Isotropic.Sigma(6, 1e-9)
            graph.add(gtsam.PriorFactorPose3(key, gtsam.Pose3(pose.numpy()), tight))
    for number, point in enumerate(problem.points[0]):
        values.insert(gtsam.symbol('l', number), point.numpy())
    parameters = gtsam.LevenbergMarquardtParams()
    parameters.setRelativeErrorTol(relative)
    parameters.setAbsoluteErrorTol(0.0)
    parameters.setMaxIterations(200)
    optimum = gtsam.LevenbergMarquardtOptimizer(graph, values, parameters).optimize()
    return gtsam, graph, optimum


@pytest.mark.parametrize('scene', ['mono', 'stereo'])
@pytest.mark.parametrize('kernel', ['none', 'huber', 'cauchy'])
def test_same_optimum_and_covariance_as_gtsam(scene: str, kernel: str) -> None:
    problem, _, _ = window_problem(5, 80, 4, kernel=kernel, start_noise=0.005, **SCENES[scene])
    solution = solve(problem, 300, 1e-15)
    gtsam, graph, optimum = gtsam_solution(problem)
    for number in range(5):
        theirs = torch.from_numpy(optimum.atPose3(gtsam.symbol('x', number)).matrix())
        assert pose_error(solution.world_from_body[0, number], theirs) < 1e-6
    if kernel != 'none':
        return  # GTSAM's marginals of robust factors weigh differently from ours
    at_optimum = problem.moved(solution.world_from_body, solution.points)
    covariance = pose_covariance(at_optimum)[0]
    marginals = gtsam.Marginals(graph, optimum)
    for number in range(1, 4):
        theirs = torch.from_numpy(marginals.marginalCovariance(gtsam.symbol('x', number)))
        order = [3, 4, 5, 0, 1, 2]  # GTSAM: rotation first
        theirs = theirs[order][:, order]
        ours = covariance[6 * number : 6 * number + 6, 6 * number : 6 * number + 6]
        assert float((ours - theirs).norm() / theirs.norm()) < 0.01
        pose = solution.world_from_body[0, number]
        turn = torch.block_diag(pose[:3, :3], pose[:3, :3])
        torch.testing.assert_close(to_fixed_axes(ours, pose), turn @ ours @ turn.T)


def test_covariance_in_fixed_axes_is_the_spread_of_the_pose() -> None:
    """Sampled right perturbations, read in fixed axes, have the converted covariance."""
    generator = torch.Generator().manual_seed(3)
    pose = se3.exp(torch.tensor([1.0, -2.0, 0.5, 0.4, 1.2, -0.7], dtype=torch.float64))
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64) * 1e-3
    covariance = root @ root.T
    samples = torch.randn(200_000, 6, generator=generator, dtype=torch.float64) @ root.T
    moved = pose @ se3.exp(samples)
    position = moved[:, :3, 3] - pose[:3, 3]
    rotation = se3.so3_log(moved[:, :3, :3] @ pose[:3, :3].T)
    spread = torch.cov(torch.cat([position, rotation], 1).T)
    expected = to_fixed_axes(covariance, pose)
    assert float((spread - expected).norm() / expected.norm()) < 0.02


def test_robust_kernel_shrugs_off_outliers() -> None:
    problem, poses, _ = window_problem(5, 100, 4, kernel='cauchy', start_noise=0.005)
    measured = problem.measured.clone()
    measured[:, ::17] += 0.2
    robust = solve(replace(problem, measured=measured), 100, 1e-10)
    plain = solve(replace(problem, measured=measured, kernel='none'), 100, 1e-10)
    assert pose_error(robust.world_from_body, poses) < 0.25 * pose_error(
        plain.world_from_body, poses
    )


@pytest.mark.parametrize('kernel', ['none', 'cauchy'])
def test_importance_is_that_of_as_many_observations(kernel: str) -> None:
    """Twice as important is seen twice, not important is not seen."""
    problem, _, _ = window_problem(3, 12, 3, noise=2e-2, start_noise=0.005, kernel=kernel)
    count = problem.measured.shape[1]
    importance = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64).repeat(count)[None, :count]
    times = importance[0].long()
    index = torch.arange(count).repeat_interleave(times)
    fields = ('pose_index', 'point_index', 'measured', 'sqrt_information', 'camera_index')
    repeated = replace(problem, **{
        name: getattr(problem, name)[:, index]
        for name in fields
        if getattr(problem, name) is not None
    })  # fmt: skip
    weighted = replace(problem, importance=importance)
    torch.testing.assert_close(cost(weighted), cost(repeated))
    for system in (linearise, full_hessian):
        ours, theirs = system(weighted), system(repeated)
        torch.testing.assert_close(ours.pose_pose, theirs.pose_pose)
        torch.testing.assert_close(ours.point_gradient, theirs.point_gradient)
    assert not torch.allclose(cost(weighted), cost(problem))


def test_the_implicit_gradient_by_importance_is_that_through_the_iterations() -> None:
    problem, _, _ = window_problem(3, 12, 3, noise=2e-2, start_noise=0.005, kernel='cauchy')
    importance = torch.linspace(0.3, 1.0, problem.measured.shape[1], dtype=torch.float64)[None]
    importance.requires_grad_()
    gradients = []
    for how in ('implicit', 'unrolled'):
        asked = replace(problem, importance=importance)
        if how == 'unrolled':
            poses = solve(asked, 60, 1e-16, unroll=True).world_from_body
        else:
            fixed = replace(asked, importance=importance.detach())
            poses, _ = attach_gradient(asked, solve(fixed, 300, 1e-16))
        weights = torch.linspace(0.5, 2.0, poses.numel(), dtype=poses.dtype).reshape(poses.shape)
        gradients += torch.autograd.grad((weights * poses).sum(), importance)
    torch.testing.assert_close(
        gradients[0], gradients[1], rtol=1e-4, atol=1e-5 * float(gradients[0].abs().max())
    )


# Steps to an optimum, and to one that is moved a little from the one before.
AFAR, FROM_THERE = 300, 30


def at_its_optimum(problem: Problem) -> Problem:
    there = solve(problem, AFAR, 1e-16)
    return problem.moved(there.world_from_body, there.points)


def differentiable(
    problem: Problem, measured: torch.Tensor, how: str, steps: int = AFAR
) -> torch.Tensor:
    """A scalar of the optimum that depends on poses and points."""
    asked = replace(problem, measured=measured)
    if how == 'unrolled':
        solution = solve(asked, 60, 1e-16, unroll=True)
        poses, points = solution.world_from_body, solution.points
    else:
        poses, points = attach_gradient(
            asked, solve(replace(asked, measured=measured.detach()), steps, 1e-16)
        )
    weights = torch.linspace(0.5, 2.0, poses.numel(), dtype=poses.dtype).reshape(poses.shape)
    return (weights * poses).sum() + (points * points[..., :1].cos()).sum()


@pytest.mark.parametrize('kernel', ['none', 'cauchy'])
def test_implicit_and_unrolled_gradients_agree_at_nonzero_residual(kernel: str) -> None:
    problem, _, _ = window_problem(3, 12, 3, noise=2e-2, start_noise=0.005, kernel=kernel)
    measured = problem.measured.clone().requires_grad_()
    (implicit,) = torch.autograd.grad(differentiable(problem, measured, 'implicit'), measured)
    (unrolled,) = torch.autograd.grad(differentiable(problem, measured, 'unrolled'), measured)
    assert float(cost(problem)) > 1.0
    torch.testing.assert_close(
        implicit, unrolled, rtol=1e-4, atol=1e-5 * float(implicit.abs().max())
    )


@pytest.mark.parametrize('seed', range(5))
def test_a_free_scale_does_not_spoil_the_implicit_gradient(seed: int) -> None:
    """Rounding may lift the eigenvalue of the gauge above zero: a Cholesky factor then exists."""
    problem, _, _ = window_problem(3, 20, 3, noise=2e-3, start_noise=0.002, seed=seed)
    problem = replace(problem, fixed=torch.tensor([[True, False, False]]))
    gradients = []
    for kind in ('implicit', 'unrolled'):
        measured = problem.measured.clone().requires_grad_()
        data = replace(problem, measured=measured)
        solution = solve(data, 100, 1e-15, unroll=kind == 'unrolled')
        poses = solution.world_from_body
        if kind == 'implicit':
            poses = attach_gradient(data, solution)[0]
        turn = se3.inverse(poses[0, 1]) @ poses[0, 2]
        lengths = (poses[0, 1:, :3, 3] - poses[0, 0, :3, 3]).norm(dim=1)
        gradients.append(
            torch.autograd.grad(
                turn[:3, :3].square()[0].sum() + turn[0, 1] + lengths[0] / lengths[1], measured
            )[0]
        )
    difference = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert float(difference) < 1e-3


def test_gauss_newton_hessian_would_be_wrong() -> None:
    """The second-order terms matter: without them the implicit gradient is wrong."""
    problem, _, _ = window_problem(3, 12, 3, noise=2e-2, start_noise=0.005)
    solution = solve(problem, 300, 1e-16)
    at_optimum = problem.moved(solution.world_from_body, solution.points)
    from mv_matcher_ros.geometry.bundle_adjustment import full_hessian

    exact, approximate = full_hessian(at_optimum), linearise(at_optimum)
    assert float((exact.pose_pose - approximate.pose_pose).norm() / exact.pose_pose.norm()) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize('scene', SCENES)
def test_gradcheck_of_the_implicit_gradient(scene: str) -> None:
    problem, _, _ = window_problem(
        3, 8, 3, noise=1e-2, start_noise=0.002, kernel='cauchy', **SCENES[scene]
    )
    start = at_its_optimum(problem)
    measured = problem.measured.clone().requires_grad_()

    def optimum(measured: torch.Tensor) -> torch.Tensor:
        return differentiable(start, measured, 'implicit', FROM_THERE)

    assert torch.autograd.gradcheck(optimum, (measured,), eps=1e-6, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_gradient_reaches_weights_extrinsics_and_prior() -> None:
    problem, _, _ = window_problem(3, 10, 3, noise=1e-2, start_noise=0.002, stereo_baseline=0.4)
    information = torch.eye(18, dtype=torch.float64)[None] * 10.0
    leaves = {
        'sqrt_information': problem.sqrt_information.clone(),
        'camera_from_body': problem.camera_from_body.clone(),
    }
    gradient = torch.randn(1, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def optimum(
        weight: torch.Tensor, extrinsic: torch.Tensor, prior_gradient: torch.Tensor
    ) -> torch.Tensor:
        prior = PosePrior(information, prior_gradient, problem.world_from_body)
        asked = replace(start, sqrt_information=weight, camera_from_body=extrinsic, prior=prior)
        detached = replace(
            asked,
            sqrt_information=weight.detach(),
            camera_from_body=extrinsic.detach(),
            prior=PosePrior(information, prior_gradient.detach(), problem.world_from_body),
        )
        poses, _ = attach_gradient(asked, solve(detached, FROM_THERE, 1e-16))
        return (poses[..., :3, :] * torch.arange(12.0, dtype=torch.float64).reshape(3, 4)).sum()

    prior = PosePrior(information, gradient, problem.world_from_body)
    start = at_its_optimum(replace(problem, prior=prior))
    inputs = [value.requires_grad_() for value in (*leaves.values(), gradient)]
    assert torch.autograd.gradcheck(optimum, inputs, eps=1e-6, atol=1e-3, rtol=1e-3)


def test_marginal_prior_keeps_the_optimum_of_the_whole_problem() -> None:
    """Dropping a pose with its points changes nothing: the prior stands for them there."""
    problem, _, _ = window_problem(5, 60, 3, depth=True, start_noise=0.005)
    anchor = torch.zeros(1, 30, 30, dtype=torch.float64)
    anchor[:, :6, :6] = torch.eye(6) * 1e8
    whole = replace(
        problem,
        fixed=torch.zeros_like(problem.fixed),
        prior=PosePrior(anchor, torch.zeros(1, 30, dtype=torch.float64), problem.world_from_body),
    )
    solution = solve(whole, 100, 1e-15)
    at_optimum = whole.moved(solution.world_from_body, solution.points)
    full = pose_covariance(at_optimum)[0, 6:, 6:]

    seen_first = torch.zeros(60, dtype=torch.bool)
    seen_first[whole.point_index[0][whole.pose_index[0] == 0]] = True

    def part(points: torch.Tensor) -> Problem:
        observed = points[whole.point_index[0]]
        rows = torch.cumsum(points, 0) - 1
        return replace(
            at_optimum,
            points=at_optimum.points[:, points],
            pose_index=whole.pose_index[:, observed],
            point_index=rows[whole.point_index[:, observed]],
            measured=whole.measured[:, observed],
            sqrt_information=whole.sqrt_information[:, observed],
        )

    prior = marginal_prior(part(seen_first), torch.tensor([True, False, False, False, False]))
    rest = replace(part(~seen_first), prior=None)
    rest = replace(
        rest,
        world_from_body=rest.world_from_body[:, 1:],
        pose_index=rest.pose_index - 1,
        fixed=rest.fixed[:, 1:],
        prior=prior,
    )
    again = solve(rest, 50, 1e-15)
    assert pose_error(again.world_from_body, solution.world_from_body[:, 1:]) < 1e-6
    kept = pose_covariance(rest.moved(again.world_from_body, again.points))[0]
    assert float((kept - full).norm() / full.norm()) < 1e-3


def test_prior_pulls_a_pose_nothing_else_sees() -> None:
    problem, _, _ = window_problem(3, 10, 3, start_noise=0.0)
    wanted = se3.exp(torch.tensor([0.3, 0.1, -0.2, 0.5, -0.4, 0.9], dtype=torch.float64))
    lonely = torch.cat([problem.world_from_body, torch.eye(4, dtype=torch.float64)[None, None]], 1)
    information = torch.zeros(1, 24, 24, dtype=torch.float64)
    information[:, 18:, 18:] = torch.eye(6)
    target = lonely.clone()
    target[0, 3] = wanted
    asked = replace(
        problem,
        world_from_body=lonely,
        fixed=torch.tensor([[True, False, True, False]]),
        prior=PosePrior(information, torch.zeros(1, 24, dtype=torch.float64), target),
    )
    solution = solve(asked, 50, 1e-14)
    assert pose_error(solution.world_from_body[0, 3], wanted) < 1e-5


def test_degenerate_problems_stay_finite() -> None:
    problem, _, _ = window_problem(3, 10, 3)
    nothing = replace(
        problem,
        pose_index=problem.pose_index[:, :0],
        point_index=problem.point_index[:, :0],
        measured=problem.measured[:, :0],
        sqrt_information=problem.sqrt_information[:, :0],
    )
    behind = replace(
        problem, points=problem.points * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    )
    free = replace(problem, fixed=torch.zeros_like(problem.fixed))
    one_observation = replace(
        problem,
        pose_index=problem.pose_index[:, :1],
        point_index=problem.point_index[:, :1],
        measured=problem.measured[:, :1],
        sqrt_information=problem.sqrt_information[:, :1],
    )
    for asked in (nothing, behind, free, one_observation):
        solution = solve(asked, 10)
        assert bool(solution.world_from_body.isfinite().all())
        assert bool(solution.points.isfinite().all())
        assert float(solution.cost) <= float(solution.initial_cost)


def test_fixed_poses_and_points_do_not_move() -> None:
    problem, _, _ = window_problem(4, 30, 3)
    solution = solve(problem, 10)
    assert torch.equal(solution.world_from_body[0, 0], problem.world_from_body[0, 0])
    assert torch.equal(solution.world_from_body[0, 3], problem.world_from_body[0, 3])
    held = solve(replace(problem, points_fixed=True), 10)
    assert torch.equal(held.points, problem.points)
    assert float(held.cost) < float(held.initial_cost)


def test_wrong_shapes_are_named() -> None:
    problem, _, _ = window_problem(3, 10, 3)
    with pytest.raises(GeometryError, match='sqrt_information has shape'):
        replace(problem, sqrt_information=problem.sqrt_information[:, :-1])
    with pytest.raises(GeometryError, match='not 2 or 3'):
        replace(
            problem,
            measured=problem.measured[..., :1],
            sqrt_information=problem.sqrt_information[..., :1],
        )
