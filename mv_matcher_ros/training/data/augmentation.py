# SPDX-License-Identifier: Apache-2.0
"""What cameras and other people add to a rendered tuple: light, lens, motion, noise, JPEG, things
in the way and things that move. Geometry stays as it is.

Whatever is put into a view that no other view sees at the same place of the world is foreign:
nothing there has a partner, and its depth is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.worlds.effects import Effects, develop, to_linear
from mv_matcher_ros.worlds.mipmaps import Floats, Pixels

Mask = NDArray[np.bool_]
Random = np.random.Generator

# `Effects.gain` is 2 ^ swing a quarter of its period after 0.
_PERIOD_S = 4.0
_PEAK_S = 1.0


@dataclass(frozen=True)
class Augmentation:
    """How far views may depart from what was rendered. Shares are probabilities for a view.

    Attributes:
        exposure_stops: standard deviation of the exposure, powers of two.
        gamma: range of the exponents from grey value to light and back.
        contrast: standard deviation of the logarithm of the contrast.
        vignetting: largest share of light lost in the corners.
        full_well: range of electrons of a white pixel: fewer, more shot noise.
        read_noise: largest noise of reading out, electrons.
        blur_share, blur_px: motion blur and its largest length.
        soft_share, soft_px: blur of a lens out of focus and its largest radius (sigma).
        jpeg_share, jpeg_quality: compression and its range.
        light_share, light_depth: a gradient or a spot of light and how strong it may be.
        occluder_share: something in front of one view.
        distractor_share: for a tuple: something that stands elsewhere in every view.
    """

    exposure_stops: float = 0.4
    gamma: tuple[float, float] = (1.8, 2.5)
    contrast: float = 0.2
    vignetting: float = 0.5
    full_well: tuple[float, float] = (400.0, 10000.0)
    read_noise: float = 12.0
    blur_share: float = 0.25
    blur_px: float = 9.0
    soft_share: float = 0.2
    soft_px: float = 1.2
    jpeg_share: float = 0.5
    jpeg_quality: tuple[int, int] = (35, 95)
    light_share: float = 0.35
    light_depth: float = 0.6
    occluder_share: float = 0.15
    distractor_share: float = 0.3


@dataclass(frozen=True)
class AugmentedViews:
    """V views after augmentation.

    Attributes:
        images: (V, H, W) uint8.
        depths: (V, H, W) float32 metres, 0 where unknown and where something foreign stands.
        foreign: (V, H, W) bool: what is seen there is no part of the place.
    """

    images: Pixels
    depths: Floats
    foreign: Mask


def augment(
    images: Pixels, depths: Floats, rng: Random, settings: Augmentation | None = None
) -> AugmentedViews:
    """Views as real cameras would have taken them; the same generator gives the same views.

    Args:
        images: (V, H, W) uint8.
        depths: (V, H, W) metres.
        rng: of everything.
        settings: how far; None for the defaults.
    """
    settings = Augmentation() if settings is None else settings
    shown = images.copy()
    foreign = np.zeros(images.shape, np.bool_)
    if rng.random() < settings.distractor_share:
        for _ in range(int(rng.integers(1, 4))):
            _distract(shown, foreign, images, rng)
    for view in range(len(images)):
        if rng.random() < settings.occluder_share:
            patch = _patch(images, rng)
            _paste(shown[view], foreign[view], patch, float(rng.uniform(0.15, 0.5)), rng)
    taken = [photograph(view, rng, settings) for view in shown]
    return AugmentedViews(np.stack(taken), np.where(foreign, np.float32(0), depths), foreign)


def photograph(image: Pixels, rng: Random, settings: Augmentation) -> Pixels:
    """(H, W) uint8: the view `image` taken by another camera, in other light."""
    gamma = float(rng.uniform(*settings.gamma))
    light = to_linear(image.astype(np.float32), gamma)
    if rng.random() < settings.light_share:
        light *= light_pattern((image.shape[0], image.shape[1]), settings.light_depth, rng)
    if rng.random() < settings.soft_share:
        sigma = float(rng.uniform(0.3, settings.soft_px))
        light = np.asarray(cv2.GaussianBlur(light, (0, 0), sigma), np.float32)
    if rng.random() < settings.blur_share:
        kernel = motion_kernel(
            float(rng.uniform(2.0, settings.blur_px)), float(rng.uniform(0, np.pi))
        )
        light = np.asarray(
            cv2.filter2D(light, -1, kernel, borderType=cv2.BORDER_REPLICATE), np.float32
        )
    sensor = Effects(
        exposure_s=0.0,
        full_well=float(np.exp(rng.uniform(*np.log(settings.full_well)))),
        read_noise=float(rng.uniform(0.0, settings.read_noise)),
        gamma=float(rng.uniform(*settings.gamma)),
        exposure_swing=float(rng.normal(0.0, settings.exposure_stops)),
        exposure_period_s=_PERIOD_S,
        vignetting=float(rng.uniform(0.0, settings.vignetting)),
    )
    grey = develop(light, sensor, _PEAK_S, rng).astype(np.float32)
    factor = float(np.exp(rng.normal(0.0, settings.contrast)))
    pivot = float(grey.mean())
    grey = np.clip((grey - pivot) * factor + pivot + 0.5, 0, 255)
    found = grey.astype(np.uint8)
    if rng.random() < settings.jpeg_share:
        low, high = settings.jpeg_quality
        options = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(low, high + 1))]
        data = cv2.imencode('.jpg', found, options)[1]
        found = np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), np.uint8)
    return found


def light_pattern(shape: tuple[int, int], depth: float, rng: Random) -> Floats:
    """(H, W) factor between 1 - depth and 1 + depth: a gradient, a spot or a shadow's edge."""
    rows, columns = shape
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    x, y = x / columns - 0.5, y / rows - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    along = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y
    strength = np.float32(rng.uniform(0.2, 1.0) * depth)
    kind = rng.integers(3)
    if kind == 0:
        pattern = 1.4 * along
    elif kind == 1:
        centre = rng.uniform(-0.5, 0.5, 2).astype(np.float32)
        radius = np.float32(rng.uniform(0.1, 0.5))
        distance = (x - centre[0]) ** 2 + (y - centre[1]) ** 2
        pattern = 2.0 * np.exp(-distance / radius**2) - 1.0
    else:
        width = np.float32(np.exp(rng.uniform(np.log(0.004), np.log(0.15))))
        pattern = np.tanh((along - np.float32(rng.uniform(-0.3, 0.3))) / width)
    return (1.0 + strength * np.clip(pattern, -1.0, 1.0)).astype(np.float32)


