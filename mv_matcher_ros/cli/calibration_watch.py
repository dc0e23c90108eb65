# SPDX-License-Identifier: Apache-2.0
"""Replay begins again once it is beyond doubt that the cameras are not as they were said to be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from mv_matcher_ros.cli.console import progress, warn

if TYPE_CHECKING:
    from mv_matcher_ros.config import Settings
    from mv_matcher_ros.datatypes import Estimate, Frame, Rig, Sensor, Trajectory
    from mv_matcher_ros.odometry.distortion_check import Distortion, DistortionCheck
    from mv_matcher_ros.odometry.engine import OdometryEngine
    from mv_matcher_ros.odometry.stereo_depth import RigCorrection
    from mv_matcher_ros.runner import Source

# Before weights are adapted, at most so many groups of keyframes are asked.
MOST_GROUPS = 12


class DistortedError(Exception):
    """The camera has distortion that its calibration does not know; nothing that went wrong."""

    def __init__(self, found: Distortion) -> None:
        super().__init__(str(found))
        self.found = found


class DistortionWatch:
    """A sink that ends a run when the check is sure.

    Args:
        check: gets the keyframes.
    """

    def __init__(self, check: DistortionCheck) -> None:
        self._check = check

    def write(self, frame: Frame, estimate: Estimate) -> None:
        """Look.

        Raises:
            DistortedError: what was found.
        """
        found = self._check.sure
        if found is not None:
            raise DistortedError(found)

    def close(self) -> None:
        """Nothing to close."""


class MisalignedError(Exception):
    """A stereo pair is not as it was calibrated; nothing that went wrong."""

    def __init__(self, found: RigCorrection) -> None:
        super().__init__(found.in_words)
        self.found = found


class PairWatch:
    """A sink that ends a run when enough is known of what a stereo calibration is off by.

    Args:
        engine: learns it.
    """

    def __init__(self, engine: OdometryEngine) -> None:
        self._engine = engine

    def write(self, frame: Frame, estimate: Estimate) -> None:
        """Look.

        Raises:
            MisalignedError: what was found.
        """
        found = self._engine.rig_correction
        if found is not None and found.settled:
            raise MisalignedError(found)

    def close(self) -> None:
        """Nothing to close."""


class WithRig:
    """A source whose calibration is another.

    Args:
        source: of the frames.
        rig: as many cameras, of the same image sizes.
    """

    def __init__(self, source: Source, rig: Rig) -> None:
        self._source = source
        self.rig = rig

    @property
    def name(self) -> str:
        """Of the recording."""
        return self._source.name

    @property
    def sensor(self) -> Sensor:
        """Of the recording."""
        return self._source.sensor

    @property
    def truth(self) -> Trajectory | None:
        """Of the recording."""
        return self._source.truth

    @property
    def faults(self) -> Mapping[str, int]:
        """Of the recording."""
        return self._source.faults

    def __len__(self) -> int:
        return len(self._source)

    def __iter__(self) -> Iterator[Frame]:
        return iter(self._source)


def with_corrected(source: Source, found: Distortion) -> WithRig:
    """The source with what was found in its first camera."""
    from mv_matcher_ros.odometry.distortion_check import corrected

    first, *others = source.rig.cameras
    return WithRig(source, replace(source.rig, cameras=(corrected(first, found), *others)))


def looked_at(source: Source, settings: Settings) -> Source:
    """The source, with its camera corrected where the odometry is sure that it must be; said.

    Odometry runs over the beginning of the recording, until it is sure or has asked often enough.
    Stereo pairs keep their calibration, as in `run`.
    """
    from mv_matcher_ros.errors import MvMatcherError
    from mv_matcher_ros.odometry.distortion_check import DistortionCheck, advice
    from mv_matcher_ros.odometry.engine import OdometryEngine

    if not settings.distortion_check.enabled or source.sensor == 'stereo':
        return source
    camera = source.rig.cameras[0]
    check = DistortionCheck(settings.distortion_check, camera)
    engine = OdometryEngine(settings.model_copy(update={'sensor': source.sensor}), source.rig)
    engine.report_keyframes(check.take)
    with progress('looking at the calibration', len(source)) as advance:
        try:
            for frame in source:
                engine.process(frame)
                advance()
                if check.sure is not None or check.groups >= MOST_GROUPS:
                    break
        except MvMatcherError as error:  # who reads on will meet it again
            warn(f'{source.name}: {error}')
    found = check.sure
    if found is None:
        return source
    warn(
        f'{source.name}: {advice(found, camera)}; it is used from here on '
        '(distortion_check.enabled=false keeps the old one)'
    )
    return with_corrected(source, found)


def with_known_error(settings: Settings, found: RigCorrection) -> Settings:
    """The settings for the same recording, whose pairs are off by what was found.

    Nothing more is learned: the same images would confirm what they have said.
    """
    known = {'disparity_error_px': found.disparity_error_px, 'self_calibration': False}
    return settings.model_copy(update={'stereo': settings.stereo.model_copy(update=known)})


def notes(found: Distortion, rig: Rig) -> dict[str, Any]:
    """For run.json: what was found, and the camera that was used."""
    camera = rig.cameras[0]
    return {**asdict(found), 'model': camera.model, 'distortion': camera.distortion}
