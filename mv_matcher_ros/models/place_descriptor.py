# SPDX-License-Identifier: Apache-2.0
"""One descriptor of a whole image, made of its local features: the same place gives nearly the
same one. Vectors of locally aggregated descriptors (Jégou et al., CVPR 2010) with soft words
(Arandjelovic et al., NetVLAD, CVPR 2016, eq. 4), each word of unit length (Arandjelovic and
Zisserman, CVPR 2013), whitened to few dimensions (Jégou and Chum, ECCV 2012).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mv_matcher_ros.datatypes import Features
from mv_matcher_ros.errors import ModelError
from mv_matcher_ros.models.profiles import PlaceProfile

# Below this a sum of residuals is rounding, and has no direction.
_NOTHING = 1e-6


class PlaceNetwork(nn.Module):
    """Local descriptors of an image to one descriptor of the place.

    Attributes:
        centres: (K, D) words, from which residuals are taken.
        whiten: residuals of all words to the descriptor.
    """

    def __init__(self, profile: PlaceProfile) -> None:
        super().__init__()
        self.profile = profile
        words, size = profile.words, profile.descriptor_size
        self.centres = nn.Parameter(torch.randn(words, size) / size**0.5)
        self.whiten = nn.Linear(words * size, profile.size)

    def forward(self, descriptors: Tensor, valid: Tensor) -> Tensor:
        """Descriptors of B images; zeros for an image without keypoints.

        Args:
            descriptors: (B, N, D) unit length; N may be 0.
            valid: (B, N) bool, False where there is no keypoint; what stands there is not read.

        Returns:
            (B, S) float32, unit length or zero.

        Raises:
            ModelError: descriptors of another width.
        """
        if descriptors.shape[-1] != self.profile.descriptor_size:
            raise ModelError(
                f'place: takes descriptors of width {self.profile.descriptor_size}, '
                f'not {descriptors.shape[-1]}'
            )
        residuals = self.residuals(descriptors, valid)
        found = functional.normalize(self.whiten(residuals), dim=1)
        return found * valid.any(1, keepdim=True)

    def residuals(self, descriptors: Tensor, valid: Tensor) -> Tensor:
        """(B, K D) sums of residuals of each word, each of unit length; then all together."""
        local = descriptors.masked_fill(~valid[..., None], 0.0).to(self.centres.dtype)
        nearness = local @ self.centres.T - 0.5 * self.centres.square().sum(1)
        share = torch.softmax(self.profile.sharpness * nearness, -1) * valid[..., None]
        sums = share.transpose(1, 2) @ local - share.sum(1)[..., None] * self.centres
        # A word that meets many similar features (a fence, tiles) counts no more than another.
        each = functional.normalize(sums, dim=2, eps=_NOTHING)
        return functional.normalize(each.flatten(1), dim=1, eps=_NOTHING)


class PlaceDescriber:
    """The network behind an interface of features: strongest keypoints in, one vector out.

    Args:
        network: on the CPU; runs in single precision.
        least: images with fewer keypoints are no place.
    """

    def __init__(self, network: PlaceNetwork, least: int = 1) -> None:
        self._network, self._least = network.float().eval(), max(1, least)

    @property
    def size(self) -> int:
        """Numbers of a descriptor."""
        return self._network.profile.size

    def describe(self, features: Features) -> Tensor:
        """(S,) float32 unit descriptor of one image; zeros where there are too few keypoints.

        The order of the keypoints makes no difference, to the bit.

        Raises:
            ModelError: descriptors of another detector's width.
        """
        return self.describe_all([features])[0]

    @torch.inference_mode()
    def describe_all(self, features: Sequence[Features]) -> Tensor:
        """(B, S) float32 of B images, each as if described alone up to rounding."""
        strongest = [self._strongest(one) for one in features]
        most = max((len(one) for one in strongest), default=0)
        size = self._network.profile.descriptor_size
        local = torch.zeros(len(features), most, size)
        valid = torch.zeros(len(features), most, dtype=torch.bool)
        for number, one in enumerate(strongest):
            if len(one) and one.shape[1] != size:
                raise ModelError(f'place: takes descriptors of width {size}, not {one.shape[1]}')
            local[number, : len(one)] = one
            valid[number, : len(one)] = True
        return self._network(local, valid)

    def _strongest(self, features: Features) -> Tensor:
        """(N, D) finite descriptors of the strongest keypoints, in an order of their own."""
        order = canonical_order(features)
        local = features.descriptors.detach().float().cpu()[order]
        whole = local.isfinite().all(1) if len(local) else torch.ones(0, dtype=torch.bool)
        local = local[whole][: self._network.profile.keypoints]
        return local if len(local) >= self._least else local[:0]


def canonical_order(features: Features) -> Tensor:
    """(N,) int64: strongest first, ties by place; the same whatever order they come in."""
    order = torch.arange(len(features))
    xy, scores = features.keypoints_xy.detach().cpu(), features.scores.detach().cpu()
    for key in (xy[:, 0], xy[:, 1], -scores):
        order = order[torch.argsort(key[order], stable=True)]
    return order
