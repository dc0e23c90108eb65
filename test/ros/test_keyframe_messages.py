# SPDX-License-Identifier: Apache-2.0
"""A record of a keyframe survives the way over a topic; what is none is refused."""

from __future__ import annotations

import array
import io
import zipfile
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from mv_matcher_ros.datatypes import Camera, Features, Rig
from mv_matcher_ros.errors import SourceError
from mv_matcher_ros.odometry.keyframe_record import KeyframeRecord
from mv_matcher_ros.odometry.observation import Observation
from mv_matcher_ros.ros import keyframe_messages as messages
from mv_matcher_ros.ros.keyframe_messages import SentKeyframe

pytestmark = pytest.mark.ros

MOUNT = np.array([[0.0, 0, 1, 0.1], [-1, 0, 0, 0.2], [0, -1, 0, 0.3], [0, 0, 0, 1]])
RIG = Rig(
    (
        Camera(640, 480, (500.0, 501.0, 320.0, 240.0), 'radtan', (0.1, -0.2, 0.0, 0.0, 0.05)),
        Camera(640, 480, (500.0, 501.0, 320.0, 240.0), body_from_camera=MOUNT, name='right'),
    ),
    'rep103',
)


def record(count: int = 5, before: int | None = 7) -> KeyframeRecord:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, kind: torch.dtype = torch.float64) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=kind)

    features = Features(
        normal(count, 2, kind=torch.float32),
        torch.nn.functional.normalize(normal(count, 64, kind=torch.float32), dim=1).half().float(),
        normal(count, kind=torch.float32).abs(),
        normal(count, kind=torch.float32).abs(),
        (640, 480),
    )
    inverse = normal(count).abs()
    inverse[:1] = torch.nan
    observation = Observation(
        1_700_000_000_123_456_789, 42, features, normal(count, 2), normal(count).abs(), inverse,
        normal(count).abs(), torch.zeros(count, dtype=torch.int64),
    )  # fmt: skip
    points = normal(count, 3)
    points[:1] = torch.nan
    return KeyframeRecord(
        observation, 3, before, normal(4, 4), normal(4, 4), normal(6, 6),
        torch.arange(count) - 1, points, normal(count, 3, 3).float().double(), True,
    )  # fmt: skip


def sent_of(one: KeyframeRecord) -> SentKeyframe:
    return SentKeyframe(one, 'run 1', 'mono', RIG, 'abc', 'base_link', 'odom')


def same(one: object, other: object) -> None:
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, other)  # type: ignore[arg-type]
    elif isinstance(one, tuple):
        assert isinstance(other, tuple)
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            same(mine, theirs)
    elif isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor)
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    elif hasattr(one, '__dataclass_fields__'):
        for field in fields(one):  # type: ignore[arg-type]
            same(getattr(one, field.name), getattr(other, field.name))
    else:
        assert one == other


@pytest.mark.parametrize('count', [0, 1, 900])
@pytest.mark.parametrize('before', [None, 0, 7])
def test_a_record_comes_out_as_it_went_in(count: int, before: int | None) -> None:
    from rclpy.serialization import deserialize_message, serialize_message
    from std_msgs.msg import UInt8MultiArray

    sent = SentKeyframe(record(count, before), 'run 1', 'stereo', RIG, 'abc', 'base_link', 'odom')
    message = messages.keyframe_message(sent)
    wired = deserialize_message(serialize_message(message), UInt8MultiArray)
    same(messages.keyframe_from_message(wired), sent)
    if count == 900:
        assert len(message.data) < 400_000


@pytest.mark.parametrize('count', [1, 4, 6, 8])
def test_a_rig_of_several_pairs_gets_to_the_map(count: int) -> None:
    rig = Rig((RIG.cameras * 4)[:count], 'rep103')
    sent = replace(sent_of(record()), rig=rig)
    message = messages.keyframe_message(sent)
    same(messages.keyframe_from_message(message), sent)
    assert message.layout.dim[0].stride == len(message.data)


@pytest.mark.parametrize('count', [3, 10])
def test_a_rig_that_is_none_is_refused(count: int) -> None:
    rig = Rig((RIG.cameras * 5)[:count], 'rep103')
    with pytest.raises(SourceError, match=f'{count} cameras'):
        messages.keyframe_from_message(
            messages.keyframe_message(replace(sent_of(record()), rig=rig))
        )


def test_what_is_no_keyframe_is_refused() -> None:
    from std_msgs.msg import UInt8MultiArray

    whole = bytes(messages.keyframe_message(sent_of(record())).data)
    for data in (b'', b'hello', whole[: len(whole) // 2], whole[:-30] + bytes(30)):
        with pytest.raises(SourceError, match='keyframe message'):
            messages.keyframe_from_message(UInt8MultiArray(data=array.array('B', data)))


def test_another_format_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(messages, 'FORMAT', 9)
        message = messages.keyframe_message(sent_of(record()))
    with pytest.raises(SourceError, match='format 9, this version reads 1'):
        messages.keyframe_from_message(message)


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    torn = replace(record(), points=torch.zeros(3, 3, dtype=torch.float64))
    message = messages.keyframe_message(sent_of(torn))
    with pytest.raises(SourceError, match='different lengths'):
        messages.keyframe_from_message(message)
    assert np.isfinite(torn.points.numpy()).all()


def packed(arrays: dict[str, np.ndarray], compression: int = zipfile.ZIP_STORED) -> object:
    """A message of arrays, as numpy writes them."""
    from std_msgs.msg import UInt8MultiArray

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w', compression) as archive:
        for name, values in arrays.items():
            content = io.BytesIO()
            np.save(content, values)
            archive.writestr(f'{name}.npy', content.getvalue())
    return UInt8MultiArray(data=array.array('B', stream.getvalue()))


def test_a_small_message_that_is_large_when_unpacked_is_refused() -> None:
    arrays = messages._arrays(sent_of(record())) | {'points': np.zeros((10**7, 3))}
    message = packed(arrays, zipfile.ZIP_DEFLATED)
    assert len(message.data) < 10**6  # type: ignore[attr-defined]
    with pytest.raises(SourceError, match='unpacked it is larger than any keyframe'):
        messages.keyframe_from_message(message)


@pytest.mark.parametrize(
    ('name', 'values'),
    [
        ('points', np.zeros((5, 4))), ('points', np.zeros((5, 3), np.complex128)),
        ('keypoints_xy', np.zeros(5)), ('landmark', np.full(5, -2)), ('landmark', np.zeros(5)),
        ('odom_from_body', np.full((4, 4), np.nan)), ('image_size', np.array([0, 4])),
        ('image_size', np.array([4])), ('sensor', np.array('nose')), ('scores', np.array(1.0)),
        ('sigma', np.array(['a'] * 5)), ('stamps_ns', np.array([1.5])), ('format', np.zeros(3)),
        ('body_axes', np.array('up')), ('camera_names', np.zeros((0, 2))),
        ('point_covariance', np.zeros((5, 3))), ('camera_sizes', np.full((2, 2), 10**9)),
    ],
)  # fmt: skip
def test_arrays_of_another_kind_are_refused(name: str, values: np.ndarray) -> None:
    arrays = messages._arrays(sent_of(record())) | {name: values}
    with pytest.raises(SourceError, match='keyframe message: '):
        messages.keyframe_from_message(packed(arrays))
