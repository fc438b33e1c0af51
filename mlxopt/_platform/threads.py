"""What MLX needs at the end of a thread, and after a fork.

MLX keeps streams, compiled functions and the random state for each thread. When a thread ends, C++
destroys them, and waits for the interpreter to do so: a process that exits at that time aborts.
Here Python destroys them, before its `join` of the thread returns.

After a fork the child has none of MLX's threads: its computations would never end.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref

import mlx.core as mx

local = threading.local()  # `end` is set in each thread that has computed

_daemons: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
_PATIENCE = 0.2  # seconds that daemon threads have to end when the process exits
_used = _forked = False  # whether MLX was in use before the last fork; whether this is the child


class _End:
    """Destroys what MLX keeps for a thread when Python drops the local variables of the thread."""

    def __init__(self) -> None:
        self.ident = threading.get_ident()

    def __del__(self) -> None:
        if self.ident == threading.get_ident():  # not that of a daemon thread dropped at exit
            mx.clear_streams()


def enter() -> None:
    """Prepare the current thread for its first computation.

    Raises:
        RuntimeError: the process is the child of a fork.
    """
    if _forked:
        raise RuntimeError(
            "this process was forked from one that had used MLX, whose threads do not survive a "
            "fork: the computation would never end. Start processes with "
            'multiprocessing.get_context("spawn"), or with joblib\'s default, "loky"; or import '
            "and use MLX in the children alone."
        )
    thread = threading.current_thread()
    is_main = thread is threading.main_thread()  # which MLX itself cleans up
    local.end = None if is_main or not hasattr(mx, "clear_streams") else _End()
    if thread.daemon:
        _daemons.add(thread)


def _before_fork() -> None:
    global _used
    _used = mx.get_peak_memory() > 0 or mx.get_active_memory() > 0


def _after_fork() -> None:
    global _forked
    _forked = _forked or _used
    local.__dict__.clear()


def _end_daemons() -> None:
    """End the daemon threads that have computed: Python would kill them later, when they wake."""
    import ctypes  # 5 ms, where NumPy has not done so

    alive = [thread for thread in list(_daemons) if thread.is_alive()]
    for thread in alive:
        ident, error = ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, error)
    for thread in alive:
        thread.join(_PATIENCE / len(alive))


os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
atexit.register(_end_daemons)
