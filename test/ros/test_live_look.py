# SPDX-License-Identifier: Apache-2.0
"""`doctor --live` finds what runs, and what is wrong with it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sensor_msgs.msg import CameraInfo, Image

from mv_matcher_ros.cli.doctor_live import findings_of
from mv_matcher_ros.ros.live_look import Heard, LiveLook, _image, _Looker
from mv_matcher_ros.ros.messages import header_message

pytestmark = pytest.mark.ros


@contextmanager
def going_on(act: Callable[[], None], period_s: float = 0.05) -> Iterator[None]:
    """Something is done again and again in a thread."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(period_s):
            act()

    thread = threading.Thread(target=work)
    thread.start()
    yield
    over.set()
    thread.join()


def rows(seen: LiveLook) -> dict[str, Any]:
    return {finding.name: finding for finding in findings_of(seen)}


def test_a_running_camera_and_node(bench: Any, camcorder: Callable[..., Any]) -> None:
    bench.start()
    camera = camcorder('mono')
    now = bench.tester.get_clock().now
    with going_on(lambda: camera.shoot(now().nanoseconds)):
        found = rows(_Looker(bench.lonely).look(5.0))
    image = found['/image']
    assert image.state == 'ok'
    assert '64x48 mono8' in image.detail
    assert 'Hz' in image.detail
    assert 'not in /tf_static' in image.detail
    assert 'fx 60.0' in found['/camera_info'].detail
    assert found['/odometry: odometry'].state == 'ok', found['/odometry: odometry']
    assert '/odometry' in found['nodes'].detail


def test_what_is_wrong_is_named(bench: Any) -> None:
    images = bench.tester.create_publisher(Image, '/bad/image', 10)
    infos = bench.tester.create_publisher(CameraInfo, '/bad/camera_info', 10)
    silent = bench.tester.create_publisher(Image, '/silent/image', 10)
    now = bench.tester.get_clock().now

    def publish() -> None:
        header = header_message(now().nanoseconds - 3 * 10**9, 'eye')
        images.publish(Image(header=header, width=64, height=48, step=64, encoding='mono8'))
        infos.publish(CameraInfo(header=header, width=64, height=48))

    with going_on(publish):
        found = rows(_Looker(bench.lonely).look(4.0))
    assert 'no image of that size' in found['/bad/image'].advice
    assert 'not calibrated' in found['/bad/camera_info'].advice
    assert found['/silent/image'].state == 'broken'
    assert 'nothing comes' in found['/silent/image'].detail
    assert found['our nodes'].state == 'missing'
    assert silent.topic_name == '/silent/image'


def test_an_image_that_the_node_takes_is_no_fault() -> None:
    def fault(**fields: Any) -> str:
        return _image(Image(**{'width': 4, 'height': 3, 'encoding': 'mono8', **fields}))[1]

    assert not fault(step=0, data=bytes(12))
    assert not fault(step=8, data=bytes(20))  # the last row need not be full
    assert not fault(step=4, data=bytes(12), encoding='of_tomorrow')
    assert fault(step=8, data=bytes(19))
    assert fault(step=4, data=b'')


def test_nothing_at_all_has_an_advice_for_each() -> None:
    found = rows(LiveLook('rmw'))
    assert 'ROS_DOMAIN_ID' in found['nodes'].advice
    assert 'driver' in found['images'].advice


def test_old_stamps_are_a_warning_and_those_of_a_recording_are_not() -> None:
    def row(age_s: float) -> Any:
        heard = Heard('/image', '1 publisher', [0.0, 1.0], [age_s] * 2, '64x48 mono8', '', 'eye')
        return rows(LiveLook('rmw', ['/driver'], [heard]))['/image']

    assert row(0.03).state == 'ok'
    assert row(2.0).state == 'warning'
    assert row(-2.0).state == 'warning'
    assert row(1e8).state == 'ok'
