"""Rules made of rules: groups of leaves, frozen leaves, clipped gradients."""

from __future__ import annotations

import dataclasses
import difflib
import re
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlxopt._checks import check_fields
from mlxopt._tree import (
    Tree,
    from_leaves,
    largest_entry,
    leaves,
    leaves_with_paths,
    to_host,
    working_dtype,
)
from mlxopt.optimizers._base import FirstOrder, FirstOrderState, LearningRate, Step


@dataclasses.dataclass(frozen=True)
class Grouped(FirstOrder):
    """A rule for each group of leaves, or none for frozen leaves.

    Leaves have names such as `params['layers'][0]['weight']`; `*` in a pattern stands for any
    characters, and the first pattern that fits a leaf decides. Frozen leaves are left out of the
    optimality, and `train` does not compute their gradient.

    Args:
        rule: for the leaves that no pattern fits; None freezes them.
        groups: a rule, or None to freeze, for each pattern.

    Raises:
        ValueError: at the start of a run, if a pattern decides for no leaf, or all are frozen.

    >>> import mlx.core as mx, mlxopt as mo
    >>> loss = lambda p: mx.sum(mx.square(p["weight"])) + mx.square(p["bias"]) + p["fixed"] ** 2
    >>> params = {"weight": mx.ones(2), "bias": mx.array(1.0), "fixed": mx.array(1.0)}
    >>> rule = mo.Grouped(mo.SGD(0.25), {"*bias*": mo.SGD(0.5), "params['fixed']": None})
    >>> found = mo.minimize(loss, params, rule, tol=0, max_steps=1).params
    >>> found["weight"].tolist(), found["bias"].item(), found["fixed"].item()
    ([0.5, 0.5], 0.0, 1.0)
    """

    learning_rate: LearningRate = dataclasses.field(init=False, repr=False, compare=False)
    rule: FirstOrder | None
    groups: dict[str, FirstOrder | None]

    def __post_init__(self) -> None:
        if not isinstance(self.groups, dict):
            example = '{"*bias*": mo.SGD(0.1)}'
            raise TypeError(f"Grouped(groups={self.groups!r}): expected a dict such as {example}.")
        for rule in self._rules():
            if rule is not None and not isinstance(rule, FirstOrder):
                expected = "first-order rules, such as mo.SGD(0.1), or None to freeze"
                raise TypeError(f"Grouped was given {rule!r}; expected {expected}.")

    def learning_rates(self) -> tuple[Tree, ...]:
        return tuple(rule.learning_rates() if rule else 0.0 for rule in self._rules())

    def start(self, params: Tree) -> list[Tree]:
        self._check_patterns(_names(params))
        shares = self._split(params)
        if not any(rule for rule, _ in shares):
            raise ValueError("Grouped: every leaf is frozen; expected one that is not.")
        return [rule.start(share) if rule else () for rule, share in shares]

    def update(self, grad: Tree, buffers: list[Tree], params: Tree, learning_rate: Any) -> Step:
        # A tuple has a learning rate for each rule.
        each = isinstance(learning_rate, tuple)
        rates = learning_rate if each else [learning_rate] * len(buffers)
        moved, kept = [], []
        for (rule, share), (_, gradient), buffer, rate in zip(
            self._split(params), self._split(grad), buffers, rates, strict=True
        ):
            if rule:
                share, buffer = rule.update(gradient, buffer, share, rate)
            moved.append(iter(share))
            kept.append(buffer)
        # Each leaf is the next one of its rule's share.
        names = _names(params)
        return from_leaves((next(moved[self._rule_of(name)]) for name in names), params), kept

    def reduced(self, state: FirstOrderState) -> tuple[np.ndarray, np.ndarray]:
        frozen = [self._rules()[self._rule_of(name)] is None for name in _names(state.params)]
        free = ~np.repeat(frozen, [leaf.size for leaf in leaves(state.params)])
        return np.where(free, to_host(state.grad), 0.0), free

    def optimality(self, grad: Tree) -> mx.array:
        return largest_entry([rule.optimality(share) for rule, share in self._split(grad) if rule])

    def _rules(self) -> list[FirstOrder | None]:
        """Return the rules in the order of their patterns, then the rule of all other leaves."""
        return [*self.groups.values(), self.rule]

    def _rule_of(self, name: str) -> int:
        """Return the index of a leaf's rule in `_rules`."""
        fits = (index for index, pattern in enumerate(self.groups) if _fits(pattern, name))
        return next(fits, len(self.groups))

    def _split(self, tree: Tree) -> list[tuple[FirstOrder | None, list[mx.array]]]:
        """Return each rule with its leaves; None in place of a rule that has none."""
        shares = [(rule, []) for rule in self._rules()]
        for name, leaf in zip(_names(tree), leaves(tree), strict=True):
            shares[self._rule_of(name)][1].append(leaf)
        return [(rule if share else None, share) for rule, share in shares]

    def _check_patterns(self, names: list[str]) -> None:
        for index, pattern in enumerate(self.groups):
            fits = [name for name in names if _fits(pattern, name)]
            if not fits:
                hint = _suggestion(pattern, names)
                raise ValueError(f"Grouped: the pattern {pattern!r} fits no leaf. {hint}")
            if index not in map(self._rule_of, fits):
                taken = "was taken by a pattern before it. Put it first"
                raise ValueError(f"Grouped: every leaf that {pattern!r} fits {taken}.")


