"""Losses per example against their definitions in NumPy's float64, and their derivatives."""

import mlx.core as mx
import numpy as np
import pytest

import mlxopt as mo

LOGITS = [-800.0, -40.0, -30.0, -1.5, -1e-8, 0.0, 1e-8, 0.7, 30.0, 40.0, 800.0]


def test_logistic_loss_and_its_derivatives_in_float64():
    z = np.array(LOGITS)
    for label in (0.0, 1.0, 0.3):
        expected = np.logaddexp(0, z) - label * z
        sigma = 0.5 * (1 + np.tanh(z / 2))
        with mx.stream(mx.cpu):
            logits = mx.array(z, dtype=mx.float64)
            labels = mx.array(label, dtype=mx.float64)

            def total(x, labels=labels):
                return mx.sum(mo.losses.logistic(x, labels))

            value = np.array(mo.losses.logistic(logits, labels))
            slope = np.array(mo.grad(total)(logits))
            curvature = np.array(mo.grad(lambda x: mx.sum(mo.grad(total)(x)))(logits))
        # A few units in the last place of the larger of the two terms that are subtracted.
        np.testing.assert_allclose(value, expected, rtol=1e-15, atol=1e-15 * 2)
        np.testing.assert_allclose(slope, sigma - label, rtol=1e-15, atol=2.3e-16)
        np.testing.assert_allclose(curvature, sigma * (1 - sigma), rtol=1e-14, atol=1e-16)


def test_logistic_loss_in_float32_neither_overflows_nor_stalls():
    logits = mx.array(LOGITS)
    value = np.array(mo.losses.logistic(logits, mx.array(1.0)))
    expected = np.logaddexp(0, LOGITS) - np.array(LOGITS)
    np.testing.assert_allclose(value, expected, rtol=3e-7, atol=1e-12)
    assert mo.grad(lambda x: mo.losses.logistic(x, mx.array(0.0)))(mx.array(0.0)).item() == 0.5


def test_logistic_gradient_sums_over_broadcast_axes():
    logits, labels = mx.array([[0.5], [1.0]]), mx.array([1.0, 0.0, 1.0])
    pairs = lambda a, b: mo.losses.logistic(*mx.broadcast_arrays(a, b))  # noqa: E731
    ours = mo.grad(lambda a, b: mx.sum(pairs(a, b)), argnums=(0, 1))(logits, labels)
    wide = mx.broadcast_to(logits, (2, 3))
    expected = mx.sum(mx.sigmoid(wide) - labels, axis=1, keepdims=True)
    assert ours[0].shape == (2, 1)
    assert ours[1].shape == (3,)
    # Sums of three terms near 1 that cancel: a few roundings of 6e-8 each.
    np.testing.assert_allclose(np.array(ours[0]), np.array(expected), rtol=0, atol=5e-7)
    np.testing.assert_allclose(np.array(ours[1]), -1.5, rtol=1e-6)


def test_huber_is_a_parabola_inside_and_a_line_outside():
    r = np.linspace(-4, 4, 81)
    expected = np.where(np.abs(r) <= 1.5, 0.5 * r**2, 1.5 * (np.abs(r) - 0.75))
    value = mo.losses.huber(mx.array(r.astype(np.float32)), mx.array(0.0), delta=1.5)
    np.testing.assert_allclose(np.array(value), expected, rtol=1e-6, atol=1e-7)
    slope = mo.grad(lambda x: mo.losses.huber(x, mx.array(0.0)))
    assert [slope(mx.array(x)).item() for x in (-3.0, -0.5, 0.0, 0.5, 3.0)] == [-1, -0.5, 0, 0.5, 1]


def test_squared_error_has_the_residual_as_its_derivative():
    slope = mo.grad(lambda p: mx.sum(mo.losses.squared_error(p, mx.array([1.0, 5.0]))))
    assert slope(mx.array([4.0, 3.0])).tolist() == [3, -2]


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_losses_keep_the_dtype(dtype):
    x = mx.array([0.5, -2.0], dtype=dtype)
    for loss in (mo.losses.squared_error, mo.losses.huber, mo.losses.logistic):
        assert loss(x, x).dtype == dtype


