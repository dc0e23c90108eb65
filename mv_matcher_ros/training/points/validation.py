# SPDX-License-Identifier: Apache-2.0
"""How well depths are inferred in views of what the network was not trained on."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from mv_matcher_ros.models.point_inference import PointInferenceNetwork
from mv_matcher_ros.training.points.settings import RIGHT_SHARE, PointValidation
from mv_matcher_ros.training.points.simulated_maps import (
    LEAST_KNOWN,
    PointBatch,
    TrueView,
    thinned,
    wrong_map,
)

_OUTLIERS = 0.05
_BINS = 10


@torch.inference_mode()
def validate_points(
    network: PointInferenceNetwork, views: Iterable[TrueView], settings: PointValidation
) -> dict[str, float]:
    """Over keypoints without a known depth, of all that is no photograph on planes.

    Returns:
        median_error: median share of the depth; within5, within10: percent of keypoints within
            5 % and 10 %; nearest5: the same as within5 by the nearest known depth; photos5: as
            within5, of photographs; sure: percent with a confidence above one half, sure5: of
            these within 5 %; calibration: mean difference of confidence and share that is right
            over tenths of the confidence, percent; honest: root mean square of error over
            deviation of the 95 % with the smallest (1: as said); score: within5.
    """
    device = next(network.parameters()).device
    found: dict[str, list[tuple[Tensor, ...]]] = {'solid': [], 'photos': []}
    for number, view in enumerate(views):
        kept = view.chosen(torch.arange(min(settings.keypoints, len(view.depth))))
        for share in settings.shares:
            batch = _fixed(kept, share, settings.error_m, number)
            if int(batch.given.known.sum()) < LEAST_KNOWN:
                continue
            made = network(batch.given.to(device))
            judged = (batch.depth[0] > 0) & ~batch.given.known[0]
            depth = torch.where(judged, made.depth[0].cpu(), 1.0)
            error = depth.log() - torch.where(judged, batch.depth[0], 1.0).log()
            plain = _nearest(batch).log() - torch.where(judged, batch.depth[0], 1.0).log()
            kind = 'photos' if view.world.startswith('photos_') else 'solid'
            parts = (error, made.sigma[0].cpu(), made.confidence[0].cpu(), plain)
            found[kind].append(tuple(part[judged] for part in parts))
    if not found['solid']:
        found['solid'] = found['photos']
    return _figures(found)


def _fixed(view: TrueView, share: float, error_m: float, number: int) -> PointBatch:
    """The same map each time; every other one in clusters."""
    rng = np.random.default_rng((7, number, round(1000 * share)))
    known = thinned(view, share, number % 2 == 1, rng)
    sigma = error_m / np.maximum(view.depth.double().numpy(), 0.1)
    return wrong_map(view, known, sigma, _OUTLIERS, rng)


def _nearest(batch: PointBatch) -> Tensor:
    """(N,) depth of the nearest keypoint of which it is known."""
    given = batch.given
    apart = torch.cdist(given.plane_xy[0], given.plane_xy[0][given.known[0]])
    return given.depth[0][given.known[0]][apart.argmin(1)]


def _figures(found: dict[str, list[tuple[Tensor, ...]]]) -> dict[str, float]:
    error, sigma, confidence, plain = (
        torch.cat(part) for part in zip(*found['solid'], strict=True)
    )
    off = error.abs()
    right = (off <= RIGHT_SHARE).double()
    sure = confidence > 0.5
    bins = (confidence * _BINS).long().clamp_max(_BINS - 1)
    gap = sum(
        abs(float(confidence[bins == b].double().sum() - right[bins == b].sum()))
        for b in range(_BINS)
    )
    off_by = (off / sigma).square().sort().values[: max(1, int(0.95 * len(off)))]
    photos = torch.cat([part[0] for part in found['photos']] or [error])
    within5 = 100.0 * float(right.mean())
    return {
        'score': within5,
        'median_error': float(off.median()),
        'within5': within5,
        'within10': 100.0 * float((off <= 0.1).double().mean()),
        'nearest5': 100.0 * float((plain.abs() <= RIGHT_SHARE).double().mean()),
        'photos5': 100.0 * float((photos.abs() <= RIGHT_SHARE).double().mean()),
        'sure': 100.0 * float(sure.double().mean()),
        'sure5': 100.0 * float(right[sure].mean()) if bool(sure.any()) else 0.0,
        'calibration': 100.0 * gap / len(off),
        'honest': float(off_by.mean().sqrt()),
    }
