# SPDX-License-Identifier: Apache-2.0
"""Best rigid or similarity transform between matched point sets, in closed form.

Source: Umeyama, Least-squares estimation of transformation parameters between two point patterns,
PAMI 13(4), 1991, with weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.geometry.se3 import compose_matrix
from mv_matcher_ros.geometry.shapes import check, check_same_type
from mv_matcher_ros.geometry.so3 import nearest_rotation

# Second singular value of the correlation below this share of the first: points on one line. In
# float64 a line of track points that bends by 1e-4 of its length still counts as determined.
_LINE = 1e-8


@dataclass(frozen=True)
class Alignment:
    """Transform and what is known about it.

    Attributes:
        target_from_source: (..., 4, 4) rigid, or [[s R, t], [0, 1]] with scale.
        scale: (...) 1 where rigid or not determined.
        determined: (...) bool: rotation (and scale) are unique. False for fewer than three points,
            identical points and points on one line.
        rmse: (...) weighted root mean square distance after alignment.
    """

    target_from_source: torch.Tensor
    scale: torch.Tensor
    determined: torch.Tensor
    rmse: torch.Tensor


def align_points(
    source: torch.Tensor,
    target: torch.Tensor,
    weights: torch.Tensor | None = None,
    with_scale: bool = False,
) -> Alignment:
    """Transform T that minimises sum w |target - T source|^2.

    Where the points do not determine it the answer is still defined: on a line the smallest
    rotation that lays one line on the other, for one place the pure translation, for no point the
    identity. Gradients are finite everywhere (see `nearest_rotation`); first derivatives only.

    Args:
        source, target: (..., N, 3), same units unless `with_scale`; rows not finite count as
            absent.
        weights: (..., N) not negative, or None for ones.
        with_scale: estimate a scale too (Sim(3)).

    Returns:
        Alignment.

    Raises:
        GeometryError: shapes or types disagree.
    """
    check('source', source, -1, 3)
    check('target', target, -1, 3)
    if weights is None:
        weights = torch.ones_like(source[..., 0])
    check_same_type(source=source, target=target, weights=weights)
    if source.shape != target.shape or weights.shape != source.shape[:-1]:
        raise GeometryError(
            f'point sets disagree: source {tuple(source.shape)}, target {tuple(target.shape)}, '
            f'weights {tuple(weights.shape)}'
        )
    dtype = source.dtype
    usable = source.isfinite().all(-1) & target.isfinite().all(-1)
    usable = usable & weights.isfinite() & (weights > 0)
    p = torch.where(usable[..., None], source, 0.0).double()
    q = torch.where(usable[..., None], target, 0.0).double()
    w = torch.where(usable, weights, 0.0).double()
    total = w.sum(-1, keepdim=True)
    share = (w / torch.where(total > 0, total, 1.0))[..., None]
    p_mean, q_mean = (share * p).sum(-2), (share * q).sum(-2)
    p, q = p - p_mean[..., None, :], q - q_mean[..., None, :]
    correlation = q.mT @ (share * p)
    # Identical points differ from their mean by rounding, which has a direction but means nothing.
    rounding = (1e-14 * p_mean.norm(dim=-1)) * (1e-14 * q_mean.norm(dim=-1))
    noise = correlation.flatten(-2).norm(dim=-1) <= rounding
    correlation = torch.where(noise[..., None, None], 0.0, correlation)
    rotation, determined = _rotation(correlation)
    scale = torch.ones_like(total[..., 0])
    if with_scale:
        spread = (share * p * p).sum((-2, -1))
        ratio = (rotation * correlation).sum((-2, -1)) / torch.where(spread > 0, spread, 1.0)
        usable_scale = (spread > 0) & (ratio > 0)
        determined = determined & usable_scale
        scale = torch.where(usable_scale, ratio, 1.0)
    linear = rotation * scale[..., None, None]
    translation = q_mean - (linear @ p_mean[..., None]).squeeze(-1)
    error = (share[..., 0] * (q - p @ linear.mT).square().sum(-1)).sum(-1)
    rmse = torch.where(error > 0, torch.where(error > 0, error, 1.0).sqrt(), 0.0)
    transform = compose_matrix(linear, translation)
    return Alignment(transform.to(dtype), scale.to(dtype), determined, rmse.to(dtype))


def _rotation(correlation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotation of the correlation (..., 3, 3) and whether it is unique."""
    size = correlation.flatten(-2).norm(dim=-1).detach()
    scaled = correlation / torch.where(size > 0, size, 1.0)[..., None, None]
    singular = torch.linalg.svdvals(scaled.detach())
    # Three points lie in a plane: rank two is enough, the handedness settles the third axis.
    determined = (size > 0) & (singular[..., 1] > _LINE * singular[..., 0])
    # A little of the identity chooses, among rotations that fit alike, the smallest one.
    share = torch.where(determined, 0.0, 1e-9)[..., None, None].to(scaled.dtype)
    eye = torch.eye(3, dtype=scaled.dtype, device=scaled.device)
    return nearest_rotation(scaled + share * eye), determined
