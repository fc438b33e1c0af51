"""Rules made of rules: a rule for each group of leaves, frozen leaves, clipped gradients."""

from __future__ import annotations

import dataclasses
import difflib
import re
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from mlxopt._checks import check_fields
from mlxopt._tree import Tree, from_leaves, largest_entry, leaves, leaves_with_paths, working_dtype
from mlxopt.optimizers._base import FirstOrder, LearningRate


@dataclasses.dataclass(frozen=True)
class Grouped(FirstOrder):
    """A rule for each group of leaves: its own hyper-parameters, or no change at all.

    Leaves are named as in messages, such as `params['layers'][0]['weight']`; in a pattern `*`
    stands for any run of characters and every other character for itself. The first pattern that
    fits a leaf decides. Frozen leaves do not change, do not count in the optimality that `minimize`
    compares with `tol`, and `train` does not compute their gradient.

    Args:
        rule: for the leaves that no pattern fits; None freezes them.
        groups: a rule, or None to freeze, for each pattern.

    Raises:
        ValueError: at the start of a run, if a pattern fits no leaf, or none that an earlier
            pattern has not taken; or if all leaves are frozen.

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
            raise TypeError(
                f"Grouped(groups={self.groups!r}): expected a dict of patterns and rules, such as "
                f'{{"*bias*": mo.SGD(0.1)}}.'
            )
        for rule in self._rules():
            if rule is not None and not isinstance(rule, FirstOrder):
                raise TypeError(
                    f"Grouped was given {rule!r}; expected first-order rules, such as mo.SGD(0.1), "
                    f"or None to freeze."
                )
        # Only whether this rate is a schedule matters: `rates` returns those of all rules.
        rates = [rule.learning_rate for rule in self._rules() if rule] or [0.0]
        rate = next((rate for rate in rates if callable(rate)), rates[0])
        object.__setattr__(self, "learning_rate", rate)

    def start(self, params: Tree) -> list[Tree]:
        """Return the buffers of each rule, having checked the patterns against the leaves."""
        self._check_patterns([f"params{path}" for path, _ in leaves_with_paths(params)])
        shares = self._split(params, params)
        if not any(rule and share for rule, share in shares):
            raise ValueError("Grouped: every leaf is frozen; expected one that may move.")
        return [rule.start(share) if rule and share else () for rule, share in shares]

    def update(
        self, grad: Tree, buffers: list[Tree], params: Tree, learning_rate: Any
    ) -> tuple[Tree, list[Tree]]:
        """Return the parameters and the buffers of all rules after one step of each.

        Args:
            grad: the gradient at `params`.
            buffers: from `start` or the last `update`.
            params: the parameters.
            learning_rate: one for each rule, from `rates`; a single one is for all of them.
        """
        shares, gradients = self._split(params, params), self._split(grad, params)
        rates = learning_rate if isinstance(learning_rate, tuple) else [learning_rate] * len(shares)
        moved, kept = [], []
        for (rule, share), (_, gradient), buffer, rate in zip(
            shares, gradients, buffers, rates, strict=True
        ):
            if rule and share:
                share, buffer = rule.update(gradient, buffer, share, rate)
            moved.append(iter(share))
            kept.append(buffer)
        # Each leaf is the next one of its rule's share.
        return from_leaves((next(moved[i]) for i in self._members(params)), params), kept

    def optimality(self, grad: Tree) -> mx.array:
        """Return the largest optimality of the rules, frozen leaves apart."""
        free = [rule.optimality(share) for rule, share in self._split(grad, grad) if rule and share]
        return largest_entry(free)

    def reads_losses(self) -> bool:
        """Whether any rule's learning rate depends on the losses read so far."""
        return any(rule.reads_losses() for rule in self._rules() if rule)

    def rates(
        self, step: int, count: int, dtype: mx.Dtype, losses: tuple[float, ...] = ()
    ) -> list[Any]:
        """Return, for each step, a tuple of the rules' learning rates."""
        still = [mx.array(0.0, dtype=dtype)] * count
        each = [rule.rates(step, count, dtype, losses) if rule else still for rule in self._rules()]
        return list(zip(*each, strict=True))

    def _rules(self) -> list[FirstOrder | None]:
        """Return the rules in the order of their patterns, then the rule of all other leaves."""
        return [*self.groups.values(), self.rule]

    def _members(self, params: Tree) -> list[int]:
        """Return for each leaf the number of its rule."""
        patterns = [_compiled(pattern) for pattern in (*self.groups, "*")]
        return [
            next(i for i, pattern in enumerate(patterns) if pattern.fullmatch(f"params{path}"))
            for path, _ in leaves_with_paths(params)
        ]

    def _split(self, tree: Tree, params: Tree) -> list[tuple[FirstOrder | None, list[mx.array]]]:
        """Return each rule with the list of its leaves."""
        shares = [(rule, []) for rule in self._rules()]
        for index, leaf in zip(self._members(params), leaves(tree), strict=True):
            shares[index][1].append(leaf)
        return shares

    def _check_patterns(self, names: list[str]) -> None:
        taken: set[str] = set()
        for pattern in self.groups:
            fits = {name for name in names if _compiled(pattern).fullmatch(name)}
            if not fits:
                raise ValueError(
                    f"Grouped: the pattern {pattern!r} fits no leaf. {_suggestion(pattern, names)}"
                )
            if fits <= taken:
                raise ValueError(
                    f"Grouped: every leaf that {pattern!r} fits was taken by a pattern before it. "
                    f"Put it first."
                )
            taken |= fits


