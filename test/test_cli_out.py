# SPDX-License-Identifier: Apache-2.0
"""Nothing is written beside --out, and no report shows what lies elsewhere, whatever data say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rosbags import rosbag2

from mv_matcher_ros import cli
from mv_matcher_ros.cli.dataset import _sequences
from mv_matcher_ros.datatypes import Camera, Frame, Rig, View
from mv_matcher_ros.errors import EvaluationError
from mv_matcher_ros.evaluation.track_sampler import FOLDER, INDEX, read_samples
from mv_matcher_ros.files.bag import _BagWriter
from mv_matcher_ros.files.bag_messages import record

OUTSIDE = '../../../outside'
CLASSICAL = ('--set', 'detector.name=sift', '--set', 'matching.matcher=nearest')


class Source(list[Frame]):
    """Noise."""

    name, sensor, truth = OUTSIDE, 'mono', None
    rig = Rig((Camera(64, 48, (50.0, 50.0, 31.5, 23.5), name=OUTSIDE),))


class Elsewhere(_BagWriter):
    """Topics and frames whose names lead out of a folder."""

    def message(self, kind: str, **fields: Any) -> Any:
        for name in ('frame_id', 'child_frame_id'):
            if name in fields:
                fields[name] = f'{OUTSIDE}/{fields[name]}'
        return super().message(kind, **fields)

    def write(self, topic: str, stamp_ns: int, message: Any) -> None:
        prefix = '' if topic == '/tf_static' else f'/{OUTSIDE}'
        super().write(f'{prefix}{topic}', stamp_ns, message)


def files_below(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob('*')}


def test_names_out_of_a_bag_make_no_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / 'a' / 'deep' / 'place'
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    rng = np.random.default_rng(0)
    source = Source(
        Frame(10**9 * i, (View(rng.integers(0, 256, (48, 64), np.uint8)),), i) for i in range(1, 4)
    )
    path = here / 'bag'
    with rosbag2.Writer(path, version=8, storage_plugin=rosbag2.StoragePlugin.MCAP) as writer:
        record(source, Elsewhere(writer), 'raw', 'base_link')  # type: ignore[arg-type]
    before = files_below(tmp_path)
    assert cli.exit_code(['run', 'bag', '--out', 'out', *CLASSICAL]) in (0, 2), capsys.readouterr()
    new = files_below(tmp_path) - before
    assert new
    assert all(file.is_relative_to('a/deep/place/out') for file in new), new


def test_a_data_set_that_is_the_folder_above_has_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequence = tmp_path / 'walk'
    (sequence / 'below').mkdir(parents=True)
    (sequence / 'a.bag').touch()
    monkeypatch.chdir(sequence / 'below')
    assert [name for name, _ in _sequences(Path('..'))] == ['walk']


@pytest.mark.parametrize('file', ['../secret.jpg', '/etc/secret.jpg', f'{FOLDER}/../secret.jpg'])
def test_a_run_of_a_stranger_shows_only_its_own_pictures(tmp_path: Path, file: str) -> None:
    (tmp_path / FOLDER).mkdir()
    entry = {'file': file, 'index': 0, 'stamp_ns': 0, 'status': 'LOST', 'counts': {}}
    (tmp_path / FOLDER / INDEX).write_text(json.dumps([entry]))
    with pytest.raises(EvaluationError, match=r'secret\.jpg is not in frames'):
        read_samples(tmp_path)
