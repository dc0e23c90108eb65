# SPDX-License-Identifier: Apache-2.0
"""The mapping node: keyframes of the odometry in, map → odom, the corrected path and a map out.

Callbacks only leave messages in a mailbox; one worker thread works on them in their order.
Odometry never waits for it, and either node may be started, stopped and started again alone.
"""

from __future__ import annotations

import gc
import threading
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from mv_matcher_ros.datatypes import Array, Status
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
from mv_matcher_ros.ros.parameters import declare

_REPORT_PERIOD_S = 1.0
# map → odom is said so often, whether it changed or not: TF wants it recent.
_TF_PERIOD_S = 0.05
# Work that a service asked for is waited for at most so long.
_SERVICE_S = 30.0


class MappingNode(LifecycleNode):
    """Makes a map of what an odometry node sees, or finds it on one (`mapping.grow`).

    Listens to `keyframes`, `initialpose`; publishes `map_path`, `~/landmarks`, `~/loops`,
    `~/state`, `/diagnostics` and TF map → odom; serves `~/save_map`, `~/load_map`, `~/reset`.
    Activating subscribes, deactivating saves the map, cleaning up frees it; with `ros.autostart`
    the constructor configures and activates.

    Args:
        name: of the node.
        node_arguments: of `rclpy.node.Node`.

    Attributes:
        failure: the error that ended the worker thread, None while all is well.

    Raises:
        SettingsError: a parameter is unknown or out of range.
    """

    def __init__(self, name: str = 'mapping', **node_arguments: Any) -> None:
        super().__init__(name, **node_arguments)
        self.failure: Exception | None = None
        self._session: MapSession | None = None
        self._last: Taken | None = None
        self._problem = ''
        self._check: DistortionCheck | None = None
        self._advice = ''  # on the calibration
        self._counts = {'received': 0, 'known already': 0, 'unreadable': 0}
        self._inputs: list[Any] = []
        self._stopping = threading.Event()
        self._worker: threading.Thread | None = None
        try:
            self._set_up()
        except MvMatcherError:
            super().destroy_node()
            raise
        if self.settings.ros.autostart:
            self.trigger_configure()
            self.trigger_activate()

    def _set_up(self) -> None:
        from std_srvs.srv import Trigger

        self.settings = declare(self)
        self._mailbox: Mailbox[Callable[[], None]] = self._new_mailbox()
        self._outputs = MapPublishers(self, self.settings)
        for service, answer in (
            ('~/save_map', lambda session: session.save()),
            ('~/load_map', lambda session: session.load()),
            ('~/reset', lambda session: session.reset()),
        ):
            self.create_service(Trigger, service, self._answering(answer))
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(_REPORT_PERIOD_S, self._report, clock=steady)
        self.create_timer(_TF_PERIOD_S, self._repeat, clock=steady)

    def _new_mailbox(self) -> Mailbox[Callable[[], None]]:
        # As many messages may wait as the odometry keeps: none is lost that was there.
        return Mailbox(10 * self.settings.ros.keyframe_history)

    # ---------------------------------------- life

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe; networks and map are read with the first keyframe, which names its sensor."""
        from geometry_msgs.msg import PoseWithCovarianceStamped
        from rclpy.qos import DurabilityPolicy, QoSProfile
        from std_msgs.msg import UInt8MultiArray

        history = QoSProfile(
            depth=self.settings.ros.keyframe_history,
            durability=DurabilityPolicy.TRANSIENT_LOCAL,
        )
        self._mailbox = self._new_mailbox()
        self._stopping = threading.Event()  # of this thread: one that hangs stays stopped
        self._worker = threading.Thread(target=self._work, name='mapping', daemon=True)
        self._worker.start()
        self._inputs = [
            self.create_subscription(UInt8MultiArray, 'keyframes', self._on_keyframe, history),
            self.create_subscription(PoseWithCovarianceStamped, 'initialpose', self._on_pose, 1),
        ]
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe; the keyframe in work is finished, and the map saved."""
        self._deactivate()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free map and networks."""
        self._session, self._last, self._check = None, None, None
        self._problem = self._advice = ''
        gc.collect()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """From any state."""
        self._deactivate()
        return super().on_shutdown(state)

    def _deactivate(self) -> None:
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        self._inputs = []
        self.close()

    def close(self) -> None:
        """Stop the worker; the keyframe in work is finished, and the map saved."""
        self._stopping.set()
        self._mailbox.close()
        worker, self._worker = self._worker, None
        if worker is not None and worker.is_alive() and worker is not threading.current_thread():
            worker.join(timeout=_SERVICE_S)

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
        """A service that the worker answers, between two keyframes."""

        def serve(request: Any, response: Any) -> Any:
            if self._worker is None:
                response.success, response.message = False, 'the node is not active'
                return response
            done = threading.Event()
            said: list[tuple[bool, str]] = []

            def work() -> None:
                try:
                    session = self._session
                    waiting = 'no keyframe has come yet: there is no map'
                    said.append((False, waiting) if session is None else (True, ask(session)))
                except MvMatcherError as error:
                    said.append((False, str(error)))
                finally:
                    done.set()

            self._mailbox.put(work)
            done.wait(_SERVICE_S)
            response.success, response.message = said[0] if said else (False, 'still busy')
            return response

        return serve

    def _repeat(self) -> None:
        session = self._session
        if self._inputs and session is not None and session.map_from_odom is not None:
            self._outputs.transform(self.get_clock().now().nanoseconds, session.map_from_odom)

    def _report(self) -> None:
        last = self._last
        problem = self._problem
        if not problem and not self._inputs:
            problem = 'not active: waits for a lifecycle manager (ros.autostart is off)'
        elif not problem and last is None:
            topic = self.resolve_topic_name('keyframes')
            if not self.count_publishers(topic):
                problem = f'nobody publishes {topic}: set ros.publish_keyframes of the odometry'
        counts = {**self._counts, 'dropped': self._mailbox.dropped}
        self._outputs.diagnose(last, problem, self._advice, counts)

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
            if self._session is not None:
                self.get_logger().info(self._session.save())
        except Exception as error:  # kept, and raised by the main thread: a thread dies in silence
            if stopping.is_set() or not self.context.ok():
                return
            self.failure = error
            detail = str(error) if isinstance(error, MvMatcherError) else traceback.format_exc()
            self.get_logger().fatal(f'mapping ends: {detail}')
            self.context.try_shutdown()

    def _take(self, message: Any) -> None:
        try:
            sent = keyframe_from_message(message)
        except SourceError as error:
            self._counts['unreadable'] += 1
            self.get_logger().warning(str(error), throttle_duration_sec=REPEAT_S)
            return
        if self._session is None and not self._begin(sent):
            return
        assert self._session is not None
        taken = self._session.take(sent.record, sent.run)
        if taken is None:
            self._counts['known already'] += 1
            return
        if taken.status is Status.LOST and (
            self._last is None or self._last.status is not Status.LOST
        ):
            self.get_logger().warning(f'lost on the map: {taken.message}')
        self._last = taken
        self._outputs.publish(taken, self._session.world)
        self._check_camera(sent)

    def _begin(self, sent: SentKeyframe) -> bool:
        """Networks and map, once it is known what the keyframes are of."""
        settings = self.settings.model_copy(update={'sensor': sent.sensor})
        self._outputs.odom = sent.odom_frame
        models = Models.of(settings)
        ours = detector_of(models)
        if ours != sent.detector:
            self._problem = (
                f'keyframes come from a detector with the hash {sent.detector[:12] or "none"}, '
                f'this node has {ours[:12] or "none"}: give both nodes the same detector.*'
            )
            self.get_logger().error(self._problem, throttle_duration_sec=REPEAT_S)
            return False
        self._session = MapSession(settings, sent.rig, models)
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

    def _expect(self, map_from_body: Array) -> None:
        if self._session is None:
            self.get_logger().warning('initialpose: no keyframe has come yet')
            return
        self._session.expect(np.asarray(map_from_body, np.float64))
