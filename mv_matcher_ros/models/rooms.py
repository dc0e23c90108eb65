# SPDX-License-Identifier: Apache-2.0
"""Room for views, keypoints and pairs of a graph.

As much as is needed, or a few fixed sizes where each new shape costs a capture or a compilation.
"""

from __future__ import annotations

from dataclasses import dataclass

# Keypoints of all views of a graph together: attention, scores and epipolar distances grow with
# their square (400 MB for a table of this many in single precision).
MOST_NODES = 10_240


@dataclass(frozen=True)
class Rooms:
    """How large a graph is made.

    Attributes:
        most_views: of a window; larger graphs get the room they need.
        most_keypoints: of a view.
        fixed: few sizes only.
        steps: as many sizes for keypoints, each half of the next, where sizes are fixed.
    """

    most_views: int
    most_keypoints: int
    fixed: bool
    steps: int = 1

    def keypoints_of(self, views: int) -> int:
        """The most keypoints that each of so many views may bring."""
        return min(self.most_keypoints, MOST_NODES // max(self.views(views), 1))

    def views(self, needed: int) -> int:
        """Room for views: two, the whole window, or more where more are needed."""
        if not self.fixed or needed == 2:
            return needed
        return max(needed, self.most_views)

    def keypoints(self, needed: int, views: int) -> int:
        """Room for keypoints in each of so many views."""
        if not self.fixed:
            return needed
        most = self.keypoints_of(views)
        sizes = (max(most >> step, 1) for step in reversed(range(self.steps)))
        return next((size for size in sizes if size >= needed), needed)

    def pairs(self, needed: int, views: int) -> int:
        """Room for pairs of views: one view with all others, or all pairs."""
        if not self.fixed:
            return needed
        room = self.views(views)
        one, everyone = room - 1, room * (room - 1) // 2
        return one if needed <= one else everyone