@dataclasses.dataclass(frozen=True)
class Clipped(FirstOrder):
    """A rule applied to clipped gradients, which limits the effect of a single batch.

    By norm: a gradient whose Euclidean norm over all leaves together is above `norm` is scaled down
    to it (Pascanu, Mikolov and Bengio 2013, "On the difficulty of training recurrent neural
    networks", algorithm 1). By value: each entry is limited to ± `value`, which also changes the
    direction. Around a `Grouped` rule all leaves count, inside one those of its group.

    Args:
        rule: the rule that takes the steps.
        norm: the largest norm, above 0; or
        value: the largest absolute entry, above 0.

    >>> import mlx.core as mx, mlxopt as mo
    >>> rule = mo.Clipped(mo.SGD(1.0), norm=1.0)
    >>> loss = lambda w: 0.5 * mx.sum(w ** 2)
    >>> mo.minimize(loss, mx.array([30.0, 40.0]), rule, tol=0, max_steps=10).params
    array([24, 32], dtype=float32)
    """

    learning_rate: LearningRate = dataclasses.field(init=False, repr=False, compare=False)
    rule: FirstOrder
    norm: float | None = None
    value: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.rule, FirstOrder):
            expected = "a first-order rule, such as mo.SGD(0.1)"
            raise TypeError(f"Clipped(rule={self.rule!r}): expected {expected}.")
        if (self.norm is None) == (self.value is None):
            raise TypeError("Clipped: expected either norm or value; to clip by both, nest two.")
        check_fields(self, "norm" if self.value is None else "value", above=0)

    def learning_rates(self) -> Tree:
        return self.rule.learning_rates()

    def start(self, params: Tree) -> Tree:
        return self.rule.start(params)

    def update(self, grad: Tree, buffers: Tree, params: Tree, learning_rate: Any) -> Step:
        return self.rule.update(self._clip(grad), buffers, params, learning_rate)

    def reduced(self, state: FirstOrderState) -> tuple[np.ndarray, np.ndarray]:
        return self.rule.reduced(state)

    def optimality(self, grad: Tree) -> mx.array:
        # Of the gradient before clipping.
        return self.rule.optimality(grad)

    def _clip(self, grad: Tree) -> Tree:
        if self.value is not None:
            limit = self.value
            return tree_map(lambda g: mx.clip(g, -limit, limit).astype(g.dtype), grad)
        assert self.norm is not None
        dtype = working_dtype(grad)  # squares of 16-bit entries overflow
        # Those of large float32 entries do too, unless divided by the largest entry first.
        largest = mx.maximum(largest_entry(grad), self.norm)
        squares = [mx.sum(mx.square(g.astype(dtype) / largest)) for g in leaves(grad)]
        total = largest * mx.sqrt(sum(squares[1:], squares[0]))
        factor = self.norm / mx.maximum(total, self.norm)
        return tree_map(lambda g: (g * factor.astype(dtype)).astype(g.dtype), grad)


def _names(params: Tree) -> list[str]:
    return [f"params{path}" for path, _ in leaves_with_paths(params)]


def _fits(pattern: str, name: str) -> bool:
    parts = map(re.escape, pattern.split("*"))
    return re.fullmatch(".*".join(parts), name, re.DOTALL) is not None


def _suggestion(pattern: str, names: list[str]) -> str:
    """Return the names close to a pattern that fits no leaf, or the names there are."""
    bare = pattern.replace("*", "")
    inside = [name for name in names if bare and bare.lower() in name.lower()]
    close = inside or difflib.get_close_matches(bare, names, n=3, cutoff=0.5)
    if not close:
        # By the words of the names: 'wieght' is close to no whole name.
        words = {word: name for name in names for word in re.findall(r"\w+", name)}
        word = max(re.findall(r"\w+", bare), key=len, default="")
        close = [words[w] for w in difflib.get_close_matches(word, words, n=3, cutoff=0.6)]
    if close:
        return f"Did you mean {' or '.join(close[:3])}?"
    listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"The leaves are {listed}."
