# SPDX-License-Identifier: Apache-2.0
"""A node under test and a tester, each with a DDS participant of its own, over loopback."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Camera, Estimate, Frame, Rig, Status
from mv_matcher_ros.ros.dds_profile import apply_profile

# Nothing of a test leaves this machine, and two test runs do not hear each other.
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 100)
apply_profile()

# A parser of the ROS wheels uses a deprecated module of Python; loaded here, where it is no error.
with warnings.catch_warnings():
    warnings.simplefilter('ignore', DeprecationWarning)
    import rosidl_generator_py  # noqa: F401

PATIENCE_S = 30.0


class FakeEngine:
    """An engine that answers at once (or when it is let): pose x = index, one frame a metre."""

    def __init__(self, settings: Settings, rig: Rig) -> None:
        self.settings = settings
        self.rig = rig
        self.frames: list[Frame] = []
        self.resets = 0
        self.since_reset = 0
        self.networks: dict[str, dict[str, str]] = {}
        self.go = threading.Event()
        self.go.set()
        self.answer: Callable[[Frame, Estimate], Estimate] = lambda frame, estimate: estimate

    def process(self, frame: Frame) -> Estimate:
        assert self.go.wait(PATIENCE_S)
        pose = self.rig.odom_from_first_body
        pose[0, 3] += self.since_reset
        self.frames.append(frame)
        self.since_reset += 1
        estimate = Estimate(
            frame.stamp_ns,
            Status.TRACKING,
            pose,
            np.diag([1.0, 2, 3, 4, 5, 6]) + np.eye(6, k=1) * 0.1 + np.eye(6, k=-1) * 0.1,
            np.array([1.0, 0.0, 0.0, 0.0, 0.0, 0.5]),
            np.eye(6) * 0.01,
            metric=self.settings.sensor != 'mono',
            is_keyframe=True,
            counts={'inliers': 50},
            landmarks=np.arange(12, dtype=np.float32).reshape(4, 3),
            keyframes=np.stack([pose]),
        )
        return self.answer(frame, estimate)

    def reset(self) -> None:
        self.resets += 1
        self.since_reset = 0


class Bench:
    """A bench to try a node on: starts nodes, publishes, collects, waits for things to happen."""

    def __init__(self) -> None:
        import rclpy
        from rclpy.context import Context
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.node import Node

        self.contexts = [Context(), Context()]
        for context in self.contexts:
            rclpy.init(context=context)
        self.tester = Node('tester', context=self.contexts[0])
        self._executors = [SingleThreadedExecutor(context=c) for c in self.contexts]
        self._executors[0].add_node(self.tester)
        self._threads = [
            threading.Thread(target=self._spin, args=(e,), daemon=True) for e in self._executors
        ]
        for thread in self._threads:
            thread.start()
        self.engines: list[FakeEngine] = []
        self.nodes: list[Any] = []
        self._lonely: Any = None

    def _spin(self, executor: Any) -> None:
        from rclpy.executors import ExternalShutdownException, ShutdownException

        with contextlib.suppress(ExternalShutdownException, ShutdownException):
            executor.spin()

    @property
    def lonely(self) -> Any:
        """A node that nobody spins, in the default context, for code that spins by itself."""
        import rclpy

        if self._lonely is None:
            if not rclpy.ok():
                rclpy.init()
            self._lonely = rclpy.create_node('lonely')
        return self._lonely

    def fake_engine(self, settings: Settings, rig: Rig) -> FakeEngine:
        self.engines.append(FakeEngine(settings, rig))
        return self.engines[-1]

    def start(self, parameters: dict[str, Any] | None = None, **arguments: Any) -> Any:
        """An odometry node with a fake engine (unless another `engine_factory` is given)."""
        from rclpy.parameter import Parameter

        from mv_matcher_ros.ros.engine_node import OdometryNode

        arguments.setdefault('engine_factory', self.fake_engine)
        overrides = [Parameter(n, value=v) for n, v in (parameters or {}).items()]
        node = OdometryNode(parameter_overrides=overrides, context=self.contexts[1], **arguments)
        self.add(node)
        return node

    def add(self, node: Any) -> None:
        """Spin a node, until the end of the test."""
        self._executors[1].add_node(node)
        self.nodes.append(node)

    def collect(self, kind: Any, topic: str, qos: Any = 100) -> list[Any]:
        """A list that fills with the messages of a topic."""
        messages: list[Any] = []
        self._subscribe(kind, topic, messages.append, qos)
        return messages

    def states(self, topic: str = 'odometry/state') -> list[dict[str, Any]]:
        """A list that fills with the decoded states."""
        from std_msgs.msg import String

        states: list[dict[str, Any]] = []
        self._subscribe(String, topic, lambda m: states.append(json.loads(m.data)), 100)
        return states

    def _subscribe(self, kind: Any, topic: str, take: Callable[[Any], Any], qos: Any) -> None:
        """Subscribe, and wait until the node under test sends to this subscription too.

        That the tester has heard of a publisher does not say that the publisher has heard of the
        tester, and what is published before it has is lost.
        """
        self.tester.create_subscription(kind, topic, take, qos)
        self.wait(lambda: self.tester.count_publishers(topic) > 0, f'a publisher of {topic}')
        full_name = self.tester.resolve_topic_name(topic)
        writers = [p for n in self.nodes for p in n.publishers if p.topic_name == full_name]
        readers = sum(s.topic_name == full_name for s in self.tester.subscriptions)
        self.wait(
            lambda: all(writer.get_subscription_count() >= readers for writer in writers),
            f'the node to know the subscriber of {topic}',
        )

    def publisher(self, kind: Any, topic: str, qos: Any = 100, listeners: int = 1) -> Any:
        """A publisher that is matched with its listeners, and they with it.

        What a best-effort reader gets from a writer that it does not know yet, it throws away.
        """
        publisher = self.tester.create_publisher(kind, topic, qos)
        self.wait(
            lambda: publisher.get_subscription_count() >= listeners, f'a subscriber of {topic}'
        )
        full_name = self.tester.resolve_topic_name(topic)
        readers = [s for n in self.nodes for s in n.subscriptions if s.topic_name == full_name]
        if readers and hasattr(readers[0], 'get_publisher_count'):  # since Kilted
            self.wait(
                lambda: all(reader.get_publisher_count() for reader in readers),
                f'the node to know the publisher of {topic}',
            )
        return publisher

    def wait(self, happened: Callable[[], Any], what: str) -> None:
        """Wait until something has happened; fail after a long time."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not happened():
            assert time.monotonic() < deadline_s, f'waited {PATIENCE_S:g} s for {what}'
            time.sleep(0.005)

    def close(self) -> None:
        import rclpy

        for engine in self.engines:
            engine.go.set()
        for node in self.nodes:
            if hasattr(node, 'close'):
                node.close()
        for executor in self._executors:
            executor.shutdown()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        for node in [*self.nodes, self.tester]:
            node.destroy_node()
        for context in self.contexts:
            rclpy.try_shutdown(context=context)
        if self._lonely is not None:
            self._lonely.destroy_node()
            rclpy.try_shutdown()
        # A lifecycle node lets its handle go when it is collected; until then what another node of
        # its name logs goes to its /rosout.
        self.nodes.clear()
        gc.collect()


