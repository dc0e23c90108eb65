# SPDX-License-Identifier: Apache-2.0
"""TUM RGB-D folders and others like them: rgb/ [depth/], rgb.txt, depth.txt, groundtruth.txt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mv_matcher_ros.datatypes import Rig, Sensor
from mv_matcher_ros.errors import CalibrationError, SourceError
from mv_matcher_ros.files.calibration import Calibration, read_calibration
from mv_matcher_ros.files.image_list import ImageList, StampedFiles, first_image_size
from mv_matcher_ros.files.images import image_files
from mv_matcher_ros.files.plain_calibration import camera_of_row, read_row
from mv_matcher_ros.files.recording import Masks, choose_sensor
from mv_matcher_ros.files.stamps import stamp_from_text
from mv_matcher_ros.files.text import read_rows
from mv_matcher_ros.files.trajectory import read_tum

LOOKED_FOR = 'rgb.txt, or rgb/ with stamps for names'

# Colour cameras of the benchmark as its authors publish them: fx fy cx cy k1 k2 p1 p2 k3 (Sturm et
# al., 2012).
_FREIBURG = {
    'freiburg1': (517.3, 516.5, 318.6, 255.3, 0.2624, -0.9531, -0.0054, 0.0026, 1.1633),
    'freiburg2': (520.9, 521.0, 325.1, 249.7, 0.2312, -0.7849, -0.0033, -0.0001, 0.9172),
    'freiburg3': (535.4, 539.2, 320.1, 247.6, 0.0, 0.0, 0.0, 0.0, 0.0),
}
_FREIBURG_SIZE = (640, 480)
_FREIBURG_DEPTH_SCALE = 5000.0


def is_tum(folder: Path) -> bool:
    """Whether this looks like a TUM RGB-D sequence: a list of images, or names that are stamps."""
    if (folder / 'rgb.txt').is_file():
        return True
    if (folder / 'calibration.txt').is_file() and (folder / 'rgb').is_dir():
        return True
    files = image_files(folder / 'rgb')
    return bool(files) and bool(re.fullmatch(r'\d+\.\d+|\d{16,}', files[0].stem))


def open_tum(
    folder: Path,
    sensor: Sensor | None = None,
    calibration: Calibration | None = None,
    masks: Masks = None,
) -> ImageList:
    """A sequence in the layout of the TUM RGB-D benchmark; the body is the colour camera.

    The calibration is `calibration`, or calibration.txt (`fx fy cx cy k1 k2 p1 p2 k3 width
    height`, the depth scale in a line `depth_scale S`), or calibration.yaml, or that of the
    benchmark by the folder's name.

    Args:
        folder: sequence folder.
        sensor: mono or rgbd; default rgbd where depth images are.
        calibration: used instead of what the folder says.
        masks: as for `Recording`.

    Raises:
        SourceError: images are missing or their names are no stamps.
        CalibrationError: no calibration, or no depth scale for rgbd.
    """
    name = str(folder)
    images, depths = _files(folder, 'rgb'), _files(folder, 'depth')
    available: dict[Sensor, str] = {
        'mono': '' if len(images) else f'no images in {folder / "rgb"}',
        'rgbd': '' if len(depths) and len(images) else f'no depth images in {folder / "depth"}',
        'stereo': 'one camera only',
    }
    chosen = choose_sensor(sensor, available, name)
    given = calibration or _calibration(folder, images.files)
    if chosen == 'rgbd' and given.depth_scale is None:
        raise CalibrationError(f'{name}: missing key "depth_scale" in the calibration')
    truth_file = folder / 'groundtruth.txt'
    return ImageList(
        name,
        chosen,
        Rig(given.rig.cameras[:1], given.rig.body_axes),
        [images],
        read_tum(truth_file) if truth_file.is_file() else None,
        depths if chosen == 'rgbd' else None,
        given.depth_scale,
        masks,
    )


def _files(folder: Path, kind: str) -> StampedFiles:
    """Images by their list file `stamp name`, else by names that are stamps."""
    listed = folder / f'{kind}.txt'
    stamps: list[int] = []
    files: list[Path] = []
    if listed.is_file():
        for number, fields in read_rows(listed):
            if len(fields) != 2:
                raise SourceError(f'{listed}:{number}: expected "stamp file"')
            stamps.append(_stamp(fields[0], f'{listed}:{number}'))
            files.append(folder / fields[1])
    else:
        files = image_files(folder / kind)
        stamps = [_stamp(file.stem, str(file)) for file in files]
        # Natural order of file names is not the order of decimals: 1.5 comes before 1.10.
        order = sorted(range(len(files)), key=stamps.__getitem__)
        stamps, files = [stamps[i] for i in order], [files[i] for i in order]
    return StampedFiles(stamps, files)


def _stamp(text: str, where: str) -> int:
    try:
        return stamp_from_text(text)
    except ValueError as error:
        raise SourceError(f'{where}: {error}') from None


def _calibration(folder: Path, files: Sequence[Path]) -> Calibration:
    plain = folder / 'calibration.txt'
    if plain.is_file():
        camera, scale = read_row(plain, lambda: first_image_size(files, str(plain)))
        return Calibration(Rig((camera,)), depth_scale=scale)
    for candidate in (folder / 'calibration.yaml', folder / 'camera_info.yaml'):
        if candidate.is_file():
            return read_calibration(candidate)
    for key, values in _FREIBURG.items():
        if key in folder.name:
            camera = camera_of_row(values, _FREIBURG_SIZE, str(folder))
            return Calibration(Rig((camera,)), depth_scale=_FREIBURG_DEPTH_SCALE)
    raise CalibrationError(
        f'{folder}: no calibration; looked for calibration.txt, calibration.yaml, '
        'camera_info.yaml and freiburg1…3 in the name'
    )
