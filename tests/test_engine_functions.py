"""The functions in C under the engine, against mpmath in 60 digits."""

import ctypes
import math
import subprocess
from pathlib import Path

import fit_functions
import mpmath
import numpy as np
import pytest

import mlxopt
from mlxopt.engine import _build

HEADER = Path(mlxopt.__file__).parent / "engine" / "functions.h"
COMPILER = _build.compiler() or ""
pytestmark = pytest.mark.skipif(not COMPILER, reason="needs a C compiler")

# The units in the last place that the header states.
BOUNDS = dict.fromkeys(["exp", "expm1", "log", "log1p", "sigmoid", "tanh"], 2)
BOUNDS |= dict.fromkeys(["acos", "acosh", "asin", "asinh", "atan", "atanh", "cos", "cosh"], 4)
BOUNDS |= dict.fromkeys(["erf", "erfinv", "log10", "log2", "sin", "sinh", "tan"], 4)
PAIRS = dict.fromkeys(["logaddexp", "atan2", "pow"], 4)
DTYPES = {"f": np.float32, "d": np.float64}
LOOP = """
void {name}_{letter}_all({T} *out, const {T} *x, const {T} *y, long n)
{{
  _Pragma("omp simd") for (long i = 0; i < n; i++) out[i] = {name}_{letter}({arguments});
}}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("functions")
    text = f'#include "{HEADER}"\n'
    for names, arguments in ((BOUNDS, "x[i]"), (PAIRS, "x[i], y[i]")):
        for name in names:
            for letter, T in (("f", "float"), ("d", "double")):
                text += LOOP.format(name=name, letter=letter, T=T, arguments=arguments)
    source, library = folder / "functions.c", folder / "functions.so"
    source.write_text(text)
    subprocess.run([COMPILER, *_build._FLAGS, str(source), "-o", str(library), "-lm"], check=True)
    return ctypes.CDLL(str(library))


def run(compiled, name, letter, x, y=None):
    out = np.empty_like(x)
    y = x if y is None else y
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (out, x, y)]
    getattr(compiled, f"{name}_{letter}_all")(*pointers, ctypes.c_long(x.size))
    return out


def sigmoid(x):
    return 1 / (1 + mpmath.exp(-x))


def logaddexp(a, b):
    return max(a, b) + mpmath.log1p(mpmath.exp(-abs(a - b)))


def erfinv(x):
    return mpmath.erfinv(x) if abs(x) < 1 else x * mpmath.inf if abs(x) == 1 else mpmath.nan


TRUE = {
    "sigmoid": sigmoid,
    "logaddexp": logaddexp,
    "erfinv": erfinv,
    "pow": mpmath.power,
    "log2": lambda x: mpmath.log(x, 2),
}


def true_value(name, *arguments):
    """The value as a float64 and what it lacks."""
    found = (TRUE.get(name) or getattr(mpmath, name))(*map(mpmath.mpf, arguments))
    if isinstance(found, mpmath.mpc):
        return np.nan, 0.0
    value = float(found)
    return value, float(found - value) if np.isfinite(value) else 0.0


def points(letter, seed, size):
    """Of every size from the smallest subnormal to the largest number, and many near 1.

    Many too where exp and its kin overflow and underflow, next to multiples of π/2 and to 1.
    """
    rng = np.random.default_rng(seed)
    dtype, edge = DTYPES[letter], 110 if letter == "f" else 760
    bits = rng.integers(0, 2 ** (8 * dtype().itemsize), size, dtype=f"u{dtype().itemsize}")
    near = rng.choice([-1, 1], size) * 10.0 ** rng.uniform(-4, 3, size)
    parts = [near, rng.uniform(-1, 1, size), rng.uniform(-1, 1, size) * edge]
    parts += [rng.integers(1, 60_000, size) * (np.pi / 2)]
    parts += [1 - 10 ** rng.uniform(-16, 0, size)]
    found = np.concatenate([bits.view(dtype), *(part.astype(dtype) for part in parts)])
    return np.ascontiguousarray(found[np.isfinite(found)])


def units(found, values, scale, dtype):
    """Errors in units in the last place of `scale`, a number no smaller than the value."""
    value, lost = np.array(values).T
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = value.astype(dtype)
        same = (found == rounded) | (np.isnan(found) & np.isnan(rounded))
        unit = np.spacing(np.abs(scale(value).astype(dtype))).astype(np.float64)
        error = np.abs((found.astype(np.float64) - value) - lost) / unit
    # An infinity or a NaN is right or infinitely wrong.
    special = ~np.isfinite(found) | ~np.isfinite(rounded)
    return np.where(special, np.where(same, 0, np.inf), error)


@pytest.mark.parametrize("letter", DTYPES)
@pytest.mark.parametrize("name", BOUNDS)
def test_within_the_stated_units_in_the_last_place(compiled, name, letter):
    x = points(letter, 0, 1000)
    found = run(compiled, name, letter, x)
    with mpmath.workdps(60):
        values = [true_value(name, float(v)) for v in x]
    error = units(found, values, lambda value: value, DTYPES[letter])
    worst = int(np.argmax(error))
    assert error[worst] <= BOUNDS[name], (float(x[worst]).hex(), found[worst], error[worst])


@pytest.mark.parametrize("letter", DTYPES)
@pytest.mark.parametrize("name", PAIRS)
def test_of_two_within_the_stated_units_in_the_last_place(compiled, name, letter):
    x, y = points(letter, 1, 1500), points(letter, 2, 1500)
    size = min(x.size, y.size)
    x, y = x[-size:].copy(), y[-size:].copy()
    if name == "pow":
        # mpmath would write out 10³⁰⁸ digits.
        x, y = np.abs(x), np.clip(y, -400, 400)
    found = run(compiled, name, letter, x, y)
    with mpmath.workdps(60):
        values = [true_value(name, float(a), float(b)) for a, b in zip(x, y, strict=True)]

    def scale(value):
        if name != "logaddexp":
            return value
        with np.errstate(over="ignore"):
            apart = np.abs(x.astype(np.float64) - y)
        return np.maximum(np.abs(np.maximum(x, y)), np.log1p(np.exp(-apart)))

    error = units(found, values, scale, DTYPES[letter])
    worst = int(np.argmax(error))
    assert error[worst] <= PAIRS[name], (x[worst], y[worst], found[worst], error[worst])


ARC = ("ac", "as", "at")
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 2.0, -2.0]


OF_NUMPY = {
    "erf": np.vectorize(math.erf),
    "erfinv": np.vectorize(lambda x: float(erfinv(x)) if x else x),
    "pow": np.power,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    **{name: getattr(np, f"arc{name[1:]}") for name in [*BOUNDS, *PAIRS] if name[:2] in ARC},
}


@pytest.mark.parametrize("letter", DTYPES)
@pytest.mark.parametrize("name", [*BOUNDS, *PAIRS])
def test_zeros_infinities_and_nan_as_in_c(compiled, name, letter):
    x, y = np.meshgrid(np.array(SPECIAL, DTYPES[letter]), np.array(SPECIAL, DTYPES[letter]))
    x, y = x.ravel().copy(), y.ravel().copy()
    arguments = (x, y) if name in PAIRS else (x,)
    found = run(compiled, name, letter, *arguments)
    with np.errstate(all="ignore"):
        expected = (OF_NUMPY.get(name) or getattr(np, name))(
            *(a.astype(np.float64) for a in arguments)
        )
    exact = ~np.isfinite(expected) | (expected == 0) | np.isnan(found)
    np.testing.assert_array_equal(found[exact], expected[exact])
    zero = expected == 0
    np.testing.assert_array_equal(np.signbit(found[zero]), np.signbit(expected[zero]))


def test_the_polynomials_are_those_of_the_script():
    assert (HEADER.parent / "polynomials.h").read_text() == fit_functions.header()
