# SPDX-License-Identifier: Apache-2.0
"""What a real camera adds to a perfect image, and the faults of a real recording; all seeded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np

from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.worlds.mipmaps import Floats, Pixels

# black: an empty image; covered: a hand on the lens; frozen: the previous image with a new stamp;
# dropped: no frame at all.
FaultKind = Literal['black', 'covered', 'frozen', 'dropped']
FAULT_KINDS: tuple[FaultKind, ...] = ('black', 'covered', 'frozen', 'dropped')


@dataclass(frozen=True)
class Fault:
    """Frames `first` to `last` (both included) of a recording go wrong in one way."""

    kind: FaultKind
    first: int
    last: int

    def __post_init__(self) -> None:
        if self.kind not in FAULT_KINDS or self.first > self.last or self.first < 0:
            raise SourceError(
                f'fault "{self.kind}" {self.first}..{self.last}: want one of '
                f'{", ".join(FAULT_KINDS)} and first <= last'
            )


@dataclass(frozen=True)
class DepthNoise:
    """Errors of a structured-light depth camera (Khoshelham & Elberink, Sensors 2012, eq. 9).

    Attributes:
        sigma_per_m2: standard deviation at 1 m; it grows with the square of the distance.
        nearest_m, farthest_m: range outside which nothing is measured.
        step_m: depths are rounded to multiples of this; 0 leaves them alone.
        edge_px: nothing is measured this near to an outline in the depth image.
    """

    sigma_per_m2: float = 0.0014
    nearest_m: float = 0.4
    farthest_m: float = 8.0
    step_m: float = 0.001
    edge_px: int = 1


@dataclass(frozen=True)
class Effects:
    """How images depart from perfect ones. The defaults are a decent camera in a lit room.

    Attributes:
        exposure_s: time the shutter is open, around the stamp; 0 freezes motion.
        blur_samples: most renderings averaged for one exposure.
        full_well: electrons of a white pixel: shot noise is the square root of the count; 0 turns
            noise off.
        read_noise: electrons added by reading out, standard deviation.
        gamma: grey value = linear light ^ (1 / gamma).
        exposure_swing: factor 2 ^ swing of slow changes of the brightness (auto exposure).
        exposure_period_s: of those changes.
        vignetting: share of light lost in the image's corners.
        faults: what goes wrong when.
        depth: errors of the depth image, None for exact depth.
    """

    exposure_s: float = 0.003
    blur_samples: int = 5
    full_well: float = 6000.0
    read_noise: float = 6.0
    gamma: float = 2.2
    exposure_swing: float = 0.15
    exposure_period_s: float = 4.0
    vignetting: float = 0.15
    faults: tuple[Fault, ...] = ()
    depth: DepthNoise | None = field(default_factory=DepthNoise)

    def fault_at(self, index: int) -> FaultKind | None:
        """What goes wrong with frame `index`; of several faults the first named."""
        for fault in self.faults:
            if fault.first <= index <= fault.last:
                return fault.kind
        return None

    def gain(self, time_s: float) -> float:
        """Brightness factor of linear light at a time."""
        phase = 2 * np.pi * time_s / self.exposure_period_s
        return float(2.0 ** (self.exposure_swing * np.sin(phase)))


PERFECT = Effects(0.0, 1, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, (), None)


def to_linear(grey: Floats, gamma: float) -> Floats:
    """Linear light in [0, 1] of grey values in [0, 255] (above: saturated)."""
    table = (np.arange(1024, dtype=np.float32) / 1023.0) ** np.float32(gamma)
    place = np.clip(grey * np.float32(1023.0 / 255.0) + 0.5, 0, 1023).astype(np.uint16)
    return table.take(place)


def develop(light: Floats, effects: Effects, time_s: float, rng: np.random.Generator) -> Pixels:
    """The image a sensor makes of linear light.

    Args:
        light: (H, W) or (H, W, 3) in [0, 1].
        effects: which sensor.
        time_s: for the slow changes of exposure.
        rng: for the noise.

    Returns:
        uint8 of the same shape.
    """
    light = light * np.float32(effects.gain(time_s))
    if effects.vignetting:
        falloff = _falloff(light.shape[0], light.shape[1], effects.vignetting)
        light *= falloff if light.ndim == 2 else falloff[..., None]
    if effects.full_well > 0:
        well = np.float32(effects.full_well)
        deviation = np.sqrt(
            light / well + np.float32((effects.read_noise / effects.full_well) ** 2)
        )
        light += deviation * rng.standard_normal(light.shape, np.float32)
    # 4096 steps are finer than a grey value everywhere but in the deepest shadow.
    table = 255.0 * (np.arange(4096, dtype=np.float32) / 4095.0) ** np.float32(1 / effects.gamma)
    place = np.clip(light * np.float32(4095.0) + 0.5, 0, 4095).astype(np.uint16)
    return (table + 0.5).astype(np.uint8).take(place)


def _falloff(rows: int, columns: int, loss: float) -> Floats:
    """(H, W) factor 1 in the middle, 1 - loss in the corners, by the cos^4 law of lenses."""
    y = np.linspace(-1, 1, rows, dtype=np.float32)[:, None] ** 2
    x = np.linspace(-1, 1, columns, dtype=np.float32)[None] ** 2
    radius_squared = 0.5 * (x + y)
    tangent_squared = 1.0 / np.sqrt(1.0 - loss) - 1.0  # cos^4 = 1 - loss at the corner
    return (1.0 / (1.0 + tangent_squared * radius_squared) ** 2).astype(np.float32)


def cover(image: Pixels, rng: np.random.Generator) -> Pixels:
    """The image with a hand on the lens: dark, without detail, noisy."""
    glow = cv2.resize(cv2.resize(image, (4, 3), interpolation=cv2.INTER_AREA), image.shape[1::-1])
    noisy = 6.0 + 0.03 * glow + rng.normal(0.0, 1.2, image.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def measure_depth(depth: Floats, noise: DepthNoise, rng: np.random.Generator) -> Floats:
    """Depth as a depth camera gives it: noisy, rounded, with holes at outlines and out of range.

    Args:
        depth: (H, W) float32 metres, 0 where nothing is.
        noise: which camera.
        rng: for the noise.
    """
    noisy = depth + noise.sigma_per_m2 * depth**2 * rng.standard_normal(depth.shape, np.float32)
    if noise.step_m > 0:
        noisy = np.round(noisy / noise.step_m) * noise.step_m
    known = (depth >= noise.nearest_m) & (depth <= noise.farthest_m)
    if noise.edge_px > 0:
        kernel = np.ones((2 * noise.edge_px + 1,) * 2, np.uint8)
        jump = cv2.dilate(depth, kernel) - cv2.erode(depth, kernel) > 0.05 * depth + 0.02
        known &= ~jump
    return np.where(known, noisy, 0.0).astype(np.float32)
