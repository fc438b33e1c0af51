"""The figures as tables and as JSON."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from benchmarks.contest import Outcome, Task, Verdict, ratio, verdicts

if TYPE_CHECKING:
    from rich.console import Console

_BUSY = 0.1  # share of the CPUs used by other processes that is worth a warning
Results = list[tuple[str, Task, list[Outcome]]]  # with the name of the workload


def print_machine(console: Console, machine: dict[str, Any]) -> None:
    """Print the machine and the versions."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for name, value in machine.items():
        if name == "versions":
            value = ", ".join(f"{package} {number}" for package, number in value.items())
        elif name == "absent":
            value = ", ".join(value) or "none of the peers"
        table.add_row(name, str(value))
    console.print(table, markup=False)


def print_task(console: Console, task: Task, outcomes: list[Outcome], judged: bool) -> None:
    """Print the table of a task.

    Args:
        console: the console to print on.
        task: the task.
        outcomes: of its contestants, mlxopt's first.
        judged: whether to show the goals, which hold for the full sizes.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    has_errors = any(outcome.error is not None for outcome in outcomes)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", max_width=52)
    measures = ["time" if task.unit == "seconds" else "memory", *["error"] * has_errors]
    for name in (*measures, "mlxopt / it", *["goal"] * judged):
        table.add_column(name, justify="right", no_wrap=True)
    if judged:
        table.add_column("", no_wrap=True)
    ours = outcomes[0]
    for outcome in outcomes:
        contestant = outcome.contestant
        name = Text(contestant.name)
        if contestant.remark:
            name.append(f" ({contestant.remark})", style="dim")
        if outcome.failure:
            name.append(f" failed: {outcome.failure}", style="red")
        error = [_error(outcome.error)] * has_errors
        found = verdicts(task, ours, outcome) if judged else []
        claim = next((verdict for verdict in found if verdict.quantity == "time"), None)
        quotient = "" if outcome is ours else _quotient(ratio(ours, outcome), claim)
        goal = _goal(claim) if claim else [""] * (2 * judged)
        table.add_row(name, amount(outcome.figure, task.unit), *error, quotient, *goal)
        for verdict in found:
            if verdict is not claim:
                table.add_row(*_extra(verdict, ours, outcome, has_errors), *_goal(verdict))
    console.print(f"\n{task.title}", style="bold", markup=False)
    console.print(table)
    if task.note:
        console.print(task.note, style="dim", markup=False)


def _extra(verdict: Verdict, ours: Outcome, outcome: Outcome, has_errors: bool) -> list[str]:
    """Return the cells of a goal that is not about time."""
    text, quotient = "  error: mlxopt's / its", f"{verdict.ratio:.2f}"
    if verdict.quantity == "evaluations":
        text = f"  evaluations: mlxopt's {ours.evaluations:,}, its {outcome.evaluations:,}"
    elif outcome is ours:
        text, quotient = "  its error", ""
    return [text, "", *[""] * has_errors, quotient]


def _goal(verdict: Verdict) -> list[str]:
    text = f"≥ {verdict.goal:g}×" if verdict.inverse else f"≤ {verdict.goal:g}"
    return [text, "[green]met[/]" if verdict.met else "[red]not met[/]"]


def _quotient(value: float, claim: Verdict | None) -> str:
    if math.isnan(value):
        return ""
    if claim is None or not claim.inverse:
        return significant(value)
    return f"{significant(1 / value)}× faster" if value <= 1 else f"{significant(value)}× slower"


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}"


def amount(value: float, unit: str) -> str:
    """Return seconds or bytes with a unit."""
    if math.isnan(value):
        return ""
    if unit == "bytes":
        return f"{value / 1e6:,.0f} MB"
    factor, name = (1.0, "s") if value >= 1 else (1e-3, "ms") if value >= 1e-3 else (1e-6, "µs")
    return f"{significant(value / factor, 3)} {name}"


def significant(value: float, digits: int = 2) -> str:
    """Return a number with at least `digits` digits and without an exponent: 0.0032, 0.32, 321."""
    if not value > 0:
        return f"{value:g}"
    return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(value)))}f}"


def print_end(
    console: Console, settings: dict[str, Any], absent: list[str], results: Results
) -> None:
    """Print the number of goals met, the conditions, and the peers that are not installed."""
    lines = []
    if not settings["quick"]:
        met = [
            verdict.met
            for _, task, outcomes in results
            for other in outcomes
            for verdict in verdicts(task, outcomes[0], other)
        ]
        lines.append(f"{sum(met)} of {len(met)} goals met.")
    rest, rounds = settings["rest_seconds"], settings["most_rounds"]
    lines.append(
        f"Medians of up to {rounds} runs, in turn, each after {rest:g} s of rest; errors are "
        f"relative to the largest parameter. Total time {settings['seconds']:.0f} s."
    )
    if absent:
        lines.append(f"Not installed, so not compared: {', '.join(absent)}.")
    if settings.get("others", 0.0) > _BUSY:
        lines.append(
            f"Other processes used {settings['others']:.0%} of the CPUs, which slows some "
            f"libraries more than others: on an idle machine the ratios may differ."
        )
    console.print("\n" + "\n".join(lines), markup=False)


def to_json(machine: dict[str, Any], settings: dict[str, Any], results: Results) -> dict[str, Any]:
    """Return all measurements."""
    return {
        "machine": machine,
        "settings": settings,
        "tasks": [_task(*result) for result in results],
    }


def _task(workload: str, task: Task, outcomes: list[Outcome]) -> dict[str, Any]:
    ours = outcomes[0]
    return {
        "workload": workload,
        "title": task.title,
        "note": task.note,
        "unit": task.unit,
        "contestants": [
            {
                "name": outcome.contestant.name,
                "package": outcome.contestant.package,
                "remark": outcome.contestant.remark,
                "stock_blas": outcome.contestant.stock,
                "share": outcome.contestant.share,
                "figures": outcome.figures,
                "median": _number(outcome.figure),
                "mlxopt_over_it": _number(ratio(ours, outcome)),
                "error": outcome.error,
                "evaluations": outcome.evaluations,
                "failure": outcome.failure,
                "goals": [verdict._asdict() for verdict in verdicts(task, ours, outcome)],
            }
            for outcome in outcomes
        ],
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no NaN
