"""Files of `save` that are damaged or crafted end in ValueError, of whatever kind the damage is."""

import json
import random
from typing import Any

import mlx.core as mx
import pytest

import mlxopt as mo
from mlxopt._saved import _checksum

START = {"a": mx.zeros(3), "b": mx.ones((2, 2))}


def loss(params):
    return mx.sum((params["a"] - 1) ** 2) + mx.sum(params["b"] ** 4)


OPTIMIZERS = [
    mo.LBFGS(),
    mo.TrustRegion(),
    mo.ProximalGradient(mo.prox.L1(0.1)),
    mo.AdamW(mo.schedules.cosine(0.1, steps=10)),
]
RUNS = [(one, mo.minimize(loss, START, one, max_steps=6, tol=0).state) for one in OPTIMIZERS]
HUGE, DEEP = 10**400, 400
VALUES: list[Any] = [
    None, True, -1, HUGE, -HUGE, 10**30, 1e308, float("inf"), float("nan"), "", "x", [], [1, 2],
    {"tuple": 5}, {"tuple": "abc"}, {"dict": [[[1], 2]]}, {"dict": 5}, {"status": "LOST"},
    {"mlx": ["nowhere", "float32"]}, {"mlx": ["state.params['a']", "float64"]}, {"mlx": [{}, 1]},
    {"class": []}, {"class": ["Unknown", []]}, {"class": ["mlxopt.LBFGS", [["memory", HUGE]]]},
    {"class": ["mlxopt.Adam", [["learning_rate", HUGE]]]}, {}, {"a": 1, "b": 2},
]  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.safetensors"


def places(tree: Any, at: tuple = ()):
    yield at
    children = enumerate(tree) if isinstance(tree, list) else ()
    for key, child in tree.items() if isinstance(tree, dict) else children:
        yield from places(child, (*at, key))


def replaced(tree: Any, place: tuple, value: Any) -> Any:
    branch = tree
    for key in place[:-1]:
        branch = branch[key]
    branch[place[-1]] = value
    return tree


def parts(path):
    with open(path, "rb") as file:
        loaded: Any = mx.load(file, "safetensors", return_metadata=True)
    return loaded


def rewrite(path, text, arrays, metadata):
    """Write a file with another tree, whose checksum is right."""
    checked = metadata | {"tree": text, "crc32": _checksum(text, arrays)}
    mx.save_safetensors(str(path), arrays, checked)


def load_or_refuse(path) -> bool:
    """Return whether the file loads; anything but a ValueError of its path ends the test."""
    try:
        mo.load(path)
    except ValueError as error:
        return str(path) not in str(error)
    return True


@pytest.mark.parametrize("run", RUNS, ids=lambda run: type(run[0]).__name__)
def test_any_value_in_any_place(run, path):
    mo.save(path, *run)
    arrays, metadata = parts(path)
    random.seed(0)
    everywhere = [at for at in places(json.loads(metadata["tree"])) if at]
    refused = 0
    for place in everywhere:
        for value in random.sample(VALUES, 6):
            text = json.dumps(replaced(json.loads(metadata["tree"]), place, value))
            rewrite(path, text, arrays, metadata)
            refused += not load_or_refuse(path)
    assert refused > len(everywhere)


@pytest.mark.parametrize("opening", ["[", '{"tuple":[', '{"dict":[["a",', '{"class":["A",[["b",'])
@pytest.mark.parametrize("depth", [DEEP, 3000, 100_000])
def test_deep_trees(path, opening, depth):
    mo.save(path, *RUNS[0])
    arrays, metadata = parts(path)
    closing = "".join({"[": "]", "{": "}"}.get(letter, "") for letter in reversed(opening))
    deep = opening * depth + "1" + closing * depth
    for text in (deep, f"[{deep}, 1]", f'[null, {{"tuple": [{deep}]}}]'):
        rewrite(path, text, arrays, metadata)
        assert not load_or_refuse(path)


@pytest.mark.parametrize("name", ["value", "optimality", "step"])
@pytest.mark.parametrize("number", [HUGE, -HUGE, 10**30, 2**64])
def test_huge_numbers(path, name, number):
    optimizer, state = RUNS[3]
    mo.save(path, optimizer, state)
    arrays, metadata = parts(path)
    tree = json.loads(metadata["tree"])
    for field in tree[1]["class"][1]:  # those of the state
        if field[0] == name:
            field[1] = number
    rewrite(path, json.dumps(tree), arrays, metadata)
    with pytest.raises(ValueError, match="whole number"):
        mo.load(path)
    with pytest.raises(TypeError, match=rf"state.{name} is a whole number of more than 64 bits"):
        mo.save(path, optimizer, state._replace(**{name: number}))


@pytest.mark.parametrize("run", RUNS, ids=lambda run: type(run[0]).__name__)
def test_cut_and_flipped_files(run, path):
    mo.save(path, *run)
    whole = path.read_bytes()
    random.seed(1)
    for _ in range(60):
        path.write_bytes(whole[: random.randrange(len(whole))])
        assert not load_or_refuse(path)
    for _ in range(120):
        damaged = bytearray(whole)
        for _ in range(random.randint(1, 3)):
            place = random.randrange(random.choice([16, len(whole)]))
            damaged[place] ^= 1 << random.randrange(8)
        path.write_bytes(damaged)
        if load_or_refuse(path):  # a space between two parts of the header
            assert parts(path)[1]["tree"] == json.dumps(json.loads(parts(path)[1]["tree"]))


@pytest.mark.parametrize("make", [mo.SGD, mo.Adam, mo.schedules.cosine, mo.Seconds])
def test_a_whole_number_beyond_the_floats_is_a_value_error(make):
    with pytest.raises(ValueError, match="finite number"):
        make(HUGE) if make is not mo.schedules.cosine else make(HUGE, steps=3)
