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
        np.testing.assert_allclose(slope, sigma - label, rtol=1e-15, atol=1e-16)
        np.testing.assert_allclose(curvature, sigma * (1 - sigma), rtol=1e-14, atol=1e-16)


def test_logistic_loss_in_float32_neither_overflows_nor_stalls():
    logits = mx.array(LOGITS)
    value = np.array(mo.losses.logistic(logits, mx.array(1.0)))
    expected = np.logaddexp(0, LOGITS) - np.array(LOGITS)
    np.testing.assert_allclose(value, expected, rtol=3e-7, atol=1e-12)
    assert mo.grad(lambda x: mo.losses.logistic(x, mx.array(0.0)))(mx.array(0.0)).item() == 0.5


def test_logistic_gradient_sums_over_broadcast_axes():
    logits, labels = mx.array([[0.5], [1.0]]), mx.array([1.0, 0.0, 1.0])
    ours = mo.grad(lambda a, b: mx.sum(mo.losses.logistic(a, b)), argnums=(0, 1))(logits, labels)
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
