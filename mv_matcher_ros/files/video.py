# SPDX-License-Identifier: Apache-2.0
"""A video file with a calibration file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from mv_matcher_ros.datatypes import Rig, Sensor, View
from mv_matcher_ros.errors import CalibrationError, SourceError
from mv_matcher_ros.files.calibration import KEYS_ARE_IN, Calibration, read_calibration
from mv_matcher_ros.files.folder import calibration_beside
from mv_matcher_ros.files.images import UnreadableImageError, as_view_image
from mv_matcher_ros.files.recording import Entry, Masks, Recording, choose_sensor

VIDEO_SUFFIXES = frozenset(
    ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.mjpeg', '.ts', '.wmv')
)
LOOKED_FOR = 'a video file with a calibration file'


class Video(Recording):
    """Frames of a video as OpenCV decodes them; stamps are times since its beginning.

    Args:
        path: video file.
        sensor: mono, or None.
        calibration: default `<video>.yaml`, else a calibration file in the same folder.
        masks: as for `Recording`.

    Raises:
        SourceError: the file cannot be opened as a video.
        CalibrationError: no calibration.
    """

    def __init__(
        self,
        path: Path,
        sensor: Sensor | None = None,
        calibration: Calibration | None = None,
        masks: Masks = None,
    ) -> None:
        name = str(path)
        why = 'a video has one camera'
        chosen = choose_sensor(sensor, {'mono': '', 'stereo': why, 'rgbd': why}, name)
        capture = _open(path)
        declared = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        rate = capture.get(cv2.CAP_PROP_FPS)
        # Some containers do not say how many frames they have: count them once, without decoding.
        self._declared = declared if declared > 0 else sum(1 for _ in iter(capture.grab, False))
        capture.release()
        if calibration is None:
            own = path.with_suffix('.yaml')
            beside = own if own.is_file() else calibration_beside(path.parent)
            if beside is None:
                raise CalibrationError(
                    f'{name}: a video without a calibration; give --calibration FILE or put '
                    f'{own.name} beside it ({KEYS_ARE_IN})'
                )
            calibration = read_calibration(beside)
        rig = Rig(calibration.rig.cameras[:1], calibration.rig.body_axes)
        super().__init__(name, chosen, rig, None, masks)
        self._path = path
        self._rate_hz = calibration.rate_hz or (rate if np.isfinite(rate) and rate > 0 else 30.0)
        # A rate given by the user (a time lapse, a slow-motion film) overrules the stamps of the
        # container.
        self._use_container_stamps = calibration.rate_hz is None

    def _entry_count(self) -> int:
        return self._declared

    def _entries(self) -> Iterator[Entry]:
        capture = _open(self._path)
        try:
            position, last_ns = 0, -1
            while capture.grab():
                stamp_ns = round(position * 1e9 / self._rate_hz)
                told_ns = round(capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
                # Backends without stamps answer zero, or the same again.
                if self._use_container_stamps and told_ns > last_ns:
                    stamp_ns = told_ns
                last_ns = stamp_ns
                yield Entry(
                    stamp_ns, lambda: _retrieve(capture, self.name), f'{self.name}#{position}'
                )
                position += 1
            if position < self._declared:
                self._faults['video ends early, frames missing'] += self._declared - position
        finally:
            capture.release()


def _open(path: Path) -> cv2.VideoCapture:
    if not path.is_file():
        raise SourceError(f'{path}: no such file')
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise SourceError(
            f'{path}: cannot be opened as a video (damaged, or its codec is missing)'
        )
    return capture


def _retrieve(capture: cv2.VideoCapture, name: str) -> tuple[View, ...]:
    ok, image = capture.retrieve()
    if not ok:
        raise UnreadableImageError(f'{name}: a frame cannot be decoded')
    return (View(as_view_image(image, name)),)