@dataclasses.dataclass(frozen=True)
class Clipped(FirstOrder):
    """A rule on gradients of limited size: one wild batch then costs one long step.

    By norm: a gradient whose Euclidean norm over all leaves together is above `norm` is scaled down
    to it (Pascanu, Mikolov and Bengio 2013, "On the difficulty of training recurrent neural
    networks", algorithm 1). By value: each entry is limited to ± `value`, which also turns the
    gradient. Around a `Grouped` rule all its leaves count, inside one those of its group.

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
            raise TypeError(
                f"Clipped(rule={self.rule!r}): expected a first-order rule, such as mo.SGD(0.1)."
            )
        if (self.norm is None) == (self.value is None):
            raise TypeError("Clipped: expected either norm or value; to clip by both, nest two.")
        check_fields(self, "norm" if self.value is None else "value", above=0)
        object.__setattr__(self, "learning_rate", self.rule.learning_rate)

    def start(self, params: Tree) -> Tree:
        """Return the rule's buffers."""
        return self.rule.start(params)

    def update(
        self, grad: Tree, buffers: Tree, params: Tree, learning_rate: mx.array
    ) -> tuple[Tree, Tree]:
        """Return the rule's parameters and buffers for the clipped gradient."""
        return self.rule.update(self._clip(grad), buffers, params, learning_rate)

    def _clip(self, grad: Tree) -> Tree:
        if self.value is not None:
            limit = self.value
            return tree_map(lambda g: mx.clip(g, -limit, limit).astype(g.dtype), grad)
        assert self.norm is not None
        dtype = working_dtype(grad)  # squares of 16-bit entries overflow
        # Divided by the largest entry first: so do those of large float32 ones.
        largest = mx.maximum(largest_entry(grad), self.norm)
        squares = [mx.sum(mx.square(g.astype(dtype) / largest)) for g in leaves(grad)]
        total = largest * mx.sqrt(sum(squares[1:], squares[0]))
        factor = self.norm / mx.maximum(total, self.norm)
        return tree_map(lambda g: (g * factor.astype(dtype)).astype(g.dtype), grad)

    def optimality(self, grad: Tree) -> mx.array:
        """Return the rule's optimality, of the gradient as it is."""
        return self.rule.optimality(grad)

    def reads_losses(self) -> bool:
        """Whether the rule's learning rate depends on the losses read so far."""
        return self.rule.reads_losses()

    def rates(
        self, step: int, count: int, dtype: mx.Dtype, losses: tuple[float, ...] = ()
    ) -> list[Any]:
        """Return the rule's learning rates."""
        return self.rule.rates(step, count, dtype, losses)


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.DOTALL)


def _suggestion(pattern: str, names: list[str]) -> str:
    """Return the names that are close to a pattern that fits none, or else some names."""
    bare = pattern.replace("*", "")
    inside = [name for name in names if bare and bare.lower() in name.lower()]
    close = inside or difflib.get_close_matches(bare, names, n=3, cutoff=0.5)
    if not close:
        # By the words of the names: 'wieght' is close to no whole path.
        words = {word: name for name in names for word in re.findall(r"\w+", name)}
        word = max(re.findall(r"\w+", bare), key=len, default="")
        close = [words[w] for w in difflib.get_close_matches(word, words, n=3, cutoff=0.6)]
    if close:
        return f"Did you mean {' or '.join(close[:3])}?"
    listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"The leaves are {listed}."
