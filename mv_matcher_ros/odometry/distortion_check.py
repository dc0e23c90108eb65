# SPDX-License-Identifier: Apache-2.0
"""Radial distortion that a calibration has left, from what the odometry's keyframes see.

Rectified and "undistorted" images often keep some; points far from the middle then move along
wrong rays, and one camera's scale drifts in every turn. Bundle adjustment knows: it fits best
where the stretch x -> x (1 + k r^2) of the normalised plane is undone. Groups of keyframes say so
one by one, and how much they differ says how far they are to be trusted.

The focal length is not estimated: its error and the scale's drift, or depth's scale, look alike
(docs/results.md, "What images say about calibration").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mv_matcher_ros.config import DistortionCheckSettings
from mv_matcher_ros.datatypes import Camera
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.bundle_adjustment import solve
from mv_matcher_ros.geometry.camera import camera_normalise
from mv_matcher_ros.geometry.reprojection import Problem
from mv_matcher_ros.odometry.keyframe_record import KeyframeRecord

# Stretches tried, and steps of each adjustment.
TRIED = 0.01
FIRST_STEPS, STEPS = 10, 8
KERNEL_WIDTH = 2.0
# A group says nothing with fewer observations, or where the cost has no clear lowest point.
LEAST_OBSERVATIONS = 300
# Models that a radial coefficient can be added to.
RADIAL = ('pinhole', 'radtan', 'rational')


@dataclass(frozen=True)
class Distortion:
    """What is left of radial distortion.

    Attributes:
        stretch: k: true rays are x (1 + k r^2) of those that the calibration says.
        sigma: its standard deviation, from the groups' own and their spread.
        groups: of keyframes that say so.
        corner_px: how far that moves the corner of the image.
    """

    stretch: float
    sigma: float
    groups: int
    corner_px: float


class DistortionCheck:
    """Takes keyframes in order of time.

    Args:
        settings: when to be sure.
        camera: the first of the rig.
    """

    def __init__(self, settings: DistortionCheckSettings, camera: Camera) -> None:
        self._settings, self._camera = settings, camera
        self._group: list[KeyframeRecord] = []
        self._said: list[tuple[float, float]] = []  # stretch and variance of each group

    def take(self, record: KeyframeRecord) -> None:
        """A keyframe; its group is looked at when it is complete."""
        if self._group and self._group[-1].segment != record.segment:
            self._group.clear()
        self._group.append(record)
        if len(self._group) == self._settings.keyframes:
            said = stretch_of(self._group, self._camera)
            self._group.clear()
            if said is not None:
                self._said.append(said)

    @property
    def groups(self) -> int:
        """Groups of keyframes that have said something."""
        return len(self._said)

    @property
    def found(self) -> Distortion | None:
        """What the groups say together; None before one has said something.

        The mean of a population whose members differ (DerSimonian and Laird 1986).
        """
        if not self._said:
            return None
        stretch, variance = np.array(self._said).T
        weight = 1.0 / variance
        mean = (weight * stretch).sum() / weight.sum()
        excess = (weight * (stretch - mean) ** 2).sum() - (len(stretch) - 1)
        room = weight.sum() - (weight**2).sum() / weight.sum()
        between = max(excess / room, 0.0) if len(stretch) > 1 else 0.0
        weight = 1.0 / (variance + between)
        mean = float((weight * stretch).sum() / weight.sum())
        sigma = float(weight.sum() ** -0.5)
        return Distortion(mean, sigma, len(stretch), abs(mean) * corner_px(self._camera))

    @property
    def sure(self) -> Distortion | None:
        """What is left, where that is beyond doubt and matters; else None."""
        found, settings = self.found, self._settings
        if found is None or found.groups < settings.groups:
            return None
        if found.corner_px < settings.least_px or self._camera.model not in RADIAL:
            return None
        return found if abs(found.stretch) > settings.sure * found.sigma else None


def in_words(camera: Camera) -> str:
    """Model and coefficients."""
    return f'{camera.model} [{", ".join(f"{value:.5g}" for value in camera.distortion)}]'


def advice(found: Distortion, camera: Camera) -> str:
    """What was found, and the camera that says it better, in one line.

    Args:
        camera: as it was said to be.
    """
    return (
        'the images have radial distortion that the calibration does not know '
        f'({found.stretch:+.4f} +- {found.sigma:.4f}, {found.corner_px:.0f} px in the corner): '
        f'{in_words(corrected(camera, found))} is closer; calibrate the camera, or give it that'
    )


def stretch_of(records: Sequence[KeyframeRecord], camera: Camera) -> tuple[float, float] | None:
    """Stretch and its variance by bundle adjustment of some keyframes; None if they cannot say."""
    problem = _problem(records, camera)
    if problem is None:
        return None
    start = solve(problem, FIRST_STEPS, point_steps=1)
    problem = problem.moved(start.world_from_body, start.points)
    low, middle, high = (
        float(solve(_stretched(problem, k), STEPS, point_steps=1).cost)
        for k in (-TRIED, 0.0, TRIED)
    )
    curvature = (low + high - 2.0 * middle) / TRIED**2
    if not math.isfinite(curvature) or curvature <= 0.0:
        return None
    return (low - high) / (2.0 * TRIED * curvature), 1.0 / curvature


def _problem(records: Sequence[KeyframeRecord], camera: Camera) -> Problem | None:
    """What the keyframes see of landmarks that two of them see, or whose depth is measured."""
    poses = torch.stack([record.segment_from_body for record in records])
    parts: list[tuple[Tensor, ...]] = []
    for number, record in enumerate(records):
        seen = record.observation
        there = (record.landmark >= 0) & seen.plane_xy.isfinite().all(1)
        there &= record.points.isfinite().all(1)
        deep = seen.inverse_depth[there].isfinite() & record.metric
        depth = torch.where(deep, seen.inverse_depth[there], 0.0)
        image = (1.0 / seen.sigma[there])[:, None].expand(-1, 2)
        trust = torch.where(deep, 1.0 / seen.inverse_depth_sigma[there], 0.0)
        parts.append((
            torch.full((int(there.sum()),), number),
            record.landmark[there],
            se3.transform(poses[number], record.points[there]),
            torch.cat([seen.plane_xy[there], depth[:, None]], dim=1),
            torch.cat([image, trust[:, None]], dim=1),
        ))  # fmt: skip
    frame, landmark, points, measured, information = (
        torch.cat(part) for part in zip(*parts, strict=True)
    )
    names, point = landmark.unique(return_inverse=True)
    count = torch.bincount(point, minlength=len(names))
    deep = torch.zeros(len(names), dtype=torch.bool).index_put_(
        (point,), information[:, 2] > 0, accumulate=True
    )
    kept = ((count >= 2) | deep)[point]
    if int(kept.sum()) < LEAST_OBSERVATIONS:
        return None
    _, point = point[kept].unique(return_inverse=True)
    place = torch.zeros(int(point.max()) + 1, 3, dtype=torch.float64)
    place[point] = points[kept]
    return Problem(
        poses[None],
        place[None],
        frame[kept][None],
        point[None],
        measured[kept][None],
        information[kept][None],
        (torch.arange(len(records)) == 0)[None],
        torch.from_numpy(np.linalg.inv(camera.body_from_camera))[None, None],
        kernel='cauchy',
        kernel_width=KERNEL_WIDTH,
    )


def _stretched(problem: Problem, k: float) -> Problem:
    plane = problem.measured[..., :2]
    measured = problem.measured.clone()
    measured[..., :2] = plane * (1.0 + k * plane.square().sum(-1, keepdim=True))
    return replace(problem, measured=measured)


def corner_px(camera: Camera) -> float:
    """How far a stretch of 1 moves the farthest corner of the image, in pixels."""
    fx, fy, cx, cy = camera.intrinsics
    x = max(cx, camera.width - 1 - cx) / fx
    y = max(cy, camera.height - 1 - cy) / fy
    return math.hypot(x, y) ** 3 * camera.focal_px


def corrected(camera: Camera, found: Distortion) -> Camera:
    """The camera with what was left in its radial coefficients.

    k1, k2 and k3 are fitted over the whole image; the other coefficients stay.
    """
    y, x = np.mgrid[0 : camera.height - 1 : 24j, 0 : camera.width - 1 : 32j]
    pixels = np.stack([x.ravel(), y.ravel()], axis=1)
    said, valid = camera_normalise(camera, torch.from_numpy(pixels))
    rays = (said * (1.0 + found.stretch * said.square().sum(1, keepdim=True)))[valid].numpy()
    focal, centre = np.array(camera.intrinsics[:2]), np.array(camera.intrinsics[2:])
    image = (pixels[valid.numpy()] - centre) / focal
    own = [*camera.distortion, *([0.0] * 8)][:8]
    squared = (rays**2).sum(1, keepdims=True)
    powers = np.concatenate([squared, squared**2, squared**3], axis=1)
    below = 1.0 + powers @ np.array(own[5:8])
    product = 2.0 * rays[:, :1] * rays[:, 1:]
    tangential = np.concatenate([
        own[2] * product + own[3] * (squared + 2.0 * rays[:, :1] ** 2),
        own[2] * (squared + 2.0 * rays[:, 1:] ** 2) + own[3] * product,
    ], axis=1)  # fmt: skip
    radial = rays / below[:, None]
    rows = (radial[:, :, None] * powers[:, None]).reshape(-1, 3)
    wanted = (image - tangential - radial).reshape(-1)
    first, second, third = np.linalg.lstsq(rows, wanted, rcond=None)[0].tolist()
    model = 'radtan' if camera.model == 'pinhole' else camera.model
    distortion = (first, second, own[2], own[3], third, *own[5:8])
    return replace(camera, model=model, distortion=distortion[: 8 if model == 'rational' else 5])
