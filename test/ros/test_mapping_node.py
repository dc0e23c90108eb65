# SPDX-License-Identifier: Apache-2.0
"""The mapping node over real DDS: keyframes in; map → odom, path, loops and a saved map out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diagnostic_msgs.msg import DiagnosticStatus
from std_msgs.msg import UInt8MultiArray
from std_srvs.srv import Trigger

pytest.importorskip('gtsam', reason='gtsam has no wheel for Python 3.10')

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Frame
from mv_matcher_ros.mapping.map_folder import load_map, save_map
from mv_matcher_ros.odometry import distortion_check
from mv_matcher_ros.odometry.engine import OdometryEngine
from mv_matcher_ros.odometry.keyframe_record import KeyframeRecord
from mv_matcher_ros.ros.keyframe_messages import SentKeyframe, keyframe_message
from mv_matcher_ros.ros.messages import matrix_from_transform
from mv_matcher_ros.worlds.presets import room_loop

pytestmark = [pytest.mark.ros, pytest.mark.slow]

FRAMES, SIZE = 50, (320, 240)
DETECTOR = {'detector.max_keypoints': 300}
# A room that is gone round once in 2.5 s: loops after two.
EAGER = {
    'mapping.places.gap_s': 1.0, 'mapping.places.consecutive': 1, 'mapping.loops.min_inliers': 15,
}  # fmt: skip


@pytest.fixture(scope='module')
def flight() -> tuple[list[SentKeyframe], list[Frame]]:
    """Keyframes of a stereo flight round a room and a little farther."""
    source = room_loop('stereo', FRAMES, size=SIZE, rate_hz=20.0)
    frames = list(source)
    settings = Settings.model_validate({
        'sensor': 'stereo', 'detector': {'max_keypoints': 300},
        'keyframes': {'parallax_px': 25.0, 'map_lag': 2},
    })  # fmt: skip
    records: list[KeyframeRecord] = []
    engine = OdometryEngine(settings, source.rig)
    engine.report_keyframes(records.append)
    # There and back again: every place is seen twice, the second time going the other way.
    back = [
        replace(
            f, stamp_ns=2 * frames[-1].stamp_ns + 50_000_000 - f.stamp_ns, index=2 * FRAMES - i
        )
        for i, f in reversed(list(enumerate(frames)))
    ]
    for frame in [*frames, *back]:
        engine.process(frame)
    engine.finish()
    detector = engine.networks['detector']['sha256']
    sent = [
        SentKeyframe(r, 'run 1', 'stereo', source.rig, detector, 'camera', 'odom') for r in records
    ]
    assert len(sent) > 12
    return sent, frames


Start = Callable[..., Any]


@pytest.fixture
def start(bench: Any) -> Start:
    """Starts a mapping node; `odometry` publishes as the odometry node does."""

    def started(name: str = 'mapping', **parameters: Any) -> Any:
        from rclpy.parameter import Parameter

        from mv_matcher_ros.ros.mapping_node import MappingNode

        given = {**DETECTOR, **EAGER, **parameters}
        overrides = [Parameter(n, value=v) for n, v in given.items()]
        node = MappingNode(name, parameter_overrides=overrides, context=bench.contexts[1])
        bench.add(node)
        return node

    return started


def history() -> Any:
    from rclpy.qos import DurabilityPolicy, QoSProfile

    return QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def mapped(bench: Any, start: Start, sent: list[SentKeyframe], folder: str) -> tuple[Any, Any]:
    """A node that has made a map of all keyframes, and what publishes them."""
    node = start(**{'mapping.folder': folder})
    odometry = bench.publisher(UInt8MultiArray, 'keyframes', history())
    for one in sent:
        odometry.publish(keyframe_message(one))
    bench.wait(lambda: len(node._session.world if node._session else ()) == len(sent), 'the map')
    return node, odometry


def ask(bench: Any, service: str) -> Any:
    client = bench.tester.create_client(Trigger, service)
    bench.wait(client.service_is_ready, 'the service')
    future = client.call_async(Trigger.Request())
    bench.wait(future.done, 'the answer')
    return future.result()


def diagnosed(bench: Any, words: str) -> Any:
    """The first diagnosis that says so."""
    from diagnostic_msgs.msg import DiagnosticArray

    found = bench.collect(DiagnosticArray, '/diagnostics')

    def said() -> list[Any]:
        return [s for m in found for s in m.status if words in s.message]

    bench.wait(lambda: bool(said()), words)
    return said()[0]


def transforms(bench: Any) -> list[Any]:
    from tf2_msgs.msg import TFMessage

    found: list[Any] = []
    bench.tester.create_subscription(TFMessage, '/tf', lambda m: found.extend(m.transforms), 100)
    return found


def test_a_map_is_made_and_said(bench: Any, start: Start, flight: Any, tmp_path: Path) -> None:
    from nav_msgs.msg import Path as PathMessage
    from sensor_msgs.msg import PointCloud2
    from visualization_msgs.msg import Marker

    sent, _ = flight
    folder = tmp_path / 'home'
    start(**{'mapping.folder': str(folder)})
    states = bench.states('mapping/state')
    tf = transforms(bench)
    odometry = bench.publisher(UInt8MultiArray, 'keyframes', history())
    for one in sent:
        odometry.publish(keyframe_message(one))
    bench.wait(lambda: len(states) == len(sent), 'a state for each keyframe')
    assert [s['stamp_ns'] for s in states] == [one.record.stamp_ns for one in sent]
    assert states[-1]['status'] == 'TRACKING'
    assert states[-1]['counts']['loops'] >= 1
    clouds = bench.collect(PointCloud2, 'mapping/landmarks', history())
    paths = bench.collect(PathMessage, 'map_path', history())
    loops = bench.collect(Marker, 'mapping/loops', history())
    bench.wait(lambda: clouds and paths and loops, 'what is latched')
    assert paths[-1].header.frame_id == 'map'
    assert clouds[-1].width > 100
    bench.wait(lambda: any(t.header.frame_id == 'map' for t in tf), 'map -> odom')
    said = next(t for t in reversed(tf) if t.header.frame_id == 'map')
    assert said.child_frame_id == 'odom'
    # The odometry hardly drifts: map and odom begin together and stay together.
    assert np.abs(matrix_from_transform(said.transform) - np.eye(4)).max() < 0.1
    answer = ask(bench, 'mapping/save_map')
    assert answer.success
    assert f'{len(sent)} keyframes saved' in answer.message
    assert len(load_map(folder)) == len(sent)


def test_who_comes_late_or_again_goes_on(
    bench: Any, start: Start, flight: Any, tmp_path: Path
) -> None:
    sent, _ = flight
    folder = str(tmp_path / 'home')
    odometry = bench.tester.create_publisher(UInt8MultiArray, 'keyframes', history())
    half = len(sent) // 2
    for one in sent[:half]:  # before there is a mapping node
        odometry.publish(keyframe_message(one))
    node = start(**{'mapping.folder': folder})
    bench.wait(lambda: len(node._session.world if node._session else ()) == half, 'the first half')
    node.close()  # it saves
    again = start('mapping_again', **{'mapping.folder': folder})
    bench.wait(lambda: again._counts['known already'] == half, 'what it knew')
    for one in sent[half:]:
        odometry.publish(keyframe_message(one))
    bench.wait(lambda: len(again._session.world) == len(sent), 'the other half')
    assert {k.segment for k in again._session.world.keyframes.values()} == {0}
    # The odometry is started again: its segments are numbered anew, its map is another part.
    odometry.publish(keyframe_message(replace(sent[0], run='run 2')))
    bench.wait(lambda: len(again._session.world) == len(sent) + 1, 'one more')
    assert {k.segment for k in again._session.world.keyframes.values()} == {0, 1}


def test_lost_keyframes_are_no_fault(bench: Any, start: Start, flight: Any) -> None:
    sent, _ = flight
    node = start()
    states = bench.states('mapping/state')
    odometry = bench.publisher(UInt8MultiArray, 'keyframes', history())
    kept = [one for number, one in enumerate(sent) if number % 4 != 2]
    odometry.publish(UInt8MultiArray(data=[1, 2, 3]))
    for one in kept:
        odometry.publish(keyframe_message(one))
    bench.wait(lambda: len(states) == len(kept), 'a state for each')
    assert node._counts['unreadable'] == 1
    assert {k.segment for k in node._session.world.keyframes.values()} == {0}


def test_a_body_is_found_on_a_map_and_lost_and_found_again(
    bench: Any, start: Start, flight: Any, tmp_path: Path
) -> None:
    sent, _ = flight
    folder = str(tmp_path / 'home')
    node, odometry = mapped(bench, start, sent, folder)
    node.close()
    start('localization', **{
        'mapping.folder': folder, 'mapping.grow': False, 'mapping.lost_after': 2,
    })  # fmt: skip
    states = bench.states('localization/state')
    bench.wait(lambda: len(states) >= len(sent), 'what is latched')
    assert {s['status'] for s in states} <= {'TRACKING', 'DEGRADED', 'INITIALISING'}
    assert states[-1]['status'] == 'TRACKING'
    assert len(load_map(folder)) == len(sent)
    nothing = sent[0].record.observation
    none = torch.zeros(0, dtype=torch.int64)
    blind = replace(
        sent[0].record,
        observation=replace(
            nothing, features=nothing.features.chosen(none), plane_xy=nothing.plane_xy[none],
            sigma=nothing.sigma[none], inverse_depth=nothing.inverse_depth[none],
            inverse_depth_sigma=nothing.inverse_depth_sigma[none],
        ),
        landmark=none, points=sent[0].record.points[none],
        point_covariance=sent[0].record.point_covariance[none],
    )  # fmt: skip
    count = len(states)
    for _ in range(2):
        odometry.publish(keyframe_message(replace(sent[0], record=blind)))
    odometry.publish(keyframe_message(sent[3]))
    bench.wait(lambda: len(states) == count + 3, 'three states')
    assert [s['status'] for s in states[count:]] == ['DEGRADED', 'LOST', 'RELOCALISED']


def test_features_of_another_detector_are_refused(bench: Any, start: Start, flight: Any) -> None:
    sent, _ = flight
    node = start()
    odometry = bench.publisher(UInt8MultiArray, 'keyframes', history())
    odometry.publish(keyframe_message(replace(sent[0], detector='0123456789abcdef')))
    diagnosed(bench, '0123456789ab')
    assert node.failure is None
    assert not ask(bench, 'mapping/save_map').success


def test_nobody_publishes_keyframes(bench: Any, start: Start) -> None:
    start()
    diagnosed(bench, 'ros.publish_keyframes')


def test_a_pose_from_rviz_is_where_the_body_is_looked_for(
    bench: Any, start: Start, flight: Any, tmp_path: Path
) -> None:
    from geometry_msgs.msg import PoseWithCovarianceStamped

    from mv_matcher_ros.ros.messages import pose_message

    sent, _ = flight
    folder = str(tmp_path / 'home')
    node, odometry = mapped(bench, start, sent, folder)
    poses = {k.stamp_ns: node._session.world.pose[k.key] for k in
             node._session.world.keyframes.values()}  # fmt: skip
    node.close()
    # Nothing is ever recognised here: no image has so many keypoints.
    node = start('localization', **{
        'mapping.folder': folder, 'mapping.grow': False, 'mapping.places.min_keypoints': 1000,
    })  # fmt: skip
    states = bench.states('localization/state')
    expected = bench.publisher(PoseWithCovarianceStamped, 'initialpose')
    bench.wait(lambda: len(states) == len(sent), 'an answer for each that is latched')
    assert {s['status'] for s in states} <= {'DEGRADED', 'INITIALISING'}
    message = PoseWithCovarianceStamped()
    message.header.frame_id = 'somewhere'
    message.pose.pose = pose_message(poses[sent[4].record.stamp_ns])
    expected.publish(message)  # not in the map's frame: not used
    message.header.frame_id = 'map'
    expected.publish(message)
    bench.wait(lambda: node._session._guess is not None, 'the pose')
    odometry.publish(keyframe_message(sent[4]))
    bench.wait(lambda: len(states) == len(sent) + 1, 'another answer')
    assert states[-1]['status'] == 'TRACKING'


def test_distortion_that_the_calibration_does_not_know_is_said(
    bench: Any, start: Start, flight: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, _ = flight
    # What a group says is tested with the check; here, that the node asks and tells.
    monkeypatch.setattr(distortion_check, 'stretch_of', lambda records, camera: (0.03, 1e-6))
    start(**{'distortion_check.keyframes': 5, 'distortion_check.groups': 2})
    odometry = bench.publisher(UInt8MultiArray, 'keyframes', history())
    for one in sent:
        odometry.publish(keyframe_message(replace(one, sensor='rgbd')))
    status = diagnosed(bench, 'radial distortion that the calibration does not know')
    assert status.level == DiagnosticStatus.WARN
    assert status.message.startswith('TRACKING')
    assert 'radtan [' in status.message


def test_a_map_of_a_camera_with_another_distortion_is_said(
    bench: Any, start: Start, flight: Any, tmp_path: Path
) -> None:
    sent, _ = flight
    folder = tmp_path / 'home'
    node, _ = mapped(bench, start, sent, str(folder))
    node.close()
    world = load_map(folder)
    left, right = world.rig.cameras
    left = replace(left, model='radtan', distortion=(0.03, 0.0, 0.0, 0.0, 0.0))
    world.rig = replace(world.rig, cameras=(left, right))
    save_map(world, folder)
    start('again', **{'mapping.folder': str(folder)})
    assert diagnosed(bench, 'another distortion, radtan [0.03').level == DiagnosticStatus.WARN
