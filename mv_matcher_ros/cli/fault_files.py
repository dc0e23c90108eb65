# SPDX-License-Identifier: Apache-2.0
"""Faults of recordings on disk: what is missing, damaged or contradicts itself."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from mv_matcher_ros.cli.faults import Clip, Fault, Outcome, drive, names
from mv_matcher_ros.config import Settings
from mv_matcher_ros.errors import MvMatcherError
from mv_matcher_ros.files.bag import write_bag
from mv_matcher_ros.files.images import read_image
from mv_matcher_ros.files.open import open_source

Damage = Callable[[Path], Path | None]


def write_folder(clip: Clip, folder: Path) -> Path:
    """The clip as an image folder with calibration.yaml and times.txt."""
    cameras: dict[str, Any] = {}
    names_of = [f'view{i}' for i in range(len(clip.rig.cameras))]
    for name, camera in zip(names_of, clip.rig.cameras, strict=True):
        (folder / name).mkdir(parents=True)
        cameras[name] = {
            'width': camera.width,
            'height': camera.height,
            'intrinsics': list(camera.intrinsics),
            'model': camera.model,
            'distortion': list(camera.distortion),
            'body_from_camera': camera.body_from_camera.ravel().tolist(),
        }
    if clip.sensor == 'rgbd':
        (folder / 'depth').mkdir()
    content = {'body_axes': clip.rig.body_axes, 'depth_scale': 1000.0, 'cameras': cameras}
    (folder / 'calibration.yaml').write_text(yaml.safe_dump(content))
    stamps = []
    for i, frame in enumerate(clip.frames):
        stamps.append(f'{frame.stamp_ns * 1e-9:.9f}')
        for name, view in zip(names_of, frame.views, strict=True):
            cv2.imwrite(str(folder / name / f'{i:06d}.png'), view.image)
        depth = frame.views[0].depth
        if depth is not None:
            stored = np.nan_to_num(depth * 1000.0).astype(np.uint16)
            cv2.imwrite(str(folder / 'depth' / f'{i:06d}.png'), stored)
    (folder / 'times.txt').write_text('\n'.join(stamps) + '\n')
    return folder


def _folder_fault(name: str, damage: Damage, words: Sequence[str], goes_on: bool) -> Fault:
    def apply(clip: Clip, place: Path, settings: Settings) -> Outcome:
        folder = write_folder(clip, place / 'recording')
        return _read(damage(folder) or folder, clip, settings, words, goes_on)

    return Fault(name, 'warning, goes on' if goes_on else 'one-line error', apply)


def _bag_fault(name: str, damage: Callable[[bytes, Clip], bytes], words: Sequence[str]) -> Fault:
    """A fault in the bytes of a bag; sqlite3 has no checksums that would hide it."""

    def apply(clip: Clip, place: Path, settings: Settings) -> Outcome:
        write_bag(place / 'bag', clip, storage='sqlite3')
        file = next((place / 'bag').glob('*.db3'))
        whole = file.read_bytes()
        damaged = damage(whole, clip)
        assert damaged != whole, 'the fault must reach the bag'
        file.write_bytes(damaged)
        return _read(place / 'bag', clip, settings, words, goes_on=False)

    return Fault(name, 'one-line error', apply)


def _read(
    path: Path, clip: Clip, settings: Settings, words: Sequence[str], goes_on: bool
) -> Outcome:
    """Open and run a faulty recording: an error or a counted warning has to name the fault."""
    try:
        recording = open_source(path, clip.sensor)
    except MvMatcherError as error:
        said = ' '.join(str(error).split())
        return Outcome(f'error: {_short(said, path)}', not goes_on and names(said, words))
    driven = drive(recording, settings)
    if driven.error:
        done = f' (after {len(driven.estimates)} frames)' if driven.estimates else ''
        return Outcome(
            f'error: {_short(driven.error, path)}{done}',
            not goes_on and names(driven.error, words),
        )
    warnings = [f'{fault}: {count}' for fault, count in driven.faults.items()]
    named = any(names(warning, words) for warning in warnings)
    observed = '; '.join(warnings) or 'nothing said'
    return Outcome(f'{observed}; {len(driven.estimates)} frames processed', goes_on and named)


def _short(message: str, path: Path) -> str:
    return message.replace(str(path), path.name)


def _edit_calibration(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / 'calibration.yaml'
        content = yaml.safe_load(file.read_text())
        change(content['cameras']['view0'])
        file.write_text(yaml.safe_dump(content))

    return damage


def _edit_times(change: Callable[[list[str]], None]) -> Damage:
    def damage(folder: Path) -> None:
        lines = (folder / 'times.txt').read_text().split()
        change(lines)
        (folder / 'times.txt').write_text('\n'.join(lines) + '\n')

    return damage


def _empty(folder: Path) -> Path:
    (folder / 'nothing').mkdir()
    return folder / 'nothing'


def _break_image(folder: Path) -> None:
    middle = sorted((folder / 'view0').iterdir())
    middle[len(middle) // 2].write_bytes(b'\x89PNG broken')


def _other_size(folder: Path) -> None:
    for file in (folder / 'view0').iterdir():
        cv2.imwrite(str(file), read_image(file)[:-8])


def _swap(lines: list[str]) -> None:
    middle = len(lines) // 2
    lines[middle], lines[middle + 1] = lines[middle + 1], lines[middle]


def _repeat(lines: list[str]) -> None:
    lines[len(lines) // 2] = lines[len(lines) // 2 - 1]


def _no_focal_length(data: bytes, clip: Clip) -> bytes:
    """K[0] = 0 (and P[0], R is left alone), which is how an uncalibrated driver publishes."""
    focal = struct.pack('<d', clip.rig.cameras[0].intrinsics[0])
    return data.replace(focal, struct.pack('<d', 0.0))


FILE_FAULTS: tuple[Fault, ...] = (
    _folder_fault('recording is missing', lambda f: f / 'none', ('no such',), False),
    _folder_fault('folder is empty', _empty, ('empty',), False),
    _bag_fault('bag is cut off', lambda d, c: d[: len(d) // 3], ('truncated',)),
    _bag_fault('unknown encoding', lambda d, c: d.replace(b'mono8', b'mono9'), ('mono9',)),
    _bag_fault('camera_info with K[0] = 0', _no_focal_length, ('not calibrated', 'k[0]')),
    _folder_fault(
        'key missing in calibration',
        _edit_calibration(lambda camera: camera.pop('intrinsics')),
        ('intrinsics',),
        False,
    ),
    _folder_fault(
        'calibration of focal length 0',
        _edit_calibration(lambda camera: camera['intrinsics'].__setitem__(0, 0.0)),
        ('not calibrated',),
        False,
    ),
    _folder_fault('images of another size', _other_size, ('size', 'x'), False),
    _folder_fault('unreadable image in the middle', _break_image, ('unreadable',), True),
    _folder_fault('stamps run backwards', _edit_times(_swap), ('backwards',), True),
    _folder_fault('stamps repeat', _edit_times(_repeat), ('repeated',), True),
)
