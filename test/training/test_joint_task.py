# SPDX-License-Identifier: Apache-2.0
"""Detector and matcher learning together: what gets a gradient, and what is written."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from mv_matcher_ros import cli
from mv_matcher_ros.config import read_settings
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.models.choice import Models
from mv_matcher_ros.models.detector import DetectorNetwork
from mv_matcher_ros.models.matcher import MatcherNetwork
from mv_matcher_ros.models.profiles import DetectorProfile, MatcherProfile
from mv_matcher_ros.models.weights import load_detector, save_detector, save_matcher
from mv_matcher_ros.training.joint_task import JointTask, JointTraining

CONFIG = Path(__file__).resolve().parents[2] / 'config' / 'train' / 'joint_light.yaml'
DETECTOR = DetectorProfile(
    widths=(4, 4, 8, 8), head_width=16, detail_width=4, descriptor_size=8, threshold=0.0
)
MATCHER = MatcherProfile(
    descriptor_size=8, width=16, attention_size=8, blocks=1, encoder=(8,), confidence_size=8
)


def networks() -> tuple[DetectorNetwork, MatcherNetwork]:
    torch.manual_seed(0)
    return DetectorNetwork(DETECTOR).train(), MatcherNetwork(MATCHER).train()


def settings(**changes: object) -> JointTraining:
    return JointTraining.model_validate({
        'detector': {'name': 'learned', 'max_keypoints': 60},
        'stages': [{
            'steps': 4, 'keypoints': 50, 'pose_share': 0.5,
            'batches': [{'views': 2, 'tuples': 2}, {'views': 3, 'tuples': 1}],
        }],
        'validation': {'keypoints': 40, 'tuples': 1},
        **changes,
    })  # fmt: skip


def test_matches_and_poses_reach_the_detector(tuples: Path) -> None:
    task = JointTask(settings(), tuples, *networks())
    batch = task.batch(0, 0, 1)
    losses = task.losses(task.network, batch)
    assert float(losses['keep'].detach()) == pytest.approx(0.0, abs=1e-5)
    losses['loss'].backward()
    learned = {name for name, p in task.network.named_parameters() if p.grad is not None}
    for name in ('descriptor.weight', 'encoder.0.weight', 'subpixel.3.weight'):
        assert f'detector.{name}' in learned
    gradient = task.network.detector.descriptor.weight.grad  # type: ignore[union-attr]
    assert float(gradient.abs().sum()) > 0
    assert all(p.grad.isfinite().all() for p in task.network.parameters() if p.grad is not None)


def test_leaving_where_it_was_costs(tuples: Path) -> None:
    task = JointTask(settings(), tuples, *networks())
    batch = task.batch(0, 0, 1)
    with torch.no_grad():
        task.network.detector.score.bias[-1].add_(3.0)  # type: ignore[union-attr,index]
        scores = float(task.losses(task.network, batch)['keep'])
        task = JointTask(settings(), tuples, *networks())
        task.network.detector.subpixel[3].bias.add_(1.0)  # type: ignore[union-attr,index]
        places = float(task.losses(task.network, batch)['keep'])
    assert scores > 0.01
    assert places > 0.01


def test_heads_alone_leave_the_encoder_as_it_is(tuples: Path) -> None:
    task = JointTask(settings(detector_learns='heads'), tuples, *networks())
    task.losses(task.network, task.batch(0, 0, 1))['loss'].backward()
    learned = {name for name, p in task.network.named_parameters() if p.grad is not None}
    assert 'detector.descriptor_hidden.0.weight' in learned
    fixed = ('detector.encoder.', 'detector.detail.', 'detector.score')
    assert not any(name.startswith(fixed) for name in learned)


def test_a_step_depends_on_its_number_and_rank_alone(tuples: Path) -> None:
    task = JointTask(settings(), tuples, *networks())
    ahead = [task.batch(step, 0, 2) for step in range(4)]
    again = task.batch(3, 0, 2)
    other = task.batch(3, 1, 2)
    assert torch.equal(ahead[3].tuples[0].images, again.tuples[0].images)
    assert len(other.tuples) == len(again.tuples)
    assert again.seed != other.seed


def test_a_folder_without_tuples(tuples: Path) -> None:
    with pytest.raises(SourceError, match='no shards'):
        JointTask(settings(), tuples / 'val', *networks())


def test_the_command_goes_on_and_writes_two_that_belong_together(
    tuples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detector, matcher = networks()
    save_detector(tmp_path / 'd.safetensors', copy.deepcopy(detector))
    save_matcher(tmp_path / 'm.safetensors', matcher)
    begin = [str(tmp_path / f'{name}.safetensors') for name in 'dm']
    words = [
        'train', 'joint', str(CONFIG), '--tuples', str(tuples), '--out', str(tmp_path / 'out'),
        '--detector', begin[0], '--matcher', begin[1],
        '--device', 'cpu', '--set', 'stages.0.steps=3', '--set', 'stages.0.places=all',
        '--set', 'validation.tuples=1', '--set', 'trainer.log_every=1',
        '--set', 'stages.0.batches=[{views: 3, tuples: 1}]',
    ]  # fmt: skip
    assert cli.exit_code([*words, '--steps', '2']) == 0
    assert 'step 2 of 3, the same command goes on' in capsys.readouterr().err
    assert cli.exit_code(words) == 0
    assert 'all steps are made' in capsys.readouterr().err
    out = [str(tmp_path / 'out' / f'{name}.safetensors') for name in ('detector', 'best')]
    written = {
        'detector.name': 'learned', 'detector.weights': out[0],
        'matching.matcher': 'multiview', 'matching.weights': out[1],
    }  # fmt: skip
    assert Models.of(read_settings(written)).graph is not None
    after = load_detector(out[0])
    assert not torch.equal(after.descriptor.weight, detector.descriptor.weight.half().float())
