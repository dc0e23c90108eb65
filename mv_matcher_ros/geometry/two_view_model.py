# SPDX-License-Identifier: Apache-2.0
"""Which model explains matches between two views: a general scene, a plane, or a turning camera.

The score is the GRIC of Torr (Geometric motion segmentation and model selection, Phil. Trans. R.
Soc. A 356, 1998): a truncated sum of squared errors plus a price for the dimension of the model's
manifold, paid per match, and for its parameters. An essential matrix always fits a plane and a
rotation too; it is the price that tells them apart. A rotation is a homography with three
parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from math import log

import torch

from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.geometry.epipolar import (
    check_pair,
    eight_point,
    essential_from_pose,
    pose_from_essential,
    sampson_error,
)
from mv_matcher_ros.geometry.homography import (
    homography_dlt,
    homography_sampson_error,
    rotation_from_matches,
)
from mv_matcher_ros.geometry.relative_pose import refine_relative_pose


class TwoViewKind(IntEnum):
    """What explains the matches; the order is that of `TwoViewModel.scores`."""

    ESSENTIAL = 0  # general scene, translation: both can be estimated
    PLANE = 1  # plane with translation: the essential matrix is not determined by the eight-point
    ROTATION = 2  # pure rotation, or all points too far for the noise: no translation, no depth


# Dimension of the manifold in the four coordinates of a match, and number of parameters.
_DIMENSION = (3, 2, 2)
_PARAMETERS = (5, 8, 3)
# Rounds of reweighting that take outliers out of the homography and the rotation.
_ROUNDS = 5


@dataclass(frozen=True)
class TwoViewModel:
    """The models fitted to the matches and their scores.

    Attributes:
        scores: (..., 3) GRIC of essential, plane, rotation; the lowest explains best.
        kind: (...) int64, `TwoViewKind` of the lowest score.
        essential, homography, rotation: (..., 3, 3) the fits, each of b from a.
        inliers: (..., 3, N) bool, within the truncation of each model's score.
    """

    scores: torch.Tensor
    kind: torch.Tensor
    essential: torch.Tensor
    homography: torch.Tensor
    rotation: torch.Tensor
    inliers: torch.Tensor


@torch.no_grad()
def select_two_view_model(
    xy_a: torch.Tensor,
    xy_b: torch.Tensor,
    sigma: float,
    weights: torch.Tensor | None = None,
    essential: torch.Tensor | None = None,
) -> TwoViewModel:
    """Fit essential matrix, homography and rotation, and choose by GRIC. A decision: no gradient.

    The fits are reweighted least squares and bear some ten per cent of outliers; with more, give
    the inliers of a robust estimator as `weights` and its `essential`. A sigma that is too large
    makes noise of real parallax, and the choice moves to ROTATION; one too small: to ESSENTIAL.

    Args:
        xy_a, xy_b: (..., N, 2) matched normalised coordinates; pairs not finite count as absent.
        sigma: noise of one coordinate in units of the normalised plane (1 px over focal length).
        weights: (..., N) in [0, 1], how much of a match counts; None is ones.
        essential: (..., 3, 3) known essential matrix, else eight-point and refinement.

    Returns:
        TwoViewModel. Without matches all fits explain nothing equally well and the cheapest wins.

    Raises:
        GeometryError: shapes or types disagree, sigma not positive.
    """
    a, b, w = check_pair(xy_a, xy_b, weights)
    if not sigma > 0:
        raise GeometryError(f'sigma must be positive, got {sigma}')
    if essential is None:
        essential = _fit_essential(a, b, w, sigma)
    plane = w
    turning = w
    for _ in range(_ROUNDS):
        homography = homography_dlt(a, b, plane).b_from_a
        plane = w * _robust(homography_sampson_error(homography, a, b), sigma)
        rotation = rotation_from_matches(a, b, turning)
        turning = w * _robust(homography_sampson_error(rotation, a, b), sigma)
    errors = torch.stack(
        (
            sampson_error(essential, a, b).square(),
            homography_sampson_error(homography, a, b),
            homography_sampson_error(rotation, a, b),
        ),
        -2,
    )
    scores, inliers = gric(errors / (sigma * sigma), w)
    return TwoViewModel(scores, scores.argmin(-1), essential, homography, rotation, inliers)


def _robust(squared: torch.Tensor, sigma: float) -> torch.Tensor:
    """Geman-McClure weight, which lets go of outliers; half weight at 2 sigma."""
    ratio = 1.0 / (1.0 + squared / (9.0 * sigma * sigma))
    return ratio * ratio


def _fit_essential(
    xy_a: torch.Tensor, xy_b: torch.Tensor, weights: torch.Tensor, sigma: float
) -> torch.Tensor:
    current = weights
    for _ in range(_ROUNDS):
        essential = eight_point(xy_a, xy_b, current).essential
        current = weights * _robust(sampson_error(essential, xy_a, xy_b).square(), sigma)
    pose = pose_from_essential(essential, xy_a, xy_b, current).b_from_a
    refined = refine_relative_pose(
        pose, xy_a, xy_b, weights, sigma=sigma, kernel='cauchy', kernel_width=2.0
    )
    return essential_from_pose(refined.b_from_a)


def gric(squared_errors: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Geometric robust information criterion of essential matrix, homography and rotation.

    Args:
        squared_errors: (..., 3, N) in units of sigma^2, by the order of `TwoViewKind`.
        weights: (..., N) in [0, 1], how much of a match counts.

    Returns:
        (..., 3) scores, lower is better; (..., 3, N) bool within the truncation.

    Source: Torr 1998: sum min(e^2, 2 (r - d)) + log(r) d n + log(r n) k with r = 4 coordinates.
    """
    dtype, device = squared_errors.dtype, squared_errors.device
    dimension = torch.tensor(_DIMENSION, dtype=dtype, device=device)
    parameters = torch.tensor(_PARAMETERS, dtype=dtype, device=device)
    limit = (2.0 * (4.0 - dimension))[:, None]
    count = weights.sum(-1)[..., None]
    data = (weights[..., None, :] * torch.minimum(squared_errors, limit)).sum(-1)
    price = log(4.0) * dimension * count + (4.0 * count).clamp_min(1.0).log() * parameters
    inliers = (squared_errors <= limit) & (weights > 0)[..., None, :]
    return data + price, inliers
