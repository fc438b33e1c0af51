"""Second derivatives and Jacobians, operation by operation, over a table of MLX operations.

Each row is compared with finite differences (in float64 where MLX has it), the Hessian by blocks
with single products, and the Jacobian by columns with the one by rows.
"""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxopt.autodiff import check_grads, hessian, hvp, jacobian
from mlxopt.autodiff._rows import can_batch, hessian_row, sample_rows

RANDOM = np.random.default_rng(0)


def normal(*shape):
    return mx.array(RANDOM.normal(size=shape), dtype=mx.float64)


def positive(*shape):
    return mx.array(RANDOM.uniform(0.5, 1.5, size=shape), dtype=mx.float64)


def small(*shape):
    return mx.array(RANDOM.uniform(-0.4, 0.4, size=shape), dtype=mx.float64)


N, P, S, Q = normal(4, 3), positive(4, 3), small(4, 3), normal(4, 4)
OTHER, WIDE = normal(4, 3), normal(3, 4)
SIGNAL, FILTER = normal(1, 8, 3), normal(2, 3, 3)
IMAGE, KERNEL = normal(1, 5, 5, 2), normal(3, 2, 2, 2)
SQUARE = mx.array(RANDOM.normal(size=(4, 4)).astype(np.float32))
SOME, COLUMN = mx.array([2, 0, 3]), mx.array([[0], [2], [1], [1]])
REPEATED = mx.array([2, 0, 2])
START = mx.array([1, 0])


def set_slice(x, value):
    y = mx.array(x)
    y[1:3] = value
    return y


def set_entry(x):
    y = x * 2.0
    y[0, 1] = 1.0
    return y


def set_rows(x):
    y = mx.zeros((4, 3), dtype=x.dtype)
    y[SOME] = x[:3] ** 2
    return y


def set_masked(x):
    y = x * 1.0
    y[OTHER > 0] = 0.0
    return y * x


ELEMENTWISE: dict[str, Any] = {
    "add": (lambda x: (x + OTHER) ** 2, N),
    "subtract": (lambda x: (OTHER - x) ** 2, N),
    "multiply": (lambda x: x * OTHER * x, N),
    "divide": (lambda x: OTHER / x, P),
    "power": (lambda x: x**2.5, P),
    "power by itself": (lambda x: mx.power(x, x), P),
    "square": (mx.square, N),
    "sqrt": (mx.sqrt, P),
    "rsqrt": (mx.rsqrt, P),
    "reciprocal": (mx.reciprocal, P),
    "exp": (mx.exp, N),
    "expm1": (mx.expm1, N),
    "log": (mx.log, P),
    "log1p": (mx.log1p, P),
    "log2": (mx.log2, P),
    "log10": (mx.log10, P),
    "logaddexp": (lambda x: mx.logaddexp(x, OTHER), N),
    "sin": (mx.sin, N),
    "cos": (mx.cos, N),
    "tan": (mx.tan, S),
    "sinh": (mx.sinh, N),
    "cosh": (mx.cosh, N),
    "tanh": (mx.tanh, N),
    "arcsin": (mx.arcsin, S),
    "arccos": (mx.arccos, S),
    "arctan": (mx.arctan, N),
    "arctan2": (lambda x: mx.arctan2(x, OTHER), N),
    "arcsinh": (mx.arcsinh, N),
    "arccosh": (lambda x: mx.arccosh(x + 1), P),
    "arctanh": (mx.arctanh, S),
    "erf": (mx.erf, N),
    "erfinv": (mx.erfinv, S),
    "sigmoid": (mx.sigmoid, N),
    "abs": (lambda x: mx.abs(x) ** 3, N),
    "maximum": (lambda x: mx.maximum(x, OTHER) ** 2, N),
    "minimum": (lambda x: mx.minimum(x, OTHER) ** 2, N),
    "clip": (lambda x: mx.clip(x, -0.5, 0.5) ** 2, N),
    "where": (lambda x: mx.where(OTHER > 0, x**2, x**3), N),
    "remainder": (lambda x: mx.remainder(x, 0.7) ** 2, P),
    "floor": (lambda x: mx.floor(x) * x**2, N),
    "stop_gradient of another": (lambda x: mx.stop_gradient(OTHER) * x**2, N),
    "real and imaginary parts": (
        lambda x: mx.real(x.astype(mx.complex64) * 1j * x) + mx.imag(mx.square(x + 1j)), N,
    ),
}  # fmt: skip

