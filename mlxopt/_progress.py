"""A progress bar, drawn by rich, which is imported when one is shown."""

from __future__ import annotations

import io
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

_PATIENCE = 1.0  # seconds before a bar appears by itself
_REFRESH = 0.1  # seconds between two pictures in a notebook


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
        self._output: Any = None  # of a notebook, where Rich itself would need ipywidgets
        watched = show or (show is None and (sys.stderr.isatty() or _in_a_notebook()))
        patience = 0.0 if show else _PATIENCE
        self._due = time.perf_counter() + patience if watched else float("inf")

    def __enter__(self) -> ProgressBar:
        return self

    def update(self, done: int, value: float) -> None:
        """Show `done` steps and the loss `value`."""
        now = time.perf_counter()
        if self._bar is None and now >= self._due:
            self._bar = self._open()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, loss=f"{value:.6g}")
            if self._output is not None and now >= self._due:
                self._due = now + _REFRESH
                self._output.update(self._picture(), raw=True)

    def _open(self) -> Progress:
        from rich import progress
        from rich.console import Console

        console = Console(stderr=True, force_jupyter=False)
        shown = "loss {task.fields[loss]}", progress.TimeElapsedColumn()
        columns = "{task.description}", progress.BarColumn(), progress.MofNCompleteColumn(), *shown
        bar = progress.Progress(*columns, console=console, transient=console.is_terminal)
        self._task = bar.add_task(self._label, total=self._total, loss="")
        if _in_a_notebook():
            self._output = _new_output()
        else:
            bar.start()
        return bar

    def _picture(self) -> dict[str, str]:
        """Return the bar as a notebook shows it, one line of text."""
        from rich.console import Console

        file = io.StringIO()
        Console(file=file, width=80, color_system=None, force_jupyter=False).print(self._bar)
        return {"text/plain": file.getvalue().strip()}

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            # The steps taken become the total: a run that converges takes fewer than allowed.
            self._bar.update(self._task, total=self._bar.tasks[0].completed)
            if self._output is None:
                self._bar.stop()
            else:
                self._output.update(self._picture(), raw=True)


def _in_a_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _new_output() -> Any:
    """Return a new output of the current cell of a notebook, whose content can be replaced."""
    from IPython.display import display

    return display({"text/plain": ""}, raw=True, display_id=True)
