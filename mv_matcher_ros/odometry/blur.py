# SPDX-License-Identifier: Apache-2.0
"""How wide the edges of an image are, and what blur does to the features in it.

Of an edge that is w pixels wide, the mean square difference over a short step s is s²/w of what it
is over a step longer than w, per pixel of the step: the ratio of both gives w, whatever the scene
and the light. A sharp image has 1 to 2 pixels, a long shutter in a hand 3 to 6. Our own measure;
structure functions are the idea (Kolmogorov, 1941).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

# The short step, not shorter: noise of the sensor differs most between neighbours. The long one is
# the widest edge that can be told.
NEAR_PX, FAR_PX = 3, 32
# Features err more in images with edges wider than this, by this power; fitted to features of
# sharp images that are found again in the same ones blurred (3 to 32 pixels; room, KITTI, TUM).
SHARP_PX, POWER = 3.5, 1.2
# Where they are followed into a blurred image they err less: the patches are looked at, not spots.
SHARP_TO_FLOW_PX = 6.0
# With wider edges than these, features err by more than twice their noise.
BLURRED_PX = 6.5


def edge_width_px(image: NDArray[np.uint8]) -> float:
    """Mean width of the edges of a grey image (H, W) across the worse of its axes, pixels.

    At most `FAR_PX`; 0 for an image that is smaller, or has no contrast.
    """
    if min(image.shape) <= FAR_PX:
        return 0.0
    along_x = _width(
        image[:, NEAR_PX:], image[:, :-NEAR_PX], image[:, FAR_PX:], image[:, :-FAR_PX]
    )
    along_y = _width(image[NEAR_PX:], image[:-NEAR_PX], image[FAR_PX:], image[:-FAR_PX])
    return max(along_x, along_y)


def _width(*shifted: NDArray[np.uint8]) -> float:
    near, near_back, far, far_back = shifted
    short = cv2.norm(near, near_back, cv2.NORM_L2SQR) / near.size
    long = cv2.norm(far, far_back, cv2.NORM_L2SQR) / far.size
    if short <= 0.0:
        return 0.0
    return float(min(long / short * NEAR_PX**2 / FAR_PX, FAR_PX))


def detected_noise(edges_px: float) -> float:
    """How many times as far as in a sharp image features err that are detected."""
    return max(1.0, edges_px / SHARP_PX) ** POWER


def followed_noise(edges_px: float) -> float:
    """The same of features that are followed from, through or into such an image."""
    return max(1.0, edges_px / SHARP_TO_FLOW_PX)
