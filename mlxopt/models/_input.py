"""What a person passes to `fit`, checked once and read block by block.

Lists, arrays of NumPy and MLX, and data frames of pandas and polars are told apart by what they can
do, so none of those packages is imported. Rows and columns are counted from 0 in messages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt._numbers import check_unmasked
from mlxopt._tree import evaluate

_NUMBERS = "fiub"  # NumPy's kinds of float, int, unsigned and bool


class Table(NamedTuple):
    """A matrix of numbers, (rows, columns), that is read a few thousand rows at a time."""

    rows: int
    columns: int
    names: list[str]  # of the columns: the frame's own, else x0, x1, ...
    feature_names: np.ndarray | None  # a frame's names, if all are strings
    precision: np.ndarray  # (columns,): relative rounding that the dtype of each column brings
    read: Callable[[slice], np.ndarray]  # rows as a NumPy array, a view if it can

    def block(self, start: int, stop: int) -> np.ndarray:
        """Return rows start to stop, float64 or any dtype that NumPy computes with."""
        return self.read(slice(start, min(stop, self.rows)))

    def every(self, stride: int) -> Table:
        """Return the table of each `stride`-th row."""

        def read(rows: slice) -> np.ndarray:
            return self.read(slice(rows.start * stride, rows.stop * stride, stride))

        return self._replace(rows=-(-self.rows // stride), read=read)


def read_table(X: Any) -> Table:
    """Return `X` as a `Table`; raise TypeError or ValueError unless it is a matrix of numbers."""
    if hasattr(X, "tocsr") or hasattr(X, "toarray"):
        raise TypeError(
            f"X is a sparse {type(X).__name__}; expected a dense matrix. X.toarray() makes one."
        )
    if hasattr(X, "collect") and hasattr(X, "collect_schema"):
        raise TypeError("X is a lazy frame, not yet computed; pass X.collect().")
    if hasattr(X, "columns") and hasattr(X, "dtypes"):
        return _read_frame(X)
    if isinstance(X, mx.array):
        evaluate(X)
        dtype = str(X.dtype)
        array = X if X.dtype == mx.bfloat16 else np.asarray(X)
    else:
        array = _to_numpy(X, "X")
        dtype = str(array.dtype)
    _check_matrix(array, X)
    if isinstance(array, mx.array):
        read = lambda rows: np.asarray(X[rows].astype(mx.float32))  # noqa: E731
    else:
        _check_kind(array.dtype, "X")
        read = lambda rows: array[rows]  # noqa: E731
    rows, columns = array.shape
    names = [f"x{index}" for index in range(columns)]
    return Table(rows, columns, names, None, np.full(columns, _precision(dtype)), read)


def _read_frame(X: Any) -> Table:
    names = [str(name) for name in X.columns]
    rows, columns = X.shape
    dtypes = list(X.dtypes)
    _check_size(rows, columns)
    text = [
        f"{name!r} ({dtype})"
        for index, (name, dtype) in enumerate(zip(names, dtypes, strict=True))
        if not _is_numeric(X, index, dtype)
    ]
    if text:
        raise ValueError(
            f"X has columns that do not hold real numbers: {_listing(text)}. Drop them, or encode "
            f"them first (pandas.get_dummies, sklearn.preprocessing.OneHotEncoder)."
        )
    if hasattr(X, "iloc"):

        def read(rows: slice) -> np.ndarray:
            return X.iloc[rows].to_numpy(dtype=np.float64, na_value=np.nan)
    else:

        def read(rows: slice) -> np.ndarray:
            return X[rows].cast(float).to_numpy()

    strings = all(isinstance(name, str) for name in X.columns)
    feature_names = np.array(names, dtype=object) if strings else None
    return Table(
        rows, columns, names, feature_names, np.array([_precision(str(d)) for d in dtypes]), read
    )


def _is_numeric(X: Any, index: int, dtype: Any) -> bool:
    """Whether a frame's column can be read as floats: by its kind, else (object) by trying."""
    if hasattr(dtype, "is_numeric"):  # polars
        return dtype.is_numeric() or str(dtype) == "Boolean"
    kind = getattr(dtype, "kind", "O")
    if kind == "O" and str(dtype) == "object":
        try:
            X.iloc[:, index].astype(float)
        except (TypeError, ValueError):
            return False
        return True
    return kind in _NUMBERS


