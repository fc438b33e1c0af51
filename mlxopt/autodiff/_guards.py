"""The guards: a function is called by its right name, stays on the tape, and draws once."""

from __future__ import annotations

import functools
import inspect
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from mlxopt._platform import blas
from mlxopt._tree import FLOATS, Tree, dtype_name, leaves, leaves_with_paths, structure

_PACKAGE = str(Path(__file__).parents[1])
_LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))


class TapeError(ValueError):
    """The function reads an array back to Python, so its derivative may be silently wrong."""


def check_is_callable(loss: Any) -> None:
    """Raise TypeError unless `loss` can be called."""
    if not callable(loss):
        raise TypeError(
            f"loss is {type(loss).__qualname__}; expected a function of (params, *data)."
        )


def name_of(function: Callable[..., Any]) -> str:
    """Return what a message calls a function: the name its author gave it."""
    function = inspect.unwrap(function)
    return getattr(function, "__name__", type(function).__name__)


def checked_loss(loss: Callable[..., Any], has_aux: bool = False) -> Callable[..., Any]:
    """Return `loss` with a check of what it returns; the check runs on traces, not on numbers."""
    name = name_of(loss)

    @functools.wraps(loss)
    def checked(*args: Any, **kwargs: Any) -> Any:
        result = loss(*args, **kwargs)
        if has_aux and not (isinstance(result, tuple) and len(result) >= 2):
            raise TypeError(
                f"{name} returned {type(result).__qualname__}; with has_aux=True expected a tuple "
                f"(value, aux)."
            )
        value = result[0] if has_aux else result
        if value is None:
            raise TypeError(
                f"{name} returned None; expected a scalar mx.array. Is a return missing?"
            )
        if not isinstance(value, mx.array):
            raise TypeError(
                f"{name} returned {type(value).__module__}.{type(value).__qualname__}, which "
                f"carries no derivative; expected a scalar mx.array. Compute it with MLX "
                f"operations (mx.sum, mx.mean), and do not convert it with float(), .item() or "
                f"NumPy."
            )
        if value.size != 1 or value.ndim > 0:
            raise ValueError(
                f"{name} returned an array of shape {value.shape}; expected a scalar, shape (). "
                f"Reduce it with mx.mean or mx.sum, or index its one entry."
            )
        if value.dtype not in FLOATS:
            raise TypeError(
                f"{name} returned dtype {dtype_name(value.dtype)}; expected a real floating-point "
                f"scalar. "
                + (
                    "Take mx.real or mx.abs of it."
                    if value.dtype == mx.complex64
                    else "A count has no derivative; use a smooth loss."
                )
            )
        return result

    return checked


