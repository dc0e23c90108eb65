# SPDX-License-Identifier: Apache-2.0
"""What `bench places` compares the place descriptor with, and the time of a search."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mv_matcher_ros.errors import SourceError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mv_matcher_ros.datatypes import Features

MEAN, WORDS = 'mean of descriptors', 'bag of words'
# Strongest keypoints that take part, as many as the place descriptor takes.
_KEYPOINTS = 400


def baselines(features: Sequence[Features], words: Path | None) -> dict[str, NDArray[np.float32]]:
    """The means of the local descriptors, and bags of words by tf-idf; (N, S) unit or zero.

    Raises:
        SourceError: no words in the file.
    """
    import numpy as np
    import torch

    from mv_matcher_ros.training.places.vocabulary import nearest_word, strongest

    local = [strongest(one, _KEYPOINTS) for one in features]
    found = {MEAN: np_stack([one.sum(0).numpy() for one in local])}
    if words is not None:
        try:
            with np.load(words, allow_pickle=False) as file:
                centres, weights = torch.from_numpy(file['words']), file['weights']
        except (OSError, ValueError, KeyError) as error:
            raise SourceError(f'{words}: no words of `train places` ({error})') from None
        counts = [np.bincount(nearest_word(one, centres).numpy(), minlength=len(centres))
                  if len(one) else np.zeros(len(centres)) for one in local]  # fmt: skip
        found[WORDS] = np_stack([count * weights for count in counts])
    return {
        name: rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
        for name, rows in found.items()
    }


def np_stack(rows: Sequence[Any]) -> NDArray[np.float32]:
    """(N, S) float32."""
    import numpy as np

    return np.stack(rows).astype(np.float32)


def time_search(count: int, size: int = 256, queries: int = 50) -> dict[str, float]:
    """Median and 95th percentile of a search of one query among `count` keyframes, ms."""
    import numpy as np
    import torch

    from mv_matcher_ros.mapping.place_index import PlaceArrays, PlaceIndex

    rng = np.random.default_rng(0)
    rows = rng.standard_normal((count, size), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    stamps = np.arange(count, dtype=np.int64) * 10**9
    keys, kept = np.arange(count), np.ones(count, np.bool_)
    index = PlaceIndex.of(PlaceArrays(rows.astype(np.float16), keys, stamps, kept))
    times = []
    for query in rng.integers(0, count, queries + 3):
        descriptor = torch.from_numpy(rows[query])
        begin = time.perf_counter()
        index.search(descriptor, 20, int(stamps[query]), 10.0)
        times.append(1e3 * (time.perf_counter() - begin))
    kept_times = times[3:]  # the first ones warm up
    return {
        'keyframes': float(count),
        'median': float(np.median(kept_times)),
        'p95': float(np.percentile(kept_times, 95)),
    }
