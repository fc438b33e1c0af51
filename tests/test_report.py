"""One report on verdicts: cases of every kind, with their right answers or without a minimum.

`pytest tests/test_report.py -s` prints it. A silent case is CONVERGED on a wrong answer; a false
alarm is a right answer (as close as the rounding of the loss allows) that is not called one.
"""

import warnings
from collections import Counter
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from scipy import optimize, special

import mlxopt as mo

METHODS = {
    "LBFGS": mo.LBFGS(),
    "BFGS": mo.BFGS(),
    "Newton": mo.Newton(),
    "TrustRegion": mo.TrustRegion(),
    "LBFGSB": mo.LBFGSB(),
}
X = np.linspace(0.1, 4.0, 40)
NOISE = 0.02 * np.sin(91 * X)
CLASSES = (np.sin(37 * X) + X > 2).astype(float)


class Case(NamedTuple):
    kind: str
    loss: Any
    start: Any
    right: Any = None  # the parameters, or a test of them; None where there is no minimum
    data: tuple[Any, ...] = ()
    near: float = 1e-3  # as close as float32 can tell, relative


def logistic_fit() -> np.ndarray:
    def value(p):
        z = p[0] * X + p[1]
        return np.mean(np.logaddexp(0, z) - CLASSES * z)

    def slope(p):
        r = special.expit(p[0] * X + p[1]) - CLASSES
        return np.array([np.mean(r * X), np.mean(r)])

    return optimize.minimize(value, np.zeros(2), jac=slope, method="BFGS", tol=1e-12).x


def curve(model, guess, y):
    """Return the least-squares parameters, by MINPACK in float64."""
    found, _ = optimize.curve_fit(model, X, y, guess, ftol=1e-14, xtol=1e-14, gtol=1e-14)
    return found


def squares(model):
    return lambda p, x, y: mx.mean(mx.square(model(p, x) - y))


CURVES = {
    "decay": (lambda p, x: p[0] * mx.exp(-p[1] * x), lambda x, a, b: a * np.exp(-b * x), (2, 0.7)),
    "saturation": (lambda p, x: p[0] * x / (p[1] + x), lambda x, a, b: a * x / (b + x), (3, 1.5)),
    "wave": (lambda p, x: p[0] * mx.sin(p[1] * x), lambda x, a, b: a * np.sin(b * x), (1.5, 1.1)),
    "power": (lambda p, x: p[0] * x ** p[1], lambda x, a, b: a * x**b, (1.2, 1.8)),
}


def cases() -> list[Case]:
    found = []
    for unit in (1e-9, 1e-4, 1.0, 1e6):
        goal = np.array([3.0, -2.0]) * unit

        def bowl(p, goal=tuple(goal), unit=unit):
            return mx.mean(mx.square((p - mx.array(goal, dtype=p.dtype)) / unit)) * 1e-6

        found.append(Case("1 units", bowl, np.zeros(2), goal))
        found.append(
            Case("1 a constant", lambda p, f=bowl: f(p) + 1e-3, np.zeros(2), goal, (), 0.1)
        )
    for loss, start in [
        (lambda x: 1 - mx.exp(-mx.sum(x**2)), [30.0, 1.0]),
        (lambda x: mx.sum(mx.round(x)), [0.3, 0.2]),
        (lambda x: mx.mean(mx.where(x > 0.5, 1.0, 0.0)), [0.2, 0.7]),
        (lambda x: mx.sum(mx.stop_gradient(x) ** 2), [1.0, 2.0]),
    ]:
        found.append(Case("2, 14 no gradient", loss, np.array(start)))
    product = Case("2 zeros", lambda x: mx.prod(x) ** 2 - mx.prod(x), np.zeros(2))
    found.append(product._replace(right=lambda p: abs(p[0] * p[1] - 0.5) < 1e-3))
    found.append(Case("2 a minimum", lambda x: mx.sum(x**2), np.zeros(2), np.zeros(2)))
    for name, (model, plain, truth) in CURVES.items():
        guess, exact = 0.9 * np.array(truth), plain(X, *truth)
        found.append(Case(f"3 {name}", squares(model), guess, np.array(truth), (X, exact)))
        noisy = exact + NOISE
        right = curve(plain, guess, noisy)
        found.append(Case(f"3 {name}, noise", squares(model), guess, right, (X, noisy)))

    def classes(p, x, y):
        z = p[0] * x + p[1]
        return mx.mean(mx.logaddexp(mx.array(0.0, z.dtype), z) - y * z)

    found.append(Case("4 logistic", classes, np.zeros(2), logistic_fit(), (X, CLASSES)))

    def normal(p, x, y):
        return mx.mean(0.5 * mx.square((p[0] * x + p[1] - y) / mx.exp(p[2]))) + p[2]

    found.append(Case("10 variance to zero", normal, np.zeros(3), None, (X, 2 * X + 1)))
    for name, loss in {
        "saddle": lambda x: x[0] ** 2 - x[1] ** 2,
        "monkey saddle": lambda x: x[0] ** 3 - 3 * x[0] * x[1] ** 2,
        "unbounded": lambda x: mx.sum(x) - mx.sum(x**2),
        "pole": lambda x: -1 / mx.sum(x**2),
    }.items():
        start = np.zeros(2) if "saddle" in name else np.array([1.5, -0.7])
        found.append(Case(f"18 {name}", loss, start))
    return found


def is_right(case: Case, params: np.ndarray) -> bool:
    if callable(case.right):
        return bool(case.right(params))
    scale = np.abs(case.right).max() or 1.0
    return bool(np.abs(params - case.right).max() <= case.near * scale)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64], ids=["float32", "float64"])
def test_silent_cases_and_false_alarms(dtype):
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    for case in cases():
        for name, method in METHODS.items():
            with mx.stream(mx.cpu):
                start = mx.array(case.start, dtype=dtype)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = mo.minimize(case.loss, start, method, *case.data)
            right = case.right is not None and is_right(case, np.array(result.params))
            said = "right and said right" if right else "silent"
            if not result.converged:
                said = "false alarm" if right else "not right and said so"
            counts["cases"] += 1
            counts[said] += 1
            if said in ("silent", "false alarm"):
                wrong.append(f"{said}: {case.kind}, {name}: {result.status.name} {result.params}")
    print(f"\n{dtype}: {dict(counts)}")
    assert not wrong, wrong
