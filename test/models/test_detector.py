# SPDX-License-Identifier: Apache-2.0
"""The learned detector: equal to the released equations, and keypoints where they may be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import max_pool2d

sys.path.insert(0, str(Path(__file__).parent))
import superpoint_reference as reference

from mv_matcher_ros.errors import ModelError
from mv_matcher_ros.models.detector import (
    FARTHEST_PX,
    PATCH_RADIUS,
    SIGMA_RANGE_PX,
    DetectorNetwork,
    box_maximum,
    quadratic_shift,
    sampled,
    suppressed,
)
from mv_matcher_ros.models.profiles import DETECTORS, DetectorProfile
from mv_matcher_ros.models.weights import load_detector, save_detector

BORDER = 4
TINY = DetectorProfile(widths=(4, 4, 8, 8), head_width=16, descriptor_size=8, threshold=0.0)


def network(seed: int = 0) -> DetectorNetwork:
    torch.manual_seed(seed)
    return DetectorNetwork(TINY).eval()


def image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """(1, 1, H, W) noise of several scales."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(1, 1, height, width)
    for cell in (1, 4, 16):
        size = (-(-height // cell), -(-width // cell))
        coarse = torch.rand(1, 1, *size, generator=generator)
        total += torch.nn.functional.interpolate(coarse, (height, width))
    return total / 3.0


# ------------------------------------------------------------------- equality


def test_a_superpoint_checkpoint_finds_and_describes_as_the_released_network(
    tmp_path: Path,
) -> None:
    state = reference.random_state()
    path = tmp_path / 'superpoint.pth'
    torch.save(state, path)
    detector = load_detector(path)
    picture = image(96, 128)
    scores, descriptors = reference.dense(state, picture[0, 0])
    with torch.inference_mode():
        dense = detector.dense(picture)
        found = detector(picture, 200, border_px=4)
    torch.testing.assert_close(dense.scores[0].double(), scores, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(dense.descriptors[0].double(), descriptors, rtol=1e-3, atol=1e-5)
    expected = reference.keypoints(scores, 4, 0.005, 4)
    got = [tuple(map(int, xy)) for xy in found.xy[0, found.valid[0]].tolist()]
    assert len(expected) > 20
    assert got == expected[: len(got)]
    assert len(got) == min(200, len(expected))
    for row, (x, y) in enumerate(got):
        torch.testing.assert_close(
            found.descriptors[0, row].double(),
            reference.sample(descriptors, x, y),
            rtol=1e-4,
            atol=1e-5,
        )


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / 'superpoint.pth'
    state = reference.random_state()
    del state['convDa.bias']
    torch.save(state, path)
    with pytest.raises(ModelError, match=r'superpoint\.pth: .*has no "convDa\.bias"'):
        load_detector(path)
    state = reference.random_state()
    state['conv2a.weight'] = state['conv2a.weight'][:32]
    torch.save(state, path)
    with pytest.raises(ModelError, match=r'encoder\.5\.weight is \(32, 64, 3, 3\)'):
        load_detector(path)


def test_a_saved_detector_comes_back(tmp_path: Path) -> None:
    detector = network()
    save_detector(tmp_path / 'd.safetensors', detector)
    loaded = load_detector(tmp_path / 'd.safetensors')
    assert loaded.profile == TINY
    picture = image(40, 56)
    assert torch.equal(loaded(picture, 30, BORDER).xy, detector(picture, 30, BORDER).xy)


# ---------------------------------------------------------------- suppression


@pytest.mark.parametrize('radius', range(8))
@pytest.mark.parametrize('shape', [(1, 1), (3, 40), (37, 23)])
def test_box_maximum_is_that_of_max_pooling(radius: int, shape: tuple[int, int]) -> None:
    values = torch.randn(2, *shape)
    assert torch.equal(
        box_maximum(values, radius), max_pool2d(values[:, None], 2 * radius + 1, 1, radius)[:, 0]
    )


@pytest.mark.parametrize('rounds', [0, 1, 3])
def test_keypoints_keep_their_distance(rounds: int) -> None:
    scores = torch.rand(1, 60, 80)
    place = (suppressed(scores, 3, rounds)[0] > 0).nonzero()
    apart = (place[:, None] - place).abs().amax(-1) + 100 * torch.eye(
        len(place), dtype=torch.int64
    )
    assert int(apart.min()) > 3


def test_a_round_brings_back_what_a_suppressed_pixel_had_suppressed() -> None:
    scores = torch.zeros(1, 1, 20)
    scores[0, 0, [5, 8, 11]] = torch.tensor([3.0, 2.0, 1.0])
    assert suppressed(scores, 3, 0).nonzero()[:, 2].tolist() == [5]
    assert suppressed(scores, 3, 1).nonzero()[:, 2].tolist() == [5, 11]
    assert suppressed(scores, 3, 1)[0, 0, 11] == 1.0


# ------------------------------------------------------------- sub-pixel, sampling


def test_quadratic_shift_finds_the_top_of_a_gaussian() -> None:
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing='ij')
    at = torch.tensor([9.3, 11.8])
    scores = (-((x - at[0]) ** 2 + (y - at[1]) ** 2) / 3.0).exp()[None]
    shift = quadratic_shift(scores, torch.tensor([[9]]), torch.tensor([[12]]))
    torch.testing.assert_close(shift[0, 0], torch.tensor([0.3, -0.2]), rtol=0, atol=1e-4)


def test_descriptors_are_read_where_the_keypoint_is() -> None:
    """A map whose values are the pixel coordinates of the cells' centres."""
    centre = 8.0 * torch.arange(10.0) + 3.5
    field = torch.stack([centre.expand(10, 10), centre[:, None].expand(10, 10)])
    field = torch.cat([field, torch.full((1, 10, 10), 100.0)])[None]
    xy = torch.tensor([[[3.5, 3.5], [20.25, 61.75], [75.5, 40.0]]])
    found = sampled(field, xy, released=False)
    expected = torch.cat([xy, torch.full((1, 3, 1), 100.0)], dim=-1)
    torch.testing.assert_close(found, torch.nn.functional.normalize(expected, dim=-1))


def test_the_learned_shift_and_error_have_bounds_and_gradients() -> None:
    detector = network()
    assert detector.subpixel is not None
    last = detector.subpixel[-1]  # type: ignore[index]
    with torch.no_grad():
        last.weight.mul_(3.0)
    found = detector(image(64, 80), 40, BORDER)
    shift = (found.xy - found.xy.round()).detach()
    sigma_px = found.sigma_px.detach()
    assert float(shift.abs().max()) > 0.2
    assert float(sigma_px.min()) >= SIGMA_RANGE_PX[0]
    assert float(sigma_px.max()) <= SIGMA_RANGE_PX[1] * 1.001
    assert float(sigma_px.max() / sigma_px.min()) > 1.5
    (found.xy.sum() + found.sigma_px.sum()).backward()
    for parameter in (last.weight, detector.encoder[0].weight):
        assert float(parameter.grad.abs().max()) > 0  # type: ignore[union-attr]


def test_the_learned_head_reads_around_its_pixel() -> None:
    """A head whose shift in x is the value in the middle of what it sees."""
    detector = network()
    channels = detector.profile.widths[0]
    middle = (2 * PATCH_RADIUS + 1) ** 2 // 2 * channels

    class Middle(torch.nn.Module):
        def forward(self, patch: torch.Tensor) -> torch.Tensor:
            here = patch[..., middle]
            return torch.stack([here, torch.zeros_like(here), torch.zeros_like(here)], dim=-1)

    detector.subpixel = Middle()
    fine = torch.linspace(-1, 1, 2 * 24 * 32).view(2, 1, 24, 32).repeat(1, channels, 1, 1)
    x, y = torch.tensor([[0, 13, 31], [1, 2, 3]]), torch.tensor([[0, 10, 23], [23, 0, 4]])
    shift, _ = detector.refined(fine, x, y)
    expected = torch.stack([fine[b, 0, y[b], x[b]] for b in (0, 1)])
    torch.testing.assert_close(shift[..., 0], FARTHEST_PX * expected.tanh())


# ------------------------------------------------------------------- bad input


@pytest.mark.parametrize('size', [(1, 1), (5, 3), (8, 8), (33, 50), (61, 40)])
def test_any_size_of_image(size: tuple[int, int]) -> None:
    height, width = size
    for border in (0, 4):
        found = network()(image(height, width), 50, border)
        xy = found.xy[found.valid].round()
        assert bool(found.descriptors.isfinite().all())
        if height <= 2 * border or width <= 2 * border:
            assert len(xy) == 0
            continue
        assert len(xy) > 0
        slack = FARTHEST_PX
        assert bool((xy >= border - slack).all())
        assert bool((xy <= torch.tensor([width, height]) - 1 - border + slack).all())


def test_masks_and_room() -> None:
    allowed = torch.zeros(1, 64, 80, dtype=torch.bool)
    allowed[:, 20:40, 30:60] = True
    detector = network()
    found = detector(image(64, 80), 500, BORDER, allowed)
    xy = found.xy[found.valid]
    assert 2 < len(xy) < 500
    assert bool(((xy >= torch.tensor([29.0, 19.0])) & (xy <= torch.tensor([60.0, 40.0]))).all())
    few = detector(image(64, 80), 7, BORDER)
    many = detector(image(64, 80), 30, BORDER)
    assert few.xy.shape == (1, 7, 2)
    assert torch.equal(few.scores, many.scores[:, :7])
    assert bool((many.scores.diff(dim=1) <= 0).all())


def test_images_of_a_batch_are_independent() -> None:
    detector = network()
    pictures = [image(48, 64, seed) for seed in range(3)]
    together = detector(torch.cat(pictures), 30, BORDER)
    for row, picture in enumerate(pictures):
        alone = detector(picture, 30, BORDER)
        torch.testing.assert_close(together.xy[row], alone.xy[0])
        torch.testing.assert_close(together.descriptors[row], alone.descriptors[0])


def test_nothing_is_found_where_the_image_is_not_finite() -> None:
    picture = image(64, 256)
    whole = network()(picture, 100, BORDER)
    picture[..., :64] = torch.nan
    found = network()(picture, 100, BORDER)
    xy = found.xy[found.valid]
    assert len(xy) > 10
    assert float(xy[:, 0].detach().min()) >= 63
    far = whole.xy[whole.valid]
    far = far[far[:, 0] > 140]
    assert all(bool((xy == place).all(1).any()) for place in far[:5])
    picture[:] = torch.nan
    assert not bool(network()(picture, 100, BORDER).valid.any())


@pytest.mark.parametrize('name', DETECTORS)
def test_profiles_build(name: str) -> None:
    profile = DETECTORS[name]
    assert DetectorProfile.model_validate_json(profile.model_dump_json()) == profile
    parameters = sum(p.numel() for p in DetectorNetwork(profile).parameters())
    assert {'light': 2e5, 'full': 1.2e6, 'superpoint': 1.2e6}[name] < parameters < 1.6e6
