# SPDX-License-Identifier: Apache-2.0
"""A map as a folder: arrays as .npy, the rest as JSON, nothing that is run when it is read.

    map.json            what it is, which version of it counts, with which detector it was made
    0003/               that version: one .npy an array

A new version is written beside the old one; then `map.json` is replaced in one step: whoever is
killed while saving leaves the map as it was. Large arrays stay in their files until they are used.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Camera, Rig
from mv_matcher_ros.errors import MvMatcherError
from mv_matcher_ros.mapping.keyframe import MapKeyframe
from mv_matcher_ros.mapping.landmarks import Landmarks
from mv_matcher_ros.mapping.map import Edge, Map

FORMAT = 2  # 1 had descriptors in half precision
INDEX = 'map.json'
Arrays = dict[str, NDArray[Any]]
# What is kept of each feature, one row each, and the shape of a row; keyframes follow one another.
FEATURES: dict[str, tuple[type, tuple[int, ...]]] = {
    'keypoints_xy': (np.float32, (2,)),
    'descriptors': (np.int8, (0,)),
    'scores': (np.float16, ()),
    'sigma_px': (np.float16, ()),
    'inverse_depth': (np.float32, ()),
    'inverse_depth_sigma': (np.float32, ()),
    'landmark': (np.int32, ()),
}


def save_map(world: Map, folder: Path | str) -> Path:
    """Write a map; one that is there already is replaced once all of the new one is on the disk.

    Raises:
        MvMatcherError: the folder holds something else, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or _holds_something_else(folder)):
        raise MvMatcherError(f'{folder}: is no map, and not empty; name another folder')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = _version_of(folder)
        name = f'{1 + (int(before) if before else 0):04d}'
        shutil.rmtree(folder / name, ignore_errors=True)  # of a save that was interrupted
        (folder / name).mkdir()
        for array, values in _arrays(world).items():
            with (folder / name / f'{array}.npy').open('wb') as file:
                np.save(file, values, allow_pickle=False)
                _to_disk(file.fileno())
        _replace(folder / INDEX, {**_described(world), 'arrays': name})
        for other in folder.iterdir():
            if other.is_dir() and other.name != name:
                shutil.rmtree(other, ignore_errors=True)
    except OSError as error:
        raise MvMatcherError(f'{folder}: the map cannot be written: {error.strerror}') from None
    return folder


def load_map(folder: Path | str) -> Map:
    """Read a map; descriptors and keypoints stay in their files until they are used.

    Raises:
        MvMatcherError: no map, of a later format, or damaged.
    """
    folder = Path(folder)
    said = _read_index(folder)
    if said.get('format') != FORMAT:
        raise MvMatcherError(
            f'{folder}: a map of format {said.get("format")}, this version reads {FORMAT}'
        )
    try:
        arrays = {
            path.stem: np.load(path, mmap_mode='r', allow_pickle=False)
            for path in sorted((folder / said['arrays']).glob('*.npy'))
        }
        return _map(said, arrays)
    except (OSError, KeyError, ValueError, IndexError, TypeError) as error:
        raise MvMatcherError(f'{folder}: the map is damaged: {error!r}') from None


# ------------------------------------------------------------------- the index


def _described(world: Map) -> dict[str, Any]:
    cameras = [
        {
            'size': [camera.width, camera.height],
            'intrinsics': list(camera.intrinsics),
            'model': camera.model,
            'distortion': list(camera.distortion),
            'body_from_camera': camera.body_from_camera.tolist(),
            'name': camera.name,
        }
        for camera in world.rig.cameras
    ]
    return {
        'format': FORMAT,
        'sensor': world.sensor,
        'detector': world.detector,
        'body_axes': world.rig.body_axes,
        'cameras': cameras,
        'origin': {str(segment): name for segment, name in world.origin.items()},
        'keyframes': len(world),
        'landmarks': int((world.landmarks.anchor[: len(world.landmarks)] >= 0).sum()),
    }


