"""The figures as a table, and as JSON."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from benchmarks.contest import Outcome, Task, Verdict, ratio, verdicts

if TYPE_CHECKING:
    from rich.console import Console

_BUSY = 0.1  # the part of the CPUs that others may take unmentioned
Results = list[tuple[str, Task, list[Outcome]]]  # each with the name of its workload


def print_machine(console: Console, machine: dict[str, Any]) -> None:
    """Print where the figures come from."""
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
    """Print one task's table.

    Args:
        console: where.
        task: the task.
        outcomes: those of its contestants, mlxopt's first.
        judged: whether to show the goals, which are those of the full sizes.
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
        claim = next((one for one in found if one.quantity == "time"), None)
        quotient = "" if outcome is ours else _quotient(ratio(ours, outcome), claim)
        goal = _goal(claim) if claim else [""] * (2 * judged)
        table.add_row(name, amount(outcome.figure, task.unit), *error, quotient, *goal)
        for one in found:
            if one is not claim:
                table.add_row(*_extra(one, ours, outcome, has_errors), *_goal(one))
    console.print(f"\n{task.title}", style="bold", markup=False)
    console.print(table)
    if task.note:
        console.print(task.note, style="dim", markup=False)


def _extra(one: Verdict, ours: Outcome, outcome: Outcome, has_errors: bool) -> list[str]:
    """Return the cells of a claim that is not about time."""
    if one.quantity == "evaluations":
        text = f"  evaluations: mlxopt's {ours.evaluations:,}, its {outcome.evaluations:,}"
        return [text, "", *[""] * has_errors, f"{one.ratio:.2f}"]
    if outcome is ours:
        return ["  its error", "", *[""] * has_errors, ""]
    return ["  error: mlxopt's in its", "", *[""] * has_errors, f"{one.ratio:.2f}"]


def _goal(one: Verdict) -> list[str]:
    text = f"≥ {one.goal:g}×" if one.inverse else f"≤ {one.goal:g}"
    return [text, "[green]met[/]" if one.met else "[red]not met[/]"]


def _quotient(value: float, claim: Verdict | None) -> str:
    if math.isnan(value):
        return ""
    if claim is not None and claim.inverse:
        return (
            f"{significant(1 / value)}× faster" if value <= 1 else f"{significant(value)}× slower"
        )
    return significant(value)


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}"


def amount(value: float, unit: str) -> str:
    """Return seconds or bytes as people write them."""
    if math.isnan(value):
        return ""
    if unit == "bytes":
        return f"{value / 1e6:,.0f} MB"
    factor, name = (1.0, "s") if value >= 1 else (1e-3, "ms") if value >= 1e-3 else (1e-6, "µs")
    return f"{significant(value / factor, 3)} {name}"


def significant(value: float, digits: int = 2) -> str:
    """Return a number with at least so many digits, never in powers of ten: 0.0032, 0.32, 321."""
    if not value > 0:
        return f"{value:g}"
    return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(value)))}f}"


def print_end(
    console: Console, settings: dict[str, Any], absent: list[str], results: Results
) -> None:
    """Print how many goals were met, what was not compared, and whether to believe it."""
    found = [
        one
        for _, task, outcomes in results
        for other in outcomes
        for one in verdicts(task, outcomes[0], other)
    ]
    lines = []
    if not settings["quick"]:
        lines.append(f"{sum(one.met for one in found)} of {len(found)} goals met.")
    rest, rounds = settings["rest_seconds"], settings["most_rounds"]
    lines.append(
        f"Medians of up to {rounds} runs, in turn, each after {rest:g} s of rest; an error is that "
        f"of the parameters, in the largest of them. It all took {settings['seconds']:.0f} s."
    )
    if absent:
        lines.append(f"Not installed, so not compared: {', '.join(absent)}.")
    if settings.get("others", 0.0) > _BUSY:
        lines.append(
            f"Other processes took {settings['others']:.0%} of the CPUs meanwhile, and slow some "
            f"libraries more than others: on a quiet machine the ratios may differ."
        )
    console.print("\n" + "\n".join(lines), markup=False)


def to_json(machine: dict[str, Any], settings: dict[str, Any], results: Results) -> dict[str, Any]:
    """Return everything that was measured."""
    return {"machine": machine, "settings": settings, "tasks": [_task(*one) for one in results]}


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
                "goals": [one._asdict() for one in verdicts(task, ours, outcome)],
            }
            for outcome in outcomes
        ],
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON knows no NaN
