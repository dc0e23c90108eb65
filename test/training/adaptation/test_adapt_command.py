# SPDX-License-Identifier: Apache-2.0
"""`adapt` from the outside: what is written when, exit codes, going on, errors."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from mv_matcher_ros import cli
from mv_matcher_ros.cli import adapt as command
from mv_matcher_ros.cli.adapt import EXIT_NO_BETTER, FIGURES, detector_beside
from mv_matcher_ros.cli.adapt_report import PICTURES, REPORT
from mv_matcher_ros.models.weights import read_notes
from mv_matcher_ros.training.adaptation.guard import Figure, Verdict

SHORT = [
    '--set', 'clips.fewest=4', '--set', 'clips.most=6', '--set', 'keypoints=120',
    '--set', 'clips_per_step=1', '--set', 'trainer.log_every=1',
]  # fmt: skip


def adapt(source: Path, out: Path, *more: str, steps: int = 2) -> int:
    return cli.exit_code(
        ['adapt', str(source), '--out', str(out), *SHORT, '--set', f'stage.steps={steps}', *more]
    )


def verdict(good: bool) -> Verdict:
    figure = Figure('points', 'a clip', 'more', 100.0, 101.0, (0.5, 1.5), good)
    return Verdict((figure,), 3, 3)


@pytest.mark.slow
def test_weights_that_are_better_are_written(
    flight_bag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr('mv_matcher_ros.training.adaptation.guard.compared',
                        lambda *figures: verdict(True))  # fmt: skip
    out = tmp_path / 'mine.safetensors'
    everything = 'learns=[matcher,confidence,descriptors,places]'
    assert adapt(flight_bag, out, '--set', everything) == 0
    assert out.is_file()
    assert detector_beside(out).is_file()
    notes = read_notes(out)
    assert 'no labels' in notes['data']
    assert notes['trained'] == 'mv-matcher adapt'
    assert notes['from']
    said = capsys.readouterr()
    assert f'--set matching.weights={out}' in said.err
    assert f'detector.weights={detector_beside(out)}' in said.err
    # The engine takes them.
    folder = tmp_path / 'run'
    assert cli.exit_code([
        'run', str(flight_bag), '--out', str(folder), '--end', '12',
        '--set', f'matching.weights={out}', '--set', f'detector.weights={detector_beside(out)}',
    ]) == 0  # fmt: skip


@pytest.mark.slow
def test_weights_that_are_not_better_are_not(
    flight_bag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr('mv_matcher_ros.training.adaptation.guard.compared',
                        lambda *figures: verdict(False))  # fmt: skip
    out = tmp_path / 'mine.safetensors'
    assert adapt(flight_bag, out, '--json', steps=1) == EXIT_NO_BETTER
    assert not out.exists()
    said = capsys.readouterr()
    assert 'not better, nothing written: points' in said.err
    content = json.loads(said.out)
    assert content['better'] is False
    assert json.loads((tmp_path / 'mine.adapt' / FIGURES).read_text())['better'] is False
    page = (tmp_path / 'mine.adapt' / REPORT).read_text()
    assert 'Nothing was written' in page
    assert page.count('<img') == 2 * min(PICTURES, 3)


@pytest.mark.slow
def test_shuffled_matches_are_no_better(
    flight_bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'mine.safetensors'
    assert adapt(flight_bag, out, '--set', 'control=shuffled', '--json') == EXIT_NO_BETTER
    assert not out.exists()
    figures = json.loads(capsys.readouterr().out)['figures']
    assert all(figure['before'] == figure['after'] for figure in figures)


@pytest.mark.slow
def test_the_same_command_goes_on(
    flight_bag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(command, '_judged', lambda *_: (verdict(False), []))
    out = tmp_path / 'mine.safetensors'
    assert adapt(flight_bag, out, '--minutes', '0.0001', steps=4) == 0
    assert 'of 4, the same command goes on' in capsys.readouterr().err
    assert adapt(flight_bag, out, steps=4) == EXIT_NO_BETTER
    log = (tmp_path / 'mine.adapt' / 'log.jsonl').read_text().splitlines()
    assert [json.loads(row)['step'] for row in log if '"train"' in row] == [1, 2, 3, 4]


def test_a_recording_that_cannot_teach_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / 'still'
    folder.mkdir()
    image = np.kron(np.random.default_rng(0).integers(0, 255, (30, 40)), np.ones((8, 8)))
    for number in range(20):
        cv2.imwrite(str(folder / f'{number:03d}.png'), image.astype(np.uint8))
    (folder / 'calibration.yaml').write_text(
        'width: 320\nheight: 240\nintrinsics: [300, 300, 159.5, 119.5]\n'
    )
    out = tmp_path / 'mine.safetensors'
    assert adapt(folder, out) == 2
    assert 'cannot teach' in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ('settings', 'said'),
    [
        ('detector: {name: sift}', 'only the learned detector'),
        ('matching: {matcher: nearest}', 'nearest neighbours have nothing to adapt'),
    ],
)
def test_what_has_nothing_to_adapt(
    flight_bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: str, said: str
) -> None:
    config = tmp_path / 'engine.yaml'
    config.write_text(settings + '\n')
    assert adapt(flight_bag, tmp_path / 'mine.safetensors', '--config', str(config)) == 2
    assert said in capsys.readouterr().err


def test_a_setting_that_does_not_exist(
    flight_bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert adapt(flight_bag, tmp_path / 'mine.safetensors', '--set', 'stage.stepz=3') == 2
    assert 'stage.stepz' in capsys.readouterr().err


def test_out_is_not_what_it_starts_from(
    flight_bag: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mv_matcher_ros.models.shipped import shipped

    assert adapt(flight_bag, shipped('matcher')['light']) == 2
    assert 'name another file' in capsys.readouterr().err
