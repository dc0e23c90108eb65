# SPDX-License-Identifier: Apache-2.0
"""What the detector is trained for: the teacher's keypoints, descriptors that find each other,
places between pixels that agree in two views, and honest errors of them.

Sources: DeTone et al., SuperPoint, equation 2 (scores as a classification of cells); Hinton et
al., Distilling the knowledge in a neural network, 2015 (soft targets); Sun et al., LoFTR, equation
2 (dual softmax); Kendall and Gal, What uncertainties do we need, equation 5 (learned errors).
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from mv_matcher_ros.config import Section
from mv_matcher_ros.models.detector import DenseFeatures, DetectorNetwork, sampled
from mv_matcher_ros.training.detector.batches import DetectorBatch

# The detector is taken to find a keypoint this near to the teacher's, along each axis.
_NEAR_PX = 2


class DetectorLossSettings(Section):
    """Weights of the parts of the loss; what has weight 0 is not computed."""

    presence: float = Field(2.0, ge=0.0, description='How much of a keypoint is in a cell.')
    position: float = Field(1.0, ge=0.0, description='At which of its pixels it is.')
    imitation: float = Field(0.5, ge=0.0, description="The teacher's descriptors.")
    contrast: float = Field(1.0, ge=0.0, description='Descriptors find each other.')
    place: float = Field(0.1, ge=0.0, description='Places between pixels agree, errors honest.')
    temperature: float = Field(0.06, gt=0.0, description='Of similarities in the contrast.')
    apart_px: float = Field(
        4.0, ge=0.0, description='Points nearer than this are no wrong partners of each other.'
    )
    anchor: float = Field(
        0.1, ge=0.0, description="Weight in `place` of the distance to the teacher's place."
    )


def detector_losses(
    network: DetectorNetwork, batch: DetectorBatch, settings: DetectorLossSettings
) -> dict[str, Tensor]:
    """Named () losses of a batch; `loss` is their weighted sum."""
    dense = network.dense(batch.images)
    presence, position = score_loss(dense.log_probability, batch.target, batch.known)
    parts = {'presence': presence, 'position': position}
    here = sampled(dense.descriptors, batch.xy, False)
    if settings.imitation:
        parts['imitation'] = imitation_loss(here, batch.taught, batch.valid)
    if settings.contrast:
        there = _swapped(sampled(dense.descriptors, _swapped(batch.there), False))
        similarity = here @ there.mT / settings.temperature
        parts['contrast'] = contrast_loss(similarity, batch.there, batch.seen, settings.apart_px)
    if settings.place and network.subpixel is not None:
        parts['place'], parts['place_px'] = place_loss(network, dense, batch, settings.anchor)
    weights = settings.model_dump()
    total = sum(weights[name] * value for name, value in parts.items() if name in weights)
    assert isinstance(total, Tensor)
    return {'loss': total, **parts}


def score_loss(log_probability: Tensor, target: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Divergence of what is said of cells, (V, 65, h, w), from their target, in two parts.

    The Kullback-Leibler divergence of a cell is that of "a keypoint or none", and, as much as
    there is a keypoint, that of where it is. A tenth of a cell is a keypoint: one mean over both
    would learn where keypoints are ten times slower than how many there are.

    Returns:
        () mean over the known (V, h, w) cells of the first part, () mean over the keypoints of
        the second; 0 when they agree.
    """
    there, none = target[:, :-1], target[:, -1]
    mass = there.sum(1)
    said = log_probability[:, :-1].logsumexp(1)
    presence = (
        torch.special.xlogy(mass, mass)
        + torch.special.xlogy(none, none)
        - mass * said
        - none * log_probability[:, -1]
    )
    where = there / mass.clamp_min(1e-6)[:, None]
    place = torch.special.xlogy(where, where).sum(1) - (
        where * (log_probability[:, :-1] - said[:, None])
    ).sum(1)
    weight = torch.where(known, mass, 0.0)
    return _mean(presence, known), (weight * place).sum() / weight.sum().clamp_min(1e-6)


