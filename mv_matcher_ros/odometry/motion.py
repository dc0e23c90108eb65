# SPDX-License-Identifier: Apache-2.0
"""How the body is thought to move: constant velocity, its bounds, continuity of the output."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mv_matcher_ros.config import TrackingSettings
from mv_matcher_ros.geometry import se3

# Share of the new velocity in the filtered one: the guess must follow, the twist must not rattle.
VELOCITY_BLEND = 0.7
# Uncertainty of the constant-velocity model: accelerations of a hand-held or driven camera.
ACCELERATION_SIGMA = (2.0, 2.0)  # m/s², rad/s²

# After LOST the published pose catches up by this share of the body's own motion, and the
# remaining offset shrinks by this share a second even when the body stands still.
CATCH_UP = 0.5
DECAY_PER_S = 0.1
# Farther at once than this many times the motion that was expected, and this (m, rad) besides, is
# a correction, not a motion: handed out in the same way, and no velocity, unless the next step is
# like it, but for this share.
FASTEST = 2.0
AT_ONCE = (0.05, 0.05)
ALIKE = 0.5
# A unit of a map without metric scale, which is how far away things were when it began, counts as
# so many metres.
UNIT_M = 2.0


@dataclass(frozen=True)
class Motion:
    """Last known pose and body velocity.

    Attributes:
        stamp_ns: time of the pose.
        world_from_body: (4, 4) float64.
        velocity: (6,) float64 tangent per second [v, w] in the body frame, or None before two
            poses are known.
        metric: lengths are metres; without, a unit is taken for `UNIT_M`.
        doubted: (6,) velocity of the last step, which was no motion of a body that had `velocity`;
            None when it was one.
    """

    stamp_ns: int
    world_from_body: Tensor
    velocity: Tensor | None = None
    metric: bool = True
    doubted: Tensor | None = None

    @property
    def speed(self) -> float:
        """Linear speed, units of length per second."""
        return 0.0 if self.velocity is None else float(self.velocity[:3].norm())

    @property
    def turn_rate(self) -> float:
        """Angular speed in rad/s."""
        return 0.0 if self.velocity is None else float(self.velocity[3:].norm())

    def predict(self, stamp_ns: int) -> Tensor:
        """(4, 4) pose at `stamp_ns` with constant body velocity."""
        if self.velocity is None:
            return self.world_from_body
        return self.world_from_body @ se3.exp(self.velocity * seconds(stamp_ns - self.stamp_ns))

    def measured(self, stamp_ns: int, world_from_body: Tensor) -> Motion:
        """The motion after a pose was measured at a later time.

        A step that no body can have made corrects the pose, and says nothing of the velocity
        until a second one confirms it.
        """
        elapsed = seconds(stamp_ns - self.stamp_ns)
        here = replace(self, stamp_ns=stamp_ns, world_from_body=world_from_body, doubted=None)
        if elapsed <= 0.0:
            return here
        velocity = se3.log(se3.inverse(self.world_from_body) @ world_from_body) / elapsed
        if self.velocity is None:
            return replace(here, velocity=velocity)
        before = self.velocity
        if _beyond(velocity * elapsed, FASTEST * before, elapsed, self.metric):
            if not self._confirmed(velocity, elapsed):
                return replace(here, doubted=velocity)
            assert self.doubted is not None
            before = self.doubted
        return replace(here, velocity=VELOCITY_BLEND * velocity + (1.0 - VELOCITY_BLEND) * before)

    def _confirmed(self, velocity: Tensor, elapsed_s: float) -> bool:
        if self.doubted is None:
            return False
        difference = (velocity - self.doubted) * elapsed_s
        return not _beyond(difference, ALIKE * self.doubted, elapsed_s, self.metric)

    def corrected(self, world_from_body: Tensor) -> Motion:
        """The same time and velocity at a refined pose."""
        return replace(self, world_from_body=world_from_body)


def seconds(nanoseconds: int) -> float:
    """Nanoseconds as seconds."""
    return nanoseconds * 1e-9


def plausible(
    previous: Tensor, current: Tensor, elapsed_s: float, bounds: TrackingSettings, metric: bool
) -> bool:
    """Whether a body can have moved so between two poses.

    Without metric scale only the rotation is judged.
    """
    step = se3.log(se3.inverse(previous) @ current)
    if float(step[3:].norm()) > math.radians(bounds.max_rotation_dps) * max(
        elapsed_s, 1e-3
    ) + math.radians(5.0):
        return False
    return (
        not metric or float(step[:3].norm()) <= bounds.max_speed_mps * max(elapsed_s, 1e-3) + 0.05
    )


def _beyond(step: Tensor, velocity: Tensor, elapsed_s: float, metric: bool) -> bool:
    """Whether a step (6,) is longer than a velocity (6,), an acceleration, and what may be off at
    once explain, in its linear or in its angular part."""
    unit_m = 1.0 if metric else UNIT_M
    return any(
        float(step[part].norm())
        > elapsed_s * float(velocity[part].norm())
        + (at_once + 0.5 * acceleration * elapsed_s**2) / unit
        for part, at_once, acceleration, unit in zip(
            (slice(0, 3), slice(3, 6)), AT_ONCE, ACCELERATION_SIGMA, (unit_m, 1.0), strict=True
        )
    )


class Continuity:
    """Keeps the published pose continuous while the estimate behind it may be corrected.

    After LOST the recovered pose can differ from the last published one, and so can one that a
    new keyframe has mended after poor images. `odom` must not jump (REP-105), so the difference is
    handed out in steps no longer than the body could have moved: in its place and in its attitude
    each by itself, for a body that turns must not swing what it is behind by.

    Args:
        metric: lengths are metres; without, they are taken for `UNIT_M`.
    """

    def __init__(self, metric: bool = True) -> None:
        self._metric = metric
        self._shift: Tensor | None = None  # (3,) of the published position, in odom
        self._turn: Tensor | None = None  # (3,) published attitude = estimated · exp(turn)
        self._last: Tensor | None = None

    def rebase(self, estimated: Tensor) -> None:
        """The next published pose continues from the last one, wherever `estimated` is."""
        if self._last is not None:
            self._shift = self._last[:3, 3] - estimated[:3, 3]
            self._turn = se3.log(se3.inverse(estimated) @ self._last)[3:]

    def publish(
        self,
        estimated: Tensor,
        motion: Motion,
        elapsed_s: float,
        expected: Tensor | None = None,
    ) -> Tensor:
        """(4, 4) pose to publish for an estimate; the offset shrinks with the motion of the body.

        What is published moves by the body's own motion and at most `CATCH_UP` of it more.

        Args:
            estimated: (4, 4); motion: that led to it; elapsed_s: since the last one.
            expected: (6,) velocity of the body before it was measured; None if not known.
        """
        self._shift = _shrunk(self._shift, motion.speed, elapsed_s)
        self._turn = _shrunk(self._turn, motion.turn_rate, elapsed_s)
        published = self._displaced(estimated)
        if expected is not None and self._jumps(published, expected, elapsed_s):
            assert self._last is not None
            self._last = published = se3.normalise(self._last @ se3.exp(expected * elapsed_s))
            self.rebase(estimated)
        self._last = published
        return published

    def _displaced(self, estimated: Tensor) -> Tensor:
        published = estimated
        if self._turn is not None:
            published = published @ se3.exp(torch.cat([torch.zeros_like(self._turn), self._turn]))
        if self._shift is not None:
            published = published.clone()
            published[:3, 3] += self._shift
        return published

    def _jumps(self, published: Tensor, expected: Tensor, elapsed_s: float) -> bool:
        """Whether no body that moved as expected can have come there from the last pose."""
        if self._last is None:
            return False
        step = se3.log(se3.inverse(self._last) @ published)
        return _beyond(step, FASTEST * expected, elapsed_s, self._metric)

    @property
    def covariance(self) -> Tensor:
        """(6, 6) of what is published: it is wrong by what is not handed out yet, and says so."""
        variances = [
            0.0 if part is None else float(part.square().sum())
            for part in (self._shift, self._turn)
        ]
        return torch.diag(torch.tensor(variances, dtype=torch.float64).repeat_interleave(3))

    @property
    def last(self) -> Tensor | None:
        """The last published pose."""
        return self._last


def _shrunk(offset: Tensor | None, rate: float, elapsed_s: float) -> Tensor | None:
    """What is left of it after a body moved at this rate for so long; None for nothing."""
    if offset is None:
        return None
    size = float(offset.norm())
    step = (CATCH_UP * rate + DECAY_PER_S * size) * elapsed_s
    return offset * (1.0 - step / size) if size - step > 1e-6 * size else None


def coasting_covariance(elapsed_s: float) -> Tensor:
    """(6, 6) growth of the pose covariance over `elapsed_s` of constant velocity: σ = ½ a t²."""
    linear, angular = (0.5 * a * elapsed_s * elapsed_s for a in ACCELERATION_SIGMA)
    return torch.diag(torch.tensor([linear**2] * 3 + [angular**2] * 3, dtype=torch.float64))
