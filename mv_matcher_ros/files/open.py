# SPDX-License-Identifier: Apache-2.0
"""Recognises what a path is and opens it: bag, data set folder, image folder, video."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mv_matcher_ros.datatypes import Sensor
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.files import euroc, folder, kitti, tartanair, tum, video
from mv_matcher_ros.files.bag import is_bag
from mv_matcher_ros.files.bag_source import Bag
from mv_matcher_ros.files.calibration import read_calibration
from mv_matcher_ros.files.images import image_files
from mv_matcher_ros.files.recording import Masks, Recording

_Opener = Callable[..., Recording]  # path, sensor, calibration, masks, and perhaps pairs

# In this order: a more particular layout comes before one that it would also pass for.
_FOLDERS: tuple[tuple[str, Callable[[Path], bool], _Opener, str], ...] = (
    ('kitti', kitti.is_kitti, kitti.open_kitti, kitti.LOOKED_FOR),
    ('euroc', euroc.is_euroc, euroc.open_euroc, euroc.LOOKED_FOR),
    ('tartanair', tartanair.is_tartanair, tartanair.open_tartanair, tartanair.LOOKED_FOR),
    ('tum', tum.is_tum, tum.open_tum, tum.LOOKED_FOR),
    ('bag', is_bag, Bag, 'metadata.yaml or *.bag, *.mcap, *.db3'),
    ('images', folder.is_image_folder, folder.open_folder, folder.LOOKED_FOR),
)
# What may hold several stereo pairs.
_OF_SEVERAL_PAIRS = ('euroc', 'images')
# Deep enough for <data set>/<scene>/<difficulty>/<sequence>; a wrong root must not walk a whole
# disk.
_MAX_DEPTH = 5


def recognise(path: Path | str) -> str:
    """What a path is: `bag`, `kitti`, `euroc`, `tartanair`, `tum`, `images` or `video`.

    Raises:
        SourceError: missing, or none of these; says what was looked for.
    """
    return _recognise(Path(path))[0]


def open_source(
    path: Path | str,
    sensor: Sensor | None = None,
    start: int = 0,
    end: int | None = None,
    stride: int = 1,
    topics: Mapping[str, str] | None = None,
    calibration: Path | str | Sequence[Path | str] | None = None,
    masks: Masks = None,
    body_frame: str | None = None,
    pairs: int = 1,
) -> Recording:
    """Open any recording as a source of frames.

    Args:
        path: ROS 1 or ROS 2 bag; KITTI, TUM, EuRoC or TartanAir folder; image folder; video file.
        sensor: mono, stereo or rgbd; default the richest there is (depth before stereo before
            mono).
        start, end, stride: the frames to use, as a slice.
        topics: bags only: topics by key, see `Bag`.
        calibration: file(s) used instead of the calibration of the recording, see
            `read_calibration`.
        masks: image(s) that are black where no features may lie, one per camera.
        body_frame: bags only: frame in /tf_static whose pose is estimated.
        pairs: stereo pairs to read, where it is stereo: of bags (their topics are named), image
            folders and EuRoC folders.

    Raises:
        SourceError: not a recording, or one that cannot be read or has no such sensor.
        CalibrationError: the calibration is missing, incomplete or contradicts the images.
    """
    path = Path(path)
    kind, opener = _recognise(path)
    given = None if calibration is None else read_calibration(calibration)
    if kind == 'images' and given is None and folder.calibration_beside(path) is None:
        _check_is_meant(path)
    source: Recording
    if kind == 'bag':
        source = Bag(path, sensor, given, masks, topics, body_frame, pairs=pairs)
    elif topics or body_frame:
        raise SourceError(
            f'{path}: topics and body_frame are for bags, and this is not one ({kind})'
        )
    else:
        more = {'pairs': pairs} if kind in _OF_SEVERAL_PAIRS else {}
        source = opener(path, sensor, given, masks, **more)
    if pairs > 1 and source.sensor == 'stereo' and len(source.rig.cameras) != 2 * pairs:
        there = len(source.rig.cameras)
        raise SourceError(f'{path}: {there} calibrated cameras, but stereo.pairs is {pairs}')
    if (start, end, stride) == (0, None, 1):
        return source
    return source.sliced(start, end, stride)


def find_sequences(root: Path | str) -> list[Path]:
    """Every recording at or below a folder, sorted: the sequences of a data set.

    Image folders count only with a calibration file of their own; videos do not count.

    Args:
        root: a sequence, or a folder of sequences up to five levels deep.

    Raises:
        SourceError: missing, or no recording in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise SourceError(f'{root}: no such folder')
    found: list[Path] = []
    for place, folders, files in os.walk(root):
        here = Path(place)
        kind = _folder_kind(here)
        if kind is not None and (kind != 'images' or folder.calibration_beside(here)):
            found.append(here)
            folders.clear()
            continue
        bags = [here / name for name in files if is_bag(here / name)]
        found += bags
        if len(here.relative_to(root).parts) >= _MAX_DEPTH:
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
    if not found:
        raise SourceError(f'{root}: no sequences in it; looked for {_looked_for()}')
    return sorted(found)


def _recognise(path: Path) -> tuple[str, _Opener]:
    if not path.exists():
        raise SourceError(f'{path}: no such file or folder')
    if path.is_file():
        if is_bag(path):
            return 'bag', Bag
        if path.suffix.lower() in video.VIDEO_SUFFIXES:
            return 'video', video.Video
        raise SourceError(
            f'{path}: not a recording; files may be bags (.bag, .mcap, .db3) or videos '
            f'({", ".join(sorted(video.VIDEO_SUFFIXES))})'
        )
    kind = _folder_kind(path)
    for name, _, opener, _ in _FOLDERS:
        if name == kind:
            return name, opener
    if not any(path.iterdir()):
        raise SourceError(f'{path}: the folder is empty')
    raise SourceError(f'{path}: not a recording; looked for {_looked_for()}')


def _check_is_meant(path: Path) -> None:
    """Images without a calibration are often not what was meant; say what may have been.

    Raises:
        SourceError: the folder belongs to a sequence, or holds some images among other things.
    """
    parent = path.absolute().parent
    kind = _folder_kind(parent) if parent != path.absolute() else None
    if kind not in (None, 'images', 'bag'):
        raise SourceError(
            f'{path}: images of the {kind} sequence {parent}; open that, or give '
            '--calibration FILE'
        )
    entries = [p for p in path.iterdir() if not p.name.startswith('.')]
    count = len(image_files(path))
    if 2 * count < len(entries):
        raise SourceError(
            f'{path}: not a recording: {count} of {len(entries)} entries are images, and there is '
            f'no calibration; looked for {_looked_for()}'
        )


def _folder_kind(path: Path) -> str | None:
    return next((name for name, looks_like, _, _ in _FOLDERS if looks_like(path)), None)


def _looked_for() -> str:
    return '; '.join(f'{name}: {text}' for name, _, _, text in _FOLDERS)
