# SPDX-License-Identifier: Apache-2.0
"""Training of point inference: simulated maps, losses that teach, a training that goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_tuples import WIDTH, feature_files, scene_tuple

from mv_matcher_ros import cli
from mv_matcher_ros.errors import SettingsError, SourceError
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.models.weights import load_points, read_notes
from mv_matcher_ros.training.matcher.feature_shards import FeatureShard, TupleFeatures
from mv_matcher_ros.training.points.depths import DepthShard, write_depths
from mv_matcher_ros.training.points.settings import PointTraining, SimulatedMapSettings
from mv_matcher_ros.training.points.simulated_maps import draw_map, thinned, true_view
from mv_matcher_ros.training.points.task import PointTask, point_losses
from mv_matcher_ros.training.processes import Processes
from mv_matcher_ros.training.settings import read_train_settings
from mv_matcher_ros.training.trainer import Slice, Trainer

pytestmark = pytest.mark.slow

ALONE = Processes(0, 1, torch.device('cpu'))
ROOT = Path(__file__).resolve().parents[2]


def tiny(**changes: object) -> PointTraining:
    return PointTraining.model_validate({
        'profile_changes': {
            'descriptor_size': WIDTH, 'width': 32, 'attention_size': 16, 'rounds': 1,
        },
        'trainer': {'validate_every': 100, 'log_every': 5, 'average': 0.9},
        'stages': [{
            'steps': 6, 'warm_up': 1, 'learning_rate': 3e-3, 'keyframes': 4, 'keypoints': 30,
            'maps': {'least_share': 0.4},
        }],
        'validation': {'keypoints': 40, 'tuples': 3, 'shares': [0.5]},
        **changes,
    })  # fmt: skip


def depths_of(found: TupleFeatures) -> list[torch.Tensor]:
    """Of each view, by where its partners in the others lie: what triangulation would give."""
    depths = []
    for view, one in enumerate(found.features):
        depth = torch.zeros(len(one))
        rays = torch.nn.functional.pad(
            (one.keypoints_xy.double() - found.intrinsics[view][:2, 2])
            / found.intrinsics[view][0, 0], (0, 1), value=1.0,
        )  # fmt: skip
        row = 0
        for a in range(len(found.features)):
            for b in range(a + 1, len(found.features)):
                if view in (a, b):
                    other = b if view == a else a
                    label = found.labels[row][int(view == b)]
                    step = (
                        se3.inverse(found.world_from_camera[other])
                        @ (found.world_from_camera[view])
                    )
                    turned, shift = rays @ step[:3, :3].T, step[:3, 3]
                    xy = found.features[other].keypoints_xy.double()[label.clamp_min(0)]
                    plane = (xy - found.intrinsics[other][:2, 2]) / found.intrinsics[other][0, 0]
                    across = turned[:, :2] - plane * turned[:, 2:]
                    right = plane * shift[2] - shift[:2]
                    solved = (across * right).sum(1) / across.square().sum(1)
                    depth = torch.where((label >= 0) & (depth == 0), solved.float(), depth)
                row += 1
        depths.append(depth)
    return depths


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[list[Path]], Path]:
    folder = tmp_path_factory.mktemp('features')
    features = feature_files(folder)
    for (path,) in features:
        shard = FeatureShard(path)
        write_depths(folder / 'depths' / path.name,
                     [depths_of(shard[number]) for number in range(len(shard))])  # fmt: skip
    return features, folder / 'depths'


def made_task(files: tuple[list[list[Path]], Path], **changes: object) -> PointTask:
    return PointTask(tiny(**changes), files[0], files[0], (files[1], files[1]))


def test_depths_come_back(tmp_path: Path) -> None:
    wanted = [[torch.rand(3), torch.rand(0)], [torch.rand(2), torch.rand(5)]]
    write_depths(tmp_path / 'a.npz', wanted)
    shard = DepthShard(tmp_path / 'a.npz')
    assert len(shard) == 2
    for number, views in enumerate(wanted):
        for depth, found in zip(views, shard[number], strict=True):
            assert torch.equal(depth, found)
    (tmp_path / 'b.npz').write_bytes(b'no')
    with pytest.raises(SourceError, match='not a file of depths'):
        DepthShard(tmp_path / 'b.npz')


def test_a_map_holds_what_other_views_saw_as_wrong_as_is_said() -> None:
    found = scene_tuple(0, points=400)
    view = true_view(found, tuple(depths_of(found)), 1)
    settings = SimulatedMapSettings(least_share=0.5, outliers=0.0, largest_error_m=0.1)
    off = []
    for seed in range(40):
        batch = draw_map(view, settings, np.random.default_rng(seed))
        known = batch.given.known[0]
        assert not bool((known & ~(view.matched & (view.depth > 0))).any())
        error = (batch.given.depth[0] / view.depth).log() / batch.given.sigma[0]
        off.append(float(error[known].square().mean().sqrt()))
    assert 0.8 < float(np.median(off)) < 1.25


@pytest.mark.parametrize('clustered', [False, True])
def test_maps_are_thinned_to_a_share_in_clusters_or_not(clustered: bool) -> None:
    found = scene_tuple(0, points=400)
    view = true_view(found, tuple(depths_of(found)), 0)
    spans = []
    for seed in range(10):
        known = thinned(view, 0.1, clustered, np.random.default_rng(seed))
        assert known.sum() == round(0.1 * int((view.matched & (view.depth > 0)).sum()))
        spans.append(float(view.plane_xy[known].std(0).mean()))
    whole = float(view.plane_xy.std(0).mean())
    assert (np.mean(spans) < 0.75 * whole) == clustered


def test_a_mirror_keeps_depths() -> None:
    found = scene_tuple(0)
    view = true_view(found, tuple(depths_of(found)), 0)
    assert torch.equal(view.mirrored().depth, view.depth)
    assert torch.equal(view.mirrored().mirrored().plane_xy, view.plane_xy)


def test_batches_depend_on_the_step_alone(files: tuple[list[list[Path]], Path]) -> None:
    task = made_task(files)
    ahead = [task.batch(step, 0, 1) for step in range(3)]
    again = made_task(files).batch(2, 0, 1)
    assert torch.equal(ahead[2].given.depth, again.given.depth)
    assert ahead[0].given.plane_xy.shape == (4, 30, 2)
    assert not torch.equal(ahead[0].given.depth, task.batch(0, 1, 2).given.depth)


def test_what_has_no_certain_depth_teaches_nothing(
    files: tuple[list[list[Path]], Path],
) -> None:
    task = made_task(files)
    batch = task.batch(0, 0, 1)
    stage = tiny().stages[0]
    batch.depth[:, 15:] = 0.0
    first = point_losses(task.network, batch, stage)
    assert 0 < float(first['depth'].detach()) < 1
    batch.depth[:] = 0.0
    losses = point_losses(task.network, batch, stage)
    assert float(losses['loss'].detach()) == 0.0


def test_a_training_learns_and_goes_on_where_it_stopped(
    files: tuple[list[list[Path]], Path], tmp_path: Path
) -> None:
    settings = tiny()
    whole = Trainer(made_task(files), settings.trainer, settings.stages, tmp_path / 'a', ALONE)
    assert whole.run()
    parts = Trainer(made_task(files), settings.trainer, settings.stages, tmp_path / 'b', ALONE)
    assert not parts.run(Slice(steps=3))
    parts = Trainer(made_task(files), settings.trainer, settings.stages, tmp_path / 'b', ALONE)
    assert parts.step == 3
    assert parts.run()
    for a, b in zip(whole.network.parameters(), parts.network.parameters(), strict=True):
        assert torch.equal(a, b)
    load_points(tmp_path / 'a' / 'best.safetensors')


def test_a_tuple_can_be_learned_by_heart(files: tuple[list[list[Path]], Path]) -> None:
    settings = tiny(stages=[{
        'steps': 80, 'warm_up': 5, 'learning_rate': 3e-3, 'keyframes': 2, 'keypoints': 34,
        'maps': {'least_share': 0.8, 'outliers': 0.0, 'clustered': 0.0},
    }])  # fmt: skip
    task = PointTask(settings, files[0], files[0], (files[1], files[1]), overfit=1)
    optimiser = torch.optim.AdamW(task.network.parameters(), 3e-3)
    losses = []
    for step in range(80):
        optimiser.zero_grad()
        loss = task.losses(task.network, task.batch(step % 8, 0, 1))['loss']
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.4


def test_figures_of_a_validation(files: tuple[list[list[Path]], Path]) -> None:
    figures = made_task(files).validate(made_task(files).network.eval())
    assert set(figures) >= {'score', 'within5', 'within10', 'nearest5', 'calibration', 'honest'}
    assert 0 <= figures['within5'] <= figures['within10'] <= 100
    assert 0 <= figures['calibration'] <= 100


def test_a_profile_change_that_is_none_is_named() -> None:
    with pytest.raises(SettingsError, match=r'profile_changes\.depth'):
        tiny(profile_changes={'depth': 3}).point_profile()


def test_the_shipped_configuration_is_read() -> None:
    settings = read_train_settings(PointTraining, ROOT / 'config/train/points_light.yaml')
    assert settings.point_profile().descriptor_size == 128


def test_the_command_makes_features_depths_and_weights(tuples: Path, tmp_path: Path) -> None:
    config = tmp_path / 'points.yaml'
    config.write_text(
        'profile_changes: {descriptor_size: 128, width: 16, attention_size: 16, rounds: 1}\n'
        'detector: {name: sift, max_keypoints: 60}\n'
        'trainer: {validate_every: 2, log_every: 1}\n'
        'stages: [{steps: 2, warm_up: 1, keyframes: 2, keypoints: 60, maps: {least_share: 0.9}}]\n'
        'validation: {tuples: 2, keypoints: 60}\n'
    )
    command = [
        'train', 'points', str(config), '--tuples', str(tuples), '--out', str(tmp_path / 'out'),
        '--device', 'cpu',
    ]  # fmt: skip
    assert cli.exit_code([*command, '--steps', '1']) == 0
    assert not (tmp_path / 'out' / 'best.safetensors').exists()
    assert cli.exit_code(command) == 0
    notes = read_notes(tmp_path / 'out' / 'best.safetensors')
    assert notes['detector'] == 'sift'
    assert notes['steps'] == '2'
    assert len(list((tmp_path / 'out' / 'depths' / 'train').glob('*.npz'))) == 2
