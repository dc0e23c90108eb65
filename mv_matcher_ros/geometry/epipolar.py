# SPDX-License-Identifier: Apache-2.0
"""Two views of one scene: weighted eight-point, essential matrices, epipolar errors.

All coordinates are normalised (x/z, y/z). The essential matrix of `b_from_a` = [R | t] is
E = hat(t) R with x_b^T E x_a = 0 and |t| = 1, so its singular values are (1, 1, 0).
Sources: Longuet-Higgins 1981; Hartley, In defense of the eight-point algorithm, PAMI 19(6), 1997;
Horn, Recovering baseline and orientation from the essential matrix, 1990; Hartley and Zisserman,
Multiple View Geometry, 2nd edition, ch. 9 and 11.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.geometry.se3 import compose_matrix, hat
from mv_matcher_ros.geometry.shapes import check, check_same_type
from mv_matcher_ros.geometry.spectral import adjugate3, project_essential, smallest_eigenvector

# Noise decides the null vector where the two smallest singular values of the system are this much
# alike. Measured over random scenes of 100 matches and more: planes and pure rotations have ratios
# above 0.75 (90 %), scenes with 3 degrees of parallax at 0.5 px of 500 px focal length below 0.25.
# The ratio of few matches is itself noisy, and lower.
DEGENERATE_RATIO = 0.7
DEGENERATE_RATIO_FEW = 0.5
FEW_MATCHES = 50


@dataclass(frozen=True)
class EightPoint:
    """Result of the eight-point algorithm.

    Attributes:
        essential: (..., 3, 3), always a valid essential matrix; where degenerate without meaning.
        degeneracy: (...) in [0, 1], ratio of the two smallest singular values of the system.
        degenerate: (...) bool: the matches do not determine the essential matrix.
    """

    essential: torch.Tensor
    degeneracy: torch.Tensor
    degenerate: torch.Tensor


def check_pair(
    xy_a: torch.Tensor, xy_b: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Matched points with unusable ones (not finite, or weight not positive) at zero weight.

    Args:
        xy_a, xy_b: (..., N, 2) matched normalised coordinates.
        weights: (..., N), or None for ones.

    Returns:
        xy_a, xy_b and weights, finite.

    Raises:
        GeometryError: shapes or types disagree.
    """
    check('xy_a', xy_a, -1, 2)
    check('xy_b', xy_b, -1, 2)
    if weights is None:
        weights = torch.ones_like(xy_a[..., 0])
    check('weights', weights, -1)
    check_same_type(xy_a=xy_a, xy_b=xy_b, weights=weights)
    if xy_a.shape != xy_b.shape or weights.shape != xy_a.shape[:-1]:
        raise GeometryError(
            f'matches disagree: xy_a {tuple(xy_a.shape)}, xy_b {tuple(xy_b.shape)}, '
            f'weights {tuple(weights.shape)}'
        )
    usable = xy_a.isfinite().all(-1) & xy_b.isfinite().all(-1) & weights.isfinite() & (weights > 0)
    keep = usable[..., None]
    return (
        torch.where(keep, xy_a, 0.0),
        torch.where(keep, xy_b, 0.0),
        torch.where(usable, weights, 0.0),
    )


def homogeneous(xy: torch.Tensor) -> torch.Tensor:
    """(..., 2) → (..., 3) with a last coordinate of one."""
    return torch.cat((xy, torch.ones_like(xy[..., :1])), -1)