def _precision(dtype: str) -> float:
    """Return the unit roundoff of a dtype by its name; integers of 64 bits are taken as float64."""
    name = dtype.lower()
    for part, roundoff in (("bfloat16", 2.0**-9), ("float16", 2.0**-11), ("float32", 2.0**-24)):
        if part in name:
            return roundoff
    return 2.0**-53


def _to_numpy(values: Any, name: str) -> np.ndarray:
    """Return an array of NumPy, numbers where it can be."""
    check_unmasked(values, name)
    if isinstance(values, mx.array):
        evaluate(values)
        return np.asarray(values.astype(mx.float32) if values.dtype == mx.bfloat16 else values)
    try:
        array = np.asarray(values.to_numpy() if hasattr(values, "to_numpy") else values)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name} is not a rectangular table of numbers: {error}.") from error
    if array.dtype == object:
        try:
            return array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"{name} has dtype object and an entry that is no real number: {error}. Every "
                f"argument must be a number or a string of digits; encode text as numbers first."
            ) from error
    return array


def _check_kind(dtype: np.dtype, name: str) -> None:
    if dtype.kind == "c":
        raise ValueError(
            f"Complex data not supported: {name} has dtype {dtype}. Pass its real and its "
            f"imaginary part as columns of their own."
        )
    if dtype.kind not in _NUMBERS:
        raise ValueError(
            f"{name} has dtype {dtype}; expected real numbers. Encode text and dates as numbers "
            f"first (sklearn.preprocessing.OneHotEncoder)."
        )


def _check_matrix(array: Any, X: Any) -> None:
    if array.ndim != 2:
        raise ValueError(
            f"X is an array of shape {tuple(array.shape)} from {type(X).__qualname__}; expected "
            f"2 dimensions, (rows, columns). Reshape your data: X.reshape(-1, 1) if it is one "
            f"column, X.reshape(1, -1) if it is one row."
        )
    _check_size(*array.shape)


def _check_size(rows: int, columns: int) -> None:
    if rows == 0:
        raise ValueError(f"X has 0 rows: its shape is (0, {columns}). Expected 1 row or more.")
    if columns == 0:
        raise ValueError(
            f"X has 0 feature(s) (shape=({rows}, 0)) while a minimum of 1 is required."
        )


def read_target(y: Any, rows: int) -> np.ndarray:
    """Return `y` as it is, a view if that can be: numbers of any dtype, shape (rows,), finite."""
    return _read_numbers(y, "y", rows)


def _read_numbers(values: Any, name: str, rows: int) -> np.ndarray:
    numbers = _to_numpy(read_column(values, name, rows), name)
    _check_kind(numbers.dtype, name)
    check_finite_column(numbers, name)
    return numbers


