# SPDX-License-Identifier: Apache-2.0
"""`localize`: where the frames of a recording are on a map that was saved."""

from __future__ import annotations

import json as json_module
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mv_matcher_ros.cli.console import print_json, print_table, progress, say, warn, write_text
from mv_matcher_ros.cli.options import (
    BodyOption,
    CalibrationOption,
    ConfigOption,
    EndOption,
    JsonOption,
    SensorOption,
    SetOption,
    SourceArgument,
    StartOption,
    StrideOption,
    TopicOption,
    parse_topics,
    settings_from,
)
from mv_matcher_ros.cli.out_folder import check_run_folder, out_option
from mv_matcher_ros.cli.run import MaskOption, open_recording

if TYPE_CHECKING:
    from mv_matcher_ros.config import Settings
    from mv_matcher_ros.datatypes import Array, Trajectory
    from mv_matcher_ros.mapping.map import Map
    from mv_matcher_ros.runner import Source

POSES, SUMMARY = 'localized.tum', 'localized.json'
# A pose this old is no guess any more.
GUESS_S = 1.0
# A degree of attitude counts as much as what it moves so far away.
LEVER_M = 1.0
# Metres and degrees within which frames are counted (as in the visual localisation benchmarks,
# Sattler et al., CVPR 2018, in the sizes of a room).
WITHIN = ((0.02, 2.0), (0.05, 5.0), (0.25, 10.0))


def localize(
    folder: Annotated[Path, typer.Argument(metavar='MAP', help='Folder of a saved map.')],
    source: SourceArgument,
    out: Annotated[Path, out_option('Folder to write.')],
    sensor: SensorOption = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
    alone: Annotated[
        bool, typer.Option('--alone', help='Each frame by itself: none is a guess for the next.')
    ] = False,
    start: StartOption = 0,
    end: EndOption = None,
    stride: StrideOption = 1,
    calibration: CalibrationOption = None,
    mask: MaskOption = None,
    topic: TopicOption = None,
    body_frame: BodyOption = None,
    json: JsonOption = False,
) -> None:
    """Poses of the frames of a recording on a map: localized.tum and localized.json.

    Frames that are not found have no pose. With ground truth of the recording that the map is of,
    the errors, too: the map's keyframes are laid on the truth first.
    """
    from mv_matcher_ros.mapping.map_folder import load_map

    check_run_folder(out)
    settings = settings_from(config, assignments, sensor.value if sensor else None)
    recording = open_recording(
        source, settings, start=start, end=end, stride=stride, calibration=calibration or None,
        masks=mask or None, topics=parse_topics(topic or ()), body_frame=body_frame,
    )  # fmt: skip
    settings = settings.model_copy(update={'sensor': recording.sensor})
    world = load_map(folder)
    found, said = locate_frames(settings, recording, world, alone)
    _write_poses(out / POSES, found)
    errors = located_errors(found, world, recording.truth, len(recording))
    content = {'map': str(folder), 'source': recording.name, **said, **errors}
    write_text(out / SUMMARY, json_module.dumps(content, indent=2) + '\n')
    if json:
        print_json(content)
        return
    _print(recording.name, content)
    say(f'poses: {out / POSES}')


def locate_frames(
    settings: Settings, recording: Source, world: Map, alone: bool
) -> tuple[Trajectory, dict[str, Any]]:
    """Poses of the frames that were found, and what there is to say of all."""
    import numpy as np

    from mv_matcher_ros.datatypes import Trajectory
    from mv_matcher_ros.mapping.localizer import Localizer, Located
    from mv_matcher_ros.mapping.mapper import check_fits
    from mv_matcher_ros.models.choice import Models, place_describer
    from mv_matcher_ros.odometry.observation import Observer

    models = Models.of(settings)
    rig = world.known_rig(recording.rig)
    models.prepare(rig)
    check_fits(world, settings, rig, models)
    describer = place_describer(settings, models)
    localizer = Localizer(settings, rig, models, describer, world)
    observer = Observer(settings, rig, models.detector)
    stamps, poses, inliers, milliseconds = [], [], [], []
    reasons: dict[str, int] = {}
    guess: tuple[int, Array] | None = None
    with progress(Path(recording.name).name, len(recording)) as advance:
        for frame in recording:
            begin = time.perf_counter()
            near = guess is not None and frame.stamp_ns - guess[0] < GUESS_S * 1e9
            seen = observer.observe(frame).of_first_camera()
            found = localizer.locate(seen, guess[1] if guess is not None and near else None)
            milliseconds.append((time.perf_counter() - begin) * 1e3)
            if isinstance(found, Located):
                stamps.append(frame.stamp_ns)
                poses.append(found.map_from_body)
                inliers.append(found.inliers)
                guess = None if alone else (frame.stamp_ns, found.map_from_body)
            else:
                reasons[found.reason] = reasons.get(found.reason, 0) + 1
            advance(f'{len(stamps)} found')
    trajectory = Trajectory(
        np.array(stamps, np.int64), np.stack(poses) if poses else np.zeros((0, 4, 4))
    )
    p50, p95 = np.percentile(milliseconds, [50, 95]) if milliseconds else (None, None)
    return trajectory, {
        'frames': len(milliseconds),
        'found': len(stamps),
        'inliers': float(np.median(inliers)) if inliers else None,
        'frame_ms': {'p50': p50, 'p95': p95},
        'not_found': dict(sorted(reasons.items(), key=lambda item: -item[1])[:5]),
    }


