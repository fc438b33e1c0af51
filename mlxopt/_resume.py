"""Resuming from a state: checks that it fits the parameters, the optimizer and the loss."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np

from mlxopt._checks import describe_type
from mlxopt._tree import Tree, children, describe_structure, epsilon

_ANEW = "pass init.params in place of params, without init"


def is_state(value: Any) -> bool:
    """Whether this is a state of an optimizer or of `train`."""
    return isinstance(value, tuple) and "params" in getattr(value, "_fields", ())


def check_init(init: Any, params: Tree) -> None:
    """Raise TypeError or ValueError unless `init` is a state at parameters like `params`."""
    if not is_state(init):
        hint = ""
        if is_state(getattr(init, "state", None)):
            hint = " Write init=result.state."
        elif isinstance(init, tuple) and any(map(is_state, init)):
            hint = " mo.load returns two values: optimizer, state = mo.load(path)."
        raise TypeError(f"init is {describe_type(init)}; expected an optimizer's state.{hint}")
    found = difference(init.params, params)
    if found is not None:
        path, came, expected = found
        raise ValueError(
            f"init.params{path} is {came}, but params{path} is {expected}; expected two trees of "
            f"the same structure, shapes and dtypes. Pass init.params as params."
        )


def check_state(optimizer: Any, init: Any, fresh: Any) -> None:
    """Raise TypeError or ValueError unless `init` is a state of this optimizer, as `fresh` is."""
    name, came, expected = (type(one).__name__ for one in (optimizer, init, fresh))
    if came != expected:
        kinds = f"init is of type {came}; {name} resumes from a {expected}"
        raise TypeError(f"{kinds}. To start from its parameters, {_ANEW}.")
    found = difference(init, fresh, optional=True)
    if found is not None:
        path, came, expected = found
        owner = repr(optimizer) if len(repr(optimizer)) <= 100 else name
        raise ValueError(
            f"init{path} is {came}; {owner} resumes from {expected}. Pass the state of a run with "
            f"the same optimizer and hyper-parameters; or, to start from its parameters, {_ANEW}."
        )


def resumed(optimizer: Any, init: Any, fresh: Any) -> Any:
    """Return `init` without its status; raise unless it fits a fresh state at its parameters."""
    check_state(optimizer, init, fresh)
    # Another machine rounds otherwise; near a perfect fit by more than the value itself.
    scale = max(abs(init.value), init.optimality, fresh.optimality)
    if not abs(init.value - fresh.value) <= math.sqrt(epsilon(init.params)) * scale:
        raise ValueError(
            f"init has a loss of {init.value:.9g}, but at its parameters the loss is "
            f"{fresh.value:.9g}: it is of another loss, other data, or another draw of random "
            f"numbers (mx.random.seed). To start from its parameters, {_ANEW}."
        )
    return init._replace(status=None)


def difference(
    found: Any, expected: Any, optional: bool = False, path: str = ""
) -> tuple[str, str, str] | None:
    """Return the first difference of two trees in structure, shape or dtype; None without any.

    Numbers of any value are alike, and tuples of numbers of any length.

    Args:
        found: a tree.
        expected: another.
        optional: None is like everything: a field of a state that has no value yet.
        path: of the two in larger trees.

    Returns:
        (path, found, expected), the latter two in words.
    """
    if optional and (found is None or expected is None):
        return None
    here = path, describe_structure(found), describe_structure(expected)
    both = found, expected
    if all(isinstance(one, (mx.array, np.ndarray)) for one in both):
        return here if here[1] != here[2] else None
    if all(isinstance(one, (int, float, np.generic)) for one in both):
        return None
    # By name: a module that is imported again has other classes.
    if type(found).__name__ != type(expected).__name__:
        return here
    if isinstance(found, (list, tuple)) and all(
        isinstance(entry, (int, float)) for one in both for entry in one
    ):
        return None
    ours, theirs = dict(children(found) or ()), dict(children(expected) or ())
    if ours.keys() != theirs.keys():
        return here
    below = (difference(ours[step], theirs[step], optional, path + step) for step in theirs)
    return next((one for one in below if one is not None), None)
