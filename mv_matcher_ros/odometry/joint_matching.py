# SPDX-License-Identifier: Apache-2.0
"""A new keyframe, those before it and the other camera of the rig as views of one graph.

The network matches them all at once and is told the poses that are known: rig and solved keyframes
well, the new keyframe as well as tracking knows it. In streaming mode what earlier keyframes offer
is kept with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Features, Matches, Rig
from mv_matcher_ros.errors import SettingsError
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.models.known_poses import KnownPoses
from mv_matcher_ros.models.learned_matcher import LearnedMatcher, SeenView, StreamingMatcher
from mv_matcher_ros.odometry.observation import Observation
from mv_matcher_ros.odometry.window import Keyframe

# How far a true partner may lie from its epipolar line, pixels at the first camera's focal length:
# between views with solved poses, and where tracking is all that knows one of them.
SOLVED_PX = 1.5
TRACKED_PX = 4.0


@dataclass(frozen=True)
class SecondView:
    """What the other camera of a rig sees: features, and their place on its normalised plane."""

    features: Features
    plane_xy: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class JointMatches:
    """Matches of a new keyframe.

    Attributes:
        of_keyframe: by index of the older frame: (K, 2) features of the new and of the older
            keyframe, and (K,) confidences.
        stereo: (K, 2) features of the first and second camera, and (K,) confidences; None without
            a second camera.
    """

    of_keyframe: Mapping[int, tuple[Tensor, Tensor]]
    stereo: tuple[Tensor, Tensor] | None = None


class JointMatcher:
    """Asks the network about a new keyframe.

    Raises:
        SettingsError: the graph has no room for an earlier keyframe.
    """

    def __init__(self, settings: Settings, rig: Rig, matcher: LearnedMatcher) -> None:
        if settings.sensor == 'stereo' and settings.matching.views < 3:
            raise SettingsError(
                f'matching.views {settings.matching.views} leaves no room for an earlier keyframe '
                'beside the two cameras: 3 or more for stereo'
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
        second: SecondView | None = None,
    ) -> tuple[JointMatches, SeenView | None]:
        """Matches with the newest keyframes, and with the other camera.

        Args:
            keyframes: of the window, the newest last.
            observation: of the new one.
            world_from_body: (4, 4) its pose as tracking knows it.
            second: the other camera's view.

        Returns:
            the matches, and what to keep with the keyframe (in streaming mode).
        """
        room = self._settings.views - 1 - (second is not None)
        older = list(keyframes[-room:]) if room > 0 else []
        look = self._jointly if self._streaming is None else self._one_by_one
        return look(older, observation, world_from_body, second)

    # ---------------------------------------------------------------- jointly

    def _jointly(
        self,
        older: list[Keyframe],
        observation: Observation,
        world_from_body: Tensor,
        second: SecondView | None,
    ) -> tuple[JointMatches, SeenView | None]:
        features = [k.observation.features for k in older] + [observation.features]
        planes = [k.observation.plane_xy for k in older] + [observation.plane_xy]
        poses = [k.world_from_body @ self._body_from_camera[0] for k in older]
        poses.append(world_from_body @ self._body_from_camera[0])
        if second is not None:
            features.append(second.features)
            planes.append(second.plane_xy)
            poses.append(world_from_body @ self._body_from_camera[1])
        new = len(older)
        pairs = [(number, new) for number in range(new)]
        if second is not None:
            pairs.append((new, new + 1))
        known = (
            self._known(planes, torch.stack(poses), new) if self._settings.known_poses else None
        )
        matches = self._matcher.match(features, pairs, known)
        return _joint(matches, older, new, second is not None), None

    def _known(self, planes: list[Tensor], poses: Tensor, new: int) -> KnownPoses:
        room = max(len(plane) for plane in planes)
        padded = torch.stack([functional.pad(p, (0, 0, 0, room - len(p))) for p in planes])
        sigma = torch.full((len(planes), len(planes)), TRACKED_PX / self._focal)
        sigma[:new, :new] = SOLVED_PX / self._focal
        sigma[new:, new:] = SOLVED_PX / self._focal
        return KnownPoses.of(padded[None].float(), poses[None], sigma[None])

    # -------------------------------------------------------------- streaming

    def _one_by_one(
        self,
        older: list[Keyframe],
        observation: Observation,
        world_from_body: Tensor,
        second: SecondView | None,
    ) -> tuple[JointMatches, SeenView | None]:
        seen: list[SeenView] = []
        poses: list[Tensor] = []
        for keyframe in older:
            pose = keyframe.world_from_body @ self._body_from_camera[0]
            if keyframe.seen is None:  # the keyframes a map begins with
                begun = keyframe.observation
                keyframe.seen, _ = self._look(
                    begun.features, begun.plane_xy, pose, seen, poses, [SOLVED_PX] * len(seen)
                )
            seen.append(keyframe.seen)
            poses.append(pose)
        pose = world_from_body @ self._body_from_camera[0]
        tracked = [TRACKED_PX] * len(older)
        first, matches = self._look(
            observation.features, observation.plane_xy, pose, seen, poses, tracked
        )
        joint = _joint(matches, older, len(older), False)
        if second is not None:
            other = world_from_body @ self._body_from_camera[1]
            _, across = self._look(
                second.features, second.plane_xy, other,
                [*seen, first], [*poses, pose], [*tracked, SOLVED_PX],
            )  # fmt: skip
            joint = JointMatches(joint.of_keyframe, across.pair(len(older), len(older) + 1))
        return joint, first

    def _look(
        self,
        features: Features,
        plane_xy: Tensor,
        world_from_camera: Tensor,
        past: Sequence[SeenView],
        past_poses: Sequence[Tensor],
        sigma_px: Sequence[float],
    ) -> tuple[SeenView, Matches]:
        """A new view, and its matches with the past ones (number w with number W)."""
        assert self._streaming is not None
        if not self._settings.known_poses or not past:
            return self._streaming.match(features, plane_xy, past)
        past_from_new = se3.inverse(torch.stack(list(past_poses))) @ world_from_camera
        sigma = torch.tensor(sigma_px) / self._focal
        return self._streaming.match(features, plane_xy, past, past_from_new, sigma)


def _joint(matches: Matches, older: list[Keyframe], new: int, stereo: bool) -> JointMatches:
    of_keyframe = {}
    for number, keyframe in enumerate(older):
        pairs, confidence = matches.pair(number, new)
        of_keyframe[keyframe.observation.index] = (pairs.flip(1), confidence)
    return JointMatches(of_keyframe, matches.pair(new, new + 1) if stereo else None)
