# SPDX-License-Identifier: Apache-2.0
"""What a camera publishes and when: the moments of a clip, and the ways they are spoilt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mv_matcher_ros.cli.fault_images import Image
from mv_matcher_ros.cli.faults import Clip
from mv_matcher_ros.datatypes import Frame, View

Spoil = Callable[[list[Any]], list[Any]]


@dataclass(frozen=True)
class Shot:
    """One moment of the camera.

    Attributes:
        at_s: when it is published, seconds from the start.
        stamp_ns: of its images.
        frame: what they show; its own stamp is that of the clip's truth.
        spoil: changes the messages before they are published; None for one is not published.
        lit: whether the images show the world, so that a pose can be expected.
    """

    at_s: float
    stamp_ns: int
    frame: Frame
    spoil: Spoil | None = None
    lit: bool = True

    def showing(self, change: Callable[[Image], Image], views: Sequence[int] = ()) -> Shot:
        """The shot with the images of some views (none named: of all) changed."""
        changed = tuple(
            View(change(view.image), view.depth, view.mask)
            if not views or number in views
            else view
            for number, view in enumerate(self.frame.views)
        )
        return replace(self, frame=replace(self.frame, views=changed))


def shots_of(clip: Clip, start_ns: int) -> list[Shot]:
    """All frames of a clip at their time; stamps begin with `start_ns`."""
    first_ns = clip.frames[0].stamp_ns
    since_ns = [frame.stamp_ns - first_ns for frame in clip.frames]
    return [
        Shot(ns * 1e-9, start_ns + ns, frame)
        for ns, frame in zip(since_ns, clip.frames, strict=True)
    ]


def without(number: int) -> Spoil:
    """One image is not published."""
    return lambda messages: [None if i == number else m for i, m in enumerate(messages)]


def corrupted(seed: int) -> Spoil:
    """Bytes missing, too many, of an encoding nobody knows, of no size at all, or noise."""

    def spoil(messages: list[Any]) -> list[Any]:
        rng = np.random.default_rng(seed)
        for message in messages:
            _CORRUPTIONS[int(rng.integers(len(_CORRUPTIONS)))](message, rng)
        return messages

    return spoil


def _cut(message: Any, rng: np.random.Generator) -> None:
    message.data = message.data[: int(rng.integers(len(message.data)))]


def _unknown_encoding(message: Any, rng: np.random.Generator) -> None:
    message.encoding = 'mono9'


def _short_step(message: Any, rng: np.random.Generator) -> None:
    message.step = 1


def _huge(message: Any, rng: np.random.Generator) -> None:
    message.height = message.width = 2**31 - 1


def _empty(message: Any, rng: np.random.Generator) -> None:
    message.height = message.width = message.step = 0
    message.data = message.data[:0]


def _static(message: Any, rng: np.random.Generator) -> None:
    size = len(message.data)
    message.data = type(message.data)('B', rng.integers(0, 255, size, np.uint8).tobytes())


_CORRUPTIONS = (_cut, _unknown_encoding, _short_step, _huge, _empty, _static)
