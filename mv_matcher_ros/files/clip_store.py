# SPDX-License-Identifier: Apache-2.0
"""Frames kept on disk while a robot runs, as a folder that `open_source` reads.

No more than so many megabytes: what is oldest goes first. Nobody waits for the disk: one thread
writes, and what comes faster than that is left out.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from pathlib import Path

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Frame, Rig, Sensor
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.files.folder import CALIBRATION_NAMES
from mv_matcher_ros.files.images import image_files

# Frames that may wait for the disk.
_WAITING = 4
# A frame that differs from the last one kept by less than this, in mean grey values of a small
# copy, shows a camera that stands still.
_SAME = 1.5
_SMALL = (80, 60)
_DIGITS = 19  # of the stamp that is a file's name: any time in nanoseconds


class ClipStore:
    """Keeps frames of a rig.

    Args:
        folder: made if need be; images of an earlier run in it count, and go first.
        rig, sensor: what the frames are of; of RGB-D the images are kept, not the depth.
        most_bytes: on disk, at most.
        rate_hz: frames a second, at most.

    Attributes:
        frames: on disk; size_bytes: of them; left_out: frames that the disk was too slow for.
        problem: why nothing is written any more; empty while it is.

    Raises:
        SourceError: the folder cannot be written, or holds frames of other cameras.
    """

    def __init__(
        self, folder: Path, rig: Rig, sensor: Sensor, most_bytes: int, rate_hz: float
    ) -> None:
        self._cameras = rig.cameras[: 2 if sensor == 'stereo' else 1]
        self._names = ('left', 'right')[: len(self._cameras)]
        self._folder, self._most = folder, most_bytes
        self._period_ns = round(1e9 / rate_hz)
        self._last_ns = -self._period_ns
        self._last: NDArray[np.uint8] | None = None
        self.left_out, self.problem = 0, ''
        try:
            for name in self._names:
                (folder / name).mkdir(parents=True, exist_ok=True)
            self._remember(Rig(self._cameras, rig.body_axes))
        except OSError as error:
            raise SourceError(f'{folder}: cannot be written: {error.strerror}') from None
        self._kept: deque[tuple[list[Path], int]] = deque()
        for first in image_files(folder / self._names[0]):
            files = [folder / name / first.name for name in self._names]
            self._kept.append((files, sum(f.stat().st_size for f in files if f.exists())))
        self.size_bytes = sum(size for _, size in self._kept)
        self._queue: queue.Queue[Frame | None] = queue.Queue(_WAITING)
        self._writer = threading.Thread(target=self._write, name='clips', daemon=True)
        self._writer.start()

    @property
    def frames(self) -> int:
        """On disk."""
        return len(self._kept)

    def offer(self, frame: Frame) -> None:
        """Keep a frame, if it is time for one and it shows something new."""
        if self.problem or 0 <= frame.stamp_ns - self._last_ns < self._period_ns:
            return
        small = cv2.resize(frame.views[0].image, _SMALL, interpolation=cv2.INTER_AREA)
        if self._last is not None and float(cv2.absdiff(small, self._last).mean()) < _SAME:
            return
        try:
            self._queue.put_nowait(frame)
        except queue.Full:
            self.left_out += 1
            return
        self._last_ns, self._last = frame.stamp_ns, np.asarray(small, np.uint8)

    def close(self) -> None:
        """Write what waits, then end."""
        if self._writer.is_alive():
            self._queue.put(None)
            self._writer.join(timeout=30.0)

    def _remember(self, rig: Rig) -> None:
        """The calibration beside the images; another one is refused."""
        content = {
            'body_axes': rig.body_axes,
            'cameras': {
                name: {
                    'width': camera.width,
                    'height': camera.height,
                    'intrinsics': [float(v) for v in camera.intrinsics],
                    'model': camera.model,
                    'distortion': [float(v) for v in camera.distortion],
                    'body_from_camera': [float(v) for v in camera.body_from_camera.flatten()],
                }
                for name, camera in zip(self._names, rig.cameras, strict=True)
            },
        }
        path = self._folder / CALIBRATION_NAMES[0]
        text = yaml.safe_dump(content, sort_keys=False)
        if path.exists() and path.read_text(encoding='utf-8') != text:
            raise SourceError(
                f'{self._folder}: holds frames of cameras with another calibration; name another '
                'folder, or empty this one'
            )
        path.write_text(text, encoding='utf-8')

    # ------------------------------------------------- in the writer's thread

    def _write(self) -> None:
        while (frame := self._queue.get()) is not None:
            try:
                self._keep(frame)
            except OSError as error:
                self.problem = f'{self._folder}: cannot be written: {error.strerror}'
                return

    def _keep(self, frame: Frame) -> None:
        files = []
        size = 0
        for name, view in zip(self._names, frame.views, strict=False):
            image = view.image
            grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
            _, data = cv2.imencode('.png', grey, [cv2.IMWRITE_PNG_COMPRESSION, 1])
            path = self._folder / name / f'{frame.stamp_ns:0{_DIGITS}d}.png'
            aside = path.with_suffix('.part')
            aside.write_bytes(data.tobytes())
            aside.replace(path)
            files.append(path)
            size += len(data)
        self._kept.append((files, size))
        self.size_bytes += size
        while self.size_bytes > self._most and len(self._kept) > 1:
            gone, freed = self._kept.popleft()
            for path in gone:
                path.unlink(missing_ok=True)
            self.size_bytes -= freed
