# SPDX-License-Identifier: Apache-2.0
"""How views hang together: the rig and what is solved before, and the best tree of pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mv_matcher_ros.geometry import se3
from mv_matcher_ros.odometry.pair_poses import PairMethod, PairPoses
from mv_matcher_ros.odometry.pair_scales import PairScales


@dataclass(frozen=True)
class ViewSetup:
    """How V views hang together, and what is known of their poses.

    Attributes:
        body: (V,) int64 body (a keyframe, a time) that each view belongs to, 0 to B − 1.
        camera: (V,) int64 camera of the rig that took it, 0 to C − 1.
        camera_from_body: (C, 4, 4) of the rig.
        world_from_body: (B, 4, 4) where solved; any value elsewhere.
        solved: (B,) bool, bodies whose pose is known and stays.
    """

    body: Tensor
    camera: Tensor
    camera_from_body: Tensor
    world_from_body: Tensor
    solved: Tensor

    @classmethod
    def separate(cls, views: int) -> ViewSetup:
        """Views of one camera at different times, nothing known."""
        eye = torch.eye(4, dtype=torch.float64)
        return cls(
            torch.arange(views),
            torch.zeros(views, dtype=torch.int64),
            eye[None],
            eye.repeat(views, 1, 1),
            torch.zeros(views, dtype=torch.bool),
        )

    def known_pairs(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """(P,) bool, relative pose known, and (P, 4, 4) that pose b from a (any where not)."""
        a, b = pairs.T
        same = self.body[a] == self.body[b]
        solved = self.solved[self.body[a]] & self.solved[self.body[b]]
        from_body = self.camera_from_body[self.camera]
        world = self.start()[self.body] @ se3.inverse(from_body)
        relative = se3.inverse(world[b]) @ world[a]
        rig = from_body[b] @ se3.inverse(from_body[a])
        return same | solved, torch.where(same[:, None, None], rig, relative)

    def start(self) -> Tensor:
        """(B, 4, 4) world_from_body where solved, the identity elsewhere."""
        eye = torch.eye(4, dtype=self.camera_from_body.dtype)
        return torch.where(self.solved[:, None, None], self.world_from_body, eye)


def spanning_tree(
    pairs: Tensor, poses: PairPoses, scales: PairScales, setup: ViewSetup
) -> tuple[Tensor, Tensor]:
    """Poses over the tree of pairs with the most confidence.

    Without solved bodies the largest group of views that hang together is found; its world is the
    first of its bodies. Views are few: this is Prim's algorithm one view at a time.

    Returns:
        (B, 4, 4) world_from_body, the identity where not found, and (B,) bool, found.
    """
    strength = torch.where(poses.method == PairMethod.KNOWN, torch.inf, poses.mass * poses.share)
    usable = (poses.method == PairMethod.KNOWN) | (poses.method == PairMethod.ROTATION)
    usable = usable | (scales.known & (poses.method != PairMethod.NONE))
    order = strength.argsort(descending=True, stable=True)
    order = order[usable[order]]
    factor = torch.where(poses.method == PairMethod.KNOWN, 1.0, scales.length)
    rotation, translation = poses.b_from_a[:, :3, :3], poses.b_from_a[:, :3, 3]
    b_from_a = se3.compose_matrix(rotation, translation * factor[:, None])
    from_body = setup.camera_from_body[setup.camera]
    body = setup.body.tolist()
    edges = [(pair, *pairs[pair].tolist()) for pair in order.tolist()]
    start = setup.start()
    found: dict[int, Tensor] = {
        number: start[number] for number in range(len(start)) if bool(setup.solved[number])
    }
    if not found:
        root = _root([(body[a], body[b]) for _, a, b in edges], len(start))
        found[root] = start[root]
    while True:
        step = next((e for e in edges if (body[e[1]] in found) != (body[e[2]] in found)), None)
        if step is None:
            break
        pair, a, b = step
        edge = b_from_a[pair]
        if body[a] not in found:
            a, b, edge = b, a, se3.inverse(edge)
        world_from_a = found[body[a]] @ se3.inverse(from_body[a])
        found[body[b]] = world_from_a @ se3.inverse(edge) @ from_body[b]
    poses_found = torch.stack([found.get(number, start[number]) for number in range(len(start))])
    return poses_found, torch.tensor([number in found for number in range(len(start))])


def _root(edges: list[tuple[int, int]], bodies: int) -> int:
    """The first body of the largest group that edges hold together."""
    group = list(range(bodies))
    for a, b in edges:
        if group[a] != group[b]:
            kept, gone = sorted((group[a], group[b]))
            group = [kept if g == gone else g for g in group]
    return max(range(bodies), key=lambda number: (group.count(group[number]), -number))
