"""Random functions of arrays: each step takes earlier results and is one of MLX's operations."""

import math
from typing import Any

import mlx.core as mx
import numpy as np

_SIZE = 3000  # entries of a result, at most
_INTEGERS = [mx.int8, mx.int16, mx.int32, mx.int64, mx.uint8, mx.uint16, mx.uint32]
_NUMBERS = [0.0, 1.0, -1.0, 2.0, 0.5, 3.0, -0.7, 4.0]


def _inside(x):
    return x / (1 + mx.abs(x))


def _deviation(x, **options):
    return mx.sqrt(mx.var(x, **options) + 0.1)  # the slope of a root at 0 is a matter of rounding


def _product(x, **options):
    # Others overflow on the way to a number, and then it is a matter of the order.
    return mx.prod(mx.tanh(x) if _kind(x) == "f" else x, **options)


def _finite(x):
    return mx.where(mx.isfinite(x), x, 0.5)


# With what keeps the operand where the function is defined, for most uses.
UNARY = {
    **dict.fromkeys([mx.abs, mx.negative, mx.square, mx.sign, mx.floor, mx.ceil], None),
    **dict.fromkeys([mx.round, mx.sin, mx.cos, mx.tanh, mx.sigmoid, mx.arctan, mx.arcsinh], None),
    **dict.fromkeys([mx.erf, mx.isnan, mx.isinf, _finite, mx.reciprocal, _inside], None),
    **dict.fromkeys([mx.log, mx.log2, mx.log10, mx.rsqrt], lambda x: mx.abs(x) + 0.1),
    **dict.fromkeys([mx.sqrt, mx.log1p], mx.abs),
    **dict.fromkeys([mx.arcsin, mx.arccos, mx.arctanh, mx.erfinv], _inside),
    **dict.fromkeys([mx.exp, mx.expm1, mx.sinh, mx.cosh, mx.tan], lambda x: 4 * mx.tanh(x / 4)),
    mx.arccosh: lambda x: 1.1 + mx.abs(x),
}
BINARY = [mx.add, mx.subtract, mx.multiply, mx.divide, mx.maximum, mx.minimum, mx.logaddexp]
BINARY += [
    mx.maximum,
    mx.minimum,
    mx.arctan2,
    mx.floor_divide,
    mx.remainder,
    lambda x, y: mx.divmod(x, y)[0],
]
BINARY += [lambda x, y: mx.power(mx.abs(x) + 0.1, 3 * mx.tanh(y)), mx.power]
COMPARED = [mx.equal, mx.not_equal, mx.less, mx.less_equal, mx.greater, mx.greater_equal]
REDUCED = [mx.sum, mx.mean, _product, mx.max, mx.min, mx.var, _deviation, mx.any, mx.all]
REDUCED += [mx.logsumexp, mx.max, mx.min]


class RandomFunction:
    """A random function of arrays: the same at every call, by `seed`."""

    def __init__(self, seed, dtype, steps):
        self.seed, self.dtype, self.steps = seed, dtype, steps
        rng = np.random.default_rng([seed, 0])
        self.rows = int(rng.choice([1, 2, 3, 5, 7, 7, 33, 260, 301, 517]))
        self.special = rng.random() < 0.5

    def inputs(self):
        rng = np.random.default_rng([self.seed, 1])
        n, k = self.rows, int(rng.integers(1, 6))
        shapes = [(n, k), (n,), (k,), (k, k), (), (2, k, 3), (n, 1), (1, k)]
        if rng.random() < 0.03:
            shapes.append((0, k))
        found = []
        for i in [0, *rng.integers(0, len(shapes), 3)]:
            x = rng.normal(size=shapes[i]) * 10.0 ** rng.choice([0, 0, 0, -2, 2])
            if self.special:
                choice = rng.choice([0, 1, -1, np.inf, -np.inf, np.nan, np.nan], size=x.shape)
                x = np.where(rng.random(x.shape) < 0.1, choice, x)
            found.append(mx.array(x, self.dtype))
        found.append(mx.array(rng.integers(-9, 9, size=(n, k)).astype(np.int32)))
        chosen: Any = rng.random((n, 1)) < 0.5
        found.append(mx.array(chosen))
        return found

    def __call__(self, *inputs):
        steps = _Steps(self.seed, self.dtype, inputs)
        for _ in range(self.steps):
            steps.step()
        return steps.pool[-1:] + steps.pool[len(inputs) :][-4:-1]

    def with_gradient(self, *inputs):
        """The results, and the gradient of a sum of them in the arrays of floats."""
        floats = [i for i, x in enumerate(inputs) if _kind(x) == "f"]

        def total(*floats_):
            arrays = list(inputs)
            for i, x in zip(floats, floats_, strict=True):
                arrays[i] = x
            terms = [x for x in self(*arrays) if _kind(x) == "f" and x.size]
            weights = [mx.cos(mx.arange(x.size)).astype(x.dtype).reshape(x.shape) for x in terms]
            return sum((mx.sum(x * w) for x, w in zip(terms, weights, strict=True)), mx.array(0.0))

        value, slopes = mx.value_and_grad(total, argnums=list(range(len(floats))))(
            *(inputs[i] for i in floats)
        )
        return [*self(*inputs), value, *slopes]


