# SPDX-License-Identifier: Apache-2.0
"""Classical features lie where they should, and matching does what its dense definition says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from mv_matcher_ros.config import DetectorSettings, MatchingSettings
from mv_matcher_ros.datatypes import Features, Matches
from mv_matcher_ros.models import classical
from mv_matcher_ros.models.classical import (
    UNRELATED_SIMILARITY,
    ClassicalDetector,
    NearestNeighbourMatcher,
    empty_features,
    mutual_nearest,
    mutual_nearest_of_pairs,
    near_pairs,
)

SIFT_EXACT_PX = 0.1
DESCRIPTOR_SIZE = {'sift': 128, 'orb': 256}
both = pytest.mark.parametrize('name', ['sift', 'orb'])


def places(size: tuple[int, int], spacing: int, seed: int = 0, jitter: float = 4.0) -> np.ndarray:
    """(N, 2) sub-pixel places on a jittered grid."""
    rng = np.random.default_rng(seed)
    width, height = size
    grid = [
        (x, y)
        for y in range(spacing, height - spacing // 2, spacing)
        for x in range(spacing, width - spacing // 2, spacing)
    ]
    return np.array(grid) + rng.uniform(0.0, jitter, (len(grid), 2))


def blobs(size: tuple[int, int], at: np.ndarray, sigma_px: float) -> np.ndarray:
    """Bright Gaussian blobs, sampled where pixel centres are: at the integers."""
    y, x = np.mgrid[: size[1], : size[0]].astype(np.float64)
    image = np.full((size[1], size[0]), 80.0)
    for px, py in at:
        image += 150.0 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2.0 * sigma_px**2))
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def noise_image(size: tuple[int, int] = (320, 240), seed: int = 0) -> np.ndarray:
    """Texture everywhere, at several scales."""
    rng = np.random.default_rng(seed)
    image = np.zeros((size[1], size[0]), np.float32)
    for cell in (4, 8, 16, 32):
        coarse = rng.uniform(0, 60, (size[1] // cell + 1, size[0] // cell + 1)).astype(np.float32)
        image += cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    return np.clip(image, 0, 255).astype(np.uint8)


def errors_px(features: Features, at: np.ndarray) -> np.ndarray:
    """(K, 2) offset of the keypoint nearest to each place; nearly all places have one."""
    xy = features.keypoints_xy.numpy()
    distance = np.linalg.norm(xy[None] - at[:, None], axis=2)
    found = distance.min(1) < 3.0
    # A blob between two layers of the scale space may be no extremum of either.
    assert found.mean() > 0.9
    return (xy[distance.argmin(1)] - at)[found]


def sift(**settings: Any) -> ClassicalDetector:
    return ClassicalDetector(DetectorSettings(name='sift', **settings))


@pytest.mark.parametrize('sigma_px', [1.2, 2.0, 3.0, 6.0])
def test_sift_finds_a_blob_where_it_is(sigma_px: float) -> None:
    at = places((320, 240), 40)
    error = errors_px(sift().detect(blobs((320, 240), at, sigma_px)), at)
    assert np.abs(error).max() < SIFT_EXACT_PX


@pytest.mark.parametrize(('width', 'working'), [(640, 320), (640, 480), (480, 200)])
def test_sift_finds_a_blob_where_it_is_in_the_image_as_given(width: int, working: int) -> None:
    """Detection in a smaller image; a shift of half a pixel of either image would be seen."""
    size = (width, 3 * width // 4)
    at = places(size, 80)
    features = sift(working_pixels=working * working * 3 // 4).detect(blobs(size, at, 6.0))
    error = errors_px(features, at)
    assert features.image_size == size
    assert np.abs(error).max() < SIFT_EXACT_PX * width / working
    assert np.abs(error.mean(0)).max() < 0.05


def test_sift_without_its_precise_mode_is_shifted_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV before 4.8: keypoints come 0.25 px too far, and only the correction hides it."""

    def refuse(**options: Any) -> Any:
        raise TypeError('enable_precise_upscale is unknown')

    monkeypatch.setattr(cv2, 'SIFT', SimpleNamespace(create=refuse))
    at = places((320, 240), 40)
    detector = sift()
    image = blobs((320, 240), at, 2.0)
    error = errors_px(detector.detect(image), at)
    assert np.abs(error).max() < SIFT_EXACT_PX
    monkeypatch.setattr(detector, '_shift_px', 0.0)
    uncorrected = errors_px(detector.detect(image), at)
    assert uncorrected.mean(0) == pytest.approx(classical.SIFT_DOUBLING_SHIFT_PX, abs=0.02)


