# SPDX-License-Identifier: Apache-2.0
"""The graph network behind the interface of the classical matcher, and one view after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mv_matcher_ros.config import MatchingSettings, RuntimeSettings
from mv_matcher_ros.datatypes import Features, Matches
from mv_matcher_ros.models.engine_files import EngineFiles
from mv_matcher_ros.models.known_poses import KnownPoses
from mv_matcher_ros.models.matcher import MatcherNetwork, matches_from, pair_index
from mv_matcher_ros.models.place import Place, moved, placed
from mv_matcher_ros.models.rooms import Rooms
from mv_matcher_ros.models.runtime import Runner
from mv_matcher_ros.models.static import StaticMatcher
from mv_matcher_ros.models.streaming import PastPoses, PastViews, StreamingNetwork, ViewState
from mv_matcher_ros.models.view_batch import ViewBatch, finite, padded

# Sizes for keypoints where shapes are fixed: graphs are captured in a moment, engines are not.
STEPS = {'graphs': 3}
# Outputs of the streaming network that are kept with the view: keys, values, final, place.
KEPT = 4


class LearnedMatcher:
    """The matcher network behind the interface of the classical one.

    One thread at a time: the engine waits for its keyframe before it asks itself.
    """

    def __init__(
        self,
        network: MatcherNetwork,
        settings: MatchingSettings,
        runtime: RuntimeSettings | None = None,
    ) -> None:
        self._settings = settings
        self._runtime = RuntimeSettings() if runtime is None else runtime
        self.network, self.place = placed(network.eval(), self._runtime, self._trial)
        self._run = self.runner(StaticMatcher(self.network))
        self._rooms = self.rooms()

    def move_to(self, place: Place) -> None:
        """Run there from now on, also in a precision that the settings refuse as slow.

        For a matcher that nobody shares yet: a streaming one keeps runners of its own.
        """
        self.network, self.place = moved(self.network, place), place
        self._run, self._rooms = self.runner(StaticMatcher(self.network)), self.rooms()

    def runner(self, module: torch.nn.Module, staying: int = 0) -> Runner:
        """For a function of the network, where and how the network runs."""
        return Runner(module, self.place, EngineFiles(self._runtime.engines), staying)

    def rooms(self) -> Rooms:
        """Sizes of graphs."""
        how = self.place.execution
        return Rooms(
            self._settings.views,
            self._settings.graph_keypoints,
            how != 'eager',
            STEPS.get(how, 1),
        )

    def _trial(self, network: MatcherNetwork, place: Place) -> object:
        batch = ViewBatch.of(made_up_features(network, 256, 3))
        return network(batch.to(place.device, place.dtype))

    def prepare(self) -> None:
        """Capture or load what runs for two views and for whole windows; nothing when eager."""
        if not self._rooms.fixed:
            return
        for views in {2, self._settings.views}:
            most = self._rooms.keypoints_of(views)
            for step in range(self._rooms.steps):
                room = self._rooms.keypoints(most >> step, views)
                features = made_up_features(self.network, room, views)
                self.match(features, [(view, views - 1) for view in range(views - 1)])
                if views > 2:  # a map may begin with a whole window
                    self.match(features)

    def match(
        self,
        features: Sequence[Features],
        pairs: Sequence[tuple[int, int]] | None = None,
        known: KnownPoses | None = None,
    ) -> Matches:
        """Matches of the named pairs (a < b) of V views, all pairs when None.

        Args:
            features: of each view.
            pairs: views to be matched; all of them see each other either way.
            known: relative poses, where known, of all keypoints (also of those that are cut).
        """
        if len(features) < 2:
            return nothing()
        kept = self.kept(features)
        views, index = len(features), pair_index(len(features), pairs)
        room = self._rooms.keypoints(max(map(len, kept)), views)
        chosen = [f.chosen(k) for f, k in zip(features, kept, strict=True)]
        batch = ViewBatch.of(chosen, room, self._rooms.views(views))
        asked = index.new_tensor([0, 1]).repeat(self._rooms.pairs(len(index), views), 1)
        asked[: len(index)] = index
        partner, _, confidence = self._run(
            *batch.to('cpu', self.place.dtype).tensors(),
            asked,
            *self._known(known, kept, room, batch.views),
        )
        count = len(index)
        matches = matches_from(index, partner[0, :count], confidence[0, :count])
        return renumbered(matches, kept, self.least_confidence)

    def _known(
        self, known: KnownPoses | None, kept: Sequence[Tensor], room: int, views: int
    ) -> tuple[Tensor, ...]:
        """The fields of `KnownPoses`, of the keypoints that are kept and with room."""
        if self.network.geometry is None or (known is None and not self._rooms.fixed):
            return ()
        plane = torch.zeros(1, views, room, 2)
        pose = torch.eye(4).repeat(1, views, views, 1, 1)
        sigma = torch.full((1, views, views), torch.inf)
        if known is not None:
            count = len(kept)
            for row, of_view, index in zip(plane[0], known.plane_xy[0], kept, strict=False):
                row[: len(index)] = of_view[index]
            pose[:, :count, :count] = known.target_from_source
            sigma[:, :count, :count] = known.sigma
        return plane, pose, sigma

    def kept(self, features: Sequence[Features]) -> list[Tensor]:
        """(K,) int64 of each view: the keypoints that enter the graph, the strongest."""
        most = self._rooms.keypoints_of(len(features))
        return [strongest(f, most) for f in features]

    def left_out(self, features: Sequence[Features]) -> int:
        """How many keypoints of these views do not enter the graph."""
        return sum(len(f) - len(k) for f, k in zip(features, self.kept(features), strict=True))

    @property
    def least_confidence(self) -> float:
        """Of a match; a network without confidence head has a threshold of its own instead."""
        return 0.0 if self.network.confidence is None else self._settings.min_confidence


@dataclass(frozen=True)
class SeenView:
    """A view in streaming mode.

    Attributes:
        state: what the network keeps of it.
        kept: (N,) int64 features that entered the graph.
        plane_xy: (N, 2) of these on the normalised plane.
    """

    state: ViewState
    kept: Tensor
    plane_xy: Tensor


class StreamingMatcher:
    """Matches a new view with earlier ones. Keeps no state: the caller keeps the `SeenView`s."""

    def __init__(self, matcher: LearnedMatcher) -> None:
        self._matcher = matcher
        self._rooms = matcher.rooms()
        self._run = matcher.runner(StreamingNetwork(matcher.network), staying=KEPT)

    def prepare(self) -> None:
        """Capture or load what runs for a window; nothing when eager."""
        if not self._rooms.fixed:
            return
        most = self._rooms.keypoints_of(self._rooms.most_views)
        for step in range(self._rooms.steps):
            (features,) = made_up_features(self._matcher.network, most >> step, 1)
            self.match(features, torch.zeros(len(features), 2), [])

    def match(
        self,
        features: Features,
        plane_xy: Tensor,
        past: Sequence[SeenView],
        past_from_new: Tensor | None = None,
        sigma: Tensor | None = None,
    ) -> tuple[SeenView, Matches]:
        """What the new view offers to later ones, and its matches with the earlier ones.

        Args:
            features: of the new view.
            plane_xy: (N, 2) of these on the normalised plane.
            past: W earlier views in the order in which the new one numbers them.
            past_from_new: (W, 4, 4) relative poses, where known.
            sigma: (W,) how well, as in `KnownPoses`; None: no pose is known.

        Returns:
            the view, and the matches of pairs (w, W).

        Raises:
            ModelError: descriptors of another width than the network's.
        """
        network, dtype = self._matcher.network, self._matcher.place.dtype
        rooms = self._rooms
        window = max(len(past), rooms.most_views - 1 if rooms.fixed else 0)
        kept = strongest(features, rooms.keypoints_of(window + 1))
        longest = max([len(kept), *(len(view.kept) for view in past)])
        room = rooms.keypoints(longest, window + 1)
        batch = ViewBatch.of([features.chosen(kept)], room)
        stacked = PastViews.of([view.state for view in past], network, window, room)
        poses = self._poses(plane_xy[kept], past, past_from_new, sigma, window, room)
        keys, values, final, place, partner, _, confidence = self._run(
            *batch.to('cpu', dtype).tensors(),
            stacked.keys, stacked.values, stacked.final, stacked.place, stacked.valid,
            *poses,
        )  # fmt: skip
        state = ViewState(keys, values, final, place, batch.valid[0, 0].to(final.device))
        count = len(past)
        pairs = torch.tensor([(w, count) for w in range(count)]).reshape(-1, 2)
        matches = matches_from(pairs, partner[0, :count], confidence[0, :count])
        numbers = [*(view.kept for view in past), kept]
        seen = SeenView(state, kept, plane_xy[kept])
        return seen, renumbered(matches, numbers, self._matcher.least_confidence)

    def _poses(
        self,
        plane_xy: Tensor,
        past: Sequence[SeenView],
        past_from_new: Tensor | None,
        sigma: Tensor | None,
        window: int,
        room: int,
    ) -> tuple[Tensor, ...]:
        """The fields of `PastPoses` with room."""
        geometry = self._matcher.network.geometry
        if geometry is None or (sigma is None and not self._rooms.fixed):
            return ()
        kind = geometry.dtype
        count = len(past)
        pose = torch.eye(4, dtype=kind).repeat(window, 1, 1)
        spread = torch.full((window,), torch.inf, dtype=kind)
        if past_from_new is not None and sigma is not None:
            pose[:count], spread[:count] = past_from_new, sigma
        there = torch.zeros(window, room, 2, dtype=kind)
        for row, view in zip(there, past, strict=False):
            row[: len(view.plane_xy)] = view.plane_xy
        told = PastPoses(padded(plane_xy.to(kind), room), there, pose, spread)
        return told.plane_xy, told.past_xy, told.past_from_new, told.sigma


def renumbered(matches: Matches, kept: Sequence[Tensor], least: float) -> Matches:
    """The matches with at least this confidence, keypoints numbered as before the choice.

    Args:
        matches: with keypoints numbered among the chosen ones of their view.
        kept: (K,) int64 of each view.
        least: smallest confidence.
    """
    good = matches.confidence >= least
    views, local = matches.views[good], matches.keypoints[good]
    place = torch.zeros(len(kept), max(map(len, kept), default=0), dtype=torch.int64)
    for row, index in zip(place, kept, strict=True):
        row[: len(index)] = index
    keypoints = place[views, local] if len(views) else local
    return Matches(views, keypoints, matches.confidence[good].float())


def strongest(features: Features, most: int) -> Tensor:
    """(K,) int64 the features with the highest scores, in order of their number.

    What is no number takes no room from the others: it takes no part in the graph.
    """
    if len(features) <= most:
        return torch.arange(len(features))
    scores = torch.where(finite(features), features.scores, -torch.inf)
    return scores.argsort(descending=True, stable=True)[:most].sort().values


def made_up_features(network: MatcherNetwork, count: int, views: int) -> list[Features]:
    """Features with nothing in common, for trials."""
    generator = torch.Generator().manual_seed(0)
    size = network.profile.descriptor_size
    return [
        Features(
            600.0 * torch.rand(count, 2, generator=generator),
            torch.nn.functional.normalize(torch.randn(count, size, generator=generator), dim=-1),
            torch.rand(count, generator=generator),
            torch.ones(count),
            (640, 480),
        )
        for _ in range(views)
    ]


def nothing() -> Matches:
    """No matches."""
    none = torch.zeros(0, 2, dtype=torch.int64)
    return Matches(none, none, torch.zeros(0))
