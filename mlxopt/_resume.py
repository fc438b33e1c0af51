"""Going on from a state: whether it is one, and fits the optimizer, the parameters and the loss."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np

from mlxopt._checks import describe_type
from mlxopt._tree import Tree, dtype_name, epsilon


def check_init(init: Any, params: Tree) -> None:
    """Raise TypeError or ValueError unless `init` is a state at parameters of the make of `params`.

    Args:
        init: what the user passed, not None.
        params: what the run was to start from.
    """
    if not is_state(init):
        hint = ""
        if is_state(getattr(init, "state", None)):
            hint = " Write init=result.state."
        elif isinstance(init, tuple) and any(map(is_state, init)):
            hint = " mo.load returns two things: optimizer, state = mo.load(path)."
        raise TypeError(f"init is {describe_type(init)}; expected an optimizer's state.{hint}")
    difference = unlike(init.params, params)
    if difference:
        path, came, expected = difference
        raise ValueError(
            f"init.params{path} is {came}, but params{path} is {expected}; expected two trees of "
            f"one make. The numbers in params do not matter here: pass the start of the first run, "
            f"or init.params itself."
        )


def is_state(value: Any) -> bool:
    """Whether this is an optimizer's state, or that of `train`."""
    return isinstance(value, tuple) and "params" in getattr(value, "_fields", ())


def check_make(optimizer: Any, init: Any, fresh: Any) -> None:
    """Raise TypeError or ValueError unless `init` is a state of this optimizer.

    Args:
        optimizer: what is to go on.
        init: the state to go on from.
        fresh: one that it has just made, at the same parameters.
    """
    name, wanted = type(optimizer).__name__, type(fresh).__name__
    if type(init).__name__ != wanted:
        raise TypeError(
            f"init is of type {type(init).__name__}; {name} goes on from one of type {wanted}. "
            f"To start {name} where another method ended, pass init.params in place of params, "
            f"without init."
        )
    difference = unlike(init, fresh)
    if difference is None:
        return
    path, came, expected = difference
    text = repr(optimizer)
    owner = text if len(text) <= 100 else name
    raise ValueError(
        f"init{path} is {came}; {owner} goes on from {expected} there. Pass the state of a run "
        f"with the same optimizer and hyper-parameters; or, to go on from its parameters alone, "
        f"pass init.params in place of params, without init."
    )


def resumed(optimizer: Any, init: Any, fresh: Any) -> Any:
    """Return the state `init`, ready to go on.

    One evaluation at its parameters, which `fresh` is made of, is what shows that the state belongs
    to this loss and these data: with others it would go on wrongly, and say nothing.

    Raises:
        TypeError, ValueError: the state is not one of this optimizer, or not of this loss.
    """
    check_make(optimizer, init, fresh)
    # Another machine may round otherwise; near a perfect fit by more than the value itself.
    slack = math.sqrt(epsilon(init.params)) * max(
        abs(init.value), init.optimality, fresh.optimality
    )
    if not abs(init.value - fresh.value) <= slack:
        raise ValueError(
            f"init has a loss of {init.value:.9g}, but at its parameters the loss is "
            f"{fresh.value:.9g}: it comes from another loss, other data, or another draw of the "
            f"loss's random numbers (call mx.random.seed as before the first run). To go on from "
            f"its parameters alone, pass init.params in place of params, without init."
        )
    return init._replace(status=None)


def unlike(found: Any, expected: Any, path: str = "") -> tuple[str, str, str] | None:
    """Return where two trees differ in make, and what is there in each; None where they do not.

    Something that may be missing (a direction not chosen yet) is None; so where either is None the
    other may be anything. Numbers may have any value, and tuples of numbers any length.
    """
    if found is None or expected is None:
        return None
    both = found, expected
    difference = path, _described(found), _described(expected)
    if all(isinstance(one, (mx.array, np.ndarray)) for one in both):
        same = type(found) is type(expected) and found.dtype == expected.dtype
        return None if same and found.shape == expected.shape else difference
    if all(isinstance(one, (int, float, np.generic)) for one in both):
        return None
    # By name: a module that was imported anew has classes that are others, but alike.
    if type(found).__name__ != type(expected).__name__:
        return difference
    if isinstance(found, dict):
        if set(found) != set(expected):
            return difference
        children = [(f"[{key!r}]", found[key], expected[key]) for key in expected]
    elif isinstance(found, (list, tuple)):
        if all(isinstance(child, (int, float)) for one in both for child in one):
            return None
        if len(found) != len(expected):
            return difference
        names = getattr(found, "_fields", None)
        steps = [f".{name}" for name in names] if names else [f"[{i}]" for i in range(len(found))]
        children = list(zip(steps, found, expected, strict=True))
    else:
        return None
    differences = (unlike(a, b, path + step) for step, a, b in children)
    return next((one for one in differences if one is not None), None)


def _described(item: Any) -> str:
    """Return what a message says that something is."""
    if isinstance(item, (mx.array, np.ndarray)):
        dtype = dtype_name(item.dtype) if isinstance(item, mx.array) else str(item.dtype)
        where = "" if isinstance(item, mx.array) else "NumPy "
        return f"{where}{dtype} of shape {tuple(item.shape)}"
    if isinstance(item, dict):
        return f"a dict with the keys {list(item)}"
    if isinstance(item, (list, tuple)) and not hasattr(item, "_fields"):
        return f"a {type(item).__name__} of {len(item)}"
    return f"a {type(item).__name__}"
