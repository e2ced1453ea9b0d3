"""What `spectra sweep` shows: where tasks stand, and what they will cost, within 80 columns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from spectra.quoting import LINE, quoted
from spectra.sweeps.cost import Cost, Costs
from spectra.sweeps.plan import Plan
from spectra.sweeps.tasks import STATES, Standing
from spectra.wording import counted

SHOWN = 12  # tasks in a list


def counts(standings: Sequence[Standing]) -> str:
    """`36 tasks: 20 finished, 4 running, 12 waiting`."""
    count = Counter(standing.state for standing in standings)
    parts = [f"{count[state]} {state}" for state in STATES if count[state]]
    return f"{len(standings)} task{'s' * (len(standings) != 1)}: {', '.join(parts)}"


def status_text(standings: Sequence[Standing]) -> str:
    standings = [replace(s, task=replace(s.task, name=quoted(s.task.name))) for s in standings]
    lines = [counts(standings), *running(standings)]
    for standing in abridged([s for s in standings if s.reason]):
        lines += ["", *trouble(standing)] if isinstance(standing, Standing) else ["", standing]
    if unmet := [s for s in standings if s.unmet]:
        lines += ["", "Tolerance not met:"]
        lines += [f"  {s.task.name}: {', '.join(s.unmet)}" if isinstance(s, Standing) else s for s in abridged(unmet)]
    return "\n".join(lines)


def running(standings: Sequence[Standing]) -> list[str]:
    names = [standing.task.name for standing in standings if standing.state == "running"]
    return [f"  running: {name}" for name in abridged(names)]


def trouble(standing: Standing) -> list[str]:
    """What became of a task, and the last lines of its log."""
    head = f"{standing.task.name} {standing.state}: {standing.reason}" + (f" ({standing.log})" if standing.log else "")
    return [quoted(head, LINE), *(f"    {quoted(line, LINE)}" for line in standing.last_lines())]


def abridged(items: Sequence[Any]) -> list[Any]:
    """All, or the first ones and how many more there are."""
    left = len(items) - SHOWN
    return list(items) if left <= 1 else [*items[:SHOWN], f"  and {left} more"]


def status_record(plan: Plan, standings: Sequence[Standing]) -> dict[str, Any]:
    tasks = [
        {
            "name": s.task.name,
            "state": s.state,
            "reason": s.reason or None,
            "log": str(s.log) if s.log else None,
            "last_lines": s.last_lines(),
            "tolerance_not_met": list(s.unmet),
        }
        for s in standings
    ]
    return {"schema": 1, "command": "sweep status", "plan": str(plan.path), "out": str(plan.out), "tasks": tasks}


def dry_run_text(plan: Plan, standings: Sequence[Standing], costs: Costs) -> str:
    from spectra.tables.inspection import in_bytes, in_time
    from spectra.tables.results import new_table, rendered

    tasks = new_table("task", "commands", "state")
    for item in abridged(standings):
        known = isinstance(item, Standing)
        tasks.add_row(*((item.task.name, ", ".join(plan.commands), item.state) if known else (item.strip(), "", "")))
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
        counts(standings),
        tasks,
        "each, by a look at the first checkpoint:",
        table,
        total(costs.rows, costs.loading, in_time),
    )


def total(rows: Sequence[Cost], loading: float, in_time) -> str:
    known = [row for row in rows if not math.isnan(row.seconds)]
    sign = "more than " if len(known) < len(rows) or any(row.at_least for row in known) else ""
    products = sum(row.times * row.products for row in known)
    seconds = sum(row.times * row.seconds for row in known)
    times = sum(row.times for row in rows)
    text = f"all: {sign}{counted(products, 'product')} in {in_time(seconds)}"
    return f"{text}, and {in_time(times * loading)} for {counted(times, 'start')}, one after the other"
