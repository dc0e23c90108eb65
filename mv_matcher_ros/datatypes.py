# SPDX-License-Identifier: Apache-2.0
"""The data that flows between the stages: frozen, typed, with shapes, units and frames stated.

Conventions (docs/conventions.md): a transform `target_from_source` maps points of `source` to
`target`; a pixel's centre has integer coordinates, so the centre of the top-left pixel is (0, 0);
optical frames have x right, y down, z forward; stamps are integer nanoseconds; views are a
dimension, never a suffix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mv_matcher_ros.errors import CalibrationError

DistortionModel = Literal['pinhole', 'radtan', 'rational', 'equidistant']
Sensor = Literal['mono', 'stereo', 'rgbd']
Array = NDArray[np.float64]

# Number of coefficients each model takes, in OpenCV's order; fewer are filled up with zeros.
DISTORTION_SIZE: dict[str, int] = {'pinhole': 0, 'radtan': 5, 'rational': 8, 'equidistant': 4}

# No camera has more pixels in a row or a column; what says so is damaged.
LONGEST_SIDE = 65535
# Stereo pairs of a rig at most.
MOST_PAIRS = 4

# Axes of REP-103 (x forward, y left, z up) seen from an optical frame (x right, y down,
# z forward).
REP103_FROM_OPTICAL = np.array(
    [[0.0, 0.0, 1.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
)
REP103_FROM_OPTICAL.setflags(write=False)


class Status(str, Enum):
    """Tracking state of an engine. Failure is a value: it is said here, never hidden in a pose."""

    INITIALISING = 'INITIALISING'  # no pose yet: waiting for texture, parallax, a second view
    TRACKING = 'TRACKING'  # the pose is measured
    DEGRADED = (
        'DEGRADED'  # measured from little, or coasting on the motion model for a short while
    )
    LOST = 'LOST'  # no pose: beyond the coasting limit
    RELOCALISED = 'RELOCALISED'  # first measured pose after LOST


@dataclass(frozen=True)
class Camera:
    """One calibrated camera of a rig.

    Attributes:
        width, height: image size in pixels that `intrinsics` belong to.
        intrinsics: (fx, fy, cx, cy) in pixels, pixel centres at integers.
        model: distortion model. `radtan` is OpenCV's k1 k2 p1 p2 k3 (plumb_bob), `rational` adds
            k4 k5 k6 (rational_polynomial), `equidistant` is Kannala-Brandt k1..k4 (fisheye).
        distortion: coefficients in OpenCV's order, empty for `pinhole`.
        body_from_camera: (4, 4) pose of the optical frame in the body frame, metres.
        name: how messages to the user call it, e.g. `left` or a topic.

    Raises:
        CalibrationError: if a value cannot belong to a calibrated camera (fx = 0, wrong count, not
            a rotation).
    """

    width: int
    height: int
    intrinsics: tuple[float, float, float, float]
    model: DistortionModel = 'pinhole'
    distortion: tuple[float, ...] = ()
    body_from_camera: Array = field(default_factory=lambda: np.eye(4))
    name: str = 'camera'

    def __post_init__(self) -> None:
        if not (0 < self.width <= LONGEST_SIDE and 0 < self.height <= LONGEST_SIDE):
            fault = (
                'larger than images get' if min(self.width, self.height) > 0 else 'not positive'
            )
            raise CalibrationError(
                f'{self.name}: image size {self.width}x{self.height} is {fault}'
            )
        fx, fy, cx, cy = self.intrinsics
        if not (fx > 0 and fy > 0 and np.isfinite([fx, fy, cx, cy]).all()):
            raise CalibrationError(
                f'{self.name}: not calibrated (fx={fx:g}, fy={fy:g}, cx={cx:g}, cy={cy:g}); '
                f'calibrate the camera first'
            )
        if self.model not in DISTORTION_SIZE:
            raise CalibrationError(
                f'{self.name}: distortion model "{self.model}" is unknown; '
                f'known: {", ".join(DISTORTION_SIZE)}'
            )
        if not np.isfinite(self.distortion).all():
            raise CalibrationError(f'{self.name}: a distortion coefficient is not finite')
        size = DISTORTION_SIZE[self.model]
        if len(self.distortion) > size and any(self.distortion[size:]):
            raise CalibrationError(
                f'{self.name}: {len(self.distortion)} distortion coefficients, '
                f'but "{self.model}" has {size}'
            )
        padded = tuple(float(c) for c in self.distortion[:size]) + (0.0,) * (
            size - len(self.distortion)
        )
        pose = np.array(self.body_from_camera, dtype=np.float64)
        if (
            pose.shape != (4, 4)
            or not np.isfinite(pose).all()
            or not np.allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-4)
        ):
            raise CalibrationError(f'{self.name}: body_from_camera is not a 4x4 rigid transform')
        pose.setflags(write=False)
        object.__setattr__(self, 'distortion', padded)
        object.__setattr__(self, 'body_from_camera', pose)

    @property
    def matrix(self) -> Array:
        """(3, 3) pinhole matrix K."""
        fx, fy, cx, cy = self.intrinsics
        return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])

    @property
    def focal_px(self) -> float:
        """Mean focal length in pixels: turns pixels into units of the normalised image plane."""
        return 0.5 * (self.intrinsics[0] + self.intrinsics[1])

    def resized(self, width: int, height: int) -> Camera:
        """The same camera for an image scaled to `width` x `height`, pixel centres at integers."""
        sx, sy = width / self.width, height / self.height
        fx, fy, cx, cy = self.intrinsics
        # A centre-at-integer coordinate x lies at x + 0.5 from the image border, and the border
        # scales.
        scaled = (fx * sx, fy * sy, (cx + 0.5) * sx - 0.5, (cy + 0.5) * sy - 0.5)
        return Camera(
            width, height, scaled, self.model, self.distortion, self.body_from_camera, self.name
        )


@dataclass(frozen=True)
class Rig:
    """The cameras of a robot and the body frame they are mounted on.

    Attributes:
        cameras: one (mono, RGB-D) or two (stereo: left, right), or two for each of several
            stereo pairs, one pair after the other.
        body_axes: `optical`: the body is the first camera's optical frame (nothing else is known),
            and odom starts with REP-103 axes seen from it, the first camera taken as level;
            `rep103`: the body has axes of its own (base_link, an IMU), and odom starts equal to
            the first body frame.
    """

    cameras: tuple[Camera, ...]
    body_axes: Literal['optical', 'rep103'] = 'optical'

    @property
    def odom_from_first_body(self) -> Array:
        """(4, 4) pose given to the first body frame."""
        return REP103_FROM_OPTICAL.copy() if self.body_axes == 'optical' else np.eye(4)

    @property
    def baseline_m(self) -> float:
        """Distance of the first two cameras in metres, 0 for one camera."""
        if len(self.cameras) < 2:
            return 0.0
        a, b = (camera.body_from_camera[:3, 3] for camera in self.cameras[:2])
        return float(np.linalg.norm(a - b))

    def pair(self, number: int) -> Rig:
        """One stereo pair of several, on the same body."""
        return replace(self, cameras=self.cameras[2 * number : 2 * number + 2])


def rig_as_read(cameras: Sequence[Camera], body_axes: str) -> Rig:
    """The rig that a map or a message describes.

    Args:
        cameras: of the rig.
        body_axes: of `Rig`.

    Raises:
        ValueError: no rig has so many cameras, or there are no such axes.
    """
    pairs = len(cameras) % 2 == 0 and 1 <= len(cameras) // 2 <= MOST_PAIRS
    if not (len(cameras) == 1 or pairs) or body_axes not in ('optical', 'rep103'):
        raise ValueError(f'{len(cameras)} cameras on a body with axes "{body_axes}"')
    return Rig(tuple(cameras), body_axes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class View:
    """One image of one camera.

    Attributes:
        image: (H, W) uint8 grey or (H, W, 3) uint8 BGR, read-only where it can be.
        depth: (H, W) float32 metres along the optical axis, registered to `image`; 0 or NaN where
            unknown.
        mask: (H, W) bool, True where features may lie; None means everywhere.
    """

    image: NDArray[np.uint8]
    depth: NDArray[np.float32] | None = None
    mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Frame:
    """What all cameras saw at one time: one view, or for stereo two a pair (left, right)."""

    stamp_ns: int
    views: tuple[View, ...]
    index: int = 0  # position in the recording, for messages and file names
    # (4, 4) pose of the body by something else (wheel odometry), in metres, in a frame of its own
    # that does not jump: only differences count.
    guess: Array | None = None


@dataclass(frozen=True)
class Features:
    """Keypoints of one image. N may be zero.

    Attributes:
        keypoints_xy: (N, 2) float32 pixels, centres at integers, in the image as given to the
            detector.
        descriptors: (N, D) float32, unit length (binary ones: uint8 of D bytes).
        scores: (N,) float32 detection scores, higher is better.
        sigma_px: (N,) float32 expected localisation error, standard deviation in pixels.
        image_size: (width, height) in pixels.
    """

    keypoints_xy: torch.Tensor
    descriptors: torch.Tensor
    scores: torch.Tensor
    sigma_px: torch.Tensor
    image_size: tuple[int, int]

    def __len__(self) -> int:
        return int(self.keypoints_xy.shape[0])

    def chosen(self, chosen: torch.Tensor) -> Features:
        """The features that a (N,) mask or (K,) index chooses."""
        return replace(
            self,
            keypoints_xy=self.keypoints_xy[chosen],
            descriptors=self.descriptors[chosen],
            scores=self.scores[chosen],
            sigma_px=self.sigma_px[chosen],
        )

    def noisier(self, factor: float) -> Features:
        """The same, expected to err `factor` times as far."""
        return self if factor == 1.0 else replace(self, sigma_px=self.sigma_px * factor)


@dataclass(frozen=True)
class Matches:
    """Matches between V views, any number per pair; M may be zero.

    Attributes:
        views: (M, 2) int64, indices a < b of the two views.
        keypoints: (M, 2) int64, keypoint index in view a and in view b.
        confidence: (M,) float32 in [0, 1].
    """

    views: torch.Tensor
    keypoints: torch.Tensor
    confidence: torch.Tensor

    def __len__(self) -> int:
        return int(self.confidence.shape[0])

    def pair(self, a: int, b: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(K, 2) keypoint indices and (K,) confidences of views a < b."""
        chosen = (self.views[:, 0] == a) & (self.views[:, 1] == b)
        return self.keypoints[chosen], self.confidence[chosen]


