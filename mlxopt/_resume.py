"""Resuming from a state: checks that it fits the parameters, the optimizer and the loss."""

from __future__ import annotations

import math
from typing import Any

from mlxopt._checks import describe_type
from mlxopt._tree import Tree, difference, epsilon

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
