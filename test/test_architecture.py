# SPDX-License-Identifier: Apache-2.0
"""The dependency rule of docs/architecture.md, checked by reading every import of the package."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAME = 'mv_matcher_ros'
PACKAGE = ROOT / NAME

EVERYONE_MAY_USE = {'datatypes', 'config', 'errors', 'npy'}
MAY_USE: dict[str, set[str]] = {
    'errors': set(),
    'config': set(),
    'datatypes': set(),
    'npy': set(),
    'geometry': set(),
    'models': {'geometry'},
    'odometry': {'geometry', 'models'},
    'mapping': {'geometry', 'models', 'odometry'},
    'files': set(),
    'worlds': {'geometry'},
    'evaluation': {'geometry', 'files'},
    'runner': {'files'},
    'training': {'geometry', 'models', 'odometry', 'files', 'worlds', 'evaluation'},
    'cli': {
        'geometry', 'models', 'odometry', 'mapping', 'files', 'worlds', 'evaluation', 'runner',
        'training', 'ros',
    },
    'ros': {'geometry', 'models', 'odometry', 'mapping', 'files', 'worlds', 'runner'},
}  # fmt: skip

MESSAGES = {
    'builtin_interfaces', 'diagnostic_msgs', 'geometry_msgs', 'lifecycle_msgs', 'nav_msgs',
    'rcl_interfaces', 'rosgraph_msgs', 'sensor_msgs', 'std_msgs', 'std_srvs', 'tf2_msgs',
    'visualization_msgs',
}  # fmt: skip
ROS = MESSAGES | {
    'ament_index_python', 'cv_bridge', 'launch', 'launch_ros', 'message_filters', 'rclpy',
    'rosbag2_py', 'tf2_ros', 'tf_transformations',
}  # fmt: skip
# Third-party packages with a place of their own, as path prefixes below the package.
ONLY_IN: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(ROS, ('ros/',)),
    'rosbags': ('files/bag',),
    # The benchmark compares with it.
    'gtsam': ('mapping/pose_graph_solver.py', 'cli/ba_bench.py'),
    'poselib': ('odometry/robust_pose.py',),
    # The benchmark compares with it, and the detector's teacher is its network.
    'kornia': ('cli/bench_networks.py', 'training/detector/teacher.py'),
    'safetensors': ('models/weights.py',),
    'trimesh': ('worlds/mesh.py',),
    'embreex': ('worlds/mesh.py',),
    'typer': ('cli/',),
    'rich': ('cli/',),
    'matplotlib': ('evaluation/', 'cli/'),
}
# rosbags is a namespace with the image converter beside it; the node may use that one.
ONLY_IN_DOTTED: dict[str, tuple[str, ...]] = {'rosbags.image': ('files/bag', 'ros/')}
ALWAYS_THERE = {
    'numpy',
    'torch',
    'cv2',
    'pydantic',
    'yaml',
    'safetensors',
    'typing_extensions',
    NAME,
}
# May be imported when the module is loaded, besides what is always there. Loading cli/ or ros/ is
# itself the point of use of typer or rclpy.
TOP_LEVEL_OK: dict[str, set[str]] = {'cli': {'typer', 'rich'}, 'ros': ROS}


@dataclass(frozen=True)
class Import:
    line: int
    module: str  # absolute dotted name
    top_level: bool  # runs when the module is loaded
    typing_only: bool  # under `if TYPE_CHECKING`


def imports_of(source: str, module: str) -> list[Import]:
    """Every import statement, absolute; `module` is the dotted name of the file's own package."""
    found: list[Import] = []

    def visit(node: ast.AST, top_level: bool, typing_only: bool) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.append(Import(node.lineno, alias.name, top_level, typing_only))
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                parents = module.split('.')[: len(module.split('.')) - node.level + 1]
                base = '.'.join([*parents, base] if base else parents)
            # `from package import name`: name may be a module of ours
            names = [f'{base}.{alias.name}' for alias in node.names]
            for name in names if base.split('.')[0] in {NAME, 'rosbags'} else [base]:
                found.append(Import(node.lineno, name, top_level, typing_only))
        elif name := _imported_by_call(node):
            found.append(Import(node.lineno, name, top_level, typing_only))  # type: ignore[attr-defined]
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        checking = isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            visit(child, top_level and not inside, typing_only or checking)

    visit(ast.parse(source), True, False)
    return found


