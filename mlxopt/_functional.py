"""A module of `mlx.nn` as a pure function of its parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

from mlxopt._tree import Tree


def functional(module: nn.Module) -> tuple[Tree, Callable[..., Any]]:
    """Return a module's trainable parameters, and its call as a pure function of them.

    `apply(params, *inputs, **options)` is `module(*inputs, **options)` with `params` in place of
    the trainable parameters. The module is put back as it was before the call returns, whatever
    happens in it; so a run leaves the module alone until `module.update(result.params)`.

    - Frozen parameters (`module.freeze(...)`) are not in `params`; `apply` takes them from the
      module. What is trainable is decided once, here.
    - `apply` follows `module.train()` and `module.eval()`. Dropout in training mode draws new
      numbers in each step of `train`, and sees one fixed draw in `minimize`.
    - What a module changes in itself during a call is not kept, with a warning. That concerns
      `BatchNorm` in training mode: it normalizes by its batch, as ever, but its running statistics
      stay as they are. Put the result into the module, call `module.train()` and run it over the
      data once before `module.eval()`; or do without such layers (`LayerNorm`, `GroupNorm`).
    - A parameter held in two places (tied weights) comes twice; the last place counts, and `train`
      warns that the loss ignores the other.

    Args:
        module: an `mlx.nn.Module` with at least one trainable parameter.

    Returns:
        (params, apply): nested dicts and lists of arrays, as `module.trainable_parameters()` gives
        them, and the function.

    Raises:
        TypeError: `module` is not one.
        ValueError: it has no trainable parameter; later, from `apply`, if its first argument is not
            of the make and shapes of `params`.

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
        what = f"the class {module.__name__}" if isinstance(module, type) else type(module).__name__
        raise TypeError(f"functional was given {what}; expected an mlx.nn.Module, such as a model.")
    params = module.trainable_parameters()
    expected = _shapes(params)
    if not expected:
        raise ValueError(
            f"{type(module).__name__} has no trainable parameter; is all of it frozen? "
            f"module.unfreeze() undoes that."
        )

    def apply(params: Tree, *inputs: Any, **options: Any) -> Any:
        """Return the module's output with these parameters."""
        if (found := _shapes(params)) != expected:
            raise ValueError(_difference(type(module).__name__, expected, found))
        # All parameters, frozen ones such as running statistics too: a call may change them.
        before = module.parameters()
        module.update(params)
        placed = dict(tree_flatten(module.parameters()))
        try:
            return module(*inputs, **options)
        finally:
            after = dict(tree_flatten(module.parameters()))
            module.update(before)
            changed = [name for name, array in after.items() if array is not placed.get(name)]
            if changed:
                _warn_of_change(type(module).__name__, changed)

    return params, apply


def _shapes(params: Tree) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter by name: `layers.0.weight`."""
    found: list[tuple[str, Any]] = tree_flatten(params)  # pyright: ignore[reportAssignmentType]
    return {name: getattr(leaf, "shape", ()) for name, leaf in found}


def _difference(module: str, expected: dict[str, Any], found: dict[str, Any]) -> str:
    """Say in which parameter, the first one, two makes differ."""
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            wanted = f"shape {expected[name]}" if name in expected else "no such parameter"
            got = f"shape {found[name]}" if name in found else "none"
            return (
                f"apply was given other parameters than those of {module}: expected for {name!r} "
                f"{wanted}, got {got}. Its first argument is params, then come the inputs."
            )
    return f"apply was given parameters of another make than those of {module}."


def _warn_of_change(module: str, names: list[str]) -> None:
    warnings.warn(
        f"{module} changed {', '.join(names)} while it was called, and functional discards that. "
        f"For BatchNorm's running statistics: after the run, module.update(result.params), "
        f"module.train(), call the module on the data, then module.eval().",
        stacklevel=3,
    )