# --- sums over many examples --------------------------------------------------------------------

CPU_ONLY = pytest.mark.skipif(mx.default_device() != mx.cpu, reason="only the CPU sums naively")


@CPU_ONLY
@pytest.mark.parametrize("rows", [1_000_003, 4_000_017])
def test_a_mean_of_millions_keeps_six_digits_in_value_and_gradient(rows):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(rows, 3)).astype(np.float32) + np.float32(1)
    y = (X @ np.array([1, 2, 3], dtype=np.float32) + rng.exponential(size=rows)).astype(np.float32)
    w = np.array([0.9, 2.0, 3.1], dtype=np.float32)
    X64 = X.astype(np.float64)
    residual = X64 @ w.astype(np.float64) - y
    value, gradient = 0.5 * np.mean(residual**2), X64.T @ residual / rows

    def loss(w, X, y):
        return mo.losses.mean(mo.losses.squared_error(mo.losses.linear(X, w), y))

    for derivative in (mo.value_and_grad(loss), mx.compile(mx.value_and_grad(loss))):
        found, slope = derivative(mx.array(w), mx.array(X), mx.array(y))
        # The goal; the oracle is NumPy in float64.
        assert found.item() == pytest.approx(value, rel=1e-6)
        np.testing.assert_allclose(np.array(slope), gradient, rtol=1e-6)

    def naive(w, X, y):
        return mx.mean(mo.losses.squared_error(X @ w, y))

    # The reason for it all; when this fails MLX has mended its sums, and the blocks can go.
    assert naive(mx.array(w), mx.array(X), mx.array(y)).item() != pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("size", [1, 1023, 8191, 8192, 8193, 10_240, 99_999])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float64, mx.bfloat16])
def test_the_total_is_the_sum_at_every_size(size, dtype):
    numbers = np.random.default_rng(size).integers(0, 4, size=size)
    with mx.stream(mx.cpu):
        values = mx.array(numbers).astype(dtype)
        found = mo.losses.total(values)
        assert found.dtype == dtype
        assert found.shape == ()
        # Small whole numbers add up exactly in float32; bfloat16 rounds the sum to 8 bits.
        exact = dtype != mx.bfloat16
        assert float(found) == pytest.approx(numbers.sum(), rel=0 if exact else 2**-8)
        ones = mo.grad(mo.losses.total)(values)
        assert ones.dtype == dtype
        assert bool(mx.all(ones == 1))


@pytest.mark.parametrize("rows", [5, 40_000])
@pytest.mark.parametrize("outputs", [None, 3])
def test_linear_is_the_product_with_all_its_derivatives(rows, outputs):
    rng = np.random.default_rng(1)
    shape = (2,) if outputs is None else (2, outputs)
    X = mx.array(rng.normal(size=(rows, 2)).astype(np.float32))
    w = mx.array(rng.normal(size=shape).astype(np.float32))

    def value(product):
        def function(X, w):
            return mo.losses.mean(mx.tanh(product(X, w)))

        return function

    ours, plain = value(mo.losses.linear), value(lambda X, w: X @ w)
    for position in (0, 1):
        found, expected = (mx.grad(f, argnums=position)(X, w) for f in (ours, plain))
        np.testing.assert_allclose(np.array(found), np.array(expected), rtol=2e-5, atol=1e-9)

        def slope(w, f, position=position):
            return mx.sum(mx.square(mx.grad(f, argnums=position)(X, w)))

        found, expected = (mx.grad(lambda w, f=f: slope(w, f))(w) for f in (ours, plain))
        np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-4, atol=1e-9)
    stack = mx.stack([w, w + 1])
    found = mx.vmap(mx.grad(ours, argnums=1), in_axes=(None, 0))(X, stack)
    for one, each in zip(stack, found, strict=True):
        expected = mx.grad(plain, argnums=1)(X, one)
        np.testing.assert_allclose(np.array(each), np.array(expected), rtol=2e-5, atol=1e-9)
