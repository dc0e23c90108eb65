# SPDX-License-Identifier: Apache-2.0
"""Projection and unprojection of calibrated cameras, with Jacobians.

Pixels are (u, v) with pixel centres at integers: u = fx xd + cx, where xd is the distorted
normalised coordinate. Optical frame: x right, y down, z forward.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mv_matcher_ros.datatypes import Camera
from mv_matcher_ros.geometry.distortion import (
    Coefficients,
    Terms,
    distort,
    distort_with_jacobian,
    equidistant_angle,
    equidistant_scale,
    unpack,
)
from mv_matcher_ros.geometry.fold_over import valid_radius
from mv_matcher_ros.geometry.shapes import check, check_same_type
from mv_matcher_ros.geometry.undistortion import (
    axis_safe_sine,
    invert_angle,
    near_axis,
    sine_series,
    undistort,
)

__all__ = [
    'camera_normalise',
    'camera_pixel_jacobian',
    'camera_project',
    'camera_unproject',
    'distort',
    'distort_with_jacobian',
    'pixel_jacobian',
    'project',
    'project_with_jacobian',
    'undistort',
    'unproject',
    'unproject_with_jacobian',
    'valid_radius',
]

Intrinsics = torch.Tensor | Sequence[float]

# Points nearer to the camera plane than this are not projected (units of the points).
MIN_DEPTH = 1e-6


def _focal_and_centre(
    intrinsics: Intrinsics, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    if not isinstance(intrinsics, torch.Tensor):
        intrinsics = like.new_tensor(tuple(intrinsics))
    check('intrinsics', intrinsics, 4)
    check_same_type(points=like, intrinsics=intrinsics)
    return intrinsics[..., :2], intrinsics[..., 2:]


def project(
    points: torch.Tensor,
    intrinsics: Intrinsics,
    model: str = 'pinhole',
    coefficients: Coefficients = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels of points in the camera frame.

    Args:
        points: (..., 3), any length unit.
        intrinsics: (fx, fy, cx, cy) or (..., 4), broadcast against the leading dimensions.
        model, coefficients: as in `distort`.

    Returns:
        (..., 2) pixels, and (...) bool: in front of the camera (fisheye: within the model's
        largest angle) and inside the one-to-one region of the lens. Where False the pixel is
        finite for finite points but means nothing. Nobody asks here if it lies inside the image.

    Raises:
        GeometryError: wrong shape or type, unknown model.
    """
    check('points', points, 3)
    focal, centre = _focal_and_centre(intrinsics, points)
    k = unpack(model, coefficients, points)
    x, y, z = points.unbind(-1)
    if model == 'equidistant':
        scale, _, _ = equidistant_scale(x, y, z, k)
        distorted = points[..., :2] * scale[..., None]
        return distorted * focal + centre, _fisheye_valid(points, coefficients)
    ahead = z > MIN_DEPTH
    xy = points[..., :2] / torch.where(ahead, z, 1.0)[..., None]
    valid = ahead & _inside(xy, model, coefficients)
    return distort(xy, model, coefficients) * focal + centre, valid


def _inside(xy: torch.Tensor, model: str, coefficients: Coefficients) -> torch.Tensor:
    limit = valid_radius(model, coefficients)
    return (xy.detach() ** 2).sum(-1) < limit * limit


def _fisheye_valid(points: torch.Tensor, coefficients: Coefficients) -> torch.Tensor:
    x, y, z = points.detach().unbind(-1)
    rho = torch.hypot(x, y)
    # Straight behind has no direction in the image, the camera centre no direction at all.
    somewhere = (rho > MIN_DEPTH * z.abs()) | (z > MIN_DEPTH)
    return somewhere & (torch.atan2(rho, z) < valid_radius('equidistant', coefficients))


