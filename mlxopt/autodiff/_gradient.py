"""value_and_grad and grad: MLX's own, behind the guards."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from mlxopt._operation import Function
from mlxopt.autodiff._guards import checked_loss, differentiating, name_of
from mlxopt.autodiff._proof import Proof


def value_and_grad(
    loss: Function,
    argnums: int | Sequence[int] | None = None,
    has_aux: bool = False,
    compile: bool = True,
    argnames: str | Sequence[str] = (),
) -> Callable[..., tuple[Any, Any]]:
    """Return a function that computes the value of `loss` and its gradient, as MLX's own does.

    Args:
        loss: a function `loss(*args, **kwargs)` that returns a scalar array of a real
            floating-point dtype; with `has_aux`, a tuple `(scalar, anything else)`.
        argnums: which positional argument to differentiate, or which ones; None: the first, or
            none with `argnames`.
        has_aux: whether `loss` returns more than its value.
        compile: trace the loss once under `mx.compile`, for each new structure, shape and dtype of
            its arguments, which proves that it reads no values. (Of a Python int or float the type
            counts and not the value: where such an argument selects a branch, only the branch
            traced is proven.) The derivative itself is then evaluated op by op, so a loss can refer
            to arrays that change between calls. Wrap the result in `mx.compile` to fuse it; arrays
            that the loss captures are then frozen, so pass them as arguments. False skips the
            proof, for a loss that has to branch on values.
        argnames: which keyword argument to differentiate, or which ones. The gradient is then a
            pair, as MLX's own is: that of `argnums` (None where there are none), and a dictionary.

    Returns:
        a function of the same arguments as `loss`; NumPy arrays among them, and integers, are
        converted as in `minimize`, numbers and lists are not. It returns `(value, gradient)`, or
        `((value, aux), gradient)` with `has_aux`. The gradient has the structure, shapes and dtypes
        of the argument; with several `argnums` it is a tuple of them.

    Raises:
        TapeError: the loss reads an array that depends on the parameters back to Python; the
            message names the file and the line.
        TypeError: a parameter, or the value of the loss, is not a real floating-point array.
        ValueError: the loss is not a scalar.

    >>> import mlx.core as mx, mlxopt as mo
    >>> loss = lambda params, x: mx.sum(params["w"] * x) ** 2
    >>> mo.value_and_grad(loss)({"w": mx.array([1.0, 2.0])}, mx.array([3.0, 1.0]))
    (array(25, dtype=float32), {'w': array([30, 10], dtype=float32)})
    """
    names = (argnames,) if isinstance(argnames, str) else tuple(argnames)
    argnums = 0 if argnums is None and not names else argnums
    positions = (argnums,) if isinstance(argnums, int) else tuple(argnums or ())
    checked = checked_loss(loss, has_aux=has_aux)
    derivative = mx.value_and_grad(checked, argnums=argnums, argnames=names)

    @functools.wraps(loss)
    def value_alone(*args: Any, **kwargs: Any) -> Any:
        return checked(*args, **kwargs)[0] if has_aux else checked(*args, **kwargs)

    prove = Proof(value_alone, compile, (*positions, *names))

    @functools.wraps(loss)
    def wrapped(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        if not all(0 <= position < len(args) for position in positions):
            given = f"{len(args)} arguments by position"
            named = f" and {', '.join(kwargs)} by name" if kwargs else ""
            raise ValueError(
                f"argnums={argnums}, but {name_of(loss)} was called with {given}{named}. Pass what "
                f"is to be differentiated by position, or use argnames=."
            )
        if missing := [name for name in names if name not in kwargs]:
            raise ValueError(
                f"argnames={argnames!r}, but {name_of(loss)} was called without {missing[0]}=. "
                f"Pass it by name, or use argnums=."
            )
        args, kwargs = prove(*args, **kwargs)
        with differentiating(loss):
            return derivative(*args, **kwargs)

    return wrapped


def grad(
    loss: Function,
    argnums: int | Sequence[int] | None = None,
    has_aux: bool = False,
    compile: bool = True,
    argnames: str | Sequence[str] = (),
) -> Function:
    """Return a function that computes the gradient of `loss` alone; see `value_and_grad`.

    With `has_aux` it returns `(gradient, aux)`, or `(gradient, aux_1, aux_2, ...)` where the loss
    returns several.

    >>> import mlx.core as mx, mlxopt as mo
    >>> mo.grad(lambda w: mx.sum(w**3))(mx.array([1.0, 2.0]))
    array([3, 12], dtype=float32)
    """
    both = value_and_grad(loss, argnums, has_aux, compile, argnames)

    @functools.wraps(loss)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        value, gradient = both(*args, **kwargs)
        return (gradient, *value[1:]) if has_aux else gradient

    return wrapped
