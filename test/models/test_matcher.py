# SPDX-License-Identifier: Apache-2.0
"""The multi-view matcher: equal to the published equations, and what must not matter does not."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mv_matcher_ros.datatypes import Features
from mv_matcher_ros.errors import ModelError
from mv_matcher_ros.geometry import se3
from mv_matcher_ros.models.known_poses import FARTHEST, KnownPoses
from mv_matcher_ros.models.matcher import Assignment, MatcherNetwork, others
from mv_matcher_ros.models.profiles import MATCHERS, MatcherProfile
from mv_matcher_ros.models.public_weights import superglue_weights
from mv_matcher_ros.models.view_batch import ViewBatch

sys.path.insert(0, str(Path(__file__).parent))
import superglue_reference as reference

TINY = MatcherProfile(
    descriptor_size=12,
    width=16,
    attention_size=8,
    heads=2,
    blocks=2,
    encoder=(8,),
    confidence_size=8,
    iterations=20,
)


def views(counts: tuple[int, ...], width: int, seed: int = 0) -> list[Features]:
    """Random features of images of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number, count in enumerate(counts):
        size = (640 - 40 * number, 480)
        found.append(
            Features(
                torch.rand(count, 2, generator=generator) * torch.tensor(size),
                torch.nn.functional.normalize(
                    torch.randn(count, width, generator=generator), dim=-1
                ),
                torch.rand(count, generator=generator),
                torch.ones(count),
                size,
            )
        )
    return found


def network(profile: MatcherProfile = TINY, seed: int = 0) -> MatcherNetwork:
    """With random weights in every place: the untrained network is a nearest-neighbour matcher."""
    torch.manual_seed(seed)
    matcher = MatcherNetwork(profile).double().eval()
    with torch.no_grad():
        for parameter in matcher.parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim == 2:
                parameter.copy_(noise * parameter.shape[1] ** -0.5)
            else:
                parameter.add_(0.1 * noise)
    return matcher


def doubled(batch: ViewBatch) -> ViewBatch:
    return replace(batch, **{
        name: getattr(batch, name).double()
        for name in ('keypoints_xy', 'descriptors', 'scores', 'image_size')
    })  # fmt: skip


def known_poses(batch: ViewBatch, sigma: float = 0.05, seed: int = 3) -> KnownPoses:
    """Random cameras around the origin; everything known but the pose of the last view."""
    generator = torch.Generator().manual_seed(seed)
    poses = se3.exp(0.3 * torch.randn(1, batch.views, 6, generator=generator, dtype=torch.float64))
    plane = (batch.keypoints_xy.double() - 300.0) / 500.0
    sigmas = torch.full((1, batch.views, batch.views), sigma, dtype=torch.float64)
    sigmas[:, -1, :] = sigmas[:, :, -1] = torch.inf
    return KnownPoses.of(plane, poses, sigmas)


def close(got: Assignment, expected: Assignment, rtol: float = 1e-9) -> None:
    for name in ('pairs', 'log_probability', 'partner', 'log_score', 'confidence'):
        torch.testing.assert_close(
            getattr(got, name), getattr(expected, name), rtol=rtol, atol=1e-9, msg=name
        )


# ------------------------------------------------------------------ equality


@pytest.fixture(scope='module')
def public() -> reference.State:
    return reference.random_state()


def reference_nodes(public: reference.State, features: list[Features]) -> list[Tensor]:
    nodes = [
        reference.encode(
            public, f.keypoints_xy, f.scores, f.descriptors, torch.tensor(f.image_size)
        )
        for f in features
    ]
    return reference.describe(public, nodes)


def test_a_superglue_checkpoint_gives_the_scores_of_the_published_equations(
    public: reference.State,
) -> None:
    features = views((33, 41), 256)
    matcher = MatcherNetwork(MATCHERS['superglue']).eval()
    matcher.load_state_dict(superglue_weights(public), strict=True)
    with torch.inference_mode():
        got = matcher(ViewBatch.of(features))
    expected = reference.log_assignment(public, *reference_nodes(public, features))
    # Room for 41 keypoints in both views: rows 33 to 40 of the first are padding.
    rows = [*range(33), 41]
    difference = got.log_probability[0, 0, rows].double() - expected
    assert float(difference.abs().max()) < 1e-4
    partner = got.partner[0, 0, :33]
    assert partner.tolist() == reference.mutual(expected).tolist()


