# SPDX-License-Identifier: Apache-2.0
"""Lengths of the baselines of pairs, which two views alone cannot tell.

A keypoint that is matched in two pairs has one depth: s_p λ_p = s_q λ_q for the depths λ that the
pairs with baselines of unit length give it. Over all keypoints that is one robust mean of
log λ_q − log λ_p for each two pairs that share a view; over all pairs a linear system in log s,
held by baselines that are known, or else by that of the heaviest pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mv_matcher_ros.geometry.epipolar import two_view_depths
from mv_matcher_ros.odometry.pair_poses import PairMatches, PairMethod, PairPoses

# Common keypoints that carry a ratio of two baselines.
FEWEST_COMMON = 5
# Weight of a baseline that is given, against the number of common keypoints of the others.
ANCHOR = 1e6
# Least spread of log depth ratios that a robust mean takes for noise.
LEAST_SPREAD = 0.02
REWEIGHTINGS = 3


@dataclass(frozen=True)
class PairScales:
    """Baselines of P pairs.

    Attributes:
        length: (P,) baseline, 1 where it is not known; metres where a known one takes part.
        known: (P,) bool, connected to the baseline that holds the others.
        metric: a known baseline takes part.
    """

    length: Tensor
    known: Tensor
    metric: bool


def pair_scales(matches: PairMatches, poses: PairPoses, views: int, capacity: int) -> PairScales:
    """Baselines of pairs relative to each other. Differentiable by matches and poses.

    Args:
        views: V; capacity: more than the largest keypoint index.
    """
    given = poses.method == PairMethod.KNOWN
    measured = (
        given | (poses.method == PairMethod.EIGHT_POINT) | (poses.method == PairMethod.ROBUST)
    )
    measured = measured & (poses.b_from_a[:, :3, 3].detach().norm(dim=1) > 0)
    given = given & measured
    if not bool(measured.any()):
        return PairScales(poses.mass.new_ones(len(poses.mass)), measured, False)
    table, weight, place = _depth_table(matches, poses, measured, views, capacity)
    first, second, ratio, mass = _ratios(table, weight, place)
    anchors = given
    if not bool(given.any()):
        heaviest = torch.where(measured, poses.mass, -1.0).argmax()
        anchors = torch.zeros_like(given)
        anchors[heaviest] = True
    log_length = _solve(first, second, ratio, mass, anchors)
    known = _connected(first, second, anchors) & measured
    return PairScales(torch.where(known, log_length, 0.0).exp(), known, bool(given.any()))


def _depth_table(
    matches: PairMatches, poses: PairPoses, measured: Tensor, views: int, capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Log depths by view and partner: (V, V, N), their weights, and (V, V) the pair or −1."""
    rotation, translation = poses.b_from_a[:, None, :3, :3], poses.b_from_a[:, None, :3, 3]
    a, b = matches.plane_xy[:, 0], matches.plane_xy[:, 1]
    depth_a, depth_b = (d[:, 0] for d in two_view_depths(rotation, translation, a, b))
    good = poses.inlier & measured[:, None] & (depth_a > 0) & (depth_b > 0)
    pair, column = good.nonzero(as_tuple=True)
    at = [
        (matches.pairs[pair, s] * views + matches.pairs[pair, 1 - s]) * capacity
        + matches.keypoint[pair, s, column]
        for s in (0, 1)
    ]
    where = torch.cat(at)
    depths = torch.cat([d[pair, column] for d in (depth_a, depth_b)])
    # A depth's relative error is that of the parallax, which goes with one over the depth.
    confidence = matches.weight[pair, column].repeat(2)
    certainty = confidence / depths.square().clamp_min(1e-12)
    table = depths.new_zeros(views * views * capacity).index_put((where,), depths.log())
    weight = depths.new_zeros(views * views * capacity).index_put((where,), certainty)
    place = torch.full((views, views), -1, dtype=torch.int64)
    a_view, b_view = matches.pairs.T
    place[a_view, b_view] = place[b_view, a_view] = torch.where(
        measured, torch.arange(len(matches.pairs)), -1
    )
    shape = (views, views, capacity)
    return table.reshape(shape), weight.reshape(shape), place