def motion_kernel(length_px: float, angle_rad: float) -> Floats:
    """Odd square kernel of a straight motion whose middle is the pixel: nothing is displaced."""
    half = int(np.ceil(0.5 * length_px))
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    reach = 0.5 * length_px * np.array([np.cos(angle_rad), np.sin(angle_rad)])
    for share in np.linspace(-1.0, 1.0, 8 * half + 1):
        x, y = half + share * reach
        left, top = int(np.floor(x)), int(np.floor(y))
        for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
            if 0 <= column < len(kernel) and 0 <= row < len(kernel):
                kernel[row, column] += (1 - abs(x - column)) * (1 - abs(y - row))
    return kernel / kernel.sum()


def _patch(images: Pixels, rng: Random) -> Pixels:
    """A part of some view, brighter or darker, mirrored or not: something with texture."""
    view = images[int(rng.integers(len(images)))]
    rows, columns = (max(8, int(s * rng.uniform(0.2, 0.5))) for s in view.shape)
    top, left = (
        int(rng.integers(0, s - n + 1)) for s, n in zip(view.shape, (rows, columns), strict=True)
    )
    part = view[top : top + rows, left : left + columns].astype(np.float32)
    part = part * rng.uniform(0.4, 1.6) + rng.normal(0, 20)
    if rng.random() < 0.5:
        part = part[:, ::-1]
    return np.clip(part, 0, 255).astype(np.uint8)


def _distract(shown: Pixels, foreign: Mask, images: Pixels, rng: Random) -> None:
    """The same thing at another place in every view: it moved."""
    patch = _patch(images, rng)
    size = float(rng.uniform(0.1, 0.3))
    outline = int(rng.integers(1 << 31))
    for view in range(len(images)):
        if rng.random() < 0.85:
            scale = size * float(np.exp(rng.normal(0, 0.15)))
            _paste(shown[view], foreign[view], patch, scale, rng, outline)


def _paste(
    image: Pixels,
    foreign: Mask,
    patch: Pixels,
    size: float,
    rng: Random,
    outline: int | None = None,
) -> None:
    """Put a patch of about `size` of the height somewhere into the image, with a round outline."""
    rows, columns = image.shape
    height = max(6, int(size * rows))
    width = max(6, int(height * patch.shape[1] / patch.shape[0]))
    height, width = min(height, rows), min(width, columns)
    mask = _outline(height, width, np.random.default_rng(outline) if outline is not None else rng)
    part = cv2.resize(patch, (width, height), interpolation=cv2.INTER_AREA)
    top = int(rng.integers(-height // 3, rows - 2 * height // 3))
    left = int(rng.integers(-width // 3, columns - 2 * width // 3))
    inside = (slice(max(top, 0), top + height), slice(max(left, 0), left + width))
    cut = (slice(max(-top, 0), None), slice(max(-left, 0), None))
    place, where = image[inside], mask[cut]
    where = where[: place.shape[0], : place.shape[1]]
    np.copyto(place, part[cut][: place.shape[0], : place.shape[1]], where=where)
    # One pixel more: a keypoint at its edge belongs to nobody.
    grown = cv2.dilate(where.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    foreign[inside] |= grown


def _outline(height: int, width: int, rng: Random) -> Mask:
    """(H, W) True inside a round, uneven shape."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = 2.0 * x / width - 1.0, 2.0 * y / height - 1.0
    angle = np.arctan2(y, x)
    radius = np.full(angle.shape, 0.8, np.float32)
    for waves in range(2, 6):
        radius += rng.normal(0, 0.08) * np.cos(waves * angle + rng.uniform(0, 2 * np.pi))
    return np.hypot(x, y) < radius
