# SPDX-License-Identifier: Apache-2.0
"""Whether the stated covariance fits the errors made: NEES of relative motions with bounds.

An odometry pose has no error of its own against a truth in another frame, and after a
least-squares alignment the errors are correlated and too small, so NEES of aligned poses is
invalid. Motions between two poses need no alignment. Their covariance is not published, only the
accumulated one of each pose, so it is recovered under the assumption that odometry is dead
reckoning: the error of the motion i -> j is independent of the error accumulated up to i. Then,
with right perturbations in the body frame and A = Ad(motion^-1),

    S_j = A S_i A^T + S_motion,    so    S_motion = S_j - A S_i A^T.

A sliding window violates the independence a little (its keyframes share landmarks), which is why
motions should span more than the window's newest frames; where the difference is not positive
definite, the pair is left out and counted.

Sources: Bar-Shalom, Li, Kirubarajan, "Estimation with Applications to Tracking and Navigation",
2001, section 5.4 (NEES and its bounds); Mangelson et al., "Characterizing the Uncertainty of
Jointly Distributed Poses in the Lie Algebra", T-RO 2020 (the correlation neglected here).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mv_matcher_ros.datatypes import Array
from mv_matcher_ros.errors import EvaluationError
from mv_matcher_ros.evaluation.association import PosePairs
from mv_matcher_ros.evaluation.poses import adjoint, invert, logarithm

DOF = 6
AXES = ('x', 'y', 'z', 'rx', 'ry', 'rz')
# The smallest eigenvalue of a correlation that is believed: a difference of two large covariances
# that is thinner than that is what its assumption has left, not what anybody stated.
LEAST = 1e-3
# A covariance of six axes is fitted to so many motions at least.
FITTED = 12


@dataclass(frozen=True)
class Consistency:
    """NEES of K relative motions; a consistent estimator has a mean of 1 per degree of freedom.

    Attributes:
        nees_per_dof: mean NEES divided by 6.
        bounds_per_dof: 95 % interval of that mean for K independent motions of a consistent
            estimator.
        share_inside: share of the motions whose NEES lies inside the 95 % interval of chi-square
            with 6 dof.
        translation_per_dof, rotation_per_dof: the same mean for the 3 x 3 blocks alone.
        stamps_ns: (K,) at the end of each motion.
        nees: (K,) of each motion.
        delta: length of a motion in poses.
        unusable: motions left out because the recovered covariance is not positive definite.
        coverage: (3, 6) share of the motions whose error on each axis (x y z rx ry rz of the body)
            is within 1, 2 and 3 stated standard deviations; 0.683, 0.954 and 0.997 would be true.
        nll: mean negative log-likelihood of the errors under the stated covariances.
        nll_constant: the same under the one covariance that fits these errors best, which is what
            a constant in a launch file can reach at most; None below `FITTED` motions.
    """

    nees_per_dof: float
    bounds_per_dof: tuple[float, float]
    share_inside: float
    translation_per_dof: float
    rotation_per_dof: float
    stamps_ns: NDArray[np.int64]
    nees: Array
    delta: int
    unusable: int
    coverage: Array
    nll: float
    nll_constant: float | None

    @property
    def gain(self) -> float | None:
        """Nats a motion by which the stated covariances say more than the best constant one."""
        return None if self.nll_constant is None else self.nll_constant - self.nll

    @property
    def verdict(self) -> str:
        """`consistent`, `optimistic` (errors larger than stated) or `conservative` (smaller)."""
        low, high = self.bounds_per_dof
        if self.nees_per_dof > high:
            return 'optimistic'
        return 'conservative' if self.nees_per_dof < low else 'consistent'


def relative_motion_covariance(
    odom_from_i: Array, odom_from_j: Array, covariance_i: Array, covariance_j: Array
) -> Array:
    """Covariance of the motions i_from_j in the body frame of j, from accumulated covariances.

    Args:
        odom_from_i, odom_from_j: (K, 4, 4) estimated poses.
        covariance_i, covariance_j: (K, 6, 6) as in `Estimate.covariance`: x y z rx ry rz, axes
            fixed in odom.

    Returns:
        (K, 6, 6), tangent order [translation, rotation], right perturbation. Not always positive
        definite: see the module's text for the assumption it rests on.
    """
    body_i = covariance_in_body(odom_from_i, covariance_i)
    body_j = covariance_in_body(odom_from_j, covariance_j)
    transport = adjoint(invert(odom_from_j) @ odom_from_i)
    return body_j - transport @ body_i @ np.swapaxes(transport, -1, -2)


def covariance_in_body(odom_from_body: Array, covariance: Array) -> Array:
    """(K, 6, 6) covariances with axes fixed in odom, turned into the body's axes.

    The position error is that of the body's origin in both, so this is a rotation without a lever
    arm.
    """
    turn = np.zeros((len(odom_from_body), DOF, DOF))
    body_from_odom = np.swapaxes(odom_from_body[:, :3, :3], -1, -2)
    turn[:, :3, :3] = body_from_odom
    turn[:, 3:, 3:] = body_from_odom
    return turn @ covariance @ np.swapaxes(turn, -1, -2)


@dataclass(frozen=True)
class Motions:
    """Errors of K relative motions and what was stated of them.

    Attributes:
        stamps_ns: (K,) at the end of each.
        error: (K, 6) translation and rotation, right perturbation in the body.
        covariance: (K, 6, 6) recovered from the stated ones.
        delta: length in poses.
        unusable: motions left out because the recovered covariance is not positive definite.
    """

    stamps_ns: NDArray[np.int64]
    error: Array
    covariance: Array
    delta: int
    unusable: int


def motions_of(pairs: PosePairs, delta: int = 10) -> Motions:
    """Motions over `delta` poses, laid end to end so that none shares a pose error.

    Args:
        pairs: associated poses with covariances, already scaled where the scale is arbitrary.
        delta: length of a motion, in compared poses; shortened for short runs so that at least 3
            fit.

    Raises:
        EvaluationError: no covariances, or no motion with a usable one.
    """
    if pairs.covariances is None:
        raise EvaluationError('no consistency: the estimate has no covariances')
    delta = max(1, min(delta, (len(pairs) - 1) // 3))
    first = np.arange(0, len(pairs) - delta, delta)
    last = first + delta
    covariance = relative_motion_covariance(
        pairs.estimate[first],
        pairs.estimate[last],
        pairs.covariances[first],
        pairs.covariances[last],
    )
    estimated = invert(pairs.estimate[first]) @ pairs.estimate[last]
    true = invert(pairs.truth[first]) @ pairs.truth[last]
    error = logarithm(invert(estimated) @ true)
    usable = _positive_definite(covariance)
    if not usable.any():
        raise EvaluationError(
            f'no consistency: none of {len(first)} motions over {delta} poses has a positive '
            'definite covariance; the accumulated covariance must grow'
        )
    return Motions(
        pairs.stamps_ns[last[usable]],
        error[usable],
        covariance[usable],
        delta,
        int((~usable).sum()),
    )


def consistency(pairs: PosePairs, delta: int = 10, confidence: float = 0.95) -> Consistency:
    """How `motions_of` the pairs agree with their covariances; arguments and errors of both.

    Args:
        pairs, delta: see `motions_of`.
        confidence: of the interval of the mean and of the share.
    """
    return consistency_of(motions_of(pairs, delta), confidence)


def consistency_of(motions: Motions, confidence: float = 0.95) -> Consistency:
    """How errors agree with what was stated of them.

    Args:
        motions: of one run, or of several together.
        confidence: of the interval of the mean and of the share.
    """
    error, covariance = motions.error, motions.covariance
    nees = _mahalanobis(error, covariance)
    tail = 0.5 * (1.0 - confidence)
    low, high = (chi_square_quantile(p, DOF) for p in (tail, 1.0 - tail))
    dof = DOF * len(nees)
    return Consistency(
        nees_per_dof=float(nees.mean()) / DOF,
        bounds_per_dof=(
            chi_square_quantile(tail, dof) / dof,
            chi_square_quantile(1.0 - tail, dof) / dof,
        ),
        share_inside=float(((nees >= low) & (nees <= high)).mean()),
        translation_per_dof=float(_mahalanobis(error[:, :3], covariance[:, :3, :3]).mean()) / 3,
        rotation_per_dof=float(_mahalanobis(error[:, 3:], covariance[:, 3:, 3:]).mean()) / 3,
        stamps_ns=motions.stamps_ns,
        nees=nees,
        delta=motions.delta,
        unusable=motions.unusable,
        coverage=_coverage(error, covariance),
        nll=_negative_log_likelihood(error, covariance),
        nll_constant=_constant_likelihood(error),
    )


def _coverage(error: Array, covariance: Array) -> Array:
    """(3, 6) shares within 1, 2, 3 standard deviations."""
    sigma = np.sqrt(np.einsum('kii->ki', covariance))
    share = [(np.abs(error) <= width * sigma).mean(axis=0) for width in (1.0, 2.0, 3.0)]
    return np.array(share)


def _negative_log_likelihood(error: Array, covariance: Array) -> float:
    _, log_determinant = np.linalg.slogdet(covariance)
    squared = _mahalanobis(error, covariance)
    constant = error.shape[1] * math.log(2.0 * math.pi)
    return float(0.5 * (squared + log_determinant + constant).mean())


def _constant_likelihood(error: Array) -> float | None:
    """Under the mean of the errors' squares, the most likely covariance without an offset."""
    if len(error) < FITTED:
        return None
    fitted = error.T @ error / len(error)
    if not _positive_definite(fitted[None])[0]:
        return None
    return _negative_log_likelihood(error, np.repeat(fitted[None], len(error), axis=0))


