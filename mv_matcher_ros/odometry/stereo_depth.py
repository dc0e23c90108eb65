# SPDX-License-Identifier: Apache-2.0
"""Depth from the second camera of each stereo pair, and what their images say of the rig."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Rig
from mv_matcher_ros.errors import SettingsError
from mv_matcher_ros.models.classical import NearestNeighbourMatcher
from mv_matcher_ros.odometry.disparity_error import DisparityError, DisparityField
from mv_matcher_ros.odometry.joint_matching import SecondView
from mv_matcher_ros.odometry.landmarks import LandmarkMaker
from mv_matcher_ros.odometry.observation import Observation, with_depth
from mv_matcher_ros.odometry.rig_check import RigCheck
from mv_matcher_ros.odometry.seeing import SeeingCameras
from mv_matcher_ros.odometry.stereo import StereoMatcher
from mv_matcher_ros.odometry.window import Window


@dataclass(frozen=True)
class RigCorrection:
    """What of the calibration of stereo pairs is wrong and corrected.

    Attributes:
        in_words: in one line; of several pairs, of which.
        disparity_error_px: the same for `stereo.disparity_error_px`.
        settled: more of the same motion would say little more of any pair.
    """

    in_words: str
    disparity_error_px: str
    settled: bool


class StereoDepth:
    """The pairs of a rig, each with its matcher, its check and the error of its disparities.

    Raises:
        SettingsError: the two cameras of a pair are at one place, or errors of another number of
            pairs are given.
    """

    def __init__(
        self,
        settings: Settings,
        rig: Rig,
        cameras: SeeingCameras,
        matcher: NearestNeighbourMatcher,
        maker: LandmarkMaker,
    ) -> None:
        self._cameras = cameras
        self._pairs = [rig.pair(number) for number in range(len(cameras))]
        self._matchers = [StereoMatcher(settings, pair, matcher) for pair in self._pairs]
        self._checks = [RigCheck(settings, pair, matcher) for pair in self._pairs]
        self._learns = settings.stereo.self_calibration
        told = settings.stereo.known_errors_px or [[] for _ in self._pairs]
        if len(told) != len(self._pairs):
            raise SettingsError(
                f'stereo.disparity_error_px has numbers for {len(told)} pairs, '
                f'the rig has {len(self._pairs)}: three for each'
            )
        self._errors = [
            DisparityError(pair, maker, number, told[number])
            for number, pair in enumerate(self._pairs)
        ]

    def reset(self) -> None:
        """Forget what was learned of the rig, and check it again."""
        for error in self._errors:
            error.reset()
        for check in self._checks:
            check.rearm()

    @property
    def fault(self) -> str:
        """How the images contradict the calibration in one line; of several pairs, of which."""
        return self._of_pairs([check.fault for check in self._checks])

    @property
    def correction(self) -> RigCorrection | None:
        """What of the calibration is corrected; None for nothing."""
        words = self._of_pairs([error.in_words for error in self._errors])
        if not words:
            return None
        parts = [part for error in self._errors for part in error.parts_px.tolist()]
        return RigCorrection(
            words,
            ','.join(f'{part:.3f}' for part in parts),
            all(error.settled for error in self._errors),
        )

    def _of_pairs(self, said: list[str]) -> str:
        if len(said) > 1:
            said = [
                f'{pair.cameras[0].name} and {pair.cameras[1].name}: {line}' if line else ''
                for pair, line in zip(self._pairs, said, strict=True)
            ]
        return '; '.join(line for line in said if line)

    @property
    def fields(self) -> tuple[DisparityField, ...]:
        """Of each pair the error of its inverse depths that is taken out."""
        return tuple(error.field for error in self._errors)

    def add_depth(
        self,
        observation: Observation,
        seconds: Sequence[SecondView],
        given: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> Observation:
        """The observation with inverse depths where the second view of its pair agrees.

        Args:
            observation: of the first cameras.
            seconds: what the second ones saw.
            given: of each pair (K, 2) matches that are known already, and (K,) confidences.
        """
        parts = []
        for number, (second, known) in enumerate(zip_longest(seconds, given)):
            part = self._cameras.part(observation, number)
            self._checks[number].offer(part, second.features, second.plane_xy)
            parts.append(
                self._matchers[number].add_depth(
                    part,
                    second.features,
                    second.plane_xy,
                    second.sigma,
                    self._errors[number].field,
                    None if known is None else known[0],
                    second.images,
                )
            )
        return with_depth(
            observation,
            torch.cat([part.inverse_depth for part in parts]),
            torch.cat([part.inverse_depth_sigma for part in parts]),
        )

    def learn(self, window: Window) -> bool:
        """What the newest keyframe says of these errors; depths of the window follow.

        Returns whether one has become sure, and all depths have changed by much.
        """
        changed = [error.update(window) for error in self._errors] if self._learns else []
        return any(changed)
