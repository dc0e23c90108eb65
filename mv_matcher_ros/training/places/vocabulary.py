# SPDX-License-Identifier: Apache-2.0
"""Words for local descriptors by k-means, and a bag of words to compare with."""

from __future__ import annotations

import torch
from torch import Tensor

from mv_matcher_ros.datatypes import Features
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.models.place_descriptor import canonical_order
from mv_matcher_ros.training.matcher.feature_set import FeatureSet

_CHUNK = 20_000


def strongest(features: Features, most: int) -> Tensor:
    """(N, D) descriptors of the strongest keypoints, at most so many."""
    return features.descriptors[canonical_order(features)[:most]].float()


def sampled(data: FeatureSet, count: int, keypoints: int, generator: torch.Generator) -> Tensor:
    """(M, D) about `count` descriptors of all images alike, of their strongest keypoints.

    Raises:
        SourceError: there are none.
    """
    images = [view for number in range(len(data)) for view in data.in_order(number).features]
    share = -(-count // max(1, len(images)))
    parts = []
    for image in images:
        local = strongest(image, keypoints)
        parts.append(local[torch.randperm(len(local), generator=generator)[:share]])
    found = torch.cat(parts) if parts else torch.zeros(0, 1)
    if not len(found):
        raise SourceError('no keypoints in the images to train on')
    return found


def nearest_word(local: Tensor, words: Tensor) -> Tensor:
    """(N,) int64 word of each of (N, D) descriptors."""
    half = 0.5 * words.square().sum(1)
    return torch.cat([(part @ words.T - half).argmax(1) for part in local.split(_CHUNK)])


def k_means(local: Tensor, words: int, iterations: int, generator: torch.Generator) -> Tensor:
    """(K, D) centres of (N, D) descriptors (Lloyd); a word that gets none stays where it is.

    Raises:
        SourceError: fewer descriptors than words.
    """
    if len(local) < words:
        raise SourceError(f'{len(local)} descriptors are too few for {words} words')
    centres = local[torch.randperm(len(local), generator=generator)[:words]].clone()
    for _ in range(iterations):
        nearest = nearest_word(local, centres)
        count = torch.bincount(nearest, minlength=words)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, nearest, local)
        centres = torch.where(count > 0, sums / count.clamp_min(1), centres)
    return centres


def inverse_document_frequency(images: list[Tensor], words: Tensor) -> Tensor:
    """(K,) logarithm of the inverse share of the images (N, D) that have each word."""
    seen = torch.zeros(len(words))
    for local in images:
        seen[nearest_word(local, words).unique()] += 1.0
    return torch.log(len(images) / seen.clamp_min(1.0))
