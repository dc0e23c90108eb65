# SPDX-License-Identifier: Apache-2.0
"""Visual odometry, found on a map that does not change; arguments as for mapping.launch.py.

ros2 launch mv_matcher_ros localization.launch.py sensor:=stereo map_folder:=~/maps/home \
    image:=/left/image_rect right_image:=/right/image_rect rviz:=true
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

from launch import LaunchDescription

SHARE = Path(get_package_share_directory('mv_matcher_ros'))

# What is declared first counts: mapping.launch.py has other defaults. A parameter file of one's
# own need not know that this is no mapping.
ARGUMENTS = (
    (
        'params_file',
        str(SHARE / 'config' / 'localization.yaml'),
        'YAML of overrides, for both nodes.',
    ),
    ('grow', 'false', 'true: the map grows, as by mapping.launch.py.'),
    ('map_lag', '1', 'Newer keyframes before one is looked for on the map.'),
)


def generate_launch_description() -> LaunchDescription:
    """What `ros2 launch` runs."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, description in ARGUMENTS
    ]
    mapping = PythonLaunchDescriptionSource(str(SHARE / 'launch' / 'mapping.launch.py'))
    return LaunchDescription([*declared, IncludeLaunchDescription(mapping)])