@pytest.fixture(autouse=True)
def _log_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path_factory.getbasetemp() / 'ros_log'))


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A tester and a place for nodes."""
    a_bench = Bench()
    yield a_bench
    a_bench.close()


CAMERA = Camera(64, 48, (60.0, 60.0, 31.5, 23.5))


class Camcorder:
    """Publishes images and calibrations of a rig as drivers do.

    Args:
        bench: of the test.
        sensor: which topics.
        rig: default small pinhole cameras, stereo with 0.1 m baseline.
        robot: namespace of its topics, and before the names of its frames.
    """

    def __init__(
        self, bench: Bench, sensor: str = 'mono', rig: Rig | None = None, robot: str = ''
    ) -> None:
        from sensor_msgs.msg import CameraInfo, Image

        from mv_matcher_ros.ros.calibration import messages_from_rig
        from mv_matcher_ros.ros.inputs import TOPICS

        if rig is None:
            right = np.eye(4)
            right[0, 3] = 0.1
            cameras = (CAMERA, replace(CAMERA, body_from_camera=right))
            rig = Rig(cameras if sensor == 'stereo' else (CAMERA,))
        self.rig = rig
        self.infos = messages_from_rig(rig)
        images, infos = TOPICS[sensor]  # type: ignore[index]
        before = f'{robot}/' if robot else ''
        self.images = [bench.publisher(Image, before + topic) for topic in images]
        self.info_publishers = [bench.publisher(CameraInfo, before + topic) for topic in infos]
        names = ['left_camera', 'right_camera'] if sensor == 'stereo' else ['camera']
        self.frame_ids = [before + name for name in names]

    def calibrate(self, stamp_ns: int = 0) -> None:
        """Publish the camera_info."""
        from mv_matcher_ros.ros.messages import header_message

        for publisher, info, frame in zip(
            self.info_publishers, self.infos, self.frame_ids, strict=True
        ):
            info.header = header_message(stamp_ns, frame)
            publisher.publish(info)

    def shoot(self, stamp_ns: int, pixels: Sequence[np.ndarray] | None = None) -> None:
        """Publish images of one time (and the camera_info before them)."""
        from mv_matcher_ros.ros.conversions import message_from_image
        from mv_matcher_ros.ros.messages import header_message

        self.calibrate(stamp_ns)
        if pixels is None:
            camera = self.rig.cameras[0]
            blank = np.full((camera.height, camera.width), 90, np.uint8)
            pixels = [blank] * len(self.images)
        for index, (publisher, image) in enumerate(zip(self.images, pixels, strict=True)):
            frame = self.frame_ids[min(index, len(self.frame_ids) - 1)]
            encoding = (
                '32FC1' if image.dtype == np.float32 else 'bgr8' if image.ndim == 3 else 'mono8'
            )
            publisher.publish(message_from_image(image, encoding, header_message(stamp_ns, frame)))


@pytest.fixture
def camcorder(bench: Bench) -> Callable[..., Camcorder]:
    """Makes a `Camcorder` for the running node."""
    return lambda sensor='mono', rig=None, robot='': Camcorder(bench, sensor, rig, robot)


@pytest.fixture
def repository() -> Path:
    """Root of the source tree."""
    return Path(__file__).resolve().parents[2]
