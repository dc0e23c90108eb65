# SPDX-License-Identifier: Apache-2.0
"""The mapping node: keyframes of the odometry in, map → odom, the corrected path and a map out.

Callbacks only leave messages in a mailbox; one worker thread works on them in their order.
Odometry never waits for it, and either node may be started, stopped and started again alone.
"""

from __future__ import annotations

import gc
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.task import Future

from mv_matcher_ros.datatypes import REP103_FROM_OPTICAL, Array, Camera, Sensor, Status
from mv_matcher_ros.errors import MvMatcherError, SourceError
from mv_matcher_ros.mapping.mapper import detector_of
from mv_matcher_ros.mapping.session import MapSession, Taken
from mv_matcher_ros.models.choice import Models
from mv_matcher_ros.odometry.distortion_check import DistortionCheck, advice, in_words
from mv_matcher_ros.ros.health import REPEAT_S
from mv_matcher_ros.ros.keyframe_messages import SentKeyframe, keyframe_from_message
from mv_matcher_ros.ros.mailbox import Mailbox
from mv_matcher_ros.ros.map_publishers import MapPublishers
from mv_matcher_ros.ros.messages import matrix_from_pose
from mv_matcher_ros.ros.mounting import MotionGuess
from mv_matcher_ros.ros.parameters import CHANGEABLE_OF_MAP, answer_changes, declare
from mv_matcher_ros.ros.transitions import said

_REPORT_PERIOD_S = 1.0
# map → odom is said so often, whether it changed or not: TF wants it recent.
_TF_PERIOD_S = 0.05
# Work that a service asked for, and the end of the worker, are waited for at most so long.
_SERVICE_S = 30.0
# Who else says odom → body has said it so long after the image, or nothing is made of a keyframe;
# keyframes come late, so what was said is kept.
_TF_WAIT_S, _TF_KEPT_S = 0.3, 60.0
_INACTIVE = 'the node is not active'


