"""Checks of a user's function: its output, that it reads no values, and one random draw."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import re
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlxopt._operation import INSTEAD, OTHERWISE, Function, is_refusal, lowering
from mlxopt._platform.compiler import precompile_header
from mlxopt._tree import (
    FLOATS,
    copies,
    dtype_name,
    epsilon,
    holds_float64,
    is_float,
    leaves,
    to_numpy,
)

_PACKAGE = str(Path(__file__).parents[1])
proving: ContextVar[bool] = ContextVar("proving", default=False)
_NUMPY = str(Path(np.__file__).parent)
_LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))


class TapeError(ValueError):
    """The function reads an array back to Python, so its derivative can be silently wrong."""

    place = ""  # file, line and code of the read, where known


class Hooks:
    """Functions of a module or class that pass through a handler of the thread, while within."""

    def __init__(self, owner: Any, *names: str) -> None:
        self._owner, self._own = owner, {name: getattr(owner, name) for name in names}
        self._local, self._lock, self._within = threading.local(), threading.Lock(), 0

    @contextlib.contextmanager
    def __call__(self, handler: Function) -> Iterator[None]:
        """Call `handler(function, *args)` in place of `function(*args)`."""
        outer = getattr(self._local, "handler", None)
        self._count(1)
        try:
            self._local.handler = handler
            yield
        finally:
            self._local.handler = outer
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            self._within += change
            if self._within == (change > 0):  # the first within, or the last
                for name, own in self._own.items():
                    setattr(self._owner, name, self._hooked(own) if change > 0 else own)

    def _hooked(self, own: Function) -> Function:
        @functools.wraps(own)
        def hooked(*args: Any, **kwargs: Any) -> Any:
            handler = getattr(self._local, "handler", None)
            return own(*args, **kwargs) if handler is None else handler(own, *args, **kwargs)

        return hooked


_NUMBERS = "item", "tolist", "__float__", "__int__", "__bool__", "__index__"
reads = Hooks(mx.array, *_NUMBERS, "__repr__", "__format__")
_SENDING = "all_gather", "all_max", "all_min", "all_sum", "send", "sum_scatter"
_collectives = Hooks(mx.distributed, *_SENDING, "recv", "recv_like")


def check_is_callable(loss: Any) -> None:
    """Raise TypeError unless `loss` can be called."""
    if not callable(loss):
        kind = type(loss).__qualname__
        raise TypeError(f"loss is {kind}; expected a function of (params, *data).")


def name_of(function: Function) -> str:
    """Return the name that the author of a function gave it, for messages."""
    function = inspect.unwrap(function)
    return getattr(function, "__name__", type(function).__name__)


def call(function: Function, *args: Any, **kwargs: Any) -> Any:
    """Return `function(*args, **kwargs)`, with all digits in MLX's functions of float64 arrays."""
    if holds_float64((args, kwargs)) and not proving.get() and not lowering.get():
        # 5 ms for an import that float32 does without.
        from mlxopt.special._precise import precise

        function = precise(function)
    with binding_guard(name_of(function)):
        return function(*args, **kwargs)


def checked_loss(loss: Function, has_aux: bool = False) -> Function:
    """Return `loss` with a check that it returns a real scalar; on traces it costs nothing."""
    check_is_callable(loss)
    name = name_of(loss)

    @functools.wraps(loss)
    def checked(*args: Any, **kwargs: Any) -> Any:
        result = call(loss, *args, **kwargs)
        if has_aux and not (isinstance(result, tuple) and len(result) >= 2):
            raise TypeError(
                f"{name} returned {type(result).__qualname__}; with has_aux=True expected a tuple "
                f"(value, aux)."
            )
        value: Any = result[0] if has_aux else result
        check_output(f"{name} returned", value, "a scalar mx.array")
        if value.ndim > 0:
            raise ValueError(
                f"{name} returned an array of shape {value.shape}; expected a scalar, shape (). "
                f"Reduce it with mx.mean or mx.sum, or index its one entry."
            )
        return result

    return checked


