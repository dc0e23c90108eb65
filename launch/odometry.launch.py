# SPDX-License-Identifier: Apache-2.0
"""Visual odometry of a mono, stereo or RGB-D camera.

ros2 launch mv_matcher_ros odometry.launch.py sensor:=stereo \
    image:=/left/image_rect right_image:=/right/image_rect rviz:=true

What a launch file defines no other can import, so the other modes include this one, with other
defaults: here is all that starts a node.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

PACKAGE = 'mv_matcher_ros'
CONFIG = Path(get_package_share_directory(PACKAGE)) / 'config'

# name, default, description. Empty: as in the parameter file; for a topic, the node's own name.
ARGUMENTS = (
    ('namespace', '', 'Namespace of the nodes and of all relative topics.'),
    ('params_file', str(CONFIG / 'odometry.yaml'), 'YAML of parameter overrides, for all nodes.'),
    ('sensor', '', 'mono, stereo or rgbd.'),
    ('image', '', 'Image topic; stereo: of the left camera.'),
    ('camera_info', '', 'CameraInfo of it; empty: camera_info beside the image.'),
    ('right_image', '', 'Stereo: image topic of the right camera.'),
    ('right_camera_info', '', 'Stereo: CameraInfo of it; empty: camera_info beside the image.'),
    ('depth', '', 'RGB-D: depth image topic, registered to the image.'),
    ('remap', '', 'Other topics, e.g. of a second pair: "left_2/image:=/rear/left/image …".'),
    ('image_transport', '', 'raw or compressed.'),
    ('odom_frame', '', 'Frame the poses are in.'),
    ('body_frame', '', 'Frame whose pose is published, with extrinsics_from_tf:=true.'),
    ('map_frame', '', 'Frame of the map.'),
    ('frame_prefix', '', 'Before the names of these three frames, e.g. robot1/ for robot1/odom.'),
    (
        'tf_in_namespace',
        'false',
        'true: tf and tf_static in the namespace instead of /tf and /tf_static.',
    ),
    (
        'extrinsics_from_tf',
        '',
        'true: look body <- camera up in TF; false: the camera is the body.',
    ),
    ('rectified', '', 'auto (by the name of the topic), always or never.'),
    ('calibration_file', '', 'Calibration instead of camera_info; docs/calibration.md.'),
    ('guess_frame', '', 'Frame in which wheel odometry says on TF where the body is.'),
    ('lossless', '', 'true: answer every frame (replay), false: only the newest one (live).'),
    ('mapping', 'false', 'true: a mapping node, too.'),
    ('map_folder', '', 'Folder of the map: read at the start if it is there, and saved.'),
    ('grow', '', 'true: the map grows; false: it stays as it is, and the body is found on it.'),
    ('map_lag', '', 'Newer keyframes before one goes to the map; 1: at once.'),
    ('one_process', 'false', 'true: odometry and mapping share a process: less memory, slower.'),
    ('autostart', '', 'false: a lifecycle manager configures and activates the nodes.'),
    ('use_sim_time', '', 'true: take the time from /clock.'),
    ('rviz', 'false', 'Open RViz.'),
    (
        'rviz_config',
        '',
        'Its configuration; empty: odometry.rviz or mapping.rviz of this package.',
    ),
    ('log_level', 'info', 'debug, info, warn, error.'),
)
# Launch arguments that are parameters of the nodes, by their names there.
PARAMETERS = {
    'sensor': 'sensor',
    'image_transport': 'ros.image_transport',
    'odom_frame': 'ros.frames.odom',
    'body_frame': 'ros.frames.body',
    'map_frame': 'ros.frames.map',
    'frame_prefix': 'ros.frames.prefix',
    'extrinsics_from_tf': 'ros.extrinsics_from_tf',
    'rectified': 'ros.rectified',
    'calibration_file': 'ros.calibration_file',
    'guess_frame': 'ros.guess_frame',
    'lossless': 'ros.lossless',
    'map_folder': 'mapping.folder',
    'grow': 'mapping.grow',
    'map_lag': 'keyframes.map_lag',
    'autostart': 'ros.autostart',
}
FLAGS = (
    'tf_in_namespace',
    'extrinsics_from_tf',
    'lossless',
    'mapping',
    'grow',
    'one_process',
    'autostart',
    'use_sim_time',
    'rviz',
)
NUMBERS = ('map_lag',)
# A map of an hour is not written in the five seconds that launch gives by itself.
SAVING_S = '60'


def flag(name: str, text: str) -> bool:
    """True or false of a launch argument."""
    if text.lower() not in ('true', 'false', '1', '0'):
        raise RuntimeError(f'{name}:={text}: must be true or false')
    return text.lower() in ('true', '1')


def inputs(given: dict[str, str]) -> list[tuple[str, str]]:
    """Remappings of the odometry node's topics, of those that were given."""

    def info(name: str, image: str) -> str:
        # Where drivers put it (image_transport says so): camera_info in the image's namespace.
        beside = f'{image.rpartition("/")[0]}/camera_info' if '/' in image else 'camera_info'
        return given[name] or (beside if image else '')

    left, right = given['image'], given['right_image']
    topics = {
        'image': left,
        'camera_info': info('camera_info', left),
        'left/image': left,
        'left/camera_info': info('camera_info', left),
        'right/image': right,
        'right/camera_info': info('right_camera_info', right),
        'depth': given['depth'],
    }
    others = [tuple(rule.split(':=', 1)) for rule in given['remap'].split()]
    if any(len(rule) != 2 for rule in others):
        raise RuntimeError(f'remap:="{given["remap"]}": write FROM:=TO FROM:=TO …')
    return [*((name, topic) for name, topic in topics.items() if topic), *others]


