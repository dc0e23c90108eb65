# SPDX-License-Identifier: Apache-2.0
"""g2o files: what is written is read, GTSAM agrees on both, and faults are said by line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mv_matcher_ros.config import PoseGraphSettings
from mv_matcher_ros.errors import GeometryError, SourceError
from mv_matcher_ros.mapping import graph_worlds
from mv_matcher_ros.mapping.g2o import Edge, PoseGraphFile, read_g2o, write_g2o
from mv_matcher_ros.mapping.graph_files import file_from_graph, graph_from_file
from mv_matcher_ros.mapping.pose_algebra import SE3
from mv_matcher_ros.mapping.pose_graph import PoseGraph

VERTICES = 'VERTEX_SE3:QUAT 0 0 0 0 0 0 0 1\nVERTEX_SE3:QUAT 1 1 0 0 0 0 0 1\n'
UPPER = ' '.join(['1 0 0 0 0 0 1 0 0 0 0 1 0 0 0 1 0 0 1 0 1'])


def some_file(count: int = 4) -> PoseGraphFile:
    rng = np.random.default_rng(0)
    poses = {10 * k: SE3.exp(rng.normal(size=6)) for k in range(count)}
    edges = []
    for k in range(1, count):
        root = rng.normal(size=(6, 6))
        information = root @ root.T + np.eye(6)
        edges.append(Edge(10 * k - 10, 10 * k, SE3.exp(rng.normal(size=6)), information))
    return PoseGraphFile(poses, edges, (10,))


def assert_same(one: PoseGraphFile, other: PoseGraphFile, tolerance: float = 1e-12) -> None:
    assert list(one.poses) == list(other.poses)
    for key, pose in one.poses.items():
        np.testing.assert_allclose(pose, other.poses[key], atol=tolerance)
    assert [(e.a, e.b) for e in one.edges] == [(e.a, e.b) for e in other.edges]
    for a, b in zip(one.edges, other.edges, strict=True):
        np.testing.assert_allclose(a.a_from_b, b.a_from_b, atol=tolerance)
        np.testing.assert_allclose(a.information, b.information, atol=tolerance)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    content = some_file()
    write_g2o(tmp_path / 'a.g2o', content)
    found = read_g2o(tmp_path / 'a.g2o')
    assert_same(found, content)
    assert found.fixed == (10,)
    write_g2o(tmp_path / 'b.g2o', found)
    assert_same(read_g2o(tmp_path / 'b.g2o'), found, 1e-15)


def test_gtsam_reads_the_same_from_our_files(tmp_path: Path) -> None:
    gtsam = pytest.importorskip('gtsam', reason='gtsam has no wheel for Python 3.10')
    content = some_file()
    write_g2o(tmp_path / 'ours.g2o', content)
    factors, values = gtsam.readG2o(str(tmp_path / 'ours.g2o'), True)
    for key, pose in content.poses.items():
        np.testing.assert_allclose(values.atPose3(key).matrix(), pose, atol=1e-9)
    order = np.ix_([3, 4, 5, 0, 1, 2], [3, 4, 5, 0, 1, 2])
    assert factors.size() == len(content.edges)
    for i, edge in enumerate(content.edges):
        factor = factors.at(i)
        assert list(factor.keys()) == [edge.a, edge.b]
        np.testing.assert_allclose(factor.measured().matrix(), edge.a_from_b, atol=1e-9)
        theirs = factor.noiseModel().information()[order]
        np.testing.assert_allclose(theirs, edge.information, atol=1e-9)


def test_we_read_the_same_from_gtsams_files(tmp_path: Path) -> None:
    gtsam = pytest.importorskip('gtsam', reason='gtsam has no wheel for Python 3.10')
    content = some_file()
    write_g2o(tmp_path / 'ours.g2o', content)
    factors, values = gtsam.readG2o(str(tmp_path / 'ours.g2o'), True)
    gtsam.writeG2o(factors, values, str(tmp_path / 'theirs.g2o'))
    assert_same(read_g2o(tmp_path / 'theirs.g2o'), content, 1e-4)  # GTSAM writes six digits


def test_a_graph_comes_back_from_its_file(
    tmp_path: Path, driven: Callable[..., PoseGraph]
) -> None:
    graph = driven(graph_worlds.manhattan(300, blocks=3))
    graph.optimise_fully()
    write_g2o(tmp_path / 'graph.g2o', file_from_graph(graph))
    again = graph_from_file(read_g2o(tmp_path / 'graph.g2o'), PoseGraphSettings())
    assert len(again.loops) == len(graph.loops) > 10
    np.testing.assert_allclose(again.poses()[1], graph.poses()[1], atol=0.01)
    assert again.optimise_fully() == pytest.approx(graph.optimise_fully(), rel=1e-5)
    np.testing.assert_allclose(again.poses()[1], graph.poses()[1], atol=1e-4)


def test_edges_backwards_gaps_and_fixed_vertices_make_a_graph() -> None:
    pytest.importorskip('gtsam', reason='gtsam has no wheel for Python 3.10')
    step = np.eye(4)
    step[0, 3] = 1.0
    far = np.eye(4)
    far[1, 3] = 2.0
    sure = 1e4 * np.eye(6)
    poses = {k: np.linalg.matrix_power(step, i) for i, k in enumerate((0, 1, 5, 6))}
    poses[1] = far @ poses[1]
    edges = [
        Edge(1, 0, SE3.inverse(step), sure),
        Edge(5, 6, step, sure),
        Edge(6, 0, SE3.inverse(far), sure),  # the second segment hangs on the first by a loop
    ]
    graph = graph_from_file(PoseGraphFile(poses, edges, (1,)), PoseGraphSettings())
    assert graph.origin == 1
    assert graph.joined(5)
    np.testing.assert_allclose(graph.pose(0)[0], far, atol=1e-6)
    np.testing.assert_allclose(graph.pose(6)[0], far @ far, atol=1e-6)


def test_scales_have_no_place_in_a_file(driven: Callable[..., PoseGraph]) -> None:
    pytest.importorskip('gtsam', reason='gtsam has no wheel for Python 3.10')
    with pytest.raises(GeometryError, match='with scales'):
        file_from_graph(PoseGraph(PoseGraphSettings(), similarity=True))


def test_an_information_matrix_that_is_none() -> None:
    pytest.importorskip('gtsam', reason='gtsam has no wheel for Python 3.10')
    edge = Edge(0, 1, np.eye(4), np.zeros((6, 6)))
    content = PoseGraphFile({0: np.eye(4), 1: np.eye(4)}, [edge])
    with pytest.raises(GeometryError, match='edge 0 -> 1: the information is singular'):
        graph_from_file(content, PoseGraphSettings())


@pytest.mark.parametrize(
    ('text', 'what'),
    [
        ('', 'no poses'),
        ('# only words\n', 'no poses'),
        (f'{VERTICES}EDGE_SE3:QUAT 0 1 1 0 0 0 0 0 1\n', ':3: EDGE_SE3:QUAT has 9 fields instead'),
        (f'{VERTICES}EDGE_SE3:QUAT 0 7 1 0 0 0 0 0 1 {UPPER}\n', ':3: there is no vertex 7'),
        (f'{VERTICES}FIX 9\n', ':3: there is no vertex 9'),
        (f'{VERTICES}FIX x\n', ':3: "x" is not the number of a vertex'),
        (f'{VERTICES}FIX -1\n', ':3: "-1" is not the number of a vertex'),
        (f'{VERTICES}FIX {2**64}\n', 'is not the number of a vertex'),
        ('VERTEX_SE3:QUAT 0 0 0 1e200 0 0 0 1\n', ':1: a number is larger than'),
        (f'{VERTICES}VERTEX_SE2 2 0 0 0\n', ':3: "VERTEX_SE2" is not read here'),
        (f'{VERTICES}VERTEX_SE3:QUAT 1 1 0 0 0 0 0 1\n', ':3: vertex 1 stands there twice'),
        ('VERTEX_SE3:QUAT 0 0 0 0 0 0 0 0\n', ':1: the quaternion is zero'),
        ('VERTEX_SE3:QUAT 0 0 0 nan 0 0 0 1\n', ':1: a number is not finite'),
        ('VERTEX_SE3:QUAT 0 0 0 a 0 0 0 1\n', ":1: could not convert string to float: 'a'"),
        ('VERTEX_SE3:QUAT 0.5 0 0 0 0 0 0 1\n', ':1: "0.5" is not the number of a vertex'),
    ],
)
def test_faults_name_file_and_line(text: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / 'bad.g2o'
    path.write_text(text)
    with pytest.raises(SourceError) as error:
        read_g2o(path)
    assert str(error.value).startswith(str(path))
    assert what in str(error.value)
    assert '\n' not in str(error.value)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match='no such file'):
        read_g2o(tmp_path / 'none.g2o')
    (tmp_path / 'bytes.g2o').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(SourceError, match='not a readable text file'):
        read_g2o(tmp_path / 'bytes.g2o')