def condition(xy: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Hartley's normalisation with weights: weighted centroid at 0, weighted mean square radius 2.

    Args:
        xy: (..., N, 2).
        share: (..., N) weights that sum to one.

    Returns:
        (..., N, 2) conditioned points and the (..., 3, 3) matrix that makes them.
    """
    centre = (share[..., None] * xy).sum(-2, keepdim=True)
    shifted = xy - centre
    mean_square = (share * (shifted * shifted).sum(-1)).sum(-1)
    # Identical points have no spread: they are left at their scale, and flagged by their rank.
    alike = mean_square < torch.finfo(xy.dtype).eps
    scale = (2.0 / torch.where(alike, 2.0, mean_square)).sqrt()
    zero, one = torch.zeros_like(scale), torch.ones_like(scale)
    cx, cy = (-scale[..., None] * centre[..., 0, :]).unbind(-1)
    matrix = torch.stack((scale, zero, cx, zero, scale, cy, zero, zero, one), -1)
    return shifted * scale[..., None, None], matrix.unflatten(-1, (3, 3))


def weight_share(weights: torch.Tensor) -> torch.Tensor:
    """Weights (..., N) divided by their sum; all zero stays all zero."""
    total = weights.sum(-1, keepdim=True)
    return weights / torch.where(total > 0, total, 1.0)


def eight_point(
    xy_a: torch.Tensor,
    xy_b: torch.Tensor,
    weights: torch.Tensor | None = None,
    gap_floor: float = 1e-6,
) -> EightPoint:
    """Essential matrix that minimises the weighted squared algebraic error.

    The 9x9 normal matrix is summed and solved in float64 whatever the input is: it squares the
    condition number, which float32 does not survive at low parallax.

    Degenerate matches (fewer than eight, points on a plane, pure rotation, all weights zero) leave
    a null space of more than one dimension. The value then is a valid essential matrix near some
    vector of it, which need not explain the matches (use `select_two_view_model`), `degenerate` is
    set, and the gradient is damped by the eigenvalue gap (see `smallest_eigenvector`): it is
    finite everywhere and vanishes where the gap does.

    Args:
        xy_a, xy_b: (..., N, 2) matched normalised coordinates; N may be zero. Pairs that are not
            finite count as absent.
        weights: (..., N), multiply the squared residuals; only their ratios matter. None is ones.
        gap_floor: eigenvalue gaps below this share of the largest are damped in the gradient.

    Returns:
        EightPoint.

    Raises:
        GeometryError: shapes or types disagree.
    """
    a, b, w = check_pair(xy_a, xy_b, weights)
    dtype = a.dtype
    a, b, w = a.double(), b.double(), w.double()
    share = weight_share(w)
    a_conditioned, condition_a = condition(a, share)
    b_conditioned, condition_b = condition(b, share)
    left, right = homogeneous(b_conditioned), homogeneous(a_conditioned)
    rows = (left[..., :, None] * right[..., None, :]).flatten(-2)
    normal = rows.mT @ (rows * share[..., None])
    vector, values = smallest_eigenvector(normal, gap_floor)
    essential = condition_b.mT @ vector.unflatten(-1, (3, 3)) @ condition_a
    ratio, degenerate = null_space_ratio(values, (w > 0).sum(-1), needed=8)
    essential = project_essential(essential / essential.flatten(-2).norm(dim=-1)[..., None, None])
    return EightPoint(essential.to(dtype), ratio.to(dtype), degenerate)


def null_space_ratio(
    eigenvalues: torch.Tensor, count: torch.Tensor, needed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far a null vector is from being unique.

    Args:
        eigenvalues: (..., n) of the normal matrix, ascending.
        count: (...) equations with positive weight.
        needed: fewest matches that determine the vector.

    Returns:
        (...) ratio of the two smallest singular values in [0, 1], (...) bool undetermined.
    """
    # Rounding leaves eigenvalues of about eps times the largest; below that all are alike zero.
    noise = 100.0 * torch.finfo(eigenvalues.dtype).eps * eigenvalues[..., -1].clamp_min(1e-30)
    smallest, second = eigenvalues[..., 0].clamp_min(0.0), eigenvalues[..., 1].clamp_min(0.0)
    ratio = ((smallest + noise) / (second + noise)).sqrt().clamp_max(1.0)
    ratio = torch.where(count < needed, 1.0, ratio)
    limit = torch.where(count < FEW_MATCHES, DEGENERATE_RATIO_FEW, DEGENERATE_RATIO)
    return ratio, ratio > limit


def epipolar_lines(target_from_source: torch.Tensor, source_xy: torch.Tensor) -> torch.Tensor:
    """Lines in the target view on which the partners of points of the source view lie.

    Args:
        target_from_source: (..., 4, 4).
        source_xy: (..., N, 2) on the normalised plane.

    Returns:
        (..., N, 3), whose product with a homogeneous point is its distance on the normalised
        plane; zero where there is no line (no baseline, or the point is the epipole).
    """
    essential = hat(target_from_source[..., :3, 3]) @ target_from_source[..., :3, :3]
    lines = homogeneous(source_xy) @ essential.mT
    length = lines[..., :2].norm(dim=-1, keepdim=True)
    return lines / torch.where(length > 1e-9, length, torch.inf)


def essential_from_pose(b_from_a: torch.Tensor) -> torch.Tensor:
    """Essential matrix hat(t / |t|) R; zero where there is no translation.

    Args:
        b_from_a: (..., 4, 4).

    Returns:
        (..., 3, 3).
    """
    check('b_from_a', b_from_a, 4, 4)
    translation = b_from_a[..., :3, 3]
    length2 = (translation * translation).sum(-1, keepdim=True)
    still = length2 == 0
    unit = translation / torch.where(still, 1.0, length2).sqrt()
    return hat(unit) @ b_from_a[..., :3, :3]


def decompose_essential(essential: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The two rotations and the direction, up to sign, that an essential matrix stands for.

    Closed form without SVD, differentiable everywhere: with E = hat(t) R and |t| = 1,
    t t^T = I - E E^T and R = cof(E) - hat(t) E, for both signs of t (Horn 1990).

    Args:
        essential: (..., 3, 3); made valid by `project_essential` first.

    Returns:
        rotations (..., 2, 3, 3) of `b_from_a`, translation (..., 3) of unit length.
    """
    e = project_essential(essential)
    outer = torch.eye(3, dtype=e.dtype, device=e.device) - e @ e.mT
    best = outer.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None]
    row = outer.gather(-2, best.expand(*best.shape[:-1], 3)).squeeze(-2)
    translation = row / row.norm(dim=-1, keepdim=True)
    cofactor = adjugate3(e)[0].mT
    turned = hat(translation) @ e
    return torch.stack((cofactor - turned, cofactor + turned), -3), translation


@dataclass(frozen=True)
class RelativePose:
    """Pose of a view relative to another, translation of unit length.

    Attributes:
        b_from_a: (..., 4, 4).
        in_front: (..., N) bool, the match triangulates in front of both views.
        support: (...) weighted share of matches in front, in [0, 1].
        runner_up: (...) the same for the second best of the four candidates: near `support` where
            cheirality cannot tell them apart.
    """

    b_from_a: torch.Tensor
    in_front: torch.Tensor
    support: torch.Tensor
    runner_up: torch.Tensor


def pose_from_essential(
    essential: torch.Tensor,
    xy_a: torch.Tensor,
    xy_b: torch.Tensor,
    weights: torch.Tensor | None = None,
) -> RelativePose:
    """The one of the four poses of an essential matrix with most matches in front of both views.

    Args:
        essential: (..., 3, 3).
        xy_a, xy_b, weights: as in `eight_point`.

    Returns:
        RelativePose; without any match the first candidate, with support zero.

    Raises:
        GeometryError: shapes or types disagree.
    """
    a, b, w = check_pair(xy_a, xy_b, weights)
    rotations, translation = decompose_essential(essential)
    depth_a, depth_b = two_view_depths(rotations, translation[..., None, :], a, b)
    ahead = torch.stack(
        ((depth_a > 0) & (depth_b > 0), (depth_a < 0) & (depth_b < 0)), -3
    )  # (..., sign, rotation, N)
    ahead = (ahead & (w > 0)[..., None, None, :]).flatten(-3, -2)
    votes = (ahead * weight_share(w)[..., None, :]).sum(-1)
    ranked, order = votes.sort(dim=-1, descending=True, stable=True)
    best = order[..., 0]
    sign = torch.where(best < 2, 1.0, -1.0).to(translation.dtype)
    second = (best % 2 == 1)[..., None, None]
    rotation = torch.where(second, rotations[..., 1, :, :], rotations[..., 0, :, :])
    chosen = best[..., None, None].expand(*best.shape, 1, ahead.shape[-1])
    return RelativePose(
        compose_matrix(rotation, translation * sign[..., None]),
        ahead.gather(-2, chosen).squeeze(-2),
        ranked[..., 0],
        ranked[..., 1],
    )


def two_view_depths(
    rotation: torch.Tensor, translation: torch.Tensor, xy_a: torch.Tensor, xy_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Depths that bring the two rays of each match nearest to each other.

    Args:
        rotation: (..., K, 3, 3) of `b_from_a`.
        translation: (..., K or 1, 3).
        xy_a, xy_b: (..., N, 2).

    Returns:
        depths in a and in b, each (..., K, N), zero for parallel rays.
    """
    p = homogeneous(xy_a)[..., None, :, :] @ rotation.mT
    q = homogeneous(xy_b)[..., None, :, :]
    t = translation[..., None, :]
    pp, qq, pq = (p * p).sum(-1), (q * q).sum(-1), (p * q).sum(-1)
    pt, qt = (p * t).sum(-1), (q * t).sum(-1)
    determinant = pp * qq - pq * pq  # |p x q|^2
    # sin^2 of the parallax below this is rounding: such rays cannot vote.
    parallel = determinant <= 16.0 * torch.finfo(pp.dtype).eps * pp * qq
    safe = torch.where(parallel, 1.0, determinant)
    depth_a = torch.where(parallel, 0.0, (pq * qt - qq * pt) / safe)
    depth_b = torch.where(parallel, 0.0, (pp * qt - pq * pt) / safe)
    return depth_a, depth_b


def epipolar_terms(
    essential: torch.Tensor, xy_a: torch.Tensor, xy_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x_b^T E x_a and the squared normals of the epipolar lines in b and in a, each (..., N)."""
    a, b = homogeneous(xy_a), homogeneous(xy_b)
    line_b, line_a = a @ essential.mT, b @ essential
    return (
        (b * line_b).sum(-1),
        line_b[..., :2].square().sum(-1),
        line_a[..., :2].square().sum(-1),
    )


def sampson_error(essential: torch.Tensor, xy_a: torch.Tensor, xy_b: torch.Tensor) -> torch.Tensor:
    """Signed first-order distance of matches from the epipolar constraint.

    Args:
        essential: (..., 3, 3), any scale.
        xy_a, xy_b: (..., N, 2).

    Returns:
        (..., N) in units of the normalised plane: multiply by the focal length for pixels. Zero
        where both points are epipoles. Source: Hartley and Zisserman eq. 11.9, its root.

    Raises:
        GeometryError: wrong shape.
    """
    check('essential', essential, 3, 3)
    check('xy_a', xy_a, -1, 2)
    check('xy_b', xy_b, -1, 2)
    value, normal_b, normal_a = epipolar_terms(essential, xy_a, xy_b)
    total = normal_a + normal_b
    scale2 = essential.square().sum((-2, -1))[..., None]
    return value / total.clamp_min(torch.finfo(total.dtype).eps * scale2 + 1e-30).sqrt()


def symmetric_epipolar_error(
    essential: torch.Tensor, xy_a: torch.Tensor, xy_b: torch.Tensor
) -> torch.Tensor:
    """Sum of the SQUARED distances of both points from their epipolar lines.

    Args:
        essential: (..., 3, 3), any scale.
        xy_a, xy_b: (..., N, 2).

    Returns:
        (..., N), squared units of the normalised plane. Source: Hartley and Zisserman eq. 11.10.

    Raises:
        GeometryError: wrong shape.
    """
    check('essential', essential, 3, 3)
    check('xy_a', xy_a, -1, 2)
    check('xy_b', xy_b, -1, 2)
    value, normal_b, normal_a = epipolar_terms(essential, xy_a, xy_b)
    floor = torch.finfo(value.dtype).eps * essential.square().sum((-2, -1))[..., None] + 1e-30
    return value * value * (1.0 / normal_b.clamp_min(floor) + 1.0 / normal_a.clamp_min(floor))
