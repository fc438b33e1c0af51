"""Numbers that show whether a gradient is that of the loss, where a trace does not."""

from __future__ import annotations

import contextlib
import functools
import io
import math
from typing import Any

import mlx.core as mx
import numpy as np

from mlxopt._operation import Function, is_refusal, known
from mlxopt._tree import (
    EPSILON,
    Tree,
    epsilon,
    from_host,
    is_float,
    leaves,
    to_host,
    to_numpy,
    widened,
)
from mlxopt.autodiff._guards import (
    Hooks,
    TapeError,
    agree,
    compile_traces,
    compiled,
    name_of,
    noted_collectives,
    reads,
    tape_guard,
    trace,
)

constants = Hooks(mx, "stop_gradient")
_MARGIN = 10.0  # times the change that is observed
_REPEATS = 4  # evaluations at one point
_MOVE = 10.0  # roundings of the parameters, since one may be rounded away
_CLEAR = 0.02  # the share of a derivative that is a clear disagreement
_SLACK = 10.0  # times the differences between finite differences
_STEPS = (0.03, 0.003, 0.0003)  # of finite differences, relative to the entries
_STATELESS = (
    "It depends on more than its arguments: a counter, the time, NumPy's random numbers. Pass what "
    "changes among the data, and draw with mx.random."
)


def reads_in_vain(function: Function, params: Tree) -> bool:
    """Whether no number that `function(params)` reads back counts, as in a print.

    Either none depends on the parameters, which alone are traced here; or the value is the same
    with NaN and infinities in place of the numbers, of which min and max drop one or two.
    """
    try:
        with tape_guard(function):
            trace(function, params)
        return True
    except (ValueError, RuntimeError):
        if not compile_traces():
            return False
    try:
        plain = function(params)
        for number in (math.nan, math.inf, -math.inf):
            quiet = contextlib.redirect_stdout(io.StringIO())  # these numbers are none to show
            with reads(functools.partial(_read_as, number)), quiet:
                blind = compiled(function)(params)
            finite = [mx.all(mx.isfinite(leaf)) for leaf in leaves(blind) if is_float(leaf)]
            if not (all(map(bool, finite)) and agree(blind, plain)):
                return False
        return True
    except Exception:  # of any kind: the number is not what the function expects
        return False


def _read_as(number: float, read: Function, array: mx.array, *args: Any, **kwargs: Any) -> Any:
    """Return `number`, in the form that `read` gives, in place of numbers that are not known."""
    try:
        return read(array, *args, **kwargs)
    except (ValueError, RuntimeError) as error:
        if not is_refusal(error) or read.__name__ in ("__bool__", "__index__"):
            raise
    if read.__name__ == "__repr__":
        return f"array(traced, shape={array.shape}, dtype={array.dtype})"
    if read.__name__ == "__format__":
        return format(number, *args)
    if read.__name__ == "tolist":
        return np.full(array.shape, number).tolist()
    return int(number) if read.__name__ == "__int__" else number


def check_trace(
    loss: Function, params: Tree, data: tuple[Any, ...], plain: mx.array, traced: mx.array
) -> None:
    """Raise TapeError where the trace of a loss differs from the loss by more than rounding.

    Args:
        loss: `loss(params, *data)`, with the same random numbers in every call.
        params: the point.
        data: the other arguments.
        plain: the value there, op by op.
        traced: the value there by the compiled loss.
    """
    name, again = name_of(loss), loss(params, *data)
    if not agree(again, plain):
        raise TapeError(
            f"{name} is no function of its arguments: two evaluations at the start gave "
            f"{_differing(plain, again)}. {_STATELESS}"
        )
    rounding = np.max([_change(loss, params, data, plain, sign) for sign in (-1, 1)])
    error = np.abs(to_numpy(traced) - to_numpy(plain))
    if np.nanmax(error, initial=0.0) <= _MARGIN * rounding:
        return
    # MLX's sums over many float32 numbers may be wrong in the second digit; the engine's are not.
    with contextlib.suppress(ValueError, RuntimeError), mx.stream(mx.cpu):
        if agree(traced, loss(widened(params), *widened(data)).astype(plain.dtype)):
            return
    raise TapeError(
        f"{name} gives {_differing(plain, traced)}, the second where it is traced to be compiled: "
        f"it computes something else there, so its derivative may be silently wrong. Does it read "
        f"an array within try/except, or in another thread? Stay in MLX operations. (compile=False "
        f"does without a trace.)"
    )


