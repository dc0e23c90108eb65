# SPDX-License-Identifier: Apache-2.0
"""Tuples of features in an order that is shuffled, the same every time, and kind to the disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.training.matcher.feature_shards import FeatureShard, TupleFeatures, worlds_of

# Tuples are mixed among this many shards, which are in memory together.
_GROUP = 12


class FeatureSet:
    """The tuples of some files of features.

    Args:
        shards: for each shard its files, one an augmentation; epochs take them in turn.
        accepts: by the name of their world, which tuples take part; None: all.
        most: take the first so many only.
        seed: of the order.

    Raises:
        SourceError: no tuple is left, or a file is broken.
    """

    def __init__(
        self,
        shards: Sequence[Sequence[Path]],
        accepts: Callable[[str], bool] | None = None,
        most: int | None = None,
        seed: int = 0,
    ) -> None:
        self._shards = [list(files) for files in shards if files]
        self._seed, self._open = seed, dict[Path, FeatureShard]()
        self._members: list[tuple[int, int]] = []
        self._worlds: list[str] = []
        for number, files in enumerate(self._shards):
            for index, world in enumerate(worlds_of(files[0])):
                full = most is not None and len(self._members) >= most
                if not full and (accepts is None or accepts(world)):
                    self._members.append((number, index))
                    self._worlds.append(world)
        if not self._members:
            where = self._shards[0][0].parent if self._shards else 'features'
            raise SourceError(f'{where}: no tuple of the wanted kind')
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._members)

    def worlds(self) -> dict[str, int]:
        """How many tuples there are of each place."""
        return dict(Counter(self._worlds))

    def in_order(self, number: int) -> TupleFeatures:
        """Tuple `number`, seen as in the first epoch."""
        return self._read(*self._place(number, 0))

    def shuffled(self, position: int) -> TupleFeatures:
        """The tuple at a position, 0 on, of an endless order in which each epoch has all once."""
        return self._read(*self.place_of(position))

    def place_of(self, position: int) -> tuple[Path, int]:
        """File, and number in it, of the tuple that `shuffled` gives."""
        epoch, inside = divmod(position, len(self))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._order_of(epoch)
        return self._place(int(self._order[inside]), epoch)

    def place_in_order(self, number: int) -> tuple[Path, int]:
        """File, and number in it, of the tuple that `in_order` gives."""
        return self._place(number, 0)

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        rng = np.random.default_rng((self._seed, epoch))
        shard = np.array([number for number, _ in self._members])
        rank = rng.permutation(len(self._shards))[shard] // _GROUP
        return np.lexsort((rng.random(len(self)), rank))

    def _place(self, number: int, epoch: int) -> tuple[Path, int]:
        shard, index = self._members[number]
        files = self._shards[shard]
        return files[(epoch + shard if epoch else 0) % len(files)], index

    def _read(self, path: Path, index: int) -> TupleFeatures:
        if path not in self._open:
            if len(self._open) > _GROUP:
                self._open.pop(next(iter(self._open)))
            self._open[path] = FeatureShard(path)
        return self._open[path][index]
