# SPDX-License-Identifier: Apache-2.0
"""Bags give back what was written, whatever their storage; their faults are named or counted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from rosbags import rosbag1, rosbag2, typesys

from mv_matcher_ros.datatypes import Camera, Rig
from mv_matcher_ros.errors import CalibrationError, MissingDependencyError, SourceError
from mv_matcher_ros.files.bag import BagReader, write_bag
from mv_matcher_ros.files.frame_tree import FrameTree
from mv_matcher_ros.files.image_messages import fields_of_image
from mv_matcher_ros.files.open import open_source
from mv_matcher_ros.files.rotations import (
    matrix_from_quaternion,
    quaternion_from_matrix,
    rigid_transform,
)
from mv_matcher_ros.runner import Source
from mv_matcher_ros.worlds.presets import make_rig

Make = Callable[..., Any]
WIDTH, HEIGHT = 48, 32
START_NS = 1_700_000_000_123_456_789
K = (40.0, 0, 23.5, 0, 41.0, 15.5, 0, 0, 1)
P = (40.0, 0, 23.5, 0, 0, 41.0, 15.5, 0, 0, 0, 1, 0)


def same(first: Source, second: Source) -> None:
    for a, b in zip(first, second, strict=True):
        assert a.stamp_ns == b.stamp_ns
        for view, other in zip(a.views, b.views, strict=True):
            np.testing.assert_array_equal(view.image, other.image)
            assert (view.depth is None) == (other.depth is None)
            if view.depth is not None and other.depth is not None:
                np.testing.assert_array_equal(view.depth, other.depth)


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
@pytest.mark.parametrize('compression', ['none', 'file', 'message'])
@pytest.mark.parametrize(('sensor', 'colour'), [('mono', True), ('stereo', False), ('rgbd', True)])
def test_round_trip(
    tmp_path: Path, make_source: Make, storage: Any, compression: Any, sensor: str, colour: bool
) -> None:
    source = make_source(sensor, colour=colour, truth=True)
    topics = write_bag(tmp_path / 'bag', source, storage=storage, compression=compression)
    for given in (None, topics):
        back = open_source(tmp_path / 'bag', topics=given)
        assert back.sensor == sensor
        same(source, back)
        assert back.faults == {}
        assert back.truth is not None
        np.testing.assert_array_equal(back.truth.stamps_ns, source.truth.stamps_ns)
        np.testing.assert_allclose(
            back.truth.world_from_body, source.truth.world_from_body, atol=1e-14
        )
        for camera, other in zip(source.rig.cameras, back.rig.cameras, strict=True):
            assert camera.intrinsics == other.intrinsics
            np.testing.assert_allclose(camera.body_from_camera, other.body_from_camera, atol=1e-14)
    assert len(back) == len(source)


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_file_without_its_folder(tmp_path: Path, make_source: Make, storage: Any) -> None:
    """A recorder that was killed leaves no metadata.yaml."""
    source = make_source('stereo')
    write_bag(tmp_path / 'bag', source, storage=storage)
    (tmp_path / 'bag' / 'metadata.yaml').unlink()
    same(source, open_source(tmp_path / 'bag'))
    [file] = (tmp_path / 'bag').iterdir()
    same(source, open_source(file))


def test_png_is_lossless_and_jpeg_is_near(tmp_path: Path, make_source: Make) -> None:
    source = make_source('mono', colour=True)
    write_bag(tmp_path / 'png', source, images='png')
    same(source, open_source(tmp_path / 'png'))
    smooth = make_source('mono', count=2)
    for frame in smooth.frames:
        frame.views[0].image[:] = np.linspace(0, 255, WIDTH).astype(np.uint8)
    write_bag(tmp_path / 'jpeg', smooth, images='jpeg')
    for a, b in zip(smooth, open_source(tmp_path / 'jpeg'), strict=True):
        assert b.views[0].image.ndim == 2
        assert np.abs(a.views[0].image.astype(int) - b.views[0].image).max() < 8


def test_body_frames(tmp_path: Path, make_source: Make) -> None:
    """A body with axes is the robot's frame; the truth follows the frame asked for."""
    turn = matrix_from_quaternion((0.5, -0.5, 0.5, -0.5))
    mounted = rigid_transform(turn, (0.1, 0.2, 0.3))
    second = rigid_transform(turn @ matrix_from_quaternion((0.01, 0.02, 0, 1)), (0.1, 0.0, 0.3))
    cameras = tuple(
        Camera(WIDTH, HEIGHT, (40.0 + i, 41.0, 23.5, 15.5), 'radtan', (0.1,) * 5, pose)
        for i, pose in enumerate((mounted, second))
    )
    source = make_source('stereo', rig=Rig(cameras, 'rep103'), truth=True)
    write_bag(tmp_path / 'bag', source, body_frame='robot')
    back = open_source(tmp_path / 'bag', body_frame='robot')
    assert back.rig.body_axes == 'rep103'
    for camera, other in zip(cameras, back.rig.cameras, strict=True):
        np.testing.assert_allclose(other.body_from_camera, camera.body_from_camera, atol=1e-12)
        assert (other.model, other.intrinsics) == ('radtan', camera.intrinsics)
    assert back.truth is not None
    np.testing.assert_allclose(
        back.truth.world_from_body, source.truth.world_from_body, atol=1e-12
    )
    camera_body = open_source(tmp_path / 'bag')
    assert camera_body.rig.body_axes == 'optical'
    np.testing.assert_allclose(camera_body.rig.cameras[0].body_from_camera, np.eye(4))
    assert camera_body.truth is not None
    np.testing.assert_allclose(
        camera_body.truth.world_from_body, source.truth.world_from_body @ mounted, atol=1e-12
    )
    with pytest.raises(CalibrationError, match='does not connect "drone" and "left_optical"'):
        open_source(tmp_path / 'bag', body_frame='drone')


