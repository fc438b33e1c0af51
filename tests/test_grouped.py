"""Rules made of rules: groups of leaves, frozen leaves, clipped gradients."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from problems import array64, regression

import mlxopt as mo
from mlxopt import schedules


def momentum(gradient, x, rate, steps, limit):
    """Heavy ball with the gradient's norm limited (Pascanu, Mikolov and Bengio 2013)."""
    v = np.zeros_like(x)
    for t in range(steps):
        g = gradient(x)
        g = g if np.linalg.norm(g) <= limit else g * limit / np.linalg.norm(g)
        v = 0.9 * v + g
        x = x - rate(t) * v
    return x


def mean_square(w, X, y):
    return 0.5 * mx.mean(mx.square(X @ w - y))


def least_squares():
    X, y, _ = regression()
    return X, y, lambda w: X.T @ (X @ w - y) / len(y)


def tree_loss(params, X, y):
    hidden = mx.tanh(X @ params["layers"][0]["weight"] + params["layers"][0]["bias"])
    return 0.5 * mx.mean(mx.square(hidden @ params["layers"][1]["weight"] - y))


def tree():
    rng = np.random.default_rng(0)
    return {
        "layers": [
            {"weight": array64(rng.normal(size=(5, 4))), "bias": array64(np.zeros(4))},
            {"weight": array64(rng.normal(size=4))},
        ]
    }


def paths(params):
    first, second = params["layers"]
    return {"w0": first["weight"], "b0": first["bias"], "w1": second["weight"]}


def test_each_group_follows_its_own_rule():
    # The gradient of a leaf does not depend on how the others are stepped in the first step.
    X, y, _ = regression()
    rules = [mo.SGD(0.1), mo.AdamW(schedules.constant(0.01)), mo.Lion(0.3)]
    grouped = mo.Grouped(rules[2], {"*[0]['weight']": rules[0], "*bias*": rules[1]})
    one = {"tol": 0.0, "max_steps": 1}
    found = paths(mo.minimize(tree_loss, tree(), grouped, X, y, **one).params)
    for key, rule in zip(("w0", "b0", "w1"), rules, strict=True):
        alone = paths(mo.minimize(tree_loss, tree(), rule, X, y, **one).params)
        np.testing.assert_array_equal(np.array(found[key]), np.array(alone[key]))


def test_groups_of_one_rule_are_that_rule():
    X, y, _ = regression()
    rule = mo.Adam(schedules.cosine(0.05, steps=57))
    nested = mo.Grouped(rule, {"*bias*": mo.Grouped(rule, {}), "*[1]*": rule})
    options: dict[str, Any] = {"tol": 0, "max_steps": 57}
    for compile in (True, False):
        runs = [
            mo.minimize(tree_loss, tree(), one, X, y, compile=compile, **options)
            for one in (rule, nested)
        ]
        for key, leaf in paths(runs[0].params).items():
            np.testing.assert_allclose(
                np.array(paths(runs[1].params)[key]), np.array(leaf), rtol=1e-12, atol=1e-14
            )


def test_weight_decay_spares_the_leaves_of_another_rule():
    def flat(params):
        return 0.0 * (mx.sum(params["weight"]) + mx.sum(params["bias"]))

    rule = mo.Grouped(mo.AdamW(0.1, weight_decay=0.5), {"*bias*": mo.Adam(0.1)})
    params = {"weight": mx.ones(2), "bias": mx.ones(2)}
    result = mo.minimize(flat, params, rule, tol=0, max_steps=3)
    np.testing.assert_allclose(np.array(result.params["weight"]), 0.95**3, rtol=1e-6)
    assert result.params["bias"].tolist() == [1, 1]


def test_frozen_leaves_stay_and_do_not_count_against_convergence():
    X, y, _ = regression()
    rule = mo.Grouped(mo.Adam(0.05), {"*layers'][0]*": None})
    start = tree()
    result = mo.minimize(tree_loss, start, rule, X, y, max_steps=5000)
    assert result.converged
    kept, before = paths(result.params), paths(start)
    assert kept["w0"].tolist() == before["w0"].tolist()
    assert kept["b0"].tolist() == before["b0"].tolist()
    hidden = np.tanh(X @ np.array(before["w0"]))
    best = np.linalg.lstsq(hidden, y)[0]
    np.testing.assert_allclose(np.array(kept["w1"]), best, atol=1e-6)
    trained = mo.train(tree_loss, tree(), rule, mo.batches(X, y, batch_size=50), epochs=2)
    assert paths(trained.params)["w0"].tolist() == before["w0"].tolist()
    only = mo.Grouped(None, {"*[1]*": mo.Adam(0.05)})  # the same, said the other way round
    again = mo.minimize(tree_loss, tree(), only, X, y, max_steps=5000)
    assert paths(again.params)["w1"].tolist() == kept["w1"].tolist()


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({"*wieght*": None}, r"'\*wieght\*' fits no leaf. Did you mean params\['layers'\]"),
        ({"bias": None}, r"'bias' fits no leaf. Did you mean params\['layers'\]\[0\]\['bias'\]\?"),
        ({"params['layers'][2]['weight']": None}, r"Did you mean params\['layers'\]\[1\]"),
        ({"*zzz*": None}, r"The leaves are params\['layers'\]\[0\]\['weight'\], "),
        ({"*weight*": None, "*[1]*": mo.SGD()}, r"'\*\[1\]\*' fits was taken"),
        ({"*": None}, "every leaf is frozen"),
    ],
)
def test_patterns_that_would_do_nothing_raise(groups, words):
    X, y, _ = regression()
    rule = mo.Grouped(mo.Adam(), groups)
    with pytest.raises(ValueError, match=words):
        mo.minimize(tree_loss, tree(), rule, X, y)
    with pytest.raises(ValueError, match=words):
        mo.train(tree_loss, tree(), rule, mo.batches(X, y, batch_size=20))


