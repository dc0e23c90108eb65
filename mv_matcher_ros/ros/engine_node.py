# SPDX-License-Identifier: Apache-2.0
"""The live odometry node: topics → frames → engine → topics, with a managed life.

Callbacks only leave messages in a mailbox; one worker thread (`odometry_worker`) does the rest.
Newest frame wins, or with `ros.lossless` every frame is answered in order.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import torch
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Rig
from mv_matcher_ros.errors import MvMatcherError
from mv_matcher_ros.models.choice import Models
from mv_matcher_ros.ros.diagnosis import Watch, clock_problem, missing
from mv_matcher_ros.ros.health import Health
from mv_matcher_ros.ros.inputs import Inputs
from mv_matcher_ros.ros.messages import diagnostics_message
from mv_matcher_ros.ros.odometry_worker import EngineFactory, OdometryWorker
from mv_matcher_ros.ros.parameters import CHANGEABLE, answer_changes, declare
from mv_matcher_ros.ros.publishers import Publishers
from mv_matcher_ros.ros.transitions import said
from mv_matcher_ros.runner import Engine

_REPORT_PERIOD_S = 1.0  # of diagnostics, and so what is missing is said within 2 s


def odometry_engine(settings: Settings, rig: Rig, models: Models | None = None) -> Engine:
    """The engine of this package; models are read anew where none are given."""
    from mv_matcher_ros.odometry.engine import OdometryEngine

    return OdometryEngine(settings, rig, models=models, live=not settings.ros.lossless)


class OdometryNode(LifecycleNode):
    """Visual odometry of mono, stereo or RGB-D topics (`inputs.TOPICS`, relative names).

    Publishes `odometry`, `path`, `~/landmarks`, `~/tracks`, `~/state`, `/diagnostics` and TF, and
    `~/keyframes` if a map is to be made of them; serves `~/reset`, `~/pause`, `~/resume` and
    `~/adapt`.

    Configuring reads the weights and runs the networks once, activating subscribes, deactivating
    unsubscribes (odom goes on from the last pose when it is active again), cleaning up frees
    engine and networks. With `ros.autostart` the constructor configures and activates.

    Args:
        engine_factory: makes the engine when the cameras are known; None: `odometry_engine` with
            the networks that configuring has read.
        name: of the node.
        node_arguments: of `rclpy.node.Node`, e.g. `parameter_overrides`.

    Attributes:
        failure: the error that ended the worker thread, None while all is well.

    Raises:
        SettingsError: a parameter is unknown or out of range.
        MvMatcherError: weights cannot be read, or TF is needed, and tf2_msgs is not installed.
    """

    def __init__(
        self,
        engine_factory: EngineFactory | None = None,
        name: str = 'odometry',
        **node_arguments: Any,
    ) -> None:
        super().__init__(name, **node_arguments)
        self.failure: Exception | None = None
        self._engine_factory = engine_factory
        self._worker: OdometryWorker | None = None
        self._inputs: Inputs | None = None
        self._refused: MvMatcherError | None = None
        try:
            self._set_up()
            if self.settings.ros.autostart:
                self._start()
        except MvMatcherError:
            super().destroy_node()
            raise

    def _set_up(self) -> None:
        from std_srvs.srv import Trigger

        self.settings = declare(self)
        self._health = Health(self.get_logger())
        self._watch = Watch(self.settings)
        self._outputs = Publishers(self, self.settings)
        for service, answer in (
            ('~/reset', self._on_reset),
            ('~/pause', self._on_pause),
            ('~/resume', self._on_resume),
            ('~/adapt', self._on_adapt),
        ):
            self.create_service(Trigger, service, self._answering(answer))
        answer_changes(self, CHANGEABLE, self._change)
        # A steady clock: with use_sim_time the node's own stands still until somebody plays.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(_REPORT_PERIOD_S, self._report, clock=steady)

    def _start(self) -> None:
        """Configure and activate without a manager.

        Raises:
            MvMatcherError: why it cannot be configured.
        """
        for transition in (self.trigger_configure, self.trigger_activate):
            if transition() != TransitionCallbackReturn.SUCCESS:
                raise self._refused or MvMatcherError('the node cannot be started, see above')

    # ---------------------------------------- life

    @said
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Weights, and a first run of the networks."""
        try:
            make = self._engine_factory or self._factory_with_models()
            self._worker = OdometryWorker(
                self, self.settings, make, self._outputs, self._health, self._fail
            )
        except MvMatcherError as error:
            self._refused = error
            self.get_logger().error(f'not configured: {error}')
            return TransitionCallbackReturn.FAILURE
        self._health.problem = ''
        return super().on_configure(state)

    def _factory_with_models(self) -> EngineFactory:
        models = Models.of(self.settings)
        models.warm_up()
        return lambda settings, rig: odometry_engine(settings, rig, models)

    @said
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe."""
        assert self._worker is not None
        if self._worker.running:
            raise MvMatcherError('the frame in work from before is not finished yet')
        self._inputs = Inputs(self, self.settings, self._worker.take)
        self._worker.start(self._inputs)
        return super().on_activate(state)

    @said
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe; the frame in work is finished."""
        self._deactivate()
        return super().on_deactivate(state)

    @said
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the engine and its networks."""
        self._clean_up()
        return super().on_cleanup(state)

    @said
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """From any state."""
        self._deactivate()
        self._clean_up()
        return super().on_shutdown(state)

    @said
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """A transition failed: nothing is left of it, and it may be tried again."""
        self._deactivate()
        self._clean_up()
        return super().on_error(state)

    def _deactivate(self) -> None:
        if self._inputs is not None:
            self._inputs.close()
            self._inputs = None
        if self._worker is not None:
            self._worker.stop()

    def _clean_up(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()
            self._outputs.clear_path()
        del worker
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _fail(self, error: Exception) -> None:
        """The worker's thread has ended: so does the process, for somebody to start it again."""
        self.failure = error
        self.context.try_shutdown()

    def close(self) -> None:
        """Stop the worker thread; the frame in work is finished."""
        if self._worker is not None:
            self._worker.close()

    def destroy_node(self) -> None:
        """Stop and free everything."""
        self.close()
        super().destroy_node()

    # ---------------------------------------- in the executor's thread: nothing here may wait

    def _answering(self, ask: Callable[[OdometryWorker], tuple[bool, str]]) -> Any:
        """A service of the worker, if there is one."""

        def serve(request: Any, response: Any) -> Any:
            worker = self._worker
            unconfigured = False, 'the node is not configured'
            response.success, response.message = unconfigured if worker is None else ask(worker)
            return response

        return serve

    def _on_reset(self, worker: OdometryWorker) -> tuple[bool, str]:
        worker.reset_wanted.set()
        return True, 'reset before the next frame'

    def _on_pause(self, worker: OdometryWorker) -> tuple[bool, str]:
        worker.paused.set()
        return True, 'frames are not processed until ~/resume'

    def _on_resume(self, worker: OdometryWorker) -> tuple[bool, str]:
        worker.paused.clear()
        return True, 'frames are processed'

    def _on_adapt(self, worker: OdometryWorker) -> tuple[bool, str]:
        return worker.adaptation.start()

    def _change(self) -> None:
        self._outputs.change(self.settings)
        if self._worker is not None:
            self._worker.change(self.settings)

    def _report(self) -> None:
        """Once a second: say what is missing (throttled), publish diagnostics."""
        worker, inputs, now_s = self._worker, self._inputs, time.monotonic()
        problems = [self._health.problem, clock_problem(self)]
        warnings: dict[str, str] = {}
        if inputs is not None:
            problems += missing(inputs, self, self.settings.ros.sync_slop_s, now_s)
            warnings = self._watch.warnings(inputs, self._health, now_s)
            if not any(problems) and not self._idle:
                problems.append(self._health.stuck(now_s))
        problem = '; '.join(filter(None, problems))
        self._health.say(problem)
        self._health.warn(warnings)
        values: dict[str, object] = {'lifecycle': self._life, 'sensor': self.settings.sensor}
        if worker is not None:
            metric = 'metres' if worker.metric else 'arbitrary: mono poses have no metric scale'
            values |= {
                'scale': metric,
                'policy': 'lossless' if self.settings.ros.lossless else 'newest frame',
                **worker.networks,
                **worker.learned,
                **worker.counters(),
                **self._health.values(),
                **worker.adaptation.values(),
            }
        for topic, policy in inputs.incompatible_qos.items() if inputs is not None else ():
            values[f'incompatible QoS on {topic}'] = policy
        now = self.get_clock().now().to_msg()
        name = self.get_fully_qualified_name()
        self._outputs.diagnostics.publish(
            diagnostics_message(
                now, name, self._health.last, problem, values, self._idle, list(warnings.values())
            )
        )

    @property
    def _life(self) -> str:
        if self._inputs is not None:
            return 'active'
        return 'unconfigured' if self._worker is None else 'inactive'

    @property
    def _idle(self) -> str:
        """Why nothing is done, where that is as somebody wants it."""
        if self._inputs is None:
            return f'{self._life}: waits for a lifecycle manager (ros.autostart is off)'
        paused = self._worker is not None and self._worker.paused.is_set()
        return 'paused by ~/pause' if paused else ''
