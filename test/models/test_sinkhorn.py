# SPDX-License-Identifier: Apache-2.0
"""Optimal transport: its marginals, its limit, its gradients, and what padding may not change."""

from __future__ import annotations

import ot
import pytest
import torch

from mv_matcher_ros.models.sinkhorn import SinkhornForm, log_optimal_transport, mutual_matches

forms = pytest.mark.parametrize('form', ['log', 'kernel'])
CONVERGED = 3000


def problem(
    a: int = 7, b: int = 9, batch: tuple[int, ...] = (2,), seed: int = 0, spread: float = 3.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores, dustbin and all-valid masks, float64."""
    generator = torch.Generator().manual_seed(seed)
    scores = spread * torch.randn(*batch, a, b, generator=generator, dtype=torch.float64)
    dustbin = torch.tensor(0.7, dtype=torch.float64)
    return (
        scores,
        dustbin,
        torch.ones(*batch, a, dtype=torch.bool),
        torch.ones(*batch, b, dtype=torch.bool),
    )


@forms
def test_marginals_are_one_for_each_keypoint_and_the_other_side_for_the_dustbins(
    form: SinkhornForm,
) -> None:
    scores, dustbin, valid_a, valid_b = problem()
    mass = log_optimal_transport(scores, dustbin, valid_a, valid_b, CONVERGED, form).exp()
    rows = torch.tensor([1.0] * 7 + [9.0], dtype=torch.float64).expand(2, 8)
    columns = torch.tensor([1.0] * 9 + [7.0], dtype=torch.float64).expand(2, 10)
    torch.testing.assert_close(mass.sum(-1), rows)
    torch.testing.assert_close(mass.sum(-2), columns)


@forms
def test_limit_is_that_of_python_optimal_transport(form: SinkhornForm) -> None:
    scores, dustbin, valid_a, valid_b = problem(batch=())
    mass = log_optimal_transport(scores, dustbin, valid_a, valid_b, CONVERGED, form).exp()
    cost = -torch.full((8, 10), 0.7, dtype=torch.float64)
    cost[:7, :9] = -scores
    rows, columns = torch.ones(8, dtype=torch.float64), torch.ones(10, dtype=torch.float64)
    rows[-1], columns[-1] = 9, 7
    expected = ot.sinkhorn(rows / 16, columns / 16, cost, reg=1.0, stopThr=1e-14, numItermax=20000)
    torch.testing.assert_close(mass, expected * 16, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize('iterations', [1, 3, 20])
@pytest.mark.parametrize('seed', range(5))
def test_kernel_form_has_no_direction_and_no_probability_above_one(
    iterations: int, seed: int
) -> None:
    scores, _, valid_a, valid_b = problem(20, 3, seed=seed)
    dustbin = torch.tensor(5.0, dtype=torch.float64)  # nearly all stay alone
    forth = log_optimal_transport(scores, dustbin, valid_a, valid_b, iterations, 'kernel')
    back = log_optimal_transport(scores.mT, dustbin, valid_b, valid_a, iterations, 'kernel')
    torch.testing.assert_close(back.mT, forth)
    assert float(forth[:, :-1].max()) <= 1e-12
    assert float(forth[:, :, :-1].max()) <= 1e-12


def test_kernel_form_goes_half_the_way_each_time() -> None:
    """Written out in logarithms."""
    scores, dustbin, valid_a, valid_b = problem(batch=())
    full = torch.full((8, 10), 0.7, dtype=torch.float64)
    full[:7, :9] = scores
    rows, columns = torch.ones(8, dtype=torch.float64), torch.ones(10, dtype=torch.float64)
    rows[-1], columns[-1] = 9, 7
    u, v = -0.5 * full.amax(1), -0.5 * full.amax(0)
    for count in range(1, 5):
        exact_u = rows.log() - torch.logsumexp(full + v, dim=1)
        exact_v = columns.log() - torch.logsumexp(full + u[:, None], dim=0)
        of_rows, of_columns = full + exact_u[:, None] + v, full + u[:, None] + exact_v
        got = log_optimal_transport(scores, dustbin, valid_a, valid_b, count, 'kernel')
        torch.testing.assert_close(got[:-1, :-1], 0.5 * (of_rows + of_columns)[:-1, :-1])
        torch.testing.assert_close(got[:-1, -1], of_rows[:-1, -1])
        torch.testing.assert_close(got[-1, :-1], of_columns[-1, :-1])
        u, v = 0.5 * (u + exact_u), 0.5 * (v + exact_v)


@forms
def test_gradients(form: SinkhornForm) -> None:
    scores, dustbin, valid_a, valid_b = problem(4, 5)
    valid_a[0, 3] = False

    def transport(scores: torch.Tensor, dustbin: torch.Tensor) -> torch.Tensor:
        log_mass = log_optimal_transport(scores, dustbin, valid_a, valid_b, 6, form)
        return log_mass[log_mass.isfinite()]

    scores.requires_grad_()
    dustbin.requires_grad_()
    assert torch.autograd.gradcheck(transport, (scores, dustbin))


@forms
@pytest.mark.parametrize('iterations', [1, 10])
def test_padding_changes_nothing(form: SinkhornForm, iterations: int) -> None:
    scores, dustbin, valid_a, valid_b = problem(batch=())
    alone = log_optimal_transport(scores, dustbin, valid_a, valid_b, iterations, form)
    padded = torch.full((11, 12), 50.0, dtype=torch.float64)
    rows, columns = torch.zeros(11, dtype=torch.bool), torch.zeros(12, dtype=torch.bool)
    rows[[0, 2, 3, 4, 5, 6, 10]] = True
    columns[:9] = True
    padded[rows.nonzero(), columns.nonzero()[:, 0]] = scores
    got = log_optimal_transport(padded, dustbin, rows, columns, iterations, form)
    rows, columns = (
        torch.cat([rows, torch.ones(1, dtype=torch.bool)]),
        torch.cat([columns, torch.ones(1, dtype=torch.bool)]),
    )
    torch.testing.assert_close(got[rows][:, columns], alone, rtol=1e-12, atol=1e-12)
    assert bool((got[~rows] == -torch.inf).all())
    assert bool((got[:, ~columns] == -torch.inf).all())


@forms
@pytest.mark.parametrize('counts', [(0, 5), (5, 0), (0, 0)])
def test_a_view_without_keypoints_matches_nothing_and_has_gradients(
    form: SinkhornForm, counts: tuple[int, int]
) -> None:
    scores, dustbin, _, _ = problem(6, 5, batch=())
    valid_a, valid_b = torch.arange(6) < counts[0], torch.arange(5) < counts[1]
    scores.requires_grad_()
    log_mass = log_optimal_transport(scores, dustbin, valid_a, valid_b, 10, form)
    partner, log_score = mutual_matches(log_mass, 0.0)
    assert bool((partner == -1).all())
    assert bool((log_score == -torch.inf).all())
    log_mass[log_mass.isfinite()].sum().backward()
    assert scores.grad is not None
    assert bool(scores.grad.isfinite().all())


@pytest.mark.parametrize(('form', 'spread'), [('log', 200.0), ('kernel', 10.0)])
def test_large_scores_are_exact_in_single_precision(form: SinkhornForm, spread: float) -> None:
    scores, dustbin, valid_a, valid_b = problem(spread=spread)
    log_mass = log_optimal_transport(scores.float(), dustbin, valid_a, valid_b, 20, form)
    exact = log_optimal_transport(scores, dustbin, valid_a, valid_b, 20, form)
    assert bool(log_mass.isfinite().all())
    likely = exact > -20
    torch.testing.assert_close(log_mass[likely].double(), exact[likely], rtol=1e-4, atol=1e-3)


def test_scores_beyond_the_range_of_the_kernel_stay_finite() -> None:
    scores, dustbin, valid_a, valid_b = problem(spread=500.0)
    scores = scores.float().requires_grad_()
    log_mass = log_optimal_transport(scores, dustbin, valid_a, valid_b, 20, 'kernel')
    log_mass.clamp_min(-20.0).sum().backward()
    assert bool(log_mass.isfinite().all())
    assert scores.grad is not None
    assert bool(scores.grad.isfinite().all())


@forms
def test_half_precision_input_is_computed_in_single(form: SinkhornForm) -> None:
    scores, dustbin, valid_a, valid_b = problem()
    half = scores.bfloat16()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        got = log_optimal_transport(half, dustbin, valid_a, valid_b, 20, form)
    assert got.dtype == torch.float32
    exact = log_optimal_transport(half.double(), dustbin, valid_a, valid_b, 20, form)
    torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-4)


def test_mutual_matches_are_mutual_and_above_the_threshold() -> None:
    mass = torch.tensor([
        [0.90, 0.05, 0.03, 0.02],
        [0.85, 0.10, 0.03, 0.02],
        [0.01, 0.10, 0.30, 0.59],
        [0.01, 0.02, 0.03, 0.94],
    ])  # fmt: skip
    partner, log_score = mutual_matches(mass.log(), 0.0)
    assert partner.tolist() == [0, -1, 2]
    torch.testing.assert_close(log_score.exp(), torch.tensor([0.9, 0.0, 0.3]))
    assert mutual_matches(mass.log(), 0.5)[0].tolist() == [0, -1, -1]


def test_no_room_for_keypoints_at_all() -> None:
    partner, log_score = mutual_matches(torch.zeros(2, 4, 1), 0.0)
    assert partner.shape == log_score.shape == (2, 3)
    assert bool((partner == -1).all())
