# SPDX-License-Identifier: Apache-2.0
"""Visual odometry and a map of what it sees; arguments of odometry.launch.py are understood, too.

ros2 launch mv_matcher_ros mapping.launch.py sensor:=stereo map_folder:=~/maps/home \
    image:=/left/image_rect camera_info:=/left/camera_info \
    right_image:=/right/image_rect right_camera_info:=/right/camera_info rviz:=true
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

PACKAGE = 'mv_matcher_ros'
SHARE = Path(get_package_share_directory(PACKAGE))

# name, default, description. Empty: as in the parameter file.
ARGUMENTS = (
    ('params_file', str(SHARE / 'config' / 'mapping.yaml'), 'YAML of overrides, for both nodes.'),
    ('map_folder', '', 'Folder of the map: read at the start if it is there, and saved.'),
    ('map_frame', '', 'Frame of the map.'),
    ('namespace', '', 'Namespace of the nodes and of all relative topics.'),
    ('autostart', '', 'false: a lifecycle manager configures and activates the nodes.'),
    ('use_sim_time', 'false', 'Take the time from /clock.'),
    ('rviz_config', str(SHARE / 'config' / 'mapping.rviz'), 'Configuration of RViz.'),
    ('log_level', 'info', 'debug, info, warn, error.'),
)
# Launch arguments that are parameters of the mapping node, by their names there.
PARAMETERS = {'map_folder': 'mapping.folder', 'map_frame': 'ros.frames.map'}


def nodes(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The mapping node."""
    given = {name: LaunchConfiguration(name).perform(context) for name, _, _ in ARGUMENTS}
    # An argument that was not given must not override the parameter file.
    overrides: dict[str, str | bool] = {
        parameter: given[name] for name, parameter in PARAMETERS.items() if given[name]
    }
    if given['autostart']:
        overrides['ros.autostart'] = given['autostart'].lower() in ('true', '1')
    use_sim_time = given['use_sim_time'].lower() in ('true', '1')
    return [
        Node(
            package=PACKAGE,
            executable='mapping_node',
            name='mapping',
            namespace=given['namespace'],
            parameters=[given['params_file'], {**overrides, 'use_sim_time': use_sim_time}],
            remappings=[('keyframes', 'odometry/keyframes')],
            arguments=['--ros-args', '--log-level', given['log_level']],
            output='screen',
        )
    ]


def generate_launch_description() -> LaunchDescription:
    """What `ros2 launch` runs."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, description in ARGUMENTS
    ]
    # It sees the arguments declared here as its own, with these defaults.
    odometry = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(SHARE / 'launch' / 'odometry.launch.py'))
    )
    return LaunchDescription([*declared, odometry, OpaqueFunction(function=nodes)])