REDUCTIONS: dict[str, Any] = {
    "sum": (lambda x: mx.sum(x, axis=0) ** 2, N),
    "mean": (lambda x: mx.mean(x, axis=1) ** 2, N),
    "var": (lambda x: mx.var(x, axis=0), N),
    "std": (lambda x: mx.std(x, axis=0), N),
    "prod": (lambda x: mx.prod(x, axis=0), P),
    "max": (lambda x: mx.max(x, axis=0) ** 2, N),
    "min": (lambda x: mx.min(x, axis=0) ** 2, N),
    "median": (lambda x: mx.median(x, axis=0) ** 2, N),
    "logsumexp": (lambda x: mx.logsumexp(x, axis=0), N),
    "softmax": (lambda x: mx.softmax(x, axis=0), N),
    "log softmax": (lambda x: x - mx.logsumexp(x, axis=1, keepdims=True), N),
    "cumsum": (lambda x: mx.cumsum(x, axis=0) ** 2, N),
    "cumsum backwards": (lambda x: mx.cumsum(x, axis=0, reverse=True, inclusive=False) ** 2, N),
    "cumprod": (lambda x: mx.cumprod(x, axis=0), P),
    "cummax": (lambda x: mx.cummax(x, axis=0) ** 2, N),
    "cummin": (lambda x: mx.cummin(x, axis=0) ** 2, N),
    "logcumsumexp": (lambda x: mx.logcumsumexp(x, axis=0), N),
    "norm": (lambda x: mx.linalg.norm(x, axis=1), N),
    "norm of order 3": (lambda x: mx.linalg.norm(x, ord=3, axis=1), N),
    "layer_norm": (lambda x: mx.fast.layer_norm(x, None, None, 1e-5), N),
    "rms_norm": (lambda x: mx.fast.rms_norm(x, None, 1e-5), N),
}

PRODUCTS: dict[str, Any] = {
    "matmul": (lambda x: x @ x.T, N),
    "matmul, batched": (lambda x: x[None] @ mx.broadcast_to(x.T, (2, 3, 4)), N),
    "addmm": (lambda x: mx.addmm(Q, x, x.T), N),
    "inner": (lambda x: mx.inner(x, x), N),
    "outer": (lambda x: mx.outer(x, x), N),
    "einsum": (lambda x: mx.einsum("ij,kj->ik", x, x), N),
    "tensordot": (lambda x: mx.tensordot(x, x, axes=1), Q),
    "kron": (lambda x: mx.kron(x, x), N),
    "trace": (lambda x: mx.trace(x @ x), Q),
    "gather_mm": (
        lambda x: mx.gather_mm(x[None], mx.stack([x.T, x.T]), None, mx.array([0])), SQUARE,
    ),
    "attention": (
        lambda x: mx.fast.scaled_dot_product_attention(
            x[None, None], x[None, None], x[None, None], scale=1.0
        ), SQUARE,
    ),
    "conv1d": (lambda x: mx.conv1d(x, FILTER) ** 2, SIGNAL),
    "conv1d, filter": (lambda x: mx.conv1d(SIGNAL, x) ** 2, FILTER),
    "conv2d": (lambda x: mx.conv2d(x, KERNEL.astype(x.dtype), stride=2, padding=1) ** 2, IMAGE),
    "conv2d, filter": (lambda x: mx.conv2d(IMAGE.astype(x.dtype), x) ** 2, KERNEL),
    "conv_transpose1d": (lambda x: mx.conv_transpose1d(x, FILTER) ** 2, SIGNAL),
    "convolve": (lambda x: mx.convolve(x.reshape(-1), x.reshape(-1)), N),
    "fft": (lambda x: mx.real(mx.fft.fft(x)) ** 2 + mx.imag(mx.fft.fft(x)) ** 2, N),
    "hadamard_transform": (lambda x: mx.hadamard_transform(x) ** 2, SQUARE),
}  # fmt: skip

