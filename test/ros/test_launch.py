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
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from rclpy.qos import DurabilityPolicy

from mv_matcher_ros.config import Settings, leaves, load_settings, read_settings
from mv_matcher_ros.ros import dds_profile
from mv_matcher_ros.ros.bag_player import _parser
from mv_matcher_ros.ros.inputs import TOPICS, topics_of
from mv_matcher_ros.ros.mapping_node import MappingNode

pytestmark = pytest.mark.ros


class Recorded:
    """Stands for any class of launch: keeps what it was made with."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.arguments, self.named = arguments, named

    def perform(self, context: dict[str, str]) -> str:
        """What a LaunchConfiguration does."""
        name = self.arguments[0]
        return context[name] if 'default' not in self.named else context.get(name, '')


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
            'Shutdown',
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
    assert overrides == {}
    *_, rviz = started(launch_file, rviz='true')
    assert rviz.named['parameters'] == []
    *_, rviz = started(launch_file, rviz='true', use_sim_time='true')
    assert rviz.named['parameters'] == [{'use_sim_time': True}]


def test_arguments_reach_the_node(launch_file: ModuleType) -> None:
    odometry, rviz = started(
        launch_file,
        sensor='stereo',
        image='/l/image_rect',
        right_image='/r/image_rect',
        right_camera_info='/r/info',
        extrinsics_from_tf='true',
        body_frame='base_footprint',
        namespace='robot',
        rviz='true',
        use_sim_time='false',
        log_level='debug',
    )
    assert odometry.named['parameters'][1] == {
        'sensor': 'stereo',
        'ros.extrinsics_from_tf': True,
        'ros.frames.body': 'base_footprint',
        'use_sim_time': False,
    }
    remapped = dict(odometry.named['remappings'])
    assert remapped['left/image'] == '/l/image_rect'
    assert remapped['left/camera_info'] == '/l/camera_info'  # where drivers put it
    assert remapped['right/image'] == '/r/image_rect'
    assert remapped['right/camera_info'] == '/r/info'
    assert odometry.named['arguments'][-1] == 'debug'
    assert odometry.named['namespace'] == rviz.named['namespace'] == 'robot'
    with pytest.raises(RuntimeError, match='rviz:=maybe'):
        started(launch_file, rviz='maybe')


def test_topics_that_are_not_given_keep_the_names_of_the_node(launch_file: ModuleType) -> None:
    """They are those of the player: what it plays arrives without a remapping."""
    assert launch_file.inputs(dict.fromkeys((n for n, _, _ in launch_file.ARGUMENTS), '')) == []
    every = {'image': 'a', 'right_image': 'b', 'depth': 'c'}
    given = dict.fromkeys((n for n, _, _ in launch_file.ARGUMENTS), '') | every
    known = {t for images, infos in TOPICS.values() for t in (*images, *infos)}
    assert dict(launch_file.inputs(given)).keys() == known


def test_a_second_pair_is_remapped_by_rules(launch_file: ModuleType) -> None:
    rules = 'left_2/image:=/rear/l/image right_2/image:=/rear/r/image'
    (node,) = started(launch_file, sensor='stereo', remap=rules)
    images = dict(node.named['remappings'])
    assert images == {'left_2/image': '/rear/l/image', 'right_2/image': '/rear/r/image'}
    assert set(images) <= set(topics_of('stereo', 2)[0])
    with pytest.raises(RuntimeError, match='write FROM:=TO'):
        started(launch_file, remap='left_2/image')


def test_frames_have_the_prefix_in_rviz_too(launch_file: ModuleType) -> None:
    odometry, rviz = started(launch_file, frame_prefix='robot1/', rviz='true')
    assert odometry.named['parameters'][1]['ros.frames.prefix'] == 'robot1/'
    assert rviz.named['arguments'][-2:] == ['-f', 'robot1/odom']
    mapping = started(launch_file, map_frame='site', mapping='true', rviz='true')[-1]
    assert mapping.named['arguments'][-2:] == ['-f', 'site']
    _, plain = started(launch_file, rviz='true')
    assert '-f' not in plain.named['arguments']


def test_tf_can_stay_in_the_namespace(launch_file: ModuleType) -> None:
    tf = [('/tf', 'tf'), ('/tf_static', 'tf_static')]
    found = started(launch_file, tf_in_namespace='true', mapping='true', rviz='true')
    assert all(node.named['remappings'][-2:] == tf for node in found)
    assert all(not set(tf) & set(node.named['remappings']) for node in started(launch_file))


def declared(description: Any) -> dict[str, Any]:
    """Arguments that a description declares itself, and their defaults."""
    return {
        entity.arguments[0]: entity.named['default_value']
        for entity in description.arguments[0]
        if 'default_value' in entity.named
    }


def test_launch_description_declares_every_argument(launch_file: ModuleType) -> None:
    names = [name for name, _, _ in launch_file.ARGUMENTS]
    assert list(declared(launch_file.generate_launch_description())) == names
    assert set(launch_file.PARAMETERS.values()) <= {name for name, _ in leaves()}
    assert {*launch_file.PARAMETERS, *launch_file.FLAGS} <= set(names)


def included(description: Any) -> list[str]:
    """Names of the launch files that a description includes."""
    return [
        Path(entity.arguments[0].arguments[0]).name
        for entity in description.arguments[0]
        if entity.arguments and isinstance(entity.arguments[0], Recorded)
    ]


def test_mapping_is_odometry_and_a_mapping_node(
    launch: Callable[[str], ModuleType], launch_file: ModuleType, repository: Path
) -> None:
    description = launch('mapping').generate_launch_description()
    assert included(description) == ['odometry.launch.py']
    defaults = declared(description)
    assert defaults['mapping'] == 'true'
    assert Path(defaults['params_file']) == repository / 'config' / 'mapping.yaml'
    assert set(defaults) <= {name for name, _, _ in launch_file.ARGUMENTS}

    odometry, node = started(
        launch_file, mapping='true', map_folder='/maps/home', namespace='robot', autostart='false'
    )
    assert node.named['executable'] == 'mapping_node'
    assert dict(node.named['remappings']) == {'keyframes': 'odometry/keyframes'}
    overrides = node.named['parameters'][1]
    assert overrides == {
        'mapping.folder': '/maps/home',
        'ros.publish_keyframes': True,  # whatever file is given
        'ros.autostart': False,
    }
    assert odometry.named['parameters'] == node.named['parameters']
    assert odometry.named['namespace'] == node.named['namespace'] == 'robot'


def test_one_process_for_both(launch_file: ModuleType) -> None:
    (node,) = started(launch_file, mapping='true', one_process='true', image='/eye')
    assert node.named['executable'] == 'slam_node'
    assert 'name' not in node.named  # it would rename both
    assert ('image', '/eye') in node.named['remappings']
    assert 'sigterm_timeout' in node.named


def test_localization_is_mapping_with_other_settings(
    launch: Callable[[str], ModuleType], repository: Path
) -> None:
    description = launch('localization').generate_launch_description()
    assert included(description) == ['mapping.launch.py']
    defaults = declared(description)
    assert Path(defaults['params_file']) == repository / 'config' / 'localization.yaml'
    # Whatever file is given instead, it is no mapping.
    file = launch('odometry')
    own = {**defaults, 'params_file': 'mine.yaml', 'mapping': 'true'}
    _, node = started(file, **own)
    name, overrides = node.named['parameters']
    assert (name, overrides['mapping.grow'], overrides['keyframes.map_lag']) == (
        'mine.yaml', False, 1,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match='map_lag:=few'):
        started(file, map_lag='few')


def played(file: ModuleType, **given: str) -> Recorded:
    """The player that a replay with these arguments starts."""
    own = {name: default for name, default, _ in file.ARGUMENTS if default is not None}
    (node,) = file.player({**own, **given})
    return node


def test_replay_plays_to_the_odometry_and_ends_with_the_player(
    launch: Callable[[str], ModuleType], launch_file: ModuleType
) -> None:
    file = launch('replay')
    description = file.generate_launch_description()
    assert included(description) == ['odometry.launch.py']
    defaults = declared(description)
    assert [name for name, default in defaults.items() if default is None] == ['bag', 'sensor']
    # Whatever topics the bag has, from the player to the node they have the node's names.
    known = {name for name, _, _ in launch_file.ARGUMENTS}
    include = description.arguments[0][-1]
    assert dict(include.named['launch_arguments']) == dict.fromkeys(file.TOPICS, '')
    assert set(file.TOPICS) <= known
    # All that it asks for by name is declared somewhere.
    assert set(file.OPTIONS) <= known | set(defaults)

    node = played(file, bag='/data/07', sensor='mono')
    assert node.named['executable'] == 'bag_player'
    options = _parser().parse_args(node.named['arguments'])
    assert (options.source, options.sensor, options.rate) == ('/data/07', 'mono', 1.0)
    assert (options.lossless, options.clock) == (False, True)


def test_a_player_that_fails_fails_the_launch(launch: Callable[[str], ModuleType]) -> None:
    ended = played(launch('replay'), bag='a.mcap', sensor='mono').named['on_exit']
    for code in (0, 130, -2, -15):  # played, or ended by a signal
        (shutdown,) = ended(SimpleNamespace(returncode=code), None)
        assert shutdown.named == {'reason': 'the player has ended'}
    for code in (1, 2, -9, -11):
        with pytest.raises(RuntimeError, match=f'code {code}'):
            ended(SimpleNamespace(returncode=code), None)


def test_replay_gives_the_player_what_it_is_given(launch: Callable[[str], ModuleType]) -> None:
    node = played(
        launch('replay'),
        bag='a.mcap',
        sensor='stereo',
        namespace='robot1',
        image='/cam0/image_raw',
        right_image='/cam1/image_raw',
        frame_prefix='robot1/',
        body_frame='imu',
        image_transport='compressed',
        tf_in_namespace='true',
        use_sim_time='false',
        lossless='true',
        start='10',
        end='20',
    )
    options = _parser().parse_args(node.named['arguments'])
    assert options.topic == [('image', '/cam0/image_raw'), ('right', '/cam1/image_raw')]
    assert (options.frame_prefix, options.body_frame) == ('robot1/', 'imu')
    assert (options.lossless, options.clock, options.compressed) == (True, False, 'jpeg')
    assert (options.start, options.end) == (10, 20)
    assert node.named['namespace'] == 'robot1'
    assert node.named['remappings'] == [('/tf_static', 'tf_static')]


def arguments(launch: Callable[[str], ModuleType], mode: str) -> set[str]:
    """Names of all arguments of a launch file, with those of what it includes."""
    description = launch(mode).generate_launch_description()
    names = set(declared(description))
    for name in included(description):
        names |= arguments(launch, name.removesuffix('.launch.py'))
    return names


@pytest.mark.parametrize('mode', ['odometry', 'mapping', 'localization', 'replay'])
def test_every_mode_has_what_a_robot_needs(launch: Callable[[str], ModuleType], mode: str) -> None:
    wanted = {
        'namespace', 'image', 'camera_info', 'odom_frame', 'body_frame', 'map_frame',
        'frame_prefix', 'params_file', 'sensor', 'use_sim_time', 'rviz', 'log_level',
    }  # fmt: skip
    assert wanted <= arguments(launch, mode)


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


def test_the_launch_files_name_executables_there_are(
    launch: Callable[[str], ModuleType], launch_file: ModuleType, repository: Path
) -> None:
    player = played(launch('replay'), bag='a.mcap', sensor='mono')
    for node in [*started(launch_file, mapping='true'), player]:
        assert (repository / 'scripts' / node.named['executable']).is_file()


def test_launch_lines_in_documents_have_arguments_there_are(
    launch: Callable[[str], ModuleType], repository: Path
) -> None:
    lines = [
        line
        for path in [repository / 'README.md', *(repository / 'docs').glob('*.md')]
        for block in re.findall(r'```bash\n(.*?)```', path.read_text(), re.DOTALL)
        for line in block.replace('\\\n', ' ').splitlines()
    ]
    found = [
        match
        for line in lines
        if (match := re.match(r'ros2 launch mv_matcher_ros (\w+)\.launch\.py([^#]*)', line))
    ]
    assert {match[1] for match in found} == {'odometry', 'mapping', 'localization', 'replay'}
    for match in found:
        given = re.findall(r'(\w+):=', match[2])
        assert set(given) <= arguments(launch, match[1]), match[0]


def test_parameter_file_is_accepted_and_changes_nothing(repository: Path) -> None:
    text = (repository / 'config' / 'odometry.yaml').read_text()
    assert load_settings(repository / 'config' / 'odometry.yaml') == Settings()
    # What stands there as a comment must be right too once somebody takes the sign away.
    lines = text.splitlines()
    settings = [re.sub(r'^(\s*)# (\s*[a-z_]+:)', r'\1\2', line) for line in lines]
    content = yaml.safe_load('\n'.join(settings))['/**']['ros__parameters']
    assert read_settings(content).ros.image_transport == 'compressed'
    assert read_settings(content).detector.working_pixels == 300_000


@pytest.mark.parametrize('mode', ['odometry', 'mapping'])
def test_rviz_shows_what_the_nodes_publish(bench: Any, repository: Path, mode: str) -> None:
    """Every topic of a display is published under that name, with a QoS that fits."""
    bench.start(namespace='robot1')
    if mode == 'mapping':
        bench.add(MappingNode(context=bench.contexts[1], namespace='robot1'))
    writers = {
        (writer.topic_name, writer.msg_type.__name__): writer.qos_profile
        for node in bench.nodes
        for writer in node.publishers
    }
    readers = {reader.topic_name for node in bench.nodes for reader in node.subscriptions}
    content = yaml.safe_load((repository / 'config' / f'{mode}.rviz').read_text())
    manager = content['Visualization Manager']
    shown = [d for d in manager['Displays'] if 'Topic' in d]
    assert len(shown) >= 4
    for display in shown:
        topic = display['Topic']
        # Relative: RViz runs in the namespace of the nodes.
        assert not topic['Value'].startswith('/')
        kind = display['Class'].removeprefix('rviz_default_plugins/')
        qos = writers[f'/robot1/{topic["Value"]}', kind]
        wants_latched = topic['Durability Policy'] == 'Transient Local'
        assert wants_latched == (qos.durability == DurabilityPolicy.TRANSIENT_LOCAL), topic
    tools = [tool['Topic']['Value'] for tool in manager['Tools'] if 'Topic' in tool]
    assert {f'/robot1/{topic}' for topic in tools} <= readers
    default = 'map' if mode == 'mapping' else 'odom'
    assert manager['Global Options']['Fixed Frame'] == default
    assert getattr(Settings().ros.frames, default) == default


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


def test_a_profile_that_is_not_found_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in dds_profile._CHOSEN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(dds_profile, 'find_profile', lambda: None)
    assert dds_profile.apply_profile() is None
    assert 'may lose large images; set FASTDDS_DEFAULT_PROFILES_FILE' in capsys.readouterr().err
    assert dds_profile._CHOSEN[0] not in os.environ


@pytest.mark.parametrize('name', ['main', 'bag_player', 'trajectory_recorder'])
def test_without_ros_the_extra_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f'mv_matcher_ros.ros.{name}')
    monkeypatch.setitem(sys.modules, 'rclpy', None)
    entry = module.odometry if name == 'main' else module.main
    assert entry([]) == 2
    assert 'pip install "mv_matcher_ros[ros]"' in capsys.readouterr().err
