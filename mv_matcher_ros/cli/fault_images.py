# SPDX-License-Identifier: Apache-2.0
"""What a camera shows when something is wrong: functions of one image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[Any]


def black(image: Image) -> Image:
    """Nothing but the noise of the sensor."""
    return np.abs(_noise(image, 2.0)).astype(np.uint8)


def wall(image: Image) -> Image:
    """A white wall, evenly lit, and the noise of the sensor."""
    across = np.linspace(150.0, 200.0, image.shape[1])[None, :]
    shade = np.broadcast_to(across, image.shape[:2])
    return np.clip(shade + _noise(image, 1.5)[: image.shape[0]], 0, 255).astype(np.uint8)


def blurred(image: Image) -> Image:
    """Moved by a twentieth of its width while the shutter was open."""
    width = max(3, image.shape[1] // 20)
    return cv2.blur(image, (width, 1)).astype(np.uint8)


def brighter(factor: float) -> Callable[[Image], Image]:
    """Exposed `factor` times as long."""
    return lambda image: np.clip(image * factor, 0, 255).astype(np.uint8)


def half_size(image: Image) -> Image:
    """Of another resolution."""
    return np.ascontiguousarray(image[::2, ::2])


def crowd(number: int, share: float, disparity_px: int) -> list[Callable[[Image], Image]]:
    """Something large walks by and hides a share of the image: for each view of frame `number`.

    It is textured, near, and moves by itself, 12 px a frame at 640 px width.
    """

    def in_view(view: int) -> Callable[[Image], Image]:
        def hide(image: Image) -> Image:
            height, width = image.shape[:2]
            canvas = _canvas(height, 2 * width)
            wide = round(share * width)
            at = (number * 12 * width // 640 + view * disparity_px) % width
            hidden = image.copy()
            hidden[:, -wide:] = canvas[:, at : at + wide]
            return hidden

        return hide

    return [in_view(0), in_view(1)]


def _canvas(height: int, width: int) -> Image:
    rough = np.random.default_rng(5).integers(0, 255, (height // 6, width // 6)).astype(np.uint8)
    return cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.uint8)


def _noise(image: Image, sigma: float) -> NDArray[np.float64]:
    seed = int(image[::16, ::16].sum())
    return np.random.default_rng(seed).normal(0.0, sigma, image.shape[:2])


def covered(image: Image) -> Image:
    """Something grey right before the lens."""
    return np.full_like(image, 90)


def noisy(image: Image) -> Image:
    """Taken in the dark with all the gain that there is."""
    seed = int(image[::16, ::16].sum())
    noise = np.random.default_rng(seed).normal(0.0, 60.0, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)
