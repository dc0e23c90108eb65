# SPDX-License-Identifier: Apache-2.0
"""ROS 1 and ROS 2 bags without ROS: the only place that knows the rosbags package."""

from __future__ import annotations

import heapq
import importlib
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from mv_matcher_ros.errors import MissingDependencyError, SourceError
from mv_matcher_ros.files.bag_messages import ImageForm, record
from mv_matcher_ros.files.bag_topics import TF_TYPES, Topic
from mv_matcher_ros.files.images import natural_key

if TYPE_CHECKING:
    from mv_matcher_ros.runner import Source

STORAGE_SUFFIXES = ('.mcap', '.db3')
Storage = Literal['mcap', 'sqlite3']
Compression = Literal['none', 'file', 'message']


def is_bag(path: Path) -> bool:
    """Whether this looks like a bag: a bag file, or a folder that holds the parts of one bag."""
    if path.is_dir():
        return (path / 'metadata.yaml').is_file() or bool(_parts(path))
    return path.suffix in ('.bag', *STORAGE_SUFFIXES)


class BagReader:
    """Topics and messages of a bag, of either ROS, any storage, split or compressed.

    The messages read here are standard ones, so they are decoded by their standard definitions: a
    bag with odd messages beside them, or without definitions, opens all the same.

    Args:
        path: .bag, .mcap or .db3 file; ROS 2 bag folder (also one without metadata.yaml); folder
            of .bag files.

    Raises:
        MissingDependencyError: rosbags is not installed.
        SourceError: missing, damaged or unfinished bag (from `__enter__` and `messages`).
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._stack = ExitStack()
        self._readers: list[Any] = []
        self._ros1 = False
        self.topics: list[Topic] = []

    def __enter__(self) -> BagReader:
        rosbag1, rosbag2, typesys = _rosbags('rosbag1'), _rosbags('rosbag2'), _rosbags('typesys')
        files = _storage_files(self.path)
        self._ros1 = files[0].suffix == '.bag'
        self._types = _ros1_types(typesys) if self._ros1 else _ros2_types(typesys)
        reader = rosbag1.Reader if self._ros1 else rosbag2.Reader
        try:
            self._readers = [self._stack.enter_context(reader(file)) for file in files]
            counts: dict[tuple[str, str], int] = {}
            for connection in self._connections():
                key = connection.topic, connection.msgtype
                counts[key] = counts.get(key, 0) + connection.msgcount
        except Exception as error:  # of struct, sqlite, zstd, assertions: whatever damage leads to
            self._stack.close()
            raise _damaged(self.path, error) from None
        self.topics = [Topic(name, kind, count) for (name, kind), count in sorted(counts.items())]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def messages(
        self, topics: Collection[str], types: Collection[str]
    ) -> Iterator[tuple[str, int, Any]]:
        """(topic, time of recording in ns, message) of some topics, in the order of recording.

        Nothing keeps a bag from having messages of other types on a topic: only `types` are read.
        """
        streams = []
        for reader in self._readers:
            chosen = [c for c in reader.connections if c.topic in topics and c.msgtype in types]
            if chosen:  # no connections would mean all of them
                streams.append(reader.messages(connections=chosen))
        decode = self._types.deserialize_ros1 if self._ros1 else self._types.deserialize_cdr
        merged = heapq.merge(*streams, key=lambda item: item[1])
        while True:
            try:
                item = next(merged, None)
                if item is None:
                    return
                connection, recorded_ns, data = item
                # Of connections that share a number, which is damage, rosbags gives either.
                if connection.topic not in topics or connection.msgtype not in types:
                    continue
                message = decode(data, connection.msgtype)
            except Exception as error:  # as above
                raise _damaged(self.path, error) from None
            yield connection.topic, recorded_ns, message

    def first_message(self, topic: str, types: Collection[str]) -> Any:
        """The first message of a topic.

        Raises:
            SourceError: there is none.
        """
        for _, _, message in self.messages((topic,), types):
            return message
        raise SourceError(f'{self.path}: no messages on {topic}')

    def _connections(self) -> Iterator[Any]:
        for reader in self._readers:
            yield from reader.connections


def write_bag(
    path: Path | str,
    source: Source,
    storage: Storage = 'mcap',
    images: ImageForm = 'raw',
    compression: Compression = 'none',
    body_frame: str = 'base_link',
) -> dict[str, str]:
    """Write a source as a ROS 2 bag that `open_source`, `ros2 bag play` and the node can use.

    Images (depth as 32FC1) with CameraInfo, /tf_static from `body_frame` to the cameras, and the
    truth as PoseStamped on /ground_truth. The truth is the pose of the static frame
    `ground_truth`: a body with axes of its own is `body_frame` itself; an optical body is mounted
    on `body_frame` in REP-103 axes.

    Args:
        path: new folder.
        source: what to write.
        storage: `mcap` or `sqlite3`.
        images: `raw`, or compressed as `png` or `jpeg`; depth is always raw.
        compression: of the bag (zstd): `none`, `file` or `message`.
        body_frame: name of the robot's frame.

    Returns:
        Topics by the keys of `open_source(topics=…)`.

    Raises:
        SourceError: `path` exists.
        MissingDependencyError: rosbags is not installed.
    """
    path = Path(path)
    rosbag2 = _rosbags('rosbag2')
    if path.exists():
        raise SourceError(f'{path}: exists already; a bag is not overwritten')
    plugin = {'mcap': 'MCAP', 'sqlite3': 'SQLITE3'}[storage]
    writer = rosbag2.Writer(path, version=8, storage_plugin=rosbag2.StoragePlugin[plugin])
    mode = rosbag2.CompressionMode[compression.upper()]
    writer.set_compression(mode, rosbag2.CompressionFormat.ZSTD)
    try:
        with writer:
            return record(source, _BagWriter(writer), images, body_frame)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)  # half a bag would be taken for one
        raise


class _BagWriter:
    """Makes messages and writes them, opening each topic when it is first used."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._types = _ros2_types(_rosbags('typesys'))
        self._connections: dict[str, Any] = {}

    def message(self, kind: str, **fields: Any) -> Any:
        return self._types.types[kind](**fields)

    def write(self, topic: str, stamp_ns: int, message: Any) -> None:
        kind = message.__msgtype__
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, kind, typestore=self._types, offered_qos_profiles=_quality(topic)
            )
        data = self._types.serialize_cdr(message, kind)
        self._writer.write(self._connections[topic], stamp_ns, data)


