# SPDX-License-Identifier: Apache-2.0
"""The point inference network where and how the settings want it to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from mv_matcher_ros.config import RuntimeSettings
from mv_matcher_ros.models.place import Place, placed
from mv_matcher_ros.models.point_inference import (
    InferredDepths,
    KnownDepths,
    PointInferenceNetwork,
)
from mv_matcher_ros.models.view_batch import padded

# Keypoints of the keyframes on which precisions are compared.
_TRIAL = 512


@dataclass(frozen=True)
class KeyframeDepths:
    """The keypoints of one keyframe; those whose depth is not known have a NaN there.

    Attributes:
        plane_xy: (N, 2) on the normalised plane; valid: (N,) bool, which of them lie on it.
        descriptors: (N, D) unit length.
        depth: (N,) along the optical axis, any unit.
        sigma: (N,) its standard deviation as a share of it.
    """

    plane_xy: Tensor
    valid: Tensor
    descriptors: Tensor
    depth: Tensor
    sigma: Tensor


class PointInference:
    """Infers depths of keyframes' keypoints from those that are known; keeps no state.

    One thread at a time.
    """

    def __init__(
        self, network: PointInferenceNetwork, runtime: RuntimeSettings | None = None
    ) -> None:
        runtime = RuntimeSettings() if runtime is None else runtime
        self.network, self.place = placed(network.eval(), runtime, _trial)

    @torch.inference_mode()
    def infer(self, keyframes: Sequence[KeyframeDepths]) -> list[InferredDepths]:
        """For each keyframe depth, sigma, confidence (N,) of all keypoints, on the host.

        Raises:
            ModelError: descriptors of another width than the network's.
        """
        if not keyframes:
            return []
        counts = [len(one.depth) for one in keyframes]
        room = max(*counts, 1)

        def together(name: str) -> Tensor:
            return torch.stack([padded(getattr(one, name), room) for one in keyframes])

        batch = KnownDepths(
            together('plane_xy').float(),
            together('descriptors').float(),
            together('depth'),
            together('sigma'),
            together('depth').isfinite(),
            together('valid'),
        )
        made = self.network(batch.to(self.place.device, self.place.dtype))
        parts = [getattr(made, field.name).cpu() for field in fields(InferredDepths)]
        return [
            InferredDepths(*(part[number, :count] for part in parts))
            for number, count in enumerate(counts)
        ]


def _trial(network: PointInferenceNetwork, place: Place) -> object:
    """One typical keyframe."""
    rng = torch.Generator().manual_seed(0)
    look = torch.randn(1, _TRIAL, network.profile.descriptor_size, generator=rng)
    known = torch.rand(1, _TRIAL, generator=rng) < 0.5
    one = torch.ones(1, _TRIAL)
    batch = KnownDepths(
        torch.rand(1, _TRIAL, 2, generator=rng), look, one, 0.05 * one, known, one.bool()
    )
    return network(batch.to(place.device, place.dtype))