PLACES: dict[str, Any] = {
    "index": (lambda x: x[1] ** 2, N),
    "slice": (lambda x: x[1:3, ::2] ** 2, N),
    "index by array": (lambda x: x[REPEATED] ** 2, N),
    "index by two arrays": (lambda x: x[REPEATED, mx.array([0, 1, 1])] ** 2, N),
    "take": (lambda x: mx.take(x, REPEATED, axis=0) ** 2, N),
    "take_along_axis": (lambda x: mx.take_along_axis(x, COLUMN, axis=1) ** 2, N),
    "put_along_axis": (lambda x: mx.put_along_axis(x, COLUMN, x[:, :1] ** 2, axis=1) ** 2, N),
    "at add": (lambda x: mx.zeros((4, 3), dtype=x.dtype).at[REPEATED].add(x[:3]) ** 2, N),
    "at maximum": (lambda x: x.at[SOME].maximum(x[:3]) ** 2, N),
    "assign to rows": (lambda x: set_rows(x) ** 2, N),
    "assign a number to a slice": (lambda x: mx.sum(set_slice(x, 1.0)) ** 2, N),
    "assign to a slice": (lambda x: mx.sum(set_slice(x, x[:2] ** 2)) ** 2, N),
    "assign to an entry": (lambda x: mx.sum(set_entry(x)) ** 2, N),
    "assign by mask": (lambda x: set_masked(x) ** 2, N),
    "slice_update": (lambda x: mx.slice_update(x, x[1:3] ** 2, START, (0, 1)) ** 2, N),
    "mx.slice": (lambda x: mx.slice(x, START, (0, 1), (2, 3)) ** 2, N),
    "sort": (lambda x: mx.sort(x, axis=0) ** 2, N),
    "argsort": (
        lambda x: mx.take_along_axis(x, mx.stop_gradient(mx.argsort(x, axis=0)), axis=0) ** 2, N,
    ),
    "topk": (lambda x: mx.topk(x.T, 2) ** 2, N),
    "partition": (lambda x: mx.sum(mx.partition(x, 1, axis=0)[:2] ** 2), N),
    "concatenate": (lambda x: mx.concatenate([x, x**2]), N),
    "stack": (lambda x: mx.stack([x, x**2]), N),
    "split": (lambda x: mx.split(x, 2)[0] ** 2, N),
    "reshape": (lambda x: x.reshape(2, 6) ** 2, N),
    "transpose": (lambda x: x.T**2, N),
    "swapaxes": (lambda x: mx.swapaxes(x, 0, 1) ** 2, N),
    "broadcast_to": (lambda x: mx.broadcast_to(x, (2, 4, 3)) ** 2, N),
    "squeeze": (lambda x: x[:1].squeeze(0) ** 2, N),
    "pad": (lambda x: mx.pad(x, 1) ** 2, N),
    "pad by the edge": (lambda x: mx.pad(x, 1, mode="edge") ** 2, N),
    "repeat": (lambda x: mx.repeat(x, 2, axis=0) ** 2, N),
    "tile": (lambda x: mx.tile(x, (2, 1)) ** 2, N),
    "roll": (lambda x: mx.roll(x, 1, 0) ** 2, N),
    "diag": (lambda x: mx.diag(x) ** 2, Q),
    "diagonal": (lambda x: mx.diagonal(x) ** 2, Q),
    "tril": (lambda x: mx.tril(x) ** 2, Q),
    "as_strided": (lambda x: mx.as_strided(x, (3, 2), (1, 2), 0) ** 2, N),
    "meshgrid": (lambda x: mx.meshgrid(x[0], x[1])[0] ** 2, N),
    "astype": (lambda x: x.astype(mx.float32).astype(mx.float64) ** 2, N),
    "contiguous": (lambda x: mx.contiguous(x) ** 2, N),
    "checkpoint": (lambda x: mx.checkpoint(lambda y: mx.tanh(y) ** 2)(x), N),
}  # fmt: skip

TABLE: dict[str, Any] = {**ELEMENTWISE, **REDUCTIONS, **PRODUCTS, **PLACES}

# Of these MLX 0.32 has no forward derivative.
NO_JVP = {
    "at add", "at maximum", "assign to rows", "conv1d", "conv1d, filter", "conv2d",
    "conv2d, filter", "conv_transpose1d", "convolve", "cummax", "cummin", "cumprod", "gather_mm",
}  # fmt: skip

