"""Covariance matrices of estimates: observed information, the sandwich, the sandwich by cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt._checks import check_choice
from mlxopt._dense import eigen
from mlxopt._status import Status, warn
from mlxopt.inference._estimates import Estimates
from mlxopt.inference._likelihood import Likelihood
from mlxopt.linalg import LinAlgError

# The corrections of each kind, the default one first.
_CORRECTIONS: dict[str, tuple[str | None, ...]] = {
    "observed": (None,),
    "sandwich": ("HC0", "HC1"),
    "cluster": ("CR1", "CR0", "CR1S"),
}

# Below this an eigenvalue of the scaled Hessian, times p, is rounding: an entry is good to some
# 1e-15, so that the covariance would keep less than two digits.
_SINGULAR = 1e-13

# The computational error that may be left, in standard errors.
CLOSE = 0.01


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

    - "observed": H⁻¹, the inverse of the observed information. Right if the model is.
    - "sandwich": H⁻¹ (Σ sᵢ sᵢᵀ) H⁻¹, right for independent examples also where the distribution is
      not the one that the likelihood supposes (Huber 1967; White 1980, 1982). It does not change
      if all nᵢ are multiplied by a number, so that any loss by example will do.
    - "cluster": H⁻¹ (Σ_g s_g s_gᵀ) H⁻¹, where s_g sums the scores of a cluster's examples, which
      may depend on each other (Liang and Zeger 1986).

    All is computed in float64 on the CPU, whatever the fit was computed in: parameters and data are
    converted first. MLX's own exp, sigmoid and erf keep 6 digits there, those of `mlxopt.special`
    and `mlxopt.losses` all.

    Args:
        negative_log_likelihood: a function `(params, *data)` made of MLX operations. It returns one
            value for each example, shape (n,); they are summed here, so that nothing is left to go
            wrong by a factor of n. Or one number for all the data, shape (): a sum over examples is
            told from a mean by its curvature on parts of the data (the arrays in `data`, by their
            first axis), and a mean is refused. Constants may be left out; the scale may not, for
            "observed": ½r² is the negative log-likelihood of normal noise of variance 1.
        result: what `minimize` returned, of this function's sum or mean over the same data; or a
            tree of parameters.
        *data: what the function takes after its parameters. NumPy's float64 arrays are used as they
            are.
        kind: "observed", "sandwich" or "cluster".
        correction: a factor on the sandwich for small samples, n examples, p parameters and G
            clusters. For "sandwich" `"HC0"`: 1 (the default, as in R's sandwich and
            statsmodels), or `"HC1"`: n / (n - p). For "cluster" `"CR1"`: G / (G - 1) (the default,
            as in R's vcovCL for a glm and in Stata's for a likelihood), `"CR0"`: 1, or `"CR1S"`:
            G / (G - 1) · (n - 1) / (n - p) (R's for an lm, and statsmodels').
        clusters: for "cluster", the cluster of each example, n labels: numbers or texts.
        total: one number is the negative log-likelihood of all the data together. Say so where the
            examples are not independent (a Gaussian process, a time series), where a penalty is
            part of it, or where the data are not passed as arguments.
        compile: False for a function that branches on values, as in `value_and_grad`.

    Returns:
        `Estimates`: names, estimates, covariance and standard errors; it prints as a table.

    Raises:
        LinAlgError: the Hessian is not positive definite. The message names the combination of
            parameters that the data do not determine, or along which this is no minimum.
        TapeError, TypeError, ValueError: an argument is not as described, or something is not
            finite.

    Warns:
        ConvergenceWarning: the run failed; or a Newton step from the estimate, computed in float64,
            is over 1 % of a standard error.

    >>> import mlx.core as mx, mlxopt as mo
    >>> def nll(params, x, y):  # of a Poisson distribution of mean exp(a + b x)
    ...     log_mean = params["a"] + params["b"] * x
    ...     return mo.special.exp(log_mean) - y * log_mean
    >>> x, y = [0.0, 1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 4.0, 7.0, 9.0]
    >>> start = {"a": mx.array(0.0), "b": mx.array(0.0)}
    >>> result = mo.minimize(lambda *args: mx.mean(nll(*args)), start, mo.LBFGS(), x, y)
    >>> mo.inference.covariance(nll, result, x, y)
    Estimates (inverse of the observed information; 5 examples)
                 estimate  std. error       95 % interval
    params['a']  0.357746       0.528  -0.67715 to 1.3926
    params['b']  0.475983      0.1691  0.14465 to 0.80732
    """
    correction = _check_kind(kind, correction, clusters)
    likelihood = Likelihood(negative_log_likelihood, result, data, total, compile)
    information = invert(likelihood)
    matrix, groups, notes = information.inverse, None, ()
    if kind != "observed":
        scores, n, p = _scores(likelihood, kind), likelihood.examples or 0, len(matrix)
        if kind == "cluster":
            labels, groups = _cluster_numbers(clusters, n)
            scores = _sum_by_cluster(scores, labels, groups)
            if groups <= p:
                notes = (
                    f"{groups} clusters for {p} parameters: standard errors by cluster need more "
                    f"clusters than that, some tens at least, and are too small here.",
                )
        factor = _factor(correction, n, p, groups or 0)
        bread = scores @ matrix  # (n or G, p)
        matrix = factor * (bread.T @ bread)
    errors = np.sqrt(np.diag(matrix))
    distance = check_is_minimum(likelihood, information, errors)
    return Estimates(
        likelihood.params, likelihood.names, matrix, kind, correction, likelihood.examples, groups,
        distance, information.condition, notes,
    )  # fmt: skip


