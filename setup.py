# SPDX-License-Identifier: Apache-2.0
"""One package for colcon (ament_python) and for plain pip."""

import os
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

package_name = 'mv_matcher_ros'
ros_wheels = [
    'ros-rclpy[fastrtps]',
    'ros-sensor-msgs',
    'ros-geometry-msgs',
    'ros-std-msgs',
    'ros-nav-msgs',
    'ros-visualization-msgs',
    'ros-std-srvs',
    'ros-diagnostic-msgs',
    'ros-lifecycle-msgs',
]
bags = ['rosbags>=0.11', 'rosbags-image>=0.10']
cli = ['typer>=0.12', 'rich>=13']
report = ['matplotlib>=3.5']
robust = ['poselib>=2.0.5']
# No wheels of embreex for Linux on aarch64: shards are rendered elsewhere and read there.
train = [
    'trimesh>=4.6',
    'pillow>=9',
    'kornia>=0.9; python_version >= "3.11"',
    'embreex>=2.17.7.post5; platform_machine != "aarch64"',
    'tensorboard>=2.14',
]
export = ['onnx>=1.16', 'onnxscript>=0.3']
test = [
    'pytest>=7',
    'hypothesis>=6.100',
    'scipy',
    'evo>=1.28',
    'pot>=0.9',
    'onnxruntime>=1.18',
    *export,
    *train,
    'gtsam>=4.3.0; python_version >= "3.11"',
]

setup(
    name=package_name,
    version='0.1.0',
    description='Learned multi-view visual odometry for ROS 2, and without ROS',
    long_description=Path('README.md').read_text(encoding='utf-8')
    if Path('README.md').exists()
    else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    maintainer='mv_matcher_ros maintainers',
    maintainer_email='maintainers@mv-matcher.example',
    python_requires='>=3.10',
    packages=find_packages(include=[package_name, f'{package_name}.*']),
    package_data={package_name: ['**/*.html', '**/*.css', 'weights/*']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{package_name}']),
        (f'share/{package_name}', ['package.xml']),
        (f'share/{package_name}/launch', sorted(glob('launch/*.launch.py'))),
        (f'share/{package_name}/config', sorted(filter(os.path.isfile, glob('config/*')))),
        (f'share/{package_name}/config/train', sorted(glob('config/train/*.yaml'))),
        # ros2 launch looks for executables here; plain pip ignores setup.cfg and leaves it empty.
        (f'lib/{package_name}', sorted(glob('scripts/*'))),
    ],
    install_requires=[
        'numpy>=1.26',
        'torch>=2.3',
        'pydantic>=2',
        'pyyaml',
        'opencv-python-headless>=4.5',
        'safetensors>=0.4',
    ],
    extras_require={
        'cli': cli,
        'bags': bags,
        'report': report,
        'robust': robust,
        'export': export,
        'train': train,
        'bench': ['kornia>=0.8'],
        'tensorrt': ['torch-tensorrt>=2.8'],
        'mapping': ['gtsam>=4.3.0; python_version >= "3.11"'],
        'ros': ros_wheels,
        'all': cli + bags + report + robust,
        'test': test,
        'lint': ['ruff', 'mypy', 'types-PyYAML'],
    },
    entry_points={
        'console_scripts': [
            'mv-matcher = mv_matcher_ros.cli:main',
            'odometry_node = mv_matcher_ros.ros.main:odometry',
            'mapping_node = mv_matcher_ros.ros.map_main:mapping',
            'slam_node = mv_matcher_ros.ros.slam_main:slam',
            'bag_player = mv_matcher_ros.ros.bag_player:main',
            'trajectory_recorder = mv_matcher_ros.ros.trajectory_recorder:main',
        ]
    },
    zip_safe=False,
)