def checked_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with a check that it returns a tree of real floating-point arrays."""
    name = name_of(function)

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        named = leaves_with_paths(result)
        if not named:
            raise TypeError(f"{name} returned {result!r}; expected an mx.array or a tree of them.")
        for path, leaf in named:
            where = f"{name} returned" + (f", at {path}," if path else "")
            if not isinstance(leaf, mx.array):
                raise TypeError(
                    f"{where} {type(leaf).__module__}.{type(leaf).__qualname__}, which carries no "
                    f"derivative; expected an mx.array, or a tree of them."
                )
            if leaf.dtype not in FLOATS:
                raise TypeError(
                    f"{where} dtype {dtype_name(leaf.dtype)}; expected a real floating-point array."
                )
        return result

    return checked


def check_vector(params: Tree, vector: Tree) -> Tree:
    """Return `vector` with its leaves in the order and dtypes of `params`, or say what is wrong."""
    if structure(vector) != structure(params):
        raise ValueError(
            f"vector is {_outline(vector)}; expected a tree like params, {_outline(params)}. "
            f"Build it with mlx.utils.tree_map over params."
        )
    given = dict(leaves_with_paths(vector))
    for path, leaf in leaves_with_paths(params):
        one = given[path]
        if not isinstance(one, mx.array):
            raise TypeError(
                f"vector{path} is {type(one).__module__}.{type(one).__qualname__}; expected an "
                f"mx.array of shape {leaf.shape}."
            )
        if one.shape != leaf.shape:
            raise ValueError(
                f"vector{path} has shape {one.shape}; expected {leaf.shape}, the shape of "
                f"params{path}."
            )
        if one.dtype == mx.complex64:
            raise TypeError(f"vector{path} has dtype complex64; expected real numbers.")
    # By name: two equal dictionaries may hold their keys in different orders.
    return tree_map(lambda leaf, one: one.astype(leaf.dtype), params, vector)


def _outline(tree: Tree) -> str:
    """Return what a message says of the make of a tree."""
    if isinstance(tree, dict):
        return f"a dict of {list(tree)}"
    if isinstance(tree, (list, tuple)):
        return f"a {type(tree).__name__} of {len(tree)}"
    if isinstance(tree, mx.array):
        return f"an mx.array of shape {tree.shape}"
    return f"{type(tree).__module__}.{type(tree).__qualname__}"


class Proof:
    """A trace of a function, once for each new kind of its arguments: it stays on the tape.

    Only the arguments at `positions` are traced; the others are constants of the trace, so that a
    function may read its data as it likes.
    """

    def __init__(self, function: Callable[..., Any], compile: bool) -> None:
        self._function, self._wanted = function, compile
        self._seen: set[Any] = set()

    def __call__(self, positions: Sequence[int], args: Any, kwargs: dict[str, Any]) -> None:
        """Trace, unless that was done for such arguments before; raise TapeError."""
        blas.start()
        if not self._wanted or (kind := signature((args, kwargs))) in self._seen:
            return

        def in_params(params: list[Tree]) -> Any:
            called = list(args)
            for position, tree in zip(positions, params, strict=True):
                called[position] = tree
            return self._function(*called, **kwargs)

        with tape_guard(self._function), kept_random_state():
            mx.compile(in_params)([args[position] for position in positions])
        self._seen.add(kind)


def signature(tree: Tree) -> Any:
    """Return what a trace depends on: structure, shapes and dtypes."""
    return repr(structure(tree)), tuple(_kind(leaf) for leaf in leaves(tree))


def _kind(leaf: Any) -> Any:
    """Return what of a leaf a trace depends on: of a flag its value, of a number its type."""
    if leaf is None or isinstance(leaf, (bool, str)):
        return leaf
    return type(leaf), getattr(leaf, "shape", None), getattr(leaf, "dtype", None)


class tape_guard:
    """Turn MLX's refusal to evaluate a traced array into a TapeError that names the line."""

    def __init__(self, loss: Callable[..., Any]) -> None:
        self._name = name_of(loss)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, (ValueError, RuntimeError)) or isinstance(error, TapeError):
            return
        if not is_refusal(error):
            return
        frame = _user_frame(traceback.extract_tb(trace))
        raise TapeError(
            f"{self._name} reads an array back to Python in {frame.filename}, line {frame.lineno}"
            f" ({frame.line}), so its derivative may be silently wrong: it is where the value "
            f"depends on the parameters. Stay in MLX operations: mx.where in place of if, mx.array "
            f"operations in place of NumPy, and no .item(), float() or print of values. If the "
            f"read-back does no harm (a branch, a print, a read of the data), pass compile=False; "
            f"minimize, train and value_and_grad all take it."
        ) from error


def is_refusal(error: BaseException) -> bool:
    """Whether this is MLX refusing to evaluate an array of which it knows no value yet."""
    return "[eval] Attempting to eval an array during function transformations" in str(error)


def _user_frame(frames: traceback.StackSummary) -> traceback.FrameSummary:
    """Return the innermost frame of the user's own code, else the innermost frame of all."""
    for frame in reversed(frames):
        if not frame.filename.startswith((_PACKAGE, *_LIBRARIES)):
            return frame
    return frames[-1]


class kept_random_state:
    """Leave MLX's global random state as it was found, and say whether it was used.

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
    """Return the seed that would set MLX's global random state to what it now is.

    None where the state is being traced by a caller's own `mx.compile` and so has no value.
    """
    try:
        high, low = mx.random.state[0].tolist()  # pyright: ignore[reportIndexIssue]
    except (ValueError, RuntimeError):
        return None
    return (int(high) << 32) | int(low)


def with_fixed_draw(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` drawing the same random numbers in every call: the next ones of MLX's
    global generator, which is left as it is.
    """
    seed = random_seed()
    if seed is None:
        return function

    @functools.wraps(function)
    def drawn(*args: Any, **kwargs: Any) -> Any:
        with kept_random_state():
            mx.random.seed(seed)
            return function(*args, **kwargs)

    return drawn
