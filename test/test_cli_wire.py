# SPDX-License-Identifier: Apache-2.0
"""Faults on the wire: what is published, and that each kind of lie is caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mv_matcher_ros.cli.faults import Clip
from mv_matcher_ros.cli.wire_faults import BEGIN_S, WIRE_FAULTS, WireFault
from mv_matcher_ros.cli.wire_session import Heard
from mv_matcher_ros.cli.wire_shots import Shot, shots_of
from mv_matcher_ros.cli.wire_verdict import Verdict, judge
from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Camera, Frame, Rig, Trajectory, View
from mv_matcher_ros.errors import MvMatcherError
from mv_matcher_ros.ros.wire import Pose, State

RATE_HZ, FRAMES, SPEED_MPS = 10, 120, 1.0
START_NS = 1_700_000_000_000_000_000
FAULTS = {fault.name: fault for fault in WIRE_FAULTS}


@pytest.fixture(scope='module')
def clip() -> Clip:
    """Straight ahead at 1 m/s for 12 s, two small cameras."""
    camera = Camera(64, 48, (60.0, 60.0, 31.5, 23.5))
    rng = np.random.default_rng(0)
    stamps = 10**9 + np.arange(FRAMES, dtype=np.int64) * (10**9 // RATE_HZ)
    image = rng.integers(0, 255, (48, 64), np.uint8)
    frames = tuple(Frame(int(s), (View(image), View(image)), i) for i, s in enumerate(stamps))
    poses = np.tile(np.eye(4), (FRAMES, 1, 1))
    poses[:, 0, 3] = np.arange(FRAMES) * SPEED_MPS / RATE_HZ
    return Clip('straight', 'stereo', Rig((camera, camera)), frames, Trajectory(stamps, poses))


def honest(fault: WireFault, clip: Clip) -> Heard:
    """A node that answers every lit image within 20 ms with the truth."""
    shots = sorted(fault.change(shots_of(clip, START_NS)), key=lambda s: s.at_s)
    heard = Heard(shots, [shot.at_s for shot in shots], memory_mb=(500.0, 510.0))
    assert clip.truth is not None
    truth = dict(zip(clip.truth.stamps_ns.tolist(), clip.truth.world_from_body, strict=True))
    newest = 0
    for shot in shots:
        at_s = shot.at_s + 0.02
        if shot.stamp_ns <= newest and newest - shot.stamp_ns < 10**9:
            heard.states.append(State(shot.stamp_ns, at_s, 'SKIPPED', 'late'))
            continue
        newest = shot.stamp_ns
        status = 'TRACKING' if shot.lit else 'LOST'
        if not fault.begins:
            heard.states.append(State(shot.stamp_ns, at_s, 'INITIALISING', 'no parallax'))
            continue
        heard.states.append(State(shot.stamp_ns, at_s, status, '' if shot.lit else 'dark'))
        if shot.lit:
            covariance = np.eye(6) * 1e-6
            heard.poses.append(
                Pose(shot.stamp_ns, at_s, truth[shot.frame.stamp_ns].copy(), covariance)
            )
    return heard


def frames_only(fault: WireFault) -> bool:
    """Nothing happens to a process."""
    return fault.event in ('', 'nobody reads')


@pytest.mark.parametrize('name', [f.name for f in WIRE_FAULTS if frames_only(f)])
def test_who_tells_the_truth_is_not_blamed(name: str, clip: Clip) -> None:
    verdict = judge(FAULTS[name], clip, honest(FAULTS[name], clip))
    assert verdict.complaints == ()
    assert verdict.survived
    assert verdict.scale_change == pytest.approx(1.0)
    if not FAULTS[name].begins:
        assert verdict.recovery_s is verdict.error_m is None
        return
    assert verdict.recovery_s is not None
    assert verdict.recovery_s < 0.5
    assert verdict.error_m == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize('name', [f.name for f in WIRE_FAULTS if f.must_say])
def test_the_shots_of_a_blind_camera_are_not_lit(name: str, clip: Clip) -> None:
    shots = FAULTS[name].change(shots_of(clip, START_NS))
    during = [s for s in shots if BEGIN_S <= s.at_s < FAULTS[name].end_s]
    assert during
    others = [s for s in shots if not BEGIN_S <= s.at_s < FAULTS[name].end_s]
    assert all(shot.lit for shot in others)


def moved(heard: Heard, begin_s: float, by_m: float, sigma_m: float = 0.001) -> None:
    """From a time on, all poses are off, and say so or not."""
    for number, pose in enumerate(heard.poses):
        if pose.arrived_s >= begin_s:
            matrix = pose.odom_from_body.copy()
            matrix[1, 3] += by_m
            heard.poses[number] = replace(
                pose, odom_from_body=matrix, covariance=np.eye(6) * sigma_m**2
            )


def lie_about_the_pose(heard: Heard) -> None:
    moved(heard, 9.0, 0.5)


def lie_about_the_dark(heard: Heard) -> None:
    for number, state in enumerate(heard.states):
        if BEGIN_S + 0.5 < state.arrived_s < BEGIN_S + 0.8:
            heard.states[number] = replace(state, status='TRACKING')


def be_slow(heard: Heard) -> None:
    heard.poses = [p for p in heard.poses if not BEGIN_S < p.arrived_s < BEGIN_S + 4.0]


def never_come_back(heard: Heard) -> None:
    heard.poses = [p for p in heard.poses if p.arrived_s < BEGIN_S]


def die(heard: Heard) -> None:
    heard.ended = 'main ended with code -11'


def grow(heard: Heard) -> None:
    heard.memory_mb = (500.0, 900.0)


@pytest.mark.parametrize(
    ('lie', 'complaint'),
    [
        (lie_about_the_pose, 'false poses'),
        (lie_about_the_pose, 'odom jumped'),
        (lie_about_the_dark, 'blind frames called TRACKING'),
        (be_slow, 'recovery took'),
        (never_come_back, 'never recovered'),
        (die, 'ended with code -11'),
        (grow, 'memory grew'),
    ],
)
def test_every_lie_is_caught(lie: Callable[[Heard], None], complaint: str, clip: Clip) -> None:
    fault = FAULTS['black for 2 s']
    heard = honest(fault, clip)
    lie(heard)
    assert any(complaint in said for said in judge(fault, clip, heard).complaints)


def test_an_error_that_is_admitted_is_no_lie(clip: Clip) -> None:
    fault = FAULTS['black for 2 s']
    heard = honest(fault, clip)
    moved(heard, 7.0, 0.2, sigma_m=0.1)
    verdict = judge(fault, clip, heard)
    assert verdict.false_poses == 0
    assert verdict.error_m == pytest.approx(0.2, abs=1e-6)


def test_poses_without_parallax_are_a_lie(clip: Clip) -> None:
    fault = FAULTS['standing still from the start']
    said = honest(replace(fault, begins=True), clip)
    (complaint,) = judge(fault, clip, said).complaints
    assert complaint.endswith('poses without parallax')


def in_units(heard: Heard, begin_s: float, metres: float) -> None:
    """From a time on, poses are in other units, and go on from where they are."""
    before = [pose for pose in heard.poses if pose.arrived_s < begin_s]
    origin = before[-1].odom_from_body[:3, 3].copy() if before else np.zeros(3)
    for number, pose in enumerate(heard.poses):
        if pose.arrived_s >= begin_s:
            matrix = pose.odom_from_body.copy()
            matrix[:3, 3] = origin + (matrix[:3, 3] - origin) / metres
            heard.poses[number] = replace(
                pose, odom_from_body=matrix, covariance=pose.covariance / metres**2
            )


def of_one_camera(clip: Clip, begin_s: float, metres: float) -> tuple[WireFault, Clip, Heard]:
    """An honest node whose lengths are in other units from a time on."""
    mono, fault = replace(clip, sensor='mono'), FAULTS['black for 2 s']
    heard = honest(fault, mono)
    in_units(heard, begin_s, metres)
    return fault, mono, heard


def test_one_camera_is_judged_up_to_scale(clip: Clip) -> None:
    fault, mono, heard = of_one_camera(clip, 0.0, 4.0)
    verdict = judge(fault, mono, heard)
    assert verdict.complaints == ()
    assert verdict.error_m == pytest.approx(0.0, abs=1e-6)
    assert verdict.scale_change == pytest.approx(1.0)
    moved(heard, 7.0, 0.1, sigma_m=0.1)  # 0.4 m
    admitted = judge(fault, mono, heard)
    assert (admitted.false_poses, admitted.error_m) == (0, pytest.approx(0.4, abs=1e-3))
    moved(heard, 7.0, 0.1, sigma_m=0.001)
    assert judge(fault, mono, heard).false_poses > 0
    metric = judge(fault, clip, heard)
    assert metric.error_m is not None
    assert metric.error_m > 1.0  # nobody may choose a scale there


def test_a_new_scale_is_told(clip: Clip) -> None:
    verdict = judge(*of_one_camera(clip, 7.0, 1.25))
    assert verdict.scale_change == pytest.approx(1.25, rel=1e-3)


def test_catching_up_is_no_scale(clip: Clip) -> None:
    """For three seconds of the five that are left odom moves half as fast again as the body."""
    fault, mono, heard = of_one_camera(clip, 0.0, 4.0)
    for pose in heard.poses:
        if pose.arrived_s >= 7.0:
            pose.odom_from_body[0, 3] -= max(0.0, 10.0 - pose.arrived_s) * 0.5 / 4.0
            pose.covariance[0, 0] += 1.0
    verdict = judge(fault, mono, heard)
    assert verdict.complaints == ()
    assert verdict.scale_change == pytest.approx(1.0)
    assert verdict.error_m == pytest.approx(0.0, abs=1e-6)


def restarted(clip: Clip, map_after: int) -> Verdict:
    fault = FAULTS['kill -9 of the mapping']
    heard = honest(fault, clip)
    heard.restarted_s = BEGIN_S
    heard.map_keyframes = [(4.0, 7), (9.0, map_after)]
    return judge(fault, clip, heard)


def test_a_map_that_is_lost_is_a_complaint(clip: Clip) -> None:
    assert restarted(clip, 8).complaints == ()
    assert restarted(clip, 2).complaints == ('map of 7 became 2',)


def test_odom_may_begin_anew_where_the_node_does(clip: Clip) -> None:
    fault = FAULTS['kill -9 of the odometry']
    heard = honest(fault, clip)
    heard.restarted_s = BEGIN_S
    heard.poses = [p for p in heard.poses if not BEGIN_S < p.arrived_s < 9.0]
    moved(heard, 9.0, -3.0)
    verdict = judge(fault, clip, heard)
    assert verdict.complaints == ()
    assert verdict.recovery_s == pytest.approx(4.0, abs=0.2)


def test_shots_keep_the_frames_of_a_burst_and_their_order(clip: Clip) -> None:
    shots = FAULTS['stalled for 2 s, then 100 Hz'].change(shots_of(clip, START_NS))
    assert len(shots) == len(clip)
    assert [s.stamp_ns for s in shots] == sorted(s.stamp_ns for s in shots)
    assert not [s for s in shots if BEGIN_S <= s.at_s < BEGIN_S + 2.0]


def test_what_hides_the_view_hides_its_share(clip: Clip) -> None:
    shot = shots_of(clip, START_NS)[60]
    during = FAULTS['something hides 40 % for 2 s'].change(shots_of(clip, START_NS))
    hidden = next(s for s in during if s.stamp_ns == shot.stamp_ns)
    for view, before in zip(hidden.frame.views, shot.frame.views, strict=True):
        changed = (view.image != before.image).any(0)
        assert changed.mean() == pytest.approx(0.4, abs=0.03)


def test_messages_are_corrupted_in_every_way() -> None:
    pytest.importorskip('sensor_msgs', reason='the messages come with ROS')
    from mv_matcher_ros.cli.wire_shots import corrupted
    from mv_matcher_ros.errors import SourceError
    from mv_matcher_ros.ros.conversions import image_from_message, message_from_image
    from mv_matcher_ros.ros.messages import header_message

    refused = 0
    for seed in range(40):
        message: Any = message_from_image(
            np.full((48, 64), 90, np.uint8), 'mono8', header_message(1, 'camera')
        )
        (spoilt,) = corrupted(seed)([message])
        try:
            image_from_message(spoilt, '/image')
        except SourceError:
            refused += 1
    assert 25 <= refused < 40  # static on the line is an image, if a bad one


def test_a_silent_camera_publishes_nothing(clip: Clip) -> None:
    shots = FAULTS['one camera of two silent for 2 s'].change(shots_of(clip, START_NS))
    silent: Shot = next(s for s in shots if s.at_s >= BEGIN_S)
    assert silent.spoil is not None
    assert silent.spoil(['left', 'right']) == ['left', None]


def test_a_recording_that_ends_too_soon_is_refused(clip: Clip) -> None:
    from mv_matcher_ros.cli.stress_live import stress_live

    short = replace(clip, frames=clip.frames[:40])
    with pytest.raises(MvMatcherError, match=r'40 frames last .* s; .*--frames'):
        stress_live(short, 'black', Settings(), 'stereo', False)
