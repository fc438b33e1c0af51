"""mlxopt.linalg against NumPy, SciPy and closed forms, repeated values, and a Gaussian process."""

import mlx.core as mx
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

import mlxopt as mo
from mlxopt import linalg
from mlxopt.linalg import LinAlgError


def array(values, dtype=mx.float64):
    return mx.array(np.asarray(values, dtype=np.float64), dtype=dtype)


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def definite(*shape, seed=0):
    half = random(*shape, seed=seed)
    return half @ np.swapaxes(half, -1, -2) + np.eye(shape[-1])


def hessian_product(loss, a, v):
    return mx.grad(lambda b: mx.sum(mx.grad(loss)(b) * v))(a)


BATCHES = [(), (1,), (3,), (2, 3), (0,), (2, 0)]
# Compiled for fewer: a new combination of shapes and dtypes calls a compiler a few times.
by_batch = pytest.mark.parametrize(
    ("batch", "compiled"),
    [(batch, False) for batch in BATCHES] + [((), True), ((2, 3), True), ((0,), True)],
    ids=str,
)
# the rounding of a few operations on matrices of this size with condition numbers below 100
ROUNDING = {mx.float64: 1e-12, mx.float32: 1e-4}
by_dtype = pytest.mark.parametrize("dtype", ROUNDING)


def close(got, wanted, dtype=mx.float64):
    assert got.dtype == dtype
    assert got.shape == wanted.shape
    np.testing.assert_allclose(np.array(got), wanted, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


@by_dtype
@by_batch
@pytest.mark.parametrize("n", [1, 5])
def test_square_functions_are_numpys(n, batch, dtype, compiled):
    wrap = mx.compile if compiled else lambda function: function
    s, a = definite(*batch, n, n), random(*batch, n, n, seed=1) + 3 * np.eye(n)
    b, vector = random(*batch, n, 2, seed=2), random(n, seed=3)
    close(wrap(linalg.cholesky)(array(s, dtype)), np.linalg.cholesky(s), dtype)
    close(wrap(linalg.logdet)(array(s, dtype)), np.linalg.slogdet(s)[1], dtype)
    for got, wanted in zip(
        wrap(linalg.slogdet)(array(a, dtype)), np.linalg.slogdet(a), strict=True
    ):
        close(got, wanted, dtype)
    close(wrap(linalg.inv)(array(a, dtype)), np.linalg.inv(a), dtype)
    close(wrap(linalg.solve)(array(a, dtype), array(b, dtype)), np.linalg.solve(a, b), dtype)
    close(
        wrap(linalg.solve)(array(a, dtype), array(vector, dtype)), np.linalg.solve(a, vector), dtype
    )
    close(wrap(linalg.eigh)(array(s, dtype))[0], np.linalg.eigvalsh(s), dtype)
    for upper in (False, True):
        triangle = np.triu(a) if upper else np.tril(a)
        x = wrap(lambda a, b: linalg.solve_triangular(a, b, upper=upper))(  # noqa: B023
            array(a, dtype), array(b, dtype)
        )
        close(x, np.linalg.solve(triangle, b), dtype)


@by_dtype
@by_batch
@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (5, 3), (3, 5), (9, 2), (1, 4), (4, 1)], ids=str)
def test_functions_of_any_shape_are_numpys(shape, batch, dtype, compiled):
    wrap = mx.compile if compiled else lambda function: function
    a = random(*batch, *shape)
    m, n = shape
    k = min(shape)
    q, r = wrap(linalg.qr)(array(a, dtype))
    assert q.shape == (*batch, m, k)
    close(r, np.triu(np.array(r)), dtype)
    close(q @ r, a, dtype)
    close(mx.swapaxes(q, -1, -2) @ q, np.broadcast_to(np.eye(k), (*batch, k, k)), dtype)
    assert bool(mx.all(mx.diagonal(r, axis1=-2, axis2=-1) >= 0))
    u, s, vt = wrap(linalg.svd)(array(a, dtype))
    assert (u.shape, vt.shape) == ((*batch, m, k), (*batch, k, n))
    close(s, np.linalg.svd(a, compute_uv=False), dtype)
    close((u * s[..., None, :]) @ vt, a, dtype)
    b = random(*batch, m, 2, seed=1)
    close(wrap(linalg.lstsq)(array(a, dtype), array(b, dtype)), np.linalg.pinv(a) @ b, dtype)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 13])