def test_five_views_with_confidences_follow_the_published_equations(
    public: reference.State,
) -> None:
    profile = MATCHERS['superglue'].model_copy(update={'threshold': 0.0, 'confidence_size': 32})
    features = views((14, 9, 20, 1, 17), 256)
    matcher = MatcherNetwork(profile).eval()
    missing, unexpected = matcher.load_state_dict(superglue_weights(public), strict=False)
    assert not unexpected
    assert all(name.startswith('confidence.') for name in missing)
    with torch.inference_mode():
        got = matcher(ViewBatch.of(features))
    assert matcher.confidence is not None
    head = dict(matcher.confidence.state_dict())
    nodes = reference_nodes(public, features)
    worst, matches = 0.0, 0
    for pair, (a, b) in enumerate(combinations(range(5), 2)):
        expected = reference.log_assignment(public, nodes[a], nodes[b])
        m, n = len(nodes[a]), len(nodes[b])
        mine = got.log_probability[0, pair]
        worst = max(worst, float((mine[:m, :n].double() - expected[:m, :n]).abs().max()))
        worst = max(worst, float((mine[:m, -1].double() - expected[:m, -1]).abs().max()))
        partner = reference.mutual(expected, 0.0)
        assert got.partner[0, pair, :m].tolist() == partner.tolist()
        for i in (partner >= 0).nonzero()[:, 0].tolist():
            j = int(partner[i])
            wanted = reference.confidence(head, expected[i, j], nodes[a][i], nodes[b][j])
            worst = max(worst, abs(float(got.confidence[0, pair, i]) - float(wanted)))
            matches += 1
    assert matches > 20
    assert worst < 1e-4


# ---------------------------------------------------------------- invariance


@pytest.mark.parametrize('informed', [False, True])
def test_permuting_the_views_permutes_the_result(informed: bool) -> None:
    features = views((40, 45, 0, 42), 12)
    matcher = network()
    order = [2, 0, 3, 1]
    batch = doubled(ViewBatch.of(features))
    turned = doubled(ViewBatch.of([features[v] for v in order]))
    known = turned_known = None
    if informed:
        known = known_poses(batch)
        turned_known = KnownPoses(
            known.plane_xy[:, order],
            known.target_from_source[:, order][:, :, order],
            known.sigma[:, order][:, :, order],
        )
    plain, other = matcher(batch, known=known), matcher(turned, known=turned_known)
    found = {}
    for (a, b), (i, j), confidence in rows(plain):
        found[(a, i, b, j)] = confidence
    permuted = {}
    for (a, b), (i, j), confidence in rows(other):
        first, second = sorted([(order[a], i), (order[b], j)])
        permuted[(*first, *second)] = confidence
    assert len(found) > 8
    assert permuted.keys() == found.keys()
    for key, confidence in found.items():
        assert permuted[key] == pytest.approx(confidence, abs=1e-9)


def rows(assignment: Assignment) -> list[tuple[list[int], list[int], float]]:
    matches = assignment.matches()
    return list(
        zip(
            matches.views.tolist(),
            matches.keypoints.tolist(),
            matches.confidence.tolist(),
            strict=True,
        )
    )


@pytest.mark.parametrize('informed', [False, True])
def test_padding_changes_nothing(informed: bool) -> None:
    features = views((6, 9, 7), 12)
    matcher = network()
    snug, roomy = (doubled(ViewBatch.of(features, capacity)) for capacity in (9, 16))
    noise = torch.full_like(roomy.descriptors, torch.nan)
    roomy = replace(
        roomy, descriptors=torch.where(roomy.valid[..., None], roomy.descriptors, noise)
    )
    plain = matcher(snug, known=known_poses(snug) if informed else None)
    padded = matcher(roomy, known=known_poses(roomy) if informed else None)
    for pair, (a, b) in enumerate(plain.pairs.tolist()):
        m, n = len(features[a]), len(features[b])
        for index in (-1, None):  # inner part and dustbin column
            part = slice(None, n) if index is None else index
            torch.testing.assert_close(
                padded.log_probability[0, pair, :m, part],
                plain.log_probability[0, pair, :m, part],
            )
    for got, expected in zip(rows(padded), rows(plain), strict=True):
        assert got[:2] == expected[:2]
        assert got[2] == pytest.approx(expected[2], abs=1e-9)


