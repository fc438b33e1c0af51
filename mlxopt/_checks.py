"""Checks of options and of the start, shared by the two loops."""

from __future__ import annotations

import math
import time
from numbers import Integral, Real
from typing import Any


class late_interrupt:
    """Let a Ctrl-C that is under way arrive before an error that it has caused.

    At a terminal Ctrl-C also reaches the compiler that `mx.compile` runs, and MLX reports the death
    of that one (a RuntimeError) before Python gets to raise KeyboardInterrupt.
    """

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is RuntimeError:
            time.sleep(0.05)


def check_tol(tol: Any) -> float:
    """Return `tol` if it is a number, zero or more."""
    if isinstance(tol, bool) or not isinstance(tol, Real):
        raise TypeError(f"tol is {describe_type(tol)}; expected a number, or None for the default.")
    if not (math.isfinite(float(tol)) and float(tol) >= 0):
        raise ValueError(f"tol is {tol}; expected zero or more, and finite.")
    return float(tol)


def check_count(number: Any, name: str) -> int:
    """Return `number` if it is a whole number, one or more."""
    if isinstance(number, bool) or not isinstance(number, Integral):
        raise TypeError(f"{name} is {number!r}; expected a whole number.")
    if number < 1:
        raise ValueError(f"{name} is {number}; expected 1 or more.")
    return int(number)


def check_callback(callback: Any) -> None:
    """Raise TypeError unless `callback` is None or can be called."""
    if callback is not None and not callable(callback):
        raise TypeError(
            f"callback is {describe_type(callback)}; expected a function that takes an Info."
        )


def check_start(value: float, grad_norm: float) -> None:
    """Raise ValueError unless the loss and its gradient are finite where a run starts."""
    if math.isfinite(value) and math.isfinite(grad_norm):
        return
    what = "gradient is NaN or infinite" if math.isfinite(value) else f"loss is {value}"
    raise ValueError(
        f"the {what} at the start; expected a finite number. Start inside the domain of the loss, "
        f"and check the data for NaN and infinity."
    )


def describe_type(value: Any) -> str:
    """Return how a message names a value of the wrong type."""
    if isinstance(value, type):
        return f"the class {value.__name__} (call it: {value.__name__}())"
    return f"of type {type(value).__qualname__}"
