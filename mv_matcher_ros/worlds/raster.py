# SPDX-License-Identifier: Apache-2.0
"""The rays of a camera's pixels, made once per camera and used for every image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Array, Camera, DistortionModel
from mv_matcher_ros.geometry.camera import camera_normalise, camera_pixel_jacobian
from mv_matcher_ros.worlds.mipmaps import Floats


@dataclass(frozen=True, eq=False)
class Raster:
    """Rays (x, y, 1) through the pixel centres, and how they change from pixel to pixel.

    Without distortion x depends on the column alone and y on the row alone: the arrays are then
        (1, W) and
    (H, 1) and broadcast, which saves most of the work.

    Attributes:
        width, height: pixels.
        x64, y64: rays, (H, W), or (1, W) and (H, 1).
        step_x: d(x)/d(column), d(y)/d(column), each () or (H, W).
        step_y: the same for rows.
        valid: (H, W) bool, False where the lens model gives no ray (x, y: NaN).
        x, y: `x64` and `y64` in float32.
    """

    width: int
    height: int
    x64: Array
    y64: Array
    step_x: tuple[Floats, Floats]
    step_y: tuple[Floats, Floats]
    valid: NDArray[np.bool_]
    x: Floats
    y: Floats
    _full: tuple[Floats, Floats]

    @classmethod
    def of(cls, camera: Camera) -> Raster:
        """Raster of `camera`, remembered for the next call with the same calibration."""
        return _raster(
            camera.width, camera.height, camera.intrinsics, camera.model, camera.distortion
        )

    def crop(self, rows: slice, columns: slice) -> tuple[Floats, Floats]:
        """x and y of a window, in a form that broadcasts to it."""
        if self.x.shape[0] == 1:
            return self.x[:, columns], self.y[rows]
        return self.x[rows, columns], self.y[rows, columns]

    def at(self, pixel: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """(N,) x and y at flat pixel indices."""
        return self._full[0].take(pixel), self._full[1].take(pixel)

    def derivatives(
        self, pixel: NDArray[np.int64]
    ) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
        """`step_x` and `step_y` at flat pixel indices, (N,) each."""
        if self.step_x[0].ndim == 0:
            n = len(pixel)
            tx, ty = self.step_x, self.step_y
            return (
                (np.broadcast_to(tx[0], n), np.broadcast_to(tx[1], n)),
                (np.broadcast_to(ty[0], n), np.broadcast_to(ty[1], n)),
            )
        tx, ty = self.step_x, self.step_y
        return (tx[0].take(pixel), tx[1].take(pixel)), (ty[0].take(pixel), ty[1].take(pixel))

    def windows(self, bounds: Array) -> NDArray[np.int64]:
        """(Q, 4) left, right, top, bottom (half open) of pixels with rays in `bounds` (Q, 4)."""
        x_low, x_high = self._extent(self.x64, 0)
        y_low, y_high = self._extent(self.y64, 1)
        columns = (x_low <= bounds[:, 1:2]) & (x_high >= bounds[:, 0:1])
        rows = (y_low <= bounds[:, 3:4]) & (y_high >= bounds[:, 2:3])
        windows = np.zeros((len(bounds), 4), np.int64)
        for i, inside in enumerate((columns, rows)):
            some = inside.any(1)
            windows[:, 2 * i] = np.where(some, inside.argmax(1), 0)
            last = inside.shape[1] - inside[:, ::-1].argmax(1)
            windows[:, 2 * i + 1] = np.where(some, last, 0)
        return windows

    @staticmethod
    def _extent(rays: Array, axis: int) -> tuple[Array, Array]:
        """Smallest and largest ray of each column (axis 0) or row (axis 1)."""
        known = np.where(np.isfinite(rays), rays, np.inf)
        low = known.min(axis)
        high = np.where(np.isfinite(rays), rays, -np.inf).max(axis)
        return low, high


@lru_cache(maxsize=8)
def _raster(
    width: int,
    height: int,
    intrinsics: tuple[float, float, float, float],
    model: DistortionModel,
    distortion: tuple[float, ...],
) -> Raster:
    fx, fy, cx, cy = intrinsics
    x64: Array
    y64: Array
    if not any(distortion) and model != 'equidistant':
        x64 = ((np.arange(width, dtype=np.float64) - cx) / fx)[None]
        y64 = ((np.arange(height, dtype=np.float64) - cy) / fy)[:, None]
        zero = np.float32(0.0)
        step_x = (np.asarray(np.float32(1 / fx)), np.asarray(zero))
        step_y = (np.asarray(zero), np.asarray(np.float32(1 / fy)))
        valid = np.ones((height, width), np.bool_)
    else:
        camera = Camera(width, height, intrinsics, model, distortion)
        columns, rows = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height))
        pixels = torch.from_numpy(np.stack([columns, rows], -1))
        rays, known = camera_normalise(camera, pixels)
        inside = camera_pixel_jacobian(camera, rays)
        steps = torch.linalg.inv_ex(inside)[0].numpy().astype(np.float32)
        valid = known.numpy() & np.isfinite(steps).all((2, 3))
        x64, y64 = (np.asarray(np.where(valid, rays[..., i].numpy(), np.nan)) for i in (0, 1))
        steps = np.where(valid[..., None, None], steps, 0.0)
        step_x, step_y = ((steps[..., 0, i].copy(), steps[..., 1, i].copy()) for i in (0, 1))
    shape = (height, width)
    x, y = x64.astype(np.float32), y64.astype(np.float32)
    full = tuple(np.ascontiguousarray(np.broadcast_to(a, shape)).ravel() for a in (x, y))
    return Raster(width, height, x64, y64, step_x, step_y, valid, x, y, (full[0], full[1]))