def _change(loss: Function, params: Tree, data: Any, plain: mx.array, sign: int) -> float:
    """Return the change of a loss by a move of the parameters by some rounding errors."""
    x = to_host(params)
    eps = max(epsilon(params), EPSILON[mx.float32])  # which a loss may use within, as MLX does
    nudge = sign * _MOVE * eps * np.maximum(1.0, np.abs(x)) * np.cos(1.0 + np.arange(x.size))
    moved = to_numpy(loss(from_host(x + nudge, params), *data))
    return float(np.nanmax(np.abs(moved - to_numpy(plain)), initial=0.0))


def _differing(one: mx.array, other: mx.array) -> str:
    """Return the two numbers that differ most, in words."""
    pair = [to_numpy(item).reshape(-1) for item in (one, other)]
    with np.errstate(invalid="ignore"):
        gaps = np.abs(pair[0] - pair[1])
    worst = int(np.argmax(np.where(np.isnan(gaps), np.inf, gaps)))
    entry = f" in entry {worst}" if one.ndim else ""
    return f"{pair[0][worst]:.9g} and {pair[1][worst]:.9g}{entry}"


def check_slope(
    loss: Function, params: Tree, data: tuple[Any, ...], value: mx.array, grad: Tree
) -> None:
    """Raise TapeError where finite differences of a loss clearly contradict its gradient.

    One difference at the start will mostly do. Where it disagrees, and the loss reads back arrays
    that depend on the parameters, differences at two points nearby decide: at the start itself the
    loss may have a kink, on which MLX's gradient is one of several.

    Args:
        loss: `loss(params, *data)`, a scalar, with the same random numbers in every call.
        params: the point.
        data: the other arguments.
        value: the loss there.
        grad: its gradient there.
    """
    if not np.isfinite([float(value), *to_host(grad)]).all():
        return
    try:
        line = _Line(loss, params, data)
        if line.agrees(line.step, 0.0, to_host(grad)):
            return
        place = _reading(loss, params, data, value)
        if place is None:
            return
        # In float64, since a sum of many float32 numbers has slopes of its own.
        with mx.stream(mx.cpu):
            line = _Line(loss, widened(params), widened(data))
            contradictions = [line.contradiction(shift) for shift in (0.04, -0.03)]
    except TapeError:
        raise
    except Exception:  # of any kind: outside the domain of the loss
        return
    first, second = contradictions
    if first is None or second is None:
        return
    expected, change = first
    raise TapeError(
        f"the gradient of {name_of(loss)} is not its derivative: near the start, along one "
        f"direction, it gives {expected:.4g} and finite differences of the loss {change:.4g}. A "
        f"part of the loss is computed outside MLX, where no derivative is known, by an array that "
        f"is read back {place}. Write that part in MLX operations, and pass what is meant to be "
        f"constant among the data."
    )