def project_with_jacobian(
    points: torch.Tensor,
    intrinsics: Intrinsics,
    model: str = 'pinhole',
    coefficients: Coefficients = (),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `project`, with Jacobians.

    Returns:
        pixels (..., 2), valid (...), d pixel / d point (..., 2, 3), and
        d pixel / d (fx, fy, cx, cy) (..., 2, 4).
    """
    check('points', points, 3)
    focal, centre = _focal_and_centre(intrinsics, points)
    x, y, z = points.unbind(-1)
    if model == 'equidistant':
        k = unpack(model, coefficients, points)
        scale, along, d_z = equidistant_scale(x, y, z, k)
        xy = points[..., :2]
        distorted = xy * scale[..., None]
        eye = torch.eye(2, dtype=xy.dtype, device=xy.device)
        outer = xy[..., :, None] * xy[..., None, :]
        planar = scale[..., None, None] * eye + along[..., None, None] * outer
        d_point = torch.cat((planar, (xy * d_z[..., None])[..., None]), -1)
        valid = _fisheye_valid(points, coefficients)
    else:
        ahead = z > MIN_DEPTH
        inverse_depth = torch.where(ahead, z, 1.0).reciprocal()[..., None]
        xy = points[..., :2] * inverse_depth
        distorted, planar = distort_with_jacobian(xy, model, coefficients)
        planar = planar * inverse_depth[..., None]
        d_point = torch.cat((planar, -planar @ xy[..., None]), -1)
        valid = ahead & _inside(xy, model, coefficients)
    return (
        distorted * focal + centre,
        valid,
        d_point * focal[..., None],
        _intrinsics_jacobian(distorted),
    )


def _intrinsics_jacobian(distorted: torch.Tensor) -> torch.Tensor:
    """d pixel / d (fx, fy, cx, cy) = [diag(xd, yd), I], (..., 2, 4)."""
    eye = torch.eye(2, dtype=distorted.dtype, device=distorted.device).expand(
        *distorted.shape[:-1], 2, 2
    )
    return torch.cat((torch.diag_embed(distorted), eye), -1)


def unproject(
    pixels: torch.Tensor,
    intrinsics: Intrinsics,
    model: str = 'pinhole',
    coefficients: Coefficients = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Viewing rays of pixels.

    Args:
        pixels: (..., 2), centres at integers.
        intrinsics, model, coefficients: as in `project`.

    Returns:
        (..., 3) rays in the camera frame, and (...) bool: the pixel has a ray. The pinhole family
        gives z = 1, `equidistant` gives unit rays, also beyond 90 degrees (z < 0).

    Raises:
        GeometryError: wrong shape or type, unknown model.
    """
    check('pixels', pixels, 2)
    focal, centre = _focal_and_centre(intrinsics, pixels)
    distorted = (pixels - centre) / focal
    if model == 'equidistant':
        k = unpack(model, coefficients, pixels)
        theta, valid = invert_angle(distorted, k)
        return _fisheye_ray(distorted, theta, k), valid
    xy, valid = undistort(distorted, model, coefficients)
    return torch.cat((xy, torch.ones_like(xy[..., :1])), -1), valid


def _fisheye_ray(distorted: torch.Tensor, theta: torch.Tensor, k: Terms) -> torch.Tensor:
    sine = axis_safe_sine(distorted, theta, k)
    return torch.cat((distorted * sine[..., None], theta.cos()[..., None]), -1)


def unproject_with_jacobian(
    pixels: torch.Tensor,
    intrinsics: Intrinsics,
    model: str = 'pinhole',
    coefficients: Coefficients = (),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `unproject`, with Jacobians.

    Returns:
        rays (..., 3), valid (...), d ray / d pixel (..., 3, 2), and d ray / d (fx, fy, cx, cy)
        (..., 3, 4); Jacobians are zero where not valid.
    """
    rays, valid = unproject(pixels, intrinsics, model, coefficients)
    focal, centre = _focal_and_centre(intrinsics, pixels)
    distorted = (pixels - centre) / focal
    if model == 'equidistant':
        d_ray = _fisheye_ray_jacobian(distorted, unpack(model, coefficients, pixels))
    else:
        _, forward = distort_with_jacobian(rays[..., :2], model, coefficients)
        eye = torch.eye(2, dtype=forward.dtype, device=forward.device)
        inverse = torch.linalg.inv(torch.where(valid[..., None, None], forward, eye))
        d_ray = torch.cat((inverse, torch.zeros_like(inverse[..., :1, :])), -2)
    d_ray = torch.where(valid[..., None, None], d_ray, 0.0) / focal[..., None, :]
    # pixel = F xd + c, so at a fixed pixel d(xd)/d(f, c) = -F^-1 d(pixel)/d(f, c).
    return rays, valid, d_ray, -d_ray @ _intrinsics_jacobian(distorted)


def _fisheye_ray_jacobian(distorted: torch.Tensor, k: Terms) -> torch.Tensor:
    """d ray / d distorted (..., 3, 2); ray = (q xd, q yd, cos theta), q = sin(theta) / |xd|."""
    theta, valid = invert_angle(distorted, k)
    _, slope = equidistant_angle(theta, k)
    d_theta = 1.0 / torch.where(valid, slope, 1.0)
    u, near, rho = near_axis(distorted)
    q = axis_safe_sine(distorted, theta, k)
    c1, c2 = sine_series(k)
    far = (theta.cos() * d_theta * rho - theta.sin()) / rho.pow(3)
    along = torch.where(near, 2.0 * c1 + 4.0 * c2 * u, far)
    eye = torch.eye(2, dtype=distorted.dtype, device=distorted.device)
    outer = distorted[..., :, None] * distorted[..., None, :]
    planar = q[..., None, None] * eye + along[..., None, None] * outer
    return torch.cat((planar, -(q * d_theta)[..., None, None] * distorted[..., None, :]), -2)


def pixel_jacobian(
    xy: torch.Tensor,
    intrinsics: Intrinsics,
    model: str = 'pinhole',
    coefficients: Coefficients = (),
) -> torch.Tensor:
    """d pixel / d ideal normalised coordinates: turns pixel noise into noise on the plane.

    With J this Jacobian, information on the plane is J^T diag(1/sigma_px^2) J.

    Args:
        xy: (..., 2) ideal normalised coordinates, e.g. from `camera_normalise`.
        intrinsics, model, coefficients: as in `project`.

    Returns:
        (..., 2, 2).
    """
    check('xy', xy, 2)
    focal, _ = _focal_and_centre(intrinsics, xy)
    return distort_with_jacobian(xy, model, coefficients)[1] * focal[..., None]


def camera_project(camera: Camera, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`project` with the calibration of `camera`; points (..., 3) in its optical frame."""
    return project(points, camera.intrinsics, camera.model, camera.distortion)


def camera_unproject(camera: Camera, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`unproject` with the calibration of `camera`; pixels (..., 2)."""
    return unproject(pixels, camera.intrinsics, camera.model, camera.distortion)


def camera_normalise(camera: Camera, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ideal coordinates (x/z, y/z) of pixels.

    Args:
        camera: calibration.
        pixels: (..., 2).

    Returns:
        (..., 2) on the plane z = 1, and (...) bool: undistortion succeeded (fisheye: and the ray
        is nearer to the axis than 90 degrees).
    """
    check('pixels', pixels, 2)
    focal, centre = _focal_and_centre(camera.intrinsics, pixels)
    return undistort((pixels - centre) / focal, camera.model, camera.distortion)


def camera_pixel_jacobian(camera: Camera, xy: torch.Tensor) -> torch.Tensor:
    """`pixel_jacobian` with the calibration of `camera`; xy (..., 2) → (..., 2, 2)."""
    return pixel_jacobian(xy, camera.intrinsics, camera.model, camera.distortion)
