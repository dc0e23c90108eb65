# SPDX-License-Identifier: Apache-2.0
"""Bundle adjustment of a whole map: every keyframe, every landmark, and what loops made one.

For when there is time: at the end of a recording, before a map is saved. Groups of keyframes that
follow one another take turns; what others of the map see of their landmarks holds them in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mv_matcher_ros.config import MapAdjustmentSettings
from mv_matcher_ros.datatypes import Array, Camera
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.geometry.bundle_adjustment import solve
from mv_matcher_ros.geometry.reprojection import Problem, residuals
from mv_matcher_ros.mapping.map import Edge, Map, moved

# An observation farther than this from its landmark, in sigma, is none of it any more.
WRONG = 6.0
RELATIVE_DECREASE = 1e-5
# Keyframes that do not move but hold a group share so many landmarks with it at least.
SHARED = 15


@dataclass(frozen=True)
class Adjusted:
    """What an adjustment did.

    Attributes:
        before, after: mean squared residuals in sigma, robust, over all groups of the last round.
        wrong: observations that were taken from their landmarks.
    """

    before: float
    after: float
    wrong: int


def adjust_map(world: Map, settings: MapAdjustmentSettings) -> Adjusted:
    """Move keyframes and landmarks of a map to where their observations want them.

    The first keyframe of the largest part that hangs together stays; scales of keyframes stay.
    Steps of the map's edges become those of the result: a graph that is made of it agrees with it.
    A map of several stereo pairs is left alone: it holds what the first camera saw, and all pairs
    together knew the poses better than that.
    """
    if len(world.rig.cameras) > 2:
        return Adjusted(0.0, 0.0, 0)
    keys = list(world.keyframes)
    count = settings.group
    groups = [keys[i : i + count] for i in range(0, len(keys), max(count // 2, 1))]
    groups = [g for n, g in enumerate(groups) if n == 0 or len(g) > count // 2]
    before = after = wrong = 0.0
    rounds = settings.rounds if len(groups) > 1 else 1
    for number in range(rounds):
        # What disagrees before everybody has had a turn may be the fault of somebody else.
        last = number + 1 == rounds
        results = [_adjust(world, group, settings, last) for group in groups]
        before = sum(r.before for r in results)
        after = sum(r.after for r in results)
        wrong += sum(r.wrong for r in results)
    world.edges = [_as_it_is(world, edge) for edge in world.edges]
    return Adjusted(before, after, int(wrong))


@dataclass(frozen=True)
class _Observations:
    """Flat: what keyframes (by place in a list) see of landmarks (by number)."""

    frame: Tensor
    feature: Tensor
    landmark: Tensor
    measured: Tensor
    sqrt_information: Tensor


def _adjust(
    world: Map, group: Sequence[int], settings: MapAdjustmentSettings, part: bool
) -> Adjusted:
    """One group; `part`: what is wrong there is no observation any more."""
    camera = world.rig.cameras[0]
    holding = _holding(world, group, settings.group)
    frames = [*group, *holding]
    seen = _observations(world, frames, camera)
    numbers, point = seen.landmark.unique(return_inverse=True)
    # A landmark that nobody of the group sees, or one alone without depth, does not take part.
    inside = torch.zeros(len(numbers), dtype=torch.bool)
    inside[point[seen.frame < len(group)]] = True
    counts = torch.bincount(point, minlength=len(numbers))
    deep = torch.zeros(len(numbers), dtype=torch.bool)
    deep[point[seen.sqrt_information[:, 2] > 0]] = True
    kept = (inside & ((counts >= 2) | deep))[point]
    if int(kept.sum()) < 20:
        return Adjusted(0.0, 0.0, 0)
    seen = _Observations(*(getattr(seen, n)[kept] for n in _Observations.__annotations__))
    numbers, point = seen.landmark.unique(return_inverse=True)
    poses = torch.from_numpy(np.stack([world.placed(key)[0] for key in frames]))
    fixed = torch.arange(len(frames)) >= len(group)
    if not holding or frames[0] == next(iter(world.keyframes)):
        fixed[0] = True
    camera_from_body = torch.from_numpy(np.linalg.inv(camera.body_from_camera))
    problem = Problem(
        poses[None],
        torch.from_numpy(world.points_in_map(numbers.numpy().astype(np.int32)))[None],
        seen.frame[None],
        point[None],
        seen.measured[None],
        seen.sqrt_information[None],
        fixed[None],
        camera_from_body[None, None],
        kernel='cauchy',
        kernel_width=settings.kernel_width,
    )
    solution = solve(problem, settings.iterations, RELATIVE_DECREASE, point_steps=1)
    end = problem.moved(solution.world_from_body, solution.points)
    _move(world, frames, numbers, end)
    before, after = (float(_cauchy(one, settings.kernel_width).mean()) for one in (problem, end))
    return Adjusted(before, after, _part(world, group, seen, end) if part else 0)


def _holding(world: Map, group: Sequence[int], most: int) -> list[int]:
    """Other keyframes that see the landmarks of a group, those that see the most of them."""
    mine = np.unique(np.concatenate([world.keyframes[key].landmark for key in group]))
    inside = set(group)
    shared = {
        key: int(np.isin(keyframe.landmark, mine[mine >= 0]).sum())
        for key, keyframe in world.keyframes.items()
        if key not in inside
    }
    best = sorted((k for k, n in shared.items() if n >= SHARED), key=lambda k: -shared[k])
    return best[:most]


def _observations(world: Map, frames: Sequence[int], camera: Camera) -> _Observations:
    parts: list[tuple[Tensor, ...]] = []
    for place, key in enumerate(frames):
        keyframe = world.keyframes[key]
        plane, valid = keyframe.plane_xy(camera)
        there = keyframe.landmark >= 0
        there &= valid.numpy()
        there[there] &= world.landmarks.anchor[keyframe.landmark[there]] >= 0
        feature = torch.from_numpy(there.nonzero()[0])
        inverse = torch.tensor(keyframe.inverse_depth).double()[feature]
        sigma_depth = torch.tensor(keyframe.inverse_depth_sigma).double()[feature]
        known = inverse.isfinite() & (sigma_depth > 0) & torch.tensor(world.metric)
        inverse = torch.where(known, inverse, 0.0)
        sigma = torch.tensor(keyframe.sigma_px).double()[feature] / camera.focal_px
        image = (1.0 / sigma)[:, None].expand(-1, 2)
        deep = torch.where(known, 1.0 / torch.where(known, sigma_depth, 1.0), 0.0)
        parts.append((
            torch.full((len(feature),), place),
            feature,
            torch.from_numpy(keyframe.landmark[there].astype(np.int64)),
            torch.cat([plane[feature], inverse[:, None]], dim=1),
            torch.cat([image, deep[:, None]], dim=1),
        ))  # fmt: skip
    return _Observations(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _move(world: Map, frames: Sequence[int], numbers: Tensor, end: Problem) -> None:
    """Poses and landmarks to where they are now; landmarks stay at their keyframes."""
    poses = se3.normalise(end.world_from_body[0]).numpy()
    before = world.points_in_map(numbers.numpy().astype(np.int32))
    now = end.points[0].numpy()
    places = np.asarray(np.where(np.isfinite(now), now, before), np.float64)
    for key, pose, held in zip(frames, poses, end.fixed[0].tolist(), strict=True):
        if not held:
            _, scale = world.placed(key)
            _shift(world, key, pose, scale)
    marks = world.landmarks
    anchor = marks.anchor[numbers.numpy()]
    for key in np.unique(anchor):
        rows = anchor == key
        body_from_map = np.linalg.inv(world.pose[int(key)])
        marks.position[numbers.numpy()[rows]] = moved(body_from_map, places[rows])


def _shift(world: Map, key: int, pose: Array, scale: float) -> None:
    to = pose.copy()
    to[:3, :3] *= scale
    world.move({key: to})


def _part(world: Map, group: Sequence[int], seen: _Observations, end: Problem) -> int:
    """Take observations of a group that are wrong from their landmarks; returns how many."""
    error, depth = residuals(end)
    image = error[0, :, :2].norm(dim=1)
    bad = ((image > WRONG) | (depth[0] <= 0)) & (seen.frame < len(group))
    for place in seen.frame[bad].unique().tolist():
        keyframe = world.keyframes[group[place]]
        landmark: NDArray[np.int32] = keyframe.landmark.copy()
        gone = seen.feature[bad & (seen.frame == place)].numpy()
        world.landmarks.seen[landmark[gone]] -= 1
        landmark[gone] = -1
        world.keyframes[group[place]] = keyframe.seeing(landmark)
    return int(bad.sum())


def _cauchy(problem: Problem, width: float) -> Tensor:
    """(O,) robust squared image residuals."""
    error, _ = residuals(problem)
    squared = error[0, :, :2].square().sum(1)
    return width**2 * torch.log1p(squared / width**2)


def _as_it_is(world: Map, edge: Edge) -> Edge:
    return replace(edge, a_from_b=np.linalg.inv(world.pose[edge.a]) @ world.pose[edge.b])
