"""A run of `minimize` over data that stay outside MLX."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, cast

import mlx.core as mx
import numpy as np

from mlxopt._minimize import minimize
from mlxopt._result import Result
from mlxopt._status import ConvergenceWarning, Status
from mlxopt._stop import Progress, StopRule
from mlxopt.optimizers import LBFGS, SGD, Momentum, Newton, Optimizer

_LEAST_TOL = 1e-6  # in float32, of the gradient of a mean loss in scaled columns


def run(
    evaluate: Callable[[np.ndarray], tuple[float, np.ndarray]],
    hessian: Callable[[np.ndarray], np.ndarray],
    start: np.ndarray,
    optimizer: Optimizer[Any],
    tol: float,
    max_steps: int,
    precision: str,
) -> Result:
    """Return the result of `minimize`, without its warnings: the model judges and words its own.

    The data stay outside MLX: they are read in blocks and summed in float64, in which MLX on a CPU
    has neither exact functions nor room to spare. MLX sees a loss with its derivatives.

    Args:
        evaluate: returns value and gradient, (k,), at a point, (k,), all arrays float64.
        hessian: returns the second derivative, (k, k), at a point.
        start: (k,).
        optimizer: any of mlxopt's.
        tol: on the gradient, at least 1e-6 in float32.
        max_steps: at most.
        precision: "float32" rounds parameters, value and gradient, and leaves the optimizer on the
            default device; else all is float64.

    Raises:
        KeyboardInterrupt: Ctrl-C, which `minimize` answers with its last point. Half a fit is none.
    """
    dtype = mx.float64
    if precision == "float32":
        dtype, tol = mx.float32, max(tol, _LEAST_TOL)

    def array(values: Any) -> mx.array:
        return mx.array(values, dtype=dtype)

    def point(params: mx.array) -> np.ndarray:
        return np.array(params, dtype=np.float64)

    @functools.lru_cache(maxsize=1)  # the gradient is asked for after the value, at one point
    def at(place: bytes) -> tuple[float, np.ndarray]:
        return evaluate(np.frombuffer(place))

    @mx.custom_function
    def loss(params: mx.array) -> mx.array:
        return array(at(point(params).tobytes())[0])

    @mx.custom_function
    def gradient(params: mx.array) -> mx.array:
        return array(at(point(params).tobytes())[1])

    @loss.vjp
    def _(params: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
        return cotangent * cast(mx.array, gradient(params))

    @gradient.vjp
    def _(params: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
        return array(hessian(point(params))) @ cotangent

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        result = minimize(
            cast(Callable[..., mx.array], loss),
            array(start),
            optimizer,
            tol=_NO_CLAIM,
            max_steps=max_steps,
            stop=_Gradient(tol),
            progress=False,
            compile=False,
        )
    if result.status is Status.INTERRUPTED:
        raise KeyboardInterrupt
    return dataclasses.replace(result, certify=None)  # which would keep hold of the data


_NO_CLAIM = 1e-300  # a relative tolerance that nothing meets


@dataclasses.dataclass(frozen=True)
class _Gradient(StopRule):
    """The largest entry of the gradient, of a mean loss of scaled columns, is at most `tol`."""

    tol: float
    status: ClassVar[Status] = Status.CONVERGED

    def check(self, progress: Progress) -> Any:
        return progress.optimality <= self.tol


def optimizer_for(
    solver: Any, curvature: float, hessian: Callable[[np.ndarray], np.ndarray]
) -> Optimizer[Any]:
    """Return the optimizer that a solver's name stands for; an optimizer stands for itself.

    Args:
        solver: a name or an optimizer.
        curvature: the largest eigenvalue that the Hessian can have; 1/curvature is the longest
            step with which gradient descent is sure to descend.
        hessian: as in `run`, for Newton's method.
    """
    if isinstance(solver, Optimizer):
        return solver

    def structured(params: mx.array) -> mx.array:
        return mx.array(hessian(np.array(params, dtype=np.float64)), dtype=mx.float64)

    rate = 1.0 / curvature if curvature > 0 else 1.0
    return {
        "newton": Newton(hessian=structured),
        "lbfgs": LBFGS(),
        "momentum": Momentum(rate, momentum=0.9, nesterov=True),
        "sgd": SGD(rate),
    }[solver]
