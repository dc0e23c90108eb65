# SPDX-License-Identifier: Apache-2.0
"""Shards: what is written comes back, exactly enough; what is broken is said."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mv_matcher_ros import cli
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.training.data.augmentation import Augmentation
from mv_matcher_ros.training.data.datasets import TupleDataset, connected_views
from mv_matcher_ros.training.data.labels import UNMATCHED, match_labels
from mv_matcher_ros.training.data.shards import Shard, decode_depth, encode_depth, write_shard
from mv_matcher_ros.training.data.tuple_rendering import (
    RenderingPlan,
    jobs,
    render_shards,
    render_tuple,
)
from mv_matcher_ros.training.data.tuple_sources import TupleSources
from mv_matcher_ros.worlds.view_tuples import ViewTuple

SIZE = (96, 72)


@pytest.fixture(scope='module')
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('photos')
    for number in range(9):
        rng = np.random.default_rng(number)
        image = np.kron(rng.integers(0, 256, (30, 40, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        cv2.imwrite(str(folder / f'{number}.png'), image)
    return folder


@pytest.fixture(scope='module')
def sources(photos: Path) -> TupleSources:
    return TupleSources.find(None, photos, procedural=False)


@pytest.fixture(scope='module')
def made(sources: TupleSources) -> list[tuple[ViewTuple, tuple[int, ...]]]:
    plan = RenderingPlan(3, 0, SIZE, 3, 2)
    return [render_tuple(sources, plan, 'train', 0, number) for number in range(3)]


@pytest.fixture
def shard(tmp_path: Path, made: list[tuple[ViewTuple, tuple[int, ...]]]) -> Path:
    path = tmp_path / 'train' / '00000.zip'
    write_shard(path, [views for views, _ in made], [seed for _, seed in made])
    return path


@pytest.mark.parametrize('nearest', [0.3, 1.0, 3.0])
def test_stored_depth_moves_no_pixel(nearest: float) -> None:
    """Focal length 600 px, a step to the side as long as the nearest thing is away."""
    rng = np.random.default_rng(0)
    depth = (nearest * np.exp(rng.uniform(0, 5, (200, 200)))).astype(np.float32)
    depth[:20] = 0.0
    stored, step = encode_depth(depth)
    again = decode_depth(stored, step)
    assert ((again == 0) == (depth == 0)).all()
    known = depth > 0
    moved = 600.0 * nearest * np.abs(1 / again[known] - 1 / depth[known])
    assert moved.max() < 0.05
    ahead = 300.0 * nearest * np.abs(1 / (again[known] + nearest) - 1 / (depth[known] + nearest))
    assert ahead.max() < 0.05


def test_depth_of_nothing_is_kept() -> None:
    stored, step = encode_depth(np.zeros((4, 5), np.float32))
    assert (decode_depth(stored, step) == 0).all()


def test_a_shard_gives_back_what_was_written(
    shard: Path, made: list[tuple[ViewTuple, tuple[int, ...]]]
) -> None:
    opened = Shard(shard)
    assert len(opened) == 3
    for number, (views, seed) in enumerate(made):
        entry = opened.entries[number]
        assert (entry.seed, entry.world, entry.baseline) == (seed, views.world, views.baseline)
        np.testing.assert_array_equal(entry.world_from_camera, views.world_from_camera)
        np.testing.assert_array_equal(entry.intrinsics, views.intrinsics)
        np.testing.assert_allclose(entry.overlap, views.overlap, atol=1e-4)
        images = np.stack(opened.images(number, range(3))).astype(int)
        assert np.abs(images - views.images).mean() < 3
        depths = np.stack(opened.depths(number, [2, 0]))
        np.testing.assert_allclose(depths, views.depths[[2, 0]], rtol=1e-3)


def test_the_same_tuples_are_the_same_bytes(
    shard: Path, tmp_path: Path, made: list[tuple[ViewTuple, tuple[int, ...]]]
) -> None:
    again = tmp_path / 'again.zip'
    write_shard(again, [views for views, _ in made], [seed for _, seed in made])
    assert again.read_bytes() == shard.read_bytes()
    assert not list(tmp_path.rglob('*.part'))


def test_broken_shards_are_said(shard: Path, tmp_path: Path) -> None:
    cut = tmp_path / 'cut.zip'
    cut.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(SourceError, match='not a shard'):
        Shard(cut)
    with pytest.raises(SourceError, match='not a shard'):
        Shard(tmp_path / 'none.zip')
    newer = tmp_path / 'newer.zip'
    with zipfile.ZipFile(newer, 'w') as archive:
        archive.writestr('tuples.json', json.dumps({'format': 99, 'tuples': []}))
    with pytest.raises(SourceError, match='format 99'):
        Shard(newer)
    emptied = tmp_path / 'emptied.zip'
    with zipfile.ZipFile(shard) as full, zipfile.ZipFile(emptied, 'w') as archive:
        archive.writestr('tuples.json', full.read('tuples.json'))
    with pytest.raises(SourceError, match='delete the shard'):
        Shard(emptied).images(0, [0])


def test_interrupted_rendering_goes_on(sources: TupleSources, tmp_path: Path) -> None:
    plan = RenderingPlan(4, 0, SIZE, 2, 2)
    whole = [job.path(tmp_path / 'a') for job in render_shards(sources, plan, tmp_path / 'a')]
    running = render_shards(sources, plan, tmp_path / 'b')
    first = next(running).path(tmp_path / 'b')
    running.close()
    before = first.stat().st_mtime_ns
    again = [job.path(tmp_path / 'b') for job in render_shards(sources, plan, tmp_path / 'b')]
    assert first.stat().st_mtime_ns == before
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in whole]
    more = RenderingPlan(6, 0, SIZE, 2, 2)  # more of the same is no other plan
    assert len(list(render_shards(sources, more, tmp_path / 'b'))) == 3
    with pytest.raises(SourceError, match='tuples of other views'):
        next(render_shards(sources, RenderingPlan(4, 0, SIZE, 3, 2), tmp_path / 'b'))


@pytest.mark.slow
def test_several_processes_make_the_same_shards(sources: TupleSources, tmp_path: Path) -> None:
    plan = RenderingPlan(4, 0, SIZE, 2, 2)
    for name, workers in (('one', 1), ('two', 2)):
        assert len(list(render_shards(sources, plan, tmp_path / name, workers))) == 2
    for job in jobs(plan):
        one, two = (job.path(tmp_path / name).read_bytes() for name in ('one', 'two'))
        assert one == two


def test_what_is_held_out_is_not_trained_on(box_world: Path, photos: Path) -> None:
    folder = box_world.parent
    sources = TupleSources.find(folder, photos, ['box'])
    assert sources.worlds_of('val') == (box_world,)
    assert sources.worlds_of('train') == ()
    assert [p.name for p in sources.photos_of('val')] == ['7.png']
    assert len(sources.photos_of('train')) == 8
    assert set(sources.kinds('val')) == {'mesh', 'photo', 'photos'}
    assert set(sources.kinds('train')) == {'room', 'corridor', 'street', 'photo', 'photos'}
    both = [job.split for job in jobs(RenderingPlan(100, 20, per_shard=10))]
    assert both[:2] == ['train', 'val']
    assert both.count('train') == 10


def test_sources_that_are_not_there_are_said(
    box_world: Path, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / 'empty').mkdir()
    with pytest.raises(SourceError, match=r'no \.glb'):
        TupleSources.find(tmp_path / 'empty', None)
    with pytest.raises(SourceError, match='no images'):
        TupleSources.find(None, tmp_path / 'empty')
    with pytest.raises(SourceError, match='"shop": there is box'):
        TupleSources.find(box_world.parent, None, ['shop'])
    with pytest.raises(SourceError, match='left to train on'):
        TupleSources.find(box_world.parent, None, ['box'], procedural=False)
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'a.jpg').write_bytes(b'\xff\xd8 cut')
    broken = TupleSources.find(None, tmp_path / 'photos', procedural=False)
    with pytest.raises(SourceError, match=r'a\.jpg.*take it out'):
        render_tuple(broken, RenderingPlan(1, 0, SIZE), 'train', 0, 0)
    with pytest.raises(SourceError, match='nothing to render'):
        RenderingPlan(0, 0)
    with pytest.raises(SourceError, match='held-out world'):
        next(render_shards(broken, RenderingPlan(1, 1, SIZE), tmp_path / 'out'))


def test_the_data_set_gives_the_same_for_the_same_numbers(shard: Path) -> None:
    data = TupleDataset(shard.parent, views=2, seed=4)
    assert len(data) == 3
    first, again, later = data.tuple_at(1, 0), data.tuple_at(1, 0), data.tuple_at(1, 1)
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, later.images)
    assert first.images.shape == (2, 1, 72, 96)
    assert 0 <= float(first.images.min()) <= float(first.images.max()) <= 1
    assert first.depths.shape == first.foreign.shape == (2, 72, 96)
    assert first.world_from_camera.dtype == torch.float64
    data.epoch = 1
    assert torch.equal(data[1].images, later.images)
    assert data.entry(2).views == 3


def test_the_data_set_can_leave_images_alone(
    shard: Path, made: list[tuple[ViewTuple, tuple[int, ...]]]
) -> None:
    data = TupleDataset(shard.parent, augmentation=None)
    found = data[0]
    assert float((255 * found.images[:, 0] - torch.from_numpy(made[0][0].images)).abs().mean()) < 3
    assert not found.foreign.any()


def test_worker_processes_may_read_it(shard: Path) -> None:
    data = TupleDataset(shard.parent, views=3)
    expected = data.tuple_at(2, 0).images
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=1, multiprocessing_context='fork'
    )
    assert torch.equal(list(loader)[2].images, expected)


def test_a_data_set_without_shards_says_how_to_get_some(tmp_path: Path, shard: Path) -> None:
    with pytest.raises(SourceError, match='train tuples'):
        TupleDataset(tmp_path / 'none')
    with pytest.raises(SourceError, match='have 3 views'):
        TupleDataset(shard.parent, views=4)


def test_chosen_views_hang_together() -> None:
    overlap = np.eye(5, dtype=np.float32)
    for a, b in ((0, 1), (1, 2), (3, 4)):
        overlap[a, b] = overlap[b, a] = 0.5
    for seed in range(20):
        chosen = connected_views(overlap, 2, np.random.default_rng(seed))
        assert overlap[chosen[0], chosen[1]] > 0
    assert connected_views(overlap, 5, np.random.default_rng(0)) == [0, 1, 2, 3, 4]


def test_labels_on_something_foreign(shard: Path) -> None:
    """Keypoints on what was put into a view have no partner, others keep theirs."""
    settings = Augmentation(occluder_share=1.0, distractor_share=1.0)
    data = TupleDataset(shard.parent, augmentation=settings, seed=1)
    plain = TupleDataset(shard.parent, augmentation=None)
    grid = torch.stack(
        torch.meshgrid(torch.arange(4.0, 92, 4), torch.arange(4.0, 68, 4), indexing='xy'), -1
    ).reshape(-1, 2)
    covered = 0
    for index in range(3):
        seen, bare = data[index], plain[index]
        here = seen.foreign[0, grid[:, 1].long(), grid[:, 0].long()]
        labels, _ = match_labels(seen.label_view(0, grid), seen.label_view(1, grid))
        truth, _ = match_labels(bare.label_view(0, grid), bare.label_view(1, grid))
        assert (labels[here] == UNMATCHED).all()
        matched = labels >= 0
        there = seen.foreign[1, grid[:, 1].long(), grid[:, 0].long()]
        assert not there[labels[matched]].any()
        assert (truth[matched] >= 0).float().mean() > 0.95
        covered += int(here.sum())
    assert covered > 20


def test_train_tuples_renders_and_draws(
    box_world: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        'train', 'tuples', '--worlds', str(box_world.parent), '--photos', str(photos),
        '--out', str(tmp_path / 'out'), '--count', '2', '--size', '96x72', '--views', '2',
        '--per-shard', '2', '--no-procedural', '--pictures', str(tmp_path / 'sheet.png'),
    ]  # fmt: skip
    assert cli.exit_code(words) == 0
    assert '2 tuples of 2 views' in capsys.readouterr().err
    assert len(Shard(tmp_path / 'out' / 'train' / '00000.zip')) == 2
    sheet = cv2.imread(str(tmp_path / 'sheet.png'))
    assert sheet is not None
    assert sheet.std() > 10
    assert cli.exit_code([*words[:-1], str(tmp_path / 'again.png')]) == 0
    assert cli.exit_code([*words, '--size', '96by72']) == 2
    assert 'WIDTHxHEIGHT' in capsys.readouterr().err


@pytest.mark.data
@pytest.mark.slow
def test_public_worlds_give_tuples(data_root: Path) -> None:
    pytest.importorskip('embreex', reason='embreex has no wheel for Linux on aarch64')
    worlds = data_root / 'worlds'
    if not (worlds / 'bookstore.glb').is_file():
        pytest.skip('the development data have no worlds')
    sources = TupleSources.find(worlds, data_root / 'photos', ['bookstore'], procedural=False)
    views, _ = render_tuple(sources, RenderingPlan(1, 1, (160, 120)), 'val', 0, 0)
    assert views.world == 'bookstore'
    assert (views.depths > 0).mean() > 0.6
