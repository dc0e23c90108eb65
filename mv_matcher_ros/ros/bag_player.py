# SPDX-License-Identifier: Apache-2.0
"""Plays a recording to topics: in real time, or lossless, as fast as the node answers.

`python -m mv_matcher_ros.ros.bag_player SOURCE [--lossless] [--rate 1.0]`; needs no `ros2 bag`.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mv_matcher_ros.errors import MissingDependencyError, MvMatcherError, SourceError
from mv_matcher_ros.ros.dds_profile import apply_profile
from mv_matcher_ros.ros.playback import BagPlayer, Playback
from mv_matcher_ros.ros.stopping import init_without_signals

if TYPE_CHECKING:
    from mv_matcher_ros.files.recording import Recording


def _parser() -> argparse.ArgumentParser:
    default = Playback()
    parser = argparse.ArgumentParser('bag_player', description=__doc__.split('\n\n')[0])
    add = parser.add_argument
    add('source', help='rosbag, sequence folder, image folder or video')
    add('--sensor', choices=('mono', 'stereo', 'rgbd'), help='default: what the source has')
    add('--pairs', type=int, default=1, help='stereo pairs of the source')
    add('--rate', type=float, default=default.rate, help='speed, 1 is real time')
    add('--lossless', action='store_true', help='wait for the answer to every frame')
    add('--ahead', type=int, default=default.ahead, help='frames under way (lossless)')
    add('--clock', action='store_true', help='publish /clock')
    add('--compressed', choices=('jpeg', 'png'), default='', help='play <topic>/compressed')
    add(
        '--body-frame',
        help='parent of the cameras on /tf_static; bags: a frame of their own /tf_static, and '
        'without it no mounts are played; folders that know their body: its name, default '
        f'{default.body_frame}',
    )
    add('--frame-prefix', default=default.frame_prefix, help='before the names of all frames')
    add(
        '--topic',
        action='append',
        default=[],
        type=_named_topic,
        metavar='KEY=TOPIC',
        help='bags: image, right, depth, camera_info, … by name (repeatable)',
    )
    add(
        '--calibration',
        action='append',
        help="calibration file to use instead of the recording's; one per camera if split",
    )
    add('--state-topic', default=default.state_topic, help='where the node answers')
    add('--wait-for', action='append', default=[], help='recorder that must be ready (repeatable)')
    add('--timeout', type=float, default=default.timeout_s, help='seconds to wait for the node')
    add('--start', type=int, default=0, help='first frame')
    add('--end', type=int, help='frame to stop before')
    add('--stride', type=int, default=1, help='play every n-th frame')
    return parser


def _named_topic(words: str) -> tuple[str, str]:
    """image=/cam0/image_raw → ('image', '/cam0/image_raw')."""
    key, _, name = words.partition('=')
    if not key or not name:
        raise argparse.ArgumentTypeError(f'{words}: write KEY=TOPIC, e.g. image=/cam0/image_raw')
    return key, name


def _opened(options: argparse.Namespace) -> Recording:
    """The recording; a bag's cameras sit where its /tf_static says."""
    from mv_matcher_ros.files.open import open_source, recognise

    body_frame = options.body_frame if recognise(options.source) == 'bag' else None
    source = open_source(
        options.source,
        options.sensor,
        options.start,
        options.end,
        options.stride,
        topics=dict(options.topic),
        calibration=options.calibration,
        body_frame=body_frame,
        pairs=options.pairs,
    )
    if options.body_frame and source.rig.body_axes != 'rep103':
        raise SourceError(
            f'{options.source}: nothing there says how the cameras sit on '
            f'"{options.body_frame}": leave --body-frame out'
        )
    return source


def _checked(options: argparse.Namespace) -> Playback:
    if options.rate <= 0 or options.ahead < 1:
        raise SourceError('--rate must be positive and --ahead at least 1')
    return Playback(
        rate=options.rate,
        lossless=options.lossless,
        ahead=options.ahead,
        clock=options.clock,
        compressed=options.compressed,
        body_frame=options.body_frame or Playback().body_frame,
        frame_prefix=options.frame_prefix,
        state_topic=options.state_topic,
        wait_for=tuple(options.wait_for),
        timeout_s=options.timeout,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the player; prints one JSON line of what was played.

    Returns:
        Exit code: 0, 2 for an error of input or a node that does not answer, 130 after a signal.
    """
    apply_profile()
    try:
        import rclpy
        from rclpy.utilities import remove_ros_args
    except ModuleNotFoundError:
        print(MissingDependencyError('rclpy', 'ros', 'the bag player'), file=sys.stderr)
        return 2
    given = list(sys.argv if arguments is None else ['bag_player', *arguments])
    options = _parser().parse_args(remove_ros_args(given)[1:])
    player: BagPlayer | None = None
    code = 0
    init_without_signals(given)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        playback = _checked(options)
        source = _opened(options)
        player = BagPlayer(rclpy.create_node('bag_player'), source, playback)
        player.play()
    except MvMatcherError as error:
        print(f'bag_player: {error}', file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    finally:
        rclpy.try_shutdown()
    if player is not None:
        print(
            json.dumps(
                {
                    'published': player.published,
                    'late': player.late,
                    'played_s': round(player.played_s, 3),
                    'answers': dict(player.answers),
                    'faults': dict(source.faults),
                }
            )
        )
    return code


if __name__ == '__main__':
    sys.exit(main())
