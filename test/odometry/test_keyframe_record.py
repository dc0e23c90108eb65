# SPDX-License-Identifier: Apache-2.0
"""What a map is told of keyframes: each once, refined, and true."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from mv_matcher_ros.config import Settings
from mv_matcher_ros.datatypes import Estimate, Frame, View
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.odometry.engine import OdometryEngine
from mv_matcher_ros.odometry.keyframe_record import KeyframeRecord
from mv_matcher_ros.worlds.presets import room_loop
from mv_matcher_ros.worlds.recording import SyntheticSource

SIZE = (320, 240)
FEW = {'parallax_px': 15.0}


def source(sensor: str, frames: int = 40) -> SyntheticSource:
    return room_loop(sensor, frames, size=SIZE, rate_hz=20.0)


def recorded(
    sensor: str, frames: list[Frame], rig: object, **keyframes: object
) -> tuple[list[KeyframeRecord], list[Estimate]]:
    settings = Settings.model_validate({
        'sensor': sensor, 'detector': {'name': 'sift'}, 'matching': {'matcher': 'nearest'},
        'keyframes': {**FEW, **keyframes},
    })  # fmt: skip
    records: list[KeyframeRecord] = []
    engine = OdometryEngine(settings, rig)  # type: ignore[arg-type]
    engine.report_keyframes(records.append)
    estimates = [engine.process(frame) for frame in frames]
    engine.finish()
    return records, estimates


@pytest.mark.slow
@pytest.mark.parametrize('sensor', ['stereo', 'mono', 'rgbd'])
def test_every_keyframe_is_reported_once_and_in_order(sensor: str) -> None:
    flight = source(sensor)
    records, estimates = recorded(sensor, list(flight), flight.rig)
    stamps = [record.stamp_ns for record in records]
    assert len(stamps) >= 5
    assert stamps == sorted(set(stamps))
    named = {e.stamp_ns for e in estimates if e.is_keyframe}
    # A map begins with more views than the frame that says so; a frame can fail to become one.
    assert len(named & set(stamps)) >= 0.9 * len(named)
    assert [r.before_ns for r in records] == [None, *stamps[:-1]]
    assert {r.segment for r in records} == {0}
    assert all(r.metric == (sensor != 'mono') for r in records)
    published = {e.stamp_ns: e.odom_from_body for e in estimates}
    for record in records:
        there = published[record.stamp_ns]
        if there is not None:
            np.testing.assert_allclose(record.odom_from_body, there, atol=1e-12)


def test_steps_and_landmarks_are_true() -> None:
    flight = source('stereo')
    records, _ = recorded('stereo', list(flight), flight.rig)
    assert flight.truth is not None
    truth = dict(zip(flight.truth.stamps_ns.tolist(), flight.truth.world_from_body, strict=True))
    nees = []
    for before, this in pairwise(records):
        step = se3.inverse(before.segment_from_body) @ this.segment_from_body
        true = torch.from_numpy(np.linalg.inv(truth[before.stamp_ns]) @ truth[this.stamp_ns])
        error = se3.log(se3.inverse(true) @ step)
        assert float(error[:3].norm()) < 0.02
        nees.append(float(error @ torch.linalg.solve(this.step_covariance, error)) / 6.0)
    assert 0.05 < float(np.median(nees)) < 5.0
    camera = flight.rig.cameras[0]
    camera_from_body = torch.from_numpy(np.linalg.inv(camera.body_from_camera))
    for record in records:
        sees = record.landmark >= 0
        assert int(sees.sum()) > 40
        assert len(record.landmark[sees].unique()) == int(sees.sum())
        assert torch.equal(record.points.isfinite().all(1), sees)
        local = se3.transform(camera_from_body, record.points[sees])
        apart = local[:, :2] / local[:, 2:] - record.observation.plane_xy[sees]
        assert float(apart.norm(dim=1).median()) * camera.focal_px < 1.0
        assert bool((torch.linalg.eigvalsh(record.point_covariance[sees]) > -1e-12).all())


def test_a_landmark_keeps_its_number_while_rows_come_and_go() -> None:
    flight = source('stereo')
    records, _ = recorded('stereo', list(flight), flight.rig, window=6, map_lag=2)
    first, places = records[0], {}
    apart = []
    for record in records:
        world = se3.transform(record.segment_from_body, record.points)
        for number, point in zip(record.landmark.tolist(), world, strict=True):
            if number < 0:
                continue
            if number in places:
                apart.append(float((places[number] - point).norm()))
            places[number] = point
    assert len(apart) > 100
    assert float(np.median(apart)) < 0.03
    assert np.percentile(apart, 90) < 0.3
    assert len(places) > 1.5 * int((first.landmark >= 0).sum())


@pytest.mark.slow
def test_a_long_loss_begins_another_segment() -> None:
    flight = source('stereo', 60)
    dark = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    frames = []
    for frame in flight:
        later = int(np.clip(frame.index - 25, 0, 10)) * 3_000_000_000
        frame = replace(frame, stamp_ns=frame.stamp_ns + later)
        if 25 <= frame.index < 35:
            frame = replace(frame, views=tuple(replace(v, image=dark) for v in frame.views))
        elif frame.index >= 35:  # another place: the world in a mirror, in which left is right
            mirrored = [np.ascontiguousarray(v.image[:, ::-1]) for v in frame.views[::-1]]
            frame = replace(frame, views=tuple(View(image) for image in mirrored))
        frames.append(frame)
    records, _ = recorded('stereo', frames, flight.rig)
    segments = [record.segment for record in records]
    assert segments == sorted(segments)
    assert set(segments) == {0, 1}
    first = segments.index(1)
    assert records[first].before_ns is None
    assert not bool(records[first].step_covariance.any())


def test_a_reset_reports_what_was_left() -> None:
    flight = source('rgbd', 30)
    records: list[KeyframeRecord] = []
    settings = Settings.model_validate({'sensor': 'rgbd', 'keyframes': FEW})
    engine = OdometryEngine(settings, flight.rig)
    engine.report_keyframes(records.append)
    for frame in flight:
        engine.process(frame)
    before = len(records)
    engine.reset()
    assert len(records) > before
    stamps = [record.stamp_ns for record in records]
    assert stamps == sorted(set(stamps))
    engine.process(flight.frame(0))
    engine.finish()
    assert records[-1].segment == 1
