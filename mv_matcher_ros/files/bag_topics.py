# SPDX-License-Identifier: Apache-2.0
"""Which topics of a bag are the images, by type and name; no bag is opened here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from mv_matcher_ros.datatypes import Sensor
from mv_matcher_ros.errors import CalibrationError, SourceError
from mv_matcher_ros.files.recording import choose_sensor

RAW, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
CAMERA_INFO = 'sensor_msgs/msg/CameraInfo'
IMAGE_TYPES = (RAW, COMPRESSED)
TF_TYPES = ('tf2_msgs/msg/TFMessage', 'tf/msg/tfMessage')
TRUTH_TYPES = (
    'geometry_msgs/msg/PoseStamped',
    'geometry_msgs/msg/PoseWithCovarianceStamped',
    'geometry_msgs/msg/TransformStamped',
    'nav_msgs/msg/Odometry',
)
KEYS = ('image', 'right', 'depth', 'camera_info', 'right_camera_info', 'truth', 'truth_frame')
# What a further stereo pair has topics for, by keys with its number behind: image_2, right_2.
_OF_A_PAIR = ('image', 'right', 'camera_info', 'right_camera_info')
_ALIASES = {'left': 'image', 'left_camera_info': 'camera_info', 'ground_truth': 'truth'}
_PAIRS = (
    ('left', 'right'),
    ('cam0', 'cam1'),
    ('infra1', 'infra2'),
    ('camera0', 'camera1'),
    ('image0', 'image1'),
    ('cam_0', 'cam_1'),
    ('camera_0', 'camera_1'),
    ('image_0', 'image_1'),
)
_NO_CAMERA = re.compile(r'disparity|confidence|mask|debug|normals|theora|semantic|segmentation')
# `aligned_depth_to_color` is depth; the colour camera of a `depth_camera` is not.
_DEPTH = re.compile(r'depth(?!.*(?<!to_)(color|colour|rgb))')
_COLOUR = re.compile(r'color|colour|rgb')
_REGISTERED = re.compile(r'aligned|registered')


@dataclass(frozen=True)
class Topic:
    """A topic of a bag: its message type and how many messages there are."""

    name: str
    type: str
    count: int


@dataclass(frozen=True)
class Choice:
    """The topics to read.

    Attributes:
        sensor: what they make up.
        image: the (left) camera. right, depth: None where the sensor has none.
        further: left and right camera of each stereo pair but the first.
        notes: what was decided without being told, for the user.
    """

    sensor: Sensor
    image: str
    right: str | None = None
    depth: str | None = None
    notes: tuple[str, ...] = field(default=())
    further: tuple[tuple[str, str], ...] = ()

    @property
    def cameras(self) -> tuple[str, ...]:
        """Topics of the cameras of the rig."""
        first = (self.image,) if self.right is None else (self.image, self.right)
        return (*first, *(topic for pair in self.further for topic in pair))


def check_named(named: Mapping[str, str] | None, where: str) -> dict[str, str]:
    """`named` with aliases resolved.

    Raises:
        SourceError: an unknown key.
    """
    resolved = {}
    for key, topic in (named or {}).items():
        found = re.fullmatch(r'(.+?)(_[2-4])?', key)
        base, number = found.groups('') if found else (key, '')
        base = _ALIASES.get(base, base)
        if base not in (_OF_A_PAIR if number else KEYS):
            raise SourceError(f'{where}: unknown topic key "{key}"; known: {", ".join(KEYS)}')
        resolved[base + number] = topic
    return resolved


def is_rectified(topic: str) -> bool:
    """Whether images of the topic are rectified, by the naming of image_proc and most drivers."""
    name = topic.removesuffix('/compressed').rsplit('/', 1)[-1]
    return 'rect' in re.split(r'[^a-z]+', name.lower())


def choose_topics(
    topics: Collection[Topic],
    named: Mapping[str, str],
    sensor: Sensor | None,
    where: str,
    pairs: int = 1,
) -> Choice:
    """The image topics to read: those named, and for the rest those that look right.

    Depth comes before stereo before mono; but depth that is not registered to the colour image
    comes after stereo.

    Args:
        topics: what the bag holds.
        named: topics by key (see `KEYS`), as `check_named` returns them.
        sensor: what the user asked for.
        where: the bag, for messages.
        pairs: stereo pairs; those after the first must be named.

    Raises:
        SourceError: a named topic is not there, or nothing fits.
    """
    further = [(f'image_{number}', f'right_{number}') for number in range(2, pairs + 1)]
    images = {t.name: t for t in topics if t.type in IMAGE_TYPES and t.count}
    for key in ('image', 'right', 'depth', *chain.from_iterable(further)):
        if key in named and named[key] not in images:
            raise SourceError(
                f'{where}: no image topic "{named[key]}"{_nearest(named[key], images)}'
            )
    depths = [n for n in images if _DEPTH.search(n.lower())]
    cameras = [n for n in images if n not in depths and not _NO_CAMERA.search(n.lower())]
    mono = named.get('image') or min(cameras, key=lambda n: _rank(images[n], True), default=None)
    pair = _stereo_pair(images, cameras, named)
    depth_pair = _depth_pair(images, cameras, depths, named)
    found = ', '.join(images) or 'no image topics'
    available: dict[Sensor, str] = {
        'mono': '' if mono else f'no camera image among its topics: {found}',
        'stereo': '' if pair else f'no left and right among {found}',
        'rgbd': '' if depth_pair else f'no colour and depth among {found}',
    }
    if sensor is None and depth_pair and pair and not _REGISTERED.search(depth_pair[1]):
        available['rgbd'] = 'the depth is not registered'
    if sensor is None and 'image' in named:  # take no more than was named
        if 'right' not in named:
            available['stereo'] = 'no right topic named'
        if 'depth' not in named:
            available['rgbd'] = 'no depth topic named'
    chosen = choose_sensor(sensor, available, where)
    if chosen == 'stereo' and pair:
        return Choice(chosen, pair[0], right=pair[1], further=_named_pairs(named, further, where))
    if chosen == 'rgbd' and depth_pair:
        return Choice(chosen, depth_pair[0], depth=depth_pair[1])
    assert mono is not None
    others = {_camera_of(n) for n in cameras} - {_camera_of(mono)}
    notes: tuple[str, ...] = ()
    if 'image' not in named and others:
        there = ', '.join(sorted(cameras))
        notes = (
            f'several cameras in the bag, {mono} taken; '
            f'another one: --topic image=TOPIC (there: {there})',
        )
    return Choice('mono', mono, notes=notes)


def _named_pairs(
    named: Mapping[str, str], keys: Sequence[tuple[str, str]], where: str
) -> tuple[tuple[str, str], ...]:
    for number, pair in enumerate(keys, start=2):
        if any(key not in named for key in pair):
            raise SourceError(
                f'{where}: stereo.pairs is {len(keys) + 1}: name the topics of pair {number}, '
                f'left_{number}=TOPIC and right_{number}=TOPIC'
            )
    return tuple((named[left], named[right]) for left, right in keys)


def info_topic(image: str, topics: Collection[Topic], named: str | None, where: str) -> str:
    """The camera_info topic of an image topic: named, in the same namespace, or the only one.

    Raises:
        CalibrationError: none found, or the named one is not there.
    """
    infos = {t.name: t for t in topics if t.type == CAMERA_INFO and t.count}
    if named is not None:
        if named in infos:
            return named
        raise CalibrationError(f'{where}: no camera_info topic "{named}"{_nearest(named, infos)}')
    base = image.removesuffix('/compressed').removesuffix('/compressedDepth')
    parent = base.rsplit('/', 1)[0]
    for candidate in (f'{parent}/camera_info', f'{base}/camera_info', f'{base}_info'):
        if candidate in infos:
            return candidate
    if len(infos) == 1:
        return next(iter(infos))
    there = ', '.join(infos) or 'none'
    raise CalibrationError(
        f'{where}: no camera_info for {image} (looked for {parent}/camera_info; there: {there}); '
        'name it or give a calibration file'
    )


def truth_topic(topics: Collection[Topic], named: str | None, where: str) -> Topic | None:
    """The ground-truth topic: named, or the one called so.

    Raises:
        SourceError: the named one is not there or holds no poses.
    """
    poses = {t.name: t for t in topics if t.type in TRUTH_TYPES and t.count}
    if named is not None:
        if named in poses:
            return poses[named]
        raise SourceError(f'{where}: no topic of poses "{named}"{_nearest(named, poses)}')
    called_so = sorted(n for n in poses if re.search(r'ground_?truth', n.lower()))
    return poses[called_so[0]] if called_so else None


def _stereo_pair(
    images: Mapping[str, Topic], cameras: Collection[str], named: Mapping[str, str]
) -> tuple[str, str] | None:
    if 'image' in named and 'right' in named:
        return named['image'], named['right']
    candidates = [named['image']] if 'image' in named else list(cameras)
    pairs = []
    for left in candidates:
        for a, b in _PAIRS:
            right = re.sub(rf'(?<![a-zA-Z0-9]){a}(?![a-zA-Z0-9])', b, left)
            if right != left and right in images:
                pairs.append((left, right))
                break
    return min(pairs, key=lambda pair: _rank(images[pair[0]], False), default=None)


def _depth_pair(
    images: Mapping[str, Topic],
    cameras: Collection[str],
    depths: Collection[str],
    named: Mapping[str, str],
) -> tuple[str, str] | None:
    colours = [named['image']] if 'image' in named else list(cameras)
    choices = [named['depth']] if 'depth' in named else list(depths)
    if not colours or not choices:
        return None
    depth = min(choices, key=lambda n: (not _REGISTERED.search(n), _rank(images[n], False)))
    colour = min(colours, key=lambda n: (-_shared(n, depth), _rank(images[n], True)))
    return colour, depth


def _rank(topic: Topic, colour_first: bool) -> tuple[bool, bool, bool, bool, int, str]:
    """Sort key: first of a pair, colour, rectified, not compressed, most images, name."""
    begins_pair = any(re.search(rf'(?<![a-z0-9]){b}(?![a-z0-9])', topic.name) for _, b in _PAIRS)
    colour = bool(_COLOUR.search(topic.name.lower()))
    return (
        begins_pair,
        colour_first and not colour,
        not is_rectified(topic.name),
        topic.type == COMPRESSED,
        -topic.count,
        topic.name,
    )


def _shared(a: str, b: str) -> int:
    """Segments that two topics begin with alike: the same device."""
    pairs = zip(a.split('/'), b.split('/'), strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(a.count('/'), b.count('/')))


def _camera_of(topic: str) -> str:
    """The namespace of a camera: `/cam0/image_raw/compressed` → `/cam0`."""
    return topic.removesuffix('/compressed').rsplit('/', 1)[0]


def _nearest(name: str, among: Collection[str]) -> str:
    there = f'there: {", ".join(sorted(among)) or "none"}'
    close = difflib.get_close_matches(name, among, n=1, cutoff=0.4)
    if close and len(among) > 1:
        return f'; did you mean "{close[0]}"? {there}'
    return f'; {there}'
