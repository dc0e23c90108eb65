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
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mv_matcher_ros.cli.bench_report import report
from mv_matcher_ros.cli.console import print_table, progress
from mv_matcher_ros.cli.options import ConfigOption, JsonOption, SetOption, settings_from

if TYPE_CHECKING:
    from mv_matcher_ros.config import RuntimeSettings
    from mv_matcher_ros.datatypes import Features

WARM_UPS = 2
LARGEST_WINDOW = 10

Call = Callable[[], object]


def matcher(
    keypoints: Annotated[int, typer.Option(min=16, help='Keypoints of a view.')] = 512,
    repeats: Annotated[int, typer.Option(min=1, help='Runs of each row; the median counts.')] = 9,
    config: ConfigOption = None,
    assignments: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Detector, graph network (joint and streaming) and pose block, with others beside them."""
    import torch

    settings = settings_from(config, assignments)
    if settings.runtime.threads:
        torch.set_num_threads(settings.runtime.threads)
    runtime = settings.runtime
    tables: dict[str, Mapping[str, Call]] = {
        'detector, VGA': detector_calls(runtime),
        f'matcher with assignment and confidences, {keypoints} keypoints': matcher_calls(
            runtime, keypoints
        ),
        f'a new view and its window, light, {keypoints} keypoints': window_calls(
            runtime, keypoints
        ),
        'pose block, 300 matches a pair': pose_calls(),
    }
    rows = {}
    with progress('matcher', repeats * sum(map(len, tables.values()))) as advance:
        for title, calls in tables.items():
            rows[title] = in_turns(calls, repeats, advance)
    content = {'threads': torch.get_num_threads(), 'tables': rows}

    def show() -> None:
        for title, times in rows.items():
            first = next(iter(times.values()))
            print_table(
                f'{title}, {content["threads"]} threads',
                ('what', 'median ms', 'against the first'),
                [(name, f'{ms:.1f}', f'{ms / first:.2f} x') for name, ms in times.items()],
                right=(1, 2),
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


def detector_calls(runtime: RuntimeSettings) -> dict[str, Call]:
    """VGA images through every detector."""
    import numpy as np

    from mv_matcher_ros.config import DetectorSettings
    from mv_matcher_ros.models.classical import ClassicalDetector
    from mv_matcher_ros.models.detector import DetectorNetwork
    from mv_matcher_ros.models.learned import LearnedDetector
    from mv_matcher_ros.models.profiles import DETECTORS

    image = np.random.default_rng(0).integers(0, 255, (480, 640), np.uint8)
    calls: dict[str, Call] = {}
    for name in ('light', 'full'):
        for precision in _precisions(runtime):
            settings = runtime.model_copy(update={'precision': precision})
            network = DetectorNetwork(DETECTORS[name])
            detector = LearnedDetector(network, DetectorSettings(max_keypoints=512), settings)
            calls[f'{name}, {detector.place.name}'] = partial(detector.detect, image)
    sift = ClassicalDetector(DetectorSettings())
    calls['SIFT of OpenCV'] = partial(sift.detect, image)
    return calls


def matcher_calls(runtime: RuntimeSettings, keypoints: int) -> dict[str, Call]:
    """Two and five views through the profiles, and LightGlue of kornia where it is installed."""
    from mv_matcher_ros.config import MatchingSettings
    from mv_matcher_ros.models.learned import LearnedMatcher
    from mv_matcher_ros.models.matcher import MatcherNetwork
    from mv_matcher_ros.models.profiles import MATCHERS

    settings = MatchingSettings(graph_keypoints=max(16, keypoints))
    calls: dict[str, Call] = {}
    for views in (2, 5):
        for name in ('light', 'full', 'superglue'):
            if name == 'superglue' and views > 2:
                continue
            profile = MATCHERS[name]
            features = random_features(views, keypoints, profile.descriptor_size)
            for precision in _precisions(runtime):
                chosen = runtime.model_copy(update={'precision': precision})
                learned = LearnedMatcher(MatcherNetwork(profile), settings, chosen)
                size = _millions(learned.network)
                title = f'{views} views, {name} ({size}), {learned.place.name}'
                calls[title] = partial(learned.match, features)
    for width, layers in ((256, 9), (128, 5)):
        other = _lightglue(keypoints, width, layers)
        if other is not None:
            name, call = other
            calls[f'2 views, {name}, cpu fp32'] = call
    return calls


def _precisions(runtime: RuntimeSettings) -> tuple[str, ...]:
    import torch

    if runtime.precision != 'auto':
        return (runtime.precision,)
    cuda = runtime.device != 'cpu' and torch.cuda.is_available()
    return ('fp32', 'fp16') if cuda else ('fp32', 'bf16')


def _millions(network: Any) -> str:
    return f'{sum(p.numel() for p in network.parameters()) / 1e6:.1f} M'


def _lightglue(keypoints: int, width: int, layers: int) -> tuple[str, Call] | None:
    """LightGlue without weights and without early exit; None where kornia is not installed."""
    try:
        from kornia.feature import LightGlue
    except ImportError:
        return None
    import torch

    nothing: Any = None  # no name of a feature: no weights are fetched
    network = LightGlue(
        nothing,
        input_dim=width,
        descriptor_dim=width,
        n_layers=layers,
        depth_confidence=-1,
        width_confidence=-1,
        flash=True,
    ).eval()
    images = {}
    for number, features in enumerate(random_features(2, keypoints, width)):
        images[f'image{number}'] = {
            'keypoints': features.keypoints_xy[None],
            'descriptors': features.descriptors[None],
            'image_size': torch.tensor([features.image_size]),
        }
    name = f'LightGlue of kornia, width {width}, {layers} layers ({_millions(network)})'
    return name, partial(network, images)


def window_calls(runtime: RuntimeSettings, keypoints: int) -> dict[str, Call]:
    """A new view with 1 to 9 earlier ones: jointly, and with what they gave kept."""
    from mv_matcher_ros.config import MatchingSettings
    from mv_matcher_ros.models.learned import LearnedMatcher
    from mv_matcher_ros.models.matcher import MatcherNetwork
    from mv_matcher_ros.models.profiles import MATCHERS
    from mv_matcher_ros.models.streaming import StreamingMatcher, ViewState

    network = MatcherNetwork(MATCHERS['light']).eval()
    settings = MatchingSettings(graph_keypoints=max(16, keypoints))
    joint = LearnedMatcher(network, settings, runtime.model_copy(update={'precision': 'fp32'}))
    streaming = StreamingMatcher(network)
    features = random_features(LARGEST_WINDOW, keypoints, network.profile.descriptor_size)
    past: list[ViewState] = []
    calls: dict[str, Call] = {}
    for earlier in range(LARGEST_WINDOW):
        new = features[earlier]
        if earlier:
            pairs = [(number, earlier) for number in range(earlier)]
            name = f'{earlier + 1} views'
            calls[f'{name}, joint'] = partial(joint.match, features[: earlier + 1], pairs)
            calls[f'{name}, streaming'] = partial(streaming.match, new, list(past))
        past.append(streaming.match(new, past)[0])
    return calls


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


def random_features(views: int, keypoints: int, width: int) -> list[Features]:
    """Features with nothing in common: time does not depend on them."""
    import torch

    from mv_matcher_ros.datatypes import Features

    generator = torch.Generator().manual_seed(0)
    return [
        Features(
            torch.rand(keypoints, 2, generator=generator) * torch.tensor([640.0, 480.0]),
            torch.nn.functional.normalize(
                torch.randn(keypoints, width, generator=generator), dim=-1
            ),
            torch.rand(keypoints, generator=generator),
            torch.ones(keypoints),
            (640, 480),
        )
        for _ in range(views)
    ]


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
