"""Tables of 80 columns from a record of `spectra inspect`: layers, checkpoint, and forecasts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table

from spectra.quoting import quoted, readable
from spectra.records.inspect import CommandCost, InspectResult
from spectra.records.problem import LayerRecord, ProblemRecord
from spectra.records.record import Record
from spectra.tables.results import new_table, rendered
from spectra.wording import counted

MOST_ROWS = 40
SPARED = ("logits in chunks", "recomputed")  # in the paths of products that trade time for memory
NEAR = 4  # times the number of parameters: larger limits are not shown
SHOWN = 5  # ignored names in a line
FORECAST = "expected cost of each command:"
UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB"]


def inspect_text(record: Record) -> str:
    """The record of `inspect` as text of 80 columns."""
    return rendered(*inspect_parts(readable(record)))


def inspect_parts(record: Record) -> list[str | Table]:
    """Texts and tables: the model, its checkpoint and layers; with data also the loss and the forecasts of cost."""
    problem, results = record.problem, record.results
    parts = model_parts(problem)
    if problem.data:
        parts += [*data_parts(problem), "", FORECAST, cost_table(results)]
        if any(e.method == "gram" for r in results for e in competitive(r.estimates)):
            parts.append("exact: with --method gram, which trace uses by default if it is the cheapest")
        parts += [f"{r.curvature}: {r.path}" for r in results if any(word in r.path for word in SPARED)]
        if any(estimate.at_least for r in results for estimate in r.estimates):
            parts.append("> means at least: the trial run is too short to say how much more")
        parts += limits(problem.parameters, results)
    return parts


def model_parts(problem: ProblemRecord) -> list[str | Table]:
    """Texts and tables on model and checkpoint, which need no data."""
    return [model_line(problem), checkpoint_line(problem), "", layer_table(problem.layers)]


def data_parts(problem: ProblemRecord) -> list[str | Table]:
    """Texts on the data and on the model's loss there."""
    return ["", data_line(problem), *(problem.notes or [])]


def model_line(problem: ProblemRecord) -> str:
    """The line on the model and its number of parameters."""
    chosen, every = problem.parameters, sum(layer.parameters for layer in problem.layers)
    rest = f" chosen of {every:,}" if chosen < every else ""
    return f"{quoted(problem.model)}: {counted(chosen, 'parameter')}{rest}"


def checkpoint_line(problem: ProblemRecord) -> str:
    """The line on the checkpoint and how it fitted the model."""
    loaded = problem.checkpoint_match
    if loaded is None:
        if problem.model_holds_weights:
            return "no checkpoint: the model comes with its weights"
        return f"no checkpoint: weights as built with seed {problem.seed}"
    kind = f" of the {loaded.adapter} adapter" if loaded.adapter else ""
    text = f"{quoted(loaded.path)}: all {loaded.tensors} tensors{kind} match"
    text += f" under {quoted(loaded.key)}" if loaded.key else ""
    text += f", without their prefix {quoted(loaded.prefix)}" if loaded.prefix else ""
    text += f", with the model's prefix {quoted(loaded.added)}" if loaded.added else ""
    text += f"; {', '.join(loaded.dtypes)}" if loaded.dtypes else ""
    if ignored := loaded.ignored:
        more = ", ..." if len(ignored) > SHOWN else ""
        kind = "other" if len(ignored) == 1 else "others"
        text += f"; {len(ignored)} {kind} ignored ({', '.join(quoted(name, 60) for name in ignored[:SHOWN])}{more})"
    return text


def layer_table(layers: Sequence[LayerRecord]) -> Table:
    """The table of layers, grouped at the deepest level of names that gives at most `MOST_ROWS` rows."""
    deepest = max(layer.name.count(".") + 1 for layer in layers)
    depth = next((d for d in range(deepest, 1, -1) if len(grouped(layers, d)) <= MOST_ROWS), 1)
    table = new_table("layer", "type", "parameters", "")
    table.columns[-1].justify = "left"  # words
    for name, group in list(grouped(layers, depth).items())[:MOST_ROWS]:
        kind = group[0].type if [layer.name for layer in group] == [name] else f"{len(group)} layers"
        count = sum(layer.parameters for layer in group)
        table.add_row(name or "(itself)", kind, f"{count:,}", state(group, count))
    if left := len(grouped(layers, depth)) - MOST_ROWS:
        table.add_row(f"and {left} more", "", "", "") if left > 0 else None
    return table


