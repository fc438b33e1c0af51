"""Trees: flattening and back, moves, paths, what becomes of data."""

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlxopt import _resume, _tree
from mlxopt.autodiff._arguments import Cast, to_data

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


class Pair(NamedTuple):
    a: Any
    b: Any


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
        array = to_data(item, Cast(dtype))
        assert array.dtype == dtype
        assert array[0].item() == mx.array(value, dtype=dtype).item()


def test_integers_and_mlx_arrays_stay_what_they_are():
    assert to_data(np.array([1, 2]), Cast(mx.float32)).dtype == mx.int64
    assert to_data([True, False], Cast(mx.float32)).dtype == mx.bool_
    half = mx.array([1.0], dtype=mx.float16)
    assert to_data(half, Cast(mx.float32)) is half
    assert to_data("relu", Cast(mx.float32)) == "relu"
    nested = to_data({"x": np.ones(2), "y": [mx.array(1.0)]}, Cast(mx.float32))
    assert nested["x"].dtype == mx.float32


def test_text_is_no_data():
    with pytest.raises(TypeError, match="Encode text"):
        to_data(np.array(["a", "b"]), Cast(mx.float32))


def test_tuples_of_arrays_are_trees_and_lists_of_rows_are_tables():
    pair = to_data((np.ones((2, 3)), np.ones(4)), Cast(mx.float32))
    assert [array.shape for array in pair] == [(2, 3), (4,)]
    table = to_data([np.ones(3), np.ones(3)], Cast(mx.float32))
    assert table.shape == (2, 3)
    nested = to_data([{"x": np.ones(2)}], Cast(mx.float32))
    assert nested[0]["x"].dtype == mx.float32
    assert isinstance(to_data(np.float64(2.0), Cast(mx.float64)), mx.array)
    assert to_data(2.0, Cast(mx.float64)) == 2.0


# --- Vectors on the host ------------------------------------------------------------------------

MIXED = {
    "a": mx.array([1.0, -2.5]),
    "b": [mx.array(0.1, dtype=mx.bfloat16), mx.full((2, 3), 0.1, dtype=mx.float16)],
}


@settings(max_examples=60, deadline=None)
@given(trees)
def test_from_host_undoes_to_host(tree):
    vector = _tree.to_host(tree)
    assert (vector.dtype, vector.shape) == (np.float64, (_tree.count(tree),))
    np.testing.assert_array_equal(vector, np.array(_tree.ravel(tree, mx.float32), np.float64))
    back = _tree.from_host(vector, tree)
    assert _resume.difference(back, tree) is None
    assert all(map(mx.array_equal, _tree.leaves(back), _tree.leaves(tree)))


def test_the_host_holds_every_dtype_exactly():
    vector = _tree.to_host(MIXED)
    bf16, half = float(mx.array(0.1, dtype=mx.bfloat16)), float(np.float16(0.1))
    np.testing.assert_array_equal(vector, [1.0, -2.5, bf16, *[half] * 6])
    with mx.stream(mx.cpu):
        wide = {"a": mx.array(np.array([0.1]), dtype=mx.float64), "b": mx.array(0.1)}
        np.testing.assert_array_equal(_tree.to_host(wide), [0.1, np.float32(0.1)])


def test_leading_axes():
    vectors = np.random.default_rng(0).normal(size=(4, 2, 9))
    tree = _tree.from_host(vectors, MIXED)
    assert tree["b"][1].shape == (4, 2, 2, 3)
    assert tree["b"][0].dtype == mx.bfloat16
    found = _tree.to_host(tree, lead=2)
    assert found.shape == vectors.shape
    np.testing.assert_array_equal(found, _tree.rounded(vectors, MIXED))
    np.testing.assert_array_equal(found[1, 0], _tree.to_host(_tree.from_host(vectors[1, 0], MIXED)))
    single = {"w": mx.zeros(9)}
    np.testing.assert_array_equal(_tree.rounded(vectors, single), vectors.astype(np.float32))