def test_tuples_of_a_batch_do_not_see_each_other() -> None:
    matcher = network()
    single = [doubled(ViewBatch.of(views((5, 8, 3), 12, seed), 8)) for seed in (1, 2)]
    both = ViewBatch(
        *(
            torch.cat([getattr(s, name) for s in single])
            for name in ('keypoints_xy', 'descriptors', 'scores', 'valid', 'image_size')
        )
    )
    together = matcher(both)
    for number, alone in enumerate(single):
        expected = matcher(alone)
        torch.testing.assert_close(together.confidence[number], expected.confidence[0])
        torch.testing.assert_close(together.partner[number], expected.partner[0])


def test_chosen_pairs_are_those_of_the_whole() -> None:
    matcher = network()
    batch = doubled(ViewBatch.of(views((6, 9, 7), 12)))
    whole = matcher(batch)
    some = matcher(batch, pairs=[(1, 2), (0, 1)])
    assert some.pairs.tolist() == [[1, 2], [0, 1]]
    torch.testing.assert_close(some.log_probability, whole.log_probability[:, [2, 0]])


# ------------------------------------------------------------- known poses

BOTH = torch.tensor([[1], [0]])  # the other one of two views


def test_other_views_are_all_but_the_own() -> None:
    cpu = torch.device('cpu')
    assert others(3, cpu).tolist() == [[1, 2], [0, 2], [0, 1]]
    assert others(1, cpu).shape == (1, 0)


def test_epipolar_distance_is_that_of_the_point_from_the_line_of_its_partner() -> None:
    generator = torch.Generator().manual_seed(0)
    world_from_camera = se3.exp(
        0.2 * torch.randn(1, 2, 6, generator=generator, dtype=torch.float64)
    )
    points = torch.randn(5, 3, generator=generator, dtype=torch.float64) + torch.tensor(
        [0, 0, 5.0]
    )
    seen = se3.transform(se3.inverse(world_from_camera)[0], points[None].expand(2, 5, 3))
    plane = seen[..., :2] / seen[..., 2:]
    known = KnownPoses.of(
        plane[None], world_from_camera, torch.full((1, 2, 2), 0.01, dtype=torch.float64)
    )
    distance = known.squared_distance(BOTH)
    for source, target in ((0, 1), (1, 0)):
        table = distance[0, source, 0]
        assert float(table.diagonal().max()) < 1e-18
        # A ray's points at two depths span its line; the distance is to that line.
        relative = known.target_from_source[0, target, source]
        for i in range(5):
            ray = torch.cat([plane[source, i], torch.ones(1, dtype=torch.float64)])
            ends = torch.stack(
                [relative[:3, :3] @ (z * ray) + relative[:3, 3] for z in (2.0, 9.0)]
            )
            ends = ends[:, :2] / ends[:, 2:]
            along = ends[1] - ends[0]
            across = torch.stack([-along[1], along[0]]) / along.norm()
            expected = ((plane[target] - ends[0]) @ across / 0.01).square().clamp_max(FARTHEST)
            torch.testing.assert_close(table[i], expected)


def test_poses_that_are_unknown_or_pure_rotations_say_nothing() -> None:
    batch = doubled(ViewBatch.of(views((5, 5), 12)))
    turn = torch.eye(4, dtype=torch.float64).repeat(1, 2, 1, 1)
    turn[0, 1] = se3.exp(torch.tensor([0, 0, 0, 0.1, 0.2, 0.3], dtype=torch.float64))
    sigma = torch.full((1, 2, 2), 0.01, dtype=torch.float64)
    plane = batch.keypoints_xy / 500.0
    assert float(KnownPoses.of(plane, turn, sigma).squared_distance(BOTH).max()) == 0.0
    turn[0, 1, :3, 3] = 1.0
    assert float(KnownPoses.of(plane, turn, sigma).squared_distance(BOTH).max()) > 1.0
    unknown = KnownPoses.of(plane, turn, torch.full_like(sigma, torch.inf))
    assert float(unknown.squared_distance(BOTH).max()) == 0.0
    matcher = network()
    close(matcher(batch, known=unknown), matcher(batch))


def test_known_poses_far_from_the_origin_are_the_same() -> None:
    batch = doubled(ViewBatch.of(views((9, 9), 12)))
    near = known_poses(batch)
    poses = torch.eye(4, dtype=torch.float64).repeat(1, 2, 1, 1)
    poses[0, 1] = se3.inverse(near.target_from_source[0, 1, 0])
    far = poses.clone()
    far[..., :3, 3] += 1e5
    plane, sigma = near.plane_xy.float(), torch.full((1, 2, 2), 0.01)
    a, b = (KnownPoses.of(plane, p, sigma).squared_distance(BOTH) for p in (poses, far))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('sigma', [torch.inf, 0.01])
