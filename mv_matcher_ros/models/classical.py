# SPDX-License-Identifier: Apache-2.0
"""Classical features and matching: RootSIFT or ORB, mutual nearest neighbours, a ratio test.

The baseline a learned matcher must beat, and what runs without weights. RootSIFT: Arandjelovic and
Zisserman, Three things everyone should know to improve object retrieval, CVPR 2012. Ratio test:
Lowe, IJCV 2004, §7.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from mv_matcher_ros.config import DetectorSettings, MatchingSettings
from mv_matcher_ros.datatypes import Features, Matches

# OpenCV's SIFT doubles the image by a resize that aligns borders, then halves the coordinates:
# without its precise mode every keypoint lies this far to the right and down of where it should.
SIFT_DOUBLING_SHIFT_PX = 0.25
# Localisation error of a keypoint at the finest scale; it grows with the scale it was found at.
SIGMA_AT_FINEST_PX = 0.5
ORB_SCALE_FACTOR = 1.2
ORB_PATCH_PX = 31.0  # size of a keypoint at the finest scale
# OpenCV's pyramids end in an error where a level has no pixel; so small an image has no features.
SMALLEST_SIDE_PX = 8


class Detector(Protocol):
    """Finds and describes keypoints in one image."""

    @property
    def descriptor_size(self) -> int:
        """Width of the descriptors."""
        ...

    def detect(self, image: NDArray[np.uint8], mask: NDArray[np.bool_] | None = None) -> Features:
        """Features of a (H, W) grey or (H, W, 3) BGR image; none where `mask` is False."""
        ...


class Matcher(Protocol):
    """Matches V views jointly."""

    def match(
        self, features: Sequence[Features], pairs: Sequence[tuple[int, int]] | None = None
    ) -> Matches:
        """Matches of the named pairs of views, all pairs when None."""
        ...


class ClassicalDetector:
    """SIFT or ORB behind the interface of the learned detectors."""

    def __init__(self, settings: DetectorSettings) -> None:
        self._settings = settings
        self._shift_px = 0.0
        if settings.name == 'sift':
            self._backend, self._shift_px = _sift(settings)
        else:
            self._backend = cv2.ORB.create(
                nfeatures=settings.max_keypoints, scaleFactor=ORB_SCALE_FACTOR, fastThreshold=10
            )

    @property
    def descriptor_size(self) -> int:
        """Width of the descriptors."""
        return 256 if self._settings.name == 'orb' else 128

    def detect(self, image: NDArray[np.uint8], mask: NDArray[np.bool_] | None = None) -> Features:
        """Features of a (H, W) grey or (H, W, 3) BGR image; none where `mask` is False."""
        height, width = image.shape[:2]
        grey = working_image(image, self._settings.working_pixels)
        scale = grey.shape[1] / width
        if min(grey.shape) < SMALLEST_SIDE_PX:
            return empty_features((width, height), self.descriptor_size)
        allowed = self._allowed(mask, grey.shape[:2])
        keypoints, descriptors = self._backend.detectAndCompute(grey, allowed)
        if descriptors is None or len(keypoints) == 0:
            return empty_features((width, height), self.descriptor_size)
        xy, size_px, response = _keypoint_arrays(keypoints)
        per_x, per_y = width / grey.shape[1], height / grey.shape[0]
        xy = self._centred(xy, size_px, grey.shape[:2])
        xy = (xy + 0.5) * np.array([per_x, per_y], dtype=np.float32) - 0.5
        order = np.argsort(-response, kind='stable')[: self._settings.max_keypoints]
        return Features(
            torch.from_numpy(np.ascontiguousarray(xy[order], dtype=np.float32)),
            torch.from_numpy(self._describe(descriptors[order])),
            torch.from_numpy(np.ascontiguousarray(response[order], dtype=np.float32)),
            torch.from_numpy((self._sigma(size_px[order]) / scale).astype(np.float32)),
            (width, height),
        )

    def _allowed(
        self, mask: NDArray[np.bool_] | None, shape: tuple[int, int]
    ) -> NDArray[np.uint8] | None:
        border = self._settings.border_px
        if mask is None and border == 0:
            return None
        allowed = np.zeros(shape, np.uint8)
        allowed[border : shape[0] - border, border : shape[1] - border] = 255
        if mask is not None:
            resized = cv2.resize(
                mask.astype(np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST
            )
            allowed[resized == 0] = 0
        return allowed

    def _describe(self, descriptors: NDArray[Any]) -> NDArray[np.float32]:
        if self._settings.name == 'orb':
            # ±1/16 for each of the 256 bits: unit length, and the dot product counts equal bits.
            bits = np.unpackbits(descriptors, axis=1).astype(np.float32)
            return (bits * 2.0 - 1.0) / np.float32(16.0)
        root = descriptors / (np.abs(descriptors).sum(1, keepdims=True) + 1e-7)
        return np.sqrt(root).astype(np.float32)

    def _centred(
        self, xy: NDArray[np.float32], size_px: NDArray[np.float32], shape: tuple[int, int]
    ) -> NDArray[np.float32]:
        """OpenCV's (N, 2) coordinates in an image of `shape`, with pixel centres at integers."""
        if self._settings.name == 'sift':
            return xy - np.float32(self._shift_px)
        # OpenCV multiplies coordinates in a level by its nominal scale. But the level was made by
        # a resize that aligns borders, to a rounded size: x lies at (x + ½)·W/W_level − ½.
        nominal = (size_px / np.float32(ORB_PATCH_PX))[:, None]
        size = np.array(shape[::-1], dtype=np.float32)
        placed = (xy / nominal + 0.5) * (size / np.rint(size / nominal)) - 0.5
        return placed.astype(np.float32)

    def _sigma(self, size_px: NDArray[np.float32]) -> NDArray[np.float32]:
        finest = ORB_PATCH_PX if self._settings.name == 'orb' else 3.2
        return SIGMA_AT_FINEST_PX * np.sqrt(np.maximum(size_px / finest, 1.0))


