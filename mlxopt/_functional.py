"""A module of `mlx.nn` as a pure function of its parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

from mlxopt._checks import describe_type
from mlxopt._tree import Tree


def functional(module: nn.Module) -> tuple[Tree, Callable[..., Any]]:
    """Return a module's trainable parameters, and its call as a pure function of them.

    `apply(params, *inputs, **options)` is `module(*inputs, **options)` with `params` in place of
    the trainable parameters; it does not change the module. `module.update(result.params)` does.

    - Parameters frozen by `module.freeze(...)` before this call are not in `params`.
    - `apply` follows `module.train()` and `module.eval()`. Dropout in training mode has new random
      numbers in each step of `train`, and one fixed draw in `minimize`.
    - Other changes by a call, such as running statistics of `BatchNorm`, are discarded with a
      warning. After the run, update the module and call it on the data in training mode.
    - A parameter in two places (tied weights) is in `params` twice; the last counts, and `train`
      warns that the loss ignores the other.

    Args:
        module: an `mlx.nn.Module` with at least one trainable parameter.

    Returns:
        (params, apply): nested dicts and lists of arrays, and the function.

    Raises:
        TypeError: `module` is not a module.
        ValueError: no parameter is trainable, or `apply` was called with other names or shapes.

    >>> import mlx.core as mx, mlx.nn as nn, mlxopt as mo
    >>> params, apply = mo.functional(nn.Linear(2, 1))
    >>> X = mx.random.normal((64, 2), key=mx.random.key(0))
    >>> def loss(params, X, y):
    ...     return mx.mean(mx.square(apply(params, X) - y))
    >>> result = mo.minimize(loss, params, mo.LBFGS(), X, X @ mx.array([[2.0], [-1.0]]) + 3.0)
    >>> [round(w, 3) for w in result.params["weight"][0].tolist()]
    [2.0, -1.0]
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module is {describe_type(module)}; expected an mlx.nn.Module.")
    name, params = type(module).__name__, module.trainable_parameters()
    expected = _shapes(params)
    if not expected:
        raise ValueError(f"{name} has no trainable parameter; module.unfreeze() undoes a freeze.")

    def apply(params: Tree, *inputs: Any, **options: Any) -> Any:
        _check_shapes(params, expected, name)
        # A call can change frozen parameters too, such as running statistics.
        before = module.parameters()
        module.update(params)
        placed = dict(tree_flatten(module.parameters()))
        try:
            return module(*inputs, **options)
        finally:
            after = dict(tree_flatten(module.parameters()))
            module.update(before)
            changed = [path for path, array in after.items() if array is not placed.get(path)]
            if changed:
                warnings.warn(
                    f"{name} changed {', '.join(changed)}, and functional discards that. For "
                    f"BatchNorm, call the module on the data in training mode after the run.",
                    stacklevel=2,
                )

    return params, apply


def _shapes(params: Tree) -> dict[str, tuple[int, ...]]:
    leaves: Any = tree_flatten(params)
    return {name: getattr(leaf, "shape", ()) for name, leaf in leaves}


def _check_shapes(params: Tree, expected: dict[str, Any], module: str) -> None:
    found = _shapes(params)
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            wanted = f"shape {expected[name]}" if name in expected else "no such parameter"
            got = f"shape {found[name]}" if name in found else "none"
            reason = f"expected for {name!r} {wanted}, got {got}"
            raise ValueError(f"params, the first argument of {module}'s apply: {reason}.")
