# SPDX-License-Identifier: Apache-2.0
"""What `bench matcher` times: detectors and graph networks, each in several ways to run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mv_matcher_ros.config import RuntimeSettings
    from mv_matcher_ros.datatypes import Features
    from mv_matcher_ros.models.known_poses import KnownPoses

LARGEST_WINDOW = 10

Call = Callable[[], object]


def ways_to_run(runtime: RuntimeSettings, compiled: bool) -> list[RuntimeSettings]:
    """Precisions and executions worth a row here, single precision without tricks first."""
    import torch

    cuda = runtime.device != 'cpu' and torch.cuda.is_available()
    half = 'fp16' if cuda else 'bf16'
    ways = [('fp32', 'eager'), (half, 'eager')]
    if cuda:
        ways.append((half, 'graphs'))
    if compiled:
        ways.append((half if cuda else 'fp32', 'compiled'))
    return [runtime.model_copy(update={'precision': p, 'execution': e}) for p, e in ways]


def detector_calls(ways: Sequence[RuntimeSettings]) -> dict[str, Call]:
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
        for runtime in ways:
            network = DetectorNetwork(DETECTORS[name])
            detector = LearnedDetector(network, DetectorSettings(max_keypoints=512), runtime)
            calls[f'{name}, {detector.place.name}'] = partial(detector.detect, image)
    sift = ClassicalDetector(DetectorSettings(name='sift'))
    calls['SIFT of OpenCV'] = partial(sift.detect, image)
    return calls


def matcher_sizes(ways: Sequence[RuntimeSettings], keypoints: int) -> list[tuple[int, int]]:
    """Views and keypoints; on a GPU also twice the keypoints."""
    sizes = [(2, keypoints), (5, keypoints)]
    return sizes + [(5, 2 * keypoints)] * any(way.precision == 'fp16' for way in ways)


def matcher_calls(ways: Sequence[RuntimeSettings], keypoints: int) -> dict[str, Call]:
    """Two and five views through the profiles, and LightGlue of kornia where it is installed."""
    from mv_matcher_ros.config import MatchingSettings
    from mv_matcher_ros.models.learned_matcher import LearnedMatcher
    from mv_matcher_ros.models.matcher import MatcherNetwork
    from mv_matcher_ros.models.profiles import MATCHERS

    calls: dict[str, Call] = {}
    for views, count in matcher_sizes(ways, keypoints):
        settings = MatchingSettings(graph_keypoints=max(16, count), views=views)
        for name in ('light', 'full', 'superglue'):
            if name == 'superglue' and views > 2:
                continue
            profile = MATCHERS[name]
            features = random_features(views, count, profile.descriptor_size)
            for runtime in ways:
                learned = LearnedMatcher(MatcherNetwork(profile), settings, runtime)
                size = _millions(learned.network)
                title = f'{views} x {count}, {name} ({size}), {learned.place.name}'
                calls[title] = partial(learned.match, features)
                if name == 'light' and views > 2:
                    told = partial(learned.match, features, known=known_poses(features))
                    calls[f'{title}, known poses'] = told
    for width, layers in ((256, 9), (128, 5)):
        other = _lightglue(keypoints, width, layers)
        if other is not None:
            name, call = other
            calls[f'2 x {keypoints}, {name}, cpu fp32'] = call
    return calls


def matcher_floors(
    ways: Sequence[RuntimeSettings], keypoints: int
) -> dict[str, Mapping[str, float]]:
    """`floor_ms` of light and full, in single and half precision."""
    from mv_matcher_ros.cli.bench_floor import floor_ms
    from mv_matcher_ros.config import MatchingSettings
    from mv_matcher_ros.models.learned_matcher import LearnedMatcher
    from mv_matcher_ros.models.matcher import MatcherNetwork
    from mv_matcher_ros.models.profiles import MATCHERS

    floors: dict[str, Mapping[str, float]] = {}
    for views, count in matcher_sizes(ways, keypoints):
        settings = MatchingSettings(graph_keypoints=max(16, count), views=views)
        for name in ('light', 'full'):
            profile = MATCHERS[name]
            features = random_features(views, count, profile.descriptor_size)
            for runtime in (way for way in ways if way.execution == 'eager'):
                learned = LearnedMatcher(MatcherNetwork(profile), settings, runtime)
                title = f'{views} x {count}, {name}, {learned.place.name}'
                floors[title] = floor_ms(partial(learned.match, features), learned.place.device)
    return floors


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
    import torch

    from mv_matcher_ros.config import MatchingSettings
    from mv_matcher_ros.models.learned_matcher import LearnedMatcher, SeenView, StreamingMatcher
    from mv_matcher_ros.models.matcher import MatcherNetwork
    from mv_matcher_ros.models.profiles import MATCHERS

    network = MatcherNetwork(MATCHERS['light'])
    settings = MatchingSettings(graph_keypoints=max(16, keypoints))
    joint = LearnedMatcher(network, settings, runtime.model_copy(update={'precision': 'fp32'}))
    streaming = StreamingMatcher(joint)
    features = random_features(LARGEST_WINDOW, keypoints, network.profile.descriptor_size)
    plane = torch.zeros(keypoints, 2)
    past: list[SeenView] = []
    calls: dict[str, Call] = {}
    for earlier in range(LARGEST_WINDOW):
        new = features[earlier]
        if earlier:
            pairs = [(number, earlier) for number in range(earlier)]
            name = f'{earlier + 1} views'
            calls[f'{name}, joint'] = partial(joint.match, features[: earlier + 1], pairs)
            calls[f'{name}, streaming'] = partial(streaming.match, new, plane, list(past))
        past.append(streaming.match(new, plane, past)[0])
    return calls


def known_poses(features: Sequence[Features]) -> KnownPoses:
    """A camera that moved to the side between views."""
    import torch

    from mv_matcher_ros.models.known_poses import KnownPoses

    views = len(features)
    poses = torch.eye(4).repeat(1, views, 1, 1)
    poses[0, :, 0, 3] = 0.1 * torch.arange(views)
    plane = torch.stack([(view.keypoints_xy - 300.0) / 500.0 for view in features])[None]
    return KnownPoses.of(plane, poses, torch.full((1, views, views), 2.0 / 500.0))


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
