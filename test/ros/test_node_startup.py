# SPDX-License-Identifier: Apache-2.0
"""What the node says while it cannot work: missing topics, QoS, calibration, TF."""

from __future__ import annotations

import array
import itertools
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TransformStamped
from nav_msgs.msg import Odometry
from rcl_interfaces.msg import Log
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from tf2_msgs.msg import TFMessage

from mv_matcher_ros.errors import SettingsError
from mv_matcher_ros.odometry.engine import OdometryEngine
from mv_matcher_ros.ros.messages import header_message, stamp_ns, transform_message
from mv_matcher_ros.ros.mounting import tf2

pytestmark = pytest.mark.ros

MS = 1_000_000
LOSSLESS = {'ros.lossless': True}
ERROR = b'\x02'


def problems(diagnostics: list[DiagnosticArray]) -> str:
    """All messages with an error so far."""
    return '\n'.join(s.message for d in diagnostics for s in d.status if s.level == ERROR)


def values(diagnostics: list[DiagnosticArray]) -> dict[str, str]:
    """Keys and values of the last diagnostics."""
    return {value.key: value.value for value in diagnostics[-1].status[0].values}


def test_missing_topics_are_named_within_two_seconds(bench: Any) -> None:
    started_s = time.monotonic()
    bench.start({'sensor': 'stereo'}, namespace='/robot')
    diagnostics = bench.collect(DiagnosticArray, '/diagnostics')
    bench.wait(lambda: problems(diagnostics), 'diagnostics')
    assert time.monotonic() - started_s < 2.0 + 0.5
    for topic in ('left/image', 'right/image', 'left/camera_info', 'right/camera_info'):
        assert f'/robot/{topic}: nobody publishes it' in problems(diagnostics)
    assert diagnostics[0].status[0].name == '/robot/odometry: odometry'


def test_images_that_are_published_elsewhere_are_named(bench: Any) -> None:
    """A mono camera before a stereo node; then one that publishes compressed images only."""
    bench.start({'sensor': 'stereo'})
    diagnostics = bench.collect(DiagnosticArray, '/diagnostics')
    bench.tester.create_publisher(CompressedImage, '/cam/image/compressed', 1)
    said = 'published with ros.image_transport compressed: /cam/image/compressed'
    bench.wait(lambda: said in problems(diagnostics), said)
    assert 'images that are published' not in problems(diagnostics)
    bench.tester.create_publisher(Image, '/image', 1)
    bench.wait(lambda: 'images that are published: /image' in problems(diagnostics), '/image')
    assert '/odometry/tracks' not in problems(diagnostics)


def test_missing_camera_info_is_said_by_topic(bench: Any, camcorder: Callable[..., Any]) -> None:
    bench.start()
    diagnostics = bench.collect(DiagnosticArray, '/diagnostics')
    camera = camcorder()
    camera.calibrate = lambda stamp_ns: None
    camera.shoot(1 * MS)
    complaint = 'no camera_info on /camera_info: 1 publisher(s), but no message yet'
    bench.wait(lambda: complaint in problems(diagnostics), complaint)
    assert values(diagnostics)['scale'].startswith('arbitrary')


def test_stamps_that_never_meet_are_said(bench: Any, camcorder: Callable[..., Any]) -> None:
    bench.start({'sensor': 'rgbd'})
    diagnostics = bench.collect(DiagnosticArray, '/diagnostics')
    camera = camcorder('rgbd')
    camera.calibrate()
    for publisher, stamp in zip(camera.images, (1000, 1500), strict=True):
        publisher.publish(Image(header=header_message(stamp * MS, 'camera')))
    said = '/image and /depth arrive, but no stamps within ros.sync_slop_s = 0.01 s'
    bench.wait(lambda: said in problems(diagnostics), said)
    assert '0.500 s apart' in problems(diagnostics)


