"""Conjugate gradients and Lanczos on matrices with known answers."""

import numpy as np
import pytest

from mlxopt._krylov import NotPositiveError, conjugate_gradients, lanczos


def matrix(values, seed=0):
    Q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    return (Q * values) @ Q.T


def last(iterates):
    *_, (x, size) = iterates
    return x, size


@pytest.mark.parametrize("distinct", [1, 3, 12])
def test_conjugate_gradients_take_a_product_for_each_distinct_eigenvalue(distinct):
    A = matrix(np.resize(np.linspace(1.0, 9.0, distinct), 40))
    right = np.random.default_rng(1).normal(size=40)
    iterates = list(conjugate_gradients(lambda v: A @ v, right, 1e-12, 100))
    assert len(iterates) == distinct + 1
    x, size = iterates[-1]
    np.testing.assert_allclose(A @ x, right, atol=1e-11)
    assert size <= 1e-24 * (right @ right)
    # Each iterate is the minimizer over the Krylov space: the quadratic only falls.
    quadratic = [0.5 * x @ A @ x - right @ x for x, _ in iterates]
    assert (np.diff(quadratic) < 0).all()


def test_conjugate_gradients_end_after_the_products_allowed():
    A = matrix(np.geomspace(1e-6, 1.0, 30))
    calls = []
    iterates = conjugate_gradients(lambda v: calls.append(1) or A @ v, np.ones(30), 1e-14, 7)
    assert len(list(iterates)) == len(calls) + 1 == 8


def test_conjugate_gradients_of_zero_need_no_product():
    x, size = last(conjugate_gradients(lambda v: pytest.fail("a product"), np.zeros(3), 1e-9, 9))
    assert size == 0
    np.testing.assert_array_equal(x, 0)


@pytest.mark.parametrize("values", [[1.0, -1.0], [0.0, 0.0], [np.nan, 1.0]])
def test_a_matrix_that_is_not_positive(values):
    with pytest.raises(NotPositiveError):
        list(conjugate_gradients(lambda v: np.array(values) * v, np.array([1.0, 2.0]), 1e-9, 9))


def test_lanczos_finds_the_ends_of_the_spectrum_first():
    exact = np.sort(np.concatenate([[-3.0, 50.0], np.linspace(0.5, 1.0, 98)]))
    A, start = matrix(exact), np.random.default_rng(2).normal(size=100)
    values, vectors = lanczos(lambda v: A @ v, start, 20)
    assert (values.shape, vectors.shape) == ((20,), (100, 20))
    np.testing.assert_allclose(values[[0, -1]], exact[[0, -1]], rtol=1e-12)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(20), atol=1e-13)
    for i in (0, -1):
        np.testing.assert_allclose(A @ vectors[:, i], values[i] * vectors[:, i], atol=1e-9)


def test_lanczos_stops_where_the_krylov_space_is_exhausted():
    A = matrix(np.resize([1.0, 2.0, 5.0], 30))
    values, vectors = lanczos(lambda v: A @ v, np.random.default_rng(3).normal(size=30), 20)
    np.testing.assert_allclose(values, [1.0, 2.0, 5.0], rtol=1e-12)
    np.testing.assert_allclose(A @ vectors, vectors * values, atol=1e-12)