def test_split_bag(tmp_path: Path, make_source: Make) -> None:
    whole = make_source('mono', count=6)
    parts = []
    for i in range(2):
        part = make_source('mono')
        part.frames[:] = whole.frames[3 * i : 3 * i + 3]
        write_bag(tmp_path / f'part_{i}', part)
        parts.append(tmp_path / f'part_{i}')
    metadata = yaml.safe_load((parts[0] / 'metadata.yaml').read_text())
    info = metadata['rosbag2_bagfile_information']
    info['relative_file_paths'] = ['part_0.mcap', 'part_1.mcap']
    for topic in info['topics_with_message_count']:
        topic['message_count'] *= 2
    info['message_count'] *= 2
    info['files'] = []
    split = tmp_path / 'split'
    split.mkdir()
    for i, part in enumerate(parts):
        shutil.copy(part / f'part_{i}.mcap', split)
    same(whole, open_source(split))  # as a killed recorder leaves it
    (split / 'metadata.yaml').write_text(yaml.safe_dump(metadata))
    same(whole, open_source(split))
    assert len(open_source(split)) == 6
    (split / 'part_1.mcap').unlink()
    with pytest.raises(SourceError, match=r'part_1\.mcap'):
        open_source(split)


def test_existing_folder_is_not_overwritten_and_half_a_bag_is_removed(
    tmp_path: Path, make_source: Make
) -> None:
    source = make_source()
    write_bag(tmp_path / 'bag', source)
    with pytest.raises(SourceError, match='exists already'):
        write_bag(tmp_path / 'bag', source)

    def failing() -> Any:
        yield source.frames[0]
        raise SourceError('torn cable')

    broken = make_source()
    broken.frames = failing()
    with pytest.raises(SourceError, match='torn cable'):
        write_bag(tmp_path / 'half', broken)
    assert not (tmp_path / 'half').exists()


# --- Bags written message by message ------------------------------------------------------------


@cache
def message_types(ros1: bool) -> Any:
    store = typesys.Stores.ROS1_NOETIC if ros1 else typesys.Stores.LATEST
    types = typesys.get_typestore(store)
    if ros1:
        definition = 'geometry_msgs/TransformStamped[] transforms'
        types.register(typesys.get_types_from_msg(definition, 'tf2_msgs/msg/TFMessage'))
    return types


