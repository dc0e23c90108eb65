# SPDX-License-Identifier: Apache-2.0
"""The least-squares problem of bundle adjustment: variables, residuals, normal equations.

Poses are `world_from_body` with the right perturbation T·exp(δ), δ = [translation, rotation] in
the body frame; points are Euclidean world points. An observation is a point on the normalised
image plane (x/z, y/z) and, where there is depth, the inverse depth 1/z, so that no camera model
enters here. With the camera point p_c = R_cb p_b + t_cb, p_b = R_wbᵀ (X − t_wb):

    ∂p_b/∂δ = [−I | [p_b]×],   ∂p_b/∂X = R_wbᵀ

(Triggs et al., Bundle Adjustment – A Modern Synthesis, 2000).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.robust_kernel import Kernel, kernel_value_and_weight

# Camera depth below which an observation has no meaning (the point is behind the camera or inside
# it), in units of the problem. Residuals use the clamped depth, so they stay finite and large.
MIN_DEPTH = 1e-6


@dataclass(frozen=True)
class PosePrior:
    """Quadratic cost ½ dᵀΛd + gᵀd on the poses, d = log(T_lin⁻¹ T) stacked over the poses.

    Attributes:
        information: (B, 6V, 6V) Λ.
        gradient: (B, 6V) g.
        linearisation: (B, V, 4, 4) T_lin.
    """

    information: Tensor
    gradient: Tensor
    linearisation: Tensor


@dataclass(frozen=True)
class Problem:
    """A batch of B bundle adjustments over V poses, P points and O observations each.

    Attributes:
        world_from_body: (B, V, 4, 4) start of the poses.
        points: (B, P, 3) start of the points.
        pose_index, point_index: (B, O) int64, which pose saw which point.
        measured: (B, O, D) with D = 2 (x/z, y/z) or D = 3 (and 1/z).
        sqrt_information: (B, O, D) 1/σ of each component; 0 switches a component (or padding) off.
            Or (B, O, D, D), a square root L of the information matrix LᵀL for components that err
            together.
        fixed: (B, V) bool, poses that do not move.
        camera_from_body: (B, C, 4, 4) extrinsics of the rig, or None for body = camera.
        camera_index: (B, O) int64 into the C cameras; needed with `camera_from_body` of C > 1.
        prior: Gaussian knowledge on the poses, or None.
        kernel, kernel_width: robust kernel on whitened residuals; image and depth parts each have
            their own.
        points_fixed: no point moves (pose-only adjustment).
        importance: (B, O) factor of ρ, or None for 1. Unlike a larger σ, a small one does not
            make an outlier look like an inlier.

    Raises:
        GeometryError: if shapes disagree.
    """

    world_from_body: Tensor
    points: Tensor
    pose_index: Tensor
    point_index: Tensor
    measured: Tensor
    sqrt_information: Tensor
    fixed: Tensor
    camera_from_body: Tensor | None = None
    camera_index: Tensor | None = None
    prior: PosePrior | None = None
    kernel: Kernel = 'none'
    kernel_width: float = 1.0
    points_fixed: bool = False
    importance: Tensor | None = None

    def __post_init__(self) -> None:
        batch, poses = self.world_from_body.shape[:2]
        observations = self.measured.shape[1]
        last = (self.measured.shape[-1],) if self.sqrt_information.ndim == 4 else ()
        expected = {
            'world_from_body': (self.world_from_body, (batch, poses, 4, 4)),
            'points': (self.points, (batch, self.points.shape[1], 3)),
            'pose_index': (self.pose_index, (batch, observations)),
            'point_index': (self.point_index, (batch, observations)),
            'sqrt_information': (self.sqrt_information, tuple(self.measured.shape) + last),
            'fixed': (self.fixed, (batch, poses)),
        }
        if self.importance is not None:
            expected['importance'] = (self.importance, (batch, observations))
        for name, (value, shape) in expected.items():
            if tuple(value.shape) != shape:
                raise GeometryError(f'{name} has shape {tuple(value.shape)}, expected {shape}')
        if self.measured.shape[-1] not in (2, 3):
            raise GeometryError(f'measured has {self.measured.shape[-1]} components, not 2 or 3')
        cameras = 1 if self.camera_from_body is None else self.camera_from_body.shape[1]
        if cameras != 1 and self.camera_index is None:
            raise GeometryError('camera_index is needed for a rig of several cameras')

    def moved(self, world_from_body: Tensor, points: Tensor) -> Problem:
        """The same problem at other values of its variables."""
        return replace(self, world_from_body=world_from_body, points=points)


@dataclass(frozen=True)
class NormalEquations:
    """Gauss-Newton system H·step = −gradient in arrow form, poses and points apart.

    Attributes:
        pose_pose: (B, 6V, 6V); pose_gradient: (B, 6V).
        point_point: (B, P, 3, 3); point_gradient: (B, P, 3).
        pose_point: (B, O, 6, 3) one block an observation, summed where it is used.
            All three are empty where the points are fixed.
        cost: (B,) value of the objective.
    """

    pose_pose: Tensor
    pose_gradient: Tensor
    point_point: Tensor
    point_gradient: Tensor
    pose_point: Tensor
    cost: Tensor


@dataclass(frozen=True)
class PointEquations:
    """Gauss-Newton systems of the points, the poses held.

    Attributes:
        hessian: (B, P, 3, 3); gradient: (B, P, 3).
        cost: (B, P) what each point adds to the objective.
    """

    hessian: Tensor
    gradient: Tensor
    cost: Tensor


def flat_index(index: Tensor, size: int) -> Tensor:
    """(B, O) indices into B blocks of `size` → (B·O,) indices into the flattened blocks."""
    if index.shape[0] == 1:
        return index.reshape(-1)
    offset = torch.arange(index.shape[0], device=index.device)[:, None] * size
    return (index + offset).reshape(-1)


def _body_and_camera_points(problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Body points (N, 3), camera points (N, 3), R_wb (N, 3, 3), R_cb (N, 3, 3) or None.

    One of each an observation.
    """
    poses = problem.world_from_body.reshape(-1, 4, 4)
    per_observation = poses[flat_index(problem.pose_index, problem.world_from_body.shape[1])]
    rotation = per_observation[:, :3, :3]
    world = problem.points.reshape(-1, 3)[flat_index(problem.point_index, problem.points.shape[1])]
    body = torch.bmm((world - per_observation[:, :3, 3])[:, None, :], rotation)[:, 0]
    if problem.camera_from_body is None:
        return body, body, rotation, None
    cameras = problem.camera_from_body.reshape(-1, 4, 4)
    if problem.camera_index is None:
        index = torch.arange(len(cameras), device=body.device).repeat_interleave(
            problem.measured.shape[1]
        )
    else:
        index = flat_index(problem.camera_index, problem.camera_from_body.shape[1])
    extrinsic = cameras[index]
    camera = torch.bmm(extrinsic[:, :3, :3], body[:, :, None])[:, :, 0] + extrinsic[:, :3, 3]
    return body, camera, rotation, extrinsic[:, :3, :3]