def _ratios(table: Tensor, weight: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pairs p, q that share a view, mean of log λ_q − log λ_p, and how much stands behind it."""
    views = len(place)
    one, other = torch.triu_indices(views, views, 1)
    first, second = place[:, one].flatten(), place[:, other].flatten()
    both = (weight[:, one] > 0) & (weight[:, other] > 0)
    count = both.sum(-1).flatten()
    useful = (first >= 0) & (second >= 0) & (count >= FEWEST_COMMON)
    first, second = first[useful], second[useful]
    both = both.flatten(0, 1)[useful]
    difference = (table[:, other] - table[:, one]).flatten(0, 1)[useful]
    product = (weight[:, one] * weight[:, other]).flatten(0, 1)[useful]
    certain = torch.where(both, torch.where(both, product, 1.0).sqrt(), 0.0)
    certain = certain / certain.sum(-1, keepdim=True).clamp_min(1e-300)
    mean, agreeing = _robust_mean(difference, certain, both)
    return first, second, mean, agreeing


def _robust_mean(value: Tensor, weight: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """(R,) mean of (R, N) values, outliers aside, and (R,) how many agree with it."""
    if len(value) == 0:
        return value.new_zeros(0), value.new_zeros(0)
    centre = _weighted_median(value, weight)
    deviation = (value - centre[:, None]).abs()
    spread = 1.4826 * _weighted_median(deviation, weight).clamp_min(LEAST_SPREAD)
    robust = weight / (1.0 + (deviation / (2.0 * spread[:, None])).square()).square()
    mean = (robust * value).sum(-1) / robust.sum(-1).clamp_min(1e-300)
    agreeing = (valid & (deviation < 3.0 * spread[:, None])).sum(-1).to(value.dtype)
    return mean, agreeing / (spread / LEAST_SPREAD).square()


def _weighted_median(value: Tensor, weight: Tensor) -> Tensor:
    order = torch.where(weight > 0, value, torch.inf).argsort(dim=-1)
    cumulative = weight.gather(-1, order).cumsum(-1)
    half = 0.5 * cumulative[..., -1:]
    middle = (cumulative < half).sum(-1, keepdim=True).clamp_max(value.shape[-1] - 1)
    return value.gather(-1, order.gather(-1, middle))[..., 0]


def _solve(first: Tensor, second: Tensor, ratio: Tensor, mass: Tensor, anchors: Tensor) -> Tensor:
    """(P,) log baselines: x_p − x_q = ratio by robust least squares, x = 0 at the anchors."""
    count = len(anchors)
    rows = torch.zeros(len(first), count, dtype=ratio.dtype)
    number = torch.arange(len(first))
    rows[number, first] = 1.0
    rows[number, second] = -1.0
    held = torch.diag(torch.where(anchors, ANCHOR, 1e-9).to(ratio.dtype))
    weight = mass
    solution = ratio.new_zeros(count)
    for _ in range(REWEIGHTINGS):
        weighted = rows * weight[:, None]
        solution = torch.linalg.solve(rows.T @ weighted + held, weighted.T @ ratio)
        error = rows @ solution - ratio
        weight = mass / (1.0 + (error / 0.1).square())
    return solution


def _connected(first: Tensor, second: Tensor, anchors: Tensor) -> Tensor:
    """(P,) bool, pairs that ratios tie to an anchor."""
    reached = anchors.clone()
    for _ in range(len(anchors)):
        new = reached.clone()
        new[first[reached[second]]] = True
        new[second[reached[first]]] = True
        if torch.equal(new, reached):
            break
        reached = new
    return reached
