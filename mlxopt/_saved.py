"""An optimizer and its state in a file, to be taken up again another day or on another machine.

The file is in the safetensors format: the arrays under readable names (`state.params['w']`), and
all else as JSON in the header's metadata, under the key "tree". (MLX does not write float64: such
arrays are stored as the int64 of the same bits.) So it holds values alone, and loading runs no code
that came with it: a class is stored by name, and looked up among those of mlxopt and those that the
reader hands in.

The JSON is {"optimizer": x, "state": x, "nodes": [...]}. A value x is null, a boolean, a number or
a string, which stand for themselves; {"float": "inf"}; {"status": "CONVERGED"}; or {"at": i}, the
i-th node. Nodes are containers and arrays, children first, each stored once: where a state holds
one array in two places, as some methods look for, so does the state that is loaded.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlxopt import optimizers, prox, schedules
from mlxopt._checks import describe_type
from mlxopt._resume import is_state
from mlxopt._status import Status
from mlxopt._train import TrainState

_VERSION = "1"
_NUMPY = {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
          "float16", "float32", "float64"}  # fmt: skip


def save(path: str | os.PathLike[str], optimizer: Any, state: Any) -> None:
    """Write an optimizer and its state to a file, from which `load` reads both.

    The file appears whole or not at all, so that a run killed while saving leaves the last file as
    it was. It holds every hyper-parameter, and all that the state does: parameters, what the
    optimizer has learnt, the step of a schedule. It does not hold the loss, the data, or the state
    of MLX's random numbers.

    Args:
        path: where; an existing file is replaced. The ending is free, `.safetensors` is usual.
        optimizer: one of mlxopt's, or your own if it is a dataclass of numbers, strings, arrays,
            and dataclasses of these (schedules, penalties, other optimizers). None where it holds
            what no file can, such as a function: build it again where you load.
        state: `result.state`, or a callback's `info.state`.

    Raises:
        TypeError: something in `optimizer` or `state` is of no kind that can be saved.
        OSError: the file cannot be written.

    A run that leaves a file behind now and then, and one that takes it up:

    >>> import mlx.core as mx, mlxopt as mo, os, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "run.safetensors")
    >>> loss = lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
    >>> start = mx.array([-1.2, 1.0])
    >>> def callback(info):
    ...     if info.step % 10 == 0:
    ...         mo.save(path, optimizer, info.state)
    ...     return info.step == 15  # the power fails
    >>> optimizer = mo.LBFGS(memory=5)
    >>> mo.minimize(loss, start, optimizer, callback=callback).status
    Status.STOPPED
    >>> optimizer, state = mo.load(path)
    >>> optimizer
    LBFGS(memory=5)
    >>> mo.minimize(loss, start, optimizer, init=state).params
    array([1, 1], dtype=float32)
    """
    if not is_state(state):
        inner = getattr(state, "state", None)
        hint = " Write save(path, optimizer, result.state)." if is_state(inner) else ""
        if is_state(optimizer):
            hint = " The optimizer comes before it: save(path, optimizer, state)."
        raise TypeError(f"state is {describe_type(state)}; expected an optimizer's state.{hint}")
    writer = _Writer()
    tree = {
        "optimizer": writer.value(optimizer, "optimizer"),
        "state": writer.value(state, "state"),
    }
    text = json.dumps({**tree, "nodes": writer.nodes}, allow_nan=False)
    target = Path(path)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            checksum = _checksum(text, writer.arrays)
            marks = {"mlxopt": _VERSION, "tree": text, "crc32": checksum}
            mx.save_safetensors(file, writer.arrays, marks)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def load(path: str | os.PathLike[str], classes: Iterable[type] = ()) -> tuple[Any, Any]:
    """Return the optimizer and the state that `save` wrote to a file.

    Arrays come back bit for bit, in their dtypes. Nothing that the file says is run: of classes it
    holds the names, and those not of mlxopt must be handed in. The state goes on by
    `minimize(..., optimizer, ..., init=state)`, or `train`.

    Args:
        path: where it is.
        classes: your own classes in the file, by their names: an optimizer or a schedule that you
            wrote, a NamedTuple in its state or in the parameters.

    Returns:
        (optimizer, state); the optimizer is None if it was saved as None.

    Raises:
        ValueError: the file is none of `save`, or damaged, or holds a class that is not in
            `classes`, or one that has other fields by now.
        OSError: the file cannot be read.
    """
    own = _by_name(classes)
    with open(path, "rb") as file:
        try:
            loaded: Any = mx.load(file, "safetensors", return_metadata=True, stream=mx.cpu)
            arrays, metadata = loaded
            mx.eval(arrays)  # now: they are read lazily, and the file may soon be another
        except Exception as error:  # of many kinds, for the many ways in which a file can be broken
            raise ValueError(f"{path} is no file of mo.save, or it is damaged: {error}") from error
    version = metadata.get("mlxopt")
    if version != _VERSION:
        came = "has no mark of mo.save" if version is None else f"has format {version}"
        raise ValueError(
            f"{path} {came}; expected a file that mo.save wrote, in format {_VERSION}."
            + ("" if version is None else " Another version of mlxopt may read it.")
        )
    try:
        if metadata["crc32"] != _checksum(metadata["tree"], arrays):
            raise ValueError("its checksum is wrong")
        tree = json.loads(metadata["tree"])
        reader = _Reader(arrays, own)
        for node in tree["nodes"]:
            reader.values.append(reader.node(node))
        optimizer, state = reader.value(tree["optimizer"]), reader.value(tree["state"])
    except _Unknown as error:
        raise ValueError(f"{path} {error}") from None
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    if not is_state(state):
        raise ValueError(f"{path} is damaged: it holds no optimizer's state.")
    return optimizer, state


class _Unknown(Exception):
    """A class that the file names and nobody knows as it was."""


class _Writer:
    """Turns values into JSON and arrays."""

    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = []
        self.arrays: dict[str, mx.array] = {}
        self._seen: dict[int, int] = {}  # the node of an object, by its id
        self._own: dict[str, type] = {}  # classes that are not of mlxopt

    def value(self, item: Any, path: str) -> Any:
        """Return what stands for `item`, found at `path`."""
        if item is None or type(item) in (bool, int, str):
            return item
        if type(item) is float:
            return item if math.isfinite(item) else {"float": str(item)}
        if isinstance(item, Status):
            return {"status": item.name}
        if id(item) not in self._seen:
            node = self._node(item, path)
            self.nodes.append(node)
            self._seen[id(item)] = len(self.nodes) - 1
        return {"at": self._seen[id(item)]}

    def _node(self, item: Any, path: str) -> dict[str, Any]:
        if isinstance(item, mx.array):
            return {"array": self._stored(item, path), "float64": item.dtype == mx.float64}
        if isinstance(item, (np.ndarray, np.generic)) and item.dtype.name in _NUMPY:
            columns = isinstance(item, np.ndarray) and item.flags.fnc  # products may round so
            stored = self._stored(np.asarray(item).T if columns else np.asarray(item), path)
            kind = "columns" if columns else "rows" if isinstance(item, np.ndarray) else "number"
            return {"numpy": stored, "dtype": item.dtype.name, "kind": kind}
        if type(item) is dict:
            pairs = (
                (self._key(key, path), child, f"{path}[{key!r}]") for key, child in item.items()
            )
            return {"dict": [[key, self.value(child, at)] for key, child, at in pairs]}
        if type(item) is list or type(item) is tuple:
            children = [self.value(child, f"{path}[{i}]") for i, child in enumerate(item)]
            return {type(item).__name__: children}
        cls: Any = type(item)
        fields = _fields(cls)
        if fields is None:
            raise TypeError(_cannot(item, path))
        known = _known().get(cls.__name__) is cls
        if not known and self._own.setdefault(cls.__name__, cls) is not cls:
            raise TypeError(f"{path} is of a second class called {cls.__name__}; rename one.")
        values = {name: self.value(getattr(item, name), f"{path}.{name}") for name in fields}
        return {"class" if known else "own": cls.__name__, "fields": values}

    def _stored(self, array: mx.array | np.ndarray, name: str) -> str:
        """Put an array into the file, and return its name there."""
        if array.dtype in (mx.float64, np.float64):  # which MLX does not write
            array = np.array(array).view(np.int64)
        self.arrays[name] = mx.array(array)
        return name

    @staticmethod
    def _key(key: Any, path: str) -> Any:
        if key is None or type(key) in (bool, int, str):
            return key
        raise TypeError(f"{path} has the key {key!r}; only strings and whole numbers can be saved.")


class _Reader:
    """Turns JSON and arrays into values."""

    def __init__(self, arrays: dict[str, mx.array], own: dict[str, type]) -> None:
        self.arrays, self.own = arrays, own
        self.values: list[Any] = []  # of the nodes so far

    def value(self, item: Any) -> Any:
        """Return the value that `item` stands for."""
        if not isinstance(item, dict):
            return item
        ((kind, content),) = item.items()
        if kind == "at":
            return self.values[content]
        return Status[content] if kind == "status" else {"float": float}[kind](content)

    def node(self, node: dict[str, Any]) -> Any:
        """Return the value of a node, whose children are known."""
        if "array" in node:
            array = self.arrays[node["array"]]
            return array.view(mx.float64, stream=mx.cpu) if node["float64"] else array
        if "numpy" in node:
            stored = np.array(self.arrays[node["numpy"]])
            array = stored.view(np.float64) if node["dtype"] == "float64" else stored
            return {"columns": array.T, "rows": array, "number": array[()]}[node["kind"]]
        if "dict" in node:
            return {key: self.value(child) for key, child in node["dict"]}
        if "list" in node:
            return [self.value(child) for child in node["list"]]
        if "tuple" in node:
            return tuple(self.value(child) for child in node["tuple"])
        own = "own" in node
        cls = self._class(node["own" if own else "class"], list(node["fields"]), own)
        return cls(**{name: self.value(child) for name, child in node["fields"].items()})

    def _class(self, name: str, fields: list[str], own: bool) -> Any:
        """Return the class of this name, if it has these fields."""
        cls = (self.own if own else _known()).get(name)
        if cls is None and own:
            raise _Unknown(
                f"holds an object of the class {name} with the fields {', '.join(fields)}, which "
                f"is not of mlxopt; pass your class: mo.load(path, classes=[{name}])."
            )
        if cls is None:
            raise _Unknown(f"holds a {name}, which this version of mlxopt does not have.")
        if (now := _fields(cls)) is None or set(now) != set(fields):
            raise _Unknown(
                f"holds a {name} with the fields {', '.join(fields)}; the class has "
                f"{', '.join(now or ['none'])} now. Load it with the version that saved it."
            )
        return cls


@functools.cache
def _known() -> dict[str, type]:
    """Return the classes of mlxopt that files may name."""
    import importlib

    files = Path(optimizers.__path__[0]).glob("*.py")
    names = [f"{optimizers.__name__}.{file.stem}" for file in files if file.stem != "__init__"]
    found: list[type] = [TrainState]
    for module in (prox, schedules, *map(importlib.import_module, sorted(names))):
        here = [one for one in vars(module).values() if isinstance(one, type)]
        found += [
            one for one in here if one.__module__ == module.__name__ and _fields(one) is not None
        ]
    return _by_name(found)


def _checksum(text: str, arrays: dict[str, mx.array]) -> str:
    """Return a number that any small damage to these changes."""
    total = zlib.crc32(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        total = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), total)
        if array.size:
            total = zlib.crc32(np.array(array.reshape(-1).view(mx.uint8)).tobytes(), total)
    return f"{total:08x}"


def _by_name(classes: Iterable[type]) -> dict[str, type]:
    """Return classes by their names, having checked them."""
    named: dict[str, type] = {}
    for cls in classes:
        if not isinstance(cls, type) or _fields(cls) is None:
            raise TypeError(f"classes holds {cls!r}; expected NamedTuples and dataclasses.")
        if named.setdefault(cls.__name__, cls) is not cls:
            raise ValueError(f"classes holds two of the name {cls.__name__}; rename one.")
    return named


def _fields(cls: type) -> list[str] | None:
    """Return what a NamedTuple or a dataclass is made of; None for any other class."""
    names = getattr(cls, "_fields", None)
    if issubclass(cls, tuple) and names is not None:
        return list(names)
    if dataclasses.is_dataclass(cls):
        return [field.name for field in dataclasses.fields(cls) if field.init]
    return None


def _cannot(item: Any, path: str) -> str:
    """Return why something cannot be saved, and what to do."""
    if callable(item) and hasattr(item, "__qualname__"):
        what = f"the function {item.__qualname__}"
    else:
        what = f"of type {type(item).__module__}.{type(item).__qualname__}"
    text = (
        f"{path} is {what}, which cannot be saved; expected numbers, strings, arrays, trees of "
        f"them, or dataclasses and NamedTuples of these."
    )
    if path.endswith("learning_rate"):
        text += " For a learning rate take one of mo.schedules, or a dataclass with __call__."
    if path.startswith("optimizer"):
        text += (
            " Or save the state alone, mo.save(path, None, state), and build the optimizer again "
            "where you load it."
        )
    return text
