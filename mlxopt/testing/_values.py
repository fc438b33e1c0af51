"""Copies of values and everything in them, and comparisons of the copies."""

from __future__ import annotations

import dataclasses
from typing import Any

import mlx.core as mx
import numpy as np

from mlxopt._tree import to_numpy
from mlxopt.optimizers import Optimizer


def snapshot(item: Any) -> Any:
    """Return a deep copy, made of lists, dicts and NumPy arrays."""
    if isinstance(item, mx.array):
        return to_numpy(item)
    if isinstance(item, np.ndarray):
        return item.copy()
    if dataclasses.is_dataclass(item) or isinstance(item, Optimizer):
        return snapshot(vars(item))
    if isinstance(item, dict):
        return {key: snapshot(child) for key, child in item.items()}
    if isinstance(item, (list, tuple)):
        return [snapshot(child) for child in item]
    return item


def same(a: Any, b: Any) -> bool:
    """Return whether two snapshots are equal; NaN equals NaN."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a is b or bool(a == b) or (a != a and b != b)
