# SPDX-License-Identifier: Apache-2.0
"""Faults in the images and the rig: what the engine has to notice, name, and survive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.cli import fault_images
from mv_matcher_ros.cli.faults import Clip, Drive, Fault, Outcome, drive, names
from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Camera, Frame, Rig, Status, View

# A faultless clip stays well below this share of its path; beyond it the fault has left its mark.
MAX_ERROR_OF_PATH = 0.05
NONE = range(0)


def faulty_part(clip: Clip) -> range:
    """Frames a passing fault hits: a quarter of the clip, from its middle on."""
    return range(len(clip) // 2, len(clip) // 2 + max(len(clip) // 4, 1))


def _images(frame: Frame, change: Callable[[fault_images.Image], fault_images.Image]) -> Frame:
    views = tuple(View(change(v.image), v.depth, v.mask) for v in frame.views)
    return replace(frame, views=views)


def _passing(
    name: str, change: Callable[[fault_images.Image], fault_images.Image], must_say: bool
) -> Fault:
    """Images are spoilt for a while: odom must not jump, and tracking goes on afterwards."""

    def apply(clip: Clip, place: Path, settings: Settings) -> Outcome:
        hit = faulty_part(clip)
        faulty = clip.with_frames(lambda i, f: _images(f, change) if i in hit else f)
        return _survived(drive(faulty, settings), clip, hit if must_say else NONE)

    return Fault(
        name, 'said by status, no jump, goes on' if must_say else 'no jump, goes on', apply
    )


def _gap(clip: Clip, place: Path, settings: Settings) -> Outcome:
    hit = faulty_part(clip)
    return _survived(drive(clip.with_frames(lambda i, f: None if i in hit else f), settings), clip)


def _frozen(clip: Clip, place: Path, settings: Settings) -> Outcome:
    hit = faulty_part(clip)
    still = clip.frames[hit.start]
    frozen = clip.with_frames(lambda i, f: replace(f, views=still.views) if i in hit else f)
    return _survived(drive(frozen, settings), clip, hidden=hit)


def _survived(driven: Drive, clip: Clip, must_say: range = NONE, hidden: range = NONE) -> Outcome:
    """Still tracking at the end, without a jump; in `must_say` the status admits the fault.

    Frames in `hidden` show the engine another time than their truth has: their error is not its.
    """
    if driven.error:
        return Outcome(f'error: {driven.error}', False)
    last = driven.estimates[-1].status
    share = driven.error_of_path('sim3' if clip.sensor == 'mono' else 'se3', hidden)
    said = sum(driven.estimates[i].status is not Status.TRACKING for i in must_say)
    kinds = ', '.join(f'{count} {status.value}' for status, count in driven.statuses.items())
    words = 'no truth' if share is None else f'ATE {100 * share:.1f} % of path'
    observed = f'{kinds}; largest step {driven.largest_step_m:.3f} m; {words}'
    fine = last is Status.TRACKING and (share is None or share < MAX_ERROR_OF_PATH)
    bounded = clip.sensor == 'mono' or driven.largest_step_m <= _allowed_step_m(clip)
    return Outcome(observed, fine and bounded and (not must_say or said >= len(must_say) // 2))


def _allowed_step_m(clip: Clip) -> float:
    """What the body can have moved from before the fault to after it, and a little."""
    if clip.truth is None:
        return float('inf')
    positions = clip.truth.world_from_body[:, :3, 3]
    fastest = float(np.linalg.norm(np.diff(positions, axis=0), axis=1).max())
    return 1.5 * fastest * (len(faulty_part(clip)) + 1) + 0.02


def _rig_fault(name: str, change: Callable[[Clip], Clip], words: Sequence[str]) -> Fault:
    """The cameras are not what the calibration says: the status admits it, a message names it."""

    def apply(clip: Clip, place: Path, settings: Settings) -> Outcome:
        if clip.sensor != 'stereo':
            return Outcome('left out: only for stereo', True)
        driven = drive(change(clip), settings)
        if driven.error:
            return Outcome(f'error: {driven.error}', names(driven.error, words))
        admitted = Counter(
            e.message for e in driven.estimates if e.status is not Status.TRACKING and e.message
        )
        named = [message for message in admitted if names(message, words)]
        kinds = ', '.join(f'{count} {status.value}' for status, count in driven.statuses.items())
        said = named or [message for message, _ in admitted.most_common(1)] or ['nothing said']
        return Outcome(f'{kinds}; {said[0]}', bool(named))

    return Fault(name, 'not TRACKING, and a message that names it', apply)


def _swapped(clip: Clip) -> Clip:
    return clip.with_frames(lambda i, f: replace(f, views=f.views[::-1]))


def _unrectified(clip: Clip) -> Clip:
    """The right camera is turned by 3 degrees about its axis; the calibration does not know."""
    camera = clip.rig.cameras[1]
    turn = cv2.getRotationMatrix2D(camera.intrinsics[2:], 3.0, 1.0)

    def change(i: int, frame: Frame) -> Frame:
        left, right = frame.views
        turned = cv2.warpAffine(right.image, turn, (camera.width, camera.height))
        return replace(frame, views=(left, replace(right, image=turned.astype(np.uint8))))

    return clip.with_frames(change)


def _sideways_baseline(clip: Clip) -> Clip:
    """A calibration with the right camera below the left one (a wrong length cannot be seen)."""
    left, right = clip.rig.cameras
    left_from_right = np.eye(4)
    left_from_right[1, 3] = clip.rig.baseline_m
    moved = _mounted(right, left.body_from_camera @ left_from_right)
    return replace(clip, rig=Rig((left, moved), clip.rig.body_axes))


def _mounted(camera: Camera, pose: NDArray[np.float64]) -> Camera:
    return replace(camera, body_from_camera=pose)


def _some_missing(clip: Clip, place: Path, settings: Settings) -> Outcome:
    kept = np.random.default_rng(3).random(len(clip)) > 0.3
    kept[[0, -1]] = True
    thinned = clip.with_frames(lambda i, f: f if kept[i] else None)
    return _survived(drive(thinned, settings), clip)


def _flickering(clip: Clip, place: Path, settings: Settings) -> Outcome:
    """The exposure jumps up and down every other frame."""
    hit = faulty_part(clip)
    looks = [fault_images.brighter(0.4), fault_images.brighter(2.2)]
    faulty = clip.with_frames(lambda i, f: _images(f, looks[i // 2 % 2]) if i in hit else f)
    return _survived(drive(faulty, settings), clip)


def _crowded(clip: Clip, place: Path, settings: Settings) -> Outcome:
    """Something large walks by and hides 40 % of the image."""
    hit = faulty_part(clip)

    def change(number: int, frame: Frame) -> Frame:
        hide = fault_images.crowd(number, 0.4, 20)
        views = tuple(
            replace(view, image=hide[place](view.image)) for place, view in enumerate(frame.views)
        )
        return replace(frame, views=views)

    faulty = clip.with_frames(lambda i, f: change(i, f) if i in hit else f)
    return _survived(drive(faulty, settings), clip)


def _right_covered(clip: Clip, place: Path, settings: Settings) -> Outcome:
    if clip.sensor != 'stereo':
        return Outcome('left out: only for stereo', True)
    hit = faulty_part(clip)

    def change(frame: Frame) -> Frame:
        left, right = frame.views[:2]
        dark = replace(right, image=fault_images.black(right.image))
        return replace(frame, views=(left, dark, *frame.views[2:]))

    faulty = clip.with_frames(lambda i, f: change(f) if i in hit else f)
    return _survived(drive(faulty, settings), clip)


FRAME_FAULTS: tuple[Fault, ...] = (
    _rig_fault('left and right swapped', _swapped, ('images are swapped',)),
    # A rig that is calibrated but not rectified has no rows that could disagree.
    _rig_fault(
        'images not rectified as said',
        _unrectified,
        ('not rectified', 'pose of the second camera contradicts'),
    ),
    _rig_fault('wrong baseline (direction)', _sideways_baseline, ("baseline's direction",)),
    _passing('black images for a while', fault_images.black, True),
    _passing('covered lens', fault_images.covered, True),
    _passing('white wall', fault_images.wall, True),
    _passing('motion blur', fault_images.blurred, False),
    _passing('strong noise', fault_images.noisy, False),
    _passing('twice as bright', fault_images.brighter(2.0), False),
    Fault('exposure jumps', 'no jump, goes on', _flickering),
    Fault('something hides 40 %', 'no jump, goes on', _crowded),
    Fault('right lens covered', 'no jump, goes on', _right_covered),
    Fault('frames missing', 'no jump, goes on', _gap),
    Fault('30 % of the frames missing', 'no jump, goes on', _some_missing),
    Fault('image frozen', 'no jump, goes on', _frozen),
)