class _Line:
    """A loss along a direction in general position, from points near the parameters."""

    def __init__(self, loss: Function, params: Tree, data: tuple[Any, ...]) -> None:
        self.loss, self.params, self.data = loss, params, data
        self.epsilon, self.x = epsilon(params), to_host(params)
        self.step, size = self.epsilon**0.25, self.x.size
        usual = max(1.0, float(np.sqrt(np.mean(self.x**2))))
        sizes = np.maximum(np.abs(self.x), 0.05 * usual)
        random = np.random.default_rng(0)
        self.direction = sizes * random.choice([-1.0, 1.0], size) * random.uniform(0.5, 1.5, size)
        self.aside = sizes * random.uniform(-1.0, 1.0, size)

    def at(self, shift: float, step: float) -> Tree:
        """Return the point `shift` to the side and `step` along the direction."""
        point = self.x + shift * self.aside + step * self.direction
        return from_host(point, self.params)

    def value(self, shift: float, step: float) -> float:
        """Return the loss there."""
        return float(self.loss(self.at(shift, step), *self.data))

    def agrees(self, step: float, shift: float, grad: np.ndarray) -> bool:
        """Whether a central difference agrees with the gradient, or rounding hides both."""
        ahead, behind = self.value(shift, step), self.value(shift, -step)
        change, expected = (ahead - behind) / 2, step * (grad @ self.direction)
        room = _CLEAR * max(abs(change), abs(expected)) + 10 * self.epsilon * abs(ahead)
        return bool(abs(change - expected) <= room)

    def contradiction(self, shift: float) -> tuple[float, float] | None:
        """Return a slope by the gradient and by differences, if these clearly contradict it."""
        value, grad = mx.value_and_grad(self.loss)(self.at(shift, 0.0), *self.data)
        grad = to_host(grad)
        if self.agrees(self.step, shift, grad):
            return None
        expected = float(grad @ self.direction)
        # A loss computed in float32 after all has to contradict the gradient altogether.
        share = _CLEAR if value.dtype == mx.float64 else 0.9
        # With constants held as well: a custom function may stop gradients to give its own.
        stopped = _stopped(self.loss, self.at(shift, 0.0), self.data)
        along = functools.partial(self.value, shift)
        slopes = np.zeros(len(_STEPS))
        for function in [along, *([_held(along, stopped)] if stopped else [])]:
            slopes = np.array([(function(h) - function(-h)) / (2 * h) for h in _STEPS])
            error = _SLACK * np.abs(np.diff(slopes)).sum()
            clear = max(error, share * max(abs(slopes[1]), abs(expected)))
            if not abs(slopes[1] - expected) > clear:  # NaN included
                return None
        return expected, float(slopes[1])


def _stopped(loss: Function, params: Tree, data: tuple[Any, ...]) -> list[mx.array]:
    """Return the results of `mx.stop_gradient` in an evaluation of the loss."""
    found: list[mx.array] = []

    def keep(stop: Function, array: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        found.append(stop(array, *args, **kwargs))
        return found[-1]

    with constants(keep):
        loss(params, *data)
    return found


def _held(function: Function, arrays: list[mx.array]) -> Function:
    """Return `function` with these arrays as the results of `mx.stop_gradient`."""

    def held(*args: Any) -> Any:
        following = iter(arrays)
        with constants(lambda *_: next(following)):
            return function(*args)

    return held


def _reading(loss: Function, params: Tree, data: tuple[Any, ...], plain: mx.array) -> str | None:
    """Return where a loss reads an array that depends on the parameters; None if nowhere."""
    try:
        with tape_guard(loss):
            trace(lambda at: loss(at, *data), params)
    except TapeError as error:
        return error.place
    traced = compiled(lambda at: loss(at, *data))(params)
    if agree(traced, plain):
        return None
    # Else it changes from call to call, as is known; noise may agree once.
    if all(agree(loss(params, *data), plain) for _ in range(_REPEATS)):
        check_trace(loss, params, data, plain, traced)
    return None


def check_processes(function: Function, params: Tree, name: str) -> None:
    """Raise ValueError if `function(params)` is shared by processes and its gradient is not.

    Args:
        function: returns an array, or a tree of them.
        params: the point.
        name: of the function, for the message.
    """

    def gradient(at: Tree) -> Tree:
        return mx.grad(lambda at: sum(mx.sum(leaf) for leaf in leaves(function(at))))(at)

    forward = _shared(function, params)
    # A custom function can have a rule that sums over the processes too.
    if forward and len(_shared(gradient, params)) <= len(forward):
        raise ValueError(
            f"{name} calls mx.distributed.{forward[0]} on arrays that depend on the parameters, "
            f"and MLX differentiates that as if there were no other process: the gradient is that "
            f"of this one's rows, and each process would converge to its own answer. Keep the loss "
            f"local and average the gradients in a loop of your own (mlx.nn.average_gradients); or "
            f"write the sum as an mx.custom_function whose vjp sums over the processes too."
        )


def _shared(function: Function, params: Tree) -> list[str]:
    """Return the calls between processes that depend on `params`, in a trace of `function`."""
    with noted_collectives() as calls:
        found: list[str] = []

        def traced(at: Tree) -> Tree:
            result = function(at)
            found.extend(name for name, array in calls if not known(array))
            return result

        mx.compile(traced)(params)
    return found
