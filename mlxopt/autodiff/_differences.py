"""Finite differences with an estimate of their error."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_RATIO = 4.0  # between two steps
_STEPS = 0.1 * _RATIO ** -np.arange(13.0)  # from 0.1 to 6e-9
_COLUMNS = 4  # of the extrapolation, which removes the terms in step², step⁴ and step⁶
# Of the points for the noise, whose fourth differences lack the smooth parts. Three incommensurable
# spacings, since the noise of a rounded function is periodic over short stretches.
_SPACINGS = (0.7e-5, 1.3e-5, 3.1e-5)


class Difference(NamedTuple):
    """A derivative by finite differences; arrays of shape (k,), float64, one entry an output."""

    value: np.ndarray  # the derivative; NaN where the function is not finite on both sides
    error: np.ndarray  # an estimate of its error
    level: np.ndarray  # the largest absolute value of the function


def differentiate(function: Callable[[float], np.ndarray], epsilon: float) -> Difference:
    """Return the derivative at 0 of `function`, which maps a number to an array (k,).

    Central differences over falling steps are extrapolated to step zero (Ridders 1982, "Accurate
    computation of F'(x) and F'(x)F''(x)"). Each output takes the entry of the table that differs
    least from its neighbors; the noise of the function over the step is added to the difference.

    Args:
        function: to differentiate; scaled so that 0.1 is no large step.
        epsilon: the relative rounding error of its values, the least noise.
    """
    # Infinities outside the domain are dropped below.
    with np.errstate(all="ignore"):
        ahead = np.array([function(step) for step in _STEPS])
        behind = np.array([function(-step) for step in _STEPS])
        values = np.concatenate([ahead, behind])
        level = np.max(np.where(np.isfinite(values), np.abs(values), 0), axis=0)
        noise = np.maximum(_noise(function), epsilon * np.abs(ahead[-1]))
        steps = _STEPS[:, None]

        column = (ahead - behind) / (2 * steps)
        before = np.full_like(column, np.nan)  # the column before, from the second one on
        best, least = column[-1], np.full_like(noise, np.inf)
        for k in range(_COLUMNS):
            # A row further down the table has a smaller step; the first row has none above.
            change = np.abs(column[1:] - column[:-1])
            if k > 0:
                change = np.maximum(change, np.abs(column[1:] - before[-len(column) + 1 :]))
            error = change + noise / steps[k + 1 :]
            error = np.where(np.isfinite(error), error, np.inf)
            for value, doubt in zip(column[1:], error, strict=True):
                best, least = np.where(doubt < least, value, best), np.minimum(doubt, least)
            factor = _RATIO ** (2 * (k + 1))
            before, column = column, column[1:] + (column[1:] - column[:-1]) / (factor - 1)
    return Difference(np.where(np.isfinite(least), best, np.nan), least, level)


def _noise(function: Callable[[float], np.ndarray]) -> np.ndarray:
    """Return the standard deviation of the rounding noise of each output, shape (k,).

    From fourth differences, in which parts smooth over 2e-4 cancel (Moré and Wild 2011,
    "Estimating computational noise", equation 2.3): E[(Δᵏf)²] = σ² (2k)! / (k!)².
    An output has at least the noise of the largest, relative to its size: it can show none by luck.
    """
    found = []
    for spacing in _SPACINGS:
        values = np.array([function(spacing * i) for i in range(-3, 4)])
        noise = np.sqrt(np.mean(np.diff(values, n=4, axis=0) ** 2, axis=0) / 70)
        size = np.max(np.abs(values), axis=0)
        found.append(np.fmax(noise, size * np.max(noise) / max(np.max(size), 1e-300)))
    return np.max(found, axis=0)