class Information(NamedTuple):
    """The Hessian at the estimate, and its inverse."""

    hessian: np.ndarray  # (p, p)
    inverse: np.ndarray  # (p, p)
    condition: float  # of the Hessian scaled to a diagonal of ones


def invert(likelihood: Likelihood) -> Information:
    """Return the Hessian at the estimate with its inverse.

    Raises:
        LinAlgError: it is not positive definite.
        ValueError: it is not finite.
    """
    hessian = likelihood.hessian(likelihood.theta)
    names = likelihood.names
    if not np.isfinite(hessian).all():
        row, column = np.argwhere(~np.isfinite(hessian))[0]
        raise ValueError(
            f"the second derivative of the negative log-likelihood in {names[row]} and "
            f"{names[column]} is {hessian[row, column]} at the estimate, where the function itself "
            f"is finite; expected a number. An operation there has no finite derivative (sqrt or a "
            f"power at 0; mx.where, in the branch that it does not take)."
        )
    diagonal = np.diag(hessian)
    for name, curvature, row in zip(names, diagonal, hessian, strict=True):
        if not row.any():
            raise LinAlgError(
                f"the negative log-likelihood does not change with {name}: every second derivative "
                f"in it is zero, so that the data do not determine it. Take it out of params, or "
                f"hold it fixed among the data."
            )
        if curvature <= 0:
            raise LinAlgError(
                f"the negative log-likelihood does not curve upwards in {name}: its second "
                f"derivative is {curvature:.3g}, so this is no minimum of it. Is this the function "
                f"that was minimized, and did that converge to a minimum?"
            )
    found = eigen(hessian)
    values = found.values
    if values[0] <= _SINGULAR * len(values):
        direction = _combination(found.direction(0), names)
        if values[0] < -1e-8:
            raise LinAlgError(
                f"the negative log-likelihood curves downwards along {direction}: a saddle or a "
                f"maximum, with no standard errors. Is this the function that was minimized? Start "
                f"from elsewhere, and see that the run converges."
            )
        raise LinAlgError(
            f"the data do not determine {direction}: along it the negative log-likelihood is flat "
            f"(its scaled curvature is {values[0]:.1e}), so the parameters are not identified. "
            f"Take out or fix one of them, or add what tells them apart."
        )
    half = found.inverse_root()
    return Information(hessian, half @ half.T, float(values[-1] / values[0]))


def check_is_minimum(likelihood: Likelihood, information: Information, errors: np.ndarray) -> float:
    """Return how far the estimate is from the minimum, in standard errors; warn if that is far.

    A Newton step in float64 leads to the minimum, nearly, if it is near.
    """
    _, gradient = likelihood.value_and_grad(likelihood.theta)
    step = np.abs(information.inverse @ gradient)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(step == 0, 0.0, step / errors)
    distance, worst = float(ratio.max()), likelihood.names[int(ratio.argmax())]
    status = likelihood.status
    if status is not None and status.is_failure:
        warn(
            f"the run ended {status.name}, so its parameters may be no minimum, and standard "
            f"errors hold for a minimum only. (A Newton step in float64 would move {worst} by "
            f"{distance:.2g} standard errors.) {_advice(status)}"
        )
    elif not distance <= CLOSE:
        warn(
            f"a Newton step in float64 would move {worst} by {distance:.2g} of its standard "
            f"errors, so these parameters are not close enough to the minimum of this negative "
            f"log-likelihood. Continue in float64 with a smaller tol; and see that it is the one "
            f"that was minimized, on the same data, without a penalty or a bound besides."
        )
    return distance


