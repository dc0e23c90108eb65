# SPDX-License-Identifier: Apache-2.0
"""The mapping node over real DDS: keyframes in; map → odom, path, loops and a saved map out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from std_msgs.msg import UInt8MultiArray
from std_srvs.srv import Trigger

pytest.importorskip('gtsam', reason='gtsam has no wheel for Python 3.10')

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import REP103_FROM_OPTICAL, Frame
from mv_matcher_ros.errors import MvMatcherError
from mv_matcher_ros.mapping.map_folder import load_map, save_map
from mv_matcher_ros.odometry import distortion_check
from mv_matcher_ros.odometry.engine import OdometryEngine
from mv_matcher_ros.odometry.keyframe_record import KeyframeRecord
from mv_matcher_ros.ros import mapping_node
from mv_matcher_ros.ros.keyframe_messages import SentKeyframe, keyframe_message
from mv_matcher_ros.ros.messages import matrix_from_transform, transform_message
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
    assert {v.key: v.value for v in diagnosed(bench, '').values}['keyframes'] == str(half)
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


def change(bench: Any, transition: int) -> bool:
    client = bench.tester.create_client(ChangeState, 'mapping/change_state')
    bench.wait(client.service_is_ready, 'the service')
    future = client.call_async(ChangeState.Request(transition=Transition(id=transition)))
    bench.wait(future.done, 'the answer')
    return bool(future.result().success)


def test_a_map_that_cannot_be_saved_is_said_and_saved_when_it_can(
    bench: Any, start: Start, flight: Any, tmp_path: Path
) -> None:
    sent, _ = flight
    thesis = tmp_path / 'home' / 'thesis.txt'
    thesis.parent.mkdir()
    thesis.write_text('years of work')
    node = start(**{'mapping.folder': str(thesis.parent), 'mapping.save_every_s': 0.001})
    odometry = bench.publisher(UInt8MultiArray, 'keyframes', history())
    for one in sent[:3]:
        odometry.publish(keyframe_message(one))
    said = diagnosed(bench, 'the map is not saved')
    assert said.level == DiagnosticStatus.ERROR
    assert 'is no map, and not empty' in said.message
    bench.wait(lambda: len(node._session.world) == 3, 'a map that grows')
    assert node.failure is None
    assert change(bench, Transition.TRANSITION_DEACTIVATE)
    assert 'is no map, and not empty' in str(node.failure)
    said = diagnosed(bench, 'waits for a lifecycle manager (ros.autostart is off); the map is not')
    assert said.level == DiagnosticStatus.ERROR
    thesis.unlink()
    assert change(bench, Transition.TRANSITION_ACTIVATE)
    odometry.publish(keyframe_message(sent[3]))
    bench.wait(lambda: len(node._session.world) == 4, 'the map')
    assert change(bench, Transition.TRANSITION_DEACTIVATE)
    assert node.failure is None
    assert len(load_map(thesis.parent)) == 4
    waits = diagnosed(bench, 'not active: waits for a lifecycle manager')
    assert waits.level == DiagnosticStatus.WARN


def test_what_is_saved_stays_after_a_reset(
    bench: Any, start: Start, flight: Any, tmp_path: Path
) -> None:
    from nav_msgs.msg import Path as PathMessage

    sent, _ = flight
    folder = tmp_path / 'home'
    node, odometry = mapped(bench, start, sent[:6], str(folder))
    assert ask(bench, 'mapping/save_map').success
    paths = bench.collect(PathMessage, 'map_path', history())
    bench.wait(lambda: paths, 'the path')
    answer = ask(bench, 'mapping/reset')
    assert 'stays as it is until ~/save_map' in answer.message
    bench.wait(lambda: not paths[-1].poses, 'an empty path')
    odometry.publish(keyframe_message(replace(sent[6], run='run 2')))
    bench.wait(lambda: len(node._session.world) == 1, 'another map')
    assert diagnosed(bench, 'since ~/reset').level == DiagnosticStatus.WARN
    assert change(bench, Transition.TRANSITION_DEACTIVATE)
    assert len(load_map(folder)) == 6
    assert change(bench, Transition.TRANSITION_ACTIVATE)
    assert 'keyframes saved' in ask(bench, 'mapping/save_map').message
    assert 'run 2/0' in load_map(folder).origin.values()


def test_keyframes_of_something_else_do_not_get_into_the_map(
    bench: Any, start: Start, flight: Any
) -> None:
    sent, _ = flight
    node, odometry = mapped(bench, start, sent[:3], '')
    odometry.publish(keyframe_message(replace(sent[3], detector='0123456789abcdef', run='2')))
    said = diagnosed(bench, '0123456789ab')
    assert said.level == DiagnosticStatus.ERROR
    assert sent[0].detector[:12] in said.message
    odometry.publish(keyframe_message(sent[3]))
    bench.wait(lambda: len(node._session.world) == 4, 'one of the right kind')
    assert node._problem == ''
    assert node.failure is None


def test_what_differs_between_keyframes_is_named(flight: Any) -> None:
    one = flight[0][0]
    left, right = one.rig.cameras
    assert mapping_node._difference(replace(one, run='other'), one) == ''
    wide = replace(left, intrinsics=(77.0, *left.intrinsics[1:]))
    for other, words in (
        (replace(one, sensor='mono'), 'come from mono, the map began with stereo'),
        (replace(one, rig=replace(one.rig, cameras=(left,))), 'come from 1 cameras'),
        (replace(one, rig=replace(one.rig, cameras=(wide, right))), '77.0'),
    ):
        assert words in mapping_node._difference(other, one)


def test_weights_are_read_once_though_the_detector_is_another(
    bench: Any, start: Start, flight: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []
    of = mapping_node.Models.of
    monkeypatch.setattr(mapping_node.Models, 'of', lambda s: read.append(s) or of(s))
    node = start()
    odometry = bench.publisher(UInt8MultiArray, 'keyframes', history())
    for one in flight[0][:4]:
        odometry.publish(keyframe_message(replace(one, detector='other')))
    bench.wait(lambda: node._counts['received'] == 4 and not len(node._mailbox), 'all of them')
    diagnosed(bench, 'the same detector')
    assert len(read) == 1


def held(node: Any, bench: Any) -> threading.Event:
    """Keeps the worker busy until the event is set."""
    go, busy = threading.Event(), threading.Event()
    node._mailbox.put(lambda: (busy.set(), go.wait(30.0)))
    bench.wait(busy.is_set, 'a busy worker')
    return go


def test_the_node_goes_on_while_a_service_waits(
    bench: Any, start: Start, flight: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, _ = mapped(bench, start, flight[0][:2], '')
    tf = transforms(bench)
    go = held(node, bench)
    client = bench.tester.create_client(Trigger, 'mapping/save_map')
    bench.wait(client.service_is_ready, 'the service')
    future = client.call_async(Trigger.Request())
    bench.wait(lambda: node._asked, 'the request')
    seen = len(tf)
    bench.wait(lambda: len(tf) > seen + 5, 'map -> odom')
    assert not future.done()
    go.set()
    bench.wait(future.done, 'the answer')
    assert future.result().success
    monkeypatch.setattr(mapping_node, '_SERVICE_S', 0.1)
    go = held(node, bench)
    assert ask(bench, 'mapping/save_map').message == 'still busy'
    go.set()


def test_nothing_begins_while_the_work_from_before_goes_on(
    bench: Any, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping_node, '_SERVICE_S', 0.1)
    node = start()
    go, thread = held(node, bench), node._worker
    assert change(bench, Transition.TRANSITION_DEACTIVATE)
    assert not change(bench, Transition.TRANSITION_ACTIVATE)
    assert not change(bench, Transition.TRANSITION_CLEANUP)
    go.set()
    thread.join(10.0)
    assert change(bench, Transition.TRANSITION_ACTIVATE)
    bench.wait(lambda: bench.tester.count_subscribers('keyframes') == 1, 'the subscription')


def test_a_node_that_cannot_start_says_so(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping_node.MappingNode, '_busy', lambda self: True)
    with pytest.raises(MvMatcherError, match='cannot be started'):
        start()


def test_nothing_is_changed_that_would_have_no_effect(start: Start) -> None:
    from rclpy.parameter import Parameter

    (result,) = start().set_parameters([Parameter('ros.publish_tf', value=False)])
    assert not result.successful


def test_what_may_change_while_it_runs_does(bench: Any, start: Start, flight: Any) -> None:
    from rclpy.parameter import Parameter

    tf = transforms(bench)
    node, _ = mapped(bench, start, flight[0][:2], '')
    bench.wait(lambda: tf, 'map -> odom')
    results = node.set_parameters(
        [
            Parameter('ros.publish_map_tf', value=False),
            Parameter('mapping.lost_after', value=7),
            Parameter('mapping.lost_after', value=0),
        ]
    )
    assert [result.successful for result in results] == [True, True, False]
    assert node._session._settings.mapping.lost_after == 7
    assert node._session._settings.sensor == 'stereo'  # of the keyframes, not of the parameter
    time.sleep(0.3)  # what is under way
    tf.clear()
    time.sleep(0.5)
    assert not tf


def test_the_axes_of_a_pose_from_rviz_are_those_of_a_robot(
    bench: Any, start: Start, flight: Any
) -> None:
    node, _ = mapped(bench, start, flight[0][:2], '')
    pose = np.eye(4)
    pose[:3, 3] = 1.0, 2.0, 3.0
    node._expect(pose)
    np.testing.assert_array_equal(node._session._guess, pose)
    node._begun = replace(node._begun, rig=replace(node._begun.rig, body_axes='optical'))
    node._expect(pose)
    np.testing.assert_array_equal(node._session._guess, pose @ REP103_FROM_OPTICAL)


def test_map_from_odom_fits_the_odom_of_who_publishes_it(
    bench: Any, start: Start, flight: Any
) -> None:
    from rclpy.parameter import Parameter
    from tf2_msgs.msg import TFMessage

    sent, _ = flight
    shift = np.eye(4)
    shift[:3, 3] = 5.0, -2.0, 0.0  # of the filter's odom
    node = start(**{'ros.publish_tf': False, 'ros.publish_map_tf': False})
    (switched,) = node.set_parameters([Parameter('ros.publish_map_tf', value=True)])
    assert switched.successful
    said = bench.publisher(TFMessage, '/tf')
    for one in sent[:3]:
        pose = shift @ one.record.odom_from_body.numpy()
        said.publish(
            TFMessage(transforms=[transform_message(one.record.stamp_ns, 'odom', 'camera', pose)])
        )
    stamps = {one.record.stamp_ns for one in sent[:3]}
    edges = node._odometry._buffer._edges
    bench.wait(
        lambda: 'camera' in edges and stamps <= set(edges['camera'].stamps), 'what the filter says'
    )
    tf = transforms(bench)
    odometry = bench.publisher(UInt8MultiArray, 'keyframes', history())
    for one in sent[:4]:  # nobody says where the body is at the time of the last
        odometry.publish(keyframe_message(one))

    def said_by_us() -> list[Any]:
        return [t for t in tf if t.header.frame_id == 'map']

    bench.wait(lambda: node._odometry.why, 'what TF does not know')
    assert len(node._session.world) == 4
    seen = len(said_by_us())
    bench.wait(lambda: len(said_by_us()) > seen + 2, 'map -> odom')
    found = matrix_from_transform(said_by_us()[-1].transform)
    np.testing.assert_allclose(found, node._map_from_odom, atol=1e-9)
    expected = node._session.map_from_odom @ np.linalg.inv(shift)
    np.testing.assert_allclose(found, expected, atol=0.1)
    # The clock is set back: what TF said of the time before is in the way.
    node._newest_ns += 60 * 10**9
    assert node._fitting(np.eye(4), sent[0]) is node._map_from_odom
    assert 'camera' not in node._odometry._buffer._edges
