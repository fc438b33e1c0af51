"""Least squares: from a residual and a start to parameters with their standard errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlxopt._bounds import bound_vectors, check_bounds, check_inside
from mlxopt._checks import (
    check_callback,
    check_choice,
    check_count,
    check_finish,
    check_number,
    check_tol,
    describe_type,
)
from mlxopt._keywords import with_advice
from mlxopt._loop import Callback, Loop
from mlxopt._platform.device import device_for
from mlxopt._progress import ProgressBar
from mlxopt._rank import rank_of, statistics
from mlxopt._residual_objective import ROBUST, SQUARES, Bounds, ResidualObjective, Robust
from mlxopt._residual_verdict import Judgement, judge, model_of, warn_of
from mlxopt._result import Result
from mlxopt._status import SETTLED, Status
from mlxopt._stop import AllSteps, Orthogonality, StopRule, check_stop, stop_rules
from mlxopt._tree import (
    Params,
    Tree,
    check_params,
    copies,
    count,
    epsilon,
    from_host,
    leaves,
    to_host,
    to_numpy,
    widened,
)
from mlxopt.autodiff._arguments import as_data
from mlxopt.autodiff._guards import check_is_callable
from mlxopt.autodiff._pairs import warn_of_pairs
from mlxopt.optimizers import Optimizer
from mlxopt.optimizers._polish import Polish
from mlxopt.optimizers.gauss_newton import GaussNewton
from mlxopt.optimizers.levenberg_marquardt import LevenbergMarquardt

# The polish forms a Hessian at the price of some Jacobians: up to this many entries of one.
_AFFORDABLE = 10**7
_POLISH_STEPS = 50
_DEFAULT = LevenbergMarquardt()
# The last state, why the run ended, and what was found there.
Ended = tuple[Any, Status, Judgement | None]


@dataclasses.dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class LeastSquaresResult(Result):
    """The result of `least_squares`.

    m is the number of residuals and p that of the parameters, in the order of `tree_flatten`.
    `value` is ½ Σ rᵢ², or with a robust loss ½ Σ c² ρ(rᵢ²/c²); `optimality` is the largest cosine
    of the angle between the residual and a column of the Jacobian, with the rounding error added.
    """

    grad_norm: float
    """The largest absolute entry of the gradient, of parameters that no bound holds."""
    residual: np.ndarray
    """The residual at `params`, shape (m,), float64."""
    jacobian: np.ndarray
    """Its derivative there, shape (m, p), float64."""
    rank: int
    """The number of parameters that the data determine, without those at a bound."""
    residual_sd: float
    """√(Σ rᵢ² / (m - rank)), NaN where m = rank."""
    covariance: np.ndarray
    """Of the parameters, shape (p, p): residual_sd² (JᵀJ)⁻¹. NaN in the rows and columns of
    parameters that the data do not determine, or that a bound holds. With a robust loss the
    sandwich H⁻¹ (Jᵀ diag(ψ²) J) H⁻¹ · m / (m - rank) of Huber (1967), H = Jᵀ diag(ψ') J."""

    @property
    def degrees_of_freedom(self) -> int:
        """M - rank."""
        return len(self.residual) - self.rank

    @property
    def standard_errors(self) -> Tree:
        """The square roots of the covariance's diagonal, a tree like `params`."""
        return from_host(np.sqrt(np.diag(self.covariance)), self.params)

    def intervals(self, level: float = 0.95) -> tuple[Tree, Tree]:
        """Return the lower and upper ends of confidence intervals, trees like `params`.

        They are params ± t · standard error, t the quantile of Student's distribution with
        m - rank degrees of freedom: exact for a linear model with normal errors, and otherwise as
        good as the linear model of the residual is over the interval.

        Args:
            level: the coverage, between 0 and 1.
        """
        level = check_number(level, "level", above=0, below=1)
        from scipy.special import stdtrit

        reach = float(stdtrit(self.degrees_of_freedom, 0.5 + 0.5 * level))
        center = to_host(self.params)
        width = reach * np.sqrt(np.diag(self.covariance))
        return from_host(center - width, self.params), from_host(center + width, self.params)

    def _rows(self) -> list[tuple[str, str]]:
        rows = super()._rows()
        if self.converged:
            how = self.reason.rstrip(".") or "within tol"
            what = f"the residual is orthogonal, {how}, to all that the parameters can change."
            rows[0] = ("status", f"CONVERGED: {what}")
        elif self.reason:
            rows[0] = ("status", f"{self.status.name}: {self.reason}")
        place = [name for name, _ in rows].index("optimality")
        rows.insert(place, ("grad_norm", f"{self.grad_norm:.3g}"))
        m, p = self.jacobian.shape
        fit = f"{self.residual_sd:.6g} on {self.degrees_of_freedom:,} degrees of freedom"
        short = "" if self.rank == p else f"; only {self.rank} of {p} parameters are determined"
        if self.rank == 0 and self.status is Status.INTERRUPTED:
            short = "; interrupted before the covariance was known"
        rows.append(("residual", f"sd {fit}, {m:,} residuals{short}"))
        if p <= 12:
            errors = ", ".join(f"{error:.6g}" for error in np.sqrt(np.diag(self.covariance)))
            rows.append(("std errors", errors))
        return rows


@with_advice
def least_squares(
    residual: Callable[..., mx.array],
    params: Tree,
    *data: Any,
    optimizer: LevenbergMarquardt | GaussNewton = _DEFAULT,
    bounds: tuple[Any, Any] | None = None,
    robust: str | tuple[str, float] | None = None,
    polish: bool = True,
    finish: str | None = None,
    tol: float | None = None,
    max_steps: int = 1000,
    stop: StopRule | Sequence[StopRule] = (),
    callback: Callback | Sequence[Callback] | None = None,
    progress: bool | None = None,
    compile: bool = True,
) -> LeastSquaresResult:
    """Minimize ½ Σ rᵢ² over `params`, where r = residual(params, *data).

    The residual and its derivatives are computed in MLX, in the dtype of `params`; the linear
    algebra in NumPy, in float64. float64 parameters keep some ten digits even of ill-conditioned
    fits; in the residual `mx.exp` and the like then have all digits, as in `mlxopt.special`.

    Args:
        residual: a function `residual(params, *data)` that returns an array of any shape, such as
            predictions - y, made of MLX operations.
        params: the start, a tree (array, list, tuple, dict, NamedTuple) of float arrays.
        *data: the other arguments of the residual, as in `minimize`.
        optimizer: `LevenbergMarquardt()`, or `GaussNewton()` for fits close to linear.
        bounds: (lower, upper), each a number, None or a tree like `params` of numbers and arrays.
        robust: "huber", "soft_l1", "cauchy" or "arctan" replaces rᵢ² by c² ρ(rᵢ²/c²), which gives
            outliers less weight; (name, c) sets the residual c from which on it does, 1 by default.
            ρ(z): z up to 1, then 2√z - 1; 2√(1 + z) - 2; log(1 + z); arctan(z).
        polish: end with Newton steps on the exact Hessian, which give the parameters their last
            digits and leave saddles; if m · p is at most ten million.
        finish: "float64" continues in float64 on the CPU, with the data and bounds as passed; the
            polish then comes last, and the parameters are float64. It has no effect on parameters
            that are float64 already.
        tol: the largest cosine of the angle between the residual and a column of the Jacobian (of a
            parameter free to move) that counts as zero; None: 1e-8 for float64 (and for a finish),
            1e-5 for float32. It has no units. 0 takes every step. CONVERGED needs more than this
            claim: the next step would move the parameters by at most a hundredth of a standard
            error, or by less than rounding hides ("to the rounding of float32"), and the loss
            does not curve down.
        max_steps: the largest number of evaluations of the residual, polish included.
        stop: stop rules beside `tol` and `max_steps`, as in `minimize`.
        callback: called with an `Info` after each step; True stops. A list of functions
            calls each.
        progress: show a progress bar; None shows one if the run takes more than a second.
        compile: False evaluates op by op, for a residual that branches on values.

    Returns:
        a `LeastSquaresResult`: the parameters, their standard errors and intervals. Ctrl-C and
        exceptions as in `minimize`; after Ctrl-C in its computation the covariance is NaN.

    Raises:
        TapeError: the residual reads arrays back to Python.
        TypeError, ValueError: an argument or the value of the residual is not as described, there
            are fewer residuals than parameters, or the start is out of bounds or not finite.

    Warns:
        ConvergenceWarning: the run ended without converging and was not asked to; the data do not
            determine all parameters; or the residual ignores a leaf of `params`.
        UserWarning: a cast of data to the dtype of `params` merges their numbers, or the residual
            combines each row with all others, as shapes (n,) and (n, 1) do.

    >>> import mlx.core as mx, mlxopt as mo
    >>> def residual(params, x, y):
    ...     return params["rate"] * x + params["offset"] - y
    >>> start = {"rate": mx.array(0.0), "offset": mx.array(0.0)}
    >>> fit = mo.least_squares(residual, start, [0.0, 1.0, 2.0, 3.0], [1.0, 3.0, 5.5, 6.5])
    >>> fit.params
    {'rate': array(1.9, dtype=float32), 'offset': array(1.15, dtype=float32)}
    >>> fit.standard_errors
    {'rate': array(0.212132, dtype=float32), 'offset': array(0.396863, dtype=float32)}
    """
    check_is_callable(residual)
    params = check_params(params)
    _check_optimizer(optimizer, data)
    check_finish(finish)
    tol = None if tol is None else check_tol(tol)
    callback = check_callback(callback)
    check_count(max_steps, "max_steps")
    stop = check_stop(stop)
    chosen = _robust_loss(robust)

    def run(
        params: Tree, items: tuple[Any, ...], tol: float, polish: bool, checked: bool = False
    ) -> Ended:
        params, box = _box(params, bounds, checked)
        objective = ResidualObjective(residual, items, robust=chosen, bounds=box, compile=compile)
        objective.trace(params)
        check_rows(objective, params)
        polish = polish and tol > 0 and objective.rows(params) * count(params) <= _AFFORDABLE
        return _run(loop, objective, optimizer, params, tol, max_steps, polish)

    finishes = finish is not None and any(leaf.dtype != mx.float64 for leaf in leaves(params))
    loop = Loop(callback, ProgressBar("least_squares", max_steps, progress), stop)

    items = as_data(data, params, residual, warns=not finishes)

    found: list[Judgement | None] = []

    def fit() -> tuple[Any, Status]:
        with device_for(params, items):
            warn_of_pairs(residual, params, items)
            first = cosine_tol(params, tol, finishes)
            state, status, seen = run(copies(params), items, first, bool(polish) and not finishes)
        if finishes and status in SETTLED and loop.steps < max_steps:
            with mx.stream(mx.cpu):
                wide = widened(state.params)
                wider = widened(as_data(data, wide, residual))
                least = cosine_tol(wide, tol)
                state, status, seen = run(wide, wider, least, bool(polish), checked=True)
        found.append(seen)
        return state, status

    def describe(state: Any, status: Status) -> LeastSquaresResult:
        error = found[-1].error if found and found[-1] else None
        return _described(loop, state, status, error, chosen)

    result = loop.answer(fit, describe)
    warn_of(result.status, result.reason, found[-1] if found else None)
    return result


def _run(
    loop: Loop,
    objective: ResidualObjective,
    optimizer: Optimizer[Any],
    params: Params,
    tol: float,
    max_steps: int,
    polish: bool,
) -> Ended:
    """Run the optimizer and the polish, and both again for as long as the end was a saddle."""
    goal = tol
    while True:
        left = max(1, max_steps - loop.steps)
        rules = stop_rules(goal, left, optimizer.patience, Orthogonality)
        state, status = loop(objective, optimizer, params, *rules)
        if tol == 0 or status not in (Status.CONVERGED, Status.NO_PROGRESS):
            return state, status, None
        stuck = status is Status.NO_PROGRESS
        if polish and loop.steps < max_steps:
            polished, ended = loop(objective, Polish(), state.params, AllSteps(_POLISH_STEPS))
            if ended in (Status.STOPPED, Status.INTERRUPTED, Status.MAX_SECONDS):
                return polished, ended, None
            if polished.escaped and loop.steps < max_steps:
                params = polished.params
                continue
            if polished.optimality <= max(tol, state.optimality):
                state = polished
        assert loop.start is not None
        found = judge(objective, optimizer, state, tol, loop.start, stuck)
        if found.verdict.status is not None or loop.steps >= max_steps:
            loop.verdict = found.verdict
            return state, found.verdict.status or Status.MAX_STEPS, found
        params, goal = state.params, 1e-2 * state.optimality


def cosine_tol(params: Params, tol: float | None, finishes: bool = False) -> float:
    """Return the tolerance for the cosines of a run, which a finish in float64 may follow."""
    eps = epsilon(params)
    least = 1e-8 if eps < 1e-10 else 1e-5 if eps < 1e-6 else 1e-3
    if tol is None:
        return least
    return max(tol, least) if finishes and tol > 0 else tol


def _check_optimizer(optimizer: Any, data: tuple[Any, ...]) -> None:
    if any(isinstance(item, Optimizer) for item in data):
        raise TypeError(
            "an optimizer came among the data; write least_squares(residual, params, *data, "
            "optimizer=...)."
        )
    if not isinstance(optimizer, (LevenbergMarquardt, GaussNewton)):
        raise TypeError(
            f"optimizer is {describe_type(optimizer)}; expected LevenbergMarquardt() or "
            f"GaussNewton(), which use the terms of the sum. For another, minimize "
            f"0.5 * mx.sum(mx.square(residual))."
        )


def check_rows(objective: ResidualObjective, params: Params) -> None:
    """Raise ValueError if there are fewer residuals than parameters."""
    rows, size = objective.rows(params), count(params)
    if rows < size:
        raise ValueError(
            f"the residual has {rows} entries and params {size}; expected at least as many "
            f"residuals as parameters, or no fit is the only one. Use more data or fewer "
            f"parameters, or append a penalty to the residual: weight * (params - guess)."
        )


def _robust_loss(robust: Any) -> Robust:
    """Return the robust loss of this name, or of a pair of a name and a scale."""
    if robust is None:
        return SQUARES
    pair = robust if isinstance(robust, tuple) and len(robust) == 2 else (robust, 1.0)
    name = check_choice(pair[0], f"robust={robust!r}", ROBUST)
    return Robust(ROBUST[name], check_number(pair[1], f"robust={robust!r}", above=0))


def _box(params: Tree, bounds: Any, checked: bool = False) -> tuple[Tree, Bounds | None]:
    """Return the start, projected, and the bounds; a `checked` start is out by rounding alone."""
    if bounds is None:
        return params, None
    pairs = isinstance(bounds, list) and all(isinstance(pair, tuple) for pair in bounds)
    if pairs or not (isinstance(bounds, (tuple, list)) and len(bounds) == 2):
        raise TypeError(
            f"bounds is {bounds!r}; expected (lower, upper), either of them None."
            + _transposed(bounds)
        )
    lower, upper = bounds
    check_bounds("least_squares", lower, upper)
    lower, upper = bound_vectors("least_squares", lower, upper, params)
    if not checked:
        check_inside("least_squares", params, lower, upper)
    box = Bounds(to_numpy(lower), to_numpy(upper))
    x = to_host(params)
    return from_host(np.clip(x, box.lower, box.upper), params), box


def _transposed(bounds: Any) -> str:
    """Return what to write for SciPy's bounds: a pair for each parameter, or an object."""
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        return " Write bounds=(bounds.lb, bounds.ub)."
    if not (isinstance(bounds, (list, tuple)) and bounds):
        return ""
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in bounds):
        return ""
    lower, upper = (list(ends) for ends in zip(*bounds, strict=True))
    return f" For a pair of bounds for each entry of a vector write bounds=({lower}, {upper})."


def _described(
    loop: Loop, state: Any, status: Status, error: np.ndarray | None, robust: Robust
) -> LeastSquaresResult:
    """Return the result, with the statistics of the fit."""
    model, eps = model_of(state), epsilon(state.params)
    jacobian = model.jacobian / model.weights[:, None]
    try:
        rank = rank_of(jacobian, model.fixed, eps, error)
        number, (residual_sd, covariance) = rank.number, statistics(rank, model.plain, robust, eps)
    except (KeyboardInterrupt, np.linalg.LinAlgError):  # the parameters are known
        number, residual_sd = 0, float("nan")
        covariance = np.full((jacobian.shape[1],) * 2, np.nan)
        if np.isfinite(jacobian).all():
            status = Status.INTERRUPTED
    return LeastSquaresResult(
        **loop.summary(state, status),
        grad_norm=float(np.max(np.where(model.fixed, 0.0, np.abs(model.gradient)))),
        residual=model.plain,
        jacobian=jacobian,
        rank=number,
        residual_sd=residual_sd,
        covariance=covariance,
    )