def test_uncalibrated_camera_is_refused_and_a_good_calibration_helps(
    bench: Any, camcorder: Callable[..., Any]
) -> None:
    bench.start(LOSSLESS)
    diagnostics, states = bench.collect(DiagnosticArray, '/diagnostics'), bench.states()
    camera = camcorder()
    good = camera.infos
    camera.infos = [CameraInfo(width=64, height=48)]
    camera.shoot(1 * MS)
    bench.wait(lambda: states, 'an answer')
    assert states[0]['status'] == 'SKIPPED'
    assert '/camera_info' in states[0]['message']
    assert 'not calibrated' in states[0]['message']
    bench.wait(lambda: 'not calibrated' in problems(diagnostics), 'the diagnostics')
    assert not bench.engines
    camera.infos = good
    camera.calibrate(2 * MS)
    bench.wait(lambda: bench.engines, 'the engine')
    camera.shoot(3 * MS)
    bench.wait(lambda: len(states) == 2, 'the answer')
    assert states[1]['status'] == 'TRACKING'


def test_a_calibration_that_comes_late_has_not_changed(
    bench: Any, camcorder: Callable[..., Any]
) -> None:
    """And one that comes while nobody listens has."""
    node = bench.start(LOSSLESS)
    diagnostics = bench.collect(DiagnosticArray, '/diagnostics')
    camera = camcorder()
    good, camera.infos = camera.infos, [CameraInfo(width=64, height=48)]
    camera.shoot(1 * MS)
    bench.wait(lambda: 'not calibrated' in problems(diagnostics), 'the complaint')
    camera.infos = good
    camera.shoot(2 * MS)
    bench.wait(lambda: bench.engines and bench.engines[0].frames, 'a frame')
    assert not node._inputs.changed
    node.trigger_deactivate()
    node.trigger_activate()
    again = camcorder()
    again.infos[0].k[0] += 1.0
    again.calibrate(3 * MS)
    said = 'the calibration on /camera_info has changed'
    bench.wait(lambda: said in problems(diagnostics), said)
    again.infos[0].k[0] -= 1.0
    again.calibrate(4 * MS)
    bench.wait(lambda: not node._inputs.changed, 'the calibration from before')


def test_frames_that_are_all_skipped_are_said_within_two_seconds(
    bench: Any, camcorder: Callable[..., Any]
) -> None:
    """The size changes while it runs."""
    bench.start()
    diagnostics, states = bench.collect(DiagnosticArray, '/diagnostics'), bench.states()
    camera = camcorder()
    camera.shoot(1 * MS)
    bench.wait(lambda: states, 'an answer')
    began_s, stamps = time.monotonic(), itertools.count(2)

    def said() -> bool:
        camera.shoot(next(stamps) * 100 * MS, [np.zeros((24, 32), np.uint8)])
        time.sleep(0.05)
        return 'no frame is processed: /image' in problems(diagnostics)

    bench.wait(said, 'the complaint')
    assert time.monotonic() - began_s < 2.0 + 0.5
    seen = len(diagnostics)
    camera.shoot(next(stamps) * 100 * MS)
    bench.wait(lambda: states[-1]['status'] == 'TRACKING', 'a good frame')
    bench.wait(lambda: len(diagnostics) > seen + 1, 'diagnostics')
    assert 'no frame is processed' not in diagnostics[-1].status[0].message


def test_networks_are_named_with_their_place(bench: Any, camcorder: Callable[..., Any]) -> None:
    def with_network(settings: Any, rig: Any) -> Any:
        engine = bench.fake_engine(settings, rig)
        engine.networks = {
            'matcher': {'place': 'cpu fp32', 'weights': 'm.safetensors', 'sha256': 'ab' * 32}
        }
        return engine

    bench.start(LOSSLESS, engine_factory=with_network)
    diagnostics = bench.collect(DiagnosticArray, '/diagnostics')
    # What was logged before the tester was known is latched.
    latched = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    logs = bench.collect(Log, '/rosout', latched)
    camcorder().calibrate(1 * MS)
    said = 'm.safetensors on cpu fp32 (sha256 abababababab)'
    bench.wait(
        lambda: diagnostics and values(diagnostics).get('matcher network') == said, 'its key'
    )
    bench.wait(lambda: any(log.msg == f'matcher network: {said}' for log in logs), 'the log')


