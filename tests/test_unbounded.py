"""A loss without a minimum ends UNBOUNDED, at a finite point, with every method."""

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlxopt as mo
from mlxopt import Status

LOSSES: dict[str, Any] = {
    "linear": lambda x: mx.sum(x),
    "parabola": lambda x: -mx.sum(x**2),
    "cubic": lambda x: mx.sum(x**3),
    "exp": lambda x: -mx.sum(mx.exp(x)),
    "saddle": lambda x: x[0] ** 2 - x[1] ** 2,
    "root": lambda x: -mx.sum(mx.sqrt(mx.abs(x) + 1)),
    "pole": lambda x: -1 / mx.sum(x**2),
}
METHODS: dict[str, Any] = {
    "GradientDescent": mo.GradientDescent(),
    "Hager-Zhang": mo.ConjugateGradient(),
    "Polak-Ribiere": mo.ConjugateGradient("polak-ribiere"),
    "BFGS": mo.BFGS(),
    "LBFGS": mo.LBFGS(),
    "LBFGSB": mo.LBFGSB(),
    "Newton": mo.Newton(),
    "NewtonCG": mo.NewtonCG(),
    "TrustRegion": mo.TrustRegion(),
    "TrustRegion by CG": mo.TrustRegion(exact=False),
}
FALLING = {"linear", "parabola", "cubic", "saddle"}  # without limit along -x[1]


def start(dtype=mx.float32):
    with mx.stream(mx.cpu):
        return mx.array([1.5, -0.7], dtype=dtype)


def check(found, loss):
    assert found.status is Status.UNBOUNDED
    assert math.isfinite(found.value)
    with mx.stream(mx.cpu):
        assert np.isfinite(np.array(found.params)).all()
        begin = loss(start()).item()
    assert found.value <= begin + 1e-6


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_with_a_line_search_or_a_region(method, name, dtype):
    with pytest.warns(mo.ConvergenceWarning, match="UNBOUNDED: the loss keeps falling"):
        found = mo.minimize(LOSSES[name], start(dtype), METHODS[method], max_steps=3000)
    check(found, LOSSES[name])


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", sorted(FALLING))
def test_bounds_that_leave_a_way_down(name, dtype):
    upper = mx.array([50.0, math.inf])
    with pytest.warns(mo.ConvergenceWarning, match="UNBOUNDED"):
        found = mo.minimize(LOSSES[name], start(dtype), mo.LBFGSB(upper=upper))
    check(found, LOSSES[name])
    assert found.params[0].item() <= 50


@pytest.mark.parametrize("name", sorted(FALLING))
def test_bounds_that_leave_none_are_a_minimum(name):
    found = mo.minimize(LOSSES[name], start(), mo.LBFGSB(lower=-3.0, upper=2.0))
    right = {"linear": -6.0, "parabola": -13.0, "cubic": -54.0, "saddle": -9.0}[name]
    assert found.converged
    assert found.value == pytest.approx(right, rel=1e-6)


@pytest.mark.parametrize("name", ["parabola", "cubic", "exp", "saddle"])
def test_penalties_that_do_not_hold_the_loss(name):
    with pytest.warns(mo.ConvergenceWarning, match="UNBOUNDED"):
        found = mo.minimize(LOSSES[name], start(), mo.ProximalGradient(mo.prox.L1(0.1)))
    check(found, LOSSES[name])


@pytest.mark.parametrize("optimizer", [mo.SGD(0.1), mo.Momentum(0.1), mo.SGD(10.0)], ids=repr)
@pytest.mark.parametrize("name", ["parabola", "cubic", "saddle"])
def test_first_order_rules(optimizer, name):
    with pytest.warns(mo.ConvergenceWarning, match="UNBOUNDED"):
        found = mo.minimize(LOSSES[name], start(), optimizer, max_steps=5000)
    check(found, LOSSES[name])


def test_mini_batches():
    def loss(w, x):
        return -mx.mean(mx.exp(mx.square(w * x)))

    with pytest.warns(mo.ConvergenceWarning, match="UNBOUNDED"):
        found = mo.train(loss, mx.array(0.5), mo.SGD(0.1), [mx.ones(4)] * 200)
    assert found.status is Status.UNBOUNDED
    assert found.value < 0
    assert math.isfinite(found.params.item())


@pytest.mark.parametrize("method", ["LBFGS", "Newton", "BFGS", "LBFGSB", "TrustRegion"])
@pytest.mark.parametrize("name", sorted(FALLING))
def test_many_problems_at_once(method, name):
    def either(x, falls):
        return mx.where(falls > 0, LOSSES[name](x), mx.sum((x - 1) ** 2))

    starts = mx.stack([start(), start()])
    with pytest.warns(mo.ConvergenceWarning, match="UNBOUNDED"):
        found = mo.minimize_many(either, starts, METHODS[method], [1.0, 0.0])
    assert found.status.tolist() == [Status.UNBOUNDED, Status.CONVERGED]
    assert np.isfinite(found.value).all()
    assert found.params[1].tolist() == pytest.approx([1.0, 1.0], abs=1e-5)


@pytest.mark.parametrize("scale", [1e-9, 1e-4, 1.0, 1e6])
@pytest.mark.parametrize("method", ["LBFGS", "LBFGSB", "Newton", "TrustRegion"])
def test_a_deep_minimum_is_a_minimum(method, scale):
    # A sum of a million normal log-densities: from about 0 down to tens of millions below it.
    def loss(p):
        return 1e6 * (p[1] + 0.5 * (scale**2 + (p[0] - 3 * scale) ** 2) * mx.exp(-2 * p[1]))

    with mx.stream(mx.cpu):
        begin = mx.array([0.0, math.log(scale) + 3.0], dtype=mx.float64)
    found = mo.minimize(loss, begin, METHODS[method])
    assert found.converged
    assert found.params[1].item() == pytest.approx(math.log(scale), abs=1e-4)
    assert found.value == pytest.approx(1e6 * (math.log(scale) + 0.5), rel=1e-8)
