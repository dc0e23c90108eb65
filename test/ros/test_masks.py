# SPDX-License-Identifier: Apache-2.0
"""Where no features may lie: masks that come with the images, and masks from files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import Image

from mv_matcher_ros.ros.conversions import message_from_image
from mv_matcher_ros.ros.inputs import mask_topics_of
from mv_matcher_ros.ros.messages import header_message

pytestmark = pytest.mark.ros
MS = 10**6


def half(left: bool, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """White where features may lie: one half of the image."""
    mask = np.zeros(size[::-1], np.uint8)
    mask[:, : size[0] // 2 if left else None] = 255 if left else 0
    mask[:, size[0] // 2 :] = 0 if left else 255
    return mask


def publish(publisher: Any, mask: np.ndarray, stamp: int) -> None:
    publisher.publish(message_from_image(mask, 'mono8', header_message(stamp, 'camera')))


def test_topics_of_masks_are_those_of_the_cameras_whose_features_are_used() -> None:
    assert mask_topics_of('mono') == ('mask',)
    assert mask_topics_of('rgbd') == ('mask',)
    assert mask_topics_of('stereo') == ('left/mask',)
    assert mask_topics_of('stereo', 2) == ('left/mask', 'left_2/mask')


@pytest.mark.parametrize('sensor', ['mono', 'stereo'])
def test_a_mask_comes_with_its_image(
    bench: Any, camcorder: Callable[..., Any], sensor: str
) -> None:
    bench.start({'sensor': sensor, 'ros.mask_topics': True, 'ros.lossless': True})
    states, camera = bench.states(), camcorder(sensor)
    masks = bench.publisher(Image, mask_topics_of(sensor)[0])  # type: ignore[arg-type]
    for stamp, left in ((100, True), (200, False)):
        camera.shoot(stamp * MS)
        publish(masks, half(left), stamp * MS)
    bench.wait(lambda: len(states) == 2, 'answers')
    frames = bench.engines[0].frames
    for frame, left in zip(frames, (True, False), strict=True):
        np.testing.assert_array_equal(frame.views[0].mask, half(left) > 0)
        assert all(view.mask is None for view in frame.views[1:])


def test_an_image_without_its_mask_waits_and_the_mask_is_missed_by_name(
    bench: Any, camcorder: Callable[..., Any]
) -> None:
    from diagnostic_msgs.msg import DiagnosticArray

    bench.start({'ros.mask_topics': True, 'ros.lossless': True})
    diagnostics, states = bench.collect(DiagnosticArray, '/diagnostics'), bench.states()
    camcorder().shoot(100 * MS)
    bench.wait(lambda: any('/mask' in m.status[0].message for m in diagnostics), 'a complaint')
    assert not states


def test_a_file_holds_for_every_frame_and_both_count(
    bench: Any, camcorder: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / 'hood.png'
    upper = np.zeros((48, 64), np.uint8)
    upper[:24] = 255
    cv2.imwrite(str(path), upper)
    bench.start({'ros.mask_files': str(path), 'ros.mask_topics': True, 'ros.lossless': True})
    states, camera = bench.states(), camcorder()
    masks = bench.publisher(Image, 'mask')
    camera.shoot(100 * MS)
    publish(masks, half(True), 100 * MS)
    bench.wait(lambda: states, 'an answer')
    mask = bench.engines[0].frames[0].views[0].mask
    np.testing.assert_array_equal(mask, (half(True) > 0) & (upper > 0))


@pytest.mark.parametrize(
    ('files', 'words'),
    [('/nowhere.png', 'nowhere.png'), ('a.png,b.png', '2 files, 1 are needed')],
)
def test_a_mask_that_cannot_be_used_is_said(
    bench: Any, camcorder: Callable[..., Any], files: str, words: str
) -> None:
    bench.start({'ros.mask_files': files, 'ros.lossless': True})
    states, camera = bench.states(), camcorder()
    camera.shoot(100 * MS)
    bench.wait(lambda: states, 'an answer')
    assert states[0]['status'] == 'SKIPPED'
    assert words in states[0]['message']


def test_a_mask_of_another_size_is_said(bench: Any, camcorder: Callable[..., Any]) -> None:
    bench.start({'ros.mask_topics': True, 'ros.lossless': True})
    states, camera = bench.states(), camcorder()
    masks = bench.publisher(Image, 'mask')
    camera.shoot(100 * MS)
    publish(masks, half(True, (32, 24)), 100 * MS)
    bench.wait(lambda: states, 'an answer')
    assert states[0]['status'] == 'SKIPPED'
    assert '/mask' in states[0]['message']
    assert '32x24' in states[0]['message']