def test_what_a_pair_is_off_by_is_told_as_a_setting(
    bench: Any, camcorder: Callable[..., Any]
) -> None:
    told = {'sensor': 'stereo', 'detector.name': 'sift', 'stereo.disparity_error_px': '0.2,0,-0.1'}
    bench.start({**LOSSLESS, **told}, engine_factory=OdometryEngine)
    diagnostics = bench.collect(DiagnosticArray, '/diagnostics')
    camcorder('stereo').calibrate(1 * MS)
    bench.wait(
        lambda: (
            diagnostics
            and values(diagnostics).get('stereo.disparity_error_px') == '0.200,0.000,-0.100'
        ),
        'its key',
    )


def test_incompatible_qos_is_named(bench: Any) -> None:
    node = bench.start({'ros.input_reliability': 'reliable'})
    diagnostics = bench.collect(DiagnosticArray, '/diagnostics')
    sensor_data = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
    quiet = PublisherEventCallbacks(use_default_callbacks=False)
    bench.tester.create_publisher(Image, 'image', sensor_data, event_callbacks=quiet)
    bench.wait(lambda: node._inputs.incompatible_qos, 'the QoS event')
    assert node._inputs.incompatible_qos == {'/image': 'RELIABILITY'}
    said = 'no image on /image: incompatible QoS policy RELIABILITY'
    bench.wait(lambda: said in problems(diagnostics), said)
    bench.wait(
        lambda: values(diagnostics).get('incompatible QoS on /image') == 'RELIABILITY', 'its key'
    )


def test_default_inputs_take_sensor_data(bench: Any) -> None:
    bench.start()
    sensor_data = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
    assert bench.publisher(Image, 'image', sensor_data).get_subscription_count() == 1


def test_running_node_says_how_it_fares(bench: Any, camcorder: Callable[..., Any]) -> None:
    bench.start(LOSSLESS)
    diagnostics = bench.collect(DiagnosticArray, '/diagnostics')
    camera, stamps = camcorder(), itertools.count(1)

    def fine() -> bool:
        camera.shoot(next(stamps) * 10 * MS)
        time.sleep(0.01)
        said = [(m.status[0].level, m.status[0].message) for m in diagnostics]
        return (b'\x00', 'TRACKING') in said

    bench.wait(fine, 'frames that are tracked')
    assert {'rate_hz', 'latency_p50_ms', 'latency_p95_ms', 'dropped', 'count inliers'} <= set(
        values(diagnostics)
    )
    # Images that stop coming are missed, within two seconds.
    begin_s = time.monotonic()
    bench.wait(lambda: 'no new image on /image' in problems(diagnostics), 'the silence')
    assert time.monotonic() - begin_s < 2.5  # and what a busy machine takes


def test_compressed_transport_appends_to_the_remapped_topic(bench: Any) -> None:
    bench.start(
        {'ros.image_transport': 'compressed', 'sensor': 'rgbd', **LOSSLESS},
        cli_args=['--ros-args', '-r', 'image:=/cam/image_raw', '-r', 'depth:=/cam/depth'],
    )
    states = bench.states()
    image = bench.publisher(CompressedImage, '/cam/image_raw/compressed')
    depth = bench.publisher(CompressedImage, '/cam/depth/compressedDepth')
    info = bench.publisher(CameraInfo, 'camera_info')
    info.publish(
        CameraInfo(
            width=64, height=48, k=[60.0, 0, 32, 0, 60, 24, 0, 0, 1], header=header_message(1, 'c')
        )
    )
    grey = np.arange(48 * 64, dtype=np.uint8).reshape(48, 64)
    millimetres = np.full((48, 64), 1500, np.uint16)
    header = header_message(5 * MS, 'c')
    for publisher, kind, pixels, head in (
        (image, 'mono8; png compressed mono8', grey, b''),
        (depth, '16UC1; compressedDepth png', millimetres, bytes(12)),
    ):
        data = head + cv2.imencode('.png', pixels)[1].tobytes()
        publisher.publish(CompressedImage(header=header, format=kind, data=array.array('B', data)))
    bench.wait(lambda: states, 'the answer')
    assert states[0]['status'] == 'TRACKING', states
    (view,) = bench.engines[0].frames[0].views
    np.testing.assert_array_equal(view.image, grey)
    np.testing.assert_allclose(view.depth, 1.5)


