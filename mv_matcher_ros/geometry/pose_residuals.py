# SPDX-License-Identifier: Apache-2.0
"""Residuals of one pose against points with known position: cost, gradient, Gauss-Newton Hessian.

With T exp([v, w]), T = world_from_camera, a camera point moves by p → p - v - w x p. Row j of the
projection's derivative then contributes -j by v and j x p by w.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.robust_kernel import Kernel, kernel_value_and_weight
from mv_matcher_ros.geometry.shapes import check, check_same_type

# Depth below which a point is behind the camera: it then costs like an error of this many sigma
# and pulls nowhere, so that no step gains by moving points behind the camera.
MIN_DEPTH = 1e-6
BEHIND_SIGMAS = 1e3


@dataclass(frozen=True)
class PoseProblem:
    """Inputs with the points as last dimension, finite, unused ones with zero weight."""

    points: torch.Tensor  # (..., 3, N)
    measured: torch.Tensor  # (..., D, N)
    weights: torch.Tensor  # (..., D, N) diagonal of the information
    mixed: torch.Tensor | None  # (..., N) its off-diagonal of x and y
    camera_from_body: torch.Tensor | None  # (..., 4, 4, N)
    prior: tuple[torch.Tensor, torch.Tensor] | None  # camera_from_world, information
    kernel: Kernel
    width: float


@dataclass(frozen=True)
class PoseLinear:
    """Cost (...), gradient (..., 6), Hessian (..., 6, 6) and residuals (..., D, N) at a pose.

    `constant` (...) is the part of the cost that points behind the camera pay.
    """

    cost: torch.Tensor
    gradient: torch.Tensor
    hessian: torch.Tensor
    residuals: torch.Tensor
    constant: torch.Tensor


def pose_problem(
    world_points: torch.Tensor,
    normalised_xy: torch.Tensor,
    camera_from_world: torch.Tensor,
    information: torch.Tensor | None,
    depth: tuple[torch.Tensor | None, torch.Tensor | None],
    body_from_camera: torch.Tensor | None,
    prior: tuple[torch.Tensor | None, torch.Tensor | None],
    kernel: Kernel,
    width: float,
) -> PoseProblem:
    """Check the arguments of `refine_absolute_pose` and bring them into one form.

    Raises:
        GeometryError: shapes or types disagree, or half of a prior or of the depth is missing.
    """
    check('world_points', world_points, -1, 3)
    check('normalised_xy', normalised_xy, -1, 2)
    check('camera_from_world', camera_from_world, 4, 4)
    count = normalised_xy.shape[-2]
    if world_points.shape[-2] != count:
        raise GeometryError(
            f'{world_points.shape[-2]} world_points, but {count} observations in normalised_xy'
        )
    if information is None:
        information = torch.ones_like(normalised_xy[..., 0])
    given = {'information': information, 'body_from_camera': body_from_camera}
    given |= {'inverse_depth': depth[0], 'inverse_depth_information': depth[1]}
    given |= {'prior_camera_from_world': prior[0], 'prior_information': prior[1]}
    tensors = {name: value for name, value in given.items() if value is not None}
    check_same_type(
        world_points=world_points,
        normalised_xy=normalised_xy,
        camera_from_world=camera_from_world,
        **tensors,
    )
    for a, b, what in ((*depth, 'inverse_depth'), (*prior, 'prior')):
        if (a is None) != (b is None):
            raise GeometryError(f'{what}: value and information go together')
    used = world_points.isfinite().all(-1) & normalised_xy.isfinite().all(-1)
    weights, mixed = _image_weights(information, used)
    points = torch.where(used[..., None], world_points, 0.0).mT
    measured = torch.where(used[..., None], normalised_xy, 0.0).mT
    if depth[0] is not None and depth[1] is not None:
        measured, weights = _with_depth(measured, weights, depth[0], depth[1])
    extrinsics = None
    if body_from_camera is not None:
        check('body_from_camera', body_from_camera, count, 4, 4)
        extrinsics = se3.inverse(body_from_camera).movedim(-3, -1)
    known = None
    if prior[0] is not None and prior[1] is not None:
        check('prior_camera_from_world', prior[0], 4, 4)
        check('prior_information', prior[1], 6, 6)
        known = (prior[0], prior[1])
    return PoseProblem(points, measured, weights, mixed, extrinsics, known, kernel, width)


def _image_weights(
    information: torch.Tensor, used: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Diagonal (..., 2, N) and off-diagonal (..., N) of the information, zero where not used."""
    count = used.shape[-1]
    if information.shape[-3:] == (count, 2, 2):
        a, b, c = information[..., 0, 0], information[..., 0, 1], information[..., 1, 1]
        used = used & (a > 0) & (a * c - b * b > 0) & a.isfinite() & c.isfinite()
        diagonal = torch.where(used[..., None, :], torch.stack((a, c), -2), 0.0)
        return diagonal, torch.where(used, b, 0.0)
    if information.shape[-1:] == (count,):
        used = used & (information > 0) & information.isfinite()
        weight = torch.where(used, information, 0.0)[..., None, :]
        return weight.expand(*weight.shape[:-2], 2, count), None
    raise GeometryError(
        f'information must have shape (..., {count}) or (..., {count}, 2, 2), '
        f'got {tuple(information.shape)}'
    )


