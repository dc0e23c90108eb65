# SPDX-License-Identifier: Apache-2.0
"""Small bags: whole ones of every kind, and some whose messages lie."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from rosbags import rosbag1, rosbag2, typesys

from mv_matcher_ros.datatypes import Camera, Frame, Rig, Sensor, Trajectory, View
from mv_matcher_ros.files.bag import _BagWriter, _ros1_types, write_bag
from mv_matcher_ros.files.bag_messages import record

Tree = dict[str, bytes]
WIDTH, HEIGHT, START_NS, STEP_NS = 12, 8, 1_700_000_000_123_456_789, 50_000_000
ENCODINGS = (
    'mono8', 'bgr8', 'rgb8', 'bgra8', 'mono16', '16UC1', '32FC1', 'uyvy', 'yuyv', 'bayer_rggb8',
    'bayer_gbrg16', '8UC4', 'rgb16', '', 'x', '64FC1', 'mono8\n',
)  # fmt: skip
FORMATS = ('jpeg', 'bgr8; png compressed bgr8', '16UC1; compressedDepth png',
           '32FC1; compressedDepth', 'bayer_rggb8; jpeg compressed', '')  # fmt: skip
FLOATS = (0.0, -0.0, 1.0, -1.0, float('nan'), float('inf'), -float('inf'), 1e308, 1e-320, 1e154)
WHOLE = (0, 1, 2, 3, 7, 11, 13, 65535, 2**31 - 1, 2**32 - 1)


class Memory(SimpleNamespace):
    """A source in memory."""

    def __iter__(self) -> Any:
        return iter(self.frames)

    def __len__(self) -> int:
        return len(self.frames)


def source(sensor: Sensor, count: int = 3, colour: bool = False) -> Any:
    """Random images with their truth."""
    rng = np.random.default_rng(0)
    mount = np.eye(4)
    mount[0, 3] = 0.25
    intrinsics = (10.0, 11.0, 5.5, 3.5)
    cameras = [Camera(WIDTH, HEIGHT, intrinsics, 'radtan', (0.1, 0.0, 0.0, 0.0, 0.0), name='l')]
    if sensor == 'stereo':
        cameras.append(Camera(WIDTH, HEIGHT, intrinsics, body_from_camera=mount, name='right'))
    shape = (HEIGHT, WIDTH, 3) if colour else (HEIGHT, WIDTH)
    frames = []
    for index in range(count):
        depth = rng.uniform(0.5, 5.0, (HEIGHT, WIDTH)).astype(np.float32)
        views = tuple(
            View(rng.integers(0, 256, shape, np.uint8), depth if sensor == 'rgbd' else None)
            for _ in cameras
        )
        frames.append(Frame(START_NS + index * STEP_NS, views, index))
    stamps = np.array([frame.stamp_ns for frame in frames])
    truth = Trajectory(stamps, np.tile(np.eye(4), (count, 1, 1)))
    return Memory(sensor=sensor, rig=Rig(tuple(cameras)), frames=frames, truth=truth, name='m')


def whole_bags(folder: Path) -> list[Tree]:
    """A bag of every storage, compression and form of images."""
    kinds: tuple[tuple[Sensor, Any, Any, Any], ...] = (
        ('stereo', 'mcap', 'raw', 'none'), ('rgbd', 'sqlite3', 'raw', 'none'),
        ('mono', 'mcap', 'png', 'file'), ('mono', 'sqlite3', 'jpeg', 'message'),
        ('rgbd', 'mcap', 'png', 'message'), ('mono', 'sqlite3', 'png', 'file'),
    )  # fmt: skip
    trees = []
    for number, (sensor, storage, images, compression) in enumerate(kinds):
        bag, content = folder / f'{number}', source(sensor, colour=number % 2 == 0)
        if number:
            plugin = rosbag2.StoragePlugin['MCAP' if storage == 'mcap' else 'SQLITE3']
            writer = rosbag2.Writer(bag, version=8, storage_plugin=plugin)
            mode = rosbag2.CompressionMode[compression.upper()]
            writer.set_compression(mode, rosbag2.CompressionFormat.ZSTD)
            with writer:
                record(content, _PlainWriter(writer), images, 'base_link')
        else:
            write_bag(bag, content, storage, images, compression)
        trees.append({f'bag/{file.name}': file.read_bytes() for file in bag.iterdir()})
        if compression == 'none':  # a recorder that was killed leaves no metadata.yaml
            trees.append({k: v for k, v in trees[-1].items() if not k.endswith('.yaml')})
    return [*trees, *(_ros1_bag(folder / f'{c}.bag', c) for c in (None, 'LZ4', 'BZ2'))]


def _ros1_bag(path: Path, compression: str | None) -> Tree:
    types = _ros1_types(typesys)
    writer = rosbag1.Writer(path)
    if compression:
        writer.set_compression(rosbag1.Writer.CompressionFormat[compression])
    with writer:
        record(source('stereo'), _Ros1Writer(writer, types), 'raw', 'base_link')
    return {f'bag/{path.name}': path.read_bytes()}


class _Ros1Writer:
    """Messages of ROS 2 as those of ROS 1."""

    def __init__(self, writer: Any, types: Any) -> None:
        self._writer, self._types, self._connections = writer, types, dict[str, Any]()

    def message(self, kind: str, **fields: Any) -> Any:
        if kind == 'std_msgs/msg/Header':
            fields['seq'] = 0
        if kind == 'sensor_msgs/msg/CameraInfo':
            fields |= {name.upper(): fields.pop(name) for name in 'dkrp'}
        return self._types.types[kind](**fields)

    def write(self, topic: str, stamp_ns: int, message: Any) -> None:
        kind = message.__msgtype__
        if topic not in self._connections:
            made = self._writer.add_connection(topic, kind, typestore=self._types)
            self._connections[topic] = made
        data = bytes(self._types.serialize_ros1(message, kind))
        self._writer.write(self._connections[topic], stamp_ns, data)


def lying_bag(rng: random.Random) -> Tree:
    """A sound file whose messages have some fields that are not."""
    sensor: Sensor = rng.choice(('mono', 'stereo', 'rgbd'))
    images: Any = rng.choice(('raw', 'raw', 'png', 'jpeg'))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'bag'
        with rosbag2.Writer(path, version=8, storage_plugin=rosbag2.StoragePlugin.MCAP) as writer:
            share = rng.choice((0.003, 0.01, 0.05))
            record(source(sensor, 2), _Liar(writer, rng, share), images, 'base_link')
        return {f'bag/{file.name}': file.read_bytes() for file in path.iterdir()}


class _PlainWriter(_BagWriter):
    """Without profiles of quality, whose YAML would take most of the time."""

    def write(self, topic: str, stamp_ns: int, message: Any) -> None:
        if topic not in self._connections:
            made = self._writer.add_connection(topic, message.__msgtype__, typestore=self._types)
            self._connections[topic] = made
        super().write(topic, stamp_ns, message)


class _Liar(_PlainWriter):
    """Says something else now and then."""

    def __init__(self, writer: Any, rng: random.Random, share: float) -> None:
        super().__init__(writer)
        self._rng, self._share = rng, share

    def message(self, kind: str, **fields: Any) -> Any:
        for name, value in fields.items():
            if self._rng.random() < self._share:
                fields[name] = self._another(name, value)
        return super().message(kind, **fields)

    def _another(self, name: str, value: Any) -> Any:
        rng = self._rng
        if isinstance(value, np.ndarray) and value.dtype == np.float64:
            changed = value.copy()
            changed[rng.randrange(len(changed)) :] = rng.choice(FLOATS)
            return changed[: rng.randrange(len(changed))] if name == 'd' else changed
        if isinstance(value, np.ndarray):
            data = bytearray(value.tobytes())
            if rng.random() < 0.5:
                del data[rng.randrange(len(data)) :]
            for _ in range(rng.choice((0, 1, 9)) if data else 0):
                data[rng.randrange(len(data))] = rng.choice((0, 0xFF, rng.randrange(256)))
            return np.frombuffer(bytes(data), np.uint8)
        if isinstance(value, bool) or name in ('is_bigendian', 'do_rectify'):
            return not value if isinstance(value, bool) else rng.choice((0, 1, 255))
        if isinstance(value, int | np.integer):
            return rng.choice((-(2**31), 2**31 - 1)) if name == 'sec' else rng.choice(WHOLE)
        if isinstance(value, float):
            return rng.choice(FLOATS)
        if isinstance(value, str):
            known = {'encoding': ENCODINGS, 'format': FORMATS}
            return rng.choice(known.get(name, ('', 'x', '/a/b', '../../outside', 'a\nb', 'none')))
        return value
