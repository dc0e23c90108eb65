# SPDX-License-Identifier: Apache-2.0
"""What comes, but not as it should, is said by name; and nothing is said of good input."""

from __future__ import annotations

import time
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from mv_matcher_ros.config import read_settings
from mv_matcher_ros.datatypes import Estimate, Status
from mv_matcher_ros.ros import diagnosis
from mv_matcher_ros.ros.diagnosis import Watch, clock_problem, missing
from mv_matcher_ros.ros.health import Health
from mv_matcher_ros.ros.inputs import Arrival, Stream

NOW_S, CLOCK_NS = 1000.0, 1_700_000_000_000_000_000
PERIOD_S = 0.05


class Logger:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warning(self, line: str) -> None:
        self.lines.append(line)


def stream(
    topic: str, stamps_ns: list[int], period_s: float = PERIOD_S, rate: float = 1.0
) -> Stream:
    """Messages that came every `period_s`, the last one now; the node's clock runs at a rate."""
    count = len(stamps_ns)
    times = [NOW_S - period_s * (count - 1 - i) for i in range(count)]
    arrivals = deque(
        Arrival(t, s, CLOCK_NS - round((NOW_S - t) * 1e9 * rate))
        for t, s in zip(times, stamps_ns, strict=True)
    )
    return Stream(topic, count, arrivals=arrivals)


def stamps(shift_s: float = 0.0, count: int = 200) -> list[int]:
    """Of images that are taken when they arrive, but for `shift_s`."""
    return [CLOCK_NS + round((shift_s - PERIOD_S * (count - 1 - i)) * 1e9) for i in range(count)]


def inputs_of(*streams: Stream, sets: int | None = None) -> Any:
    """Inputs with as many sets as the first stream has messages, unless told."""
    count = min(s.count for s in streams) if sets is None else sets
    together = list(zip(*(list(s.arrivals)[-count:] for s in streams), strict=True))[:count]
    return SimpleNamespace(
        images=list(streams),
        infos=[],
        masks=0,
        sets=count,
        complete=deque((t[0].received_s, tuple(a.stamp_ns for a in t)) for t in together),
        incompatible_qos={},
        changed=set(),
        raw=True,
    )


def health_of(rate_hz: float = 20.0) -> Health:
    """A node that has processed `rate_hz` frames a second for ten seconds."""
    health = Health(Logger())
    for number in range(round(10 * rate_hz)):
        stages = {'flow': 40.0, 'keyframe': 25.0, 'total': 66.0}
        health.processed(Estimate(number, Status.TRACKING, latency_ms=stages))
        health._done_s.append(NOW_S - 10.0 + number / rate_hz + 0.001)
    return health


def warnings(inputs: Any, health: Health | None = None, **settings: Any) -> dict[str, str]:
    watch = Watch(read_settings(settings))
    return watch.warnings(inputs, health or health_of(), NOW_S)


def test_good_input_is_not_complained_about() -> None:
    assert warnings(inputs_of(stream('/left', stamps()), stream('/right', stamps()))) == {}
    # A driver's 30 ms and a clock that is 50 ms ahead are nothing.
    assert warnings(inputs_of(stream('/image', stamps(-0.03)))) == {}
    assert warnings(inputs_of(stream('/image', stamps(0.05)))) == {}
    # A recording's stamps are old, and nobody wants to hear it.
    assert warnings(inputs_of(stream('/image', stamps(-1e7)))) == {}


@pytest.mark.parametrize(
    ('shift_s', 'words'),
    [(-2.5, '/image are 2.5 s old'), (1.2, '/image are 1.2 s ahead')],
)
def test_stamps_of_another_clock(shift_s: float, words: str) -> None:
    assert words in warnings(inputs_of(stream('/image', stamps(shift_s))))['clock']


def test_a_recording_may_be_played_faster_than_time_runs() -> None:
    fast = [CLOCK_NS - round(3.0 * PERIOD_S * (199 - i) * 1e9) for i in range(200)]
    assert 'clock' not in warnings(inputs_of(stream('/image', fast, rate=3.0)))


@pytest.mark.parametrize('jump_s', [-30.0, 30.0])
def test_stamps_that_jump(jump_s: float) -> None:
    early, late = stamps(-1e7)[:150], stamps(-1e7 + jump_s)[150:]
    said = warnings(inputs_of(stream('/image', [*early, *late])))
    assert f'/image jumped by {jump_s:+.1f} s' in said['jump']