def static_transform(parent: str, child: str, x: float) -> TransformStamped:
    pose = np.array([[0, 0, 1, x], [-1, 0, 0, 0], [0, -1, 0, 0.5], [0, 0, 0, 1]], float)
    return transform_message(0, parent, child, pose)


def test_mounts_come_from_tf_and_missing_ones_are_named(
    bench: Any, camcorder: Callable[..., Any]
) -> None:
    bench.start({'ros.extrinsics_from_tf': True, 'ros.tf_timeout_s': 0.1, **LOSSLESS})
    diagnostics = bench.collect(DiagnosticArray, '/diagnostics')
    odometry, transforms = bench.collect(Odometry, 'odometry'), bench.collect(TFMessage, '/tf')
    camera = camcorder()
    camera.shoot(1 * MS)
    said = 'no transform base_link <- camera in TF'
    bench.wait(lambda: said in problems(diagnostics), said)
    # Images that stop coming meanwhile do not hide it.
    silence = 'no new image on /image'
    bench.wait(lambda: silence in problems(diagnostics[-1:]), silence)
    assert said in problems(diagnostics[-1:])
    broadcaster = tf2().StaticTransformBroadcaster(bench.tester)
    broadcaster.sendTransform(
        [
            transform_message(0, 'base_link', 'mast', np.eye(4)),
            static_transform('mast', 'camera', 0.3),
        ]
    )
    bench.wait(lambda: odometry and transforms, 'odometry')
    rig = bench.engines[0].rig
    assert rig.body_axes == 'rep103'
    np.testing.assert_allclose(rig.cameras[0].body_from_camera[:3, 3], [0.3, 0, 0.5])
    forward = rig.cameras[0].body_from_camera[:3, :3] @ [0, 0, 1]
    np.testing.assert_allclose(forward, [1, 0, 0], atol=1e-12)
    assert odometry[0].child_frame_id == 'base_link'
    (transform,) = transforms[0].transforms
    assert (transform.header.frame_id, transform.child_frame_id) == ('odom', 'base_link')
    assert stamp_ns(transform.header.stamp) == 1 * MS
    assert transform.transform.translation.x == odometry[0].pose.pose.position.x


def test_tf_can_be_switched_off(bench: Any, camcorder: Callable[..., Any]) -> None:
    bench.start({'ros.publish_tf': False, **LOSSLESS})
    states, transforms = bench.states(), bench.collect(TFMessage, '/tf')
    camera = camcorder()
    for stamp in (1, 2, 3):
        camera.shoot(stamp * MS)
    bench.wait(lambda: len(states) == 3, 'answers')
    marker = bench.publisher(TFMessage, '/tf')
    marker.publish(TFMessage())  # what arrives after it would have arrived before
    bench.wait(lambda: transforms, 'the marker')
    assert [len(m.transforms) for m in transforms] == [0]


def test_a_mounted_camera_is_not_torn_off_its_robot(
    bench: Any, camcorder: Callable[..., Any]
) -> None:
    node = bench.start(LOSSLESS)
    states, transforms = bench.states(), bench.collect(TFMessage, '/tf')
    broadcaster = tf2().StaticTransformBroadcaster(bench.tester)
    broadcaster.sendTransform(static_transform('base_link', 'camera', 0.3))
    bench.wait(lambda: node._outputs._parents.of('camera'), 'the mount')
    camera = camcorder()
    camera.shoot(1 * MS)
    bench.wait(lambda: states, 'the answer')
    marker = bench.publisher(TFMessage, '/tf')
    marker.publish(TFMessage())
    bench.wait(lambda: transforms, 'the marker')
    assert [len(m.transforms) for m in transforms] == [0]


def test_unknown_parameter_ends_the_start(bench: Any) -> None:
    with pytest.raises(SettingsError, match='ros\\.lossless'):
        bench.start({'ros.losless': True})


def test_several_stereo_pairs_need_tf(bench: Any) -> None:
    """Nothing else says how the pairs stand to each other."""
    said = r'stereo\.pairs is 2: how the pairs stand to each other comes from TF or a file: set'
    with pytest.raises(SettingsError, match=said):
        bench.start({'sensor': 'stereo', 'stereo.pairs': 2})
