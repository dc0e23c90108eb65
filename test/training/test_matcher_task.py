# SPDX-License-Identifier: Apache-2.0
"""The matcher's task: right batches, losses that teach, and a training that goes on exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_tuples import feature_files, scene_tuple, tiny

from mv_matcher_ros.config import DetectorSettings
from mv_matcher_ros.errors import SettingsError, SourceError
from mv_matcher_ros.models.matcher import MatcherNetwork
from mv_matcher_ros.models.weights import load_matcher
from mv_matcher_ros.training.matcher.batches import MatcherBatch, draw, joined, strongest
from mv_matcher_ros.training.matcher.feature_set import FeatureSet
from mv_matcher_ros.training.matcher.pose_loss import PoseLoss, adjusted_loss, eight_point_loss
from mv_matcher_ros.training.matcher.settings import MatcherTraining
from mv_matcher_ros.training.matcher.task import MatcherTask, check_descriptors
from mv_matcher_ros.training.matcher.validation import validate_matcher
from mv_matcher_ros.training.processes import Processes
from mv_matcher_ros.training.settings import read_train_settings
from mv_matcher_ros.training.trainer import Slice, Trainer

ALONE = Processes(0, 1, torch.device('cpu'))
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> list[list[Path]]:
    return feature_files(tmp_path_factory.mktemp('features'))


def test_drawn_labels_name_the_same_point_of_the_scene() -> None:
    """The nearest descriptor is the partner: of what was drawn, not of what was there before."""
    stage = tiny().stages[0].model_copy(update={'keypoints': 20, 'random_keypoints': 1.0})
    checked = 0
    for seed in range(6):
        batch = draw(scene_tuple(seed), stage, 3, 20, np.random.default_rng(seed))
        assert batch.views.capacity == 20
        for row, (a, b) in enumerate([(0, 1), (0, 2), (1, 2)]):
            similar = batch.views.descriptors[0, a] @ batch.views.descriptors[0, b].T
            for side, partner in ((similar, batch.partner_a), (similar.T, batch.partner_b)):
                label = partner[0, row]
                matched = label >= 0
                assert torch.equal(side.argmax(1)[matched], label[matched])
                assert float(side.amax(1)[label == -1].amax()) < 0.9
                checked += int(matched.sum())
    assert checked > 100


def test_batches_depend_on_the_step_alone_and_ranks_share_nothing(
    files: list[list[Path]],
) -> None:
    task = MatcherTask(tiny(), files, files)
    ahead = [task.batch(step, 0, 1) for step in range(5)]
    again = MatcherTask(tiny(), files, files).batch(4, 0, 1)
    assert torch.equal(ahead[4].views.keypoints_xy, again.views.keypoints_xy)
    assert torch.equal(ahead[4].partner_a, again.partner_a)
    dense = tiny(stages=[{'batches': [{'views': 2, 'tuples': 1, 'keypoints': 30}]}])
    assert MatcherTask(dense, files, files).batch(0, 0, 1).views.capacity == 30
    # Six tuples; a step of two ranks takes four places of the order, one epoch has each once.
    ranks = [task.batch(0, rank, 2) for rank in (0, 1)]
    poses = [{tuple(p.flatten().tolist()) for p in r.world_from_camera[:, 0]} for r in ranks]
    assert not poses[0] & poses[1]


def test_an_epoch_has_every_tuple_once(files: list[list[Path]]) -> None:
    data = FeatureSet(files, seed=3)
    for epoch in range(2):
        seen = [data.shuffled(epoch * len(data) + i).world_from_camera[1, 0, 3] for i in range(6)]
        assert len({float(x) for x in seen}) == 6
    assert FeatureSet(files, lambda world: world == 'room').worlds() == {'room': 2}
    with pytest.raises(SourceError, match='no tuple of the wanted kind'):
        FeatureSet(files, lambda world: False)


def test_pairs_of_a_tuple_are_the_tuple_to_a_pairwise_network() -> None:
    """Without layers across views a joint matcher and a pairwise one say the same."""
    settings = tiny(profile_changes={**tiny().profile_changes, 'block': ('self',)})
    torch.manual_seed(0)
    network = MatcherNetwork(settings.matcher_profile())
    stage = settings.stages[0].model_copy(update={'known_poses': 1.0})
    rng = np.random.default_rng(0)
    batch = joined(
        [draw(scene_tuple(s), stage, 3, stage.keypoints, rng) for s in (0, 1)], True, 0, 0.0
    )
    pairs = batch.in_pairs()
    joint = network(batch.views, batch.sees, batch.known)
    alone = network(pairs.views, pairs.sees, pairs.known)
    flat = joint.log_probability.flatten(0, 1)[:, None]
    torch.testing.assert_close(alone.log_probability, flat, rtol=1e-4, atol=1e-4)
    assert torch.equal(pairs.partner_b, batch.partner_b.flatten(0, 1)[:, None])
    assert torch.equal(pairs.overlap[0], batch.overlap[0, :2, :2])


def assignment_and_batch() -> tuple[MatcherNetwork, object, MatcherBatch]:
    torch.manual_seed(0)
    network = MatcherNetwork(tiny().matcher_profile())
    batch = strongest(scene_tuple(2, views=3, hidden=0), 40)
    return network, network(batch.views), batch


@pytest.mark.parametrize('loss', [eight_point_loss, adjusted_loss])
def test_the_loss_of_poses_reaches_the_network(loss: object) -> None:
    network, made, batch = assignment_and_batch()
    found: PoseLoss = loss(made, batch)  # type: ignore[operator]
    assert found.found == 3
    assert 0.0 < found.rotation.item() < 0.1
    (found.rotation + found.translation).backward()
    moved = {n for n, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None)
    assert 'confidence.together.weight' in moved
    assert 'final.weight' in moved


def test_pairs_that_share_nothing_have_no_loss_of_poses() -> None:
    _, made, batch = assignment_and_batch()
    found = eight_point_loss(made, replace(batch, overlap=torch.zeros_like(batch.overlap)))  # type: ignore[arg-type]
    assert found.found == 0
    assert (found.rotation + found.translation).item() == 0.0


def test_the_end_to_end_stage_trains_on_poses(files: list[list[Path]], tmp_path: Path) -> None:
    poses = {'steps': 2, 'pose_share': 0.5, 'adjusted': True, 'clip': 0.1, 'places': 'solid'}
    settings = tiny(stages=[{'steps': 1}, poses])
    task = MatcherTask(settings, files, files)
    first, second = (task.batch(step, 0, 1) for step in (0, 1))
    assert (first.pose_share, second.pose_share, second.stage) == (0.0, 0.5, 1)
    losses = task.losses(task.network, second)
    assert losses.keys() >= {'match', 'confidence', 'eight_point_rotation_rad', 'adjusted_pairs'}
    assert Trainer(task, settings.trainer, settings.stages, tmp_path, ALONE).run()


@pytest.mark.parametrize('pairwise', [False, True])
def test_slices_equal_one_run_bit_for_bit(
    files: list[list[Path]], tmp_path: Path, pairwise: bool
) -> None:
    settings = tiny(pairwise=pairwise)

    def trainer(out: str) -> Trainer:
        task = MatcherTask(settings, files, files)
        return Trainer(task, settings.trainer, settings.stages, tmp_path / out, ALONE)

    whole = trainer('whole')
    assert whole.run()
    trainer('slices').run(Slice(steps=4))
    last = trainer('slices')
    assert last.run()
    for a, b in ((whole.network, last.network), (whole.average.network, last.average.network)):
        for name, tensor in a.state_dict().items():
            assert torch.equal(tensor, b.state_dict()[name]), name
    a, b = (load_matcher(tmp_path / out / 'best.safetensors') for out in ('whole', 'slices'))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.slow
def test_one_tuple_is_learned_by_heart(files: list[list[Path]], tmp_path: Path) -> None:
    settings = tiny(
        trainer={'average': 0.9},
        stages=[{'steps': 120, 'keypoints': 40, 'batches': [{'views': 4, 'tuples': 1}]}],
    )
    task = MatcherTask(settings, files, [], overfit=1)
    before = task.validate(task.network.eval())
    trainer = Trainer(task, settings.trainer, settings.stages, tmp_path, ALONE)
    assert trainer.run()
    after = task.validate(trainer.average.network)
    assert after['loss'] < 0.5 * before['loss']
    assert after['precision'] >= 99
    assert after['recall'] >= 97


def test_training_starts_from_weights(files: list[list[Path]], tmp_path: Path) -> None:
    task = MatcherTask(tiny(), files, files)
    with torch.no_grad():
        task.network.final.weight.add_(0.5)  # type: ignore[union-attr, operator]
    task.save(task.network, tmp_path / 'w.safetensors', {})
    again = MatcherTask(tiny(), files, files, start=tmp_path / 'w.safetensors')
    for a, b in zip(task.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(a, b)
    other = tiny(profile_changes={**tiny().profile_changes, 'blocks': 2})
    with pytest.raises(SettingsError, match='another profile'):
        MatcherTask(other, files, files, start=tmp_path / 'w.safetensors')


def test_validation_counts_what_it_should() -> None:
    settings = tiny()
    torch.manual_seed(0)
    network = MatcherNetwork(settings.matcher_profile()).eval()
    batches = [strongest(scene_tuple(seed), 40) for seed in range(2)]
    sure = settings.validation.model_copy(update={'min_confidence': 0.0})
    found = validate_matcher(network, batches, sure)
    alone = validate_matcher(network, batches, sure, pairwise=True)
    strict = validate_matcher(network, batches, sure.model_copy(update={'min_confidence': 1.0}))
    assert found['pairs'] == alone['pairs'] == 12
    assert found['precision'] > 90  # of noisy copies of random descriptors
    assert found['recall'] > 90
    assert found['score'] == found['pairs_auc10'] > 80
    assert found['auc10'] > 50
    assert strict['recall'] == strict['precision'] == 0.0


def test_descriptors_of_another_width_are_said() -> None:
    with pytest.raises(SettingsError, match='width 16, the detector sift gives 128'):
        check_descriptors(tiny(detector=DetectorSettings(name='sift')), 128)


@pytest.mark.parametrize(
    'path', sorted((ROOT / 'config' / 'train').glob('matcher_*.yaml')), ids=lambda p: p.stem
)
def test_settings_that_ship_can_be_read(path: Path) -> None:
    settings = read_train_settings(MatcherTraining, path)
    assert settings.matcher_profile()
    changed = read_train_settings(MatcherTraining, path, {'stages.1.steps': 7})
    assert changed.stages[1].steps == 7
    assert changed.stages[1].batches == changed.stages[2].batches == settings.stages[1].batches


@pytest.mark.parametrize(
    ('name', 'value', 'fault'),
    [
        ('stages.9.steps', 7, 'there are 3 entries'),
        ('stages.0.speed', 7, r'stages\.0\.speed'),
        ('augmentation', 7, 'augmentation = 7'),
        ('trainer.average', 2, r'trainer\.average = 2'),
    ],
)
def test_wrong_settings_are_named(name: str, value: object, fault: str) -> None:
    path = ROOT / 'config' / 'train' / 'matcher_light.yaml'
    with pytest.raises(SettingsError, match=fault):
        read_train_settings(MatcherTraining, path, {name: value})
