"""A traced graph evaluated in extended precision, one operation after the other, and how far
roundings move its results.

What an operation means is MLX's; `tests/test_engine_fuzz.py` compares the two. How far results may
be off is measured, by Monte Carlo arithmetic (Parker 1997): every operation that rounds is given a
random error of some units in the last place, and the spread of a few such runs is taken. Where a
rounding decides, as in a comparison of equal numbers, the runs differ, and nothing is known.
"""

import numpy as np
from scipy import special

WIDE = np.longdouble
_UNITS = 4  # in the last place: errors of the engine's functions are within these

# Without an error. The other operations on floats have one.
_EXACT = {"Abs", "Negative", "Sign", "Ceil", "Floor", "Round", "Maximum", "Minimum", "Select"}
_EXACT |= {"Input", "Constant", "ArgReduce", "Broadcast", "Full", "Concatenate", "Pad", "Slice"}
_EXACT |= {"Reshape", "Transpose", "ExpandDims", "Squeeze", "Flatten", "Unflatten", "Split"}
_EXACT |= {"Contiguous", "Copy", "StopGradient", "Gather", "GatherAxis", "BitwiseInvert"}
_MOVES = {"Broadcast": np.broadcast_to, "Full": np.broadcast_to}
_MOVES |= dict.fromkeys(["Reshape", "ExpandDims", "Squeeze", "Flatten", "Unflatten"], np.reshape)
_MOVES |= dict.fromkeys(["Contiguous", "Copy", "StopGradient"], lambda x, _: x)

_NUMPY = {
    **{name: getattr(np, name.lower()) for name in ("Add", "Divide", "Multiply", "Equal", "Less")},
    **{name: getattr(np, name.lower()) for name in ("Cos", "Cosh", "Sin", "Sinh", "Tan", "Tanh")},
    **{name: getattr(np, name.lower()) for name in ("Exp", "Expm1", "Log1p", "Greater", "Square")},
    **{f"Arc{name}": getattr(np, f"arc{name.lower()}") for name in ("Cos", "Sin", "Tan", "Tan2")},
    **{f"Arc{name}": getattr(np, f"arc{name.lower()}") for name in ("Cosh", "Sinh", "Tanh")},
    **{f"Logical{name}": getattr(np, f"logical_{name.lower()}") for name in ("And", "Not", "Or")},
    "Abs": np.abs,
    "BitwiseInvert": np.invert,
    "Erf": lambda x: special.erf(x.astype(float)),
    "ErfInv": lambda x: special.erfinv(x.astype(float)),
    "GreaterEqual": np.greater_equal,
    "LessEqual": np.less_equal,
    "Maximum": np.maximum,
    "Minimum": np.minimum,
    "Negative": np.negative,
    "NotEqual": np.not_equal,
    "Select": np.where,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Sign": lambda x: (x > 0).astype(x.dtype) - ((x < 0) if x.dtype.kind != "b" else 0),
    "Subtract": lambda x, y: (x ^ y) if x.dtype.kind == "b" else x - y,
}


