# SPDX-License-Identifier: Apache-2.0
"""What setup.py promises: files that exist, entry points and extras that lead somewhere."""

from __future__ import annotations

import ast
import os
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def promised() -> dict[str, Any]:
    """The arguments of setup() in setup.py."""
    setuptools = pytest.importorskip(
        'setuptools', reason='from Python 3.12 on an environment need not have it'
    )
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, 'setup', lambda **arguments: found.update(arguments))
        patch.chdir(ROOT)
        runpy.run_path('setup.py')
    return found


def test_all_folders_of_code_are_packages(promised: dict[str, Any]) -> None:
    folders = {p.parent for p in (ROOT / 'mv_matcher_ros').rglob('*.py')}
    assert {str(f.relative_to(ROOT)).replace(os.sep, '.') for f in folders} == set(
        promised['packages']
    )


def test_entry_points_lead_to_functions(promised: dict[str, Any]) -> None:
    for line in promised['entry_points']['console_scripts']:
        _, module, function = re.split(r'\s*[=:]\s*', line)
        path = ROOT.joinpath(*module.split('.'))
        file = path / '__init__.py' if path.is_dir() else path.with_suffix('.py')
        tree = ast.parse(file.read_text(encoding='utf-8'))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert function in names, line


def test_ros_finds_executables_also_without_colcon(promised: dict[str, Any]) -> None:
    """Each node has a wrapper in scripts/ that starts the same module as its entry point."""
    scripts = {p.name: p for p in (ROOT / 'scripts').iterdir()}
    for line in promised['entry_points']['console_scripts']:
        name, module, _ = re.split(r'\s*[=:]\s*', line)
        if not module.startswith('mv_matcher_ros.ros.'):
            continue
        assert f'-m {module} ' in scripts[name].read_text()
        assert os.access(scripts[name], os.X_OK)
        assert "if __name__ == '__main__':" in (
            ROOT.joinpath(*module.split('.')).with_suffix('.py').read_text()
        )


def test_share_files_exist(promised: dict[str, Any]) -> None:
    shared = dict(promised['data_files'])
    for files in shared.values():
        assert files
        assert all((ROOT / file).is_file() for file in files)
    share = 'share/mv_matcher_ros'
    assert 'launch/odometry.launch.py' in shared[f'{share}/launch']
    assert 'config/odometry.yaml' in shared[f'{share}/config']
    assert shared['share/ament_index/resource_index/packages'] == ['resource/mv_matcher_ros']


def test_extras_named_in_errors_exist(promised: dict[str, Any]) -> None:
    named = set()
    for path in (ROOT / 'mv_matcher_ros').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == 'MissingDependencyError':
                named.add(ast.literal_eval(node.args[1]))
    assert {'cli', 'bags'} <= named <= set(promised['extras_require'])


def test_package_xml_and_setup_agree(promised: dict[str, Any]) -> None:
    text = (ROOT / 'package.xml').read_text(encoding='utf-8')
    for key in ('name', 'version', 'license'):
        found = re.search(rf'<{key}>(.+?)</{key}>', text)
        assert found is not None
        assert found[1] == promised[key]
    depends = set(re.findall(r'<exec_depend>(\w+)</exec_depend>', text))
    used = set()
    for path in (ROOT / 'mv_matcher_ros' / 'ros').rglob('*.py'):
        used |= set(
            re.findall(r'^\s*from (\w+_msgs|\w+_srvs)[. ]', path.read_text(), re.MULTILINE)
        )
    implied = {'builtin_interfaces', 'rcl_interfaces'}  # come with rclpy
    assert used - implied <= depends
