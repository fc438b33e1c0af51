"""An optimizer and its state in a file, to resume a run later or on another machine.

The file is in the safetensors format: arrays under their paths (`state.params['w']`), and the rest
as JSON in the metadata, under "tree". It holds no code; classes are looked up by name.

The JSON of format 2 is [optimizer, state]. Null, booleans, numbers, strings and lists stand for
themselves, and an object of one key for anything else:

    {"tuple": [x, ...]}
    {"dict": [[key, x], ...]}
    {"class": [name, [[field, x], ...]]}  a NamedTuple or dataclass, "mlxopt.Adam" or "YourOwn"
    {"status": "CONVERGED"}
    {"mlx": [path, dtype]}                an array of MLX; float64 as the int64 of its bits
    {"rows": [path, dtype]}               of NumPy; "columns" in Fortran order, "number" a scalar
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlxopt import _epochs, optimizers, prox, schedules
from mlxopt._checks import describe_type
from mlxopt._platform.files import replacing
from mlxopt._resume import is_state
from mlxopt._status import Status
from mlxopt._tree import children, dtype_name

_FORMAT = "2"
_HINTS = {
    None: "",
    "1": " mlxopt 0.1.0 wrote it: resume it with that version, or start from its parameters: "
    "mx.load(path, format='safetensors') has them as state.params..., float64 as int64 bits.",
}
_LIMIT = 2**64  # of whole numbers
_KEYS = (type(None), bool, int, str)  # the types that a key of a dict can have


def save(path: str | os.PathLike[str], optimizer: Any, state: Any) -> None:
    """Write an optimizer and its state to a file, which `load` reads.

    The file is written whole or not at all, by any number of threads and processes at once. An
    existing file keeps its mode, and a symbolic link its place. It holds hyper-parameters and
    state, but not the loss, the data, or MLX's random state.

    Args:
        path: of the file, usually with the ending `.safetensors`; an existing one is replaced.
        optimizer: of mlxopt, or your own dataclass of numbers, strings, arrays and dataclasses;
            None if it holds anything else, such as a function: build it again where you load.
        state: `result.state`, or a callback's `info.state`.

    Raises:
        TypeError: `optimizer` or `state` holds something that cannot be saved.
        OSError: the file cannot be written.

    >>> import mlx.core as mx, mlxopt as mo, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/run.safetensors"
    >>> loss = lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
    >>> start, optimizer = mx.array([-1.2, 1.0]), mo.LBFGS(memory=5)
    >>> callback = lambda info: mo.save(path, optimizer, info.state)  # at each record
    >>> first = mo.minimize(loss, start, optimizer, tol=0, max_steps=15, callback=callback)
    >>> optimizer, state = mo.load(path)
    >>> mo.minimize(loss, start, optimizer, init=state).params
    array([1, 1], dtype=float32)
    """
    if not is_state(state):
        hint = "The optimizer comes before it." if is_state(optimizer) else "Pass result.state."
        raise TypeError(f"state is {describe_type(state)}; expected an optimizer's state. {hint}")
    arrays: dict[str, mx.array] = {}
    classes: dict[str, type] = {}
    both = (optimizer, "optimizer"), (state, "state")
    tree = json.dumps([_encode(*item, arrays, classes) for item in both])
    metadata = {"mlxopt": _FORMAT, "tree": tree, "crc32": _checksum(tree, arrays)}
    with replacing(path) as file:
        mx.save_safetensors(file, arrays, metadata)  # pyright: ignore[reportArgumentType]


def load(path: str | os.PathLike[str], classes: Iterable[type] = ()) -> tuple[Any, Any]:
    """Return the optimizer and the state that `save` wrote to a file.

    Arrays are restored bit for bit. To resume, pass the state as `init` to `minimize` or `train`.

    Args:
        path: of the file.
        classes: your own classes in it: optimizers, schedules, NamedTuples in a state or in params.

    Returns:
        (optimizer, state); the optimizer is None if it was saved as None.

    Raises:
        ValueError: the file is damaged or not of `save`, or a class in it is unknown or changed.
        OSError: the file cannot be read.
    """
    named = _known() | _by_name(classes)
    with open(path, "rb") as file:
        try:
            loaded: Any = mx.load(file, "safetensors", return_metadata=True, stream=mx.cpu)
            arrays, metadata = loaded
            mx.eval(arrays)  # before the file is closed or replaced
        except Exception as error:  # damaged files raise errors of many types
            raise ValueError(f"{path} is no file of mo.save, or it is damaged: {error}") from error
    version = metadata.get("mlxopt")
    if version != _FORMAT:
        came = "has no mark of mo.save" if version is None else f"has format {version}"
        hint = _HINTS.get(version, " Another version of mlxopt may read it.")
        raise ValueError(f"{path} {came}; expected a file of mo.save in format {_FORMAT}.{hint}")
    try:
        if metadata["crc32"] != _checksum(metadata["tree"], arrays):
            raise ValueError("its checksum is wrong")
        decode = functools.partial(_decode, arrays=arrays, classes=named)
        tree = json.loads(metadata["tree"], object_hook=decode, parse_int=_whole)
        optimizer, state = tree
    except ImportError as error:  # from _class
        raise ValueError(f"{path} {error}") from None
    except Exception as error:  # of any type: a class in the file checks its fields as it likes
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    if not is_state(state):
        raise ValueError(f"{path} is damaged: it holds no optimizer's state.")
    return optimizer, state


def _encode(item: Any, path: str, arrays: dict[str, mx.array], classes: dict[str, type]) -> Any:
    """Return an item as JSON; add its arrays to `arrays` and its classes to `classes`."""
    cls: Any = type(item)
    if cls is int and abs(item) >= _LIMIT:
        raise TypeError(f"{path} is a whole number of more than 64 bits; expected a smaller one.")
    if cls is float or cls in _KEYS:
        return item
    if cls is Status:
        return {"status": item.name}
    is_numpy = issubclass(cls, (np.ndarray, np.generic))
    dtype = dtype_name(item.dtype) if is_numpy or cls is mx.array else ""
    if dtype == "bool" or hasattr(mx, dtype):
        kind = "mlx" if not is_numpy else "rows" if issubclass(cls, np.ndarray) else "number"
        if kind == "rows" and item.flags.fnc:
            kind = "columns"  # the rounding of products depends on the order
        bits = np.asarray(item).view(np.int64) if dtype == "float64" else item
        arrays[path] = mx.array(bits.T if kind == "columns" else bits)
        return {kind: [path, dtype]}
    fields = _fields(cls)
    if fields is not None:
        members = [(f".{field}", getattr(item, field)) for field in fields]
    elif cls in (dict, list, tuple):
        members = children(item) or []
    else:
        kind = f"of type {cls.__module__}.{cls.__qualname__}"
        if hasattr(item, "__qualname__"):
            kind = f"the function {item.__qualname__}"
        raise TypeError(
            f"{path} is {kind}, which cannot be saved; expected numbers, strings, arrays, and "
            f"trees, dataclasses and NamedTuples of these. For a learning rate take one of "
            f"mo.schedules; else write mo.save(path, None, state), and build the optimizer again."
        )
    values = [_encode(member, path + step, arrays, classes) for step, member in members]
    if fields is not None:
        if classes.setdefault(_name(cls), cls) is not cls:
            raise TypeError(f"{path} is of a second class called {cls.__name__}; rename one.")
        return {"class": [_name(cls), list(zip(fields, values, strict=True))]}
    if cls is not dict:
        return values if cls is list else {"tuple": values}
    for key in item:
        if type(key) not in _KEYS:
            raise TypeError(f"{path} has the key {key!r}; expected a string or a whole number.")
    return {"dict": list(zip(item, values, strict=True))}


def _decode(item: dict[str, Any], arrays: dict[str, mx.array], classes: dict[str, type]) -> Any:
    """Return the value of an object of the JSON, in which other objects are values already."""
    ((kind, content),) = item.items()
    simple = {"tuple": tuple, "dict": dict, "status": Status.__getitem__}
    if kind in simple:
        return simple[kind](content)
    name, rest = content
    if kind == "class":
        fields = dict(rest)
        return _class(name, list(fields), classes)(**fields)
    array = arrays[name].view(mx.float64, stream=mx.cpu) if rest == "float64" else arrays[name]
    if kind == "mlx":
        return array
    host = np.array(array)
    return {"rows": host, "columns": host.T, "number": host[()]}[kind]


def _whole(text: str) -> int:
    """Return a whole number of a file."""
    number = int(text)
    if abs(number) >= _LIMIT:
        raise ValueError(f"a whole number of {len(text)} digits")
    return number


def _class(name: str, fields: list[str], classes: dict[str, type]) -> Any:
    """Return the class of this name; raise ImportError unless it has these fields."""
    now = _fields(classes.get(name))
    if now is not None and set(now) == set(fields):
        return classes[name]
    if now is not None:
        hint = f"; the class has {', '.join(now)} now. Load it with the version that saved it."
    elif name.startswith("mlxopt."):
        hint = ", which this version of mlxopt does not have."
    else:
        hint = f", which is not of mlxopt; pass it: mo.load(path, classes=[{name}])."
    raise ImportError(f"holds the class {name} with the fields {', '.join(fields)}{hint}")


@functools.cache
def _known() -> dict[str, type]:
    """Return the classes of mlxopt that a file can hold, by name."""
    import importlib

    files = sorted(Path(optimizers.__path__[0]).glob("*.py"))
    modules = [importlib.import_module(f"mlxopt.optimizers.{file.stem}") for file in files]
    modules = [_epochs, prox, schedules, *modules]
    found = [cls for module in modules for cls in vars(module).values() if _fields(cls) is not None]
    return _by_name(cls for cls in found if cls.__module__.startswith("mlxopt."))


def _by_name(classes: Iterable[type]) -> dict[str, type]:
    named: dict[str, type] = {}
    for cls in classes:
        if _fields(cls) is None:
            raise TypeError(f"classes holds {cls!r}; expected NamedTuples and dataclasses.")
        if named.setdefault(_name(cls), cls) is not cls:
            raise ValueError(f"classes holds two of the name {cls.__name__}; rename one.")
    return named


def _name(cls: type) -> str:
    return f"mlxopt.{cls.__name__}" if cls.__module__.startswith("mlxopt.") else cls.__name__


def _fields(cls: Any) -> Iterable[str] | None:
    """Return the fields of a NamedTuple or dataclass; None for anything else."""
    if isinstance(cls, type) and dataclasses.is_dataclass(cls):
        return [field.name for field in dataclasses.fields(cls) if field.init]
    return getattr(cls, "_fields", None) if isinstance(cls, type) else None


def _checksum(tree: str, arrays: dict[str, mx.array]) -> str:
    """Return the CRC-32 of the JSON and of the arrays with their names, dtypes and shapes."""
    total = zlib.crc32(tree.encode())
    for name, array in sorted(arrays.items()):
        total = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), total)
        buffer: Any = mx.contiguous(array)
        total = zlib.crc32(buffer, total)
    return f"{total:08x}"
