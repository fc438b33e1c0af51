"""The logistic likelihood of a design, in float64, a block of rows at a time; and its maximum.

Notation: b is a scaled solution over the independent columns of the design A; z = A b are the
logits, p = σ(z), w the weights, y the labels 0 and 1, and s = 2y - 1 their signs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.special import expit

from mlxopt.models._design import Design

_MOST_PASSES = 50
_DONE = 1e-9  # a change in every logit that counts as none; the error then is its square
_FLOOR = 1e-4  # below this a change that no longer shrinks is rounding


class Slopes(NamedTuple):
    """The penalized log-likelihood at b, negated, with derivatives; sums, not means."""

    value: float  # Σ w log(1 + exp(-s z)), without the penalty
    gradient: np.ndarray  # (k,), Aᵀ w (p - y) + penalty
    information: np.ndarray  # (k, k), Aᵀ w p (1 - p) A + penalty: Fisher's


class Likelihood:
    """The logistic likelihood over the independent columns of a design.

    Args:
        design: without target.
        labels: (n,) of 0.0 and 1.0, for the rows of positive weight.
        kept: (k,) the columns of the design that take part.
        penalty: (q,), the diagonal of Λ, as `Design.penalty` returns it.
    """

    def __init__(
        self, design: Design, labels: np.ndarray, kept: np.ndarray, penalty: np.ndarray
    ) -> None:
        self.design, self.labels, self.kept = design, labels, kept
        self.weights = np.ones(design.n) if design.weights is None else design.weights
        self.total = float(self.weights.sum())
        self.ridge = penalty[kept] ** 2 * design.mean_weight  # (k,): l2 Σw / unit²
        self._all = len(kept) == design.width

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (which rows, A of the independent columns)."""
        for where, block in self.design.blocks(weighted=False):
            yield where, block if self._all else block.take(self.kept, axis=1)

    def slopes(self, b: np.ndarray) -> Slopes:
        """Return value, gradient and information at b; one pass over the data."""
        value, gradient, information = 0.0, self.ridge * b, np.diag(self.ridge)
        for where, A in self.blocks():
            z, y, w = A @ b, self.labels[where], self.weights[where]
            p = expit(z)
            value += float(w @ np.logaddexp(0.0, np.where(y > 0, -z, z)))
            # σ(z) - 1 = -σ(-z), without the cancellation
            gradient += (w * np.where(y > 0, -expit(-z), p)) @ A
            root = A * np.sqrt(w * p * expit(-z))[:, None]
            information += root.T @ root
        return Slopes(value, gradient, information)

    def reach(self, b: np.ndarray, step: np.ndarray) -> tuple[float, float, float]:
        """Return how far a Newton step moves the logits, and the least margin at b.

        Returns:
            the largest |change| of a logit; the largest s·change·σ(s z), which under 1 proves that
            the maximum exists (see `has_maximum`); the smallest margin s z.
        """
        span, pull, margin = 0.0, -math.inf, math.inf
        for where, A in self.blocks():
            z, change = A @ b, A @ step
            sign = 2.0 * self.labels[where] - 1.0
            span = max(span, float(np.abs(change).max()))
            pull = max(pull, float((sign * change * expit(sign * z)).max()))
            margin = min(margin, float((sign * z).min()))
        return span, pull, margin


def newton_step(slopes: Slopes) -> np.ndarray | None:
    """Return d with information · d = -gradient; None where the information is singular."""
    unit = np.sqrt(np.diag(slopes.information))
    if not (unit > 0).all():
        return None
    try:
        factor = cho_factor(slopes.information / np.outer(unit, unit))
    except LinAlgError:
        return None
    return -cho_solve(factor, slopes.gradient / unit) / unit


def has_maximum(pull: float) -> bool:
    """Whether a Newton step with this pull proves that the likelihood has a maximum.

    It has one exactly if there are λᵢ > 0 with Σ λᵢ sᵢ aᵢ = 0 over the rows aᵢ of A: Stiemke's
    lemma, on the condition of Albert and Anderson (1984, "On the existence of maximum likelihood
    estimates in logistic regression models"). A Newton step d, which solves
    Σ wᵢ pᵢ(1 - pᵢ) (aᵢᵀd) aᵢ = Σ wᵢ (yᵢ - pᵢ) aᵢ, offers
    λᵢ = wᵢ |yᵢ - pᵢ| (1 - σ(sᵢ zᵢ) sᵢ aᵢᵀd), all positive if each product is under 1. Where the
    classes are separated some logit moves on by 1 or more in each step, however flat the likelihood
    has become. Half leaves room for rounding.
    """
    return pull < 0.5


class Maximum(NamedTuple):
    """Where the climb ended."""

    b: np.ndarray  # (k,)
    slopes: Slopes  # there, or less than `_DONE` away
    passes: int
    converged: bool


def finish(likelihood: Likelihood, b: np.ndarray) -> Maximum:
    """Return the maximum, by Newton's method from b, to the last digits of float64.

    Each step is shortened by log(1 + D) / D, where D is the largest change of a logit: along the
    step the curvature grows at most like exp(D t), because the third derivative of log(1 + exp z)
    is no larger than the second, so the loss falls all the way. Near the maximum D → 0 and the step
    is whole.
    """
    before = math.inf
    slopes = likelihood.slopes(b)
    for passes in range(1, _MOST_PASSES + 1):
        step = newton_step(slopes)
        if step is None:
            return Maximum(b, slopes, passes, False)
        span, _, _ = likelihood.reach(b, step)
        if not math.isfinite(span):
            return Maximum(b, slopes, passes, False)
        if span <= _DONE or (span < _FLOOR and span > 0.5 * before):
            return Maximum(b + step if span < before else b, slopes, passes, True)
        b = b + step * (math.log1p(span) / span)
        slopes = likelihood.slopes(b)
        before = span
    return Maximum(b, slopes, _MOST_PASSES, False)