def _quality(topic: str) -> list[Any]:
    """QoS that a player offers: /tf_static must be there for those who come late."""
    interfaces = _rosbags('interfaces')
    static = topic == '/tf_static'
    durability = interfaces.QosDurability
    forever = interfaces.QosTime(2147483647, 4294967295)
    return [
        interfaces.Qos(
            interfaces.QosHistory.KEEP_LAST,
            1 if static else 10,
            interfaces.QosReliability.RELIABLE,
            durability.TRANSIENT_LOCAL if static else durability.VOLATILE,
            forever,
            forever,
            interfaces.QosLiveliness.AUTOMATIC,
            forever,
            False,
        )
    ]


def _storage_files(path: Path) -> list[Path]:
    """What to hand to the readers: the files, or the folder of a ROS 2 bag with metadata."""
    if not path.exists():
        raise SourceError(f'{path}: no such bag')
    if path.is_file() or (path / 'metadata.yaml').is_file():
        return [path]
    parts = _parts(path)
    if parts:
        return parts
    raise SourceError(
        f'{path}: not a bag; looked for metadata.yaml, or one *.bag, *.mcap, *.db3 and its parts'
    )


def _parts(folder: Path) -> list[Path]:
    """A split ROS 1 bag, or a ROS 2 recording that was cut short before its metadata was written.

    Parts are named alike but for a time and a number from 0; several recordings in a folder are
    not one.
    """
    for suffix in ('.bag', *STORAGE_SUFFIXES):
        files = sorted(folder.glob(f'*{suffix}'), key=lambda file: natural_key(file.name))
        names = {re.sub(r'\d+(-\d+){5}', '', file.stem) for file in files}
        stem = re.sub(r'_\d+$', '', min(names, default=''))
        if files and (
            len(files) == 1 or names == {f'{stem}_{number}' for number in range(len(files))}
        ):
            return files
    return []


@cache
def _ros2_types(typesys: Any) -> Any:
    return typesys.get_typestore(typesys.Stores.LATEST)


@cache
def _ros1_types(typesys: Any) -> Any:
    """The types of Noetic, and those of /tf_static, which rosbags leaves out."""
    types = typesys.get_typestore(typesys.Stores.ROS1_NOETIC)
    for name in TF_TYPES:
        definition = 'geometry_msgs/TransformStamped[] transforms'
        types.register(typesys.get_types_from_msg(definition, name))
    return types


def _damaged(path: Path, error: Exception) -> SourceError:
    lines = str(error).splitlines() or [type(error).__name__]
    return SourceError(
        f'{path}: cannot be read as a bag, damaged, truncated or never finished ({lines[0]}); '
        'try "ros2 bag reindex", "mcap recover" or "rosbag reindex"'
    )


def _rosbags(module: str) -> Any:
    try:
        return importlib.import_module(f'rosbags.{module}')
    except ImportError:
        raise MissingDependencyError('rosbags', 'bags', 'reading and writing bags') from None