def test_poses_that_are_no_numbers_do_no_harm(sigma: float) -> None:
    batch = doubled(ViewBatch.of(views((5, 6), 12)))
    poses = torch.full((1, 2, 2, 4, 4), torch.nan, dtype=torch.float64)
    said = torch.full((1, 2, 2), sigma, dtype=torch.float64)
    known = KnownPoses(batch.keypoints_xy / 500.0, poses, said)
    close(network()(batch, known=known), network()(batch))


def test_a_known_pose_takes_probability_from_what_lies_off_the_line() -> None:
    matcher = network()
    batch = doubled(ViewBatch.of(views((30, 30), 12)))
    known = known_poses(batch)
    known = replace(known, sigma=torch.full_like(known.sigma, 0.02))
    there, back = known.squared_distance(BOTH)[0, :, 0]
    far = there + back.T > FARTHEST
    informed, blind = matcher(batch, known=known), matcher(batch)
    share = [a.log_probability[0, 0, :-1, :-1].exp()[far].sum().item() for a in (blind, informed)]
    assert share[1] < 0.6 * share[0]


# ------------------------------------------------------------ bad input, gradients


@pytest.mark.parametrize('counts', [(0, 0), (0, 5), (0, 0, 0, 0), (4, 0, 6), (1, 1), (5,), (0,)])
def test_views_without_keypoints_and_single_views(counts: tuple[int, ...]) -> None:
    matcher = network()
    result = matcher(doubled(ViewBatch.of(views(counts, 12))))
    pairs = len(counts) * (len(counts) - 1) // 2
    assert result.partner.shape[:2] == (1, pairs)
    matches = result.matches()
    assert bool(matches.confidence.isfinite().all())
    for (a, b), (i, j) in zip(matches.views.tolist(), matches.keypoints.tolist(), strict=True):
        assert i < counts[a]
        assert j < counts[b]


def test_descriptors_of_another_width_are_refused_with_both_numbers() -> None:
    with pytest.raises(ModelError, match='width 12, these have 13'):
        network()(ViewBatch.of(views((4, 4), 13)))
    mixed = [*views((4,), 12), *views((4,), 13)]
    with pytest.raises(ModelError, match=r'\[12, 13\]'):
        ViewBatch.of(mixed)


def test_more_keypoints_than_a_batch_was_made_for_are_refused() -> None:
    with pytest.raises(ModelError, match='9 keypoints do not fit into a batch made for 8'):
        ViewBatch.of(views((4, 9), 12), capacity=8)


def test_gradients_reach_every_parameter_and_are_finite_with_empty_views() -> None:
    matcher = network().train()
    batch = doubled(ViewBatch.of(views((30, 40, 0), 12)))
    result = matcher(batch, known=known_poses(batch))
    log_mass = result.log_probability
    (log_mass[log_mass.isfinite()].square().sum() + result.confidence.sum()).backward()
    for name, parameter in matcher.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert float(parameter.grad.abs().max()) > 0, name


def test_the_untrained_network_matches_nearest_neighbours() -> None:
    features = views((40, 40), 12)
    noise = 0.05 * torch.randn(40, 12, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    near = torch.nn.functional.normalize(features[0].descriptors + noise, dim=-1)
    features[1] = replace(features[1], descriptors=near[order])
    for width in (12, 16):
        # Places are random here: a second look would take them for what they are not.
        profile = TINY.model_copy(update={'width': width, 'looks': 1})
        result = MatcherNetwork(profile).eval()(ViewBatch.of(features))
        assert result.partner[0, 0].tolist() == order.argsort().tolist()
        nobody = replace(features[1], descriptors=-features[0].descriptors)
        assert bool(
            (
                MatcherNetwork(profile)(ViewBatch.of([features[0], nobody]))
                .log_probability[0, 0, :-1, -1]
                .exp()
                > 0.5
            ).all()
        )


@pytest.mark.parametrize('name', ['light', 'full', 'superglue'])
def test_profiles_build(name: str) -> None:
    profile = MATCHERS[name]
    assert MatcherProfile.model_validate_json(profile.model_dump_json()) == profile
    parameters = sum(p.numel() for p in MatcherNetwork(profile).parameters())
    assert {'light': 1e6, 'full': 1.5e7, 'superglue': 1.1e7}[name] < parameters < 3e7