def check_output(found: str, value: Any, expected: str) -> None:
    """Raise TypeError unless `value` is a real floating-point array; the first words are given."""
    if not isinstance(value, mx.array):
        advice = (
            "Is a return missing?"
            if value is None
            else "Compute it with MLX operations (mx.sum, mx.mean), not float(), .item() or NumPy."
        )
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(
            f"{found} {kind}, which carries no derivative; expected {expected}. {advice}"
        )
    if value.dtype not in FLOATS:
        is_complex = value.dtype == mx.complex64
        advice = "Take mx.real or mx.abs of it" if is_complex else "Counts have no derivative"
        kind = dtype_name(value.dtype)
        raise TypeError(f"{found} dtype {kind}; expected floats of a smooth loss. {advice}.")


@contextlib.contextmanager
def tape_guard(loss: Function) -> Iterator[None]:
    """Turn the refusal of MLX to evaluate a traced array into a TapeError that names the line.

    It is raised also where the function has caught the refusal.
    """
    caught: list[TapeError] = []

    def noting(read: Function, *args: Any, **kwargs: Any) -> Any:
        try:
            return read(*args, **kwargs)
        except (ValueError, RuntimeError) as error:
            caller = sys._getframe(2).f_code.co_filename
            if is_refusal(error) and not caller.startswith(_PACKAGE):
                caught.append(_tape_error(loss, traceback.extract_stack()))
            raise

    try:
        with reads(noting):
            yield
    except TapeError:
        raise
    except Exception as error:
        if caught:
            raise caught[0] from error
        if is_refusal(error) or _LEFT in str(error):
            raise _tape_error(loss, traceback.extract_tb(error.__traceback__)) from error
        raise
    if caught:
        raise caught[0]


# MLX's message for an array of a trace that is evaluated outside of it: by another thread, or kept.
_LEFT = "[eval] Attempting to eval an array without a primitive"


def _tape_error(loss: Function, frames: traceback.StackSummary) -> TapeError:
    frame = _own(frames)
    place = f"in {frame.filename}, line {frame.lineno} ({frame.line})"
    error = TapeError(
        f"{name_of(loss)} reads an array back to Python {place}, so its derivative may be silently "
        f"wrong: the value depends on the parameters. Stay in MLX operations: mx.where in place of "
        f"if, mx.array operations in place of NumPy, and no .item() or float(). If the value only "
        f"selects a branch, pass compile=False; minimize, train and value_and_grad all take it."
    )
    error.place = place
    return error


def compiled(function: Function, **options: Any) -> Function:
    """Return `mx.compile(function, **options)`, for a function that may capture its own arguments.

    MLX refuses an array that is both captured and passed, as in a penalty towards the start. It
    compares identities, so copies are passed where that happens.
    """
    call = mx.compile(function, **options)

    def safe(*args: Any) -> Any:
        nonlocal call
        precompile_header()
        try:
            return call(*args)
        except ValueError as error:
            if "uncaptured inputs" not in str(error):
                raise
        call = mx.compile(function, **options)  # the failure leaves an empty trace behind
        return call(*copies(args))

    return safe


class NoDerivativeError(ValueError):
    """MLX has no derivative for an operation of the function."""


# What MLX says of an operation without a derivative.
_MISSING = re.compile(
    r"\[Primitive::[vj][jv]p\] Not implemented for (\w+)|VJP not implemented for (\w+)|"
    r"\[(gather_axis)\] Cannot calculate VJP"
)


class differentiating:
    """A context that says what to do where MLX has no derivative for an operation of `loss`."""

    def __init__(self, loss: Function) -> None:
        self._loss = loss

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: Any, error: BaseException | None, *__: Any) -> None:
        found = None if error is None else _MISSING.search(str(error))
        if found is None:
            return
        operation = next(name for name in found.groups() if name)
        raise NoDerivativeError(
            f"{name_of(self._loss)} cannot be differentiated: MLX has no derivative for "
            f"{operation}, which is in it or in its gradient. In its place: "
            f"{INSTEAD.get(operation, OTHERWISE)}."
        ) from error


