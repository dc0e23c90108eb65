# SPDX-License-Identifier: Apache-2.0
"""Two stereo pairs, one looking ahead and one back, as one rig of the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from mv_matcher_ros.config import read_settings
from mv_matcher_ros.datatypes import Array, Estimate, Frame, Rig, Status, View
from mv_matcher_ros.errors import SettingsError, SourceError
from mv_matcher_ros.models.choice import Models
from mv_matcher_ros.models.classical import ClassicalDetector, NearestNeighbourMatcher
from mv_matcher_ros.models.learned_matcher import LearnedMatcher
from mv_matcher_ros.models.matcher import MatcherNetwork
from mv_matcher_ros.models.profiles import MatcherProfile
from mv_matcher_ros.odometry.engine import OdometryEngine
from mv_matcher_ros.odometry.joint_matching import JointMatcher
from mv_matcher_ros.odometry.keyframe_record import KeyframeRecord
from mv_matcher_ros.worlds import prints, textures
from mv_matcher_ros.worlds.effects import Effects
from mv_matcher_ros.worlds.furniture import Builder
from mv_matcher_ros.worlds.mipmaps import Texture
from mv_matcher_ros.worlds.planes import World
from mv_matcher_ros.worlds.presets import make_rig, room_loop
from mv_matcher_ros.worlds.recording import SyntheticSource
from mv_matcher_ros.worlds.trajectories import Straight

SIZE = (240, 180)
FIRST, SECOND = slice(0, 2), slice(2, 4)
Change = Callable[[int, Frame], Frame]


@dataclass(frozen=True)
class Flight:
    """Rendered frames of four cameras, and where the body truly was."""

    rig: Rig
    frames: Sequence[Frame]
    truth: Array

    @classmethod
    def of(cls, source: SyntheticSource) -> Flight:
        assert source.truth is not None
        return cls(source.rig, list(source), source.truth.world_from_body)

    def run(
        self, rig: Rig | None = None, change: Change | None = None, **overrides: object
    ) -> list[Estimate]:
        """Estimates of the frames; with the rig of one pair, of what that pair saw."""
        rig = rig or self.rig
        pairs = {'stereo.pairs': len(rig.cameras) // 2, **overrides}
        engine = OdometryEngine(read_settings({'sensor': 'stereo', **pairs}), rig)
        changed = (f if change is None else change(i, f) for i, f in enumerate(self.frames))
        return [engine.process(frame) for frame in changed]

    def alone(self, number: int) -> list[Estimate]:
        """What one pair says by itself."""
        seen = slice(2 * number, 2 * number + 2)
        return self.run(self.rig.pair(number), lambda _, f: replace(f, views=f.views[seen]))

    def errors(self, results: Sequence[Estimate]) -> tuple[Array, Array]:
        """(N,) distance from where the body was, by the first pose, metres, and (N,) degrees."""
        estimated = np.stack([r.odom_from_body for r in results])
        truth = estimated[0] @ np.linalg.inv(self.truth[0]) @ self.truth
        turned = estimated[:, :3, :3].transpose(0, 2, 1) @ truth[:, :3, :3]
        cosine = (np.trace(turned, axis1=1, axis2=2) - 1.0) / 2.0
        away = np.linalg.norm(estimated[:, :3, 3] - truth[:, :3, 3], axis=1)
        return away, np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))


def rms(values: Array) -> float:
    return float(np.sqrt((values**2).mean()))


def covered(views: slice, first: int, last: int) -> Change:
    """Black images of some cameras from frame `first` to `last`."""

    def change(number: int, frame: Frame) -> Frame:
        if not first <= number <= last:
            return frame
        seen = list(frame.views)
        seen[views] = [View(np.zeros_like(view.image)) for view in seen[views]]
        return replace(frame, views=tuple(seen))

    return change


@pytest.fixture(scope='module')
def flight() -> Flight:
    return Flight.of(room_loop('stereo', 20, SIZE, pairs=2))


@pytest.fixture(scope='module')
def together(flight: Flight) -> list[Estimate]:
    return flight.run()


def test_two_pairs_know_the_way_better_than_either(
    flight: Flight, together: list[Estimate]
) -> None:
    assert all(r.status is Status.TRACKING and not r.message for r in together)
    away, turned = map(rms, flight.errors(together))
    for number in range(2):
        alone = flight.errors(flight.alone(number))
        assert away < 0.7 * rms(alone[0])
        assert turned < 0.3 * rms(alone[1])


def test_one_pair_of_four_cameras_is_what_it_was(flight: Flight) -> None:
    """The default: without `stereo.pairs` more cameras change nothing, to the last bit."""
    four, two = flight.run(flight.rig, **{'stereo.pairs': 1}), flight.alone(0)
    for a, b in zip(four, two, strict=True):
        assert np.array_equal(a.odom_from_body, b.odom_from_body)
        assert np.array_equal(a.covariance, b.covariance)


@pytest.mark.parametrize(('views', 'name'), [(FIRST, 'left'), (SECOND, 'left_2')])
def test_while_a_pair_is_covered_the_other_goes_on_and_it_is_said(
    flight: Flight, views: slice, name: str
) -> None:
    results = flight.run(change=covered(views, 6, 14))
    assert all(r.status is Status.TRACKING for r in results)
    said = [r.message for r in results]
    assert all(m.startswith(f'{name} sees nothing: image without contrast') for m in said[6:15])
    assert not any(said[:6] + said[15:])
    path = np.linalg.norm(np.diff(flight.truth[:, :3, 3], axis=0), axis=1).sum()
    assert flight.errors(results)[0].max() < 0.06 * path


def test_with_all_pairs_covered_nothing_is_seen(flight: Flight) -> None:
    result = flight.run(change=covered(slice(0, 4), 6, 19))[7]
    assert result.status is Status.DEGRADED
    assert 'left sees nothing' in result.message
    assert 'left_2 sees nothing' in result.message


def test_pairs_find_back_together_after_a_loss(flight: Flight) -> None:
    results = flight.run(change=covered(slice(0, 4), 8, 13), **{'tracking.coasting_s': 0.1})
    assert results[13].status is Status.LOST
    assert results[14].status is Status.RELOCALISED
    assert {r.status for r in results[15:]} == {Status.TRACKING}


def with_mount(rig: Rig, number: int, mount: Array) -> Rig:
    cameras = list(rig.cameras)
    cameras[number] = replace(cameras[number], body_from_camera=mount)
    return replace(rig, cameras=tuple(cameras))


def test_a_wrong_second_pair_is_named(flight: Flight) -> None:
    left, right = flight.rig.cameras[SECOND]
    wrong = left.body_from_camera.copy()
    wrong[:3, 3] += flight.rig.baseline_m * wrong[:3, 1]  # below, it says
    results = flight.run(with_mount(flight.rig, 3, wrong), **{'keyframes.parallax_px': 4.0})
    assert results[-1].status is Status.DEGRADED
    assert results[-1].message.startswith(
        f"check the stereo calibration: {left.name} and {right.name}: the baseline's direction"
    )


def test_where_the_second_pair_is_mounted_counts(flight: Flight, together: list[Estimate]) -> None:
    """Said to look another way by five degrees, it pulls the pose away from the truth."""
    angle = np.radians(5.0)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    rig = flight.rig
    for number in (2, 3):
        rig = with_mount(rig, number, turn @ rig.cameras[number].body_from_camera)
    wrong, right = flight.errors(flight.run(rig)), flight.errors(together)
    assert rms(wrong[0]) > 2.0 * rms(right[0])
    assert rms(wrong[1]) > 5.0 * rms(right[1])


def test_pictures_and_records_are_of_the_first_camera(flight: Flight) -> None:
    settings = read_settings({'sensor': 'stereo', 'stereo.pairs': 2})
    engine = OdometryEngine(settings, flight.rig)
    records: list[KeyframeRecord] = []
    engine.report_keyframes(records.append)
    for frame in flight.frames:
        last = engine.process(frame)
    engine.finish()
    assert last.tracks is not None
    assert 20 < len(last.tracks.keypoints_xy) < last.counts['matches']
    camera = flight.rig.cameras[0]
    for record in records:
        assert not bool(record.observation.camera.any())
        assert len(record.landmark) == len(record.observation) <= 1200
        seen = record.landmark >= 0
        assert int(seen.sum()) > 50
        body = record.points[seen].numpy()
        local = (body - camera.body_from_camera[:3, 3]) @ camera.body_from_camera[:3, :3]
        off = local[:, :2] / local[:, 2:] - record.observation.plane_xy[seen].numpy()
        assert np.median(np.linalg.norm(off, axis=1)) * camera.focal_px < 2.0


def before_a_blank_wall() -> Flight:
    """A robot that backs away from a wall without texture; behind it the room is full."""
    b = Builder(np.random.default_rng(4), 150.0)
    blank = Texture(np.full((8, 8), 140, np.uint8)[:, :, None].repeat(3, 2))
    corners = [(1.2, -3.0), (-4.0, -3.0), (-4.0, 3.0), (1.2, 3.0)]
    for number in range(3):
        wall = b.wall(corners[number], corners[number + 1], 3.0, textures.plaster)
        for at in np.arange(0.7, wall.size_m[0], 1.1):
            b.hang(wall, (float(at), 1.5), (0.9, 0.9), prints.poster)
    b.wall(corners[3], corners[0], 3.0, blank)
    path = Straight((0.0, 0.0, 1.4), velocity=(-0.6, 0.1, 0.0), rates=(0.0, 0.0, 0.05))
    rig = make_rig('stereo', SIZE, field_of_view_deg=60.0, pairs=2)
    effects = Effects(exposure_s=0.0)
    return Flight.of(
        SyntheticSource(World(tuple(b.quads)), path, rig, 'stereo', 20.0, 12, effects)
    )


def test_a_pair_that_looks_at_a_blank_wall_is_helped_by_the_other() -> None:
    flight = before_a_blank_wall()
    assert all(r.odom_from_body is None for r in flight.alone(0))
    results = flight.run()
    assert all(r.status is Status.TRACKING for r in results)
    # What one pair does not see makes nothing worse: the other's poses, to rounding.
    np.testing.assert_allclose(flight.errors(results)[0], flight.errors(flight.alone(1))[0])


def test_frames_and_rigs_must_have_all_pairs(flight: Flight) -> None:
    with pytest.raises(SourceError, match='2 images, stereo needs 4'):
        flight.run(change=lambda _, f: replace(f, views=f.views[FIRST]))
    with pytest.raises(SettingsError, match=r'stereo\.pairs is 3, but the rig has 4 cameras'):
        flight.run(**{'stereo.pairs': 3})


# ------------------------------------------------------------------------ one graph of all views


def graph_settings(mode: str, views: int) -> dict[str, object]:
    return {
        'sensor': 'stereo', 'stereo.pairs': 2, 'matching.matcher': mode, 'matching.views': views,
        'matching.graph_keypoints': 300, 'matching.min_confidence': 0.0, 'detector.name': 'sift',
        'runtime.precision': 'fp32',
    }  # fmt: skip


def graph_models(values: object) -> Models:
    """A network that is hardly more than nearest neighbours: it is not trained."""
    torch.manual_seed(0)
    profile = MatcherProfile(
        descriptor_size=128, width=128, attention_size=32, blocks=2, encoder=(8,),
        uses_scores=False,
    )  # fmt: skip
    nearest = NearestNeighbourMatcher(values.matching, 'sift')
    graph = LearnedMatcher(MatcherNetwork(profile), values.matching, values.runtime)
    return Models(ClassicalDetector(values.detector), nearest, graph)


@pytest.mark.parametrize('mode', ['multiview', 'streaming'])
@pytest.mark.parametrize('views', [5, 8])
def test_all_cameras_are_views_of_one_graph(flight: Flight, mode: str, views: int) -> None:
    values = read_settings(graph_settings(mode, views))
    engine = OdometryEngine(values, flight.rig, models=graph_models(values))
    results = [engine.process(frame) for frame in flight.frames[::2]]
    assert all(r.status is Status.TRACKING for r in results)
    estimated = np.stack([r.odom_from_body for r in results])
    truth = estimated[0] @ np.linalg.inv(flight.truth[0]) @ flight.truth[::2]
    assert np.linalg.norm(estimated[:, :3, 3] - truth[:, :3, 3], axis=1).max() < 0.03


def test_a_graph_without_room_for_an_earlier_view_is_refused(flight: Flight) -> None:
    values = read_settings(graph_settings('multiview', 4))
    graph = graph_models(values).graph
    assert graph is not None
    with pytest.raises(SettingsError, match='the 4 cameras: 5 or more for 2 stereo pairs'):
        JointMatcher(values, flight.rig, graph)
