# SPDX-License-Identifier: Apache-2.0
"""A new keyframe, those before it and the other cameras of the rig as views of one graph.

The network matches them all at once and is told the poses that are known: rig and solved keyframes
well, the new keyframe as well as tracking knows it. In streaming mode what earlier keyframes offer
is kept with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Features, Matches, Rig
from mv_matcher_ros.errors import SettingsError
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.models.known_poses import KnownPoses
from mv_matcher_ros.models.learned_matcher import LearnedMatcher, SeenView, StreamingMatcher
from mv_matcher_ros.odometry.observation import Observation
from mv_matcher_ros.odometry.seeing import SeeingCameras
from mv_matcher_ros.odometry.window import Keyframe

# How far a true partner may lie from its epipolar line, pixels at the first camera's focal length:
# between views with solved poses, and where tracking is all that knows one of them.
SOLVED_PX = 1.5
TRACKED_PX = 4.0


@dataclass(frozen=True)
class SecondView:
    """What the other camera of a pair sees.

    Attributes:
        features: of it.
        plane_xy, sigma: (N, 2) their places on its normalised plane, (N,) standard deviations.
        images: the working images (H, W) of the first camera and of this one.
    """

    features: Features
    plane_xy: Tensor
    sigma: Tensor
    images: tuple[NDArray[np.uint8], NDArray[np.uint8]]


@dataclass(frozen=True)
class JointMatches:
    """Matches of a new keyframe.

    Attributes:
        of_keyframe: by index of the older frame: (K, 2) features of the new and of the older
            keyframe, and (K,) confidences; each of one camera.
        stereo: of each stereo pair (K, 2) features of its first camera and of its second, counted
            in their images, and (K,) confidences; empty for one camera.
    """

    of_keyframe: Mapping[int, tuple[Tensor, Tensor]]
    stereo: tuple[tuple[Tensor, Tensor], ...] = ()


@dataclass(frozen=True)
class GraphView:
    """A view of the graph: what a seeing camera saw at a keyframe, or another one of the rig.

    Attributes:
        features, plane_xy: of it.
        world_from_camera: (4, 4) where it was.
    """

    features: Features
    plane_xy: Tensor
    world_from_camera: Tensor


@dataclass(frozen=True)
class OlderView:
    """What one seeing camera of an older keyframe saw."""

    keyframe: Keyframe
    camera: int


class JointMatcher:
    """Asks the network about a new keyframe.

    The views are its cameras, and as many of older keyframes as there is room for. Matches are
    asked for within each camera, and between the two of each stereo pair.

    Raises:
        SettingsError: the graph has no room for an earlier keyframe.
    """

    def __init__(self, settings: Settings, rig: Rig, matcher: LearnedMatcher) -> None:
        self._cameras = SeeingCameras.of(settings, rig)
        taken = 2 * len(self._cameras)
        if settings.sensor == 'stereo' and settings.matching.views <= taken:
            beside = 'two' if taken == 2 else f'{taken}'
            of_pairs = 'stereo' if taken == 2 else f'{len(self._cameras)} stereo pairs'
            raise SettingsError(
                f'matching.views {settings.matching.views} leaves no room for an earlier keyframe '
                f'beside the {beside} cameras: {taken + 1} or more for {of_pairs}'
            )
        self._settings = settings.matching
        self._matcher = matcher
        self._streaming = (
            StreamingMatcher(matcher) if self._settings.matcher == 'streaming' else None
        )
        if self._streaming is not None:
            self._streaming.prepare()
        self._focal = rig.cameras[0].focal_px
        self._body_from_camera = [
            torch.from_numpy(camera.body_from_camera.copy()) for camera in rig.cameras
        ]

    def match(
        self,
        keyframes: Sequence[Keyframe],
        observation: Observation,
        world_from_body: Tensor,
        seconds: Sequence[SecondView] = (),
    ) -> tuple[JointMatches, tuple[SeenView, ...] | None]:
        """Matches with the newest keyframes, and with the other cameras.

        Args:
            keyframes: of the window, the newest last.
            observation: of the new one.
            world_from_body: (4, 4) its pose as tracking knows it.
            seconds: what the second camera of each stereo pair sees.

        Returns:
            the matches, and what to keep with the keyframe (in streaming mode).
        """
        count = len(self._cameras)
        older = self._older(keyframes, self._settings.views - count - len(seconds))
        new = [self._view(observation, world_from_body, number) for number in range(count)]
        new += [
            GraphView(
                second.features,
                second.plane_xy,
                world_from_body @ self._body_from_camera[2 * number + 1],
            )
            for number, second in enumerate(seconds)
        ]
        look = self._jointly if self._streaming is None else self._one_by_one
        matches, seen = look(older, new)
        return self._joint(matches, older, observation, len(seconds)), seen

    def _older(self, keyframes: Sequence[Keyframe], room: int) -> list[OlderView]:
        """Views of the newest keyframes as far as there is room, the oldest first."""
        cameras = range(len(self._cameras))
        newest_first = [OlderView(k, camera) for k in reversed(keyframes) for camera in cameras]
        return newest_first[:room][::-1]

    def _view(self, observation: Observation, world_from_body: Tensor, camera: int) -> GraphView:
        part = self._cameras.part(observation, camera)
        pose = world_from_body @ self._cameras.body_from_camera[camera]
        return GraphView(part.features, part.plane_xy, pose)

    def _of_older(self, older: OlderView) -> GraphView:
        keyframe = older.keyframe
        return self._view(keyframe.observation, keyframe.world_from_body, older.camera)

    def _pairs(self, older: Sequence[OlderView], new: int) -> list[tuple[int, int]]:
        """Views to be matched: older ones with the same camera, first with second cameras."""
        first, count = len(older), len(self._cameras)
        pairs = [(number, first + view.camera) for number, view in enumerate(older)]
        return pairs + [(first + n - count, first + n) for n in range(count, new)]

    # ---------------------------------------------------------------- jointly

    def _jointly(
        self, older: list[OlderView], new: list[GraphView]
    ) -> tuple[Matches, tuple[SeenView, ...] | None]:
        views = [*(self._of_older(view) for view in older), *new]
        known = self._known(views, len(older)) if self._settings.known_poses else None
        features = [view.features for view in views]
        return self._matcher.match(features, self._pairs(older, len(new)), known), None

    def _known(self, views: list[GraphView], new: int) -> KnownPoses:
        room = max(len(view.plane_xy) for view in views)
        padded = [functional.pad(v.plane_xy, (0, 0, 0, room - len(v.plane_xy))) for v in views]
        sigma = torch.full((len(views), len(views)), TRACKED_PX / self._focal)
        sigma[:new, :new] = SOLVED_PX / self._focal
        sigma[new:, new:] = SOLVED_PX / self._focal
        poses = torch.stack([view.world_from_camera for view in views])
        return KnownPoses.of(torch.stack(padded)[None].float(), poses[None], sigma[None])

    # -------------------------------------------------------------- streaming

    def _one_by_one(
        self, older: list[OlderView], new: list[GraphView]
    ) -> tuple[Matches, tuple[SeenView, ...]]:
        """Every view looks at those before it; matches number views as in the whole graph."""
        seen: list[SeenView] = []
        views: list[GraphView] = []
        for view in older:
            if view.keyframe.seen is None:  # the keyframes a map begins with
                view.keyframe.seen = self._first_look(view.keyframe, seen, views)
            seen.append(view.keyframe.seen[view.camera])
            views.append(self._of_older(view))
        found = []
        for number, newest in enumerate(new):
            sigma = [TRACKED_PX] * len(older) + [SOLVED_PX] * number
            looked, matches = self._look(newest, seen, views, sigma)
            seen.append(looked)
            views.append(newest)
            found.append(matches)
        matches = Matches(
            torch.cat([part.views for part in found]),
            torch.cat([part.keypoints for part in found]),
            torch.cat([part.confidence for part in found]),
        )
        first = len(older)
        return matches, tuple(seen[first : first + len(self._cameras)])

    def _first_look(
        self, keyframe: Keyframe, seen: Sequence[SeenView], views: Sequence[GraphView]
    ) -> tuple[SeenView, ...]:
        cameras = range(len(self._cameras))
        parts = [self._view(keyframe.observation, keyframe.world_from_body, n) for n in cameras]
        return tuple(self._look(part, seen, views, [SOLVED_PX] * len(seen))[0] for part in parts)

    def _look(
        self,
        view: GraphView,
        past: Sequence[SeenView],
        past_views: Sequence[GraphView],
        sigma_px: Sequence[float],
    ) -> tuple[SeenView, Matches]:
        """A new view, and its matches with the past ones (number w with number W)."""
        assert self._streaming is not None
        if not self._settings.known_poses or not past:
            return self._streaming.match(view.features, view.plane_xy, past)
        poses = torch.stack([each.world_from_camera for each in past_views])
        past_from_new = se3.inverse(poses) @ view.world_from_camera
        sigma = torch.tensor(sigma_px) / self._focal
        return self._streaming.match(view.features, view.plane_xy, past, past_from_new, sigma)

    def _joint(
        self, matches: Matches, older: list[OlderView], observation: Observation, seconds: int
    ) -> JointMatches:
        first, count = len(older), len(self._cameras)
        found: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for number, view in enumerate(older):
            pairs, confidence = matches.pair(number, first + view.camera)
            there, here = pairs.unbind(1)
            before = view.keyframe.observation
            rows = [observation.rows_of(view.camera)[here], before.rows_of(view.camera)[there]]
            found.setdefault(before.index, []).append((torch.stack(rows, dim=1), confidence))
        return JointMatches(
            {
                index: (torch.cat([p for p, _ in parts]), torch.cat([c for _, c in parts]))
                for index, parts in found.items()
            },
            tuple(matches.pair(first + n, first + count + n) for n in range(seconds)),
        )
