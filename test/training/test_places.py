# SPDX-License-Identifier: Apache-2.0
"""Training of the place descriptor: known clusters and directions, one seed one network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_tuples import WIDTH, feature_files

from mv_matcher_ros import cli
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.models.weights import load_place, read_notes
from mv_matcher_ros.training.matcher.feature_set import FeatureSet
from mv_matcher_ros.training.places.fit import (
    comparison,
    fit_place,
    recall_at_one,
    whitening,
)
from mv_matcher_ros.training.places.settings import PlaceTraining
from mv_matcher_ros.training.places.vocabulary import (
    inverse_document_frequency,
    k_means,
    nearest_word,
)

pytestmark = pytest.mark.slow

CONFIG = Path(__file__).resolve().parents[2] / 'config' / 'train' / 'place_light.yaml'
SMALL = PlaceTraining.model_validate({
    'profile': {'descriptor_size': WIDTH, 'words': 3, 'size': 6},
    'vocabulary': {'descriptors': 200, 'comparison': 5},
})  # fmt: skip


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_k_means_finds_clusters() -> None:
    centres = torch.eye(4) * 3
    local = centres.repeat_interleave(50, 0) + 0.05 * torch.randn(200, 4, generator=seeded())
    found = k_means(local, 4, 10, torch.Generator().manual_seed(3))
    spread = local - found[nearest_word(local, found)]
    distances = torch.cdist(centres, found).amin(1)
    assert distances.max() < 0.05 or spread.norm(dim=1).mean() < 2.0  # a bad start may merge two
    again = k_means(local, 4, 10, torch.Generator().manual_seed(3))
    assert torch.equal(found, again)
    with pytest.raises(SourceError, match='too few for 300 words'):
        k_means(local, 300, 1, seeded())


def test_words_of_every_image_weigh_nothing() -> None:
    words = torch.eye(3)
    images = [words[[0, 1]], words[[0]], words[[0, 0, 0]], words[[0, 1]]]
    weights = inverse_document_frequency(images, words)
    torch.testing.assert_close(weights, torch.log(torch.tensor([1.0, 2.0, 4.0])))


def test_whitening_evens_out_the_principal_directions() -> None:
    spread = torch.tensor([0.01, 3.0, 0.02, 1.0, 0.01])
    vectors = torch.randn(500, 5, generator=seeded()) * spread + 7.0
    weight, bias = whitening(vectors, 2, 1.0)
    found = vectors @ weight.T + bias
    torch.testing.assert_close(found.mean(0), torch.zeros(2), atol=1e-3, rtol=0)
    covariance = found.T @ found / len(found)
    torch.testing.assert_close(covariance, covariance[0, 0] * torch.eye(2), atol=1e-3, rtol=0)
    assert list(weight.abs().argmax(1)) == [1, 3]
    assert (weight.gather(1, weight.abs().argmax(1, keepdim=True)) > 0).all()
    plain, _ = whitening(vectors, 2, 0.0)
    torch.testing.assert_close(plain @ plain.T, torch.eye(2), atol=1e-4, rtol=0)
    with pytest.raises(SourceError, match='500 views are too few for descriptors of 6'):
        whitening(vectors, 6, 1.0)


def test_one_seed_gives_one_network_that_knows_its_places(tmp_path: Path) -> None:
    data = FeatureSet(feature_files(tmp_path))
    first, second = (fit_place(SMALL, data) for _ in range(2))
    for name, tensor in first.state_dict().items():
        assert tensor.isfinite().all(), name
        assert torch.equal(tensor, second.state_dict()[name]), name
    figures = recall_at_one(data, first, 0.3)
    assert figures['recall_at_1'] > 90.0
    words, weights = comparison(SMALL, data)
    assert words.shape == (5, WIDTH)
    assert (weights >= 0).all()


def test_command(tuples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / 'out'
    settings = ['detector.max_keypoints=100', 'profile.words=2', 'profile.size=4',
                'vocabulary.descriptors=500', 'vocabulary.comparison=10']  # fmt: skip
    command = ['train', 'places', str(CONFIG), '--tuples', str(tuples), '--out', str(out)]
    command += [word for one in settings for word in ('--set', one)]
    assert cli.exit_code([*command, '--json']) == 0
    printed = json.loads(capsys.readouterr().out)
    network = load_place(out / 'best.safetensors')
    assert network.profile.size == 4
    notes = read_notes(out / 'best.safetensors')
    assert notes['detector'] == 'learned'
    assert len(notes['detector_sha256']) == 64
    assert 0.0 <= printed['recall_at_1'] <= 100.0
    with np.load(out / 'words.npz') as words:
        assert words['words'].shape == (10, 128)
    assert cli.exit_code(command) == 0
    assert 'held-out tuples' in capsys.readouterr().out
    assert cli.exit_code([*command, '--set', 'profile.words=0']) == 2
    assert 'profile.words' in capsys.readouterr().err
