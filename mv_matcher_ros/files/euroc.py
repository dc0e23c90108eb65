# SPDX-License-Identifier: Apache-2.0
"""ASL folders (EuRoC, TUM-VI, others): mav0/cam0 [cam1] with data.csv, data/ and sensor.yaml."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mv_matcher_ros.datatypes import Camera, Rig, Sensor, Trajectory
from mv_matcher_ros.errors import CalibrationError, SourceError
from mv_matcher_ros.files.calibration import Calibration, read_calibration
from mv_matcher_ros.files.image_list import ImageList, StampedFiles
from mv_matcher_ros.files.images import image_files
from mv_matcher_ros.files.recording import Masks, choose_sensor
from mv_matcher_ros.files.stamps import stamp_from_text
from mv_matcher_ros.files.text import read_rows
from mv_matcher_ros.files.trajectory import read_euroc_truth

LOOKED_FOR = 'mav0/cam0/data'


def is_euroc(folder: Path) -> bool:
    """Whether this looks like an ASL data set: the folder of the sequence, or its mav0."""
    return (_root(folder) / 'cam0' / 'data').is_dir()


def open_euroc(
    folder: Path,
    sensor: Sensor | None = None,
    calibration: Calibration | None = None,
    masks: Masks = None,
    pairs: int = 1,
) -> ImageList:
    """An ASL sequence; the body is that of T_BS (the IMU), as in its ground truth.

    Args:
        folder: sequence folder, or its mav0.
        sensor: mono or stereo; default stereo where cam1 is.
        calibration: used instead of the sensor.yaml files, e.g. a Kalibr camchain.
        masks: as for `Recording`.
        pairs: stereo pairs: cam0 and cam1, cam2 and cam3, and so on.

    Raises:
        SourceError: images are missing or not stamped in nanoseconds.
        CalibrationError: sensor.yaml is missing or incomplete.
    """
    root, name = _root(folder), str(folder)
    files = [_files(root / f'cam{number}') for number in range(2 * pairs)]
    missing = next((n for n in range(1, 2 * pairs) if not len(files[n])), 0)
    available: dict[Sensor, str] = {
        'mono': '' if len(files[0]) else f'no images in {root / "cam0" / "data"}',
        'stereo': f'no images in {root / f"cam{missing or 1}" / "data"}'
        if missing or not len(files[0])
        else '',
        'rgbd': 'ASL folders have none',
    }
    chosen = choose_sensor(sensor, available, name)
    count = 2 * pairs if chosen == 'stereo' else 1
    if calibration is None:
        parts = [read_calibration(root / f'cam{i}' / 'sensor.yaml') for i in range(count)]
        cameras: tuple[Camera, ...] = tuple(
            replace(part.rig.cameras[0], name=f'cam{i}') for i, part in enumerate(parts)
        )
        rig = Rig(cameras, parts[0].rig.body_axes)
    else:
        rig = Rig(calibration.rig.cameras[:count], calibration.rig.body_axes)
    apart_m = [rig.pair(number).baseline_m for number in range(max(1, len(rig.cameras) // 2))]
    if count > 1 and min(apart_m) < 1e-6:
        raise CalibrationError(
            f'{name}: both cameras are at the same place (T_BS missing or equal)'
        )
    return ImageList(name, chosen, rig, files[:count], _truth(root), masks=masks)


def _root(folder: Path) -> Path:
    return folder / 'mav0' if (folder / 'mav0').is_dir() else folder


def _files(camera: Path) -> StampedFiles:
    """Images by data.csv (`stamp_ns,file`), else by names that are stamps."""
    listed = camera / 'data.csv'
    stamps: list[int] = []
    files: list[Path] = []
    if listed.is_file():
        for number, fields in read_rows(listed):
            if len(fields) < 2:
                raise SourceError(f'{listed}:{number}: expected "stamp,file"')
            stamps.append(_stamp(fields[0], f'{listed}:{number}'))
            files.append(camera / 'data' / fields[1])
    else:
        files = image_files(camera / 'data')
        stamps = [_stamp(file.stem, str(file)) for file in files]
    return StampedFiles(stamps, files)


def _stamp(text: str, where: str) -> int:
    try:  # nanoseconds however few digits there are, unlike in other formats
        return int(text) if text.isdecimal() else stamp_from_text(text)
    except ValueError as error:
        raise SourceError(f'{where}: {error}') from None


def _truth(root: Path) -> Trajectory | None:
    for name in ('state_groundtruth_estimate0', 'mocap0'):
        path = root / name / 'data.csv'
        if path.is_file():
            return read_euroc_truth(path)
    return None
