# SPDX-License-Identifier: Apache-2.0
"""Contracts of the data that flows between the stages."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from mv_matcher_ros.datatypes import (
    DISTORTION_SIZE,
    REP103_FROM_OPTICAL,
    Camera,
    Features,
    Matches,
    Rig,
    Status,
)
from mv_matcher_ros.errors import CalibrationError, MissingDependencyError, MvMatcherError


def camera(**changes: Any) -> Camera:
    values: dict[str, Any] = {
        'width': 640, 'height': 480, 'intrinsics': (500.0, 510.0, 320.0, 240.0), 'name': 'left',
    }  # fmt: skip
    return Camera(**{**values, **changes})


def test_camera_matrix_and_focal_length() -> None:
    assert camera().matrix.tolist() == [[500, 0, 320], [0, 510, 240], [0, 0, 1]]
    assert camera().focal_px == 505.0


@pytest.mark.parametrize(
    ('changes', 'fault'),
    [
        ({'intrinsics': (0.0, 0.0, 0.0, 0.0)}, 'not calibrated'),
        ({'width': 65536}, 'larger than images get'),
        ({'model': 'radtan', 'distortion': (0.1, float('nan'))}, 'coefficient is not finite'),
        ({'body_from_camera': np.diag([1.0, 1, 1, np.inf])}, 'not a 4x4 rigid transform'),
        ({'intrinsics': (-500.0, 500.0, 1.0, 1.0)}, 'not calibrated'),
        ({'intrinsics': (500.0, 500.0, float('nan'), 1.0)}, 'not calibrated'),
        ({'intrinsics': (float('inf'), 500.0, 1.0, 1.0)}, 'not calibrated'),
        ({'width': 0}, 'image size 0x480'),
        ({'model': 'fov'}, 'distortion model "fov" is unknown'),
        ({'distortion': (0.1,)}, '"pinhole" has 0'),
        ({'model': 'radtan', 'distortion': (0.1,) * 8}, '8 distortion coefficients'),
        ({'body_from_camera': np.eye(3)}, 'not a 4x4 rigid transform'),
        ({'body_from_camera': 2 * np.eye(4)}, 'not a 4x4 rigid transform'),
    ],
)
def test_a_camera_that_cannot_be_is_refused_by_name(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(CalibrationError) as error:
        camera(**changes)
    assert str(error.value).startswith('left: ')
    assert fault in str(error.value)


@pytest.mark.parametrize(('model', 'size'), DISTORTION_SIZE.items())
def test_distortion_is_filled_up_with_zeros(model: Any, size: int) -> None:
    assert camera(model=model).distortion == (0.0,) * size
    given = (0.1,) * (size // 2)
    assert camera(model=model, distortion=given).distortion == given + (0.0,) * (size - size // 2)


def test_zeros_beyond_the_model_are_dropped() -> None:
    assert camera(distortion=(0.0,) * 5).distortion == ()


def test_pixel_centres_are_integers_when_a_camera_is_resized() -> None:
    """The ray through an image corner, at -0.5 and size - 0.5, is the same at any size."""
    full = camera()
    half = full.resized(320, 240)
    for corner_full, corner_half in (
        ((-0.5, -0.5), (-0.5, -0.5)),
        ((639.5, 479.5), (319.5, 239.5)),
    ):
        ray_full = np.linalg.solve(full.matrix, [*corner_full, 1.0])
        ray_half = np.linalg.solve(half.matrix, [*corner_half, 1.0])
        np.testing.assert_allclose(ray_full, ray_half, atol=1e-12)
    back = half.resized(640, 480)
    np.testing.assert_allclose(back.intrinsics, full.intrinsics, rtol=1e-12)


def test_calibration_cannot_be_changed_from_outside() -> None:
    pose = np.eye(4)
    left = camera(body_from_camera=pose)
    pose[0, 3] = 5.0
    assert left.body_from_camera[0, 3] == 0.0
    with pytest.raises(ValueError, match='read-only'):
        left.body_from_camera[0, 3] = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        left.width = 3  # type: ignore[misc]
    with pytest.raises(ValueError, match='read-only'):
        REP103_FROM_OPTICAL[0, 0] = 1.0


def test_rep103_from_optical_turns_forward_right_and_down() -> None:
    """Optical z is REP-103 x (forward), optical x is -y (right), optical y is -z (down)."""
    rotation = REP103_FROM_OPTICAL[:3, :3]
    assert (rotation @ [0, 0, 1]).tolist() == [1, 0, 0]
    assert (rotation @ [1, 0, 0]).tolist() == [0, -1, 0]
    assert (rotation @ [0, 1, 0]).tolist() == [0, 0, -1]
    assert np.linalg.det(rotation) == pytest.approx(1.0)


def test_first_body_pose_says_which_axes_odom_has() -> None:
    np.testing.assert_array_equal(Rig((camera(),)).odom_from_first_body, REP103_FROM_OPTICAL)
    np.testing.assert_array_equal(Rig((camera(),), 'rep103').odom_from_first_body, np.eye(4))
    Rig((camera(),)).odom_from_first_body[0, 0] = 7  # a copy: the constant stays
    assert REP103_FROM_OPTICAL[0, 0] == 0


def test_baseline_is_a_distance() -> None:
    right = np.eye(4)
    right[:3, 3] = [0.3, 0.0, 0.4]
    assert Rig((camera(), camera(body_from_camera=right))).baseline_m == pytest.approx(0.5)
    assert Rig((camera(),)).baseline_m == 0.0


def test_matches_of_a_pair() -> None:
    matches = Matches(
        views=torch.tensor([[0, 1], [0, 2], [0, 1]]),
        keypoints=torch.tensor([[5, 6], [7, 8], [9, 1]]),
        confidence=torch.tensor([0.5, 0.6, 0.7]),
    )
    keypoints, confidence = matches.pair(0, 1)
    assert keypoints.tolist() == [[5, 6], [9, 1]]
    assert confidence.tolist() == pytest.approx([0.5, 0.7])
    assert len(matches) == 3
    empty, none = matches.pair(1, 2)
    assert empty.shape == (0, 2)
    assert none.shape == (0,)


def test_features_count_their_keypoints() -> None:
    nothing = Features(
        torch.zeros(0, 2), torch.zeros(0, 128), torch.zeros(0), torch.zeros(0), (64, 48)
    )
    assert len(nothing) == 0


def test_status_is_said_in_words() -> None:
    assert [s.value for s in Status] == [s.name for s in Status]
    assert set(Status.__members__) == {
        'INITIALISING', 'TRACKING', 'DEGRADED', 'LOST', 'RELOCALISED',
    }  # fmt: skip


def test_missing_dependency_names_package_extra_and_purpose() -> None:
    error = MissingDependencyError('rosbags', 'bags', 'reading rosbags')
    assert isinstance(error, MvMatcherError)
    assert (error.package, error.extra) == ('rosbags', 'bags')
    assert str(error) == (
        'reading rosbags needs the Python package "rosbags", which is not installed: '
        'pip install "mv_matcher_ros[bags]"'
    )