def chi_square_quantile(probability: float, dof: int) -> float:
    """Value below which a chi-square variable of `dof` degrees of freedom lies.

    Newton steps on the regularised incomplete gamma function, kept inside a shrinking bracket,
    from the start of Wilson and Hilferty (1931). Relative accuracy about 1e-12.

    Raises:
        EvaluationError: probability outside (0, 1) or dof < 1.
    """
    if not 0.0 < probability < 1.0 or dof < 1:
        raise EvaluationError(f'no chi-square quantile at {probability:g} with {dof} dof')
    shape = 0.5 * dof
    low, high = 0.0, shape + 10.0
    while _gamma_cdf(shape, high) < probability:
        low, high = high, 2.0 * high
    cube = 1.0 - 2.0 / (9.0 * dof) + _normal_quantile(probability) * math.sqrt(2.0 / (9.0 * dof))
    value = min(max(shape * cube**3, low + 1e-12), high)
    for _ in range(200):
        excess = _gamma_cdf(shape, value) - probability
        if excess > 0.0:
            high = value
        else:
            low = value
        log_density = (shape - 1.0) * math.log(value) - value - math.lgamma(shape)
        density = math.exp(log_density) if log_density > -700.0 else 0.0
        step = value - excess / density if density > 0.0 else math.inf
        following = step if low < step < high else 0.5 * (low + high)
        if abs(following - value) <= 1e-14 * following:
            return 2.0 * following
        value = following
    return 2.0 * value


