"""A progress bar, drawn by rich, which is imported when one is shown."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

_PATIENCE = 1.0  # seconds before a bar appears by itself


class ProgressBar:
    """A bar over `total` steps: erased at the end in a terminal; elsewhere it ends full.

    Args:
        label: name of the run.
        total: steps at most; None if unknown.
        show: True from the start, False never, None after a second in a terminal or notebook.
    """

    def __init__(self, label: str, total: int | None, show: bool | None) -> None:
        self._label, self._total = label, total
        self._bar: Progress | None = None
        self._task: Any = None
        watched = show or (show is None and (sys.stderr.isatty() or "ipykernel" in sys.modules))
        patience = 0.0 if show else _PATIENCE
        self._due = time.perf_counter() + patience if watched else float("inf")

    def __enter__(self) -> ProgressBar:
        return self

    def update(self, done: int, value: float) -> None:
        """Show `done` steps and the loss `value`."""
        if self._bar is None and time.perf_counter() >= self._due:
            self._bar = self._open()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, loss=f"{value:.6g}")

    def _open(self) -> Progress:
        from rich import progress
        from rich.console import Console

        console = Console(stderr=True)
        shown = "loss {task.fields[loss]}", progress.TimeElapsedColumn()
        columns = "{task.description}", progress.BarColumn(), progress.MofNCompleteColumn(), *shown
        bar = progress.Progress(*columns, console=console, transient=console.is_terminal)
        self._task = bar.add_task(self._label, total=self._total, loss="")
        bar.start()
        return bar

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            # The steps taken become the total: a run that converges takes fewer than allowed.
            self._bar.update(self._task, total=self._bar.tasks[0].completed)
            self._bar.stop()
