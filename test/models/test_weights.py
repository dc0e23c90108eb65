# SPDX-License-Identifier: Apache-2.0
"""Files of weights: what is written is read, and what is not right is refused by name."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mv_matcher_ros.errors import ModelError
from mv_matcher_ros.models.matcher import MatcherNetwork
from mv_matcher_ros.models.profiles import MatcherProfile
from mv_matcher_ros.models.weights import (
    load_matcher,
    read_notes,
    read_weights,
    save_matcher,
    save_weights,
)

sys.path.insert(0, str(Path(__file__).parent))
import superglue_reference as reference

SMALL = MatcherProfile(
    descriptor_size=8, width=16, attention_size=16, blocks=1, encoder=(8,), confidence_size=4
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / 'deep' / 'small.safetensors'
    torch.manual_seed(0)
    save_matcher(path, MatcherNetwork(SMALL), {'trained': 'not at all'})
    return path


def with_metadata(path: Path, **changes: str) -> None:
    from safetensors import safe_open

    with safe_open(path, framework='pt') as opened:
        metadata = dict(opened.metadata())
    save_file(load_file(path), path, {**metadata, **changes})


def test_a_saved_matcher_comes_back_with_its_profile(file: Path) -> None:
    torch.manual_seed(0)
    expected = MatcherNetwork(SMALL)
    loaded = load_matcher(file)
    assert loaded.profile == SMALL
    assert not loaded.training
    for name, tensor in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert read_weights(file, 'matcher').notes == {'trained': 'not at all'}
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_a_public_superglue_checkpoint_loads_strictly(tmp_path: Path) -> None:
    state = reference.random_state()
    path = tmp_path / 'superglue.pth'
    torch.save(state, path)
    assert load_matcher(path).profile.iterations == 100
    torch.save({'state_dict': state}, path)
    load_matcher(path)
    del state['gnn.layers.3.attn.merge.weight']
    torch.save(state, path)
    with pytest.raises(ModelError, match=r'superglue.pth: .*has no "gnn.layers.3.attn.merge'):
        load_matcher(path)
    torch.save({**reference.random_state(), 'extra.weight': torch.zeros(1)}, path)
    with pytest.raises(ModelError, match=r'more than the network: extra\.weight'):
        load_matcher(path)


@pytest.mark.parametrize('content', [b'', b'not a checkpoint', b'\x80\x04.'])
@pytest.mark.parametrize('name', ['w.safetensors', 'w.pth'])
def test_what_is_no_file_of_weights_is_refused(tmp_path: Path, content: bytes, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r'w\.\w+: not a readable'):
        load_matcher(path)


@pytest.mark.parametrize('name', ['w.safetensors', 'w.pth'])
def test_a_missing_file_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match=rf'{name}: no such'):
        load_matcher(tmp_path / name)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / 'evil.pth'
    torch.save({'a': Path('x')}, path)
    with pytest.raises(ModelError, match=r'evil\.pth: not a readable checkpoint'):
        load_matcher(path)


def test_a_damaged_file_is_refused(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ModelError, match='damaged'):
        load_matcher(file)


def test_kind_version_and_profile_are_checked(file: Path) -> None:
    with pytest.raises(ModelError, match='holds a matcher, a detector is needed'):
        read_weights(file, 'detector')
    profile = SMALL.model_dump_json()
    with_metadata(file, profile=profile.replace('"width"', '"breadth"'))
    with pytest.raises(ModelError, match='its profile is of another version: breadth'):
        load_matcher(file)
    with_metadata(file, format='99')
    with pytest.raises(ModelError, match='format 99, this reads 1'):
        load_matcher(file)
    save_file({'x': torch.zeros(1)}, file)
    with pytest.raises(ModelError, match='format not given'):
        load_matcher(file)


def test_a_file_that_does_not_say_what_it_is(file: Path) -> None:
    save_file(load_file(file), file, {'format': '1', 'profile': '{}'})
    with pytest.raises(ModelError, match='does not say its kind, notes, sha256'):
        load_matcher(file)


def test_a_public_checkpoint_of_another_width(tmp_path: Path) -> None:
    state = reference.random_state()
    name = 'gnn.layers.0.attn.proj.0'
    state[f'{name}.weight'] = state[f'{name}.weight'][:255]
    torch.save(state, tmp_path / 's.pth')
    with pytest.raises(ModelError, match='4 heads do not divide 255 rows'):
        load_matcher(tmp_path / 's.pth')


def test_tensors_of_another_shape_are_named(file: Path) -> None:
    wider = SMALL.model_copy(update={'encoder': (9,)})
    with_metadata(file, profile=wider.model_dump_json())
    with pytest.raises(
        ModelError, match=r'another shape: encoder.0.bias is \(8,\) instead of \(9,\)'
    ):
        load_matcher(file)
    more = SMALL.model_copy(update={'blocks': 2})
    with_metadata(file, profile=more.model_dump_json())
    with pytest.raises(ModelError, match=r'missing: layers.2.*and \d+ more'):
        load_matcher(file)
    less = SMALL.model_copy(update={'confidence_size': 0})
    with_metadata(file, profile=less.model_dump_json())
    with pytest.raises(ModelError, match=r'unknown: again\.'):
        load_matcher(file)


def test_a_network_of_any_size_is_not_built_to_say_that_it_does_not_fit(file: Path) -> None:
    """A profile is a few words; its network would take 85 GB."""
    large = {'width': 4096, 'attention_size': 4096, 'descriptor_size': 4096, 'blocks': 64}
    with_metadata(file, profile=SMALL.model_copy(update=large).model_dump_json())
    with pytest.raises(ModelError, match='does not fit the network it names'):
        load_matcher(file)
    for change in ({'blocks': 10**9}, {'encoder': (0,)}, {'threshold': float('nan')}):
        with_metadata(file, profile=SMALL.model_copy(update=change).model_dump_json())
        with pytest.raises(ModelError, match=f'its profile is of another version: {min(change)}'):
            load_matcher(file)


@pytest.mark.parametrize('notes', ['{', '[]', '1', 100_000 * '['])
def test_notes_that_are_none(file: Path, notes: str) -> None:
    with_metadata(file, notes=notes)
    for read in (load_matcher, read_notes):
        with pytest.raises(ModelError, match='damaged: its notes are not words by name'):
            read(file)


@pytest.mark.parametrize(
    'odd',
    [
        torch.tensor(torch.nan), torch.tensor(3e39, dtype=torch.float64), torch.tensor(1),
        torch.tensor(1j), torch.tensor(True),
    ],
)  # fmt: skip
def test_tensors_that_are_no_finite_numbers(file: Path, odd: torch.Tensor) -> None:
    """With the right hash; the second is no number in single precision."""
    state = {**MatcherNetwork(SMALL).state_dict(), 'dustbin': odd}
    save_weights(file, 'matcher', SMALL, state, {})
    with pytest.raises(ModelError, match=r"'dustbin' (holds no real numbers|is not finite)"):
        load_matcher(file)


def test_a_small_public_checkpoint_of_large_tensors(tmp_path: Path) -> None:
    path = tmp_path / 's.pth'
    torch.save({'bin_score': torch.zeros(1).expand(2**40)}, path)
    with pytest.raises(ModelError, match=r's\.pth: its tensors are larger than the file'):
        load_matcher(path)
    torch.save({'bin_score': torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ModelError, match='a compressed checkpoint'):
        load_matcher(path)


@pytest.mark.parametrize(
    'odd',
    [
        torch.zeros(()), torch.zeros(3), torch.zeros(2, 2).to_sparse(), torch.zeros(2).cfloat(),
        torch.zeros(2, device='meta'), torch.full((4,), torch.nan),
    ],
)  # fmt: skip
def test_a_public_checkpoint_with_odd_tensors(tmp_path: Path, odd: torch.Tensor) -> None:
    for name in ('kenc.encoder.0.weight', 'gnn.layers.3.attn.merge.weight', 'kenc.encoder.1.bias'):
        torch.save({**reference.random_state(), name: odd}, tmp_path / 's.pth')
        with pytest.raises(ModelError, match=r's\.pth: '):
            load_matcher(tmp_path / 's.pth')
