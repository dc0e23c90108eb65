# SPDX-License-Identifier: Apache-2.0
"""Streaming equals the joint matcher in which each view sees what was there when it came."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mv_matcher_ros.datatypes import Features
from mv_matcher_ros.errors import ModelError
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.models.known_poses import KnownPoses
from mv_matcher_ros.models.matcher import Assignment, MatcherNetwork
from mv_matcher_ros.models.profiles import MatcherProfile
from mv_matcher_ros.models.streaming import PastPoses, PastViews, StreamingNetwork, ViewState
from mv_matcher_ros.models.view_batch import ViewBatch

TINY = MatcherProfile(
    descriptor_size=12,
    width=16,
    attention_size=8,
    heads=2,
    block=('self', 'cross', 'cross'),
    blocks=2,
    encoder=(8,),
    confidence_size=8,
    iterations=20,
)


def views(counts: tuple[int, ...], seed: int = 0) -> list[Features]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    return [
        Features(
            600.0 * random(count, 2),
            torch.nn.functional.normalize(random(count, 12) - 0.5, dim=-1),
            random(count),
            torch.ones(count),
            (640, 480),
        )
        for count in counts
    ]


def network() -> MatcherNetwork:
    torch.manual_seed(0)
    matcher = MatcherNetwork(TINY).double().eval()
    with torch.no_grad():
        for parameter in matcher.parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim == 2:
                parameter.copy_(noise * parameter.shape[1] ** -0.5)
            else:
                parameter.add_(0.1 * noise)
    return matcher


# Which earlier views are in the window when each one comes: the third is no keyframe, the second
# has left when the last one comes.
HISTORIES = {
    'all': [[], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3]],
    'dropped': [[], [0], [0, 1], [0, 1], [0, 3]],
}


@pytest.mark.parametrize(
    'counts', [(6, 6, 6, 6, 6), (6, 9, 3, 7, 5), (4, 0, 5, 6, 0), (0, 0, 3, 1, 2)]
)
@pytest.mark.parametrize('history', HISTORIES)
@pytest.mark.parametrize('informed', [False, True])
def test_equal_to_the_joint_computation(
    counts: tuple[int, ...], history: str, informed: bool
) -> None:
    matcher = network()
    features = views(counts)
    seen = HISTORIES[history]
    sees = torch.zeros(1, 5, 5, dtype=torch.bool)
    for view, past in enumerate(seen):
        sees[0, view, past] = True
    batch = ViewBatch.of(features)
    batch = replace(batch, image_size=batch.image_size.double())
    known = None
    if informed:
        generator = torch.Generator().manual_seed(1)
        poses = se3.exp(0.3 * torch.randn(1, 5, 6, generator=generator, dtype=torch.float64))
        sigma = torch.full((1, 5, 5), 0.05, dtype=torch.float64)
        sigma[0, 0, 3] = sigma[0, 3, 0] = torch.inf
        known = KnownPoses.of((batch.keypoints_xy - 300.0) / 500.0, poses, sigma)
    joint = matcher(batch, sees, known)
    streaming = StreamingNetwork(matcher)
    states: list[ViewState] = []
    room = batch.capacity
    number = {tuple(pair): index for index, pair in enumerate(joint.pairs.tolist())}
    for view, past in enumerate(seen):
        told = None
        if known is not None:
            told = PastPoses(
                known.plane_xy[0, view],
                known.plane_xy[0, past],
                known.target_from_source[0, past, view],
                known.sigma[0, past, view],
            )
        seen_before = PastViews.of([states[w] for w in past], matcher, len(past), room)
        state, assignment = streaming.look(one(features[view], room), seen_before, told)
        states.append(state)
        assert assignment.pairs.tolist() == [[w, len(past)] for w in range(len(past))]
        for row, other in enumerate(past):
            pair = number[(other, view)]
            m, n = counts[other], counts[view]
            for part in ('partner', 'log_score', 'confidence'):
                got, expected = getattr(assignment, part), getattr(joint, part)
                torch.testing.assert_close(got[0, row, :m], expected[0, pair, :m], msg=part)
            torch.testing.assert_close(
                assignment.log_probability[0, row, :m, :n],
                joint.log_probability[0, pair, :m, :n],
            )


def one(features: Features, room: int) -> ViewBatch:
    batch = ViewBatch.of([features], room)
    return replace(batch, image_size=batch.image_size.double())


def look(
    matcher: MatcherNetwork, features: Features, past: list[ViewState], views: int = 0
) -> tuple[ViewState, Assignment]:
    """With room for 9 keypoints a view and for so many views."""
    before = PastViews.of(past, matcher, max(views, len(past)), 9)
    return StreamingNetwork(matcher).look(one(features, 9), before)


def test_the_order_of_the_past_does_not_matter() -> None:
    matcher = network()
    features = views((6, 9, 7))
    first = look(matcher, features[0], [])[0]
    second = look(matcher, features[1], [first])[0]
    plain = look(matcher, features[2], [first, second])[1]
    turned = look(matcher, features[2], [second, first])[1]
    torch.testing.assert_close(turned.confidence[0, 0], plain.confidence[0, 1])


def test_room_for_views_that_are_not_there_changes_nothing() -> None:
    matcher = network()
    features = views((6, 9))
    first, alone = look(matcher, features[0], [], views=3)
    torch.testing.assert_close(first.final, look(matcher, features[0], [])[0].final)
    assert bool((alone.partner < 0).all())
    roomy = look(matcher, features[1], [first], views=3)[1]
    exact = look(matcher, features[1], [first])[1]
    torch.testing.assert_close(roomy.confidence[:, :1], exact.confidence)
    assert bool((roomy.partner[:, 1:] < 0).all())


def test_descriptors_of_another_width_are_refused() -> None:
    features = replace(views((4,))[0], descriptors=torch.zeros(4, 13, dtype=torch.float64))
    with pytest.raises(ModelError, match='width 12, these have 13'):
        look(network(), features, [])
