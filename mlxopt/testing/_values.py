"""Copies of values, comparisons of them, and their types in words."""

from __future__ import annotations

import dataclasses
from typing import Any

import mlx.core as mx
import numpy as np

from mlxopt._tree import HALF, Tree, dtype_name
from mlxopt.optimizers import Optimizer


def host(array: mx.array) -> np.ndarray:
    """Return an array as float64 on the host."""
    return np.array(array.astype(mx.float32) if array.dtype in HALF else array, dtype=np.float64)


def snapshot(item: Any) -> Any:
    """Return a copy of a value and everything in it, made of lists, dicts and NumPy arrays."""
    if isinstance(item, mx.array):
        return host(item)
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


def types(tree: Tree) -> Any:
    """Return the types of a tree's branches and leaves."""
    if isinstance(tree, dict):
        return {key: types(child) for key, child in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [type(tree).__name__, *(types(child) for child in tree)]
    return type(tree).__name__


def described(leaf: Any) -> str:
    """Return dtype and shape of an array, the type of another value."""
    if isinstance(leaf, mx.array):
        return f"{dtype_name(leaf.dtype)} of shape {leaf.shape}"
    return type(leaf).__name__
