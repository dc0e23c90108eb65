# SPDX-License-Identifier: Apache-2.0
"""The learned detector: SuperPoint's architecture in any width, with keypoints between pixels.

A shared encoder to an eighth of the resolution, a head with 8 x 8 + 1 scores a cell, a head with
descriptors. Own: scores also see half the resolution, where pooling has not yet lost places; and a
third head reads, around the keypoints only, the first layers at full resolution: where exactly
the keypoint lies, and how sure that is.

Source: DeTone et al., SuperPoint, CVPR workshops 2018.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mv_matcher_ros.models.profiles import DetectorProfile

CELL = 8
# Farthest the learned head moves a keypoint from its pixel, along each axis.
FARTHEST_PX = 2.0
# What it sees: (2 r + 1)² pixels around it.
PATCH_RADIUS = 3
# Standard deviations the learned head can say, in pixels.
SIGMA_RANGE_PX = (0.05, 5.0)


@dataclass(frozen=True)
class DenseFeatures:
    """What the network says of B images of H × W, before keypoints are chosen.

    Attributes:
        scores: (B, H, W) float32 probability of a keypoint, without suppression.
        log_probability: (B, 65, h, w) float32 of each pixel of a cell, and of none.
        descriptors: (B, D, h, w) float32 unit length, h = ⌈H/8⌉.
        fine: (B, C, ≥H, ≥W) what the sub-pixel head reads.
    """

    scores: Tensor
    log_probability: Tensor
    descriptors: Tensor
    fine: Tensor


@dataclass(frozen=True)
class Keypoints:
    """Keypoints of B images with room for K each, the strongest first.

    Attributes:
        xy: (B, K, 2) float32 pixels, centres at integers.
        scores: (B, K) float32.
        descriptors: (B, K, D) float32 unit length.
        sigma_px: (B, K) float32 localisation error.
        valid: (B, K) bool, the others are room not used.
    """

    xy: Tensor
    scores: Tensor
    descriptors: Tensor
    sigma_px: Tensor
    valid: Tensor


class DetectorNetwork(nn.Module):
    """The network. `profile` says how it looks; weights come from `models.weights`."""

    def __init__(self, profile: DetectorProfile) -> None:
        super().__init__()
        self.profile = profile
        steps: list[nn.Module] = []
        before = 1
        for level, width in enumerate(profile.widths):
            if level:
                steps.append(nn.MaxPool2d(2))
            steps += [*convolution(before, width), *convolution(width, width)]
            before = width
        self.encoder = nn.Sequential(*steps)
        hidden = profile.head_width
        self.score_hidden = nn.Sequential(*convolution(before, hidden))
        detail = profile.detail_width
        self.detail = nn.Sequential()
        if detail:
            self.detail = nn.Sequential(
                nn.PixelUnshuffle(4), nn.Conv2d(16 * profile.widths[1], detail, 1), nn.ReLU()
            )
        self.score = nn.Conv2d(hidden + detail, CELL * CELL + 1, 1)
        self.descriptor_hidden = nn.Sequential(*convolution(before, hidden))
        self.descriptor = nn.Conv2d(hidden, profile.descriptor_size, 1)
        # Shift in x and y, and logarithm of the error.
        self.subpixel: nn.Module | None = None
        if profile.subpixel == 'learned':
            pixels = (2 * PATCH_RADIUS + 1) ** 2 * profile.widths[0]
            self.subpixel = nn.Sequential(
                nn.LayerNorm(pixels), nn.Linear(pixels, 64), nn.ReLU(), nn.Linear(64, 3)
            )

    def backbone_to(self, dtype: torch.dtype) -> DetectorNetwork:
        """Make the backbone run in `dtype`; what the heads say stays as it is."""
        for part in (self.encoder, self.score_hidden, self.detail, self.descriptor_hidden):
            part.to(dtype)
        return self

    def forward(
        self, images: Tensor, max_keypoints: int, border_px: int, allowed: Tensor | None = None
    ) -> Keypoints:
        """Keypoints of a batch of images.

        Args:
            images: (B, 1, H, W) grey values in [0, 1], any size; where they are not finite nothing
                is found.
            max_keypoints: K, the strongest ones are kept.
            border_px: none nearer to the border.
            allowed: (B, H, W) bool, where keypoints may lie; None: everywhere.
        """
        return self.select(self.dense(images), max_keypoints, border_px, allowed)

    def dense(self, images: Tensor) -> DenseFeatures:
        """Scores and descriptors everywhere; see `forward`."""
        height, width = images.shape[-2:]
        # Whole cells only: the image continues beyond its edge, and what is found there is cut.
        right, below = (-width) % CELL, (-height) % CELL
        padded = functional.pad(images, (0, right, 0, below), mode='replicate')
        device, kind = images.device.type, self.score.weight.dtype
        # Autocast is for learning; a network that runs has the precision of its weights.
        mixed = self.training and torch.is_autocast_enabled(device)
        full, half, _ = (n for n, x in enumerate(self.encoder) if isinstance(x, nn.MaxPool2d))
        dtype = torch.get_autocast_dtype(device) if mixed else None
        with torch.autocast(device, dtype, enabled=mixed):
            fine = self.encoder[:full](padded.to(next(self.encoder.parameters()).dtype))
            middle = self.encoder[full:half](fine)
            seen = self.encoder[half:](middle)
            hidden, described = self.score_hidden(seen), self.descriptor_hidden(seen)
            if self.profile.detail_width:
                hidden = torch.cat([hidden, self.detail(middle)], dim=1)
        with torch.autocast(device, enabled=False):
            logits = self.score(hidden.to(kind))
            descriptors = self.descriptor(described.to(kind))
        log_probability = logits.log_softmax(dim=1)
        scores = functional.pixel_shuffle(log_probability[:, :-1].exp(), CELL)[:, 0]
        scores = torch.nan_to_num(scores[:, :height, :width])
        descriptors = torch.nan_to_num(functional.normalize(descriptors, dim=1))
        return DenseFeatures(scores, log_probability, descriptors, fine)

    def select(
        self,
        dense: DenseFeatures,
        max_keypoints: int,
        border_px: int,
        allowed: Tensor | None = None,
    ) -> Keypoints:
        """The strongest local maxima of the score; see `forward`."""
        profile = self.profile
        height, width = dense.scores.shape[-2:]
        scores = suppressed(dense.scores, profile.nms_radius, profile.nms_rounds)
        if allowed is not None:
            scores = torch.where(allowed, scores, 0.0)
        inner = torch.zeros_like(scores)
        rows, columns = (slice(border_px, max(n - border_px, 0)) for n in (height, width))
        inner[:, rows, columns] = scores[:, rows, columns]
        room = min(max_keypoints, height * width)
        best, place = inner.flatten(1).topk(room, dim=1)
        valid = best > profile.threshold
        x, y = place % width, torch.div(place, width, rounding_mode='floor')
        xy = torch.stack([x, y], dim=-1).float()
        sigma_px = torch.full_like(best, profile.sigma_px)
        if self.subpixel is not None:
            shift, sigma_px = self.refined(dense.fine, x, y)
            xy = xy + shift
        elif profile.subpixel == 'quadratic':
            xy = xy + quadratic_shift(dense.scores, x, y)
        released = profile.sampling == 'released'
        at = torch.stack([x, y], dim=-1).float() if released else xy
        descriptors = sampled(dense.descriptors, at, released)
        return Keypoints(xy, best, descriptors, sigma_px, valid)

    def refined(self, fine: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, 2) shift and (B, K) standard deviation, pixels, of keypoints at pixels x, y."""
        assert self.subpixel is not None
        height, width = fine.shape[-2:]
        steps = torch.arange(-PATCH_RADIUS, PATCH_RADIUS + 1, device=x.device)
        columns = (x[..., None, None] + steps).clamp(0, width - 1)
        rows = (y[..., None, None] + steps[:, None]).clamp(0, height - 1)
        which = torch.arange(len(x), device=x.device)[:, None, None, None]
        patch = fine.permute(0, 2, 3, 1)[which, rows, columns].flatten(2)
        said = self.subpixel(patch.float())
        low, high = (math.log(limit) for limit in SIGMA_RANGE_PX)
        middle, half = 0.5 * (low + high), 0.5 * (high - low)
        sigma_px = (middle + half * said[..., 2].tanh()).exp()
        return FARTHEST_PX * said[..., :2].tanh(), sigma_px


