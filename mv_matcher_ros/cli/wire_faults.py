# SPDX-License-Identifier: Apache-2.0
"""Faults on the wire: what a camera, a network, a clock or the kernel does to a running node.

Each one happens from `BEGIN_S` on, in the middle of a clip, to a node in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mv_matcher_ros.cli import fault_images, wire_shots
from mv_matcher_ros.cli.wire_shots import Shot

BEGIN_S = 5.0
# A node that waits for parallax, frame by frame, has by then used all the memory it needs.
WARM_S = 20.0
_LONG_S = 2.0
_SILENT_S = 3.0

Change = Callable[[list[Shot]], list[Shot]]
# What happens beside the images: to the node, to the camera's process, or who else is there.
Event = Literal['', 'kill node', 'kill mapping', 'camera restarts', 'nobody reads']


@dataclass(frozen=True)
class WireFault:
    """One fault.

    Attributes:
        name: as the table calls it.
        change: what becomes of the shots of a clip.
        end_s: when all is well again, as published.
        must_say: while it lasts, the node must not say TRACKING.
        scene: which clip it happens in.
        event: what else happens, at `BEGIN_S`.
        sensors: to which it can happen.
        begins: whether a map can; without parallax one camera has nothing to say.
    """

    name: str
    change: Change
    end_s: float
    must_say: bool = False
    scene: Literal['room', 'still', 'turn'] = 'room'
    event: Event = ''
    sensors: Sequence[str] = ('mono', 'stereo', 'rgbd')
    begins: bool = True


def _unchanged(shots: list[Shot]) -> list[Shot]:
    return shots


def _during(seconds: float, of_each: Callable[[int, Shot], Shot | None]) -> Change:
    """A change of each shot (its number given) for some seconds; None leaves it out."""

    def change(shots: list[Shot]) -> list[Shot]:
        changed = (
            of_each(number, shot) if BEGIN_S <= shot.at_s < BEGIN_S + seconds else shot
            for number, shot in enumerate(shots)
        )
        return [shot for shot in changed if shot is not None]

    return change


def _dropped(count: int) -> WireFault:
    def change(shots: list[Shot]) -> list[Shot]:
        first = _first(shots)
        return shots[:first] + shots[first + count :]

    name = f'{count} frame{"s" * (count > 1)} dropped in a row'
    return WireFault(name, change, BEGIN_S)


def _first(shots: list[Shot]) -> int:
    return next(number for number, shot in enumerate(shots) if shot.at_s >= BEGIN_S)


def _some_dropped(shots: list[Shot]) -> list[Shot]:
    kept = np.random.default_rng(3).random(len(shots)) > 0.3
    return [s for s, keep in zip(shots, kept, strict=True) if keep or s.at_s < BEGIN_S]


def _unlit(look: Callable[[fault_images.Image], fault_images.Image]) -> Change:
    return _during(_LONG_S, lambda _, shot: replace(shot.showing(look), lit=False))


def _one_unlit(view: int) -> Change:
    """Poses come from the first camera; what the second one adds is depth."""
    return _during(
        _LONG_S, lambda _, s: replace(s.showing(fault_images.black, [view]), lit=view != 0)
    )


def _flicker(number: int, shot: Shot) -> Shot:
    return shot.showing(fault_images.brighter(2.2 if number // 5 % 2 else 0.4))


def _crowded(number: int, shot: Shot) -> Shot:
    for view, hide in enumerate(fault_images.crowd(number, 0.4, 40)[: len(shot.frame.views)]):
        shot = shot.showing(hide, [view])
    return shot


def _reordered(shots: list[Shot]) -> list[Shot]:
    """Every second frame overtakes the one before it."""
    begin, end = _first(shots), _first(shots) + 40
    order = list(range(len(shots)))
    for number in range(begin, min(end, len(shots) - 1), 2):
        order[number], order[number + 1] = number + 1, number
    times = [shot.at_s for shot in shots]
    return [replace(shots[o], at_s=t) for o, t in zip(order, times, strict=True)]


def _late(number: int, shot: Shot) -> Shot:
    """Every fifth frame is under way for 0.3 s."""
    return replace(shot, at_s=shot.at_s + 0.3) if number % 5 == 0 else shot


def _stamped(shift_s: float) -> Change:
    """The clock is set; by no number of frames, so that no stamp comes twice."""
    shift_ns = round(shift_s * 1e9)

    def change(shots: list[Shot]) -> list[Shot]:
        first = _first(shots)
        moved = [replace(s, stamp_ns=s.stamp_ns + shift_ns) for s in shots[first:]]
        return shots[:first] + moved

    return change


def _repeated(shots: list[Shot]) -> list[Shot]:
    """For a while, the stamp of each frame is that of the one before."""
    first = _first(shots)
    stamps = {n: shots[n - n % 2].stamp_ns for n in range(first, first + 40)}
    return [replace(s, stamp_ns=stamps.get(n, s.stamp_ns)) for n, s in enumerate(shots)]


def _burst(shots: list[Shot]) -> list[Shot]:
    """The network stalls, then delivers what has piled up at 100 Hz."""
    moved: list[Shot] = []
    for shot in shots:
        at_s = BEGIN_S + _LONG_S if BEGIN_S <= shot.at_s < BEGIN_S + _LONG_S else shot.at_s
        moved.append(replace(shot, at_s=max(at_s, moved[-1].at_s + 0.01) if moved else at_s))
    return moved


def _small(number: int, shot: Shot) -> Shot:
    return replace(shot.showing(fault_images.half_size), lit=False)


def _corrupt(number: int, shot: Shot) -> Shot:
    return replace(shot, spoil=wire_shots.corrupted(number), lit=False)


def _one_silent(number: int, shot: Shot) -> Shot:
    return replace(shot, spoil=wire_shots.without(1), lit=False)


_LONG = BEGIN_S + _LONG_S
_BACK = BEGIN_S + _SILENT_S
WIRE_FAULTS: tuple[WireFault, ...] = (
    WireFault('nothing', _unchanged, BEGIN_S),
    _dropped(1),
    _dropped(3),
    _dropped(10),
    WireFault('30 % of the frames dropped', _some_dropped, BEGIN_S),
    WireFault('black for 2 s', _unlit(fault_images.black), _LONG, must_say=True),
    WireFault(
        'motion blur for 2 s',
        _during(_LONG_S, lambda _, s: s.showing(fault_images.blurred)),
        _LONG,
    ),
    WireFault('exposure jumps for 2 s', _during(_LONG_S, _flicker), _LONG),
    WireFault('left lens covered for 2 s', _one_unlit(0), _LONG, True, sensors=('stereo',)),
    WireFault('right lens covered for 2 s', _one_unlit(1), _LONG, sensors=('stereo',)),
    WireFault(
        'one camera of two silent for 2 s',
        _during(_LONG_S, _one_silent),
        _LONG,
        True,
        sensors=('stereo', 'rgbd'),
    ),
    WireFault('something hides 40 % for 2 s', _during(_LONG_S, _crowded), _LONG),
    WireFault('white wall for 2 s', _unlit(fault_images.wall), _LONG, must_say=True),
    WireFault('turn on the spot', _unchanged, BEGIN_S, scene='turn', sensors=('stereo', 'rgbd')),
    WireFault(
        'standing still for 60 s', _unchanged, BEGIN_S, scene='still', sensors=('stereo', 'rgbd')
    ),
    WireFault(
        'standing still from the start',
        _unchanged,
        BEGIN_S,
        scene='still',
        begins=False,
        sensors=('mono',),
    ),
    WireFault('frames overtake each other', _reordered, _LONG),
    WireFault('every fifth frame 0.3 s late', _during(_LONG_S, _late), _LONG),
    WireFault('stamps repeat', _repeated, _LONG),
    WireFault('clock set back by 10 s', _stamped(-10.013), BEGIN_S),
    WireFault('clock set back by 0.3 s', _stamped(-0.313), BEGIN_S + 0.35),
    WireFault('clock set ahead by 1 h', _stamped(3600.0), BEGIN_S),
    WireFault('half the resolution for 2 s', _during(_LONG_S, _small), _LONG, must_say=True),
    WireFault('corrupted images for 2 s', _during(_LONG_S, _corrupt), _LONG, must_say=True),
    WireFault('stalled for 2 s, then 100 Hz', _burst, _LONG),
    WireFault('a subscriber that never reads', _unchanged, BEGIN_S, event='nobody reads'),
    WireFault(
        'camera driver starts again',
        _during(_SILENT_S, lambda _, shot: None),
        _BACK,
        event='camera restarts',
    ),
    WireFault('kill -9 of the odometry', _unchanged, BEGIN_S, event='kill node'),
    WireFault('kill -9 of the mapping', _unchanged, BEGIN_S, event='kill mapping'),
)
