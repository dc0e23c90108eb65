# SPDX-License-Identifier: Apache-2.0
"""Patches of one image found in another to a small part of a pixel, on slanted surfaces too.

Inverse compositional alignment (Baker and Matthews, Lucas-Kanade 20 years on, IJCV 2004) with four
unknowns a patch: its way along the epipolar line, its way across (what the calibration has left),
and how the way along grows over the patch, as it does where the surface is slanted (Bleyer,
Rhemann and Rother, PatchMatch stereo, BMVC 2011; on a road seen from a car it grows by a third of
a pixel per pixel). Gain and brightness may differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

# Patches reach so far from their centre; their pixels count the less the farther out they are.
HALF_PX = 7
WEIGHT_SIGMA_PX = 5.0
ITERATIONS = 6
# Longest step of an iteration, in pixels and in pixels per pixel.
LONGEST_STEP = (1.0, 1.0, 0.3, 0.3)
# How much the way along grows over a patch before anything is seen of it, pixels per pixel.
SLANT_SIGMA = 0.15
# A search has ended when its last step is shorter, pixels. What takes longer is seldom right.
CONVERGED_PX = 0.03
# Least correlation of both patches.
LEAST_CORRELATION = 0.8
# Grey levels by which patches differ at least, whatever is left of their difference.
LEAST_DIFFERENCE = 2.0
# How much brighter or darker the other image may be.
GAIN = (0.3, 3.0)
# Errors are this many times those that independent pixels would make, and no smaller than what a
# good calibration has left; fitted to rendered rooms, corridors and streets and to TartanAir.
NOISE_FACTOR = 1.5
LEAST_SIGMA_PX = 0.1


@dataclass(frozen=True)
class PatchWarp:
    """How small patches of one image should look in another.

    Attributes:
        xy: (N, 2) float32 centres in the first image, pixels.
        other_xy: (N, 2) where they should be in the other.
        jacobian: (N, 2, 2) of places in the other by places in the first, at one depth.
        along: (N, 2) the unit vector in the first image that `jacobian` turns into the epipolar
            line.
    """

    xy: Tensor
    other_xy: Tensor
    jacobian: Tensor
    along: Tensor


@dataclass(frozen=True)
class Aligned:
    """Where patches are.

    Attributes:
        other_xy: (N, 2) float32 centres in the other image, pixels.
        sigma_px: (N,) standard deviation along the epipolar line, pixels of the other image.
        slant: (N,) how much the way along grows over the patch, pixels of the other image for one
            of the first.
        good: (N,) bool, whether it was found; if not, the rest means nothing.
    """

    other_xy: Tensor
    sigma_px: Tensor
    slant: Tensor
    good: Tensor


def align_patches(
    first: NDArray[np.uint8], other: NDArray[np.uint8], warp: PatchWarp, reach_px: float
) -> Aligned:
    """Find patches of a grey image (H, W) in another one.

    Args:
        first, other: the images.
        warp: N patches.
        reach_px: nothing is believed that is farther from where it should be, in pixels of the
            other image; what is so far off was something else.
    """
    patch, weight = _grid()
    across = torch.stack([-warp.along[:, 1], warp.along[:, 0]], 1)
    axes = torch.stack([warp.along, across], 2)
    template = _Template.cut(_levels(first), torch.cat([axes, warp.xy[:, :, None]], 2))
    levels, there = _levels(other), warp.jacobian @ axes
    # (N, 4): along, across, and how the first grows over the patch in both directions.
    state = torch.zeros(len(warp.xy), 4)
    for _ in range(ITERATIONS):
        values = _sample(levels, _affine(warp, there, state), patch)
        step, variance, correlation = template.step(values, state, weight)
        state = _composed(state, step)
    good = (step[:, 0].abs() < CONVERGED_PX) & (correlation > LEAST_CORRELATION)
    way = (there @ state[:, :2, None])[..., 0]
    good &= (way.abs() < reach_px).all(1)
    good &= template.whole & _inside(levels, _affine(warp, there, state))
    per_px = there[:, :, 0].norm(dim=1)
    return Aligned(
        warp.other_xy + way,
        (NOISE_FACTOR * per_px * variance.sqrt()).clamp_min(LEAST_SIGMA_PX),
        per_px * state[:, 2:].norm(dim=1),
        good,
    )


@dataclass(frozen=True)
class _Template:
    """Patches of the first image, and what is asked of those in the other.

    Attributes:
        asked: (N, 6, P) times the values in the other image: what they pull at (4), how they vary
            with the template, their mean.
        hessian: (N, 4, 4) of the pull.
        energy: (N,) variance of the patch, grey levels squared.
        whole: (N,) bool, whether the image holds all of it.
    """

    asked: Tensor
    hessian: Tensor
    energy: Tensor
    whole: Tensor

    @classmethod
    def cut(cls, levels: Tensor, affine: Tensor) -> _Template:
        """Out of an image, at (N, 2, 3) maps of the patch."""
        patch, weight = _grid()
        side = 2 * HALF_PX + 3
        rimmed = _sample(levels, affine, _grid(1)[0]).view(-1, side, side)
        values = rimmed[:, 1:-1, 1:-1].flatten(1)
        values = values - (values @ weight)[:, None]
        energy = values.square() @ weight
        along = (rimmed[:, 1:-1, 2:] - rimmed[:, 1:-1, :-2]).flatten(1) / 2.0
        across = (rimmed[:, 2:, 1:-1] - rimmed[:, :-2, 1:-1]).flatten(1) / 2.0
        steepest = torch.stack([along, across, along * patch[:, 0], along * patch[:, 1]], 1)
        # What brightness and gain could do as well says nothing.
        steepest = steepest - (steepest @ weight)[..., None]
        gain = (steepest * weight) @ values[..., None] / energy.clamp_min(1.0)[:, None, None]
        steepest = steepest - gain * values[:, None]
        weighted = steepest * weight
        mean = weight.expand(len(values), 1, -1)
        return cls(
            torch.cat([weighted, (values * weight)[:, None], mean], 1),
            weighted @ steepest.transpose(1, 2),
            energy,
            _inside(levels, affine),
        )

    def step(self, values: Tensor, state: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What to take from the template to be like values (N, P) of the other image.

        Returns:
            (N, 4) step, (N,) variance of its first part if pixels err independently, and (N,)
            correlation.
        """
        answer = (self.asked @ values[..., None])[..., 0]
        common, mean = answer[:, 4], answer[:, 5]
        own = (values.square() @ weight - mean.square()).clamp_min(1.0)
        gain = (common / own).clamp(*GAIN)
        left = gain.square() * own - 2.0 * gain * common + self.energy
        left = left.clamp_min(LEAST_DIFFERENCE**2) * float(weight.square().sum())
        prior = left[:, None] * torch.tensor([0.0, 0.0, 1.0, 1.0]) / SLANT_SIGMA**2
        inverse = torch.linalg.inv(self.hessian + torch.diag_embed(prior + 1e-3))
        pull = gain[:, None] * answer[:, :4] + prior * state
        step = (inverse @ pull[..., None])[..., 0]
        longest = step.new_tensor(LONGEST_STEP)
        correlation = common / (self.energy.clamp_min(1.0) * own).sqrt()
        return step.maximum(-longest).minimum(longest), left * inverse[:, 0, 0], correlation