def _imported_by_call(node: ast.AST) -> str:
    """The name in import_module('name'); of an f-string what stands before its first hole."""
    if not (isinstance(node, ast.Call) and node.args):
        return ''
    if ast.unparse(node.func).split('.')[-1] not in {'import_module', '__import__'}:
        return ''
    name = node.args[0]
    if isinstance(name, ast.JoinedStr) and name.values:
        name = name.values[0]
    if isinstance(name, ast.Constant) and isinstance(name.value, str):
        return name.value.rstrip('.')
    return ''


def violations(relative: str, source: str) -> list[str]:
    """What a file at `relative` (posix path below the package) may not import, one line each."""
    part = relative.split('/')[0].removesuffix('.py')
    package = '.'.join([NAME, *relative.split('/')[:-1]])
    found = []
    for item in imports_of(source, package):
        reason = _reason(relative, part, item)
        if reason:
            found.append(f'{relative}:{item.line}: imports {item.module}: {reason}')
    return found


def _reason(relative: str, part: str, item: Import) -> str | None:
    root, *rest = item.module.split('.')
    if root == NAME:
        target = rest[0] if rest else ''
        if part == '__init__' or not target:
            return 'the root package stays empty'
        if target == 'runner' and item.typing_only:
            return (
                None  # its protocols are contracts: naming one in an annotation is no dependence
            )
        if target != part and target not in MAY_USE[part] | EVERYONE_MAY_USE:
            return f'{part} may not use {target}'
        if target == 'training' != part and item.top_level and not item.typing_only:
            return 'training is never imported at run time'
        return None
    if root in sys.stdlib_module_names:
        return None
    dotted = '.'.join(item.module.split('.')[:2])
    places = ONLY_IN_DOTTED.get(dotted, ONLY_IN.get(root))
    if places and not relative.startswith(places):
        return f'only allowed in {", ".join(places)}'
    lazily = not item.top_level or item.typing_only
    if root not in ALWAYS_THERE | TOP_LEVEL_OK.get(part, set()) and not lazily:
        return 'optional packages are imported at the point of use'
    return None


def files_of_the_package() -> Iterator[Path]:
    return (p for p in sorted(PACKAGE.rglob('*.py')) if '__pycache__' not in p.parts)


def test_every_import_keeps_the_dependency_rule() -> None:
    found: list[str] = []
    for path in files_of_the_package():
        relative = path.relative_to(PACKAGE).as_posix()
        found += violations(relative, path.read_text(encoding='utf-8'))
    assert not found, '\n'.join(found)


def test_every_folder_and_module_has_a_rule() -> None:
    parts = {p.relative_to(PACKAGE).parts[0].removesuffix('.py') for p in files_of_the_package()}
    assert parts - {'__init__'} <= set(MAY_USE)
    assert {'geometry', 'files', 'errors', 'config', 'runner', 'datatypes'} <= parts


