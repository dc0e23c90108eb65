# SPDX-License-Identifier: Apache-2.0
"""`mv-matcher doctor`: what this machine has, and what to do about what is missing.

Each package is tried in a process of its own: a cv_bridge compiled against another numpy may take
the interpreter down with it.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from mv_matcher_ros.cli.console import print_json, print_table
from mv_matcher_ros.cli.options import JsonOption

SECONDS_PER_CHECK = 60.0
MESSAGES = (
    'builtin_interfaces.msg', 'std_msgs.msg', 'sensor_msgs.msg', 'geometry_msgs.msg',
    'nav_msgs.msg', 'std_srvs.srv', 'diagnostic_msgs.msg', 'visualization_msgs.msg',
    'rosgraph_msgs.msg', 'rcl_interfaces.msg',
)  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One package: `code` prints what is there in a few words, `advice` is for when it fails."""

    name: str
    module: str
    code: str
    advice: str
    required: bool = False


@dataclass(frozen=True)
class Finding:
    """One row of the table: state is `ok`, `warning`, `missing` or `broken`."""

    name: str
    state: str
    detail: str
    advice: str = ''
    required: bool = False


def _version(module: str, distribution: str | None = None) -> str:
    return (
        f'import {module}, importlib.metadata as m\n'
        f'v = getattr({module}, "__version__", None)\n'
        f'print(str(v or m.version("{distribution or module}")).removeprefix("v"))'
    )


_IMAGES = 'rosbags.image'


def _there(module: str) -> str:
    return f'import {module}\nprint("there")'


def _pip(extra: str) -> str:
    return f'pip install "mv_matcher_ros[{extra}]"'


_NUMPY_TRAP = (
    'compiled against another numpy: pip install "numpy<2" "opencv-python-headless<4.12" in the '
    'virtual environment, or leave it (images are converted without it)'
)
_CV_BRIDGE = """
import numpy as np
from cv_bridge import CvBridge
bridge = CvBridge()
message = bridge.cv2_to_imgmsg(np.zeros((2, 2, 3), np.uint8), 'bgr8')
bridge.imgmsg_to_cv2(message, 'mono8')
print('converts images')
"""
_TORCH = """
import torch
print(torch.__version__, f'{torch.get_num_threads()} threads', sep=', ')
"""
_CUDA = """
import torch
if not torch.cuda.is_available():
    raise SystemExit(3)
p = torch.cuda.get_device_properties(0)
print(f'{p.name}, {p.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}')
"""
_HALF = """
import time, torch
def best(kind):
    layer, image = torch.nn.Conv2d(64, 64, 3).to(kind), torch.rand(1, 64, 120, 160).to(kind)
    times = []
    for _ in range(8):
        begin = time.perf_counter()
        layer(image)
        times.append(time.perf_counter() - begin)
    return min(times)
with torch.inference_mode():
    ratio = best(torch.float32) / best(torch.bfloat16)
print(f'bf16 {ratio:.1f} x as fast as fp32 on this CPU, {torch.backends.cpu.get_cpu_capability()}')
"""
_WEIGHTS = """
from mv_matcher_ros.models.shipped import shipped
from mv_matcher_ros.models.weights import read_weights
found = [(kind, name, path) for kind in ('detector', 'matcher')
         for name, path in shipped(kind).items()]
for kind, _, path in found:
    read_weights(path, kind)
if not found:
    raise SystemExit('no files of weights in the package')
print(', '.join(f'{kind} {name}' for kind, name, _ in found))
"""
_RCLPY = """
import os, rclpy, importlib.metadata as m
try:
    version = m.version('rclpy')
except m.PackageNotFoundError:
    version = ''
from rclpy.utilities import get_rmw_implementation_identifier as rmw
print(version, os.environ.get('ROS_DISTRO', 'from pip'), rmw(), sep=', ')
"""
_MESSAGES = f"""
import importlib
missing = []
for name in {MESSAGES}:
    try:
        importlib.import_module(name)
    except ImportError:
        missing.append(name.split('.')[0])
if missing:
    raise SystemExit('missing: ' + ' '.join(missing))
print({len(MESSAGES)}, 'packages')
"""
_WITH_ROS = 'comes with a ROS distribution (source its setup file); a stand-in is used without it'

