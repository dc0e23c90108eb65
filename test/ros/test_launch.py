# SPDX-License-Identifier: Apache-2.0
"""What a user starts the node with: launch, parameters, RViz, executables, DDS profile."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from mv_matcher_ros.config import Settings, leaves, load_settings, read_settings
from mv_matcher_ros.ros import dds_profile
from mv_matcher_ros.ros.inputs import TOPICS

pytestmark = pytest.mark.ros


class Recorded:
    """Stands for any class of launch: keeps what it was made with."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.arguments, self.named = arguments, named

    def perform(self, context: dict[str, str]) -> str:
        return context[self.arguments[0]]


def load(path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location('launch_file', path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def launch(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Loads a launch file without launch (pip has none): tested is what it asks for."""
    for name, classes in {
        'launch': ('LaunchContext', 'LaunchDescription', 'LaunchDescriptionEntity'),
        'launch.actions': (
            'DeclareLaunchArgument',
            'IncludeLaunchDescription',
            'OpaqueFunction',
        ),
        'launch.launch_description_sources': ('PythonLaunchDescriptionSource',),
        'launch.substitutions': ('LaunchConfiguration',),
        'launch_ros': (),
        'launch_ros.actions': ('Node',),
        'ament_index_python.packages': (),
    }.items():
        module = ModuleType(name)
        for one in classes:
            setattr(module, one, Recorded)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules['ament_index_python.packages'].get_package_share_directory = (  # type: ignore[attr-defined]
        lambda package: str(repository)
    )
    return lambda mode: load(repository / 'launch' / f'{mode}.launch.py')


@pytest.fixture
def launch_file(launch: Callable[[str], ModuleType]) -> ModuleType:
    """That of odometry."""
    return launch('odometry')


def started(launch_file: ModuleType, **given: str) -> list[Recorded]:
    """The nodes that a launch with these arguments starts."""
    context = {name: default for name, default, _ in launch_file.ARGUMENTS}
    assert set(given) <= set(context)
    nodes: list[Recorded] = launch_file.nodes({**context, **given})
    return nodes


def test_arguments_that_are_not_given_do_not_override_the_parameter_file(
    launch_file: ModuleType, repository: Path
) -> None:
    (node,) = started(launch_file)
    file, overrides = node.named['parameters']
    assert Path(file) == repository / 'config' / 'odometry.yaml'
    assert overrides == {'use_sim_time': False}


def test_arguments_reach_the_node(launch_file: ModuleType) -> None:
    odometry, rviz = started(
        launch_file,
        sensor='stereo',
        image='/l/image_rect',
        right_image='/r/image_rect',
        extrinsics_from_tf='true',
        body_frame='base_footprint',
        namespace='robot',
        rviz='true',
    )
    assert odometry.named['parameters'][1] == {
        'sensor': 'stereo',
        'ros.extrinsics_from_tf': True,
        'ros.frames.body': 'base_footprint',
        'use_sim_time': False,
    }
    remapped = dict(odometry.named['remappings'])
    assert remapped['left/image'] == '/l/image_rect'
    assert remapped['right/image'] == '/r/image_rect'
    assert {t for images, infos in TOPICS.values() for t in (*images, *infos)} == set(remapped)
    assert odometry.named['namespace'] == rviz.named['namespace'] == 'robot'
    with pytest.raises(RuntimeError, match='rviz:=maybe'):
        started(launch_file, rviz='maybe')


def test_launch_description_declares_every_argument(launch_file: ModuleType) -> None:
    description = launch_file.generate_launch_description()
    declared = [entity.arguments[0] for entity in description.arguments[0][:-1]]
    assert declared == [name for name, _, _ in launch_file.ARGUMENTS]
    parameters = set(launch_file.PARAMETERS.values())
    assert parameters <= {name for name, _ in leaves()}


def included(description: Any) -> list[str]:
    """Names of the launch files that a description includes."""
    return [
        Path(entity.arguments[0].arguments[0]).name
        for entity in description.arguments[0]
        if entity.arguments and isinstance(entity.arguments[0], Recorded)
    ]


def test_mapping_is_odometry_and_a_mapping_node(
    launch: Callable[[str], ModuleType], repository: Path
) -> None:
    file = launch('mapping')
    (node,) = started(file, map_folder='/maps/home', namespace='robot')
    assert node.named['executable'] == 'mapping_node'
    assert dict(node.named['remappings']) == {'keyframes': 'odometry/keyframes'}
    assert node.named['parameters'] == [
        str(repository / 'config' / 'mapping.yaml'),
        {'mapping.folder': '/maps/home', 'use_sim_time': False},
    ]
    assert set(file.PARAMETERS.values()) <= {name for name, _ in leaves()}
    assert included(file.generate_launch_description()) == ['odometry.launch.py']
    # Both files are told the same things by the same names.
    known = {name for name, _, _ in launch('odometry').ARGUMENTS}
    shared = {
        'params_file', 'namespace', 'autostart', 'use_sim_time', 'rviz_config', 'log_level',
    }  # fmt: skip
    assert {name for name, _, _ in file.ARGUMENTS} & known == shared


def test_localization_is_mapping_with_other_settings(
    launch: Callable[[str], ModuleType], repository: Path
) -> None:
    description = launch('localization').generate_launch_description()
    assert included(description) == ['mapping.launch.py']
    declared = description.arguments[0][0]
    assert declared.arguments == ('params_file',)
    assert Path(declared.named['default_value']) == repository / 'config' / 'localization.yaml'


@pytest.mark.parametrize('mode', ['odometry', 'mapping', 'localization'])
def test_parameter_files_are_settings(mode: str, repository: Path) -> None:
    content = yaml.safe_load((repository / 'config' / f'{mode}.yaml').read_text())
    settings = read_settings(content['/**']['ros__parameters'], where=mode)
    assert settings.ros.publish_keyframes == (mode != 'odometry')
    assert settings.mapping.grow == (mode != 'localization')
    assert (settings.keyframes.map_lag == 1) == (mode == 'localization')


@pytest.mark.parametrize(
    'name',
    ['odometry_node', 'mapping_node', 'slam_node', 'bag_player', 'trajectory_recorder'],
)
def test_executables_run_the_module_that_exists(
    repository: Path, name: str, tmp_path: Path
) -> None:
    script = repository / 'scripts' / name
    assert os.access(script, os.X_OK)
    module = re.search(r'-m (\S+)', script.read_text())
    assert module is not None
    assert importlib.util.find_spec(module[1]) is not None
    # Installed by pip, the interpreter beside it is taken, whatever the caller's PATH says.
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'lib' / 'p').mkdir(parents=True)
    (tmp_path / 'bin' / 'python3').write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / 'bin' / 'python3').chmod(0o755)
    installed = tmp_path / 'lib' / 'p' / name
    installed.write_text(script.read_text())
    installed.chmod(0o755)
    run = subprocess.run([installed, '--ros-args'], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ['-m', module[1], '--ros-args']


def test_the_launch_file_names_an_executable_there_is(
    launch_file: ModuleType, repository: Path
) -> None:
    (node,) = started(launch_file)
    assert (repository / 'scripts' / node.named['executable']).is_file()


def test_parameter_file_is_accepted_and_changes_nothing(repository: Path) -> None:
    text = (repository / 'config' / 'odometry.yaml').read_text()
    assert load_settings(repository / 'config' / 'odometry.yaml') == Settings()
    # What stands there as a comment must be right too once somebody takes the sign away.
    lines = text.splitlines()
    settings = [re.sub(r'^(\s*)# (\s*[a-z_]+:)', r'\1\2', line) for line in lines]
    content = yaml.safe_load('\n'.join(settings))['/**']['ros__parameters']
    assert read_settings(content).ros.image_transport == 'compressed'
    assert read_settings(content).detector.working_pixels == 300_000


def test_rviz_shows_what_the_node_publishes(repository: Path) -> None:
    content = yaml.safe_load((repository / 'config' / 'odometry.rviz').read_text())
    displays = content['Visualization Manager']['Displays']
    topics = {d['Topic']['Value'] for d in displays if 'Topic' in d}
    assert topics == {'odometry', 'path', 'odometry/landmarks', 'odometry/tracks'}
    assert content['Visualization Manager']['Global Options']['Fixed Frame'] == 'odom'


def test_profile_is_found_valid_and_gives_way_to_the_users(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = 'FASTDDS_DEFAULT_PROFILES_FILE'
    monkeypatch.setenv(variable, '/etc/mine.xml')
    assert dds_profile.apply_profile() is None
    assert os.environ[variable] == '/etc/mine.xml'
    monkeypatch.delenv(variable)
    profile = dds_profile.apply_profile()
    assert profile == repository / 'config' / 'fastdds_profile.xml'
    assert os.environ[variable] == str(profile)
    space = '{http://www.eprosima.com}'
    sizes = [e.text for e in ElementTree.parse(profile).iter(f'{space}segment_size')]
    assert sizes == [str(16 * 1024 * 1024)]


@pytest.mark.parametrize('name', ['main', 'bag_player', 'trajectory_recorder'])
def test_without_ros_the_extra_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f'mv_matcher_ros.ros.{name}')
    monkeypatch.setitem(sys.modules, 'rclpy', None)
    entry = module.odometry if name == 'main' else module.main
    assert entry([]) == 2
    assert 'pip install "mv_matcher_ros[ros]"' in capsys.readouterr().err
