# SPDX-License-Identifier: Apache-2.0
"""Tuples of features whose partners are known: points of a scene, each with its descriptor."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from mv_matcher_ros.datatypes import Features
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.training.data.labels import UNMATCHED
from mv_matcher_ros.training.matcher.feature_shards import TupleFeatures, write_features
from mv_matcher_ros.training.matcher.settings import MatcherTraining

WIDTH = 16
FOCAL = 400.0
TINY = {
    'descriptor_size': WIDTH, 'width': 32, 'attention_size': 16, 'heads': 2, 'blocks': 1,
    'encoder': (16,), 'confidence_size': 16,
}  # fmt: skip


def tiny(**changes: object) -> MatcherTraining:
    """Settings of a training that takes seconds."""
    stage = {
        'steps': 6, 'warm_up': 2, 'learning_rate': 3e-3, 'keypoints': 24,
        'batches': [{'views': 2, 'tuples': 2}, {'views': 3, 'tuples': 1}],
    }  # fmt: skip
    stages = changes.pop('stages', [{}])
    return MatcherTraining.model_validate({
        'profile_changes': TINY,
        'trainer': {'validate_every': 100, 'log_every': 2, **changes.pop('trainer', {})},  # type: ignore[dict-item]
        'stages': [{**stage, **one} for one in stages],  # type: ignore[attr-defined]
        'validation': {'keypoints': 40, 'tuples': 4},
        **changes,
    })  # fmt: skip


def scene_tuple(seed: int, views: int = 4, points: int = 40, hidden: int = 6) -> TupleFeatures:
    """Each view sees all but some `hidden` points, in an order of its own."""
    rng = np.random.default_rng(seed)
    world = rng.uniform([-2, -1.5, 3], [2, 1.5, 7], (points, 3))
    looks = rng.normal(size=(points, WIDTH))
    intrinsics = np.array([[FOCAL, 0, 320], [0, FOCAL, 240], [0, 0, 1.0]])
    poses = np.stack([
        se3.exp(torch.tensor([0.3 * v, *rng.normal(0, 0.1, 2), *rng.normal(0, 0.03, 3)])).numpy()
        for v in range(views)
    ])  # fmt: skip
    features, seen = [], []
    for pose in poses:
        there = (world - pose[:3, 3]) @ pose[:3, :3]
        xy = there[:, :2] / there[:, 2:] * FOCAL + [320, 240] + rng.normal(0, 0.05, (points, 2))
        order = rng.permutation(points)[: points - hidden]
        about = looks[order] + rng.normal(0, 0.1, (len(order), WIDTH))
        features.append(
            Features(
                torch.from_numpy(xy[order]).float(),
                torch.nn.functional.normalize(torch.from_numpy(about).float(), dim=1),
                torch.linspace(1, 0.5, len(order)),
                torch.full((len(order),), 0.5),
                (640, 480),
            )
        )
        seen.append(order)
    labels = []
    for a, b in combinations(range(views), 2):
        same = torch.from_numpy(seen[a][:, None] == seen[b][None])
        labels.append(tuple(
            torch.where(s.any(1), s.float().argmax(1), UNMATCHED) for s in (same, same.T)
        ))  # fmt: skip
    return TupleFeatures(
        tuple(features),
        tuple(labels),  # type: ignore[arg-type]
        torch.from_numpy(np.stack([intrinsics] * views)),
        torch.from_numpy(poses),
        torch.full((views, views), 0.8),
        ('photos_1', 'photos_3', 'room')[seed % 3],
        'wide',
    )


def feature_files(folder: Path, shards: int = 2, tuples: int = 3) -> list[list[Path]]:
    """Files of such tuples."""
    found = []
    for number in range(shards):
        path = folder / f'{number:05d}.a0.npz'
        write_features(path, [scene_tuple(tuples * number + i) for i in range(tuples)])
        found.append([path])
    return found