def _grid(rim: int = 0) -> tuple[Tensor, Tensor]:
    """(P, 2) places in a patch, row by row, and (P,) what they count, together one."""
    line = torch.arange(-HALF_PX - rim, HALF_PX + rim + 1).float()
    y, x = torch.meshgrid(line, line, indexing='ij')
    patch = torch.stack([x.flatten(), y.flatten()], 1)
    weight = torch.exp(-0.5 * patch.square().sum(1) / WEIGHT_SIGMA_PX**2)
    return patch, weight / weight.sum()


def _levels(image: NDArray[np.uint8]) -> Tensor:
    """(1, 1, H, W) float32 grey levels."""
    return torch.from_numpy(image.astype(np.float32))[None, None]


def _size(levels: Tensor) -> Tensor:
    return levels.new_tensor([levels.shape[3], levels.shape[2]])


def _sample(levels: Tensor, affine: Tensor, patch: Tensor) -> Tensor:
    """Grey levels (N, P) at the pixels (P, 2) of patches, where (N, 2, 3) maps put them."""
    per_px = 2.0 / _size(levels)
    centre = (affine[:, :, 2] + 0.5) * per_px - 1.0
    scaled = torch.cat([affine[:, :, :2] * per_px[:, None], centre[:, :, None]], 2)
    places = functional.pad(patch, (0, 1), value=1.0) @ scaled.transpose(1, 2)
    found = functional.grid_sample(
        levels, places[None], padding_mode='border', align_corners=False
    )
    return found[0, 0]


def _inside(levels: Tensor, affine: Tensor) -> Tensor:
    """(N,) whether the image holds all of the patches."""
    corner = affine.new_tensor([[x, y] for x in (-HALF_PX, HALF_PX) for y in (-HALF_PX, HALF_PX)])
    places = affine[:, None, :, 2] + corner @ affine[:, :, :2].transpose(1, 2)
    return ((places >= 0) & (places <= _size(levels) - 1)).all(2).all(1)


def _affine(warp: PatchWarp, there: Tensor, state: Tensor) -> Tensor:
    """(N, 2, 3) maps of the patch into the other image."""
    along, across, by_x, by_y = state.unbind(1)
    zero, one = torch.zeros_like(along), torch.ones_like(along)
    own = torch.stack([1.0 + by_x, by_y, along, zero, one, across], 1).view(-1, 2, 3)
    mapped = there @ own
    return torch.cat([mapped[:, :, :2], mapped[:, :, 2:] + warp.other_xy[:, :, None]], 2)


def _composed(state: Tensor, step: Tensor) -> Tensor:
    """A map of the patch after the inverse of a step of the template."""
    along, across, by_x, by_y = state.unbind(1)
    back_x = 1.0 / (1.0 + step[:, 2])
    back_y = -step[:, 3] * back_x
    back = -(step[:, 0] - step[:, 3] * step[:, 1]) * back_x
    return torch.stack(
        [
            along + (1.0 + by_x) * back - by_y * step[:, 1],
            across - step[:, 1],
            (1.0 + by_x) * back_x - 1.0,
            (1.0 + by_x) * back_y + by_y,
        ],
        1,
    )
