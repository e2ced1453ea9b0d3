"""Text of 80 columns on the tasks of a sweep and their expected cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from spectra.quoting import LINE, quoted
from spectra.records.sweep import STATES, Cost, Costs, SweepStatus, TaskStatus
from spectra.wording import counted

SHOWN = 12  # tasks in a list


def counts(states: Iterable[str]) -> str:
    """The number of tasks in each state, as `36 tasks: 20 finished, 4 running, 12 waiting`."""
    count = Counter(states)
    parts = [f"{count[state]} {state}" for state in STATES if count[state]]
    return f"{count.total()} task{'s' * (count.total() != 1)}: {', '.join(parts)}"


def status_text(status: SweepStatus) -> str:
    """The status of a sweep as text of 80 columns."""
    tasks = [task.changed(name=quoted(task.name)) for task in status.tasks]
    lines = [counts(task.state for task in tasks), *running(tasks)]
    for task in abridged([task for task in tasks if task.reason]):
        lines += ["", *trouble(task)] if isinstance(task, TaskStatus) else ["", task]
    if unmet := [task for task in tasks if task.tolerance_not_met]:
        lines += ["", "Tolerance not met:"]
        for task in abridged(unmet):
            known = isinstance(task, TaskStatus)
            lines.append(f"  {task.name}: {', '.join(task.tolerance_not_met)}" if known else task)
    return "\n".join(lines)


def running(tasks: Sequence[TaskStatus]) -> list[str]:
    """The lines on tasks that are running."""
    names = [task.name for task in tasks if task.state == "running"]
    return [f"  running: {name}" for name in abridged(names)]


def trouble(task: TaskStatus) -> list[str]:
    """The lines on a task that did not finish: its state, the reason, and the last lines of its log."""
    head = f"{task.name} {task.state}: {task.reason}" + (f" ({task.log})" if task.log else "")
    return [quoted(head, LINE), *(f"    {quoted(line, LINE)}" for line in task.last_lines)]


def abridged(items: Sequence[Any]) -> list[Any]:
    """All items, or the first ones and the number of the others."""
    left = len(items) - SHOWN
    return list(items) if left <= 1 else [*items[:SHOWN], f"  and {left} more"]


def dry_run_text(status: SweepStatus, commands: Sequence[str], costs: Costs) -> str:
    """The tasks of a plan, which run these commands, and the expected cost of those that are left."""
    from spectra.tables.inspection import in_bytes, in_time
    from spectra.tables.results import new_table, rendered

    tasks = new_table("task", "commands", "state")
    for task in abridged(status.tasks):
        known = isinstance(task, TaskStatus)
        tasks.add_row(*((task.name, ", ".join(commands), task.state) if known else (task.strip(), "", "")))
    table = new_table("", "command", "times", "products", "time", "memory")
    previous = ""
    for row in costs.rows:
        cells = ("?", "?", "?")
        if not math.isnan(row.seconds):
            sign = "> " * row.at_least
            cells = (f"{sign}{row.products:,}", sign + in_time(row.seconds), in_bytes(row.bytes))
        table.add_row(row.curvature if row.curvature != previous else "", row.command, str(row.times), *cells)
        previous = row.curvature
    return rendered(
        counts(task.state for task in status.tasks),
        tasks,
        "expected cost of each command, from a trial run on the first checkpoint:",
        table,
        total(costs.rows, costs.loading, in_time),
    )


def total(rows: Sequence[Cost], loading: float, in_time) -> str:
    """The line on the cost of all tasks that are left."""
    known = [row for row in rows if not math.isnan(row.seconds)]
    sign = "more than " if len(known) < len(rows) or any(row.at_least for row in known) else ""
    products = sum(row.times * row.products for row in known)
    seconds = sum(row.times * row.seconds for row in known)
    times = sum(row.times for row in rows)
    text = f"in total: {sign}{counted(int(products), 'product')} in {in_time(seconds)}"
    return f"{text}, plus {in_time(times * loading)} for {counted(times, 'program start')}, if run one after the other"