# And of the gradients of these, so that forward over reverse fails on them as well.
NO_JVP_OF_GRADIENT = NO_JVP | {
    "argsort", "as_strided", "checkpoint", "diag", "diagonal", "index", "index by array",
    "index by two arrays", "max", "meshgrid", "min", "prod", "take", "trace",
}  # fmt: skip

# vmap has no rule for these, or a wrong one; they go row by row.
NOT_BATCHED = {
    "assign a number to a slice", "assign to a slice", "assign to an entry", "gather_mm",
    "slice_update",
}  # fmt: skip


def case(name):
    """A scalar loss of the operation, with a curvature of its own, and where to look."""
    function, x = TABLE[name]
    shape = function(x.astype(mx.float32) if "conv2d" in name else x).shape
    weights = mx.array(np.random.default_rng(1).normal(size=shape), dtype=x.dtype)

    def loss(x):
        return mx.sum(mx.tanh(0.3 * function(x)) * weights.astype(x.dtype))

    if "conv2d" in name:  # the CPU convolves in two dimensions in float32 alone
        x = x.astype(mx.float32)
    return function, loss, x


@pytest.fixture(autouse=True)
def on_the_cpu():
    with mx.stream(mx.cpu):  # float64
        yield


@pytest.mark.parametrize("name", TABLE)
def test_first_and_second_derivatives_agree_with_differences(name):
    _, loss, x = case(name)
    check_grads(loss, x)


def assert_close(found, expected, x):
    # Two orders of summation. In float64 a convolution is still one in float32.
    tolerance = 1e-5 if x.dtype == mx.float32 else 1e-6
    np.testing.assert_allclose(np.array(found), np.array(expected), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", TABLE)
def test_the_hessian_is_made_of_products(name):
    _, loss, x = case(name)
    matrix = np.array(hessian(loss, flat=True)(x))
    product = hvp(loss)
    rows = [np.array(product(x, unit.reshape(x.shape))).ravel() for unit in mx.eye(x.size)]
    assert_close(matrix, rows, x)
    assert_close(matrix, matrix.T, x)
    batched = can_batch(hessian_row(loss), sample_rows(x.size, x.dtype), x, ())
    assert batched or name in NOT_BATCHED


@pytest.mark.parametrize("name", TABLE)
def test_forward_and_reverse_give_one_jacobian(name):
    function, _, x = case(name)
    wide = jacobian(lambda x: function(x).reshape(-1)[: x.size], flat=True)(x)
    copies = 1 + x.size // function(x).size
    tall = jacobian(lambda x: mx.concatenate([function(x).reshape(-1)] * copies), flat=True)(x)
    assert tall.shape[0] > x.size >= wide.shape[0]  # by columns, by rows
    assert_close(tall[: wide.shape[0]], wide, x)


@pytest.mark.parametrize("name", TABLE)
def test_where_mlx_has_forward_derivatives_they_agree(name):
    function, loss, x = case(name)
    vector = mx.array(np.random.default_rng(2).normal(size=x.shape), dtype=x.dtype)
    for table, of, expected in (
        (NO_JVP, function, lambda: jacobian(function, flat=True)(x) @ vector.reshape(-1)),
        (NO_JVP_OF_GRADIENT, mx.grad(loss), lambda: hvp(loss)(x, vector)),
    ):
        try:
            found = mx.jvp(of, [x], [vector])[1][0]
        except (ValueError, RuntimeError):
            assert name in table
            continue
        assert_close(np.array(found).ravel(), np.array(expected()).ravel(), x)


@pytest.mark.parametrize(
    "name",
    ["logsumexp", "cumprod", "einsum", "conv1d", "index by array", "assign a number to a slice"],
)
def test_under_compile_and_vmap_it_is_the_same(name):
    function, loss, x = case(name)
    where = mx.stack([x, 0.9 * x, 1.1 * x])
    for derivative in (
        hessian(loss, flat=True),
        jacobian(function, flat=True),
        jacobian(lambda x: mx.concatenate([function(x).reshape(-1)] * 30), flat=True),
        lambda x: hvp(loss)(x, mx.sin(x)),
    ):
        expected = [np.array(derivative(one)) for one in where]
        compiled = mx.compile(derivative)
        assert_close(compiled(where[0]), expected[0], x)
        assert_close(compiled(where[1]), expected[1], x)
        if name != "assign a number to a slice":  # the caller's vmap is MLX's own
            assert_close(mx.vmap(derivative)(where), expected, x)