class Oracle:
    """One evaluation of a graph, with random errors if `rng` is given.

    With `rounded` each result is rounded to its dtype, so that differences can be exactly zero.
    """

    def __init__(self, rng=None, rounded=False):
        self.rng, self.rounded = rng, rounded
        self.is_extreme = False  # a number was near the limits of its dtype

    def __call__(self, graph, inputs):
        """Return the outputs; floats in extended precision."""
        values = []
        with np.errstate(all="ignore"):
            for node in graph.nodes:
                x = inputs if node.op == "Input" else [values[i] for i in node.inputs]
                found = np.asarray(self._value(node, [np.asarray(a) for a in x]))
                if node.dtype.kind == "f":
                    found = found.astype(WIDE)
                    found = found if node.op in _EXACT else self.off(found, node.dtype)
                values.append(found.astype(held(node.dtype)).reshape(node.shape))
        return [values[i] for i in graph.outputs]

    def off(self, x, dtype, size=None):
        """Return numbers of the range of a dtype, off by units in the last place of `size`."""
        limits = np.finfo(dtype)
        inside = (np.abs(x) >= limits.tiny) & (np.abs(x) <= limits.max)
        self.is_extreme |= bool((~inside & (x != 0) & np.isfinite(x)).any())
        if not self.rounded:
            x = np.where(inside | (x == 0), x, x.astype(dtype))
        else:
            x = x.astype(dtype).astype(WIDE)
        if self.rng is None:
            return x
        unit = _UNITS * np.maximum(WIDE(limits.eps) * np.abs(x if size is None else size), 0)
        error = np.where(np.isfinite(x) & np.isfinite(unit), unit, 0)
        moved = x + error * self.rng.uniform(-1, 1, x.shape)
        # Functions may take what is below the smallest normal number for zero.
        moved = np.where(np.abs(x) < limits.tiny, moved * self.rng.integers(0, 2, x.shape), moved)
        # The sign of a zero is not kept: x + 0 is x.
        return np.where(moved == 0, np.copysign(0, self.rng.uniform(-1, 1, x.shape)), moved)

    def _value(self, node, x):
        op, dtype = node.op, node.dtype
        is_float = dtype.kind == "f"
        if op in _MOVES:
            return _MOVES[op](x[0], node.shape)
        if op == "Log":
            return (np.log2, np.log10, np.log)[node.state[0]](x[0])
        if op == "Round":
            return np.rint(x[0]) if x[0].dtype.kind == "f" else x[0]
        if op in ("Ceil", "Floor"):
            return getattr(np, op.lower())(x[0]) if x[0].dtype.kind == "f" else x[0]
        if op in _NUMPY:
            return _NUMPY[op](*x)
        if op in ("Input", "Constant"):
            return x[node.state[0]] if op == "Input" else node.state[0]
        off = (lambda a, size=None: self.off(a, dtype, size)) if is_float else (lambda a: a)
        return getattr(self, f"_{op.lower()}")(node, off, *x)

    # --- entry by entry ----------------------------------------------------------------------

    def _astype(self, node, off, x):
        if node.dtype.kind == "b":
            return x != 0
        if node.dtype.kind == "f" or x.dtype.kind != "f":
            return x
        info = np.iinfo(node.dtype)
        known = (x > info.min - 1) & (x < float(info.max) + (node.dtype.itemsize < 8))
        any_ = 0 if self.rng is None else self.rng.integers(info.min, info.max, x.shape)
        return np.where(known, np.where(known, x, 0).astype(node.dtype), any_)

    def _sqrt(self, node, off, x):
        return 1 / np.sqrt(x) if node.state[0] else np.sqrt(x)

    def _power(self, node, off, x, y):
        if node.dtype.kind == "f":
            return np.power(x, y)
        return np.where(y < 0, 0, np.power(x, np.maximum(y, 0)))

    def _floordivide(self, node, off, x, y):
        return np.floor(off(x / y)) if node.dtype.kind == "f" else x // np.where(y == 0, 1, y)

    def _remainder(self, node, off, x, y):
        if node.dtype.kind != "f":
            return x % np.where(y == 0, 1, y)
        return np.remainder(off(x), y)

    def _divmod(self, node, off, x, y):
        rule = (self._floordivide, self._remainder)[node.state[-1]]
        return rule(node, off, x, y)

    def _logaddexp(self, node, off, x, y):
        most, apart = np.maximum(x, y), np.where(x == y, 0, -np.abs(x - y))
        return off(most) + off(np.log1p(np.exp(apart)))

    def _arange(self, node, off):
        start, _, step = node.state
        return start + step * np.arange(node.size)

    # --- along axes --------------------------------------------------------------------------

    def _reduce(self, node, off, x):
        kind, axes = node.state
        if kind in (2, 3):
            x = off(x.astype(held(node.dtype)))
        function = (np.all, np.any, np.sum, np.prod, np.min, np.max)[kind]
        return function(x, axis=axes, keepdims=True).astype(held(node.dtype))

    def _argreduce(self, node, off, x):
        return (np.argmin, np.argmax)[node.state[0]](x, axis=node.state[1], keepdims=True)

    def _softmax(self, node, off, x):
        terms = off(np.exp(off(x - x.max(axis=-1, keepdims=True))))
        return terms / terms.sum(axis=-1, keepdims=True)

    def _logsumexp(self, node, off, x):
        top = x.max(axis=-1, keepdims=True)
        top = np.where(np.isfinite(top), top, 0)
        terms = off(np.exp(off(x - top)))
        return off(np.log(terms.sum(axis=-1, keepdims=True))) + off(top)

    def _scan(self, node, off, x):
        kind, axis, reverse, inclusive = node.state
        x = np.moveaxis(off(x.astype(held(node.dtype))), axis, 0)
        found, total = np.empty_like(x), np.full(x.shape[1:], kind - 2, dtype=x.dtype)
        for i in range(len(x))[:: -1 if reverse else 1]:
            before, total = total, total + x[i] if kind == 2 else total * x[i]
            found[i] = total if inclusive else before
        return np.moveaxis(found, 0, axis)

    def _matmul(self, node, off, x, y):
        return off(x) @ off(y)

    def _addmm(self, node, off, x, y, z):
        alpha, beta = node.state
        return off(alpha * (off(x) @ off(y))) + off(beta * z)

    # --- parts -------------------------------------------------------------------------------

    def _transpose(self, node, off, x):
        return x.transpose(node.state[0])

    def _slice(self, node, off, x):
        return x[_range(*node.state)]

    def _split(self, node, off, x):
        ends, axis, index = node.state
        return np.split(x, ends, axis)[index]

    def _concatenate(self, node, off, *x):
        return np.concatenate(x, axis=node.state[0])

    def _pad(self, node, off, x, value):
        axes, low, high = node.state
        width = [(0, 0)] * x.ndim
        for axis, before, after in zip(axes, low, high, strict=True):
            width[axis] = (before, after)
        return np.pad(x, width, constant_values=value)

    def _gather(self, node, off, x, *indices):
        axes, sizes = node.state
        shape = indices[0].shape if indices else ()
        found = np.empty((*shape, *sizes), x.dtype)
        for at in np.ndindex(shape):
            start = _start(x, axes, [i[at] for i in indices])
            found[at] = x[tuple(slice(s, s + n) for s, n in zip(start, sizes, strict=True))]
        return found

    def _scatter(self, node, off, x, *rest):
        *indices, updates = rest
        kind, axes = node.state
        found, shape = x.copy(), indices[0].shape if indices else ()
        sizes, updates = updates.shape[len(shape) :], off(updates)
        for at in np.ndindex(shape):
            start = _start(x, axes, [i[at] for i in indices])
            part = tuple(slice(s, s + n) for s, n in zip(start, sizes, strict=True))
            _update(found, part, updates[at], kind)
        return found

    def _gatheraxis(self, node, off, x, index):
        return np.take_along_axis(x, index.astype(np.int64), axis=node.state[0])

    def _scatteraxis(self, node, off, x, index, updates):
        kind, axis = node.state
        found, updates = x.copy(), np.broadcast_to(off(updates), index.shape)
        for at in np.ndindex(index.shape):
            to = (*at[:axis], int(index[at]), *at[axis + 1 :])
            _update(found, to, updates[at], (2, 4)[kind])
        return found

    def _sliceupdate(self, node, off, x, part):
        found = x.copy()
        _update(found, _range(*node.state[1:]), off(part), node.state[0])
        return found


