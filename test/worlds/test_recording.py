# SPDX-License-Identifier: Apache-2.0
"""Recordings: what a source promises, the same bits, truth, blur, faults, every preset."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from mv_matcher_ros.datatypes import REP103_FROM_OPTICAL, Camera, Estimate, Rig, Status
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.runner import run
from mv_matcher_ros.worlds import presets
from mv_matcher_ros.worlds.effects import PERFECT, Effects, Fault
from mv_matcher_ros.worlds.mipmaps import Texture
from mv_matcher_ros.worlds.planes import Quad, World
from mv_matcher_ros.worlds.recording import SyntheticSource
from mv_matcher_ros.worlds.rendering import render
from mv_matcher_ros.worlds.trajectories import Straight

X, Y, Z = np.eye(3)
SIZE = (160, 120)
PRESETS = {
    'room_loop': presets.room_loop,
    'corridor_loop': presets.corridor_loop,
    'street_drive': presets.street_drive,
    'creep': presets.creep,
    'standing_still': presets.standing_still,
    'pure_rotation': presets.pure_rotation,
    'handheld': presets.handheld,
}


def picture(seed=0, size=256):
    rng = np.random.default_rng(seed)
    grey = cv2.resize(rng.integers(0, 255, (size // 8, size // 8), np.uint8), (size, size))
    return Texture(np.repeat(grey[..., None], 3, 2))


def wall_source(path=None, effects=PERFECT, sensor='mono', count=6, **kwargs):
    """A body before a wall 3 m ahead (x forward)."""
    wall = Quad(np.array((3.0, 4.0, 3.0)), -8 * Y, -6 * Z, picture())
    rig = presets.make_rig(sensor, SIZE)
    path = path or Straight((0.0, 0.0, 0.0), velocity=(0.2, 0.0, 0.0))
    return SyntheticSource(
        World((wall,), name='wall'), path, rig, sensor, 10.0, count, effects, **kwargs
    )


def same(first, second):
    return all(
        np.array_equal(a.image, b.image)
        and (a.depth is None) == (b.depth is None)
        and (a.depth is None or np.array_equal(a.depth, b.depth))
        for a, b in zip(first.views, second.views, strict=True)
    )


@pytest.mark.parametrize('sensor', ['mono', 'stereo', 'rgbd'])
@pytest.mark.parametrize('name', PRESETS)
def test_every_preset_is_a_source(name, sensor):
    source = PRESETS[name](sensor, 3, SIZE, 0)
    frames = list(source)
    assert len(source) == len(frames) == 3
    assert source.sensor == sensor
    assert source.name == name
    assert source.truth.stamps_ns.tolist() == [frame.stamp_ns for frame in frames]
    assert (np.diff(source.truth.stamps_ns) > 0).all()
    assert [frame.index for frame in frames] == [0, 1, 2]
    for frame in frames:
        assert len(frame.views) == len(source.rig.cameras) == (2 if sensor == 'stereo' else 1)
        for view in frame.views:
            assert view.image.shape == (120, 160)
            assert view.image.dtype == np.uint8
            assert view.image.std() > 8
            assert not view.image.flags.writeable
            assert (view.depth is not None) == (sensor == 'rgbd')
    if sensor == 'rgbd':
        assert (frames[0].views[0].depth > 0).mean() > 0.2
    assert source.faults == {}


def test_same_seed_gives_the_same_bits_in_any_order():
    effects = Effects(exposure_s=0.02)
    first, second = (wall_source(effects=effects, sensor='rgbd', seed=5) for _ in range(2))
    frames = list(first)
    assert all(same(a, b) for a, b in zip(frames, second, strict=True))
    assert all(same(a, b) for a, b in zip(frames, first, strict=True))  # iterating starts again
    assert same(wall_source(effects=effects, sensor='rgbd', seed=5).frame(4), frames[4])
    assert not same(wall_source(effects=effects, sensor='rgbd', seed=6).frame(4), frames[4])
    assert not same(frames[0], frames[1])


def test_truth_is_the_pose_the_images_were_taken_from():
    source = wall_source(sensor='rgbd')
    for frame, pose in zip(source, source.truth.world_from_body, strict=True):
        distance = 3.0 - pose[0, 3]
        np.testing.assert_allclose(frame.views[0].depth, distance, rtol=1e-5)
        camera = source.rig.cameras[0]
        image, _ = render(source.world, camera, pose @ camera.body_from_camera)
        assert np.array_equal(frame.views[0].image, image)


def test_stereo_cameras_are_a_baseline_apart():
    source = wall_source(sensor='stereo')
    assert source.rig.baseline_m == pytest.approx(0.12)
    left, right = source.frame(0).views
    focal = source.rig.cameras[0].focal_px
    shift = focal * 0.12 / 3.0
    whole = int(np.floor(shift))
    expected = (1 - (shift - whole)) * left.image[:, whole:-1] + (shift - whole) * left.image[
        :, whole + 1 :
    ]
    difference = right.image[:, : expected.shape[1]] - expected
    assert np.abs(difference).mean() < 1.5
    assert np.abs(np.diff(left.image.astype(float), axis=1)).mean() > 2.0  # a pixel would show


@pytest.mark.parametrize('axes', ['rep103', 'optical'])
def test_body_axes_are_said_by_the_rig(axes):
    rig = presets.make_rig('stereo', SIZE, body_axes=axes)
    expected = REP103_FROM_OPTICAL if axes == 'rep103' else np.eye(4)
    assert rig.body_axes == axes
    np.testing.assert_allclose(rig.cameras[0].body_from_camera, expected)
    right = np.linalg.inv(rig.cameras[0].body_from_camera) @ rig.cameras[1].body_from_camera
    np.testing.assert_allclose(right[:3, 3], (0.12, 0, 0), atol=1e-12)


def blur_effects(exposure_s):
    return replace(PERFECT, exposure_s=exposure_s, blur_samples=15)


def test_motion_blur_smears_along_the_motion_and_keeps_the_place():
    """A drive past a dark wall with a bright upright bar: the bar widens by its way."""
    image = np.full((64, 256, 3), 10, np.uint8)
    image[:, 120:136] = 250
    bar = Quad(np.array((2.0, 2.0, 1.5)), -4 * Y, -3 * Z, Texture(image))
    path = Straight((0.0, 0.05, 0.0), velocity=(0.0, -1.0, 0.0))
    rig = presets.make_rig('mono', (320, 240))
    world = World((bar,), name='bar')

    def profile(exposure_s):
        source = SyntheticSource(world, path, rig, 'mono', 10.0, 1, blur_effects(exposure_s))
        row = source.frame(0).views[0].image[120].astype(np.float64) - 10
        x = np.arange(len(row))
        middle = (row * x).sum() / row.sum()
        return middle, np.sqrt((row * (x - middle) ** 2).sum() / row.sum())

    sharp, blurred = profile(0.0), profile(0.05)
    way_px = rig.cameras[0].focal_px * 0.05 / 2.0
    assert way_px > 4
    assert blurred[0] == pytest.approx(sharp[0], abs=0.05)
    # variances of the bar and of an even smear add up
    assert blurred[1] ** 2 - sharp[1] ** 2 == pytest.approx(way_px**2 / 12, rel=0.1)


def test_a_still_camera_has_no_motion_blur():
    still = Straight((0.0, 0.0, 0.0))
    sharp, blurred = (wall_source(still, blur_effects(t)).frame(0) for t in (0.0, 0.05))
    assert np.abs(sharp.views[0].image.astype(int) - blurred.views[0].image).max() <= 1


def test_faults_happen_when_they_are_planned_and_are_counted():
    faults = (
        Fault('black', 1, 1),
        Fault('covered', 2, 2),
        Fault('frozen', 4, 5),
        Fault('dropped', 6, 7),
    )
    source = wall_source(effects=replace(PERFECT, faults=faults), sensor='rgbd', count=10)
    frames = list(source)
    assert len(frames) == len(source) == 8
    assert len(source.truth) == 10
    stamps = [frame.stamp_ns for frame in frames]
    assert stamps == [source.truth.stamps_ns[i] for i in (0, 1, 2, 3, 4, 5, 8, 9)]
    assert not frames[1].views[0].image.any()
    assert not frames[1].views[0].depth.any()
    assert frames[2].views[0].image.std() < 4
    assert same(frames[3], frames[4])
    assert same(frames[3], frames[5])
    assert not same(frames[3], frames[6])
    assert source.faults == {
        'frame dropped': 2,
        'black frame': 1,
        'lens covered': 1,
        'frame frozen': 2,
    }
    list(source)
    assert source.faults['frame frozen'] == 2  # of the last reading only
    with pytest.raises(SourceError, match='no frame 6'):
        source.frame(6)


def test_colour_recording():
    frame = wall_source(colour=True, effects=Effects()).frame(0)
    assert frame.views[0].image.shape == (120, 160, 3)


def test_distorted_camera_in_a_recording():
    camera = Camera(
        160, 120, (90.0, 90.0, 79.5, 59.5), 'radtan', (-0.2, 0.05, 0.0, 0.0), np.eye(4)
    )
    wall = Quad(np.array((-4.0, -3.0, 3.0)), 8 * X, 6 * Y, picture())
    source = SyntheticSource(
        World((wall,)), Straight((0.0, 0.0, 0.0)), Rig((camera,)), 'rgbd', 10.0, 2
    )
    for frame in source:
        np.testing.assert_allclose(frame.views[0].depth, 3.0, rtol=1e-6)


@pytest.mark.parametrize(
    'change', [{'sensor': 'stereo'}, {'rate_hz': 0.0}, {'rate_hz': float('nan')}, {'count': 0}]
)
def test_impossible_recordings_are_refused(change):
    arguments = {'sensor': 'mono', 'rate_hz': 10.0, 'count': 5} | change
    with pytest.raises(SourceError, match='wall'):
        SyntheticSource(
            World((), name='wall'),
            Straight((0, 0, 0)),
            presets.make_rig('mono', SIZE),
            **arguments,
        )


def test_impossible_rigs_are_refused():
    with pytest.raises(SourceError, match='baseline'):
        presets.make_rig('stereo', SIZE, baseline_m=0.0)
    with pytest.raises(SourceError, match='field of view'):
        presets.make_rig('mono', SIZE, field_of_view_deg=180.0)


def test_loops_end_a_little_after_their_start():
    for make in (presets.room_loop, presets.corridor_loop, presets.street_drive):
        source = make(size=SIZE)
        places = source.truth.world_from_body[:, :3, 3]
        round_frames = int(len(source) / 1.06)
        away = np.linalg.norm(places - places[0], axis=1)
        assert away.max() > 2.0
        assert away[round_frames] < 0.1 * away.max()
        assert len(source) > 100


def test_creep_is_two_millimetres_a_frame():
    truth = presets.creep(frames=20, size=SIZE).truth
    steps = np.linalg.norm(np.diff(truth.world_from_body[:, :3, 3], axis=0), axis=1)
    np.testing.assert_allclose(steps, 0.002, rtol=1e-6)


def test_pure_rotation_does_not_move_the_first_camera():
    source = presets.pure_rotation(frames=20, size=SIZE)
    poses = source.truth.world_from_body @ source.rig.cameras[0].body_from_camera
    np.testing.assert_allclose(np.ptp(poses[:, :3, 3], axis=0), 0.0, atol=1e-12)
    assert np.arccos(poses[0, :3, 2] @ poses[-1, :3, 2]) == pytest.approx(0.4 * 19 / 20)


def test_most_matches_of_neighbouring_frames_agree_with_the_truth():
    """The images are good to match: SIFT is mostly right, to a fraction of a pixel."""
    source = presets.room_loop('rgbd', 40, (480, 360), effects=replace(PERFECT, exposure_s=0.0))
    camera = source.rig.cameras[0]
    detector = cv2.SIFT_create(1000, 3, 0.02)
    for index in (0, 30):
        views = [source.frame(index + k).views[0] for k in (0, 2)]
        poses = source.truth.world_from_body[[index, index + 2]] @ camera.body_from_camera
        (keys, found), (other_keys, other_found) = (
            detector.detectAndCompute(view.image, None) for view in views
        )
        pairs = cv2.BFMatcher().knnMatch(found, other_found, 2)
        good = [best for best, second in pairs if best.distance < 0.8 * second.distance]
        assert len(good) > 120
        at = np.array([keys[m.queryIdx].pt for m in good])
        seen = np.array([other_keys[m.trainIdx].pt for m in good])
        depth = views[0].depth[tuple(np.round(at[:, ::-1]).astype(int).T)].astype(np.float64)
        rays = np.linalg.solve(camera.matrix, np.column_stack([at, np.ones(len(at))]).T).T
        world = (rays * depth[:, None]) @ poses[0][:3, :3].T + poses[0][:3, 3]
        there = (world - poses[1][:3, 3]) @ poses[1][:3, :3] @ camera.matrix.T
        error = np.linalg.norm(there[:, :2] / there[:, 2:] - seen, axis=1)
        assert (error < 2.0).mean() > 0.8
        assert np.median(error) < 0.4


def test_source_runs_in_the_loop():
    class Nothing:
        def process(self, frame):
            return Estimate(frame.stamp_ns, Status.INITIALISING)

        def reset(self):
            pass

    class Collect:
        def __init__(self):
            self.stamps = []

        def write(self, frame, estimate):
            self.stamps.append(estimate.stamp_ns)

        def close(self):
            self.stamps.append(-1)

    source, sink = wall_source(count=4), Collect()
    run(source, Nothing(), [sink])
    assert sink.stamps == [*source.truth.stamps_ns.tolist(), -1]
