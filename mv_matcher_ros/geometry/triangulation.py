# SPDX-License-Identifier: Apache-2.0
"""Points from many views: linear start, reprojection refinement, and how far to trust them.

Each point is seen by any subset of V views; all points and views are one batch. Sources: Hartley
and Sturm, Triangulation, CVIU 68(2), 1997 (Linear-LS and its reweighting by depth); Hartley and
Zisserman, Multiple View Geometry, 2nd edition, ch. 12.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import radians

import torch

from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.geometry.shapes import check, check_same_type
from mv_matcher_ros.geometry.spectral import adjugate3

# Rounds of the linear start in which each row is divided by the depth of the round before.
_REWEIGHTINGS = 2


@dataclass(frozen=True)
class Triangulation:
    """Points and what is known about them.

    Attributes:
        points: (..., P, 3) in the world; finite also where not valid.
        valid: (..., P) bool: two views or more, parallax, in front of every view, conditioned.
        parallax_rad: (..., P) largest angle between the viewing rays of two views.
        condition: (..., P) square root of the condition number (Frobenius) of the normal matrix:
            about the ratio of the largest to the smallest standard deviation of the point.
        depths: (..., P, V) depth in each view, also in those that do not see the point.
        residuals: (..., P, V, 2) predicted minus measured normalised coordinates, 0 where unseen.
        information: (..., P, 3, 3) J^T W J of the point in the world, in the units of `weights`.
    """

    points: torch.Tensor
    valid: torch.Tensor
    parallax_rad: torch.Tensor
    condition: torch.Tensor
    depths: torch.Tensor
    residuals: torch.Tensor
    information: torch.Tensor


def triangulate(
    xy: torch.Tensor,
    camera_from_world: torch.Tensor,
    weights: torch.Tensor | None = None,
    iterations: int = 2,
    min_parallax_rad: float = radians(0.5),
    max_condition: float = 1e3,
) -> Triangulation:
    """Triangulate P points from V views: weighted linear start, then Gauss-Newton on reprojection.

    Computed in float64 whatever the input is: depth from small parallax is a small difference.

    Args:
        xy: (..., P, V, 2) normalised coordinates; not finite means unseen.
        camera_from_world: (..., V, 4, 4) for all points, or (..., P, V, 4, 4).
        weights: (..., P, V) or a bool mask: multiply squared residuals, 0 is unseen; None is ones.
        iterations: Gauss-Newton steps.
        min_parallax_rad: points with less parallax are not valid.
        max_condition: points with a worse `condition` are not valid.

    Returns:
        Triangulation. Gradients are finite everywhere; they mean something where valid.

    Raises:
        GeometryError: shapes or types disagree.
    """
    plane, w, rotation, translation, origin = _components(xy, camera_from_world, weights)
    point = _linear(plane, rotation, translation, w)
    for _ in range(iterations):
        point = _gauss_newton(point, plane, rotation, translation, w)
    camera = _in_cameras(point, rotation, translation)
    residual, information, _ = _normal(camera, plane, rotation, w)
    parallax = _parallax(plane, rotation, w)
    condition = _condition(information)
    seen = w > 0
    depths = camera[..., 2, :, :]
    valid = (seen.sum(-2) >= 2) & (parallax >= min_parallax_rad) & (condition <= max_condition)
    valid = valid & ((depths > 0) | ~seen).all(-2) & point.isfinite().all(-1)
    residual = residual.movedim(-3, -1).transpose(-3, -2)
    floats = (point + origin, parallax, condition, depths.mT, residual, information)
    world, parallax, condition, depths, residual, information = (f.to(xy.dtype) for f in floats)
    return Triangulation(world, valid, parallax, condition, depths, residual, information)


def _components(
    xy: torch.Tensor, camera_from_world: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs in float64 with the points as last dimension, where the processor likes the long one.

    Returns:
        plane (..., 2, V, P) with zeros where unseen, weights (..., V, P), rotation
        (..., 3, 3, V, P or 1), translation (..., 3, V, P or 1) from the origin, origin (3,).
    """
    check('xy', xy, -1, -1, 2)
    check('camera_from_world', camera_from_world, -1, 4, 4)
    check_same_type(xy=xy, camera_from_world=camera_from_world)
    if weights is None:
        weights = torch.ones_like(xy[..., 0])
    weights = weights.to(xy.dtype)
    if weights.shape != xy.shape[:-1] or camera_from_world.shape[-3] != xy.shape[-2]:
        raise GeometryError(
            f'views disagree: xy {tuple(xy.shape)}, weights {tuple(weights.shape)}, '
            f'camera_from_world {tuple(camera_from_world.shape)}'
        )
    poses = camera_from_world.double()
    if poses.dim() == xy.dim():
        poses = poses[..., None, :, :, :]
    rotation = poses[..., :3, :3]
    centres = -(rotation.mT @ poses[..., :3, 3:]).squeeze(-1)
    # Far from the world's origin a point is a small difference of large numbers.
    origin = centres.detach().flatten(0, -2).mean(0) if centres.numel() else centres.new_zeros(3)
    translation = (rotation @ (origin - centres)[..., None]).squeeze(-1)
    seen = xy.isfinite().all(-1) & weights.isfinite() & (weights > 0)
    plane = torch.where(seen[..., None], xy, 0.0).double()
    return (
        plane.movedim(-1, -3).mT.contiguous(),
        torch.where(seen, weights, 0.0).double().mT.contiguous(),
        rotation.movedim((-2, -1), (-4, -3)).mT,
        translation.movedim(-1, -3).mT,
        origin,
    )


