# SPDX-License-Identifier: Apache-2.0
"""A map as a folder: arrays as .npy, the rest as JSON, nothing that is run when it is read.

    map.json            what it is, which version of it counts, with which detector it was made
    0003/               that version: one .npy an array

A new version is written beside the old one; then `map.json` is replaced in one step: whoever is
killed while saving leaves the map as it was. Large arrays stay in their files until they are used.
"""

from __future__ import annotations

import json
import operator
import os
import re
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Camera, Rig, Sensor, rig_as_read
from mv_matcher_ros.errors import CalibrationError, MvMatcherError
from mv_matcher_ros.mapping.map import Map
from mv_matcher_ros.mapping.map_arrays import (
    ARRAYS,
    Arrays,
    arrays_of,
    check_arrays,
    check_form,
    edges_of,
    keyframes_of,
    landmarks_of,
)
from mv_matcher_ros.npy import mapped_npy

FORMAT = 2  # 1 had descriptors in half precision
INDEX = 'map.json'
# Name of a version's folder: a number. Nothing else that stands in the index leads anywhere.
_VERSION = re.compile(r'[0-9]{1,9}')


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
        name = f'{1 + int(before or 0) % 10**8:04d}'
        shutil.rmtree(folder / name, ignore_errors=True)  # of a save that was interrupted
        (folder / name).mkdir()
        for array, values in arrays_of(world).items():
            with (folder / name / f'{array}.npy').open('wb') as file:
                np.save(file, values, allow_pickle=False)
                _to_disk(file.fileno())
        _replace(folder / INDEX, {**_described(world), 'arrays': name})
        for other in folder.iterdir():
            if other.is_dir() and _VERSION.fullmatch(other.name) and other.name != name:
                shutil.rmtree(other, ignore_errors=True)
    except (OSError, ValueError) as error:  # a ValueError: arrays that do not go together
        reason = getattr(error, 'strerror', None) or error  # numpy's own errors have no strerror
        raise MvMatcherError(f'{folder}: the map cannot be written: {reason}') from None
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
        version = folder / _version(said)
        arrays = {name: _array(version / f'{name}.npy', name) for name in ARRAYS}
        check_arrays(arrays)
        return _map(said, arrays)
    except KeyError as error:
        raise MvMatcherError(f'{folder}: the map is damaged: no {error} in {INDEX}') from None
    except (CalibrationError, OSError, ValueError, OverflowError, TypeError) as error:
        raise MvMatcherError(f'{folder}: the map is damaged: {error}') from None


def _array(path: Path, name: str) -> NDArray[Any]:
    """One of the arrays, still in its file; its type and shape are what they should be."""
    try:
        array = mapped_npy(path)
    except ValueError as error:
        raise ValueError(f'{path.name}: {error}') from None
    check_form(name, array)
    return array


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


def _map(said: dict[str, Any], arrays: Arrays) -> Map:
    origin = {int(segment): str(name) for segment, name in dict(said['origin']).items()}
    sensor = said['sensor']
    if sensor not in get_args(Sensor):
        raise ValueError(f'sensor {sensor!r}')
    keyframes, poses = keyframes_of(arrays)
    return Map(
        _rig(said), sensor, str(said['detector']), keyframes, landmarks_of(arrays), poses,
        edges_of(arrays), origin,
    )  # fmt: skip


def _rig(said: dict[str, Any]) -> Rig:
    cameras = []
    for one in said['cameras']:
        width, height = map(operator.index, one['size'])
        fx, fy, cx, cy = map(float, one['intrinsics'])
        distortion = tuple(map(float, one['distortion']))
        pose = np.array(one['body_from_camera'], np.float64)
        model, name = one['model'], str(one['name'])
        cameras.append(Camera(width, height, (fx, fy, cx, cy), model, distortion, pose, name))
    return rig_as_read(cameras, str(said['body_axes']))


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        said = json.loads((folder / INDEX).read_text(encoding='utf-8'))
    except (FileNotFoundError, NotADirectoryError):
        raise MvMatcherError(f'{folder}: no map ({INDEX} is missing)') from None
    except (OSError, ValueError, RecursionError) as error:
        raise MvMatcherError(f'{folder / INDEX}: cannot be read: {error}') from None
    if not isinstance(said, dict):
        raise MvMatcherError(f'{folder / INDEX}: does not describe a map')
    return said


def _version(said: dict[str, Any]) -> str:
    """Name of the folder of arrays.

    Raises:
        ValueError: the index names none, or a place elsewhere.
    """
    name = said.get('arrays')
    if not (isinstance(name, str) and _VERSION.fullmatch(name)):
        raise ValueError(f'{name!r} is not the number of a version')
    return name


def _version_of(folder: Path) -> str:
    if not (folder / INDEX).exists():
        return ''
    try:
        return _version(_read_index(folder))
    except ValueError as error:
        raise MvMatcherError(f'{folder / INDEX}: {error}; name another folder') from None


def _holds_something_else(folder: Path) -> bool:
    """Files that are neither a map nor what an interrupted first save leaves."""
    if (folder / INDEX).exists():
        return False
    left = (_aside(folder / INDEX).name,)
    return any(
        not (p.name in left or (p.is_dir() and _VERSION.fullmatch(p.name)))
        for p in folder.iterdir()
    )


def _aside(path: Path) -> Path:
    """Where a file is written before it takes its place."""
    return path.with_suffix('.new')


def _replace(path: Path, said: dict[str, Any]) -> None:
    aside = _aside(path)
    aside.unlink(missing_ok=True)  # it might be a link that leads elsewhere
    with aside.open('x', encoding='utf-8') as file:
        json.dump(said, file, indent=2)
        file.write('\n')
        file.flush()
        _to_disk(file.fileno())
    os.replace(aside, path)


def _to_disk(descriptor: int) -> None:
    os.fsync(descriptor)