CHECKS = (
    Check('numpy', 'numpy', _version('numpy'), 'pip install numpy', True),
    Check('OpenCV', 'cv2', _version('cv2'), 'pip install opencv-python-headless', True),
    Check('torch', 'torch', _TORCH, 'pip install torch', True),
    Check('pydantic', 'pydantic', _version('pydantic'), 'pip install "pydantic>=2"', True),
    Check('safetensors', 'safetensors', _version('safetensors'), 'pip install safetensors', True),
    Check('weights', 'mv_matcher_ros', _WEIGHTS, 'install mv_matcher_ros again'),
    Check('half precision', 'torch', _HALF, 'networks run in fp32 here'),
    Check('CUDA', 'torch', _CUDA, 'not needed; with a GPU install the torch build that fits it'),
    Check('rosbags', 'rosbags', _version('rosbags'), _pip('bags')),
    Check('rosbags-image', _IMAGES, _version(_IMAGES, 'rosbags-image'), _pip('bags')),
    Check('matplotlib', 'matplotlib', _version('matplotlib'), _pip('report')),
    Check('poselib', 'poselib', _version('poselib'),
          f'OpenCV solves relative poses without it, less well: {_pip("robust")}'),
    Check('onnxscript', 'onnxscript', _version('onnxscript'),
          f'only for mv-matcher export: {_pip("export")}'),
    Check('torch_tensorrt', 'torch_tensorrt', _version('torch_tensorrt', 'torch-tensorrt'),
          f'only for runtime.execution=tensorrt: {_pip("tensorrt")}'),
    Check('trimesh', 'trimesh', _version('trimesh'),
          f'only to render .glb worlds (mv-matcher train): {_pip("train")}'),
    Check('embreex', 'embreex', _version('embreex'),
          f'only to render .glb worlds; no wheels for Linux on aarch64: {_pip("train")}'),
    Check('gtsam', 'gtsam', _version('gtsam'), f'{_pip("mapping")} (Python 3.11 or newer)'),
    Check('evo', 'evo', _version('evo'), 'only tests compare with it: pip install evo'),
    Check('rclpy', 'rclpy', _RCLPY, f'source a ROS 2 setup file, or {_pip("ros")}'),
    Check('messages', 'sensor_msgs', _MESSAGES, f'apt install ros-DISTRO-…, or {_pip("ros")}'),
    Check('tf2_msgs', 'tf2_msgs', 'from tf2_msgs.msg import TFMessage\nprint("TFMessage")',
          'apt install ros-DISTRO-tf2-msgs, or interfaces/build_tf2_msgs.sh VENV'),
    Check('cv_bridge', 'cv_bridge', _CV_BRIDGE, _WITH_ROS),
    Check('message_filters', 'message_filters', _there('message_filters'), _WITH_ROS),
    Check('tf2_ros', 'tf2_ros', _there('tf2_ros'), _WITH_ROS),
    Check('tf_transformations', 'tf_transformations', _there('tf_transformations'), _WITH_ROS),
    Check('launch_ros', 'launch_ros', _there('launch_ros'),
          'comes with a ROS distribution; without it start odometry_node directly'),
)  # fmt: skip


def doctor(
    live: Annotated[
        bool, typer.Option('--live', help='Look at the ROS system that runs here instead.')
    ] = False,
    seconds: Annotated[
        float, typer.Option(min=1.0, help='How long to listen, with --live.')
    ] = 5.0,
    json: JsonOption = False,
) -> None:
    """Say what this machine has (with --live: what runs), and what to do about what is missing."""
    if live:
        from mv_matcher_ros.cli.doctor_live import examine_live

        findings = examine_live(seconds)
        title = f'ROS system, listened to for {seconds:g} s'
    else:
        findings = [_python(), *examine(CHECKS), _compiler(), _ros2_command(), _data()]
        title = f'mv-matcher on {platform.machine()}, {os.cpu_count()} cores'
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_table(
            title,
            ('what', 'state', 'detail', 'what to do'),
            [(f.name, f.state, f.detail, f.advice) for f in findings],
        )
    if any(f.required and f.state != 'ok' for f in findings):
        raise typer.Exit(1)


def examine(checks: tuple[Check, ...]) -> list[Finding]:
    """Findings in the order of `checks`; two processes at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(_examine, checks))


def _examine(check: Check) -> Finding:
    if not _importable(check.module):
        return Finding(check.name, 'missing', '', check.advice, check.required)
    try:
        done = subprocess.run(
            [sys.executable, '-c', check.code],
            capture_output=True,
            text=True,
            timeout=SECONDS_PER_CHECK,
        )
    except subprocess.TimeoutExpired:
        return Finding(check.name, 'broken', 'does not answer', check.advice, check.required)
    if done.returncode == 0:
        return Finding(check.name, 'ok', done.stdout.strip(), '', check.required)
    if done.returncode == 3:  # the check itself says: nothing there
        return Finding(check.name, 'missing', '', check.advice, check.required)
    lines = done.stderr.strip().splitlines()
    detail = lines[-1][:100] if lines else f'ended with {done.returncode}'
    # Not an ImportError: the wrong numpy shows as AttributeError, or as a crash.
    trap = check.name == 'cv_bridge' and not detail.startswith('ModuleNotFoundError')
    return Finding(
        check.name, 'broken', detail, _NUMPY_TRAP if trap else check.advice, check.required
    )


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _python() -> Finding:
    fits = sys.version_info >= (3, 10)
    advice = '' if fits else 'Python 3.10 or newer is needed'
    return Finding('Python', 'ok' if fits else 'broken', platform.python_version(), advice, True)


def _compiler() -> Finding:
    path = shutil.which(os.environ.get('CXX', 'g++'))
    if path:
        return Finding('C++ compiler', 'ok', path)
    advice = 'only for runtime.execution=compiled: apt install g++'
    return Finding('C++ compiler', 'missing', '', advice)


def _ros2_command() -> Finding:
    path = shutil.which('ros2')
    if path:
        return Finding('ros2 command', 'ok', path)
    return Finding('ros2 command', 'missing', '', 'source a ROS 2 setup file to use ros2 launch')


def _data() -> Finding:
    root = os.environ.get('MV_MATCHER_DATA', '')
    if root and os.path.isdir(root):
        return Finding('MV_MATCHER_DATA', 'ok', root)
    advice = 'set it to a folder of recordings to name sources relative to it'
    state, detail = ('broken', f'{root}: no such folder') if root else ('missing', '')
    return Finding('MV_MATCHER_DATA', state, detail, advice)
