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
from mlxopt.models._rows import gram

_MOST_PASSES = 50
_SINGULAR = 1e-13  # what rounding may leave of a column's length, squared and relative
_DONE = 2e-9  # a change in every logit that counts as none: standard errors keep nine digits
_NEAR = 0.5  # a change in every logit up to which a Newton step tells how far the maximum is
_FLOOR = 1e-4  # below this a change that no longer shrinks is rounding


class Slopes(NamedTuple):
    """The penalized log-likelihood at b, negated, with derivatives; sums, not means."""

    value: float  # Σ w log(1 + exp(-s z)), without the penalty
    gradient: np.ndarray  # (k,), Aᵀ w (p - y) + penalty
    # (k, k), Bᵀ (Aᵀ w p (1 - p) A + penalty) B, Fisher's with respect to B⁻¹b; (0, 0) if not wanted
    information: np.ndarray


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
        design: without target. Its dtype is that of the arithmetic; sums over blocks are float64.
        labels: (rows,) of the table: whether a row is of the second class.
        kept: (k,) the columns of the design that take part.
        l2: the strength of the penalty.
        basis: (k, k), B with A B well conditioned, for an A that is not; None for the identity. The
            information squares the condition number of the columns that it is made of.
    """

    def __init__(
        self,
        design: Design,
        labels: np.ndarray,
        kept: np.ndarray,
        l2: float,
        basis: np.ndarray | None = None,
    ) -> None:
        self.design, self.labels, self.kept = design, labels.astype(bool, copy=False), kept
        self.l2, self.basis = l2, basis
        self.total = design.mean_weight * design.n
        self.ridge = design.penalty(l2)[kept] ** 2 * design.mean_weight  # (k,): l2 Σw / unit²
        self._slopes: tuple[bytes, Slopes] | None = None
        self._step: tuple[bytes, Step] | None = None

    def signs(self, where: slice) -> np.ndarray:
        """Return s, 1.0 for the second class and -1.0 for the first, of those rows that count."""
        second = self.design.pick(self.labels, where).view(np.int8)
        return (2 * second - 1).astype(self.design.dtype)  # a third of the time of np.where

    def size_of_second_class(self) -> tuple[int, float]:
        """Return how many rows of positive weight there are in the second class, and Σ w."""
        rows, total = 0, 0.0
        for where in self.design.spans():
            second = self.signs(where) > 0
            rows += int(np.count_nonzero(second))
            if self.design.weights is not None:
                total += float(self.design.pick(self.design.weights, where)[second].sum())
        return rows, float(rows) if self.design.weights is None else total

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
        q, wide = self.design.width, self._widen(b)
        basis = None if self.basis is None else self._widen(self.basis)
        weights = self.design.weights
        value, gradient, matrix = 0.0, np.zeros(q), np.zeros(())
        for where, A in self.design.pieces(weighted=False):
            sign = self.signs(where)
            margin = sign * (A @ wide)
            # Of exp none but negative arguments, and no differences, so that all digits are kept:
            # log(1 + exp(-m)) = max(-m, 0) + log(1 + exp(-|m|)), and p - y = -s σ(-m).
            decay = np.exp(-np.abs(margin))
            losses = np.maximum(-margin, 0.0) + np.log1p(decay)
            likely = 1.0 / (1.0 + decay)  # σ(|m|)
            missed = sign * np.exp(-np.maximum(margin, 0.0)) * likely  # s σ(-m)
            if weights is not None:
                w = self.design.pick(weights, where)
                losses, missed, decay = w * losses, w * missed, w * decay
            value += float(losses.sum(dtype=np.float64))
            gradient -= missed @ A
            if information:
                matrix = matrix + gram(A if basis is None else A @ basis, np.sqrt(decay) * likely)
        if not information:
            matrix = np.empty((0, 0))
        elif self.basis is None:
            matrix = matrix[np.ix_(self.kept, self.kept)] + np.diag(self.ridge)
        else:
            matrix += (self.basis.T * self.ridge) @ self.basis
        slopes = Slopes(value, gradient[self.kept] + self.ridge * b, matrix)
        self._slopes = key, slopes
        return slopes

    def newton(self, b: np.ndarray) -> Step:
        """Return the Newton step at b; at most two passes over the data."""
        key = b.tobytes()
        if self._step is None or self._step[0] != key:
            change = self._change(self.slopes(b))
            self._step = key, self._reach(b, change)
        return self._step[1]

    def _change(self, slopes: Slopes) -> np.ndarray | None:
        """Return d with (information of b) d = -gradient; None if that is as good as singular."""
        root = inverse_root(slopes.information)
        if root is None:
            return None
        V = root if self.basis is None else self.basis @ root
        return -V @ (V.T @ slopes.gradient)

    def _reach(self, b: np.ndarray, change: np.ndarray | None) -> Step:
        span, pull, margin = 0.0, -math.inf, math.inf
        both = np.column_stack([self._widen(v) for v in (b, 0 * b if change is None else change)])
        for where, A in self.design.pieces(weighted=False):
            margins, moves = (A @ both).T * self.signs(where)
            ahead = float(moves.max())
            span = max(span, ahead, -float(moves.min()))
            pull = max(pull, ahead if ahead < 0.5 else float((moves * expit(margins)).max()))
            margin = min(margin, float(margins.min()))
        return Step(change, span, pull, margin)

    def _widen(self, b: np.ndarray) -> np.ndarray:
        """Return b with a zero for each column that takes no part, (q,); or a matrix with rows."""
        wide = np.zeros((self.design.width, *b.shape[1:]))
        wide[self.kept] = b
        return wide


def inverse_root(information: np.ndarray) -> np.ndarray | None:
    """Return V with V Vᵀ = information⁻¹, (k, k); None where that is as good as singular."""
    diagonal = np.diag(information)
    if not (diagonal > 0).all():
        return None
    unit = np.sqrt(diagonal)
    try:
        lower = np.linalg.cholesky(information / np.outer(unit, unit))
        if not np.diag(lower).min() ** 2 > _SINGULAR:
            return None
        return np.linalg.inv(lower).T / unit[:, None]
    except np.linalg.LinAlgError:
        return None


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
    converged: bool
    change: np.ndarray  # (k,): the Newton step that would come next, as far as it is known
    doubt: float  # how far the maximum may be from its end, in standard errors


def _missed(step: Step, slopes: Slopes) -> float:
    """Return a bound on √(eᵀ information e) for the error e that a Newton step leaves.

    Where no logit moves by more than D, no weight p (1 - p) changes by a factor over exp(D).
    """
    assert step.change is not None
    length = math.sqrt(max(-float(slopes.gradient @ step.change), 0.0))
    return math.expm1(step.span) * length


def stay(likelihood: Likelihood, b: np.ndarray) -> Maximum:
    """Return b as the maximum that it was meant to be; converged if one step tells the error."""
    step, slopes = likelihood.newton(b), likelihood.slopes(b)
    if step.change is None or not step.span < _NEAR:
        return Maximum(b, slopes, False, np.zeros_like(b), math.inf)
    return Maximum(b, slopes, True, step.change, _missed(step, slopes))


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
    before, nothing = math.inf, np.zeros_like(b)
    for _ in range(_MOST_PASSES):
        step, slopes = likelihood.newton(b), likelihood.slopes(b)
        change, span = step.change, step.span
        if change is None or not math.isfinite(span):
            return Maximum(b, slopes, False, nothing, math.inf)
        if span <= done or (span < _FLOOR and span > 0.5 * before):
            if span < before:
                return Maximum(b + change, slopes, True, nothing, _missed(step, slopes))
            return Maximum(b, slopes, True, change, _missed(step, slopes))
        b = b + change * (math.log1p(span) / span)
        before = span
    return Maximum(b, likelihood.slopes(b), False, nothing, math.inf)
