# SPDX-License-Identifier: Apache-2.0
"""Where points of one view lie in another one, exactly, and how the image is stretched there.

Unlike labels, which ask which of the keypoints found are the same, this is where a point would
be found: by a homography, or by depth and pose between pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mv_matcher_ros.geometry import se3

# Half of the distance over which the stretch is measured, pixels.
_STEP_PX = 1.0
# A point is seen where its depth agrees with that of the view within this share.
_DEPTH_SHARE = 0.03


@dataclass(frozen=True)
class Carried:
    """N points of one view in another.

    Attributes:
        xy: (N, 2) float32 pixels there.
        jacobian: (N, 2, 2) float32 of `xy` by the place in the first view.
        seen: (N,) bool: inside, and nothing is in the way.
    """

    xy: Tensor
    jacobian: Tensor
    seen: Tensor


Map = Callable[[Tensor], tuple[Tensor, Tensor]]


def carry(there: Map, xy: Tensor) -> Carried:
    """Points (N, 2) through a map that gives (N, 2) pixels and (N,) whether they are seen."""
    found, seen = there(xy.double())
    columns = []
    for step in (torch.tensor([_STEP_PX, 0.0]), torch.tensor([0.0, _STEP_PX])):
        (ahead, a), (behind, b) = there(xy.double() + step), there(xy.double() - step)
        columns.append((ahead - behind) / (2.0 * _STEP_PX))
        seen = seen & a & b  # at an edge of depth the stretch, and soon the point, is another one
    jacobian = torch.stack(columns, dim=-1)
    # A surface seen edge-on, or a step in depth that passed: nothing to learn from.
    area = torch.linalg.det(jacobian)
    seen = seen & (area > 0.04) & (area < 25.0)
    return Carried(found.float(), jacobian.float(), seen)


def by_homography(target_from_source: Tensor, width: int, height: int) -> Map:
    """The map of a (3, 3) float64 homography into an image of this size."""

    def there(xy: Tensor) -> tuple[Tensor, Tensor]:
        moved = functional.pad(xy, (0, 1), value=1.0) @ target_from_source.T
        ahead = moved[:, 2] > 1e-6
        found = moved[:, :2] / torch.where(ahead, moved[:, 2], 1.0)[:, None]
        return found, ahead & _inside(found, width, height)

    return there


@dataclass(frozen=True)
class PosedView:
    """A view with depth and pose, perhaps shrunk since.

    Attributes:
        depth: (H, W) metres along the optical axis, 0 where unknown, as it was rendered.
        intrinsics: (3, 3) of the size it was rendered in.
        world_from_camera: (4, 4) float64 metres.
        per_pixel: pixels as rendered per pixel of the points that are carried.
    """

    depth: Tensor
    intrinsics: Tensor
    world_from_camera: Tensor
    per_pixel: float = 1.0


def by_depth(source: PosedView, target: PosedView) -> Map:
    """The map from one view into another by depth and pose."""
    relative = se3.inverse(target.world_from_camera.double()) @ source.world_from_camera.double()
    rays = torch.linalg.inv(source.intrinsics.double())
    height, width = target.depth.shape

    def there(xy: Tensor) -> tuple[Tensor, Tensor]:
        full = (xy + 0.5) * source.per_pixel - 0.5
        depth, known = depth_between(source.depth, full)
        points = functional.pad(full, (0, 1), value=1.0) @ rays.T * depth[:, None]
        moved = se3.transform(relative, points) @ target.intrinsics.double().T
        ahead = moved[:, 2] > 1e-6
        found = moved[:, :2] / torch.where(ahead, moved[:, 2], 1.0)[:, None]
        inside = ahead & known & _inside(found, width, height)
        nearest, near_known = depth_between(target.depth, torch.where(inside[:, None], found, 0.0))
        agrees = (moved[:, 2] - nearest).abs() < _DEPTH_SHARE * nearest
        return (found + 0.5) / target.per_pixel - 0.5, inside & near_known & agrees

    return there


def depth_between(depth: Tensor, xy: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) float64 depth at (N, 2) places between pixels, and whether it is known.

    Inverse depth is interpolated: of a plane it is linear in the image. Not known at an edge of
    depth, where the four pixels around differ by more than a tenth.
    """
    height, width = depth.shape
    corner = xy.floor()
    column = corner[:, 0].long().clamp(0, max(width - 2, 0))
    row = corner[:, 1].long().clamp(0, max(height - 2, 0))
    share = (xy - torch.stack([column, row], dim=-1)).clamp(0.0, 1.0)
    right, below = (column + 1).clamp_max(width - 1), (row + 1).clamp_max(height - 1)
    around = torch.stack(
        [depth[row, column], depth[row, right], depth[below, column], depth[below, right]], dim=-1
    ).double()
    low, high = around.amin(-1), around.amax(-1)
    known = (low > 0) & (high - low < 0.1 * low)
    inverse = 1.0 / torch.where(known[:, None], around, 1.0)
    x, y = share[:, 0], share[:, 1]
    weights = torch.stack([(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y], dim=-1)
    return 1.0 / (weights * inverse).sum(-1), known


def _inside(xy: Tensor, width: int, height: int) -> Tensor:
    low, high = (xy >= 0).all(-1), xy <= xy.new_tensor([width - 1.0, height - 1.0])
    return low & high.all(-1)