class MappingNode(LifecycleNode):
    """Makes a map of what an odometry node sees, or finds it on one (`mapping.grow`).

    Listens to `keyframes`, `initialpose`; publishes `map_path`, `~/landmarks`, `~/loops`,
    `~/state`, `/diagnostics` and TF map → odom; serves `~/save_map`, `~/load_map`, `~/reset`.
    Activating subscribes, deactivating saves the map, cleaning up frees it; with `ros.autostart`
    the constructor configures and activates.

    Where something else publishes odom → body (`ros.publish_tf` is off), map → odom fits what
    that says on TF at the time of the keyframe.

    Args:
        name: of the node.
        node_arguments: of `rclpy.node.Node`.

    Attributes:
        failure: the error that ended the worker thread, or that the map could not be saved at the
            end; None while all is well.

    Raises:
        SettingsError: a parameter is unknown or out of range.
        MvMatcherError: with `ros.autostart`, the node cannot be started.
    """

    def __init__(self, name: str = 'mapping', **node_arguments: Any) -> None:
        super().__init__(name, **node_arguments)
        self.failure: Exception | None = None
        self._session: MapSession | None = None
        self._begun: SentKeyframe | None = None  # the keyframe that the session began with
        self._models: tuple[Sensor, Models] | None = None
        self._odometry: MotionGuess | None = None
        self._newest_ns = 0  # stamp of a keyframe
        self._map_from_odom: Array | None = None
        self._last: Taken | None = None
        self._problem = ''
        self._check: DistortionCheck | None = None
        self._advice = ''  # on the calibration
        self._counts: Counter[str] = Counter({'received': 0, 'known already': 0, 'unreadable': 0})
        self._inputs: list[Any] = []
        self._stopping = threading.Event()
        self._worker: threading.Thread | None = None
        self._asked: list[tuple[float, Any]] = []  # until when, and the answer that is awaited
        try:
            self._set_up()
        except MvMatcherError:
            super().destroy_node()
            raise
        if self.settings.ros.autostart:
            self._start()

    def _start(self) -> None:
        for transition in (self.trigger_configure, self.trigger_activate):
            if transition() != TransitionCallbackReturn.SUCCESS:
                self.destroy_node()
                raise MvMatcherError('the node cannot be started, see above')

    def _set_up(self) -> None:
        from std_srvs.srv import Trigger

        self.settings = declare(self, changeable=CHANGEABLE_OF_MAP)
        answer_changes(self, CHANGEABLE_OF_MAP, self._change)
        self._mailbox: Mailbox[Callable[[], None]] = self._new_mailbox()
        self._outputs = MapPublishers(self, self.settings)
        # What awaits something holds up the others of its group, if that is not reentrant.
        awaiting = ReentrantCallbackGroup()
        for service, answer in (
            ('~/save_map', lambda session: session.save()),
            ('~/load_map', lambda session: self._shown(session.load())),
            ('~/reset', lambda session: self._shown(session.reset())),
        ):
            self.create_service(Trigger, service, self._answering(answer), callback_group=awaiting)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(_REPORT_PERIOD_S, self._report, clock=steady)
        self.create_timer(_TF_PERIOD_S, self._repeat, clock=steady)

    def _new_mailbox(self) -> Mailbox[Callable[[], None]]:
        # As many messages may wait as the odometry keeps: none is lost that was there.
        return Mailbox(10 * self.settings.ros.keyframe_history)

    # ---------------------------------------- life

    @said
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe; networks and map are read with the first keyframe, which names its sensor."""
        from geometry_msgs.msg import PoseWithCovarianceStamped
        from rclpy.qos import DurabilityPolicy, QoSProfile
        from std_msgs.msg import UInt8MultiArray

        if self._busy():
            raise MvMatcherError('the work from before is not finished yet')
        history = QoSProfile(
            depth=self.settings.ros.keyframe_history,
            durability=DurabilityPolicy.TRANSIENT_LOCAL,
        )
        if self._outputs.may_have_tf and not self.settings.ros.publish_tf:
            odom = self.settings.ros.frames.odom
            self._odometry = MotionGuess(self, odom, _TF_WAIT_S, _TF_KEPT_S)
        self._mailbox = self._new_mailbox()
        self._stopping = threading.Event()  # of this thread: one that hangs stays stopped
        self._worker = threading.Thread(target=self._work, name='mapping', daemon=True)
        self._worker.start()
        self._inputs = [
            self.create_subscription(UInt8MultiArray, 'keyframes', self._on_keyframe, history),
            self.create_subscription(PoseWithCovarianceStamped, 'initialpose', self._on_pose, 1),
        ]
        return super().on_activate(state)

    @said
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe; the keyframe in work is finished, and the map saved."""
        self._deactivate()
        return super().on_deactivate(state)

    @said
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free map and networks."""
        if self._busy():
            raise MvMatcherError('the work from before is not finished yet')
        self._session, self._begun, self._models = None, None, None
        self._last, self._check, self._map_from_odom = None, None, None
        self._problem = self._advice = ''
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return super().on_cleanup(state)

    @said
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """From any state."""
        self._deactivate()
        return super().on_shutdown(state)

    @said
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """A transition failed: nothing of it goes on, and it may be tried again."""
        self._deactivate()
        return super().on_error(state)

    def _deactivate(self) -> None:
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        self._inputs = []
        self.close()
        if not self._busy():
            self._show(latch=True)
        if self._odometry is not None:
            self._odometry.close()
            self._odometry = None
        self._answer_late(lambda until_s: True, _INACTIVE)

    def close(self) -> None:
        """Stop the worker; the keyframe in work is finished, and the map saved."""
        again = self._stopping.is_set()  # in vain: it is not waited for a second time
        self._stopping.set()
        self._mailbox.close()
        worker = self._worker
        if worker is None or worker is threading.current_thread():
            return
        worker.join(timeout=0.0 if again else _SERVICE_S)
        if worker.is_alive() and not again:
            self.get_logger().error(
                f'the keyframe in work is not finished after {_SERVICE_S:g} s: the map is not '
                'saved'
            )

    def _busy(self) -> bool:
        return self._worker is not None and self._worker.is_alive()

    def destroy_node(self) -> None:
        """Stop and free everything."""
        self.close()
        super().destroy_node()

    # ---------------------------------------- in the executor's thread: nothing here may wait

    def _on_keyframe(self, message: Any) -> None:
        self._counts['received'] += 1
        self._mailbox.put(lambda: self._take(message))

    def _on_pose(self, message: Any) -> None:
        pose = matrix_from_pose(message.pose.pose)
        frame, ours = message.header.frame_id, self.settings.ros.frames.map
        if frame not in ('', ours):
            self.get_logger().warning(f'initialpose in "{frame}": want "{ours}", not used')
            return
        self._mailbox.put(lambda: self._expect(pose))

    def _answering(self, ask: Callable[[MapSession], str]) -> Callable[[Any, Any], Any]:
        """A service that the worker answers, between two keyframes; the executor goes on."""

        async def serve(request: Any, response: Any) -> Any:
            response.success, response.message = False, _INACTIVE
            if not self._inputs:
                return response
            answer: Any = Future(executor=self.executor)

            def work() -> None:
                try:
                    session = self._session
                    waiting = False, 'no keyframe has come yet: there is no map'
                    found = waiting if session is None else (True, ask(session))
                except MvMatcherError as error:
                    found = False, str(error)
                if not answer.done():
                    answer.set_result(found)

            self._asked.append((time.monotonic() + _SERVICE_S, answer))
            self._mailbox.put(work)
            response.success, response.message = await answer
            return response

        return serve

    def _answer_late(self, is_late: Callable[[float], bool], words: str) -> None:
        """Answer for the worker whoever waits too long."""
        for until_s, answer in self._asked:
            if is_late(until_s) and not answer.done():
                answer.set_result((False, words))
        self._asked = [asked for asked in self._asked if not asked[1].done()]

    def _repeat(self) -> None:
        session, map_from_odom = self._session, self._map_from_odom
        known = session is not None and session.map_from_odom is not None
        if self._inputs and known and map_from_odom is not None:
            self._outputs.transform(self.get_clock().now().nanoseconds, map_from_odom)
        if self._inputs and session is not None and self._outputs.due():
            self._mailbox.put(self._show)
        now_s = time.monotonic()
        self._answer_late(lambda until_s: now_s > until_s, 'still busy')

    def _change(self) -> None:
        self._outputs.change(self.settings)
        if self._session is not None:
            self._session.change(self.settings)

    def _report(self) -> None:
        session, idle, problem = self._session, '', self._problem
        if not self._inputs:
            idle = 'not active: waits for a lifecycle manager (ros.autostart is off)'
        elif not problem and self._last is None:
            topic = self.resolve_topic_name('keyframes')
            if not self.count_publishers(topic):
                problem = f'nobody publishes {topic}: set ros.publish_keyframes of the odometry'
        advice = [self._advice]
        if session is not None and session.unsaved:
            problem = '; '.join(
                filter(None, (problem, f'the map is not saved: {session.unsaved}'))
            )
            self.get_logger().error(problem, throttle_duration_sec=REPEAT_S)
        if session is not None and session.keeps:
            advice.append('the map is not saved by itself since ~/reset: ~/save_map does')
        waiting = {'waiting': len(self._mailbox), 'dropped': self._mailbox.dropped}
        counts = {**self._counts, **waiting}
        if session is not None:
            counts['keyframes'] = len(session.world)
        words = '; '.join(filter(None, advice))
        self._outputs.diagnose(self._last, problem, words, counts, idle)

    # ---------------------------------------- in the worker thread

    def _work(self) -> None:
        if self.settings.runtime.threads:
            torch.set_num_threads(self.settings.runtime.threads)
        stopping = self._stopping
        try:
            while not stopping.is_set():
                job = self._mailbox.take(timeout_s=0.2)
                if job is not None:
                    job()
        except Exception as error:  # kept, and raised by the main thread: a thread dies in silence
            if not self.context.ok():
                return  # the publishers are gone: the process is ending
            self.failure = error
            self.get_logger().fatal(f'mapping ends: {_detail(error)}')
            self.context.try_shutdown()
            return
        session = self._session
        if session is not None:
            self._save_at_the_end(session)

    def _save_at_the_end(self, session: MapSession) -> None:
        try:
            self.get_logger().info(session.save_unasked())
            self.failure = None  # an end before this one may have failed
        except Exception as error:  # kept: the exit code of the process
            self.failure = error
            self.get_logger().error(f'the map is not saved: {_detail(error)}')

    def _shown(self, words: str) -> str:
        """What a service has to tell, once the map that there is now can be seen."""
        session = self._session
        assert session is not None
        self._map_from_odom = None
        self._show(latch=True)
        self.get_logger().info(words)
        return words

    def _show(self, latch: bool = False) -> None:
        if self._session is not None:
            now_ns = self.get_clock().now().nanoseconds
            self._outputs.show(now_ns, self._session.world, latch)

    def _take(self, message: Any) -> None:
        try:
            sent = keyframe_from_message(message)
        except SourceError as error:
            self._counts['unreadable'] += 1
            self.get_logger().warning(str(error), throttle_duration_sec=REPEAT_S)
            return
        if self._session is None and not self._begin(sent):
            return
        session, begun = self._session, self._begun
        assert session is not None
        assert begun is not None
        self._problem = _difference(sent, begun)
        if self._problem:
            self._counts['of another camera or detector'] += 1
            self.get_logger().error(self._problem, throttle_duration_sec=REPEAT_S)
            return
        taken = session.take(sent.record, sent.run, hurry=len(self._mailbox) > 1)
        if taken is None:
            self._counts['known already'] += 1
            return
        if taken.status is Status.LOST and (
            self._last is None or self._last.status is not Status.LOST
        ):
            self.get_logger().warning(f'lost on the map: {taken.message}')
        self._last = taken
        self._map_from_odom = self._fitting(taken.map_from_odom, sent)
        self._outputs.publish(taken, session.world)
        self._check_camera(sent)

    def _fitting(self, map_from_odom: Array | None, sent: SentKeyframe) -> Array | None:
        """map → odom, where odom is that of who publishes it; as before where TF says nothing,
        none where it is not asked for."""
        if map_from_odom is None or self._odometry is None:
            return map_from_odom
        if not self._outputs.has_tf:
            return None
        stamp_ns = sent.record.stamp_ns
        if stamp_ns < self._newest_ns - self.settings.ros.clock_jump_s * 1e9:
            self._odometry.clear()
            self._newest_ns = stamp_ns
        self._newest_ns = max(stamp_ns, self._newest_ns)
        odom_from_body = self._odometry.at(stamp_ns, sent.body_frame)
        if odom_from_body is None:
            self.get_logger().warning(
                f'map -> odom stays as it is (ros.publish_tf is off): {self._odometry.why}',
                throttle_duration_sec=REPEAT_S,
            )
            return self._map_from_odom
        map_from_body = map_from_odom @ sent.record.odom_from_body.numpy()
        found: Array = map_from_body @ np.linalg.inv(odom_from_body)
        return found

    def _begin(self, sent: SentKeyframe) -> bool:
        """Networks and map, once it is known what the keyframes are of."""
        settings = self.settings.model_copy(update={'sensor': sent.sensor})
        self._outputs.odom = sent.odom_frame
        if self._odometry is not None:
            self._odometry.frame = sent.odom_frame
        if self._models is None or self._models[0] != sent.sensor:
            self._models = sent.sensor, Models.of(settings)
        models = self._models[1]
        ours = detector_of(models)
        if ours != sent.detector:
            self._problem = (
                f'keyframes come from a detector with the hash {sent.detector[:12] or "none"}, '
                f'this node has {ours[:12] or "none"}: give both nodes the same detector.*'
            )
            self.get_logger().error(self._problem, throttle_duration_sec=REPEAT_S)
            return False
        self._session, self._begun = MapSession(settings, sent.rig, models), sent
        self._session.change(self.settings)  # what was set while a map was read
        self._problem = ''
        world = self._session.world
        grows = 'grows' if settings.mapping.grow else 'does not grow'
        self.get_logger().info(
            f'map of {len(world)} keyframes, it {grows}; {sent.sensor}, '
            f'{self.settings.ros.frames.map} -> {sent.odom_frame}'
        )
        camera, known = sent.rig.cameras[0], world.known_rig(sent.rig).cameras[0]
        if (known.model, known.distortion) != (camera.model, camera.distortion):
            self._advise(
                f'the map was made with another distortion, {in_words(known)}: give the '
                'camera that one, or poses are off where the two differ'
            )
        elif settings.distortion_check.enabled and sent.sensor != 'stereo':
            self._check = DistortionCheck(settings.distortion_check, sent.rig.cameras[0])
        return True

    def _check_camera(self, sent: SentKeyframe) -> None:
        """Here and not in the odometry's node: it takes half a second every ten keyframes."""
        if self._check is None:
            return
        self._check.take(sent.record)
        if self._check.sure is not None:
            self._advise(advice(self._check.sure, sent.rig.cameras[0]))
            self._check = None

    def _advise(self, words: str) -> None:
        self._advice = words
        self.get_logger().warning(words)

    def _expect(self, map_from_robot: Array) -> None:
        """A pose with axes of REP-103, as RViz gives it; those of the body may be optical."""
        if self._session is None or self._begun is None:
            self.get_logger().warning('initialpose: no keyframe has come yet')
            return
        optical = self._begun.rig.body_axes == 'optical'
        robot_from_body = REP103_FROM_OPTICAL if optical else np.eye(4)
        self._session.expect(np.asarray(map_from_robot @ robot_from_body, np.float64))


