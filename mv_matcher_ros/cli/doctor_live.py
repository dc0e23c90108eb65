# SPDX-License-Identifier: Apache-2.0
"""`doctor --live`: what the running system offers the odometry, and what the nodes complain of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mv_matcher_ros.cli.doctor import Finding

if TYPE_CHECKING:
    from mv_matcher_ros.ros.live_look import Heard, LiveLook

_LEVELS = ('ok', 'warning', 'broken', 'broken')
_STALE_S, _AHEAD_S = 0.5, 0.1
_LOST = (
    'messages are lost or QoS does not fit: give the driver the Fast DDS profile '
    '(docs/ros.md), or set ros.image_transport to compressed'
)


def examine_live(seconds: float) -> list[Finding]:
    """Findings after listening for some seconds.

    Raises:
        MissingDependencyError: no rclpy.
    """
    import importlib.util

    from mv_matcher_ros.errors import MissingDependencyError

    if importlib.util.find_spec('rclpy') is None:
        raise MissingDependencyError('rclpy', 'ros', 'doctor --live')
    from mv_matcher_ros.ros.live_look import look

    return list(findings_of(look(seconds)))


def findings_of(seen: LiveLook) -> Iterator[Finding]:
    """One row for each thing that was looked at."""
    yield Finding('middleware', 'ok', seen.middleware)
    if not seen.nodes:
        yield Finding(
            'nodes', 'missing', '', 'nothing runs here, or on another ROS_DOMAIN_ID or network'
        )
    else:
        yield Finding('nodes', 'ok', ', '.join(seen.nodes))
    if seen.clock is not None:
        yield Finding('/clock', 'ok', 'runs: nodes need use_sim_time:=true')
    if not seen.images:
        yield Finding('images', 'missing', '', 'nobody publishes images: is the driver running?')
    yield from (_topic(heard, seen) for heard in seen.images)
    if seen.images and not seen.infos:
        yield Finding(
            'camera_info', 'missing', '', 'calibrate the camera; its driver publishes it'
        )
    yield from (_topic(heard, seen) for heard in seen.infos)
    if not seen.said:
        yield Finding('our nodes', 'missing', '', 'no node of mv_matcher_ros says anything')
    for name, (level, message) in sorted(seen.said.items()):
        yield Finding(name, _LEVELS[min(level, 3)], message)


def _topic(heard: Heard, seen: LiveLook) -> Finding:
    if not heard.times_s:
        return Finding(heard.topic, 'broken', f'{heard.publishers}, nothing comes', _LOST)
    said = [f'{heard.rate_hz:.1f} Hz', heard.words, heard.publishers]
    if heard.age_s is not None:
        said.append(f'stamps {heard.age_s * 1e3:.0f} ms old')
    if heard.frame:
        parent = seen.frames.get(heard.frame)
        said.append(
            f'frame {heard.frame}' + (f' on {parent}' if parent else ', not in /tf_static')
        )
    else:
        said.append('no frame_id')
    detail = ', '.join(said)
    if heard.fault:
        return Finding(heard.topic, 'broken', detail, heard.fault)
    age_s = heard.age_s or 0.0
    if age_s > _STALE_S or age_s < -_AHEAD_S:
        advice = 'the clocks of the machines differ (chrony), or images are under way so long'
        return Finding(heard.topic, 'warning', detail, advice)
    return Finding(heard.topic, 'ok', detail)
