"""Scaled symmetric matrices: identities, units, and Newton directions equal bit for bit."""

import numpy as np
import pytest

from mlxopt import _dense

EPS = 2.0**-52


def matrices(count, size, low, seed=0):
    """Return symmetric matrices with eigenvalues in [low, 1], in badly scaled units."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.normal(size=(count, size, size)))[0]
    values = rng.uniform(low, 1.0, size=(count, 1, size))
    units = 10.0 ** rng.uniform(-4, 4, size=(count, size))
    return (Q * values) @ np.swapaxes(Q, 1, 2) * units[:, :, None] * units[:, None, :]


def direction_as_published(matrix, gradient, eps):
    """Newton's direction in version 0.1.0, for one matrix."""
    matrix = 0.5 * (matrix + matrix.T)
    diagonal = np.abs(np.diag(matrix))
    scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    matrix = matrix * np.outer(scale, scale)
    try:
        pivots = np.diag(np.linalg.cholesky(matrix))
        if pivots.min() ** 2 > len(matrix) * eps:
            return -scale * np.linalg.solve(matrix, scale * gradient)
    except np.linalg.LinAlgError:
        pass
    eigenvalues, vectors = np.linalg.eigh(matrix)
    floor = np.sqrt(eps) * np.abs(eigenvalues).max() or 1.0
    eigenvalues = np.maximum(np.abs(eigenvalues), floor)
    return -scale * (vectors @ ((vectors.T @ (scale * gradient)) / eigenvalues))


@pytest.mark.parametrize("eps", [EPS, 2.0**-23])
@pytest.mark.parametrize("low", [0.1, 1e-9, -1.0])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 17, 64, 130])
def test_newton_directions_are_the_same_bit_for_bit(size, low, eps):
    many = matrices(6, size, low, seed=size)
    gradients = np.random.default_rng(1).normal(size=(6, size))
    expected = [
        direction_as_published(matrix, gradient, eps)
        for matrix, gradient in zip(many, gradients, strict=True)
    ]
    for matrix, gradient, direction in zip(many, gradients, expected, strict=True):
        np.testing.assert_array_equal(_dense.newton_direction(matrix, gradient, eps), direction)
    np.testing.assert_array_equal(_dense.newton_direction(many, gradients, eps), expected)


def test_newton_directions_of_special_matrices():
    special = np.array([np.zeros((2, 2)), np.diag([1.0, 0.0]), np.diag([-4.0, 1e-300]), np.eye(2)])
    gradients = np.array([[1.0, -2.0], [1.0, 1.0], [3.0, 1.0], [0.0, 0.0]])
    found = _dense.newton_direction(special, gradients, EPS)
    for matrix, gradient, direction in zip(special, gradients, found, strict=True):
        np.testing.assert_array_equal(direction, direction_as_published(matrix, gradient, EPS))
    np.testing.assert_array_equal(found[0], [-1.0, 2.0])
    assert (np.einsum("bp,bp->b", found, gradients)[:3] < 0).all()


@pytest.mark.parametrize("size", [1, 4, 30])
def test_eigen_solves_and_factors(size):
    many = matrices(3, size, 0.1)
    right = np.random.default_rng(2).normal(size=(3, size))
    found = _dense.eigen(many)
    scaled = many * found.scale[:, :, None] * found.scale[:, None, :]
    np.testing.assert_allclose(np.diagonal(scaled, axis1=1, axis2=2), 1.0, rtol=1e-14)
    np.testing.assert_allclose(found.largest, np.linalg.norm(scaled, 2, axis=(1, 2)), rtol=1e-13)
    exact = np.linalg.solve(many, right[:, :, None])[:, :, 0]
    np.testing.assert_allclose(found.solve(right) / found.scale, exact / found.scale, rtol=1e-9)
    for index, matrix in enumerate(many):
        one = _dense.eigen(matrix)
        unit = 1 / one.scale
        np.testing.assert_array_equal(one.solve(right[index]), found.solve(right)[index])
        np.testing.assert_allclose(
            one.root() @ one.root().T / np.outer(unit, unit), scaled[index], atol=1e-13
        )
        for root in (one.inverse_root(), _dense.inverse_root(matrix, EPS)):
            assert root is not None
            product = unit[:, None] * (root @ root.T @ matrix) / unit
            np.testing.assert_allclose(product, np.eye(size), atol=1e-11)


def test_eigen_with_a_floor_and_without_negative_variances():
    found = _dense.eigen(np.array([[0.0, 2.0], [2.0, 0.0]]))
    np.testing.assert_allclose(found.values, [-2.0, 2.0])
    np.testing.assert_allclose(found.floored(3.0).values, [3.0, 3.0])
    np.testing.assert_allclose(found.root() @ found.root().T, [[1.0, 1.0], [1.0, 1.0]])
    np.testing.assert_allclose(abs(found.direction(0)), np.sqrt([0.5, 0.5]))


@pytest.mark.parametrize(
    "matrix",
    [np.diag([1.0, -1.0]), np.zeros((2, 2)), np.ones((2, 2)), np.diag([1e9, 0.0])],
)
def test_there_is_no_inverse_root_of_what_is_not_positive_definite(matrix):
    assert _dense.inverse_root(matrix, EPS) is None


def test_a_tiny_diagonal_beside_a_large_entry_overflows_nothing():
    matrix = np.array([[1e-310, 1.0, 0.0], [1.0, 1e-310, 0.0], [0.0, 0.0, 1.0]])
    found = _dense.eigen(matrix)
    assert np.isfinite(found.values).all()
    assert found.values[0] < 0