def grouped(layers: Sequence[LayerRecord], depth: int) -> dict[str, list[LayerRecord]]:
    """Layers by the first `depth` parts of their names."""
    groups: dict[str, list[LayerRecord]] = {}
    for layer in layers:
        groups.setdefault(".".join(layer.name.split(".")[:depth]), []).append(layer)
    return groups


def state(group: Sequence[LayerRecord], count: int) -> str:
    """The state of a group's parameters, in words: trainable, frozen, tied or left out."""
    trainable, chosen = sum(layer.trainable for layer in group), sum(layer.chosen for layer in group)
    tied = [name for layer in group for name in layer.tied]
    parts = [f"tied to {', '.join(tied)}"] if tied else []
    if count:
        frozen = "frozen" if not trainable else f"{count - trainable:,} frozen"
        parts += [frozen] if trainable < count else []
        parts += ["left out" if not chosen else f"{trainable - chosen:,} left out"] if chosen < trainable else []
    return "; ".join(parts) or "trainable"


def data_line(problem: ProblemRecord) -> str:
    """The line on data, loss and accuracy."""
    data, loss = quoted(problem.data), quoted(problem.loss)
    text = f"{data}: {counted(problem.examples, 'example')}, {loss} {problem.loss_value:.4g}"
    if problem.accuracy is not None:
        text += f", accuracy {100 * problem.accuracy:.4g} %"
    transform = f"; transform: {quoted(problem.transform)}" if problem.transform else ""
    return f"{text}, gradient norm {problem.gradient_norm:.3g}{transform}"


def cost_table(results: Sequence[InspectResult]) -> Table:
    """The table of forecasts."""
    table = new_table("", "s / product", "command", "products", "time", "memory")
    for r in results:
        first = [r.curvature, f"{r.seconds_per_product:.2g}"]
        for estimate in competitive(r.estimates):
            sign = "> " if estimate.at_least else ""
            duration, memory = in_time(estimate.seconds), in_bytes(estimate.bytes)
            if on_host := getattr(estimate, "host_bytes", None):
                memory += f" + {in_bytes(on_host)} (host)"
            command = estimate.command + (", exact" if estimate.method == "gram" else "")
            table.add_row(*first, command, f"{sign}{estimate.products:,}", sign + duration, memory)
            first = ["", ""]
    return table


def limits(parameters: int, results: Sequence[InspectResult]) -> list[str]:
    """Lines on the number of parameters up to which the Lanczos basis fits in memory, if that is near."""
    found: dict[str, int] = {}
    for estimate in (estimate for r in results for estimate in r.estimates):
        if largest := getattr(estimate, "largest_parameters", None):
            found[estimate.command] = min(largest, found.get(estimate.command, largest))
    near = {command: largest for command, largest in found.items() if largest < NEAR * parameters}
    return [
        f"the Lanczos basis of {command} fits in memory for up to {largest:.2g} parameters"
        for command, largest in near.items()
    ]


def competitive(estimates: Sequence[CommandCost]) -> list[CommandCost]:
    """The forecasts without those of exact methods that would take longer than the iterative one."""
    fastest = {e.command: e.seconds for e in estimates if e.method != "gram"}
    return [e for e in estimates if e.method != "gram" or e.seconds < fastest.get(e.command, math.inf)]


def in_time(seconds: float) -> str:
    """A duration with two digits, in seconds, minutes, hours or days."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.2g} s" if seconds < 99.5 else f"{seconds:.0f} s"


def in_bytes(count: float) -> str:
    """A number of bytes with its unit."""
    for unit in UNITS:
        if count < 1000 or unit == UNITS[-1]:
            return f"{count:.3g} {unit}"
        count /= 1024
    return ""
