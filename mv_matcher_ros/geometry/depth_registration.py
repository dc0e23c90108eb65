# SPDX-License-Identifier: Apache-2.0
"""A depth image of one camera as another camera would have taken it."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mv_matcher_ros.datatypes import Array, Camera
from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.geometry.camera import camera_normalise, camera_project
from mv_matcher_ros.geometry.epipolar import homogeneous

Depth = NDArray[np.float32]
# Points in one pixel that differ by less than this share of their depth are of one surface.
SAME_SURFACE = 0.03


class DepthRegistration:
    """Moves depth images from the camera that measured them to another one.

    Each measured point is projected and covers the pixels around its place, as many as the other
    camera has for one of this: no holes. Of the points in a pixel the nearest are seen, and
    averaged by how near to the pixel's centre they are: a slope keeps its depth.

    Args:
        source: camera of the depth images.
        target: camera that they shall belong to.
        target_from_source: (4, 4), metres.
    """

    def __init__(self, source: Camera, target: Camera, target_from_source: Array) -> None:
        self._source, self._target = source, target
        pose = torch.from_numpy(np.array(target_from_source, np.float64))
        v, u = np.mgrid[0 : source.height, 0 : source.width]
        pixels = torch.from_numpy(np.stack([u, v], 2).reshape(-1, 2).astype(np.float64))
        plane, self._valid = camera_normalise(source, pixels)
        # Pixels of the target in a row for one of the source, and one more for what lies between.
        self._patch = math.ceil(target.focal_px / source.focal_px) + 1
        # Half the precision in half the time: 1e-7 of a distance is nothing.
        self._turned = (homogeneous(plane) @ pose[:3, :3].T).float()
        self._offset = pose[:3, 3].float()

    def __call__(self, depth: Depth) -> Depth:
        """(H, W) metres along the optical axis of the target, 0 where nothing was measured.

        Args:
            depth: (h, w) metres along the optical axis of the source; 0 or NaN where unknown.

        Raises:
            GeometryError: it is not of the size of the source camera.
        """
        size = depth.shape[1], depth.shape[0]
        if size != (self._source.width, self._source.height):
            raise GeometryError(
                f'depth is {size[0]}x{size[1]}, its calibration is for '
                f'{self._source.width}x{self._source.height}'
            )
        z = torch.from_numpy(np.array(depth, np.float32).ravel())
        known = self._valid & z.isfinite() & (z > 0)
        points = self._turned[known] * z[known, None] + self._offset
        pixels, seen = camera_project(self._target, points)
        return self._drawn(pixels[seen], points[seen, 2])

    def _drawn(self, pixels: Tensor, depth: Tensor) -> Depth:
        """The nearest of the points (N, 2) with depth (N,) at each pixel of the target."""
        width, height, patch = self._target.width, self._target.height, self._patch
        corner = torch.floor(pixels - 0.5 * (patch - 2))
        # With a margin all around, no pixel of a patch is outside.
        shifted = corner + patch
        limits = shifted.new_tensor((width + patch, height + patch))
        inside = ((shifted >= 0) & (shifted <= limits)).all(1)
        apart, z = (pixels - corner)[inside], depth[inside]
        row = width + 2 * patch + 1
        first = (shifted[inside, 1] * row + shifted[inside, 0]).long()
        near = z.new_full((row * (height + 2 * patch + 1),), torch.inf)
        offsets = list(product(range(patch), repeat=2))
        for right, down in offsets:
            near.scatter_reduce_(0, first + (down * row + right), z, 'amin')
        total, weights = torch.zeros_like(near), torch.zeros_like(near)
        for right, down in offsets:
            place = first + (down * row + right)
            close = 1.0 - (apart - apart.new_tensor((right, down))).abs() / patch
            weight = close[:, 0] * close[:, 1] * (z <= near[place] * (1.0 + SAME_SURFACE))
            total.scatter_add_(0, place, weight * z)
            weights.scatter_add_(0, place, weight)
        image = torch.where(weights > 0, total / weights.clamp_min(1e-12), 0.0).reshape(-1, row)
        return image[patch : patch + height, patch : patch + width].contiguous().numpy()
