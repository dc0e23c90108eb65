# SPDX-License-Identifier: Apache-2.0
"""Networks at run time: the interface of the classical ones, precision, limits, bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mv_matcher_ros.config import (
    DetectorSettings,
    MatchingSettings,
    RuntimeSettings,
    read_settings,
)
from mv_matcher_ros.datatypes import Features
from mv_matcher_ros.errors import ModelError, SettingsError
from mv_matcher_ros.models import place, shipped
from mv_matcher_ros.models.choice import Models, NetworkUse
from mv_matcher_ros.models.classical import ClassicalDetector
from mv_matcher_ros.models.detector import DetectorNetwork
from mv_matcher_ros.models.known_poses import KnownPoses
from mv_matcher_ros.models.learned import LearnedDetector
from mv_matcher_ros.models.learned_matcher import LearnedMatcher, strongest
from mv_matcher_ros.models.matcher import MatcherNetwork
from mv_matcher_ros.models.profiles import DetectorProfile, MatcherProfile
from mv_matcher_ros.models.weights import save_detector, save_matcher

SINGLE = RuntimeSettings(device='cpu', precision='fp32')
HALF = RuntimeSettings(device='cpu', precision='bf16')
MATCHER = MatcherProfile(
    descriptor_size=128, width=128, attention_size=32, blocks=2, encoder=(8,), uses_scores=False
)
DETECTOR = DetectorProfile(
    widths=(4, 4, 8, 8), head_width=16, descriptor_size=8, threshold=0.0, nms_rounds=1
)


def picture(width: int = 320, height: int = 240, seed: int = 0) -> np.ndarray:
    import cv2

    rng = np.random.default_rng(seed)
    image = np.zeros((height, width), np.float32)
    for cell in (4, 8, 16, 32):
        coarse = rng.uniform(0, 60, (height // cell + 1, width // cell + 1)).astype(np.float32)
        image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(image, 0, 255).astype(np.uint8)


def shifted_views(count: int = 3) -> list[Features]:
    """SIFT features of one wide image seen through a window that moves."""
    wide = picture(420, 240)
    detector = ClassicalDetector(DetectorSettings(name='sift', max_keypoints=200))
    return [
        detector.detect(np.ascontiguousarray(wide[:, 30 * k : 30 * k + 320])) for k in range(count)
    ]


def matcher(runtime: RuntimeSettings = SINGLE, **settings: float) -> LearnedMatcher:
    """An untrained network: it matches nearest neighbours."""
    torch.manual_seed(0)
    chosen = MatchingSettings(min_confidence=0.0, **settings)  # type: ignore[arg-type]
    return LearnedMatcher(MatcherNetwork(MATCHER), chosen, runtime)


def shift_errors(
    features: list[Features], a: int, b: int, keypoints: torch.Tensor
) -> torch.Tensor:
    moved = features[a].keypoints_xy[keypoints[:, 0]] - features[b].keypoints_xy[keypoints[:, 1]]
    return (moved - torch.tensor([30.0 * (b - a), 0.0])).norm(dim=1)


# -------------------------------------------------------------------- matcher


def test_matches_of_real_features() -> None:
    features = shifted_views()
    matches = matcher().match(features)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        keypoints, confidence = matches.pair(a, b)
        assert len(keypoints) > 60
        assert float((shift_errors(features, a, b, keypoints) < 2.0).float().mean()) > 0.9
        assert confidence.dtype == torch.float32


def test_only_the_strongest_enter_and_keep_their_numbers() -> None:
    features = shifted_views(2)
    turned = features[1].chosen(torch.arange(len(features[1])).flip(0))
    learned = matcher(graph_keypoints=80)
    matches = learned.match([features[0], turned])
    assert learned.left_out(features) == len(features[0]) + len(features[1]) - 160
    assert len(matches) > 20
    ends = [features[0], turned]
    assert float((shift_errors(ends, 0, 1, matches.keypoints) < 2.0).float().mean()) > 0.9


def test_known_poses_are_cut_with_their_keypoints() -> None:
    """The same matches as of features that were cut before."""
    features = [f.chosen(torch.arange(len(f)).flip(0)) for f in shifted_views(2)]
    learned = matcher(graph_keypoints=80)
    kept = learned.kept(features)
    assert not torch.equal(kept[0], torch.arange(80))
    poses = torch.eye(4).repeat(1, 2, 1, 1)
    poses[0, 1, 0, 3], poses[0, 1, 1, 3] = 0.1, 0.03
    sigma = torch.full((1, 2, 2), 2.0 / 300.0)

    def known(of: list[Features]) -> KnownPoses:
        room = max(map(len, of))
        plane = torch.zeros(1, 2, room, 2)
        for row, view in zip(plane[0], of, strict=True):
            row[: len(view)] = view.keypoints_xy / 300.0
        return KnownPoses.of(plane, poses, sigma)

    matches = learned.match(features, known=known(features))
    before = [f.chosen(k) for f, k in zip(features, kept, strict=True)]
    expected = learned.match(before, known=known(before))
    numbers = torch.stack([kept[v][expected.keypoints[:, v]] for v in (0, 1)], dim=1)
    assert len(matches) > 20
    assert torch.equal(matches.keypoints, numbers)
    torch.testing.assert_close(matches.confidence, expected.confidence)
    assert len(learned.match(features)) != len(matches)


@pytest.mark.parametrize('field', ['descriptors', 'keypoints_xy', 'scores'])
@pytest.mark.parametrize('informed', [False, True])
def test_what_is_no_number_takes_no_part(field: str, informed: bool) -> None:
    features = shifted_views(3)
    spoilt = getattr(features[1], field).clone()
    spoilt[5] = torch.nan
    others = [features[0], replace(features[1], **{field: spoilt}), features[2]]
    poses = torch.eye(4).repeat(1, 3, 1, 1)
    poses[0, :, 0, 3] = 0.1 * torch.arange(3)

    def known(of: list[Features]) -> KnownPoses | None:
        plane = [f.keypoints_xy / 300.0 for f in of]
        stacked = torch.nn.utils.rnn.pad_sequence(plane, batch_first=True)[None]
        return KnownPoses.of(stacked, poses, torch.full((1, 3, 3), 0.1)) if informed else None

    got = matcher().match(others, known=known(others))
    assert not bool(((got.views == 1) & (got.keypoints == 5)).any())
    expected = matcher().match(features, known=known(features))
    assert len(got) > 0.95 * len(expected) > 20


def test_what_is_no_number_takes_no_room() -> None:
    features = shifted_views(2)
    scores = features[0].scores.clone()
    weakest = scores.argsort()[:40]
    scores[weakest] = torch.nan
    kept = strongest(replace(features[0], scores=scores), 80)
    assert torch.equal(kept, strongest(features[0], 80))


def test_four_thousand_keypoints_are_cut_and_said() -> None:
    generator = torch.Generator().manual_seed(0)
    many = Features(
        600.0 * torch.rand(4000, 2, generator=generator),
        torch.nn.functional.normalize(torch.randn(4000, 128, generator=generator), dim=-1),
        torch.rand(4000, generator=generator),
        torch.ones(4000),
        (640, 480),
    )
    learned = matcher(graph_keypoints=256)
    matches = learned.match([many, many])
    assert learned.left_out([many, many]) == 2 * (4000 - 256)
    assert len(matches) == 256


@pytest.mark.parametrize('counts', [(), (5,), (0, 0), (0, 7), (1, 1)])
def test_few_views_and_few_keypoints(counts: tuple[int, ...]) -> None:
    features = [shifted_views(1)[0].chosen(torch.arange(count)) for count in counts]
    matches = matcher().match(features)
    assert len(matches) == (1 if counts == (1, 1) else 0)
    assert matches.views.shape[1] == matches.keypoints.shape[1] == 2


@pytest.mark.parametrize('pair', [(0, 5), (0, 0), (1, 0), (-1, 1)])
def test_pairs_that_are_none_are_named(pair: tuple[int, int]) -> None:
    with pytest.raises(ModelError, match=r'of 2 views: 0 <= a < b < 2'):
        matcher().match(shifted_views(2), [pair])


def test_half_precision_on_a_cpu_finds_the_same_matches() -> None:
    features = shifted_views(2)
    sets = []
    for runtime in (SINGLE, HALF):
        learned = matcher(runtime)
        matches = learned.match(features)
        sets.append({tuple(row) for row in matches.keypoints.tolist()})
    assert len(sets[0] & sets[1]) / len(sets[0] | sets[1]) > 0.9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
def test_a_gpu_finds_the_same_matches(precision: str) -> None:
    features = shifted_views(3)
    poses = torch.eye(4).repeat(1, 3, 1, 1)
    poses[0, :, 0, 3] = torch.tensor([0.0, 0.1, 0.2])
    plane = torch.stack([f.keypoints_xy[:150] for f in features])[None] / 300.0
    known = KnownPoses.of(plane, poses, torch.full((1, 3, 3), 2.0 / 300.0))
    some = [f.chosen(torch.arange(150)) for f in features]
    sets = []
    for runtime in (SINGLE, RuntimeSettings(device='cuda', precision=precision)):  # type: ignore[arg-type]
        matches = matcher(runtime).match(some, known=known)
        sets.append({tuple(r) for r in torch.cat([matches.views, matches.keypoints], 1).tolist()})
    assert len(sets[0] & sets[1]) / len(sets[0] | sets[1]) > 0.97


def test_heads_stay_in_single_precision() -> None:
    learned = matcher(HALF)
    kinds = {name: p.dtype for name, p in learned.network.named_parameters()}
    assert kinds['layers.0.query.weight'] == torch.bfloat16
    assert kinds['confidence.together.weight'] == torch.float32
    assert kinds['dustbin'] == torch.float32


@pytest.mark.parametrize('half_is_faster', [False, True])
def test_the_fastest_precision_is_what_was_faster(
    half_is_faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([1.0, 0.5 if half_is_faster else 0.9])  # 0.9: not worth it
    monkeypatch.setattr(place, '_best_time', lambda run: (run(), next(times))[1])
    learned = matcher(RuntimeSettings(device='cpu', precision='fastest'))
    assert learned.place.name == ('cpu bf16' if half_is_faster else 'cpu fp32')
    if not half_is_faster:  # the trial in half precision left no trace
        expected = dict(matcher(SINGLE).network.state_dict())
        for name, tensor in learned.network.state_dict().items():
            assert torch.equal(tensor, expected[name]), name


def test_on_a_cpu_nothing_is_left_to_the_moment() -> None:
    assert matcher(RuntimeSettings(device='cpu')).place.name == 'cpu fp32'


def test_devices_and_precisions_that_are_not_there_are_refused() -> None:
    with pytest.raises(SettingsError, match='fp16 is for CUDA'):
        matcher(RuntimeSettings(device='cpu', precision='fp16'))
    if not torch.cuda.is_available():
        with pytest.raises(SettingsError, match='torch sees no CUDA device'):
            matcher(RuntimeSettings(device='cuda'))


@pytest.mark.parametrize('name', ['auto', 'cuda'])
def test_the_device_has_its_number(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current device is one of a thread; the keyframe thread has another."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 1)
    assert place._device(name) == torch.device('cuda', 1)
    assert place._device('cpu') == torch.device('cpu')


def test_models_moved_to_a_precision_that_is_slow_here(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_matcher(tmp_path / 'm.safetensors', MatcherNetwork(MATCHER))
    models = Models.of(read_settings({
        'detector.name': 'sift', 'matching.weights': str(tmp_path / 'm.safetensors'),
        'matching.min_confidence': 0.0, 'runtime.device': 'cpu',
    }))  # fmt: skip
    assert models.networks['matcher'].place == 'cpu fp32'
    before = models.matcher.match(shifted_views(2))
    moved = models.moved(place.Place(torch.device('cpu'), torch.float16))
    assert moved.networks['matcher'].place == 'cpu fp16'
    assert moved.graph is not None
    assert moved.graph.network.final.weight.dtype == torch.float16
    after = moved.matcher.match(shifted_views(2))
    assert abs(len(after) - len(before)) <= 0.1 * len(before)
    assert after.confidence.dtype == torch.float32


# ------------------------------------------------------------------- detector


def detector(settings: DetectorSettings | None = None) -> LearnedDetector:
    torch.manual_seed(0)
    chosen = DetectorSettings(max_keypoints=100) if settings is None else settings
    network = DetectorNetwork(DETECTOR)
    with torch.no_grad():  # scores that differ by more than rounding
        network.score.weight.mul_(50.0)
    return LearnedDetector(network, chosen, SINGLE)


@pytest.mark.parametrize(('width', 'height'), [(320, 240), (200, 100)])
def test_images_of_any_size(width: int, height: int) -> None:
    features = detector().detect(picture(width, height))
    assert features.image_size == (width, height)
    assert 20 < len(features) <= 100


def test_colour_is_taken_as_grey() -> None:
    grey = picture()
    colour = np.repeat(grey[..., None], 3, axis=2)
    assert torch.equal(
        detector().detect(colour).keypoints_xy, detector().detect(grey).keypoints_xy
    )


def test_keypoints_are_in_pixels_of_the_image_as_given() -> None:
    """At a quarter of the pixels, twice the image has its keypoints at twice the place."""
    import cv2

    small = picture(160, 120)
    large = cv2.resize(small, (320, 240), interpolation=cv2.INTER_NEAREST)
    settings = DetectorSettings(max_keypoints=50, working_pixels=160 * 120)
    one, two = (detector(settings).detect(image) for image in (small, large))
    assert two.image_size == (320, 240)
    torch.testing.assert_close(two.keypoints_xy, 2.0 * one.keypoints_xy + 0.5, rtol=0, atol=0.01)
    torch.testing.assert_close(two.sigma_px, 2.0 * one.sigma_px)


def test_a_mask_of_the_image_as_given_holds_in_the_working_image() -> None:
    mask = np.zeros((240, 320), bool)
    mask[:, 200:] = True
    found = detector(DetectorSettings(max_keypoints=50, working_pixels=160 * 120)).detect(
        picture(), mask
    )
    assert len(found) > 5
    assert float(found.keypoints_xy[:, 0].min()) > 196


@pytest.mark.parametrize('value', [0, 128, 255])
def test_an_image_without_texture(value: int) -> None:
    found = detector().detect(np.full((240, 320), value, np.uint8))
    assert bool(found.keypoints_xy.isfinite().all())
    assert bool(found.descriptors.isfinite().all())


# --------------------------------------------------------------------- choice


def test_models_are_those_that_the_settings_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    matcher_hash = save_matcher(tmp_path / 'm.safetensors', MatcherNetwork(MATCHER))
    detector_hash = save_detector(tmp_path / 'd.safetensors', DetectorNetwork(DETECTOR))
    sift = {'detector.name': 'sift'}
    assert Models.of(read_settings(sift)).graph is None
    assert Models.of(read_settings(sift)).networks == {}
    chosen = {**sift, 'matching.weights': str(tmp_path / 'm.safetensors')}
    models = Models.of(read_settings({**chosen, 'runtime.precision': 'fp32'}))
    assert models.graph is models.matcher
    used = NetworkUse(models.graph.place.name, 'm.safetensors', matcher_hash, matcher_hash)
    assert models.networks == {'matcher': used}
    features = shifted_views(2)
    assert len(models.matcher.match(features)) > 50
    learned = {'detector.name': 'learned', 'detector.weights': str(tmp_path / 'd.safetensors')}
    found = Models.of(read_settings(learned)).detector.detect(picture())
    assert found.descriptors.shape[1] == 8
    half = {**learned, 'runtime.device': 'cpu', 'runtime.precision': 'bf16'}
    used = NetworkUse('cpu bf16', 'd.safetensors', detector_hash, detector_hash)
    assert Models.of(read_settings(half)).networks == {'detector': used}
    with pytest.raises(ModelError, match=r'm\.safetensors: takes .* 128, .* learned gives 8'):
        Models.of(read_settings({**chosen, **learned}))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (
            {'detector.name': 'sift', 'matching.matcher': 'streaming'},
            'matching.weights: light_sift is neither',
        ),
        (
            {'detector.name': 'learned', 'detector.weights': 'mine'},
            r'detector.weights: mine is neither a file nor shipped \(shipped: best\)',
        ),
    ],
)
def test_weights_that_are_not_there(
    settings: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, 'FOLDER', tmp_path)
    save_detector(tmp_path / 'detector_best.safetensors', DetectorNetwork(DETECTOR))
    with pytest.raises(SettingsError, match=message):
        Models.of(read_settings(settings))


def test_shipped_weights_are_found_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, 'FOLDER', tmp_path)
    save_detector(tmp_path / 'detector_light.safetensors', DetectorNetwork(DETECTOR))
    save_detector(tmp_path / 'detector_best.safetensors', DetectorNetwork(DETECTOR))
    for name, file in (('', 'light'), ('light', 'light'), ('best', 'best')):
        settings = read_settings({'detector.name': 'learned', 'detector.weights': name})
        used = Models.of(settings).networks['detector']
        assert used.weights == f'detector_{file}.safetensors'


@pytest.mark.parametrize(
    ('settings', 'file'),
    [
        ({'detector.name': 'sift'}, None),
        ({'detector.name': 'learned'}, 'matcher_light.safetensors'),
        ({'detector.name': 'learned', 'matching.matcher': 'nearest'}, None),
        ({'detector.name': 'learned', 'detector.weights': 'mine.safetensors'}, None),
        ({'detector.name': 'sift', 'matching.weights': 'mine.safetensors'}, 'mine.safetensors'),
        (
            {'detector.weights': 'mine.safetensors', 'matching.matcher': 'multiview'},
            'matcher_light.safetensors',
        ),
    ],
)
def test_a_graph_network_is_taken_where_there_is_one_for_the_detector(
    settings: dict[str, str], file: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, 'FOLDER', tmp_path)
    (tmp_path / 'matcher_light.safetensors').touch()
    found = shipped.matcher_file(read_settings(settings))
    assert (None if found is None else found.name) == file


def test_a_matcher_of_another_detector_is_refused(tmp_path: Path) -> None:
    found = tmp_path / 'd.safetensors'
    sha256 = save_detector(found, DetectorNetwork(DETECTOR))
    settings = {
        'detector.name': 'learned', 'detector.weights': str(found),
        'matching.matcher': 'multiview', 'matching.weights': str(tmp_path / 'm.safetensors'),
    }  # fmt: skip
    network = MatcherNetwork(MatcherProfile(descriptor_size=DETECTOR.descriptor_size))
    for notes, message in (
        ({'detector': 'sift'}, 'was trained on features of sift, detector.name is learned'),
        (
            {'detector': 'learned', 'detector_sha256': 'ab' * 32},
            'a detector with the hash abababab',
        ),
    ):
        save_matcher(tmp_path / 'm.safetensors', network, notes)
        with pytest.raises(ModelError, match=message):
            Models.of(read_settings(settings))
    own = {'detector': 'learned', 'detector_sha256': sha256}
    save_matcher(tmp_path / 'm.safetensors', network, own)
    assert Models.of(read_settings(settings)).graph is not None


def test_features_of_two_detectors_do_not_mix() -> None:
    features = shifted_views(2)
    other = replace(features[1], descriptors=torch.zeros(len(features[1]), 256))
    with pytest.raises(ModelError, match=r'different widths: \[128, 256\]'):
        matcher().match([features[0], other])
