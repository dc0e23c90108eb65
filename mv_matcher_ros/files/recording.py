# SPDX-License-Identifier: Apache-2.0
"""What every recording does alike: order of stamps, sizes, masks, slices, counting of faults.

A kind of recording says which frames it has and how one is decoded; `Recording` does the rest, so
that a repeated stamp or an unreadable image is treated the same in a bag, a folder and a video.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Camera, Frame, Rig, Sensor, Trajectory, View
from mv_matcher_ros.errors import CalibrationError, SourceError
from mv_matcher_ros.files.images import UnreadableImageError, read_mask

Masks = Path | str | Sequence[Path | str | None] | None
R = TypeVar('R', bound='Recording')


@dataclass(frozen=True)
class Entry:
    """One frame that has not been decoded yet.

    Attributes:
        stamp_ns: its stamp.
        load: decodes the views; raises UnreadableImageError for a frame that can be left out.
        what: file or topic, for messages.
    """

    stamp_ns: int
    load: Callable[[], tuple[View, ...]]
    what: str


class Recording(ABC):
    """Base of all sources in this folder; satisfies `runner.Source`.

    Args:
        name: how results call it.
        sensor: mono, stereo or rgbd.
        rig: the cameras, in the order of the views.
        truth: known trajectory of the body, if any.
        masks: image(s) that are black where no features may lie, one per camera.

    Raises:
        CalibrationError: a mask is unreadable or has another size than its camera.
    """

    def __init__(
        self,
        name: str,
        sensor: Sensor,
        rig: Rig,
        truth: Trajectory | None = None,
        masks: Masks = None,
    ) -> None:
        self.name = name
        self.sensor = sensor
        self.rig = rig
        self.truth = truth
        self._masks = _read_masks(masks, rig.cameras)
        self._slice = slice(0, None, 1)
        self._opening_faults: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()

    @abstractmethod
    def _entries(self) -> Iterator[Entry]:
        """Every frame in the order of the recording, cheaply."""

    @abstractmethod
    def _entry_count(self) -> int:
        """How many `_entries` there will be at most."""

    @property
    def faults(self) -> Mapping[str, int]:
        """What was skipped or repaired, by message: on opening, and in the latest iteration."""
        return dict(self._opening_faults + self._faults)

    def note(self, message: str, count: int = 1) -> None:
        """Count a fault that was found on opening, and does not go away by iterating again."""
        self._opening_faults[message] += count

    def __len__(self) -> int:
        """Frames of the slice, before any is left out for a fault."""
        return len(range(*self._slice.indices(self._entry_count())))

    def sliced(self: R, start: int = 0, end: int | None = None, stride: int = 1) -> R:
        """The same recording from frame `start` to before `end`, every `stride`-th frame.

        Args:
            start, end: positions in the recording; negative ones count from its end.
            stride: at least 1.

        Raises:
            SourceError: nothing is left.
        """
        if stride < 1:
            raise SourceError(f'{self.name}: stride {stride} is not at least 1')
        part = copy.copy(self)
        part._faults = Counter()
        count = self._entry_count()
        first, last, _ = slice(start, end, stride).indices(count)
        # `count` may be an estimate (a video): without an end, go on as long as there are frames.
        part._slice = slice(first, None if end is None else last, stride)
        if not len(part):
            raise SourceError(f'{self.name}: {_why_empty(start, end, count)}')
        return part

    def __iter__(self) -> Iterator[Frame]:
        """Frames with increasing stamps; `faults` counts what was left out."""
        self._faults = Counter()
        last_ns: int | None = None
        for index, entry in self._sliced_entries():
            if last_ns is not None and entry.stamp_ns <= last_ns:
                kind = 'repeated' if entry.stamp_ns == last_ns else 'backwards'
                self._faults[f'{kind} time stamp, frame dropped'] += 1
                continue
            try:
                views = entry.load()
            except UnreadableImageError:
                self._faults['unreadable image, frame skipped'] += 1
                continue
            views = tuple(self._checked(i, view, entry.what) for i, view in enumerate(views))
            last_ns = entry.stamp_ns
            yield Frame(entry.stamp_ns, views, index)
        if last_ns is None:
            raise SourceError(f'{self.name}: no readable frame ({_as_text(self.faults)})')

    def _sliced_entries(self) -> Iterator[tuple[int, Entry]]:
        start, end, stride = self._slice.start, self._slice.stop, self._slice.step
        with closing(self._entries()) as entries:  # type: ignore[type-var]
            for index, entry in enumerate(entries):
                if end is not None and index >= end:
                    return
                if index >= start and (index - start) % stride == 0:
                    yield index, entry

    def _checked(self, position: int, view: View, what: str) -> View:
        """The view with its mask, after comparing its size with the calibration's."""
        camera = self.rig.cameras[position]
        height, width = view.image.shape[:2]
        if (width, height) != (camera.width, camera.height):
            raise CalibrationError(
                f'{what}: image of {camera.name} is {width}x{height}, '
                f'but its calibration is for {camera.width}x{camera.height}'
            )
        if view.depth is not None and view.depth.shape != (height, width):
            raise CalibrationError(
                f'{what}: depth is {view.depth.shape[1]}x{view.depth.shape[0]}, but the image is '
                f'{width}x{height}; the depth must be registered to the image'
            )
        mask = self._masks[position]
        return view if mask is None else replace(view, mask=mask)


def choose_sensor(asked: Sensor | None, available: Mapping[Sensor, str], name: str) -> Sensor:
    """The sensor asked for, or the richest there is: depth before stereo before mono.

    Args:
        asked: what the user named, or None.
        available: sensors of the recording; a value that is not empty says why one is missing.
        name: of the recording, for messages.

    Raises:
        SourceError: the recording has no such sensor; says why.
    """
    order: tuple[Sensor, ...] = ('rgbd', 'stereo', 'mono')
    there = [sensor for sensor in order if available.get(sensor, 'not recorded') == '']
    if asked is None:
        if there:
            return there[0]
        raise SourceError(f'{name}: {available.get("mono", "no images")}')
    if asked not in order:
        raise SourceError(f'{name}: sensor "{asked}" is unknown; known: mono, stereo, rgbd')
    if asked not in there:
        why = available.get(asked, 'not recorded')
        raise SourceError(
            f'{name}: no {asked} ({why}); available: {", ".join(there) or "nothing"}'
        )
    return asked


def _read_masks(masks: Masks, cameras: Sequence[Camera]) -> tuple[NDArray[np.bool_] | None, ...]:
    if masks is None:
        return (None,) * len(cameras)
    paths = [masks] if isinstance(masks, str | Path) else list(masks)
    if len(paths) > len(cameras):
        raise CalibrationError(f'{len(paths)} masks given for {len(cameras)} camera(s)')
    paths += [None] * (len(cameras) - len(paths))
    return tuple(
        None if path is None else read_mask(path, (camera.width, camera.height))
        for path, camera in zip(paths, cameras, strict=True)
    )


def _why_empty(start: int, end: int | None, count: int) -> str:
    if end is not None and start >= 0 and 0 <= end <= start:
        return f'the end ({end}) is not after the start ({start}); the end is the frame to stop at'
    if end is None or end >= count:
        return f'no frames from {start} on, there are {count} (the first is 0)'
    return f'no frames from {start} to before {end}, there are {count}'


def _as_text(faults: Mapping[str, int]) -> str:
    return ', '.join(f'{message}: {count}' for message, count in faults.items()) or 'empty'
