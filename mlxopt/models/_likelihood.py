"""The logistic likelihood of a design, in float64, a block of rows at a time; and its maximum.

Notation: b is a scaled solution over the independent columns of the design A; z = A b are the
logits, p = σ(z), w the weights, y the labels 0 and 1, and s = 2y - 1 their signs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from mlxopt.models._design import Design
from mlxopt.models._sparse import gram

_MOST_PASSES = 50
_DONE = 2e-9  # a change in every logit that counts as none: standard errors keep nine digits
_FLOOR = 1e-4  # below this a change that no longer shrinks is rounding


class Slopes(NamedTuple):
    """The penalized log-likelihood at b, negated, with derivatives; sums, not means."""

    value: float  # Σ w log(1 + exp(-s z)), without the penalty
    gradient: np.ndarray  # (k,), Aᵀ w (p - y) + penalty
    information: np.ndarray  # (k, k), Aᵀ w p (1 - p) A + penalty, Fisher's; (0, 0) if not wanted


class Step(NamedTuple):
    """A Newton step, and how far it moves the logits."""

    change: np.ndarray | None  # (k,), of b; None where the information is singular
    span: float  # the largest |change| of a logit
    pull: float  # the largest s·change·σ(s z), or more if that is small: see `has_maximum`
    margin: float  # the smallest s z, before the step


class Likelihood:
    """The logistic likelihood over the independent columns of a design.

    It remembers the last point, for which several will ask.

    Args:
        design: without target.
        labels: (n,) of 0.0 and 1.0, for the rows of positive weight.
        kept: (k,) the columns of the design that take part.
        l2: the strength of the penalty.
    """

    def __init__(self, design: Design, labels: np.ndarray, kept: np.ndarray, l2: float) -> None:
        self.design, self.labels, self.kept = design, labels, kept
        one = np.broadcast_to(1.0, design.n)  # in no memory
        self.weights = one if design.weights is None else design.weights
        self.signs = 2.0 * labels - 1.0  # (n,): s
        self.total = float(self.weights.sum())
        self.ridge = design.penalty(l2)[kept] ** 2 * design.mean_weight  # (k,): l2 Σw / unit²
        self._slopes: tuple[bytes, Slopes] | None = None
        self._step: tuple[bytes, Step] | None = None

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (which rows, A of the independent columns), a copy if there are others."""
        every = len(self.kept) == self.design.width
        for where, block in self.design.blocks(weighted=False):
            yield where, block if every else block.take(self.kept, axis=1)

    def slopes(self, b: np.ndarray, information: bool = True) -> Slopes:
        """Return value, gradient and, if asked for, information at b; one pass over the data."""
        key = b.tobytes()
        if self._slopes is not None and self._slopes[0] == key:
            last = self._slopes[1]
            if last.information.size or not information:
                return last
        q = self.design.width
        wide = self._widen(b)
        value, gradient, matrix = 0.0, np.zeros(q), np.zeros((q, q))
        for where, A in self.design.pieces(weighted=False):
            sign, w = self.signs[where], self.weights[where]
            margin = sign * (A @ wide)
            # Of exp none but negative arguments, and no differences, so that all digits are kept:
            # log(1 + exp(-m)) = max(-m, 0) + log(1 + exp(-|m|)), and p - y = -s σ(-m).
            decay = np.exp(-np.abs(margin))
            value += float(w @ (np.maximum(-margin, 0.0) + np.log1p(decay)))
            likely = 1.0 / (1.0 + decay)  # σ(|m|)
            missed = np.exp(-np.maximum(margin, 0.0)) * likely  # σ(-m)
            gradient -= (w * sign * missed) @ A
            if information:
                matrix += gram(A, np.sqrt(w * decay) * likely)
        kept = np.ix_(self.kept, self.kept)
        slopes = Slopes(
            value,
            gradient[self.kept] + self.ridge * b,
            matrix[kept] + np.diag(self.ridge) if information else np.empty((0, 0)),
        )
        self._slopes = key, slopes
        return slopes

    def newton(self, b: np.ndarray) -> Step:
        """Return the Newton step at b; at most two passes over the data."""
        key = b.tobytes()
        if self._step is None or self._step[0] != key:
            change = newton_step(self.slopes(b))
            self._step = key, self._reach(b, change)
        return self._step[1]

    def _reach(self, b: np.ndarray, change: np.ndarray | None) -> Step:
        span, pull, margin = 0.0, -math.inf, math.inf
        both = np.column_stack([self._widen(v) for v in (b, 0 * b if change is None else change)])
        for where, A in self.design.pieces(weighted=False):
            margins, moves = (A @ both).T * self.signs[where]
            ahead = float(moves.max())
            span = max(span, ahead, -float(moves.min()))
            pull = max(pull, ahead if ahead < 0.5 else float((moves * expit(margins)).max()))
            margin = min(margin, float(margins.min()))
        return Step(change, span, pull, margin)

    def _widen(self, b: np.ndarray) -> np.ndarray:
        """Return b with a zero for each column that takes no part, (q,)."""
        wide = np.zeros(self.design.width)
        wide[self.kept] = b
        return wide


def newton_step(slopes: Slopes) -> np.ndarray | None:
    """Return d with information · d = -gradient; None where the information is singular."""
    unit = np.sqrt(np.diag(slopes.information))
    if not (unit > 0).all():
        return None
    matrix = slopes.information / np.outer(unit, unit)
    try:
        np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return None
    return -np.linalg.solve(matrix, slopes.gradient / unit) / unit


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


def finish(likelihood: Likelihood, b: np.ndarray, done: float = _DONE) -> Maximum:
    """Return the maximum, by Newton's method from b, to the last digits of float64.

    Each step is shortened by log(1 + D) / D, where D is the largest change of a logit: along the
    step the curvature grows at most like exp(D t), because the third derivative of log(1 + exp z)
    is no larger than the second, so the loss falls all the way. Near the maximum D → 0 and the step
    is whole.

    Args:
        likelihood: what to maximize.
        b: (k,), where to start.
        done: the change of a logit after which to stop; the error then is about its square.
    """
    before = math.inf
    for passes in range(1, _MOST_PASSES + 1):
        change, span, _, _ = likelihood.newton(b)
        slopes = likelihood.slopes(b)
        if change is None or not math.isfinite(span):
            return Maximum(b, slopes, passes, False)
        if span <= done or (span < _FLOOR and span > 0.5 * before):
            return Maximum(b + change if span < before else b, slopes, passes, True)
        b = b + change * (math.log1p(span) / span)
        before = span
    return Maximum(b, likelihood.slopes(b), _MOST_PASSES, False)
