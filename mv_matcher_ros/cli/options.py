# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and the settings made of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mv_matcher_ros.errors import SettingsError, SourceError

if TYPE_CHECKING:
    from mv_matcher_ros.config import Settings


class SensorChoice(str, Enum):
    """Which sensor the frames come from."""

    mono = 'mono'
    stereo = 'stereo'
    rgbd = 'rgbd'


class Alignment(str, Enum):
    """Transform fitted between estimate and truth before errors are taken."""

    se3 = 'se3'
    sim3 = 'sim3'


SourceArgument = Annotated[
    Path,
    typer.Argument(
        help='ROS 1/2 bag, KITTI/TUM/EuRoC folder, image folder or video.', metavar='SOURCE'
    ),
]
SensorOption = Annotated[
    SensorChoice | None,
    typer.Option('--sensor', help='mono, stereo or rgbd; default: what SOURCE is.'),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option('--config', help='YAML file of settings that differ from the defaults.'),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        '--set', metavar='NAME=VALUE', help='One setting, e.g. keyframes.window=8; repeatable.'
    ),
]
JsonOption = Annotated[
    bool, typer.Option('--json', help='Print JSON on stdout instead of a table.')
]
StartOption = Annotated[int, typer.Option(min=0, help='First frame.')]
EndOption = Annotated[int | None, typer.Option(min=1, help='Frame to stop before.')]
StrideOption = Annotated[int, typer.Option(min=1, help='Take every n-th frame.')]

CalibrationOption = Annotated[
    list[Path] | None,
    typer.Option(
        '--calibration',
        help='Calibration file to use (docs/calibration.md); one per camera if split.',
    ),
]
TopicOption = Annotated[
    list[str] | None,
    typer.Option(
        '--topic',
        metavar='KEY=TOPIC',
        help='Bags: image, right, depth, camera_info, … by name; left_2, … of a second pair.',
    ),
]
BodyOption = Annotated[
    str | None,
    typer.Option(help='Bags: frame in /tf_static whose pose is wanted, e.g. base_link.'),
]


def settings_from(
    config: Path | None, assignments: Sequence[str] | None, sensor: str | None = None
) -> Settings:
    """The settings that `--config`, `--set` and `--sensor` ask for, the later ones winning.

    Raises:
        SettingsError: an unknown name (with the nearest known one), a value out of range.
    """
    from mv_matcher_ros.config import load_settings

    overrides = parse_assignments(assignments or ())
    if sensor is not None:
        overrides['sensor'] = sensor
    return load_settings(config, overrides)


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """['keyframes.window=8'] → {'keyframes.window': 8}; values are read as YAML."""
    import yaml

    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition('=')
        if not equals or not name.strip():
            raise SettingsError(f'--set {assignment}: write NAME=VALUE, e.g. keyframes.window=8')
        try:
            values[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise SettingsError(f'--set {assignment}: cannot read the value') from None
    return values


def parse_topics(assignments: Sequence[str]) -> dict[str, str] | None:
    """['image=/cam0/image_raw'] → {'image': '/cam0/image_raw'}; None without any."""
    topics = {}
    for assignment in assignments:
        key, equals, name = assignment.partition('=')
        if not (equals and key and name):
            raise SourceError(f'--topic {assignment}: write KEY=TOPIC, e.g. image=/cam0/image_raw')
        topics[key] = name
    return topics or None


def locate(source: Path) -> Path:
    """`source`, or the same name below MV_MATCHER_DATA (or its `sequences`) when it is not here.

    A name that is nowhere is returned as it is: opening it says what is missing.
    """
    root = os.environ.get('MV_MATCHER_DATA')
    if root and not source.exists() and not source.is_absolute():
        for base in (Path(root), Path(root) / 'sequences'):
            if (base / source).exists():
                return base / source
    return source


def for_still_images(settings: Settings) -> Settings:
    """Settings by which all keypoints of still images enter the graph, where they do not say how
    many: nothing has to keep up with a camera."""
    from mv_matcher_ros.config import MOST_IN_GRAPH

    matching = settings.matching
    if 'graph_keypoints' in matching.model_fields_set:
        return settings
    most = min(settings.detector.max_keypoints, MOST_IN_GRAPH)
    matching = matching.model_copy(update={'graph_keypoints': most})
    return settings.model_copy(update={'matching': matching})