def convolution(before: int, after: int) -> tuple[nn.Conv2d, nn.ReLU]:
    """A 3 × 3 convolution that keeps the size, and ReLU."""
    return nn.Conv2d(before, after, 3, padding=1), nn.ReLU()


def suppressed(scores: Tensor, radius: int, rounds: int) -> Tensor:
    """Scores (B, H, W) of local maxima within ±radius pixels, 0 elsewhere.

    Each round looks again where no maximum suppresses any more.
    """
    peak = scores == box_maximum(scores, radius)
    for _ in range(rounds):
        near = box_maximum(peak.to(scores.dtype), radius) > 0
        rest = torch.where(near, 0.0, scores)
        peak = peak | ((rest == box_maximum(rest, radius)) & ~near)
    return torch.where(peak, scores, 0.0)


def box_maximum(values: Tensor, radius: int) -> Tensor:
    """Largest value (B, H, W) within ±radius pixels in each direction.

    By doubling: the maximum over 2n neighbours is that of two maxima over n. A dozen passes over
    the memory in place of (2 radius + 1)² comparisons a pixel.
    """
    return _line_maximum(_line_maximum(values, radius).mT, radius).mT


def _line_maximum(values: Tensor, radius: int) -> Tensor:
    length, size = 2 * radius + 1, values.shape[-1]
    covered = functional.pad(values, (radius, radius), value=-torch.inf)
    reach = 1
    while reach < length:
        step = min(reach, length - reach)
        covered = torch.maximum(covered[..., :-step], covered[..., step:])
        reach += step
    return covered[..., :size]


