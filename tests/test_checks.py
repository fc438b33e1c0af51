"""Numbers as arguments: NumPy's are welcome wherever Python's are, bools nowhere."""

import dataclasses
import fractions
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlxopt as mo
from mlxopt import optimizers, prox, schedules
from mlxopt._checks import check_choice, check_count, check_fields, check_number

VALUES = [
    *(kind() for kind in (mo.Momentum, mo.Adam, mo.AdamW, mo.RMSProp, mo.Adagrad, mo.Lion)),
    *(kind() for kind in (mo.Prodigy, mo.TrustRegion, optimizers.LevenbergMarquardt)),
    mo.Clipped(mo.SGD(0.1), norm=1.0),
    mo.Clipped(mo.SGD(0.1), value=1.0),
    mo.ProximalGradient(prox.L1(0.1), step_size=0.25),
    prox.L1(0.1),
    prox.ElasticNet(0.1, 0.2),
    prox.GroupLasso(0.1, axis=0),
    prox.Simplex(1.0),
    schedules.constant(0.1),
    schedules.step(0.1, every=2, factor=0.5),
    schedules.exponential(0.1, 0.5),
    schedules.cosine(0.1, steps=10),
    schedules.warmup(0.1, steps=3),
    schedules.one_cycle(0.1, steps=20),
    schedules.reduce_on_plateau(0.1),
]
FIELDS = [
    pytest.param(value, field.name, id=f"{type(value).__name__}-{field.name}")
    for value in VALUES
    for field in dataclasses.fields(value)
    if field.init and type(getattr(value, field.name)) in (int, float)
]


def minimized(value):
    """Return the parameters after three steps with an optimizer, a penalty or a schedule."""
    target = mx.array([1.0, -2.0])
    if isinstance(value, optimizers.LevenbergMarquardt):
        return mo.least_squares(lambda w: w - target, mx.zeros(2), optimizer=value).params
    if isinstance(value, prox.Penalty):
        value = mo.ProximalGradient(value)
    elif not isinstance(value, optimizers.Optimizer):
        value = mo.Momentum(value)
    start = mx.array([0.5, 0.5])
    return mo.minimize(lambda w: mx.sum((w - target) ** 2), start, value, tol=0, max_steps=3).params


@pytest.mark.parametrize(("value", "name"), FIELDS)
def test_numbers_of_numpy_are_welcome(value, name):
    plain = getattr(value, name)
    kinds = (np.int64, np.int32) if isinstance(plain, int) else (np.float64, np.float32)
    for kind in (*kinds, np.array, mx.array):
        given = kind(plain)
        other = dataclasses.replace(value, **{name: given})
        number: Any = given.item()
        same = dataclasses.replace(value, **{name: type(plain)(number)})
        assert other == same
        np.testing.assert_array_equal(np.array(minimized(other)), np.array(minimized(same)))


@pytest.mark.parametrize(("value", "name"), FIELDS)
def test_a_bool_is_no_number(value, name):
    for flag in (True, np.bool_(True)):
        with pytest.raises(TypeError, match="number"):
            dataclasses.replace(value, **{name: flag})


@pytest.mark.parametrize(
    "number", [2, 2.0, np.float64(2), np.float32(2), np.int8(2), fractions.Fraction(2)]
)
def test_check_number_returns_a_float(number):
    found = check_number(number, "tol")
    assert type(found) is float
    assert found == 2.0


@pytest.mark.parametrize("number", [3, np.int64(3), np.uint8(3)])
def test_check_count_returns_an_int(number):
    found = check_count(number, "steps")
    assert type(found) is int
    assert found == 3


@pytest.mark.parametrize(
    ("limits", "wrong", "words"),
    [
        ({"least": 0}, -1, "tol is -1; expected a finite number, zero or more."),
        ({"above": 0}, 0.0, "tol is 0.0; expected a finite number, more than zero."),
        ({"below": 3}, 3, "tol is 3; expected a finite number, less than 3."),
        ({"most": 2.5}, 3, "tol is 3; expected a finite number, 2.5 or less."),
        (
            {"least": 0, "below": 1},
            1.0,
            "tol is 1.0; expected a finite number, zero or more, less than 1.",
        ),
        ({"least": 0, "most": 1}, 2, "tol is 2; expected a finite number from 0 to 1."),
        ({"above": 0, "below": 1}, 0, "tol is 0; expected a finite number between 0 and 1."),
        ({}, float("nan"), "tol is nan; expected a finite number."),
        ({}, float("inf"), "tol is inf; expected a finite number."),
    ],
)
def test_the_range_in_words(limits, wrong, words):
    with pytest.raises(ValueError, match="expected") as caught:
        check_number(wrong, "tol", **limits)
    assert str(caught.value) == words


def test_a_label_that_shows_the_value_says_it_once():
    with pytest.raises(TypeError, match=r"^LBFGS\(memory=5.5\): expected a whole number, got flo"):
        check_count(5.5, "LBFGS(memory=5.5)")
    with pytest.raises(ValueError, match=r"^Adam\(beta1=1.5\): expected a finite number, zero or"):
        mo.Adam(beta1=1.5)
    with pytest.raises(TypeError, match=r"^tol is 'small'; expected a number, or None, got str"):
        check_number("small", "tol", instead=", or None")
    with pytest.raises(ValueError, match=r"^steps is 0; expected 1 or more"):
        check_count(0, "steps")


def test_check_choice():
    names = ("huber", "cauchy")
    assert check_choice("huber", "robust", names) == "huber"
    with pytest.raises(ValueError, match=r"'huber', 'cauchy'. Did you mean 'huber'\?"):
        check_choice("hubert", "robust", names)
    with pytest.raises(TypeError, match="robust is 3; expected one of 'huber', 'cauchy'"):
        check_choice(3, "robust", names)


def test_check_fields_keeps_the_numbers_of_python():
    @dataclasses.dataclass(frozen=True)
    class Rule:
        rate: float = 1

    rule = Rule()
    check_fields(rule, "rate")
    assert type(rule.rate) is int
