# SPDX-License-Identifier: Apache-2.0
"""message_filters, tf2_ros, tf_transformations: stand-ins, and the real ones where there are any.

Every test runs on the stand-in, and on the installed package too where there is one.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from geometry_msgs.msg import TransformStamped
from rclpy.duration import Duration
from rclpy.time import Time

from mv_matcher_ros.ros import standins
from mv_matcher_ros.ros.messages import (
    matrix_from_transform,
    stamp_ns,
    time_message,
    transform_message,
)

pytestmark = pytest.mark.ros


def modules(package: str) -> list[Any]:
    """The stand-in, and the installed package if it works."""
    stand_in = importlib.import_module(f'mv_matcher_ros.ros.standins.{package}')
    real = standins.working_module(package)
    return [pytest.param(stand_in, id='stand-in')] + (
        [] if real is None else [pytest.param(real, id='installed')]
    )


def message(stamp_ms: int) -> Any:
    return SimpleNamespace(header=SimpleNamespace(stamp=time_message(stamp_ms * 1_000_000)))


def ms(messages: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(stamp_ns(m.header.stamp) // 1_000_000 for m in messages)


def synchronised(
    filters: Any, make: Callable[[list[Any]], Any], arrivals: list[tuple[int, int]]
) -> list[tuple[int, ...]]:
    """Stamps of the sets that come out for messages (input, stamp in ms) in order of arrival."""
    inputs = [filters.SimpleFilter(), filters.SimpleFilter()]
    sets: list[tuple[int, ...]] = []
    make(inputs).registerCallback(lambda *found: sets.append(ms(found)))
    for which, stamp in arrivals:
        inputs[which].signalMessage(message(stamp))
    return sets


@pytest.mark.parametrize('filters', modules('message_filters'))
def test_exact_synchroniser(filters: Any) -> None:
    arrivals = [(0, 10), (1, 11), (0, 20), (1, 20), (1, 30), (0, 30)]
    sets = synchronised(filters, lambda fs: filters.TimeSynchronizer(fs, 5), arrivals)
    assert sets == [(20, 20), (30, 30)]


@pytest.mark.parametrize('filters', modules('message_filters'))
def test_approximate_synchroniser(filters: Any) -> None:
    def make(inputs: list[Any]) -> Any:
        return filters.ApproximateTimeSynchronizer(inputs, 5, 0.01)

    arrivals = [(0, 100), (1, 105), (0, 200), (1, 240), (1, 301), (1, 307), (0, 306)]
    assert synchronised(filters, make, arrivals) == [(100, 105), (306, 307)]
    assert synchronised(filters, make, [(0, 100), (1, 111)]) == []


@pytest.mark.parametrize('filters', modules('message_filters'))
def test_synchroniser_forgets_the_oldest(filters: Any) -> None:
    def make(inputs: list[Any]) -> Any:
        return filters.ApproximateTimeSynchronizer(inputs, 2, 0.01)

    assert synchronised(filters, make, [(0, 100), (0, 200), (0, 300), (1, 100), (1, 200)]) == [
        (200, 200)
    ]


@pytest.mark.parametrize('transformations', modules('tf_transformations'))
@pytest.mark.parametrize('axis', [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.6, 0, 0.8)])
@pytest.mark.parametrize('angle', [0.0, 1e-9, 1.0, np.pi - 1e-9, np.pi, 4.0])
def test_quaternions(transformations: Any, axis: tuple[float, ...], angle: float) -> None:
    quaternion = np.array([*(np.sin(angle / 2) * np.array(axis)), np.cos(angle / 2)])
    matrix = transformations.quaternion_matrix(quaternion)
    x, y, z = axis
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rodrigues = np.eye(3) + np.sin(angle) * skew + (1 - np.cos(angle)) * skew @ skew
    np.testing.assert_allclose(matrix[:3, :3], rodrigues, atol=1e-12)
    again = transformations.quaternion_from_matrix(matrix)
    assert abs(float(again @ quaternion)) == pytest.approx(1.0, abs=1e-12)


def pose(x: float, yaw: float = 0.0) -> np.ndarray:
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0, x], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def stamped(parent: str, child: str, matrix: np.ndarray, stamp_ms: int = 0) -> TransformStamped:
    return transform_message(stamp_ms * 1_000_000, parent, child, matrix)


@pytest.fixture(params=modules('tf2_ros'))
def tf2(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def tree(tf2: Any) -> Any:
    """map -> odom -> base_link (moving) -> mast -> camera, and base_link -> arm."""
    buffer = tf2.Buffer(cache_time=Duration(seconds=10.0))
    buffer.set_transform_static(stamped('base_link', 'mast', pose(1.0)), 'test')
    buffer.set_transform_static(stamped('mast', 'camera', pose(0.5, np.pi / 2)), 'test')
    buffer.set_transform_static(stamped('base_link', 'arm', pose(-1.0)), 'test')
    buffer.set_transform_static(stamped('map', 'odom', pose(10.0)), 'test')
    for stamp, x, yaw in ((1000, 0.0, 0.0), (2000, 2.0, 1.0)):
        buffer.set_transform(stamped('odom', 'base_link', pose(x, yaw), stamp), 'test')
    return buffer


def look_up(buffer: Any, target: str, source: str, stamp_ms: int = 0) -> np.ndarray:
    answer = buffer.lookup_transform(target, source, Time(nanoseconds=stamp_ms * 1_000_000))
    assert (answer.header.frame_id, answer.child_frame_id) == (target, source)
    return matrix_from_transform(answer.transform)


def test_static_chains_up_down_and_across(tree: Any) -> None:
    np.testing.assert_allclose(
        look_up(tree, 'base_link', 'camera'), pose(1.5, np.pi / 2), atol=1e-12
    )
    np.testing.assert_allclose(
        look_up(tree, 'camera', 'base_link'), np.linalg.inv(pose(1.5, np.pi / 2)), atol=1e-12
    )
    np.testing.assert_allclose(look_up(tree, 'arm', 'mast'), pose(2.0), atol=1e-12)
    np.testing.assert_allclose(look_up(tree, 'mast', 'mast'), np.eye(4), atol=1e-12)


def test_moving_frames_are_interpolated_and_not_extrapolated(tf2: Any, tree: Any) -> None:
    np.testing.assert_allclose(
        look_up(tree, 'odom', 'base_link', 1500), pose(1.0, 0.5), atol=1e-12
    )
    np.testing.assert_allclose(look_up(tree, 'odom', 'base_link'), pose(2.0, 1.0), atol=1e-12)
    expected = pose(10.0) @ pose(1.0, 0.5) @ pose(1.0)
    np.testing.assert_allclose(look_up(tree, 'map', 'mast', 1500), expected, atol=1e-12)
    for stamp in (500, 2500):
        with pytest.raises(tf2.ExtrapolationException):
            look_up(tree, 'odom', 'base_link', stamp)


def test_what_cannot_be_looked_up(tf2: Any, tree: Any) -> None:
    with pytest.raises(tf2.LookupException):
        look_up(tree, 'base_link', 'lidar')
    tree.set_transform_static(stamped('island', 'palm', pose(1.0)), 'test')
    with pytest.raises(tf2.ConnectivityException):
        look_up(tree, 'base_link', 'palm')
    assert issubclass(tf2.LookupException, tf2.TransformException)


def test_broadcast_and_listen(tf2: Any, bench: Any) -> None:
    from rclpy.node import Node

    buffer = tf2.Buffer()
    static = tf2.StaticTransformBroadcaster(bench.tester)
    # Sent before anybody listens, as /tf_static is latched; at once: Humble's keeps the last call.
    static.sendTransform(
        [stamped('base_link', 'mast', pose(1.0)), stamped('mast', 'camera', pose(2.0))]
    )
    listener_node = Node('listener', context=bench.contexts[1])
    bench.add(listener_node)
    tf2.TransformListener(buffer, listener_node)

    def known(target: str, source: str) -> bool:
        try:
            look_up(buffer, target, source)
        except tf2.TransformException:
            return False
        return True

    bench.wait(lambda: known('base_link', 'camera'), 'static transforms')
    np.testing.assert_allclose(look_up(buffer, 'base_link', 'camera'), pose(3.0))
    moving = tf2.TransformBroadcaster(bench.tester)
    bench.wait(lambda: moving.pub_tf.get_subscription_count(), 'the listener')
    moving.sendTransform(stamped('odom', 'base_link', pose(5.0), 100))
    bench.wait(lambda: known('odom', 'camera'), 'a moving transform')
    np.testing.assert_allclose(look_up(buffer, 'odom', 'camera'), pose(8.0))


def test_a_broken_package_gives_way_to_the_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(module: ModuleType) -> None:
        raise AttributeError('np.float was removed')

    monkeypatch.setitem(sys.modules, 'tf_transformations', ModuleType('tf_transformations'))
    chosen = standins.real_or_standin('tf_transformations', broken)
    assert chosen.__name__ == 'mv_matcher_ros.ros.standins.tf_transformations'
