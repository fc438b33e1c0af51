"""The door of every derivative: arguments converted, and the function traced once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxopt._operation import Function
from mlxopt._platform.device import begin
from mlxopt._tree import Tree, check_params, working_dtype
from mlxopt.autodiff._arguments import (
    Cast,
    Integers,
    argument_names,
    as_floats,
    integer_leaves,
    to_data,
)
from mlxopt.autodiff._evidence import check_processes, reads_in_vain
from mlxopt.autodiff._guards import (
    TapeError,
    kept_random_state,
    name_of,
    noted_collectives,
    proving,
    tape_guard,
    trace,
)
from mlxopt.autodiff._rows import signature

Given = dict[int | str, Any]  # arguments by position or name
Call = tuple[tuple[Any, ...], dict[str, Any]]


class Proof:
    """A trace of a function, once for each kind of arguments, which proves that it is pure MLX.

    Only the parameters are traced, so that a function can read its data.

    Args:
        function: takes parameters and data.
        compile: whether to trace it.
        params: the arguments that are parameters, by position or name.
    """

    def __init__(
        self, function: Function, compile: bool, params: Sequence[int | str] = (0,)
    ) -> None:
        self._function, self._wanted, self._params = function, compile, params
        self._seen: set[Any] = set()
        self._integers: dict[Any, Integers] = {}
        self._by_position: list[str] = []  # the names of arguments

    def __call__(self, *args: Any, **kwargs: Any) -> Call:
        """Return the arguments as arrays, having traced such arguments once; raise TapeError."""
        given, kind = self._converted(args, kwargs)
        self._trace(given, kind)
        return _call(given)

    def convert(self, *args: Any, **kwargs: Any) -> Call:
        """Return the parameters checked, and NumPy arrays and integers as `as_data` has them."""
        return _call(self._converted(args, kwargs)[0])

    def trace(self, *args: Any, **kwargs: Any) -> None:
        """Trace the function unless such arguments were traced."""
        self._trace({**dict(enumerate(args)), **kwargs}, signature((args, kwargs)))

    def _converted(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Given, Any]:
        """Return all arguments by position or name, and their kind."""
        begin()
        given: Given = {**dict(enumerate(args)), **kwargs}
        params = {key: check_params(given.pop(key)) for key in self._params}
        dtype = working_dtype(params)
        cast = Cast(dtype, warns=not self._integers)  # in the first call
        if len(self._by_position) < len(args):
            self._by_position = ["", *argument_names(self._function, len(args) - 1)]
        names = [self._by_position[key] if isinstance(key, int) else key for key in given]
        items = tuple(
            to_data(item, cast, name, strict=False)
            for name, item in zip(names, given.values(), strict=True)
        )
        kind = signature((params, tuple(given), items))
        if kind not in self._integers:

            def run(items: tuple[Any, ...]) -> Any:
                return self._run({**params, **dict(zip(given, items, strict=True))})

            self._integers[kind] = integer_leaves(run, items, dtype)
        items = as_floats(items, self._integers[kind], cast, names)
        return {**params, **dict(zip(given, items, strict=True))}, kind

    def _trace(self, given: Given, kind: Any) -> None:
        if not self._wanted or kind in self._seen:
            return

        def in_params(params: list[Tree]) -> Any:
            # No digits are needed, and data that are not traced could not have them in mlx.nn.
            token = proving.set(True)
            try:
                return self._run({**given, **dict(zip(self._params, params, strict=True))})
            finally:
                proving.reset(token)

        params = [given[key] for key in self._params]
        try:
            with tape_guard(self._function), kept_random_state():
                with noted_collectives() as calls:
                    self._run(given)  # a loss that keeps arrays of its first call keeps real ones
                if calls:
                    check_processes(in_params, params, name_of(self._function))
                trace(in_params, params)
        except TapeError:
            if not reads_in_vain(in_params, params):
                raise
        self._seen.add(kind)

    def _run(self, given: Given) -> Any:
        args, kwargs = _call(given)
        return self._function(*args, **kwargs)


def _call(given: Given) -> Call:
    """Return arguments by position and name."""
    positions = sorted(key for key in given if isinstance(key, int))
    named = {key: item for key, item in given.items() if isinstance(key, str)}
    return tuple(given[position] for position in positions), named
