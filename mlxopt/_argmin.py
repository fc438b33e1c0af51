"""argmin: the minimizer of a loss as a function that MLX can differentiate.

Notation: p the parameters, h the other arguments, g and H gradient and Hessian of the loss in p. At
the minimizer g(p, h) = 0 for every h, so dp/dh = -H⁻¹ ∂g/∂h (the implicit function theorem). A
cotangent c of p gives the cotangent -(∂g/∂h)ᵀ H⁻¹ c of h: one linear system for all arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlxopt._checks import check_tol, describe_type
from mlxopt._dense import inverse_root
from mlxopt._krylov import NotPositiveError, Product, conjugate_gradients
from mlxopt._minimize import minimize
from mlxopt._platform.device import device_for
from mlxopt._status import Status, warn
from mlxopt._tree import (
    Tree,
    check_params,
    count,
    epsilon,
    from_host,
    is_float,
    largest_entry,
    leaves,
    ravel,
    read,
    to_device,
    to_host,
    to_numpy,
    unravel,
    working_dtype,
)
from mlxopt.autodiff import TapeError, grad, hessian, hvp
from mlxopt.autodiff._arguments import as_data
from mlxopt.autodiff._guards import check_is_callable, checked_loss, compiled, with_fixed_draw
from mlxopt.optimizers import Optimizer

_DENSE = 1000  # parameters up to which the Hessian is factored: half a second, 8 MB in float64
_MAX_PRODUCTS = 10_000  # far more than a system takes that suits conjugate gradients

_NEEDS_NUMBERS = (
    "argmin runs a whole minimization and needs numbers for that, but inside mx.compile and "
    "mx.vmap there are none. Call it outside of them, and use compile=False to differentiate or "
    "minimize a function that calls it: mo.value_and_grad(loss, compile=False), "
    "mo.minimize(..., compile=False)."
)

_NOT_DEFINITE = (
    "the Hessian at the minimizer is not positive definite beyond rounding, so the minimizer is "
    "not a smooth function of the other arguments and has no derivative. Add a penalty if the "
    "minimum is a valley, use float64 if it is badly conditioned, and check that it is no saddle."
)

_UNDIFFERENTIABLE = {Status.NONFINITE, Status.DIVERGED, Status.UNBOUNDED}


def argmin(
    loss: Callable[..., mx.array],
    optimizer: Optimizer[Any],
    *,
    tol: float | None = None,
    max_steps: int = 1000,
    compile: bool = True,
) -> Callable[..., Tree]:
    """Return a function `solve(params, *args)`: the minimizer, differentiable in `args`.

    `solve` minimizes `loss(params, *args)` over `params`, and MLX can differentiate its result, any
    number of times, in every float array among `args`: hyper-parameters, and data too. The
    derivative is that of the minimizer by the implicit function theorem (Krantz and Parks 2013,
    "The Implicit Function Theorem", section 3.3), independent of the steps taken: one linear system
    with the Hessian, which is factored for up to 1,000 parameters and otherwise solved by conjugate
    gradients (Hestenes and Stiefel 1952).

    Args:
        loss: a function `loss(params, *args)` that returns a scalar array, twice differentiable.
            Captured arrays count as constants. Random operations use one fixed draw.
        optimizer: such as `mo.LBFGS()` or `mo.Newton()`.
        tol: as in `minimize`. The error of minimizer and derivative is about tol over the smallest
            curvature.
        max_steps: as in `minimize`.
        compile: False evaluates the loss op by op, for a loss that branches on values.

    Returns:
        `solve(params, *args)`, which returns a tree like `params`, its start; the derivative in the
        start is zero. Derivatives are by reverse mode: `mx.grad`, `mx.vjp`, `mo.value_and_grad`,
        `mo.hvp`, `mo.jacobian`. A minimization needs numbers, so `solve` cannot be called under
        `mx.compile` or `mx.vmap`; with it in a loss, mlxopt's functions need `compile=False`.

    Raises:
        TapeError: `solve` was called where values are unknown; or the loss reads arrays back.
        ValueError: the minimization diverged, or the loss is not finite or has no minimum; or the
            derivative does not exist: the Hessian is not positive definite (a flat valley, a
            saddle), or the gradient is not zero (at a bound).
        TypeError, ValueError: as in `minimize`.

    Warns:
        ConvergenceWarning: `tol` was not reached, so minimizer and derivative are rough.

    >>> import mlx.core as mx, mlxopt as mo
    >>> def ridge(w, l2, X, y):
    ...     return 0.5 * mx.mean((X @ w - y) ** 2) + 0.5 * l2 * mx.sum(w**2)
    >>> X, y = mx.array([[1.0], [1.0]]), mx.array([2.0, 4.0])
    >>> solve = mo.argmin(ridge, mo.Newton())
    >>> solve(mx.zeros(1), mx.array(0.5), X, y)  # 3 / (1 + l2)
    array([2], dtype=float32)
    >>> def validation(l2):
    ...     return mx.sum(solve(mx.zeros(1), l2, X, y))
    >>> mo.grad(validation, compile=False)(mx.array(0.5))  # -3 / (1 + l2)²
    array(-1.33333, dtype=float32)
    """
    check_is_callable(loss)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer is {describe_type(optimizer)}; expected one of mlxopt's, such as "
            f"mo.LBFGS(): argmin(loss, optimizer)."
        )
    if tol is not None and check_tol(tol) == 0:
        raise ValueError("tol is 0; expected more: the derivative is that of a minimum reached.")
    checked = checked_loss(loss)

    @wraps(loss)
    def solve(params: Tree, *args: Any) -> Tree:
        params = check_params(params)
        args = as_data(args, params, loss, warns=True)
        start, numbers = _detached(params), _detached(args)
        drawn = with_fixed_draw(checked)
        options: Any = {"tol": tol, "max_steps": max_steps, "compile": compile}
        result = minimize(drawn, start, optimizer, *numbers, **options)
        if result.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        if result.status in _UNDIFFERENTIABLE:
            raise ValueError(
                f"argmin found no minimum, {result.status.name}: {result.status.value}"
            )
        if not any(is_float(leaf) for leaf in leaves(args)):
            return result.params
        if result.converged:
            _check_is_stationary(drawn, result.params, numbers, result.optimality)
        with device_for(params, args):
            return _Minimizer(drawn, result.params, numbers)(args)

    return solve


class _Minimizer:
    """A known minimizer as a function of the other arguments of its loss.

    Args:
        loss: `loss(params, *args)`, the same draw in every call.
        params: the minimizer.
        args: the other arguments there, detached from any transformation.
    """

    def __init__(self, loss: Callable[..., mx.array], params: Tree, args: tuple[Any, ...]) -> None:
        self.loss, self.params, self.args = loss, params, args
        self._root: mx.array | None = None

    def __call__(self, args: tuple[Any, ...]) -> Tree:
        """Return the minimizer, differentiable in the float arrays of `args`."""
        follow = mx.custom_function(lambda params, floats: tree_map(mx.array, params))
        follow.vjp(self._follow_vjp)
        follow.jvp(_no_forward_mode)
        return follow(self.params, [leaf for leaf in leaves(args) if is_float(leaf)])

    def _follow_vjp(self, primals: Any, cotangent: Tree, minimizer: Tree) -> Any:
        """Return the cotangents of the start, zero, and of the float arguments."""
        _, floats = primals
        with device_for(minimizer, floats):
            adjoint = self._solve(minimizer, floats, cotangent)

            # The minimizer in the graph, not a constant: this may be differentiated again.
            def slope(floats: list[mx.array]) -> mx.array:
                return -_inner(mx.grad(self._loss_of_floats)(minimizer, floats), adjoint)

            return tree_map(mx.zeros_like, minimizer), mx.grad(slope)(floats)

    def _solve(self, params: Tree, floats: list[mx.array], right: Tree) -> Tree:
        """Return H⁻¹ `right`, with its derivative in all three arguments."""

        def solution(params: Tree, floats: list[mx.array], right: Tree) -> Tree:
            return self._solve_with_numbers(right)

        def vjp(primals: Any, cotangent: Tree, found: Tree) -> Any:
            params, floats, _ = primals
            with device_for(params, floats):
                adjoint = self._solve(params, floats, cotangent)

                def bend(params: Tree, floats: list[mx.array]) -> mx.array:
                    def along(at: Tree) -> mx.array:
                        return _inner(mx.grad(self._loss_of_floats)(at, floats), found)

                    return -_inner(mx.grad(along)(params), adjoint)

                return *mx.grad(bend, argnums=(0, 1))(params, floats), adjoint

        def vmap(inputs: Any, axes: Any) -> tuple[Tree, Tree]:
            # Without this rule the derivative of a batch would be that of `solution`, in which the
            # Hessian is a constant.
            params, floats, right = inputs
            if any(axis is not None for axis in leaves(axes[:2])):
                raise TapeError(_NEEDS_NUMBERS)
            pairs = zip(leaves(right), leaves(axes[2]), strict=True)
            size = next(leaf.shape[axis] for leaf, axis in pairs if axis is not None)

            def take(leaf: mx.array, axis: int | None, i: int) -> mx.array:
                return leaf if axis is None else mx.take(leaf, i, axis)

            entries = [tree_map(partial(take, i=i), right, axes[2]) for i in range(size)]
            rows = [self._solve(params, floats, entry) for entry in entries]
            stacked = tree_map(lambda *entries: mx.stack(list(entries)), *rows)
            return stacked, tree_map(lambda _: 0, stacked)

        solve = mx.custom_function(solution)
        solve.vjp(vjp)
        solve.vmap(vmap)
        solve.jvp(_no_forward_mode)
        return solve(params, floats, right)

    def _loss_of_floats(self, params: Tree, floats: list[mx.array]) -> mx.array:
        given = iter(floats)
        args = tree_map(lambda leaf: next(given) if is_float(leaf) else leaf, self.args)
        return self.loss(params, *args)

    def _solve_with_numbers(self, right: Tree) -> Tree:
        """Return H⁻¹ `right`, H the constant Hessian at the minimizer."""
        dtype = working_dtype(self.params)
        if count(self.params) > _DENSE:
            product = compiled(hvp(self.loss, compile=False))

            def times(vector: np.ndarray) -> np.ndarray:
                return to_host(product(self.params, from_host(vector, right), *self.args))

            found = solve_by_products(times, to_host(_detached(right)), epsilon(self.params))
            return from_host(found, right)
        if self._root is None:
            matrix = hessian(self.loss, flat=True, compile=False)(self.params, *self.args)
            root = inverse_of_hessian(to_numpy(matrix), epsilon(self.params))
            self._root = to_device(root, dtype)
        # Products alone, which vmap batches.
        return unravel(self._root @ (self._root.T @ ravel(right, dtype)), self.params)


def inverse_of_hessian(matrix: np.ndarray, eps: float) -> np.ndarray:
    """Return R with R Rᵀ = H⁻¹, both (p, p), float64, eps the rounding error of H.

    Raises:
        ValueError: H is not positive definite beyond rounding.
    """
    if not np.isfinite(matrix).all():
        raise ValueError("the Hessian at the minimizer is not finite, so it has no derivative.")
    root = inverse_root(matrix, eps)
    if root is None:
        raise ValueError(_NOT_DEFINITE)
    return root


def solve_by_products(times: Product, right: np.ndarray, eps: float) -> np.ndarray:
    """Return x with H x = `right`, both (p,), float64, by conjugate gradients.

    Args:
        times: the product of H and a vector.
        right: the right-hand side.
        eps: the relative rounding error of a product. The residual of the recurrence is reduced to
            eps^¾ of `right`.

    Raises:
        ValueError: H is not positive definite.

    Warns:
        ConvergenceWarning: the residual is above √eps of `right`.
    """
    best, least = np.zeros_like(right), math.inf
    most = min(_MAX_PRODUCTS, 10 * len(right))
    try:
        for found, size in conjugate_gradients(times, right, eps**0.75, most):
            if size < least:
                best, least = found, size
    except NotPositiveError:
        raise ValueError(_NOT_DEFINITE) from None
    # The recurrence drifts from the residual itself.
    rest = right - times(best)
    relative = float(np.sqrt(rest @ rest) / max(np.sqrt(right @ right), 1e-300))
    if not relative <= eps**0.5:
        warn(
            f"argmin: conjugate gradients left {relative:.1g} of the right-hand side, so the "
            f"derivative of the minimizer is good to about that. The Hessian is badly conditioned: "
            f"scale the parameters, add a penalty, or use float64."
        )
    return best


def _no_forward_mode(*_: Any) -> Any:
    raise NotImplementedError(
        "argmin has derivatives by reverse mode: use mx.grad or mx.vjp in place of mx.jvp."
    )


def _check_is_stationary(
    loss: Callable[..., mx.array], params: Tree, args: tuple[Any, ...], optimality: float
) -> None:
    """Raise ValueError if the gradient is not zero: at a bound or a kink."""
    with device_for(params, args):
        (largest,) = read(largest_entry(grad(loss, compile=False)(params, *args)))
    if largest > 10 * optimality + 100 * epsilon(params):
        raise ValueError(
            f"the largest entry of the gradient at the minimizer is {largest:.3g}: it lies on a "
            f"bound or a kink, where argmin knows no derivative. Use an unconstrained parameter, "
            f"such as the logarithm of one that must be positive."
        )


def _inner(one: Tree, other: Tree) -> mx.array:
    dtype = working_dtype(one)
    return mx.inner(ravel(one, dtype), ravel(other, dtype))


def _detached(tree: Any) -> Any:
    """Return a tree of copies, unknown to any transformation; raise TapeError without numbers."""

    def copy(leaf: Any) -> Any:
        if not isinstance(leaf, mx.array):
            return leaf
        wide = leaf.astype(mx.float32) if leaf.dtype == mx.bfloat16 else leaf  # as NumPy has it
        return mx.array(np.array(wide), dtype=leaf.dtype)

    try:
        return tree_map(copy, tree)
    except (ValueError, RuntimeError) as error:
        if "during function transformations" not in str(error):
            raise
        raise TapeError(_NEEDS_NUMBERS) from error
