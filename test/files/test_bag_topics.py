# SPDX-License-Identifier: Apache-2.0
"""Which topics are taken from the bags that people have."""

from __future__ import annotations

import pytest

from mv_matcher_ros.files.bag_topics import (
    CAMERA_INFO,
    COMPRESSED,
    RAW,
    Choice,
    Topic,
    choose_topics,
    info_topic,
    is_rectified,
)


def choice(names: str, sensor: str | None = None, **named: str) -> Choice:
    topics = [
        Topic(name, COMPRESSED if name.endswith(('compressed', 'compressedDepth')) else RAW, 10)
        for name in names.split()
    ]
    return choose_topics(topics, named, sensor, 'bag')  # type: ignore[arg-type]


REALSENSE = (
    '/camera/color/image_raw /camera/depth/image_rect_raw '
    '/camera/aligned_depth_to_color/image_raw '
    '/camera/infra1/image_rect_raw /camera/infra2/image_rect_raw'
)


@pytest.mark.parametrize(
    ('names', 'sensor', 'expected'),
    [
        ('/cam0/image_raw /cam1/image_raw', None, ('/cam0/image_raw', '/cam1/image_raw', None)),
        ('/cam0/image_raw /cam1/image_raw', 'mono', ('/cam0/image_raw', None, None)),
        (
            '/zed/left/image_rect_color /zed/right/image_rect_color /zed/depth/depth_registered',
            None,
            ('/zed/left/image_rect_color', None, '/zed/depth/depth_registered'),
        ),
        (
            '/zed/left/image_rect_color /zed/right/image_rect_color /zed/depth/depth_registered',
            'stereo',
            ('/zed/left/image_rect_color', '/zed/right/image_rect_color', None),
        ),
        (
            REALSENSE,
            None,
            ('/camera/color/image_raw', None, '/camera/aligned_depth_to_color/image_raw'),
        ),
        (
            REALSENSE,
            'stereo',
            ('/camera/infra1/image_rect_raw', '/camera/infra2/image_rect_raw', None),
        ),
        (
            '/camera/color/image_raw /camera/depth/image_rect_raw '
            '/camera/infra1/image_rect_raw /camera/infra2/image_rect_raw',
            None,
            ('/camera/infra1/image_rect_raw', '/camera/infra2/image_rect_raw', None),
        ),
        (
            '/camera/rgb/image_color /camera/depth/image',
            None,
            ('/camera/rgb/image_color', None, '/camera/depth/image'),
        ),
        (
            '/depth_camera/color/image_raw /depth_camera/depth/image_raw',
            None,
            ('/depth_camera/color/image_raw', None, '/depth_camera/depth/image_raw'),
        ),
        (
            '/stereo/left/image_raw /stereo/right/image_raw /stereo/left/image_rect '
            '/stereo/right/image_rect /stereo/disparity',
            None,
            ('/stereo/left/image_rect', '/stereo/right/image_rect', None),
        ),
        (
            '/cam/image_raw/compressed /cam/image_raw',
            None,
            ('/cam/image_raw', None, None),
        ),
        (
            '/right/image_raw/compressed /left/image_raw/compressed',
            None,
            ('/left/image_raw/compressed', '/right/image_raw/compressed', None),
        ),
        ('/segmentation/mask /front/image', None, ('/front/image', None, None)),
    ],
)
def test_found_topics(names: str, sensor: str | None, expected: tuple[str | None, ...]) -> None:
    found = choice(names, sensor)
    assert (found.image, found.right, found.depth) == expected


def test_no_more_is_taken_than_was_named() -> None:
    found = choice(REALSENSE, image='/camera/infra1/image_rect_raw')
    assert (found.sensor, found.image) == ('mono', '/camera/infra1/image_rect_raw')
    found = choice(REALSENSE, 'stereo', image='/camera/infra1/image_rect_raw')
    assert found.right == '/camera/infra2/image_rect_raw'


@pytest.mark.parametrize(
    ('topic', 'expected'),
    [
        ('/left/image_rect', True),
        ('/left/image_rect_color/compressed', True),
        ('/camera/infra1/image_rect_raw', True),
        ('/left/image_raw', False),
        ('/rect/image_raw', False),
        ('/direct/image_direct', False),
    ],
)
def test_rectified_by_name(topic: str, expected: bool) -> None:
    assert is_rectified(topic) is expected


def test_camera_info_topics() -> None:
    infos = [Topic(name, CAMERA_INFO, 1) for name in ('/a/camera_info', '/b/img/camera_info')]
    assert info_topic('/a/image_raw', infos, None, 'bag') == '/a/camera_info'
    assert info_topic('/a/image_raw/compressed', infos, None, 'bag') == '/a/camera_info'
    assert info_topic('/b/img', infos, None, 'bag') == '/b/img/camera_info'
    assert info_topic('/c/img', infos[:1], None, 'bag') == '/a/camera_info'