def _in_cameras(
    point: torch.Tensor, rotation: torch.Tensor, translation: torch.Tensor
) -> torch.Tensor:
    """Points (..., P, 3) in every camera, (..., 3, V, P)."""
    return (rotation * point.mT[..., None, :, None, :]).sum(-3) + translation


def _linear(
    plane: torch.Tensor, rotation: torch.Tensor, translation: torch.Tensor, w: torch.Tensor
) -> torch.Tensor:
    """Least squares of x (r3 X + t3) = r1 X + t1 and the same for y, rows divided by depth."""
    rows = plane[..., :, None, :, :] * rotation[..., 2:, :, :, :] - rotation[..., :2, :, :, :]
    right = translation[..., :2, :, :] - plane * translation[..., 2:, :, :]
    scale = w
    for _ in range(1 + _REWEIGHTINGS):
        point = _solve(*_sums(rows, right, scale))
        depth = _in_cameras(point, rotation, translation)[..., 2, :, :].detach().abs()
        # A depth near zero is no weight; sorting out points behind is left to the refinement.
        scale = w / depth.clamp_min(1e-3 * depth.mean(-2, keepdim=True) + 1e-12).square()
    return point


def _sums(
    rows: torch.Tensor, right: torch.Tensor, w: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """J^T W J (..., P, 3, 3) and J^T W r (..., P, 3) of rows (..., 2, 3, V, P)."""
    weighted = rows * w[..., None, None, :, :]
    normal = (weighted[..., :, :, None, :, :] * rows[..., :, None, :, :, :]).sum((-5, -2))
    target = (weighted * right[..., :, None, :, :]).sum((-4, -2))
    return normal.movedim(-1, -3), target.mT


def _normal(
    camera: torch.Tensor, plane: torch.Tensor, rotation: torch.Tensor, w: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Residuals (..., 2, V, P), J^T W J (..., P, 3, 3) and J^T W r (..., P, 3)."""
    depth = camera[..., 2:, :, :]
    ahead = depth > 1e-9
    inverse = 1.0 / torch.where(ahead, depth, 1.0)
    predicted = camera[..., :2, :, :] * inverse
    residual = torch.where((w > 0)[..., None, :, :], predicted - plane, 0.0)
    rows = rotation[..., :2, :, :, :] - predicted[..., :, None, :, :] * rotation[..., 2:, :, :, :]
    # Views that have the point behind them say nothing here; they make it not valid in the end.
    known = torch.where(ahead[..., 0, :, :], w, 0.0)
    return residual, *_sums(rows * inverse[..., None, :, :], residual, known)


def _gauss_newton(
    point: torch.Tensor,
    plane: torch.Tensor,
    rotation: torch.Tensor,
    translation: torch.Tensor,
    w: torch.Tensor,
) -> torch.Tensor:
    camera = _in_cameras(point, rotation, translation)
    step = _solve(*_normal(camera, plane, rotation, w)[1:])
    # Half the distance to the nearest camera plane at most: beyond that the model does not reach.
    depth = torch.where(w > 0, camera[..., 2, :, :].detach().abs(), torch.inf)
    unbounded = depth.new_full((*depth.shape[:-2], 1, depth.shape[-1]), 1e12)
    reach = torch.cat((depth, unbounded), -2).amin(-2)[..., None]
    length = step.detach().norm(dim=-1, keepdim=True)
    return point - step * (0.5 * reach / length.clamp_min(1e-30)).clamp_max(1.0)


def _solve(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Symmetric positive 3x3 systems in closed form; zero where there is no rank."""
    scale = matrix.detach().diagonal(dim1=-2, dim2=-1).sum(-1)
    safe = torch.where(scale > 0, scale, 1.0)[..., None]
    adjugate, determinant = adjugate3(matrix / safe[..., None])
    regular = determinant > 1e-13
    solution = (adjugate @ (vector / safe)[..., None]).squeeze(-1)
    solution = solution / torch.where(regular, determinant, 1.0)[..., None]
    return torch.where(regular[..., None], solution, 0.0)


def _condition(information: torch.Tensor) -> torch.Tensor:
    matrix = information.detach()
    scale = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
    matrix = matrix / torch.where(scale > 0, scale, 1.0)[..., None, None]
    adjugate, determinant = adjugate3(matrix)
    product = matrix.flatten(-2).norm(dim=-1) * adjugate.flatten(-2).norm(dim=-1)
    regular = determinant > 1e-18
    squared = torch.where(regular, product / torch.where(regular, determinant, 1.0), torch.inf)
    return squared.sqrt()


def _parallax(plane: torch.Tensor, rotation: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Largest angle between measured rays of two seeing views, (..., P)."""
    plane, rotation = plane.detach(), rotation.detach()
    if w.shape[-2] == 0:
        return w.new_zeros(*w.shape[:-2], w.shape[-1])
    ray = torch.cat((plane, torch.ones_like(plane[..., :1, :, :])), -3)
    # World ray r1^T x + r2^T y + r3^T of rows r, unit length, (..., 3, V, P).
    ray = (rotation * ray[..., :, None, :, :]).sum(-4)
    ray = ray / ray.norm(dim=-3, keepdim=True)
    cosine = (ray[..., :, None, :] * ray[..., None, :, :]).sum(-4)
    seen = w > 0
    both = seen[..., :, None, :] & seen[..., None, :, :]
    smallest = torch.where(both, cosine, 1.0).amin((-3, -2)).clamp(-1.0, 1.0)
    # 1 - cos = 2 sin^2(a / 2), in float64 good to 1e-8 rad.
    return 2.0 * ((1.0 - smallest) * 0.5).sqrt().asin()