def _whitened(problem: Problem, camera: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Whitened residuals (N, D), predictions (N, D) and inverse depths (N,) of camera points."""
    size = problem.measured.shape[-1]
    inverse_depth = 1.0 / camera[:, 2].clamp_min(MIN_DEPTH)
    plane = camera[:, :2] * inverse_depth[:, None]
    predicted = plane if size == 2 else torch.cat([plane, inverse_depth[:, None]], dim=1)
    error = predicted - problem.measured.reshape(-1, size)
    return _whiten(problem, error[:, :, None])[:, :, 0], predicted, inverse_depth


def _whiten(problem: Problem, rows: Tensor) -> Tensor:
    """Square-root information times (N, D, K) rows."""
    size = problem.measured.shape[-1]
    if problem.sqrt_information.ndim == 4:
        return torch.bmm(problem.sqrt_information.reshape(-1, size, size), rows)
    return rows * problem.sqrt_information.reshape(-1, size, 1)


def _robust(problem: Problem, whitened: Tensor) -> tuple[Tensor, Tensor]:
    """ρ summed over the parts (N,) and weights ρ' (N, D).

    The image part and the depth part each have a kernel of their own.
    """
    image = whitened[:, :2].square().sum(1)
    value, image_weight = kernel_value_and_weight(image, problem.kernel, problem.kernel_width)
    weight = image_weight[:, None].expand(-1, 2)
    if whitened.shape[1] == 3:
        depth_value, depth_weight = kernel_value_and_weight(
            whitened[:, 2].square(), problem.kernel, problem.kernel_width
        )
        value, weight = value + depth_value, torch.cat([weight, depth_weight[:, None]], dim=1)
    if problem.importance is None:
        return value, weight
    importance = problem.importance.reshape(-1)
    return importance * value, importance[:, None] * weight


def prior_deviation(prior: PosePrior, world_from_body: Tensor) -> Tensor:
    """(B, V, 6) d = log(T_lin⁻¹ T)."""
    return se3.log(se3.inverse(prior.linearisation) @ world_from_body)


def _prior_cost(prior: PosePrior, deviation: Tensor) -> Tensor:
    flat = deviation.flatten(1)
    return 0.5 * torch.einsum('bi,bij,bj->b', flat, prior.information, flat) + (
        prior.gradient * flat
    ).sum(1)


def cost(problem: Problem) -> Tensor:
    """(B,) objective ½ Σ ρ(‖r‖²) + prior at the problem's own values."""
    _, camera, _, _ = _body_and_camera_points(problem)
    whitened, _, _ = _whitened(problem, camera)
    value, _ = _robust(problem, whitened)
    total = 0.5 * value.reshape(problem.measured.shape[:2]).sum(1)
    if problem.prior is not None:
        total = total + _prior_cost(
            problem.prior, prior_deviation(problem.prior, problem.world_from_body)
        )
    return total


def residuals(problem: Problem) -> tuple[Tensor, Tensor]:
    """Unrobustified whitened residuals (B, O, D) and camera depths (B, O), for telling inliers."""
    _, camera, _, _ = _body_and_camera_points(problem)
    whitened, _, _ = _whitened(problem, camera)
    return whitened.reshape(problem.measured.shape), camera[:, 2].reshape(
        problem.measured.shape[:2]
    )


def linearise(problem: Problem) -> NormalEquations:
    """Gradient (exact) and Gauss-Newton Hessian (JᵀρʹJ) at the problem's own values."""
    batch, poses = problem.world_from_body.shape[:2]
    value, weighted, by_body, body, rotation = _rows(problem)
    by_pose = torch.cat(
        [-by_body, torch.linalg.cross(by_body, body[:, None, :].expand_as(by_body))], dim=2
    )
    pose_at = flat_index(problem.pose_index, poses)
    by_pose_t = by_pose.transpose(1, 2)
    blocks = _sum_at(torch.bmm(by_pose_t, by_pose).flatten(1), pose_at, batch * poses)
    pose_gradient = _sum_at(
        torch.bmm(by_pose_t, weighted[:, :, None])[:, :, 0], pose_at, batch * poses
    )
    pose_pose = block_diagonal(blocks.reshape(batch, poses, 6, 6))
    pose_gradient = pose_gradient.reshape(batch, 6 * poses)
    if problem.points_fixed:
        point_point, point_gradient = (
            by_pose.new_zeros(batch, 0, 3, 3),
            by_pose.new_zeros(batch, 0, 3),
        )
        pose_point = by_pose.new_zeros(batch, 0, 6, 3)
    else:
        by_point = torch.bmm(by_body, rotation.transpose(1, 2))
        point_point, point_gradient = _point_sums(problem, by_point, weighted)
        pose_point = torch.bmm(by_pose_t, by_point).reshape(batch, -1, 6, 3)
    total = 0.5 * value.reshape(batch, -1).sum(1)
    if problem.prior is not None:
        prior_pose, prior_gradient, prior_cost = _prior_terms(
            problem.prior, problem.world_from_body
        )
        pose_pose, pose_gradient = pose_pose + prior_pose, pose_gradient + prior_gradient
        total = total + prior_cost
    return NormalEquations(
        pose_pose,
        pose_gradient,
        point_point,
        point_gradient,
        pose_point,
        total,
    )


def linearise_points(problem: Problem) -> PointEquations:
    """The part of `linearise` that is left when no pose moves: each point on its own."""
    value, weighted, by_body, _, rotation = _rows(problem)
    by_point = torch.bmm(by_body, rotation.transpose(1, 2))
    return PointEquations(*_point_sums(problem, by_point, weighted), _by_point(problem, value))


def point_costs(problem: Problem) -> Tensor:
    """(B, P) the part ½ Σ ρ(‖r‖²) of the objective that each point has."""
    _, camera, _, _ = _body_and_camera_points(problem)
    whitened, _, _ = _whitened(problem, camera)
    value, _ = _robust(problem, whitened)
    return _by_point(problem, value)


def _rows(problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Per observation: ρ (N,), weighted residuals (N, D) and their derivative by the body point.

    That is (N, D, 3); also the body points (N, 3) and the rotations (N, 3, 3) of the poses.
    """
    body, camera, rotation, camera_rotation = _body_and_camera_points(problem)
    whitened, predicted, inverse_depth = _whitened(problem, camera)
    value, weight = _robust(problem, whitened)
    root = weight.sqrt()
    by_body = _rows_by_body(problem, predicted, inverse_depth, camera[:, 2], camera_rotation)
    return value, whitened * root, by_body * root[:, :, None], body, rotation


def _point_sums(problem: Problem, by_point: Tensor, weighted: Tensor) -> tuple[Tensor, Tensor]:
    """Hessian blocks (B, P, 3, 3) and gradient (B, P, 3) of the points."""
    batch, points = problem.points.shape[:2]
    at = flat_index(problem.point_index, points)
    transposed = by_point.transpose(1, 2)
    blocks = _sum_at(torch.bmm(transposed, by_point).flatten(1), at, batch * points)
    gradient = _sum_at(torch.bmm(transposed, weighted[:, :, None])[:, :, 0], at, batch * points)
    return blocks.reshape(batch, points, 3, 3), gradient.reshape(batch, points, 3)


def _by_point(problem: Problem, value: Tensor) -> Tensor:
    """½ the sum of (N,) values over the observations of each point, (B, P)."""
    batch, points = problem.points.shape[:2]
    at = flat_index(problem.point_index, points)
    return 0.5 * _sum_at(value[:, None], at, batch * points).reshape(batch, points)


def _rows_by_body(
    problem: Problem,
    predicted: Tensor,
    inverse_depth: Tensor,
    depth: Tensor,
    camera_rotation: Tensor | None,
) -> Tensor:
    """(N, D, 3) derivative of the whitened residuals by the body point."""
    size = problem.measured.shape[-1]
    # Behind the camera the depth is clamped: the residual no longer depends on it.
    slope = inverse_depth * (depth > MIN_DEPTH)
    rows = torch.zeros(len(depth), size, 3, dtype=depth.dtype, device=depth.device)
    rows[:, 0, 0] = inverse_depth
    rows[:, 1, 1] = inverse_depth
    rows[:, :, 2] = -predicted * slope[:, None]
    rows = _whiten(problem, rows)
    return rows if camera_rotation is None else torch.bmm(rows, camera_rotation)


def _prior_terms(prior: PosePrior, world_from_body: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hessian (B, 6V, 6V), gradient (B, 6V) and cost (B,) of the prior.

    Derivatives by right perturbations of the poses.
    """
    deviation = prior_deviation(prior, world_from_body)
    jacobian = block_diagonal(se3.right_jacobian_inverse(deviation))
    pull = torch.einsum('bij,bj->bi', prior.information, deviation.flatten(1)) + prior.gradient
    hessian = jacobian.transpose(1, 2) @ prior.information @ jacobian
    return hessian, torch.einsum('bji,bj->bi', jacobian, pull), _prior_cost(prior, deviation)


def block_diagonal(blocks: Tensor) -> Tensor:
    """(B, V, K, K) → (B, V·K, V·K)."""
    batch, count, size, _ = blocks.shape
    full = torch.zeros(batch, count, size, count, size, dtype=blocks.dtype, device=blocks.device)
    diagonal = torch.arange(count, device=blocks.device)
    full[:, diagonal, :, diagonal, :] = blocks.transpose(0, 1)
    return full.reshape(batch, count * size, count * size)


def _sum_at(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum rows (N, K) that share an index into (size, K)."""
    return torch.zeros(size, values.shape[1], dtype=values.dtype, device=values.device).index_add(
        0, index, values
    )
