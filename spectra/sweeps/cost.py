"""Forecast the cost of a sweep: one `spectra inspect` on its first checkpoint, times the number of runs left."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from spectra.defaults import DENSITY_PROBES, DENSITY_STEPS
from spectra.errors import SpectraError
from spectra.records.inspect import CommandCost, InspectResult
from spectra.records.record import Record
from spectra.records.sweep import Cost, Costs
from spectra.sweeps.plan import Plan, Task
from spectra.sweeps.tasks import remaining

DEFAULT_DENSITY = {"probes": DENSITY_PROBES, "steps": DENSITY_STEPS}  # assumed by `inspect`


def estimate(plan: Plan, tasks: Sequence[Task], arguments: Sequence[str]) -> Costs:
    """Forecast the cost of the commands of a sweep that are left to run.

    Args:
        plan: the plan.
        tasks: its tasks with commands left to run.
        arguments: options of the plan that `inspect` takes, as words of a command line.

    Raises SpectraError with the message of `spectra inspect` if the problem is refused.
    """
    left = Counter((task.curvature, command) for task in tasks for command, _ in remaining(task))
    matrices = list(dict.fromkeys(curvature for curvature, _ in left))
    line = ["inspect", *arguments, *(part for name in matrices for part in ("--curvature", name)), "--json"]
    start = time.monotonic()
    command = [sys.executable, "-P", "-m", "spectra", *line]
    done = subprocess.run(command, cwd=plan.directory, capture_output=True, text=True, check=False)
    spent = time.monotonic() - start
    if not done.stdout:
        said = [text.removeprefix("spectra: ") for text in done.stderr.splitlines() if text.strip()]
        raise SpectraError(
            said[-1] if said else f"PLAN {plan.path}: spectra inspect ended with status {done.returncode}"
        )
    results = Record.of(json.loads(done.stdout), "of spectra inspect").results
    found = {result.curvature: result for result in results}
    rows = [cost(found[name], command, times, plan.options[command]) for (name, command), times in left.items()]
    own = sum(result.seconds + result.setup_seconds for result in found.values())
    return Costs(tuple(sorted(rows, key=lambda row: matrices.index(row.curvature))), max(0.0, spent - own))


def cost(result: InspectResult, command: str, times: int, options: Mapping[str, Any]) -> Cost:
    """Forecast the cost of one command from the estimate of its method; it is proportional to probes and steps."""
    method = options.get("method")
    fitting = [
        entry
        for entry in result.estimates
        if entry.command == command and (entry.method == method if method else usual(entry))
    ]
    if not fitting:
        return Cost(result.curvature, command, times, math.nan, math.nan, math.nan, False)
    entry = min(fitting, key=lambda entry: entry.seconds)
    products, pace = entry.products, entry.seconds / entry.products
    at_least = entry.at_least
    if command == "density":
        products *= math.prod(options.get(name, usual) / usual for name, usual in DEFAULT_DENSITY.items())
    elif command == "trace" and "probes" in options:
        products, at_least = options["probes"], False
    limit = options.get("max_products", options.get("max-products"))
    if limit and limit < products:
        products, at_least = limit, False
    return Cost(result.curvature, command, times, round(products), products * pace, entry.bytes, at_least)


def usual(entry: CommandCost) -> bool:
    """Whether a command uses this method by default: gram is a default only of the trace."""
    return entry.command == "trace" or entry.method != "gram"
