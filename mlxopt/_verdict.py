"""Whether a run has converged: a look at the curvature where it seems to end.

Notation, as in `_curvature.py`: g = the gradient, H = the Hessian; s = the way from the start.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from mlxopt import _curvature
from mlxopt._curvature import Curvature
from mlxopt._objective import Objective
from mlxopt._status import Status
from mlxopt._tree import (
    Tree,
    dtype_name,
    epsilon,
    from_host,
    largest_entry,
    read,
    to_host,
    to_numpy,
    working_dtype,
)
from mlxopt.optimizers import Optimizer

NOISE = 10.0  # roundings in a value of the loss, a mean over examples
_FLAT_DIRECTIONS = 3  # along which the loss is looked at
_NOISIER = 4.0  # times the assumed noise, from which on the run goes on with the measured one
_ULPS = 4.0  # roundings of a parameter that a step has to exceed to count
_LEAST_GAIN = 1e-4  # the share of the drop so far under which rounding may end a run
_LEAST_DROP = 0.1  # the share by which the optimality falls at least between two looks


class Start(NamedTuple):
    """Where the whole run began."""

    x: np.ndarray  # (p,)
    value: float


class Verdict(NamedTuple):
    """The end of a run, if it is one."""

    status: Status | None  # None where the run should go on
    reason: str = ""  # in a sentence, where there is more to say than the status does
    gain: float = math.nan  # the decrease of the loss still to be expected


class Judge:
    """Judges the claims of one phase to have converged.

    A gradient that is small, or zero, proves nothing. The claim holds if a Newton step would lower
    the loss by at most tol² times its drop so far, or by less than its rounding, and if the loss
    does not curve down.

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
        self._noise_at, self._last_noise = None, 0.0
        self.goal = math.inf  # the optimality at which the next claim is looked at

    def at_start(self, state: Any) -> Verdict:
        """Return the verdict on a start: it ends the run only where rounding hides any gain."""
        if state.optimality == 0:
            return self.at_end(state)
        value, (g, free) = abs(state.value), self.optimizer.reduced(state)
        eps = epsilon(state.params)
        # The decrease along -g is less than any method could expect, for two gradients' price.
        curved = float(g @ self._times(state.params, g))
        x = to_host(state.params)
        least = 0.5 * float(g @ g) * float(g @ g) / curved if curved > 0 else math.inf
        short = curved > 0 and self._is_rounding(x, (g @ g) / curved * g, eps)
        if not (least <= eps * value or short):
            return Verdict(None)
        found = self._look(state.params, x, g, free)
        if found is None or found.is_concave:
            return Verdict(None)
        if found.gain <= eps * value or self._is_rounding(x[free], found.step, eps):
            return Verdict(Status.CONVERGED, self._to_rounding(state), found.gain)
        return Verdict(None)

    def on_claim(self, state: Any) -> Verdict:
        """Return the verdict on a gradient that has become small."""
        if state.optimality > self.goal:
            return Verdict(None)
        return self._verdict(state, at_end=False)

    def at_end(self, state: Any) -> Verdict:
        """Return the verdict on a point that the method cannot improve."""
        return self._verdict(state, at_end=True)

    def _verdict(self, state: Any, at_end: bool) -> Verdict:
        x, (g, free) = to_host(state.params), self.optimizer.reduced(state)
        eps, value = epsilon(state.params), abs(state.value)
        found, noise = (
            self._look(state.params, x, g, free),
            NOISE * self.objective.epsilon(state.params) * value,
        )
        if found is None:
            status = Status.NO_PROGRESS if at_end and g.any() else Status.CONVERGED
            return Verdict(status, "the second derivative of the loss is not finite here.")
        reference = self._reference(state, x, noise)
        if at_end or not g.any():
            fallen = self._falls(state, x, free, found, max(reference, noise, eps), noise)
            if fallen is not None:
                return fallen
        if not found.is_concave:
            if found.gain <= self.tol**2 * reference:
                return Verdict(Status.CONVERGED, self._doubt(found), found.gain)
            if at_end or found.gain <= _LEAST_GAIN * reference:
                noise = max(noise, NOISE * self._noise(state, x))
                if found.gain <= noise or self._is_rounding(x[free], found.step, eps):
                    return Verdict(Status.CONVERGED, self._to_rounding(state), found.gain)
        if at_end:
            return self._stuck(state, x, found, noise)
        wanted = self.tol * math.sqrt(reference / found.gain) if found.gain > 0 else 0.0
        self.goal = state.optimality * min(max(wanted, 1e-3), 1 - _LEAST_DROP)
        return Verdict(None)

    def _look(self, params: Tree, x: np.ndarray, g: np.ndarray, free: np.ndarray) -> Any:
        """Return the curvature of the free parameters; None if it is not finite."""
        eps = epsilon(params)
        if len(x) > _curvature.DENSE:
            vector = np.zeros_like(x)

            def times(part: np.ndarray) -> np.ndarray:
                vector[free] = part
                return self._times(params, vector)[free]

            return _curvature.of_products(times, g[free], eps)
        hessian = getattr(self.optimizer, "hessian", None)  # that of Newton, if given
        matrix = to_numpy(self.objective.hessian(params, hessian))
        free = free & np.isfinite(np.diag(matrix))
        matrix = matrix[np.ix_(free, free)]
        if not (free.any() and np.isfinite(matrix).all()):
            return None
        return _curvature.of_matrix(matrix, g[free], eps)

    def _times(self, params: Tree, vector: np.ndarray) -> np.ndarray:
        return to_host(self.objective.product(params, from_host(vector, params)))

    def _reference(self, state: Any, x: np.ndarray, noise: float) -> float:
        """Return the drop of the loss so far, or that of the quadratic model if it is less.

        A start so far off that the loss there says nothing about a minimum would pass anything.
        """
        way = x - self.start.x
        if not way.any():
            return 0.0
        g = to_host(state.grad)
        model = abs(float(g @ way)) + 0.5 * abs(float(way @ self._times(state.params, way)))
        # A large constant in the loss hides the drop.
        return min(max(self.start.value - state.value, noise), model)

    def _falls(
        self,
        state: Any,
        x: np.ndarray,
        free: np.ndarray,
        found: Curvature,
        reference: float,
        noise: float,
    ) -> Verdict | None:
        """Return SADDLE or FLAT if the loss around x shows that, else None."""
        if not self.optimizer.loss_alone:
            return None
        way = np.zeros_like(x)

        def change(direction: np.ndarray, length: float) -> tuple[float, bool]:
            way[free] = length * direction
            value, steep = self._at(state.params, x + way)
            return value - state.value, steep

        if found.is_concave:
            noise = max(noise, NOISE * self._noise(state, x))
            curvature, direction = -found.values[0], found.directions[0]
            for drop in np.geomspace(reference, max(noise, 1e-12 * reference), 7).tolist():
                length = math.sqrt(2 * drop / curvature)
                if min(change(direction, sign * length)[0] for sign in (-1, 1)) < -noise:
                    return Verdict(Status.SADDLE)
            return None
        if found.gain > noise:
            return None
        size = np.maximum(np.abs(x), np.abs(x - self.start.x))[free]
        size = np.where(size > 0, size, 1.0)
        seen = []
        for direction in found.flat[:_FLAT_DIRECTIONS]:
            unit = direction / np.max(np.abs(direction) / size)
            seen += [change(unit, sign * s) for s in (1e-3, 1e-2, 1e-1) for sign in (-1, 1)]
        changes = np.array([entry[0] for entry in seen])
        if (changes < -noise).any():
            return Verdict(Status.SADDLE, "the loss falls along a direction without curvature.")
        if not found.is_zero or not seen:
            return None
        if not (changes > noise).any():
            return Verdict(Status.FLAT)
        if not any(steep for _, steep in seen):
            steps = "the loss changes in steps (round, a threshold, an argmax, a count)"
            return Verdict(Status.FLAT, f"{steps}, and its gradient is zero wherever it has one.")
        return None

    def _at(self, params: Tree, x: np.ndarray) -> tuple[float, bool]:
        """Return the loss at x, not counted, and whether its gradient there is not zero."""
        value, grad = self.objective.value_and_grad(from_host(x, params))
        self.objective.evaluations -= 1
        value, largest = read(value, largest_entry(grad))
        return (value if math.isfinite(value) else math.inf), largest != 0

    def _is_rounding(self, x: np.ndarray, step: np.ndarray, eps: float) -> bool:
        """Whether a step moves no parameter by more than a few roundings."""
        return bool((np.abs(step) <= _ULPS * eps * np.abs(x)).all())

    def _stuck(self, state: Any, x: np.ndarray, found: Curvature, noise: float) -> Verdict:
        """Return NO_PROGRESS with its reason; None if the loss is noisier than was known."""
        assumed = NOISE * self.objective.epsilon(state.params) * abs(state.value)
        if noise > _NOISIER * assumed:
            self.objective.noise = noise / (NOISE * abs(state.value))
            return Verdict(None)
        if found.is_concave:
            reason = "the loss curves down here, but its rounding hides how far it falls."
        elif found.values[0] <= found.rounding * found.values[-1]:
            reason = "some combination of the parameters hardly changes the loss. Scale them."
        else:
            reason = (
                f"a Newton step would lower the loss by {found.gain:.2g}, more than its rounding "
                f"({noise:.1g}), but no step of this method does."
            )
        return Verdict(Status.NO_PROGRESS, reason, found.gain)

    def _noise(self, state: Any, x: np.ndarray) -> float:
        """Return the standard deviation of the rounding error of the loss at x.

        From its fourth differences over steps of some roundings (Moré and Wild 2011, "Estimating
        computational noise", equation 2.4).
        """
        signs = np.where(np.random.default_rng(0).random(len(x)) < 0.5, -1.0, 1.0)
        spacing = 8 * epsilon(state.params) * np.where(x == 0, np.abs(x).max() or 1.0, x) * signs
        if self._noise_at is state.params:
            return self._last_noise
        values = [self._at(state.params, x + k * spacing)[0] for k in range(-4, 5)]
        known = np.isfinite(values).all()
        spread = float(np.sqrt(np.mean(np.diff(values, 4) ** 2) / 70)) if known else 0.0
        self._noise_at, self._last_noise = state.params, spread
        return spread

    def _to_rounding(self, state: Any) -> str:
        return f"to the rounding of {dtype_name(working_dtype(state.params))}."

    def _doubt(self, found: Curvature) -> str:
        if found.whole:
            return ""
        return "as far as some Hessian-vector products show."
