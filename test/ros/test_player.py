# SPDX-License-Identifier: Apache-2.0
"""The bag player: mounts of a bag, compressed images, what it waits for, and no answers."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import CameraInfo, Image

from mv_matcher_ros.datatypes import Sensor
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.files.bag import write_bag
from mv_matcher_ros.ros import bag_player, playback
from mv_matcher_ros.ros.playback import BagPlayer, Playback
from mv_matcher_ros.worlds.presets import room_loop

pytestmark = [pytest.mark.ros, pytest.mark.slow]

FRAMES = 3
LOSSLESS = {'ros.lossless': True}
MOUNTED = {**LOSSLESS, 'sensor': 'stereo', 'ros.extrinsics_from_tf': True, 'ros.tf_timeout_s': 0.1}
Played = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def play(capfd: pytest.CaptureFixture[str]) -> Iterator[Played]:
    """Runs the command line of the player: (exit code, what it counted, stderr)."""
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

    def run(*words: Any) -> tuple[int, dict[str, Any], str]:
        capfd.readouterr()
        code = bag_player.main([str(word) for word in words])
        out, error = capfd.readouterr()
        return code, json.loads(out) if out else {}, error

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    """A stereo bag whose /tf_static has base_link → camera."""
    write_bag(tmp_path / 'bag', room_loop('stereo', FRAMES, (64, 48)))
    return tmp_path / 'bag'


def test_mounts_of_a_bag_are_played(bench: Any, play: Played, bag: Path) -> None:
    node = bench.start(MOUNTED)
    code, counted, error = play(bag, '--lossless', '--body-frame', 'base_link', '--timeout', 20)
    assert code == 0, error
    assert counted['answers'] == {'TRACKING': FRAMES}
    assert '/tf_static: base_link -> left_camera, right_camera' in error
    world = room_loop('stereo', FRAMES, (64, 48))
    (engine,) = bench.engines
    assert engine.rig.body_axes == 'rep103'
    for sent, received in zip(world.rig.cameras, engine.rig.cameras, strict=True):
        np.testing.assert_allclose(received.body_from_camera, sent.body_from_camera, atol=1e-9)
    assert node._outputs.body == 'base_link'


def test_a_body_frame_that_leads_nowhere_is_refused(
    play: Played, bag: Path, tmp_path: Path
) -> None:
    code, _, error = play(bag, '--body-frame', 'drone')
    assert (code, 'does not connect "drone"' in error) == (2, True), error
    code, _, error = play(unmounted(tmp_path / 'kitti'), '--body-frame', 'base_link')
    assert (code, 'leave --body-frame out' in error) == (2, True), error


def test_calibration_and_topics_are_those_of_the_recording(
    bench: Any, play: Played, bag: Path, tmp_path: Path
) -> None:
    images = tmp_path / 'images'
    images.mkdir()
    for index in range(FRAMES):
        cv2.imwrite(str(images / f'{index}.png'), np.full((48, 64), 90, np.uint8))
    calibration = tmp_path / 'camera.yaml'
    calibration.write_text('width: 64\nheight: 48\nintrinsics: [61, 62, 31, 23]\nrate_hz: 10\n')
    bench.start(LOSSLESS)
    words = ['--lossless', '--timeout', 20]
    code, _, error = play(images, '--calibration', calibration, *words)
    assert code == 0, error
    (engine,) = bench.engines
    assert engine.rig.cameras[0].intrinsics == (61, 62, 31, 23)
    code, _, error = play(images, '--calibration', calibration, '--topic', 'image=/a')
    assert (code, 'topics and body_frame are for bags' in error) == (2, True), error
    code, _, error = play(bag, '--topic', 'image=/nowhere')
    assert (code, '/nowhere' in error) == (2, True), error
    with pytest.raises(SystemExit):
        play(bag, '--topic', 'image')


def unmounted(folder: Path) -> Path:
    """A KITTI sequence of one image: nothing there says where the camera sits."""
    (folder / 'image_0').mkdir(parents=True)
    cv2.imwrite(str(folder / 'image_0' / '000000.png'), np.zeros((48, 64), np.uint8))
    (folder / 'calib.txt').write_text('P0: 60 0 32 0 0 60 24 0 0 0 1 0\n')
    (folder / 'times.txt').write_text('0.0\n')
    return folder


def test_nothing_answered_is_code_2_and_says_why(bench: Any, play: Played, bag: Path) -> None:
    bench.start(MOUNTED)
    code, counted, error = play(bag, '--timeout', 4)  # the mounts are not played
    assert (code, counted['published'], counted['answers']) == (2, FRAMES, {})
    (line,) = [line for line in error.splitlines() if line.startswith('bag_player: ')]
    assert f'none of {FRAMES} frames was answered on /odometry/state' in line
    assert 'the node says: no transform base_link <- left_camera in TF' in line


def test_listeners_that_are_no_node_are_code_2_too(bench: Any, play: Played, bag: Path) -> None:
    for side in ('left', 'right'):
        bench.tester.create_subscription(Image, f'/{side}/image', lambda _: None, 10)
        bench.tester.create_subscription(CameraInfo, f'/{side}/camera_info', lambda _: None, 10)
    code, counted, error = play(bag, '--timeout', 10)
    assert (code, counted['published'], counted['answers']) == (2, FRAMES, {})
    assert f'{FRAMES} frames were published, but nobody publishes /odometry/state' in error


@pytest.mark.parametrize('sensor', ['mono', 'stereo', 'rgbd'])
@pytest.mark.parametrize('form', ['png', 'jpeg'])
def test_compressed_images_reach_the_engine(bench: Any, sensor: Sensor, form: str) -> None:
    bench.start({**LOSSLESS, 'sensor': sensor, 'ros.image_transport': 'compressed'})
    source = room_loop(sensor, FRAMES, (64, 48))
    how = Playback(lossless=True, timeout_s=20.0, compressed=form)
    BagPlayer(bench.lonely, source, how).play()
    (engine,) = bench.engines
    assert len(engine.frames) == FRAMES
    for sent, received in zip(source, engine.frames, strict=True):
        for view, got in zip(sent.views, received.views, strict=True):
            difference = np.abs(view.image.astype(int) - got.image)
            assert difference.max() == 0 if form == 'png' else 0 < difference.mean() < 5
            if sensor == 'rgbd':
                known = np.nan_to_num(view.depth)
                np.testing.assert_allclose(got.depth, known, atol=0.51e-3)


def test_two_stereo_pairs_reach_the_engine_with_their_mounts(bench: Any) -> None:
    bench.start({**MOUNTED, 'stereo.pairs': 2, 'ros.tf_timeout_s': 5.0})
    source = room_loop('stereo', FRAMES, (64, 48), pairs=2)
    BagPlayer(bench.lonely, source, Playback(lossless=True, timeout_s=20.0)).play()
    (engine,) = bench.engines
    for sent, received in zip(source.rig.cameras, engine.rig.cameras, strict=True):
        np.testing.assert_allclose(
            received.body_from_camera, sent.body_from_camera, rtol=0, atol=1e-6
        )
    assert len(engine.frames) == FRAMES
    for sent, received in zip(source, engine.frames, strict=True):
        assert len(received.views) == 4
        for view, got in zip(sent.views, received.views, strict=True):
            assert np.array_equal(view.image, got.image)


def test_a_node_with_a_calibration_of_its_own_is_played_to(bench: Any, tmp_path: Path) -> None:
    (tmp_path / 'camera.yaml').write_text('width: 64\nheight: 48\nintrinsics: [61, 62, 31, 23]\n')
    bench.start({**LOSSLESS, 'ros.calibration_file': str(tmp_path / 'camera.yaml')})
    source = room_loop('mono', FRAMES, (64, 48))
    BagPlayer(bench.lonely, source, Playback(lossless=True, timeout_s=20.0)).play()
    assert len(bench.engines[0].frames) == FRAMES


def test_player_says_what_it_waits_for(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A node of another sensor: the topics it listens to are named."""
    monkeypatch.setattr(playback, '_SAY_S', 0.2)
    bench.start({'sensor': 'stereo'})
    player = BagPlayer(bench.lonely, room_loop('mono', 1, (64, 48)), Playback(timeout_s=2.0))
    with pytest.raises(SourceError, match='nobody subscribes to /image'):
        player.play()
    said = capfd.readouterr().err
    assert 'waiting for a node for mono, at most 2 s: nobody subscribes to /image ' in said
    assert 'images are awaited on /left/image, /right/image' in said
