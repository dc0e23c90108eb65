# SPDX-License-Identifier: Apache-2.0
"""Visual odometry of a mono, stereo or RGB-D camera.

ros2 launch mv_matcher_ros odometry.launch.py sensor:=stereo \
    image:=/left/image_rect camera_info:=/left/camera_info \
    right_image:=/right/image_rect right_camera_info:=/right/camera_info rviz:=true
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

PACKAGE = 'mv_matcher_ros'
CONFIG = Path(get_package_share_directory(PACKAGE)) / 'config'

# name, default, description. Empty: as in the parameter file.
ARGUMENTS = (
    ('namespace', '', 'Namespace of the node and of all relative topics.'),
    ('params_file', str(CONFIG / 'odometry.yaml'), 'YAML of parameter overrides.'),
    ('sensor', '', 'mono, stereo or rgbd.'),
    ('image', 'image', 'Image topic; stereo: of the left camera.'),
    ('camera_info', 'camera_info', 'CameraInfo of it.'),
    ('right_image', 'right/image', 'Stereo: image topic of the right camera.'),
    ('right_camera_info', 'right/camera_info', 'Stereo: CameraInfo of it.'),
    ('depth', 'depth', 'RGB-D: depth image topic, registered to the image.'),
    ('image_transport', '', 'raw or compressed.'),
    ('odom_frame', '', 'Frame the poses are in.'),
    ('body_frame', '', 'Frame whose pose is published, with extrinsics_from_tf:=true.'),
    (
        'extrinsics_from_tf',
        '',
        'true: look body <- camera up in TF; false: the camera is the body.',
    ),
    ('lossless', '', 'true: answer every frame (replay), false: only the newest one (live).'),
    ('autostart', '', 'false: a lifecycle manager configures and activates the node.'),
    ('use_sim_time', 'false', 'Take the time from /clock.'),
    ('rviz', 'false', 'Open RViz.'),
    ('rviz_config', str(CONFIG / 'odometry.rviz'), 'Its configuration.'),
    ('log_level', 'info', 'debug, info, warn, error.'),
)
# Launch arguments that are parameters of the node, by their names there.
PARAMETERS = {
    'sensor': 'sensor',
    'image_transport': 'ros.image_transport',
    'odom_frame': 'ros.frames.odom',
    'body_frame': 'ros.frames.body',
    'extrinsics_from_tf': 'ros.extrinsics_from_tf',
    'lossless': 'ros.lossless',
    'autostart': 'ros.autostart',
}
FLAGS = ('extrinsics_from_tf', 'lossless', 'autostart', 'use_sim_time', 'rviz')


def flag(name: str, text: str) -> bool:
    """True or false of a launch argument."""
    if text.lower() not in ('true', 'false', '1', '0'):
        raise RuntimeError(f'{name}:={text}: must be true or false')
    return text.lower() in ('true', '1')


def nodes(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The odometry node, and RViz if it is wanted."""
    given = {name: LaunchConfiguration(name).perform(context) for name, _, _ in ARGUMENTS}
    use_sim_time = flag('use_sim_time', given['use_sim_time'])
    # An argument that was not given must not override the parameter file.
    overrides = {
        parameter: flag(name, given[name]) if name in FLAGS else given[name]
        for name, parameter in PARAMETERS.items()
        if given[name]
    }
    odometry = Node(
        package=PACKAGE,
        executable='odometry_node',
        name='odometry',
        namespace=given['namespace'],
        parameters=[given['params_file'], {**overrides, 'use_sim_time': use_sim_time}],
        remappings=[
            ('image', given['image']),
            ('camera_info', given['camera_info']),
            ('left/image', given['image']),
            ('left/camera_info', given['camera_info']),
            ('right/image', given['right_image']),
            ('right/camera_info', given['right_camera_info']),
            ('depth', given['depth']),
        ],
        arguments=['--ros-args', '--log-level', given['log_level']],
        output='screen',
    )
    if not flag('rviz', given['rviz']):
        return [odometry]
    rviz = Node(
        package='rviz2',
        executable='rviz2',
        namespace=given['namespace'],
        arguments=['-d', given['rviz_config']],
        parameters=[{'use_sim_time': use_sim_time}],
        output='log',
    )
    return [odometry, rviz]


def generate_launch_description() -> LaunchDescription:
    """What `ros2 launch` runs."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, description in ARGUMENTS
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=nodes)])