def test_orb_finds_a_dot_where_it_is() -> None:
    """FAST corners are whole pixels: a dot of one pixel is found exactly, at the finest scale."""
    at = np.round(places((320, 240), 40))
    image = np.full((240, 320), 40, np.uint8)
    for x, y in at.astype(int):
        image[y, x] = 250
    features = ClassicalDetector(DetectorSettings(name='orb')).detect(image)
    fine = features.sigma_px < classical.SIGMA_AT_FINEST_PX * 1.01
    xy = features.keypoints_xy[fine].numpy()
    distance = np.linalg.norm(xy[None] - at[:, None], axis=2).min(1)
    assert distance.max() < 1e-4


def test_orb_is_not_shifted_at_coarse_scales() -> None:
    """Each level's pixels are large, but their mean offset is nil.

    As OpenCV gives them, keypoints of the coarser levels are off by 0.5 to 1.5 px in the mean.
    """
    detector = ClassicalDetector(DetectorSettings(name='orb', max_keypoints=4000))
    offsets, level = [], []
    for seed, sigma_px in enumerate((3.0, 4.0, 5.5, 7.0) * 2):
        at = places((640, 480), 50, seed)
        features = detector.detect(blobs((640, 480), at, sigma_px))
        xy = features.keypoints_xy.numpy()
        distance = np.linalg.norm(xy[None] - at[:, None], axis=2)
        near = distance.min(0) < 6.0
        offsets.append((xy - at[distance.argmin(0)])[near])
        size = (features.sigma_px.numpy()[near] / classical.SIGMA_AT_FINEST_PX) ** 2
        level.append(np.round(np.log(size) / np.log(classical.ORB_SCALE_FACTOR)))
    offset, at_level = np.concatenate(offsets), np.concatenate(level)
    means = np.array([offset[at_level == i].mean(0) for i in range(3, 8)])
    assert np.abs(means).max() < 0.35
    assert np.abs(means.mean(0)).max() < 0.1


@both
def test_descriptors_are_unit_length_and_float32(name: str) -> None:
    features = ClassicalDetector(DetectorSettings(name=name)).detect(noise_image())
    assert len(features) > 100
    assert features.descriptors.shape == (len(features), DESCRIPTOR_SIZE[name])
    torch.testing.assert_close(features.descriptors.norm(dim=1), torch.ones(len(features)))
    for values in (
        features.keypoints_xy,
        features.descriptors,
        features.scores,
        features.sigma_px,
    ):
        assert values.dtype == torch.float32
    assert bool((features.sigma_px >= classical.SIGMA_AT_FINEST_PX).all())


def test_orb_similarity_counts_equal_bits() -> None:
    """The dot product of two descriptors is 1 − 2·Hamming/256."""
    image = noise_image()
    features = ClassicalDetector(DetectorSettings(name='orb')).detect(image)
    bits = features.descriptors > 0
    hamming = (bits[:50, None] != bits[None, :50]).sum(2)
    similarity = features.descriptors[:50] @ features.descriptors[:50].T
    torch.testing.assert_close(similarity, 1.0 - hamming / 128.0)


@both
def test_strongest_keypoints_are_kept_strongest_first(name: str) -> None:
    many = ClassicalDetector(DetectorSettings(name=name, max_keypoints=2000)).detect(noise_image())
    few = ClassicalDetector(DetectorSettings(name=name, max_keypoints=60)).detect(noise_image())
    assert len(few) == 60 < len(many)
    assert bool((few.scores.diff() <= 0).all())


@both
def test_mask_and_border_hold_keypoints_back(name: str) -> None:
    mask = np.zeros((240, 320), bool)
    mask[:, 160:] = True
    detector = ClassicalDetector(DetectorSettings(name=name, border_px=20))
    xy = detector.detect(noise_image(), mask).keypoints_xy
    assert len(xy) > 20
    assert float(xy[:, 0].min()) > 159.0
    assert float(xy[:, 0].max()) < 300.5
    assert float(xy[:, 1].min()) > 19.0
    assert float(xy[:, 1].max()) < 220.5


