# SPDX-License-Identifier: Apache-2.0
"""What is wrong with the inputs, by name: what is missing, and what comes but is not as it should.

Looked at once a second, so that all of it is said within two.
"""

from __future__ import annotations

import itertools
from statistics import median
from typing import Any

from mv_matcher_ros.config import Settings
from mv_matcher_ros.ros.health import Health
from mv_matcher_ros.ros.inputs import Arrival, Inputs, Stream
from mv_matcher_ros.ros.topic_hints import COMPRESSED, RAW, published

# Images that stop coming for this long, and for this many of their usual times apart, are missed.
_SILENT_S, _SILENT_PERIODS = 0.9, 3.0
# The last so many seconds are looked at; fewer messages than that say nothing.
_LOOK_S, _FEWEST = 5.0, 5
# Shares of images without partner, and of frames without pose, that are worth a word.
_MOST_LONELY, _MOST_DROPPED = 0.3, 0.2
# A clock that is off by less has no consequences; one that is off by more is that of a recording.
_STALE_S, _AHEAD_S, RECORDING_S = 0.5, 0.1, 86_400.0
# Stamps and arrivals may differ by so much from one message to the next.
_JUMP_S = 1.0
# Cameras that are triggered together are no further apart.
_OFFSET_S = 0.002
_GPU_SHARE = 0.05


def missing(inputs: Inputs, node: Any, slop_s: float, now_s: float) -> list[str]:
    """One sentence, by topic name, for all that should arrive and does not.

    Args:
        inputs: of the node.
        node: asked who publishes what.
        slop_s: `ros.sync_slop_s`.
        now_s: time.monotonic().
    """
    sentences = [
        _why_silent(inputs, node, stream, what)
        for what, streams in (('image', inputs.images), ('camera_info', inputs.infos))
        for stream in streams
        if stream.count == 0
    ]
    sentences += _elsewhere(inputs, node)
    if not sentences and inputs.sets == 0 and len(inputs.images) > 1:
        stamps = [stream.stamp_ns or 0 for stream in inputs.images]
        apart_s = (max(stamps) - min(stamps)) * 1e-9
        sentences.append(
            f'{" and ".join(s.topic for s in inputs.images)} arrive, but no stamps within '
            f'ros.sync_slop_s = {slop_s:g} s (the last ones are {apart_s:.3f} s apart)'
        )
    sentences += [
        f'no new image on {stream.topic} for 1 s and longer'
        for stream in inputs.images
        if inputs.sets and _fell_silent(stream, now_s)
    ]
    sentences += [
        f'the calibration on {topic} has changed since the start: restart the node to use it'
        for topic in sorted(inputs.changed)
    ]
    return sentences


def _fell_silent(stream: Stream, now_s: float) -> bool:
    if not stream.arrivals:
        return False
    times = [arrival.received_s for arrival in stream.arrivals]
    period_s = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
    return now_s - times[-1] > max(_SILENT_S, _SILENT_PERIODS * period_s)


def _elsewhere(inputs: Inputs, node: Any) -> list[str]:
    """Where there are images, if nobody publishes some that this node waits for."""
    mine = [stream.topic for stream in inputs.images]
    if all(s.count or node.count_publishers(s.topic) for s in inputs.images):
        return []
    ours, theirs = (RAW, COMPRESSED) if inputs.raw else (COMPRESSED, RAW)
    others = [topic for topic in published(node, ours) if topic not in mine]
    if others:
        return [f'images that are published: {", ".join(others)}']
    others = published(node, theirs)
    transport = 'compressed' if inputs.raw else 'raw'
    return (
        [f'published with ros.image_transport {transport}: {", ".join(others)}'] if others else []
    )


def _why_silent(inputs: Inputs, node: Any, stream: Stream, what: str) -> str:
    publishers = node.count_publishers(stream.topic)
    if stream.topic in inputs.incompatible_qos:
        policy = inputs.incompatible_qos[stream.topic]
        return f'no {what} on {stream.topic}: incompatible QoS policy {policy}'
    if publishers == 0:
        return f'no {what} on {stream.topic}: nobody publishes it'
    return f'no {what} on {stream.topic}: {publishers} publisher(s), but no message yet'


def clock_problem(node: Any) -> str:
    """That simulated time is waited for and does not run; empty where it does, or is not used."""
    if not node.get_parameter('use_sim_time').value or node.get_clock().now().nanoseconds > 0:
        return ''
    who = 'nobody publishes it' if node.count_publishers('/clock') == 0 else 'no message yet'
    return f'use_sim_time is set, but /clock does not run: {who}'


