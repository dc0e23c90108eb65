# SPDX-License-Identifier: Apache-2.0
"""A bag as a source of frames: chosen topics, paired by stamps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mv_matcher_ros.datatypes import Sensor, View
from mv_matcher_ros.files.bag import BagReader
from mv_matcher_ros.files.bag_setup import BagSetup, stamp_ns_of
from mv_matcher_ros.files.bag_topics import IMAGE_TYPES, check_named, choose_topics
from mv_matcher_ros.files.calibration import Calibration
from mv_matcher_ros.files.image_list import RGBD_SLOP_NS, STEREO_SLOP_NS
from mv_matcher_ros.files.image_messages import depth_image, view_image
from mv_matcher_ros.files.recording import Entry, Masks, Recording
from mv_matcher_ros.files.synchronise import Synchroniser


class Bag(Recording):
    """Frames of a ROS 1 or ROS 2 bag.

    Args:
        path: as for `BagReader`.
        sensor: mono, stereo or rgbd; default the richest that the topics make up.
        calibration: used instead of the camera_info topics.
        masks: as for `Recording`.
        topics: topics by key: image (or left), right, depth, camera_info, right_camera_info,
            truth; and truth_frame, the frame whose pose the truth is where the messages do not say
            so.
        body_frame: frame in /tf_static whose pose is estimated; default the first camera's optical
            frame.
        slop_ns: largest stamp difference of images taken together; default 10 ms (stereo), 20 ms
            (depth).
        pairs: stereo pairs; the topics of those after the first are named: left_2, right_2, …

    Raises:
        SourceError: the bag cannot be read, or has no such topics.
        CalibrationError: no camera_info, K[0] = 0, no baseline, or `body_frame` is not connected
            to the camera.
    """

    def __init__(
        self,
        path: Path,
        sensor: Sensor | None = None,
        calibration: Calibration | None = None,
        masks: Masks = None,
        topics: Mapping[str, str] | None = None,
        body_frame: str | None = None,
        slop_ns: int | None = None,
        pairs: int = 1,
    ) -> None:
        self._path = path
        named = check_named(topics, str(path))
        with BagReader(path) as reader:
            choice = choose_topics(reader.topics, named, sensor, str(path), pairs)
            self._counts = {topic.name: topic.count for topic in reader.topics}
            notes = list(choice.notes)
            setup = BagSetup(reader, choice, named, notes)
            rig = setup.rig(calibration, body_frame)
            truth = setup.truth(body_frame)
        super().__init__(str(path), choice.sensor, rig, truth, masks)
        for message in notes:
            self.note(message)
        self._choice = choice
        default = STEREO_SLOP_NS if choice.sensor == 'stereo' else RGBD_SLOP_NS
        self._slop_ns = default if slop_ns is None else slop_ns

    def _entry_count(self) -> int:
        return min(self._counts[topic] for topic in (self._choice.image, *self._partners))

    @property
    def _partners(self) -> tuple[str, ...]:
        """Topics whose images are taken together with those of the first camera."""
        choice = self._choice
        return choice.cameras[1:] if choice.depth is None else (choice.depth,)

    def _entries(self) -> Iterator[Entry]:
        with BagReader(self._path) as reader:
            if not self._partners:
                for _, stamp_ns, message in self._stamped(reader, (self._choice.image,)):
                    yield Entry(stamp_ns, self._loader(message, ()), self._choice.image)
                return
            yield from self._paired_entries(reader, self._partners)

    def _paired_entries(self, reader: BagReader, partners: tuple[str, ...]) -> Iterator[Entry]:
        together: Synchroniser[Any] = Synchroniser(self._slop_ns, len(partners))
        last: dict[str, int] = {}
        kind = 'right image' if self._choice.right else 'depth image'
        kind = kind if len(partners) == 1 else 'image of every other camera'

        def entries(settled: Iterator[tuple[int, Any, tuple[Any, ...]]]) -> Iterator[Entry]:
            for stamp_ns, left, others in settled:
                yield Entry(stamp_ns, self._loader(left, others), self._choice.image)

        try:
            for topic, stamp_ns, message in self._stamped(reader, (self._choice.image, *partners)):
                if stamp_ns <= last.get(topic, stamp_ns - 1):
                    order = 'repeated' if stamp_ns == last[topic] else 'backwards'
                    self._faults[f'{order} time stamp, frame dropped'] += 1
                    continue
                last[topic] = stamp_ns
                if topic == self._choice.image:
                    yield from entries(together.push_first(stamp_ns, message))
                else:
                    number = partners.index(topic)
                    yield from entries(together.push_other(number, stamp_ns, message))
            yield from entries(together.flush())
        finally:
            if together.unpaired:
                self._faults[f'image without {kind}, frame dropped'] += together.unpaired

    def _stamped(
        self, reader: BagReader, topics: tuple[str, ...]
    ) -> Iterator[tuple[str, int, Any]]:
        """Messages with the stamp of their header; where that is zero, the time of recording."""
        for topic, recorded_ns, message in reader.messages(topics, IMAGE_TYPES):
            stamp_ns = stamp_ns_of(message)
            if stamp_ns == 0 and recorded_ns != 0:
                self._faults['stamp is zero, time of recording used'] += 1
                stamp_ns = recorded_ns
            yield topic, stamp_ns, message

    def _loader(self, message: Any, partners: tuple[Any, ...]) -> Callable[[], tuple[View, ...]]:
        choice = self._choice

        def load() -> tuple[View, ...]:
            image = view_image(message, f'{self._path}: {choice.image}')
            if choice.depth is not None:
                return (View(image, depth_image(partners[0], f'{self._path}: {choice.depth}')),)
            others = zip(partners, choice.cameras[1:], strict=True)
            return (View(image), *(View(view_image(m, f'{self._path}: {t}')) for m, t in others))

        return load
