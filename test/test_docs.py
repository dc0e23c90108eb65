# SPDX-License-Identifier: Apache-2.0
"""What the documents say and the code knows must be the same."""

from __future__ import annotations

import importlib
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from mv_matcher_ros import cli
from mv_matcher_ros.config import leaves, read_settings

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob('*.md'), *(ROOT / 'docs').glob('*.md')])


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding='utf-8')


def test_settings_table_is_the_settings_tree(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code(['settings', '--form', 'markdown']) == 0
    assert capsys.readouterr().out in text_of('docs/settings.md'), 'run: make docs'


def test_settings_named_in_documents_exist() -> None:
    known = {name for name, _ in leaves()}
    sections = {name.split('.')[0] for name in known if '.' in name}
    for path in DOCUMENTS:
        for name in re.findall(r'`([a-z_]+(?:\.[a-z_]+)+)(?:=[^`]*)?`', path.read_text()):
            if name.split('.')[0] in sections and not name.endswith(
                ('.py', '.md', '.yaml', '.json', '.safetensors')
            ):
                assert name in known, f'{path.name} names the setting {name}'


def test_parameters_of_our_nodes_in_documents_are_settings() -> None:
    blocks = [b for p in DOCUMENTS for b in re.findall(r'```yaml\n(.*?)```', p.read_text(), re.S)]
    files = [content for b in blocks if isinstance(content := yaml.safe_load(b), dict)]
    ours = [file[name] for file in files for name in ('odometry', 'mapping') if name in file]
    assert ours
    for node in ours:
        read_settings(node['ros__parameters'])


def test_links_between_documents_lead_somewhere() -> None:
    for path in DOCUMENTS:
        for link in re.findall(r'\]\(([^)#\s]+)', path.read_text()):
            if '://' not in link:
                assert (path.parent / link).exists(), f'{path.name}: {link}'


def test_commands_in_documents_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code(['--help']) == 0
    listed = capsys.readouterr().out.split('Commands:')[1]
    known = {line.split()[0] for line in listed.splitlines() if line.strip()}
    for path in DOCUMENTS:
        for name in re.findall(r'mv-matcher ([a-z]+)', path.read_text()):
            assert name in known, f'{path.name} names the command {name}'


def test_make_targets_in_documents_exist() -> None:
    targets = set(re.findall(r'^([a-z-]+):', text_of('Makefile'), re.MULTILINE))
    for path in DOCUMENTS:
        for name in re.findall(r'`?\bmake ([a-z][a-z-]*)', path.read_text()):
            if f'`make {name}' in path.read_text() or f'\nmake {name}' in path.read_text():
                assert name in targets, f'{path.name}: make {name}'


@pytest.mark.ros
def test_readme_names_every_topic_of_the_node() -> None:
    from mv_matcher_ros.ros import inputs

    table = text_of('docs/ros.md')
    for images, infos in (*inputs.TOPICS.values(), inputs.topics_of('stereo', 2)):
        for topic in (*images, *infos):
            assert f'`{topic}`' in table, topic


def test_tests_named_in_conventions_exist() -> None:
    named = re.findall(r'`(test/[\w/]+\.py)(?:::(\w+))?`', text_of('docs/conventions.md'))
    assert named
    for file, function in named:
        assert (ROOT / file).is_file(), file
        if function:
            assert f'def {function}' in text_of(file) or f'class {function}' in text_of(file), (
                function
            )


def test_documents_name_no_private_places() -> None:
    for path in [*DOCUMENTS, ROOT / 'Makefile', ROOT / '.ci' / 'run']:
        assert not re.search(r'/(home|root|work|tmp)/\w', path.read_text()), path


def commands_in(name: str, command: str) -> list[list[str]]:
    """Words of every line of a shell block that starts with a command."""
    blocks = re.findall(r'```bash\n(.*?)```', text_of(name), re.DOTALL)
    lines = [line for block in blocks for line in block.replace('\\\n', ' ').splitlines()]
    found = [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in found if words and words[0] == command]


@pytest.mark.ros
@pytest.mark.parametrize('command', ['bag_player', 'trajectory_recorder'])
def test_examples_of_the_ros_tools_have_the_options_they_name(command: str) -> None:
    module = importlib.import_module(f'mv_matcher_ros.ros.{command}')
    examples = commands_in('docs/ros.md', command)
    assert examples
    for words in examples:
        module._parser().parse_args(words)


@pytest.mark.ros
def test_examples_of_the_node_name_parameters_and_topics_there_are() -> None:
    """Who remaps one topic of a sensor has to remap all of them."""
    from mv_matcher_ros.ros import inputs

    examples = commands_in('docs/ros.md', 'odometry_node')
    assert examples
    known = {name for name, _ in leaves()}
    for words in examples:
        pairs = list(pairwise(words))
        given = dict(value.split(':=') for option, value in pairs if option == '-p')
        remapped = {value.split(':=')[0] for option, value in pairs if option == '-r'}
        assert set(given) <= known, words
        images, infos = inputs.topics_of(given['sensor'], int(given.get('stereo.pairs', 1)))
        assert remapped in (set(), {*images, *infos}), words


@pytest.mark.ros
def test_topics_of_the_player_are_listed_by_sensor() -> None:
    from mv_matcher_ros.ros import inputs

    for sensor, (images, infos) in inputs.TOPICS.items():
        listed = ', '.join(f'`/{topic}`' for topic in (*images, *infos))
        assert f'| {sensor} | {listed} |' in text_of('docs/ros.md')
