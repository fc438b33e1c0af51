"""Whether a fit has converged: the step still to be taken, in standard errors and in roundings.

Notation: r, J = the residual and its Jacobian, weighted for a robust loss; q = the part of r in the
range of J, the change of r by a Gauss–Newton step; s = the residual standard deviation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mlxopt._around import Verdict, falls, steps_down, still_falls
from mlxopt._curvature import Curvature
from mlxopt._point import Point, Start
from mlxopt._rank import Rank, rank_of
from mlxopt._report import combination, entry_names
from mlxopt._residual_objective import ResidualObjective
from mlxopt._status import Status, warn
from mlxopt._tree import EPSILON, Tree, dtype_name, epsilon, leaves, to_numpy, working_dtype
from mlxopt._verdict import Judge
from mlxopt.optimizers import Optimizer
from mlxopt.optimizers._descent import DescentState
from mlxopt.optimizers._residual import Array, Linearization, evaluate, norm, trial_at

_APART = 32.0  # roundings of x between the points at which rounding is measured
_LARGEST = 10**7  # entries of a Jacobian whose rounding is measured
_WRONG = 0.1  # the share of the change of r that a right Jacobian explains but for at most
_ABOVE = 10.0  # times its rounding, from which on a difference means something
_SMALL = 0.01  # standard errors: a step that changes nothing that matters
_ULPS = 4.0  # roundings of a parameter that a step has to exceed to count
_DIP = 4.0  # roundings of a curvature, below which it is looked at
_SHOWN = 3  # combinations in a message
_UNLIKE = (
    "the residual changes otherwise than its derivative says: stop_gradient, a derivative written "
    "by hand, or a jump in the residual. See mo.autodiff.check_grads."
)
_ADVICE = {
    Status.MAX_STEPS: "max_steps was reached before the fit converged. Start closer, use "
    "LevenbergMarquardt(geodesic=True) in a curved valley, or raise max_steps.",
    Status.MAX_SECONDS: "the time was up before the fit converged. Allow more seconds, or start "
    "again from result.params.",
    Status.SADDLE: "the gradient is zero, but the sum of squares falls in some direction: a saddle "
    "or a maximum. Start elsewhere.",
}
_STEP = (
    "the derivative of the residual with some parameters is zero, but the sum of squares falls a "
    "step away: round or a threshold in the residual, stop_gradient, or a flat place. Start "
    "elsewhere, or make the residual smooth."
)
_FAR = 1e4  # times its start: a parameter that runs away


class Rounding(NamedTuple):
    """What rounding does to the residual and its Jacobian near a point."""

    noise: float  # ‖error of r‖
    error: Array | None  # (m, p): of J
    mismatch: float  # the share of a change of r that J does not explain, 0 if rounding hides it


class Judgement(NamedTuple):
    """What is known about the end of a run."""

    verdict: Verdict
    error: Array | None  # (m, p): of J, by rounding, where measured
    unknown: str  # a sentence about what the data do not determine


def model_of(state: Any) -> Linearization:
    """Return the linear model in the state of any method of `least_squares`."""
    return state.memory if isinstance(state, DescentState) else state.model


def rounding_of(objective: ResidualObjective, params: Tree, model: Linearization) -> Rounding:
    """Measure rounding by second differences of r and J over some roundings of x."""
    x, weights, eps = model.x, model.weights, epsilon(params)
    terms = np.abs(model.jacobian) @ np.abs(x)
    known = Rounding(eps * norm(np.hypot(terms, model.residual)), None, 0.0)
    # A power of two, so that x ± h is exact.
    h = np.ldexp(min(_APART, 1e-3 / eps) * eps, np.frexp(x)[1])
    h[(x == 0) | model.fixed] = 0.0
    if objective.bounds is not None:
        h[(x - h < objective.bounds.lower) | (x + h > objective.bounds.upper)] = 0.0
    h *= np.where(np.random.default_rng(0).random(len(x)) < 0.5, -1.0, 1.0)
    if not h.any():
        return known
    (up, at_up), (down, at_down) = (trial_at(objective, params, point) for point in (x + h, x - h))
    count = objective.evaluations
    above, below = (weights * (evaluate(objective, at)[0] - model.plain) for at in (up, down))
    objective.evaluations = count  # not of the run
    bend = above + below - model.jacobian @ (at_up + at_down - 2 * x)
    if not np.isfinite(bend).all():
        return known
    error = None
    if model.jacobian.size <= _LARGEST:
        both = to_numpy(objective.jacobian(up)) + to_numpy(objective.jacobian(down))
        error = (weights[:, None] * both - 2 * model.jacobian) / np.sqrt(6)
        if not np.isfinite(error).all():
            return known
    noise = norm(bend) / np.sqrt(6)
    expected = model.jacobian @ (at_up - at_down)
    difference = norm(above - below - expected)
    hidden = difference <= _ABOVE * max(noise, eps * norm(terms))
    mismatch = 0.0 if hidden else difference / max(norm(expected), difference)
    return Rounding(float(noise + eps * norm(terms)), error, float(mismatch))


def judge(
    objective: ResidualObjective,
    optimizer: Optimizer[Any],
    state: Any,
    tol: float,
    start: Start,
    stuck: bool,
) -> Judgement:
    """Judge a point where the cosines are within tol, or that the method cannot improve.

    It is the end if q is at most tol · ‖r‖, or within the rounding of r; or if a Gauss–Newton step
    moves each parameter by a small part of its standard error: the relative offset of Bates and
    Watts (1981), "A relative offset orthogonality convergence criterion for nonlinear least
    squares".

    Args:
        objective: the residual over its data.
        optimizer: the method.
        state: at the point.
        tol: the cosine of the angle between r and the range of J.
        start: of the run.
        stuck: whether no step lowers the loss.
    """
    model, params = model_of(state), state.params
    eps, r = epsilon(params), model.residual
    rounding = rounding_of(objective, params, model)
    rank = rank_of(model.jacobian, model.fixed, eps, rounding.error)
    point = Point(Judge(objective, optimizer, tol, start), state)
    try:
        found = point.look() if len(rank.free) else None
    except (RuntimeError, ValueError, IndexError):
        found = None  # an operation has no second derivative
    still = _still(objective, params, model, rank, start, rounding.noise)
    if point.free.sum() < len(rank.free):
        found = None  # not finite

    def judged(status: Status | None, reason: str = "", gain: float = np.nan) -> Judgement:
        is_end = status not in (Status.FLAT, Status.SADDLE)
        unknown = _undetermined(rank, found, params, still) if is_end else ""
        return Judgement(Verdict(status, reason, gain), rounding.error, unknown)

    length = float(norm(r))
    if length == 0:
        return judged(Status.CONVERGED, gain=0.0)
    if rounding.mismatch > _WRONG:
        return judged(Status.NO_PROGRESS if rank.number else Status.FLAT, _UNLIKE)
    q, step = float(norm(rank.u.T @ r)), rank.solve(-r)
    if found is not None and found.whole and found.values[0] > found.rounding and not still.any():
        # JᵀJ lacks Σ rᵢ ∇²rᵢ, the only curvature where J is singular at a minimum.
        q, step = float(np.sqrt(2 * found.gain)), found.step
    gain, spare = 0.5 * q * q, max(len(r) - rank.number, 1)
    s = float(np.sqrt(max(length**2 - q * q, 0.0) / spare))
    short = bool((np.abs(step) <= _ULPS * eps * np.abs(model.x[rank.free])).all())
    if q <= tol * length or (not stuck and q <= _SMALL * s):
        verdict = judged(Status.CONVERGED, gain=gain)
    elif q <= rounding.noise or (stuck and (q <= _SMALL * s or short)):
        coarsest = max(leaves(params), key=lambda leaf: EPSILON[leaf.dtype]).dtype
        verdict = judged(Status.CONVERGED, f"to the rounding of {dtype_name(coarsest)}.", gain)
    elif stuck:
        reason = _why(params, model.x, start.x, rank.free, np.abs(step), s * rank.errors())
        return judged(Status.NO_PROGRESS, reason, gain)
    else:
        return judged(None)
    if found is None:
        return verdict
    # JᵀJ is blind to saddles, too. Values of the loss have the last word on small curvatures.
    way = model.x - start.x
    fall = abs(model.gradient @ way) + 0.5 * norm(model.jacobian @ way) ** 2
    drop = min(max(start.value - state.value, 0.0), fall)
    point.assumed_noise = max(model.noise, tol**2 * drop)
    if found.values[0] < -_DIP * found.rounding:
        found = found._replace(rounding=0.0)
    most = max(drop, state.value)
    fallen = falls(point, found, most) or still_falls(point) or steps_down(point)
    if fallen is None:
        return verdict
    blind = not found.is_concave and fallen.status is Status.SADDLE
    return judged(fallen.status, _STEP if blind else fallen.reason, gain)


def warn_of(status: Status, reason: str, found: Judgement | None) -> None:
    """Warn of a failure, and of parameters that the data do not determine."""
    texts = []
    if status.is_failure:
        texts.append(f"{status.name}: {reason or _ADVICE.get(status, status.value)}")
    if found and found.unknown:
        texts.append(found.unknown)
    if texts:
        warn(" Also, ".join(texts))


def _still(
    objective: ResidualObjective,
    params: Tree,
    model: Linearization,
    rank: Rank,
    start: Start,
    noise: float,
) -> Array:
    """Return which parameters change no residual, to first order or a tenth away: (p,) bool."""
    still = np.zeros(len(model.x), dtype=bool)
    size = np.maximum(np.abs(model.x), np.abs(model.x - start.x))
    for j in rank.free[rank.zero]:
        step = np.zeros_like(model.x)
        step[j] = 0.1 * (size[j] or 1.0)
        around = [
            evaluate(objective, trial_at(objective, params, model.x + d)[0])[0]
            for d in (step, -step)
        ]
        objective.evaluations -= 2  # not of the run
        still[j] = all(norm(model.weights * (r - model.plain)) <= noise for r in around)
    return still


def _undetermined(rank: Rank, found: Curvature | None, params: Tree, still: Array) -> str:
    """Return a sentence that names the parameters that the data do not determine, if any."""
    definite = found is not None and found.values[0] > epsilon(params) ** 0.5
    if not len(rank.lost) or (definite and not still.any()):
        return ""
    names, of = entry_names("params", params), len(rank.free)
    moves = np.zeros(len(names), dtype=bool)
    moves[rank.free[rank.zero]] = True
    moves &= ~still
    directions = [row for row in rank.undetermined() if not moves[row != 0].all()]
    lost = len(directions)
    if not lost:
        return ""
    shown = [combination(row, names) for row in directions[:_SHOWN]]
    more = f" and {lost - _SHOWN} more combinations" if lost > _SHOWN else ""
    return (
        f"the data do not determine {', '.join(shown)}{more}: to first order, and beyond rounding, "
        f"no residual changes along {'it' if lost == 1 else 'them'} (rank {rank.number} of {of}). "
        f"Take out or fix one of the parameters, or add data that tell them apart."
    )


def _why(params: Tree, x: Array, start: Array, free: Array, size: Array, errors: Array) -> str:
    """Return why no step lowers the loss, as far as that is known.

    Args:
        params: the tree.
        x: its vector, (p,).
        start: where the run began, (p,).
        free: indices of the parameters that no bound holds, (q,).
        size: of the next step in these, (q,).
        errors: their standard errors, (q,).
    """
    names, dtype = entry_names("params", params), dtype_name(working_dtype(params))
    far = np.where(start == 0, 0.0, np.abs(x) / np.abs(np.where(start == 0, 1.0, start)))
    worst = int(far.argmax())
    if far[worst] > _FAR:
        return (
            f"{names[worst]} has run from {start[worst]:.3g} to {x[worst]:.3g}: the best fit can "
            f"be at infinity, or near another start. Start elsewhere, bound it (bounds=), or use a "
            f"model with fewer parameters."
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(size > 0, size / errors, 0.0)
    worst = int(ratio.argmax())
    step = f"a further step would move {names[free[worst]]} by {ratio[worst]:.2g} standard errors"
    if not np.isfinite(ratio[worst]):
        step = f"a further step would move {names[free[worst]]} by {size[worst]:.2g}"
    if dtype == "float32":
        return f"{step}, but none lowers the sum of squares in float32. Pass finish='float64'."
    return (
        f"{step}, but none lowers the sum of squares: the residual is not smooth (abs, round, "
        f"where), or noisier than {dtype}."
    )
