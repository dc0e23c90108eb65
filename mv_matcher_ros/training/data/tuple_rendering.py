# SPDX-License-Identifier: Apache-2.0
"""Rendering tuples once, into shards, by several processes; what is there is not made again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.training.data.shards import write_shard
from mv_matcher_ros.training.data.tuple_sources import SPLITS, Split, TupleSources
from mv_matcher_ros.training.workers import make_missing, remember
from mv_matcher_ros.worlds.view_tuples import BASELINES, ViewTuple, sample_tuple

PLAN_FILE = 'plan.json'
_BASELINE_SHARES = (0.4, 0.45, 0.15)  # video, wide, stereo
_ATTEMPTS = 60


@dataclass(frozen=True)
class RenderingPlan:
    """What is to be rendered; the same plan gives the same tuples.

    Attributes:
        train, val: tuples of each side.
        size: width and height in pixels.
        views: of a tuple.
        per_shard: tuples of a shard.
        seed: of everything.
    """

    train: int
    val: int = 0
    size: tuple[int, int] = (640, 480)
    views: int = 5
    per_shard: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.train, self.val) < 0 or self.train + self.val < 1 or self.per_shard < 1:
            raise SourceError(f'{self.train} + {self.val} tuples: nothing to render')
        if not 2 <= self.views <= 10 or min(self.size) < 64:
            raise SourceError(
                f'tuples of {self.views} views of {self.size[0]}x{self.size[1]}: want 2 to 10 '
                f'views of at least 64 px'
            )

    def count(self, split: Split) -> int:
        """Tuples of one side."""
        return self.train if split == 'train' else self.val


@dataclass(frozen=True)
class ShardJob:
    """One shard to be rendered."""

    split: Split
    number: int
    tuples: int

    def path(self, out: Path) -> Path:
        """Its file below the folder of all."""
        return out / self.split / f'{self.number:05d}.zip'


def jobs(plan: RenderingPlan) -> list[ShardJob]:
    """All shards of a plan, both sides growing alike."""
    found: list[tuple[float, ShardJob]] = []
    for split in SPLITS:
        count = plan.count(split)
        for number, first in enumerate(range(0, count, plan.per_shard)):
            job = ShardJob(split, number, min(plan.per_shard, count - first))
            found.append((first / count, job))
    return [job for _, job in sorted(found, key=lambda item: item[0])]


def render_tuple(
    sources: TupleSources, plan: RenderingPlan, split: Split, shard: int, number: int
) -> tuple[ViewTuple, tuple[int, ...]]:
    """A tuple and the numbers it was made from.

    Raises:
        SourceError: no good views are found in its world.
    """
    name = ''
    for attempt in range(_ATTEMPTS):
        seed = (plan.seed, SPLITS.index(split), shard, number, attempt)
        rng = np.random.default_rng(seed)
        place = sources.place(split, shard, number, rng)
        name = place.name
        baseline = BASELINES[int(rng.choice(len(BASELINES), p=_BASELINE_SHARES))]
        found = sample_tuple(place, plan.size, plan.views, baseline, rng)
        if found is not None:
            return found, seed
    raise SourceError(
        f'{name}: no {plan.views} views with texture, overlap and free space were found in '
        f'{_ATTEMPTS} attempts; is it a building in metres, z up?'
    )


def render_shards(
    sources: TupleSources, plan: RenderingPlan, out: Path, workers: int = 1
) -> Iterator[ShardJob]:
    """Render what is missing in `out`; yields each shard once it is there, old ones first.

    Raises:
        SourceError: `out` holds tuples of another plan, or something cannot be read or written.
    """
    if plan.val and not sources.kinds('val'):
        raise SourceError('validation tuples need a held-out world, or eight photos or more')
    _remember(sources, plan, out)
    yield from make_missing(partial(_render, sources, plan, out), jobs(plan), out, workers)


def _render(sources: TupleSources, plan: RenderingPlan, out: Path, job: ShardJob) -> ShardJob:
    made = [render_tuple(sources, plan, job.split, job.number, i) for i in range(job.tuples)]
    write_shard(job.path(out), [views for views, _ in made], [seed for _, seed in made])
    return job


def _remember(sources: TupleSources, plan: RenderingPlan, out: Path) -> None:
    """Write down what is rendered, or see that it is the same as before."""
    content = {
        'size': list(plan.size),
        'views': plan.views,
        'per_shard': plan.per_shard,
        'seed': plan.seed,
        'procedural': sources.procedural,
        **{f'worlds_{split}': [p.stem for p in sources.worlds_of(split)] for split in SPLITS},
        **{f'photos_{split}': [p.name for p in sources.photos_of(split)] for split in SPLITS},
    }
    remember(content, out / PLAN_FILE, 'tuples of other')
