# SPDX-License-Identifier: Apache-2.0
"""`bench matcher`: detector, graph network and pose block, by profile, views and keypoints.

Weights do not change the time: networks are untrained unless files are named. All rows of a table
run in turns in one process, so that their ratios hold on a noisy machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import typer

from mv_matcher_ros.cli.bench_report import report
from mv_matcher_ros.cli.console import print_table, progress
from mv_matcher_ros.cli.options import ConfigOption, JsonOption, SetOption, settings_from

WARM_UPS = 2

Call = Callable[[], object]


def matcher(
    keypoints: Annotated[int, typer.Option(min=16, help='Keypoints of a view.')] = 512,
    repeats: Annotated[int, typer.Option(min=1, help='Runs of each row; the median counts.')] = 9,
    compiled: Annotated[
        bool,
        typer.Option('--compiled', help='Also compiled engines: minutes to build the first time.'),
    ] = False,
    config: ConfigOption = None,
    assignments: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Detector, graph network (joint and streaming) and pose block, with others beside them."""
    import torch

    from mv_matcher_ros.cli.bench_networks import (
        detector_calls,
        matcher_calls,
        matcher_floors,
        ways_to_run,
        window_calls,
    )

    settings = settings_from(config, assignments)
    if settings.runtime.threads:
        torch.set_num_threads(settings.runtime.threads)
    runtime = settings.runtime
    ways = ways_to_run(runtime, compiled)
    tables: dict[str, Mapping[str, Call]] = {
        'detector, VGA': detector_calls(ways),
        'matcher with assignment and confidences': matcher_calls(ways, keypoints),
        f'a new view and its window, light, {keypoints} keypoints': window_calls(
            runtime, keypoints
        ),
        'pose block, 300 matches a pair': pose_calls(),
    }
    rows = {}
    with progress('matcher', repeats * sum(map(len, tables.values()))) as advance:
        for title, calls in tables.items():
            rows[title] = in_turns(calls, repeats, advance)
    floors = matcher_floors(ways, keypoints)
    content: dict[str, Any] = {
        'threads': torch.get_num_threads(),
        'tables': rows,
        'floors': floors,
    }
    if torch.cuda.is_available():
        content['memory_mb'] = {title: memory_mb(calls) for title, calls in tables.items()}

    def show() -> None:
        for title, times in rows.items():
            first = next(iter(times.values()))
            print_table(
                f'{title}, {content["threads"]} threads',
                ('what', 'median ms', 'against the first'),
                [(name, f'{ms:.1f}', f'{ms / first:.2f} x') for name, ms in times.items()],
                right=(1, 2),
            )
        print_table(
            'floor of the matcher: counted operations and bytes at the best rates of this machine',
            ('what', 'floor ms', 'operations', 'bytes'),
            [
                (name, f'{f["floor_ms"]:.2f}', f'{f["operations"]:.2e}', f'{f["bytes"]:.2e}')
                for name, f in floors.items()
            ],
            right=(1, 2, 3),
        )
        for title, used in content.get('memory_mb', {}).items():
            print_table(
                f'{title}: largest GPU memory',
                ('what', 'MB'),
                [(name, f'{mb:.0f}') for name, mb in used.items()],
                right=(1,),
            )

    report({'matcher': content}, json, show)


def in_turns(
    calls: Mapping[str, Call], repeats: int, advance: Callable[[str], None]
) -> dict[str, float]:
    """Median milliseconds of each call, one run of each after the other."""
    import torch

    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for number in range(WARM_UPS + repeats):
            for name, call in calls.items():
                begin = time.perf_counter()
                call()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                if number >= WARM_UPS:
                    times[name].append(1e3 * (time.perf_counter() - begin))
                    advance(name)
    return {name: statistics.median(values) for name, values in times.items()}


def memory_mb(calls: Mapping[str, Call]) -> dict[str, float]:
    """Largest GPU memory while each call runs, weights of all networks included."""
    import torch

    used = {}
    for name, call in calls.items():
        torch.cuda.reset_peak_memory_stats()
        call()
        used[name] = torch.cuda.max_memory_allocated() / 2**20
    return used


def pose_calls() -> dict[str, Call]:
    """Weighted eight-point, scales and bundle adjustment for two and five views."""
    from mv_matcher_ros.config import PoseEstimatorSettings
    from mv_matcher_ros.odometry.pose_estimator import PoseEstimator

    estimator = PoseEstimator(PoseEstimatorSettings())
    calls: dict[str, Call] = {}
    for views in (5, 2):
        scene = pose_scene(views, 300)
        calls[f'{views} views'] = partial(estimator.estimate, *scene)
    return calls


def pose_scene(views: int, points: int) -> Sequence[Any]:
    """plane_xy, sigma and matches of random points with noise of a pixel, all of them right."""
    from itertools import combinations

    import torch

    from mv_matcher_ros.datatypes import Matches
    from mv_matcher_ros.geometry import se3

    generator = torch.Generator().manual_seed(0)
    noise = 1.0 / 600.0

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    motion = torch.cat([0.3 * normal(views, 3).cumsum(0), 0.1 * normal(views, 3)], dim=1)
    cube = torch.rand(points, 3, generator=generator, dtype=torch.float64)
    world = cube * torch.tensor([6.0, 4.0, 5.0]) + torch.tensor([-3.0, -2.0, 4.0])
    local = se3.transform(se3.inverse(se3.exp(motion)), world.expand(views, points, 3))
    plane = local[..., :2] / local[..., 2:] + noise * normal(views, points, 2)
    pairs = torch.tensor(list(combinations(range(views), 2)))
    number = torch.arange(points).repeat(len(pairs))
    matches = Matches(
        pairs.repeat_interleave(points, 0),
        torch.stack([number, number], dim=1),
        torch.full((len(number),), 0.9),
    )
    return plane, torch.full((views, points), noise, dtype=torch.float64), matches
