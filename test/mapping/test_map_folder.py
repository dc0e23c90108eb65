# SPDX-License-Identifier: Apache-2.0
"""A map survives saving, whoever is killed when; what is no map is refused by name."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from made_maps import CAMERA, made_map

from mv_matcher_ros.datatypes import Rig
from mv_matcher_ros.errors import MvMatcherError
from mv_matcher_ros.mapping import map_folder
from mv_matcher_ros.mapping.map import Map
from mv_matcher_ros.mapping.map_folder import FORMAT, INDEX, load_map, save_map


def same(one: Map, other: Map) -> None:
    assert (one.sensor, one.detector) == (other.sensor, other.detector)
    assert repr(one.rig) == repr(other.rig)
    assert list(one.keyframes) == list(other.keyframes)
    for key, keyframe in one.keyframes.items():
        for name, value in vars(keyframe).items():
            np.testing.assert_array_equal(value, getattr(other.keyframes[key], name))
        np.testing.assert_array_equal(one.pose[key], other.pose[key])
        for mine, theirs in zip(one.points_seen_by(key), other.points_seen_by(key), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert len(one.edges) == len(other.edges)
    for edge, twin in zip(one.edges, other.edges, strict=True):
        assert (edge.a, edge.b, edge.loop) == (twin.a, twin.b, twin.loop)
        np.testing.assert_array_equal(edge.a_from_b, twin.a_from_b)
        np.testing.assert_array_equal(edge.covariance, twin.covariance)
    np.testing.assert_array_equal(
        one.landmarks.seen[: len(one.landmarks)], other.landmarks.seen[: len(other.landmarks)]
    )
    assert (one.next_key, one.next_segment) == (other.next_key, other.next_segment)


def test_a_map_comes_back_as_it_was(tmp_path: Path) -> None:
    world = made_map()
    same(world, load_map(save_map(world, tmp_path / 'home')))


def test_an_empty_map_is_one(tmp_path: Path) -> None:
    world = Map(Rig((CAMERA,)), 'mono', 'abc')
    back = load_map(save_map(world, tmp_path / 'nothing'))
    same(world, back)
    assert back.next_key == 0
    assert not back.metric


def test_large_arrays_stay_in_their_files(tmp_path: Path) -> None:
    back = load_map(save_map(made_map(), tmp_path / 'home'))
    base = back.keyframes[0].descriptors
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)


def test_a_map_is_saved_over_itself_while_it_is_read(tmp_path: Path) -> None:
    save_map(made_map(), tmp_path / 'home')
    world = load_map(tmp_path / 'home')
    world.remove([1])
    save_map(world, tmp_path / 'home')
    same(world, load_map(tmp_path / 'home'))
    assert len([p for p in (tmp_path / 'home').iterdir() if p.is_dir()]) == 1


@pytest.mark.parametrize('write', range(1, 22, 4))
def test_a_crash_while_saving_leaves_the_map_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    save_map(made_map(3), tmp_path / 'home')
    seen = 0

    def dies(descriptor: int) -> None:
        nonlocal seen
        seen += 1
        if seen == write:
            raise KeyboardInterrupt
        os.fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(map_folder, '_to_disk', dies)
        try:
            save_map(made_map(6), tmp_path / 'home')
            saved = 6
        except KeyboardInterrupt:
            saved = 3
    same(made_map(saved), load_map(tmp_path / 'home'))
    save_map(made_map(4), tmp_path / 'home')  # and nothing is in the way of the next one
    same(made_map(4), load_map(tmp_path / 'home'))


def test_a_first_save_that_was_interrupted_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / 'home' / '0001').mkdir(parents=True)
    (tmp_path / 'home' / '0001' / 'key.npy').write_bytes(b'half')
    with pytest.raises(MvMatcherError, match=r'map\.json is missing'):
        load_map(tmp_path / 'home')
    save_map(made_map(2), tmp_path / 'home')
    same(made_map(2), load_map(tmp_path / 'home'))


def test_a_first_save_that_was_interrupted_at_its_end_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / 'home').mkdir()
    (tmp_path / 'home' / 'map.new').write_text('{')
    save_map(made_map(2), tmp_path / 'home')
    same(made_map(2), load_map(tmp_path / 'home'))


@pytest.mark.parametrize('count', [2, 4, 8])
def test_a_map_of_several_stereo_pairs_comes_back(tmp_path: Path, count: int) -> None:
    world = Map(Rig((CAMERA,) * count), 'stereo', 'abc')
    same(world, load_map(save_map(world, tmp_path / 'home')))


def test_a_map_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, words in (
        (ValueError('widths 64 and 128'), 'cannot be written: widths 64 and 128'),
        (OSError('8 requested and 3 written'), 'cannot be written: 8 requested and 3 written'),
        (OSError(28, 'No space left'), 'cannot be written: No space left'),
    ):

        def fails(world: Map, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(map_folder, 'arrays_of', fails)
        with pytest.raises(MvMatcherError, match=words):
            save_map(made_map(2), tmp_path / 'home')


def test_what_is_no_map_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / 'thesis.txt').write_text('years of work')
    with pytest.raises(MvMatcherError, match='is no map, and not empty'):
        save_map(made_map(2), tmp_path)
    with pytest.raises(MvMatcherError, match='is no map'):
        save_map(made_map(2), tmp_path / 'thesis.txt')
    assert (tmp_path / 'thesis.txt').read_text() == 'years of work'


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(MvMatcherError, match='no map'):
        load_map(tmp_path / 'nowhere')
    folder = save_map(made_map(3), tmp_path / 'home')
    said = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**said, 'format': 99}))
    with pytest.raises(MvMatcherError, match=f'format 99, this version reads {FORMAT}'):
        load_map(folder)
    (folder / INDEX).write_text(json.dumps(said))
    arrays = folder / said['arrays']
    (arrays / 'landmark.npy').rename(arrays / 'gone')
    with pytest.raises(MvMatcherError, match=r'damaged.*landmark'):
        load_map(folder)
    (folder / INDEX).write_text('{')
    with pytest.raises(MvMatcherError, match='cannot be read'):
        load_map(folder)
    (folder / INDEX).write_text('[]')
    with pytest.raises(MvMatcherError, match='does not describe a map'):
        load_map(folder)


def test_nothing_that_is_run_is_read(tmp_path: Path) -> None:
    folder = save_map(made_map(2), tmp_path / 'home')
    arrays = folder / json.loads((folder / INDEX).read_text())['arrays']
    np.save(arrays / 'key.npy', np.array([{}, {}], dtype=object), allow_pickle=True)
    with pytest.raises(MvMatcherError, match='damaged'):
        load_map(folder)


@pytest.mark.parametrize('name', ['../..', '/etc', '.', '', '0001/..', '１', None, 7])
def test_the_index_does_not_lead_out_of_the_folder(tmp_path: Path, name: object) -> None:
    folder = save_map(made_map(2), tmp_path / 'home')
    said = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**said, 'arrays': name}))
    with pytest.raises(MvMatcherError, match=r'home: the map is damaged: .*number of a version'):
        load_map(folder)
    with pytest.raises(MvMatcherError, match='number of a version; name another folder'):
        save_map(made_map(2), folder)


def test_saving_follows_no_link_and_removes_nobody_elses_folders(tmp_path: Path) -> None:
    folder = save_map(made_map(2), tmp_path / 'home')
    (tmp_path / 'letter').write_text('dear')
    (folder / 'map.new').symlink_to(tmp_path / 'letter')
    (folder / 'pictures').mkdir()
    save_map(made_map(3), folder)
    assert (tmp_path / 'letter').read_text() == 'dear'
    assert (folder / 'pictures').is_dir()
    assert len(load_map(folder)) == 3


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('key', -1), ('key', 2**40), ('features', -1), ('features', 10**6), ('landmark', -2),
        ('landmark', 10**6), ('anchor', 77), ('map_from_body', np.nan),
        ('map_from_body', 0), ('odom_from_body', 1e300), ('edge_step', np.inf), ('segment', -5),
    ],
)  # fmt: skip
def test_arrays_that_contradict_each_other_are_refused(
    tmp_path: Path, name: str, value: float
) -> None:
    folder = save_map(made_map(3), tmp_path / 'home')
    path = folder / json.loads((folder / INDEX).read_text())['arrays'] / f'{name}.npy'
    array = np.load(path)
    array[1] = value
    np.save(path, array)
    with pytest.raises(MvMatcherError, match=r'damaged: .*(holds what cannot be|rows instead of)'):
        load_map(folder)


def test_arrays_of_another_type_or_shape_are_refused(tmp_path: Path) -> None:
    folder = save_map(made_map(3), tmp_path / 'home')
    arrays = folder / json.loads((folder / INDEX).read_text())['arrays']
    for array in (np.zeros(3), np.zeros((3, 2), np.int64), np.int64(3)):
        np.save(arrays / 'key.npy', array)
        with pytest.raises(MvMatcherError, match='damaged: key is'):
            load_map(folder)


@pytest.mark.parametrize(
    'change',
    [
        {'sensor': 'nose'}, {'origin': 5}, {'origin': {'x': 'y'}}, {'cameras': []},
        {'cameras': [1]}, {'body_axes': 'up'}, {'cameras': None},
        {'cameras': [{'size': [10**40, 2]}]},
    ],
)  # fmt: skip
def test_an_index_with_other_values_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    folder = save_map(made_map(2), tmp_path / 'home')
    said = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**said, **change}))
    with pytest.raises(MvMatcherError, match='home: the map is damaged'):
        load_map(folder)
    camera = {**said['cameras'][0], 'intrinsics': [0.0, 1.0, 1.0, 1.0]}
    (folder / INDEX).write_text(json.dumps({**said, 'cameras': [camera]}))
    with pytest.raises(MvMatcherError, match='home: the map is damaged: camera: not calibrated'):
        load_map(folder)
    (folder / INDEX).write_text(100_000 * '[')
    with pytest.raises(MvMatcherError, match='cannot be read'):
        load_map(folder)


def test_steps_to_keyframes_that_are_gone_are_left_out(tmp_path: Path) -> None:
    world = made_map(3)
    world.edges.append(replace(world.edges[0], a=0, b=77, loop=True))
    assert len(load_map(save_map(world, tmp_path / 'home')).edges) == 2


def test_versions_never_end(tmp_path: Path) -> None:
    folder = save_map(made_map(1), tmp_path / 'home')
    said = json.loads((folder / INDEX).read_text())
    (folder / said['arrays']).rename(folder / '999999999')
    (folder / INDEX).write_text(json.dumps({**said, 'arrays': '999999999'}))
    assert len(load_map(save_map(load_map(folder), folder))) == 1
