"""A line search, one trial at a time: host floats in, host floats out.

The function along the line is φ(t) = loss(params + t · direction), with slope φ'(t). A step size is
accepted under the strong Wolfe conditions

    φ(t) ≤ φ(0) + c1 · t · φ'(0)        enough decrease      (Nocedal and Wright 2006, eq. 3.7a)
    |φ'(t)| ≤ c2 · |φ'(0)|              a flatter slope      (eq. 3.7b)

or, where rounding of φ hides the decrease, the approximate Wolfe condition of Hager and Zhang
(2005, "A new conjugate gradient method with guaranteed descent and an efficient line search", eq.
4.1), on slopes alone.

A Wolfe point lies between `low`, with a negative slope and enough decrease, and `high` (infinite
until found), with a positive slope or too high a value (Hager and Zhang, section 4). Trials in
between are minimizers of cubics, kept away from the ends.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

C1 = 1e-4
C2 = 0.9
_MOST_TRIALS = 40
_NOISE = 10.0  # roundings in a mean over examples
_SUM = 100.0  # times as many in a long naive sum
_EXPAND_LEAST, _EXPAND_MOST = 2.0, 10.0
_FEW = 6  # trials after which a bracket that spans digits is divided by digits
_EXTREME = 1e4  # ratio of its ends
_MARGIN = 0.1  # a trial keeps this share of the bracket's width from its ends


class LineSearch(NamedTuple):
    """The state of a search, in host numbers."""

    value: float  # φ(0)
    slope: float  # φ'(0), negative
    noise: float  # rounding error of a value of φ
    step_size: float  # the trial to evaluate next, or the last one when verdict is set
    low: float = 0.0  # left end of the bracket
    low_value: float = 0.0
    low_slope: float = 0.0
    high: float = math.inf  # right end; infinite until found
    high_value: float = math.inf
    high_slope: float = math.nan
    trials: int = 0
    verdict: str = ""  # "" while searching, then "accepted", "failed" or "unbounded"


NO_SEARCH = LineSearch(0.0, 0.0, 0.0, 0.0)


def begin(value: Any, slope: Any, step_size: Any, eps: Any) -> LineSearch:
    """Return a search from φ(0) = `value` with φ'(0) = `slope` < 0, first trial at `step_size`.

    `eps` is the machine epsilon of the arithmetic that computes φ.
    """
    noise = _NOISE * eps * abs(value)
    return LineSearch(value, slope, noise, step_size, low_value=value, low_slope=slope)


def judge(search: LineSearch, value: Any, slope: Any) -> tuple[Any, Any, Any]:
    """Return whether the trial at `search.step_size`, where φ = `value` and φ' = `slope`, is
    acceptable; whether it is but for the slope; and whether its decrease is enough.

    All may be numbers, or arrays: `value`, `slope` and the first four fields of `search`.
    """
    t, finite = search.step_size, (abs(value) < math.inf) & (abs(slope) < math.inf)
    enough = finite & (value <= search.value + C1 * t * search.slope)
    # Where rounding hides the difference, the slope decides. The error of a long naive sum can
    # exceed the noise, but the difference then exceeds what the slopes at both ends explain.
    difference = abs(value - search.value)
    beyond = (2 * t * abs(search.slope) < difference) & (2 * t * abs(slope) < difference)
    level = (difference <= search.noise) | (beyond & (difference <= _SUM * search.noise))
    falls = enough | (finite & level)
    return falls & (abs(slope) <= C2 * abs(search.slope)), falls, enough


def proceed(search: LineSearch, value: float, slope: float) -> LineSearch:
    """Return the search after its trial at `search.step_size` gave φ = `value`, φ' = `slope`."""
    t, trials = search.step_size, search.trials + 1
    accepted, falls, enough = judge(search, value, slope)
    if accepted:
        return search._replace(trials=trials, verdict="accepted")
    if value == -math.inf:
        return search._replace(trials=trials, verdict="unbounded")

    if falls and slope < 0:
        previous = search
        search = search._replace(trials=trials, low=t, low_value=value, low_slope=slope)
        if math.isinf(search.high):
            if trials >= _MOST_TRIALS:
                return search._replace(verdict="unbounded")
            return search._replace(step_size=_expand(previous, search))
    elif math.isfinite(value) and math.isfinite(slope):
        search = search._replace(trials=trials, high=t, high_value=value, high_slope=slope)
    else:
        search = search._replace(trials=trials, high=t, high_value=math.inf, high_slope=math.nan)

    if trials >= _MOST_TRIALS or search.high - search.low <= 1e-15 * search.high:
        # A decrease is accepted even if the slope is steep.
        return search._replace(verdict="accepted" if enough else "failed")
    return search._replace(step_size=_inside(search))


def _expand(previous: LineSearch, search: LineSearch) -> float:
    """Return a trial beyond `low`: where the cubic through the last two points has its minimum."""
    a, b = previous.low, search.low
    guess = cubic_minimizer(
        a, previous.low_value, previous.low_slope, b, search.low_value, search.low_slope
    )
    if not guess > b:  # NaN, or the slope still grows
        return _EXPAND_MOST * b
    return min(max(guess, _EXPAND_LEAST * b), _EXPAND_MOST * b)


def _inside(search: LineSearch) -> float:
    a, b = search.low, search.high
    width = b - a
    if search.trials >= _FEW and b > _EXTREME * a:  # the first trial was off by many digits
        return math.sqrt(a) * math.sqrt(b) if a > 0 else b / _EXTREME**2
    if math.isinf(search.high_value):  # no value to interpolate
        return a + _MARGIN * width
    guess = cubic_minimizer(
        a, search.low_value, search.low_slope, b, search.high_value, search.high_slope
    )
    if (
        not math.isfinite(guess) or search.trials % 4 == 3
    ):  # every fourth trial halves, so that it ends
        return a + 0.5 * width
    return min(max(guess, a + _MARGIN * width), b - _MARGIN * width)


def cubic_minimizer(a: float, fa: float, da: float, b: float, fb: float, db: float) -> float:
    """Return the minimizer of the cubic with values fa, fb and slopes da, db at a and b, or NaN."""
    # Nocedal and Wright (2006), equation 3.59.
    d1 = da + db - 3 * (fa - fb) / (a - b)
    square = d1 * d1 - da * db
    if not square >= 0:
        return math.nan
    d2 = math.copysign(math.sqrt(square), b - a)
    denominator = db - da + 2 * d2
    if denominator == 0:
        return math.nan
    return b - (b - a) * (db + d2 - d1) / denominator
