# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import cv2
import numpy as np
import pytest

from mv_matcher_ros.datatypes import Estimate, Frame, Status, TrackView, View
from mv_matcher_ros.errors import EvaluationError
from mv_matcher_ros.evaluation.track_sampler import (
    LONG_TRACK,
    TrackSampler,
    draw_tracks,
    read_samples,
)

GREY = np.full((60, 80), 100, dtype=np.uint8)


def tracks(points, previous=None, inlier=True, length=1) -> TrackView:
    xy = np.array(points, dtype=np.float32).reshape(-1, 2)
    before = np.full_like(xy, np.nan) if previous is None else np.array(previous, np.float32)
    count = len(xy)
    return TrackView(xy, before.reshape(-1, 2), np.full(count, inlier), np.full(count, length))


def feed(sampler: TrackSampler, count: int, troubled: range = range(0)) -> None:
    for k in range(count):
        status = Status.LOST if k in troubled else Status.TRACKING
        frame = Frame(k * 10, (View(GREY),), k)
        sampler.write(frame, Estimate(k * 10, status, counts={'inliers': k}))
    sampler.close()


@pytest.mark.parametrize('count', [1, 5, 9, 10, 18, 19, 100, 1000])
def test_frames_are_spread_evenly_whatever_the_length(tmp_path, count):
    feed(TrackSampler(tmp_path, count=9), count)
    kept = [sample.index for sample in read_samples(tmp_path)]
    assert len(kept) == min(count, 9)
    assert kept[0] == 0
    assert kept == sorted(set(kept))
    if count > 9:
        gaps = np.diff(kept)
        assert gaps.max() <= 2 * gaps.min() + 1
        assert kept[-1] >= count * 0.7


def test_pictures_and_their_list_are_written(tmp_path):
    feed(TrackSampler(tmp_path, count=4, width=40), 20)
    for sample in read_samples(tmp_path):
        assert sample.counts == {'inliers': sample.index}
        assert sample.stamp_ns == sample.index * 10
        picture = cv2.imread(str(tmp_path / sample.file))
        assert picture.shape == (30, 40, 3)


def test_where_tracking_fails_is_kept_too(tmp_path):
    feed(TrackSampler(tmp_path, count=4, trouble=2), 100, troubled=range(57, 61))
    samples = {sample.index: sample.status for sample in read_samples(tmp_path)}
    assert samples[57] == 'LOST'
    assert len(samples) == 5


def test_memory_does_not_grow_with_the_run(tmp_path):
    sampler = TrackSampler(tmp_path, count=3)
    feed(sampler, 500)
    assert len(sampler._even) <= 2 * 3


def test_an_empty_run_writes_an_empty_list(tmp_path):
    TrackSampler(tmp_path).close()
    assert read_samples(tmp_path) == []
    assert read_samples(tmp_path / 'nothing') == []


def test_damaged_lists_and_bad_sizes_are_refused(tmp_path):
    (tmp_path / 'frames').mkdir()
    (tmp_path / 'frames/frames.json').write_text('[{"file": 1}]')
    with pytest.raises(EvaluationError, match='not a list of frames'):
        read_samples(tmp_path)
    with pytest.raises(EvaluationError, match='frames to keep'):
        TrackSampler(tmp_path, count=0)


def test_new_long_and_outlying_tracks_have_their_colours():
    cases = {
        'new': tracks([40, 30], length=1),
        'long': tracks([40, 30], length=LONG_TRACK),
        'outlier': tracks([40, 30], inlier=False),
    }
    drawn = {name: draw_tracks(GREY, view)[30, 40].astype(int) for name, view in cases.items()}
    blue, green, red = (drawn[name] for name in ('new', 'long', 'outlier'))
    assert blue[2] > blue[1] > blue[0]  # orange
    assert green[1] > green[2]
    assert red[2] > max(red[0], red[1]) + 60


def test_the_way_since_the_last_keyframe_is_drawn():
    still, moved = (
        draw_tracks(GREY, tracks([60, 30], previous)) for previous in (None, [[20, 30]])
    )
    assert (still[30, 40] == still[5, 5]).all()
    assert (moved[30, 40] != still[5, 5]).any()


def test_drawing_scales_with_the_picture_and_leaves_the_image_alone():
    image = np.dstack([GREY] * 3)
    small = draw_tracks(image, tracks([60, 40]), width=40)
    assert small.shape == (30, 40, 3)
    background = small[2, 2].astype(int)
    hot = np.argwhere(np.abs(small.astype(int) - background).sum(axis=2) > 60)
    np.testing.assert_allclose(hot.mean(axis=0), [40 * 0.5 - 0.25, 60 * 0.5 - 0.25], atol=0.3)
    assert (image == 100).all()


def test_points_that_are_not_finite_and_none_at_all_are_no_harm():
    plain = draw_tracks(GREY, tracks([]))
    odd = draw_tracks(GREY, tracks([[np.nan, 3.0], [np.inf, 1.0]]))
    np.testing.assert_array_equal(plain, odd)
