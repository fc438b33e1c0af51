"""Derivatives of a user's function, with guards against the ways they go silently wrong.

MLX differentiates whatever a function returns, so a loss that leaves the graph (through `.item()`,
`float()` or NumPy) has a gradient that is wrong, often zero, without a word. Integer parameters are
differentiated in integer arithmetic. Here each of these raises, and says what to write instead.
"""

from __future__ import annotations

import functools
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxopt._tree import FLOATS, Tree, check_params, dtype_name, leaves, structure

_PACKAGE = str(Path(__file__).parent)
_LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))


class TapeError(ValueError):
    """The function reads an array back to Python, so its derivative would be silently wrong."""


def value_and_grad(
    loss: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    compile: bool = True,
) -> Callable[..., tuple[Any, Any]]:
    """Return a function that computes the value of `loss` and its gradient, as MLX's own does.

    Args:
        loss: a function `loss(*args, **kwargs)` that returns a scalar array of a real
            floating-point dtype; with `has_aux`, a tuple `(scalar, anything else)`.
        argnums: which positional argument to differentiate, or which ones.
        has_aux: whether `loss` returns more than its value.
        compile: trace the loss once under `mx.compile`, for each new structure, shape and dtype of
            its arguments, which proves that it stays on the tape. The derivative itself is then
            evaluated op by op, so a loss may refer to arrays that change between calls; wrap the
            result in `mx.compile` to fuse it. False skips the proof, for a loss that really has
            to branch on values.

    Returns:
        a function of the same arguments as `loss`. It returns `(value, gradient)`, or
        `((value, aux), gradient)` with `has_aux`. The gradient has the structure, shapes and dtypes
        of the argument; with several `argnums` it is a tuple of them.

    Raises:
        TapeError: the loss reads an array that depends on the parameters back to Python; the
            message names the file and the line.
        TypeError: a parameter is not a real floating-point array, or the loss returns something
            that is not one.
        ValueError: the loss is not a scalar.

    >>> import mlx.core as mx, mlxopt as mo
    >>> loss = lambda params, x: mx.sum(params["w"] * x) ** 2
    >>> mo.value_and_grad(loss)({"w": mx.array([1.0, 2.0])}, mx.array([3.0, 1.0]))
    (array(25, dtype=float32), {'w': array([30, 10], dtype=float32)})
    """
    check_is_callable(loss)
    positions = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    checked = checked_loss(loss, has_aux=has_aux)
    derivative = mx.value_and_grad(checked, argnums=argnums)
    traced: set[Any] = set()

    @functools.wraps(loss)
    def wrapped(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        for position in positions:
            if not 0 <= position < len(args):
                raise ValueError(
                    f"argnums={argnums} but the loss was called with {len(args)} arguments."
                )
            check_params(args[position])
        if compile:
            signature = _signature((args, kwargs))
            if signature not in traced:
                _trace(checked, positions, args, kwargs)
                traced.add(signature)
        return derivative(*args, **kwargs)

    return wrapped


def grad(
    loss: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    compile: bool = True,
) -> Callable[..., Any]:
    """Return a function that computes the gradient of `loss` alone; see `value_and_grad`.

    With `has_aux` it returns `(gradient, aux)`.

    >>> import mlx.core as mx, mlxopt as mo
    >>> mo.grad(lambda w: mx.sum(w**3))(mx.array([1.0, 2.0]))
    array([3, 12], dtype=float32)
    """
    both = value_and_grad(loss, argnums=argnums, has_aux=has_aux, compile=compile)

    @functools.wraps(loss)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        value, gradient = both(*args, **kwargs)
        return (gradient, value[1]) if has_aux else gradient

    return wrapped


def check_is_callable(loss: Any) -> None:
    """Raise TypeError unless `loss` can be called."""
    if not callable(loss):
        raise TypeError(
            f"loss is {type(loss).__qualname__}; expected a function of (params, *data)."
        )


def checked_loss(loss: Callable[..., Any], has_aux: bool = False) -> Callable[..., Any]:
    """Return `loss` with a check of what it returns; the check runs on traces, not on numbers."""
    name = getattr(loss, "__name__", type(loss).__name__)

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


def _trace(loss: Callable[..., Any], positions: Sequence[int], args: Any, kwargs: Any) -> None:
    """Trace `loss` once in the arguments at `positions`; the others are constants of the trace, so
    a loss may read its data as it likes.
    """

    def in_params(params: list[Tree]) -> Any:
        called = list(args)
        for position, tree in zip(positions, params, strict=True):
            called[position] = tree
        result = loss(*called, **kwargs)
        return result[0] if isinstance(result, tuple) else result

    with tape_guard(loss), kept_random_state():
        mx.compile(in_params)([args[position] for position in positions])


class tape_guard:
    """Turn MLX's refusal to evaluate a traced array into a TapeError that names the line."""

    def __init__(self, loss: Callable[..., Any]) -> None:
        self._name = getattr(loss, "__name__", type(loss).__name__)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, (ValueError, RuntimeError)) or isinstance(error, TapeError):
            return
        if "[eval] Attempting to eval an array during function transformations" not in str(error):
            return
        frame = _user_frame(traceback.extract_tb(trace))
        raise TapeError(
            f"{self._name} reads an array back to Python in {frame.filename}, line {frame.lineno}"
            f" ({frame.line}), so its derivative would be silently wrong. Stay in MLX operations: "
            f"mx.where in place of if, mx.array operations in place of NumPy, and no .item(), "
            f"float() or print of values. If the read-back does no harm (a branch, a print), pass "
            f"compile=False."
        ) from error


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


def _signature(tree: Tree) -> Any:
    """Return what a trace depends on: structure, shapes and dtypes."""
    return repr(structure(tree)), tuple(_kind(leaf) for leaf in leaves(tree))


def _kind(leaf: Any) -> Any:
    """Return what of a leaf a trace depends on: of a flag its value, of a number its type."""
    if leaf is None or isinstance(leaf, (bool, str)):
        return leaf
    return type(leaf), getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
