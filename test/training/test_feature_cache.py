# SPDX-License-Identifier: Apache-2.0
"""Features on disk are those that direct detection finds; what is there is not made again."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from mv_matcher_ros import cli
from mv_matcher_ros.config import DetectorSettings
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.models.weights import load_matcher, read_notes, tensors_hash
from mv_matcher_ros.training.data.labels import match_labels
from mv_matcher_ros.training.matcher.feature_cache import (
    FeatureRecipe,
    feature_jobs,
    job_tuples,
    make_features,
    variants,
)
from mv_matcher_ros.training.matcher.feature_shards import FeatureShard, quantised

RECIPE = FeatureRecipe(DetectorSettings(name='sift', max_keypoints=60))
ROOT = Path(__file__).resolve().parents[2]


def test_kept_features_are_those_of_direct_detection(tuples: Path, tmp_path: Path) -> None:
    jobs = feature_jobs(tuples / 'train', variants(2))
    assert [job.variant for job in jobs] == ['a0', 'a0', 'a1', 'a1']
    assert list(make_features(RECIPE, jobs, tmp_path)) == jobs
    detector = RECIPE.make_detector()
    images = []
    for job in jobs:
        shard = FeatureShard(job.path(tmp_path))
        for number, views in enumerate(job_tuples(RECIPE, job)):
            kept = shard[number]
            assert torch.equal(kept.world_from_camera, views.world_from_camera)
            assert (kept.world, kept.baseline) == (views.world, views.baseline)
            images.append(views.images)
            found = [detector.detect((i[0] * 255).round().byte().numpy()) for i in views.images]
            for a, b in zip(kept.features, found, strict=True):
                assert len(a) == len(b) > 20
                assert torch.equal(a.keypoints_xy, b.keypoints_xy)
                assert torch.equal(a.scores, b.scores)
                assert torch.equal(a.sigma_px, b.sigma_px)
                assert a.image_size == b.image_size
                assert float((a.descriptors - b.descriptors).norm(dim=1).max()) < 0.01
            sides = [views.label_view(v, f.keypoints_xy) for v, f in enumerate(found)]
            for (a, b), label in zip(combinations(sides, 2), kept.labels, strict=True):
                for made, direct in zip(label, match_labels(a, b), strict=True):
                    assert torch.equal(made, direct)
    assert not torch.equal(images[0], images[4])  # another augmentation


def test_what_is_there_is_kept_and_the_rest_is_made(tuples: Path, tmp_path: Path) -> None:
    jobs = feature_jobs(tuples / 'train', variants(1))
    list(make_features(RECIPE, jobs, tmp_path))
    first, second = (job.path(tmp_path) for job in jobs)
    content, stamp = second.read_bytes(), first.stat().st_mtime_ns
    second.unlink()
    list(make_features(RECIPE, jobs, tmp_path))
    assert first.stat().st_mtime_ns == stamp
    with np.load(second) as again:
        second.write_bytes(content)
        with np.load(second) as before:
            assert all(np.array_equal(again[name], before[name]) for name in before.files)


@pytest.mark.slow
def test_many_processes_make_the_same(tuples: Path, tmp_path: Path) -> None:
    jobs = feature_jobs(tuples / 'train', variants(1))
    list(make_features(RECIPE, jobs, tmp_path / 'one'))
    list(make_features(RECIPE, jobs, tmp_path / 'two', workers=2))
    for job in jobs:
        a, b = (FeatureShard(job.path(tmp_path / name))[1] for name in ('one', 'two'))
        assert torch.equal(a.features[0].keypoints_xy, b.features[0].keypoints_xy)


def test_features_of_another_recipe_are_refused(tuples: Path, tmp_path: Path) -> None:
    jobs = feature_jobs(tuples / 'val', variants(0))
    list(make_features(RECIPE, jobs, tmp_path))
    other = FeatureRecipe(DetectorSettings(name='sift', max_keypoints=50))
    with pytest.raises(SourceError, match='with other detector'):
        list(make_features(other, jobs, tmp_path))


def test_a_broken_file_is_said(tmp_path: Path) -> None:
    (tmp_path / 'x.npz').write_bytes(b'nonsense')
    with pytest.raises(SourceError, match='not a file of features'):
        FeatureShard(tmp_path / 'x.npz')


@pytest.mark.parametrize('signed', [False, True])
def test_bytes_are_close_to_descriptors(signed: bool) -> None:
    torch.manual_seed(0)
    values = torch.randn(50, 64) if signed else torch.rand(50, 64)
    values = torch.nn.functional.normalize(values, dim=1)
    code, scale, zero = quantised(values)
    again = (torch.from_numpy(code).float() - zero) * scale
    assert float((again - values).abs().max()) <= 0.5 * scale * 1.001
    assert quantised(torch.zeros(0, 8))[0].shape == (0, 8)


def train(tuples: Path, out: Path, *more: str) -> int:
    words = [
        'train', 'matcher', str(ROOT / 'config' / 'train' / 'matcher_light.yaml'),
        '--tuples', str(tuples), '--out', str(out), '--device', 'cpu',
        '--set', 'profile_changes={descriptor_size: 128, width: 16, attention_size: 8, blocks: 1}',
        '--set', 'detector.name=sift', '--set', 'detector.max_keypoints=60',
        '--set', 'validation.keypoints=60',
        '--set', 'augmentations=1', '--set', 'trainer.log_every=1',
        '--set', 'stages.0.steps=2', '--set', 'stages.1.steps=1', '--set', 'stages.2.steps=1',
        '--set', 'stages.2.places=all', *more,
    ]  # fmt: skip
    return cli.exit_code(words)


def test_the_command_trains_in_slices(
    tuples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tuples, tmp_path, '--steps', '3') == 0
    assert 'step 3 of 4, the same command goes on' in capsys.readouterr().err
    assert train(tuples, tmp_path) == 0
    said = capsys.readouterr().err
    assert 'going on after step 3 of 4' in said
    assert 'all steps are made' in said
    network = load_matcher(tmp_path / 'best.safetensors')
    assert network.profile.width == 16
    assert train(tuples, tmp_path, '--set', 'stages.0.learning_rate=0.1') == 2
    said = capsys.readouterr().err
    assert 'stages.0.learning_rate was 0.0008, is 0.1' in said
    best = ['--from', str(tmp_path / 'best.safetensors')]
    assert train(tuples, tmp_path, *best) == 2
    assert 'from was None, is ' in capsys.readouterr().err
    features = ['--features', str(tmp_path / 'features')]
    # Another seed shares the features.
    seed = ['--set', 'trainer.seed=1']
    assert train(tuples, tmp_path / 'again', *best, *features, *seed, '--overfit', '1') == 0
    first, notes = (read_notes(tmp_path / name / 'best.safetensors') for name in ('.', 'again'))
    assert 'from' not in first
    assert notes['from'] == tensors_hash(network.state_dict())
    assert (notes['from_steps'], notes['from_data']) == (first['steps'], first['data'])


def test_the_command_says_what_is_missing(
    tuples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, tmp_path / 'out') == 2
    assert 'no shards of tuples' in capsys.readouterr().err
    assert train(tuples, tmp_path / 'out', '--set', 'network=detector') == 2
    assert 'network' in capsys.readouterr().err