def _gamma_cdf(shape: float, x: float) -> float:
    """Regularised lower incomplete gamma function: series below the bulk, fraction above."""
    if x <= 0.0:
        return 0.0
    log_front = shape * math.log(x) - x - math.lgamma(shape)
    if x < shape + 1.0:
        term = total = 1.0 / shape
        step = shape
        while abs(term) > 1e-17 * total:
            step += 1.0
            term *= x / step
            total += term
        return total * math.exp(log_front)
    tiny = 1e-300
    b = x + 1.0 - shape
    c, d = 1.0 / tiny, 1.0 / b
    fraction = d
    for i in range(1, 100_000):
        a = -i * (i - shape)
        b += 2.0
        d = a * d + b
        d = 1.0 / (d if abs(d) > tiny else tiny)
        c = b + a / c
        c = c if abs(c) > tiny else tiny
        fraction *= c * d
        if abs(c * d - 1.0) < 1e-16:
            break
    return 1.0 - math.exp(log_front) * fraction


def _normal_quantile(probability: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(probability)


def _positive_definite(matrices: Array) -> NDArray[np.bool_]:
    """(K,) bool: finite, and clearly positive definite."""
    finite = np.asarray(np.isfinite(matrices).all(axis=(1, 2)))
    safe = np.where(finite[:, None, None], matrices, np.eye(DOF))
    # Scaled to a unit diagonal: metres and radians may differ by orders of magnitude.
    diagonal = np.einsum('kii->ki', safe)
    scale = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    correlation = safe / scale[:, :, None] / scale[:, None, :]
    smallest = np.linalg.eigvalsh(0.5 * (correlation + np.swapaxes(correlation, 1, 2)))[:, 0]
    return np.asarray(finite & (diagonal > 0).all(axis=1) & (smallest > LEAST))


def _mahalanobis(error: Array, covariance: Array) -> Array:
    """(K,) error^T covariance^-1 error."""
    whitened = np.linalg.solve(covariance, error[:, :, None])[:, :, 0]
    return np.asarray(np.einsum('ki,ki->k', error, whitened))
