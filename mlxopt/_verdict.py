"""Whether a run has converged: a look at the curvature where it seems to end.

A gradient that is small, or zero, proves nothing: it may be small in its units, at a saddle, or on
a plateau. What counts is how much lower the loss could still be, against its drop so far and
against its rounding error.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np

from mlxopt import _curvature
from mlxopt._around import Verdict, falls, wrong_slope
from mlxopt._curvature import is_hidden, next_goal, seems_minimal
from mlxopt._objective import Objective
from mlxopt._point import LEAST_GAIN, Point, Start
from mlxopt._report import entry_names
from mlxopt._status import Status
from mlxopt._tree import working_dtype
from mlxopt.optimizers import Optimizer

GO_ON = Verdict(None)


class Judge:
    """Judges the claims of one phase to have converged.

    A claim holds if the loss does not curve down, and a Newton step would lower it by at most tol²
    times its drop so far, or by less than its rounding.

    Args:
        objective: the loss over its data.
        optimizer: the method.
        tol: of the phase; 0 takes every step.
        start: of the run.
    """

    def __init__(
        self, objective: Objective, optimizer: Optimizer[Any], tol: float, start: Start
    ) -> None:
        self.objective, self.optimizer, self.tol, self.start = objective, optimizer, tol, start
        self.goal = math.inf  # the optimality at which the next claim is looked at

    def at_start(self, state: Any) -> Verdict:
        """Return the verdict on a start: it ends the run only where rounding hides any gain."""
        if state.optimality == 0:
            return self.at_end(state)
        point = Point(self, state)
        if point.is_large():
            point.allow_for_noise()
        g, level = point.gradient, point.eps * abs(state.value)
        # The noise may be far above the rounding of the value: it is that of the terms.
        if not seems_minimal(point.free_x, g, g @ point.times(g), level / LEAST_GAIN, point.eps):
            return GO_ON
        found = point.look()
        if found is None or found.is_concave or found.gain > level / LEAST_GAIN:
            return GO_ON
        if not is_hidden(found, point.free_x, level, point.eps):
            level = point.noise(1.0)
        hidden = is_hidden(found, point.free_x, level, point.eps)
        return point.converged(found) if hidden else GO_ON

    def on_claim(self, state: Any) -> Verdict:
        """Return the verdict on a gradient that has become small."""
        if state.optimality > self.goal:
            return GO_ON
        point = Point(self, state)
        found = point.look()
        if found is None:
            return Verdict(Status.CONVERGED, _NOT_FINITE)
        drop = point.drop()
        if found.is_concave:
            if point.leaves(found):
                self.goal = 0.1 * state.optimality
                return GO_ON
            return falls(point, found, drop) or GO_ON
        if found.gain <= self.tol**2 * drop:
            return point.converged(found, "")
        if point.is_at_infinity(found, self.tol):
            return point.converged(found, _AT_INFINITY)
        # A start close to the minimum leaves little to drop: a share of it, or all if it is noise.
        share = LEAST_GAIN * drop
        hidden = found.gain <= drop and found.gain <= point.noise(1.0)
        if hidden and (found.gain <= share or share <= point.noise(1.0)):
            return point.converged(found)
        self.goal = float(next_goal(state.optimality, found.gain, drop, self.tol))
        return GO_ON

    def at_rest(self, state: Any) -> Verdict:
        """Return the verdict on a point that some records have not improved."""
        point = Point(self, state)
        found = point.look()
        if found is None or found.is_concave or not state.optimality > 0:
            return GO_ON
        hidden = is_hidden(found, point.free_x, point.noise(1.0), point.eps)
        return point.converged(found) if hidden else GO_ON

    def at_end(self, state: Any) -> Verdict:
        """Return the verdict on a point that the method cannot improve."""
        point = Point(self, state)
        found = point.look()
        if found is None and point.full.any():
            return Verdict(Status.NO_PROGRESS, _NOT_FINITE)
        if found is None:  # the values around have to do
            point.free[:] = True
            found = _curvature.of_matrix(np.zeros((len(point.x),) * 2), point.full, point.eps)
        drop, sound = point.drop(), not found.is_concave
        if sound and found.gain > 0:  # a gradient of zero proves nothing yet
            if found.gain <= self.tol**2 * drop:
                return point.converged(found, "")
            if point.is_at_infinity(found, self.tol):
                return point.converged(found, _AT_INFINITY)
        if wrong := wrong_slope(point):
            exact, fall = point.exact_gradient(), self.start.value - state.value
            # In float32 a gradient can be the rounding of its own computation (1 - σ(z), say).
            if exact is not None and sound and found.gain_of(exact) <= point.eps * fall:
                return point.converged(found)
            return Verdict(Status.NO_PROGRESS, wrong, found.gain)
        if fallen := falls(point, found, drop):
            return fallen
        if point.allow_for_noise():
            return GO_ON  # the method gave up on noise that it did not know
        noise = point.noise()
        # Both are estimates: of the noise, and of the gain.
        if sound and is_hidden(found, point.free_x, 4 * noise, point.eps):
            return point.converged(found)
        if sound and found.gain <= 4 * found.gain_of(point.gradient_error()):
            return point.converged(found)  # the gradient is the rounding of its own computation
        if found.is_concave:
            reason = "the loss curves down here, but its rounding hides how far it falls."
        elif found.gain > 10 * max(drop, abs(state.value)):
            farthest = int(np.argmax(np.abs(point.way) / (1 + np.abs(self.start.x))))
            name = entry_names("params", state.params)[farthest]
            reason = (
                f"the loss may have no minimum: by its curvature it could still fall more than it "
                f"has fallen. A variance that goes to zero with a perfect fit does that, or a "
                f"minimum at infinity. Bound or penalize {name}, now {point.x[farthest]:.3g}."
            )
        elif found.values[0] <= 10 * found.rounding * found.values[-1]:
            reason = (
                f"a combination of the parameters hardly changes the loss, which {_COULD} "
                f"{found.gain:.2g} lower: the parameters have too different scales, or the data "
                f"do not determine them. Scale them, or use Newton() or a penalty."
            )
        else:
            reason = (
                f"no step of this method lowers the loss any more, which {_COULD} {found.gain:.2g} "
                f"lower; its rounding is {noise:.1g}. {self._advice(state)}"
            )
        return Verdict(Status.NO_PROGRESS, reason, found.gain)

    def _advice(self, state: Any) -> str:
        if working_dtype(state.params) == mx.float64:
            return "Use LBFGS(), Newton(), or a larger tol."
        return 'Use float64 parameters or finish="float64".'


_COULD = "by its curvature could be"
_NOT_FINITE = (
    "the second derivative of the loss is not finite here (a power of zero, sqrt or abs at zero), "
    "so that its curvature says nothing."
)
_AT_INFINITY = (
    "as low as the loss can get, but its curvature vanishes with its slope: the minimum may be at "
    "infinity (separated classes). Add a penalty."
)