@pytest.mark.parametrize("seed", range(6))
def test_the_sign_of_a_determinant_of_unknown_value(n, seed):
    # rotations, reflections, permutations: eigenvalues at -1 and 1 of every multiplicity
    rng = np.random.default_rng([n, seed])
    flips = np.diag(rng.choice([-1.0, 1.0], n))
    rotation = np.linalg.qr(rng.normal(size=(n, n)))[0]
    for a in (rotation, flips, rotation @ flips @ rotation.T, np.eye(n)[rng.permutation(n)]):
        sign, value = mx.compile(linalg.slogdet)(array(a))
        assert sign.item() == round(np.linalg.det(a))
        assert abs(value.item()) < 1e-13
        assert linalg.slogdet(array(a))[0].item() == sign.item()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("exponent", [4, 8, 12, 14])
def test_ill_conditioned_systems_are_solved_to_a_small_residual(exponent, compiled):
    # backward stable: the residual is of the order of rounding whatever the condition number
    n = 60
    u, v = np.linalg.qr(random(n, n))[0], np.linalg.qr(random(n, n, seed=1))[0]
    a = u * np.logspace(0, -exponent, n) @ v.T
    b = random(n, 2)
    for function in (linalg.solve, linalg.lstsq):
        function = mx.compile(function) if compiled else function
        x = np.array(function(array(a), array(b)))
        assert np.abs(a @ x - b).max() < 50 * 2.0**-52 * np.abs(x).max()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("upper", [False, True])
def test_triangular_systems_are_solved_as_if_by_substitution(upper, compiled):
    # A triangle of random numbers has a condition number of 4e13. Substitution leaves a residual
    # within n · epsilon of |a||x|, entry by entry; the inverse alone would leave 1e7 times that.
    n = 30
    triangle = np.triu(random(n, n)) if upper else np.tril(random(n, n))
    b = triangle @ np.ones(n)
    solve = lambda a, b: linalg.solve_triangular(a, b, upper=upper)  # noqa: E731
    x = np.array((mx.compile(solve) if compiled else solve)(array(triangle), array(b)))
    residual = np.abs(triangle @ x - b) / (np.abs(triangle) @ np.abs(x))
    assert residual.max() < n * 2.0**-52


def test_leading_axes_broadcast():
    a, b = random(2, 1, 3, 3) + 3 * np.eye(3), random(4, 3, 2)
    wanted = np.linalg.solve(a, b)
    close(linalg.solve(array(a), array(b)), wanted)
    loss = lambda a, b: mx.sum(linalg.solve(a, b) ** 2)  # noqa: E731
    for index in (0, 1):
        gradient = mx.grad(loss, argnums=index)(array(a), array(b))
        assert gradient.shape == (a, b)[index].shape
        # the same, broadcast by hand
        full = [np.broadcast_to(a, (2, 4, 3, 3)), np.broadcast_to(b, (2, 4, 3, 2))]
        by_hand = np.array(mx.grad(loss, argnums=index)(array(full[0]), array(full[1])))
        axes = 1 if index == 0 else 0
        close(gradient, by_hand.sum(axis=axes, keepdims=index == 0))


def test_mixed_dtypes_are_promoted():
    a = random(3, 3) + 3 * np.eye(3)
    assert linalg.solve(array(a, mx.float32), array([1, 2, 3])).dtype == mx.float64
    assert linalg.solve(array(a, mx.float32), mx.array([1, 2, 3])).dtype == mx.float32
    assert linalg.solve(array(a), mx.array([1.0, 2.0, 3.0])).dtype == mx.float64
    gradient = mx.grad(lambda b: mx.sum(linalg.solve(array(a), b)).astype(mx.float32))
    assert gradient(mx.array([1.0, 2.0, 3.0])).dtype == mx.float32


def test_nothing_depends_on_the_default_stream():
    a = definite(3, 3)
    with mx.stream(mx.new_stream(mx.cpu)):
        gradient = mx.grad(linalg.logdet)(array(a))
    close(gradient, np.linalg.inv(a))


# --- Closed forms --------------------------------------------------------------------------------

A, V = definite(5, 5), definite(5, 5, seed=4)
INVERSE = np.linalg.inv(A)


def test_the_gradient_of_a_log_determinant_is_the_inverse():
    general = random(4, 4) + 3 * np.eye(4)
    close(mx.grad(linalg.logdet)(array(A)), INVERSE)
    close(mx.grad(lambda a: linalg.slogdet(a)[1])(array(general)), np.linalg.inv(general).T)

    def by_cholesky(a):
        return 2 * mx.sum(mx.log(mx.diagonal(linalg.cholesky(a))))

    def by_eigenvalues(a):
        return mx.sum(mx.log(linalg.eigh(a)[0]))

    for loss in (linalg.logdet, by_cholesky, by_eigenvalues):
        close(mx.grad(loss)(array(A)), INVERSE)
        close(hessian_product(loss, array(A), array(V)), -INVERSE @ V @ INVERSE)


