"""Derivatives of a user's function, with checks where MLX's own are silently wrong.

A loss that leaves the graph (through `.item()`, `float()` or NumPy) has a gradient that is wrong,
often zero, without an error. Integer parameters are differentiated in integer arithmetic. Here each
of these raises, and the message says what to write instead.

All but `check_grads` take a function and return a function. Its parameters can be any tree of float
arrays; derivatives are trees like it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # of __init__.pyi
