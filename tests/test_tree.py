"""Trees: flattening and back, moves, paths, what becomes of data."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlxopt import _tree

leaf = hnp.arrays(
    np.float32, hnp.array_shapes(max_dims=3, max_side=4), elements=st.floats(-1e6, 1e6, width=32)
).map(mx.array)
trees = st.recursive(
    leaf,
    lambda t: (
        st.lists(t, min_size=1, max_size=3)
        | st.tuples(t, t)
        | st.dictionaries(st.text("abc", min_size=1, max_size=3), t, min_size=1, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(trees)
def test_unravel_undoes_ravel(tree):
    vector = _tree.ravel(tree, mx.float32)
    assert vector.shape == (_tree.count(tree),)
    back = _tree.unravel(vector, tree)
    assert _tree.structure(back) == _tree.structure(tree)
    for a, b in zip(_tree.leaves(tree), _tree.leaves(back), strict=True):
        assert a.shape == b.shape
        assert mx.array_equal(a, b)


@settings(max_examples=40, deadline=None)
@given(trees, st.floats(-2, 2, width=32))
def test_a_move_is_the_sum_entry_by_entry(tree, step):
    vector = mx.arange(_tree.count(tree)).astype(mx.float32)
    moved = _tree.move(tree, vector, mx.array(step))
    expected = np.array(_tree.ravel(tree, mx.float32)) + np.float32(step) * np.array(vector)
    # One rounding of the product, one of the sum, relative to the terms' size.
    bound = 1.2e-7 * (np.abs(np.array(vector) * step) + np.abs(expected)) + 1e-37
    assert (np.abs(np.array(_tree.ravel(moved, mx.float32)) - expected) <= 2 * bound).all()


def test_paths_are_written_as_a_person_would():
    tree = {"w": [mx.array(1.0), mx.array(2.0)], 3: (mx.array(0.0),)}
    assert [path for path, _ in _tree.leaves_with_paths(tree)] == ["['w'][0]", "['w'][1]", "[3][0]"]


def test_the_largest_entry_is_over_all_leaves_and_passes_nan_on():
    tree = [mx.array([1.0, -7.0]), mx.array([[3.0]], dtype=mx.float16)]
    assert _tree.largest_entry(tree).item() == 7
    assert np.isnan(_tree.largest_entry([mx.array([1.0]), mx.array([float("nan"), 9.0])]).item())


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64, mx.float16])
def test_floating_data_takes_the_dtype_of_the_parameters(dtype):
    value = 1 / 3
    for item in ([value, 1.0], np.array([value, 1.0]), np.array([value, 1.0], dtype=np.float64)):
        array = _tree.to_data(item, dtype)
        assert array.dtype == dtype
        assert array[0].item() == mx.array(value, dtype=dtype).item()


def test_integers_and_mlx_arrays_stay_what_they_are():
    assert _tree.to_data(np.array([1, 2]), mx.float32).dtype == mx.int64
    assert _tree.to_data([True, False], mx.float32).dtype == mx.bool_
    half = mx.array([1.0], dtype=mx.float16)
    assert _tree.to_data(half, mx.float32) is half
    assert _tree.to_data("relu", mx.float32) == "relu"
    nested = _tree.to_data({"x": np.ones(2), "y": [mx.array(1.0)]}, mx.float32)
    assert nested["x"].dtype == mx.float32


def test_text_is_no_data():
    with pytest.raises(TypeError, match="Encode text"):
        _tree.to_data(np.array(["a", "b"]), mx.float32)


def test_tuples_of_arrays_are_trees_and_lists_of_rows_are_tables():
    pair = _tree.to_data((np.ones((2, 3)), np.ones(4)), mx.float32)
    assert [array.shape for array in pair] == [(2, 3), (4,)]
    table = _tree.to_data([np.ones(3), np.ones(3)], mx.float32)
    assert table.shape == (2, 3)
    nested = _tree.to_data([{"x": np.ones(2)}], mx.float32)
    assert nested[0]["x"].dtype == mx.float32
    assert isinstance(_tree.to_data(np.float64(2.0), mx.float64), mx.array)
    assert _tree.to_data(2.0, mx.float64) == 2.0