def _detail(error: Exception) -> str:
    """A sentence for an error of this package, for any other where it comes from."""
    if isinstance(error, MvMatcherError):
        return str(error)
    return ''.join(traceback.format_exception(error))


def _difference(sent: SentKeyframe, begun: SentKeyframe) -> str:
    """Why a keyframe does not belong to the map of another; empty where it does."""
    if sent.detector != begun.detector:
        what = f'a detector with the hash {sent.detector[:12] or "none"}'
        before = begun.detector[:12] or 'none'
    elif sent.sensor != begun.sensor:
        what, before = sent.sensor, begun.sensor
    else:
        found, known = ([_words(c) for c in one.rig.cameras] for one in (sent, begun))
        if found == known and sent.rig.body_axes == begun.rig.body_axes:
            return ''
        differing = [(a, b) for a, b in zip(found, known, strict=False) if a != b]
        counts = f'{len(found)} cameras', f'{len(known)} cameras'
        what, before = differing[0] if differing else counts
    return f'keyframes come from {what}, the map began with {before}: start this node again'


def _words(camera: Camera) -> str:
    size = f'{camera.name} {camera.width}x{camera.height} {camera.model}'
    mount = np.round(camera.body_from_camera[:3], 6).ravel().tolist()
    return f'{size} {[*camera.intrinsics, *camera.distortion]} at {mount}'
