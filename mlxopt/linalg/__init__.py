"""Matrix factorizations with derivatives, batching, and errors.

`mx.linalg` has no derivatives, and some of its functions return garbage where they fail. The
functions here have derivatives of every order in both modes, under `mx.vmap` and `mx.compile`, and
work over leading axes; they run on the CPU under any default device. A failure raises
`LinAlgError`, also within `mx.grad`. Where values are unknown, under `mx.compile` and `mx.vmap`, it
is NaN instead, which a line search rejects.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # of __init__.pyi
