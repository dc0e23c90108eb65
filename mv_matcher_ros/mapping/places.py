# SPDX-License-Identifier: Apache-2.0
"""Places seen before: similar keyframes, grouped into islands and believed when several keyframes
in a row see the same one (after Gálvez-López and Tardós, Bags of Binary Words, TRO 2012, IV).

One similar image proves nothing: shelves repeat, corridors look alike. What repeats keyframe after
keyframe while the camera moves is rarely chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mv_matcher_ros.config import PlaceSettings
from mv_matcher_ros.mapping.place_index import PlaceIndex

# The similarity to the last keyframe is no measure of anything below this: the image changed
# abruptly, or one of the two shows nothing.
_LEAST_REFERENCE = 0.2


@dataclass(frozen=True)
class PlaceCandidate:
    """Neighbouring keyframes that look like the query.

    Attributes:
        keys: of the similar keyframes, most similar first.
        similarities: cosine of each with the query, as long as `keys`.
        first, last: positions in the index that the island spans.
        score: mean over the keyframes in a row that saw it of the best similarity, each as a share
            of what keyframes next to each other had; better candidates have more.
        consecutive: how many keyframes in a row saw it, this one included; counted up to what the
            settings want.
        accepted: as many as the settings want.
    """

    keys: tuple[int, ...]
    similarities: tuple[float, ...]
    first: int
    last: int
    score: float
    consecutive: int
    accepted: bool


@dataclass(frozen=True)
class _Island:
    """Positions that look like the query, with what earlier keyframes say of them."""

    positions: NDArray[np.int64]  # most similar first
    similarities: NDArray[np.float32]
    shares: tuple[float, ...]  # of the keyframes in a row that saw it, the newest last

    @property
    def span(self) -> tuple[int, int]:
        return int(self.positions.min()), int(self.positions.max())


class PlaceRecogniser:
    """Tells candidate places of a sequence of keyframes. It appends nothing to the index itself:
    the mapper does, a localiser does not.

    Args:
        index: of all keyframes so far.
        settings: thresholds.
    """

    def __init__(self, index: PlaceIndex, settings: PlaceSettings) -> None:
        self._index, self._settings = index, settings
        self._before: tuple[_Island, ...] = ()
        self._last: Tensor | None = None

    def forget(self) -> None:
        """The next keyframe does not follow the last one: tracking was lost in between."""
        self._before, self._last = (), None

    def recognise(
        self, descriptor: Tensor, stamp_ns: int, allowed: NDArray[np.bool_] | None = None
    ) -> list[PlaceCandidate]:
        """Candidate places of the next keyframe, accepted ones first, then by score.

        Args:
            descriptor: (S,) of the keyframe, not yet in the index.
            stamp_ns: its stamp; keyframes younger than `gap_s` before it are left out.
            allowed: (N,) which keyframes of the index may be found; None: all.

        Raises:
            ModelError: a descriptor of another width, or not finite.
        """
        settings = self._settings
        found = self._index.search(
            descriptor, settings.candidates, stamp_ns, settings.gap_s, allowed
        )
        reference = self._reference(descriptor)
        positions, scores = found.positions[0], found.scores[0]
        good = scores >= max(settings.min_score, settings.min_share * reference)
        islands = _islands(positions[good], scores[good], settings.island)
        self._before = tuple(self._continued(one, reference) for one in islands)
        candidates = [self._candidate(island) for island in self._before]
        return sorted(candidates, key=lambda one: (not one.accepted, -one.score, one.first))

    def _reference(self, descriptor: Tensor) -> float:
        """How similar keyframes that follow one another are here; one where nothing is known."""
        now, last = descriptor.detach().float().cpu(), self._last
        self._last = now
        if last is None or not last.any() or not now.any():
            return 1.0
        return min(1.0, max(_LEAST_REFERENCE, float(torch.dot(now, last))))

    def _continued(self, island: _Island, reference: float) -> _Island:
        """The island with the longest chain of those before that are within reach."""
        first, last = island.span
        reach = self._settings.reach
        chains = [
            before.shares
            for before in self._before
            if before.span[0] - reach <= last and first <= before.span[1] + reach
        ]
        longest = max(chains, key=lambda shares: (len(shares), sum(shares)), default=())
        share = float(island.similarities[0]) / reference
        kept = (
            longest[-(self._settings.consecutive - 1) :] if self._settings.consecutive > 1 else ()
        )
        return _Island(island.positions, island.similarities, (*kept, share))

    def _candidate(self, island: _Island) -> PlaceCandidate:
        first, last = island.span
        count = len(island.shares)
        return PlaceCandidate(
            tuple(int(key) for key in self._index.keys[island.positions]),
            tuple(float(value) for value in island.similarities),
            first,
            last,
            sum(island.shares) / count,
            count,
            count >= self._settings.consecutive,
        )


def _islands(
    positions: NDArray[np.int64], scores: NDArray[np.float32], apart: int
) -> list[_Island]:
    """Groups of positions with no gap larger than `apart`, in order of position."""
    order = np.argsort(positions, kind='stable')
    cuts = np.flatnonzero(np.diff(positions[order]) > max(apart, 1)) + 1
    islands = []
    for part in np.split(order, cuts):
        if len(part):
            best = part[np.lexsort((positions[part], -scores[part]))]
            islands.append(_Island(positions[best], scores[best], ()))
    return islands
