"""Test problems know their own answers, and those that others published."""

import dataclasses
import json
import math
from pathlib import Path
from typing import cast

import mlx.core as mx
import numpy as np
import pytest

import mlxopt as mo
from mlxopt import problems
from mlxopt.problems import Minimum, Problem

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "mgh.json"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the shared test data are not here")
PUBLISHED = json.loads(DATA.read_text())["problems"] if DATA.exists() else []


def number_of(problem: Problem) -> int:
    return int(problem.origin.rpartition(" ")[2])


def loss_at(problem: Problem, point) -> float:
    x = mx.array(np.array(point, dtype=np.float64), dtype=mx.float64)
    with mx.stream(mx.cpu):
        return float(np.array(problem.loss(x)))


@pytest.mark.parametrize("problem", problems.ALL, ids=lambda problem: problem.name)
def test_each_record_is_right_about_itself(problem):
    problem.check()


def test_the_whole_set_is_there():
    assert sorted({number_of(problem) for problem in problems.MGH}) == list(range(1, 36))
    assert len(problems.OTHERS) + len(problems.BOUNDED) >= 12
    names = [problem.name for problem in problems.ALL]
    assert len(set(names)) == len(names)
    assert sum(problem.view is not None for problem in problems.ALL) >= 10


@needs_data
@pytest.mark.parametrize("published", PUBLISHED, ids=lambda one: one["name"])
def test_the_published_numbers(published):
    [problem] = [
        one
        for one in problems.MGH
        if number_of(one) == int(published["number"]) and one.size == published["n"]
    ]
    np.testing.assert_allclose(problem.start, published["x0"], rtol=1e-15)
    assert problem.start_value == pytest.approx(float(published["f0"]), rel=1e-13)
    assert problem.residual is not None
    with mx.stream(mx.cpu):
        assert problem.residual(problem.params()).shape == (published["m"],)
    # Six digits were printed.
    for text in published["fmin_published"]:
        assert problem.solved_by(float(text), relative=1e-5), text
    best = float(published["best_found"].removeprefix("np.float64(").rstrip(")"))
    assert problem.solved_by(best, relative=1e-4)  # Watson (12) was not found to more digits
    point = [float(text) for text in published["x_best"]]
    assert loss_at(problem, point) == pytest.approx(best, rel=1e-6, abs=1e-25)


def broken(**changes) -> Problem:
    return dataclasses.replace(problems.get("Beale"), **changes)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (broken(start_value=14.2031), "value at the start"),
        (broken(minima=(Minimum(0.0, (3.0, 0.501)),)), "value at"),
        (broken(minima=(Minimum(14.203125, (1.0, 1.0)),)), "gradient"),
        (
            broken(minima=(Minimum(0.0, (3.0, 0.5)),), bounds=((-1.0, -1.0), (2.0, 2.0))),
            "out of bounds",
        ),
    ],
)
def test_a_wrong_record_is_found_out(problem, message):
    with pytest.raises(AssertionError, match=message):
        problem.check()


def test_a_wrong_derivative_is_found_out():
    @mx.custom_function
    def square(x):
        return mx.square(x)

    @square.vjp
    def _(x, cotangent, _):
        return 1.9 * x * cotangent

    bowl = Problem("bowl", (1.0, 2.0), 5.0, (Minimum(0.0, (0.0, 0.0)),), "", residual=None)
    dataclasses.replace(bowl, function=lambda x: mx.sum(mx.square(x))).check()
    with pytest.raises(AssertionError, match="derivative"):
        dataclasses.replace(bowl, function=lambda x: mx.sum(cast(mx.array, square(x)))).check()


def test_a_name_that_is_not_there_has_neighbors():
    assert problems.get("Wood").name == "Wood"
    with pytest.raises(KeyError, match="Rosenbrock"):
        problems.get("rosenbrok")


def test_starts_farther_out():
    wood = problems.get("Wood")
    assert wood.params(factor=10).tolist() == [-30, -10, -30, -10]
    assert wood.params(mx.float32).dtype == mx.float32
    assert problems.get("Watson (6)").params(factor=10).tolist() == [10] * 6


def test_solved_is_relative_to_the_minimum_or_to_the_start():
    meyer, gaussian = problems.get("Meyer"), problems.get("Discrete boundary value (10)")
    assert meyer.solved_by(meyer.value * (1 + 9e-7))
    assert not meyer.solved_by(meyer.value * (1 + 2e-6))
    assert gaussian.solved_by(0.9e-6 * gaussian.start_value)
    assert not gaussian.solved_by(2e-6 * gaussian.start_value)
    assert not meyer.solved_by(math.nan)


@pytest.mark.parametrize("problem", problems.OTHERS, ids=lambda problem: problem.name)
def test_a_minimizer_gets_to_a_known_minimum(problem):
    result = mo.minimize(problem.loss, problem.params(), mo.LBFGS(), compile=False)
    assert problem.solved_by(result.value, relative=1e-8)