def test_the_gradient_of_the_trace_of_the_inverse():
    def loss(a):
        return mx.trace(linalg.inv(a))

    close(mx.grad(loss)(array(A)), -INVERSE @ INVERSE)
    second = INVERSE @ V @ INVERSE @ INVERSE + INVERSE @ INVERSE @ V @ INVERSE
    close(hessian_product(loss, array(A), array(V)), second)


def test_the_gradient_of_a_quadratic_form():
    y = random(5)
    z = np.linalg.solve(A, y)
    a = mx.grad(lambda a: 0.5 * array(y) @ linalg.solve(a, array(y)))(array(A))
    close(a, -0.5 * np.outer(z, z))


def test_an_eigenvalue_by_perturbation_theory():
    # w' = vᵀ E v and w'' = 2 Σ (v_kᵀ E v)² / (w - w_k) (Kato 1966)
    w, v = np.linalg.eigh(A)
    largest = lambda a: linalg.eigh(a)[0][-1]  # noqa: E731
    close(mx.grad(largest)(array(A)), np.outer(v[:, -1], v[:, -1]))
    second = mx.sum(hessian_product(largest, array(A), array(V)) * array(V))
    wanted = 2 * sum((v[:, k] @ V @ v[:, -1]) ** 2 / (w[-1] - w[k]) for k in range(4))
    assert second.item() == pytest.approx(wanted, rel=1e-11)


def test_the_least_squares_solution_is_the_pseudo_inverse_times_b():
    a, b = random(7, 3), random(7)
    jacobian = [
        np.array(mx.grad(lambda b: linalg.lstsq(array(a), b)[i])(array(b)))  # noqa: B023
        for i in range(3)
    ]
    np.testing.assert_allclose(jacobian, np.linalg.pinv(a), atol=1e-13)


def test_the_nuclear_norm():
    a = random(4, 3)
    u, _, vt = np.linalg.svd(a, full_matrices=False)
    close(mx.grad(lambda a: mx.sum(linalg.svd(a)[1]))(array(a)), u @ vt)


def test_cholesky_is_scipys_on_a_gram_matrix():
    # an independent program, on a matrix with a condition number of 1e7
    h = scipy.linalg.hilbert(6)
    np.testing.assert_allclose(
        np.array(linalg.cholesky(array(h))), scipy.linalg.cholesky(h, lower=True), atol=1e-10
    )


# --- Repeated values -----------------------------------------------------------------------------

TURN = np.linalg.qr(random(4, 4))[0]
REPEATED = TURN @ np.diag([1.0, 1.0, 2.0, 5.0]) @ TURN.T
by_repeated = pytest.mark.parametrize(
    "a", [np.eye(4), np.zeros((4, 4)), np.diag([1.0, 1.0, 2.0, 5.0]), REPEATED]
)


@by_repeated
def test_functions_of_repeated_eigenvalues_have_their_first_derivative(a):
    # the gradient of tr p(a) is p'(a), here 3 a² + 1
    gradient = mx.grad(lambda a: mx.sum(linalg.eigh(a)[0] ** 3 + linalg.eigh(a)[0]))(array(a))
    close(gradient, 3 * a @ a + np.eye(4))
    compiled = mx.compile(mx.grad(lambda a: mx.sum(linalg.eigh(a)[0] ** 2)))
    close(compiled(array(a)), 2 * a)
    singular = mx.grad(lambda a: mx.sum(linalg.svd(a)[1] ** 2))(array(a))
    close(singular, 2 * a)


@by_repeated
def test_what_repeated_values_leave_undefined_is_refused(a):
    a, v = array(a), array(definite(4, 4))
    # A second derivative: of Σ (w - 1)² it is 2, though every first derivative is 0 at a = 1.
    for loss in (
        lambda a: mx.sum((linalg.eigh(a)[0] - 1) ** 2),
        lambda a: mx.sum(linalg.svd(a)[1] ** 2),
    ):
        with pytest.raises(LinAlgError, match=r"the derivative of .* equal to rounding"):
            hessian_product(loss, a, v)
        product = mx.compile(lambda a, v: hessian_product(loss, a, v))  # noqa: B023
        assert bool(mx.all(mx.isnan(product(a, v))))
    # Vectors: the square root of a matrix has a derivative, but not by way of these.
    for loss in (
        lambda a: mx.sum((linalg.eigh(a)[1] * linalg.eigh(a)[0]) @ linalg.eigh(a)[1].T * v),
        lambda a: mx.sum(linalg.eigh(a)[1] * v),
        lambda a: mx.sum(linalg.svd(a)[0] * v),
    ):
        with pytest.raises(LinAlgError, match=r"the derivative of .* equal to rounding"):
            mx.grad(loss)(a)
        assert bool(mx.any(mx.isnan(mx.compile(mx.grad(loss))(a))))
        assert bool(mx.any(mx.isnan(mx.jvp(lambda a: [loss(a)], [a], [v])[1][0])))  # noqa: B023