def test_mask_belongs_to_the_image_as_given() -> None:
    mask = np.zeros((480, 640), bool)
    mask[240:] = True
    features = sift(working_pixels=320 * 240).detect(noise_image((640, 480)), mask)
    assert len(features) > 20
    assert float(features.keypoints_xy[:, 1].min()) > 238.0


@both
@pytest.mark.parametrize('shape', [(240, 320), (5, 5), (1, 1), (240, 320, 3)])
def test_image_without_texture_has_no_features(name: str, shape: tuple[int, ...]) -> None:
    features = ClassicalDetector(DetectorSettings(name=name)).detect(np.full(shape, 90, np.uint8))
    assert len(features) == 0
    assert features.descriptors.shape == (0, DESCRIPTOR_SIZE[name])
    assert features.keypoints_xy.shape == (0, 2)
    assert features.image_size == (shape[1], shape[0])


@both
def test_colour_image_is_taken_as_grey(name: str) -> None:
    image = noise_image()
    detector = ClassicalDetector(DetectorSettings(name=name))
    grey, colour = detector.detect(image), detector.detect(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR))
    assert torch.equal(grey.keypoints_xy, colour.keypoints_xy)


@both
def test_two_runs_are_equal_to_the_last_bit(name: str) -> None:
    image, settings = noise_image(), DetectorSettings(name=name, working_pixels=300 * 225)
    one, other = (ClassicalDetector(settings).detect(image.copy()) for _ in range(2))
    for field in ('keypoints_xy', 'descriptors', 'scores', 'sigma_px'):
        assert torch.equal(getattr(one, field), getattr(other, field)), field


# ---------------------------------------------------------------------------------- matching


def unit_descriptors(count: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, size, generator=generator), dim=1)


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('radius', [3.0, 20.0, 1000.0])
def test_near_pairs_are_all_pairs_nearer_than_the_radius(radius: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    source = torch.rand(70, 2, generator=generator) * torch.tensor([300.0, 200.0]) - 60.0
    target = torch.rand(90, 2, generator=generator) * torch.tensor([200.0, 150.0]) - 20.0
    a, b = near_pairs(source, target, radius)
    dense = (torch.cdist(source, target) < radius).nonzero()
    found = torch.stack([a, b], 1)
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, dense.tolist()))
    assert len(dense) > 0
    assert bool((a.diff() >= 0).all())