def _kind(x):
    return "b" if x.dtype == mx.bool_ else "f" if mx.issubdtype(x.dtype, mx.floating) else "i"


class _Steps:
    def __init__(self, seed, dtype, inputs):
        self.rng = np.random.default_rng([seed, 2])
        self.dtype, self.pool = dtype, list(inputs)

    def step(self):
        rules = (
            [self.unary] * 4 + [self.binary] * 5 + [self.number, self.view, self.view, self.part]
        )
        rules += [self.choice, self.reduced, self.reduced, self.product, self.product, self.scan]
        rules += [self.gathered, self.updated, self.joined, self.cast, self.made, self.along]
        x = self.one_of(rules)()
        if x.size > _SIZE:
            x = mx.sum(x, axis=int(np.argmax(x.shape)))
        self.pool.append(x if x.size <= _SIZE else x.reshape(-1)[:_SIZE])

    # --- choices -----------------------------------------------------------------------------

    def chance(self, probability):
        return self.rng.random() < probability

    def one_of(self, items):
        return items[int(self.rng.integers(len(items)))]

    def below(self, n, low=0):
        return int(self.rng.integers(low, n))

    def any(self, axes=0):
        """Return an earlier result, later ones more often, with so many axes at least."""
        size = len(self.pool)
        x = self.pool[size - 1 - int(size * self.rng.random() ** 1.5)]
        while x.ndim < axes:
            x = mx.expand_dims(x, self.below(x.ndim + 1))
        return x

    def float(self, axes=0):
        x = self.any(axes)
        return x if _kind(x) == "f" else x.astype(self.dtype)

    def integer(self, axes=0):
        x = self.any(axes)
        if _kind(x) != "i":
            # MLX casts the gradient too, to an integer that may not exist.
            x = mx.stop_gradient(mx.clip(mx.where(mx.isfinite(x), x, 1), 0, 9))
            x = x.astype(self.one_of(_INTEGERS))
        return x

    def fitted(self, x, shape):
        """Return entries of x in a shape that broadcasts to `shape`."""
        fits = len(x.shape) <= len(shape) and all(
            a in (1, b) for a, b in zip(x.shape[::-1], shape[::-1], strict=False)
        )
        if fits and self.chance(0.9):
            return x
        shape = [1 if self.chance(0.2) else size for size in shape]
        return self.exactly(x, shape[self.below(len(shape) + 1) :] if self.chance(0.5) else shape)

    def exactly(self, x, shape):
        size, flat = math.prod(shape), x.reshape(-1)
        if not flat.size:
            return mx.full(shape, 0.5, dtype=x.dtype)
        if flat.size >= size:
            step = self.below(flat.size // max(size, 1) + 1, 1)
            return flat[::step][:size].reshape(shape)
        return mx.take(flat, mx.arange(size) % flat.size).reshape(shape)

    def axes(self, x, least=1):
        count = self.below(x.ndim + 1, least)
        found = [int(a) for a in self.rng.permutation(x.ndim)[:count]]
        return [a - x.ndim if self.chance(0.3) else a for a in found]

    def axis(self, x):
        return self.axes(x)[0]

    # --- entry by entry ----------------------------------------------------------------------

    def unary(self):
        function = self.one_of(list(UNARY))
        x = self.float() if self.chance(0.9) else self.any()
        defined = UNARY[function]
        if function is mx.negative and _kind(x) == "b":
            return mx.logical_not(x)
        return function(defined(x) if defined and self.chance(0.85) else x)

    def binary(self):
        draw = self.integer if self.chance(0.15) else self.any if self.chance(0.1) else self.float
        x, y = draw(), draw()
        y = self.fitted(y, x.shape)
        x, y = (y, x) if self.chance(0.3) else (x, y)
        if self.chance(0.2):
            return self.one_of(COMPARED)(x, y)
        function = self.one_of(BINARY)
        if function in BINARY[-5:] and "f" not in (_kind(x), _kind(y)):
            y = mx.clip(y.astype(mx.int32), 1, 3)  # no division by zero, no negative power
        return function(x, y)

    def number(self):
        x = self.float() if self.chance(0.8) else self.integer()
        c = self.one_of(_NUMBERS) if self.chance(0.9) else self.one_of([math.inf, math.nan])
        c = c if _kind(x) == "f" else self.below(4, 1)
        match self.below(8):
            case 0:
                return x + c
            case 1:
                return c - x
            case 2:
                return x - c
            case 3:
                return x * c
            case 4:
                return c / x
            case 5:
                return x / c
            case 6:
                return x**c
            case _:
                return mx.maximum(x, c)

    def choice(self):
        x = self.float()
        y, of = self.fitted(self.float(), x.shape), self.fitted(self.any(), x.shape)
        if self.chance(0.3):
            return self.one_of([mx.logical_and, mx.logical_or])(of, self.fitted(of > 0, x.shape))
        if self.chance(0.2):
            return mx.logical_not(of)
        if self.chance(0.2):
            return mx.clip(x, -1.0, y)
        return mx.where(of if _kind(of) == "b" else of > 0, x, y)

    def cast(self):
        x = self.integer() if self.chance(0.5) else self.any() > 0
        other = self.one_of([mx.float32, self.dtype, self.dtype, mx.int32, mx.int64, mx.bool_])
        return x.astype(other)

    def made(self):
        shape = self.any().shape
        match self.below(6):
            case 0:
                return mx.array(self.rng.normal(size=shape), self.dtype)
            case 1:
                return mx.full(shape, self.one_of(_NUMBERS), dtype=self.dtype)
            case 2:
                return mx.arange(self.below(9, 1), dtype=self.one_of([mx.int32, self.dtype]))
            case 3:
                return mx.eye(self.below(5, 1), dtype=self.dtype)
            case 4:
                return mx.array(self.rng.normal(), self.dtype)
            case _:
                x = self.float(2)
                return self.one_of([mx.tril, mx.triu])(x, self.below(3, -1))

    # --- views -------------------------------------------------------------------------------

    def view(self):
        x = self.any()
        match self.below(8):
            case 0 | 1:
                return mx.transpose(x, [int(a) for a in self.rng.permutation(x.ndim)])
            case 2 | 3:
                return x.reshape(self.factors(x.size))
            case 4:
                return mx.expand_dims(x, self.below(x.ndim + 1))
            case 5:
                return mx.squeeze(x)
            case 6:
                return x.reshape(-1)
            case _:
                shape = (*([self.below(4, 1)] if x.ndim < 3 else []), *x.shape)
                return mx.broadcast_to(x, [3 if s == 1 and self.chance(0.5) else s for s in shape])

    def factors(self, size):
        if not size:
            return (0,)
        found, rest = [], size
        for divisor in (2, 3, 5, 7, 1):
            if rest % divisor == 0 and self.chance(0.5):
                found.append(divisor)
                rest //= divisor
        found.insert(self.below(len(found) + 1), rest)
        return [int(n) for n in self.rng.permutation(found)] if self.chance(0.5) else found

    def part(self):
        x = self.any(1)
        index = []
        for size in x.shape:
            kind = self.below(6)
            if kind == 0 and size:
                index.append(self.below(size, -size))
            elif kind == 1 and size > 1:
                a, b = sorted(self.rng.choice(size + 1, 2, replace=False).tolist())
                index.append(slice(a, b, self.below(4, 1)))
            elif kind == 2:
                index.append(slice(None, None, self.one_of([-1, -2, 2, 3])))
            else:
                index.append(slice(None))
        return x[tuple(index)]

    def indices(self, size, shape):
        """Return indices along an axis: constant, or computed."""
        if self.chance(0.3):
            return self.exactly(self.integer(), shape).astype(mx.int32) % size
        return mx.array(self.rng.integers(-size, size, shape), self.one_of([mx.int32, mx.int64]))

    def gathered(self):
        x = self.any(1)
        if not x.size:
            return x
        axis = self.below(x.ndim)
        count = self.one_of([1, 3, x.shape[axis]])
        if self.chance(0.3):
            other = self.below(x.ndim)
            index: list = [slice(None)] * x.ndim
            shape = self.one_of([(count,), (count, 1)])
            index[axis] = self.indices(x.shape[axis], shape)
            index[other] = self.indices(x.shape[other], (count,))
            return x[tuple(index)]
        shape = self.one_of([(count,), (count,), (2, count), ()])
        return mx.take(x, self.indices(x.shape[axis], shape), axis=axis)

    def along(self):
        x = self.any(1)
        axis = self.axis(x)
        if not x.size:
            return x
        shape = list(x.shape)
        shape[axis] = self.one_of([1, 2, shape[axis]])
        index = self.indices(x.shape[axis], shape)
        if self.chance(0.5):
            return mx.take_along_axis(x, index, axis=axis)
        index = mx.broadcast_to(mx.take(index, mx.array([0]), axis=axis), index.shape)
        values = self.fitted(self.float(), index.shape)
        if index.shape[axis] > 1:  # which of several values is put is not known
            values = mx.full((1,) * x.ndim, 2.5)
        return mx.put_along_axis(x, index, values.astype(x.dtype), axis=axis)

    def updated(self):
        x = self.float(1)
        if not x.size:
            return x
        n = x.shape[0]
        if self.chance(0.5):
            a, b = sorted(self.rng.choice(n + 1, 2, replace=False).tolist())
            index, count = slice(a, b, self.below(3, 1)), 0
            count = len(range(a, b, index.step))
        else:
            count = self.below(n + 1, 1)
            index = mx.array(self.rng.permutation(n)[:count] - n * self.below(2))
        values = self.fitted(self.float(), (count, *x.shape[1:])).astype(x.dtype)
        if self.chance(0.5):
            if self.chance(0.5) and not isinstance(index, slice):
                index = self.indices(n, (count,))
            return x.at[index].add(values)
        x = x + 0
        x[index] = values
        return x

    def joined(self):
        x = self.any(1)
        axis = self.axis(x)
        match self.below(7):
            case 0 | 1:
                return mx.concatenate(
                    [x, self.exactly(self.any(), x.shape), x[:1] if axis in (0, -x.ndim) else x],
                    axis=axis,
                )
            case 2:
                return mx.stack([x, self.exactly(self.any(), x.shape)], axis=axis)
            case 3:
                width = [(self.below(3), self.below(3)) for _ in x.shape]
                return mx.pad(x, width, constant_values=self.one_of([0, 1]))
            case 4:
                return mx.repeat(x, self.below(4, 1), axis=axis)
            case 5:
                return mx.roll(x, self.below(4, -3), axis)
            case _:
                ends = [x.shape[axis] // 2] if x.shape[axis] > 1 else []
                return self.one_of(mx.split(x, ends, axis=axis)) if ends else mx.tile(x, (2,))

    # --- along axes --------------------------------------------------------------------------

    def reduced(self):
        x = self.any(1) if self.chance(0.2) else self.float(1)
        function: Any = self.one_of(REDUCED)
        keep = self.chance(0.4)
        if self.chance(0.1) and x.size:
            function = self.one_of([mx.argmax, mx.argmin])
            return (
                function(x, axis=self.axis(x), keepdims=keep) if self.chance(0.8) else function(x)
            )
        if function in (mx.mean, mx.var, _deviation, mx.logsumexp):
            x = x.astype(self.dtype) if _kind(x) != "f" else x
        if not x.size and function in (mx.max, mx.min, mx.logsumexp):
            function = mx.sum
        return function(x, axis=self.axes(x), keepdims=keep) if self.chance(0.8) else function(x)

    def scan(self):
        x = self.float(1) if self.chance(0.8) else self.integer(1)
        axis, down, inclusive = self.axis(x), self.chance(0.3), self.chance(0.7)
        match self.below(4):
            case 0:
                return mx.cumsum(x, axis=axis, reverse=down, inclusive=inclusive)
            case 1:
                x = mx.tanh(x) if _kind(x) == "f" else x
                return mx.cumprod(x, axis=axis, reverse=down, inclusive=inclusive)
            case 2:
                return mx.softmax(x.astype(self.dtype), axis=self.axes(x))
            case _:
                return mx.logsumexp(x.astype(self.dtype), axis=axis, keepdims=True) if x.size else x

    def product(self):
        x = self.float(self.below(4, 1))
        inner, dtype = x.shape[-1], x.dtype
        match self.below(7):
            case 0:
                return x @ self.exactly(self.float(), [inner]).astype(dtype)
            case 1 | 2:
                y = self.exactly(self.float(), [inner, self.one_of([1, 2, 3, 17])]).astype(dtype)
                return x @ y
            case 3:
                y = self.exactly(self.float(), [self.below(6, 1), inner]).astype(dtype)
                return x @ y.T
            case 4:
                x = x[None] if x.ndim == 1 else x
                return mx.swapaxes(x, -1, -2) @ self.exactly(
                    self.float(), [*x.shape[:-1], 2]
                ).astype(dtype)
            case 5:
                x = x[None] if x.ndim == 1 else x
                y = self.exactly(self.float(), [inner, 3]).astype(dtype)
                c = self.fitted(self.float(), (*x.shape[:-1], 3)).astype(dtype)
                return mx.addmm(c, x, y, alpha=self.one_of([1, 0.5]), beta=self.one_of([1, 2]))
            case _:
                y = self.exactly(
                    self.float(),
                    [2, 1, inner, 2][: 4 - 2 * (x.ndim < 3)][-2:]
                    if x.ndim < 3
                    else [*x.shape[:-2], inner, 2],
                ).astype(dtype)
                if x.ndim < 3:
                    y = self.exactly(y, [inner, 2])
                return x @ y
