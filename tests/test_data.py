"""Mini-batches: every row once an epoch, in an order that the seed fixes."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlxopt as mo


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 60),
    batch_size=st.integers(1, 70),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    as_mlx=st.booleans(),
)
def test_an_epoch_holds_every_row_once(rows, batch_size, shuffle, drop_last, as_mlx):
    drop_last = drop_last and rows >= batch_size
    x = np.arange(rows, dtype=np.float32)
    X = np.stack([x, -x], axis=1)
    arrays = (mx.array(X), mx.array(x)) if as_mlx else (X, x)
    loader = mo.batches(*arrays, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last)
    epoch = [(np.array(a), np.array(b)) for a, b in loader]
    assert len(epoch) == len(loader)
    assert all(len(b) == batch_size for _, b in epoch[:-1])
    seen = np.concatenate([b for _, b in epoch])
    for a, b in epoch:
        np.testing.assert_array_equal(a[:, 1], -b)  # rows stay together
    if drop_last:
        assert len(seen) == rows // batch_size * batch_size
        assert len(set(seen)) == len(seen)
    else:
        assert sorted(seen) == x.tolist()
    if not shuffle:
        assert seen.tolist() == x[: len(seen)].tolist()


def test_each_epoch_has_its_own_order_and_the_seed_fixes_it():
    def orders(seed):
        loader = mo.batches(np.arange(50), batch_size=50, seed=seed)
        return [next(iter(loader))[0].tolist() for _ in range(3)]

    first = orders(1)
    assert first[0] != first[1] != first[2]
    assert first == orders(1)
    assert first != orders(2)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((), {"batch_size": 2}, ValueError, "at least one"),
        ((np.ones(3), np.ones(4)), {"batch_size": 2}, ValueError, "3, 4 rows"),
        ((np.float64(1.0),), {"batch_size": 2}, ValueError, "scalar"),
        ((np.ones((0, 2)),), {"batch_size": 2}, ValueError, "no rows"),
        ((np.ones(3),), {"batch_size": 0}, ValueError, "1 or more"),
        ((np.ones(3),), {"batch_size": 1.5}, TypeError, "whole number"),
        ((np.ones(3),), {"batch_size": 1, "seed": None}, TypeError, "seed"),
        ((np.ones(3),), {"batch_size": 1, "seed": -1}, TypeError, "seed"),
        ((np.ones(3),), {"batch_size": 4, "drop_last": True}, ValueError, "no batch"),
    ],
)
def test_bad_input_says_what_is_wrong(arguments, options, error, words):
    with pytest.raises(error, match=words):
        mo.batches(*arguments, **options)


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_do_not_let_the_data_be_overwritten(shuffle):
    X = np.arange(10.0)
    (batch,) = next(iter(mo.batches(X, batch_size=4, shuffle=shuffle)))
    with pytest.raises(ValueError, match="read-only"):
        batch[:] = 99.0
    assert X.flags.writeable