def _advice(status: Status) -> str:
    if status in (Status.NO_PROGRESS, Status.MAX_STEPS):
        return "Continue from there in float64 (parameters of dtype mx.float64), with more steps."
    return status.value.partition(". ")[2] or status.value


def _combination(weights: np.ndarray, names: tuple[str, ...]) -> str:
    """Return a direction as text: `params['w'][0] - 2 params['w'][1]`; small terms are left out."""
    weights = weights / weights[np.argmax(np.abs(weights))]
    large = [i for i in np.argsort(-np.abs(weights), kind="stable") if abs(weights[i]) > 1e-3]
    text = ""
    for i in sorted(large[:5]):
        size = f"{abs(weights[i]):.3g} " if abs(abs(weights[i]) - 1) > 5e-4 else ""
        sign = "-" if weights[i] < 0 else "+"
        text += f" {sign} {size}{names[i]}" if text else f"{'-' * (sign == '-')}{size}{names[i]}"
    return text + (f" and {len(large) - 5} terms more" if len(large) > 5 else "")


def _check_kind(kind: Any, correction: Any, clusters: Any) -> str | None:
    """Return the correction that is meant, or say what does not go together."""
    allowed = _CORRECTIONS[check_choice(kind, "kind", _CORRECTIONS)]
    if correction is not None and correction not in allowed:
        expected = " or ".join(map(repr, allowed)) if kind != "observed" else "None"
        leverages = (
            " (HC2 and HC3 weigh by leverage, which belongs to linear regression.)"
            if correction in ("HC2", "HC3")
            else ""
        )
        raise ValueError(
            f"correction is {correction!r}; expected {expected} for kind={kind!r}.{leverages}"
        )
    if (kind == "cluster") != (clusters is not None):
        raise ValueError(
            "kind='cluster' needs clusters=, a label for each example."
            if kind == "cluster"
            else f"clusters are given, but kind is {kind!r}; expected kind='cluster'."
        )
    return allowed[0] if correction is None else correction


def _scores(likelihood: Likelihood, kind: str) -> np.ndarray:
    """Return the scores of the examples, (n, p)."""
    if likelihood.examples is None:
        raise ValueError(
            f"kind={kind!r} compares examples, but negative_log_likelihood returns one number for "
            f"all of them; expected one value for each, shape (n,). Leave out the sum."
        )
    scores = likelihood.scores()
    wrong = np.argwhere(~np.isfinite(scores))
    if wrong.size:
        example, entry = wrong[0]
        raise ValueError(
            f"the derivative of the value of example {example} in {likelihood.names[entry]} is "
            f"{scores[example, entry]}; expected a number."
        )
    return scores


def _cluster_numbers(clusters: Any, n: int) -> tuple[np.ndarray, int]:
    """Return the number of each example's cluster, (n,), and how many clusters there are."""
    labels = np.asarray(clusters)
    if labels.shape != (n,):
        raise ValueError(
            f"clusters has shape {labels.shape}; expected ({n},), a label for each of the {n} "
            f"values that negative_log_likelihood returns."
        )
    missing = np.array([label is None or label != label for label in labels.tolist()])
    if missing.any():
        raise ValueError(f"clusters has no label for example {missing.argmax()}: it is NaN.")
    _, numbers = np.unique(labels, return_inverse=True)
    count = int(numbers.max()) + 1
    if count < 2:
        raise ValueError("all examples are in one cluster; expected two clusters at least.")
    return numbers, count


def _sum_by_cluster(scores: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Return the sums of the scores of each cluster, (G, p)."""
    columns = [np.bincount(labels, weights=column, minlength=count) for column in scores.T]
    return np.stack(columns, axis=1)


def _factor(correction: str | None, n: int, p: int, groups: int) -> float:
    """Return the factor of a small-sample correction."""
    if correction in ("HC1", "CR1S") and n <= p:
        raise ValueError(
            f"correction={correction!r} divides by n - p, the {n} examples less the {p} "
            f"parameters; expected more examples than parameters."
        )
    by_cluster = groups / (groups - 1) if groups else 1.0
    return {
        "HC0": 1.0,
        "HC1": n / (n - p) if n > p else np.nan,
        "CR0": 1.0,
        "CR1": by_cluster,
        "CR1S": by_cluster * (n - 1) / (n - p) if n > p else np.nan,
    }[correction or "HC0"]