def _rig(said: dict[str, Any]) -> Rig:
    cameras = tuple(
        Camera(
            one['size'][0], one['size'][1], tuple(one['intrinsics']), one['model'],
            tuple(one['distortion']), np.array(one['body_from_camera']), one['name'],
        )
        for one in said['cameras']
    )  # fmt: skip
    return Rig(cameras, said['body_axes'])


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        said = json.loads((folder / INDEX).read_text(encoding='utf-8'))
    except (FileNotFoundError, NotADirectoryError):
        raise MvMatcherError(f'{folder}: no map ({INDEX} is missing)') from None
    except (OSError, ValueError) as error:
        raise MvMatcherError(f'{folder / INDEX}: cannot be read: {error}') from None
    if not isinstance(said, dict):
        raise MvMatcherError(f'{folder / INDEX}: does not describe a map')
    return said


def _version_of(folder: Path) -> str:
    return str(_read_index(folder)['arrays']) if (folder / INDEX).exists() else ''


def _holds_something_else(folder: Path) -> bool:
    """Files that are neither a map nor what an interrupted first save leaves."""
    if (folder / INDEX).exists():
        return False
    return any(not (p.is_dir() and p.name.isdigit()) for p in folder.iterdir())


def _replace(path: Path, said: dict[str, Any]) -> None:
    aside = path.with_suffix('.new')
    with aside.open('w', encoding='utf-8') as file:
        json.dump(said, file, indent=2)
        file.write('\n')
        file.flush()
        _to_disk(file.fileno())
    os.replace(aside, path)


def _to_disk(descriptor: int) -> None:
    os.fsync(descriptor)


# ------------------------------------------------------------------ the arrays


def _arrays(world: Map) -> Arrays:
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


def _map(said: dict[str, Any], arrays: Arrays) -> Map:
    ends = np.cumsum(arrays['features'])
    keyframes, poses = {}, {}
    for number, key in enumerate(arrays['key'].tolist()):
        rows = slice(int(ends[number] - arrays['features'][number]), int(ends[number]))
        features = {name: arrays[name][rows] for name in FEATURES}
        keyframes[key] = MapKeyframe(
            key=key,
            stamp_ns=int(arrays['stamp_ns'][number]),
            segment=int(arrays['segment'][number]),
            odom_from_body=np.array(arrays['odom_from_body'][number]),
            place=np.array(arrays['place'][number]),
            **features,
        )
        if len(features['landmark']) != len(features['keypoints_xy']):
            raise ValueError(f'keyframe {key} has fewer features than it says')
        poses[key] = np.array(arrays['map_from_body'][number])
    seen = np.zeros(len(arrays['anchor']), np.int32)
    everyone = arrays['landmark']
    np.add.at(seen, everyone[everyone >= 0], 1)
    landmarks = Landmarks(
        np.array(arrays['anchor']), np.array(arrays['position']),
        np.array(arrays['covariance']), seen,
    )  # fmt: skip
    edges = [
        Edge(a, b, np.array(step), np.array(covariance), bool(loop))
        for (a, b), step, covariance, loop in zip(
            arrays['edge_keys'].tolist(), arrays['edge_step'], arrays['edge_covariance'],
            arrays['edge_loop'], strict=True,
        )
    ]  # fmt: skip
    origin = {int(segment): str(name) for segment, name in said['origin'].items()}
    return Map(
        _rig(said), said['sensor'], said['detector'], keyframes, landmarks, poses, edges, origin
    )


def _stacked(
    values: list[NDArray[Any]], shape: tuple[int, ...], kind: type = np.float64
) -> NDArray[Any]:
    return np.stack(values).astype(kind) if values else np.zeros((0, *shape), kind)


def _joined(values: list[NDArray[Any]], kind: type, row: tuple[int, ...]) -> NDArray[Any]:
    return np.concatenate(values).astype(kind) if values else np.zeros((0, *row), kind)