def test_clipping_by_norm_equals_a_plain_loop():
    X, y, gradient = least_squares()
    # The gradient begins above the limit and ends below it.
    assert np.linalg.norm(gradient(np.zeros(5))) > 0.5
    expected = momentum(gradient, np.zeros(5), lambda t: 0.05, 80, limit=0.5)
    assert np.linalg.norm(gradient(expected)) < 0.5
    rule = mo.Clipped(mo.Momentum(0.05), norm=0.5)
    result = mo.minimize(mean_square, array64(np.zeros(5)), rule, X, y, tol=0, max_steps=80)
    np.testing.assert_allclose(np.array(result.params), expected, rtol=1e-12)


def test_the_norm_is_that_of_all_leaves_together_and_does_not_overflow():
    def loss(params):
        return 3e4 * params["a"] + 4e4 * params["b"].astype(mx.float32)

    start = {"a": mx.array(0.0), "b": mx.array(0.0, dtype=mx.float16)}
    result = mo.minimize(loss, start, mo.Clipped(mo.SGD(1.0), norm=5.0), tol=0, max_steps=1)
    assert result.params["a"].item() == pytest.approx(-3, rel=1e-3)
    assert result.params["b"].item() == pytest.approx(-4, rel=1e-3)
    huge = {"a": mx.array(3e30), "b": mx.array(4e30)}  # their squares are infinite in float32
    moved, _ = mo.Clipped(mo.SGD(1.0), norm=5.0).update(
        huge, (), {"a": mx.array(0.0), "b": mx.array(0.0)}, mx.array(1.0)
    )
    assert [moved["a"].item(), moved["b"].item()] == pytest.approx([-3, -4], rel=1e-6)


def test_clipping_by_value_limits_each_entry():
    rule = mo.Clipped(mo.SGD(1.0), value=0.5)
    grad = mx.array([0.25, -3.0, 0.5])
    moved, _ = rule.update(grad, (), mx.zeros(3), mx.array(1.0))
    assert moved.tolist() == [-0.25, 0.5, -0.5]


def test_a_gradient_that_is_not_finite_is_not_clipped_away():
    for limit in ({"norm": 1.0}, {"value": 1.0}):
        rule = mo.Clipped(mo.SGD(1.0), **limit)
        with pytest.warns(mo.ConvergenceWarning, match="NONFINITE"):
            result = mo.minimize(
                lambda w: mx.sum(mx.sqrt(w - 0.25)), mx.ones(2), rule, tol=0, max_steps=20
            )
        assert np.isfinite(np.array(result.params)).all()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: mo.Clipped(mo.SGD()), TypeError, "either norm or value"),
        (lambda: mo.Clipped(mo.SGD(), norm=1.0, value=1.0), TypeError, "nest two"),
        (lambda: mo.Clipped(mo.SGD(), norm=0.0), ValueError, "more than zero"),
        (lambda: mo.Clipped(mo.LBFGS(), norm=1.0), TypeError, "first-order"),  # pyright: ignore
        (lambda: mo.Grouped(mo.SGD, {}), TypeError, "first-order rules"),  # pyright: ignore
        (lambda: mo.Grouped(mo.SGD(), {"*": 0.1}), TypeError, "or None"),  # pyright: ignore
        (lambda: mo.Grouped(mo.SGD(), ["*b*"]), TypeError, "a dict"),  # pyright: ignore
    ],
)
def test_hyper_parameters_are_checked(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_rules_made_of_rules_are_values_too():
    one = mo.Grouped(mo.Clipped(mo.Adam(0.1), norm=1.0), {"*b*": None})
    assert one == mo.Grouped(mo.Clipped(mo.Adam(0.1), norm=1.0), {"*b*": None})
    assert one != mo.Grouped(mo.Clipped(mo.Adam(0.1), norm=2.0), {"*b*": None})
    assert repr(mo.Clipped(mo.SGD(0.1), norm=1.0)) == (
        "Clipped(rule=SGD(learning_rate=0.1), norm=1.0, value=None)"
    )
    with pytest.raises(AttributeError):
        one.rule = mo.SGD()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.filterwarnings("ignore::mlxopt.ConvergenceWarning")  # its valley is long
def test_a_network_trained_by_adam_goes_over_to_lbfgs():
    X, y, _ = regression()
    stages: list[Any] = [(mo.Adam(0.05), 100), mo.LBFGS()]
    result = mo.minimize(tree_loss, tree(), stages, X, y, tol=1e-3)
    assert [phase.optimizer for phase in result.phases] == ["Adam", "LBFGS"]
    assert result.phases[0].steps == 100
