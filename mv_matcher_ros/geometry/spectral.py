# SPDX-License-Identifier: Apache-2.0
"""Spectral functions with finite gradients where eigenvalues meet, and small linear systems."""

from __future__ import annotations

from typing import Any

import torch

from mv_matcher_ros.errors import GeometryError
from mv_matcher_ros.geometry.shapes import check


class _SmallestEigenvector(torch.autograd.Function):
    """Eigenvector of the smallest eigenvalue, with the gradient damped by the eigenvalue gap."""

    @staticmethod
    def forward(
        ctx: Any, matrix: torch.Tensor, gap_floor: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        values, vectors = torch.linalg.eigh(matrix)
        # The sign is free: the entry of largest magnitude is made positive, so that runs agree.
        smallest = vectors[..., 0]
        largest = smallest.abs().argmax(-1, keepdim=True)
        smallest = smallest * torch.where(smallest.gather(-1, largest) < 0, -1.0, 1.0)
        ctx.save_for_backward(values, vectors, smallest)
        ctx.gap_floor = gap_floor
        ctx.mark_non_differentiable(values)
        return smallest, values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, None]:
        values, vectors, smallest = ctx.saved_tensors
        gap = values[..., 1:] - values[..., :1]
        floor = ctx.gap_floor * values[..., -1:].abs() + torch.finfo(values.dtype).tiny ** 0.5
        others = vectors[..., 1:]
        along = (others.mT @ gradient[..., None]).squeeze(-1)
        pull = (others @ (along * gap / (gap * gap + floor * floor))[..., None]).squeeze(-1)
        outer = pull[..., :, None] * smallest[..., None, :]
        return -0.5 * (outer + outer.mT), None


def smallest_eigenvector(
    matrix: torch.Tensor, gap_floor: float = 1e-6
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit eigenvector of the smallest eigenvalue of symmetric matrices.

    The exact derivative, a sum over v_k (v_k^T dM v_0) / (l_0 - l_k), has a pole where the
    smallest eigenvalue is not simple, that is where the eigenvector is not determined. Here 1/gap
    becomes gap / (gap^2 + floor^2) with floor = gap_floor * largest eigenvalue: exact to
    (floor/gap)^2 for clear gaps, at most 1/(2 floor), zero at a gap of zero. First derivatives.

    Args:
        matrix: (..., n, n) symmetric, finite.
        gap_floor: relative to the largest eigenvalue.

    Returns:
        (..., n) eigenvector, its largest entry positive; (..., n) eigenvalues in ascending order,
        without gradient.

    Raises:
        GeometryError: values that are not finite.
    """
    if not bool(matrix.isfinite().all()):
        raise GeometryError('smallest_eigenvector: the matrix has values that are not finite')
    vector, values = _SmallestEigenvector.apply(matrix, gap_floor)
    return vector, values


class _EssentialProjection(torch.autograd.Function):
    """U diag(1, 1, 0) V^T of M = U S V^T, differentiated as a function of M, not of U and V."""

    @staticmethod
    def forward(ctx: Any, matrix: torch.Tensor, gap_floor: float) -> torch.Tensor:
        u, s, vh = torch.linalg.svd(matrix)
        ctx.save_for_backward(u, s, vh)
        ctx.gap_floor = gap_floor
        return u[..., :2] @ vh[..., :2, :]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        u, s, vh = ctx.saved_tensors
        inner = u.mT @ gradient @ vh.mT
        even, odd = 0.5 * (inner + inner.mT), 0.5 * (inner - inner.mT)
        g = torch.tensor((1.0, 1.0, 0.0), dtype=s.dtype, device=s.device)
        g_difference, g_sum = g[:, None] - g[None, :], g[:, None] + g[None, :]
        difference, total = s[..., :, None] - s[..., None, :], s[..., :, None] + s[..., None, :]
        floor2 = (ctx.gap_floor * s[..., :1, None]) ** 2 + torch.finfo(s.dtype).tiny
        even = even * g_difference * difference / (difference * difference + floor2)
        odd = odd * g_sum * total / (total * total + floor2)
        return u @ (even + odd) @ vh, None


def project_essential(matrix: torch.Tensor, gap_floor: float = 1e-3) -> torch.Tensor:
    """Nearest matrix with singular values (1, 1, 0), up to scale.

    The two equal singular values do no harm: the result does not depend on the choice of their
    vectors, and the derivative is taken with that in mind (Papadopoulo and Lourakis 2000 for the
    SVD, summed over the pair). A gap of zero between them and the third is damped as in
    `smallest_eigenvector`. First derivatives only.

    Args:
        matrix: (..., 3, 3), finite.
        gap_floor: relative to the largest singular value.

    Returns:
        (..., 3, 3) essential matrix.

    Raises:
        GeometryError: wrong shape or values that are not finite.
    """
    check('matrix', matrix, 3, 3)
    if not bool(matrix.isfinite().all()):
        raise GeometryError('project_essential: the matrix has values that are not finite')
    result: torch.Tensor = _EssentialProjection.apply(matrix, gap_floor)
    return result


def adjugate3(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Adjugate (..., 3, 3) and determinant (...) of 3x3 matrices; inverse = first / second."""
    a, b, c = matrix.unbind(-2)
    columns = (
        torch.linalg.cross(b, c, dim=-1),
        torch.linalg.cross(c, a, dim=-1),
        torch.linalg.cross(a, b, dim=-1),
    )
    return torch.stack(columns, -1), (a * columns[0]).sum(-1)


def damped_solve(
    hessian: torch.Tensor, gradient: torch.Tensor, damping: torch.Tensor
) -> torch.Tensor:
    """Levenberg-Marquardt step -(H + damping diag(H) + tiny I)^-1 g of positive semi-definite H.

    Args:
        hessian: (..., n, n).
        gradient: (..., n).
        damping: (...).

    Returns:
        (..., n), zero where the system cannot be solved.
    """
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    info_type = torch.finfo(hessian.dtype)
    # A direction without information has gradient zero, and with this floor a step of zero.
    floor = (10.0 * info_type.eps * diagonal.amax(-1, keepdim=True)).clamp_min(info_type.tiny)
    extra = diagonal * damping[..., None] + floor
    factor, info = torch.linalg.cholesky_ex(hessian + torch.diag_embed(extra))
    failed = (info != 0)[..., None]
    step = torch.cholesky_solve(-gradient[..., None], torch.where(failed[..., None], 1.0, factor))
    return torch.where(failed, 0.0, step.squeeze(-1))