class Writer:
    """Writes ROS 1 or ROS 2 messages given as fields."""

    def __init__(self, path: Path, ros1: bool = False, compressed: bool = False) -> None:
        self.ros1 = ros1
        self.types = message_types(ros1)
        if ros1:
            self.writer = rosbag1.Writer(path)
            if compressed:
                self.writer.set_compression(rosbag1.Writer.CompressionFormat.LZ4)
        else:
            self.writer = rosbag2.Writer(
                path, version=8, storage_plugin=rosbag2.StoragePlugin.SQLITE3
            )
        self.connections: dict[str, Any] = {}

    def __enter__(self) -> Writer:
        self.writer.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.close()

    def message(self, kind: str, **fields: Any) -> Any:
        return self.types.types[kind](**fields)

    def header(self, stamp_ns: int, frame: str) -> Any:
        stamp = self.message(
            'builtin_interfaces/msg/Time', sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9
        )
        more = {'seq': 0} if self.ros1 else {}
        return self.message('std_msgs/msg/Header', stamp=stamp, frame_id=frame, **more)

    def send(self, topic: str, kind: str, stamp_ns: int, **fields: Any) -> None:
        recorded_ns = fields.pop('recorded_ns', stamp_ns)
        if 'frame' in fields:
            fields['header'] = self.header(stamp_ns, fields.pop('frame'))
        if topic not in self.connections:
            connection = self.writer.add_connection(topic, kind, typestore=self.types)
            self.connections[topic] = connection
        serialise = self.types.serialize_ros1 if self.ros1 else self.types.serialize_cdr
        data = serialise(self.message(kind, **fields), kind)
        self.writer.write(self.connections[topic], recorded_ns, data)

    def image(self, topic: str, stamp_ns: int, pixels: np.ndarray, **more: Any) -> None:
        fields = fields_of_image(pixels) | {'frame': 'cam'} | more
        self.send(topic, 'sensor_msgs/msg/Image', stamp_ns, **fields)

    def info(self, topic: str, stamp_ns: int, **more: Any) -> None:
        roi = {'x_offset': 0, 'y_offset': 0, 'height': 0, 'width': 0, 'do_rectify': False}
        fields: dict[str, Any] = {
            'height': HEIGHT,
            'width': WIDTH,
            'distortion_model': 'plumb_bob',
            'd': np.zeros(5),
            'k': np.array(K),
            'r': np.eye(3).ravel(),
            'p': np.array(P),
            'binning_x': 0,
            'binning_y': 0,
            'roi': self.message('sensor_msgs/msg/RegionOfInterest', **roi),
            'frame': 'cam',
        } | more
        if self.ros1:
            fields = {k.upper() if k in ('d', 'k', 'r', 'p') else k: v for k, v in fields.items()}
        self.send(topic, 'sensor_msgs/msg/CameraInfo', stamp_ns, **fields)

    def pose(
        self, translation: Any, matrix: np.ndarray, names: tuple[str, str], kinds: Any
    ) -> Any:
        x, y, z, w = quaternion_from_matrix(matrix)
        first = dict(zip('xyz', map(float, translation), strict=True))
        return self.message(
            kinds[0],
            **{
                names[0]: self.message(kinds[1], **first),
                names[1]: self.message('geometry_msgs/msg/Quaternion', x=x, y=y, z=z, w=w),
            },
        )

    def transform(self, stamp_ns: int, parent: str, child: str, pose: np.ndarray) -> Any:
        transform = self.pose(
            pose[:3, 3],
            pose[:3, :3],
            ('translation', 'rotation'),
            ('geometry_msgs/msg/Transform', 'geometry_msgs/msg/Vector3'),
        )
        return self.message(
            'geometry_msgs/msg/TransformStamped',
            header=self.header(stamp_ns, parent),
            child_frame_id=child,
            transform=transform,
        )


def grey(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)


