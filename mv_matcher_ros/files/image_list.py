# SPDX-License-Identifier: Apache-2.0
"""Recordings that are lists of stamped files: one per camera, perhaps one of depth images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mv_matcher_ros.datatypes import Rig, Sensor, Trajectory, View
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.files.images import UnreadableImageError, read_depth, read_image
from mv_matcher_ros.files.recording import Entry, Masks, Recording
from mv_matcher_ros.files.stamps import pair_stamps

# Cameras without a common trigger at 30 Hz are at most half a period apart; hardware-triggered
# ones far less.
RGBD_SLOP_NS = 20_000_000
STEREO_SLOP_NS = 10_000_000


@dataclass(frozen=True)
class StampedFiles:
    """Files of one camera in the order of the recording.

    Attributes:
        stamps_ns: (N,) stamps. files: N paths, which need not exist.
    """

    stamps_ns: Sequence[int]
    files: Sequence[Path]

    def __len__(self) -> int:
        return len(self.files)


class ImageList(Recording):
    """A recording in image files.

    Args:
        name, sensor, rig, truth, masks: as for `Recording`.
        images: files of each camera of the rig: one list, two for each stereo pair. Frames come in
            the order of the first.
        depths: depth images, for rgbd.
        depth_scale: stored value of one metre.

    Raises:
        SourceError: no images, or none with a partner.
    """

    def __init__(
        self,
        name: str,
        sensor: Sensor,
        rig: Rig,
        images: Sequence[StampedFiles],
        truth: Trajectory | None = None,
        depths: StampedFiles | None = None,
        depth_scale: float | None = None,
        masks: Masks = None,
    ) -> None:
        super().__init__(name, sensor, rig, truth, masks)
        self._depth_scale = depth_scale
        if not images or not len(images[0]):
            raise SourceError(f'{name}: no images')
        first = images[0]
        self._files: list[tuple[int, tuple[Path, ...], Path | None]] = []
        if sensor == 'mono':
            self._files = [
                (stamp, (file,), None)
                for stamp, file in zip(first.stamps_ns, first.files, strict=True)
            ]
            return
        others = images[1:] if sensor == 'stereo' else [depths] if depths is not None else []
        if not others:
            raise SourceError(f'{name}: no second list of images for {sensor}')
        slop = STEREO_SLOP_NS if sensor == 'stereo' else RGBD_SLOP_NS
        partner = 'right image' if sensor == 'stereo' else 'depth image'
        partner = partner if len(others) == 1 else 'image of every other camera'
        matched = [dict(_pairs(first, other, slop)) for other in others]
        for i in sorted(set(matched[0]).intersection(*matched[1:])):
            left = first.files[i]
            right = [other.files[of[i]] for other, of in zip(others, matched, strict=True)]
            files = ((left, *right), None) if sensor == 'stereo' else ((left,), right[0])
            self._files.append((first.stamps_ns[i], *files))
        without = len(first) - len(self._files)
        if not self._files:
            raise SourceError(f'{name}: no image has a {partner} within {slop / 1e6:g} ms')
        if without:
            self.note(f'image without {partner}, frame dropped', without)

    def _entry_count(self) -> int:
        return len(self._files)

    def _entries(self) -> Iterator[Entry]:
        for stamp, images, depth in self._files:
            yield Entry(stamp, self._loader(images, depth), str(images[0]))

    def _loader(
        self, images: tuple[Path, ...], depth: Path | None
    ) -> Callable[[], tuple[View, ...]]:
        def load() -> tuple[View, ...]:
            if depth is None:
                return tuple(View(read_image(path)) for path in images)
            return (View(read_image(images[0]), read_depth(depth, self._depth_scale)),)

        return load


def _pairs(first: StampedFiles, second: StampedFiles, slop_ns: int) -> list[tuple[int, int]]:
    """Pairs by stamp, in the order of `first`; disordered stamps are paired and judged later."""
    left, left_with = _by_stamp(first)
    right, right_with = _by_stamp(second)
    pairs = []
    for i, j in pair_stamps(left, right, slop_ns):
        # Files of one repeated stamp are partners in their order.
        partners = right_with[j]
        for position, file in enumerate(left_with[i]):
            pairs.append((file, partners[min(position, len(partners) - 1)]))
    return sorted(pairs)


def _by_stamp(files: StampedFiles) -> tuple[list[int], list[list[int]]]:
    """The stamps in increasing order, each once, and the positions of the files that have it."""
    positions: dict[int, list[int]] = {}
    for position, stamp in enumerate(files.stamps_ns):
        positions.setdefault(int(stamp), []).append(position)
    stamps = sorted(positions)
    return stamps, [positions[stamp] for stamp in stamps]


def first_image_size(files: Sequence[Path], name: str) -> tuple[int, int]:
    """(width, height) of the first readable image.

    Raises:
        SourceError: none of the first few can be read.
    """
    for path in files[:20]:
        try:
            height, width = read_image(path).shape[:2]
        except UnreadableImageError:
            continue
        return width, height
    raise SourceError(f'{name}: no readable image (looked at {min(len(files), 20)})')
