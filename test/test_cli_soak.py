# SPDX-License-Identifier: Apache-2.0
"""What a soak shows, and that it catches poses that are false."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from mv_matcher_ros.cli.faults import Clip
from mv_matcher_ros.cli.soak import forth_and_back, motion_errors
from mv_matcher_ros.datatypes import Camera, Frame, Rig, View
from mv_matcher_ros.ros.wire import Pose

SPEED_MPS, PERIOD_S = 0.5, 0.1


def test_a_clip_is_shown_forth_and_back_with_stamps_that_go_on() -> None:
    view = View(np.zeros((4, 4), np.uint8))
    stamps = (10, 13, 14)  # not at one rate
    frames = tuple(Frame(s * 10**9, (view,), i) for i, s in enumerate(stamps))
    clip = Clip('three', 'mono', Rig((Camera(4, 4, (4.0, 4.0, 1.5, 1.5)),)), frames, None)
    shown = list(islice(forth_and_back(clip, 100.0), 8))
    assert [f.index for _, f in shown] == [0, 1, 2, 1, 0, 1, 2, 1]
    assert [s // 10**9 for s, _ in shown] == [10, 13, 14, 15, 18, 21, 22, 23]
    assert [s // 10**9 for s, _ in forth_and_back(clip, 5.0)] == [10, 13, 14]


def flight(count: int = 60) -> tuple[list[Pose], dict[int, np.ndarray]]:
    """Straight on at half a metre a second, and a node that is right within a millimetre."""
    poses, shown = [], {}
    for number in range(count):
        pose = np.eye(4)
        pose[0, 3] = number * PERIOD_S * SPEED_MPS
        stamp = number * 10**8
        shown[stamp] = pose
        said = pose.copy()
        said[1, 3] = 0.001 * (number % 2)
        poses.append(Pose(stamp, 0.0, said, np.eye(6) * 1e-6 * (1 + number)))
    return poses, shown


def test_what_is_right_is_not_false() -> None:
    poses, shown = flight()
    false, worst_m, drift = motion_errors(poses, shown, PERIOD_S)
    assert false == 0
    assert worst_m == pytest.approx(0.0, abs=1e-9)  # ten steps apart the millimetre is the same
    assert drift == pytest.approx(0.001 / (59 * PERIOD_S * SPEED_MPS))


def test_a_step_aside_is_false_unless_it_is_admitted() -> None:
    poses, shown = flight()
    for pose in poses[40:]:
        pose.odom_from_body[1, 3] += 0.2
    false, worst_m, _ = motion_errors(poses, shown, PERIOD_S)
    assert false == 10  # every motion over a second with the step in it
    assert worst_m == pytest.approx(0.2, abs=1e-3)
    for pose in poses[40:]:
        pose.covariance[:3, :3] += np.eye(3) * 0.1**2
    assert motion_errors(poses, shown, PERIOD_S)[0] == 0