def test_images_without_partner() -> None:
    left, right = stream('/left', stamps()), stream('/right', stamps(count=200)[-20:], 0.25)
    said = warnings(inputs_of(left, right, sets=20), **{'ros.lossless': True})['pairs']
    assert '/left' in said
    assert '20 on /right' in said


def test_cameras_that_are_not_triggered_together() -> None:
    right = [stamp + 8_000_000 for stamp in stamps()]
    said = warnings(inputs_of(stream('/left', stamps()), stream('/right', right)))['offset']
    assert '/right is 8.0 ms later than /left' in said


def test_too_slow_names_the_stages() -> None:
    said = warnings(inputs_of(stream('/image', stamps())), health_of(12.0))['speed']
    assert '20.0 frames/s come, 12.0 are processed; flow 40 ms, keyframe 25 ms' in said
    assert 'total' not in said
    lossless = warnings(
        inputs_of(stream('/image', stamps())), health_of(12.0), **{'ros.lossless': True}
    )
    assert lossless == {}


def test_the_first_seconds_are_not_judged() -> None:
    few = stamps(count=40)  # two seconds
    assert 'speed' not in warnings(inputs_of(stream('/image', few)), health_of(5.0))


def test_gpu_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda: (100 << 20, 8000 << 20))
    assert diagnosis._gpu() == 'GPU memory: 100 of 8000 MiB are free'
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda: (4000 << 20, 8000 << 20))
    assert diagnosis._gpu() == ''


def node(use_sim_time: bool, clock_ns: int, publishers: int) -> Any:
    return SimpleNamespace(
        get_parameter=lambda name: SimpleNamespace(value=use_sim_time),
        get_clock=lambda: SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=clock_ns)),
        count_publishers=lambda topic: publishers,
    )


def test_a_clock_that_does_not_run() -> None:
    assert 'nobody publishes it' in clock_problem(node(True, 0, 0))
    assert 'no message yet' in clock_problem(node(True, 0, 1))
    assert clock_problem(node(True, 5, 1)) == ''
    assert clock_problem(node(False, 0, 0)) == ''


def test_the_silent_one_of_two_is_named() -> None:
    right = Stream('/right', 3, arrivals=deque([Arrival(NOW_S - 2.0, 1, 1)] * 3))
    said = missing(inputs_of(stream('/left', stamps()), right), node(False, 1, 1), 0.01, NOW_S)
    assert said == ['no new image on /right for 1 s and longer']


def test_a_slow_camera_is_not_silent() -> None:
    slow = Stream(
        '/image', 3, arrivals=deque(Arrival(NOW_S - 1.5 - 2.0 * i, 1, 1) for i in (2, 1, 0))
    )
    assert missing(inputs_of(slow), node(False, 1, 1), 0.01, NOW_S) == []


def test_a_warning_is_logged_once_though_its_numbers_change() -> None:
    health = health_of()
    logger: Any = health._logger
    for second in range(5):
        health.warn({'speed': f'{second} frames/s', 'clock': 'late'})
    assert logger.lines == ['0 frames/s', 'late']


def test_a_problem_is_logged_once_though_its_numbers_change() -> None:
    health = Health(Logger())
    logger: Any = health._logger
    for second in range(5):
        health.say(f'the last ones are 0.{second} s apart')
    health.say('something else')
    assert logger.lines == ['the last ones are 0.0 s apart', 'something else']


def test_frames_in_vain_are_a_problem_and_those_somebody_stops_are_not() -> None:
    health = Health(Logger())
    health.skipped('paused', '')
    assert not health.stuck(time.monotonic() + 10.0)
    health.skipped('unusable image', 'of another size')
    assert not health.stuck(time.monotonic() + 10.0)  # one is none
    health.skipped('unusable image', 'of another size')
    assert not health.stuck(time.monotonic())
    assert health.stuck(time.monotonic() + 1.0) == 'no frame is processed: of another size'
    health.processed(Estimate(1, Status.TRACKING))
    assert not health.stuck(time.monotonic() + 10.0)
    health.begins()
    assert 'not finished after 4 s' in health.stuck(time.monotonic() + 4.0)
    health.ends()
    assert not health.stuck(time.monotonic() + 10.0)