@pytest.mark.parametrize(
    ('relative', 'source', 'fault'),
    [
        ('geometry/se3.py', 'from mv_matcher_ros.models import classical', 'geometry may not use'),
        ('geometry/se3.py', 'import mv_matcher_ros.files.bag', 'geometry may not use files'),
        ('geometry/se3.py', 'from ..files import bag', 'geometry may not use files'),
        ('odometry/engine.py', 'def f():\n    from mv_matcher_ros import worlds', 'use worlds'),
        ('odometry/engine.py', 'from mv_matcher_ros import runner', 'may not use runner'),
        ('files/bag.py', 'def f():\n    from mv_matcher_ros.runner import run', 'not use runner'),
        ('files/bag.py', 'if TYPE_CHECKING:\n    from mv_matcher_ros import ros', 'not use ros'),
        ('files/bag.py', 'import rosbags.rosbag1', 'point of use'),
        ('files/video.py', 'def f():\n    from rosbags import rosbag2', 'only allowed in files'),
        ('files/bag.py', 'def f():\n    import rclpy', 'only allowed in ros/'),
        ('files/bag.py', 'def f():\n    from sensor_msgs.msg import Image', 'only allowed in ros'),
        ('ros/conversions.py', 'def f():\n    import gtsam', 'only allowed in mapping'),
        ('ros/engine_node.py', 'from mv_matcher_ros.evaluation import ate', 'ros may not use'),
        ('cli/train.py', 'from mv_matcher_ros.training import losses', 'never imported at run'),
        ('evaluation/report.py', 'import matplotlib.pyplot as plt', 'point of use'),
        ('evaluation/report.py', 'try:\n    import scipy\nexcept ImportError:\n    pass', 'point'),
        ('models/loader.py', "import importlib\nimportlib.import_module('evo')", 'point of use'),
        ('models/x.py', "def f(n):\n    import_module(f'rosbags.{n}')", 'only allowed in files'),
        ('worlds/__init__.py', 'from mv_matcher_ros.odometry.engine import X', 'may not use odom'),
        ('__init__.py', 'from mv_matcher_ros import datatypes', 'root package stays empty'),
    ],
)  # fmt: skip
def test_the_checker_finds(relative: str, source: str, fault: str) -> None:
    found = violations(relative, source)
    assert len(found) == 1
    assert fault in found[0]


@pytest.mark.parametrize(
    ('relative', 'source'),
    [
        ('geometry/se3.py', 'import torch\nfrom mv_matcher_ros.errors import GeometryError'),
        ('geometry/se3.py', 'from mv_matcher_ros.geometry.camera import f\nfrom . import camera'),
        ('files/bag.py', 'def f():\n    from rosbags.highlevel import AnyReader'),
        ('ros/conversions.py', 'import rclpy\ndef f():\n    from rosbags.image import message'),
        ('files/bag.py', 'if TYPE_CHECKING:\n    from mv_matcher_ros.runner import Source'),
        ('cli/evaluate.py', 'import typer\ndef f():\n    from mv_matcher_ros.training import x'),
        ('cli/train.py', 'if TYPE_CHECKING:\n    from mv_matcher_ros.training import losses'),
        (
            'evaluation/report.py',
            'from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from matplotlib import axes',
        ),
    ],
)
def test_the_checker_lets_through(relative: str, source: str) -> None:
    assert violations(relative, source) == []


def test_the_core_loads_with_nothing_optional_installed() -> None:
    """numpy, torch, OpenCV, pydantic and yaml suffice for everything but cli/ and ros/."""
    modules = [
        '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')
        for path in files_of_the_package()
        if path.relative_to(PACKAGE).parts[0] not in {'cli', 'ros', 'cli.py'}
    ]
    optional = [
        'rosbags', 'matplotlib', 'gtsam', 'typer', 'rich', 'rclpy', 'scipy', 'evo', 'trimesh',
        'pandas', 'PIL', 'poselib', 'embreex',
    ]  # fmt: skip
    code = (
        f'import sys, importlib\nfor name in {optional}: sys.modules[name] = None\n'
        f'for name in {modules}: importlib.import_module(name)\n'
    )
    done = subprocess.run(
        [sys.executable, '-W', 'error', '-c', code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_every_file_names_its_licence_and_its_subject() -> None:
    for path in [*files_of_the_package(), *sorted((ROOT / 'test').rglob('*.py'))]:
        first = path.read_text(encoding='utf-8').splitlines()[:1]
        assert first == ['# SPDX-License-Identifier: Apache-2.0'], path
        assert path.stem not in {'utils', 'common', 'helpers', 'misc'}, path
