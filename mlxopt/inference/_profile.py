"""Profile-likelihood intervals.

Notation: N(θ) is the negative log-likelihood and θ̂ its minimum; N_j(x) = min N(θ) over all θ with
θ_j = x is the profile, and r(x) = sqrt(2 (N_j(x) - N(θ̂))) its signed root, which is nearly a
straight line. The limits are where r(x) = z, the normal quantile: 2 (N_j - N) = z², that of χ²₁.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt._dense import eigen
from mlxopt.inference._covariance import check_is_minimum, invert
from mlxopt.inference._estimates import Intervals, Vector, quantile
from mlxopt.inference._likelihood import Likelihood

_MOST_PASSES = 100  # Newton steps to a constrained minimum
_MOST_POINTS = 80  # of one side of a profile
_DONE = 1e-18  # twice the decrease of N that a last Newton step predicts; 1e-9 standard errors
_CLOSE = 1e-9  # |r - z| at a limit, which puts it right to 1e-9 standard errors
_FAR = 1e4  # Wald margins from the center: a profile still below z there has no limit


def profile(
    negative_log_likelihood: Callable[..., mx.array],
    result: Any,
    *data: Any,
    level: float = 0.95,
    names: Sequence[str] | None = None,
    total: bool = False,
    compile: bool = True,
) -> Intervals:
    """Return profile-likelihood intervals: all values that a likelihood-ratio test does not reject.

    A limit is where the negative log-likelihood, minimized over all other parameters, has risen by
    half the quantile of χ²₁: by 1.92 for 95 %. Like "observed" it assumes the model. It takes ten
    to twenty Hessians.

    Args:
        negative_log_likelihood: as for `covariance`, with its scale.
        result: a `Result` of `minimize`, or a tree of parameters.
        *data: arguments of the function after its parameters.
        level: the probability that an interval holds the true number, between 0 and 1.
        names: entries (`"params['w'][0]"`) or whole leaves (`"params['w']"`); None: all.
        total: one number is that of all the data together; see `covariance`.
        compile: False for a function that branches on values.

    Returns:
        `Intervals` around the minimum in float64. A limit is infinite where the likelihood never
        falls far enough; where its domain ends first, the limit is that end and a note says so.

    Raises:
        LinAlgError: the Hessian at the estimate is not positive definite; see `covariance`.
        TapeError, TypeError, ValueError: an argument is not as described, something is not finite,
            or the likelihood is found to be higher elsewhere than at the estimate.

    Warns:
        ConvergenceWarning: as `covariance`.

    Source: Venzon and Moolgavkar (1988), "A method for computing profile-likelihood-based
    confidence intervals"; Cox and Hinkley (1974), section 9.3.

    >>> import mlx.core as mx, mlxopt as mo
    >>> nll = lambda rate, y: rate * y - mx.log(rate)  # of an exponential distribution
    >>> mo.inference.profile(nll, mx.array(1 / 3), mx.array([1.0, 2.0, 6.0]))
    95 % intervals, profile likelihood
            estimate      lower     upper
    params  0.333333  0.0828961  0.864365
    """
    z = quantile(level)
    likelihood = Likelihood(negative_log_likelihood, result, data, total, compile)
    chosen = _chosen(names, likelihood.names)
    inverse, _ = invert(likelihood)
    errors = np.sqrt(np.diag(inverse))
    check_is_minimum(likelihood, inverse, errors)
    minimum = _descend(likelihood, likelihood.theta, np.arange(len(errors)))
    if minimum is None:
        raise ValueError("Newton's method finds no minimum near the estimate: minimize further.")
    limits = np.empty((2, len(chosen)))
    notes: list[str] = []
    for column, j in enumerate(chosen):
        for row, where in enumerate(("lower", "upper")):
            search = _Side(likelihood, minimum, j, 2.0 * row - 1.0, errors[j], z)
            limits[row, column], note = search.limit()
            if note:
                notes.append(f"{where} limit of {likelihood.names[j]}: {note}")
    shown, estimate = tuple(likelihood.names[j] for j in chosen), minimum.theta[chosen]
    lower, upper = limits
    return Intervals(shown, estimate, lower, upper, level, "profile likelihood", tuple(notes))


class _Point(NamedTuple):
    """A minimum of N over all entries or some, the free ones."""

    theta: Vector  # (p,)
    value: float  # N there
    gradient: Vector  # (p,): zero in the free entries
    hessian: np.ndarray  # (p, p)


class _Side:
    """The profile of entry j on one side (-1 or 1) of the minimum, and its limit."""

    def __init__(
        self, likelihood: Likelihood, minimum: _Point, j: int, side: float, error: float, z: float
    ) -> None:
        self.likelihood, self.minimum, self.j, self.side, self.z = likelihood, minimum, j, side, z
        self.free = np.delete(np.arange(len(minimum.theta)), j)
        self.margin = error * z  # Wald's
        self.inner = minimum  # the last point known with r < z

    def limit(self) -> tuple[float, str]:
        """Return where r = z, or infinity, or the end of the domain; and a note if there is one."""
        center, margin = self.minimum.theta[self.j], self.margin
        distance, inside, outer = margin, 0.0, math.inf  # from the center
        note = ""  # on the outer end of the bracket
        for _ in range(_MOST_POINTS):
            point = self._at(center + self.side * distance)
            root, slope = (math.inf, 0.0) if point is None else self._root(point)
            if point is not None and abs(root - self.z) <= _CLOSE:
                return float(point.theta[self.j]), ""
            if point is not None and root < self.z:
                self.inner, inside = point, distance
            else:
                outer = distance
                note = "" if point is not None else "the likelihood ends or jumps here."
            newton = distance + (self.z - root) / slope if slope > 0 else math.inf
            if math.isinf(outer):
                # Flat: even a straight line would not get there, and r bends downwards.
                flat = inside > 10 * margin and slope * _FAR * margin < self.z - root
                if flat or inside > _FAR * margin:
                    return self.side * math.inf, "the likelihood never falls far enough."
                distance = min(newton, 3 * max(inside, margin))
            elif outer - inside <= 1e-12 * max(outer, abs(center)):
                return float(center + self.side * inside), note
            else:
                distance = newton if inside < newton < outer else 0.5 * (inside + outer)
        return math.nan, "not found: the profile of the likelihood is not smooth."

    def _root(self, point: _Point) -> tuple[float, float]:
        """Return r at a point of the profile, and its derivative away from the center."""
        rise = point.value - self.minimum.value
        if rise < -1e-6 * (1 + 1e-3 * abs(self.minimum.value)):
            where = f"{self.likelihood.names[self.j]} is {point.theta[self.j]:.6g}"
            raise ValueError(
                f"the negative log-likelihood is lower by {-rise:.3g} where {where} than at the "
                f"estimate, which is therefore no global minimum. Minimize again from there."
            )
        root = math.sqrt(2 * max(rise, 0.0))
        slope = self.side * point.gradient[self.j] / root if root > 0 else math.inf
        return root, float(slope)

    def _at(self, x: float) -> _Point | None:
        """Return the minimum of N with θ_j = x; None if N is not finite there."""
        theta = self.inner.theta.copy()
        theta[self.j] = x
        # Along the profile the free entries move by -H_ff⁻¹ H_fj for each unit of x.
        along = _newton_step(self.inner.hessian, self.inner.hessian[:, self.j], self.free)
        predicted = theta.copy()
        predicted[self.free] += (x - self.inner.theta[self.j]) * along
        point = _descend(self.likelihood, predicted, self.free)
        return point if point is not None else _descend(self.likelihood, theta, self.free)


def _descend(likelihood: Likelihood, theta: Vector, free: np.ndarray) -> _Point | None:
    """Return the minimum of N over the entries `free`, by Newton's method from theta, or None."""
    value, gradient = likelihood.value_and_grad(theta)
    before = math.inf
    for _ in range(_MOST_PASSES):
        if not (math.isfinite(value) and np.isfinite(gradient).all()):
            return None
        hessian = likelihood.hessian(theta)
        if not np.isfinite(hessian).all():
            return None
        step = _newton_step(hessian, gradient, free)
        fall = float(-gradient[free] @ step)  # twice the decrease that the quadratic predicts
        if fall <= _DONE or (fall < 1e-6 and fall >= 0.5 * before):  # the latter: rounding
            return _Point(theta, value, gradient, hessian)
        before = fall
        room = 1e-10 * (1 + abs(value))
        for size in 0.5 ** np.arange(40):
            trial = theta.copy()
            trial[free] += size * step
            new_value, new_gradient = likelihood.value_and_grad(trial)
            if new_value <= value - 1e-4 * size * fall + room:
                break
        else:
            return None
        theta, value, gradient = trial, new_value, new_gradient
    return None


def _newton_step(hessian: np.ndarray, gradient: Vector, free: np.ndarray) -> Vector:
    """Return -H⁻¹ g in the free entries, with |λ| in place of negative eigenvalues λ."""
    return -eigen(hessian[np.ix_(free, free)]).floored(1e-13).solve(gradient[free])


def _chosen(names: Sequence[str] | None, known: tuple[str, ...]) -> list[int]:
    if names is None:
        return list(range(len(known)))
    chosen: list[int] = []
    for name in [names] if isinstance(names, str) else names:
        found = [i for i, entry in enumerate(known) if f"{entry}[".startswith(f"{name}[")]
        if not found:
            shown = ", ".join(known[:8])
            raise ValueError(f"names holds {name!r}; expected entries or leaves, as in {shown}.")
        chosen += [i for i in found if i not in chosen]
    return chosen
