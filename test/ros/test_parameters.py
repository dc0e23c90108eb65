# SPDX-License-Identifier: Apache-2.0
"""ROS parameters: declared from the settings tree, refused when unknown, checked on change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import rclpy
from rclpy.context import Context
from rclpy.node import Node
from rclpy.parameter import Parameter

from mv_matcher_ros.config import Settings, leaves
from mv_matcher_ros.errors import SettingsError
from mv_matcher_ros.ros.parameters import CHANGEABLE, CHANGEABLE_OF_MAP, changed, declare

pytestmark = pytest.mark.ros


@pytest.fixture(scope='module')
def context() -> Iterator[Context]:
    context = Context()
    rclpy.init(context=context)
    yield context
    rclpy.try_shutdown(context=context)


@pytest.fixture
def declared(context: Context) -> Iterator[Any]:
    nodes = []

    def make(**overrides: Any) -> tuple[Settings, Node]:
        node = Node(
            'odometry',
            context=context,
            parameter_overrides=[
                Parameter(n.replace('__', '.'), value=v) for n, v in overrides.items()
            ],
        )
        nodes.append(node)
        return declare(node), node

    yield make
    for node in nodes:
        node.destroy_node()


def test_every_setting_is_a_parameter_with_its_default_and_description(declared: Any) -> None:
    settings, node = declared()
    assert settings == Settings()
    for name, info in leaves():
        assert node.get_parameter(name).value == info.default, name
        description = node.describe_parameter(name)
        assert description.description == info.description
        assert description.read_only is (name not in CHANGEABLE)


def test_overrides_are_taken_and_whole_numbers_are_good_floats(declared: Any) -> None:
    settings, node = declared(
        sensor='stereo', matching__ratio=1, ros__frames__odom='world', use_sim_time=True
    )
    assert settings.sensor == 'stereo'
    assert settings.matching.ratio == 1.0
    assert node.get_parameter('matching.ratio').value == 1.0
    assert settings.ros.frames.odom == 'world'


def test_ranges_and_choices_are_told(declared: Any) -> None:
    _, node = declared()
    keypoints = node.describe_parameter('detector.max_keypoints')
    assert (keypoints.integer_range[0].from_value, keypoints.integer_range[0].to_value) == (
        50,
        8000,
    )
    ratio = node.describe_parameter('matching.ratio')
    assert ratio.floating_point_range[0].to_value == 1.0
    radius = node.describe_parameter('matching.search_radius_px')
    assert 'greater than 0' in radius.additional_constraints
    assert 'sift' in node.describe_parameter('detector.name').additional_constraints


@pytest.mark.parametrize(
    ('overrides', 'says'),
    [
        ({'detector__max_keypoint': 500}, '/odometry.*max_keypoint.*detector.max_keypoints'),
        ({'publish_tf': True}, 'publish_tf.*ros.publish_tf'),
        ({'matching__ratio': 1.5}, 'matching.ratio = 1.5'),
        ({'sensor': 'lidar'}, 'sensor = .lidar'),
        ({'keyframes__window': 'ten'}, 'keyframes.window'),
    ],
)
def test_wrong_overrides_are_refused(declared: Any, overrides: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        declared(**overrides)


def test_changes_at_run_time() -> None:
    settings = changed(Settings(), [Parameter('ros.publish_tf', value=False)])
    assert settings.ros.publish_tf is False
    assert changed(Settings(), [Parameter('use_sim_time', value=True)]) == Settings()
    with pytest.raises(SettingsError, match='start it again'):
        changed(Settings(), [Parameter('detector.max_keypoints', value=100)])
    saved = [Parameter('mapping.save_every_s', value=5.0)]
    assert changed(Settings(), saved, CHANGEABLE_OF_MAP).mapping.save_every_s == 5.0
    with pytest.raises(SettingsError, match='start it again'):
        changed(Settings(), saved)
    assert {name for name, _ in leaves()} >= CHANGEABLE | CHANGEABLE_OF_MAP
    with pytest.raises(SettingsError, match='path_length'):
        changed(Settings(), [Parameter('ros.path_length', value=-1)])


def test_node_takes_and_refuses_changes(bench: Any) -> None:
    node = bench.start()
    good, bad, fixed = node.set_parameters(
        [
            Parameter('ros.path_length', value=7),
            Parameter('ros.path_length', value=-7),
            Parameter('detector.max_keypoints', value=700),
        ]
    )
    assert good.successful
    assert not bad.successful
    assert not fixed.successful
    assert node.settings.ros.path_length == 7
