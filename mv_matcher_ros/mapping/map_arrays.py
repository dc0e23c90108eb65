# SPDX-License-Identifier: Apache-2.0
"""A map as arrays, and back: what each is, and what must hold among them.

A map's folder may come from anyone; what is used as an index is checked before it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.mapping.keyframe import MapKeyframe
from mv_matcher_ros.mapping.landmarks import Landmarks
from mv_matcher_ros.mapping.map import Edge, Map

Arrays = dict[str, NDArray[Any]]
Form = tuple[type, tuple[int, ...]]
# Type and shape of a row, where 0 stands for any number. Of each feature there is one row; those
# of keyframes follow one another.
FEATURES: dict[str, Form] = {
    'keypoints_xy': (np.float32, (2,)),
    'descriptors': (np.int8, (0,)),
    'scores': (np.float16, ()),
    'sigma_px': (np.float16, ()),
    'inverse_depth': (np.float32, ()),
    'inverse_depth_sigma': (np.float32, ()),
    'landmark': (np.int32, ()),
}
_KEYFRAMES: dict[str, Form] = {
    'key': (np.int64, ()),
    'stamp_ns': (np.int64, ()),
    'segment': (np.int32, ()),
    'odom_from_body': (np.float64, (4, 4)),
    'map_from_body': (np.float64, (4, 4)),
    'place': (np.float32, (0,)),
    'features': (np.int64, ()),
}
_LANDMARKS: dict[str, Form] = {
    'anchor': (np.int32, ()),
    'position': (np.float32, (3,)),
    'covariance': (np.float32, (6,)),
}
_EDGES: dict[str, Form] = {
    'edge_keys': (np.int64, (2,)),
    'edge_loop': (np.bool_, ()),
    'edge_step': (np.float64, (4, 4)),
    'edge_covariance': (np.float64, (7, 7)),
}
# No map is so large, in metres or the units of a mono map.
_FARTHEST = 1e12
ARRAYS = _KEYFRAMES | FEATURES | _LANDMARKS | _EDGES


def arrays_of(world: Map) -> Arrays:
    """All that there is of a map but what its index says."""
    frames = list(world.keyframes.values())
    count = len(world.landmarks)
    loops = world.edges
    return {
        'key': np.array([k.key for k in frames], np.int64),
        'stamp_ns': np.array([k.stamp_ns for k in frames], np.int64),
        'segment': np.array([k.segment for k in frames], np.int32),
        'odom_from_body': _stacked([k.odom_from_body for k in frames], (4, 4)),
        'map_from_body': _stacked([world.pose[k.key] for k in frames], (4, 4)),
        'place': _stacked([k.place for k in frames], (0,), np.float32),
        'features': np.array([len(k) for k in frames], np.int64),
        **{
            name: _joined([getattr(k, name) for k in frames], kind, row)
            for name, (kind, row) in FEATURES.items()
        },
        'anchor': world.landmarks.anchor[:count],
        'position': world.landmarks.position[:count],
        'covariance': world.landmarks.covariance[:count],
        'edge_keys': np.array([[e.a, e.b] for e in loops], np.int64).reshape(-1, 2),
        'edge_loop': np.array([e.loop for e in loops], np.bool_),
        'edge_step': _stacked([e.a_from_b for e in loops], (4, 4)),
        'edge_covariance': _stacked([e.covariance for e in loops], (7, 7)),
    }


def check_form(name: str, array: NDArray[Any]) -> None:
    """Raise ValueError where an array is not of its type and shape."""
    kind, row = ARRAYS[name]
    shape = array.shape[1:]
    fits = array.ndim == 1 + len(row) and all(
        wanted in (0, side) for wanted, side in zip(row, shape, strict=True)
    )
    if array.dtype != kind or not fits:
        raise ValueError(f'{name} is {array.dtype} of shape {array.shape}')


def check_arrays(arrays: Arrays) -> None:
    """Raise ValueError where arrays contradict each other, or a pose is none."""
    features = arrays['features']
    counts = dict.fromkeys(FEATURES, int(features.sum()))
    for first, group in (('key', _KEYFRAMES), ('anchor', _LANDMARKS), ('edge_loop', _EDGES)):
        counts |= dict.fromkeys(group, len(arrays[first]))
    for name, count in counts.items():
        if len(arrays[name]) != count:
            raise ValueError(f'{name} has {len(arrays[name])} rows instead of {count}')
    keys, anchor, landmark = arrays['key'], arrays['anchor'], arrays['landmark']
    wrong = {
        'features': (features < 0) | (features > counts['landmark']),
        'key': (keys < 0) | (keys >= np.iinfo(np.int32).max) | (np.diff(keys, prepend=-1) <= 0),
        'segment': arrays['segment'] < 0,
        'landmark': (landmark < -1) | (landmark >= len(anchor)),
        'anchor': (anchor != -1) & ~np.isin(anchor, keys),
        **{
            name: ~_similarities(arrays[name])
            for name in ('odom_from_body', 'map_from_body', 'edge_step')
        },
        'edge_covariance': ~np.isfinite(arrays['edge_covariance']),
    }
    for name, rows in wrong.items():
        if np.any(rows):
            raise ValueError(f'{name} holds what cannot be')


def _similarities(poses: Array) -> NDArray[np.bool_]:
    """(N,) which of (N, 4, 4) move and turn by finite amounts, and do not shrink to nothing."""
    finite: NDArray[np.bool_] = np.all(np.abs(poses) < _FARTHEST, (1, 2))  # no NaN is less
    known = np.where(finite[:, None, None], poses, np.eye(4))
    scale = np.cbrt(np.linalg.det(known[:, :3, :3]))
    turn = known[:, :3, :3] / np.maximum(scale, 1e-9)[:, None, None]
    rigid = np.abs(turn @ turn.swapaxes(1, 2) - np.eye(3)).max((1, 2), initial=0.0) < 1e-3
    last: NDArray[np.bool_] = np.all(np.abs(known[:, 3] - (0, 0, 0, 1)) < 1e-6, 1)
    return finite & rigid & last & (scale > 1e-9)


def keyframes_of(arrays: Arrays) -> tuple[dict[int, MapKeyframe], dict[int, Array]]:
    """Keyframes and their poses by key; what is large stays in its file."""
    ends = np.cumsum(arrays['features'])
    keyframes, poses = {}, {}
    for number, key in enumerate(arrays['key'].tolist()):
        rows = slice(int(ends[number] - arrays['features'][number]), int(ends[number]))
        keyframes[key] = MapKeyframe(
            key=key,
            stamp_ns=int(arrays['stamp_ns'][number]),
            segment=int(arrays['segment'][number]),
            odom_from_body=np.array(arrays['odom_from_body'][number]),
            place=np.array(arrays['place'][number]),
            **{name: arrays[name][rows] for name in FEATURES},
        )
        poses[key] = np.array(arrays['map_from_body'][number])
    return keyframes, poses


def landmarks_of(arrays: Arrays) -> Landmarks:
    """Landmarks, and by how many keyframes they are seen."""
    seen = np.zeros(len(arrays['anchor']), np.int32)
    everyone = arrays['landmark']
    np.add.at(seen, everyone[everyone >= 0], 1)
    return Landmarks(
        np.array(arrays['anchor']), np.array(arrays['position']),
        np.array(arrays['covariance']), seen,
    )  # fmt: skip


def edges_of(arrays: Arrays) -> list[Edge]:
    """Steps between keyframes; those to keyframes that the map has let go are left out."""
    there = np.isin(arrays['edge_keys'], arrays['key']).all(1)
    return [
        Edge(a, b, np.array(step), np.array(covariance), bool(loop))
        for (a, b), step, covariance, loop in zip(
            arrays['edge_keys'][there].tolist(), arrays['edge_step'][there],
            arrays['edge_covariance'][there], arrays['edge_loop'][there], strict=True,
        )
    ]  # fmt: skip


def _stacked(
    values: list[NDArray[Any]], shape: tuple[int, ...], kind: type = np.float64
) -> NDArray[Any]:
    return np.stack(values).astype(kind) if values else np.zeros((0, *shape), kind)


def _joined(values: list[NDArray[Any]], kind: type, row: tuple[int, ...]) -> NDArray[Any]:
    return np.concatenate(values).astype(kind) if values else np.zeros((0, *row), kind)
