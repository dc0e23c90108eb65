# SPDX-License-Identifier: Apache-2.0
"""The live odometry node: topics → frames → engine → topics.

Callbacks only leave messages in a mailbox; one worker thread builds the engine when the cameras
are known, converts, estimates and publishes. Newest frame wins, or with `ros.lossless` every frame
is answered in order.
"""

from __future__ import annotations

import threading
import traceback
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Array, Estimate, Rig, Status
from mv_matcher_ros.errors import CalibrationError, MvMatcherError, SettingsError, SourceError
from mv_matcher_ros.odometry.keyframe_record import KeyframeRecord
from mv_matcher_ros.ros.adaptation import Adaptation
from mv_matcher_ros.ros.calibration import is_rectified, rig_from_messages
from mv_matcher_ros.ros.continuity import Continuity
from mv_matcher_ros.ros.frames import frame_from_messages
from mv_matcher_ros.ros.health import REPEAT_S, Health
from mv_matcher_ros.ros.inputs import Inputs, MessageSet
from mv_matcher_ros.ros.keyframe_messages import SentKeyframe
from mv_matcher_ros.ros.mailbox import Mailbox
from mv_matcher_ros.ros.messages import diagnostics_message
from mv_matcher_ros.ros.mounting import CameraMounts
from mv_matcher_ros.ros.parameters import changed, declare
from mv_matcher_ros.ros.publishers import Publishers
from mv_matcher_ros.runner import Engine

EngineFactory = Callable[[Settings, Rig], Engine]
_REPORT_PERIOD_S = 1.0  # of diagnostics, and so what is missing is said within 2 s
_POLL_S = 0.02  # while waiting for calibration and TF


def odometry_engine(settings: Settings, rig: Rig) -> Engine:
    """The engine of this package."""
    from mv_matcher_ros.odometry.engine import OdometryEngine

    return OdometryEngine(settings, rig, live=not settings.ros.lossless)


