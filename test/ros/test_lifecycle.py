# SPDX-License-Identifier: Apache-2.0
"""The managed life of the odometry node, as a lifecycle manager sees it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from nav_msgs.msg import Odometry
from std_srvs.srv import Trigger

from mv_matcher_ros.errors import MvMatcherError
from mv_matcher_ros.models.choice import Models
from mv_matcher_ros.ros import odometry_worker

pytestmark = pytest.mark.ros

UNMANAGED = {'ros.autostart': False}
FRAME_NS = 100_000_000


def call(bench: Any, kind: Any, service: str, request: Any) -> Any:
    client = bench.tester.create_client(kind, service)
    bench.wait(client.service_is_ready, service)
    future = client.call_async(request)
    bench.wait(future.done, 'the answer')
    return future.result()


def change(bench: Any, transition: int, node: str = 'odometry') -> bool:
    request = ChangeState.Request(transition=Transition(id=transition))
    return bool(call(bench, ChangeState, f'{node}/change_state', request).success)


def state(bench: Any) -> int:
    found = call(bench, GetState, 'odometry/get_state', GetState.Request())
    return int(found.current_state.id)


def diagnosis(bench: Any, words: str) -> Any:
    messages = bench.collect(DiagnosticArray, '/diagnostics')

    def said() -> list[Any]:
        return [s for m in messages for s in m.status if words in s.message]

    bench.wait(lambda: bool(said()), words)
    return said()[-1]


def test_it_starts_by_itself(bench: Any) -> None:
    bench.start()
    assert state(bench) == State.PRIMARY_STATE_ACTIVE


def test_a_manager_leads_it_through_its_life(bench: Any, camcorder: Callable[..., Any]) -> None:
    node = bench.start(UNMANAGED)
    assert state(bench) == State.PRIMARY_STATE_UNCONFIGURED
    waiting = diagnosis(bench, 'unconfigured: waits for a lifecycle manager')
    assert waiting.level == DiagnosticStatus.WARN
    assert not bench.tester.count_subscribers('image')
    assert not change(bench, Transition.TRANSITION_ACTIVATE)  # not before it is configured
    assert change(bench, Transition.TRANSITION_CONFIGURE)
    assert not bench.tester.count_subscribers('image')
    diagnosis(bench, 'inactive: waits')
    assert change(bench, Transition.TRANSITION_ACTIVATE)
    odometry = bench.collect(Odometry, 'odometry')
    camera = camcorder('mono')
    for number in range(1, 4):
        camera.shoot(number * FRAME_NS)
        bench.wait(lambda: len(odometry) == number, 'odometry')  # noqa: B023
    assert change(bench, Transition.TRANSITION_DEACTIVATE)
    bench.wait(lambda: not bench.tester.count_subscribers('image'), 'no subscription')
    camera.shoot(4 * FRAME_NS)
    # Again, with the same engine: odom goes on.
    assert change(bench, Transition.TRANSITION_ACTIVATE)
    again = camcorder('mono')
    again.shoot(5 * FRAME_NS)
    bench.wait(lambda: len(odometry) == 4, 'odometry again')
    assert len(bench.engines) == 1
    assert [m.pose.pose.position.x for m in odometry] == [0.0, 1.0, 2.0, 3.0]
    counters = node._worker.counters()
    assert counters['received'] == counters['processed'] == 4
    assert change(bench, Transition.TRANSITION_DEACTIVATE)
    # Cleaning up frees the engine.
    engine = weakref.ref(bench.engines.pop())
    assert change(bench, Transition.TRANSITION_CLEANUP)
    gc.collect()
    assert engine() is None
    assert state(bench) == State.PRIMARY_STATE_UNCONFIGURED
    assert change(bench, Transition.TRANSITION_CONFIGURE)
    assert change(bench, Transition.TRANSITION_ACTIVATE)
    third = camcorder('mono')
    third.shoot(6 * FRAME_NS)
    bench.wait(lambda: len(odometry) == 5, 'odometry of a new engine')
    assert odometry[-1].pose.pose.position.x == 0.0
    assert change(bench, Transition.TRANSITION_ACTIVE_SHUTDOWN)
    assert state(bench) == State.PRIMARY_STATE_FINALIZED
    assert node.failure is None


def test_what_cannot_be_configured_says_why_and_may_be_tried_again(bench: Any) -> None:
    node = bench.start(
        {**UNMANAGED, 'detector.weights': '/nowhere/x.safetensors'}, engine_factory=None
    )
    assert not change(bench, Transition.TRANSITION_CONFIGURE)
    assert state(bench) == State.PRIMARY_STATE_UNCONFIGURED
    assert '/nowhere/x.safetensors' in str(node._refused)
    assert not change(bench, Transition.TRANSITION_CONFIGURE)


def test_without_a_manager_a_node_that_cannot_start_ends(bench: Any) -> None:
    with pytest.raises(MvMatcherError, match='nowhere'):
        bench.start({'detector.weights': '/nowhere/x.safetensors'}, engine_factory=None)


def test_pause_and_resume(bench: Any, camcorder: Callable[..., Any]) -> None:
    bench.start()
    states, odometry = bench.states(), bench.collect(Odometry, 'odometry')
    camera = camcorder('mono')
    camera.shoot(1 * FRAME_NS)
    bench.wait(lambda: len(odometry) == 1, 'odometry')
    assert call(bench, Trigger, 'odometry/pause', Trigger.Request()).success
    camera.shoot(2 * FRAME_NS)
    bench.wait(lambda: len(states) == 2, 'an answer')
    assert 'paused' in states[-1]['message']
    assert diagnosis(bench, 'paused by ~/pause').level != DiagnosticStatus.OK
    assert call(bench, Trigger, 'odometry/resume', Trigger.Request()).success
    camera.shoot(3 * FRAME_NS)
    bench.wait(lambda: len(odometry) == 2, 'odometry again')


def test_services_of_a_node_that_is_not_configured(bench: Any) -> None:
    bench.start(UNMANAGED)
    for service in ('reset', 'pause', 'resume', 'adapt'):
        answer = call(bench, Trigger, f'odometry/{service}', Trigger.Request())
        assert not answer.success
        assert 'not configured' in answer.message


def test_cameras_are_looked_up_again_by_a_new_worker(bench: Any) -> None:
    tf = {'ros.extrinsics_from_tf': True, 'ros.frames.body': 'base_link', **UNMANAGED}
    bench.start(tf)
    for _ in range(2):
        assert change(bench, Transition.TRANSITION_CONFIGURE)
        bench.wait(lambda: bench.tester.count_subscribers('/tf') == 1, 'the listener')
        assert change(bench, Transition.TRANSITION_CLEANUP)
        bench.wait(lambda: bench.tester.count_subscribers('/tf') == 0, 'no listener')


def test_the_mapping_node_has_the_same_life(bench: Any) -> None:
    pytest.importorskip('gtsam', reason='gtsam has no wheel for Python 3.10')
    from rclpy.parameter import Parameter

    from mv_matcher_ros.ros.mapping_node import MappingNode

    node = MappingNode(
        parameter_overrides=[Parameter(n, value=v) for n, v in UNMANAGED.items()],
        context=bench.contexts[1],
    )
    bench.add(node)
    assert diagnosis(bench, 'not active: waits for a lifecycle manager')
    answer = call(bench, Trigger, 'mapping/save_map', Trigger.Request())
    assert (answer.success, answer.message) == (False, 'the node is not active')
    for _ in range(2):
        assert change(bench, Transition.TRANSITION_CONFIGURE, 'mapping')
        assert not bench.tester.count_subscribers('keyframes')
        assert change(bench, Transition.TRANSITION_ACTIVATE, 'mapping')
        bench.wait(lambda: bench.tester.count_subscribers('keyframes') == 1, 'the subscription')
        assert change(bench, Transition.TRANSITION_DEACTIVATE, 'mapping')
        bench.wait(lambda: not bench.tester.count_subscribers('keyframes'), 'no subscription')
        assert change(bench, Transition.TRANSITION_CLEANUP, 'mapping')
    assert node.failure is None


def test_an_engine_is_not_used_by_two(
    bench: Any, camcorder: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(odometry_worker, '_PATIENCE_S', 0.1)
    node = bench.start()
    states, camera = bench.states(), camcorder('mono')
    camera.shoot(1 * FRAME_NS)
    bench.wait(lambda: states, 'an answer')
    bench.wait(lambda: node._health._in_work_s is None, 'the end of its work')
    bench.engines[0].go.clear()
    camera.shoot(2 * FRAME_NS)
    bench.wait(lambda: node._health._in_work_s is not None, 'the frame in work')
    assert change(bench, Transition.TRANSITION_DEACTIVATE)
    assert not change(bench, Transition.TRANSITION_ACTIVATE)
    bench.engines[0].go.set()
    bench.wait(lambda: not node._worker.running, 'the end of the frame')
    assert change(bench, Transition.TRANSITION_ACTIVATE)


def test_any_error_of_a_transition_is_logged(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def out_of_memory(settings: Any) -> Any:
        raise RuntimeError('CUDA out of memory')

    monkeypatch.setattr(Models, 'of', out_of_memory)
    bench.start(UNMANAGED, engine_factory=None)
    assert not change(bench, Transition.TRANSITION_CONFIGURE)
    assert state(bench) == State.PRIMARY_STATE_UNCONFIGURED
    error = capfd.readouterr().err
    assert 'on_configure: Traceback' in error
    assert 'CUDA out of memory' in error
