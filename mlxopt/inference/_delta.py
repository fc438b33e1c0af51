"""The delta method: a covariance carried through a function by its derivative."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from mlxopt._checks import describe_type
from mlxopt._dense import eigen
from mlxopt._report import entry_names
from mlxopt._tree import Tree, to_host, widened
from mlxopt.autodiff import jacobian
from mlxopt.autodiff._arguments import as_data
from mlxopt.autodiff._guards import check_is_callable, name_of
from mlxopt.inference._estimates import Estimates


def delta(
    function: Callable[..., Tree], estimates: Estimates, *data: Any, compile: bool = True
) -> Estimates:
    """Return a function of estimates with its covariance J V Jᵀ.

    V is the covariance of the estimates and J the Jacobian of the function there. An entry with a
    derivative of zero (a constant, or a function at its own minimum) has a standard error of 0.

    Args:
        function: a function `(params, *data)` made of MLX operations that returns an array or a
            tree of arrays: predictions, a ratio, a variance from its logarithm.
        estimates: from `covariance` or `delta`.
        *data: arguments of the function after its parameters, converted to float64.
        compile: False for a function that branches on values, as in `value_and_grad`.

    Returns:
        `Estimates` of the values of the function, named after it.

    Raises:
        TapeError, TypeError: an argument is not as described.
        ValueError: the function or its derivative is not finite at the estimates.

    >>> import mlx.core as mx, mlxopt as mo
    >>> nll = lambda log_rate, y: mx.exp(log_rate) * y - log_rate  # of an exponential distribution
    >>> y = mx.array([1.0, 2.0, 6.0])
    >>> fit = mo.inference.covariance(nll, mx.log(mx.array(1 / 3)), y)
    >>> def mean_time(log_rate):
    ...     return mx.exp(-log_rate)
    >>> mo.inference.delta(mean_time, fit)  # mean / √n
    Estimates (inverse of the observed information; 3 examples)
               estimate  std. error       95 % interval
    mean_time         3       1.732  -0.39476 to 6.3948
    """
    check_is_callable(function)
    if not isinstance(estimates, Estimates):
        hint = "It comes second: delta(function, estimates, *data)."
        raise TypeError(f"estimates is {describe_type(estimates)}; expected Estimates. {hint}")
    with mx.stream(mx.cpu):
        arguments = estimates.values, *widened(as_data(data, estimates.values, function))
        matrix = np.array(jacobian(function, flat=True, compile=compile)(*arguments))
        values = widened(function(*arguments))
        mx.eval(values)
    names = entry_names(name_of(function).replace("<lambda>", "function"), values)
    for what, rows in ("value", to_host(values)[:, None]), ("derivative", matrix):
        wrong = ~np.isfinite(rows).all(axis=1)
        if wrong.any():
            where = names[wrong.argmax()]
            raise ValueError(f"the {what} of {where} is NaN or infinite at the estimates.")
    # By a root of the covariance: no variance is negative by rounding.
    spread = matrix.astype(np.float64) @ eigen(estimates.covariance).root()
    return dataclasses.replace(estimates, values=values, names=names, covariance=spread @ spread.T)