def working_size(size: tuple[int, int], working_pixels: int) -> tuple[int, int]:
    """(width, height) of an image scaled down to so many pixels (0: left as it is)."""
    width, height = size
    if not 0 < working_pixels < width * height:
        return size
    scale = math.sqrt(working_pixels / (width * height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def working_image(image: NDArray[np.uint8], working_pixels: int) -> NDArray[np.uint8]:
    """A (H, W) grey or (H, W, 3) BGR image as grey, scaled down to so many pixels (0: never)."""
    if image.ndim == 3:
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)
    size = working_size((image.shape[1], image.shape[0]), working_pixels)
    if size == (image.shape[1], image.shape[0]):
        return image
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _sift(settings: DetectorSettings) -> tuple[Any, float]:
    """The OpenCV object and the shift of its keypoints that is left to correct."""
    options: dict[str, Any] = {
        'nfeatures': settings.max_keypoints,
        'contrastThreshold': settings.contrast_threshold,
        'edgeThreshold': 10.0,
    }
    try:
        precise = cv2.SIFT.create(
            **options,
            nOctaveLayers=3,
            sigma=1.6,
            descriptorType=cv2.CV_32F,
            enable_precise_upscale=True,
        )
        return precise, 0.0
    except (TypeError, cv2.error):  # OpenCV before 4.8 has no precise mode
        return cv2.SIFT_create(**options), SIFT_DOUBLING_SHIFT_PX  # type: ignore[attr-defined]


def _keypoint_arrays(
    keypoints: Sequence[Any],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    rows = np.array([(*k.pt, k.size, k.response) for k in keypoints], dtype=np.float32)
    return rows[:, :2], rows[:, 2], rows[:, 3]


def empty_features(image_size: tuple[int, int], descriptor_size: int) -> Features:
    """Features of an image in which nothing was found."""
    return Features(
        torch.zeros(0, 2),
        torch.zeros(0, descriptor_size),
        torch.zeros(0),
        torch.zeros(0),
        image_size,
    )


# Similarity of the best of many unrelated descriptors: stands in for the second best where a
# search region holds only one candidate, so that a lone wrong one does not pass the ratio test.
UNRELATED_SIMILARITY = {'sift': 0.75, 'orb': 0.3}
# Ratios of the test, without and with a predicted position; measured on recordings.
RATIOS = (0.8, 0.85)
RATIOS_LEARNED = (0.9, 0.95)


class NearestNeighbourMatcher:
    """Mutual nearest neighbours with a ratio test.

    Confidence is 1 − ratio², 0 where there is no evidence.
    """

    def __init__(self, settings: MatchingSettings, descriptor: str | float) -> None:
        """`descriptor` is the detector's name, or the similarity of its unrelated descriptors."""
        if isinstance(descriptor, str):
            self._floor, usual = UNRELATED_SIMILARITY[descriptor], RATIOS
        else:
            self._floor, usual = descriptor, RATIOS_LEARNED
        self._ratio = settings.ratio or usual[0]
        self._guided_ratio = settings.guided_ratio or usual[1]

    def match(
        self, features: Sequence[Features], pairs: Sequence[tuple[int, int]] | None = None
    ) -> Matches:
        """Matches of the named pairs (a < b) of V views, all pairs when None."""
        chosen = list(combinations(range(len(features)), 2)) if pairs is None else list(pairs)
        views, keypoints, confidence = [], [], []
        for a, b in chosen:
            similarity = features[a].descriptors @ features[b].descriptors.T
            indices, scores = mutual_nearest(similarity, self._ratio)
            views.append(torch.tensor([[a, b]], dtype=torch.int64).expand(len(indices), 2))
            keypoints.append(indices)
            confidence.append(scores)
        if not views:
            nothing = torch.zeros(0, 2, dtype=torch.int64)
            return Matches(nothing, nothing, torch.zeros(0))
        return Matches(torch.cat(views), torch.cat(keypoints), torch.cat(confidence))

    def match_guided(
        self, similarity: torch.Tensor, allowed: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Matches among `allowed` (N, M) candidates, with the looser ratio that geometry permits.

        Returns:
            (K, 2) int64 indices and (K,) confidence.
        """
        masked = similarity.masked_fill(~allowed, -2.0)
        return mutual_nearest(masked, self._guided_ratio, self._floor)

    def match_near(
        self,
        source: tuple[torch.Tensor, torch.Tensor],
        target: tuple[torch.Tensor, torch.Tensor],
        radius: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Matches of points closer than `radius`, with the looser ratio that geometry permits.

        Args:
            source, target: positions (N, 2) and unit descriptors (N, D) of each side.

        Returns:
            (K, 2) int64 indices and (K,) confidence.
        """
        a, b = near_pairs(source[0], target[0], radius)
        similarity = torch.einsum('kd,kd->k', source[1][a], target[1][b])
        return mutual_nearest_of_pairs(a, b, similarity, self._guided_ratio, self._floor)


def near_pairs(
    source_xy: torch.Tensor, target_xy: torch.Tensor, radius: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """All pairs of points closer than `radius`, by a grid of that cell size.

    Args:
        source_xy: (N, 2); target_xy: (M, 2).

    Returns:
        (K,) int64 source and (K,) int64 target, ordered by source.
    """
    if len(source_xy) == 0 or len(target_xy) == 0:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    low = target_xy.amin(0) - radius
    cells = ((target_xy - low) / radius).long()
    columns = int(cells[:, 0].max()) + 2
    rows = int(cells[:, 1].max()) + 2
    place, order = (cells[:, 1] * columns + cells[:, 0]).sort(stable=True)
    limits = torch.tensor([columns - 1.0, rows - 1.0], dtype=source_xy.dtype)
    home = ((source_xy - low) / radius).floor()
    inside = ((home >= -1) & (home <= limits)).all(1).nonzero()[:, 0]
    home = home[inside].long()
    sources, targets = [], []
    for step_y in (-1, 0, 1):
        # Cells of one row are neighbours in `place`: three cells are one range.
        row = home[:, 1] + step_y
        first = row * columns + (home[:, 0] - 1).clamp_min(0)
        last = row * columns + (home[:, 0] + 1).clamp_max(columns - 1)
        begin = torch.searchsorted(place, first)
        count = (torch.searchsorted(place, last, right=True) - begin).clamp_min(0)
        count = torch.where((row >= 0) & (row < rows), count, 0)
        which = torch.repeat_interleave(torch.arange(len(inside)), count)
        offset = torch.arange(len(which)) - torch.repeat_interleave(count.cumsum(0) - count, count)
        sources.append(inside[which])
        targets.append(order[begin[which] + offset])
    source, target = torch.cat(sources), torch.cat(targets)
    close = (source_xy[source] - target_xy[target]).square().sum(1) < radius * radius
    source, target = source[close], target[close]
    by_source = source.argsort(stable=True)
    return source[by_source], target[by_source]


def mutual_nearest_of_pairs(
    source: torch.Tensor,
    target: torch.Tensor,
    similarity: torch.Tensor,
    ratio: float,
    floor: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `mutual_nearest`, among K listed candidate pairs only.

    Args:
        source, target: (K,) int64; similarity: (K,) dot products of unit descriptors.

    Returns:
        (L, 2) int64 indices and (L,) confidence.
    """
    if len(source) == 0:
        return torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0)
    order = similarity.argsort(descending=True, stable=True)
    order = order[source[order].argsort(stable=True)]  # by source, best first
    source, target, similarity = source[order], target[order], similarity[order]
    new = torch.ones(len(source), dtype=torch.bool)
    new[1:] = source[1:] != source[:-1]
    first = new.nonzero()[:, 0]
    second = torch.full((len(first),), floor, dtype=similarity.dtype)
    has_second = torch.zeros(len(first), dtype=torch.bool)
    has_second[:-1] = first[1:] - first[:-1] > 1
    has_second[-1] = len(source) - int(first[-1]) > 1
    second[has_second] = similarity[first[has_second] + 1].clamp_min(floor)
    best_of_target = torch.full((int(target.max()) + 1,), -2.0, dtype=similarity.dtype)
    best_of_target = best_of_target.scatter_reduce(0, target, similarity, 'amax')
    best = similarity[first]
    quotient = (1.0 - best).clamp_min(0.0) / (1.0 - second).clamp_min(1e-6)
    good = (best >= best_of_target[target[first]]) & (quotient < ratio * ratio)
    chosen = first[good]
    return (
        torch.stack([source[chosen], target[chosen]], dim=1),
        (1.0 - quotient[good]).clamp(0.0, 1.0),
    )


def mutual_nearest(
    similarity: torch.Tensor, ratio: float, floor: float = -1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mutual nearest neighbours that pass the ratio test.

    Args:
        similarity: (N, M) dot products of unit descriptors; −2 marks a pair that may not match.
        ratio: largest quotient of the distances to the best and the second-best target.
        floor: the second best is taken to be at least this similar.

    Returns:
        (K, 2) int64 indices in order of the source, and (K,) confidence 1 − quotient².
    """
    if 0 in similarity.shape:
        return torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0)
    rows = torch.arange(len(similarity))
    best, nearest = similarity.max(dim=1)
    back = similarity.max(dim=0).indices
    rest = similarity.clone()
    rest[rows, nearest] = -2.0
    second = rest.max(dim=1).values.clamp_min(floor)
    # Unit vectors: squared distance = 2 − 2·similarity.
    quotient = (1.0 - best).clamp_min(0.0) / (1.0 - second).clamp_min(1e-6)
    good = (back[nearest] == rows) & (best > -1.5) & (quotient < ratio * ratio)
    return torch.stack([rows[good], nearest[good]], dim=1), (1.0 - quotient[good]).clamp(0.0, 1.0)
