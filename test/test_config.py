# SPDX-License-Identifier: Apache-2.0
"""The settings tree: every leaf documented, nothing unknown let through, files in both forms."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as some
from pydantic import ValidationError

from mv_matcher_ros.config import (
    Settings,
    flatten,
    leaves,
    load_settings,
    nearest_name,
    read_settings,
    unflatten,
)
from mv_matcher_ros.errors import SettingsError

ROOT = Path(__file__).resolve().parents[1]


def test_every_setting_has_a_description_and_a_default() -> None:
    found = dict(leaves())
    assert len(found) > 40
    for name, info in found.items():
        assert info.description, f'{name} has no description'
        assert info.description.endswith('.'), name
        assert not info.is_required(), name


def test_every_number_has_a_lower_bound() -> None:
    for name, info in leaves():
        if info.annotation in (int, float):
            bounds = {type(m).__name__ for m in info.metadata}
            assert bounds & {'Ge', 'Gt'}, f'{name} has no lower bound'


def test_defaults_are_valid_when_validated_again() -> None:
    assert Settings.model_validate(Settings().model_dump()) == Settings()


def test_leaves_are_the_flattened_defaults() -> None:
    assert [name for name, _ in leaves()] == list(flatten(Settings().model_dump()))


def test_flatten_and_unflatten_are_inverse() -> None:
    tree = Settings().model_dump()
    assert unflatten(flatten(tree)) == tree


NAMES = some.text('abc_', min_size=1, max_size=3)
LEAVES = some.integers() | some.booleans() | some.text() | some.lists(some.integers(), max_size=3)
TREES = some.recursive(
    LEAVES, lambda part: some.dictionaries(NAMES, part, min_size=1, max_size=4), max_leaves=12
).filter(lambda tree: isinstance(tree, dict))


@given(TREES)
def test_any_tree_comes_back_flattened(tree: dict[str, Any]) -> None:
    flat = flatten(tree)
    assert unflatten(flat) == tree
    assert flatten(unflatten(flat)) == flat


@some.composite
def overrides(draw: some.DrawFn) -> dict[str, Any]:
    """Some settings at their default or at a bound."""
    chosen = {}
    defaults = flatten(Settings().model_dump())
    for name, info in draw(some.lists(some.sampled_from(list(leaves())), max_size=6)):
        bounds = [bound for m in info.metadata for bound in (getattr(m, 'le', None),)]
        values = [defaults[name], *(bound for bound in bounds if bound is not None)]
        chosen[name] = draw(some.sampled_from(values))
    return chosen


@given(overrides())
def test_settings_come_back_from_yaml(chosen: dict[str, Any]) -> None:
    """Nested, dotted, and in the form of ROS parameters."""
    settings = read_settings(chosen)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 's.yaml'
        for content in (
            chosen, unflatten(chosen), {'/**': {'ros__parameters': chosen}}, settings.model_dump(),
        ):  # fmt: skip
            path.write_text(yaml.safe_dump(content))
            assert load_settings(path) == settings


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match='frozen'):
        settings.detector.max_keypoints = 5  # type: ignore[misc]
    with pytest.raises(ValidationError, match='frozen'):
        settings.sensor = 'stereo'  # type: ignore[misc]


@pytest.mark.parametrize('overrides', [{'detector.name': 'orb'}, {'detector': {'name': 'orb'}}])
def test_dotted_and_nested_overrides_mean_the_same(overrides: dict[str, Any]) -> None:
    settings = read_settings(overrides)
    assert settings.detector.name == 'orb'
    assert settings.detector.max_keypoints == Settings().detector.max_keypoints


@pytest.mark.parametrize(
    ('unknown', 'nearest'),
    [
        ('detector.max_keypoint', 'detector.max_keypoints'),
        ('detecter.max_keypoints', 'detector.max_keypoints'),
        ('max_keypoints', 'detector.max_keypoints'),
        ('tracking.contrast_threshold', 'detector.contrast_threshold'),
        ('sensors', 'sensor'),
        ('keyframes.windows', 'keyframes.window'),
    ],
)
def test_unknown_setting_is_refused_with_the_nearest_name(unknown: str, nearest: str) -> None:
    assert nearest_name(unknown) == nearest
    with pytest.raises(SettingsError) as error:
        read_settings({unknown: 1}, where='file.yaml')
    assert str(error.value) == (
        f'file.yaml: unknown setting "{unknown}"; did you mean "{nearest}"?'
    )


def test_nothing_is_suggested_when_nothing_is_near() -> None:
    assert nearest_name('zzzzqqqq') is None
    with pytest.raises(SettingsError, match=r'unknown setting "zzzzqqqq"$'):
        read_settings({'zzzzqqqq': 1})


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('detector.max_keypoints', 0),
        ('detector.max_keypoints', 10**6),
        ('detector.max_keypoints', 'many'),
        ('detector.name', 'surf'),
        ('matching.search_radius_px', 0.0),
        ('matching.ratio', 1.5),
        ('sensor', 'lidar'),
        ('bundle_adjustment.iterations', -1),
    ],
)
def test_bad_value_is_one_line_that_names_file_and_setting(name: str, value: Any) -> None:
    with pytest.raises(SettingsError) as error:
        read_settings({name: value}, where='robot.yaml')
    message = str(error.value)
    assert message.startswith(f'robot.yaml: {name} = {value!r}: ')
    assert '\n' not in message


def test_section_given_a_plain_value_is_refused() -> None:
    with pytest.raises(SettingsError):
        read_settings({'detector': 3})


def _write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


@pytest.mark.parametrize('node', ['/**', 'odometry', '/robot/odometry'])
def test_yaml_in_ros_form_equals_the_plain_form(tmp_path: Path, node: str) -> None:
    values = {'sensor': 'stereo', 'detector': {'max_keypoints': 700}}
    plain = load_settings(_write(tmp_path / 'plain.yaml', values))
    in_ros = load_settings(_write(tmp_path / 'ros.yaml', {node: {'ros__parameters': values}}))
    dotted = load_settings(
        _write(tmp_path / 'd.yaml', {'sensor': 'stereo', 'detector.max_keypoints': 700})
    )
    assert plain == in_ros == dotted
    assert plain.detector.max_keypoints == 700


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = _write(tmp_path / 's.yaml', {'detector': {'name': 'orb', 'max_keypoints': 700}})
    settings = load_settings(path, {'detector.max_keypoints': 900})
    assert (settings.detector.name, settings.detector.max_keypoints) == ('orb', 900)


@pytest.mark.parametrize('content', ['', '# nothing\n', '/**:\n  ros__parameters:\n'])
def test_empty_files_give_the_defaults(tmp_path: Path, content: str) -> None:
    assert load_settings(_write(tmp_path / 'empty.yaml', content)) == Settings()


@pytest.mark.parametrize(
    ('content', 'fault'),
    [
        ('detector: [1, 2', 'not a readable YAML file'),
        ('- sensor\n- mono\n', 'holds "name: value" lines'),
        ('just words', 'holds "name: value" lines'),
        ('sensr: mono\n', 'did you mean "sensor"'),
    ],
)
def test_bad_files_are_one_line_naming_the_file(tmp_path: Path, content: str, fault: str) -> None:
    path = _write(tmp_path / 'bad.yaml', content)
    with pytest.raises(SettingsError) as error:
        load_settings(path)
    assert fault in str(error.value)
    assert str(error.value).startswith(f'{path}: ')
    assert '\n' not in str(error.value)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match='no such settings file'):
        load_settings(tmp_path / 'none.yaml')
    with pytest.raises(SettingsError, match='not a readable YAML file'):
        load_settings(tmp_path)


@pytest.mark.parametrize('path', sorted((ROOT / 'config').glob('*.yaml')), ids=lambda p: p.name)
def test_shipped_yaml_files_hold_known_settings(path: Path) -> None:
    load_settings(path)
