# SPDX-License-Identifier: Apache-2.0
"""Features of several views as tensors of one shape: what the learned matchers take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mv_matcher_ros.datatypes import Features
from mv_matcher_ros.errors import ModelError


@dataclass(frozen=True)
class ViewBatch:
    """B tuples of V views with room for N keypoints each.

    Attributes:
        keypoints_xy: (B, V, N, 2) pixels, centres at integers.
        descriptors: (B, V, N, D) unit length.
        scores: (B, V, N) detection scores.
        valid: (B, V, N) bool; the others are padding, and nothing depends on their content.
        image_size: (B, V, 2) width and height in pixels.
        full: no keypoint is padding, and so no mask is needed.
    """

    keypoints_xy: Tensor
    descriptors: Tensor
    scores: Tensor
    valid: Tensor
    image_size: Tensor
    full: bool = False

    @property
    def views(self) -> int:
        """V."""
        return int(self.valid.shape[1])

    @property
    def capacity(self) -> int:
        """N."""
        return int(self.valid.shape[2])

    @classmethod
    def of(cls, features: Sequence[Features], capacity: int | None = None) -> ViewBatch:
        """One tuple (B = 1) of views with different numbers of keypoints.

        Args:
            features: of each view; a keypoint of which something is not finite takes no part.
            capacity: N, at least the largest number of keypoints, which it is when None.

        Raises:
            ModelError: descriptors of different widths, or more keypoints than the capacity.
        """
        widths = {f.descriptors.shape[1] for f in features}
        if len(widths) != 1:
            raise ModelError(f'views have descriptors of different widths: {sorted(widths)}')
        largest = max(len(f) for f in features)
        size = largest if capacity is None else capacity
        if largest > size:
            raise ModelError(f'{largest} keypoints do not fit into a batch made for {size}')
        valid = _padded([_finite(f) for f in features], size)
        return cls(
            _padded([f.keypoints_xy for f in features], size)[None],
            _padded([f.descriptors for f in features], size)[None],
            _padded([f.scores for f in features], size)[None],
            valid[None],
            torch.tensor([f.image_size for f in features], dtype=torch.float32)[None],
            bool(valid.all()),
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> ViewBatch:
        """The same on a device; descriptors and scores as `dtype`. Coordinates keep their type."""
        return replace(
            self,
            keypoints_xy=self.keypoints_xy.to(device, non_blocking=True),
            descriptors=self.descriptors.to(device, dtype, non_blocking=True),
            scores=self.scores.to(device, dtype, non_blocking=True),
            valid=self.valid.to(device, non_blocking=True),
            image_size=self.image_size.to(device, non_blocking=True),
        )


def _finite(features: Features) -> Tensor:
    """(N,) bool: keypoints of which everything is a number."""
    place = features.keypoints_xy.isfinite().all(1) & features.scores.isfinite()
    return place & features.descriptors.isfinite().all(1)


def _padded(parts: Sequence[Tensor], size: int) -> Tensor:
    padded = parts[0].new_zeros(len(parts), size, *parts[0].shape[1:])
    for row, part in zip(padded, parts, strict=True):
        row[: len(part)] = part
    return padded
