"""The problem of a result in words: model, checkpoint, data, loss and settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spectra.quoting import LINE, quoted
from spectra.records.problem import ProblemRecord
from spectra.records.record import Record
from spectra.tables.precondition import precondition_line, threshold_text
from spectra.wording import counted

DIGITS = 12  # of a SHA-256
Facts = dict[str, str]


def facts(record: Record) -> Facts:
    """The facts about a problem in words, by name; facts that are unknown or do not apply are left out."""
    problem = record.problem
    found = of_operators(problem) if problem.operators else of_network(record)
    found |= {
        "Precision": problem.dtype,
        "Device": device(problem),
        "Seed": problem.get("seed"),
        "Versions": ", ".join(f"{name} {version}" for name, version in (problem.versions or {}).items()),
    }
    return {name: quoted(text, LINE) for name, text in found.items() if text not in (None, "")}


def of_operators(problem: ProblemRecord) -> dict[str, Any]:
    """The facts about operators: the kind, size and file of each."""
    several = len(problem.operators or ()) > 1
    return {
        f"Operator {one.name}" if several else "Operator": ", ".join(
            [one.spec, one.described(), *([f"SHA-256 {str(one.sha256)[:DIGITS]}…"] if one.sha256 else [])]
        )
        for one in problem.operators or ()
    }


def of_network(record: Record) -> dict[str, Any]:
    """The facts about a network, its checkpoint, data and loss."""
    problem = record.problem
    return {
        "Model": problem.get("model"),
        "Checkpoint": checkpoint(problem),
        "Data": data(problem),
        "Transform": problem.get("transform"),
        "Output": problem.output,
        "Loss": evaluated(problem),
        "Part of the loss": problem.loss_part,
        "Weight decay": problem.weight_decay or None,
        "Preconditioner": preconditioner(problem),
        "Parameters": parameters(problem),
        "Derivatives": by_inputs(problem),
        "Labels drawn": labels(record),
        "Batch size": grouped(problem.get("batch_size")),
    }


def checkpoint(problem: ProblemRecord) -> str:
    """The checkpoint in words."""
    path, sha, several = problem.get("checkpoint"), problem.checkpoint_sha256, problem.option("checkpoint")
    if path is None:
        if problem.model_holds_weights:
            return "none: the model holds its weights"
        return f"none: as built with seed {problem.get('seed')}"
    parts = [
        f"entry {problem.checkpoint_key}" if problem.checkpoint_key else "",
        f"without the prefix {problem.checkpoint_prefix}" if problem.checkpoint_prefix else "",
        f"with the model's prefix {problem.checkpoint_added}" if problem.checkpoint_added else "",
        f"{problem.checkpoint_ignored} other names ignored" if problem.checkpoint_ignored else "",
        f"SHA-256 {str(sha)[:DIGITS]}…" if sha else "",
        f"and {counted(len(several) - 1, 'other')} (see below)" if isinstance(several, list) else "",
    ]
    return ", ".join([str(path), *filter(None, parts)])


def data(problem: ProblemRecord) -> str | None:
    """The data and their number of examples, in words."""
    examples = problem.get("examples")
    return f"{problem.get('data')}, {counted(examples, 'example')}" if examples is not None else problem.get("data")


def grouped(number: int | None) -> str | None:
    """A number with commas; None for None."""
    return None if number is None else f"{number:,}"


def evaluated(problem: ProblemRecord) -> str | None:
    """The loss with its value, and the accuracy where there is one."""
    value, accuracy = problem.get("loss_value"), problem.accuracy
    if value is None:
        return problem.get("loss")
    right = "" if accuracy is None else f", accuracy {100 * accuracy:.4g} %"
    return f"{problem.get('loss')} {value:.4g}{right}"


def parameters(problem: ProblemRecord) -> str | None:
    """The number of chosen parameters, in words."""
    chosen, every, params = (problem.get("parameters"), problem.parameters_in_all, problem.params)
    if chosen is None:
        return None
    of = f" of {every:,}" if every and every > chosen else ""
    which = f" ({', '.join(map(str, params))})" if params else ""
    return f"{chosen:,}{of}{which}"


def preconditioner(problem: ProblemRecord) -> str | None:
    """The preconditioner in words, with the threshold of stability."""
    if not (found := problem.get("precondition")):
        return None
    threshold = "" if found.get("threshold") is None else f"; threshold of stability {threshold_text(found)}"
    return f"{precondition_line(found).partition(': ')[2]}{threshold}"


def by_inputs(problem: ProblemRecord) -> str | None:
    """The variable of derivatives, where it is not the parameters."""
    size = problem.get("input_size")
    return f"by the input of each example ({counted(size, 'number')})" if size else None


def labels(record: Record) -> str | None:
    """The number of labels drawn for each example, where a matrix draws labels."""
    drawn = any(entry.curvature.startswith("fisher-mc") for entry in record.results)
    return f"{record.problem.mc_samples} for each example of fisher-mc" if drawn else None


def device(problem: ProblemRecord) -> str | None:
    """The device and how many threads or ranks computed, in words."""
    name, threads, ranks = problem.device_name, problem.threads, problem.ranks
    if problem.device is None:
        return None
    counts = [
        counted(threads, "thread") if threads else "",
        f"{ranks} ranks" if ranks and ranks > 1 else "",
    ]
    return ", ".join(filter(None, [f"{problem.device} ({name})" if name else problem.device, *counts]))


def shared(found: Sequence[Facts]) -> Facts:
    """The facts that are the same for all results."""
    return {name: text for name, text in found[0].items() if all(other.get(name) == text for other in found)}
