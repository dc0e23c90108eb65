# SPDX-License-Identifier: Apache-2.0
"""A place descriptor from features of rendered tuples: words by k-means, then the principal
directions of their residuals. Nothing is iterated but k-means, so that minutes suffice and one
seed gives one network. Heads that learn from pairs of views were no better (docs/training.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.models.place_descriptor import PlaceDescriber, PlaceNetwork
from mv_matcher_ros.training.matcher.feature_set import FeatureSet
from mv_matcher_ros.training.places.settings import PlaceTraining
from mv_matcher_ros.training.places.vocabulary import (
    inverse_document_frequency,
    k_means,
    sampled,
    strongest,
)

# Directions with a smaller share of the largest spread are not blown up.
_LEAST_SPREAD = 1e-3


@dataclass(frozen=True)
class PlaceViews:
    """Vectors of all views of all tuples.

    Attributes:
        vectors: (M, R).
        tuple_of: (M,) int64 number of the tuple of each.
        pairs: (P, 2) int64 views of one place.
    """

    vectors: Tensor
    tuple_of: Tensor
    pairs: Tensor


def fit_place(settings: PlaceTraining, data: FeatureSet) -> PlaceNetwork:
    """The network, in single precision.

    Raises:
        SourceError: too few images or keypoints.
    """
    profile, words = settings.profile, settings.vocabulary
    generator = torch.Generator().manual_seed(settings.seed)
    local = sampled(data, words.descriptors, profile.keypoints, generator)
    network = PlaceNetwork(profile).eval()
    with torch.no_grad():
        network.centres.copy_(k_means(local, profile.words, words.iterations, generator))
        vectors = views_of(data, network, settings.min_overlap).vectors
        weight, bias = whitening(vectors, profile.size, settings.evenness)
        network.whiten.weight.copy_(weight)
        network.whiten.bias.copy_(bias)
    return network


def comparison(settings: PlaceTraining, data: FeatureSet) -> tuple[Tensor, Tensor]:
    """(K, D) words and (K,) weights of a bag of words from the same images."""
    profile, words = settings.profile, settings.vocabulary
    generator = torch.Generator().manual_seed(settings.seed)
    local = sampled(data, words.descriptors, profile.keypoints, generator)
    centres = k_means(local, words.comparison, words.iterations, generator)
    images = [
        strongest(view, profile.keypoints)
        for number in range(len(data))
        for view in data.in_order(number).features
    ]
    return centres, inverse_document_frequency(images, centres)


@torch.no_grad()
def views_of(data: FeatureSet, network: PlaceNetwork, min_overlap: float) -> PlaceViews:
    """Residuals of all views, and which are of one place."""
    vectors: list[Tensor] = []
    owner: list[int] = []
    pairs: list[tuple[int, int]] = []
    for number in range(len(data)):
        one = data.in_order(number)
        mean = 0.5 * (one.overlap + one.overlap.T)
        for a, b in combinations(range(len(one.features)), 2):
            if mean[a, b] >= min_overlap:
                pairs.append((len(vectors) + a, len(vectors) + b))
        for view in one.features:
            local = strongest(view, network.profile.keypoints)[None]
            vectors.append(network.residuals(local, torch.ones(local.shape[:2]).bool())[0])
            owner.append(number)
    return PlaceViews(
        torch.stack(vectors), torch.tensor(owner), torch.tensor(pairs).reshape(-1, 2)
    )


def whitening(vectors: Tensor, size: int, evenness: float) -> tuple[Tensor, Tensor]:
    """Weight (size, R) and bias (size,) that take (M, R) vectors to their principal directions.

    Args:
        vectors: of all views.
        size: directions that are kept.
        evenness: 0 turns only; 1 gives all directions the same spread.

    Raises:
        SourceError: fewer views than directions.
    """
    count, width = vectors.shape
    if min(width, count - 1) < size:
        raise SourceError(f'{count} views are too few for descriptors of {size}')
    mean = vectors.double().mean(0)
    centred = vectors.double() - mean
    spread, basis = torch.linalg.eigh(centred.T @ centred / count)
    spread, basis = spread[-size:].flip(0), basis[:, -size:].flip(1)
    floor = _LEAST_SPREAD * float(spread[0])
    weight = (basis * spread.clamp_min(floor).pow(-0.5 * evenness)).T
    weight = weight / weight.norm(dim=1).max()  # within the range of half precision
    weight = weight * _signs(weight)
    return weight.float(), (-weight @ mean).float()


def _signs(rows: Tensor) -> Tensor:
    """(S, 1) that make the largest entry of each row positive: eigenvectors have no sign."""
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return torch.where(largest < 0, -1.0, 1.0).to(rows)


def recall_at_one(data: FeatureSet, network: PlaceNetwork, min_overlap: float) -> dict[str, float]:
    """Percent of views whose most similar other view is of the same place; by kind of world, too.

    Views of one tuple with less in common than `min_overlap` are left out.
    """
    views = views_of(data, network, min_overlap)
    describer = PlaceDescriber(network)
    vectors = torch.cat([
        describer.describe_all(data.in_order(number).features) for number in range(len(data))
    ])  # fmt: skip
    same = torch.zeros(len(vectors), len(vectors), dtype=torch.bool)
    same[views.pairs[:, 0], views.pairs[:, 1]] = True
    same |= same.T.clone()
    scores = vectors @ vectors.T
    scores[(views.tuple_of[:, None] == views.tuple_of[None]) & ~same] = -torch.inf
    asked = same.any(1).numpy()
    right = same.gather(1, scores.argmax(1, keepdim=True))[:, 0].numpy()
    worlds = np.array(
        [data.in_order(int(number)).world.split('_')[0] for number in views.tuple_of]
    )
    found = {'recall_at_1': 100.0 * float(right[asked].mean()) if asked.any() else 0.0}
    for world in sorted(set(worlds[asked])):
        found[f'recall_at_1_{world}'] = 100.0 * float(right[asked & (worlds == world)].mean())
    return found
