# SPDX-License-Identifier: Apache-2.0
"""Smooth ways of a body through a world: the pose at any time, with continuous velocities.

A body has REP-103 axes (x forward, y left, z up); the camera is mounted on it by
`body_from_camera`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.errors import GeometryError

# The pose at times in seconds: (N,) to (N, 4, 4) world_from_body, metres.
Path = Callable[[Array], Array]


def pose_matrices(position: Array, roll_pitch_yaw: Array) -> Array:
    """(N, 4, 4) poses from (N, 3) metres and (N, 3) rad: R = Rz(yaw) Ry(pitch) Rx(roll)."""
    (cr, cp, cy), (sr, sp, sy) = np.cos(roll_pitch_yaw).T, np.sin(roll_pitch_yaw).T
    poses = np.tile(np.eye(4), (len(position), 1, 1))
    poses[:, 0, :3] = np.stack([cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr], 1)
    poses[:, 1, :3] = np.stack([sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr], 1)
    poses[:, 2, :3] = np.stack([-sp, cp * sr, cp * cr], 1)
    poses[:, :3, 3] = position
    return poses


def periodic_spline(values: Array) -> Array:
    """Control points (N, D) of the closed uniform cubic B-spline through `values` (N, D).

    Interpolation is the circulant system (c[i-1] + 4 c[i] + c[i+1]) / 6 = value, diagonal under
    the Fourier transform (Unser, Splines: a perfect fit, 1999).
    """
    n = len(values)
    response = 2.0 / 3.0 + np.cos(2.0 * np.pi * np.arange(n) / n) / 3.0
    return np.fft.ifft(np.fft.fft(values, axis=0) / response[:, None], axis=0).real


def evaluate_spline(control: Array, at: Array) -> Array:
    """(M, D) values of the closed uniform cubic B-spline of `control` (N, D) at (M,) places."""
    whole = np.floor(at).astype(np.int64)
    t = (at - whole)[:, None]
    n = len(control)
    before, here, after, last = (control[(whole + k) % n] for k in (-1, 0, 1, 2))
    return (
        before * (1 - t) ** 3
        + here * (3 * t**3 - 6 * t**2 + 4)
        + after * (-3 * t**3 + 3 * t**2 + 3 * t + 1)
        + last * t**3
    ) / 6.0


@dataclass(frozen=True)
class Loop:
    """Round after round along a closed curve at even speed, looking ahead; C2.

    Attributes:
        control: (K, 4) spline of x, y, z and yaw less its winding.
        length_m: one round.
        speed_m_s: along the curve.
        winding_rad: change of yaw in one round, ±2 pi or 0.
    """

    control: Array
    length_m: float
    speed_m_s: float
    winding_rad: float

    @classmethod
    def through(
        cls, corners: Array, height_m: float, speed_m_s: float, look_to_side_rad: float = 0.0
    ) -> Loop:
        """Loop along the smooth closed curve that has `corners` (N, 2) as its control polygon.

        Args:
            corners: metres; the curve starts near the first and rounds the others off.
            height_m: of the body.
            speed_m_s: along the curve.
            look_to_side_rad: how far to the left of the direction of travel the body faces.

        Raises:
            GeometryError: fewer than four corners, or a speed that is not positive.
        """
        corners = np.asarray(corners, np.float64)
        if len(corners) < 4 or speed_m_s <= 0:
            raise GeometryError('loop: want four corners or more, and a positive speed')
        dense = evaluate_spline(corners, np.linspace(0, len(corners), 8192, endpoint=False))
        steps = np.linalg.norm(np.diff(dense, axis=0, append=dense[:1]), axis=1)
        travelled = np.concatenate([[0.0], np.cumsum(steps)])
        length = float(travelled[-1])
        # Knots at even distances make the speed even; 64 or more keep the curve's shape.
        knots = max(64, round(length / 0.25))
        at = np.interp(
            np.arange(knots) * length / knots, travelled, np.linspace(0, len(corners), 8193)
        )
        xy = evaluate_spline(corners, at)
        tangent = np.roll(xy, -1, 0) - np.roll(xy, 1, 0)
        yaw = np.unwrap(np.arctan2(tangent[:, 1], tangent[:, 0]))
        turn = np.arctan2(tangent[0, 1], tangent[0, 0]) - yaw[-1]
        winding = float(2 * np.pi * np.round((yaw[-1] - yaw[0] + _wrap(turn)) / (2 * np.pi)))
        yaw = yaw - winding * np.arange(knots) / knots + look_to_side_rad
        values = np.column_stack([xy, np.full(knots, height_m), yaw])
        return cls(periodic_spline(values), length, speed_m_s, winding)

    @property
    def round_s(self) -> float:
        """Time of one round in seconds."""
        return self.length_m / self.speed_m_s

    def __call__(self, time_s: Array) -> Array:
        rounds = np.asarray(time_s, np.float64) / self.round_s
        knots = len(self.control)
        values = evaluate_spline(self.control, (rounds - np.floor(rounds)) * knots % knots)
        zero = np.zeros(len(rounds))
        yaw = values[:, 3] + self.winding_rad * rounds
        return pose_matrices(values[:, :3], np.stack([zero, zero, yaw], 1))


def _wrap(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


@dataclass(frozen=True)
class Straight:
    """Even motion: a body that stands still, creeps, drives straight or turns on the spot.

    Attributes:
        position: (3,) at time 0, metres.
        roll_pitch_yaw: (3,) at time 0, rad.
        velocity: (3,) m/s in the world.
        rates: (3,) rad/s of roll, pitch, yaw.
    """

    position: tuple[float, float, float]
    roll_pitch_yaw: tuple[float, float, float] = (0.0, 0.0, 0.0)
    velocity: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rates: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __call__(self, time_s: Array) -> Array:
        time = np.asarray(time_s, np.float64)[:, None]
        return pose_matrices(
            np.array(self.position) + time * np.array(self.velocity),
            np.array(self.roll_pitch_yaw) + time * np.array(self.rates),
        )


@dataclass(frozen=True)
class Shaken:
    """Another path with the unrest of a hand or a wheel added: sums of sines, so it is smooth.

    Attributes:
        path: the steady path.
        translation_m: standard deviation of the added translation, each axis.
        rotation_rad: standard deviation of the added rotation, each axis.
        seed: of frequencies and phases.
        band_hz: slowest and fastest component; amplitudes fall with frequency.
    """

    path: Path
    translation_m: float
    rotation_rad: float
    seed: int = 0
    band_hz: tuple[float, float] = (0.3, 3.0)

    def __call__(self, time_s: Array) -> Array:
        time = np.asarray(time_s, np.float64)
        rng = np.random.default_rng(self.seed)
        count = 6
        frequency = np.geomspace(*self.band_hz, count)[None] * rng.uniform(0.8, 1.25, (6, count))
        phase = rng.uniform(0, 2 * np.pi, (6, count))
        amplitude = 1.0 / frequency
        amplitude *= np.sqrt(2.0 / (amplitude**2).sum(1, keepdims=True))
        waves = np.sin(2 * np.pi * frequency * time[:, None, None] + phase)
        shake = (amplitude * waves).sum(2)
        added = pose_matrices(self.translation_m * shake[:, :3], self.rotation_rad * shake[:, 3:])
        return self.path(time) @ added


def rectangle(half_x: float, half_y: float, rounding_m: float, step_m: float = 0.5) -> Array:
    """(N, 2) corners for `Loop.through`: a rectangle, counter-clockwise from its lower middle.

    Args:
        half_x, half_y: half its sides, metres.
        rounding_m: radius of its corners.
        step_m: distance of neighbouring points.

    Raises:
        GeometryError: the corners do not fit in.
    """
    if not 0 < rounding_m <= min(half_x, half_y):
        raise GeometryError(f'rectangle: corners of {rounding_m:g} m do not fit in')
    angle = np.linspace(-np.pi / 2, 0, 24)
    arc = rounding_m * np.stack([np.cos(angle), np.sin(angle)], 1)
    inner_x, inner_y = half_x - rounding_m, half_y - rounding_m
    outline = [np.array([(0.0, -half_y)])]
    for quarter, (sx, sy) in enumerate(((1, -1), (1, 1), (-1, 1), (-1, -1))):
        c, s = np.cos(quarter * np.pi / 2), np.sin(quarter * np.pi / 2)
        outline.append(arc @ np.array([[c, s], [-s, c]]) + (sx * inner_x, sy * inner_y))
    outline.append(outline[0])
    points = np.concatenate(outline)
    travelled = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    count = max(8, round(travelled[-1] / step_m))
    at = np.arange(count) * travelled[-1] / count
    return np.stack([np.interp(at, travelled, points[:, i]) for i in (0, 1)], 1)