@pytest.mark.parametrize('compressed', [False, True])
def test_ros1_bag(tmp_path: Path, rng: np.random.Generator, compressed: bool) -> None:
    images = [grey(rng) for _ in range(3)]
    mounted = rigid_transform(matrix_from_quaternion((0.1, 0.2, 0.3, 0.9)), (1, 2, 3))
    with Writer(tmp_path / 'a.bag', ros1=True, compressed=compressed) as bag:
        static = bag.transform(START_NS, '/base', 'cam', mounted)
        bag.send('/tf_static', 'tf2_msgs/msg/TFMessage', START_NS, transforms=[static])
        for i, image in enumerate(images):
            bag.info('/camera/camera_info', START_NS + i)
            bag.image('/camera/image_raw', START_NS + i, image)
    source = open_source(tmp_path / 'a.bag', body_frame='base')
    assert [frame.stamp_ns for frame in source] == [START_NS + i for i in range(3)]
    for frame, image in zip(source, images, strict=True):
        np.testing.assert_array_equal(frame.views[0].image, image)
    camera = source.rig.cameras[0]
    assert camera.intrinsics == (40.0, 41.0, 23.5, 15.5)
    np.testing.assert_allclose(camera.body_from_camera, mounted, atol=1e-14)


def test_split_ros1_bag(tmp_path: Path, rng: np.random.Generator) -> None:
    images = [grey(rng) for _ in range(4)]
    for part in range(2):
        with Writer(tmp_path / f'run_{part}.bag', ros1=True) as bag:
            for i in range(2 * part, 2 * part + 2):
                bag.info('/camera/camera_info', START_NS + i)
                bag.image('/camera/image_raw', START_NS + i, images[i])
    source = open_source(tmp_path)
    assert len(source) == 4
    for frame, image in zip(source, images, strict=True):
        np.testing.assert_array_equal(frame.views[0].image, image)


def test_two_stereo_pairs(tmp_path: Path, make_source: Make) -> None:
    """Where the second pair is comes from /tf_static, or from a calibration file."""
    rig = make_rig('stereo', (WIDTH, HEIGHT), pairs=2)
    source = make_source('stereo', rig=rig)
    topics = write_bag(tmp_path / 'bag', source)
    assert topics['right_2'] == '/right_2/image_raw'
    back = open_source(tmp_path / 'bag', topics=topics, body_frame='base_link', pairs=2)
    same(source, back)
    for camera, read in zip(rig.cameras, back.rig.cameras, strict=True):
        np.testing.assert_allclose(read.body_from_camera, camera.body_from_camera, atol=1e-9)
    one = open_source(tmp_path / 'bag')
    assert {len(frame.views) for frame in one} == {2}
    with pytest.raises(
        SourceError, match=r'stereo\.pairs is 2: name the topics of pair 2, left_2='
    ):
        open_source(tmp_path / 'bag', pairs=2)
    with pytest.raises(SourceError, match='unknown topic key "depth_2"'):
        open_source(tmp_path / 'bag', topics={'depth_2': '/x'})


