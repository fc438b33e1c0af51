"""Losses that call mx.distributed, in one process and in two."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlxopt as mo

rng = np.random.default_rng(0)
DESIGN, TARGET = rng.normal(size=(20, 2)), rng.normal(size=20)
SOLUTION = np.linalg.lstsq(DESIGN, TARGET, rcond=None)[0]
START = mx.zeros(2)


def share():
    """Return the rows of this process."""
    group = mx.distributed.init()
    rows = slice(group.rank(), None, group.size())
    return mx.array(DESIGN[rows]), mx.array(TARGET[rows])


def local(p, X, y):
    return mx.sum(mx.square(X @ p - y))


def summed(p, X, y):
    return mx.distributed.all_sum(local(p, X, y))


def with_a_group(p, X, y):
    return mx.distributed.all_sum(mx.square(X @ p - y), group=mx.distributed.init()).sum()


def largest(p, X, y):
    return mx.distributed.all_max(local(p, X, y))


def gathered(p, X, y):
    return mx.mean(mx.distributed.all_gather(mx.square(X @ p - y)))


def scaled(p, X, y):
    return local(p, X, y) / mx.distributed.all_sum(1 + mx.sum(mx.square(p)))


def counted(p, X, y):
    return local(p, X, y) / mx.distributed.all_sum(mx.array(float(len(y))))


@mx.custom_function
def sum_of_all(value):
    return mx.distributed.all_sum(value)


@sum_of_all.vjp
def _(_, cotangent, __):
    return cotangent


@mx.custom_function
def parameters_of_all(p):
    return p


@parameters_of_all.vjp
def _(_, cotangent, __):
    return mx.distributed.all_sum(cotangent)


def right(p, X, y) -> Any:
    return sum_of_all(local(parameters_of_all(p), X, y))


REFUSED = [summed, with_a_group, largest, gathered, scaled]
CALLS = {
    "minimize": lambda loss: mo.minimize(loss, START, mo.LBFGS(), *share()),
    "op by op": lambda loss: mo.minimize(loss, START, mo.LBFGS(), *share(), compile=False),
    "train": lambda loss: mo.train(loss, START, mo.SGD(0.01), [share()]),
    "least_squares": lambda loss: mo.least_squares(
        lambda p, X, y: loss(p, X, y) * mx.ones(3), START, *share()
    ),
    "grad": lambda loss: mo.grad(loss)(START, *share()),
    "hessian": lambda loss: mo.hessian(loss)(START, *share()),
}


def report() -> dict[str, object]:
    """Return what this process sees: errors by loss and call, and two answers."""
    seen: dict[str, object] = {}
    for loss in REFUSED:
        for name, call in CALLS.items():
            try:
                call(loss)
                seen[f"{loss.__name__}, {name}"] = "nothing raised"
            except ValueError as error:
                seen[f"{loss.__name__}, {name}"] = str(error)
    seen["counted"] = mo.minimize(counted, START, mo.LBFGS(), *share()).params.tolist()
    result = mo.minimize(right, START, mo.LBFGS(), *share(), tol=1e-3)
    seen["right"] = result.params.tolist()
    return seen


@pytest.mark.parametrize("loss", [summed, with_a_group, largest, gathered, counted])
def test_alone_they_are_what_they_are_without(loss):
    result = mo.minimize(loss, START, mo.LBFGS(), *share(), tol=1e-3)
    np.testing.assert_allclose(result.params, SOLUTION, atol=1e-3)
    assert mo.grad(loss)(START, *share()).shape == (2,)


@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("mlx.launch", path=Path(sys.executable).parent) is None,
    reason="needs mlx.launch, and two processes that can connect",
)
def test_two_processes_refuse_a_gradient_of_their_own_rows(tmp_path):
    launch = Path(sys.executable).parent / "mlx.launch"
    command = [launch, "-n", "2", "--backend", "ring", "--", sys.executable, __file__, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    reports = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert len(reports) == 2, done.stderr
    for seen in reports:
        for loss in REFUSED:
            for name in CALLS:
                message = seen[f"{loss.__name__}, {name}"]
                assert "calls mx.distributed.all_" in message, (loss.__name__, name, message)
                assert "its own answer" in message
        # A rule that sums the gradient too gives the answer of all rows, in both processes.
        np.testing.assert_allclose(seen["right"], SOLUTION, atol=1e-3)
    # What does not depend on the parameters passes; such a loss is that of the process's rows.
    halves = [np.linalg.lstsq(DESIGN[i::2], TARGET[i::2], rcond=None)[0] for i in (0, 1)]
    found = sorted(seen["counted"] for seen in reports)
    np.testing.assert_allclose(found, sorted(half.tolist() for half in halves), atol=1e-3)


if __name__ == "__main__":
    # The processes share one standard output, and their lines may be mixed.
    path = Path(sys.argv[1], f"{mx.distributed.init().rank()}.json")
    path.write_text(json.dumps(report()))