def _with_depth(
    measured: torch.Tensor,
    weights: torch.Tensor,
    inverse_depth: torch.Tensor,
    information: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Measured values and weights with the inverse depth as third row."""
    count = weights.shape[-1]
    check('inverse_depth', inverse_depth, count)
    check('inverse_depth_information', information, count)
    known = inverse_depth.isfinite() & information.isfinite() & (information > 0)
    known = known & (weights[..., 0, :] > 0)
    value = torch.where(known, inverse_depth, 0.0)[..., None, :]
    weight = torch.where(known, information, 0.0)[..., None, :]
    lead = torch.broadcast_shapes(measured.shape[:-2], weights.shape[:-2], value.shape[:-2])
    return (
        torch.cat((measured.expand(*lead, 2, count), value.expand(*lead, 1, count)), -2),
        torch.cat((weights.expand(*lead, 2, count), weight.expand(*lead, 1, count)), -2),
    )


def whitened_residuals(problem: PoseProblem, residual: torch.Tensor) -> torch.Tensor:
    """Residuals (..., D, N) in units of sigma: the upper triangular root of the information."""
    on = problem.weights > 0
    root = torch.where(on, torch.where(on, problem.weights, 1.0).sqrt(), 0.0)
    if problem.mixed is None:
        return residual * root
    a, c = problem.weights[..., 0, :], problem.weights[..., 1, :]
    on = on[..., 0, :]
    mixed = problem.mixed / torch.where(on, root[..., 0, :], 1.0)
    second = torch.where(on, torch.where(on, c - mixed * mixed, 1.0).sqrt(), 0.0)
    x, y = residual[..., 0, :], residual[..., 1, :]
    image = torch.stack((a.sign() * (root[..., 0, :] * x + mixed * y), second * y), -2)
    return torch.cat((image, residual[..., 2:, :] * root[..., 2:, :]), -2)


def linearise_pose(problem: PoseProblem, pose: torch.Tensor) -> PoseLinear:
    """Cost, gradient, Gauss-Newton Hessian and whitened residuals at a pose."""
    body = pose[..., :3, :3] @ problem.points + pose[..., :3, 3:]
    camera = body
    if problem.camera_from_body is not None:
        rotation = problem.camera_from_body[..., :3, :3, :]
        camera = (rotation * body[..., None, :, :]).sum(-2)
        camera = camera + problem.camera_from_body[..., :3, 3, :]
    ahead = camera[..., 2, :] > MIN_DEPTH
    inverse = 1.0 / torch.where(ahead, camera[..., 2, :], 1.0)
    plane = camera[..., :2, :] * inverse[..., None, :]
    depths = problem.measured.shape[-2] == 3
    predicted = torch.cat((plane, inverse[..., None, :]), -2) if depths else plane
    residual = predicted - problem.measured
    if problem.camera_from_body is None:
        jacobian = _jacobian(plane, inverse, depths)
    else:
        jacobian = _rig_jacobian(plane, inverse, depths, rotation, body)
    value, constant, slope = _robust(problem, residual, ahead)
    weighted = jacobian * (problem.weights * slope)[..., None, :, :]
    if problem.mixed is not None:
        mixed = (problem.mixed * slope[..., 0, :])[..., None, None, :]
        swapped = torch.cat((jacobian[..., [1, 0], :], torch.zeros_like(jacobian[..., 2:, :])), -2)
        weighted = weighted + mixed * swapped
    weighted = weighted.flatten(-2)
    gradient = (weighted @ residual.flatten(-2)[..., None]).squeeze(-1)
    hessian = weighted @ jacobian.flatten(-2).mT
    linear = PoseLinear(0.5 * value, gradient, hessian, residual, 0.5 * constant)
    return linear if problem.prior is None else _add_prior(linear, problem.prior, pose)


def _jacobian(plane: torch.Tensor, inverse: torch.Tensor, depths: bool) -> torch.Tensor:
    """Derivative (..., 6, D, N) of x/z, y/z and 1/z by [v, w]: -j and j x p of each row j."""
    x, y = plane[..., 0, :], plane[..., 1, :]
    zero = torch.zeros_like(x)
    xi, yi, xy = x * inverse, y * inverse, x * y
    by_x = (-inverse, zero, xi, xy, -1.0 - x * x, y)
    by_y = (zero, -inverse, yi, 1.0 + y * y, -xy, -x)
    rows = [torch.stack(by_x, -2), torch.stack(by_y, -2)]
    if depths:
        rows.append(torch.stack((zero, zero, inverse * inverse, yi, -xi, zero), -2))
    return torch.stack(rows, -2)


def _rig_jacobian(
    plane: torch.Tensor,
    inverse: torch.Tensor,
    depths: bool,
    rotation: torch.Tensor,
    body: torch.Tensor,
) -> torch.Tensor:
    """As `_jacobian` where each observation has a camera of its own on the moving body."""
    zero = torch.zeros_like(inverse)
    rows = [
        torch.stack((inverse, zero, -plane[..., 0, :] * inverse), -2),
        torch.stack((zero, inverse, -plane[..., 1, :] * inverse), -2),
    ]
    if depths:
        rows.append(torch.stack((zero, zero, -inverse * inverse), -2))
    by_camera = torch.stack(rows, -3)  # (..., D, 3, N)
    by_body = (by_camera[..., :, :, None, :] * rotation[..., None, :, :, :]).sum(-3)
    turned = torch.linalg.cross(by_body, body[..., None, :, :].expand_as(by_body), dim=-2)
    return torch.cat((-by_body, turned), -2).transpose(-3, -2)


def _robust(
    problem: PoseProblem, residual: torch.Tensor, ahead: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sum of rho (...), its part from behind the camera (...), slope (..., D, N), there zero."""
    image = (residual[..., :2, :].square() * problem.weights[..., :2, :]).sum(-2)
    if problem.mixed is not None:
        cross = residual[..., 0, :] * residual[..., 1, :]
        image = image + 2.0 * problem.mixed * cross
    squared = torch.where(ahead, image, BEHIND_SIGMAS * BEHIND_SIGMAS)
    value, slope = kernel_value_and_weight(squared, problem.kernel, problem.width)
    value = torch.where(problem.weights[..., 0, :] > 0, value, 0.0)
    constant = torch.where(ahead, 0.0, value).sum(-1)
    slope = torch.where(ahead, slope, 0.0)[..., None, :]
    if residual.shape[-2] == 2:
        return value.sum(-1), constant, slope
    depth = torch.where(ahead, residual[..., 2, :].square() * problem.weights[..., 2, :], 0.0)
    depth_value, depth_slope = kernel_value_and_weight(depth, problem.kernel, problem.width)
    depth_slope = torch.where(ahead, depth_slope, 0.0)[..., None, :]
    total = (value + depth_value).sum(-1)
    return total, constant, torch.cat((slope, slope, depth_slope), -2)


def _add_prior(
    linear: PoseLinear, prior: tuple[torch.Tensor, torch.Tensor], pose: torch.Tensor
) -> PoseLinear:
    """Add e^T L e / 2 with e = log(prior^-1 T) of world_from_camera poses."""
    camera_from_world, information = prior
    deviation = se3.log(camera_from_world @ se3.inverse(pose))
    jacobian = se3.right_jacobian_inverse(deviation)
    pull = (information @ deviation[..., None]).squeeze(-1)
    return replace(
        linear,
        cost=linear.cost + 0.5 * (deviation * pull).sum(-1),
        gradient=linear.gradient + (jacobian.mT @ pull[..., None]).squeeze(-1),
        hessian=linear.hessian + jacobian.mT @ information @ jacobian,
    )
