# SPDX-License-Identifier: Apache-2.0
"""Planes through weighted neighbours: inverse depth is linear in the image of a plane."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# What is said of a hypothesis: depth, how far the neighbours lie from the plane, how many they
# are, how well their depths are known, how far the keypoint lies from the middle of them.
FEATURES = 5
# A plane is followed to this many times the neighbours' own inverse depth, and to its inverse.
FARTHEST = 4.0
_LEAST = 1e-6


@dataclass(frozen=True)
class Surface:
    """H hypotheses of N keypoints.

    Attributes:
        log_depth: (B, N, H).
        features: (B, N, FEATURES · H) for whoever chooses among them.
    """

    log_depth: Tensor
    features: Tensor


def fitted_surfaces(
    weight: Tensor, place: Tensor, log_depth: Tensor, sigma: Tensor, at: Tensor, stiffness: Tensor
) -> Surface:
    """Weighted least squares of inverse depth as a linear function of the place in the image.

    Args:
        weight: (B, H, N, M) sums to one over the M known points.
        place: (B, M, 2) of the known points; log_depth, sigma: (B, M), sigma of the logarithm.
        at: (B, N, 2) where the plane is read.
        stiffness: (H,) added to the spread of the places (squared units of `place`): a slope needs
            points that lie farther apart than that.
    """
    inverse = (-log_depth).exp()
    x, y = place.unbind(-1)
    columns = torch.stack(
        [x, y, inverse, x * x, x * y, y * y, x * inverse, y * inverse, inverse**2, sigma], dim=-1
    )
    moment = weight @ columns[:, None]
    mx, my, mean, xx, xy, yy, xr, yr, rr, error = moment.unbind(-1)
    stiff = stiffness[:, None]
    # Moments about the middle; the second ones cannot be less than zero but for rounding.
    xx, yy, xy = (xx - mx * mx).clamp_min(0), (yy - my * my).clamp_min(0), xy - mx * my
    xr, yr, rr = xr - mx * mean, yr - my * mean, (rr - mean * mean).clamp_min(0)
    a, c = xx + stiff, yy + stiff
    area = (a * c - xy * xy).clamp_min(_LEAST * stiff * stiff)
    slope_x, slope_y = (c * xr - xy * yr) / area, (a * yr - xy * xr) / area
    dx, dy = at[:, None, :, 0] - mx, at[:, None, :, 1] - my
    read = mean + slope_x * dx + slope_y * dy
    read = torch.minimum(torch.maximum(read, mean / FARTHEST), mean * FARTHEST)
    rest = (rr - slope_x * xr - slope_y * yr).clamp_min(0.0)
    off = (rest / mean**2 + _LEAST).sqrt()
    # Squared distance from the middle in units of the neighbours' spread.
    reach = (c * dx * dx - 2.0 * xy * dx * dy + a * dy * dy) / area
    count = 1.0 / weight.square().sum(-1)
    depth = -read.log()
    features = torch.stack(
        [depth, off.log(), count.log(), error.clamp_min(_LEAST).log(), reach.log1p()], dim=-1
    )
    return Surface(depth.transpose(1, 2), features.transpose(1, 2).flatten(2))