class OdometryNode(Node):
    """Visual odometry of mono, stereo or RGB-D topics (`inputs.TOPICS`, relative names).

    Publishes `odometry`, `path`, `~/landmarks`, `~/tracks`, `~/state`, `/diagnostics` and TF, and
    `~/keyframes` if a map is to be made of them; serves `~/reset` and `~/adapt`.

    Args:
        engine_factory: makes the engine when the cameras are known.
        name: of the node.
        node_arguments: of `rclpy.node.Node`, e.g. `parameter_overrides`.

    Attributes:
        failure: the error that ended the worker thread, None while all is well.

    Raises:
        SettingsError: a parameter is unknown or out of range.
        MvMatcherError: TF is needed, and tf2_msgs is not installed.
    """

    def __init__(
        self,
        engine_factory: EngineFactory = odometry_engine,
        name: str = 'odometry',
        **node_arguments: Any,
    ) -> None:
        super().__init__(name, **node_arguments)
        self.failure: Exception | None = None
        self._engine_factory = engine_factory
        self._engine: Engine | None = None
        self._rig: Rig | None = None
        self._continuity: Continuity | None = None
        self._last_stamp_ns: int | None = None
        self._run = uuid.uuid4().hex
        self._finish: Callable[[], None] = lambda: None
        self._reset_wanted = threading.Event()
        self._stopping = threading.Event()
        self._worker = threading.Thread(target=self._work, name='odometry', daemon=True)
        try:
            self._set_up()
        except MvMatcherError:
            super().destroy_node()
            raise
        self._worker.start()

    def _set_up(self) -> None:
        from std_srvs.srv import Trigger

        self.settings = declare(self)
        ros = self.settings.ros
        self._health = Health(self.get_logger())
        self._mailbox: Mailbox[MessageSet] = Mailbox(ros.queue_size if ros.lossless else 1)
        self._outputs = Publishers(self, self.settings)
        self._mounts: CameraMounts | None = None
        if ros.extrinsics_from_tf and ros.frames.body:
            self._mounts = CameraMounts(self, ros.frames.body, ros.tf_timeout_s)
        self._inputs = Inputs(self, self.settings, self._take)
        self._adaptation = Adaptation(self.settings, self.get_logger())
        self.create_service(Trigger, '~/reset', self._on_reset)
        self.create_service(Trigger, '~/adapt', self._on_adapt)
        self.add_on_set_parameters_callback(self._on_parameters)
        # A steady clock: with use_sim_time the node's own stands still until somebody plays.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(_REPORT_PERIOD_S, self._report, clock=steady)

    def close(self) -> None:
        """Stop the worker thread; the frame in work is finished."""
        self._stopping.set()
        self._mailbox.close()
        if self._worker.is_alive() and self._worker is not threading.current_thread():
            self._worker.join(timeout=10.0)
            self._adaptation.close()

    def destroy_node(self) -> None:
        """Stop and free everything."""
        self.close()
        super().destroy_node()

    # ---------------------------------------- in the executor's thread: nothing here may wait

    def _take(self, taken: MessageSet) -> None:
        lost = self._mailbox.put(taken)
        if lost is not None and self.settings.ros.lossless:
            waiting = f'more than ros.queue_size = {self.settings.ros.queue_size} frames wait'
            self._skip(lost, 'queue full', f'{waiting}: whoever plays must wait for ~/state')

    def _on_reset(self, request: Any, response: Any) -> Any:
        self._reset_wanted.set()
        response.success, response.message = True, 'reset before the next frame'
        return response

    def _on_adapt(self, request: Any, response: Any) -> Any:
        response.success, response.message = self._adaptation.start()
        return response

    def _on_parameters(self, parameters: Any) -> Any:
        from rcl_interfaces.msg import SetParametersResult

        try:
            self.settings = changed(self.settings, parameters)
        except SettingsError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self._outputs.change(self.settings)
        return SetParametersResult(successful=True)

    def _report(self) -> None:
        """Once a second: say what is missing (throttled), publish diagnostics."""
        known = [self._health.problem] if self._health.problem else []
        problem = '; '.join([*known, *self._inputs.missing()])
        self._health.say(problem)
        metric = 'metres' if self._metric() else 'arbitrary: mono poses have no metric scale'
        values: dict[str, object] = {
            'sensor': self.settings.sensor,
            'scale': metric,
            'policy': 'lossless' if self.settings.ros.lossless else 'newest frame',
            **self._networks(),
            **self._counters(),
            **self._health.values(),
            **self._adaptation.values(),
        }
        for topic, policy in self._inputs.incompatible_qos.items():
            values[f'incompatible QoS on {topic}'] = policy
        now = self.get_clock().now().to_msg()
        name = self.get_fully_qualified_name()
        self._outputs.diagnostics.publish(
            diagnostics_message(now, name, self._health.last, problem, values)
        )

    # ---------------------------------------- in either thread

    def _counters(self) -> dict[str, int]:
        return {
            'received': self._inputs.sets,
            'dropped': self._mailbox.dropped,
            'unsynchronised': self._inputs.unsynchronised,
            **self._health.counts,
        }

    def _networks(self) -> dict[str, str]:
        """Where and with which weights networks run; nothing before the cameras are known."""
        networks = {} if self._engine is None else self._engine.networks
        return {
            f'{part} network': f'{use["weights"]} on {use["place"]} (sha256 {use["sha256"][:12]})'
            for part, use in networks.items()
        }

    def _metric(self) -> bool:
        last = self._health.last
        return self.settings.sensor != 'mono' if last is None else last.metric

    def _skip(self, taken: MessageSet, kind: str, why: str) -> None:
        """Count, log and answer a frame that the engine does not see."""
        self._health.counts[f'skipped: {kind}'] += 1
        self.get_logger().warning(f'frame skipped: {why}', throttle_duration_sec=REPEAT_S)
        nothing = Estimate(taken.stamp_ns, Status.INITIALISING, metric=self._metric())
        self._outputs.skip(nothing, self._counters(), taken.received_s, why)

    # ---------------------------------------- in the worker thread

    def _work(self) -> None:
        # Here and not in the constructor: OpenMP keeps the number of threads for each thread.
        # OpenCV's number is the process's own; the engine sets it.
        if self.settings.runtime.threads:
            torch.set_num_threads(self.settings.runtime.threads)
        try:
            while not self._stopping.is_set():
                if self._engine is None and not self._build_engine():
                    self._stopping.wait(_POLL_S)
                    continue
                taken = self._mailbox.take(timeout_s=0.2)
                if taken is not None:
                    self._handle(taken)
            self._finish()
        except Exception as error:  # kept, and raised by the main thread: a thread dies in silence
            if self._stopping.is_set() or not self.context.ok():
                return  # the publishers are gone: the process is ending
            self.failure = error
            detail = str(error) if isinstance(error, MvMatcherError) else traceback.format_exc()
            self.get_logger().fatal(f'odometry ends: {detail}')
            self.context.try_shutdown()

    def _build_engine(self) -> bool:
        """Make the rig and the engine once all for it is there; True when they are."""
        infos = list(self._inputs.camera_infos)
        if any(info is None for info in infos):
            return False
        frames = [info.header.frame_id or 'camera' for info in infos]
        mounts: list[Array] | None = None
        if self._mounts is not None:
            found = self._mounts.look_up(frames)
            if isinstance(found, str):
                self._health.problem = found
                return False
            mounts = found
        try:
            rig = rig_from_messages(
                infos,
                [stream.topic for stream in self._inputs.infos],
                rectified=is_rectified(self._inputs.images[0].topic),
                body_from_cameras=mounts,
            )
            engine = self._engine_factory(self.settings, rig)
            self._report_keyframes(engine)
        except CalibrationError as error:
            self._refuse(str(error))
            return False
        self._health.problem = ''
        self._continuity = Continuity(rig.odom_from_first_body)
        self._outputs.body = frames[0] if mounts is None else self.settings.ros.frames.body
        self._adaptation.begin(rig)
        self._rig, self._engine = rig, engine
        self._announce(rig)
        return True

    def _report_keyframes(self, engine: Engine) -> None:
        """Records of keyframes go to whoever makes a map."""
        from mv_matcher_ros.odometry.engine import OdometryEngine

        if self.settings.ros.publish_keyframes and isinstance(engine, OdometryEngine):
            self._finish = engine.finish
            engine.report_keyframes(self._on_keyframe)

    def _on_keyframe(self, record: KeyframeRecord) -> None:
        assert self._rig is not None
        assert self._continuity is not None
        detector = self._engine.networks.get('detector', {}) if self._engine is not None else {}
        moved = self._continuity.in_odom(record.odom_from_body.numpy())
        self._outputs.keyframe(
            SentKeyframe(
                replace(record, odom_from_body=torch.from_numpy(moved)),
                self._run,
                self.settings.sensor,
                self._rig,
                detector.get('describes', ''),
                self._outputs.body,
                self.settings.ros.frames.odom,
            )
        )

    def _refuse(self, why: str) -> None:
        """Say why the cameras cannot be used, and answer the frames that wait."""
        self._health.problem = why
        while (taken := self._mailbox.take(timeout_s=0.0)) is not None:
            self._skip(taken, 'calibration', why)

    def _announce(self, rig: Rig) -> None:
        cameras = ', '.join(f'{c.name} {c.width}x{c.height} {c.model}' for c in rig.cameras)
        baseline = f', baseline {rig.baseline_m:.4f} m' if rig.baseline_m else ''
        self.get_logger().info(
            f'{self.settings.sensor} odometry of {cameras}{baseline}; '
            f'poses are of "{self._outputs.body}" in "{self.settings.ros.frames.odom}"'
        )
        for part, use in self._networks().items():
            self.get_logger().info(f'{part}: {use}')
        body = self.settings.ros.frames.body
        if body not in ('', self._outputs.body):
            self.get_logger().info(
                f'for poses of "{body}" set ros.extrinsics_from_tf and publish its camera in TF'
            )
        if self.settings.sensor == 'mono':
            self.get_logger().warning('mono: poses have no metric scale')

    def _handle(self, taken: MessageSet) -> None:
        """One frame: what is wrong with its time, then image, estimate, answer."""
        assert self._engine is not None
        assert self._rig is not None
        assert self._continuity is not None
        if self._reset_wanted.is_set():
            self._reset_wanted.clear()
            self._reset('as asked for by ~/reset')
            self._continuity.go_on()
        last_ns = self._last_stamp_ns
        if last_ns is not None and taken.stamp_ns == last_ns:
            self._skip(taken, 'repeated stamp', 'its stamp is that of the frame before')
            return
        if last_ns is not None and taken.stamp_ns < last_ns:
            self._reset(f'stamps jumped back by {(last_ns - taken.stamp_ns) * 1e-9:.3f} s')
            self._continuity.begin_again()
        self._last_stamp_ns = taken.stamp_ns
        topics = [stream.topic for stream in self._inputs.images]
        index = self._health.counts['processed']
        try:
            frame = frame_from_messages(taken, self.settings.sensor, self._rig, topics, index)
            estimate = self._continuity.apply(self._engine.process(frame))
        except (SourceError, CalibrationError) as error:
            self._skip(taken, 'unusable image', str(error))
            return
        self._adaptation.offer(frame)
        self._health.processed(estimate)
        counters = self._counters()
        self._health.published(self._outputs.publish(frame, estimate, counters, taken.received_s))

    def _reset(self, why: str) -> None:
        assert self._engine is not None
        self.get_logger().warning(f'the odometry is reset: {why}')
        self._health.counts['resets'] += 1
        self._engine.reset()
        self._outputs.clear_path()
        self._last_stamp_ns = None