def imitation_loss(descriptors: Tensor, taught: Tensor, valid: Tensor) -> Tensor:
    """1 − cosine to the teacher's descriptors (V, N, D), mean over the valid keypoints.

    Of another width than the teacher's, descriptors are to be as similar to each other as the
    teacher's are: mean squared difference of the similarities of two keypoints of a view.
    """
    if descriptors.shape[-1] == taught.shape[-1]:
        return _mean(1.0 - (descriptors * taught).sum(-1), valid)
    difference = descriptors @ descriptors.mT - taught @ taught.mT
    return _mean(difference.square(), valid[:, :, None] & valid[:, None])


def contrast_loss(similarity: Tensor, there: Tensor, seen: Tensor, apart_px: float) -> Tensor:
    """Negative log-likelihood of the true partners under a softmax both ways.

    Args:
        similarity: (V, N, N) of keypoint i here and the place of keypoint j in the partner view,
            divided by the temperature.
        there: (V, N, 2) those places.
        seen: (V, N) bool, keypoints that have one.
        apart_px: places nearer than this to the true one are not held against it.
    """
    count = similarity.shape[-1]
    own = torch.eye(count, dtype=torch.bool, device=similarity.device)
    close = (torch.cdist(there, there) < apart_px) & ~own
    hidden = close | ~(seen[:, :, None] & seen[:, None]) & ~own
    logits = similarity.masked_fill(hidden, -1e4)
    right = torch.diagonal(logits, dim1=-2, dim2=-1)
    loss = 0.5 * (logits.logsumexp(-1) + logits.logsumexp(-2)) - right
    return _mean(loss, seen)


def place_loss(
    network: DetectorNetwork, dense: DenseFeatures, batch: DetectorBatch, anchor: float
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the distance between refined places in two views, and its mean.

    Both places move: r here, r′ there, e = |there + J (r − xy) − r′|. With the error of either
    said, σ² = σ′² + |det J| σ², the density is proportional to exp(−√3 e / σ) / σ²: σ is then the
    standard deviation along each axis, and a wrong depth counts linearly. `anchor` holds r near
    the teacher's place, since two views agree on any point that is fixed to the surface.

    Returns:
        () loss and () mean distance, pixels.
    """
    here, sigma = _refined(network, dense.scores, dense.fine, batch.xy)
    there, sigma_there = (
        _swapped(part)
        for part in _refined(network, dense.scores, dense.fine, _swapped(batch.there))
    )
    moved = (batch.jacobian @ (here - batch.xy)[..., None])[..., 0]
    error = (batch.there + moved - there).square().sum(-1).add(1e-6).sqrt()
    area = torch.linalg.det(batch.jacobian).abs().clamp_min(1e-3)
    both = (sigma_there.square() + area * sigma.square()).sqrt()
    loss = math.sqrt(3.0) * error / both + 2.0 * both.log()
    near = functional.smooth_l1_loss(here, batch.xy, reduction='none').sum(-1)
    return (
        _mean(loss, batch.seen) + anchor * _mean(near, batch.valid),
        _mean(error.detach(), batch.seen),
    )


def _refined(
    network: DetectorNetwork, scores: Tensor, fine: Tensor, xy: Tensor
) -> tuple[Tensor, Tensor]:
    """(V, N, 2) refined places and (V, N) errors, from the best pixel around each place.

    That pixel is where the detector would have found the keypoint.
    """
    height, width = scores.shape[-2:]
    steps = torch.arange(-_NEAR_PX, _NEAR_PX + 1, device=xy.device)
    side = len(steps)
    x = (xy[..., 0].round().long()[..., None] + steps.repeat(side)).clamp(0, width - 1)
    y = (xy[..., 1].round().long()[..., None] + steps.repeat_interleave(side)).clamp(0, height - 1)
    around = scores.detach().flatten(1).gather(1, (y * width + x).flatten(1)).view(x.shape)
    best = around.argmax(-1, keepdim=True)
    x, y = (part.gather(-1, best)[..., 0] for part in (x, y))
    shift, sigma = network.refined(fine, x, y)
    return torch.stack([x, y], dim=-1) + shift, sigma


def _swapped(values: Tensor) -> Tensor:
    """(V, …) of each view's partner."""
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen values; the others may be anything."""
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp_min(1)
