"""Products of long narrow matrices on one thread.

They are limited by memory, so that more threads of a BLAS gain nothing; and OpenBLAS's threads spin
while they wait, so that on busy cores a product takes many times as long.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

_WIDTH = 64  # columns at most
_SIZE = 2**16  # entries at least: OpenBLAS computes fewer on one thread


# The number of threads is that of the process: what two contexts at once restore can be wrong.
_lock = threading.Lock()


@functools.cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController  # 10 ms

    return ThreadpoolController()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Leave each BLAS of the process one thread; do nothing while another thread has done so."""
    if not _lock.acquire(blocking=False):
        yield
        return
    try:
        with _controller().limit(limits=1, user_api="blas"):
            yield
    finally:
        _lock.release()


def threads_for(rows: int, columns: int) -> contextlib.AbstractContextManager[Any]:
    """Return a context for products with a matrix (rows, columns): one thread if it is narrow."""
    if columns > _WIDTH or rows * columns < _SIZE:
        return contextlib.nullcontext()
    return _one_thread()
