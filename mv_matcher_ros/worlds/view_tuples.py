# SPDX-License-Identifier: Apache-2.0
"""Tuples of views of one place with exact depth and pose: like a video, from far apart, stereo.

Views are tried small before they are rendered. The same seed gives the same tuple.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np

from mv_matcher_ros.datatypes import Array, Camera
from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.worlds.covisibility import overlap_matrix, seen_share
from mv_matcher_ros.worlds.mipmaps import Floats, Pixels
from mv_matcher_ros.worlds.places import CLEARANCE_M, Place, is_clear
from mv_matcher_ros.worlds.view_motion import advanced, around, draw_velocity

Baseline = Literal['video', 'wide', 'stereo']
BASELINES: tuple[Baseline, ...] = get_args(Baseline)

# Overlap of a new view with the one it was derived from, and the least with the tuple's first.
_OVERLAP: dict[str, tuple[float, float]] = {
    'video': (0.5, 0.97), 'wide': (0.3, 0.9), 'stereo': (0.5, 0.98),
}  # fmt: skip
_WITH_FIRST = 0.15
# A view is tried at about this width.
_TRIAL_WIDTH = 160
_STARTS, _STEPS = 24, 14
# Of a trial's cells (8 x 8 px) so many must have a corner: smaller eigenvalue of the gradients'
# covariance above this, of grey values in [0, 1].
_TEXTURED_SHARE, _CORNER = 0.25, 3e-4
_KNOWN_SHARE = 0.6


@dataclass(frozen=True)
class ViewTuple:
    """V views of one place.

    Attributes:
        images: (V, H, W) uint8.
        depths: (V, H, W) float32 metres along the optical axis, 0 where nothing is.
        world_from_camera: (V, 4, 4) metres.
        intrinsics: (V, 3, 3) pinhole, pixels, centres at integers.
        overlap: (V, V) share of a's points that b sees, row a.
        world: name of the place.
        baseline: how the views lie to each other; stereo: left, right, left, right, …
    """

    images: Pixels
    depths: Floats
    world_from_camera: Array
    intrinsics: Array
    overlap: Floats
    world: str
    baseline: Baseline


@dataclass(frozen=True)
class _Trial:
    """A view that was found good at a small size."""

    camera: Camera
    pose: Array
    depth: Floats


def sample_tuple(
    place: Place,
    size: tuple[int, int],
    views: int,
    baseline: Baseline,
    rng: np.random.Generator,
) -> ViewTuple | None:
    """A tuple of `views` views of `size` (width, height) pixels; None where none was found.

    Raises:
        GeometryError: fewer than two views, an unknown baseline, or images too small.
    """
    if views < 2 or baseline not in BASELINES or min(size) < 32:
        raise GeometryError(f'tuple of {views} {baseline} views of {size[0]}x{size[1]} px')
    camera = _camera(size, float(rng.uniform(50.0, 100.0)), rng)
    first = _first(place, camera, rng)
    if first is None:
        return None
    place = place.lit(_small(camera), first.pose, rng)
    trials = _followers(place, first, views, baseline, rng)
    if trials is None:
        return None
    moments = np.linspace(0, 1, views)
    taken = [
        place.look(trial.camera, trial.pose, float(moment))
        for trial, moment in zip(trials, moments, strict=True)
    ]
    depths = np.stack([depth for _, depth in taken])
    poses = np.stack([trial.pose for trial in trials])
    intrinsics = np.stack([trial.camera.matrix for trial in trials])
    images = np.stack([image for image, _ in taken])
    overlap = overlap_matrix(list(depths), intrinsics, poses)
    return ViewTuple(images, depths, poses, intrinsics, overlap, place.name, baseline)


def _camera(size: tuple[int, int], field_deg: float, rng: np.random.Generator) -> Camera:
    width, height = size
    focal = 0.5 * max(size) / np.tan(np.deg2rad(field_deg) / 2)
    cx, cy = rng.normal(0, 0.01 * width, 2)
    middle = (0.5 * (width - 1) + cx, 0.5 * (height - 1) + cy)
    return Camera(width, height, (float(focal), float(focal), float(middle[0]), float(middle[1])))


def _small(camera: Camera) -> Camera:
    width = min(_TRIAL_WIDTH, camera.width)
    return camera.resized(width, max(1, round(camera.height * width / camera.width)))


def _first(place: Place, camera: Camera, rng: np.random.Generator) -> _Trial | None:
    for pose in place.starts(camera, _STARTS, rng):
        trial = _tried(place, camera, pose)
        if trial is not None:
            return trial
    return None


def _tried(place: Place, camera: Camera, pose: Array) -> _Trial | None:
    """The view from a pose if it is a good one: room before the camera, texture, little void."""
    if not is_clear(place, pose[:3, 3]):
        return None
    image, depth = place.look(_small(camera), pose, 0.0, False)
    known = depth > 0
    if known.mean() < _KNOWN_SHARE or (depth[known] < CLEARANCE_M).mean() > 0.002:
        return None
    if (depth[known] < 2 * CLEARANCE_M).mean() > 0.25:
        return None
    return _Trial(camera, pose, depth) if textured_share(image) > _TEXTURED_SHARE else None


def textured_share(image: Pixels) -> float:
    """Share of the cells of 8 x 8 px of an image (H, W) that hold a corner."""
    # Trials are rendered without smooth outlines, whose steps would pass for corners.
    smooth = cv2.GaussianBlur(image.astype(np.float32) / 255.0, (0, 0), 0.7)
    strength = cv2.cornerMinEigenVal(smooth, 3)
    rows, columns = (s // 8 for s in strength.shape)
    cells = strength[: 8 * rows, : 8 * columns].reshape(rows, 8, columns, 8).max((1, 3))
    return float((cells > _CORNER).mean())


def _followers(
    place: Place, first: _Trial, views: int, baseline: Baseline, rng: np.random.Generator
) -> list[_Trial] | None:
    distance = float(np.median(first.depth[first.depth > 0]))
    velocity = draw_velocity(distance, rng)
    rig = np.eye(4)
    rig[0, 3] = distance * rng.uniform(0.02, 0.1)
    zoom = 0.15 * float(rng.random() < 0.5)
    largest_rad = float(rng.uniform(0.25, 1.0))
    trials = [first]
    while len(trials) < views:
        for _ in range(_STEPS):
            camera, pose, parent = first.camera, None, trials[-1]
            if baseline == 'stereo' and len(trials) % 2:
                pose = parent.pose @ rig
            elif baseline == 'wide':
                parent = trials[int(rng.integers(len(trials)))]
                camera = _zoomed(first.camera, float(np.exp(rng.normal(0, zoom))))
                pose = around(parent.pose, parent.depth, _small(parent.camera), largest_rad, rng)
            else:
                parent = trials[-1] if baseline == 'video' else trials[-2]
                pose = advanced(parent.pose, velocity, rng)
            trial = None
            if pose is not None and _reachable(place, parent.pose, pose):
                trial = _tried(place, camera, pose)
            if trial is not None and _overlaps(trial, parent, first, baseline):
                trials.append(trial)
                break
            if baseline != 'wide':
                velocity = draw_velocity(distance, rng)
                if len(trials) == 1:
                    rig[0, 3] *= 0.8
        else:
            return None
    return trials


def _zoomed(camera: Camera, factor: float) -> Camera:
    fx, fy, cx, cy = camera.intrinsics
    return Camera(camera.width, camera.height, (factor * fx, factor * fy, cx, cy))


def _reachable(place: Place, start: Array, end: Array) -> bool:
    return not place.blocked(start[None, :3, 3], end[None, :3, 3]).any()


def _overlaps(trial: _Trial, parent: _Trial, first: _Trial, baseline: Baseline) -> bool:
    low, high = _OVERLAP[baseline]
    return low <= _overlap(trial, parent) <= high and _overlap(trial, first) >= _WITH_FIRST


def _overlap(a: _Trial, b: _Trial) -> float:
    """Mean of the shares that one sees of the other."""
    matrices = np.stack([_small(a.camera).matrix, _small(b.camera).matrix])
    poses = np.stack([a.pose, b.pose])
    forth = seen_share((a.depth, b.depth), matrices, poses)
    back = seen_share((b.depth, a.depth), matrices[::-1], poses[::-1])
    return 0.5 * (forth + back)
