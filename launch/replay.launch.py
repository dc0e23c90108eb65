# SPDX-License-Identifier: Apache-2.0
"""Plays a recording to the odometry, and ends when it has been played.

ros2 launch mv_matcher_ros replay.launch.py bag:=drive.mcap sensor:=stereo rviz:=true
ros2 launch mv_matcher_ros replay.launch.py bag:=kitti/07 sensor:=mono mapping:=true lossless:=true

Topics given here are those of the bag; from the player to the node they have the node's own names.
All other arguments are those of odometry.launch.py.
"""

from pathlib import Path
from typing import Any

from ament_index_python.packages import get_package_share_directory
from launch.actions import (
    DeclareLaunchArgument,
    IncludeLaunchDescription,
    OpaqueFunction,
    Shutdown,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

PACKAGE = 'mv_matcher_ros'
SHARE = Path(get_package_share_directory(PACKAGE))

# name, default, description. Without a default: must be given.
ARGUMENTS = (
    ('bag', None, 'Recording: bag, folder of a data set, folder of images or video.'),
    ('sensor', None, 'mono, stereo or rgbd: what to make of it.'),
    ('lossless', 'false', 'true: every frame, as fast as the node answers; false: in real time.'),
    ('rate', '1.0', 'Speed, 1 is real time; not used with lossless:=true.'),
    ('start', '0', 'First frame.'),
    ('end', '', 'Frame to stop before.'),
    ('calibration', '', 'Calibration file, where the recording has none or a wrong one.'),
    ('image', '', 'Topic of a bag: image; stereo: of the left camera.'),
    ('camera_info', '', 'Topic of a bag: CameraInfo of it.'),
    ('right_image', '', 'Topic of a bag: image of the right camera.'),
    ('right_camera_info', '', 'Topic of a bag: CameraInfo of it.'),
    ('depth', '', 'Topic of a bag: depth image, registered to the image.'),
    # map -> odom has the time of now, and now is when the images were taken.
    ('use_sim_time', 'true', 'Play /clock, and take the time from there.'),
)
# Launch arguments that are options of the player, by their names there.
OPTIONS = {
    'sensor': '--sensor',
    'rate': '--rate',
    'start': '--start',
    'end': '--end',
    'calibration': '--calibration',
    'body_frame': '--body-frame',
    'frame_prefix': '--frame-prefix',
}
TOPICS = {
    'image': 'image',
    'camera_info': 'camera_info',
    'right_image': 'right',
    'right_camera_info': 'right_camera_info',
    'depth': 'depth',
}

# Exit codes of a player that has played, or was ended by SIGINT or SIGTERM.
PLAYED = (0, 130, -2, -15)


def ended(event: Any, context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """What follows the end of the player; a failed one fails the launch, for scripts."""
    if event.returncode not in PLAYED:
        raise RuntimeError(f'the player ended with code {event.returncode}, see above')
    return [Shutdown(reason='the player has ended')]


def player(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The player; with it everything ends."""

    def given(name: str) -> str:
        # Those of odometry.launch.py are not declared before it is included.
        return LaunchConfiguration(name, default='').perform(context)

    def wanted(name: str) -> bool:
        return given(name).lower() in ('true', '1')

    words = [given('bag')]
    for name, option in OPTIONS.items():
        words += [option, given(name)] if given(name) else []
    for name, key in TOPICS.items():
        words += ['--topic', f'{key}={given(name)}'] if given(name) else []
    words += ['--lossless'] if wanted('lossless') else []
    words += ['--clock'] if wanted('use_sim_time') else []
    words += ['--compressed', 'jpeg'] if given('image_transport') == 'compressed' else []
    return [
        Node(
            package=PACKAGE,
            executable='bag_player',
            name='bag_player',
            namespace=given('namespace'),
            arguments=words,
            remappings=[('/tf_static', 'tf_static')] if wanted('tf_in_namespace') else [],
            output='screen',
            on_exit=ended,
        )
    ]


def generate_launch_description() -> LaunchDescription:
    """What `ros2 launch` runs."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, description in ARGUMENTS
    ]
    odometry = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(SHARE / 'launch' / 'odometry.launch.py')),
        launch_arguments=[(topic, '') for topic in TOPICS],
    )
    # The player first: behind the other the topics are those of the node.
    return LaunchDescription([*declared, OpaqueFunction(function=player), odometry])
