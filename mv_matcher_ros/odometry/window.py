# SPDX-License-Identifier: Apache-2.0
"""The state of the estimator: keyframes, the landmarks they see, a prior from those that left."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from mv_matcher_ros.geometry.reprojection import PosePrior, Problem
from mv_matcher_ros.models.learned_matcher import SeenView
from mv_matcher_ros.odometry.observation import Observation


@dataclass
class Keyframe:
    """A frame that stays in the window.

    Attributes:
        observation: its features, with depth.
        world_from_body: (4, 4) float64 pose, refined as long as it is in the window.
        landmark: (N,) int64, row of the landmark each feature sees, −1 for none.
        weight: (N,) float64 confidence of the match that says so, 1 where it came without one;
            residuals are multiplied by it.
        seen: what the streaming matcher keeps of it, of each seeing camera.
        reported: its record has been made.
    """

    observation: Observation
    world_from_body: Tensor
    landmark: Tensor
    weight: Tensor
    seen: tuple[SeenView, ...] | None = None
    reported: bool = False

    @classmethod
    def of(cls, observation: Observation, world_from_body: Tensor) -> Keyframe:
        """A keyframe whose features see no landmark yet."""
        nothing = torch.full((len(observation),), -1, dtype=torch.int64)
        weight = torch.ones(len(observation), dtype=torch.float64)
        return cls(observation, world_from_body, nothing, weight)

    def feature_of_landmark(self, count: int, camera: int = 0) -> Tensor:
        """(count,) int64 feature of one camera that sees each of `count` landmark rows, or −1."""
        place = torch.full((count,), -1, dtype=torch.int64)
        seen = ((self.landmark >= 0) & (self.observation.camera == camera)).nonzero()[:, 0]
        place[self.landmark[seen]] = seen
        return place


@dataclass
class Landmarks:
    """Points of the window as rows of parallel arrays.

    Attributes:
        position: (P, 3) float64 in the world of the window.
        covariance: (P, 3, 3) float64 of the position, the poses taken as known.
        descriptor: (P, D) float32 of the newest keyframe that saw it.
        alive: (P,) bool; dead rows stay until the next compaction so that row numbers hold.
        seen: (P,) int64 number of keyframes that see it; a camera each, where several do.
        sought: (P,) bool, every keyframe but the newest has been searched for it.
        identity: (P,) int64, a number that no other landmark of this map has had; rows change.
    """

    position: Tensor = field(default_factory=lambda: torch.zeros(0, 3, dtype=torch.float64))
    covariance: Tensor = field(default_factory=lambda: torch.zeros(0, 3, 3, dtype=torch.float64))
    descriptor: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    alive: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    seen: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    sought: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    identity: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    made: int = 0  # so many landmarks have been, also those that are gone

    def __len__(self) -> int:
        return int(self.position.shape[0])

    @classmethod
    def nowhere(cls) -> Landmarks:
        """One dead row: what features without landmark point to."""
        nothing = cls()
        nothing.add(torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, 0))
        nothing.alive[:] = False
        return nothing

    def add(self, position: Tensor, descriptor: Tensor) -> Tensor:
        """Append K landmarks; returns their (K,) rows."""
        rows = torch.arange(len(self), len(self) + len(position))
        self.position = torch.cat([self.position, position])
        unknown = torch.zeros(len(position), 3, 3, dtype=torch.float64)
        self.covariance = torch.cat([self.covariance, unknown])
        self.descriptor = (
            torch.cat([self.descriptor, descriptor])
            if len(self.descriptor)
            else descriptor.clone()
        )
        self.alive = torch.cat([self.alive, torch.ones(len(position), dtype=torch.bool)])
        self.seen = torch.cat([self.seen, torch.zeros(len(position), dtype=torch.int64)])
        self.sought = torch.cat([self.sought, torch.zeros(len(position), dtype=torch.bool)])
        numbers = torch.arange(self.made, self.made + len(position))
        self.identity = torch.cat([self.identity, numbers])
        self.made += len(position)
        return rows


@dataclass(frozen=True)
class FlatObservations:
    """All observations of landmarks by keyframes, flat.

    Attributes:
        keyframe, feature, landmark: (O,) int64.
        camera: (O,) int64, which of the seeing cameras.
        measured: (O, 3) x/z, y/z, 1/z (0 where unknown).
        sqrt_information: (O, 3), 0 for an unknown depth; the weight is in it.
        weight: (O,) confidence.
    """

    keyframe: Tensor
    feature: Tensor
    landmark: Tensor
    camera: Tensor
    measured: Tensor
    sqrt_information: Tensor
    weight: Tensor

    def chosen(self, which: Tensor) -> FlatObservations:
        """Those of a (O,) mask."""
        return FlatObservations(*(getattr(self, field.name)[which] for field in fields(self)))


class Window:
    """Keyframes in order of time and their landmarks. Holds data; decides nothing."""

    def __init__(self) -> None:
        self.keyframes: list[Keyframe] = []
        self.landmarks = Landmarks()
        self.prior: PosePrior | None = None

    def poses(self) -> Tensor:
        """(V, 4, 4) world_from_body of the keyframes."""
        return torch.stack([keyframe.world_from_body for keyframe in self.keyframes])

    def flat_observations(self) -> FlatObservations:
        """Every (keyframe, feature) that sees a living landmark."""
        parts = []
        for number, keyframe in enumerate(self.keyframes):
            seen = (keyframe.landmark >= 0).nonzero()[:, 0]
            measured, information = measurements(keyframe.observation)
            weight = keyframe.weight[seen]
            parts.append((
                torch.full_like(seen, number),
                seen,
                keyframe.landmark[seen],
                keyframe.observation.camera[seen],
                measured[seen],
                information[seen] * weight[:, None],
                weight,
            ))  # fmt: skip
        return FlatObservations(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def count_seen(self) -> None:
        """Recount how many keyframes see each landmark, and let go of those that none sees."""
        seen = torch.zeros(len(self.landmarks), dtype=torch.int64)
        for keyframe in self.keyframes:
            rows = keyframe.landmark[keyframe.landmark >= 0]
            seen.index_add_(0, rows, torch.ones_like(rows))
            keyframe.weight[keyframe.landmark < 0] = 1.0  # what comes next brings its own
        self.landmarks.seen = seen
        self.landmarks.alive &= seen > 0

    def forget(self, dead: Tensor) -> None:
        """Remove landmarks (P,) bool and every observation of them."""
        self.landmarks.alive &= ~dead
        for keyframe in self.keyframes:
            sees = keyframe.landmark >= 0
            gone = sees & dead[keyframe.landmark.clamp_min(0)]
            keyframe.landmark = torch.where(gone, -1, keyframe.landmark)

    def compact(self) -> Tensor:
        """Drop dead rows; returns (P,) int64 new row of each old one, −1 for dropped ones."""
        alive = self.landmarks.alive
        new_row = torch.where(alive, torch.cumsum(alive, 0) - 1, -1)
        for keyframe in self.keyframes:
            sees = keyframe.landmark >= 0
            keyframe.landmark = torch.where(sees, new_row[keyframe.landmark.clamp_min(0)], -1)
        kept = self.landmarks
        self.landmarks = Landmarks(
            kept.position[alive],
            kept.covariance[alive],
            kept.descriptor[alive],
            torch.ones(int(alive.sum()), dtype=torch.bool),
            kept.seen[alive],
            kept.sought[alive],
            kept.identity[alive],
            kept.made,
        )
        return new_row

    def problem(
        self,
        camera_from_body: Tensor,
        fixed: Tensor,
        kernel: str,
        width: float,
        flat: FlatObservations,
    ) -> Problem:
        """Bundle adjustment over the whole window (batch of one), seen by K cameras (K, 4, 4)."""
        return Problem(
            self.poses()[None],
            self.landmarks.position[None],
            flat.keyframe[None],
            flat.landmark[None],
            flat.measured[None],
            flat.sqrt_information[None],
            fixed[None],
            camera_from_body=camera_from_body[None],
            camera_index=flat.camera[None],
            prior=self.prior,
            kernel=kernel,  # type: ignore[arg-type]
            kernel_width=width,
        )


def measurements(observation: Observation) -> tuple[Tensor, Tensor]:
    """(N, 3) x/z, y/z, 1/z and (N, 3) square-root information; an unknown depth has neither."""
    known = observation.inverse_depth.isfinite()
    inverse = torch.where(known, observation.inverse_depth, 0.0)
    measured = torch.cat([observation.plane_xy, inverse[:, None]], dim=1)
    image = (1.0 / observation.sigma)[:, None].expand(-1, 2)
    depth = torch.where(known, 1.0 / observation.inverse_depth_sigma, 0.0)[:, None]
    return measured, torch.cat([image, depth], dim=1)
