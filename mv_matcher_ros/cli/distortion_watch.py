# SPDX-License-Identifier: Apache-2.0
"""Replay begins again with the corrected camera once distortion that was left is beyond doubt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mv_matcher_ros.datatypes import Estimate, Frame, Rig, Sensor, Trajectory
    from mv_matcher_ros.odometry.distortion_check import Distortion, DistortionCheck
    from mv_matcher_ros.runner import Source


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


class Recalibrated:
    """A source whose first camera is another.

    Args:
        source: of the frames.
        found: distortion that its calibration has left.
    """

    def __init__(self, source: Source, found: Distortion) -> None:
        from mv_matcher_ros.odometry.distortion_check import corrected

        self._source, self._found = source, found
        first, *others = source.rig.cameras
        self.rig: Rig = replace(source.rig, cameras=(corrected(first, found), *others))

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

    def notes(self) -> dict[str, Any]:
        """For run.json: what was found, and the camera that was used."""
        camera = self.rig.cameras[0]
        return {**asdict(self._found), 'model': camera.model, 'distortion': camera.distortion}

    def message(self) -> str:
        """One line on what was found and what to do."""
        found, camera = self._found, self.rig.cameras[0]
        numbers = ', '.join(f'{value:.5g}' for value in camera.distortion)
        size = f'{found.stretch:+.4f} +- {found.sigma:.4f}, {found.corner_px:.0f} px in the corner'
        return (
            f'{self.name}: the images have radial distortion that the calibration does not know '
            f'({size}): begun again with {camera.model} [{numbers}]; calibrate the camera, or '
            'give it that (distortion_check.enabled=false keeps the old one)'
        )
