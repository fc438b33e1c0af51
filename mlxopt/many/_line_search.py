"""The line search of `mlxopt.optimizers._line_search`, for many problems in step with each other.

Every field is an array of shape (A,), and every branch a mask; conditions, constants and trials are
those of the search of one problem.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mlxopt.optimizers import _line_search as one

SEARCHING, ACCEPTED, FAILED, UNBOUNDED = range(4)


class Searches(NamedTuple):
    """Where the searches stand; float64 but for the last two."""

    value: np.ndarray  # φ(0)
    slope: np.ndarray  # φ'(0), negative
    noise: np.ndarray  # rounding error of a value of φ
    step_size: np.ndarray  # the trial to evaluate next, or the last one when verdict is set
    low: np.ndarray  # left end of the bracket
    low_value: np.ndarray
    low_slope: np.ndarray
    high: np.ndarray  # right end; infinite until found
    high_value: np.ndarray
    high_slope: np.ndarray
    trials: np.ndarray  # int
    verdict: np.ndarray  # int: SEARCHING, then ACCEPTED, FAILED or UNBOUNDED


def begin(value: np.ndarray, slope: np.ndarray, step_size: np.ndarray, eps: float) -> Searches:
    """Return searches from φ(0) = `value` with φ'(0) = `slope`, first trials at `step_size`."""
    nothing, nowhere = np.zeros_like(value), np.full_like(value, np.inf)
    whole = np.zeros(len(value), dtype=np.int64)
    return Searches(
        value, slope, one._NOISE * eps * np.abs(value), step_size, nothing, value, slope,
        nowhere, nowhere, np.full_like(value, np.nan), whole, whole,
    )  # fmt: skip


@np.errstate(all="ignore")  # a masked branch computes with whatever the others hold
def proceed(search: Searches, value: np.ndarray, slope: np.ndarray) -> Searches:
    """Return the searches after their trials at `step_size` gave φ = `value`, φ' = `slope`."""
    t, trials = search.step_size, search.trials + 1
    finite = np.isfinite(value) & np.isfinite(slope)
    enough = finite & (value <= search.value + one.C1 * t * search.slope)
    good = enough | (finite & _is_level(search, value, slope))
    accepted = good & (np.abs(slope) <= one.C2 * np.abs(search.slope))
    endless = value == -np.inf

    right = good & (slope < 0)  # the minimum is further on
    low = np.where(right, t, search.low)
    low_value = np.where(right, value, search.low_value)
    low_slope = np.where(right, slope, search.low_slope)
    high = np.where(right, search.high, t)
    high_value = np.where(right, search.high_value, np.where(finite, value, np.inf))
    high_slope = np.where(right, search.high_slope, np.where(finite, slope, np.nan))

    spent = trials >= one._MOST_TRIALS
    open_ended = right & np.isinf(high)
    narrow = high - low <= 1e-15 * high
    ended = (spent | narrow) & ~open_ended
    # Two assignments may meet in one place: the last one written decides, as the first return did.
    verdict = np.full(len(t), SEARCHING)
    verdict[ended] = np.where(enough, ACCEPTED, FAILED)[ended]
    verdict[open_ended & spent] = UNBOUNDED
    verdict[endless] = UNBOUNDED
    verdict[accepted] = ACCEPTED

    after = search._replace(
        low=low, low_value=low_value, low_slope=low_slope, high=high, high_value=high_value,
        high_slope=high_slope, trials=trials, verdict=verdict,
    )  # fmt: skip
    further = np.where(open_ended, _expand(search, after), _inside(after))
    return after._replace(step_size=np.where(verdict == SEARCHING, further, t))


def _is_level(search: Searches, value: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Whether rounding alone may be what φ at the trial differs from φ(0) by."""
    difference = np.abs(value - search.value)
    explained = 2 * search.step_size * np.maximum(np.abs(search.slope), np.abs(slope))
    beyond = (explained < difference) & (difference <= one._SUM * search.noise)
    return (difference <= search.noise) | beyond


def _expand(before: Searches, after: Searches) -> np.ndarray:
    """Return trials beyond `low`: where the cubic through the last two points has its minimum."""
    b = after.low
    guess = _cubic_minimizer(
        before.low, before.low_value, before.low_slope, b, after.low_value, after.low_slope
    )
    guess = np.where(guess > b, guess, np.inf)  # NaN, or behind us: as far as is allowed
    return np.clip(guess, one._EXPAND_LEAST * b, one._EXPAND_MOST * b)


def _inside(search: Searches) -> np.ndarray:
    """Return trials inside the bracket."""
    a, b = search.low, search.high
    width = b - a
    guess = _cubic_minimizer(
        a, search.low_value, search.low_slope, b, search.high_value, search.high_slope
    )
    halve = ~np.isfinite(guess) | (search.trials % 4 == 3)
    guess = np.clip(guess, a + one._MARGIN * width, b - one._MARGIN * width)
    guess = np.where(halve, a + 0.5 * width, guess)
    return np.where(np.isinf(search.high_value), a + one._MARGIN * width, guess)


def _cubic_minimizer(
    a: np.ndarray, fa: np.ndarray, da: np.ndarray, b: np.ndarray, fb: np.ndarray, db: np.ndarray
) -> np.ndarray:
    """Return the minimizers of the cubics with values fa, fb and slopes da, db at a and b.

    Nocedal and Wright (2006), equation 3.59; NaN where there is none.
    """
    d1 = da + db - 3 * (fa - fb) / (a - b)
    d2 = np.copysign(np.sqrt(d1 * d1 - da * db), b - a)
    denominator = db - da + 2 * d2
    return b - (b - a) * (db + d2 - d1) / np.where(denominator == 0, np.nan, denominator)