def _write_poses(path: Path, found: Trajectory) -> None:
    from mv_matcher_ros.files.trajectory import write_tum

    path.parent.mkdir(parents=True, exist_ok=True)
    write_tum(path, found)


def located_errors(
    found: Trajectory, world: Map, truth: Trajectory | None, frames: int
) -> dict[str, Any]:
    """Errors of the poses, the map laid on the truth by the keyframes whose truth is known."""
    import numpy as np

    if truth is None:
        return {}
    laid = laid_on_truth(world, truth)
    if laid is None:
        warn('no errors: the truth has no poses of the keyframes of the map')
        return {}
    truth_from_map, scale, rmse = laid
    true = dict(zip(truth.stamps_ns.tolist(), truth.world_from_body, strict=True))
    metres, degrees = [], []
    for stamp, pose in zip(found.stamps_ns.tolist(), found.world_from_body, strict=True):
        if stamp in true:
            here = truth_from_map @ pose
            metres.append(float(np.linalg.norm(here[:3, 3] - true[stamp][:3, 3])))
            turn = (here[:3, :3] / scale).T @ true[stamp][:3, :3]
            degrees.append(float(np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))))
    within = {
        f'{100 * m:g} cm {d:g} deg': 100.0
        * sum(a <= m and b <= d for a, b in zip(metres, degrees, strict=True))
        / max(frames, 1)
        for m, d in WITHIN
    }
    median = (float(np.median(metres)), float(np.median(degrees))) if metres else (None, None)
    return {
        'map_rmse_m': rmse,
        'median_m': median[0],
        'median_deg': median[1],
        'within_percent_of_frames': within,
    }


def laid_on_truth(world: Map, truth: Trajectory) -> tuple[Array, float, float] | None:
    """(4, 4) similarity truth_from_map, its scale, and the error of the keyframes, metres; None
    with fewer than three keyframes whose truth is known."""
    import numpy as np

    true = dict(zip(truth.stamps_ns.tolist(), truth.world_from_body, strict=True))
    known = [k for k in world.keyframes.values() if k.stamp_ns in true]
    if len(known) < 3:
        return None
    return _laid_on(
        np.stack([world.pose[k.key] for k in known]),
        np.stack([true[k.stamp_ns] for k in known]),
        not world.metric,
    )


def _laid_on(of_map: Array, of_truth: Array, with_scale: bool) -> tuple[Array, float, float]:
    """(4, 4) similarity truth_from_map, its scale, and what is left at the keyframes, metres.

    By places and attitudes: a short way does not say how a map lies.
    """
    import numpy as np
    import torch

    from mv_matcher_ros.geometry.alignment import align_points

    def fit(source: Array, target: Array, scaled: bool) -> Any:
        return align_points(
            torch.from_numpy(source.copy()), torch.from_numpy(target.copy()), with_scale=scaled
        )

    places = fit(of_map[:, :3, 3], of_truth[:, :3, 3], with_scale)
    scale = float(places.scale)
    turns = of_map[:, :3, :3] / np.cbrt(np.linalg.det(of_map[:, :3, :3]))[:, None, None]
    # Each keyframe as its place and the tips of its axes.
    arms = np.concatenate([np.zeros((3, 1)), LEVER_M * np.eye(3)], axis=1)
    here = scale * of_map[:, :3, 3:] + turns @ arms
    there = of_truth[:, :3, 3:] + of_truth[:, :3, :3] @ arms
    both = fit(
        here.transpose(0, 2, 1).reshape(-1, 3), there.transpose(0, 2, 1).reshape(-1, 3), False
    )
    turned = both.target_from_source.numpy().copy()
    turned[:3, :3] *= scale
    left = of_map[:, :3, 3] @ turned[:3, :3].T + turned[:3, 3] - of_truth[:, :3, 3]
    return turned, scale, float(np.sqrt(np.square(left).sum(1).mean()))


def _print(name: str, content: dict[str, Any]) -> None:
    times = content['frame_ms']
    rows: list[tuple[str, Any]] = [
        ('frames', content['frames']),
        ('found', content['found']),
        ('landmarks that agree, median', content['inliers']),
    ]
    if times['p50'] is not None:
        rows.append(('time p50 / p95', f'{times["p50"]:.0f} / {times["p95"]:.0f} ms'))
    for reason, count in content['not_found'].items():
        rows.append((f'not found: {reason}', count))
    if 'within_percent_of_frames' in content:
        rows.append(('keyframes of the map against the truth', f'{content["map_rmse_m"]:.4f} m'))
        if content['median_m'] is not None:
            rows.append(
                ('median error', f'{content["median_m"]:.4f} m, {content["median_deg"]:.2f} deg')
            )
        for bound, share in content['within_percent_of_frames'].items():
            rows.append((f'frames within {bound}', f'{share:.1f} %'))
    print_table(name, ('figure', 'value'), rows)
