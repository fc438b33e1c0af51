"""Operations with seven digits in a float64 loss, read off its graph."""

from __future__ import annotations

import io
import re
from typing import Any

import mlx.core as mx

from mlxopt._operation import Function
from mlxopt._tree import Tree, holds_float64, leaves
from mlxopt.autodiff._guards import call, kept_random_state

# MLX's primitives that the CPU computes in float32, and the functions that they come from.
_PRIMITIVES = {
    "CumLogAddExp": "mx.logcumsumexp",
    "Cos": "mx.cos",
    "Erf": "mx.erf",
    "ErfInv": "mx.erfinv",
    "Exp": "mx.exp",
    "LogAddExp": "mx.logaddexp",
    "LogSumExp": "mx.logsumexp",
    "Sigmoid": "mx.sigmoid",
    "Sin": "mx.sin",
    "Softmax": "mx.softmax",
}
_OPERATION = re.compile(r'\{ (\w+) \[label ="(\w+)"')
_EDGE = re.compile(r'^"?(\w+)"? -> "?(\w+)"?$', re.MULTILINE)


def float64_suspects(loss: Function, params: Tree, data: tuple[Any, ...] = ()) -> list[str]:
    """Return the functions of MLX with seven digits in float64 through which `params` pass.

    In a loss called by `call`, the functions of `mlx.core` have all digits. What is found here was
    out of reach: a function bound by another name (`from mlx.core import exp`), or a part of an
    operation such as `mx.fast.scaled_dot_product_attention`. `mlxopt.special` has the functions
    under the same names. Nothing is evaluated.

    Args:
        loss: a function `loss(params, *data)` that returns an array of any shape.
        params: the parameters; those in float32 have no suspects.
        data: the other arguments, as MLX takes them.

    Returns:
        names such as "mx.exp", sorted.

    >>> import mlx.core as mx
    >>> exp = mx.exp
    >>> params = mx.array([1.0, 2.0], dtype=mx.float64)
    >>> float64_suspects(lambda p: mx.sum(exp(p) + mx.sin(p)), params)
    ['mx.exp']
    """
    if not holds_float64(params):
        return []
    traced: list[mx.array] = []
    values: list[mx.array] = []

    def total(params: Tree) -> mx.array:
        traced[:] = leaves(params)
        values[:] = [call(loss, params, *data)]
        return mx.sum(values[0])

    try:
        # In a gradient a compiled function is traced anew, so that its operations are seen.
        with kept_random_state():
            mx.grad(total)(params)
    except (ValueError, RuntimeError):  # an operation has no derivative
        if not values:
            raise
    text = io.StringIO()
    names = {f"params_{index}": leaf for index, leaf in enumerate(traced)}
    mx.export_to_dot(text, values, **names)
    operations = dict(_OPERATION.findall(text.getvalue()))
    following: dict[str, list[str]] = {}
    for before, after in _EDGE.findall(text.getvalue()):
        following.setdefault(before, []).append(after)
    reached, ahead = set(), list(names)
    while ahead:
        node = ahead.pop()
        if node not in reached:
            reached.add(node)
            ahead += following.get(node, ())
    found = {operations.get(node, "") for node in reached}
    return sorted(_PRIMITIVES[name] for name in found & _PRIMITIVES.keys())
