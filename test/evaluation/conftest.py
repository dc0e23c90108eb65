# SPDX-License-Identifier: Apache-2.0
"""Trajectories with known answers, and a run folder written the way a run writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import (
    Array,
    Camera,
    Estimate,
    Frame,
    Rig,
    Status,
    TrackView,
    Trajectory,
    View,
)
from mv_matcher_ros.evaluation.poses import with_exact_rotations
from mv_matcher_ros.evaluation.track_sampler import TrackSampler
from mv_matcher_ros.files.results import RunWriter
from mv_matcher_ros.geometry import se3

INTERVAL_NS = 100_000_000


def exp(tangent: Array) -> Array:
    return se3.exp(torch.from_numpy(np.asarray(tangent, dtype=np.float64))).numpy()


def winding_path(count: int, step_m: float = 1.0, seed: int = 0) -> Trajectory:
    """A smooth path in all three dimensions with `count` poses 0.1 s apart."""
    rng = np.random.default_rng(seed)
    turns = np.cumsum(rng.normal(0.0, 0.01, (count, 3)), axis=0)
    turns -= 0.1 * turns.mean(axis=0)
    steps = exp(np.column_stack([np.tile([step_m, 0.05, -0.02], (count, 1)), 0.3 * turns]))
    poses = [exp(np.array([1.0, -2.0, 0.5, 0.3, -0.2, 0.9]))]
    for step in steps[1:]:
        poses.append(poses[-1] @ step)
    stamps = 1_500_000_000_000_000_000 + INTERVAL_NS * np.arange(count)
    return Trajectory(stamps, with_exact_rotations(np.array(poses)))


@dataclass
class Recording:
    """What a run needs to know of its source."""

    name: str = 'walk <1>'
    sensor: str = 'stereo'
    rig: Rig = field(default_factory=lambda: Rig((Camera(64, 48, (50.0, 50.0, 31.5, 23.5)),)))
    truth: Trajectory | None = None
    faults: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[Frame]:
        return iter(())


def write_run(
    folder: Path,
    trajectory: Trajectory,
    *,
    lost: range = range(0),
    metric: bool = True,
    covariances: bool = True,
    count: int = 3,
) -> Path:
    """A run folder over the frames of `trajectory`, the frames in `lost` without a pose."""
    recording = Recording(sensor='stereo' if metric else 'mono')
    writer = RunWriter(folder, recording, Settings(), covariances=covariances)
    sampler = TrackSampler(folder, count=count, width=64)
    image = np.full((48, 64), 128, dtype=np.uint8)
    spots = np.array([[10.0, 12.0], [40.0, 30.0]], dtype=np.float32)
    tracks = TrackView(spots, spots - 3, np.array([True, False]), np.array([3, 1]))
    for k, stamp in enumerate(trajectory.stamps_ns):
        is_lost = k in lost
        known = trajectory.covariances
        estimate = Estimate(
            int(stamp),
            Status.LOST if is_lost else Status.TRACKING,
            None if is_lost else trajectory.world_from_body[k],
            None if is_lost or known is None else known[k],
            metric=metric,
            is_keyframe=k % 5 == 0,
            message='too <dark>' if k == lost.start and is_lost else '',
            counts={'inliers': 100 + k, 'landmarks': 500},
            latency_ms={'detect': 10.0 + k % 3, 'match': 5.0},
            tracks=None if is_lost else tracks,
        )
        frame = Frame(int(stamp), (View(image),), k)
        writer.write(frame, estimate)
        sampler.write(frame, estimate)
    sampler.close()
    writer.close()
    return folder


@pytest.fixture
def path() -> Callable[..., Trajectory]:
    return winding_path


@pytest.fixture
def se3_exp() -> Callable[[Array], Array]:
    return exp


@pytest.fixture
def make_run() -> Callable[..., Path]:
    return write_run
