"""How many files of the package a call passes through: a reader has to open as many.

The engine counts once: like a compiler it changes no meaning.
"""

import gc
import os
import sys
from pathlib import Path

import mlx.core as mx
import pytest

import mlxopt as mo

PACKAGE = Path(mo.__file__).parent
X = mx.random.normal((64, 2), key=mx.random.key(0))
Y = X @ mx.array([2.0, -3.4]) + 4.2
START = {"w": mx.zeros(2), "b": mx.array(0.0)}
STARTS = {"w": mx.zeros((3, 2)), "b": mx.zeros(3)}
LBFGS, SGD = mo.LBFGS(), mo.SGD(0.05)


def residual(params, X, y):
    return X @ params["w"] + params["b"] - y


def loss(params, X, y):
    return mx.mean(mx.square(residual(params, X, y)))


WALKS = {
    "minimize": (24, lambda: mo.minimize(loss, START, LBFGS, X, Y)),
    "train": (19, lambda: mo.train(loss, START, SGD, mo.batches(X, Y, batch_size=8), epochs=2)),
    "least_squares": (29, lambda: mo.least_squares(residual, START, X, Y)),
    "minimize_many": (
        29,
        lambda: mo.minimize_many(loss, STARTS, LBFGS, X, Y, in_axes=(0, None, None)),
    ),
}


def walk(call) -> set[str]:
    """Return the files of the package whose functions a second call enters."""
    seen = set()

    def profile(frame, event, _):
        if event == "call":
            seen.add(frame.f_code.co_filename)

    call()
    gc.collect()  # a generator that is collected during the walk would count as entered
    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(before)
    inside = {os.path.relpath(path, PACKAGE) for path in seen if path.startswith(str(PACKAGE))}
    return {"engine" if path.startswith("engine") else path for path in inside}


@pytest.mark.parametrize("name", WALKS)
def test_a_call_passes_through_few_files(name):
    most, call = WALKS[name]
    files = walk(call)
    assert len(files) <= most, sorted(files)
