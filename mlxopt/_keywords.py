"""Keywords of other libraries: what to write in place of them."""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

# Keywords of SciPy, scikit-learn, PyTorch and others, by what they mean. {call} is the call itself.
_MEANINGS = {
    "args data xdata ydata X y": "The data are arguments by position: {call}",
    "fun func f model": "The function comes first: {call}",
    "x0 p0 start init_params initial_guess theta": "The start comes second: {call}",
    "method solver algorithm optimizer_name": "Pass an optimizer, such as mo.LBFGS(): {call}",
    "maxiter max_iter maxfun maxfev max_nfev niter n_iter num_steps n_steps steps iterations "
    "max_epochs n_epochs num_epochs": "Write {limit}",
    "gtol ftol xtol atol rtol eps tolerance": "Write tol=, of which the docstring says what it "
    "measures; stop= takes other rules, such as mo.Stall(10)",
    "jac hess hessp grad fprime gradient Dfun": "Derivatives are computed from the function: leave "
    "it out",
    "bounds lower upper": "Bounds belong to the optimizer: mo.LBFGSB(lower=0.0, upper=1.0)",
    "constraints constraint": "Write a constraint as a projection, mo.ProximalGradient(mo.prox...),"
    " or as another parametrization, such as mx.exp(p) for what is positive",
    "options": "Options are keywords of their own: max_steps=, tol=, callback=",
    "disp verbose full_output": "Write progress=True; the result holds all else",
    "lr learning_rate step_size momentum weight_decay": "It belongs to the optimizer, such as "
    "mo.SGD(0.1)",
    "maxcor m memory history_size": "It belongs to the optimizer: mo.LBFGS(memory=10)",
    "loss loss_scale f_scale": 'Write robust="huber", or robust=("huber", scale)',
    "x_scale diag": "Leave it out: the method has no units",
    "sigma absolute_sigma weights sample_weight": "Weigh in the function: (predictions - y) / sigma"
    " in a residual, weights * losses in a loss, with the weights among the data",
    "epochs batch_size": "Mini-batches are for mo.train(loss, params, rule, "
    "mo.batches(X, y, batch_size=32), epochs=10)",
    "shuffle drop_last": "It belongs to the batches: mo.batches(X, y, batch_size=32)",
    "seed key random_state rng": "Write mx.random.seed(0) before the call",
    "vmap batch axis": "Write in_axes=",
}
_ADVICE = {word: advice for words, advice in _MEANINGS.items() for word in words.split()}


def with_advice(function: F) -> F:
    """Return `function`; its TypeError for an unknown keyword says what to write in its place."""
    parameters = inspect.signature(function).parameters
    known = frozenset(parameters)

    def call(*args: Any, **kwargs: Any) -> Any:
        if not known.issuperset(kwargs):
            raise unexpected(function, parameters, kwargs)
        return function(*args, **kwargs)

    unexpected = _unexpected  # in the closure: the globals are those of `function`, for doctest
    code, closure = call.__code__, call.__closure__
    wrapper: Any = types.FunctionType(code, vars(sys.modules[function.__module__]), closure=closure)
    functools.update_wrapper(wrapper, function)
    return wrapper


def _unexpected(function: Any, parameters: Any, given: dict[str, Any]) -> TypeError:
    """Return the error for keywords that are none of these parameters."""
    import difflib

    word = next(word for word in given if word not in parameters)
    message = f"{function.__name__}() got an unexpected keyword argument {word!r}."
    if word in _ADVICE:
        required = [str(one) for one in parameters.values() if one.default is one.empty]
        call = ", ".join(one.partition(":")[0] for one in required)
        limit = "max_steps=1000" if "max_steps" in parameters else "epochs=10"
        advice = _ADVICE[word].format(call=f"{function.__name__}({call})", limit=limit)
        return TypeError(f"{message} {advice}.")
    close = difflib.get_close_matches(word, parameters, n=1, cutoff=0.75)
    return TypeError(f"{message} Did you mean {close[0]}=?" if close else message)
