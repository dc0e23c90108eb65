# SPDX-License-Identifier: Apache-2.0
"""Keyframes and the other camera as views of one graph, and an engine that lives on it.

The network is hardly trained: it starts as a matcher of nearest neighbours. That is enough here.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mv_matcher_ros.config import Settings, read_settings
from mv_matcher_ros.datatypes import Estimate, Matches, Status
from mv_matcher_ros.errors import SettingsError
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.models.choice import Models
from mv_matcher_ros.models.classical import ClassicalDetector, NearestNeighbourMatcher
from mv_matcher_ros.models.learned_matcher import LearnedMatcher
from mv_matcher_ros.models.matcher import MatcherNetwork
from mv_matcher_ros.models.profiles import MatcherProfile
from mv_matcher_ros.odometry.engine import OdometryEngine
from mv_matcher_ros.odometry.joint_matching import JointMatcher, SecondView
from mv_matcher_ros.odometry.observation import Observer
from mv_matcher_ros.odometry.seeing import SeeingCameras
from mv_matcher_ros.odometry.tracking import Tracker
from mv_matcher_ros.odometry.window import Keyframe, Window
from mv_matcher_ros.worlds.presets import room_loop
from mv_matcher_ros.worlds.recording import SyntheticSource

PROFILE = MatcherProfile(
    descriptor_size=128, width=128, attention_size=32, blocks=2, encoder=(8,), uses_scores=False
)
MODES = ('multiview', 'streaming')


def settings(mode: str, sensor: str = 'stereo', **more: object) -> Settings:
    return read_settings({
        'sensor': sensor,
        'matching.matcher': mode,
        'matching.graph_keypoints': 300,
        'matching.views': 4,
        'matching.min_confidence': 0.0,
        'detector.name': 'sift',
        'detector.max_keypoints': 400,
        'runtime.precision': 'fp32',
        **more,
    })  # fmt: skip


def models(values: Settings) -> Models:
    torch.manual_seed(0)
    detector = ClassicalDetector(values.detector)
    nearest = NearestNeighbourMatcher(values.matching, 'sift')
    if values.matching.matcher == 'nearest':
        return Models(detector, nearest)
    network = MatcherNetwork(PROFILE)
    with torch.no_grad():  # the layers do something, if nothing useful
        for parameter in network.layers.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return Models(detector, nearest, LearnedMatcher(network, values.matching, values.runtime))


@pytest.fixture(scope='module')
def flight() -> SyntheticSource:
    return room_loop('stereo', 36, (320, 240))


@pytest.fixture(scope='module')
def scene(flight: SyntheticSource) -> tuple[list[Keyframe], SecondView]:
    """Keyframes at true poses, and what the second camera saw with the last."""
    values = settings('nearest')
    observer = Observer(values, flight.rig, ClassicalDetector(values.detector))
    assert flight.truth is not None
    frames = list(flight)[::6]
    poses = torch.from_numpy(flight.truth.world_from_body[::6].copy())
    keyframes = [
        Keyframe.of(observer.observe(frame), pose)
        for frame, pose in zip(frames, poses, strict=True)
    ]
    return keyframes, SecondView(
        *observer.second_view(frames[-1]), observer.images_of_pair(frames[-1])
    )


def epipolar_errors_px(
    flight: SyntheticSource, ours: Tensor, theirs: Tensor, ours_from_theirs: Tensor
) -> Tensor:
    """(K,) distance of points (K, 2) on the plane from the lines of their partners, pixels."""
    essential = se3.hat(ours_from_theirs[:3, 3]) @ ours_from_theirs[:3, :3]
    one = torch.ones(len(ours), 1, dtype=torch.float64)
    lines = torch.cat([theirs, one], 1) @ essential.T
    distance = (torch.cat([ours, one], 1) * lines).sum(1) / lines[:, :2].norm(dim=1)
    return distance.abs() * flight.rig.cameras[0].focal_px


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('informed', [False, True])
def test_matches_of_a_new_keyframe_with_earlier_ones_and_the_other_camera(
    mode: str,
    informed: bool,
    flight: SyntheticSource,
    scene: tuple[list[Keyframe], SecondView],
) -> None:
    values = settings(mode, **{'matching.known_poses': informed})
    keyframes, second = scene
    *older, new = [replace(keyframe, seen=None) for keyframe in keyframes]
    graph = models(values).graph
    assert graph is not None
    joint = JointMatcher(values, flight.rig, graph)
    found, seen = joint.match(older, new.observation, new.world_from_body, [second])
    assert (seen is not None) == (mode == 'streaming')
    assert all((k.seen is not None) == (mode == 'streaming') for k in older[-2:])
    # Four views in all: the new one, the other camera, and so two keyframes.
    assert sorted(found.of_keyframe) == [k.observation.index for k in older[-2:]]
    body_from_camera = torch.from_numpy(flight.rig.cameras[0].body_from_camera.copy())
    shares = []
    for other in older[-2:]:
        pairs, confidence = found.of_keyframe[other.observation.index]
        assert len(pairs) == len(confidence) > 30
        here, there = (k.world_from_body @ body_from_camera for k in (new, other))
        errors = epipolar_errors_px(
            flight,
            new.observation.plane_xy[pairs[:, 0]],
            other.observation.plane_xy[pairs[:, 1]],
            se3.inverse(here) @ there,
        )
        shares.append(float((errors < 3.0).double().mean()))
    ((pairs, _),) = found.stereo
    first, other_camera = (
        torch.from_numpy(camera.body_from_camera.copy()) for camera in flight.rig.cameras
    )
    errors = epipolar_errors_px(
        flight,
        new.observation.plane_xy[pairs[:, 0]],
        second.plane_xy[pairs[:, 1]],
        se3.inverse(first) @ other_camera,
    )
    shares.append(float((errors < 3.0).double().mean()))
    assert min(shares) > (0.75 if informed else 0.5)


def run(flight: SyntheticSource, values: Settings) -> list[Estimate]:
    engine = OdometryEngine(values, flight.rig, models=models(values))
    return [engine.process(frame) for frame in flight]


def error_m(flight: SyntheticSource, estimates: list[Estimate]) -> float:
    assert flight.truth is not None
    truth = flight.truth.world_from_body
    origin = np.linalg.inv(truth[0])
    errors = []
    for pose, estimate in zip(truth, estimates, strict=True):
        assert estimate.odom_from_body is not None
        errors.append(np.linalg.norm((origin @ pose)[:3, 3] - estimate.odom_from_body[:3, 3]))
    return float(np.sqrt(np.mean(np.square(errors))))


@pytest.mark.slow
@pytest.mark.parametrize('mode', MODES)
def test_the_engine_lives_on_the_graph(mode: str, flight: SyntheticSource) -> None:
    values = settings(mode)
    first, second = run(flight, values), run(flight, values)
    assert all(e.status is Status.TRACKING for e in first)
    assert sum(e.is_keyframe for e in first) >= 2
    classical = run(flight, settings('nearest'))
    assert error_m(flight, first) < 1.2 * error_m(flight, classical)
    for a, b in zip(first, second, strict=True):
        assert a.odom_from_body is not None
        assert b.odom_from_body is not None
        assert np.array_equal(a.odom_from_body, b.odom_from_body)


@pytest.mark.slow
def test_each_way_of_matching_makes_a_difference(flight: SyntheticSource) -> None:
    """None of them is a setting without effect."""
    ways = {
        'nearest': settings('nearest'),
        'multiview': settings('multiview'),
        'streaming': settings('streaming'),
        'uninformed': settings('multiview', **{'matching.known_poses': False}),
    }
    ends = {}
    for name, values in ways.items():
        pose = run(flight, values)[-1].odom_from_body
        assert pose is not None
        ends[name] = tuple(pose[:3, 3])
    assert len(set(ends.values())) == len(ends)


def test_stereo_needs_room_for_an_earlier_keyframe(flight: SyntheticSource) -> None:
    values = settings('multiview', **{'matching.views': 2})
    with pytest.raises(SettingsError, match=r'matching\.views 2 leaves no room'):
        OdometryEngine(values, flight.rig, models=models(values))


def test_confidences_weigh_in_the_adjustment(
    flight: SyntheticSource, scene: tuple[list[Keyframe], SecondView]
) -> None:
    """An observation of little confidence pulls less, and is thrown out no later."""
    keyframe = replace(scene[0][0])
    keyframe.landmark = torch.arange(len(keyframe.landmark))
    window = Window()
    window.keyframes = [keyframe]
    window.landmarks.add(
        torch.zeros(len(keyframe.landmark), 3, dtype=torch.float64),
        keyframe.observation.features.descriptors,
    )
    whole = window.flat_observations()
    keyframe.weight = torch.full_like(keyframe.weight, 0.25)
    less = window.flat_observations()
    torch.testing.assert_close(less.sqrt_information, 0.25 * whole.sqrt_information)
    torch.testing.assert_close(less.weight, 0.25 * whole.weight)
    keyframe.landmark[:5] = -1
    window.count_seen()
    assert keyframe.weight[:6].tolist() == [1.0] * 5 + [0.25]


class Disagreeing:
    """A graph that says of feature 0 one thing surely and another hardly, and so on."""

    def __init__(self, rows: list[tuple[int, int, int, float]], new: int) -> None:
        self.matches = Matches(
            torch.tensor([[r[0], new] for r in rows]),
            torch.tensor([[r[1], r[2]] for r in rows]),
            torch.tensor([r[3] for r in rows]),
        )

    def match(self, *_: object) -> Matches:
        return self.matches


def test_the_way_back_takes_the_surest_match_of_each_feature_and_landmark(
    flight: SyntheticSource,
    scene: tuple[list[Keyframe], SecondView],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    older = [replace(k, landmark=torch.full_like(k.landmark, -1)) for k in scene[0][:2]]
    older[0].landmark[:3] = torch.tensor([100, 101, 102])
    older[1].landmark[:3] = torch.tensor([200, 101, 102])
    window = Window()
    window.keyframes = older
    graph = Disagreeing(
        # keyframe, its feature, feature of the frame, confidence
        [(0, 0, 7, 0.9), (1, 0, 7, 0.3), (0, 1, 8, 0.4), (1, 1, 9, 0.8), (0, 5, 6, 0.99)],
        new=2,
    )
    tracker = Tracker(
        settings('multiview'),
        SeeingCameras(flight.rig.cameras[:1]),
        NearestNeighbourMatcher(settings('nearest').matching, 'sift'),
        graph,  # type: ignore[arg-type]
    )
    seen = {}

    def found_again(
        window: Window, observation: object, feature: Tensor, landmark: Tensor, method: str
    ) -> None:
        seen['pairs'] = sorted(zip(feature.tolist(), landmark.tolist(), strict=True))

    monkeypatch.setattr(tracker, '_found_again', found_again)
    tracker.relocalise_jointly(window, scene[0][2].observation)
    assert seen['pairs'] == [(7, 100), (9, 101)]
