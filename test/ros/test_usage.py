# SPDX-License-Identifier: Apache-2.0
"""`odometry_node --help`, and words that are no ROS arguments."""

from __future__ import annotations

from typing import Any

import pytest

from mv_matcher_ros.ros.inputs import TOPICS
from mv_matcher_ros.ros.main import OUTPUTS, odometry

pytestmark = pytest.mark.ros


@pytest.mark.parametrize('words', [['--help'], ['-h'], ['--ros-args', '--help']])
def test_help_is_printed_and_no_node_is_started(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(arguments: Any) -> None:
        raise AssertionError('ROS was started')

    monkeypatch.setattr('mv_matcher_ros.ros.node_process.init', refuse)
    assert odometry(words) == 0
    shown = capsys.readouterr().out
    for images, infos in TOPICS.values():
        assert ' '.join((*images, *infos)) in shown
    for name in ('sensor (default mono)', 'ros.lossless (default false)', 'mv-matcher settings'):
        assert name in shown


def test_help_names_every_topic_that_the_node_publishes(bench: Any) -> None:
    node = bench.start()
    told = {node.resolve_topic_name(topic.replace('~', 'odometry')) for topic in OUTPUTS}
    of_every_node = {'/rosout', '/parameter_events'}
    assert {publisher.topic_name for publisher in node.publishers} - of_every_node == told


def test_a_word_that_is_no_ros_argument_is_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert odometry(['--sensor', 'mono', '--ros-args', '-p', 'sensor:=mono']) == 2
    said = capsys.readouterr().err
    assert said.startswith('odometry: unknown argument "--sensor"')
    assert len(said.splitlines()) == 1
