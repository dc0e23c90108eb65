# SPDX-License-Identifier: Apache-2.0
"""The thread that turns messages into estimates: it builds the engine when the cameras are known,
converts, estimates and publishes."""

from __future__ import annotations

import threading
import traceback
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Array, Estimate, Rig, Status
from mv_matcher_ros.errors import (
    CalibrationError,
    MvMatcherError,
    SettingsError,
    SourceError,
)
from mv_matcher_ros.files.images import read_mask
from mv_matcher_ros.geometry.depth_registration import DepthRegistration
from mv_matcher_ros.odometry.keyframe_record import KeyframeRecord
from mv_matcher_ros.ros.adaptation import Adaptation
from mv_matcher_ros.ros.continuity import Continuity
from mv_matcher_ros.ros.frames import Mask, frame_from_messages
from mv_matcher_ros.ros.health import REPEAT_S, Health
from mv_matcher_ros.ros.inputs import Inputs, MessageSet
from mv_matcher_ros.ros.keyframe_messages import SentKeyframe
from mv_matcher_ros.ros.live_rig import LiveRig
from mv_matcher_ros.ros.mailbox import Mailbox
from mv_matcher_ros.ros.mounting import MotionGuess
from mv_matcher_ros.ros.publishers import Publishers
from mv_matcher_ros.runner import Engine

EngineFactory = Callable[[Settings, Rig], Engine]
_POLL_S = 0.02  # while waiting for calibration and TF
_PATIENCE_S = 10.0  # for the frame in work, at the end
_PAUSED = 'paused'