@dataclass(frozen=True)
class TrackView:
    """What a picture of the tracks needs, for one image: drawn by the report and the debug topic.

    Attributes:
        keypoints_xy: (N, 2) float32 pixels of the keypoints tracked in this frame.
        previous_xy: (N, 2) float32 pixels of the same tracks in the last keyframe, NaN where
            unseen.
        inlier: (N,) bool, agreed with the pose.
        length: (N,) int64 number of keyframes that saw the track.
    """

    keypoints_xy: NDArray[np.float32]
    previous_xy: NDArray[np.float32]
    inlier: NDArray[np.bool_]
    length: NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """What an engine says about one frame.

    Attributes:
        stamp_ns: stamp of the frame.
        status: tracking state after this frame.
        odom_from_body: (4, 4) pose, or None when it is not known (INITIALISING, LOST).
        covariance: (6, 6) of the pose, order x y z rx ry rz, axes fixed in odom (REP-103), m and
            rad; None without pose.
        twist: (6,) vx vy vz wx wy wz in the body frame, m/s and rad/s, or None.
        twist_covariance: (6, 6) in the body frame, or None.
        metric: True if lengths are metres; False for mono, whose scale is arbitrary.
        is_keyframe: True if the frame became a keyframe.
        message: one line saying why the status is not TRACKING, or what changed (a scale break);
            empty otherwise.
        started_by: what the poses of a map that begins with this frame come from: depth,
            or the methods of the pairs of views; empty otherwise.
        counts: features, matches, inliers, landmarks, keyframes, …
        latency_ms: time of each stage.
        tracks: for drawing, first view.
        landmarks: (P, 3) float32 local map in odom, for drawing; None unless it changed.
        keyframes: (K, 4, 4) odom_from_body of the keyframes of the window, with `landmarks`.
    """

    stamp_ns: int
    status: Status
    odom_from_body: Array | None = None
    covariance: Array | None = None
    twist: Array | None = None
    twist_covariance: Array | None = None
    metric: bool = False
    is_keyframe: bool = False
    message: str = ''
    started_by: str = ''
    counts: Mapping[str, int] = field(default_factory=dict)
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    tracks: TrackView | None = None
    landmarks: NDArray[np.float32] | None = None
    keyframes: Array | None = None


@dataclass(frozen=True)
class Trajectory:
    """Poses over time.

    Attributes:
        stamps_ns: (N,) int64, strictly increasing.
        world_from_body: (N, 4, 4) float64, metres.
        covariances: (N, 6, 6) as in `Estimate.covariance`, or None.
    """

    stamps_ns: NDArray[np.int64]
    world_from_body: Array
    covariances: Array | None = None

    def __len__(self) -> int:
        return int(self.stamps_ns.shape[0])