class Watch:
    """What comes, but not as it should: one sentence for each kind of trouble.

    Args:
        settings: of the node.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def warnings(self, inputs: Inputs, health: Health, now_s: float) -> dict[str, str]:
        """Sentences by kind.

        Args:
            inputs, health: of the node.
            now_s: time.monotonic().
        """
        since_s = now_s - _LOOK_S
        found = {
            'clock': self._clock(inputs, since_s),
            'jump': self._jump(inputs, since_s),
            'pairs': self._pairs(inputs, since_s),
            'offset': self._offset(inputs, since_s),
            'speed': self._speed(inputs, health, since_s),
            'gpu': _gpu(),
        }
        return {kind: sentence for kind, sentence in found.items() if sentence}

    def _clock(self, inputs: Inputs, since_s: float) -> str:
        """Stamps that are not of now: whoever looks poses up in TF by them finds none."""
        for stream in inputs.images:
            recent = _recent(stream, since_s)
            if len(recent) < _FEWEST:
                continue
            age_s = median((a.clock_ns - a.stamp_ns) * 1e-9 for a in recent)
            if _STALE_S < age_s < RECORDING_S:
                return (
                    f'stamps on {stream.topic} are {age_s:.1f} s old when they arrive: the clocks '
                    'differ, or images are under way so long'
                )
            if _AHEAD_S < -age_s < RECORDING_S:
                return f'stamps on {stream.topic} are {-age_s:.1f} s ahead of this clock'
        return ''

    def _jump(self, inputs: Inputs, since_s: float) -> str:
        for stream in inputs.images:
            recent = _recent(stream, since_s)
            for before, after in itertools.pairwise(recent):
                stamps_s = (after.stamp_ns - before.stamp_ns) * 1e-9
                jump_s = stamps_s - (after.received_s - before.received_s)
                if jump_s > _JUMP_S or stamps_s < -_JUMP_S:
                    return f'stamps on {stream.topic} jumped by {jump_s:+.1f} s'
        return ''

    def _pairs(self, inputs: Inputs, since_s: float) -> str:
        """Images that find no partner."""
        if len(inputs.images) < 2:
            return ''
        counts = [len(_recent(stream, since_s)) for stream in inputs.images]
        sets = sum(received_s > since_s for received_s, _ in inputs.complete)
        if max(counts) < _FEWEST or sets > (1.0 - _MOST_LONELY) * max(counts):
            return ''
        came = ', '.join(
            f'{n} on {stream.topic}' for n, stream in zip(counts, inputs.images, strict=True)
        )
        return (
            f'only {sets} sets of images in {_LOOK_S:g} s ({came}): stamps differ by more than '
            f'ros.sync_slop_s = {self._settings.ros.sync_slop_s:g} s, or images are lost'
        )

    def _offset(self, inputs: Inputs, since_s: float) -> str:
        """Images of one set that are always apart were not taken together."""
        recent = [stamps for received_s, stamps in inputs.complete if received_s > since_s]
        if len(inputs.images) < 2 or len(recent) < _FEWEST:
            return ''
        taken = inputs.images[: len(inputs.images) - inputs.masks]
        for number, stream in enumerate(taken[1:], 1):
            apart_s = median((stamps[number] - stamps[0]) * 1e-9 for stamps in recent)
            if abs(apart_s) > _OFFSET_S:
                when = 'later' if apart_s > 0 else 'earlier'
                return (
                    f'{stream.topic} is {abs(apart_s) * 1e3:.1f} ms {when} than '
                    f'{inputs.images[0].topic}: not triggered together, depth is wrong in motion'
                )
        return ''

    def _speed(self, inputs: Inputs, health: Health, since_s: float) -> str:
        """More frames come than can be worked on; which stage takes the time."""
        if self._settings.ros.lossless:
            return ''
        if not inputs.complete or inputs.complete[0][0] > since_s:
            return ''  # not for so long yet, and the first frames take longer
        came = sum(received_s > since_s for received_s, _ in inputs.complete)
        done = health.done_since(since_s)
        if done < _FEWEST or done > (1.0 - _MOST_DROPPED) * came:
            return ''
        stages = health.slowest_stages()
        where = f'; {stages} a frame' if stages else ''
        return (
            f'too slow: {came / _LOOK_S:.1f} frames/s come, {done / _LOOK_S:.1f} are processed'
            f'{where} (detector.max_keypoints, detector.working_pixels, runtime.threads)'
        )


def _recent(stream: Stream, since_s: float) -> list[Arrival]:
    return [arrival for arrival in stream.arrivals if arrival.received_s > since_s]


def _gpu() -> str:
    """That the GPU's memory is nearly full, whoever filled it."""
    import torch

    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return ''
    free, total = torch.cuda.mem_get_info()
    if free > _GPU_SHARE * total:
        return ''
    return f'GPU memory: {free >> 20} of {total >> 20} MiB are free'
