# SPDX-License-Identifier: Apache-2.0
"""Paths are rigid, smooth, of the asked speed, and loops close."""

import numpy as np
import pytest

from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.worlds.trajectories import (
    Loop,
    Shaken,
    Straight,
    evaluate_spline,
    periodic_spline,
    pose_matrices,
    rectangle,
)

LOOP = Loop.through(rectangle(3.0, 2.0, 1.0), 1.2, 0.8)
PATHS = {
    'loop': LOOP,
    'shaken': Shaken(LOOP, 0.02, 0.03, 5),
    'creep': Straight((1.0, 2.0, 3.0), (0.0, 0.1, 0.2), (0.04, 0.0, 0.0)),
    'rotation': Straight((1.0, 2.0, 3.0), rates=(0.0, 0.0, 0.5)),
    'still': Straight((1.0, 2.0, 3.0)),
}


@pytest.mark.parametrize('name', PATHS)
def test_poses_are_rigid(name):
    poses = PATHS[name](np.linspace(-3, 60, 200))
    rotation = poses[:, :3, :3]
    np.testing.assert_allclose(
        rotation @ rotation.transpose(0, 2, 1), np.tile(np.eye(3), (200, 1, 1)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(rotation), 1.0)
    np.testing.assert_array_equal(poses[:, 3], np.tile((0, 0, 0, 1.0), (200, 1)))


@pytest.mark.parametrize('name', PATHS)
def test_acceleration_is_continuous(name):
    """Second differences beside any time agree, ever better as the step shrinks (C2)."""
    times, jumps = np.linspace(0.0, 30.0, 2000), []
    for h in (2e-2, 5e-3):
        first, middle, last = (PATHS[name](times + k * h)[:, :3] for k in (-1, 0, 1))
        second = (first - 2 * middle + last) / h**2
        neighbour = PATHS[name](times + h)[:, :3]
        following = PATHS[name](times + 2 * h)[:, :3]
        jumps.append(np.abs((middle - 2 * neighbour + following) / h**2 - second).max())
    assert jumps[1] < 0.3 * jumps[0] + 1e-6


def test_a_jump_of_acceleration_would_be_found():
    """The law above is not empty: a path with a kink in its velocity fails it."""
    jumps = []
    for h in (2e-2, 5e-3):
        x = [np.maximum(np.linspace(-1, 1, 2001) + k * h, 0.0) ** 2 for k in (-1, 0, 1, 2)]
        jumps.append(np.abs((x[1] - 2 * x[2] + x[3]) - (x[0] - 2 * x[1] + x[2])).max() / h**2)
    assert jumps[1] > 0.9 * jumps[0]


def test_loop_has_even_speed_looks_ahead_and_closes():
    times = np.linspace(0.0, LOOP.round_s, 1000)
    poses = LOOP(times)
    h = 1e-4
    velocity = (LOOP(times + h) - LOOP(times - h))[:, :3, 3] / (2 * h)
    speed = np.linalg.norm(velocity, axis=1)
    np.testing.assert_allclose(speed, 0.8, rtol=0.01)
    ahead = np.einsum('ni,ni->n', poses[:, :3, 0], velocity) / speed
    assert ahead.min() > np.cos(np.deg2rad(2.0))
    np.testing.assert_allclose(poses[-1], poses[0], atol=1e-9)
    np.testing.assert_allclose(LOOP(times + LOOP.round_s), poses, atol=1e-9)
    yaw = np.unwrap(np.arctan2(poses[:, 1, 0], poses[:, 0, 0]))
    assert yaw[-1] - yaw[0] == pytest.approx(2 * np.pi)
    assert np.diff(yaw).max() < 0.05  # nowhere a turn on the spot


@pytest.mark.parametrize('turn', [1, -1])
def test_loop_runs_either_way_round_and_may_look_aside(turn):
    corners = rectangle(3.0, 2.0, 1.0)[::turn]
    loop = Loop.through(corners, 1.0, 1.0, look_to_side_rad=0.4)
    poses = loop(np.linspace(0, loop.round_s, 400))
    yaw = np.unwrap(np.arctan2(poses[:, 1, 0], poses[:, 0, 0]))
    assert yaw[-1] - yaw[0] == pytest.approx(turn * 2 * np.pi)
    velocity = loop(np.array((1.0, 1.001)))[:, :3, 3]
    ahead = np.arctan2(*(velocity[1] - velocity[0])[1::-1])
    facing = loop(np.array((1.0,)))[0]
    difference = np.arctan2(facing[1, 0], facing[0, 0]) - ahead
    assert np.cos(difference - 0.4) > np.cos(np.deg2rad(2.0))


def test_spline_goes_through_its_values():
    values = np.random.default_rng(0).normal(size=(17, 3))
    control = periodic_spline(values)
    np.testing.assert_allclose(evaluate_spline(control, np.arange(17.0)), values, atol=1e-12)


def test_angles_follow_rep_103():
    level, up, left = pose_matrices(
        np.zeros((3, 3)), np.array([(0, 0, 0), (0, -0.3, 0), (0, 0, 0.3)])
    )
    np.testing.assert_array_equal(level, np.eye(4))
    assert up[2, 0] > 0  # negative pitch lifts the nose (right-handed about y to the left)
    assert left[1, 0] > 0  # positive yaw turns left


def test_shake_has_the_asked_size():
    still = Straight((0.0, 0.0, 0.0))
    poses = Shaken(still, 0.05, 0.02, 3)(np.linspace(0, 300, 20000))
    np.testing.assert_allclose(poses[:, :3, 3].std(0), 0.05, rtol=0.1)
    assert poses[:, 2, 1].std() == pytest.approx(0.02, rel=0.1)


def test_impossible_loops_are_refused():
    with pytest.raises(GeometryError, match='loop'):
        Loop.through(np.zeros((3, 2)), 1.0, 1.0)
    with pytest.raises(GeometryError, match='speed'):
        Loop.through(rectangle(2, 2, 1), 1.0, 0.0)
    with pytest.raises(GeometryError, match='rectangle'):
        rectangle(1.0, 1.0, 2.0)
