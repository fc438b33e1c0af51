"""The optimizers on the Moré-Garbow-Hillstrom problems, beside SciPy's with the same gradients."""

from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from scipy.optimize import minimize as scipy_minimize

import mlxopt as mo
from mlxopt._objective import Objective
from mlxopt.optimizers.bfgs import BFGS
from mlxopt.optimizers.trust_region import TrustRegion
from mlxopt.problems import MGH
from mlxopt.problems._record import Problem

TOL = 1e-8
MOST = 5000
OURS = {
    "TrustRegion": TrustRegion(),
    "BFGS": BFGS(),
    "LBFGS": mo.LBFGS(),
}
# What SciPy calls its own, and how it is told to go on until the gradient is small.
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "TrustRegion": ("trust-exact", {"gtol": TOL}),
    "BFGS": ("BFGS", {"gtol": TOL}),
    "LBFGS": ("L-BFGS-B", {"gtol": TOL, "ftol": 0, "maxfun": MOST}),
}

pytestmark = pytest.mark.filterwarnings("ignore::mlxopt.ConvergenceWarning")


@cache
def ours(name: str, problem: Problem) -> mo.Result:
    return mo.minimize(problem.loss, problem.params(), OURS[name], tol=TOL, max_steps=MOST)


@cache
def theirs(name: str, problem: Problem) -> Any:
    return scipys(name, problem, np.array(problem.start))


def scipys(name: str, problem: Problem, start: np.ndarray) -> Any:
    """Run a method of SciPy in float64."""
    objective = Objective(problem.loss)

    def both(x):
        with mx.stream(mx.cpu):
            value, gradient = objective.value_and_grad(mx.array(x, dtype=mx.float64))
            return value.item(), np.array(gradient)

    def hessian(x):
        with mx.stream(mx.cpu):
            return np.array(objective.hessian(mx.array(x, dtype=mx.float64)))

    method, options = THEIRS[name]
    second = {"hess": hessian} if method == "trust-exact" else {}
    with np.errstate(all="ignore"):
        return scipy_minimize(
            both, start, jac=True, method=method,
            options={"maxiter": MOST, **options}, **second,
        )  # fmt: skip


def is_near(problem: Problem, result: mo.Result, share: float) -> bool:
    """Whether SciPy finds no more below an answer than a share of the drop, or than it states."""
    start, x = np.array(problem.start), np.array(result.params, dtype=np.float64)
    with mx.stream(mx.cpu):
        first, value = (problem.loss(mx.array(at, dtype=mx.float64)).item() for at in (start, x))
    least = scipys("TrustRegion", problem, x).fun
    eps = 1e-6 if result.params.dtype == mx.float32 else 1e-14
    stated = 2 * result.gain if "rounding" in result.reason else 0.0
    return value - least <= share * (first - value) + eps * abs(value) + stated


def solved(runs, value) -> set[str]:
    return {p.name for p in MGH if p.solved_by(float(value(runs(p))))}


@pytest.mark.parametrize("name", OURS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::scipy.optimize.OptimizeWarning")
def test_it_solves_at_least_as_many_as_scipys(name):
    mine = solved(lambda p: ours(name, p), lambda result: result.value)
    other = solved(lambda p: theirs(name, p), lambda result: result.fun)
    assert len(mine) >= len(other), f"only SciPy solves {sorted(other - mine)}"
    assert len(mine) >= len(MGH) - 3, f"unsolved: {sorted({p.name for p in MGH} - mine)}"


@pytest.mark.parametrize("name", OURS)
def test_convergence_is_never_claimed_falsely(name):
    for problem in MGH:
        result = ours(name, problem)
        if result.converged:
            assert is_near(problem, result, 1e-14), problem.name


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::scipy.optimize.OptimizeWarning")
def test_lbfgs_needs_no_more_evaluations_than_scipys():
    both = [
        p
        for p in MGH
        if p.solved_by(ours("LBFGS", p).value) and p.solved_by(float(theirs("LBFGS", p).fun))
    ]
    assert len(both) >= len(MGH) - 5
    # Ratios, since a sum is that of two problems that take hundreds at the floor of rounding.
    pairs = [(ours("LBFGS", p).evaluations, theirs("LBFGS", p).nfev) for p in both]
    ratio = np.exp(np.mean([np.log(mine / other) for mine, other in pairs]))
    assert ratio <= 1.05, pairs


@pytest.mark.parametrize("name", OURS)
def test_float32_ends_at_the_rounding_floor_and_says_so(name):
    for problem in MGH:
        start = problem.params(mx.float32)
        if not np.isfinite(mx.grad(problem.loss)(start)).all():
            continue
        result = mo.minimize(problem.loss, start, OURS[name], tol=1e-6, max_steps=500)
        if result.converged:
            # Ten roundings of the loss at the start.
            assert is_near(problem, result, 1e-6), problem.name
        else:
            assert result.status is not mo.Status.COMPLETED
            assert result.optimality > 0
