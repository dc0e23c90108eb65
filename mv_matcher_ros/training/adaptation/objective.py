# SPDX-License-Identifier: Apache-2.0
"""The upper level: the objective of bundle adjustment at its optimum, as a function of a network.

With C(x, m) the objective over poses and points x and measured places m, and x*(m) its optimum,
dC(x*(m), m)/dm = ∂C/∂m, because ∂C/∂x = 0 there: poses and points are constants, and nothing of
the iterations is kept (Zhan et al., iMatching, ECCV 2024, section 3.3). That holds only while
both levels have the same objective: residuals, weights, kernel and inliers.

A match of a graph network is a choice. Its place becomes a function of the network as the mean
over the keypoints around the chosen one, each as probable as the transport says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mv_matcher_ros.geometry.reprojection import cost
from mv_matcher_ros.training.adaptation.structure import Structure


@dataclass(frozen=True)
class ExpectedPlaces:
    """Where the network says that a track is seen; a `Measure`, with gradients.

    Attributes:
        plane_xy: (V, N, 2) float64 keypoints on the normalised planes.
        log_probability: (P, N + 1, N + 1) of the assignment of all pairs of views.
        pair: (V, V) int64 number of the pair of two views, either way round.
        around: (V, N, K) int64 keypoints near each one, itself first, −1 for none.
    """

    plane_xy: Tensor
    log_probability: Tensor
    pair: Tensor
    around: Tensor

    @classmethod
    def of(
        cls,
        plane_xy: Tensor,
        valid: Tensor,
        pixel: Tensor,
        pairs: Tensor,
        log_probability: Tensor,
        reach_px: float,
        most: int,
    ) -> ExpectedPlaces:
        """From the keypoints (V, N, 2) of a clip, (V,) sizes of a pixel, and an assignment.

        Args:
            valid: (V, N) bool; pairs: (P, 2) views of log_probability (P, N + 1, N + 1).
            reach_px, most: how far, and how many keypoints, a mean reaches.
        """
        views = len(plane_xy)
        number = torch.full((views, views), -1, dtype=torch.int64)
        rows = torch.arange(len(pairs))
        number[pairs[:, 0], pairs[:, 1]] = rows
        number[pairs[:, 1], pairs[:, 0]] = rows
        apart = torch.cdist(plane_xy.detach(), plane_xy.detach()) / pixel[:, None, None]
        apart = apart.masked_fill(~(valid[:, :, None] & valid[:, None]), torch.inf)
        nearest, which = apart.topk(min(most, apart.shape[-1]), dim=-1, largest=False)
        around = torch.where(nearest <= reach_px, which, -1)
        around[..., 0] = torch.arange(plane_xy.shape[1])
        return cls(plane_xy, log_probability, number, around)

    def __call__(self, table: Tensor) -> Tensor:
        """(T, V, 2) places of (T, V) keypoints: in the first view that sees a track the keypoint,
        in the others the mean around it of what is matched with that one.
        """
        rows = torch.arange(len(table))
        views = torch.arange(table.shape[1])
        if not len(table):
            return self.plane_xy.new_zeros(0, table.shape[1], 2)
        first = (table >= 0).to(torch.int64).argmax(1)
        anchor = table[rows, first]
        seen = table.clamp_min(0)
        near = self.around[views, seen]  # (T, V, K)
        there = near >= 0
        near = near.clamp_min(0)
        pair = self.pair[first[:, None], views].clamp_min(0)[..., None]
        here = anchor[:, None, None].expand_as(near)
        ahead = (first[:, None] < views)[..., None]
        a, b = torch.where(ahead, here, near), torch.where(ahead, near, here)
        logarithm = self.log_probability[pair, a, b].to(self.plane_xy.dtype)
        logarithm = logarithm.masked_fill(~there, -torch.inf).clamp_min(-80.0)
        share = torch.where(there, logarithm.softmax(dim=-1), 0.0)
        share = share / share.sum(-1, keepdim=True)
        mean = (share[..., None] * self.plane_xy[views[:, None], near]).sum(2)
        itself = (views == first[:, None])[..., None]
        return torch.where(itself, self.plane_xy[views, seen], mean)

    def detached(self) -> ExpectedPlaces:
        """The same without gradients: what the lower level measures."""
        return replace(
            self,
            plane_xy=self.plane_xy.detach(),
            log_probability=self.log_probability.detach(),
        )


def objective_at_optimum(structure: Structure, places: Tensor) -> Tensor:
    """() mean over observations of ½ w ρ(‖r‖²), w of mean one, with poses and points held.

    Args:
        structure: an optimum, found with the values of these places.
        places: (T, V, 2) as a `Measure` gives them of its table; the gradient goes there.
    """
    measured = places[structure.track, structure.view][None]
    problem = replace(structure.problem, measured=measured)
    return cost(problem)[0] / len(structure.track)
