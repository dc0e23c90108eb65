# SPDX-License-Identifier: Apache-2.0
"""Pose of a camera from three points, in closed form and in batches.

The law of cosines in the three triangles gives two homogeneous quadrics in the distances, two
conics. One degenerate conic of their pencil is a pair of lines; each line meets the conics in up
to two points, and each point is a pose. Sources: Persson and Nordberg, Lambda Twist, ECCV 2018
(the pencil, polishing of the distances); Ding, Yang, Larsson, Olsson and Astrom, Revisiting the
P3P problem, CVPR 2023 (lines of the degenerate conic through its adjugate).
"""

from __future__ import annotations

import torch

from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.geometry.relative_pose import tangent_basis
from mv_matcher_ros.geometry.se3 import compose_matrix, hat
from mv_matcher_ros.geometry.shapes import check, check_same_type
from mv_matcher_ros.geometry.spectral import adjugate3

_POLISHING_STEPS = 3


def p3p(world_points: torch.Tensor, rays: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All poses that put three points on three rays.

    Args:
        world_points: (..., 3, 3) one point a row.
        rays: (..., 3, 3) viewing rays in the camera frame, one a row, any length.

    Returns:
        camera_from_world (..., 4, 4, 4), four candidates, and valid (..., 4) bool. Candidates that
        do not exist, and all of points on a line or identical, are not valid and the identity.
        No gradient: differentiate the refinement instead.

    Raises:
        GeometryError: wrong shape or types that differ.
    """
    check('world_points', world_points, 3, 3)
    check('rays', rays, 3, 3)
    check_same_type(world_points=world_points, rays=rays)
    if world_points.shape != rays.shape:
        raise GeometryError(
            f'world_points {tuple(world_points.shape)} and rays {tuple(rays.shape)} disagree'
        )
    with torch.no_grad():
        x = world_points.double()
        y = torch.nn.functional.normalize(rays.double(), dim=-1)
        usable = x.isfinite().all((-2, -1)) & y.isfinite().all((-2, -1))
        x = torch.where(usable[..., None, None], x, 0.0)
        y = torch.where(usable[..., None, None], y, 0.0)
        distances, valid = _distances(x, y)
        pose, regular = _pose(x, y, distances)
        valid = valid & regular & usable[..., None]
        eye = torch.eye(4, dtype=x.dtype, device=x.device)
        pose = torch.where(valid[..., None, None], pose, eye)
    return pose.to(world_points.dtype), valid


def _distances(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances (..., 4, 3) of the points from the camera, and which exist (..., 4)."""
    pairs = ((0, 1), (0, 2), (1, 2))
    a = torch.stack([(x[..., i, :] - x[..., j, :]).square().sum(-1) for i, j in pairs], -1)
    size = a.amax(-1, keepdim=True)
    flat = size == 0
    a = a / torch.where(flat, 1.0, size)
    cosine = [(y[..., i, :] * y[..., j, :]).sum(-1) for i, j in pairs]
    forms = torch.stack([_cosine_form(c, *p) for c, p in zip(cosine, pairs, strict=True)], -3)
    a12, a13, a23 = a[..., :, None, None].unbind(-3)
    m12, m13, m23 = forms.unbind(-3)
    first, second = m12 * a23 - m23 * a12, m13 * a23 - m23 * a13
    lines, other, real = _line_pair(first, second)
    roots, exists = _meet(lines, other[..., None, :, :])
    roots = roots.flatten(-3, -2)  # (..., 4, 3)
    exists = (exists & real[..., None])[..., None].expand(*exists.shape, 2).flatten(-2)
    roots = roots * torch.where(roots.sum(-1, keepdim=True) < 0, -1.0, 1.0)
    stretch = _form_values(forms, roots).sum(-1)
    exists = exists & (stretch > 0)
    ratio = a.sum(-1, keepdim=True) / torch.where(exists, stretch, 1.0)
    roots = roots * ratio.sqrt()[..., None]
    for _ in range(_POLISHING_STEPS):
        roots = _polish(forms, a, roots)
    error = (_form_values(forms, roots) - a[..., None, :]).abs().amax(-1)
    exists = exists & (roots > 0).all(-1) & (error < 1e-8) & ~flat
    return roots * size[..., None].sqrt(), exists


def _cosine_form(cosine: torch.Tensor, i: int, j: int) -> torch.Tensor:
    """Quadratic form d_i^2 + d_j^2 - 2 cos d_i d_j as a matrix (..., 3, 3)."""
    form = cosine.new_zeros(*cosine.shape, 3, 3)
    form[..., i, i] = 1.0
    form[..., j, j] = 1.0
    form[..., i, j] = -cosine
    form[..., j, i] = -cosine
    return form


def _form_values(forms: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """d^T M_k d of forms (..., 3, 3, 3) at d (..., S, 3), (..., S, 3)."""
    return torch.einsum('...kij,...si,...sj->...sk', forms, d, d)


def _line_pair(
    first: torch.Tensor, second: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A degenerate conic of the pencil as two lines (..., 2, 3), another conic, is it real."""
    adjugate_first, determinant_first = adjugate3(first)
    adjugate_second, determinant_second = adjugate3(second)
    c1 = (adjugate_first * second.mT).sum((-2, -1))
    c2 = (adjugate_second * first.mT).sum((-2, -1))
    # det(A + g B) = 0 with the better conditioned end of the cubic as its leading term.
    swap = determinant_second.abs() < determinant_first.abs()
    a = torch.where(swap[..., None, None], second, first)
    b = torch.where(swap[..., None, None], first, second)
    gamma = _real_root(
        torch.where(swap, determinant_first, determinant_second),
        torch.where(swap, c1, c2),
        torch.where(swap, c2, c1),
        torch.where(swap, determinant_second, determinant_first),
    )
    conic = a + gamma[..., None, None] * b
    conic = conic / conic.flatten(-2).norm(dim=-1).clamp_min(1e-300)[..., None, None]
    # The adjugate of a pair of lines g h^T + h g^T is -(g x h)(g x h)^T.
    adjugate = -adjugate3(conic)[0]
    diagonal = adjugate.diagonal(dim1=-2, dim2=-1)
    best = diagonal.argmax(-1, keepdim=True)
    square = diagonal.gather(-1, best)
    real = square[..., 0] > 0
    column = adjugate.gather(-2, best[..., None].expand(*best.shape, 3)).squeeze(-2)
    meeting = column / square.clamp_min(1e-300).sqrt()
    product = conic + hat(meeting)
    index = product.abs().flatten(-2).argmax(-1)[..., None, None]
    row = product.gather(-2, (index // 3).expand(*index.shape[:-1], 3)).squeeze(-2)
    column = product.mT.gather(-2, (index % 3).expand(*index.shape[:-1], 3)).squeeze(-2)
    near_a = (gamma.abs() <= 1.0)[..., None, None]
    return torch.stack((row, column), -2), torch.where(near_a, b, a), real


def _real_root(
    c3: torch.Tensor, c2: torch.Tensor, c1: torch.Tensor, c0: torch.Tensor
) -> torch.Tensor:
    """The real root of a cubic that is best separated from the others; zero if c3 vanishes."""
    size = torch.stack((c3, c2, c1, c0), -1).abs().amax(-1)
    linear = c3.abs() <= 1e-14 * size
    safe = torch.where(linear, 1.0, c3)
    b, c, d = c2 / safe, c1 / safe, c0 / safe
    q, r = (b * b - 3.0 * c) / 9.0, (2.0 * b * b * b - 9.0 * b * c + 27.0 * d) / 54.0
    q3 = q * q * q
    three = r * r < q3
    root_q = torch.where(three, q, 1.0).sqrt()
    ratio = torch.where(three, r.abs() / root_q.pow(3), 0.0).clamp_max(1.0)
    triple = 2.0 * root_q * (ratio.acos() / 3.0).cos()
    big = (r.abs() + torch.where(three, 0.0, r * r - q3).sqrt()).pow(1.0 / 3.0)
    single = big + q / torch.where(big > 0, big, 1.0)
    sign = torch.where(r < 0, 1.0, -1.0)
    x = sign * torch.where(three, triple, single) - b / 3.0
    for _ in range(2):
        slope = (3.0 * x + 2.0 * b) * x + c
        value = ((x + b) * x + c) * x + d
        x = x - torch.where(slope == 0, 0.0, value / torch.where(slope == 0, 1.0, slope))
    return torch.where(linear, 0.0, x)


def _meet(lines: torch.Tensor, conic: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (..., 2, 2, 3) in which each line (..., 2, 3) meets the conic; real ones (..., 2)."""
    length = lines.norm(dim=-1, keepdim=True)
    basis = tangent_basis(lines / torch.where(length > 0, length, 1.0))
    form = basis.mT @ conic @ basis
    a, b, c = form[..., 0, 0], form[..., 0, 1], form[..., 1, 1]
    discriminant = b * b - a * c
    # A double root, where solutions meet, comes out slightly negative.
    exists = discriminant > -1e-10 * (b * b + (a * c).abs())
    root = discriminant.clamp_min(0.0).sqrt()
    q = -(b + torch.where(b < 0, -root, root))
    # a s^2 + 2 b s t + c t^2 = 0 has (s, t) = (q, a) and (c, q): no division, no cancellation.
    st = torch.stack((torch.stack((q, a), -1), torch.stack((c, q), -1)), -2)
    return st @ basis.mT, exists & (length[..., 0] > 0)


def _polish(forms: torch.Tensor, a: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """Newton step of the distances (..., 4, 3) on the three laws of cosines."""
    residual = _form_values(forms, d) - a[..., None, :]
    jacobian = 2.0 * torch.einsum('...kij,...sj->...ski', forms, d)
    adjugate, determinant = adjugate3(jacobian)
    regular = determinant.abs() > 1e-12
    step = (adjugate @ residual[..., None]).squeeze(-1)
    step = step / torch.where(regular, determinant, 1.0)[..., None]
    return d - torch.where(regular[..., None], step, 0.0)


def _pose(
    x: torch.Tensor, y: torch.Tensor, distances: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pose (..., 4, 4, 4) that lays the world triangle on the camera triangle."""
    camera = y[..., None, :, :] * distances[..., None]
    world_frame, regular = _triangle_frame(x)
    camera_frame, _ = _triangle_frame(camera)
    rotation = camera_frame @ world_frame.mT[..., None, :, :]
    moved = (rotation @ x[..., None, 0, :, None]).squeeze(-1)
    return compose_matrix(rotation, camera[..., 0, :] - moved), regular[..., None]


def _triangle_frame(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal axes (..., 3, 3), columns, of a triangle, and if it is one."""
    first = points[..., 1, :] - points[..., 0, :]
    second = points[..., 2, :] - points[..., 0, :]
    normal = torch.linalg.cross(first, second, dim=-1)
    size, area = first.norm(dim=-1), normal.norm(dim=-1)
    regular = area > 1e-8 * size * second.norm(dim=-1)
    e1 = first / torch.where(size > 0, size, 1.0)[..., None]
    e3 = normal / torch.where(area > 0, area, 1.0)[..., None]
    return torch.stack((e1, torch.linalg.cross(e3, e1, dim=-1), e3), -1), regular
