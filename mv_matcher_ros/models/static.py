# SPDX-License-Identifier: Apache-2.0
"""The networks as functions of tensors whose shapes never change.

What graph capture, compilers and exporters take: tensors in, tensors out, no choice that depends
on values. Views and keypoints that are not there are room that `valid` masks.
"""

from __future__ import annotations

from torch import Tensor, nn

from mv_matcher_ros.models.detector import DetectorNetwork, Keypoints
from mv_matcher_ros.models.known_poses import KnownPoses
from mv_matcher_ros.models.matcher import MatcherNetwork
from mv_matcher_ros.models.view_batch import ViewBatch

DETECTOR_OUTPUTS = ('keypoints_xy', 'scores', 'descriptors', 'sigma_px', 'valid')
MATCHER_INPUTS = ('keypoints_xy', 'descriptors', 'scores', 'valid', 'image_size')
POSE_INPUTS = ('plane_xy', 'target_from_source', 'sigma')
MATCHER_OUTPUTS = ('partner', 'log_score', 'confidence')


class StaticDetector(nn.Module):
    """Images to the fields of `Keypoints`, in the order of `DETECTOR_OUTPUTS`."""

    def __init__(self, network: DetectorNetwork, max_keypoints: int, border_px: int) -> None:
        super().__init__()
        self.network, self.max_keypoints, self.border_px = network, max_keypoints, border_px

    def forward(self, images: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, ...]:
        """images: (B, 1, H, W) in [0, 1], or uint8; allowed: as `DetectorNetwork.forward`."""
        grey = images if images.is_floating_point() else images.float() / 255.0
        return fields(self.network(grey, self.max_keypoints, self.border_px, allowed))


def fields(found: Keypoints) -> tuple[Tensor, ...]:
    """Keypoints as a tuple, in the order of `DETECTOR_OUTPUTS`."""
    return found.xy, found.scores, found.descriptors, found.sigma_px, found.valid


class StaticMatcher(nn.Module):
    """The fields of `ViewBatch` to those of `Assignment` that `MATCHER_OUTPUTS` names."""

    def __init__(self, network: MatcherNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        keypoints_xy: Tensor,
        descriptors: Tensor,
        scores: Tensor,
        valid: Tensor,
        image_size: Tensor,
        pairs: Tensor | None = None,
        plane_xy: Tensor | None = None,
        target_from_source: Tensor | None = None,
        sigma: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """`pairs`: (P, 2) int64, all pairs if None; the last three are those of `KnownPoses`."""
        batch = ViewBatch(keypoints_xy, descriptors, scores, valid, image_size)
        known = None
        if plane_xy is not None and target_from_source is not None and sigma is not None:
            known = KnownPoses(plane_xy, target_from_source, sigma)
        made = self.network(batch, known=known, pairs=pairs)
        return made.partner, made.log_score, made.confidence
