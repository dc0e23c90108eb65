# SPDX-License-Identifier: Apache-2.0
"""Pose graphs from and to the content of g2o files."""

from __future__ import annotations

import numpy as np

from mv_matcher_ros.config import PoseGraphSettings
from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.mapping.g2o import Edge, PoseGraphFile
from mv_matcher_ros.mapping.loops import Loop
from mv_matcher_ros.mapping.pose_algebra import SE3
from mv_matcher_ros.mapping.pose_graph import PoseGraph


def graph_from_file(content: PoseGraphFile, settings: PoseGraphSettings) -> PoseGraph:
    """A metric pose graph: edges between neighbouring keys are its odometry, all others loops.

    All loops are believed. A keyframe without an edge to the one before it begins a segment at its
    pose in the file; the others take their places by odometry and loops.

    Raises:
        GeometryError: an information matrix is not positive definite.
    """
    keys = sorted(content.poses)
    before = dict(zip(keys[1:], keys[:-1], strict=True))
    steps: dict[int, Loop] = {}
    loops: list[Loop] = []
    for edge in content.edges:
        loop = _loop(edge)
        if before.get(loop.b) == loop.a and loop.b not in steps:
            steps[loop.b] = loop
        else:
            loops.append(loop)
    graph = PoseGraph(settings)
    for key in keys:
        if key in steps:
            step = steps[key]
            graph.add_odometry(step.a, key, step.a_from_b, step.covariance)
        else:
            graph.add_keyframe(key, content.poses[key])
    for key in content.fixed[:1]:
        graph.fix_origin(key, content.poses[key])
    graph.add_loops(loops, trusted=True)
    graph.update(now=True)
    return graph


def _loop(edge: Edge) -> Loop:
    """The edge with its smaller key first."""
    covariance = _inverse(f'edge {edge.a} -> {edge.b}', edge.information)
    if edge.a < edge.b:
        return Loop(edge.a, edge.b, edge.a_from_b, covariance)
    turn = SE3.adjoint(edge.a_from_b)
    return Loop(edge.b, edge.a, SE3.inverse(edge.a_from_b), turn @ covariance @ turn.T)


def file_from_graph(graph: PoseGraph) -> PoseGraphFile:
    """What `write_g2o` writes of a metric pose graph: believed loops, poses as they are.

    Raises:
        GeometryError: the graph has scales, for which g2o has no place.
    """
    if graph.similarity:
        raise GeometryError('a pose graph with scales cannot be written as g2o')
    keys, poses, _ = graph.poses()
    edges = [
        Edge(m.a, m.b, m.a_from_b, _inverse(f'edge {m.a} -> {m.b}', m.covariance))
        for m in graph.measurements()
    ]
    fixed = (graph.origin,) if len(graph) else ()
    return PoseGraphFile(dict(zip(keys.tolist(), poses, strict=True)), edges, fixed)


def _inverse(name: str, matrix: Array) -> Array:
    try:
        inverse = np.linalg.inv(matrix)
    except np.linalg.LinAlgError:
        raise GeometryError(f'{name}: the information is singular') from None
    symmetric: Array = np.array(0.5 * (inverse + inverse.T), dtype=np.float64)
    return symmetric
