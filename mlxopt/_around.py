"""What values of the loss around the end of a run show, where its derivatives do not."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from mlxopt._curvature import Curvature
from mlxopt._status import Status

_FLAT_DIRECTIONS = 3  # along which the loss is evaluated
# Of still parameters, to their size.
_LENGTHS = np.array([1e-3, 1e-2, *np.arange(1, 11) / 10, 1.25, 1.5, 2.0, 4.0])
_PARTS = (0.25, 0.5, 0.75)  # of a step, where a loss that has fallen may have risen first
_MARGIN = 10.0  # times the gain that tol allows, which is an estimate
_PAIRS = 8  # of points in which a step is looked for
NEAR = 0.1  # of the size of a parameter: where a direction is straight, and a jump looked for


class Verdict(NamedTuple):
    """The end of a run, if it is one."""

    status: Status | None  # None where the run should go on
    reason: str = ""  # in a sentence, where there is more to say than the status does
    gain: float = math.nan  # the decrease of the loss still to be expected


def falls(point: Any, found: Curvature, drop: float) -> Verdict | None:
    """Return SADDLE or FLAT if the loss around the point shows that, else None.

    NO_PROGRESS where it curves down, but falls by its slope.
    """
    if found.is_concave:
        noise, curvature = point.noise(), -found.values[0]
        most = max(drop, abs(point.state.value)) or 1.0  # of a start, where nothing has dropped
        for fall in np.geomspace(most, max(2 * noise, 1e-12 * most), 7).tolist():
            step = math.sqrt(2 * fall / curvature) * found.directions[0]
            if min(point.change(step)[0], point.change(-step)[0]) < -noise:
                if abs(step @ point.gradient) <= fall:
                    return Verdict(Status.SADDLE)
                steepest = int(np.argmax(np.abs(step / point.reach)))
                name, number = point.names[steepest], point.free_x[steepest]
                return Verdict(Status.NO_PROGRESS, _POLE.format(name=name, number=number))
        return None
    if found.gain > point.assumed_noise:
        return None
    seen = []
    for direction in found.flat[:_FLAT_DIRECTIONS]:
        unit = direction / np.max(np.abs(direction) / point.reach)
        lengths = (-1e-1, -1e-2, -1e-3, 1e-3, 1e-2, 1e-1)
        seen += [point.change(length * unit) for length in lengths]
    if not seen:
        return None
    changes, noise = np.array([change for change, _ in seen]), point.noise()
    if found.is_zero and not any(grad.any() for _, grad in seen):
        return Verdict(Status.FLAT, _STEPS_AROUND if (np.abs(changes) > noise).any() else "")
    if (changes < -noise).any():
        return Verdict(Status.SADDLE, _FALLS_ON)
    return Verdict(Status.FLAT) if found.is_zero and not (changes > noise).any() else None


def still_falls(point: Any) -> Verdict | None:
    """Return SADDLE or FLAT if parameters without slope and curvature lower the loss, else None.

    No derivative says whether a parameter stands on a plateau, on a step, or does not matter.
    """
    size, level = point.reach, _level(point)
    # By its derivatives, a step as long as the parameter would not be seen in the loss.
    still = np.flatnonzero(size * np.abs(point.gradient) <= point.assumed_noise)
    if not len(still):
        return None
    curved = size * np.abs(point.times(size * oblique(len(size))))
    still = still[curved[still] <= point.assumed_noise]
    size = size[still]
    few = len(still) <= _FLAT_DIRECTIONS
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (2, len(still)))
    units = np.diag(size) if few else size * signs
    for unit in (sign * unit for unit in units for sign in (-1.0, 1.0)):
        slopes = False  # from the point on
        for length in _LENGTHS:
            step = np.zeros_like(point.gradient)
            step[still] = length * unit
            change, grad = point.change(step)
            slopes |= length == _LENGTHS[0] and grad[still].any()
            if change < -level and change < -point.noise():
                if slopes:
                    return Verdict(Status.SADDLE, _FALLS_ON)
                return _plateau(point, step, change)
    return None


def _plateau(point: Any, step: np.ndarray, change: float) -> Verdict:
    """Return FLAT, with a parameter of the step that changes the loss."""
    moved = np.flatnonzero(step)
    name, number = point.names[moved[0]], point.free_x[moved[0]] + step[moved[0]]
    others = " and others moved too" if len(moved) > 1 else ""
    return Verdict(
        Status.FLAT,
        f"the gradient with respect to {name} is zero here, but at {name} = {number:.3g}{others} "
        f"the loss is {-change:.2g} lower: a plateau, or {_STEPS}",
    )


def steps_down(point: Any) -> Verdict | None:
    """Return NO_PROGRESS or SADDLE if the loss is less a tenth of the parameters away, else None.

    It may jump there: a penalty beside a loss that goes in steps has a minimum of its own, which is
    none of the loss. Or fall without rising first, as at an inflection.
    """
    size, level = NEAR * point.size, _level(point)
    first = size * oblique(len(size))
    slope, curved = float(point.gradient @ first), float(first @ point.times(first))
    explained = True
    for sign in (-1.0, 1.0):
        change = point.change(sign * first)[0]
        if found := _lower(point, sign * first, change, level):
            return found
        explained &= bool(is_explained(change, sign * slope + 0.5 * curved, point.assumed_noise))
    if explained:
        return None
    rng = np.random.default_rng(0)
    for _ in range(_PAIRS - 1):
        way = size * rng.normal(size=len(size))
        for step in (-way, way):
            if found := _lower(point, step, point.change(step)[0], level):
                return found
    return None


def _lower(point: Any, step: np.ndarray, change: float, level: float) -> Verdict | None:
    """Return why a point is no minimum whose loss a step changes by `change`, if it shows that."""
    if not change < -level:
        return None
    if jump := _jump(point, step, change):
        return Verdict(
            Status.NO_PROGRESS,
            f"the loss is {-change:.2g} lower nearby, beyond a jump by {jump:.2g} that its "
            f"gradient does not know of: {_STEPS}",
        )
    risen = any(point.change(part * step)[0] > 0 for part in _PARTS)
    return None if risen else Verdict(Status.SADDLE, _FALLS_ON)


def oblique(size: int) -> np.ndarray:
    """Return a vector along no axis, whose entries are between 0.5 and 1.5 in size."""
    rng = np.random.default_rng(0)
    return rng.choice([-1.0, 1.0], size) * rng.uniform(0.5, 1.5, size)


def is_explained(change: Any, model: Any, noise: Any) -> Any:
    """Whether the quadratic model is near enough to a change of the loss to rule out a jump."""
    return np.abs(change - model) <= 0.5 * np.abs(change) + noise


def _level(point: Any) -> float:
    """Return a change of the loss that neither tol nor rounding explains."""
    fallen = abs(point.judge.start.value - point.state.value)
    return max(_MARGIN * point.judge.tol**2 * fallen, point.assumed_noise)


def _jump(point: Any, step: np.ndarray, change: float) -> float:
    """Return the size of a jump of the loss within a step by which it changes; 0 if it has none.

    By bisection: a change that is continuous shrinks with the interval.
    """
    near, far, level = 0.0, 1.0, 0.0  # the ends of the interval, and the change at `near`
    halvings = int(-math.log2(point.eps / NEAR)) - 1
    total = abs(change)
    for _ in range(halvings):
        middle = 0.5 * (near + far)
        half = point.change(middle * step)[0]
        if abs(half - level) >= abs(change - half):
            far, change = middle, half
        else:
            near, level = middle, half
    jump = abs(change - level)
    # A root changes by the square root of the interval at most; noise is everywhere.
    continuous = max(4 * total * 2.0 ** (-0.75 * halvings), point.assumed_noise)
    return jump if jump > continuous and jump > 10 * point.spread(step) else 0.0


def wrong_slope(point: Any) -> str:
    """Return what is wrong with the gradient, if differences of the loss contradict it."""
    if not point.judge.optimizer.loss_alone:
        return ""  # `gradient` is that of the loss alone
    g, noise = point.gradient, point.noise()
    slope = float(g @ g)
    if not slope > 0:
        return ""
    # The gradient predicts changes well above the noise, which it should do at both lengths.
    t = max(1e2 * noise, 1e-12 * abs(point.state.value)) / slope
    if not (np.abs(t * g) > 1e2 * point.eps * np.abs(point.free_x)).any():
        return ""  # such steps are rounded away
    near, far = ([point.change(s * k * t * g)[0] for s in (-1, 1)] for k in (1.0, 4.0))
    if not np.isfinite([*near, *far]).all():
        return ""
    found = [(ends[1] - ends[0]) / (2 * k * t * slope) for ends, k in ((near, 1), (far, 4))]
    if max(found) < -0.3 and abs(found[0] - found[1]) < 0.3 * abs(found[0]):
        return _WRONG
    # At a kink both sides rise in proportion to the length, at a minimum by its square.
    if min(near) > 10 * noise and max(far) < 6 * max(near) and min(far) > 2 * min(near):
        return _KINK
    return ""


_FALLS_ON = "the loss falls along a direction without curvature."
_POLE = (
    "the loss falls ever more steeply: beside a pole (log or a division at zero, a variance that "
    "goes to zero with a perfect fit) it has no minimum, at a root (sqrt, a power below one) no "
    "derivative. Bound or penalize {name}, now {number:.3g}."
)
_STEPS = (
    "a loss that goes in steps (round, a threshold, an argmax, a count), or stop_gradient. Use a "
    "smooth loss in its place."
)
_STEPS_AROUND = (
    "the loss changes, but its gradient is zero all around: it goes in steps (round, a threshold, "
    "an argmax, a count), or stop_gradient cuts it off. Use a smooth loss in its place."
)
_WRONG = (
    "the loss rises along the negative gradient: check the derivative, which is not the right one, "
    "with mo.autodiff.check_grads (a custom vjp, stop_gradient, a sum over processes)."
)
_KINK = (
    "the loss is not smooth: it has a kink here (abs, maximum, relu), which methods for smooth "
    "losses cannot settle in. Use ProximalGradient for a penalty, or a smooth loss such as huber."
)