def test_a_number_beyond_the_dtype_becomes_infinite_without_a_warning():
    assert _tree.from_host(np.array([1e300]), mx.zeros(1)).item() == np.inf
    assert _tree.rounded(np.array([1e300]), mx.zeros(1)) == np.inf


# --- Structure in words -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (mx.zeros((2, 3), dtype=mx.float16), "float16 of shape (2, 3)"),
        (np.zeros(2), "NumPy float64 of shape (2,)"),
        ({"w": 1, "b": 2}, "a dict with the keys ['w', 'b']"),
        ([1, 2], "a list of 2"),
        ((1, 2, 3), "a tuple of 3"),
        (Pair(1, 2), "a Pair"),
        (1.0, "a float"),
    ],
)
def test_a_structure_in_words(tree, words):
    assert _tree.describe_structure(tree) == words


@pytest.mark.parametrize(
    ("found", "expected", "difference"),
    [
        (MIXED, MIXED, None),
        ({"b": 1, "a": 2.0}, {"a": 3, "b": 4}, None),  # numbers may have any value
        (((), (1, 2)), ((3,), ()), None),  # and tuples of numbers any length
        (
            {"w": mx.zeros(2)},
            {"w": mx.zeros(3)},
            ("['w']", "float32 of shape (2,)", "float32 of sh"),
        ),
        (
            [mx.zeros(2)],
            [mx.zeros(2, dtype=mx.float16)],
            ("[0]", "float32 of shape (2,)", "float16"),
        ),
        (
            [mx.zeros(2)],
            [np.zeros(2, np.float32)],
            ("[0]", "float32 of shape (2,)", "NumPy float32"),
        ),
        (Pair(1, mx.zeros(2)), Pair(1, None), (".b", "float32 of shape (2,)", "a NoneType")),
        ({"w": 1}, {"v": 1}, ("", "a dict with the keys ['w']", "a dict with the keys ['v']")),
        ([mx.zeros(1)], [mx.zeros(1)] * 2, ("", "a list of 1", "a list of 2")),
        ([mx.zeros(1)], (mx.zeros(1),), ("", "a list of 1", "a tuple of 1")),
    ],
)
def test_the_first_difference_of_two_trees(found, expected, difference):
    came = _resume.difference(found, expected)
    assert (came is None) == (difference is None)
    if came and difference:
        assert came[:2] == difference[:2]
        assert came[2].startswith(difference[2])


def test_a_field_without_a_value_is_like_any():
    assert _resume.difference(Pair(1, None), Pair(1, mx.zeros(2)), optional=True) is None


def spread(branch, tree):
    return _tree.spread(branch, tree, lambda one, _: isinstance(one, str | None), "names", "name")


def test_an_entry_serves_all_leaves_below_it():
    tree = {"a": [mx.zeros(1), mx.zeros(1)], "b": Pair(mx.zeros(1), mx.zeros(1))}
    assert spread("x", tree) == ["x"] * 4
    assert spread({"b": (None, "y"), "a": "x"}, tree) == ["x", "x", None, "y"]


@pytest.mark.parametrize(
    ("branch", "words"),
    [
        (
            ["x"],
            "names is not a tree like params: expected a dict with the keys .*, got a list of 1",
        ),
        ({"a": "x"}, r"got a dict with the keys \['a'\]. None is no name"),
        ({"a": ["x"], "b": None}, r"names\['a'\] is not .* expected a list of 2, got a list of 1"),
        ({"a": ["x", {}], "b": None}, r"names\['a'\]\[1\] is not .* expected one name, got a dict"),
    ],
)
def test_entries_in_another_structure(branch, words):
    tree = {"a": [mx.zeros(1), mx.zeros(1)], "b": mx.zeros(1)}
    with pytest.raises(ValueError, match=words):
        spread(branch, tree)