def test_stereo_is_paired_by_stamp_not_by_order(tmp_path: Path, rng: np.random.Generator) -> None:
    """Stamps differ a little, right images come late in the bag, one is missing."""
    left = {i: grey(rng) for i in range(6)}
    right = {i: grey(rng) for i in range(6) if i != 2}
    with Writer(tmp_path / 'bag') as bag:
        bag.info('/cam0/camera_info', START_NS)
        bag.info('/cam1/camera_info', START_NS, p=np.array((*P[:3], -8.0, *P[4:])), frame='cam1')
        events = [(START_NS + i * 10**8, '/cam0/image_raw', left[i], 0) for i in left]
        events += [
            (START_NS + i * 10**8 + 2_000_000, '/cam1/image_raw', right[i], 250_000_000)
            for i in right
        ]
        for stamp_ns, topic, image, late_ns in sorted(events, key=lambda e: e[0] + e[3]):
            bag.image(topic, stamp_ns, image, recorded_ns=stamp_ns + late_ns)
    source = open_source(tmp_path / 'bag')
    assert source.sensor == 'stereo'
    assert source.rig.baseline_m == pytest.approx(0.2)
    frames = list(source)
    assert [(frame.stamp_ns - START_NS) // 10**8 for frame in frames] == [0, 1, 3, 4, 5]
    for frame, i in zip(frames, right, strict=True):
        np.testing.assert_array_equal(frame.views[0].image, left[i])
        np.testing.assert_array_equal(frame.views[1].image, right[i])
    assert source.faults == {'image without right image, frame dropped': 1}


def test_rgbd_in_millimetres(tmp_path: Path, rng: np.random.Generator) -> None:
    depth = rng.integers(0, 4000, (HEIGHT, WIDTH), dtype=np.uint16)
    with Writer(tmp_path / 'bag') as bag:
        bag.info('/camera/color/camera_info', START_NS)
        for i in range(3):
            bag.image('/camera/color/image_raw', START_NS + i * 10**8, grey(rng))
            bag.image(
                '/camera/aligned_depth_to_color/image_raw', START_NS + i * 10**8 + 10**7, depth
            )
    source = open_source(tmp_path / 'bag')
    assert source.sensor == 'rgbd'
    for frame in source:
        np.testing.assert_array_equal(frame.views[0].depth, depth.astype(np.float32) / 1000)


def test_depth_that_is_not_registered_is_said(tmp_path: Path, rng: np.random.Generator) -> None:
    with Writer(tmp_path / 'bag') as bag:
        bag.info('/camera/color/camera_info', START_NS)
        bag.info('/camera/depth/camera_info', START_NS, k=np.array((55.0, *K[1:])))
        bag.image('/camera/color/image_raw', START_NS, grey(rng))
        bag.image('/camera/depth/image_raw', START_NS, np.ones((HEIGHT, WIDTH), np.uint16))
    source = open_source(tmp_path / 'bag')
    assert list(source.faults) == [
        'depth seems not registered: its fx is 55, that of the image 40'
    ]


def mono_bag(path: Path, rng: np.random.Generator, **info: Any) -> None:
    with Writer(path) as bag:
        bag.info('/camera/camera_info', START_NS, **info)
        for i in range(4):
            bag.image('/camera/image_raw', START_NS + i * 10**8, grey(rng))


def test_uncalibrated_bag_needs_a_file(tmp_path: Path, rng: np.random.Generator) -> None:
    mono_bag(tmp_path / 'bag', rng, k=np.zeros(9))
    with pytest.raises(CalibrationError, match=r'/camera/image_raw: camera_info has K\[0\] = 0'):
        open_source(tmp_path / 'bag')
    path = tmp_path / 'cal.yaml'
    camera = {'width': WIDTH, 'height': HEIGHT, 'intrinsics': [1.0, 1.0, 1.0, 1.0]}
    path.write_text(yaml.safe_dump(camera))
    assert len(list(open_source(tmp_path / 'bag', calibration=path))) == 4


def test_image_of_another_size_than_its_calibration(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    mono_bag(tmp_path / 'bag', rng, width=99)
    with pytest.raises(CalibrationError, match='is 48x32, but its calibration is for 99x32'):
        list(open_source(tmp_path / 'bag'))


def test_camera_info_without_size_takes_the_images(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    mono_bag(tmp_path / 'bag', rng, width=0, height=0)
    source = open_source(tmp_path / 'bag')
    assert (source.rig.cameras[0].width, source.rig.cameras[0].height) == (WIDTH, HEIGHT)


def test_bad_stamps_and_images_are_counted(tmp_path: Path, rng: np.random.Generator) -> None:
    with Writer(tmp_path / 'bag') as bag:
        bag.info('/camera/camera_info', START_NS)
        for i, offset in enumerate((0, 1, 1, -5, 2, 3)):
            more = {'data': np.zeros(3, np.uint8)} if i == 4 else {}
            bag.image(
                '/camera/image_raw', START_NS + offset, grey(rng), recorded_ns=START_NS + i, **more
            )
        bag.image('/camera/image_raw', 0, grey(rng), recorded_ns=START_NS + 9)
    source = open_source(tmp_path / 'bag')
    assert [frame.stamp_ns - START_NS for frame in source] == [0, 1, 3, 9]
    assert source.faults == {
        'repeated time stamp, frame dropped': 1,
        'backwards time stamp, frame dropped': 1,
        'unreadable image, frame skipped': 1,
        'stamp is zero, time of recording used': 1,
    }


def test_unknown_encoding_is_named(tmp_path: Path, rng: np.random.Generator) -> None:
    with Writer(tmp_path / 'bag') as bag:
        bag.info('/camera/camera_info', START_NS)
        bag.image('/camera/image_raw', START_NS, grey(rng), encoding='yolo9')
    with pytest.raises(SourceError, match=r'/camera/image_raw: image encoding "yolo9" is unknown'):
        list(open_source(tmp_path / 'bag'))


def test_swapped_and_missing_baseline(tmp_path: Path, rng: np.random.Generator) -> None:
    for name, offset in (('swapped', 8.0), ('zero', 0.0)):
        with Writer(tmp_path / name) as bag:
            bag.info('/left/camera_info', START_NS)
            bag.info('/right/camera_info', START_NS, p=np.array((*P[:3], offset, *P[4:])))
            for topic in ('/left/image_raw', '/right/image_raw'):
                bag.image(topic, START_NS, grey(rng))
    with pytest.raises(CalibrationError, match=r'P\[3\] > 0.*swapped\?'):
        open_source(tmp_path / 'swapped')
    with pytest.raises(CalibrationError, match=r'P\[3\] = 0, so the baseline is not known'):
        open_source(tmp_path / 'zero')


def test_baseline_from_static_transforms(tmp_path: Path, rng: np.random.Generator) -> None:
    """Without one in camera_info it is that of /tf_static; where both differ, that is said."""
    right_pose = rigid_transform(np.eye(3), (0.3, 0, 0))
    for name, offset in (('tf', 0.0), ('both', -8.0)):
        with Writer(tmp_path / name) as bag:
            static = bag.transform(START_NS, 'cam', 'cam1', right_pose)
            bag.send('/tf_static', 'tf2_msgs/msg/TFMessage', START_NS, transforms=[static])
            bag.info('/left/camera_info', START_NS)
            p = np.array((*P[:3], offset, *P[4:]))
            bag.info('/right/camera_info', START_NS, p=p, frame='cam1')
            for topic in ('/left/image_raw', '/right/image_raw'):
                bag.image(topic, START_NS, grey(rng))
    assert open_source(tmp_path / 'tf').rig.baseline_m == pytest.approx(0.3)
    both = open_source(tmp_path / 'both')
    assert both.rig.baseline_m == pytest.approx(0.2)
    assert 'baseline is 0.2000 m in camera_info (used), 0.3000 m in /tf_static' in both.faults


def test_topics_are_named_or_found(tmp_path: Path, rng: np.random.Generator) -> None:
    with Writer(tmp_path / 'bag') as bag:
        for camera in ('front', 'rear'):
            bag.info(f'/{camera}/camera_info', START_NS)
            bag.image(f'/{camera}/image_raw', START_NS, grey(rng))
    source = open_source(tmp_path / 'bag')
    assert source.rig.cameras[0].name == '/front/image_raw'
    assert list(source.faults) == [
        'several cameras in the bag, /front/image_raw taken; another one: --topic image=TOPIC '
        '(there: /front/image_raw, /rear/image_raw)'
    ]
    named = open_source(tmp_path / 'bag', topics={'left': '/rear/image_raw'})
    assert named.rig.cameras[0].name == '/rear/image_raw'
    assert named.faults == {}
    with pytest.raises(
        SourceError,
        match=r'"/rear/image"; did you mean "/rear/image_raw"\? there: /front/image_raw, /rear',
    ):
        open_source(tmp_path / 'bag', topics={'image': '/rear/image'})
    with pytest.raises(SourceError, match='unknown topic key "colour"; known: image, right'):
        open_source(tmp_path / 'bag', topics={'colour': '/rear/image'})
    with pytest.raises(CalibrationError, match='no camera_info topic "/x"'):
        open_source(tmp_path / 'bag', topics={'camera_info': '/x'})
    with pytest.raises(
        SourceError, match=r'no stereo .no left and right among /front/image_raw, /rear'
    ):
        open_source(tmp_path / 'bag', sensor='stereo')
    with pytest.raises(SourceError, match='no topic of poses "/gt"; there: none'):
        open_source(tmp_path / 'bag', topics={'truth': '/gt'})


def test_bag_without_camera_info_needs_a_file(tmp_path: Path, rng: np.random.Generator) -> None:
    with Writer(tmp_path / 'bag') as bag:
        bag.image('/cam0/image_raw', START_NS, grey(rng))
    with pytest.raises(CalibrationError, match=r'no camera_info for /cam0/image_raw \(looked for'):
        open_source(tmp_path / 'bag')


def test_bag_without_images(tmp_path: Path) -> None:
    with Writer(tmp_path / 'bag') as bag:
        bag.info('/camera/camera_info', START_NS)
    with pytest.raises(SourceError, match='no camera image among its topics: no image topics'):
        open_source(tmp_path / 'bag')


def test_truth_of_another_frame_is_moved_to_the_body(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    """Odometry names its child frame; the truth asked for is that of the camera."""
    mounted = rigid_transform(matrix_from_quaternion((0.1, 0.2, 0.3, 0.9)), (1, 2, 3))
    world_from_base = rigid_transform(matrix_from_quaternion((0, 0.3, 0, 0.9)), (5, 6, 7))
    with Writer(tmp_path / 'bag') as bag:
        static = bag.transform(START_NS, 'base', 'cam', mounted)
        bag.send('/tf_static', 'tf2_msgs/msg/TFMessage', START_NS, transforms=[static])
        moving = bag.transform(START_NS, 'world', 'base', world_from_base)
        vicon = {'child_frame_id': 'base', 'transform': moving.transform, 'frame': 'world'}
        bag.send('/vicon', 'geometry_msgs/msg/TransformStamped', START_NS, **vicon)
        bag.info('/camera/camera_info', START_NS)
        bag.image('/camera/image_raw', START_NS, grey(rng))
    assert open_source(tmp_path / 'bag').truth is None
    truth = open_source(tmp_path / 'bag', topics={'truth': '/vicon'}).truth
    assert truth is not None
    np.testing.assert_allclose(truth.world_from_body[0], world_from_base @ mounted, atol=1e-14)
    base = open_source(tmp_path / 'bag', topics={'truth': '/vicon'}, body_frame='base').truth
    assert base is not None
    np.testing.assert_allclose(base.world_from_body[0], world_from_base, atol=1e-14)


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
@pytest.mark.parametrize('kept', [0.0, 0.05, 0.5, 0.95])
def test_truncated_ros2_bag(tmp_path: Path, make_source: Make, storage: Any, kept: float) -> None:
    write_bag(tmp_path / 'bag', make_source('mono', count=40), storage=storage)
    [file] = (tmp_path / 'bag').glob('bag.*')
    data = file.read_bytes()
    file.write_bytes(data[: int(kept * len(data))])
    for path in (tmp_path / 'bag', file):
        with pytest.raises(SourceError, match='damaged, truncated or never finished') as raised:
            list(open_source(path))
        assert '\n' not in str(raised.value)
        assert str(path) in str(raised.value)


@pytest.mark.parametrize('kept', [0.0, 0.05, 0.5, 0.95])
def test_truncated_ros1_bag(tmp_path: Path, rng: np.random.Generator, kept: float) -> None:
    path = tmp_path / 'a.bag'
    with Writer(path, ros1=True) as bag:
        for i in range(20):
            bag.info('/camera/camera_info', START_NS + i)
            bag.image('/camera/image_raw', START_NS + i, grey(rng))
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(SourceError, match='damaged, truncated or never finished'):
        list(open_source(path))


def test_missing_bag(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match='no such bag'), BagReader(tmp_path / 'none.bag'):
        pass
    (tmp_path / 'text.bag').write_text('this is no bag')
    with pytest.raises(SourceError, match=r'text\.bag: cannot be read as a bag'):
        open_source(tmp_path / 'text.bag')


def test_without_rosbags_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    for name in [n for n in sys.modules if n.startswith('rosbags')]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'rosbags', None)
    (tmp_path / 'a.bag').touch()
    with pytest.raises(MissingDependencyError, match=r'mv_matcher_ros\[bags\]'):
        open_source(tmp_path / 'a.bag')


def test_frame_tree(poses: Callable[[int], np.ndarray]) -> None:
    a, b, c = poses(3)
    tree = FrameTree()
    tree.add('base', 'arm', a)
    tree.add('arm', '/hand', b)
    tree.add('base', 'leg', c)
    assert 'hand' in tree
    found = tree.lookup('/leg', 'hand')
    assert found is not None
    np.testing.assert_allclose(found, np.linalg.inv(c) @ a @ b, atol=1e-12)
    assert tree.lookup('base', 'moon') is None
    np.testing.assert_array_equal(tree.lookup('x', 'x'), np.eye(4))


def test_binned_images_of_a_bag(tmp_path: Path, rng: np.random.Generator) -> None:
    with Writer(tmp_path / 'bag') as bag:
        bag.info('/camera/camera_info', START_NS, binning_x=2, binning_y=2)
        bag.image('/camera/image_raw', START_NS, cv2.resize(grey(rng), (WIDTH // 2, HEIGHT // 2)))
    [frame] = open_source(tmp_path / 'bag')
    assert frame.views[0].image.shape == (HEIGHT // 2, WIDTH // 2)


def test_namespace_is_not_needed_for_messages() -> None:
    """Live messages are read by the same code: any object with the fields will do."""
    from mv_matcher_ros.files.camera_info import info_from_message

    roi = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0)
    message = SimpleNamespace(
        width=WIDTH,
        height=HEIGHT,
        k=K,
        d=[],
        r=np.eye(3).ravel(),
        p=P,
        distortion_model='',
        binning_x=0,
        binning_y=0,
        roi=roi,
        header=SimpleNamespace(frame_id='cam'),
    )
    assert info_from_message(message).k[0, 0] == 40.0


def test_transforms_that_are_none_are_left_out_and_said(tmp_path: Path, make_source: Make) -> None:
    """A quaternion of zeros in /tf_static, a truth that is nowhere."""
    source = make_source('mono', truth=True)
    source.truth.world_from_body[1, 0, 3] = np.nan
    source.truth.world_from_body[2, 0, 3] = np.inf
    base = source.rig.cameras[0]
    nowhere = base.body_from_camera.copy()
    nowhere[0, 3] = np.inf
    object.__setattr__(base, 'body_from_camera', nowhere)
    with np.errstate(invalid='ignore'):
        write_bag(tmp_path / 'bag', source)
    back = open_source(tmp_path / 'bag')
    assert back.truth is not None
    assert len(back.truth) == len(source.truth) - 2
    assert set(back.faults) >= {
        '/tf_static with a transform that is not one, left out',
        'ground truth with a pose that is not one',
    }


def test_a_calibration_that_is_no_number_is_refused(tmp_path: Path, rng: Any) -> None:
    for name, change in (
        ('k', {'k': np.full(9, np.nan)}), ('d', {'d': np.full(5, np.nan)}),
        ('size', {'width': 2**31}),
    ):  # fmt: skip
        with Writer(tmp_path / name) as bag:
            bag.info('/camera/camera_info', START_NS, **change)
            bag.image('/camera/image_raw', START_NS, grey(rng))
        with pytest.raises(CalibrationError, match=r'/camera/image_raw: .*(nan|finite|larger)'):
            open_source(tmp_path / name)


def test_messages_of_another_type_on_a_topic_are_not_read(tmp_path: Path, rng: Any) -> None:
    with Writer(tmp_path / 'bag') as bag:
        bag.info('/camera/camera_info', START_NS)
        bag.image('/tf_static', START_NS, grey(rng))
        bag.image('/camera/image_raw', START_NS, grey(rng))
    assert len(list(open_source(tmp_path / 'bag'))) == 1


def test_connections_that_share_a_number_are_not_taken_for_each_other(
    tmp_path: Path, rng: Any
) -> None:
    with Writer(tmp_path / 'a.bag', ros1=True) as bag:
        static = bag.transform(START_NS, 'base', 'cam', np.eye(4))
        bag.send('/tf_static', 'tf2_msgs/msg/TFMessage', START_NS, transforms=[static])
        bag.image('/camera/image_raw', START_NS, grey(rng))
        bag.info('/camera/camera_info', START_NS)
    content = (tmp_path / 'a.bag').read_bytes()
    index = content.rindex(b'topic=/tf_static')
    number = content.rindex(b'conn=', 0, index) + 5
    assert content[number] == 0
    (tmp_path / 'a.bag').write_bytes(content[:number] + b'\1' + content[number + 1 :])
    assert len(list(open_source(tmp_path / 'a.bag'))) == 1