class binding_guard:
    """A context that says in words that MLX does not take an argument."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not TypeError or "incompatible function arguments" not in str(error):
            return
        frames = traceback.extract_tb(trace)
        frame = _own(frames)
        where = f"in {frame.filename}, line {frame.lineno} ({frame.line})"
        after = frames[frames.index(frame) + 1 :]
        if after and after[0].filename.startswith(_NUMPY):
            # NumPy looks for a method of this name, and passes axis, dtype and out.
            reduction = after[0].name
            raise TypeError(
                f"{self._name} calls np.{reduction} of an mx.array {where}; write "
                f"mx.{reduction}, which has a derivative."
            ) from error
        operation = str(error).partition("(")[0]
        raise TypeError(
            f"{self._name} gives MLX's {operation} an argument that it does not take, {where}. "
            f"Convert NumPy arrays and lists outside the loss: mx.array(x)."
        ) from error


def _own(frames: traceback.StackSummary) -> traceback.FrameSummary:
    """Return the innermost frame of the user's own code, if there is one."""
    own = [one for one in frames if not one.filename.startswith((_PACKAGE, *_LIBRARIES))]
    return (own or frames)[-1]


def trace(function: Function, *args: Any) -> None:
    """Call `function` once with traced arrays, which MLX refuses to evaluate."""
    if compile_traces():
        compiled(function)(*args)
        return
    arrays = [leaf for leaf in leaves(args) if isinstance(leaf, mx.array)]

    def of_arrays(*traced: mx.array) -> Any:
        rest = iter(traced)
        return function(*tree_map(lambda a: next(rest) if isinstance(a, mx.array) else a, args))

    try:
        mx.export_function(lambda _: None, of_arrays, *arrays)
    except ValueError as error:
        if not str(error).startswith("[export_function]"):  # raised after the trace
            raise


@functools.cache
def compile_traces() -> bool:
    """Whether `mx.compile` traces: without a compiler it returns the function as it is."""
    try:
        mx.compile(lambda x: (x.item(), x)[1])(mx.zeros(()))
    except ValueError:
        return True
    return False


def agree(one: Any, other: Any) -> bool:
    """Whether two trees of arrays are equal to half of the digits, NaN in the same places."""
    found, expected = leaves(one), leaves(other)
    return len(found) == len(expected) and all(map(_are_close, found, expected))


def _are_close(one: mx.array, other: mx.array) -> bool:
    if one.shape != other.shape or not is_float(other):
        return one.shape == other.shape
    found, expected = to_numpy(one), to_numpy(other)
    known = np.isfinite(expected)
    scale = np.abs(expected, where=known, out=np.zeros_like(expected)).max(initial=0.0)
    room = math.sqrt(epsilon(other)) * scale
    with np.errstate(invalid="ignore"):
        same = (np.abs(found - expected) <= room) | (found == expected)
    return bool(np.all(same | (np.isnan(found) & np.isnan(expected))))


@contextlib.contextmanager
def noted_collectives() -> Iterator[list[tuple[str, Any]]]:
    """Yield a list of the calls between several processes: their names and first arguments."""
    found = []

    def noting(call: Function, *args: Any, **kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        groups = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, mx.distributed.Group)]
        if (groups[0] if groups else mx.distributed.init()).size() > 1:
            found.append((call.__name__, args[0]))
        return result

    with _collectives(noting):
        yield found


class kept_random_state:
    """Restore MLX's global random state at the end; `used` tells whether it had changed.

    `mx.random.state` cannot be assigned, but a seed is a key: `mx.random.seed(s)` sets the key to
    the upper and lower 32 bits of s.
    """

    used = False

    def __enter__(self) -> kept_random_state:
        self._seed = random_seed()
        return self

    def __exit__(self, *_: Any) -> None:
        self.used = self._seed is not None and random_seed() != self._seed
        if self.used and self._seed is not None:
            mx.random.seed(self._seed)


def random_seed() -> int | None:
    """Return the seed of MLX's global generator; None where a caller's compile traces it."""
    try:
        high, low = mx.random.state[0].tolist()  # pyright: ignore[reportIndexIssue]
    except (ValueError, RuntimeError):
        return None
    return (int(high) << 32) | int(low)


def with_fixed_draw(function: Function) -> Function:
    """Return `function` with the same random numbers in every call, the next of MLX's generator."""
    seed = random_seed()
    if seed is None:
        return function

    @functools.wraps(function)
    def drawn(*args: Any, **kwargs: Any) -> Any:
        with kept_random_state():
            mx.random.seed(seed)
            return function(*args, **kwargs)

    return drawn
