"""The end of a run, and the loss around it.

Everything here is about one point: its curvature, the drop of the loss on the way there, the noise
of the loss, and what the loss does along the directions that matter.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt import _curvature
from mlxopt._around import Verdict, steps_down, still_falls
from mlxopt._curvature import Curvature, drop_so_far, noise_of, points_around, to_rounding
from mlxopt._objective import Objective
from mlxopt._report import entry_names
from mlxopt._status import Status
from mlxopt._tree import (
    EPSILON,
    Tree,
    epsilon,
    from_host,
    leaves,
    read,
    to_host,
    to_numpy,
    widened,
    working_dtype,
)
from mlxopt.autodiff._guards import NoDerivativeError

NOISE = 10.0  # roundings in a value of the loss, a mean over examples
UNKNOWN = 1e-3  # of the drop so far, in a gain that rounding hides
_FAR = 1e3  # roundings of a parameter
_MOST_NOISE = 0.01  # of the loss, or of its drop so far
_NOISIER = 4.0  # times the assumed noise, from which on a run goes on with the measured one
_LEAST_GAIN_AFAR = 1e-4  # the least share of the quadratic model's drop of a step to infinity
LEAST_GAIN = 1e-4  # the share of the drop so far below which rounding may end a run
_LARGE = 2**15  # numbers in the data from which on sums in float32 are checked in float64
_DECISIVE = 0.01  # the share of the loss of one row that the sum over all may still fall


class Start(NamedTuple):
    """Where the whole run began."""

    x: np.ndarray  # (p,)
    value: float


class Point:
    """The end of a run, with the loss around it as a function of the free parameters.

    Vectors have shape (q,), q the number of parameters that are free to move and whose second
    derivative is finite.
    """

    def __init__(self, judge: Any, state: Any) -> None:
        self.judge, self.objective, self.state = judge, judge.objective, state
        self.x = to_host(state.params)
        self.full, self.free = judge.optimizer.reduced(state)
        self.eps = epsilon(state.params)
        self.way = self.x - judge.start.x
        self.assumed_noise = NOISE * self.objective.epsilon(state.params) * abs(state.value)
        self._noise: float | None = None

    @functools.cached_property
    def arrays(self) -> list[mx.array]:
        """The arrays among the data."""
        return [leaf for leaf in leaves(self.objective.data) if isinstance(leaf, mx.array)]

    @property
    def size(self) -> np.ndarray:
        """The size of each parameter: of its value, or of its way if that is larger."""
        return np.maximum(np.abs(self.x), np.abs(self.way))[self.free]

    @property
    def reach(self) -> np.ndarray:
        """The size of each parameter, one where it is zero."""
        return np.where(self.size > 0, self.size, 1.0)

    @property
    def free_x(self) -> np.ndarray:
        return self.x[self.free]

    @property
    def gradient(self) -> np.ndarray:
        return self.full[self.free]

    @property
    def names(self) -> list[str]:
        """The name of each parameter."""
        names = entry_names("params", self.state.params)
        return [names[i] for i in np.flatnonzero(self.free)]

    def times(self, part: np.ndarray) -> np.ndarray:
        """Return the Hessian of the free parameters times a vector."""
        return self._times(self._all(part))[self.free]

    def look(self) -> Curvature | None:
        """Return the curvature; None if no second derivative is finite."""
        if len(self.x) > _curvature.DENSE:
            return _curvature.of_products(self.times, self.gradient, self.eps)
        hessian = getattr(self.judge.optimizer, "hessian", None)  # that of Newton, if given
        try:
            matrix = to_numpy(self.objective.hessian(self.state.params, hessian))
        except NoDerivativeError:
            return _curvature.of_products(self.times, self.gradient, self.eps)
        held = self.free & ~np.isfinite(np.diag(matrix))
        self.free = self.free & ~held
        matrix = matrix[np.ix_(self.free, self.free)]
        if not np.isfinite(matrix).all() or (held.any() and not self.free.any()):
            return None
        found = _curvature.of_matrix(matrix, self.gradient, self.eps)
        if found.may_be_concave and not found.is_concave and self.eps > EPSILON[mx.float64]:
            wide = self._wide_hessian()[np.ix_(self.free, self.free)]
            if np.isfinite(wide).all():
                return _curvature.of_matrix(wide, self.gradient, EPSILON[mx.float64])
        return found

    def drop(self) -> float:
        """Return the drop of the loss so far."""
        if not self.way.any():
            return 0.0
        drop, along = self.judge.start.value - self.state.value, to_host(self.state.grad) @ self.way
        curved = self.way @ self._times(self.way)
        return float(drop_so_far(drop, along, curved, self.assumed_noise))

    def is_at_infinity(self, found: Curvature, tol: float) -> bool:
        """Whether the loss has all but reached its infimum, though the Newton step is long.

        Slope and curvature then vanish together, as for separated classes.
        """
        fallen = self.judge.start.value - self.state.value
        return found.gain <= tol**2 * fallen and found.gain >= _LEAST_GAIN_AFAR * self.drop()

    def leaves(self, found: Curvature) -> bool:
        """Whether the gradient leads away from a saddle."""
        along = float(found.directions[0] @ self.gradient)
        return 0.5 * along**2 > self.eps * self.assumed_noise * -found.values[0]

    def noise(self, roundings: float = NOISE) -> float:
        """Return the rounding error of the loss, measured: `roundings` standard deviations.

        For sums over large data in float32, whose errors change slowly, at least the difference
        from the loss in float64.
        """
        if self._noise is None:
            self._noise = self.spread(np.zeros_like(self.size))
            if self.is_large():
                self._noise = max(self._noise, abs(self._exact[0] - self.state.value) / NOISE)
        return roundings * max(self.assumed_noise / NOISE, self._noise)

    def spread(self, step: np.ndarray) -> float:
        """Return the standard deviation of the rounding error of the loss a step away."""
        found = 0.0
        # Some operations compute in float32 whatever they are given.
        for eps in {self.eps, max(self.eps, EPSILON[mx.float32])}:
            steps = points_around(step, self.size, eps)
            found = max(found, float(noise_of(np.array([self.change(s)[0] for s in steps]))))
        return found

    def gradient_error(self) -> np.ndarray:
        """Return the change of the gradient by a change of the parameters by a rounding."""
        step = points_around(np.zeros_like(self.size), self.size, self.eps)[5] / 8
        _, grad = self._evaluate(from_host(self.x + self._all(step), self.state.params))
        return (to_host(grad) - to_host(self.state.grad))[self.free]

    def exact_gradient(self) -> np.ndarray | None:
        """Return the gradient in float64 if that in float32 is mostly rounding, else None."""
        if self.eps <= EPSILON[mx.float64] or not self.judge.optimizer.loss_alone:
            return None
        exact, g = self._exact[1][self.free], self.gradient
        return exact if np.linalg.norm(exact - g) > 0.5 * np.linalg.norm(g) else None

    def allow_for_noise(self) -> bool:
        """Tell the method of noise above the rounding of the dtype; return whether there is."""
        noisier = self.noise() > _NOISIER * self.assumed_noise > 0
        # Beside a pole the loss itself changes as much as it has ever done.
        value = self.state.value
        most = _MOST_NOISE * max(abs(value), abs(self.judge.start.value - value))
        if noisier := noisier and self.noise() <= most:
            self.objective.noise = self.noise() / (NOISE * abs(self.state.value))
        return noisier

    def converged(self, found: Curvature, reason: str | None = None) -> Verdict:
        """Return CONVERGED, unless there is a gain that matters.

        The derivatives may not know of it, and the rounding of the loss may hide it: in float32
        sums over large data, and where a rounding of the parameters changes the gradient as if it
        were far from a minimum.
        """
        if unseen := still_falls(self) or steps_down(self):
            return unseen
        if reason is None:
            reason = to_rounding(self.state.params)
            drop = self.drop()
            unknown = max(found.gain, found.gain_of(self.gradient_error()))
            # A start some roundings away has had nothing to lose.
            far = (np.abs(self.way) > _FAR * self.eps * np.abs(self.x)).any()
            if far and drop > self.assumed_noise and unknown > UNKNOWN * drop:
                return Verdict(
                    Status.NO_PROGRESS,
                    f"a rounding of the parameters decides the gradient here, and the loss could "
                    f"be {unknown:.2g} lower: it may have no minimum. A variance that goes to "
                    f"zero with a perfect fit does that. Bound or penalize it.",
                    unknown,
                )
        if self.is_large():
            value, gradient = self._exact
            gain = found.gain_of(gradient[self.free])
            rows = max((leaf.shape[0] for leaf in self.arrays if leaf.ndim), default=1)
            if gain > max(self.judge.tol**2 * self.drop(), _DECISIVE * abs(value) / rows):
                return Verdict(
                    Status.NO_PROGRESS,
                    f"sums over {rows:,} rows in float32 are off by so much that the loss could "
                    f"be {gain:.2g} lower: its gradient in float64 is not zero here. Use "
                    f'finish="float64", or mo.losses.mean.',
                    gain,
                )
            found = found._replace(gain=gain)
        if not (found.whole or reason):
            reason = "as far as some products with the Hessian show."
        return Verdict(Status.CONVERGED, reason, found.gain)

    def _all(self, part: np.ndarray) -> np.ndarray:
        vector = np.zeros_like(self.x)
        vector[self.free] = part
        return vector

    def _times(self, vector: np.ndarray) -> np.ndarray:
        return self.objective.times(self.state.params, vector)

    def change(self, step: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the change of the loss by a step, and its gradient there; infinity if it raises.

        The run may not have gone there, and the loss not be defined.
        """
        optimizer = self.judge.optimizer
        point = optimizer.nearest(from_host(self.x + self._all(step), self.state.params))
        try:
            value, grad = self._evaluate(point)
            number = read(value)[0] + optimizer.penalty_of(point)
        except Exception:  # of any kind: a loss of the user
            return math.inf, np.zeros_like(step)
        change = number - self.state.value if math.isfinite(number) else math.inf
        return change, to_host(grad)[self.free]

    def _evaluate(self, params: Tree) -> tuple[mx.array, Tree]:
        """Return the loss and its gradient; only those of the method are counted."""
        evaluations = self.objective.evaluations
        try:
            return self.objective.value_and_grad(params)
        finally:
            self.objective.evaluations = evaluations

    def is_large(self) -> bool:
        """Whether float32 sums over these data have to be checked in float64."""
        if working_dtype(self.state.params) == mx.float64:
            return False
        return max((leaf.size for leaf in self.arrays), default=0) >= _LARGE

    def _wide_hessian(self) -> np.ndarray:
        """Return the Hessian of the loss in float64, (p, p)."""
        with mx.stream(mx.cpu):
            params, data = widened(self.state.params), widened(self.objective.data)
            return to_numpy(Objective(self.objective.loss, data, compile=False).hessian(params))

    @functools.cached_property
    def _exact(self) -> tuple[float, np.ndarray]:
        """The loss and its gradient, (p,), in float64."""
        with mx.stream(mx.cpu):
            both = mx.value_and_grad(self.objective.loss)
            value, grad = both(widened(self.state.params), *widened(self.objective.data))
            return read(value)[0], to_host(grad)
