# SPDX-License-Identifier: Apache-2.0
"""Visual odometry and a map of what it sees; all arguments are those of odometry.launch.py.

ros2 launch mv_matcher_ros mapping.launch.py sensor:=stereo map_folder:=~/maps/home \
    image:=/left/image_rect right_image:=/right/image_rect rviz:=true
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

from launch import LaunchDescription

SHARE = Path(get_package_share_directory('mv_matcher_ros'))

# What is declared first counts: odometry.launch.py has other defaults.
ARGUMENTS = (
    ('params_file', str(SHARE / 'config' / 'mapping.yaml'), 'YAML of overrides, for both nodes.'),
    ('mapping', 'true', 'false: odometry alone.'),
)


def generate_launch_description() -> LaunchDescription:
    """What `ros2 launch` runs."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, description in ARGUMENTS
    ]
    odometry = PythonLaunchDescriptionSource(str(SHARE / 'launch' / 'odometry.launch.py'))
    return LaunchDescription([*declared, IncludeLaunchDescription(odometry)])
