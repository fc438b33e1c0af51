"""Covariance matrices of estimates: observed information, the sandwich, the sandwich by cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from mlxopt._checks import check_choice
from mlxopt._dense import eigen
from mlxopt._report import combination
from mlxopt._status import warn
from mlxopt.inference._estimates import Estimates
from mlxopt.inference._likelihood import Likelihood
from mlxopt.linalg import LinAlgError

# The corrections of each kind, the default first.
_CORRECTIONS: dict[str, tuple[str | None, ...]] = {
    "observed": (None,),
    "sandwich": ("HC0", "HC1"),
    "cluster": ("CR1", "CR0", "CR1S"),
}
# An eigenvalue of the scaled Hessian below this, times p, would leave less than two digits.
_SINGULAR = 1e-13
_CLOSE = 0.01  # standard errors: the largest computational error without a warning
_IS_IT = "Is this the function that was minimized, and did the run converge?"


def covariance(
    negative_log_likelihood: Callable[..., mx.array],
    result: Any,
    *data: Any,
    kind: str = "observed",
    correction: str | None = None,
    clusters: Any = None,
    total: bool = False,
    compile: bool = True,
) -> Estimates:
    r"""Return the estimates of a fit with their covariance matrix.

    With nᵢ(θ) the negative log-likelihood of example i, H = Σ ∇²nᵢ and sᵢ = ∇nᵢ at the estimate:

    - "observed": H⁻¹, the inverse of the observed information: right if the model is.
    - "sandwich": H⁻¹ (Σ sᵢ sᵢᵀ) H⁻¹, right for independent examples also under another distribution
      than the model's (Huber 1967; White 1980, 1982). A factor on all nᵢ cancels, so any loss by
      example will do.
    - "cluster": H⁻¹ (Σ_g s_g s_gᵀ) H⁻¹, where s_g sums the scores of a cluster, whose examples can
      depend on each other (Liang and Zeger 1986).

    MLX's own exp, sigmoid and erf keep 6 digits in float64, those of `mlxopt.special` and
    `mlxopt.losses` all.

    Args:
        negative_log_likelihood: a function `(params, *data)` made of MLX operations. It returns one
            value for each example, shape (n,), or their sum, shape (); a mean is refused, as its
            curvature on parts of the data shows. Constants can be left out; the scale cannot, for
            "observed": ½r² is the negative log-likelihood of normal noise of variance 1.
        result: a `Result` of `minimize` for this function's sum or mean over the same data; or a
            tree of parameters.
        *data: arguments of the function after its parameters, converted to float64.
        kind: "observed", "sandwich" or "cluster".
        correction: a factor for small samples of n examples, p parameters and G clusters.
            For "sandwich" `"HC0"`: 1 (the default, as in R's sandwich and statsmodels), or
            `"HC1"`: n / (n - p). For "cluster" `"CR1"`: G / (G - 1) (the default, as in R's vcovCL
            for a glm and in Stata's for a likelihood), `"CR0"`: 1, or `"CR1S"`:
            G / (G - 1) · (n - 1) / (n - p) (R's for an lm, and statsmodels').
        clusters: for "cluster", the cluster of each example, n labels: numbers or texts.
        total: one number is that of all the data together. Needed for dependent examples (a time
            series), for a penalty inside it, and for data that are not passed as arguments.
        compile: False for a function that branches on values, as in `value_and_grad`.

    Returns:
        `Estimates`: names, estimates, covariance and standard errors; it prints as a table.

    Raises:
        LinAlgError: the Hessian is not positive definite; the message names the parameters.
        TapeError, TypeError, ValueError: an argument is not as described, or something is not
            finite.

    Warns:
        ConvergenceWarning: the run failed; or a Newton step from the estimate, computed in float64,
            is over 1 % of a standard error.

    >>> import mlx.core as mx, mlxopt as mo
    >>> def nll(params, x, y):  # of a Poisson distribution of mean exp(a + b x)
    ...     log_mean = params["a"] + params["b"] * x
    ...     return mx.exp(log_mean) - y * log_mean
    >>> x, y = [0.0, 1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 4.0, 7.0, 9.0]
    >>> start = {"a": mx.array(0.0), "b": mx.array(0.0)}
    >>> result = mo.minimize(lambda *args: mx.mean(nll(*args)), start, mo.Newton(), x, y)
    >>> mo.inference.covariance(nll, result, x, y)
    Estimates (inverse of the observed information; 5 examples)
                 estimate  std. error       95 % interval
    params['a']  0.357749       0.528  -0.67715 to 1.3926
    params['b']  0.475982      0.1691  0.14465 to 0.80732
    """
    correction = _check_kind(kind, correction, clusters)
    likelihood = Likelihood(negative_log_likelihood, result, data, total, compile)
    inverse, condition = invert(likelihood)
    matrix, groups, notes = inverse, None, ()
    if kind != "observed":
        scores, p = _scores(likelihood, kind), len(matrix)
        n = len(scores)
        if kind == "cluster":
            scores = _sum_by_cluster(scores, clusters)
            groups = len(scores)
            if groups <= p:
                few = f"{groups} clusters for {p} parameters: standard errors are too small here"
                notes = (f"{few}. They need more clusters, some tens at least.",)
        bread = scores @ inverse  # (n or G, p)
        matrix = _factor(correction, n, p, groups or 0) * (bread.T @ bread)
    distance = check_is_minimum(likelihood, inverse, np.sqrt(np.diag(matrix)))
    values, names, n = likelihood.params, likelihood.names, likelihood.examples
    return Estimates(values, names, matrix, kind, correction, n, groups, distance, condition, notes)


def invert(likelihood: Likelihood) -> tuple[np.ndarray, float]:
    """Return the inverse of the Hessian at the estimate, and its scaled condition number."""
    hessian, names = likelihood.hessian(likelihood.theta), likelihood.names
    if not np.isfinite(hessian).all():
        row, column = np.argwhere(~np.isfinite(hessian))[0]
        where = f"in {names[row]} and {names[column]} is {hessian[row, column]}"
        raise ValueError(
            f"the second derivative of the negative log-likelihood {where}: an operation has no "
            f"finite derivative (sqrt at 0; mx.where, in the branch not taken)."
        )
    for name, curvature, row in zip(names, np.diag(hessian), hessian, strict=True):
        if not row.any():
            raise LinAlgError(
                f"the negative log-likelihood does not change with {name}, so the data do not "
                f"determine it. Take it out of params, or hold it fixed among the data."
            )
        if curvature <= 0:
            raise LinAlgError(
                f"the negative log-likelihood does not curve upwards in {name} (its second "
                f"derivative is {curvature:.3g}): this is no minimum. {_IS_IT}"
            )
    found = eigen(hessian)
    lowest = found.values[0]
    if lowest <= _SINGULAR * len(names):
        # Small terms are left out, whatever the units of the parameters.
        weights = np.where(np.abs(found.vectors[:, 0]) > 1e-3, found.direction(0), 0.0)
        direction = combination(weights, names)
        raise LinAlgError(
            f"the negative log-likelihood curves downwards along {direction}: a saddle or a "
            f"maximum, with no standard errors. {_IS_IT}"
            if lowest < -1e-8
            else f"the data do not determine {direction}: along it the negative log-likelihood is "
            f"flat (its scaled curvature is {lowest:.1e}), so the parameters are not identified. "
            f"Take out or fix one of them, or add data that tell them apart."
        )
    half = found.inverse_root()
    return half @ half.T, float(found.values[-1] / lowest)


def check_is_minimum(likelihood: Likelihood, inverse: np.ndarray, errors: np.ndarray) -> float:
    """Return the largest entry of a Newton step, in standard errors; warn if it is large."""
    _, gradient = likelihood.value_and_grad(likelihood.theta)
    step = np.abs(inverse @ gradient)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(step == 0, 0.0, step / errors)
    distance, worst = float(ratio.max()), likelihood.names[int(ratio.argmax())]
    moves = f"a Newton step in float64 would move {worst} by {distance:.2g} standard errors"
    status = likelihood.status
    if status is not None and status.is_failure:
        warn(
            f"standard errors hold at a minimum only, and {moves}; the run ended {status.name}: "
            f"{status.value}"
        )
    elif not distance <= _CLOSE:
        warn(
            f"{moves}: the parameters are not close enough to a minimum. Continue in float64. Is "
            f"this function the one that was minimized, on these data, without penalty or bounds?"
        )
    return distance


def _check_kind(kind: str, correction: str | None, clusters: Any) -> str | None:
    """Return the correction, the default one for None."""
    allowed = _CORRECTIONS[check_choice(kind, "kind", _CORRECTIONS)]
    if correction is not None and correction not in allowed:
        raise ValueError(
            f"correction is {correction!r}; expected {' or '.join(map(repr, allowed))} for "
            f"kind={kind!r}. (HC2 and HC3, by leverage, belong to linear regression.)"
        )
    if kind == "cluster" and clusters is None:
        raise ValueError("kind='cluster' needs clusters=, a label for each example.")
    if kind != "cluster" and clusters is not None:
        raise ValueError(f"clusters are given, but kind is {kind!r}; expected kind='cluster'.")
    return allowed[0] if correction is None else correction


def _scores(likelihood: Likelihood, kind: str) -> np.ndarray:
    """Return the scores of the examples, (n, p)."""
    if likelihood.examples is None:
        raise ValueError(f"kind={kind!r} needs a value for each example, (n,). Leave out the sum.")
    scores = likelihood.scores()
    if not np.isfinite(scores).all():
        example, entry = np.argwhere(~np.isfinite(scores))[0]
        where = f"of example {example} in {likelihood.names[entry]}"
        raise ValueError(f"the derivative {where} is {scores[example, entry]}; expected a number.")
    return scores


def _sum_by_cluster(scores: np.ndarray, clusters: Any) -> np.ndarray:
    """Return the sums of the scores of each cluster, (G, p)."""
    labels, n = np.asarray(clusters), len(scores)
    if labels.shape != (n,):
        raise ValueError(f"clusters has shape {labels.shape}; expected ({n},), as the examples.")
    missing = np.array([label is None or label != label for label in labels.tolist()])
    if missing.any():
        raise ValueError(f"clusters has no label for example {missing.argmax()}: it is NaN.")
    known, numbers = np.unique(labels, return_inverse=True)
    if len(known) < 2:
        raise ValueError("all examples are in one cluster; expected two clusters at least.")
    return np.stack([np.bincount(numbers, weights=column) for column in scores.T], axis=1)


def _factor(correction: str | None, n: int, p: int, groups: int) -> float:
    """Return the factor of a small-sample correction."""
    factor = groups / (groups - 1) if correction in ("CR1", "CR1S") else 1.0
    if correction not in ("HC1", "CR1S"):
        return factor
    if n <= p:
        raise ValueError(f"{correction} needs more examples than parameters; got {n} and {p}.")
    return factor * (n if correction == "HC1" else n - 1) / (n - p)
