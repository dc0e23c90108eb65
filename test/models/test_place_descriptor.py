# SPDX-License-Identifier: Apache-2.0
"""A descriptor of a place: unit, whatever order and number of keypoints, of one detector."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

from mv_matcher_ros.config import read_settings
from mv_matcher_ros.datatypes import Features
from mv_matcher_ros.errors import ModelError, SettingsError
from mv_matcher_ros.mapping.mapper import detector_of
from mv_matcher_ros.models.choice import Models, place_describer
from mv_matcher_ros.models.place_descriptor import PlaceDescriber, PlaceNetwork
from mv_matcher_ros.models.profiles import PlaceProfile
from mv_matcher_ros.models.shipped import detector_file
from mv_matcher_ros.models.weights import (
    DESCRIBES_AS,
    load_detector,
    load_place,
    read_weights,
    save_detector,
    save_place,
)

PROFILE = PlaceProfile(descriptor_size=8, words=3, size=6, keypoints=40)


def network(seed: int = 0, profile: PlaceProfile = PROFILE) -> PlaceNetwork:
    torch.manual_seed(seed)
    return PlaceNetwork(profile).eval()


def features(count: int, seed: int = 0, size: int = 8) -> Features:
    maker = torch.Generator().manual_seed(seed)
    descriptors = torch.randn(count, size, generator=maker)
    return Features(
        torch.rand(count, 2, generator=maker) * 100,
        torch.nn.functional.normalize(descriptors, dim=1),
        torch.rand(count, generator=maker),
        torch.ones(count),
        (100, 100),
    )


@torch.no_grad()
def test_it_is_the_published_aggregation() -> None:
    """Hard words, written out: sums of residuals, each of unit length, all of unit length."""
    hard = PlaceProfile(descriptor_size=8, words=3, sharpness=1e4, size=24)
    net = network(profile=hard)
    one = features(20)
    net.whiten.weight.copy_(torch.eye(24))
    net.whiten.bias.zero_()
    word = torch.cdist(one.descriptors, net.centres).argmin(1)
    sums = [(one.descriptors[word == k] - net.centres[k]).sum(0) for k in range(3)]
    parts = [s / s.norm() if s.any() else s for s in sums]
    expected = torch.cat(parts) / torch.cat(parts).norm()
    torch.testing.assert_close(PlaceDescriber(net).describe(one), expected, atol=1e-5, rtol=0)


def test_the_order_of_keypoints_makes_no_difference() -> None:
    describer, one = PlaceDescriber(network()), features(60)
    twins = one.scores.clone()
    twins[10:20] = 0.5  # equal scores
    one = Features(one.keypoints_xy, one.descriptors, twins, one.sigma_px, one.image_size)
    first = describer.describe(one)
    for seed in range(3):
        order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(describer.describe(one.chosen(order)), first)


@pytest.mark.parametrize('count', [1, 2, 5, 200])
def test_any_number_of_keypoints_gives_a_unit_vector(count: int) -> None:
    found = PlaceDescriber(network()).describe(features(count))
    assert found.dtype == torch.float32
    assert found.shape == (6,)
    torch.testing.assert_close(found.norm(), torch.tensor(1.0))


def test_no_keypoints_are_no_place() -> None:
    describer = PlaceDescriber(network())
    assert torch.equal(describer.describe(features(0)), torch.zeros(6))
    both = describer.describe_all([features(0), features(5)])
    assert not both[0].any()
    assert both[1].norm() == pytest.approx(1.0)
    assert describer.describe_all([]).shape == (0, 6)


def test_descriptors_that_are_no_numbers_are_left_out() -> None:
    describer, one = PlaceDescriber(network()), features(6)
    spoilt = one.descriptors.clone()
    spoilt[2] = torch.nan
    bad = Features(one.keypoints_xy, spoilt, one.scores, one.sigma_px, one.image_size)
    kept = one.chosen(torch.tensor([0, 1, 3, 4, 5]))
    assert torch.equal(describer.describe(bad), describer.describe(kept))
    assert not PlaceDescriber(network(), least=6).describe(bad).any()
    only = torch.full((3, 8), torch.inf)
    none = Features(one.keypoints_xy[:3], only, one.scores[:3], one.sigma_px[:3], (9, 9))
    assert not describer.describe(none).any()


def test_a_batch_is_what_each_image_gives_alone() -> None:
    describer = PlaceDescriber(network())
    several = [features(n, n) for n in (3, 17, 0, 60)]
    alone = torch.stack([describer.describe(one) for one in several])
    torch.testing.assert_close(describer.describe_all(several), alone, atol=1e-6, rtol=0)


def test_only_the_strongest_keypoints_take_part() -> None:
    describer, one = PlaceDescriber(network()), features(60)
    strongest = one.chosen(one.scores.argsort(descending=True)[:40])
    assert torch.equal(describer.describe(one), describer.describe(strongest))


def test_gradients_are_finite_also_without_keypoints() -> None:
    net = network().train()
    local = torch.randn(2, 5, 8, requires_grad=True)
    valid = torch.tensor([[True] * 3 + [False] * 2, [False] * 5])
    net(local, valid).square().sum().backward()
    assert local.grad is not None
    assert local.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_another_width_is_refused() -> None:
    with pytest.raises(ModelError, match='width 8, not 16'):
        PlaceDescriber(network()).describe(features(4, size=16))
    with pytest.raises(ModelError, match='width 8, not 16'):
        network()(torch.zeros(1, 2, 16), torch.ones(1, 2, dtype=torch.bool))


def test_weights_come_back_in_half_precision(tmp_path: Path) -> None:
    net = network()
    save_place(tmp_path / 'p.safetensors', net.half())
    again = load_place(tmp_path / 'p.safetensors')
    assert again.profile == PROFILE
    one = features(20)
    expected = PlaceDescriber(net).describe(one)
    assert torch.equal(PlaceDescriber(again).describe(one), expected)
    with pytest.raises(ModelError, match='holds a place, a detector is needed'):
        read_weights(tmp_path / 'p.safetensors', 'detector')


def test_the_detector_must_be_the_one_it_was_trained_on(tmp_path: Path) -> None:
    path = tmp_path / 'p.safetensors'
    named = {'mapping.places.weights': str(path), 'matching.matcher': 'nearest'}
    settings = read_settings({'detector.name': 'learned', **named})
    models = Models.of(settings)
    sha256 = models.networks['detector'].sha256
    net = network(profile=PlaceProfile(words=2, size=8)).half()
    save_place(path, net, {'detector': 'learned', 'detector_sha256': sha256})
    assert place_describer(settings, models).size == 8
    # One that was adapted without changing descriptors is as good.
    adapted = tmp_path / 'adapted.safetensors'
    detector = load_detector(detector_file(settings.detector))
    assert detector.subpixel is not None
    next(detector.subpixel.parameters()).data += 0.01
    for notes, fits in (({DESCRIBES_AS: sha256}, True), ({}, False)):
        save_detector(adapted, detector, notes)
        with_adapted = read_settings({
            'detector.name': 'learned', 'detector.weights': str(adapted), **named,
        })  # fmt: skip
        others = Models.of(with_adapted)
        assert others.networks['detector'].sha256 != sha256
        assert (detector_of(others) == sha256) is fits
        with contextlib.nullcontext() if fits else pytest.raises(ModelError, match='belong'):
            assert place_describer(with_adapted, others).size == 8
    save_place(path, net, {'detector': 'learned', 'detector_sha256': 'ab' * 32})
    with pytest.raises(ModelError, match='a detector with the hash abababababab'):
        place_describer(settings, models)
    save_place(path, net, {'detector': 'learned', 'detector_sha256': sha256})
    sift = read_settings({'detector.name': 'sift', **named})
    with pytest.raises(ModelError, match=r'features of learned, detector\.name is sift'):
        place_describer(sift, Models.of(sift))
    with pytest.raises(SettingsError, match='neither a file nor shipped'):
        place_describer(read_settings({'mapping.places.weights': 'none'}), models)
