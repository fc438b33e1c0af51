"""Checks of arguments and of the start of a run.

`name` is that of the value in messages: an argument, such as `max_steps`, or a label that shows the
value, such as `LBFGS(memory=5.5)`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any

from mlxopt._status import warn

_INF = math.inf


def check_number(
    value: Any, name: str, *, least=-_INF, above=-_INF, below=_INF, most=_INF, instead=""
) -> float:
    """Return a finite number as a float; raise TypeError or ValueError for anything else.

    Args:
        value: of any real type, or an array of shape () of NumPy or MLX, but not a bool.
        name: see above.
        least: the smallest value allowed, or
        above: the lower limit, not allowed itself.
        below: the upper limit, not allowed itself, or
        most: the largest value allowed.
        instead: an alternative in the message, such as ", or None".
    """
    scalar = _scalar(value)
    if isinstance(scalar, bool) or not isinstance(scalar, Real):
        kind = type(value).__qualname__
        raise TypeError(f"{_label(value, name)} expected a number{instead}, got {kind}.")
    try:
        number = float(scalar)
    except OverflowError:  # a whole number beyond the floats
        number = _INF
    if not (math.isfinite(number) and least <= number <= most and above < number < below):
        limits = _limits(least, above, below, most)
        raise ValueError(f"{_label(value, name)} expected a finite number{limits}.")
    return number


def check_count(value: Any, name: str, least: float = 1, instead="") -> int:
    """Return a whole number, at least `least`, as an int; raise TypeError or ValueError."""
    scalar = _scalar(value)
    if isinstance(scalar, bool) or not isinstance(scalar, Integral):
        kind = type(value).__qualname__
        raise TypeError(f"{_label(value, name)} expected a whole number{instead}, got {kind}.")
    if scalar < least:
        raise ValueError(f"{_label(value, name)} expected {_word(least)} or more.")
    return int(scalar)


def check_choice(value: Any, name: str, choices: Iterable[str]) -> str:
    """Return `value` if it is one of these strings; raise TypeError or ValueError."""
    known = ", ".join(map(repr, choices))
    if not isinstance(value, str):
        raise TypeError(f"{_label(value, name)} expected one of {known}.")
    if value not in choices:
        import difflib

        close = difflib.get_close_matches(value, choices, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{_label(value, name)} expected one of {known}.{hint}")
    return value


def check_fields(owner: Any, *names: str, whole: bool = False, **limits: Any) -> None:
    """Check these fields of a frozen dataclass by `check_number`, or `check_count` if whole."""
    for name in names:
        value = getattr(owner, name)
        check = check_count if whole else check_number
        number = check(value, f"{type(owner).__name__}({name}={value!r})", **limits)
        # A NumPy number times an MLX array would be a NumPy array.
        if type(value) not in (int, float):
            object.__setattr__(owner, name, number)


def limited(default: Any, **limits: Any) -> Any:
    """Return a field of a dataclass with limits that `check_limits` checks."""
    return dataclasses.field(default=default, metadata={"limits": limits})


def check_limits(owner: Any) -> None:
    """Check those fields of a frozen dataclass that `limited` made."""
    for field in dataclasses.fields(owner):
        if limits := field.metadata.get("limits"):
            check_fields(owner, field.name, **limits)


def check_tol(tol: Any) -> float:
    """Return `tol` as a float if it is a number, zero or more."""
    return check_number(tol, "tol", least=0, instead=", or None for the default")


def check_finish(finish: Any) -> None:
    """Raise ValueError unless `finish` is None or "float64"."""
    if finish not in (None, "float64"):
        raise ValueError(f'finish is {finish!r}; expected None or "float64".')


def check_callback(callback: Any) -> Callable[[Any], bool] | None:
    """Return a function of an Info that calls each callback, and whether one returned True.

    Any other answer than True, False or None is ignored with a warning, once for each callback. So
    is that of a lambda that calls `update`: tqdm's returns True when it draws the bar.

    Args:
        callback: a function, a list or tuple of functions, or None.
    """
    if callback is None:
        return None
    several = isinstance(callback, (list, tuple))
    callbacks = list(callback) if several else [callback]
    for index, one in enumerate(callbacks):
        if not callable(one):
            raise TypeError(
                f"callback{f'[{index}]' if several else ''} is {describe_type(one)}; expected a "
                f"function that takes an Info, or a list of them."
            )
    warned = set()

    def call(info: Any) -> bool:
        stops = False
        for index, one in enumerate(callbacks):
            answer = one(info)
            if answer is None:
                continue
            if _is_bool(answer) and not (answer and _is_update(one)):
                stops = stops or bool(answer)
            elif index not in warned:
                warned.add(index)
                name = getattr(one, "__qualname__", type(one).__name__)
                kind = "the True of an `update`" if answer is True else describe_type(answer)
                warn(
                    f"the callback {name} returned {kind.replace('of type', 'a value of type')}, "
                    f"which is ignored: True stops the run, None and False do not. In a def, "
                    f"unlike a lambda, the last call is not the value returned.",
                    UserWarning,
                )
        return stops

    return call


def _is_bool(answer: Any) -> bool:
    """Whether this is a bool, of NumPy or MLX too."""
    if isinstance(answer, bool):
        return True
    return str(getattr(answer, "dtype", "")).endswith("bool") and answer.ndim == 0


def _is_update(function: Any) -> bool:
    """Whether this is a lambda that calls a method `update`."""
    code = getattr(function, "__code__", None)
    return code is not None and code.co_name == "<lambda>" and "update" in code.co_names


def describe_type(value: Any) -> str:
    """Return the type of a wrong argument in words."""
    if isinstance(value, type):
        return f"the class {value.__name__} (call it: {value.__name__}())"
    return f"of type {type(value).__qualname__}"


class late_interrupt:
    """A context in which KeyboardInterrupt precedes an error that the same Ctrl-C caused.

    At a terminal Ctrl-C also ends the compiler that `mx.compile` runs, for which MLX raises a
    RuntimeError before Python raises KeyboardInterrupt.
    """

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is RuntimeError:
            time.sleep(0.05)


def _scalar(value: Any) -> Any:
    """Return the number in an array of shape (), a number of NumPy's too; others unchanged."""
    return value.item() if getattr(value, "shape", None) == () else value


def _label(value: Any, name: str) -> str:
    return f"{name}:" if "=" in name else f"{name} is {value!r};"


def _limits(least: float, above: float, below: float, most: float) -> str:
    """Return a range in words, as it follows "a finite number"."""
    if max(abs(least), abs(most)) < _INF:
        return f" from {least:g} to {most:g}"
    if max(abs(above), abs(below)) < _INF:
        return f" between {above:g} and {below:g}"
    low = f", {_word(least)} or more" if least > -_INF else ""
    low = f", more than {_word(above)}" if above > -_INF else low
    high = f", less than {_word(below)}" if below < _INF else ""
    return low + (f", {_word(most)} or less" if most < _INF else high)


def _word(limit: float) -> str:
    return "zero" if limit == 0 else f"{limit:g}"
