# SPDX-License-Identifier: Apache-2.0
"""A folder of images with a calibration file: one camera, a stereo pair, or colour and depth."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from mv_matcher_ros.datatypes import Rig, Sensor
from mv_matcher_ros.errors import CalibrationError, SourceError
from mv_matcher_ros.files.calibration import KEYS_ARE_IN, Calibration, read_calibration
from mv_matcher_ros.files.image_list import ImageList, StampedFiles
from mv_matcher_ros.files.images import image_files
from mv_matcher_ros.files.recording import Masks, choose_sensor
from mv_matcher_ros.files.stamps import stamp_from_text
from mv_matcher_ros.files.trajectory import read_stamps, read_tum

CALIBRATION_NAMES = ('calibration.yaml', 'calibration.yml', 'camera.yaml', 'camera_info.yaml')
LOOKED_FOR = f'images with a calibration file ({", ".join(CALIBRATION_NAMES)})'
# Where nothing says how fast the images were taken.
_ASSUMED_RATE_HZ = 10.0
_SINGLE_FOLDERS = ('.', 'images', 'image', 'rgb', 'color', 'left')


def calibration_beside(folder: Path) -> Path | None:
    """The calibration file of a folder, under one of the usual names."""
    return next((folder / n for n in CALIBRATION_NAMES if (folder / n).is_file()), None)


def is_image_folder(folder: Path) -> bool:
    """Whether there are images in the folder, or a calibration file beside folders of images."""
    if image_files(folder):
        return True
    return calibration_beside(folder) is not None and any(
        image_files(sub) for sub in folder.iterdir() if sub.is_dir()
    )


def open_folder(
    folder: Path,
    sensor: Sensor | None = None,
    calibration: Calibration | None = None,
    masks: Masks = None,
    pairs: int = 1,
) -> ImageList:
    """Images of a folder in natural order of their names.

    With one camera in the calibration the images lie in the folder itself or in `images/`, `rgb/`,
    `left/` or a subfolder named like the camera; with two, in subfolders named like the cameras;
    depth images in `depth/`. Stamps come from `times.txt` (seconds, one row an image), from names
    that are stamps (seconds with a point, or nanoseconds), or from the number in the name and the
    calibration's `rate_hz`.

    Args:
        folder: the folder; `groundtruth.txt` in it (TUM rows of the body) becomes the truth.
        sensor: mono, stereo or rgbd; default the richest there.
        calibration: default that of a calibration file in the folder.
        masks: as for `Recording`.
        pairs: stereo pairs; their cameras follow each other in the calibration.

    Raises:
        SourceError: no images, or stamps that do not fit them.
        CalibrationError: no calibration.
    """
    name = str(folder)
    if calibration is None:
        path = calibration_beside(folder)
        if path is None:
            raise CalibrationError(
                f'{name}: images without a calibration; give --calibration FILE or put '
                f'{CALIBRATION_NAMES[0]} beside them ({KEYS_ARE_IN})'
            )
        calibration = read_calibration(path)
    folders = _image_folders(folder, calibration.rig, pairs)
    lists = [image_files(sub) for sub in folders]
    depth_files = image_files(folder / 'depth')
    missing_right = '' if len(lists) > 1 else 'one camera in the calibration'
    if 1 < len(lists) < 2 * pairs:
        missing_right = f'{len(lists)} cameras in the calibration, stereo.pairs is {pairs}'
    elif not all(lists[1:]):
        missing_right = f'no images in {next(sub for sub in folders[1:] if not image_files(sub))}'
    missing_depth = '' if depth_files else f'no images in {folder / "depth"}'
    if depth_files and calibration.depth_scale is None:
        missing_depth = 'missing key "depth_scale" in the calibration'
    available: dict[Sensor, str] = {
        'mono': '' if lists[0] else 'no images',
        'stereo': missing_right,
        'rgbd': missing_depth,
    }
    chosen = choose_sensor(sensor, available, name)
    lists = lists if chosen == 'stereo' else lists[:1]
    rate = calibration.rate_hz
    images = [_stamped(folder, files, rate) for files in lists]
    depths = _stamped(folder, depth_files, rate) if chosen == 'rgbd' else None
    truth = folder / 'groundtruth.txt'
    source = ImageList(
        name,
        chosen,
        Rig(calibration.rig.cameras[: len(lists)], calibration.rig.body_axes),
        images,
        read_tum(truth) if truth.is_file() else None,
        depths,
        calibration.depth_scale,
        masks,
    )
    if rate is None and not _has_stamps(folder, lists[0]):
        source.note(f'no stamps and no rate_hz, {_ASSUMED_RATE_HZ:g} Hz assumed')
    return source


def _image_folders(folder: Path, rig: Rig, pairs: int) -> list[Path]:
    """The folder of each camera."""
    if len(rig.cameras) > 1:
        return [folder / camera.name for camera in rig.cameras[: 2 * pairs]]
    names = (*_SINGLE_FOLDERS, rig.cameras[0].name)
    return [next((folder / n for n in names if image_files(folder / n)), folder)]


def _has_stamps(folder: Path, files: Sequence[Path]) -> bool:
    return (folder / 'times.txt').is_file() or all(_is_stamp(file.stem) for file in files)


def _is_stamp(stem: str) -> bool:
    """Seconds with a point, or 16 digits and more of nanoseconds; not just any number."""
    return bool(re.fullmatch(r'\d+\.\d+|\d{16,}', stem))


def _stamped(folder: Path, files: Sequence[Path], rate_hz: float | None) -> StampedFiles:
    times = folder / 'times.txt'
    if times.is_file():
        stamps = [int(stamp) for stamp in read_stamps(times)]
        if len(stamps) != len(files):
            raise SourceError(f'{times}: {len(stamps)} rows for {len(files)} images')
        return StampedFiles(stamps, files)
    if files and all(_is_stamp(file.stem) for file in files):
        stamps = [stamp_from_text(file.stem) for file in files]
        order = sorted(range(len(files)), key=stamps.__getitem__)
        return StampedFiles([stamps[i] for i in order], [files[i] for i in order])
    # The number in the name, so that a missing image leaves a gap and does not shift its partner.
    runs = [re.findall(r'\d+', file.stem) for file in files]
    numbers = [int(run[-1]) if run else -1 for run in runs]
    if -1 in numbers or any(a >= b for a, b in pairwise(numbers)):
        numbers = list(range(len(files)))
    period_ns = 1e9 / (rate_hz or _ASSUMED_RATE_HZ)
    return StampedFiles([round(number * period_ns) for number in numbers], files)