def read_labels(y: Any, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the two labels in `y`, sorted, shape (2,), and whether a row has the second, (rows,)
    of bool.
    """
    labels = read_column(y, "y", rows)
    if labels.dtype.kind == "U" and isinstance(y, (list, tuple)):
        other = next((label for label in y if not isinstance(label, str)), None)
        if other is not None:  # NumPy would make a string of it
            raise TypeError(f"y mixes strings and {other!r}; use labels of one type.")
    if labels.dtype.kind == "f":
        check_finite_column(labels, "y")
    elif labels.dtype.kind == "O" and any(v is None or v != v for v in labels.tolist()):
        raise ValueError("y has missing labels; drop those rows first.")
    elif labels.dtype.kind == "c":
        raise ValueError("Complex data not supported: y holds complex numbers.")
    if labels.dtype.kind in _NUMBERS and len(labels):  # in a tenth of the time of sorting them
        low, high = labels.min(), labels.max()
        second = labels == high
        if low < high and (second | (labels == low)).all():
            return np.array([low, high]), second
    try:
        classes, index = np.unique(labels, return_inverse=True)
    except TypeError as error:
        raise TypeError(
            f"y mixes labels that cannot be compared ({error}); use labels of one type."
        ) from error
    if len(classes) == 2:
        return classes, index.reshape(-1) == 1
    found = _listing([repr(value) for value in classes.tolist()])
    if len(classes) == 1:
        raise ValueError(f"y holds one class only, {found}; expected two classes to tell apart.")
    if labels.dtype.kind == "f" and (labels != np.rint(labels)).any():
        raise ValueError(
            f"Unknown label type: continuous. y holds {len(classes)} different numbers ({found}); "
            f"expected two labels. LinearRegression fits numbers."
        )
    raise ValueError(
        f"Only binary classification is supported. y holds {len(classes)} classes, {found}; "
        f"expected two. Compare one with the rest: y == {classes[0].item()!r}."
    )


def read_column(y: Any, name: str, rows: int) -> np.ndarray:
    """Return an argument of one value a row as a NumPy array of any dtype, shape (rows,)."""
    if y is None:
        raise ValueError(
            f"fit requires {name} to be passed, but the target {name} is None. Call fit(X, {name})."
        )
    if hasattr(y, "toarray"):
        raise TypeError(f"{name} is a sparse {type(y).__name__}; expected one dense column.")
    if isinstance(y, mx.array):
        array = _to_numpy(y, name)
    else:
        check_unmasked(y, name)
        array = np.asarray(y.to_numpy() if hasattr(y, "to_numpy") else y)
    if array.ndim == 2 and array.shape[1] == 1:
        raise ValueError(
            f"{name} is an array of shape {array.shape}; expected 1 dimension, ({rows},). Pass "
            f"{name}.ravel()."
        )
    if array.ndim != 1:
        raise ValueError(
            f"{name} is an array of shape {array.shape}; expected 1 dimension, ({rows},)."
        )
    if len(array) != rows:
        raise ValueError(f"X has {rows} rows and {name} has {len(array)}; expected as many.")
    return array


def read_weights(sample_weight: Any, rows: int) -> np.ndarray | None:
    """Return the weights as float64, shape (rows,): finite, none negative, not all zero."""
    if sample_weight is None:
        return None
    weights = _read_numbers(sample_weight, "sample_weight", rows).astype(np.float64, copy=False)
    if (weights < 0).any():
        row = int(np.argmax(weights < 0))
        raise ValueError(
            f"sample_weight is {weights[row]:g} in row {row}; expected zero or more everywhere."
        )
    if not weights.any():
        raise ValueError("sample_weight is zero in every row, which leaves nothing to fit.")
    return None if (weights == 1).all() else weights


def check_finite_column(values: np.ndarray, name: str) -> None:
    """Raise ValueError unless every number is finite; name the first row that is not."""
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(np.argmax(bad))
        more = f", and {int(bad.sum()) - 1} more" if bad.sum() > 1 else ""
        raise ValueError(f"{name} is {_word(values[row])} in row {row}{more}. Drop such rows.")


def check_finite_block(block: np.ndarray, start: int, names: list[str]) -> None:
    """Raise ValueError unless every number of a block is finite; name the row and the column."""
    if block.dtype.kind != "f":
        return
    numbers = block.reshape(-1, order="A")
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(numbers @ numbers):  # the quickest proof; but squares can overflow
            return
    bad = ~np.isfinite(block)
    if bad.any():
        row, column = (int(index[0]) for index in np.nonzero(bad))
        raise ValueError(
            f"X is {_word(block[row, column])} in row {start + row}, column {names[column]!r}. "
            f"Drop such rows, or fill them in (sklearn.impute.SimpleImputer)."
        )


def _word(value: Any) -> str:
    return "NaN" if np.isnan(value) else "inf (infinity)"


def _listing(items: list[str], most: int = 8) -> str:
    """Return the first items of a list in words."""
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest} more" if rest > 0 else "")
