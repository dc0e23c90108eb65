# SPDX-License-Identifier: Apache-2.0
"""Wheel odometry on TF: frames carry it to the engine, and TF stays a tree."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tf2_msgs.msg import TFMessage

from mv_matcher_ros.errors import SettingsError
from mv_matcher_ros.ros.messages import matrix_from_transform, stamp_ns, transform_message

pytestmark = pytest.mark.ros
MS = 10**6
START_NS = 5_000 * MS
GUESSING = {'ros.lossless': True, 'ros.guess_frame': 'wheels', 'ros.frames.odom': 'visual_odom'}


def wheels(stamp: int, prefix: str = '') -> Any:
    """wheels → camera, a metre a second."""
    pose = np.eye(4)
    pose[0, 3] = (stamp - START_NS) * 1e-9
    return TFMessage(transforms=[transform_message(stamp, prefix + 'wheels', 'camera', pose)])


@pytest.mark.parametrize('prefix', ['', 'robot1/'])
def test_the_pose_of_the_wheels_goes_with_the_frame(
    bench: Any, camcorder: Callable[..., Any], prefix: str
) -> None:
    bench.start({**GUESSING, 'ros.frames.prefix': prefix})
    sent = bench.collect(TFMessage, '/tf')
    publisher = bench.publisher(TFMessage, '/tf', listeners=2)  # the node's, and our own
    camera, states = camcorder(), bench.states()
    for stamp in (START_NS, START_NS + 100 * MS, START_NS + 200 * MS):
        publisher.publish(wheels(stamp, prefix))
    bench.wait(lambda: len(sent) == 3, 'what the wheels say')
    time.sleep(0.2)  # also at the node
    camera.shoot(START_NS + 50 * MS)  # between two of theirs
    camera.shoot(START_NS + 150 * MS)
    bench.wait(lambda: len(states) == 2, 'answers')
    guesses = [frame.guess for frame in bench.engines[0].frames]
    assert [g[0, 3] for g in guesses] == pytest.approx([0.05, 0.15])
    # visual_odom → wheels → camera is where the engine says that the camera is.
    bench.wait(lambda: len(sent) == 5, 'TF')
    for message, guess, x in zip(sent[3:], guesses, (0.0, 1.0), strict=True):
        (transform,) = message.transforms
        assert transform.header.frame_id == f'{prefix}visual_odom'
        assert transform.child_frame_id == f'{prefix}wheels'
        pose = matrix_from_transform(transform.transform) @ guess
        assert pose[0, 3] == pytest.approx(x)
    assert stamp_ns(sent[3].transforms[0].header.stamp) == START_NS + 50 * MS


def test_without_wheels_odometry_goes_on_and_says_so(
    bench: Any, camcorder: Callable[..., Any]
) -> None:
    bench.start({**GUESSING, 'ros.guess_wait_s': 0.01})
    camera, states, sent = camcorder(), bench.states(), bench.collect(TFMessage, '/tf')
    camera.shoot(START_NS)
    bench.wait(lambda: states, 'an answer')
    assert bench.engines[0].frames[0].guess is None
    assert states[0]['status'] == 'TRACKING'
    assert states[0]['counters']['without guess'] == 1
    assert not sent  # where the wheels are is not known


def test_a_frame_has_one_parent(bench: Any) -> None:
    with pytest.raises(SettingsError, match='one parent'):
        bench.start({'ros.guess_frame': 'odom'})


def test_wheels_are_heard_after_the_clock_was_set_back(
    bench: Any, camcorder: Callable[..., Any]
) -> None:
    node = bench.start({**GUESSING, 'ros.guess_wait_s': 0.01})
    publisher = bench.publisher(TFMessage, '/tf', listeners=1)
    camera, states = camcorder(), bench.states()
    late_ns = START_NS + 60_000 * MS
    edges = node._worker._guess._buffer._edges
    publisher.publish(wheels(late_ns))
    bench.wait(lambda: 'camera' in edges, 'what the wheels say')
    camera.shoot(late_ns)
    camera.shoot(START_NS)
    bench.wait(lambda: len(states) == 2, 'answers')
    publisher.publish(wheels(START_NS + 100 * MS))
    bench.wait(lambda: node._worker._guess._buffer._edges, 'what they say now')
    camera.shoot(START_NS + 100 * MS)
    bench.wait(lambda: len(states) == 3, 'an answer')
    assert bench.engines[0].frames[-1].guess is not None