def test_forwards_the_vectors_of_other_values_keep_their_derivative():
    # dv = Σ v_k (v_kᵀ E v) / (w - w_k), where the w_k may be repeated
    direction = definite(4, 4, seed=2)
    w, v = np.linalg.eigh(REPEATED)
    slope = mx.jvp(lambda a: [linalg.eigh(a)[1]], [array(REPEATED)], [array(direction)])[1][0]
    wanted = sum(v[:, k] * (v[:, k] @ direction @ v[:, 3]) / (w[3] - w[k]) for k in range(3))
    sign = np.sign(np.array(linalg.eigh(array(REPEATED))[1])[0, 3] * v[0, 3])
    np.testing.assert_allclose(np.array(slope)[:, 3], sign * wanted, atol=1e-13)
    assert np.isnan(np.array(slope)[:, :2]).all()


def test_a_singular_value_of_zero_has_values_and_no_left_vector():
    a = array([[1.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    close(linalg.svd(a)[1], np.array([np.sqrt(5), 0.0]))
    gradient = mx.grad(lambda a: linalg.svd(a)[1][0])(a)
    close(gradient, np.array([[1.0, 0.0], [0.0, 0.0], [2.0, 0.0]]) / np.sqrt(5))
    with pytest.raises(LinAlgError, match=r"value 1 is .*, zero to rounding"):
        mx.grad(lambda a: mx.sum(linalg.svd(a)[0][0]))(a)


# --- A Gaussian process --------------------------------------------------------------------------


def exponential(x):
    return mx.sinh(x) + mx.cosh(x)  # mx.exp of float64 is good to 7 digits only


def negative_log_likelihood(params, x, y):
    """Minus the log marginal likelihood of y, per observation, up to a constant.

    The kernel is size² exp(-½ (distance / length)²), plus noise² on the diagonal.
    """
    size, length, noise = (exponential(params[name]) for name in ("size", "length", "noise"))
    squares = mx.square((x[:, None] - x[None, :]) / length)
    kernel = size**2 / exponential(0.5 * squares)
    lower = linalg.cholesky(kernel + noise**2 * mx.eye(x.size, dtype=x.dtype))
    white = linalg.solve_triangular(lower, y)
    return (0.5 * mx.sum(white**2) + mx.sum(mx.log(mx.diagonal(lower)))) / x.size


def gaussian_process():
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(-3, 3, 40))
    y = np.sin(2 * x) + 0.2 * rng.normal(size=40)
    params = {"size": array(0.0), "length": array(0.0), "noise": array(-1.0)}
    return params, array(x), array(y)


def test_a_gaussian_process_has_the_likelihood_of_scipys_normal_distribution():
    params, x, y = gaussian_process()
    distance = np.subtract.outer(np.array(x), np.array(x))
    kernel = np.exp(-0.5 * distance**2) + np.exp(-2.0) * np.eye(40)
    wanted = -scipy.stats.multivariate_normal(cov=kernel).logpdf(np.array(y)) / 40
    value = negative_log_likelihood(params, x, y).item() + 0.5 * np.log(2 * np.pi)
    assert value == pytest.approx(wanted, rel=1e-13)


def test_the_gradient_of_its_likelihood_is_that_of_finite_differences():
    params, x, y = gaussian_process()
    gradient = mo.grad(negative_log_likelihood)(params, x, y)
    compiled = mx.compile(mx.grad(negative_log_likelihood))(params, x, y)
    for name in params:

        def central(h, name=name):
            plus, minus = (
                negative_log_likelihood(params | {name: params[name] + step}, x, y).item()
                for step in (h, -h)
            )
            return (plus - minus) / (2 * h)

        slope = (4 * central(0.5e-3) - central(1e-3)) / 3
        assert gradient[name].item() == pytest.approx(slope, rel=1e-8)
        assert compiled[name].item() == pytest.approx(gradient[name].item(), rel=1e-12)


def test_a_gaussian_process_is_fitted_to_the_end():
    params, x, y = gaussian_process()
    result = mo.minimize(negative_log_likelihood, params, mo.LBFGS(), x, y, tol=1e-9)
    assert result.converged
    noise = np.exp(result.params["noise"].item())
    assert noise == pytest.approx(
        0.2, abs=0.05
    )  # two standard errors of 40 observations' deviation
    newton = mo.minimize(negative_log_likelihood, result.params, mo.Newton(), x, y, tol=1e-12)
    for name in params:
        assert newton.params[name].item() == pytest.approx(result.params[name].item(), abs=1e-7)
