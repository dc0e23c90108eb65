# SPDX-License-Identifier: Apache-2.0
"""`bench recording`: several ways of matching on clips of a recording whose poses are known."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mv_matcher_ros.cli.bench_report import report
from mv_matcher_ros.cli.console import progress, say
from mv_matcher_ros.cli.options import (
    CalibrationOption,
    EndOption,
    JsonOption,
    SensorOption,
    SourceArgument,
    StartOption,
)
from mv_matcher_ros.cli.run import evaluated, open_recording, run_recording
from mv_matcher_ros.cli.ways import HELP, Variant, read_ways, show_comparison
from mv_matcher_ros.errors import EvaluationError, SourceError

if TYPE_CHECKING:
    from mv_matcher_ros.datatypes import Array, Features, Matches
    from mv_matcher_ros.files.recording import Recording
    from mv_matcher_ros.runner import Source
    from mv_matcher_ros.training.adaptation.clips import Clip

FIGURES = ('precision', 'right', 'exact', 'points', 'views')
# A match is exact within this distance of its epipolar lines, pixels of the working image.
EXACT_PX = 1.0
# A true pose belongs to a frame within this time.
NEAR_S = 0.02


def recording(
    source: SourceArgument,
    ways: Annotated[
        Path,
        typer.Option(help=f'{HELP} `seeds`, a list of settings, stands for several trainings.'),
    ],
    most: Annotated[int, typer.Option(min=1, help='Clips at most, spread evenly.')] = 40,
    sensor: SensorOption = None,
    start: StartOption = 0,
    end: EndOption = None,
    calibration: CalibrationOption = None,
    odometry: Annotated[
        bool, typer.Option(help='Odometry, too, with the graph network at every keyframe.')
    ] = True,
    json: JsonOption = False,
) -> None:
    """Matches of clips against true poses, and odometry, with paired bootstrap intervals.

    precision: percent of matches whose squared symmetric epipolar distance is below 1e-4; right:
    how many those are, a pair of views; exact: percent within 1 px of both lines; points and
    views: of the structure that the matches of a clip give (no truth), how many points there are
    and how many views see one.
    """
    from mv_matcher_ros.config import Settings
    from mv_matcher_ros.evaluation.pair_comparison import bootstrap

    chosen = read_ways(ways)
    asked = Settings() if sensor is None else Settings(sensor=sensor.value)
    opened = open_recording(
        source, asked, start=start, end=end, stride=1, calibration=calibration or None
    )
    if opened.truth is None:
        raise SourceError(f'{source}: no ground truth to compare with')
    clips, poses = _clips(opened, most)
    rows = {
        way.name: [_measured(variant, opened, clips, poses, way.name) for variant in way.seeds]
        for way in chosen
    }
    figures = bootstrap(
        {name: _means(several) for name, several in rows.items()}, len(clips), FIGURES
    )
    errors: dict[str, list[float | None]] = {way.name: [] for way in chosen}
    if odometry:
        for way in chosen:
            errors[way.name] = [_ate(variant, opened) for variant in way.seeds]
    content = {
        name: {figure: asdict(value) for figure, value in row.items()} | {'ate_m': errors[name]}
        for name, row in figures.items()
    }

    def show() -> None:
        said = {name: _mean_words(values) for name, values in errors.items()}
        show_comparison(f'{len(clips)} clips of {opened.name}', figures, ('ATE (m)', said))

    report(
        {'recording': {'source': opened.name, 'clips': len(clips), 'ways': content}}, json, show
    )


def _clips(opened: Recording, most: int) -> tuple[list[Clip], list[Array]]:
    """Clips, and of each (V, 4, 4) true world_from_camera of its images."""
    import numpy as np

    from mv_matcher_ros.config import Settings
    from mv_matcher_ros.training.adaptation.clips import ClipImages, runs_of, spread, survey
    from mv_matcher_ros.training.adaptation.settings import ClipSettings

    settings, running = ClipSettings(), Settings()
    pixels, contrast = running.detector.working_pixels, running.image_quality.min_contrast
    cameras = 2 if opened.sensor == 'stereo' else 1
    found = survey(opened, opened.rig, settings, pixels, contrast)
    runs = spread(runs_of(found.chosen, settings, cameras), most)
    if not runs:
        raise SourceError(f'{opened.name}: no clip with parallax and overlap in it')
    wanted = {frame.index: frame.stamp_ns for run in runs for frame in run}
    images = ClipImages.of(opened, wanted, opened.rig, cameras, pixels)
    bodies = true_poses(opened, sorted(wanted.values()))
    extrinsics = [camera.body_from_camera for camera in opened.rig.cameras[:cameras]]
    clips = [images.clip([frame.index for frame in run]) for run in runs]
    poses = [
        np.stack([bodies[frame.stamp_ns] @ pose for frame in run for pose in extrinsics])
        for run in runs
    ]
    return clips, poses


def true_poses(opened: Source, stamps_ns: Sequence[int]) -> dict[int, Array]:
    """(4, 4) world_from_body by stamp.

    Raises:
        EvaluationError: there is no true pose near one.
    """
    import numpy as np

    from mv_matcher_ros.datatypes import Trajectory
    from mv_matcher_ros.evaluation.association import associate

    assert opened.truth is not None
    frames = Trajectory(np.array(stamps_ns), np.tile(np.eye(4), (len(stamps_ns), 1, 1)))
    pairs = associate(frames, opened.truth, max_difference_s=NEAR_S)
    if len(pairs) < len(stamps_ns):
        missing = f'{len(stamps_ns) - len(pairs)} of {len(stamps_ns)} frames'
        raise EvaluationError(f'{opened.name}: {missing} have no true pose within {NEAR_S:g} s')
    return dict(zip(pairs.stamps_ns.tolist(), pairs.truth, strict=True))


def _measured(
    variant: Variant, opened: Recording, clips: Sequence[Clip], poses: Sequence[Array], name: str
) -> Array:
    """(C, 6) of clips: pairs of views, matches, right ones, exact ones, points, observations."""
    import numpy as np

    from mv_matcher_ros.training.adaptation.guard import Judge

    detector, matcher = variant.make()
    judge = Judge(clips, opened.rig)
    counts: list[tuple[int, int, int, int]] = []

    def watch(number: int, features: list[Features], matches: Matches, _: Any) -> None:
        counts.append(_judged(clips[number], poses[number], features, matches))

    with progress(name, len(clips)) as advance:
        figures = judge.figures(detector, matcher, advance, watch)
    return np.array([
        (*count, figure.tracks, figure.tracks * figure.length)
        for count, figure in zip(counts, figures, strict=True)
    ])  # fmt: skip


def _judged(
    clip: Clip, poses: Array, features: Sequence[Features], matches: Matches
) -> tuple[int, int, int, int]:
    """Pairs of views, their matches, and how many of those are right, and exact."""
    import numpy as np
    import torch

    from mv_matcher_ros.evaluation.matching_error import epipolar_correct
    from mv_matcher_ros.geometry.camera import camera_normalise
    from mv_matcher_ros.geometry.epipolar import essential_from_pose, symmetric_epipolar_error

    plane = [
        camera_normalise(camera, one.keypoints_xy.double())[0]
        for camera, one in zip(clip.cameras, features, strict=True)
    ]
    made = right = exact = 0
    for a, b in combinations(range(len(plane)), 2):
        keypoints, _ = matches.pair(a, b)
        if not len(keypoints):
            continue
        xy_a, xy_b = plane[a][keypoints[:, 0]], plane[b][keypoints[:, 1]]
        b_from_a = np.linalg.inv(poses[b]) @ poses[a]
        made += len(keypoints)
        right += int(epipolar_correct(xy_a.numpy(), xy_b.numpy(), b_from_a).sum())
        squared = symmetric_epipolar_error(
            essential_from_pose(torch.from_numpy(b_from_a)), xy_a, xy_b
        )
        limit = 2.0 * (EXACT_PX / clip.cameras[a].focal_px) ** 2
        exact += int((squared < limit).sum())
    return len(plane) * (len(plane) - 1) // 2, made, right, exact


def _means(several: Sequence[Array]) -> Any:
    """Figures of clips that an index chooses, the mean over seeds."""
    import numpy as np

    stacked = np.stack(several)  # (S, C, 6)

    def of(index: Any) -> list[float]:
        pairs, made, right, exact, points, views = np.moveaxis(stacked[:, index].sum(1), -1, 0)
        count = len(index)
        return [
            float(np.mean(100.0 * right / np.maximum(made, 1))),
            float(np.mean(right / pairs)),
            float(np.mean(100.0 * exact / np.maximum(made, 1))),
            float(np.mean(points / count)),
            float(np.mean(views / np.maximum(points, 1))),
        ]

    return of


def _ate(variant: Variant, opened: Recording) -> float | None:
    """Root mean square of positions after alignment, with the graph network at every keyframe."""
    matching = variant.settings.matching.model_copy(update={'matcher': 'multiview'})
    settings = variant.settings.model_copy(update={'matching': matching})
    with tempfile.TemporaryDirectory() as folder:
        run_recording(opened, settings, Path(folder))
        result, warning = evaluated(Path(folder), opened.truth)
    if warning:
        say(warning)
    if result is None:
        return None
    return float(result.ate.translation_m.rmse)


def _mean_words(values: Sequence[float | None]) -> str:
    found = [value for value in values if value is not None]
    if not found:
        return '–'
    words = f'{sum(found) / len(found):.4f}'
    return words if len(found) == len(values) else f'{words} ({len(found)} of {len(values)})'
