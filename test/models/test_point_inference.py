# SPDX-License-Identifier: Apache-2.0
"""Point inference: laws that no weights may break, degenerate input, and the shipped weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mv_matcher_ros.config import RuntimeSettings, Settings
from mv_matcher_ros.errors import ModelError, SettingsError
from mv_matcher_ros.models.choice import Models
from mv_matcher_ros.models.learned_points import KeyframeDepths, PointInference
from mv_matcher_ros.models.point_inference import (
    InferredDepths,
    KnownDepths,
    PointInferenceNetwork,
)
from mv_matcher_ros.models.point_surface import fitted_surfaces
from mv_matcher_ros.models.profiles import PointProfile
from mv_matcher_ros.models.shipped import shipped
from mv_matcher_ros.models.view_batch import padded
from mv_matcher_ros.models.weights import load_points, read_notes, save_points

WIDTH = 16
TINY = PointProfile(descriptor_size=WIDTH, width=32, attention_size=16, rounds=2)
# A floor: inverse depth is linear in the image.
FLOOR = torch.tensor([0.35, 0.05, 0.45])


def network(profile: PointProfile = TINY) -> PointInferenceNetwork:
    """With weights that are far from zero everywhere."""
    torch.manual_seed(3)
    made = PointInferenceNetwork(profile).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def floor_depth(plane_xy: torch.Tensor) -> torch.Tensor:
    return 1.0 / (FLOOR[0] + plane_xy @ FLOOR[1:])


def keyframe(count: int = 60, known: int = 25, width: int = WIDTH, seed: int = 0) -> KnownDepths:
    """Keypoints of a plane (B = 1), the first of which are known without error."""
    rng = torch.Generator().manual_seed(seed)
    xy = torch.rand(1, count, 2, generator=rng) - 0.5
    look = torch.randn(1, count, width, generator=rng)
    return KnownDepths(
        xy,
        torch.nn.functional.normalize(look, dim=-1),
        floor_depth(xy),
        torch.full((1, count), 0.01),
        (torch.arange(count) < known)[None],
        torch.ones(1, count, dtype=torch.bool),
    )


def made_of(batch: KnownDepths, model: PointInferenceNetwork | None = None) -> InferredDepths:
    with torch.inference_mode():
        return (model or network())(batch)


def close(a: InferredDepths, b: InferredDepths, scale: float = 1.0) -> None:
    torch.testing.assert_close(scale * a.depth, b.depth, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(a.sigma, b.sigma, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(a.confidence, b.confidence, rtol=1e-4, atol=1e-5)


def test_the_order_of_keypoints_is_nothing() -> None:
    batch = keyframe()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    mixed = KnownDepths(*(getattr(batch, n)[:, order] for n in batch.__dataclass_fields__))
    a, b = made_of(batch), made_of(mixed)
    close(InferredDepths(*(getattr(a, n)[:, order] for n in a.__dataclass_fields__)), b)


@pytest.mark.parametrize('scale', [2.0, 1e-3, 1e4])
def test_the_unit_of_depth_is_nothing(scale: float) -> None:
    batch = keyframe()
    close(made_of(batch), made_of(replace(batch, depth=scale * batch.depth)), scale)


def test_padding_is_nothing_whatever_stands_there() -> None:
    batch, other = keyframe(), keyframe(90, 70, seed=2)
    wide = KnownDepths(*(padded(getattr(batch, n), 90, 1) for n in batch.__dataclass_fields__))
    for part in (wide.plane_xy, wide.descriptors, wide.depth, wide.sigma):
        part[:, 60:] = torch.nan
    wide.known[:, 60:] = True
    both = KnownDepths(*(
        torch.cat([getattr(wide, n), getattr(other, n)]) for n in batch.__dataclass_fields__
    ))  # fmt: skip
    alone, among = made_of(batch), made_of(both)
    close(alone, InferredDepths(*(getattr(among, n)[:1, :60] for n in among.__dataclass_fields__)))
    assert bool((among.depth[0, 60:] == 0).all())
    assert bool((among.confidence[0, 60:] == 0).all())


@pytest.mark.parametrize('known', [0, 1, 2, 3])
def test_few_known_points_give_no_confidence(known: int) -> None:
    batch = keyframe(20, known)
    made = made_of(batch)
    assert made.depth.isfinite().all()
    assert bool((made.depth > 0).all()) == (known > 0)
    assert bool((made.confidence > 0).any()) == (known >= 3)
    assert bool(made.sigma.isinf().all()) == (known == 0)
    if known == 1:  # all that is known
        middle = PointInferenceNetwork(TINY).eval()
        torch.testing.assert_close(
            made_of(batch, middle).depth, batch.depth[:, :1].expand(1, 20), rtol=1e-4, atol=1e-6
        )


def test_depths_that_are_none_are_not_known() -> None:
    batch = keyframe()
    spoiled = replace(batch, depth=batch.depth.clone(), sigma=batch.sigma.clone())
    spoiled.depth[0, :3] = torch.tensor([torch.nan, -1.0, 0.0])
    spoiled.sigma[0, 3] = torch.inf
    fewer = replace(batch, known=batch.known & (torch.arange(60) >= 4))
    close(made_of(spoiled), made_of(fewer))


def test_empty_keyframes_are_allowed() -> None:
    made = made_of(keyframe(0, 0))
    assert made.depth.shape == (1, 0)


def test_inverse_depth_of_a_plane_is_read_exactly() -> None:
    batch = keyframe()
    place = batch.plane_xy[:, :25].double()
    log_depth = floor_depth(place.float()).log().double()
    rng = torch.Generator().manual_seed(0)
    weight = torch.rand(1, 3, 60, 25, generator=rng, dtype=torch.float64).softmax(-1)
    found = fitted_surfaces(
        weight, place, log_depth, torch.full_like(log_depth, 0.01), batch.plane_xy.double(),
        torch.full((3,), 1e-9, dtype=torch.float64),
    )  # fmt: skip
    wanted = floor_depth(batch.plane_xy).log().double()
    torch.testing.assert_close(
        found.log_depth, wanted[..., None].expand(1, 60, 3), rtol=0, atol=1e-5
    )


def test_a_network_that_has_learned_nothing_interpolates() -> None:
    batch = keyframe(200, 100)
    made = made_of(batch, PointInferenceNetwork(TINY).eval())
    off = (made.depth / batch.depth).log().abs()
    assert float(off[~batch.known].median()) < 0.06


def test_half_precision_of_the_body_is_nearly_the_same() -> None:
    batch = keyframe()
    whole = made_of(batch)
    half = made_of(batch.to('cpu', torch.bfloat16), network().backbone_to(torch.bfloat16))
    assert half.depth.dtype == torch.float32
    assert float((half.depth / whole.depth).log().abs().max()) < 0.1


def test_gradients_are_finite_also_where_there_is_one_known_point() -> None:
    model = network().train()
    for known in (1, 4, 60):
        made = model(keyframe(60, known))
        model.zero_grad()
        (made.depth.log().sum() + made.sigma.log().sum() + made.logit.sum()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_descriptors_of_another_width_are_refused() -> None:
    with pytest.raises(ModelError, match=r'width 16, these have 8'):
        network()(keyframe(width=8))


def test_weights_come_back_and_other_kinds_are_refused(tmp_path: Path) -> None:
    model = network()
    save_points(tmp_path / 'points.safetensors', model, {'detector': 'sift'})
    again = load_points(tmp_path / 'points.safetensors')
    close(made_of(keyframe(), model), made_of(keyframe(), again))
    with pytest.raises(ModelError, match='detector'):
        load_points(shipped('detector')['light'])


def test_weights_for_another_detector_are_refused(tmp_path: Path) -> None:
    path = tmp_path / 'points.safetensors'
    save_points(path, network(), {'detector': 'learned', 'detector_sha256': '0' * 64})
    settings = Settings.model_validate({'mapping': {'points': {'weights': str(path)}}})
    with pytest.raises(ModelError, match='trained on features of a detector with the hash 0000'):
        Models.of(settings).point_inference(settings)
    sift = Settings.model_validate({
        'detector': {'name': 'sift'}, 'mapping': {'points': {'weights': str(path)}},
    })  # fmt: skip
    with pytest.raises(ModelError, match=r'features of learned, detector\.name is sift'):
        Models.of(sift).point_inference(sift)
    unknown = Settings.model_validate({'mapping': {'points': {'weights': 'none_such'}}})
    with pytest.raises(SettingsError, match=r'mapping\.points\.weights'):
        Models.of(unknown).point_inference(unknown)


def test_without_weights_for_the_detector_nothing_is_inferred() -> None:
    sift = Settings.model_validate({'detector': {'name': 'sift'}})
    assert Models.of(sift).point_inference(sift) is None
    off = Settings.model_validate({'mapping': {'points': {'infer_points': False}}})
    assert Models.of(off).point_inference(off) is None


def test_keyframes_of_different_sizes_together_are_as_alone() -> None:
    inference = PointInference(network(), RuntimeSettings(device='cpu', precision='fp32'))
    one, other = (
        KeyframeDepths(
            batch.plane_xy[0], batch.valid[0], batch.descriptors[0],
            batch.depth[0].where(batch.known[0], torch.nan), batch.sigma[0],
        )
        for batch in (keyframe(), keyframe(35, 20, seed=4))
    )  # fmt: skip
    together = inference.infer([one, other])
    assert [len(made.depth) for made in together] == [60, 35]
    for made, alone in zip(together, (one, other), strict=True):
        close(made, inference.infer([alone])[0])
    assert inference.infer([]) == []


# ------------------------------------------------------------- the shipped weights


@pytest.fixture(scope='module')
def light() -> PointInferenceNetwork:
    return load_points(shipped('points')['light'])


def test_shipped_weights_are_small_and_for_the_shipped_detector() -> None:
    path = shipped('points')['light']
    assert path.stat().st_size <= 2_000_000
    settings = Settings()
    inference = Models.of(settings).point_inference(settings)
    assert inference is not None
    notes = read_notes(path)
    assert 'bookstore' not in notes['data']  # held out
    assert len(notes['detector_sha256']) == 64


@pytest.mark.parametrize('known', [30, 100])
def test_shipped_weights_complete_a_plane(light: PointInferenceNetwork, known: int) -> None:
    off, said = [], []
    for seed in range(5):
        batch = keyframe(300, known, 128, seed)
        made = made_of(batch, light)
        off.append((made.depth / batch.depth).log().abs()[~batch.known])
        said.append(made.confidence[~batch.known])
    assert float(torch.cat(off).median()) < 0.02
    assert float((torch.cat(off) < 0.05).float().mean()) > 0.9
    assert float(torch.cat(said).median()) > 0.6


def test_shipped_weights_smooth_noise(light: PointInferenceNetwork) -> None:
    batch = keyframe(200, 100, 128)
    noise = 0.08 * torch.randn(1, 200, generator=torch.Generator().manual_seed(0))
    noisy = replace(batch, depth=batch.depth * noise.exp(), sigma=torch.full((1, 200), 0.08))
    made = made_of(noisy, light)
    off = (made.depth / batch.depth).log().abs()[batch.known]
    assert float(off.median()) < 0.7 * float(noise.abs()[batch.known].median())


def test_shipped_confidence_tells_good_from_bad(light: PointInferenceNetwork) -> None:
    """Two slanted surfaces; on one of them everything known is wrong at random."""
    right, sure = [], []
    for seed in range(6):
        batch = keyframe(300, 100, 128, seed)
        rng = torch.Generator().manual_seed(seed)
        chaos = (batch.plane_xy[..., 0] > 0.0) * 0.5 * torch.randn(1, 300, generator=rng)
        made = made_of(replace(batch, depth=batch.depth * chaos.exp()), light)
        judged = ~batch.known
        right.append(((made.depth / batch.depth).log().abs() < 0.05)[judged].float())
        sure.append(made.confidence[judged])
    good, believed = torch.cat(right), torch.cat(sure)
    assert float(believed[good > 0].mean()) > float(believed[good == 0].mean()) + 0.2