def test_near_pairs_of_nothing_are_none() -> None:
    nothing, some = torch.zeros(0, 2), torch.zeros(3, 2)
    far = torch.full((2, 2), 1e4)
    for source, target in ((nothing, some), (some, nothing), (nothing, nothing), (some, far)):
        a, b = near_pairs(source, target, 5.0)
        assert len(a) == len(b) == 0


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('share', [0.03, 0.3, 1.0])
def test_matching_listed_pairs_is_dense_matching_of_a_masked_table(
    share: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    similarity = unit_descriptors(40, 6, seed) @ unit_descriptors(50, 6, seed + 100).T
    allowed = torch.rand(40, 50, generator=generator) < share
    dense, dense_confidence = mutual_nearest(
        similarity.masked_fill(~allowed, -2.0), 0.95, floor=0.3
    )
    source, target = allowed.nonzero().unbind(1)
    listed, confidence = mutual_nearest_of_pairs(
        source, target, similarity[source, target], 0.95, 0.3
    )
    assert len(dense) > 0
    assert torch.equal(listed, dense)
    torch.testing.assert_close(confidence, dense_confidence)
    assert bool(((confidence >= 0) & (confidence <= 1)).all())


def test_mutual_nearest_is_its_definition() -> None:
    """Row by row: best for each other, and the quotient of the distances below the ratio."""
    a, b, ratio = unit_descriptors(30, 4), unit_descriptors(35, 4, 1), 0.9
    indices, confidence = mutual_nearest(a @ b.T, ratio)
    distance = torch.cdist(a.double(), b.double())
    expected = {}
    for i, row in enumerate(distance):
        (best, second), (j, _) = row.topk(2, largest=False)
        if int(distance[:, j].argmin()) == i and best < ratio * second:
            expected[(i, int(j))] = 1.0 - float(best / second) ** 2
    assert len(expected) > 3
    found = dict(zip(map(tuple, indices.tolist()), confidence.tolist(), strict=True))
    assert found.keys() == expected.keys()
    for pair, value in expected.items():
        assert found[pair] == pytest.approx(value, abs=1e-4)


def test_nothing_to_match_is_no_match() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    for indices, confidence in (
        mutual_nearest(torch.zeros(0, 5), 0.8),
        mutual_nearest(torch.zeros(5, 0), 0.8),
        mutual_nearest(torch.full((4, 5), -2.0), 0.8),
        mutual_nearest_of_pairs(none, none, torch.zeros(0), 0.8, 0.5),
    ):
        assert indices.shape == (0, 2)
        assert indices.dtype == torch.int64
        assert confidence.shape == (0,)


@both
def test_shifted_image_matches_itself(name: str) -> None:
    """Matches move by the shift; confidences stay in [0, 1]; one pair has all of them."""
    wide = noise_image((400, 240))
    detector = ClassicalDetector(DetectorSettings(name=name))
    first, second = detector.detect(wide[:, :320]), detector.detect(wide[:, 37:357])
    matches = NearestNeighbourMatcher(MatchingSettings(), name).match([first, second])
    assert len(matches) > 60
    assert bool(((matches.confidence >= 0) & (matches.confidence <= 1)).all())
    indices, confidence = matches.pair(0, 1)
    assert len(indices) == len(confidence) == len(matches)
    moved = first.keypoints_xy[indices[:, 0]] - second.keypoints_xy[indices[:, 1]]
    right = (moved - torch.tensor([37.0, 0.0])).norm(dim=1) < 3.0
    assert float(right.float().mean()) > 0.95
    assert len(indices[:, 0].unique()) == len(indices[:, 1].unique()) == len(indices)


def test_pairs_of_several_views_are_kept_apart() -> None:
    views = torch.tensor([[0, 1], [0, 2], [0, 1], [1, 2]])
    keypoints = torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8]])
    matches = Matches(views, keypoints, torch.tensor([0.1, 0.2, 0.3, 0.4]))
    indices, confidence = matches.pair(0, 1)
    assert indices.tolist() == [[1, 2], [5, 6]]
    assert confidence.tolist() == pytest.approx([0.1, 0.3])
    assert len(matches.pair(1, 0)[0]) == 0


def test_matcher_takes_the_pairs_it_is_given() -> None:
    features = [
        Features(torch.zeros(20, 2), unit_descriptors(20), torch.ones(20), torch.ones(20), (9, 9))
        for _ in range(3)
    ]
    matcher = NearestNeighbourMatcher(MatchingSettings(), 'sift')
    every = matcher.match(features)
    assert set(map(tuple, every.views.tolist())) == {(0, 1), (0, 2), (1, 2)}
    some = matcher.match(features, [(0, 2)])
    assert set(map(tuple, some.views.tolist())) == {(0, 2)}
    assert torch.equal(some.pair(0, 2)[0], torch.arange(20)[:, None].expand(20, 2))
    assert len(matcher.match(features, [])) == 0
    nothing = empty_features((9, 9), 16)
    assert len(matcher.match([features[0], nothing])) == 0


def test_a_lone_candidate_must_be_better_than_unrelated_ones() -> None:
    """Where a search region holds one candidate, the floor stands in for the second best."""
    matcher = NearestNeighbourMatcher(MatchingSettings(), 'sift')
    position = torch.zeros(1, 2)
    descriptor = unit_descriptors(1)
    other = torch.nn.functional.normalize(torch.randn(1, 16, generator=torch.Generator()), dim=1)
    perpendicular = torch.nn.functional.normalize(
        other - (other @ descriptor.T) * descriptor, dim=1
    )
    for similarity, accepted in ((0.99, 1), (UNRELATED_SIMILARITY['sift'], 0), (0.2, 0)):
        target = similarity * descriptor + (1 - similarity**2) ** 0.5 * perpendicular
        near, _ = matcher.match_near((position, descriptor), (position + 1.0, target), 5.0)
        table = descriptor @ target.T
        guided, _ = matcher.match_guided(table, torch.ones(1, 1, dtype=torch.bool))
        assert len(near) == len(guided) == accepted, similarity