def quadratic_shift(scores: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(B, K, 2) of the vertices of parabolas through the logarithms of the scores, ±½ px."""
    height, width = scores.shape[-2:]
    logarithm = scores.clamp_min(1e-12).log().flatten(1)

    def at(dx: int, dy: int) -> Tensor:
        column, row = (x + dx).clamp(0, width - 1), (y + dy).clamp(0, height - 1)
        return logarithm.gather(1, row * width + column)

    here = at(0, 0)
    shifts = []
    for dx, dy in ((1, 0), (0, 1)):
        before, after = at(-dx, -dy), at(dx, dy)
        curvature = (2.0 * here - before - after).clamp_min(1e-6)
        shifts.append((0.5 * (after - before) / curvature).clamp(-0.5, 0.5))
    return torch.stack(shifts, dim=-1)


def sampled(descriptors: Tensor, xy: Tensor, released: bool) -> Tensor:
    """(B, K, D) unit descriptors at pixels xy (B, K, 2), bilinear in the map (B, D, h, w).

    The centre of a cell is at (8 i + 3.5). The released SuperPoint lets the centres of the first
    and last cell fall on the first and, half a pixel short, last pixel instead.
    """
    height, width = descriptors.shape[-2:]
    from_centre = xy - (0.5 * CELL - 0.5)
    ranges = [
        CELL * size - 0.5 * CELL - 0.5 if released else CELL * max(size - 1.0, 1.0)
        for size in (width, height)
    ]
    parts = [
        2.0 * part / length - 1.0
        for part, length in zip(from_centre.unbind(-1), ranges, strict=True)
    ]
    grid = torch.stack(parts, dim=-1)
    found = functional.grid_sample(
        descriptors, grid[:, None], mode='bilinear', padding_mode='border', align_corners=True
    )
    return functional.normalize(found[:, :, 0].transpose(1, 2), dim=-1)
