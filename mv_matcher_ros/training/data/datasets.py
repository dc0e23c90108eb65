# SPDX-License-Identifier: Apache-2.0
"""Tuples from shards for training: fresh augmentation each epoch, the same for one seed."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.training.data.augmentation import Augmentation, augment
from mv_matcher_ros.training.data.labels import LabelView
from mv_matcher_ros.training.data.shards import Shard, TupleEntry
from mv_matcher_ros.worlds.mipmaps import Floats

# Views of a chosen part of a tuple hang together with at least this overlap.
_LEAST_OVERLAP = 0.1


@dataclass(frozen=True)
class TrainingTuple:
    """V views with what labels and losses need.

    Attributes:
        images: (V, 1, H, W) float32 in [0, 1].
        depths: (V, H, W) float32 metres along the optical axis, 0 where unknown.
        foreign: (V, H, W) bool: something that is no part of the place.
        world_from_camera: (V, 4, 4) float64 metres.
        intrinsics: (V, 3, 3) float64 pixels.
        overlap: (V, V) float32 share of a's points that b sees, before augmentation.
        world: name of the place.
        baseline: video, wide or stereo.
    """

    images: Tensor
    depths: Tensor
    foreign: Tensor
    world_from_camera: Tensor
    intrinsics: Tensor
    overlap: Tensor
    world: str
    baseline: str

    def label_view(self, view: int, keypoints_xy: Tensor) -> LabelView:
        """One view with keypoints (N, 2), for `labels.match_labels`."""
        return LabelView(
            keypoints_xy,
            self.depths[view],
            self.intrinsics[view],
            self.world_from_camera[view],
            self.foreign[view],
        )


@dataclass
class TupleDataset:
    """The tuples below a folder of shards.

    Attributes:
        folder: holds the `.zip` files of one split; or one such file.
        views: how many of a tuple's views are given; None for all.
        augmentation: None leaves images as they were rendered.
        seed: of views and augmentation, with epoch and index.
        epoch: counts the times the data set was gone through; set it before each.

    Raises:
        SourceError: no shards, a broken one, or tuples of fewer views than wanted.
    """

    folder: Path
    views: int | None = None
    augmentation: Augmentation | None = field(default_factory=Augmentation)
    seed: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        one = self.folder.is_file()
        self.shards = [self.folder] if one else sorted(self.folder.glob('*.zip'))
        if not self.shards:
            raise SourceError(
                f'{self.folder}: no shards of tuples; "mv-matcher train tuples" renders them'
            )
        self._open: dict[int, Shard] = {}
        self._process = os.getpid()
        self._index: list[tuple[int, int]] = []
        for number, path in enumerate(self.shards):
            shard = Shard(path)
            self._index += [(number, i) for i in range(len(shard))]
            fewest = min((entry.views for entry in shard.entries), default=0)
            shard.close()
            if self.views is not None and not 2 <= self.views <= fewest:
                raise SourceError(f'{path}: its tuples have {fewest} views, wanted: {self.views}')

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> TrainingTuple:
        return self.tuple_at(index, self.epoch)

    def __getstate__(self) -> dict[str, object]:
        """For worker processes: open files stay here."""
        return {**self.__dict__, '_open': {}}

    def entry(self, index: int) -> TupleEntry:
        """What is known of a tuple without its images."""
        number, position = self._index[index]
        return self._shard(number).entries[position]

    def tuple_at(self, index: int, epoch: int) -> TrainingTuple:
        """Tuple `index` as it looks in an epoch."""
        number, position = self._index[index]
        shard = self._shard(number)
        entry = shard.entries[position]
        rng = np.random.default_rng((self.seed, epoch, index))
        chosen = connected_views(entry.overlap, self.views or entry.views, rng)
        images = np.stack(shard.images(position, chosen))
        depths = np.stack(shard.depths(position, chosen))
        foreign = np.zeros(images.shape, np.bool_)
        if self.augmentation is not None:
            seen = augment(images, depths, rng, self.augmentation)
            images, depths, foreign = seen.images, seen.depths, seen.foreign
        return TrainingTuple(
            torch.from_numpy(images)[:, None].float() / 255.0,
            torch.from_numpy(depths),
            torch.from_numpy(foreign),
            torch.from_numpy(entry.world_from_camera[chosen]),
            torch.from_numpy(entry.intrinsics[chosen]),
            torch.from_numpy(entry.overlap[np.ix_(chosen, chosen)]),
            entry.world,
            entry.baseline,
        )

    def _shard(self, number: int) -> Shard:
        if self._process != os.getpid():  # a forked worker shares file positions with its parent
            self._open, self._process = {}, os.getpid()
        if number not in self._open:
            if len(self._open) >= 16:  # shuffled reading must not use up the file handles
                self._open.pop(next(iter(self._open))).close()
            self._open[number] = Shard(self.shards[number])
        return self._open[number]


def connected_views(overlap: Floats, count: int, rng: np.random.Generator) -> list[int]:
    """`count` views in ascending order, each overlapping with another chosen one if possible."""
    if count >= len(overlap):
        return list(range(len(overlap)))
    mean = 0.5 * (overlap + overlap.T)
    chosen = [int(rng.integers(len(overlap)))]
    while len(chosen) < count:
        rest = [view for view in range(len(overlap)) if view not in chosen]
        best = mean[np.ix_(rest, chosen)].max(1)
        near = [view for view, value in zip(rest, best, strict=True) if value >= _LEAST_OVERLAP]
        chosen.append(int(rng.choice(near)) if near else rest[int(best.argmax())])
    return sorted(chosen)
