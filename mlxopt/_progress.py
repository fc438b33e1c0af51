"""A progress bar for whatever lasts; rich draws it, and is imported only then."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

_PATIENCE = 1.0  # seconds before a bar appears unasked


class ProgressBar:
    """A bar over `total` steps that shows itself only when a run lasts.

    Args:
        label: what is running.
        total: how many steps there are at most; None if that is not known.
        show: True from the start, False never, None after a second if somebody is watching (a
            terminal or a notebook).

    A terminal is left without it; elsewhere it ends full, with the steps that were taken as its
    total: a run that converges takes fewer than it might.
    """

    def __init__(self, label: str, total: int | None, show: bool | None) -> None:
        self._label, self._total = label, total
        self._bar: Progress | None = None
        self._task: Any = None
        if show is None:
            watched = sys.stderr.isatty() or "ipykernel" in sys.modules
            self._due = time.perf_counter() + _PATIENCE if watched else float("inf")
        else:
            self._due = 0.0 if show else float("inf")

    def __enter__(self) -> ProgressBar:
        return self

    def update(self, done: int, value: float) -> None:
        """Show `done` steps and the loss `value`."""
        if self._bar is None:
            if time.perf_counter() < self._due:
                return
            self._open()
        assert self._bar is not None
        self._bar.update(self._task, completed=done, loss=f"{value:.6g}")

    def _open(self) -> None:
        from rich import progress
        from rich.console import Console

        console = Console(stderr=True)
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("loss {task.fields[loss]}"),
            progress.TimeElapsedColumn(),
            console=console,
            transient=console.is_terminal,
        )
        self._task = self._bar.add_task(self._label, total=self._total, loss="")
        self._bar.start()

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._task, total=self._bar.tasks[0].completed)
            self._bar.stop()
