# SPDX-License-Identifier: Apache-2.0
"""Frames that the node keeps, and the process that learns from them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from std_srvs.srv import Trigger

from mv_matcher_ros.files.open import open_source
from mv_matcher_ros.ros.adaptation import LOG, WEIGHTS

pytestmark = pytest.mark.ros

MS = 1_000_000
LOSSLESS = {'ros.lossless': True}


def ask(bench: Any) -> Any:
    client = bench.tester.create_client(Trigger, 'odometry/adapt')
    bench.wait(client.service_is_ready, 'the service')
    answer = client.call_async(Trigger.Request())
    bench.wait(answer.done, 'an answer')
    return answer.result()


def shoot(bench: Any, camcorder: Callable[..., Any], count: int, sensor: str = 'mono') -> None:
    camera, states = camcorder(sensor), bench.states()
    for number in range(count):
        random = np.random.default_rng(number)
        images = [random.integers(0, 255, (48, 64), np.uint8) for _ in camera.images]
        camera.shoot((1 + number) * 200 * MS, images)
        bench.wait(lambda n=number: len(states) > n, 'the answer')


def test_nothing_is_kept_unless_asked_for(bench: Any, camcorder: Callable[..., Any]) -> None:
    bench.start(LOSSLESS)
    shoot(bench, camcorder, 2)
    answer = ask(bench)
    assert not answer.success
    assert 'set adaptation.folder' in answer.message


@pytest.mark.slow
@pytest.mark.parametrize('sensor', ['mono', 'stereo'])
def test_frames_are_kept_and_learned_from(
    bench: Any, camcorder: Callable[..., Any], tmp_path: Path, sensor: str
) -> None:
    folder = tmp_path / 'clips'
    bench.start({'sensor': sensor, 'adaptation.folder': str(folder), **LOSSLESS})
    diagnostics = bench.collect(DiagnosticArray, '/diagnostics')

    def said(key: str) -> str:
        values = diagnostics[-1].status[0].values if diagnostics else []
        return next((v.value for v in values if v.key == key), '')

    shoot(bench, camcorder, 3, sensor)
    bench.wait(lambda: said('adaptation frames').startswith('3 '), 'three frames on disk')
    assert len(list(open_source(folder, sensor))) == 3
    answer = ask(bench)
    assert answer.success, answer.message
    assert str(folder / WEIGHTS) in answer.message
    assert 'already runs' in ask(bench).message
    # Three frames of noise cannot teach: the process says so, and the node what became of it.
    bench.wait(lambda: 'failed (exit code 2)' in said('adaptation'), 'the end of the process')
    assert 'cannot teach' in (folder / LOG).read_text()
    assert not (folder / WEIGHTS).exists()


def test_at_the_end_the_process_is_left_alone(
    bench: Any, camcorder: Callable[..., Any], tmp_path: Path
) -> None:
    node = bench.start({
        'adaptation.folder': str(tmp_path), 'adaptation.at_shutdown': True, **LOSSLESS,
    })  # fmt: skip
    shoot(bench, camcorder, 2)
    node.close()
    process = node._worker.adaptation._process
    assert process is not None
    process.wait(60.0)
    assert 'cannot teach' in (tmp_path / LOG).read_text()


def test_a_folder_that_cannot_be_written_does_not_stop_the_odometry(
    bench: Any, camcorder: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / 'file').write_text('')
    bench.start({'adaptation.folder': str(tmp_path / 'file'), **LOSSLESS})
    shoot(bench, camcorder, 2)
    assert len(bench.engines[0].frames) == 2
    answer = ask(bench)
    assert not answer.success
    assert 'cannot be written' in answer.message


def test_a_folder_that_is_gone_does_not_end_the_node(
    bench: Any, camcorder: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / 'stick'
    node = bench.start({
        'adaptation.folder': str(folder), 'adaptation.at_shutdown': True, **LOSSLESS,
    })  # fmt: skip
    shoot(bench, camcorder, 2)
    bench.wait(lambda: node._worker.adaptation._store.frames == 2, 'frames on disk')
    shutil.rmtree(folder)
    answer = ask(bench)
    assert not answer.success
    assert 'cannot be started' in answer.message
    node.close()
    assert node.failure is None