class OdometryWorker:
    """Frames of the mailbox through the engine, in order.

    It may be started and stopped again; the engine, once built, and where odom is, stay.

    Args:
        node: logger and context.
        settings: of the node, as it was configured.
        engine_factory: makes the engine when the cameras are known.
        outputs: of the node.
        health: of the node.
        fail: called in the thread with the error that ends it.

    Attributes:
        mailbox: where callbacks leave messages.
        adaptation: keeps frames if that is wanted.
        paused: frames are answered, not processed.
        reset_wanted: begin anew before the next frame.

    Raises:
        SettingsError: the frame of the guess is that of odom.
        MvMatcherError: tf2_msgs is not installed, or the cameras cannot be known (`LiveRig`).
    """

    def __init__(
        self,
        node: Any,
        settings: Settings,
        engine_factory: EngineFactory,
        outputs: Publishers,
        health: Health,
        fail: Callable[[Exception], None],
    ) -> None:
        self._node, self._settings, self._outputs = node, settings, outputs
        self._engine_factory, self._health, self._fail = engine_factory, health, fail
        self._logger = node.get_logger()
        self._engine: Engine | None = None
        self._rig: Rig | None = None
        self._masks: list[Mask] = []
        self._register: DepthRegistration | None = None
        self._continuity: Continuity | None = None
        self._last_stamp_ns: int | None = None
        self._run = uuid.uuid4().hex
        self._finish: Callable[[], None] = lambda: None
        self._inputs: Inputs | None = None
        self._before: Counter[str] = Counter()  # what came through inputs that are closed
        self._infos: list[Any] = []  # that the engine was made from
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self.mailbox = self._new_mailbox()
        self.adaptation = Adaptation(settings, self._logger)
        self.paused = threading.Event()
        self.reset_wanted = threading.Event()
        self._live_rig = LiveRig(node, settings)
        self._guess: MotionGuess | None = None
        if settings.ros.guess_frame:
            if settings.ros.guess_frame == settings.ros.frames.odom:
                raise SettingsError(
                    f'ros.guess_frame and ros.frames.odom are both "{settings.ros.frames.odom}": '
                    "a frame has one parent; call this odometry's frame otherwise"
                )
            self._guess = MotionGuess(node, settings.ros.guess_frame, settings.ros.guess_wait_s)

    def _new_mailbox(self) -> Mailbox[MessageSet]:
        ros = self._settings.ros
        return Mailbox(ros.queue_size if ros.lossless else 1)

    # ---------------------------------------- in the executor's thread: nothing here may wait

    def take(self, taken: MessageSet) -> None:
        """Messages of one time have come."""
        lost = self.mailbox.put(taken)
        if lost is not None and self._settings.ros.lossless:
            waiting = f'more than ros.queue_size = {self._settings.ros.queue_size} frames wait'
            self._skip(lost, 'queue full', f'{waiting}: whoever plays must wait for ~/state')

    def change(self, settings: Settings) -> None:
        """Take settings that were changed while the node runs."""
        from mv_matcher_ros.odometry.engine import OdometryEngine

        self._settings = settings
        if isinstance(self._engine, OdometryEngine):
            self._engine.change(settings)

    def start(self, inputs: Inputs) -> None:
        """Work on what comes from these topics; the thread from before has ended."""
        self._before = self._come()
        self._health.starts()
        if self._engine is not None:
            inputs.used = self._infos
        dropped = self.mailbox.dropped
        self.mailbox = self._new_mailbox()
        self.mailbox.dropped = dropped
        self._inputs = inputs
        self._stopping = threading.Event()  # of this thread: one that hangs stays stopped
        self._thread = threading.Thread(target=self._work, name='odometry', daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """The frame in work is finished; those that wait are not."""
        again = self._stopping.is_set()  # in vain: it is not waited for a second time
        self._stopping.set()
        self.mailbox.close()
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        thread.join(timeout=0.0 if again else _PATIENCE_S)
        if thread.is_alive() and not again:
            self._logger.error(f'the frame in work is not finished after {_PATIENCE_S:g} s')

    def close(self) -> None:
        """Stop for good."""
        self.stop()
        self.adaptation.close()
        self._live_rig.close()
        if self._guess is not None:
            self._guess.close()

    # ---------------------------------------- in either thread

    @property
    def running(self) -> bool:
        """Whether the thread lives."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def networks(self) -> dict[str, str]:
        """Where and with which weights networks run; nothing before the cameras are known."""
        networks = {} if self._engine is None else self._engine.networks
        return {
            f'{part} network': f'{use["weights"]} on {use["place"]} (sha256 {use["sha256"][:12]})'
            for part, use in networks.items()
        }

    @property
    def learned(self) -> dict[str, str]:
        """What of the calibration turned out otherwise, as settings to begin with next time."""
        from mv_matcher_ros.odometry.engine import OdometryEngine

        engine = self._engine
        found = engine.rig_correction if isinstance(engine, OdometryEngine) else None
        return {} if found is None else {'stereo.disparity_error_px': found.disparity_error_px}

    @property
    def metric(self) -> bool:
        """Whether lengths are metres."""
        last = self._health.last
        return self._settings.sensor != 'mono' if last is None else last.metric

    def counters(self) -> dict[str, int]:
        """What came, and what became of it."""
        come = self._come()
        return {
            'received': come['received'],
            'dropped': self.mailbox.dropped,
            'unsynchronised': come['unsynchronised'],
            **self._health.counts,
        }

    def _come(self) -> Counter[str]:
        if self._inputs is None:
            return Counter()
        come = {'received': self._inputs.sets, 'unsynchronised': self._inputs.unsynchronised}
        return self._before + Counter(come)

    def _skip(self, taken: MessageSet, kind: str, why: str) -> None:
        """Count, log and answer a frame that the engine does not see."""
        self._health.skipped(kind, '' if kind == _PAUSED else why)
        self._logger.warning(f'frame skipped: {why}', throttle_duration_sec=REPEAT_S)
        nothing = Estimate(taken.stamp_ns, Status.INITIALISING, metric=self.metric)
        self._outputs.skip(nothing, self.counters(), taken.received_s, why)

    # ---------------------------------------- in the worker thread

    def _work(self) -> None:
        # Here and not in the constructor: OpenMP keeps the number of threads for each thread.
        # OpenCV's number is the process's own; the engine sets it.
        if self._settings.runtime.threads:
            torch.set_num_threads(self._settings.runtime.threads)
        stopping = self._stopping
        try:
            while not stopping.is_set():
                if self._engine is None and not self._build_engine():
                    stopping.wait(_POLL_S)
                    continue
                taken = self.mailbox.take(timeout_s=0.2)
                if taken is not None:
                    self._health.begins()
                    self._handle(taken)
                    self._health.ends()
            self._finish()
        except Exception as error:  # kept, and raised by the main thread: a thread dies in silence
            if not self._node.context.ok():
                return  # the publishers are gone: the process is ending
            detail = str(error) if isinstance(error, MvMatcherError) else traceback.format_exc()
            self._logger.fatal(f'odometry ends: {detail}')
            self._fail(error)

    def _build_engine(self) -> bool:
        """Make the rig and the engine once all for it is there; True when they are."""
        assert self._inputs is not None
        try:
            known = self._live_rig.look(self._inputs)
            if isinstance(known, str):
                self._health.problem = known
                return False
            rig = known.rig
            self._masks = self._read_masks(rig)
            engine = self._engine_factory(self._settings, rig)
            self._report_keyframes(engine)
        except CalibrationError as error:
            self._refuse(str(error))
            return False
        self._health.problem = ''
        self._continuity = Continuity(rig.odom_from_first_body)
        self._outputs.body = known.body
        self.adaptation.begin(rig)
        self._rig, self._engine, self._register = rig, engine, known.register
        self.change(self._settings)  # what was set while it was being made
        self._infos = self._inputs.used = list(self._inputs.camera_infos)
        self._announce(rig)
        return True

    def _read_masks(self, rig: Rig) -> list[Mask]:
        """The masks that hold for every frame.

        Raises:
            CalibrationError: one cannot be read, has another size, or one is missing.
        """
        paths = [path.strip() for path in self._settings.ros.mask_files.split(',') if path.strip()]
        cameras = rig.cameras[::2]
        if paths and len(paths) != len(cameras):
            raise CalibrationError(
                f'ros.mask_files names {len(paths)} files, {len(cameras)} are needed'
            )
        return [
            read_mask(path, (camera.width, camera.height))
            for path, camera in zip(paths, cameras, strict=False)
        ]

    def _report_keyframes(self, engine: Engine) -> None:
        """Records of keyframes go to whoever makes a map."""
        from mv_matcher_ros.odometry.engine import OdometryEngine

        if self._settings.ros.publish_keyframes and isinstance(engine, OdometryEngine):
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
                self._settings.sensor,
                self._rig,
                detector.get('describes', ''),
                self._outputs.body,
                self._settings.ros.frames.odom,
            )
        )

    def _refuse(self, why: str) -> None:
        """Say why the cameras cannot be used, and answer the frames that wait."""
        self._health.problem = why
        while (taken := self.mailbox.take(timeout_s=0.0)) is not None:
            self._skip(taken, 'calibration', why)

    def _announce(self, rig: Rig) -> None:
        cameras = ', '.join(f'{c.name} {c.width}x{c.height} {c.model}' for c in rig.cameras)
        apart_m = [rig.pair(first // 2).baseline_m for first in range(0, len(rig.cameras), 2)]
        baseline = (
            f', baseline {" m, ".join(f"{m:.4f}" for m in apart_m)} m' if any(apart_m) else ''
        )
        self._logger.info(
            f'{self._settings.sensor} odometry of {cameras}{baseline}; '
            f'poses are of "{self._outputs.body}" in "{self._settings.ros.frames.odom}"'
        )
        for part, use in self.networks.items():
            self._logger.info(f'{part}: {use}')
        body = self._settings.ros.frames.body
        if body not in ('', self._outputs.body):
            self._logger.info(
                f'for poses of "{body}" set ros.extrinsics_from_tf and publish its camera in TF'
            )
        if self._settings.sensor == 'mono':
            self._logger.warning('mono: poses have no metric scale')

    def _handle(self, taken: MessageSet) -> None:
        """One frame: what is wrong with its time, then image, estimate, answer."""
        assert self._engine is not None
        assert self._rig is not None
        assert self._continuity is not None
        assert self._inputs is not None
        if self.paused.is_set():
            self._skip(taken, _PAUSED, 'paused by ~/pause')
            return
        if self.reset_wanted.is_set():
            self.reset_wanted.clear()
            self._reset('as asked for by ~/reset')
            self._continuity.go_on(taken.received_s)
        if self._comes_too_late(taken):
            return
        self._last_stamp_ns = taken.stamp_ns
        self._outputs.camera = taken.images[0].header.frame_id
        topics = [stream.topic for stream in self._inputs.images]
        index = self._health.counts['processed']
        try:
            frame = frame_from_messages(
                taken, self._settings.sensor, self._rig, topics, index, self._masks, self._register
            )
            frame = replace(frame, guess=self._guess_at(taken.stamp_ns))
            estimate = self._continuity.apply(self._engine.process(frame), taken.received_s)
        except (SourceError, CalibrationError) as error:
            self._skip(taken, 'unusable image', str(error))
            return
        self.adaptation.offer(frame)
        self._health.processed(estimate)
        counters = self.counters()
        self._health.published(self._outputs.publish(frame, estimate, counters, taken.received_s))

    def _guess_at(self, stamp_ns: int) -> Array | None:
        """Where something else says that the body is."""
        if self._guess is None:
            return None
        guess = self._guess.at(stamp_ns, self._outputs.body)
        if guess is None:
            self._health.counts['without guess'] += 1
            self._logger.warning(self._guess.why, throttle_duration_sec=REPEAT_S)
        return guess

    def _comes_too_late(self, taken: MessageSet) -> bool:
        """Whether a later frame has been processed; where the clock was set back, begin anew."""
        assert self._continuity is not None
        if self._last_stamp_ns is None or taken.stamp_ns > self._last_stamp_ns:
            return False
        behind_s = (self._last_stamp_ns - taken.stamp_ns) * 1e-9
        if behind_s == 0.0:
            self._skip(taken, 'repeated stamp', 'its stamp is that of the frame before')
        elif behind_s <= self._settings.ros.clock_jump_s:
            self._skip(taken, 'late', f'its stamp is {behind_s:.3f} s before that of another')
        else:
            self._reset(f'stamps jumped back by {behind_s:.3f} s')
            if self._guess is not None:
                self._guess.clear()
            if self._node.get_parameter('use_sim_time').value:
                self._continuity.begin_again()  # so does everything that lives by this time
            else:
                # A robot goes on moving when its clock is set.
                self._continuity.go_on(taken.received_s)
            return False
        return True

    def _reset(self, why: str) -> None:
        assert self._engine is not None
        self._logger.warning(f'the odometry is reset: {why}')
        self._health.counts['resets'] += 1
        self._engine.reset()
        self._outputs.clear_path()
        self._last_stamp_ns = None
