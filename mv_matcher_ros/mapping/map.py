# SPDX-License-Identifier: Apache-2.0
"""A map: keyframes, the landmarks that they see, and where both are.

Holds data; decides nothing. Poses belong to the pose graph, which writes them here. Landmarks hang
at keyframes: when a pose moves, they move.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Array, Rig, Sensor
from mv_matcher_ros.geometry import sim3, so3
from mv_matcher_ros.mapping.keyframe import MapKeyframe
from mv_matcher_ros.mapping.landmarks import Landmarks


@dataclass(frozen=True)
class Edge:
    """A measured step between two keyframes.

    Attributes:
        a, b: keys.
        a_from_b: (4, 4) similarity; for metric sensors its scale is one.
        covariance: (7, 7) of its right perturbation, x y z rx ry rz log scale.
        loop: found by recognising a place; else by the odometry.
    """

    a: int
    b: int
    a_from_b: Array
    covariance: Array
    loop: bool


@dataclass(frozen=True)
class Gone:
    """A keyframe that the map has let go, for who wants to know where the body was.

    Attributes:
        stamp_ns, segment, odom_from_body: of the keyframe.
        anchor_from_body: (4, 4) similarity, its pose seen from a keyframe that is left.
    """

    stamp_ns: int
    segment: int
    odom_from_body: Array
    anchor_from_body: Array


@dataclass
class Map:
    """What has been seen, and where.

    Attributes:
        rig: cameras that saw it.
        sensor: of what kind it is; a mono map has no metric scale.
        detector: hash of the detector whose features it holds.
        keyframes: by key, in order of time of their coming.
        landmarks: points.
        pose: by key, (4, 4) similarity map_from_body; for metric sensors its scale is one.
        edges: between keyframes.
        origin: of each segment, what the odometry called it; one that says the same goes on.
        gone: by the key of a keyframe that is left, those that hang at it now; None: nobody wants
            to know. Not saved.
    """

    rig: Rig
    sensor: Sensor
    detector: str
    keyframes: dict[int, MapKeyframe] = field(default_factory=dict)
    landmarks: Landmarks = field(default_factory=Landmarks)
    pose: dict[int, Array] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)
    origin: dict[int, str] = field(default_factory=dict)
    gone: dict[int, list[Gone]] | None = None

    def __post_init__(self) -> None:
        self._next_key = 1 + max(self.keyframes, default=-1)
        self._next_segment = 1 + max((k.segment for k in self.keyframes.values()), default=-1)

    def __len__(self) -> int:
        return len(self.keyframes)

    @property
    def metric(self) -> bool:
        """Lengths are metres."""
        return self.sensor != 'mono'

    @property
    def next_key(self) -> int:
        """The number of the keyframe that comes next; larger than all there ever were."""
        return self._next_key

    @property
    def next_segment(self) -> int:
        """The number of the segment that comes next."""
        return self._next_segment

    def add(self, keyframe: MapKeyframe, map_from_body: Array) -> None:
        """A new keyframe at a pose, with `next_key`; its landmarks have been added before."""
        assert keyframe.key == self._next_key
        self.keyframes[keyframe.key] = keyframe
        self.pose[keyframe.key] = map_from_body
        self.landmarks.seen[keyframe.landmark[keyframe.landmark >= 0]] += 1
        self._next_key += 1
        self._next_segment = max(self._next_segment, keyframe.segment + 1)

    def known_rig(self, rig: Rig) -> Rig:
        """The map's cameras where they are those of a rig but for their distortion: replay may
        have found what the calibration had left. Else the rig."""
        ours, theirs = self.rig.cameras, rig.cameras
        same = len(ours) == len(theirs) and all(
            (a.width, a.height, a.intrinsics) == (b.width, b.height, b.intrinsics)
            and np.array_equal(a.body_from_camera, b.body_from_camera)
            for a, b in zip(ours, theirs, strict=True)
        )
        return self.rig if same else rig

    # --------------------------------------------------------------- reading

    def placed(self, key: int) -> tuple[Array, float]:
        """(4, 4) rigid `map_from_body` of a keyframe, and its units on the map.

        On a metric map the units are exactly 1, whatever rounding has left in its pose.
        """
        pose, scale = rigid(self.pose[key])
        return pose, 1.0 if self.metric else scale

    def between(self, a: int, b: int) -> tuple[Array, float]:
        """(4, 4) rigid `a_from_b` of two keyframes in units of a, and units of b in those of a."""
        pose, scale = rigid(np.linalg.inv(self.pose[a]) @ self.pose[b])
        return pose, 1.0 if self.metric else scale

    def points_in_map(self, number: NDArray[np.int32]) -> Array:
        """(K, 3) places of landmarks in the map; NaN for those that are gone or negative."""
        found = np.full((len(number), 3), np.nan)
        there = number >= 0
        anchor = np.where(there, self.landmarks.anchor[np.maximum(number, 0)], -1)
        for key in np.unique(anchor[anchor >= 0]):
            rows = anchor == key
            found[rows] = moved(self.pose[int(key)], self.landmarks.position[number[rows]])
        return found

    def points_seen_by(self, key: int) -> tuple[Array, Array]:
        """Landmarks of the N features of a keyframe in its body frame and units.

        Returns:
            (N, 3) NaN where a feature sees none, and (N, 3, 3) covariances of them, poses of the
            map taken as known.
        """
        keyframe = self.keyframes[key]
        number = keyframe.landmark
        points = np.full((len(number), 3), np.nan)
        spread = np.full((len(number), 3, 3), np.nan)
        there = number >= 0
        anchor = np.where(there, self.landmarks.anchor[np.maximum(number, 0)], -1)
        body_from_map = np.linalg.inv(self.pose[key])
        for other in np.unique(anchor[anchor >= 0]):
            rows = anchor == other
            step = body_from_map @ self.pose[int(other)]
            points[rows] = moved(step, self.landmarks.position[number[rows]])
            linear = step[:3, :3]
            spread[rows] = linear @ self.landmarks.spread(number[rows]) @ linear.T
        return points, spread

    def neighbours(self, key: int, count: int) -> list[int]:
        """Up to so many keyframes that share the most landmarks with one, the most first."""
        shared: dict[int, int] = {}
        for other, keyframe in self._of_segment(key):
            if other != key:
                common = np.intersect1d(
                    keyframe.landmark, self.keyframes[key].landmark, assume_unique=False
                )
                shared[other] = int((common >= 0).sum())
        best = sorted(shared, key=lambda other: (-shared[other], abs(other - key)))
        return [other for other in best[:count] if shared[other]]

    def _of_segment(self, key: int, reach: int = 12) -> Iterable[tuple[int, MapKeyframe]]:
        """Up to so many keyframes before and after, of the same segment."""
        keys, segment = list(self.keyframes), self.keyframes[key].segment
        place = bisect_left(keys, key)
        for other in keys[max(place - reach, 0) : place + reach + 1]:
            if self.keyframes[other].segment == segment:
                yield other, self.keyframes[other]

    # -------------------------------------------------------------- changing

    def move(self, poses: dict[int, Array]) -> None:
        """Keyframes to other poses, by key."""
        self.pose.update(poses)

    def fuse(self, pairs: Iterable[tuple[int, int]]) -> dict[int, int]:
        """Landmarks that are the same point: of each pair the older number stays.

        Both are thought to be one from now on by every keyframe.

        Returns:
            the numbers that have gone, and which ones they are now.
        """
        older: dict[int, int] = {}
        for pair in pairs:
            one, other = (_root(older, int(number)) for number in pair)
            if one != other:
                older[max(one, other)] = min(one, other)
        now = {number: _root(older, number) for number in sorted(older)}
        if now:
            new_number = np.arange(len(self.landmarks), dtype=np.int32)
            new_number[list(now)] = list(now.values())
            self.landmarks.anchor[list(now)] = -1
            self._renumber(new_number)
        return now

    def remove(self, keys: Iterable[int]) -> None:
        """Let keyframes go; landmarks that hang at them are hung at another that sees them."""
        going = set(keys)
        left = [key for key in self.keyframes if key not in going]
        for key in sorted(going):
            self._remember(key, left)
            del self.keyframes[key]
        homeless = np.isin(self.landmarks.anchor[: len(self.landmarks)], list(going))
        if homeless.any():
            self._rehang(homeless)
        for key in going:
            self._bridge(key)
            del self.pose[key]
        self._count_seen()

    def _remember(self, key: int, left: list[int]) -> None:
        """Hang a keyframe that goes, and what hangs at it, at the nearest of its segment."""
        if self.gone is None:
            return
        keyframe = self.keyframes[key]
        beside = [k for k in left if self.keyframes[k].segment == keyframe.segment]
        if not beside:
            return
        anchor = min(beside, key=lambda k: abs(k - key))
        step = np.linalg.inv(self.pose[anchor]) @ self.pose[key]
        hanging = self.gone.setdefault(anchor, [])
        hanging.append(Gone(keyframe.stamp_ns, keyframe.segment, keyframe.odom_from_body, step))
        hanging += [
            replace(other, anchor_from_body=step @ other.anchor_from_body)
            for other in self.gone.pop(key, [])
        ]

    def forget(self, number: NDArray[np.int32]) -> None:
        """Let landmarks go: nobody sees them any more."""
        self.landmarks.anchor[number] = -1
        for key, keyframe in self.keyframes.items():
            gone = np.isin(keyframe.landmark, number)
            if gone.any():
                self.keyframes[key] = keyframe.seeing(
                    np.where(gone, -1, keyframe.landmark).astype(np.int32)
                )
        self._count_seen()

    def _bridge(self, key: int) -> None:
        """One step of the odometry in place of the two that met at a keyframe."""
        to = next((e for e in self.edges if e.b == key and not e.loop), None)
        on = next((e for e in self.edges if e.a == key and not e.loop), None)
        self.edges = [e for e in self.edges if key not in (e.a, e.b)]
        if to is not None and on is not None:
            turn = sim3.adjoint(sim3.inverse(torch.from_numpy(on.a_from_b.copy()))).numpy()
            covariance = turn @ to.covariance @ turn.T + on.covariance
            self.edges.append(Edge(to.a, on.b, to.a_from_b @ on.a_from_b, covariance, False))

    def compact(self) -> NDArray[np.int32]:
        """Give landmarks that are left new numbers, without gaps.

        Returns:
            (L,) the new number of each that there was, −1 for those that have gone.
        """
        new_number = self.landmarks.compact()
        self._renumber(new_number)
        return new_number

    def _rehang(self, homeless: NDArray[np.bool_]) -> None:
        for key, keyframe in self.keyframes.items():
            number = keyframe.landmark[keyframe.landmark >= 0]
            number = number[homeless[number]]
            if not len(number):
                continue
            anchor = self.landmarks.anchor[number]
            for other in np.unique(anchor):
                rows = number[anchor == other]
                step = np.linalg.inv(self.pose[key]) @ self.pose[int(other)]
                linear = step[:3, :3]
                self.landmarks.place(
                    rows,
                    key,
                    moved(step, self.landmarks.position[rows]),
                    linear @ self.landmarks.spread(rows) @ linear.T,
                )
            homeless[number] = False
        self.landmarks.anchor[: len(homeless)][homeless] = -1

    def _renumber(self, new_number: NDArray[np.int32]) -> None:
        for key, keyframe in self.keyframes.items():
            there = keyframe.landmark >= 0
            number = np.where(there, new_number[np.maximum(keyframe.landmark, 0)], -1)
            # Of several features of an image that now see one point, the first does.
            _, first = np.unique(number, return_index=True)
            only = np.full_like(number, -1)
            only[first] = number[first]
            self.keyframes[key] = keyframe.seeing(only.astype(np.int32))
        self._count_seen()

    def _count_seen(self) -> None:
        seen = np.zeros_like(self.landmarks.seen)
        for keyframe in self.keyframes.values():
            seen[keyframe.landmark[keyframe.landmark >= 0]] += 1
        self.landmarks.seen = seen
        count = len(self.landmarks)
        self.landmarks.anchor[:count][seen[:count] == 0] = -1


def rigid(similarity: Array) -> tuple[Array, float]:
    """A similarity (4, 4) without its scale, and the scale: x → s R x + t becomes R x + t.

    The rotation is one exactly: products of rounded ones would cease to be.
    """
    scale = float(np.cbrt(np.linalg.det(similarity[:3, :3])))
    pose = similarity.copy()
    pose[:3, :3] = so3.nearest_rotation(torch.from_numpy(similarity[:3, :3].copy())).numpy()
    return pose, scale


def moved(target_from_source: NDArray[np.floating], points: NDArray[np.floating]) -> Array:
    """(K, 3) points by a similarity (4, 4)."""
    transform = target_from_source.astype(np.float64)
    return points.astype(np.float64) @ transform[:3, :3].T + transform[:3, 3]


def _root(older: dict[int, int], number: int) -> int:
    while number in older:
        number = older[number]
    return number
