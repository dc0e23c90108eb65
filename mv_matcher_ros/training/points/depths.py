# SPDX-License-Identifier: Apache-2.0
"""True depths of the keypoints that the matcher's files of features hold, found once.

A file of features says where keypoints are; what is true of them beyond the matches stands in the
rendered depth, which a step of training has no time to decode.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.training.data.correspondence import depth_between
from mv_matcher_ros.training.matcher.feature_cache import FeatureJob, FeatureRecipe, job_tuples
from mv_matcher_ros.training.matcher.feature_shards import FeatureShard
from mv_matcher_ros.training.workers import make_missing

FORMAT = 1


def make_depths(
    recipe: FeatureRecipe,
    todo: Sequence[FeatureJob],
    features: Path,
    out: Path,
    workers: int = 1,
) -> Iterator[FeatureJob]:
    """Make what is missing in `out` of files whose features are there; yields each when done.

    Raises:
        SourceError: tuples or features cannot be read, or do not belong together.
    """
    there = [job for job in todo if job.path(features).is_file()]
    yield from make_missing(partial(_make, recipe, features, out), there, out, workers)


def _make(recipe: FeatureRecipe, features: Path, out: Path, job: FeatureJob) -> FeatureJob:
    shard = FeatureShard(job.path(features))
    found: list[list[Tensor]] = []
    for number, views in enumerate(job_tuples(recipe, job)):
        known = shard[number]
        if not torch.equal(known.world_from_camera, views.world_from_camera):
            raise SourceError(
                f'{job.path(features)}: tuple {number} is not that of {job.shard}: these features '
                f'were found on other tuples'
            )
        found.append([])
        for view, one in enumerate(known.features):
            # Augmentation has no depth where something foreign stands.
            depth, certain = depth_between(views.depths[view], one.keypoints_xy.double())
            found[-1].append(torch.where(certain, depth, 0.0).float())
    write_depths(job.path(out), found)
    return job


def write_depths(path: Path, depths: Sequence[Sequence[Tensor]]) -> None:
    """Depths (N,) of the keypoints of each view of each tuple, 0 where not certain.

    Raises:
        SourceError: the place cannot be written.
    """
    aside = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open('wb') as file:
            np.savez(
                file,
                format=np.array(FORMAT),
                count=np.array([[len(view) for view in views] for views in depths], np.int32),
                depth=torch.cat([view for views in depths for view in views]).numpy(),
            )
        aside.replace(path)
    except OSError as error:
        raise SourceError(f'{path}: cannot be written: {error.strerror}') from None
    finally:
        aside.unlink(missing_ok=True)


class DepthShard:
    """The depths of one file, in memory.

    Raises:
        SourceError: not such a file.
    """

    def __init__(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as file:
                version = int(file['format'])
                self._count, self._depth = file['count'], file['depth'].astype(np.float32)
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise SourceError(
                f'{path}: not a file of depths ({error}): delete it, it is made again'
            ) from None
        if version != FORMAT:
            raise SourceError(f'{path}: depths of format {version}, this version reads {FORMAT}')
        self._begin = np.concatenate([[0], self._count.sum(1).cumsum()])

    def __len__(self) -> int:
        return len(self._count)

    def __getitem__(self, number: int) -> tuple[Tensor, ...]:
        first, last = self._begin[number : number + 2]
        parts = torch.from_numpy(self._depth[first:last]).split(self._count[number].tolist())
        return tuple(parts)
