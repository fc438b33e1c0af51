"""What mlxopt.linalg says where it fails: in words where values are known, with NaN elsewhere."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlxopt as mo
from mlxopt import linalg
from mlxopt.linalg import LinAlgError

NAN, INF = float("nan"), float("inf")
GOOD = [[4.0, 1.0, 0.0], [1.0, 3.0, 1.0], [0.0, 1.0, 2.0]]
INDEFINITE = [[4.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 2.0]]  # pivot 1 is 0 - 1/4
SEMIDEFINITE = [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]  # pivot 1 is 0
SINGULAR = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]  # its LU has no zero in floats
WITH_NAN = [[4.0, 1.0, 0.0], [1.0, NAN, 1.0], [0.0, 1.0, 2.0]]
WITH_INF = [[4.0, 1.0, INF], [1.0, 3.0, 1.0], [INF, 1.0, 2.0]]
LOWER = [[4.0, 0.0, 0.0], [1.0, 3.0, 0.0], [0.0, 1.0, 2.0]]
ZERO_DIAGONAL = [[4.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 2.0]]


def array(values, dtype=mx.float64):
    return mx.array(np.asarray(values, dtype=np.float64), dtype=dtype)


def ones(a):
    return mx.ones(3, dtype=a.dtype)


# function of one matrix -> one array, by name
FUNCTIONS: dict[str, Callable[[Any], mx.array]] = {
    "cholesky": linalg.cholesky,
    "logdet": linalg.logdet,
    "solve": lambda a: linalg.solve(a, ones(a)),
    "inv": linalg.inv,
    "slogdet": lambda a: linalg.slogdet(a)[1],
    "solve_triangular": lambda a: linalg.solve_triangular(a, ones(a)),
    "lstsq": lambda a: linalg.lstsq(a, ones(a)),
    "qr": lambda a: linalg.qr(a)[1],
    "eigh": lambda a: linalg.eigh(a)[0],
    "svd": lambda a: linalg.svd(a)[1],
}

# (function, bad matrix, what the message says)
FAILURES = [
    ("cholesky", INDEFINITE, r"not positive definite: pivot 1, .* 0 at \[1, 1\].* is -0\.25\."),
    ("cholesky", SEMIDEFINITE, r"not positive definite: pivot 1, .* is 0\."),
    ("cholesky", WITH_NAN, r"has nan at \[1, 1\]"),
    ("cholesky", WITH_INF, r"has inf at \[0, 2\]"),
    ("cholesky", LOWER, r"not symmetric: 0 at \[0, 1\] but 1 at \[1, 0\]"),
    ("logdet", INDEFINITE, r"not positive definite: pivot 1"),
    ("solve", SINGULAR, "singular"),
    ("solve", np.zeros((3, 3)), "singular"),
    ("solve", WITH_NAN, r"has nan at \[1, 1\]"),
    ("solve", WITH_INF, r"has inf at \[0, 2\]"),
    ("inv", SINGULAR, "singular"),
    ("slogdet", WITH_NAN, r"has nan at \[1, 1\]"),
    ("solve_triangular", ZERO_DIAGONAL, r"singular: 0 at \[1, 1\]"),
    ("solve_triangular", WITH_NAN, r"has nan at \[1, 1\]"),
    ("lstsq", SINGULAR, r"full rank: to working precision column \d is"),
    ("lstsq", WITH_NAN, r"has nan at \[1, 1\]"),
    ("qr", WITH_NAN, r"has nan at \[1, 1\]"),
    ("eigh", WITH_NAN, r"has nan at \[1, 1\]"),
    ("eigh", LOWER, "not symmetric"),
    ("svd", WITH_NAN, r"has nan at \[1, 1\]"),
    ("svd", WITH_INF, r"has inf at \[0, 2\]"),
]
by_failure = pytest.mark.parametrize(("name", "bad", "words"), FAILURES)
by_dtype = pytest.mark.parametrize("dtype", [mx.float32, mx.float64])


@by_dtype
@by_failure
def test_a_failure_is_raised_in_words(name, bad, words, dtype):
    with pytest.raises(LinAlgError, match=f"^{name}: the matrix .*{words}"):
        FUNCTIONS[name](array(bad, dtype))


@by_failure
def test_of_a_batch_the_message_names_the_matrix(name, bad, words):
    stack = array([[GOOD, GOOD], [GOOD, bad]])
    with pytest.raises(LinAlgError, match=rf"^{name}: matrix \[1, 1\] of the batch .*{words}"):
        FUNCTIONS[name](stack)


@by_failure
def test_it_is_raised_within_derivatives(name, bad, words):
    def loss(a):
        return mx.sum(FUNCTIONS[name](a) ** 2)

    for derivative in (
        mx.grad(loss),
        mo.grad(loss),
        mo.value_and_grad(loss, compile=False),
        lambda a: mx.grad(lambda b: mx.sum(mx.grad(loss)(b) * b))(a),
    ):
        with pytest.raises(LinAlgError, match=words):
            derivative(array(bad))


def test_it_is_numpys_exception_too():
    with pytest.raises(np.linalg.LinAlgError):
        linalg.cholesky(array(INDEFINITE))
    assert issubclass(LinAlgError, ValueError)


@by_failure
def test_of_unknown_values_the_answer_is_nan(name, bad, words):
    def loss(a):
        return mx.sum(FUNCTIONS[name](a) ** 2)

    function, gradient = mx.compile(FUNCTIONS[name]), mx.compile(mx.grad(loss))
    assert bool(mx.any(mx.isnan(function(array(bad)))))
    assert bool(mx.any(mx.isnan(gradient(array(bad)))))
    # and the same compiled functions go on working
    good = array(GOOD)
    np.testing.assert_allclose(function(good), FUNCTIONS[name](good), rtol=1e-13)
    np.testing.assert_allclose(gradient(good), mx.grad(loss)(good), rtol=1e-12, atol=1e-13)


@by_failure
@pytest.mark.parametrize("transform", [mx.vmap, lambda f: mx.compile(mx.vmap(f))])
def test_of_a_vmap_only_the_bad_matrix_is_nan(name, bad, words, transform):
    def loss(a):
        return mx.sum(FUNCTIONS[name](a) ** 2)

    stack = array([GOOD, bad, GOOD])
    for function in (FUNCTIONS[name], mx.grad(loss)):
        got = np.array(transform(function)(stack))
        assert np.isnan(got[1]).any()
        wanted = np.array(function(array(GOOD)))
        np.testing.assert_allclose(got[0], wanted, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(got[2], wanted, rtol=1e-12, atol=1e-13)


def test_the_scale_of_rows_and_columns_makes_no_matrix_singular():
    sizes = np.array([1e-20, 1.0, 1e20])
    inverse = np.linalg.inv(GOOD)
    for inv in (linalg.inv, mx.compile(linalg.inv)):
        rows = np.array(inv(array(sizes[:, None] * np.array(GOOD))))
        np.testing.assert_allclose(rows, inverse / sizes, rtol=1e-14)
        columns = np.array(inv(array(np.array(GOOD) * sizes)))
        np.testing.assert_allclose(columns, inverse / sizes[:, None], rtol=1e-14)


def test_a_singular_matrix_has_a_determinant_but_no_derivative_of_its_logarithm():
    sign, value = linalg.slogdet(array([[1.0, 2.0], [2.0, 4.0]]))
    assert (sign.item(), value.item()) == (0, -INF)
    with pytest.raises(LinAlgError, match="the derivative of slogdet: the matrix is singular"):
        mx.grad(lambda a: linalg.slogdet(a)[1])(array([[1.0, 2.0], [2.0, 4.0]]))


def test_qr_of_dependent_columns_has_factors_but_no_derivative():
    a = array([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    q, r = linalg.qr(a)
    np.testing.assert_allclose(q @ r, a, atol=1e-15)
    with pytest.raises(LinAlgError, match=r"derivative of qr: .* column \d is"):
        mx.grad(lambda a: mx.sum(linalg.qr(a)[1]))(a)


# --- Misuse --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_half_and_integer_matrices_are_told_what_to_write(name):
    for dtype in (mx.float16, mx.bfloat16, mx.int32, mx.bool_):
        with pytest.raises(TypeError, match=rf"^{name}: a has dtype .*a\.astype\(mx\.float32\)"):
            FUNCTIONS[name](mx.ones((3, 3), dtype=dtype))
    with pytest.raises(TypeError, match="imaginary part"):
        FUNCTIONS[name](mx.ones((3, 3), dtype=mx.complex64))
    if "solve" not in name and name != "lstsq":  # whose right-hand side here wants an array's dtype
        with pytest.raises(TypeError, match=r"numpy\.ndarray; expected an mx\.array"):
            FUNCTIONS[name](np.eye(3))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_wrong_shapes_are_named(name):
    with pytest.raises(ValueError, match=r"has shape \(3,\); expected a matrix"):
        FUNCTIONS[name](mx.ones(3))
    with pytest.raises(ValueError, match="without entries"):
        FUNCTIONS[name](mx.ones((2, 0, 0)))
    if name not in ("qr", "svd", "lstsq"):
        with pytest.raises(ValueError, match=r"shape \(3, 4\); expected square"):
            FUNCTIONS[name](mx.ones((3, 4)))


@pytest.mark.parametrize("function", [linalg.solve, linalg.solve_triangular, linalg.lstsq])
def test_right_hand_sides_that_do_not_fit(function):
    a = mx.stack([mx.eye(3), mx.eye(3)])
    for shape in ((4,), (4, 2), (3, 3, 2), ()):
        with pytest.raises(ValueError, match=r"expected b of shape \(3,\)"):
            function(a, mx.ones(shape))
    with pytest.raises(ValueError, match=r"A stack of vectors is b\[\.\.\., None\]"):
        function(a, mx.ones((2, 3)))
    with pytest.raises(TypeError, match=r"b is builtins\.list"):
        function(a, [1.0, 2.0, 3.0])


# --- The rest of the package ---------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_guard_takes_it_for_a_loss_that_reads_its_values(name):
    def loss(params):
        return mx.sum(FUNCTIONS[name](array(GOOD) + 0.1 * params["shift"] * array(np.eye(3))) ** 2)

    params = {"shift": array(0.5)}
    value, gradient = mo.value_and_grad(loss)(params)
    step = 1e-4
    slope = (loss({"shift": array(0.5 + step)}) - loss({"shift": array(0.5 - step)})) / (2 * step)
    assert value.item() == pytest.approx(loss(params).item(), rel=1e-14)
    assert gradient["shift"].item() == pytest.approx(slope.item(), rel=1e-6)  # step² and rounding
    result = mo.minimize(
        lambda params: loss(params) + 100 * params["shift"] ** 2, params, mo.LBFGS()
    )
    assert result.converged


def test_a_loss_that_reads_a_factor_is_still_found_out():
    def loss(a):
        return mx.sum(a) * linalg.logdet(a).item()

    with pytest.raises(mo.TapeError, match="reads an array back"):
        mo.value_and_grad(loss)(array(GOOD))


def test_a_line_search_backs_away_from_an_indefinite_matrix():
    # tr(x s) - log det x has its minimum at s⁻¹; from far above it the first steps overshoot.
    s = array(GOOD)

    def loss(x):
        return mx.sum(x * s) - linalg.logdet(x)

    overshoot = 20 * array(np.eye(3)) - 10 * mx.grad(loss)(20 * array(np.eye(3)))
    with pytest.raises(LinAlgError, match="not positive definite"):
        linalg.logdet(overshoot)
    result = mo.minimize(loss, 20 * array(np.eye(3)), mo.LBFGS(), tol=1e-9)
    assert result.converged
    np.testing.assert_allclose(result.params, np.linalg.inv(GOOD), atol=1e-8)


def test_a_start_outside_the_domain_is_named():
    with pytest.raises(LinAlgError, match="logdet: the matrix is not positive definite"):
        mo.minimize(linalg.logdet, array(INDEFINITE), mo.LBFGS())