def parameters(given: dict[str, str]) -> list[str | dict[str, str | bool | int]]:
    """The parameter file, and what was given besides."""
    # An argument that was not given must not override the parameter file.
    overrides: dict[str, str | bool | int] = {
        parameter: value(name, given[name])
        for name, parameter in PARAMETERS.items()
        if given[name]
    }
    if flag('mapping', given['mapping']):
        overrides['ros.publish_keyframes'] = True
    return [given['params_file'], {**overrides, **clock(given)}]


def value(name: str, text: str) -> str | bool | int:
    """What a launch argument says, with the type of its parameter."""
    if name in FLAGS:
        return flag(name, text)
    if name not in NUMBERS:
        return text
    if not text.isdecimal():
        raise RuntimeError(f'{name}:={text}: must be a whole number')
    return int(text)


def clock(given: dict[str, str]) -> dict[str, bool]:
    """The parameter use_sim_time, where it was given."""
    name = 'use_sim_time'
    return {name: flag(name, given[name])} if given[name] else {}


def fixed_frame(given: dict[str, str], mapping: bool) -> list[str]:
    """Options of RViz where its configuration has another name for the frame."""
    default = 'map' if mapping else 'odom'
    frame = given['frame_prefix'] + (given[f'{default}_frame'] or default)
    return [] if frame == default else ['-f', frame]


def nodes(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The odometry node; the mapping node and RViz if they are wanted."""
    given = {name: LaunchConfiguration(name).perform(context) for name, _, _ in ARGUMENTS}
    mapping, rviz = flag('mapping', given['mapping']), flag('rviz', given['rviz'])
    own_tf = flag('tf_in_namespace', given['tf_in_namespace'])
    tf = [('/tf', 'tf'), ('/tf_static', 'tf_static')] if own_tf else []
    both = {
        'package': PACKAGE,
        'namespace': given['namespace'],
        'parameters': parameters(given),
        'arguments': ['--ros-args', '--log-level', given['log_level']],
        'output': 'screen',
    }
    topics = [*inputs(given), *tf]
    saving = {'sigterm_timeout': SAVING_S}
    if mapping and flag('one_process', given['one_process']):
        started = [Node(executable='slam_node', remappings=topics, **saving, **both)]
    else:
        started = [Node(executable='odometry_node', name='odometry', remappings=topics, **both)]
        if mapping:
            keyframes = ('keyframes', 'odometry/keyframes')
            maps = {'remappings': [keyframes, *tf], **saving, **both}
            started.append(Node(executable='mapping_node', name='mapping', **maps))
    if rviz:
        own = CONFIG / ('mapping.rviz' if mapping else 'odometry.rviz')
        started.append(
            Node(
                package='rviz2',
                executable='rviz2',
                namespace=given['namespace'],
                arguments=['-d', given['rviz_config'] or str(own), *fixed_frame(given, mapping)],
                parameters=[clock(given)] if clock(given) else [],
                remappings=tf,
                output='log',
            )
        )
    return started


def generate_launch_description() -> LaunchDescription:
    """What `ros2 launch` runs."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, description in ARGUMENTS
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=nodes)])
