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
    """

    keypoints_xy: Tensor
    descriptors: Tensor
    scores: Tensor
    valid: Tensor
    image_size: Tensor

    @property
    def views(self) -> int:
        """V."""
        return int(self.valid.shape[1])

    @property
    def capacity(self) -> int:
        """N."""
        return int(self.valid.shape[2])

    @classmethod
    def of(
        cls, features: Sequence[Features], capacity: int | None = None, views: int = 0
    ) -> ViewBatch:
        """One tuple (B = 1) of views with different numbers of keypoints.

        Args:
            features: of each view; a keypoint of which something is not finite takes no part.
            capacity: N, at least the largest number of keypoints, which it is when None.
            views: at least V; those that are missing come last and have no keypoints.

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
        missing = max(views - len(features), 0)
        everyone = [*features, *[features[0].chosen(torch.arange(0))] * missing]

        def together(parts: Sequence[Tensor]) -> Tensor:
            return torch.stack([padded(part, size) for part in parts])[None]

        return cls(
            together([f.keypoints_xy for f in everyone]),
            together([f.descriptors for f in everyone]),
            together([f.scores for f in everyone]),
            together([finite(f) for f in everyone]),
            torch.tensor([f.image_size for f in everyone], dtype=torch.float32)[None],
        )

    def tensors(self) -> tuple[Tensor, ...]:
        """The fields in order: what a network with fixed shapes takes."""
        return (
            self.keypoints_xy, self.descriptors, self.scores, self.valid, self.image_size
        )  # fmt: skip

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


def finite(features: Features) -> Tensor:
    """(N,) bool: keypoints of which everything is a number."""
    place = features.keypoints_xy.isfinite().all(1) & features.scores.isfinite()
    return place & features.descriptors.isfinite().all(1)


def padded(part: Tensor, room: int, dim: int = 0) -> Tensor:
    """Zeros (False) after the last entry of a dimension, up to `room` entries."""
    if part.shape[dim] == room:
        return part
    shape = list(part.shape)
    shape[dim] = room - shape[dim]
    return torch.cat([part, part.new_zeros(shape)], dim)