def held(dtype):
    """Return the dtype that numbers of a dtype are evaluated in."""
    return np.dtype(WIDE) if dtype.kind == "f" else dtype


def spread(graph, inputs, runs, seed):
    """Return each result with its largest deviation in runs with random errors.

    Where some of these are finite and others are not, it is infinite.
    """
    exact = Oracle()(graph, inputs)
    rng = np.random.default_rng(seed)
    deviations = [np.zeros(x.shape) for x in exact]
    for oracle in (Oracle(rounded=True), *[Oracle(rng)] * runs):
        for deviation, x, y in zip(deviations, exact, oracle(graph, inputs), strict=True):
            with np.errstate(all="ignore"):
                gap = np.abs(x.astype(WIDE) - y.astype(WIDE))
            same = (x == y) | ((x != x) & (y != y))
            gap = np.where(same, 0, np.where(gap == gap, gap, np.inf))
            np.maximum(deviation, gap, out=deviation)
    return list(zip(exact, deviations, strict=True))


def _range(start, stop, step):
    return tuple(
        slice(a, None if by < 0 and b < 0 else b, by)
        for a, b, by in zip(start, stop, step, strict=True)
    )


def _start(x, axes, indices):
    start = [0] * x.ndim
    for axis, index in zip(axes, indices, strict=True):
        start[axis] = int(index) % x.shape[axis]
    return start


def _update(target, where, values, kind):
    if kind == 2:
        target[where] += values
    else:
        target[where] = values
